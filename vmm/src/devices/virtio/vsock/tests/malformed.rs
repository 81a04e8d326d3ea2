//! What a guest must not send.

use std::time::Duration;

use virtio_bindings::virtio_ring::VRING_DESC_F_WRITE;

use super::super::config::VsockLimits;
use super::super::header::{HEADER_SIZE, Op, SHUTDOWN_BOTH, SHUTDOWN_SEND};
use super::driver::SIZE;
use super::vm::{Peer, Vm, is_at_eof, read_available};

#[test]
fn packets_of_no_connection_are_answered_with_a_reset_except_resets() {
    let mut vm = Vm::new();
    let mut peer = Peer::new(1 << 30, 5);
    for op in [Op::Response, Op::Shutdown, Op::Rw, Op::CreditUpdate, Op::CreditRequest] {
        let header = peer.header(op);
        vm.send(&header, &[]);
        let reset = vm.expect(Op::Rst);
        assert_eq!((reset.src_cid, reset.src_port, reset.dst_port), (2, 1 << 30, 5));
    }
    let header = peer.header(Op::Rst);
    vm.send(&header, &[]);
    vm.expect_silence();
}

#[test]
fn another_address_or_type_is_refused_in_its_own_terms() {
    let mut vm = Vm::new();
    let (mut client, mut peer) = vm.connect_in(22);

    let mut header = peer.header(Op::Rw);
    header.dst_cid = 3;
    vm.send(&header, &[]);
    assert_eq!(vm.expect(Op::Rst).src_cid, 3);

    let mut header = peer.header(Op::Request);
    header.kind = 2;
    vm.send(&header, &[]);
    assert_eq!(vm.expect(Op::Rst).kind, 2);

    // Nobody has this address: there is no one to answer.
    let mut header = peer.header(Op::Rst);
    header.src_cid = 8;
    vm.send(&header, &[]);
    vm.expect_silence();

    let header = peer.data(2);
    vm.send(&header, b"ok");
    assert_eq!(read_available(&mut client), b"ok");
}

#[test]
fn an_operation_that_does_not_fit_the_state_resets_the_connection() {
    for op in [0, 1, 2, 8, u16::MAX] {
        let mut vm = Vm::new();
        let (mut client, mut peer) = vm.connect_in(22);
        let mut header = peer.header(Op::Rw);
        header.op = op;
        vm.send(&header, &[]);
        vm.expect(Op::Rst);
        assert!(is_at_eof(&mut client), "{op}");
    }
    // After both directions ended on the host.
    for op in [0, 1, 2, 8] {
        let mut vm = Vm::new();
        let (client, mut peer) = vm.connect_in(22);
        drop(client);
        vm.expect(Op::Shutdown);
        let mut header = peer.header(Op::Rw);
        for late in [Op::Rw, Op::CreditUpdate, Op::CreditRequest] {
            header.op = late.number();
            vm.send(&header, &[]);
            vm.expect_silence();
        }
        header.op = op;
        vm.send(&header, &[]);
        vm.expect(Op::Rst);
        vm.advance(Duration::from_secs(10));
        vm.expect_silence();
    }
    // After it refused.
    for op in [0, 1, 2, 4, 5, 6, 7, 8] {
        let mut limits = VsockLimits::default();
        limits.hold.first_retry = Duration::from_secs(50);
        let mut vm = Vm::with_limits(limits);
        let mut client = vm.client(b"CONNECT 22\n");
        let request = vm.expect(Op::Request);
        let mut header = Peer::new(request.src_port, 22).header(Op::Rst);
        vm.send(&header, &[]);
        header.op = op;
        vm.send(&header, &[]);
        vm.expect(Op::Rst);
        assert!(is_at_eof(&mut client), "{op}");
    }
    // Before the guest answered.
    for op in [0, 1, 4, 5, 6, 7, 8] {
        let mut vm = Vm::new();
        let mut client = vm.client(b"CONNECT 22\n");
        let request = vm.expect(Op::Request);
        let mut header = Peer::new(request.src_port, 22).header(Op::Rw);
        header.op = op;
        vm.send(&header, &[]);
        vm.expect(Op::Rst);
        assert!(is_at_eof(&mut client), "{op}");
    }
}

