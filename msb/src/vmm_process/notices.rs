//! The agent's notices: one connection of the guest, bounded lines.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use msb_protocol::notice::{MAX_LINE, Notice, NoticeError, NoticeReader};

/// How long the agent may take for a message that its socket does not hold.
const SEND_TIMEOUT: Duration = Duration::from_secs(2);

/// The first connection is the agent's: it connects before anything else in the guest runs.
#[derive(Debug)]
pub(super) struct Notices {
    path: PathBuf,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Listening(UnixListener),
    Connected { agent: UnixStream, reader: NoticeReader },
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

    /// Takes some of what has come, without waiting: the guest may write for ever. Returns the notices that are whole by
    /// now; nothing when nothing had come.
    ///
    /// # Errors
    /// When something else came; nothing is listened to any more then.
    pub(super) fn take(&mut self) -> Result<Option<Vec<Notice>>, NoticesError> {
        let taken = self.accept_and_read();
        if taken.is_err() {
            self.source = Source::Ended;
        }
        taken
    }

    /// Sends the agent `message`, which it waits for.
    ///
    /// # Errors
    /// When there is no agent, or it does not read.
    pub(super) fn send(&mut self, message: &[u8]) -> io::Result<()> {
        let Source::Connected { agent, .. } = &mut self.source else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        agent.set_nonblocking(false)?;
        agent.set_write_timeout(Some(SEND_TIMEOUT))?;
        let sent = agent.write_all(message);
        agent.set_nonblocking(true)?;
        sent
    }

    fn accept_and_read(&mut self) -> Result<Option<Vec<Notice>>, NoticesError> {
        if let Source::Listening(listener) = &self.source {
            let agent = match listener.accept() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                result => result?.0,
            };
            agent.set_nonblocking(true)?;
            self.source = Source::Connected {
                agent,
                reader: NoticeReader::default(),
            };
            // Whatever else connects is refused from here on.
            let _ = std::fs::remove_file(&self.path);
        }
        let Source::Connected { agent, reader } = &mut self.source else {
            return Ok(None);
        };
        let mut buffer = [0; MAX_LINE];
        match agent.read(&mut buffer) {
            Ok(0) => {
                self.source = Source::Ended;
                Ok(None)
            }
            Ok(read) => Ok(Some(reader.push(&buffer[..read])?)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listening() -> (tempfile::TempDir, PathBuf, Notices) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock_1024");
        let notices = Notices::listen(&path).unwrap();
        (dir, path, notices)
    }

    #[test]
    fn notices_arrive_whole_and_end_with_the_agent() {
        let (_dir, path, mut notices) = listening();
        assert_eq!(notices.take().unwrap(), None);
        let mut agent = UnixStream::connect(&path).unwrap();
        let line = Notice::ShuttingDown.to_line();
        let (first, rest) = line.as_bytes().split_at(5);
        agent.write_all(first).unwrap();
        assert_eq!(notices.take().unwrap(), Some(vec![]));
        agent.write_all(rest).unwrap();
        assert_eq!(notices.take().unwrap(), Some(vec![Notice::ShuttingDown]));
        assert!(notices.fd().is_some());
        drop(agent);
        assert_eq!(notices.take().unwrap(), None);
        assert!(notices.fd().is_none());
    }

    #[test]
    fn what_an_agent_does_not_read_holds_nobody_for_long() {
        let (_dir, path, mut notices) = listening();
        assert!(notices.send(b"nobody").is_err());
        let mut agent = UnixStream::connect(&path).unwrap();
        notices.take().unwrap();
        notices.send(b"hello").unwrap();
        agent.read_exact(&mut [0; 5]).unwrap();
        assert!(notices.send(&vec![0; 8 << 20]).is_err());
        assert_eq!(notices.take().unwrap(), None, "nor does what it does not say");
    }

    #[test]
    fn a_second_connection_is_refused() {
        let (_dir, path, mut notices) = listening();
        let _agent = UnixStream::connect(&path).unwrap();
        notices.take().unwrap();
        assert!(UnixStream::connect(&path).is_err());
    }

    #[test]
    fn a_flood_is_taken_in_bounded_pieces() {
        let (_dir, path, mut notices) = listening();
        let mut agent = UnixStream::connect(&path).unwrap();
        let line = Notice::ShuttingDown.to_line();
        agent.write_all(line.repeat(1000).as_bytes()).unwrap();
        let mut total = 0;
        while let Some(taken) = notices.take().unwrap() {
            assert!(taken.len() <= MAX_LINE / line.len() + 1, "{} at once", taken.len());
            total += taken.len();
        }
        assert_eq!(total, 1000);
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
