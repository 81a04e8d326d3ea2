//! The moves.

use crate::pages::{PAGE, Pages};
use crate::random::Random;
use crate::window::{SIZE, Window};

// Registers (virtio 1.2, section 4.2.2).
const DEVICE_FEATURES: u64 = 0x10;
const DEVICE_FEATURES_SEL: u64 = 0x14;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SEL: u64 = 0x24;
const QUEUE_SEL: u64 = 0x30;
const QUEUE_NUM: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const QUEUE_NOTIFY: u64 = 0x50;
const STATUS: u64 = 0x70;
/// Descriptor table, available ring, used ring: low and high half each.
const QUEUE_ADDRESSES: [u64; 3] = [0x80, 0x90, 0xa0];

const READY_FOR_QUEUES: [u32; 4] = [0, 1, 3, 11];
const DRIVER_OK: u32 = 15;
const QUEUES: u32 = 3;

// Flags of a descriptor.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Descriptors in a table that fills a page.
const TABLE: u16 = 256;

/// Entries of a table and of a ring that change between two notifications.
const AT_ONCE: usize = 24;

/// Bytes of a request to a file system, with its header of 40.
const FUSE_REQUEST: u32 = 64;

pub(crate) struct Attacker {
    pub(crate) random: Random,
    pub(crate) pages: Pages,
}

impl Attacker {
    pub(crate) fn attack(&mut self, windows: &[Window]) {
        let index = usize::try_from(self.random.below(windows.len() as u64)).expect("an index");
        let window = &windows[index];
        match self.random.below(8) {
            0 => self.poke(window),
            1 => self.peek(window),
            2 => self.notify(window),
            3 => window.write(STATUS, self.random.awkward()),
            _ => self.drive(window),
        }
    }

    /// Any register, any value.
    fn poke(&mut self, window: &Window) {
        let end = if self.random.one_in(4) { SIZE } else { 0x110 };
        let offset = self.random.below(end);
        if self.random.one_in(4) {
            let two = self.random.one_in(2);
            window.write_narrow(offset, self.random.any_u16(), two);
        } else {
            window.write(offset, self.random.awkward());
        }
    }

    fn peek(&mut self, window: &Window) {
        let _ = window.read(self.random.below(SIZE));
    }

    fn notify(&mut self, window: &Window) {
        let queue = if self.random.one_in(4) {
            self.random.awkward()
        } else {
            self.queue()
        };
        window.write(QUEUE_NOTIFY, queue);
    }

    fn queue(&mut self) -> u32 {
        self.random.below_u32(QUEUES)
    }

    /// As a driver would, with something wrong now and then, and nonsense in the queues.
    fn drive(&mut self, window: &Window) {
        for status in READY_FOR_QUEUES {
            window.write(STATUS, status);
            if status == 3 {
                self.negotiate(window);
            }
        }
        for queue in 0..QUEUES {
            self.set_up(window, queue);
        }
        window.write(STATUS, DRIVER_OK);
        for _ in 0..=self.random.below(4) {
            for queue in 0..QUEUES {
                self.fill(queue.into());
            }
            self.notify(window);
            if self.random.one_in(8) {
                let queue = self.queue();
                self.set_up(window, queue);
            }
        }
    }

    fn negotiate(&mut self, window: &Window) {
        for half in 0..2 {
            window.write(DEVICE_FEATURES_SEL, half);
            let offered = window.read(DEVICE_FEATURES);
            window.write(DRIVER_FEATURES_SEL, half);
            let wanted = if self.random.one_in(8) {
                self.random.awkward()
            } else {
                u32::MAX
            };
            window.write(DRIVER_FEATURES, offered & wanted);
        }
    }

    /// Queue `n` has its table in page 3n, its rings in the two behind.
    fn set_up(&mut self, window: &Window, queue: u32) {
        window.write(QUEUE_SEL, queue);
        let size = if self.random.one_in(4) {
            self.random.awkward()
        } else {
            1 << self.random.below(9)
        };
        window.write(QUEUE_NUM, size);
        for (part, register) in (0u64..).zip(QUEUE_ADDRESSES) {
            let own = self.pages.physical(u64::from(queue) * 3 + part);
            let address = if self.random.one_in(12) { self.nowhere() } else { own };
            let misaligned = if self.random.one_in(16) {
                self.random.below(16)
            } else {
                0
            };
            let address = address.wrapping_add(misaligned);
            window.write(register, low(address));
            window.write(register + 4, low(address >> 32));
        }
        window.write(QUEUE_READY, u32::from(!self.random.one_in(16)));
    }

    /// An address where there is no memory, or where it ends.
    fn nowhere(&mut self) -> u64 {
        let end = 256 << 20;
        let any = self.random.next() | (1 << 40);
        self.random.pick(&[
            end - 8,
            end,
            0xd000_0000,
            0xffff_fff0,
            1 << 32,
            u64::MAX - 15,
            !0xfff,
            any,
        ])
    }

