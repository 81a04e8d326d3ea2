//! The state of a sandbox: derived from its lock and its records, never stored.

use super::records::{ExitReason, ExitRecord, PauseRecord, ProcessIdentity, ReadyRecord, RunRecord, WaitRecord};
use crate::pools::PoolRef;
use crate::store::files;
use crate::store::names::SandboxId;
use crate::store::{Store, StoreError};

/// How often the records are read again while the lock changes hands.
const ATTEMPTS: usize = 8;

/// What a sandbox is doing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum State {
    /// It was never started.
    Created,
    /// Its VMM process lives, its agent has not said yet that it serves SSH.
    Starting {
        /// The run, once its VMM process has said so.
        run: Option<RunRecord>,
    },
    /// It serves SSH.
    Running {
        /// The run.
        run: RunRecord,
        /// When it was ready.
        ready: ReadyRecord,
    },
    /// It was ready, and stands still until it is resumed.
    Paused {
        /// The run.
        run: RunRecord,
        /// When it was ready.
        ready: ReadyRecord,
    },
    /// It stands still and is nobody's, until it is taken from its pool.
    Waiting {
        /// The run.
        run: RunRecord,
        /// The pool.
        pool: PoolRef,
    },
    /// Its guest has ended, its VMM process is about to.
    Stopping {
        /// The run.
        run: RunRecord,
    },
    /// It ended because it was told to.
    Stopped(ExitRecord),
    /// It ended by itself, or its VMM process vanished.
    Crashed {
        /// One line for people.
        message: String,
        /// What its VMM process wrote down, if it could.
        exit: Option<ExitRecord>,
    },
}

impl State {
    /// The stable word for the state.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting { .. } => "starting",
            Self::Running { .. } => "running",
            Self::Paused { .. } => "paused",
            Self::Waiting { .. } => "waiting",
            Self::Stopping { .. } => "stopping",
            Self::Stopped(_) => "stopped",
            Self::Crashed { .. } => "crashed",
        }
    }

    /// The run of a VMM process that lives.
    pub fn run(&self) -> Option<&RunRecord> {
        match self {
            Self::Running { run, .. }
            | Self::Paused { run, .. }
            | Self::Waiting { run, .. }
            | Self::Stopping { run } => Some(run),
            Self::Starting { run } => run.as_ref(),
            _ => None,
        }
    }

    /// Whether a VMM process lives.
    pub fn is_alive(&self) -> bool {
        matches!(
            self,
            Self::Starting { .. }
                | Self::Running { .. }
                | Self::Paused { .. }
                | Self::Waiting { .. }
                | Self::Stopping { .. }
        )
    }

    /// The record of its end, if there is one.
    pub fn exit(&self) -> Option<&ExitRecord> {
        match self {
            Self::Stopped(exit) => Some(exit),
            Self::Crashed { exit, .. } => exit.as_ref(),
            _ => None,
        }
    }

    /// How it ended, in words, if it did.
    pub fn message(&self) -> Option<&str> {
        match self {
            Self::Stopped(exit) => Some(&exit.message),
            Self::Crashed { message, .. } => Some(message),
            _ => None,
        }
    }
}

/// The records of a sandbox as they lie on the disk: each may be of an older run than another.
#[derive(Clone, Debug, Default)]
struct Records {
    run: Option<RunRecord>,
    ready: Option<ReadyRecord>,
    paused: Option<PauseRecord>,
    waiting: Option<WaitRecord>,
    exit: Option<ExitRecord>,
}

