//! A device, its driver and its event loop on one thread, so that tests decide what happens when.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use event_manager::EventSet;
use tempfile::TempDir;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent};

use super::super::config::{VsockConfig, VsockLimits};
use super::super::device::Vsock;
use super::super::header::{Header, Op};
use super::super::muxer::{Context, Sizes};
use super::super::poller::{Interest, Poller, Readiness, Token};
use super::driver::Driver;
use crate::devices::virtio::device::VirtioDevice;

pub(super) const GUEST_CID: u32 = 7;
/// The room that the tests' guest grants on each connection.
pub(super) const GUEST_BUF: u32 = 256 * 1024;
/// When a test that waits for an event has failed.
const PATIENCE_MS: i32 = 20_000;
/// Events in a row without a pause that no test causes: the device spins.
const SPIN: usize = 100_000;

/// A real level-triggered event loop.
pub(super) struct EpollPoller {
    epoll: Epoll,
    watched: usize,
}

impl EpollPoller {
    fn ctl(&self, op: ControlOperation, fd: BorrowedFd<'_>, token: Token, interest: Interest) -> io::Result<()> {
        let mut set = EventSet::empty();
        set.set(EventSet::IN, interest.readable);
        set.set(EventSet::OUT, interest.writable);
        self.epoll
            .ctl(op, fd.as_raw_fd(), EpollEvent::new(set, token.to_data().into()))
    }

    /// One event at a time: so none is waiting to be handed out when its descriptor is removed.
    fn wait(&self, timeout_ms: i32) -> Option<(Token, Readiness)> {
        let mut events = [EpollEvent::default()];
        loop {
            match self.epoll.wait(timeout_ms, &mut events) {
                Ok(0) => return None,
                Ok(_) => {
                    let token = Token::from_data(u32::try_from(events[0].data()).unwrap()).unwrap();
                    return Some((token, Readiness::from_event_set(events[0].event_set())));
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::Interrupted),
            }
        }
    }
}

impl Poller for EpollPoller {
    fn add(&mut self, fd: BorrowedFd<'_>, token: Token, interest: Interest) -> io::Result<()> {
        self.watched += 1;
        self.ctl(ControlOperation::Add, fd, token, interest)
    }

    fn modify(&mut self, fd: BorrowedFd<'_>, token: Token, interest: Interest) -> io::Result<()> {
        self.ctl(ControlOperation::Modify, fd, token, interest)
    }

    fn remove(&mut self, fd: BorrowedFd<'_>) {
        self.watched -= 1;
        self.ctl(ControlOperation::Delete, fd, Token::Lifecycle, Interest::default())
            .unwrap();
    }
}

pub(super) struct Vm {
    pub(super) device: Vsock,
    pub(super) driver: Driver,
    poller: EpollPoller,
    /// How far the device's clock is ahead of the real one.
    ahead: Duration,
    /// Where the real clock stands still for the device.
    held: Option<Instant>,
    /// Packets that the guest has received and the test has not looked at.
    pub(super) received: VecDeque<(Header, Vec<u8>)>,
    /// Whether the guest takes packets and gives their buffers back.
    pub(super) guest_receives: bool,
    pub(super) dir: TempDir,
}

impl Vm {
    /// A device whose driver has not started it.
    pub(super) fn booting(limits: VsockLimits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = VsockConfig::new(GUEST_CID, dir.path().join("v.sock"));
        config.limits = limits;
        let mut vm = Self {
            device: Vsock::new(config).unwrap(),
            driver: Driver::new(),
            poller: EpollPoller {
                epoll: Epoll::new().unwrap(),
                watched: 0,
            },
            ahead: Duration::ZERO,
            held: None,
            received: VecDeque::new(),
            guest_receives: true,
            dir,
        };
        vm.device.register(&mut vm.poller).unwrap();
        vm
    }

    /// A device with a driver that has given it all receive buffers.
    pub(super) fn with_limits(limits: VsockLimits) -> Self {
        let mut vm = Self::booting(limits);
        vm.driver.post_all_rx();
        vm.start_driver(true);
        vm
    }

