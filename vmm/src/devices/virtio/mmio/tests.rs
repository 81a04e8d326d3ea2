//! A driver that goes through the register protocol, rightly and wrongly.

use std::sync::atomic::{AtomicUsize, Ordering};

use virtio_bindings::virtio_mmio::VIRTIO_MMIO_INTERRUPT_STATUS;
use virtio_queue::QueueState;
use vm_memory::GuestAddress;

use super::*;

mod saved;

const OFFERED: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const QUEUES: [u16; 2] = [16, 64];

#[derive(Default)]
struct Counters {
    activations: AtomicUsize,
    resets: AtomicUsize,
    event_idx: AtomicUsize,
}

struct FakeDevice {
    counters: Arc<Counters>,
    fails: bool,
    config: [u8; 4],
}

impl VirtioDevice for FakeDevice {
    fn device_type(&self) -> u32 {
        42
    }

    fn max_queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn offered_features(&self) -> u64 {
        OFFERED
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap().min(self.config.len());
        for (byte, value) in data.iter_mut().zip(&self.config[offset..]) {
            *byte = *value;
        }
    }

    fn write_config(&mut self, _offset: u64, data: &[u8]) {
        self.config[0] = data[0];
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        assert_eq!(activation.queues.len(), QUEUES.len());
        let event_idx = activation
            .queues
            .iter()
            .filter(|active| active.queue.event_idx_enabled())
            .count();
        self.counters.event_idx.store(event_idx, Ordering::SeqCst);
        self.counters.activations.fetch_add(1, Ordering::SeqCst);
        if self.fails {
            Err(ActivateError::MissingQueues { ready: 0, needed: 2 })
        } else {
            Ok(())
        }
    }

    fn queue_states(&self) -> Vec<QueueState> {
        Vec::new()
    }

    fn reset(&mut self) {
        self.counters.resets.fetch_add(1, Ordering::SeqCst);
    }
}

struct Driver {
    transport: MmioTransport,
    counters: Arc<Counters>,
}

impl Driver {
    fn new() -> Self {
        Self::with_device(false)
    }

    fn with_device(fails: bool) -> Self {
        let counters = Arc::<Counters>::default();
        let device = FakeDevice {
            counters: Arc::clone(&counters),
            fails,
            config: [1, 2, 3, 4],
        };
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let transport = MmioTransport::new(Arc::new(Mutex::new(device)), memory, RegisterPage::new().unwrap()).unwrap();
        Self { transport, counters }
    }

    fn read(&self, register: u32) -> u32 {
        let mut data = [0xee; 4];
        self.transport.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, register: u32, value: u32) {
        self.transport.write(register.into(), &value.to_le_bytes());
    }

    fn status(&self) -> u32 {
        self.read(VIRTIO_MMIO_STATUS)
    }

    /// Sets the status bits up to and with step `last`.
    fn step_to(&self, last: u32) {
        let mut status = 0;
        for step in STEPS {
            status |= step;
            self.write(VIRTIO_MMIO_STATUS, status);
            if step == last {
                return;
            }
            if step == VIRTIO_CONFIG_S_DRIVER {
                self.accept_features(OFFERED | VERSION_1);
            }
            if step == VIRTIO_CONFIG_S_FEATURES_OK {
                self.make_queues_ready();
            }
        }
    }

    fn accept_features(&self, features: u64) {
        for select in [0, 1] {
            self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            self.write(VIRTIO_MMIO_DRIVER_FEATURES, half(features, select));
        }
    }

    fn make_queues_ready(&self) {
        for index in 0..2 {
            self.configure_queue(index, 16, 0x1000 * (u64::from(index) + 1));
            self.write(VIRTIO_MMIO_QUEUE_READY, 1);
        }
    }

    fn configure_queue(&self, index: u32, size: u32, address: u64) {
        self.write(VIRTIO_MMIO_QUEUE_SEL, index);
        self.write(VIRTIO_MMIO_QUEUE_NUM, size);
        let registers = [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_AVAIL_HIGH),
            (VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_QUEUE_USED_HIGH),
        ];
        for ((low, high), offset) in registers.into_iter().zip([0, 0x400, 0x800]) {
            self.write(low, half(address + offset, 0));
            self.write(high, half(address + offset, 1));
        }
    }

    fn activations(&self) -> usize {
        self.counters.activations.load(Ordering::SeqCst)
    }
}

