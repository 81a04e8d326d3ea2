//! Guests of a few instructions.
// Not every test program uses all of them.
#![allow(dead_code)]

use std::path::PathBuf;

use msb_vmm::{Console, ConsoleLog, VmConfig};

const LOAD_ADDRESS: u64 = 0x10_0000;
/// Bytes of an ELF header and one program header.
const HEADERS: u64 = 64 + 56;
/// Address and size of code that guests share.
pub(crate) const SHARED_CODE: u64 = 2 << 20;

/// A configuration whose kernel is `code`, entered in 64-bit mode.
pub(crate) fn config(directory: &tempfile::TempDir, name: &str, code: &[u8]) -> VmConfig {
    let kernel = directory.path().join(name);
    std::fs::write(&kernel, elf(code, LOAD_ADDRESS, HEADERS)).unwrap();
    with_kernel(directory, name, kernel)
}

/// The same with `code` in a segment of a huge page, at [`SHARED_CODE`], which all with this kernel share.
pub(crate) fn sharing(directory: &tempfile::TempDir, name: &str, code: &[u8]) -> VmConfig {
    let kernel = directory.path().join("shared-kernel");
    let mut page = code.to_vec();
    page.resize(SHARED_CODE.try_into().unwrap(), 0);
    if !kernel.exists() {
        std::fs::write(&kernel, elf(&page, SHARED_CODE, SHARED_CODE)).unwrap();
    }
    VmConfig {
        share_code: true,
        ..with_kernel(directory, name, kernel)
    }
}

fn with_kernel(directory: &tempfile::TempDir, name: &str, kernel: PathBuf) -> VmConfig {
    VmConfig {
        vcpus: 1,
        memory_mib: 64,
        kernel,
        share_code: false,
        initramfs: Vec::new(),
        rom: None,
        cmdline: String::new(),
        console: Console::Log(ConsoleLog {
            path: directory.path().join(format!("{name}.log")),
            max_bytes: 1 << 16,
        }),
        vsock: None,
        disks: Vec::new(),
        file_systems: Vec::new(),
    }
}

/// An ELF file with one segment, which has `code` at this address and this offset.
fn elf(code: &[u8], address: u64, offset: u64) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [address, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    for half in [0, 0, 64, 56, 1, 0, 0, 0u16] {
        file.extend(half.to_le_bytes());
    }
    file.truncate(64);
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    let size = code.len() as u64;
    for word in [offset, address, address, size, size, 4096] {
        file.extend(word.to_le_bytes());
    }
    file.resize(offset.try_into().unwrap(), 0);
    file.extend(code);
    file
}

/// `lea rdi, …; out` for each byte of `text`, to the serial port.
pub(crate) fn print(text: &str) -> Vec<u8> {
    // mov dx, 0x3f8; then mov al, byte; out dx, al
    let mut code = vec![0x66, 0xba, 0xf8, 0x03];
    for byte in text.bytes() {
        code.extend([0xb0, byte, 0xee]);
    }
    code
}

/// `mov al, 0xfe; out 0x64, al`
pub(crate) const RESET: [u8; 4] = [0xb0, 0xfe, 0xe6, 0x64];
/// `cli; hlt; jmp` back to the `hlt`
pub(crate) const HALT_FOR_EVER: [u8; 4] = [0xfa, 0xf4, 0xeb, 0xfd];
/// `ud2`, with no handler for anything
pub(crate) const UNDEFINED: [u8; 2] = [0x0f, 0x0b];
