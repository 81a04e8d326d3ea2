//! The end inside: PID 1 of the emulated host. It mounts this machine's file system under an overlay, runs the job there
//! and reports. The machine ends with the job, so what the job left running is killed.

use std::convert::Infallible;
use std::ffi::{CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::mount::{MountFlags, mount, mount_bind_recursive};
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, wait};
use rustix::system::{RebootCommand, finit_module, reboot};

use crate::job::{Job, Outcome, PORTS, ROOT_TAG, SHARED_TAG};
use crate::pump::{Progress, pump};
use crate::{Failure, failed};

/// Where the root of the job is put together.
const ROOT: &str = "/root1";

/// Flag of `finit_module`: the kernel decompresses the file.
const MODULE_INIT_COMPRESSED_FILE: i32 = 4;

/// Runs the machine; never returns.
pub(crate) fn run() -> ! {
    let Err(failure) = serve();
    // The console is what the outer end shows when a machine ends without an outcome.
    eprintln!("kvm-host: {failure}");
    let _ = reboot(RebootCommand::Restart);
    loop {
        thread::park();
    }
}

fn serve() -> Result<Infallible, Failure> {
    mount_kernel_file_systems("")?;
    load_modules()?;
    let [stdin, stdout, stderr, mut control] = open_ports()?;
    let job = read_job(&mut control).map_err(failed("read the job"))?;
    prepare_root(&job)?;

    let (status, sent) = match spawn(&job) {
        Ok(child) => run_job(child, stdin, [stdout, stderr], &control)?,
        Err(error) => refuse(&job, &error, stderr),
    };
    rustix::fs::sync();
    Outcome { status, sent }
        .write(&control)
        .map_err(failed("report the outcome"))?;
    // The outer end ends the machine when it has passed all output.
    loop {
        thread::park();
    }
}

fn mount_at(source: &str, target: &str, kind: &str, flags: MountFlags, options: &str) -> Result<(), Failure> {
    let options = CString::new(options).map_err(failed("mount"))?;
    fs::create_dir_all(target).map_err(failed(format_args!("make {target}")))?;
    mount(source, target, kind, flags, options.as_c_str()).map_err(failed(format_args!("mount {kind} on {target}")))
}

fn mount_kernel_file_systems(root: &str) -> Result<(), Failure> {
    mount_at("proc", &format!("{root}/proc"), "proc", MountFlags::empty(), "")?;
    mount_at("sys", &format!("{root}/sys"), "sysfs", MountFlags::empty(), "")?;
    if root.is_empty() {
        mount_at("dev", "/dev", "devtmpfs", MountFlags::empty(), "")
    } else {
        mount_bind_recursive("/dev", format!("{root}/dev")).map_err(failed("bind /dev"))
    }
}

/// Loads the modules in the order of `/modules/order`.
fn load_modules() -> Result<(), Failure> {
    let order = fs::read_to_string("/modules/order").map_err(failed("read /modules/order"))?;
    for name in order.lines() {
        let file = File::open(Path::new("/modules").join(name)).map_err(failed(format_args!("open module {name}")))?;
        let flags = if name.ends_with(".ko") {
            0
        } else {
            MODULE_INIT_COMPRESSED_FILE
        };
        match finit_module(file, c"", flags) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(format!("cannot load module {name}: {error}")),
        }
    }
    Ok(())
}

/// Opens the ports, which the kernel makes a moment after their driver is loaded.
fn open_ports() -> Result<[File; PORTS.len()], Failure> {
    let mut ports = Vec::new();
    for number in 1..=PORTS.len() {
        ports.push(open_port(&format!("p{number}")).map_err(failed(format_args!("open port {number}")))?);
    }
    ports.try_into().map_err(|_| "one file a port".to_owned())
}

fn open_port(suffix: &str) -> io::Result<File> {
    for _ in 0..5000 {
        for entry in fs::read_dir("/dev")? {
            let name = entry?.file_name();
            if name.as_bytes().starts_with(b"vport") && name.as_bytes().ends_with(suffix.as_bytes()) {
                return OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(Path::new("/dev").join(name));
            }
        }
        thread::sleep(Duration::from_millis(2));
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        "the kernel made no such device",
    ))
}

/// Reads the job. Until the kernel knows that the far end is connected, a port looks as if at its end.
fn read_job(control: &mut File) -> io::Result<Job> {
    let mut first = [0];
    while control.read(&mut first)? == 0 {
        thread::sleep(Duration::from_millis(2));
    }
    Job::read(first.chain(control))
}

