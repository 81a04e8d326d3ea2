//! Pools of forks that wait, and what becomes of them when processes die.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use msb_test_support::pattern;
use msb_tests::{Msb, Terminal, finish, finish_with_input};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long the forks of a pool may take to be there.
const FILL_TIMEOUT: Duration = Duration::from_secs(120);

fn pool(msb: &Msb, name: &str) -> Value {
    let listed = msb.run(["pool", "ls", "--json"]).expect(0);
    let listed: Vec<Value> = serde_json::from_slice(&listed.stdout).expect("pool ls --json prints an array");
    let pool = listed.into_iter().find(|pool| pool["name"] == name);
    pool.unwrap_or_else(|| panic!("no pool {name}"))
}

/// Makes the pool `fresh` of the sandbox `source`.
fn make_pool(msb: &Msb, size: &str) {
    msb.run(["pool", "create", "fresh", "--from", "source", "--size", size])
        .expect(0);
}

/// The ids of the forks that wait, once there are `count`.
fn wait_for(msb: &Msb, name: &str, count: usize) -> Vec<String> {
    let began = Instant::now();
    loop {
        let pool = pool(msb, name);
        let ids = pool["ids"].as_array().expect("a pool has ids").iter();
        let ids: Vec<String> = ids.filter_map(|id| id.as_str().map(str::to_owned)).collect();
        if ids.len() == count {
            return ids;
        }
        assert!(began.elapsed() < FILL_TIMEOUT, "{count} never waited: {pool}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn exec(msb: &Msb, name: &str, script: &str) -> String {
    msb.run(["exec", name, "--", "sh", "-c", script]).expect(0).text()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[track_caller]
fn kill(pid: &Value) {
    let pid = pid.as_i64().and_then(|pid| i32::try_from(pid).ok());
    kill_process(pid.and_then(Pid::from_raw).expect("it runs"), Signal::KILL).unwrap();
}

fn inspect(msb: &Msb, id: &str) -> Value {
    serde_json::from_slice(&msb.run(["inspect", id]).expect(0).stdout).expect("inspect prints JSON")
}

#[test]
fn time_that_a_fork_waited_has_not_passed_for_it_and_its_clock_is_right() {
    const WAITED: Duration = Duration::from_secs(4);
    let msb = Msb::in_memory();
    msb.run(["create", "--name", "source", "--cpus", "2"]).expect(0);
    make_pool(&msb, "1");
    wait_for(&msb, "fresh", 1);
    std::thread::sleep(WAITED);

    let uptime = "cut -d ' ' -f 1 /proc/uptime";
    let seconds = |text: &str| text.trim().parse::<f64>().expect("an uptime is a number");
    let before = now();
    // Timers of both CPUs go on, too.
    let said = format!("{uptime}; date +%s; for i in 1 2 3 4; do sleep 1 & done; wait; {uptime}");
    let said = msb.run(["run", "--pool", "fresh", "--", "sh", "-c", &said]).expect(0);
    let said = said.text();
    let lines: Vec<&str> = said.lines().collect();
    let clock: u64 = lines[1].parse().unwrap();
    assert!((before.saturating_sub(2)..=now()).contains(&clock), "{before} {clock}");
    assert!(seconds(lines[2]) - seconds(lines[0]) > 0.9, "{lines:?}");
    // The fork is as old as its source was when it began, or younger; the source has run on.
    let source = seconds(&exec(&msb, "source", uptime));
    let fork = seconds(lines[2]);
    assert!(fork + WAITED.as_secs_f64() < source, "{fork} {source}");
}

#[test]
fn what_is_taken_from_a_pool_is_a_sandbox_of_its_own() {
    let msb = Msb::in_memory();
    msb.create("source");
    exec(&msb, "source", "echo canary >/tmp/canary; echo 0123 >/etc/machine-id");
    make_pool(&msb, "2");
    let waiting = wait_for(&msb, "fresh", 2);
    for id in &waiting {
        assert_eq!(inspect(&msb, id)["state"], "waiting");
        for verb in [&["exec", id, "--", "true"][..], &["resume", id]] {
            let refusal = msb.run(verb).refusal();
            assert!(refusal.contains("msb create --pool fresh"), "{refusal}");
        }
    }

    let taken = msb
        .run([
            "run",
            "--pool",
            "fresh",
            "--",
            "sh",
            "-c",
            "cat /tmp/canary; hostname; exit 3",
        ])
        .expect(3);
    let text = taken.text();
    let (canary, hostname) = text.trim().split_once('\n').expect("two lines");
    assert_eq!(canary, "canary");
    assert!(
        waiting.iter().any(|id| id == hostname),
        "{hostname} is none of {waiting:?}"
    );

    let mut seen = Vec::new();
    for name in ["one", "two"] {
        let taken = msb.run(["create", "--pool", "fresh", "--name", name]).expect(0);
        // By stock ssh, which knows only the pinned host key.
        let (before, host) = (now(), format!("{name}.msb"));
        let said = "hostname; cat /etc/machine-id; od -An -N16 -tx1 /dev/urandom; date +%s";
        let said = finish(msb.openssh("ssh").args([&host, said])).expect(0).text();
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[0], name);
        let guest: u64 = lines[3].parse().unwrap();
        assert!((before.saturating_sub(2)..=now()).contains(&guest), "{before} {guest}");
        let key = fs::read(msb.home().join("names").join(name).join("host_key.pub")).unwrap();
        seen.push((lines[1].to_owned(), lines[2].to_owned(), key));
        assert_eq!(msb.state(name), "running");
        assert_eq!(taken.text().trim(), inspect(&msb, name)["id"]);
    }
    assert!(
        seen[0].0 != seen[1].0 && seen[0].1 != seen[1].1 && seen[0].2 != seen[1].2,
        "{seen:?}"
    );

    // It is a sandbox like any other, and its name is taken.
    let refusal = msb.run(["create", "--pool", "fresh", "--name", "one"]).refusal();
    assert!(refusal.contains("the name 'one' is taken"), "{refusal}");
    msb.run(["stop", "one"]).expect(0);
    msb.run(["start", "one"]).expect(0);
    assert_eq!(exec(&msb, "one", "hostname; ls /tmp"), "one\n");
    let limited = ["create", "--pool", "fresh", "--name", "short", "--timeout", "1h"];
    msb.run(limited).expect(0);
    assert!(
        inspect(&msb, "short")["seconds_left"]
            .as_f64()
            .is_some_and(|left| left > 3000.0)
    );

    // Replacements were made all the time, and go with the pool; what was taken stays.
    wait_for(&msb, "fresh", 2);
    msb.run(["pool", "rm", "fresh"]).expect(0);
    let names: Vec<_> = msb.list().iter().map(|sandbox| sandbox["name"].clone()).collect();
    assert_eq!(names, ["source", "one", "two", "short"]);
    let refusal = msb.run(["run", "--pool", "fresh", "--", "true"]).refusal();
    assert!(refusal.contains("there is no pool 'fresh'"), "{refusal}");
    msb.run(["rm", "--force", "source", "one", "two", "short"]).expect(0);
    assert_eq!(msb.leftovers(), [""; 0]);
}

#[test]
fn a_pool_loses_no_sandbox_when_processes_die() {
    let msb = Msb::in_memory();
    let source = msb.create("source");
    let snapshot = msb.scratch("snapshot");
    let directory = snapshot.to_str().unwrap();
    msb.run(["snapshot", &source.name, directory]).expect(0);
    msb.run(["rm", "--force", "source"]).expect(0);
    msb.run(["pool", "create", "fresh", "--snapshot", directory, "--size", "1"])
        .expect(0);
    fs::remove_dir_all(&snapshot).unwrap();

    // One that died is none: who takes makes another.
    let id = wait_for(&msb, "fresh", 1).remove(0);
    kill(&inspect(&msb, &id)["pid"]);
    assert_eq!(
        msb.run(["run", "--pool", "fresh", "--", "echo", "made"])
            .expect(0)
            .text(),
        "made\n"
    );
    let id = wait_for(&msb, "fresh", 1).remove(0);
    kill(&inspect(&msb, &id)["vm"]["pid"]);
    msb.run(["create", "--pool", "fresh", "--name", "second"]).expect(0);
    assert_eq!(exec(&msb, "second", "hostname"), "second\n");

    // A taker that dies takes nothing with it, and leaves nothing; whoever fills the pool goes on.
    for _ in 0..4 {
        wait_for(&msb, "fresh", 1);
        let mut taker = msb
            .command(["create", "--pool", "fresh", "--name", "lost"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let began = Instant::now();
        while pool(&msb, "fresh")["waiting"] == 1 && began.elapsed() < FILL_TIMEOUT {
            std::thread::yield_now();
        }
        kill_process(Pid::from_child(&taker), Signal::KILL).unwrap();
        let finished = taker.wait().unwrap();
        // It may have been quicker, and been told so or not.
        msb.run(["pool", "fill", "fresh"]).expect(0);
        let kept = settled(&msb, "lost");
        assert!(kept || !finished.success(), "a sandbox that was told is gone");
        if kept {
            assert_eq!(exec(&msb, "lost", "hostname"), "lost\n");
            msb.run(["rm", "--force", "lost"]).expect(0);
        }
    }

    // Whoever fills a pool and dies leaves nothing half done.
    let mut filler = {
        let id = wait_for(&msb, "fresh", 1).remove(0);
        msb.run(["rm", "--force", &id]).expect(0);
        msb.command(["pool", "fill", "fresh"]).spawn().unwrap()
    };
    let began = Instant::now();
    while sandboxes(&msb) < 2 && began.elapsed() < FILL_TIMEOUT {
        std::thread::yield_now();
    }
    kill_process(Pid::from_child(&filler), Signal::KILL).unwrap();
    filler.wait().unwrap();
    msb.run(["pool", "fill", "fresh"]).expect(0);
    wait_for(&msb, "fresh", 1);
    msb.run(["rm", "--force", "second"]).expect(0);
    msb.run(["pool", "rm", "fresh"]).expect(0);
    assert_eq!(msb.leftovers(), [""; 0]);
}

/// Whether there is a sandbox called `name`, once none is starting any more.
fn settled(msb: &Msb, name: &str) -> bool {
    let began = Instant::now();
    loop {
        let listed = msb.list();
        if !listed
            .iter()
            .any(|sandbox| sandbox["state"] == "starting" || sandbox["state"] == "stopping")
        {
            return listed.iter().any(|sandbox| sandbox["name"] == name);
        }
        assert!(began.elapsed() < FILL_TIMEOUT, "{listed:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn sandboxes(msb: &Msb) -> usize {
    fs::read_dir(msb.home().join("sandboxes")).map_or(0, |entries| entries.flatten().count())
}

/// Waits until nobody stands by but for the forks that wait.
#[track_caller]
fn assert_none_stands_by_in_vain(msb: &Msb) {
    let began = Instant::now();
    loop {
        let waiting = msb
            .list()
            .iter()
            .filter(|sandbox| sandbox["state"] == "waiting")
            .count();
        let standbys = msb.standbys();
        if standbys.len() == waiting {
            return;
        }
        assert!(began.elapsed() < FILL_TIMEOUT, "{standbys:?} for {waiting} that wait");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The process that stands by the one fork that waits. A taker that was killed has had no replacement made.
fn standby(msb: &Msb) -> Pid {
    msb.run(["pool", "fill", "fresh"]).expect(0);
    assert_none_stands_by_in_vain(msb);
    msb.standbys()[0]
}

/// A run of `script` in a fork, once that has said that it began.
fn begun(msb: &Msb, script: &str) -> Child {
    let script = format!("echo begun; {script}");
    let mut taker = msb.command(["run", "--pool", "fresh", "--", "sh", "-c", &script]);
    taker
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut taker = taker.spawn().unwrap();
    let mut said = [0; 6];
    taker.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"begun\n");
    taker
}

#[test]
fn who_stood_by_a_fork_runs_the_session_of_its_taker() {
    let msb = Msb::in_memory();
    msb.create("source");
    make_pool(&msb, "1");

    // All streams and the status are those of the program.
    let stood_by = standby(&msb);
    let data = pattern(3 << 20);
    let script = [
        "run",
        "--pool",
        "fresh",
        "--",
        "sh",
        "-c",
        "cat; echo error >&2; exit 3",
    ];
    let echoed = finish_with_input(&mut msb.command(script), data.clone()).expect(3);
    assert!(echoed.stdout == data, "{} of {} bytes", echoed.stdout.len(), data.len());
    assert_eq!(echoed.stderr, "error\n");
    assert_ne!(standby(&msb), stood_by, "it ends with the session");
    // A shell reads what it runs.
    let shell = finish_with_input(
        &mut msb.command(["run", "--pool", "fresh"]),
        b"echo $0; exit 7\n".to_vec(),
    );
    assert!(shell.expect(7).text().contains("sh"));

    // What becomes of a program that nobody hears of any more is not known.
    let stood_by = standby(&msb);
    let taker = begun(&msb, "sleep 1000");
    kill_process(stood_by, Signal::KILL).unwrap();
    let told = taker.wait_with_output().unwrap();
    assert_eq!(told.status.code(), Some(255));
    let message = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(
        message.contains("ended before it said how the program did"),
        "{message}"
    );

    // A sandbox that ends takes the session along, and says so.
    standby(&msb);
    let id = wait_for(&msb, "fresh", 1).remove(0);
    let taker = begun(&msb, "sleep 1000");
    msb.run(["kill", &id]).expect(0);
    let told = taker.wait_with_output().unwrap();
    assert_eq!(told.status.code(), Some(255));
    let message = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(message.contains("the connection to the guest was lost"), "{message}");

    // A taker that dies takes both along: nobody holds its output any more.
    standby(&msb);
    let mut taker = begun(&msb, "exec cat");
    taker.kill().unwrap();
    let mut rest = String::new();
    taker.stdout.as_mut().unwrap().read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
    taker.wait().unwrap();
    assert_none_stands_by_in_vain(&msb);

    // Without anybody who stands by, or with a terminal, the taker connects for itself.
    kill_process(standby(&msb), Signal::KILL).unwrap();
    let alone = msb.run(["run", "--pool", "fresh", "--", "echo", "alone"]);
    assert_eq!(alone.expect(0).text(), "alone\n");
    standby(&msb);
    let script = "test -t 0 && test -t 1 && echo a $((3 + 4)) terminal";
    let tty = ["run", "--pool", "fresh", "--tty", "--", "sh", "-c", script];
    let mut terminal = Terminal::start(&mut msb.command(tty), 24);
    terminal.wait_for("a 7 terminal");
    assert_eq!(terminal.wait(), 0);

    // Nor does anybody stand by what was taken to be kept.
    standby(&msb);
    msb.run(["create", "--pool", "fresh", "--name", "kept"]).expect(0);
    assert_eq!(exec(&msb, "kept", "hostname"), "kept\n");
    standby(&msb);
    msb.run(["rm", "--force", "kept", "source"]).expect(0);
    msb.run(["pool", "rm", "fresh"]).expect(0);
    assert_none_stands_by_in_vain(&msb);
    assert_eq!(msb.leftovers(), [""; 0]);
}

#[test]
fn many_takers_get_a_sandbox_each() {
    let msb = Msb::in_memory();
    msb.create("source");
    make_pool(&msb, "2");
    let takers: Vec<_> = (0..4)
        .map(|_| {
            let mut command = msb.command(["run", "--pool", "fresh", "--", "hostname"]);
            std::thread::spawn(move || finish(&mut command).expect(0).text())
        })
        .collect();
    let mut hosts: Vec<String> = takers.into_iter().map(|taker| taker.join().unwrap()).collect();
    hosts.sort();
    hosts.dedup();
    assert_eq!(hosts.len(), 4, "{hosts:?}");
    wait_for(&msb, "fresh", 2);
    assert_eq!(msb.list().len(), 3, "what was taken by `run` is gone");
    msb.run(["pool", "rm", "fresh"]).expect(0);
}

#[test]
fn a_pool_that_makes_no_sense_is_refused() {
    let msb = Msb::in_memory();
    let refused = |arguments: &[&str], what: &str| {
        let refusal = msb.run(arguments).refusal();
        assert!(refusal.contains(what), "no {what:?} in: {refusal}");
        assert_eq!(msb.leftovers(), [""; 0], "after: {refusal}");
    };
    refused(
        &["pool", "create", "p", "--from", "nobody"],
        "there is no sandbox 'nobody'",
    );
    refused(&["pool", "create", "p", "--snapshot", "/nonexistent"], "is no snapshot");
    refused(
        &["pool", "create", "p", "--snapshot", "/nonexistent", "--size", "0"],
        "0",
    );
    refused(&["pool", "create", "p"], "--from");
    refused(&["pool", "rm", "p"], "there is no pool 'p'");
    refused(&["pool", "fill", "p"], "there is no pool 'p'");
    refused(&["create", "--pool", "p"], "there is no pool 'p'");
    refused(&["run", "--pool", "p", "--memory", "1G", "--", "true"], "--memory");
    refused(&["run", "--pool", "P/../x", "--", "true"], "P");
    assert!(entries(&msb.home().join("pools")).is_empty());
    msb.create("still");
    msb.run(["stop", "still"]).expect(0);
    let refusal = msb.run(["pool", "create", "p", "--from", "still"]).refusal();
    assert!(refusal.contains("it is stopped"), "{refusal}");
    assert!(entries(&msb.home().join("pools")).is_empty());
}

fn entries(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    names.map(|name| name.to_string_lossy().into_owned()).collect()
}
