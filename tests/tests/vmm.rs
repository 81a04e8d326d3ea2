//! The VMM as a library: its ends are typed, and nothing of one VM is another's.

mod guests;

use std::path::PathBuf;

use guests::{HALT_FOR_EVER, RESET, SHARED_CODE, UNDEFINED, config, print, sharing};
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
fn a_guest_that_writes_to_code_which_all_share_changes_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let last = u32::try_from(2 * SHARED_CODE - 1).unwrap().to_le_bytes();
    // mov al, [last]; add al, '0'; out dx, al
    let tell = [&[0x8a, 0x04, 0x25], &last[..], &[0x04, b'0', 0xee]].concat();
    // mov byte [last], 7
    let change = [&[0xc6, 0x04, 0x25], &last[..], &[7]].concat();
    let code = [print("saw "), tell.clone(), change, tell, RESET.to_vec()].concat();
    for name in ["first", "second"] {
        let config = sharing(&directory, name, &code);
        let vm = Vm::build(&config).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert!(maps.contains(config.kernel.to_str().unwrap()), "{maps}");
        let running = vm.start().unwrap();
        assert!(matches!(running.wait(), VmExit::GuestReset));
        drop(running);
        let log = directory.path().join(format!("{name}.log"));
        assert_eq!(std::fs::read_to_string(log).unwrap(), "saw 07");
        assert_eq!(std::fs::read(&config.kernel).unwrap().last(), Some(&0));
    }
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
