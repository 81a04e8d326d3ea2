//! An `msb` with a home of its own, and sandboxes that go with their test.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Pid;

use crate::commands::{Finished, finish};

/// The binary under test, its state in a directory that nobody else uses.
#[derive(Debug)]
pub struct Msb {
    directory: tempfile::TempDir,
    /// In whose place the runtime directory is in this one.
    memory: Option<tempfile::TempDir>,
}

/// A running sandbox.
#[derive(Debug)]
pub struct Sandbox<'a> {
    msb: &'a Msb,
    /// Its name.
    pub name: String,
}

impl Msb {
    /// An empty home, with short paths for sockets.
    ///
    /// # Panics
    /// When there is no space for it.
    pub fn new() -> Self {
        Self {
            directory: directory_in("/tmp"),
            memory: None,
        }
    }

    /// One whose runtime directory is in memory, as it is by default: guests share their programs then.
    ///
    /// # Panics
    /// As [`Self::new`].
    pub fn in_memory() -> Self {
        let mut msb = Self::new();
        msb.memory = Some(directory_in("/dev/shm"));
        msb
    }

    /// `$MSB_HOME`.
    pub fn home(&self) -> PathBuf {
        self.directory.path().join("home")
    }

    /// `$MSB_RUNTIME_DIR`.
    pub fn runtime(&self) -> PathBuf {
        self.memory.as_ref().unwrap_or(&self.directory).path().join("run")
    }

    /// A directory for the test's own files.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `msb` with `arguments`, not started yet.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.command_of("msb");
        command.args(arguments);
        command
    }

    /// Another program, for which `msb` has this home.
    pub fn command_of(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("MSB_HOME", self.home())
            .env("MSB_RUNTIME_DIR", self.runtime())
            .env_remove("SSH_AUTH_SOCK");
        command
    }

    /// Runs `msb` with `arguments`.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Finished {
        finish(&mut self.command(arguments))
    }

    /// Creates and starts the sandbox `name`.
    ///
    /// # Panics
    /// When that fails.
    pub fn create(&self, name: &str) -> Sandbox<'_> {
        self.create_with(name, &[])
    }

    /// Creates and starts the sandbox `name` with more options.
    ///
    /// # Panics
    /// When that fails.
    pub fn create_with(&self, name: &str, options: &[&str]) -> Sandbox<'_> {
        self.run(["create", "--name", name].iter().chain(options)).expect(0);
        self.sandbox(name)
    }

    /// The sandbox `name`, which runs.
    pub fn sandbox(&self, name: &str) -> Sandbox<'_> {
        Sandbox {
            msb: self,
            name: name.to_owned(),
        }
    }

    /// The sandbox `name` for a program.
    ///
    /// # Panics
    /// When there is none.
    pub fn open(&self, name: &str) -> msb::Sandbox {
        msb::Sandbox::find(&self.store(), name).expect("the sandbox exists")
    }

    /// Its store for a program.
    pub fn store(&self) -> msb::Store {
        msb::Store::new(msb::store::layout::Layout {
            home: self.home(),
            runtime: self.runtime(),
        })
    }

    /// What `msb ls` says.
    ///
    /// # Panics
    /// When that is no JSON array.
    pub fn list(&self) -> Vec<serde_json::Value> {
        let listed = self.run(["ls", "--json"]).expect(0);
        serde_json::from_slice(&listed.stdout).expect("ls --json prints an array")
    }

    /// The state of the sandbox `name` as `msb ls` says.
    ///
    /// # Panics
    /// When there is no such sandbox.
    pub fn state(&self, name: &str) -> String {
        let listed = self.list();
        let of_name = listed.iter().find(|sandbox| sandbox["name"] == name);
        of_name.unwrap_or_else(|| panic!("no {name} in {listed:?}"))["state"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// Stock `ssh`, `scp`, `sftp` or `rsync` with the configuration that `msb ssh-config` prints.
    ///
    /// # Panics
    /// When the configuration cannot be had.
    pub fn openssh(&self, program: &str) -> Command {
        let config = self.ssh_config();
        let mut command = self.command_of(program);
        if program == "rsync" {
            command.arg("-e").arg(format!("ssh -F {}", config.display()));
        } else {
            command.arg("-F").arg(config);
        }
        command
    }

    /// The file with what `msb ssh-config` prints.
    ///
    /// # Panics
    /// When it cannot be had.
    pub fn ssh_config(&self) -> PathBuf {
        let path = self.scratch("ssh_config");
        if !path.exists() {
            fs::write(&path, self.run(["ssh-config"]).expect(0).stdout).expect("the test's directory is writable");
        }
        path
    }

    /// What is left of sandboxes: processes, directories, names, sockets, pinned keys, cgroups.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left = self.processes();
        for directory in ["sandboxes", "names", "transient", "pools"] {
            left.extend(entries(&self.home().join(directory)));
        }
        // What all share is no sandbox's.
        left.extend(
            entries(&self.runtime())
                .into_iter()
                .filter(|path| !path.contains("/shared-")),
        );
        left.extend(entries(&self.home()).into_iter().filter(|path| path.ends_with(".tmp")));
        let known_hosts = fs::read_to_string(self.home().join("known_hosts")).unwrap_or_default();
        left.extend(known_hosts.lines().map(str::to_owned));
        left.extend(orphaned_cgroups());
        left
    }

    /// Command lines of live processes that use this home.
    pub fn processes(&self) -> Vec<String> {
        let mark = self.directory.path().to_string_lossy().into_owned();
        command_lines().filter(|line| line.contains(&mark)).collect()
    }

    /// The processes that stand by forks of this home which wait in a pool, or run a session of who took one.
    pub fn standbys(&self) -> Vec<Pid> {
        let home = format!("MSB_HOME={}", self.home().display());
        let mut processes = entries(Path::new("/proc"));
        processes.retain(|process| {
            let has = |file, word: &str| words(process, file).iter().any(|other| other == word);
            has("cmdline", "stand-by") && has("environ", &home)
        });
        let pids = processes.iter().filter_map(|path| path.strip_prefix("/proc/"));
        pids.filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
    }
}

