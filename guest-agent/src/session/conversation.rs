//! Moves data between a channel and its process until both are done, and tells how the process ended.

use std::io;
use std::process::ExitStatus;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStdin};
use tokio::sync::Notify;

use super::input::Input;
use super::outlet::Outlet;
use crate::net::FdStream;

/// What is read from a terminal at once, in bytes: it gives no more.
const TERMINAL_CHUNK: usize = 4096;

/// What is still read from a terminal after its leader ended, in bytes. The kernel holds less; only a background process
/// that keeps writing could have more.
const MAX_LEFTOVER: usize = 256 << 10;

/// A running process and its channel.
pub(super) struct Conversation {
    pub(super) child: Child,
    /// Its input, if it is on pipes.
    pub(super) stdin: Option<ChildStdin>,
    /// The terminal, if the process is not on pipes.
    pub(super) terminal: Option<FdStream>,
    pub(super) outlet: Arc<Outlet>,
    pub(super) input: Arc<Input>,
    /// Notified when the client closes the channel.
    pub(super) closed: Arc<Notify>,
    /// Sent first, on a terminal.
    pub(super) greeting: Option<Bytes>,
}

impl Conversation {
    /// Runs until the process has ended and all its output is sent, or the client closed the channel; then the process
    /// loses its terminal or pipes and goes on alone, as under sshd.
    pub(super) async fn run(mut self) {
        let closed = Arc::clone(&self.closed);
        let terminal = self.terminal.take();
        let ended = {
            let talk = async {
                match terminal {
                    Some(terminal) => self.on_terminal(terminal).await,
                    None => self.on_pipes().await,
                }
            };
            tokio::select! {
                status = talk => Some(status),
                () = closed.notified() => None,
            }
        };
        match ended {
            // Without a status there is none to report: it is never invented.
            Some(status) => {
                self.input.refuse();
                self.outlet.finish(status.ok()).await;
            }
            None => {
                // What was taken of the pipes is closed already. Input that was sent still arrives.
                if let Some(mut stdin) = self.stdin.take() {
                    self.input.feed_rest(&mut stdin).await;
                }
                self.input.refuse();
                let _ = self.child.wait().await;
            }
        }
    }

    /// On pipes the session lasts until the last holder of both closes them.
    async fn on_pipes(&mut self) -> io::Result<ExitStatus> {
        let (stdout, stderr) = (self.child.stdout.take(), self.child.stderr.take());
        let output = async {
            if let Some(stdout) = stdout {
                self.outlet.pump_stdout(stdout).await;
            }
        };
        let errors = async {
            if let Some(stderr) = stderr {
                self.outlet.pump_stderr(stderr).await;
            }
        };
        let stdin = &mut self.stdin;
        let feeding = async {
            if let Some(open) = stdin {
                self.input.feed(open).await;
            }
            *stdin = None;
            std::future::pending().await
        };
        let child = &mut self.child;
        let running = async { tokio::join!(output, errors, child.wait()).2 };
        tokio::select! {
            status = running => status,
            never = feeding => never,
        }
    }

    /// On a terminal the session lasts until its leader ends.
    async fn on_terminal(&mut self, terminal: FdStream) -> io::Result<ExitStatus> {
        let feeding = async {
            self.input.feed(&mut terminal.clone()).await;
            // The end of input does not end a terminal.
            std::future::pending().await
        };
        let (child, outlet) = (&mut self.child, &self.outlet);
        let greeting = self.greeting.take();
        let talking = async {
            if let Some(greeting) = greeting {
                let _ = outlet.stdout(greeting).await;
            }
            let status = pump_until_exit(&terminal, outlet, child).await;
            drain(&terminal, outlet).await;
            status
        };
        tokio::select! {
            status = talking => status,
            never = feeding => never,
        }
    }
}

/// Sends a terminal's output until `child` ends. Output that was read is always sent.
async fn pump_until_exit(terminal: &FdStream, outlet: &Outlet, child: &mut Child) -> io::Result<ExitStatus> {
    let mut reader = terminal.clone();
    loop {
        let mut buffer = BytesMut::with_capacity(TERMINAL_CHUNK);
        let read = tokio::select! {
            status = child.wait() => return status,
            read = reader.read_buf(&mut buffer) => read,
        };
        match read {
            Ok(length) if length > 0 => {
                if outlet.stdout(buffer.freeze()).await.is_err() {
                    return child.wait().await;
                }
            }
            // Nobody has the terminal open any more, though its leader still runs.
            _ => return child.wait().await,
        }
    }
}

/// Sends what the terminal still holds.
async fn drain(terminal: &FdStream, outlet: &Outlet) {
    let mut buffer = [0; TERMINAL_CHUNK];
    let mut sent = 0;
    while sent < MAX_LEFTOVER {
        let Ok(length @ 1..) = terminal.try_read(&mut buffer) else {
            return;
        };
        if outlet.stdout(Bytes::copy_from_slice(&buffer[..length])).await.is_err() {
            return;
        }
        sent += length;
    }
}
