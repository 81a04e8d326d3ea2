//! A driver with real queues in real guest memory, and real images.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
};
use virtio_bindings::virtio_ring::VRING_DESC_F_WRITE;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::memory::GuestMemory;

const HEADER: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;
const STATUS: u64 = 0x4_0000;
const NO_STATUS: u8 = 0xee;

struct Image {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

impl Image {
    fn of_sectors(sectors: u8) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let mut file = fs::File::create(&path).unwrap();
        for sector in 0..sectors {
            file.write_all(&[sector; 512]).unwrap();
        }
        Self {
            _directory: directory,
            path,
        }
    }

    fn open(&self, read_only: bool) -> Result<Disk, BlockError> {
        Disk::open(&DiskConfig {
            path: self.path.clone(),
            read_only,
            serial: "twenty bytes at most, not more".into(),
        })
    }
}

/// Sends one request of header, `data` segments and status byte; returns the status and the bytes reported as written.
fn request(
    disk: &Disk,
    memory: &GuestMemory,
    kind: u32,
    sector: u64,
    data: &[(u64, u32)],
    to_device: bool,
) -> (u8, u32) {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    memory.write_slice(&header, GuestAddress(HEADER)).unwrap();
    memory.write_obj(NO_STATUS, GuestAddress(STATUS)).unwrap();
    let write = u16::try_from(VRING_DESC_F_WRITE).unwrap();
    let data_flags = if to_device { 0 } else { write };
    let mut chain = vec![RawDescriptor::from(Descriptor::new(HEADER, 16, 0, 0))];
    chain.extend(
        data.iter()
            .map(|(address, len)| RawDescriptor::from(Descriptor::new(*address, *len, data_flags, 0))),
    );
    chain.push(RawDescriptor::from(Descriptor::new(STATUS, 1, write, 0)));
    let written = serve(disk, memory, &chain);
    (memory.read_obj(GuestAddress(STATUS)).unwrap(), written)
}

fn serve(disk: &Disk, memory: &GuestMemory, chain: &[RawDescriptor]) -> u32 {
    let queue = MockSplitQueue::new(memory, 16);
    let chain = queue.build_desc_chain(chain).unwrap();
    Requests::default().serve(disk, memory, chain)
}

fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap()
}

fn status(expected: u32) -> u8 {
    u8::try_from(expected).unwrap()
}

#[test]
fn what_is_written_is_read_back_across_scattered_segments() {
    let (image, memory) = (Image::of_sectors(8), memory());
    let disk = image.open(false).unwrap();
    let bytes: Vec<u8> = (0..1024u32).map(|value| value.to_le_bytes()[0]).collect();
    memory.write_slice(&bytes, GuestAddress(DATA)).unwrap();
    let (sent, _) = request(
        &disk,
        &memory,
        VIRTIO_BLK_T_OUT,
        3,
        &[(DATA, 100), (DATA + 100, 924)],
        true,
    );
    let (got, written) = request(
        &disk,
        &memory,
        VIRTIO_BLK_T_IN,
        3,
        &[(DATA + 0x4000, 1000), (DATA + 0x8000, 24)],
        false,
    );
    assert_eq!((sent, got), (status(VIRTIO_BLK_S_OK), status(VIRTIO_BLK_S_OK)));
    assert_eq!(written, 1025);
    let mut back = vec![0; 1024];
    memory
        .read_slice(&mut back[..1000], GuestAddress(DATA + 0x4000))
        .unwrap();
    memory
        .read_slice(&mut back[1000..], GuestAddress(DATA + 0x8000))
        .unwrap();
    assert_eq!(back, bytes);
    assert_eq!(fs::read(&image.path).unwrap()[3 * 512..5 * 512], bytes);
}

