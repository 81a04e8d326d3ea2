//! Clients that break the protocol or wear the server out, before and after their login.

mod support;

use std::thread;
use std::time::Duration;

use msb_test_support::pattern;
use proptest::prelude::*;
use support::raw::{
    CHANNEL_FAILURE, CHANNEL_SUCCESS, CLOSE, DATA, DISCONNECT, EOF, EXTENDED_DATA, GLOBAL_REQUEST, Message, OPEN,
    OPEN_CONFIRMATION, OPEN_FAILURE, REQUEST, REQUEST_FAILURE, REQUEST_SUCCESS, Raw, WINDOW_ADJUST,
};
use support::{Server, stdout};

const MIB: usize = 1 << 20;

/// What no log may ever show.
fn assert_no_panic(log: &str) {
    assert!(!log.contains("panicked"), "{log}");
}

/// The connection still works, from a new session to its end.
fn assert_serves(raw: &mut Raw) {
    let id = raw.open_session(9999);
    raw.send(&Message::request(id, "exec").string("echo fine"));
    let data = raw.expect(DATA);
    assert!(data.ends_with(b"fine\n"));
    raw.expect(CLOSE);
    raw.send(&Message::new(CLOSE).u32(id));
}

#[test]
fn a_login_that_never_comes_is_not_waited_for() {
    let server = Server::new();
    for exchange in [false, true] {
        let mut raw = Raw::connect(&server, &["--login-grace", "1"]);
        if exchange {
            raw.exchange_keys();
        }
        while raw.receive().is_some() {}
        let (status, log) = raw.finish();
        assert_eq!(status, Some(1));
        assert!(log.contains("no login within 1 s"), "{log}");
    }
}

#[test]
fn a_login_byte_by_byte_is_not_waited_for_either() {
    let server = Server::new();
    let mut raw = Raw::connect(&server, &["--login-grace", "1"]);
    // The beginning of a packet of 32 KiB, slower than the grace.
    raw.write(&[0, 0, 128, 0]);
    while !raw.has_ended() {
        raw.write(b"x");
        thread::sleep(Duration::from_millis(20));
    }
    assert!(raw.finish().1.contains("no login within 1 s"));
}

#[test]
fn channels_are_bounded_and_refusing_them_costs_nothing() {
    const CHANNELS: usize = 128;
    const OPENINGS: u32 = 50_000;
    const BATCH: u32 = 100;
    let server = Server::new();
    let mut raw = Raw::log_in(&server);
    let (mut confirmed, mut refused) = (0, 0);
    let mut after_first = 0;
    for batch in 0..OPENINGS / BATCH {
        for id in 0..BATCH {
            raw.send(&Message::open_session(batch * BATCH + id));
        }
        for _ in 0..BATCH {
            let answer = raw.receive().unwrap();
            match answer[0] {
                OPEN_CONFIRMATION => confirmed += 1,
                OPEN_FAILURE => {
                    assert_eq!(answer[8], 4, "a shortage is the reason");
                    refused += 1;
                }
                other => panic!("message {other}"),
            }
        }
        if batch == 10 {
            after_first = raw.own_memory();
        }
    }
    assert_eq!(
        (confirmed, refused),
        (CHANNELS, usize::try_from(OPENINGS).unwrap() - CHANNELS)
    );
    let grown = raw.own_memory().saturating_sub(after_first);
    assert!(grown < MIB, "refusals cost {grown} bytes");
    assert!(raw.is_alive());
    assert_no_panic(&raw.finish().1);
}

#[test]
fn channels_that_the_client_closes_leave_nothing() {
    let server = Server::new();
    let mut raw = Raw::log_in(&server);
    let mut after_first = 0;
    for round in 0..5000 {
        let id = raw.open_session(round);
        raw.send(&Message::new(DATA).u32(id).string([0; 1000]));
        raw.send(&Message::new(CLOSE).u32(id));
        raw.expect(CLOSE);
        if round == 500 {
            after_first = raw.own_memory();
        }
    }
    let grown = raw.own_memory().saturating_sub(after_first);
    assert!(grown < MIB, "{grown} bytes are left");
    assert_serves(&mut raw);
    assert_no_panic(&raw.finish().1);
}

