//! The system calls of a VM's process, by kind of thread. Anything else kills the process.

use std::collections::BTreeMap;
use std::io;

use msb_vmm::ThreadRole;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

use super::JailError;

/// `_IO(KVMIO, 0x80)`.
const KVM_RUN: u64 = 0xae80;
/// `_IOR(KVMIO, 0x81, struct kvm_regs)`.
const KVM_GET_REGS: u64 = 0x8090_ae81;
/// What tells the state of a vCPU and its VM, in the order of their numbers: `KVM_GET_CLOCK`, `_SREGS`, `_MSRS`, `_LAPIC`,
/// `_MP_STATE`, `_VCPU_EVENTS`, `_DEBUGREGS`, `_TSC_KHZ`, `_XSAVE`, `_XCRS`; and `KVM_KVMCLOCK_CTRL`, which tells a guest that
/// it was paused.
const KVM_SAVE: [u64; 11] = [
    0x8030_ae7c,
    0x8138_ae83,
    0xc008_ae88,
    0x8400_ae8e,
    0x8004_ae98,
    0x8040_ae9f,
    0x8080_aea1,
    0xaea3,
    0x9000_aea4,
    0x8188_aea6,
    0xaead,
];
/// What sets the clocks of a guest back to where it was paused: `KVM_SET_CLOCK` and `_MSRS`.
const KVM_GO_ON: [u64; 2] = [0x4030_ae7b, 0x4008_ae89];
/// `_IOW(KVMIO, 0x6a, struct kvm_irq_routing)`: the guest changes its I/O APIC.
const KVM_SET_GSI_ROUTING: u64 = 0x4008_ae6a;
/// `_IOW(KVMIO, 0x8b, struct kvm_signal_mask)`.
const KVM_SET_SIGNAL_MASK: u64 = 0x4004_ae8b;

/// The guard page of a thread's stack, in newer C libraries (linux/mman.h).
const MADV_GUARD_INSTALL: u64 = 102;

/// Memory, locks, and the end of a thread: what the language's runtime does on every thread.
pub(super) const RUNTIME: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_write,
];

/// Queues, disks, sockets and timers.
const DEVICE: &[libc::c_long] = &[
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_timerfd_settime,
];

/// Events of the bus; duplicates of queue notifications at activation; the signals that called it out of the guest.
const VCPU: &[libc::c_long] = &[libc::SYS_fcntl, libc::SYS_read, libc::SYS_rt_sigtimedwait];

/// Threads that start, the filters they narrow to, the talk with the keeper, files that the guest is saved to.
const CONTROL: &[libc::c_long] = &[
    libc::SYS_ftruncate,
    libc::SYS_lseek,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_rseq,
    libc::SYS_seccomp,
    libc::SYS_set_robust_list,
];

/// A filter cannot look into clone3's argument: told that there is none, the C library takes clone, whose flags it sees.
pub(super) const ABSENT: &[libc::c_long] = &[libc::SYS_clone3];

/// At its end the vsock device would remove its socket, and finds that it may not: its keeper does.
const FORBIDDEN: &[libc::c_long] = &[libc::SYS_statx, libc::SYS_unlink];

pub(super) type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The filters of a VM's process.
#[derive(Clone, Debug)]
pub struct Filters {
    refused: [BpfProgram; 2],
    process: BpfProgram,
    vcpu: BpfProgram,
    device: BpfProgram,
}

impl Filters {
    /// Compiles all of them.
    ///
    /// # Errors
    /// When one does not fit the kernel's limits.
    pub fn compile() -> Result<Self, JailError> {
        let mut vcpu = rules(&[RUNTIME, VCPU]);
        allow_memory(&mut vcpu)?;
        let ioctls = [KVM_RUN, KVM_GET_REGS, KVM_SET_GSI_ROUTING].map(ioctl);
        vcpu.insert(libc::SYS_ioctl, ioctls.into_iter().collect::<Result<_, _>>()?);

        let mut device = rules(&[RUNTIME, DEVICE, FORBIDDEN]);
        allow_memory(&mut device)?;
        allow_unix_sockets(&mut device)?;

        let mut process = rules(&[RUNTIME, DEVICE, VCPU, CONTROL, ABSENT, FORBIDDEN]);
        allow_memory(&mut process)?;
        allow_unix_sockets(&mut process)?;
        let ioctls = [KVM_RUN, KVM_GET_REGS, KVM_SET_GSI_ROUTING, KVM_SET_SIGNAL_MASK];
        process.insert(
            libc::SYS_ioctl,
            ioctls
                .into_iter()
                .chain(KVM_SAVE)
                .chain(KVM_GO_ON)
                .map(ioctl)
                .collect::<Result<_, _>>()?,
        );
        allow_threads(&mut process)?;
        Ok(Self {
            refused: [refuse(ABSENT, libc::ENOSYS)?, refuse(FORBIDDEN, libc::EPERM)?],
            process: kill(process)?,
            vcpu: kill(vcpu)?,
            device: kill(device)?,
        })
    }

