//! What the kernel tells of a directory and those in it (inotify(7)), as changes of paths.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use msb_protocol::watch::Change;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

/// Directories that are watched at most.
const MAX_DIRECTORIES: usize = 64 << 10;

/// Names that were found in new directories and of which the kernel may tell again, at most. Beyond, they are told twice.
const MAX_FOUND: usize = 64 << 10;

/// Events that are taken in one go.
const BATCH: usize = 1024;

/// Who is told of changes.
pub(super) type Tell<'a> = &'a mut dyn FnMut(Change);

/// Whether there may be more.
#[derive(Debug)]
pub(super) enum Told {
    More,
    /// What was watched is there no more.
    Gone,
}

/// A file or a directory that is watched, and the directories in it if that was asked for.
#[derive(Debug)]
pub(super) struct Tree {
    inotify: OwnedFd,
    root: PathBuf,
    root_watch: i32,
    recursive: bool,
    /// The path of each directory that is watched, relative to the root.
    directories: HashMap<i32, Vec<u8>>,
    /// What was moved away: the next event may say where to.
    moved: Option<Moved>,
    /// What was found in new directories, since all events were taken.
    found: HashSet<Vec<u8>>,
}

#[derive(Debug)]
struct Moved {
    cookie: u32,
    path: Vec<u8>,
    is_dir: bool,
}

#[derive(Debug)]
struct Event {
    watch: i32,
    flags: ReadFlags,
    cookie: u32,
    name: Option<Vec<u8>>,
}

impl Tree {
    /// Begins to watch `path`, and tells what cannot be watched in it.
    ///
    /// # Errors
    /// When itself cannot be.
    pub(super) fn new(path: &[u8], recursive: bool, tell: Tell<'_>) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let root = PathBuf::from(OsStr::from_bytes(path));
        let flags = told_of() | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
        let root_watch = inotify::add_watch(&inotify, &root, flags).map_err(explained)?;
        let mut tree = Self {
            inotify,
            recursive: recursive && root.is_dir(),
            root,
            root_watch,
            directories: HashMap::from([(root_watch, Vec::new())]),
            moved: None,
            found: HashSet::new(),
        };
        if tree.recursive {
            tree.scan(Vec::new(), false, tell);
        }
        Ok(tree)
    }

    /// Whether half of a renaming has come: [`Self::settle`].
    pub(super) fn is_unsettled(&self) -> bool {
        self.moved.is_some()
    }

    /// The other half does not come: it was moved to where nobody watches.
    pub(super) fn settle(&mut self, tell: Tell<'_>) {
        let Some(Moved { path, is_dir, .. }) = self.moved.take() else {
            return;
        };
        self.found.remove(&path);
        if is_dir {
            for watch in self.forget(&path) {
                // It may be gone already.
                let _ = inotify::remove_watch(&self.inotify, watch);
            }
        }
        tell(Change::Removed { path, is_dir });
    }

    fn forget(&mut self, path: &[u8]) -> Vec<i32> {
        let below: Vec<i32> = self.at_and_below(path).collect();
        for watch in &below {
            self.directories.remove(watch);
        }
        below
    }

