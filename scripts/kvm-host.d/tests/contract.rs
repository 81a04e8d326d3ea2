//! What scripts/kvm-host promises, on the emulated host: QEMU really boots.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// What a killed process needs to end, with a lot to spare.
const AT_MOST: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

fn kvm_host(command: &[&str]) -> Command {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../kvm-host");
    // A shell in the background ignores SIGINT, and all that it starts inherits that.
    let mut run = Command::new("env");
    run.arg("--default-signal=INT").arg(script);
    run.arg("--").args(command).env("MSB_KVM_HOST", "emulated");
    run
}

fn children(parent: &Child) -> Vec<Pid> {
    let parent = parent.id();
    fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))
        .expect("the process lives")
        .split_whitespace()
        .map(|pid| Pid::from_raw(pid.parse().expect("a process id")).expect("a process id is not 0"))
        .collect()
}

#[test]
fn streams_arguments_and_the_exit_status_pass_unchanged() {
    let mut child = kvm_host(&[
        "sh",
        "-c",
        "printf '<%s>' \"$@\" >&2; cat; exit 3",
        "sh",
        "a b",
        "",
        "\u{e9}$x\n",
    ])
    .stdin(Stdio::piped())
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .expect("the script starts");
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let mut input = child.stdin.take().expect("standard input is piped");
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || input.write_all(&sent));
    let output = child.wait_with_output().expect("the script ends");
    writer
        .join()
        .expect("the writer does not panic")
        .expect("all input is taken");
    assert_eq!(output.status.code(), Some(3), "{}", output.stderr.escape_ascii());
    assert!(output.stdout == bytes);
    assert!(
        output.stderr.ends_with("<a b><><\u{e9}$x\n>".as_bytes()),
        "{}",
        output.stderr.escape_ascii()
    );
}

#[test]
fn an_interrupt_leaves_no_process() {
    let mut child = kvm_host(&["sh", "-c", "echo up; exec sleep 1000"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the script starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("standard output is piped"))
        .read_line(&mut line)
        .expect("the command says something");
    assert_eq!(line, "up\n");
    let machines = children(&child);
    assert!(!machines.is_empty(), "QEMU is a child of the script");
    let handles: Vec<_> = machines
        .iter()
        .map(|pid| pidfd_open(*pid, PidfdFlags::empty()).expect("QEMU runs"))
        .collect();

    let script = Pid::from_child(&child);
    kill_process(script, Signal::INT).expect("the script runs");

    assert!(!child.wait().expect("a child can be waited for").success());
    for handle in &handles {
        // Readable once the process has ended.
        let ended = poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(&AT_MOST)).expect("poll");
        assert_eq!(ended, 1, "QEMU still runs");
    }
}
