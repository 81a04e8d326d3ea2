//! Guests that take all they can get, and hosts that have little.

use std::fs;
use std::path::Path;

use msb_tests::{Msb, finish, resident_beyond_guest};

use crate::truth::{assert_clean, assert_truth, assert_usable};

/// What a VM may need beyond its guest's memory, in KiB.
const MOST_KIB: u32 = 64 << 10;

#[test]
fn a_guest_that_takes_everything_harms_nobody_else() {
    let msb = Msb::new();
    let neighbour = msb.create_with("neighbour", &["--memory", "128M"]);
    let greedy = msb.create_with("greedy", &["--memory", "128M"]);
    let attempts = [
        ("memory", "tail /dev/zero"),
        ("disk", "dd if=/dev/zero of=/fill bs=1M; rm -f /fill"),
        ("processes", "b() { b | b & }; (ulimit -t 1; b); sleep 1"),
        ("descriptors", "for i in $(seq 300); do (sleep 1 </dev/null &) ; done"),
    ];
    for (what, attempt) in attempts {
        // It may lose its session, or everything, or be too busy to say.
        let mut exec = msb.command_of("timeout");
        exec.args(["60", "msb", "exec", "greedy", "--", "timeout", "5", "sh", "-c", attempt]);
        let _ = finish(&mut exec);
        assert_eq!(neighbour.ssh("echo fine").expect(0).text(), "fine\n", "{what}");
        let state = msb.state("greedy");
        assert!(state == "running" || state == "crashed", "{what}: {state}");
        if state == "running" {
            let beyond = resident_beyond_guest(greedy.vm(), 128);
            assert!(beyond < MOST_KIB, "{what}: {beyond} KiB");
            msb.run(["kill", "greedy"]).expect(0);
        }
        msb.run(["start", "greedy"]).expect(0);
    }
    assert_clean(&msb, "greedy guests");
}

#[test]
fn a_flood_on_the_console_fills_no_disk() {
    let msb = Msb::new();
    let sandbox = msb.create_with("flood", &["--memory", "128M"]);
    sandbox
        .ssh("timeout 10 sh -c 'yes flood > /dev/console'; true")
        .expect(0);
    let directory = sandbox.inspect()["directory"].as_str().unwrap().to_owned();
    let size = |name: &str| fs::metadata(Path::new(&directory).join(name)).map_or(0, |file| file.len());
    let logs = size("console.log") + size("console.log.1");
    assert!(logs > 0 && logs <= 1 << 20, "{logs} bytes");
    assert!(size("vmm.log") < 16 << 10, "{} bytes", size("vmm.log"));
    assert!(msb.run(["logs", "flood"]).expect(0).text().contains("flood"));
    assert_eq!(sandbox.ssh("echo fine").expect(0).text(), "fine\n");
    assert_clean(&msb, "a flood");
}

#[test]
fn a_host_without_memory_loses_a_vm_and_says_which() {
    let msb = Msb::new();
    let sandboxes = ["one", "two"].map(|name| msb.create_with(name, &["--memory", "128M"]));
    // What all VMs together may have is now less than they have already: the host kills one or more.
    let all = sandboxes[0].cgroup().parent().unwrap().join("memory.max");
    fs::write(&all, (48 << 20).to_string()).unwrap();
    let crashed = || {
        msb.list()
            .iter()
            .filter(|sandbox| sandbox["state"] == "crashed")
            .count()
    };
    let lost = crashed();
    fs::write(&all, "max").unwrap();
    assert!(lost > 0 || crashed() > 0, "{:?}", msb.list());
    let messages: Vec<String> = msb
        .list()
        .iter()
        .map(|sandbox| sandbox["message"].to_string())
        .collect();
    assert!(
        messages.iter().any(|message| message.contains("killed")),
        "{messages:?}"
    );
    assert_truth(&msb, "a lack of memory");
    assert_clean(&msb, "a lack of memory");
    assert_usable(&msb, "a lack of memory");
}
