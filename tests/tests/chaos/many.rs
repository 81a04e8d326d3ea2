//! Many sandboxes, one after the other and at once.

use std::thread;

use msb_test_support::kib_in;
use msb_tests::Msb;

use crate::rounds;
use crate::truth::{assert_clean, assert_usable};

#[test]
fn rounds_of_create_and_remove_leave_nothing() {
    let msb = Msb::new();
    for round in 0..rounds(20, 300) {
        msb.run(["create", "--name", "again", "--no-start", "--memory", "128M"])
            .expect(0);
        msb.run(["start", "again"]).expect(0);
        msb.run(["rm", "--force", "again"]).expect(0);
        assert_eq!(msb.leftovers(), [""; 0], "round {round}");
    }
    assert_usable(&msb, "all rounds");
}

/// As many as the host's memory takes: a sandbox with 128 MiB needs some 60 MiB of it.
#[test]
fn many_sandboxes_run_at_once_and_answer() {
    let msb = Msb::new();
    let available = available_mib();
    let count = rounds(20, 100).min(available / 80);
    println!("{count} sandboxes with {available} MiB available");
    assert!(count > 0, "{available} MiB are too few");
    let names: Vec<String> = (0..count).map(|index| format!("box{index}")).collect();
    // Two start at a time.
    for pair in names.chunks(2) {
        thread::scope(|scope| {
            for name in pair {
                scope.spawn(|| msb.create_with(name, &["--memory", "128M"]));
            }
        });
    }
    assert!(msb.list().iter().all(|sandbox| sandbox["state"] == "running"));
    for name in &names {
        assert_eq!(msb.run(["exec", name, "--", "hostname"]).expect(0).text().trim(), name);
    }
    assert_clean(&msb, "all at once");
}

fn available_mib() -> usize {
    let info = std::fs::read_to_string("/proc/meminfo").expect("/proc is there");
    (kib_in(&info, "MemAvailable").expect("proc(5)") >> 10) as usize
}
