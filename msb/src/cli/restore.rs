//! `msb restore`

use std::path::PathBuf;

use clap::Args;

use super::Context;
use super::error::{CliError, cannot};
use super::fork::{self, CopiesArgs};
use crate::sandbox::saved::SavedSandbox;

/// Make sandboxes that go on from a snapshot; prints their ids
///
/// Each has a host key, a host name, random numbers and disks of its own. Connections of the saved sandbox are gone.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  msb restore ./box.snapshot --name again && ssh again.msb")]
pub(super) struct RestoreArgs {
    /// What `msb snapshot` made. It must stay as it is while the sandboxes run
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
    #[command(flatten)]
    copies: CopiesArgs,
}

pub(super) fn run(args: &RestoreArgs, context: &Context) -> Result<u8, CliError> {
    let what = format!("restore {}", args.directory.display());
    let saved = SavedSandbox::open(&args.directory).map_err(cannot(&what))?;
    fork::start_copies(&saved, &args.copies, &what, context)
}
