//! Connections that begin with a preamble: what it sets holds for them, and what is none ends them.

mod support;

use std::fs;
use std::process::{Command, Output, Stdio};

use msb_protocol::server_preamble::{Answer, NAMESPACE, Preamble, Refusal, ServerOptions, VERSION};
use msb_test_support::own_user;
use russh::keys::ssh_key::LineEnding;
use russh::keys::{HashAlg, PrivateKey};
use support::{AGENT, Server, assert_success, output, output_with_input, run_batch, serve, stdout};
use zeroize::Zeroizing;

/// A preamble that the key in the file `key` of the server signs.
fn signed(server: &Server, key: &str, options: &ServerOptions) -> Preamble {
    let options = options.to_message();
    let key = PrivateKey::read_openssh_file(server.path(key)).unwrap();
    let signature = key.sign(NAMESPACE, HashAlg::Sha512, &options).unwrap();
    Preamble {
        signature: signature.to_pem(LineEnding::LF).unwrap(),
        options,
    }
}

/// A client program whose connections begin with `options`; the agent's answer is taken off.
fn client(server: &Server, program: &str, options: &ServerOptions) -> Command {
    client_of(server, "", program, options)
}

/// As [`client`], of an agent that is started with these arguments too.
fn client_of(server: &Server, arguments: &str, program: &str, options: &ServerOptions) -> Command {
    fs::write(server.path("preamble"), signed(server, "host", options).to_frame()).unwrap();
    let at = |name| server.path(name).display().to_string();
    let answer = Answer::Accepted.to_frame().len();
    let proxy = format!(
        "ProxyCommand=cat {} - | {AGENT} serve --stdio --preamble {arguments} --no-own-keys --host-key {} \
         --authorized-keys {} | {{ head -c {answer} > /dev/null; cat; }}",
        at("preamble"),
        at("host"),
        at("authorized_keys"),
    );
    let mut command = server.client(program);
    command.args(["-o", &proxy]);
    command
}

fn run(command: &mut Command, arguments: &[&str]) -> Output {
    output(command.args(arguments).stdin(Stdio::null()))
}

#[test]
fn the_host_key_the_keys_and_the_user_are_those_of_the_preamble_alone() {
    let server = Server::new();
    for key in ["endpoint", "visitor"] {
        server.generate_key(key);
    }
    let read = |name| fs::read_to_string(server.path(name)).unwrap();
    server.write("pinned", &format!("box {}", read("endpoint.pub")));
    let options = ServerOptions {
        host_key: Some(Zeroizing::new(read("endpoint"))),
        authorized_keys: Some(read("visitor.pub").into()),
        user: Some(own_user()),
        ..ServerOptions::default()
    };
    let log_in = |pinned: &str, key: &str| {
        let pinned = format!("UserKnownHostsFile={}", server.path(pinned).display());
        let key = format!("IdentityFile={}", server.path(key).display());
        let mut ssh = client(&server, "ssh", &options);
        // The configuration would add the sandbox's own key.
        ssh.args(["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes"]);
        ssh.args(["-o", "IdentitiesOnly=yes"]);
        run(
            &mut ssh,
            &["-o", &pinned, "-o", &key, "nobody-of-this-name@box", "id -un"],
        )
    };

    let logged_in = log_in("pinned", "visitor");
    assert_success(&logged_in);
    assert_eq!(stdout(&logged_in).trim(), own_user());
    let own_key = log_in("pinned", "user");
    let shown = String::from_utf8_lossy(&own_key.stderr).into_owned();
    assert!(shown.contains("Permission denied"), "{shown}");
    let own_host_key = log_in("known_hosts", "visitor");
    let shown = String::from_utf8_lossy(&own_host_key.stderr).into_owned();
    assert!(shown.contains("Host key verification failed"), "{shown}");
}

#[test]
fn what_the_preamble_leaves_out_is_as_it_was() {
    let server = Server::new();
    assert_success(&run(
        &mut client(&server, "ssh", &ServerOptions::default()),
        &["box", "true"],
    ));
    let sftp = |sftp: bool| {
        let options = ServerOptions {
            sftp,
            ..ServerOptions::default()
        };
        run_batch(
            client(&server, "sftp", &options).args(["-q", "-b", "-", "box"]),
            b"pwd\n",
        )
    };
    assert_success(&sftp(true));
    assert!(!sftp(false).status.success());
}

#[test]
fn a_sandbox_without_sftp_has_none_whatever_a_preamble_says() {
    let server = Server::new();
    let sftp = |arguments| {
        let mut sftp = client_of(&server, arguments, "sftp", &ServerOptions::default());
        run_batch(sftp.args(["-q", "-b", "-", "box"]), b"pwd\n")
    };
    assert_success(&sftp(""));
    assert!(!sftp("--no-sftp").status.success());
}

#[test]
fn a_preamble_that_cannot_be_served_is_answered_with_the_reason() {
    let server = Server::new();
    server.generate_key("stranger");
    let base = ServerOptions::default;
    let by_host = |options| signed(&server, "host", &options);
    let of_user = |user: &str| ServerOptions {
        user: Some(user.into()),
        ..base()
    };
    let swapped = Preamble {
        options: of_user("root").to_message(),
        ..by_host(base())
    };
    let newer = {
        let mut frame = by_host(base()).to_frame();
        frame[4] = VERSION + 1;
        frame
    };
    let cases = [
        (signed(&server, "stranger", &base()).to_frame(), Refusal::Signature),
        (swapped.to_frame(), Refusal::Signature),
        (by_host(of_user("nobody-of-this-name")).to_frame(), Refusal::User),
        (
            by_host(ServerOptions {
                host_key: Some(Zeroizing::new("no key".into())),
                ..base()
            })
            .to_frame(),
            Refusal::HostKey,
        ),
        (
            by_host(ServerOptions {
                authorized_keys: Some(b"# nobody\n".to_vec()),
                ..base()
            })
            .to_frame(),
            Refusal::AuthorizedKeys,
        ),
        (newer, Refusal::Malformed),
        (Zeroizing::new(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()), Refusal::Malformed),
        (Zeroizing::new(vec![0; 4]), Refusal::Malformed),
        (Zeroizing::new(vec![0, 0, 0, 1, VERSION]), Refusal::Malformed),
    ];
    for (input, refusal) in cases {
        let ended = output_with_input(serve(&server).arg("--preamble"), &input);
        assert_eq!(ended.stdout, Answer::Refused(refusal).to_frame(), "{refusal:?}");
        assert_eq!(ended.status.code(), Some(1), "{refusal:?}");
        let logged = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(!logged.contains("panicked") && !logged.contains("no key"), "{logged}");
    }
}

#[test]
fn a_preamble_that_is_cut_off_ends_without_a_word_of_ssh() {
    let server = Server::new();
    let frame = signed(&server, "host", &ServerOptions::default()).to_frame();
    for end in [0, 3, 4, 40, frame.len() - 1] {
        let ended = output_with_input(serve(&server).arg("--preamble"), &frame[..end]);
        assert_eq!((ended.stdout, ended.status.code()), (Vec::new(), Some(1)), "{end}");
    }
}
