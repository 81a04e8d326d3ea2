//! `msb kill`

use clap::Args;

use super::error::{CliError, cannot};
use super::processes::{self, ProcessRef, SignalName};
use super::spec_args::{BootTimeout, LoginUser};
use super::{Context, for_each};
use crate::Sandbox;

/// End sandboxes at once, as if their power was cut; or signal one process of a sandbox
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  msb kill box
  msb kill box --pid 312
  msb kill box --pid server --signal TERM      the process with the tag `server`")]
pub(super) struct KillArgs {
    /// Names, ids or beginnings of ids
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
    /// Leave the sandbox as it is, and signal this process and its group: a PID or TAG of `msb ps`
    #[arg(long, value_name = "PROCESS")]
    pid: Option<ProcessRef>,
    /// The signal, such as TERM
    #[arg(long, value_name = "SIGNAL", default_value = "KILL", requires = "pid")]
    signal: SignalName,
    #[command(flatten)]
    login: LoginUser,
    #[command(flatten)]
    boot: BootTimeout,
}

pub(super) fn run(args: &KillArgs, context: &Context) -> Result<u8, CliError> {
    if let Some(process) = &args.pid {
        return for_each(&args.sandboxes, |reference| {
            let what = format!("signal process {process} of {reference}");
            let sandbox = Sandbox::find(&context.store, reference).map_err(cannot(&what))?;
            let commands = processes::commands(&sandbox, &args.login, args.boot);
            super::runtime()?.block_on(async {
                let pid = processes::find(&commands, process, &what, reference).await?;
                let killed = commands.kill(pid, args.signal.as_str()).await;
                match killed.map_err(processes::error(&what))? {
                    true => Ok(()),
                    false => Err(processes::missing(process, &what, reference)),
                }
            })
        });
    }
    for_each(&args.sandboxes, |reference| {
        let what = || format!("kill {reference}");
        let sandbox = Sandbox::find(&context.store, reference).map_err(cannot(what()))?;
        match sandbox.kill().map_err(cannot(what()))? {
            true => Ok(()),
            false => Err(CliError::plain(format!("cannot kill {reference}: it is not running"))),
        }
    })
}
