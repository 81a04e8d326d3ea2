//! Stock OpenSSH clients against `msb-agent serve --stdio`, without a VM.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use msb_test_support::own_user;
use tempfile::TempDir;

pub(crate) mod raw;
pub(crate) mod screen;

pub(crate) const AGENT: &str = env!("CARGO_BIN_EXE_msb-agent");

/// A client that hangs is killed after this many seconds, which fails its test.
const TIMEOUT: &str = "180";

/// A server with keys of its own, reached as host `box`.
pub(crate) struct Server {
    directory: TempDir,
}

impl Server {
    pub(crate) fn new() -> Self {
        Self::with_options("")
    }

    /// A server whose only key has these options in `authorized_keys`.
    pub(crate) fn with_options(options: &str) -> Self {
        Self::with(options, "")
    }

    /// A server that is started with these arguments too.
    pub(crate) fn with_arguments(arguments: &str) -> Self {
        Self::with("", arguments)
    }

    fn with(options: &str, arguments: &str) -> Self {
        let server = Self {
            directory: tempfile::tempdir().expect("a temporary directory can be made"),
        };
        for key in ["host", "user"] {
            server.generate_key(key);
        }
        let public = fs::read_to_string(server.path("user.pub")).unwrap();
        server.write("authorized_keys", format!("{options} {public}").trim_start());
        let host = fs::read_to_string(server.path("host.pub")).unwrap();
        server.write("known_hosts", &format!("box {host}"));
        server.write("config", &server.config(arguments));
        server
    }

    pub(crate) fn generate_key(&self, name: &str) {
        let status = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(self.path(name))
            .status()
            .expect("ssh-keygen is needed: install openssh-client");
        assert!(status.success());
    }

    fn config(&self, arguments: &str) -> String {
        let at = |name| self.path(name).display().to_string();
        format!(
            "Host box\n\
             User {user}\n\
             ProxyCommand {AGENT} serve --stdio --host-key {host} --authorized-keys {keys} --no-own-keys {arguments}\n\
             IdentityFile {identity}\n\
             IdentitiesOnly yes\n\
             UserKnownHostsFile {known}\n\
             StrictHostKeyChecking yes\n\
             BatchMode yes\n\
             ControlPath {control}\n\
             LogLevel ERROR\n",
            user = own_user(),
            host = at("host"),
            keys = at("authorized_keys"),
            identity = at("user"),
            known = at("known_hosts"),
            control = at("control"),
        )
    }

    /// A path in the server's own directory.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, contents: &str) {
        fs::write(self.path(name), contents).unwrap();
    }

    /// A client program that knows the server.
    pub(crate) fn client(&self, program: &str) -> Command {
        let mut command = Command::new("timeout");
        command.args([TIMEOUT, program, "-F"]).arg(self.path("config"));
        command
    }

    pub(crate) fn ssh(&self, arguments: &[&str]) -> Command {
        let mut command = self.client("ssh");
        command.args(arguments);
        command
    }

    /// Runs a command in the box, with empty input.
    pub(crate) fn run(&self, command: &str) -> Output {
        output(self.ssh(&["box", command]).stdin(Stdio::null()))
    }

    /// Runs an sftp batch through the server.
    pub(crate) fn sftp(&self, batch: &[u8]) -> Output {
        run_batch(self.client("sftp").args(["-q", "-b", "-", "box"]), batch)
    }
}

/// A master connection, ended with the test.
pub(crate) struct Master<'a> {
    server: &'a Server,
    process: Child,
}

impl<'a> Master<'a> {
    pub(crate) fn start(server: &'a Server) -> Self {
        let (mut started, ready) = std::os::unix::net::UnixStream::pair().unwrap();
        // LocalCommand runs once the connection is authenticated.
        let process = server
            .ssh(&[
                "-M",
                "-N",
                "-o",
                "PermitLocalCommand=yes",
                "-o",
                "LocalCommand=echo ready",
                "box",
            ])
            .stdin(Stdio::null())
            .stdout(std::os::fd::OwnedFd::from(ready))
            .spawn()
            .unwrap();
        let mut line = [0; 6];
        started.read_exact(&mut line).expect("the master connection comes up");
        Self { server, process }
    }
}

impl Drop for Master<'_> {
    fn drop(&mut self) {
        let _ = self
            .server
            .ssh(&["-q", "-O", "exit", "box"])
            .stderr(Stdio::null())
            .status();
        let _ = self.process.wait();
    }
}

/// The server of one connection on standard input and output.
pub(crate) fn serve(server: &Server) -> Command {
    let mut command = Command::new("timeout");
    command
        .args(["60", AGENT, "serve", "--stdio", "--host-key"])
        .arg(server.path("host"));
    command.arg("--authorized-keys").arg(server.path("authorized_keys"));
    command.arg("--no-own-keys");
    command
}

/// Runs a command that must exist and not be killed by its timeout.
pub(crate) fn output(command: &mut Command) -> Output {
    let output = command.output().expect("timeout(1) of coreutils is needed");
    assert_ne!(output.status.code(), Some(124), "{command:?} hung");
    let missing = output.stderr.starts_with(b"timeout: failed to run");
    assert!(!missing, "{command:?} does not exist: install openssh-client and rsync");
    output
}

/// Runs a command with input that is written while its output is read.
pub(crate) fn output_with_input(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().unwrap()
    });
    assert_ne!(output.status.code(), Some(124), "{command:?} hung");
    output
}

/// Runs sftp straight on the server program, without SSH.
pub(crate) fn direct_sftp(batch: &[u8]) -> Output {
    let mut command = Command::new("timeout");
    command.args([TIMEOUT, "sftp", "-q", "-D", &format!("{AGENT} sftp-server"), "-b", "-"]);
    run_batch(&mut command, batch)
}

/// Runs an sftp client with a batch.
pub(crate) fn run_batch(command: &mut Command, batch: &[u8]) -> Output {
    output_with_input(command, batch)
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).replace('\r', "")
}

pub(crate) fn assert_success(output: &Output) {
    let (out, err) = (stdout(output), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
}

pub(crate) fn is_root() -> bool {
    stdout(&output(Command::new("id").arg("-u"))).trim() == "0"
}

/// A path for a batch of sftp, where a backslash escapes.
pub(crate) fn quoted(path: &Path) -> Vec<u8> {
    let escape = |byte: &u8| {
        if byte.is_ascii_alphanumeric() || b"/._-".contains(byte) || *byte >= 0x80 {
            vec![*byte]
        } else {
            vec![b'\\', *byte]
        }
    };
    path.as_os_str().as_bytes().iter().flat_map(escape).collect()
}

pub(crate) fn os(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}
