//! From the start of `msb run` to the first output and the end, and what an idle sandbox costs.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Instant;

use msb_tests::{Msb, resident_beyond_guest};
use serde_json::Value;

use crate::emulation::forget_earlier_guests;
use crate::figure::Figure;

/// `pairs` of phases of `msb run --timings`, each with the figure of the time between them.
const PHASES: [(&str, &str, &str); 8] = [
    ("msb start to VMM process", "process_started_us", "vmm_started_us"),
    ("VMM process to kernel loaded", "vmm_started_us", "kernel_loaded_us"),
    (
        "kernel loaded to VM built: KVM and devices",
        "kernel_loaded_us",
        "vm_built_us",
    ),
    ("VM built to guest started: the jail", "vm_built_us", "vm_started_us"),
    ("guest started to ready notice", "vm_started_us", "ready_us"),
    ("ready notice to SSH connected", "ready_us", "ssh_connected_us"),
    ("SSH connected to session ended", "ssh_connected_us", "session_ended_us"),
    ("session ended to sandbox removed", "session_ended_us", "removed_us"),
];

pub(crate) fn measure(samples: usize) -> Vec<Figure> {
    let msb = Msb::in_memory();
    let mut first_output = Figure::cold("msb run: process start to first output", "ms");
    let mut whole = Figure::cold("msb run -- true: whole process", "ms");
    let mut to_agent = Figure::cold("guest kernel start to agent", "ms");
    let mut to_ready = Figure::cold("agent to SSH ready", "ms");
    let mut phases: Vec<_> = PHASES.iter().map(|(name, ..)| Figure::cold(*name, "ms")).collect();
    let mut memory = Figure::cold("VMM RSS beyond guest memory", "KiB");
    // The first run reads everything from the disk.
    msb.run(["run", "--", "true"]).expect(0);
    for _ in 0..samples {
        forget_earlier_guests();
        first_output.add(to_first_output(&mut msb.command(["run", "--", "echo", "out"])));
        forget_earlier_guests();
        let run = msb.run(["run", "--timings", "--", "true"]).expect(0);
        whole.add(run.took.as_secs_f64() * 1e3);
        let json = run
            .stderr
            .lines()
            .rfind(|line| line.starts_with('{'))
            .expect("--timings prints JSON");
        let timings: Value = serde_json::from_str(json).expect("--timings prints JSON");
        let at = |phase: &str| timings[phase].as_f64().unwrap_or(f64::NAN) / 1e3;
        to_agent.add(at("guest_init_us"));
        to_ready.add(at("guest_ready_us") - at("guest_init_us"));
        for (figure, (_, from, to)) in phases.iter_mut().zip(PHASES) {
            figure.add(at(to) - at(from));
        }
        forget_earlier_guests();
        let sandbox = msb.create("idle");
        let memory_mib = sandbox.inspect()["memory_mib"]
            .as_u64()
            .expect("inspect tells the memory");
        memory.add(f64::from(resident_beyond_guest(sandbox.vm(), memory_mib)));
        msb.run(["rm", "--force", "idle"]).expect(0);
    }
    let mut figures = vec![first_output, whole, to_agent, to_ready];
    figures.extend(phases);
    figures.push(memory);
    figures
}

/// Milliseconds from the start of a command to its first output.
pub(crate) fn to_first_output(command: &mut Command) -> f64 {
    let began = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("msb is on PATH");
    let mut first = [0];
    let output = child.stdout.as_mut().expect("standard output is piped");
    output.read_exact(&mut first).expect("the command prints something");
    let took = began.elapsed();
    assert!(child.wait().expect("a child can be waited for").success());
    took.as_secs_f64() * 1e3
}
