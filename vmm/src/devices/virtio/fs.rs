//! virtio-fs: a file system of the host, served by another process (virtio 1.2, section 5.11).
//!
//! The device knows nothing of files. It carries FUSE requests (linux/fuse.h) from its queues to a socket of type
//! `SOCK_SEQPACKET`, one a message, and answers back: as little of the guest's memory as that, and no descriptor of a file,
//! are where the other is. One request is under way at a time. When the other end is gone, or says what is no answer, each
//! request fails with `EIO`.

mod message;
mod peer;

use std::os::fd::AsRawFd as _;
use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{QueueState, QueueT as _};

use super::device::{ActivateError, Activation, ActiveQueue, VirtioDevice, read_config_space};
use super::interrupt::Interrupt;
use super::notification::{self, BUDGET, Recheck};
use super::wakeup::ActivationWakeup;
use crate::config::FileSystemConfig;
use crate::memory::GuestMemory;
use message::{Place, Request};
use peer::Peer;

/// The queue of requests that must not wait for others, and the one of all the others.
const QUEUE_SIZES: [u16; QUEUES] = [64, 256];
const QUEUES: usize = 2;

/// Bytes of the tag in `struct virtio_fs_config`.
const TAG: usize = 36;

/// `tag` and `num_request_queues` of `struct virtio_fs_config`.
type ConfigSpace = [u8; TAG + 4];

/// Why there is no file system device.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The guest could not name it.
    #[error("'{0}' cannot be the tag of a file system: it needs 1 to {TAG} bytes and no zero byte")]
    Tag(String),
    /// The host refused something the device needs.
    #[error("cannot {doing} for the file system device")]
    Host {
        /// What was being done.
        doing: &'static str,
        /// What the host answered.
        #[source]
        source: std::io::Error,
    },
}

/// A file system of the guest.
#[derive(Debug)]
pub struct Fs {
    config: ConfigSpace,
    peer: Peer,
    wakeup: ActivationWakeup,
    active: Option<Active>,
}

#[derive(Debug)]
struct Active {
    memory: GuestMemory,
    interrupt: Arc<Interrupt>,
    queues: [ActiveQueue; QUEUES],
    /// Where the answer to the request goes that is under way.
    awaited: Option<Awaited>,
}

/// What an answer is for.
#[derive(Debug)]
struct Awaited {
    queue: usize,
    place: Place,
}

impl Fs {
    /// An inactive device.
    ///
    /// # Errors
    /// When the tag is none, or the host is out of file descriptors.
    pub fn new(config: &FileSystemConfig) -> Result<Self, FsError> {
        let host = |doing| move |source| FsError::Host { doing, source };
        Ok(Self {
            config: config_space(&config.tag).ok_or_else(|| FsError::Tag(config.tag.clone()))?,
            peer: Peer::new(&config.tag, &config.socket).map_err(host("use the socket of the server"))?,
            wakeup: ActivationWakeup::new().map_err(host("make an eventfd"))?,
            active: None,
        })
    }
}

fn config_space(tag: &str) -> Option<ConfigSpace> {
    let mut space = [0; TAG + 4];
    let is_tag = !tag.is_empty() && !tag.contains('\0');
    space[..TAG]
        .get_mut(..tag.len())
        .filter(|_| is_tag)?
        .copy_from_slice(tag.as_bytes());
    space[TAG..].copy_from_slice(&1u32.to_le_bytes());
    Some(space)
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn max_queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn offered_features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_space(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            memory,
            interrupt,
            queues,
            ..
        } = activation;
        let ready = queues.len();
        let queues = queues
            .try_into()
            .map_err(|_| ActivateError::MissingQueues { ready, needed: QUEUES })?;
        self.active = Some(Active {
            memory,
            interrupt,
            queues,
            awaited: None,
        });
        self.wakeup.wake();
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        self.wakeup.wake();
    }

    fn queue_states(&self) -> Vec<QueueState> {
        let queues = self.active.iter().flat_map(|active| &active.queues);
        queues.map(|queue| queue.queue.state()).collect()
    }

    /// What the guest has open is known to the process at the other end, which no copy of the guest has.
    fn can_be_saved(&self) -> bool {
        false
    }
}

impl MutEventSubscriber for Fs {
    fn init(&mut self, ops: &mut EventOps) {
        self.wakeup.register(ops);
        self.peer.register(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let Self {
            peer, wakeup, active, ..
        } = self;
        if wakeup.is_source_of(&events) {
            let queues = active.iter().flat_map(|active| &active.queues);
            wakeup.update_kicks(ops, queues.map(|queue| &queue.kick));
        }
        if events.fd() == peer.as_raw_fd() {
            if let Some(answer) = peer.hear(ops)
                && let Some(active) = active
            {
                active.answer(&answer);
            }
        } else if let Some(active) = active {
            for queue in &active.queues {
                // An empty counter: another queue's, or the wake-up came first.
                let _ = queue.kick.read();
            }
        }
        if let Some(active) = active {
            active.serve(peer, ops);
        }
    }
}

impl Active {
    /// Gives the other end the next request, as long as it is ready for one; after [`BUDGET`] of them it comes back later.
    fn serve(&mut self, peer: &mut Peer, ops: &mut EventOps) {
        let mut rechecks: [Recheck; QUEUES] = Default::default();
        let mut progressed = [false; QUEUES];
        let mut left = BUDGET;
        while peer.is_ready() {
            if left == 0 {
                let _ = self.queues[0].kick.write(1);
                return;
            }
            let Some((index, request, place)) = self.next() else {
                let again = (0..QUEUES).fold(false, |again, index| {
                    let queue = &mut self.queues[index].queue;
                    let progressed = std::mem::take(&mut progressed[index]);
                    rechecks[index].again(queue, &self.memory, progressed) || again
                });
                if again {
                    continue;
                }
                return;
            };
            progressed[index] = true;
            left -= 1;
            let Some(request) = request else {
                self.complete(index, &place, &[]);
                continue;
            };
            let awaited = Awaited { queue: index, place };
            if !request.is_answered() {
                // Its driver is done with it once it is taken.
                self.complete(index, &awaited.place, &[]);
            } else {
                self.awaited = Some(awaited);
            }
            if let Some(failure) = peer.ask(request, ops) {
                self.answer(&failure);
            }
        }
    }

    /// The next request; none where the chain holds what is no request.
    fn next(&mut self) -> Option<(usize, Option<Request>, Place)> {
        let (index, chain) = self
            .queues
            .iter_mut()
            .enumerate()
            .find_map(|(index, queue)| Some((index, queue.queue.pop_descriptor_chain(&self.memory)?)))?;
        let place = Place::of_chain(chain.clone());
        Some((index, Request::of_chain(&self.memory, chain), place))
    }

    /// Hands the driver what came for the request that is under way.
    fn answer(&mut self, answer: &[u8]) {
        if let Some(Awaited { queue, place }) = self.awaited.take() {
            self.complete(queue, &place, answer);
        }
    }

    fn complete(&mut self, index: usize, place: &Place, answer: &[u8]) {
        let written = place.write(&self.memory, answer);
        let queue = &mut self.queues[index].queue;
        if queue.add_used(&self.memory, place.head(), written).is_ok() {
            notification::notify(queue, &self.memory, &self.interrupt);
        }
    }
}

/// Whether the device passes `bytes` on.
#[cfg(fuzzing)]
pub fn is_request(bytes: &[u8]) -> bool {
    Request::new(bytes.to_owned()).is_some()
}

#[cfg(test)]
mod tests;
