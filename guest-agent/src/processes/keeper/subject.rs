//! The process that is kept.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Child;
use std::time::SystemTime;

use msb_protocol::process::{End, Info, Start, Terminal};
use rustix::process::{Pid, Signal};

use super::group;
use super::lifetime::Order;
use crate::signal_names;

/// A process and what is known of it.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) child: Child,
    /// Readable once it ended.
    pub(super) ended: OwnedFd,
    pub(super) terminal: Option<OwnedFd>,
    pub(super) cwd: PathBuf,
    pub(super) started: SystemTime,
    pub(super) end: Option<End>,
    pub(super) start: Start,
}

impl Subject {
    /// Its id while it is not reaped, so while nobody else can have it.
    fn leader(&self) -> Option<Pid> {
        let pid = Pid::from_raw(self.child.id().cast_signed())?;
        self.end.is_none().then_some(pid)
    }

    /// Sends a signal to its group.
    ///
    /// # Errors
    /// When there is no such process, or it is not this user's to signal.
    pub(super) fn signal(&self, signal: Signal) -> rustix::io::Result<()> {
        let leader = self.leader().ok_or(rustix::io::Errno::SRCH)?;
        group::signal_group(leader, signal)
    }

    pub(super) fn signal_session(&self, order: Order) {
        let Some(leader) = self.leader() else { return };
        match order {
            Order::Hangup => group::signal_session(leader, Signal::HUP),
            Order::Terminate => group::signal_session(leader, Signal::TERM),
            Order::Kill => group::signal_session(leader, Signal::KILL),
        }
        // A stopped process would never see it.
        group::signal_session(leader, Signal::CONT);
    }

    pub(super) fn kill_session(&self) {
        self.signal_session(Order::Kill);
    }

    /// Learns how it ended. Returns false when it still runs.
    pub(super) fn reap(&mut self, timed_out: bool) -> bool {
        let Ok(Some(status)) = self.child.try_wait() else {
            return false;
        };
        self.end = Some(match (status.code(), status.signal()) {
            (None, Some(signal)) => End::Signal {
                name: signal_names::name(signal),
                core_dumped: status.core_dumped(),
                timed_out,
            },
            // wait(2) knows no third way to end.
            (code, _) => End::Code {
                code: code.unwrap_or_default().cast_unsigned(),
                timed_out,
            },
        });
        true
    }

    /// What is told of it.
    pub(super) fn info(&self, printed: u64, clients: usize) -> Info {
        let started = self.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let size = self
            .terminal
            .as_ref()
            .and_then(|terminal| rustix::termios::tcgetwinsize(terminal).ok());
        let terminal = self.start.terminal.as_ref().map(|terminal| Terminal {
            term: terminal.term.clone(),
            cols: size.map_or(terminal.cols, |size| size.ws_col.into()),
            rows: size.map_or(terminal.rows, |size| size.ws_row.into()),
        });
        Info {
            pid: self.child.id(),
            // The process server says whose it is.
            user: String::new(),
            program: self.start.program.clone(),
            cwd: self.cwd.as_os_str().as_bytes().to_vec(),
            env: self.start.env.clone(),
            tag: self.start.tag.clone(),
            terminal,
            started_ms: u64::try_from(started.as_millis()).unwrap_or(u64::MAX),
            printed,
            clients: u32::try_from(clients).unwrap_or(u32::MAX),
            end: self.end.clone(),
        }
    }
}
