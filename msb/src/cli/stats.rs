//! `msb stats`

use clap::Args;
use jiff::SignedDuration;
use serde::Serialize;

use super::error::{CliError, cannot};
use super::progress::size;
use super::{Context, output};
use crate::Sandbox;
use crate::sandbox::usage::Usage;
use crate::store::StoreError;
use crate::store::names::SandboxId;

/// Show what running sandboxes use of this host: processor, memory, storage, connections
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  msb stats
  watch msb stats box
  msb stats --prometheus > /var/lib/node_exporter/msb.prom")]
pub(super) struct StatsArgs {
    /// Name, id or beginning of the id; default: all that run
    #[arg(value_name = "SANDBOX")]
    sandboxes: Vec<String>,
    /// Print a JSON array instead of a table
    #[arg(long)]
    json: bool,
    /// Print the text format of Prometheus
    #[arg(long, conflicts_with = "json")]
    prometheus: bool,
}

/// One sandbox. The JSON has a stable schema: keys are added, never changed or left out.
#[derive(Debug, Serialize)]
struct Row {
    id: SandboxId,
    name: String,
    #[serde(flatten)]
    usage: Usage,
}

/// A metric: its name, kind and meaning, and its value if it is known.
type Metric = (&'static str, &'static str, &'static str, fn(&Usage) -> Option<f64>);

const METRICS: [Metric; 7] = [
    (
        "cpu_seconds_total",
        "counter",
        "Processor time of VM and keeper.",
        |usage| Some(usage.cpu_seconds),
    ),
    (
        "memory_bytes",
        "gauge",
        "Memory in use, the guest's included.",
        |usage| Some(number(usage.memory_bytes)),
    ),
    ("memory_limit_bytes", "gauge", "Memory that the VM may have.", |usage| {
        usage.memory_limit_bytes.map(number)
    }),
    ("read_bytes_total", "counter", "Bytes read from storage.", |usage| {
        usage.read_bytes.map(number)
    }),
    ("written_bytes_total", "counter", "Bytes written to storage.", |usage| {
        usage.written_bytes.map(number)
    }),
    ("connections", "gauge", "Open connections to the guest.", |usage| {
        Some(number(usage.connections))
    }),
    ("uptime_seconds", "gauge", "Time since the start.", |usage| {
        Some(number(usage.uptime_seconds))
    }),
];

pub(super) fn run(args: &StatsArgs, context: &Context) -> Result<u8, CliError> {
    let rows = rows(args, context)?;
    if args.json {
        output::json(&rows)?;
    } else if args.prometheus {
        output::text(&prometheus(&rows))?;
    } else {
        output::text(&table(&rows))?;
    }
    Ok(0)
}

fn rows(args: &StatsArgs, context: &Context) -> Result<Vec<Row>, CliError> {
    let mut rows = Vec::new();
    for reference in &args.sandboxes {
        let what = || format!("measure {reference}");
        let sandbox = Sandbox::find(&context.store, reference).map_err(cannot(what()))?;
        let usage = sandbox.usage().map_err(cannot(what()))?;
        let usage = usage.ok_or_else(|| {
            CliError::plain(format!(
                "cannot measure {reference}: it is not running; `msb start {reference}` starts it"
            ))
        })?;
        rows.push(Row::of(&sandbox, usage));
    }
    if args.sandboxes.is_empty() {
        for sandbox in Sandbox::all(&context.store).map_err(cannot("list the sandboxes"))? {
            match sandbox.and_then(|sandbox| Ok((sandbox.usage()?, sandbox))) {
                Ok((Some(usage), sandbox)) => rows.push(Row::of(&sandbox, usage)),
                // It does not run, or was removed meanwhile.
                Ok((None, _)) | Err(StoreError::Unknown(_)) => {}
                // The others can be measured all the same.
                Err(error) => eprintln!("msb: {}", CliError::cannot("measure a sandbox", &error).message),
            }
        }
    }
    Ok(rows)
}

impl Row {
    fn of(sandbox: &Sandbox, usage: Usage) -> Self {
        Self {
            id: sandbox.id().clone(),
            name: sandbox.label().to_owned(),
            usage,
        }
    }
}

fn table(rows: &[Row]) -> String {
    let header = [
        "NAME",
        "ID",
        "CPU TIME",
        "MEMORY",
        "LIMIT",
        "READ",
        "WRITTEN",
        "CONNECTIONS",
        "UP",
    ]
    .map(str::to_owned)
    .to_vec();
    let maybe = |bytes: Option<u64>| bytes.map_or_else(|| "-".into(), size);
    let row = |Row { id, name, usage }: &Row| {
        let up = i64::try_from(usage.uptime_seconds).unwrap_or(i64::MAX);
        vec![
            name.clone(),
            id.to_string(),
            format!("{:.1}s", usage.cpu_seconds),
            size(usage.memory_bytes),
            maybe(usage.memory_limit_bytes),
            maybe(usage.read_bytes),
            maybe(usage.written_bytes),
            usage.connections.to_string(),
            format!("{:#}", SignedDuration::from_secs(up)),
        ]
    };
    output::table(&std::iter::once(header).chain(rows.iter().map(row)).collect::<Vec<_>>())
}

/// The exposition format 0.0.4: of each metric its meaning, its kind and a line for each sandbox.
fn prometheus(rows: &[Row]) -> String {
    let mut text = String::new();
    for (name, kind, meaning, value) in METRICS {
        text += &format!("# HELP msb_sandbox_{name} {meaning}\n# TYPE msb_sandbox_{name} {kind}\n");
        for Row { id, name: label, usage } in rows {
            // Ids and names have no character that would need an escape.
            if let Some(value) = value(usage) {
                text += &format!("msb_sandbox_{name}{{id=\"{id}\",name=\"{label}\"}} {value}\n");
            }
        }
    }
    text
}

#[expect(clippy::cast_precision_loss, reason = "bytes and seconds are far below 2^52")]
fn number(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        Row {
            id: "0123456789ab".parse().unwrap(),
            name: "box".into(),
            usage: Usage {
                cpu_seconds: 1.25,
                memory_bytes: 50 << 20,
                memory_limit_bytes: Some(388 << 20),
                read_bytes: None,
                written_bytes: None,
                connections: 2,
                uptime_seconds: 3661,
            },
        }
    }

    #[test]
    fn a_table_has_a_row_for_each_and_a_dash_for_what_is_not_known() {
        let table = table(&[row()]);
        assert_eq!(
            table.lines().last(),
            Some("box   0123456789ab  1.2s      50.0 MiB  388.0 MiB  -     -        2            1h 1m 1s")
        );
    }

    #[test]
    fn prometheus_gets_what_is_known() {
        let text = prometheus(&[row()]);
        assert!(text.contains(
            "# TYPE msb_sandbox_cpu_seconds_total counter\n\
             msb_sandbox_cpu_seconds_total{id=\"0123456789ab\",name=\"box\"} 1.25\n"
        ));
        assert!(
            text.contains("# TYPE msb_sandbox_read_bytes_total counter\n# HELP"),
            "{text}"
        );
        assert!(
            text.lines()
                .all(|line| line.starts_with('#') || line.split(' ').count() == 2)
        );
    }
}
