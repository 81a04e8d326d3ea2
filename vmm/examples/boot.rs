//! Boots a kernel and an initramfs, and prints the console when the guest has ended.
//!
//! `cargo run --example boot -- VMLINUX INITRAMFS[,INITRAMFS...] [VSOCK_PATH [CMDLINE...]]`

use std::path::PathBuf;

use msb_vmm::{Console, ConsoleLog, Initramfs, Vm, VmConfig, VsockConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(kernel), Some(initramfs)) = (arguments.next(), arguments.next()) else {
        return Err("usage: boot VMLINUX INITRAMFS[,INITRAMFS...] [VSOCK_PATH [CMDLINE...]]".into());
    };
    let vsock = arguments.next();
    let console = std::env::temp_dir().join(format!("boot-{}.log", std::process::id()));
    let vm = Vm::build(&VmConfig {
        vcpus: 1,
        memory_mib: 256,
        kernel: PathBuf::from(kernel),
        share_code: false,
        initramfs: initramfs.split(',').map(|path| Initramfs::File(path.into())).collect(),
        rom: None,
        cmdline: arguments.collect::<Vec<_>>().join(" "),
        console: Console::Log(ConsoleLog {
            path: console.clone(),
            max_bytes: 1 << 20,
        }),
        vsock: vsock.map(|path| VsockConfig::new(3, path)),
        disks: Vec::new(),
        file_systems: Vec::new(),
    })?;
    let running = vm.start()?;
    println!("{:?}", running.wait());
    println!("{:?}", running.exit_counts());
    print!("{}", std::fs::read_to_string(&console)?);
    Ok(std::fs::remove_file(&console)?)
}
