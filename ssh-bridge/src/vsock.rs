//! Connects to a port of the guest through the Unix socket of its VMM.
//!
//! The socket speaks Firecracker's protocol: the host writes `CONNECT <port>\n`, the VMM answers `OK <hostport>\n`, and
//! from then on the stream is the guest's. Not a byte beyond the answer may be read here: it belongs to whoever gets the
//! stream.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags, recv, send};

/// The longest answer that is read, in bytes: `OK 4294967295\n` and room to show what else came.
const MAX_REPLY: usize = 64;

/// The longest path that fits `sockaddr_un.sun_path` with its terminator, in bytes (`unix(7)`).
const MAX_SUN_PATH: usize = 107;

/// Why no stream to the guest could be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// There is no socket: the sandbox does not run.
    #[error("there is no socket {}: the sandbox is not running; start it with `msb start`", path.display())]
    Absent {
        /// The socket.
        path: PathBuf,
    },
    /// Nobody listens on the socket: its VMM is gone.
    #[error("nobody listens on {}: the sandbox's process has ended; start it again with `msb start`", path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
    },
    /// The socket belongs to someone else.
    #[error("no permission to connect to {}: run as the user who started the sandbox", path.display())]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// The socket's file name does not fit a socket address, even without its directory.
    #[error("the socket's name in {} is too long for a socket address: use a shorter MSB_RUNTIME_DIR", path.display())]
    NameTooLong {
        /// The socket.
        path: PathBuf,
    },
    /// The VMM ended the stream instead of answering: nothing in the guest listens on the port.
    #[error(
        "nothing in the guest listens on port {port} ({} was closed): see `msb logs` for what the guest says",
        path.display()
    )]
    Closed {
        /// The socket.
        path: PathBuf,
        /// The guest's port.
        port: u32,
    },
    /// The guest did not take the connection in time.
    #[error(
        "the guest did not accept a connection on port {port} through {} within {} s: see `msb logs` for what it is doing",
        path.display(),
        waited.as_secs_f32()
    )]
    Deadline {
        /// The socket.
        path: PathBuf,
        /// The guest's port.
        port: u32,
        /// How long it was waited.
        waited: Duration,
    },
    /// The answer is not that of a VMM.
    #[error(
        "{} answered {reply:?} to CONNECT instead of \"OK <port>\": it is not a sandbox's vsock socket",
        path.display()
    )]
    Reply {
        /// The socket.
        path: PathBuf,
        /// What came instead, shortened.
        reply: String,
    },
    /// The system refused an operation.
    #[error("cannot {operation} {}", path.display())]
    System {
        /// What was being done.
        operation: &'static str,
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// Opens a stream to `port` of the guest whose VMM listens on `uds`, a blocking one.
///
/// # Errors
/// When the sandbox does not run, nothing in its guest listens on the port, or `deadline` passes first.
pub fn connect(uds: &Path, port: u32, deadline: Duration) -> Result<UnixStream, ConnectError> {
    let handshake = Handshake {
        path: uds,
        port,
        started: Instant::now(),
        deadline,
    };
    let stream = handshake.open()?;
    handshake.request(&stream)?;
    handshake.read_reply(&stream)?;
    handshake.set_send_timeout(&stream, None)?;
    Ok(stream)
}

struct Handshake<'a> {
    path: &'a Path,
    port: u32,
    started: Instant,
    deadline: Duration,
}

