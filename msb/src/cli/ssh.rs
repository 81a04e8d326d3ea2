//! `msb ssh`

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;

use clap::Args;

use super::error::{CliError, cannot};
use super::session::{self, Session};
use super::spec_args::{BootTimeout, LoginUser};
use super::{Context, output};
use crate::Sandbox;

/// Open a shell in a sandbox, or run a command line of its shell, without needing an OpenSSH client
///
/// As with ssh, the words of the command are joined with blanks and the guest's shell takes them apart again. `msb exec`
/// passes arguments exactly.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  msb ssh box
  msb ssh box -- 'cd /tmp && ls *.log'")]
pub(super) struct SshArgs {
    /// Name, id or beginning of the id
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Give the command a terminal; a shell has one when standard input is one
    #[arg(long, short)]
    tty: bool,
    #[command(flatten)]
    login: LoginUser,
    #[command(flatten)]
    boot: BootTimeout,
    /// The command line
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(super) fn run(args: &SshArgs, context: &Context) -> Result<u8, CliError> {
    let what = format!("open a session in {}", args.sandbox);
    let sandbox = Sandbox::find(&context.store, &args.sandbox).map_err(cannot(&what))?;
    let words: Vec<&[u8]> = args.command.iter().map(|word| word.as_bytes()).collect();
    let command = (!words.is_empty()).then(|| words.join(&b' '));
    let tty = args.tty || (command.is_none() && output::is_terminal());
    session::in_running(
        &sandbox,
        &Session {
            user: args.login.of(&sandbox),
            command,
            tty,
            env: Vec::new(),
        },
        args.boot,
        &what,
    )
}
