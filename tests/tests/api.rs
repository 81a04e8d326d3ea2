//! The examples of docs/api.md, on a real guest.

use msb_tests::Msb;

include!(concat!(env!("OUT_DIR"), "/api_examples.rs"));

#[tokio::test]
async fn every_example_of_the_documentation_does_what_it_says() {
    let msb = Msb::new();
    let _running = msb.create("api");
    let sandbox = msb.open("api");
    commands::commands(&sandbox).await.unwrap();
    terminal::terminal(&sandbox).await.unwrap();
    files::files(&sandbox).await.unwrap();
    ssh::ssh(&sandbox).await.unwrap();
}
