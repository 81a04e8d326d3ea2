//! SIGKILL for the starter, the keeper, the VM's process or a bridge, at each step and at any moment.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use msb_tests::Msb;
use rustix::process::{Pid, Signal, kill_process};

use crate::truth::{assert_clean, assert_truth, assert_usable};
use crate::{is_soak, rounds};

/// No step takes this long to come: one that does never comes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How often is looked for a step.
pub(crate) const LOOK: Duration = Duration::from_micros(500);

/// Milliseconds within which a random kill comes: as long as the longest verb takes, about.
const LONGEST: u64 = 3500;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Victim {
    /// The command itself: for a session by ssh, its bridge.
    Starter,
    Keeper,
    Vm,
}

const VICTIMS: [Victim; 3] = [Victim::Starter, Victim::Keeper, Victim::Vm];

/// What is being done when the kill comes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Verb {
    Create,
    Start,
    Run,
    Stop,
    Remove,
    Session,
}

const VERBS: [Verb; 6] = [
    Verb::Create,
    Verb::Start,
    Verb::Run,
    Verb::Stop,
    Verb::Remove,
    Verb::Session,
];

/// Steps that can be seen from outside, in their order: a file whose path, below the test's directory, has these parts.
/// `*` is any one name; the last part may be the beginning of one.
const STEPS: [(&str, &str); 14] = [
    ("the directory of a new sandbox", "home/sandboxes/.new-"),
    ("the mark of a transient sandbox", "home/transient/*"),
    ("its pinned key", "home/known_hosts"),
    ("its configuration in place", "home/sandboxes/*/config.json"),
    ("the log of its VMM process", "home/sandboxes/*/vmm.log"),
    ("the record of the run", "home/sandboxes/*/run.json"),
    ("the directory of sockets", "run/*"),
    ("the cgroup", "run/*/cgroup"),
    ("the socket for notices", "run/*/v.sock_1024"),
    ("the console's log", "home/sandboxes/*/console.log"),
    ("the vsock socket", "run/*/v.sock"),
    ("the record of readiness", "home/sandboxes/*/ready.json"),
    ("the record of the end", "home/sandboxes/*/exit.json"),
    ("the directory of a removed sandbox", "home/sandboxes/.del-"),
];

impl Verb {
    /// Starts it, on a sandbox that is as it needs it.
    pub(crate) fn begin(self, msb: &Msb) -> Child {
        match self {
            Self::Start => drop(
                msb.run(["create", "--no-start", "--name", "box", "--memory", "128M"])
                    .expect(0),
            ),
            Self::Stop | Self::Remove | Self::Session => drop(msb.create_with("box", &["--memory", "128M"])),
            Self::Create | Self::Run => {}
        }
        let mut command = match self {
            Self::Create => msb.command(["create", "--name", "box", "--memory", "128M"]),
            Self::Start => msb.command(["start", "box"]),
            Self::Run => msb.command(["run", "--memory", "128M", "--", "true"]),
            Self::Stop => msb.command(["stop", "box"]),
            Self::Remove => msb.command(["rm", "--force", "box"]),
            Self::Session => msb.command(["exec", "box", "--", "sleep", "2"]),
        };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("msb is on PATH")
    }
}

/// The process to kill, if it is there.
pub(crate) fn find(msb: &Msb, victim: Victim, starter: &Child) -> Option<Pid> {
    if victim == Victim::Starter {
        return Some(Pid::from_child(starter));
    }
    let mark = msb.home().display().to_string();
    let processes = fs::read_dir("/proc").expect("/proc is there").flatten();
    let mut found = processes.filter_map(|process| {
        let read = |file: &str| fs::read_to_string(process.path().join(file)).unwrap_or_default();
        let is_one = read("cmdline").contains("/msb-vmm\0") && read("cmdline").contains(&mark);
        let is_vm = read("comm").trim_end() == "msb-vm";
        let pid = process.file_name().to_str()?.parse().ok()?;
        (is_one && is_vm == (victim == Victim::Vm)).then(|| Pid::from_raw(pid))?
    });
    found.next()
}

