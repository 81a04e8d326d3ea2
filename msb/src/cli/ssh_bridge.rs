//! `msb ssh-bridge`

use std::time::Duration;

use clap::Args;
use msb_ssh::{fdpass, serve};

use super::error::{CliError, TRANSPORT_ERROR, cannot};
use super::spec_args::BootTimeout;
use super::{Context, session, start};
use crate::Sandbox;

/// How long the guest may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Connect standard input and output to the SSH server of a sandbox, for ssh's ProxyCommand
///
/// Nothing but SSH goes to standard output.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ssh -o ProxyCommand='msb ssh-bridge %h' -o UserKnownHostsFile=~/.local/state/msb/known_hosts box.msb
  ssh -o ProxyCommand='msb ssh-bridge --fdpass %h' -o ProxyUseFdpass=yes box.msb
  msb ssh-config --install       does this for every sandbox")]
pub(super) struct BridgeArgs {
    /// Name, id or beginning of the id; '.msb' at its end is ignored
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Hand the connection to ssh over standard output and leave, for `ProxyUseFdpass yes`
    #[arg(long)]
    fdpass: bool,
    /// Start the sandbox if it does not run
    #[arg(long)]
    start: bool,
    #[command(flatten)]
    boot: BootTimeout,
}

pub(super) fn run(args: &BridgeArgs, context: &Context) -> Result<u8, CliError> {
    let what = || format!("connect to {}", args.sandbox);
    let sandbox = Sandbox::find(&context.store, &args.sandbox).map_err(cannot(what()))?;
    if args.start && !sandbox.state().map_err(cannot(what()))?.is_alive() {
        let launched = super::runtime()?.block_on(async {
            start::start(&sandbox, args.boot)
                .await
                .map_err(cannot(format!("start {}", args.sandbox)))?;
            Ok::<_, CliError>(sandbox.launch().await)
        });
        // ssh need not wait for the start command, and may be there to see why it fails.
        if let Err(error) = launched? {
            eprintln!("msb: {}", crate::report::one_line(&error));
        }
    }
    let stream = sandbox
        .ssh_stream(args.boot.duration(), CONNECT_TIMEOUT)
        .map_err(session::ssh_error(what()))?;
    if args.fdpass {
        fdpass::send_stdout(&stream).map_err(cannot(what()))?;
    } else {
        let broken = |error| CliError::cannot(format!("go on with {}", args.sandbox), &error);
        serve::serve_connection_stdio(stream).map_err(|error| broken(error).with_status(TRANSPORT_ERROR))?;
    }
    Ok(0)
}
