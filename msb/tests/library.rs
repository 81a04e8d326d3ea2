//! `Sandbox::ssh` with the real agent.

mod guest;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use guest::Guest;
use msb::ssh::sftp::SftpError;
use msb::ssh::{
    AttachEnd, ExitStatus, Program, Session, SessionEvent, SpawnOptions, SshAttachOptions, SshClientOptions, SshError,
    SshExecOptions, SshServerOptions, Stdio,
};
use msb_ssh::client::{ClientConfig, ClientError, SshClient};
use msb_ssh::keys::{KeyPair, load_public};
use msb_ssh::preamble::{PreambleError, Refusal};
use msb_test_support::{built, own_user, terminal};
use tokio::io::AsyncWriteExt;

#[tokio::test]
async fn a_command_gives_its_output_and_its_status() {
    let guest = Guest::new();
    let client = guest.sandbox.ssh().open_client(guest.options()).await.unwrap();
    let options = SshExecOptions {
        stdin: "from here".into(),
        ..SshExecOptions::default()
    };
    let output = client.exec("cat; echo error >&2; exit 3", options).await.unwrap();
    assert_eq!(output.status, ExitStatus::Code(3));
    assert_eq!(
        (&output.stdout[..], &output.stderr[..]),
        (&b"from here"[..], &b"error\n"[..])
    );

    let options = SshExecOptions {
        tty: true,
        ..SshExecOptions::default()
    };
    let output = client.exec("tty && echo $TERM", options).await.unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(
        shown.starts_with("/dev/pts/") && shown.ends_with("xterm\r\n"),
        "{shown:?}"
    );
    client.close().await;
}

#[tokio::test]
async fn a_client_has_the_terminal_and_the_sftp_it_was_opened_with() {
    let guest = Guest::new();
    let options = SshClientOptions {
        term: Some("vt220".into()),
        sftp: false,
        ..guest.options()
    };
    let client = guest.sandbox.ssh().open_client(options).await.unwrap();
    let options = SshExecOptions {
        tty: true,
        ..SshExecOptions::default()
    };
    let output = client.exec("echo $TERM", options).await.unwrap();
    assert_eq!(output.stdout, b"vt220\r\n");
    assert!(matches!(client.sftp().await, Err(SftpError::Disabled)));
}

#[tokio::test]
async fn a_stream_of_a_command_can_be_talked_to_and_given_up() {
    let guest = Guest::new();
    let client = guest.sandbox.ssh().open_client(guest.options()).await.unwrap();
    let gone = guest.path("gone");
    let command = format!(
        "trap 'touch {}; exit' HUP TERM PIPE; echo up; cat; while :; do echo on; done",
        gone.display()
    );
    let Session {
        mut stdin, mut events, ..
    } = client
        .spawn(&Program::Exec(command.into()), &SpawnOptions::default())
        .await
        .unwrap();
    assert_eq!(events.next().await.unwrap(), Some(SessionEvent::Stdout("up\n".into())));
    stdin.write_all(b"typed").await.unwrap();
    assert_eq!(events.next().await.unwrap(), Some(SessionEvent::Stdout("typed".into())));
    stdin.shutdown().await.unwrap();
    // It prints without end, and nobody takes it: the client goes on, and the end of the stream ends the command.
    drop(events);
    let wait = format!("until test -e {}; do :; done; echo gone", gone.display());
    let output = client.exec(wait, SshExecOptions::default()).await.unwrap();
    assert_eq!(output.stdout, b"gone\n");
}

/// Attaches a terminal to a shell, and types `text` once the shell has shown something.
async fn attach(options: SshAttachOptions, text: &'static [u8]) -> AttachEnd {
    let guest = Guest::new();
    let client = guest.sandbox.ssh().open_client(guest.options()).await.unwrap();
    let (mut master, slave) = terminal();
    let stdio = Stdio::new(slave.as_fd(), slave.as_fd(), slave.as_fd()).unwrap();
    let user = tokio::task::spawn_blocking(move || {
        master.read_exact(&mut [0]).unwrap();
        master.write_all(text).unwrap();
        // What is shown must be taken, or its writer waits.
        let _ = std::io::copy(&mut master, &mut std::io::sink());
    });
    let end = client.attach_program(&Program::Shell, options, &stdio).await.unwrap();
    drop((stdio, slave));
    user.await.unwrap();
    end
}

