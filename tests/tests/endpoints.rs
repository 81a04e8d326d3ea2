//! Endpoints that are other than their sandbox, on a real guest.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use msb::ssh::{SshError, SshServer, SshServerOptions};
use msb_protocol::ports;
use msb_protocol::server_preamble::Answer;
use msb_ssh::keys::KeyPair;
use msb_ssh::preamble::{self, PreambleError, Refusal, ServerOptions};
use msb_ssh::vsock::connect;
use msb_tests::{Finished, Msb, finish, finish_with_input};
use tokio::net::UnixListener;
use tokio::runtime::{Builder, Runtime};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Serves whoever connects to a socket, each with a clone of `server`. Ends with the process of the test.
fn serve(server: SshServer, socket: PathBuf) {
    let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        runtime().block_on(async move {
            let listener = UnixListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let server = server.clone();
                tokio::spawn(async move { server.serve_connection_on(stream).await });
            }
        });
    });
}

/// Stock OpenSSH against what a socket serves.
struct Client {
    directory: PathBuf,
    proxy: String,
}

impl Client {
    fn new(directory: PathBuf, socket: &Path) -> Self {
        let hand_over = format!(
            "import array, socket\n\
             s = socket.socket(socket.AF_UNIX)\n\
             s.connect({socket:?})\n\
             socket.socket(fileno=1).sendmsg([b'x'], \
             [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [s.fileno()]))])\n"
        );
        let program = directory.join("proxy.py");
        fs::write(&program, hand_over).unwrap();
        Self {
            proxy: format!("ProxyCommand=python3 {}", program.display()),
            directory,
        }
    }

    /// Makes a key pair, and a file that pins it as a host key.
    fn key(&self, name: &str) {
        let pair = KeyPair::generate_ed25519("").unwrap();
        pair.save(&self.directory.join(name)).unwrap();
        self.pin(name, &pair.public_line());
    }

    fn pin(&self, name: &str, public: &str) {
        let pinned = format!("endpoint {public}\n");
        fs::write(self.directory.join(name).with_extension("pinned"), pinned).unwrap();
    }

    /// A client that knows one host key and has one key.
    fn command(&self, program: &str, host_key: &str, key: &Path) -> Command {
        let pinned = self.directory.join(host_key).with_extension("pinned");
        let mut command = Command::new(program);
        command
            .args(["-F", "none", "-o", &self.proxy])
            .args(["-o", "ProxyUseFdpass=yes"]);
        command.args([
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=yes",
            "-o",
            "IdentitiesOnly=yes",
        ]);
        command.args(["-o", &format!("UserKnownHostsFile={}", pinned.display()), "-i"]);
        command.arg(key).env_remove("SSH_AUTH_SOCK");
        command
    }

    fn run(&self, host_key: &str, key: &Path, command: &str) -> Finished {
        finish(self.command("ssh", host_key, key).args(["whoever@endpoint", command]))
    }
}

fn sftp(mut command: Command, host: &str) -> Finished {
    finish_with_input(command.args(["-b", "-"]).arg(host), b"pwd\n".to_vec())
}