#[test]
fn a_channel_is_closed_once_however_often_the_client_says_so() {
    let server = Server::new();
    let mut raw = Raw::log_in(&server);
    let id = raw.open_session(7);
    for kind in [EOF, EOF, CLOSE, CLOSE, EOF, CLOSE] {
        raw.send(&Message::new(kind).u32(id));
    }
    raw.send(&Message::new(DATA).u32(id).string("late"));
    raw.send(&Message::new(WINDOW_ADJUST).u32(id).u32(u32::MAX));
    raw.send(&Message::request(id, "exec").string("echo late"));
    raw.expect(CLOSE);
    assert_serves(&mut raw);
    assert_no_panic(&raw.finish().1);
}

#[test]
fn channels_that_do_not_exist_are_no_concern() {
    let server = Server::new();
    let mut raw = Raw::log_in(&server);
    for id in [0, 5, u32::MAX] {
        raw.send(&Message::new(DATA).u32(id).string("nobody"));
        raw.send(&Message::new(EXTENDED_DATA).u32(id).u32(1).string("nobody"));
        raw.send(&Message::new(EOF).u32(id));
        raw.send(&Message::new(CLOSE).u32(id));
        raw.send(&Message::request(id, "shell"));
    }
    assert_serves(&mut raw);
    assert_no_panic(&raw.finish().1);
}

#[test]
fn requests_out_of_order_fail_and_harm_nothing() {
    let server = Server::new();
    let mut raw = Raw::log_in(&server);
    let id = raw.open_session(1);
    let early = [
        Message::request(id, "signal").string("TERM"),
        Message::request(id, "window-change").u32(1).u32(1).u32(1).u32(1),
        Message::request(id, "subsystem").string("no-such"),
        Message::request(id, "subsystem").string("shutdown@msb"),
        Message::request(id, "break").u32(500),
        Message::request(id, "x11-req").byte(0).string("a").string("b").u32(0),
        Message::request(id, "no-such-request"),
    ];
    for message in early {
        raw.send(&message);
        raw.expect(CHANNEL_FAILURE);
    }
    raw.send(&Message::request(id, "exec").string("cat; echo end"));
    raw.expect(CHANNEL_SUCCESS);
    let late = [
        Message::request(id, "exec").string("echo twice"),
        Message::request(id, "shell"),
        Message::request(id, "subsystem").string("sftp"),
        Message::request(id, "env").string("LANG").string("C"),
        Message::request(id, "pty-req")
            .string("x")
            .u32(1)
            .u32(1)
            .u32(1)
            .u32(1)
            .string([0]),
    ];
    for message in late {
        raw.send(&message);
        raw.expect(CHANNEL_FAILURE);
    }
    raw.send(&Message::new(EOF).u32(id));
    assert!(raw.expect(DATA).ends_with(b"end\n"));
    raw.expect(CLOSE);
    assert_serves(&mut raw);
    assert_no_panic(&raw.finish().1);
}

#[test]
fn what_was_sent_before_a_channel_was_closed_still_arrives() {
    let server = Server::new();
    let mut raw = Raw::log_in(&server);
    let fifo = server.path("fifo");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let id = raw.open_session(1);
    raw.send(&Message::request(id, "exec").string(format!("cat > {}", fifo.display())));
    for _ in 0..40 {
        raw.send(&Message::new(DATA).u32(id).string([b'x'; 30_000]));
    }
    raw.send(&Message::new(EOF).u32(id));
    raw.send(&Message::new(CLOSE).u32(id));
    raw.expect(CLOSE);
    assert_eq!(std::fs::read(&fifo).unwrap().len(), 40 * 30_000);
    assert_no_panic(&raw.finish().1);
}

