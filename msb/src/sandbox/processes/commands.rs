//! Commands of a sandbox.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use msb_ssh::client::SshClient;
use msb_ssh::process::{
    self, AttachOptions, Info, Process, ProcessControl, ProcessError, ProcessEvent, ProcessOutput, Program,
    StartOptions,
};

use super::CommandError;
use super::pool::Pool;
use crate::sandbox::ssh::SshClientOptions;

/// What is run: a command line for the user's shell, or a program with arguments that no shell sees.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Command(pub Program);

impl From<&str> for Command {
    fn from(line: &str) -> Self {
        Self(Program::Line(line.as_bytes().to_vec()))
    }
}

impl From<String> for Command {
    fn from(line: String) -> Self {
        Self(Program::Line(line.into_bytes()))
    }
}

impl<const COUNT: usize> From<[&str; COUNT]> for Command {
    fn from(arguments: [&str; COUNT]) -> Self {
        Self(Program::Arguments(
            arguments.iter().map(|argument| argument.as_bytes().to_vec()).collect(),
        ))
    }
}

impl From<Program> for Command {
    fn from(program: Program) -> Self {
        Self(program)
    }
}

/// How a command is run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The user it runs as. Default: that of the connection, root.
    pub user: Option<String>,
    /// Its working directory. Default: the user's home.
    pub cwd: Option<PathBuf>,
    /// Its environment, on top of what the login sets.
    pub envs: Vec<(String, String)>,
    /// A name to find it by.
    pub tag: Option<String>,
    /// After which time it is ended, first by SIGTERM, 5 s later by SIGKILL. Default: never.
    pub timeout: Option<Duration>,
    /// Its standard input, for [`Commands::run`]. For [`Commands::start`]: none leaves it empty, some is sent first and
    /// the input stays open.
    pub stdin: Option<Vec<u8>>,
    /// The most bytes of output that [`Commands::run`] collects.
    pub output_limit: usize,
    /// Recent output that is kept for whoever attaches later, in bytes.
    pub history: u64,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            user: None,
            cwd: None,
            envs: Vec::new(),
            tag: None,
            timeout: None,
            stdin: None,
            output_limit: 64 << 20,
            history: StartOptions::default().history,
        }
    }
}

impl RunOptions {
    fn start(&self, survive: bool) -> StartOptions {
        StartOptions {
            cwd: self.cwd.clone(),
            env: self.envs.clone(),
            tag: self.tag.clone(),
            terminal: None,
            input: self.stdin.is_some(),
            timeout: self.timeout,
            history: self.history,
            survive,
            hold: true,
        }
    }
}

/// The commands of a sandbox. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Commands {
    pool: Pool,
}

impl Commands {
    pub(super) fn new(pool: Pool) -> Self {
        Self { pool }
    }

    /// The same over connections that are made like this; their user is that of calls which name none.
    #[must_use]
    pub fn with_options(self, options: SshClientOptions) -> Self {
        Self {
            pool: self.pool.with_options(options),
        }
    }

    /// Runs a command to its end and collects what it prints. When this is dropped before, the command is hung up on.
    ///
    /// # Errors
    /// When it cannot be started, it prints more than its limit, or the connection breaks.
    pub async fn run(&self, command: impl Into<Command>, options: RunOptions) -> Result<ProcessOutput, CommandError> {
        let limit = options.output_limit;
        let mut process = self.spawn(command.into(), &options, false).await?;
        let feed = feed(&process, options.stdin);
        Ok(alongside(feed, process.events.collect(limit)).await?)
    }

    /// Runs a command to its end and calls `on_event` with each piece of its output as it comes.
    ///
    /// # Errors
    /// As for [`Self::run`].
    pub async fn run_with(
        &self,
        command: impl Into<Command>,
        options: RunOptions,
        mut on_event: impl FnMut(ProcessEvent),
    ) -> Result<process::ProcessEnd, CommandError> {
        let mut process = self.spawn(command.into(), &options, false).await?;
        let feed = feed(&process, options.stdin);
        let watch = async {
            while let Some(event) = process.events.next().await? {
                if let ProcessEvent::Exit(end) = event {
                    return Ok(end);
                }
                on_event(event);
            }
            Err(ProcessError::Ended)
        };
        Ok(alongside(feed, watch).await?)
    }

    /// Starts a command in the background: it goes on whatever becomes of this program.
    ///
    /// As long as the [`Process`] is kept, the command waits when its output is not taken. To let it go on alone, drop it or
    /// [`Process::disconnect`].
    ///
    /// # Errors
    /// When it cannot be started, or the connection breaks.
    pub async fn start(&self, command: impl Into<Command>, options: RunOptions) -> Result<Process, CommandError> {
        let process = self.spawn(command.into(), &options, true).await?;
        if let Some(input) = &options.stdin {
            process.control.send_input(input).await?;
        }
        Ok(process)
    }

