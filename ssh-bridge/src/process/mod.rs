//! Processes and terminals of a guest that can outlive the connection that started them (`msb_protocol::process`).
//!
//! Each call takes a channel of an [`SshClient`]; any number may be open at once, and one whose output nobody takes holds
//! up no other.

mod attach;
mod control;
mod error;
mod events;
mod stream;

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use msb_protocol::process::{self as wire, Attach, DEFAULT_HISTORY, Reply, Request, Start};

use crate::client::{ExitStatus, Program as SessionProgram, SpawnOptions, SshClient};
pub use attach::{LocalInput, copy, copy_terminal};
pub use control::ProcessControl;
pub use error::ProcessError;
pub use events::{ProcessEvent, ProcessEvents, ProcessOutput};
pub use msb_protocol::process::{Failure, Info, Program, Since, Terminal};
use stream::{Connection, Incoming};

/// Bytes of output that a process may be ahead of whoever takes it.
const WINDOW: u32 = 256 << 10;

/// How a process is started.
#[derive(Clone, Debug)]
pub struct StartOptions {
    /// Its working directory. Default: the one of a login.
    pub cwd: Option<PathBuf>,
    /// Its environment, on top of what the login sets.
    pub env: Vec<(String, String)>,
    /// A name to find it by.
    pub tag: Option<String>,
    /// Its terminal. Default: none, it has pipes.
    pub terminal: Option<Terminal>,
    /// Whether its standard input is a pipe; else it is empty. A terminal always takes input.
    pub input: bool,
    /// After which time it is ended, with all that it left in its session: it has 5 s after SIGTERM (on a terminal,
    /// SIGHUP) until SIGKILL. Default: never.
    pub timeout: Option<Duration>,
    /// Recent output that is kept for whoever attaches later, in bytes: 4 KiB to 64 MiB. Default: 1 MiB.
    pub history: u64,
    /// Whether it goes on when the connection that started it ends. Else it is hung up on, and killed after 5 s.
    pub survive: bool,
    /// Whether it waits with more output while what there is was not taken. Else some is lost here, which is told.
    pub hold: bool,
}

impl Default for StartOptions {
    fn default() -> Self {
        Self {
            cwd: None,
            env: Vec::new(),
            tag: None,
            terminal: None,
            input: false,
            timeout: None,
            history: DEFAULT_HISTORY,
            survive: false,
            hold: true,
        }
    }
}

/// How to attach to a process.
#[derive(Clone, Copy, Debug)]
pub struct AttachOptions {
    /// Which output comes. Default: all that is kept.
    pub since: Since,
    /// As in [`StartOptions`].
    pub hold: bool,
}

impl Default for AttachOptions {
    fn default() -> Self {
        Self {
            since: Since::Oldest,
            hold: true,
        }
    }
}

/// How a process ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProcessEnd {
    /// Its status. [`ExitStatus::Unknown`] when its keeper in the guest ended before it could say, which ends the process.
    pub status: ExitStatus,
    /// Whether it was told to end because its time was over.
    pub timed_out: bool,
}

impl From<&wire::End> for ProcessEnd {
    fn from(end: &wire::End) -> Self {
        let timed_out = end.timed_out();
        let status = match end {
            wire::End::Code { code, .. } => ExitStatus::Code(*code),
            wire::End::Signal { name, core_dumped, .. } => ExitStatus::Signal {
                name: name.clone(),
                core_dumped: *core_dumped,
                message: String::new(),
            },
        };
        Self { status, timed_out }
    }
}

/// A process of the guest that this program is attached to. Its parts may be used apart from each other; dropping
/// [`ProcessEvents`] detaches.
#[derive(Debug)]
pub struct Process {
    /// What can be done to it.
    pub control: ProcessControl,
    /// Its output and its end.
    pub events: ProcessEvents,
}

impl Process {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.control.pid()
    }

    /// How many bytes of the output that was asked for are no longer there.
    pub fn lost(&self) -> u64 {
        self.events.lost()
    }

    /// Whether it has a terminal.
    pub fn has_terminal(&self) -> bool {
        self.control.has_terminal()
    }

    /// Waits for its end, and throws away what output is left.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn wait(mut self) -> Result<ProcessEnd, ProcessError> {
        self.events.wait().await
    }

    /// Waits for its end and collects what it prints, up to `limit` bytes.
    ///
    /// # Errors
    /// When the connection breaks, or it prints more.
    pub async fn collect(mut self, limit: usize) -> Result<ProcessOutput, ProcessError> {
        self.events.collect(limit).await
    }

    /// Leaves it. It goes on if it was started to survive that, or by somebody else.
    pub async fn disconnect(self) {
        self.events.close().await;
    }
}