#[test]
fn absurd_sizes_are_taken_as_they_are_or_end_the_connection() {
    let server = Server::new();
    let absurd = [
        // Windows and packets of no bytes, and of all there are.
        Message::new(OPEN).string("session").u32(1).u32(0).u32(0),
        Message::new(OPEN).string("session").u32(1).u32(u32::MAX).u32(u32::MAX),
        // Strings longer than their message.
        Message::new(OPEN).u32(u32::MAX).byte(0),
        Message::new(REQUEST).u32(1).u32(0x7fff_ffff),
        Message::new(GLOBAL_REQUEST).u32(0x8000_0000),
        Message::new(OPEN)
            .string("direct-tcpip")
            .u32(1)
            .u32(1)
            .u32(1)
            .string("host")
            .u32(1 << 20),
        Message::new(GLOBAL_REQUEST)
            .string("tcpip-forward")
            .byte(1)
            .string("localhost")
            .u32(70_000),
        Message::new(GLOBAL_REQUEST)
            .string("tcpip-forward")
            .byte(1)
            .string("x".repeat(30_000))
            .u32(0),
        Message::new(GLOBAL_REQUEST)
            .string("streamlocal-forward@openssh.com")
            .byte(1)
            .string("/x".repeat(9000)),
        Message::new(GLOBAL_REQUEST)
            .string("streamlocal-forward@openssh.com")
            .byte(1)
            .string("/tmp/a\0b"),
        Message::new(0),
        Message(Vec::new()),
    ];
    for message in absurd {
        let mut raw = Raw::log_in(&server);
        raw.send(&message);
        if raw.is_alive() {
            assert_serves(&mut raw);
        }
        assert_no_panic(&raw.finish().1);
    }
}

#[test]
fn terminal_sizes_and_modes_are_taken_whatever_they_are() {
    let server = Server::new();
    let mut raw = Raw::log_in(&server);
    // Every opcode there is, known or not, in disorder, and values that no terminal has.
    let mut modes = Vec::new();
    for opcode in (1..=129_u8).rev() {
        modes.push(opcode);
        modes.extend(u32::MAX.to_be_bytes());
    }
    modes.push(0);
    let id = raw.open_session(1);
    let request = Message::request(id, "pty-req").string("vt100");
    raw.send(&request.u32(u32::MAX).u32(0).u32(70_000).u32(1).string(modes));
    raw.expect(CHANNEL_SUCCESS);
    for size in 0..2000 {
        raw.send(
            &Message::new(REQUEST)
                .u32(id)
                .string("window-change")
                .byte(0)
                .u32(size)
                .u32(size)
                .u32(0)
                .u32(0),
        );
    }
    raw.send(&Message::request(id, "exec").string("stty size"));
    raw.expect(CHANNEL_SUCCESS);
    let shown = raw.expect(DATA);
    assert!(
        shown.windows(9).any(|part| part == b"1999 1999"),
        "{}",
        String::from_utf8_lossy(&shown)
    );
    raw.expect(CLOSE);
    assert_serves(&mut raw);
    assert_no_panic(&raw.finish().1);
}

#[test]
fn confirmations_that_nobody_waits_for_open_nothing() {
    let server = Server::new();
    let mut raw = Raw::log_in(&server);
    let id = raw.open_session(1);
    raw.send(&Message::new(OPEN_CONFIRMATION).u32(id).u32(1).u32(100).u32(100));
    assert_serves(&mut raw);
    raw.send(&Message::new(OPEN_CONFIRMATION).u32(4242).u32(1).u32(100).u32(100));
    assert!(!raw.is_alive(), "a channel that was never opened was confirmed");
    assert_no_panic(&raw.finish().1);
}

/// Has the server listen on a port of its choice, which is returned.
fn listen_anywhere(raw: &mut Raw) -> u16 {
    raw.send(
        &Message::new(GLOBAL_REQUEST)
            .string("tcpip-forward")
            .byte(1)
            .string("localhost")
            .u32(0),
    );
    let port = raw.expect(REQUEST_SUCCESS);
    u16::try_from(u32::from_be_bytes(port[1..5].try_into().unwrap())).unwrap()
}

#[test]
fn a_forward_that_the_client_never_answers_ends_with_its_connection() {
    let server = Server::new();
    let mut raw = Raw::log_in(&server);
    let port = listen_anywhere(&mut raw);
    let mut waiting = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    raw.expect(OPEN);
    assert_serves(&mut raw);
    assert_no_panic(&raw.finish().1);
    let mut nothing = Vec::new();
    let _ = std::io::Read::read_to_end(&mut waiting, &mut nothing);
    assert!(nothing.is_empty());
}

