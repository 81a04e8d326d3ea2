//! The registers of virtio-mmio against a model of what virtio 1.2, section 4.2 lets a driver do.
//!
//! The device starts exactly when the driver took all steps in order with queues inside its memory, stops with a reset,
//! and nothing that is written at the wrong time changes what it was started with.
#![no_main]

use std::sync::{Arc, Mutex};

use libfuzzer_sys::fuzz_target;
use msb_fuzz::{Input, Machine};
use msb_vmm::devices::register_page::RegisterPage;
use msb_vmm::devices::virtio::device::{ActivateError, Activation, VirtioDevice};
use msb_vmm::devices::virtio::mmio::MmioTransport;
use virtio_queue::QueueT;

const MEMORY: u64 = 1 << 16;
const MAX_SIZES: [u16; 2] = [8, 64];
const OFFERED: u64 = 0x1_0000_0021 | 1 << 29;
const VERSION_1: u64 = 1 << 32;
const EVENT_IDX: u64 = 1 << 29;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;

/// What the device was told.
#[derive(Default)]
struct Probe {
    /// Features, and size and addresses of each queue; `None` while it is not started.
    started: Option<(u64, Vec<Queue>)>,
}

impl VirtioDevice for Probe {
    fn device_type(&self) -> u32 {
        4
    }

    fn max_queue_sizes(&self) -> &[u16] {
        &MAX_SIZES
    }

