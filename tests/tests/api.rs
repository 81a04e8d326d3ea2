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

#[tokio::test]
async fn the_example_of_a_template_builds_an_image_whose_sandboxes_do_what_it_says() {
    let msb = Msb::new();
    msb.import_base();
    templates::templates(&msb.store()).await.unwrap();
    let sandbox = msb.create_with("site", &["site:1"]);
    let served = sandbox
        .ssh("nc 127.0.0.1 8080 < /dev/null; cat /srv/index.html")
        .expect(0);
    assert_eq!(served.text(), "hello\n");
}
