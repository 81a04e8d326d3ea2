//! What the agent pushes to the host: one JSON object a line, over one vsock connection to [`crate::ports::NOTICES`].
//!
//! The connection stays open as long as the agent lives. A guest that ends without [`Notice::ShuttingDown`] crashed.

use serde::{Deserialize, Serialize};

/// The longest line either side writes or accepts, in bytes, with its newline.
pub const MAX_LINE: usize = 1024;

/// One pushed line.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "notice", rename_all = "kebab-case")]
pub enum Notice {
    /// The agent accepts SSH connections.
    Ready {
        /// The agent's version.
        agent: String,
        /// Guest uptime (`CLOCK_BOOTTIME`) when PID 1 started, in microseconds.
        init_us: u64,
        /// Guest uptime (`CLOCK_BOOTTIME`) when SSH was ready, in microseconds.
        ready_us: u64,
    },
    /// The guest ends in order: processes were told, file systems are synced.
    ShuttingDown,
}

/// Why a line is no notice.
#[derive(Debug, thiserror::Error)]
pub enum NoticeError {
    /// The line is longer than [`MAX_LINE`].
    #[error("a notice of {0} bytes is longer than {MAX_LINE}")]
    TooLong(usize),
    /// The line is not the JSON of a notice.
    #[error("a notice is malformed")]
    Malformed(#[source] serde_json::Error),
}

impl Notice {
    /// The line to send, with its newline.
    pub fn to_line(&self) -> String {
        let mut line = serde_json::to_string(self).expect("a notice has only strings and numbers");
        line.push('\n');
        line
    }

    /// Reads a line, with or without its newline.
    ///
    /// # Errors
    /// When the line is too long or not a notice: whoever sent it is not the agent.
    pub fn parse(line: &[u8]) -> Result<Self, NoticeError> {
        if line.len() > MAX_LINE {
            return Err(NoticeError::TooLong(line.len()));
        }
        serde_json::from_slice(line).map_err(NoticeError::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_survives_its_line() {
        let ready = Notice::Ready {
            agent: "0.1.0".into(),
            init_us: 5,
            ready_us: u64::MAX,
        };
        for notice in [ready, Notice::ShuttingDown] {
            let line = notice.to_line();
            assert!(line.ends_with('\n') && line.len() <= MAX_LINE);
            assert_eq!(Notice::parse(line.as_bytes()).unwrap(), notice);
        }
    }

    #[test]
    fn a_line_beyond_the_limit_is_refused_unread() {
        assert!(matches!(
            Notice::parse(&vec![b' '; MAX_LINE + 1]),
            Err(NoticeError::TooLong(_))
        ));
        assert!(matches!(Notice::parse(b"{}"), Err(NoticeError::Malformed(_))));
    }
}