    pub(super) fn new() -> Self {
        Self::with_limits(VsockLimits::default())
    }

    pub(super) fn start_driver(&mut self, event_idx: bool) {
        self.device.activate(self.driver.activation(event_idx)).unwrap();
        self.settle();
    }

    /// The driver resets the device, and a new one starts it with fresh queues.
    pub(super) fn restart_driver(&mut self) {
        self.device.reset();
        self.received.clear();
        self.driver = Driver::new();
        self.driver.post_all_rx();
        self.start_driver(true);
    }

    fn step(&mut self, timeout_ms: i32) -> bool {
        let Some((token, readiness)) = self.poller.wait(timeout_ms) else {
            return false;
        };
        self.dispatch(token, readiness);
        true
    }

    fn dispatch(&mut self, token: Token, readiness: Readiness) {
        let mut context = Context {
            poller: &mut self.poller,
            now: self.held.unwrap_or_else(Instant::now) + self.ahead,
        };
        self.device.on_event(token, readiness, &mut context);
        if self.guest_receives {
            while let Some(packet) = self.driver.receive(true) {
                self.received.push_back(packet);
            }
        }
    }

    /// Lets the device run until it has nothing to do.
    pub(super) fn settle(&mut self) {
        let events = (0..SPIN).take_while(|_| self.step(0)).count();
        assert!(events < SPIN, "the device spins");
    }

    /// Lets the device run until `condition` gives something, and waits for the events that takes.
    pub(super) fn run_until<T>(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> Option<T>) -> T {
        loop {
            if let Some(result) = condition(self) {
                return result;
            }
            assert!(self.step(PATIENCE_MS), "nothing happens any more, but not: {what}");
        }
    }

    /// From now on time passes only by [`Self::advance`].
    pub(super) fn hold_clock(&mut self) {
        self.held = Some(Instant::now());
    }

    /// Time passes, after everything before was handled.
    pub(super) fn advance(&mut self, duration: Duration) {
        self.settle();
        self.ahead += duration;
        self.dispatch(Token::Timer, Readiness::default());
        self.settle();
    }

    /// How many descriptors the device watches.
    pub(super) fn watched(&self) -> usize {
        self.poller.watched
    }

    /// The device holds no more than its limits allow.
    pub(super) fn assert_bounded(&self, max_connections: usize) {
        let sizes = self.device.sizes();
        assert!(sizes.connections <= max_connections, "{sizes:?}");
        assert!(sizes.named <= sizes.connections, "{sizes:?}");
        assert!(sizes.queued_connections <= max_connections, "{sizes:?}");
        assert!(sizes.queued_resets <= 256 + max_connections, "{sizes:?}");
        assert!(sizes.deadlines <= max_connections + 3 + 1, "{sizes:?}");
        // Three queues, the driver's wake-up, the listener and the timer.
        assert!(self.watched() <= 6 + sizes.connections + sizes.handshakes, "{sizes:?}");
    }

    /// The device holds nothing.
    pub(super) fn assert_empty(&self) {
        assert_eq!(self.device.sizes(), Sizes::default());
        assert_eq!(self.watched(), 6);
    }

    /// The next packet that the guest receives.
    pub(super) fn next(&mut self) -> (Header, Vec<u8>) {
        self.run_until("a packet for the guest", |vm| vm.received.pop_front())
    }

    /// The next packet that the guest receives, which must be of that kind and without payload.
    pub(super) fn expect(&mut self, op: Op) -> Header {
        let (header, payload) = self.next();
        assert_eq!(Op::from_number(header.op), Some(op), "{header:?}");
        assert!(payload.is_empty());
        header
    }

    /// The device has nothing to say to the guest.
    pub(super) fn expect_silence(&mut self) {
        self.settle();
        assert_eq!(self.received, []);
    }

    /// The guest sends a packet, and the device handles it.
    pub(super) fn send(&mut self, header: &Header, payload: &[u8]) {
        self.driver.send(header, payload);
        self.settle();
    }

