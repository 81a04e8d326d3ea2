//! Guests of a few instructions.
// Not every test program uses all of them.
#![allow(dead_code)]

use msb_vmm::{Console, ConsoleLog, VmConfig};

const LOAD_ADDRESS: u64 = 0x10_0000;

/// A configuration whose kernel is `code`, entered in 64-bit mode.
pub(crate) fn config(directory: &tempfile::TempDir, name: &str, code: &[u8]) -> VmConfig {
    let kernel = directory.path().join(name);
    std::fs::write(&kernel, elf(code)).unwrap();
    VmConfig {
        vcpus: 1,
        memory_mib: 64,
        kernel,
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

/// An ELF file with one segment.
fn elf(code: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    let code_offset = 64 + 56u64;
    for word in [LOAD_ADDRESS, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    for half in [0, 0, 64, 56, 1, 0, 0, 0u16] {
        file.extend(half.to_le_bytes());
    }
    file.truncate(64);
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    let size = code.len() as u64;
    for word in [code_offset, LOAD_ADDRESS, LOAD_ADDRESS, size, size, 4096] {
        file.extend(word.to_le_bytes());
    }
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
