//! One connection between a Unix socket of the host and a port of the guest.
//!
//! The protocol in short (virtio 1.2, section 5.10.6):
//!
//! 1. One side sends `REQUEST`; the other answers `RESPONSE`, and both may send data, or `RST`, and there is no
//!    connection. What the host asks for is held here while the guest refuses it: see [`Hold`].
//! 2. Data goes in `RW` packets, never more than the other side has credit for: see [`Credit`]. Every packet carries
//!    credit; `CREDIT_UPDATE` carries nothing else, `CREDIT_REQUEST` asks for one.
//! 3. `SHUTDOWN` says which directions its sender is done with. Flags add up over several of them. One direction ends
//!    without the other: end of file on the Unix socket is `SEND` to the guest, a `SEND` of the guest is end of file
//!    on the Unix socket once all data before it is written there. The same holds for `RCV` and writing to an end that
//!    reads no more.
//! 4. When both directions are done, the side that is done last sends `RST` in answer to the `SHUTDOWN` of both. So
//!    - a guest that shuts both down gets `RST` at once. What it sent before still goes to the host end
//!      ([`State::Draining`]); for the guest the connection no longer exists, and its port is free;
//!    - when both are over on the host, the guest gets `SHUTDOWN` of both and has a while to agree
//!      ([`State::Closing`]). By then it has all of the host's data.
//! 5. `RST` at any time ends everything at once. It answers whatever does not belong.

use std::time::{Duration, Instant};

use super::credit::Credit;
use super::guest_buf::GuestBuf;
use super::header::{HOST_CID, Header, MAX_PAYLOAD, Op, SHUTDOWN_BOTH, SHUTDOWN_RCV, SHUTDOWN_SEND, TYPE_STREAM};
use super::hold::Hold;
use super::host_stream::{HostStream, Received};
use super::poller::{Interest, Readiness};
use super::timers::after;

/// What identifies a connection. The context IDs are always those of this guest and the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The port on the host's side.
    pub(super) host_port: u32,
    /// The port on the guest's side.
    pub(super) guest_port: u32,
}

#[derive(Debug)]
enum State {
    /// A client waits for the guest's answer; `sent` once the guest was asked.
    Requesting { hold: Hold, sent: bool },
    /// A client waits until the guest, which refused it, is asked again.
    Held { hold: Hold, retry_at: Instant },
    /// Data flows in the directions that are not shut down.
    Established,
    /// Both directions are over on the host; the guest has until the deadline to agree.
    Closing { deadline: Instant },
    /// Over for the guest; the host end has not taken all of the guest's data yet.
    Draining,
    /// Over.
    Gone,
}

/// What waits to be sent to the guest, besides data.
#[derive(Debug, Default)]
struct Pending {
    request: bool,
    response: bool,
    shutdown: bool,
    credit_update: bool,
    credit_request: bool,
}

/// A connection. Who drives it looks after each call at what it wants: [`Self::has_rx`], [`Self::interest`],
/// [`Self::deadline`], [`Self::take_reset`], [`Self::is_detached`], [`Self::is_gone`].
#[derive(Debug)]
pub(super) struct Connection {
    key: Key,
    guest_cid: u64,
    close_timeout: Duration,
    state: State,
    host: HostStream,
    credit: Credit,
    pending: Pending,
    /// Reading from the host end gives something: data, or its end.
    host_readable: bool,
    /// The host end was read to its end.
    host_eof: bool,
    /// The host end is closed; what it wrote before can still be read.
    hung_up: bool,
    /// `SHUTDOWN` flags that the guest was sent, or will be by `pending.shutdown`.
    told: u32,
    /// `SHUTDOWN` flags that came from the guest.
    guest_shut: u32,
    /// The guest was asked for credit and has given none since.
    credit_requested: bool,
    /// The guest must be told that the connection is over.
    owes_reset: bool,
}

impl Connection {
    /// For a client that asks for a port of the guest.
    pub(super) fn from_client(
        key: Key,
        guest_cid: u64,
        host: HostStream,
        credit: Credit,
        close_timeout: Duration,
        hold: Hold,
    ) -> Self {
        let pending = Pending {
            request: true,
            ..Pending::default()
        };
        Self::new(
            key,
            guest_cid,
            host,
            credit,
            close_timeout,
            State::Requesting { hold, sent: false },
            pending,
        )
    }

    /// For a guest whose request the host has granted.
    pub(super) fn from_guest(
        key: Key,
        guest_cid: u64,
        host: HostStream,
        credit: Credit,
        close_timeout: Duration,
    ) -> Self {
        let pending = Pending {
            response: true,
            ..Pending::default()
        };
        Self::new(key, guest_cid, host, credit, close_timeout, State::Established, pending)
    }

