//! `msb pool`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde::Serialize;

use super::error::{CliError, cannot};
use super::ls::age;
use super::{Context, for_each, output};
use crate::pools::{MAX_SIZE, Pool, PoolError, PoolSource, WAITS};
use crate::sandbox::spec::{Memory, SandboxImage};
use crate::store::names::{Name, SandboxId};
use crate::{Sandbox, SandboxSpec};

/// Keep forks waiting, so that a sandbox is there at once
///
/// `msb run --pool NAME` and `msb create --pool NAME` take a fork that waits, ready and paused, and have its replacement made in
/// the background; if none waits, they make one. What is taken gets a name, the time, random numbers and a machine id of its
/// own before it serves SSH. A fork that waits uses no CPU; it costs the memory that it does not share, and a process that
/// stays logged in to it for the next `msb run`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  msb pool create fresh --from box --size 4
  msb run --pool fresh -- python3 -c 'print(6 * 7)'
  msb create --pool fresh --name worker && ssh worker.msb
  msb pool ls
  msb pool rm fresh")]
pub(super) struct PoolArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Create(CreateArgs),
    Ls(LsArgs),
    Fill(FillArgs),
    #[command(hide = true)]
    StandBy(StandByArgs),
    Rm(RmArgs),
}

/// Make a pool of forks of a running sandbox or a snapshot, and wait until it is full
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  msb pool create fresh --from box
  msb pool create fresh --snapshot ./box.snapshot --size 8")]
struct CreateArgs {
    /// What to call it
    #[arg(value_name = "POOL")]
    name: Name,
    /// Sandbox that runs: its forks go on where it is now
    #[arg(long, value_name = "SANDBOX", required_unless_present = "snapshot")]
    from: Option<String>,
    /// What `msb snapshot` made, in the place of a sandbox; the pool has a copy of it
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "from")]
    snapshot: Option<PathBuf>,
    /// How many forks wait
    #[arg(long, short, value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_SIZE)))]
    size: u16,
    /// Print what is known of it as JSON instead of nothing
    #[arg(long)]
    json: bool,
}

/// List pools by name
#[derive(Args, Debug)]
#[command(visible_alias = "list")]
#[command(after_help = "Examples:\n  msb pool ls\n  msb pool ls --json | jq -r '.[].waiting'")]
struct LsArgs {
    /// Print a JSON array instead of a table
    #[arg(long)]
    json: bool,
}

/// Make forks until as many wait as shall
///
/// Whoever takes one has this done in the background; by hand, it is for a host that has started anew.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  msb pool fill fresh")]
struct FillArgs {
    /// Names
    #[arg(required = true, value_name = "POOL")]
    pools: Vec<String>,
    /// Leave it to whoever is at it already
    #[arg(long, hide = true)]
    background: bool,
}

/// Make one fork, say on standard output that it waits or why not, and run a session in it for who takes it
///
/// Standard input is the lock of who fills the pool, which this holds until then.
#[derive(Args, Debug)]
struct StandByArgs {
    /// Name
    #[arg(value_name = "POOL")]
    pool: String,
}

/// Remove pools with the forks that wait; sandboxes that were taken stay
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  msb pool rm fresh")]
struct RmArgs {
    /// Names
    #[arg(required = true, value_name = "POOL")]
    pools: Vec<String>,
}

/// A pool as it is shown. The JSON has a stable schema.
#[derive(Debug, Serialize)]
struct PoolView {
    name: Name,
    created_at: Timestamp,
    /// How many forks shall wait.
    size: u16,
    /// How many do.
    waiting: usize,
    /// These.
    ids: Vec<SandboxId>,
    cpus: u8,
    memory_mib: u32,
    image: Option<SandboxImage>,
}

impl PoolView {
    fn of(pool: &Pool) -> Result<Self, PoolError> {
        let waiting = pool.waiting()?;
        let saved = pool.saved()?;
        let SandboxSpec {
            cpus, memory, image, ..
        } = saved.spec().clone();
        Ok(Self {
            name: pool.name().clone(),
            created_at: pool.record().created_at,
            size: pool.record().size,
            waiting: waiting.len(),
            ids: waiting.iter().map(|fork| fork.id().clone()).collect(),
            cpus,
            memory_mib: memory.mib,
            image,
        })
    }
}

