//! The `msb` command: a thin layer over the library.
//!
//! Data goes to standard output, everything else to standard error, errors as one line. The exit status is the remote
//! one where there is one, 128+n after a remote death by signal n, 255 when only the connection failed, and 125 for
//! errors of msb itself.

mod attach;
mod completion;
mod cp;
mod create;
mod doctor;
mod error;
mod events;
mod exec;
mod filter;
mod fork;
mod image;
mod inspect;
mod kill;
mod location;
mod logs;
mod ls;
mod output;
mod pause;
mod pool;
mod processes;
mod progress;
mod ps;
mod restore;
mod resume;
mod rm;
mod run;
mod session;
mod snapshot;
mod spec_args;
mod ssh;
mod ssh_bridge;
mod ssh_config;
mod start;
mod stats;
mod stop;
mod timeout;
mod view;
mod wait;
mod watch;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use crate::log;
use crate::store::Store;
use crate::store::layout::Layout;
use crate::timings::now_us;
pub use error::OWN_ERROR;
use error::{CliError, cannot};

/// MicroVM sandboxes on KVM that stock ssh reaches with no network port
#[derive(Debug, Parser)]
#[command(name = "msb", version, disable_help_subcommand = true)]
#[command(after_help = "\
Exit status:
  that of the remote command; 128+n when it died of signal n;
  255 when the connection failed; 125 for errors of msb itself

Examples:
  msb run -- uname -a            a command in a sandbox of its own
  msb create --name box          a sandbox that stays
  msb ssh-config --install       once: then `ssh box.msb`, scp, sftp and rsync just work")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

// Only the verb that is given has its options built: those of all are a fifth of the start of `msb`. The list of verbs
// has a line of each without them, so that line is here, too.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Verb {
    /// Run a command in a sandbox made for it, and remove the sandbox
    Run(run::RunArgs),
    /// Create a sandbox and start it; prints its id
    Create(create::CreateArgs),
    /// Start sandboxes that are stopped, and wait until ssh reaches them and their start commands are ready
    Start(start::StartArgs),
    /// Stop sandboxes: processes are told, file systems are synced
    Stop(stop::StopArgs),
    /// End sandboxes at once, as if their power was cut; or signal one process of a sandbox
    Kill(kill::KillArgs),
    /// Give a running sandbox more or less time, or print how much it has
    Timeout(timeout::TimeoutArgs),
    /// Pause sandboxes: they keep their memory and use no CPU
    Pause(pause::PauseArgs),
    /// Let paused sandboxes go on
    Resume(resume::ResumeArgs),
    /// Fork a running sandbox: make others that go on where it is; prints their ids
    Fork(fork::ForkArgs),
    /// Save a running sandbox to a directory: memory, devices, and the disks it can write to
    Snapshot(snapshot::SnapshotArgs),
    /// Make sandboxes that go on from a snapshot; prints their ids
    Restore(restore::RestoreArgs),
    /// Keep forks waiting, so that a sandbox is there at once
    Pool(pool::PoolArgs),
    /// Remove sandboxes with all they hold
    Rm(rm::RmArgs),
    /// List sandboxes, oldest first
    #[command(visible_alias = "list")]
    Ls(ls::LsArgs),
    /// Print all that is known of a sandbox, as JSON
    Inspect(inspect::InspectArgs),
    /// Show what running sandboxes use of this host: processor, memory, storage, connections
    Stats(stats::StatsArgs),
    /// Print the console of a sandbox's latest run: what its kernel says
    Logs(logs::LogsArgs),
    /// Print what becomes of the sandboxes from now on: a JSON object on a line for each change
    Events(events::EventsArgs),
    /// Wait until a sandbox has ended
    Wait(wait::WaitArgs),
    /// Run a command in a sandbox, with this command's standard input, output and error
    Exec(exec::ExecArgs),
    /// List the processes of a sandbox that `msb exec` and programs keep there
    Ps(ps::PsArgs),
    /// Attach to a process that `msb exec` or a program started, and see its recent output again
    Attach(attach::AttachArgs),
    /// Open a shell in a sandbox, or run a command line of its shell, without needing an OpenSSH client
    Ssh(ssh::SshArgs),
    /// Copy files and directories to or from a sandbox
    Cp(cp::CpArgs),
    /// Print what changes in a directory of a sandbox, or of a file, from now on
    Watch(watch::WatchArgs),
    /// Import, build, list and remove the images that sandboxes are made from
    Image(image::ImageArgs),
    /// Connect standard input and output to the SSH server of a sandbox, for ssh's ProxyCommand
    SshBridge(ssh_bridge::BridgeArgs),
    /// Print or install what lets ssh, scp, sftp and rsync reach every sandbox as NAME.msb
    SshConfig(ssh_config::SshConfigArgs),
    /// Find out what this machine lacks to run sandboxes, by running one; exit status 1 if something is
    Doctor(doctor::DoctorArgs),
    /// Print a completion script for a shell
    Completion(completion::CompletionArgs),
}

