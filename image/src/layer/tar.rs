//! The entries of a tar archive, whoever wrote it: POSIX ustar and pax, GNU tar, and their sparse files.
//!
//! Everything here is read from hostile bytes: each size is compared with a limit before anything is allocated for it.

use std::collections::BTreeMap;
use std::io::{self, Read};

use tar::{EntryType, Header};

use super::pax::{Malformed, Records, number};
use crate::content::Segment;
use crate::tree::path::{MAX_PATH, Shown};
use crate::tree::{Attributes, Device};

/// The block of an archive, in bytes.
const BLOCK: usize = 512;

/// The most that extended headers of one entry have, in bytes, those for all entries included: they hold extended
/// attributes of up to 64 KiB each.
const MAX_EXTENDED: usize = 1 << 20;

/// The most pieces of a sparse file.
const MAX_SEGMENTS: usize = 1 << 16;

/// What an inode's extended attribute may hold, in bytes, one less than Linux has: the length is 16 bits.
const MAX_XATTR: usize = u16::MAX as usize;

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream failed.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// The stream ended too early.
    #[error("the archive is truncated")]
    Truncated,
    /// No header is where one must be.
    #[error("this is no tar archive, or a damaged one: a header's checksum is wrong")]
    Checksum,
    /// A field makes no sense.
    #[error("the archive is damaged: the {field} of '{path}' makes no sense")]
    Field {
        /// Whose.
        path: Shown,
        /// Which.
        field: &'static str,
    },
    /// It is longer than it may be.
    #[error("the {field} of '{path}' is longer than it may be")]
    TooLong {
        /// Whose.
        path: Shown,
        /// Which.
        field: &'static str,
    },
    /// It is no file.
    #[error("'{path}' is an entry of type '{kind}', which is not understood")]
    Unsupported {
        /// The entry.
        path: Shown,
        /// Its type flag.
        kind: char,
    },
}

/// One entry.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) path: Vec<u8>,
    pub(super) attributes: Attributes,
    pub(super) kind: EntryKind,
}

/// What an entry is.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum EntryKind {
    Directory,
    File {
        size: u64,
        /// Where its bytes are; without, it has no holes.
        segments: Option<Vec<Segment>>,
    },
    HardLink(Vec<u8>),
    Symlink(Vec<u8>),
    CharDevice(Device),
    BlockDevice(Device),
    Fifo,
}

impl Entry {
    /// Bytes of names and attributes.
    pub(super) fn metadata_size(&self) -> usize {
        let target = match &self.kind {
            EntryKind::HardLink(target) | EntryKind::Symlink(target) => target.len(),
            _ => 0,
        };
        let xattrs = self.attributes.xattrs.iter();
        self.path.len() + target + xattrs.map(|(name, value)| name.len() + value.len()).sum::<usize>()
    }
}

/// Reads an archive from its beginning to its end mark.
#[derive(Debug)]
pub(super) struct TarReader<'a, R> {
    reader: &'a mut R,
    /// Bytes of the current entry that were not read yet.
    left: u64,
    /// Bytes behind them, up to the next block.
    padding: u64,
    /// Of the global extended headers.
    global: Records,
}

/// What the headers in front of an entry say of it.
#[derive(Debug)]
struct Extended {
    records: Records,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<'a, R: Read> TarReader<'a, R> {
    pub(super) fn new(reader: &'a mut R) -> Self {
        Self {
            reader,
            left: 0,
            padding: 0,
            global: Records::default(),
        }
    }

    /// What is left of the current file's bytes.
    pub(super) fn data(&mut self) -> impl Read + '_ {
        Data {
            reader: self.reader,
            left: &mut self.left,
        }
    }

