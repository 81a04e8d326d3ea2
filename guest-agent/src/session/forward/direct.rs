//! Connections that the client makes through the guest (`-L`, `-D`, `-W`), to TCP ports and to Unix sockets.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tokio::net::TcpStream;

use super::super::as_user;
use super::super::channel::Login;
use crate::authorized_keys::Options;
use crate::net::FdStream;

/// How long a connection may take to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// Where a client wants to be connected to.
#[derive(Debug)]
pub(in super::super) enum Target {
    /// A name or an address, and a port.
    Tcp(String, u16),
    /// The path of a Unix socket.
    Unix(String),
}

impl Target {
    /// Whether a key's options let its owner connect there.
    pub(in super::super) fn is_permitted(&self, options: &Options) -> bool {
        match self {
            Self::Tcp(host, port) => options.may_connect(host, *port),
            Self::Unix(_) => options.may_connect_to_sockets(),
        }
    }

    /// Connects; to a Unix socket as the login user.
    ///
    /// # Errors
    /// When the target does not exist, or nothing answers there in time.
    pub(in super::super) async fn connect(self, login: &Login) -> io::Result<FdStream> {
        let connecting = async {
            match self {
                Self::Tcp(host, port) => {
                    let stream = TcpStream::connect((host, port)).await?;
                    stream.set_nodelay(true)?;
                    FdStream::new(stream.into_std()?.into())
                }
                Self::Unix(path) => {
                    let stream = as_user::run(&login.user, move || UnixStream::connect(path)).await?;
                    FdStream::new(stream.into())
                }
            }
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connecting).await?
    }
}
