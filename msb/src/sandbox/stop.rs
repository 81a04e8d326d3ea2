//! Ending a sandbox: in order, or at once.

use std::io;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use msb_ssh::client::{Program, SpawnOptions};
use rustix::process::Signal;

use super::Sandbox;
use super::process::Process;
use super::records::{ExitReason, ExitRecord, RunRecord};
use super::ssh::{SshClientOptions, SshError};
use super::state::State;
use crate::store::{StoreError, files};

/// The subsystem with which the agent shuts its guest down.
const SHUTDOWN_SUBSYSTEM: &str = "shutdown@msb";

/// How long a VMM process may take to end after SIGTERM.
const TERM_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a guest may take to end that could not be asked to.
const ENDING_TIMEOUT: Duration = Duration::from_millis(100);

/// How long a VMM process that is just starting may take to write down who it is.
const SPAWN_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a sandbox cannot be ended.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// The store cannot do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its process cannot be signalled or waited for.
    #[error("cannot end the VMM process {pid}")]
    Process {
        /// Process id.
        pid: i32,
        /// Why not.
        source: io::Error,
    },
    /// The kernel does not let the process end.
    #[error("the VMM process {0} does not end, though it was killed; it may wait for a disk")]
    Stuck(i32),
    /// Something holds its lock without saying who it is.
    #[error("a process holds the lock of sandbox {0} but does not say which; try again")]
    Unidentified(String),
}

/// How a stop went.
#[derive(Debug)]
pub enum StopOutcome {
    /// It did not run.
    NotRunning,
    /// The guest shut down in order.
    Stopped,
    /// It had to be killed, because the guest did not shut down in time or could not be asked.
    Killed(Option<SshError>),
}

impl Sandbox {
    /// Asks the guest to shut down; kills it if it has not after `timeout`.
    ///
    /// # Errors
    /// When the VMM process can be neither waited for nor killed.
    pub async fn stop(&self, timeout: Duration) -> Result<StopOutcome, StopError> {
        let Some((run, process)) = self.process()? else {
            return Ok(StopOutcome::NotRunning);
        };
        // A guest that stands still shuts nothing down. If it cannot go on, it is killed like one that does not answer.
        if matches!(self.state()?, State::Paused { .. }) {
            let _ = self.resume();
        }
        let deadline = Instant::now() + timeout;
        let asked = match tokio::time::timeout(timeout, self.request_shutdown()).await {
            Ok(result) => result.err(),
            Err(_) => None,
        };
        let pid = run.process.pid;
        let left = match asked {
            None => deadline.saturating_duration_since(Instant::now()),
            // A guest that cannot be asked will not end, unless it refused because it is ending.
            Some(_) => ENDING_TIMEOUT.min(timeout),
        };
        if ended_within(process, left)
            .await
            .map_err(|source| StopError::Process { pid, source })?
        {
            return Ok(StopOutcome::Stopped);
        }
        self.kill()?;
        Ok(StopOutcome::Killed(asked))
    }

    /// Ends its VMM process at once. Says whether there was one.
    ///
    /// # Errors
    /// When the process cannot be signalled or does not end.
    pub fn kill(&self) -> Result<bool, StopError> {
        let Some((run, process)) = self.process()? else {
            return Ok(false);
        };
        let pid = run.process.pid;
        let error = |source| StopError::Process { pid, source };
        process.signal(Signal::TERM).map_err(error)?;
        if !process.wait(TERM_TIMEOUT).map_err(error)? {
            process.signal(Signal::KILL).map_err(error)?;
            if !process.wait(TERM_TIMEOUT).map_err(error)? {
                return Err(StopError::Stuck(pid));
            }
        }
        self.record_kill(&run)?;
        Ok(true)
    }

    /// Asks its VMM process to end, without waiting for that. One that cannot be asked is left alone.
    pub(crate) fn ask_to_end(&self) {
        let run = self.state().ok().and_then(|state| state.run().cloned());
        if let Some(Ok(Some(process))) = run.map(|run| run.process.open()) {
            let _ = process.signal(Signal::TERM);
        }
    }

    /// Removes it even if it runs.
    ///
    /// # Errors
    /// When it cannot be killed or a file cannot be removed.
    pub fn remove_by_force(&self) -> Result<(), StopError> {
        self.kill()?;
        match self.remove() {
            // A transient one was removed by its VMM process.
            Ok(()) | Err(StoreError::Unknown(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks the agent to shut the guest down, which it then does without further ado.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn request_shutdown(&self) -> Result<(), SshError> {
        let client = self.ssh().open_client(SshClientOptions::default()).await?;
        let shutdown = Program::Subsystem(SHUTDOWN_SUBSYSTEM.into());
        client.spawn(&shutdown, &SpawnOptions::default()).await?;
        Ok(())
    }

    /// The VMM process, if one lives.
    fn process(&self) -> Result<Option<(RunRecord, Process)>, StopError> {
        let known = |state: &State| !state.is_alive() || state.run().is_some();
        let state = self.wait_until(SPAWN_TIMEOUT, known)?;
        if !state.is_alive() {
            return Ok(None);
        }
        let run = state
            .run()
            .cloned()
            .ok_or_else(|| StopError::Unidentified(self.label().to_owned()))?;
        let pid = run.process.pid;
        let process = run
            .process
            .open()
            .map_err(|source| StopError::Process { pid, source })?;
        Ok(process.map(|process| (run, process)))
    }

    /// Writes down that a run was killed, unless its VMM process did so itself.
    fn record_kill(&self, run: &RunRecord) -> Result<(), StopError> {
        // Whoever starts it again has the lock, and its run is another.
        let _lock = match self.store().acquire_run_lock(self.id()) {
            Ok(Some(lock)) => lock,
            Ok(None) | Err(StoreError::Unknown(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let dir = self.dir();
        let latest: Option<RunRecord> = files::read_json(&dir.run()).map_err(StoreError::from)?;
        let exit: Option<ExitRecord> = files::read_json(&dir.exit()).map_err(StoreError::from)?;
        let is_latest = latest.is_some_and(|latest| latest.run_id == run.run_id);
        if !is_latest || exit.is_some_and(|exit| exit.run_id == run.run_id) {
            return Ok(());
        }
        let record = ExitRecord {
            run_id: run.run_id.clone(),
            ended_at: Timestamp::now(),
            reason: ExitReason::Killed,
            message: "killed".into(),
        };
        Ok(files::replace_json(&dir.exit(), &record).map_err(StoreError::from)?)
    }
}

async fn ended_within(process: Process, timeout: Duration) -> io::Result<bool> {
    tokio::task::spawn_blocking(move || process.wait(timeout))
        .await
        .map_err(io::Error::other)?
}
