//! The legacy ports of a PC: a serial port for the console and an i8042 that only resets.

use std::io;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{I8042Device, Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::console::ConsoleWriter;

/// First port of COM1.
const SERIAL: u16 = 0x3f8;
const SERIAL_PORTS: u16 = 8;
/// First port of the keyboard controller; its command port is 4 further.
const I8042: u16 = 0x60;
const I8042_PORTS: u16 = 5;

/// What the monitor has to do after a port was written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PortEffect {
    /// Nothing.
    None,
    /// The guest reset its CPU: it ended.
    Reset,
}

/// An eventfd as a device's interrupt line.
#[derive(Debug)]
pub struct EventFdTrigger(EventFd);

impl Trigger for EventFdTrigger {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Remembers that the guest asked for a reset, until the port access that asked returns.
#[derive(Debug, Default)]
struct ResetLatch(std::cell::Cell<bool>);

impl Trigger for ResetLatch {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.set(true);
        Ok(())
    }
}

/// [`SerialState`], which has no form of its own to be written in.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedSerial {
    baud_divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    in_buffer: Vec<u8>,
}

impl From<SerialState> for SavedSerial {
    fn from(state: SerialState) -> Self {
        Self {
            baud_divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.in_buffer,
        }
    }
}

impl From<&SavedSerial> for SerialState {
    fn from(saved: &SavedSerial) -> Self {
        Self {
            baud_divisor_low: saved.baud_divisor[0],
            baud_divisor_high: saved.baud_divisor[1],
            interrupt_enable: saved.interrupt_enable,
            interrupt_identification: saved.interrupt_identification,
            line_control: saved.line_control,
            line_status: saved.line_status,
            modem_control: saved.modem_control,
            modem_status: saved.modem_status,
            scratch: saved.scratch,
            in_buffer: saved.in_buffer.clone(),
        }
    }
}

/// The legacy ports, shared by all vCPUs.
pub struct LegacyPorts {
    serial: Mutex<Serial<EventFdTrigger, NoEvents, ConsoleWriter>>,
    serial_line: EventFd,
    i8042: Mutex<I8042Device<ResetLatch>>,
}

impl std::fmt::Debug for LegacyPorts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LegacyPorts").finish_non_exhaustive()
    }
}

impl LegacyPorts {
    /// Ports whose serial output goes to `console`.
    ///
    /// # Errors
    /// When the host is out of file descriptors.
    pub fn new(console: ConsoleWriter) -> io::Result<Self> {
        Self::restore(console, &SerialState::default().into())
    }

    /// The same with the serial port as it was saved.
    ///
    /// # Errors
    /// When the host is out of file descriptors, or the port cannot have been like that.
    pub(crate) fn restore(console: ConsoleWriter, saved: &SavedSerial) -> io::Result<Self> {
        let serial_line = EventFd::new(EFD_NONBLOCK)?;
        let trigger = EventFdTrigger(serial_line.try_clone()?);
        let serial = Serial::from_state(&saved.into(), trigger, NoEvents, console);
        Ok(Self {
            serial: Mutex::new(serial.map_err(|error| io::Error::other(format!("{error:?}")))?),
            serial_line,
            i8042: Mutex::new(I8042Device::new(ResetLatch::default())),
        })
    }

    /// Restores what `json` says was saved, if it says anything, and uses each port.
    #[cfg(fuzzing)]
    pub fn restore_json(json: &[u8]) {
        let Ok(saved) = serde_json::from_slice(json) else {
            return;
        };
        let nowhere = crate::config::Console::Stream(std::sync::Arc::new(
            std::fs::File::open("/dev/null").expect("a file").into(),
        ));
        let console = ConsoleWriter::open(&nowhere).expect("a console");
        let Ok(ports) = Self::restore(console, &saved) else {
            return;
        };
        for port in SERIAL..SERIAL + SERIAL_PORTS {
            ports.read(port, &mut [0]);
            ports.write(port, b"x");
        }
        ports.save();
    }

    /// The state of the serial port. The keyboard controller has none that outlives an access.
    pub(crate) fn save(&self) -> SavedSerial {
        let serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
        serial.state().into()
    }

    /// The serial port's interrupt line, to register with KVM.
    pub fn serial_line(&self) -> &EventFd {
        &self.serial_line
    }

    /// The guest reads `data.len()` bytes from `port`; ports without a device read as ones.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        let value = if let Some(offset) = offset(port, SERIAL, SERIAL_PORTS) {
            self.serial.lock().unwrap_or_else(PoisonError::into_inner).read(offset)
        } else if let Some(offset) = offset(port, I8042, I8042_PORTS) {
            self.i8042.lock().unwrap_or_else(PoisonError::into_inner).read(offset)
        } else {
            0xff
        };
        data.fill(0xff);
        if let [first, ..] = data {
            *first = value;
        }
    }

    /// The guest writes `data` to `port`, one byte after the other.
    pub fn write(&self, port: u16, data: &[u8]) -> PortEffect {
        if let Some(offset) = offset(port, SERIAL, SERIAL_PORTS) {
            let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
            for byte in data {
                // The only failures are a full interrupt eventfd and a full loopback FIFO: the guest's own affair.
                let _ = serial.write(offset, *byte);
            }
        } else if let Some(offset) = offset(port, I8042, I8042_PORTS) {
            let mut i8042 = self.i8042.lock().unwrap_or_else(PoisonError::into_inner);
            for byte in data {
                let Ok(()) = i8042.write(offset, *byte);
            }
            if i8042.reset_evt().0.get() {
                return PortEffect::Reset;
            }
        }
        PortEffect::None
    }
}

fn offset(port: u16, first: u16, ports: u16) -> Option<u8> {
    let offset = port.checked_sub(first).filter(|offset| *offset < ports)?;
    u8::try_from(offset).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Console, ConsoleLog};

    fn ports() -> (tempfile::TempDir, LegacyPorts) {
        let directory = tempfile::tempdir().unwrap();
        let log = ConsoleLog {
            path: directory.path().join("console.log"),
            max_bytes: 1 << 20,
        };
        let ports = LegacyPorts::new(ConsoleWriter::open(&Console::Log(log.clone())).unwrap()).unwrap();
        (directory, ports)
    }

    #[test]
    fn only_the_reset_command_resets() {
        let (_directory, ports) = ports();
        for value in 0..=0xffu8 {
            let effect = ports.write(I8042 + 4, &[value]);
            let expected = if value == 0xfe {
                PortEffect::Reset
            } else {
                PortEffect::None
            };
            if value <= 0xfe {
                assert_eq!(effect, expected, "{value:#x}");
            }
        }
    }

    #[test]
    fn what_the_guest_sends_to_com1_reaches_the_log() {
        let (directory, ports) = ports();
        ports.write(SERIAL, b"hello\n");
        assert_eq!(std::fs::read(directory.path().join("console.log")).unwrap(), b"hello\n");
    }

    #[test]
    fn a_port_without_a_device_reads_as_ones_at_any_width() {
        let (_directory, ports) = ports();
        let mut data = [0; 4];
        ports.read(0xcf8, &mut data);
        assert_eq!(data, [0xff; 4]);
        ports.read(SERIAL, &mut []);
    }
}
