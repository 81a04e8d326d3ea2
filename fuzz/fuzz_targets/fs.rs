//! A file system device between a driver, whose requests come in any pieces, and a server, which says anything, against a
//! model of what passes.
//!
//! What is a request reaches the server unchanged, one at a time. Its answer reaches the driver, as far as there is room.
//! When the server is gone or says what is no answer, each request is an input or output error from then on.
#![no_main]

use std::collections::VecDeque;

use libfuzzer_sys::fuzz_target;
use msb_fuzz::fuse::{self, BATCH_FORGET, FORGET, IN_HEADER, OUT_HEADER, Server};
use msb_fuzz::ring::{Descriptor, NEXT, Ring, WRITE};
use msb_fuzz::{Input, Machine};
use msb_vmm::devices::virtio::fs::{self, Fs};
use vm_memory::{Bytes, GuestAddress};

const QUEUES: usize = 2;
const RINGS: u64 = 0x1000;
const RING_SIZE: u16 = 64;
/// Chains of a queue at once, and descriptors of each.
const SLOTS: u16 = 8;
const PIECES: u16 = RING_SIZE / SLOTS;
/// Each chain's own memory: the beginning of its request, and the place for its answer.
const BUFFERS: u64 = 0x1_0000;
const BUFFER: u64 = 0x1000;
/// Zeros that any request may end with.
const ZEROS: u64 = 0x4_0000;
const MEMORY: usize = 1 << 19;

/// Bytes of the largest request.
const MAX_MESSAGE: usize = (128 << 10) + 8192;
const UNTOUCHED: u8 = 0xee;
const EIO: i32 = 5;

struct Request {
    queue: usize,
    slot: u16,
    bytes: Vec<u8>,
    room: usize,
}

/// What must come of it.
#[derive(Default)]
struct Model {
    waiting: [VecDeque<Request>; QUEUES],
    /// The request that the server is to answer, and who awaits that: nobody after a reset.
    awaited: Option<(u64, Option<Request>)>,
    is_gone: bool,
    passed: VecDeque<Vec<u8>>,
    used: [VecDeque<(Request, Vec<u8>)>; QUEUES],
}

impl Model {
    fn complete(&mut self, request: Request, answer: Vec<u8>) {
        self.used[request.queue].push_back((request, answer));
    }

    fn advance(&mut self) {
        while self.awaited.is_none() {
            let Some(request) = self.waiting.iter_mut().find_map(VecDeque::pop_front) else {
                return;
            };
            if !fs::is_request(&request.bytes) {
                self.complete(request, Vec::new());
                continue;
            }
            if !self.is_gone {
                self.passed.push_back(request.bytes.clone());
            }
            let unique = fuse::unique(&request.bytes);
            if [FORGET, BATCH_FORGET].contains(&fuse::opcode(&request.bytes)) {
                self.complete(request, Vec::new());
            } else if self.is_gone {
                self.complete(request, fuse::answer(unique, -EIO, &[]));
            } else {
                self.awaited = Some((unique, Some(request)));
            }
        }
    }

    /// The answer to what is awaited.
    fn answer(&mut self, answer: Vec<u8>) {
        if let Some((_, Some(request))) = self.awaited.take() {
            self.complete(request, answer);
        }
        self.advance();
    }

    fn lose(&mut self) {
        self.is_gone = true;
        let unique = self.awaited.as_ref().map_or(0, |(unique, _)| *unique);
        self.answer(fuse::answer(unique, -EIO, &[]));
    }

    fn reset(&mut self) {
        self.waiting = Default::default();
        self.used = Default::default();
        self.awaited = self.awaited.take().map(|(unique, _)| (unique, None));
    }
}

struct World {
    machine: Machine,
    rings: Vec<Ring>,
    free: [Vec<u16>; QUEUES],
    server: Server,
    model: Model,
}

impl World {
    fn new() -> Self {
        let (server, config) = Server::new();
        let mut machine = Machine::new(Machine::memory(MEMORY));
        machine.attach(Fs::new(&config).expect("a device"));
        let mut world = Self {
            machine,
            rings: Vec::new(),
            free: Default::default(),
            server,
            model: Model::default(),
        };
        world.start();
        world
    }