    /// Restricts the process, which has one thread, to what any of its threads may do.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn apply_to_process(&self) -> Result<(), JailError> {
        self.refused.iter().chain([&self.process]).try_for_each(apply)
    }

    /// Restricts the calling thread further, to what its role takes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn apply_to_thread(&self, role: ThreadRole) -> io::Result<()> {
        let program = match role {
            ThreadRole::Vcpu => &self.vcpu,
            ThreadRole::Device => &self.device,
        };
        apply_filter(program).map_err(io::Error::other)
    }
}

pub(super) fn rules(lists: &[&[libc::c_long]]) -> Rules {
    lists
        .iter()
        .flat_map(|list| list.iter())
        .map(|call| (*call, Vec::new()))
        .collect()
}

/// Memory, but none that holds code, and pages given back: those of a thread's stack, and those that the guest does not use.
pub(super) fn allow_memory(rules: &mut Rules) -> Result<(), JailError> {
    let executable = u64::from(libc::PROT_EXEC.unsigned_abs());
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![rule(2, SeccompCmpOp::MaskedEq(executable), 0)?]);
    }
    let advice = [u64::from(libc::MADV_DONTNEED.unsigned_abs()), MADV_GUARD_INSTALL];
    let advice = advice.map(|advice| rule(2, SeccompCmpOp::Eq, advice));
    rules.insert(libc::SYS_madvise, advice.into_iter().collect::<Result<_, _>>()?);
    Ok(())
}

/// Threads, their names, and filters.
pub(super) fn allow_threads(rules: &mut Rules) -> Result<(), JailError> {
    let names = [libc::PR_SET_NAME, libc::PR_SET_NO_NEW_PRIVS];
    let names = names.map(|option| rule(0, SeccompCmpOp::Eq, u64::from(option.unsigned_abs())));
    rules.insert(libc::SYS_prctl, names.into_iter().collect::<Result<_, _>>()?);
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    rules.insert(libc::SYS_clone, vec![rule(0, SeccompCmpOp::MaskedEq(thread), thread)?]);
    Ok(())
}

/// A filter that answers `calls` with an error and allows all others.
pub(super) fn refuse(calls: &[libc::c_long], errno: i32) -> Result<BpfProgram, JailError> {
    program(rules(&[calls]), SeccompAction::Allow, error(errno))
}

/// A filter that kills the process for all calls but those of `rules`.
pub(super) fn kill(rules: Rules) -> Result<BpfProgram, JailError> {
    program(rules, SeccompAction::KillProcess, SeccompAction::Allow)
}

/// Restricts the calling thread.
pub(super) fn apply(program: &BpfProgram) -> Result<(), JailError> {
    apply_filter(program).map_err(|error| JailError::Refused {
        doing: "restrict system calls",
        source: io::Error::other(error),
    })
}

fn allow_unix_sockets(rules: &mut Rules) -> Result<(), JailError> {
    let unix = u64::from(libc::AF_UNIX.unsigned_abs());
    rules.insert(libc::SYS_socket, vec![rule(0, SeccompCmpOp::Eq, unix)?]);
    Ok(())
}

fn ioctl(request: u64) -> Result<SeccompRule, JailError> {
    rule(1, SeccompCmpOp::Eq, request)
}

pub(super) fn rule(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, JailError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(invalid)
}

fn program(rules: Rules, otherwise: SeccompAction, matching: SeccompAction) -> Result<BpfProgram, JailError> {
    SeccompFilter::new(rules, otherwise, matching, TargetArch::x86_64)
        .and_then(TryInto::try_into)
        .map_err(invalid)
}

fn error(errno: i32) -> SeccompAction {
    SeccompAction::Errno(errno.unsigned_abs())
}

fn invalid(error: seccompiler::BackendError) -> JailError {
    JailError::Refused {
        doing: "make a system call filter",
        source: io::Error::other(error),
    }
}
