//! SFTP server.
use std::process::ExitCode;

/// Serves SFTP on standard input and output.
pub fn run() -> ExitCode {
    ExitCode::FAILURE
}
