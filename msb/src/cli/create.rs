//! `msb create`

use clap::Args;

use super::error::{CliError, cannot};
use super::spec_args::{BootTimeout, PoolArg, ReadyTimeout, SpecArgs};
use super::view::SandboxView;
use super::{Context, output, pool, run};
use crate::Sandbox;
use crate::store::names::Name;
use crate::vmm_process::args::Lifetime;

/// Create a sandbox and start it; prints its id
///
/// The image's start command is run, and waited for if the image says how. If the sandbox does not get ready, or this
/// command is interrupted before, it is removed again.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  msb create --name box && ssh box.msb
  msb create --name db --disk-size 20G debian:12
  msb create --name worker --pool fresh
  msb create --memory 2G --cpus 2 --disk data.img --env LANG=C.UTF-8
  msb create --volume ~/project:/project --volume ~/.gitconfig:/root/.gitconfig:ro
  id=$(msb create --no-start)")]
pub(super) struct CreateArgs {
    #[command(flatten)]
    spec: SpecArgs,
    #[command(flatten)]
    pool: PoolArg,
    /// Do not start it
    #[arg(long, conflicts_with = "pool")]
    no_start: bool,
    /// Print what is known of it as JSON instead of its id
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    boot: BootTimeout,
    #[command(flatten)]
    ready: ReadyTimeout,
}

pub(super) fn run(args: CreateArgs, context: &Context) -> Result<u8, CliError> {
    let what = format!("create {}", args.spec.label());
    let sandbox = if let Some(pool) = &args.pool.pool {
        take(pool, &args.spec, args.boot, &what, context)?
    } else {
        make(args.spec, args.no_start, (args.boot, args.ready), &what, context)?
    };
    match args.json {
        true => output::json(&SandboxView::of(&sandbox).map_err(cannot(format!("inspect {}", sandbox.label())))?)?,
        false => output::line(sandbox.id().as_str())?,
    }
    Ok(0)
}

/// Takes a sandbox out of a pool.
fn take(pool: &Name, spec: &SpecArgs, boot: BootTimeout, what: &str, context: &Context) -> Result<Sandbox, CliError> {
    let pool = pool::find(context, pool.as_str(), what)?;
    let (name, limit) = spec.of_pool();
    super::runtime()?.block_on(async {
        let taken = pool.take(name, Lifetime::DetachedWhenReady, limit);
        let mut started = taken.map_err(cannot(what))?;
        started.ready(boot.duration()).await.map_err(cannot(what))?;
        Ok(started.sandbox().clone())
    })
}

fn make(
    spec: SpecArgs,
    no_start: bool,
    (boot, ready): (BootTimeout, ReadyTimeout),
    what: &str,
    context: &Context,
) -> Result<Sandbox, CliError> {
    let (spec, authorized_keys) = spec.into_spec(context)?;
    if no_start {
        return Sandbox::create(&context.store, spec, &authorized_keys).map_err(cannot(what));
    }
    let (sandbox, lock) = Sandbox::create_transient(&context.store, spec, &authorized_keys).map_err(cannot(what))?;
    let started = super::runtime()?.block_on(async {
        let mut started = sandbox.start_held(lock, Lifetime::DetachedWhenReady)?;
        started.ready(boot.duration()).await
    });
    if let Err(error) = started {
        // Its VMM process removed it, if it came to be.
        let _ = sandbox.remove();
        return Err(CliError::cannot(what, &error));
    }
    launch(&sandbox, ready, what)?;
    Ok(sandbox)
}

/// Runs the start command. The sandbox is its own already: it is removed here when that fails or is interrupted.
fn launch(sandbox: &Sandbox, ready: ReadyTimeout, what: &str) -> Result<(), CliError> {
    let launched = super::runtime()?.block_on(async {
        let interrupted = run::interrupted()?;
        tokio::select! {
            launched = ready.launch(sandbox) => launched.map_err(cannot(what)),
            status = interrupted => Err(CliError::plain(format!("cannot {what}: interrupted")).with_status(status)),
        }
    });
    if launched.is_err() {
        // The error to report is that of the start command.
        let _ = sandbox.remove_by_force();
    }
    launched
}