    pub(super) fn path(&self) -> PathBuf {
        self.dir.path().join("v.sock")
    }

    /// A client that has connected and sent `line`; the device has read it.
    pub(super) fn client(&mut self, line: &[u8]) -> UnixStream {
        let mut client = UnixStream::connect(self.path()).unwrap();
        client.set_nonblocking(true).unwrap();
        client.write_all(line).unwrap();
        self.settle();
        client
    }

    /// A program of the host that waits for connections of the guest to `port`.
    pub(super) fn host_listener(&self, port: u32) -> UnixListener {
        let mut path = self.path().into_os_string();
        path.push(format!("_{port}"));
        UnixListener::bind(path).unwrap()
    }

    /// A connection that a client opened to the guest's `port`.
    pub(super) fn connect_in(&mut self, port: u32) -> (UnixStream, Peer) {
        let mut client = self.client(format!("CONNECT {port}\n").as_bytes());
        let request = self.expect(Op::Request);
        assert_eq!(request.dst_port, port);
        let mut peer = Peer::new(request.src_port, port);
        let response = peer.header(Op::Response);
        self.send(&response, &[]);
        assert_eq!(
            read_available(&mut client),
            format!("OK {}\n", request.src_port).as_bytes()
        );
        (client, peer)
    }

    /// A connection that the guest opened to the host's `port`.
    pub(super) fn connect_out(&mut self, port: u32) -> (UnixStream, Peer) {
        let listener = self.host_listener(port);
        let mut peer = Peer::new(port, 1024);
        let request = peer.header(Op::Request);
        self.send(&request, &[]);
        let response = self.expect(Op::Response);
        peer.update(&response);
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        (stream, peer)
    }
}

/// What the guest knows of a connection.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) host_port: u32,
    pub(super) guest_port: u32,
    /// Bytes that the guest's program took.
    pub(super) fwd_cnt: u32,
    pub(super) buf_alloc: u32,
    /// Bytes sent to the host.
    sent: u32,
    host_buf_alloc: u32,
    host_fwd_cnt: u32,
}

impl Peer {
    pub(super) fn new(host_port: u32, guest_port: u32) -> Self {
        Self {
            host_port,
            guest_port,
            fwd_cnt: 0,
            buf_alloc: GUEST_BUF,
            sent: 0,
            host_buf_alloc: GUEST_BUF,
            host_fwd_cnt: 0,
        }
    }

    pub(super) fn header(&mut self, op: Op) -> Header {
        Header {
            src_cid: GUEST_CID.into(),
            dst_cid: 2,
            src_port: self.guest_port,
            dst_port: self.host_port,
            len: 0,
            kind: 1,
            op: op.number(),
            flags: 0,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
        }
    }

    pub(super) fn shutdown(&mut self, flags: u32) -> Header {
        Header {
            flags,
            ..self.header(Op::Shutdown)
        }
    }

    /// A data packet with `len` bytes.
    pub(super) fn data(&mut self, len: usize) -> Header {
        let len = u32::try_from(len).unwrap();
        self.sent = self.sent.wrapping_add(len);
        Header {
            len,
            ..self.header(Op::Rw)
        }
    }

    /// Takes the credit of a packet from the host.
    pub(super) fn update(&mut self, header: &Header) {
        self.host_buf_alloc = header.buf_alloc;
        self.host_fwd_cnt = header.fwd_cnt;
    }

    /// What the guest may send.
    pub(super) fn credit(&self) -> u32 {
        self.host_buf_alloc - self.sent.wrapping_sub(self.host_fwd_cnt)
    }
}

/// Everything that a non-blocking stream has now.
pub(super) fn read_available(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
    }
    bytes
}

/// Whether a non-blocking stream is at its end.
pub(super) fn is_at_eof(stream: &mut UnixStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(n) => n == 0,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            false
        }
    }
}

/// Bytes that repeat late, so that a lost or doubled piece shows.
pub(super) fn pattern(len: usize, seed: u8) -> Vec<u8> {
    let mut state = u32::from(seed) | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        })
        .collect()
}
