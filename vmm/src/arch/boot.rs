//! Puts kernel, initramfs, command line and boot parameters into guest memory.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::elf::Elf;
use linux_loader::loader::{KernelLoader, load_cmdline};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::kernel_code::PartlyMapped;
use super::layout;
use crate::config::Initramfs;
use crate::memory::GuestMemory;

const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
const LOADER_UNDEFINED: u8 = 0xff;
const KERNEL_ALIGNMENT: u32 = 0x100_0000;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
const PAGE: u64 = 4096;
/// The kernel finds the next archive at a 4-byte boundary (init/initramfs.c).
const ARCHIVE_ALIGNMENT: u64 = 4;

/// Why a guest cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file could not be opened or read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the host answered.
        #[source]
        source: io::Error,
    },
    /// The kernel is not an uncompressed ELF image, or ends too early.
    #[error("{path} is no kernel this monitor can boot: give an uncompressed 64-bit ELF vmlinux that is complete")]
    Kernel {
        /// The file.
        path: PathBuf,
        /// What the loader found.
        #[source]
        source: linux_loader::loader::Error,
    },
    /// Kernel and initramfs do not fit.
    #[error("kernel and initramfs need {needed} MiB, the guest has {available} MiB: give it more memory")]
    MemoryTooSmall {
        /// MiB that are needed at least.
        needed: u64,
        /// MiB of the guest's low memory.
        available: u64,
    },
    /// The command line is too long or not printable ASCII.
    #[error("the kernel command line is not acceptable ({0}): shorten or correct it")]
    Cmdline(String),
    /// A table could not be written to guest memory.
    #[error("cannot write boot tables to guest memory")]
    Tables(#[source] vm_memory::GuestMemoryError),
}

/// Loads the ELF kernel `file`, which was opened at `path`, but for the bytes `mapped` of it, which are in their place, and
/// returns its entry point and its end.
///
/// # Errors
/// [`LoadError::Kernel`] when it is no kernel, [`LoadError::MemoryTooSmall`] when it does not fit.
pub fn load_kernel(
    memory: &GuestMemory,
    file: &mut File,
    path: &std::path::Path,
    mapped: Range<u64>,
) -> Result<(GuestAddress, u64), LoadError> {
    let size = file
        .metadata()
        .map_err(|source| LoadError::Read {
            path: path.into(),
            source,
        })?
        .len();
    if layout::HIGH_MEMORY + size > low_memory_end(memory) {
        return Err(too_small(memory, layout::HIGH_MEMORY + size));
    }
    let mut rest = PartlyMapped::new(file, mapped);
    let loaded = Elf::load(memory, None, &mut rest, Some(GuestAddress(layout::HIGH_MEMORY))).map_err(|source| {
        LoadError::Kernel {
            path: path.into(),
            source,
        }
    })?;
    if loaded.kernel_end > low_memory_end(memory) {
        return Err(too_small(memory, loaded.kernel_end));
    }
    Ok((loaded.kernel_load, loaded.kernel_end))
}

/// Loads the archives, one behind the other, as high as low memory reaches; returns address and bytes.
///
/// # Errors
/// When an archive cannot be read, or reaches down into the kernel that ends at `kernel_end`.
pub fn load_initramfs(
    memory: &GuestMemory,
    archives: &[Initramfs],
    kernel_end: u64,
) -> Result<Option<(GuestAddress, u64)>, LoadError> {
    let mut opened = Vec::with_capacity(archives.len());
    let mut total = 0u64;
    for archive in archives {
        let source = ArchiveSource::open(archive)?;
        let offset = total.next_multiple_of(ARCHIVE_ALIGNMENT);
        total = offset + source.len();
        opened.push((offset, source));
    }
    if total == 0 {
        return Ok(None);
    }
    let end = low_memory_end(memory);
    let start = end
        .checked_sub(total)
        .map(|start| start & !(PAGE - 1))
        .filter(|start| *start >= kernel_end)
        .ok_or_else(|| too_small(memory, kernel_end + total))?;
    for (offset, source) in opened {
        source.copy_to(memory, GuestAddress(start + offset))?;
    }
    Ok(Some((GuestAddress(start), total)))
}

