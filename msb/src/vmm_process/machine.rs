//! The VM's own process: the keeper forks it, and it goes to jail before the guest runs.
//!
//! Between the two is a socket. The machine says in JSON lines what became of it and of what it was told; the keeper says
//! what [`super::control`] knows, and its end of the socket asks the machine to end.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use msb_vmm::{Console, OnThread, RunningVm, VmConfig};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, set_parent_process_death_signal, waitpid};
use serde::{Deserialize, Serialize};

use super::control::{self, Answer, Command, Request};
use super::outcome::VmEnd;
use super::surroundings::Surroundings;
use super::text;
use super::vm::{self, SavedFiles};
use crate::jail::namespaces::{self, Forked};
use crate::jail::{self, Layers};
use crate::report;
use crate::timings::{now_us, us_at};

/// The longest line, in bytes, with its newline: an end carries a message.
const MAX_LINE: usize = 64 * 1024;

/// Stack of the thread that obeys the keeper, in bytes: too little for a huge page, which one of 2 MiB would get.
const CONTROL_STACK: usize = 512 << 10;

/// How long the machine may take for the rest of a line.
const LINE_TIMEOUT: Duration = Duration::from_secs(5);

/// What the machine says.
#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Report {
    /// The guest runs, jailed.
    Started(Started),
    /// What it was told was done, or not.
    Answer(Answer),
    /// The guest ended, or could not start.
    Ended(VmEnd),
}

/// A guest that runs.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Started {
    /// When kernel and image were loaded, unless the guest was saved; see [`now_us`].
    pub(super) loaded_us: Option<u64>,
    /// When everything was opened and set up.
    pub(super) built_us: u64,
    /// When the guest was started.
    pub(super) started_us: u64,
    /// What holds around it.
    pub(super) layers: Layers,
}

/// What the machine works with.
#[derive(Debug)]
pub(super) struct Plan {
    /// The VM.
    pub(super) config: VmConfig,
    /// What it goes on from, if it does not boot.
    pub(super) saved: Option<SavedFiles>,
    /// What it is confined to.
    pub(super) surroundings: Surroundings,
}

/// The keeper's side of a machine. Dropping it ends the machine.
#[derive(Debug)]
pub(super) struct Machine {
    pid: Pid,
    reports: Reports,
    /// How it ended, once it said so.
    end: Option<VmEnd>,
}

/// What the keeper hears while the guest runs.
#[derive(Debug)]
pub(super) enum Heard {
    /// The machine's answer to a command.
    Answer(Answer),
    /// It has ended.
    End,
}

impl Machine {
    /// Forks the machine.
    ///
    /// # Safety
    /// The process has one thread.
    ///
    /// # Errors
    /// When the host has no process, pipe or socket to give.
    pub(super) unsafe fn spawn(plan: &Plan) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        // SAFETY: the caller's promise.
        match unsafe { namespaces::fork(plan.surroundings.cgroup.as_ref()) }? {
            Forked::Child { in_namespaces } => {
                drop(ours);
                run(plan, &theirs, in_namespaces)
            }
            Forked::Parent(pid) => Ok(Self {
                pid,
                reports: Reports::new(ours),
                end: None,
            }),
        }
    }

    /// The process.
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Readable when the machine has something to say.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.reports.socket.as_fd()
    }

    /// Waits until the guest runs.
    ///
    /// # Errors
    /// How it ended instead.
    pub(super) fn started(&mut self) -> Result<Started, VmEnd> {
        match self.reports.next(None) {
            Some(Report::Started(started)) => Ok(started),
            Some(Report::Ended(end)) => Err(end),
            Some(Report::Answer(_)) | None => Err(self.died()),
        }
    }

    /// Gives the machine a command.
    pub(super) fn tell(&self, command: &Command, files: &[OwnedFd]) {
        let files: Vec<_> = files.iter().map(OwnedFd::as_fd).collect();
        // A machine that is gone says so by its end.
        let _ = control::send(&self.reports.socket, command, &files);
    }

    /// Hears what the machine says. One that does not finish its line is as good as dead.
    pub(super) fn hear(&mut self) -> Heard {
        match self.reports.next(Some(LINE_TIMEOUT)) {
            Some(Report::Answer(answer)) => Heard::Answer(answer),
            Some(Report::Ended(end)) => {
                self.end = Some(end);
                Heard::End
            }
            Some(Report::Started(_)) | None => Heard::End,
        }
    }

    /// Whether more was heard than was asked for: nothing more need come for [`Self::hear`] to return.
    pub(super) fn has_more(&self) -> bool {
        self.reports.pending.contains(&b'\n')
    }

    /// Asks the machine to end.
    pub(super) fn stop(&self) {
        // What is gone cannot be asked.
        let _ = self.reports.socket.shutdown(std::net::Shutdown::Write);
    }

    /// Ends the machine at once.
    pub(super) fn kill(&self) {
        // It is a child that was not waited for yet, so nobody else has its number.
        let _ = rustix::process::kill_process(self.pid, Signal::KILL);
    }

    /// Waits until the machine has ended, and says how.
    pub(super) fn ended(&mut self) -> VmEnd {
        while self.end.is_none() && matches!(self.hear(), Heard::Answer(_)) {}
        match self.end.take() {
            Some(end) => {
                // It has nothing left to do but to end; one that the guest has taken over may not.
                let _ = rustix::process::kill_process(self.pid, Signal::KILL);
                let _ = waitpid(Some(self.pid), WaitOptions::empty());
                end
            }
            None => self.died(),
        }
    }

    /// It said no word of its end.
    fn died(&self) -> VmEnd {
        // It may have said nonsense and live.
        self.kill();
        let how = match waitpid(Some(self.pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => describe(status),
            Ok(None) | Err(_) => "died".into(),
        };
        VmEnd::Failed(format!("the VM's process {how}; see `msb logs --vmm`"))
    }
}

