//! OpenSSH's clients with a sandbox, with the agent's server alone and with OpenSSH's own, in turn.
//!
//! All use the same client, cipher and key exchange. The latter two run on the host, one process a connection on its
//! standard streams: between the agent and sshd is the server, between the sandbox and the agent the virtual machine.

mod tasks;

use std::fs;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use msb_tests::{Endpoint, Msb, finish};

use crate::figure::Figure;
use tasks::{CONNECT, STALLED, TASKS, UNSTALLED, Work};

const SSHD: &str = "/usr/sbin/sshd";

/// How much is done.
pub(crate) struct Options {
    /// Size of the transfers, in MiB.
    pub(crate) bulk_mib: usize,
    /// Number of small files.
    pub(crate) files: usize,
    /// `msb-agent`; without it, its server is not measured alone.
    pub(crate) agent: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bulk_mib: 32,
            files: 200,
            agent: None,
        }
    }
}

/// A server with a directory for what it is sent.
struct Server {
    name: &'static str,
    endpoint: Endpoint,
    remote: String,
}

/// A sandbox and the servers of this host.
pub(crate) fn measure(samples: usize, options: &Options) -> Vec<Figure> {
    let msb = Msb::in_memory();
    let memory = format!("{}M", 512 + 2 * options.bulk_mib);
    let sandbox = msb.create_with("bench", &["--memory", &memory]);
    let endpoint = Endpoint::of_sandbox(&msb, &sandbox, &msb.scratch("clients"));
    let mut servers = vec![Server::new("msb", endpoint, &msb.scratch("there"))];
    servers.extend(on_this_host(options, &msb.scratch("servers")));
    let mut exec = Figure::warm("msb exec -- true", "ms");
    for _ in 0..samples {
        exec.add(msb.run(["exec", "bench", "--", "true"]).expect(0).took.as_secs_f64() * 1e3);
    }
    let mut figures = vec![exec];
    figures.extend(compare(&servers, samples, options, &msb.scratch("files")));
    figures
}

/// The servers of this host alone: no KVM is needed.
pub(crate) fn measure_servers(samples: usize, options: &Options) -> Vec<Figure> {
    let scratch = tempfile::tempdir().expect("there is space");
    let servers = on_this_host(options, &scratch.path().join("servers"));
    compare(&servers, samples, options, &scratch.path().join("files"))
}

fn on_this_host(options: &Options, scratch: &Path) -> Vec<Server> {
    let mut servers = Vec::new();
    if let Some(agent) = &options.agent {
        let endpoint = Endpoint::of_agent(agent, &scratch.join("agent"));
        servers.push(Server::new("agent", endpoint, &scratch.join("agent-there")));
    }
    if Path::new(SSHD).exists() {
        let endpoint = Endpoint::of_sshd(&scratch.join("sshd"));
        servers.push(Server::new("sshd", endpoint, &scratch.join("sshd-there")));
    } else {
        eprintln!("bench: {SSHD} is not installed, so nothing is compared with it: apt-get install openssh-server");
    }
    servers
}

/// Every task with every server in turn, as often as samples are wanted; then the ratios.
fn compare(servers: &[Server], samples: usize, options: &Options, scratch: &Path) -> Vec<Figure> {
    // Whatever is read from a disk the first time is read now.
    let little = Work::new(&scratch.join("little"), 1, 10);
    for (server, (_, task)) in servers
        .iter()
        .flat_map(|server| TASKS.iter().map(move |task| (server, task)))
    {
        task(server, &little);
    }
    let work = Work::new(&scratch.join("work"), options.bulk_mib, options.files);
    let figures_of = |task: &str| -> Vec<Figure> {
        let name = |server: &Server| format!("{task}: {}", server.name);
        servers.iter().map(|server| Figure::warm(name(server), "ms")).collect()
    };
    let mut measured: Vec<Vec<Figure>> = TASKS.iter().map(|(task, _)| figures_of(task)).collect();
    let mut clients = Figure::warm(format!("{CONNECT}: processor time of the client"), "ms");
    for _ in 0..samples {
        for ((name, task), figures) in TASKS.iter().zip(&mut measured) {
            for (server, figure) in servers.iter().zip(figures) {
                let before = children_cpu();
                figure.add(task(server, &work).as_secs_f64() * 1e3);
                if *name == CONNECT {
                    clients.add((children_cpu() - before).as_secs_f64() * 1e3);
                }
            }
        }
    }
    let mut ratios: Vec<Figure> = measured.iter().flat_map(|figures| ratios_to_sshd(figures)).collect();
    ratios.extend(stalled_to_unstalled(&measured));
    measured.into_iter().flatten().chain([clients]).chain(ratios).collect()
}

/// Processor time of the commands that were waited for. ssh does not wait for its `ProxyCommand`, so this is its own.
fn children_cpu() -> Duration {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is to a whole rusage.
    let result = unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr()) };
    assert_eq!(result, 0, "getrusage(2) knows RUSAGE_CHILDREN");
    // SAFETY: all zeros is a valid rusage, and the call filled it.
    let usage = unsafe { usage.assume_init() };
    let of = |time: libc::timeval| {
        let micros = time.tv_sec * 1_000_000 + time.tv_usec;
        Duration::from_micros(u64::try_from(micros).unwrap_or_default())
    };
    of(usage.ru_utime) + of(usage.ru_stime)
}

/// What each server needs of the time of the last, which is sshd if there is one.
fn ratios_to_sshd(figures: &[Figure]) -> Vec<Figure> {
    let Some((sshd, others)) = figures.split_last().filter(|(last, _)| last.name.ends_with("sshd")) else {
        return Vec::new();
    };
    let ratio = |figure: &Figure| figure.ratio_to(format!("{} / sshd", figure.name), sshd);
    others.iter().map(ratio).collect()
}

/// What a session needs beside a stalled one of what it needs without, for each server.
fn stalled_to_unstalled(measured: &[Vec<Figure>]) -> Vec<Figure> {
    let of = |wanted: &str| {
        let position = TASKS.iter().position(|(task, _)| *task == wanted);
        position.map_or(&[][..], |position| &measured[position])
    };
    let pairs = of(STALLED).iter().zip(of(UNSTALLED));
    pairs
        .map(|(stalled, unstalled)| stalled.ratio_to(format!("{} / without", stalled.name), unstalled))
        .collect()
}

impl Server {
    fn new(name: &'static str, endpoint: Endpoint, remote: &Path) -> Self {
        // The two servers have no post-quantum key exchange in common with every client, and curves cost less.
        let mut config = fs::read_to_string(&endpoint.ssh_config).expect("an endpoint has a configuration");
        config.push_str("    KexAlgorithms curve25519-sha256\n");
        fs::write(&endpoint.ssh_config, config).expect("the configuration is ours");
        let remote = remote.display().to_string();
        let server = Self { name, endpoint, remote };
        server.run(&format!("mkdir -p {}", server.remote));
        server
    }

    fn run(&self, command: &str) {
        finish(&mut self.endpoint.ssh(command)).expect(0);
    }
}

/// What `sshd -V` says, if there is one.
pub(crate) fn sshd_version() -> Option<String> {
    let output = Command::new(SSHD).arg("-V").output().ok()?;
    // Versions that do not know the option say their version with the refusal.
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    said.lines().find(|line| line.starts_with("OpenSSH")).map(str::to_owned)
}
