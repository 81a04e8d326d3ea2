//! A cold start of `msb` beside that of its rivals, in turn.
//!
//! All guests have one CPU and as much memory. microsandbox runs `true` in a root file system of this host's busybox;
//! Firecracker boots our kernel and initramfs until the first program says a word, which is less than a sandbox: no agent,
//! no SSH, no identity.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::Instant;

use msb_tests::{Msb, finish};
use serde_json::{Value, json};

use crate::emulation::forget_earlier_guests;
use crate::figure::Figure;
use crate::firecracker;
use crate::report::version;

const MEMORY_MIB: u32 = 256;

/// What the guest of Firecracker says as its first program.
const MARK: &str = "msb-bench-init";

/// A rival, by where its program is.
#[derive(Debug)]
pub(crate) struct Peer {
    kind: Kind,
    program: PathBuf,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Firecracker,
    /// With the arguments that the VMM of msb gives the kernel.
    FirecrackerTuned,
    Microsandbox,
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, path) = text
            .split_once('=')
            .ok_or_else(|| format!("--peer needs NAME=PATH, not {text}"))?;
        let kind = match name {
            "firecracker" => Kind::Firecracker,
            "firecracker-tuned" => Kind::FirecrackerTuned,
            "microsandbox" => Kind::Microsandbox,
            other => {
                return Err(format!(
                    "there is no peer {other}: choose from firecracker, firecracker-tuned and microsandbox"
                ));
            }
        };
        let program = fs::canonicalize(path).map_err(|error| format!("cannot find {path}: {error}"))?;
        Ok(Self { kind, program })
    }
}

impl Peer {
    /// Its program, if it is Firecracker.
    pub(crate) fn firecracker(&self) -> Option<&Path> {
        (self.kind == Kind::Firecracker).then_some(&*self.program)
    }

    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Firecracker => "firecracker: process start to guest init",
            Kind::FirecrackerTuned => "firecracker, kernel arguments of msb: process start to guest init",
            Kind::Microsandbox => "microsandbox run -- true: whole process",
        }
    }

    /// Makes ready in `directory` what a start takes.
    fn prepare(&self, directory: &Path) {
        fs::create_dir_all(directory).expect("there is space");
        match self.kind {
            Kind::Firecracker => firecracker_config(directory, firecracker::ARGUMENTS),
            Kind::FirecrackerTuned => firecracker_config(directory, msb_vmm::KERNEL_ARGUMENTS),
            Kind::Microsandbox => busybox_root(&directory.join("root")),
        }
    }

    /// Milliseconds that a start takes.
    fn start(&self, directory: &Path) -> f64 {
        match self.kind {
            Kind::Firecracker | Kind::FirecrackerTuned => to_line(
                &mut firecracker::command(&self.program, &directory.join("vm.json")),
                MARK,
            ),
            Kind::Microsandbox => {
                let mut command = Command::new(&self.program);
                // Both call their state's place MSB_HOME, and this one starts the first msb of PATH for its VM.
                command.env("MSB_HOME", directory.join("home"));
                command.env("PATH", first_in_path(&self.program));
                let memory = format!("{MEMORY_MIB}M");
                command.args(["run", "--no-stdin", "--cpus", "1", "--memory", &memory]);
                command.arg(directory.join("root")).args(["--", "true"]);
                finish(&mut command).expect(0).took.as_secs_f64() * 1e3
            }
        }
    }
}

fn firecracker_config(directory: &Path, arguments: &str) {
    // Its busybox says MARK as the first program and ends, which ends the machine.
    let init = format!("/bin/busybox -- echo {MARK}");
    firecracker::write_config(&directory.join("vm.json"), MEMORY_MIB, (arguments, &init), None, None);
}

/// `PATH` with the directory of `program` before all others.
fn first_in_path(program: &Path) -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directory = program.parent().map(Path::to_owned);
    let directories = directory.into_iter().chain(std::env::split_paths(&path));
    std::env::join_paths(directories).unwrap_or(path.clone())
}

/// Versions of the rivals, by program.
pub(crate) fn versions(peers: &[Peer]) -> Value {
    let version = |peer: &Peer| json!({ "program": peer.program, "version": version(&peer.program.to_string_lossy(), "--version") });
    peers.iter().map(version).collect()
}

