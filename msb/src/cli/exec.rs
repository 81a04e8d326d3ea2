//! `msb exec`

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::error::{CliError, cannot};
use super::processes::{self, DetachKeysOrNone};
use super::session::{self, Session};
use super::spec_args::{BootTimeout, EnvVar, LoginUser};
use super::{Context, output};
use crate::processes::{LocalInput, Program, StartOptions, Terminal};
use crate::{Sandbox, quote};

/// The size of a terminal that nobody looks at yet.
const DETACHED_SIZE: (u32, u32) = (80, 24);

/// Run a command in a sandbox, with this command's standard input, output and error
///
/// The arguments arrive exactly as given here: no shell of the guest expands them. For that, use `msb ssh`, or
/// `msb exec SANDBOX -- sh -c '...'`.
///
/// With any of --detach, --env, --cwd, --timeout and --tag the command is one that `msb ps` lists and `msb attach` attaches
/// to. Unless it is detached, it is hung up on when this command ends.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  msb exec box -- uname -a
  tar c src | msb exec box -- tar x -C /root
  msb exec --tty box -- vi /etc/profile
  msb exec --cwd /srv --timeout 60 --env MODE=test box -- make check
  msb exec -d --tag server box -- httpd -f       prints the process id; see `msb ps`, `msb attach`, `msb kill --pid`")]
pub(super) struct ExecArgs {
    /// Name, id or beginning of the id
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Give the command a terminal
    #[arg(long, short)]
    tty: bool,
    /// Let the command go on in the sandbox, and print its process id
    #[arg(long, short)]
    detach: bool,
    /// Keep the input of a detached command open for `msb attach`; that of a terminal always is
    #[arg(long, short, requires = "detach")]
    interactive: bool,
    /// Environment variable of the command
    #[arg(long, short, value_name = "KEY=VALUE")]
    env: Vec<EnvVar>,
    /// Working directory of the command
    #[arg(long, value_name = "DIRECTORY")]
    cwd: Option<PathBuf>,
    /// End the command after so many seconds: SIGTERM, 5 s later SIGKILL, to its whole session
    #[arg(long, value_name = "SECONDS", value_parser = parse_timeout)]
    timeout: Option<Duration>,
    /// Name to find the command by, in `msb ps`, `msb attach` and `msb kill --pid`
    #[arg(long)]
    tag: Option<String>,
    #[command(flatten)]
    login: LoginUser,
    #[command(flatten)]
    boot: BootTimeout,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "write a number of seconds".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(timeout) if !timeout.is_zero() => Ok(timeout),
        _ => Err("write a positive number of seconds".into()),
    }
}

impl ExecArgs {
    /// Whether a plain session of SSH would not do.
    fn is_kept(&self) -> bool {
        self.detach || !self.env.is_empty() || self.cwd.is_some() || self.timeout.is_some() || self.tag.is_some()
    }

    fn start_options(&self) -> Result<StartOptions, CliError> {
        let terminal = self.tty.then(|| {
            let local = msb_ssh::client::Pty::like(std::io::stdin(), "").ok();
            let (cols, rows) = local.map_or(DETACHED_SIZE, |local| (local.cols, local.rows));
            Terminal {
                term: std::env::var("TERM").unwrap_or_else(|_| "xterm".into()),
                cols,
                rows,
            }
        });
        if self.tty && !self.detach && !std::io::stdin().is_terminal() {
            return Err(CliError::plain("--tty needs a terminal as standard input"));
        }
        Ok(StartOptions {
            cwd: self.cwd.clone(),
            env: self
                .env
                .iter()
                .map(|var| (var.key.clone(), var.value.clone()))
                .collect(),
            tag: self.tag.clone(),
            terminal,
            input: !self.detach || self.interactive,
            timeout: self.timeout,
            survive: self.detach,
            ..StartOptions::default()
        })
    }
}

pub(super) fn run(args: &ExecArgs, context: &Context) -> Result<u8, CliError> {
    let what = format!("run a command in {}", args.sandbox);
    let sandbox = Sandbox::find(&context.store, &args.sandbox).map_err(cannot(&what))?;
    if args.is_kept() {
        return run_kept(args, &sandbox, &what);
    }
    let session = Session {
        user: args.login.of(&sandbox),
        command: Some(quote::join(&args.command)),
        tty: args.tty,
        env: Vec::new(),
    };
    session::in_running(&sandbox, &session, args.boot, &what)
}

fn run_kept(args: &ExecArgs, sandbox: &Sandbox, what: &str) -> Result<u8, CliError> {
    let options = args.start_options()?;
    let program = Program::Arguments(args.command.iter().map(|word| word.as_bytes().to_vec()).collect());
    let commands = processes::commands(sandbox, &args.login, args.boot);
    super::runtime()?.block_on(async {
        let started = commands.start_with(program, options).await;
        let mut process = started.map_err(processes::error(what))?;
        if args.detach {
            let pid = process.pid();
            process.disconnect().await;
            output::line(&pid.to_string())?;
            return Ok(0);
        }
        let terminal = args.tty.then_some(DetachKeysOrNone(None));
        let end = processes::follow(&mut process, LocalInput::Whole, terminal, what).await?;
        Ok(end.map_or(0, |end| processes::passed_on(&end)))
    })
}
