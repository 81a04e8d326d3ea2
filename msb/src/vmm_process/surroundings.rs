//! What a VM's process is confined to, made by its keeper before there is a process.

use std::os::unix::fs::{MetadataExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use super::outcome::VmEnd;
use crate::jail::cgroup::{self, Cgroup, CgroupError};
use crate::jail::{Confinement, user};
use crate::sandbox::spec::SandboxSpec;
use crate::store::Store;
use crate::store::files::FileError;
use crate::store::names::SandboxId;

/// Bytes that the process may write to its log.
const LOG_ROOM: u64 = 64 << 20;

/// Why a VM cannot be confined as it was asked to be.
#[derive(Debug, thiserror::Error)]
pub(super) enum SurroundingsError {
    #[error("cannot limit the sandbox as asked")]
    Limits(#[from] CgroupError),
    #[error(transparent)]
    File(#[from] FileError),
}

/// What there is around a VM's process.
#[derive(Debug)]
pub(super) struct Surroundings {
    /// What it is jailed with.
    pub(super) confinement: Confinement,
    /// Its cgroup, where the host has one.
    pub(super) cgroup: Option<Cgroup>,
}

/// Makes the surroundings of a sandbox whose directory of sockets is there and empty. A cgroup is found again by a link in
/// that directory, so that whoever removes the one removes the other.
///
/// # Errors
/// When a limit that was asked for cannot be had, or the directory cannot be given to the VM's user.
pub(super) fn prepare(store: &Store, id: &SandboxId, spec: &SandboxSpec) -> Result<Surroundings, SurroundingsError> {
    let limits = spec.limits();
    let cgroup = match make_cgroup(store, id, spec) {
        Ok(cgroup) => Some(cgroup),
        Err(error) if spec.asks_for_limits() => return Err(error),
        // The layers tell, and whoever insists on all of them hears of it.
        Err(error) => {
            tracing::info!(error = &error as &dyn std::error::Error, "no cgroup");
            None
        }
    };
    let sockets = store.layout().sockets(id);
    let user = Some(id.user()).filter(|user| user::can_become(*user));
    if let Some(user) = user {
        give(&sockets, user)?;
    }
    let disks = spec.disks.iter().filter(|disk| !disk.read_only);
    let disks = disks.map(|disk| disk.path.clone()).chain(writable(store, id, spec));
    let largest = disks.map(|disk| size_of(&disk)).max().unwrap_or(0);
    Ok(Surroundings {
        confinement: Confinement {
            reachable: sockets,
            isolation: spec.isolation,
            user,
            limits: cgroup.is_some().then_some(limits),
            largest_file: largest.max(u64::from(spec.memory.mib) << 20) + LOG_ROOM,
        },
        cgroup,
    })
}

fn make_cgroup(store: &Store, id: &SandboxId, spec: &SandboxSpec) -> Result<Cgroup, SurroundingsError> {
    let place = cgroup::place(id.as_str())?;
    let link = store.layout().cgroup(id);
    symlink(&place, &link).map_err(FileError::io("create", &link))?;
    let writable = writable(store, id, spec);
    let disks = spec.disks.iter().map(|disk| disk.path.as_path());
    let volumes = spec.volumes.iter().map(|volume| volume.host.as_path());
    let disks: Vec<&Path> = disks.chain(writable.as_deref()).chain(volumes).collect();
    Ok(Cgroup::create(&place, &spec.limits(), &disks)?)
}

/// What a sandbox of an image writes to.
fn writable(store: &Store, id: &SandboxId, spec: &SandboxSpec) -> Option<PathBuf> {
    spec.image.as_ref().map(|_| store.layout().sandbox(id).writable())
}

/// Of a file; devices do not grow, and what is absent the VM will tell.
fn size_of(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.size())
}

impl Surroundings {
    /// A machine that died may have died of its limits.
    pub(super) fn explain(&self, end: VmEnd) -> VmEnd {
        let killed = matches!(end, VmEnd::Failed(_)) && self.cgroup.as_ref().is_some_and(Cgroup::ran_out_of_memory);
        match (killed, self.confinement.limits) {
            (true, Some(limits)) => VmEnd::Failed(format!(
                "the VM's process needed more than the {} MiB of memory that its cgroup allows, and was killed",
                limits.memory_mib
            )),
            _ => end,
        }
    }

    /// Lets the VM's user connect to a socket that its keeper made.
    ///
    /// # Errors
    /// When the socket cannot be given to it.
    pub(super) fn let_connect(&self, socket: &Path) -> Result<(), FileError> {
        self.confinement.user.map_or(Ok(()), |user| give(socket, user))
    }
}

fn give(path: &Path, user: u32) -> Result<(), FileError> {
    chown(path, Some(user), Some(user)).map_err(FileError::io("give the VM's user", path))
}