    /// Starts a program in any way, as the user of the connection.
    ///
    /// # Errors
    /// When it cannot be started, or the connection breaks.
    pub async fn start_with(
        &self,
        program: impl Into<Command>,
        options: StartOptions,
    ) -> Result<Process, CommandError> {
        let Command(program) = program.into();
        self.start_program(None, program, &options).await
    }

    async fn spawn(&self, command: Command, options: &RunOptions, survive: bool) -> Result<Process, CommandError> {
        let start = options.start(survive);
        let user = options.user.as_deref();
        self.start_program(user, command.0, &start).await
    }

    pub(super) async fn start_program(
        &self,
        user: Option<&str>,
        program: Program,
        options: &StartOptions,
    ) -> Result<Process, CommandError> {
        let starting = |client: Arc<SshClient>| {
            let program = program.clone();
            async move { process::start(&client, program, options).await }
        };
        self.pool.with(user, starting).await
    }

    /// All commands and terminals that run.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn list(&self) -> Result<Vec<Info>, CommandError> {
        let mut all = self.list_all().await?;
        all.retain(|info| info.end.is_none());
        Ok(all)
    }

    /// Those too that ended in the last 10 minutes and of which nobody knows how.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn list_all(&self) -> Result<Vec<Info>, CommandError> {
        self.pool
            .with(
                None,
                |client: Arc<SshClient>| async move { process::list(&client).await },
            )
            .await
    }

    /// Sends a process and its group a signal by its name, without `SIG`: `KILL`, `TERM`, `INT`. Says whether there was
    /// such a process.
    ///
    /// # Errors
    /// When there is no such signal, it is not allowed, or the connection breaks.
    pub async fn kill(&self, pid: u32, signal: &str) -> Result<bool, CommandError> {
        let done = self
            .control(
                pid,
                |process: ProcessControl| async move { process.signal(signal).await },
            )
            .await;
        match done {
            Ok(()) => Ok(true),
            Err(error) if error.is_no_process() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Attaches to a process, and gets the recent output again.
    ///
    /// # Errors
    /// When there is no such process, or the connection breaks.
    pub async fn connect(&self, pid: u32, options: AttachOptions) -> Result<Process, CommandError> {
        self.pool
            .with(None, |client: Arc<SshClient>| async move {
                process::attach(&client, pid, &options).await
            })
            .await
    }

    /// Sends a process input, and waits until it has taken that.
    ///
    /// # Errors
    /// When there is no such process, it takes no input, or the connection breaks.
    pub async fn send_stdin(&self, pid: u32, data: impl AsRef<[u8]>) -> Result<(), CommandError> {
        let data = data.as_ref();
        let send = |process: ProcessControl| async move {
            process.send_input(data).await?;
            process.input_taken().await
        };
        self.control(pid, send).await
    }

    /// Ends the input of a process.
    ///
    /// # Errors
    /// When there is no such process, it has a terminal, or the connection breaks.
    pub async fn close_stdin(&self, pid: u32) -> Result<(), CommandError> {
        self.control(
            pid,
            |process: ProcessControl| async move { process.close_input().await },
        )
        .await
    }

    pub(super) async fn control<Acting>(
        &self,
        pid: u32,
        act: impl Fn(ProcessControl) -> Acting,
    ) -> Result<(), CommandError>
    where
        Acting: Future<Output = Result<(), ProcessError>>,
    {
        let act = &act;
        let acting = |client: Arc<SshClient>| async move {
            let process = process::control(&client, pid).await?;
            act(process.control.clone()).await?;
            process.disconnect().await;
            Ok(())
        };
        self.pool.with(None, acting).await
    }
}

/// Sends the input and ends it. How the command ends is told by its events.
fn feed(process: &Process, input: Option<Vec<u8>>) -> impl Future<Output = ()> + use<> {
    let control = process.control.clone();
    async move {
        if let Some(input) = input
            && control.send_input(input).await.is_ok()
        {
            let _ = control.close_input().await;
        }
    }
}

/// What `main` gives, with `side` running meanwhile.
async fn alongside<T>(side: impl Future<Output = ()>, main: impl Future<Output = T>) -> T {
    let never = async {
        side.await;
        std::future::pending::<std::convert::Infallible>().await
    };
    tokio::select! {
        done = main => done,
        never = never => match never {},
    }
}
