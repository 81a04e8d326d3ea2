//! Guest memory.

use rustix::system::sysinfo;
use vm_memory::{GuestAddress, GuestMemoryMmap, mmap::FromRangesError};

use crate::arch::layout;

/// The memory of one guest: cloning shares it.
pub type GuestMemory = GuestMemoryMmap<()>;

/// The least memory a guest can have, in MiB: below it Linux does not reach its first program.
pub const MIN_MIB: u32 = 32;

/// Why guest memory cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Below [`MIN_MIB`].
    #[error("{0} MiB of memory are too few for a guest: give it at least {MIN_MIB} MiB")]
    TooSmall(u32),
    /// More than the host has.
    #[error("{asked} MiB of memory are more than the host's {host} MiB: ask for less")]
    LargerThanHost {
        /// MiB asked for.
        asked: u32,
        /// MiB of the host.
        host: u64,
    },
    /// The host refused the mapping.
    #[error("cannot map {mib} MiB of guest memory")]
    Map {
        /// MiB asked for.
        mib: u32,
        /// What the host answered.
        #[source]
        source: FromRangesError,
    },
}

/// Maps `mib` MiB of zeroed memory, private to this process and touched lazily, around the device hole.
///
/// # Errors
/// When the size makes no sense on this host, or the host refuses it.
pub fn allocate(mib: u32) -> Result<GuestMemory, MemoryError> {
    if mib < MIN_MIB {
        return Err(MemoryError::TooSmall(mib));
    }
    let info = sysinfo();
    let host = (info.totalram as u64 * u64::from(info.mem_unit)) >> 20;
    if u64::from(mib) > host {
        return Err(MemoryError::LargerThanHost { asked: mib, host });
    }
    GuestMemory::from_ranges(&ranges(mib)).map_err(|source| MemoryError::Map { mib, source })
}

fn ranges(mib: u32) -> Vec<(GuestAddress, usize)> {
    let bytes = usize::try_from(mib).expect("usize holds u32 on x86-64") << 20;
    let low = bytes.min(usize::try_from(layout::DEVICE_HOLE).expect("usize is 64 bits on x86-64"));
    let mut ranges = vec![(GuestAddress(0), low)];
    if bytes > low {
        ranges.push((GuestAddress(layout::AFTER_HOLE), bytes - low));
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_reaches_the_device_hole_continues_behind_it() {
        assert_eq!(ranges(512), [(GuestAddress(0), 512 << 20)]);
        assert_eq!(
            ranges(5120),
            [(GuestAddress(0), 3 << 30), (GuestAddress(4 << 30), 2 << 30)]
        );
    }

    #[test]
    fn a_size_without_sense_is_refused_with_both_numbers() {
        assert!(matches!(allocate(MIN_MIB - 1), Err(MemoryError::TooSmall(_))));
        let refused = allocate(u32::MAX).unwrap_err();
        assert!(matches!(refused, MemoryError::LargerThanHost { asked: u32::MAX, .. }));
    }
}
