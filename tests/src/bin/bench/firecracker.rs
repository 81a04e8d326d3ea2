//! Machines of Firecracker with our kernel, as what ours are compared with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use cpio::newc;
use msb::assets::Assets;
use serde_json::{Value, json};

use crate::guest;

/// The guest's context id.
const GUEST_CID: u32 = 3;

/// `(device major, minor)` of /dev/console.
const CONSOLE: (u32, u32) = (5, 1);

/// What its guide gives a kernel that it boots.
pub(crate) const ARGUMENTS: &str = "console=ttyS0 quiet reboot=k panic=-1";

/// Writes to `path` a machine with one vCPU, `memory_mib` and our kernel, whose first program is `init` in `initramfs`, by
/// default our own with its programs.
///
/// The kernel gets `arguments` and the place of `init`.
pub(crate) fn write_config(
    path: &Path,
    memory_mib: u32,
    (arguments, init): (&str, &str),
    initramfs: Option<&Path>,
    vsock: Option<&Path>,
) {
    // What a sandbox has whose kernel is not known to be ours is all in its initramfs.
    let vmlinux = Assets::directory().expect("this is Linux").join("vmlinux");
    let files = Assets::find(Some(&vmlinux)).expect("msb is installed with its files");
    let initramfs = initramfs.map_or_else(
        || joined(&files.initramfs, &path.with_extension("cpio")),
        Path::to_owned,
    );
    let arguments = format!("{arguments} rdinit={init}");
    let mut config = json!({
        "boot-source": { "kernel_image_path": files.kernel, "initrd_path": initramfs, "boot_args": arguments },
        "drives": [],
        "machine-config": { "vcpu_count": 1, "mem_size_mib": memory_mib },
    });
    if let Some(socket) = vsock {
        config["vsock"] = json!({ "guest_cid": GUEST_CID, "uds_path": socket });
    }
    fs::write(path, Value::to_string(&config)).expect("there is space");
}

/// The archives in one file at `path`.
fn joined(archives: &[PathBuf], path: &Path) -> PathBuf {
    let archives: Vec<_> = archives
        .iter()
        .map(|archive| fs::read(archive).expect("it was found"))
        .collect();
    // An archive has a multiple of 512 bytes, so that the next begins where the kernel looks for one.
    fs::write(path, archives.concat()).expect("there is space");
    path.to_owned()
}

/// `program` with the machine of `config`.
pub(crate) fn command(program: &Path, config: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(["--no-api", "--config-file"]).arg(config);
    command
}

/// A machine in which this program serves as in a sandbox ([`guest`]). Dropped, it ends.
#[derive(Debug)]
pub(crate) struct Machine {
    process: Child,
    /// Of its vsock device, with the handshake that ours has.
    pub(crate) socket: PathBuf,
    _directory: tempfile::TempDir,
}

impl Machine {
    /// Starts one in which this program does `what`.
    pub(crate) fn start(program: &Path, memory_mib: u32, what: &str) -> Self {
        let directory = tempfile::tempdir().expect("there is space");
        let [config, initramfs, socket] =
            ["vm.json", "initramfs.cpio", "v.sock"].map(|name| directory.path().join(name));
        fs::write(&initramfs, archive_of_this_program()).expect("there is space");
        let init = format!("/init -- {} {what}", guest::ARGUMENT);
        write_config(&config, memory_mib, (ARGUMENTS, &init), Some(&initramfs), Some(&socket));
        let process = command(program, &config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display()));
        Self {
            process,
            socket,
            _directory: directory,
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// This program as /init, and a console for its messages.
fn archive_of_this_program() -> Vec<u8> {
    let program = fs::read("/proc/self/exe").expect("this program can be read");
    let mut archive = Vec::new();
    let directory = || newc::Builder::new("dev").mode(0o040_755).nlink(2);
    let console = newc::Builder::new("dev/console")
        .mode(0o020_600)
        .rdev_major(CONSOLE.0)
        .rdev_minor(CONSOLE.1);
    let init = newc::Builder::new("init").mode(0o100_755);
    for (entry, contents) in [(directory(), &[][..]), (console, &[]), (init, &program)] {
        let length = u32::try_from(contents.len()).expect("programs are small");
        let mut writer = entry.write(&mut archive, length);
        std::io::Write::write_all(&mut writer, contents).expect("memory takes all");
        writer.finish().expect("memory takes all");
    }
    newc::trailer(archive).expect("memory takes all")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_begins_with_what_the_kernel_opens_for_its_first_program() {
        let archive = archive_of_this_program();
        let console = newc::Reader::new(newc::Reader::new(&archive[..]).unwrap().finish().unwrap()).unwrap();
        let entry = console.entry();
        assert_eq!(
            (entry.name(), entry.rdev_major(), entry.rdev_minor()),
            ("dev/console", CONSOLE.0, CONSOLE.1)
        );
    }
}
