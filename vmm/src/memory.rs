//! Guest memory.

mod code;
mod image;
mod rom;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::ptr::{self, NonNull};

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use rustix::system::sysinfo;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::arch::kernel_code::KernelCode;
use crate::arch::layout;

pub(crate) use rom::Rom;

/// The memory of one guest: cloning shares it.
pub type GuestMemory = GuestMemoryMmap<()>;

/// The least memory a guest can have, in MiB: below it Linux does not reach its first program.
pub const MIN_MIB: u32 = 32;

/// Bytes of a huge page. Where guest-physical and host address agree modulo this, KVM can map that much with one entry,
/// and a guest that touches memory for the first time leaves for the host 512 times less often.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

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
    /// A saved memory has another size than it shall have.
    #[error("the saved memory has {saved} bytes instead of {expected}: it was cut off, or belongs to another snapshot")]
    ImageSize {
        /// Bytes that it has.
        saved: u64,
        /// Bytes of the guest's memory.
        expected: u64,
    },
    /// Nothing that a guest could be given as a ROM.
    #[error(
        "a ROM of {0} bytes is not possible: its file needs a multiple of 4096 bytes, at most {max}",
        max = layout::ROM_MAX
    )]
    RomSize(u64),
    /// The host refused to map the kernel's code.
    #[error("cannot map the kernel's code")]
    KernelCode(#[source] io::Error),
    /// The host refused to map the ROM.
    #[error("cannot map the guest's ROM")]
    Rom(#[source] io::Error),
    /// The host refused the mapping.
    #[error("cannot map {mib} MiB of guest memory")]
    Map {
        /// MiB asked for.
        mib: u32,
        /// What the host answered.
        #[source]
        source: io::Error,
    },
}

/// The mappings behind a [`GuestMemory`]: what its clones refer to is gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Mappings {
    mappings: Vec<Mapping>,
    rom: Option<Rom>,
    /// The kernel's code, if that is mapped from the kernel's file.
    code: Option<KernelCode>,
    /// Where the memory came from that the guest has not written to since.
    base: Option<File>,
    /// The kernel's account of this process's pages, opened while it may open files; without it, all count as used.
    pagemap: Option<File>,
}

#[derive(Debug)]
struct Mapping {
    address: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread.
unsafe impl Send for Mapping {}
// SAFETY: nothing is done through a shared reference.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this value's own; whoever used it is gone (see `Mappings`).
        let _ = unsafe { munmap(self.address.as_ptr().cast(), self.len) };
    }
}

/// Maps `mib` MiB of memory, zeroed, private to this process and touched lazily, around the device hole; and `rom`.
///
/// The caller keeps the mappings until no vCPU and no device can use the memory any more.
///
/// # Errors
/// When a size makes no sense on this host, or the host refuses it.
pub(crate) fn allocate(mib: u32, rom: Option<&File>) -> Result<(GuestMemory, Mappings), MemoryError> {
    map(mib, rom.map(Rom::of_file).transpose()?, None)
}

/// As [`allocate`], with the contents that `image` has, of the memory and of a ROM of `rom_len` bytes; with `rom`, which has
/// the same contents, that is mapped instead.
///
/// # Errors
/// As there, and when the image or the ROM is none of this size.
pub(crate) fn restore(
    mib: u32,
    rom_len: u64,
    image: File,
    rom: Option<&File>,
) -> Result<(GuestMemory, Mappings), MemoryError> {
    let rom_at = u64::from(mib) << 20;
    check_image(&image, mib, rom_at.saturating_add(rom_len))?;
    let rom = match rom {
        Some(file) => Some(Rom::of_file(file)?),
        None if rom_len > 0 => Some(Rom::of_part(&image, rom_at, rom_len)?),
        None => None,
    };
    match rom.as_ref().map_or(0, Rom::len) {
        len if len == rom_len => map(mib, rom, Some(image)),
        len => Err(MemoryError::RomSize(len)),
    }
}

