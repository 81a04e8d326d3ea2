//! The VM of a sandbox, by the VMM library.

use std::path::Path;

use msb_vmm::{Console, DiskConfig, Initramfs, Vm, VmConfig, VmExit, VsockConfig};

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
    /// Shared image.
    pub(super) initramfs: &'a Path,
    /// Disk with the image's tools.
    pub(super) tools: &'a Path,
    /// The image's file system and what is written on top of it.
    pub(super) root: Option<(&'a Path, &'a Path)>,
    /// The vsock device's socket.
    pub(super) vsock: &'a Path,
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
    VmConfig {
        vcpus: spec.cpus,
        memory_mib: spec.memory.mib,
        kernel: files.kernel.into(),
        initramfs: vec![Initramfs::File(files.initramfs.into()), Initramfs::Bytes(identity)],
        cmdline: spec.cmdline.clone(),
        console,
        vsock: Some(VsockConfig::new(GUEST_CID, files.vsock)),
        disks: spec.disks.iter().map(disk).chain(own).collect(),
    }
}

/// Sets the VM up.
///
/// # Errors
/// In one line.
pub(super) fn build(config: &VmConfig) -> Result<Vm, String> {
    Vm::build(config).map_err(|error| crate::report::one_line(&error))
}

/// The VM's end, in msb's words.
pub(super) fn end(exit: VmExit) -> VmEnd {
    match exit {
        VmExit::GuestReset => VmEnd::Reset,
        VmExit::Stopped => VmEnd::Stopped,
        VmExit::Failed(failure) => VmEnd::Failed(failure.to_string()),
    }
}
