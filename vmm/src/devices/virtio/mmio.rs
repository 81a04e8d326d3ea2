//! The virtio-mmio transport, register layout 2 (virtio 1.2, section 4.2).
//!
//! Its state is the `Status` register: the driver sets one bit after the other, and only a reset clears them.
//!
//! ```text
//! reset -> ACKNOWLEDGE -> DRIVER -> FEATURES_OK -> DRIVER_OK
//!             features are negotiated here ^    ^ queues are configured here
//! ```
//!
//! A write that does not fit the state is ignored: the guest can only break its own device.
//!
//! What the guest reads are the words of a page ([`RegisterPage`]), which each write that changes something brings up to
//! date.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES, VIRTIO_MMIO_DEVICE_FEATURES_SEL,
    VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INTERRUPT_ACK,
    VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH,
    VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_NUM_MAX,
    VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH, VIRTIO_MMIO_QUEUE_USED_LOW,
    VIRTIO_MMIO_SHM_LEN_HIGH, VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VENDOR_ID, VIRTIO_MMIO_VERSION,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::device::{ActivateError, Activation, ActiveQueue, VirtioDevice};
use super::interrupt::Interrupt;
use crate::arch::layout;
use crate::devices::register_page::{self, RegisterPage};
use crate::memory::GuestMemory;

pub(crate) use state::{RestoreError, TransportState};

mod state;

/// "virt" in little endian.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "msb" and a zero.
const VENDOR: u32 = 0x0062_736d;
/// Where the driver writes the index of a queue that has new buffers.
pub const QUEUE_NOTIFY: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;
/// Where the driver acknowledges an interrupt.
pub(crate) const INTERRUPT_ACK: u64 = VIRTIO_MMIO_INTERRUPT_ACK as u64;
const CONFIG_SPACE: u64 = VIRTIO_MMIO_CONFIG as u64;
const _: () = assert!(register_page::PAGE as u64 == layout::VIRTIO_MMIO_SIZE);

/// The driver's steps, in the order in which it must take them.
const STEPS: [u32; 4] = [
    VIRTIO_CONFIG_S_ACKNOWLEDGE,
    VIRTIO_CONFIG_S_DRIVER,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_DRIVER_OK,
];

/// One virtio-mmio window: registers in front of a device.
pub struct MmioTransport {
    device: Arc<Mutex<dyn VirtioDevice>>,
    memory: GuestMemory,
    page: RegisterPage,
    /// The device's features and the transport's own.
    offered: u64,
    interrupt: Arc<Interrupt>,
    kicks: Vec<EventFd>,
    registers: Mutex<Registers>,
}

impl std::fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MmioTransport")
            .field("registers", &self.registers)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Registers {
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    queues: Vec<Queue>,
    /// That the device could not start was logged.
    complained: bool,
}

