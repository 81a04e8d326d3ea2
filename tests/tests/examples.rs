//! The example programs, on a real guest.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use msb_tests::{Msb, finish, vmlinux};

#[test]
fn a_program_of_less_than_forty_lines_runs_a_command_in_a_sandbox() {
    assert!(include_str!("../../msb/examples/embed.rs").lines().count() < 40);
    let msb = Msb::new();
    let mut embed = msb.command_of(env!("CARGO_BIN_EXE_example-embed"));
    let ran = finish(embed.arg("uname -r; echo error >&2; exit 3")).expect(3);
    assert!(ran.text().contains("-msb") && ran.stderr == "error\n", "{ran:?}");
    assert_eq!(msb.leftovers(), [""; 0]);
}

#[test]
fn a_program_boots_a_guest_with_the_vmm_alone() {
    let msb = Msb::new();
    let root = msb.scratch("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox"))
        .expect("busybox-static is installed: scripts/test as root does it");
    let init = root.join("init");
    fs::write(&init, "#!/bin/busybox sh\nbusybox uname -sm\nbusybox reboot -f\n").unwrap();
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).unwrap();
    let initramfs = msb.scratch("initramfs.cpio");
    let mut pack = Command::new("sh");
    pack.args(["-c", "find . | cpio --quiet -o -H newc > \"$1\"", "sh"]);
    finish(pack.arg(&initramfs).current_dir(&root)).expect(0);

    let mut boot = Command::new(env!("CARGO_BIN_EXE_example-boot"));
    boot.arg(vmlinux()).arg(&initramfs);
    let booted = finish(&mut boot).expect(0).text();
    assert!(booted.starts_with("GuestReset\n"), "{booted}");
    assert!(booted.lines().any(|line| line.trim_end() == "Linux x86_64"), "{booted}");
}
