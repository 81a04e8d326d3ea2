//! What a boot and a session ask of the host, in numbers that a slow host does not distort: exits, system calls, page
//! faults, processor time.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use msb_tests::{Msb, finish};
use rustix::process::Pid;

use crate::emulation::forget_earlier_guests;
use crate::figure::{Figure, State};
use crate::instructions::{Instructions, Mode};
use crate::tracing::Counter;

/// Threads of the VM's process, and the keeper: their system calls count. All of `msb`'s own names begin so.
const NAMES: [&str; 7] = ["msb", "kvm", "vcpu", "vsock", "rng", "balloon", "block"];

/// The system calls that copy between a process and the kernel, and return how many bytes.
const COPIES: [&str; 12] = [
    "read", "readv", "pread64", "preadv", "recvfrom", "recvmsg", "write", "writev", "pwrite64", "pwritev", "sendto",
    "sendmsg",
];

/// Why a vCPU left the guest: AMD's numbers (APM volume 2, appendix C).
const SVM_EXITS: [(u64, &str); 10] = [
    (0x60, "interrupt"),
    (0x64, "interrupt window"),
    (0x72, "cpuid"),
    (0x78, "hlt"),
    (0x7b, "port"),
    (0x7c, "msr"),
    (0x81, "vmmcall"),
    (0x87, "xsetbv"),
    (0x400, "nested page fault"),
    (0x41, "debug exception"),
];

/// The same of Intel (SDM volume 3, appendix C).
const VMX_EXITS: [(u64, &str); 9] = [
    (1, "interrupt"),
    (7, "interrupt window"),
    (10, "cpuid"),
    (12, "hlt"),
    (30, "port"),
    (31, "msr"),
    (32, "msr"),
    (48, "nested page fault"),
    (49, "mmio"),
];

/// The registers with which a guest orders its next tick: the deadline in the time stamp counter, and the count of its
/// local APIC (SDM volume 3, sections 11.5.4 and 11.12.1.2).
const TIMER_REGISTERS: [u32; 2] = [0x6e0, 0x838];

/// Whose instructions are counted, and how that is called.
const MODES: [(Mode, &str); 2] = [(Mode::Host, "of the host"), (Mode::Guest, "of the guest")];

/// How long a guest has nothing to do before it counts as idle: page reporting and writeback take a few seconds.
const SETTLING: Duration = Duration::from_secs(10);

/// How long an idle guest is watched, in seconds.
const IDLE_SECONDS: usize = 20;

/// Echoes through one session.
const ECHOES: usize = 50;

pub(crate) fn measure(samples: usize) -> Vec<Figure> {
    if let Err(error) = Instructions::start(Mode::Host) {
        eprintln!("bench: this host counts no instructions: {error}");
    }
    let msb = Msb::in_memory();
    // The first run reads everything from the disk.
    msb.run(["run", "--", "true"]).expect(0);
    let mut figures = Figures::default();
    for _ in 0..samples {
        forget_earlier_guests();
        let counters = Counters::start();
        let mut instructions = MODES.map(|(mode, whose)| (Instructions::start(mode), whose));
        let sandbox = msb.create("counted");
        counters.add_to(&mut figures, State::Cold, "until ready", 1);
        for (counter, whose) in &mut instructions {
            // What this host cannot count was said.
            if let Ok(count) = counter.as_mut().map(Instructions::read) {
                let count = count.expect("a counter can be read");
                let name = format!("until ready: instructions {whose}");
                figures.add(Figure::cold(name, "count"), approximate(count));
            }
        }
        drop(instructions);
        let cpu = cpu_ms(sandbox.vmm()) + cpu_ms(sandbox.vm());
        let name = "until ready: processor time of keeper and VM";
        figures.add(Figure::cold(name, "ms"), cpu);

        let counters = Counters::start();
        finish(&mut sandbox.ssh_command("true")).expect(0);
        counters.add_to(&mut figures, State::Warm, "ssh true", 1);

        let mut echo = Echo::start(&mut sandbox.ssh_command("cat"));
        let counters = Counters::start();
        (0..ECHOES).for_each(|_| echo.once());
        counters.add_to(&mut figures, State::Warm, "an echo", ECHOES);
        echo.end();

        std::thread::sleep(SETTLING);
        let counters = Counters::start();
        std::thread::sleep(Duration::from_secs(IDLE_SECONDS as u64));
        counters.add_to(&mut figures, State::Warm, "idle, a second", IDLE_SECONDS);
        msb.run(["rm", "--force", "counted"]).expect(0);
    }
    figures.0
}

/// A session that sends back what it is sent.
struct Echo {
    ssh: Child,
}

impl Echo {
    fn start(ssh: &mut Command) -> Self {
        let ssh = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut echo = Self {
            ssh: ssh.expect("ssh is installed"),
        };
        echo.once();
        echo
    }

