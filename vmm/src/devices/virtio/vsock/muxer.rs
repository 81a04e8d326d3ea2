//! All connections of a guest, and the clients on their way to one.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::config::VsockLimits;
use super::connection::{Connection, Key};
use super::credit::Credit;
use super::guest_buf::GuestBuf;
use super::handshake::Handshake;
use super::header::{HOST_CID, Header, Op, TYPE_STREAM};
use super::hold::Hold;
use super::host_ports::HostPorts;
use super::host_stream::{self, HostStream};
use super::listener::Listener;
use super::packet::TxPacket;
use super::poller::{Interest, Poller, Readiness, Token};
use super::rx_queue::{Next, Reset, RxQueue};
use super::slots::Slots;
use super::timers::{TimerKey, Timers, after};

/// How long the listener rests after the host refused to accept, for want of descriptors for example.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// What a call into the muxer works with.
pub(super) struct Context<'a> {
    /// The event loop.
    pub(super) poller: &'a mut dyn Poller,
    /// The time of the event.
    pub(super) now: Instant,
}

/// The muxer. Events and packets go in; the event loop and [`Muxer::receive`] get what comes of them.
///
/// After the last call for an event, [`Muxer::settle`] brings the event loop up to date.
#[derive(Debug)]
pub(super) struct Muxer {
    guest_cid: u64,
    limits: VsockLimits,
    listener: Listener,
    listener_watched: bool,
    listener_rests: bool,
    /// Clients wait until the guest has opened a connection to the host: it must not be found as who it was.
    awaits_guest: bool,
    timers: Timers,
    handshakes: Slots<Handshake>,
    connections: Slots<Entry>,
    /// The connections that the guest can name.
    keys: HashMap<Key, u16>,
    rx: RxQueue,
    host_ports: HostPorts,
    /// The guest has opened a connection to the host since the driver started.
    guest_ready: bool,
    /// The connections whose wishes may differ from what the event loop knows.
    touched: Vec<u16>,
}

#[derive(Debug)]
struct Entry {
    connection: Connection,
    /// What the event loop watches the host end for; `None` when it does not.
    watched: Option<Interest>,
    touched: bool,
}

impl Muxer {
    /// A muxer without connections.
    ///
    /// # Errors
    /// When the host is out of descriptors or memory.
    pub(super) fn new(guest_cid: u32, limits: VsockLimits, listener: Listener) -> io::Result<Self> {
        Ok(Self {
            guest_cid: guest_cid.into(),
            listener,
            listener_watched: false,
            listener_rests: false,
            awaits_guest: false,
            timers: Timers::new()?,
            handshakes: Slots::new(limits.max_handshakes),
            connections: Slots::new(limits.max_connections),
            keys: HashMap::new(),
            rx: RxQueue::new(limits.max_connections),
            host_ports: HostPorts::new(),
            guest_ready: false,
            touched: Vec::new(),
            limits,
        })
    }

    /// Starts to watch listener and timer.
    ///
    /// # Errors
    /// What the event loop says.
    pub(super) fn register(&mut self, poller: &mut dyn Poller) -> io::Result<()> {
        poller.add(self.timers.as_fd(), Token::Timer, Interest::READABLE)?;
        poller.add(self.listener.as_fd(), Token::Listener, Interest::READABLE)?;
        self.listener_watched = true;
        Ok(())
    }

    /// Leaves clients in the listener's backlog until the guest has opened a connection to the host.
    pub(super) fn hold_clients_until_guest_connects(&mut self) {
        self.awaits_guest = true;
    }

    /// Whether a packet from the guest can be taken: an answer to it has room.
    pub(super) fn can_transmit(&self) -> bool {
        self.rx.can_answer()
    }

    /// Whether there may be a packet for the guest.
    pub(super) fn has_rx(&self) -> bool {
        !self.rx.is_empty()
    }

    /// An event of the event loop.
    pub(super) fn on_event(&mut self, token: Token, readiness: Readiness, cx: &mut Context<'_>) {
        match token {
            Token::Listener => self.accept_clients(cx),
            Token::Timer => self.on_timer(cx),
            Token::Handshake(slot) => self.advance_handshake(slot, cx),
            Token::Connection(slot) => {
                self.with_connection(slot, cx, |connection, now| connection.on_readiness(readiness, now));
            }
            Token::Lifecycle | Token::Kick(_) => {}
        }
    }

