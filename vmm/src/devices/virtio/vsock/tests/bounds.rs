//! What guest and clients can make the device hold.

use super::super::config::VsockLimits;
use super::super::header::Op;
use super::vm::{Peer, Vm, is_at_eof, read_available};

#[test]
fn connections_are_bounded_and_room_is_found_again() {
    let mut vm = Vm::with_limits(VsockLimits {
        max_connections: 3,
        ..VsockLimits::default()
    });
    let (_first, _) = vm.connect_in(22);
    let (_second, mut second) = vm.connect_in(22);
    let (mut third, _) = vm.connect_out(1024);

    let mut client = vm.client(b"CONNECT 22\n");
    assert!(is_at_eof(&mut client));
    let request = Peer::new(1024, 2000).header(Op::Request);
    vm.send(&request, &[]);
    vm.expect(Op::Rst);
    assert!(!is_at_eof(&mut third));

    let rst = second.header(Op::Rst);
    vm.send(&rst, &[]);
    vm.connect_in(22);
}

#[test]
fn a_thousand_connections_work_at_once() {
    let mut vm = Vm::new();
    let mut open: Vec<_> = (0..500).map(|_| vm.connect_in(22)).collect();
    for (i, (client, peer)) in open.iter_mut().enumerate() {
        let bytes = i.to_le_bytes();
        let header = peer.data(bytes.len());
        vm.send(&header, &bytes);
        assert_eq!(read_available(client), bytes);
    }
}

#[test]
fn clients_beyond_the_handshake_limit_wait_for_their_turn() {
    let mut vm = Vm::with_limits(VsockLimits {
        max_handshakes: 2,
        ..VsockLimits::default()
    });
    let first = vm.client(b"");
    let second = vm.client(b"");
    let mut third = vm.client(b"CONNECT 22\n");
    vm.expect_silence();
    assert!(!is_at_eof(&mut third));
    drop(first);
    vm.expect(Op::Request);
    drop(second);
}

#[test]
fn answers_to_a_guest_that_takes_none_are_bounded() {
    let mut vm = Vm::booting(VsockLimits::default());
    vm.start_driver(true);
    let mut peer = Peer::new(1024, 0);
    let mut sent = 0;
    while vm.driver.can_send() {
        peer.guest_port = sent;
        let header = peer.header(Op::Request);
        vm.send(&header, &[]);
        sent += 1;
        assert!(sent < 1000, "the device takes packets that it cannot answer");
    }
    assert!(sent >= 256, "{sent}");

    // Once it takes them, all are answered, and in their order.
    vm.driver.post_all_rx();
    vm.settle();
    for port in 0..sent {
        assert_eq!(vm.expect(Op::Rst).dst_port, port);
    }
    assert!(vm.driver.is_tx_drained());
    vm.expect_silence();
}

#[test]
fn a_guest_that_floods_the_device_does_not_starve_others() {
    let mut vm = Vm::new();
    let (_client, mut peer) = vm.connect_in(22);
    // Whatever the guest sends, each turn is bounded: that the device settles shows it.
    for _ in 0..2000 {
        if vm.driver.can_send() {
            let header = peer.header(Op::CreditRequest);
            vm.driver.send(&header, &[]);
        } else {
            vm.settle();
            vm.received.clear();
        }
    }
    vm.settle();
    assert!(vm.driver.is_tx_drained());
}
