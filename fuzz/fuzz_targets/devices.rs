//! A driver and the clients of the vsock socket, both in the hands of the fuzzer, with real devices between them.
//!
//! The input is a program: registers are read and written, guest memory is filled, queues are notified, clients come, write,
//! read and go; after each step the devices handle what there is.
#![no_main]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use libfuzzer_sys::fuzz_target;
use msb_vmm::devices::virtio::block::Block;
use msb_vmm::devices::virtio::device::VirtioDevice;
use msb_vmm::devices::virtio::mmio::MmioTransport;
use msb_vmm::devices::virtio::rng::Rng;
use msb_vmm::devices::virtio::vsock::Vsock;
use msb_vmm::memory::GuestMemory;
use msb_vmm::{DiskConfig, VsockConfig};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Bytes of guest memory: a little, so that the fuzzer finds its queues.
const MEMORY: usize = 1 << 16;
/// Clients at once.
const MAX_CLIENTS: usize = 8;
/// The guest's context id.
const CID: u32 = 3;
/// A port of the host that listens, so that the guest's connections go somewhere.
const PORT: u32 = 1024;

type Subscriber = Arc<Mutex<dyn MutEventSubscriber + Send>>;

struct Machine {
    memory: GuestMemory,
    transports: Vec<MmioTransport>,
    events: EventManager<Subscriber>,
    socket: std::path::PathBuf,
    clients: Vec<UnixStream>,
    host: UnixListener,
    _directory: tempfile::TempDir,
}


impl Machine {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let image = directory.path().join("disk");
        std::fs::write(&image, vec![7; 8 << 10]).expect("an image");
        let socket = directory.path().join("v.sock");
        let host = UnixListener::bind(directory.path().join(format!("v.sock_{PORT}"))).expect("a listener");
        host.set_nonblocking(true).expect("a listener");
        let disk = DiskConfig {
            path: image,
            read_only: false,
            serial: "fuzz".into(),
        };
        let mut machine = Self {
            memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory"),
            transports: Vec::new(),
            events: EventManager::new().expect("an event loop"),
            clients: Vec::new(),
            host,
            socket: socket.clone(),
            _directory: directory,
        };
        machine.attach(Rng::new().expect("rng"));
        machine.attach(Vsock::new(VsockConfig::new(CID, socket)).expect("vsock"));
        machine.attach(Block::open(&disk).expect("block"));
        machine
    }

    fn attach<D: VirtioDevice + MutEventSubscriber + Send + 'static>(&mut self, device: D) {
        let device = Arc::new(Mutex::new(device));
        let transport = MmioTransport::new(Arc::clone(&device) as Arc<Mutex<dyn VirtioDevice>>, self.memory.clone());
        self.transports.push(transport.expect("a transport"));
        self.events.add_subscriber(device as Subscriber);
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let operation = input.byte();
        let which = usize::from(input.byte()) % self.transports.len();
        match operation % 9 {
            0 => self.transports[which].write(input.word().into(), &input.long().to_le_bytes()),
            1 => self.transports[which].read(input.word().into(), &mut [0; 4]),
            2 => self.set_up(which, input),
            3 => {
                let address = usize::from(input.word()) % MEMORY;
                let count = usize::from(input.byte()).min(MEMORY - address);
                let bytes = input.take(count);
                self.memory
                    .write_slice(bytes, GuestAddress(address as u64))
                    .expect("inside memory");
            }
            4 => {
                let kicks = self.transports[which].kicks();
                let _ = kicks[usize::from(input.byte()) % kicks.len()].write(1);
            }
            5 if self.clients.len() < MAX_CLIENTS => {
                if let Ok(client) = UnixStream::connect(&self.socket) {
                    client.set_nonblocking(true).expect("a socket");
                    self.clients.push(client);
                }
            }
            6 => {
                let count = input.byte().into();
                let bytes = input.take(count);
                if let Some(client) = self.clients.get_mut(which) {
                    let _ = client.write(if bytes.is_empty() { b"CONNECT 22\n" } else { bytes });
                }
            }
            7 => {
                if let Some(client) = self.clients.get_mut(which) {
                    let _ = client.read(&mut [0; 512]);
                }
            }
            _ => {
                if which < self.clients.len() {
                    self.clients.swap_remove(which);
                }
                // The other end of the guest's own connections comes and goes.
                drop(self.host.accept());
            }
        }
        // All that is ready now; what it leads to may be ready then.
        while self.events.run_with_timeout(0).expect("an event loop") > 0 && input.spend() {}
    }

    /// What a driver does to start a device, with a queue where the input says.
    fn set_up(&mut self, which: usize, input: &mut Input<'_>) {
        let transport = &self.transports[which];
        let write = |offset: u64, value: u32| transport.write(offset, &value.to_le_bytes());
        for status in [0, 1, 3] {
            write(0x70, status);
        }
        for half in 0..2 {
            write(0x14, half);
            let mut features = [0; 4];
            transport.read(0x10, &mut features);
            write(0x24, half);
            transport.write(0x20, &features);
        }
        write(0x70, 11);
        for queue in 0..transport.kicks().len() as u32 {
            write(0x30, queue);
            write(0x38, 1 << (input.byte() % 9));
            for register in [0x80, 0x90, 0xa0] {
                write(register, u32::from(input.word()) & !15);
                write(register + 4, 0);
            }
            write(0x44, 1);
        }
        write(0x70, 15);
    }
}

/// The rest of the input; where it ends come zeros.
struct Input<'a> {
    rest: &'a [u8],
    turns: u32,
}

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(count.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn long(&mut self) -> u32 {
        u32::from(self.word()) | u32::from(self.word()) << 16
    }

    /// A device that never comes to rest is a finding.
    fn spend(&mut self) -> bool {
        self.turns = self.turns.checked_sub(1).expect("the devices come to rest");
        true
    }
}

fuzz_target!(|program: &[u8]| {
    let mut machine = Machine::new();
    let mut input = Input {
        rest: program,
        turns: 10_000,
    };
    while !input.rest.is_empty() {
        machine.step(&mut input);
    }
});
