//! Ed25519 key pairs in OpenSSH's formats: host keys made on the host, and the key `msb` logs in with.

mod short_scalar;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::{HashAlg, ssh_key};
pub use russh::keys::{PrivateKey, PublicKey};

use rustix::fs::OFlags;
use zeroize::Zeroizing;

use crate::atomic;

/// The largest file that is read as a private key, in bytes: one of RSA with 16384 bits has 13 KiB.
const MAX_PRIVATE_KEY: usize = 32 << 10;

/// Why a key could not be made, read or written.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The system gave no random bytes.
    #[error("the system gave no random bytes for a key")]
    Random(#[source] io::Error),
    /// The key cannot be put into OpenSSH's format.
    #[error("a key cannot be encoded in OpenSSH's format")]
    Encode(#[source] ssh_key::Error),
    /// A file could not be read.
    #[error("cannot read the key {}", path.display())]
    Read {
        /// The key's file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A file could not be written.
    #[error("cannot write the key {}", path.display())]
    Write {
        /// The key's file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A file holds no key.
    #[error("{} is no key in OpenSSH's format: remove it to have a new one made", path.display())]
    Malformed {
        /// The key's file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ssh_key::Error,
    },
    /// Others than the owner of a private key may use its file.
    #[error(
        "the permissions {mode:04o} of the private key {} are too open: take them from others with `chmod go= FILE`",
        path.display()
    )]
    Permissions {
        /// The key's file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A private key asks for a passphrase.
    #[error("the key {} is protected by a passphrase, which msb has no way to ask for", path.display())]
    Encrypted {
        /// The key's file.
        path: PathBuf,
    },
}

/// A private key with its public half.
#[derive(Clone, Debug)]
pub struct KeyPair(PrivateKey);

impl KeyPair {
    /// Makes an Ed25519 key from the system's random bytes.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn generate_ed25519(comment: &str) -> Result<Self, KeyError> {
        let mut seed = [0; 32];
        let filled = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
            .map_err(|errno| KeyError::Random(errno.into()))?;
        if filled != seed.len() {
            return Err(KeyError::Random(io::ErrorKind::UnexpectedEof.into()));
        }
        let data = KeypairData::from(Ed25519Keypair::from_seed(&seed));
        PrivateKey::new(data, comment).map(Self).map_err(KeyError::Encode)
    }

    /// Reads a private key in OpenSSH's format.
    ///
    /// # Errors
    /// When the file cannot be read, is no such key, or asks for a passphrase.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let text = std::fs::read(path)
            .map(Zeroizing::new)
            .map_err(|source| KeyError::Read {
                path: path.to_owned(),
                source,
            })?;
        Self::parse(path, &text)
    }

    /// As [`KeyPair::load`], from a file of the user's own: as ssh does, not from one that belongs to the user and that
    /// others may use, nor from one that is larger than any key's.
    ///
    /// # Errors
    /// As for [`KeyPair::load`], and when others may use the file.
    pub fn load_private(path: &Path) -> Result<Self, KeyError> {
        let read_error = |source| KeyError::Read {
            path: path.to_owned(),
            source,
        };
        // A pipe in its place must not hold anybody up.
        let open = File::options()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(path);
        let file = open.map_err(read_error)?;
        let metadata = file.metadata().map_err(read_error)?;
        if !metadata.is_file() {
            return Err(read_error(io::Error::other("it is no regular file")));
        }
        let mode = metadata.mode() & 0o7777;
        if metadata.uid() == rustix::process::getuid().as_raw() && mode & 0o077 != 0 {
            return Err(KeyError::Permissions {
                path: path.to_owned(),
                mode,
            });
        }
        let mut text = Zeroizing::new(Vec::with_capacity(MAX_PRIVATE_KEY));
        let limit = MAX_PRIVATE_KEY as u64;
        file.take(limit).read_to_end(&mut text).map_err(read_error)?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &[u8]) -> Result<Self, KeyError> {
        let key = PrivateKey::from_openssh(text).or_else(|source| {
            short_scalar::parse(text).ok_or_else(|| KeyError::Malformed {
                path: path.to_owned(),
                source,
            })
        })?;
        if key.is_encrypted() {
            return Err(KeyError::Encrypted { path: path.to_owned() });
        }
        Ok(Self(key))
    }

    /// Reads the key at `path`, or makes one there, with `path.pub` beside it. Of several processes that do so at once,
    /// all get the same key.
    ///
    /// # Errors
    /// When the key can be neither read nor made.
    pub fn load_or_create(path: &Path, comment: &str) -> Result<Self, KeyError> {
        match Self::load(path) {
            Err(KeyError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            loaded => return loaded,
        }
        let fresh = Self::generate_ed25519(comment)?;
        let write_error = |source| KeyError::Write {
            path: path.to_owned(),
            source,
        };
        if !atomic::create(path, 0o600, fresh.to_openssh()?.as_bytes()).map_err(write_error)? {
            return Self::load(path);
        }
        fresh.save_public(path)?;
        Ok(fresh)
    }

    /// Writes the private key to `path` and the public line to `path.pub`, both mode 0600 and each at once.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), KeyError> {
        atomic::replace(path, 0o600, self.to_openssh()?.as_bytes()).map_err(|source| KeyError::Write {
            path: path.to_owned(),
            source,
        })?;
        self.save_public(path)
    }

    fn save_public(&self, private: &Path) -> Result<(), KeyError> {
        let mut name = OsString::from(private);
        name.push(".pub");
        let path = PathBuf::from(name);
        let line = format!("{}\n", self.public_line());
        atomic::replace(&path, 0o600, line.as_bytes()).map_err(|source| KeyError::Write { path, source })
    }

    /// The private key in OpenSSH's format, wiped from memory when dropped.
    ///
    /// # Errors
    /// When the key cannot be encoded.
    pub fn to_openssh(&self) -> Result<Zeroizing<String>, KeyError> {
        self.0.to_openssh(LineEnding::LF).map_err(KeyError::Encode)
    }

    /// The public half as a line of `authorized_keys`: algorithm, key, comment; without a newline.
    pub fn public_line(&self) -> String {
        public_line(self.public_key())
    }

    /// The public half.
    pub fn public_key(&self) -> &PublicKey {
        self.0.public_key()
    }

    /// The private half.
    pub fn private_key(&self) -> &PrivateKey {
        &self.0
    }

    /// What `ssh-keygen -l` shows: `SHA256:` and the hash.
    pub fn fingerprint(&self) -> String {
        fingerprint(self.public_key())
    }
}

