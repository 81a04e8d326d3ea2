//! `msb run`

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::error::{CliError, TRANSPORT_ERROR, cannot};
use super::session::{self, Session};
use super::spec_args::{BootTimeout, PoolArg, ReadyTimeout, SpecArgs};
use super::{Context, output, pool};
use crate::pools::standby::Standby;
use crate::pools::{HEAD_START, Replacement};
use crate::sandbox::records::{ExitReason, ExitRecord};
use crate::sandbox::start::StartedSandbox;
use crate::timings::{Timings, now_us};
use crate::vmm_process::args::Lifetime;
use crate::{Pool, Sandbox, SandboxSpec, quote};

/// How long a guest with a disk to write to may take to shut down.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a guest may take to end after its connections broke.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// Run a command in a sandbox made for it, and remove the sandbox
///
/// With an image, the command comes behind the image's entrypoint, and its default is the image's own; else it is a shell.
/// The command has this one's standard input, output and error, and its arguments arrive exactly as given here. The
/// sandbox goes when this command does, however that ends. The image's start command is run before.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  msb run -- uname -a
  echo hello | msb run --memory 1G -- sh -c 'wc -c; nproc'
  msb run --disk data.img        a shell, with the disk as /dev/vda
  msb run -v ./src:/src:ro -- ls /src
  msb run debian:12 -- cat /etc/os-release
  msb run --pool fresh -- make test       in a fork that waits; see `msb pool`")]
pub(super) struct RunArgs {
    #[command(flatten)]
    spec: SpecArgs,
    #[command(flatten)]
    pool: PoolArg,
    /// Give the command a terminal; a shell has one when standard input is one
    #[arg(long, short)]
    tty: bool,
    /// User in the guest; default: the image's, else root
    #[arg(long, short, value_name = "USER")]
    user: Option<String>,
    /// Program in the place of the image's entrypoint; empty for none
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Print when each phase was over as JSON on standard error, in microseconds
    #[arg(long)]
    timings: bool,
    #[command(flatten)]
    boot: BootTimeout,
    #[command(flatten)]
    ready: ReadyTimeout,
    /// The command and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// What `--timings` prints: `CLOCK_MONOTONIC` in microseconds, but for the guest's uptime.
#[derive(Clone, Debug, Default, Serialize)]
struct RunTimings {
    process_started_us: u64,
    created_us: Option<u64>,
    spawned_us: Option<u64>,
    #[serde(flatten)]
    start: Timings,
    ready_seen_us: Option<u64>,
    #[serde(flatten)]
    session: session::SessionTimings,
    removed_us: Option<u64>,
}

pub(super) fn run(args: RunArgs, context: &Context) -> Result<u8, CliError> {
    let what = format!("run {}", args.spec.label());
    let source = Source::of(args.spec, &args.pool, &what, context)?;
    let spec = source.spec();
    let tty = args.tty || (args.command.is_empty() && output::is_terminal());
    let command = command(spec, args.entrypoint, args.command);
    let session = Session {
        user: args.user.unwrap_or_else(|| spec.default_user().to_owned()),
        command: (!command.is_empty()).then(|| quote::join(&command)),
        tty,
        env: Vec::new(),
    };
    let has_data = spec.disks.iter().any(|disk| !disk.read_only) || spec.volumes.iter().any(|volume| !volume.read_only);
    let mut timings = RunTimings {
        process_started_us: context.began_us,
        ..RunTimings::default()
    };
    let result = super::runtime()?.block_on(async {
        let interrupted = interrupted()?;
        // A fork has what its original started.
        let start_command = matches!(source, Source::Spec(..)).then_some(args.ready);
        let Started {
            mut started,
            standby,
            replacement,
        } = source.start(&session, &what, context, &mut timings)?;
        // On a CPU that both share, the start of that process would hold up the session.
        let replacing = replacement.map(|replacement| {
            tokio::spawn(async move {
                tokio::time::sleep(HEAD_START).await;
                drop(replacement);
            })
        });
        let sandbox = started.sandbox().clone();
        timings.spawned_us = Some(now_us());
        let outcome = tokio::select! {
            outcome = async {
                in_ready(&mut started, (args.boot, start_command), &what, &mut timings).await?;
                let stamps = &mut timings.session;
                match standby {
                    Some(standby) => session::run_by(standby, &session, &what, stamps).await,
                    None => session::run(&sandbox, &session, args.boot, &what, stamps).await,
                }
            } => outcome,
            status = interrupted => Ok(status),
        };
        if let Some(replacing) = replacing {
            replacing.abort();
        }
        match &outcome {
            Ok(_) if has_data => shut_down(&mut started).await,
            // If it broke because the guest is ending, that end is what to tell of.
            Err(error) if error.status == TRANSPORT_ERROR => {
                let _ = tokio::time::timeout(END_TIMEOUT, started.ended()).await;
            }
            _ => {}
        }
        let exit = started
            .discard()
            .await
            .map_err(cannot(format!("remove sandbox {}", sandbox.id())))?;
        timings.removed_us = Some(now_us());
        if let (Ok(_), Some(exit)) = (&outcome, &exit)
            && exit.reason == ExitReason::Deadline
        {
            eprintln!("msb: {}", exit.message);
        }
        outcome.map_err(|error| explained(error, exit.as_ref()))
    });
    if args.timings
        && let Ok(json) = serde_json::to_string(&timings)
    {
        eprintln!("{json}");
    }
    result
}

/// What a sandbox is made of.
#[derive(Debug)]
enum Source {
    /// It boots.
    Spec(Box<SandboxSpec>, Vec<PathBuf>),
    /// It is taken from a pool.
    Pool(Box<SandboxSpec>, Pool, Box<SpecArgs>),
}

/// What was started.
#[derive(Debug)]
struct Started {
    started: StartedSandbox,
    /// Who can run the session, if it need not be done here.
    standby: Option<Standby>,
    /// Of a fork that was taken.
    replacement: Option<Replacement>,
}

impl Source {
    fn of(spec: SpecArgs, pool: &PoolArg, what: &str, context: &Context) -> Result<Self, CliError> {
        let Some(pool) = &pool.pool else {
            let (spec, authorized_keys) = spec.into_spec(context)?;
            return Ok(Self::Spec(Box::new(spec), authorized_keys));
        };
        let pool = pool::find(context, pool.as_str(), what)?;
        let saved = pool.saved().map_err(cannot(what))?;
        Ok(Self::Pool(Box::new(saved.spec().clone()), pool, Box::new(spec)))
    }

