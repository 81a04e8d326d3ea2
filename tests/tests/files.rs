//! Stock `scp`, `sftp` and `rsync` with a sandbox.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use msb_tests::{Msb, finish, finish_with_input, sha256_of_file};
use serde_json::json;

/// Makes a tree of files that are empty, large, executable, oddly named, linked and nested.
fn make_tree(at: &Path) {
    fs::create_dir_all(at.join("nested/deep")).unwrap();
    fs::write(at.join("empty"), "").unwrap();
    fs::write(at.join("with space 'and' \"quotes\""), "odd").unwrap();
    fs::write(
        at.join("nested/large"),
        (0..1_000_000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>(),
    )
    .unwrap();
    for index in 0..40 {
        fs::write(
            at.join(format!("nested/deep/file{index}")),
            format!("{index}\n").repeat(index),
        )
        .unwrap();
    }
    fs::write(at.join("script"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(at.join("script"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("script", at.join("link")).unwrap();
}

/// One line per file of a tree, with its digest, as `sha256sum` prints it; sorted by name.
fn digests(listing: &str) -> Vec<String> {
    let mut lines: Vec<String> = listing.lines().map(str::to_owned).collect();
    lines.sort_by(|a, b| a[64..].cmp(&b[64..]));
    lines
}

const DIGEST_ALL: &str = "find . -type f -exec sha256sum {} +";

fn local_digests(at: &Path) -> Vec<String> {
    let listing = finish(
        Command::new("sh")
            .args(["-c", &DIGEST_ALL.replace("sha256sum", "busybox sha256sum")])
            .current_dir(at),
    );
    digests(&listing.expect(0).text())
}

#[test]
fn scp_copies_a_tree_both_ways_unchanged() {
    let msb = Msb::new();
    let sandbox = msb.create("scp");
    let (tree, back) = (msb.scratch("tree"), msb.scratch("back"));
    make_tree(&tree);
    let mut up = msb.openssh("scp");
    finish(up.arg("-rp").arg(&tree).arg(format!("{}:copy", sandbox.host()))).expect(0);
    assert_eq!(
        digests(&sandbox.ssh(&format!("cd copy && {DIGEST_ALL}")).expect(0).text()).len(),
        45
    );
    let mut down = msb.openssh("scp");
    finish(down.arg("-rp").arg(format!("{}:copy", sandbox.host())).arg(&back)).expect(0);
    let mut expected = local_digests(&tree);
    // scp follows links.
    let link = local_digests(&back).into_iter().filter(|line| line.ends_with("./link"));
    expected.extend(link);
    expected.sort_by(|a, b| a[64..].cmp(&b[64..]));
    assert_eq!(local_digests(&back), expected);
    assert_eq!(
        fs::metadata(back.join("script")).unwrap().permissions().mode() & 0o777,
        0o755
    );
}

#[test]
fn rsync_copies_a_tree_both_ways_and_finds_nothing_more_to_do() {
    let msb = Msb::new();
    let sandbox = msb.create("rsync");
    let (tree, back) = (msb.scratch("tree"), msb.scratch("back"));
    make_tree(&tree);
    let source = format!("{}/", tree.display());
    let remote = format!("{}:copy/", sandbox.host());
    finish(msb.openssh("rsync").args(["-a", &source, &remote])).expect(0);
    assert_eq!(
        digests(&sandbox.ssh(&format!("cd copy && {DIGEST_ALL}")).expect(0).text()),
        local_digests(&tree)
    );
    let again = finish(msb.openssh("rsync").args(["-ai", &source, &remote])).expect(0);
    assert_eq!(again.text(), "");
    finish(msb.openssh("rsync").arg("-a").arg(&remote).arg(&back)).expect(0);
    assert_eq!(local_digests(&back), local_digests(&tree));
    assert_eq!(fs::read_link(back.join("link")).unwrap(), Path::new("script"));
}

#[test]
fn sftp_lists_renames_removes_and_says_what_is_wrong() {
    let msb = Msb::new();
    let sandbox = msb.create("sftp");
    let file = msb.scratch("file");
    fs::write(&file, "content").unwrap();
    let batch = format!(
        "put {0} one\nrename one two\nmkdir dir\nchmod 600 two\nln -s two link\nls -l\nget link {0}.back\nrm two\nrmdir dir\n",
        file.display()
    );
    let mut sftp = msb.openssh("sftp");
    let done = finish_with_input(sftp.args(["-b", "-"]).arg(sandbox.host()), batch.into_bytes()).expect(0);
    assert!(
        done.text().contains("-rw-------") && done.text().contains("dir"),
        "{}",
        done.text()
    );
    assert_eq!(fs::read_to_string(file.with_extension("back")).unwrap(), "content");
    let mut sftp = msb.openssh("sftp");
    let failed = finish_with_input(
        sftp.args(["-b", "-"]).arg(sandbox.host()),
        b"get /nonexistent\n".to_vec(),
    );
    assert!(failed.expect(1).stderr.contains("not found"));
}

#[test]
fn half_a_gibibyte_goes_through_sftp_both_ways_with_stock_settings() {
    let msb = Msb::new();
    let sandbox = msb.create_with("large", &["--memory", "1536M"]);
    let (file, back) = (msb.scratch("large"), msb.scratch("large.back"));
    finish(
        Command::new("sh")
            .arg("-c")
            .arg(format!("head -c 512M /dev/urandom > {}", file.display())),
    )
    .expect(0);
    let batch = format!("put {} /tmp/large\nget /tmp/large {}\n", file.display(), back.display());
    let mut sftp = msb.openssh("sftp");
    finish_with_input(sftp.args(["-q", "-b", "-"]).arg(sandbox.host()), batch.into_bytes()).expect(0);
    assert_eq!(fs::metadata(&back).unwrap().len(), 512 << 20);
    assert_eq!(sha256_of_file(&back), sha256_of_file(&file));
}

/// The next line of `msb watch --json`.
fn event(lines: &mut impl Iterator<Item = std::io::Result<String>>) -> serde_json::Value {
    serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap()
}

#[test]
fn what_changes_in_a_guest_is_told_until_it_is_gone_or_the_sandbox_ends() {
    let msb = Msb::new();
    let sandbox = msb.create("watched");
    sandbox.ssh("mkdir -p src/sub").expect(0);
    let watch = |path: &str| {
        let mut watch = msb.command(["watch", "--recursive", "--json", path]);
        let mut watch = watch.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
        assert_eq!(event(&mut lines)["event"], "watching");
        (watch, lines)
    };
    let (mut watch_src, mut lines) = watch("watched:src");
    sandbox.ssh("touch src/sub/a && mv src/sub/a src/b").expect(0);
    let created = json!({"event": "created", "path": "sub/a", "is_dir": false});
    assert_eq!(event(&mut lines), created);
    let mut next = event(&mut lines);
    while next["event"] != "renamed" {
        next = event(&mut lines);
    }
    assert_eq!(
        next,
        json!({"event": "renamed", "from": "sub/a", "to": "b", "is_dir": false})
    );
    sandbox.ssh("rm -r src").expect(0);
    let events: Vec<_> = lines.map(|line| line.unwrap()).collect();
    assert_eq!(events.last().unwrap(), "{\"event\":\"gone\"}");
    assert_eq!(watch_src.wait().unwrap().code(), Some(0));

    let (mut watch_etc, lines) = watch("watched:/etc");
    msb.run(["kill", "watched"]).expect(0);
    lines.for_each(drop);
    assert_eq!(watch_etc.wait().unwrap().code(), Some(255));
}
