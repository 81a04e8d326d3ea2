//! What becomes of the sandboxes of a store, as it happens.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, WatchFlags};
use rustix::io::Errno;
use serde::Serialize;

use crate::Sandbox;
use crate::sandbox::records::ExitReason;
use crate::sandbox::state::State;
use crate::store::files::{self, FileError};
use crate::store::names::{Name, SandboxId};
use crate::store::{Store, StoreError};

/// How long the end of a VMM process that was killed can go unnoticed: it touches no file.
const RECHECK: Duration = Duration::from_millis(250);

/// The state after the last: the sandbox is gone.
const REMOVED: &str = "removed";

/// Words of [`State::word`].
const STARTING: &str = "starting";
const PAUSED: &str = "paused";
const RUNNING: &str = "running";

/// A sandbox has come into another state.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Event {
    /// When: as its VMM process wrote it down, else when it was noticed; never before what was told of it earlier.
    pub time: Timestamp,
    /// Which sandbox.
    pub id: SandboxId,
    /// Its name.
    pub name: Option<Name>,
    /// The word for the state ([`State::word`]), or `removed`.
    pub state: &'static str,
    /// How it ended, in words, if it did.
    pub message: Option<String>,
    /// How it ended, for programs, if that was written down.
    pub exit_reason: Option<ExitReason>,
}

/// The events of a store from now on. A state that is over before anybody looks is passed over.
#[derive(Debug)]
pub struct Events {
    store: Store,
    inotify: OwnedFd,
    seen: BTreeMap<SandboxId, Seen>,
    /// When what was last told of a sandbox was.
    told: BTreeMap<SandboxId, Timestamp>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Seen {
    name: Option<Name>,
    /// Of the run: a restart between two looks is a change, too.
    run_id: Option<String>,
    state: &'static str,
    since: Option<Timestamp>,
    message: Option<String>,
    exit_reason: Option<ExitReason>,
    is_alive: bool,
}

impl Events {
    /// Begins to watch `store`.
    ///
    /// # Errors
    /// When it cannot be watched or read.
    pub fn of(store: &Store) -> Result<Self, StoreError> {
        let directory = store.layout().sandboxes();
        files::create_private_dirs(&directory)?;
        let watch = || -> io::Result<OwnedFd> {
            let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
            // Sandboxes appear and disappear by renames.
            inotify::add_watch(&inotify, &directory, WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM)?;
            Ok(inotify)
        };
        let inotify = watch().map_err(FileError::io("watch", &directory))?;
        let mut events = Self {
            store: store.clone(),
            inotify,
            seen: BTreeMap::new(),
            told: BTreeMap::new(),
        };
        events.look()?;
        Ok(events)
    }

    /// Blocks until something has happened; returns what.
    ///
    /// # Errors
    /// When the store cannot be read or watched any more.
    pub fn next_batch(&mut self) -> Result<Vec<Event>, StoreError> {
        loop {
            if self.wait()? {
                let events = self.look()?;
                if !events.is_empty() {
                    return Ok(events);
                }
            }
        }
    }

    /// Blocks for a while; whether it is worth a look then.
    fn wait(&self) -> Result<bool, StoreError> {
        let pause = Timespec::try_from(RECHECK).expect("a quarter of a second fits");
        match poll(&mut [PollFd::new(&self.inotify, PollFlags::IN)], Some(&pause)) {
            Ok(0) => self.any_vmm_ended(),
            Ok(_) => {
                // What they say is read from the records.
                while rustix::io::read(&self.inotify, &mut [0_u8; 4096]).is_ok_and(|read| read > 0) {}
                Ok(true)
            }
            Err(Errno::INTR) => Ok(false),
            Err(errno) => Err(FileError::io("watch", &self.store.layout().sandboxes())(errno.into()).into()),
        }
    }

    fn any_vmm_ended(&self) -> Result<bool, StoreError> {
        let mut alive = self.seen.iter().filter(|(_, seen)| seen.is_alive);
        alive.try_fold(false, |ended, (id, _)| match self.store.is_running(id) {
            Ok(running) => Ok(ended || !running),
            Err(StoreError::Unknown(_)) => Ok(true),
            Err(error) => Err(error),
        })
    }

    /// Compares what there is with what there was.
    fn look(&mut self) -> Result<Vec<Event>, StoreError> {
        let mut now = BTreeMap::new();
        for id in self.store.ids()? {
            // Before its records are read, so that no change after that goes unnoticed. It may be gone by now.
            let _ = inotify::add_watch(
                &self.inotify,
                self.store.layout().sandbox(&id).path(),
                // A pause ends with its record.
                WatchFlags::MOVED_TO | WatchFlags::DELETE,
            );
            match Seen::of(&self.store, &id) {
                Ok(seen) => now.insert(id, seen),
                Err(StoreError::Unknown(_)) => continue,
                // One that cannot be read is as it was.
                Err(_) => self.seen.get(&id).cloned().and_then(|seen| now.insert(id, seen)),
            };
        }
        let mut events = changes(&self.seen, &now);
        in_order(&mut events, &mut self.told);
        self.told.retain(|id, _| now.contains_key(id));
        self.seen = now;
        Ok(events)
    }
}

impl Seen {
    fn of(store: &Store, id: &SandboxId) -> Result<Self, StoreError> {
        let sandbox = Sandbox::open(store, id)?;
        let state = sandbox.state()?;
        let since = match &state {
            State::Created => Some(sandbox.config().created_at),
            State::Starting { run } => run.as_ref().map(|run| run.started_at),
            State::Running { ready, .. } => Some(ready.ready_at),
            State::Paused { .. } | State::Waiting { .. } => None,
            state => state.exit().map(|exit| exit.ended_at),
        };
        let run_id = state.run().map(|run| run.run_id.clone());
        Ok(Self {
            name: sandbox.config().spec.name.clone(),
            run_id: run_id.or_else(|| state.exit().map(|exit| exit.run_id.clone())),
            state: state.word(),
            since,
            message: state.message().map(str::to_owned),
            exit_reason: state.exit().map(|exit| exit.reason),
            is_alive: state.is_alive(),
        })
    }