fn kill(msb: &Msb, victim: Victim, starter: &mut Child) -> bool {
    // A child that was not waited for keeps its number, and those of others are asked for just before.
    let found = find(msb, victim, starter);
    found.is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok())
}

/// Whether there is a file at `pattern` below `directory`.
pub(crate) fn is_there(directory: &Path, pattern: &str) -> bool {
    let (first, rest) = pattern
        .split_once('/')
        .map_or((pattern, None), |(first, rest)| (first, Some(rest)));
    let Some(rest) = rest else {
        let names = fs::read_dir(directory)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name());
        return names.into_iter().any(|name| {
            let name = name.to_string_lossy();
            if first == "*" {
                !name.starts_with('.')
            } else {
                name == first || first.ends_with('-') && name.starts_with(first)
            }
        });
    };
    if first != "*" {
        return is_there(&directory.join(first), rest);
    }
    let mut children = fs::read_dir(directory).into_iter().flatten().flatten();
    children.any(|child| is_there(&child.path(), rest))
}

/// What must hold when `verb` was hit.
fn judge(msb: &Msb, starter: &mut Child, after: &str) {
    starter.wait().expect("a child can be waited for");
    // What the dead left ends by itself or is swept by the first `ls`.
    wait_for_quiet(msb);
    assert_truth(msb, after);
    assert_clean(msb, after);
}

/// Until no keeper is about to end: its starter's or its VM's end has reached it.
pub(crate) fn wait_for_quiet(msb: &Msb) {
    let deadline = Instant::now() + PATIENCE;
    let is_moving = || {
        let listed = msb.list();
        let settled = listed.iter().filter(|sandbox| sandbox["state"] == "running").count() * 2;
        let moving = listed
            .iter()
            .any(|sandbox| sandbox["state"] == "starting" || sandbox["state"] == "stopping");
        moving || msb.processes().len() != settled
    };
    while is_moving() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_kill_at_any_step_leaves_no_lie_and_nothing_behind() {
    let msb = Msb::new();
    let directory = msb.home().parent().expect("the home is in a directory").to_owned();
    let mut hits = 0;
    // In short, one of seven: over all steps and all victims.
    let every = if is_soak() { 1 } else { 7 };
    let cases = STEPS.iter().flat_map(|step| VICTIMS.map(|victim| (step, victim)));
    for ((step, pattern), victim) in cases.step_by(every) {
        let _ = fs::remove_file(directory.join("home/known_hosts"));
        let mut starter = Verb::Run.begin(&msb);
        let deadline = Instant::now() + PATIENCE;
        while !is_there(&directory, pattern) && starter.try_wait().expect("a child").is_none() {
            assert!(Instant::now() < deadline, "{step} never came");
            thread::sleep(LOOK);
        }
        let hit = kill(&msb, victim, &mut starter);
        hits += usize::from(hit);
        let after = format!("a kill of {victim:?} at {step}: {hit}");
        println!("{after}");
        judge(&msb, &mut starter, &after);
    }
    println!("{hits} kills hit");
    assert!(hits > 0);
    assert_usable(&msb, "all kills");
}

#[test]
fn a_kill_at_any_moment_leaves_no_lie_and_nothing_behind() {
    let seed = std::env::var("MSB_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(20_261_121);
    let mut random = Random(seed);
    let msb = Msb::new();
    let mut hits = 0;
    for round in 0..rounds(6, 300) {
        let verb = random.choose(&VERBS);
        let victim = random.choose(&VICTIMS);
        let delay = Duration::from_millis(random.below(LONGEST));
        let mut starter = verb.begin(&msb);
        thread::sleep(delay);
        let hit = kill(&msb, victim, &mut starter);
        hits += usize::from(hit);
        let after = format!("seed {seed}, round {round}: {verb:?}, {victim:?} killed after {delay:?}: {hit}");
        println!("{after}");
        judge(&msb, &mut starter, &after);
    }
    println!("{hits} kills hit");
    assert!(hits > 0);
    assert_usable(&msb, "all kills");
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        let index = usize::try_from(self.below(from.len() as u64)).expect("an index fits");
        from[index]
    }
}
