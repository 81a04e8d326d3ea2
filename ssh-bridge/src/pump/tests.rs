use std::io::{PipeReader, PipeWriter, Read, Write};
use std::net;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use super::*;

const MIB: usize = 1024 * 1024;

/// The ends that a test holds: what ssh writes to and reads from, and the guest.
struct Ends<W, R> {
    to_pump: W,
    from_pump: R,
    guest: UnixStream,
    pump: JoinHandle<io::Result<PumpStats>>,
}

fn start<W, R>(to_pump: W, input: OwnedFd, output: OwnedFd, from_pump: R, buffered: bool) -> Ends<W, R> {
    let (stream, guest) = UnixStream::pair().unwrap();
    let mut pump = Pump::new(input, output, stream.into()).unwrap();
    if buffered {
        pump.up = Direction::buffered(Kind::of(pump.input.as_ref().unwrap()).unwrap(), Kind::Socket);
        pump.down = Direction::buffered(Kind::Socket, Kind::of(pump.output.as_ref().unwrap()).unwrap());
    }
    Ends {
        to_pump,
        from_pump,
        guest,
        pump: thread::spawn(move || pump.run()),
    }
}

fn over_pipes(buffered: bool) -> Ends<PipeWriter, PipeReader> {
    let (input, to_pump) = io::pipe().unwrap();
    let (from_pump, output) = io::pipe().unwrap();
    start(to_pump, input.into(), output.into(), from_pump, buffered)
}

/// One socket as both input and output, as inetd gives it.
fn over_socket() -> Ends<UnixStream, UnixStream> {
    let (ours, ssh) = UnixStream::pair().unwrap();
    let input = ours.try_clone().unwrap().into();
    start(ssh.try_clone().unwrap(), input, ours.into(), ssh, false)
}

/// Bytes that do not repeat at any buffer size in use, different for each seed.
fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn read_all(mut from: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).unwrap();
    bytes
}

/// 64 MiB each way at once, with the end of each direction passed on.
fn both_ways<W: Write + Send + 'static, R: Read + Send + 'static>(ends: Ends<W, R>, end_input: fn(W)) {
    let (up, down) = (pattern(1, 64 * MIB), pattern(2, 64 * MIB));
    let Ends {
        mut to_pump,
        from_pump,
        guest,
        pump,
    } = ends;
    let guest_reader = guest.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            to_pump.write_all(&up).unwrap();
            end_input(to_pump);
        });
        scope.spawn(|| {
            (&guest).write_all(&down).unwrap();
            guest.shutdown(net::Shutdown::Write).unwrap();
        });
        let at_guest = scope.spawn(|| read_all(guest_reader));
        assert!(read_all(from_pump) == down, "what the guest sent arrives unchanged");
        assert!(at_guest.join().unwrap() == up, "what the client sent arrives unchanged");
    });
    let length = u64::try_from(64 * MIB).unwrap();
    assert_eq!(
        pump.join().unwrap().unwrap(),
        PumpStats {
            to_guest: length,
            from_guest: length
        }
    );
}

#[test]
fn pipes_carry_both_directions_at_once() {
    both_ways(over_pipes(false), drop);
}

#[test]
fn pipes_carry_both_directions_without_splice() {
    both_ways(over_pipes(true), drop);
}

#[test]
fn a_socket_carries_both_directions_at_once() {
    both_ways(over_socket(), |socket| socket.shutdown(net::Shutdown::Write).unwrap());
}

#[test]
fn after_the_end_of_input_the_guest_still_answers() {
    let Ends {
        to_pump,
        mut from_pump,
        mut guest,
        pump,
    } = over_pipes(false);
    drop(to_pump);
    assert_eq!(guest.read(&mut [0]).unwrap(), 0, "the guest sees the end");
    guest.write_all(b"answer").unwrap();
    let mut answer = [0; 6];
    from_pump.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
    drop(guest);
    assert!(read_all(from_pump).is_empty());
    assert_eq!(
        pump.join().unwrap().unwrap(),
        PumpStats {
            to_guest: 0,
            from_guest: 6
        }
    );
}

#[test]
fn after_the_end_of_the_guest_output_is_closed_and_input_still_flows() {
    let Ends {
        mut to_pump,
        from_pump,
        mut guest,
        pump,
    } = over_pipes(false);
    guest.shutdown(net::Shutdown::Write).unwrap();
    assert!(read_all(from_pump).is_empty());
    to_pump.write_all(b"still sent").unwrap();
    let mut received = [0; 10];
    guest.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"still sent");
    drop(to_pump);
    assert_eq!(
        pump.join().unwrap().unwrap(),
        PumpStats {
            to_guest: 10,
            from_guest: 0
        }
    );
}

#[test]
fn a_socket_sees_the_end_of_the_guest_while_it_still_sends() {
    let Ends {
        mut to_pump,
        from_pump,
        mut guest,
        pump,
    } = over_socket();
    guest.shutdown(net::Shutdown::Write).unwrap();
    assert!(read_all(from_pump).is_empty());
    to_pump.write_all(b"still sent").unwrap();
    to_pump.shutdown(net::Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut guest), b"still sent");
    pump.join().unwrap().unwrap();
}

