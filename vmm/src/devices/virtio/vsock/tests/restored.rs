//! A device whose VM was restored: the driver believes in connections that are gone.

use std::os::unix::net::UnixStream;

use virtio_bindings::virtio_ring::VRING_DESC_F_WRITE;
use vm_memory::{Bytes, GuestAddress};

use super::super::config::VsockLimits;
use super::super::header::Op;
use super::vm::{Peer, Vm};
use crate::devices::virtio::device::VirtioDevice;

/// Where the driver's one event buffer is.
const EVENT: GuestAddress = GuestAddress(0x8000);

fn post_event_buffer(vm: &mut Vm) {
    vm.driver.memory.write_obj(u32::MAX, EVENT).unwrap();
    vm.driver.event.describe(0, EVENT.0, 4, VRING_DESC_F_WRITE, 0);
    vm.driver.event.publish(0);
    vm.driver.event.kick.write(1).unwrap();
}

/// A device that goes on with queues that a driver had started.
fn restored() -> Vm {
    let mut vm = Vm::booting(VsockLimits::default());
    vm.driver.post_all_rx();
    vm.device.activate(vm.driver.activation(true)).unwrap();
    vm.device.was_restored();
    vm
}

#[test]
fn the_driver_is_told_that_its_connections_are_gone() {
    let mut vm = restored();
    vm.settle();
    assert_eq!(vm.driver.event.used_idx(), 0, "there is no buffer yet");
    vm.driver.interrupt.acknowledge(u32::MAX);
    post_event_buffer(&mut vm);
    vm.settle();
    assert_eq!(vm.driver.event.used_idx(), 1);
    assert_eq!(
        vm.driver.memory.read_obj::<u32>(EVENT).unwrap(),
        0,
        "VIRTIO_VSOCK_EVENT_TRANSPORT_RESET"
    );
    assert_ne!(vm.driver.interrupt.status(), 0);
    // Once.
    post_event_buffer(&mut vm);
    vm.settle();
    assert_eq!(vm.driver.event.used_idx(), 1);
    // And what is still sent on one of them is refused.
    let mut peer = Peer::new(1 << 30, 22);
    let data = peer.data(3);
    vm.send(&data, b"old");
    vm.expect(Op::Rst);
}

#[test]
fn clients_wait_until_the_guest_has_connected_to_the_host() {
    let mut vm = restored();
    let client = vm.client(b"CONNECT 22\n");
    vm.expect_silence();
    assert_eq!(vm.device.sizes().handshakes, 0);
    let listener = vm.host_listener(1024);
    let request = Peer::new(1024, 1000).header(Op::Request);
    vm.send(&request, &[]);
    vm.expect(Op::Response);
    assert_eq!(vm.expect(Op::Request).dst_port, 22);
    let _agent: UnixStream = listener.accept().unwrap().0;
    drop(client);
}
