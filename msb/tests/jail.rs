//! What a jailed process can still do, layer by layer. Each trial is a process of its own, so this program has one thread
//! and no test harness.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use msb::SandboxSpec;
use msb::jail::cgroup::Cgroup;
use msb::jail::namespaces::{self, Forked};
use msb::jail::{self, Confinement, Isolation, JailError, landlock, privileges, root, seccomp, user};
use msb_vmm::ThreadRole;
use rustix::process::{WaitOptions, WaitStatus, waitpid};

type Trial = (&'static str, fn());

const TRIALS: [Trial; 14] = [
    ("all_layers_hold_on_this_host", all_layers_hold_on_this_host),
    ("a_program_cannot_be_executed", a_program_cannot_be_executed),
    ("a_file_cannot_be_opened", a_file_cannot_be_opened),
    ("the_network_cannot_be_reached", the_network_cannot_be_reached),
    ("memory_cannot_hold_code", memory_cannot_hold_code),
    (
        "a_vcpu_thread_may_less_than_its_process",
        a_vcpu_thread_may_less_than_its_process,
    ),
    (
        "a_vcpu_thread_cannot_read_a_vms_state",
        a_vcpu_thread_cannot_read_a_vms_state,
    ),
    (
        "the_empty_root_has_only_the_sockets",
        the_empty_root_has_only_the_sockets,
    ),
    ("landlock_alone_forbids_files", landlock_alone_forbids_files),
    ("privileges_are_gone_for_good", privileges_are_gone_for_good),
    ("root_becomes_a_user_of_its_own", root_becomes_a_user_of_its_own),
    (
        "a_jail_without_limits_is_not_strict",
        a_jail_without_limits_is_not_strict,
    ),
    (
        "a_file_grows_no_further_than_its_limit",
        a_file_grows_no_further_than_its_limit,
    ),
    (
        "a_child_that_cannot_be_placed_never_runs",
        a_child_that_cannot_be_placed_never_runs,
    ),
];

fn main() {
    let mut failed = 0;
    for (name, trial) in TRIALS {
        // A trial reports its failure by a panic, which ends only this process's attempt.
        let passed = std::panic::catch_unwind(trial).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += usize::from(!passed);
    }
    let result = if failed == 0 { "ok" } else { "FAILED" };
    let passed = TRIALS.len() - failed;
    println!("\ntest result: {result}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out");
    std::process::exit(i32::from(failed > 0));
}

/// How a process that did `attempt` ended. What it returns is the process's exit status.
fn outcome(attempt: impl FnOnce(bool) -> u8) -> WaitStatus {
    // SAFETY: this program starts no thread outside the processes it forks.
    match unsafe { namespaces::fork(None) }.expect("a process can be forked") {
        Forked::Child { in_namespaces } => {
            // A panic would unwind into the parent's code.
            let attempted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| attempt(in_namespaces)));
            let code = attempted.unwrap_or(101);
            // SAFETY: it ends this process at once, as is wanted.
            unsafe { libc::_exit(code.into()) }
        }
        Forked::Parent(pid) => {
            let waited = waitpid(Some(pid), WaitOptions::empty()).expect("a child can be waited for");
            waited.expect("it has ended").1
        }
    }
}

/// The whole jail as this user can have it. Limits are those of a cgroup, which only a running sandbox has.
fn confinement(reachable: &Path, isolation: Isolation) -> Confinement {
    let user = user::of(7);
    Confinement {
        reachable: reachable.to_owned(),
        isolation,
        user: user::can_become(user).then_some(user),
        limits: Some(SandboxSpec::default().limits()),
        largest_file: 1 << 20,
    }
}

/// How a process ended that did `attempt` in the whole jail. `attempt` says whether it was allowed.
fn in_jail(attempt: impl FnOnce() -> bool) -> WaitStatus {
    let sockets = tempfile::tempdir().expect("a directory");
    outcome(|in_namespaces| {
        let confinement = confinement(sockets.path(), Isolation::Available);
        jail::enter(&confinement, in_namespaces).expect("this host can jail a process");
        u8::from(!attempt())
    })
}

fn assert_killed_by_seccomp(status: WaitStatus) {
    assert_eq!(status.terminating_signal(), Some(libc::SIGSYS), "{status:?}");
}

