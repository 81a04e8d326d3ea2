//! Archives that come in one piece after the other, and files made of them.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use super::{OpenOptions, SourceError};
use crate::limits::LimitError;

/// How much of a stream is looked at before it is taken, in bytes: the first block of anything, packed or not.
const BEGINNING: u64 = 256 << 10;

/// How much is moved at once, in bytes.
const CHUNK: usize = 256 << 10;

/// The bytes of an archive, as they come.
pub struct Stream(Box<dyn Read>);

impl Stream {
    pub(super) fn of(reader: impl Read + 'static) -> Self {
        Self(Box::new(reader))
    }

    /// Reads the beginning of a stream, and puts it back in front.
    pub(super) fn begin(mut reader: impl Read + 'static) -> io::Result<(Vec<u8>, Self)> {
        let mut beginning = Vec::new();
        reader.by_ref().take(BEGINNING).read_to_end(&mut beginning)?;
        let whole = io::Cursor::new(beginning.clone()).chain(reader);
        Ok((beginning, Self::of(whole)))
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream(..)")
    }
}

/// A temporary file with all of `reader`, zeros as holes. What unpacks to more than an image may have is refused.
pub(super) fn spooled(mut reader: impl Read, path: &Path, options: OpenOptions<'_>) -> Result<File, SourceError> {
    let mut file = tempfile::tempfile_in(options.scratch).map_err(SourceError::Copy)?;
    let most = options.limits.archive_bytes();
    let mut chunk = vec![0; CHUNK];
    let mut size = 0;
    loop {
        let read = match reader.read(&mut chunk) {
            Ok(0) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read.map_err(|source| SourceError::Read {
                path: path.into(),
                source,
            })?,
        };
        size += read as u64;
        if size > most {
            return Err(SourceError::Limit {
                path: path.into(),
                source: LimitError::Bytes(options.limits.bytes),
            });
        }
        let bytes = &chunk[..read];
        match bytes.iter().all(|byte| *byte == 0) {
            true => file.seek(SeekFrom::Start(size)).map(drop),
            false => file.write_all(bytes),
        }
        .map_err(SourceError::Copy)?;
    }
    file.set_len(size).map_err(SourceError::Copy)?;
    file.rewind().map_err(SourceError::Copy)?;
    Ok(file)
}
