//! A vCPU and the thread that runs it.

mod kick;
mod state;

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::GuestAddress;

use crate::arch::{cpuid, lapic, msr, registers};
use crate::devices::bus::Bus;
use crate::devices::legacy::PortEffect;
use crate::exit::FailureReason;
use crate::kvm::{Doing, KvmError, KvmVm};
use crate::stats::ExitCounters;
use crate::supervisor::Supervisor;
use crate::thread::{self, OnThread, ThreadRole};

pub(crate) use state::{LEAST_STEP, VcpuClock, VcpuState};

/// A vCPU that does not run.
#[derive(Debug)]
pub(crate) struct Vcpu {
    id: u8,
    fd: VcpuFd,
    cpuid: CpuId,
    counters: Arc<ExitCounters>,
}

/// Why a vCPU's thread left the guest.
enum Left {
    Reset,
    Asked,
    /// The VM is being paused, and no access of the guest is incomplete.
    Paused,
    Failed(FailureReason),
}

impl Vcpu {
    /// Makes vCPU `id` of `vcpus`; the first one starts at `entry`, the others wait until the guest starts them.
    pub(crate) fn new(vm: &KvmVm, id: u8, vcpus: u8, entry: GuestAddress) -> Result<Self, KvmError> {
        let vcpu = Self::create(vm, id, cpuid::for_vcpu(&vm.cpuid, id, vcpus, vm.tsc_deadline))?;
        let fd = &vcpu.fd;
        fd.set_msrs(&msr::boot_msrs()).doing("set a vCPU's MSRs")?;
        fd.set_fpu(&registers::fpu()).doing("set a vCPU's FPU")?;
        if let Some(state) = cpuid::extended_state(&vcpu.cpuid) {
            fd.set_xcrs(&registers::extended_control(state))
                .doing("set a vCPU's extended control registers")?;
        }
        let mut state = fd.get_lapic().doing("read a vCPU's local APIC")?;
        lapic::wire_local_interrupts(&mut state);
        fd.set_lapic(&state).doing("set a vCPU's local APIC")?;
        if id == 0 {
            let mut sregs = fd.get_sregs().doing("read a vCPU's segments")?;
            registers::enter_long_mode(&mut sregs);
            fd.set_sregs(&sregs).doing("set a vCPU's segments")?;
            fd.set_regs(&registers::general(entry))
                .doing("set a vCPU's registers")?;
        }
        Ok(vcpu)
    }

    fn create(vm: &KvmVm, id: u8, cpuid: CpuId) -> Result<Self, KvmError> {
        let fd = vm.fd.create_vcpu(id.into()).doing("create a vCPU")?;
        // The features come first: which MSRs exist depends on them.
        fd.set_cpuid2(&cpuid).doing("set a vCPU's features")?;
        Ok(Self {
            id,
            fd,
            cpuid,
            counters: Arc::default(),
        })
    }

    /// Counts this vCPU's exits.
    pub(crate) fn counters(&self) -> Arc<ExitCounters> {
        Arc::clone(&self.counters)
    }

    /// Starts the thread that runs this vCPU until `supervisor` says that the VM ended; what ends the VM on this vCPU
    /// is reported to it.
    pub(crate) fn spawn(
        self,
        bus: Arc<Bus>,
        supervisor: Arc<Supervisor>,
        on_thread: OnThread,
    ) -> io::Result<VcpuThread> {
        let name = format!("vcpu{}", self.id);
        let builder = thread::builder(&name);
        let shared = Arc::new(Mutex::new(self));
        let vcpu = Arc::clone(&shared);
        let body = move || {
            let _alarm = supervisor.watch_thread(name);
            let ready = kick::receive_only_in_guest(&lock(&vcpu).fd).and_then(|()| on_thread(ThreadRole::Vcpu));
            if let Err(error) = ready {
                let id = lock(&vcpu).id;
                return supervisor.failed(FailureReason::Run(error.to_string()), Some(id), None);
            }
            // While it is paused, the vCPU is not the thread's.
            while lock(&vcpu).run_until_paused(&bus, &supervisor) {
                supervisor.gate().pass();
                kick::forget();
            }
        };
        let thread = kick::spawn_blocked(|| builder.spawn(body))?;
        Ok(VcpuThread { thread, vcpu: shared })
    }

