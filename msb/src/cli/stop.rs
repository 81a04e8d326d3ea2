//! `msb stop`

use std::time::Duration;

use clap::Args;

use super::error::{CliError, cannot};
use super::{Context, for_each};
use crate::sandbox::stop::StopOutcome;
use crate::{Sandbox, report};

/// Stop sandboxes: processes are told, file systems are synced
///
/// A guest that does not shut down in time is killed. To stop what does not run is no error.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  msb stop --timeout 30 box")]
pub(super) struct StopArgs {
    /// Names, ids or beginnings of ids
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
    /// Seconds to wait before it is killed
    #[arg(long, short, value_name = "SECONDS", default_value_t = 10)]
    timeout: u32,
}

pub(super) fn run(args: &StopArgs, context: &Context) -> Result<u8, CliError> {
    let runtime = super::runtime()?;
    for_each(&args.sandboxes, |reference| {
        let what = || format!("stop {reference}");
        let sandbox = Sandbox::find(&context.store, reference).map_err(cannot(what()))?;
        let timeout = Duration::from_secs(args.timeout.into());
        match runtime.block_on(sandbox.stop(timeout)).map_err(cannot(what()))? {
            StopOutcome::NotRunning | StopOutcome::Stopped => {}
            StopOutcome::Killed(None) => {
                eprintln!(
                    "msb: {reference} was killed: it did not shut down within {} s",
                    args.timeout
                );
            }
            StopOutcome::Killed(Some(error)) => {
                let why = report::one_line(&error);
                eprintln!("msb: {reference} was killed: it could not be asked to shut down: {why}");
            }
        }
        Ok(())
    })
}
