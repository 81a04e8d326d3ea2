//! What the jail costs: the same VM from the fork of its process to its guest's first instruction and to the end of the
//! kernel's boot, with the jail and without, in turn.
//!
//! The guest has no agent to hear of: its kernel is told to start a program that is not there, which ends it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use msb::SandboxSpec;
use msb::assets::Assets;
use msb::jail::namespaces::{self, Forked};
use msb::jail::{self, Confinement, Isolation, user};
use msb_tests::resident_beyond_guest;
use msb_vmm::{Console, ConsoleLog, Initramfs, OnThread, Vm, VmConfig, VsockConfig};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::figure::Figure;

const MEMORY_MIB: u32 = 256;

pub(crate) fn measure(samples: usize) -> Vec<Figure> {
    let figure = |what: &str, jail: &str, unit| Figure::cold(format!("{what}, {jail}"), unit);
    let mut of_jail = ["no jail", "jail"].map(|jail| {
        [
            figure("fork to guest started", jail, "ms"),
            figure("fork to the end of the kernel's boot", jail, "ms"),
            figure("RSS beyond guest memory", jail, "KiB"),
        ]
    });
    // The first reads everything from the disk.
    boot(false);
    for _ in 0..samples {
        for (figures, is_jailed) in of_jail.iter_mut().zip([false, true]) {
            for (figure, sample) in figures.iter_mut().zip(boot(is_jailed)) {
                figure.add(sample);
            }
        }
    }
    let [without, with] = &of_jail;
    let ratio = with[1].ratio_to("fork to the end of the kernel's boot: jail to no jail", &without[1]);
    of_jail.into_iter().flatten().chain([ratio]).collect()
}

/// Milliseconds to the guest's start and to its end, and KiB of its process at its start.
fn boot(is_jailed: bool) -> [f64; 3] {
    let directory = tempfile::tempdir().expect("there is room for a directory");
    let (mut ours, theirs) = UnixStream::pair().expect("a pair of sockets can be had");
    let began = Instant::now();
    match fork(is_jailed) {
        Forked::Child { in_namespaces } => {
            drop(ours);
            // A failure says nothing, which the other end sees.
            let _ = run(directory.path(), is_jailed, in_namespaces, &theirs);
            // SAFETY: it ends this process at once: what it has from its parent is not its to drop.
            unsafe { libc::_exit(0) }
        }
        Forked::Parent(pid) => {
            drop(theirs);
            let mut milliseconds = || {
                ours.read_exact(&mut [0]).expect("the VM runs to its end");
                began.elapsed().as_secs_f64() * 1e3
            };
            let started = milliseconds();
            let resident = resident_beyond_guest(pid, MEMORY_MIB.into());
            let ended = milliseconds();
            let _ = kill_process(pid, Signal::KILL);
            waitpid(Some(pid), WaitOptions::empty()).expect("a child can be waited for");
            [started, ended, resident.into()]
        }
    }
}

fn fork(is_jailed: bool) -> Forked {
    if is_jailed {
        // SAFETY: this program has one thread.
        return unsafe { namespaces::fork(None) }.expect("a process can be forked");
    }
    // SAFETY: as above.
    match Pid::from_raw(unsafe { libc::fork() }) {
        Some(child) => Forked::Parent(child),
        None => Forked::Child { in_namespaces: false },
    }
}

fn run(directory: &Path, is_jailed: bool, in_namespaces: bool, mut report: &UnixStream) -> Option<()> {
    let files = Assets::find(None).ok()?;
    let vm = Vm::build(&VmConfig {
        vcpus: 1,
        memory_mib: MEMORY_MIB,
        kernel: files.kernel,
        share_code: false,
        initramfs: files.initramfs.into_iter().map(Initramfs::File).collect(),
        rom: files.programs,
        cmdline: "rdinit=/none init=/none".into(),
        console: Console::Log(ConsoleLog {
            path: directory.join("console"),
            max_bytes: 1 << 20,
        }),
        vsock: Some(VsockConfig::new(3, directory.join("v.sock"))),
        disks: Vec::new(),
        file_systems: Vec::new(),
    })
    .ok()?;
    let on_thread: OnThread = if is_jailed {
        let user = user::of(0);
        let confinement = Confinement {
            reachable: directory.to_owned(),
            isolation: Isolation::Available,
            user: user::can_become(user).then_some(user),
            limits: Some(SandboxSpec::default().limits()),
            largest_file: 1 << 30,
        };
        let (_, filters) = jail::enter(&confinement, in_namespaces).ok()?;
        Arc::new(move |role| filters.apply_to_thread(role))
    } else {
        Arc::new(|_| Ok(()))
    };
    let running = vm.start_with(&on_thread).ok()?;
    report.write_all(&[0]).ok()?;
    let _ = running.wait();
    report.write_all(&[0]).ok()
}
