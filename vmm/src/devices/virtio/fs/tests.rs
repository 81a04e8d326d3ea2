//! A driver with real queues in real guest memory, the device on an event manager, and a server that is the test.

use std::os::fd::OwnedFd;
use std::sync::Mutex;

use event_manager::{EventManager, SubscriberOps as _};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use virtio_bindings::virtio_ring::VRING_DESC_F_WRITE;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::devices::register_page::RegisterPage;

const REQUESTS: u64 = 0x10_0000;
const ANSWERS: u64 = 0x20_0000;
/// Where the driver has each request and each answer, one behind the other.
const STRIDE: u64 = 0x1000;

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const SETATTR: u32 = 4;
const WRITE: u32 = 16;
const SETXATTR: u32 = 21;
const IOCTL: u32 = 39;

struct Bench<'a> {
    memory: &'a GuestMemory,
    queue: MockSplitQueue<'a, GuestMemory>,
    manager: EventManager<Arc<Mutex<Fs>>>,
    kick: EventFd,
    server: OwnedFd,
    sent: u16,
}

impl<'a> Bench<'a> {
    fn new(memory: &'a GuestMemory) -> Self {
        let (ours, server) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None).unwrap();
        let config = FileSystemConfig {
            tag: "files".into(),
            socket: Arc::new(ours),
        };
        let mut device = Fs::new(&config).unwrap();
        let urgent = MockSplitQueue::new(memory, 16);
        let queue = MockSplitQueue::create(memory, GuestAddress(0x1000), 64);
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        let active = |queue: &MockSplitQueue<'_, GuestMemory>, kick: EventFd| ActiveQueue {
            queue: queue.create_queue().unwrap(),
            kick,
        };
        device
            .activate(Activation {
                memory: memory.clone(),
                interrupt: Arc::new(Interrupt::new(RegisterPage::new().unwrap()).unwrap()),
                queues: vec![
                    active(&urgent, EventFd::new(EFD_NONBLOCK).unwrap()),
                    active(&queue, kick.try_clone().unwrap()),
                ],
                features: 0,
            })
            .unwrap();
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(Arc::new(Mutex::new(device)));
        Self {
            memory,
            queue,
            manager,
            kick,
            server,
            sent: 0,
        }
    }

    /// Gives the device a request of `bytes` with room for an answer of `room` bytes.
    fn request(&mut self, bytes: &[u8], room: u32) {
        let index = u64::from(self.sent);
        let (from, to) = (REQUESTS + index * STRIDE, ANSWERS + index * STRIDE);
        self.memory.write_slice(bytes, GuestAddress(from)).unwrap();
        let write = u16::try_from(VRING_DESC_F_WRITE).unwrap();
        let mut chain = vec![RawDescriptor::from(Descriptor::new(
            from,
            u32::try_from(bytes.len()).unwrap(),
            0,
            0,
        ))];
        if room > 0 {
            chain.push(RawDescriptor::from(Descriptor::new(to, room, write, 0)));
        }
        // The chain's descriptors follow those of the chains before it.
        let first = self.sent * 2;
        for (place, descriptor) in (first..).zip(&chain) {
            let is_last = place + 1 == first + u16::try_from(chain.len()).unwrap();
            let descriptor = Descriptor::from(*descriptor);
            let flags = descriptor.flags() | if is_last { 0 } else { 1 };
            let descriptor = Descriptor::new(descriptor.addr().0, descriptor.len(), flags, place + 1);
            self.queue.desc_table().store(place, descriptor.into()).unwrap();
        }
        let ring = self.queue.avail().ring().ref_at(usize::from(self.sent)).unwrap();
        ring.store(first.to_le());
        self.sent += 1;
        self.queue.avail().idx().store(self.sent.to_le());
        self.kick.write(1).unwrap();
        self.turn();
    }

    /// Lets the device do what there is to do.
    fn turn(&mut self) {
        while self.manager.run_with_timeout(0).unwrap() > 0 {}
    }

    /// What the server is asked next.
    fn asked(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 0x4000];
        let (length, _) = recv(&self.server, &mut *buffer, RecvFlags::empty()).ok()?;
        buffer.truncate(length);
        Some(buffer)
    }

    fn say(&mut self, message: &[u8]) {
        send(&self.server, message, SendFlags::empty()).unwrap();
        self.turn();
    }

    /// How many requests the driver has back.
    fn used(&self) -> u16 {
        u16::from_le(self.queue.used().idx().load())
    }

    /// What the driver has as the answer to its request `index`: as many bytes as the device said, and that number.
    fn answer(&self, index: u16) -> Vec<u8> {
        let used = self.queue.used().ring().ref_at(usize::from(index)).unwrap().load();
        let mut answer = vec![0; usize::try_from(used.len()).unwrap()];
        let place = GuestAddress(ANSWERS + u64::from(index) * STRIDE);
        self.memory.read_slice(&mut answer, place).unwrap();
        answer
    }
}

fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), 0x40_0000)]).unwrap()
}

fn request(opcode: u32, unique: u64, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(40 + body.len()).unwrap();
    let mut request = [length.to_le_bytes(), opcode.to_le_bytes()].concat();
    request.extend(unique.to_le_bytes());
    request.resize(40, 0);
    request.extend(body);
    request
}

fn reply(error: i32, unique: u64, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + body.len()).unwrap();
    let mut reply = [length.to_le_bytes(), error.to_le_bytes()].concat();
    reply.extend(unique.to_le_bytes());
    reply.extend(body);
    reply
}

#[test]
fn requests_and_answers_pass_one_after_the_other() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    let requests = [request(LOOKUP, 7, b"a name\0"), request(LOOKUP, 8, b"another\0")];
    bench.request(&requests[0], 100);
    bench.request(&requests[1], 100);
    assert_eq!(bench.asked().unwrap(), requests[0]);
    assert!(bench.asked().is_none(), "one request is under way at a time");
    let reply_of_7 = reply(0, 7, b"what it is");
    bench.say(&reply_of_7);
    assert_eq!((bench.used(), bench.answer(0)), (1, reply_of_7));
    assert_eq!(bench.asked().unwrap(), requests[1]);
    bench.say(&reply(-2, 8, b""));
    assert_eq!((bench.used(), bench.answer(1)), (2, reply(-2, 8, b"")));
}

#[test]
fn what_has_no_answer_is_not_waited_for_and_not_lost() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    // More than the socket holds.
    let forgets: Vec<_> = (0..24).map(|unique| request(FORGET, unique, &[0; 8])).collect();
    for forget in &forgets {
        bench.request(forget, 0);
    }
    let mut asked = Vec::new();
    while let Some(request) = bench.asked() {
        asked.push(request);
        bench.turn();
    }
    assert_eq!(asked, forgets);
    assert_eq!(bench.used(), 24);
}

#[test]
fn what_is_no_request_is_given_back_and_not_passed_on() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    let mut lying = request(LOOKUP, 1, b"name\0");
    lying[0] += 1;
    bench.request(&lying, 100);
    bench.request(&request(LOOKUP, 2, b"")[..39], 100);
    assert!(bench.asked().is_none());
    assert_eq!((bench.used(), bench.answer(0), bench.answer(1)), (2, vec![], vec![]));
    bench.request(&request(LOOKUP, 3, b"name\0"), 100);
    assert_eq!(bench.asked().unwrap(), request(LOOKUP, 3, b"name\0"));
}

