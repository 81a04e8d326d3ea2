//! An SSH endpoint of a sandbox on standard input and output: `ssh -o ProxyCommand='endpoint box' box.msb`.

use std::error::Error;

use msb::ssh::SshServerOptions;
use msb::store::layout::Layout;
use msb::{Sandbox, Store};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let name = std::env::args().nth(1).ok_or("usage: endpoint SANDBOX")?;
    let store = Store::new(Layout::from_environment()?);
    let sandbox = Sandbox::find(&store, &name)?;
    let server = sandbox.ssh().prepare_server(SshServerOptions::default()).await?;
    server.serve_connection().await?;
    server.close();
    Ok(())
}
