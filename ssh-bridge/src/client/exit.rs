//! How a remote program ended.

use std::fmt;

/// What the guest said about the end of a program. Nothing here is ever guessed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ExitStatus {
    /// It exited with this status.
    Code(u32),
    /// A signal ended it.
    Signal {
        /// The signal's name, without `SIG`.
        name: String,
        /// Whether it left a core dump.
        core_dumped: bool,
        /// What the guest adds, often nothing.
        message: String,
    },
    /// Its channel was closed without a word about it.
    Unknown,
}

/// What a shell shows when nothing is known about the end of a program, as of ssh itself when its connection broke.
const TRANSPORT_FAILED: u8 = 255;

impl fmt::Display for ExitStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(formatter, "status {code}"),
            // The name is the guest's own word.
            Self::Signal { name, .. } => write!(formatter, "signal {}", name.escape_default()),
            Self::Unknown => formatter.write_str("no status"),
        }
    }
}

impl ExitStatus {
    /// The status a local process should exit with to pass this one on: the code as the system masks it, 128 and the
    /// number for a signal, 255 where neither is known.
    pub fn shell_code(&self) -> u8 {
        match self {
            Self::Code(code) => code.to_le_bytes()[0],
            Self::Signal { name, .. } => signal_number(name).map_or(TRANSPORT_FAILED, |number| 128 + number),
            Self::Unknown => TRANSPORT_FAILED,
        }
    }

    /// Whether it exited with status 0.
    pub fn is_success(&self) -> bool {
        *self == Self::Code(0)
    }
}

/// The signal's number on Linux/x86-64 and aarch64 (`signal(7)`), the guest's.
fn signal_number(name: &str) -> Option<u8> {
    Some(match name {
        "HUP" => 1,
        "INT" => 2,
        "QUIT" => 3,
        "ILL" => 4,
        "TRAP" => 5,
        "ABRT" | "IOT" => 6,
        "BUS" => 7,
        "FPE" => 8,
        "KILL" => 9,
        "USR1" => 10,
        "SEGV" => 11,
        "USR2" => 12,
        "PIPE" => 13,
        "ALRM" => 14,
        "TERM" => 15,
        "STKFLT" => 16,
        "CHLD" => 17,
        "CONT" => 18,
        "STOP" => 19,
        "TSTP" => 20,
        "TTIN" => 21,
        "TTOU" => 22,
        "URG" => 23,
        "XCPU" => 24,
        "XFSZ" => 25,
        "VTALRM" => 26,
        "PROF" => 27,
        "WINCH" => 28,
        "IO" | "POLL" => 29,
        "PWR" => 30,
        "SYS" => 31,
        // OpenSSH's way to name what RFC 4254 does not.
        other => return signal_number(other.strip_suffix("@openssh.com")?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signal(name: &str) -> ExitStatus {
        ExitStatus::Signal {
            name: name.into(),
            core_dumped: false,
            message: String::new(),
        }
    }

    #[test]
    fn a_shell_sees_the_code_128_and_the_signal_or_255() {
        let cases = [
            (ExitStatus::Code(0), 0),
            (ExitStatus::Code(255), 255),
            (ExitStatus::Code(256 + 3), 3),
            (signal("KILL"), 137),
            (signal("SEGV"), 139),
            (signal("BUS@openssh.com"), 135),
            (signal("NONE"), 255),
            (ExitStatus::Unknown, 255),
        ];
        for (status, code) in cases {
            assert_eq!(status.shell_code(), code, "{status:?}");
        }
    }
}
