//! What a VM costs its host.

use std::fs;

use rustix::process::Pid;

/// Resident KiB of process `pid` outside its mapping of `guest_mib` MiB of guest memory (proc(5), smaps).
///
/// # Panics
/// When the process does not live.
pub fn resident_beyond_guest(pid: Pid, guest_mib: u64) -> u32 {
    let path = format!("/proc/{}/smaps", pid.as_raw_nonzero());
    let smaps = fs::read_to_string(path).expect("the VM's process lives");
    let mut size = 0;
    let mut resident = 0;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (Some(key), Some(value)) = (words.next(), words.next()) else {
            continue;
        };
        let kib = value.parse::<u32>().unwrap_or(0);
        match key {
            "Size:" => size = kib,
            "Rss:" if u64::from(size) < guest_mib << 10 => resident += kib,
            _ => {}
        }
    }
    resident
}
