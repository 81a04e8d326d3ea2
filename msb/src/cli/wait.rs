//! `msb wait`

use clap::Args;

use super::error::{CliError, cannot};
use super::view::SandboxView;
use super::{Context, output};
use crate::Sandbox;
use crate::sandbox::records::ExitReason;
use crate::sandbox::state::State;

/// Exit status after a kill: 128 and SIGKILL.
const KILLED: u8 = 137;

/// Exit status after a crash.
const CRASHED: u8 = 1;

/// Wait until a sandbox has ended
///
/// The exit status says how: 0 it shut down in order or never ran, 137 it was killed, 1 it crashed.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  msb wait box || msb logs box")]
pub(super) struct WaitArgs {
    /// Name, id or beginning of the id
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Print what is known of it as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &WaitArgs, context: &Context) -> Result<u8, CliError> {
    let what = || format!("wait for {}", args.sandbox);
    let sandbox = Sandbox::find(&context.store, &args.sandbox).map_err(cannot(what()))?;
    let state = sandbox.wait().map_err(cannot(what()))?;
    if args.json {
        output::json(&SandboxView::of(&sandbox).map_err(cannot(what()))?)?;
    }
    Ok(match state {
        State::Crashed { message, .. } => {
            eprintln!("msb: {} crashed: {message}", sandbox.label());
            CRASHED
        }
        State::Stopped(exit) if exit.reason == ExitReason::Killed => KILLED,
        _ => 0,
    })
}
