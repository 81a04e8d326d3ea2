//! The SSH client against a server in the same process.

mod hostile_sftp;
mod server;
mod terminal;

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use msb_ssh::client::{
    ClientError, ExitStatus, Program, Pty, Session, SessionEvent, SpawnOptions, SshClient, SshExecOptions, Stdio,
};
use msb_ssh::keys::KeyPair;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use server::{Observed, Server, connected};

const MIB: usize = 1024 * 1024;

fn exec(command: &str) -> Program {
    Program::Exec(command.into())
}

#[tokio::test]
async fn a_command_gives_both_streams_and_its_status() {
    let client = connected().await;
    let output = client.exec("both", SshExecOptions::default()).await.unwrap();
    assert_eq!(
        (&output.stdout[..], &output.stderr[..]),
        (&b"to output"[..], &b"to error"[..])
    );
    assert_eq!(output.status, ExitStatus::Code(0));
    client.close().await;
}

#[tokio::test]
async fn an_end_is_told_as_the_guest_told_it_and_never_invented() {
    let client = connected().await;
    for (command, expected, code) in [
        ("status 3", ExitStatus::Code(3), 3),
        ("status 255", ExitStatus::Code(255), 255),
        ("silent", ExitStatus::Unknown, 255),
        (
            "signal KILL",
            ExitStatus::Signal {
                name: "KILL".into(),
                core_dumped: true,
                message: "dumped".into(),
            },
            137,
        ),
    ] {
        let output = client.exec(command, SshExecOptions::default()).await.unwrap();
        assert_eq!(output.status, expected, "{command}");
        assert_eq!(output.status.shell_code(), code, "{command}");
    }
}

#[tokio::test]
async fn input_is_sent_whole_and_then_ended() {
    let client = connected().await;
    let options = SshExecOptions {
        stdin: vec![7; 5 * MIB].into(),
        ..SshExecOptions::default()
    };
    let output = client.exec("count", options.clone()).await.unwrap();
    assert_eq!(output.stdout, (5 * MIB).to_string().as_bytes());
    let output = client.exec("echo", options).await.unwrap();
    assert!(output.stdout == vec![7; 5 * MIB]);
}

