//! What holds around a guest that runs, and what happens when its process dies.

use std::fs;

use msb_tests::{Msb, finish};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

const NAMESPACES: [&str; 7] = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"];

fn proc(pid: Pid, path: &str) -> String {
    let path = format!("/proc/{}/{path}", pid.as_raw_nonzero());
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn every_thread_of_a_running_vm_is_jailed() {
    let msb = Msb::new();
    let sandbox = msb.create_with("jailed", &["--isolation=strict"]);
    let vm = sandbox.vm();
    let tasks: Vec<_> = fs::read_dir(format!("/proc/{}/task", vm.as_raw_nonzero()))
        .unwrap()
        .collect();
    // At least: itself, the control, the vCPU, and three devices.
    assert!(tasks.len() >= 6, "{}", tasks.len());
    for task in tasks {
        let task = task.unwrap().file_name().into_string().unwrap();
        let status = proc(vm, &format!("task/{task}/status"));
        for line in [
            "Seccomp:\t2\n",
            "NoNewPrivs:\t1\n",
            "CapEff:\t0000000000000000\n",
            "CapBnd:\t0000000000000000\n",
        ] {
            assert!(status.contains(line), "{line} of {status}");
        }
    }
    let own = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
    for kind in NAMESPACES {
        let its = fs::read_link(format!("/proc/{}/ns/{kind}", vm.as_raw_nonzero())).unwrap();
        assert_ne!(its, own(kind), "{kind}");
    }
    let interfaces: Vec<_> = proc(vm, "net/dev").lines().skip(2).map(str::to_owned).collect();
    assert!(
        interfaces.len() == 1 && interfaces[0].trim().starts_with("lo:"),
        "{interfaces:?}"
    );
    assert_eq!(proc(vm, "environ"), "");
    let limits = proc(vm, "limits");
    for limited in [
        "core file size        0 ",
        "locked memory         0 ",
        "open files            4096 ",
    ] {
        assert!(limits.contains(limited), "{limited} of {limits}");
    }
    let layers = sandbox.inspect()["vm"]["layers"].clone();
    assert!(
        layers["landlock"].as_u64().unwrap() > 0 && layers["namespaces"] == true,
        "{layers}"
    );
    assert_eq!(sandbox.ssh("echo alive").expect(0).text(), "alive\n");
}

#[test]
fn a_running_vm_sees_no_file_of_the_host() {
    let msb = Msb::new();
    let sandbox = msb.create("blind");
    let root = format!("/proc/{}/root", sandbox.vm().as_raw_nonzero());
    let mut directory = std::path::PathBuf::from(&root);
    // One directory in each other, down to that of the sockets.
    while let [only] = &fs::read_dir(&directory)
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .collect::<Vec<_>>()[..]
    {
        if !only.is_dir() {
            break;
        }
        directory = only.clone();
    }
    let sockets = directory.strip_prefix(&root).unwrap();
    let socket = sandbox.inspect()["socket"].as_str().unwrap().to_owned();
    assert_eq!(
        std::path::Path::new("/").join(sockets),
        std::path::Path::new(&socket).parent().unwrap()
    );
}

#[test]
fn the_death_of_the_vms_process_is_told_and_leaves_nothing() {
    let msb = Msb::new();
    let sandbox = msb.create("killed");
    kill_process(sandbox.vm(), Signal::KILL).unwrap();
    msb.run(["wait", "killed"]);
    assert_eq!(msb.state("killed"), "crashed");
    let message = sandbox.inspect()["message"].to_string();
    assert!(message.contains("signal 9"), "{message}");
    msb.run(["rm", "killed"]).expect(0);
    assert_eq!(msb.leftovers(), [""; 0]);
}

#[test]
fn a_vm_dies_with_its_keeper() {
    let msb = Msb::new();
    let sandbox = msb.create("orphan");
    let vm = pidfd_open(sandbox.vm(), PidfdFlags::empty()).unwrap();
    kill_process(sandbox.vmm(), Signal::KILL).unwrap();
    // Readable once the process has ended.
    poll(&mut [PollFd::new(&vm, PollFlags::IN)], None).unwrap();
    assert_eq!(msb.state("orphan"), "crashed");
}

#[test]
fn a_host_without_user_namespaces_is_refused_only_by_who_insists() {
    let msb = Msb::new();
    let without = |verb: &str| {
        let script = format!("echo 0 >/proc/sys/user/max_user_namespaces; exec {verb}");
        finish(
            msb.command_of("unshare")
                .args(["--user", "--map-root-user", "sh", "-c", &script]),
        )
    };
    let refusal = without("msb run --isolation=strict -- true").refusal();
    assert!(
        refusal.contains("namespaces") && refusal.contains("msb doctor"),
        "{refusal}"
    );
    assert_eq!(without("msb run -- echo weaker").expect(0).text(), "weaker\n");
    assert_eq!(msb.leftovers(), [""; 0]);
}
