//! Sandboxes that are paused, saved, restored and forked.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use msb_tests::{Msb, finish, sha256};
use rustix::process::{Pid, Signal, kill_process};

/// Fills a file of the guest's memory and a part of its disk with random bytes, prints their digests, and leaves a
/// program running that counts.
const PREPARE: &str = "set -e; head -c 1m /dev/urandom >/tmp/canary; sha256sum </tmp/canary
dd if=/tmp/canary of=/dev/vda bs=64k 2>/dev/null; sync; head -c 1m /dev/vda | sha256sum
setsid sh -c 'while :; do echo >>/tmp/count; sleep 0.5; done' >/dev/null 2>&1 </dev/null &
while [ ! -s /tmp/count ]; do sleep 0.2; done";

/// The digests once more, after the program has counted on.
const CHECK: &str = "set -e; sha256sum </tmp/canary; head -c 1m /dev/vda | sha256sum
old=$(wc -c </tmp/count); while [ $(wc -c </tmp/count) = $old ]; do sleep 0.2; done";

fn disk(msb: &Msb) -> String {
    let path = msb.scratch("disk.img");
    fs::File::create(&path).unwrap().set_len(16 << 20).unwrap();
    path.to_str().unwrap().to_owned()
}

fn exec(msb: &Msb, name: &str, script: &str) -> String {
    msb.run(["exec", name, "--", "sh", "-c", script]).expect(0).text()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn forks_go_on_where_the_sandbox_is_and_are_others() {
    let msb = Msb::in_memory();
    let disk = disk(&msb);
    let source = msb.create_with("source", &["--disk", &disk]);
    let canaries = exec(&msb, "source", PREPARE);
    // On its way when the sandbox is saved, and whole at its end.
    let slowly = "for i in $(seq 50); do head -c 64k /dev/zero; sleep 0.05; done; cat /tmp/canary";
    let mut download = source.ssh_command(slowly).stdout(Stdio::piped()).spawn().unwrap();
    let mut stream = download.stdout.take().unwrap();
    stream.read_exact(&mut [0]).unwrap();

    let forked = msb.run(["fork", "source", "-n", "2", "--name", "fork"]).expect(0);
    assert_eq!(forked.text().lines().count(), 2, "{}", forked.text());
    let mut downloaded = Vec::new();
    stream.read_to_end(&mut downloaded).unwrap();
    assert!(download.wait().unwrap().success());
    let canary = downloaded.split_off((50 << 16) - 1);
    assert!(canaries.starts_with(&sha256(canary)));

    let mut random = Vec::new();
    for name in ["fork-1", "fork-2", "source"] {
        assert_eq!(exec(&msb, name, CHECK), canaries, "{name}");
        // By stock ssh, which knows only the new host key.
        let ssh = finish(msb.openssh("ssh").arg(format!("{name}.msb")).arg("hostname")).expect(0);
        assert_eq!(ssh.text().trim(), name);
        random.push(exec(&msb, name, "head -c 16 /dev/urandom | od -An -tx1"));
        let (before, guest, after) = (now(), exec(&msb, name, "date +%s"), now());
        let guest: u64 = guest.trim().parse().unwrap();
        assert!(
            (before.saturating_sub(2)..=after).contains(&guest),
            "{name}: {before} {guest} {after}"
        );
    }
    assert!(
        random[0] != random[1] && random[1] != random[2] && random[0] != random[2],
        "{random:?}"
    );
    let key = |name: &str| fs::read(msb.home().join("names").join(name).join("host_key.pub")).unwrap();
    assert!(key("fork-1") != key("fork-2") && key("fork-1") != key("source"));

    // Each has its disk to itself, and a fork can be forked.
    exec(
        &msb,
        "fork-1",
        "echo fork >/tmp/canary; echo other | dd of=/dev/vda 2>/dev/null; sync",
    );
    msb.run(["fork", "fork-1", "--name", "grandchild"]).expect(0);
    assert!(exec(&msb, "grandchild", "cat /tmp/canary; head -n 1 /dev/vda").starts_with("fork\nother"));
    for name in ["fork-2", "source"] {
        assert_eq!(exec(&msb, name, CHECK), canaries, "{name}");
    }

    // It is a sandbox like any other.
    msb.run(["stop", "fork-1"]).expect(0);
    msb.run(["start", "fork-1"]).expect(0);
    assert_eq!(exec(&msb, "fork-1", "head -n 1 /dev/vda; ls /tmp"), "other\n");
    let names = ["fork-1", "fork-2", "grandchild", "source"];
    msb.run(["rm", "--force"].into_iter().chain(names)).expect(0);
    assert_eq!(msb.leftovers(), [""; 0]);
}

#[test]
fn memory_and_disk_survive_ten_pauses_and_ten_restores() {
    let msb = Msb::in_memory();
    let disk = disk(&msb);
    msb.create_with("round-0", &["--memory", "128M", "--disk", &disk]);
    let canaries = exec(&msb, "round-0", PREPARE);
    for _ in 0..10 {
        msb.run(["pause", "round-0"]).expect(0);
        assert_eq!(msb.state("round-0"), "paused");
        msb.run(["resume", "round-0"]).expect(0);
        assert_eq!(msb.state("round-0"), "running");
    }
    assert_eq!(exec(&msb, "round-0", CHECK), canaries);
    for round in 0..10 {
        let (name, next) = (format!("round-{round}"), format!("round-{}", round + 1));
        let snapshot = msb.scratch(&format!("snapshot-{round}"));
        let snapshot = snapshot.to_str().unwrap();
        msb.run(["snapshot", &name, snapshot]).expect(0);
        msb.run(["rm", "--force", &name]).expect(0);
        msb.run(["restore", snapshot, "--name", &next]).expect(0);
        fs::remove_dir_all(snapshot).unwrap();
    }
    assert_eq!(exec(&msb, "round-10", CHECK), canaries);
}

#[test]
fn what_is_paused_says_so_and_can_be_stopped() {
    let msb = Msb::in_memory();
    msb.create("still");
    msb.run(["pause", "still"]).expect(0);
    msb.run(["pause", "still"]).expect(0);
    let refusal = msb.run(["exec", "still", "--", "true"]).refusal();
    assert!(refusal.contains("msb resume still"), "{refusal}");
    msb.run(["fork", "still", "--name", "moving"]).expect(0);
    assert_eq!(msb.state("still"), "paused");
    assert_eq!(msb.state("moving"), "running");
    msb.run(["stop", "still"]).expect(0);
    assert_eq!(msb.state("still"), "stopped");
    for verb in ["pause", "resume", "fork"] {
        let refusal = msb.run([verb, "still"]).refusal();
        assert!(
            refusal.contains("it is stopped") && refusal.contains("msb start still"),
            "{refusal}"
        );
    }
}

#[test]
fn a_snapshot_that_was_damaged_is_refused_by_name() {
    let msb = Msb::in_memory();
    msb.create("whole");
    let snapshot = msb.scratch("snapshot");
    let directory = snapshot.to_str().unwrap().to_owned();
    msb.run(["snapshot", "whole", &directory]).expect(0);
    let again = msb.run(["snapshot", "whole", &directory]).refusal();
    assert!(again.contains("exists already"), "{again}");
    msb.run(["rm", "--force", "whole"]).expect(0);

    let damage = |file: &str, damaged: &dyn Fn(&Path), what: &str| {
        let path = snapshot.join(file);
        let kept = msb.scratch("kept");
        finish(
            std::process::Command::new("cp")
                .arg("--sparse=always")
                .args([&path, &kept]),
        )
        .expect(0);
        damaged(&path);
        let refusal = msb.run(["restore", &directory, "--name", "broken"]).refusal();
        assert!(refusal.contains(what), "no {what:?} in: {refusal}");
        assert_eq!(msb.leftovers(), [""; 0], "after: {refusal}");
        fs::rename(&kept, &path).unwrap();
    };
    let remove = |path: &Path| fs::remove_file(path).unwrap();
    let cut = |path: &Path| {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() - 4096).unwrap();
    };
    let edit = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let newer = |path: &Path| {
        let text = fs::read_to_string(path).unwrap();
        fs::write(path, text.replace("\"format\": 1", "\"format\": 2")).unwrap();
    };
    damage("memory", &remove, "it has no memory");
    damage("state", &remove, "it has no state");
    damage("memory", &cut, "was cut off");
    damage("state", &cut, "was cut off");
    damage("state", &edit, "checksum");
    damage("sandbox.json", &newer, "version 2");
    let missing = msb.run(["restore", "/nonexistent"]).refusal();
    assert!(missing.contains("/nonexistent is no snapshot"), "{missing}");
    msb.run(["restore", &directory, "--name", "mended"]).expect(0);
}

