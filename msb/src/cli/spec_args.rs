//! The options that say what a new sandbox shall be.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use msb_image::config::StartCommand;
use msb_image::registry::RegistryOptions;
use msb_protocol::identity::SshFeatures;
use msb_protocol::ready::Probe;

use super::error::{CliError, cannot};
use super::{Context, image};
use crate::images::{ImageError, ImageName};
use crate::jail::Isolation;
use crate::sandbox::deadline::{TimeLimit, Timeout, TimeoutEnd};
use crate::sandbox::spec::{CpuLimit, DEFAULT_DISK_SIZE, Disk, Memory, SandboxImage, Volume};
use crate::sandbox::start_command::StartCommandError;
use crate::store::names::Name;
use crate::{Sandbox, SandboxSpec};

/// Options of `run` and `create`.
#[derive(Args, Clone, Debug)]
pub(super) struct SpecArgs {
    /// Name and host name: ssh reaches the sandbox as NAME.msb
    #[arg(long, short, value_name = "NAME")]
    name: Option<Name>,
    /// Virtual CPUs
    #[arg(long, short, value_name = "N", default_value_t = 1)]
    cpus: u8,
    /// Memory, such as 512M or 2G
    #[arg(long, short, value_name = "SIZE", default_value = "256M")]
    memory: Memory,
    /// What a sandbox of an image may write, such as 500M or 20G; the host's disk has only what is written
    #[arg(long, value_name = "SIZE", default_value_t = DEFAULT_DISK_SIZE)]
    disk_size: Memory,
    /// Disk image or block device of the host, the guest's /dev/vda and so on; ':ro' makes it read-only
    #[arg(long, value_name = "FILE[:ro]")]
    disk: Vec<Disk>,
    /// Directory or file of the host at a path of the guest; ':ro' makes it read-only
    #[arg(long, short, value_name = "HOST:GUEST[:ro]")]
    volume: Vec<Volume>,
    /// Environment variable of every session
    #[arg(long, short, value_name = "KEY=VALUE")]
    env: Vec<EnvVar>,
    /// Label to find it by, as in `msb ls --filter label=KEY=VALUE`
    #[arg(long, short, value_name = "KEY=VALUE")]
    label: Vec<Label>,
    /// File with public keys that may log in, besides msb's own and those in $MSB_HOME/authorized_keys
    #[arg(long, value_name = "FILE")]
    authorized_key: Vec<PathBuf>,
    /// Guest kernel instead of the built-in one: an uncompressed ELF vmlinux
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Text to add to the kernel's command line
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    cmdline: String,
    /// How much of the isolation around the VM to insist on: what this host offers, or every layer
    #[arg(long, value_name = "LEVEL", value_enum, default_value_t)]
    isolation: Isolation,
    /// CPU time of the VM and its devices, such as 0.5; default: one CPU more than it has. Needs a cgroup
    #[arg(long, value_name = "CPUS")]
    cpu_limit: Option<CpuLimit>,
    /// Bytes a second, such as 50M, to read from each host device with a disk, and to write. Needs a cgroup
    #[arg(long, value_name = "SIZE")]
    io_limit: Option<Memory>,
    #[command(flatten)]
    time: TimeArgs,
    #[command(flatten)]
    start: StartArgs,
    /// Refuse forwarding of ports and sockets through the sandbox
    #[arg(long)]
    no_port_forwarding: bool,
    /// Refuse forwarding of the client's agent
    #[arg(long)]
    no_agent_forwarding: bool,
    /// Refuse file transfers
    #[arg(long)]
    no_sftp: bool,
    /// Let nobody in by a key that the guest itself has in an authorized_keys file
    #[arg(long)]
    no_own_keys: bool,
    /// Whether to get an image that is not here from its registry
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    pull: Pull,
    /// Image whose files are the guest's: a name or the beginning of an id; without one, the built-in image
    #[arg(value_name = "IMAGE")]
    image: Option<String>,
}

