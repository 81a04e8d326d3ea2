//! `msb attach`

use clap::Args;
use msb_ssh::client::DetachKeys;

use super::error::{CliError, cannot};
use super::processes::{self, DetachKeysOrNone, ProcessRef};
use super::spec_args::{BootTimeout, LoginUser};
use super::{Context, output};
use crate::Sandbox;
use crate::processes::{AttachOptions, LocalInput, Since};

/// Attach to a process that `msb exec` or a program started, and see its recent output again
///
/// Any number may be attached at once. The exit status is that of the process, or 0 when it was left by the detach keys.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  msb exec -dt --tag work box -- sh
  msb attach box work                      leave it with ctrl-p ctrl-q
  msb attach --no-input box 312 | tee log")]
pub(super) struct AttachArgs {
    /// Name, id or beginning of the id
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// PID or TAG of `msb ps`
    #[arg(value_name = "PROCESS")]
    process: ProcessRef,
    /// Keys that leave the process to itself: single characters and ctrl-X, separated by commas
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
    /// Only watch
    #[arg(long)]
    no_input: bool,
    /// Only what it prints from now on
    #[arg(long)]
    no_history: bool,
    #[command(flatten)]
    login: LoginUser,
    #[command(flatten)]
    boot: BootTimeout,
}

pub(super) fn run(args: &AttachArgs, context: &Context) -> Result<u8, CliError> {
    let what = format!("attach to process {} of {}", args.process, args.sandbox);
    let sandbox = Sandbox::find(&context.store, &args.sandbox).map_err(cannot(&what))?;
    let commands = processes::commands(&sandbox, &args.login, args.boot);
    let options = AttachOptions {
        since: if args.no_history { Since::Now } else { Since::Oldest },
        ..AttachOptions::default()
    };
    super::runtime()?.block_on(async {
        let pid = processes::find(&commands, &args.process, &what, &args.sandbox).await?;
        let attached = commands.connect(pid, options).await;
        let mut process = attached.map_err(|error| match error.is_no_process() {
            true => processes::missing(&args.process, &what, &args.sandbox),
            false => processes::error(&what)(error),
        })?;
        if process.lost() > 0 {
            eprintln!("msb: {} bytes of earlier output are no longer kept", process.lost());
        }
        let input = if args.no_input {
            LocalInput::None
        } else {
            LocalInput::Open
        };
        let is_interactive = process.has_terminal() && !args.no_input && output::is_terminal();
        let terminal = is_interactive.then(|| DetachKeysOrNone(Some(args.detach_keys.clone())));
        match processes::follow(&mut process, input, terminal, &what).await? {
            Some(end) => Ok(processes::passed_on(&end)),
            None => {
                process.disconnect().await;
                eprintln!(
                    "\r\nmsb: process {pid} goes on; `msb attach {} {pid}` returns to it",
                    args.sandbox
                );
                Ok(0)
            }
        }
    })
}
