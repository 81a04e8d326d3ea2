//! `msb ls`

use std::time::Duration;

use clap::Args;
use jiff::Timestamp;

use super::error::{CliError, cannot};
use super::filter::{self, Filter};
use super::view::SandboxView;
use super::{Context, output};
use crate::Sandbox;
use crate::sandbox::spec::Memory;
use crate::store::StoreError;

/// List sandboxes, oldest first
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  msb ls
  msb ls --filter label=job=nightly --filter state=running
  msb rm --force $(msb ls -q --filter label=job=nightly)
  msb ls --json | jq -r '.[] | .host'")]
pub(super) struct LsArgs {
    /// Print a JSON array instead of a table
    #[arg(long)]
    json: bool,
    /// Print ids only
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
    /// Only those with label=KEY, label=KEY=VALUE, state=STATE or name=TEXT; several: all hold, of states any
    #[arg(long, short, value_name = "CONDITION")]
    filter: Vec<Filter>,
}

pub(super) fn run(args: &LsArgs, context: &Context) -> Result<u8, CliError> {
    if let Err(error) = context.store.sweep() {
        // What is there can be listed all the same.
        eprintln!("msb: {}", CliError::cannot("clean up", &error).message);
    }
    let sandboxes = Sandbox::all(&context.store).map_err(cannot("list the sandboxes"))?;
    let mut views = Vec::with_capacity(sandboxes.len());
    for sandbox in sandboxes {
        match sandbox.and_then(|sandbox| SandboxView::of(&sandbox)) {
            Ok(view) if filter::admits(&args.filter, &view) => views.push(view),
            Ok(_) => {}
            // It was removed meanwhile.
            Err(StoreError::Unknown(_)) => {}
            // The others can be listed all the same.
            Err(error) => eprintln!("msb: {}", CliError::cannot("list a sandbox", &error).message),
        }
    }
    if args.json {
        output::json(&views)?;
    } else if args.quiet {
        views.iter().try_for_each(|view| output::line(view.id.as_str()))?;
    } else {
        output::text(&table(&views))?;
    }
    Ok(0)
}

fn table(views: &[SandboxView]) -> String {
    let header = ["NAME", "ID", "STATE", "CPUS", "MEMORY", "CREATED", "LEFT", ""]
        .map(str::to_owned)
        .to_vec();
    let row = |view: &SandboxView| {
        vec![
            view.name.as_ref().map_or_else(|| "-".into(), ToString::to_string),
            view.id.to_string(),
            view.state.to_owned(),
            view.cpus.to_string(),
            Memory { mib: view.memory_mib }.to_string(),
            age(Timestamp::now().as_second() - view.created_at.as_second()),
            view.seconds_left.map_or_else(|| "-".into(), left),
            view.message.clone().unwrap_or_default(),
        ]
    };
    output::table(&std::iter::once(header).chain(views.iter().map(row)).collect::<Vec<_>>())
}

/// How long ago something was.
pub(super) fn age(seconds: i64) -> String {
    whole_units(u64::try_from(seconds).unwrap_or(0)) + " ago"
}

/// How long something has yet, at least.
fn left(seconds: f64) -> String {
    whole_units(Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs())
}

/// A duration in its largest whole unit.
fn whole_units(seconds: u64) -> String {
    match seconds {
        s @ 0..60 => format!("{s}s"),
        s @ 60..3600 => format!("{}m", s / 60),
        s @ 3600..86_400 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_one_number() {
        let ages = [
            (-5, "0s ago"),
            (59, "59s ago"),
            (60, "1m ago"),
            (7200, "2h ago"),
            (200_000, "2d ago"),
        ];
        for (seconds, text) in ages {
            assert_eq!(age(seconds), text);
        }
        assert_eq!((left(0.9), left(3599.9)), ("0s".into(), "59m".into()));
    }
}