pub(super) fn run(args: &PoolArgs, context: &Context) -> Result<u8, CliError> {
    match &args.verb {
        Verb::Create(args) => create(args, context),
        Verb::Ls(args) => ls(args, context),
        Verb::Fill(args) => {
            let runtime = super::runtime()?;
            for_each(&args.pools, |name| {
                let what = format!("fill the pool {name}");
                let pool = find(context, name, &what)?;
                let filled = match args.background {
                    true => runtime.block_on(pool.refill()),
                    false => runtime.block_on(pool.fill()),
                };
                filled.map_err(cannot(what))
            })
        }
        Verb::StandBy(args) => stand_by(&args.pool, context),
        Verb::Rm(args) => {
            context.store.sweep().map_err(cannot("clean up"))?;
            for_each(&args.pools, |name| {
                let what = format!("remove the pool {name}");
                find(context, name, &what)?.remove().map_err(cannot(what))
            })
        }
    }
}

/// The pool that is called `name`, for what is to be done with it.
pub(super) fn find(context: &Context, name: &str, what: &str) -> Result<Pool, CliError> {
    let name = name.parse().map_err(cannot(what))?;
    Pool::find(&context.store, &name).map_err(cannot(what))
}

fn create(args: &CreateArgs, context: &Context) -> Result<u8, CliError> {
    let what = || format!("make the pool {}", args.name);
    let sandbox = args.from.as_ref().map(|from| Sandbox::find(&context.store, from));
    let sandbox = sandbox.transpose().map_err(cannot(what()))?;
    let source = match (&sandbox, &args.snapshot) {
        (Some(sandbox), _) => PoolSource::Sandbox(sandbox),
        (None, Some(directory)) => PoolSource::Snapshot(directory),
        (None, None) => return Err(CliError::plain("a pool is made --from a sandbox or of a --snapshot")),
    };
    let pool = Pool::create(&context.store, args.name.clone(), args.size, source).map_err(cannot(what()))?;
    if let Err(error) = super::runtime()?.block_on(pool.fill()) {
        // A pool whose forks do not start is none.
        let _ = pool.remove();
        return Err(CliError::cannot(what(), &error));
    }
    if args.json {
        output::json(&PoolView::of(&pool).map_err(cannot(what()))?)?;
    }
    Ok(0)
}

fn stand_by(name: &str, context: &Context) -> Result<u8, CliError> {
    let what = format!("make a fork for the pool {name}");
    let pool = find(context, name, &what)?;
    super::runtime()?.block_on(async {
        match pool.add().await {
            Ok(server) => {
                // The fork waits, whether or not anybody is left to hear it.
                let _ = output::last_words(WAITS);
                if let Some(server) = server {
                    server.serve().await;
                }
                Ok(0)
            }
            Err(error) => {
                let told = output::last_words(&CliError::reason(&error));
                told.map_err(cannot(&what))?;
                Err(CliError::cannot(what, &error))
            }
        }
    })
}

fn ls(args: &LsArgs, context: &Context) -> Result<u8, CliError> {
    let pools = Pool::all(&context.store).map_err(cannot("list the pools"))?;
    let views = pools.iter().map(PoolView::of);
    let views: Vec<_> = views.collect::<Result<_, _>>().map_err(cannot("list the pools"))?;
    match args.json {
        true => output::json(&views)?,
        false => output::text(&table(&views))?,
    }
    Ok(0)
}

fn table(views: &[PoolView]) -> String {
    let header = ["NAME", "WAITING", "SIZE", "CPUS", "MEMORY", "CREATED"];
    let row = |view: &PoolView| {
        vec![
            view.name.to_string(),
            view.waiting.to_string(),
            view.size.to_string(),
            view.cpus.to_string(),
            Memory { mib: view.memory_mib }.to_string(),
            age(Timestamp::now().as_second() - view.created_at.as_second()),
        ]
    };
    let header = header.map(str::to_owned).to_vec();
    output::table(&std::iter::once(header).chain(views.iter().map(row)).collect::<Vec<_>>())
}