fn map(mib: u32, rom: Option<Rom>, base: Option<File>) -> Result<(GuestMemory, Mappings), MemoryError> {
    check_size(mib)?;
    let failed = |source| MemoryError::Map { mib, source };
    let mut mappings = Mappings {
        mappings: Vec::new(),
        rom,
        code: None,
        base,
        pagemap: File::open("/proc/self/pagemap").ok(),
    };
    let mut regions = Vec::new();
    let mut offset = 0;
    for (base, len) in ranges(mib) {
        let mapping = Mapping::new(len).map_err(failed)?;
        if let Some(base) = &mappings.base {
            mapping.copy_on_write(0..len, base, offset).map_err(failed)?;
        }
        offset += len as u64;
        // SAFETY: the pointer is that of a mapping of `len` bytes, which the caller keeps.
        let builder = unsafe { MmapRegionBuilder::<()>::new(len).with_raw_mmap_pointer(mapping.address.as_ptr()) };
        let region = builder.build().map_err(|error| failed(io::Error::other(error)))?;
        mappings.mappings.push(mapping);
        regions.push(GuestRegionMmap::new(region, base).ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?);
    }
    let memory = GuestMemory::from_regions(regions).map_err(|error| failed(io::Error::other(error)))?;
    Ok((memory, mappings))
}

impl Mappings {
    /// The ROM, if the guest has one.
    pub(crate) fn rom(&self) -> Option<&Rom> {
        self.rom.as_ref()
    }
}

impl Mapping {
    /// Maps `len` bytes at a multiple of [`HUGE_PAGE`].
    fn new(len: usize) -> io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address that the kernel chooses touches no other.
        let start = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                len + HUGE_PAGE,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
            )
        }?;
        let before = start.align_offset(HUGE_PAGE);
        let address = start.wrapping_byte_add(before);
        // SAFETY: the pieces before and behind are parts of the mapping above that nobody uses.
        unsafe { munmap(start, before) }.or_else(ignore_empty)?;
        // SAFETY: as above.
        unsafe { munmap(address.wrapping_byte_add(len), HUGE_PAGE - before) }.or_else(ignore_empty)?;
        let address = NonNull::new(address.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { address, len })
    }

    /// Puts what `base` has from `offset` on into `place`, bytes of the mapping: read when it is touched, copied when it is
    /// written to, and shared with all others that use the same file until then.
    fn copy_on_write(&self, place: Range<usize>, base: &File, offset: u64) -> io::Result<()> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        self.replace(place, base, offset, protection, MapFlags::PRIVATE | MapFlags::NORESERVE)
    }

    /// Maps what `base` has from `offset` on in `place`, bytes of the mapping.
    fn replace(
        &self,
        place: Range<usize>,
        base: &File,
        offset: u64,
        protection: ProtFlags,
        flags: MapFlags,
    ) -> io::Result<()> {
        assert!(place.start <= place.end && place.end <= self.len, "part of the mapping");
        let flags = flags | MapFlags::FIXED;
        let start = self.address.as_ptr().wrapping_add(place.start).cast();
        // SAFETY: what is replaced is part of this value's own mapping, and nobody uses it yet.
        unsafe { mmap(start, place.len(), protection, flags, base, offset) }?;
        Ok(())
    }
}

fn check_image(image: &File, mib: u32, expected: u64) -> Result<(), MemoryError> {
    let failed = |source| MemoryError::Map { mib, source };
    let saved = image.metadata().map_err(failed)?.len();
    if saved == expected {
        Ok(())
    } else {
        Err(MemoryError::ImageSize { saved, expected })
    }
}

/// A piece of no bytes is nothing to unmap.
fn ignore_empty(error: rustix::io::Errno) -> rustix::io::Result<()> {
    if error == rustix::io::Errno::INVAL {
        Ok(())
    } else {
        Err(error)
    }
}

