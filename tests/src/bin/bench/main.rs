//! The benchmarks behind `scripts/bench`: measures `msb` as its users call it, prints a table, writes JSON.
//!
//! Every figure keeps its raw samples. Nothing here judges: on an emulated host only ratios mean anything.

mod boot;
mod counts;
mod figure;
mod fork;
mod images;
mod jail;
mod ssh;
mod tracing;

use std::process::{Command, ExitCode};

use figure::Figure;
use serde_json::{Value, json};

/// Samples of a figure when `--samples` says nothing.
const SAMPLES: usize = 5;

/// Forks side by side when `--forks` says nothing.
const FORKS: usize = 20;

struct Options {
    names: Vec<String>,
    json: Option<String>,
    samples: usize,
    ssh: ssh::Options,
    /// An archive of the root file system that `images` imports.
    rootfs: Option<std::path::PathBuf>,
    /// How many forks there are side by side.
    forks: usize,
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
            "counts" => counts::measure(options.samples),
            "fork" => fork::measure(options.samples, options.forks),
            "images" => images::measure(options.samples, options.rootfs.as_deref().unwrap_or("".as_ref())),
            "jail" => jail::measure(options.samples),
            "ssh-servers" => ssh::measure_servers(options.samples, &options.ssh),
            _ => ssh::measure(options.samples, &options.ssh),
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
        ssh: ssh::Options::default(),
        rootfs: None,
        forks: FORKS,
    };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--json" => options.json = Some(arguments.next().ok_or("--json needs a FILE")?),
            "--samples" => options.samples = number(&argument, arguments.next())?,
            "--bulk" => options.ssh.bulk_mib = number(&argument, arguments.next())?,
            "--files" => options.ssh.files = number(&argument, arguments.next())?,
            "--agent" => options.ssh.agent = Some(arguments.next().ok_or("--agent needs a FILE")?.into()),
            "--forks" => options.forks = number(&argument, arguments.next())?,
            "--rootfs" => options.rootfs = Some(arguments.next().ok_or("--rootfs needs a FILE")?.into()),
            "boot" | "counts" | "fork" | "images" | "jail" | "ssh" | "ssh-servers" => options.names.push(argument),
            other => {
                return Err(format!(
                    "there is no benchmark {other}: choose from boot, counts, fork, images, jail, ssh and ssh-servers"
                ));
            }
        }
    }
    if options.names.iter().any(|name| name == "images") && options.rootfs.is_none() {
        return Err("images needs --rootfs FILE, which scripts/bench makes".into());
    }
    if options.names.is_empty() {
        options.names = vec!["boot".into(), "counts".into(), "ssh".into()];
    }
    Ok(options)
}

fn number(option: &str, value: Option<String>) -> Result<usize, String> {
    let number = value.and_then(|value| value.parse().ok()).filter(|number| *number > 0);
    number.ok_or_else(|| format!("{option} needs a number above 0"))
}

/// What the figures depend on.
fn host() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map(|(_, model)| model.trim());
    // It is null where there is no such program.
    let version = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output().ok()?;
        let text = if output.stdout.is_empty() {
            output.stderr
        } else {
            output.stdout
        };
        Some(String::from_utf8_lossy(&text).trim().to_owned())
    };
    json!({
        "mode": std::env::var("MSB_KVM_HOST_MODE").unwrap_or_else(|_| "unknown".into()),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "cpu": model,
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "msb": version("msb", "--version"),
        "ssh": version("ssh", "-V"),
        "sshd": ssh::sshd_version(),
    })
}

fn print_table(figures: &[Figure]) {
    println!("{:<56} {:>12} {:>12} {:>12}  unit", "figure", "min", "median", "max");
    for figure in figures {
        let [min, median, max] = figure.spread();
        println!(
            "{:<56} {min:>12.2} {median:>12.2} {max:>12.2}  {}",
            figure.name, figure.unit
        );
    }
}