impl MmioTransport {
    /// A window in front of `device`, after reset, whose registers are in `page`.
    ///
    /// # Errors
    /// When the host is out of file descriptors, or the device asks for a queue size that is no power of two.
    pub fn new(device: Arc<Mutex<dyn VirtioDevice>>, memory: GuestMemory, page: RegisterPage) -> io::Result<Self> {
        let (queues, offered, device_type) = {
            let device = device.lock().unwrap_or_else(PoisonError::into_inner);
            let offered = device.offered_features() | 1 << VIRTIO_F_VERSION_1;
            (fresh_queues(&*device)?, offered, device.device_type())
        };
        let kicks = queues
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK))
            .collect::<io::Result<_>>()?;
        for (register, value) in [
            (VIRTIO_MMIO_MAGIC_VALUE, MAGIC),
            (VIRTIO_MMIO_VERSION, VERSION),
            (VIRTIO_MMIO_DEVICE_ID, device_type),
            (VIRTIO_MMIO_VENDOR_ID, VENDOR),
            // No device of ours changes its configuration behind the driver's back.
            (VIRTIO_MMIO_CONFIG_GENERATION, 0),
            // A length of all ones says: no such shared memory region.
            (VIRTIO_MMIO_SHM_LEN_LOW, u32::MAX),
            (VIRTIO_MMIO_SHM_LEN_HIGH, u32::MAX),
        ] {
            page.set(register, value);
        }
        let transport = Self {
            device,
            memory,
            interrupt: Arc::new(Interrupt::new(page.clone())?),
            page,
            offered,
            kicks,
            registers: Mutex::new(Registers {
                status: 0,
                device_features_sel: 0,
                driver_features_sel: 0,
                driver_features: 0,
                queue_sel: 0,
                queues,
                complained: false,
            }),
        };
        transport.publish(&transport.registers());
        transport.publish_config();
        Ok(transport)
    }

    /// The eventfds to which KVM turns writes of a queue's index to [`QUEUE_NOTIFY`], in queue order.
    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// The device's interrupt.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// A load of `data.len()` bytes at `offset` of the window, where KVM does not serve it from the page.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        self.page.read(offset, data);
    }

    /// A store of `data` at `offset` of the window.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG_SPACE) {
            if self.registers().has(VIRTIO_CONFIG_S_DRIVER) {
                self.device().write_config(offset, data);
                self.publish_config();
            }
        } else if let Ok(word) = <[u8; 4]>::try_from(data) {
            self.write_register(offset, u32::from_le_bytes(word));
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        let Ok(register) = u32::try_from(offset) else { return };
        match register {
            // While the device works: no lock is taken.
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            VIRTIO_MMIO_QUEUE_NOTIFY => self.notify(value),
            VIRTIO_MMIO_STATUS => self.write_status(value),
            _ => {
                let mut registers = self.registers();
                registers.write(register, value);
                self.publish(&registers);
            }
        }
    }

    /// Puts the registers that others select or change where the guest reads them.
    fn publish(&self, registers: &Registers) {
        let queue = registers.selected();
        for (register, value) in [
            (
                VIRTIO_MMIO_DEVICE_FEATURES,
                half(self.offered, registers.device_features_sel),
            ),
            (
                VIRTIO_MMIO_QUEUE_NUM_MAX,
                queue.map_or(0, |queue| queue.max_size().into()),
            ),
            (VIRTIO_MMIO_QUEUE_READY, queue.map_or(0, |queue| queue.ready().into())),
            (VIRTIO_MMIO_STATUS, registers.status),
        ] {
            self.page.set(register, value);
        }
    }

    /// Puts the device's configuration where the guest reads it.
    fn publish_config(&self) {
        let mut space = [0; register_page::PAGE - VIRTIO_MMIO_CONFIG as usize];
        // Locked until it is there, so that the last change is the last to be published.
        let device = self.device();
        device.read_config(0, &mut space);
        self.page.write(CONFIG_SPACE, &space);
    }

    /// A notification that came as an exit: KVM takes those with a known queue index before.
    fn notify(&self, queue: u32) {
        if let Some(kick) = usize::try_from(queue).ok().and_then(|queue| self.kicks.get(queue)) {
            // A full counter means that the device has not seen the last notification yet.
            let _ = kick.write(1);
        }
    }

    fn write_status(&self, value: u32) {
        let mut registers = self.registers();
        let mut failed = false;
        if value == 0 {
            self.reset(&mut registers);
        } else if value & VIRTIO_CONFIG_S_FAILED != 0 {
            registers.status |= VIRTIO_CONFIG_S_FAILED;
        } else {
            failed = self.take_step(&mut registers, value).is_err();
        }
        self.publish(&registers);
        drop(registers);
        if failed {
            self.interrupt.signal_config_change();
        }
    }

    /// Takes the step that `value` asks for, if it is the next.
    ///
    /// # Errors
    /// When the device could not start: it needs a reset now.
    fn take_step(&self, registers: &mut Registers, value: u32) -> Result<(), ActivateError> {
        let before = registers.status & !VIRTIO_CONFIG_S_NEEDS_RESET;
        let Some(step) = next_step(before, value) else {
            return Ok(());
        };
        if step == VIRTIO_CONFIG_S_FEATURES_OK && !self.accepts(registers.driver_features) {
            return Ok(());
        }
        registers.status |= step;
        if step != VIRTIO_CONFIG_S_DRIVER_OK {
            return Ok(());
        }
        self.activate(registers).inspect_err(|error| {
            // Once: the guest can repeat it as often as it likes.
            if !std::mem::replace(&mut registers.complained, true) {
                tracing::warn!(%error, "a virtio device could not start");
            }
            registers.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
        })
    }

    fn activate(&self, registers: &Registers) -> Result<(), ActivateError> {
        let usable = |queue: &&Queue| queue.ready() && queue.is_valid(&self.memory);
        let ready = registers.queues.iter().filter(usable).count();
        if ready < registers.queues.len() {
            return Err(ActivateError::MissingQueues {
                ready,
                needed: registers.queues.len(),
            });
        }
        self.device().activate(self.activation(registers)?)
    }

    fn activation(&self, registers: &Registers) -> Result<Activation, ActivateError> {
        let event_idx = registers.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let mut queues = Vec::with_capacity(registers.queues.len());
        for (configured, kick) in registers.queues.iter().zip(&self.kicks) {
            let mut queue = Queue::try_from(configured.state()).map_err(|error| ActivateError::Host {
                doing: "take over a queue",
                source: io::Error::other(error),
            })?;
            queue.set_event_idx(event_idx);
            let kick = kick.try_clone().map_err(|source| ActivateError::Host {
                doing: "duplicate an eventfd",
                source,
            })?;
            queues.push(ActiveQueue { queue, kick });
        }
        Ok(Activation {
            memory: self.memory.clone(),
            interrupt: Arc::clone(&self.interrupt),
            queues,
            features: registers.driver_features,
        })
    }

    fn reset(&self, registers: &mut Registers) {
        self.device().reset();
        self.interrupt.reset();
        registers.status = 0;
        registers.device_features_sel = 0;
        registers.driver_features_sel = 0;
        registers.driver_features = 0;
        registers.queue_sel = 0;
        registers.queues.iter_mut().for_each(QueueT::reset);
        self.publish_config();
    }

    fn accepts(&self, driver_features: u64) -> bool {
        driver_features & !self.offered == 0 && driver_features & (1 << VIRTIO_F_VERSION_1) != 0
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn device(&self) -> MutexGuard<'_, dyn VirtioDevice + 'static> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registers {
    fn has(&self, status: u32) -> bool {
        self.status & status != 0
    }

    fn selected(&self) -> Option<&Queue> {
        self.queues.get(usize::try_from(self.queue_sel).ok()?)
    }

    /// A store to a register that only remembers something.
    fn write(&mut self, register: u32, value: u32) {
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.write_driver_features(value),
            VIRTIO_MMIO_QUEUE_SEL => self.queue_sel = value,
            _ => self.write_queue(register, value),
        }
    }

    fn write_driver_features(&mut self, value: u32) {
        if !self.has(VIRTIO_CONFIG_S_DRIVER) || self.has(VIRTIO_CONFIG_S_FEATURES_OK) {
            return;
        }
        let value = u64::from(value);
        self.driver_features = match self.driver_features_sel {
            0 => (self.driver_features & !0xffff_ffff) | value,
            1 => (self.driver_features & 0xffff_ffff) | (value << 32),
            _ => return,
        };
    }

    /// Queues change only between `FEATURES_OK` and `DRIVER_OK`, and a ready one only by becoming unready.
    fn write_queue(&mut self, register: u32, value: u32) {
        if !self.has(VIRTIO_CONFIG_S_FEATURES_OK) || self.has(VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_FAILED) {
            return;
        }
        let Some(queue) = usize::try_from(self.queue_sel)
            .ok()
            .and_then(|index| self.queues.get_mut(index))
        else {
            return;
        };
        if register == VIRTIO_MMIO_QUEUE_READY {
            queue.set_ready(value == 1);
        } else if !queue.ready() {
            configure_queue(queue, register, value);
        }
    }
}

fn configure_queue(queue: &mut Queue, register: u32, value: u32) {
    match register {
        // `set_size` keeps the old size when the new one is no power of two or above the maximum.
        VIRTIO_MMIO_QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
        VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
        VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
        VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_avail_ring_address(Some(value), None),
        VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(None, Some(value)),
        VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(Some(value), None),
        VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, Some(value)),
        _ => {}
    }
}

/// The one step from status `before` that `value` takes, if it takes exactly the next one and keeps all others.
fn next_step(before: u32, value: u32) -> Option<u32> {
    let next = STEPS.into_iter().find(|step| before & step == 0)?;
    (value & !VIRTIO_CONFIG_S_NEEDS_RESET == before | next).then_some(next)
}

fn half(features: u64, select: u32) -> u32 {
    let bytes = features.to_le_bytes();
    match select {
        0 => u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        1 => u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        _ => 0,
    }
}

fn fresh_queues(device: &dyn VirtioDevice) -> io::Result<Vec<Queue>> {
    device
        .max_queue_sizes()
        .iter()
        .map(|size| Queue::new(*size).map_err(io::Error::other))
        .collect()
}

#[cfg(test)]
mod tests;
