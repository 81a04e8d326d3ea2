//! The device on a real event manager, in a thread of its own.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use rustix::event::{PollFd, PollFlags, Timespec};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::config::VsockConfig;
use super::super::device::{Vsock, VsockError};
use super::super::header::{Header, Op, SHUTDOWN_SEND};
use super::super::queues::borrow;
use super::driver::Driver;
use super::vm::{GUEST_CID, Peer, pattern};
use crate::devices::virtio::device::VirtioDevice;

/// Ends the event loop.
struct Stop {
    event: EventFd,
    stopped: Arc<AtomicBool>,
}

impl MutEventSubscriber for Stop {
    fn init(&mut self, ops: &mut EventOps) {
        ops.add(Events::new(&self.event, EventSet::IN)).unwrap();
    }

    fn process(&mut self, _: Events, _: &mut EventOps) {
        let _ = self.event.read();
        self.stopped.store(true, Ordering::SeqCst);
    }
}

fn next_packet(driver: &mut Driver) -> (Header, Vec<u8>) {
    loop {
        if let Some(packet) = driver.receive(true) {
            return packet;
        }
        let timeout = Timespec { tv_sec: 20, tv_nsec: 0 };
        let line = Arc::clone(&driver.interrupt);
        let mut fds = [PollFd::from_borrowed_fd(borrow(line.line()), PollFlags::IN)];
        assert_eq!(rustix::event::poll(&mut fds, Some(&timeout)), Ok(1), "no interrupt");
        line.line().read().unwrap();
    }
}

#[test]
fn data_flows_through_a_device_on_its_own_thread() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock");
    let device = Arc::new(Mutex::new(Vsock::new(VsockConfig::new(GUEST_CID, &path)).unwrap()));
    let stop = EventFd::new(EFD_NONBLOCK).unwrap();
    let stop_event = stop.try_clone().unwrap();
    let subscriber = Arc::clone(&device);
    let event_loop = std::thread::spawn(move || {
        let stopped = Arc::new(AtomicBool::new(false));
        let mut manager: EventManager<Box<dyn MutEventSubscriber>> = EventManager::new().unwrap();
        manager.add_subscriber(Box::new(subscriber));
        manager.add_subscriber(Box::new(Stop {
            event: stop_event,
            stopped: Arc::clone(&stopped),
        }));
        while !stopped.load(Ordering::SeqCst) {
            manager.run().unwrap();
        }
    });

    // The client is there before the driver, and the driver starts the device twice.
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    client.write_all(b"CONNECT 22\n").unwrap();
    let mut driver = Driver::new();
    driver.post_all_rx();
    device.lock().unwrap().activate(driver.activation(false)).unwrap();
    assert_eq!(next_packet(&mut driver).0.dst_port, 22);
    device.lock().unwrap().reset();
    driver = Driver::new();
    driver.post_all_rx();
    device.lock().unwrap().activate(driver.activation(false)).unwrap();
    let (request, _) = next_packet(&mut driver);
    assert_eq!(request.op, Op::Request.number());

    let mut peer = Peer::new(request.src_port, 22);
    let response = peer.header(Op::Response);
    driver.send(&response, &[]);
    let mut line = [0; 14];
    client.read_exact(&mut line).unwrap();
    assert_eq!(line, *b"OK 1073741824\n");

    let bytes = pattern(100_000, 1);
    client.write_all(&bytes).unwrap();
    let mut received = Vec::new();
    while received.len() < bytes.len() {
        received.extend(next_packet(&mut driver).1);
    }
    assert!(received == bytes);

    for piece in bytes.chunks(20_000) {
        let header = peer.data(piece.len());
        driver.send(&header, piece);
    }
    let shutdown = peer.shutdown(SHUTDOWN_SEND);
    driver.send(&shutdown, &[]);
    let mut echoed = Vec::new();
    client.read_to_end(&mut echoed).unwrap();
    assert!(echoed == bytes);

    stop.write(1).unwrap();
    event_loop.join().unwrap();
    drop(device);
    assert!(!path.exists());
}

#[test]
fn a_device_is_made_with_a_socket_of_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock");
    let listener = UnixListener::bind(&path).unwrap();
    drop(Vsock::with_listener(VsockConfig::new(GUEST_CID, &path), listener).unwrap());
    assert!(path.exists());
}

#[test]
fn reserved_context_ids_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for cid in [0, 1, 2, u32::MAX] {
        let path = dir.path().join("v.sock");
        let result = Vsock::new(VsockConfig::new(cid, &path));
        assert!(matches!(result, Err(VsockError::InvalidCid { cid: c }) if c == cid));
        assert!(!path.exists());
    }
}
