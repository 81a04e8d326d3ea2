//! Runs a command line in a sandbox of its own and passes its output and status on: `embed 'uname -a'`.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use msb::ssh::{SshClientOptions, SshExecOptions};
use msb::store::layout::Layout;
use msb::vmm_process::args::Lifetime;
use msb::{Sandbox, SandboxSpec, Store};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let command = std::env::args().nth(1).ok_or("usage: embed COMMAND-LINE")?;
    let store = Store::new(Layout::from_environment()?);
    let (sandbox, lock) = Sandbox::create_transient(&store, SandboxSpec::default(), &[])?;
    let mut started = sandbox.start_held(lock, Lifetime::OfStarter)?;
    started.ready(Duration::from_secs(60)).await?;

    let client = sandbox.ssh().open_client(SshClientOptions::default()).await?;
    let output = client.exec(command, SshExecOptions::default()).await?;
    std::io::stdout().write_all(&output.stdout)?;
    std::io::stderr().write_all(&output.stderr)?;

    started.discard().await?;
    Ok(ExitCode::from(output.status.shell_code()))
}
