//! What a VM costs its host.

use std::fs;

use rustix::process::Pid;

/// KiB of a VM's process, of its guest's memory and of all else (proc(5), smaps).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct VmMemory {
    /// Pages of the guest that this process alone has: of a fork, those that it wrote to.
    pub guest_private: u32,
    /// Resident, beyond the guest's memory.
    pub other_resident: u32,
    /// Of that, what no other process has.
    pub other_private: u32,
}

impl VmMemory {
    /// That of process `pid`, whose guest has `guest_mib` MiB of memory in one mapping.
    ///
    /// # Panics
    /// When the process does not live.
    pub fn of(pid: Pid, guest_mib: u64) -> Self {
        let path = format!("/proc/{}/smaps", pid.as_raw_nonzero());
        let smaps = fs::read_to_string(path).expect("the VM's process lives");
        Self::parse(&smaps, guest_mib)
    }

    fn parse(smaps: &str, guest_mib: u64) -> Self {
        let mut memory = Self::default();
        let mappings = mappings(smaps);
        // The kernel's code is mapped from another file than the rest, in its midst.
        let guest = mappings
            .chunk_by(|one, next| one.end == next.start && one.permissions == next.permissions)
            .find(|run| run.iter().map(|mapping| mapping.size).sum::<u64>() >= guest_mib << 10)
            .unwrap_or_default();
        // What the guest only reads is of a file of its own, or behind its saved memory.
        let saved = guest.first().and_then(|mapping| mapping.file);
        let is_rom = |mapping: &Mapping<'_>| {
            let file = mapping.file.unwrap_or_default();
            file.contains("/shared-") || (file.starts_with('/') && mapping.file == saved)
        };
        for mapping in &mappings {
            if guest.iter().any(|part| part.start == mapping.start) {
                // Pages of a saved memory that nobody else maps are private, too, though they are the file's.
                memory.guest_private += mapping.anonymous;
            } else if !is_rom(mapping) {
                memory.other_private += mapping.private;
                memory.other_resident += mapping.resident;
            }
        }
        memory
    }
}

/// A mapping of a process; sizes in KiB.
#[derive(Debug, Default)]
struct Mapping<'a> {
    start: &'a str,
    end: &'a str,
    permissions: &'a str,
    file: Option<&'a str>,
    size: u64,
    resident: u32,
    private: u32,
    anonymous: u32,
}

fn mappings(smaps: &str) -> Vec<Mapping<'_>> {
    let mut mappings: Vec<Mapping<'_>> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (Some(key), Some(value)) = (words.next(), words.next()) else {
            continue;
        };
        if !key.ends_with(':') {
            let (start, end) = key.split_once('-').unwrap_or_default();
            // Behind permissions come offset, device and inode.
            let file = words.nth(3);
            mappings.push(Mapping {
                start,
                end,
                permissions: value,
                file,
                ..Mapping::default()
            });
            continue;
        }
        let (Some(mapping), Ok(kib)) = (mappings.last_mut(), value.parse::<u32>()) else {
            continue;
        };
        match key {
            "Size:" => mapping.size = kib.into(),
            "Rss:" => mapping.resident = kib,
            "Anonymous:" => mapping.anonymous = kib,
            "Private_Clean:" | "Private_Dirty:" => mapping.private += kib,
            _ => {}
        }
    }
    mappings
}

/// Resident KiB of process `pid` outside its mapping of `guest_mib` MiB of guest memory.
///
/// # Panics
/// When the process does not live.
pub fn resident_beyond_guest(pid: Pid, guest_mib: u64) -> u32 {
    VmMemory::of(pid, guest_mib).other_resident
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_s_mapping_is_told_from_the_rest() {
        let smaps = "\
55d0-55e0 r-xp 00000000 00:01 1 /msb
Size:                 64 kB
Rss:                  60 kB
Private_Clean:        16 kB
Private_Dirty:         4 kB
7f00-7f10 rw-p 00000000 00:01 2 /memfd:guest (deleted)
Size:                512 kB
Rss:                 500 kB
Private_Clean:         0 kB
Private_Dirty:       400 kB
Anonymous:            20 kB
7f10-7f20 rw-p 00000000 00:01 2 /run/msb/shared-vmlinux-1
Size:                512 kB
Rss:                 400 kB
Private_Clean:         0 kB
Private_Dirty:       400 kB
Anonymous:            80 kB
8f00-8f10 r--s 00000000 00:01 3 /run/msb/shared-programs-1
Size:                512 kB
Rss:                 512 kB
Private_Clean:       512 kB
9f00-9f10 r--s 00100000 00:01 2 /memfd:guest (deleted)
Size:                512 kB
Rss:                 512 kB
Private_Clean:       512 kB
";
        let expected = VmMemory {
            guest_private: 100,
            other_resident: 60,
            other_private: 20,
        };
        assert_eq!(VmMemory::parse(smaps, 1), expected);
    }
}
