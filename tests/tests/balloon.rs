//! What a guest frees, its host gets back.

use std::thread::sleep;
use std::time::{Duration, Instant};

use msb_tests::{Msb, Sandbox, VmMemory};

const GUEST_MIB: u64 = 512;
/// KiB that the guest takes and frees.
const TAKEN: u32 = 128 << 10;
/// What of it may stay where it is: free pages go back by blocks of 2 MiB, and some are not wholly free.
const SCATTERED: u32 = TAKEN / 4;

/// KiB of guest memory that the host keeps for this sandbox alone.
fn kept(sandbox: &Sandbox<'_>) -> u32 {
    VmMemory::of(sandbox.vm(), GUEST_MIB).guest_private
}

/// Has the guest fill and remove a file in memory, and waits until the host has it back.
fn take_and_free(sandbox: &Sandbox<'_>) {
    let take = format!("head -c {TAKEN}k /dev/zero >/tmp/taken");
    sandbox.ssh(&take).expect(0);
    let full = kept(sandbox);
    assert!(full >= TAKEN, "the guest took {TAKEN} KiB, and the host gave {full}");

    sandbox.ssh("rm /tmp/taken").expect(0);

    let since = Instant::now();
    while kept(sandbox) > full - (TAKEN - SCATTERED) {
        let passed = since.elapsed();
        assert!(
            passed < Duration::from_secs(60),
            "of {full} KiB, {} are kept",
            kept(sandbox)
        );
        // The host tells nobody of it.
        sleep(Duration::from_millis(100));
    }
}

#[test]
fn memory_that_a_guest_freed_goes_back_to_its_host() {
    let msb = Msb::new();
    let sandbox = msb.create_with("box", &["--memory", "512M"]);
    take_and_free(&sandbox);
    // What came back can be had again.
    take_and_free(&sandbox);
}

#[test]
fn a_restored_guest_gives_memory_back_and_keeps_what_it_uses() {
    let msb = Msb::new();
    let source = msb.create_with("source", &["--memory", "512M"]);
    source
        .ssh("head -c 1m /dev/urandom >/tmp/canary && sync && head -c 16m /dev/urandom >/tmp/gone")
        .expect(0);
    let hash = source.ssh("sha256sum /tmp/canary").expect(0).text();
    let snapshot = msb.scratch("snapshot");
    msb.run(["snapshot", "source", snapshot.to_str().unwrap()]).expect(0);
    msb.run(["restore", snapshot.to_str().unwrap(), "--name", "copy"])
        .expect(0);
    let copy = msb.sandbox("copy");
    // The snapshot has content in the place of pages that go back.
    copy.ssh("rm /tmp/gone").expect(0);

    take_and_free(&copy);

    assert_eq!(copy.ssh("sha256sum /tmp/canary").expect(0).text(), hash);
    // New pages are empty, whatever the snapshot had there.
    let zeros = copy
        .ssh("head -c 64m /dev/zero >/tmp/new && tr -d '\\0' </tmp/new | wc -c")
        .expect(0);
    assert_eq!(zeros.text().trim(), "0");
    assert_eq!(source.ssh("sha256sum /tmp/canary").expect(0).text(), hash);
}
