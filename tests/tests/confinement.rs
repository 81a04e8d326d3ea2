//! What is around a guest depends on who starts it and on what the host gives: limits, users, delegated cgroups.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use msb_tests::{Finished, Msb, finish};
use rustix::process::{Signal, kill_process};

/// Somebody without any right, but in the group that may use /dev/kvm.
const USER: u32 = 54321;
const KVM_GROUP: u32 = 54322;

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn sandboxes_of_root_are_strangers_to_each_other_and_to_the_host() {
    let msb = Msb::new();
    let (one, other) = (msb.create("one"), msb.create_with("other", &["--isolation=strict"]));
    let user = |sandbox: &msb_tests::Sandbox<'_>| sandbox.inspect()["vm"]["layers"]["user"].as_u64().unwrap();
    assert!(user(&one) != user(&other) && user(&one) >= 0x7000_0000 && user(&other) >= 0x7000_0000);
    let uid = user(&one).to_string();
    let status = read(&PathBuf::from(format!("/proc/{}/status", one.vm().as_raw_nonzero())));
    let ids = |key: &str| format!("{key}:\t{uid}\t{uid}\t{uid}\t{uid}\n");
    assert!(status.contains(&ids("Uid")) && status.contains(&ids("Gid")), "{status}");
    assert!(status.contains("Groups:\t \n"), "{status}");

    let (vm, keeper) = (other.vm().as_raw_nonzero(), other.vmm().as_raw_nonzero());
    let sockets = msb.runtime().join(other.id());
    let attempts = [
        format!("kill -0 {vm}"),
        format!("kill -0 {keeper}"),
        format!("cat /proc/{vm}/mem"),
        format!("cat /proc/{vm}/maps"),
        format!("ls {}", sockets.display()),
        format!("ls {}", msb.home().display()),
        "test -r /dev/kvm".to_owned(),
    ];
    for attempt in attempts {
        let mut as_user = Command::new("setpriv");
        as_user.args(["--reuid", &uid, "--regid", &uid, "--clear-groups", "sh", "-c", &attempt]);
        let tried = finish(&mut as_user);
        assert!(tried.code.is_some_and(|code| code != 0), "{attempt}: {tried:?}");
    }
    assert_eq!(other.ssh("echo untouched").expect(0).text(), "untouched\n");
}

/// The one file of this kind that all guests map.
fn shared(msb: &Msb, kind: &str) -> PathBuf {
    let files = fs::read_dir(msb.runtime()).unwrap().map(|file| file.unwrap().path());
    let prefix = format!("/shared-{kind}-");
    let mut found: Vec<_> = files.filter(|path| path.to_string_lossy().contains(&prefix)).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// What smaps says of this sandbox's mapping of `file`.
fn mapping(sandbox: &msb_tests::Sandbox<'_>, file: &Path) -> String {
    let smaps = read(&PathBuf::from(format!("/proc/{}/smaps", sandbox.vm().as_raw_nonzero())));
    let from = smaps.find(file.to_str().unwrap()).unwrap_or_else(|| panic!("{smaps}"));
    let line = smaps[..from].rfind('\n').map_or(0, |end| end + 1);
    let len = smaps[from..].find("VmFlags").unwrap();
    smaps[line..from + len].to_owned()
}

#[test]
fn the_kernel_s_code_is_shared_and_no_kernel_changes_it() {
    let msb = Msb::in_memory();
    let (one, other) = (msb.create("one"), msb.create("other"));
    let kernel = shared(&msb, "vmlinux");
    let contents = fs::read(&kernel).unwrap();
    let is_shared = |sandbox: &msb_tests::Sandbox<'_>| {
        let code = mapping(sandbox, &kernel);
        let is_own = code.contains(" rw-p ") && !code.contains("\nRss:                   0 kB");
        assert!(is_own && code.contains("\nAnonymous:             0 kB"), "{code}");
    };
    for sandbox in [&one, &other] {
        // Controllers turn static keys on, so that code is changed in a kernel that runs.
        sandbox
            .ssh("mount -t cgroup2 none /mnt && echo +memory +pids >/mnt/cgroup.subtree_control")
            .expect(0);
        is_shared(sandbox);
    }
    msb.run(["fork", "one", "--name", "fork"]).expect(0);
    let fork = msb.sandbox("fork");
    assert_eq!(fork.ssh("echo goes on").expect(0).text(), "goes on\n");
    is_shared(&fork);
    assert!(fs::read(&kernel).unwrap() == contents);
}