#[test]
fn a_client_that_closes_a_forward_at_once_is_still_heard() {
    let server = Server::new();
    let mut raw = Raw::log_in(&server);
    let port = listen_anywhere(&mut raw);
    let data = pattern(200_000);
    for _ in 0..20 {
        let mut connection = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let opened = raw.expect(OPEN);
        let name = usize::try_from(u32::from_be_bytes(opened[1..5].try_into().unwrap())).unwrap();
        let id = u32::from_be_bytes(opened[5 + name..9 + name].try_into().unwrap());
        // In one piece, so that the server reads all of it before it can do anything about it.
        let mut messages = vec![Message::new(OPEN_CONFIRMATION).u32(id).u32(1).u32(1 << 20).u32(1 << 15)];
        messages.extend(
            data.chunks(20_000)
                .map(|chunk| Message::new(DATA).u32(id).string(chunk)),
        );
        messages.extend([Message::new(EOF).u32(id), Message::new(CLOSE).u32(id)]);
        raw.send_all(&messages);
        let mut received = Vec::new();
        std::io::Read::read_to_end(&mut connection, &mut received).unwrap();
        assert!(received == data, "{} bytes", received.len());
    }
    assert_serves(&mut raw);
    assert_no_panic(&raw.finish().1);
}

#[test]
fn a_target_that_does_not_answer_delays_no_other_channel() {
    let server = Server::new();
    let path = server.path("full");
    let (socket, stream) = (rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM);
    let full = rustix::net::socket(socket, stream, None).unwrap();
    rustix::net::bind(&full, &rustix::net::SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&full, 0).unwrap();
    let _only = std::os::unix::net::UnixStream::connect(&path).unwrap();

    let mut raw = Raw::log_in(&server);
    for id in 0..10 {
        let open = Message::new(OPEN)
            .string("direct-streamlocal@openssh.com")
            .u32(id)
            .u32(1 << 20)
            .u32(1 << 15);
        raw.send(&open.string(path.to_str().unwrap()).string("").u32(0));
    }
    assert_serves(&mut raw);
    assert_no_panic(&raw.finish().1);
}

#[test]
fn a_client_that_says_goodbye_and_stays_is_left() {
    let server = Server::new();
    let mut raw = Raw::log_in(&server);
    raw.send(&Message::new(DISCONNECT).u32(11).string("bye").string(""));
    while raw.receive().is_some() {}
    let (status, log) = raw.finish();
    assert_eq!((status, log.as_str()), (Some(0), ""));
}

#[test]
fn a_cancellation_of_nothing_fails() {
    let server = Server::new();
    let mut raw = Raw::log_in(&server);
    for message in [
        Message::new(GLOBAL_REQUEST)
            .string("cancel-tcpip-forward")
            .byte(1)
            .string("localhost")
            .u32(1),
        Message::new(GLOBAL_REQUEST)
            .string("cancel-tcpip-forward")
            .byte(1)
            .string("")
            .u32(u32::MAX),
        Message::new(GLOBAL_REQUEST)
            .string("cancel-streamlocal-forward@openssh.com")
            .byte(1)
            .string("/nowhere"),
        Message::new(GLOBAL_REQUEST).string("no-such-request").byte(1),
    ] {
        raw.send(&message);
        raw.expect(REQUEST_FAILURE);
    }
    assert_serves(&mut raw);
    assert_no_panic(&raw.finish().1);
}

/// A message of the connection protocol: a kind, then anything or something that begins well.
fn any_message() -> impl Strategy<Value = Message> {
    let names = prop::sample::select(vec![
        "session",
        "direct-tcpip",
        "direct-streamlocal@openssh.com",
        "exec",
        "shell",
        "pty-req",
        "env",
        "signal",
        "subsystem",
        "window-change",
        "tcpip-forward",
        "auth-agent-req@openssh.com",
        "x11-req",
    ]);
    let noise = prop::collection::vec(any::<u8>(), 0..60);
    prop_oneof![
        (1..=255_u8, noise.clone()).prop_map(|(kind, body)| Message([vec![kind], body].concat())),
        (80..=100_u8, 0..3_u32, noise.clone())
            .prop_map(|(kind, id, body)| { Message([Message::new(kind).u32(id).0, body].concat()) }),
        (names.clone(), noise.clone()).prop_map(|(name, body)| {
            Message([Message::new(OPEN).string(name).u32(1).u32(1 << 20).u32(1 << 15).0, body].concat())
        }),
        (1..4_u32, names, any::<bool>(), noise).prop_map(|(id, name, reply, body)| {
            Message([Message::new(REQUEST).u32(id).string(name).byte(reply.into()).0, body].concat())
        }),
    ]
}