#[test]
fn a_snapshot_that_is_not_finished_harms_nobody() {
    let msb = Msb::in_memory();
    msb.create("source");
    exec(&msb, "source", "head -c 12m /dev/urandom >/tmp/canary");
    let digest = exec(&msb, "source", "sha256sum /tmp/canary");
    // A disk without room.
    let small = msb.scratch("small");
    fs::create_dir(&small).unwrap();
    let script = format!(
        "mount -t tmpfs -o size=8M none {0} && msb snapshot source {0}/full; status=$?; ls -A {0}; exit $status",
        small.display()
    );
    let full = finish(msb.command_of("unshare").args(["--mount", "sh", "-c", &script])).refusal();
    assert!(full.contains("No space left"), "{full}");
    assert_eq!(exec(&msb, "source", "sha256sum /tmp/canary"), digest);

    // A process that is killed at it.
    let target = msb.scratch("killed");
    let directory = target.to_str().unwrap().to_owned();
    let mut killed = msb.command(["snapshot", "source", &directory]).spawn().unwrap();
    while !msb.scratch("killed.partial").join("memory").exists() {
        std::thread::yield_now();
    }
    kill_process(Pid::from_child(&killed), Signal::KILL).unwrap();
    killed.wait().unwrap();
    assert_eq!(exec(&msb, "source", "sha256sum /tmp/canary"), digest);
    if target.exists() {
        // It was quicker.
        fs::remove_dir_all(&target).unwrap();
    }
    msb.run(["snapshot", "source", &directory]).expect(0);
    assert!(!msb.scratch("killed.partial").exists());
    msb.run(["restore", &directory, "--name", "copy"]).expect(0);
    assert_eq!(exec(&msb, "copy", "sha256sum /tmp/canary"), digest);
}

