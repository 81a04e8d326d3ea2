//! What a process that runs a guest gives up before the guest's first instruction.
//!
//! Layers, each of which holds if the others fail: namespaces of its own (user, mount, PID, network, IPC, UTS, cgroup)
//! with an empty root directory, Landlock without a single allowed path, no capabilities and no way to new privileges, a
//! user of its own if root started it, a cgroup and resource limits, and a seccomp filter for each kind of thread. Nothing
//! is opened afterwards: what the process works with are the descriptors it has by then.
//!
//! A process that serves a volume has a jail of its own with the directory in it ([`file_server`]).

pub mod cgroup;
pub mod file_server;
pub mod landlock;
pub mod namespaces;
pub mod privileges;
pub mod root;
pub mod seccomp;
pub mod user;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use cgroup::Limits;
use seccomp::Filters;

/// How much of the jail a sandbox insists on.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// What this host offers; what is missing is said.
    #[default]
    Available,
    /// Every layer, or the sandbox does not start.
    Strict,
}

/// Which layers hold around a guest.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Layers {
    /// Namespaces of its own, and an empty root directory.
    pub namespaces: bool,
    /// The Landlock ABI that is enforced; 0 when the host's kernel has none.
    pub landlock: u8,
    /// No capabilities, no new privileges.
    pub privileges: Always,
    /// A system call filter for each kind of thread.
    pub seccomp: Always,
    /// The user that it is: for root's sandboxes one of its own, else the user who started it.
    #[serde(default)]
    pub user: u32,
    /// What its cgroup holds it to; nothing when the host gave none.
    #[serde(default)]
    pub limits: Option<Limits>,
}

/// That a layer holds without which no guest runs: `true` for whoever reads it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(from = "bool", into = "bool")]
pub struct Always;

impl From<Always> for bool {
    fn from(Always: Always) -> Self {
        true
    }
}

impl From<bool> for Always {
    fn from(_: bool) -> Self {
        Self
    }
}

impl Layers {
    /// Those of this process, once it has its user and Landlock's version is known; it gets its filter next.
    fn of_process(namespaces: bool, landlock: u8, limits: Option<Limits>) -> Self {
        Self {
            namespaces,
            landlock,
            privileges: Always,
            seccomp: Always,
            user: rustix::process::geteuid().as_raw(),
            limits,
        }
    }

    /// The layers that are missing.
    pub fn missing(&self) -> Vec<Layer> {
        let layers = [
            (self.namespaces, Layer::Namespaces),
            (self.landlock > 0, Layer::Landlock),
            (self.user != 0, Layer::User),
            (self.limits.is_some(), Layer::Limits),
        ];
        layers
            .iter()
            .filter(|(holds, _)| !holds)
            .map(|(_, layer)| *layer)
            .collect()
    }
}

/// A layer of the jail that a host may lack.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Layer {
    /// User, mount, PID, IPC, UTS, network and cgroup namespaces of its own.
    Namespaces,
    /// Landlock (landlock(7)).
    Landlock,
    /// Another user than root.
    User,
    /// Limits of a cgroup (cgroups(7)).
    Limits,
}

impl Layer {
    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::Landlock => "landlock",
            Self::User => "user",
            Self::Limits => "limits",
        }
    }

    /// The names of several, for people.
    pub fn names(layers: &[Self]) -> String {
        let names: Vec<_> = layers.iter().map(|layer| layer.name()).collect();
        names.join(", ")
    }
}

/// Why a process cannot be jailed.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The kernel refused a step.
    #[error("cannot {doing} for a process in jail")]
    Refused {
        /// What was being done.
        doing: &'static str,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// A layer is missing that the sandbox insists on.
    #[error(
        "this host cannot isolate the VM as strictly as asked: it lacks {}; see `msb doctor`, or leave out \
         --isolation=strict",
        Layer::names(.0)
    )]
    Missing(Vec<Layer>),
    /// A volume is root's, and the sandbox insists that no process of root faces its guest.
    #[error("it belongs to root, who would serve it; give it to another user, or leave out --isolation=strict")]
    ServedByRoot,
}

impl JailError {
    /// Makes an error of what the kernel answered.
    fn refused<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Refused {
            doing,
            source: source.into(),
        }
    }
}

/// What a process is jailed with.
#[derive(Clone, Debug)]
pub struct Confinement {
    /// The directory that remains of the file system, under its own name, for connecting to sockets in it.
    pub reachable: PathBuf,
    /// How much of the jail it insists on.
    pub isolation: Isolation,
    /// The user to become, which takes root to do.
    pub user: Option<u32>,
    /// What its cgroup holds it to, if it has one.
    pub limits: Option<Limits>,
    /// Bytes of the largest file it may write.
    pub largest_file: u64,
}

/// Jails the calling process, which has one thread; if it had more, after [`share_one_heap`]. Returns the layers that hold, and the filters for the threads to come.
///
/// `in_namespaces` is what [`namespaces::fork`] said.
///
/// # Errors
/// When a step fails that this host should be able to do, or a layer is missing under [`Isolation::Strict`].
pub fn enter(confinement: &Confinement, in_namespaces: bool) -> Result<(Layers, Filters), JailError> {
    let filters = Filters::compile()?;
    share_one_heap();
    if in_namespaces {
        root::replace(&confinement.reachable)?;
    }
    privileges::limit_resources(Some(confinement.largest_file), privileges::VM_DESCRIPTORS)?;
    privileges::bound()?;
    if let Some(user) = confinement.user {
        user::become_user(user, user);
    }
    privileges::drop_all()?;
    let layers = Layers::of_process(in_namespaces, landlock::forbid_files()?, confinement.limits);
    let missing = layers.missing();
    if confinement.isolation == Isolation::Strict && !missing.is_empty() {
        return Err(JailError::Missing(missing));
    }
    filters.apply_to_process()?;
    Ok((layers, filters))
}

/// Gives all threads to come one heap, the program's own. With heaps for threads, the C library opens files, which kills a jailed
/// process: to learn how many heaps there may be, once eight threads have one (each disk has a thread), and to learn whether
/// one may shrink. The data path allocates nothing that threads could wait for each other for.
pub fn share_one_heap() {
    // SAFETY: the call takes numbers only.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_told_by_name_whether_they_can_be_missing_or_not() {
        let layers = Layers {
            namespaces: false,
            landlock: 0,
            privileges: Always,
            seccomp: Always,
            user: 7,
            limits: None,
        };
        let json = serde_json::json!({
            "namespaces": false, "landlock": 0, "privileges": true, "seccomp": true, "user": 7, "limits": null,
        });
        assert_eq!(serde_json::to_value(layers).unwrap(), json);
        assert_eq!(serde_json::from_value::<Layers>(json).unwrap(), layers);
        assert_eq!(layers.missing(), [Layer::Namespaces, Layer::Landlock, Layer::Limits]);
    }
}
