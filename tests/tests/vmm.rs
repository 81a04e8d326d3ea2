//! The VMM as a library: its ends are typed, and nothing of one VM is another's.

mod guests;

use std::path::PathBuf;

use guests::{HALT_FOR_EVER, RESET, UNDEFINED, config, print};
use msb_vmm::{BuildError, FailureReason, Vm, VmExit};

#[test]
fn a_guest_that_resets_its_cpu_ends_the_vm_and_its_last_words_are_logged() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(&directory, "reset", &[print("bye\n"), RESET.to_vec()].concat());
    let running = Vm::build(&config).unwrap().start().unwrap();
    assert!(matches!(running.wait(), VmExit::GuestReset));
    assert_eq!(running.exit_counts().port_writes, 5);
    drop(running);
    assert_eq!(
        std::fs::read_to_string(directory.path().join("reset.log")).unwrap(),
        "bye\n"
    );
}

#[test]
fn a_triple_fault_is_an_error_with_its_place_and_the_console() {
    let directory = tempfile::tempdir().unwrap();
    let code = [print("oops\n"), UNDEFINED.to_vec()].concat();
    let running = Vm::build(&config(&directory, "fault", &code)).unwrap().start().unwrap();
    let VmExit::Failed(failure) = running.wait() else {
        panic!("the VM did not fail")
    };
    assert!(matches!(failure.reason, FailureReason::TripleFault), "{failure}");
    assert_eq!(failure.vcpu, Some(0));
    assert_eq!(failure.console, ["oops"]);
}

#[test]
fn a_guest_that_never_ends_is_stopped_by_its_embedder() {
    let directory = tempfile::tempdir().unwrap();
    for code in [HALT_FOR_EVER.to_vec(), vec![0xeb, 0xfe]] {
        let running = Vm::build(&config(&directory, "forever", &code))
            .unwrap()
            .start()
            .unwrap();
        let handle = running.handle();
        std::thread::spawn(move || handle.stop());
        assert!(matches!(running.wait(), VmExit::Stopped));
        assert!(matches!(running.wait(), VmExit::Stopped));
    }
}

#[test]
fn several_vms_live_and_end_in_one_process_by_themselves() {
    let directory = tempfile::tempdir().unwrap();
    let forever = Vm::build(&config(&directory, "forever", &HALT_FOR_EVER))
        .unwrap()
        .start()
        .unwrap();
    let ended: Vec<_> = (0..3)
        .map(|index| {
            Vm::build(&config(&directory, &format!("reset{index}"), &RESET))
                .unwrap()
                .start()
                .unwrap()
        })
        .collect();
    for vm in ended {
        assert!(matches!(vm.wait(), VmExit::GuestReset));
    }
    forever.handle().stop();
    assert!(matches!(forever.wait(), VmExit::Stopped));
}

#[test]
fn a_kernel_that_is_none_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(&directory, "kernel", &RESET);
    let complete = std::fs::read(&config.kernel).unwrap();
    for broken in [
        b"#!/bin/sh\n".to_vec(),
        complete[..30].to_vec(),
        complete[..complete.len() - 2].to_vec(),
    ] {
        std::fs::write(&config.kernel, broken).unwrap();
        let refused = Vm::build(&config).unwrap_err();
        assert!(matches!(refused, BuildError::Load(_)), "{refused}");
        assert!(
            refused.to_string().contains(config.kernel.to_str().unwrap()),
            "{refused}"
        );
    }
    config.kernel = PathBuf::from("/nonexistent/vmlinux");
    assert!(matches!(Vm::build(&config), Err(BuildError::Open { .. })));
}
