//! The end on this machine: starts the emulated host, hands it the job, passes the streams and the status.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::str::FromStr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::job::{HEARTBEAT, Job, Outcome};
use crate::machine::Machine;
use crate::pump::{End, Progress, pump};
use crate::{Failure, failed};

/// The status of a command that ran out of time, as `timeout` has it.
const TIMED_OUT: u8 = 124;

/// How often the machine is sent [`HEARTBEAT`].
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(250);

/// Environment variables that reach the command, besides those that start with `MSB_`.
const PASSED: [&str; 8] = [
    "HOME",
    "PATH",
    "USER",
    "LANG",
    "TERM",
    "CI",
    "RUST_LOG",
    "RUST_BACKTRACE",
];

struct Options {
    machine: Machine,
    timeout: Option<Duration>,
    command: Vec<OsString>,
}

/// Does what the command line asks for; the exit status.
pub(crate) fn run() -> Result<u8, Failure> {
    let options = parse(std::env::args_os().skip(1))?;
    let job = Job {
        directory: std::env::current_dir()
            .map_err(failed("find the current directory"))?
            .into(),
        shared: options.machine.shared.clone().into(),
        environment: environment(std::env::vars_os()),
        command: options.command,
    };
    let machine = options.machine.start()?;
    let [stdin, stdout, stderr, control] = machine.ports.each_ref().map(UnixStream::try_clone);
    let clone = || failed("share a socket");
    let (stdin, stdout, stderr) = (
        stdin.map_err(clone())?,
        stdout.map_err(clone())?,
        stderr.map_err(clone())?,
    );
    let mut control = control.map_err(clone())?;

    let sent = job.write(&control);
    keep_awake(control.try_clone().map_err(clone())?);
    thread::spawn(move || pass_input(&stdin));
    let streams = [
        pass_output(stdout, io::stdout(), 0, control.try_clone().map_err(clone())?),
        pass_output(stderr, io::stderr(), 1, control.try_clone().map_err(clone())?),
    ];
    let outcome = sent.and_then(|()| wait_for_outcome(&mut control, options.timeout));
    match outcome {
        Ok(Some(outcome)) => {
            let complete = streams
                .iter()
                .zip(outcome.sent)
                .all(|(progress, bytes)| progress.wait_for(bytes));
            machine.kill();
            if complete {
                Ok(outcome.status)
            } else {
                Err("the output of the command was cut off".to_owned())
            }
        }
        Ok(None) => {
            machine.kill();
            eprintln!("kvm-host: the command did not end within MSB_KVM_HOST_TIMEOUT; the machine was stopped");
            Ok(TIMED_OUT)
        }
        Err(_) => Err(machine.post_mortem()),
    }
}

fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Options, Failure> {
    let mut next = |name: &str| {
        arguments
            .next()
            .ok_or_else(|| format!("the argument {name} is missing"))
    };
    let machine = Machine {
        kernel: next("KERNEL")?.into(),
        initramfs: next("INITRAMFS")?.into(),
        scratch: next("SCRATCH")?.into(),
        shared: next("SHARED")?.into(),
        memory_mib: number(&next("MEMORY")?)?,
        cpus: number(&next("CPUS")?)?,
        cpu_model: next("CPU_MODEL")?,
    };
    let timeout: u64 = number(&next("TIMEOUT")?)?;
    let timeout = (timeout > 0).then(|| Duration::from_secs(timeout));
    Ok(Options {
        machine,
        timeout,
        command: arguments.collect(),
    })
}

fn number<N: FromStr>(text: &OsStr) -> Result<N, Failure> {
    text.to_str()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| format!("not a number in range: {}", text.display()))
}

fn environment(variables: impl Iterator<Item = (OsString, OsString)>) -> Vec<OsString> {
    variables
        .filter(|(name, _)| name.as_bytes().starts_with(b"MSB_") || PASSED.iter().any(|passed| name == passed))
        .map(|(name, value)| [name, value].join(OsStr::new("=")))
        .collect()
}

/// Passes standard input, then its end.
fn pass_input(socket: &UnixStream) {
    pump(io::stdin(), socket, &Progress::default());
    // A machine that is gone needs no end of input.
    let _ = socket.shutdown(Shutdown::Write);
}

/// Passes an output stream on a thread of its own. When nobody reads it any more, the other end is told so and the rest
/// is dropped.
fn pass_output(
    from: UnixStream,
    to: impl Write + Send + 'static,
    stream: u8,
    mut control: UnixStream,
) -> Arc<Progress> {
    let progress = Arc::new(Progress::default());
    thread::spawn({
        let progress = Arc::clone(&progress);
        move || {
            if pump(&from, to, &progress) == End::Sink {
                // Without a machine there is nobody to tell.
                let _ = control.write_all(&[stream]);
                pump(&from, io::sink(), &Progress::default());
            }
        }
    });
    progress
}

/// Sends heartbeats for as long as the machine runs. QEMU may lose an interrupt that one of its threads raises while another
/// enters or leaves a guest: both change one word, and the latter without a lock. The next interrupt delivers the lost one,
/// too, but an idle machine whose timer's was lost has no next one.
fn keep_awake(mut control: UnixStream) {
    thread::spawn(move || {
        while control.write_all(&[HEARTBEAT]).is_ok() {
            thread::sleep(HEARTBEAT_INTERVAL);
        }
    });
}

/// Waits for the end of the job; nothing when it ran out of time.
fn wait_for_outcome(control: &mut UnixStream, timeout: Option<Duration>) -> io::Result<Option<Outcome>> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let remaining = deadline.map(|deadline| {
        deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1))
    });
    control.set_read_timeout(remaining)?;
    match Outcome::read(&*control) {
        Ok(outcome) => Ok(Some(outcome)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_variables_reach_the_command() {
        let variables = [("MSB_LIB", "/lib"), ("CI", "true"), ("SECRET", "x"), ("CICERO", "y")];

        let passed = environment(variables.into_iter().map(|(name, value)| (name.into(), value.into())));

        assert_eq!(passed, ["MSB_LIB=/lib", "CI=true"]);
    }

    #[test]
    fn a_missing_argument_is_named() {
        let failure = parse(["k", "i"].into_iter().map(OsString::from))
            .err()
            .expect("too few");

        assert!(failure.contains("SCRATCH"), "{failure}");
    }
}
