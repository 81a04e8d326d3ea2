//! Starting a sandbox, as seen by the one who starts it.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::Sandbox;
use super::deadline::TimeLimit;
use super::records::{ExitReason, ExitRecord, ReadyRecord};
use crate::assets::{Assets, AssetsError};
use crate::store::lock::RunLock;
use crate::store::{StoreError, files};
use crate::vmm_process::args::{Lifetime, VmmArgs};
use crate::vmm_process::spawn::{self, Saved, SpawnError};
use crate::vmm_process::status::{StatusDecoder, StatusError, StatusEvent};
use crate::{log, shared};

/// How much of the VMM process's log is searched for its last words, in bytes.
const LOG_TAIL: usize = 4096;

/// Why a sandbox does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It runs already.
    #[error("it is already running")]
    AlreadyRunning,
    /// A file of msb is missing.
    #[error(transparent)]
    Assets(#[from] AssetsError),
    /// The store cannot do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no VMM process.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// It ended before it was ready, and said why.
    #[error("{}{}", prefix(.0.reason), .0.message)]
    Ended(ExitRecord),
    /// The VMM process ended without saying why.
    #[error("the VMM process died without a word{}", last_words(.0))]
    Vanished(Option<String>),
    /// The VMM process says what no VMM process says.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// The VMM process cannot be heard.
    #[error("cannot read what the VMM process says")]
    Read(#[source] io::Error),
    /// The guest takes too long.
    #[error(
        "the guest did not get ready within {} s, in which it had {} of a processor; its console ends with: {console}",
        timeout.as_secs_f32(),
        seconds(*processor)
    )]
    NotReady {
        /// How long it was waited.
        timeout: Duration,
        /// Seconds that a processor was its, if that can be told: little on a host that has none to give.
        processor: Option<f64>,
        /// The last line of its console.
        console: String,
    },
}

fn seconds(processor: Option<f64>) -> String {
    processor.map_or_else(|| "an unknown time".into(), |seconds| format!("{seconds:.1} s"))
}

/// What a message about the end needs in front to tell of a start that failed.
fn prefix(reason: ExitReason) -> &'static str {
    match reason {
        ExitReason::Killed | ExitReason::Shutdown | ExitReason::Deadline => "it ended before it was ready: ",
        ExitReason::GuestReset | ExitReason::VmmError => "",
    }
}

fn last_words(line: &Option<String>) -> String {
    line.as_ref()
        .map(|line| format!("; its log ends with: {line}"))
        .unwrap_or_default()
}

/// A sandbox whose VMM process was started. What happens to the sandbox when this is dropped, its [`Lifetime`] says.
#[derive(Debug)]
pub struct StartedSandbox {
    sandbox: Sandbox,
    status: UnixStream,
    decoder: StatusDecoder,
    /// How it ended, once that was said.
    end: Option<ExitRecord>,
}

impl Sandbox {
    /// Starts it and returns at once. Needs a tokio runtime with I/O.
    ///
    /// # Errors
    /// When it runs already, or no VMM process can be started.
    pub fn start(&self, lifetime: Lifetime) -> Result<StartedSandbox, StartError> {
        self.start_limited(lifetime, self.config().spec.time_limit())
    }

    /// Like [`Sandbox::start`], with another time for this run than its specification gives it.
    ///
    /// # Errors
    /// As there.
    pub fn start_limited(&self, lifetime: Lifetime, limit: TimeLimit) -> Result<StartedSandbox, StartError> {
        let lock = self
            .store()
            .acquire_run_lock(self.id())?
            .ok_or(StartError::AlreadyRunning)?;
        self.start_from(lock, lifetime, limit, None)
    }

    /// Like [`Sandbox::start`], by the one who holds its lock.
    ///
    /// # Errors
    /// When no VMM process can be started.
    pub fn start_held(&self, lock: RunLock, lifetime: Lifetime) -> Result<StartedSandbox, StartError> {
        self.start_from(lock, lifetime, self.config().spec.time_limit(), None)
    }

    /// Like [`Sandbox::start_held`], where a saved VM left off if there is one.
    pub(super) fn start_from(
        &self,
        lock: RunLock,
        lifetime: Lifetime,
        limit: TimeLimit,
        saved: Option<Saved<'_>>,
    ) -> Result<StartedSandbox, StartError> {
        let files = Assets::find(self.config().spec.kernel.as_deref())?;
        let layout = self.store().layout();
        let runtime = self.store().create_runtime_dir()?;
        // The built-in kernel is the one that comes with such programs.
        let kernel = match &files.programs {
            Some(_) => shared::in_memory(&files.kernel, runtime),
            None => files.kernel.clone(),
        };
        let args = VmmArgs {
            home: layout.home.clone(),
            runtime: layout.runtime.clone(),
            id: self.id().clone(),
            share_code: kernel != files.kernel,
            kernel,
            initramfs: files.initramfs,
            rom: files.programs.map(|built| shared::in_memory(&built, runtime)),
            tools: files.tools,
            lifetime,
            limit,
            log: std::env::var(log::VARIABLE).ok(),
            lock_fd: -1,
            status_fd: -1,
            saved: None,
        };
        let status = spawn::spawn(&files.vmm, args, lock, saved, &self.dir().vmm_log())?;
        StartedSandbox::heard_on(self.clone(), status)
    }
}

