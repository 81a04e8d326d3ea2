//! What the benchmarks are told.

use std::path::PathBuf;

use crate::peers::Peer;
use crate::ssh;

/// Samples of a figure when `--samples` says nothing.
const SAMPLES: usize = 5;

/// Idle sandboxes side by side when `--sandboxes` says nothing.
const SANDBOXES: usize = 20;

/// Forks side by side when `--forks` says nothing.
const FORKS: usize = 20;

/// All benchmarks, in the order in which they are told of.
const NAMES: [&str; 12] = [
    "block",
    "boot",
    "counts",
    "fork",
    "idle",
    "images",
    "jail",
    "peers",
    "ssh",
    "ssh-servers",
    "volume",
    "vsock",
];

/// Those that are run when none is named.
const DEFAULT: [&str; 3] = ["boot", "counts", "ssh"];

/// What to measure, how often, and where that goes.
pub(crate) struct Options {
    pub(crate) names: Vec<String>,
    /// Where the report goes.
    pub(crate) json: Option<String>,
    /// Where its picture goes.
    pub(crate) svg: Option<String>,
    /// A report that is compared with.
    pub(crate) baseline: Option<String>,
    /// A report that is shown instead of measuring anything.
    pub(crate) show: Option<String>,
    pub(crate) samples: usize,
    pub(crate) ssh: ssh::Options,
    /// An archive of the root file system that `images` imports.
    pub(crate) rootfs: Option<PathBuf>,
    /// How many forks there are side by side.
    pub(crate) forks: usize,
    /// How many idle sandboxes there are side by side.
    pub(crate) sandboxes: usize,
    /// Rivals that `peers` measures beside `msb`.
    pub(crate) peers: Vec<Peer>,
}

impl Options {
    /// Those of a command line without its program.
    ///
    /// # Errors
    /// With what is wrong, for people.
    pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            names: Vec::new(),
            json: None,
            svg: None,
            baseline: None,
            show: None,
            samples: SAMPLES,
            ssh: ssh::Options::default(),
            rootfs: None,
            forks: FORKS,
            sandboxes: SANDBOXES,
            peers: Vec::new(),
        };
        while let Some(argument) = arguments.next() {
            let mut value = |what: &str| arguments.next().ok_or_else(|| format!("{argument} needs a {what}"));
            match argument.as_str() {
                "--json" => options.json = Some(value("FILE")?),
                "--svg" => options.svg = Some(value("FILE")?),
                "--baseline" => options.baseline = Some(value("FILE")?),
                "--show" => options.show = Some(value("FILE")?),
                "--samples" => options.samples = number(&argument, &value("number")?)?,
                "--bulk" => options.ssh.bulk_mib = number(&argument, &value("number")?)?,
                "--files" => options.ssh.files = number(&argument, &value("number")?)?,
                "--agent" => options.ssh.agent = Some(value("FILE")?.into()),
                "--forks" => options.forks = number(&argument, &value("number")?)?,
                "--sandboxes" => options.sandboxes = number(&argument, &value("number")?)?,
                "--rootfs" => options.rootfs = Some(value("FILE")?.into()),
                "--peer" => options.peers.push(value("NAME=PATH")?.parse()?),
                name if NAMES.contains(&name) => options.names.push(argument),
                other => {
                    return Err(format!(
                        "there is no benchmark {other}: choose from {}",
                        NAMES.join(", ")
                    ));
                }
            }
        }
        options.complete()
    }

    fn complete(mut self) -> Result<Self, String> {
        let is_named = |wanted: &str| self.names.iter().any(|name| name == wanted);
        if is_named("images") && self.rootfs.is_none() {
            return Err("images needs --rootfs FILE, which scripts/bench makes".into());
        }
        if is_named("peers") && self.peers.is_empty() {
            return Err("peers needs --peer NAME=PATH: somebody to be compared with".into());
        }
        if !self.peers.is_empty() && !is_named("peers") && !is_named("vsock") {
            self.names.push("peers".into());
        }
        if self.names.is_empty() {
            self.names = DEFAULT.map(str::to_owned).into();
        }
        Ok(self)
    }
}

fn number(option: &str, value: &str) -> Result<usize, String> {
    let number = value.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| format!("{option} needs a number above 0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Options, String> {
        Options::parse(arguments.iter().map(|argument| (*argument).to_owned()))
    }

    #[test]
    fn what_is_named_is_measured_and_else_the_usual() {
        assert_eq!(parse(&[]).unwrap_or_else(|error| panic!("{error}")).names, DEFAULT);
        let options = parse(&["jail", "--samples", "2"]).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((options.names, options.samples), (vec!["jail".to_owned()], 2));
    }

    #[test]
    fn a_rival_is_measured_where_it_is_given() {
        let options = parse(&["--peer", "firecracker=/bin/true"]).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(options.names, ["peers"]);
        assert_eq!(options.peers.len(), 1);
    }

    #[test]
    fn what_lacks_something_is_refused_with_its_name() {
        for (arguments, named) in [
            (&["nothing"][..], "nothing"),
            (&["--samples", "0"], "--samples"),
            (&["--baseline"], "--baseline needs a FILE"),
            (&["images"], "--rootfs"),
            (&["peers"], "--peer"),
            (&["--peer", "qemu=/bin/true"], "qemu"),
            (&["--peer", "firecracker"], "NAME=PATH"),
            (&["--peer", "firecracker=/nowhere/at/all"], "/nowhere/at/all"),
        ] {
            let refused = parse(arguments).err().unwrap_or_else(|| panic!("{arguments:?}"));
            assert!(refused.contains(named), "{arguments:?}: {refused}");
        }
    }
}
