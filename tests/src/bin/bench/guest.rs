//! This program in a guest: the other end of what is measured without SSH.

use std::process::ExitCode;

use msb_tests::{Msb, Sandbox, finish_with_input};

use crate::{block, vsock};

/// The first argument of the program in a guest; what it shall do is the second.
pub(crate) const ARGUMENT: &str = "--in-guest";

/// Of each guest.
pub(crate) const MEMORY_MIB: u32 = 512;

/// Where it is there.
const PROGRAM: &str = "/tmp/bench";

/// A sandbox with this program in it.
pub(crate) fn start<'a>(msb: &'a Msb, name: &str, options: &[&str]) -> Sandbox<'a> {
    let memory = format!("{MEMORY_MIB}M");
    let sandbox = msb.create_with(name, &[&["--memory", &memory], options].concat());
    let program = std::fs::read("/proc/self/exe").expect("this program can be read");
    let install = format!("cat >{PROGRAM} && chmod +x {PROGRAM}");
    finish_with_input(&mut sandbox.ssh_command(&install), program).expect(0);
    sandbox
}

/// What the program prints that does `what`.
pub(crate) fn run(sandbox: &Sandbox<'_>, what: &str) -> String {
    sandbox.ssh(&format!("{PROGRAM} {ARGUMENT} {what}")).expect(0).text()
}

/// Leaves the program running that does `what`.
pub(crate) fn run_in_background(sandbox: &Sandbox<'_>, what: &str) {
    let start = format!("setsid {PROGRAM} {ARGUMENT} {what} </dev/null >/dev/null 2>&1 &");
    sandbox.ssh(&start).expect(0);
}

/// Does `what`, in the guest.
pub(crate) fn main(what: Option<&str>) -> ExitCode {
    let done = match what {
        Some("block") => block::report(),
        _ => vsock::serve(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}
