//! The subsystem `ready@msb` (`msb_protocol::ready`): tries a probe until it holds, and ends then.
//!
//! It runs as the login user, in the image's working directory. What a probe asks for tells nobody when it changes, so it is
//! tried again and again, here where that costs no connection.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use msb_protocol::ready::{MAX_PROBE, Probe};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::console;

mod command;
mod port;
mod process;
mod url;

use url::{Url, UrlError};

/// How long the first pause between two tries is, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));

/// Why a probe is not tried any more.
#[derive(Debug, thiserror::Error)]
enum ReadyError {
    /// The client sends something else.
    #[error("the probe cannot be understood")]
    Malformed(#[source] serde_json::Error),
    /// It is longer than one may be.
    #[error("the probe has more than {} KiB", MAX_PROBE >> 10)]
    TooLong,
    /// It names what no guest can reach.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// It cannot be tried.
    #[error("cannot try {0}")]
    Try(String, #[source] io::Error),
    /// The client does not want to know any more.
    #[error("given up")]
    GivenUp,
}

/// Reads a probe from standard input and ends when it holds.
pub fn run() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", console::chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), ReadyError> {
    let client = Client::new().map_err(|error| ReadyError::Try("to hear the client".into(), error))?;
    let probe = client.probe()?;
    let shown = probe.to_string();
    let failed = |error| ReadyError::Try(shown.clone(), error);
    match probe {
        Probe::Timeout(milliseconds) => client.pause(Duration::from_millis(milliseconds)),
        Probe::Port(port) => client.repeat(|| port::is_listened_on(port).map_err(failed)),
        Probe::File(path) => client.repeat(|| Ok(Path::new(&path).exists())),
        Probe::Process(name) => client.repeat(|| process::is_running(name.as_bytes()).map_err(failed)),
        Probe::Url(url) => {
            let url = Url::parse(&url)?;
            client.repeat(|| Ok(url.answers()))
        }
        Probe::Command(line) => client.repeat(|| command::succeeds(&line, client.input.as_fd()).map_err(failed)),
    }
}

/// Whoever wants to know.
struct Client {
    input: File,
}

impl Client {
    fn new() -> io::Result<Self> {
        let input = io::stdin().as_fd().try_clone_to_owned()?;
        Ok(Self { input: input.into() })
    }

    /// A line of JSON.
    fn probe(&self) -> Result<Probe, ReadyError> {
        let mut line = Vec::new();
        let mut byte = [0];
        let mut input = &self.input;
        // What follows is the end of the input, which is not to be missed.
        while !matches!(input.read(&mut byte), Ok(0) | Err(_)) && byte != *b"\n" {
            line.extend(byte);
            if line.len() > MAX_PROBE {
                return Err(ReadyError::TooLong);
            }
        }
        serde_json::from_slice(&line).map_err(ReadyError::Malformed)
    }

    /// Tries until it holds, as long as the client wants.
    fn repeat(&self, mut holds: impl FnMut() -> Result<bool, ReadyError>) -> Result<(), ReadyError> {
        let (mut pause, longest) = PAUSES;
        while !holds()? {
            self.pause(pause)?;
            pause = (pause * 2).min(longest);
        }
        Ok(())
    }

    /// Waits, unless the client has gone.
    fn pause(&self, pause: Duration) -> Result<(), ReadyError> {
        let pause = Timespec::try_from(pause).unwrap_or(Timespec {
            tv_sec: i64::MAX,
            tv_nsec: 0,
        });
        match poll(&mut [PollFd::new(&self.input, PollFlags::IN)], Some(&pause)) {
            Ok(0) | Err(Errno::INTR) => Ok(()),
            _ => Err(ReadyError::GivenUp),
        }
    }
}
