//! Data on standard output.

use std::fs::File;
use std::io::{self, IsTerminal as _, Write as _};

use msb_ssh::serve;
use serde::Serialize;

use super::error::{CliError, cannot};

/// Writes text as it is.
pub(super) fn text(text: &str) -> Result<(), CliError> {
    bytes(text.as_bytes())
}

/// Writes a line.
pub(super) fn line(line: &str) -> Result<(), CliError> {
    bytes(format!("{line}\n").as_bytes())
}

/// Writes a value as indented JSON.
pub(super) fn json(value: &impl Serialize) -> Result<(), CliError> {
    bytes(&crate::store::files::to_json(value))
}

/// Writes the last that this process has to say, and gives its standard input and output up: who reads that sees the end,
/// though the process goes on.
pub(super) fn last_words(words: &str) -> io::Result<()> {
    let (input, output) = serve::take_stdio()?;
    let mut output = File::from(output);
    let written = output.write_all(words.as_bytes());
    // Who sees the end of the output finds the input given up.
    drop(input);
    written
}

/// Writes bytes. A reader that has seen enough is no error.
pub(super) fn bytes(bytes: &[u8]) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(cannot("write to standard output")(error)),
        _ => Ok(()),
    }
}

/// Writes what a guest said. A terminal gets it as text that it does not obey; anything else, unchanged.
pub(super) fn guest_bytes(said: &[u8]) -> Result<(), CliError> {
    if io::stdout().is_terminal() {
        text(&harmless(said))
    } else {
        bytes(said)
    }
}

/// Control characters other than the ends of lines and tabs, as people write them: `^[` for ESC.
pub(super) fn harmless(said: &[u8]) -> String {
    let mut harmless = String::with_capacity(said.len());
    for character in String::from_utf8_lossy(said).chars() {
        match u8::try_from(character) {
            Ok(b'\n' | b'\r' | b'\t') => harmless.push(character),
            Ok(control @ (0..0x20 | 0x7f)) => harmless.extend(['^', char::from(control ^ 0x40)]),
            Ok(0x80..0xa0) => harmless.push(char::REPLACEMENT_CHARACTER),
            _ => harmless.push(character),
        }
    }
    harmless
}

/// A guest's words as a part of one line, whether or not a terminal shows it: control characters as Rust writes them.
pub(super) fn escaped(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() {
                c.escape_default().to_string()
            } else {
                c.to_string()
            }
        })
        .collect()
}

/// Whether somebody types here and sees what is written.
pub(super) fn is_terminal() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Columns as wide as their widest cell; the last one is not padded.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut table = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        table.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        table.push('\n');
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_obeys_nothing_that_a_guest_says() {
        let said = b"ok\r\n\ttab \x1b]52;c;cm0K\x07\xc2\x9b2J\x7f\0 \xc3\xa9\xff";
        let shown = harmless(said);
        assert_eq!(shown, "ok\r\n\ttab ^[]52;c;cm0K^G\u{fffd}2J^?^@ \u{e9}\u{fffd}");
        assert!(shown.chars().all(|c| !c.is_control() || "\r\n\t".contains(c)));
    }

    #[test]
    fn columns_line_up_without_trailing_blanks() {
        let rows = [
            vec!["NAME".into(), "ID".into()],
            vec!["a-long-name".into(), "1".into()],
            vec!["b".into(), String::new()],
        ];
        assert_eq!(table(&rows), "NAME         ID\na-long-name  1\nb\n");
    }
}
