//! The socket in the guest behind which is the client's agent.

use std::io;
use std::path::{Path, PathBuf};

use rustix::rand::GetRandomFlags;
use tokio::task::JoinSet;

use super::super::channel::Login;
use super::carrier::{Carrier, Purpose};
use super::socket::SocketFile;

/// Where the socket's directory is made, as sshd does.
const PARENT: &str = "/tmp";

/// The socket of one connection, for all its sessions. Dropping it removes it; what was accepted goes on.
#[derive(Debug)]
pub(in super::super) struct AgentSocket {
    file: SocketFile,
    _accepting: JoinSet<()>,
}

impl AgentSocket {
    /// Makes a directory and a socket in it that belong to the login user alone, and accepts there.
    ///
    /// # Errors
    /// When `/tmp` is missing, or the user may not write there.
    pub(in super::super) async fn open(login: &Login, carrier: Carrier) -> io::Result<Self> {
        let name = format!("agent.{}", std::process::id());
        let (file, listener) = SocketFile::listen_in(&login.user, directory()?, &name).await?;
        let mut accepting = JoinSet::new();
        accepting.spawn(carrier.accept_unix(listener, Purpose::Agent));
        Ok(Self {
            file,
            _accepting: accepting,
        })
    }

    /// What `SSH_AUTH_SOCK` says.
    pub(in super::super) fn path(&self) -> &Path {
        self.file.path()
    }
}

/// A name that nobody can have made before.
fn directory() -> io::Result<PathBuf> {
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, GetRandomFlags::empty())?;
    Ok(Path::new(PARENT).join(format!("ssh-{:016x}", u64::from_ne_bytes(random))))
}
