//! The `Host *.msb` block that lets stock OpenSSH reach every sandbox by name.
//!
//! One wildcard block serves all sandboxes: `%h` carries the name to `msb ssh-bridge`, and `known_hosts` has a line for
//! each name. Nothing in it weakens ssh: an unknown or changed host key is refused, never asked about.

mod install;

use std::fmt::Write;
use std::path::{Path, PathBuf};

pub use install::{InstallError, Plan};

/// The hosts that the block is for.
pub const HOST_PATTERN: &str = "*.msb";

/// Why no block can be written.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// A path is not UTF-8, or has characters that no quoting brings through ssh_config.
    #[error("{path:?} cannot be written into ssh_config ({reason}): use another directory")]
    Path {
        /// The path.
        path: PathBuf,
        /// What is in the way.
        reason: &'static str,
    },
    /// A path depends on the current directory, which is another for each ssh.
    #[error("{} must be absolute to stand in ssh_config", path.display())]
    Relative {
        /// The path.
        path: PathBuf,
    },
}

/// What the block says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SshConfig {
    /// The `msb` program.
    pub msb: PathBuf,
    /// The file that pins the host keys.
    pub known_hosts: PathBuf,
    /// The private key to log in with.
    pub identity: PathBuf,
    /// Environment that `msb` needs to find the same sandboxes, such as `MSB_HOME` where it is not the default.
    pub environment: Vec<(String, PathBuf)>,
    /// Whether `msb` hands the connection to ssh and is gone (`ProxyUseFdpass yes`), instead of copying bytes.
    pub fdpass: bool,
}

impl SshConfig {
    /// The block, ending with a newline.
    ///
    /// Only the identity given here is offered (`IdentitiesOnly`): an agent with many keys would use up the attempts a
    /// server grants before its turn came. `ssh -i` still adds others. Host keys come from our file alone. AES-GCM goes
    /// first, as processors have instructions for it; all other ciphers stay.
    ///
    /// # Errors
    /// When a path cannot be written into ssh_config.
    pub fn render(&self) -> Result<String, RenderError> {
        let mut block = format!("Host {HOST_PATTERN}\n");
        let mut option = |name: &str, value: &str| {
            writeln!(block, "    {name} {value}").expect("a String takes everything");
        };
        option("User", "root");
        option("ProxyCommand", &self.proxy_command()?);
        if self.fdpass {
            option("ProxyUseFdpass", "yes");
        }
        option("IdentityFile", &config_path(&self.identity)?);
        option("IdentitiesOnly", "yes");
        option("StrictHostKeyChecking", "yes");
        option("UserKnownHostsFile", &config_path(&self.known_hosts)?);
        option("GlobalKnownHostsFile", "/dev/null");
        option("UpdateHostKeys", "no");
        option("CheckHostIP", "no");
        option("Ciphers", "^aes128-gcm@openssh.com,aes256-gcm@openssh.com");
        Ok(block)
    }

    /// ssh has the user's shell run this with `exec` in front. The host name is quoted as well: old versions of ssh put
    /// anything into it.
    fn proxy_command(&self) -> Result<String, RenderError> {
        let mut command = String::new();
        if !self.environment.is_empty() {
            command.push_str("env ");
        }
        for (name, value) in &self.environment {
            write!(command, "{name}={} ", shell_path(value)?).expect("a String takes everything");
        }
        let fdpass = if self.fdpass { " --fdpass" } else { "" };
        write!(command, "{} ssh-bridge{fdpass} -- '%h'", shell_path(&self.msb)?).expect("a String takes everything");
        Ok(command)
    }
}

/// A path as a word of a shell command in ssh_config: quoted for the shell, `%` doubled for ssh.
fn shell_path(path: &Path) -> Result<String, RenderError> {
    let text = checked(path)?;
    Ok(format!("'{}'", text.replace('\'', r"'\''").replace('%', "%%")))
}

/// A path as an argument of an ssh_config option that expands `%` and `${}`.
fn config_path(path: &Path) -> Result<String, RenderError> {
    let text = checked(path)?;
    if text.contains("${") {
        return Err(RenderError::Path {
            path: path.to_owned(),
            reason: "ssh would expand ${",
        });
    }
    Ok(quote(&text.replace('%', "%%")))
}

/// An argument of ssh_config in double quotes.
fn quote(argument: &str) -> String {
    format!("\"{}\"", argument.replace('\\', r"\\").replace('"', "\\\""))
}

fn checked(path: &Path) -> Result<&str, RenderError> {
    let refuse = |reason| RenderError::Path {
        path: path.to_owned(),
        reason,
    };
    let text = path.to_str().ok_or_else(|| refuse("it is not UTF-8"))?;
    if text.chars().any(char::is_control) {
        return Err(refuse("it has control characters"));
    }
    if path.is_relative() {
        return Err(RenderError::Relative { path: path.to_owned() });
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
