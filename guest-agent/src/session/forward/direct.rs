//! Connections that the client makes through the guest (`-L`, `-D`, `-W`), to TCP ports and to Unix sockets.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tokio::net::TcpSocket;

use super::super::as_user;
use super::super::channel::Login;
use crate::authorized_keys::Options;
use crate::net::FdStream;
use crate::users::User;

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

    /// Connects as the login user, so that what asks or filters by user sees that one.
    ///
    /// # Errors
    /// When the target does not exist, or nothing answers there in time.
    pub(in super::super) async fn connect(self, login: &Login) -> io::Result<FdStream> {
        let connecting = async {
            match self {
                Self::Tcp(host, port) => connect_tcp(&login.user, &host, port).await,
                Self::Unix(path) => {
                    let stream = as_user::run(&login.user, move || UnixStream::connect(path)).await?;
                    FdStream::new(stream.into())
                }
            }
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connecting).await?
    }
}

/// Tries the addresses of a host in their order.
async fn connect_tcp(user: &User, host: &str, port: u16) -> io::Result<FdStream> {
    let mut failure = io::Error::from(io::ErrorKind::NotFound);
    for address in tokio::net::lookup_host((host, port)).await? {
        // The user of a connection is that of its socket's making.
        let make = if address.is_ipv4() {
            TcpSocket::new_v4
        } else {
            TcpSocket::new_v6
        };
        let socket = as_user::run(user, make).await?;
        match socket.connect(address).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return FdStream::new(stream.into_std()?.into());
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}
