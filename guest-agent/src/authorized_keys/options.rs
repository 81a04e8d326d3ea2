//! The options in front of a key, with the meaning sshd(8) gives them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use russh::keys::Algorithm;

use super::permit::Permit;

/// What a key may do beyond logging in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Options {
    /// Runs instead of whatever the client asks for.
    pub command: Option<String>,
    /// Added to the environment of every session.
    pub environment: Vec<(String, String)>,
    /// A terminal may be allocated.
    pub pty: bool,
    /// TCP and Unix sockets may be forwarded.
    pub port_forwarding: bool,
    /// The agent may be forwarded.
    pub agent_forwarding: bool,
    /// Where `-L` and `-D` may connect; empty: anywhere.
    permit_open: Vec<Permit>,
    /// Where `-R` may listen; empty: anywhere.
    permit_listen: Vec<Permit>,
    /// A FIDO key must attest that it was touched.
    touch: bool,
    /// A FIDO key must attest that it knows its user.
    verification: bool,
    /// The key signs certificates, and does not log in itself.
    authority: bool,
    /// For whom an authority's certificates are taken; without, for the user of that name.
    principals: Option<Vec<String>>,
    expires: Option<SystemTime>,
}

/// Why options do not hold.
#[derive(Debug, thiserror::Error)]
pub enum OptionError {
    /// Unknown, or known but not enforceable without a network address.
    #[error("option {0:?} is not supported")]
    Unsupported(String),
    /// A quote that never closes, or a value without quotes.
    #[error("the value of option {0:?} is not quoted")]
    Unquoted(String),
    /// Given twice, and only one value can hold.
    #[error("option {0:?} is given twice")]
    Repeated(String),
    /// Something other than a comma behind a value.
    #[error("a comma is missing behind option {0:?}")]
    Trailing(String),
    /// A value that the option cannot have.
    #[error("option {name:?} cannot be {value:?}")]
    Value {
        /// The option.
        name: String,
        /// Its value.
        value: String,
    },
}

impl Default for Options {
    fn default() -> Self {
        Self {
            command: None,
            environment: Vec::new(),
            pty: true,
            port_forwarding: true,
            agent_forwarding: true,
            permit_open: Vec::new(),
            permit_listen: Vec::new(),
            touch: true,
            verification: false,
            authority: false,
            principals: None,
            expires: None,
        }
    }
}

impl Options {
    /// Reads comma-separated options.
    ///
    /// # Errors
    /// When one is unknown, malformed or cannot be enforced.
    pub fn parse(text: &str) -> Result<Self, OptionError> {
        let mut options = Self::default();
        let mut rest = text;
        loop {
            let (name, value, after) = next_option(rest)?;
            options.set(name, value)?;
            match after.strip_prefix(',') {
                Some(more) => rest = more,
                None if after.is_empty() => return Ok(options),
                None => return Err(OptionError::Trailing(name.into())),
            }
        }
    }

    /// Whether a key of this algorithm may have these options: what a FIDO key attests is not seen here, so it is admitted
    /// only where it need attest nothing.
    pub(super) fn fit(&self, algorithm: &Algorithm) -> bool {
        let is_fido = matches!(algorithm, Algorithm::SkEd25519 | Algorithm::SkEcdsaSha2NistP256);
        !is_fido || !self.touch && !self.verification
    }

    /// Takes the touch from a certificate's key, as far as its authority does too.
    pub(super) fn without_touch(mut self, untouched: bool) -> Self {
        self.touch = !untouched;
        self
    }

    /// Whether the key is one that signs certificates.
    pub(super) fn is_authority(&self) -> bool {
        self.authority
    }

    /// The principals of which a certificate must name one to log in as `user`.
    pub(super) fn principals<'a>(&'a self, user: &'a str) -> Vec<&'a str> {
        match &self.principals {
            Some(principals) => principals.iter().map(String::as_str).collect(),
            None => vec![user],
        }
    }

    /// What both these options and those of a certificate permit; nothing when they force different commands.
    pub(super) fn narrowed(&self, certificate: Self) -> Option<Self> {
        let command = match (&self.command, certificate.command) {
            (Some(own), Some(other)) if *own != other => return None,
            (own, other) => own.clone().or(other),
        };
        Some(Self {
            command,
            pty: self.pty && certificate.pty,
            port_forwarding: self.port_forwarding && certificate.port_forwarding,
            agent_forwarding: self.agent_forwarding && certificate.agent_forwarding,
            touch: self.touch || certificate.touch,
            ..self.clone()
        })
    }

    /// Whether the owner may connect to a TCP port. Rules name hosts literally.
    pub fn may_connect(&self, host: &str, port: u16) -> bool {
        let permitted = |permit: &Permit| permit.is_host(host) && permit.has_port(port);
        self.port_forwarding && (self.permit_open.is_empty() || self.permit_open.iter().any(permitted))
    }

    /// Whether the owner may connect to Unix sockets: rules about ports say nothing of them, so they permit none.
    pub fn may_connect_to_sockets(&self) -> bool {
        self.port_forwarding && self.permit_open.is_empty()
    }

