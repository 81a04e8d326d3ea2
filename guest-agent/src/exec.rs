//! Runs one plain command in the place of a shell: an image need not have one.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

/// The exit statuses of a POSIX shell.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// What only a shell understands outside of quotes.
const SPECIAL: &[u8] = b"|&;<>()$`*?[]{}!\n";

/// Becomes the command of `line`; returns only when that fails.
pub fn run(line: Option<&OsStr>) -> ExitCode {
    let Some(line) = line else {
        return failed("the image has no shell; name a program to run", NOT_FOUND);
    };
    let words = match words(line.as_bytes()) {
        Ok(words) => words,
        Err(error) => return failed(&format!("the image has no shell, and {error}"), NOT_FOUND),
    };
    let Some((program, arguments)) = words.split_first() else {
        return ExitCode::SUCCESS;
    };
    let error = Command::new(program).args(arguments).exec();
    let status = match error.kind() {
        std::io::ErrorKind::NotFound => NOT_FOUND,
        _ => NOT_EXECUTABLE,
    };
    failed(&format!("cannot run {}: {error}", program.display()), status)
}

fn failed(message: &str, status: u8) -> ExitCode {
    eprintln!("msb: {message}");
    ExitCode::from(status)
}

/// Why a line is no plain command.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
enum WordError {
    #[error("the command line uses '{}', which only a shell understands", char::from(*.0))]
    Special(u8),
    #[error("a quote in the command line has no end")]
    Unterminated,
}

/// The words of a line, with a shell's quotes undone.
fn words(line: &[u8]) -> Result<Vec<OsString>, WordError> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut bytes = line.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b' ' | b'\t' => words.extend(word.take()),
            b'\'' => in_single_quotes(&mut bytes, word.get_or_insert_default())?,
            b'"' => in_double_quotes(&mut bytes, word.get_or_insert_default())?,
            b'\\' => word
                .get_or_insert_default()
                .push(bytes.next().ok_or(WordError::Unterminated)?),
            b'#' | b'~' if word.is_none() => return Err(WordError::Special(byte)),
            // In front of the command, this would set a variable.
            b'=' if words.is_empty() => return Err(WordError::Special(byte)),
            special if SPECIAL.contains(&special) => return Err(WordError::Special(special)),
            plain => word.get_or_insert_default().push(plain),
        }
    }
    words.extend(word);
    Ok(words.into_iter().map(OsString::from_vec).collect())
}

fn in_single_quotes(bytes: &mut impl Iterator<Item = u8>, word: &mut Vec<u8>) -> Result<(), WordError> {
    loop {
        match bytes.next().ok_or(WordError::Unterminated)? {
            b'\'' => return Ok(()),
            plain => word.push(plain),
        }
    }
}

fn in_double_quotes(bytes: &mut impl Iterator<Item = u8>, word: &mut Vec<u8>) -> Result<(), WordError> {
    loop {
        match bytes.next().ok_or(WordError::Unterminated)? {
            b'"' => return Ok(()),
            special @ (b'$' | b'`') => return Err(WordError::Special(special)),
            b'\\' => match bytes.next().ok_or(WordError::Unterminated)? {
                escaped @ (b'"' | b'\\' | b'$' | b'`') => word.push(escaped),
                other => word.extend([b'\\', other]),
            },
            plain => word.push(plain),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(line: &str) -> Result<Vec<String>, WordError> {
        let words = words(line.as_bytes())?.into_iter();
        Ok(words.map(|word| word.into_string().unwrap()).collect())
    }

    #[test]
    fn quotes_are_undone_as_a_shell_would() {
        let line = r#"/bin/a  'b c' d\ e "f \" \n" '' g'h'"i" A=b"#;
        let expected = ["/bin/a", "b c", "d e", "f \" \\n", "", "ghi", "A=b"];
        assert_eq!(split(line).unwrap(), expected);
        assert_eq!(split("  ").unwrap(), [""; 0]);
    }

    #[test]
    fn what_needs_a_shell_is_refused_and_not_passed_on() {
        for line in ["a|b", "a; b", "$A", "\"$A\"", "A=b c", "a > f", "~/a", "a\nb", "#", "*"] {
            assert!(matches!(split(line), Err(WordError::Special(_))), "{line}");
        }
        for line in ["'a", "\"a", "a\\"] {
            assert_eq!(split(line), Err(WordError::Unterminated), "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(line in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = words(&line);
        }
    }
}
