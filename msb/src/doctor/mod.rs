//! What this machine lacks to run sandboxes, and how to mend it.

mod kvm;
mod probe;

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::assets::Assets;
use crate::jail::{Layer, Layers};
use crate::report;
use crate::store::Store;
use crate::store::files;

/// What came of a check.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it has to be.
    Ok,
    /// Something is less convenient than it could be.
    Warning,
    /// Sandboxes cannot run.
    Failed,
    /// It makes no sense after what failed before.
    Skipped,
}

/// One check.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Check {
    /// What was checked: a stable word.
    pub name: &'static str,
    /// What came of it.
    pub verdict: Verdict,
    /// What was found.
    pub detail: String,
    /// How to mend it, if there is something to mend.
    pub mend: Option<String>,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Ok,
            detail: detail.into(),
            mend: None,
        }
    }

    fn failed(name: &'static str, detail: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Failed,
            detail: detail.into(),
            mend: Some(mend.into()),
        }
    }

    fn warning(name: &'static str, detail: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Warning,
            ..Self::failed(name, detail, mend)
        }
    }

    fn skipped(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Skipped,
            ..Self::ok(name, detail)
        }
    }
}

/// Runs all checks, the last of which boots a guest. `boot_timeout` bounds that.
pub async fn examine(store: &Store, boot_timeout: Duration) -> Vec<Check> {
    let mut checks = vec![kvm::check(), assets(), state_directory(store), openssh()];
    let needed = checks.iter().find(|check| check.verdict == Verdict::Failed);
    match needed {
        Some(check) => {
            let because = format!("no guest was booted, because of {}", check.name);
            checks.push(Check::skipped("guest", because));
        }
        None => checks.extend(guest(store, boot_timeout).await),
    }
    checks
}

/// Boots a guest and says whether it got ready, and what isolated it.
pub async fn guest(store: &Store, boot_timeout: Duration) -> Vec<Check> {
    match probe::boot(store, boot_timeout).await {
        Ok(booted) => {
            let took = format!("a guest booted and served SSH after {} ms", booted.took.as_millis());
            let mut checks = vec![Check::ok("guest", took)];
            checks.extend(booted.layers.as_ref().map(isolation));
            checks
        }
        Err(error) => vec![Check::failed(
            "guest",
            format!("no guest boots: {}", report::one_line(&error)),
            kvm::guest_mend(),
        )],
    }
}

/// What held around a guest that ran.
fn isolation(layers: &Layers) -> Check {
    const NAME: &str = "isolation";
    let missing = layers.missing();
    if missing.is_empty() {
        let (abi, user) = (layers.landlock, layers.user);
        return Check::ok(
            NAME,
            format!("namespaces, Landlock (ABI {abi}), no privileges, seccomp, limits, user {user}"),
        );
    }
    Check::warning(
        NAME,
        format!(
            "VMs run without {}, and not at all with --isolation=strict",
            Layer::names(&missing)
        ),
        missing
            .iter()
            .map(|layer| layer_mend(*layer))
            .collect::<Vec<_>>()
            .join("; "),
    )
}

/// How a host gets a layer.
fn layer_mend(layer: Layer) -> &'static str {
    match layer {
        Layer::Namespaces => {
            "namespaces: allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, or \
             kernel.apparmor_restrict_unprivileged_userns=0)"
        }
        Layer::Landlock => "landlock: a kernel of 5.13 or newer with it in its lsm= list",
        Layer::Limits => {
            "limits: as root, cgroups of version 2 with the controllers cpu, memory and pids; else run msb where a cgroup \
             is delegated, for example by `systemd-run --user --scope -p Delegate=yes msb ...`"
        }
        Layer::User => {
            "user: root of a user namespace needs more users mapped (user_namespaces(7)); else run msb as no root"
        }
    }
}

/// Whether nothing failed.
pub fn is_healthy(checks: &[Check]) -> bool {
    checks.iter().all(|check| !matches!(check.verdict, Verdict::Failed))
}

fn assets() -> Check {
    match Assets::find(None) {
        Ok(found) => {
            let directory = found.kernel.parent().unwrap_or(Path::new("/")).display().to_string();
            Check::ok("files", format!("guest kernel and built-in image are in {directory}"))
        }
        Err(error) => Check::failed("files", report::one_line(&error), "run `scripts/build`, or set MSB_LIB"),
    }
}

fn state_directory(store: &Store) -> Check {
    let home = &store.layout().home;
    let probe = home.join(".doctor");
    let written = files::create_private_dirs(home)
        .and_then(|()| files::replace_private(&probe, b""))
        .and_then(|()| files::remove_optional(&probe));
    match written {
        Ok(()) => Check::ok("state", format!("{} can be written", home.display())),
        Err(error) => Check::failed(
            "state",
            report::one_line(&error),
            "set MSB_HOME to a directory that can be written",
        ),
    }
}

fn openssh() -> Check {
    let path = std::env::var_os("PATH").unwrap_or_default();
    match std::env::split_paths(&path)
        .map(|directory| directory.join("ssh"))
        .find(|ssh| ssh.is_file())
    {
        Some(ssh) => Check::ok("openssh", format!("{} is there", ssh.display())),
        None => Check::warning(
            "openssh",
            "there is no ssh on the PATH; `msb ssh`, `msb exec` and `msb run` need none",
            "apt-get install openssh-client",
        ),
    }
}
