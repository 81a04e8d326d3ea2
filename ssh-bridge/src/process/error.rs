//! Why something could not be done with a process.

use msb_protocol::frame::{FrameLength, Malformed};
use msb_protocol::process::{Failure, MAX_START, Reply};

use crate::client::ClientError;

/// Why something could not be done with a process.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The connection, or the session on it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The guest refused.
    #[error("the guest says: {}", message.escape_debug())]
    Refused {
        /// Why.
        failure: Failure,
        /// The same in the guest's words.
        message: String,
    },
    /// The process has ended, or this program left it.
    #[error("the process has ended")]
    Ended,
    /// The process takes no input.
    #[error("the process takes no input: it was started without any, or its input was closed")]
    NoInput,
    /// The command and its environment are too long.
    #[error("the command and its environment have {length} bytes, where {MAX_START} fit; pass a file instead")]
    TooLong {
        /// Their length.
        length: usize,
    },
    /// It printed more than may be collected.
    #[error("the command printed more than {limit} bytes: raise the limit, or read its output as it comes")]
    OutputTooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// Output is gone that was to be collected.
    #[error("{bytes} bytes of its output are no longer there; have more of it kept (`history`)")]
    OutputLost {
        /// How much.
        bytes: u64,
    },
    /// The guest's agent is of another version.
    #[error("the guest's agent speaks version {version} of the process subsystem, which this msb does not")]
    Version {
        /// The version.
        version: u32,
    },
    /// The guest sends no frames.
    #[error("the guest's agent does not keep to the process subsystem")]
    Frame(#[from] FrameLength),
    /// The guest sends no messages.
    #[error("the guest's agent does not keep to the process subsystem")]
    Malformed(#[from] Malformed),
    /// The guest sends messages that have no place.
    #[error("the guest's agent does not keep to the process subsystem: {what}")]
    Protocol {
        /// What it did.
        what: &'static str,
    },
    /// The channel ended before the answer.
    #[error("the guest's agent ended before it answered")]
    NoAnswer,
}

impl ProcessError {
    pub(super) fn unexpected(reply: &Reply) -> Self {
        let what = match reply {
            Reply::Hello { .. } => "it said hello again",
            Reply::Attached { .. } => "it attached again",
            Reply::Stdout(_) | Reply::Stderr(_) | Reply::Lost(_) => "output came where an answer was due",
            Reply::Exited(_) => "an end came where an answer was due",
            Reply::Listed(_) => "a process was listed that was not asked for",
            Reply::Done | Reply::Failed { .. } => "an answer came that was not asked for",
            Reply::Credit(_) => "more input was granted than is possible",
        };
        Self::Protocol { what }
    }

    /// Whether there is no such process.
    pub fn is_no_process(&self) -> bool {
        matches!(
            self,
            Self::Ended
                | Self::Refused {
                    failure: Failure::NoProcess,
                    ..
                }
        )
    }
}
