//! Sandboxes that do nothing, side by side, and boots with more vCPUs.

use msb_tests::{Msb, VmMemory};

use crate::boot::to_first_output;
use crate::emulation::forget_earlier_guests;
use crate::figure::Figure;
use crate::fork::available_kib;

/// Of the sandboxes, how many count as the first and as the last.
const ENDS: usize = 10;

/// Measures `sandboxes` side by side.
pub(crate) fn measure(samples: usize, sandboxes: usize) -> Vec<Figure> {
    let msb = Msb::in_memory();
    let mut figures = boots(&msb, samples);
    figures.extend(side_by_side(&msb, sandboxes));
    figures
}

/// Boots with one vCPU and with four, in turn.
fn boots(msb: &Msb, samples: usize) -> Vec<Figure> {
    let mut figures =
        ["1", "4"].map(|cpus| Figure::cold(format!("msb run --cpus {cpus}: start to first output"), "ms"));
    let boot = |cpus: &str| to_first_output(&mut msb.command(["run", "--cpus", cpus, "--", "echo", "out"]));
    // The first reads everything from the disk.
    boot("1");
    for _ in 0..samples {
        for (figure, cpus) in figures.iter_mut().zip(["1", "4"]) {
            forget_earlier_guests();
            figure.add(boot(cpus));
        }
    }
    let ratio = figures[1].ratio_to("start with 4 vCPUs to start with 1", &figures[0]);
    figures.into_iter().chain([ratio]).collect()
}

fn side_by_side(msb: &Msb, sandboxes: usize) -> Vec<Figure> {
    let mut first = Figure::cold(
        format!("each of the first {ENDS} of {sandboxes} sandboxes, until ready"),
        "ms",
    );
    let mut last = Figure::cold(
        format!("each of the last {ENDS} of {sandboxes} sandboxes, until ready"),
        "ms",
    );
    let mut guest = Figure::warm("guest pages of an idle sandbox", "KiB");
    let mut private = Figure::warm("private memory of an idle sandbox's two processes beyond these", "KiB");
    let mut host = Figure::warm("memory that the host lost per sandbox, all included", "KiB");
    let available = available_kib();
    let mut running = Vec::with_capacity(sandboxes);
    for number in 0..sandboxes {
        let name = format!("idle-{number}");
        let took = msb.run(["create", "--name", &name]).expect(0).took.as_secs_f64() * 1e3;
        if number < ENDS {
            first.add(took);
        }
        if number + ENDS >= sandboxes {
            last.add(took);
        }
        running.push(msb.sandbox(&name));
    }
    host.add((available - available_kib()) / f64::from(u32::try_from(sandboxes).unwrap_or(u32::MAX)));
    for sandbox in &running {
        let inspected = sandbox.inspect();
        let memory_mib = inspected["memory_mib"].as_u64().expect("inspect tells the memory");
        let (vm, keeper) = (
            VmMemory::of(sandbox.vm(), memory_mib),
            VmMemory::of(sandbox.vmm(), memory_mib),
        );
        guest.add(vm.guest_private.into());
        private.add((vm.other_private + keeper.other_private).into());
    }
    vec![first, last, guest, private, host]
}
