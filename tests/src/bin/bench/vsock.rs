//! The vsock device alone: streams between a Unix socket of the host and a program in the guest, without SSH.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use msb_ssh::vsock::connect;
use msb_tests::Msb;
use vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};

use crate::figure::Figure;
use crate::firecracker::Machine;
use crate::guest;
use crate::peers::Peer;

const PORT: u32 = 7000;
/// Bytes of a message whose way there and back is timed: a keystroke's packet.
const MESSAGE: usize = 64;
/// Messages of one sample.
const MESSAGES: usize = 100;
/// Bytes of each write and read of a bulk transfer.
const PIECE: usize = 64 << 10;
/// How long the guest may take to listen.
const PATIENCE: Duration = Duration::from_secs(60);

// What the guest is asked for, as a byte; a length of eight bytes follows.
const TO_HOST: u8 = 0;
const TO_GUEST: u8 = 1;
const ECHO: u8 = 2;

/// Measures with transfers of `bulk_mib` MiB; beside Firecracker's device, if that is among the peers, in turn.
pub(crate) fn measure(samples: usize, bulk_mib: usize, peers: &[Peer]) -> Vec<Figure> {
    let msb = Msb::in_memory();
    let sandbox = guest::start(&msb, "vsock", &[]);
    guest::run_in_background(&sandbox, "vsock");
    let ours = Client {
        socket: msb.runtime().join(sandbox.id()).join("v.sock"),
        bulk_mib,
    };
    let machine = peers
        .iter()
        .find_map(Peer::firecracker)
        .map(|program| Machine::start(program, guest::MEMORY_MIB, "vsock"));
    let theirs = machine.as_ref().map(|machine| Client {
        socket: machine.socket.clone(),
        bulk_mib,
    });
    measure_with(&ours, theirs.as_ref(), samples)
}

fn measure_with(ours: &Client, theirs: Option<&Client>, samples: usize) -> Vec<Figure> {
    let mut measured: Vec<_> = [(ours, "vsock")]
        .into_iter()
        .chain(theirs.map(|theirs| (theirs, "vsock of Firecracker")))
        .map(|(client, device)| (client, figures(device)))
        .collect();
    for (client, _) in &measured {
        client.await_guest();
    }
    for _ in 0..samples {
        for (client, [connecting, message, to_host, to_guest]) in &mut measured {
            connecting.add(client.connection());
            message.add(client.echo(MESSAGES));
            to_host.add(client.to_host());
            to_guest.add(client.to_guest());
        }
    }
    let ratios = match &measured[..] {
        [(_, ours), (_, theirs)] => {
            let pairs = ours.iter().zip(theirs);
            pairs
                .map(|(ours, theirs)| ours.ratio_to(format!("{} / {}", ours.name, theirs.name), theirs))
                .collect()
        }
        _ => Vec::new(),
    };
    measured
        .into_iter()
        .flat_map(|(_, figures)| figures)
        .chain(ratios)
        .collect()
}

/// What is measured of a device.
fn figures(device: &str) -> [Figure; 4] {
    [
        Figure::warm(format!("{device}: connection to the guest"), "ms"),
        Figure::warm(format!("{device}: {MESSAGE} bytes there and back"), "ms"),
        Figure::warm(format!("{device}: guest to host"), "MiB/s"),
        Figure::warm(format!("{device}: host to guest"), "MiB/s"),
    ]
}

/// The host's end.
struct Client {
    socket: std::path::PathBuf,
    bulk_mib: usize,
}

impl Client {
    /// Waits until the guest listens: Firecracker's device has no socket before, and refuses until then.
    fn await_guest(&self) {
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = connect(&self.socket, PORT, PATIENCE) {
            assert!(Instant::now() < deadline, "{error}");
            std::thread::sleep(Duration::from_millis(50));
        }
        self.echo(1);
    }

    fn ask(&self, what: u8, length: u64) -> UnixStream {
        let mut stream = connect(&self.socket, PORT, PATIENCE).unwrap_or_else(|error| panic!("{error}"));
        let request = [&[what][..], &length.to_le_bytes()].concat();
        stream.write_all(&request).expect("the guest takes a request");
        stream
    }

    /// Milliseconds that a connection takes.
    fn connection(&self) -> f64 {
        let began = Instant::now();
        connect(&self.socket, PORT, PATIENCE).unwrap_or_else(|error| panic!("{error}"));
        began.elapsed().as_secs_f64() * 1e3
    }

    /// Milliseconds of one of `messages`.
    fn echo(&self, messages: usize) -> f64 {
        let mut stream = self.ask(ECHO, 0);
        let mut message = [7; MESSAGE];
        let began = Instant::now();
        for _ in 0..messages {
            stream.write_all(&message).expect("the guest takes a message");
            stream.read_exact(&mut message).expect("the guest answers");
        }
        began.elapsed().as_secs_f64() * 1e3 / f64::from(u32::try_from(messages).expect("a few"))
    }

    fn to_host(&self) -> f64 {
        let began = Instant::now();
        let mut stream = self.ask(TO_HOST, self.bulk_bytes());
        let received = drain(&mut stream).expect("the guest sends");
        assert_eq!(received, self.bulk_bytes());
        self.rate(began)
    }

    fn to_guest(&self) -> f64 {
        let began = Instant::now();
        let mut stream = self.ask(TO_GUEST, self.bulk_bytes());
        fill(&mut stream, self.bulk_bytes()).expect("the guest receives");
        stream.read_exact(&mut [0]).expect("the guest has all of it");
        self.rate(began)
    }

    fn bulk_bytes(&self) -> u64 {
        (self.bulk_mib as u64) << 20
    }

    /// MiB a second of a transfer that began then.
    fn rate(&self, began: Instant) -> f64 {
        f64::from(u32::try_from(self.bulk_mib).expect("a few")) / began.elapsed().as_secs_f64()
    }
}

/// The guest's end: answers one connection after the other.
pub(crate) fn serve() -> io::Result<()> {
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, PORT)?;
    for stream in listener.incoming() {
        // One that only connects asks for nothing.
        let _ = answer(stream?);
    }
    Ok(())
}

fn answer(mut stream: VsockStream) -> io::Result<()> {
    let mut request = [0; 9];
    stream.read_exact(&mut request)?;
    let [what, length @ ..] = request;
    let length = u64::from_le_bytes(length);
    match what {
        TO_HOST => fill(&mut stream, length),
        TO_GUEST => {
            io::copy(&mut (&mut stream).take(length), &mut io::sink())?;
            stream.write_all(&[0])
        }
        _ => {
            let mut message = [0; MESSAGE];
            loop {
                stream.read_exact(&mut message)?;
                stream.write_all(&message)?;
            }
        }
    }
}

fn fill(stream: &mut impl Write, length: u64) -> io::Result<()> {
    let piece = [7; PIECE];
    let mut left = length;
    while left > 0 {
        let next = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        stream.write_all(&piece[..next])?;
        left -= next as u64;
    }
    Ok(())
}

/// Reads to the end; how much there was.
fn drain(stream: &mut impl Read) -> io::Result<u64> {
    let mut piece = vec![0; PIECE];
    let mut received = 0;
    loop {
        match stream.read(&mut piece)? {
            0 => return Ok(received),
            read => received += read as u64,
        }
    }
}
