//! A driver, the clients of the vsock socket and the server of a file system, all in the hands of the fuzzer, with real
//! devices between them.
//!
//! The input is a program: registers are read and written, guest memory is filled, queues are notified, clients come,
//! write, read and go, the server answers or says nonsense; after each step the devices handle what there is.
#![no_main]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;
use msb_fuzz::fuse::{self, Server};
use msb_fuzz::{Input, Machine, Ring};
use msb_vmm::devices::virtio::balloon::Balloon;
use msb_vmm::devices::virtio::block::Block;
use msb_vmm::devices::virtio::fs::Fs;
use msb_vmm::devices::virtio::rng::Rng;
use msb_vmm::devices::virtio::vsock::Vsock;
use msb_vmm::{DiskConfig, VsockConfig};
use vm_memory::{Bytes, GuestAddress};

/// Bytes of guest memory: a little, so that the fuzzer finds its queues.
const MEMORY: usize = 1 << 16;
/// Clients at once.
const MAX_CLIENTS: usize = 8;
/// The guest's context id.
const CID: u32 = 3;
/// A port of the host that listens, so that the guest's connections go somewhere.
const PORT: u32 = 1024;
/// The file system among the devices, and the first operation that concerns it.
const FILE_SYSTEM: usize = 4;
const OF_FILE_SYSTEM: u8 = 225;

struct World {
    machine: Machine,
    socket: PathBuf,
    clients: Vec<UnixStream>,
    host: UnixListener,
    server: Server,
    _directory: tempfile::TempDir,
}

impl World {
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
        let mut machine = Machine::new(Machine::memory(MEMORY));
        machine.attach(Rng::new().expect("rng"));
        machine.attach(Vsock::new(VsockConfig::new(CID, socket.clone())).expect("vsock"));
        machine.attach(Block::open(&disk).expect("block"));
        machine.attach(Balloon::new().expect("balloon"));
        let (server, config) = Server::new();
        machine.attach(Fs::new(&config).expect("a file system"));
        Self {
            machine,
            socket,
            clients: Vec::new(),
            host,
            server,
            _directory: directory,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let operation = input.byte();
        let which = match operation {
            OF_FILE_SYSTEM.. => FILE_SYSTEM,
            _ => input.below(FILE_SYSTEM),
        };
        match operation % 9 {
            0 => self.machine.write(which, input.word().into(), input.long()),
            1 => self.machine.transports[which].read(input.word().into(), &mut [0; 4]),
            2 => self.start(which, input),
            3 => {
                let address = usize::from(input.word()) % MEMORY;
                let count = usize::from(input.byte()).min(MEMORY - address);
                let bytes = input.take(count);
                let address = GuestAddress(address as u64);
                self.machine.memory.write_slice(bytes, address).expect("inside memory");
            }
            4 => self.machine.kick(which, input.byte().into()),
            5.. if which == FILE_SYSTEM => self.serve(operation, input),
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
        self.machine.settle();
    }

    /// The server of the file system does something.
    fn serve(&mut self, operation: u8, input: &mut Input<'_>) {
        match operation % 9 {
            5 => {
                while let Some(request) = self.server.hear() {
                    let body = vec![operation; input.byte().into()];
                    self.server.say(&fuse::answer(fuse::unique(&request), 0, &body));
                    self.machine.settle();
                }
            }
            6 => {
                let count = input.byte().into();
                self.server.say(input.take(count));
            }
            7 => drop(self.server.hear()),
            _ => self.server.go(),
        }
    }

    /// What a driver does to start a device, with queues where the input says, which hold what was there.
    fn start(&mut self, which: usize, input: &mut Input<'_>) {
        let queues = self.machine.transports[which].kicks().len();
        let rings: Vec<Ring> = (0..queues)
            .map(|_| Ring::at(u64::from(input.word()) & !15, 1 << (input.byte() % 9)))
            .collect();
        self.machine.start(which, &rings, 0);
    }
}

fuzz_target!(|program: &[u8]| {
    let mut world = World::new();
    let mut input = Input::new(program);
    while !input.is_empty() {
        world.step(&mut input);
    }
});
