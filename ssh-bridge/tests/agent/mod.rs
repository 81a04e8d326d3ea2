//! The real agent of the guest, `msb-agent serve --stdio`, as a process of this machine.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use msb_ssh::client::{ClientConfig, SshClient};
use msb_ssh::keys::KeyPair;
use msb_test_support::{built, own_user};

/// An agent with keys and a directory of its own. It ends with its connection.
pub(crate) struct Agent {
    directory: tempfile::TempDir,
    host_key: KeyPair,
    client_key: KeyPair,
    process: Child,
}

impl Agent {
    /// Ends its connection at once, and starts another to the same processes.
    pub(crate) async fn reconnected(&mut self) -> SshClient {
        let stream = self.restart();
        SshClient::connect(stream, self.config()).await.unwrap()
    }

    /// Starts one, with a client that is logged in as the user of this process.
    pub(crate) async fn connected() -> (Self, SshClient) {
        let (agent, stream) = Self::start();
        let config = agent.config();
        (agent, SshClient::connect(stream, config).await.unwrap())
    }

    pub(crate) fn start() -> (Self, tokio::net::UnixStream) {
        let directory = tempfile::tempdir().unwrap();
        let host_key = KeyPair::generate_ed25519("host").unwrap();
        let client_key = KeyPair::generate_ed25519("client").unwrap();
        let (host, keys) = (directory.path().join("host"), directory.path().join("keys"));
        write_private(&host, host_key.to_openssh().unwrap().as_bytes());
        write_private(&keys, client_key.public_line().as_bytes());
        let (process, stream) = serve(directory.path());
        let agent = Self {
            directory,
            host_key,
            client_key,
            process,
        };
        (agent, stream)
    }

    /// Ends its connection, and starts another with the same keys and directory.
    fn restart(&mut self) -> tokio::net::UnixStream {
        self.kill();
        self.process.wait().unwrap();
        let (process, stream) = serve(self.directory.path());
        self.process = process;
        stream
    }

    pub(crate) fn config(&self) -> ClientConfig {
        let host_key = self.host_key.public_key().clone();
        ClientConfig::new(own_user(), self.client_key.private_key().clone(), host_key)
    }

    /// A path in its own directory.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn serve(directory: &Path) -> (Child, tokio::net::UnixStream) {
    let (stream, agents) = UnixStream::pair().unwrap();
    let process = Command::new(binary())
        .args(["serve", "--stdio", "--host-key"])
        .arg(directory.join("host"))
        .arg("--authorized-keys")
        .arg(directory.join("keys"))
        .arg("--processes")
        .arg(directory.join("processes"))
        .stdin(OwnedFd::from(agents.try_clone().unwrap()))
        .stdout(OwnedFd::from(agents))
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    stream.set_nonblocking(true).unwrap();
    (process, tokio::net::UnixStream::from_std(stream).unwrap())
}

fn write_private(path: &Path, content: &[u8]) {
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path).unwrap();
    std::io::Write::write_all(&mut file, content).unwrap();
}

/// The agent of this checkout.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| built(&["--package", "msb-agent"]))
}
