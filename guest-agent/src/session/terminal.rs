//! Pseudo-terminals with the modes that the client asked for (RFC 4254, 8).

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;

use russh::Pty;
use rustix::fs::{Gid, Mode, Uid};
use rustix::termios::{ControlModes, InputModes, LocalModes, OutputModes, SpecialCodeIndex, Termios};

use crate::net::FdStream;
use crate::pty::{PtyPair, Size};
use crate::users::{self, User};

/// The group of terminals where `/etc/group` names none.
const TTY_GROUP: u32 = 5;

/// The value of a special character that is switched off, on the wire.
const DISABLED: u32 = 255;

/// A terminal for one session.
#[derive(Debug)]
pub(super) struct Terminal {
    master: FdStream,
    slave: OwnedFd,
    device: OsString,
    kind: String,
}

impl Terminal {
    /// Opens a terminal that belongs to `user`; `kind` is its `TERM`.
    pub(super) fn open(user: &User, kind: &str, size: Size, modes: &[(Pty, u32)]) -> io::Result<Self> {
        let pair = PtyPair::open(size, |settings| apply(settings, modes))?;
        if rustix::process::geteuid().is_root() {
            let group = users::group_id("tty").unwrap_or(TTY_GROUP);
            rustix::fs::fchown(&pair.slave, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(group)))?;
            rustix::fs::fchmod(&pair.slave, Mode::from_raw_mode(0o620))?;
        }
        Ok(Self {
            master: FdStream::new(pair.master)?,
            slave: pair.slave,
            device: pair.device,
            kind: kind.into(),
        })
    }

    /// The end that the session reads and writes.
    pub(super) fn master(&self) -> &FdStream {
        &self.master
    }

    /// The end that becomes the process's standard input and output.
    pub(super) fn slave(&self) -> &OwnedFd {
        &self.slave
    }

    /// Type and device, as `TERM` and `SSH_TTY` name them.
    pub(super) fn names(&self) -> (&str, &OsStr) {
        (&self.kind, &self.device)
    }
}

fn apply(settings: &mut Termios, modes: &[(Pty, u32)]) {
    for &(mode, value) in modes {
        if let Some(index) = special_code(mode) {
            // _POSIX_VDISABLE is 0 on Linux.
            settings.special_codes[index] = if value == DISABLED {
                0
            } else {
                u8::try_from(value).unwrap_or(0)
            };
        } else if let Some(flag) = input_mode(mode) {
            settings.input_modes.set(flag, value != 0);
        } else if let Some(flag) = local_mode(mode) {
            settings.local_modes.set(flag, value != 0);
        } else if let Some(flag) = output_mode(mode) {
            settings.output_modes.set(flag, value != 0);
        } else {
            apply_line(settings, mode, value);
        }
    }
}

/// Character size, parity and speed. A speed that the kernel does not know changes nothing.
fn apply_line(settings: &mut Termios, mode: Pty, value: u32) {
    let size = |settings: &mut Termios, size| {
        settings.control_modes.remove(ControlModes::CSIZE);
        settings.control_modes.insert(size);
    };
    match mode {
        Pty::CS7 if value != 0 => size(settings, ControlModes::CS7),
        Pty::CS8 if value != 0 => size(settings, ControlModes::CS8),
        Pty::PARENB => settings.control_modes.set(ControlModes::PARENB, value != 0),
        Pty::PARODD => settings.control_modes.set(ControlModes::PARODD, value != 0),
        Pty::TTY_OP_ISPEED => {
            let _ = settings.set_input_speed(value);
        }
        Pty::TTY_OP_OSPEED => {
            let _ = settings.set_output_speed(value);
        }
        _ => {}
    }
}

