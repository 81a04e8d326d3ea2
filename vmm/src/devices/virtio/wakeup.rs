//! How a device's event loop learns that a vCPU thread activated or reset the device.

use std::io;
use std::os::fd::AsRawFd;

use event_manager::{EventOps, Events};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// An eventfd that activation and reset write to, and the queue notifications that the loop watches because of them.
#[derive(Debug)]
pub struct ActivationWakeup {
    changed: EventFd,
    watched: Vec<EventFd>,
}

impl ActivationWakeup {
    /// A wake-up without an event loop.
    ///
    /// # Errors
    /// When the host is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            changed: EventFd::new(EFD_NONBLOCK)?,
            watched: Vec::new(),
        })
    }

    /// Makes the event loop look at the device.
    pub fn wake(&self) {
        // A full counter is readable too.
        let _ = self.changed.write(1);
    }

    /// Registers with the device's event loop.
    pub fn register(&self, ops: &mut EventOps) {
        watch(ops, &self.changed);
    }

    /// Whether `events` came from this wake-up.
    pub fn is_source_of(&self, events: &Events) -> bool {
        events.fd() == self.changed.as_raw_fd()
    }

    /// After a wake-up: watches exactly `kicks`, the notifications of the active queues.
    pub fn update_kicks<'a>(&mut self, ops: &mut EventOps, kicks: impl Iterator<Item = &'a EventFd>) {
        // Nothing to read when several wake-ups came at once.
        let _ = self.changed.read();
        for kick in self.watched.drain(..) {
            let _ = ops.remove(Events::empty(&kick));
        }
        for kick in kicks.filter_map(|kick| kick.try_clone().ok()) {
            watch(ops, &kick);
            self.watched.push(kick);
        }
    }
}

fn watch(ops: &mut EventOps, source: &EventFd) {
    if let Err(error) = ops.add(Events::new(source, EventSet::IN)) {
        tracing::warn!(%error, "a virtio device cannot be watched and does not answer");
    }
}
