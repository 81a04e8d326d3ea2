//! A session in a sandbox, with the standard input, output and error of this process.

use std::fmt::Display;
use std::io;
use std::os::fd::BorrowedFd;

use msb_ssh::client::{ClientError, Program, SshClient, Stdio};
use serde::Serialize;

use super::error::{CliError, TRANSPORT_ERROR, cannot};
use super::spec_args::{BootTimeout, EnvVar};
use crate::Sandbox;
use crate::pools::standby::{End, Ended, Standby};
use crate::sandbox::ssh::{SshClientOptions, SshError, is_transport};
use crate::timings::{now_us, us_at};

/// What to run in the guest, and how.
#[derive(Clone, Debug)]
pub(super) struct Session {
    /// The user in the guest.
    pub(super) user: String,
    /// A command line for the login shell; without one, the shell itself.
    pub(super) command: Option<Vec<u8>>,
    /// Whether it gets a terminal.
    pub(super) tty: bool,
    /// Its environment, besides the login's.
    pub(super) env: Vec<EnvVar>,
}

impl Session {
    /// Whether one who stood by in a pool can run it, if its user is the one that is logged in there.
    pub(super) fn can_be_run_by_standby(&self) -> bool {
        !self.tty && self.env.is_empty() && Standby::can_run(self.command.as_deref(), standard_streams())
    }
}

fn standard_streams() -> [BorrowedFd<'static>; 3] {
    [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()]
}

/// Stamps of a session, `CLOCK_MONOTONIC` in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct SessionTimings {
    /// The login succeeded.
    ssh_connected_us: Option<u64>,
    /// The first byte of the program's output or error was written; none if there was none.
    first_output_us: Option<u64>,
    /// The program ended and all its output was written.
    session_ended_us: Option<u64>,
}

/// Runs a session in a sandbox that runs already, and returns its exit status.
pub(super) fn in_running(sandbox: &Sandbox, session: &Session, boot: BootTimeout, what: &str) -> Result<u8, CliError> {
    super::runtime()?.block_on(run(sandbox, session, boot, what, &mut SessionTimings::default()))
}

/// Runs a session and returns its exit status.
pub(super) async fn run(
    sandbox: &Sandbox,
    session: &Session,
    boot: BootTimeout,
    what: &str,
    timings: &mut SessionTimings,
) -> Result<u8, CliError> {
    let options = SshClientOptions {
        user: session.user.clone(),
        boot_timeout: boot.duration(),
        ..SshClientOptions::default()
    };
    let client = sandbox.ssh().open_client(options).await.map_err(ssh_error(what))?;
    timings.ssh_connected_us = Some(now_us());
    let stdio = Stdio::inherit().map_err(cannot("use standard input and output"))?;
    let status = copy(&client, session, what, &stdio).await;
    timings.first_output_us = stdio.first_output().map(us_at);
    timings.session_ended_us = Some(now_us());
    status
}

/// As [`run`], by the process that stood by the sandbox while that waited in a pool.
pub(super) async fn run_by(
    standby: Standby,
    session: &Session,
    what: &str,
    timings: &mut SessionTimings,
) -> Result<u8, CliError> {
    let failed = |message: String| CliError::plain(format!("cannot {what}: {message}"));
    timings.ssh_connected_us = Some(now_us());
    let Ended {
        first_output_us,
        ended_us,
        end,
    } = standby
        .run(session.command.as_deref(), standard_streams())
        .await
        .map_err(|error| CliError::cannot(what, &error).with_status(TRANSPORT_ERROR))?;
    timings.first_output_us = first_output_us;
    timings.session_ended_us = Some(ended_us);
    match end {
        End::Exited(status) => Ok(status),
        End::SeenEnough => Err(seen_enough()),
        End::ConnectionFailed(message) => Err(failed(message).with_status(TRANSPORT_ERROR)),
        End::Failed(message) => Err(failed(message)),
    }
}

async fn copy(client: &SshClient, session: &Session, what: &str, stdio: &Stdio) -> Result<u8, CliError> {
    let program = session.command.clone().map_or(Program::Shell, Program::Exec);
    let env: Vec<(String, String)> = session
        .env
        .iter()
        .map(|var| (var.key.clone(), var.value.clone()))
        .collect();
    match client.copy_stdio(&program, session.tty, &env, stdio).await {
        Ok(status) => Ok(status.shell_code()),
        Err(error) => Err(client_error(what, &error)),
    }
}

/// For `map_err`: no connection came about.
pub(super) fn ssh_error(what: impl Display) -> impl FnOnce(SshError) -> CliError {
    move |error| match error.is_transport() {
        true => CliError::cannot(what, &error).with_status(TRANSPORT_ERROR),
        false => CliError::cannot(what, &error),
    }
}

/// What a session's end by an error is told as.
pub(super) fn client_error(what: &str, error: &ClientError) -> CliError {
    match error {
        ClientError::LocalWrite { source, .. } if source.kind() == io::ErrorKind::BrokenPipe => seen_enough(),
        ClientError::Interrupted { signal: "SIGHUP" } => CliError::plain("").with_status(after_signal(libc::SIGHUP)),
        ClientError::Interrupted { .. } => CliError::plain("").with_status(after_signal(libc::SIGTERM)),
        error if is_transport(error) => CliError::cannot(what, error).with_status(TRANSPORT_ERROR),
        error => CliError::cannot(what, error),
    }
}

/// Whoever read the output has seen enough: as if SIGPIPE had ended this process.
pub(super) fn seen_enough() -> CliError {
    CliError::plain("").with_status(after_signal(libc::SIGPIPE))
}

/// The exit status that tells of a death by this signal.
pub(super) fn after_signal(signal: libc::c_int) -> u8 {
    128 + u8::try_from(signal).expect("signals are small numbers")
}
