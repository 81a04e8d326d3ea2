//! SSH servers as any client sees them: a command that is the connection, a key, a pinned host key.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::commands::finish;
use crate::msb::{Msb, Sandbox};

/// The ciphers of `msb ssh-config`, so that figures compare servers and not ciphers.
const CIPHERS: &str = "^aes128-gcm@openssh.com,aes256-gcm@openssh.com";

/// An SSH server on the standard streams of a command.
#[derive(Debug)]
pub struct Endpoint {
    /// The name its key is pinned for.
    pub host: String,
    /// The user that logs in.
    pub user: String,
    /// For `sh`: its standard streams are the connection.
    pub bridge: String,
    /// The private key that may log in, in OpenSSH's format.
    pub identity: PathBuf,
    /// Where its host key is pinned.
    pub known_hosts: PathBuf,
    /// OpenSSH's configuration for it.
    pub ssh_config: PathBuf,
    environment: Vec<(&'static str, PathBuf)>,
}

impl Endpoint {
    /// A sandbox, through `msb ssh-bridge`; `scratch` becomes the home directory of its clients.
    ///
    /// # Panics
    /// When `scratch` cannot be made, or `msb` prints no configuration.
    pub fn of_sandbox(msb: &Msb, sandbox: &Sandbox<'_>, scratch: &Path) -> Self {
        fs::create_dir_all(scratch).expect("the test's directory is writable");
        Self {
            host: sandbox.host(),
            user: "root".to_owned(),
            bridge: format!("msb ssh-bridge {}", sandbox.name),
            identity: msb.home().join("client_key"),
            known_hosts: msb.home().join("known_hosts"),
            ssh_config: msb.ssh_config(),
            environment: vec![
                ("MSB_HOME", msb.home()),
                ("MSB_RUNTIME_DIR", msb.runtime()),
                ("HOME", scratch.to_owned()),
            ],
        }
    }

    /// The agent's server alone, on this host, as this user; `scratch` holds its keys and is the home directory of its
    /// clients.
    ///
    /// # Panics
    /// When `scratch` cannot be written.
    pub fn of_agent(agent: &Path, scratch: &Path) -> Self {
        Self::on_this_host(scratch, |host_key, authorized_keys| {
            format!(
                "{} serve --stdio --host-key {} --authorized-keys {}",
                agent.display(),
                host_key.display(),
                authorized_keys.display()
            )
        })
    }

    /// OpenSSH's server on this host, as this user, one process a connection.
    ///
    /// # Panics
    /// When `scratch` or, for root, `/run` cannot be written.
    pub fn of_sshd(scratch: &Path) -> Self {
        // Its unprivileged half is locked up there.
        if rustix::process::geteuid().is_root() {
            fs::create_dir_all("/run/sshd").expect("root may write to /run");
        }
        Self::on_this_host(scratch, |host_key, authorized_keys| {
            let config = scratch.join("sshd_config");
            let text = format!(
                "HostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nLogLevel QUIET\n\
                 PermitUserEnvironment yes\nPermitRootLogin prohibit-password\nSubsystem sftp /usr/lib/openssh/sftp-server\n",
                host_key.display(),
                authorized_keys.display()
            );
            fs::write(&config, text).expect("the test's directory is writable");
            format!("/usr/sbin/sshd -i -f {}", config.display())
        })
    }

    fn on_this_host(scratch: &Path, bridge: impl FnOnce(&Path, &Path) -> String) -> Self {
        fs::create_dir_all(scratch).expect("the test's directory is writable");
        let at = |name: &str| scratch.join(name);
        for key in ["host_key", "client_key"] {
            let mut generate = Command::new("ssh-keygen");
            finish(generate.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(at(key))).expect(0);
        }
        let public = fs::read_to_string(at("host_key.pub")).expect("ssh-keygen wrote it");
        let write = |name: &str, text: String| fs::write(at(name), text).expect("the test's directory is writable");
        write("known_hosts", format!("box.msb {public}"));
        let user = finish(Command::new("id").arg("-un")).expect(0).text().trim().to_owned();
        let public = fs::read_to_string(at("client_key.pub")).expect("ssh-keygen wrote it");
        // At this level, bash does not read the user's .bashrc for a command: it may take longer than all else.
        write("authorized_keys", format!("environment=\"SHLVL=1\" {public}"));
        let bridge = bridge(&at("host_key"), &at("authorized_keys"));
        let config = format!(
            "Host *.msb\n    User {user}\n    ProxyCommand {bridge}\n    IdentityFile {}\n    IdentitiesOnly yes\n    \
             StrictHostKeyChecking yes\n    UserKnownHostsFile {}\n    Ciphers {CIPHERS}\n",
            at("client_key").display(),
            at("known_hosts").display()
        );
        write("ssh_config", config);
        Self {
            host: "box.msb".to_owned(),
            user,
            bridge,
            identity: at("client_key"),
            known_hosts: at("known_hosts"),
            ssh_config: at("ssh_config"),
            environment: vec![("HOME", scratch.to_owned())],
        }
    }

    /// A client program for which the bridge works.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.env_remove("SSH_AUTH_SOCK");
        command
    }

    /// A program of OpenSSH with its configuration; `rsync`, too.
    pub fn openssh(&self, program: &str) -> Command {
        let mut command = self.command(program);
        if program == "rsync" {
            command.arg("-e").arg(format!("ssh -F {}", self.ssh_config.display()));
        } else {
            command.arg("-F").arg(&self.ssh_config);
        }
        command
    }

    /// `ssh` that runs `remote`.
    pub fn ssh(&self, remote: &str) -> Command {
        let mut command = self.openssh("ssh");
        command.arg(&self.host).arg(remote);
        command
    }

    /// `USER@HOST`.
    pub fn login(&self) -> String {
        format!("{}@{}", self.user, self.host)
    }

    /// The type and the blob of the pinned host key.
    ///
    /// # Panics
    /// When none is pinned.
    pub fn host_key(&self) -> String {
        let pinned = fs::read_to_string(&self.known_hosts).expect("host keys are pinned");
        let of_host = pinned
            .lines()
            .filter_map(|line| line.split_once(' '))
            .find(|(names, _)| names.split(',').any(|name| name == self.host));
        let (_, key) = of_host.unwrap_or_else(|| panic!("no key of {} in {pinned}", self.host));
        // What follows is a comment.
        key.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    }
}
