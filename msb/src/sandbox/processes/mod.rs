//! Commands and terminals of a sandbox that can outlive this program: [`Sandbox::commands`], [`Sandbox::pty`].
//!
//! They are processes that the agent keeps ([`msb_ssh::process`]). A [`Process`] is an attachment to one: it streams the
//! output, sends input and signals, and may be left and taken up again, here or in another program. Connections are made
//! when needed, one for each user, and shared by all calls through the same [`Commands`] or [`Ptys`].

mod commands;
mod error;
mod pool;
mod pty;

pub use commands::{Command, Commands, RunOptions};
pub use error::CommandError;
pub use msb_ssh::process::{
    AttachOptions, Failure, Info, LocalInput, Process, ProcessControl, ProcessEnd, ProcessError, ProcessEvent,
    ProcessEvents, ProcessOutput, Program, Since, StartOptions, Terminal, copy, copy_terminal,
};
pub use pty::{PtyOptions, Ptys};

use super::Sandbox;
use pool::Pool;

impl Sandbox {
    /// Its commands: run, list, kill, attach.
    pub fn commands(&self) -> Commands {
        Commands::new(Pool::new(self.clone()))
    }

    /// Its terminals that stay when nobody is attached.
    pub fn pty(&self) -> Ptys {
        Ptys::new(Pool::new(self.clone()))
    }
}
