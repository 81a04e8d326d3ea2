//! Listeners in the box whose connections go to the client.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::thread;

use msb_test_support::{own_user, pattern};
use support::{Master, Server, assert_success, output, stdout};

/// Greets every connection, then gives back all that it got once that has ended.
fn echo_after_end() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                stream.write_all(b"hello ").unwrap();
                let mut received = Vec::new();
                stream.read_to_end(&mut received).unwrap();
                let _ = stream.write_all(&received);
            });
        }
    });
    port
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Sends data and its end, and receives what comes back.
fn exchange(mut stream: TcpStream, data: &[u8]) -> Vec<u8> {
    let mut sending = stream.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            sending.write_all(data).unwrap();
            sending.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        received
    })
}

/// A client with forwards, ended with the test.
struct Session {
    ssh: Child,
}

impl Session {
    /// Starts a client and waits until its forwards are there.
    fn start(server: &Server, arguments: &[&str]) -> Self {
        let mut ssh = server.ssh(&["-o", "ExitOnForwardFailure=yes"]);
        ssh.args(arguments).args(["box", "echo ready; cat"]);
        let ssh = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut ssh = ssh.spawn().unwrap();
        let mut ready = [0; 6];
        ssh.stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut ready)
            .expect("the forwards are refused");
        Self { ssh }
    }

    /// Ends the client in order, and waits for the server's end too, which has the same standard error.
    fn end(mut self) {
        drop(self.ssh.stdin.take());
        assert!(self.ssh.wait().unwrap().success());
        let mut errors = String::new();
        self.ssh.stderr.as_mut().unwrap().read_to_string(&mut errors).unwrap();
        assert_eq!(errors, "");
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.ssh.kill();
        let _ = self.ssh.wait();
    }
}

fn is_refused(server: &Server, forward: &str) -> bool {
    let mut ssh = server.ssh(&["-o", "ExitOnForwardFailure=yes", "-R", forward, "box", "true"]);
    let refused = output(ssh.stdin(Stdio::null()));
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    refused.status.code() == Some(255) && message.contains("remote port forwarding failed")
}

#[test]
fn each_direction_of_an_accepted_connection_ends_by_itself() {
    let (server, port) = (Server::new(), free_port());
    let forward = format!("{port}:127.0.0.1:{}", echo_after_end());
    let session = Session::start(&server, &["-R", &forward]);
    let data = pattern(3 << 20);
    for address in ["127.0.0.1", "::1"] {
        let address: IpAddr = address.parse().unwrap();
        let received = exchange(TcpStream::connect((address, port)).unwrap(), &data);
        assert!(
            received == [b"hello ", data.as_slice()].concat(),
            "{} bytes",
            received.len()
        );
    }
    session.end();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn a_port_that_the_server_chooses_is_told() {
    let server = Server::new();
    let forward = format!("0:127.0.0.1:{}", echo_after_end());
    let mut ssh = server.ssh(&["-o", "LogLevel=INFO", "-R", &forward, "box", "cat"]);
    let mut ssh = ssh.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(ssh.stderr.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    let port = line
        .strip_prefix("Allocated port ")
        .and_then(|rest| rest.split(' ').next());
    let port: u16 = port
        .and_then(|port| port.parse().ok())
        .unwrap_or_else(|| panic!("{line}"));
    assert_eq!(
        exchange(TcpStream::connect(("127.0.0.1", port)).unwrap(), b"x"),
        b"hello x"
    );
    drop(ssh.stdin.take());
    assert!(ssh.wait().unwrap().success());
}

#[test]
fn listeners_are_on_loopback_alone_whatever_address_is_asked_for() {
    let (server, port) = (Server::new(), free_port());
    let forward = format!("*:{port}:127.0.0.1:{}", echo_after_end());
    let _session = Session::start(&server, &["-R", &forward]);
    let listening = stdout(&output(Command::new("cat").args(["/proc/net/tcp", "/proc/net/tcp6"])));
    let local = listening.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let (address, local) = fields.nth(1)?.split_once(':')?;
        (u16::from_str_radix(local, 16) == Ok(port) && fields.nth(1) == Some("0A")).then(|| address.to_owned())
    });
    let mut local: Vec<String> = local.collect();
    local.sort();
    assert_eq!(local, ["00000000000000000000000001000000", "0100007F"]);
}

#[test]
fn a_listener_ends_when_it_is_cancelled_and_its_connections_go_on() {
    let (server, port) = (Server::new(), free_port());
    let master = Master::start(&server);
    let forward = format!("{port}:127.0.0.1:{}", echo_after_end());
    assert_success(&output(&mut server.ssh(&["-O", "forward", "-R", &forward, "box"])));
    let mut open = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut greeting = [0; 6];
    open.read_exact(&mut greeting).unwrap();

    assert_success(&output(&mut server.ssh(&["-O", "cancel", "-R", &forward, "box"])));
    // The answer of the box to a command comes after that to the cancellation.
    assert_success(&server.run("true"));
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    assert_eq!(exchange(open, b"still"), b"still");
    drop(master);
}