    /// Takes some of what the kernel has to say.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn take(&mut self, tell: Tell<'_>) -> io::Result<Told> {
        let (events, is_all) = self.read()?;
        for event in events {
            if let Told::Gone = self.heed(event, tell) {
                self.settle(tell);
                return Ok(Told::Gone);
            }
        }
        if is_all {
            self.found.clear();
        }
        Ok(Told::More)
    }

    /// Some events, and whether these were all.
    fn read(&self) -> io::Result<(Vec<Event>, bool)> {
        let mut buffer = [const { MaybeUninit::uninit() }; 16 << 10];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        let mut events = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => events.push(Event {
                    watch: event.wd(),
                    flags: event.events(),
                    cookie: event.cookie(),
                    name: event.file_name().map(|name| name.to_bytes().to_vec()),
                }),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok((events, true)),
                Err(error) => return Err(error.into()),
            }
            if events.len() >= BATCH && reader.is_buffer_empty() {
                return Ok((events, false));
            }
        }
    }

    fn heed(&mut self, event: Event, tell: Tell<'_>) -> Told {
        let Event {
            watch,
            flags,
            cookie,
            name,
        } = event;
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            tell(Change::Lost { changes: 0 });
            if self.recursive {
                // Directories may have come, and others have other names.
                self.scan(Vec::new(), false, tell);
            }
            return Told::More;
        }
        let is_root = watch == self.root_watch;
        if flags.contains(ReadFlags::IGNORED) {
            self.directories.remove(&watch);
            return if is_root { Told::Gone } else { Told::More };
        }
        if flags.intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF) && is_root {
            self.settle(tell);
            let (path, is_dir) = (Vec::new(), flags.contains(ReadFlags::ISDIR));
            tell(Change::Removed { path, is_dir });
            return Told::Gone;
        }
        let Some(directory) = self.directories.get(&watch) else {
            return Told::More;
        };
        let path = match &name {
            Some(name) => join(directory, name),
            None if is_root => Vec::new(),
            // The directory that it is in tells that, too.
            None => return Told::More,
        };
        self.change(flags, cookie, path, tell);
        Told::More
    }

    fn change(&mut self, flags: ReadFlags, cookie: u32, path: Vec<u8>, tell: Tell<'_>) {
        let is_dir = flags.contains(ReadFlags::ISDIR);
        if flags.contains(ReadFlags::MOVED_TO)
            && let Some(moved) = self.moved.take_if(|moved| moved.cookie == cookie)
        {
            return self.rename(moved, path, tell);
        }
        // What has the name of what was moved away is something else.
        if flags.contains(ReadFlags::MOVED_FROM) || self.moved.as_ref().is_some_and(|moved| moved.path == path) {
            self.settle(tell);
        }
        if flags.contains(ReadFlags::MOVED_FROM) {
            self.moved = Some(Moved { cookie, path, is_dir });
        } else if flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
            if self.found.remove(&path) {
                return;
            }
            tell(Change::Created {
                path: path.clone(),
                is_dir,
            });
            if is_dir && self.recursive {
                self.scan(path, true, tell);
            }
        } else if flags.contains(ReadFlags::DELETE) {
            self.found.remove(&path);
            if is_dir {
                // Should another have its name by now, it is watched anew.
                self.forget(&path);
            }
            tell(Change::Removed { path, is_dir });
        } else if flags.contains(ReadFlags::MODIFY) {
            tell(Change::Modified { path });
        } else if flags.contains(ReadFlags::ATTRIB) {
            tell(Change::Attributes { path });
        }
    }

    fn rename(&mut self, moved: Moved, to: Vec<u8>, tell: Tell<'_>) {
        let Moved { path: from, is_dir, .. } = moved;
        let below: Vec<i32> = self.at_and_below(&from).collect();
        for watch in &below {
            if let Some(path) = self.directories.get_mut(watch) {
                path.splice(..from.len(), to.iter().copied());
            }
        }
        self.found.remove(&from);
        tell(Change::Renamed {
            from,
            to: to.clone(),
            is_dir,
        });
        if is_dir && self.recursive {
            // It may have been renamed before all in it was found.
            self.scan(to, true, tell);
        }
    }

    fn at_and_below(&self, path: &[u8]) -> impl Iterator<Item = i32> {
        let is_in = move |directory: &[u8]| match directory.strip_prefix(path) {
            Some(rest) => rest.is_empty() || rest[0] == b'/',
            None => false,
        };
        let directories = self.directories.iter();
        directories
            .filter(move |(_, directory)| is_in(directory))
            .map(|(watch, _)| *watch)
    }

    /// Watches the directory at `path` and those in it; no link is followed. What is in one that was not watched is told
    /// if that `is_new`.
    fn scan(&mut self, path: Vec<u8>, is_new: bool, tell: Tell<'_>) {
        let mut left = vec![path];
        while let Some(path) = left.pop() {
            match self.scan_one(&path, is_new, &mut left, tell) {
                Ok(()) => {}
                // It is gone, or something else by now: that is told by an event.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {}
                Err(error) => {
                    let message = error.to_string();
                    tell(Change::Unwatched { path, message });
                }
            }
        }
    }

    fn scan_one(&mut self, path: &[u8], is_new: bool, left: &mut Vec<Vec<u8>>, tell: Tell<'_>) -> io::Result<()> {
        let place = if path.is_empty() {
            self.root.clone()
        } else {
            self.root.join(OsStr::from_bytes(path))
        };
        let mut is_new = is_new;
        if !path.is_empty() {
            if self.directories.len() + left.len() >= MAX_DIRECTORIES {
                left.clear();
                return Err(io::Error::other(format!(
                    "no more than {MAX_DIRECTORIES} directories are watched; this one is not, nor are others"
                )));
            }
            let flags = told_of() | WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW;
            let watch = inotify::add_watch(&self.inotify, &place, flags).map_err(explained)?;
            let before = self.directories.insert(watch, path.to_vec());
            is_new &= before.as_deref() != Some(path);
        }
        for entry in fs::read_dir(place)? {
            let entry = entry?;
            let is_dir = entry.file_type()?.is_dir();
            let path = join(path, &entry.file_name().into_vec());
            if is_new {
                // The kernel tells of it, too, if it was made after the watch.
                if self.found.len() < MAX_FOUND {
                    self.found.insert(path.clone());
                }
                tell(Change::Created {
                    path: path.clone(),
                    is_dir,
                });
            }
            if is_dir {
                left.push(path);
            }
        }
        Ok(())
    }
}

impl AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

fn told_of() -> WatchFlags {
    WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MODIFY
        | WatchFlags::ATTRIB
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::EXCL_UNLINK
}

/// The kernel says "no space" of a limit.
fn explained(error: Errno) -> io::Error {
    match error {
        Errno::NOSPC => io::Error::other("the guest's limit of watches is reached; raise fs.inotify.max_user_watches"),
        error => error.into(),
    }
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    match directory {
        [] => name.to_vec(),
        directory => [directory, b"/", name].concat(),
    }
}

#[cfg(test)]
mod tests;
