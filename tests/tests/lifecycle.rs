//! A sandbox from create to rm.

use std::fs;
use std::io::{BufRead, BufReader, Lines, Read};
use std::process::{Child, ChildStdout, Stdio};

use msb_tests::Msb;
use rustix::process::{Signal, kill_process};

#[test]
fn a_sandbox_stops_starts_again_and_is_removed() {
    let msb = Msb::new();
    let sandbox = msb.create("cycle");
    assert_eq!(msb.state("cycle"), "running");
    sandbox.ssh("touch /tmp/here").expect(0);
    msb.run(["stop", "cycle"]).expect(0);
    assert_eq!(msb.state("cycle"), "stopped");
    msb.run(["start", "cycle"]).expect(0);
    sandbox.ssh("test ! -e /tmp/here && hostname").expect(0);
    msb.run(["rm", "cycle"]).refusal();
    msb.run(["rm", "--force", "cycle"]).expect(0);
    assert_eq!(msb.leftovers(), [""; 0]);
}

#[test]
fn a_sandbox_whose_time_is_over_is_ended_and_says_so() {
    let msb = Msb::new();
    let events = msb.command(["events", "brief"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut events = Events::of(events);
    let sandbox = msb.create_with("brief", &["--timeout", "1h", "--on-timeout", "kill"]);
    let inspect =
        || -> serde_json::Value { serde_json::from_slice(&msb.run(["inspect", "brief"]).expect(0).stdout).unwrap() };
    let deadline = inspect()["deadline"].clone();
    sandbox.ssh("true").expect(0);
    msb.run(["exec", "brief", "--", "true"]).expect(0);
    let left = inspect()["seconds_left"].as_f64().unwrap();
    assert!(
        deadline.is_string() && (0.0..3600.0).contains(&left),
        "{deadline} {left}"
    );
    assert_eq!(inspect()["deadline"], deadline, "connections change nothing");
    let listed = msb.list();
    assert!(
        (0.0..3600.0).contains(&listed[0]["seconds_left"].as_f64().unwrap()),
        "{listed:?}"
    );
    let table = msb.run(["ls"]).expect(0).text();
    assert!(
        table.lines().next().unwrap().ends_with("LEFT") && table.trim_end().ends_with('m'),
        "{table}"
    );

    msb.run(["timeout", "brief", "100ms", "--on-timeout", "stop"]).expect(0);
    msb.run(["wait", "brief"]).expect(0);
    let ended = inspect();
    assert_eq!(
        (&ended["state"], &ended["exit_reason"]),
        (&"stopped".into(), &"deadline".into())
    );
    assert_eq!(ended["message"], "its time was over: the guest shut down");
    let told = events.until("stopped");
    let states: Vec<_> = told.iter().map(|event| event["state"].as_str().unwrap()).collect();
    // A state that is over before anybody looks is passed over; none is told twice.
    let all = ["created", "starting", "running", "stopping", "stopped"];
    let mut rest = all.iter();
    assert!(states.iter().all(|state| rest.any(|next| next == state)), "{states:?}");
    assert!(told.is_sorted_by_key(|event| event["time"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap()));
    assert_eq!(told.last().unwrap()["exit_reason"], "deadline");

    // Also one that is paused shuts down in order.
    msb.run(["start", "--timeout", "none", "brief"]).expect(0);
    assert_eq!(msb.run(["timeout", "brief"]).expect(0).text(), "none\n");
    msb.run(["pause", "brief"]).expect(0);
    msb.run(["timeout", "brief", "100ms", "--on-timeout", "stop"]).expect(0);
    msb.run(["wait", "brief"]).expect(0);
    assert_eq!(inspect()["message"], "its time was over: the guest shut down");
}

/// What `msb events` prints.
struct Events {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Events {
    fn of(mut process: Child) -> Self {
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines }
    }

    /// All that it tells up to this state.
    fn until(&mut self, state: &str) -> Vec<serde_json::Value> {
        let mut told: Vec<serde_json::Value> = Vec::new();
        while told.last().is_none_or(|event| event["state"] != state) {
            let line = self.lines.next().expect("it goes on").unwrap();
            told.push(serde_json::from_str(&line).unwrap());
        }
        told
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn what_a_sandbox_uses_is_what_the_kernel_counts() {
    let msb = Msb::new();
    let sandbox = msb.create("busy");
    let mut session = sandbox.ssh_command("echo up; cat");
    let mut session = session.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = [0; 3];
    session.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"up\n");

    let stats: serde_json::Value = serde_json::from_slice(&msb.run(["stats", "--json"]).expect(0).stdout).unwrap();
    let usage = &stats[0];
    assert_eq!(
        (&usage["name"], &usage["connections"]),
        (&"busy".into(), &1.into()),
        "{stats}"
    );
    assert!(usage["cpu_seconds"].as_f64() > Some(0.1), "{stats}");
    assert!(usage["memory_bytes"].as_u64() > Some(30 << 20), "{stats}");
    // The disks of this test are in memory.
    assert!(
        usage["read_bytes"].is_u64() && usage["written_bytes"].is_u64(),
        "{stats}"
    );

    drop(session.stdin.take());
    assert!(session.wait().unwrap().success());
    msb.run(["stop", "busy"]).expect(0);
    assert!(msb.run(["stats", "busy"]).refusal().contains("`msb start busy`"));
    assert_eq!(msb.run(["stats", "--json"]).expect(0).text(), "[]\n");
}

#[test]
fn the_guest_ends_itself_in_order() {
    let msb = Msb::new();
    let sandbox = msb.create("poweroff");
    // ssh may see the connection end before the status.
    let _ = sandbox.ssh("poweroff");
    msb.run(["wait", "poweroff"]).expect(0);
    assert_eq!(msb.state("poweroff"), "stopped");
}

#[test]
fn a_killed_sandbox_and_a_killed_vmm_are_told_apart() {
    let msb = Msb::new();
    msb.create("killed");
    msb.run(["kill", "killed"]).expect(0);
    assert_eq!(msb.state("killed"), "stopped");
    let sandbox = msb.create("crashed");
    let vmm = sandbox.vmm();
    kill_process(vmm, Signal::KILL).unwrap();
    // The lock falls with the process.
    let waited = msb.run(["wait", "crashed"]);
    assert_ne!(waited.code, Some(0), "{waited:?}");
    assert_eq!(msb.state("crashed"), "crashed");
    msb.run(["start", "crashed"]).expect(0);
    sandbox.ssh("true").expect(0);
}

#[test]
fn what_ran_when_the_host_went_down_is_told_and_starts_again() {
    let msb = Msb::new();
    let sandbox = msb.create("survivor");
    kill_process(sandbox.vmm(), Signal::KILL).unwrap();
    msb.run(["wait", "survivor"]).refusal();
    // What a reboot leaves: nothing in /run, and pids that are others' by now.
    let record = msb.home().join("sandboxes").join(sandbox.id()).join("run.json");
    let mut run: serde_json::Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    assert!(run["process"]["boot_id"].is_string(), "{run}");
    run["process"]["boot_id"] = "of another boot".into();
    for process in ["process", "vm"] {
        run[process]["pid"] = std::process::id().into();
    }
    std::fs::write(&record, run.to_string()).unwrap();
    std::fs::remove_dir_all(msb.runtime()).unwrap();

    let inspected = sandbox.inspect();
    assert_eq!(inspected["state"], "crashed");
    let message = inspected["message"].as_str().unwrap();
    assert!(message.contains("the host went down"), "{message}");
    let refused = msb.run(["exec", "survivor", "--", "true"]).refusal();
    assert!(refused.contains("msb start survivor"), "{refused}");
    msb.run(["start", "survivor"]).expect(0);
    assert_eq!(msb.state("survivor"), "running");
    sandbox.ssh("true").expect(0);
    msb.run(["rm", "--force", "survivor"]).expect(0);
    assert_eq!(msb.leftovers(), [""; 0]);
}

#[test]
fn a_guest_has_as_many_disks_as_it_is_given() {
    let msb = Msb::new();
    let disks: Vec<String> = (0..12)
        .map(|number| msb.scratch(&format!("disk{number}")).display().to_string())
        .collect();
    for disk in &disks {
        fs::File::create(disk).unwrap().set_len(1 << 20).unwrap();
    }
    let mut run = vec!["run"];
    run.extend(disks.iter().flat_map(|disk| ["--disk", disk]));
    // The last is written by its own thread, which is one of many.
    run.extend([
        "--",
        "sh",
        "-c",
        "head -c 1m /dev/zero | tr '\\0' x >/dev/vdl && ls /dev/vd[a-l]",
    ]);
    let ls = msb.run(run).expect(0);
    assert_eq!(ls.text().lines().count(), disks.len(), "{}", ls.text());
    assert_eq!(fs::read(&disks[11]).unwrap(), vec![b'x'; 1 << 20]);
}

#[test]
fn a_disk_keeps_what_the_guest_wrote() {
    let msb = Msb::new();
    let image = msb.scratch("disk.img");
    std::fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
    let disk = image.to_str().unwrap();
    let write = "echo persistent | dd of=/dev/vda bs=512 seek=100 conv=fsync 2>/dev/null";
    msb.run(["run", "--disk", disk, "--", "sh", "-c", write]).expect(0);
    let bytes = std::fs::read(&image).unwrap();
    assert_eq!(&bytes[51200..51211], b"persistent\n");
    let read_only = format!("{disk}:ro");
    let read = "dd if=/dev/vda bs=512 skip=100 count=1 2>/dev/null | head -n 1; cat /sys/block/vda/ro";
    let run = msb.run(["run", "--disk", &read_only, "--", "sh", "-c", read]).expect(0);
    assert_eq!(run.text(), "persistent\n1\n");
}
