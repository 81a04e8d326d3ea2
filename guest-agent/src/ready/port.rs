//! Whether something listens on a TCP port, as the kernel knows it: no connection is made for it.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};

/// The sockets of either kind of address (proc_pid_net(5)).
const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];

/// `TCP_LISTEN`, as the tables have it.
const LISTEN: &str = "0A";

pub(super) fn is_listened_on(port: u16) -> io::Result<bool> {
    for table in TABLES {
        let file = match File::open(table) {
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => BufReader::new(opened?),
        };
        for line in file.lines() {
            if listening_port(&line?) == Some(port) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// The port of a line like `0: 0100007F:1F90 00000000:0000 0A ...`, if it is that of a listener.
fn listening_port(line: &str) -> Option<u16> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (_, port) = fields.next()?.rsplit_once(':')?;
    (fields.nth(1)? == LISTEN).then(|| u16::from_str_radix(port, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_port_counts_while_it_is_listened_on() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(is_listened_on(port).unwrap());
        drop(listener);
        assert!(!is_listened_on(port).unwrap());
    }
}
