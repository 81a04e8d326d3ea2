//! Whether an HTTP server of the guest answers. Only the status is read, so that the smallest of clients will do.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// How long a server may take to accept a connection, and to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Where the digits of the status are in an answer: behind `HTTP/1.1 `.
const STATUS: std::ops::Range<usize> = 9..12;

/// Why a URL is not tried.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum UrlError {
    /// It is of another kind.
    #[error("cannot wait for {0:?}: a URL to wait for begins with http:// and has no blanks")]
    Scheme(String),
    /// The host is another one.
    #[error("cannot wait for {0:?}: a guest has no network but its own, so the host is localhost or an address")]
    Host(String),
}

#[derive(Debug, Eq, PartialEq)]
pub(super) struct Url {
    /// What is tried, one after the other.
    addresses: Vec<SocketAddr>,
    request: String,
}

impl Url {
    pub(super) fn parse(url: &str) -> Result<Self, UrlError> {
        let is_plain = url.chars().all(|c| !c.is_whitespace() && !c.is_control());
        let rest = url.strip_prefix("http://").filter(|_| is_plain);
        let rest = rest.ok_or_else(|| UrlError::Scheme(url.into()))?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (host, path) = rest.split_at(end);
        let path = path.split('#').next().unwrap_or_default();
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(Self {
            addresses: addresses(host).ok_or_else(|| UrlError::Host(url.into()))?,
            request: format!("GET {slash}{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
        })
    }

    /// Whether it answers with a status below 400.
    pub(super) fn answers(&self) -> bool {
        let status = |address| self.status(address).ok().flatten();
        self.addresses
            .iter()
            .find_map(status)
            .is_some_and(|status| status < 400)
    }

    fn status(&self, address: &SocketAddr) -> io::Result<Option<u16>> {
        let mut stream = TcpStream::connect_timeout(address, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        stream.write_all(self.request.as_bytes())?;
        let mut answer = [0; STATUS.end];
        stream.read_exact(&mut answer)?;
        let digits = answer
            .starts_with(b"HTTP/1.")
            .then(|| std::str::from_utf8(&answer[STATUS]));
        Ok(digits.and_then(Result::ok).and_then(|digits| digits.parse().ok()))
    }
}

/// Of a host with or without a port.
fn addresses(host: &str) -> Option<Vec<SocketAddr>> {
    let (name, port) = match host.rsplit_once(':') {
        // The colon of an IPv6 address is in brackets.
        Some((name, port)) if !port.ends_with(']') => (name, port.parse().ok()?),
        _ => (host, 80),
    };
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    let addresses = match bare.unwrap_or(name).parse() {
        Ok(address) => vec![address],
        Err(_) if name == "localhost" => vec![IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()],
        Err(_) => return None,
    };
    Some(
        addresses
            .into_iter()
            .map(|address| SocketAddr::new(address, port))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn hosts_and_paths_are_taken_apart_and_others_than_the_guest_refused() {
        let parsed = |url: &str| Url::parse(url).unwrap();
        let local = parsed("http://localhost:8080/a?b#c");
        assert_eq!(
            local.addresses,
            ["127.0.0.1:8080".parse().unwrap(), "[::1]:8080".parse().unwrap()]
        );
        assert!(
            local
                .request
                .starts_with("GET /a?b HTTP/1.1\r\nHost: localhost:8080\r\n")
        );
        assert_eq!(parsed("http://[::1]").addresses, ["[::1]:80".parse().unwrap()]);
        assert!(parsed("http://127.0.0.1?x").request.starts_with("GET /?x "));
        for bad in [
            "https://localhost",
            "http://localhost/a b",
            "http://example.org",
            "http://localhost:x",
            "http://",
        ] {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_an_answer_that_says_so_is_one() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = Url::parse(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\n\r\n", true),
            ("HTTP/1.0 302 Found\r\n\r\n", true),
            ("HTTP/1.1 503 Busy\r\n\r\n", false),
            ("SSH-2.0-server\r\n", false),
            ("", false),
        ] {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let (mut stream, _) = listener.accept().unwrap();
                    let _ = stream.read(&mut [0; 1024]);
                    stream.write_all(answer.as_bytes()).unwrap();
                });
                assert_eq!(url.answers(), expected, "{answer}");
            });
        }
        drop(listener);
        assert!(!url.answers(), "nobody listens");
    }
}
