//! What an endpoint of the host's wants its one connection to be served with: sent ahead of it to
//! [`ports::PREPARED_SSH`](crate::ports::PREPARED_SSH).
//!
//! The host sends one [frame](crate::frame) and nothing more until the agent's one [`Answer`] came; then the stream is SSH's.
//! The options are signed with the sandbox's own host key, which the host and the agent alone have: whoever else can
//! connect, on either side, can say nothing here.

use zeroize::Zeroizing;

use crate::frame::MAX_FRAME;
use crate::wire::{Malformed, Reader, frame};

/// The version of this protocol, which is the kind of the frame.
pub const VERSION: u8 = 1;

/// What the signature is for, as `ssh-keygen -Y sign -n` has it.
pub const NAMESPACE: &str = "server-preamble@msb";

/// The longest file of authorized keys, in bytes: with all that comes with it, it fits a frame.
pub const MAX_AUTHORIZED_KEYS: usize = MAX_FRAME - (64 << 10);

/// The most bytes of an [`Answer`]'s frame after its length.
pub const MAX_ANSWER: usize = 2;

const OPTIONS: u8 = 1;
const ACCEPTED: u8 = 1;
const REFUSED: u8 = 2;

/// Bytes that a frame has beside its variable fields, and some.
const OVERHEAD: usize = 64;

/// What one connection is served with.
#[derive(Clone, Eq, PartialEq)]
pub struct ServerOptions {
    /// The private host key in OpenSSH's format, without a passphrase, in the place of the sandbox's.
    pub host_key: Option<Zeroizing<String>>,
    /// The keys that alone may log in, in the format of sshd's `authorized_keys`, in the place of the sandbox's and the users'.
    pub authorized_keys: Option<Vec<u8>>,
    /// The user that everything runs as, whomever the client names.
    pub user: Option<String>,
    /// Whether there is SFTP, if the sandbox has it.
    pub sftp: bool,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            host_key: None,
            authorized_keys: None,
            user: None,
            sftp: true,
        }
    }
}

/// Without the secret.
impl std::fmt::Debug for ServerOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerOptions")
            .field("user", &self.user)
            .field("sftp", &self.sftp)
            .finish_non_exhaustive()
    }
}

impl ServerOptions {
    /// What is signed.
    pub fn to_message(&self) -> Zeroizing<Vec<u8>> {
        let host_key = self.host_key.as_ref().map_or(0, |key| key.len());
        let rest = self.authorized_keys.as_ref().map_or(0, Vec::len) + self.user.as_ref().map_or(0, String::len);
        // With all the room at once, no copy of the key is left behind.
        let mut framed = Zeroizing::new(Vec::with_capacity(host_key + rest + OVERHEAD));
        frame(&mut framed, OPTIONS, |out| {
            out.option(self.host_key.as_ref(), |out, key| out.bytes(key.as_bytes()));
            out.option(self.authorized_keys.as_ref(), |out, keys| out.bytes(keys));
            out.option(self.user.as_ref(), |out, user| out.bytes(user.as_bytes()));
            out.bool(self.sftp);
        });
        Zeroizing::new(framed[4..].to_vec())
    }

    /// Reads what was signed.
    ///
    /// # Errors
    /// When it is no such message.
    pub fn from_message(message: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Reader::new(message)?;
        if fields.kind() != OPTIONS {
            return Err(Malformed::Kind(fields.kind()));
        }
        let options = Self {
            host_key: fields.option(|fields| fields.text().map(Zeroizing::new))?,
            authorized_keys: fields.option(Reader::bytes)?,
            user: fields.option(Reader::text)?,
            sftp: fields.bool()?,
        };
        fields.end()?;
        Ok(options)
    }
}

/// Options with their signature.
#[derive(Clone, Eq, PartialEq)]
pub struct Preamble {
    /// The signature of `options` by the sandbox's host key for [`NAMESPACE`], in the PEM format of `ssh-keygen -Y sign`.
    pub signature: String,
    /// A [message](ServerOptions::to_message).
    pub options: Zeroizing<Vec<u8>>,
}

/// Without the secret.
impl std::fmt::Debug for Preamble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Preamble").finish_non_exhaustive()
    }
}

impl Preamble {
    /// The frame with its length. One longer than [`MAX_FRAME`] is refused by its reader.
    pub fn to_frame(&self) -> Zeroizing<Vec<u8>> {
        let length = self.signature.len() + self.options.len() + OVERHEAD;
        let mut out = Zeroizing::new(Vec::with_capacity(length));
        frame(&mut out, VERSION, |out| {
            out.bytes(self.signature.as_bytes());
            out.bytes(&self.options);
        });
        out
    }

