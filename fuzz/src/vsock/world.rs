//! A guest and clients of the host that do what the input says, and what the device owes them for it.

use std::collections::HashMap;
use std::io::Write;

use super::bench::{Bench, HOST_PORT, MAX_CONNECTIONS};
use super::connection::{Connection, Phase};
use super::packet::{GUEST_CID, HOST_CID, Key, Op, Packet, SHUT_BOTH, SHUT_SEND};
use crate::input::Input;

/// Connections in one run: the rest of an input repeats itself.
const MAX_TOTAL: usize = 24;
/// Resets that the guest lets wait before it takes some: the device takes no packet it could not answer.
const MAX_OWED: u32 = 200;
/// Credit that the guest grants.
const GRANTS: [u32; 8] = [1 << 20, 0, 1, 100, 4096, 1 << 16, 1 << 20, u32::MAX];

/// Whom a packet of the guest addresses: context ID, packet type, ports.
type Address = (u64, u16, Key);

/// The world around the device.
#[derive(Default)]
pub struct World {
    bench: Bench,
    connections: Vec<Connection>,
    /// Connections that the device asked the guest for; false: the guest has refused for now.
    asked: HashMap<Key, bool>,
    /// Resets that the device owes or has queued.
    owed: HashMap<Address, u32>,
    /// Clients that left before the guest answered: each may be worth a reset.
    left_waiting: u32,
    seeds: u64,
    /// Packets that the guest and bytes that the host took.
    progress: usize,
}

impl World {
    /// Does one thing.
    pub fn step(&mut self, input: &mut Input<'_>) {
        let operation = input.byte() % 16;
        match operation {
            0 => self.client_connects(input),
            1 => self.guest_connects(input),
            2 => self.guest_answers(input),
            3 => self.guest_sends_anything(input),
            4 => self.bench.give_buffers(input.below(17)),
            5 => self.bench.set_rx_len(input.pick(&[4096, 45, 64, 300, 1000])),
            6 if input.byte() == 0x55 => self.restart(),
            _ => self.step_connection(operation, input),
        }
        self.collect();
    }

    fn step_connection(&mut self, operation: u8, input: &mut Input<'_>) {
        let which = input.below(self.connections.len());
        if self.connections.is_empty() {
            return;
        }
        let len = input.pick(&[1, 100, 1000, 5000, 8192, 8193, 20_000, 0]);
        let connection = &mut self.connections[which];
        match operation {
            6 | 7 => self.guest_sends_data(which, len),
            8 => self.guest_floods(which),
            9 => connection.host_writes(len),
            10 => drop(connection.host_reads(len)),
            11 => connection.host_half_closes(),
            12 => self.host_closes(which),
            13 => self.guest_shuts_down(which, input.byte().into()),
            14 => self.guest_grants(which, input),
            _ => self.guest_resets(which),
        }
        self.bench.settle();
    }

    // The host.

    fn client_connects(&mut self, input: &mut Input<'_>) {
        if self.connections.len() >= MAX_TOTAL {
            return;
        }
        let mut client = self.bench.client();
        let port = input.pick(&[22, 23]);
        client
            .write_all(format!("CONNECT {port}\n").as_bytes())
            .expect("a socket takes a line");
        let seed = self.next_seed();
        let mut connection = Connection::new(seed, Phase::Waiting, None, Some(client));
        connection.host_writes(input.pick(&[0, 0, 10, 3000]));
        self.connections.push(connection);
        self.bench.settle();
    }

    fn host_closes(&mut self, which: usize) {
        let connection = &mut self.connections[which];
        if connection.host.is_some() && connection.phase == Phase::Waiting {
            connection.phase = Phase::Over;
            self.left_waiting += 1;
        }
        connection.host_closes();
    }

    // The guest.

