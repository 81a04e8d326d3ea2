//! The subsystem `process@msb` (`msb_protocol::process`): processes and terminals that can outlive their connection.
//!
//! A session starts `msb-agent process-server` as the login user, which reads one request on its standard input. To start
//! a process it forks: the child becomes the [`keeper`] of the process, with its standard input and output as the first
//! client. To attach to a process it passes these two to the process's keeper. So nothing stands between a keeper and
//! the sessions of its clients, and the kernel decides what a user may do.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use msb_protocol::process::{Attach, Failure, Reply, Request, Start, VERSION};

mod directory;
mod keeper;
mod query;
mod stream;

pub(crate) use directory::{default_directory, prepare};

use directory::Place;
use stream::StreamError;

/// The option that forbids terminals.
const NO_TERMINALS: &str = "--no-terminals";

/// Why a request is not served.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    /// Something that the client is told of.
    #[error("{message}")]
    Refused { failure: Failure, message: String },
    /// The client cannot be talked to.
    #[error("cannot talk to the client")]
    Stream(#[from] StreamError),
}

impl ServeError {
    fn refused(failure: Failure, message: impl Into<String>) -> Self {
        Self::Refused {
            failure,
            message: message.into(),
        }
    }
}

/// The command line of a server, after the program's name.
pub(crate) fn server_arguments(directory: &Path, terminals: bool) -> Vec<OsString> {
    let mut arguments = vec!["process-server".into(), directory.into()];
    if !terminals {
        arguments.push(NO_TERMINALS.into());
    }
    arguments
}

/// Serves one request on standard input and output.
pub fn run(directory: &Path, options: &[&str]) -> ExitCode {
    let server = Server {
        directory: directory.into(),
        terminals: !options.contains(&NO_TERMINALS),
    };
    match server.serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(ServeError::Refused { failure, message }) => {
            // Who does not listen need not know.
            let _ = stream::send(io::stdout(), &Reply::Failed { failure, message });
            ExitCode::SUCCESS
        }
        Err(ServeError::Stream(error)) => {
            crate::console::log(&format!("processes: {}", crate::console::chain(&error)));
            ExitCode::FAILURE
        }
    }
}

struct Server {
    directory: PathBuf,
    terminals: bool,
}

impl Server {
    fn serve(&self) -> Result<(), ServeError> {
        let Some(hello) = stream::receive(io::stdin())? else {
            return Ok(());
        };
        let Request::Hello { version } = hello else {
            return Err(ServeError::refused(
                Failure::Protocol,
                "the first message must be hello",
            ));
        };
        if version == 0 {
            return Err(ServeError::refused(Failure::Protocol, "there is no version 0"));
        }
        stream::send(
            io::stdout(),
            &Reply::Hello {
                version: version.min(VERSION),
            },
        )?;
        match stream::receive(io::stdin())? {
            Some(Request::Start(start)) => self.start(*start),
            Some(Request::Attach(attach)) => self.attach(attach),
            Some(Request::List) => self.list(),
            Some(_) => Err(ServeError::refused(
                Failure::Protocol,
                "the second message must be start, attach or list",
            )),
            None => Ok(()),
        }
    }

    fn start(&self, start: Start) -> Result<(), ServeError> {
        if start.terminal.is_some() && !self.terminals {
            return Err(ServeError::refused(
                Failure::Forbidden,
                "the key that logged in is not allowed a terminal",
            ));
        }
        query::make_room(&self.directory)?;
        // SAFETY: this program has one thread, so the child may go on as any process.
        match unsafe { libc::fork() } {
            0 => {
                keeper::run(&self.directory, start);
                std::process::exit(0)
            }
            -1 => Err(ServeError::refused(
                Failure::System,
                format!("cannot fork: {}", io::Error::last_os_error()),
            )),
            _keeper => Ok(()),
        }
    }

    fn attach(&self, attach: Attach) -> Result<(), ServeError> {
        let keeper = self.keeper_of(attach.pid)?;
        let (input, output) = (io::stdin(), io::stdout());
        let ends = [input.as_fd(), output.as_fd()];
        Ok(stream::hand_over(&keeper, &Request::Attach(attach), ends)?)
    }

    fn keeper_of(&self, pid: u32) -> Result<OwnedFd, ServeError> {
        let places = Place::all(&self.directory);
        let place = places.iter().find(|place| place.pid == pid);
        place.and_then(|place| place.connect().ok()).ok_or_else(|| {
            ServeError::refused(
                Failure::NoProcess,
                format!("no process {pid} of yours was started here, or it is long gone"),
            )
        })
    }

    fn list(&self) -> Result<(), ServeError> {
        for place in Place::all(&self.directory) {
            // One that ends meanwhile, or that does not answer, is not there.
            if let Some(info) = query::ask(&place) {
                stream::send(io::stdout(), &Reply::Listed(Box::new(info)))?;
            }
        }
        Ok(stream::send(io::stdout(), &Reply::Done)?)
    }
}