fn directory_in(parent: &str) -> tempfile::TempDir {
    let made = tempfile::Builder::new().prefix("msb").tempdir_in(parent);
    made.unwrap_or_else(|error| panic!("there is no space in {parent}: {error}"))
}

impl Default for Msb {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Msb {
    fn drop(&mut self) {
        for pool in entries(&self.home().join("pools")) {
            let _ = self.run(["pool", "rm", pool.rsplit('/').next().unwrap_or_default()]);
        }
        for sandbox in self.run(["ls", "--quiet"]).text().lines() {
            let _ = self.run(["rm", "--force", sandbox]);
        }
    }
}

impl Sandbox<'_> {
    /// `ssh` to it as root, to run `command`.
    pub fn ssh_command(&self, command: &str) -> Command {
        let mut ssh = self.msb.openssh("ssh");
        ssh.arg(self.host()).arg(command);
        ssh
    }

    /// Runs `command` in it by stock `ssh`.
    pub fn ssh(&self, command: &str) -> Finished {
        finish(&mut self.ssh_command(command))
    }

    /// The host name for ssh.
    pub fn host(&self) -> String {
        format!("{}.msb", self.name)
    }

    /// What `msb inspect` says.
    ///
    /// # Panics
    /// When that is no JSON object.
    pub fn inspect(&self) -> serde_json::Value {
        let inspected = self.msb.run(["inspect", &self.name]).expect(0);
        serde_json::from_slice(&inspected.stdout).expect("inspect prints JSON")
    }

    /// The VMM process, which keeps the sandbox.
    ///
    /// # Panics
    /// When it does not run.
    pub fn vmm(&self) -> Pid {
        pid_of(&self.inspect()["pid"])
    }

    /// Its id.
    ///
    /// # Panics
    /// When there is no such sandbox.
    pub fn id(&self) -> String {
        self.inspect()["id"]
            .as_str()
            .expect("every sandbox has an id")
            .to_owned()
    }

    /// The cgroup of its VM.
    ///
    /// # Panics
    /// When it has none.
    pub fn cgroup(&self) -> PathBuf {
        fs::read_link(self.msb.runtime().join(self.id()).join("cgroup")).expect("root's sandboxes have a cgroup")
    }

    /// The process of the VM itself, in its jail.
    ///
    /// # Panics
    /// When it does not run.
    pub fn vm(&self) -> Pid {
        pid_of(&self.inspect()["vm"]["pid"])
    }
}

/// The guest's kernel that belongs to the `msb` on `PATH`.
///
/// # Panics
/// When there is no such `msb`.
pub fn vmlinux() -> PathBuf {
    let lib = std::env::var_os("MSB_LIB").map(PathBuf::from).unwrap_or_else(|| {
        let script = "dirname \"$(dirname \"$(readlink -f \"$(command -v msb)\")\")\"";
        let tree = finish(Command::new("sh").args(["-c", script])).expect(0).text();
        Path::new(tree.trim()).join("lib/msb")
    });
    lib.join("vmlinux")
}

/// Those of all processes but this one.
fn command_lines() -> impl Iterator<Item = String> {
    let mine = format!("/proc/{}", std::process::id());
    let others = entries(Path::new("/proc"))
        .into_iter()
        .filter(move |process| *process != mine);
    others.map(|process| words(&process, "cmdline").join(" "))
}

/// The words of a process's `cmdline` or `environ` (proc(5)), each of which a zero ends.
fn words(process: &str, file: &str) -> Vec<String> {
    let bytes = fs::read(Path::new(process).join(file)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).split('\0').map(str::to_owned).collect()
}

/// Cgroups of sandboxes of any home whose processes are gone: those are told their sandbox's id.
fn orphaned_cgroups() -> Vec<String> {
    let mut found = entries(Path::new("/sys/fs/cgroup/msb"));
    let lines: Vec<_> = command_lines().collect();
    found.retain(|path| {
        let id = path.rsplit('/').next().unwrap_or_default();
        // Asked last: what has gone meanwhile is no leftover.
        !lines.iter().any(|line| line.contains(id)) && Path::new(path).is_dir()
    });
    found
}

fn pid_of(value: &serde_json::Value) -> Pid {
    let pid = value.as_i64().and_then(|pid| i32::try_from(pid).ok());
    pid.and_then(Pid::from_raw).expect("a running sandbox has this process")
}

fn entries(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| entry.path().to_string_lossy().into_owned())
        .collect()
}
