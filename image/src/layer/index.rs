//! Where the files of an archive are in it.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::rc::Rc;

use super::TarError;
use super::tar::{EntryKind, TarReader};
use crate::tree::path::ImagePath;

/// The most files an archive of an image may have: it has layers, not files of a system.
const MAX_ENTRIES: usize = 10_000;

/// A file in an archive.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Extent {
    /// Where it begins.
    pub offset: u64,
    /// Its bytes.
    pub size: u64,
}

/// The files of an archive by their names.
#[derive(Debug, Default)]
pub struct Index {
    files: BTreeMap<String, Extent>,
    links: BTreeMap<String, String>,
}

/// Why an archive has no index.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// It is no sound archive.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// It has too many files.
    #[error("the archive has more than {MAX_ENTRIES} files, too many for an image in layers")]
    TooMany,
}

impl Index {
    /// Reads an archive to its end.
    ///
    /// # Errors
    /// When it is not sound, or has too many files.
    pub fn read(reader: impl Read) -> Result<Self, IndexError> {
        let position = Rc::new(Cell::new(0));
        let mut counting = Counting {
            reader,
            position: Rc::clone(&position),
        };
        let mut archive = TarReader::new(&mut counting);
        let mut index = Self::default();
        while let Some(entry) = archive.next()? {
            let Some(name) = normal(&entry.path) else { continue };
            match entry.kind {
                EntryKind::File { size, segments: None } => {
                    let offset = position.get();
                    index.files.insert(name, Extent { offset, size });
                }
                // Docker linked layers that come twice, relative to the link.
                EntryKind::Symlink(target) => {
                    let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
                    let target = String::from_utf8_lossy(&target).into_owned();
                    index.links.insert(name.clone(), resolve(parent, &target));
                }
                EntryKind::HardLink(target) => {
                    index.links.extend(normal(&target).map(|target| (name, target)));
                }
                _ => {}
            }
            if index.files.len() + index.links.len() > MAX_ENTRIES {
                return Err(IndexError::TooMany);
            }
        }
        Ok(index)
    }

    /// The file with this name, through at most one link.
    pub fn get(&self, name: &str) -> Option<Extent> {
        let name = normal(name.as_bytes())?;
        let linked = || self.files.get(self.links.get(&name)?);
        self.files.get(&name).or_else(linked).copied()
    }
}

/// Without what means nothing in a path.
fn normal(path: &[u8]) -> Option<String> {
    let path = ImagePath::parse(path).ok()?;
    let names = path.names().iter().map(|name| std::str::from_utf8(name).ok());
    Some(names.collect::<Option<Vec<_>>>()?.join("/"))
}

fn resolve(parent: &str, target: &str) -> String {
    let mut names: Vec<&str> = parent.split('/').filter(|name| !name.is_empty()).collect();
    for name in target.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    names.join("/")
}

/// Knows how much was read through it.
struct Counting<R> {
    reader: R,
    position: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.position.set(self.position.get() + read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::tar::{Builder, EntryType, Header};

    #[test]
    fn files_are_found_where_they_are_and_through_links() {
        let mut builder = Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_size(3);
        builder
            .append_data(&mut header, "a/layer.tar", b"abc".as_slice())
            .unwrap();
        let mut link = Header::new_gnu();
        link.set_entry_type(EntryType::Symlink);
        link.set_size(0);
        builder.append_link(&mut link, "b/layer.tar", "../a/layer.tar").unwrap();
        let bytes = builder.into_inner().unwrap();
        let index = Index::read(bytes.as_slice()).unwrap();
        for name in ["a/layer.tar", "b/layer.tar", "./a/layer.tar"] {
            let extent = index.get(name).unwrap();
            let start = usize::try_from(extent.offset).unwrap();
            assert_eq!(&bytes[start..start + 3], b"abc", "{name}");
        }
        assert_eq!(index.get("c"), None);
        assert_eq!(index.get("../a/layer.tar"), None);
    }
}