#[test]
fn a_driver_that_keeps_to_the_order_activates_the_device_once() {
    let driver = Driver::new();
    assert_eq!(
        (driver.read(VIRTIO_MMIO_MAGIC_VALUE), driver.read(VIRTIO_MMIO_VERSION)),
        (MAGIC, 2)
    );
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_ID), 42);
    driver.step_to(VIRTIO_CONFIG_S_DRIVER_OK);
    assert_eq!(driver.status(), STEPS.iter().sum::<u32>());
    driver.write(VIRTIO_MMIO_STATUS, driver.status());
    assert_eq!(driver.activations(), 1);
    assert_eq!(driver.counters.event_idx.load(Ordering::SeqCst), 2);
}

#[test]
fn steps_out_of_order_and_cleared_bits_are_ignored() {
    let driver = Driver::new();
    for value in [
        VIRTIO_CONFIG_S_DRIVER,
        VIRTIO_CONFIG_S_DRIVER_OK,
        0b11,
        0b1111,
        0x7f,
        1 << 31,
    ] {
        driver.write(VIRTIO_MMIO_STATUS, value);
        assert_eq!(driver.status(), 0, "{value:#x}");
    }
    driver.step_to(VIRTIO_CONFIG_S_FEATURES_OK);
    let status = driver.status();
    driver.write(VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE);
    assert_eq!(driver.status(), status);
}

#[test]
fn features_that_were_not_offered_or_lack_version_1_are_not_ok() {
    for features in [OFFERED, VERSION_1 | 1 << 5, VERSION_1 | 1 << 63, 0] {
        let driver = Driver::new();
        driver.step_to(VIRTIO_CONFIG_S_DRIVER);
        driver.accept_features(features);
        driver.write(VIRTIO_MMIO_STATUS, driver.status() | VIRTIO_CONFIG_S_FEATURES_OK);
        assert_eq!(driver.status() & VIRTIO_CONFIG_S_FEATURES_OK, 0, "{features:#x}");
    }
}

#[test]
fn features_are_frozen_once_they_are_ok() {
    let driver = Driver::new();
    driver.step_to(VIRTIO_CONFIG_S_FEATURES_OK);
    driver.accept_features(0);
    assert_eq!(driver.transport.registers().driver_features, OFFERED | VERSION_1);
}

#[test]
fn queues_change_only_between_features_ok_and_driver_ok() {
    let driver = Driver::new();
    driver.configure_queue(0, 8, 0x5000);
    assert_eq!(driver.transport.registers().queues[0].size(), 16);
    driver.step_to(VIRTIO_CONFIG_S_DRIVER_OK);
    let before = driver.transport.registers().queues[0].state();
    driver.configure_queue(0, 8, 0x5000);
    driver.write(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(driver.transport.registers().queues[0].state(), before);
}

#[test]
fn a_ready_queue_keeps_its_addresses() {
    let driver = Driver::new();
    driver.step_to(VIRTIO_CONFIG_S_FEATURES_OK);
    driver.configure_queue(0, 8, 0x5000);
    driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
    driver.configure_queue(0, 4, 0x9000);
    let state = driver.transport.registers().queues[0].state();
    assert_eq!((state.size, state.desc_table), (8, 0x5000));
}

#[test]
fn sizes_and_addresses_without_sense_leave_the_device_inactive() {
    let cases: [(u32, u64); 4] = [
        (16, 0xf_ff00),
        (16, u64::MAX - 0xfff),
        (16, 1 << 40),
        (0x1_0010, 0xf_fff0),
    ];
    for (size, address) in cases {
        let driver = Driver::new();
        driver.step_to(VIRTIO_CONFIG_S_FEATURES_OK);
        driver.make_queues_ready();
        driver.write(VIRTIO_MMIO_QUEUE_READY, 0);
        driver.configure_queue(1, size, address);
        driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
        driver.write(VIRTIO_MMIO_STATUS, driver.status() | VIRTIO_CONFIG_S_DRIVER_OK);
        assert_ne!(
            driver.status() & VIRTIO_CONFIG_S_NEEDS_RESET,
            0,
            "{size} at {address:#x}"
        );
        assert_eq!(driver.activations(), 0);
    }
}

#[test]
fn a_queue_that_does_not_exist_reads_as_absent_and_takes_nothing() {
    let driver = Driver::new();
    driver.step_to(VIRTIO_CONFIG_S_FEATURES_OK);
    for index in [2, 3, 1 << 31, u32::MAX] {
        driver.write(VIRTIO_MMIO_QUEUE_SEL, index);
        driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(
            (
                driver.read(VIRTIO_MMIO_QUEUE_NUM_MAX),
                driver.read(VIRTIO_MMIO_QUEUE_READY)
            ),
            (0, 0)
        );
        driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, index);
    }
    driver.write(VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 64);
}

