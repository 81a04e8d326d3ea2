//! Windows that are saved and restored, rightly and wrongly.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn saved(driver: &Driver) -> Value {
    serde_json::to_value(driver.transport.save()).unwrap()
}

fn restore(state: &Value) -> Result<Driver, RestoreError> {
    let driver = Driver::new();
    let state: TransportState = serde_json::from_value(state.clone()).unwrap();
    driver.transport.restore(&state).map(|()| driver)
}

#[test]
fn a_window_goes_on_from_each_step() {
    for step in STEPS {
        let driver = Driver::new();
        driver.step_to(step);
        let restored = restore(&saved(&driver)).unwrap();
        // What it may have missed it is told once more.
        restored.write(VIRTIO_MMIO_INTERRUPT_ACK, u32::MAX);
        assert_eq!(saved(&restored), saved(&driver));
        assert_eq!(restored.status(), driver.status());
        let started = usize::from(step == VIRTIO_CONFIG_S_DRIVER_OK);
        assert_eq!(restored.counters.activations.load(Ordering::SeqCst), started);
        restored.write(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(restored.status(), 0);
    }
}

#[test]
fn the_driver_of_a_started_device_is_interrupted_and_the_device_looks_at_its_queues() {
    let driver = Driver::new();
    driver.step_to(VIRTIO_CONFIG_S_DRIVER_OK);
    let restored = restore(&saved(&driver)).unwrap();
    assert_ne!(restored.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    assert!(restored.transport.kicks().iter().all(|kick| kick.read().is_ok()));
}

#[test]
fn another_device_and_impossible_values_are_refused() {
    let driver = Driver::new();
    driver.step_to(VIRTIO_CONFIG_S_DRIVER_OK);
    let edited = |field: &str, value: Value| {
        let mut state = saved(&driver);
        state[field] = value;
        restore(&state).map(drop).unwrap_err()
    };
    assert!(matches!(
        edited("device_type", json!(1)),
        RestoreError::Device { saved: 1, present: 42 }
    ));
    for (field, value) in [
        ("status", json!(4)),
        ("driver_features", json!(u64::MAX)),
        ("queues", json!([])),
    ] {
        assert!(matches!(edited(field, value), RestoreError::Invalid { .. }), "{field}");
    }
    let mut queues = saved(&driver)["queues"].clone();
    queues[0]["desc_table"] = json!(1_u64 << 40);
    assert!(matches!(edited("queues", queues), RestoreError::Activate(_)));
}

prop_compose! {
    fn any_queue()(
        max_size in prop_oneof![Just(16_u16), Just(64), any::<u16>()],
        numbers in any::<[u16; 3]>(),
        flags in any::<[bool; 2]>(),
        places in any::<[u64; 3]>(),
    ) -> Value {
        json!({
            "max_size": max_size, "size": numbers[0], "next_avail": numbers[1], "next_used": numbers[2],
            "ready": flags[0], "event_idx": flags[1],
            "desc_table": places[0], "avail_ring": places[1], "used_ring": places[2],
        })
    }
}

proptest! {
    #[test]
    fn no_saved_window_breaks_the_monitor(
        status in prop_oneof![Just(15_u32), 0_u32..256],
        registers in any::<[u32; 4]>(),
        driver_features in prop_oneof![Just(OFFERED | VERSION_1), any::<u64>()],
        queues in prop::collection::vec(any_queue(), 0..4),
    ) {
        let state = json!({
            "device_type": 42, "status": status, "interrupt_status": registers[0],
            "device_features_sel": registers[1], "driver_features_sel": registers[2], "queue_sel": registers[3],
            "driver_features": driver_features, "queues": queues,
        });
        if let Ok(restored) = restore(&state) {
            restored.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
            restored.write(VIRTIO_MMIO_STATUS, 0);
            assert_eq!(restored.status(), 0);
        }
    }
}
