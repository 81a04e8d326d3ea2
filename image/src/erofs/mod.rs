//! Writes a tree as an EROFS file system: uncompressed, so that the guest reads what the host has in its page cache.
//!
//! The superblock, then the contents of files where [`Spool`] put them, then large directories, then the inodes with
//! what is small enough to follow its inode. The root's inode is the first, because its number has 16 bits only.

mod dirents;
mod format;
mod read;
mod xattrs;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Seek as _, SeekFrom, Write};
use std::os::unix::fs::FileExt as _;

use rustix::fs::FallocateFlags;

use crate::content::{BLOCK, Content, Spool};
use crate::tree::{Device, Kind, Node, NodeId, Tree};
use dirents::Dirent;
use format::{FileType, INODE, Inode, Layout, SLOT, Superblock};

pub use read::{ReadError, read};

/// Why a file system cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The image's file cannot be written.
    #[error("cannot write the image")]
    Io(#[from] io::Error),
    /// The file system's block numbers do not reach further.
    #[error("the image has more than 16 TiB")]
    TooLarge,
    /// A file has more extended attributes than fit behind an inode.
    #[error("a file of the image has more than {} KiB of extended attributes", xattrs::MAX_SIZE >> 10)]
    Xattrs,
}

/// Writes `tree` behind the contents in `spool`, and returns the file.
///
/// # Errors
/// When it cannot be written or is too large.
pub fn write(tree: &Tree, spool: Spool, uuid: [u8; 16]) -> Result<File, WriteError> {
    let end_of_contents = spool.end();
    let plan = Plan::new(tree, end_of_contents)?;
    let mut file = spool.into_file();
    punch_unused(tree, &plan, &file, end_of_contents);
    for placed in &plan.nodes {
        if let Some(first) = placed.first_block {
            let bytes = plan.content(tree, placed);
            file.write_all_at(&bytes[..bytes.len() - placed.tail], u64::from(first) * BLOCK)?;
        }
    }
    file.seek(SeekFrom::Start(plan.meta_block * BLOCK))?;
    let mut writer = BufWriter::with_capacity(1 << 20, &mut file);
    let mut position = 0;
    for placed in &plan.nodes {
        let start = placed.nid * SLOT;
        writer.write_all(&vec![0; usize::try_from(start - position).map_err(io::Error::other)?])?;
        let bytes = plan.inode(tree, placed);
        writer.write_all(&bytes)?;
        position = start + bytes.len() as u64;
    }
    writer.flush()?;
    drop(writer);
    let blocks = plan.meta_block + position.div_ceil(BLOCK);
    file.set_len(blocks * BLOCK)?;
    let superblock = Superblock {
        root_nid: u16::try_from(plan.nodes[0].nid).expect("the root comes first"),
        inodes: plan.nodes.len() as u64,
        blocks: u32::try_from(blocks).map_err(|_| WriteError::TooLarge)?,
        meta_block: u32::try_from(plan.meta_block).map_err(|_| WriteError::TooLarge)?,
        uuid,
    };
    file.write_all_at(&superblock.to_block(), 0)?;
    Ok(file)
}

/// Where everything goes.
struct Plan {
    /// In the order they are written.
    nodes: Vec<Placed>,
    /// By the tree's ids: which of `nodes` it is.
    index: Vec<Option<u32>>,
    meta_block: u64,
}

/// One inode.
struct Placed {
    id: NodeId,
    parent: NodeId,
    links: u32,
    nid: u64,
    size: u64,
    /// Where its whole blocks are, if they are not yet written.
    first_block: Option<u32>,
    /// Bytes behind the inode.
    tail: usize,
    xattr_size: usize,
}

impl Plan {
    fn new(tree: &Tree, end_of_contents: u64) -> Result<Self, WriteError> {
        let mut plan = Self {
            nodes: Vec::new(),
            index: vec![None; tree.capacity()],
            meta_block: end_of_contents,
        };
        plan.collect(tree);
        // Nothing may have the number 0: programs take it for an entry that was removed.
        let mut end = SLOT;
        for placed in &mut plan.nodes {
            let node = tree.node(placed.id);
            placed.xattr_size = xattrs::size(&node.attributes.xattrs);
            if placed.xattr_size > xattrs::MAX_SIZE {
                return Err(WriteError::Xattrs);
            }
            placed.measure(node);
            let inline = INODE + (placed.xattr_size + placed.tail) as u64;
            if placed.tail > 0 && end % BLOCK + inline > BLOCK {
                match inline > BLOCK {
                    true => placed.tail = 0,
                    // The tail must not cross into another block.
                    false => end = end.next_multiple_of(BLOCK),
                }
            }
            let in_blocks = placed.size - placed.tail as u64;
            if in_blocks > 0 && !matches!(node.kind, Kind::File(Content::Blocks { .. })) {
                placed.first_block = Some(u32::try_from(plan.meta_block).map_err(|_| WriteError::TooLarge)?);
                plan.meta_block += in_blocks.div_ceil(BLOCK);
            }
            placed.nid = end / SLOT;
            end = (end + INODE + (placed.xattr_size + placed.tail) as u64).next_multiple_of(SLOT);
        }
        Ok(plan)
    }

    /// Finds what the root leads to, with the number of names it has.
    fn collect(&mut self, tree: &Tree) {
        self.push(NodeId::ROOT, NodeId::ROOT, 2);
        let mut next = 0;
        while next < self.nodes.len() {
            let (id, this) = (self.nodes[next].id, next);
            next += 1;
            let Kind::Directory(entries) = &tree.node(id).kind else {
                continue;
            };
            for &child in entries.values() {
                let is_directory = matches!(tree.node(child).kind, Kind::Directory(_));
                if is_directory {
                    self.nodes[this].links += 1;
                }
                match self.index[child.index()] {
                    Some(known) => self.nodes[known as usize].links += 1,
                    None => self.push(child, id, if is_directory { 2 } else { 1 }),
                }
            }
        }
    }

