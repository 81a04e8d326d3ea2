//! A full disk at each write.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use msb_test_support::images::{docker_archive, tar_of};
use msb_test_support::pattern;
use msb_test_support::registry::Registry;
use msb_tests::{Msb, finish};
use serde_json::json;

use crate::rounds;
use crate::truth::{assert_clean, assert_truth, assert_usable};

/// A small file system of its own where `msb` keeps its state.
struct Small(PathBuf);

impl Small {
    fn mount(msb: &Msb, mebibytes: usize) -> Self {
        let home = msb.home();
        fs::create_dir_all(&home).unwrap();
        let (mount, options) = (Self(home), format!("size={mebibytes}m,mode=0700"));
        finish(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", &options, "none"])
                .arg(&mount.0),
        )
        .expect(0);
        mount
    }

    /// Makes it larger.
    fn grow(&self, mebibytes: usize) {
        let options = format!("remount,size={mebibytes}m");
        finish(Command::new("mount").args(["-o", &options]).arg(&self.0)).expect(0);
    }

    /// Leaves `blocks` of 4 KiB, or of files that many, until the guard is dropped.
    fn fill(&self, blocks: usize) -> Fill {
        let path = self.0.join("fill");
        let mut file = File::create(&path).unwrap();
        let mut written = 0;
        while file.write_all(&[1; 4096]).is_ok() {
            written += 1;
        }
        file.set_len(4096 * u64::saturating_sub(written, blocks as u64))
            .unwrap();
        Fill(path)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = finish(Command::new("umount").arg("--lazy").arg(&self.0));
    }
}

struct Fill(PathBuf);

impl Drop for Fill {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Whether a verb succeeded; else it told of the lack of space in one line.
fn succeeded_or_told(msb: &Msb, verb: &[&str], after: &str) -> bool {
    let finished = msb.run(verb);
    if finished.code == Some(0) {
        return true;
    }
    let told = finished.stderr.contains("space") && finished.stderr.trim_end().lines().count() == 1;
    assert!(told, "{verb:?} after {after}: {finished:?}");
    false
}

#[test]
fn a_disk_that_is_full_at_any_write_is_told_and_nothing_is_lost() {
    let msb = Msb::new();
    let small = Small::mount(&msb, 1);
    assert_usable(&msb, "mount");
    let step = rounds(6, 1);
    let mut completed = 0;
    for blocks in (0..).step_by(step) {
        let after = format!("{blocks} blocks free");
        let fill = small.fill(blocks);
        let created = succeeded_or_told(
            &msb,
            &["create", "--no-start", "--name", "box", "--memory", "128M"],
            &after,
        );
        let started = created && msb.run(["start", "box"]).code == Some(0);
        assert_truth(&msb, &after);
        if started {
            // What runs can be ended without any room.
            let rest = small.fill_again();
            msb.run(["stop", "box"]).expect(0);
            drop(rest);
            completed += 1;
        }
        msb.run(["rm", "--force"].into_iter().chain(created.then_some("box")));
        drop(fill);
        assert_truth(&msb, &after);
        assert_clean(&msb, &after);
        if completed == 2 {
            break;
        }
        assert!(blocks < 200, "a sandbox needs no more room than that");
    }
    assert_usable(&msb, "all full disks");
}

impl Small {
    /// Takes the last bit of room.
    fn fill_again(&self) -> Fill {
        let path = self.0.join("rest");
        if let Ok(mut file) = File::create(&path) {
            while file.write_all(&[1; 4096]).is_ok() {}
        }
        Fill(path)
    }
}

/// The space of a directory is irrelevant to what has none: sockets, links and cgroups need inodes only.
#[test]
fn a_directory_of_sockets_without_room_is_told() {
    let msb = Msb::new();
    let runtime = msb.runtime();
    fs::create_dir_all(&runtime).unwrap();
    for inodes in (2..).step_by(rounds(2, 1)) {
        let options = format!("nr_inodes={inodes},mode=0700");
        finish(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", &options, "none"])
                .arg(&runtime),
        )
        .expect(0);
        let run = msb.run(["run", "--memory", "128M", "--", "true"]);
        let after = format!("{inodes} inodes: {run:?}");
        assert_truth(&msb, &after);
        assert_clean(&msb, &after);
        unmount(&runtime);
        if run.code == Some(0) {
            return;
        }
        assert!(run.stderr.contains("space"), "{after}");
        assert!(inodes < 20, "{after}");
    }
}

fn unmount(path: &Path) {
    finish(Command::new("umount").arg(path)).expect(0);
}

/// A root file system with nothing but a shell.
fn root(msb: &Msb) -> PathBuf {
    let root = msb.scratch("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox"))
        .expect("busybox-static is installed: scripts/test as root does it");
    std::os::unix::fs::symlink("busybox", root.join("bin/sh")).unwrap();
    root
}

