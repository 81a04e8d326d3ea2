//! `msb ps`

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use clap::Args;
use jiff::Timestamp;
use msb_ssh::client::ExitStatus;
use serde::Serialize;

use super::error::{CliError, cannot};
use super::ls::age;
use super::output::{self, escaped};
use super::spec_args::{BootTimeout, LoginUser};
use super::{Context, processes};
use crate::processes::{Info, ProcessEnd, Program};
use crate::{Sandbox, quote};

/// List the processes of a sandbox that `msb exec` and programs keep there
///
/// These are the ones that can be attached to. What runs in a guest besides is seen with `msb exec SANDBOX -- ps`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  msb ps box
  msb ps --all --json box | jq '.[] | select(.exit_code != 0)'")]
pub(super) struct PsArgs {
    /// Name, id or beginning of the id
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Also those that ended in the last 10 minutes and of which nobody was told how
    #[arg(long, short)]
    all: bool,
    /// Print a JSON array instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    login: LoginUser,
    #[command(flatten)]
    boot: BootTimeout,
}

/// One process. The JSON has a stable schema: keys are added, never changed or left out.
#[derive(Debug, Serialize)]
struct ProcessView {
    pid: u32,
    user: String,
    tag: Option<String>,
    /// As a shell would read it.
    command: String,
    cwd: String,
    env: BTreeMap<String, String>,
    /// Columns and rows.
    terminal: Option<(u32, u32)>,
    started_at: Option<Timestamp>,
    /// Bytes of output so far.
    printed: u64,
    /// How many are attached.
    clients: u32,
    state: &'static str,
    exit_code: Option<u32>,
    exit_signal: Option<String>,
    timed_out: bool,
}

impl From<Info> for ProcessView {
    fn from(info: Info) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let end = info.end.as_ref().map(ProcessEnd::from);
        let (exit_code, exit_signal) = match end.as_ref().map(|end| &end.status) {
            Some(ExitStatus::Code(code)) => (Some(*code), None),
            Some(ExitStatus::Signal { name, .. }) => (None, Some(name.clone())),
            _ => (None, None),
        };
        Self {
            pid: info.pid,
            user: info.user,
            tag: info.tag,
            command: match info.program {
                Program::Shell => "login shell".into(),
                Program::Line(line) => text(&line),
                Program::Arguments(arguments) => text(&quote::join(
                    arguments.iter().map(|argument| OsStr::from_bytes(argument)),
                )),
            },
            cwd: text(&info.cwd),
            env: info.env.iter().map(|(name, value)| (text(name), text(value))).collect(),
            terminal: info.terminal.map(|terminal| (terminal.cols, terminal.rows)),
            started_at: i64::try_from(info.started_ms)
                .ok()
                .and_then(|started| Timestamp::from_millisecond(started).ok()),
            printed: info.printed,
            clients: info.clients,
            state: if end.is_some() { "ended" } else { "running" },
            exit_code,
            exit_signal,
            timed_out: end.is_some_and(|end| end.timed_out),
        }
    }
}

pub(super) fn run(args: &PsArgs, context: &Context) -> Result<u8, CliError> {
    let what = format!("list the processes of {}", args.sandbox);
    let sandbox = Sandbox::find(&context.store, &args.sandbox).map_err(cannot(&what))?;
    let commands = processes::commands(&sandbox, &args.login, args.boot);
    let listed = super::runtime()?.block_on(commands.list_all());
    let mut views: Vec<ProcessView> = listed
        .map_err(processes::error(&what))?
        .into_iter()
        .filter(|info| args.all || info.end.is_none())
        .map(ProcessView::from)
        .collect();
    views.sort_by_key(|view| view.started_at);
    if args.json {
        output::json(&views)?;
    } else {
        output::text(&table(&views))?;
    }
    Ok(0)
}

fn table(views: &[ProcessView]) -> String {
    let header = ["PID", "USER", "TAG", "TTY", "STATE", "STARTED", "COMMAND"];
    let row = |view: &ProcessView| {
        let since = |started: Timestamp| age(Timestamp::now().as_second() - started.as_second());
        vec![
            view.pid.to_string(),
            escaped(&view.user),
            view.tag.as_deref().map_or_else(|| "-".into(), escaped),
            view.terminal
                .map_or_else(|| "-".into(), |(cols, rows)| format!("{cols}x{rows}")),
            match (&view.exit_code, &view.exit_signal) {
                (Some(code), _) => format!("exit {code}"),
                (None, Some(signal)) => format!("SIG{}", escaped(signal)),
                (None, None) => view.state.to_owned(),
            },
            view.started_at.map_or_else(|| "-".into(), since),
            escaped(&view.command),
        ]
    };
    let header = header.map(str::to_owned).to_vec();
    output::table(&std::iter::once(header).chain(views.iter().map(row)).collect::<Vec<_>>())
}
