//! `msb timeout`

use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::error::{CliError, cannot};
use super::{Context, output};
use crate::Sandbox;
use crate::sandbox::deadline::{Deadline, Timeout, TimeoutEnd, TimeoutError};

/// Give a running sandbox more or less time, or print how much it has
///
/// The time counts from now on. It passes while the sandbox is paused and while the host is asleep, and nothing else changes
/// it: no connection prolongs it. The next start has that of `msb create` again.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  msb timeout box                prints the seconds left, or none
  msb timeout box 30m
  msb timeout box 1h --on-timeout kill
  msb timeout box none")]
pub(super) struct TimeoutArgs {
    /// Name, id or beginning of the id
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// End it so long from now, such as 90 (seconds), 15m or 1h30m, or never: `none`
    #[arg(value_name = "DURATION")]
    timeout: Option<TimeoutOrNone>,
    /// What ends it when its time is over; default: what it was
    #[arg(long, value_name = "END", value_enum, requires = "timeout")]
    on_timeout: Option<TimeoutEnd>,
    /// Print when it will be ended as JSON
    #[arg(long)]
    json: bool,
}

/// A time, or that there is no limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct TimeoutOrNone(pub(super) Option<Timeout>);

impl FromStr for TimeoutOrNone {
    type Err = TimeoutError;

    fn from_str(text: &str) -> Result<Self, TimeoutError> {
        match text {
            "none" => Ok(Self(None)),
            text => text.parse().map(Some).map(Self),
        }
    }
}

/// When a sandbox will be ended. All null while its time has no limit.
#[derive(Debug, Default, Serialize)]
pub(super) struct DeadlineView {
    pub(super) deadline: Option<Timestamp>,
    pub(super) seconds_left: Option<f64>,
    pub(super) on_timeout: Option<TimeoutEnd>,
}

impl DeadlineView {
    pub(super) fn of(deadline: Deadline) -> Self {
        Self {
            deadline: Some(deadline.at),
            seconds_left: Some(seconds(deadline.left)),
            on_timeout: Some(deadline.end),
        }
    }
}

/// In whole milliseconds: more is noise.
fn seconds(left: Duration) -> f64 {
    (left.as_secs_f64() * 1e3).round() / 1e3
}

pub(super) fn run(args: &TimeoutArgs, context: &Context) -> Result<u8, CliError> {
    let what = || match args.timeout {
        Some(_) => format!("set the timeout of {}", args.sandbox),
        None => format!("read the timeout of {}", args.sandbox),
    };
    let sandbox = Sandbox::find(&context.store, &args.sandbox).map_err(cannot(what()))?;
    if let Some(TimeoutOrNone(timeout)) = args.timeout {
        sandbox.set_timeout(timeout, args.on_timeout).map_err(cannot(what()))?;
        if !args.json {
            return Ok(0);
        }
    }
    let deadline = sandbox.deadline().map_err(cannot(what()))?;
    if args.json {
        output::json(&deadline.map(DeadlineView::of).unwrap_or_default())?;
    } else {
        let left = deadline.map(|deadline| seconds(deadline.left).to_string());
        output::line(left.as_deref().unwrap_or("none"))?;
    }
    Ok(0)
}