/// Reads the state of a sandbox.
///
/// # Errors
/// When it does not exist or a record cannot be read.
pub fn read(store: &Store, id: &SandboxId) -> Result<State, StoreError> {
    let dir = store.layout().sandbox(id);
    let look = || Ok::<_, StoreError>((store.is_running(id)?, files::read_json::<RunRecord>(&dir.run())?));
    let (mut held, mut run) = look()?;
    // Lock and records cannot be read at once: read until neither lock nor run changed in between.
    let mut attempts = ATTEMPTS;
    loop {
        // A fork that is taken from its pool loses these two in the other order: in this one it is never seen as running.
        let waiting = files::read_json(&dir.waiting())?;
        let ready = files::read_json(&dir.ready())?;
        let paused = files::read_json(&dir.paused())?;
        let exit = files::read_json(&dir.exit())?;
        let before = (held, run);
        (held, run) = look()?;
        attempts -= 1;
        if attempts == 0 || (held, run_id(run.as_ref())) == (before.0, run_id(before.1.as_ref())) {
            let records = Records {
                run,
                ready,
                paused,
                waiting,
                exit,
            };
            return Ok(derive(held, records));
        }
    }
}

fn run_id(run: Option<&RunRecord>) -> Option<&str> {
    run.map(|run| run.run_id.as_str())
}

fn derive(held: bool, records: Records) -> State {
    let Some(run) = records.run else {
        return if held {
            State::Starting { run: None }
        } else {
            State::Created
        };
    };
    let ready = records.ready.filter(|ready| ready.run_id == run.run_id);
    let exit = records.exit.filter(|exit| exit.run_id == run.run_id);
    let is_paused = records.paused.is_some_and(|paused| paused.run_id == run.run_id);
    let waiting = records.waiting.filter(|waiting| waiting.run_id == run.run_id);
    match (held, exit, ready) {
        (true, Some(_), _) => State::Stopping { run },
        (true, None, Some(ready)) => match waiting {
            Some(WaitRecord { pool, .. }) => State::Waiting { run, pool },
            None if is_paused => State::Paused { run, ready },
            None => State::Running { run, ready },
        },
        (true, None, None) => State::Starting { run: Some(run) },
        (false, Some(exit), _) => ended(exit),
        (false, None, _) => State::Crashed {
            message: vanished(&run.process),
            exit: None,
        },
    }
}

/// What became of a VMM process that left no record of its end.
fn vanished(process: &ProcessIdentity) -> String {
    match process.is_of_earlier_boot() {
        true => "the host went down while it ran; `msb start` starts it again".into(),
        false => format!(
            "the VMM process {} died without a word; see `msb logs --vmm`",
            process.pid
        ),
    }
}

