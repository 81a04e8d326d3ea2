//! Sends a vCPU's port and MMIO accesses to devices.

use std::sync::Arc;

use super::ioapic::Ioapic;
use super::legacy::{LegacyPorts, PortEffect};
use super::virtio::mmio::MmioTransport;
use crate::arch::layout;

/// All devices of a VM; what has no device reads as ones and ignores writes.
#[derive(Debug)]
pub struct Bus {
    ports: LegacyPorts,
    ioapic: Ioapic,
    virtio: Vec<Arc<MmioTransport>>,
}

impl Bus {
    /// A bus whose `n`th virtio device has the `n`th window from [`layout::VIRTIO_MMIO`].
    pub fn new(ports: LegacyPorts, ioapic: Ioapic, virtio: Vec<Arc<MmioTransport>>) -> Self {
        Self { ports, ioapic, virtio }
    }

    /// The legacy ports.
    pub(crate) fn ports(&self) -> &LegacyPorts {
        &self.ports
    }

    /// The I/O APIC.
    pub(crate) fn ioapic(&self) -> &Ioapic {
        &self.ioapic
    }

    /// The virtio devices, in the order of their windows.
    pub(crate) fn virtio(&self) -> &[Arc<MmioTransport>] {
        &self.virtio
    }

    /// `in` from `port`.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        self.ports.read(port, data);
    }

    /// `out` to `port`.
    pub fn port_write(&self, port: u16, data: &[u8]) -> PortEffect {
        self.ports.write(port, data)
    }

    /// A load from `address`.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        if let Some((device, offset)) = self.virtio_window(address) {
            device.read(offset, data);
        } else if let Some(offset) = Ioapic::offset(address) {
            self.ioapic.read(offset, data);
        } else {
            data.fill(0xff);
        }
    }

    /// A store to `address`.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.virtio_window(address) {
            device.write(offset, data);
        } else if let Some(offset) = Ioapic::offset(address) {
            self.ioapic.write(offset, data);
        }
    }

    fn virtio_window(&self, address: u64) -> Option<(&MmioTransport, u64)> {
        let offset = address.checked_sub(layout::VIRTIO_MMIO)?;
        let index = usize::try_from(offset / layout::VIRTIO_MMIO_SIZE).ok()?;
        Some((self.virtio.get(index)?, offset % layout::VIRTIO_MMIO_SIZE))
    }
}
