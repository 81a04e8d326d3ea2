//! Signals by name and number.

/// Names beyond those of the RFC are the POSIX names, as other servers send them.
pub(crate) const SIGNALS: [(&str, libc::c_int); 26] = [
    ("ABRT", libc::SIGABRT),
    ("ALRM", libc::SIGALRM),
    ("FPE", libc::SIGFPE),
    ("HUP", libc::SIGHUP),
    ("ILL", libc::SIGILL),
    ("INT", libc::SIGINT),
    ("KILL", libc::SIGKILL),
    ("PIPE", libc::SIGPIPE),
    ("QUIT", libc::SIGQUIT),
    ("SEGV", libc::SIGSEGV),
    ("TERM", libc::SIGTERM),
    ("USR1", libc::SIGUSR1),
    ("USR2", libc::SIGUSR2),
    ("BUS", libc::SIGBUS),
    ("TRAP", libc::SIGTRAP),
    ("SYS", libc::SIGSYS),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
];

/// The name of a signal, without `SIG`.
pub(crate) fn name(signal: libc::c_int) -> String {
    SIGNALS
        .iter()
        .find(|&&(_, number)| number == signal)
        .map_or_else(|| format!("RT{signal}@msb"), |&(name, _)| name.into())
}

/// The number of a signal.
pub(crate) fn number(name: &str) -> Option<libc::c_int> {
    SIGNALS
        .iter()
        .find(|&&(known, _)| known == name)
        .map(|&(_, number)| number)
}
