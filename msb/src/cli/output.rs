//! Data on standard output.

use std::io::{self, IsTerminal as _, Write as _};

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

/// Writes bytes. A reader that has seen enough is no error.
pub(super) fn bytes(bytes: &[u8]) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(cannot("write to standard output")(error)),
        _ => Ok(()),
    }
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
    fn columns_line_up_without_trailing_blanks() {
        let rows = [
            vec!["NAME".into(), "ID".into()],
            vec!["a-long-name".into(), "1".into()],
            vec!["b".into(), String::new()],
        ];
        assert_eq!(table(&rows), "NAME         ID\na-long-name  1\nb\n");
    }
}
