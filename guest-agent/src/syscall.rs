//! System calls that are made through the C library.

use std::io;

/// Turns what a system call returned, which is negative when it failed, into a result.
pub(crate) fn check(returned: impl Into<libc::c_long>) -> io::Result<()> {
    if returned.into() < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
