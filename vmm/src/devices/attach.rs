//! Makes the virtio devices of a configuration and the loops that drive them.

use std::io;
use std::sync::{Arc, Mutex};

use event_manager::MutEventSubscriber;

use super::virtio::balloon::Balloon;
use super::virtio::block::Block;
use super::virtio::device::VirtioDevice;
use super::virtio::fs::Fs;
use super::virtio::mmio::MmioTransport;
use super::virtio::rng::Rng;
use super::virtio::vsock::Vsock;
use crate::arch::layout;
use crate::config::VmConfig;
use crate::event_loop::{EventLoop, Subscriber};
use crate::memory::GuestMemory;
use crate::vm::BuildError;

/// The virtio devices of a VM.
#[derive(Debug)]
pub(crate) struct AttachedDevices {
    /// In the order of their windows.
    pub(crate) transports: Vec<Arc<MmioTransport>>,
    /// One for each device that must not wait for another.
    pub(crate) loops: Vec<EventLoop>,
}

/// Makes all devices: entropy, balloon, vsock, then the disks and the file systems in order.
pub(crate) fn attach_all(config: &VmConfig, memory: &GuestMemory) -> Result<AttachedDevices, BuildError> {
    let count = 2 + usize::from(config.vsock.is_some()) + config.disks.len() + config.file_systems.len();
    if count > layout::MAX_VIRTIO_DEVICES {
        return Err(BuildError::TooManyDevices(count));
    }
    let mut attached = AttachedDevices {
        transports: Vec::with_capacity(count),
        loops: Vec::with_capacity(count),
    };
    attached.attach("rng", host("make the entropy device", Rng::new())?, memory)?;
    attached.attach("balloon", host("make the balloon device", Balloon::new())?, memory)?;
    if let Some(vsock) = &config.vsock {
        attached.attach("vsock", Vsock::new(vsock.clone())?, memory)?;
    }
    for (index, disk) in config.disks.iter().enumerate() {
        attached.attach(&format!("block{index}"), Block::open(disk)?, memory)?;
    }
    for (index, file_system) in config.file_systems.iter().enumerate() {
        attached.attach(&format!("fs{index}"), Fs::new(file_system)?, memory)?;
    }
    Ok(attached)
}

impl AttachedDevices {
    fn attach<D>(&mut self, name: &str, device: D, memory: &GuestMemory) -> Result<(), BuildError>
    where
        D: VirtioDevice + MutEventSubscriber + 'static,
    {
        let device = Arc::new(Mutex::new(device));
        let transport = MmioTransport::new(Arc::clone(&device) as Arc<Mutex<dyn VirtioDevice>>, memory.clone());
        self.transports.push(Arc::new(host("make a virtio device", transport)?));
        let event_loop = EventLoop::new(name, vec![device as Subscriber]);
        self.loops.push(host("make an event loop", event_loop)?);
        Ok(())
    }
}

fn host<T>(doing: &'static str, result: io::Result<T>) -> Result<T, BuildError> {
    result.map_err(|source| BuildError::Host { doing, source })
}