    /// Whether the owner may listen on a TCP port. Rules name hosts by patterns.
    pub fn may_listen(&self, host: &str, port: u16) -> bool {
        let permitted = |permit: &Permit| permit.fits_host(host) && permit.has_port(port);
        self.port_forwarding && (self.permit_listen.is_empty() || self.permit_listen.iter().any(permitted))
    }

    /// Whether the owner may listen on Unix sockets, as for [`Options::may_connect_to_sockets`].
    pub fn may_listen_on_sockets(&self) -> bool {
        self.port_forwarding && self.permit_listen.is_empty()
    }

    /// Whether `expiry-time` has passed.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        self.expires.is_some_and(|expires| now >= expires)
    }

    fn set(&mut self, name: &str, value: Option<String>) -> Result<(), OptionError> {
        match (name.to_ascii_lowercase().as_str(), value) {
            ("restrict", None) => {
                self.pty = false;
                self.port_forwarding = false;
                self.agent_forwarding = false;
            }
            ("pty", None) => self.pty = true,
            ("no-pty", None) => self.pty = false,
            ("port-forwarding", None) => self.port_forwarding = true,
            ("no-port-forwarding", None) => self.port_forwarding = false,
            ("agent-forwarding", None) => self.agent_forwarding = true,
            ("no-agent-forwarding", None) => self.agent_forwarding = false,
            // There is no X11 or tunnel forwarding and no ~/.ssh/rc to permit or forbid.
            ("x11-forwarding" | "no-x11-forwarding" | "user-rc" | "no-user-rc", None) | ("tunnel", Some(_)) => {}
            ("no-touch-required", None) => self.touch = false,
            ("verify-required", None) => self.verification = true,
            ("cert-authority", None) => self.authority = true,
            ("principals", Some(value)) if self.principals.is_none() => {
                self.principals = Some(value.split(',').map(str::to_owned).collect());
            }
            ("command", Some(value)) if self.command.is_none() => self.command = Some(value),
            ("command" | "principals", Some(_)) => return Err(OptionError::Repeated(name.into())),
            ("environment", Some(value)) => match value.split_once('=') {
                Some((variable, setting)) if is_variable(variable) => {
                    self.environment.push((variable.into(), setting.into()));
                }
                _ => return Err(invalid(name, value)),
            },
            ("permitopen", Some(value)) => match Permit::parse(&value) {
                Some(permit) => self.permit_open.push(permit),
                None => return Err(invalid(name, value)),
            },
            ("permitlisten", Some(value)) => match Permit::parse_listen(&value) {
                Some(permit) => self.permit_listen.push(permit),
                None => return Err(invalid(name, value)),
            },
            ("expiry-time", Some(value)) => match parse_time(&value) {
                Some(time) => self.expires = Some(self.expires.map_or(time, |other| other.min(time))),
                None => return Err(invalid(name, value)),
            },
            _ => return Err(OptionError::Unsupported(name.into())),
        }
        Ok(())
    }
}

/// Splits a line at the first blank outside quotes.
pub(super) fn split(line: &str) -> Result<(&str, &str), OptionError> {
    let (mut quoted, mut escaped) = (false, false);
    for (index, byte) in line.bytes().enumerate() {
        match byte {
            b'\\' if !escaped => {
                escaped = true;
                continue;
            }
            b'"' if !escaped => quoted = !quoted,
            b' ' | b'\t' if !quoted => return Ok((&line[..index], line[index..].trim_start())),
            _ => {}
        }
        escaped = false;
    }
    Err(OptionError::Unsupported(line.chars().take(32).collect()))
}