fn check_size(mib: u32) -> Result<(), MemoryError> {
    if mib < MIN_MIB {
        return Err(MemoryError::TooSmall(mib));
    }
    let info = sysinfo();
    let host = (info.totalram as u64 * u64::from(info.mem_unit)) >> 20;
    if u64::from(mib) > host {
        return Err(MemoryError::LargerThanHost { asked: mib, host });
    }
    Ok(())
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
    use std::os::unix::fs::FileExt as _;

    use vm_memory::{Bytes, GuestMemoryBackend};

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
    fn guest_and_host_addresses_agree_modulo_a_huge_page() {
        let (memory, mappings) = allocate(MIN_MIB + 1, None).unwrap();
        let host = memory.get_host_address(GuestAddress(0)).unwrap();
        assert_eq!(host.align_offset(HUGE_PAGE), 0);
        memory
            .write_obj(7u8, GuestAddress((u64::from(MIN_MIB) << 20) + 0xf_ffff))
            .unwrap();
        drop((memory, mappings));
    }

    #[test]
    fn a_saved_memory_is_read_back_and_never_written_to() {
        let image = tempfile::tempfile().unwrap();
        let places = [0, 0x1234, (u64::from(MIN_MIB) << 20) - 1].map(GuestAddress);
        let (memory, mappings) = allocate(MIN_MIB, None).unwrap();
        places.iter().for_each(|place| memory.write_obj(7u8, *place).unwrap());
        mappings.save(&image).unwrap();
        let (copy, copy_mappings) = restore(MIN_MIB, 0, image.try_clone().unwrap(), None).unwrap();
        for place in places {
            assert_eq!(copy.read_obj::<u8>(place).unwrap(), 7);
        }
        copy.write_obj(8u8, places[0]).unwrap();
        copy.write_obj(9u8, GuestAddress(1 << 20)).unwrap();

        // A copy of the copy has what both wrote, and the first image is as it was.
        let second = tempfile::tempfile().unwrap();
        copy_mappings.save(&second).unwrap();
        let (last, _last_mappings) = restore(MIN_MIB, 0, second, None).unwrap();
        let seen = [places[0], places[1], GuestAddress(1 << 20)].map(|place| last.read_obj::<u8>(place).unwrap());
        assert_eq!(seen, [8, 7, 9]);
        let mut first = [0];
        std::os::unix::fs::FileExt::read_exact_at(&image, &mut first, 0).unwrap();
        assert_eq!(first, [7]);
    }

    #[test]
    fn a_saved_memory_is_as_small_as_what_the_guest_used() {
        let image = tempfile::tempfile().unwrap();
        let (memory, mappings) = allocate(MIN_MIB, None).unwrap();
        memory.write_obj(7u8, GuestAddress(5 << 20)).unwrap();
        mappings.save(&image).unwrap();
        let metadata = image.metadata().unwrap();
        assert_eq!(metadata.len(), u64::from(MIN_MIB) << 20);
        assert!(std::os::unix::fs::MetadataExt::blocks(&metadata) * 512 <= 1 << 20);
    }

    #[test]
    fn a_saved_memory_of_another_size_is_refused() {
        let image = tempfile::tempfile().unwrap();
        for saved in [0, (u64::from(MIN_MIB) << 20) - 1, (u64::from(MIN_MIB) << 20) + 4096] {
            image.set_len(saved).unwrap();
            let refused = restore(MIN_MIB, 0, image.try_clone().unwrap(), None);
            assert!(matches!(refused, Err(MemoryError::ImageSize { .. })), "{saved}");
        }
    }

    #[test]
    fn a_rom_is_saved_behind_the_memory_and_shared_by_who_restores_it() {
        let file = tempfile::tempfile().unwrap();
        let contents: Vec<u8> = (0..3 * 4096u32).map(|byte| byte.to_le_bytes()[1] + 1).collect();
        file.write_all_at(&contents, 0).unwrap();
        let (_memory, mappings) = allocate(MIN_MIB, Some(&file)).unwrap();
        let mut image = tempfile::tempfile().unwrap();
        // A second time from what the first wrote.
        for _ in 0..2 {
            let (_memory, restored) = restore_from(&mappings, &mut image);
            let rom = restored.rom().unwrap();
            // SAFETY: the ROM is mapped as long as `restored` lives, and nobody writes to its file.
            let bytes = unsafe { std::slice::from_raw_parts(rom.address(), contents.len()) };
            assert!(bytes == contents && rom.len() == 3 * 4096);
        }
        let with = |rom: &File| restore(MIN_MIB, 3 * 4096, image.try_clone().unwrap(), Some(rom));
        with(&file).unwrap();
        file.set_len(2 * 4096).unwrap();
        assert!(matches!(with(&file), Err(MemoryError::RomSize(8192))));
    }

    fn restore_from(mappings: &Mappings, image: &mut File) -> (GuestMemory, Mappings) {
        *image = tempfile::tempfile().unwrap();
        mappings.save(image).unwrap();
        restore(MIN_MIB, mappings.rom().unwrap().len(), image.try_clone().unwrap(), None).unwrap()
    }

    #[test]
    fn a_rom_of_no_pages_part_of_one_or_too_many_is_refused() {
        let file = tempfile::tempfile().unwrap();
        for len in [0, 4095, layout::ROM_MAX + 4096] {
            file.set_len(len).unwrap();
            assert!(matches!(allocate(MIN_MIB, Some(&file)), Err(MemoryError::RomSize(refused)) if refused == len));
        }
    }

    #[test]
    fn a_size_without_sense_is_refused_with_both_numbers() {
        assert!(matches!(allocate(MIN_MIB - 1, None), Err(MemoryError::TooSmall(_))));
        let refused = allocate(u32::MAX, None).unwrap_err();
        assert!(matches!(refused, MemoryError::LargerThanHost { asked: u32::MAX, .. }));
    }
}
