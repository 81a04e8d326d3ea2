//! Opens KVM and makes a VM whose vCPUs have local APICs.

use std::io;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use kvm_bindings::{
    CpuId, KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, KvmIrqRouting,
    kvm_clock_data, kvm_enable_cap, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_msi,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VmFd};
use serde::{Deserialize, Serialize};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::layout;
use crate::devices::ioapic::{Route, Routes};
use crate::devices::register_page::RegisterPages;
use crate::devices::virtio::interrupt::USED_BUFFERS;
use crate::devices::virtio::mmio::{INTERRUPT_ACK, MmioTransport, QUEUE_NOTIFY};
use crate::memory::{GuestMemory, Rom};
use crate::thread;

const DEVICE: &str = "/dev/kvm";
const API_VERSION: i32 = 12;
const REQUIRED: [(Cap, &str); 6] = [
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
];

/// Why KVM cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// There is no `/dev/kvm`.
    #[error(
        "{DEVICE} does not exist: enable virtualization in the firmware and load the module kvm_intel or kvm_amd; \
         inside a VM, enable nested virtualization"
    )]
    Missing,
    /// The user may not open `/dev/kvm`.
    #[error("no permission to open {DEVICE}: add the user to its group (often \"kvm\") and log in again")]
    Permission,
    /// `/dev/kvm` cannot be opened.
    #[error("cannot open {0}")]
    Open(PathBuf, #[source] io::Error),
    /// The module speaks another API.
    #[error("{DEVICE} speaks API version {0}, not {API_VERSION}: it is not Linux KVM")]
    ApiVersion(i32),
    /// The module lacks something this monitor needs.
    #[error("{DEVICE} lacks {0}: use a host with Linux 5.10 or newer")]
    Capability(&'static str),
    /// A register of the CPU that a saved guest used is not what it was.
    #[error("the CPU cannot restore the guest's register MSR {0:#x}: restore on the kind of host it was saved on")]
    Msr(u32),
    /// A KVM call failed.
    #[error("KVM refused to {doing}")]
    Call {
        /// What was being done.
        doing: &'static str,
        /// What KVM answered.
        #[source]
        source: io::Error,
    },
}

/// Names the KVM call that failed.
pub(crate) trait Doing<T> {
    /// Turns the failure of what was being done into a [`KvmError`].
    fn doing(self, doing: &'static str) -> Result<T, KvmError>;
}

impl<T> Doing<T> for Result<T, kvm_ioctls::Error> {
    fn doing(self, doing: &'static str) -> Result<T, KvmError> {
        self.map_err(|error| KvmError::Call {
            doing,
            source: error.into(),
        })
    }
}

/// A VM without vCPUs.
#[derive(Debug)]
pub(crate) struct KvmVm {
    pub(crate) fd: VmFd,
    pub(crate) cpuid: CpuId,
    pub(crate) tsc_deadline: bool,
    /// The model-specific registers that a guest's state consists of.
    pub(crate) msr_indices: Vec<u32>,
}

/// The clock of a VM.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KvmState {
    clock: kvm_clock_data,
}

/// Opens `/dev/kvm` and checks that it has what this monitor needs.
///
/// # Errors
/// Says what is missing and how to mend it.
pub fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmError::Missing,
        libc::EACCES | libc::EPERM => KvmError::Permission,
        _ => KvmError::Open(Path::new(DEVICE).into(), error.into()),
    })?;
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Err(KvmError::ApiVersion(version));
    }
    match REQUIRED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        Some((_, name)) => Err(KvmError::Capability(name)),
        None => Ok(kvm),
    }
}

/// A VM that KVM is making, on a thread of its own.
///
/// Before Linux 6.13, `KVM_CREATE_VM` moves a kernel thread into the caller's cgroup, which waits until every CPU was seen
/// outside the kernel: ten milliseconds and more, in which memory can be filled.
#[derive(Debug)]
pub(crate) struct Creation(Option<JoinHandle<Result<(Kvm, VmFd), KvmError>>>);

impl Creation {
    /// Begins. Dropping it waits for the thread.
    pub(crate) fn begin() -> io::Result<Self> {
        let create = || {
            let kvm = open()?;
            let fd = create_vm(&kvm)?;
            Ok((kvm, fd))
        };
        Ok(Self(Some(thread::builder("kvm").spawn(create)?)))
    }

    fn finish(mut self) -> Result<(Kvm, VmFd), KvmError> {
        let thread = self.0.take().expect("only this and drop take it");
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    }
}

impl Drop for Creation {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // What is not wanted any more need not have succeeded.
            let _ = thread.join();
        }
    }
}