    /// A packet from the guest.
    pub(super) fn transmit(&mut self, mut packet: TxPacket<'_>, cx: &mut Context<'_>) {
        let header = packet.header;
        let op = Op::from_number(header.op);
        if header.src_cid != self.guest_cid {
            return;
        }
        let key = Key {
            host_port: header.dst_port,
            guest_port: header.src_port,
        };
        let is_ours = header.dst_cid == HOST_CID && header.kind == TYPE_STREAM;
        if is_ours && let Some(&slot) = self.keys.get(&key) {
            self.with_connection(slot, cx, |connection, now| {
                connection.on_packet(op, &header, packet.payload.as_mut(), now);
            });
            return;
        }
        match op {
            Some(Op::Request) if is_ours => self.connect_out(key, &header, cx),
            Some(Op::Rst) => {}
            _ => self.refuse(&header),
        }
    }

    /// The next packet for the guest, its payload in `payload`.
    pub(super) fn receive(&mut self, payload: &mut GuestBuf<'_>, cx: &mut Context<'_>) -> Option<Header> {
        loop {
            match self.rx.pop()? {
                Next::Reset(reset) => return Some(self.reset_header(reset)),
                Next::Connection(slot) => {
                    let header = self.with_connection(slot, cx, |connection, now| {
                        if connection.has_rx() {
                            connection.next_packet(payload, now)
                        } else {
                            None
                        }
                    });
                    if let Some(Some(header)) = header {
                        return Some(header);
                    }
                }
            }
        }
    }

    /// The driver is gone, and with it all connections. Clients that wait for the guest go on waiting.
    pub(super) fn driver_is_gone(&mut self, cx: &mut Context<'_>) {
        self.guest_ready = false;
        for slot in self.connections.indices(|_| true) {
            self.with_connection(slot, cx, |connection, _| connection.driver_is_gone());
        }
        self.rx.clear();
        for slot in self.connections.indices(|_| true) {
            self.with_connection(slot, cx, |_, _| {});
        }
    }

    /// Sets when the queues want an event, whatever else happens.
    pub(super) fn set_queue_deadline(&mut self, deadline: Option<Instant>) {
        self.timers.set(TimerKey::Queues, deadline);
    }

    /// Tells the event loop what changed since it was last told.
    pub(super) fn settle(&mut self, cx: &mut Context<'_>) {
        while let Some(slot) = self.touched.pop() {
            if let Some(entry) = self.connections.get_mut(slot) {
                entry.touched = false;
                self.timers.set(TimerKey::Connection(slot), entry.connection.deadline());
                if let Err(error) = entry.watch(slot, cx.poller) {
                    tracing::debug!("cannot watch a vsock connection: {error}");
                    let key = entry.connection.key();
                    if !entry.connection.is_detached() {
                        self.rx.push_reset(Reset::of(key));
                    }
                    self.remove_connection(slot, cx);
                }
            }
        }
        self.watch_listener(cx);
        if let Err(error) = self.timers.arm(cx.now) {
            tracing::debug!("cannot set the vsock timer: {error}");
        }
    }

    fn watch_listener(&mut self, cx: &mut Context<'_>) {
        let wanted = !self.awaits_guest && !self.listener_rests && !self.handshakes.is_full();
        if wanted != self.listener_watched {
            let interest = if wanted {
                Interest::READABLE
            } else {
                Interest::default()
            };
            match cx.poller.modify(self.listener.as_fd(), Token::Listener, interest) {
                Ok(()) => self.listener_watched = wanted,
                Err(error) => tracing::debug!("cannot watch the vsock listener: {error}"),
            }
        }
    }

    fn on_timer(&mut self, cx: &mut Context<'_>) {
        self.timers.acknowledge();
        while let Some(key) = self.timers.pop_due(cx.now) {
            match key {
                TimerKey::Listener => self.listener_rests = false,
                // Every event leads to them.
                TimerKey::Queues => {}
                TimerKey::Handshake(slot) => self.drop_handshake(slot, cx),
                TimerKey::Connection(slot) => {
                    self.with_connection(slot, cx, Connection::on_deadline);
                }
            }
        }
    }