    fn new(
        key: Key,
        guest_cid: u64,
        host: HostStream,
        credit: Credit,
        close_timeout: Duration,
        state: State,
        pending: Pending,
    ) -> Self {
        Self {
            key,
            guest_cid,
            close_timeout,
            state,
            host,
            credit,
            pending,
            host_readable: false,
            host_eof: false,
            hung_up: false,
            told: 0,
            guest_shut: 0,
            credit_requested: false,
            owes_reset: false,
        }
    }

    /// What identifies the connection.
    pub(super) fn key(&self) -> Key {
        self.key
    }

    /// The host end.
    pub(super) fn host(&self) -> &HostStream {
        &self.host
    }

    /// Whether the guest must be sent an `RST`. Says so once.
    pub(super) fn take_reset(&mut self) -> bool {
        std::mem::take(&mut self.owes_reset)
    }

    /// Whether a client waits for the guest to accept.
    pub(super) fn is_waiting(&self) -> bool {
        matches!(self.state, State::Requesting { .. } | State::Held { .. })
    }

    /// Whether the connection is over for the guest.
    pub(super) fn is_detached(&self) -> bool {
        matches!(self.state, State::Draining | State::Gone)
    }

    /// Whether the connection is over.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.state, State::Gone)
    }

    /// What to wait for on the host end; `None` when nothing, not even a hang-up, is of interest.
    pub(super) fn interest(&self) -> Option<Interest> {
        if self.hung_up {
            return None;
        }
        match self.state {
            State::Requesting { .. } | State::Held { .. } => Some(Interest::default()),
            State::Established => Some(Interest {
                readable: !self.host_readable && !self.is_to_guest_over(),
                writable: self.host.buffered() > 0,
            }),
            State::Draining => Some(Interest {
                readable: false,
                writable: true,
            }),
            State::Closing { .. } | State::Gone => None,
        }
    }

    /// When [`Self::on_deadline`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Requesting { hold, .. } => Some(hold.deadline()),
            State::Held { hold, retry_at } => Some((*retry_at).min(hold.deadline())),
            State::Closing { deadline } => Some(*deadline),
            State::Established | State::Draining | State::Gone => None,
        }
    }

    /// Takes a packet from the guest. `payload` is `None` when the guest gave fewer bytes than the header says.
    pub(super) fn on_packet(
        &mut self,
        op: Option<Op>,
        header: &Header,
        payload: Option<&mut GuestBuf<'_>>,
        now: Instant,
    ) {
        self.credit.update_peer(header.buf_alloc, header.fwd_cnt);
        if self.credit.available() > 0 {
            self.credit_requested = false;
            self.pending.credit_request = false;
        }
        let (Some(op), Some(payload)) = (op, payload) else {
            return self.violate();
        };
        match (&mut self.state, op) {
            (State::Requesting { sent: true, .. }, Op::Response) => self.accept(),
            (State::Requesting { hold, .. }, Op::Rst) => {
                let retry_at = hold.next_retry(now);
                let hold = hold.clone();
                self.pending.request = false;
                self.state = State::Held { hold, retry_at };
            }
            (
                State::Requesting { .. },
                Op::Request | Op::Response | Op::Shutdown | Op::Rw | Op::CreditUpdate | Op::CreditRequest,
            ) => self.violate(),
            // It refused already; anything but that again is no answer to what it was asked.
            (State::Held { .. }, Op::Rst) => {}
            (
                State::Held { .. },
                Op::Request | Op::Response | Op::Shutdown | Op::Rw | Op::CreditUpdate | Op::CreditRequest,
            ) => self.violate(),

            (State::Established, Op::Rw) => self.take_data(payload, now),
            (State::Established, Op::Shutdown) => self.take_shutdown(header.flags, now),
            (State::Established, Op::CreditUpdate) => {}
            (State::Established, Op::CreditRequest) => self.pending.credit_update = true,
            (State::Established, Op::Rst) => self.detach(),
            (State::Established, Op::Request | Op::Response) => self.violate(),

            // The host end is gone: whatever the guest sent before it knew is lost, as with any closed socket.
            (State::Closing { .. }, Op::Rw | Op::CreditUpdate | Op::CreditRequest) => {}
            (State::Closing { .. }, Op::Shutdown) => {
                self.guest_shut |= header.flags;
                if self.guest_shut & SHUTDOWN_BOTH == SHUTDOWN_BOTH {
                    self.owes_reset = true;
                    self.detach();
                }
            }
            (State::Closing { .. }, Op::Rst) => self.detach(),
            (State::Closing { .. }, Op::Request | Op::Response) => self.violate(),

            // The guest cannot name it any more.
            (State::Draining | State::Gone, _) => {}
        }
    }

    /// Something happened on the host end.
    pub(super) fn on_readiness(&mut self, readiness: Readiness, now: Instant) {
        match &self.state {
            State::Requesting { sent, .. } if readiness.hung_up => {
                self.owes_reset = *sent;
                self.detach();
            }
            State::Held { .. } if readiness.hung_up => self.detach(),
            State::Requesting { .. } | State::Held { .. } => {}
            State::Established => {
                if readiness.hung_up {
                    self.hung_up = true;
                    let dropped = self.host.break_off();
                    self.forward(dropped);
                }
                if readiness.writable {
                    self.flush();
                }
                if (readiness.readable || readiness.hung_up) && !self.is_to_guest_over() {
                    self.host_readable = true;
                }
                self.advance(now);
            }
            State::Draining => {
                if readiness.hung_up {
                    self.host.break_off();
                }
                self.flush();
                self.detach();
            }
            State::Closing { .. } | State::Gone => self.hung_up |= readiness.hung_up,
        }
    }

    /// The time of [`Self::deadline`] has come.
    pub(super) fn on_deadline(&mut self, now: Instant) {
        match &self.state {
            State::Requesting { hold, sent } if hold.deadline() <= now => {
                self.owes_reset = *sent;
                self.detach();
            }
            State::Held { hold, .. } if hold.deadline() <= now => self.detach(),
            State::Held { .. } => self.ask_again(),
            State::Closing { .. } => {
                self.owes_reset = true;
                self.detach();
            }
            State::Requesting { .. } | State::Established | State::Draining | State::Gone => {}
        }
    }

    /// The guest opened a connection to the host: what it serves, it serves from now on.
    pub(super) fn guest_is_ready(&mut self, now: Instant) {
        match &mut self.state {
            State::Requesting { hold, .. } => hold.guest_is_ready(now),
            State::Held { hold, .. } => {
                hold.guest_is_ready(now);
                self.ask_again();
            }
            State::Established | State::Closing { .. } | State::Draining | State::Gone => {}
        }
    }

    /// The driver is gone, and with it everything the guest knew. A client that waits for the guest waits for the
    /// next driver.
    pub(super) fn driver_is_gone(&mut self) {
        match &self.state {
            State::Requesting { .. } | State::Held { .. } => self.ask_again(),
            State::Established | State::Closing { .. } | State::Draining | State::Gone => self.detach(),
        }
    }

    /// Whether there is something for the guest that can be sent now.
    pub(super) fn has_rx(&self) -> bool {
        if self.is_detached() {
            return false;
        }
        let Pending {
            request,
            response,
            shutdown,
            credit_update,
            credit_request,
        } = self.pending;
        request || response || shutdown || credit_update || credit_request || self.wants_to_send_data()
    }

    /// The next packet for the guest, its payload in `payload`; `None` when there is nothing after all.
    pub(super) fn next_packet(&mut self, payload: &mut GuestBuf<'_>, now: Instant) -> Option<Header> {
        if std::mem::take(&mut self.pending.request) {
            if let State::Requesting { sent, .. } = &mut self.state {
                *sent = true;
            }
            return Some(self.header(Op::Request, 0, 0));
        }
        if std::mem::take(&mut self.pending.response) {
            return Some(self.header(Op::Response, 0, 0));
        }
        // What a closed host end has left is little, and a single `SHUTDOWN` can follow it; an open one may write
        // forever.
        if (!self.pending.shutdown || self.hung_up)
            && self.wants_to_send_data()
            && let Some(len) = self.read_data(payload, now)
        {
            return Some(self.header(Op::Rw, len, 0));
        }
        if std::mem::take(&mut self.pending.shutdown) {
            return Some(self.header(Op::Shutdown, 0, self.told));
        }
        if std::mem::take(&mut self.pending.credit_request) {
            return Some(self.header(Op::CreditRequest, 0, 0));
        }
        if self.pending.credit_update {
            return Some(self.header(Op::CreditUpdate, 0, 0));
        }
        None
    }

    fn header(&mut self, op: Op, len: u32, flags: u32) -> Header {
        let (buf_alloc, fwd_cnt) = self.credit.tell();
        self.pending.credit_update = false;
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: self.key.host_port,
            dst_port: self.key.guest_port,
            len,
            kind: TYPE_STREAM,
            op: op.number(),
            flags,
            buf_alloc,
            fwd_cnt,
        }
    }

    fn is_to_guest_over(&self) -> bool {
        self.host_eof || self.guest_shut & SHUTDOWN_RCV != 0
    }

    /// Data to read, and credit for it, or the need to ask for some.
    fn wants_to_send_data(&self) -> bool {
        matches!(self.state, State::Established)
            && self.host_readable
            && !self.is_to_guest_over()
            && (self.credit.available() > 0 || !self.credit_requested)
    }

    /// Reads from the host end as much as buffer and credit allow; `None` when that was nothing.
    fn read_data(&mut self, payload: &mut GuestBuf<'_>, now: Instant) -> Option<u32> {
        let available = self.credit.available();
        if available == 0 {
            self.pending.credit_request = true;
            self.credit_requested = true;
            return None;
        }
        let limit = payload
            .len()
            .min(MAX_PAYLOAD)
            .min(available.try_into().unwrap_or(usize::MAX));
        match self.host.read(payload, limit) {
            Received::Data(len) => {
                // A socket that gave less than it could has no more. If it has after all, its next event says so; a
                // closed one has no events.
                self.host_readable = self.hung_up || len == limit;
                let len = u32::try_from(len).unwrap_or(available);
                self.credit.send(len);
                Some(len)
            }
            Received::Nothing => {
                self.host_readable = false;
                None
            }
            Received::Eof => {
                self.host_readable = false;
                self.host_eof = true;
                self.advance(now);
                None
            }
        }
    }

    /// The guest accepted: tells the client.
    fn accept(&mut self) {
        self.state = State::Established;
        if self.host.send_line(&format!("OK {}\n", self.key.host_port)).is_err() {
            self.owes_reset = true;
            self.detach();
        }
    }

    fn ask_again(&mut self) {
        let (State::Requesting { hold, .. } | State::Held { hold, .. }) = &self.state else {
            return;
        };
        self.state = State::Requesting {
            hold: hold.clone(),
            sent: false,
        };
        self.pending.request = true;
    }

    fn take_data(&mut self, payload: &mut GuestBuf<'_>, now: Instant) {
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        if self.guest_shut & SHUTDOWN_SEND != 0 || self.credit.receive(len).is_err() {
            return self.violate();
        }
        match self.host.write(payload) {
            Ok(freed) => self.forward(freed),
            Err(_) => return self.violate(),
        }
        self.advance(now);
    }

    fn take_shutdown(&mut self, flags: u32, now: Instant) {
        self.guest_shut |= flags & SHUTDOWN_BOTH;
        if self.guest_shut & SHUTDOWN_RCV != 0 {
            self.host_readable = false;
            self.host.shut_read();
        }
        self.advance(now);
    }

    fn flush(&mut self) {
        let freed = self.host.flush();
        self.forward(freed);
    }

    /// `len` bytes of the guest's credit are free again.
    fn forward(&mut self, len: usize) {
        self.credit.forward(u32::try_from(len).unwrap_or(u32::MAX));
        if self.credit.is_update_due() {
            self.pending.credit_update = true;
        }
    }

    /// Passes on the end of each direction, once everything before it went through.
    fn advance(&mut self, now: Instant) {
        if !matches!(self.state, State::Established) {
            return;
        }
        let guest_done = self.guest_shut & SHUTDOWN_SEND != 0;
        if guest_done && self.host.buffered() == 0 && !self.host.is_broken() && !self.host.is_write_shut() {
            self.host.shut_write();
        }
        if self.guest_shut == SHUTDOWN_BOTH {
            self.owes_reset = true;
            return self.detach();
        }
        let mut flags = 0;
        if self.host.is_broken() {
            flags |= SHUTDOWN_RCV;
        }
        if self.host_eof {
            flags |= SHUTDOWN_SEND;
        }
        let to_host_over = self.host.is_broken() || self.host.is_write_shut();
        if to_host_over && self.is_to_guest_over() {
            flags = SHUTDOWN_BOTH;
            self.state = State::Closing {
                deadline: after(now, self.close_timeout),
            };
        }
        if self.told | flags != self.told {
            self.told |= flags;
            self.pending.shutdown = true;
        }
    }

    /// The guest broke the rules.
    fn violate(&mut self) {
        self.owes_reset = true;
        self.detach();
    }

    /// Over for the guest: what it sent still goes to the host end.
    fn detach(&mut self) {
        self.pending = Pending::default();
        self.host_readable = false;
        if self.host.buffered() > 0 {
            self.host.shut_read();
            self.state = State::Draining;
        } else {
            self.state = State::Gone;
        }
    }
}
