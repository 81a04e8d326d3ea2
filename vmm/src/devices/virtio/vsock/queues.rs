//! The virtqueues of a running device: packets between guest memory and the muxer.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use virtio_queue::{QueueOwnedT, QueueState, QueueT};
use vm_memory::Bytes;
use vmm_sys_util::eventfd::EventFd;

use super::completions::Completions;
use super::guest_buf::{GuestBuf, Segments};
use super::muxer::{Context, Muxer};
use super::packet::{RxBuffer, TxPacket};
use super::poller::{Interest, Poller, Token};
use crate::devices::virtio::device::{ActivateError, Activation, ActiveQueue};
use crate::devices::virtio::interrupt::Interrupt;
use crate::devices::virtio::notification::{Recheck, notify};
use crate::memory::GuestMemory;

/// The sizes of the receive, transmit and event queue.
pub(super) const QUEUE_SIZES: [u16; 3] = [256; 3];

/// Descriptor chains handled before other events get a turn, so that a bulk transfer leaves room for others.
const BUDGET: usize = 256;

/// Bytes of the guest in one round that make it likely that it has more. Its vCPU, if that waits for this CPU, gets to add
/// them before the device asks for notifications again: each is an exit, and two switches between the threads.
const BULK: usize = 32 << 10;

/// `struct virtio_vsock_event` with the id `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (virtio 1.2, section 5.10.6.7).
const TRANSPORT_RESET: [u8; 4] = [0; 4];

/// The queues from the driver's start of the device until its reset.
#[derive(Debug)]
pub(super) struct Queues {
    memory: GuestMemory,
    interrupt: Arc<Interrupt>,
    rx: ActiveQueue,
    tx: ActiveQueue,
    completions: Completions,
    /// Holds the driver's buffers for transport reset events.
    event: ActiveQueue,
}

impl Queues {
    /// Takes the queues that the driver made ready.
    ///
    /// # Errors
    /// When one is missing.
    pub(super) fn new(activation: Activation) -> Result<Self, ActivateError> {
        let ready = activation.queues.len();
        let [rx, tx, event] =
            <[ActiveQueue; 3]>::try_from(activation.queues).map_err(|_| ActivateError::MissingQueues {
                ready,
                needed: QUEUE_SIZES.len(),
            })?;
        Ok(Self {
            memory: activation.memory,
            interrupt: activation.interrupt,
            rx,
            completions: Completions::new(tx.queue.size()),
            tx,
            event,
        })
    }

    /// Starts to watch the driver's notifications.
    ///
    /// # Errors
    /// What the event loop says.
    pub(super) fn register(&self, poller: &mut dyn Poller) -> io::Result<()> {
        for (index, queue) in (0u16..).zip([&self.rx, &self.tx, &self.event]) {
            poller.add(borrow(&queue.kick), Token::Kick(index), Interest::READABLE)?;
        }
        Ok(())
    }

    /// How far they are, in order.
    pub(super) fn states(&self) -> Vec<QueueState> {
        [&self.rx, &self.tx, &self.event]
            .map(|queue| queue.queue.state())
            .into()
    }

    /// Tells the driver that all its connections are gone. False when it has no buffer for that yet.
    pub(super) fn send_transport_reset(&mut self) -> bool {
        let queue = &mut self.event.queue;
        let Some(chain) = queue.pop_descriptor_chain(&self.memory) else {
            return false;
        };
        let head = chain.head_index();
        let buffer = chain.writable().next();
        let written = buffer.is_some_and(|buffer| {
            usize::try_from(buffer.len()).is_ok_and(|len| len >= TRANSPORT_RESET.len())
                && self.memory.write_slice(&TRANSPORT_RESET, buffer.addr()).is_ok()
        });
        let used = if written { 4 } else { 0 };
        if queue.add_used(&self.memory, head, used).is_ok() {
            notify(queue, &self.memory, &self.interrupt);
        }
        // A driver whose buffers are no buffers has nothing to wait for.
        true
    }

    /// The notifications alone.
    pub(super) fn into_kicks(self) -> [EventFd; 3] {
        [self.rx.kick, self.tx.kick, self.event.kick]
    }