fn assert_succeeded(status: WaitStatus) {
    assert_eq!(status.exit_status(), Some(0), "{status:?}");
}

fn is_refused(result: io::Result<impl Sized>, kind: io::ErrorKind) -> bool {
    result.is_err_and(|error| error.kind() == kind)
}

fn all_layers_hold_on_this_host() {
    let sockets = tempfile::tempdir().expect("a directory");
    assert_succeeded(outcome(|in_namespaces| {
        u8::from(jail::enter(&confinement(sockets.path(), Isolation::Strict), in_namespaces).is_err())
    }));
    assert_succeeded(in_jail(|| true));
}

fn a_program_cannot_be_executed() {
    assert_killed_by_seccomp(in_jail(|| std::process::Command::new("/bin/true").status().is_ok()));
}

fn a_file_cannot_be_opened() {
    assert_killed_by_seccomp(in_jail(|| fs::File::open("/etc/passwd").is_ok()));
}

fn the_network_cannot_be_reached() {
    assert_killed_by_seccomp(in_jail(|| std::net::TcpStream::connect(("127.0.0.1", 22)).is_ok()));
}

fn memory_cannot_hold_code() {
    assert_killed_by_seccomp(in_jail(|| {
        let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping touches no other.
        let mapped = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
        mapped != libc::MAP_FAILED
    }));
}

fn a_vcpu_thread_may_less_than_its_process() {
    let sockets = tempfile::tempdir().expect("a directory");
    let role = |role: Option<ThreadRole>| {
        outcome(|in_namespaces| {
            let confinement = confinement(sockets.path(), Isolation::Available);
            let (_, filters) = jail::enter(&confinement, in_namespaces).expect("a jail");
            if let Some(role) = role {
                filters.apply_to_thread(role).expect("a filter");
            }
            // SAFETY: the call takes numbers only.
            u8::from(unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0) } == -1)
        })
    };
    assert_succeeded(role(None));
    assert_succeeded(role(Some(ThreadRole::Device)));
    assert_killed_by_seccomp(role(Some(ThreadRole::Vcpu)));
}

fn a_vcpu_thread_cannot_read_a_vms_state() {
    /// `_IOR(KVMIO, 0x83, struct kvm_sregs)`.
    const KVM_GET_SREGS: libc::Ioctl = 0x8138_ae83;
    let sockets = tempfile::tempdir().expect("a directory");
    let confinement = confinement(sockets.path(), Isolation::Available);
    let with = |role: Option<ThreadRole>| {
        outcome(|in_namespaces| {
            let (_, filters) = jail::enter(&confinement, in_namespaces).expect("a jail");
            if let Some(role) = role {
                filters.apply_to_thread(role).expect("a filter");
            }
            // SAFETY: without a descriptor the call does nothing.
            let result = unsafe { libc::ioctl(-1, KVM_GET_SREGS, 0) };
            let refused = io::Error::last_os_error().raw_os_error() == Some(libc::EBADF);
            u8::from(result != -1 || !refused)
        })
    };
    assert_succeeded(with(None));
    assert_killed_by_seccomp(with(Some(ThreadRole::Vcpu)));
    assert_killed_by_seccomp(with(Some(ThreadRole::Device)));
}

fn the_empty_root_has_only_the_sockets() {
    let sockets = tempfile::tempdir().expect("a directory");
    let path = sockets.path().join("s");
    let listener = UnixListener::bind(&path).expect("a socket");
    assert_succeeded(outcome(|in_namespaces| {
        assert!(in_namespaces, "this host allows no user namespaces");
        root::replace(sockets.path()).expect("an empty root");
        let top: Vec<_> = fs::read_dir("/")
            .expect("a root")
            .flatten()
            .map(|entry| entry.path())
            .collect();
        let first = Path::new("/").join(sockets.path().iter().nth(1).expect("an absolute path"));
        assert_eq!(top, [first]);
        assert!(is_refused(fs::read("/etc/passwd"), io::ErrorKind::NotFound));
        assert!(is_refused(fs::write("/x", "x"), io::ErrorKind::ReadOnlyFilesystem));
        assert!(is_refused(
            fs::write(sockets.path().join("x"), "x"),
            io::ErrorKind::ReadOnlyFilesystem
        ));
        u8::from(
            UnixStream::connect(&path)
                .and_then(|mut stream| stream.write_all(b"x"))
                .is_err(),
        )
    }));
    let mut byte = [0];
    listener
        .accept()
        .expect("it connected")
        .0
        .read_exact(&mut byte)
        .expect("it wrote");
    assert_eq!(&byte, b"x");
}

