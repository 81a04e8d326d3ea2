//! The emulated host: QEMU without acceleration, with a CPU that offers SVM.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::job::{PORTS, ROOT_TAG, SHARED_TAG};
use crate::{Failure, failed};

/// What is kept of the console and of QEMU's own messages.
const CONSOLE_LIMIT: usize = 16 << 10;

/// Ends a panic in an exit of QEMU, and leaves out what is slow on an emulated CPU: so is a program at another address each
/// time, which QEMU translates anew at each start.
const KERNEL_OPTIONS: &str =
    "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable no_timer_check lpj=8000000 cryptomgr.notests norandmaps";

/// What the machine is made of.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    /// An ext4 image; what is written to it vanishes with the machine.
    pub(crate) scratch: PathBuf,
    /// The directory whose writes stay.
    pub(crate) shared: PathBuf,
    pub(crate) memory_mib: u32,
    pub(crate) cpus: u32,
    /// A model of QEMU's, with what it has more and less.
    pub(crate) cpu_model: OsString,
}

/// A machine that runs; it is killed with this process, however that ends.
#[derive(Debug)]
pub(crate) struct Running {
    qemu: Child,
    console: Arc<Mutex<Vec<u8>>>,
    console_reader: JoinHandle<()>,
    /// This end of each of [`PORTS`].
    pub(crate) ports: [UnixStream; PORTS.len()],
}

impl Machine {
    pub(crate) fn start(&self) -> Result<Running, Failure> {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(self.arguments());
        let (ports, far_ends) = connect_ports(&mut command).map_err(failed("make the sockets for QEMU"))?;
        let (output, input) = io::pipe().map_err(failed("make a pipe for QEMU"))?;
        let errors = input.try_clone().map_err(failed("make a pipe for QEMU"))?;
        command.stdin(Stdio::null()).stdout(input).stderr(errors);
        // A terminal's ^C is for this process; QEMU follows when it is gone.
        command.process_group(0);
        // SAFETY: between fork and exec the closure makes one system call and touches no memory of the parent.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        let qemu = command
            .spawn()
            .map_err(failed("start qemu-system-x86_64 (package qemu-system-x86)"))?;
        drop((far_ends, command));
        let console = Arc::default();
        let console_reader = thread::spawn({
            let console = Arc::clone(&console);
            move || keep_last(output, &console)
        });
        Ok(Running {
            qemu,
            console,
            console_reader,
            ports,
        })
    }

    fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |option: &str, parts: &[&dyn AsRef<std::ffi::OsStr>]| {
            arguments.push(option.into());
            arguments.push(parts.iter().map(|part| part.as_ref().to_owned()).collect());
        };
        add("-M", &[&"q35"]);
        add("-accel", &[&"tcg,thread=multi,tb-size=1024"]);
        add("-cpu", &[&self.cpu_model]);
        add("-smp", &[&self.cpus.to_string()]);
        add("-m", &[&self.memory_mib.to_string()]);
        add("-kernel", &[&self.kernel]);
        add("-initrd", &[&self.initramfs]);
        add("-append", &[&KERNEL_OPTIONS]);
        add("-display", &[&"none"]);
        add("-serial", &[&"stdio"]);
        add(
            "-virtfs",
            &[
                &"local,path=/,readonly=on,multidevs=remap,security_model=none,mount_tag=",
                &ROOT_TAG,
            ],
        );
        add(
            "-virtfs",
            &[
                &"local,security_model=none,multidevs=remap,mount_tag=",
                &SHARED_TAG,
                &",path=",
                &escape_commas(&self.shared),
            ],
        );
        // snapshot=on: writes go to an unlinked temporary file.
        add(
            "-drive",
            &[
                &"if=virtio,format=raw,cache=unsafe,snapshot=on,file=",
                &escape_commas(&self.scratch),
            ],
        );
        add("-device", &[&"virtio-serial-pci"]);
        arguments.push("-nodefaults".into());
        arguments.push("-no-reboot".into());
        arguments
    }
}

/// A comma in a value of an option of QEMU is written twice.
fn escape_commas(path: &std::path::Path) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let bytes = path.as_os_str().as_bytes().iter();
    OsString::from_vec(
        bytes
            .flat_map(|byte| if *byte == b',' { vec![b',', b','] } else { vec![*byte] })
            .collect(),
    )
}

type Ports = [UnixStream; PORTS.len()];

/// Makes a socket pair for each port, passes the far end to the command and gives both.
fn connect_ports(command: &mut Command) -> io::Result<(Ports, Vec<OwnedFd>)> {
    let mut far_ends = Vec::new();
    let mut near_ends = Vec::new();
    for (port, name) in (1..).zip(PORTS) {
        let (near, far) = UnixStream::pair()?;
        fcntl_setfd(&far, FdFlags::empty())?;
        command
            .arg("-chardev")
            .arg(format!("socket,id={name},fd={}", far.as_raw_fd()));
        command
            .arg("-device")
            .arg(format!("virtserialport,nr={port},name={name},chardev={name}"));
        near_ends.push(near);
        far_ends.push(OwnedFd::from(far));
    }
    let near_ends = near_ends
        .try_into()
        .map_err(|_| io::Error::other("one socket a port"))?;
    Ok((near_ends, far_ends))
}

/// Keeps the last bytes of a stream until it ends.
fn keep_last(mut from: impl Read, kept: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(&buffer[..length]);
        let excess = kept.len().saturating_sub(CONSOLE_LIMIT);
        kept.drain(..excess);
    }
}

impl Running {
    /// Ends the machine at once.
    pub(crate) fn kill(mut self) {
        // It may have ended by itself.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }

    /// Ends the machine and says how QEMU ended and what the last lines of the console were.
    pub(crate) fn post_mortem(mut self) -> String {
        // The kernel ends a machine that panics; QEMU closes its sockets a moment before it is gone.
        let status = self
            .qemu
            .wait()
            .map_or_else(|error| error.to_string(), |status| status.to_string());
        let _ = self.console_reader.join();
        let console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        let console = String::from_utf8_lossy(&console);
        let lines: Vec<&str> = console
            .lines()
            .map(str::trim_end)
            .filter(|line| !line.is_empty())
            .collect();
        let last = &lines[lines.len().saturating_sub(30)..];
        format!("QEMU ended ({status}). Its last lines:\n{}", last.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_console_keeps_its_end() {
        let kept = Mutex::default();
        let mut console = vec![b'a'; CONSOLE_LIMIT * 2];
        console.extend(b"end");

        keep_last(console.as_slice(), &kept);

        let kept = kept.into_inner().expect("nobody panicked");
        assert_eq!(kept.len(), CONSOLE_LIMIT);
        assert!(kept.ends_with(b"end"));
    }

    #[test]
    fn a_path_with_a_comma_stays_one_value() {
        assert_eq!(escape_commas("/a,b".as_ref()), "/a,,b");
    }
}
