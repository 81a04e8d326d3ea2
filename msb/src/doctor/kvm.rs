//! KVM as far as it can be seen without running a guest.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use super::Check;

const DEVICE: &str = "/dev/kvm";

/// Whether the device is there and may be used.
pub(super) fn check() -> Check {
    check_device(
        Path::new(DEVICE),
        &std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default(),
    )
}

fn check_device(device: &Path, cpuinfo: &str) -> Check {
    let name = device.display();
    let opened = OpenOptions::new().read(true).write(true).open(device);
    let is_device = std::fs::metadata(device).is_ok_and(|meta| meta.file_type().is_char_device());
    match opened {
        Ok(_) if is_device => Check::ok("kvm", format!("{name} can be opened")),
        Ok(_) => Check::failed("kvm", format!("{name} is no device"), absent_mend(cpuinfo)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Check::failed("kvm", format!("no permission to open {name}"), permission_mend(device))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Check::failed("kvm", format!("there is no {name}"), absent_mend(cpuinfo))
        }
        Err(error) => Check::failed("kvm", format!("cannot open {name}: {error}"), absent_mend(cpuinfo)),
    }
}

/// How to get the device.
fn absent_mend(cpuinfo: &str) -> String {
    let module = match () {
        () if has_flag(cpuinfo, "vmx") => "kvm_intel",
        () if has_flag(cpuinfo, "svm") => "kvm_amd",
        () => {
            return "the CPU offers no virtualization (neither vmx nor svm): enable it in the firmware, or in a virtual \
                    machine enable nested virtualization; in a container, pass the device with `--device /dev/kvm`"
                .into();
        }
    };
    format!("load the module with `sudo modprobe {module}`; in a container, pass the device with `--device /dev/kvm`")
}

/// How to be allowed to use the device.
fn permission_mend(device: &Path) -> String {
    let gid = std::fs::metadata(device).map(|meta| meta.gid()).unwrap_or_default();
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    match group_name(&groups, gid).filter(|&group| group != "root") {
        Some(group) => format!("join its group with `sudo usermod -aG {group} $USER` and log in again"),
        None => format!(
            "give yourself access with `sudo setfacl -m u:$USER:rw {}`, or run as root",
            device.display()
        ),
    }
}

/// What to do about a device that is there and runs no guest.
pub(super) fn guest_mend() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if has_flag(&cpuinfo, "vmx") || has_flag(&cpuinfo, "svm") {
        return "look for kvm in the host's kernel log (`dmesg`), and run again with MSB_LOG=debug".into();
    }
    "this CPU offers neither vmx nor svm, so its /dev/kvm cannot run an ordinary guest: use a machine with hardware \
     virtualization, or `scripts/kvm-host` for an emulated one"
        .into()
}

fn has_flag(cpuinfo: &str, flag: &str) -> bool {
    let flags = cpuinfo.lines().filter(|line| line.starts_with("flags"));
    flags.flat_map(str::split_ascii_whitespace).any(|word| word == flag)
}

/// A line of group(5) is `name:password:gid:members`.
fn group_name(groups: &str, gid: u32) -> Option<&str> {
    let gid = gid.to_string();
    let mut lines = groups.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines
        .find(|fields| fields.get(2) == Some(&gid.as_str()))
        .and_then(|fields| fields.first().copied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn an_absent_device_names_the_module_that_brings_it() {
        let check = check_device(Path::new("/nonexistent/kvm"), "flags\t\t: fpu svm nx\n");
        assert_eq!(check.verdict, Verdict::Failed);
        assert_eq!(check.detail, "there is no /nonexistent/kvm");
        assert!(check.mend.unwrap().contains("modprobe kvm_amd"));
        let check = check_device(Path::new("/nonexistent/kvm"), "flags\t\t: fpu\n");
        assert!(check.mend.unwrap().contains("neither vmx nor svm"));
    }

    #[test]
    fn a_file_is_no_device() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(check_device(file.path(), "").verdict, Verdict::Failed);
        assert_eq!(check_device(Path::new("/dev/null"), "").verdict, Verdict::Ok);
    }

    #[test]
    fn a_group_is_found_by_its_number() {
        let groups = "root:x:0:\nkvm:x:104:a,b\n";
        assert_eq!(group_name(groups, 104), Some("kvm"));
        assert_eq!(group_name(groups, 10), None);
    }
}
