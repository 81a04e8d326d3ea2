//! What the VMM process writes down about a run.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::deadline::TimeoutEnd;
use crate::jail::Layers;
use crate::pools::PoolRef;
use crate::timings::Timings;

/// The content of `run.json`: which run is, or was, the latest.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RunRecord {
    /// Tells this run's records from those of other runs.
    pub run_id: String,
    /// The VMM process.
    pub process: ProcessIdentity,
    /// The VM's own process, once the guest runs.
    #[serde(default)]
    pub vm: Option<VmProcess>,
    /// The processes that serve its volumes, in the order of the specification, once the guest runs.
    #[serde(default)]
    pub volumes: Vec<VolumeServer>,
    /// When it started.
    pub started_at: Timestamp,
    /// The socket that leads to the guest's vsock ports.
    pub socket: std::path::PathBuf,
}

/// The process in which a guest runs. It lives no longer than its VMM process.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VmProcess {
    /// Process id.
    pub pid: i32,
    /// What holds around it.
    pub layers: Layers,
}

/// The process that serves a volume. It lives no longer than its VMM process.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct VolumeServer {
    /// The process.
    pub process: ProcessIdentity,
    /// What holds around it.
    pub layers: Layers,
}

/// A process, also after its pid was given to another one.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessIdentity {
    /// Process id.
    pub pid: i32,
    /// When the kernel started it, in clock ticks since boot (proc(5), `/proc/PID/stat` field 22).
    pub start_ticks: u64,
    /// Which boot of the host: `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}

/// The content of `ready.json`: the agent serves SSH.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ReadyRecord {
    /// The run this is about.
    pub run_id: String,
    /// When.
    pub ready_at: Timestamp,
    /// Version of the agent.
    pub agent: String,
    /// How long it took to get there.
    pub timings: Timings,
}

/// The content of `paused.json`: the guest stands still until it is told to go on.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PauseRecord {
    /// The run this is about.
    pub run_id: String,
    /// Since when.
    pub paused_at: Timestamp,
}

/// The content of `waiting.json`: a fork that nobody uses stands still until it is taken.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct WaitRecord {
    /// The run this is about.
    pub run_id: String,
    /// Who made it and may take it.
    pub pool: PoolRef,
}

/// The content of `deadline.json`: when a run will be ended that has not ended before. Absent while its time has no limit.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DeadlineRecord {
    /// The run this is about.
    pub run_id: String,
    /// When that is, as the clock was when it was set.
    pub at: Timestamp,
    /// The same since the host booted, with the time that it was asleep: `CLOCK_BOOTTIME`.
    pub boot_time: Duration,
    /// What happens then.
    pub end: TimeoutEnd,
}

/// The content of `exit.json`: how a run ended.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ExitRecord {
    /// The run this is about.
    pub run_id: String,
    /// When it ended.
    pub ended_at: Timestamp,
    /// The kind of end.
    pub reason: ExitReason,
    /// One line for people.
    pub message: String,
}

/// The kinds of end.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitReason {
    /// The guest shut down in order.
    Shutdown,
    /// Somebody ended the VMM.
    Killed,
    /// Its time was over, and it was ended in order or at once.
    Deadline,
    /// The guest reset without shutting down: a kernel panic, for one.
    GuestReset,
    /// The VMM could not go on, or could not start.
    VmmError,
}