/// What there is of images, whole or not, but for layers that the next pull goes on with.
fn images(msb: &Msb) -> Vec<String> {
    let entries = fs::read_dir(msb.home().join("images")).into_iter().flatten();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != "lock" && name != "blobs").collect()
}

#[test]
fn an_image_for_which_there_is_no_room_is_told_and_taken_once_there_is_some() {
    let msb = Msb::new();
    let small = Small::mount(&msb, 1);
    let (archive, root) = (msb.scratch("app.tar"), msb.scratch("files"));
    let contents = pattern(100_000);
    fs::create_dir(&root).unwrap();
    fs::write(root.join("large"), &contents).unwrap();
    let layer = tar_of(&[("large", &contents)]);
    fs::write(&archive, docker_archive("app:1", &json!({}), &[layer])).unwrap();
    let registry = Registry::start(&msb.scratch("registry"));
    registry.push(&archive, "app:1");
    let remote = format!("{}/app:1", registry.address);
    let sources: [&[&str]; 3] = [
        &["image", "import", "--quiet", archive.to_str().unwrap(), "app:1"],
        &["image", "import", "--quiet", root.to_str().unwrap(), "app:1"],
        &["image", "pull", "--quiet", &remote],
    ];
    for source in sources {
        let mut refused = 0;
        for blocks in (0..).step_by(rounds(7, 1)) {
            let after = format!("{source:?} with {blocks} blocks free");
            let fill = small.fill(blocks);
            if succeeded_or_told(&msb, source, &after) {
                break;
            }
            refused += 1;
            let told = msb.run(source).stderr;
            assert!(
                told.contains(&*msb.home().to_string_lossy()),
                "which disk it is: {told}"
            );
            assert_eq!(msb.run(["image", "ls", "--quiet"]).expect(0).text(), "", "{after}");
            let left = images(&msb);
            assert!(left.iter().all(|name| name == "refs.json"), "{after}: {left:?}");
            drop(fill);
            assert!(blocks < 200, "it needs no more room than that");
        }
        assert!(refused > 1, "{source:?}");
        msb.run(["image", "prune", "--all"]).expect(0);
    }
}

#[test]
fn what_a_guest_was_told_is_on_its_disk_outlives_that_the_hosts_is_full() {
    let msb = Msb::new();
    let small = Small::mount(&msb, 12);
    msb.run(["image", "import", "--quiet", root(&msb).to_str().unwrap(), "app:1"])
        .expect(0);
    let sandbox = msb.create_with("box", &["--disk-size", "64M", "--memory", "128M", "app:1"]);
    // Until one is not acknowledged: the host's disk is full long before the guest's.
    let write = "n=0; while busybox dd if=/dev/urandom of=/r$n bs=64k count=4 conv=fsync 2>/dev/null; \
        do busybox sha256sum /r$n; n=$((n+1)); done; echo end";
    let written = msb.run(["exec", "box", "--", "sh", "-c", write]).expect(0).text();
    let acknowledged: Vec<&str> = written.lines().filter(|line| *line != "end").collect();
    assert!((4..200).contains(&acknowledged.len()), "{written}");
    assert_eq!(msb.state("box"), "running");
    small.grow(96);
    msb.run(["stop", "box"]).expect(0);
    msb.run(["start", "box"]).expect(0);
    for line in acknowledged {
        let (digest, file) = line.split_once("  ").unwrap();
        let read = sandbox.ssh(&format!("busybox sha256sum {file}")).expect(0).text();
        assert_eq!(read, format!("{digest}  {file}\n"));
    }
    sandbox.ssh("echo more > /more && busybox sync").expect(0);
    assert_clean(&msb, "a full disk");
    drop(small);
}
