//! A VM from its configuration to its end: `build()`, `start()`, `wait()`.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::arch::{boot, layout, mptable, registers};
use crate::config::{Console, VmConfig};
use crate::devices::attach::{self, AttachedDevices};
use crate::devices::bus::Bus;
use crate::devices::console::ConsoleWriter;
use crate::devices::ioapic::{Ioapic, Routes};
use crate::devices::legacy::LegacyPorts;
use crate::devices::register_page::RegisterPages;
use crate::devices::virtio::block::BlockError;
use crate::devices::virtio::fs::FsError;
use crate::devices::virtio::mmio::RestoreError;
use crate::devices::virtio::vsock::VsockError;
use crate::event_loop::{EventLoop, EventLoopThread};
use crate::exit::VmExit;
use crate::kvm::{Creation, KvmError, KvmState, KvmVm};
use crate::memory::{self, GuestMemory, Mappings, MemoryError, Rom};
use crate::snapshot::{HostFacts, Snapshot, SnapshotError};
use crate::stats::{ExitCounters, ExitCounts};
use crate::supervisor::Supervisor;
use crate::thread::OnThread;
use crate::vcpu::{LEAST_STEP, Vcpu, VcpuClock, VcpuThread};

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
    /// A file system cannot be used.
    #[error(transparent)]
    FileSystem(#[from] FsError),
    /// A file of the configuration cannot be opened.
    #[error("cannot open {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the host answered.
        #[source]
        source: io::Error,
    },
    /// A saved VM cannot go on here.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A saved device does not fit the one in its place.
    #[error(transparent)]
    Device(#[from] RestoreError),
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
    host: HostFacts,
    memory_mib: u32,
    loaded_at: Option<Instant>,
    // Last: everything above may use guest memory.
    mappings: Mappings,
}

/// Why a VM cannot be paused or saved.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// It has ended.
    #[error("the VM has ended")]
    Ended,
    /// Only what stands still can be saved.
    #[error("the VM is not paused")]
    NotPaused,
    /// What the guest has open of a file system of the host is not its own.
    #[error("a VM with a file system of the host cannot be saved")]
    Unsavable,
    /// KVM does not tell the state.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The memory cannot be written.
    #[error("cannot write the guest's memory")]
    Memory(#[source] io::Error),
}

/// What a VM consists of before its guest is put into it.
struct Frame {
    kvm: Arc<KvmVm>,
    supervisor: Arc<Supervisor>,
    bus: Bus,
    loops: Vec<EventLoop>,
}

/// Where the clocks of a VM were when it was paused.
#[derive(Debug)]
struct Clocks {
    read_at: Instant,
    vcpus: Vec<VcpuClock>,
    kvm: KvmState,
}

/// A VM that was started.
///
/// Dropping it ends it.
#[derive(Debug)]
pub struct RunningVm {
    handle: VmHandle,
    counters: Vec<Arc<ExitCounters>>,
    /// Where the clocks were when it was paused, if it is and KVM tells.
    paused: Mutex<Option<Result<Clocks, KvmError>>>,
    bus: Arc<Bus>,
    kvm: Arc<KvmVm>,
    host: HostFacts,
    memory_mib: u32,
    // Kept until the threads are gone, which use it.
    mappings: Mappings,
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
        check_vcpus(config)?;
        let creation = begin_creation()?;
        let mut kernel = File::open(&config.kernel).map_err(cannot_open(&config.kernel))?;
        let rom = open_rom(config)?;
        let (memory, mut mappings) = memory::allocate(config.memory_mib, rom.as_ref())?;
        let mapped = match config.share_code {
            true => mappings.share_code(&kernel)?,
            false => 0..0,
        };
        let (entry, kernel_end) = boot::load_kernel(&memory, &mut kernel, &config.kernel, mapped)?;
        let initramfs = boot::load_initramfs(&memory, &config.initramfs, kernel_end)?;
        let loaded_at = Some(Instant::now());
        let frame = Frame::new(config, creation, (&memory, mappings.rom()), LegacyPorts::new)?;

        let tables = |error| BuildError::Load(boot::LoadError::Tables(error));
        registers::write_tables(&memory).map_err(tables)?;
        let lines = layout::irq_lines(frame.bus.virtio().len());
        mptable::write(&memory, config.vcpus, lines).map_err(tables)?;
        let cmdline = cmdline(&config.cmdline, frame.bus.virtio().len(), mappings.rom());
        boot::write_boot_params(&memory, &cmdline, initramfs)?;

