//! `msb fork`

use clap::Args;

use super::error::{CliError, cannot};
use super::spec_args::BootTimeout;
use super::view::SandboxView;
use super::{Context, output};
use crate::Sandbox;
use crate::sandbox::saved::SavedSandbox;
use crate::store::names::Name;
use crate::vmm_process::args::Lifetime;

/// Fork a running sandbox: make others that go on where it is; prints their ids
///
/// Each has a host key, a host name, random numbers and disks of its own, and shares the memory that neither writes to.
/// Connections of the forked sandbox stay with it. What fails for one fork does not keep the others from starting.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  msb fork box --name copy && ssh copy.msb
  msb fork box -n 3 --name worker     worker-1, worker-2 and worker-3")]
pub(super) struct ForkArgs {
    /// Name, id or beginning of the id
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    #[command(flatten)]
    copies: CopiesArgs,
}

/// Options of `fork` and `restore`.
#[derive(Args, Clone, Debug)]
pub(super) struct CopiesArgs {
    /// How many to make
    #[arg(short = 'n', long = "count", value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    count: u16,
    /// Name of the sandbox; of several, what their names begin with
    #[arg(long, value_name = "NAME")]
    name: Option<Name>,
    /// Print what is known of them as a JSON array instead of their ids
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    boot: BootTimeout,
}

pub(super) fn run(args: &ForkArgs, context: &Context) -> Result<u8, CliError> {
    let what = format!("fork {}", args.sandbox);
    let sandbox = Sandbox::find(&context.store, &args.sandbox).map_err(cannot(&what))?;
    let saved = sandbox.save().map_err(cannot(&what))?;
    start_copies(&saved, &args.copies, &what, context)
}

/// Starts sandboxes from `saved`, one after the other, and prints those that got ready.
pub(super) fn start_copies(
    saved: &SavedSandbox,
    args: &CopiesArgs,
    what: &str,
    context: &Context,
) -> Result<u8, CliError> {
    let names = args.names().map_err(cannot(what))?;
    let runtime = super::runtime()?;
    let (mut ready, mut failed) = (Vec::new(), None);
    for name in names {
        match runtime.block_on(start_copy(saved, name, args.boot, what, context)) {
            Ok(sandbox) if args.json => ready.push(sandbox),
            Ok(sandbox) => output::line(sandbox.id().as_str())?,
            Err(error) => {
                if let Some(earlier) = failed.replace(error) {
                    eprintln!("msb: {}", earlier.message);
                }
            }
        }
    }
    if args.json {
        let views = ready.iter().map(SandboxView::of);
        output::json(&views.collect::<Result<Vec<_>, _>>().map_err(cannot(what))?)?;
    }
    failed.map_or(Ok(0), Err)
}

async fn start_copy(
    saved: &SavedSandbox,
    name: Option<Name>,
    boot: BootTimeout,
    what: &str,
    context: &Context,
) -> Result<Sandbox, CliError> {
    let what = match &name {
        Some(name) => format!("{what} as {name}"),
        None => what.to_owned(),
    };
    let mut started = saved
        .restore(&context.store, name.as_ref(), Lifetime::DetachedWhenReady)
        .map_err(cannot(&what))?;
    let sandbox = started.sandbox().clone();
    if let Err(error) = started.ready(boot.duration()).await {
        // Its VMM process removed it, if it came to be.
        let _ = sandbox.remove();
        return Err(CliError::cannot(what, &error));
    }
    Ok(sandbox)
}

impl CopiesArgs {
    fn names(&self) -> Result<Vec<Option<Name>>, <Name as std::str::FromStr>::Err> {
        let Some(prefix) = &self.name else {
            return Ok(vec![None; self.count.into()]);
        };
        match self.count {
            1 => Ok(vec![Some(prefix.clone())]),
            count => (1..=count)
                .map(|number| format!("{prefix}-{number}").parse().map(Some))
                .collect(),
        }
    }
}
