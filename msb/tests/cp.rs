//! `msb cp` with the real agent.

mod guest;

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use guest::Guest;
use msb_test_support::{own_user, terminal};

/// `msb cp` with these arguments, in the guest's directory.
fn cp(guest: &Guest, arguments: &[&str]) -> Command {
    let mut command = guest.msb();
    command.args(["cp", "--user", &own_user()]).args(arguments);
    command.current_dir(guest.path(""));
    command
}

fn output(mut command: Command) -> Output {
    command.output().unwrap()
}

#[track_caller]
fn assert_done(output: &Output) {
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "no terminal, no progress: {output:?}");
}

#[track_caller]
fn assert_fails(output: &Output, status: i32, parts: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{part:?} is not in: {stderr}");
    }
}

fn inside(guest: &Guest, path: &str) -> String {
    format!("box:{}", guest.path(path).display())
}

fn make_tree(root: &Path) {
    fs::create_dir_all(root.join("deep/er")).unwrap();
    fs::write(root.join("deep/er/file"), vec![7; 1_000_000]).unwrap();
    fs::write(root.join("script"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(root.join("script"), fs::Permissions::from_mode(0o751)).unwrap();
    symlink("deep", root.join("link")).unwrap();
}

fn assert_same(left: &Path, right: &Path) {
    let mut diff = Command::new("diff");
    let diff = output({
        diff.args(["-r", "--no-dereference"]).args([left, right]);
        diff
    });
    assert!(diff.status.success(), "{}", String::from_utf8_lossy(&diff.stdout));
    let mode = |root: &Path| root.join("script").metadata().unwrap().mode() & 0o7777;
    assert_eq!(mode(left), mode(right));
}

#[test]
fn a_tree_goes_by_its_own_name_into_a_directory_and_by_the_given_one_elsewhere() {
    let guest = Guest::new();
    make_tree(&guest.path("tree"));
    fs::create_dir(guest.path("there")).unwrap();
    assert_done(&output(cp(&guest, &["tree", &inside(&guest, "there")])));
    assert_same(&guest.path("tree"), &guest.path("there/tree"));
    assert_done(&output(cp(&guest, &["tree/", &inside(&guest, "new")])));
    assert_same(&guest.path("tree"), &guest.path("new"));
    fs::create_dir(guest.path("content")).unwrap();
    assert_done(&output(cp(&guest, &["tree/.", &inside(&guest, "content")])));
    assert_same(&guest.path("tree"), &guest.path("content"));

    fs::create_dir(guest.path("back")).unwrap();
    assert_done(&output(cp(&guest, &[&inside(&guest, "tree"), "back"])));
    assert_same(&guest.path("tree"), &guest.path("back/tree"));
    assert_done(&output(cp(&guest, &[&inside(&guest, "tree"), "named"])));
    assert_same(&guest.path("tree"), &guest.path("named"));
    assert_done(&output(cp(&guest, &[&inside(&guest, "tree/script"), "back"])));
    assert_eq!(fs::read(guest.path("back/script")).unwrap(), b"#!/bin/sh\n");
}

#[test]
fn times_are_kept_when_asked_for() {
    let guest = Guest::new();
    fs::write(guest.path("file"), "").unwrap();
    let touch = Command::new("touch")
        .args(["-d", "2001-02-03 04:05:06 UTC"])
        .arg(guest.path("file"))
        .status();
    assert!(touch.unwrap().success());
    for (arguments, kept) in [(&["-p"][..], true), (&[], false)] {
        let there = inside(&guest, "there");
        assert_done(&output(cp(&guest, &[arguments, &["file", &there]].concat())));
        assert_eq!(guest.path("there").metadata().unwrap().mtime() == 981_173_106, kept);
        assert_done(&output(cp(
            &guest,
            &[arguments, &[&inside(&guest, "file"), "back"]].concat(),
        )));
        assert_eq!(guest.path("back").metadata().unwrap().mtime() == 981_173_106, kept);
    }
}

#[test]
fn standard_input_and_output_are_files_named_dash() {
    let guest = Guest::new();
    let content: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(guest.path("here"), &content).unwrap();
    let there = inside(&guest, "there");
    let mut up = cp(&guest, &["-", &there]);
    up.stdin(fs::File::open(guest.path("here")).unwrap());
    assert_done(&output(up));
    assert!(fs::read(guest.path("there")).unwrap() == content);
    let down = output(cp(&guest, &[&there, "-"]));
    assert_done(&down);
    assert!(down.stdout == content);
}

#[test]
fn a_reader_that_has_seen_enough_ends_the_copy_as_sigpipe_would() {
    let guest = Guest::new();
    let mut child = cp(&guest, &["box:/dev/zero", "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut byte = [1];
    child.stdout.take().unwrap().read_exact(&mut byte).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), output.stderr.len()),
        (Some(128 + 13), 0),
        "{output:?}"
    );
}

#[test]
fn what_is_wrong_is_said_in_one_line_with_the_path() {
    let guest = Guest::new();
    fs::write(guest.path("file"), "").unwrap();
    fs::create_dir(guest.path("directory")).unwrap();
    let none = guest.path("none").display().to_string();
    for (arguments, parts) in [
        (&["file", "other"][..], &["neither is in a sandbox"][..]),
        (&["-", "-"], &["neither is in a sandbox"]),
        (&["box:a", "box:b"], &["both are in sandboxes"]),
        (&["none", "box:/tmp"], &["\"none\"", "No such file"]),
        (&[&format!("box:{none}"), "here"], &[&none, "No such file"]),
        (&["file", &format!("box:{none}/file")], &[&none, "No such file"]),
        (&["file", &format!("box:{none}/")], &[&none, "No such file"]),
        (&["box:/etc/hosts", "none/file"], &["\"none/file\"", "No such file"]),
        (&["directory", &inside(&guest, "file")], &["file", "File exists"]),
        (
            &["box:/dev/null", "here"],
            &["\"/dev/null\"", "neither a file nor a directory"],
        ),
        (&[&inside(&guest, "directory"), "-"], &["Is a directory"]),
        (&["file", "nobox:/tmp"], &["nobox"]),
    ] {
        let failed = output(cp(&guest, arguments));
        assert_fails(&failed, 125, parts);
        assert_eq!(String::from_utf8_lossy(&failed.stderr).lines().count(), 1, "{failed:?}");
    }
    let stranger = guest
        .msb()
        .args(["cp", "-u", "no-such-user", "box:/etc/hosts", "-"])
        .output();
    assert_fails(&stranger.unwrap(), 255, &["no-such-user"]);
}

#[test]
fn what_is_left_out_of_a_tree_is_named_and_the_status_tells() {
    let guest = Guest::new();
    make_tree(&guest.path("tree"));
    let _socket = std::os::unix::net::UnixListener::bind(guest.path("tree/socket")).unwrap();
    let copied = output(cp(&guest, &["tree", &inside(&guest, "there")]));
    assert_fails(
        &copied,
        125,
        &["tree/socket", "neither a file", "1 entry was not copied"],
    );
    assert!(guest.path("there/deep/er/file").exists());
}

/// What a copy shows on a terminal.
fn shown(guest: &Guest, arguments: &[&str]) -> String {
    let (mut master, slave) = terminal();
    let status = cp(guest, arguments).stderr(slave).status().unwrap();
    assert!(status.success());
    let mut shown = Vec::new();
    // With its last writer gone, a terminal ends with EIO.
    let _ = master.read_to_end(&mut shown);
    String::from_utf8(shown).unwrap()
}

#[test]
fn a_terminal_sees_progress_on_one_line_that_goes_away() {
    let guest = Guest::new();
    fs::write(guest.path("file"), vec![7; 3 << 20]).unwrap();
    let there = inside(&guest, "there");
    let progress = shown(&guest, &["file", &there]);
    assert!(
        progress.starts_with("\r\x1b[K") && progress.ends_with("\r\x1b[K"),
        "{progress:?}"
    );
    assert!(
        progress.contains("/s  file") && !progress.contains('\n'),
        "{progress:?}"
    );
    assert_eq!(shown(&guest, &["--quiet", "file", &there]), "");
}