    /// The driver begins, once more: what it had made available is its own again.
    fn start(&mut self) {
        self.rings = (0..QUEUES as u64)
            .map(|queue| Ring::new(&self.machine.memory, RINGS + queue * 0x1000, RING_SIZE))
            .collect();
        self.machine.start(0, &self.rings, 0);
        self.free = std::array::from_fn(|_| (0..SLOTS).collect());
        self.model.reset();
        self.settle();
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 10 {
            0..4 => {
                let queue = input.below(QUEUES);
                let request = request(input);
                self.submit(input, queue, request);
                self.machine.kick(0, queue);
            }
            // Until the device waits for room in the socket; whatever the server says then.
            4 => {
                for unique in 0..u64::from(input.byte() % 9) {
                    let forget = fuse::request(FORGET, unique, 1, &vec![0; usize::from(input.byte()) * 500]);
                    self.submit(input, 0, forget);
                }
                self.machine.kick(0, 0);
                self.machine.settle();
                if input.byte() & 1 == 1 {
                    self.speak(input);
                }
            }
            5..8 => self.speak(input),
            8 if input.byte() & 3 == 0 => {
                self.server.go();
                if !self.model.is_gone {
                    self.model.lose();
                }
            }
            8 => self.machine.kick(0, input.below(QUEUES)),
            _ => self.start(),
        }
        self.settle();
        self.compare();
    }

    fn submit(&mut self, input: &mut Input<'_>, queue: usize, bytes: Vec<u8>) {
        let Some(slot) = self.free[queue].pop() else {
            return;
        };
        let memory = &self.machine.memory;
        let (from, to) = places(queue, slot);
        let own = bytes.len().min(BUFFER as usize);
        let room = usize::from(input.pick(&[0, 15, 16, 20, 144, 4096, u16::from(input.clone().byte())]));
        memory.write_slice(&bytes[..own], GuestAddress(from)).expect("a buffer");
        memory
            .write_slice(&[UNTOUCHED; BUFFER as usize], GuestAddress(to))
            .expect("a buffer");

        let mut chain = Vec::new();
        cut(input, &mut chain, from, own, 0);
        if bytes.len() > own {
            chain.push((ZEROS, bytes.len() - own, 0));
        }
        cut(input, &mut chain, to, room, WRITE);
        let first = slot * PIECES;
        for (index, (addr, len, flags)) in chain.iter().enumerate() {
            let is_last = index + 1 == chain.len();
            let descriptor = Descriptor {
                addr: *addr,
                len: *len as u32,
                flags: flags | if is_last { 0 } else { NEXT },
                next: first + index as u16 + 1,
            };
            self.rings[queue].describe(memory, first + index as u16, descriptor);
        }
        self.rings[queue].publish(memory, first);
        let request = Request {
            queue,
            slot,
            bytes,
            room,
        };
        self.model.waiting[queue].push_back(request);
        self.model.advance();
    }

    /// The server says something. Before that it hears what it was asked.
    fn speak(&mut self, input: &mut Input<'_>) {
        let kind = input.byte() % 12;
        let awaited = self.model.awaited.as_ref().map(|(unique, _)| *unique);
        let unique = awaited.unwrap_or_default();
        let length = usize::from(input.word()) * if kind == 0 { 2 } else { 1 };
        let fill = input.byte();
        let body = vec![fill; length.min(MAX_MESSAGE - OUT_HEADER)];
        let mut said = fuse::answer(unique, -i32::from(fill & 1), &body);
        match kind {
            7 => said = fuse::answer(!unique, 0, &body),
            8 => said[0] = said[0].wrapping_add(1),
            9 => said.truncate(usize::from(fill) % OUT_HEADER),
            10 => said = fuse::answer(unique, 0, &vec![fill; MAX_MESSAGE]),
            11 => said = input.take(length % 64).to_vec(),
            _ => {}
        }
        let is_answer = awaited.is_some() && kind < 7;
        if awaited.is_some() {
            self.settle();
        }
        self.server.say(&said);
        match (self.model.is_gone, is_answer) {
            (true, _) => {}
            (false, true) => self.model.answer(said),
            // By chance it may be right after all.
            (false, false) if awaited.is_some() && is_answer_to(&said, unique) => self.model.answer(said),
            (false, false) => self.model.lose(),
        }
    }

