//! The bounded log of a guest's serial console.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use crate::config::ConsoleLog;

/// Bytes of one line that are kept together at most; a longer line is split.
const MAX_LINE: usize = 1024;
/// Lines that [`ConsoleTail`] remembers.
const TAIL_LINES: usize = 40;

/// The last lines of a console, for the error that tells why a guest died. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct ConsoleTail(Arc<Mutex<VecDeque<String>>>);

impl ConsoleTail {
    /// The lines, oldest first.
    pub fn lines(&self) -> Vec<String> {
        self.lock().iter().cloned().collect()
    }

    fn push(&self, line: &[u8]) {
        let mut lines = self.lock();
        if lines.len() == TAIL_LINES {
            lines.pop_front();
        }
        lines.push_back(String::from_utf8_lossy(line).trim_end().to_owned());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<String>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Writes console bytes, a line at a time, to a file that is replaced when it holds half of what is allowed.
///
/// What the host's disk refuses is dropped: a guest that writes to its console never fails or waits for it.
#[derive(Debug)]
pub struct ConsoleWriter {
    path: PathBuf,
    max_file_bytes: u64,
    file: File,
    file_bytes: u64,
    line: Vec<u8>,
    tail: ConsoleTail,
}

impl ConsoleWriter {
    /// Opens the log for appending, mode 0600.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(config: &ConsoleLog) -> io::Result<Self> {
        let file = open(&config.path)?;
        Ok(Self {
            file_bytes: file.metadata()?.len(),
            path: config.path.clone(),
            max_file_bytes: config.max_bytes / 2,
            file,
            line: Vec::with_capacity(MAX_LINE),
            tail: ConsoleTail::default(),
        })
    }

    /// A handle on the last lines.
    pub fn tail(&self) -> ConsoleTail {
        self.tail.clone()
    }

    fn end_line(&mut self) {
        if self.line.is_empty() {
            return;
        }
        self.tail.push(&self.line);
        let len = self.line.len() as u64;
        if self.file_bytes + len > self.max_file_bytes && self.file_bytes > 0 {
            self.rotate();
        }
        if self.file_bytes + len <= self.max_file_bytes && self.file.write_all(&self.line).is_ok() {
            self.file_bytes += len;
        }
        self.line.clear();
    }

    fn rotate(&mut self) {
        let mut full = self.path.clone().into_os_string();
        full.push(".1");
        if fs::rename(&self.path, full).is_ok()
            && let Ok(file) = open(&self.path)
        {
            self.file = file;
            self.file_bytes = 0;
        }
    }
}

impl Write for ConsoleWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.line.push(*byte);
            if *byte == b'\n' || self.line.len() == MAX_LINE {
                self.end_line();
            }
        }
        Ok(bytes.len())
    }

    /// Does nothing: the serial port flushes after every byte, and a byte alone is not worth a system call.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for ConsoleWriter {
    fn drop(&mut self) {
        self.end_line();
    }
}

fn open(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(max_bytes: u64) -> (tempfile::TempDir, ConsoleLog) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        (directory, ConsoleLog { path, max_bytes })
    }

    #[test]
    fn a_flood_keeps_within_the_bound_and_the_newest_lines() {
        let (directory, config) = log(1000);
        let mut writer = ConsoleWriter::open(&config).unwrap();
        for line in 0..1000 {
            writeln!(writer, "line {line}").unwrap();
        }
        assert_eq!(writer.tail().lines().last().unwrap(), "line 999");
        drop(writer);
        let sizes: u64 = fs::read_dir(&directory)
            .unwrap()
            .map(|file| file.unwrap().metadata().unwrap().len())
            .sum();
        assert!(sizes <= 1000, "{sizes}");
        assert!(fs::read_to_string(&config.path).unwrap().ends_with("line 999\n"));
    }

    #[test]
    fn a_line_without_an_end_is_kept_when_the_vm_ends() {
        let (_directory, config) = log(1000);
        let mut writer = ConsoleWriter::open(&config).unwrap();
        writer.write_all(b"no newline").unwrap();
        let tail = writer.tail();
        drop(writer);
        assert_eq!(fs::read_to_string(&config.path).unwrap(), "no newline");
        assert_eq!(tail.lines(), ["no newline"]);
    }
}
