//! What a sandbox is asked to be.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use msb_image::config::{RunConfig, StartCommand};
use msb_image::digest::Digest;
use msb_protocol::identity::SshFeatures;
use serde::{Deserialize, Serialize};

use super::deadline::{TimeLimit, Timeout, TimeoutEnd};
use super::volume::{self, VolumeError};
use crate::images::{ImageError, Images};
use crate::jail::Isolation;
use crate::jail::cgroup::Limits;
use crate::store::names::Name;

pub use super::volume::Volume;

/// The least memory a guest starts with: the kernel, the unpacked image and one session.
pub const MIN_MEMORY_MIB: u32 = 64;

/// The least disk a sandbox of an image has: ext4 with its journal.
pub const MIN_DISK_MIB: u32 = 16;

/// What a sandbox of an image may write when nothing else is said. The host's disk has only what is written.
pub const DEFAULT_DISK_SIZE: Memory = Memory { mib: 10 * 1024 };

/// The most virtual CPUs a guest may have.
pub const MAX_CPUS: u8 = 32;

/// MiB that a VM may use beyond its guest's memory and the kernel's tables for it: some twenty times what one needs.
const OVERHEAD_MIB: u32 = 128;

/// MiB more for each volume: its server, and what the kernel keeps of files that the guest knows.
const VOLUME_MIB: u32 = 64;

/// Threads that a VM may have beside one for each CPU and disk.
const SPARE_TASKS: u32 = 32;

/// What a sandbox is asked to be. Made with [`SandboxSpec::default`] and changed field by field.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxSpec {
    /// What to call it, and its host name; without one its id is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Virtual CPUs.
    pub cpus: u8,
    /// Memory of the guest.
    pub memory: Memory,
    /// Another guest kernel than the built-in one: an uncompressed ELF `vmlinux`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// What to add to the kernel's command line.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cmdline: String,
    /// The image whose files are the guest's; without one, those of the built-in image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<SandboxImage>,
    /// How much a sandbox of an image may write in addition to it.
    #[serde(default = "default_disk_size", skip_serializing_if = "is_default_disk_size")]
    pub disk_size: Memory,
    /// What runs in its background, in the place of the image's start command; an empty command is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<StartCommand>,
    /// Disks, in the order of the guest's `/dev/vda`, `/dev/vdb` and so on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
    /// Directories and files of the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// Environment of every session.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// What the user files it under: nothing to msb but to list by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// How much of the jail around the VM it insists on.
    #[serde(default)]
    pub isolation: Isolation,
    /// CPU time of the VM with its devices; without one, a CPU more than it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_limit: Option<CpuLimit>,
    /// What is read from each device that holds its disks in a second, and what is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_limit: Option<Memory>,
    /// What its SSH server offers.
    #[serde(default)]
    pub ssh: SshFeatures,
    /// How long each of its runs may take, from the start; without one, for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Timeout>,
    /// What ends it when its time is over.
    #[serde(default)]
    pub on_timeout: TimeoutEnd,
}

impl Default for SandboxSpec {
    fn default() -> Self {
        Self {
            name: None,
            cpus: 1,
            memory: Memory { mib: 256 },
            kernel: None,
            cmdline: String::new(),
            image: None,
            disk_size: DEFAULT_DISK_SIZE,
            start: None,
            disks: Vec::new(),
            volumes: Vec::new(),
            env: BTreeMap::new(),
            labels: BTreeMap::new(),
            isolation: Isolation::default(),
            cpu_limit: None,
            io_limit: None,
            ssh: SshFeatures::default(),
            timeout: None,
            on_timeout: TimeoutEnd::default(),
        }
    }
}

/// An image as a sandbox has it: names move on, this does not.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxImage {
    /// What it was called when the sandbox was made.
    pub name: String,
    /// Which it is.
    pub id: Digest,
    /// What it says of how to run it.
    #[serde(default)]
    pub config: RunConfig,
}

impl SandboxImage {
    /// The image `reference` of the store, as it is now.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(images: &Images, reference: &str) -> Result<Self, ImageError> {
        let record = images.find(reference)?;
        Ok(Self {
            name: reference.to_owned(),
            id: record.id,
            config: record.config,
        })
    }
}

fn default_disk_size() -> Memory {
    DEFAULT_DISK_SIZE
}

