//! Makes the virtio devices of a configuration and the loops that drive them.

use std::io;
use std::sync::{Arc, Mutex};

use event_manager::MutEventSubscriber;

use super::register_page::RegisterPages;
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
#[derive(Debug, Default)]
pub(crate) struct AttachedDevices {
    /// In the order of their windows.
    pub(crate) transports: Vec<Arc<MmioTransport>>,
    /// One for each device that must not wait for another.
    pub(crate) loops: Vec<EventLoop>,
}

/// How many devices a configuration asks for.
///
/// # Errors
/// When there are more than fit.
pub(crate) fn count(config: &VmConfig) -> Result<usize, BuildError> {
    let count = 2 + usize::from(config.vsock.is_some()) + config.disks.len() + config.file_systems.len();
    match count {
        0..=layout::MAX_VIRTIO_DEVICES => Ok(count),
        _ => Err(BuildError::TooManyDevices(count)),
    }
}

/// Makes all devices: entropy, balloon, vsock, then the disks and the file systems in order. Their registers are in `pages`,
/// which are as many.
pub(crate) fn attach_all(
    config: &VmConfig,
    memory: &GuestMemory,
    pages: &RegisterPages,
) -> Result<AttachedDevices, BuildError> {
    let mut attached = Attaching {
        memory,
        pages,
        attached: AttachedDevices::default(),
    };
    attached.attach("rng", host("make the entropy device", Rng::new())?)?;
    attached.attach("balloon", host("make the balloon device", Balloon::new())?)?;
    if let Some(vsock) = &config.vsock {
        attached.attach("vsock", Vsock::new(vsock.clone())?)?;
    }
    for (index, disk) in config.disks.iter().enumerate() {
        attached.attach(&format!("block{index}"), Block::open(disk)?)?;
    }
    for (index, file_system) in config.file_systems.iter().enumerate() {
        attached.attach(&format!("fs{index}"), Fs::new(file_system)?)?;
    }
    Ok(attached.attached)
}

/// What is being attached, and to what.
struct Attaching<'a> {
    memory: &'a GuestMemory,
    pages: &'a RegisterPages,
    attached: AttachedDevices,
}

impl Attaching<'_> {
    fn attach<D>(&mut self, name: &str, device: D) -> Result<(), BuildError>
    where
        D: VirtioDevice + MutEventSubscriber + 'static,
    {
        let device = Arc::new(Mutex::new(device));
        let page = self.pages.page(self.attached.transports.len());
        let page = page.expect("there are as many pages as devices");
        let transport = MmioTransport::new(
            Arc::clone(&device) as Arc<Mutex<dyn VirtioDevice>>,
            self.memory.clone(),
            page,
        );
        let transport = host("make a virtio device", transport)?;
        self.attached.transports.push(Arc::new(transport));
        let event_loop = EventLoop::new(name, vec![device as Subscriber]);
        self.attached.loops.push(host("make an event loop", event_loop)?);
        Ok(())
    }
}

fn host<T>(doing: &'static str, result: io::Result<T>) -> Result<T, BuildError> {
    result.map_err(|source| BuildError::Host { doing, source })
}