fn prepare_root(job: &Job) -> Result<(), Failure> {
    mount_at("ram", "/ram", "tmpfs", MountFlags::empty(), "size=80%")?;
    for directory in ["/ram/upper", "/ram/work"] {
        fs::create_dir(directory).map_err(failed(format_args!("make {directory}")))?;
    }
    let over_virtio = "trans=virtio,version=9p2000.L,msize=1048576";
    mount_at(
        ROOT_TAG,
        "/host",
        "9p",
        MountFlags::RDONLY,
        &format!("{over_virtio},cache=loose"),
    )?;
    let layers = "lowerdir=/host,upperdir=/ram/upper,workdir=/ram/work,index=off";
    mount_at("overlay", ROOT, "overlay", MountFlags::empty(), layers)?;

    mount_kernel_file_systems(ROOT)?;
    let below = |path: &str| format!("{ROOT}{path}");
    mount_at(
        "pts",
        &below("/dev/pts"),
        "devpts",
        MountFlags::empty(),
        "gid=5,mode=620,ptmxmode=666",
    )?;
    mount_at("shm", &below("/dev/shm"), "tmpfs", MountFlags::empty(), "mode=1777")?;
    mount_at("run", &below("/run"), "tmpfs", MountFlags::empty(), "mode=755")?;
    mount_at("cgroup", &below("/sys/fs/cgroup"), "cgroup2", MountFlags::empty(), "")?;
    mount_at("/dev/vda", &below("/scratch"), "ext4", MountFlags::empty(), "")?;
    let shared = job.shared.to_str().ok_or("the shared directory is no UTF-8 path")?;
    mount_at(SHARED_TAG, &below(shared), "9p", MountFlags::empty(), over_virtio)?;

    for (link, target) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
        symlink(format!("/proc/self/fd{target}"), format!("/dev/{link}")).map_err(failed("link /dev/fd"))?;
    }
    // IFF_UP beside IFF_LOOPBACK; the kernel adds the addresses.
    fs::write("/sys/class/net/lo/flags", "0x9").map_err(failed("bring the loopback interface up"))?;
    rustix::system::sethostname(b"kvm-host").map_err(failed("set the host name"))?;
    // A process whose root is not that of its mount namespace may make no user namespace.
    rustix::process::chdir(ROOT).map_err(failed("enter the root"))?;
    rustix::mount::mount_move(".", "/").map_err(failed("move the root"))?;
    rustix::process::chroot(".").map_err(failed("change the root"))
}

fn spawn(job: &Job) -> io::Result<Child> {
    let (program, arguments) = job.command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir(&job.directory).env_clear();
    for variable in &job.environment {
        let bytes = variable.as_bytes();
        let end = bytes.iter().position(|byte| *byte == b'=').unwrap_or(bytes.len());
        command.env(
            OsStr::from_bytes(&bytes[..end]),
            OsStr::from_bytes(bytes.get(end + 1..).unwrap_or_default()),
        );
    }
    command
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
}

/// Says, like a shell, that the command cannot be run.
fn refuse(job: &Job, error: &io::Error, mut stderr: File) -> (u8, [u64; 2]) {
    let program = job
        .command
        .first()
        .map(|program| program.display().to_string())
        .unwrap_or_default();
    let message = format!("kvm-host: {program}: {error}\n");
    let written = if stderr.write_all(message.as_bytes()).is_ok() {
        message.len()
    } else {
        0
    };
    (
        if error.kind() == io::ErrorKind::NotFound {
            127
        } else {
            126
        },
        [0, written as u64],
    )
}

/// Passes the streams until the child has ended; its status and the bytes it sent.
fn run_job(mut child: Child, stdin: File, outputs: [File; 2], control: &File) -> Result<(u8, [u64; 2]), Failure> {
    if let Some(input) = child.stdin.take() {
        thread::spawn(move || pump(stdin, input, &Progress::default()));
    }
    let [stdout, stderr] = outputs;
    let (output, error) = child
        .stdout
        .take()
        .zip(child.stderr.take())
        .ok_or("the command has no output pipes")?;
    let unread = [Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false))];
    let pumps = [send(output, stdout, &unread[0]), send(error, stderr, &unread[1])];
    watch_readers(control.try_clone().map_err(failed("share the control port"))?, unread);

    let status = reap(child.id()).map_err(failed("wait for the command"))?;
    // Group 1, negated, is every process but this one. No process left is the usual case.
    let _ = kill_process_group(Pid::INIT, Signal::KILL);
    Ok((status, pumps.map(|pump| pump.join().unwrap_or_default())))
}

/// Sends an output stream until it ends or nobody reads it any more; the count of the bytes sent.
fn send(from: impl Read + Send + 'static, to: File, unread: &Arc<AtomicBool>) -> JoinHandle<u64> {
    let to = Watched {
        port: to,
        unread: Arc::clone(unread),
    };
    thread::spawn(move || {
        let progress = Progress::default();
        // The end of the pump closes the pipe: a child that writes on gets SIGPIPE, as without a machine between.
        pump(from, to, &progress);
        progress.bytes()
    })
}

/// A port that refuses bytes once nobody reads them.
struct Watched {
    port: File,
    unread: Arc<AtomicBool>,
}

impl Write for Watched {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.unread.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.port.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Marks an output stream as unread when the outer end says so by its number.
fn watch_readers(mut control: File, unread: [Arc<AtomicBool>; 2]) {
    thread::spawn(move || {
        let mut stream = [0];
        while control.read_exact(&mut stream).is_ok() {
            if let Some(unread) = unread.get(usize::from(stream[0])) {
                unread.store(true, Ordering::Relaxed);
            }
        }
    });
}

/// Reaps whatever dies until `child` does; its status as a shell counts it.
fn reap(child: u32) -> io::Result<u8> {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if u32::try_from(pid.as_raw_pid()) == Ok(child) => {
                let status = status
                    .exit_status()
                    .or(status.terminating_signal().map(|signal| 128 + signal));
                return Ok(status.and_then(|status| u8::try_from(status).ok()).unwrap_or(u8::MAX));
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
