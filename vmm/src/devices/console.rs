//! What a guest writes to its serial console.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use super::console_log::RotatingLog;
use crate::config::Console;

/// Bytes of one line that are kept together at most; a longer line is split. A pipe takes as much in one piece
/// (`PIPE_BUF`).
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

/// Passes console bytes on, a line at a time. A line that is not taken is dropped: the guest never waits.
#[derive(Debug)]
pub struct ConsoleWriter {
    sink: Sink,
    line: Vec<u8>,
    tail: ConsoleTail,
}

#[derive(Debug)]
enum Sink {
    Log(RotatingLog),
    Stream(Arc<std::os::fd::OwnedFd>),
}

impl ConsoleWriter {
    /// Opens what `console` names.
    ///
    /// # Errors
    /// When a file cannot be opened.
    pub fn open(console: &Console) -> io::Result<Self> {
        let sink = match console {
            Console::Log(log) => Sink::Log(RotatingLog::open(log)?),
            Console::Stream(stream) => Sink::Stream(Arc::clone(stream)),
        };
        Ok(Self {
            sink,
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
        // What is not taken is dropped.
        match &mut self.sink {
            Sink::Log(log) => drop(log.write(&self.line)),
            Sink::Stream(stream) => drop(rustix::io::write(stream, &self.line)),
        }
        self.line.clear();
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

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Read;

    use super::*;
    use crate::config::ConsoleLog;

    #[test]
    fn a_line_without_an_end_is_kept_when_the_vm_ends() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        let max_bytes = 1000;
        let mut writer = ConsoleWriter::open(&Console::Log(ConsoleLog {
            path: path.clone(),
            max_bytes,
        }))
        .unwrap();
        writer.write_all(b"no newline").unwrap();
        let tail = writer.tail();
        drop(writer);
        assert_eq!(fs::read_to_string(&path).unwrap(), "no newline");
        assert_eq!(tail.lines(), ["no newline"]);
    }

    #[test]
    fn a_stream_that_nobody_reads_holds_nobody_up_and_gets_whole_lines() {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        let mut console = ConsoleWriter::open(&Console::Stream(Arc::new(writer))).unwrap();
        for line in 0..100_000 {
            writeln!(console, "line {line}").unwrap();
        }
        assert_eq!(console.tail().lines().last().unwrap(), "line 99999");
        drop(console);
        let mut text = String::new();
        File::from(reader).read_to_string(&mut text).unwrap();
        assert!(text.starts_with("line 0\nline 1\n") && text.ends_with('\n'));
    }
}
