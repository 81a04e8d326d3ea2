//! The file system of an image as a tree in memory: everything but the contents of its files.
//!
//! Layers are put on top of each other here, so nothing of an image ever touches the host's file system: no path in it
//! can lead anywhere, and neither root nor a device node is needed.

use std::collections::BTreeMap;

pub mod path;

use crate::content::Content;
use crate::limits::LimitError;
use path::{ImagePath, PathError, Shown};

/// How many symbolic links one path may go through, as in Linux.
const MAX_LINKS: usize = 40;

/// An index into the nodes of a [`Tree`].
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NodeId(u32);

impl NodeId {
    /// The root of every tree.
    pub const ROOT: Self = Self(0);

    /// As an index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Extended attributes by their full names.
pub type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// What every file has.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Attributes {
    /// Permissions: the low twelve bits of the mode.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since the epoch of the last change.
    pub mtime: i64,
    /// Its nanoseconds.
    pub mtime_nsec: u32,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

/// What a file is.
#[derive(Debug)]
pub enum Kind {
    /// Names and what they stand for.
    Directory(BTreeMap<Box<[u8]>, NodeId>),
    /// A regular file.
    File(Content),
    /// Where it leads.
    Symlink(Box<[u8]>),
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A named pipe.
    Fifo,
    /// A Unix socket that nobody listens on.
    Socket,
}

/// The number of a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Device {
    /// Which driver: 12 bits.
    pub major: u32,
    /// Which of its devices: 20 bits.
    pub minor: u32,
}

/// One file.
#[derive(Debug)]
pub struct Node {
    /// What it has.
    pub attributes: Attributes,
    /// What it is.
    pub kind: Kind,
    /// The layer that touched it last.
    layer: usize,
}

/// Why something cannot be put into the tree.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// It is no path of an image.
    #[error(transparent)]
    Path(#[from] PathError),
    /// Something on the way is no directory.
    #[error("'{0}' leads through something that is no directory")]
    NotADirectory(Shown),
    /// A chain of links without end.
    #[error("'{0}' leads through too many symbolic links")]
    Loop(Shown),
    /// A hard link to what is not there, or is a directory.
    #[error("'{link}' is a hard link to '{target}', which is no file of the image")]
    HardLink {
        /// The link.
        link: Shown,
        /// What it should be another name of.
        target: Shown,
    },
    /// The root is a directory.
    #[error("the root of the image would be no directory")]
    Root,
    /// Too many files, directories included that no entry describes.
    #[error(transparent)]
    Limit(#[from] LimitError),
}

/// A file system.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
    max_nodes: u64,
    layer: usize,
}

impl Tree {
    /// An empty root directory. All layers together may make `max_nodes` files in it.
    pub fn new(max_nodes: u64) -> Self {
        let root = Node {
            attributes: directory_attributes(),
            kind: Kind::Directory(BTreeMap::new()),
            layer: 0,
        };
        Self {
            nodes: vec![root],
            max_nodes: max_nodes.min(u64::from(u32::MAX)),
            layer: 0,
        }
    }

    /// What follows is another layer, on top.
    pub fn begin_layer(&mut self) {
        self.layer += 1;
    }

    /// A file.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// How many nodes there ever were.
    pub fn capacity(&self) -> usize {
        self.nodes.len()
    }

    /// Bytes of files that are kept in memory.
    pub fn inline_bytes(&self) -> u64 {
        let kept = self.nodes.iter().map(|node| match &node.kind {
            Kind::File(Content::Inline(bytes)) => bytes.len() as u64,
            _ => 0,
        });
        kept.sum()
    }

