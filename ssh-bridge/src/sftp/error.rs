//! What can go wrong with files in a guest.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::client::{ClientError, ExitStatus};

/// Why an operation on a file failed.
#[derive(Debug, thiserror::Error)]
pub enum SftpError {
    /// The connection was opened without SFTP.
    #[error("this SSH client was opened without SFTP: open it with `sftp: true`")]
    Disabled,
    /// No SFTP session came about.
    #[error("cannot start the SFTP server of the guest")]
    Start(#[source] ClientError),
    /// The server did not greet in time.
    #[error("the guest's SFTP server said nothing within {} s", waited.as_secs_f32())]
    StartTimeout {
        /// How long it was waited.
        waited: Duration,
    },
    /// The server refused.
    #[error("cannot {operation} {path:?}: {status}")]
    Refused {
        /// What was asked for.
        operation: &'static str,
        /// The file in the guest.
        path: PathBuf,
        /// The server's answer.
        status: Status,
    },
    /// The session ended before there was an answer.
    #[error("cannot {operation} {path:?}")]
    Ended {
        /// What was asked for.
        operation: &'static str,
        /// The file in the guest.
        path: PathBuf,
        /// Why it ended.
        #[source]
        cause: Arc<EndCause>,
    },
    /// The server's answer is none to what was asked.
    #[error("cannot {operation} {path:?}: the guest's SFTP server sent {what}")]
    Nonsense {
        /// What was asked for.
        operation: &'static str,
        /// The file in the guest.
        path: PathBuf,
        /// What is wrong with the answer.
        what: &'static str,
    },
    /// More than may be collected in memory.
    #[error("{path:?} holds more than {limit} {unit}: take them as they come, with {instead}")]
    TooLarge {
        /// The file or directory in the guest.
        path: PathBuf,
        /// The limit.
        limit: usize,
        /// Of what.
        unit: &'static str,
        /// What has no limit.
        instead: &'static str,
    },
}

impl SftpError {
    /// The server's answer, if it is one.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::Refused { status, .. } => Some(status),
            _ => None,
        }
    }

    /// Whether the file does not exist.
    pub fn is_not_found(&self) -> bool {
        self.status()
            .is_some_and(|status| status.code == StatusCode::NoSuchFile)
    }

    /// Whether the session is over, so that nothing else will succeed on it.
    pub fn is_end(&self) -> bool {
        matches!(self, Self::Ended { .. } | Self::Start(_) | Self::StartTimeout { .. })
    }
}

/// Why an SFTP session ended.
#[derive(Debug, thiserror::Error)]
pub enum EndCause {
    /// It was closed from this side.
    #[error("the SFTP session was closed")]
    Closed,
    /// The server ended by itself.
    #[error("the guest's SFTP server ended with {0}")]
    Exited(ExitStatus),
    /// What the server sent is no SFTP.
    #[error("the guest's SFTP server does not keep to the protocol: {0}")]
    Protocol(&'static str),
    /// The connection broke.
    #[error(transparent)]
    Connection(ClientError),
}

/// What a server said to a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Status {
    /// Its kind.
    pub code: StatusCode,
    /// The server's own words.
    pub message: String,
}

impl fmt::Display for Status {
    /// The server's words, without anything that a terminal would act on.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.message.is_empty() {
            return write!(formatter, "{}", self.code);
        }
        for letter in self.message.chars() {
            if letter.is_control() {
                write!(formatter, "{}", letter.escape_default())?;
            } else {
                write!(formatter, "{letter}")?;
            }
        }
        Ok(())
    }
}

/// The status codes of version 3 (draft-ietf-secsh-filexfer-02, section 7).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StatusCode {
    /// Done.
    Ok,
    /// The end of a file or of a directory.
    Eof,
    /// There is no such file.
    NoSuchFile,
    /// The user may not do that.
    PermissionDenied,
    /// Any other failure; the message says which.
    Failure,
    /// The request was malformed, or its value out of range.
    BadMessage,
    /// The server does not do that.
    Unsupported,
    /// A code that version 3 does not have.
    Other(u32),
}

impl From<u32> for StatusCode {
    fn from(code: u32) -> Self {
        match code {
            0 => Self::Ok,
            1 => Self::Eof,
            2 => Self::NoSuchFile,
            3 => Self::PermissionDenied,
            4 => Self::Failure,
            5 => Self::BadMessage,
            8 => Self::Unsupported,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for StatusCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Ok => "done",
            Self::Eof => "end of file",
            Self::NoSuchFile => "no such file",
            Self::PermissionDenied => "permission denied",
            Self::Failure => "failure",
            Self::BadMessage => "bad message",
            Self::Unsupported => "operation unsupported",
            Self::Other(code) => return write!(formatter, "status {code}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_operation_path_and_answer_and_moves_no_terminal() {
        let error = SftpError::Refused {
            operation: "read",
            path: "/a\x1b[2Jb".into(),
            status: Status {
                code: StatusCode::Failure,
                message: "it's \x1b]0;gone".into(),
            },
        };
        assert_eq!(error.to_string(), r#"cannot read "/a\u{1b}[2Jb": it's \u{1b}]0;gone"#);
    }
}