fn special_code(mode: Pty) -> Option<SpecialCodeIndex> {
    Some(match mode {
        Pty::VINTR => SpecialCodeIndex::VINTR,
        Pty::VQUIT => SpecialCodeIndex::VQUIT,
        Pty::VERASE => SpecialCodeIndex::VERASE,
        Pty::VKILL => SpecialCodeIndex::VKILL,
        Pty::VEOF => SpecialCodeIndex::VEOF,
        Pty::VEOL => SpecialCodeIndex::VEOL,
        Pty::VEOL2 => SpecialCodeIndex::VEOL2,
        Pty::VSTART => SpecialCodeIndex::VSTART,
        Pty::VSTOP => SpecialCodeIndex::VSTOP,
        Pty::VSUSP => SpecialCodeIndex::VSUSP,
        Pty::VREPRINT => SpecialCodeIndex::VREPRINT,
        Pty::VWERASE => SpecialCodeIndex::VWERASE,
        Pty::VLNEXT => SpecialCodeIndex::VLNEXT,
        Pty::VSWTCH => SpecialCodeIndex::VSWTC,
        Pty::VDISCARD => SpecialCodeIndex::VDISCARD,
        _ => return None,
    })
}

fn input_mode(mode: Pty) -> Option<InputModes> {
    Some(match mode {
        Pty::IGNPAR => InputModes::IGNPAR,
        Pty::PARMRK => InputModes::PARMRK,
        Pty::INPCK => InputModes::INPCK,
        Pty::ISTRIP => InputModes::ISTRIP,
        Pty::INLCR => InputModes::INLCR,
        Pty::IGNCR => InputModes::IGNCR,
        Pty::ICRNL => InputModes::ICRNL,
        Pty::IUCLC => InputModes::IUCLC,
        Pty::IXON => InputModes::IXON,
        Pty::IXANY => InputModes::IXANY,
        Pty::IXOFF => InputModes::IXOFF,
        Pty::IMAXBEL => InputModes::IMAXBEL,
        Pty::IUTF8 => InputModes::IUTF8,
        _ => return None,
    })
}

fn local_mode(mode: Pty) -> Option<LocalModes> {
    Some(match mode {
        Pty::ISIG => LocalModes::ISIG,
        Pty::ICANON => LocalModes::ICANON,
        Pty::XCASE => LocalModes::XCASE,
        Pty::ECHO => LocalModes::ECHO,
        Pty::ECHOE => LocalModes::ECHOE,
        Pty::ECHOK => LocalModes::ECHOK,
        Pty::ECHONL => LocalModes::ECHONL,
        Pty::NOFLSH => LocalModes::NOFLSH,
        Pty::TOSTOP => LocalModes::TOSTOP,
        Pty::IEXTEN => LocalModes::IEXTEN,
        Pty::ECHOCTL => LocalModes::ECHOCTL,
        Pty::ECHOKE => LocalModes::ECHOKE,
        Pty::PENDIN => LocalModes::PENDIN,
        _ => return None,
    })
}

fn output_mode(mode: Pty) -> Option<OutputModes> {
    Some(match mode {
        Pty::OPOST => OutputModes::OPOST,
        Pty::OLCUC => OutputModes::OLCUC,
        Pty::ONLCR => OutputModes::ONLCR,
        Pty::OCRNL => OutputModes::OCRNL,
        Pty::ONOCR => OutputModes::ONOCR,
        Pty::ONLRET => OutputModes::ONLRET,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_kernel_takes_whatever_modes_and_size_a_client_sends(
            modes in prop::collection::vec((any::<u8>(), any::<u32>()), 0..130),
            sizes in any::<[u32; 4]>(),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let _context = runtime.enter();
            let modes: Vec<_> = modes
                .into_iter()
                .filter_map(|(code, value)| Some((Pty::from_u8(code)?, value)))
                .collect();
            let [columns, rows, width, height] = sizes;
            let size = Size { columns, rows, width, height };
            let terminal = Terminal::open(&User::by_name("root").unwrap(), "vt100", size, &modes).unwrap();
            let shown = rustix::termios::tcgetwinsize(terminal.slave()).unwrap();
            prop_assert_eq!(u32::from(shown.ws_row), rows.min(u16::MAX.into()));
        }
    }
}
