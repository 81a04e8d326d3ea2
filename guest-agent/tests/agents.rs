//! The client's SSH agent, from inside the box.

mod support;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use msb_test_support::own_user;
use support::{Server, assert_success, output, stdout};

/// An agent that holds the user's key, ended with the test.
struct Agent {
    process: Child,
    socket: PathBuf,
}

impl Agent {
    fn start(server: &Server) -> Self {
        let socket = server.path("agent");
        let mut command = Command::new("ssh-agent");
        let process = command.arg("-D").arg("-a").arg(&socket).stdout(Stdio::piped()).spawn();
        let mut agent = Self {
            process: process.expect("ssh-agent is needed: install openssh-client"),
            socket,
        };
        // It says where it listens once it does.
        let mut first = [0; 1];
        std::io::Read::read_exact(agent.process.stdout.as_mut().unwrap(), &mut first).unwrap();
        let mut add = Command::new("ssh-add");
        add.arg("-q")
            .arg(server.path("user"))
            .env("SSH_AUTH_SOCK", &agent.socket);
        assert_success(&output(&mut add));
        agent
    }

    fn ssh(&self, server: &Server, command: &str) -> std::process::Output {
        let mut ssh = server.ssh(&["-A", "box", command]);
        output(ssh.env("SSH_AUTH_SOCK", &self.socket).stdin(Stdio::null()))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_session_uses_the_keys_of_the_clients_agent() {
    let server = Server::new();
    let agent = Agent::start(&server);
    let listed = agent.ssh(&server, "ssh-add -L; ssh-add -L");
    assert_success(&listed);
    let key = std::fs::read_to_string(server.path("user.pub")).unwrap();
    assert_eq!(stdout(&listed), key.repeat(2));
}

#[test]
fn the_socket_is_the_users_alone_and_goes_with_its_connection() {
    let server = Server::new();
    let agent = Agent::start(&server);
    let shown = agent.ssh(
        &server,
        r#"stat -c "%a %U" $SSH_AUTH_SOCK $(dirname $SSH_AUTH_SOCK); echo $SSH_AUTH_SOCK"#,
    );
    let shown = stdout(&shown);
    let user = own_user();
    let (modes, path) = shown.trim_end().rsplit_once('\n').unwrap();
    assert_eq!(modes, format!("600 {user}\n700 {user}"));
    assert!(path.starts_with("/tmp/ssh-"), "{path}");
    // The output has ended, so every process with it has: the server among them.
    let directory = PathBuf::from(path).parent().unwrap().to_path_buf();
    assert!(!directory.exists(), "{} was left", directory.display());
}

#[test]
fn no_agent_is_forwarded_unless_it_is_asked_for_and_allowed() {
    let refusing = [
        Server::with_options("no-agent-forwarding"),
        Server::with_options("restrict"),
        Server::with_arguments("--no-agent-forwarding"),
    ];
    for server in refusing {
        let agent = Agent::start(&server);
        assert_eq!(stdout(&agent.ssh(&server, "echo [$SSH_AUTH_SOCK]")), "[]\n");
    }
    let server = Server::new();
    let _agent = Agent::start(&server);
    assert_eq!(stdout(&server.run("echo [$SSH_AUTH_SOCK]")), "[]\n");
}

#[test]
fn a_client_whose_agent_is_gone_answers_nothing_and_goes_on() {
    let server = Server::new();
    let agent = Agent::start(&server);
    let path = server.path("agent");
    let command = format!("rm {}; ssh-add -l; echo still", path.display());
    assert_eq!(stdout(&agent.ssh(&server, &command)), "still\n");
}
