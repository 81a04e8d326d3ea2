//! Signals by their SSH names (RFC 4254, 6.10) and by their numbers.

use russh::Sig;

use crate::signal_names;

/// The name to report for a process that died of `signal`.
pub(super) fn name(signal: libc::c_int) -> Sig {
    match signal {
        libc::SIGABRT => Sig::ABRT,
        libc::SIGALRM => Sig::ALRM,
        libc::SIGFPE => Sig::FPE,
        libc::SIGHUP => Sig::HUP,
        libc::SIGILL => Sig::ILL,
        libc::SIGINT => Sig::INT,
        libc::SIGKILL => Sig::KILL,
        libc::SIGPIPE => Sig::PIPE,
        libc::SIGQUIT => Sig::QUIT,
        libc::SIGSEGV => Sig::SEGV,
        libc::SIGTERM => Sig::TERM,
        libc::SIGUSR1 => Sig::USR1,
        other => Sig::Custom(signal_names::name(other)),
    }
}

/// The number of a signal that a client asks for, if the guest knows it.
pub(super) fn number(signal: &Sig) -> Option<libc::c_int> {
    let name = match signal {
        Sig::ABRT => "ABRT",
        Sig::ALRM => "ALRM",
        Sig::FPE => "FPE",
        Sig::HUP => "HUP",
        Sig::ILL => "ILL",
        Sig::INT => "INT",
        Sig::KILL => "KILL",
        Sig::PIPE => "PIPE",
        Sig::QUIT => "QUIT",
        Sig::SEGV => "SEGV",
        Sig::TERM => "TERM",
        Sig::USR1 => "USR1",
        Sig::Custom(name) => name.as_str(),
    };
    signal_names::number(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_has_a_name_that_means_it() {
        for (_, signal) in signal_names::SIGNALS {
            assert_eq!(number(&name(signal)), Some(signal));
        }
    }

    #[test]
    fn an_unknown_name_means_no_signal() {
        assert_eq!(number(&Sig::Custom("9".into())), None);
    }
}
