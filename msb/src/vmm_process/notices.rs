//! The agent's notices: one connection of the guest, bounded lines.

use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use msb_protocol::notice::{MAX_LINE, Notice, NoticeError};

/// The first connection is the agent's: it connects before anything else in the guest runs.
#[derive(Debug)]
pub(super) struct Notices {
    path: PathBuf,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Listening(UnixListener),
    Connected { agent: UnixStream, pending: Vec<u8> },
    Ended,
}

/// Why the connection is no longer listened to.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoticesError {
    /// It sent something else than notices.
    #[error("the guest sent what is no notice")]
    Notice(#[from] NoticeError),
    /// It broke.
    #[error("the connection with the agent broke")]
    Io(#[from] io::Error),
}

impl Notices {
    /// Listens at `path`.
    ///
    /// # Errors
    /// When nothing can be bound there.
    pub(super) fn listen(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            path: path.into(),
            source: Source::Listening(listener),
        })
    }

    /// What to poll for input; nothing once the agent has ended.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.source {
            Source::Listening(listener) => Some(listener.as_fd()),
            Source::Connected { agent, .. } => Some(agent.as_fd()),
            Source::Ended => None,
        }
    }

    /// Takes what has come, without waiting: whole notices only.
    ///
    /// # Errors
    /// When something else came; nothing is listened to any more then.
    pub(super) fn take(&mut self) -> Result<Vec<Notice>, NoticesError> {
        let taken = self.accept_and_read();
        if taken.is_err() {
            self.source = Source::Ended;
        }
        taken
    }

    fn accept_and_read(&mut self) -> Result<Vec<Notice>, NoticesError> {
        if let Source::Listening(listener) = &self.source {
            let agent = match listener.accept() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Vec::new()),
                result => result?.0,
            };
            agent.set_nonblocking(true)?;
            self.source = Source::Connected {
                agent,
                pending: Vec::new(),
            };
            // Whatever else connects is refused from here on.
            let _ = std::fs::remove_file(&self.path);
        }
        let Source::Connected { agent, pending } = &mut self.source else {
            return Ok(Vec::new());
        };
        let mut notices = Vec::new();
        let mut buffer = [0; MAX_LINE];
        loop {
            match agent.read(&mut buffer) {
                Ok(0) => {
                    self.source = Source::Ended;
                    return Ok(notices);
                }
                Ok(read) => pending.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(notices),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            }
            while let Some(newline) = pending.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = pending.drain(..=newline).collect();
                notices.push(Notice::parse(&line)?);
            }
            if pending.len() >= MAX_LINE {
                return Err(NoticeError::TooLong(pending.len()).into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn listening() -> (tempfile::TempDir, PathBuf, Notices) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock_1024");
        let notices = Notices::listen(&path).unwrap();
        (dir, path, notices)
    }

    #[test]
    fn notices_arrive_whole_and_end_with_the_agent() {
        let (_dir, path, mut notices) = listening();
        assert_eq!(notices.take().unwrap(), []);
        let mut agent = UnixStream::connect(&path).unwrap();
        let line = Notice::ShuttingDown.to_line();
        let (first, rest) = line.as_bytes().split_at(5);
        agent.write_all(first).unwrap();
        assert_eq!(notices.take().unwrap(), []);
        agent.write_all(rest).unwrap();
        assert_eq!(notices.take().unwrap(), [Notice::ShuttingDown]);
        assert!(notices.fd().is_some());
        drop(agent);
        assert_eq!(notices.take().unwrap(), []);
        assert!(notices.fd().is_none());
    }

    #[test]
    fn a_second_connection_is_refused() {
        let (_dir, path, mut notices) = listening();
        let _agent = UnixStream::connect(&path).unwrap();
        notices.take().unwrap();
        assert!(UnixStream::connect(&path).is_err());
    }

    #[test]
    fn what_is_no_notice_or_has_no_end_is_not_listened_to() {
        for sent in [b"{\"notice\":\"rm\"}\n".to_vec(), vec![b'x'; 100 * MAX_LINE]] {
            let (_dir, path, mut notices) = listening();
            let mut agent = UnixStream::connect(&path).unwrap();
            agent.set_nonblocking(true).unwrap();
            let _ = agent.write(&sent).unwrap();
            assert!(notices.take().is_err());
            assert!(notices.fd().is_none());
        }
    }
}
