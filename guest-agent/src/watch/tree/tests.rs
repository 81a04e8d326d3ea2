use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use proptest::prelude::*;

use super::*;

struct Watched {
    directory: tempfile::TempDir,
    tree: Tree,
}

impl Watched {
    fn new(recursive: bool, prepare: impl FnOnce(&Path)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("root")).unwrap();
        prepare(&directory.path().join("root"));
        let root = directory.path().join("root");
        let tree = Tree::new(root.as_os_str().as_bytes(), recursive, &mut |change| {
            panic!("{change:?}")
        })
        .unwrap();
        Self { directory, tree }
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join("root").join(name)
    }

    /// What was told since the last time, and whether it is gone.
    fn told(&mut self) -> (Vec<Change>, bool) {
        let mut changes = Vec::new();
        let mut tell = |change| changes.push(change);
        let told = self.tree.take(&mut tell).unwrap();
        self.tree.settle(&mut tell);
        (changes, matches!(told, Told::Gone))
    }

    #[track_caller]
    fn assert_told(&mut self, expected: &[Change]) {
        assert_eq!(self.told(), (expected.to_vec(), false));
    }
}

fn created(path: &str, is_dir: bool) -> Change {
    let path = path.into();
    Change::Created { path, is_dir }
}

fn removed(path: &str, is_dir: bool) -> Change {
    let path = path.into();
    Change::Removed { path, is_dir }
}

fn renamed(from: &str, to: &str, is_dir: bool) -> Change {
    let (from, to) = (from.into(), to.into());
    Change::Renamed { from, to, is_dir }
}

fn modified(path: &str) -> Change {
    Change::Modified { path: path.into() }
}