#[test]
fn a_socket_belongs_to_the_user_alone_and_goes_with_its_connection() {
    let server = Server::new();
    let (there, here) = (server.path("there"), server.path("here"));
    let listener = UnixListener::bind(&here).unwrap();
    let answering = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        stream.write_all(&received).unwrap();
    });
    let forward = format!("{}:{}", there.display(), here.display());
    let session = Session::start(&server, &["-R", &forward]);
    let metadata = fs::symlink_metadata(&there).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.mode() & 0o777, 0o600);

    let mut stream = UnixStream::connect(&there).unwrap();
    stream.write_all(b"through").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut echoed = String::new();
    stream.read_to_string(&mut echoed).unwrap();
    assert_eq!(echoed, "through");
    answering.join().unwrap();
    session.end();
    assert!(!there.exists(), "the socket was left");
}

#[test]
fn a_file_that_is_there_already_is_left_alone() {
    let server = Server::new();
    let there = server.path("there");
    fs::write(&there, "precious").unwrap();
    assert!(is_refused(&server, &format!("{}:/nowhere", there.display())));
    assert_eq!(fs::read_to_string(&there).unwrap(), "precious");
}

#[test]
fn what_took_the_place_of_a_socket_is_left_alone() {
    let server = Server::new();
    let there = server.path("there");
    let session = Session::start(&server, &["-R", &format!("{}:/nowhere", there.display())]);
    fs::remove_file(&there).unwrap();
    fs::write(&there, "precious").unwrap();
    session.end();
    assert_eq!(fs::read_to_string(&there).unwrap(), "precious");
}

#[test]
fn only_root_listens_on_privileged_ports_and_in_others_directories() {
    if own_user() != "root" {
        assert!(is_refused(&Server::new(), "1:127.0.0.1:1"));
        return;
    }
    // With the shell of its account, daemon could not even run a command; a forward needs none.
    let server = Server::new();
    for forward in [
        "1:127.0.0.1:1".to_owned(),
        format!("{}:/nowhere", server.path("there").display()),
    ] {
        let mut ssh = server.ssh(&[
            "-o",
            "ExitOnForwardFailure=yes",
            "-N",
            "-l",
            "daemon",
            "-R",
            &forward,
            "box",
        ]);
        let refused = output(ssh.stdin(Stdio::null()));
        let message = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            message.contains("remote port forwarding failed"),
            "{forward}: {message}"
        );
    }
    Session::start(&server, &["-R", "1:127.0.0.1:1"]).end();
}

#[test]
fn a_key_listens_only_where_its_options_let_it() {
    let port = free_port();
    let server = Server::with_options(&format!(r#"permitlisten="localhost:{port}""#));
    assert!(is_refused(&server, "0:127.0.0.1:1"));
    assert!(is_refused(
        &server,
        &format!("{}:/nowhere", server.path("there").display())
    ));
    Session::start(&server, &["-R", &format!("{port}:127.0.0.1:1")]).end();
    assert!(is_refused(
        &Server::with_options("restrict"),
        &format!("{port}:127.0.0.1:1")
    ));
}

#[test]
fn a_server_without_forwarding_listens_nowhere() {
    let server = Server::with_arguments("--no-port-forwarding");
    assert!(is_refused(&server, "0:127.0.0.1:1"));
    assert!(is_refused(
        &server,
        &format!("{}:/nowhere", server.path("there").display())
    ));
}

#[test]
fn the_listeners_of_a_connection_are_bounded() {
    const LISTENERS: usize = 64;
    let server = Server::new();
    let forwards = |count: usize| -> Vec<String> {
        let sockets = (0..count).map(|number| server.path(format!("{count}.{number}")));
        sockets
            .flat_map(|path| ["-R".into(), format!("{}:/nowhere", path.display())])
            .collect()
    };
    let mut ssh = server.ssh(&["-o", "ExitOnForwardFailure=yes"]);
    let refused = output(
        ssh.args(forwards(LISTENERS + 1))
            .args(["box", "true"])
            .stdin(Stdio::null()),
    );
    assert!(String::from_utf8_lossy(&refused.stderr).contains("remote port forwarding failed"));
    let most = forwards(LISTENERS);
    Session::start(&server, &most.iter().map(String::as_str).collect::<Vec<_>>()).end();
}

#[test]
fn many_connections_take_turns_and_leave_room_for_sessions() {
    const CONNECTIONS: usize = 150;
    let (server, port) = (Server::new(), free_port());
    let master = Master::start(&server);
    let forward = format!("{port}:127.0.0.1:{}", echo_after_end());
    assert_success(&output(&mut server.ssh(&["-O", "forward", "-R", &forward, "box"])));
    let mut open: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap())
        .collect();
    let mut greeting = [0; 6];
    open[0].read_exact(&mut greeting).unwrap();
    assert_eq!(stdout(&server.run("echo prompt")), "prompt\n");

    let last = open.pop().unwrap();
    drop(open);
    assert_eq!(exchange(last, b"turn"), b"hello turn");
    drop(master);
}
