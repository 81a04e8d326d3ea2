//! sshfs.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use msb_tests::{finish, sha256_of_file};

use crate::fixture::{Fixture, require};

/// Unmounts when the trial ends, however it does.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        finish(Command::new("fusermount3").args(["-u", "-z"]).arg(&self.0));
    }
}

pub(crate) fn file_system(fixture: &Fixture) {
    require("fusermount3", "fuse3");
    assert!(
        Path::new("/dev/fuse").exists(),
        "this host's kernel has no FUSE: modprobe fuse"
    );
    let at = fixture.local("sshfs");
    fs::create_dir(&at).unwrap();
    let mut sshfs = fixture.client("sshfs", "sshfs");
    sshfs.arg("-F").arg(&fixture.server.ssh_config);
    finish(
        sshfs
            .arg(format!("{}:{}", fixture.server.host, fixture.remote))
            .arg(&at),
    )
    .expect(0);
    let mounted = Mounted(at.clone());

    let source = fixture.random_file("sshfs-source", 1 << 20);
    let directory = at.join("by-sshfs");
    fs::create_dir(&directory).unwrap();
    fs::copy(&source, directory.join("new")).unwrap();
    fs::write(directory.join("old"), "old").unwrap();
    fs::rename(directory.join("new"), directory.join("old")).unwrap();
    fs::set_permissions(directory.join("old"), fs::Permissions::from_mode(0o604)).unwrap();
    symlink("old", directory.join("link")).unwrap();
    fs::hard_link(directory.join("old"), directory.join("hard")).unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(directory.join("hard"))
        .unwrap()
        .sync_all()
        .unwrap();
    assert_eq!(sha256_of_file(&directory.join("link")), sha256_of_file(&source));
    let mut names: Vec<_> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["hard", "link", "old"]);
    let free = rustix::fs::statvfs(&at).unwrap();
    assert!(
        free.f_blocks > 0 && free.f_bfree <= free.f_blocks,
        "the numbers of the server's file system"
    );

    let seen = finish(&mut fixture.server.ssh(&format!(
        "cd {}/by-sshfs && stat -c '%a %h' old && readlink link && sha256sum < old",
        fixture.remote
    )))
    .expect(0);
    assert_eq!(seen.text(), format!("604 2\nold\n{}  -\n", sha256_of_file(&source)));
    fs::remove_dir_all(&directory).unwrap();
    drop(mounted);
    finish(&mut fixture.server.ssh(&format!("test ! -e {}/by-sshfs", fixture.remote))).expect(0);
}
