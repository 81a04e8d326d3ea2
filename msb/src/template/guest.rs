//! The microVM that steps run in.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use msb_image::digest::Digest;
use msb_protocol::layer;
use msb_ssh::client::{ClientError, ExitStatus};
use msb_ssh::process::{ProcessEvent, Program};
use msb_ssh::sftp::tree::{TreeEvent, TreeOptions};

use super::apt;
use super::context::Source;
use super::plan::{Action, Place, Work};
use crate::images::{Images, ImportError};
use crate::report;
use crate::sandbox::CreateError;
use crate::sandbox::files::FilesError;
use crate::sandbox::processes::{Command, CommandError, RunOptions};
use crate::sandbox::ssh::{self, Session, SessionEvent, SpawnOptions, SshClientOptions, SshError};
use crate::sandbox::start::{StartError, StartedSandbox};
use crate::tail::Tail;
use crate::vmm_process::args::Lifetime;
use crate::{Sandbox, SandboxSpec, Store};

/// Why a step cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// There is no sandbox.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// It does not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// It cannot be logged in to.
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// The connection.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A command cannot be run.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// Files cannot be copied.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// Some of the files cannot be copied.
    #[error("{failed} files could not be copied; the first: {first}")]
    NotCopied {
        /// How many.
        failed: u64,
        /// Why the first was not.
        first: String,
    },
    /// A command failed.
    #[error("it ended with {status}")]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// The end of what it printed.
        output: String,
    },
    /// What the step wrote cannot be had.
    #[error("the guest gives no layer of what the step wrote: {0}")]
    Layer(String),
    /// What the step wrote cannot be kept.
    #[error("cannot keep what the step wrote")]
    Keep(#[from] ImportError),
}

/// A piece of what a step prints.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) is_error: bool,
}

/// A sandbox whose steps leave layers. It goes when this program does, however that ends.
#[derive(Debug)]
pub(super) struct Guest {
    started: StartedSandbox,
}

impl Guest {
    pub(super) async fn start(store: &Store, spec: SandboxSpec, timeout: Duration) -> Result<Self, GuestError> {
        let (sandbox, lock) = Sandbox::create_transient(store, spec, &[])?;
        let mut started = match sandbox.start_held(lock, Lifetime::OfStarter) {
            Ok(started) => started,
            Err(error) => {
                // The error to report is that of the start.
                let _ = sandbox.remove();
                return Err(error.into());
            }
        };
        started.ready(timeout).await?;
        let guest = Self { started };
        // What the guest wrote when it started is no step's.
        guest.layer(|_| Ok(())).await?;
        Ok(guest)
    }

    /// Does what a step says.
    pub(super) async fn perform(&self, action: &Action, output: impl FnMut(Output<'_>)) -> Result<(), GuestError> {
        match &action.work {
            Work::Copy { source, to } => self.copy(source, to).await,
            Work::Run { command } => self.run(command.as_str().into(), &action.place, output).await,
            Work::AptInstall { repository, packages } => {
                self.copy(repository, Path::new(apt::DIRECTORY)).await?;
                let command = Command(Program::Arguments(apt::arguments(packages)));
                self.run(command, &action.place, output).await?;
                Ok(self.sandbox().files().remove(apt::DIRECTORY).await?)
            }
        }
    }

    /// Keeps what was written since the last time as what the step with this key gives.
    pub(super) async fn keep(&self, images: &Images, key: &Digest, limit: u64) -> Result<Digest, GuestError> {
        let mut new = images.new_layer(limit)?;
        self.layer(|bytes| new.push(bytes)).await?;
        Ok(new.keep(key)?)
    }

    pub(super) async fn discard(self) {
        // What is left of it, the next create sweeps.
        let _ = self.started.discard().await;
    }

    fn sandbox(&self) -> &Sandbox {
        self.started.sandbox()
    }

    async fn copy(&self, source: &Source, to: &Path) -> Result<(), GuestError> {
        let files = self.sandbox().files();
        let directory = match source.is_directory {
            true => Some(to),
            false => to.parent(),
        };
        if let Some(directory) = directory {
            files.make_dir(directory).await?;
        }
        let first = Arc::new(Mutex::new(None));
        let failure = Arc::clone(&first);
        let options = TreeOptions {
            observer: Some(Arc::new(move |event| {
                if let TreeEvent::Failed(error) = event {
                    let mut first = failure.lock().unwrap_or_else(PoisonError::into_inner);
                    first.get_or_insert_with(|| report::one_line(error));
                }
            })),
            ..TreeOptions::default()
        };
        let copied = files.upload(source.open_path(), to, &options).await?;
        let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
        match copied.failed {
            0 => Ok(()),
            failed => Err(GuestError::NotCopied {
                failed,
                first: first.unwrap_or_default(),
            }),
        }
    }

    async fn run(&self, command: Command, place: &Place, mut output: impl FnMut(Output<'_>)) -> Result<(), GuestError> {
        let cwd = PathBuf::from("/").join(&place.directory);
        self.sandbox().files().make_dir(&cwd).await?;
        let options = RunOptions {
            user: (!place.user.is_empty()).then(|| place.user.clone()),
            cwd: Some(cwd),
            envs: place.env.clone().into_iter().collect(),
            ..RunOptions::default()
        };
        let mut tail = Tail::default();
        let commands = self.sandbox().commands();
        let ended = commands.run_with(command, options, |event| {
            let piece = match &event {
                ProcessEvent::Stdout(bytes) => Output { bytes, is_error: false },
                ProcessEvent::Stderr(bytes) => Output { bytes, is_error: true },
                ProcessEvent::Lost(_) | ProcessEvent::Exit(_) => return,
            };
            tail.push(piece.bytes);
            output(piece);
        });
        let status = ended.await?.status;
        match status.is_success() {
            true => Ok(()),
            false => Err(GuestError::Failed {
                status,
                output: tail.text(),
            }),
        }
    }

    /// Takes the layer that was written, and has the guest begin another.
    async fn layer(&self, mut take: impl FnMut(&[u8]) -> Result<(), ImportError>) -> Result<(), GuestError> {
        let client = self.sandbox().ssh().open_client(SshClientOptions::default()).await?;
        let subsystem = ssh::Program::Subsystem(layer::SUBSYSTEM.into());
        let Session { mut events, .. } = client.spawn(&subsystem, &SpawnOptions::default()).await?;
        let mut reason = Tail::default();
        while let Some(event) = events.next().await? {
            match event {
                SessionEvent::Stdout(bytes) => take(&bytes)?,
                SessionEvent::Stderr(bytes) => reason.push(&bytes),
                SessionEvent::Exit(status) if status.is_success() => {
                    client.close().await;
                    return Ok(());
                }
                SessionEvent::Exit(_) | SessionEvent::Eof => {}
            }
        }
        Err(GuestError::Layer(reason.text()))
    }
}