impl SpecArgs {
    /// The specification, and the files of public keys.
    pub(super) fn into_spec(self, context: &Context) -> Result<(SandboxSpec, Vec<PathBuf>), CliError> {
        let start = self.start.command()?;
        let spec = SandboxSpec {
            name: self.name,
            cpus: self.cpus,
            memory: self.memory,
            kernel: self.kernel,
            cmdline: self.cmdline,
            image: self
                .image
                .map(|name| find_image(&name, self.pull, context))
                .transpose()?,
            disk_size: self.disk_size,
            start,
            disks: self.disk,
            volumes: self.volume,
            env: self.env.into_iter().map(|EnvVar { key, value }| (key, value)).collect(),
            labels: self
                .label
                .into_iter()
                .map(|Label { key, value }| (key, value))
                .collect(),
            isolation: self.isolation,
            cpu_limit: self.cpu_limit,
            io_limit: self.io_limit,
            timeout: self.time.timeout,
            on_timeout: self.time.on_timeout.unwrap_or_default(),
            ssh: SshFeatures {
                port_forwarding: !self.no_port_forwarding,
                agent_forwarding: !self.no_agent_forwarding,
                sftp: !self.no_sftp,
                own_keys: !self.no_own_keys,
            },
        };
        Ok((spec, self.authorized_key))
    }

    /// What of it a sandbox can be given that was made before.
    pub(super) fn of_pool(&self) -> (Option<&Name>, Option<TimeLimit>) {
        let limit = self.time.timeout.map(|timeout| TimeLimit {
            timeout: Some(timeout),
            end: self.time.on_timeout.unwrap_or_default(),
        });
        (self.name.as_ref(), limit)
    }

    /// What the user will know the sandbox by before it has an id.
    pub(super) fn label(&self) -> String {
        self.name
            .as_ref()
            .map_or_else(|| "a sandbox".into(), |name| format!("sandbox {name}"))
    }
}

/// What has been decided of a sandbox that waits in a pool: all options of [`SpecArgs`] but its name and its time.
const DECIDED: [&str; 21] = [
    "cpus",
    "memory",
    "disk_size",
    "disk",
    "volume",
    "env",
    "label",
    "authorized_key",
    "kernel",
    "cmdline",
    "isolation",
    "cpu_limit",
    "io_limit",
    "start_cmd",
    "ready",
    "no_port_forwarding",
    "no_agent_forwarding",
    "no_sftp",
    "no_own_keys",
    "pull",
    "image",
];

/// Where a sandbox comes from, if it is not made.
#[derive(Args, Clone, Debug)]
pub(super) struct PoolArg {
    /// Take a fork that waits in this pool, which has decided what it is; see `msb pool`
    #[arg(long, value_name = "POOL", conflicts_with_all = DECIDED)]
    pub(super) pool: Option<Name>,
}

/// How long a sandbox may run.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct TimeArgs {
    /// End the sandbox so long after its start, such as 90 (seconds), 15m or 1h30m; `msb timeout` changes that
    #[arg(long, value_name = "DURATION")]
    pub(super) timeout: Option<Timeout>,
    /// What ends it when its time is over [default: stop]
    #[arg(long, value_name = "END", value_enum)]
    pub(super) on_timeout: Option<TimeoutEnd>,
}

/// What a sandbox starts by itself.
#[derive(Args, Clone, Debug)]
struct StartArgs {
    /// Command line to run in the background from the start on, in the place of the image's; empty for none
    #[arg(long, value_name = "COMMAND")]
    start_cmd: Option<String>,
    /// What says that it is ready: port=N, url=URL, file=PATH, process=NAME, command=LINE or timeout=MILLISECONDS
    #[arg(long, value_name = "KIND=WHAT", requires = "start_cmd")]
    ready: Option<String>,
}

impl StartArgs {
    fn command(self) -> Result<Option<StartCommand>, CliError> {
        let Some(command) = self.start_cmd else {
            return Ok(None);
        };
        let ready = self.ready.as_deref().map(probe).transpose().map_err(CliError::plain)?;
        let start = StartCommand { command, ready };
        if !start.command.is_empty() {
            start
                .check()
                .map_err(|reason| CliError::plain(format!("the start command cannot be used: {reason}")))?;
        }
        Ok(Some(start))
    }
}

fn probe(text: &str) -> Result<Probe, String> {
    let wrong = || {
        format!("'{text}' says nothing to wait for; write port=8080, url=http://localhost/, file=/run/up or the like")
    };
    let (kind, what) = text.split_once('=').ok_or_else(wrong)?;
    Ok(match kind {
        "port" => Probe::Port(what.parse().map_err(|_| wrong())?),
        "timeout" => Probe::Timeout(what.parse().map_err(|_| wrong())?),
        "url" => Probe::Url(what.into()),
        "file" => Probe::File(what.into()),
        "process" => Probe::Process(what.into()),
        "command" => Probe::Command(what.into()),
        _ => return Err(wrong()),
    })
}

/// How long a start command may take.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct ReadyTimeout {
    /// Seconds that the start command may take until it is ready
    #[arg(long = "ready-timeout", value_name = "SECONDS", default_value_t = 120)]
    ready_seconds: u32,
}

