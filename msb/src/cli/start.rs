//! `msb start`

use clap::Args;

use super::error::{CliError, cannot};
use super::spec_args::{BootTimeout, ReadyTimeout};
use super::timeout::TimeoutOrNone;
use super::{Context, for_each};
use crate::Sandbox;
use crate::sandbox::deadline::{TimeLimit, TimeoutEnd};
use crate::sandbox::start::StartError;
use crate::vmm_process::args::Lifetime;

/// Start sandboxes that are stopped, and wait until ssh reaches them and their start commands are ready
///
/// One whose start command fails goes on running: `msb attach SANDBOX start` shows what the command printed.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  msb start box
  msb start --timeout 1h box")]
pub(super) struct StartArgs {
    /// Names, ids or beginnings of ids
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
    /// End them so long after this start, such as 90 (seconds), 15m or 1h30m, or never: `none`; default: as when created
    #[arg(long, value_name = "DURATION")]
    timeout: Option<TimeoutOrNone>,
    /// What ends them when their time is over; default: as when created
    #[arg(long, value_name = "END", value_enum)]
    on_timeout: Option<TimeoutEnd>,
    #[command(flatten)]
    boot: BootTimeout,
    #[command(flatten)]
    ready: ReadyTimeout,
}

pub(super) fn run(args: &StartArgs, context: &Context) -> Result<u8, CliError> {
    let runtime = super::runtime()?;
    for_each(&args.sandboxes, |reference| {
        let sandbox = Sandbox::find(&context.store, reference).map_err(cannot(format!("start {reference}")))?;
        let limit = args.limit(&sandbox);
        runtime
            .block_on(start_limited(&sandbox, limit, args.boot))
            .map_err(cannot(format!("start {reference}")))?;
        let launched = runtime.block_on(args.ready.launch(&sandbox));
        launched.map_err(cannot(format!("start all of {reference}, which runs")))
    })
}

impl StartArgs {
    fn limit(&self, sandbox: &Sandbox) -> TimeLimit {
        let specified = sandbox.config().spec.time_limit();
        TimeLimit {
            timeout: self.timeout.map_or(specified.timeout, |TimeoutOrNone(timeout)| timeout),
            end: self.on_timeout.unwrap_or(specified.end),
        }
    }
}

/// Starts a sandbox that outlives this process, and waits until it is ready.
pub(super) async fn start(sandbox: &Sandbox, boot: BootTimeout) -> Result<(), StartError> {
    start_limited(sandbox, sandbox.config().spec.time_limit(), boot).await
}

async fn start_limited(sandbox: &Sandbox, limit: TimeLimit, boot: BootTimeout) -> Result<(), StartError> {
    let mut started = sandbox.start_limited(Lifetime::Detached, limit)?;
    started.ready(boot.duration()).await.map(drop)
}
