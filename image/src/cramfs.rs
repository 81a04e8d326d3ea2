//! A read-only file system that a kernel maps from memory where it is: cramfs with extended block pointers
//! (fs/cramfs/README and include/uapi/linux/cramfs_fs.h of Linux).
//!
//! Files are uncompressed and begin at multiples of a page, so that `CONFIG_CRAMFS_MTD` can map them. All belong to root.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::Path;

/// Bytes of a block, which is a page.
const PAGE: usize = 4096;
/// What the whole has a multiple of, which is a huge page of a host.
const ALIGNMENT: usize = 2 << 20;

const MAGIC: u32 = 0x28cd_3d45;
const SIGNATURE: &[u8; 16] = b"Compressed ROMFS";
/// `FSID_VERSION_2`, `SORTED_DIRS` and `EXT_BLOCK_POINTERS`.
const FLAGS: u32 = 0x803;
/// The block lies uncompressed where the pointer says.
const DIRECT: u32 = 1 << 31 | 1 << 30;
/// Pointers count words.
const WORD: usize = 4;

const DIRECTORY_MODE: u16 = 0o040_755;

const SUPERBLOCK: usize = 64;
const INODE: usize = 12;
/// The name of a file system is the beginning of the SHA-256 of what is behind the superblock: two with the same first page
/// have the same contents.
const NAME: std::ops::Range<usize> = 48..64;
/// Where the checksum is; while it is computed, it is zero.
const CHECKSUM: std::ops::Range<usize> = 32..36;

/// The longest name, in bytes, and the first length of a file that is too long.
const NAME_MAX: usize = 252;
const LENGTH_END: usize = 1 << 24;

/// A file, or a directory with all that is in it.
#[derive(Clone, Debug)]
pub enum Node {
    /// What is in a directory, by name.
    Directory(BTreeMap<String, Node>),
    /// What is in a program, which everybody may run.
    Program(Vec<u8>),
    /// Where a symbolic link leads.
    Link(String),
}

impl Node {
    /// Reads a directory with programs, links and further directories.
    ///
    /// # Errors
    /// When something in it is of another kind, has a name that is not UTF-8, or cannot be read.
    pub fn read(path: &Path) -> io::Result<Self> {
        let text = |text: std::ffi::OsString| {
            text.into_string()
                .map_err(|text| refused(format!("{} is not UTF-8", text.display())))
        };
        let kind = fs::symlink_metadata(path)?.file_type();
        if kind.is_symlink() {
            return Ok(Self::Link(text(fs::read_link(path)?.into())?));
        }
        if kind.is_file() {
            return Ok(Self::Program(fs::read(path)?));
        }
        if !kind.is_dir() {
            return Err(refused(format!(
                "{} is neither a file nor a link nor a directory",
                path.display()
            )));
        }
        let mut entries = BTreeMap::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            entries.insert(text(entry.file_name())?, Self::read(&entry.path())?);
        }
        Ok(Self::Directory(entries))
    }

    fn mode(&self) -> u16 {
        match self {
            Self::Directory(_) => DIRECTORY_MODE,
            Self::Program(_) => 0o100_755,
            Self::Link(_) => 0o120_777,
        }
    }

    /// What its blocks hold; a directory has none.
    fn contents(&self) -> &[u8] {
        match self {
            Self::Directory(_) => &[],
            Self::Program(contents) => contents,
            Self::Link(target) => target.as_bytes(),
        }
    }
}

fn check(entries: &BTreeMap<String, Node>) -> io::Result<()> {
    for (name, node) in entries {
        if name.is_empty() || name.len() > NAME_MAX || name.contains(['/', '\0']) {
            return Err(refused(format!("{name:?} cannot be a name")));
        }
        match node {
            Node::Directory(entries) => check(entries)?,
            Node::Program(_) | Node::Link(_) => {
                let length = node.contents().len();
                if !(1..LENGTH_END).contains(&length) {
                    return Err(refused(format!(
                        "{name} has {length} bytes instead of one to less than 16 MiB"
                    )));
                }
            }
        }
    }
    Ok(())
}