fn ended(exit: ExitRecord) -> State {
    match exit.reason {
        ExitReason::Shutdown | ExitReason::Killed | ExitReason::Deadline => State::Stopped(exit),
        ExitReason::GuestReset | ExitReason::VmmError => State::Crashed {
            message: exit.message.clone(),
            exit: Some(exit),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timings::Timings;
    use jiff::Timestamp;

    fn run(run_id: &str) -> Option<RunRecord> {
        let process = ProcessIdentity {
            pid: 7,
            start_ticks: 1,
            boot_id: "b".into(),
        };
        let (started_at, socket) = (Timestamp::UNIX_EPOCH, "/s".into());
        Some(RunRecord {
            run_id: run_id.into(),
            process,
            vm: None,
            volumes: Vec::new(),
            started_at,
            socket,
        })
    }

    fn ready(run_id: &str) -> Option<ReadyRecord> {
        let (ready_at, agent, timings) = (Timestamp::UNIX_EPOCH, String::new(), Timings::default());
        Some(ReadyRecord {
            run_id: run_id.into(),
            ready_at,
            agent,
            timings,
        })
    }

    fn exit(run_id: &str, reason: ExitReason) -> Option<ExitRecord> {
        let (ended_at, message) = (Timestamp::UNIX_EPOCH, "why".into());
        Some(ExitRecord {
            run_id: run_id.into(),
            ended_at,
            reason,
            message,
        })
    }

    #[test]
    fn each_combination_of_lock_and_records_is_one_state() {
        use ExitReason::{GuestReset, Killed, Shutdown, VmmError};
        let old_exit = || exit("old", Shutdown);
        let cases = [
            (false, None, None, None, "created"),
            (true, None, None, None, "starting"),
            (true, run("a"), None, None, "starting"),
            (true, run("a"), ready("old"), old_exit(), "starting"),
            (true, run("a"), ready("a"), old_exit(), "running"),
            (true, run("a"), ready("a"), exit("a", Shutdown), "stopping"),
            (true, run("a"), None, exit("a", VmmError), "stopping"),
            (false, run("a"), ready("a"), exit("a", Shutdown), "stopped"),
            (false, run("a"), ready("a"), exit("a", Killed), "stopped"),
            (false, run("a"), ready("a"), exit("a", GuestReset), "crashed"),
            (false, run("a"), None, exit("a", VmmError), "crashed"),
            (false, run("a"), ready("a"), old_exit(), "crashed"),
            (false, run("a"), ready("a"), None, "crashed"),
            (false, run("a"), None, None, "crashed"),
        ];
        for (held, run, ready, exit, word) in cases {
            let records = Records {
                run,
                ready,
                exit,
                ..Records::default()
            };
            let state = derive(held, records.clone());
            assert_eq!(state.word(), word, "held: {held}, {records:?}");
            assert_eq!(state.is_alive(), held);
        }
    }

    #[test]
    fn a_pause_is_of_one_run_and_ends_with_it() {
        let records = |pause: &str, exit| Records {
            run: run("a"),
            ready: ready("a"),
            paused: Some(PauseRecord {
                run_id: pause.into(),
                paused_at: Timestamp::UNIX_EPOCH,
            }),
            exit,
            waiting: None,
        };
        let paused = derive(true, records("a", None));
        assert!(paused.word() == "paused" && paused.is_alive() && paused.run().is_some());
        assert_eq!(derive(true, records("old", None)).word(), "running");
        assert_eq!(
            derive(true, records("a", exit("a", ExitReason::Killed))).word(),
            "stopping"
        );
        assert_eq!(
            derive(false, records("a", exit("a", ExitReason::Killed))).word(),
            "stopped"
        );
    }

    #[test]
    fn what_waits_in_a_pool_is_paused_for_nobody() {
        let records = |of: &str, ready| Records {
            run: run("a"),
            ready,
            paused: Some(PauseRecord {
                run_id: "a".into(),
                paused_at: Timestamp::UNIX_EPOCH,
            }),
            waiting: Some(WaitRecord {
                run_id: of.into(),
                pool: PoolRef {
                    name: "pool".parse().unwrap(),
                    id: "b".into(),
                },
            }),
            exit: None,
        };
        let waiting = derive(true, records("a", ready("a")));
        assert!(waiting.word() == "waiting" && waiting.is_alive() && waiting.run().is_some());
        assert_eq!(derive(true, records("old", ready("a"))).word(), "paused");
        assert_eq!(derive(true, records("a", None)).word(), "starting", "it is just taken");
        assert_eq!(derive(false, records("a", ready("a"))).word(), "crashed");
    }

    #[test]
    fn a_crash_says_why_as_far_as_anybody_knows() {
        let records = Records {
            run: run("a"),
            exit: exit("a", ExitReason::GuestReset),
            ..Records::default()
        };
        assert_eq!(derive(false, records).message(), Some("why"));
        let mut died = run("a").unwrap();
        died.process.boot_id = ProcessIdentity::of_self().unwrap().boot_id;
        let message = |run| {
            let records = Records {
                run: Some(run),
                ..Records::default()
            };
            derive(false, records).message().map(str::to_owned)
        };
        assert_eq!(
            message(died).as_deref(),
            Some("the VMM process 7 died without a word; see `msb logs --vmm`")
        );
        let of_another_boot = run("a").unwrap();
        assert_eq!(
            message(of_another_boot).as_deref(),
            Some("the host went down while it ran; `msb start` starts it again")
        );
    }
}
