//! How connections begin.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::super::config::VsockLimits;
use super::super::header::Op;
use super::vm::{Peer, Vm, is_at_eof, read_available};
use crate::devices::virtio::device::VirtioDevice;

#[test]
fn a_client_is_connected_once_the_guest_accepts() {
    let mut vm = Vm::new();
    let mut client = vm.client(b"CONNECT 22\n");
    let request = vm.expect(Op::Request);
    assert_eq!((request.src_cid, request.dst_cid), (2, 7));
    assert_eq!((request.src_port, request.dst_port), (1 << 30, 22));
    assert_eq!(read_available(&mut client), b"");

    let response = Peer::new(request.src_port, 22).header(Op::Response);
    vm.send(&response, &[]);

    assert_eq!(read_available(&mut client), b"OK 1073741824\n");
    vm.expect_silence();
}

#[test]
fn each_client_gets_a_host_port_of_its_own() {
    let mut vm = Vm::new();
    let (_first, first) = vm.connect_in(22);
    let (_second, second) = vm.connect_in(22);
    assert_eq!((first.host_port, second.host_port), (1 << 30, (1 << 30) + 1));
}

#[test]
fn bytes_right_behind_the_line_reach_the_guest() {
    let mut vm = Vm::new();
    let _client = vm.client(b"CONNECT 22\nSSH-2.0-client\r\n");
    let request = vm.expect(Op::Request);
    vm.expect_silence();
    let response = Peer::new(request.src_port, 22).header(Op::Response);
    vm.send(&response, &[]);
    assert_eq!(vm.next().1, b"SSH-2.0-client\r\n");
}

#[test]
fn a_client_without_a_proper_line_is_turned_away() {
    let mut vm = Vm::new();
    for line in [&b"GET / HTTP/1.1\n"[..], b"CONNECT\n", b"\n", &[b'A'; 5 * 1024]] {
        let mut client = vm.client(line);
        assert!(is_at_eof(&mut client), "{line:?}");
    }
    vm.expect_silence();
}

#[test]
fn a_client_that_leaves_in_the_middle_of_its_line_leaves_nothing_behind() {
    let mut vm = Vm::new();
    for line in [&b""[..], b"CONN", b"CONNECT 22"] {
        drop(vm.client(line));
        vm.expect_silence();
    }
}

#[test]
fn a_client_has_a_limited_time_for_its_line() {
    let mut vm = Vm::new();
    let mut client = vm.client(b"CONNECT ");
    vm.advance(Duration::from_secs(4));
    assert!(!is_at_eof(&mut client));
    vm.advance(Duration::from_secs(2));
    assert!(is_at_eof(&mut client));
}

#[test]
fn the_guest_reaches_the_socket_of_its_port() {
    let mut vm = Vm::new();
    let (mut host, mut peer) = vm.connect_out(1024);
    let header = peer.data(5);
    vm.send(&header, b"ready");
    assert_eq!(read_available(&mut host), b"ready");
}

#[test]
fn the_guest_is_refused_where_nobody_listens() {
    let mut vm = Vm::new();
    let request = Peer::new(1024, 5000).header(Op::Request);
    vm.send(&request, &[]);
    let reset = vm.expect(Op::Rst);
    assert_eq!((reset.src_port, reset.dst_port), (1024, 5000));

    // A socket file without a listener.
    drop(vm.host_listener(1024));
    vm.send(&request, &[]);
    vm.expect(Op::Rst);
    vm.expect_silence();
}

#[test]
fn a_client_waits_for_the_driver() {
    let mut vm = Vm::booting(VsockLimits::default());
    let mut client = vm.client(b"CONNECT 22\n");
    vm.advance(Duration::from_secs(30));
    assert!(!is_at_eof(&mut client));

    vm.driver.post_all_rx();
    vm.start_driver(true);

    let request = vm.expect(Op::Request);
    let response = Peer::new(request.src_port, 22).header(Op::Response);
    vm.send(&response, &[]);
    assert_eq!(read_available(&mut client), b"OK 1073741824\n");
}

#[test]
fn a_client_waits_until_the_guest_listens() {
    let mut vm = Vm::new();
    let mut client = vm.client(b"CONNECT 22\n");
    for _ in 0..5 {
        // The pauses between these are real: the timer wakes the device.
        let request = vm.expect(Op::Request);
        let refusal = Peer::new(request.src_port, 22).header(Op::Rst);
        vm.send(&refusal, &[]);
        assert!(!is_at_eof(&mut client));
    }

    let request = vm.expect(Op::Request);
    let response = Peer::new(request.src_port, 22).header(Op::Response);
    vm.send(&response, &[]);

    assert_eq!(
        read_available(&mut client),
        format!("OK {}\n", request.src_port).as_bytes()
    );
}

