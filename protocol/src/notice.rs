//! What the agent pushes to the host: one JSON object a line, over one vsock connection to [`crate::ports::NOTICES`].
//!
//! The connection stays open as long as the agent lives. A guest that ends without [`Notice::ShuttingDown`] crashed.

use serde::{Deserialize, Serialize};

/// The longest line either side writes or accepts, in bytes, with its newline.
pub const MAX_LINE: usize = 1024;

/// What the host may say on the same connection once the agent is ready: the guest shall shut down, as it does for SIGTERM
/// to PID 1. A byte, so that it never comes in parts.
pub const SHUT_DOWN: &[u8] = b"S";

/// Likewise: the guest is another one from now on, and who that is follows ([`crate::renewal`]). The agent answers with
/// [`Notice::Ready`] when it is.
pub const RENEW: &[u8] = b"R";

/// The longest version of an agent, in bytes.
const MAX_VERSION: usize = 64;

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
    /// The agent lost its connections at once, as a guest does that is restored from a saved state, and serves nobody until
    /// the host has told it who it is now: [`crate::renewal`].
    Restored,
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
    /// The version is no word that may be shown to people.
    #[error("a notice names no agent version of at most {MAX_VERSION} printable characters")]
    Version,
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
        let notice = serde_json::from_slice(line).map_err(NoticeError::Malformed)?;
        if let Self::Ready { agent, .. } = &notice
            && (agent.len() > MAX_VERSION || !agent.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            return Err(NoticeError::Version);
        }
        Ok(notice)
    }
}

/// Takes the bytes of a connection apart. It never holds more than a line and what was just pushed.
#[derive(Debug, Default)]
pub struct NoticeReader {
    pending: Vec<u8>,
}

impl NoticeReader {
    /// Adds bytes that came; returns the notices that are whole by now.
    ///
    /// # Errors
    /// When a line is no notice, or does not end: nothing that follows has a meaning then.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Notice>, NoticeError> {
        self.pending.extend_from_slice(bytes);
        let mut notices = Vec::new();
        let mut start = 0;
        while let Some(length) = self.pending[start..].iter().position(|&byte| byte == b'\n') {
            let end = start + length + 1;
            notices.push(Notice::parse(&self.pending[start..end])?);
            start = end;
        }
        self.pending.drain(..start);
        if self.pending.len() >= MAX_LINE {
            return Err(NoticeError::TooLong(self.pending.len()));
        }
        Ok(notices)
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
        for notice in [ready, Notice::Restored, Notice::ShuttingDown] {
            let line = notice.to_line();
            assert!(line.ends_with('\n') && line.len() <= MAX_LINE);
            assert_eq!(Notice::parse(line.as_bytes()).unwrap(), notice);
        }
    }

    #[test]
    fn a_version_that_is_none_is_refused() {
        for agent in [
            "\u{1b}]0;title\u{7}",
            "\u{9b}2J",
            "two words",
            &"1".repeat(MAX_VERSION + 1),
        ] {
            let notice = Notice::Ready {
                agent: agent.into(),
                init_us: 0,
                ready_us: 0,
            };
            let parsed = Notice::parse(notice.to_line().as_bytes());
            assert!(matches!(parsed, Err(NoticeError::Version)), "{agent:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn notices_survive_any_division_of_their_lines(
            kinds in proptest::collection::vec(proptest::bool::ANY, 0..20),
            piece in 1usize..200,
        ) {
            let notice = |is_ready| match is_ready {
                true => Notice::Ready { agent: "0.1.0".into(), init_us: 1, ready_us: 2 },
                false => Notice::ShuttingDown,
            };
            let notices: Vec<Notice> = kinds.into_iter().map(notice).collect();
            let bytes: String = notices.iter().map(Notice::to_line).collect();
            let mut reader = NoticeReader::default();
            let read = bytes.as_bytes().chunks(piece).flat_map(|piece| reader.push(piece).unwrap());
            proptest::prop_assert_eq!(read.collect::<Vec<_>>(), notices);
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
