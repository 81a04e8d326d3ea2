//! Pausing a running sandbox, and letting it go on.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::Sandbox;
use super::deadline::{Timeout, TimeoutEnd};
use super::state::State;
use crate::pools::PoolRef;
use crate::store::StoreError;
use crate::vmm_process::control::{self, Answer, Command, Take};

/// How long a VMM process may take for a command: to save a guest takes as long as to write its memory.
const TIMEOUT: Duration = Duration::from_secs(600);

/// How long the VMM process of a sandbox that waits may take to give it away.
const TAKE_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a sandbox cannot be controlled.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Only what runs can be paused or saved.
    #[error("it is {state}; {hint}")]
    NotRunning {
        /// What it is instead.
        state: &'static str,
        /// What to do.
        hint: String,
    },
    /// The store cannot say what it is doing.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its VMM process cannot be talked to.
    #[error("cannot talk to its VMM process")]
    Connection(#[source] io::Error),
    /// Its VMM process did not do it.
    #[error("its VMM process could not: {0}")]
    Refused(String),
}

/// A connection to the VMM process of a sandbox. While it lives, what it saved stands still.
#[derive(Debug)]
pub(super) struct Control(UnixStream);

impl Sandbox {
    /// Stops the guest and its devices where they are, until [`Sandbox::resume`]. It keeps its memory, and uses no CPU.
    /// To pause what is paused is no error.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&self) -> Result<(), ControlError> {
        self.control()?.carry_out(&Command::Pause)
    }

    /// Lets a paused guest go on. One that runs is left alone.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&self) -> Result<(), ControlError> {
        self.control()?.carry_out(&Command::Resume)
    }

    /// Connects to the VMM process of a sandbox that is running or paused.
    pub(super) fn control(&self) -> Result<Control, ControlError> {
        let state = self.state()?;
        if !matches!(state, State::Running { .. } | State::Paused { .. }) {
            let label = self.label();
            let hint = match &state {
                State::Starting { .. } => format!("wait until it is ready, which `msb start {label}` does"),
                State::Waiting { pool, .. } => format!("take it with `msb create --pool {}`", pool.name),
                State::Stopping { .. } => format!("start it again with `msb start {label}`"),
                _ => format!("start it with `msb start {label}`"),
            };
            return Err(ControlError::NotRunning {
                state: state.word(),
                hint,
            });
        }
        self.connect(TIMEOUT)
    }

    /// Has a sandbox that is its starter's alone stand still and wait in `pool` from now on, whatever its starter does.
    ///
    /// # Errors
    /// When there is no such pool any more.
    pub(crate) fn wait_in_pool(&self, pool: PoolRef) -> Result<(), ControlError> {
        self.control()?.carry_out(&Command::Wait(pool))
    }

    /// Takes it out of the pool it waits in, for a starter that listens at the other end of `starter`.
    ///
    /// # Errors
    /// When it was taken by somebody else, or does not run.
    pub(crate) fn take(&self, take: Take, starter: &UnixStream) -> Result<(), ControlError> {
        let control = self.connect(TAKE_TIMEOUT)?;
        control.ask(&Command::Take(Box::new(take)), &[starter.as_fd()])
    }

    fn connect(&self, timeout: Duration) -> Result<Control, ControlError> {
        let connect = || {
            let stream = UnixStream::connect(self.store().layout().control(self.id()))?;
            stream.set_read_timeout(Some(timeout))?;
            Ok(stream)
        };
        connect().map(Control).map_err(ControlError::Connection)
    }
}

impl Control {
    /// Writes the sandbox's state and memory to two empty files. It stands still from now on, as long as this lives.
    pub(super) fn save(&self, state: &File, memory: &File) -> Result<(), ControlError> {
        self.ask(&Command::Save, &[state.as_fd(), memory.as_fd()])
    }

    /// Gives the run another time.
    pub(super) fn set_timeout(&self, timeout: Option<Timeout>, end: Option<TimeoutEnd>) -> Result<(), ControlError> {
        self.carry_out(&Command::SetTimeout { timeout, end })
    }

    fn carry_out(&self, command: &Command) -> Result<(), ControlError> {
        self.ask(command, &[])
    }

    fn ask(&self, command: &Command, files: &[std::os::fd::BorrowedFd<'_>]) -> Result<(), ControlError> {
        let Self(stream) = self;
        let answer = control::send(stream, command, files).and_then(|()| Answer::read(stream));
        match answer.map_err(ControlError::Connection)? {
            Answer::Done => Ok(()),
            Answer::Refused(message) => Err(ControlError::Refused(message)),
        }
    }
}
