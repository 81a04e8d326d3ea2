//! PID 1 and SSH server of an msb guest.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use msb_agent::session::{self, Opening, Settings};
use msb_agent::{console, exec, init, layer, processes, ready, sftp, watch};
use msb_protocol::identity::SshFeatures;

const USAGE: &str = "usage: msb-agent serve --stdio --host-key FILE --authorized-keys FILE
                [--host-certificate FILE] [--no-port-forwarding] [--no-agent-forwarding] [--no-sftp]
                [--no-own-keys] [--login-grace SECONDS]
                [--processes DIRECTORY] [--preamble]
       msb-agent sftp-server
       msb-agent watch-server
       msb-agent layer-server
       msb-agent ready-server
       msb-agent exec [COMMAND LINE]
       msb-agent process-server DIRECTORY [--no-terminals]
       msb-agent --version
As PID 1 of a guest, named init, it takes no arguments.";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    if std::process::id() == 1 && Path::new(&name).file_name().is_some_and(|name| name == "init") {
        init::run();
    }
    let rest: Vec<OsString> = arguments.collect();
    let rest: Vec<&str> = rest.iter().map(|argument| argument.to_str().unwrap_or("")).collect();
    match rest.as_slice() {
        ["serve", options @ ..] => match serve(options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(message) => {
                console::log(&message);
                ExitCode::FAILURE
            }
        },
        ["sftp-server"] => sftp::run(),
        ["exec", line @ ..] if line.len() <= 1 => exec::run(std::env::args_os().nth(2).as_deref()),
        ["watch-server"] => watch::run(),
        ["layer-server"] => layer::run(),
        ["ready-server"] => ready::run(),
        ["process-server", directory, options @ ..] => processes::run(Path::new(directory), options),
        ["--version"] => {
            println!("msb-agent {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn serve(options: &[&str]) -> Result<(), String> {
    let (mut stdio, mut host_key, mut authorized_keys) = (false, None, None);
    let (mut features, mut grace, mut host_certificate) = (SshFeatures::default(), None, None);
    let (mut processes, mut opening) = (None, Opening::Ssh);
    let mut options = options.iter();
    while let Some(option) = options.next() {
        match *option {
            "--stdio" => stdio = true,
            "--host-key" => host_key = options.next().map(PathBuf::from),
            "--host-certificate" => host_certificate = options.next().map(PathBuf::from),
            "--authorized-keys" => authorized_keys = options.next().map(PathBuf::from),
            "--no-port-forwarding" => features.port_forwarding = false,
            "--no-agent-forwarding" => features.agent_forwarding = false,
            "--no-sftp" => features.sftp = false,
            "--no-own-keys" => features.own_keys = false,
            "--preamble" => opening = Opening::Preamble,
            "--processes" => processes = options.next().map(PathBuf::from),
            "--login-grace" => match options.next().and_then(|seconds| seconds.parse().ok()) {
                Some(seconds) => grace = Some(Duration::from_secs(seconds)),
                None => return Err(format!("serve: --login-grace takes a number of seconds\n{USAGE}")),
            },
            other => return Err(format!("serve: unknown option {other:?}\n{USAGE}")),
        }
    }
    let (true, Some(host_key), Some(authorized_keys)) = (stdio, host_key, authorized_keys) else {
        return Err(format!(
            "serve: --stdio, --host-key and --authorized-keys are all needed\n{USAGE}"
        ));
    };
    let mut settings = Settings::read(&host_key, host_certificate.as_deref(), &authorized_keys)
        .map_err(|error| console::chain(&error))?
        .with_features(features);
    if let Some(grace) = grace {
        settings = settings.with_login_grace(grace);
    }
    if let Some(processes) = processes {
        settings = settings.with_processes(processes);
    }
    session::serve_stdio(opening, settings).map_err(|error| console::chain(&error))
}
