//! The command that a sandbox runs in the background from its start on, and what says that it is ready.

use std::path::PathBuf;
use std::time::Duration;

use msb_image::config::StartCommand;
use msb_protocol::ready::{self, Probe};
use msb_ssh::client::{ClientError, ExitStatus};
use msb_ssh::process::{ProcessError, ProcessEvent};
use tokio::io::AsyncWriteExt as _;

use super::Sandbox;
use super::processes::{CommandError, Process, RunOptions};
use super::ssh::{Program, Session, SessionEvent, SpawnOptions, SshClientOptions, SshError};
use crate::tail::Tail;

/// By what `msb ps` and `msb attach` know it.
pub const TAG: &str = "start";

/// Why the start command is not ready. The sandbox goes on.
#[derive(Debug, thiserror::Error)]
pub enum StartCommandError {
    /// It cannot be started.
    #[error("cannot run the start command")]
    Command(#[from] CommandError),
    /// It cannot be heard of any more.
    #[error("cannot follow the start command")]
    Process(#[from] ProcessError),
    /// It ended before it was ready.
    #[error(
        "the start command '{command}' ended with {status} before {probe} was ready{}",
        printed(output)
    )]
    Ended {
        /// The command.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What was waited for.
        probe: Probe,
        /// What it printed last.
        output: String,
    },
    /// It takes too long.
    #[error("{probe} was not ready within {} s of the start command '{command}'{}", waited.as_secs_f32(), printed(output))]
    NotReady {
        /// The command.
        command: String,
        /// What was waited for.
        probe: Probe,
        /// How long.
        waited: Duration,
        /// What it printed last.
        output: String,
    },
    /// The guest cannot try the probe.
    #[error("cannot wait for {probe}: {reason}")]
    Probe {
        /// What was to be waited for.
        probe: Probe,
        /// Why it cannot.
        reason: String,
    },
    /// The connection that the probe is tried on.
    #[error("cannot wait until the start command is ready")]
    Ssh(#[from] SshError),
    /// That connection broke.
    #[error("cannot wait until the start command is ready")]
    Client(#[from] ClientError),
}

fn printed(output: &str) -> String {
    match output.is_empty() {
        true => "; it printed nothing".into(),
        false => format!("; it printed last: {output}"),
    }
}

/// A start command that runs. Dropped, it goes on.
#[derive(Debug)]
pub struct Launched {
    sandbox: Sandbox,
    start: StartCommand,
    process: Process,
}

impl Sandbox {
    /// Runs the start command of its specification, if there is one, as the image's user in the image's directory. Its
    /// output is [`Sandbox::commands`]' to attach to, under the tag `start`. A sandbox that runs has it already when `msb`
    /// started it; one that was forked or restored does, too.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn launch(&self) -> Result<Option<Launched>, StartCommandError> {
        let spec = &self.config().spec;
        let Some(start) = spec.start_command() else {
            return Ok(None);
        };
        let image = spec.image.as_ref().map(|image| image.config.working_dir.as_str());
        let directory = image.filter(|directory| !directory.is_empty());
        let options = RunOptions {
            user: Some(spec.default_user().to_owned()),
            cwd: directory.map(|directory| PathBuf::from("/").join(directory)),
            tag: Some(TAG.into()),
            ..RunOptions::default()
        };
        let process = self.commands().start(start.command.as_str(), options).await?;
        Ok(Some(Launched {
            sandbox: self.clone(),
            start: start.clone(),
            process,
        }))
    }
}

impl Launched {
    /// Waits until it is ready, and leaves it to itself. Without a probe, it is at once.
    ///
    /// # Errors
    /// When it fails before that, it takes longer than `timeout`, or the guest cannot try the probe.
    pub async fn ready(mut self, timeout: Duration) -> Result<(), StartCommandError> {
        if let Some(probe) = self.start.ready.clone() {
            self.await_probe(probe, timeout).await?;
        }
        self.process.disconnect().await;
        Ok(())
    }

    async fn await_probe(&mut self, probe: Probe, timeout: Duration) -> Result<(), StartCommandError> {
        let mut output = Tail::default();
        let command = self.start.command.clone();
        let failure = follow(&mut self.process, &mut output);
        let result = tokio::select! {
            ready = holds(&self.sandbox, &probe) => return ready,
            status = failure => Ok(status?),
            () = tokio::time::sleep(timeout) => Err(timeout),
        };
        let output = output.text();
        Err(match result {
            Ok(status) => StartCommandError::Ended {
                command,
                status,
                probe,
                output,
            },
            Err(waited) => StartCommandError::NotReady {
                command,
                probe,
                waited,
                output,
            },
        })
    }
}

/// Takes the output until the command fails. One that ends well has left something in the background.
async fn follow(process: &mut Process, output: &mut Tail) -> Result<ExitStatus, StartCommandError> {
    while let Some(event) = process.events.next().await? {
        match event {
            ProcessEvent::Stdout(bytes) | ProcessEvent::Stderr(bytes) => output.push(&bytes),
            ProcessEvent::Exit(end) if !end.status.is_success() => return Ok(end.status),
            ProcessEvent::Lost(_) | ProcessEvent::Exit(_) => {}
        }
    }
    std::future::pending().await
}

/// Has the guest try the probe until it holds.
async fn holds(sandbox: &Sandbox, probe: &Probe) -> Result<(), StartCommandError> {
    let options = SshClientOptions {
        user: sandbox.config().spec.default_user().to_owned(),
        ..SshClientOptions::default()
    };
    let client = sandbox.ssh().open_client(options).await?;
    let subsystem = Program::Subsystem(ready::SUBSYSTEM.into());
    let Session {
        mut stdin, mut events, ..
    } = client.spawn(&subsystem, &SpawnOptions::default()).await?;
    let mut line = serde_json::to_vec(probe).expect("a probe has only numbers and texts");
    line.push(b'\n');
    // That the channel takes nothing is told by its end.
    let _ = stdin.write_all(&line).await;
    let mut reason = Tail::default();
    while let Some(event) = events.next().await? {
        match event {
            SessionEvent::Stderr(bytes) => reason.push(&bytes),
            SessionEvent::Exit(status) if status.is_success() => {
                client.close().await;
                return Ok(());
            }
            SessionEvent::Exit(_) | SessionEvent::Stdout(_) | SessionEvent::Eof => {}
        }
    }
    Err(StartCommandError::Probe {
        probe: probe.clone(),
        reason: reason.text(),
    })
}
