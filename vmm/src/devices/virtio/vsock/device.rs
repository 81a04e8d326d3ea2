//! The device as transport and event loop see it.

use std::os::unix::net::UnixListener;
use std::time::Instant;

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueState;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::config::VsockConfig;
use super::listener::{ListenError, Listener};
use super::muxer::{Context, Muxer};
use super::poller::{Interest, Poller, Readiness, Token};
use super::queues::{QUEUE_SIZES, Queues, borrow};
use crate::devices::virtio::device::{ActivateError, Activation, VirtioDevice};

/// The device has stream sockets.
const VIRTIO_VSOCK_F_STREAM: u32 = 0;

/// The lowest context ID that no one else has: 0 to 2 are the hypervisor, the local loop and the host.
const FIRST_GUEST_CID: u32 = 3;

/// Why there is no vsock device.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// The context ID is taken by the protocol.
    #[error("{cid} cannot be the guest's vsock context ID: choose one from {FIRST_GUEST_CID} to {max}", max = u32::MAX - 1)]
    InvalidCid {
        /// The context ID.
        cid: u32,
    },
    /// There is no listening socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The host refused something the device needs.
    #[error("cannot {doing} for the vsock device")]
    Host {
        /// What was being done.
        doing: &'static str,
        /// What the host answered.
        #[source]
        source: std::io::Error,
    },
}

/// The vsock device.
///
/// It lives as `Arc<Mutex<Vsock>>`, shared by its transport and the event loop of the thread that moves its data.
/// Dropping it closes all connections and removes the listening socket it made.
#[derive(Debug)]
pub struct Vsock {
    guest_cid: u32,
    muxer: Muxer,
    /// Readable after the driver started or reset the device: the event loop has to follow.
    changed: EventFd,
    /// The driver started the device; the event loop does not know yet.
    starting: Option<Queues>,
    active: Option<Queues>,
    /// Notifications of queues that are no longer in use, which the event loop still watches.
    stale_kicks: Vec<EventFd>,
    driver_is_gone: bool,
    /// The driver has connections from before the VM was restored, and does not know yet that they are gone.
    owes_transport_reset: bool,
}

impl Vsock {
    /// A device that listens on `config.uds_path`, with mode 0600 from the start.
    ///
    /// Clients can connect from now on; they wait for the guest.
    ///
    /// # Errors
    /// When the context ID is reserved, the path is too long or in use, or the host is out of resources.
    pub fn new(config: VsockConfig) -> Result<Self, VsockError> {
        let listener = Listener::bind(&config.uds_path)?;
        Self::with(config, listener)
    }

    /// A device that listens on a socket that is bound to `config.uds_path` already, and leaves its file.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_listener(config: VsockConfig, listener: UnixListener) -> Result<Self, VsockError> {
        let listener = Listener::adopt(listener, &config.uds_path)?;
        Self::with(config, listener)
    }

    fn with(config: VsockConfig, listener: Listener) -> Result<Self, VsockError> {
        let cid = config.guest_cid;
        if !(FIRST_GUEST_CID..u32::MAX).contains(&cid) {
            return Err(VsockError::InvalidCid { cid });
        }
        let host = |doing| move |source| VsockError::Host { doing, source };
        Ok(Self {
            guest_cid: cid,
            muxer: Muxer::new(cid, config.limits, listener).map_err(host("create a timer"))?,
            changed: EventFd::new(EFD_NONBLOCK).map_err(host("create an eventfd"))?,
            starting: None,
            active: None,
            stale_kicks: Vec::new(),
            driver_is_gone: false,
            owes_transport_reset: false,
        })
    }

    /// Starts to watch everything but the queues, which follow when the driver starts the device.
    pub(super) fn register(&mut self, poller: &mut dyn Poller) -> std::io::Result<()> {
        poller.add(borrow(&self.changed), Token::Lifecycle, Interest::READABLE)?;
        self.muxer.register(poller)
    }

    /// An event of the event loop.
    pub(super) fn on_event(&mut self, token: Token, readiness: Readiness, cx: &mut Context<'_>) {
        match token {
            Token::Lifecycle => self.follow_driver(cx),
            Token::Kick(queue) => {
                if let Some(active) = &self.active {
                    active.acknowledge(queue);
                }
            }
            _ => self.muxer.on_event(token, readiness, cx),
        }
        if let Some(active) = &mut self.active {
            if self.owes_transport_reset && active.send_transport_reset() {
                self.owes_transport_reset = false;
            }
            active.pump(&mut self.muxer, cx);
        }
        self.muxer
            .set_queue_deadline(self.active.as_ref().and_then(Queues::deadline));
        self.muxer.settle(cx);
    }

    /// The driver started or reset the device, perhaps several times: follows to where it is now.
    fn follow_driver(&mut self, cx: &mut Context<'_>) {
        let _ = self.changed.read();
        for kick in self.stale_kicks.drain(..) {
            cx.poller.remove(borrow(&kick));
        }
        if std::mem::take(&mut self.driver_is_gone) {
            self.muxer.driver_is_gone(cx);
        }
        if let Some(queues) = self.starting.take() {
            if let Err(error) = queues.register(cx.poller) {
                tracing::warn!("the vsock device does not answer: cannot watch its queues: {error}");
            }
            self.active = Some(queues);
        }
    }

    /// How much the device holds.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> super::muxer::Sizes {
        self.muxer.sizes()
    }

    fn wake(&self) {
        // A full counter is readable too.
        let _ = self.changed.write(1);
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn max_queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn offered_features(&self) -> u64 {
        1 << VIRTIO_VSOCK_F_STREAM | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = u64::from(self.guest_cid).to_le_bytes();
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| config.get(offset..))
            .unwrap_or_default();
        let len = rest.len().min(data.len());
        data[..len].copy_from_slice(&rest[..len]);
        data[len..].fill(0);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let queues = Queues::new(activation)?;
        self.reset();
        self.starting = Some(queues);
        self.wake();
        Ok(())
    }

    fn reset(&mut self) {
        self.starting = None;
        if let Some(active) = self.active.take() {
            // Only the event loop's thread can tell the event loop.
            self.stale_kicks.extend(active.into_kicks());
            self.driver_is_gone = true;
        }
        self.owes_transport_reset = false;
        self.wake();
    }

    fn queue_states(&self) -> Vec<QueueState> {
        // The driver may have started the device without an event since.
        let queues = self.active.as_ref().or(self.starting.as_ref());
        queues.map(Queues::states).unwrap_or_default()
    }

    fn was_restored(&mut self) {
        self.owes_transport_reset = true;
        self.muxer.hold_clients_until_guest_connects();
    }
}

impl MutEventSubscriber for Vsock {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = self.register(ops) {
            tracing::warn!("the vsock device does not answer: cannot watch its descriptors: {error}");
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let Some(token) = Token::from_data(events.data()) else {
            return;
        };
        let readiness = Readiness::from_event_set(events.event_set());
        let mut context = Context {
            poller: ops,
            now: Instant::now(),
        };
        self.on_event(token, readiness, &mut context);
    }
}
