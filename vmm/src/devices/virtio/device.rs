//! The seam between the virtio-mmio transport and a device.

use std::sync::Arc;

use virtio_queue::{Queue, QueueState};
use vmm_sys_util::eventfd::EventFd;

use super::interrupt::Interrupt;
use crate::memory::GuestMemory;

/// A virtio device behind the virtio-mmio transport.
///
/// The transport owns registers, feature negotiation and queue configuration; the device owns its configuration space
/// and, once activated, its queues. Transport calls come from vCPU threads under the device's lock; the data path runs
/// on a device thread, driven by the device's `event_manager::MutEventSubscriber`.
pub trait VirtioDevice: Send {
    /// The virtio device ID (virtio 1.2, section 5).
    fn device_type(&self) -> u32;

    /// The largest size the driver may choose, for each queue. Its length is the number of queues.
    fn max_queue_sizes(&self) -> &[u16];

    /// The feature bits the device offers. `VIRTIO_F_VERSION_1` is added by the transport.
    fn offered_features(&self) -> u64;

    /// Fills `data` with the configuration space from `offset` on; bytes beyond its end read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// A driver's write to the configuration space. Most devices have nothing that can be written.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver set `DRIVER_OK`: the device takes its queues and starts to work.
    ///
    /// # Errors
    /// The transport sets `DEVICE_NEEDS_RESET`; the VM goes on without the device.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// The driver reset the device: it drops its queues and every trace of the driver, and can be activated again.
    fn reset(&mut self);

    /// How far the queues of an active device are, in order; nothing of an inactive one. The VM is paused: no event is
    /// being handled.
    fn queue_states(&self) -> Vec<QueueState>;

    /// Whether a saved VM could go on with it: not if part of what the guest relies on is neither in the guest nor in
    /// [`Self::queue_states`].
    fn can_be_saved(&self) -> bool {
        true
    }

    /// The device was activated as part of a VM that was restored: what it had outside the guest is gone.
    fn was_restored(&mut self) {}
}

/// What a device works with from `DRIVER_OK` until reset.
#[derive(Debug)]
pub struct Activation {
    /// The guest's memory.
    pub memory: GuestMemory,
    /// How the device reaches its driver.
    pub interrupt: Arc<Interrupt>,
    /// The queues the driver made ready, in order, one for each of [`VirtioDevice::max_queue_sizes`].
    pub queues: Vec<ActiveQueue>,
    /// The feature bits both sides agreed on.
    pub features: u64,
}

/// A queue that the driver made ready.
#[derive(Debug)]
pub struct ActiveQueue {
    /// The virtqueue; its addresses lie inside guest memory, its `EVENT_IDX` state is as negotiated.
    pub queue: Queue,
    /// Readable after the driver's notification for this queue (KVM ioeventfd, non-blocking).
    pub kick: EventFd,
}

/// Why a device cannot start to work.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver did not make a queue ready that the device needs.
    #[error("the driver started the device with {ready} of {needed} queues")]
    MissingQueues {
        /// How many queues were ready.
        ready: usize,
        /// How many the device has.
        needed: usize,
    },
    /// The host refused something the device needs.
    #[error("cannot {doing} for a virtio device")]
    Host {
        /// What was being done.
        doing: &'static str,
        /// What the host answered.
        #[source]
        source: std::io::Error,
    },
}

/// Fills `data` from `offset` of a configuration space on; bytes beyond its end are zero.
pub(super) fn read_config_space(space: &[u8], offset: u64, data: &mut [u8]) {
    let space = usize::try_from(offset)
        .ok()
        .and_then(|offset| space.get(offset..))
        .unwrap_or_default();
    data.fill(0);
    for (byte, value) in data.iter_mut().zip(space) {
        *byte = *value;
    }
}
