//! Arguments as one command line: SSH sends a command as one string, which the guest's login shell takes apart again.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

/// Joins arguments so that a POSIX shell gives back exactly them.
pub fn join<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Vec<u8> {
    let mut line = Vec::new();
    for argument in arguments {
        if !line.is_empty() {
            line.push(b' ');
        }
        push_quoted(&mut line, argument.as_ref().as_bytes());
    }
    line
}

fn push_quoted(line: &mut Vec<u8>, argument: &[u8]) {
    let is_plain = |b: &u8| b.is_ascii_alphanumeric() || b"@%+:,./_-".contains(b);
    if !argument.is_empty() && argument.iter().all(is_plain) {
        line.extend_from_slice(argument);
        return;
    }
    line.push(b'\'');
    for &byte in argument {
        match byte {
            b'\'' => line.extend_from_slice(br"'\''"),
            _ => line.push(byte),
        }
    }
    line.push(b'\'');
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_shell_gives_back_the_arguments() {
        let arguments: Vec<&OsStr> = [
            b"plain".as_slice(),
            b"",
            b"two words",
            b"it's",
            b"$HOME `id` \\ \" * ~ # ! =",
            b"line\nbreak",
            b"\xff\xfe",
            b"-n",
            b"'",
        ]
        .into_iter()
        .map(OsStr::from_bytes)
        .collect();
        let mut script = b"printf '%s\\0' ".to_vec();
        script.extend(join(&arguments));
        let output = Command::new("sh")
            .arg("-c")
            .arg(OsStr::from_bytes(&script))
            .output()
            .unwrap();
        let returned: Vec<&OsStr> = output
            .stdout
            .split_inclusive(|&b| b == 0)
            .map(|arg| OsStr::from_bytes(&arg[..arg.len() - 1]))
            .collect();
        assert_eq!(returned, arguments);
    }

    #[test]
    fn plain_words_stay_readable() {
        assert_eq!(join(["ls", "-l", "/etc"]), b"ls -l /etc");
    }
}