/// The next option's name, its unquoted value if it has one, and what follows.
fn next_option(text: &str) -> Result<(&str, Option<String>, &str), OptionError> {
    let end = text.find(['=', ',']).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let Some(rest) = rest.strip_prefix('=') else {
        return Ok((name, None, rest));
    };
    let unquoted = || OptionError::Unquoted(name.into());
    let mut value = String::new();
    let mut characters = rest.strip_prefix('"').ok_or_else(unquoted)?.char_indices().peekable();
    while let Some((index, character)) = characters.next() {
        match character {
            // Only a quote can be escaped, as in sshd.
            '\\' if characters.peek().is_some_and(|&(_, next)| next == '"') => {
                characters.next();
                value.push('"');
            }
            '"' => return Ok((name, Some(value), &rest[index + 2..])),
            other => value.push(other),
        }
    }
    Err(unquoted())
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn invalid(name: &str, value: String) -> OptionError {
    OptionError::Value {
        name: name.into(),
        value,
    }
}

/// `YYYYMMDD[HHMM[SS]][Z]`. Without a zone it is the guest's time, which is UTC.
fn parse_time(text: &str) -> Option<SystemTime> {
    let digits = text.strip_suffix(['Z', 'z']).unwrap_or(text);
    if !matches!(digits.len(), 8 | 12 | 14) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let field = |range: std::ops::Range<usize>| digits.get(range).map_or(Some(0), |text| text.parse::<u64>().ok());
    let (year, month, day) = (field(0..4)?, field(4..6)?, field(6..8)?);
    let (hour, minute, second) = (field(8..10)?, field(10..12)?, field(12..14)?);
    let valid = year >= 1970 && (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60;
    if !valid || second > 60 {
        return None;
    }
    let seconds = days_since_epoch(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    Some(UNIX_EPOCH + Duration::from_secs(seconds))
}

/// Days from 1970-01-01 to a date of the Gregorian calendar, counting years from March so that leap days come last.
fn days_since_epoch(year: u64, month: u64, day: u64) -> u64 {
    const DAYS_TO_EPOCH: u64 = 719_468;
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leap_days = year / 4 - year / 100 + year / 400;
    year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1 - DAYS_TO_EPOCH
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_command_survives_its_quotes(command in "[ -~]{0,40}") {
            // A backslash before a quote cannot be written: it always escapes the quote.
            prop_assume!(!command.contains("\\\"") && !command.ends_with('\\'));
            let line = format!("no-pty,command=\"{}\" ssh-ed25519 AAAA", command.replace('"', "\\\""));
            let (options, key) = split(&line).unwrap();
            prop_assert_eq!(key, "ssh-ed25519 AAAA");
            prop_assert_eq!(Options::parse(options).unwrap().command, Some(command));
        }

        #[test]
        fn nothing_before_restrict_widens_it(
            before in prop::sample::subsequence(
                vec![
                    "pty",
                    "port-forwarding",
                    "agent-forwarding",
                    "user-rc",
                    r#"permitopen="*:*""#,
                    r#"permitlisten="*:*""#,
                    r#"command="x""#,
                    r#"environment="A=b""#,
                ],
                0..8,
            ).prop_shuffle(),
        ) {
            let text: String = before.iter().map(|option| format!("{option},")).collect();
            let options = Options::parse(&format!("{text}restrict")).unwrap();
            prop_assert!(!options.pty && !options.port_forwarding && !options.agent_forwarding);
            prop_assert!(!options.may_listen("localhost", 1) && !options.may_connect("localhost", 1));
            prop_assert!(!options.may_listen_on_sockets() && !options.may_connect_to_sockets());
        }
    }

    #[test]
    fn quotes_hold_blanks_commas_and_escaped_quotes() {
        let (options, rest) = split(r#"command="echo \"a, b\"",no-pty key"#).unwrap();
        let options = Options::parse(options).unwrap();
        assert_eq!(options.command.as_deref(), Some(r#"echo "a, b""#));
        assert!(!options.pty);
        assert_eq!(rest, "key");
    }

    #[test]
    fn restrict_takes_all_and_later_options_give_back() {
        let options = Options::parse("restrict,pty").unwrap();
        assert!(options.pty && !options.port_forwarding && !options.agent_forwarding);
    }

    #[test]
    fn nothing_behind_a_value_is_dropped() {
        assert!(Options::parse(r#"command="x"no-pty"#).is_err());
        assert!(Options::parse("no-pty,").is_err());
    }

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
            (r#"permitopen="*.example:53""#, "dns.example", 53, false),
        ];
        for (text, host, port, expected) in cases {
            let options = Options::parse(text).unwrap();
            assert_eq!(options.may_connect(host, port), expected, "{text} {host}:{port}");
        }
    }

    #[test]
    fn a_key_listens_only_where_its_options_let_it() {
        let cases = [
            ("no-pty", "localhost", 8080, true),
            ("no-port-forwarding", "localhost", 8080, false),
            (r#"permitlisten="8080""#, "localhost", 8080, true),
            (r#"permitlisten="8080""#, "", 8080, true),
            (r#"permitlisten="8080""#, "localhost", 0, false),
            (r#"permitlisten="local*:*""#, "LocalHost", 1, true),
            (r#"permitlisten="localhost:1",permitlisten="[::1]:2""#, "::1", 2, true),
            (r#"permitlisten="localhost:1",permitlisten="[::1]:2""#, "::1", 1, false),
        ];
        for (text, host, port, expected) in cases {
            let options = Options::parse(text).unwrap();
            assert_eq!(options.may_listen(host, port), expected, "{text} {host}:{port}");
        }
    }

    #[test]
    fn rules_about_ports_permit_no_sockets() {
        let rules = Options::parse(r#"permitopen="*:*",permitlisten="*:*""#).unwrap();
        assert!(!rules.may_connect_to_sockets() && !rules.may_listen_on_sockets());
        assert!(Options::default().may_connect_to_sockets() && Options::default().may_listen_on_sockets());
    }

    #[test]
    fn a_variable_with_an_odd_name_is_refused() {
        assert!(Options::parse(r#"environment="A=b=c""#).is_ok());
        assert!(Options::parse(r#"environment="A-B=c""#).is_err());
    }

    #[test]
    fn a_time_is_the_one_meant() {
        let seconds = |text| parse_time(text).map(|time| time.duration_since(UNIX_EPOCH).unwrap().as_secs());
        assert_eq!(seconds("19700101"), Some(0));
        assert_eq!(seconds("20240229120000Z"), Some(1_709_208_000));
        assert_eq!(seconds("202402301"), None);
    }
}
