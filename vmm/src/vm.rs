//! A VM from its configuration to its end: `build()`, `start()`, `wait()`.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::arch::{boot, layout, mptable, registers};
use crate::config::{Console, VmConfig};
use crate::devices::attach::{self, AttachedDevices};
use crate::devices::bus::Bus;
use crate::devices::console::ConsoleWriter;
use crate::devices::legacy::LegacyPorts;
use crate::devices::virtio::block::BlockError;
use crate::devices::virtio::vsock::VsockError;
use crate::event_loop::{EventLoop, EventLoopThread};
use crate::exit::VmExit;
use crate::kvm::{self, KvmError, KvmVm};
use crate::memory::{self, Mappings, MemoryError};
use crate::stats::{ExitCounters, ExitCounts};
use crate::supervisor::Supervisor;
use crate::thread::OnThread;
use crate::vcpu::{Vcpu, VcpuThread};

/// Why a VM cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The number of vCPUs is none this monitor can give.
    #[error("{0} vCPUs are not possible: ask for 1 to {max}", max = layout::MAX_VCPUS)]
    Vcpus(u8),
    /// KVM cannot be used.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Guest memory cannot be made.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Kernel, initramfs or command line cannot be loaded.
    #[error(transparent)]
    Load(#[from] boot::LoadError),
    /// The vsock device cannot be made.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// A disk cannot be used.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// A file of the configuration cannot be opened.
    #[error("cannot open {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the host answered.
        #[source]
        source: io::Error,
    },
    /// There are more devices than interrupt lines.
    #[error("{0} devices are too many: at most {max} fit", max = layout::MAX_VIRTIO_DEVICES)]
    TooManyDevices(usize),
    /// The host is out of something.
    #[error("cannot {doing}")]
    Host {
        /// What was being done.
        doing: &'static str,
        /// What the host answered.
        #[source]
        source: io::Error,
    },
}

/// A VM that is complete and has not run.
#[derive(Debug)]
pub struct Vm {
    vcpus: Vec<Vcpu>,
    loops: Vec<EventLoop>,
    bus: Arc<Bus>,
    supervisor: Arc<Supervisor>,
    kvm: Arc<KvmVm>,
    // Last: everything above may use guest memory.
    mappings: Mappings,
}

/// A VM that was started.
///
/// Dropping it ends it.
#[derive(Debug)]
pub struct RunningVm {
    handle: VmHandle,
    counters: Vec<Arc<ExitCounters>>,
    // Kept until the threads are gone, which use them.
    _kvm: Arc<KvmVm>,
    _mappings: Mappings,
}

/// Ends a running VM from any thread.
#[derive(Clone, Debug)]
pub struct VmHandle {
    supervisor: Arc<Supervisor>,
    threads: Arc<Mutex<Threads>>,
}

#[derive(Debug, Default)]
struct Threads {
    vcpus: Vec<VcpuThread>,
    loops: Vec<EventLoopThread>,
}

impl Vm {
    /// Makes the VM that `config` describes: everything is opened, mapped and loaded, and nothing runs yet.
    ///
    /// # Errors
    /// Says what is wrong with the configuration or the host; nothing is left behind.
    pub fn build(config: &VmConfig) -> Result<Self, BuildError> {
        if config.vcpus == 0 || config.vcpus > layout::MAX_VCPUS {
            return Err(BuildError::Vcpus(config.vcpus));
        }
        let open = |path: &PathBuf, source| BuildError::Open {
            path: path.clone(),
            source,
        };
        let mut kernel = File::open(&config.kernel).map_err(|error| open(&config.kernel, error))?;
        let (memory, mappings) = memory::allocate(config.memory_mib)?;
        let (entry, kernel_end) = boot::load_kernel(&memory, &mut kernel, &config.kernel)?;
        let initramfs = boot::load_initramfs(&memory, &config.initramfs, kernel_end)?;
        let console = ConsoleWriter::open(&config.console).map_err(|error| match &config.console {
            Console::Log(log) => open(&log.path, error),
            Console::Stream(_) => open(&"the console's stream".into(), error),
        })?;
        let supervisor = Arc::new(Supervisor::new(console.tail()));

        let kvm = KvmVm::new(&kvm::open()?, &memory)?;
        let ports = LegacyPorts::new(console).map_err(|source| BuildError::Host {
            doing: "make the serial port",
            source,
        })?;
        kvm.connect_interrupt(ports.serial_line(), layout::SERIAL_IRQ)?;
        let AttachedDevices { transports, loops } = attach::attach_all(config, &memory)?;
        for (index, transport) in transports.iter().enumerate() {
            kvm.connect(transport, index)?;
        }

        let tables = |error| BuildError::Load(boot::LoadError::Tables(error));
        registers::write_tables(&memory).map_err(tables)?;
        mptable::write(&memory, config.vcpus).map_err(tables)?;
        boot::write_boot_params(&memory, &cmdline(&config.cmdline, transports.len()), initramfs)?;

        let vcpus = (0..config.vcpus)
            .map(|id| Vcpu::new(&kvm, id, config.vcpus, entry))
            .collect::<Result<_, _>>()?;
        let bus = Arc::new(Bus::new(ports, transports));
        Ok(Self {
            vcpus,
            loops,
            bus,
            supervisor,
            kvm: Arc::new(kvm),
            mappings,
        })
    }

