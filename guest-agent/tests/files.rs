//! SFTP, scp and rsync with stock clients.

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use msb_test_support::pattern;
use support::{AGENT, Server, assert_success, direct_sftp, os, output, quoted, stdout};

/// A tree with odd names, links, modes and sizes around the transfer units.
fn make_tree(root: &Path) {
    fs::create_dir_all(root.join("deep/er")).unwrap();
    for length in [0, 1, 32_767, 32_768, 261_120, 261_121, 300_000] {
        fs::write(root.join(format!("deep/size-{length}")), pattern(length)).unwrap();
    }
    fs::write(root.join("with blank"), "b").unwrap();
    fs::write(root.join("deep/er/script"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(root.join("deep/er/script"), fs::Permissions::from_mode(0o751)).unwrap();
}

fn assert_same_tree(left: &Path, right: &Path) {
    assert_success(&output(Command::new("diff").arg("-r").args([left, right])));
    let mode = |root: &Path| fs::metadata(root.join("deep/er/script")).unwrap().mode() & 0o777;
    assert_eq!(mode(left), mode(right));
}

#[test]
fn scp_copies_a_tree_there_and_back() {
    let server = Server::new();
    make_tree(&server.path("tree"));
    let target = format!("box:{}", server.path("there").display());
    assert_success(&output(
        server
            .client("scp")
            .args(["-rpq"])
            .arg(server.path("tree"))
            .arg(&target),
    ));
    assert_success(&output(
        server
            .client("scp")
            .args(["-rpq"])
            .arg(&target)
            .arg(server.path("back")),
    ));
    assert_same_tree(&server.path("tree"), &server.path("back"));
}

#[test]
fn rsync_copies_a_tree() {
    let server = Server::new();
    make_tree(&server.path("tree"));
    symlink("deep", server.path("tree/link")).unwrap();
    fs::write(server.path("tree").join(os(b"latin-\xe9")), "x").unwrap();
    let shell = format!("ssh -F {}", server.path("config").display());
    let (from, to) = (
        format!("{}/", server.path("tree").display()),
        format!("box:{}/", server.path("there").display()),
    );
    assert_success(&output(
        Command::new("timeout").args(["60", "rsync", "-a", "-e", &shell, &from, &to]),
    ));
    assert_same_tree(&server.path("tree"), &server.path("there"));
    assert!(server.path("there").join(os(b"latin-\xe9")).exists());
}

#[test]
fn names_that_are_not_text_survive() {
    let server = Server::new();
    let name = os(b"caf\xe9-\xff");
    fs::write(server.path("plain"), "data").unwrap();
    let remote = server.path(name);
    let batch = [
        b"put ",
        &quoted(&server.path("plain"))[..],
        b" ",
        &quoted(&remote),
        b"\nchmod 640 ",
        &quoted(&remote),
        b"\n",
    ]
    .concat();
    assert_success(&direct_sftp(&batch));
    assert_eq!(fs::metadata(&remote).unwrap().mode() & 0o777, 0o640);
    // The client shows what is not text in octal.
    let listing = direct_sftp(&[b"ls -1 ", quoted(&server.path("")).as_slice(), b"\n"].concat());
    assert_success(&listing);
    assert!(stdout(&listing).contains(r"caf\351-\377"), "{}", stdout(&listing));
}

#[test]
fn every_operation_of_the_client_works() {
    let server = Server::new();
    let at = |name: &str| server.path(name).display().to_string();
    fs::write(server.path("a"), pattern(300_000)).unwrap();
    fs::write(server.path("victim"), "old").unwrap();
    let batch = format!(
        "mkdir {dir}\ncd {dir}\nput {a} b\nrename b c\nrename c {victim}\nln {victim} hard\nln -s hard soft\ncp hard copy\n\
         df -i .\nls -la\nlmkdir {local}\nput -fp {a} synced\nrm soft\nchmod 4711 copy\nmkdir sub\nrmdir sub\npwd\n",
        dir = at("dir"),
        a = at("a"),
        victim = at("victim"),
        local = at("local"),
    );
    let output = direct_sftp(batch.as_bytes());
    assert_success(&output);
    let original = fs::read(server.path("a")).unwrap();
    for name in ["victim", "dir/hard", "dir/copy", "dir/synced"] {
        assert!(fs::read(server.path(name)).unwrap() == original, "{name}");
    }
    assert_eq!(fs::metadata(server.path("victim")).unwrap().nlink(), 2);
    assert_eq!(fs::metadata(server.path("dir/copy")).unwrap().mode() & 0o7777, 0o4711);
    assert!(fs::symlink_metadata(server.path("dir/soft")).is_err());
    assert!(stdout(&output).contains(&format!("Remote working directory: {}", at("dir"))));
}

#[test]
fn errors_say_what_failed() {
    let server = Server::new();
    fs::create_dir(server.path("full")).unwrap();
    fs::write(server.path("full/file"), "").unwrap();
    let [missing, full, long] = ["missing".into(), "full".into(), "x".repeat(300)].map(|name| server.path(name));
    let cases = [
        (format!("get {}", missing.display()), "not found"),
        (format!("rmdir {}", full.display()), "Failure"),
        (format!("mkdir {}", full.display()), "Failure"),
        (format!("mkdir {}", long.display()), "Bad message"),
    ];
    for (batch, expected) in cases {
        let output = direct_sftp(format!("{batch}\n").as_bytes());
        let message = String::from_utf8_lossy(&output.stderr).into_owned() + &stdout(&output);
        assert!(!output.status.success(), "{batch}");
        assert!(message.contains(expected), "{batch}: {message}");
    }
}

#[test]
fn a_fifo_and_a_device_do_not_hang_the_server() {
    let server = Server::new();
    let fifo = server.path("fifo");
    assert_success(&output(Command::new("mkfifo").arg(&fifo)));
    let batch = format!(
        "-get {} {}\nls {}\n",
        fifo.display(),
        server.path("got").display(),
        server.path("").display()
    );
    assert_success(&direct_sftp(batch.as_bytes()));
}

#[test]
fn a_directory_of_thousands_is_listed_whole() {
    let server = Server::new();
    let many = server.path("many");
    fs::create_dir(&many).unwrap();
    for index in 0..3000 {
        fs::write(many.join(format!("{index:0>100}")), "").unwrap();
    }
    let output = direct_sftp(format!("ls -1 {}\n", many.display()).as_bytes());
    assert_success(&output);
    assert_eq!(
        stdout(&output).lines().filter(|line| line.contains("00000")).count(),
        3000
    );
}

#[test]
fn the_greeting_lists_the_extensions_of_openssh() {
    let mut command = Command::new("timeout");
    command.args([
        "60",
        "sftp",
        "-vvv",
        "-D",
        &format!("{AGENT} sftp-server"),
        "-b",
        "/dev/null",
    ]);
    let log = String::from_utf8_lossy(&output(&mut command).stderr).into_owned();
    for extension in [
        "posix-rename@openssh.com",
        "statvfs@openssh.com",
        "fstatvfs@openssh.com",
        "hardlink@openssh.com",
        "fsync@openssh.com",
        "lsetstat@openssh.com",
        "limits@openssh.com",
        "expand-path@openssh.com",
        "copy-data",
        "home-directory",
        "users-groups-by-id@openssh.com",
    ] {
        assert!(log.contains(&format!("\"{extension}\"")), "{extension} in {log}");
    }
}
