//! `msb resume`

use clap::Args;

use super::error::{CliError, cannot};
use super::{Context, for_each};
use crate::Sandbox;

/// Let paused sandboxes go on
///
/// To resume what runs is no error.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  msb resume box")]
pub(super) struct ResumeArgs {
    /// Names, ids or beginnings of ids
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
}

pub(super) fn run(args: &ResumeArgs, context: &Context) -> Result<u8, CliError> {
    for_each(&args.sandboxes, |reference| {
        let what = || format!("resume {reference}");
        let sandbox = Sandbox::find(&context.store, reference).map_err(cannot(what()))?;
        sandbox.resume().map_err(cannot(what()))
    })
}
