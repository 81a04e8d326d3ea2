//! The VM of a sandbox, by the VMM library.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use msb_vmm::{Console, DiskConfig, Initramfs, Snapshot, Vm, VmConfig, VmExit, VsockConfig};

use msb_protocol::identity::{IMAGE_SERIAL, TOOLS_SERIAL, WRITABLE_SERIAL};

use super::outcome::VmEnd;
use crate::sandbox::spec::SandboxSpec;

/// The guest's own context id. Any but 0 to 2 does (vsock(7)): each VM has a vsock device to itself.
const GUEST_CID: u32 = 3;

/// Where things of the VM are.
#[derive(Clone, Copy, Debug)]
pub(super) struct VmFiles<'a> {
    /// Guest kernel.
    pub(super) kernel: &'a Path,
    /// Whether all guests shall have its code from this file.
    pub(super) share_code: bool,
    /// Archives of the shared image.
    pub(super) initramfs: &'a [PathBuf],
    /// What the guest has in memory that it shares with others.
    pub(super) rom: Option<&'a Path>,
    /// Disk with the image's tools.
    pub(super) tools: &'a Path,
    /// The image's file system and what is written on top of it.
    pub(super) root: Option<(&'a Path, &'a Path)>,
    /// The vsock device's socket.
    pub(super) vsock: &'a Path,
}

/// What a saved VM goes on from.
#[derive(Debug)]
pub(super) struct SavedFiles {
    /// As [`Snapshot::to_bytes`] gave it.
    pub(super) state: File,
    /// The guest's memory, which is not written to.
    pub(super) memory: File,
}

/// Reads a file from its start, whatever others do who share its position.
struct FromStart<'a> {
    file: &'a File,
    position: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

/// The VM as the library wants it described.
pub(super) fn config(spec: &SandboxSpec, files: VmFiles<'_>, identity: Vec<u8>, console: Console) -> VmConfig {
    let disk = |disk: &crate::sandbox::spec::Disk| DiskConfig {
        path: disk.path.clone(),
        read_only: disk.read_only,
        serial: String::new(),
    };
    // Behind the user's disks, whose names in the guest follow from their order.
    let tools = DiskConfig {
        path: files.tools.into(),
        read_only: true,
        serial: TOOLS_SERIAL.into(),
    };
    let root = files.root.map(|(image, writable)| {
        let image = DiskConfig {
            path: image.into(),
            read_only: true,
            serial: IMAGE_SERIAL.into(),
        };
        let writable = DiskConfig {
            path: writable.into(),
            read_only: false,
            serial: WRITABLE_SERIAL.into(),
        };
        [image, writable]
    });
    let own = root.into_iter().flatten().chain([tools]);
    let shared = files.initramfs.iter().cloned().map(Initramfs::File);
    VmConfig {
        vcpus: spec.cpus,
        memory_mib: spec.memory.mib,
        kernel: files.kernel.into(),
        share_code: files.share_code,
        initramfs: shared.chain([Initramfs::Bytes(identity)]).collect(),
        rom: files.rom.map(Path::to_owned),
        cmdline: spec.cmdline.clone(),
        console,
        vsock: Some(VsockConfig::new(GUEST_CID, files.vsock)),
        disks: spec.disks.iter().map(disk).chain(own).collect(),
        file_systems: Vec::new(),
    }
}

/// Sets the VM up, from its kernel or from where it was saved.
///
/// # Errors
/// In one line.
pub(super) fn build(config: &VmConfig, saved: Option<&SavedFiles>) -> Result<Vm, String> {
    let one_line = |error: &(dyn std::error::Error + 'static)| crate::report::one_line(error);
    let Some(SavedFiles { state, memory }) = saved else {
        return Vm::build(config).map_err(|error| one_line(&error));
    };
    let snapshot = Snapshot::read(FromStart {
        file: state,
        position: 0,
    })
    .map_err(|error| one_line(&error))?;
    let memory = memory.try_clone().map_err(|error| one_line(&error))?;
    let mut config = config.clone();
    config.rom = config.rom.filter(|rom| is_saved(rom, &memory, config.memory_mib));
    Vm::restore(&config, &snapshot, memory).map_err(|error| one_line(&error))
}

/// Whether the programs in the file `rom` are those behind `memory_mib` MiB of saved memory: their first page tells
/// (`msb_image::cramfs`). The programs of another msb are with the snapshot.
fn is_saved(rom: &Path, memory: &File, memory_mib: u32) -> bool {
    let page = |file: &File, offset| {
        let mut page = [0; 4096];
        file.read_exact_at(&mut page, offset).map(|()| page)
    };
    let saved = page(memory, u64::from(memory_mib) << 20);
    let present = File::open(rom).and_then(|rom| page(&rom, 0));
    matches!((saved, present), (Ok(saved), Ok(present)) if saved == present)
}

/// The VM's end, in msb's words.
pub(super) fn end(exit: VmExit) -> VmEnd {
    match exit {
        VmExit::GuestReset => VmEnd::Reset,
        VmExit::Stopped => VmEnd::Stopped,
        VmExit::Failed(failure) => VmEnd::Failed(failure.to_string()),
    }
}