#[test]
fn a_request_beyond_the_end_or_of_half_a_sector_fails_and_changes_nothing() {
    let (image, memory) = (Image::of_sectors(4), memory());
    let disk = image.open(false).unwrap();
    let before = fs::read(&image.path).unwrap();
    for (sector, len) in [
        (4, 512),
        (3, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (0, 100),
        (0, 513),
    ] {
        for (kind, to_device) in [(VIRTIO_BLK_T_IN, false), (VIRTIO_BLK_T_OUT, true)] {
            let (result, written) = request(&disk, &memory, kind, sector, &[(DATA, len)], to_device);
            assert_eq!(
                (result, written),
                (status(VIRTIO_BLK_S_IOERR), 1),
                "sector {sector}, {len} bytes"
            );
        }
    }
    assert_eq!(fs::read(&image.path).unwrap(), before);
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let (image, memory) = (Image::of_sectors(4), memory());
    let disk = image.open(true).unwrap();
    let (result, _) = request(&disk, &memory, VIRTIO_BLK_T_OUT, 0, &[(DATA, 512)], true);
    assert_eq!(result, status(VIRTIO_BLK_S_IOERR));
}

#[test]
fn flush_and_serial_number_are_served_and_the_unknown_is_refused() {
    let (image, memory) = (Image::of_sectors(1), memory());
    let disk = image.open(false).unwrap();
    assert_eq!(
        request(&disk, &memory, VIRTIO_BLK_T_FLUSH, 0, &[], true).0,
        status(VIRTIO_BLK_S_OK)
    );
    assert_eq!(
        request(&disk, &memory, VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 20)], false).0,
        status(VIRTIO_BLK_S_OK)
    );
    let mut serial = [0; 21];
    memory.read_slice(&mut serial, GuestAddress(DATA)).unwrap();
    assert_eq!(&serial, b"twenty bytes at most\0");
    assert_eq!(request(&disk, &memory, 77, 0, &[], true).0, status(VIRTIO_BLK_S_UNSUPP));
}

#[test]
fn a_chain_that_is_no_request_is_returned_without_a_status() {
    let (image, memory) = (Image::of_sectors(1), memory());
    let disk = image.open(false).unwrap();
    let write = u16::try_from(VRING_DESC_F_WRITE).unwrap();
    let header = RawDescriptor::from(Descriptor::new(HEADER, 16, 0, 0));
    let outside = RawDescriptor::from(Descriptor::new(u64::MAX - 100, 512, write, 0));
    let empty = RawDescriptor::from(Descriptor::new(STATUS, 0, write, 0));
    assert_eq!(serve(&disk, &memory, &[header]), 0);
    assert_eq!(serve(&disk, &memory, &[header, outside]), 0);
    assert_eq!(serve(&disk, &memory, &[header, empty]), 0);
}

#[test]
fn a_short_header_is_an_error_of_the_request() {
    let (image, memory) = (Image::of_sectors(1), memory());
    let disk = image.open(false).unwrap();
    let write = u16::try_from(VRING_DESC_F_WRITE).unwrap();
    let short = RawDescriptor::from(Descriptor::new(HEADER, 15, 0, 0));
    let result = RawDescriptor::from(Descriptor::new(STATUS, 1, write, 0));
    assert_eq!(serve(&disk, &memory, &[short, result]), 1);
    assert_eq!(
        memory.read_obj::<u8>(GuestAddress(STATUS)).unwrap(),
        status(VIRTIO_BLK_S_IOERR)
    );
}

#[test]
fn an_image_has_one_writer_or_many_readers() {
    let image = Image::of_sectors(1);
    let writer = image.open(false).unwrap();
    assert!(matches!(image.open(false), Err(BlockError::InUse { .. })));
    assert!(matches!(image.open(true), Err(BlockError::InUse { .. })));
    drop(writer);
    let _reader = image.open(true).unwrap();
    assert!(image.open(true).is_ok());
}

#[test]
fn an_image_of_half_a_sector_is_refused_by_name() {
    let image = Image::of_sectors(1);
    fs::OpenOptions::new()
        .append(true)
        .open(&image.path)
        .unwrap()
        .write_all(b"x")
        .unwrap();
    let refused = image.open(false).unwrap_err();
    assert!(matches!(refused, BlockError::Size { size: 513, .. }));
    assert!(refused.to_string().contains(image.path.to_str().unwrap()));
}
