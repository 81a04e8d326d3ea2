//! The jail of a process that serves a volume: the layers of a VM's process, with the volume as all that there is of the file
//! system, and the system calls that files take.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use msb_volume::{Access, Export};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use seccompiler::SeccompCmpOp;

use super::cgroup::Limits;
use super::seccomp::{self, ABSENT, RUNTIME};
use super::{Isolation, JailError, Layer, Layers, landlock, privileges, root, user};

/// The name of a volume that is a file, in the directory that is served then.
pub const FILE_NAME: &str = "file";

/// Most descriptors: one for each file that a guest knows or has open, a kibibyte or two of the kernel's memory.
const DESCRIPTORS: u64 = 1 << 18;

/// Requests and answers, the start of the one thread that serves, and files. Where files are opened by a path, the path is
/// a name in a directory that is open, or a number in this process's `/proc/self/fd`.
const FILES: &[libc::c_long] = &[
    libc::SYS_fallocate,
    libc::SYS_fchmodat,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_linkat,
    libc::SYS_lseek,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_newfstatat,
    libc::SYS_openat2,
    libc::SYS_poll,
    libc::SYS_pread64,
    libc::SYS_prlimit64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_renameat2,
    libc::SYS_rseq,
    libc::SYS_seccomp,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_setsockopt,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_writev,
];

/// What a process that serves a volume is jailed with.
#[derive(Clone, Debug)]
pub struct ServerConfinement {
    /// The directory or file, without symbolic links in its path.
    pub volume: PathBuf,
    /// Whether it may be written to.
    pub writable: bool,
    /// How much of the jail it insists on.
    pub isolation: Isolation,
    /// What its cgroup holds it to, if it has one.
    pub limits: Option<Limits>,
}

/// Jails the calling process, which has one thread. Returns the layers that hold, and what it may serve.
///
/// `in_namespaces` is what [`super::namespaces::fork`] said.
///
/// # Errors
/// When a step fails that this host should be able to do, or a layer is missing under [`Isolation::Strict`].
pub fn enter(confinement: &ServerConfinement, in_namespaces: bool) -> Result<(Layers, Export), JailError> {
    let ServerConfinement {
        volume: path, writable, ..
    } = confinement;
    let descriptors = msb_volume::own_descriptors().map_err(JailError::refused("open /proc/self/fd"))?;
    let opened = Export::open_root(path).map_err(JailError::refused("open the volume"))?;
    let stat = fstat(&opened).map_err(JailError::refused("examine the volume"))?;
    let is_directory = FileType::from_raw_mode(stat.st_mode).is_dir();
    // Whose the volume is, if root starts it: without capabilities it may no more there than they. Known by /proc.
    let becomes_owner = user::can_become(stat.st_uid);
    let served = match in_namespaces {
        true => {
            root::replace_by_volume(&opened, (!is_directory).then_some(FILE_NAME), *writable)?;
            open_new_root()?
        }
        false if is_directory => opened,
        false => return Err(JailError::Missing(vec![Layer::Namespaces])),
    };
    privileges::limit_resources(None, DESCRIPTORS)?;
    privileges::bound()?;
    if becomes_owner {
        user::become_user(stat.st_uid, stat.st_gid);
    }
    privileges::drop_all()?;
    let landlock = landlock::allow_only_below(served.as_fd(), *writable)?;
    let layers = Layers::of_process(in_namespaces, landlock, confinement.limits);
    let missing = layers.missing();
    if confinement.isolation == Isolation::Strict && !missing.is_empty() {
        return Err(match missing.as_slice() {
            [Layer::User] => JailError::ServedByRoot,
            _ => JailError::Missing(missing),
        });
    }
    let access = if *writable { Access::Write } else { Access::Read };
    let export = Export::new(served, descriptors, access).map_err(JailError::refused("open the volume"))?;
    restrict_system_calls()?;
    Ok((layers, export))
}

fn open_new_root() -> Result<OwnedFd, JailError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open("/", flags, Mode::empty()).map_err(JailError::refused("open the volume"))
}

fn restrict_system_calls() -> Result<(), JailError> {
    let mut allowed = seccomp::rules(&[RUNTIME, FILES, ABSENT]);
    seccomp::allow_memory(&mut allowed)?;
    seccomp::allow_threads(&mut allowed)?;
    // What is made is made by openat2, which takes no way out of a directory.
    let making = u64::from(libc::O_CREAT.unsigned_abs());
    allowed.insert(
        libc::SYS_openat,
        vec![seccomp::rule(2, SeccompCmpOp::MaskedEq(making), 0)?],
    );
    for program in [seccomp::refuse(ABSENT, libc::ENOSYS)?, seccomp::kill(allowed)?] {
        seccomp::apply(&program)?;
    }
    Ok(())
}
