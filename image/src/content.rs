//! Contents of files, written to the image once, as they come.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;

/// The block of the image's file system, in bytes.
pub const BLOCK: u64 = 4096;

/// Files up to this size are kept beside their inode, where they cost no block.
const MAX_INLINE: u64 = 2048;

/// What all files kept in memory for that may have together, in bytes.
const INLINE_BUDGET: u64 = 64 << 20;

/// How much is moved at once, in bytes: whole blocks.
const CHUNK: usize = 256 << 10;

/// Where a file's content is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Content {
    /// In memory, to be written beside the inode.
    Inline(Box<[u8]>),
    /// In blocks of the image, one after the other.
    Blocks {
        /// The first one.
        first: u32,
        /// Bytes.
        size: u64,
    },
}

impl Content {
    /// How long the file is, in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Blocks { size, .. } => *size,
        }
    }
}

/// A piece of a file that is not all holes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Segment {
    /// Where in the file it begins.
    pub offset: u64,
    /// Its bytes.
    pub len: u64,
}

/// Why a file's content did not get into the image.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// What it is read from failed.
    #[error("cannot read a file's content")]
    Read(#[source] io::Error),
    /// What it is read from ends before.
    #[error("it ends before its size says: it is truncated")]
    Truncated,
    /// The image's file cannot be written.
    #[error("cannot write the image")]
    Write(#[source] io::Error),
    /// The file system's block numbers do not reach further.
    #[error("the image has more than 16 TiB")]
    TooLarge,
}

impl ContentError {
    fn read(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated,
            _ => Self::Read(error),
        }
    }
}

/// The image's blocks while they are written.
#[derive(Debug)]
pub struct Spool {
    file: File,
    next: u64,
    inline_left: u64,
    buffer: Box<[u8]>,
}

impl Spool {
    /// Writes to the empty `file`, from its second block on: the first is the superblock's.
    pub fn new(file: File) -> Self {
        Self {
            file,
            next: 1,
            inline_left: INLINE_BUDGET,
            buffer: vec![0; CHUNK].into(),
        }
    }

    /// Writes to an image that has so many blocks already, behind them. What it keeps in memory counts as kept here.
    pub fn behind(file: File, blocks: u64, inline: u64) -> Self {
        Self {
            next: blocks,
            inline_left: INLINE_BUDGET.saturating_sub(inline),
            ..Self::new(file)
        }
    }

    /// Takes a file of `size` bytes, whose `segments` follow each other in `reader`; between them are holes.
    ///
    /// # Errors
    /// When the reader fails or ends too early, or the image cannot be written.
    pub fn add(&mut self, size: u64, segments: &[Segment], reader: &mut impl Read) -> Result<Content, ContentError> {
        if size <= MAX_INLINE.min(self.inline_left) {
            self.inline_left -= size;
            return read_inline(size, segments, reader);
        }
        let first = u32::try_from(self.next).map_err(|_| ContentError::TooLarge)?;
        let next = self.next.checked_add(size.div_ceil(BLOCK));
        self.next = next
            .filter(|next| *next <= u64::from(u32::MAX))
            .ok_or(ContentError::TooLarge)?;
        for segment in segments {
            self.copy(u64::from(first) * BLOCK, *segment, reader)?;
        }
        Ok(Content::Blocks { first, size })
    }

    /// The first block that nothing was written to.
    pub fn end(&self) -> u64 {
        self.next
    }

    /// Gives the file back.
    pub fn into_file(self) -> File {
        self.file
    }

    fn copy(&mut self, start: u64, segment: Segment, reader: &mut impl Read) -> Result<(), ContentError> {
        let mut position = segment.offset;
        let end = segment.offset + segment.len;
        while position < end {
            // After the first one, chunks are whole blocks.
            let room = CHUNK as u64 - position % BLOCK;
            let len = usize::try_from((end - position).min(room)).expect("a chunk is small");
            let chunk = &mut self.buffer[..len];
            reader.read_exact(chunk).map_err(ContentError::read)?;
            write_sparse(&self.file, start + position, chunk).map_err(ContentError::Write)?;
            position += len as u64;
        }
        Ok(())
    }
}

fn read_inline(size: u64, segments: &[Segment], reader: &mut impl Read) -> Result<Content, ContentError> {
    let position = |at: u64| usize::try_from(at).expect("an inline file is small");
    let mut bytes = vec![0; position(size)];
    for segment in segments {
        let range = position(segment.offset)..position(segment.offset + segment.len);
        reader.read_exact(&mut bytes[range]).map_err(ContentError::read)?;
    }
    Ok(Content::Inline(bytes.into()))
}

/// Writes `bytes` but for blocks of zeros, which stay holes.
fn write_sparse(file: &File, position: u64, bytes: &[u8]) -> io::Result<()> {
    let block = usize::try_from(BLOCK).expect("a block is small");
    let mut pending = 0..0;
    for start in (0..bytes.len()).step_by(block) {
        let end = (start + block).min(bytes.len());
        if bytes[start..end].iter().any(|&byte| byte != 0) {
            pending.end = end;
            continue;
        }
        file.write_all_at(&bytes[pending.clone()], position + pending.start as u64)?;
        pending = end..end;
    }
    file.write_all_at(&bytes[pending.clone()], position + pending.start as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    fn spool() -> Spool {
        Spool::new(tempfile::tempfile().unwrap())
    }

    fn whole(len: u64) -> [Segment; 1] {
        [Segment { offset: 0, len }]
    }

    #[test]
    fn contents_follow_each_other_in_whole_blocks() {
        let mut spool = spool();
        let first = spool.add(5000, &whole(5000), &mut [1_u8; 5000].as_slice()).unwrap();
        let second = spool.add(4096, &whole(4096), &mut [2_u8; 4096].as_slice()).unwrap();
        assert_eq!(first, Content::Blocks { first: 1, size: 5000 });
        assert_eq!(second, Content::Blocks { first: 3, size: 4096 });
        let mut bytes = vec![0; 5000];
        spool.file.read_exact_at(&mut bytes, BLOCK).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 1));
        assert_eq!(spool.end(), 4);
    }

    #[test]
    fn zeros_and_holes_take_no_room_and_stay_zeros() {
        let mut spool = spool();
        let mut data = vec![0_u8; 1 << 20];
        data[700_000] = 7;
        let segments = [Segment {
            offset: 100,
            len: data.len() as u64,
        }];
        let size = 1 << 30;
        let content = spool.add(size, &segments, &mut data.as_slice()).unwrap();
        assert_eq!(content.size(), size);
        let mut byte = [0];
        spool.file.read_exact_at(&mut byte, BLOCK + 100 + 700_000).unwrap();
        assert_eq!(byte, [7]);
        assert!(spool.file.metadata().unwrap().blocks() * 512 <= 64 << 10);
    }

    #[test]
    fn a_reader_that_ends_early_is_an_error() {
        for size in [100, 100_000] {
            let added = spool().add(size, &whole(size), &mut [0_u8; 50].as_slice());
            assert!(matches!(added, Err(ContentError::Truncated)), "{size}");
        }
    }
}
