//! Where keepers are found: `DIRECTORY/UID/PID`, a socket each. The directory of a user is the user's alone, so the kernel
//! decides who may talk to whose keepers; root may to all.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// How long a keeper may take to answer. It never waits for anything itself, but may be stopped or no keeper at all.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where keepers are found unless an option says otherwise: for root's agent in a guest, or for a user's own.
pub(crate) fn default_directory() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return "/run/msb-agent/processes".into();
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(runtime) => PathBuf::from(runtime).join("msb-agent/processes"),
        None => std::env::temp_dir().join(format!("msb-agent-{}/processes", rustix::process::geteuid().as_raw())),
    }
}

/// Makes the directory of a user, as root or as that user.
///
/// # Errors
/// When it cannot be made, or is another user's.
pub(crate) fn prepare(directory: &Path, uid: u32, gid: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    let own = directory.join(uid.to_string());
    match DirBuilder::new().mode(0o700).create(&own) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => {
            made?;
            chown(&own, Some(uid), Some(gid))?;
            fs::set_permissions(&own, Permissions::from_mode(0o700))?;
        }
    }
    if is_of(&own, uid)? {
        Ok(())
    } else {
        Err(io::Error::other(format!("{} is not user {uid}'s", own.display())))
    }
}

fn is_of(directory: &Path, uid: u32) -> io::Result<bool> {
    let metadata = fs::symlink_metadata(directory)?;
    Ok(metadata.is_dir() && metadata.uid() == uid)
}

/// The socket of the keeper of a process.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Place {
    pub(super) uid: u32,
    pub(super) pid: u32,
    path: PathBuf,
}

impl Place {
    /// That of a process of this user.
    pub(super) fn own(directory: &Path, pid: u32) -> Self {
        Self::new(directory, rustix::process::geteuid().as_raw(), pid)
    }

    fn new(directory: &Path, uid: u32, pid: u32) -> Self {
        let path = directory.join(uid.to_string()).join(pid.to_string());
        Self { uid, pid, path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// All that this process may look at, this user's first.
    pub(super) fn all(directory: &Path) -> Vec<Self> {
        let me = rustix::process::geteuid();
        let mut uids = vec![me.as_raw()];
        if me.is_root() {
            uids.extend(numbers_in(directory).into_iter().filter(|&uid| uid != me.as_raw()));
        }
        let sound = |uid: &u32| is_of(&directory.join(uid.to_string()), *uid).unwrap_or(false);
        uids.into_iter()
            .filter(sound)
            .flat_map(|uid| {
                let mut pids = numbers_in(&directory.join(uid.to_string()));
                pids.sort_unstable();
                pids.into_iter().map(move |pid| Self::new(directory, uid, pid))
            })
            .collect()
    }

    /// Connects to the keeper. One that is gone has its socket removed.
    ///
    /// # Errors
    /// When there is none, or whoever answers is not of the user whose directory it is in.
    pub(super) fn connect(&self) -> io::Result<OwnedFd> {
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        for timeout in [Timeout::Send, Timeout::Recv] {
            sockopt::set_socket_timeout(&socket, timeout, Some(PATIENCE))?;
        }
        if let Err(error) = rustix::net::connect(&socket, &SocketAddrUnix::new(&self.path)?) {
            if error == rustix::io::Errno::CONNREFUSED {
                let _ = fs::remove_file(&self.path);
            }
            return Err(error.into());
        }
        let peer = sockopt::socket_peercred(&socket)?;
        if peer.uid.as_raw() != self.uid {
            return Err(io::Error::other("the keeper's socket is another user's"));
        }
        Ok(socket)
    }
}

fn numbers_in(directory: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    entries.flatten().filter_map(number).collect()
}