#[test]
fn a_guest_that_is_gone_ends_the_pump_though_input_is_open() {
    let Ends {
        to_pump,
        from_pump,
        guest,
        pump,
    } = over_pipes(false);
    drop(guest);
    pump.join().unwrap().unwrap();
    drop((to_pump, from_pump));
}

#[test]
fn a_client_that_is_gone_ends_the_pump_though_input_is_open() {
    let Ends {
        mut to_pump,
        from_pump,
        guest,
        pump,
    } = over_pipes(false);
    to_pump.write_all(b"last words").unwrap();
    drop(from_pump);
    pump.join().unwrap().unwrap();
    drop(to_pump);
    assert_eq!(read_all(guest), b"last words");
}

#[test]
fn a_client_that_reads_nothing_does_not_hold_up_its_own_input() {
    let Ends {
        mut to_pump,
        from_pump,
        guest,
        pump,
    } = over_pipes(false);
    let (stuck, is_stuck) = mpsc::channel();
    let down = pattern(3, 4 * MIB);
    thread::scope(|scope| {
        scope.spawn(|| {
            guest.set_nonblocking(true).unwrap();
            let mut sent = 0;
            while let Ok(count) = (&guest).write(&down[sent..]) {
                sent += count;
            }
            guest.set_nonblocking(false).unwrap();
            stuck.send(()).unwrap();
            (&guest).write_all(&down[sent..]).unwrap();
            guest.shutdown(net::Shutdown::Write).unwrap();
        });
        is_stuck.recv().unwrap();
        let up = pattern(4, 4 * MIB);
        let sent = up.clone();
        scope.spawn(move || to_pump.write_all(&sent).unwrap());
        assert!(read_all(&guest) == up);
        assert!(read_all(from_pump) == down);
    });
    pump.join().unwrap().unwrap();
}

/// Drives a pump as far as it gets without waiting. `false` when it ended.
fn drive(pump: &mut Pump) -> bool {
    for _ in 0..10_000 {
        if !pump.advance().unwrap() {
            return false;
        }
        if !pump.can_go_on() && !pump.look(true).unwrap() {
            return true;
        }
    }
    panic!("the pump never comes to rest");
}

#[test]
fn a_pump_that_can_do_nothing_comes_to_rest_in_every_state() {
    for buffered in [false, true] {
        let (input, mut to_pump) = io::pipe().unwrap();
        let (from_pump, output) = io::pipe().unwrap();
        let (stream, mut guest) = UnixStream::pair().unwrap();
        let mut pump = Pump::new(input.into(), output.into(), stream.into()).unwrap();
        if buffered {
            pump.up = Direction::buffered(Kind::Pipe, Kind::Socket);
            pump.down = Direction::buffered(Kind::Socket, Kind::Pipe);
        }
        assert!(drive(&mut pump), "idle");
        guest.set_nonblocking(true).unwrap();
        let chunk = pattern(5, 64 * 1024);
        while guest.write(&chunk).is_ok() {
            assert!(drive(&mut pump), "output fills up");
        }
        to_pump.write_all(&chunk[..1000]).unwrap();
        assert!(drive(&mut pump), "input flows beside it");
        assert_eq!(pump.up.moved(), 1000);
        drop(to_pump);
        assert!(drive(&mut pump), "input ended");
        guest.shutdown(net::Shutdown::Write).unwrap();
        assert!(drive(&mut pump), "the guest ended, its data still waits");
        drop(from_pump);
        assert!(!drive(&mut pump), "the client is gone");
    }
}

#[test]
fn descriptors_of_the_client_keep_their_blocking_mode() {
    let (input, to_pump) = io::pipe().unwrap();
    let (from_pump, output) = io::pipe().unwrap();
    let (input_copy, output_copy) = (input.try_clone().unwrap(), output.try_clone().unwrap());
    let (stream, mut guest) = UnixStream::pair().unwrap();
    let pump = thread::spawn(move || run(input.into(), output.into(), stream.into()));
    guest.write_all(b"x").unwrap();
    (&from_pump).read_exact(&mut [0]).unwrap();
    for flags in [
        rustix::fs::fcntl_getfl(&input_copy),
        rustix::fs::fcntl_getfl(&output_copy),
    ] {
        assert!(!flags.unwrap().contains(OFlags::NONBLOCK));
    }
    drop((guest, to_pump));
    pump.join().unwrap().unwrap();
}

#[test]
fn a_stream_that_is_shut_down_from_here_ends_the_pump_though_its_input_stays_open() {
    let (input, _to_pump) = io::pipe().unwrap();
    let (from_pump, output) = io::pipe().unwrap();
    let (stream, _guest) = UnixStream::pair().unwrap();
    let ours = stream.try_clone().unwrap();
    let pump = thread::spawn(move || run(input.into(), output.into(), stream.into()));
    ours.shutdown(net::Shutdown::Both).unwrap();
    pump.join().unwrap().unwrap();
    assert_eq!(read_all(from_pump), b"");
}
