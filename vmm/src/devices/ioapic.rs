//! The I/O APIC (Intel 82093AA): what the interrupt of a device becomes for the vCPUs.
//!
//! KVM has the local APICs only (`KVM_CAP_SPLIT_IRQCHIP`). The line of a device is an irqfd, for which KVM sends the message
//! of its route to a local APIC: interrupts never come here, only the guest's changes of the routes do. All lines are
//! edge-triggered, so that nothing has to be told when the guest is done with one.
//!
//! A machine without the two 8259 of a PC is one whose I/O APIC Linux takes as it finds it, instead of looking at each pin
//! several times. Nor does it have lines behind the last device's: Linux saves and restores each entry when it turns to
//! x2APIC mode. Both were hundreds of exits of a boot.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::register_page::{PAGE, RegisterPage};
use crate::arch::layout;

/// Bytes of the window.
const WINDOW: u64 = PAGE as u64;

// Offsets in the window (82093AA, section 3.1).
const SELECT: u32 = 0x00;
const DATA: u32 = 0x10;

// Registers behind the window (section 3.2).
const ID: u8 = 0;
const VERSION: u8 = 1;
const ARBITRATION: u8 = 2;
const REDIRECTION: u8 = 0x10;

/// The version of an I/O APIC without an EOI register.
const VERSION_VALUE: u32 = 0x11;
/// Where the version register has the number of the last line.
const LAST_LINE_SHIFT: u32 = 16;
const ID_BITS: u32 = 0xf << 24;

// Fields of a redirection entry (section 3.2.4).
const VECTOR: u64 = 0xff;
const DELIVERY_MODE: u64 = 0x700;
const LOGICAL_DESTINATION: u64 = 1 << 11;
const MASKED: u64 = 1 << 16;
const DESTINATION_SHIFT: u32 = 56;
/// Delivery status and remote IRR, which only the device changes; here nothing is ever on its way.
const READ_ONLY: u64 = 1 << 12 | 1 << 14;

// Fields of a message to a local APIC (Intel SDM volume 3, section 12.11).
const MESSAGE_ADDRESS: u32 = layout::LOCAL_APIC;
const MESSAGE_DESTINATION_SHIFT: u32 = 12;
const MESSAGE_LOGICAL: u32 = 1 << 2;

const LINES: usize = layout::IRQ_LINES as usize;

/// The message that KVM sends for an interrupt of a line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Route {
    /// The line, which is KVM's GSI.
    pub line: u32,
    /// Low half of the address; the high one is zero.
    pub address: u32,
    /// Vector and delivery mode.
    pub data: u32,
}

/// Where the routes go.
pub trait Routes: Send + Sync {
    /// These are all routes from now on. A line without one interrupts nobody.
    ///
    /// # Errors
    /// When KVM refuses.
    fn set(&self, routes: &[Route]) -> io::Result<()>;
}

/// What the guest wrote, to be saved.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct IoapicState {
    select: u8,
    id: u32,
    entries: [u64; LINES],
}

impl Default for IoapicState {
    fn default() -> Self {
        Self {
            select: 0,
            id: 0,
            entries: [MASKED; LINES],
        }
    }
}

/// The I/O APIC, shared by all vCPUs.
pub struct Ioapic {
    /// How many there are, [`LINES`] at most.
    lines: u32,
    state: Mutex<IoapicState>,
    routes: Arc<dyn Routes>,
    /// What the guest reads.
    page: RegisterPage,
}

