//! What goes wrong ends in one clear line and leaves nothing behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use msb_tests::{Msb, finish, vmlinux};

/// The refusal of `msb` with `arguments`, which mentions `what` and leaves nothing.
#[track_caller]
fn refused(msb: &Msb, arguments: &[&str], what: &str) -> String {
    let refusal = msb.run(arguments).refusal();
    assert!(
        refusal.to_lowercase().contains(&what.to_lowercase()),
        "no {what:?} in: {refusal}"
    );
    assert!(refusal.starts_with("msb: "), "{refusal}");
    assert_eq!(msb.leftovers(), [""; 0], "after: {refusal}");
    refusal
}

/// Runs `verb` in a mount namespace that `prepare` made.
fn in_other_mounts(msb: &Msb, prepare: &str, verb: &str) -> String {
    let script = format!("{prepare}; exec {verb}");
    finish(msb.command_of("unshare").args(["--mount", "sh", "-c", &script])).refusal()
}

#[test]
fn a_host_without_usable_kvm_is_told_what_to_do() {
    let msb = Msb::new();
    let no_kvm = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/urandom c 1 9";
    let hidden = in_other_mounts(&msb, no_kvm, "msb run -- true");
    assert!(hidden.contains("/dev/kvm") && hidden.contains("kvm_intel"), "{hidden}");
    let fake = msb.scratch("fake-kvm");
    fs::write(&fake, "").unwrap();
    let replaced = format!("mount --bind {} /dev/kvm", fake.display());
    let useless = in_other_mounts(&msb, &replaced, "msb run -- true");
    assert!(useless.contains("/dev/kvm"), "{useless}");
    fs::set_permissions(msb.home().parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    let forbidden =
        format!("{replaced}; chmod 600 /dev/kvm; export MSB_HOME=/tmp/nobody-$$ MSB_RUNTIME_DIR=/tmp/nobody-$$/run");
    let denied = in_other_mounts(
        &msb,
        &forbidden,
        "setpriv --reuid=65534 --regid=65534 --clear-groups msb run -- true",
    );
    assert!(denied.contains("permission") && denied.contains("kvm"), "{denied}");
    assert_eq!(msb.leftovers(), [""; 0]);
}

#[test]
fn a_kernel_that_is_none_is_refused() {
    let msb = Msb::new();
    let kernel = msb.scratch("kernel");
    let path = kernel.to_str().unwrap().to_owned();
    refused(&msb, &["run", "--kernel", "/nonexistent", "--", "true"], "/nonexistent");
    fs::write(&kernel, "no kernel at all").unwrap();
    refused(&msb, &["run", "--kernel", &path, "--", "true"], &path);
    refused(&msb, &["create", "--kernel", &path], "ELF");
    let whole = fs::read(vmlinux()).unwrap();
    fs::write(&kernel, &whole[..whole.len() / 2]).unwrap();
    refused(&msb, &["run", "--kernel", &path, "--", "true"], &path);
}

#[test]
fn memory_without_sense_is_refused() {
    let msb = Msb::new();
    refused(&msb, &["run", "--memory", "1M", "--", "true"], "memory");
    refused(&msb, &["run", "--memory", "40M", "--", "true"], "64M");
    refused(&msb, &["run", "--memory", "900G", "--", "true"], "host");
    refused(&msb, &["run", "--memory", "much", "--", "true"], "much");
    refused(&msb, &["run", "--cpus", "0", "--", "true"], "CPU");
    refused(&msb, &["run", "--cpus", "200", "--", "true"], "CPU");
}

#[test]
fn names_must_be_host_names_and_free() {
    let msb = Msb::new();
    for name in ["", "-a", "a-", "a.b", "a b", "ä", "../a", &"a".repeat(64)] {
        refused(&msb, &["create", "--no-start", &format!("--name={name}")], "name");
    }
    msb.run(["create", "--no-start", "--name", "taken"]).expect(0);
    let duplicate = msb.run(["create", "--no-start", "--name", "taken"]).refusal();
    assert!(duplicate.contains("taken"), "{duplicate}");
    for verb in [
        "start",
        "stop",
        "kill",
        "rm",
        "inspect",
        "logs",
        "wait",
        "ssh",
        "ssh-bridge",
    ] {
        let unknown = msb.run([verb, "nobody"]).refusal();
        assert!(unknown.contains("nobody"), "{verb}: {unknown}");
    }
}

#[test]
fn a_stopped_sandbox_names_the_command_that_starts_it() {
    let msb = Msb::new();
    msb.run(["create", "--no-start", "--name", "idle"]).expect(0);
    for arguments in [
        vec!["ssh-bridge", "idle"],
        vec!["exec", "idle", "--", "true"],
        vec!["ssh", "idle", "--", "true"],
    ] {
        let refusal = msb.run(&arguments).refusal();
        assert!(refusal.contains("msb start idle"), "{refusal}");
    }
    let mut ssh = msb.openssh("ssh");
    let refused = finish(ssh.args(["idle.msb", "true"])).expect(255);
    assert!(refused.stderr.contains("msb start idle"), "{}", refused.stderr);
    msb.run(["exec", "idle", "--", "true"]).expect(125);
}

#[test]
fn a_guest_that_panics_at_boot_shows_its_panic() {
    let msb = Msb::new();
    let refusal = refused(
        &msb,
        &[
            "run",
            "--cmdline",
            "rdinit=/nonexistent init=/nonexistent",
            "--",
            "true",
        ],
        "panic",
    );
    assert!(refusal.contains("Kernel panic"), "{refusal}");
}

#[test]
fn a_guest_that_panics_or_resets_while_it_runs_is_shown_as_crashed() {
    let msb = Msb::new();
    for (name, end, shown) in [
        ("panics", "echo c > /proc/sysrq-trigger", "Kernel panic"),
        ("resets", "reboot -f", "reset"),
    ] {
        let sandbox = msb.create(name);
        sandbox.ssh(end).expect(255);
        msb.run(["wait", name]).expect(1);
        assert_eq!(msb.state(name), "crashed");
        let message = sandbox.inspect()["message"].to_string();
        assert!(message.contains(shown), "{message}");
    }
}

#[test]
fn a_client_of_a_dying_sandbox_ends() {
    let msb = Msb::new();
    let sandbox = msb.create("dying");
    let mut client = sandbox
        .ssh_command("echo up; sleep 1000")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut up = [0; 3];
    std::io::Read::read_exact(client.stdout.as_mut().unwrap(), &mut up).unwrap();
    rustix::process::kill_process(sandbox.vmm(), rustix::process::Signal::KILL).unwrap();
    assert_eq!(client.wait().unwrap().code(), Some(255));
    let mut exec = sandbox.ssh_command("true");
    assert_eq!(finish(&mut exec).code, Some(255));
}

#[test]
fn a_socket_path_that_is_too_long_is_refused() {
    let msb = Msb::new();
    let long = msb.scratch(&"d".repeat(90));
    let refusal = finish(msb.command(["run", "--", "true"]).env("MSB_RUNTIME_DIR", &long)).refusal();
    assert!(refusal.contains("MSB_RUNTIME_DIR"), "{refusal}");
    assert_eq!(msb.leftovers(), [""; 0]);
}

#[test]
fn a_full_disk_is_an_error_at_once() {
    let msb = Msb::new();
    let small = msb.scratch("small");
    let script = format!(
        "mkdir -p {0} && mount -t tmpfs -o size=64k none {0} && mkdir {0}/home && MSB_HOME={0}/home && export MSB_HOME \
         && {{ dd if=/dev/zero of={0}/fill bs=4k 2>/dev/null || true; }}",
        small.display()
    );
    let refusal = in_other_mounts(&msb, &script, "msb run -- true");
    assert!(refusal.contains("space"), "{refusal}");
}
