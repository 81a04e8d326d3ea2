//! What the tests of several crates share. Everything panics where it cannot do what it is asked for.

pub mod images;
pub mod registry;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use msb_ssh::process::{Process, ProcessEvent};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// A program of this checkout, built by the cargo that runs the test with arguments that say `which`.
pub fn built(which: &[&str]) -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    // What cargo says of the test's own package would have build scripts run again.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&*name);
        }
    }
    let output = cargo
        .args(["build", "--locked", "--message-format=json"])
        .args(which)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "{which:?} cannot be built");
    let messages = String::from_utf8(output.stdout).unwrap();
    let messages = messages
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    messages
        .filter_map(|message| Some(message["executable"].as_str()?.into()))
        .next_back()
        .expect("a build names its executable")
}

/// The amount in kB after `key` in what `/proc` says of memory (proc(5): meminfo, PID/status).
pub fn kib_in(text: &str, key: &str) -> Option<u32> {
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    let (_, amount) = fields.find(|(name, _)| *name == key)?;
    amount.trim().strip_suffix(" kB")?.parse().ok()
}

/// The name of the user of this process.
pub fn own_user() -> String {
    let output = Command::new("id").arg("-un").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Bytes that do not repeat at the length of any packet or request, so that loss, doubling and disorder all show.
pub fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut bytes = Vec::with_capacity(length + 4);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Both ends of a pseudo-terminal: the user's side, and the one that programs see.
pub fn terminal() -> (File, OwnedFd) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let slave = rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    (master.into(), slave)
}

/// Reads the output of a process until it contains `expected`, and returns what it read.
pub async fn until(process: &mut Process, expected: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(expected) {
        match process.events.next().await.unwrap() {
            Some(ProcessEvent::Stdout(data)) => seen.push_str(&String::from_utf8_lossy(&data)),
            other => panic!("{other:?} before {expected:?}, after {seen:?}"),
        }
    }
    seen
}
