//! Large transfers, and channels that stall beside others.

mod support;

use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use msb_test_support::{kib_in, pattern};
use support::{Master, Server, assert_success, output, output_with_input, stdout};

const MIB: usize = 1 << 20;

#[test]
fn an_echo_of_64_mib_is_exact() {
    let data = pattern(64 * MIB);
    let output = output_with_input(&mut Server::new().ssh(&["box", "cat"]), &data);
    assert_success(&output);
    assert!(
        output.stdout == data,
        "{} of {} bytes came back",
        output.stdout.len(),
        data.len()
    );
}

#[test]
fn sftp_moves_512_mib_both_ways_with_stock_settings() {
    let server = Server::new();
    let (original, received, sent) = (server.path("original"), server.path("received"), server.path("sent"));
    let chunk = pattern(MIB + 7);
    let mut file = fs::File::create(&original).unwrap();
    let mut written = 0;
    while written < 512 * MIB {
        file.write_all(&chunk).unwrap();
        written += chunk.len();
    }
    let (from, to, back) = (original.display(), received.display(), sent.display());
    assert_success(&server.sftp(format!("get {from} {to}\nput {from} {back}\n").as_bytes()));
    for copy in [received, sent] {
        assert_success(&output(std::process::Command::new("cmp").args([&original, &copy])));
    }
}

/// The memory of its own that the session process uses, in bytes, as one of its own sessions sees it. What it uses of
/// its program is not in it: how much that is depends on what the kernel's page cache maps around each first touch.
fn own_memory(server: &Server) -> usize {
    let status = stdout(&server.run("cat /proc/$PPID/status"));
    kib_in(&status, "RssAnon").expect("the session's parent is the session process") as usize * 1024
}

/// What a stalled channel may cost: the limit of 4 MiB, what was under way in windows (3 MiB), the allocator's share.
const STALL_BOUND: usize = 10 * MIB;

/// What a download may cost beside it: the limit of what is unsent.
const UNSENT_BOUND: usize = 8 * MIB;

fn assert_grew_less_than(bound: usize, server: &Server, before: usize) {
    let grown = own_memory(server).saturating_sub(before);
    assert!(grown < bound, "the session grew by {grown} bytes");
}

/// What must have been taken before a channel counts as stalled: the limit and the client's own buffers.
const STALLED_AFTER: usize = 6 * MIB;

#[test]
fn a_channel_that_nobody_reads_delays_no_other_and_stays_small() {
    let server = Server::new();
    let master = Master::start(&server);
    let before = own_memory(&server);
    let mut stalled = server
        .ssh(&["box", "exec sleep 1000"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = stalled.stdin.take().unwrap();
    let (taken, (crossed, stalling)) = (AtomicUsize::new(0), mpsc::channel());

    std::thread::scope(|scope| {
        let taken = &taken;
        scope.spawn(move || {
            let chunk = vec![0; 64 << 10];
            while taken.load(Ordering::Relaxed) < 64 * MIB && input.write_all(&chunk).is_ok() {
                let total = taken.fetch_add(chunk.len(), Ordering::Relaxed) + chunk.len();
                if total >= STALLED_AFTER {
                    let _ = crossed.send(());
                }
            }
        });
        stalling.recv().expect("the first megabytes are taken");
        for _ in 0..20 {
            assert_eq!(stdout(&server.run("echo prompt")), "prompt\n");
            assert_grew_less_than(STALL_BOUND, &server, before);
        }
        let download = server.run("head -c 64M /dev/zero");
        assert_eq!(download.stdout.len(), 64 * MIB);
        assert_grew_less_than(STALL_BOUND + UNSENT_BOUND, &server, before);
        assert!(
            taken.load(Ordering::Relaxed) < 32 * MIB,
            "nothing held the stalled channel back"
        );
        let _ = stalled.kill();
        drop(master);
    });
    let _ = stalled.wait();
}

#[test]
fn a_client_that_reads_nothing_delays_no_other_channel() {
    let server = Server::new();
    let master = Master::start(&server);
    let before = own_memory(&server);
    let mut reader = server
        .ssh(&["box", "cat /dev/zero"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 1];
    std::io::Read::read_exact(reader.stdout.as_mut().unwrap(), &mut first).unwrap();
    for _ in 0..20 {
        assert_eq!(stdout(&server.run("echo prompt")), "prompt\n");
        assert_grew_less_than(STALL_BOUND, &server, before);
    }
    let _ = reader.kill();
    let _ = reader.wait();
    drop(master);
}

#[test]
fn a_channel_that_stalled_goes_on_and_loses_nothing() {
    let server = Server::new();
    let gate = server.path("gate");
    assert_success(&output(std::process::Command::new("mkfifo").arg(&gate)));
    let data = pattern(24 * MIB);
    // Nothing is read until somebody opens the gate.
    let command = format!("read go < {}; sha256sum", gate.display());
    let mut ssh = server
        .ssh(&["box", &command])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = ssh.stdin.take().unwrap();
    let (crossed, stalling) = mpsc::channel();
    let echoed = std::thread::scope(|scope| {
        let data = &data;
        scope.spawn(move || {
            let (first, rest) = data.split_at(STALLED_AFTER);
            input.write_all(first).unwrap();
            let _ = crossed.send(());
            input.write_all(rest).unwrap();
        });
        stalling.recv().expect("the first megabytes are taken");
        fs::write(&gate, "go\n").unwrap();
        ssh.wait_with_output().unwrap()
    });
    let expected = output_with_input(&mut std::process::Command::new("sha256sum"), &data);
    assert_eq!(stdout(&echoed), stdout(&expected));
}

#[test]
fn terminals_are_given_back() {
    let server = Server::new();
    let master = Master::start(&server);
    let first = stdout(&output(server.ssh(&["-tt", "box", "tty"]).stdin(Stdio::null())));
    for _ in 0..20 {
        assert_success(&output(server.ssh(&["-tt", "box", "true"]).stdin(Stdio::null())));
    }
    let open = server.run("ls -l /proc/$PPID/fd | grep -c ptmx");
    assert_eq!(stdout(&open), "0\n", "terminals after {first}");
    drop(master);
}
