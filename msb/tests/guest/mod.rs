//! A sandbox that runs without a VM: its records say so, and what answers on its socket is the real agent, as a process
//! of this machine for each connection.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use jiff::Timestamp;
use msb::sandbox::records::{ProcessIdentity, ReadyRecord, RunRecord};
use msb::ssh::SshClientOptions;
use msb::store::files;
use msb::store::layout::Layout;
use msb::store::lock::RunLock;
use msb::timings::Timings;
use msb::{Sandbox, SandboxSpec, Store};
use msb_protocol::ports;
use msb_test_support::{built, own_user};

/// A sandbox named `box`, with a store and a directory of its own.
pub(crate) struct Guest {
    directory: tempfile::TempDir,
    pub(crate) sandbox: Sandbox,
    _lock: RunLock,
}

impl Guest {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(Layout {
            home: directory.path().join("home"),
            runtime: directory.path().join("run"),
        });
        let spec = SandboxSpec {
            name: Some("box".parse().unwrap()),
            ..SandboxSpec::default()
        };
        let sandbox = Sandbox::create(&store, spec, &[]).unwrap();
        let lock = RunLock::try_acquire(&sandbox.dir().lock()).unwrap().unwrap();
        let socket = directory.path().join("v.sock");
        serve(&socket, &sandbox);
        let run = RunRecord {
            run_id: "test".into(),
            process: ProcessIdentity::of_self().unwrap(),
            vm: None,
            volumes: Vec::new(),
            started_at: Timestamp::now(),
            socket,
        };
        let ready = ReadyRecord {
            run_id: run.run_id.clone(),
            ready_at: Timestamp::now(),
            agent: String::new(),
            timings: Timings::default(),
        };
        files::replace_json(&sandbox.dir().run(), &run).unwrap();
        files::replace_json(&sandbox.dir().ready(), &ready).unwrap();
        Self {
            directory,
            sandbox,
            _lock: lock,
        }
    }

    /// A path in its own directory, for either side.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(name)
    }

    /// To log in as the user of this process, the only one that every process can be.
    pub(crate) fn options(&self) -> SshClientOptions {
        SshClientOptions {
            user: own_user(),
            ..SshClientOptions::default()
        }
    }

    /// `msb` with its store.
    pub(crate) fn msb(&self) -> Command {
        // A shell in the background ignores SIGINT, and all that it starts inherits that.
        let mut command = Command::new("env");
        command
            .args(["--default-signal=INT", env!("CARGO_BIN_EXE_msb")])
            .env("MSB_HOME", self.path("home"))
            .env("MSB_RUNTIME_DIR", self.path("run"))
            .stdin(Stdio::null());
        command
    }
}

/// Answers as a VMM's socket does. Ends with the process of the test.
fn serve(socket: &Path, sandbox: &Sandbox) {
    let listener = UnixListener::bind(socket).unwrap();
    let (host_key, keys) = (sandbox.dir().host_key(), sandbox.dir().authorized_keys());
    let agent = agent();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let opening = match connect(&mut stream) {
                ports::PREPARED_SSH => Some("--preamble"),
                port => {
                    assert_eq!(port, ports::SSH);
                    None
                }
            };
            let mut process = Command::new(agent)
                .args(["serve", "--stdio"])
                .args(opening)
                .arg("--host-key")
                .arg(&host_key)
                .arg("--authorized-keys")
                .arg(&keys)
                .stdin(OwnedFd::from(stream.try_clone().unwrap()))
                .stdout(OwnedFd::from(stream))
                .spawn()
                .unwrap();
            std::thread::spawn(move || process.wait());
        }
    });
}

/// Takes `CONNECT PORT` and says that it is done. Returns the port.
fn connect(stream: &mut UnixStream) -> u32 {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    stream.write_all(b"OK 1073741824\n").unwrap();
    let line = String::from_utf8(line).unwrap();
    let port = line
        .strip_prefix("CONNECT ")
        .and_then(|port| port.trim_end().parse().ok());
    port.unwrap_or_else(|| panic!("{line:?} is no request"))
}

/// The agent of this checkout.
fn agent() -> &'static Path {
    static AGENT: OnceLock<PathBuf> = OnceLock::new();
    AGENT.get_or_init(|| built(&["--package", "msb-agent"]))
}