#[tokio::test]
async fn an_attached_shell_ends_with_its_status_or_is_left_by_keys() {
    let end = attach(SshAttachOptions::default(), b"exit 4\n").await;
    assert_eq!(end, AttachEnd::Exited(ExitStatus::Code(4)));
    assert_eq!(end.shell_code(), Some(4));
    let options = SshAttachOptions {
        detach_keys: Some("ctrl-p,ctrl-q".parse().unwrap()),
        ..SshAttachOptions::default()
    };
    let end = attach(options, b"\x10\x11").await;
    assert_eq!((end.shell_code(), end), (None, AttachEnd::Detached));
}

#[tokio::test]
async fn an_endpoint_serves_any_client_again_and_again_until_it_is_closed() {
    let guest = Guest::new();
    let server = guest
        .sandbox
        .ssh()
        .prepare_server(SshServerOptions::default())
        .await
        .unwrap();
    let layout = guest.sandbox.store().layout().clone();
    let key = KeyPair::load(&layout.client_key()).unwrap();
    let host_key = load_public(&guest.sandbox.dir().host_key_pub()).unwrap();
    let config = || ClientConfig::new(own_user(), key.private_key().clone(), host_key.clone());

    for round in 0..2 {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let (served, client) = (server.clone(), SshClient::connect(ours, config()));
        let serving = tokio::spawn(async move { served.serve_connection_on(theirs).await });
        let client = client.await.unwrap();
        let output = client.exec("echo served", SshExecOptions::default()).await.unwrap();
        assert_eq!(output.stdout, b"served\n", "{round}");
        client.close().await;
        serving.await.unwrap().unwrap();
    }

    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let served = server.clone();
    let serving = tokio::spawn(async move { served.serve_connection_on(theirs).await });
    let client = SshClient::connect(ours, config()).await.unwrap();
    server.close();
    assert!(matches!(serving.await.unwrap(), Err(SshError::Closed)));
    assert!(client.exec("true", SshExecOptions::default()).await.is_err());
    let (_ours, theirs) = tokio::io::duplex(64);
    assert!(matches!(
        server.serve_connection_on(theirs).await,
        Err(SshError::Closed)
    ));
}

#[tokio::test]
async fn an_endpoint_has_the_host_key_the_keys_and_the_user_it_was_given() {
    let guest = Guest::new();
    let keys = ["endpoint", "visitor"].map(|name| {
        let pair = KeyPair::generate_ed25519("").unwrap();
        pair.save(&guest.path(name)).unwrap();
        pair
    });
    let [host_key, visitor] = &keys;
    let options = SshServerOptions {
        host_key_path: Some(guest.path("endpoint")),
        authorized_keys_path: Some(guest.path("visitor.pub")),
        user: Some(own_user()),
        sftp: false,
        ..SshServerOptions::default()
    };
    let server = guest.sandbox.ssh().prepare_server(options).await.unwrap();
    let connect = async |key: &KeyPair, host_key: &KeyPair| {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let served = server.clone();
        tokio::spawn(async move { served.serve_connection_on(theirs).await });
        let (key, host_key) = (key.private_key().clone(), host_key.public_key().clone());
        SshClient::connect(ours, ClientConfig::new("whoever", key, host_key)).await
    };

    let client = connect(visitor, host_key).await.unwrap();
    let output = client.exec("id -un", SshExecOptions::default()).await.unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), own_user());
    assert!(client.sftp().await.is_err());
    client.close().await;
    let own = KeyPair::load(&guest.sandbox.store().layout().client_key()).unwrap();
    assert!(matches!(connect(&own, host_key).await, Err(ClientError::Login { .. })));
    let own_host_key = KeyPair::load(&guest.sandbox.dir().host_key()).unwrap();
    let refused = connect(visitor, &own_host_key).await;
    assert!(matches!(refused, Err(ClientError::HostKey { .. })));
    // What is said of one endpoint is said of no other connection.
    let client = guest.sandbox.ssh().open_client(guest.options()).await.unwrap();
    client.sftp().await.unwrap().close().await;
}

/// Why no endpoint is prepared with `options`.
async fn refusal(guest: &Guest, options: SshServerOptions) -> String {
    let prepared = guest.sandbox.ssh().prepare_server(options).await;
    prepared.unwrap_err().to_string()
}