    /// The next entry; `None` at the end mark.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extended = Extended {
            records: self.global.clone(),
            long_name: None,
            long_link: None,
        };
        loop {
            self.skip()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let path = Shown::new(&header.path_bytes());
            let size = header.entry_size().map_err(|_| field(&path, "size"))?;
            match header.entry_type() {
                EntryType::XGlobalHeader => {
                    let bytes = self.extended_header(size, self.global.size(), &path)?;
                    self.global
                        .extend(&bytes)
                        .map_err(|Malformed| field(&path, "extended header"))?;
                    extended.records = self.global.clone();
                }
                EntryType::XHeader => {
                    let bytes = self.extended_header(size, extended.records.size(), &path)?;
                    let added = extended.records.extend(&bytes);
                    added.map_err(|Malformed| field(&path, "extended header"))?;
                }
                EntryType::GNULongName => extended.long_name = Some(self.long_field(size, &path)?),
                EntryType::GNULongLink => extended.long_link = Some(self.long_field(size, &path)?),
                // The name of a tape.
                kind if kind.as_byte() == b'V' => self.begin(size),
                _ => return self.entry(&header, extended).map(Some),
            }
        }
    }

    fn entry(&mut self, header: &Header, extended: Extended) -> Result<Entry, TarError> {
        let Extended {
            records,
            long_name,
            long_link,
        } = extended;
        let value = |key: &str| records.get(key).map(<[u8]>::to_vec);
        let path = value("GNU.sparse.name")
            .or_else(|| value("path"))
            .or(long_name)
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let shown = Shown::new(&path);
        let link = value("linkpath").or(long_link);
        let link = link.unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned());
        for (name, field) in [(&path, "name"), (&link, "link target")] {
            if name.len() > MAX_PATH {
                return Err(TarError::TooLong { path: shown, field });
            }
        }
        if link.contains(&0) {
            return Err(field(&shown, "link target"));
        }
        let size = records.number("size").map_err(|Malformed| field(&shown, "size"))?;
        let size = match size {
            Some(size) => size,
            None => header.entry_size().map_err(|_| field(&shown, "size"))?,
        };
        let device = || -> Result<Device, TarError> {
            let major = header.device_major().ok().flatten().filter(|major| *major < 1 << 12);
            let minor = header.device_minor().ok().flatten().filter(|minor| *minor < 1 << 20);
            match (major, minor) {
                (Some(major), Some(minor)) => Ok(Device { major, minor }),
                _ => Err(field(&shown, "device number")),
            }
        };
        let kind = match header.entry_type() {
            // Before POSIX, this is how directories were told from files.
            EntryType::Regular if path.ends_with(b"/") => EntryKind::Directory,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.begin(size);
                self.file(header, size, &records, &shown)?
            }
            EntryType::Directory => {
                // Some archivers give directories a size without any bytes.
                EntryKind::Directory
            }
            EntryType::Link => EntryKind::HardLink(link),
            EntryType::Symlink if link.is_empty() => return Err(field(&shown, "link target")),
            EntryType::Symlink => EntryKind::Symlink(link),
            EntryType::Char => EntryKind::CharDevice(device()?),
            EntryType::Block => EntryKind::BlockDevice(device()?),
            EntryType::Fifo => EntryKind::Fifo,
            other => {
                return Err(TarError::Unsupported {
                    path: shown,
                    kind: char::from(other.as_byte()),
                });
            }
        };
        Ok(Entry {
            attributes: attributes(header, &records, &shown)?,
            path,
            kind,
        })
    }

    /// A file's size, and where its bytes are.
    fn file(&mut self, header: &Header, size: u64, records: &Records, path: &Shown) -> Result<EntryKind, TarError> {
        let bad = |Malformed| field(path, "map of a sparse file");
        let (size, pairs) = if header.entry_type().is_gnu_sparse() {
            let gnu = header.as_gnu().ok_or_else(|| bad(Malformed))?;
            let size = gnu.real_size().map_err(|_| bad(Malformed))?;
            (size, self.gnu_pairs(gnu, path)?)
        } else if records.get("GNU.sparse.major") == Some(b"1") {
            let size = records.number("GNU.sparse.realsize").map_err(bad)?;
            (size.ok_or_else(|| bad(Malformed))?, self.leading_pairs(path)?)
        } else if let Some(size) = records.number("GNU.sparse.size").map_err(bad)? {
            let map = records.get("GNU.sparse.map");
            let numbers = map.map(|map| map.split(|&byte| byte == b',').map(number).collect::<Option<_>>());
            let numbers = numbers.unwrap_or_else(|| Some(records.sparse_pairs.clone()));
            (size, numbers.ok_or_else(|| bad(Malformed))?)
        } else {
            return Ok(EntryKind::File { size, segments: None });
        };
        let segments = segments(&pairs, size, self.left).ok_or_else(|| bad(Malformed))?;
        Ok(EntryKind::File {
            size,
            segments: Some(segments),
        })
    }

    /// The map of GNU tar's own format: in the header, then in blocks before the data.
    fn gnu_pairs(&mut self, gnu: &tar::GnuHeader, path: &Shown) -> Result<Vec<u64>, TarError> {
        let bad = |_| field(path, "map of a sparse file");
        let mut pairs = Vec::new();
        let mut push = |sparse: &tar::GnuSparseHeader| -> Result<(), TarError> {
            if !sparse.is_empty() {
                pairs.push(sparse.offset().map_err(bad)?);
                pairs.push(sparse.length().map_err(bad)?);
            }
            match pairs.len() > 2 * MAX_SEGMENTS {
                true => Err(TarError::TooLong {
                    path: path.clone(),
                    field: "map of a sparse file",
                }),
                false => Ok(()),
            }
        };
        gnu.sparse.iter().try_for_each(&mut push)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = tar::GnuExtSparseHeader::new();
            // These blocks are not counted in the entry's size.
            read_exact(self.reader, block.as_mut_bytes())?;
            block.sparse().iter().try_for_each(&mut push)?;
            more = block.is_extended();
        }
        Ok(pairs)
    }

    /// The map of format 1.0: decimal lines in front of the data, filled up to a block.
    fn leading_pairs(&mut self, path: &Shown) -> Result<Vec<u64>, TarError> {
        let bad = || field(path, "map of a sparse file");
        let mut consumed = 0;
        let mut next = || -> Result<u64, TarError> {
            let mut digits = Vec::new();
            loop {
                let mut byte = [0];
                let read = self.data().read(&mut byte).map_err(TarError::Read)?;
                consumed += read;
                match byte[0] {
                    _ if read == 0 || digits.len() > 20 => return Err(bad()),
                    b'\n' => return number(&digits).ok_or_else(bad),
                    digit => digits.push(digit),
                }
            }
        };
        let count = next()?;
        if count > MAX_SEGMENTS as u64 {
            return Err(TarError::TooLong {
                path: path.clone(),
                field: "map of a sparse file",
            });
        }
        let pairs = (0..2 * count).map(|_| next()).collect::<Result<_, _>>()?;
        let fill = consumed.next_multiple_of(BLOCK) - consumed;
        let mut block = [0; BLOCK];
        read_exact(&mut self.data(), &mut block[..fill])?;
        Ok(pairs)
    }

    /// The next header; `None` at a block of zeros, the end.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        read_exact(self.reader, block)?;
        if block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let sum = |value: fn(u8) -> i64| -> i64 {
            let field = 148..156;
            let bytes = block.iter().enumerate();
            bytes
                .map(|(at, &byte)| value(if field.contains(&at) { b' ' } else { byte }))
                .sum()
        };
        // Old archivers added up signed bytes.
        let sums = [sum(i64::from), sum(|byte| i64::from(byte.cast_signed()))];
        let stated = i64::from(header.cksum().map_err(|_| TarError::Checksum)?);
        sums.contains(&stated).then_some(Some(header)).ok_or(TarError::Checksum)
    }

    /// An entry with so many bytes begins.
    fn begin(&mut self, size: u64) {
        self.left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    /// Skips what was not read of the entry.
    fn skip(&mut self) -> Result<(), TarError> {
        for left in [std::mem::take(&mut self.left), std::mem::take(&mut self.padding)] {
            let skipped = io::copy(&mut self.reader.by_ref().take(left), &mut io::sink());
            if skipped.map_err(TarError::Read)? != left {
                return Err(TarError::Truncated);
            }
        }
        Ok(())
    }

    /// The bytes of a header that adds to `before` others.
    fn extended_header(&mut self, size: u64, before: usize, path: &Shown) -> Result<Vec<u8>, TarError> {
        let length = usize::try_from(size).ok();
        let length = length.filter(|length| length.saturating_add(before) <= MAX_EXTENDED);
        let length = length.ok_or_else(|| TarError::TooLong {
            path: path.clone(),
            field: "extended header",
        })?;
        self.begin(size);
        let mut bytes = vec![0; length];
        read_exact(&mut self.data(), &mut bytes)?;
        Ok(bytes)
    }

    /// A name that did not fit into a header, without its NUL.
    fn long_field(&mut self, size: u64, path: &Shown) -> Result<Vec<u8>, TarError> {
        let mut name = self.extended_header(size, 0, path)?;
        if let Some(nul) = name.iter().position(|&byte| byte == 0) {
            name.truncate(nul);
        }
        Ok(name)
    }
}

