//! `msb pause`

use clap::Args;

use super::error::{CliError, cannot};
use super::{Context, for_each};
use crate::Sandbox;

/// Pause sandboxes: they keep their memory and use no CPU
///
/// To pause what is paused is no error.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  msb pause box")]
pub(super) struct PauseArgs {
    /// Names, ids or beginnings of ids
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
}

pub(super) fn run(args: &PauseArgs, context: &Context) -> Result<u8, CliError> {
    for_each(&args.sandboxes, |reference| {
        let what = || format!("pause {reference}");
        let sandbox = Sandbox::find(&context.store, reference).map_err(cannot(what()))?;
        sandbox.pause().map_err(cannot(what()))
    })
}