    fn once(&mut self) {
        let (Some(input), Some(output)) = (&mut self.ssh.stdin, &mut self.ssh.stdout) else {
            unreachable!("both are piped");
        };
        input.write_all(b"x").expect("the session takes input");
        output.read_exact(&mut [0]).expect("the session answers");
    }

    fn end(mut self) {
        drop(self.ssh.stdin.take());
        assert!(self.ssh.wait().expect("a child can be waited for").success());
    }
}

/// What is counted at once.
struct Counters {
    exits: Counter,
    interrupts: Counter,
    registers: Counter,
    calls: Counter,
    copies: Vec<Counter>,
    faults: Counter,
}

impl Counters {
    fn start() -> Self {
        let start = |event, key| {
            Counter::start(event, key).unwrap_or_else(|error| panic!("cannot count {event} by {key}: {error}"))
        };
        let returned_by = |call| {
            Counter::returned_by(call).unwrap_or_else(|error| panic!("cannot add up what {call} returns: {error}"))
        };
        Self {
            exits: start("kvm/kvm_exit", "exit_reason"),
            interrupts: start("kvm/kvm_inj_virq", "vector"),
            registers: start("kvm/kvm_msr", "ecx"),
            calls: start("raw_syscalls/sys_enter", "common_pid.execname"),
            copies: COPIES.map(returned_by).into(),
            faults: start("exceptions/page_fault_user", "common_pid.execname"),
        }
    }

    /// Adds what was counted during `what`, which was done `times` times.
    fn add_to(&self, figures: &mut Figures, state: State, what: &str, times: usize) {
        let read = |counter: &Counter| counter.read().expect("tracefs can be read");
        let each = |count: u64| approximate(count) / approximate(times as u64);
        let mut add_of = |unit, name: &str, count: u64| {
            figures.add(Figure::new(state, format!("{what}: {name}"), unit), each(count));
        };
        let mut add = |name: &str, count| add_of("count", name, count);
        let exits = named_exits(read(&self.exits));
        let total = exits.values().sum();
        add("exits", total);
        let of_ticks = exits_of_ticks(&exits, &read(&self.registers));
        add("exits without ticks", total.saturating_sub(of_ticks));
        for (reason, count) in exits {
            add(&format!("exits, {reason}"), count);
        }
        add("interrupts", read(&self.interrupts).values().sum());
        add("system calls of msb", of_msb(&read(&self.calls)));
        add("page faults of msb", of_msb(&read(&self.faults)));
        let copied = self.copies.iter().map(read).map(|sums| of_msb(&sums)).sum();
        add_of("bytes", "copied by system calls of msb", copied);
    }
}

fn named_exits(by_number: BTreeMap<String, u64>) -> BTreeMap<&'static str, u64> {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let names: &[(u64, &str)] = if cpu.contains(" svm") { &SVM_EXITS } else { &VMX_EXITS };
    let mut named = BTreeMap::new();
    for (number, count) in by_number {
        let name = names.iter().find(|(known, _)| number == known.to_string());
        *named.entry(name.map_or("other", |(_, name)| name)).or_default() += count;
    }
    named
}

/// What a slower host has more of: its own interrupts, which end a turn of the guest, and the guest's timer.
fn exits_of_ticks(exits: &BTreeMap<&'static str, u64>, registers: &BTreeMap<String, u64>) -> u64 {
    let interrupts = ["interrupt", "interrupt window"].map(|reason| exits.get(reason));
    let timer = TIMER_REGISTERS.map(|register| registers.get(&register.to_string()));
    interrupts.into_iter().chain(timer).flatten().sum()
}

fn of_msb(by_program: &BTreeMap<String, u64>) -> u64 {
    let is_ours = |program: &str| NAMES.iter().any(|name| program.starts_with(name));
    let ours = by_program.iter().filter(|(program, _)| is_ours(program));
    ours.map(|(_, count)| count).sum()
}

/// Processor time of all threads that live, in ms.
fn cpu_ms(process: Pid) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.as_raw_nonzero())).expect("the process lives");
    let of_task = |task: std::io::Result<fs::DirEntry>| -> Option<u64> {
        // proc_pid_schedstat: nanoseconds on a CPU come first.
        let text = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse().ok()
    };
    approximate(tasks.filter_map(of_task).sum()) / 1e6
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn approximate(count: u64) -> f64 {
    count as f64
}

/// Figures in the order of their first sample.
#[derive(Default)]
struct Figures(Vec<Figure>);

impl Figures {
    /// Adds a sample to `figure`, or to the one of its name.
    fn add(&mut self, figure: Figure, sample: f64) {
        let known = self.0.iter().position(|known| known.name == figure.name);
        let index = known.unwrap_or_else(|| {
            self.0.push(figure);
            self.0.len() - 1
        });
        self.0[index].add(sample);
    }
}
