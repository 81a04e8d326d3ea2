//! What happens around a running VM: signals, the end of the starter, commands, the agent's notices.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use msb_protocol::notice::{Notice, RENEW, SHUT_DOWN};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::args::Lifetime;
use super::console::ConsolePump;
use super::control::server::{ControlServer, Effect};
use super::control::{Answer, Command, Take};
use super::deadline::{Deadline, Due};
use super::machine::{Heard, Machine};
use super::notices::Notices;
use super::outcome::Observed;
use super::signals::Signals;
use super::status::Starter;
use super::text;
use crate::pools::PoolRef;
use crate::report;
use crate::sandbox::deadline::{Timeout, TimeoutEnd};
use crate::store::StoreError;
use crate::store::files::FileError;

/// How long a VM may take to end that was asked to: its threads only have to return. One that was stopped by a signal
/// never does.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// Turns at the agent's connection after the VM has ended, should its process still write: more than the socket holds.
const MAX_LEFT: usize = 1024;

/// Watches until the VM has ended.
#[derive(Debug)]
pub(super) struct Watcher<'a> {
    /// Ask for the end of this process.
    pub(super) signals: Signals,
    /// Whom it runs for: another one once it was taken from a pool.
    pub(super) starter: &'a mut Starter,
    /// Whether it waits in a pool, for nobody yet.
    pub(super) waits: bool,
    /// What the agent says.
    pub(super) notices: Notices,
    /// What the guest writes to its console.
    pub(super) console: &'a mut ConsolePump,
    /// The VM.
    pub(super) machine: &'a mut Machine,
    /// Who tells the VM to stand still, to go on, to be saved.
    pub(super) control: ControlServer,
    /// When the run's time is over.
    pub(super) deadline: Deadline,
    /// Told of what the sandbox's records shall say.
    pub(super) told: &'a dyn Told,
    /// Whether the guest was restored and has not been told yet who it is.
    pub(super) owes_identity: bool,
}

/// What the watcher tells of the guest.
pub(super) trait Told: std::fmt::Debug {
    /// The agent's first word: its version, guest uptime at PID 1 and at readiness in microseconds.
    fn ready(&self, starter: &Starter, agent: &str, init_us: u64, ready_us: u64);

    /// The sandbox waits in this pool from now on.
    ///
    /// # Errors
    /// When there is no such pool any more, or that cannot be written down.
    fn waits(&self, pool: &PoolRef) -> Result<(), StoreError>;

    /// The sandbox waits no more, and is this one from now on.
    ///
    /// # Errors
    /// When its name is taken, or that cannot be written down; then it still waits.
    fn taken(&self, take: &Take) -> Result<(), StoreError>;

    /// The guest stands still, or goes on.
    fn paused(&self, paused: bool);

    /// The run will be ended after this time, or never.
    ///
    /// # Errors
    /// When that cannot be written down.
    fn deadline(&self, timeout: Option<Timeout>, end: TimeoutEnd) -> Result<(), FileError>;

    /// The message that says who a restored guest is.
    ///
    /// # Errors
    /// When it cannot be made.
    fn identity(&self) -> io::Result<Vec<u8>>;
}

