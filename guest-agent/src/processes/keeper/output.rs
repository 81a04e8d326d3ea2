//! What a process prints on: pipes, or the master of its terminal.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

/// What is read at once, in bytes.
const CHUNK: usize = 32 << 10;

/// What is still read from a terminal after its leader ended, in bytes. The kernel holds less; only a background process
/// that keeps writing could have more.
const MAX_LEFTOVER: u64 = 256 << 10;

/// One stream of output.
#[derive(Debug)]
pub(super) struct Output {
    descriptor: Option<OwnedFd>,
    pub(super) is_error: bool,
    is_terminal: bool,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    /// The process runs.
    Running,
    /// It ended and left at most so many bytes.
    Leftover(u64),
    /// What comes now is from processes that it left behind. It is read, so that these do not die of a broken pipe, and
    /// dropped.
    Over,
}

impl Output {
    pub(super) fn new(descriptor: OwnedFd, is_error: bool, is_terminal: bool) -> Self {
        Self {
            descriptor: Some(descriptor),
            is_error,
            is_terminal,
            phase: Phase::Running,
        }
    }

    /// Where more may come from, while it is taken.
    pub(super) fn readable(&self, has_room: bool) -> Option<BorrowedFd<'_>> {
        let takes = match self.phase {
            Phase::Running => has_room,
            // Read until it is empty, not when something comes.
            Phase::Leftover(_) => false,
            Phase::Over => true,
        };
        self.descriptor.as_ref().filter(|_| takes).map(AsFd::as_fd)
    }

    /// Whether nothing of the process itself follows.
    pub(super) fn is_over(&self) -> bool {
        self.descriptor.is_none() || self.phase == Phase::Over
    }

    pub(super) fn is_closed(&self) -> bool {
        self.descriptor.is_none()
    }

    /// The process ended: what it left is all that counts.
    pub(super) fn process_ended(&mut self) {
        let Some(descriptor) = &self.descriptor else { return };
        let left = if self.is_terminal {
            MAX_LEFTOVER
        } else {
            rustix::io::ioctl_fionread(descriptor).unwrap_or(0)
        };
        self.phase = Phase::Leftover(left);
    }

    /// The next piece that counts, read into `buffer`.
    pub(super) fn read<'a>(&mut self, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
        let descriptor = self.descriptor.as_ref()?;
        let most = match self.phase {
            Phase::Leftover(left) => usize::try_from(left).unwrap_or(CHUNK).min(CHUNK),
            _ => CHUNK,
        };
        let most = most.min(buffer.len());
        let read = if most == 0 {
            Err(Errno::AGAIN)
        } else {
            rustix::io::read(descriptor, &mut buffer[..most])
        };
        match (read, self.phase) {
            (Err(Errno::INTR), _) => None,
            (Err(Errno::AGAIN), Phase::Leftover(_)) => {
                self.phase = Phase::Over;
                if self.is_terminal {
                    self.descriptor = None;
                }
                None
            }
            (Err(Errno::AGAIN), _) => None,
            // The terminal's last user is gone, or the pipe's.
            (Ok(0) | Err(_), _) => {
                self.descriptor = None;
                None
            }
            (Ok(_), Phase::Over) => None,
            (Ok(length), phase) => {
                if let Phase::Leftover(left) = phase {
                    self.phase = Phase::Leftover(left.saturating_sub(u64::try_from(length).unwrap_or(left)));
                }
                Some(&buffer[..length])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn drain(output: &mut Output) -> Vec<u8> {
        let mut all = Vec::new();
        while !output.is_over() {
            all.extend(output.read(&mut [0; 1000]).unwrap_or_default());
        }
        all
    }

    #[test]
    fn what_a_process_wrote_before_its_end_counts_and_what_others_write_later_does_not() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        let mut output = Output::new(reader.into(), false, false);
        writer.write_all(&[1; 50_000]).unwrap();
        output.process_ended();
        writer.write_all(b"late").unwrap();
        assert_eq!(drain(&mut output), [1; 50_000]);
        assert_eq!(
            output.read(&mut [0; 1000]),
            None,
            "the late bytes are taken and dropped"
        );
        assert!(output.is_over() && !output.is_closed());
        drop(writer);
        assert_eq!(output.read(&mut [0; 1000]), None);
        assert!(output.is_closed());
    }
}
