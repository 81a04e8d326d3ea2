//! What comes from a process.

use bytes::{Bytes, BytesMut};
use tokio::task::JoinHandle;

use super::stream::Connection;
use super::{ProcessEnd, ProcessError, WINDOW};
use crate::client::ExitStatus;

/// What comes from a process.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ProcessEvent {
    /// A piece of standard output, or of what its terminal shows.
    Stdout(Bytes),
    /// A piece of standard error.
    Stderr(Bytes),
    /// So many bytes of output were dropped here, because too little was taken.
    Lost(u64),
    /// It ended, and all its output was before this.
    Exit(ProcessEnd),
}

impl ProcessEvent {
    /// Bytes of output.
    pub(super) fn length(&self) -> usize {
        match self {
            Self::Stdout(data) | Self::Stderr(data) => data.len(),
            Self::Lost(_) | Self::Exit(_) => 0,
        }
    }

    /// Adds output of the same stream, if it is a piece of at most `most` bytes then. Returns whether it is.
    pub(super) fn gather(&mut self, is_error: bool, more: &[u8], most: usize) -> bool {
        let data = match self {
            Self::Stdout(data) if !is_error => data,
            Self::Stderr(data) if is_error => data,
            _ => return false,
        };
        if data.len() + more.len() > most {
            return false;
        }
        // Nobody else has it, so this copies nothing as long as it fits.
        let whole = std::mem::take(data).try_into_mut();
        let mut whole = whole.unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        whole.extend_from_slice(more);
        *data = whole.freeze();
        true
    }
}

/// What a process printed, and how it ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProcessOutput {
    /// How it ended.
    pub end: ProcessEnd,
    /// Its standard output, or what its terminal showed.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

/// The output and the end of a process. Dropped, it detaches.
#[derive(Debug)]
pub struct ProcessEvents {
    connection: Connection,
    reader: JoinHandle<()>,
    position: u64,
    lost: u64,
    is_acknowledged: bool,
}

impl ProcessEvents {
    pub(super) fn new(connection: Connection, reader: JoinHandle<()>, position: u64, lost: u64) -> Self {
        Self {
            connection,
            reader,
            position,
            lost,
            is_acknowledged: false,
        }
    }

    /// How many bytes the process had printed before the next event. Whoever attaches again with
    /// [`Since::Position`](super::Since::Position) goes on from there.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// How many bytes of the output that was asked for are no longer there.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// The next event; none after [`ProcessEvent::Exit`]. No event is lost when this future is dropped.
    ///
    /// # Errors
    /// When the connection breaks before the guest said how the process ended.
    pub async fn next(&mut self) -> Result<Option<ProcessEvent>, ProcessError> {
        self.connection.ready().await;
        if !self.is_acknowledged && self.connection.has_news_of_end() {
            self.connection.acknowledge().await;
            self.is_acknowledged = true;
        }
        let event = self.connection.take(WINDOW)?;
        let passed = match &event {
            Some(ProcessEvent::Lost(bytes)) => *bytes,
            Some(event) => u64::try_from(event.length()).unwrap_or(u64::MAX),
            None => 0,
        };
        self.position = self.position.saturating_add(passed);
        Ok(event)
    }

    /// Waits for the end, and throws away what output is left.
    ///
    /// # Errors
    /// When the connection breaks before the guest said how the process ended.
    pub async fn wait(&mut self) -> Result<ProcessEnd, ProcessError> {
        while let Some(event) = self.next().await? {
            if let ProcessEvent::Exit(end) = event {
                return Ok(end);
            }
        }
        Err(ProcessError::Ended)
    }

    /// Waits for the end and collects the output, up to `limit` bytes.
    ///
    /// # Errors
    /// When the connection breaks, there is more output, or some is gone.
    pub async fn collect(&mut self, limit: usize) -> Result<ProcessOutput, ProcessError> {
        let mut output = ProcessOutput {
            end: ProcessEnd {
                status: ExitStatus::Unknown,
                timed_out: false,
            },
            stdout: Vec::new(),
            stderr: Vec::new(),
        };
        while let Some(event) = self.next().await? {
            match event {
                ProcessEvent::Stdout(data) => output.stdout.extend_from_slice(&data),
                ProcessEvent::Stderr(data) => output.stderr.extend_from_slice(&data),
                ProcessEvent::Lost(bytes) => return Err(ProcessError::OutputLost { bytes }),
                ProcessEvent::Exit(end) => output.end = end,
            }
            if output.stdout.len() + output.stderr.len() > limit {
                return Err(ProcessError::OutputTooLarge { limit });
            }
        }
        Ok(output)
    }

    /// Detaches, and waits until that is done.
    pub(super) async fn close(mut self) {
        self.reader.abort();
        // It was ended just now, or has ended.
        let _ = (&mut self.reader).await;
    }
}

impl Drop for ProcessEvents {
    fn drop(&mut self) {
        self.reader.abort();
        self.connection.abandon();
    }
}