/// The bytes of one entry.
struct Data<'a, R> {
    reader: &'a mut R,
    left: &'a mut u64,
}

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(*self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.reader.read(&mut buffer[..len])?;
        *self.left -= read as u64;
        Ok(read)
    }
}

fn attributes(header: &Header, records: &Records, path: &Shown) -> Result<Attributes, TarError> {
    let old = header.as_old();
    // Some archivers leave a field out that would be zero.
    let is_blank = |bytes: &[u8]| bytes.iter().all(|byte| matches!(byte, 0 | b' '));
    let id = |key: &'static str, bytes: &[u8], number: io::Result<u64>| {
        let of_header = if is_blank(bytes) { Some(0) } else { number.ok() };
        let of_records = records.number(key).map_err(|Malformed| field(path, key))?;
        let id = of_records.or(of_header).and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| field(path, key))
    };
    let of_header = || header.mtime().ok().and_then(|mtime| i64::try_from(mtime).ok());
    let mtime = records.time("mtime").map_err(|Malformed| field(path, "mtime"))?;
    let mtime = mtime.unwrap_or_else(|| (of_header().unwrap_or_default(), 0));
    let mode = match is_blank(&old.mode) {
        true => 0,
        false => header.mode().map_err(|_| field(path, "mode"))? & 0o7777,
    };
    let mut xattrs = BTreeMap::new();
    for (name, value) in records.with_prefix("SCHILY.xattr.").filter(|(name, _)| is_kept(name)) {
        if name.len() > 255 || name.contains(&0) || value.len() > MAX_XATTR {
            return Err(TarError::TooLong {
                path: path.clone(),
                field: "extended attribute",
            });
        }
        xattrs.insert(name.into(), value.into());
    }
    Ok(Attributes {
        mode: u16::try_from(mode).expect("these are twelve bits"),
        uid: id("uid", &old.uid, header.uid())?,
        gid: id("gid", &old.gid, header.gid())?,
        mtime: mtime.0,
        mtime_nsec: mtime.1,
        xattrs,
    })
}

