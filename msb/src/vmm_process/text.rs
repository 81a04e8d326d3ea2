//! The program's code in the memory of one process.

use std::ffi::{c_int, c_void};

use rustix::mm::{Advice, madvise};

const PAGE: usize = 4096;

/// Unmaps the pages of the program's code and constants, which the kernel maps again where they are touched, from the page
/// cache: what only a start took is no longer this process's. Nothing else changes, also if the kernel refuses.
pub(super) fn release() {
    // SAFETY: the callback has the signature and keeps nothing.
    unsafe { libc::dl_iterate_phdr(Some(release_object), std::ptr::null_mut()) };
}

/// Called for each object of the process: a static program is one.
unsafe extern "C" fn release_object(object: *mut libc::dl_phdr_info, _size: usize, _data: *mut c_void) -> c_int {
    // SAFETY: the C library gives a valid description, for the time of the call.
    let object = unsafe { &*object };
    // SAFETY: this many headers are there, and they stay as long as the program.
    let headers = unsafe { std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()) };
    let addresses = |header: &libc::Elf64_Phdr| {
        let start = usize::try_from(object.dlpi_addr + header.p_vaddr).ok()?;
        let end = start.checked_add(usize::try_from(header.p_memsz).ok()?)?;
        Some((start & !(PAGE - 1), end))
    };
    let is_constant = |header: &&libc::Elf64_Phdr| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0;
    for (start, end) in headers.iter().filter(is_constant).filter_map(addresses) {
        // SAFETY: nobody writes to these pages, so each is as in the file, and is read from there when it is touched.
        let _ = unsafe {
            madvise(
                std::ptr::with_exposed_provenance_mut(start),
                end - start,
                Advice::LinuxDontNeed,
            )
        };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_goes_on_after_its_code_was_unmapped() {
        let resident = || {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            // proc(5): the third number is resident file pages.
            statm.split(' ').nth(2).unwrap().parse::<u64>().unwrap()
        };
        let before = resident();
        release();
        assert!(resident() < before);
        assert_eq!(format!("{:?}", [1, 2]), "[1, 2]");
    }
}
