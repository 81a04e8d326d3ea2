//! What a template copies from: a directory of the host that no copy leaves.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use msb_image::digest::{Digest, Hasher};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Bytes read at once.
const CHUNK: usize = 64 << 10;

/// Why something of the context cannot be copied.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// It is not in the context.
    #[error("{} leads out of the context {}: what is copied must be below it, without '..'", path.display(), context.display())]
    Outside {
        /// What was to be copied.
        path: PathBuf,
        /// The context.
        context: PathBuf,
    },
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A device, a FIFO or a socket.
    #[error("{} is neither a file nor a directory nor a link, and is not copied", .0.display())]
    Special(PathBuf),
}

/// The context.
#[derive(Debug)]
pub(super) struct Context {
    directory: OwnedFd,
    path: PathBuf,
}

/// A file or directory of it. It is this one that is read, whatever its path leads to later.
#[derive(Debug)]
pub(super) struct Source {
    file: OwnedFd,
    path: PathBuf,
    pub(super) is_directory: bool,
}

impl Context {
    pub(super) fn open(path: &Path) -> Result<Self, ContextError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(CWD, path, flags, Mode::empty());
        Ok(Self {
            directory: opened.map_err(|error| reading(path)(error.into()))?,
            path: path.into(),
        })
    }

    /// The file or directory at `path`. A link on the way is followed as long as it stays in the context.
    pub(super) fn source(&self, path: &Path) -> Result<Source, ContextError> {
        let outside = || ContextError::Outside {
            path: path.into(),
            context: self.path.clone(),
        };
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(outside());
        }
        let whole = self.path.join(path);
        // "" is the directory itself.
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let file = match rustix::fs::openat2(&self.directory, path, flags, Mode::empty(), resolve) {
            Err(Errno::XDEV) => return Err(outside()),
            opened => opened.map_err(|error| reading(&whole)(error.into()))?,
        };
        Source::new(file, whole)
    }
}

impl Source {
    /// A directory that the user named.
    pub(super) fn directory(path: &Path) -> Result<Self, ContextError> {
        let context = Context::open(path)?;
        Self::new(context.directory, context.path)
    }

    fn new(file: OwnedFd, path: PathBuf) -> Result<Self, ContextError> {
        let mut source = Self {
            file,
            path,
            is_directory: false,
        };
        let found = fs::metadata(source.open_path()).map_err(reading(&source.path))?;
        source.is_directory = found.is_dir();
        match found.is_dir() || found.is_file() {
            true => Ok(source),
            false => Err(ContextError::Special(source.path)),
        }
    }

    /// A path that leads to this very file or directory as long as it is open here.
    pub(super) fn open_path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }

    /// Its last name.
    pub(super) fn name(&self) -> OsString {
        self.path.file_name().unwrap_or_default().into()
    }

    /// A digest of all that is copied: names, permissions, contents and links, but no times and no owners.
    pub(super) fn digest(&self) -> Result<Digest, ContextError> {
        let root = self.open_path();
        let mut hasher = Hasher::new();
        // Not recursive: a directory's depth is the context's to choose.
        let mut left = vec![PathBuf::new()];
        while let Some(path) = left.pop() {
            let file = match path.as_os_str().is_empty() {
                true => root.clone(),
                false => root.join(&path),
            };
            let shown = self.path.join(&path);
            // The first one is what a link leads to.
            let found = match path.as_os_str().is_empty() {
                true => fs::metadata(&file),
                false => fs::symlink_metadata(&file),
            };
            let found = found.map_err(reading(&shown))?;
            describe(&mut hasher, &path, &found);
            if found.is_dir() {
                let names = fs::read_dir(&file).and_then(|names| names.map(|name| Ok(name?.file_name())).collect());
                let mut names: Vec<OsString> = names.map_err(reading(&shown))?;
                names.sort_unstable();
                left.extend(names.into_iter().rev().map(|name| path.join(name)));
            } else if found.is_symlink() {
                let target = fs::read_link(&file).map_err(reading(&shown))?;
                frame(&mut hasher, target.as_os_str().as_bytes());
            } else if found.is_file() {
                hash_file(&mut hasher, &file).map_err(reading(&shown))?;
            } else {
                return Err(ContextError::Special(shown));
            }
        }
        Ok(hasher.finish())
    }
}

fn describe(hasher: &mut Hasher, path: &Path, found: &Metadata) {
    let kind = match found {
        _ if found.is_dir() => b'd',
        _ if found.is_symlink() => b'l',
        _ => b'f',
    };
    frame(hasher, path.as_os_str().as_bytes());
    hasher.update(&[kind]);
    // A link's permissions mean nothing.
    let mode = if found.is_symlink() {
        0
    } else {
        found.permissions().mode() & 0o777
    };
    hasher.update(&mode.to_le_bytes());
}

/// Bytes with their length in front: what follows cannot be taken for them.
fn frame(hasher: &mut Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

fn hash_file(hasher: &mut Hasher, path: &Path) -> io::Result<()> {
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let mut file = options.open(path)?;
    let mut content = Hasher::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => content.update(&buffer[..read]),
        }
    }
    hasher.update(content.finish().bytes());
    Ok(())
}

fn reading(path: &Path) -> impl FnOnce(io::Error) -> ContextError + use<> {
    let path = path.to_owned();
    move |source| ContextError::Read { path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn filled() -> (tempfile::TempDir, Context) {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::create_dir_all(path("context/app/bin")).unwrap();
        fs::write(path("secret"), "secret").unwrap();
        fs::write(path("context/app/bin/run"), "run").unwrap();
        symlink("bin/run", path("context/app/link")).unwrap();
        symlink("../secret", path("context/out")).unwrap();
        symlink(directory.path(), path("context/above")).unwrap();
        let context = Context::open(&path("context")).unwrap();
        (directory, context)
    }

    #[test]
    fn nothing_outside_of_the_context_is_reached() {
        let (directory, context) = filled();
        let secret = directory.path().join("secret");
        for path in [
            "../secret",
            "app/../../secret",
            "out",
            "above/secret",
            "above",
            secret.to_str().unwrap(),
        ] {
            let refused = context.source(Path::new(path));
            assert!(
                matches!(refused, Err(ContextError::Outside { .. })),
                "{path}: {refused:?}"
            );
        }
        for path in ["app/bin/run", "app/link", "./app", "", "."] {
            context.source(Path::new(path)).unwrap();
        }
        let missing = context.source(Path::new("none")).unwrap_err();
        assert!(missing.to_string().contains("none"), "{missing}");
    }

    #[test]
    fn the_digest_is_that_of_names_permissions_and_contents_alone() {
        let (directory, context) = filled();
        let app = context.source(Path::new("app")).unwrap();
        let run = directory.path().join("context/app/bin/run");
        let link = directory.path().join("context/app/link");
        let first = app.digest().unwrap();
        fs::write(&run, "run").unwrap();
        let later = fs::File::options().write(true).open(&run).unwrap();
        later.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(app.digest().unwrap(), first, "of another time");
        let mut seen = vec![first];
        let mut changed = |what: &str| {
            let digest = app.digest().unwrap();
            assert!(!seen.contains(&digest), "{what}");
            seen.push(digest);
        };
        fs::write(&run, "Run").unwrap();
        changed("content");
        fs::set_permissions(&run, fs::Permissions::from_mode(0o755)).unwrap();
        changed("permissions");
        fs::rename(&run, run.with_file_name("other")).unwrap();
        changed("name");
        fs::remove_file(&link).unwrap();
        symlink("bin/other", &link).unwrap();
        changed("target of a link");
    }
}
