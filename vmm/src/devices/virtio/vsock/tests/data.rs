//! Data and credit.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::super::config::VsockLimits;
use super::super::header::Op;
use super::vm::{GUEST_BUF, Peer, Vm, pattern, read_available};

const MIB: usize = 1 << 20;

/// Writes what the stream takes of `bytes`; returns how much that was.
fn write_available(stream: &mut UnixStream, bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        match stream.write(&bytes[written..]) {
            Ok(n) => written += n,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                break;
            }
        }
    }
    written
}

/// Takes the data that the guest received; the guest's program has read it all.
fn take_data(vm: &mut Vm, peer: &mut Peer, into: &mut Vec<u8>) -> usize {
    let before = into.len();
    let mut asked = false;
    while let Some((header, payload)) = vm.received.pop_front() {
        peer.update(&header);
        match Op::from_number(header.op).unwrap() {
            Op::Rw => into.extend(payload),
            Op::CreditUpdate => {}
            Op::CreditRequest => asked = true,
            op => panic!("unexpected {op:?}"),
        }
    }
    let taken = into.len() - before;
    peer.fwd_cnt = peer.fwd_cnt.wrapping_add(u32::try_from(taken).unwrap());
    if taken > 0 || asked {
        let update = peer.header(Op::CreditUpdate);
        vm.send(&update, &[]);
    }
    taken
}

#[test]
fn megabytes_go_both_ways_while_each_side_stalls_in_turn() {
    let mut vm = Vm::new();
    let (mut client, mut peer) = vm.connect_in(22);
    let to_guest = pattern(3 * MIB, 1);
    let to_host = pattern(3 * MIB, 2);
    let (mut at_guest, mut at_host) = (Vec::new(), Vec::new());
    let (mut written, mut sent) = (0, 0);

    for round in 0.. {
        // Each side stops reading for a while, long enough that everything on the way to it fills up.
        if round % 100 < 60 {
            at_host.extend(read_available(&mut client));
        }
        if (round + 50) % 100 < 60 {
            take_data(&mut vm, &mut peer, &mut at_guest);
        } else {
            for (header, payload) in std::mem::take(&mut vm.received) {
                // The guest's transport takes the packet; its program does not read.
                peer.update(&header);
                peer.fwd_cnt = peer.fwd_cnt.wrapping_add(u32::try_from(payload.len()).unwrap());
                at_guest.extend(payload);
            }
        }
        written += write_available(&mut client, &to_guest[written..]);
        let len = (to_host.len() - sent).min(peer.credit() as usize).min(64 * 1024);
        if len > 0 && vm.driver.can_send() {
            let header = peer.data(len);
            vm.driver.send(&header, &to_host[sent..sent + len]);
            sent += len;
        }
        vm.settle();
        if at_guest.len() == to_guest.len() && at_host.len() == to_host.len() {
            break;
        }
        assert!(
            round < 100_000,
            "stuck: {} bytes at the guest, {} at the host",
            at_guest.len(),
            at_host.len()
        );
    }

    assert!(at_guest == to_guest, "the guest received something else");
    assert!(at_host == to_host, "the host received something else");
}

#[test]
fn a_stalled_host_end_bounds_what_the_guest_may_send_and_loses_nothing() {
    let mut vm = Vm::new();
    let (mut host, mut peer) = vm.connect_out(1024);
    let bytes = pattern(4 * MIB, 3);
    let mut sent = 0;
    loop {
        let len = (peer.credit() as usize).min(16 * 1024);
        if len == 0 {
            break;
        }
        let header = peer.data(len);
        vm.send(&header, &bytes[sent..sent + len]);
        sent += len;
        while let Some((header, _)) = vm.received.pop_front() {
            peer.update(&header);
        }
    }
    // The socket's own buffer, and that of the device.
    assert!((256 * 1024..MIB).contains(&sent), "{sent}");
    vm.expect_silence();

    // The more the host end takes, the more credit comes back.
    let mut received = Vec::new();
    vm.run_until("everything is written", |_| {
        received.extend(read_available(&mut host));
        (received.len() == sent).then_some(())
    });
    vm.settle();
    assert!(received[..] == bytes[..sent]);
    while let Some((header, _)) = vm.received.pop_front() {
        assert_eq!(header.op, Op::CreditUpdate.number());
        peer.update(&header);
    }
    assert!(peer.credit() > 128 * 1024, "{}", peer.credit());
}