    /// Puts a file at `path`, in the place of what is there. A directory on a directory keeps what is in it.
    ///
    /// # Errors
    /// When the path leads nowhere.
    pub fn insert(&mut self, path: &[u8], attributes: Attributes, kind: Kind) -> Result<NodeId, TreeError> {
        let parsed = ImagePath::parse(path)?;
        let Some((name, parents)) = parsed.split_last() else {
            return self.replace_root(attributes, &kind);
        };
        let parent = self.make_directories(path, parents)?;
        if let (Kind::Directory(_), Some(existing)) = (&kind, self.child(parent, name))
            && matches!(self.node(existing).kind, Kind::Directory(_))
        {
            let layer = self.layer;
            let node = &mut self.nodes[existing.index()];
            node.attributes = attributes;
            node.layer = layer;
            return Ok(existing);
        }
        let id = self.push(attributes, kind)?;
        self.entries(parent).insert(name.into(), id);
        Ok(id)
    }

    /// Gives the file at `target` another name, `path`.
    ///
    /// # Errors
    /// When there is no such file, or it is a directory.
    pub fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), TreeError> {
        let bad = || TreeError::HardLink {
            link: Shown::new(path),
            target: Shown::new(target),
        };
        let to = ImagePath::parse(target)?;
        let (name, parents) = to.split_last().ok_or_else(bad)?;
        let directory = self.find_directory(target, parents)?.ok_or_else(bad)?;
        let id = self.child(directory, name).ok_or_else(bad)?;
        if matches!(self.node(id).kind, Kind::Directory(_)) {
            return Err(bad());
        }
        let from = ImagePath::parse(path)?;
        let (name, parents) = from.split_last().ok_or(TreeError::Root)?;
        let parent = self.make_directories(path, parents)?;
        self.entries(parent).insert(name.into(), id);
        // A name that this layer gives is not for its own whiteouts to take.
        self.nodes[id.index()].layer = self.layer;
        Ok(())
    }

    /// Takes away what lower layers have at `path`.
    ///
    /// # Errors
    /// When it is no path.
    pub fn whiteout(&mut self, path: &[u8]) -> Result<(), TreeError> {
        let parsed = ImagePath::parse(path)?;
        let Some((name, parents)) = parsed.split_last() else {
            return Ok(());
        };
        let Some(parent) = self.find_directory(path, parents)? else {
            return Ok(());
        };
        if let Some(id) = self.child(parent, name) {
            if self.node(id).layer < self.layer {
                self.entries(parent).remove(name);
            } else {
                self.remove_lower(id);
            }
        }
        Ok(())
    }

    /// Takes away what lower layers have in the directory at `path`.
    ///
    /// # Errors
    /// When it leads nowhere.
    pub fn make_opaque(&mut self, path: &[u8]) -> Result<(), TreeError> {
        let parsed = ImagePath::parse(path)?;
        let directory = self.make_directories(path, parsed.names())?;
        self.remove_lower(directory);
        Ok(())
    }

    /// The file at `path`, its last name taken as it is.
    pub fn lookup(&self, path: &[u8]) -> Option<NodeId> {
        let parsed = ImagePath::parse(path).ok()?;
        let Some((name, parents)) = parsed.split_last() else {
            return Some(NodeId::ROOT);
        };
        let directory = self.find_directory(path, parents).ok()??;
        self.child(directory, name)
    }

    fn replace_root(&mut self, attributes: Attributes, kind: &Kind) -> Result<NodeId, TreeError> {
        if !matches!(kind, Kind::Directory(_)) {
            return Err(TreeError::Root);
        }
        self.nodes[0].attributes = attributes;
        Ok(NodeId::ROOT)
    }

    fn push(&mut self, attributes: Attributes, kind: Kind) -> Result<NodeId, LimitError> {
        if self.nodes.len() as u64 > self.max_nodes {
            return Err(LimitError::Entries(self.max_nodes));
        }
        let id = NodeId(u32::try_from(self.nodes.len()).expect("there are at most so many"));
        self.nodes.push(Node {
            attributes,
            kind,
            layer: self.layer,
        });
        Ok(id)
    }

    fn child(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        match &self.node(directory).kind {
            Kind::Directory(entries) => entries.get(name).copied(),
            _ => None,
        }
    }

    fn entries(&mut self, directory: NodeId) -> &mut BTreeMap<Box<[u8]>, NodeId> {
        match &mut self.nodes[directory.index()].kind {
            Kind::Directory(entries) => entries,
            _ => unreachable!("only directories are walked into"),
        }
    }

    /// The directory that `names` lead to, made where it is missing. The way there belongs to this layer.
    fn make_directories(&mut self, path: &[u8], names: &[&[u8]]) -> Result<NodeId, TreeError> {
        let mut walk = Walk::new(path);
        let mut queue: Vec<Box<[u8]>> = names.iter().rev().map(|name| (*name).into()).collect();
        while let Some(name) = queue.pop() {
            match self.step(&mut walk, &name, &mut queue)? {
                Step::Done => {}
                Step::Missing => {
                    let id = self.push(directory_attributes(), Kind::Directory(BTreeMap::new()))?;
                    self.entries(walk.at()).insert(name, id);
                    walk.stack.push(id);
                }
            }
            self.nodes[walk.at().index()].layer = self.layer;
        }
        Ok(walk.at())
    }

    /// The directory that `names` lead to, if it is there.
    fn find_directory(&self, path: &[u8], names: &[&[u8]]) -> Result<Option<NodeId>, TreeError> {
        let mut walk = Walk::new(path);
        let mut queue: Vec<Box<[u8]>> = names.iter().rev().map(|name| (*name).into()).collect();
        while let Some(name) = queue.pop() {
            if matches!(self.step(&mut walk, &name, &mut queue)?, Step::Missing) {
                return Ok(None);
            }
        }
        Ok(Some(walk.at()))
    }

    /// One name further. A symbolic link puts its own names in front of those that remain, and never leads above the
    /// root: as for a process that has the image as its root directory.
    fn step(&self, walk: &mut Walk<'_>, name: &[u8], queue: &mut Vec<Box<[u8]>>) -> Result<Step, TreeError> {
        match name {
            b"" | b"." => return Ok(Step::Done),
            b".." => {
                walk.up();
                return Ok(Step::Done);
            }
            _ => {}
        }
        let Some(id) = self.child(walk.at(), name) else {
            return Ok(Step::Missing);
        };
        match &self.node(id).kind {
            Kind::Directory(_) => walk.stack.push(id),
            Kind::Symlink(target) => {
                walk.links += 1;
                if walk.links > MAX_LINKS {
                    return Err(TreeError::Loop(Shown::new(walk.path)));
                }
                if target.starts_with(b"/") {
                    walk.stack.truncate(1);
                }
                queue.extend(target.rsplit(|&byte| byte == b'/').map(Into::into));
            }
            _ => return Err(TreeError::NotADirectory(Shown::new(walk.path))),
        }
        Ok(Step::Done)
    }

    /// Removes from a directory what this layer did not touch, at any depth.
    fn remove_lower(&mut self, directory: NodeId) {
        let layer = self.layer;
        let mut left = vec![directory];
        while let Some(id) = left.pop() {
            let Kind::Directory(entries) = &mut self.nodes[id.index()].kind else {
                continue;
            };
            let mut entries = std::mem::take(entries);
            entries.retain(|_, child| self.nodes[child.index()].layer == layer);
            left.extend(entries.values().copied());
            *self.entries(id) = entries;
        }
    }
}

enum Step {
    Done,
    Missing,
}

/// Where a walk is, and how it came there.
struct Walk<'a> {
    path: &'a [u8],
    stack: Vec<NodeId>,
    links: usize,
}

impl<'a> Walk<'a> {
    fn new(path: &'a [u8]) -> Self {
        Self {
            path,
            stack: vec![NodeId::ROOT],
            links: 0,
        }
    }

    fn at(&self) -> NodeId {
        self.stack.last().copied().unwrap_or(NodeId::ROOT)
    }

    fn up(&mut self) {
        if self.stack.len() > 1 {
            self.stack.pop();
        }
    }
}

/// Of a directory that no layer describes.
fn directory_attributes() -> Attributes {
    Attributes {
        mode: 0o755,
        ..Attributes::default()
    }
}

#[cfg(test)]
mod tests;