    fn guest_connects(&mut self, input: &mut Input<'_>) {
        let key = (HOST_PORT, input.pick(&[1, 2, 3, 4]));
        if self.named(key).is_some() {
            return self.send(Packet::from_guest(key, Op::Request as u16), &[]);
        }
        if self.is_uncertain(key) || self.connections.len() >= MAX_TOTAL {
            return;
        }
        self.make_room();
        let seed = self.next_seed();
        let mut connection = Connection::new(seed, Phase::Asked, Some(key), None);
        let mut packet = Packet::from_guest(key, Op::Request as u16);
        connection.grant(&mut packet, input.pick(&GRANTS), None);
        let has_room = self.live() < MAX_CONNECTIONS.into();
        self.bench.send(&packet, &[]);
        connection.host = self.bench.accept();
        if connection.host.is_some() {
            self.connections.push(connection);
        } else {
            assert!(!has_room, "the device refuses a connection that it has room for");
            self.owe(&packet);
        }
    }

    /// Answers a request of the device.
    fn guest_answers(&mut self, input: &mut Input<'_>) {
        let mut keys: Vec<Key> = self.asked.keys().copied().collect();
        keys.sort_unstable();
        let which = input.below(keys.len());
        let Some(&key) = keys.get(which) else { return };
        if input.byte() & 7 == 7 {
            self.send(Packet::from_guest(key, Op::Rst as u16), &[]);
            return;
        }
        let packet = Packet::from_guest(key, Op::Response as u16);
        self.accept(key, packet, input.pick(&GRANTS));
    }

    fn accept(&mut self, key: Key, mut packet: Packet, granted: u32) {
        self.make_room();
        let was_asked = self.asked.remove(&key) == Some(true);
        packet.buf_alloc = granted;
        self.bench.send(&packet, &[]);
        let answered = self.connections.iter_mut().find_map(|connection| {
            let is_new = connection.phase == Phase::Waiting && connection.answered() == Some(key.0);
            is_new.then_some(connection)
        });
        match answered {
            Some(connection) => {
                assert!(was_asked, "a client is told of an acceptance that was none");
                connection.phase = Phase::Open;
                connection.key = Some(key);
                connection.grant(&mut packet, granted, None);
            }
            None => {
                assert!(
                    !was_asked || self.left_waiting > 0,
                    "no client is told of the acceptance"
                );
                self.owe(&packet);
            }
        }
    }

    fn guest_sends_data(&mut self, which: usize, len: usize) {
        let connection = &mut self.connections[which];
        let (Some(key), true) = (connection.key, connection.is_named()) else {
            return;
        };
        let is_allowed = connection.guest_shut & SHUT_SEND == 0 && len <= connection.room() as usize;
        // The device may or may not have passed on the end yet, and answers accordingly.
        if !is_allowed && connection.may_be_closing() {
            return;
        }
        let data = connection.guest_data(len);
        let mut packet = Packet::from_guest(key, Op::Rw as u16);
        packet.len = len as u32;
        self.make_room();
        let connection = &mut self.connections[which];
        connection.grant(&mut packet, 1 << 20, None);
        if is_allowed {
            connection.guest_sent(len);
        } else {
            connection.phase = Phase::Over;
            self.owe(&packet);
        }
        self.bench.send(&packet, &data);
    }

    /// Sends more than a socket of the host takes without being read.
    fn guest_floods(&mut self, which: usize) {
        for _ in 0..64 {
            let connection = &self.connections[which];
            let room = connection.room() as usize;
            if room == 0
                || connection.guest_shut & SHUT_SEND != 0
                || !connection.is_named()
                || !self.bench.has_buffers()
            {
                return;
            }
            self.guest_sends_data(which, room);
            self.bench.give_buffers(1);
            self.collect();
        }
    }

    fn guest_shuts_down(&mut self, which: usize, flags: u32) {
        let Some(key) = self.connections[which].key else { return };
        let mut packet = Packet::from_guest(key, Op::Shutdown as u16);
        packet.flags = flags;
        self.send(packet, &[]);
    }

    fn guest_grants(&mut self, which: usize, input: &mut Input<'_>) {
        let Some(key) = self.connections[which].key else { return };
        let op = input.pick(&[Op::CreditUpdate, Op::CreditRequest]);
        let (granted, claim) = (input.pick(&GRANTS), input.byte());
        let mut packet = Packet::from_guest(key, op as u16);
        self.make_room();
        let claimed = (claim == 0xff).then(|| input.long());
        // The key may be that of a later connection by now.
        if let Some(named) = self.named(key) {
            self.connections[named].grant(&mut packet, granted, claimed);
        }
        self.send_as_is(packet, &[]);
    }

