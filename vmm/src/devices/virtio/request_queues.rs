//! What a device whose virtqueues carry requests consists of besides these: activation, reset and the queues' events.

use std::io;
use std::sync::Arc;

use event_manager::{EventOps, Events};
use virtio_queue::{DescriptorChain, QueueState};

use super::device::{ActivateError, Activation, ActiveQueue};
use super::interrupt::Interrupt;
use super::notification;
use super::wakeup::ActivationWakeup;
use crate::memory::GuestMemory;

/// The queues of a device, active or not.
#[derive(Debug)]
pub(super) struct RequestQueues {
    wakeup: ActivationWakeup,
    active: Option<Active>,
}

#[derive(Debug)]
struct Active {
    memory: GuestMemory,
    interrupt: Arc<Interrupt>,
    queues: Vec<ActiveQueue>,
}

impl RequestQueues {
    /// Inactive queues.
    ///
    /// # Errors
    /// When the host is out of file descriptors.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            wakeup: ActivationWakeup::new()?,
            active: None,
        })
    }

    /// Takes the queues of `activation`; the event loop begins to serve them.
    ///
    /// # Errors
    /// When the driver made no queue ready.
    pub(super) fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            memory,
            interrupt,
            queues,
            ..
        } = activation;
        if queues.is_empty() {
            return Err(ActivateError::MissingQueues { ready: 0, needed: 1 });
        }
        self.active = Some(Active {
            memory,
            interrupt,
            queues,
        });
        self.wakeup.wake();
        Ok(())
    }

    /// Drops the queues; the event loop forgets them.
    pub(super) fn reset(&mut self) {
        self.active = None;
        self.wakeup.wake();
    }

    /// See [`super::device::VirtioDevice::queue_states`].
    pub(super) fn states(&self) -> Vec<QueueState> {
        let queues = self.active.iter().flat_map(|active| &active.queues);
        queues.map(|active| active.queue.state()).collect()
    }

    /// Registers with the device's event loop.
    pub(super) fn register(&self, ops: &mut EventOps) {
        self.wakeup.register(ops);
    }

    /// Handles `events`: gives each available chain, with the number of its queue, to `serve`, which returns how many bytes
    /// it wrote to it.
    pub(super) fn process<F>(&mut self, events: Events, ops: &mut EventOps, mut serve: F)
    where
        F: FnMut(usize, &GuestMemory, DescriptorChain<&GuestMemory>) -> u32,
    {
        if self.wakeup.is_source_of(&events) {
            let queues = self.active.iter().flat_map(|active| &active.queues);
            self.wakeup.update_kicks(ops, queues.map(|queue| &queue.kick));
        }
        let Some(Active {
            memory,
            interrupt,
            queues,
        }) = &mut self.active
        else {
            return;
        };
        for (number, queue) in queues.iter_mut().enumerate() {
            // An empty counter: the wake-up came first, or another queue's notification.
            let _ = queue.kick.read();
            notification::serve(queue, memory, interrupt, |chain| serve(number, memory, chain));
        }
    }
}