    fn push(&mut self, id: NodeId, parent: NodeId, links: u32) {
        self.index[id.index()] = Some(u32::try_from(self.nodes.len()).expect("the tree counts in 32 bits"));
        self.nodes.push(Placed {
            id,
            parent,
            links,
            nid: 0,
            size: 0,
            first_block: None,
            tail: 0,
            xattr_size: 0,
        });
    }

    fn placed(&self, id: NodeId) -> &Placed {
        let index = self.index[id.index()].expect("all that directories lead to was collected");
        &self.nodes[index as usize]
    }

    /// What is not yet written of a file: all of it, but for one whose content is in the spool.
    fn content<'a>(&self, tree: &'a Tree, placed: &Placed) -> Cow<'a, [u8]> {
        match &tree.node(placed.id).kind {
            Kind::Directory(entries) => {
                let entries = with_dots(placed, entries).map(|(name, id)| Dirent {
                    name,
                    nid: self.placed(id).nid,
                    file_type: file_type(&tree.node(id).kind),
                });
                dirents::encode(&entries.collect::<Vec<_>>()).into()
            }
            Kind::Symlink(bytes) | Kind::File(Content::Inline(bytes)) => Cow::Borrowed(bytes),
            _ => Cow::Borrowed(&[]),
        }
    }

    /// The bytes of an inode with what follows it.
    fn inode(&self, tree: &Tree, placed: &Placed) -> Vec<u8> {
        let node = tree.node(placed.id);
        let attributes = &node.attributes;
        let data = match &node.kind {
            Kind::File(Content::Blocks { first, .. }) => *first,
            Kind::CharDevice(device) | Kind::BlockDevice(device) => encode_device(*device),
            _ => placed.first_block.unwrap_or_default(),
        };
        let inode = Inode {
            layout: if placed.tail > 0 { Layout::Inline } else { Layout::Plain },
            xattr_size: placed.xattr_size,
            mode: file_type(&node.kind).mode() | attributes.mode,
            size: placed.size,
            data,
            number: u32::try_from(placed.nid).unwrap_or_default(),
            uid: attributes.uid,
            gid: attributes.gid,
            mtime: attributes.mtime,
            mtime_nsec: attributes.mtime_nsec,
            links: placed.links,
        };
        let mut bytes = inode.to_bytes().to_vec();
        xattrs::encode(&attributes.xattrs, &mut bytes);
        if placed.tail > 0 {
            let content = self.content(tree, placed);
            bytes.extend(&content[content.len() - placed.tail..]);
        }
        bytes
    }
}

impl Placed {
    /// Its size, and how much of it would follow the inode.
    fn measure(&mut self, node: &Node) {
        let tail = |size: u64| usize::try_from(size % BLOCK).expect("less than a block");
        (self.size, self.tail) = match &node.kind {
            Kind::Directory(entries) => {
                let size = dirents::size(with_dots(self, entries).map(|(name, _)| name));
                (size, tail(size))
            }
            Kind::File(content @ Content::Blocks { .. }) => (content.size(), 0),
            Kind::File(Content::Inline(bytes)) | Kind::Symlink(bytes) => (bytes.len() as u64, tail(bytes.len() as u64)),
            _ => (0, 0),
        };
    }
}

/// A directory's entries in their order, `.` and `..` where their names belong.
fn with_dots<'a>(
    placed: &Placed,
    entries: &'a BTreeMap<Box<[u8]>, NodeId>,
) -> impl Iterator<Item = (&'a [u8], NodeId)> + use<'a> {
    let mut dots = [(b".".as_slice(), placed.id), (b"..", placed.parent)]
        .into_iter()
        .peekable();
    let mut entries = entries.iter().map(|(name, id)| (&**name, *id)).peekable();
    std::iter::from_fn(move || match (dots.peek(), entries.peek()) {
        (Some(dot), Some(entry)) if dot.0 < entry.0 => dots.next(),
        (Some(_), None) => dots.next(),
        _ => entries.next(),
    })
}

fn file_type(kind: &Kind) -> FileType {
    match kind {
        Kind::Directory(_) => FileType::Directory,
        Kind::File(_) => FileType::Regular,
        Kind::Symlink(_) => FileType::Symlink,
        Kind::CharDevice(_) => FileType::CharDevice,
        Kind::BlockDevice(_) => FileType::BlockDevice,
        Kind::Fifo => FileType::Fifo,
        Kind::Socket => FileType::Socket,
    }
}

/// As the kernel's `new_encode_dev`.
fn encode_device(device: Device) -> u32 {
    (device.minor & 0xff) | (device.major << 8) | ((device.minor & !0xff) << 12)
}

/// Gives back the blocks of files that a later layer replaced.
fn punch_unused(tree: &Tree, plan: &Plan, file: &File, end_of_contents: u64) {
    let contents = plan.nodes.iter().filter_map(|placed| match &tree.node(placed.id).kind {
        Kind::File(Content::Blocks { first, size }) => Some((u64::from(*first), size.div_ceil(BLOCK))),
        _ => None,
    });
    let mut used: Vec<_> = contents.chain([(end_of_contents, 0)]).collect();
    used.sort_unstable();
    let mut unused_from = 1;
    for (first, blocks) in used {
        if first > unused_from {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // Where holes are not known, the image is as right, only larger.
            let _ = rustix::fs::fallocate(file, flags, unused_from * BLOCK, (first - unused_from) * BLOCK);
        }
        unused_from = unused_from.max(first + blocks);
    }
}

#[cfg(test)]
mod tests;