impl Watcher<'_> {
    /// Returns what was seen when the VM has ended.
    pub(super) fn run(mut self) -> Observed {
        let mut observed = Observed::default();
        let mut kill_at = None;
        loop {
            let ready = match self.poll(&observed, kill_at) {
                Ok(ready) => ready,
                Err(Errno::INTR) => continue,
                Err(errno) => {
                    tracing::error!(%errno, "cannot watch the VM: killing it");
                    self.stop(&mut observed, "the VMM process could not watch the VM");
                    self.kill(&mut observed);
                    return observed;
                }
            };
            if kill_at.is_some_and(|kill_at| kill_at <= Instant::now()) {
                self.kill(&mut observed);
            }
            if ready.signals {
                self.signals.clear();
                self.stop(&mut observed, "killed");
            }
            if ready.starter && self.starter.has_ended() {
                self.stop(&mut observed, "the process it belonged to ended");
            }
            if ready.deadline {
                self.heed_deadline(&mut observed);
            }
            if observed.stopped_because.is_some() {
                kill_at.get_or_insert_with(|| Instant::now() + STOP_TIMEOUT);
            }
            if ready.console {
                self.console.take();
            }
            if ready.control {
                let effect = self.control.on_input();
                self.follow(effect, &mut observed);
            }
            let ended = ready.machine && self.hear_machine(&mut observed);
            // What the guest said last has arrived by the time its VM is gone: the notices come after that question.
            if ended {
                for _ in 0..MAX_LEFT {
                    if !self.take_notices(&mut observed) {
                        break;
                    }
                }
                return observed;
            }
            if ready.notices {
                self.take_notices(&mut observed);
            }
        }
    }

    fn poll(&self, observed: &Observed, kill_at: Option<Instant>) -> Result<Ready, Errno> {
        // A descriptor at its end stays readable: it is not polled once that is known.
        let bound = self.starter.lifetime().is_bound(observed.ready) && !self.waits;
        let starter = bound && observed.stopped_because.is_none();
        let starter = starter.then(|| self.starter.as_fd());
        let watched = [
            Some(self.signals.as_fd()),
            starter,
            self.notices.fd(),
            self.console.fd(),
            self.control.fd(),
            Some(self.machine.fd()),
            Some(self.deadline.as_fd()),
        ];
        let mut fds: Vec<PollFd<'_>> = watched.iter().flatten().map(input_of).collect();
        // What was killed ends, however long that takes.
        let left = kill_at.filter(|_| !observed.killed);
        let left = left.map(|kill_at| kill_at.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec::try_from(left).expect("some seconds fit"));
        poll(&mut fds, left.as_ref())?;
        let mut results = fds.iter().map(|fd| !fd.revents().is_empty());
        let mut next = |fd: &Option<BorrowedFd<'_>>| fd.is_some() && results.next().unwrap_or(false);
        let [signals, starter, notices, console, control, machine, deadline] = watched.each_ref().map(&mut next);
        Ok(Ready {
            signals,
            starter,
            notices,
            console,
            control,
            machine,
            deadline,
        })
    }

    /// True when the VM has ended.
    fn hear_machine(&mut self, observed: &mut Observed) -> bool {
        loop {
            match self.machine.hear() {
                Heard::End => return true,
                Heard::Answer(answer) => {
                    let effect = self.control.answered(&answer);
                    self.follow(effect, observed);
                    self.control.answer(&answer);
                }
            }
            if !self.machine.has_more() {
                return false;
            }
        }
    }

    fn follow(&mut self, effect: Effect, observed: &mut Observed) {
        match effect {
            Effect::None => {}
            Effect::Forward(request, command) => self.machine.tell(&command, &request.files),
            Effect::Paused(paused) => self.told.paused(paused),
            Effect::SetTimeout(timeout, end) => {
                let answer = match self.set_timeout(timeout, end) {
                    Ok(()) => Answer::Done,
                    Err(message) => Answer::Refused(message),
                };
                self.control.answer(&answer);
            }
            Effect::Wait(pool) => {
                let waits = self.wait_in(&pool, observed);
                self.forward_or_refuse(waits, Command::Pause, observed);
            }
            Effect::Take(take, starter) => {
                let taken = self.be_taken(&take, starter, observed);
                let was_taken = taken.is_ok();
                self.forward_or_refuse(taken, Command::GoOn, observed);
                if was_taken {
                    self.send_identity(RENEW);
                }
            }
        }
    }

    fn forward_or_refuse(&mut self, allowed: Result<(), String>, command: Command, observed: &mut Observed) {
        match allowed {
            Ok(()) => {
                let effect = self.control.forward(command, Vec::new());
                self.follow(effect, observed);
            }
            Err(message) => self.control.answer(&Answer::Refused(message)),
        }
    }

    fn wait_in(&mut self, pool: &PoolRef, observed: &Observed) -> Result<(), String> {
        if self.waits || !observed.ready || self.starter.lifetime() != Lifetime::OfStarter {
            return Err("only a sandbox that belongs to its starter alone can wait in a pool".into());
        }
        self.told.waits(pool).map_err(|error| report::one_line(&error))?;
        self.waits = true;
        Ok(())
    }

    /// Makes the sandbox another one; its guest is told when it goes on, and is not ready before it knows.
    fn be_taken(&mut self, take: &Take, starter: UnixStream, observed: &mut Observed) -> Result<(), String> {
        if !self.waits || observed.stopped_because.is_some() {
            return Err("it waits in no pool any more".into());
        }
        self.set_timeout(take.limit.timeout, Some(take.limit.end))?;
        if let Err(error) = self.told.taken(take) {
            self.set_timeout(None, None)?;
            return Err(report::one_line(&error));
        }
        self.waits = false;
        observed.ready = false;
        *self.starter = Starter::new(starter, take.lifetime);
        Ok(())
    }

    fn set_timeout(&mut self, timeout: Option<Timeout>, end: Option<TimeoutEnd>) -> Result<(), String> {
        if self.deadline.is_over() {
            return Err("its time is over already".into());
        }
        let end = end.unwrap_or(self.deadline.end());
        let recorded = self.told.deadline(timeout, end);
        recorded.map_err(|error| report::one_line(&error))?;
        let set = self.deadline.set(timeout.map(Timeout::duration), end);
        set.map_err(|error| format!("cannot set a timer: {error}"))
    }

    fn heed_deadline(&mut self, observed: &mut Observed) {
        // Before a guest is ready, or knows who it is, it has nothing to lose.
        let can_ask = observed.ready && !self.owes_identity;
        let Some(due) = self.deadline.take(can_ask) else {
            return;
        };
        observed.deadline = true;
        match due {
            Due::End(because) => self.stop(observed, because),
            Due::ShutDown => {
                if let Err(error) = self.notices.send(SHUT_DOWN) {
                    tracing::warn!(%error, "cannot ask the guest to shut down: ending it");
                    self.stop(observed, "killed, because the guest could not be asked to shut down");
                }
                let effect = self.control.wake();
                self.follow(effect, observed);
            }
        }
    }

    fn tell_identity(&mut self) {
        if std::mem::take(&mut self.owes_identity) {
            self.send_identity(&[]);
        }
    }

    fn send_identity(&mut self, before: &[u8]) {
        let message = self.told.identity().map(|message| [before, &message].concat());
        if let Err(error) = message.and_then(|message| self.notices.send(&message)) {
            tracing::error!(%error, "cannot tell the guest who it is");
        }
    }

    /// Whether there may be more.
    fn take_notices(&mut self, observed: &mut Observed) -> bool {
        match self.notices.take() {
            Ok(Some(notices)) => {
                notices.into_iter().for_each(|notice| self.heed(notice, observed));
                true
            }
            Ok(None) => false,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "no longer listening to the agent"
                );
                false
            }
        }
    }

    fn heed(&mut self, notice: Notice, observed: &mut Observed) {
        match notice {
            Notice::Ready {
                agent,
                init_us,
                ready_us,
            } if !observed.ready && observed.stopped_because.is_none() => {
                observed.ready = true;
                self.told.ready(self.starter, &agent, init_us, ready_us);
                // Here as there, a start takes code that nothing needs any more.
                self.machine.tell(&Command::Settle, &[]);
                text::release();
            }
            // One that is being ended must not become its own: it goes with whoever it belonged to.
            Notice::Ready { .. } => {}
            Notice::Restored => self.tell_identity(),
            Notice::ShuttingDown => observed.shutting_down = true,
        }
    }

    fn stop(&self, observed: &mut Observed, because: &'static str) {
        observed.stopped_because.get_or_insert(because);
        self.machine.stop();
    }

    fn kill(&self, observed: &mut Observed) {
        observed.killed = true;
        self.machine.kill();
    }
}

