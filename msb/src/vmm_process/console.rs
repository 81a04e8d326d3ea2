//! The guest's console, from the machine's pipe into its log.

use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use msb_vmm::{Console, ConsoleLog, RotatingLog};
use rustix::pipe::{PipeFlags, pipe_with};

/// Most that the console's logs hold together, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// The keeper's end.
#[derive(Debug)]
pub(super) struct ConsolePump {
    source: Option<OwnedFd>,
    log: RotatingLog,
}

impl ConsolePump {
    /// A pump into the log at `path`, and what to give to the machine.
    ///
    /// # Errors
    /// When there is no pipe, or the log cannot be opened.
    pub(super) fn new(path: PathBuf) -> io::Result<(Self, Console)> {
        let max_bytes = MAX_BYTES;
        let log = RotatingLog::open(&ConsoleLog { path, max_bytes })?;
        let (source, sink) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let pump = Self {
            source: Some(source),
            log,
        };
        Ok((pump, Console::Stream(Arc::new(sink))))
    }

    /// What to poll for input; nothing once the console has ended.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.source.as_ref().map(OwnedFd::as_fd)
    }

    /// Writes down what has come, without waiting, and no more than a pipe holds: the guest may write for ever.
    pub(super) fn take(&mut self) {
        let mut buffer = [0; 64 << 10];
        let Some(source) = &self.source else {
            return;
        };
        match rustix::io::read(source, &mut buffer) {
            Ok(0) => self.source = None,
            // The log takes what the disk takes.
            Ok(read) => drop(self.log.write_all(&buffer[..read])),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(_) => self.source = None,
        }
    }

    /// Writes down what is left when the machine has ended.
    pub(super) fn finish(mut self) {
        while self.source.is_some() {
            self.take();
        }
    }
}
