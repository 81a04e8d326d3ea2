//! `msb doctor`

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::error::CliError;
use super::{Context, output};
use crate::doctor::{self, Check, Verdict};

/// Exit status when something is missing.
const UNHEALTHY: u8 = 1;

/// Find out what this machine lacks to run sandboxes, by running one; exit status 1 if something is
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  msb doctor\n  msb doctor --probe --quiet && echo guests run here")]
pub(super) struct DoctorArgs {
    /// Only boot a guest
    #[arg(long)]
    probe: bool,
    /// Print nothing
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Seconds the guest may take until it serves SSH
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    boot_timeout: u32,
}

/// What `--json` prints; a stable schema.
#[derive(Serialize)]
struct Report<'a> {
    healthy: bool,
    checks: &'a [Check],
}

pub(super) fn run(args: &DoctorArgs, context: &Context) -> Result<u8, CliError> {
    let timeout = Duration::from_secs(args.boot_timeout.into());
    let checks = super::runtime()?.block_on(async {
        match args.probe {
            true => doctor::guest(&context.store, timeout).await,
            false => doctor::examine(&context.store, timeout).await,
        }
    });
    let healthy = doctor::is_healthy(&checks);
    if args.json {
        output::json(&Report {
            healthy,
            checks: &checks,
        })?;
    } else if !args.quiet {
        output::text(&checks.iter().map(lines).collect::<String>())?;
    }
    Ok(if healthy { 0 } else { UNHEALTHY })
}

fn lines(check: &Check) -> String {
    let verdict = match check.verdict {
        Verdict::Ok => "ok",
        Verdict::Warning => "warning",
        Verdict::Failed => "FAILED",
        Verdict::Skipped => "skipped",
    };
    let mend = check
        .mend
        .as_ref()
        .map(|mend| format!("{:18}to mend it: {mend}\n", ""))
        .unwrap_or_default();
    format!("{verdict:8}{:10}{}\n{mend}", check.name, check.detail)
}
