//! How a virtio device tells its driver that something happened.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING, VIRTIO_MMIO_INTERRUPT_STATUS};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::devices::register_page::RegisterPage;

/// An acknowledgement of used buffers alone. KVM takes it and tells nobody, which spares an exit for each interrupt: the
/// bit of the register stays set until a reset, and a driver that finds it set has a look at its rings, as it does anyway.
pub(crate) const USED_BUFFERS: u32 = VIRTIO_MMIO_INT_VRING;

/// The interrupt line of one virtio-mmio device: the `InterruptStatus` register (virtio 1.2,
/// section 4.2.2) and the eventfd that KVM turns into the device's interrupt (irqfd).
///
/// Shared between the device, which raises it, and the transport. The driver reads the register from its page.
#[derive(Debug)]
pub struct Interrupt {
    page: RegisterPage,
    line: EventFd,
}

impl Interrupt {
    /// A lowered interrupt with a new eventfd, whose register is in `page`.
    ///
    /// # Errors
    /// When the process or the host is out of file descriptors.
    pub fn new(page: RegisterPage) -> io::Result<Self> {
        Ok(Self {
            page,
            line: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// Tells the driver that the device has used buffers of at least one queue.
    ///
    /// Call it only after `Queue::needs_notification` asked for it.
    pub fn signal_used_buffer(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// Tells the driver that the device's configuration space or status changed.
    pub fn signal_config_change(&self) {
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// The `InterruptStatus` register.
    pub fn status(&self) -> u32 {
        u32::from_le(self.register().load(Ordering::SeqCst))
    }

    /// A write of `bits` to the `InterruptACK` register.
    pub fn acknowledge(&self, bits: u32) {
        self.register().fetch_and(!bits.to_le(), Ordering::SeqCst);
    }

    /// Device reset: nothing is pending any more.
    pub fn reset(&self) {
        self.register().store(0, Ordering::SeqCst);
    }

    /// Restores the register. The caller signals what may be lost: an edge, or what the device had not signalled yet.
    pub(super) fn restore(&self, status: u32) {
        let known = VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG;
        self.register().store((status & known).to_le(), Ordering::SeqCst);
    }

    /// The eventfd to register with KVM as irqfd, or to watch in a test.
    pub fn line(&self) -> &EventFd {
        &self.line
    }

    fn register(&self) -> &AtomicU32 {
        self.page.word(VIRTIO_MMIO_INTERRUPT_STATUS)
    }

    fn raise(&self, bits: u32) {
        self.register().fetch_or(bits.to_le(), Ordering::SeqCst);
        // A non-blocking eventfd refuses a write only when its counter is at its limit: the interrupt is pending
        // then anyway.
        let _ = self.line.write(1);
    }
}