    /// Starts the guest.
    ///
    /// # Errors
    /// When the host refuses a thread; those that were started have ended by then.
    pub fn start(self) -> Result<RunningVm, BuildError> {
        let unrestricted: OnThread = Arc::new(|_| Ok(()));
        self.start_with(&unrestricted)
    }

    /// Starts the guest, after `on_thread` was called on each of its threads.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(self, on_thread: &OnThread) -> Result<RunningVm, BuildError> {
        let Self {
            vcpus,
            loops,
            bus,
            supervisor,
            kvm,
            mappings,
        } = self;
        let host = |source| BuildError::Host {
            doing: "start a thread for the VM",
            source,
        };
        let running = RunningVm {
            counters: vcpus.iter().map(Vcpu::counters).collect(),
            handle: VmHandle {
                supervisor: Arc::clone(&supervisor),
                threads: Arc::default(),
            },
            _kvm: kvm,
            _mappings: mappings,
        };
        let mut threads = running.handle.lock();
        for event_loop in loops {
            threads.loops.push(
                event_loop
                    .spawn(Arc::clone(&supervisor), Arc::clone(on_thread))
                    .map_err(host)?,
            );
        }
        for vcpu in vcpus {
            threads.vcpus.push(
                vcpu.spawn(Arc::clone(&bus), Arc::clone(&supervisor), Arc::clone(on_thread))
                    .map_err(host)?,
            );
        }
        drop(threads);
        Ok(running)
    }
}

impl RunningVm {
    /// Waits until the VM has ended and its threads are gone. May be called again.
    pub fn wait(&self) -> VmExit {
        let exit = self.handle.supervisor.wait();
        self.handle.end_threads();
        exit
    }

    /// Something to end the VM with, from any thread.
    pub fn handle(&self) -> VmHandle {
        self.handle.clone()
    }

    /// Exits of all vCPUs so far.
    pub fn exit_counts(&self) -> ExitCounts {
        self.counters.iter().map(Arc::as_ref).collect()
    }
}

impl Drop for RunningVm {
    fn drop(&mut self) {
        self.handle.stop();
        self.handle.end_threads();
    }
}

impl VmHandle {
    /// Ends the VM at once, as if its power was cut. A VM that has ended stays as it ended.
    pub fn stop(&self) {
        self.supervisor.stop();
        self.lock().vcpus.iter().for_each(VcpuThread::kick);
    }

    fn end_threads(&self) {
        let Threads { vcpus, loops } = std::mem::take(&mut *self.lock());
        vcpus.iter().for_each(VcpuThread::kick);
        vcpus.into_iter().for_each(VcpuThread::join);
        loops.into_iter().for_each(EventLoopThread::join);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Threads> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The kernel command line: what the machine needs, the devices, then what the embedder wants.
fn cmdline(extra: &str, virtio_devices: usize) -> String {
    let mut line =
        String::from("console=ttyS0 quiet reboot=k panic=-1 no_timer_check tsc=reliable random.trust_cpu=on");
    for index in (0u32..).take(virtio_devices) {
        let address = layout::VIRTIO_MMIO + u64::from(index) * layout::VIRTIO_MMIO_SIZE;
        let irq = layout::FIRST_VIRTIO_IRQ + index;
        line.push_str(&format!(" virtio_mmio.device=4K@{address:#x}:{irq}"));
    }
    let extra = extra.trim();
    if !extra.is_empty() {
        line.push(' ');
        line.push_str(extra);
    }
    line
}
