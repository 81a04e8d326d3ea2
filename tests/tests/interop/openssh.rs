//! OpenSSH's own clients where the other tests have them not: many sessions of one connection, scp with both protocols.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ChildStdout;

use msb_tests::{MASTER, finish, sha256_of_file};

use crate::fixture::{Background, Fixture};

/// More than `MaxSessions` of sshd lets one connection have.
const SESSIONS: usize = 24;

struct Echo {
    client: Background,
    output: BufReader<ChildStdout>,
}

pub(crate) fn many_sessions(fixture: &Fixture) {
    let control = fixture.local("control");
    let shared = |remote: &str| {
        let mut ssh = fixture.server.openssh("ssh");
        // Without a master it fails instead of connecting by itself.
        ssh.args(["-o", "ProxyCommand=false", "-S"]).arg(&control);
        ssh.arg(&fixture.server.host).arg(remote);
        ssh
    };
    let mut master = fixture.server.openssh("ssh");
    master.args(MASTER).arg(&control).arg(&fixture.server.host);
    let mut master = Background::start(&mut master);
    master.take_output().read_line(&mut String::new()).unwrap();

    let mut sessions: Vec<Echo> = (0..SESSIONS)
        .map(|number| {
            let remote = format!("echo {number}; read line; echo $line; exit {number}");
            let mut client = Background::start(&mut shared(&remote));
            let output = client.take_output();
            Echo { client, output }
        })
        .collect();
    for (number, session) in sessions.iter_mut().enumerate() {
        assert_eq!(session.line(), format!("{number}\n"), "all are open before any ends");
    }
    for (number, session) in sessions.iter_mut().enumerate() {
        writeln!(session.client.take_input(), "input {number}").unwrap();
    }
    for (number, mut session) in sessions.into_iter().enumerate() {
        let mut rest = String::new();
        session.output.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, format!("input {number}\n"));
        assert_eq!(session.client.wait(), Some(i32::try_from(number).unwrap()));
    }
    finish(&mut shared("exit 7")).expect(7);
}

impl Echo {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line
    }
}

pub(crate) fn scp(fixture: &Fixture) {
    copy_both_ways(fixture, "scp-sftp", "-s");
}

/// It needs an scp where the server is: the built-in image has none, so this one comes from the disk with programs.
pub(crate) fn scp_legacy(fixture: &Fixture) {
    copy_both_ways(fixture, "scp-legacy", "-O");
}

fn copy_both_ways(fixture: &Fixture, name: &str, protocol: &str) {
    let tree = fixture.local(name);
    make_tree(&tree);
    let there = format!("{}:{}", fixture.server.host, fixture.remote(name));
    let back = fixture.local(&format!("{name}.back"));
    let scp = || {
        let mut scp = fixture.server.openssh("scp");
        scp.args(["-rp", protocol]);
        scp
    };
    finish(scp().arg(&tree).arg(&there)).expect(0);
    finish(scp().arg(&there).arg(&back)).expect(0);
    for file in ["large", "with space and 'quotes'", "deep/er/script"] {
        assert_eq!(
            sha256_of_file(&back.join(file)),
            sha256_of_file(&tree.join(file)),
            "{file}"
        );
    }
    let of_script = |at: &Path| fs::metadata(at.join("deep/er/script")).unwrap();
    assert_eq!(
        of_script(&back).permissions().mode(),
        of_script(&tree).permissions().mode()
    );
    let missing = finish(scp().arg(format!("{there}/missing")).arg(&back)).expect(1);
    assert!(missing.stderr.contains("No such file"), "{}", missing.stderr);
}

fn make_tree(at: &Path) {
    fs::create_dir_all(at.join("deep/er")).unwrap();
    let large: Vec<u8> = (0..500_000u32).flat_map(u32::to_le_bytes).collect();
    fs::write(at.join("large"), large).unwrap();
    fs::write(at.join("with space and 'quotes'"), "odd").unwrap();
    fs::write(at.join("deep/er/script"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(at.join("deep/er/script"), fs::Permissions::from_mode(0o750)).unwrap();
}