    /// The device does all that it can, while the server hears it.
    fn settle(&mut self) {
        loop {
            self.machine.settle();
            let Some(heard) = self.server.hear() else {
                return;
            };
            let passed = self.model.passed.pop_front();
            assert!(passed == Some(heard), "the server hears what the driver asked");
        }
    }

    fn compare(&mut self) {
        assert!(
            self.model.is_gone || self.model.passed.is_empty(),
            "the server hears all that the driver asked"
        );
        if self.model.is_gone {
            self.model.passed.clear();
        }
        let memory = &self.machine.memory;
        for (queue, ring) in self.rings.iter_mut().enumerate() {
            while let Some((head, written)) = ring.pop_used(memory) {
                let (request, answer) = self.model.used[queue]
                    .pop_front()
                    .expect("what is used was made available");
                assert_eq!(head, u32::from(request.slot * PIECES));
                let told = &answer[..answer.len().min(request.room)];
                assert_eq!(written as usize, told.len());
                let mut place = vec![0; BUFFER as usize];
                let (_, to) = places(queue, request.slot);
                memory.read_slice(&mut place, GuestAddress(to)).expect("a buffer");
                assert!(place.starts_with(told), "the driver gets the answer");
                assert!(place[told.len()..].iter().all(|byte| *byte == UNTOUCHED));
                self.free[queue].push(request.slot);
            }
            assert!(self.model.used[queue].is_empty(), "what is answered is used");
        }
    }
}

fn places(queue: usize, slot: u16) -> (u64, u64) {
    let number = queue as u64 * u64::from(SLOTS) + u64::from(slot);
    let from = BUFFERS + number * 2 * BUFFER;
    (from, from + BUFFER)
}

/// Lays `length` bytes from `at` on into up to three descriptors.
fn cut(input: &mut Input<'_>, chain: &mut Vec<(u64, usize, u16)>, at: u64, length: usize, flags: u16) {
    let (mut at, mut left) = (at, length);
    for _ in 0..2 {
        let piece = usize::from(input.byte()).min(left);
        if piece > 0 {
            chain.push((at, piece, flags));
            at += piece as u64;
            left -= piece;
        }
    }
    if left > 0 {
        chain.push((at, left, flags));
    }
}

/// What a driver sends: mostly a request.
fn request(input: &mut Input<'_>) -> Vec<u8> {
    let any = u32::from(input.byte());
    let opcode = input.pick(&[1, 3, 16, 21, 39, 4, FORGET, BATCH_FORGET, any]);
    let unique = u64::from(input.byte());
    let count = usize::from(input.byte());
    let mut body = input.take(count).to_vec();
    match input.byte() {
        // The longest that there are, and longer ones.
        0xf0.. => body.resize(MAX_MESSAGE - IN_HEADER - 8 + usize::from(input.byte() & 15), 0),
        0xe0.. => body.resize(body.len() + usize::from(input.word()), 0),
        _ => {}
    }
    let mut request = fuse::request(opcode, unique, 1, &body);
    match input.byte() {
        0xf0.. => request[0] ^= 1 << (input.byte() & 7),
        0xe0.. => request.truncate(usize::from(input.byte() % 64)),
        _ => {}
    }
    // No descriptor is empty.
    request.resize(request.len().max(1), 0);
    request
}

fn is_answer_to(said: &[u8], unique: u64) -> bool {
    (OUT_HEADER..=MAX_MESSAGE).contains(&said.len())
        && fuse::word(said, 0) as usize == said.len()
        && fuse::unique(said) == unique
}

fuzz_target!(|bytes: &[u8]| {
    let mut world = World::new();
    let mut input = Input::new(bytes);
    while !input.is_empty() {
        world.step(&mut input);
    }
});