fn is_default_disk_size(size: &Memory) -> bool {
    *size == DEFAULT_DISK_SIZE
}

/// Why a sandbox cannot be as asked.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Too few or too many CPUs.
    #[error("a sandbox has 1 to {MAX_CPUS} CPUs, not {0}")]
    Cpus(u8),
    /// Too little memory to boot.
    #[error("{0} of memory is too little to boot a guest; give at least {MIN_MEMORY_MIB}M")]
    MemoryTooSmall(Memory),
    /// More memory than there is.
    #[error("{asked} of memory is more than the {host} this host has; give less")]
    MemoryTooLarge {
        /// What was asked for.
        asked: Memory,
        /// What the host has.
        host: Memory,
    },
    /// Too little for a file system.
    #[error("a disk of {0} is too small for a file system; give at least {MIN_DISK_MIB}M")]
    DiskTooSmall(Memory),
    /// A file to be used is not there.
    #[error("cannot use the {what} {}", path.display())]
    File {
        /// What it would be.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The configuration is JSON, which is UTF-8.
    #[error("the path {} is not UTF-8", .0.display())]
    NotUtf8(PathBuf),
    /// A volume cannot be as asked.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A limit that lets nothing happen.
    #[error("a limit of 0 input and output would stop the sandbox; give more, such as 10M")]
    NoIo,
    /// The kernel's command line is one line of text.
    #[error("the kernel command line {0:?} has a control character")]
    Cmdline(String),
}

impl SandboxSpec {
    /// What its VM may use of the host.
    pub fn limits(&self) -> Limits {
        let cpus = u32::from(self.cpus);
        // Below an image's sandbox are the image and what is written on top of it.
        let disks = self.disks.len() + if self.image.is_some() { 2 } else { 0 };
        let disks = u32::try_from(disks).unwrap_or(u32::MAX);
        let volumes = u32::try_from(self.volumes.len()).unwrap_or(u32::MAX);
        Limits {
            memory_mib: self
                .memory
                .mib
                .saturating_add(self.memory.mib / 64)
                .saturating_add(OVERHEAD_MIB)
                .saturating_add(VOLUME_MIB.saturating_mul(volumes)),
            cpu_percent: self.cpu_limit.map_or((cpus + 1) * 100, |limit| limit.percent),
            // The VM has a thread for each volume, and its server two.
            tasks: cpus
                .saturating_add(disks)
                .saturating_add(volumes.saturating_mul(3))
                .saturating_add(SPARE_TASKS),
            io_mib: self.io_limit.map(|limit| limit.mib),
        }
    }

    /// How long a run of it may take.
    pub fn time_limit(&self) -> TimeLimit {
        TimeLimit {
            timeout: self.timeout,
            end: self.on_timeout,
        }
    }

    /// Whether limits were asked for, beyond those that every sandbox has where its host can.
    pub fn asks_for_limits(&self) -> bool {
        self.cpu_limit.is_some() || self.io_limit.is_some()
    }

    /// What runs in its background from its start on.
    pub fn start_command(&self) -> Option<&StartCommand> {
        let image = || self.image.as_ref().and_then(|image| image.config.start.as_ref());
        let start = self.start.as_ref().or_else(image);
        start.filter(|start| !start.command.is_empty())
    }

    /// Who runs commands when nobody else is named.
    pub fn default_user(&self) -> &str {
        let image = self.image.as_ref().map(|image| image.config.user.as_str());
        image.filter(|user| !user.is_empty()).unwrap_or("root")
    }

    /// Checks what can be checked before anything is made, and makes the paths absolute.
    ///
    /// # Errors
    /// With the first thing that is wrong.
    pub fn validated(mut self) -> Result<Self, SpecError> {
        if self.cpus == 0 || self.cpus > MAX_CPUS {
            return Err(SpecError::Cpus(self.cpus));
        }
        if self.memory.mib < MIN_MEMORY_MIB {
            return Err(SpecError::MemoryTooSmall(self.memory));
        }
        let host = Memory::of_host();
        if self.memory > host {
            return Err(SpecError::MemoryTooLarge {
                asked: self.memory,
                host,
            });
        }
        if self.io_limit.is_some_and(|limit| limit.mib == 0) {
            return Err(SpecError::NoIo);
        }
        if self.disk_size.mib < MIN_DISK_MIB {
            return Err(SpecError::DiskTooSmall(self.disk_size));
        }
        if self.cmdline.contains(|c: char| c.is_control()) {
            return Err(SpecError::Cmdline(self.cmdline));
        }
        if let Some(kernel) = &mut self.kernel {
            canonicalize("kernel", kernel)?;
        }
        for disk in &mut self.disks {
            canonicalize("disk", &mut disk.path)?;
        }
        for volume in &mut self.volumes {
            canonicalize("volume", &mut volume.host)?;
        }
        volume::validate(&mut self.volumes)?;
        Ok(self)
    }
}

