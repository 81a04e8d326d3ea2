//! One-line messages on standard error, which is the console in a guest.

use std::error::Error;
use std::io::Write;

/// Writes one line, prefixed with the program's name, in one write. A console that fails is nobody's to hear of.
pub fn log(message: &str) {
    let _ = std::io::stderr().write_all(format!("msb-agent: {message}\n").as_bytes());
}

/// An error and its sources in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line
}