/// Whether an extended attribute goes into the image: what a guest's file system knows, but for those by which an
/// overlay would take the file for something else.
pub(crate) fn is_kept(name: &[u8]) -> bool {
    let known = [b"user.".as_slice(), b"trusted.", b"security."]
        .iter()
        .any(|prefix| name.starts_with(prefix));
    let overlay = [b"trusted.overlay.".as_slice(), b"user.overlay."]
        .iter()
        .any(|prefix| name.starts_with(prefix));
    let acl = name == b"system.posix_acl_access" || name == b"system.posix_acl_default";
    (known && !overlay) || acl
}

/// Offsets and sizes as segments, if they follow each other in a file of `size` bytes and have `stored` bytes in all.
fn segments(pairs: &[u64], size: u64, stored: u64) -> Option<Vec<Segment>> {
    let (pairs, rest) = pairs.as_chunks::<2>();
    let (mut end, mut total) = (0_u64, 0_u64);
    let mut segments = Vec::with_capacity(pairs.len());
    for &[offset, len] in pairs {
        if offset < end {
            return None;
        }
        end = offset.checked_add(len)?;
        total = total.checked_add(len)?;
        segments.push(Segment { offset, len });
    }
    (rest.is_empty() && end <= size && total == stored).then_some(segments)
}

fn field(path: &Shown, field: &'static str) -> TarError {
    TarError::Field {
        path: path.clone(),
        field,
    }
}

fn read_exact(reader: &mut impl Read, bytes: &mut [u8]) -> Result<(), TarError> {
    reader.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => TarError::Truncated,
        _ => TarError::Read(error),
    })
}
