//! What a VM is made of.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use crate::devices::virtio::vsock::VsockConfig;

/// Everything that [`crate::Vm::build`] needs.
#[derive(Clone, Debug)]
pub struct VmConfig {
    /// Number of vCPUs, 1 to [`crate::arch::layout::MAX_VCPUS`].
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// An uncompressed ELF kernel (`vmlinux`).
    pub kernel: PathBuf,
    /// Whether the kernel's code is mapped from its file instead of being copied, and so shared by all VMs that do the same:
    /// a segment that is executable, not writable, and in whole huge pages, in the file as in memory. It wants a file in
    /// memory (tmpfs), in huge pages, which nobody changes or shortens meanwhile. A kernel without such a segment is copied.
    pub share_code: bool,
    /// Archives for the initial root file system; later ones add to and replace files of earlier ones.
    pub initramfs: Vec<Initramfs>,
    /// What the guest has in its physical memory from [`crate::arch::layout::ROM`] on, read-only: a file of at most
    /// [`crate::arch::layout::ROM_MAX`] bytes, a multiple of 4096, which nobody shortens meanwhile. All VMs with the same
    /// file share its pages. The kernel is told of it as the memory device `rom` (`CONFIG_MTD_PHRAM`).
    pub rom: Option<PathBuf>,
    /// Appended to the kernel command line.
    pub cmdline: String,
    /// Where the guest's serial console goes.
    pub console: Console,
    /// The vsock device, if the guest shall have one.
    pub vsock: Option<VsockConfig>,
    /// Disks, in the order of `/dev/vda`, `/dev/vdb`, ….
    pub disks: Vec<DiskConfig>,
    /// File systems of the host. A VM with any can be paused and not saved.
    pub file_systems: Vec<FileSystemConfig>,
}

/// One cpio archive (newc, plain or gzip).
#[derive(Clone, Debug)]
pub enum Initramfs {
    /// Read from a file.
    File(PathBuf),
    /// Given in memory.
    Bytes(Vec<u8>),
}

/// Where a serial console goes.
#[derive(Clone, Debug)]
pub enum Console {
    /// To a file.
    Log(ConsoleLog),
    /// To a descriptor, a line of at most 1024 bytes a write. It should not block: what it does not take is dropped.
    Stream(Arc<OwnedFd>),
}

/// A bounded log of what the guest writes to its serial console.
#[derive(Clone, Debug)]
pub struct ConsoleLog {
    /// The file; when it is full it becomes `<path>.1` and a new one is begun.
    pub path: PathBuf,
    /// The most that both files hold together, in bytes.
    pub max_bytes: u64,
}

/// A virtio-block device.
#[derive(Clone, Debug)]
pub struct DiskConfig {
    /// A raw image or block device.
    pub path: PathBuf,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// What the guest reads as `/sys/block/*/serial`, to know the disk by; the first 20 bytes of it.
    pub serial: String,
}

/// A virtio-fs device.
#[derive(Clone, Debug)]
pub struct FileSystemConfig {
    /// What the guest mounts it by, 1 to 36 bytes.
    pub tag: String,
    /// A connected socket of type `SOCK_SEQPACKET`, whose other end answers FUSE requests (linux/fuse.h), one a message.
    pub socket: Arc<OwnedFd>,
}
