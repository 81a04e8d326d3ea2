//! `msb exec`

use std::ffi::OsString;

use clap::Args;

use super::error::CliError;
use super::session::{self, Session};
use super::spec_args::{BootTimeout, EnvVar, LoginUser};
use super::{Context, error::cannot};
use crate::{Sandbox, quote};

/// Run a command in a sandbox, with this command's standard input, output and error
///
/// The arguments arrive exactly as given here: no shell of the guest expands them. For that, use `msb ssh`, or
/// `msb exec SANDBOX -- sh -c '...'`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  msb exec box -- uname -a
  tar c src | msb exec box -- tar x -C /root
  msb exec --tty box -- vi /etc/profile")]
pub(super) struct ExecArgs {
    /// Name, id or beginning of the id
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Give the command a terminal
    #[arg(long, short)]
    tty: bool,
    /// Environment variable of the command
    #[arg(long, short, value_name = "KEY=VALUE")]
    env: Vec<EnvVar>,
    #[command(flatten)]
    login: LoginUser,
    #[command(flatten)]
    boot: BootTimeout,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(super) fn run(args: &ExecArgs, context: &Context) -> Result<u8, CliError> {
    let what = format!("run a command in {}", args.sandbox);
    let sandbox = Sandbox::find(&context.store, &args.sandbox).map_err(cannot(&what))?;
    let session = Session {
        user: args.login.of(&sandbox),
        command: Some(quote::join(&args.command)),
        tty: args.tty,
        env: args.env.clone(),
    };
    session::in_running(&sandbox, &session, args.boot, &what)
}
