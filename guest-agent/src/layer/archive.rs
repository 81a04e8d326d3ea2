//! A directory of an overlay as a layer: a tar archive with whiteouts (OCI image specification, layer.md).

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

/// What begins the name of a file that takes away one of a lower layer.
const WHITEOUT: &str = ".wh.";

/// The file that takes away all that lower layers have in its directory.
const OPAQUE: &str = ".wh..wh..opq";

/// What overlayfs keeps for itself.
const OVERLAY: &[u8] = b"trusted.overlay.";

/// What overlayfs says of a directory that hides those below it.
const OVERLAY_OPAQUE: &str = "trusted.overlay.opaque";

/// What the agent keeps in the guest's files while it runs.
const OWN: &str = "run/msb-agent";

/// The longest list of names of extended attributes, and the longest value, in bytes (`XATTR_LIST_MAX`,
/// `XATTR_SIZE_MAX`).
const MAX_XATTR: usize = 64 << 10;

/// Why a layer cannot be archived.
#[derive(Debug, thiserror::Error)]
pub(super) enum ArchiveError {
    /// A file cannot be read.
    #[error("cannot read {path:?}")]
    Read {
        /// The file, from the root.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It would mean something else in a layer.
    #[error("no layer can have a file named {0:?}: a name that begins with {WHITEOUT} takes away another file")]
    Name(PathBuf),
    /// The archive cannot be written.
    #[error("cannot archive {path:?}")]
    Write {
        /// The file, from the root.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Writes the layer in `directory`, or an empty one.
pub(super) fn write(directory: Option<&Path>, output: &mut impl Write) -> Result<(), ArchiveError> {
    let mut builder = Builder::new(output);
    builder.follow_symlinks(false);
    let mut archive = Archive {
        builder,
        links: HashMap::new(),
    };
    if let Some(directory) = directory {
        archive.add_tree(directory)?;
    }
    let finished = archive.builder.finish();
    finished.map_err(writing(Path::new("")))
}

struct Archive<W: Write> {
    builder: Builder<W>,
    /// Files with more than one name, by inode.
    links: HashMap<u64, PathBuf>,
}

impl<W: Write> Archive<W> {
    fn add_tree(&mut self, root: &Path) -> Result<(), ArchiveError> {
        let metadata = fs::symlink_metadata(root).map_err(reading(Path::new("")))?;
        self.add_directory(root, Path::new(""), &metadata)?;
        // Not recursive: a directory's depth is the guest's to choose.
        let mut left = vec![PathBuf::new()];
        while let Some(parent) = left.pop() {
            for name in names(&root.join(&parent)).map_err(reading(&parent))? {
                let path = parent.join(&name);
                if path == Path::new(OWN) {
                    continue;
                }
                let file = root.join(&path);
                let metadata = fs::symlink_metadata(&file).map_err(reading(&path))?;
                if metadata.is_dir() {
                    self.check(&path)?;
                    self.add_directory(&file, &path, &metadata)?;
                    left.push(path);
                } else {
                    self.add_file(&file, &path, &metadata)?;
                }
            }
        }
        Ok(())
    }

    fn add_directory(&mut self, file: &Path, path: &Path, metadata: &Metadata) -> Result<(), ArchiveError> {
        self.add_xattrs(file, path)?;
        let name = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let mut header = header(metadata, EntryType::Directory);
        let added = self.builder.append_data(&mut header, name, io::empty());
        added.map_err(writing(path))?;
        match get_xattr(file, OVERLAY_OPAQUE.as_ref()).map_err(reading(path))? {
            Some(value) if value == b"y" => self.add_mark(&path.join(OPAQUE)),
            _ => Ok(()),
        }
    }

    fn add_file(&mut self, file: &Path, path: &Path, metadata: &Metadata) -> Result<(), ArchiveError> {
        let kind = metadata.file_type();
        if kind.is_char_device() && metadata.rdev() == 0 {
            let mut name = OsString::from(WHITEOUT);
            name.push(path.file_name().unwrap_or_default());
            return self.add_mark(&path.with_file_name(name));
        }
        self.check(path)?;
        // A socket nobody listens on any more is of no use.
        if kind.is_socket() {
            return Ok(());
        }
        if metadata.nlink() > 1 {
            if let Some(first) = self.links.get(&metadata.ino()) {
                let mut header = header(metadata, EntryType::Link);
                return self
                    .builder
                    .append_link(&mut header, path, first)
                    .map_err(writing(path));
            }
            self.links.insert(metadata.ino(), path.to_owned());
        }
        self.add_xattrs(file, path)?;
        if kind.is_file() {
            let mut opened = File::open(file).map_err(reading(path))?;
            return self.builder.append_file(path, &mut opened).map_err(writing(path));
        }
        if kind.is_symlink() {
            let target = fs::read_link(file).map_err(reading(path))?;
            let mut header = header(metadata, EntryType::Symlink);
            return self
                .builder
                .append_link(&mut header, path, target)
                .map_err(writing(path));
        }
        let mut header = header(
            metadata,
            if kind.is_fifo() {
                EntryType::Fifo
            } else {
                device_type(metadata)
            },
        );
        let numbers = header
            .set_device_major(rustix::fs::major(metadata.rdev()))
            .and_then(|()| header.set_device_minor(rustix::fs::minor(metadata.rdev())));
        let added = numbers.and_then(|()| self.builder.append_data(&mut header, path, io::empty()));
        added.map_err(writing(path))
    }

    /// An empty file that means something by its name.
    fn add_mark(&mut self, path: &Path) -> Result<(), ArchiveError> {
        let mut header = Header::new_gnu();
        header.set_size(0);
        let added = self.builder.append_data(&mut header, path, io::empty());
        added.map_err(writing(path))
    }

    /// What belongs to the next entry.
    fn add_xattrs(&mut self, file: &Path, path: &Path) -> Result<(), ArchiveError> {
        let mut records = Vec::new();
        for name in xattr_names(file).map_err(reading(path))? {
            // What has no UTF-8 name no archive can hold.
            if let (Some(text), Some(value)) = (name.to_str(), get_xattr(file, &name).map_err(reading(path))?) {
                records.push((format!("SCHILY.xattr.{text}"), value));
            }
        }
        if records.is_empty() {
            return Ok(());
        }
        let records = records.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
        self.builder.append_pax_extensions(records).map_err(writing(path))
    }

    fn check(&self, path: &Path) -> Result<(), ArchiveError> {
        let name = path.file_name().unwrap_or_default().as_bytes();
        match name.starts_with(WHITEOUT.as_bytes()) {
            true => Err(ArchiveError::Name(Path::new("/").join(path))),
            false => Ok(()),
        }
    }
}

fn header(metadata: &Metadata, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_metadata(metadata);
    header.set_entry_type(kind);
    header.set_size(0);
    header
}

fn device_type(metadata: &Metadata) -> EntryType {
    match metadata.file_type().is_block_device() {
        true => EntryType::Block,
        false => EntryType::Char,
    }
}

/// Sorted, so that the same directory is the same layer.
fn names(directory: &Path) -> io::Result<Vec<OsString>> {
    let names = fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name()));
    let mut names: Vec<_> = names.collect::<io::Result<_>>()?;
    names.sort_unstable();
    Ok(names)
}

fn xattr_names(file: &Path) -> io::Result<Vec<OsString>> {
    let mut list = vec![0; MAX_XATTR];
    let len = match rustix::fs::llistxattr(file, &mut list) {
        Ok(len) => len,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    let names = list[..len].split(|&byte| byte == 0);
    let names = names.filter(|name| !name.is_empty() && !name.starts_with(OVERLAY));
    Ok(names.map(|name| OsStr::from_bytes(name).to_owned()).collect())
}

fn get_xattr(file: &Path, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0; MAX_XATTR];
    match rustix::fs::lgetxattr(file, name, &mut value) {
        Ok(len) => {
            value.truncate(len);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn reading(path: &Path) -> impl FnOnce(io::Error) -> ArchiveError + use<> {
    let path = Path::new("/").join(path);
    move |source| ArchiveError::Read { path, source }
}

fn writing(path: &Path) -> impl FnOnce(io::Error) -> ArchiveError + use<> {
    let path = Path::new("/").join(path);
    move |source| ArchiveError::Write { path, source }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    /// Type, size and link target of each entry.
    fn entries(bytes: &[u8]) -> BTreeMap<String, (EntryType, u64, String)> {
        let mut archive = tar::Archive::new(bytes);
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let link = entry.link_name().unwrap().unwrap_or_default().display().to_string();
            let path = entry.path().unwrap().display().to_string();
            (path, (entry.header().entry_type(), entry.size(), link))
        });
        entries.collect()
    }

    #[test]
    fn a_directory_is_archived_with_its_links_and_long_names_but_not_what_is_the_agents() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        let long = format!("a/{}", "n".repeat(200));
        fs::create_dir_all(path("run/msb-agent/processes")).unwrap();
        fs::create_dir_all(path("a/empty")).unwrap();
        fs::write(path(&long), "contents").unwrap();
        fs::set_permissions(path(&long), fs::Permissions::from_mode(0o4711)).unwrap();
        fs::hard_link(path(&long), path("z")).unwrap();
        symlink("/etc/target", path("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        let mut bytes = Vec::new();
        write(Some(root.path()), &mut bytes).unwrap();
        let entries = entries(&bytes);
        let names: Vec<&str> = entries.keys().map(String::as_str).collect();
        assert_eq!(names, [".", "a", "a/empty", long.as_str(), "link", "run", "z"]);
        assert_eq!(
            entries["z"].0,
            EntryType::Regular,
            "the first name comes with the content"
        );
        assert_eq!(entries[long.as_str()], (EntryType::Link, 0, "z".into()));
        assert_eq!(entries["link"], (EntryType::Symlink, 0, "/etc/target".into()));
    }

    #[test]
    fn no_layer_is_an_empty_archive_and_a_name_with_a_meaning_is_refused() {
        let mut bytes = Vec::new();
        write(None, &mut bytes).unwrap();
        assert_eq!(entries(&bytes).len(), 0);
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(".wh.x"), "").unwrap();
        let error = write(Some(root.path()), &mut io::sink()).unwrap_err();
        assert!(error.to_string().contains("/.wh.x"), "{error}");
    }
}
