//! One request: header, data, status (virtio 1.2, section 5.2.6).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
};
use virtio_queue::DescriptorChain;

use super::disk::Disk;
use super::scatter::{Scatter, Spare};
use crate::memory::GuestMemory;

/// Bytes of `type`, `reserved` and `sector`.
const HEADER: usize = 16;

/// Serves requests, one after the other, without allocating for each.
#[derive(Debug, Default)]
pub(super) struct Requests {
    readable: Spare,
    writable: Spare,
}

impl Requests {
    /// Does what `chain` asks for; returns how many bytes were written to it. A chain without room for a status is
    /// ignored.
    pub(super) fn serve(&mut self, disk: &Disk, memory: &GuestMemory, chain: DescriptorChain<&GuestMemory>) -> u32 {
        let from_driver = Scatter::of_chain(memory, chain.clone(), false, &mut self.readable);
        let to_driver = Scatter::of_chain(memory, chain, true, &mut self.writable);
        let (Some(mut from_driver), Some(mut to_driver)) = (from_driver, to_driver) else {
            return 0;
        };
        let Some(status) = to_driver.take_last_byte() else {
            return 0;
        };
        let data = to_driver.len();
        let result = perform(disk, &mut from_driver, &mut to_driver);
        status.copy_from(&[result.to_le_bytes()[0]]);
        from_driver.recycle(&mut self.readable);
        to_driver.recycle(&mut self.writable);
        let written = if result == VIRTIO_BLK_S_OK { data + 1 } else { 1 };
        u32::try_from(written).unwrap_or(u32::MAX)
    }
}

fn perform(disk: &Disk, from_driver: &mut Scatter<'_>, to_driver: &mut Scatter<'_>) -> u32 {
    let Some(header) = from_driver.take_front::<HEADER>() else {
        return VIRTIO_BLK_S_IOERR;
    };
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
    let sector = u64::from_le_bytes(sector);
    let result = match u32::from_le_bytes([t0, t1, t2, t3]) {
        VIRTIO_BLK_T_IN => disk.read(sector, to_driver),
        VIRTIO_BLK_T_OUT => disk.write(sector, from_driver),
        VIRTIO_BLK_T_FLUSH => disk.flush(),
        VIRTIO_BLK_T_GET_ID => {
            to_driver.copy_from(disk.serial());
            Ok(())
        }
        _ => return VIRTIO_BLK_S_UNSUPP,
    };
    if result.is_ok() {
        VIRTIO_BLK_S_OK
    } else {
        VIRTIO_BLK_S_IOERR
    }
}
