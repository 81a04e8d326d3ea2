//! The one server of all trials.

use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use msb_tests::{Endpoint, Msb, ProgramsDisk, finish};
use tempfile::TempDir;

/// What the guest needs for the clients that run a program of their own there; the built-in image has none of them.
const PROGRAMS: [&str; 5] = [
    "/usr/bin/git",
    "/usr/bin/git-receive-pack",
    "/usr/bin/git-upload-pack",
    "/usr/bin/python3",
    "/usr/bin/scp",
];

/// A server, and where the trials keep their files.
pub(crate) struct Fixture {
    pub(crate) server: Endpoint,
    /// A directory on the server.
    pub(crate) remote: String,
    /// Its end removes the sandbox.
    _msb: Option<Msb>,
    scratch: TempDir,
}

impl Fixture {
    /// A sandbox, or the `msb-agent` or `sshd` that `MSB_INTEROP_SERVER` names.
    pub(crate) fn new() -> Self {
        let scratch = tempfile::Builder::new().prefix("interop").tempdir_in("/tmp").unwrap();
        let clients = scratch.path().join("clients");
        let (server, msb) = match std::env::var_os("MSB_INTEROP_SERVER").map(PathBuf::from) {
            Some(server) if server.ends_with("sshd") => (Endpoint::of_sshd(&clients), None),
            Some(agent) => (Endpoint::of_agent(&agent, &clients), None),
            None => {
                let msb = Msb::new();
                (sandbox(&msb, scratch.path(), &clients), Some(msb))
            }
        };
        let remote = scratch.path().join("remote").display().to_string();
        finish(&mut server.ssh(&format!("mkdir -p {remote}"))).expect(0);
        Self {
            server,
            remote,
            _msb: msb,
            scratch,
        }
    }

    /// A local path for the files of a trial.
    pub(crate) fn local(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// A path on the server for the files of a trial.
    pub(crate) fn remote(&self, name: &str) -> String {
        format!("{}/{name}", self.remote)
    }

    /// A client program of a Debian package.
    pub(crate) fn client(&self, program: &str, package: &str) -> Command {
        require(program, package);
        self.server.command(program)
    }

    /// A local file of `size` bytes that do not repeat.
    pub(crate) fn random_file(&self, name: &str, size: usize) -> PathBuf {
        let path = self.local(name);
        let script = format!("head -c {size} /dev/urandom > {}", path.display());
        finish(Command::new("sh").args(["-c", &script])).expect(0);
        path
    }
}

/// A client in the background, which ends with its trial however that ends.
pub(crate) struct Background(Child);

impl Background {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }

    pub(crate) fn take_input(&mut self) -> ChildStdin {
        self.0.stdin.take().expect("its input is taken once")
    }

    pub(crate) fn take_output(&mut self) -> BufReader<ChildStdout> {
        BufReader::new(self.0.stdout.take().expect("its output is taken once"))
    }

    /// Waits for its end; returns its exit status.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        self.0.wait().unwrap().code()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A trial whose client is missing fails: one that is skipped says nothing.
pub(crate) fn require(program: &str, package: &str) {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|directory| directory.join(program).exists()));
    assert!(
        found,
        "{program} is not installed: apt-get install {package}, or scripts/test as root"
    );
}

fn sandbox(msb: &Msb, scratch: &Path, clients: &Path) -> Endpoint {
    let mut library = Command::new("/usr/bin/python3");
    let library = finish(library.args(["-c", "import sysconfig; print(sysconfig.get_path('stdlib'))"])).expect(0);
    let disk = ProgramsDisk::make(scratch, &PROGRAMS, &[library.text().trim()]);
    let disk = format!("{}:ro", disk.image.display());
    let sandbox = msb.create_with("interop", &["--memory", "512M", "--disk", &disk]);
    let server = Endpoint::of_sandbox(msb, &sandbox, clients);
    finish(&mut server.ssh(ProgramsDisk::INSTALL)).expect(0);
    server
}