/// Waits until the machine has said whether its guest runs; ends it when that is no longer wanted. Returns why.
///
/// # Errors
/// When the descriptors cannot be polled.
pub(super) fn await_start(
    machine: &Machine,
    signals: &Signals,
    starter: &Starter,
) -> Result<Option<&'static str>, Errno> {
    // What is readable there is its end.
    let starter = starter.lifetime().is_bound(false).then(|| starter.as_fd());
    let watched = [Some(machine.fd()), Some(signals.as_fd()), starter];
    loop {
        let mut fds: Vec<PollFd<'_>> = watched.iter().flatten().map(input_of).collect();
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            result => result?,
        };
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let [said, signalled, left] = [ready.next(), ready.next(), ready.next()].map(Option::unwrap_or_default);
        let because = match (said, signalled, left) {
            (true, ..) => return Ok(None),
            (_, true, _) => "killed",
            (_, _, true) => "the process it belonged to ended",
            (false, false, false) => continue,
        };
        machine.kill();
        return Ok(Some(because));
    }
}

impl Lifetime {
    /// Whether the sandbox ends with its starter, given whether it was ready.
    pub(super) fn is_bound(self, ready: bool) -> bool {
        match self {
            Self::Detached => false,
            Self::DetachedWhenReady => !ready,
            Self::OfStarter => true,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Ready {
    signals: bool,
    starter: bool,
    notices: bool,
    console: bool,
    control: bool,
    machine: bool,
    deadline: bool,
}

fn input_of<'fd>(fd: &BorrowedFd<'fd>) -> PollFd<'fd> {
    PollFd::from_borrowed_fd(*fd, PollFlags::IN)
}
