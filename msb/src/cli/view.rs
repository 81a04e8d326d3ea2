//! A sandbox as the verbs show it. The JSON has a stable schema: keys are added, never changed or left out.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use msb_protocol::identity::SshFeatures;
use serde::Serialize;

use super::timeout::DeadlineView;
use crate::Sandbox;
use crate::jail::{Isolation, Layers};
use crate::sandbox::deadline::{Timeout, TimeoutEnd};
use crate::sandbox::records::{ExitReason, RunRecord, VmProcess, VolumeServer};
use crate::sandbox::spec::{CpuLimit, Disk, Memory, SandboxImage, Volume};
use crate::sandbox::state::State;
use crate::store::StoreError;
use crate::store::files;
use crate::store::names::{Name, SandboxId};
use crate::timings::Timings;

/// One sandbox.
#[derive(Debug, Serialize)]
pub(super) struct SandboxView {
    pub(super) id: SandboxId,
    pub(super) name: Option<Name>,
    pub(super) state: &'static str,
    /// How it ended, for people.
    pub(super) message: Option<String>,
    /// How it ended, for programs.
    pub(super) exit_reason: Option<ExitReason>,
    /// What to call it with ssh.
    pub(super) host: String,
    /// The VMM process, while it lives.
    pub(super) pid: Option<i32>,
    /// The VM's own process and the layers that hold around it, while it lives.
    pub(super) vm: Option<VmProcess>,
    pub(super) isolation: Isolation,
    /// What was asked for beyond what every sandbox is limited to: percent of a CPU, MiB a second.
    pub(super) cpu_limit: Option<CpuLimit>,
    pub(super) io_limit: Option<Memory>,
    /// What its SSH server offers.
    pub(super) ssh: SshFeatures,
    pub(super) created_at: Timestamp,
    pub(super) started_at: Option<Timestamp>,
    pub(super) ready_at: Option<Timestamp>,
    pub(super) ended_at: Option<Timestamp>,
    /// How long a run may take, and what ends it then.
    pub(super) timeout_ms: Option<Timeout>,
    pub(super) on_timeout: TimeoutEnd,
    /// When this run will be ended, while its VMM process lives.
    pub(super) deadline: Option<Timestamp>,
    /// How long that is from now.
    pub(super) seconds_left: Option<f64>,
    pub(super) cpus: u8,
    pub(super) memory_mib: u32,
    pub(super) kernel: Option<PathBuf>,
    pub(super) cmdline: String,
    /// What it was made from.
    pub(super) image: Option<SandboxImage>,
    /// How much it may write in addition to its image.
    pub(super) disk_size_mib: Option<u32>,
    pub(super) disks: Vec<Disk>,
    /// Files of the host that it has, and who serves them while its VMM process lives.
    pub(super) volumes: Vec<VolumeView>,
    pub(super) env: BTreeMap<String, String>,
    pub(super) labels: BTreeMap<String, String>,
    /// The agent's version, while it runs.
    pub(super) agent: Option<String>,
    /// The phases of the start, while it runs.
    pub(super) timings: Option<Timings>,
    /// The vsock socket, while its VMM process lives.
    pub(super) socket: Option<PathBuf>,
    pub(super) directory: PathBuf,
}

/// A volume of a sandbox.
#[derive(Debug, Serialize)]
pub(super) struct VolumeView {
    #[serde(flatten)]
    volume: Volume,
    /// The process that serves it and the layers that hold around it, while it lives.
    server: Option<VolumeServerView>,
}

#[derive(Debug, Serialize)]
struct VolumeServerView {
    pid: i32,
    layers: Layers,
}

impl VolumeView {
    fn all(volumes: Vec<Volume>, run: Option<&RunRecord>) -> Vec<Self> {
        let mut servers = run.map(|run| run.volumes.clone()).unwrap_or_default().into_iter();
        let view = |volume| Self {
            volume,
            server: servers
                .next()
                .filter(VolumeServer::lives)
                .map(|server| VolumeServerView {
                    pid: server.process.pid,
                    layers: server.layers,
                }),
        };
        volumes.into_iter().map(view).collect()
    }
}

impl SandboxView {
    /// What is known of a sandbox now.
    pub(super) fn of(sandbox: &Sandbox) -> Result<Self, StoreError> {
        let state = sandbox.state()?;
        let config = sandbox.config();
        let spec = config.spec.clone();
        let started_at = match state.run() {
            Some(run) => Some(run.started_at),
            None => files::read_json(&sandbox.dir().run())?.map(|run: RunRecord| run.started_at),
        };
        let ready = match &state {
            State::Running { ready, .. } | State::Paused { ready, .. } => Some(ready.clone()),
            _ => None,
        };
        let deadline = sandbox.deadline_in(&state)?;
        let deadline = deadline.map(DeadlineView::of).unwrap_or_default();
        let exit = state.exit();
        Ok(Self {
            id: config.id.clone(),
            state: state.word(),
            message: state.message().map(str::to_owned),
            exit_reason: exit.map(|exit| exit.reason),
            host: format!("{}.msb", config.label()),
            pid: state.run().map(|run| run.process.pid),
            vm: state.run().and_then(|run| run.vm),
            isolation: spec.isolation,
            cpu_limit: spec.cpu_limit,
            io_limit: spec.io_limit,
            ssh: spec.ssh,
            created_at: config.created_at,
            started_at,
            ready_at: ready.as_ref().map(|ready| ready.ready_at),
            ended_at: exit.map(|exit| exit.ended_at),
            timeout_ms: spec.timeout,
            on_timeout: deadline.on_timeout.unwrap_or(spec.on_timeout),
            deadline: deadline.deadline,
            seconds_left: deadline.seconds_left,
            agent: ready.as_ref().map(|ready| ready.agent.clone()),
            timings: ready.map(|ready| ready.timings),
            socket: state.run().map(|run| run.socket.clone()),
            directory: sandbox.dir().path().to_owned(),
            name: spec.name,
            cpus: spec.cpus,
            memory_mib: spec.memory.mib,
            kernel: spec.kernel,
            cmdline: spec.cmdline,
            disk_size_mib: spec.image.as_ref().map(|_| spec.disk_size.mib),
            image: spec.image,
            disks: spec.disks,
            volumes: VolumeView::all(spec.volumes, state.run()),
            env: spec.env,
            labels: spec.labels,
        })
    }
}