fn refused(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

/// The file system with these entries in its root directory: a multiple of 2 MiB.
///
/// # Errors
/// When a name or a file is none that it can hold.
pub fn pack(root: &BTreeMap<String, Node>) -> io::Result<Vec<u8>> {
    check(root)?;
    let mut image = Image::default();
    image.bytes.resize(SUPERBLOCK + INODE, 0);
    let entries = image.add_directory(root);
    image.set_inode(SUPERBLOCK, DIRECTORY_MODE, 0, entries);
    image.add_contents();
    Ok(image.finish())
}

/// What was laid out so far.
#[derive(Default)]
struct Image<'a> {
    bytes: Vec<u8>,
    /// Inodes of files and links, with the name's length, and what they are.
    waiting: Vec<(usize, usize, &'a Node)>,
    files: usize,
}

/// Where a directory's entries begin, and bytes of them.
#[derive(Clone, Copy)]
struct Extent {
    at: usize,
    length: usize,
}

impl<'a> Image<'a> {
    /// Puts the entries of a directory behind what there is, and those of directories in it behind these.
    fn add_directory(&mut self, entries: &'a BTreeMap<String, Node>) -> Extent {
        let at = self.bytes.len();
        let mut places = Vec::new();
        for name in entries.keys() {
            places.push(self.bytes.len());
            self.bytes.resize(self.bytes.len() + INODE, 0);
            self.bytes.extend(name.as_bytes());
            self.bytes.resize(self.bytes.len().next_multiple_of(WORD), 0);
        }
        let length = self.bytes.len() - at;
        self.files += 1;
        for (inode, (name, node)) in places.into_iter().zip(entries) {
            let name = name.len().next_multiple_of(WORD);
            if let Node::Directory(entries) = node {
                let extent = self.add_directory(entries);
                self.set_inode(inode, DIRECTORY_MODE, name, extent);
            } else {
                self.waiting.push((inode, name, node));
                self.files += 1;
            }
        }
        Extent { at, length }
    }

    /// Puts the block pointers of all files and links behind what there is, and their contents behind these. What two have
    /// in common is there once.
    fn add_contents(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        let mut places: HashMap<&[u8], Extent> = HashMap::new();
        let mut blocks = Vec::new();
        for (inode, name, node) in waiting {
            let contents = node.contents();
            let extent = *places.entry(contents).or_insert_with(|| {
                let (at, length) = (self.bytes.len(), contents.len());
                self.bytes.resize(at + WORD * length.div_ceil(PAGE), 0);
                blocks.push((at, contents));
                Extent { at, length }
            });
            self.set_inode(inode, node.mode(), name, extent);
        }
        // Where a page is mapped whole, nothing else may be in it.
        blocks.sort_by_key(|(_, contents)| contents.len() >= PAGE);
        for (mut pointer, contents) in blocks {
            for block in contents.chunks(PAGE) {
                let alignment = if contents.len() < PAGE { WORD } else { PAGE };
                self.bytes.resize(self.bytes.len().next_multiple_of(alignment), 0);
                let value = DIRECT | number(self.bytes.len() / WORD);
                self.bytes[pointer..][..WORD].copy_from_slice(&value.to_le_bytes());
                pointer += WORD;
                self.bytes.extend(block);
            }
        }
    }

    /// Writes the inode at `inode`, behind which there are `name` bytes, of what `extent` points to.
    fn set_inode(&mut self, inode: usize, mode: u16, name: usize, extent: Extent) {
        let words = [
            u32::from(mode),
            number(extent.length),
            number(name / WORD) | number(extent.at / WORD) << 6,
        ];
        for (place, word) in self.bytes[inode..][..INODE].chunks_exact_mut(WORD).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
    }

    fn finish(self) -> Vec<u8> {
        let mut image = self.bytes;
        image.resize(image.len().next_multiple_of(ALIGNMENT), 0);
        let size = number(image.len());
        let header = [MAGIC, size, FLAGS, 0];
        let numbers = [0, 0, number(image.len() / PAGE), number(self.files)];
        let mut superblock: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
        superblock.extend(SIGNATURE);
        superblock.extend(numbers.iter().flat_map(|word| word.to_le_bytes()));
        image[..superblock.len()].copy_from_slice(&superblock);
        let digest = ring::digest::digest(&ring::digest::SHA256, &image[SUPERBLOCK..]);
        image[NAME].copy_from_slice(&digest.as_ref()[..NAME.len()]);
        let mut checksum = flate2::Crc::new();
        checksum.update(&image);
        image[CHECKSUM].copy_from_slice(&checksum.sum().to_le_bytes());
        image
    }
}

fn number(number: usize) -> u32 {
    u32::try_from(number).expect("what runs in place has less than 256 MiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(image: &[u8], at: usize) -> usize {
        u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize
    }

    /// What a reader of the format finds by way of the inode at `inode`.
    fn unpack(image: &[u8], inode: usize) -> Node {
        let length = word(image, inode + 4) & 0xff_ffff;
        let at = (word(image, inode + 8) >> 6) * WORD;
        let mode = word(image, inode);
        if mode == 0o040_755 {
            let mut entries = BTreeMap::new();
            let mut entry = at;
            while entry < at + length {
                let name = (word(image, entry + 8) & 63) * WORD;
                let bytes = image[entry + INODE..][..name].to_vec();
                let text = String::from_utf8(bytes).unwrap();
                let earlier = entries.insert(text.trim_end_matches('\0').to_owned(), unpack(image, entry));
                assert!(earlier.is_none());
                entry += INODE + name;
            }
            return Node::Directory(entries);
        }
        let mut contents = Vec::new();
        for block in 0..length.div_ceil(PAGE) {
            let pointer = word(image, at + block * WORD);
            let start = (pointer & 0x3fff_ffff) * WORD;
            assert!(pointer >> 30 == 3 && (length < PAGE || start.is_multiple_of(PAGE)));
            contents.extend(&image[start..][..PAGE.min(length - block * PAGE)]);
        }
        match mode {
            0o100_755 => Node::Program(contents),
            0o120_777 => Node::Link(String::from_utf8(contents).unwrap()),
            other => panic!("{other:o}"),
        }
    }

    fn directory<const N: usize>(entries: [(&str, Node); N]) -> BTreeMap<String, Node> {
        entries.map(|(name, node)| (name.to_owned(), node)).into()
    }

    #[test]
    fn what_was_packed_is_found_aligned_and_once() {
        let link = || Node::Link("../shell".into());
        let bin = directory([("awk", link()), ("true", link()), ("odd", Node::Link("x".into()))]);
        let shell = Node::Program(vec![7; 3 * PAGE + 1]);
        let root = directory([
            ("shell", shell.clone()),
            ("again", shell),
            ("agent", Node::Program(vec![9; PAGE])),
            ("bin", Node::Directory(bin)),
            ("empty", Node::Directory(BTreeMap::new())),
        ]);
        let image = pack(&root).unwrap();
        assert_eq!(image.len(), ALIGNMENT);
        let found = unpack(&image, SUPERBLOCK);
        assert_eq!(format!("{found:?}"), format!("{:?}", Node::Directory(root)));
        let used = image.iter().rposition(|byte| *byte != 0).unwrap();
        assert!(used < 6 * PAGE, "{used}");
    }

    #[test]
    fn the_checksum_is_that_of_the_whole_without_it() {
        let mut image = pack(&directory([("a", Node::Program(b"b".to_vec()))])).unwrap();
        let sum = word(&image, CHECKSUM.start);
        image[CHECKSUM].fill(0);
        let mut checksum = flate2::Crc::new();
        checksum.update(&image);
        assert_eq!(checksum.sum() as usize, sum);
    }

    #[test]
    fn contents_that_differ_anywhere_differ_in_the_first_page() {
        let mut contents = vec![7; 9 * PAGE];
        let image = |contents: &[u8]| pack(&directory([("a", Node::Program(contents.to_vec()))])).unwrap();
        let first = image(&contents);
        contents[8 * PAGE] = 8;
        let second = image(&contents);
        assert!(first[..PAGE] != second[..PAGE] && first[NAME] != second[NAME]);
    }

    #[test]
    fn what_the_format_cannot_hold_is_refused() {
        let program = |length| Node::Program(vec![1; length]);
        for (name, node) in [
            ("", program(1)),
            ("a/b", program(1)),
            ("a", program(0)),
            ("a", program(LENGTH_END)),
            ("a", Node::Directory(directory([("b", Node::Link(String::new()))]))),
        ] {
            pack(&directory([(name, node)])).unwrap_err();
        }
        pack(&directory([("a", program(LENGTH_END - 1))])).unwrap();
    }

    #[test]
    fn a_directory_is_read_with_its_links_as_they_are() {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("bin")).unwrap();
        fs::write(place.path().join("shell"), b"1").unwrap();
        std::os::unix::fs::symlink("../nowhere", place.path().join("bin/true")).unwrap();
        let bin = directory([("true", Node::Link("../nowhere".into()))]);
        let expected = directory([("bin", Node::Directory(bin)), ("shell", Node::Program(b"1".to_vec()))]);
        let read = Node::read(place.path()).unwrap();
        assert_eq!(format!("{read:?}"), format!("{:?}", Node::Directory(expected)));
        Node::read(Path::new("/dev/null")).unwrap_err();
    }
}
