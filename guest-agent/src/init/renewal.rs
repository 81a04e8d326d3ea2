//! Makes a restored guest another one than that which it was saved from.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use msb_protocol::renewal::{ENTROPY, Renewal};

use super::{degraded, root, system};
use crate::session::{Settings, SettingsError};
use crate::syscall::check;

const MACHINE_ID: &str = "/etc/machine-id";

/// `_IOW('R', 0x03, int[2])`: adds bytes to the kernel's entropy and counts them.
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
/// `_IO('R', 0x07)`: seeds the kernel's generator anew from its entropy.
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;

/// `struct rand_pool_info` (random(4)).
#[repr(C)]
struct PoolInfo {
    entropy_bits: libc::c_int,
    bytes: libc::c_int,
    buffer: [u8; ENTROPY],
}

/// Applies `renewal` and returns what sessions are served with from now on. The random numbers come first, because what
/// follows may use them; what fails but a host key is said and done without.
pub(super) fn apply(renewal: Renewal) -> Result<Settings, SettingsError> {
    let Renewal {
        entropy,
        machine_id,
        host_key,
        authorized_keys,
        config,
    } = renewal;
    let report = |what: &str, result: io::Result<()>| {
        if let Err(error) = result {
            degraded(what, &error);
        }
    };
    report("cannot renew the kernel's random numbers", reseed(entropy));
    report(
        "cannot set the clock",
        system::set_clock(config.realtime, Duration::ZERO),
    );
    report("cannot set the host name", system::set_hostname(&config.hostname));
    if config.image.is_some() {
        root::name(&config.hostname);
    }
    report(
        "cannot renew the machine id",
        renew_machine_id(Path::new(MACHINE_ID), &machine_id),
    );
    super::settings(host_key.as_bytes(), authorized_keys.as_bytes(), config)
}

/// Has the kernel's generator go on where no other guest's does.
fn reseed(entropy: [u8; ENTROPY]) -> io::Result<()> {
    let device = File::options().write(true).open("/dev/urandom")?;
    let length = libc::c_int::try_from(ENTROPY).expect("32 bytes");
    let info = PoolInfo {
        entropy_bits: length * 8,
        bytes: length,
        buffer: entropy,
    };
    // SAFETY: the argument is what the request reads: two lengths and as many bytes.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &raw const info) })?;
    // SAFETY: the request takes no argument.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) })
}

/// Replaces the identifier of an image that has one; one that is empty is to be filled by the image itself.
fn renew_machine_id(path: &Path, machine_id: &str) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(file) if file.len() > 0 => fs::write(path, format!("{machine_id}\n")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_image_with_a_machine_id_gets_a_new_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("machine-id");
        renew_machine_id(&path, "new").unwrap();
        assert!(!path.exists());
        fs::write(&path, "").unwrap();
        renew_machine_id(&path, "new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
        fs::write(&path, "old\n").unwrap();
        renew_machine_id(&path, "new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new\n");
    }
}
