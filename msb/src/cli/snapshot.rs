//! `msb snapshot`

use std::path::PathBuf;

use clap::Args;

use super::Context;
use super::error::{CliError, cannot};
use crate::Sandbox;

/// Save a running sandbox to a directory: memory, devices, and the disks it can write to
///
/// It stands still meanwhile, and then goes on. `msb restore` makes sandboxes from the directory, on this host and with
/// this kernel. The directory holds the guest's memory and whatever is in it: keep it as safe as the sandbox.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  msb snapshot box ./box.snapshot && msb restore ./box.snapshot --name again")]
pub(super) struct SnapshotArgs {
    /// Name, id or beginning of the id
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Where to save it; must not exist
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
}

pub(super) fn run(args: &SnapshotArgs, context: &Context) -> Result<u8, CliError> {
    let what = || format!("snapshot {}", args.sandbox);
    let sandbox = Sandbox::find(&context.store, &args.sandbox).map_err(cannot(what()))?;
    sandbox.snapshot(&args.directory).map_err(cannot(what()))?;
    Ok(0)
}