        let vcpus = (0..config.vcpus)
            .map(|id| Vcpu::new(&frame.kvm, id, config.vcpus, entry))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            loaded_at,
            ..Self::new(config, frame, vcpus, mappings)
        })
    }

    /// Makes the VM that `config` describes as it was when `snapshot` and `memory` were saved. Initramfs and command line of
    /// `config` are not looked at, and of the kernel only whether it is the one that was saved, where its code is to be
    /// shared; a ROM has what was saved, byte for byte, and serves in its place. The
    /// memory is read where the guest touches it, and never written to.
    ///
    /// What the guest's connections led to is gone: its vsock driver is told so when the VM starts, and clients wait
    /// until the guest has opened a connection to the host.
    ///
    /// # Errors
    /// When the snapshot is not of such a VM, or not one of this host; and as [`Self::build`].
    pub fn restore(config: &VmConfig, snapshot: &Snapshot, memory: File) -> Result<Self, BuildError> {
        check_vcpus(config)?;
        let creation = begin_creation()?;
        let rom = open_rom(config)?;
        let (memory, mut mappings) = memory::restore(config.memory_mib, snapshot.rom_len, memory, rom.as_ref())?;
        if let (true, Some(saved), Ok(kernel)) = (config.share_code, &snapshot.code, File::open(&config.kernel)) {
            mappings.share_saved_code(saved, &kernel)?;
        }
        let frame = Frame::new(config, creation, (&memory, mappings.rom()), |console| {
            LegacyPorts::restore(console, &snapshot.serial)
        })?;
        snapshot.check(&frame.kvm, config.vcpus, config.memory_mib, frame.bus.virtio().len())?;
        for (transport, state) in frame.bus.virtio().iter().zip(&snapshot.devices) {
            transport.restore(state)?;
        }
        let vcpus = (0..)
            .zip(&snapshot.vcpus)
            .map(|(id, state)| Vcpu::restore(&frame.kvm, id, state))
            .collect::<Result<Vec<_>, _>>()?;
        frame.kvm.restore(&snapshot.kvm)?;
        frame
            .bus
            .ioapic()
            .restore(&snapshot.ioapic)
            .map_err(|source| BuildError::Host {
                doing: "restore the routes of interrupts",
                source,
            })?;
        vcpus.iter().for_each(Vcpu::excuse_absence);
        Ok(Self::new(config, frame, vcpus, mappings))
    }

    fn new(config: &VmConfig, frame: Frame, vcpus: Vec<Vcpu>, mappings: Mappings) -> Self {
        let Frame {
            kvm,
            supervisor,
            bus,
            loops,
        } = frame;
        Self {
            vcpus,
            loops,
            bus: Arc::new(bus),
            supervisor,
            host: HostFacts::of(&kvm),
            memory_mib: config.memory_mib,
            loaded_at: None,
            kvm,
            mappings,
        }
    }

    /// When kernel and initramfs were in the guest's memory; `None` for a guest that was saved.
    pub fn loaded_at(&self) -> Option<Instant> {
        self.loaded_at
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
            host,
            memory_mib,
            loaded_at: _,
            mappings,
        } = self;
        let refused = |source| BuildError::Host {
            doing: "start a thread for the VM",
            source,
        };
        let running = RunningVm {
            counters: vcpus.iter().map(Vcpu::counters).collect(),
            handle: VmHandle {
                supervisor: Arc::clone(&supervisor),
                threads: Arc::default(),
            },
            paused: Mutex::default(),
            bus: Arc::clone(&bus),
            kvm,
            host,
            memory_mib,
            mappings,
        };
        supervisor.gate().expect(loops.len() + vcpus.len());
        let mut threads = running.handle.lock();
        for event_loop in loops {
            threads.loops.push(
                event_loop
                    .spawn(Arc::clone(&supervisor), Arc::clone(on_thread))
                    .map_err(refused)?,
            );
        }
        for vcpu in vcpus {
            threads.vcpus.push(
                vcpu.spawn(Arc::clone(&bus), Arc::clone(&supervisor), Arc::clone(on_thread))
                    .map_err(refused)?,
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

    /// Stops the guest and its devices where nothing is half done. What is paused stays so.
    ///
    /// Time goes on for the guest, as for a computer that nobody let run, unless [`Self::go_on`] ends the pause.
    ///
    /// # Errors
    /// When the VM has ended.
    pub fn pause(&self) -> Result<(), PauseError> {
        let mut paused = self.lock_paused();
        if paused.is_none() {
            let gate = self.handle.supervisor.gate();
            gate.close();
            {
                let threads = self.handle.lock();
                threads.vcpus.iter().for_each(VcpuThread::kick);
                threads.loops.iter().for_each(EventLoopThread::wake);
            }
            if !gate.wait_for_all() {
                return Err(PauseError::Ended);
            }
            *paused = Some(self.clocks());
        }
        Ok(())
    }

    /// Lets a paused guest go on. One that runs is left alone.
    pub fn resume(&self) {
        let mut paused = self.lock_paused();
        if paused.take().is_some() {
            self.let_go_on();
        }
    }

    /// Lets a paused guest go on as if no time had passed, as a restored one does: none of its timers has run out, and its
    /// clock is late until it is set. A pause of less than two seconds passes for it, as does any where KVM sets no clock
    /// back. One that runs is left alone.
    pub fn go_on(&self) {
        let mut paused = self.lock_paused();
        if let Some(clocks) = paused.take() {
            if let Err(error) = clocks.and_then(|clocks| self.set_back(&clocks)) {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "time passed for a paused guest"
                );
            }
            self.let_go_on();
        }
    }

    fn let_go_on(&self) {
        let threads = self.handle.lock();
        threads.vcpus.iter().for_each(|vcpu| vcpu.paused().excuse_absence());
        self.handle.supervisor.gate().open();
    }

    fn clocks(&self) -> Result<Clocks, KvmError> {
        let threads = self.handle.lock();
        let vcpus = threads.vcpus.iter().map(|vcpu| vcpu.paused().clock());
        Ok(Clocks {
            read_at: Instant::now(),
            vcpus: vcpus.collect::<Result<_, _>>()?,
            kvm: self.kvm.save()?,
        })
    }

    fn set_back(&self, clocks: &Clocks) -> Result<(), KvmError> {
        if clocks.read_at.elapsed() < LEAST_STEP {
            return Ok(());
        }
        let threads = self.handle.lock();
        for (vcpu, clock) in threads.vcpus.iter().zip(&clocks.vcpus) {
            vcpu.paused().set_clock(clock)?;
        }
        self.kvm.restore(&clocks.kvm)
    }

    /// Writes the memory of a paused VM to the empty file `memory`, with holes where the guest has nothing, and returns
    /// the rest. Its disks are the caller's to copy before the VM goes on. The VM stays paused, and unharmed by any error.
    ///
    /// # Errors
    /// When it is not paused, it has a file system of the host, KVM refuses to tell its state, or the file cannot be written.
    pub fn save(&self, memory: &File) -> Result<Snapshot, PauseError> {
        let paused = self.lock_paused();
        if paused.is_none() || self.handle.supervisor.has_ended() {
            return Err(PauseError::NotPaused);
        }
        if !self.bus.virtio().iter().all(|device| device.can_be_saved()) {
            return Err(PauseError::Unsavable);
        }
        // Before the memory: what KVM does to tell it may write there.
        let vcpus = {
            let threads = self.handle.lock();
            let vcpus = threads.vcpus.iter().map(|vcpu| vcpu.paused().save(&self.kvm));
            vcpus.collect::<Result<_, _>>()?
        };
        let snapshot = Snapshot {
            host: self.host.clone(),
            memory_mib: self.memory_mib,
            rom_len: self.mappings.rom().map_or(0, Rom::len),
            code: self.mappings.unchanged_code().map_err(PauseError::Memory)?.cloned(),
            vcpus,
            kvm: self.kvm.save()?,
            ioapic: self.bus.ioapic().save(),
            serial: self.bus.ports().save(),
            devices: self.bus.virtio().iter().map(|device| device.save()).collect(),
        };
        self.mappings.save(memory).map_err(PauseError::Memory)?;
        // Threads leave the gate when the VM ends: what was read meanwhile may be of none.
        match self.handle.supervisor.has_ended() {
            true => Err(PauseError::Ended),
            false => Ok(snapshot),
        }
    }

    fn lock_paused(&self) -> std::sync::MutexGuard<'_, Option<Result<Clocks, KvmError>>> {
        self.paused.lock().unwrap_or_else(PoisonError::into_inner)
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

impl Frame {
    /// KVM's part and the devices, connected; the legacy ports are made by `ports` from their console.
    fn new(
        config: &VmConfig,
        creation: Creation,
        (memory, rom): (&GuestMemory, Option<&Rom>),
        ports: impl FnOnce(ConsoleWriter) -> io::Result<LegacyPorts>,
    ) -> Result<Self, BuildError> {
        let console = ConsoleWriter::open(&config.console).map_err(match &config.console {
            Console::Log(log) => cannot_open(&log.path),
            Console::Stream(_) => cannot_open(Path::new("the console's stream")),
        })?;
        let supervisor = Arc::new(Supervisor::new(console.tail()));
        let host = |doing| move |source| BuildError::Host { doing, source };
        let pages =
            |address, windows| RegisterPages::new(address, windows).map_err(host("map the registers of devices"));
        let virtio_pages = pages(layout::VIRTIO_MMIO, attach::count(config)?)?;
        let ioapic_pages = pages(layout::IOAPIC.into(), 1)?;
        let registers = [&virtio_pages, &ioapic_pages];
        let kvm = Arc::new(KvmVm::new(creation, memory, rom, &registers)?);
        let ports = ports(console).map_err(host("make the serial port"))?;
        kvm.connect_interrupt(ports.serial_line(), layout::SERIAL_IRQ)?;
        let AttachedDevices { transports, loops } = attach::attach_all(config, memory, &virtio_pages)?;
        let acknowledged = EventFd::new(EFD_NONBLOCK).map_err(host("make an eventfd"))?;
        for (index, transport) in transports.iter().enumerate() {
            kvm.connect(transport, index, &acknowledged)?;
        }
        let lines = layout::irq_lines(transports.len());
        let page = ioapic_pages.page(0).expect("there is one");
        let ioapic = Ioapic::new(lines, Arc::clone(&kvm) as Arc<dyn Routes>, page);
        Ok(Self {
            kvm,
            supervisor,
            bus: Bus::new(ports, ioapic, transports),
            loops,
        })
    }
}

fn open_rom(config: &VmConfig) -> Result<Option<File>, BuildError> {
    let rom = config.rom.as_ref();
    rom.map(|path| File::open(path).map_err(cannot_open(path))).transpose()
}

fn begin_creation() -> Result<Creation, BuildError> {
    Creation::begin().map_err(|source| BuildError::Host {
        doing: "start a thread to make the VM",
        source,
    })
}

fn check_vcpus(config: &VmConfig) -> Result<(), BuildError> {
    match config.vcpus {
        1..=layout::MAX_VCPUS => Ok(()),
        vcpus => Err(BuildError::Vcpus(vcpus)),
    }
}

fn cannot_open(path: &Path) -> impl FnOnce(io::Error) -> BuildError {
    let path = path.to_owned();
    move |source| BuildError::Open { path, source }
}

/// What every guest's kernel is told, before its devices and what the embedder wants.
///
/// With one CPU, Linux would take the lock prefix from some 7,000 instructions, each in a turn of page tables of its own:
/// more than a short life gains by it. Free pages are reported by huge pages of the host, which serve a guest best while
/// they are whole.
pub const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet reboot=k panic=-1 no_timer_check tsc=reliable \
    random.trust_cpu=on noreplace-smp page_reporting.page_reporting_order=9";

/// The kernel command line: what the machine needs, the devices, then what the embedder wants.
fn cmdline(extra: &str, virtio_devices: usize, rom: Option<&Rom>) -> String {
    let mut line = KERNEL_ARGUMENTS.to_owned();
    if let Some(rom) = rom {
        line.push_str(&format!(" phram.phram=rom,{:#x},{:#x}", layout::ROM, rom.len()));
    }
    for index in 0..virtio_devices {
        let (address, irq) = (layout::virtio_window(index), layout::virtio_irq(index));
        line.push_str(&format!(" virtio_mmio.device=4K@{address:#x}:{irq}"));
    }
    let extra = extra.trim();
    if !extra.is_empty() {
        line.push(' ');
        line.push_str(extra);
    }
    line
}
