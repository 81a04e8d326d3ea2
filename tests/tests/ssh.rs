//! Stock `ssh` into a sandbox, through `msb ssh-bridge`.

use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use msb_tests::{MASTER, Msb, Terminal, finish, finish_with_input, sha256};

#[test]
fn output_error_and_status_are_the_remote_ones() {
    let msb = Msb::new();
    let sandbox = msb.create("exec");
    for status in [0, 3, 255] {
        let ssh = sandbox
            .ssh(&format!("echo out; echo err >&2; exit {status}"))
            .expect(status);
        assert_eq!((ssh.text().as_str(), ssh.stderr.trim()), ("out\n", "err"));
    }
    // OpenSSH's client turns a death by signal into 255; msb tells which one.
    sandbox.ssh("kill -9 $$").expect(255);
    msb.run(["exec", "exec", "--", "sh", "-c", "kill -9 $$"])
        .expect(128 + 9);
}

#[test]
fn input_ends_where_the_client_ended_it_and_output_goes_on() {
    let msb = Msb::new();
    let sandbox = msb.create("half");
    let echoed = finish_with_input(
        &mut sandbox.ssh_command("cat; echo end; sleep 1; seq 1 20000"),
        b"hello\n".to_vec(),
    );
    let text = echoed.expect(0).text();
    assert!(
        text.starts_with("hello\nend\n1\n") && text.ends_with("\n20000\n"),
        "{} bytes",
        text.len()
    );
    let bytes: Vec<u8> = (0..2_000_000u32).flat_map(u32::to_le_bytes).collect();
    let expected = sha256(bytes.clone());
    let echoed = finish_with_input(&mut sandbox.ssh_command("cat"), bytes).expect(0);
    assert_eq!(sha256(echoed.stdout), expected);
}

#[test]
fn sixty_four_mebibytes_arrive_whole_each_way() {
    let msb = Msb::new();
    let sandbox = msb.create_with("bulk", &["--memory", "512M"]);
    let mut bytes = vec![0; 64 << 20];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    let expected = sha256(bytes.clone());
    let up = finish_with_input(&mut sandbox.ssh_command("tee /tmp/bulk | sha256sum"), bytes).expect(0);
    assert_eq!(up.text().split_whitespace().next(), Some(expected.as_str()));
    let down = sandbox.ssh("cat /tmp/bulk").expect(0);
    assert_eq!(down.stdout.len(), 64 << 20);
    assert_eq!(sha256(down.stdout), expected);
}

#[test]
fn a_second_client_is_served_while_the_first_takes_and_gives_nothing() {
    let msb = Msb::new();
    let sandbox = msb.create("stalled");
    // It floods its output, which nobody reads, and has input that it never reads.
    let mut stalled = sandbox
        .ssh_command("exec 3<&0; cat /dev/zero <&3 & sleep 1000")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut first = [0; 1];
    stalled.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    for _ in 0..3 {
        assert_eq!(sandbox.ssh("echo hi").expect(0).text(), "hi\n");
    }
    stalled.kill().unwrap();
    stalled.wait().unwrap();
}

#[test]
fn channels_of_one_connection_do_not_wait_for_a_stalled_one() {
    let msb = Msb::new();
    let sandbox = msb.create("mux");
    let control = msb.scratch("control");
    let shared = |command: &str| {
        let mut ssh = msb.openssh("ssh");
        ssh.arg("-S").arg(&control).arg(sandbox.host()).arg(command);
        ssh
    };
    let mut master = msb.openssh("ssh");
    master.args(MASTER).arg(&control);
    let mut master = master
        .arg(sandbox.host())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut up = [0; 3];
    master.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
    let mut stalled = shared("echo up; sleep 1000")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    stalled.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
    let mut input = stalled.stdin.take().unwrap();
    let feeder = std::thread::spawn(move || {
        let zeros = vec![0; 1 << 16];
        let mut sent = 0;
        while sent < 64 << 20 && input.write_all(&zeros).is_ok() {
            sent += zeros.len();
        }
    });
    for _ in 0..3 {
        assert_eq!(finish(&mut shared("echo hi")).expect(0).text(), "hi\n");
    }
    stalled.kill().unwrap();
    stalled.wait().unwrap();
    // It has the client's input, too.
    master.kill().unwrap();
    master.wait().unwrap();
    feeder.join().unwrap();
}

#[test]
fn a_terminal_has_its_size_and_follows_it() {
    let msb = Msb::new();
    let sandbox = msb.create("pty");
    let mut ssh = msb.openssh("ssh");
    let mut terminal = Terminal::start(ssh.arg("-tt").arg(sandbox.host()).env("TERM", "xterm"), 24);
    terminal.wait_for("# ");
    terminal.type_text("stty size; tty; echo $TERM\n");
    terminal.wait_for("24 80");
    terminal.wait_for("/dev/pts/");
    terminal.wait_for("xterm");
    terminal.resize(50);
    // The size travels beside what is typed: ask until it is there.
    let resized = (0..50).any(|_| {
        terminal.type_text("stty size\n");
        terminal.wait_for_within("50 80", Duration::from_secs(2)).is_some()
    });
    assert!(resized, "the new size never arrived");
    terminal.type_text("exit 4\n");
    assert_eq!(terminal.wait(), 4);
}