    /// False when the VM has ended.
    fn run_until_paused(&mut self, bus: &Bus, supervisor: &Supervisor) -> bool {
        match self.run(bus, supervisor) {
            Left::Paused => return true,
            Left::Asked => {}
            Left::Reset => supervisor.guest_reset(),
            Left::Failed(reason) => {
                let rip = self.fd.get_regs().ok().map(|regs| regs.rip);
                supervisor.failed(reason, Some(self.id), rip);
            }
        }
        false
    }

    fn run(&mut self, bus: &Bus, supervisor: &Supervisor) -> Left {
        loop {
            if supervisor.has_ended() {
                return Left::Asked;
            }
            // KVM completes an access only when it is entered again, even if it is to leave at once.
            let pausing = supervisor.gate().is_closed();
            self.fd.set_kvm_immediate_exit(pausing.into());
            match self.fd.run() {
                Ok(VcpuExit::MmioRead(address, data)) => {
                    self.counters.mmio_read();
                    bus.mmio_read(address, data);
                }
                Ok(VcpuExit::MmioWrite(address, data)) => {
                    self.counters.mmio_write();
                    bus.mmio_write(address, data);
                }
                Ok(VcpuExit::IoIn(port, data)) => {
                    self.counters.port_read();
                    bus.port_read(port, data);
                }
                Ok(VcpuExit::IoOut(port, data)) => {
                    self.counters.port_write();
                    if bus.port_write(port, data) == PortEffect::Reset {
                        return Left::Reset;
                    }
                }
                Ok(VcpuExit::Intr) if pausing => return Left::Paused,
                Err(error) if pausing && error.errno() == libc::EINTR => return Left::Paused,
                Ok(VcpuExit::Intr) => self.counters.interrupted(),
                Err(error) if error.errno() == libc::EINTR => self.counters.interrupted(),
                Err(error) if error.errno() == libc::EAGAIN => {}
                Ok(VcpuExit::Shutdown) => return Left::Failed(FailureReason::TripleFault),
                Ok(VcpuExit::FailEntry(reason, _cpu)) => return Left::Failed(FailureReason::FailEntry(reason)),
                Ok(VcpuExit::InternalError) => return Left::Failed(self.internal_error()),
                Ok(exit) => return Left::Failed(FailureReason::Unexpected(format!("{exit:?}"))),
                Err(error) => return Left::Failed(FailureReason::Run(io::Error::from(error).to_string())),
            }
        }
    }

    fn internal_error(&mut self) -> FailureReason {
        // SAFETY: KVM fills this member of the union when it exits with KVM_EXIT_INTERNAL_ERROR; it is plain integers.
        let suberror = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
        FailureReason::Internal { suberror }
    }
}

/// The thread of a vCPU.
#[derive(Debug)]
pub(crate) struct VcpuThread {
    thread: JoinHandle<()>,
    vcpu: Arc<Mutex<Vcpu>>,
}

impl VcpuThread {
    /// Makes the thread leave the guest and look at its supervisor.
    pub(crate) fn kick(&self) {
        kick::send(self.thread.as_pthread_t());
    }

    /// Waits until the thread has ended.
    pub(crate) fn join(self) {
        // A panic was reported by the thread's alarm.
        let _ = self.thread.join();
    }

    /// The vCPU, once its VM is paused or has ended: while it runs, this would wait.
    pub(crate) fn paused(&self) -> MutexGuard<'_, Vcpu> {
        lock(&self.vcpu)
    }
}

fn lock(vcpu: &Mutex<Vcpu>) -> MutexGuard<'_, Vcpu> {
    vcpu.lock().unwrap_or_else(PoisonError::into_inner)
}