/// What every verb is given.
#[derive(Debug)]
struct Context {
    store: Store,
    /// When this process began, `CLOCK_MONOTONIC` in microseconds.
    began_us: u64,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let began_us = now_us();
    log_if_asked();
    match parse().and_then(|verb| dispatch(verb, began_us)) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            if !error.message.is_empty() {
                eprintln!("msb: {}", error.message);
            }
            ExitCode::from(error.status)
        }
    }
}

fn parse() -> Result<Verb, CliError> {
    match Cli::try_parse() {
        Ok(cli) => Ok(cli.verb),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            // Whether anybody reads the help is not msb's concern.
            let _ = error.print();
            Err(CliError::plain("").with_status(0))
        }
        Err(error) => Err(CliError::plain(usage_error(&error))),
    }
}

/// What clap says on several lines, on one.
fn usage_error(error: &clap::Error) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "there is no command without a verb; see `msb --help`".into();
    }
    let text = error.to_string();
    let what = text.split("\n\nUsage:").next().unwrap_or(&text);
    let what = what
        .split("\n\nFor more information")
        .next()
        .unwrap_or(what)
        .trim_start_matches("error: ");
    let what = what
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ");
    let verb = std::env::args().nth(1).filter(|verb| Cli::has_verb(verb));
    format!(
        "{what}; see `msb {}--help`",
        verb.map(|verb| verb + " ").unwrap_or_default()
    )
}

impl Cli {
    fn has_verb(word: &str) -> bool {
        use clap::CommandFactory as _;
        Self::command().find_subcommand(word).is_some()
    }
}

fn dispatch(verb: Verb, began_us: u64) -> Result<u8, CliError> {
    let verb = match verb {
        Verb::Completion(args) => return completion::run::<Cli>(&args),
        verb => verb,
    };
    let layout = Layout::from_environment().map_err(cannot("find the state directory"))?;
    let context = Context {
        store: Store::new(layout),
        began_us,
    };
    match verb {
        Verb::Run(args) => run::run(args, &context),
        Verb::Create(args) => create::run(args, &context),
        Verb::Start(args) => start::run(&args, &context),
        Verb::Stop(args) => stop::run(&args, &context),
        Verb::Kill(args) => kill::run(&args, &context),
        Verb::Timeout(args) => timeout::run(&args, &context),
        Verb::Pause(args) => pause::run(&args, &context),
        Verb::Resume(args) => resume::run(&args, &context),
        Verb::Fork(args) => fork::run(&args, &context),
        Verb::Snapshot(args) => snapshot::run(&args, &context),
        Verb::Restore(args) => restore::run(&args, &context),
        Verb::Pool(args) => pool::run(&args, &context),
        Verb::Rm(args) => rm::run(&args, &context),
        Verb::Ls(args) => ls::run(&args, &context),
        Verb::Inspect(args) => inspect::run(&args, &context),
        Verb::Stats(args) => stats::run(&args, &context),
        Verb::Logs(args) => logs::run(&args, &context),
        Verb::Events(args) => events::run(&args, &context),
        Verb::Wait(args) => wait::run(&args, &context),
        Verb::Exec(args) => exec::run(&args, &context),
        Verb::Ps(args) => ps::run(&args, &context),
        Verb::Attach(args) => attach::run(&args, &context),
        Verb::Ssh(args) => ssh::run(&args, &context),
        Verb::Cp(args) => cp::run(&args, &context),
        Verb::Watch(args) => watch::run(&args, &context),
        Verb::Image(args) => image::run(&args, &context),
        Verb::SshBridge(args) => ssh_bridge::run(&args, &context),
        Verb::SshConfig(args) => ssh_config::run(&args, &context),
        Verb::Doctor(args) => doctor::run(&args, &context),
        Verb::Completion(args) => completion::run::<Cli>(&args),
    }
}

/// A runtime for the verbs that wait for several things at once.
fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(cannot("start the I/O event loop"))
}

/// Does the same to each sandbox; what fails does not keep the others from their turn.
fn for_each(sandboxes: &[String], mut action: impl FnMut(&str) -> Result<(), CliError>) -> Result<u8, CliError> {
    let mut failed = None;
    for sandbox in sandboxes {
        if let Err(error) = action(sandbox)
            && let Some(earlier) = failed.replace(error)
        {
            eprintln!("msb: {}", earlier.message);
        }
    }
    failed.map_or(Ok(0), Err)
}

/// Logging costs a start some time, so it is set up on demand only.
fn log_if_asked() {
    if let Some(filter) = std::env::var_os(log::VARIABLE) {
        log::to_stderr(Some(&filter.to_string_lossy()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent_and_every_verb_has_an_example() {
        Cli::command().debug_assert();
        let mut built = Cli::command();
        built.build();
        for verb in Cli::command().get_subcommands() {
            let name = verb.get_name();
            let with_options = built.find_subcommand(name).unwrap();
            let help = with_options
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(help.contains(&format!("msb {name}")), "{name}");
            assert!(verb.get_about().is_some(), "{name}");
            let about = |verb: &clap::Command| verb.get_about().map(ToString::to_string);
            assert_eq!(about(verb), about(with_options), "{name}");
        }
    }
}