    fn guest_resets(&mut self, which: usize) {
        if let Some(key) = self.connections[which].key {
            self.send(Packet::from_guest(key, Op::Rst as u16), &[]);
        }
    }

    /// A packet with any field, to a connection or to nobody.
    fn guest_sends_anything(&mut self, input: &mut Input<'_>) {
        let known = self.connections.iter().filter_map(|connection| connection.key);
        let keys: Vec<Key> = known
            .chain(self.asked.keys().copied())
            .chain([(7, 7), (HOST_PORT, 9)])
            .collect();
        let mut packet = Packet::from_guest(input.pick(&keys), u16::from(input.byte() % 10));
        packet.flags = input.byte().into();
        match input.byte() {
            0 => packet.src_cid = input.long().into(),
            1 => packet.dst_cid = input.long().into(),
            2 => packet.kind = input.word(),
            3 => packet.len = input.long(),
            _ => {}
        }
        // Data and connections have steps of their own, which keep count.
        let is_plain = packet.is_for_stream();
        let is_counted = packet.op == Op::Request as u16 || packet.op == Op::Rw as u16 && packet.len == 0;
        if !(is_plain && is_counted) {
            self.send(packet, &[]);
        }
    }

    fn send(&mut self, mut packet: Packet, payload: &[u8]) {
        self.make_room();
        if packet.is_for_stream()
            && let Some(which) = self.named((packet.dst_port, packet.src_port))
        {
            self.connections[which].grant(&mut packet, 1 << 20, None);
        }
        self.send_as_is(packet, payload);
    }

    /// Sends a packet and writes down what the device owes for it.
    fn send_as_is(&mut self, packet: Packet, payload: &[u8]) {
        let key = (packet.dst_port, packet.src_port);
        let is_ours = packet.is_for_stream();
        let is_whole = packet.len as usize <= payload.len();
        let is_reset = packet.op == Op::Rst as u16;
        if packet.src_cid != GUEST_CID {
            // Whoever that is, it is not the guest.
        } else if is_ours && let Some(which) = self.named(key) {
            let connection = &mut self.connections[which];
            let is_shutdown = is_whole && packet.op == Op::Shutdown as u16;
            if is_shutdown {
                connection.guest_shut |= packet.flags & SHUT_BOTH;
            }
            let is_harmless = is_whole && (is_shutdown || packet.op == 6 || packet.op == 7);
            let ends = !is_harmless || connection.guest_shut == SHUT_BOTH;
            if ends {
                connection.phase = Phase::Over;
            }
            if ends && !(is_reset && is_whole) {
                self.owe(&packet);
            }
        } else if is_ours && self.asked.contains_key(&key) {
            if is_whole && packet.op == Op::Response as u16 {
                let granted = packet.buf_alloc;
                return self.accept(key, packet, granted);
            }
            if is_reset && !is_whole {
                // Worth a reset only while the client has not left, which the guest cannot know.
                return;
            }
            if is_reset {
                self.asked.insert(key, false);
            } else {
                self.asked.remove(&key);
                self.owe(&packet);
            }
        } else if !is_reset {
            self.owe(&packet);
        }
        self.bench.send(&packet, payload);
    }

    /// Takes packets until the device has room for an answer to another one.
    fn make_room(&mut self) {
        self.collect();
        while self.owed.values().sum::<u32>() >= MAX_OWED {
            self.bench.give_buffers(usize::MAX);
            self.bench.settle();
            self.collect();
        }
    }

    fn restart(&mut self) {
        self.bench.receive();
        self.bench.restart();
        self.asked.clear();
        self.owed.clear();
        self.left_waiting = 0;
        for connection in &mut self.connections {
            if connection.is_named() {
                connection.phase = Phase::Over;
            }
        }
    }

    // What the device says.

    fn collect(&mut self) {
        for packet in self.bench.receive() {
            self.on_packet(&packet);
        }
    }

