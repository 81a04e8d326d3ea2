//! A driver that breaks every rule: run as root in a guest, it takes the virtio devices away from the kernel's drivers and
//! attacks them through /dev/mem. What it says goes to the kernel's log, because its own vsock does not survive it.
//!
//! `hostile SEED ROUNDS`
//!
//! The same seed makes the same moves. Buffers that a device may write lie in this program's own pages or where there is no
//! memory, so that the guest survives what its devices do.

mod attack;
mod pages;
mod random;
mod window;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};

use attack::Attacker;
use pages::Pages;
use random::Random;
use window::Window;

/// Where the VMM has its virtio-mmio windows, a page each.
const WINDOWS: u64 = 0xd000_0000;
/// More than there are devices: what is behind the last one is tried, too.
const TRIED: u64 = 7;
/// Rounds between two lines of the log.
const STRIDE: u64 = 500;

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>());
    let (Some(Ok(seed)), Some(Ok(rounds))) = (arguments.next(), arguments.next()) else {
        return Err(io::Error::other("usage: hostile SEED ROUNDS"));
    };
    let mut log = OpenOptions::new().write(true).open("/dev/kmsg")?;
    let windows: Vec<Window> = (0..TRIED)
        .map(|index| Window::map(WINDOWS + index * 0x1000))
        .collect::<io::Result<_>>()?;
    let mut attacker = Attacker {
        random: Random::new(seed),
        pages: Pages::lock()?,
    };
    for round in 1..=rounds {
        attacker.attack(&windows);
        if round % STRIDE == 0 {
            say(&mut log, &format!("{round} rounds"))?;
        }
    }
    let devices = windows.iter().filter(|window| window.is_device()).count();
    say(&mut log, &format!("done, {devices} windows"))
}

/// Says something in the kernel's log. A line is a single write, and is shown once it has its end.
fn say(log: &mut File, what: &str) -> io::Result<()> {
    log.write_all(format!("<2>hostile: {what}\n").as_bytes())
}
