//! What a device with one virtqueue consists of besides its requests: activation, reset and the queue's events.

use std::io;
use std::sync::Arc;

use event_manager::{EventOps, Events};
use virtio_queue::{DescriptorChain, QueueState};

use super::device::{ActivateError, Activation, ActiveQueue};
use super::interrupt::Interrupt;
use super::notification;
use super::wakeup::ActivationWakeup;
use crate::memory::GuestMemory;

/// The one queue of a device, active or not.
#[derive(Debug)]
pub(super) struct SingleQueue {
    wakeup: ActivationWakeup,
    active: Option<Active>,
}

#[derive(Debug)]
struct Active {
    memory: GuestMemory,
    interrupt: Arc<Interrupt>,
    queue: ActiveQueue,
}

impl SingleQueue {
    /// An inactive queue.
    ///
    /// # Errors
    /// When the host is out of file descriptors.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            wakeup: ActivationWakeup::new()?,
            active: None,
        })
    }

    /// Takes the queue of `activation`; the event loop begins to serve it.
    ///
    /// # Errors
    /// When the driver made no queue ready.
    pub(super) fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            memory,
            interrupt,
            mut queues,
            ..
        } = activation;
        let queue = queues
            .pop()
            .ok_or(ActivateError::MissingQueues { ready: 0, needed: 1 })?;
        self.active = Some(Active {
            memory,
            interrupt,
            queue,
        });
        self.wakeup.wake();
        Ok(())
    }

    /// Drops the queue; the event loop forgets it.
    pub(super) fn reset(&mut self) {
        self.active = None;
        self.wakeup.wake();
    }

    /// See [`super::device::VirtioDevice::queue_states`].
    pub(super) fn states(&self) -> Vec<QueueState> {
        self.active.iter().map(|active| active.queue.queue.state()).collect()
    }

    /// Registers with the device's event loop.
    pub(super) fn register(&self, ops: &mut EventOps) {
        self.wakeup.register(ops);
    }

    /// Handles `events`: gives each available chain to `serve`, which returns how many bytes it wrote to it.
    pub(super) fn process<F>(&mut self, events: Events, ops: &mut EventOps, mut serve: F)
    where
        F: FnMut(&GuestMemory, DescriptorChain<&GuestMemory>) -> u32,
    {
        if self.wakeup.is_source_of(&events) {
            self.wakeup
                .update_kicks(ops, self.active.iter().map(|active| &active.queue.kick));
        }
        let Some(Active {
            memory,
            interrupt,
            queue,
        }) = &mut self.active
        else {
            return;
        };
        // An empty counter: the wake-up came first.
        let _ = queue.kick.read();
        notification::serve(queue, memory, interrupt, |chain| serve(memory, chain));
    }
}