#[test]
fn each_change_of_a_file_is_told_by_its_kind() {
    let mut watched = Watched::new(false, |_| {});
    let (one, two) = (watched.path("one"), watched.path("two"));
    fs::write(&one, "content").unwrap();
    fs::set_permissions(&one, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(&one, &two).unwrap();
    fs::remove_file(&two).unwrap();
    watched.assert_told(&[
        created("one", false),
        modified("one"),
        Change::Attributes { path: "one".into() },
        renamed("one", "two", false),
        removed("two", false),
    ]);
}

#[test]
fn names_are_bytes() {
    let mut watched = Watched::new(false, |_| {});
    let name = b"\xff\n\x1b[2J";
    fs::create_dir(watched.path(OsStr::from_bytes(name))).unwrap();
    let path = name.to_vec();
    watched.assert_told(&[Change::Created { path, is_dir: true }]);
}

#[test]
fn only_a_recursive_watch_tells_of_what_is_in_directories() {
    for recursive in [false, true] {
        let mut watched = Watched::new(recursive, |root| fs::create_dir_all(root.join("a/b")).unwrap());
        fs::write(watched.path("a/b/file"), "").unwrap();
        let told = [created("a/b/file", false)];
        watched.assert_told(if recursive { &told } else { &[] });
    }
}

#[test]
fn a_tree_that_comes_at_once_is_told_whole_and_once() {
    let mut watched = Watched::new(true, |_| {});
    fs::create_dir_all(watched.path("a/b")).unwrap();
    fs::write(watched.path("a/b/file"), "").unwrap();
    watched.assert_told(&[created("a", true), created("a/b", true), created("a/b/file", false)]);
    fs::write(watched.path("a/b/file"), "more").unwrap();
    watched.assert_told(&[modified("a/b/file")]);
}

#[test]
fn a_directory_is_watched_under_its_new_name_and_no_more_when_it_left() {
    let mut watched = Watched::new(true, |root| fs::create_dir_all(root.join("a/b")).unwrap());
    fs::rename(watched.path("a"), watched.path("ab")).unwrap();
    fs::write(watched.path("ab/b/file"), "").unwrap();
    watched.assert_told(&[renamed("a", "ab", true), created("ab/b/file", false)]);
    let outside = watched.directory.path().join("outside");
    fs::rename(watched.path("ab"), &outside).unwrap();
    watched.assert_told(&[removed("ab", true)]);
    fs::write(outside.join("b/other"), "").unwrap();
    watched.assert_told(&[]);
    fs::rename(&outside, watched.path("back")).unwrap();
    let (changes, _) = watched.told();
    assert_eq!(changes.len(), 4, "{changes:?}");
    assert!(changes.contains(&created("back/b/other", false)), "{changes:?}");
}

#[test]
fn no_link_in_a_tree_is_followed() {
    let mut watched = Watched::new(true, |root| {
        fs::create_dir(root.join("../outside")).unwrap();
        std::os::unix::fs::symlink("../outside", root.join("link")).unwrap();
    });
    fs::write(watched.directory.path().join("outside/file"), "").unwrap();
    watched.assert_told(&[]);
}

#[test]
fn the_end_of_what_is_watched_is_told() {
    let mut watched = Watched::new(true, |root| fs::write(root.join("file"), "").unwrap());
    fs::remove_dir_all(watched.path("")).unwrap();
    let (changes, is_gone) = watched.told();
    assert!(is_gone && changes.starts_with(&[removed("file", false)]), "{changes:?}");
    let error = Tree::new(b"/nonexistent", false, &mut |_| {}).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

#[test]
fn what_the_kernel_lost_is_told_and_what_came_meanwhile_is_watched() {
    let most: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let mut watched = Watched::new(true, |_| {});
    for number in 0..=most {
        // The same change twice in a row would be one.
        fs::write(watched.path(["x", "y"][number % 2]), "").unwrap();
    }
    fs::create_dir(watched.path("directory")).unwrap();
    let mut lost = false;
    loop {
        let (changes, _) = watched.told();
        if changes.is_empty() {
            break;
        }
        lost |= changes.contains(&Change::Lost { changes: 0 });
    }
    assert!(lost);
    fs::write(watched.path("directory/file"), "").unwrap();
    watched.assert_told(&[created("directory/file", false)]);
}

#[derive(Clone, Debug)]
enum Step {
    Write(String),
    MakeDir(String),
    Rename(String, String),
    Remove(String),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let path = || "[ab](/[ab]){0,2}";
    let step = prop_oneof![
        path().prop_map(Step::Write),
        path().prop_map(Step::MakeDir),
        (path(), path()).prop_map(|(from, to)| Step::Rename(from, to)),
        path().prop_map(Step::Remove),
    ];
    proptest::collection::vec(step, 0..40)
}

/// What is there, by what was told.
#[derive(Debug, Default, Eq, PartialEq)]
struct Known(BTreeMap<Vec<u8>, bool>);

impl Known {
    fn take_below(&mut self, path: &[u8]) -> Vec<(Vec<u8>, bool)> {
        let prefix = [path, b"/"].concat();
        let is_in = |other: &[u8]| other == path || other.starts_with(&prefix);
        let taken = self.0.iter().filter(|(other, _)| is_in(other));
        let taken: Vec<_> = taken.map(|(other, is_dir)| (other.clone(), *is_dir)).collect();
        self.0.retain(|other, _| !is_in(other));
        taken
    }

    fn hear(&mut self, change: Change) {
        match change {
            Change::Created { path, is_dir } => {
                self.0.insert(path, is_dir);
            }
            Change::Removed { path, .. } => {
                self.take_below(&path);
            }
            Change::Renamed { from, to, .. } => {
                let moved = self.take_below(&from);
                self.take_below(&to);
                let renamed = |path: Vec<u8>| [&to[..], &path[from.len()..]].concat();
                self.0
                    .extend(moved.into_iter().map(|(path, is_dir)| (renamed(path), is_dir)));
            }
            Change::Modified { .. } | Change::Attributes { .. } => {}
            other => panic!("{other:?}"),
        }
    }

    fn really(root: &Path) -> Self {
        let (mut known, mut left) = (Self::default(), vec![PathBuf::new()]);
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(root.join(&directory)).unwrap() {
                let entry = entry.unwrap();
                let path = directory.join(entry.file_name());
                let is_dir = entry.file_type().unwrap().is_dir();
                known.0.insert(path.as_os_str().as_bytes().to_vec(), is_dir);
                left.extend(is_dir.then_some(path));
            }
        }
        known
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn whoever_listens_knows_what_is_there(steps in steps()) {
        let mut watched = Watched::new(true, |_| {});
        let mut known = Known::default();
        for step in steps {
            // Not every step is possible.
            let _ = match &step {
                Step::Write(path) => fs::write(watched.path(path), "x"),
                Step::MakeDir(path) => fs::create_dir_all(watched.path(path)),
                Step::Rename(from, to) => fs::rename(watched.path(from), watched.path(to)),
                Step::Remove(path) if watched.path(path).is_dir() => fs::remove_dir_all(watched.path(path)),
                Step::Remove(path) => fs::remove_file(watched.path(path)),
            };
            let (changes, _) = watched.told();
            changes.into_iter().for_each(|change| known.hear(change));
            prop_assert_eq!(&known, &Known::really(&watched.path("")), "after {:?}", step);
        }
    }
}
