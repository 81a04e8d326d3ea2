//! `msb run`: a command in a sandbox of its own.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use msb_tests::{Msb, finish, finish_with_input, vmlinux};

#[test]
fn a_command_runs_in_the_guest_and_nothing_is_left_of_it() {
    let msb = Msb::new();
    let run = msb.run(["run", "--", "uname", "-a"]).expect(0);
    assert!(run.text().contains("-msb"), "the guest's kernel: {}", run.text());
    assert_eq!(msb.leftovers(), [""; 0]);
}

#[test]
fn arguments_arrive_as_they_are_and_input_output_and_status_pass_through() {
    let msb = Msb::new();
    let script = "cat; printf '%s|' \"$@\"; echo err >&2; exit 7";
    let mut run = msb.command(["run", "--", "sh", "-c", script, "sh", "a b", "$HOME'\"", "", "*"]);
    let run = finish_with_input(&mut run, b"input\n".to_vec()).expect(7);
    assert_eq!(run.text(), "input\na b|$HOME'\"||*|");
    assert!(run.stderr.contains("err"), "{}", run.stderr);
}

#[test]
fn with_a_kernel_of_ones_own_the_programs_are_in_the_initramfs() {
    let msb = Msb::new();
    let kernel = vmlinux().display().to_string();
    let script = "grep -c cramfs /proc/mounts; busybox true && readlink -f /bin/sh";
    let run = |options: &[&str]| {
        let run = [&["run"], options, &["--", "sh", "-c", script]].concat();
        msb.run(run).expect(0).text()
    };
    assert_eq!(run(&[]), "1\n/usr/lib/msb/programs/busybox\n");
    assert_eq!(run(&["--kernel", &kernel]), "0\n/usr/lib/msb/programs/busybox\n");
}

#[test]
fn a_death_by_signal_is_128_plus_its_number() {
    let msb = Msb::new();
    msb.run(["run", "--", "sh", "-c", "kill -TERM $$"]).expect(128 + 15);
}

#[test]
fn the_guest_has_the_cpus_and_the_memory_it_was_given() {
    let msb = Msb::new();
    let run = msb.run([
        "run",
        "--cpus",
        "2",
        "--memory",
        "384M",
        "--",
        "sh",
        "-c",
        "nproc; grep MemTotal /proc/meminfo",
    ]);
    let text = run.expect(0).text();
    let mut words = text.split_whitespace();
    assert_eq!(words.next(), Some("2"));
    let kib: u32 = words.nth(1).unwrap().parse().unwrap();
    assert!((330 * 1024..384 * 1024).contains(&kib), "{kib} KiB");
}

#[test]
fn no_port_is_open_on_the_host_while_a_sandbox_runs() {
    let msb = Msb::new();
    // In a network of its own, where nobody else's connections are.
    let script = "msb create --name quiet && msb exec quiet -- true";
    finish(
        msb.command_of("unshare")
            .args(["--map-root-user", "--net", "sh", "-c", script]),
    )
    .expect(0);
    let inspected: serde_json::Value = serde_json::from_slice(&msb.run(["inspect", "quiet"]).expect(0).stdout).unwrap();
    for pid in [&inspected["pid"], &inspected["vm"]["pid"]] {
        for table in ["tcp", "tcp6", "udp", "udp6"] {
            let path = format!("/proc/{pid}/net/{table}");
            let sockets = std::fs::read_to_string(&path).unwrap();
            assert_eq!(sockets.lines().skip(1).collect::<Vec<_>>(), [""; 0], "{path}");
        }
    }
}

#[test]
fn an_interrupted_run_ends_its_sandbox() {
    let msb = Msb::new();
    for signal in [
        rustix::process::Signal::INT,
        rustix::process::Signal::TERM,
        rustix::process::Signal::KILL,
    ] {
        let mut run = msb
            .command(["run", "--", "sh", "-c", "echo up; cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(run.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "up\n");
        rustix::process::kill_process(rustix::process::Pid::from_child(&run), signal).unwrap();
        assert!(!run.wait().unwrap().success());
        // The VMM process of a killed `run` ends by itself: its lock is released when it does.
        wait_until_gone(&msb);
        msb.run(["ls"]).expect(0);
        assert_eq!(msb.leftovers(), [""; 0], "after {signal:?}");
    }
}

/// Waits for the processes of `msb` to end, by their own descriptors.
fn wait_until_gone(msb: &Msb) {
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        let cmdline = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        if !cmdline.contains(&*msb.home().to_string_lossy()) {
            continue;
        }
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        let Ok(process) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
            continue;
        };
        let mut ends = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
        let limit = rustix::event::Timespec { tv_sec: 60, tv_nsec: 0 };
        assert_eq!(
            rustix::event::poll(&mut ends, Some(&limit)),
            Ok(1),
            "still there: {cmdline}"
        );
    }
}

#[test]
fn timings_tell_each_phase_in_order() {
    let msb = Msb::new();
    let run = msb.run(["run", "--timings", "--", "echo", "out"]).expect(0);
    let json = run
        .stderr
        .lines()
        .rfind(|line| line.starts_with('{'))
        .expect("a JSON line");
    let timings: serde_json::Value = serde_json::from_str(json).unwrap();
    let phases = [
        "process_started_us",
        "created_us",
        "vmm_started_us",
        "kernel_loaded_us",
        "vm_built_us",
        "vm_started_us",
        "ready_us",
        "ready_seen_us",
        "ssh_connected_us",
        "first_output_us",
        "session_ended_us",
        "removed_us",
    ];
    // The process that spawned the VMM process and that itself go on side by side.
    let of_the_guest = ["guest_init_us", "guest_ready_us"];
    for phases in [
        &phases[..],
        &["created_us", "spawned_us", "ready_seen_us"],
        &of_the_guest,
    ] {
        let stamps: Vec<_> = phases.iter().map(|phase| timings[phase].as_u64()).collect();
        assert!(stamps.iter().all(Option::is_some) && stamps.is_sorted(), "{json}");
    }
}

#[test]
fn the_doctor_really_runs_a_guest() {
    let msb = Msb::new();
    let doctor = msb.run(["doctor"]).expect(0);
    assert!(doctor.text().to_lowercase().contains("guest"), "{}", doctor.text());
    assert_eq!(msb.leftovers(), [""; 0]);
}

#[test]
fn completion_is_a_script_that_bash_accepts() {
    let msb = Msb::new();
    let script = msb.run(["completion", "bash"]).expect(0).stdout;
    finish_with_input(Command::new("bash").arg("-n"), script).expect(0);
    finish(&mut msb.command(["completion", "nonsense"])).refusal();
}