#[test]
fn data_after_the_end_of_data_resets_the_connection() {
    let mut vm = Vm::new();
    let (_client, mut peer) = vm.connect_in(22);
    let shutdown = peer.shutdown(SHUTDOWN_SEND);
    vm.send(&shutdown, &[]);
    let header = peer.data(1);
    vm.send(&header, b"x");
    vm.expect(Op::Rst);
}

#[test]
fn a_length_beyond_the_buffers_resets_the_connection() {
    let mut vm = Vm::new();
    let (mut client, mut peer) = vm.connect_in(22);
    let mut header = peer.header(Op::Rw);
    header.len = 101;
    vm.send(&header, &[0; 100]);
    vm.expect(Op::Rst);
    assert!(is_at_eof(&mut client));

    let (_client, mut peer) = vm.connect_in(22);
    let mut header = peer.header(Op::Rw);
    header.len = u32::MAX;
    vm.send(&header, &[0; 100]);
    vm.expect(Op::Rst);
}

#[test]
fn a_packet_shorter_than_its_buffers_ends_where_it_says() {
    let mut vm = Vm::new();
    let (mut client, mut peer) = vm.connect_in(22);
    let header = peer.data(3);
    vm.send(&header, b"abcdef");
    assert_eq!(read_available(&mut client), b"abc");
}

#[test]
fn buffers_that_are_no_packet_are_given_back() {
    let mut vm = Vm::new();
    let header = Peer::new(1024, 5).header(Op::Rw);
    vm.driver.send_in_pieces(&header, &[], &[HEADER_SIZE - 1]);
    vm.driver.send_in_pieces(&header, &[], &[0]);
    vm.settle();
    assert!(vm.driver.is_tx_drained());
    vm.expect_silence();

    // A receive buffer outside memory, one for the wrong direction, one too small, one that refers to itself.
    vm.driver = super::driver::Driver::new();
    super::super::super::device::VirtioDevice::reset(&mut vm.device);
    let rx = &mut vm.driver.rx;
    rx.describe(0, 1 << 40, 4096, VRING_DESC_F_WRITE, 0);
    rx.describe(1, 1 << 20, 4096, 0, 0);
    rx.describe(2, 1 << 20, 44, VRING_DESC_F_WRITE, 0);
    rx.describe(3, 1 << 20, 16, VRING_DESC_F_WRITE | 1, 3);
    for index in 0..4 {
        rx.publish(index);
    }
    vm.driver.post_rx(4);
    vm.guest_receives = false;
    vm.start_driver(true);
    let _client = vm.client(b"CONNECT 22\n");
    assert!(vm.driver.rx.used_idx() >= 4);
}

#[test]
fn a_broken_ring_stops_the_device_without_hurting_anyone() {
    let mut vm = Vm::new();
    let (mut client, mut peer) = vm.connect_in(22);
    // More buffers than the ring has.
    vm.driver
        .tx
        .set_avail_idx(vm.driver.tx.avail_idx().wrapping_add(SIZE + 1));
    vm.driver.tx.kick.write(1).unwrap();
    vm.settle();
    vm.expect_silence();

    // A head beyond the descriptor table.
    vm.driver.tx.publish(SIZE);
    vm.driver.tx.kick.write(1).unwrap();
    vm.settle();

    drop(vm.client(b"CONNECT 22\n"));
    vm.received.clear();
    vm.restart_driver();
    assert!(is_at_eof(&mut client));
    let header = peer.header(Op::CreditUpdate);
    vm.send(&header, &[]);
    vm.expect(Op::Rst);
}

#[test]
fn shutting_down_again_and_again_changes_nothing() {
    let mut vm = Vm::new();
    let (_client, mut peer) = vm.connect_in(22);
    for flags in [0, SHUTDOWN_SEND, SHUTDOWN_SEND, !SHUTDOWN_BOTH] {
        let shutdown = peer.shutdown(flags);
        vm.send(&shutdown, &[]);
        vm.expect_silence();
    }
}
