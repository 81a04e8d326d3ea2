//! The environment of a session.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::Path;

use super::Settings;
use crate::users::User;

/// Where commands are found when nothing else says so.
const ROOT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const USER_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// The environment of the whole system.
const SYSTEM_FILE: &str = "/etc/environment";
const MAX_SYSTEM_FILE: u64 = 64 << 10;

/// Variables that one session takes from its client.
const MAX_CLIENT_VARIABLES: usize = 64;
const MAX_CLIENT_VALUE: usize = 32 << 10;

/// The variables that a client may set: language, terminal, and what tools need that speak through SSH.
const CLIENT_VARIABLES: [&str; 9] = [
    "LANG",
    "LANGUAGE",
    "TERM",
    "COLORTERM",
    "TERM_PROGRAM",
    "TERM_PROGRAM_VERSION",
    "NO_COLOR",
    "TZ",
    "GIT_PROTOCOL",
];

/// There is no network address at either end; sshd writes this then.
const CONNECTION: &str = "UNKNOWN 65535 UNKNOWN 65535";
const CLIENT: &str = "UNKNOWN 65535 65535";

/// What a client sent with `env` requests.
#[derive(Clone, Debug, Default)]
pub(super) struct ClientVariables(Vec<(String, String)>);

impl ClientVariables {
    /// Takes a variable if it is one that clients may set.
    pub(super) fn set(&mut self, name: &str, value: &str) -> bool {
        let accepted = CLIENT_VARIABLES.contains(&name) || name.starts_with("LC_") && !name.contains('=');
        let fits = self.0.len() < MAX_CLIENT_VARIABLES && name.len() + value.len() <= MAX_CLIENT_VALUE;
        if !accepted || !fits || name.contains('\0') || value.contains('\0') {
            return false;
        }
        self.0.push((name.into(), value.into()));
        true
    }
}

/// What differs from one session to the next.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Circumstances<'a> {
    /// From the client.
    pub(super) client: Option<&'a ClientVariables>,
    /// From the options of the key.
    pub(super) key: &'a [(String, String)],
    /// The terminal's type and device.
    pub(super) terminal: Option<(&'a str, &'a OsStr)>,
    /// The socket of the client's agent.
    pub(super) agent: Option<&'a Path>,
    /// What the client asked for, when the key runs something else.
    pub(super) original_command: Option<&'a OsStr>,
}

/// The whole environment; what comes later wins.
pub(super) fn build(
    settings: &Settings,
    user: &User,
    circumstances: Circumstances<'_>,
) -> BTreeMap<OsString, OsString> {
    let mut environment = BTreeMap::new();
    let mut set = |name: &str, value: &OsStr| {
        environment.insert(name.into(), value.into());
    };
    set("PATH", if user.is_root() { ROOT_PATH } else { USER_PATH }.as_ref());
    for (name, value) in settings.environment.iter() {
        set(name, value.as_ref());
    }
    for (name, value) in parse_system_file(&read_system_file()) {
        set(name, value.as_ref());
    }
    for (name, value) in circumstances.client.iter().flat_map(|client| &client.0) {
        set(name, value.as_ref());
    }
    for (name, value) in circumstances.key {
        set(name, value.as_ref());
    }
    set("USER", user.name.as_ref());
    set("LOGNAME", user.name.as_ref());
    set("HOME", user.home.as_ref());
    set("SHELL", user.shell.as_ref());
    set("MAIL", format!("/var/mail/{}", user.name).as_ref());
    set("SSH_CONNECTION", CONNECTION.as_ref());
    set("SSH_CLIENT", CLIENT.as_ref());
    if let Some((kind, device)) = circumstances.terminal {
        set("TERM", kind.as_ref());
        set("SSH_TTY", device);
    }
    if let Some(agent) = circumstances.agent {
        set("SSH_AUTH_SOCK", agent.as_os_str());
    }
    if let Some(command) = circumstances.original_command {
        set("SSH_ORIGINAL_COMMAND", command);
    }
    environment
}

fn read_system_file() -> String {
    let mut text = String::new();
    if let Ok(file) = std::fs::File::open(SYSTEM_FILE) {
        // A file that is not text sets nothing.
        let _ = file.take(MAX_SYSTEM_FILE).read_to_string(&mut text);
    }
    text
}

/// `NAME=value` a line, as pam_env reads it: `export` is allowed, quotes around the value go.
fn parse_system_file(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| {
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (name, value) = line.split_once('=')?;
        let quoted = |quote| value.strip_prefix(quote)?.strip_suffix(quote);
        let value = quoted('"').or_else(|| quoted('\'')).unwrap_or(value);
        let sound = !name.is_empty() && !name.starts_with('#') && !name.contains([' ', '\0']) && !value.contains('\0');
        sound.then_some((name, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_sets_only_what_is_accepted_and_so_much() {
        let mut variables = ClientVariables::default();
        assert!(variables.set("LC_ALL", "C.UTF-8") && variables.set("LANG", "C"));
        for (name, value) in [("LD_PRELOAD", "x"), ("PATH", "/"), ("LC_A=B", "x"), ("LANG", "a\0b")] {
            assert!(!variables.set(name, value), "{name} was taken");
        }
        assert_eq!(
            (0..100).filter(|_| variables.set("LANG", "C")).count(),
            MAX_CLIENT_VARIABLES - 2
        );
    }

    #[test]
    fn the_system_file_has_comments_exports_and_quotes() {
        let text = "# A=1\nexport B=2\nC=\"3 4\"\nD='5'\nnothing\n=6\n";
        let parsed: Vec<_> = parse_system_file(text).collect();
        assert_eq!(parsed, [("B", "2"), ("C", "3 4"), ("D", "5")]);
    }
}
