//! Who a guest is from now on, when it was restored from the state of another: the answer to
//! [`Notice::Restored`](crate::notice::Notice::Restored), on the same connection.
//!
//! The length of what follows as four bytes, little endian, then a [`Renewal`] as JSON.

use std::io::{self, Read};

use serde::{Deserialize, Serialize};

use crate::identity::GuestConfig;

/// The longest JSON either side writes or accepts, in bytes.
pub const MAX_LENGTH: usize = 1 << 20;

/// Random bytes in a [`Renewal`]: what a generator of the kernel is seeded with.
pub const ENTROPY: usize = 32;

/// All that a restored guest must not have in common with the one it was saved from.
#[derive(Clone, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Renewal {
    /// Random bytes that no other guest gets: both go on with the same state of the kernel's generator otherwise.
    pub entropy: [u8; ENTROPY],
    /// The identifier for `/etc/machine-id`, 32 hexadecimal digits.
    pub machine_id: String,
    /// Private host key in OpenSSH format.
    pub host_key: String,
    /// Public keys that may log in, in the format of sshd's `authorized_keys`.
    pub authorized_keys: String,
    /// Host name, environment, time and features. The time is that of the message.
    pub config: GuestConfig,
}

/// Without the secrets.
impl std::fmt::Debug for Renewal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Renewal")
            .field("machine_id", &self.machine_id)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Renewal {
    /// The message.
    ///
    /// # Errors
    /// When it is longer than [`MAX_LENGTH`], which only very many keys make it.
    pub fn to_message(&self) -> io::Result<Vec<u8>> {
        let json = serde_json::to_vec(self)?;
        if json.len() > MAX_LENGTH {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("an identity of {} bytes is longer than {MAX_LENGTH}", json.len()),
            ));
        }
        let length = u32::try_from(json.len()).map_err(io::Error::other)?;
        Ok([length.to_le_bytes().to_vec(), json].concat())
    }

    /// Reads one message.
    ///
    /// # Errors
    /// When the source ends or fails, the message is too long, or it is none.
    pub fn read(mut source: impl Read) -> io::Result<Self> {
        let mut length = [0; 4];
        source.read_exact(&mut length)?;
        let length = usize::try_from(u32::from_le_bytes(length)).map_err(io::Error::other)?;
        if length > MAX_LENGTH {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut json = vec![0; length];
        source.read_exact(&mut json)?;
        Ok(serde_json::from_slice(&json)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn renewal() -> Renewal {
        Renewal {
            entropy: [7; ENTROPY],
            machine_id: "0".repeat(32),
            host_key: "PRIVATE".into(),
            authorized_keys: "ssh-ed25519 AAAA\n".into(),
            config: GuestConfig {
                hostname: "fork".into(),
                ..GuestConfig::default()
            },
        }
    }

    #[test]
    fn a_renewal_survives_its_message_and_hides_its_key() {
        let message = renewal().to_message().unwrap();
        assert_eq!(Renewal::read(message.as_slice()).unwrap(), renewal());
        assert!(!format!("{:?}", renewal()).contains("PRIVATE"));
    }

    #[test]
    fn a_message_that_is_cut_off_or_too_long_is_refused() {
        let message = renewal().to_message().unwrap();
        for end in 0..message.len() {
            Renewal::read(&message[..end]).unwrap_err();
        }
        let too_long = u32::try_from(MAX_LENGTH + 1).unwrap().to_le_bytes();
        assert_eq!(
            Renewal::read(&too_long[..]).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}
