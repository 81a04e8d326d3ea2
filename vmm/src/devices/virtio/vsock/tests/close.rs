//! How connections end.

use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::time::Duration;

use super::super::header::{Op, SHUTDOWN_BOTH, SHUTDOWN_RCV, SHUTDOWN_SEND};
use super::vm::{Peer, Vm, is_at_eof, pattern, read_available};

#[test]
fn the_end_of_the_clients_input_leaves_the_guests_output_open() {
    let mut vm = Vm::new();
    let (mut client, mut peer) = vm.connect_in(22);
    client.write_all(b"input").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    vm.settle();
    assert_eq!(vm.next().1, b"input");
    assert_eq!(vm.expect(Op::Shutdown).flags, SHUTDOWN_SEND);

    let bytes = pattern(200_000, 1);
    for piece in bytes.chunks(50_000) {
        let header = peer.data(piece.len());
        vm.send(&header, piece);
    }
    let mut received = Vec::new();
    vm.run_until("the output arrives", |_| {
        received.extend(read_available(&mut client));
        (received.len() == bytes.len()).then_some(())
    });
    assert!(received == bytes);
    while let Some((header, _)) = vm.received.pop_front() {
        assert_eq!(header.op, Op::CreditUpdate.number());
    }

    // The guest closes its socket.
    let close = peer.shutdown(SHUTDOWN_BOTH);
    vm.send(&close, &[]);
    vm.expect(Op::Rst);
    assert!(is_at_eof(&mut client));
    vm.expect_silence();
}

#[test]
fn the_end_of_the_guests_output_leaves_the_clients_input_open() {
    let mut vm = Vm::new();
    let (mut client, mut peer) = vm.connect_in(22);
    let header = peer.data(6);
    vm.driver.send(&header, b"output");
    let shutdown = peer.shutdown(SHUTDOWN_SEND);
    vm.send(&shutdown, &[]);
    assert_eq!(read_available(&mut client), b"output");
    assert!(is_at_eof(&mut client));

    client.write_all(b"input").unwrap();
    vm.settle();
    assert_eq!(vm.next().1, b"input");

    // Then the client closes: both directions are over on the host.
    drop(client);
    assert_eq!(vm.expect(Op::Shutdown).flags, SHUTDOWN_BOTH);
    let rst = peer.header(Op::Rst);
    vm.send(&rst, &[]);
    vm.expect_silence();
    vm.expect_no_connection(&peer);
}

#[test]
fn both_half_closes_end_the_connection_whichever_comes_first() {
    for guest_first in [true, false] {
        let mut vm = Vm::new();
        let (mut client, mut peer) = vm.connect_in(22);
        let shutdown = peer.shutdown(SHUTDOWN_SEND);
        if guest_first {
            vm.send(&shutdown, &[]);
        }
        client.shutdown(Shutdown::Write).unwrap();
        vm.settle();
        if !guest_first {
            assert_eq!(vm.expect(Op::Shutdown).flags, SHUTDOWN_SEND);
            vm.send(&shutdown, &[]);
        }
        assert!(is_at_eof(&mut client));
        assert_eq!(vm.expect(Op::Shutdown).flags, SHUTDOWN_BOTH);
        // A Linux guest whose program has nothing left to read.
        let rst = peer.header(Op::Rst);
        vm.send(&rst, &[]);
        vm.expect_no_connection(&peer);
    }
}

