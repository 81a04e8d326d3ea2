//! The sending side of a channel.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use russh::ChannelWriteHalf;
use russh::server::{Handle, Msg};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::budget::Budget;
use super::signals;

/// Extended data of this type is standard error.
const STDERR: u32 = 1;

/// How much is read from a process at once, in bytes: what a pipe holds.
const CHUNK: usize = 64 << 10;

/// The client is gone, or closed the channel.
#[derive(Debug)]
pub(super) struct Gone;

/// Sends to one channel, never more than its window allows.
#[derive(Debug)]
pub(super) struct Outlet {
    writer: ChannelWriteHalf<Msg>,
    handle: Handle,
    budget: Arc<Budget>,
}

impl Outlet {
    pub(super) fn new(writer: ChannelWriteHalf<Msg>, handle: Handle, budget: Arc<Budget>) -> Self {
        Self { writer, handle, budget }
    }

    pub(super) async fn stdout(&self, data: Bytes) -> Result<(), Gone> {
        self.budget.room().await;
        self.budget.wake();
        self.writer.data_bytes(data).await.map_err(|_| Gone)
    }

    async fn stderr(&self, data: Bytes) -> Result<(), Gone> {
        self.budget.room().await;
        self.budget.wake();
        self.writer.extended_data_bytes(STDERR, data).await.map_err(|_| Gone)
    }

    /// Sends all that `source` gives until its end, as standard output.
    pub(super) async fn pump_stdout(&self, mut source: impl AsyncRead + Unpin) {
        while let Some(data) = read_chunk(&mut source).await {
            if self.stdout(data).await.is_err() {
                return;
            }
        }
    }

    /// Sends all that `source` gives until its end, as standard error.
    pub(super) async fn pump_stderr(&self, mut source: impl AsyncRead + Unpin) {
        while let Some(data) = read_chunk(&mut source).await {
            if self.stderr(data).await.is_err() {
                return;
            }
        }
    }

    /// Says how the process ended, if that is known, then ends and closes the channel.
    pub(super) async fn finish(&self, status: Option<ExitStatus>) {
        self.budget.wake();
        if let Some(status) = status {
            self.report(status).await;
        }
        self.end().await;
        self.close().await;
    }

    /// Says that no more output comes. A client that is gone need not hear it.
    pub(super) async fn end(&self) {
        self.budget.wake();
        let _ = self.writer.eof().await;
    }

    /// Closes the channel.
    pub(super) async fn close(&self) {
        self.budget.wake();
        let _ = self.writer.close().await;
    }

    async fn report(&self, status: ExitStatus) {
        if let Some(code) = status.code() {
            let _ = self.writer.exit_status(code.cast_unsigned()).await;
        } else if let Some(signal) = status.signal() {
            let name = signals::name(signal);
            let id = self.writer.id();
            let core = status.core_dumped();
            let _ = self
                .handle
                .exit_signal_request(id, name, core, String::new(), String::new())
                .await;
        }
    }
}

/// The next piece, or nothing at the end. A read that fails is the end: the source is a pipe or a terminal.
async fn read_chunk(source: &mut (impl AsyncRead + Unpin)) -> Option<Bytes> {
    let mut buffer = BytesMut::with_capacity(CHUNK);
    match source.read_buf(&mut buffer).await {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(buffer.freeze()),
    }
}