#[test]
fn what_lies_about_its_parts_is_no_request() {
    let body = |size: usize, words: &[(usize, u32)]| {
        let mut body = vec![0; size];
        for (offset, word) in words {
            body[*offset..*offset + 4].copy_from_slice(&word.to_le_bytes());
        }
        body
    };
    let (second, earliest) = (1_000_000_000, 1 << 31);
    let cases = [
        (true, request(WRITE, 1, &body(43, &[(16, 3)]))),
        (false, request(WRITE, 1, &body(43, &[(16, 4)]))),
        (false, request(WRITE, 1, &body(40, &[(16, u32::MAX)]))),
        (true, request(WRITE, 1, &body(39, &[(16, 3)]))),
        (true, request(SETXATTR, 1, b"\x02\0\0\0\0\0\0\0name\0\0x")),
        (false, request(SETXATTR, 1, b"\x01\0\0\0\0\0\0\0name\0\0x")),
        (true, request(SETXATTR, 1, b"\x01\0\0\0\0\0\0\0name")),
        (true, request(IOCTL, 1, &body(35, &[(24, 3)]))),
        (false, request(IOCTL, 1, &body(35, &[(24, 4)]))),
        (
            true,
            request(SETATTR, 1, &body(88, &[(56, second - 1), (36, earliest - 1)])),
        ),
        (false, request(SETATTR, 1, &body(88, &[(60, second)]))),
        (true, request(SETATTR, 1, &body(88, &[(52, earliest)]))),
        (false, request(SETATTR, 1, &body(88, &[(52, earliest), (64, 1)]))),
        (true, request(SETATTR, 1, &[])),
        (true, request(LOOKUP, 1, &body(88, &[(60, second)]))),
    ];
    for (is_true, request) in cases {
        assert_eq!(Request::new(request.clone()).is_some(), is_true, "{request:?}");
    }
}

#[test]
fn a_server_that_speaks_while_it_is_not_asked_is_not_heard_again() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    // More than the socket holds, so that the device waits for room.
    for unique in 0..24 {
        bench.request(&request(FORGET, unique, &[0; 8]), 0);
    }
    bench.say(&reply(-38, 0, b""));
    while bench.asked().is_some() {}
    bench.turn();
    bench.request(&request(LOOKUP, 24, b"name\0"), 100);
    assert_eq!(bench.answer(24), reply(-5, 24, b""));
}

#[test]
fn without_a_server_each_request_is_an_error() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    bench.request(&request(LOOKUP, 1, b"name\0"), 100);
    let (_, server) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::empty(), None).unwrap();
    bench.server = server;
    bench.turn();
    assert_eq!((bench.used(), bench.answer(0)), (1, reply(-5, 1, b"")));
    bench.request(&request(LOOKUP, 2, b"name\0"), 100);
    assert_eq!((bench.used(), bench.answer(1)), (2, reply(-5, 2, b"")));
}

#[test]
fn a_server_that_answers_something_else_is_not_heard_again() {
    for nonsense in [reply(0, 2, b""), b"short".to_vec(), {
        let mut lying = reply(0, 1, b"body");
        lying[0] += 1;
        lying
    }] {
        let memory = memory();
        let mut bench = Bench::new(&memory);
        bench.request(&request(LOOKUP, 1, b"name\0"), 100);
        bench.say(&nonsense);
        assert_eq!((bench.used(), bench.answer(0)), (1, reply(-5, 1, b"")));
        bench.request(&request(LOOKUP, 2, b"name\0"), 100);
        assert_eq!(bench.answer(1), reply(-5, 2, b""));
    }
}

#[test]
fn an_answer_fills_no_more_than_the_driver_gave_for_it() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    bench.request(&request(LOOKUP, 1, b"name\0"), 20);
    bench.say(&reply(0, 1, &[7; 100]));
    assert_eq!(bench.answer(0), reply(0, 1, &[7; 100])[..20]);
    let mut behind = [0];
    memory.read_slice(&mut behind, GuestAddress(ANSWERS + 20)).unwrap();
    assert_eq!(behind, [0]);
}

#[test]
fn a_tag_fits_its_field() {
    assert!(config_space("").is_none() && config_space("a\0b").is_none() && config_space(&"x".repeat(37)).is_none());
    let space = config_space(&"x".repeat(36)).unwrap();
    assert_eq!(
        (&space[..36], &space[36..]),
        ([b'x'; 36].as_slice(), [1, 0, 0, 0].as_slice())
    );
}
