//! The shape of VS Code Remote-SSH: one `ssh -T -D PORT` with a script on standard input that installs and starts a
//! server, and HTTP to that server through the SOCKS port.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command};

use msb_tests::{finish, sha256_of_file};

use crate::fixture::{Background, Fixture};

/// A session that runs while its input is open.
struct Tunnel {
    client: Background,
    script: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    socks: u16,
}

pub(crate) fn remote_server(fixture: &Fixture) {
    let page = fixture.random_file("page", 1 << 20);
    let archive = fixture.local("server.tar.gz");
    let mut tar = Command::new("tar");
    let local = page.parent().unwrap();
    finish(tar.arg("-czf").arg(&archive).arg("-C").arg(local).arg("page")).expect(0);
    let remote = fixture.remote("vscode");
    finish(&mut fixture.server.ssh(&format!("mkdir {remote}"))).expect(0);
    let upload = format!("{}:{remote}/", fixture.server.host);
    finish(fixture.server.openssh("scp").arg(&archive).arg(upload)).expect(0);

    let port = free_port();
    let mut tunnel = Tunnel::open(fixture);
    // Its server lives on when the session ends, which closes the terminal-less pipes.
    tunnel.say(&format!(
        "cd {remote} && tar xzf server.tar.gz && rm server.tar.gz\n\
         setsid busybox httpd -f -p 127.0.0.1:{port} -h {remote} </dev/null >/dev/null 2>&1 &\n\
         echo $! > pid; echo listeningOn=={port}==\n"
    ));
    assert_eq!(tunnel.line(), format!("listeningOn=={port}==\n"));
    fetch(fixture, &tunnel, port, &page);
    tunnel.close();

    let mut tunnel = Tunnel::open(fixture);
    tunnel.say(&format!("cd {remote}; kill -0 $(cat pid) && echo running\n"));
    assert_eq!(tunnel.line(), "running\n");
    fetch(fixture, &tunnel, port, &page);
    tunnel.say("kill $(cat pid) && echo killed\n");
    assert_eq!(tunnel.line(), "killed\n");
    tunnel.close();
}

/// Gets the page four times at once.
fn fetch(fixture: &Fixture, tunnel: &Tunnel, port: u16, page: &Path) {
    let copies = [0, 1, 2, 3].map(|copy| fixture.local(&format!("page.{copy}")));
    let mut curl = fixture.client("curl", "curl");
    curl.args([
        "--silent",
        "--show-error",
        "--fail",
        "--parallel",
        "--parallel-immediate",
    ]);
    // The server may not listen yet.
    curl.args(["--retry", "60", "--retry-delay", "1", "--retry-all-errors"]);
    // The name is resolved on the server.
    curl.args(["--socks5-hostname", &format!("127.0.0.1:{}", tunnel.socks)]);
    for copy in &copies {
        let _ = fs::remove_file(copy);
        curl.arg("-o").arg(copy).arg(format!("http://localhost:{port}/page"));
    }
    finish(&mut curl).expect(0);
    for copy in copies {
        assert_eq!(sha256_of_file(&copy), sha256_of_file(page));
    }
}

impl Tunnel {
    fn open(fixture: &Fixture) -> Self {
        let socks = free_port();
        let mut ssh = fixture.server.openssh("ssh");
        ssh.args(["-T", "-D", &socks.to_string(), "-o", "ConnectTimeout=60"]);
        ssh.args(["-o", "ExitOnForwardFailure=yes", &fixture.server.host, "sh"]);
        let mut client = Background::start(&mut ssh);
        let (script, output) = (Some(client.take_input()), client.take_output());
        Self {
            client,
            script,
            output,
            socks,
        }
    }

    fn say(&mut self, text: &str) {
        self.script.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line
    }

    fn close(mut self) {
        drop(self.script.take());
        assert_eq!(self.client.wait(), Some(0));
    }
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}
