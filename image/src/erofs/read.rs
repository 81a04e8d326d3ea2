//! Reads back what this module wrote, so that further layers can be put on top of an image. Contents of files stay where
//! they are: only what leads to them is read.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::format::{DIRENT, FileType, INODE, Inode, Layout, SLOT, SUPERBLOCK_OFFSET, Superblock};
use super::xattrs;
use crate::content::{BLOCK, Content};
use crate::limits::{Budget, LimitError};
use crate::tree::{Attributes, Device, Kind, Tree, TreeError, Xattrs};

/// The longest target of a symbolic link, in bytes.
const MAX_TARGET: u64 = 4096;

/// Why an image's file system cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Its file.
    #[error("cannot read the image")]
    Io(#[from] io::Error),
    /// It is not as it was written.
    #[error("the image is damaged: {0}; remove it and import it anew")]
    Damaged(&'static str),
    /// It is larger than it may be.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// Its files fit nowhere.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// Reads the file system in `file` into the empty `tree`, and returns how many blocks it has.
///
/// # Errors
/// When it was not written here or is damaged, or is larger than `budget` says.
pub fn read(file: &File, tree: &mut Tree, budget: &mut Budget) -> Result<u64, ReadError> {
    let mut block = [0; SUPERBLOCK_OFFSET + 128];
    file.read_exact_at(&mut block, 0)?;
    let superblock = Superblock::parse(&block).ok_or(ReadError::Damaged("it has no superblock"))?;
    let mut reader = Reader {
        file,
        superblock,
        budget,
        links: HashMap::new(),
    };
    let root = reader.inode(u64::from(superblock.root_nid))?;
    let attributes = reader.attributes(&root)?;
    tree.insert(b"", attributes, Kind::Directory(BTreeMap::new()))?;
    // Not recursive: a directory's depth is the image's to choose.
    let mut left = vec![(Vec::new(), root)];
    while let Some((path, directory)) = left.pop() {
        for (name, nid) in reader.entries(&directory)? {
            let path = match path.as_slice() {
                b"" => name,
                path => [path, b"/", &name].concat(),
            };
            left.extend(reader.add(tree, path, nid)?);
        }
    }
    Ok(u64::from(superblock.blocks))
}

struct Reader<'a> {
    file: &'a File,
    superblock: Superblock,
    budget: &'a mut Budget,
    /// Files with more than one name, by their numbers.
    links: HashMap<u64, Vec<u8>>,
}

/// An inode, and where it is.
struct Found {
    inode: Inode,
    /// Behind the inode itself, in bytes of the file.
    end: u64,
}

impl Reader<'_> {
    /// Adds one file. Returns a directory that is to be read.
    fn add(&mut self, tree: &mut Tree, path: Vec<u8>, nid: u64) -> Result<Option<(Vec<u8>, Found)>, ReadError> {
        self.budget.entry(path.len())?;
        if let Some(target) = self.links.get(&nid) {
            tree.link(&path, target)?;
            return Ok(None);
        }
        let found = self.inode(nid)?;
        let attributes = self.attributes(&found)?;
        let (kind, is_directory) = self.kind(&found)?;
        tree.insert(&path, attributes, kind)?;
        if is_directory {
            return Ok(Some((path, found)));
        }
        if found.inode.links > 1 {
            self.links.insert(nid, path);
        }
        Ok(None)
    }

    fn inode(&self, nid: u64) -> Result<Found, ReadError> {
        let start = nid
            .checked_mul(SLOT)
            .and_then(|offset| offset.checked_add(u64::from(self.superblock.meta_block) * BLOCK))
            .ok_or(ReadError::Damaged("an entry leads out of it"))?;
        let mut bytes = [0; 64];
        self.file.read_exact_at(&mut bytes, start)?;
        let inode = Inode::parse(&bytes).ok_or(ReadError::Damaged("it has an inode that nothing here writes"))?;
        Ok(Found {
            inode,
            end: start + INODE,
        })
    }

    fn kind(&mut self, found: &Found) -> Result<(Kind, bool), ReadError> {
        let inode = &found.inode;
        let kind = match FileType::of_mode(inode.mode) {
            Some(FileType::Directory) => return Ok((Kind::Directory(BTreeMap::new()), true)),
            Some(FileType::Regular) => {
                self.budget.file(inode.size)?;
                Kind::File(self.file_content(found)?)
            }
            Some(FileType::Symlink) if inode.size <= MAX_TARGET => Kind::Symlink(self.bytes(found)?.into()),
            Some(FileType::CharDevice) => Kind::CharDevice(decode_device(inode.data)),
            Some(FileType::BlockDevice) => Kind::BlockDevice(decode_device(inode.data)),
            Some(FileType::Fifo) => Kind::Fifo,
            Some(FileType::Socket) => Kind::Socket,
            _ => return Err(ReadError::Damaged("it has a file of no kind")),
        };
        Ok((kind, false))
    }

    fn file_content(&self, found: &Found) -> Result<Content, ReadError> {
        let Inode { layout, size, data, .. } = found.inode;
        if size == 0 || layout == Layout::Inline {
            return Ok(Content::Inline(self.bytes(found)?.into()));
        }
        self.check_blocks(data, size)?;
        Ok(Content::Blocks { first: data, size })
    }

    /// All of a small file, a link or a directory.
    fn bytes(&self, found: &Found) -> Result<Vec<u8>, ReadError> {
        let Inode { layout, size, data, .. } = found.inode;
        let tail = match layout {
            Layout::Plain => 0,
            Layout::Inline => size % BLOCK,
        };
        let in_blocks = size - tail;
        self.check_blocks(data, in_blocks)?;
        let len = |size: u64| usize::try_from(size).map_err(|_| ReadError::Damaged("a file has no end"));
        let mut bytes = vec![0; len(size)?];
        let (blocks, rest) = bytes.split_at_mut(len(in_blocks)?);
        self.file.read_exact_at(blocks, u64::from(data) * BLOCK)?;
        self.file
            .read_exact_at(rest, found.end + found.inode.xattr_size as u64)?;
        Ok(bytes)
    }

    /// Nothing is beyond the end of the image, so nothing larger than it is asked for.
    fn check_blocks(&self, first: u32, size: u64) -> Result<(), ReadError> {
        let end = size.div_ceil(BLOCK).checked_add(u64::from(first));
        match end.is_some_and(|end| size == 0 || end <= u64::from(self.superblock.blocks)) {
            true => Ok(()),
            false => Err(ReadError::Damaged("a file's content is not in it")),
        }
    }

    fn attributes(&mut self, found: &Found) -> Result<Attributes, ReadError> {
        let inode = &found.inode;
        let mut bytes = vec![0; inode.xattr_size];
        self.file.read_exact_at(&mut bytes, found.end)?;
        let xattrs: Xattrs = xattrs::decode(&bytes).ok_or(ReadError::Damaged("an extended attribute has no end"))?;
        self.budget
            .metadata(xattrs.iter().map(|(name, value)| name.len() + value.len()).sum())?;
        Ok(Attributes {
            mode: inode.mode & 0o7777,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            mtime_nsec: inode.mtime_nsec,
            xattrs,
        })
    }

    /// Names and numbers of what is in a directory.
    fn entries(&self, directory: &Found) -> Result<Vec<(Vec<u8>, u64)>, ReadError> {
        let bytes = self.bytes(directory)?;
        let block = usize::try_from(BLOCK).expect("a block is small");
        let mut entries = Vec::new();
        for block in bytes.chunks(block) {
            let parsed = parse_block(block).ok_or(ReadError::Damaged("a directory makes no sense"))?;
            entries.extend(parsed.into_iter().filter(|(name, _)| name != b"." && name != b".."));
        }
        Ok(entries)
    }
}

