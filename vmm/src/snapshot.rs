//! The file in which a paused VM is written down, but for its memory and disks.
//!
//! ```text
//! "MSBSNAP\n"  version: u32  length: u32  SHA-256 of the contents  contents: JSON, `length` bytes
//! ```
//!
//! Numbers are little endian. Whoever reads one trusts none of it: it is bounded, and each value is checked where it is
//! used. The checksum finds damage, not malice: a snapshot is as trustworthy as who may write to its files.

use std::io::{self, Read};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::arch::cpuid;
use crate::arch::kernel_code::KernelCode;
use crate::devices::ioapic::IoapicState;
use crate::devices::legacy::SavedSerial;
use crate::devices::virtio::mmio::TransportState;
use crate::kvm::{KvmState, KvmVm};
use crate::vcpu::VcpuState;

const MAGIC: [u8; 8] = *b"MSBSNAP\n";
const HEADER: usize = 48;
/// The longest contents, in bytes: a vCPU takes some 30 KiB, and there are at most 64.
const MAX_LENGTH: usize = 16 << 20;

/// A paused VM, but for its memory and disks.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    pub(crate) host: HostFacts,
    pub(crate) memory_mib: u32,
    /// Bytes of the ROM, which is behind the memory in its file.
    pub(crate) rom_len: u64,
    /// The kernel's code, if the guest's memory has it as it is in the kernel's file.
    #[serde(default)]
    pub(crate) code: Option<KernelCode>,
    pub(crate) vcpus: Vec<VcpuState>,
    pub(crate) kvm: KvmState,
    pub(crate) ioapic: IoapicState,
    pub(crate) serial: SavedSerial,
    /// In the order of their windows.
    pub(crate) devices: Vec<TransportState>,
}

/// What a host must have in common with that on which a VM was saved.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostFacts {
    /// The kernel's release: the state is in KVM's terms.
    pub(crate) kernel: String,
    /// Vendor, family, model and stepping.
    pub(crate) cpu: String,
}

/// Why a file is no snapshot that this monitor can restore here.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It cannot be read.
    #[error("cannot read the saved state")]
    Read(#[source] io::Error),
    /// It does not begin as one.
    #[error("this is no saved state of a VM")]
    NotASnapshot,
    /// It has another version.
    #[error(
        "the saved state has the format version {0}, and this msb reads version {version}: save it again with this one",
        version = Snapshot::VERSION
    )]
    Version(u32),
    /// It is shorter or longer than it says, or than any is.
    #[error("the saved state was cut off or appended to: it says that it has {0} bytes")]
    Length(u32),
    /// It is not what was written.
    #[error("the saved state is damaged: its checksum does not fit")]
    Checksum,
    /// The contents are something else.
    #[error("the saved state is none of this version")]
    Contents(#[source] serde_json::Error),
    /// Another kernel runs here.
    #[error("it was saved on Linux {saved}, and this is Linux {present}: restore it there, or save it again here")]
    Kernel {
        /// The release then.
        saved: String,
        /// The release now.
        present: String,
    },
    /// This is another CPU.
    #[error("it was saved on the CPU {saved}, and this is {present}: restore it on the same kind of host")]
    Cpu {
        /// The CPU then.
        saved: String,
        /// The CPU now.
        present: String,
    },
    /// The CPU lacks something the guest may use.
    #[error(
        "the guest uses CPU features that this host does not offer (CPUID leaf {leaf:#x}): restore it on the same kind of host"
    )]
    Features {
        /// The leaf.
        leaf: u32,
    },
    /// The configuration is that of another VM.
    #[error("the saved VM has {saved} {what}, and is to be restored with {asked}")]
    Shape {
        /// What there is another number of.
        what: &'static str,
        /// The number then.
        saved: usize,
        /// The number now.
        asked: usize,
    },
}

impl Snapshot {
    /// The format. Changes with everything that a reader of another version would take for something else.
    pub const VERSION: u32 = 4;

    /// The contents of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let contents = serde_json::to_vec(self).expect("a snapshot has string keys and no failing serializers");
        let length = u32::try_from(contents.len()).expect("64 vCPUs take two MiB");
        let mut bytes = MAGIC.to_vec();
        bytes.extend(Self::VERSION.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend(Sha256::digest(&contents));
        bytes.extend(contents);
        bytes
    }

    /// Reads a file to its end.
    ///
    /// # Errors
    /// When it is none of [`Self::to_bytes`]. No more is read, or kept, than any has.
    pub fn read(source: impl Read) -> Result<Self, SnapshotError> {
        let mut bytes = Vec::new();
        let bound = HEADER + MAX_LENGTH + 1;
        source
            .take(bound as u64)
            .read_to_end(&mut bytes)
            .map_err(SnapshotError::Read)?;
        let Some((header, contents)) = bytes.split_first_chunk::<HEADER>() else {
            return Err(SnapshotError::NotASnapshot);
        };
        let number = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        if header[..8] != MAGIC {
            return Err(SnapshotError::NotASnapshot);
        }
        let (version, length) = (number(8), number(12));
        if version != Self::VERSION {
            return Err(SnapshotError::Version(version));
        }
        if usize::try_from(length) != Ok(contents.len()) || contents.len() > MAX_LENGTH {
            return Err(SnapshotError::Length(length));
        }
        if Sha256::digest(contents)[..] != header[16..] {
            return Err(SnapshotError::Checksum);
        }
        serde_json::from_slice(contents).map_err(SnapshotError::Contents)
    }

    /// Whether a VM of this shape can go on with what `vm` offers.
    pub(crate) fn check(&self, vm: &KvmVm, vcpus: u8, memory_mib: u32, devices: usize) -> Result<(), SnapshotError> {
        let numbers = [
            ("vCPUs", self.vcpus.len(), vcpus.into()),
            ("MiB of memory", to_usize(self.memory_mib), to_usize(memory_mib)),
            ("devices", self.devices.len(), devices),
        ];
        for (what, saved, asked) in numbers {
            if saved != asked {
                return Err(SnapshotError::Shape { what, saved, asked });
            }
        }
        self.host.check(HostFacts::of(vm))?;
        for vcpu in &self.vcpus {
            if let Some(leaf) = cpuid::lacking(&vm.cpuid, &vcpu.cpuid, vm.tsc_deadline) {
                return Err(SnapshotError::Features { leaf });
            }
        }
        Ok(())
    }
}

impl HostFacts {
    pub(crate) fn of(vm: &KvmVm) -> Self {
        Self {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cpu: cpuid::name(&vm.cpuid),
        }
    }

    fn check(&self, present: Self) -> Result<(), SnapshotError> {
        let saved = self.clone();
        if saved.cpu != present.cpu {
            return Err(SnapshotError::Cpu {
                saved: saved.cpu,
                present: present.cpu,
            });
        }
        if saved.kernel != present.kernel {
            return Err(SnapshotError::Kernel {
                saved: saved.kernel,
                present: present.kernel,
            });
        }
        Ok(())
    }
}

fn to_usize(number: u32) -> usize {
    usize::try_from(number).expect("usize holds u32 on x86-64")
}

#[cfg(test)]
mod tests;
