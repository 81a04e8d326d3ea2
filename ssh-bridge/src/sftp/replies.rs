//! Replies as results that name the operation and the file.

use std::path::Path;
use std::sync::Arc;

use super::codec::Reply;
use super::error::{EndCause, SftpError, StatusCode};

/// The result of a request that only succeeds or fails.
pub(super) fn done(operation: &'static str, path: &Path, reply: Result<Reply, Arc<EndCause>>) -> Result<(), SftpError> {
    match reply {
        Ok(Reply::Status(status)) if status.code == StatusCode::Ok => Ok(()),
        Ok(other) => Err(unexpected(operation, path, other)),
        Err(cause) => Err(ended(operation, path, cause)),
    }
}

/// A reply that is not the one a success has.
pub(super) fn unexpected(operation: &'static str, path: &Path, reply: Reply) -> SftpError {
    match reply {
        Reply::Status(status) if status.code != StatusCode::Ok => SftpError::Refused {
            operation,
            path: path.to_owned(),
            status,
        },
        _ => nonsense(operation, path, "a reply of the wrong kind"),
    }
}

pub(super) fn nonsense(operation: &'static str, path: &Path, what: &'static str) -> SftpError {
    SftpError::Nonsense {
        operation,
        path: path.to_owned(),
        what,
    }
}

pub(super) fn ended(operation: &'static str, path: &Path, cause: Arc<EndCause>) -> SftpError {
    SftpError::Ended {
        operation,
        path: path.to_owned(),
        cause,
    }
}