#[test]
fn programs_are_shared_and_no_guest_can_change_them() {
    let msb = Msb::in_memory();
    let (one, other) = (msb.create("one"), msb.create("other"));
    let programs = &shared(&msb, "programs");
    for sandbox in [&one, &other] {
        let maps = read(&PathBuf::from(format!("/proc/{}/maps", sandbox.vm().as_raw_nonzero())));
        let mapping = maps.lines().find(|line| line.ends_with(programs.to_str().unwrap()));
        assert!(mapping.is_some_and(|line| line.contains(" r--s ")), "{maps}");
    }
    let contents = fs::read(programs).unwrap();

    // By all ways to physical memory that root has: the last one reads what is there now.
    let attempts = "echo x >/dev/mtd0 && echo written; devmem 0xe0000000 32 0; devmem 0xe0003000 32 0; \
        echo x >/usr/bin/true && echo written; devmem 0xe0000000 32";
    let tried = one.ssh(attempts).expect(0);
    assert_eq!(tried.text(), "0x28CD3D45\n", "{tried:?}");
    assert!(fs::read(programs).unwrap() == contents);
    for sandbox in [&one, &other] {
        assert_eq!(sandbox.ssh("echo untouched").expect(0).text(), "untouched\n");
    }
}

#[test]
fn root_opens_disks_of_any_user_for_a_guest() {
    let msb = Msb::new();
    let disk = msb.scratch("disk");
    fs::write(&disk, vec![b'x'; 4096]).unwrap();
    fs::set_permissions(&disk, fs::Permissions::from_mode(0o600)).unwrap();
    chown(&disk, Some(USER), Some(USER)).unwrap();
    let run = msb.run(["run", "--disk", disk.to_str().unwrap(), "--", "head", "-c3", "/dev/vda"]);
    assert_eq!(run.expect(0).text(), "xxx");
}

#[test]
fn a_vm_uses_no_more_of_its_host_than_it_may() {
    let msb = Msb::new();
    let sandbox = msb.create_with("limited", &["--cpu-limit", "0.5"]);
    let limits = sandbox.inspect()["vm"]["layers"]["limits"].clone();
    assert_eq!(limits["cpu_percent"], 50);
    let cgroup = sandbox.cgroup();
    assert_eq!(read(&cgroup.join("cpu.max")), "50000 100000\n");
    let memory = limits["memory_mib"].as_u64().unwrap() << 20;
    assert_eq!(read(&cgroup.join("memory.max")), format!("{memory}\n"));
    assert_eq!(read(&cgroup.join("pids.max")), format!("{}\n", limits["tasks"]));
    let vm = sandbox.vm().as_raw_nonzero().to_string();
    // With it is a thread of the kernel that works for its timer.
    let processes = read(&cgroup.join("cgroup.procs"));
    assert!(processes.lines().any(|process| process == vm), "{processes}");

    // Enough work for some of the periods of 100 ms.
    sandbox
        .ssh("i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done")
        .expect(0);
    let stat = read(&cgroup.join("cpu.stat"));
    let throttled = stat
        .lines()
        .find_map(|line| line.strip_prefix("nr_throttled "))
        .unwrap();
    assert_ne!(throttled, "0", "{stat}");

    // Less than it already has: as if the guest's memory were not all that it takes.
    let current = read(&cgroup.join("memory.current"));
    let half = current.trim().parse::<u64>().unwrap() / 2;
    fs::write(cgroup.join("memory.max"), half.to_string()).unwrap();
    msb.run(["wait", "limited"]).expect(1);
    let message = sandbox.inspect()["message"].to_string();
    assert!(message.contains("memory") && message.contains("cgroup"), "{message}");
    assert!(!cgroup.exists());
    msb.run(["rm", "limited"]).expect(0);
    assert_eq!(msb.leftovers(), [""; 0]);
}

#[test]
fn the_cgroup_of_a_dead_keeper_is_swept() {
    let msb = Msb::new();
    let sandbox = msb.create("dead");
    let cgroup = sandbox.cgroup();
    kill_process(sandbox.vmm(), Signal::KILL).unwrap();
    msb.run(["wait", "dead"]).expect(1);
    assert_eq!(msb.state("dead"), "crashed");
    assert!(!cgroup.exists(), "`msb ls` sweeps");
    msb.run(["start", "dead"]).expect(0);
    msb.run(["rm", "--force", "dead"]).expect(0);
    assert_eq!(msb.leftovers(), [""; 0]);
}

#[test]
fn a_host_without_cgroups_is_refused_only_by_who_insists() {
    let msb = Msb::new();
    let without = |verb: &str| {
        let script = format!("umount /sys/fs/cgroup && exec {verb}");
        finish(msb.command_of("unshare").args(["--mount", "sh", "-c", &script]))
    };
    let strict = without("msb run --isolation=strict -- true").refusal();
    assert!(strict.contains("limits") && strict.contains("msb doctor"), "{strict}");
    let asked = without("msb run --cpu-limit 1 -- true").refusal();
    assert!(asked.contains("cgroup"), "{asked}");
    assert_eq!(without("msb run -- echo weaker").expect(0).text(), "weaker\n");
    assert_eq!(msb.leftovers(), [""; 0]);
}

