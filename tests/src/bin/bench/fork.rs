//! Forks and restores of a running sandbox beside cold runs, and many forks side by side.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use msb_test_support::kib_in;
use msb_tests::{Msb, VmMemory};
use rustix::process::Pid;
use serde_json::Value;

use crate::boot::to_first_output;
use crate::emulation::forget_earlier_guests;
use crate::figure::Figure;

/// Of the forks that are made side by side, how many count as the first and as the last.
const ENDS: usize = 10;

/// So long whoever takes a fork from a pool is left alone by the process that makes another.
const HEAD_START: Duration = Duration::from_secs(1);

/// Measures with `forks` sandboxes side by side.
pub(crate) fn measure(samples: usize, forks: usize) -> Vec<Figure> {
    let msb = Msb::in_memory();
    msb.create("source");
    let mut figures = against_cold_runs(&msb, samples);
    figures.extend(side_by_side(&msb, forks));
    figures
}

fn against_cold_runs(msb: &Msb, samples: usize) -> Vec<Figure> {
    let mut cold = Figure::cold("msb run: process start to first output, cold", "ms");
    let mut fork = Figure::fork("msb fork, then msb exec: start to first output, fork", "ms");
    let mut save = Figure::warm("msb snapshot", "ms");
    let mut restore = Figure::fork("msb restore, then msb exec: start to first output, restore", "ms");
    let mut warm = Figure::fork("msb run --pool: process start to first output, warm", "ms");
    msb.run(["pool", "create", "pool", "--from", "source", "--size", "1"])
        .expect(0);
    let snapshot = msb.scratch("snapshot");
    let snapshot_path = snapshot.to_string_lossy();
    // The first of each reads everything from the disk.
    for sample in 0..=samples {
        forget_earlier_guests();
        let cold_run = to_first_output(&mut msb.command(["run", "--", "echo", "out"]));
        forget_earlier_guests();
        let forked = then_exec(msb, "copy", &["fork", "source", "--name", "copy"]);
        let saved = duration(|| msb.run(["snapshot", "source", &snapshot_path]).expect(0));
        let restored = then_exec(msb, "copy", &["restore", &snapshot_path, "--name", "copy"]);
        // As before the cold run it is compared with; the host is done with what was removed, too.
        forget_earlier_guests();
        let warm_run = to_first_output(&mut msb.command(["run", "--pool", "pool", "--", "echo", "out"]));
        let millis = [cold_run, forked, saved, restored, warm_run];
        // The replacement is made now, and not while the next is measured.
        std::thread::sleep(HEAD_START);
        msb.run(["pool", "fill", "pool"]).expect(0);
        std::fs::remove_dir_all(&snapshot).expect("a snapshot can be removed");
        if sample > 0 {
            let figures = [&mut cold, &mut fork, &mut save, &mut restore, &mut warm];
            figures
                .into_iter()
                .zip(millis)
                .for_each(|(figure, millis)| figure.add(millis));
        }
    }
    let ratio = fork.ratio_to("fork to first output: fork to cold", &cold);
    let restored = restore.ratio_to("restore to first output: restore to cold", &cold);
    let warmed = warm.ratio_to("run from a pool to first output: warm to cold", &cold);
    let mut figures = vec![cold, fork, ratio, save, restore, restored, warm, warmed];
    figures.extend(of_a_fork_that_waits(msb));
    figures
}

/// What a fork costs that waits in a pool, which is then removed.
fn of_a_fork_that_waits(msb: &Msb) -> [Figure; 3] {
    let mut dirtied = Figure::fork("guest pages of its own that a fork has that waits in a pool", "KiB");
    let mut private = Figure::fork("private memory of its two processes beyond these", "KiB");
    let mut standby = Figure::fork("private memory of the process that stands by it", "KiB");
    for sandbox in msb.list() {
        if sandbox["state"] == "waiting" {
            add_memory(msb, &sandbox, &mut dirtied, &mut private);
        }
    }
    for pid in msb.standbys() {
        standby.add(anonymous_kib(pid));
    }
    msb.run(["pool", "rm", "pool"]).expect(0);
    [dirtied, private, standby]
}