#[test]
fn a_guest_without_credit_gets_no_data_and_is_asked_once() {
    let mut vm = Vm::new();
    let (mut client, mut peer) = vm.connect_in(22);
    let bytes = pattern(MIB, 4);
    let mut written = write_available(&mut client, &bytes);
    vm.settle();
    let mut received = Vec::new();
    while received.len() < GUEST_BUF as usize {
        written += write_available(&mut client, &bytes[written..]);
        vm.settle();
        let (header, payload) = vm.next();
        assert_eq!(header.op, Op::Rw.number());
        received.extend(payload);
    }
    assert_eq!(received.len(), GUEST_BUF as usize);
    vm.expect(Op::CreditRequest);
    vm.expect_silence();

    // An answer without credit changes nothing.
    let update = peer.header(Op::CreditUpdate);
    vm.send(&update, &[]);
    vm.expect_silence();

    peer.fwd_cnt = 1000;
    let update = peer.header(Op::CreditUpdate);
    vm.send(&update, &[]);
    let (header, payload) = vm.next();
    assert_eq!((header.op, header.len), (Op::Rw.number(), 1000));
    received.extend(payload);
    assert!(received[..] == bytes[..received.len()]);
    vm.expect(Op::CreditRequest);
    vm.expect_silence();
}

#[test]
fn a_request_for_credit_is_answered() {
    let mut vm = Vm::new();
    let (_client, mut peer) = vm.connect_in(22);
    let header = peer.data(3);
    vm.send(&header, b"abc");
    let request = peer.header(Op::CreditRequest);
    vm.send(&request, &[]);
    let update = vm.expect(Op::CreditUpdate);
    assert_eq!((update.buf_alloc, update.fwd_cnt), (256 * 1024, 3));
}

#[test]
fn a_guest_that_overruns_its_credit_loses_that_connection_alone() {
    let mut vm = Vm::with_limits(VsockLimits {
        buffer_size: 1000,
        ..VsockLimits::default()
    });
    let (mut victim, mut peer) = vm.connect_in(22);
    let (mut other, mut other_peer) = vm.connect_in(22);

    let header = peer.data(1001);
    vm.send(&header, &[0; 1001]);

    vm.expect(Op::Rst);
    assert_eq!(victim.read(&mut [0; 16]).unwrap(), 0);
    let header = other_peer.data(1000);
    vm.send(&header, &[7; 1000]);
    assert_eq!(read_available(&mut other), [7; 1000]);
}

#[test]
fn connections_take_turns() {
    let mut vm = Vm::booting(VsockLimits::default());
    vm.driver.post_rx(0);
    vm.start_driver(true);
    let (mut greedy, _) = vm.connect_in(22);
    let (mut modest, modest_peer) = vm.connect_in(22);
    vm.guest_receives = false;
    write_available(&mut greedy, &[1; 100 * 1024]);
    vm.settle();
    write_available(&mut modest, &[2; 100 * 1024]);
    vm.settle();

    let mut order = Vec::new();
    while let Some((header, _)) = vm.driver.receive(true) {
        order.push(header.src_port == modest_peer.host_port);
        vm.settle();
    }

    // The first was on its way before the other had anything.
    let turns: Vec<bool> = order[1..41].to_vec();
    assert_eq!(turns, [false, true].repeat(20));
}

#[test]
fn without_receive_buffers_the_device_waits_without_spinning_and_loses_nothing() {
    for event_idx in [false, true] {
        let mut vm = Vm::booting(VsockLimits::default());
        vm.driver.post_rx(0);
        vm.driver.post_rx(1);
        vm.start_driver(event_idx);
        let (mut client, _) = vm.connect_in(22);
        vm.guest_receives = false;
        let bytes = pattern(100_000, 5);
        client.write_all(&bytes).unwrap();
        // Panics when it spins.
        vm.settle();

        let mut received = Vec::new();
        while received.len() < bytes.len() {
            let (header, payload) = vm.driver.receive(true).expect("two buffers are always on their way");
            assert_eq!(header.op, Op::Rw.number());
            received.extend(payload);
            vm.settle();
        }
        assert!(received == bytes);
    }
}

