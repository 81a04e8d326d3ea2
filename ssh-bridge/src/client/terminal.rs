//! The local terminal: what the guest needs to know of it, and raw mode that always ends.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use russh::Pty as Opcode;
use rustix::termios::{
    ControlModes, InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios, tcgetattr,
    tcgetwinsize, tcsetattr,
};

/// The terminal a session gets.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pty {
    /// Its type, the value of `TERM`.
    pub term: String,
    /// Its width, in characters.
    pub cols: u32,
    /// Its height, in characters.
    pub rows: u32,
    modes: Vec<(Opcode, u32)>,
}

impl Pty {
    /// A terminal of this type and size, with the guest's default modes.
    pub fn new(term: impl Into<String>, cols: u32, rows: u32) -> Self {
        Self {
            term: term.into(),
            cols,
            rows,
            modes: Vec::new(),
        }
    }

    /// A terminal like the local one: its size, its special characters, its modes.
    ///
    /// # Errors
    /// When `terminal` is none.
    pub fn like(terminal: impl AsFd, term: impl Into<String>) -> io::Result<Self> {
        let (cols, rows) = size(&terminal)?;
        Ok(Self {
            term: term.into(),
            cols,
            rows,
            modes: encode_modes(&tcgetattr(terminal)?),
        })
    }

    pub(super) fn modes(&self) -> &[(Opcode, u32)] {
        &self.modes
    }
}

/// The size of a terminal: columns and rows.
pub(crate) fn size(terminal: impl AsFd) -> io::Result<(u32, u32)> {
    let size = tcgetwinsize(terminal)?;
    Ok((u32::from(size.ws_col), u32::from(size.ws_row)))
}

/// A terminal in raw mode. Dropped, it has its old modes again.
#[derive(Debug)]
pub(crate) struct RawMode {
    terminal: OwnedFd,
    before: Termios,
}