/// `msb run` and the same of each rival in turn, then the ratios.
pub(crate) fn measure(samples: usize, peers: &[Peer]) -> Vec<Figure> {
    let msb = Msb::in_memory();
    let memory = format!("{MEMORY_MIB}M");
    let mut ours = Figure::cold("msb run -- true: whole process", "ms");
    let mut figures: Vec<_> = peers.iter().map(|peer| Figure::cold(peer.name(), "ms")).collect();
    // microsandbox needs a file system with extended attributes, which /tmp of the emulated host is not.
    let disk = Path::new("/scratch");
    let parent = if disk.is_dir() { disk } else { Path::new("/tmp") };
    let scratch = tempfile::tempdir_in(parent).expect("there is space");
    let directories: Vec<_> = (0..peers.len())
        .map(|number| scratch.path().join(format!("peer{number}")))
        .collect();
    for (peer, directory) in peers.iter().zip(&directories) {
        peer.prepare(directory);
    }
    // The first of each reads everything from the disk.
    for sample in 0..=samples {
        forget_earlier_guests();
        let run = msb
            .run(["run", "--cpus", "1", "--memory", &memory, "--", "true"])
            .expect(0);
        let theirs: Vec<f64> = peers
            .iter()
            .zip(&directories)
            .map(|(peer, directory)| {
                forget_earlier_guests();
                peer.start(directory)
            })
            .collect();
        if sample > 0 {
            ours.add(run.took.as_secs_f64() * 1e3);
            figures
                .iter_mut()
                .zip(theirs)
                .for_each(|(figure, millis)| figure.add(millis));
        }
    }
    let ratio = |theirs: &Figure| ours.ratio_to(format!("msb run -- true / {}", theirs.name), theirs);
    let ratios: Vec<_> = figures.iter().map(ratio).collect();
    std::iter::once(ours).chain(figures).chain(ratios).collect()
}

/// Milliseconds until `command` prints a line with `mark`; then it is ended, if it has not.
fn to_line(command: &mut Command, mark: &str) -> f64 {
    let began = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    let mut lines = BufReader::new(child.stdout.take().expect("standard output is piped")).lines();
    let found = lines.any(|line| line.is_ok_and(|line| line.contains(mark)));
    let took = began.elapsed();
    let _ = child.kill();
    child.wait().expect("a child can be waited for");
    assert!(found, "{command:?} ended without saying {mark}");
    took.as_secs_f64() * 1e3
}

/// A root file system with this host's busybox.
fn busybox_root(root: &Path) {
    let busybox = finish(Command::new("sh").args(["-c", "command -v busybox"])).expect(0);
    for directory in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
        fs::create_dir_all(root.join(directory)).expect("there is space");
    }
    fs::copy(busybox.text().trim(), root.join("bin/busybox")).expect("there is space");
    for applet in ["sh", "true"] {
        symlink("busybox", root.join("bin").join(applet)).expect("the directory is new");
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").expect("there is space");
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A program that answers as a rival does, and keeps what it was told.
    fn stand_in(directory: &Path, script: &str) -> PathBuf {
        let program = directory.join("stand-in");
        fs::write(
            &program,
            format!("#!/bin/sh\necho \"$*\" >'{}/told'\n{script}\n", directory.display()),
        )
        .unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        program
    }

    #[test]
    fn firecracker_is_timed_until_its_guest_speaks() {
        let directory = tempfile::tempdir().unwrap();
        let script = format!("echo boot; echo {MARK}; exec sleep 60");
        let peer: Peer = format!("firecracker={}", stand_in(directory.path(), &script).display())
            .parse()
            .unwrap();
        assert!(peer.start(directory.path()) < 60_000.0);
        let told = fs::read_to_string(directory.path().join("told")).unwrap();
        assert_eq!(
            told,
            format!("--no-api --config-file {}/vm.json\n", directory.path().display())
        );
    }

    #[test]
    fn microsandbox_is_timed_to_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let script = "command -v stand-in >>\"${0%/*}/told\"";
        let peer: Peer = format!("microsandbox={}", stand_in(directory.path(), script).display())
            .parse()
            .unwrap();
        peer.start(directory.path());
        let told = fs::read_to_string(directory.path().join("told")).unwrap();
        let (arguments, first) = told.split_once('\n').unwrap();
        assert!(
            arguments.starts_with("run ") && arguments.ends_with("/root -- true"),
            "{told}"
        );
        assert_eq!(Path::new(first.trim()), peer.program);
    }
}
