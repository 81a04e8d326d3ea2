//! What a VM leaves behind in its process; a program of its own, because others' descriptors would count too.

mod guests;

use guests::{RESET, config};
use msb_vmm::Vm;

#[test]
fn a_vm_that_ended_leaves_no_descriptor_and_no_thread() {
    let directory = tempfile::tempdir().unwrap();
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let round = || {
        let running = Vm::build(&config(&directory, "reset", &RESET))
            .unwrap()
            .start()
            .unwrap();
        running.wait();
    };
    round();
    let before = open();
    for _ in 0..5 {
        round();
    }
    assert!(open() <= before, "{before} descriptors became {}", open());
    let vcpus = std::fs::read_dir("/proc/self/task").unwrap().filter_map(|task| {
        let name = std::fs::read_to_string(task.unwrap().path().join("comm")).ok()?;
        (name.trim() == "rng").then_some(())
    });
    assert!(vcpus.count() <= 8, "threads of ended VMs are left");
}