/// A public key as a line of `authorized_keys`, without a newline.
pub fn public_line(key: &PublicKey) -> String {
    key.to_openssh().expect("a public key that was parsed or made encodes")
}

/// What `ssh-keygen -l` shows of a key: `SHA256:` and the hash.
pub fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

/// Reads a file with one public key in OpenSSH's format, such as `host_key.pub`.
///
/// # Errors
/// When the file cannot be read or holds no such key.
pub fn load_public(path: &Path) -> Result<PublicKey, KeyError> {
    let text = std::fs::read_to_string(path).map_err(|source| KeyError::Read {
        path: path.to_owned(),
        source,
    })?;
    PublicKey::from_openssh(text.trim_end()).map_err(|source| KeyError::Malformed {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    fn ssh_keygen(arguments: &[&str], path: &Path) -> String {
        let output = Command::new("ssh-keygen").args(arguments).arg(path).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn openssh_reads_what_is_written_and_agrees_on_key_and_fingerprint() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("host_key");
        let pair = KeyPair::generate_ed25519("msb host key").unwrap();
        pair.save(&path).unwrap();

        assert_eq!(ssh_keygen(&["-y", "-f"], &path).trim_end(), pair.public_line());
        let public = directory.path().join("host_key.pub");
        let shown = ssh_keygen(&["-l", "-f"], &public);
        assert_eq!(shown.split(' ').nth(1), Some(pair.fingerprint().as_str()));
        for file in [&path, &public] {
            assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o7777, 0o600);
        }
        assert_eq!(KeyPair::load(&path).unwrap().public_line(), pair.public_line());
        assert_eq!(load_public(&public).unwrap(), *pair.public_key());
    }

    #[test]
    fn a_key_that_exists_is_loaded_and_never_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("client_key");
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let path = path.clone();
                std::thread::spawn(move || KeyPair::load_or_create(&path, "msb").unwrap().public_line())
            })
            .collect();
        let mut lines: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        lines.dedup();
        assert_eq!(lines, [KeyPair::load(&path).unwrap().public_line()]);
    }

    #[test]
    fn a_private_key_that_others_may_read_is_refused_as_ssh_does() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let pair = KeyPair::generate_ed25519("").unwrap();
        pair.save(&path).unwrap();
        assert_eq!(KeyPair::load_private(&path).unwrap().public_line(), pair.public_line());
        for mode in [0o640, 0o604, 0o620] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let error = KeyPair::load_private(&path).unwrap_err();
            assert!(matches!(error, KeyError::Permissions { .. }), "{error}");
        }
        assert!(matches!(
            KeyPair::load_private(directory.path()),
            Err(KeyError::Read { .. })
        ));
    }

    #[test]
    fn a_file_that_is_no_usable_key_is_named_in_the_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        assert!(matches!(KeyPair::load(&path), Err(KeyError::Read { .. })));
        std::fs::write(&path, "no key").unwrap();
        let error = KeyPair::load_or_create(&path, "").unwrap_err();
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        std::fs::remove_file(&path).unwrap();
        ssh_keygen(&["-q", "-t", "ed25519", "-N", "secret", "-f"], &path);
        assert!(matches!(KeyPair::load(&path), Err(KeyError::Encrypted { .. })));
    }
}