#[test]
fn interrupts_and_notifications_are_suppressed_as_both_sides_ask() {
    let mut vm = Vm::new();
    let (mut client, mut peer) = vm.connect_in(22);
    vm.guest_receives = false;
    // That packets of the guest were taken is told, and nothing more is.
    vm.hold_clock();
    vm.advance(Duration::from_secs(1));
    let _ = vm.driver.interrupt.line().read();

    // The driver wants to hear after ten more buffers.
    let used = vm.driver.rx.used_idx();
    vm.driver.rx.set_used_event(used.wrapping_add(9));
    for _ in 0..9 {
        client.write_all(b"x").unwrap();
        vm.settle();
    }
    assert_eq!(vm.driver.rx.used_idx(), used.wrapping_add(9));
    assert!(vm.driver.interrupt.line().read().is_err());
    client.write_all(b"x").unwrap();
    vm.settle();
    assert_eq!(vm.driver.interrupt.line().read().unwrap(), 1);

    // The device wants to hear of the next packet of the guest.
    vm.driver.send(&peer.data(1), b"y");
    vm.settle();
    assert_eq!(vm.driver.tx.avail_event(), vm.driver.tx.avail_idx());
}

#[test]
fn that_packets_were_taken_is_told_with_the_next_packet_to_the_guest() {
    let mut vm = Vm::new();
    let (mut client, mut peer) = vm.connect_in(22);
    vm.guest_receives = false;
    vm.hold_clock();
    vm.advance(Duration::from_secs(1));
    let _ = vm.driver.interrupt.line().read();

    vm.driver.tx.set_used_event(vm.driver.tx.used_idx());
    vm.driver.rx.set_used_event(vm.driver.rx.used_idx());
    for _ in 0..20 {
        vm.send(&peer.data(1), b"y");
    }
    assert!(vm.driver.interrupt.line().read().is_err());
    client.write_all(b"x").unwrap();
    vm.settle();
    assert_eq!(vm.driver.interrupt.line().read().unwrap(), 1);
    vm.advance(Duration::from_secs(1));
    assert!(vm.driver.interrupt.line().read().is_err(), "the driver knows");
}

#[test]
fn that_packets_were_taken_is_told_soon_if_nothing_else_is() {
    let mut vm = Vm::new();
    let (_client, mut peer) = vm.connect_in(22);
    vm.advance(Duration::from_secs(1));
    let _ = vm.driver.interrupt.line().read();

    vm.driver.tx.set_used_event(vm.driver.tx.used_idx());
    vm.send(&peer.data(1), b"y");
    vm.run_until("an interrupt", |vm| vm.driver.interrupt.line().read().ok());
}

#[test]
fn any_layout_of_a_packet_is_understood() {
    let mut vm = Vm::new();
    let (mut client, mut peer) = vm.connect_in(22);
    for pieces in [
        &[49][..],
        &[44, 5],
        &[40, 9],
        &[1, 42, 3, 3],
        &[44, 2, 3, 0],
        &[44, 100],
    ] {
        let header = peer.data(5);
        vm.driver.send_in_pieces(&header, b"hello", pieces);
        vm.settle();
        assert_eq!(read_available(&mut client), b"hello", "{pieces:?}");
    }
    let header = peer.data(5);
    vm.driver.send_indirect(&header, b"hello");
    vm.settle();
    assert_eq!(read_available(&mut client), b"hello");
    vm.expect_silence();
}

#[test]
fn the_rings_wrap() {
    let mut vm = Vm::new();
    let (mut client, mut peer) = vm.connect_in(22);
    for i in 0..70_000u32 {
        let bytes = i.to_le_bytes();
        let header = peer.data(4);
        vm.driver.send(&header, &bytes);
        client.write_all(&bytes).unwrap();
        vm.settle();
        assert_eq!(read_available(&mut client), bytes);
        while let Some((header, payload)) = vm.received.pop_front() {
            peer.update(&header);
            if header.op == Op::Rw.number() {
                assert_eq!(payload, bytes);
                peer.fwd_cnt = peer.fwd_cnt.wrapping_add(4);
            }
        }
    }
}
