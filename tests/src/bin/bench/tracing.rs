//! Counts of the host kernel's trace events (tracefs), which mean the same on any host, however slow.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

const TRACEFS: &str = "/sys/kernel/tracing";

/// What is summed up of an event.
#[derive(Clone, Copy)]
enum Sum {
    /// How often it came.
    Hits,
    /// What the system call returned, where that is no error.
    Returned,
}

/// One event, counted by a key in the kernel (`Documentation/trace/histogram.rst`) until dropped.
pub(super) struct Counter {
    event: PathBuf,
    trigger: String,
    sum: Sum,
}

impl Counter {
    /// Counts `event` (`GROUP/NAME`) by `key` from now on.
    ///
    /// # Errors
    /// When the kernel has no such event or histogram.
    pub(super) fn start(event: &str, key: &str) -> io::Result<Self> {
        Self::begin(event, format!("hist:keys={key}:size=4096"), Sum::Hits)
    }

    /// Adds up what the system call `name` returns, by program, from now on.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub(super) fn returned_by(name: &str) -> io::Result<Self> {
        let event = format!("syscalls/sys_exit_{name}");
        let trigger = "hist:keys=common_pid.execname:vals=ret:size=4096 if ret > 0";
        Self::begin(&event, trigger.into(), Sum::Returned)
    }

    fn begin(event: &str, trigger: String, sum: Sum) -> io::Result<Self> {
        mount()?;
        let event = Path::new(TRACEFS).join("events").join(event);
        fs::write(event.join("trigger"), &trigger)?;
        Ok(Self { event, trigger, sum })
    }

    /// The sum for each value of the key.
    ///
    /// # Errors
    /// When the histogram cannot be read.
    pub(super) fn read(&self) -> io::Result<BTreeMap<String, u64>> {
        let text = fs::read_to_string(self.event.join("hist"))?;
        let mut counts = BTreeMap::new();
        // { exit_reason:       1024 } hitcount:        310  ret:       7712
        for (key, hits) in text.lines().filter_map(|line| line.split_once("} hitcount:")) {
            let count = match self.sum {
                Sum::Hits => hits.split_whitespace().next(),
                Sum::Returned => hits.split_once("ret:").map(|(_, sum)| sum.trim()),
            };
            let count: u64 = count.and_then(|count| count.parse().ok()).unwrap_or(0);
            let key = key.split_once(':').map_or(key, |(_, value)| value).trim();
            // As an execname is shown: NAME [PID].
            let key = key.split_once('[').map_or(key, |(name, _)| name.trim());
            *counts.entry(key.to_owned()).or_default() += count;
        }
        Ok(counts)
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        // Nobody is left to be told; the host goes with its boot.
        let _ = fs::write(self.event.join("trigger"), format!("!{}", self.trigger));
    }
}

fn mount() -> io::Result<()> {
    if Path::new(TRACEFS).join("events").exists() {
        return Ok(());
    }
    let mounted = Command::new("mount")
        .args(["-t", "tracefs", "tracefs", TRACEFS])
        .status()?;
    if mounted.success() {
        Ok(())
    } else {
        Err(io::Error::other("cannot mount tracefs"))
    }
}