#[test]
fn a_fork_whose_starter_is_killed_leaves_nothing_and_harms_nobody() {
    let msb = Msb::in_memory();
    let source = msb.create("source").id();
    exec(&msb, "source", "echo canary >/tmp/canary");
    let left = || {
        let mut left = msb.leftovers();
        left.sort();
        left
    };
    let before = left();
    // The directory of the fork, once there is one, and the record of its run.
    let fork = || {
        let sandboxes = fs::read_dir(msb.home().join("sandboxes")).unwrap();
        let others = sandboxes.flatten().map(|entry| entry.path());
        others.into_iter().find(|path| !path.ends_with(&source))
    };
    let steps: [&dyn Fn() -> bool; 3] = [&|| true, &|| fork().is_some(), &|| {
        fork().is_some_and(|fork| fork.join("run.json").exists())
    }];
    for (step, reached) in steps.into_iter().enumerate() {
        let mut forking = msb.command(["fork", "source", "--name", "copy"]).spawn().unwrap();
        while !reached() && forking.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        kill_process(Pid::from_child(&forking), Signal::KILL).unwrap();
        forking.wait().unwrap();
        // Its VMM process ends by itself; `msb ls` sweeps what is left of one that did not come to be.
        let began = Instant::now();
        while msb.list().len() > 1 || left() != before {
            assert!(began.elapsed() < Duration::from_secs(60), "step {step}: {:?}", left());
            if msb
                .list()
                .iter()
                .any(|sandbox| sandbox["name"] == "copy" && sandbox["state"] == "running")
            {
                // It was quicker.
                msb.run(["rm", "--force", "copy"]).expect(0);
            }
        }
        assert_eq!(exec(&msb, "source", "cat /tmp/canary"), "canary\n", "step {step}");
    }
    msb.run(["fork", "source", "--name", "copy"]).expect(0);
    assert_eq!(exec(&msb, "copy", "cat /tmp/canary"), "canary\n");
}
