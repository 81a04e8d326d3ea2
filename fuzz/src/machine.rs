//! Real devices behind their transports, on an event loop that runs when it is told to.

use std::sync::{Arc, Mutex};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use msb_vmm::devices::register_page::RegisterPage;
use msb_vmm::devices::virtio::device::VirtioDevice;
use msb_vmm::devices::virtio::mmio::MmioTransport;
use msb_vmm::memory::GuestMemory;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::ring::Ring;

/// Events in a row that no input causes: the devices do not come to rest.
const SPIN: usize = 10_000;

// Registers of virtio-mmio (virtio 1.2, section 4.2.2).
const DEVICE_FEATURES: u64 = 0x10;
const DEVICE_FEATURES_SEL: u64 = 0x14;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SEL: u64 = 0x24;
const QUEUE_SEL: u64 = 0x30;
const QUEUE_NUM: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const STATUS: u64 = 0x70;
const QUEUE_ADDRESSES: [u64; 3] = [0x80, 0x90, 0xa0];

type Subscriber = Arc<Mutex<dyn MutEventSubscriber + Send>>;

/// Guest memory and devices.
pub struct Machine {
    pub memory: GuestMemory,
    pub transports: Vec<MmioTransport>,
    events: EventManager<Subscriber>,
}

impl Machine {
    /// A machine without devices.
    pub fn new(memory: GuestMemory) -> Self {
        Self {
            memory,
            transports: Vec::new(),
            events: EventManager::new().expect("an event loop"),
        }
    }

    /// Guest memory of `bytes` bytes from address 0 on.
    pub fn memory(bytes: usize) -> GuestMemory {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes)]).expect("memory")
    }

    /// Adds a device.
    pub fn attach<D: VirtioDevice + MutEventSubscriber + Send + 'static>(&mut self, device: D) {
        let device = Arc::new(Mutex::new(device));
        let transport = MmioTransport::new(
            Arc::clone(&device) as Arc<Mutex<dyn VirtioDevice>>,
            self.memory.clone(),
            RegisterPage::new().expect("a page"),
        );
        self.transports.push(transport.expect("a transport"));
        self.events.add_subscriber(device as Subscriber);
    }

    /// Resets a device and starts it as a driver does, with these queues, with all it offers but `refused`.
    pub fn start(&self, device: usize, rings: &[Ring], refused: u64) {
        let write = |offset: u64, value: u32| self.write(device, offset, value);
        for status in [0, 1, 3] {
            write(STATUS, status);
        }
        for (half, refused) in [refused as u32, (refused >> 32) as u32].into_iter().enumerate() {
            write(DEVICE_FEATURES_SEL, half as u32);
            let mut offered = [0; 4];
            self.transports[device].read(DEVICE_FEATURES, &mut offered);
            write(DRIVER_FEATURES_SEL, half as u32);
            write(DRIVER_FEATURES, u32::from_le_bytes(offered) & !refused);
        }
        write(STATUS, 11);
        for (queue, ring) in rings.iter().enumerate() {
            write(QUEUE_SEL, queue as u32);
            write(QUEUE_NUM, ring.size().into());
            for (register, address) in QUEUE_ADDRESSES.into_iter().zip(ring.addresses()) {
                write(register, address as u32);
                write(register + 4, (address >> 32) as u32);
            }
            write(QUEUE_READY, 1);
        }
        write(STATUS, 15);
    }

    /// Writes a register.
    pub fn write(&self, device: usize, offset: u64, value: u32) {
        self.transports[device].write(offset, &value.to_le_bytes());
    }

    /// The `Status` register.
    pub fn status(&self, device: usize) -> u32 {
        let mut status = [0; 4];
        self.transports[device].read(STATUS, &mut status);
        u32::from_le_bytes(status)
    }

    /// Notifies a device of a queue.
    pub fn kick(&self, device: usize, queue: usize) {
        let kicks = self.transports[device].kicks();
        // A full counter is a notification that the device has not seen yet.
        let _ = kicks[queue % kicks.len()].write(1);
    }

    /// Lets the devices do all that there is to do now.
    pub fn settle(&mut self) {
        assert!(self.turns(SPIN), "the devices do not come to rest");
    }

    /// Handles the events that there are, at most this many turns of them; whether there is nothing left.
    pub fn turns(&mut self, most: usize) -> bool {
        for _ in 0..most {
            if self.events.run_with_timeout(0).expect("an event loop") == 0 {
                return true;
            }
        }
        false
    }
}