impl Handshake<'_> {
    fn open(&self) -> Result<UnixStream, ConnectError> {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

        let (directory, short) = self.short_path()?;
        let address = SocketAddrUnix::new(&short).map_err(|errno| self.system("make a socket address of", errno))?;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(|errno| self.system("create a socket for", errno))?;
        // A connect waits for room in the listener's backlog, as long as a send may wait.
        self.set_send_timeout(&socket, Some(self.remaining()?))?;
        loop {
            match connect(&socket, &address) {
                Ok(()) => break,
                Err(Errno::INTR) => self.set_send_timeout(&socket, Some(self.remaining()?))?,
                Err(errno) => return Err(self.connect_error(errno)),
            }
        }
        drop(directory);
        Ok(UnixStream::from(socket))
    }

    /// A path to the socket that fits a socket address, and what keeps it valid.
    fn short_path(&self) -> Result<(Option<std::os::fd::OwnedFd>, PathBuf), ConnectError> {
        use std::os::fd::AsRawFd;

        if self.path.as_os_str().len() <= MAX_SUN_PATH {
            return Ok((None, self.path.to_owned()));
        }
        let too_long = || ConnectError::NameTooLong {
            path: self.path.to_owned(),
        };
        let directory = self.path.parent().ok_or_else(too_long)?;
        let name = self.path.file_name().ok_or_else(too_long)?;
        let directory = rustix::fs::open(
            directory,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|errno| self.connect_error(errno))?;
        let short = Path::new("/proc/self/fd")
            .join(directory.as_raw_fd().to_string())
            .join(name);
        if short.as_os_str().len() > MAX_SUN_PATH {
            return Err(too_long());
        }
        Ok((Some(directory), short))
    }

    fn request(&self, stream: &UnixStream) -> Result<(), ConnectError> {
        let line = format!("CONNECT {}\n", self.port);
        let mut rest = line.as_bytes();
        while !rest.is_empty() {
            self.wait(stream, PollFlags::OUT)?;
            match send(stream, rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(sent) => rest = &rest[sent..],
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(self.closed()),
                Err(errno) => return Err(self.system("send CONNECT to", errno)),
            }
        }
        Ok(())
    }

    fn read_reply(&self, stream: &UnixStream) -> Result<(), ConnectError> {
        let mut reply = Vec::with_capacity(MAX_REPLY);
        while reply.last() != Some(&b'\n') && reply.len() < MAX_REPLY {
            self.wait(stream, PollFlags::IN)?;
            let mut peeked = [0; MAX_REPLY];
            let room = MAX_REPLY - reply.len();
            let seen = match recv(stream, &mut peeked[..room], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
                Ok((0, _)) | Err(Errno::CONNRESET) => return Err(self.ended(&reply)),
                Ok((seen, _)) => seen,
                Err(Errno::INTR | Errno::AGAIN) => continue,
                Err(errno) => return Err(self.system("read the answer of", errno)),
            };
            let line = peeked[..seen]
                .iter()
                .position(|&byte| byte == b'\n')
                .map_or(seen, |newline| newline + 1);
            let (taken, _) = recv(stream, &mut peeked[..line], RecvFlags::DONTWAIT)
                .map_err(|errno| self.system("read the answer of", errno))?;
            reply.extend_from_slice(&peeked[..taken]);
        }
        if is_ok(&reply) {
            Ok(())
        } else {
            Err(self.bad_reply(&reply))
        }
    }

    fn wait(&self, stream: &UnixStream, events: PollFlags) -> Result<(), ConnectError> {
        loop {
            let timeout = Timespec::try_from(self.remaining()?).unwrap_or(Timespec {
                tv_sec: i64::MAX,
                tv_nsec: 0,
            });
            match poll(&mut [PollFd::new(stream, events)], Some(&timeout)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(self.system("wait for", errno)),
            }
        }
    }

    fn remaining(&self) -> Result<Duration, ConnectError> {
        match self.deadline.checked_sub(self.started.elapsed()) {
            Some(remaining) if !remaining.is_zero() => Ok(remaining),
            _ => Err(self.late()),
        }
    }

    fn set_send_timeout(&self, socket: impl AsFd, timeout: Option<Duration>) -> Result<(), ConnectError> {
        set_socket_timeout(socket, Timeout::Send, timeout).map_err(|errno| self.system("set a timeout on", errno))
    }

    fn connect_error(&self, errno: Errno) -> ConnectError {
        let path = self.path.to_owned();
        match errno {
            Errno::NOENT | Errno::NOTDIR => ConnectError::Absent { path },
            Errno::CONNREFUSED => ConnectError::Refused { path },
            Errno::ACCESS | Errno::PERM => ConnectError::Denied { path },
            Errno::AGAIN => self.late(),
            errno => self.system("connect to", errno),
        }
    }

    fn late(&self) -> ConnectError {
        ConnectError::Deadline {
            path: self.path.to_owned(),
            port: self.port,
            waited: self.deadline,
        }
    }

    fn closed(&self) -> ConnectError {
        ConnectError::Closed {
            path: self.path.to_owned(),
            port: self.port,
        }
    }

    fn ended(&self, reply: &[u8]) -> ConnectError {
        if reply.is_empty() {
            self.closed()
        } else {
            self.bad_reply(reply)
        }
    }

    fn bad_reply(&self, reply: &[u8]) -> ConnectError {
        ConnectError::Reply {
            path: self.path.to_owned(),
            reply: String::from_utf8_lossy(reply).into_owned(),
        }
    }

    fn system(&self, operation: &'static str, errno: Errno) -> ConnectError {
        ConnectError::System {
            operation,
            path: self.path.to_owned(),
            source: errno.into(),
        }
    }
}

