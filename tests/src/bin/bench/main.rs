//! The benchmarks behind `scripts/bench`: measures `msb` as its users call it, prints a table, writes JSON.
//!
//! Every figure keeps its raw samples. Nothing here judges: on an emulated host only ratios mean anything.

mod boot;
mod figure;
mod ssh;

use std::process::{Command, ExitCode};

use figure::Figure;
use msb_tests::finish;
use serde_json::{Value, json};

/// Samples of a figure when `--samples` says nothing.
const SAMPLES: usize = 5;

struct Options {
    names: Vec<String>,
    json: Option<String>,
    samples: usize,
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("bench: {error}; see scripts/bench --help");
            return ExitCode::from(2);
        }
    };
    let mut figures = Vec::new();
    for name in &options.names {
        figures.extend(match name.as_str() {
            "boot" => boot::measure(options.samples),
            _ => ssh::measure(options.samples),
        });
    }
    print_table(&figures);
    if let Some(path) = options.json {
        let report = json!({ "host": host(), "figures": figures.iter().map(Figure::to_json).collect::<Vec<_>>() });
        let text = serde_json::to_string_pretty(&report).expect("a report has only strings and numbers") + "\n";
        if let Err(error) = std::fs::write(&path, text) {
            eprintln!("bench: cannot write {path}: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        names: Vec::new(),
        json: None,
        samples: SAMPLES,
    };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--json" => options.json = Some(arguments.next().ok_or("--json needs a FILE")?),
            "--samples" => {
                let count = arguments
                    .next()
                    .and_then(|count| count.parse().ok())
                    .filter(|count| *count > 0);
                options.samples = count.ok_or("--samples needs a number above 0")?;
            }
            "boot" | "ssh" => options.names.push(argument),
            other => return Err(format!("there is no benchmark {other}: choose from boot and ssh")),
        }
    }
    if options.names.is_empty() {
        options.names = vec!["boot".into(), "ssh".into()];
    }
    Ok(options)
}

/// What the figures depend on.
fn host() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map(|(_, model)| model.trim());
    let version = |program: &str, argument: &str| {
        let output = finish(Command::new(program).arg(argument));
        let text = if output.stdout.is_empty() {
            output.stderr
        } else {
            output.text()
        };
        text.trim().to_owned()
    };
    json!({
        "mode": std::env::var("MSB_KVM_HOST_MODE").unwrap_or_else(|_| "unknown".into()),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "cpu": model,
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "msb": version("msb", "--version"),
        "ssh": version("ssh", "-V"),
    })
}

fn print_table(figures: &[Figure]) {
    println!("{:<44} {:>12} {:>12} {:>12}  unit", "figure", "min", "median", "max");
    for figure in figures {
        let [min, median, max] = figure.spread();
        println!(
            "{:<44} {min:>12.1} {median:>12.1} {max:>12.1}  {}",
            figure.name, figure.unit
        );
    }
}