#[test]
fn a_device_that_cannot_start_asks_for_a_reset_with_an_interrupt() {
    let driver = Driver::with_device(true);
    driver.step_to(VIRTIO_CONFIG_S_DRIVER_OK);
    assert_ne!(driver.status() & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    assert_eq!(driver.transport.interrupt().line().read().unwrap(), 1);
    assert_ne!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn a_reset_at_any_point_allows_to_begin_again() {
    let driver = Driver::new();
    for (round, last) in STEPS.into_iter().enumerate() {
        driver.step_to(last);
        driver.transport.interrupt().signal_used_buffer();
        driver.write(VIRTIO_MMIO_STATUS, 0);
        assert_eq!((driver.status(), driver.read(VIRTIO_MMIO_INTERRUPT_STATUS)), (0, 0));
        assert_eq!(driver.counters.resets.load(Ordering::SeqCst), round + 1);
    }
    driver.step_to(VIRTIO_CONFIG_S_DRIVER_OK);
    assert_eq!(driver.activations(), 2);
}

#[test]
fn a_driver_that_gave_up_gets_nowhere_without_a_reset() {
    let driver = Driver::new();
    driver.step_to(VIRTIO_CONFIG_S_FEATURES_OK);
    driver.write(VIRTIO_MMIO_STATUS, driver.status() | VIRTIO_CONFIG_S_FAILED);
    driver.make_queues_ready();
    driver.write(VIRTIO_MMIO_STATUS, STEPS.iter().sum());
    assert_eq!(driver.activations(), 0);
}

#[test]
fn an_interrupt_is_pending_until_it_is_acknowledged() {
    let driver = Driver::new();
    driver.transport.interrupt().signal_used_buffer();
    driver.transport.interrupt().signal_config_change();
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 3);
    driver.write(VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 2);
}

#[test]
fn a_notification_that_kvm_did_not_take_reaches_its_queue() {
    let driver = Driver::new();
    driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, 1);
    assert!(driver.transport.kicks()[0].read().is_err());
    assert_eq!(driver.transport.kicks()[1].read().unwrap(), 1);
}

#[test]
fn stores_of_odd_width_change_nothing_and_loads_read_a_part() {
    let driver = Driver::new();
    for width in [0, 1, 2, 3, 5, 8] {
        driver.transport.write(VIRTIO_MMIO_STATUS.into(), &vec![1; width]);
        assert_eq!(driver.status(), 0);
        let mut data = vec![0xee; width];
        driver.transport.read(0, &mut data);
        assert_eq!(data, b"virt\x02\0\0\0"[..width]);
    }
    assert_eq!(driver.read(0xfc), 0);
    let mut beyond = [0xee; 4];
    for offset in [0xffe, 0x1000, u64::MAX] {
        driver.transport.read(offset, &mut beyond);
        assert_eq!(beyond, [0; 4]);
        driver.transport.write(offset, &[1; 4]);
    }
}

#[test]
fn the_configuration_space_is_written_only_by_a_driver() {
    let driver = Driver::new();
    let mut byte = [0];
    driver.transport.write(CONFIG_SPACE, &[9]);
    driver.transport.read(CONFIG_SPACE, &mut byte);
    assert_eq!(byte, [1]);
    driver.step_to(VIRTIO_CONFIG_S_DRIVER);
    driver.transport.write(CONFIG_SPACE, &[9]);
    driver.transport.read(CONFIG_SPACE, &mut byte);
    assert_eq!(byte, [9]);
    let mut beyond = [0xee; 4];
    driver.transport.read(CONFIG_SPACE + 2, &mut beyond);
    assert_eq!(beyond, [3, 4, 0, 0]);
}

#[test]
fn of_all_writes_to_the_status_only_the_next_step_is_taken() {
    let reachable = [0, 1, 3, 11, 15];
    for before in 0..=0xff_u32 {
        for value in 0..=0xff_u32 {
            let step = next_step(before, value);
            let at = reachable.iter().position(|status| *status == before);
            let wanted = at.and_then(|at| reachable.get(at + 1)).copied();
            if at.is_some() {
                let keeps_order = wanted == Some(value & !VIRTIO_CONFIG_S_NEEDS_RESET);
                assert_eq!(step.is_some(), keeps_order, "{before} to {value}");
            }
            if let Some(step) = step {
                assert!(step.is_power_of_two() && before & step == 0, "{before} to {value}");
                assert_eq!(
                    value & !VIRTIO_CONFIG_S_NEEDS_RESET,
                    before | step,
                    "{before} to {value}"
                );
            }
        }
    }
}
