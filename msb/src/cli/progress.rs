//! How far a copy is, on one line of a terminal.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use msb_ssh::sftp::tree::TreeEvent;

use crate::report;

/// How often the line is drawn anew.
const INTERVAL: Duration = Duration::from_millis(100);

/// The width of a terminal that does not tell.
const WIDTH: usize = 80;

/// Clears the line the cursor is in, and goes to its beginning.
const CLEAR: &str = "\r\x1b[K";

/// The line, if standard error is a terminal.
#[derive(Debug)]
pub(super) struct Progress(Option<Mutex<Line>>);

#[derive(Debug)]
struct Line {
    began: Instant,
    drawn: Option<Instant>,
    file: String,
    bytes: u64,
}

impl Progress {
    /// Draws nothing when `quiet`, or when nobody would see it.
    pub(super) fn new(quiet: bool) -> Self {
        let line = || Line {
            began: Instant::now(),
            drawn: None,
            file: String::new(),
            bytes: 0,
        };
        Self((!quiet && io::stderr().is_terminal()).then(|| Mutex::new(line())))
    }

    /// Takes a step into account, and says what failed.
    pub(super) fn step(&self, event: &TreeEvent<'_>) {
        match event {
            TreeEvent::File { from, .. } => self.file(from),
            TreeEvent::Moved(bytes) => self.moved(*bytes),
            TreeEvent::Failed(error) => {
                self.clear();
                eprintln!("msb: {}", report::one_line(*error));
            }
        }
    }

    /// Shows the name of a file.
    pub(super) fn file(&self, path: &Path) {
        if let Some(mut line) = self.line() {
            // A name is the guest's: nothing in it must move the terminal.
            line.file = path.to_string_lossy().chars().filter(|c| !c.is_control()).collect();
            line.draw();
        }
    }

    /// Counts bytes.
    pub(super) fn moved(&self, bytes: u64) {
        if let Some(mut line) = self.line() {
            line.bytes += bytes;
            line.draw();
        }
    }

    /// Takes the line away.
    pub(super) fn clear(&self) {
        if let Some(mut line) = self.line()
            && line.drawn.take().is_some()
        {
            show(CLEAR);
        }
    }

    fn line(&self) -> Option<MutexGuard<'_, Line>> {
        // It is only shown, so a half-made change harms nobody.
        self.0
            .as_ref()
            .map(|line| line.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Line {
    fn draw(&mut self) {
        if self.drawn.is_some_and(|drawn| drawn.elapsed() < INTERVAL) {
            return;
        }
        self.drawn = Some(Instant::now());
        let width = rustix::termios::tcgetwinsize(io::stderr())
            .ok()
            .map(|size| usize::from(size.ws_col))
            .filter(|&width| width > 0)
            .unwrap_or(WIDTH);
        show(&format!("{CLEAR}{}", self.text(self.began.elapsed(), width)));
    }

    /// Size and speed, and as much of the name as fits.
    fn text(&self, elapsed: Duration, width: usize) -> String {
        let speed = u128::from(self.bytes) * 1000 / elapsed.as_millis().max(1);
        let speed = size(u64::try_from(speed).unwrap_or(u64::MAX));
        let text = format!("{:>10}  {speed:>10}/s  {}", size(self.bytes), self.file);
        text.chars().take(width.saturating_sub(1)).collect()
    }
}

/// A terminal that is gone is not this line's concern.
fn show(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

/// Bytes in the unit that leaves the fewest digits, with one of them behind the point.
pub(super) fn size(bytes: u64) -> String {
    let mut tenths = u128::from(bytes) * 10;
    let mut units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    while tenths >= 10 * 1024
        && let Some(next) = units.next()
    {
        (tenths, unit) = (tenths / 1024, next);
    }
    match unit {
        "B" => format!("{bytes} B"),
        unit => format!("{}.{} {unit}", tenths / 10, tenths % 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_few_digits() {
        let shown: Vec<String> = [0, 1023, 1024, 1536, 5 << 30, u64::MAX].map(size).into();
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 GiB", "15.9 EiB"]);
    }

    #[test]
    fn the_line_fits_its_terminal() {
        let line = Line {
            began: Instant::now(),
            drawn: None,
            file: "a/long/name".repeat(20),
            bytes: 3 << 20,
        };
        let text = line.text(Duration::from_secs(2), 60);
        assert_eq!(text.chars().count(), 59);
        assert!(text.trim_start().starts_with("3.0 MiB     1.5 MiB/s  a/long"), "{text}");
    }
}
