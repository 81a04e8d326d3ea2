//! The options in front of a key, with the meaning sshd(8) gives them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

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
    /// Where `-L` and `-D` may connect, as `host:port`; empty: anywhere.
    pub permit_open: Vec<String>,
    expires: Option<SystemTime>,
}

/// Why options do not hold.
#[derive(Debug, thiserror::Error)]
pub enum OptionError {
    /// Unknown, or known but not enforceable without a network address or a certificate.
    #[error("option {0:?} is not supported")]
    Unsupported(String),
    /// A quote that never closes, or a value without quotes.
    #[error("the value of option {0:?} is not quoted")]
    Unquoted(String),
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
                None => return Ok(options),
            }
        }
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
            // There is no X11 forwarding and no ~/.ssh/rc to permit or forbid.
            ("x11-forwarding" | "no-x11-forwarding" | "user-rc" | "no-user-rc", None) => {}
            ("command", Some(value)) => self.command = Some(value),
            ("environment", Some(value)) => match value.split_once('=') {
                Some((variable, setting)) if is_variable(variable) => {
                    self.environment.push((variable.into(), setting.into()));
                }
                _ => return Err(invalid(name, value)),
            },
            ("permitopen", Some(value)) => match value.rsplit_once(':') {
                Some((host, port)) if !host.is_empty() && (port == "*" || port.parse::<u16>().is_ok()) => {
                    self.permit_open.push(value);
                }
                _ => return Err(invalid(name, value)),
            },
            // Remote forwarding is refused for every key, so any limit on it holds.
            ("permitlisten", Some(_)) => {}
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
    use super::*;

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
