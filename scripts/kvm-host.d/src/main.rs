//! Both ends of `scripts/kvm-host`: on this machine it starts QEMU and passes streams; as PID 1 of the emulated host it
//! prepares that host and runs the command.
//!
//! Four virtio-serial ports join the two ends: standard input, output and error carry the command's bytes and nothing
//! else, so each has its own flow control; the control port carries the [`job::Job`] inwards and the [`job::Outcome`]
//! outwards. The outcome counts the bytes that were sent: the outer end stops QEMU only when it has passed all of them.

mod init;
mod job;
mod machine;
mod outer;
mod pump;

use std::process::ExitCode;

/// A failure in words, complete with what was being done and to what.
type Failure = String;

/// Says what failed, for `map_err`.
fn failed<E: std::fmt::Display>(doing: impl std::fmt::Display) -> impl FnOnce(E) -> Failure {
    move |error| format!("cannot {doing}: {error}")
}

fn main() -> ExitCode {
    if std::process::id() == 1 {
        init::run();
    }
    match outer::run() {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            eprintln!("kvm-host: error: {failure}");
            ExitCode::from(125)
        }
    }
}