#[test]
fn an_unknown_key_is_refused_and_another_host_key_is_never_trusted() {
    let msb = Msb::new();
    let sandbox = msb.create("keys");
    let key = msb.scratch("stranger");
    finish(
        Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&key),
    )
    .expect(0);
    let mut stranger = msb.openssh("ssh");
    let bridge = format!("ProxyCommand=msb ssh-bridge {}", sandbox.name);
    stranger.args(["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]);
    stranger.args([
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-o",
        "IdentitiesOnly=yes",
        "-o",
        &bridge,
        "-i",
    ]);
    let refused = finish(stranger.arg(&key).arg("root@box").arg("true")).expect(255);
    assert!(
        refused.stderr.contains("Permission denied (publickey)"),
        "{}",
        refused.stderr
    );

    let known_hosts = msb.home().join("known_hosts");
    let pinned = fs::read_to_string(&known_hosts).unwrap();
    let other = fs::read_to_string(key.with_extension("pub")).unwrap();
    let other = other.split_whitespace().nth(1).unwrap();
    let forged: String = pinned
        .lines()
        .map(|line| {
            let (names, _) = line.rsplit_once(' ').unwrap();
            format!("{names} {other}\n")
        })
        .collect();
    fs::write(&known_hosts, forged).unwrap();
    let refused = sandbox.ssh("true").expect(255);
    assert!(
        refused.stderr.contains("Host key verification failed"),
        "{}",
        refused.stderr
    );
    fs::write(&known_hosts, pinned).unwrap();
    sandbox.ssh("true").expect(0);
}

#[test]
fn the_descriptor_can_be_handed_to_ssh_instead_of_copying() {
    let msb = Msb::new();
    let sandbox = msb.create("fdpass");
    let mut ssh = msb.openssh("ssh");
    let bridge = format!("ProxyCommand=msb ssh-bridge --fdpass {}", sandbox.name);
    ssh.args(["-o", &bridge, "-o", "ProxyUseFdpass=yes"])
        .arg(sandbox.host());
    assert_eq!(finish(ssh.arg("echo passed")).expect(0).text(), "passed\n");
}

#[test]
fn a_proxy_that_speaks_to_the_socket_itself_reaches_ssh() {
    let msb = Msb::new();
    let sandbox = msb.create("mux");
    // As systemd-ssh-proxy does for `ssh vsock-mux/PATH`.
    let socket = sandbox.inspect()["socket"].as_str().unwrap().to_owned();
    let proxy = format!(
        "import array, os, socket, sys\n\
         s = socket.socket(socket.AF_UNIX)\n\
         s.connect({socket:?})\n\
         s.sendall(b'CONNECT 22\\n')\n\
         answer = b''\n\
         while not answer.endswith(b'\\n'): answer += s.recv(1)\n\
         assert answer.startswith(b'OK '), answer\n\
         socket.socket(fileno=1).sendmsg([b'x'], \
         [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [s.fileno()]))])\n"
    );
    let program = msb.scratch("proxy.py");
    fs::write(&program, proxy).unwrap();
    let mut ssh = msb.openssh("ssh");
    let command = format!("ProxyCommand=python3 {}", program.display());
    ssh.args(["-o", &command, "-o", "ProxyUseFdpass=yes"])
        .arg(sandbox.host());
    assert_eq!(finish(ssh.arg("echo reached")).expect(0).text(), "reached\n");
}

#[test]
fn keepalives_are_answered() {
    let msb = Msb::new();
    let sandbox = msb.create("keepalive");
    let mut ssh = msb.openssh("ssh");
    // Five of them; one that stays without an answer would end the connection.
    ssh.args(["-v", "-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=1"])
        .arg(sandbox.host());
    let done = finish(ssh.arg("sleep 5; echo alive")).expect(0);
    assert_eq!(done.text(), "alive\n");
}

#[test]
fn a_sandbox_offers_only_what_it_was_told_to() {
    let msb = Msb::new();
    let sandbox = msb.create_with("less", &["--no-sftp", "--no-port-forwarding", "--no-agent-forwarding"]);
    assert_eq!(sandbox.ssh("echo commands").expect(0).text(), "commands\n");
    let mut sftp = msb.openssh("sftp");
    assert_ne!(finish(sftp.args(["-b", "/dev/null"]).arg(sandbox.host())).code, Some(0));
    let mut forward = msb.openssh("ssh");
    forward.args(["-W", "127.0.0.1:1"]).arg(sandbox.host());
    let refused = finish(&mut forward).expect(255);
    assert!(refused.stderr.contains("prohibited"), "{}", refused.stderr);
    assert_eq!(sandbox.inspect()["ssh"]["sftp"], false);
}

#[test]
fn any_user_of_the_guest_logs_in_with_its_own_rights() {
    let msb = Msb::new();
    let sandbox = msb.create("users");
    let mut ssh = msb.openssh("ssh");
    ssh.args(["-l", "user"]).arg(sandbox.host());
    let text = finish(ssh.arg("id -un; pwd; cat /proc/1/environ")).text();
    assert_eq!(text, "user\n/home/user\n");
}

#[test]
fn the_installed_configuration_serves_plain_ssh() {
    let msb = Msb::new();
    let sandbox = msb.create("plain");
    // Home directories are the user database's for ssh: an empty one is mounted over this user's.
    let script = format!(
        "mount -t tmpfs none ~ && msb ssh-config --install >&2 && msb ssh-config --install >&2 \
         && grep -c Include ~/.ssh/config && ssh {} hostname",
        sandbox.host()
    );
    let mut plain = msb.command_of("unshare");
    let text = finish(plain.args(["--mount", "sh", "-c", &script])).expect(0).text();
    assert_eq!(text, "1\nplain\n");
}
