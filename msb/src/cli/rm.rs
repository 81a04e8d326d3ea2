//! `msb rm`

use clap::Args;

use super::error::{CliError, cannot};
use super::{Context, for_each};
use crate::Sandbox;

/// Remove sandboxes with all they hold
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  msb rm box\n  msb rm --force box web db")]
pub(super) struct RmArgs {
    /// Names, ids or beginnings of ids
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
    /// Kill those that run
    #[arg(long, short)]
    force: bool,
}

pub(super) fn run(args: &RmArgs, context: &Context) -> Result<u8, CliError> {
    for_each(&args.sandboxes, |reference| {
        let what = || format!("remove {reference}");
        let id = context.store.resolve(reference).map_err(cannot(what()))?;
        // One whose configuration is damaged can still be removed.
        match Sandbox::open(&context.store, &id) {
            Ok(sandbox) if args.force => sandbox.remove_by_force().map_err(cannot(what())),
            _ => context.store.remove(&id).map_err(cannot(what())),
        }
    })?;
    context.store.sweep().map_err(cannot("clean up"))?;
    Ok(0)
}