    fn accept_clients(&mut self, cx: &mut Context<'_>) {
        while !self.awaits_guest && !self.handshakes.is_full() {
            let stream = match self.listener.accept() {
                Ok(stream) => stream,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => break,
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => continue,
                    _ => {
                        tracing::debug!("cannot accept a vsock client: {error}");
                        self.listener_rests = true;
                        self.timers.set(TimerKey::Listener, Some(after(cx.now, ACCEPT_REST)));
                        break;
                    }
                },
            };
            let Ok(slot) = self.handshakes.insert(Handshake::new(stream)) else {
                break;
            };
            let Some(handshake) = self.handshakes.get_mut(slot) else {
                break;
            };
            let fd = handshake.stream().as_fd();
            if let Err(error) = cx.poller.add(fd, Token::Handshake(slot), Interest::READABLE) {
                tracing::debug!("cannot watch a vsock client: {error}");
                self.handshakes.remove(slot);
                continue;
            }
            let deadline = after(cx.now, self.limits.handshake_timeout);
            self.timers.set(TimerKey::Handshake(slot), Some(deadline));
            self.advance_handshake(slot, cx);
        }
    }

    fn advance_handshake(&mut self, slot: u16, cx: &mut Context<'_>) {
        let Some(handshake) = self.handshakes.get_mut(slot) else {
            return;
        };
        match handshake.read() {
            Ok(None) => {}
            Ok(Some(_)) if self.connections.is_full() => {
                tracing::debug!(
                    "refused a vsock client: {} connections are open",
                    self.connections.len()
                );
                self.drop_handshake(slot, cx);
            }
            Ok(Some(port)) => self.connect_in(slot, port, cx),
            Err(error) => {
                tracing::debug!("refused a vsock client: {error}");
                self.drop_handshake(slot, cx);
            }
        }
    }

    fn drop_handshake(&mut self, slot: u16, cx: &mut Context<'_>) {
        self.timers.set(TimerKey::Handshake(slot), None);
        if let Some(handshake) = self.handshakes.remove(slot) {
            cx.poller.remove(handshake.stream().as_fd());
            host_stream::end(handshake.stream());
        }
    }

    /// A client wants to connect to the guest.
    fn connect_in(&mut self, handshake_slot: u16, guest_port: u32, cx: &mut Context<'_>) {
        self.timers.set(TimerKey::Handshake(handshake_slot), None);
        let Some(handshake) = self.handshakes.remove(handshake_slot) else {
            return;
        };
        let keys = &self.keys;
        let host_port = self
            .host_ports
            .allocate(|host_port| keys.contains_key(&Key { host_port, guest_port }));
        let key = Key { host_port, guest_port };
        let connection = Connection::from_client(
            key,
            self.guest_cid,
            self.host_stream(handshake.into_stream()),
            Credit::new(self.limits.buffer_size),
            self.limits.close_timeout,
            Hold::new(&self.limits.hold, self.guest_ready, cx.now),
        );
        // The event loop watches the socket already, as a handshake.
        self.insert_connection(connection, Some(Interest::READABLE), cx);
    }

    /// The guest wants to connect to the host.
    fn connect_out(&mut self, key: Key, request: &Header, cx: &mut Context<'_>) {
        self.guest_is_ready(cx);
        if self.connections.is_full() {
            tracing::debug!("refused the guest port {}: too many connections", key.host_port);
            return self.refuse(request);
        }
        let stream = match self.listener.connect_out(key.host_port) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!("refused the guest port {}: {error}", key.host_port);
                return self.refuse(request);
            }
        };
        let mut credit = Credit::new(self.limits.buffer_size);
        credit.update_peer(request.buf_alloc, request.fwd_cnt);
        let host = self.host_stream(stream);
        let connection = Connection::from_guest(key, self.guest_cid, host, credit, self.limits.close_timeout);
        if !self.insert_connection(connection, None, cx) {
            self.refuse(request);
        }
    }

    /// The guest has come up: clients that wait for it are tried again at once.
    fn guest_is_ready(&mut self, cx: &mut Context<'_>) {
        self.guest_ready = true;
        self.awaits_guest = false;
        for slot in self.connections.indices(|entry| entry.connection.is_waiting()) {
            self.with_connection(slot, cx, Connection::guest_is_ready);
        }
    }

    fn host_stream(&self, stream: std::os::unix::net::UnixStream) -> HostStream {
        HostStream::new(stream, self.limits.buffer_size.try_into().unwrap_or(usize::MAX))
    }

    /// Takes in a connection whose socket is watched for `watched`; false when the event loop cannot.
    fn insert_connection(&mut self, connection: Connection, watched: Option<Interest>, cx: &mut Context<'_>) -> bool {
        let key = connection.key();
        let entry = Entry {
            connection,
            watched,
            touched: false,
        };
        let slot = match self.connections.insert(entry) {
            Ok(slot) => slot,
            Err(entry) => {
                // Callers look for room first.
                entry.unwatch(cx.poller);
                return false;
            }
        };
        self.keys.insert(key, slot);
        if let Some(entry) = self.connections.get_mut(slot)
            && let Err(error) = entry.watch_as(slot, cx.poller)
        {
            tracing::debug!("cannot watch a vsock connection: {error}");
            self.remove_connection(slot, cx);
            return false;
        }
        self.with_connection(slot, cx, |_, _| {});
        true
    }

    /// Calls `f` on a connection and sees to what it wants then.
    fn with_connection<R>(
        &mut self,
        slot: u16,
        cx: &mut Context<'_>,
        f: impl FnOnce(&mut Connection, Instant) -> R,
    ) -> Option<R> {
        let entry = self.connections.get_mut(slot)?;
        let connection = &mut entry.connection;
        let result = f(connection, cx.now);
        let key = connection.key();
        if connection.take_reset() {
            self.rx.push_reset(Reset::of(key));
        }
        if connection.has_rx() {
            self.rx.push_connection(slot);
        }
        if !std::mem::replace(&mut entry.touched, true) {
            self.touched.push(slot);
        }
        if connection.is_detached() && self.keys.get(&key) == Some(&slot) {
            self.keys.remove(&key);
        }
        if connection.is_gone() {
            self.remove_connection(slot, cx);
        }
        Some(result)
    }

    fn remove_connection(&mut self, slot: u16, cx: &mut Context<'_>) {
        self.timers.set(TimerKey::Connection(slot), None);
        if let Some(entry) = self.connections.remove(slot) {
            entry.unwatch(cx.poller);
            let key = entry.connection.key();
            if self.keys.get(&key) == Some(&slot) {
                self.keys.remove(&key);
            }
        }
    }

    fn refuse(&mut self, header: &Header) {
        self.rx.push_reset(Reset {
            src_cid: header.dst_cid,
            src_port: header.dst_port,
            dst_port: header.src_port,
            kind: header.kind,
        });
    }

    fn reset_header(&self, reset: Reset) -> Header {
        Header {
            src_cid: reset.src_cid,
            dst_cid: self.guest_cid,
            src_port: reset.src_port,
            dst_port: reset.dst_port,
            len: 0,
            kind: reset.kind,
            op: Op::Rst.number(),
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }
}

