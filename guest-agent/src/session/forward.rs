//! Connections that the client makes through the guest (`-L`, `-D`, `-W`).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::input::Input;
use super::outlet::Outlet;
use crate::authorized_keys::Options;

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
    pub(super) fn run(&self, stream: TcpStream) -> impl Future<Output = ()> + Send + 'static {
        let (outlet, input, closed) = (
            Arc::clone(&self.outlet),
            Arc::clone(&self.input),
            Arc::clone(&self.closed),
        );
        async move {
            let (reader, writer) = stream.into_split();
            let receive = async {
                outlet.pump_stdout(reader).await;
                outlet.end().await;
            };
            tokio::select! {
                _ = async { tokio::join!(receive, input.feed(writer)) } => outlet.close().await,
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

/// Connects to `host`, a name or an address.
///
/// # Errors
/// When the name is unknown, or nothing answers there in time.
pub(super) async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let connecting = TcpStream::connect((host, port));
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Whether a key's options let its owner connect to `host`.
pub(super) fn is_permitted(options: &Options, host: &str, port: u16) -> bool {
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
            assert_eq!(is_permitted(&options, host, port), expected, "{text} {host}:{port}");
        }
    }
}
