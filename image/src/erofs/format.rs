//! The on-disk format of EROFS: fs/erofs/erofs_fs.h of Linux 6.12, Documentation/filesystems/erofs.rst.

/// Where the superblock is, in bytes.
pub(super) const SUPERBLOCK_OFFSET: usize = 1024;

const MAGIC: u32 = 0xe0f5_e1e2;

/// log2 of the block size.
const BLOCK_BITS: u8 = 12;

/// The superblock has a checksum.
const COMPAT_CHECKSUM: u32 = 1;

/// Inodes have times of their own.
const COMPAT_MTIME: u32 = 2;

/// Inodes are numbered by their position in units of so many bytes.
pub(super) const SLOT: u64 = 32;

/// An extended inode, in bytes.
pub(super) const INODE: u64 = 64;

/// An entry of a directory without its name, in bytes.
pub(super) const DIRENT: usize = 12;

/// The bytes before the extended attributes of an inode.
pub(super) const XATTR_HEADER: usize = 12;

/// The bytes before the name of an extended attribute.
pub(super) const XATTR_ENTRY: usize = 4;

/// Where an inode's data is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Layout {
    /// In blocks.
    Plain = 0,
    /// In blocks, but for what does not fill one: that follows the inode.
    Inline = 2,
}

/// The type of a directory's entry, as in a `struct dirent`'s order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum FileType {
    Regular = 1,
    Directory = 2,
    CharDevice = 3,
    BlockDevice = 4,
    Fifo = 5,
    Socket = 6,
    Symlink = 7,
}

impl FileType {
    /// The bits of `st_mode`.
    pub(super) fn mode(self) -> u16 {
        match self {
            Self::Regular => 0o100_000,
            Self::Directory => 0o040_000,
            Self::CharDevice => 0o020_000,
            Self::BlockDevice => 0o060_000,
            Self::Fifo => 0o010_000,
            Self::Socket => 0o140_000,
            Self::Symlink => 0o120_000,
        }
    }

    /// Which one these bits of `st_mode` mean.
    pub(super) fn of_mode(mode: u16) -> Option<Self> {
        use FileType::{BlockDevice, CharDevice, Directory, Fifo, Regular, Socket, Symlink};
        let all = [Regular, Directory, CharDevice, BlockDevice, Fifo, Socket, Symlink];
        all.into_iter().find(|kind| kind.mode() == mode & 0o170_000)
    }
}

/// `struct erofs_super_block`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Superblock {
    pub(super) root_nid: u16,
    pub(super) inodes: u64,
    pub(super) blocks: u32,
    pub(super) meta_block: u32,
    pub(super) uuid: [u8; 16],
}

impl Superblock {
    /// The first block of the image.
    pub(super) fn to_block(self) -> Vec<u8> {
        let mut fields = Vec::with_capacity(128);
        fields.extend(MAGIC.to_le_bytes());
        fields.extend([0; 4]); // checksum
        fields.extend((COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        fields.extend([BLOCK_BITS, 0]); // no extension slots
        fields.extend(self.root_nid.to_le_bytes());
        fields.extend(self.inodes.to_le_bytes());
        fields.extend([0; 12]); // build time
        fields.extend(self.blocks.to_le_bytes());
        fields.extend(self.meta_block.to_le_bytes());
        fields.extend([0; 4]); // no shared attributes
        fields.extend(self.uuid);
        fields.resize(128, 0); // no volume name, no incompatible features
        let mut block = vec![0; 1 << BLOCK_BITS];
        block[SUPERBLOCK_OFFSET..][..fields.len()].copy_from_slice(&fields);
        let checksum = crc32c(&block[SUPERBLOCK_OFFSET..]);
        block[SUPERBLOCK_OFFSET + 4..][..4].copy_from_slice(&checksum.to_le_bytes());
        block
    }

    /// From the first block of an image; nothing when it has another format.
    pub(super) fn parse(block: &[u8]) -> Option<Self> {
        let fields = block.get(SUPERBLOCK_OFFSET..)?.first_chunk::<128>()?;
        let number = |at: usize| u32::from_le_bytes([fields[at], fields[at + 1], fields[at + 2], fields[at + 3]]);
        let is_known = number(0) == MAGIC && fields[12] == BLOCK_BITS && number(80) == 0;
        is_known.then(|| Self {
            root_nid: u16::from_le_bytes([fields[14], fields[15]]),
            inodes: u64::from(number(16)) | u64::from(number(20)) << 32,
            blocks: number(36),
            meta_block: number(40),
            uuid: *fields[48..]
                .first_chunk()
                .expect("these are the fields of a superblock"),
        })
    }
}

/// `struct erofs_inode_extended`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inode {
    pub(super) layout: Layout,
    /// Bytes of extended attributes behind it, 0 or what [`XATTR_HEADER`] begins.
    pub(super) xattr_size: usize,
    pub(super) mode: u16,
    pub(super) size: u64,
    /// The first block of its data, or a device's number.
    pub(super) data: u32,
    pub(super) number: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: i64,
    pub(super) mtime_nsec: u32,
    pub(super) links: u32,
}

impl Inode {
    pub(super) fn to_bytes(self) -> [u8; 64] {
        let xattrs = match self.xattr_size {
            0 => 0,
            size => (size - XATTR_HEADER) / 4 + 1,
        };
        let xattrs = u16::try_from(xattrs).expect("the size was checked when it was made");
        let mut bytes = [0; 64];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &(1 | (self.layout as u16) << 1).to_le_bytes());
        put(2, &xattrs.to_le_bytes());
        put(4, &self.mode.to_le_bytes());
        put(8, &self.size.to_le_bytes());
        put(16, &self.data.to_le_bytes());
        put(20, &self.number.to_le_bytes());
        put(24, &self.uid.to_le_bytes());
        put(28, &self.gid.to_le_bytes());
        put(32, &self.mtime.to_le_bytes());
        put(40, &self.mtime_nsec.to_le_bytes());
        put(44, &self.links.to_le_bytes());
        bytes
    }

    /// Nothing when it is none that [`Self::to_bytes`] makes.
    pub(super) fn parse(bytes: &[u8; 64]) -> Option<Self> {
        let short = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at: usize| u64::from(number(at)) | u64::from(number(at + 4)) << 32;
        let layout = match short(0) {
            1 => Layout::Plain,
            5 => Layout::Inline,
            _ => return None,
        };
        Some(Self {
            layout,
            xattr_size: match usize::from(short(2)) {
                0 => 0,
                count => XATTR_HEADER + 4 * (count - 1),
            },
            mode: short(4),
            size: long(8),
            data: number(16),
            number: number(20),
            uid: number(24),
            gid: number(28),
            mtime: long(32).cast_signed(),
            mtime_nsec: number(40),
            links: number(44),
        })
    }
}

/// CRC-32C without the final inversion, as the superblock has it.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc32c() {
        // The check value of CRC-32C, before its final inversion.
        assert_eq!(crc32c(b"123456789"), !0xe306_9283);
    }
}