/// Starts a process and attaches to it.
///
/// # Errors
/// When the guest cannot start it, or the connection breaks.
pub async fn start(client: &SshClient, program: Program, options: &StartOptions) -> Result<Process, ProcessError> {
    let bytes = |(name, value): &(String, String)| (name.clone().into_bytes(), value.clone().into_bytes());
    let start = Start {
        program,
        cwd: options.cwd.as_ref().map(|cwd| cwd.as_os_str().as_bytes().to_vec()),
        env: options.env.iter().map(bytes).collect(),
        tag: options.tag.clone(),
        terminal: options.terminal.clone(),
        input: options.input,
        timeout_ms: options.timeout.map_or(0, milliseconds),
        history: options.history,
        survive: options.survive,
        hold: options.hold,
        credit: WINDOW,
    };
    attached(client, &Request::Start(Box::new(start)), WINDOW).await
}

/// At least one: zero would be no timeout.
fn milliseconds(timeout: Duration) -> u64 {
    u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// Attaches to a process that runs, or that ended lately and nobody was told how.
///
/// # Errors
/// When there is no such process of the user, or the connection breaks.
pub async fn attach(client: &SshClient, pid: u32, options: &AttachOptions) -> Result<Process, ProcessError> {
    let attach = Attach {
        pid,
        since: options.since,
        hold: options.hold,
        credit: WINDOW,
    };
    attached(client, &Request::Attach(attach), WINDOW).await
}

/// What can be done to a process, without its output.
///
/// # Errors
/// When there is no such process of the user, or the connection breaks.
pub async fn control(client: &SshClient, pid: u32) -> Result<Process, ProcessError> {
    let attach = Attach {
        pid,
        since: Since::Now,
        hold: false,
        credit: 0,
    };
    attached(client, &Request::Attach(attach), 0).await
}

async fn attached(client: &SshClient, request: &Request, window: u32) -> Result<Process, ProcessError> {
    let mut incoming = ask(client, request).await?;
    match incoming.reply().await? {
        Reply::Attached {
            pid,
            position,
            lost,
            terminal,
            input,
        } => {
            let (connection, reader) = Connection::run(incoming, window);
            Ok(Process {
                control: ProcessControl::new(connection.clone(), pid, terminal, input),
                events: ProcessEvents::new(connection, reader, position, lost),
            })
        }
        Reply::Failed { failure, message } => Err(ProcessError::Refused { failure, message }),
        other => Err(ProcessError::unexpected(&other)),
    }
}

/// All processes that the user may see, those that ended lately too.
///
/// # Errors
/// When the connection breaks.
pub async fn list(client: &SshClient) -> Result<Vec<Info>, ProcessError> {
    let mut incoming = ask(client, &Request::List).await?;
    let mut all = Vec::new();
    loop {
        match incoming.reply().await? {
            Reply::Listed(info) if all.len() < MAX_LISTED => all.push(*info),
            Reply::Done => return Ok(all),
            Reply::Failed { failure, message } => return Err(ProcessError::Refused { failure, message }),
            other => return Err(ProcessError::unexpected(&other)),
        }
    }
}

/// More processes than a guest with any number of users would have.
const MAX_LISTED: usize = 16_384;

/// Opens a channel and makes one request on it.
async fn ask(client: &SshClient, request: &Request) -> Result<Incoming, ProcessError> {
    let mut bytes = Vec::new();
    Request::Hello { version: wire::VERSION }.encode(&mut bytes);
    let hello = bytes.len();
    request.encode(&mut bytes);
    if bytes.len() - hello > wire::MAX_START {
        return Err(ProcessError::TooLong {
            length: bytes.len() - hello,
        });
    }
    let subsystem = SessionProgram::Subsystem(wire::SUBSYSTEM.into());
    let session = client.spawn(&subsystem, &SpawnOptions::default()).await?;
    let mut incoming = Incoming::new(session);
    incoming.send(&bytes).await;
    match incoming.reply().await? {
        Reply::Hello { version: wire::VERSION } => Ok(incoming),
        Reply::Hello { version } => Err(ProcessError::Version { version }),
        Reply::Failed { failure, message } => Err(ProcessError::Refused { failure, message }),
        other => Err(ProcessError::unexpected(&other)),
    }
}