    /// Changes table and available ring of a queue here and there.
    fn fill(&mut self, queue: u64) {
        let first = queue * 3;
        for _ in 0..AT_ONCE {
            let index = self.random.below_u16(TABLE);
            let (address, len) = self.buffer();
            let mut flags = self.random.any_u16() & (NEXT | WRITE);
            if self.random.one_in(8) {
                flags |= INDIRECT;
            }
            if self.random.one_in(64) {
                flags = self.random.any_u16();
            }
            let next = if self.random.one_in(8) {
                self.random.any_u16()
            } else {
                self.random.below_u16(TABLE)
            };
            self.pages
                .put(first, usize::from(index) * 16, &descriptor(address, len, flags, next));
        }
        for _ in 0..AT_ONCE {
            let index = self.random.below_u16(TABLE);
            let head = self.random.below_u16(TABLE + 4);
            self.pages
                .put(first + 1, 4 + usize::from(index) * 2, &head.to_le_bytes());
        }
        let available = if self.random.one_in(4) {
            self.random.any_u16()
        } else {
            self.random.below_u16(TABLE)
        };
        self.pages.put(first + 1, 0, &self.random.below_u16(2).to_le_bytes());
        self.pages.put(first + 1, 2, &available.to_le_bytes());
    }

    /// A buffer with a packet's or a request's header, a table of descriptors, or nothing in it.
    fn buffer(&mut self) -> (u64, u32) {
        if self.random.one_in(16) {
            return (self.nowhere(), self.random.awkward());
        }
        // The first pages are the queues: now and then, a device shall write into its own.
        let page = if self.random.one_in(32) {
            self.random.below(9)
        } else {
            9 + self.random.below(self.pages.count() - 9)
        };
        let offset = if self.random.one_in(4) {
            self.random.below(PAGE as u64 - 64)
        } else {
            0
        };
        let at = usize::try_from(offset).expect("below a page");
        match self.random.below(5) {
            0 => self.vsock_header(page, at),
            1 => self.block_header(page, at),
            2 => self.fuse_request(page, at),
            3 => {
                let (to, len) = (self.pages.physical(page), self.random.awkward() & 0xfff);
                let flags = self.random.below_u16(8);
                self.pages
                    .put(page, at, &descriptor(to, len, flags, self.random.below_u16(8)));
            }
            _ => {}
        }
        // To the end of the page: what lies behind it is not this program's.
        let room = low(PAGE as u64 - offset);
        let len = self.random.pick(&[16, 44, FUSE_REQUEST, 512, room]).min(room);
        (self.pages.physical(page) + offset, len)
    }

    fn vsock_header(&mut self, page: u64, at: usize) {
        let mut header = Vec::with_capacity(44);
        let source = self.random.pick(&[3u64, 3, 3, 2, u64::MAX]);
        let target = self.random.pick(&[2u64, 2, 2, 3, 1 << 40]);
        header.extend(source.to_le_bytes());
        header.extend(target.to_le_bytes());
        for _ in 0..2 {
            let port = self.random.pick(&[22, 1024, 1 << 30, (1 << 30) + 1]);
            header.extend(u32::to_le_bytes(port));
        }
        header.extend(self.random.awkward().to_le_bytes());
        header.extend(self.random.pick(&[1u16, 1, 1, 2, 0xffff]).to_le_bytes());
        header.extend(self.random.below_u16(10).to_le_bytes());
        header.extend(self.random.below_u32(5).to_le_bytes());
        header.extend(self.random.awkward().to_le_bytes());
        header.extend(self.random.awkward().to_le_bytes());
        self.pages.put(page, at, &header);
    }

    fn block_header(&mut self, page: u64, at: usize) {
        let mut header = Vec::with_capacity(16);
        header.extend(self.random.pick(&[0u32, 1, 4, 8, 11, 13, u32::MAX]).to_le_bytes());
        header.extend(self.random.awkward().to_le_bytes());
        let sector = self.random.pick(&[0, 1, 7, 127, 128, u64::MAX, u64::MAX >> 9, 1 << 55]);
        header.extend(sector.to_le_bytes());
        self.pages.put(page, at, &header);
    }

    /// A request to a file system (linux/fuse.h), mostly true about its length, of numbers or of a name.
    fn fuse_request(&mut self, page: u64, at: usize) {
        let awkward = self.random.awkward();
        let length = self
            .random
            .pick(&[FUSE_REQUEST, FUSE_REQUEST, FUSE_REQUEST, 44, awkward]);
        let mut request = Vec::with_capacity(64);
        request.extend(length.to_le_bytes());
        request.extend(self.random.below_u32(54).to_le_bytes());
        request.extend(self.random.below(4).to_le_bytes());
        request.extend(self.random.pick(&[1u64, 1, 1, 2, u64::MAX]).to_le_bytes());
        request.extend([0; 16]);
        let name: &[u8] = self.random.pick(&[b"..\0", b"new\0", b"/\0", b"../secret\0", b"\0"]);
        if self.random.one_in(2) {
            request.extend(name);
        } else {
            for _ in 0..2 {
                let number = self.random.awkward();
                request.extend(self.random.pick(&[1, 1 << 31, number]).to_le_bytes());
            }
            request.extend([0; 8]);
            request.extend(name);
        }
        request.resize(64, 0);
        self.pages.put(page, at, &request);
    }
}

/// The low half.
fn low(address: u64) -> u32 {
    u32::try_from(address & u64::from(u32::MAX)).expect("32 bits")
}

fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}
