//! What can be done to a process.

use msb_protocol::process::{MAX_DATA, Request};

use super::ProcessError;
use super::stream::Connection;

/// What can be done to a process that this program is attached to, by any number of clones at once.
#[derive(Clone, Debug)]
pub struct ProcessControl {
    connection: Connection,
    pid: u32,
    terminal: bool,
    input: bool,
}

impl ProcessControl {
    pub(super) fn new(connection: Connection, pid: u32, terminal: bool, input: bool) -> Self {
        Self {
            connection,
            pid,
            terminal,
            input,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has a terminal.
    pub fn has_terminal(&self) -> bool {
        self.terminal
    }

    /// Sends it input, at the pace at which it takes that. Returns when all is on its way. What a process closes its
    /// standard input before is dropped, as in a pipe.
    ///
    /// # Errors
    /// When it takes no input or has ended, or the connection breaks.
    pub async fn send_input(&self, data: impl AsRef<[u8]>) -> Result<(), ProcessError> {
        if !self.input {
            return Err(ProcessError::NoInput);
        }
        let mut rest = data.as_ref();
        while !rest.is_empty() {
            let sent = self.connection.send_input(&rest[..rest.len().min(MAX_DATA)]).await?;
            rest = &rest[sent..];
        }
        Ok(())
    }

    /// Waits until it has taken all input that was sent from here.
    ///
    /// # Errors
    /// When it has ended before, or the connection breaks.
    pub async fn input_taken(&self) -> Result<(), ProcessError> {
        self.connection.input_taken().await
    }

    /// Ends its input, after what was sent. A terminal has no end of input.
    ///
    /// # Errors
    /// When it has a terminal or has ended, or the connection breaks.
    pub async fn close_input(&self) -> Result<(), ProcessError> {
        self.connection.ask(&Request::EndInput).await
    }

    /// Gives its terminal a new size, in characters.
    ///
    /// # Errors
    /// When it has no terminal or has ended, or the connection breaks.
    pub async fn resize(&self, cols: u32, rows: u32) -> Result<(), ProcessError> {
        self.connection.ask(&Request::Resize { cols, rows }).await
    }

    /// Sends it and its process group a signal by its name, without `SIG`.
    ///
    /// # Errors
    /// When it has ended or there is no such signal, or the connection breaks.
    pub async fn signal(&self, name: &str) -> Result<(), ProcessError> {
        self.connection.ask(&Request::Signal(name.to_owned())).await
    }
}
