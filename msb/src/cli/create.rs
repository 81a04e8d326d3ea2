//! `msb create`

use clap::Args;

use super::error::{CliError, cannot};
use super::spec_args::{BootTimeout, SpecArgs};
use super::view::SandboxView;
use super::{Context, output};
use crate::Sandbox;
use crate::vmm_process::args::Lifetime;

/// Create a sandbox and start it; prints its id
///
/// If it does not get ready, or this command is interrupted before, it is removed again.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  msb create --name box && ssh box.msb
  msb create --name db --disk-size 20G debian:12
  msb create --memory 2G --cpus 2 --disk data.img --env LANG=C.UTF-8
  id=$(msb create --no-start)")]
pub(super) struct CreateArgs {
    #[command(flatten)]
    spec: SpecArgs,
    /// Do not start it
    #[arg(long)]
    no_start: bool,
    /// Print what is known of it as JSON instead of its id
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    boot: BootTimeout,
}

pub(super) fn run(args: CreateArgs, context: &Context) -> Result<u8, CliError> {
    let what = format!("create {}", args.spec.label());
    let (spec, authorized_keys) = args.spec.into_spec(context)?;
    let sandbox = if args.no_start {
        Sandbox::create(&context.store, spec, &authorized_keys).map_err(cannot(&what))?
    } else {
        let (sandbox, lock) =
            Sandbox::create_transient(&context.store, spec, &authorized_keys).map_err(cannot(&what))?;
        let started = super::runtime()?.block_on(async {
            let mut started = sandbox.start_held(lock, Lifetime::DetachedWhenReady)?;
            started.ready(args.boot.duration()).await
        });
        if let Err(error) = started {
            // Its VMM process removed it, if it came to be.
            let _ = sandbox.remove();
            return Err(CliError::cannot(what, &error));
        }
        sandbox
    };
    match args.json {
        true => output::json(&SandboxView::of(&sandbox).map_err(cannot(format!("inspect {}", sandbox.label())))?)?,
        false => output::line(sandbox.id().as_str())?,
    }
    Ok(0)
}
