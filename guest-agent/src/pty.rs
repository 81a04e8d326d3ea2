//! Pseudo-terminals.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Termios, Winsize};

/// Both ends of a terminal.
#[derive(Debug)]
pub(crate) struct PtyPair {
    pub(crate) master: OwnedFd,
    pub(crate) slave: OwnedFd,
    /// The path of the slave.
    pub(crate) device: OsString,
}

/// The size of a window in characters and in pixels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) columns: u32,
    pub(crate) rows: u32,
    pub(crate) width: u32,
    pub(crate) height: u32,
}

impl Size {
    /// One whose pixels nobody told.
    pub(crate) fn in_characters(columns: u32, rows: u32) -> Self {
        Self {
            columns,
            rows,
            width: 0,
            height: 0,
        }
    }
}

impl PtyPair {
    /// Opens a terminal, with the kernel's settings as far as `configure` leaves them.
    ///
    /// # Errors
    /// When there are no more terminals.
    pub(crate) fn open(size: Size, configure: impl FnOnce(&mut Termios)) -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags)?;
        rustix::pty::unlockpt(&master)?;
        let device = OsString::from_vec(rustix::pty::ptsname(&master, Vec::new())?.into_bytes());
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        let mut settings = rustix::termios::tcgetattr(&slave)?;
        configure(&mut settings);
        rustix::termios::tcsetattr(&slave, OptionalActions::Now, &settings)?;
        resize(&master, size)?;
        Ok(Self { master, slave, device })
    }
}

/// Tells a terminal its window's size, at most 65,535 of each.
pub(crate) fn resize(master: impl AsFd, size: Size) -> io::Result<()> {
    let clamp = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    let size = Winsize {
        ws_row: clamp(size.rows),
        ws_col: clamp(size.columns),
        ws_xpixel: clamp(size.width),
        ws_ypixel: clamp(size.height),
    };
    Ok(rustix::termios::tcsetwinsize(master, size)?)
}