/// What a process has that is of no file.
fn anonymous_kib(pid: Pid) -> f64 {
    kib_of(&format!("/proc/{}/status", pid.as_raw_nonzero()), "RssAnon")
}

/// Milliseconds from the start of a verb that makes the sandbox `name` to the first output of a command in it.
fn then_exec(msb: &Msb, name: &str, verb: &[&str]) -> f64 {
    let making = duration(|| msb.run(verb).expect(0));
    let output = to_first_output(&mut msb.command(["exec", name, "--", "echo", "out"]));
    msb.run(["rm", "--force", name]).expect(0);
    making + output
}

fn duration<T>(work: impl FnOnce() -> T) -> f64 {
    let began = Instant::now();
    work();
    began.elapsed().as_secs_f64() * 1e3
}

/// What each of many forks takes, in time and of the host's memory.
fn side_by_side(msb: &Msb, forks: usize) -> Vec<Figure> {
    let mut first = Figure::fork(format!("each of the first {ENDS} of {forks} forks, until ready"), "ms");
    let mut last = Figure::fork(format!("each of the last {ENDS}"), "ms");
    let mut dirtied = Figure::fork("guest pages that an idle fork dirtied", "KiB");
    let mut private = Figure::fork("private memory of an idle fork's two processes beyond these", "KiB");
    let mut host = Figure::fork("memory that the host lost, per fork, all included", "KiB");

    let count = forks.to_string();
    let mut command = msb.command(["fork", "source", "-n", &count, "--name", "many"]);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("msb is on PATH");
    let mut lines = BufReader::new(child.stdout.take().expect("standard output is piped")).lines();
    let mut next = || lines.next().expect("each fork is told").expect("its id is text");
    // The first waits for the source to be saved.
    next();
    let available = available_kib();
    for fork in 1..forks {
        let took = duration(&mut next);
        if fork <= ENDS {
            first.add(took);
        }
        if fork + ENDS >= forks {
            last.add(took);
        }
    }
    assert!(child.wait().expect("a child can be waited for").success());
    if let Ok(others) = u32::try_from(forks - 1) {
        host.add((available - available_kib()) / f64::from(others.max(1)));
    }
    for sandbox in msb.list() {
        if !sandbox["name"].as_str().is_some_and(|name| name.starts_with("many")) {
            continue;
        }
        add_memory(msb, &sandbox, &mut dirtied, &mut private);
    }
    vec![first, last, dirtied, private, host]
}

/// Adds what memory a sandbox that `msb ls` lists has to itself.
fn add_memory(msb: &Msb, sandbox: &Value, dirtied: &mut Figure, private: &mut Figure) {
    let id = sandbox["id"].as_str().expect("every sandbox has an id");
    let inspected = msb.run(["inspect", id]).expect(0);
    let inspected: Value = serde_json::from_slice(&inspected.stdout).expect("inspect prints JSON");
    let memory_mib = inspected["memory_mib"].as_u64().expect("inspect tells the memory");
    let memory_of = |pid: &Value| {
        let pid = pid.as_i64().and_then(|pid| i32::try_from(pid).ok());
        VmMemory::of(
            pid.and_then(Pid::from_raw).expect("a running sandbox has this process"),
            memory_mib,
        )
    };
    let (vm, keeper) = (memory_of(&inspected["vm"]["pid"]), memory_of(&inspected["pid"]));
    dirtied.add(vm.guest_private.into());
    private.add((vm.other_private + keeper.other_private).into());
}

/// What the host could still give.
pub(crate) fn available_kib() -> f64 {
    kib_of("/proc/meminfo", "MemAvailable")
}

fn kib_of(path: &str, key: &str) -> f64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    kib_in(&text, key).map_or(f64::NAN, f64::from)
}