    /// Silences the notification of a queue.
    pub(super) fn acknowledge(&self, queue: u16) {
        if let Some(queue) = [&self.rx, &self.tx, &self.event].get(usize::from(queue)) {
            let _ = queue.kick.read();
        }
    }

    /// Moves packets in both directions until nothing more can move.
    pub(super) fn pump(&mut self, muxer: &mut Muxer, cx: &mut Context<'_>) {
        let mut segments = Segments::new();
        let mut budget = BUDGET;
        loop {
            let before = budget;
            self.drain_tx(muxer, cx, &mut segments, &mut budget);
            if self.fill_rx(muxer, cx, &mut segments, &mut budget) && self.completions.are_pending() {
                // The driver looks at all queues after an interrupt.
                let _ = self.tx.queue.needs_notification(&self.memory);
                self.completions.told();
            }
            if budget == 0 {
                // Comes back here after the other events of this turn.
                let _ = self.tx.kick.write(1);
                break;
            }
            if budget == before {
                break;
            }
        }
        if self.completions.are_due(cx.now) {
            notify(&mut self.tx.queue, &self.memory, &self.interrupt);
            self.completions.told();
        }
    }

    /// When [`Self::pump`] has to be called again, whatever else happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.completions.deadline()
    }

    /// Takes packets from the guest as long as an answer to each has room.
    fn drain_tx(&mut self, muxer: &mut Muxer, cx: &mut Context<'_>, segments: &mut Segments, budget: &mut usize) {
        let queue = &mut self.tx.queue;
        let mut recheck = Recheck::default();
        loop {
            let _ = queue.disable_notification(&self.memory);
            let round = *budget;
            let mut taken = 0;
            while *budget > 0 && muxer.can_transmit() {
                let Some(chain) = queue.pop_descriptor_chain(&self.memory) else {
                    break;
                };
                let head = chain.head_index();
                let len = match TxPacket::parse(segments, &self.memory, chain) {
                    Ok(packet) => {
                        let len = packet.payload.as_ref().map_or(0, GuestBuf::len);
                        muxer.transmit(packet, cx);
                        len
                    }
                    Err(error) => {
                        tracing::debug!("dropped a vsock packet of the guest: {error}");
                        0
                    }
                };
                self.completions.add(len, cx.now);
                taken += len;
                *budget -= 1;
                if queue.add_used(&self.memory, head, 0).is_err() {
                    return;
                }
            }
            // Otherwise the next turn, or room for answers, leads back here.
            let is_drained = *budget > 0 && muxer.can_transmit();
            if is_drained && taken >= BULK {
                std::thread::yield_now();
            }
            if !is_drained || !recheck.again(queue, &self.memory, *budget < round) {
                break;
            }
        }
    }

    /// Gives packets to the guest as long as it has buffers for them. Whether it was interrupted.
    fn fill_rx(
        &mut self,
        muxer: &mut Muxer,
        cx: &mut Context<'_>,
        segments: &mut Segments,
        budget: &mut usize,
    ) -> bool {
        let before = *budget;
        let queue = &mut self.rx.queue;
        let mut recheck = Recheck::default();
        loop {
            let _ = queue.disable_notification(&self.memory);
            let round = *budget;
            while *budget > 0 && muxer.has_rx() {
                let Some(chain) = queue.pop_descriptor_chain(&self.memory) else {
                    break;
                };
                let head = chain.head_index();
                let used = match RxBuffer::parse(segments, &self.memory, chain) {
                    Ok(mut buffer) => match muxer.receive(&mut buffer.payload, cx) {
                        Some(header) => buffer.commit(&header),
                        None => {
                            queue.go_to_previous_position();
                            break;
                        }
                    },
                    Err(error) => {
                        tracing::debug!("passed over a vsock buffer of the guest: {error}");
                        0
                    }
                };
                *budget -= 1;
                if queue.add_used(&self.memory, head, used).is_err() {
                    return false;
                }
            }
            // Only a packet without a buffer makes new buffers interesting.
            let lacks_buffers = *budget > 0 && muxer.has_rx();
            if !lacks_buffers || !recheck.again(queue, &self.memory, *budget < round) {
                break;
            }
        }
        *budget < before && notify(queue, &self.memory, &self.interrupt)
    }
}

/// `EventFd` has no `AsFd`.
pub(super) fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor stays open as long as `event`, which the result borrows.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
