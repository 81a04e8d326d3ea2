//! Wires a session to local streams, or to the local terminal.

use std::io;
use std::os::fd::BorrowedFd;

use tokio::io::AsyncWriteExt;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::detach::DetachKeys;
use super::session::{Session, SessionControl, SessionEvent, SessionEvents, SessionStdin};
use super::stdio::{LocalInput, LocalOutput, Stdio};
use super::terminal::{self, RawMode};
use super::{ClientError, ExitStatus};

/// Bytes read from the local input at once: a packet's worth.
const INPUT_BUFFER: usize = 32 * 1024;

/// How an attached session ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AttachEnd {
    /// The program ended.
    Exited(ExitStatus),
    /// The detach keys were typed. The program is hung up on as its session closes.
    Detached,
}

impl AttachEnd {
    /// The status a local process should exit with to pass the program's on: [`ExitStatus::shell_code`]. None when it
    /// was left.
    pub fn shell_code(&self) -> Option<u8> {
        match self {
            Self::Exited(status) => Some(status.shell_code()),
            Self::Detached => None,
        }
    }
}

/// Copies between a session and local streams until it ends. Its input ends where the local one does.
pub(super) async fn copy(session: Session, stdio: &Stdio) -> Result<ExitStatus, ClientError> {
    let Session { stdin, mut events, .. } = session;
    tokio::select! {
        status = copy_output(&mut events, stdio) => status,
        error = copy_input(&stdio.input, stdin) => Err(error),
    }
}

/// As [`copy`], with the local terminal in raw mode, its size passed on, and a way out by keys.
pub(super) async fn copy_terminal(
    session: Session,
    stdio: &Stdio,
    terminal: BorrowedFd<'_>,
    detach: Option<DetachKeys>,
) -> Result<AttachEnd, ClientError> {
    let mut resized = listen(SignalKind::window_change())?;
    let mut terminated = listen(SignalKind::terminate())?;
    let mut hung_up = listen(SignalKind::hangup())?;
    let _raw = RawMode::enter(terminal).map_err(ClientError::Terminal)?;
    let Session {
        stdin,
        mut events,
        control,
    } = session;
    tokio::select! {
        status = copy_output(&mut events, stdio) => status.map(AttachEnd::Exited),
        end = copy_typed(&stdio.input, stdin, detach) => end.map(|()| AttachEnd::Detached),
        error = pass_on_sizes(&mut resized, terminal, &control) => Err(error),
        _ = terminated.recv() => Err(ClientError::Interrupted { signal: "SIGTERM" }),
        _ = hung_up.recv() => Err(ClientError::Interrupted { signal: "SIGHUP" }),
    }
}

fn listen(kind: SignalKind) -> Result<Signal, ClientError> {
    signal(kind).map_err(ClientError::Terminal)
}

async fn copy_output(events: &mut SessionEvents, stdio: &Stdio) -> Result<ExitStatus, ClientError> {
    while let Some(event) = events.next().await? {
        match event {
            SessionEvent::Stdout(data) => write(&stdio.output, "output", &data).await?,
            SessionEvent::Stderr(data) => write(&stdio.error, "error", &data).await?,
            SessionEvent::Eof => {}
            SessionEvent::Exit(status) => return Ok(status),
        }
    }
    Ok(ExitStatus::Unknown)
}

async fn write(output: &LocalOutput, stream: &'static str, data: &[u8]) -> Result<(), ClientError> {
    output
        .write_all(data)
        .await
        .map_err(|source| ClientError::LocalWrite { stream, source })
}

/// Passes the local input on. Ends only with an error: the end of the input is not that of the session.
async fn copy_input(input: &LocalInput, mut stdin: SessionStdin) -> ClientError {
    let mut buffer = vec![0; INPUT_BUFFER];
    loop {
        let read = match input.read(&mut buffer).await {
            Ok(read) => read,
            Err(source) => return ClientError::LocalRead { source },
        };
        let sent = match read {
            0 => stdin.shutdown().await,
            read => stdin.write_all(&buffer[..read]).await,
        };
        if read == 0 || sent.is_err() {
            // A session that takes no input says itself how it ends.
            std::future::pending::<()>().await;
        }
    }
}

/// As [`copy_input`], but ends when the detach keys were typed.
async fn copy_typed(
    input: &LocalInput,
    mut stdin: SessionStdin,
    detach: Option<DetachKeys>,
) -> Result<(), ClientError> {
    let Some(mut detach) = detach else {
        return Err(copy_input(input, stdin).await);
    };
    let mut buffer = vec![0; INPUT_BUFFER];
    loop {
        let read = input
            .read(&mut buffer)
            .await
            .map_err(|source| ClientError::LocalRead { source })?;
        let mut forward = Vec::with_capacity(read);
        if detach.feed(&buffer[..read], &mut forward) {
            return Ok(());
        }
        let sent = match read {
            0 => stdin.shutdown().await,
            _ => stdin.write_all(&forward).await,
        };
        if read == 0 || sent.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn pass_on_sizes(resized: &mut Signal, terminal: BorrowedFd<'_>, control: &SessionControl) -> ClientError {
    while resized.recv().await.is_some() {
        match terminal::size(terminal) {
            Ok((cols, rows)) => control.resize(cols, rows).await,
            Err(error) => return ClientError::Terminal(error),
        }
    }
    ClientError::Terminal(io::ErrorKind::BrokenPipe.into())
}