    fn spec(&self) -> &SandboxSpec {
        match self {
            Self::Spec(spec, _) | Self::Pool(spec, ..) => spec,
        }
    }

    /// Starts it for this session.
    fn start(
        self,
        session: &Session,
        what: &str,
        context: &Context,
        timings: &mut RunTimings,
    ) -> Result<Started, CliError> {
        match self {
            Self::Spec(spec, authorized_keys) => {
                let (sandbox, lock) =
                    Sandbox::create_transient(&context.store, *spec, &authorized_keys).map_err(cannot(what))?;
                timings.created_us = Some(now_us());
                let started = sandbox.start_held(lock, Lifetime::OfStarter).map_err(|error| {
                    // The error to report is that of the start.
                    let _ = sandbox.remove();
                    CliError::cannot(what, &error)
                });
                Ok(Started {
                    started: started?,
                    standby: None,
                    replacement: None,
                })
            }
            Self::Pool(spec, pool, args) => {
                let (name, limit) = args.of_pool();
                let taken = pool.take_unreplaced(name, Lifetime::OfStarter, limit);
                let taken = taken.map_err(cannot(what))?;
                Ok(Started {
                    started: taken.started,
                    standby: taken
                        .standby
                        .filter(|_| session.user == spec.default_user() && session.can_be_run_by_standby()),
                    replacement: Some(taken.replacement),
                })
            }
        }
    }
}

/// The image's entrypoint or the one in its place, and behind it what was given or, with the image's own entrypoint, the
/// image's command.
fn command(spec: &SandboxSpec, entrypoint: Option<String>, given: Vec<OsString>) -> Vec<OsString> {
    let image = spec
        .image
        .as_ref()
        .map(|image| image.config.clone())
        .unwrap_or_default();
    let (mut command, default) = match entrypoint {
        Some(program) if program.is_empty() => (Vec::new(), Vec::new()),
        Some(program) => (vec![program], Vec::new()),
        None => (image.entrypoint, image.cmd),
    };
    if given.is_empty() {
        command.extend(default);
    }
    command.into_iter().map(OsString::from).chain(given).collect()
}

/// Waits until it is ready and has what it starts by itself.
async fn in_ready(
    started: &mut StartedSandbox,
    (boot, start_command): (BootTimeout, Option<ReadyTimeout>),
    what: &str,
    timings: &mut RunTimings,
) -> Result<(), CliError> {
    let ready = started.ready(boot.duration()).await.map_err(cannot(what))?;
    timings.ready_seen_us = Some(now_us());
    timings.start = ready.timings;
    if let Some(start_command) = start_command {
        start_command.launch(started.sandbox()).await.map_err(cannot(what))?;
    }
    Ok(())
}

/// Lets the guest write what it holds to its disks.
async fn shut_down(started: &mut StartedSandbox) {
    let sandbox = started.sandbox().clone();
    let shutdown = async {
        // A guest that cannot be asked, or is gone already, has nothing more to write.
        if sandbox.request_shutdown().await.is_ok() {
            let _ = started.ended().await;
        }
    };
    let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, shutdown).await;
}

/// A connection that breaks because the guest is gone says so.
fn explained(error: CliError, exit: Option<&ExitRecord>) -> CliError {
    match exit {
        Some(exit) if error.status == TRANSPORT_ERROR && exit.reason != ExitReason::Killed => CliError {
            message: format!("{}: {}", error.message, exit.message),
            ..error
        },
        _ => error,
    }
}

/// Ends with the exit status that a signal asks for.
pub(super) fn interrupted() -> Result<impl Future<Output = u8>, CliError> {
    let listen = |kind: SignalKind| signal(kind).map_err(cannot("listen to signals"));
    let mut hangup = listen(SignalKind::hangup())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    Ok(async move {
        let number = tokio::select! {
            _ = hangup.recv() => libc::SIGHUP,
            _ = interrupt.recv() => libc::SIGINT,
            _ = terminate.recv() => libc::SIGTERM,
        };
        session::after_signal(number)
    })
}
