//! The `known_hosts` file that pins the host key of each sandbox before its first boot.
//!
//! A line names a sandbox by all the names ssh may be given, `demo.msb,0123456789ab.msb`: a wildcard `Host` block
//! cannot map one name to another. Lines of other hosts are kept byte for byte.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use russh::keys::PublicKey;

use crate::atomic;

/// Why the file could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum KnownHostsError {
    /// A host name has characters that mean something else in the file.
    #[error("{host:?} cannot stand in known_hosts: a host name has only letters, digits, '-', '_', '.' and ':'")]
    Host {
        /// The name.
        host: String,
    },
    /// No host was named.
    #[error("a line of known_hosts needs a host")]
    NoHost,
    /// The file could not be locked, read or written.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// What was being done.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// The line that pins `key` for `hosts`, with its newline.
///
/// # Errors
/// When there is no host, or a name would not stand for itself.
pub fn line(hosts: &[&str], key: &PublicKey) -> Result<String, KnownHostsError> {
    if hosts.is_empty() {
        return Err(KnownHostsError::NoHost);
    }
    for host in hosts {
        check(host)?;
    }
    let key = crate::keys::public_line(key);
    let fields: Vec<_> = key.split(' ').take(2).collect();
    Ok(format!("{} {}\n", hosts.join(","), fields.join(" ")))
}

/// Pins `key` for `hosts` in the file at `path`, instead of whatever lines named one of them.
///
/// Lines of other hosts survive a power cut. The new line does for certain once somebody had the file written to the disk.
///
/// # Errors
/// When a host is no host name, or the file cannot be changed.
pub fn add(path: &Path, hosts: &[&str], key: &PublicKey) -> Result<(), KnownHostsError> {
    let added = line(hosts, key)?;
    update(path, |old| {
        let mut new = without(old, hosts);
        if new.last().is_some_and(|&byte| byte != b'\n') {
            new.push(b'\n');
        }
        new.extend_from_slice(added.as_bytes());
        new
    })
}

/// Removes the lines that name one of `hosts` from the file at `path`. Without such a line nothing changes.
///
/// Lines of other hosts survive a power cut; those that were removed may, too.
///
/// # Errors
/// When the file cannot be changed.
pub fn remove(path: &Path, hosts: &[&str]) -> Result<(), KnownHostsError> {
    update(path, |old| without(old, hosts))
}

fn check(host: &str) -> Result<(), KnownHostsError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    if !host.is_empty() && host.bytes().all(plain) {
        return Ok(());
    }
    Err(KnownHostsError::Host { host: host.to_owned() })
}

fn without(content: &[u8], hosts: &[&str]) -> Vec<u8> {
    let kept = content
        .split_inclusive(|&byte| byte == b'\n')
        .filter(|line| !names_one_of(line, hosts));
    kept.flatten().copied().collect()
}

/// Whether the first field of `line` lists one of `hosts`. Hashed names and lines with a marker are not ours.
fn names_one_of(line: &[u8], hosts: &[&str]) -> bool {
    let field = line.split(u8::is_ascii_whitespace).next().unwrap_or_default();
    field
        .split(|&byte| byte == b',')
        .any(|name| hosts.iter().any(|host| name.eq_ignore_ascii_case(host.as_bytes())))
}

fn update(path: &Path, change: impl FnOnce(&[u8]) -> Vec<u8>) -> Result<(), KnownHostsError> {
    let error = |operation| {
        move |source| KnownHostsError::File {
            operation,
            path: path.to_owned(),
            source,
        }
    };
    let mut lock = OsString::from(path);
    lock.push(".lock");
    let _lock = atomic::lock(Path::new(&lock)).map_err(error("lock"))?;
    let old = atomic::read(path).map_err(error("read"))?.unwrap_or_default();
    let new = change(&old);
    // Most sandboxes come and go at the end of the file, where no other line is touched and nobody has to wait for a disk.
    let written = if let Some(added) = new.strip_prefix(&old[..]) {
        match added {
            [] => Ok(()),
            added => atomic::append(path, 0o600, old.len(), added),
        }
    } else if old.starts_with(&new) {
        atomic::cut(path, new.len())
    } else {
        atomic::replace_keeping_mode(path, 0o600, &new)
    };
    written.map_err(error("write"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::keys::KeyPair;

    fn found(path: &Path, host: &str) -> Option<String> {
        let output = Command::new("ssh-keygen")
            .args(["-F", host, "-f"])
            .arg(path)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        output
            .status
            .success()
            .then(|| text.lines().find(|line| !line.starts_with('#')).unwrap().to_owned())
    }

    fn key() -> KeyPair {
        KeyPair::generate_ed25519("a comment").unwrap()
    }

    #[test]
    fn openssh_finds_the_key_under_each_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("known_hosts");
        let pair = key();
        add(&path, &["demo.msb", "0123456789ab.msb"], pair.public_key()).unwrap();
        for host in ["demo.msb", "0123456789ab.msb"] {
            let line = found(&path, host).unwrap();
            assert!(line.ends_with(&pair.public_line().replace(" a comment", "")), "{line}");
        }
        assert_eq!(found(&path, "other.msb"), None);
    }

    #[test]
    fn a_name_has_one_key_and_foreign_lines_stay_as_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("known_hosts");
        let foreign = "# mine\n\n@cert-authority *.example ssh-rsa AAAA\n|1|abc=|def= ssh-ed25519 AAAA\nodd";
        std::fs::write(&path, foreign).unwrap();
        let (old, new) = (key(), key());
        add(&path, &["demo.msb", "1.msb"], old.public_key()).unwrap();
        add(&path, &["demo.msb", "2.msb"], new.public_key()).unwrap();

        let expected = format!("{foreign}\n{}", line(&["demo.msb", "2.msb"], new.public_key()).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
        remove(&path, &["2.msb"]).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{foreign}\n"));
    }

    #[test]
    fn the_last_line_comes_and_goes_in_place() {
        use std::os::unix::fs::MetadataExt as _;

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("known_hosts");
        let (first, second) = (key(), key());
        add(&path, &["1.msb"], first.public_key()).unwrap();
        let alone = std::fs::read(&path).unwrap();
        let inode = || std::fs::metadata(&path).unwrap().ino();
        let before = inode();
        add(&path, &["2.msb"], second.public_key()).unwrap();
        remove(&path, &["2.msb"]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), alone);
        assert_eq!(inode(), before);

        add(&path, &["2.msb"], second.public_key()).unwrap();
        remove(&path, &["1.msb"]).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            line(&["2.msb"], second.public_key()).unwrap()
        );
    }

    #[test]
    fn writers_at_once_lose_no_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("known_hosts");
        let public = key().public_key().clone();
        std::thread::scope(|scope| {
            for index in 0..8 {
                let (path, public) = (&path, &public);
                scope.spawn(move || add(path, &[&format!("box{index}.msb")], public).unwrap());
            }
        });
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 8);
    }

    #[test]
    fn a_name_that_means_something_else_is_refused() {
        for host in ["", "*.msb", "a b", "a,b", "!a", "|1|x", "a\nb", "@revoked", "[a]"] {
            assert!(
                matches!(line(&[host], key().public_key()), Err(KnownHostsError::Host { .. })),
                "{host:?}"
            );
        }
        assert!(matches!(line(&[], key().public_key()), Err(KnownHostsError::NoHost)));
    }

    #[test]
    fn removing_from_nothing_makes_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("known_hosts");
        remove(&path, &["demo.msb"]).unwrap();
        assert!(!path.exists());
    }
}