#[tokio::test]
async fn a_command_that_takes_no_input_does_not_hang_its_sender() {
    let client = connected().await;
    let options = SshExecOptions {
        stdin: vec![7; 5 * MIB].into(),
        ..SshExecOptions::default()
    };
    assert_eq!(
        client.exec("status 4", options).await.unwrap().status,
        ExitStatus::Code(4)
    );

    let Session {
        mut stdin, mut events, ..
    } = client.spawn(&exec("status 5"), &SpawnOptions::default()).await.unwrap();
    let error = loop {
        if let Err(error) = stdin.write_all(&[7; 32 * 1024]).await {
            break error;
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    assert_eq!(events.wait().await.unwrap(), ExitStatus::Code(5));
}

#[tokio::test]
async fn more_output_than_may_be_collected_is_an_error() {
    let client = connected().await;
    let options = SshExecOptions {
        output_limit: MIB,
        ..SshExecOptions::default()
    };
    let error = client.exec("flood 67108864", options).await.unwrap_err();
    assert!(matches!(error, ClientError::OutputTooLarge { limit: MIB }), "{error}");
    let output = client.exec("status 0", SshExecOptions::default()).await.unwrap();
    assert!(output.status.is_success(), "the connection lives on");
}

#[tokio::test]
async fn a_session_that_nobody_reads_holds_no_more_than_the_limit_and_loses_nothing() {
    const LIMIT: usize = MIB;
    const TOTAL: usize = 64 * MIB;
    // The limit, what is on its way in the transport and both ends' buffers, and the window that was granted.
    const BOUND: usize = LIMIT + 4 * MIB;
    let (reached, mut reaches) = mpsc::unbounded_channel();
    let (server, observed) = Server::start(Observed {
        reached: Some(reached),
        ..Observed::default()
    });
    let config = msb_ssh::client::ClientConfig {
        receive_limit: LIMIT,
        ..server.config()
    };
    let client = server.connect(config).await.unwrap();
    let command = format!("flood {TOTAL}");
    let Session {
        mut stdin,
        mut events,
        control,
    } = client.spawn(&exec(&command), &SpawnOptions::default()).await.unwrap();

    let flooded = at_rest(&observed.flooded).await;
    assert!(
        (LIMIT..=BOUND).contains(&flooded),
        "{flooded} bytes were taken from the guest"
    );
    control.signal("USR1").await;
    stdin.write_all(b"typed").await.unwrap();

    let mut received = 0;
    while let Some(event) = events.next().await.unwrap() {
        match event {
            SessionEvent::Stdout(data) => received += data.len(),
            SessionEvent::Exit(status) => assert!(status.is_success()),
            _ => {}
        }
    }
    assert_eq!(received, TOTAL);
    assert_eq!(
        (reaches.recv().await.unwrap(), reaches.recv().await.unwrap()),
        ("USR1".into(), "typed".into())
    );
}

/// The counter once nothing moves any more: on one thread, with a transport in memory, only tasks could move it.
async fn at_rest(counter: &AtomicUsize) -> usize {
    let mut last = 0;
    let mut quiet = 0;
    while quiet < 1000 {
        tokio::task::yield_now().await;
        let now = counter.load(Ordering::SeqCst);
        quiet = if now == last { quiet + 1 } else { 0 };
        last = now;
    }
    last
}

#[tokio::test]
async fn a_session_that_is_dropped_frees_what_it_held() {
    let (server, _) = Server::start(Observed::default());
    let config = msb_ssh::client::ClientConfig {
        receive_limit: MIB,
        ..server.config()
    };
    let client = server.connect(config).await.unwrap();
    for _ in 0..3 {
        let mut session = client
            .spawn(&exec("flood 67108864"), &SpawnOptions::default())
            .await
            .unwrap();
        assert!(matches!(
            session.events.next().await.unwrap(),
            Some(SessionEvent::Stdout(_))
        ));
        drop(session);
    }
    assert!(
        client
            .exec("status 0", SshExecOptions::default())
            .await
            .unwrap()
            .status
            .is_success()
    );
}

#[tokio::test]
async fn a_terminal_and_an_environment_reach_the_program() {
    let client = connected().await;
    let options = SpawnOptions {
        tty: Some(Pty::new("vt220", 132, 43)),
        env: vec![("A".into(), "b c".into())],
    };
    let Session {
        mut stdin,
        mut events,
        control,
    } = client.spawn(&Program::Shell, &options).await.unwrap();
    let mut expect = async |line: &str| {
        let event = events.next().await.unwrap();
        assert_eq!(event, Some(SessionEvent::Stdout(line.to_owned().into())));
    };
    expect("vt220 132x43 A=b c\n").await;
    control.resize(80, 25).await;
    expect("80x25\n").await;
    control.signal("INT").await;
    expect("INT\n").await;
    stdin.write_all(b"x").await.unwrap();
    expect("typed x\n").await;
    stdin.shutdown().await.unwrap();
    assert!(events.wait().await.unwrap().is_success());
}

#[tokio::test]
async fn what_the_guest_refuses_is_named() {
    let client = connected().await;
    let error = client
        .spawn(&Program::Subsystem("sftp".into()), &SpawnOptions::default())
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            ClientError::Refused {
                request: "the subsystem"
            }
        ),
        "{error}"
    );
    let options = SpawnOptions {
        tty: Some(Pty::new("refused", 80, 24)),
        ..SpawnOptions::default()
    };
    let error = client.spawn(&Program::Shell, &options).await.unwrap_err();
    assert!(
        matches!(error, ClientError::Refused { request: "a terminal" }),
        "{error}"
    );
}

#[tokio::test]
async fn a_guest_can_open_no_channel_to_the_host() {
    let client = connected().await;
    let output = client.exec("knock", SshExecOptions::default()).await.unwrap();
    assert_eq!(output.stdout, b"[false, false, false, false]");
}

#[tokio::test]
async fn another_host_key_is_refused_and_both_are_shown() {
    let (server, _) = Server::start(Observed::default());
    let presented = server.host_key.fingerprint();
    let pinned = KeyPair::generate_ed25519("").unwrap();
    let config = msb_ssh::client::ClientConfig {
        host_key: pinned.public_key().clone(),
        ..server.config()
    };
    let error = server.connect(config).await.unwrap_err();
    let ClientError::HostKey {
        presented: shown,
        expected,
    } = &error
    else {
        panic!("{error}")
    };
    assert_eq!((shown, expected), (&presented, &pinned.fingerprint()));
}

