//! PuTTY's command-line clients.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use msb_tests::{finish, finish_with_input, sha256, sha256_of_file};

use crate::fixture::Fixture;

pub(crate) fn plink(fixture: &Fixture) {
    let mut plink = client(fixture, "plink", "plink-key.ppk");
    plink.args([&fixture.server.login(), "echo out; echo err >&2; exit 4"]);
    let done = finish(&mut plink).expect(4);
    assert_eq!(done.text(), "out\n");
    assert!(done.stderr.ends_with("err\n"), "{}", done.stderr);

    let bytes: Vec<u8> = (0..2_000_000u32).flat_map(u32::to_le_bytes).collect();
    let mut plink = client(fixture, "plink", "plink-echo.ppk");
    plink.args([&fixture.server.login(), "cat"]);
    let echoed = finish_with_input(&mut plink, bytes.clone()).expect(0);
    assert_eq!(sha256(echoed.stdout), sha256(bytes));
}

pub(crate) fn psftp(fixture: &Fixture) {
    let file = fixture.random_file("psftp-file", 1 << 20);
    let back = fixture.local("psftp-back");
    let batch = fixture.local("psftp-batch");
    let commands = format!(
        "cd {}\nput {} one\nmkdir sub\nmv one sub\nls sub\nchmod 600 sub/one\nget sub/one {}\ndel sub/one\nrmdir sub\n",
        fixture.remote,
        file.display(),
        back.display()
    );
    fs::write(&batch, commands).unwrap();
    let mut psftp = client(fixture, "psftp", "psftp-key.ppk");
    psftp.arg("-b").arg(&batch).arg(fixture.server.login());
    let done = finish(&mut psftp).expect(0);
    assert!(done.text().contains("sub/one: OK"), "{}", done.text());
    assert_eq!(sha256_of_file(&back), sha256_of_file(&file));
    let left = finish(&mut fixture.server.ssh(&format!("test ! -e {}/sub", fixture.remote)));
    left.expect(0);
}

/// One of them, with the key in their format and the host key it may see.
fn client(fixture: &Fixture, program: &str, key: &str) -> Command {
    let mut client = fixture.client(program, "putty-tools");
    client.args(["-batch", "-proxycmd", &fixture.server.bridge, "-i"]);
    client
        .arg(converted_key(fixture, key))
        .arg("-hostkey")
        .arg(fingerprint(fixture));
    client
}

fn converted_key(fixture: &Fixture, name: &str) -> PathBuf {
    let key = fixture.local(name);
    let mut convert = fixture.client("puttygen", "putty-tools");
    finish(convert.arg(&fixture.server.identity).arg("-o").arg(&key)).expect(0);
    key
}

/// `SHA256:...` of the pinned host key.
fn fingerprint(fixture: &Fixture) -> String {
    let mut of = Command::new("ssh-keygen");
    let printed = finish_with_input(of.args(["-l", "-f", "-"]), fixture.server.host_key().into_bytes()).expect(0);
    printed.text().split_whitespace().nth(1).unwrap().to_owned()
}
