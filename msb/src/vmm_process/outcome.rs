//! How a run ended, in one word and one line.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::sandbox::records::ExitReason;
use crate::store::files;

/// How much of the console is searched for the kernel's last words, in bytes.
const CONSOLE_TAIL: usize = 64 * 1024;

/// How the VM ended.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum VmEnd {
    /// The guest reset its CPU.
    Reset,
    /// This process ended it.
    Stopped,
    /// It could not go on, or not begin.
    Failed(String),
}

/// What happened while the VM ran.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Observed {
    /// The agent said that it serves SSH.
    pub(super) ready: bool,
    /// The agent said that it shuts the guest down.
    pub(super) shutting_down: bool,
    /// Why this process ended the VM.
    pub(super) stopped_because: Option<&'static str>,
    /// The VM did not end when it was asked to.
    pub(super) killed: bool,
    /// Its time was over.
    pub(super) deadline: bool,
}

impl Observed {
    /// Of a VM that had to be killed, if there is a reason why, before it ran.
    pub(super) fn stopped(because: Option<&'static str>) -> Self {
        Self {
            stopped_because: because,
            killed: because.is_some(),
            ..Self::default()
        }
    }
}

/// The reason and the message of the exit record. `console` is the last thing the kernel said, if it is known.
pub(super) fn classify(end: VmEnd, observed: &Observed, console: Option<&str>) -> (ExitReason, String) {
    match classify_end(end, observed, console) {
        (ExitReason::Shutdown | ExitReason::Killed, how) if observed.deadline => {
            (ExitReason::Deadline, format!("its time was over: {how}"))
        }
        other => other,
    }
}

fn classify_end(end: VmEnd, observed: &Observed, console: Option<&str>) -> (ExitReason, String) {
    match end {
        VmEnd::Failed(_) if observed.killed => {
            let because = observed.stopped_because.unwrap_or("killed");
            (
                ExitReason::Killed,
                format!("{because}; the VM's process did not react and had to be killed"),
            )
        }
        // It comes from the VM's own process, which the guest may have taken over.
        VmEnd::Failed(message) => (ExitReason::VmmError, printable(&message)),
        VmEnd::Stopped => (ExitReason::Killed, observed.stopped_because.unwrap_or("killed").into()),
        VmEnd::Reset if observed.shutting_down => (ExitReason::Shutdown, "the guest shut down".into()),
        VmEnd::Reset => {
            let what = match observed.ready {
                true => "the guest reset without shutting down",
                false => "the guest ended before it was ready",
            };
            (
                ExitReason::GuestReset,
                format!("{what}: {}", console.unwrap_or("its console is empty")),
            )
        }
    }
}

/// The kernel's last words: its panic, else the last line of its console.
pub(super) fn last_words(console_log: &Path) -> Option<String> {
    let console = files::read_optional(console_log).ok()??;
    let tail = &console[console.len().saturating_sub(CONSOLE_TAIL)..];
    let text = String::from_utf8_lossy(tail);
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let panic = lines.clone().rfind(|line| line.contains("Kernel panic"));
    let line = match panic {
        // "end Kernel panic - not syncing: ..." follows in brackets; the time stamp in front says nothing here.
        Some(line) => &line[line.find("Kernel panic")?..],
        None => lines.next_back()?,
    };
    Some(printable(line.trim_end_matches(" ]---")))
}

/// Without what a terminal would obey.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_announced_reset_is_a_shutdown() {
        let observed = |ready, shutting_down| Observed {
            ready,
            shutting_down,
            ..Observed::default()
        };
        let classify = |end, observed, console| classify(end, &observed, console);
        assert_eq!(
            classify(VmEnd::Reset, observed(true, true), None).0,
            ExitReason::Shutdown
        );
        assert_eq!(
            classify(VmEnd::Reset, observed(true, false), Some("Kernel panic: x")),
            (
                ExitReason::GuestReset,
                "the guest reset without shutting down: Kernel panic: x".into()
            )
        );
        assert_eq!(
            classify(VmEnd::Reset, observed(false, false), None),
            (
                ExitReason::GuestReset,
                "the guest ended before it was ready: its console is empty".into()
            )
        );
        assert_eq!(
            classify(VmEnd::Stopped, observed(true, true), None).0,
            ExitReason::Killed
        );
        assert_eq!(
            classify(VmEnd::Failed("no".into()), observed(false, false), None),
            (ExitReason::VmmError, "no".into())
        );
    }

    #[test]
    fn a_vm_that_had_to_be_killed_was_stopped_all_the_same() {
        let observed = Observed {
            stopped_because: Some("the process it belonged to ended"),
            killed: true,
            ..Observed::default()
        };
        let (reason, message) = classify(VmEnd::Failed("signal 9".into()), &observed, None);
        assert_eq!(reason, ExitReason::Killed);
        assert!(message.starts_with("the process it belonged to ended"), "{message}");
    }

    #[test]
    fn an_end_at_the_deadline_says_so_unless_the_guest_crashed() {
        let observed = Observed {
            ready: true,
            shutting_down: true,
            deadline: true,
            ..Observed::default()
        };
        let expected = "its time was over: the guest shut down";
        assert_eq!(
            classify(VmEnd::Reset, &observed, None),
            (ExitReason::Deadline, expected.into())
        );
        let killed = Observed {
            stopped_because: Some("killed"),
            ..observed.clone()
        };
        assert_eq!(classify(VmEnd::Stopped, &killed, None).1, "its time was over: killed");
        let crashed = Observed {
            shutting_down: false,
            ..observed
        };
        assert_eq!(classify(VmEnd::Reset, &crashed, None).0, ExitReason::GuestReset);
    }

    #[test]
    fn no_end_carries_what_a_terminal_obeys() {
        let message = "\u{1b}]52;c;cm0K\u{7} \u{9b}2J\u{7f}";
        let (_, shown) = classify(VmEnd::Failed(message.into()), &Observed::default(), None);
        assert_eq!(shown, "]52;c;cm0K 2J");
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("console.log");
        std::fs::write(&log, message).unwrap();
        assert_eq!(last_words(&log).unwrap(), shown);
    }

    #[test]
    fn the_panic_is_found_in_what_the_console_says() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("console.log");
        assert_eq!(last_words(&log), None);
        std::fs::write(&log, "booting\r\n\r\n").unwrap();
        assert_eq!(last_words(&log).unwrap(), "booting");
        let panic = "Kernel panic - not syncing: No working init found.";
        let console =
            format!("[    0.5] {panic}\r\n[    0.6] CPU: 0\r\n[    0.7] ---[ end {panic} ]---\r\nRebooting\r\n");
        std::fs::write(&log, console).unwrap();
        assert_eq!(last_words(&log).unwrap(), panic);
    }
}
