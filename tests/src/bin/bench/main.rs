//! The benchmarks behind `scripts/bench`: measures `msb` as its users call it, prints a table, writes JSON and a picture.
//!
//! Every figure keeps its raw samples. Nothing here judges: on an emulated host only ratios mean anything.

mod block;
mod boot;
mod counts;
mod emulation;
mod figure;
mod firecracker;
mod fork;
mod guest;
mod idle;
mod images;
mod instructions;
mod jail;
mod options;
mod peers;
mod plot;
mod report;
mod ssh;
mod tracing;
mod volume;
mod vsock;

use std::process::ExitCode;

use figure::Figure;
use options::Options;
use report::Report;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some((guest::ARGUMENT, what)) = arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return guest::main(what.first().map(String::as_str));
    }
    let options = match Options::parse(arguments.into_iter()) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("bench: {error}; see scripts/bench --help");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    // Before hours of measuring.
    let baseline = options.baseline.as_deref().map(Report::read).transpose()?;
    let report = match &options.show {
        Some(path) => Report::read(path)?,
        None => Report::of_this_host(measure(options), &peers::versions(&options.peers)),
    };
    if let Some(baseline) = &baseline
        && report.is_of_another_host(baseline)
    {
        eprintln!("bench: the baseline is of another host: its ratios say as much about the two hosts");
    }
    print!("{}", report.table(baseline.as_ref()));
    let write = |path: &Option<String>, text: String| match path {
        Some(path) => std::fs::write(path, text).map_err(|error| format!("cannot write {path}: {error}")),
        None => Ok(()),
    };
    let json = report.to_json(baseline.as_ref());
    let json = serde_json::to_string_pretty(&json).expect("a report has only strings and numbers");
    write(&options.json, json + "\n")?;
    write(&options.svg, plot::svg(&report, baseline.as_ref()))
}

fn measure(options: &Options) -> Vec<Figure> {
    let mut figures = Vec::new();
    for name in &options.names {
        figures.extend(match name.as_str() {
            "block" => block::measure(options.samples, options.ssh.bulk_mib),
            "boot" => boot::measure(options.samples),
            "counts" => counts::measure(options.samples),
            "fork" => fork::measure(options.samples, options.forks),
            "idle" => idle::measure(options.samples, options.sandboxes),
            "images" => images::measure(options.samples, options.rootfs.as_deref().unwrap_or("".as_ref())),
            "jail" => jail::measure(options.samples),
            "peers" => peers::measure(options.samples, &options.peers),
            "ssh-servers" => ssh::measure_servers(options.samples, &options.ssh),
            "volume" => volume::measure(options.samples),
            "vsock" => vsock::measure(options.samples, options.ssh.bulk_mib, &options.peers),
            _ => ssh::measure(options.samples, &options.ssh),
        });
    }
    figures
}