enum ArchiveSource<'a> {
    File { file: File, path: &'a PathBuf, len: u64 },
    Bytes(&'a [u8]),
}

impl<'a> ArchiveSource<'a> {
    fn open(archive: &'a Initramfs) -> Result<Self, LoadError> {
        match archive {
            Initramfs::Bytes(bytes) => Ok(Self::Bytes(bytes)),
            Initramfs::File(path) => {
                let failed = |source| LoadError::Read {
                    path: path.clone(),
                    source,
                };
                let file = File::open(path).map_err(failed)?;
                let len = file.metadata().map_err(failed)?.len();
                Ok(Self::File { file, path, len })
            }
        }
    }

    fn len(&self) -> u64 {
        match self {
            Self::File { len, .. } => *len,
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }

    fn copy_to(self, memory: &GuestMemory, address: GuestAddress) -> Result<(), LoadError> {
        match self {
            Self::Bytes(bytes) => memory.write_slice(bytes, address).map_err(LoadError::Tables),
            Self::File { mut file, path, len } => {
                let len = usize::try_from(len).expect("the archive fits guest memory");
                memory
                    .read_exact_volatile_from(address, &mut file, len)
                    .map_err(|source| LoadError::Read {
                        path: path.clone(),
                        source: io::Error::other(source),
                    })
            }
        }
    }
}

/// Writes the command line and the zero page.
///
/// # Errors
/// [`LoadError::Cmdline`] when `cmdline` is not one, [`LoadError::Tables`] when memory lacks its low pages.
pub fn write_boot_params(
    memory: &GuestMemory,
    cmdline: &str,
    initramfs: Option<(GuestAddress, u64)>,
) -> Result<(), LoadError> {
    let line = linux_loader::cmdline::Cmdline::try_from(cmdline, layout::CMDLINE_MAX)
        .map_err(|error| LoadError::Cmdline(error.to_string()))?;
    load_cmdline(memory, GuestAddress(layout::CMDLINE), &line)
        .map_err(|error| LoadError::Cmdline(error.to_string()))?;

    let mut params = boot_params::default();
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.kernel_alignment = KERNEL_ALIGNMENT;
    params.hdr.cmd_line_ptr = below_4g(layout::CMDLINE);
    params.hdr.cmdline_size = below_4g(cmdline.len() as u64 + 1);
    if let Some((address, len)) = initramfs {
        params.hdr.ramdisk_image = below_4g(address.0);
        params.hdr.ramdisk_size = below_4g(len);
    }
    let map = e820(memory);
    for (slot, entry) in params.e820_table.iter_mut().zip(&map) {
        *slot = *entry;
    }
    params.e820_entries = u8::try_from(map.len()).expect("a handful of ranges");
    LinuxBootConfigurator::write_bootparams(&BootParams::new(&params, GuestAddress(layout::ZERO_PAGE)), memory)
        .map_err(|error| LoadError::Cmdline(error.to_string()))
}

fn e820(memory: &GuestMemory) -> Vec<boot_e820_entry> {
    let entry = |addr, end, r#type| boot_e820_entry {
        addr,
        size: end - addr,
        r#type,
    };
    let mut map = vec![
        entry(0, layout::MPTABLE, E820_RAM),
        entry(layout::MPTABLE, layout::HIGH_MEMORY, E820_RESERVED),
        entry(layout::HIGH_MEMORY, low_memory_end(memory), E820_RAM),
    ];
    for region in memory.iter().skip(1) {
        let start = region.start_addr().0;
        map.push(entry(start, start + region.len(), E820_RAM));
    }
    map
}

fn low_memory_end(memory: &GuestMemory) -> u64 {
    memory
        .iter()
        .next()
        .map_or(0, |region| region.last_addr().raw_value() + 1)
}

fn too_small(memory: &GuestMemory, needed: u64) -> LoadError {
    LoadError::MemoryTooSmall {
        needed: needed.div_ceil(1 << 20),
        available: low_memory_end(memory) >> 20,
    }
}

/// Narrows an address or length of low memory, which ends below the device hole.
fn below_4g(value: u64) -> u32 {
    u32::try_from(value).expect("low memory ends below 4 GiB")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn memory(mib: usize) -> GuestMemory {
        GuestMemory::from_ranges(&[(GuestAddress(0), mib << 20)]).unwrap()
    }

    #[test]
    fn archives_follow_each_other_at_four_byte_boundaries_below_the_end_of_memory() {
        let memory = memory(16);
        let archives = [
            Initramfs::Bytes(b"first".to_vec()),
            Initramfs::Bytes(b"second".to_vec()),
        ];
        let (address, len) = load_initramfs(&memory, &archives, 0).unwrap().unwrap();
        assert_eq!(address.0 % PAGE, 0);
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        memory.read_slice(&mut bytes, address).unwrap();
        assert_eq!(bytes, b"first\0\0\0second");
    }

    #[test]
    fn an_archive_that_would_reach_the_kernel_is_refused() {
        let archives = [Initramfs::Bytes(vec![0; 2 << 20])];
        let refused = load_initramfs(&memory(16), &archives, 15 << 20).unwrap_err();
        assert!(matches!(
            refused,
            LoadError::MemoryTooSmall {
                needed: 17,
                available: 16
            }
        ));
    }

    #[test]
    fn what_is_no_elf_file_is_named_as_such() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[b'x'; 5000]).unwrap();
        let refused = load_kernel(&memory(16), &mut file.reopen().unwrap(), file.path(), 0..0).unwrap_err();
        assert!(matches!(refused, LoadError::Kernel { .. }));
        assert!(refused.to_string().contains("ELF"));
    }

    #[test]
    fn memory_above_the_hole_is_announced() {
        let memory =
            GuestMemory::from_ranges(&[(GuestAddress(0), 16 << 20), (GuestAddress(layout::AFTER_HOLE), 1 << 20)])
                .unwrap();
        let map = e820(&memory);
        let last = map.last().unwrap();
        assert_eq!(
            ({ last.addr }, { last.size }, { last.r#type }),
            (layout::AFTER_HOLE, 1 << 20, E820_RAM)
        );
    }

    #[test]
    fn a_command_line_that_is_too_long_is_refused() {
        let refused = write_boot_params(&memory(16), &"x".repeat(layout::CMDLINE_MAX), None);
        assert!(matches!(refused, Err(LoadError::Cmdline(_))));
    }
}