fn canonicalize(what: &'static str, path: &mut PathBuf) -> Result<(), SpecError> {
    let error = |source| SpecError::File {
        what,
        path: path.clone(),
        source,
    };
    let absolute = path.canonicalize().map_err(error)?;
    if absolute.to_str().is_none() {
        return Err(SpecError::NotUtf8(absolute));
    }
    *path = absolute;
    Ok(())
}

/// An amount of memory. Written `512M` or `2G`; a bare number is mebibytes.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct Memory {
    /// In mebibytes.
    pub mib: u32,
}

/// The text is no amount of memory.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error("'{0}' is no amount of memory; write 512M or 2G")]
pub struct MemoryError(String);

impl Memory {
    fn of_host() -> Self {
        let info = rustix::system::sysinfo();
        let mib = info.totalram.saturating_mul(u64::from(info.mem_unit)) >> 20;
        Self {
            mib: u32::try_from(mib).unwrap_or(u32::MAX),
        }
    }
}

impl FromStr for Memory {
    type Err = MemoryError;

    fn from_str(text: &str) -> Result<Self, MemoryError> {
        let error = || MemoryError(text.into());
        let lower = text.to_ascii_lowercase();
        let number = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let factor = match &lower[number.len()..] {
            "" | "m" | "mb" | "mib" => 1,
            "g" | "gb" | "gib" => 1024,
            _ => return Err(error()),
        };
        // `parse` alone would take a sign.
        if !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(error());
        }
        let mib = number.parse::<u32>().ok().and_then(|number| number.checked_mul(factor));
        Ok(Self {
            mib: mib.ok_or_else(error)?,
        })
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mib {
            mib if mib != 0 && mib % 1024 == 0 => write!(f, "{}G", mib / 1024),
            mib => write!(f, "{mib}M"),
        }
    }
}

/// An amount of CPU time in CPUs. Written `0.5` or `2`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct CpuLimit {
    /// In percent of one CPU.
    pub percent: u32,
}

/// The text is no amount of CPU time.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error("'{0}' is no number of CPUs; write 0.5 or 2, from 0.01 to 1000")]
pub struct CpuLimitError(String);

impl FromStr for CpuLimit {
    type Err = CpuLimitError;

    fn from_str(text: &str) -> Result<Self, CpuLimitError> {
        let error = || CpuLimitError(text.into());
        let (whole, hundredths) = text.split_once('.').unwrap_or((text, "0"));
        let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number(whole) || !is_number(hundredths) || hundredths.len() > 2 {
            return Err(error());
        }
        let hundredths: u32 = format!("{hundredths:0<2}").parse().map_err(|_| error())?;
        let whole: u32 = whole.parse().map_err(|_| error())?;
        let percent = whole.checked_mul(100).and_then(|whole| whole.checked_add(hundredths));
        match percent {
            Some(percent @ 1..=100_000) => Ok(Self { percent }),
            _ => Err(error()),
        }
    }
}

/// A disk image of the host that the guest sees as a block device. Written `FILE` or `FILE:ro`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The image: a raw file or a block device.
    pub path: PathBuf,
    /// The guest cannot write to it.
    #[serde(default)]
    pub read_only: bool,
}