/// The entries of a block of a directory: the first one's name begins where they end.
fn parse_block(block: &[u8]) -> Option<Vec<(Vec<u8>, u64)>> {
    let name_offset = |entry: &[u8]| Some(usize::from(u16::from_le_bytes(*entry.get(8..)?.first_chunk()?)));
    let (heads, _) = block.split_at_checked(name_offset(block)?)?;
    let heads: Vec<&[u8]> = heads.chunks_exact(DIRENT).collect();
    let mut entries = Vec::with_capacity(heads.len());
    for (index, head) in heads.iter().enumerate() {
        let end = heads
            .get(index + 1)
            .map_or(Some(block.len()), |next| name_offset(next))?;
        let name = block.get(name_offset(head)?..end)?;
        // What does not fill the block behind the last name is zeros.
        let name = name.split(|&byte| byte == 0).next()?;
        if name.is_empty() {
            return None;
        }
        entries.push((name.to_vec(), u64::from_le_bytes(*head.first_chunk()?)));
    }
    Some(entries)
}

/// As the kernel's `new_decode_dev`.
fn decode_device(number: u32) -> Device {
    Device {
        major: (number & 0xf_ff00) >> 8,
        minor: (number & 0xff) | ((number >> 12) & 0xf_ff00),
    }
}
