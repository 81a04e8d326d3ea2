//! Whatever guest and clients do, in any order, the device stays within its bounds.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use proptest::prelude::*;

use super::super::config::VsockLimits;
use super::super::header::{Header, Op};
use super::vm::{GUEST_CID, Vm, read_available};

const MAX_CONNECTIONS: u16 = 6;

#[derive(Debug, Clone)]
enum Step {
    /// A packet from the guest, near to what makes sense: `about` picks a port pair that was in use.
    Packet {
        about: usize,
        op: u16,
        len: u16,
        real_len: u16,
        flags: u32,
        buf_alloc: u32,
        fwd_cnt: u32,
    },
    /// A packet to an arbitrary address.
    Stray {
        dst_cid: u64,
        kind: u16,
        op: u16,
        src_port: u32,
        dst_port: u32,
    },
    Client {
        line: Vec<u8>,
    },
    ClientWrites {
        which: usize,
        len: u16,
    },
    ClientReads {
        which: usize,
    },
    ClientHalfCloses {
        which: usize,
    },
    ClientLeaves {
        which: usize,
    },
    GuestStalls(bool),
    Time {
        millis: u64,
    },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let line = prop_oneof![
        6 => Just(b"CONNECT 22\n".to_vec()),
        1 => Just(b"CONNECT 22".to_vec()),
        1 => Just(b"CONNECT 23\nearly data".to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..60),
    ];
    let credit = prop_oneof![Just(0u32), Just(4096), Just(256 << 10), any::<u32>()];
    prop_oneof![
        12 => (0usize..8, 0u16..9, 0u16..3000, 0u16..3000, 0u32..5, credit, prop_oneof![Just(0u32), any::<u32>()])
            .prop_map(|(about, op, len, real_len, flags, buf_alloc, fwd_cnt)| {
                // Lies about lengths are rare, or nothing else would ever happen.
                let real_len = if flags == 4 { real_len } else { len };
                Step::Packet { about, op, len, real_len, flags, buf_alloc, fwd_cnt }
            }),
        4 => (0usize..8).prop_map(|about| Step::Packet {
            about, op: 2, len: 0, real_len: 0, flags: 0, buf_alloc: 256 << 10, fwd_cnt: 0,
        }),
        2 => (0u64..4, 0u16..3, 0u16..9, any::<u32>(), prop_oneof![Just(1024u32), any::<u32>()])
            .prop_map(|(dst_cid, kind, op, src_port, dst_port)| Step::Stray { dst_cid, kind, op, src_port, dst_port }),
        5 => line.prop_map(|line| Step::Client { line }),
        4 => (0usize..8, 0u16..20_000).prop_map(|(which, len)| Step::ClientWrites { which, len }),
        3 => (0usize..8).prop_map(|which| Step::ClientReads { which }),
        2 => (0usize..8).prop_map(|which| Step::ClientHalfCloses { which }),
        2 => (0usize..8).prop_map(|which| Step::ClientLeaves { which }),
        1 => any::<bool>().prop_map(Step::GuestStalls),
        2 => (1u64..5000).prop_map(|millis| Step::Time { millis }),
        1 => Just(Step::Restart),
    ]
}

struct World {
    vm: Vm,
    clients: Vec<UnixStream>,
    /// Port pairs (host, guest) that the device has spoken of.
    seen: Vec<(u32, u32)>,
}

impl World {
    fn apply(&mut self, step: Step) {
        let Self { vm, clients, seen } = self;
        match step {
            Step::Packet {
                about,
                op,
                len,
                real_len,
                flags,
                buf_alloc,
                fwd_cnt,
            } => {
                let Some((host_port, guest_port)) = seen.iter().rev().nth(about) else {
                    return;
                };
                let header = Header {
                    src_cid: GUEST_CID.into(),
                    dst_cid: 2,
                    src_port: *guest_port,
                    dst_port: *host_port,
                    len: len.into(),
                    kind: 1,
                    op,
                    flags,
                    buf_alloc,
                    fwd_cnt,
                };
                if vm.driver.can_send() {
                    vm.send(&header, &vec![0x5a; real_len.into()]);
                }
            }
            Step::Stray {
                dst_cid,
                kind,
                op,
                src_port,
                dst_port,
            } => {
                let header = Header {
                    src_cid: GUEST_CID.into(),
                    dst_cid,
                    src_port,
                    dst_port,
                    len: 0,
                    kind,
                    op,
                    flags: 0,
                    buf_alloc: 1 << 16,
                    fwd_cnt: 0,
                };
                if vm.driver.can_send() {
                    vm.send(&header, &[]);
                }
            }
            Step::Client { line } => {
                if clients.len() < 20 {
                    let client = vm.client(&line);
                    clients.push(client);
                }
            }
            Step::ClientWrites { which, len } => {
                if let Some(client) = clients.get_mut(which) {
                    // Refused when it is full or closed.
                    let _ = client.write(&vec![7; len.into()]);
                }
            }
            Step::ClientReads { which } => {
                if let Some(client) = clients.get_mut(which) {
                    read_available(client);
                }
            }
            Step::ClientHalfCloses { which } => {
                if let Some(client) = clients.get(which) {
                    let _ = client.shutdown(Shutdown::Write);
                }
            }
            Step::ClientLeaves { which } => {
                if which < clients.len() {
                    clients.swap_remove(which);
                }
            }
            Step::GuestStalls(stalls) => vm.guest_receives = !stalls,
            Step::Time { millis } => vm.advance(Duration::from_millis(millis)),
            Step::Restart => vm.restart_driver(),
        }
        vm.settle();
        for (header, _) in vm.received.drain(..) {
            assert_eq!(
                (header.dst_cid, Op::from_number(header.op).is_some()),
                (GUEST_CID.into(), true)
            );
            seen.push((header.src_port, header.dst_port));
        }
        vm.assert_bounded(MAX_CONNECTIONS.into());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn nothing_breaks_the_device(steps in prop::collection::vec(step(), 1..120)) {
        let vm = Vm::with_limits(VsockLimits {
            max_connections: MAX_CONNECTIONS,
            max_handshakes: 3,
            buffer_size: 8192,
            ..VsockLimits::default()
        });
        let listener = vm.host_listener(1024);
        listener.set_nonblocking(true).unwrap();
        let mut world = World { vm, clients: Vec::new(), seen: Vec::new() };
        for step in steps {
            world.apply(step);
            while let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(true).unwrap();
                world.clients.push(stream);
            }
        }

        // Once everyone is gone, nothing is left.
        world.clients.clear();
        world.vm.guest_receives = true;
        world.vm.restart_driver();
        world.vm.advance(Duration::from_secs(100));
        world.vm.assert_empty();
        world.vm.received.clear();
        world.vm.connect_in(22);
    }
}