#[test]
fn an_endpoint_has_a_host_key_keys_a_user_and_no_sftp_of_its_own_until_it_is_closed() {
    let msb = Msb::new();
    let sandbox = msb.create("endpoint");
    let directory = msb.scratch("client");
    fs::create_dir(&directory).unwrap();
    let socket = msb.scratch("endpoint.sock");
    let client = Client::new(directory.clone(), &socket);
    client.key("own");
    client.key("visitor");
    let pinned = fs::read_to_string(msb.open("endpoint").dir().host_key_pub()).unwrap();
    client.pin("sandbox", &pinned);
    let options = SshServerOptions {
        host_key_path: Some(directory.join("own")),
        authorized_keys_path: Some(directory.join("visitor.pub")),
        user: Some("user".into()),
        sftp: false,
        ..SshServerOptions::default()
    };
    let server = runtime()
        .block_on(msb.open("endpoint").ssh().prepare_server(options))
        .unwrap();
    serve(server.clone(), socket);

    let visitor = directory.join("visitor");
    let as_user = client
        .run("own", &visitor, "id -un; echo here > ~/was; exit 3")
        .expect(3);
    assert_eq!(as_user.text(), "user\n");
    assert_eq!(sandbox.ssh("stat -c %U /home/user/was").expect(0).text(), "user\n");
    let refused = client.run("own", &msb.home().join("client_key"), "true").expect(255);
    assert!(
        refused.stderr.contains("Permission denied (publickey)"),
        "{}",
        refused.stderr
    );
    let refused = client.run("sandbox", &visitor, "true").expect(255);
    assert!(
        refused.stderr.contains("Host key verification failed"),
        "{}",
        refused.stderr
    );
    assert_ne!(
        sftp(client.command("sftp", "own", &visitor), "whoever@endpoint").code,
        Some(0)
    );
    sftp(msb.openssh("sftp"), &sandbox.host()).expect(0);

    let mut open = client.command("ssh", "own", &visitor);
    let mut open = open
        .args(["whoever@endpoint", "echo up; sleep 1000"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    open.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
    server.close();
    assert_eq!(open.wait().unwrap().code(), Some(255));
    client.run("own", &visitor, "true").expect(255);
    assert_eq!(sandbox.ssh("echo still").expect(0).text(), "still\n");
}

#[test]
fn what_the_guest_cannot_serve_is_said_and_programs_in_it_are_not_served_at_all() {
    let msb = Msb::new();
    let sandbox = msb.create("refusing");
    let options = SshServerOptions {
        user: Some("nobody-of-this-name".into()),
        ..SshServerOptions::default()
    };
    let refused = runtime().block_on(async {
        let server = msb.open("refusing").ssh().prepare_server(options).await.unwrap();
        let (_ours, theirs) = tokio::io::duplex(64);
        server.serve_connection_on(theirs).await
    });
    assert!(
        matches!(refused, Err(SshError::Preamble(PreambleError::Refused(Refusal::User)))),
        "{refused:?}"
    );

    // Who connects without the host key is answered, and no more.
    let run = msb.open("refusing").running(Duration::from_secs(60)).unwrap();
    let mut stranger = connect(&run.socket, ports::PREPARED_SSH, Duration::from_secs(60)).unwrap();
    let options = ServerOptions::default();
    let unsigned = preamble::sign(&options, &KeyPair::generate_ed25519("").unwrap()).unwrap();
    stranger.write_all(&unsigned).unwrap();
    let mut heard = Vec::new();
    stranger.read_to_end(&mut heard).unwrap();
    assert_eq!(heard, Answer::Refused(Refusal::Signature).to_frame());

    let program = fs::read(env!("CARGO_BIN_EXE_dial")).unwrap();
    finish_with_input(
        &mut sandbox.ssh_command("cat > /tmp/dial && chmod 755 /tmp/dial"),
        program,
    )
    .expect(0);
    for port in ["22", "122"] {
        let dialled = sandbox.ssh(&format!("/tmp/dial {port}")).expect(0).text();
        assert_eq!(dialled, "tried 2\nheard 0\n", "{port}");
    }
}

#[test]
fn an_endpoint_of_a_fork_has_a_host_key_of_any_kind() {
    let msb = Msb::new();
    msb.create("base");
    msb.run(["fork", "base", "--name", "copy"]).expect(0);
    for kind in ["rsa", "ecdsa"] {
        let directory = msb.scratch(kind);
        fs::create_dir(&directory).unwrap();
        let socket = msb.scratch(&format!("{kind}.sock"));
        let client = Client::new(directory.clone(), &socket);
        client.key("visitor");
        let own = directory.join("own");
        let mut keygen = Command::new("ssh-keygen");
        finish(keygen.args(["-q", "-t", kind, "-N", "", "-f"]).arg(&own)).expect(0);
        client.pin("own", &fs::read_to_string(directory.join("own.pub")).unwrap());
        let options = SshServerOptions {
            host_key_path: Some(own),
            authorized_keys_path: Some(directory.join("visitor.pub")),
            user: Some("root".into()),
            ..SshServerOptions::default()
        };
        let server = runtime()
            .block_on(msb.open("copy").ssh().prepare_server(options))
            .unwrap();
        serve(server, socket);
        let told = client.run("own", &directory.join("visitor"), "hostname").expect(0);
        assert_eq!(told.text(), "copy\n", "{kind}");
    }
}