impl KvmVm {
    /// Completes a VM whose vCPUs have local APICs, and `memory` as its memory, which reads `rom` and `registers` in their
    /// places.
    pub(crate) fn new(
        creation: Creation,
        memory: &GuestMemory,
        rom: Option<&Rom>,
        registers: &[&RegisterPages],
    ) -> Result<Self, KvmError> {
        let (kvm, fd) = creation.finish()?;
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .doing("set the identity map")?;
        fd.set_tss_address(layout::KVM_TSS).doing("set the TSS address")?;
        let local_apics = kvm_enable_cap {
            cap: KVM_CAP_SPLIT_IRQCHIP,
            args: [layout::IRQ_LINES.into(), 0, 0, 0],
            ..Default::default()
        };
        fd.enable_cap(&local_apics).doing("create the local APICs")?;
        let vm = Self {
            fd,
            cpuid: kvm
                .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
                .doing("report the CPU's features")?,
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
            msr_indices: kvm
                .get_msr_index_list()
                .doing("list the CPU's registers")?
                .as_slice()
                .to_vec(),
        };
        vm.map(memory, rom, registers)?;
        Ok(vm)
    }

    /// The state of the clock while the VM is paused.
    pub(crate) fn save(&self) -> Result<KvmState, KvmError> {
        Ok(KvmState {
            clock: self.fd.get_clock().doing("read the guest's clock")?,
        })
    }

    /// Restores what [`Self::save`] gave, once the vCPUs are restored: the clock follows their counters.
    pub(crate) fn restore(&self, state: &KvmState) -> Result<(), KvmError> {
        // The rest says how the clock was read.
        let clock = kvm_clock_data {
            clock: state.clock.clock,
            ..Default::default()
        };
        self.fd.set_clock(&clock).doing("restore the guest's clock")
    }

    fn map(&self, memory: &GuestMemory, rom: Option<&Rom>, registers: &[&RegisterPages]) -> Result<(), KvmError> {
        let memory = memory.iter().map(|region| kvm_userspace_memory_region {
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            ..Default::default()
        });
        let registers = registers.iter().map(|pages| {
            let (start, len) = pages.range();
            kvm_userspace_memory_region {
                flags: KVM_MEM_READONLY,
                guest_phys_addr: pages.address,
                memory_size: len as u64,
                userspace_addr: start as u64,
                ..Default::default()
            }
        });
        let rom = rom.map(|rom| kvm_userspace_memory_region {
            flags: KVM_MEM_READONLY,
            guest_phys_addr: layout::ROM,
            memory_size: rom.len(),
            userspace_addr: rom.address() as u64,
            ..Default::default()
        });
        for (slot, region) in (0..).zip(memory.chain(registers).chain(rom)) {
            let region = kvm_userspace_memory_region { slot, ..region };
            // SAFETY: what is mapped stays so beyond the life of every vCPU: the VM keeps its `Mappings` until its threads
            // are gone, and the bus, which the thread of each vCPU has, the pages of the registers.
            unsafe { self.fd.set_user_memory_region(region) }.doing("map guest memory")?;
        }
        Ok(())
    }

    /// Connects a device's interrupt, its acknowledgement and queue notifications, so that none leaves the kernel.
    /// Acknowledgements for which nobody has to do anything go to `acknowledged`, which may be closed then: KVM keeps it.
    pub(crate) fn connect(&self, device: &MmioTransport, index: usize, acknowledged: &EventFd) -> Result<(), KvmError> {
        self.connect_interrupt(device.interrupt().line(), layout::virtio_irq(index))?;
        let window = layout::virtio_window(index);
        let notify = IoEventAddress::Mmio(window + QUEUE_NOTIFY);
        for (queue, kick) in (0u32..).zip(device.kicks()) {
            self.fd
                .register_ioevent(kick, &notify, queue)
                .doing("register a queue notification")?;
        }
        let acknowledge = IoEventAddress::Mmio(window + INTERRUPT_ACK);
        self.fd
            .register_ioevent(acknowledged, &acknowledge, USED_BUFFERS)
            .doing("register the acknowledgement of an interrupt")
    }

    /// Turns writes to the eventfd `line` into the interrupt `irq`.
    pub(crate) fn connect_interrupt(&self, line: &EventFd, irq: u32) -> Result<(), KvmError> {
        self.fd.register_irqfd(line, irq).doing("register an interrupt")
    }
}

impl Routes for KvmVm {
    fn set(&self, routes: &[Route]) -> io::Result<()> {
        let entries: Vec<_> = routes.iter().map(message).collect();
        let routing = KvmIrqRouting::from_entries(&entries).expect("as many as there are lines, below KVM's limit");
        Ok(self.fd.set_gsi_routing(&routing)?)
    }
}

fn message(route: &Route) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi: route.line,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            msi: kvm_irq_routing_msi {
                address_lo: route.address,
                data: route.data,
                ..Default::default()
            },
        },
        ..Default::default()
    }
}

/// `KVM_CREATE_VM`, repeated while signals interrupt it.
fn create_vm(kvm: &Kvm) -> Result<VmFd, KvmError> {
    loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            result => return result.doing("create a VM"),
        }
    }
}