fn landlock_alone_forbids_files() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("file");
    fs::write(&file, "x").expect("a file");
    assert_succeeded(outcome(|_| {
        fs::read(&file).expect("a file that can be read");
        let abi = landlock::forbid_files().expect("Landlock");
        assert!(abi > 0, "this host's kernel has no Landlock");
        let denied = io::ErrorKind::PermissionDenied;
        assert!(is_refused(fs::read(&file), denied));
        assert!(is_refused(fs::remove_file(&file), denied));
        assert!(is_refused(fs::write(directory.path().join("new"), "x"), denied));
        0
    }));
    assert!(file.exists());
}

fn privileges_are_gone_for_good() {
    assert_succeeded(outcome(|_| {
        privileges::bound().expect("what can be forbidden");
        privileges::drop_all().expect("what can be dropped");
        let status = fs::read_to_string("/proc/thread-self/status").expect("/proc");
        let value = |key: &str| {
            let line = status.lines().find(|line| line.starts_with(key));
            line.and_then(|line| line.split_whitespace().nth(1))
                .unwrap_or("?")
                .to_owned()
        };
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(value(set), "0000000000000000", "{set}");
        }
        assert_eq!(value("NoNewPrivs:"), "1");
        let filters = seccomp::Filters::compile().expect("filters");
        u8::from(filters.apply_to_process().is_err())
    }));
}

fn root_becomes_a_user_of_its_own() {
    let sockets = tempfile::tempdir().expect("a directory");
    let confinement = confinement(sockets.path(), Isolation::Available);
    let parents = rustix::process::geteuid().as_raw();
    assert_succeeded(outcome(|in_namespaces| {
        let (layers, _) = jail::enter(&confinement, in_namespaces).expect("a jail");
        // Nobody but root can give a user away.
        u8::from(layers.user != confinement.user.unwrap_or(parents))
    }));
    assert_eq!(parents == 0, confinement.user.is_some());
}

fn a_jail_without_limits_is_not_strict() {
    let sockets = tempfile::tempdir().expect("a directory");
    let without = Confinement {
        limits: None,
        ..confinement(sockets.path(), Isolation::Strict)
    };
    assert_succeeded(outcome(|in_namespaces| {
        let refused = jail::enter(&without, in_namespaces).expect_err("it lacks a layer");
        u8::from(!matches!(refused, JailError::Missing(layers) if layers == [jail::Layer::Limits]))
    }));
}

fn a_file_grows_no_further_than_its_limit() {
    let mut file = tempfile::tempfile().expect("a file");
    let outcome = outcome(|_| {
        privileges::limit_resources(Some(4096), privileges::VM_DESCRIPTORS).expect("limits");
        file.write_all(&[0; 4096]).expect("room");
        u8::from(file.write_all(&[0]).is_ok())
    });
    // Whoever goes on writing is killed, unless the signal was ignored by whoever started this test.
    let refused = outcome.terminating_signal() == Some(libc::SIGXFSZ) || outcome.exit_status() == Some(0);
    assert!(refused, "{outcome:?}");
    assert_eq!(file.metadata().expect("a file").len(), 4096);
}

fn a_child_that_cannot_be_placed_never_runs() {
    let (mut ours, theirs) = UnixStream::pair().expect("sockets");
    let directory = tempfile::tempdir().expect("a directory");
    let no_cgroup = Cgroup::at(directory.path().to_owned());
    // SAFETY: this program starts no thread.
    let forked = unsafe { namespaces::fork(Some(&no_cgroup)) };
    if let Ok(Forked::Child { .. }) = &forked {
        let _ = (&theirs).write_all(b"x");
        // SAFETY: it ends this process at once, as is wanted.
        unsafe { libc::_exit(0) }
    }
    assert!(forked.is_err());
    drop(theirs);
    assert_eq!(ours.read(&mut [0]).expect("its end"), 0);
}
