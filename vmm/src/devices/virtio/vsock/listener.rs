//! The Unix socket that clients connect to, and those that the guest connects to.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// The longest path that `sun_path` takes, its final zero left out.
const MAX_SUN_PATH: usize = 107;

/// The longest suffix of a socket that the guest connects to: `_4294967295`.
const MAX_SUFFIX: usize = 11;

/// Connections that may wait for the device: a burst of clients while the event loop is busy.
const BACKLOG: i32 = 128;

/// Why there is no listening socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The path does not fit into a socket address, or would not with the port of an outgoing connection behind it.
    #[error(
        "the vsock socket path {path} has {len} bytes, at most {max} fit into a socket address: \
         choose a shorter directory",
        max = MAX_SUN_PATH - MAX_SUFFIX
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        len: usize,
    },
    /// Something is at the path already.
    #[error("{path} exists already: remove it if no other VM uses it")]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot listen on {path}")]
    Listen {
        /// The path.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
}

/// The listening socket. Dropping it removes the file if this device made it and it is still the same.
#[derive(Debug)]
pub(super) struct Listener {
    socket: UnixListener,
    _file: Option<SocketFile>,
    path: PathBuf,
}

#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    dev: u64,
    ino: u64,
}

impl Listener {
    /// Makes the socket file with mode 0600 and listens on it.
    pub(super) fn bind(path: &Path) -> Result<Self, ListenError> {
        check_length(path)?;
        let socket = listen(path).map_err(|error| match error {
            rustix::io::Errno::ADDRINUSE => ListenError::InUse { path: path.into() },
            error => ListenError::Listen {
                path: path.into(),
                source: error.into(),
            },
        })?;
        let file = fs::symlink_metadata(path).ok().map(|meta| SocketFile {
            path: path.into(),
            dev: meta.dev(),
            ino: meta.ino(),
        });
        Ok(Self {
            socket,
            _file: file,
            path: path.into(),
        })
    }

    /// Listens on a socket that is bound to `path` already; its file stays.
    pub(super) fn adopt(socket: UnixListener, path: &Path) -> Result<Self, ListenError> {
        check_length(path)?;
        socket.set_nonblocking(true).map_err(|source| ListenError::Listen {
            path: path.into(),
            source,
        })?;
        Ok(Self {
            socket,
            _file: None,
            path: path.into(),
        })
    }

    /// The next client; its socket does not block.
    pub(super) fn accept(&self) -> io::Result<UnixStream> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Ok(rustix::net::accept_with(&self.socket, flags)?.into())
    }

    /// Connects to the host's socket for a port of the guest's choice, without blocking.
    ///
    /// # Errors
    /// When nobody listens there, or the listener's backlog is full.
    pub(super) fn connect_out(&self, port: u32) -> io::Result<UnixStream> {
        let mut path: OsString = self.path.clone().into();
        path.push(format!("_{port}"));
        let socket = unix_socket()?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(&path)?)?;
        Ok(socket.into())
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_same =
            fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == (self.dev, self.ino));
        if is_same && let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!("cannot remove {}: {error}", self.path.display());
        }
    }
}

fn check_length(path: &Path) -> Result<(), ListenError> {
    let len = path.as_os_str().len();
    if len > MAX_SUN_PATH - MAX_SUFFIX {
        return Err(ListenError::PathTooLong { path: path.into(), len });
    }
    Ok(())
}

fn unix_socket() -> rustix::io::Result<std::os::fd::OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

fn listen(path: &Path) -> rustix::io::Result<UnixListener> {
    let socket = unix_socket()?;
    // The file gets the mode of the unbound socket: it never has a wider one.
    rustix::fs::fchmod(&socket, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_socket_is_for_its_owner_alone_and_goes_with_the_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(Listener::bind(&path), Err(ListenError::InUse { .. })));
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_of_another_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let first = Listener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = Listener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());

        let adopted_path = dir.path().join("a.sock");
        drop(Listener::adopt(UnixListener::bind(&adopted_path).unwrap(), &adopted_path).unwrap());
        assert!(adopted_path.exists());
    }

    #[test]
    fn a_path_without_room_for_a_port_is_refused() {
        let path = PathBuf::from(format!("/{}", "x".repeat(96)));
        assert!(matches!(
            Listener::bind(&path),
            Err(ListenError::PathTooLong { len: 97, .. })
        ));
    }
}
