//! The bounded log of a guest's serial console.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use crate::config::ConsoleLog;

/// A file that is replaced when it holds half of what is allowed.
///
/// What the host's disk refuses is dropped: a guest that writes to its console never fails or waits for it.
#[derive(Debug)]
pub struct RotatingLog {
    path: PathBuf,
    max_file_bytes: u64,
    file: File,
    file_bytes: u64,
}

impl RotatingLog {
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
        })
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

impl Write for RotatingLog {
    /// Takes all of `bytes`, whatever becomes of them.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len() as u64;
        if self.file_bytes + len > self.max_file_bytes && self.file_bytes > 0 {
            self.rotate();
        }
        if self.file_bytes + len <= self.max_file_bytes && self.file.write_all(bytes).is_ok() {
            self.file_bytes += len;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn open(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_keeps_within_the_bound_and_the_newest_lines() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        let mut log = RotatingLog::open(&ConsoleLog { path, max_bytes: 1000 }).unwrap();
        for line in 0..1000 {
            log.write_all(format!("line {line}\n").as_bytes()).unwrap();
        }
        let sizes: u64 = fs::read_dir(&directory)
            .unwrap()
            .map(|file| file.unwrap().metadata().unwrap().len())
            .sum();
        assert!(sizes <= 1000, "{sizes}");
        assert!(fs::read_to_string(&log.path).unwrap().ends_with("line 999\n"));
    }
}