impl FromStr for Disk {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (path, read_only) = match text.strip_suffix(":ro") {
            Some(path) => (path, true),
            None => (text, false),
        };
        Ok(Self {
            path: path.into(),
            read_only,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn an_amount_of_memory_survives_its_text(mib: u32, text in "[0-9+ -]{0,6}[a-zA-Z]{0,4}") {
            proptest::prop_assert_eq!(Memory { mib }.to_string().parse(), Ok(Memory { mib }));
            if let Ok(memory) = text.parse::<Memory>() {
                proptest::prop_assert!(text.starts_with(|c: char| c.is_ascii_digit()));
                proptest::prop_assert_eq!(memory.to_string().parse(), Ok(memory));
            }
        }
    }

    #[test]
    fn memory_is_read_with_its_unit_and_nothing_else() {
        for (text, mib) in [("512M", 512), ("512", 512), ("1g", 1024), ("2GiB", 2048), ("64mb", 64)] {
            assert_eq!(text.parse::<Memory>().unwrap().mib, mib, "{text}");
        }
        for bad in [
            "",
            "M",
            "-1G",
            "+1G",
            "1.5G",
            "1T",
            "1 G",
            "4194304G",
            "99999999999",
            "1Gx",
            "é",
        ] {
            assert_eq!(bad.parse::<Memory>(), Err(MemoryError(bad.into())), "{bad}");
        }
        assert_eq!(Memory { mib: 2048 }.to_string(), "2G");
        assert_eq!(Memory { mib: 1025 }.to_string(), "1025M");
    }

    #[test]
    fn what_no_host_can_do_is_refused_before_anything_is_made() {
        let spec = SandboxSpec::default;
        assert!(spec().validated().is_ok());
        let with_memory = |mib| {
            SandboxSpec {
                memory: Memory { mib },
                ..spec()
            }
            .validated()
        };
        assert!(matches!(with_memory(63), Err(SpecError::MemoryTooSmall(_))));
        assert!(matches!(with_memory(u32::MAX), Err(SpecError::MemoryTooLarge { .. })));
        for cpus in [0, MAX_CPUS + 1] {
            assert!(matches!(
                SandboxSpec { cpus, ..spec() }.validated(),
                Err(SpecError::Cpus(_))
            ));
        }
        let disks = vec!["/nonexistent/disk:ro".parse().unwrap()];
        let error = SandboxSpec { disks, ..spec() }.validated().unwrap_err();
        assert_eq!(error.to_string(), "cannot use the disk /nonexistent/disk");
        let cmdline = "quiet\ninit=/bin/sh".to_owned();
        assert!(matches!(
            SandboxSpec { cmdline, ..spec() }.validated(),
            Err(SpecError::Cmdline(_))
        ));
    }

    #[test]
    fn a_cpu_limit_is_a_number_of_cpus() {
        for (text, percent) in [("2", 200), ("0.5", 50), ("1.25", 125), ("0.01", 1), ("1000", 100_000)] {
            assert_eq!(text.parse(), Ok(CpuLimit { percent }), "{text}");
        }
        for bad in [
            "",
            "0",
            "0.00",
            "-1",
            "+1",
            ".5",
            "1.",
            "1.234",
            "1e3",
            "1001",
            "99999999999",
            "50%",
        ] {
            assert_eq!(bad.parse::<CpuLimit>(), Err(CpuLimitError(bad.into())), "{bad}");
        }
    }

    #[test]
    fn a_vm_is_limited_to_what_it_was_given_and_some_room() {
        let limits = SandboxSpec::default().limits();
        assert_eq!((limits.memory_mib, limits.cpu_percent, limits.io_mib), (388, 200, None));
        let spec = SandboxSpec {
            cpus: 4,
            cpu_limit: Some(CpuLimit { percent: 150 }),
            io_limit: Some(Memory { mib: 10 }),
            ..SandboxSpec::default()
        };
        assert_eq!((spec.limits().cpu_percent, spec.limits().io_mib), (150, Some(10)));
        assert!(spec.asks_for_limits());
        let io_limit = Some(Memory { mib: 0 });
        assert!(matches!(
            SandboxSpec { io_limit, ..spec }.validated(),
            Err(SpecError::NoIo)
        ));
    }

    #[test]
    fn a_disk_is_writable_unless_it_says_ro() {
        assert_eq!(
            "/a:ro".parse(),
            Ok(Disk {
                path: "/a".into(),
                read_only: true
            })
        );
        assert_eq!(
            "/a:b".parse(),
            Ok(Disk {
                path: "/a:b".into(),
                read_only: false
            })
        );
    }
}