/// A message for the time before a login, or one for the time after.
fn any_early_message() -> impl Strategy<Value = Message> {
    let methods = prop::sample::select(vec![
        "none",
        "password",
        "publickey",
        "keyboard-interactive",
        "hostbased",
    ]);
    let services = prop::sample::select(vec!["ssh-userauth", "ssh-connection", "no-such"]);
    let noise = prop::collection::vec(any::<u8>(), 0..80);
    prop_oneof![
        services.clone().prop_map(|name| Message::new(5).string(name)),
        (services, methods, noise).prop_map(|(service, method, body)| {
            let request = Message::new(50).string("root").string(service).string(method);
            Message([request.0, body].concat())
        }),
        any_message(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_messages_before_a_login_end_the_connection_or_are_survived(
        messages in prop::collection::vec(any_early_message(), 1..12),
    ) {
        let server = Server::new();
        let mut raw = Raw::connect(&server, &["--login-grace", "10"]);
        raw.exchange_keys();
        for message in &messages {
            raw.send(message);
        }
        let (status, log) = raw.finish();
        prop_assert!(matches!(status, Some(0 | 1)), "{:?}: {}", status, log);
        prop_assert!(!log.contains("panicked"), "{}", log);
    }

    #[test]
    fn any_messages_after_a_login_end_the_connection_or_are_survived(
        messages in prop::collection::vec(any_message(), 1..20),
    ) {
        let server = Server::new();
        let mut raw = Raw::log_in(&server);
        raw.open_session(1);
        for message in &messages {
            raw.send(message);
        }
        raw.is_alive();
        let (status, log) = raw.finish();
        prop_assert!(matches!(status, Some(0 | 1)), "{:?}: {}", status, log);
        prop_assert!(!log.contains("panicked"), "{}", log);
    }
}

#[test]
fn another_connection_notices_nothing_of_one_that_breaks_the_protocol() {
    let server = Server::new();
    let mut raw = Raw::log_in(&server);
    raw.send(&Message::new(OPEN).u32(u32::MAX));
    assert_eq!(stdout(&server.run("echo fine")), "fine\n");
    assert_no_panic(&raw.finish().1);
}

#[test]
fn what_closed_channels_leave_is_bounded() {
    const LEFT: usize = 8192;
    const BATCH: u32 = 64;
    let server = Server::new();
    let path = server.path("socket");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    thread::spawn(move || while listener.accept().is_ok() {});
    let mut raw = Raw::log_in(&server);
    let before = raw.own_memory();
    let mut opened = 0;
    loop {
        for id in 0..BATCH {
            let open = Message::new(OPEN).string("direct-streamlocal@openssh.com").u32(id);
            raw.send(
                &open
                    .u32(1 << 20)
                    .u32(1 << 15)
                    .string(path.to_str().unwrap())
                    .string("")
                    .u32(0),
            );
        }
        let (mut refused, mut closed) = (0, 0);
        while refused + closed < BATCH {
            let message = raw.receive().unwrap();
            match message[0] {
                OPEN_FAILURE => refused += 1,
                OPEN_CONFIRMATION => {
                    opened += 1;
                    raw.send(&Message::new(EOF).u32(u32::from_be_bytes(message[5..9].try_into().unwrap())));
                }
                CLOSE => closed += 1,
                _ => {}
            }
        }
        if closed == 0 {
            break;
        }
    }
    assert!(
        (LEFT..LEFT + usize::try_from(BATCH).unwrap()).contains(&opened),
        "{opened} channels"
    );
    let grown = raw.own_memory().saturating_sub(before);
    assert!(grown < 40 * MIB, "{grown} bytes are left");
    assert!(raw.is_alive());
    assert_no_panic(&raw.finish().1);
}
