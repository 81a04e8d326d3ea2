//! Wires a process to local streams, or to the local terminal.

use std::convert::Infallible;
use std::os::fd::BorrowedFd;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Process, ProcessControl, ProcessEnd, ProcessError, ProcessEvent, ProcessEvents};
use crate::client::terminal::{self, RawMode};
use crate::client::{ClientError, DetachKeys, Stdio};

/// Bytes read from the local input at once.
const INPUT_BUFFER: usize = 32 * 1024;

/// What becomes of the local input.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LocalInput {
    /// It is the process's, and its end the end of that.
    Whole,
    /// It is the process's, whose input goes on after its end.
    Open,
    /// It is not read.
    None,
}

/// Copies between a process and local streams until it ends. `on_lost` is told of output that was dropped.
///
/// # Errors
/// When a local stream or the connection breaks.
pub async fn copy(
    process: &mut Process,
    stdio: &Stdio,
    input: LocalInput,
    on_lost: impl FnMut(u64),
) -> Result<ProcessEnd, ProcessError> {
    let control = process.control.clone();
    tokio::select! {
        end = copy_output(&mut process.events, stdio, on_lost) => end,
        never = copy_input(&control, stdio, input) => never.map(|never| match never {}),
    }
}

/// As [`copy`], with the local terminal in raw mode, its size passed on, and a way out by keys: nothing is returned then.
///
/// While it lasts, SIGTERM and SIGHUP end it with an error instead of this process, so that the terminal gets its modes
/// back.
///
/// # Errors
/// As for [`copy`], and when standard input is no terminal.
pub async fn copy_terminal(
    process: &mut Process,
    stdio: &Stdio,
    detach: Option<DetachKeys>,
    on_lost: impl FnMut(u64),
) -> Result<Option<ProcessEnd>, ProcessError> {
    let local = stdio
        .terminal()
        .ok_or_else(|| ClientError::Terminal(rustix::io::Errno::NOTTY.into()))?;
    let mut resized = listen(SignalKind::window_change())?;
    let mut terminated = listen(SignalKind::terminate())?;
    let mut hung_up = listen(SignalKind::hangup())?;
    let _raw = RawMode::enter(local).map_err(ClientError::Terminal)?;
    let control = process.control.clone();
    tokio::select! {
        end = copy_output(&mut process.events, stdio, on_lost) => end.map(Some),
        left = copy_typed(&control, stdio, detach) => left.map(|()| None),
        never = pass_on_sizes(&control, &mut resized, local) => never.map(|never| match never {}),
        _ = terminated.recv() => Err(ClientError::Interrupted { signal: "SIGTERM" }.into()),
        _ = hung_up.recv() => Err(ClientError::Interrupted { signal: "SIGHUP" }.into()),
    }
}

fn listen(kind: SignalKind) -> Result<Signal, ClientError> {
    signal(kind).map_err(ClientError::Terminal)
}

async fn copy_output(
    events: &mut ProcessEvents,
    stdio: &Stdio,
    mut on_lost: impl FnMut(u64),
) -> Result<ProcessEnd, ProcessError> {
    let failed = |stream| move |source| ClientError::LocalWrite { stream, source };
    while let Some(event) = events.next().await? {
        match event {
            ProcessEvent::Stdout(data) => stdio.output.write_all(&data).await.map_err(failed("output"))?,
            ProcessEvent::Stderr(data) => stdio.error.write_all(&data).await.map_err(failed("error"))?,
            ProcessEvent::Lost(bytes) => on_lost(bytes),
            ProcessEvent::Exit(end) => return Ok(end),
        }
    }
    Err(ProcessError::Ended)
}

/// Ends only with an error: the end of the input is not that of the process, and how that ends is told by its events.
async fn copy_input(control: &ProcessControl, stdio: &Stdio, kind: LocalInput) -> Result<Infallible, ProcessError> {
    if kind == LocalInput::None {
        return std::future::pending().await;
    }
    let mut buffer = vec![0; INPUT_BUFFER];
    loop {
        let length = read(stdio, &mut buffer).await?;
        if length == 0 && kind == LocalInput::Whole {
            // A process that has ended needs no end of input.
            let _ = control.close_input().await;
        }
        if length == 0 || control.send_input(&buffer[..length]).await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Ends when the detach keys were typed.
async fn copy_typed(
    control: &ProcessControl,
    stdio: &Stdio,
    mut detach: Option<DetachKeys>,
) -> Result<(), ProcessError> {
    let mut buffer = vec![0; INPUT_BUFFER];
    loop {
        let length = read(stdio, &mut buffer).await?;
        let mut typed = Vec::with_capacity(length);
        let is_left = match &mut detach {
            Some(keys) => keys.feed(&buffer[..length], &mut typed),
            None => {
                typed.extend_from_slice(&buffer[..length]);
                false
            }
        };
        if control.send_input(&typed).await.is_err() || length == 0 {
            std::future::pending::<()>().await;
        }
        if is_left {
            return Ok(());
        }
    }
}

async fn read(stdio: &Stdio, buffer: &mut [u8]) -> Result<usize, ClientError> {
    stdio
        .read(buffer)
        .await
        .map_err(|source| ClientError::LocalRead { source })
}

/// Gives the process's terminal the size of the local one, now and whenever that changes. A terminal that knows no size
/// changes nothing.
async fn pass_on_sizes(
    control: &ProcessControl,
    resized: &mut Signal,
    local: BorrowedFd<'_>,
) -> Result<Infallible, ProcessError> {
    loop {
        let (cols, rows) = terminal::size(local).map_err(ClientError::Terminal)?;
        if cols > 0 && rows > 0 {
            // A process that has ended needs no size.
            let _ = control.resize(cols, rows).await;
        }
        resized.recv().await;
    }
}