impl RawMode {
    pub(crate) fn enter(terminal: impl AsFd) -> io::Result<Self> {
        let terminal = terminal.as_fd().try_clone_to_owned()?;
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Drain, &raw)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Not after a drain: a terminal that takes no output must not keep its modes.
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

/// RFC 4254, section 8, for what Linux has.
fn encode_modes(termios: &Termios) -> Vec<(Opcode, u32)> {
    let characters = CHARACTERS
        .iter()
        .map(|&(opcode, index)| (opcode, u32::from(termios.special_codes[index])));
    let input = INPUT
        .iter()
        .map(|&(opcode, mode)| (opcode, u32::from(termios.input_modes.contains(mode))));
    let local = LOCAL
        .iter()
        .map(|&(opcode, mode)| (opcode, u32::from(termios.local_modes.contains(mode))));
    let output = OUTPUT
        .iter()
        .map(|&(opcode, mode)| (opcode, u32::from(termios.output_modes.contains(mode))));
    let control = CONTROL
        .iter()
        .map(|&(opcode, mode)| (opcode, u32::from(termios.control_modes.contains(mode))));
    let speeds = [
        (Opcode::TTY_OP_ISPEED, termios.input_speed()),
        (Opcode::TTY_OP_OSPEED, termios.output_speed()),
    ];
    characters
        .chain(input)
        .chain(local)
        .chain(output)
        .chain(control)
        .chain(speeds)
        .collect()
}

const CHARACTERS: &[(Opcode, SpecialCodeIndex)] = &[
    (Opcode::VINTR, SpecialCodeIndex::VINTR),
    (Opcode::VQUIT, SpecialCodeIndex::VQUIT),
    (Opcode::VERASE, SpecialCodeIndex::VERASE),
    (Opcode::VKILL, SpecialCodeIndex::VKILL),
    (Opcode::VEOF, SpecialCodeIndex::VEOF),
    (Opcode::VEOL, SpecialCodeIndex::VEOL),
    (Opcode::VEOL2, SpecialCodeIndex::VEOL2),
    (Opcode::VSTART, SpecialCodeIndex::VSTART),
    (Opcode::VSTOP, SpecialCodeIndex::VSTOP),
    (Opcode::VSUSP, SpecialCodeIndex::VSUSP),
    (Opcode::VREPRINT, SpecialCodeIndex::VREPRINT),
    (Opcode::VWERASE, SpecialCodeIndex::VWERASE),
    (Opcode::VLNEXT, SpecialCodeIndex::VLNEXT),
    (Opcode::VDISCARD, SpecialCodeIndex::VDISCARD),
];

const INPUT: &[(Opcode, InputModes)] = &[
    (Opcode::IGNPAR, InputModes::IGNPAR),
    (Opcode::PARMRK, InputModes::PARMRK),
    (Opcode::INPCK, InputModes::INPCK),
    (Opcode::ISTRIP, InputModes::ISTRIP),
    (Opcode::INLCR, InputModes::INLCR),
    (Opcode::IGNCR, InputModes::IGNCR),
    (Opcode::ICRNL, InputModes::ICRNL),
    (Opcode::IUCLC, InputModes::IUCLC),
    (Opcode::IXON, InputModes::IXON),
    (Opcode::IXANY, InputModes::IXANY),
    (Opcode::IXOFF, InputModes::IXOFF),
    (Opcode::IMAXBEL, InputModes::IMAXBEL),
    (Opcode::IUTF8, InputModes::IUTF8),
];

const LOCAL: &[(Opcode, LocalModes)] = &[
    (Opcode::ISIG, LocalModes::ISIG),
    (Opcode::ICANON, LocalModes::ICANON),
    (Opcode::XCASE, LocalModes::XCASE),
    (Opcode::ECHO, LocalModes::ECHO),
    (Opcode::ECHOE, LocalModes::ECHOE),
    (Opcode::ECHOK, LocalModes::ECHOK),
    (Opcode::ECHONL, LocalModes::ECHONL),
    (Opcode::NOFLSH, LocalModes::NOFLSH),
    (Opcode::TOSTOP, LocalModes::TOSTOP),
    (Opcode::IEXTEN, LocalModes::IEXTEN),
    (Opcode::ECHOCTL, LocalModes::ECHOCTL),
    (Opcode::ECHOKE, LocalModes::ECHOKE),
    (Opcode::PENDIN, LocalModes::PENDIN),
];

const OUTPUT: &[(Opcode, OutputModes)] = &[
    (Opcode::OPOST, OutputModes::OPOST),
    (Opcode::OLCUC, OutputModes::OLCUC),
    (Opcode::ONLCR, OutputModes::ONLCR),
    (Opcode::OCRNL, OutputModes::OCRNL),
    (Opcode::ONOCR, OutputModes::ONOCR),
    (Opcode::ONLRET, OutputModes::ONLRET),
];

const CONTROL: &[(Opcode, ControlModes)] = &[
    (Opcode::CS7, ControlModes::CS7),
    (Opcode::CS8, ControlModes::CS8),
    (Opcode::PARENB, ControlModes::PARENB),
    (Opcode::PARODD, ControlModes::PARODD),
];

#[cfg(test)]
mod tests {
    use msb_test_support::terminal;
    use rustix::termios::Winsize;

    use super::*;

    #[test]
    fn the_guest_gets_the_size_and_the_modes_of_the_local_terminal() {
        let (_master, slave) = terminal();
        let size = Winsize {
            ws_col: 132,
            ws_row: 43,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&slave, size).unwrap();
        let mut termios = tcgetattr(&slave).unwrap();
        termios.special_codes[SpecialCodeIndex::VERASE] = 8;
        termios.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&slave, OptionalActions::Now, &termios).unwrap();

        let pty = Pty::like(&slave, "xterm").unwrap();
        assert_eq!((pty.cols, pty.rows), (132, 43));
        assert!(pty.modes.contains(&(Opcode::VERASE, 8)));
        assert!(pty.modes.contains(&(Opcode::ECHO, 0)));
        assert!(pty.modes.contains(&(Opcode::ICANON, 1)));
    }

    #[test]
    fn raw_mode_ends_with_its_guard_even_in_a_panic() {
        let (_master, slave) = terminal();
        let echoes = || tcgetattr(&slave).unwrap().local_modes.contains(LocalModes::ECHO);
        assert!(echoes());
        let panicked = std::panic::catch_unwind(|| {
            let _raw = RawMode::enter(&slave).unwrap();
            assert!(echoes(), "it does not echo in raw mode, so this panics");
        });
        assert!(panicked.is_err());
        assert!(echoes());
        assert!(RawMode::enter(std::io::pipe().unwrap().0).is_err());
    }
}