#[test]
fn a_client_that_closes_is_reported_after_all_its_data() {
    let mut vm = Vm::new();
    let (mut client, mut peer) = vm.connect_in(22);
    peer.buf_alloc = 10;
    let update = peer.header(Op::CreditUpdate);
    vm.send(&update, &[]);
    client.write_all(b"more than ten bytes").unwrap();
    drop(client);
    vm.settle();
    let mut received = Vec::new();
    let mut flags = 0;
    while received.len() < 19 {
        let (header, payload) = vm.next();
        match Op::from_number(header.op).unwrap() {
            Op::Rw => {
                received.extend(payload);
                peer.fwd_cnt += header.len;
                let update = peer.header(Op::CreditUpdate);
                vm.send(&update, &[]);
            }
            Op::Shutdown => {
                assert_eq!(header.flags, SHUTDOWN_RCV, "there is data left");
                flags |= header.flags;
            }
            Op::CreditRequest => {}
            op => panic!("unexpected {op:?}"),
        }
    }
    assert_eq!(received, b"more than ten bytes");
    assert_eq!(flags, SHUTDOWN_RCV);
    vm.settle();
    vm.received
        .retain(|(header, _)| header.op != Op::CreditRequest.number());
    assert_eq!(vm.expect(Op::Shutdown).flags, SHUTDOWN_BOTH);
    let close = peer.shutdown(SHUTDOWN_BOTH);
    vm.send(&close, &[]);
    vm.expect(Op::Rst);
    vm.expect_no_connection(&peer);
}

#[test]
fn a_guest_that_does_not_agree_is_reset_after_a_while() {
    let mut vm = Vm::new();
    let (client, peer) = vm.connect_in(22);
    drop(client);
    assert_eq!(vm.expect_last(Op::Shutdown).flags, SHUTDOWN_BOTH);
    vm.advance(Duration::from_millis(1900));
    vm.expect_silence();
    vm.advance(Duration::from_millis(200));
    vm.expect(Op::Rst);
    vm.expect_no_connection(&peer);
}

#[test]
fn a_guest_that_closes_loses_nothing_that_it_sent_before() {
    let mut vm = Vm::new();
    let (mut client, mut peer) = vm.connect_in(22);
    // More than the client's socket holds.
    let bytes = pattern(250_000, 2);
    for piece in bytes.chunks(50_000) {
        let header = peer.data(piece.len());
        vm.driver.send(&header, piece);
    }
    let more = pattern(100_000, 3);
    vm.settle();
    while let Some((header, _)) = vm.received.pop_front() {
        peer.update(&header);
    }
    let extra = more.len().min(peer.credit() as usize).min(60_000);
    let header = peer.data(extra);
    vm.driver.send(&header, &more[..extra]);
    let close = peer.shutdown(SHUTDOWN_BOTH);
    vm.send(&close, &[]);
    // For the guest it is over at once, so its port is free.
    vm.expect_last(Op::Rst);
    vm.expect_no_connection(&peer);

    let mut received = Vec::new();
    vm.run_until("everything arrives", |_| {
        received.extend(read_available(&mut client));
        (received.len() == bytes.len() + extra).then_some(())
    });
    assert!(received[..bytes.len()] == bytes);
    assert!(received[bytes.len()..] == more[..extra]);
    vm.run_until("end of file", |_| is_at_eof(&mut client).then_some(()));
}

#[test]
fn a_half_close_of_the_guest_waits_for_its_data() {
    let mut vm = Vm::new();
    let (mut host, mut peer) = vm.connect_out(1024);
    let bytes = pattern(250_000, 4);
    for piece in bytes.chunks(50_000) {
        let header = peer.data(piece.len());
        vm.driver.send(&header, piece);
    }
    let shutdown = peer.shutdown(SHUTDOWN_SEND);
    vm.send(&shutdown, &[]);
    let mut received = Vec::new();
    vm.run_until("everything and its end arrives", |_| {
        received.extend(read_available(&mut host));
        (received.len() == bytes.len() && is_at_eof(&mut host)).then_some(())
    });
    assert!(received == bytes);
}