    fn on_packet(&mut self, packet: &Packet) {
        self.progress += 1;
        let key = packet.key();
        if packet.op == Op::Rst as u16 {
            return self.on_reset(packet);
        }
        assert!(packet.is_stream(), "{packet:?}");
        if packet.op == Op::Request as u16 {
            assert!(
                self.named(key).is_none() && [22, 23].contains(&packet.dst_port),
                "{packet:?}"
            );
            assert!(self.asked.insert(key, true) != Some(true), "asked twice: {packet:?}");
        } else {
            let which = self.named(key);
            let which = which.unwrap_or_else(|| panic!("no connection is known for {packet:?}"));
            self.connections[which].on_packet(packet);
        }
    }

    fn on_reset(&mut self, packet: &Packet) {
        let key = packet.key();
        match self.owed.get_mut(&(packet.src_cid, packet.kind, key)) {
            Some(count) if *count > 0 => *count -= 1,
            _ => {
                let client_left = self.left_waiting > 0 && key.0 != HOST_PORT && packet.is_stream();
                assert!(client_left, "a reset for no reason: {packet:?}");
                self.left_waiting -= 1;
            }
        }
        if packet.is_stream() {
            self.asked.remove(&key);
            if let Some(which) = self.named(key) {
                assert_eq!(self.connections[which].phase, Phase::Asked, "{packet:?}");
                self.connections[which].phase = Phase::Over;
            }
        }
    }

    // The end.

    /// Guest and host do all they can to finish; then everything must have arrived, and the device must be free.
    pub fn finish(mut self) {
        self.bench.set_rx_len(4096);
        let mut before = None;
        while before != Some(self.progress) {
            before = Some(self.progress);
            for which in 0..self.connections.len() {
                self.bench.give_buffers(usize::MAX);
                self.bench.settle();
                self.collect();
                if self.connections[which].is_named() {
                    let key = self.connections[which].key.expect("the guest names it");
                    self.send(Packet::from_guest(key, Op::CreditUpdate as u16), &[]);
                }
                self.progress += self.connections[which].host_reads(1 << 18);
                self.bench.settle();
                self.collect();
            }
        }
        for connection in &self.connections {
            connection.assert_complete();
        }
        for which in 0..self.connections.len() {
            if self.connections[which].is_named() {
                self.guest_shuts_down(which, SHUT_BOTH);
                assert_eq!(self.connections[which].phase, Phase::Over);
            }
        }
        self.take_all();
        assert!(
            self.owed.values().all(|count| *count == 0),
            "resets never came: {:?}",
            self.owed
        );
        self.assert_free();
    }

    /// Takes what the device has for the guest, however many times the receive buffers that is.
    fn take_all(&mut self) {
        let mut before = None;
        while before != Some(self.progress) {
            before = Some(self.progress);
            self.bench.give_buffers(usize::MAX);
            self.bench.settle();
            self.collect();
        }
    }

    /// Once all are gone, as many connections can be opened as ever.
    fn assert_free(mut self) {
        self.connections.clear();
        self.bench.settle();
        self.restart();
        let clients: Vec<_> = (0..MAX_CONNECTIONS)
            .map(|_| {
                let mut client = self.bench.client();
                client.write_all(b"CONNECT 22\n").expect("a socket takes a line");
                self.bench.settle();
                client
            })
            .collect();
        let requests = self.bench.receive();
        assert_eq!(
            requests.len(),
            clients.len(),
            "the device has room for fewer connections than at first"
        );
    }

    // Book-keeping.

    fn next_seed(&mut self) -> u64 {
        self.seeds += 1;
        self.seeds
    }

    fn named(&self, key: Key) -> Option<usize> {
        let is_it = |connection: &Connection| connection.key == Some(key) && connection.is_named();
        self.connections.iter().position(is_it)
    }

    /// Whether a reset for the key may be on its way.
    fn is_uncertain(&self, key: Key) -> bool {
        let owed = self.owed.get(&(HOST_CID, 1, key));
        self.asked.contains_key(&key) || owed.is_some_and(|count| *count > 0)
    }

    /// The connections that the device may hold, at most.
    fn live(&self) -> usize {
        let is_over = |connection: &&Connection| {
            connection.phase == Phase::Over && (connection.host.is_none() || connection.at_eof)
        };
        self.connections.len() - self.connections.iter().filter(is_over).count()
    }

    fn owe(&mut self, packet: &Packet) {
        let key = (packet.dst_port, packet.src_port);
        *self.owed.entry((packet.dst_cid, packet.kind, key)).or_default() += 1;
    }
}