/// How much the muxer holds.
#[cfg(test)]
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) connections: usize,
    pub(super) named: usize,
    pub(super) handshakes: usize,
    pub(super) queued_resets: usize,
    pub(super) queued_connections: usize,
    pub(super) deadlines: usize,
}

#[cfg(test)]
impl Muxer {
    pub(super) fn sizes(&self) -> Sizes {
        let (queued_resets, queued_connections) = self.rx.lens();
        Sizes {
            connections: self.connections.len(),
            named: self.keys.len(),
            handshakes: self.handshakes.len(),
            queued_resets,
            queued_connections,
            deadlines: self.timers.len(),
        }
    }
}

impl Entry {
    /// Brings the event loop up to date.
    fn watch(&mut self, slot: u16, poller: &mut dyn Poller) -> io::Result<()> {
        let wanted = self.connection.interest();
        let fd = self.connection.host().as_fd();
        let token = Token::Connection(slot);
        match (self.watched, wanted) {
            (None, None) => {}
            (Some(old), Some(new)) if old == new => {}
            (None, Some(new)) => poller.add(fd, token, new)?,
            (Some(_), Some(new)) => poller.modify(fd, token, new)?,
            (Some(_), None) => poller.remove(fd),
        }
        self.watched = wanted;
        Ok(())
    }

    /// Brings the event loop up to date, whose events may still go to another token.
    fn watch_as(&mut self, slot: u16, poller: &mut dyn Poller) -> io::Result<()> {
        if let (Some(_), Some(new)) = (self.watched, self.connection.interest()) {
            poller.modify(self.connection.host().as_fd(), Token::Connection(slot), new)?;
            self.watched = Some(new);
            return Ok(());
        }
        self.watch(slot, poller)
    }

    fn unwatch(&self, poller: &mut dyn Poller) {
        if self.watched.is_some() {
            poller.remove(self.connection.host().as_fd());
        }
    }
}
