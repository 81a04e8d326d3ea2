//! Whether a process of a name runs.

use std::fs;
use std::io;

/// The name is that of the kernel (proc_pid_comm(5)) or the last one of the path that the process was called by.
pub(super) fn is_running(name: &[u8]) -> io::Result<bool> {
    for entry in fs::read_dir("/proc")? {
        let process = entry?.path();
        // What has ended meanwhile has no name any more.
        let comm = fs::read(process.join("comm")).unwrap_or_default();
        let comm = comm.trim_ascii_end();
        if !comm.is_empty() && comm == name {
            return Ok(true);
        }
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        let program = line.split(|&byte| byte == 0).next().unwrap_or_default();
        if !program.is_empty() && program.rsplit(|&byte| byte == b'/').next() == Some(name) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_by_its_name_alone() {
        let own = std::env::current_exe().unwrap();
        let name = own.file_name().unwrap().as_encoded_bytes();
        assert!(is_running(name).unwrap());
        assert!(!is_running(&name[1..]).unwrap());
        assert!(!is_running(b"").unwrap());
    }
}
