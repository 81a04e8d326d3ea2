//! The processes that serve the volumes of a sandbox: the keeper forks one for each, and it goes to jail before the VM is
//! there.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use msb_protocol::identity::VolumeMount;
use msb_vmm::FileSystemConfig;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, set_parent_process_death_signal, waitpid};
use serde::{Deserialize, Serialize};

use super::machine::close_all_but;
use super::surroundings::Surroundings;
use crate::jail::Layers;
use crate::jail::file_server::{self, FILE_NAME, ServerConfinement};
use crate::jail::namespaces::{self, Forked};
use crate::report;
use crate::sandbox::records::{ProcessIdentity, VolumeServer};
use crate::sandbox::spec::{SandboxSpec, Volume};

/// How long a process may take to say that it is in jail.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of what it says.
const MAX_WORD: u64 = 64 << 10;

/// Why a volume cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum VolumeError {
    #[error("cannot start a process for the volume {path}")]
    Start { path: String, source: io::Error },
    #[error("cannot serve the volume {path}: {reason}")]
    Serve { path: String, reason: String },
}

/// What a process says of itself before it serves.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Word {
    Serves(Layers),
    Fails(String),
}

/// The servers of a sandbox. Dropping this ends them.
#[derive(Debug, Default)]
pub(super) struct Volumes {
    servers: Vec<Server>,
}

#[derive(Debug)]
struct Server {
    record: VolumeServer,
    /// Until the VM has it.
    device: Option<FileSystemConfig>,
    _process: Process,
}

/// A child, which ends with this.
#[derive(Debug)]
struct Process(Pid);

impl Drop for Process {
    fn drop(&mut self) {
        // A child that was not waited for yet has its number to itself.
        let _ = kill_process(self.0, Signal::KILL);
        let _ = waitpid(Some(self.0), WaitOptions::empty());
    }
}

impl Volumes {
    /// Forks a server for each volume of `spec`.
    ///
    /// # Safety
    /// The process has one thread.
    ///
    /// # Errors
    /// When one cannot be served; none is left then.
    pub(super) unsafe fn serve(spec: &SandboxSpec, surroundings: &Surroundings) -> Result<Self, VolumeError> {
        let mut volumes = Self::default();
        for (index, volume) in spec.volumes.iter().enumerate() {
            let confinement = ServerConfinement {
                volume: volume.host.clone(),
                writable: !volume.read_only,
                isolation: spec.isolation,
                limits: surroundings.confinement.limits,
            };
            // SAFETY: the caller's promise.
            let server = unsafe { Server::spawn(tag(index), volume, &confinement, surroundings) }?;
            volumes.servers.push(server);
        }
        Ok(volumes)
    }

    /// What the VM reaches them by, and nobody else from then on: they end with it.
    pub(super) fn take_devices(&mut self) -> Vec<FileSystemConfig> {
        let devices = self.servers.iter_mut().map(|server| server.device.take());
        devices.flatten().collect()
    }

    /// What is written down of them.
    pub(super) fn records(&self) -> Vec<VolumeServer> {
        self.servers.iter().map(|server| server.record.clone()).collect()
    }
}

/// What the guest mounts for `spec`.
pub(super) fn mounts(spec: &SandboxSpec) -> Vec<VolumeMount> {
    let mount = |(index, volume): (usize, &Volume)| VolumeMount {
        tag: tag(index),
        path: volume.guest.clone(),
        read_only: volume.read_only,
        // What is not there any more its server will tell.
        file: volume.host.is_file().then(|| FILE_NAME.to_owned()),
    };
    spec.volumes.iter().enumerate().map(mount).collect()
}

fn tag(index: usize) -> String {
    format!("msb-{index}")
}

impl Server {
    /// # Safety
    /// As for [`Volumes::serve`].
    unsafe fn spawn(
        tag: String,
        volume: &Volume,
        confinement: &ServerConfinement,
        surroundings: &Surroundings,
    ) -> Result<Self, VolumeError> {
        let start = |source| VolumeError::Start {
            path: volume.host.display().to_string(),
            source,
        };
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|errno| start(errno.into()))?;
        let (word, say) = UnixStream::pair().map_err(start)?;
        // SAFETY: the caller's promise.
        let process = match unsafe { namespaces::fork(surroundings.cgroup.as_ref()) }.map_err(start)? {
            Forked::Child { in_namespaces } => run(confinement, &theirs, say, in_namespaces),
            Forked::Parent(pid) => Process(pid),
        };
        drop((theirs, say));
        let layers = hear(word).map_err(|reason| VolumeError::Serve {
            path: volume.host.display().to_string(),
            reason,
        })?;
        let record = VolumeServer {
            process: ProcessIdentity::of(process.0).map_err(start)?,
            layers,
        };
        Ok(Self {
            record,
            device: Some(FileSystemConfig {
                tag,
                socket: Arc::new(ours),
            }),
            _process: process,
        })
    }
}

/// What a new process says.
fn hear(word: UnixStream) -> Result<Layers, String> {
    let _ = word.set_read_timeout(Some(START_TIMEOUT));
    let mut said = Vec::new();
    let heard = word.take(MAX_WORD).read_to_end(&mut said);
    match serde_json::from_slice(&said) {
        Ok(Word::Serves(layers)) => Ok(layers),
        Ok(Word::Fails(reason)) => Err(reason),
        Err(_) => Err(match heard {
            Ok(_) => "its process died".into(),
            Err(error) => format!("its process does not answer: {error}"),
        }),
    }
}

/// The server, from the fork to its end. It ends with its keeper, and has nothing of the keeper's but its log.
fn run(confinement: &ServerConfinement, socket: &OwnedFd, mut say: UnixStream, in_namespaces: bool) -> ! {
    // A file that may grow no further is an error of the guest's.
    // SAFETY: nothing in this process handles that signal.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let prepared = set_parent_process_death_signal(Some(Signal::KILL))
        .and_then(|()| rustix::thread::set_name(c"msb-volume"))
        .map_err(io::Error::from)
        .and_then(|()| close_all_but(&mut [0, 1, 2, socket.as_raw_fd(), say.as_raw_fd()]));
    let jailed = match prepared {
        Ok(()) => file_server::enter(confinement, in_namespaces).map_err(|error| report::one_line(&error)),
        Err(error) => Err(error.to_string()),
    };
    let (word, export) = match jailed {
        Ok((layers, export)) => (Word::Serves(layers), Some(export)),
        Err(reason) => (Word::Fails(reason), None),
    };
    let word = serde_json::to_vec(&word).expect("the word has string keys and no failing serializers");
    // A keeper that is gone takes this process with it.
    let _ = say.write_all(&word);
    drop(say);
    if let Some(export) = export {
        let Err(end) = msb_volume::serve(socket, &export);
        tracing::info!(
            error = &end as &dyn std::error::Error,
            "a volume is not served any more"
        );
    }
    std::process::exit(0)
}