/// The keeper's end of the socket, read line by line.
#[derive(Debug)]
struct Reports {
    socket: UnixStream,
    pending: Vec<u8>,
}

impl Reports {
    fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            pending: Vec::new(),
        }
    }

    /// The next line, for which the machine may take as long as `limit`, however it sends it. A machine that says something
    /// else is as good as dead.
    fn next(&mut self, limit: Option<Duration>) -> Option<Report> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return serde_json::from_slice(&line).ok();
            }
            if let Some(deadline) = deadline {
                // A timeout of nothing is an error, as it is to be too late.
                let left = deadline.saturating_duration_since(Instant::now());
                self.socket.set_read_timeout(Some(left)).ok()?;
            }
            let mut buffer = [0; 4096];
            match self.socket.read(&mut buffer) {
                Ok(0) => return None,
                Ok(read) if self.pending.len() + read <= MAX_LINE => self.pending.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => return None,
            }
        }
    }
}

/// Hears what a machine says that says `bytes` and no more.
#[cfg(fuzzing)]
pub(super) fn hear_all(bytes: &[u8]) {
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    (&theirs).write_all(bytes).expect("a socket takes so little");
    drop(theirs);
    let mut reports = Reports::new(ours);
    while reports.next(None).is_some() {}
    assert!(reports.pending.len() <= MAX_LINE);
}

fn describe(status: WaitStatus) -> String {
    match (status.terminating_signal(), status.exit_status()) {
        (Some(libc::SIGSYS), _) => "made a system call that is forbidden to it, and was killed".into(),
        (Some(signal), _) => format!("was killed by signal {signal}"),
        (None, Some(code)) => format!("ended with status {code}"),
        (None, None) => "died".into(),
    }
}

/// The machine, from the fork to its end.
fn run(plan: &Plan, keeper: &UnixStream, in_namespaces: bool) -> ! {
    let end = match prepare(plan, keeper) {
        Err(error) => VmEnd::Failed(format!("cannot prepare the VM's process: {error}")),
        Ok(()) => match start(plan, in_namespaces) {
            Err(message) => VmEnd::Failed(message),
            Ok((running, started)) => attend(running, started, keeper),
        },
    };
    send(keeper, &Report::Ended(end));
    std::process::exit(0)
}

/// From here on the machine ends with its keeper, and has nothing of the keeper's but its log. The keeper's values keep
/// their numbers of descriptors, but are never dropped here.
fn prepare(plan: &Plan, keeper: &UnixStream) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::thread::set_name(c"msb-vm")?;
    let mut kept = vec![0, 1, 2, keeper.as_raw_fd()];
    if let Console::Stream(stream) = &plan.config.console {
        kept.push(stream.as_raw_fd());
    }
    if let Some(SavedFiles { state, memory }) = &plan.saved {
        kept.extend([state.as_raw_fd(), memory.as_raw_fd()]);
    }
    kept.extend(plan.config.file_systems.iter().map(|fs| fs.socket.as_raw_fd()));
    close_all_but(&mut kept)
}

