//! The image behind a block device.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::path::PathBuf;

use rustix::fs::{FlockOperation, flock};
use virtio_bindings::virtio_blk::VIRTIO_BLK_ID_BYTES;

use super::scatter::Scatter;
use crate::config::DiskConfig;

/// The unit of positions and sizes on a disk, in bytes.
pub(super) const SECTOR: u64 = 512;

/// Why an image cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// It cannot be opened.
    #[error("cannot open the disk image {path}")]
    Open {
        /// The image.
        path: PathBuf,
        /// What the host answered.
        #[source]
        source: io::Error,
    },
    /// Its size is no whole number of sectors.
    #[error("the disk image {path} has {size} bytes, no multiple of {SECTOR}: extend it with truncate(1)")]
    Size {
        /// The image.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// Another VM has it.
    #[error("the disk image {path} is in use by another VM: stop that one, or share the image read-only")]
    InUse {
        /// The image.
        path: PathBuf,
    },
}

/// An open image, locked against a second writer.
#[derive(Debug)]
pub(super) struct Disk {
    file: File,
    sectors: u64,
    read_only: bool,
    serial: Serial,
}

/// A serial number as the device gives it: shorter ones end with a zero.
pub(super) type Serial = [u8; VIRTIO_BLK_ID_BYTES as usize];

impl Disk {
    /// Opens `config.path`; writers exclude each other and readers, as long as all are monitors like this.
    pub(super) fn open(config: &DiskConfig) -> Result<Self, BlockError> {
        let path = || config.path.clone();
        let failed = |source| BlockError::Open { path: path(), source };
        let read_only = config.read_only;
        let mut file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(&config.path)
            .map_err(failed)?;
        let lock = if read_only {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        match flock(&file, lock) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(BlockError::InUse { path: path() }),
            Err(error) => return Err(failed(error.into())),
        }
        // The end is the size of a block device too, whose metadata says 0.
        let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if !size.is_multiple_of(SECTOR) {
            return Err(BlockError::Size { path: path(), size });
        }
        let mut serial = Serial::default();
        for (byte, given) in serial.iter_mut().zip(config.serial.bytes()) {
            *byte = given;
        }
        Ok(Self {
            file,
            sectors: size / SECTOR,
            read_only,
            serial,
        })
    }

    pub(super) fn sectors(&self) -> u64 {
        self.sectors
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.read_only
    }

    pub(super) fn serial(&self) -> &Serial {
        &self.serial
    }

    /// Reads sectors from `sector` on until `data` is full.
    pub(super) fn read(&self, sector: u64, data: &mut Scatter<'_>) -> io::Result<()> {
        let position = self.position(sector, data.len())?;
        data.read_at(&self.file, position)
    }

    /// Writes all of `data` from `sector` on.
    pub(super) fn write(&self, sector: u64, data: &mut Scatter<'_>) -> io::Result<()> {
        if self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let position = self.position(sector, data.len())?;
        data.write_at(&self.file, position)
    }

    /// Makes everything written so far durable.
    pub(super) fn flush(&self) -> io::Result<()> {
        if self.read_only { Ok(()) } else { self.file.sync_data() }
    }

    /// The byte position of `sector`, if `len` bytes from there on are whole sectors of this disk.
    fn position(&self, sector: u64, len: usize) -> io::Result<u64> {
        let len = len as u64;
        let fits =
            len.is_multiple_of(SECTOR) && sector.checked_add(len / SECTOR).is_some_and(|end| end <= self.sectors);
        if fits {
            Ok(sector * SECTOR)
        } else {
            Err(io::ErrorKind::InvalidInput.into())
        }
    }
}
