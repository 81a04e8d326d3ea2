//! Listeners in the guest whose connections go to the client (`-R`), on TCP ports and Unix sockets.
//!
//! As under sshd with its default `GatewayPorts no`, TCP listeners are on the loopback addresses, whatever address the
//! client names.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::path::PathBuf;

use tokio::task::JoinSet;

use super::super::as_user;
use super::super::channel::Login;
use super::carrier::{Carrier, Purpose};
use super::socket::SocketFile;
use crate::authorized_keys::Options;
use crate::users::User;

/// Listeners that one connection may have.
const MAX_LISTENERS: usize = 64;

/// The longest name of an address or a socket, in bytes; the kernel and the resolver take less.
const MAX_NAME: usize = 1024;

/// Where a client wants to have connections accepted.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(in super::super) enum Place {
    /// An address as the client named it, and a port; 0 for any.
    Tcp(String, u16),
    /// The path of a Unix socket.
    Unix(String),
}

impl Place {
    /// Whether there can be such a place, and a key's options let its owner listen there.
    pub(in super::super) fn is_permitted(&self, options: &Options) -> bool {
        let (Self::Tcp(name, _) | Self::Unix(name)) = self;
        if name.len() > MAX_NAME {
            return false;
        }
        match self {
            Self::Tcp(host, port) => options.may_listen(host, *port),
            Self::Unix(_) => options.may_listen_on_sockets(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) => write!(formatter, "port {port} of {host:?}"),
            Self::Unix(path) => write!(formatter, "socket {path:?}"),
        }
    }
}

/// The listeners of one connection. Dropping them ends them; what was accepted goes on.
#[derive(Debug, Default)]
pub(in super::super) struct Remote {
    listeners: HashMap<Place, Listening>,
}

/// The tasks that accept, and the file to remove at the end.
#[derive(Debug)]
struct Listening {
    _accepting: JoinSet<()>,
    _file: Option<SocketFile>,
}

impl Remote {
    /// Starts to listen. Returns the port, which is chosen here if the client named none, and 0 for a Unix socket.
    ///
    /// # Errors
    /// When there are too many listeners, and as for bind(2) as the login user.
    pub(in super::super) async fn listen(&mut self, place: Place, login: &Login, carrier: Carrier) -> io::Result<u16> {
        if self.listeners.len() >= MAX_LISTENERS {
            return Err(io::Error::other(format!("there are {MAX_LISTENERS} listeners already")));
        }
        let mut accepting = JoinSet::new();
        match place {
            Place::Tcp(address, port) => {
                let (listeners, port) = bind(&login.user, addresses(&address), port).await?;
                for listener in listeners {
                    listener.set_nonblocking(true)?;
                    let listener = tokio::net::TcpListener::from_std(listener)?;
                    accepting.spawn(carrier.clone().accept_tcp(listener, address.clone(), port));
                }
                self.insert(Place::Tcp(address, port), accepting, None);
                Ok(port)
            }
            Place::Unix(path) => {
                let (file, listener) = SocketFile::listen(&login.user, PathBuf::from(&path)).await?;
                accepting.spawn(carrier.accept_unix(listener, Purpose::Unix(path.clone())));
                self.insert(Place::Unix(path), accepting, Some(file));
                Ok(0)
            }
        }
    }

    fn insert(&mut self, place: Place, accepting: JoinSet<()>, file: Option<SocketFile>) {
        let listening = Listening {
            _accepting: accepting,
            _file: file,
        };
        self.listeners.insert(place, listening);
    }

    /// Ends a listener. Returns whether there was one.
    pub(in super::super) fn cancel(&mut self, place: &Place) -> bool {
        self.listeners.remove(place).is_some()
    }
}

fn addresses(host: &str) -> Vec<IpAddr> {
    match host {
        "127.0.0.1" => vec![Ipv4Addr::LOCALHOST.into()],
        "::1" => vec![Ipv6Addr::LOCALHOST.into()],
        _ => vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()],
    }
}

/// Binds as many of the addresses as the guest has, all to one port.
async fn bind(user: &User, addresses: Vec<IpAddr>, port: u16) -> io::Result<(Vec<TcpListener>, u16)> {
    // As the user, so that the kernel decides who may have a privileged port.
    as_user::run(user, move || {
        let (mut listeners, mut port) = (Vec::new(), port);
        let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in addresses {
            match TcpListener::bind((address, port)) {
                Ok(listener) => {
                    port = listener.local_addr()?.port();
                    listeners.push(listener);
                }
                Err(error) => failure = error,
            }
        }
        if listeners.is_empty() {
            Err(failure)
        } else {
            Ok((listeners, port))
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_loopback_address_narrows_where_is_listened() {
        for host in ["", "*", "localhost", "0.0.0.0", "::", "192.0.2.1", "example.org"] {
            assert!(addresses(host).iter().all(IpAddr::is_loopback), "{host}");
            assert_eq!(addresses(host).len(), 2, "{host}");
        }
        assert_eq!(addresses("127.0.0.1"), [IpAddr::from(Ipv4Addr::LOCALHOST)]);
        assert_eq!(addresses("::1"), [IpAddr::from(Ipv6Addr::LOCALHOST)]);
    }
}