#[test]
fn a_limit_that_cannot_hold_is_refused() {
    let msb = Msb::new();
    let disk = Path::new("/dev/shm/msb-limited-disk");
    fs::write(disk, vec![0; 4096]).unwrap();
    let refusal = msb
        .run([
            "run",
            "--disk",
            disk.to_str().unwrap(),
            "--io-limit",
            "10M",
            "--",
            "true",
        ])
        .refusal();
    fs::remove_file(disk).unwrap();
    assert!(refusal.contains("no block device"), "{refusal}");
    assert_eq!(msb.leftovers(), [""; 0]);
}

/// A cgroup that a host gave to [`USER`], as a service manager does.
struct Delegated(PathBuf);

impl Delegated {
    fn new() -> Self {
        let root = Path::new("/sys/fs/cgroup");
        fs::write(root.join("cgroup.subtree_control"), "+cpu +memory +pids").unwrap();
        let path = root.join(format!("delegated-{}", std::process::id()));
        fs::create_dir_all(path.join("leaf")).unwrap();
        for file in [
            "",
            "cgroup.procs",
            "cgroup.subtree_control",
            "leaf",
            "leaf/cgroup.procs",
        ] {
            chown(path.join(file), Some(USER), Some(USER)).unwrap();
        }
        Self(path)
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        for child in ["leaf", "msb", ""] {
            let _ = fs::remove_dir(self.0.join(child));
        }
    }
}

/// Runs `msb` as [`USER`], in `cgroup`.
fn as_user(msb: &Msb, cgroup: &Path, arguments: &[&str]) -> Finished {
    let enter = "echo $$ >\"$0\"/cgroup.procs && exec setpriv --reuid \"$1\" --regid \"$1\" --groups \"$2\" \
                 --inh-caps=-all --bounding-set=-all msb \"${@:3}\"";
    let mut shell = msb.command_of("bash");
    shell
        .args(["-c", enter])
        .arg(cgroup)
        .args([USER.to_string(), KVM_GROUP.to_string()]);
    finish(shell.args(arguments).current_dir("/"))
}

#[test]
fn a_user_in_the_group_of_kvm_needs_no_root() {
    let msb = Msb::new();
    chown(msb.home().parent().unwrap(), Some(USER), Some(USER)).unwrap();
    chown("/dev/kvm", Some(0), Some(KVM_GROUP)).unwrap();
    fs::set_permissions("/dev/kvm", fs::Permissions::from_mode(0o660)).unwrap();
    let delegated = Delegated::new();
    let leaf = delegated.0.join("leaf");

    as_user(
        &msb,
        &leaf,
        &["create", "--name", "mine", "--isolation=strict", "--cpu-limit", "1"],
    )
    .expect(0);
    let inspected = as_user(&msb, &leaf, &["inspect", "mine"]).expect(0).stdout;
    let inspected: serde_json::Value = serde_json::from_slice(&inspected).unwrap();
    let layers = &inspected["vm"]["layers"];
    assert!(layers["user"] == USER && layers["namespaces"] == true, "{layers}");
    assert_eq!(layers["limits"]["cpu_percent"], 100);
    let vm = inspected["vm"]["pid"].as_i64().unwrap();
    let cgroup = read(&PathBuf::from(format!("/proc/{vm}/cgroup")));
    let id = inspected["id"].as_str().unwrap();
    let own = delegated.0.join("msb").join(id);
    let shown = format!("0::/{}\n", own.strip_prefix("/sys/fs/cgroup").unwrap().display());
    assert_eq!(cgroup, shown);
    let who = as_user(&msb, &leaf, &["exec", "mine", "--", "id", "-u"]).expect(0);
    assert_eq!(who.text(), "0\n", "root in the guest is nobody outside");
    as_user(&msb, &leaf, &["stop", "mine"]).expect(0);
    assert!(!own.exists());
    as_user(&msb, &leaf, &["rm", "mine"]).expect(0);

    // The cgroup of the whole host is not theirs.
    let host = Path::new("/sys/fs/cgroup");
    assert_eq!(
        as_user(&msb, host, &["run", "--", "echo", "weaker"]).expect(0).text(),
        "weaker\n"
    );
    let strict = as_user(&msb, host, &["run", "--isolation=strict", "--", "true"]).refusal();
    assert!(strict.contains("limits"), "{strict}");
    assert_eq!(msb.leftovers(), [""; 0]);
}
