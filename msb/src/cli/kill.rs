//! `msb kill`

use clap::Args;

use super::error::{CliError, cannot};
use super::{Context, for_each};
use crate::Sandbox;

/// End sandboxes at once, as if their power was cut
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  msb kill box")]
pub(super) struct KillArgs {
    /// Names, ids or beginnings of ids
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
}

pub(super) fn run(args: &KillArgs, context: &Context) -> Result<u8, CliError> {
    for_each(&args.sandboxes, |reference| {
        let what = || format!("kill {reference}");
        let sandbox = Sandbox::find(&context.store, reference).map_err(cannot(what()))?;
        match sandbox.kill().map_err(cannot(what()))? {
            true => Ok(()),
            false => Err(CliError::plain(format!("cannot kill {reference}: it is not running"))),
        }
    })
}
