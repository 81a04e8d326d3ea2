//! `authorized_keys` in sshd's syntax: optional options, key type, base64 key, comment.
//!
//! A key whose options cannot be enforced here is refused, never admitted with more than its line allows. A bad line
//! spoils only itself.

use std::time::SystemTime;

use russh::keys::ssh_key::public::KeyData;
use russh::keys::{Algorithm, Certificate, PublicKey};

mod certificate;
mod options;
mod own;
mod permit;

pub use options::{OptionError, Options};
pub use own::read as read_own;

/// Lines beyond this many are not read: each one costs time at every login.
const MAX_LINES: usize = 10_000;

/// The keys that may log in.
#[derive(Debug, Default)]
pub struct AuthorizedKeys {
    entries: Vec<Entry>,
    refused: Vec<Refused>,
}

/// One admitted key.
#[derive(Debug)]
struct Entry {
    key: KeyData,
    options: Options,
}

/// A line that admits no key.
#[derive(Debug)]
pub struct Refused {
    /// Line number, from 1.
    pub line: usize,
    /// Why.
    pub reason: LineError,
}

/// Why a line admits no key.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The options in front of the key.
    #[error("its options do not hold")]
    Options(#[from] OptionError),
    /// No key, or not in the OpenSSH format.
    #[error("it holds no public key in OpenSSH format")]
    Key(#[source] russh::keys::ssh_key::Error),
    /// A FIDO key whose attestation would have to be seen.
    #[error("what a FIDO key attests cannot be checked: give it the option no-touch-required")]
    Attestation,
    /// A key that cannot be checked as sshd would.
    #[error("keys of type {0} are not supported")]
    Unsupported(String),
    /// Not text.
    #[error("it is not UTF-8")]
    NotText,
}

impl AuthorizedKeys {
    /// Reads a whole file.
    pub fn parse(contents: &[u8]) -> Self {
        let mut keys = Self::default();
        for (index, line) in contents.split(|&byte| byte == b'\n').take(MAX_LINES).enumerate() {
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            match parse_line(line) {
                Ok(entry) => keys.entries.push(entry),
                Err(reason) => keys.refused.push(Refused {
                    line: index + 1,
                    reason,
                }),
            }
        }
        keys
    }

    /// What `key` may do, if it may log in now.
    pub fn find(&self, key: &PublicKey, now: SystemTime) -> Option<&Options> {
        let mut entries = self.matching(key.key_data(), now);
        entries.find(|options| !options.is_authority())
    }

    /// What the owner of `certificate` may do, if it may log in now as `user`. Who calls this has verified that its
    /// authority signed it and that the client has its key.
    pub fn find_certificate(&self, certificate: &Certificate, user: &str, now: SystemTime) -> Option<Options> {
        let mut entries = self.matching(certificate.signature_key(), now);
        entries.find_map(|options| {
            let permitted = certificate::permits(certificate, &options.principals(user), now)?;
            let narrowed = options.is_authority().then(|| options.narrowed(permitted))??;
            narrowed.fit(&certificate.public_key().algorithm()).then_some(narrowed)
        })
    }

    /// Whether none is admitted.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether any certificate can log in.
    pub fn has_authorities(&self) -> bool {
        self.entries.iter().any(|entry| entry.options.is_authority())
    }

    fn matching(&self, key: &KeyData, now: SystemTime) -> impl Iterator<Item = &Options> {
        let entries = self.entries.iter().filter(move |entry| entry.key == *key);
        entries
            .map(|entry| &entry.options)
            .filter(move |options| !options.is_expired(now))
    }

    /// The lines that admit no key.
    pub fn refused(&self) -> &[Refused] {
        &self.refused
    }
}

fn parse_line(line: &[u8]) -> Result<Entry, LineError> {
    let line = words_of(line)?;
    let (options, key) = if starts_with_key_type(line) {
        (Options::default(), line)
    } else {
        let (options, key) = options::split(line)?;
        (Options::parse(options)?, key)
    };
    // Any blanks may separate the fields, and the comment is nobody's business.
    let fields: Vec<&str> = key.split_ascii_whitespace().take(2).collect();
    let key = PublicKey::from_openssh(&fields.join(" ")).map_err(LineError::Key)?;
    let algorithm = key.algorithm();
    let known = matches!(
        algorithm,
        Algorithm::Ed25519
            | Algorithm::Ecdsa { .. }
            | Algorithm::Rsa { .. }
            | Algorithm::SkEd25519
            | Algorithm::SkEcdsaSha2NistP256
    );
    if !known {
        return Err(LineError::Unsupported(algorithm.to_string()));
    }
    if !options.fit(&algorithm) {
        return Err(LineError::Attestation);
    }
    Ok(Entry {
        key: key.key_data().clone(),
        options,
    })
}

/// The whole words of a line before anything that is not UTF-8, which only a comment may hold: a key or an option that is
/// cut off does not parse.
fn words_of(line: &[u8]) -> Result<&str, LineError> {
    std::str::from_utf8(line).or_else(|error| {
        let valid = &line[..error.valid_up_to()];
        let end = valid
            .iter()
            .rposition(u8::is_ascii_whitespace)
            .ok_or(LineError::NotText)?;
        std::str::from_utf8(&valid[..end]).map_err(|_| LineError::NotText)
    })
}

/// Whether the line has no options: they cannot look like a key type.
fn starts_with_key_type(line: &str) -> bool {
    let word = line.split_ascii_whitespace().next().unwrap_or("");
    ["ssh-", "ecdsa-", "sk-"].iter().any(|prefix| word.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;

    const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn admits(line: &str) -> bool {
        let key = PublicKey::from_openssh(ED25519).unwrap();
        AuthorizedKeys::parse(line.as_bytes()).find(&key, now()).is_some()
    }

    #[test]
    fn a_bad_line_spoils_only_itself() {
        let file = format!("# mine\n\nssh-ed25519 AAAA bad\n\u{fffd}\n{ED25519} me@host\nno-such-option {ED25519}\n");
        let keys = AuthorizedKeys::parse(file.as_bytes());
        assert!(keys.find(&PublicKey::from_openssh(ED25519).unwrap(), now()).is_some());
        assert_eq!(
            keys.refused().iter().map(|refused| refused.line).collect::<Vec<_>>(),
            [3, 4, 6]
        );
    }

    #[test]
    fn a_key_whose_options_cannot_be_enforced_is_refused() {
        for options in [
            "from=\"10.0.0.0/8\"",
            "cert-authority",
            "command=\"x",
            "command=\"x\",command=\"y\"",
        ] {
            assert!(!admits(&format!("{options} {ED25519}")), "{options} was widened");
        }
    }

    #[test]
    fn blanks_and_comments_may_be_any() {
        let (kind, key) = ED25519.split_once(' ').unwrap();
        assert!(admits(&format!("{kind}\t  {key}   me  and my laptop")));
        assert!(admits(&format!("no-pty   {kind}  {key}\r")));
        let parsed = PublicKey::from_openssh(ED25519).unwrap();
        let admits = |line: &[u8]| AuthorizedKeys::parse(line).find(&parsed, now()).is_some();
        assert!(admits(&[ED25519.as_bytes(), b" caf\xe9 \xff"].concat()));
        assert!(!admits(&[ED25519.as_bytes(), b"\xff comment"].concat()));
        assert!(!admits(&[b"command=\"caf\xe9\" ", ED25519.as_bytes()].concat()));
    }

    #[test]
    fn options_that_limit_what_is_not_offered_change_nothing() {
        for options in [
            "no-touch-required",
            "verify-required",
            "tunnel=\"0\"",
            "no-X11-forwarding,no-user-rc",
        ] {
            assert!(admits(&format!("{options} {ED25519}")), "{options}");
        }
    }

    #[test]
    fn a_later_line_of_the_same_key_holds_when_an_earlier_one_does_not() {
        let expired = format!("expiry-time=\"20200101\" {ED25519}");
        assert!(admits(&format!(
            "{expired}\ncert-authority {ED25519}\nno-pty {ED25519}"
        )));
    }

    #[test]
    fn an_expired_key_is_refused_and_a_valid_one_admitted() {
        assert!(!admits(&format!("expiry-time=\"20200101\" {ED25519}")));
        assert!(admits(&format!("expiry-time=\"20990101Z\" {ED25519}")));
        assert!(!admits(&format!("expiry-time=\"20991301\" {ED25519}")));
    }

    #[test]
    fn a_fido_key_is_admitted_only_where_it_need_attest_nothing() {
        const FIDO: &str = "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJAAAABHNzaDo=";
        let key = PublicKey::from_openssh(FIDO).unwrap();
        for (options, admitted) in [
            ("", false),
            ("no-touch-required ", true),
            ("no-touch-required,verify-required ", false),
        ] {
            let keys = AuthorizedKeys::parse(format!("{options}{FIDO}").as_bytes());
            assert_eq!(keys.find(&key, now()).is_some(), admitted, "{options}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_parse_without_panic(contents in prop::collection::vec(any::<u8>(), 0..400)) {
            AuthorizedKeys::parse(&contents);
        }

        #[test]
        fn any_options_before_a_key_parse_without_panic(options in "[ -~]{0,60}") {
            AuthorizedKeys::parse(format!("{options} {ED25519}").as_bytes());
        }
    }
}
