//! The entries of a directory, from any place on.

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt as _;

use fuser::{INodeNo, ReplyDirectory};
use rustix::fs::{RawDir, SeekFrom, seek};

use crate::attributes::kind;
use crate::files::{Files, Result};

/// Bytes of entries asked of the host at once; never more than one answer can hold.
const BATCH: usize = 16 << 10;

impl Files {
    /// Adds the entries of the directory that is open as `handle`, from where `offset` says, as many as fit.
    pub(crate) fn list(&self, handle: u64, offset: u64, reply: &mut ReplyDirectory) -> Result<()> {
        let directory = self.handle(handle)?;
        seek(&directory, SeekFrom::Start(offset))?;
        let mut buffer = [MaybeUninit::uninit(); BATCH];
        let mut entries = RawDir::new(&directory, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            let is_full = reply.add(
                INodeNo(entry.ino()),
                entry.next_entry_cookie(),
                kind(entry.file_type()),
                name,
            );
            // The next request begins behind the last entry that was taken.
            if is_full || entries.is_buffer_empty() {
                break;
            }
        }
        Ok(())
    }
}