    /// That it is so, now.
    fn event(&self, id: &SandboxId) -> Event {
        Event {
            time: Timestamp::now(),
            id: id.clone(),
            name: self.name.clone(),
            state: self.state,
            message: self.message.clone(),
            exit_reason: self.exit_reason,
        }
    }
}

fn changes(before: &BTreeMap<SandboxId, Seen>, now: &BTreeMap<SandboxId, Seen>) -> Vec<Event> {
    let changed = now.iter().filter_map(|(id, seen)| {
        let earlier = before.get(id);
        (!earlier.is_some_and(|earlier| is_same(earlier, seen))).then(|| Event {
            // It is ready since before the pause, and running since now.
            time: match earlier.is_some_and(|earlier| earlier.state == PAUSED) && seen.state == RUNNING {
                true => Timestamp::now(),
                false => seen.since.unwrap_or_else(Timestamp::now),
            },
            ..seen.event(id)
        })
    });
    let gone = before
        .iter()
        .filter(|(id, _)| !now.contains_key(id))
        .map(|(id, seen)| Event {
            state: REMOVED,
            message: None,
            exit_reason: None,
            ..seen.event(id)
        });
    changed.chain(gone).collect()
}

/// Whether there is nothing new: a start is known before its run is.
fn is_same(earlier: &Seen, now: &Seen) -> bool {
    let got_its_run = now.state == STARTING && earlier.run_id.is_none();
    earlier.state == now.state && (earlier.run_id == now.run_id || got_its_run)
}

/// Sorts by time. What was noticed late is told with the time of noticing, which what follows must not precede.
fn in_order(events: &mut [Event], told: &mut BTreeMap<SandboxId, Timestamp>) {
    for event in events.iter_mut() {
        let last = told.entry(event.id.clone()).or_insert(event.time);
        *last = event.time.max(*last);
        event.time = *last;
    }
    events.sort_by_key(|event| event.time);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(state: &'static str, run_id: Option<&str>) -> Seen {
        Seen {
            name: None,
            run_id: run_id.map(str::to_owned),
            state,
            since: None,
            message: None,
            exit_reason: None,
            is_alive: false,
        }
    }

    fn store(sandboxes: &[(&str, Seen)]) -> BTreeMap<SandboxId, Seen> {
        let of = |(id, seen): &(&str, Seen)| (id.parse().unwrap(), seen.clone());
        sandboxes.iter().map(of).collect()
    }

    fn states(before: &[(&str, Seen)], now: &[(&str, Seen)]) -> Vec<(String, &'static str)> {
        let events = changes(&store(before), &store(now));
        events.iter().map(|event| (event.id.to_string(), event.state)).collect()
    }

    const A: &str = "aaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbb";

    #[test]
    fn a_state_is_told_once() {
        let running = (A, seen("running", Some("1")));
        assert_eq!(states(&[], std::slice::from_ref(&running)), [(A.into(), "running")]);
        assert_eq!(
            states(std::slice::from_ref(&running), std::slice::from_ref(&running)),
            []
        );
        assert_eq!(states(std::slice::from_ref(&running), &[]), [(A.into(), "removed")]);
    }

    #[test]
    fn a_guest_that_goes_on_does_so_from_then_on() {
        let ready = Timestamp::UNIX_EPOCH;
        let running = Seen {
            since: Some(ready),
            ..seen("running", Some("1"))
        };
        let before = store(&[(A, seen("paused", Some("1")))]);
        let resumed = changes(&before, &store(&[(A, running.clone())]));
        assert!(resumed[0].time > ready);
        let started = changes(&BTreeMap::new(), &store(&[(A, running)]));
        assert_eq!(started[0].time, ready);
    }

    #[test]
    fn a_start_is_told_once_though_its_run_is_known_later() {
        let begun = (A, seen("starting", None));
        let run = (A, seen("starting", Some("1")));
        assert_eq!(states(std::slice::from_ref(&begun), std::slice::from_ref(&run)), []);
        let again = (A, seen("starting", Some("2")));
        assert_eq!(states(&[run], &[again]), [(A.into(), "starting")]);
    }

    #[test]
    fn no_event_of_a_sandbox_precedes_an_earlier_one() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let event = |second| Event {
            time: at(second),
            ..seen("stopped", Some("1")).event(&A.parse().unwrap())
        };
        let mut told = BTreeMap::new();
        in_order(&mut [event(5)], &mut told);
        let mut events = [event(4)];
        in_order(&mut events, &mut told);
        assert_eq!(events[0].time, at(5));
    }

    #[test]
    fn a_restart_that_nobody_saw_is_told() {
        let (first, second) = (seen("running", Some("1")), seen("running", Some("2")));
        let other = (B, seen("stopped", Some("3")));
        assert_eq!(
            states(&[(A, first), other.clone()], &[(A, second), other]),
            [(A.into(), "running")]
        );
    }
}
