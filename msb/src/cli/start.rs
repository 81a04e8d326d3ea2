//! `msb start`

use clap::Args;

use super::error::{CliError, cannot};
use super::spec_args::BootTimeout;
use super::{Context, for_each};
use crate::Sandbox;
use crate::sandbox::start::StartError;
use crate::vmm_process::args::Lifetime;

/// Start sandboxes that are stopped, and wait until ssh reaches them
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  msb start box")]
pub(super) struct StartArgs {
    /// Names, ids or beginnings of ids
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
    #[command(flatten)]
    boot: BootTimeout,
}

pub(super) fn run(args: &StartArgs, context: &Context) -> Result<u8, CliError> {
    let runtime = super::runtime()?;
    for_each(&args.sandboxes, |reference| {
        let sandbox = Sandbox::find(&context.store, reference).map_err(cannot(format!("start {reference}")))?;
        runtime
            .block_on(start(&sandbox, args.boot))
            .map_err(cannot(format!("start {reference}")))
    })
}

/// Starts a sandbox that outlives this process, and waits until it is ready.
pub(super) async fn start(sandbox: &Sandbox, boot: BootTimeout) -> Result<(), StartError> {
    let mut started = sandbox.start(Lifetime::Detached)?;
    started.ready(boot.duration()).await.map(drop)
}
