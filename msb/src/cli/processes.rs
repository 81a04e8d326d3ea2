//! What the verbs for processes of a sandbox share.

use std::fmt;
use std::str::FromStr;

use msb_ssh::client::{DetachKeys, ExitStatus, Stdio};

use super::error::{CliError, TRANSPORT_ERROR, cannot};
use super::session;
use super::spec_args::{BootTimeout, LoginUser};
use crate::Sandbox;
use crate::processes::{self, CommandError, Commands, Info, LocalInput, Process, ProcessEnd, ProcessError};
use crate::sandbox::ssh::SshClientOptions;

/// A process as people name it.
#[derive(Clone, Debug)]
pub(super) enum ProcessRef {
    Pid(u32),
    Tag(String),
}

impl FromStr for ProcessRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(pid) => Ok(Self::Pid(pid)),
            Err(_) if text.is_empty() => Err("write a PID or a TAG of `msb ps`".into()),
            Err(_) => Ok(Self::Tag(text.into())),
        }
    }
}

impl fmt::Display for ProcessRef {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pid(pid) => write!(formatter, "{pid}"),
            Self::Tag(tag) => formatter.write_str(tag),
        }
    }
}

/// A signal by name, with or without `SIG`.
#[derive(Clone, Debug)]
pub(super) struct SignalName(String);

impl SignalName {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SignalName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.to_ascii_uppercase();
        let name = name.strip_prefix("SIG").unwrap_or(&name);
        if name.is_empty() || !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
            return Err("write a name, such as TERM".into());
        }
        Ok(Self(name.into()))
    }
}

/// The processes of a sandbox, for this login.
pub(super) fn commands(sandbox: &Sandbox, login: &LoginUser, boot: BootTimeout) -> Commands {
    sandbox.commands().with_options(SshClientOptions {
        user: login.of(sandbox),
        boot_timeout: boot.duration(),
        ..SshClientOptions::default()
    })
}

/// The id of a process. A tag must be that of one.
pub(super) async fn find(
    commands: &Commands,
    process: &ProcessRef,
    what: &str,
    sandbox: &str,
) -> Result<u32, CliError> {
    let tag = match process {
        ProcessRef::Pid(pid) => return Ok(*pid),
        ProcessRef::Tag(tag) => tag,
    };
    let all = commands.list_all().await.map_err(error(what))?;
    let tagged: Vec<&Info> = all.iter().filter(|info| info.tag.as_ref() == Some(tag)).collect();
    match tagged.as_slice() {
        [one] => Ok(one.pid),
        [] => Err(CliError::plain(format!(
            "cannot {what}: no process has the tag {tag:?}; see `msb ps {sandbox}`"
        ))),
        several => {
            let pids: Vec<String> = several.iter().map(|info| info.pid.to_string()).collect();
            Err(CliError::plain(format!(
                "cannot {what}: several processes have the tag {tag:?}; name one by its PID: {}",
                pids.join(", ")
            )))
        }
    }
}

pub(super) fn missing(process: &ProcessRef, what: &str, sandbox: &str) -> CliError {
    CliError::plain(format!(
        "cannot {what}: `msb exec` started no process {process} that still runs; see `msb ps {sandbox}`"
    ))
}

/// For `map_err`.
pub(super) fn error(what: &str) -> impl Fn(CommandError) -> CliError {
    move |error| match &error {
        CommandError::Process(ProcessError::Client(error)) => session::client_error(what, error),
        error if error.is_transport() => CliError::cannot(what, error).with_status(TRANSPORT_ERROR),
        error => CliError::cannot(what, error),
    }
}

/// Wires a process to this one's streams, and returns its exit status. Nothing when it was left by keys.
pub(super) async fn follow(
    process: &mut Process,
    input: LocalInput,
    terminal: Option<DetachKeysOrNone>,
    what: &str,
) -> Result<Option<ProcessEnd>, CliError> {
    let stdio = Stdio::inherit().map_err(cannot("use standard input and output"))?;
    let tell =
        |bytes: u64| eprintln!("\rmsb: {bytes} bytes of output are missing here, because too little was taken\r");
    let end = match terminal {
        Some(keys) => processes::copy_terminal(process, &stdio, keys.0, tell).await,
        None => processes::copy(process, &stdio, input, tell).await.map(Some),
    };
    end.map_err(|failed| error(what)(failed.into()))
}

/// That there is a local terminal, and the keys that leave it.
#[derive(Clone, Debug)]
pub(super) struct DetachKeysOrNone(pub(super) Option<DetachKeys>);

/// The exit status to pass on, after what else is to be said of the end.
pub(super) fn passed_on(end: &ProcessEnd) -> u8 {
    if end.timed_out {
        eprintln!("msb: the command was ended because its time was over");
    }
    if end.status == ExitStatus::Unknown {
        eprintln!("msb: the guest lost the keeper of the process, which ended it; its status is not known");
    }
    end.status.shell_code()
}