/// Closes all descriptors but these.
///
/// # Errors
/// When the kernel cannot.
pub(super) fn close_all_but(kept: &mut [RawFd]) -> io::Result<()> {
    kept.sort_unstable();
    let ends = kept.iter().copied().chain([RawFd::MAX]);
    let starts = [-1].into_iter().chain(kept.iter().copied());
    for (before, after) in starts.zip(ends) {
        let (first, last) = (before + 1, after - 1);
        // SAFETY: close_range(2) takes numbers only; what owns these descriptors is never used or dropped here.
        if first <= last && unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn start(plan: &Plan, in_namespaces: bool) -> Result<(RunningVm, Started), String> {
    // One of its threads lives before the jail.
    jail::share_one_heap();
    let machine = vm::build(&plan.config, plan.saved.as_ref())?;
    let loaded_us = machine.loaded_at().map(us_at);
    let built_us = now_us();
    let (layers, filters) =
        jail::enter(&plan.surroundings.confinement, in_namespaces).map_err(|error| report::one_line(&error))?;
    let restrict: OnThread = Arc::new(move |role| filters.apply_to_thread(role));
    let running = machine
        .start_with(&restrict)
        .map_err(|error| report::one_line(&error))?;
    let started = Started {
        loaded_us,
        built_us,
        started_us: now_us(),
        layers,
    };
    Ok((running, started))
}

/// Sees a VM to its end, or ends it when the keeper asks, and does what the keeper tells.
fn attend(running: RunningVm, started: Started, keeper: &UnixStream) -> VmEnd {
    send(keeper, &Report::Started(started));
    let exit = std::thread::scope(|scope| {
        let control = std::thread::Builder::new()
            .name("msb-control".into())
            .stack_size(CONTROL_STACK);
        control.spawn_scoped(scope, || obey(keeper, &running))?;
        let exit = running.wait();
        // Nobody obeys any more.
        let _ = keeper.shutdown(std::net::Shutdown::Read);
        Ok::<_, io::Error>(exit)
    });
    // With the VM its connections end, so that nothing more can come from the agent when its end is known.
    drop(running);
    match exit {
        Ok(exit) => vm::end(exit),
        Err(error) => VmEnd::Failed(format!("cannot start a thread for the VM: {error}")),
    }
}

/// Carries out what the keeper tells, until it says no more: then the VM ends.
fn obey(keeper: &UnixStream, vm: &RunningVm) {
    while let Ok(Some(request)) = control::receive(keeper) {
        if request.command == Some(Command::Settle) {
            text::release();
            continue;
        }
        let answer = match carry_out(request, vm) {
            Ok(()) => Answer::Done,
            Err(message) => Answer::Refused(message),
        };
        send(keeper, &Report::Answer(answer));
    }
    vm.handle().stop();
}

fn carry_out(Request { command, files }: Request, vm: &RunningVm) -> Result<(), String> {
    let refused = |error: msb_vmm::PauseError| report::one_line(&error);
    match command {
        Some(Command::Pause) => vm.pause().map_err(refused),
        Some(Command::Resume) => {
            vm.resume();
            Ok(())
        }
        Some(Command::GoOn) => {
            vm.go_on();
            Ok(())
        }
        Some(Command::Save) => {
            let [state, memory] = <[OwnedFd; 2]>::try_from(files).map_err(|_| "a saved VM needs two files")?;
            vm.pause().map_err(refused)?;
            let snapshot = vm.save(&File::from(memory)).map_err(refused)?;
            let written = File::from(state).write_all(&snapshot.to_bytes());
            written.map_err(|error| format!("cannot write the guest's state: {error}"))
        }
        Some(Command::SetTimeout { .. } | Command::Wait(_) | Command::Take(_) | Command::Settle) | None => {
            Err("there is no such command".into())
        }
    }
}

fn send(mut keeper: &UnixStream, report: &Report) {
    let mut line = serde_json::to_vec(report).expect("reports have string keys and no failing serializers");
    line.push(b'\n');
    // A keeper that is gone needs no report.
    let _ = keeper.write_all(&line);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_heard_in_whatever_pieces_it_comes() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut reports = Reports::new(ours);
        send(&theirs, &Report::Answer(Answer::Done));
        send(&theirs, &Report::Answer(Answer::Refused("no".into())));
        drop(theirs);
        assert!(matches!(reports.next(None), Some(Report::Answer(Answer::Done))));
        assert!(matches!(
            reports.next(Some(LINE_TIMEOUT)),
            Some(Report::Answer(Answer::Refused(_)))
        ));
        assert!(reports.next(Some(LINE_TIMEOUT)).is_none());
    }

    #[test]
    fn a_machine_that_trickles_a_line_is_not_waited_for() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut reports = Reports::new(ours);
        let trickle = std::thread::spawn(move || {
            while (&theirs).write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        assert!(reports.next(Some(Duration::from_millis(20))).is_none());
        assert!(reports.pending.len() < MAX_LINE / 2, "{}", reports.pending.len());
        drop(reports);
        trickle.join().unwrap();
    }
}
