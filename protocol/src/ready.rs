//! The subsystem `ready@msb`: waits in the guest until something is ready.
//!
//! The client sends a [`Probe`] as a line of JSON and leaves its input open. The guest tries the probe until it holds, and
//! ends with exit status 0; one that it cannot try ends with another status, and the reason on standard error. Nobody need
//! ask again: the end is told when it comes. The end of the input gives up.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The name of the subsystem.
pub const SUBSYSTEM: &str = "ready@msb";

/// The longest line, in bytes.
pub const MAX_PROBE: usize = 64 << 10;

/// What says that something is ready.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Probe {
    /// Something listens on this TCP port of the guest, on any of its addresses.
    Port(u16),
    /// This `http://` URL answers with a status below 400. The guest has no network but its own.
    Url(String),
    /// There is a file of this path.
    File(String),
    /// A process of this name runs.
    Process(String),
    /// This command line ends with exit status 0.
    Command(String),
    /// So many milliseconds have passed.
    Timeout(u64),
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "port {port}"),
            Self::Url(url) => write!(f, "URL {url}"),
            Self::File(path) => write!(f, "file {path}"),
            Self::Process(name) => write!(f, "process {name}"),
            Self::Command(command) => write!(f, "command {command}"),
            Self::Timeout(milliseconds) => write!(f, "{milliseconds} ms"),
        }
    }
}