impl ReadyTimeout {
    /// Runs the start command of a sandbox that is up, if it has one, and waits until it is ready.
    pub(super) async fn launch(self, sandbox: &Sandbox) -> Result<(), StartCommandError> {
        match sandbox.launch().await? {
            Some(launched) => launched.ready(Duration::from_secs(self.ready_seconds.into())).await,
            None => Ok(()),
        }
    }
}

/// When an image is asked of its registry.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(super) enum Pull {
    /// When it is not here.
    #[default]
    Missing,
    /// Never.
    Never,
}

/// The image `name`, from its registry if that must be.
pub(super) fn find_image(name: &str, pull: Pull, context: &Context) -> Result<SandboxImage, CliError> {
    let find = || SandboxImage::find(&context.store.images(), name);
    let found = match (find(), name.parse::<ImageName>()) {
        (Err(ImageError::Unknown(_)), Ok(remote)) if pull == Pull::Missing => {
            image::pull::pull(context, &remote, RegistryOptions::default(), false)?;
            find()
        }
        (found, _) => found,
    };
    found.map_err(cannot(format!("use the image {name}")))
}

/// How long to wait for a guest.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct BootTimeout {
    /// Seconds the guest may take until it serves SSH
    #[arg(long = "boot-timeout", value_name = "SECONDS", default_value_t = 120)]
    seconds: u32,
}

impl BootTimeout {
    pub(super) fn duration(self) -> Duration {
        Duration::from_secs(self.seconds.into())
    }
}

/// Who to be in a guest.
#[derive(Args, Clone, Debug)]
pub(super) struct LoginUser {
    /// User in the guest; default: the image's, else root
    #[arg(long, short, value_name = "USER")]
    user: Option<String>,
}

impl LoginUser {
    /// The user in this sandbox.
    pub(super) fn of(&self, sandbox: &Sandbox) -> String {
        let user = self.user.clone();
        user.unwrap_or_else(|| sandbox.config().spec.default_user().to_owned())
    }
}

/// One `KEY=VALUE`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct EnvVar {
    pub(super) key: String,
    pub(super) value: String,
}

impl FromStr for EnvVar {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
        let is_name = !key.is_empty()
            && !key.starts_with(|c: char| c.is_ascii_digit())
            && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_name {
            return Err(format!("'{key}' is no name of a variable"));
        }
        if value.contains('\0') {
            return Err("a value cannot hold a zero byte".into());
        }
        Ok(Self {
            key: key.into(),
            value: value.into(),
        })
    }
}

/// One `KEY=VALUE` or, with an empty value, `KEY`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Label {
    pub(super) key: String,
    pub(super) value: String,
}

impl FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        let is_key = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
        if key.is_empty() || !key.chars().all(is_key) {
            return Err(format!(
                "'{key}' is no key of a label: use letters, digits, '.', '_', '-' and '/'"
            ));
        }
        if value.contains(char::is_control) {
            return Err("the value of a label cannot hold control characters".into());
        }
        Ok(Self {
            key: key.into(),
            value: value.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Command;

    use super::*;

    #[test]
    fn a_pool_decides_all_but_the_name_and_the_time() {
        let command = SpecArgs::augment_args(Command::new("spec"));
        let mut options: Vec<&str> = command.get_arguments().map(|arg| arg.get_id().as_str()).collect();
        options.retain(|option| !["name", "timeout", "on_timeout"].contains(option));
        assert_eq!(options, DECIDED);
        let command = PoolArg::augment_args(command);
        let parsed = |more: &[&str]| {
            let arguments = ["spec", "--pool", "fresh"].iter().chain(more);
            command.clone().try_get_matches_from(arguments)
        };
        parsed(&["--name", "box", "--timeout", "5m", "--on-timeout", "kill"]).unwrap();
        for more in [&["--memory", "256M"][..], &["--no-sftp"], &["debian:12"]] {
            let error = parsed(more).unwrap_err();
            assert_eq!(error.kind(), clap::error::ErrorKind::ArgumentConflict, "{error}");
        }
    }

    #[test]
    fn a_variable_has_a_name_and_any_value() {
        let parsed = |text: &str| text.parse::<EnvVar>();
        assert_eq!(
            parsed("A_1=b=c"),
            Ok(EnvVar {
                key: "A_1".into(),
                value: "b=c".into()
            })
        );
        assert_eq!(parsed("A=").unwrap().value, "");
        for bad in ["A", "=b", "1A=b", "A-B=c", "A B=c"] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }
}
