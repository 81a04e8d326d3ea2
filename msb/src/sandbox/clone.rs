//! Copies of files that share what they have in common, where the file system can do that.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{SeekFrom, ioctl_ficlone, seek};
use rustix::io::Errno;

/// Bytes copied at once.
const CHUNK: usize = 1 << 20;

/// Makes the empty file `to` the same as `from`: by sharing its blocks until one of them is written to, else by copying
/// what is no hole.
///
/// # Errors
/// When the disk is full, for one.
pub(crate) fn clone(from: &File, to: &File) -> io::Result<()> {
    match ioctl_ficlone(to, from) {
        Ok(()) => Ok(()),
        // Whatever keeps the file system from it, copying shows whether it can be done at all.
        Err(_) => copy(from, to),
    }
}

fn copy(from: &File, to: &File) -> io::Result<()> {
    // The end is the size of a block device too.
    let size = seek(from, SeekFrom::End(0))?;
    to.set_len(size)?;
    let mut buffer = vec![0; CHUNK];
    let mut position = 0;
    while position < size {
        let data = match seek(from, SeekFrom::Data(position)) {
            Err(Errno::NXIO) => return Ok(()),
            // It cannot tell holes from data.
            Err(Errno::INVAL) => position,
            found => found?,
        };
        let end = seek(from, SeekFrom::Hole(data)).unwrap_or(size);
        copy_range(from, to, data, end, &mut buffer)?;
        position = end.max(data + 1);
    }
    Ok(())
}

fn copy_range(from: &File, to: &File, mut position: u64, end: u64, buffer: &mut [u8]) -> io::Result<()> {
    while position < end {
        let len = usize::try_from(end - position).map_or(buffer.len(), |left| left.min(buffer.len()));
        from.read_exact_at(&mut buffer[..len], position)?;
        to.write_all_at(&buffer[..len], position)?;
        position += len as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_copy_has_the_same_bytes_and_the_same_holes() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let size = 64 << 20;
        from.set_len(size).unwrap();
        for (byte, position) in [(1, 0), (2, 5 << 20), (3, size - 1)] {
            from.write_all_at(&[byte], position).unwrap();
        }
        copy(&from, &to).unwrap();
        let metadata = to.metadata().unwrap();
        assert_eq!(metadata.len(), size);
        assert!(metadata.blocks() * 512 < 16 << 20, "{}", metadata.blocks());
        for (byte, position) in [(1, 0), (2, 5 << 20), (3, size - 1), (0, 7 << 20)] {
            let mut read = [9];
            to.read_exact_at(&mut read, position).unwrap();
            assert_eq!(read, [byte]);
        }
    }
}