#[tokio::test]
async fn an_endpoint_is_not_prepared_from_files_that_are_no_keys() {
    let guest = Guest::new();
    fs::write(guest.path("text"), "no key").unwrap();
    fs::set_permissions(guest.path("text"), fs::Permissions::from_mode(0o600)).unwrap();
    let open = guest.path("open");
    KeyPair::generate_ed25519("").unwrap().save(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    for (name, expected) in [("text", "no key"), ("open", "too open"), ("missing", "cannot read")] {
        let options = SshServerOptions {
            host_key_path: Some(guest.path(name)),
            ..SshServerOptions::default()
        };
        let error = refusal(&guest, options).await;
        assert!(error.contains(expected) && error.contains(name), "{error}");
    }
    let long = guest.path("long");
    fs::write(&long, vec![b'#'; 1 << 20]).unwrap();
    for path in [long, guest.path("missing"), guest.path("")] {
        let options = SshServerOptions {
            authorized_keys_path: Some(path.clone()),
            ..SshServerOptions::default()
        };
        let error = refusal(&guest, options).await;
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }
}

#[tokio::test]
async fn a_connection_that_the_guest_cannot_serve_as_asked_says_why() {
    let guest = Guest::new();
    fs::write(guest.path("nobody"), "# nobody\n").unwrap();
    let of_user = SshServerOptions {
        user: Some("nobody-of-this-name".into()),
        ..SshServerOptions::default()
    };
    let of_nobody = SshServerOptions {
        authorized_keys_path: Some(guest.path("nobody")),
        ..SshServerOptions::default()
    };
    for (options, expected) in [(of_user, Refusal::User), (of_nobody, Refusal::AuthorizedKeys)] {
        let server = guest.sandbox.ssh().prepare_server(options).await.unwrap();
        let (_ours, theirs) = tokio::io::duplex(64);
        let refused = server.serve_connection_on(theirs).await;
        let Err(SshError::Preamble(PreambleError::Refused(refusal))) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(refusal, expected);
    }
}

#[tokio::test]
async fn a_sandbox_that_does_not_run_is_named_with_what_starts_it() {
    let guest = Guest::new();
    fs::remove_file(guest.sandbox.dir().ready()).unwrap();
    let options = SshClientOptions {
        boot_timeout: std::time::Duration::from_millis(10),
        ..guest.options()
    };
    let error = guest.sandbox.ssh().open_client(options).await.unwrap_err();
    assert!(error.to_string().contains("msb logs box"), "{error}");
}

#[test]
fn exec_and_ssh_log_in_as_the_user_they_are_given() {
    let guest = Guest::new();
    for verb in ["exec", "ssh"] {
        let as_user = |user: &str| {
            let command = [verb, "--user", user, "box", "--", "id", "-un"];
            guest.msb().args(command).output().unwrap()
        };
        let output = as_user(&own_user());
        assert_eq!(output.stdout, format!("{}\n", own_user()).as_bytes(), "{output:?}");
        let output = as_user("no-such-user");
        assert_eq!(output.status.code(), Some(255));
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("no-such-user"),
            "{output:?}"
        );
    }
}

#[test]
fn standard_streams_of_the_bridge_carry_a_stock_client() {
    let guest = Guest::new();
    let config = guest.path("config");
    let block = guest.msb().arg("ssh-config").output().unwrap().stdout;
    fs::write(&config, block).unwrap();
    let output = Command::new("ssh")
        .arg("-F")
        .arg(&config)
        .args(["-l", &own_user(), "box.msb", "echo bridged"])
        .stdin(input(""))
        .output()
        .unwrap();
    assert_eq!(output.stdout, b"bridged\n", "{output:?}");
}

#[test]
fn an_endpoint_on_standard_streams_carries_a_stock_client_again_and_again() {
    let guest = Guest::new();
    let endpoint = built(&["--package", "msb", "--example", "endpoint"]);
    let known_hosts = guest.path("home/known_hosts");
    for round in ["one", "two"] {
        let output = Command::new("ssh")
            .args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"])
            .arg("-o")
            .arg(format!("ProxyCommand={} box", endpoint.display()))
            .arg("-o")
            .arg(format!("UserKnownHostsFile={}", known_hosts.display()))
            .arg("-i")
            .arg(guest.path("home/client_key"))
            .args(["-l", &own_user(), "box.msb", "cat; exit 3"])
            .env("MSB_HOME", guest.path("home"))
            .env("MSB_RUNTIME_DIR", guest.path("run"))
            .stdin(input(round))
            .output()
            .unwrap();
        assert_eq!(
            (output.status.code(), &output.stdout[..]),
            (Some(3), round.as_bytes()),
            "{output:?}"
        );
    }
}

/// A few bytes to read, and then the end.
fn input(text: &str) -> OwnedFd {
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(text.as_bytes()).unwrap();
    reader.into()
}