    /// Reads a frame without its length.
    ///
    /// # Errors
    /// When it is of another version, or malformed.
    pub fn from_frame(frame: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Reader::new(frame)?;
        if fields.kind() != VERSION {
            return Err(Malformed::Kind(fields.kind()));
        }
        let preamble = Self {
            signature: fields.text()?,
            options: Zeroizing::new(fields.bytes()?),
        };
        fields.end()?;
        Ok(preamble)
    }
}

/// Why a preamble is not served.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// It is none of this version, or too long.
    #[error("the guest's agent cannot read the options: it is of another version; start the sandbox again")]
    Malformed,
    /// The host key did not sign it.
    #[error("the options are not signed with the sandbox's own host key")]
    Signature,
    /// The host key cannot be used.
    #[error("the guest's agent cannot use the host key")]
    HostKey,
    /// None of the keys may log in.
    #[error("no line of the authorized keys admits a key; the guest's console says why")]
    AuthorizedKeys,
    /// The guest does not have the user.
    #[error("the guest has no such user, or may not become it")]
    User,
}

impl Refusal {
    /// All there are, the one with the number 0 first.
    const ALL: [Self; 5] = [
        Self::Malformed,
        Self::Signature,
        Self::HostKey,
        Self::AuthorizedKeys,
        Self::User,
    ];
}

/// What the agent says to a preamble.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    /// SSH follows.
    Accepted,
    /// The end follows.
    Refused(Refusal),
}

impl Answer {
    /// The frame with its length.
    pub fn to_frame(self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Accepted => frame(&mut out, ACCEPTED, |_| {}),
            Self::Refused(refusal) => {
                let number = (0..).zip(Refusal::ALL).find(|(_, each)| *each == refusal);
                let (number, _) = number.expect("all are in the list");
                frame(&mut out, REFUSED, |out| out.u8(number));
            }
        }
        out
    }

    /// Reads a frame without its length.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn from_frame(frame: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Reader::new(frame)?;
        let answer = match fields.kind() {
            ACCEPTED => Self::Accepted,
            REFUSED => {
                let refusal = Refusal::ALL.get(usize::from(fields.u8()?));
                Self::Refused(*refusal.ok_or(fields.field_error())?)
            }
            other => return Err(Malformed::Kind(other)),
        };
        fields.end()?;
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn options() -> impl Strategy<Value = ServerOptions> {
        let (key, keys) = (".{0,80}", prop::collection::vec(any::<u8>(), 0..80));
        let fields = (
            prop::option::of(key),
            prop::option::of(keys),
            prop::option::of(".{0,20}"),
            any::<bool>(),
        );
        fields.prop_map(|(host_key, authorized_keys, user, sftp)| ServerOptions {
            host_key: host_key.map(Zeroizing::new),
            authorized_keys,
            user,
            sftp,
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_no_part_of_it(options in options(), signature in ".{0,40}") {
            let message = options.to_message();
            prop_assert_eq!(&ServerOptions::from_message(&message).unwrap(), &options);
            let preamble = Preamble { signature, options: message };
            let framed = preamble.to_frame();
            let frame = &framed[4..];
            prop_assert_eq!(u32::from_be_bytes(framed[..4].try_into().unwrap()), u32::try_from(frame.len()).unwrap());
            prop_assert_eq!(&Preamble::from_frame(frame).unwrap(), &preamble);
            for end in 0..frame.len() {
                prop_assert!(Preamble::from_frame(&frame[..end]).is_err());
            }
            for end in 0..preamble.options.len() {
                prop_assert!(ServerOptions::from_message(&preamble.options[..end]).is_err());
            }
            prop_assert!(Preamble::from_frame(&[frame, &[0]].concat()).is_err());
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Preamble::from_frame(&bytes);
            let _ = ServerOptions::from_message(&bytes);
            let _ = Answer::from_frame(&bytes);
        }
    }

    #[test]
    fn answers_survive_their_frames() {
        let refusals = Refusal::ALL.map(Answer::Refused);
        for answer in refusals.into_iter().chain([Answer::Accepted]) {
            let framed = answer.to_frame();
            assert!(framed.len() <= 4 + MAX_ANSWER);
            assert_eq!(Answer::from_frame(&framed[4..]), Ok(answer));
        }
        assert_eq!(Answer::from_frame(&[REFUSED, 200]), Err(Malformed::Field(REFUSED)));
    }

    #[test]
    fn another_version_is_told_from_nonsense() {
        let next = Preamble::from_frame(&[VERSION + 1, 1, 2, 3]);
        assert_eq!(next, Err(Malformed::Kind(VERSION + 1)));
    }

    #[test]
    fn secrets_are_not_shown() {
        let options = ServerOptions {
            host_key: Some(Zeroizing::new("PRIVATE".into())),
            ..ServerOptions::default()
        };
        let preamble = Preamble {
            signature: String::new(),
            options: options.to_message(),
        };
        let shown = format!("{options:?} {preamble:?}");
        assert!(!shown.contains("PRIVATE") && !shown.contains("80, 82, 73"), "{shown}");
    }
}
