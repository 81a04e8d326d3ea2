//! The state of a window and its device, to be saved and to be restored.

use std::sync::PoisonError;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};
use virtio_queue::{Queue, QueueState, QueueT};

use super::super::device::ActivateError;
use super::{MmioTransport, Registers, STEPS};

/// Registers and queues of one window. What a device has outside the guest is not part of it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TransportState {
    device_type: u32,
    status: u32,
    interrupt_status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    queues: Vec<SavedQueue>,
}

/// [`QueueState`], which has no form of its own to be written in.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct SavedQueue {
    max_size: u16,
    size: u16,
    ready: bool,
    event_idx: bool,
    next_avail: u16,
    next_used: u16,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

/// Why a saved window does not fit its device.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// There is another device.
    #[error("the saved device has the virtio type {saved}, and that in its place {present}")]
    Device {
        /// The saved type.
        saved: u32,
        /// The type of the device.
        present: u32,
    },
    /// A register or a queue has a value that it never has.
    #[error("the saved state of the virtio device of type {device_type} makes no sense: {what}")]
    Invalid {
        /// The type of the device.
        device_type: u32,
        /// What is wrong.
        what: &'static str,
    },
    /// The device did not take its queues.
    #[error(transparent)]
    Activate(#[from] ActivateError),
}

impl MmioTransport {
    /// See [`super::super::device::VirtioDevice::can_be_saved`].
    pub(crate) fn can_be_saved(&self) -> bool {
        self.device().can_be_saved()
    }

    /// The state of window and device while the VM is paused.
    pub(crate) fn save(&self) -> TransportState {
        let registers = self.registers();
        let device = self.device();
        let active = device.queue_states();
        let queues = if active.is_empty() {
            registers.queues.iter().map(Queue::state).collect()
        } else {
            active
        };
        TransportState {
            device_type: device.device_type(),
            status: registers.status,
            interrupt_status: self.interrupt.status(),
            device_features_sel: registers.device_features_sel,
            driver_features_sel: registers.driver_features_sel,
            driver_features: registers.driver_features,
            queue_sel: registers.queue_sel,
            queues: queues.into_iter().map(SavedQueue::from).collect(),
        }
    }

    /// Restores what [`Self::save`] gave in a new window, and starts the device if it was started.
    ///
    /// # Errors
    /// When the state is another device's, or none that a driver can bring about.
    pub(crate) fn restore(&self, state: &TransportState) -> Result<(), RestoreError> {
        let present = self.device().device_type();
        if state.device_type != present {
            return Err(RestoreError::Device {
                saved: state.device_type,
                present,
            });
        }
        let invalid = |what| RestoreError::Invalid {
            device_type: present,
            what,
        };
        if !is_possible(state.status) {
            return Err(invalid("its status"));
        }
        let negotiated = state.status & VIRTIO_CONFIG_S_FEATURES_OK != 0;
        if negotiated && !self.accepts(state.driver_features) {
            return Err(invalid("its features are not the device's"));
        }
        let mut registers = self.registers.lock().unwrap_or_else(PoisonError::into_inner);
        let queues = restored_queues(&registers, state).map_err(invalid)?;
        *registers = Registers {
            status: state.status,
            device_features_sel: state.device_features_sel,
            driver_features_sel: state.driver_features_sel,
            driver_features: state.driver_features,
            queue_sel: state.queue_sel,
            queues,
            complained: false,
        };
        self.interrupt.restore(state.interrupt_status);
        self.publish(&registers);
        self.publish_config();
        if registers.has(VIRTIO_CONFIG_S_DRIVER_OK) && !registers.has(VIRTIO_CONFIG_S_NEEDS_RESET) {
            self.activate(&registers)?;
            self.device().was_restored();
            // Notifications that were on their way are lost, in both directions; one without reason costs a look.
            for kick in &self.kicks {
                let _ = kick.write(1);
            }
            self.interrupt.signal_used_buffer();
        }
        Ok(())
    }
}

#[cfg(fuzzing)]
impl MmioTransport {
    /// Restores what `json` says was saved, if it says anything.
    pub fn restore_json(&self, json: &[u8]) {
        if let Ok(state) = serde_json::from_slice(json) {
            let _ = self.restore(&state);
        }
    }
}

fn restored_queues(registers: &Registers, state: &TransportState) -> Result<Vec<Queue>, &'static str> {
    if state.queues.len() != registers.queues.len() {
        return Err("the number of its queues");
    }
    let pairs = state.queues.iter().zip(&registers.queues);
    let queues = pairs.map(|(saved, fresh)| {
        if saved.max_size != fresh.max_size() {
            return Err("the size of a queue");
        }
        // Whether it lies in the guest's memory is asked when the device is started, as always.
        Queue::try_from(QueueState::from(*saved)).map_err(|_| "the place of a queue")
    });
    queues.collect()
}

/// Whether `status` is one that the steps of a driver lead to.
fn is_possible(status: u32) -> bool {
    let steps = status & !(VIRTIO_CONFIG_S_FAILED | VIRTIO_CONFIG_S_NEEDS_RESET);
    let mut reached = 0;
    let prefixes = std::iter::once(0).chain(STEPS.iter().map(|step| {
        reached |= step;
        reached
    }));
    prefixes.into_iter().any(|prefix| prefix == steps)
}

impl From<QueueState> for SavedQueue {
    fn from(state: QueueState) -> Self {
        Self {
            max_size: state.max_size,
            size: state.size,
            ready: state.ready,
            event_idx: state.event_idx_enabled,
            next_avail: state.next_avail,
            next_used: state.next_used,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
        }
    }
}

impl From<SavedQueue> for QueueState {
    fn from(saved: SavedQueue) -> Self {
        Self {
            max_size: saved.max_size,
            next_avail: saved.next_avail,
            next_used: saved.next_used,
            event_idx_enabled: saved.event_idx,
            size: saved.size,
            ready: saved.ready,
            desc_table: saved.desc_table,
            avail_ring: saved.avail_ring,
            used_ring: saved.used_ring,
        }
    }
}
