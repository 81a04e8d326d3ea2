//! Counts of the host kernel's trace events (tracefs), which mean the same on any host, however slow.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

const TRACEFS: &str = "/sys/kernel/tracing";

/// One event, counted by a key in the kernel (`Documentation/trace/histogram.rst`) until dropped.
pub(super) struct Counter {
    event: PathBuf,
    trigger: String,
}

impl Counter {
    /// Counts `event` (`GROUP/NAME`) by `key` from now on.
    ///
    /// # Errors
    /// When the kernel has no such event or histogram.
    pub(super) fn start(event: &str, key: &str) -> io::Result<Self> {
        mount()?;
        let event = Path::new(TRACEFS).join("events").join(event);
        let trigger = format!("hist:keys={key}:size=4096");
        fs::write(event.join("trigger"), &trigger)?;
        Ok(Self { event, trigger })
    }

    /// How often the event came, for each value of the key.
    ///
    /// # Errors
    /// When the histogram cannot be read.
    pub(super) fn read(&self) -> io::Result<BTreeMap<String, u64>> {
        let text = fs::read_to_string(self.event.join("hist"))?;
        let mut counts = BTreeMap::new();
        // { exit_reason:       1024 } hitcount:        310
        for (key, count) in text.lines().filter_map(|line| line.split_once("} hitcount:")) {
            let key = key.split_once(':').map_or(key, |(_, value)| value).trim();
            // As an execname is shown: NAME [PID].
            let key = key.split_once('[').map_or(key, |(name, _)| name.trim());
            *counts.entry(key.to_owned()).or_default() += count.trim().parse::<u64>().unwrap_or(0);
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
