//! The command lines of a login: of a user's shell, or of what stands in for one.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// `shell` as a login shell. An image need not have one; the agent runs plain commands without it.
pub(crate) fn login(shell: &Path) -> Command {
    if !shell.exists() {
        return own_program(["exec"]);
    }
    let mut name = OsString::from("-");
    name.push(name_of(shell));
    let mut command = Command::new(shell);
    command.arg0(name);
    command
}

/// `line` for `shell`, byte for byte, or for what [`login`] has in its place.
pub(crate) fn line(shell: &Path, line: &[u8]) -> Command {
    let line = OsStr::from_bytes(line);
    if !shell.exists() {
        return own_program(["exec".as_ref(), line]);
    }
    let mut command = Command::new(shell);
    command.arg0(name_of(shell)).arg("-c").arg(line);
    command
}

/// This binary, which needs no file of the guest.
pub(crate) fn own_program<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("msb-agent").args(arguments);
    command
}

fn name_of(shell: &Path) -> &OsStr {
    shell.file_name().unwrap_or(shell.as_os_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(mut command: Command) -> Vec<u8> {
        command.output().unwrap().stdout
    }

    #[test]
    fn a_line_reaches_the_shell_as_it_is_and_under_its_own_name() {
        let print = printed(line(Path::new("/bin/sh"), b"printf '%s' \"$0 \xff\""));
        assert_eq!(print, b"sh \xff");
    }

    #[test]
    fn without_a_shell_the_agent_is_run() {
        for command in [login(Path::new("/none/sh")), line(Path::new("/none/sh"), b"id -u")] {
            assert_eq!(command.get_program(), "/proc/self/exe");
            assert_eq!(command.get_args().next(), Some("exec".as_ref()));
        }
    }
}
