//! VMs that are paused, saved and restored, with guests of a few instructions.

mod guests;

use std::fs::File;
use std::os::unix::fs::FileExt;

use guests::{HALT_FOR_EVER, RESET, config};
use msb_vmm::{BuildError, PauseError, RunningVm, Snapshot, SnapshotError, Vm, VmConfig, VmExit};

/// Where [`COUNT_AND_PRINT`] counts.
const COUNTER: u64 = 0x30_0000;
/// `mov rbx, 0x300000`, then for ever: `inc qword [rbx]; mov dx, 0x3f8; mov al, 'x'; out dx, al`.
const COUNT_AND_PRINT: [u8; 19] = [
    0x48, 0xc7, 0xc3, 0, 0, 0x30, 0, 0x48, 0xff, 0x03, 0x66, 0xba, 0xf8, 0x03, 0xb0, b'x', 0xee, 0xeb, 0xf4,
];

fn start(config: &VmConfig) -> RunningVm {
    Vm::build(config).unwrap().start().unwrap()
}

/// Lets the guest write at least `count` more bytes.
fn let_write(vm: &RunningVm, count: u64) {
    let goal = vm.exit_counts().port_writes + count;
    while vm.exit_counts().port_writes < goal {
        std::thread::yield_now();
    }
}

fn counter(memory: &File) -> u64 {
    let mut bytes = [0; 8];
    memory.read_exact_at(&mut bytes, COUNTER).unwrap();
    u64::from_le_bytes(bytes)
}

/// What is on its way when a guest stops is the one byte that it counted and did not write yet.
fn assert_agree(counted: u64, written: u64) {
    assert!(
        counted == written || counted == written + 1,
        "{counted} counted, {written} written"
    );
}

#[test]
fn ten_pauses_neither_lose_nor_repeat_an_access() {
    let directory = tempfile::tempdir().unwrap();
    let vm = start(&config(&directory, "paused", &COUNT_AND_PRINT));
    for _ in 0..10 {
        let_write(&vm, 20);
        vm.pause().unwrap();
        vm.pause().unwrap();
        let memory = tempfile::tempfile().unwrap();
        vm.save(&memory).unwrap();
        let written = vm.exit_counts().port_writes;
        assert_agree(counter(&memory), written);
        std::thread::yield_now();
        assert_eq!(vm.exit_counts().port_writes, written, "it went on");
        vm.resume();
    }
    let_write(&vm, 20);
    vm.handle().stop();
    assert!(matches!(vm.wait(), VmExit::Stopped));
}

#[test]
fn ten_restores_neither_lose_nor_repeat_an_access() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(&directory, "restored", &COUNT_AND_PRINT);
    let mut vm = start(&config);
    let mut written = 0;
    for _ in 0..10 {
        let_write(&vm, 20);
        vm.pause().unwrap();
        let memory = tempfile::tempfile().unwrap();
        let saved = vm.save(&memory).unwrap().to_bytes();
        written += vm.exit_counts().port_writes;
        let counted = counter(&memory);
        assert_agree(counted, written);
        let snapshot = Snapshot::read(saved.as_slice()).unwrap();
        let restored = Vm::restore(&config, &snapshot, memory.try_clone().unwrap()).unwrap();
        // Two VMs from here on: what one does is nothing to the other, and nothing to the image.
        vm.resume();
        vm = restored.start().unwrap();
        let_write(&vm, 20);
        assert_eq!(counter(&memory), counted);
    }
}

#[test]
fn vcpus_that_wait_are_paused_and_restored_as_well() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(&directory, "waiting", &HALT_FOR_EVER);
    config.vcpus = 3;
    let vm = start(&config);
    vm.pause().unwrap();
    let memory = tempfile::tempfile().unwrap();
    let snapshot = vm.save(&memory).unwrap();
    vm.resume();
    vm.pause().unwrap();
    let restored = Vm::restore(&config, &snapshot, memory).unwrap().start().unwrap();
    restored.pause().unwrap();
    for vm in [vm, restored] {
        vm.handle().stop();
        assert!(matches!(vm.wait(), VmExit::Stopped));
    }
}

#[test]
fn what_has_ended_or_runs_is_not_saved() {
    let directory = tempfile::tempdir().unwrap();
    let ended = start(&config(&directory, "ended", &RESET));
    ended.wait();
    assert!(matches!(ended.pause(), Err(PauseError::Ended)));
    let vm = start(&config(&directory, "running", &HALT_FOR_EVER));
    let saved = vm.save(&tempfile::tempfile().unwrap());
    assert!(matches!(saved, Err(PauseError::NotPaused)));
}

#[test]
fn a_snapshot_is_restored_only_as_the_vm_that_it_is_of() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(&directory, "shape", &HALT_FOR_EVER);
    let vm = start(&config);
    vm.pause().unwrap();
    let memory = tempfile::tempfile().unwrap();
    let snapshot = vm.save(&memory).unwrap();
    let restore = |config: &VmConfig| Vm::restore(config, &snapshot, memory.try_clone().unwrap());

    let mut other = config.clone();
    other.vcpus = 2;
    let shape = restore(&other).unwrap_err();
    assert!(
        matches!(shape, BuildError::Snapshot(SnapshotError::Shape { .. })),
        "{shape}"
    );
    let mut other = config.clone();
    other.vsock = Some(msb_vmm::VsockConfig::new(3, directory.path().join("v.sock")));
    let shape = restore(&other).unwrap_err();
    assert!(
        matches!(shape, BuildError::Snapshot(SnapshotError::Shape { .. })),
        "{shape}"
    );
    memory.set_len(1 << 20).unwrap();
    let cut_off = restore(&config).unwrap_err();
    assert!(matches!(cut_off, BuildError::Memory(_)), "{cut_off}");
}