impl std::fmt::Debug for Ioapic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ioapic")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl Ioapic {
    /// One of `lines` lines after reset, all masked, whose registers are in `page`.
    pub fn new(lines: u32, routes: Arc<dyn Routes>, page: RegisterPage) -> Self {
        let ioapic = Self {
            lines: lines.clamp(1, layout::IRQ_LINES),
            state: Mutex::default(),
            routes,
            page,
        };
        ioapic.publish(&ioapic.state());
        ioapic
    }

    /// What `address` is in the window, if it is in there.
    pub fn offset(address: u64) -> Option<u64> {
        let offset = address.checked_sub(layout::IOAPIC.into())?;
        (offset < WINDOW).then_some(offset)
    }

    /// A load at `offset` of the window, where KVM does not serve it from the page.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        self.page.read(offset, data);
    }

    /// A store at `offset` of the window; registers take words.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let (Ok(offset), Ok(value)) = (u32::try_from(offset), <[u8; 4]>::try_from(data)) else {
            return;
        };
        let mut state = self.state();
        match offset {
            SELECT => state.select = value[0],
            DATA => {
                let before = state.routes();
                state.set_register(self.lines, u32::from_le_bytes(value));
                let after = state.routes();
                // Under the lock, so that the last change is the last to be told.
                if after != before
                    && let Err(error) = self.routes.set(&after)
                {
                    tracing::debug!(%error, "KVM does not take a route of interrupts");
                }
            }
            _ => return,
        }
        self.publish(&state);
    }

    /// Puts what may have changed where the guest reads it.
    fn publish(&self, state: &IoapicState) {
        self.page.set(SELECT, state.select.into());
        self.page.set(DATA, state.register(self.lines));
    }

    /// What is saved of it.
    pub(crate) fn save(&self) -> IoapicState {
        self.state().clone()
    }

    /// Goes on as it was saved.
    ///
    /// # Errors
    /// When KVM does not take the routes.
    pub(crate) fn restore(&self, saved: &IoapicState) -> io::Result<()> {
        let mut state = self.state();
        state.clone_from(saved);
        state.entries.iter_mut().for_each(|entry| *entry &= !READ_ONLY);
        self.publish(&state);
        self.routes.set(&state.routes())
    }

    fn state(&self) -> MutexGuard<'_, IoapicState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl IoapicState {
    /// The selected register of one with so many lines.
    fn register(&self, lines: u32) -> u32 {
        match self.select {
            ID | ARBITRATION => self.id,
            VERSION => VERSION_VALUE | (lines - 1) << LAST_LINE_SHIFT,
            _ => self.selected_half(lines).map_or(0, |(line, is_high)| {
                let shift = if is_high { 32 } else { 0 };
                u32::try_from(self.entries[line] >> shift & u64::from(u32::MAX)).expect("32 bits")
            }),
        }
    }

    fn set_register(&mut self, lines: u32, value: u32) {
        if self.select == ID {
            self.id = value & ID_BITS;
        } else if let Some((line, is_high)) = self.selected_half(lines) {
            let entry = &mut self.entries[line];
            let value = u64::from(value);
            *entry = if is_high {
                *entry & u64::from(u32::MAX) | value << 32
            } else {
                *entry & !u64::from(u32::MAX) | value & !READ_ONLY
            };
        }
    }

    /// The line of the selected redirection register, and whether it is the entry's high half.
    fn selected_half(&self, lines: u32) -> Option<(usize, bool)> {
        let register = self.select.checked_sub(REDIRECTION)?;
        let line = register / 2;
        (u32::from(line) < lines).then_some((line.into(), register % 2 == 1))
    }

    /// Those of the lines that are not masked. A level-triggered line, which no device has, counts as an edge.
    fn routes(&self) -> Vec<Route> {
        let open = (0..).zip(&self.entries).filter(|(_, entry)| **entry & MASKED == 0);
        open.map(|(line, entry)| {
            let field = |mask: u64| u32::try_from(entry & mask).expect("below 32 bits");
            let destination = u32::try_from(entry >> DESTINATION_SHIFT).expect("eight bits");
            let mode = if entry & LOGICAL_DESTINATION == 0 {
                0
            } else {
                MESSAGE_LOGICAL
            };
            Route {
                line,
                address: MESSAGE_ADDRESS | destination << MESSAGE_DESTINATION_SHIFT | mode,
                data: field(VECTOR | DELIVERY_MODE),
            }
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Takes what it is told, and counts how often.
    #[derive(Debug, Default)]
    struct Told(Mutex<(Vec<Route>, usize)>);

    impl Routes for Told {
        fn set(&self, routes: &[Route]) -> io::Result<()> {
            let mut told = self.0.lock().unwrap();
            *told = (routes.to_vec(), told.1 + 1);
            Ok(())
        }
    }

    fn ioapic() -> (Ioapic, Arc<Told>) {
        let told = Arc::new(Told::default());
        let page = RegisterPage::new().unwrap();
        (Ioapic::new(9, Arc::clone(&told) as Arc<dyn Routes>, page), told)
    }

    fn write(ioapic: &Ioapic, register: u8, value: u32) {
        ioapic.write(SELECT.into(), &u32::from(register).to_le_bytes());
        ioapic.write(DATA.into(), &value.to_le_bytes());
    }

    fn read(ioapic: &Ioapic, register: u8) -> u32 {
        ioapic.write(SELECT.into(), &u32::from(register).to_le_bytes());
        let mut data = [0; 4];
        ioapic.read(DATA.into(), &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn an_open_line_has_the_message_of_its_entry() {
        let (ioapic, told) = ioapic();
        write(&ioapic, REDIRECTION + 11, 3 << 24);
        assert_eq!(told.0.lock().unwrap().1, 0, "a masked line changes no route");
        // Vector 0x31, lowest priority, logical, and level-triggered, which is none of a message's business.
        write(&ioapic, REDIRECTION + 10, 0x8931);
        let route = Route {
            line: 5,
            address: 0xfee0_3004,
            data: 0x131,
        };
        assert_eq!(*told.0.lock().unwrap(), (vec![route], 1));
        write(&ioapic, REDIRECTION + 10, 0x1_8931);
        assert_eq!(*told.0.lock().unwrap(), (vec![], 2));
    }

    #[test]
    fn registers_read_as_they_were_written_but_for_what_is_the_device_s() {
        let (ioapic, _) = ioapic();
        assert_eq!(read(&ioapic, VERSION), 0x8_0011);
        assert_eq!(read(&ioapic, REDIRECTION), 0x1_0000);
        write(&ioapic, ID, u32::MAX);
        write(&ioapic, REDIRECTION + 16, u32::MAX);
        write(&ioapic, REDIRECTION + 17, u32::MAX);
        write(&ioapic, REDIRECTION + 18, u32::MAX);
        assert_eq!(read(&ioapic, ID), 0x0f00_0000);
        assert_eq!(read(&ioapic, REDIRECTION + 16), 0xffff_afff);
        assert_eq!(read(&ioapic, REDIRECTION + 17), u32::MAX);
        assert_eq!(read(&ioapic, REDIRECTION + 18), 0);
    }

    #[test]
    fn a_restored_one_has_the_routes_of_the_saved_one() {
        let (saved, told) = ioapic();
        write(&saved, REDIRECTION + 8, 0x24);
        let (restored, told_again) = ioapic();
        restored.restore(&saved.save()).unwrap();
        assert_eq!(told_again.0.lock().unwrap().0, told.0.lock().unwrap().0);
        assert_eq!(restored.save(), saved.save());
    }

    proptest! {
        #[test]
        fn no_access_is_too_much(accesses in prop::collection::vec((0..WINDOW, prop::collection::vec(any::<u8>(), 0..9)), 0..200)) {
            let (ioapic, told) = ioapic();
            for (offset, mut data) in accesses {
                ioapic.write(offset % 0x20, &data);
                ioapic.read(offset, &mut data);
            }
            prop_assert!(told.0.lock().unwrap().0.len() <= LINES);
        }
    }
}