#[tokio::test]
async fn a_key_that_may_not_log_in_is_named() {
    let (server, _) = Server::start(Observed::default());
    let stranger = KeyPair::generate_ed25519("").unwrap();
    let config = msb_ssh::client::ClientConfig {
        key: stranger.private_key().clone(),
        ..server.config()
    };
    let error = server.connect(config).await.unwrap_err();
    let ClientError::Login { user, key } = &error else {
        panic!("{error}")
    };
    assert_eq!((user.as_str(), key), ("root", &stranger.fingerprint()));
}

#[tokio::test]
async fn a_guest_that_says_nothing_is_given_up() {
    let (server, _) = Server::start(Observed::default());
    let config = msb_ssh::client::ClientConfig {
        handshake_timeout: Duration::from_millis(50),
        ..server.config()
    };
    let (stream, _silent) = tokio::io::duplex(1024);
    let error = SshClient::connect(stream, config).await.unwrap_err();
    assert!(matches!(error, ClientError::HandshakeTimeout { .. }), "{error}");
}

#[tokio::test]
async fn a_connection_that_breaks_is_an_error_and_no_status() {
    let client = connected().await;
    let error = client.exec("vanish", SshExecOptions::default()).await.unwrap_err();
    assert!(matches!(error, ClientError::ConnectionLost { .. }), "{error}");

    let (mut server, _) = Server::start(Observed::default());
    let (link, ours) = tokio::io::duplex(1024);
    let mut transport = std::mem::replace(&mut server.transport, link);
    let carrier = tokio::spawn(async move {
        let mut ours = ours;
        tokio::io::copy_bidirectional(&mut ours, &mut transport).await
    });
    let config = server.config();
    let client = server.connect(config).await.unwrap();
    let mut session = client.spawn(&exec("echo"), &SpawnOptions::default()).await.unwrap();
    carrier.abort();
    let error = session.events.wait().await.unwrap_err();
    assert!(
        matches!(error, ClientError::ConnectionLost { source: Some(_) }),
        "{error}"
    );
    let error = client.exec("status 0", SshExecOptions::default()).await.unwrap_err();
    assert!(matches!(error, ClientError::ConnectionLost { .. }), "{error}");
}

#[tokio::test]
async fn local_streams_carry_a_command_with_half_close() {
    let client = connected().await;
    let (input, mut to_input) = io::pipe().unwrap();
    let (mut from_output, output) = io::pipe().unwrap();
    let (mut from_error, error) = io::pipe().unwrap();
    let stdio = Stdio::new(input.as_fd(), output.as_fd(), error.as_fd()).unwrap();
    drop((output, error));
    let payload: Vec<u8> = (0..8 * MIB).map(|index| (index % 251).to_le_bytes()[0]).collect();
    let sent = payload.clone();
    let writer = tokio::task::spawn_blocking(move || io::Write::write_all(&mut to_input, &sent).unwrap());
    let reader = tokio::task::spawn_blocking(move || {
        let mut received = Vec::new();
        from_output.read_to_end(&mut received).unwrap();
        received
    });
    let status = client.copy_stdio(&exec("echo"), false, &[], &stdio).await.unwrap();
    assert!(status.is_success());
    drop(stdio);
    writer.await.unwrap();
    assert!(reader.await.unwrap() == payload);

    let (input, _open) = io::pipe().unwrap();
    let (mut from_output, output) = io::pipe().unwrap();
    let (_, error) = io::pipe().unwrap();
    drop(std::mem::replace(&mut from_error, io::pipe().unwrap().0));
    let stdio = Stdio::new(input.as_fd(), output.as_fd(), error.as_fd());
    drop((output, error));
    let stdio = stdio.unwrap();
    let status = client.copy_stdio(&exec("status 7"), false, &[], &stdio).await.unwrap();
    assert_eq!(
        status,
        ExitStatus::Code(7),
        "an input that stays open does not hold up the end"
    );
    drop(stdio);
    assert_eq!(from_output.read(&mut [0]).unwrap(), 0);
}

#[tokio::test]
async fn a_local_reader_that_goes_away_ends_the_command() {
    let client = connected().await;
    let (input, _open) = io::pipe().unwrap();
    let (from_output, output) = io::pipe().unwrap();
    let stdio = Stdio::new(input.as_fd(), output.as_fd(), output.as_fd()).unwrap();
    drop(from_output);
    let error = client
        .copy_stdio(&exec("flood 67108864"), false, &[], &stdio)
        .await
        .unwrap_err();
    let ClientError::LocalWrite {
        stream: "output",
        source,
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!(source.kind(), io::ErrorKind::BrokenPipe);
}
