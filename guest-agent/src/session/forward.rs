//! Connections that the client makes through the guest (`-L`, `-D`, `-W`), to TCP ports and to Unix sockets.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::as_user;
use super::channel::Login;
use super::input::Input;
use super::outlet::Outlet;
use crate::authorized_keys::Options;
use crate::net::FdStream;

/// How long a connection may take to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// One forwarded connection, from the moment it is asked for.
#[derive(Debug)]
pub(super) struct Forward {
    outlet: Arc<Outlet>,
    input: Arc<Input>,
    closed: Arc<Notify>,
}

impl Forward {
    pub(super) fn new(outlet: Outlet, input: Input) -> Self {
        Self {
            outlet: Arc::new(outlet),
            input: Arc::new(input),
            closed: Arc::new(Notify::new()),
        }
    }

    pub(super) fn input(&self) -> &Input {
        &self.input
    }

    /// Moves data until both directions have ended, each by itself, or the client closed the channel.
    pub(super) fn run(&self, stream: FdStream) -> impl Future<Output = ()> + Send + 'static {
        let (outlet, input, closed) = (
            Arc::clone(&self.outlet),
            Arc::clone(&self.input),
            Arc::clone(&self.closed),
        );
        async move {
            let receive = async {
                outlet.pump_stdout(stream.clone()).await;
                outlet.end().await;
            };
            tokio::select! {
                _ = async { tokio::join!(receive, input.feed(stream.clone())) } => outlet.close().await,
                () = closed.notified() => {}
            }
        }
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.input.refuse();
        self.closed.notify_one();
    }
}

/// Where a client wants to be connected to.
#[derive(Debug)]
pub(super) enum Target {
    /// A name or an address, and a port.
    Tcp(String, u16),
    /// The path of a Unix socket.
    Unix(String),
}

impl Target {
    /// Whether a key's options let its owner connect there.
    pub(super) fn is_permitted(&self, options: &Options) -> bool {
        match self {
            Self::Tcp(host, port) => is_tcp_permitted(options, host, *port),
            // Rules about ports say nothing of sockets, so they permit none.
            Self::Unix(_) => options.port_forwarding && options.permit_open.is_empty(),
        }
    }

    /// Connects; to a Unix socket with the rights of the login user.
    ///
    /// # Errors
    /// When the target does not exist, or nothing answers there in time.
    pub(super) async fn connect(self, login: &Login) -> io::Result<FdStream> {
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

fn is_tcp_permitted(options: &Options, host: &str, port: u16) -> bool {
    let permitted = |rule: &String| {
        rule.rsplit_once(':').is_some_and(|(rule_host, rule_port)| {
            let rule_host = rule_host.trim_start_matches('[').trim_end_matches(']');
            let port_fits = rule_port == "*" || rule_port.parse() == Ok(port);
            port_fits && (rule_host == "*" || rule_host.eq_ignore_ascii_case(host))
        })
    };
    options.port_forwarding && (options.permit_open.is_empty() || options.permit_open.iter().any(permitted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_connects_only_where_its_options_let_it() {
        let cases = [
            ("no-pty", "example.org", 22, true),
            ("restrict", "localhost", 80, false),
            (r#"permitopen="localhost:80""#, "localhost", 80, true),
            (r#"permitopen="localhost:80""#, "localhost", 81, false),
            (r#"permitopen="localhost:80""#, "127.0.0.1", 80, false),
            (r#"permitopen="[::1]:*",permitopen="*:53""#, "::1", 7, true),
            (r#"permitopen="[::1]:*",permitopen="*:53""#, "dns.example", 53, true),
        ];
        for (text, host, port, expected) in cases {
            let options = Options::parse(text).unwrap();
            assert_eq!(is_tcp_permitted(&options, host, port), expected, "{text} {host}:{port}");
        }
    }
}
