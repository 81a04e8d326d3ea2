//! A full disk at each write.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use msb_tests::{Msb, finish};

use crate::rounds;
use crate::truth::{assert_clean, assert_truth, assert_usable};

/// A small file system of its own where `msb` keeps its state.
struct Small(PathBuf);

impl Small {
    fn mount(msb: &Msb) -> Self {
        let home = msb.home();
        fs::create_dir_all(&home).unwrap();
        let mount = Self(home);
        finish(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", "size=1m,mode=0700", "none"])
                .arg(&mount.0),
        )
        .expect(0);
        mount
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
    let small = Small::mount(&msb);
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