impl StartedSandbox {
    /// The sandbox whose VMM process speaks at the other end of `status`.
    pub(crate) fn heard_on(sandbox: Sandbox, status: std::os::unix::net::UnixStream) -> Result<Self, StartError> {
        status.set_nonblocking(true).map_err(StartError::Read)?;
        Ok(Self {
            sandbox,
            status: UnixStream::from_std(status).map_err(StartError::Read)?,
            decoder: StatusDecoder::default(),
            end: None,
        })
    }

    /// The sandbox.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// Waits until the agent serves SSH. After `timeout` the sandbox is killed.
    ///
    /// # Errors
    /// When it ends before, or the time is over.
    pub async fn ready(&mut self, timeout: Duration) -> Result<ReadyRecord, StartError> {
        match tokio::time::timeout(timeout, self.next_event()).await {
            Ok(Ok(Some(StatusEvent::Ready(ready)))) => Ok(ready),
            Ok(Ok(Some(StatusEvent::Ended(exit)))) => {
                // The process is about to end; when it has, the state is final.
                let _ = self.gone().await;
                Err(StartError::Ended(exit))
            }
            Ok(Ok(None)) => Err(StartError::Vanished(self.last_log_line())),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                let console = self.last_console_line();
                let processor = self.sandbox.processor_seconds();
                // The error to report is that of the guest, not that of its end.
                let _ = self.sandbox.kill();
                Err(StartError::NotReady {
                    timeout,
                    processor,
                    console,
                })
            }
        }
    }

    /// Waits until the VMM process has ended, and says how if it did.
    ///
    /// # Errors
    /// When it cannot be heard.
    pub async fn ended(&mut self) -> Result<Option<ExitRecord>, StartError> {
        loop {
            match self.next_event().await? {
                Some(StatusEvent::Ended(exit)) => return Ok(Some(exit)),
                Some(StatusEvent::Ready(_)) => {}
                None => return Ok(None),
            }
        }
    }

    /// Ends a sandbox that is [`Lifetime::OfStarter`], waits until it is removed, and says how its run had ended.
    ///
    /// # Errors
    /// When its VMM process died before it could do so and it cannot be removed here either.
    pub async fn discard(mut self) -> Result<Option<ExitRecord>, StoreError> {
        // What fails here fails because the VMM process is gone, which is what is wanted.
        let _ = self.status.shutdown().await;
        let exit = self.ended().await.unwrap_or_default().or_else(|| self.end.clone());
        let _ = self.gone().await;
        match self.sandbox.remove() {
            Ok(()) | Err(StoreError::Unknown(_)) => Ok(exit),
            Err(error) => Err(error),
        }
    }

    /// Waits for the end of the VMM process, which is the end of what it says.
    async fn gone(&mut self) -> io::Result<()> {
        tokio::io::copy(&mut self.status, &mut tokio::io::sink()).await?;
        let sandbox = self.sandbox.clone();
        // Its descriptors close one after the other: the lock may be free a moment later than the socket.
        let waited = tokio::task::spawn_blocking(move || sandbox.wait()).await;
        waited.map(drop).map_err(io::Error::other)
    }

    async fn next_event(&mut self) -> Result<Option<StatusEvent>, StartError> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(event) = self.decoder.next_event()? {
                if let StatusEvent::Ended(exit) = &event {
                    self.end = Some(exit.clone());
                }
                return Ok(Some(event));
            }
            match self.status.read(&mut buffer).await {
                Ok(0) => return Ok(None),
                Ok(read) => self.decoder.push(&buffer[..read]),
                // It ended with bytes unread that were sent to it.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(StartError::Read(error)),
            }
        }
    }

    fn last_log_line(&self) -> Option<String> {
        last_line(&self.sandbox.dir().vmm_log())
    }

    fn last_console_line(&self) -> String {
        last_line(&self.sandbox.dir().console_log()).unwrap_or_else(|| "(it is empty)".into())
    }
}

/// The last line with something on it, as printable text.
fn last_line(path: &std::path::Path) -> Option<String> {
    let bytes = files::read_optional(path).ok()??;
    let tail = &bytes[bytes.len().saturating_sub(LOG_TAIL)..];
    let text = String::from_utf8_lossy(tail);
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.chars().filter(|c| !c.is_control()).collect())
}