    fn offered_features(&self) -> u64 {
        OFFERED
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xcf);
    }

    fn queue_states(&self) -> Vec<virtio_queue::QueueState> {
        // Nothing here saves a VM.
        Vec::new()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        assert!(self.started.is_none(), "a device is started once");
        let queues = activation.queues.iter().map(|active| {
            let queue = &active.queue;
            assert_eq!(queue.event_idx_enabled(), activation.features & EVENT_IDX != 0);
            assert!(queue.is_valid(&activation.memory));
            Queue {
                size: queue.size(),
                ready: queue.ready(),
                addresses: [queue.desc_table(), queue.avail_ring(), queue.used_ring()],
            }
        });
        self.started = Some((activation.features, queues.collect()));
        Ok(())
    }

    fn reset(&mut self) {
        self.started = None;
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Queue {
    size: u16,
    ready: bool,
    addresses: [u64; 3],
}

impl Queue {
    fn after_reset(max_size: u16) -> Self {
        Self {
            size: max_size,
            ready: false,
            addresses: [0; 3],
        }
    }

    fn is_usable(&self) -> bool {
        let size = u64::from(self.size);
        let lengths = [16 * size, 6 + 2 * size, 6 + 8 * size];
        let fits = |(address, length): (&u64, u64)| address.checked_add(length).is_some_and(|end| end <= MEMORY);
        self.ready && self.size > 0 && self.addresses.iter().zip(lengths).all(fits)
    }
}

struct Model {
    status: u32,
    selects: [u32; 3],
    features: u64,
    queues: Vec<Queue>,
    started: Option<(u64, Vec<Queue>)>,
}

impl Model {
    fn new() -> Self {
        Self {
            status: 0,
            selects: [0; 3],
            features: 0,
            queues: MAX_SIZES.map(Queue::after_reset).into(),
            started: None,
        }
    }

    fn write(&mut self, offset: u64, value: u32) {
        match offset {
            0x14 => self.selects[0] = value,
            0x20 => self.write_features(value.into()),
            0x24 => self.selects[1] = value,
            0x30 => self.selects[2] = value,
            0x70 => self.write_status(value),
            _ => self.write_queue(offset, value),
        }
    }

    fn write_features(&mut self, value: u64) {
        let open = self.status & DRIVER != 0 && self.status & FEATURES_OK == 0;
        match self.selects[1] {
            0 if open => self.features = self.features >> 32 << 32 | value,
            1 if open => self.features = self.features & 0xffff_ffff | value << 32,
            _ => {}
        }
    }

    fn write_status(&mut self, value: u32) {
        if value == 0 {
            *self = Self::new();
            return;
        }
        if value & FAILED != 0 {
            self.status |= FAILED;
            return;
        }
        let value = value & !NEEDS_RESET;
        let step = match self.status & !NEEDS_RESET {
            0 if value == ACKNOWLEDGE => ACKNOWLEDGE,
            1 if value == ACKNOWLEDGE | DRIVER => DRIVER,
            3 if value == 11 && self.features & !OFFERED == 0 && self.features & VERSION_1 != 0 => FEATURES_OK,
            11 if value == 15 => DRIVER_OK,
            _ => return,
        };
        self.status |= step;
        if step == DRIVER_OK {
            if self.queues.iter().all(Queue::is_usable) {
                self.started = Some((self.features, self.queues.clone()));
            } else {
                self.status |= NEEDS_RESET;
            }
        }
    }

    fn write_queue(&mut self, offset: u64, value: u32) {
        if self.status & FEATURES_OK == 0 || self.status & (DRIVER_OK | FAILED) != 0 {
            return;
        }
        let Some(queue) = self.queues.get_mut(self.selects[2] as usize) else {
            return;
        };
        let max_size = MAX_SIZES[self.selects[2] as usize];
        if offset == 0x44 {
            queue.ready = value == 1;
            return;
        }
        if queue.ready {
            return;
        }
        let mut half = |which: usize, high: bool, alignment: u64| {
            let address = &mut queue.addresses[which];
            let new = match high {
                true => *address & 0xffff_ffff | u64::from(value) << 32,
                false => *address >> 32 << 32 | u64::from(value),
            };
            // A misaligned address is refused, and the old one stays.
            if new.is_multiple_of(alignment) {
                *address = new;
            }
        };
        match offset {
            0x80 | 0x84 => half(0, offset == 0x84, 16),
            0x90 | 0x94 => half(1, offset == 0x94, 2),
            0xa0 | 0xa4 => half(2, offset == 0xa4, 4),
            0x38 if value.is_power_of_two() && value <= max_size.into() => queue.size = value as u16,
            _ => {}
        }
    }

    fn read(&self, offset: u64) -> Option<u32> {
        let queue = self.selects[2] as usize;
        Some(match offset {
            0x00 => u32::from_le_bytes(*b"virt"),
            0x04 => 2,
            0x08 => 4,
            0x10 => match self.selects[0] {
                0 => OFFERED as u32,
                1 => (OFFERED >> 32) as u32,
                _ => 0,
            },
            0x34 => MAX_SIZES.get(queue).map_or(0, |size| u32::from(*size)),
            0x44 => self.queues.get(queue).map_or(0, |queue| queue.ready.into()),
            0x70 => self.status,
            _ => return None,
        })
    }
}

/// Registers, those that matter most often.
const OFFSETS: [u64; 20] = [
    0x70, 0x70, 0x70, 0x44, 0x30, 0x20, 0x24, 0x14, 0x38, 0x80, 0x90, 0xa0, 0x84, 0x94, 0xa4, 0x10, 0x34, 0x44, 0x60,
    0x50,
];

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let probe = Arc::new(Mutex::new(Probe::default()));
    let transport = MmioTransport::new(
        Arc::clone(&probe) as Arc<Mutex<dyn VirtioDevice>>,
        Machine::memory(MEMORY as usize),
        RegisterPage::new().expect("a page"),
    )
    .expect("a transport");
    let mut model = Model::new();
    while !input.is_empty() {
        let operation = input.byte();
        let offset = if operation & 0x80 == 0 {
            input.pick(&OFFSETS)
        } else {
            input.word().into()
        };
        let value = match operation & 3 {
            0 => input.pick(&[0, 1, 3, 11, 15, 64, 128, 4]),
            1 => input.pick(&[OFFERED as u32, (OFFERED >> 32) as u32, EVENT_IDX as u32, 0]),
            2 => u32::from(input.word()),
            _ => input.long(),
        };
        match operation >> 2 & 7 {
            0..5 => {
                transport.write(offset, &value.to_le_bytes());
                model.write(offset, value);
            }
            5 => {
                let mut word = [0; 4];
                transport.read(offset, &mut word);
                if let Some(expected) = model.read(offset) {
                    assert_eq!(u32::from_le_bytes(word), expected, "register {offset:#x}");
                }
            }
            // Any other width writes nothing outside the configuration space, and reads what lies there.
            width => {
                let mut data = [0xa5; 8];
                let data = &mut data[..if width == 6 { 1 + value as usize % 3 } else { 8 }];
                transport.write(offset, data);
                transport.read(offset, data);
                for (at, byte) in (offset..).zip(data.iter()) {
                    let mut word = [0; 4];
                    transport.read(at / 4 * 4, &mut word);
                    let expected = match at {
                        0x100..0x1000 => 0xcf,
                        0x1000.. => 0,
                        _ => word[(at % 4) as usize],
                    };
                    assert_eq!(*byte, expected, "{at:#x}");
                }
            }
        }
        let mut status = [0; 4];
        transport.read(0x70, &mut status);
        assert_eq!(u32::from_le_bytes(status), model.status);
        assert_eq!(probe.lock().expect("one thread").started, model.started);
    }
});