fn is_ok(reply: &[u8]) -> bool {
    let port = reply.strip_prefix(b"OK ").and_then(|rest| rest.strip_suffix(b"\n"));
    port.and_then(|port| std::str::from_utf8(port).ok())
        .is_some_and(|port| port.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    /// Serves one connection on a fresh socket with `serve`, and returns what `connect` made of it.
    fn against(serve: impl FnOnce(UnixStream) + Send + 'static) -> Result<UnixStream, ConnectError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || serve(listener.accept().unwrap().0));
        let result = connect(&path, 22, LONG);
        server.join().unwrap();
        result
    }

    fn read_line(stream: &mut UnixStream) -> Vec<u8> {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        line
    }

    #[test]
    fn bytes_behind_the_answer_stay_in_the_stream() {
        let mut stream = against(|mut guest| {
            assert_eq!(read_line(&mut guest), b"CONNECT 22\n");
            guest.write_all(b"OK 1073741824\nSSH-2.0-guest\r\n").unwrap();
        })
        .unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"SSH-2.0-guest\r\n");
    }

    #[test]
    fn an_answer_in_pieces_is_understood() {
        let mut stream = against(|mut guest| {
            read_line(&mut guest);
            for byte in b"OK 5\nx" {
                guest.write_all(&[*byte]).unwrap();
            }
        })
        .unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"x");
    }

    #[test]
    fn a_close_without_an_answer_means_that_the_guest_does_not_listen() {
        let error = against(|mut guest| drop(read_line(&mut guest))).unwrap_err();
        assert!(matches!(error, ConnectError::Closed { port: 22, .. }), "{error}");
        let error = against(drop).unwrap_err();
        assert!(matches!(error, ConnectError::Closed { port: 22, .. }), "{error}");
    }

    #[test]
    fn any_other_answer_is_refused_with_its_text() {
        for answer in [
            &b"SSH-2.0-OpenSSH_9.2\r\n"[..],
            b"OK \n",
            b"OK 4294967296\n",
            b"OK 5",
            &[b'x'; 100],
        ] {
            let error = against(move |mut guest| {
                read_line(&mut guest);
                guest.write_all(answer).unwrap();
            })
            .unwrap_err();
            let ConnectError::Reply { reply, .. } = error else {
                panic!("{error}")
            };
            assert!(answer.starts_with(reply.as_bytes()) && reply.len() <= MAX_REPLY);
        }
    }

    #[test]
    fn silence_ends_at_the_deadline() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        let error = connect(&path, 22, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, ConnectError::Deadline { .. }), "{error}");
    }

    #[test]
    fn an_absent_socket_and_one_without_a_listener_differ() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v.sock");
        let error = connect(&path, 22, LONG).unwrap_err();
        assert!(matches!(error, ConnectError::Absent { .. }), "{error}");
        drop(UnixListener::bind(&path).unwrap());
        let error = connect(&path, 22, LONG).unwrap_err();
        assert!(matches!(error, ConnectError::Refused { .. }), "{error}");
    }

    #[test]
    fn a_path_beyond_sun_path_is_reached_through_its_directory() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let short = directory.path().join("v.sock");
        let listener = UnixListener::bind(&short).unwrap();
        let path = deep.join("v.sock");
        std::fs::rename(short, &path).unwrap();
        let server = thread::spawn(move || listener.accept().unwrap().0.write_all(b"OK 5\n").unwrap());
        assert!(connect(&path, 22, LONG).is_ok());
        server.join().unwrap();

        let error = connect(&deep.join("s".repeat(120)), 22, LONG).unwrap_err();
        assert!(matches!(error, ConnectError::NameTooLong { .. }), "{error}");
    }
}
