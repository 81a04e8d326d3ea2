//! Terminals of a sandbox that stay when nobody is attached.

use std::path::PathBuf;
use std::time::Duration;

use msb_ssh::process::{AttachOptions, Process, ProcessControl, Program, StartOptions, Terminal};

use super::pool::Pool;
use super::{Command, CommandError, Commands};
use crate::sandbox::ssh::SshClientOptions;

/// How a terminal is made.
#[derive(Clone, Debug)]
pub struct PtyOptions {
    /// Its width, in characters.
    pub cols: u32,
    /// Its height, in characters.
    pub rows: u32,
    /// Its type, the value of `TERM`.
    pub term: String,
    /// What runs on it. Default: the user's login shell.
    pub command: Option<Command>,
    /// The user it runs as. Default: that of the connection, root.
    pub user: Option<String>,
    /// The working directory. Default: the user's home.
    pub cwd: Option<PathBuf>,
    /// The environment, on top of what the login sets.
    pub envs: Vec<(String, String)>,
    /// A name to find it by.
    pub tag: Option<String>,
    /// After which time it is hung up and, 5 s later, killed; zero is never. Default: zero.
    pub timeout: Duration,
    /// Recent output that is kept for whoever attaches later, in bytes.
    pub history: u64,
}

impl Default for PtyOptions {
    fn default() -> Self {
        Self {
            cols: 80,
            rows: 24,
            term: "xterm-256color".into(),
            command: None,
            user: None,
            cwd: None,
            envs: Vec::new(),
            tag: None,
            timeout: Duration::ZERO,
            history: StartOptions::default().history,
        }
    }
}

/// The terminals of a sandbox. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Ptys {
    commands: Commands,
}

impl Ptys {
    pub(super) fn new(pool: Pool) -> Self {
        Self {
            commands: Commands::new(pool),
        }
    }

    /// The same over connections that are made like this; their user is that of calls which name none.
    #[must_use]
    pub fn with_options(self, options: SshClientOptions) -> Self {
        Self {
            commands: self.commands.with_options(options),
        }
    }

    /// Makes a terminal and attaches to it. It goes on whatever becomes of this program.
    ///
    /// # Errors
    /// When it cannot be made, or the connection breaks.
    pub async fn create(&self, options: PtyOptions) -> Result<Process, CommandError> {
        let PtyOptions {
            cols,
            rows,
            term,
            command,
            user,
            cwd,
            envs,
            tag,
            timeout,
            history,
        } = options;
        let program = command.map_or(Program::Shell, |command| command.0);
        let start = StartOptions {
            cwd,
            env: envs,
            tag,
            terminal: Some(Terminal { term, cols, rows }),
            input: true,
            timeout: Some(timeout).filter(|timeout| !timeout.is_zero()),
            history,
            survive: true,
            hold: true,
        };
        self.commands.start_program(user.as_deref(), program, &start).await
    }

    /// Attaches to a terminal, and gets the recent output again.
    ///
    /// # Errors
    /// As for [`Commands::connect`].
    pub async fn connect(&self, pid: u32, options: AttachOptions) -> Result<Process, CommandError> {
        self.commands.connect(pid, options).await
    }

    /// Types on a terminal.
    ///
    /// # Errors
    /// As for [`Commands::send_stdin`].
    pub async fn send_input(&self, pid: u32, data: impl AsRef<[u8]>) -> Result<(), CommandError> {
        self.commands.send_stdin(pid, data).await
    }

    /// Gives a terminal a new size, in characters.
    ///
    /// # Errors
    /// When there is no such process, it has no terminal, or the connection breaks.
    pub async fn resize(&self, pid: u32, cols: u32, rows: u32) -> Result<(), CommandError> {
        let resize = |process: ProcessControl| async move { process.resize(cols, rows).await };
        self.commands.control(pid, resize).await
    }

    /// Kills what leads a terminal, which ends it. Says whether there was one.
    ///
    /// # Errors
    /// As for [`Commands::kill`].
    pub async fn kill(&self, pid: u32) -> Result<bool, CommandError> {
        self.commands.kill(pid, "KILL").await
    }
}