#[test]
fn a_guest_that_reads_no_more_stops_the_client() {
    let mut vm = Vm::new();
    let (mut client, mut peer) = vm.connect_in(22);
    let shutdown = peer.shutdown(SHUTDOWN_RCV);
    vm.send(&shutdown, &[]);
    assert_eq!(client.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    let header = peer.data(5);
    vm.send(&header, b"still");
    assert_eq!(read_available(&mut client), b"still");
    let shutdown = peer.shutdown(SHUTDOWN_SEND);
    vm.send(&shutdown, &[]);
    vm.expect(Op::Rst);
    assert!(is_at_eof(&mut client));
    vm.expect_no_connection(&peer);
}

#[test]
fn a_client_that_reads_no_more_stops_the_guest_but_goes_on_sending() {
    let mut vm = Vm::new();
    let (mut client, mut peer) = vm.connect_in(22);
    client.shutdown(Shutdown::Read).unwrap();
    let header = peer.data(5);
    vm.send(&header, b"hello");
    assert_eq!(vm.expect(Op::Shutdown).flags, SHUTDOWN_RCV);
    // What was on the way is dropped, and does not cost credit forever.
    for _ in 0..20 {
        let header = peer.data(50_000);
        vm.send(&header, &[0; 50_000]);
        while let Some((header, _)) = vm.received.pop_front() {
            assert_eq!(header.op, Op::CreditUpdate.number());
        }
    }
    client.write_all(b"input").unwrap();
    vm.settle();
    assert_eq!(vm.next().1, b"input");
}

#[test]
fn a_reset_of_the_guest_ends_the_connection_in_every_state() {
    // A client that is connected.
    let mut vm = Vm::new();
    let (mut client, mut peer) = vm.connect_in(22);
    let rst = peer.header(Op::Rst);
    vm.send(&rst, &[]);
    assert!(is_at_eof(&mut client));
    vm.expect_no_connection(&peer);

    // A host end of the guest's own connection.
    let (mut host, mut peer) = vm.connect_out(1024);
    let rst = peer.header(Op::Rst);
    vm.send(&rst, &[]);
    assert!(is_at_eof(&mut host));
    vm.expect_no_connection(&peer);

    // Half closed.
    let (client, mut peer) = vm.connect_in(22);
    client.shutdown(Shutdown::Write).unwrap();
    vm.settle();
    vm.expect(Op::Shutdown);
    let rst = peer.header(Op::Rst);
    vm.send(&rst, &[]);
    vm.expect_no_connection(&peer);

    // Closing.
    let (client, mut peer) = vm.connect_in(22);
    drop(client);
    vm.expect_last(Op::Shutdown);
    let rst = peer.header(Op::Rst);
    vm.send(&rst, &[]);
    vm.expect_no_connection(&peer);
    vm.advance(Duration::from_secs(10));
    vm.expect_silence();
}

#[test]
fn no_descriptor_is_left_behind() {
    let mut vm = Vm::new();
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut clients = Vec::new();
    let before = vm.watched();
    for _ in 0..10 {
        clients.push(vm.connect_in(22));
    }
    assert_eq!(vm.watched(), before + 10);
    assert!(count() >= 20);
    for (client, mut peer) in clients {
        drop(client);
        vm.expect_last(Op::Shutdown);
        let rst = peer.header(Op::Rst);
        vm.send(&rst, &[]);
    }
    vm.settle();
    assert_eq!(vm.watched(), before);
}

impl Vm {
    /// As [`Vm::expect`], after any other packets without payload that come at the same time.
    fn expect_last(&mut self, op: Op) -> super::super::header::Header {
        self.settle();
        let (header, payload) = self.received.pop_back().expect("a packet for the guest");
        assert_eq!(Op::from_number(header.op), Some(op), "{header:?}");
        assert!(payload.is_empty());
        self.received.clear();
        header
    }

    /// The device answers a packet of that connection as it answers any of an unknown one.
    fn expect_no_connection(&mut self, peer: &Peer) {
        self.expect_silence();
        let update = peer.clone().header(Op::CreditUpdate);
        self.send(&update, &[]);
        let reset = self.expect(Op::Rst);
        assert_eq!((reset.src_port, reset.dst_port), (peer.host_port, peer.guest_port));
        self.expect_silence();
    }
}
