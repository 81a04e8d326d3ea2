//! Programs of this host on a disk for a guest whose image has none of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::commands::finish;

/// Parts of Python's library that no module of Ansible imports, and that are most of its size.
const LEFT_OUT: [&str; 9] = [
    "config-*",
    "distutils",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "test",
    "tkinter",
    "turtledemo",
];

/// An erofs image with programs, the libraries they are linked to, and directories, each at its own path.
#[derive(Debug)]
pub struct ProgramsDisk {
    /// The image.
    pub image: PathBuf,
}

impl ProgramsDisk {
    /// For a guest with the built-in image: mounts the first disk and links what is on it where the guest has nothing.
    pub const INSTALL: &'static str = "mkdir -p /opt/programs && mount -t erofs -o ro /dev/vda /opt/programs && \
        cd /opt/programs && for path in usr/bin/* usr/lib/* lib/x86_64-linux-gnu/*; do case $path in \
        usr/bin/*) link=/usr/local/bin/${path##*/} ;; *) link=/$path ;; esac; \
        [ -e \"/$path\" ] || ln -s \"/opt/programs/$path\" \"$link\" || exit 1; done";

    /// Makes the image below `scratch`.
    ///
    /// # Panics
    /// When a program is not installed here, with the name of what is missing.
    pub fn make(scratch: &Path, programs: &[&str], directories: &[&str]) -> Self {
        let tree = scratch.join("programs");
        let image = scratch.join("programs.erofs");
        // Names of one file stay names of one file: git is a dozen of them.
        let mut copies: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
        let paths: BTreeSet<String> = programs.iter().flat_map(|program| with_libraries(program)).collect();
        for path in paths {
            let copy = tree.join(path.trim_start_matches('/'));
            fs::create_dir_all(copy.parent().expect("an absolute path has a parent")).expect("there is space");
            let file = fs::canonicalize(&path).unwrap_or_else(|error| panic!("cannot find {path}: {error}"));
            match copies.get(&file) {
                Some(first) => fs::hard_link(first, &copy),
                None => fs::copy(&file, &copy).map(drop),
            }
            .unwrap_or_else(|error| panic!("cannot copy {path}: {error}"));
            copies.insert(file, copy);
        }
        for directory in directories {
            let mut copy = Command::new("rsync");
            copy.args(["-aR", "--copy-links"]);
            copy.args(LEFT_OUT.map(|name| format!("--exclude={name}")));
            finish(copy.arg(directory).arg(&tree)).expect(0);
        }
        let mut make = Command::new("mkfs.erofs");
        finish(make.args(["--quiet", "--all-root"]).arg(&image).arg(&tree)).expect(0);
        Self { image }
    }
}

/// A program and the libraries it is linked to, as `ldd` names them.
fn with_libraries(program: &str) -> Vec<String> {
    assert!(
        Path::new(program).exists(),
        "{program} is not installed: scripts/test as root does it"
    );
    let linked = finish(Command::new("ldd").arg(program)).expect(0).text();
    let libraries = linked.split_whitespace().filter(|word| word.starts_with('/'));
    std::iter::once(program).chain(libraries).map(str::to_owned).collect()
}