#[test]
fn a_client_is_tried_again_at_once_when_the_guest_comes_up() {
    let mut limits = VsockLimits::default();
    limits.hold.first_retry = Duration::from_secs(50);
    let mut vm = Vm::with_limits(limits);
    let mut client = vm.client(b"CONNECT 22\n");
    let request = vm.expect(Op::Request);
    let refusal = Peer::new(request.src_port, 22).header(Op::Rst);
    vm.send(&refusal, &[]);
    vm.expect_silence();

    let _host = vm.connect_out_beside_others(1024);

    let request = vm.expect(Op::Request);
    let refusal = Peer::new(request.src_port, 22).header(Op::Rst);
    vm.send(&refusal, &[]);
    // From then on it is not patient any more.
    vm.advance(Duration::from_millis(1900));
    assert!(!is_at_eof(&mut client));
    vm.advance(Duration::from_millis(200));
    assert!(is_at_eof(&mut client));
}

#[test]
fn a_client_is_refused_when_its_patience_ends() {
    let mut vm = Vm::new();
    let mut asked = vm.client(b"CONNECT 22\n");
    vm.expect(Op::Request);
    vm.advance(Duration::from_secs(59));
    assert!(!is_at_eof(&mut asked));
    vm.advance(Duration::from_secs(2));
    assert!(is_at_eof(&mut asked));
    vm.expect(Op::Rst);
    vm.expect_silence();
}

#[test]
fn a_client_that_leaves_while_it_waits_is_forgotten() {
    let mut vm = Vm::new();
    let client = vm.client(b"CONNECT 22\n");
    let request = vm.expect(Op::Request);
    drop(client);
    let reset = vm.expect(Op::Rst);
    assert_eq!((reset.src_port, reset.dst_port), (request.src_port, 22));

    // Its late answer is to nobody.
    let response = Peer::new(request.src_port, 22).header(Op::Response);
    vm.send(&response, &[]);
    vm.expect(Op::Rst);

    let client = vm.client(b"CONNECT 22\n");
    let request = vm.expect(Op::Request);
    let refusal = Peer::new(request.src_port, 22).header(Op::Rst);
    vm.send(&refusal, &[]);
    drop(client);
    vm.advance(Duration::from_secs(10));
    vm.expect_silence();
}

#[test]
fn a_driver_that_resets_the_device_ends_its_connections_but_not_the_wait_of_clients() {
    let mut vm = Vm::new();
    let (mut connected, _) = vm.connect_in(22);
    let mut waiting = vm.client(b"CONNECT 23\n");
    vm.expect(Op::Request);

    vm.restart_driver();

    assert!(is_at_eof(&mut connected));
    let request = vm.expect(Op::Request);
    assert_eq!(request.dst_port, 23);
    let response = Peer::new(request.src_port, 23).header(Op::Response);
    vm.send(&response, &[]);
    assert!(read_available(&mut waiting).starts_with(b"OK "));
    vm.expect_silence();
}

#[test]
fn a_device_that_is_started_and_reset_in_a_hurry_follows() {
    let mut vm = Vm::new();
    for _ in 0..1000 {
        vm.device.reset();
        vm.device.activate(vm.driver.activation(true)).unwrap();
    }
    vm.device.reset();
    vm.settle();
    vm.driver = super::driver::Driver::new();
    vm.driver.post_all_rx();
    vm.start_driver(true);
    vm.connect_in(22);
}

#[test]
fn the_configuration_space_is_the_context_id() {
    let vm = Vm::new();
    let mut data = [0xff; 12];
    vm.device.read_config(0, &mut data);
    assert_eq!(data, [7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut data = [0xff; 4];
    vm.device.read_config(4, &mut data);
    assert_eq!(data, [0; 4]);
    vm.device.read_config(u64::MAX, &mut data);
    assert_eq!(data, [0; 4]);
}

#[test]
fn many_clients_at_once_are_all_served() {
    let mut vm = Vm::with_limits(VsockLimits {
        max_handshakes: 4,
        ..VsockLimits::default()
    });
    let mut clients: Vec<UnixStream> = (0..50).map(|_| UnixStream::connect(vm.path()).unwrap()).collect();
    vm.settle();
    for client in &mut clients {
        client.write_all(b"CONNECT 22\n").unwrap();
    }
    let mut ports: Vec<u32> = (0..50).map(|_| vm.expect(Op::Request).src_port).collect();
    ports.dedup();
    assert_eq!(ports.len(), 50);
}

impl Vm {
    /// As [`Vm::connect_out`], while other packets may come.
    fn connect_out_beside_others(&mut self, port: u32) -> std::os::unix::net::UnixListener {
        let listener = self.host_listener(port);
        let request = Peer::new(port, 1024).header(Op::Request);
        self.send(&request, &[]);
        let at = self
            .received
            .iter()
            .position(|(header, _)| header.op == Op::Response.number());
        self.received.remove(at.expect("the host accepts"));
        listener
    }
}
