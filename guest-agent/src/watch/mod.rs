//! The subsystem `watch@msb` (`msb_protocol::watch`): tells what changes in a directory, on standard input and output.
//!
//! It runs as the login user, so the kernel decides what may be watched. One thread: what the kernel says ([`tree`]) becomes
//! changes, which wait in a bounded [`outbox`] for a client that is slow.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process::ExitCode;

use msb_protocol::frame::{self, FrameLength, Malformed};
use msb_protocol::watch::{MAX_PATH, Reply, Request, VERSION};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::console;

mod outbox;
mod tree;

use outbox::Outbox;
use tree::{Told, Tree};

/// How long the other half of a renaming may take to come, which the kernel tells in two pieces.
const RENAME_TIMEOUT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 20_000_000,
};

/// Why the server ends before its client does.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    /// The client is told.
    #[error("{0}")]
    Refused(String),
    /// The streams.
    #[error("cannot talk to the client")]
    Io(#[from] io::Error),
    /// The client sends what is no request.
    #[error(transparent)]
    Length(#[from] FrameLength),
    /// The client sends what is no request.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Serves until standard input ends, or there is nothing left to watch.
pub fn run() -> ExitCode {
    let result = Server::new().and_then(|mut server| match server.serve() {
        Err(ServeError::Refused(message)) => Ok(server.finish(&Reply::Failed { message })?),
        result => result,
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::log(&format!("watch: {}", console::chain(&error)));
            ExitCode::FAILURE
        }
    }
}

/// What there is to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Awaited {
    /// The client says something, or has gone.
    Input,
    /// The kernel says something.
    Events,
    /// The client takes more.
    Output,
    /// The other half of a renaming did not come.
    Timeout,
}

struct Server {
    input: File,
    output: File,
    outbox: Outbox,
}

impl Server {
    fn new() -> Result<Self, ServeError> {
        Ok(Self {
            input: io::stdin().as_fd().try_clone_to_owned()?.into(),
            output: io::stdout().as_fd().try_clone_to_owned()?.into(),
            outbox: Outbox::default(),
        })
    }

    fn serve(&mut self) -> Result<(), ServeError> {
        let refused = |message: &str| ServeError::Refused(message.into());
        match self.receive()? {
            Some(Request::Hello { version: 0 }) => return Err(refused("there is no version 0")),
            Some(Request::Hello { version }) => self.finish(&Reply::Hello {
                version: version.min(VERSION),
            })?,
            Some(Request::Watch { .. }) => return Err(refused("the first message must be hello")),
            None => return Ok(()),
        }
        let (path, recursive) = match self.receive()? {
            Some(Request::Watch { path, recursive }) => (path, recursive),
            Some(Request::Hello { .. }) => return Err(refused("the second message must be watch")),
            None => return Ok(()),
        };
        if path.is_empty() || path.len() > MAX_PATH || path.contains(&0) {
            return Err(refused("a path has from 1 to 4096 bytes, none of them zero"));
        }
        let mut unwatched = Outbox::default();
        let tree = Tree::new(&path, recursive, &mut |change| unwatched.push(change));
        let tree = tree.map_err(|error| ServeError::Refused(error.to_string()))?;
        self.finish(&Reply::Watching)?;
        self.outbox = unwatched;
        rustix::io::ioctl_fionbio(&self.output, true).map_err(io::Error::from)?;
        self.tell(tree)
    }

    fn tell(&mut self, mut tree: Tree) -> Result<(), ServeError> {
        loop {
            let awaited = self.wait(&tree)?;
            if awaited == Awaited::Input {
                return match (&self.input).read(&mut [0; 64])? {
                    0 => Ok(()),
                    _ => Err(ServeError::Refused("nothing may follow the request to watch".into())),
                };
            }
            let mut tell = |change| self.outbox.push(change);
            let told = match awaited {
                Awaited::Events => tree.take(&mut tell)?,
                Awaited::Timeout => {
                    tree.settle(&mut tell);
                    Told::More
                }
                Awaited::Input | Awaited::Output => Told::More,
            };
            self.outbox.write(&self.output)?;
            if let Told::Gone = told {
                return Ok(self.finish(&Reply::Gone)?);
            }
        }
    }

    /// Waits for something to do, and says what is the first of it.
    fn wait(&self, tree: &Tree) -> Result<Awaited, ServeError> {
        let mut fds = vec![
            PollFd::new(&self.input, PollFlags::IN),
            PollFd::from_borrowed_fd(tree.as_fd(), PollFlags::IN),
        ];
        if !self.outbox.is_empty() {
            fds.push(PollFd::new(&self.output, PollFlags::OUT));
        }
        let timeout = tree.is_unsettled().then_some(&RENAME_TIMEOUT);
        loop {
            match poll(&mut fds, timeout) {
                Err(Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
                Ok(0) => return Ok(Awaited::Timeout),
                Ok(_) if !fds[0].revents().is_empty() => return Ok(Awaited::Input),
                Ok(_) if !fds[1].revents().is_empty() => return Ok(Awaited::Events),
                Ok(_) => return Ok(Awaited::Output),
            }
        }
    }

    /// Writes all that there is to be said, with `reply` as the last.
    fn finish(&mut self, reply: &Reply) -> io::Result<()> {
        self.outbox.push_last(reply);
        rustix::io::ioctl_fionbio(&self.output, false)?;
        while !self.outbox.is_empty() {
            self.outbox.write(&self.output)?;
        }
        Ok(())
    }

    /// The next request. Nothing at the end.
    fn receive(&mut self) -> Result<Option<Request>, ServeError> {
        let mut length = [0; 4];
        match self.input.read_exact(&mut length) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            result => result?,
        }
        let mut frame = vec![0; frame::check(u32::from_be_bytes(length))?];
        self.input.read_exact(&mut frame)?;
        Ok(Some(Request::decode(&frame)?))
    }
}
