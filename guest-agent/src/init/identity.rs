//! Takes the identity that the host prepared: reads it once and removes it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use msb_protocol::identity::{AUTHORIZED_KEYS, CONFIG, DIRECTORY, GuestConfig, HOST_CERTIFICATE, HOST_KEY};

use super::degraded;

/// Who this guest is.
pub(super) struct Identity {
    pub(super) host_key: Vec<u8>,
    pub(super) host_certificate: Option<Vec<u8>>,
    pub(super) authorized_keys: Vec<u8>,
    pub(super) config: GuestConfig,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file is missing or unreadable.
    #[error("cannot read {path}: the initramfs needs the archive that the host makes for each guest")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The configuration does not fit this agent.
    #[error("{path} is no configuration of this agent's version")]
    Config {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// Reads the identity and removes its directory.
pub(super) fn take() -> Result<Identity, IdentityError> {
    let directory = Path::new(DIRECTORY);
    let identity = read(directory)?;
    if let Err(error) = fs::remove_dir_all(directory) {
        degraded(&format!("cannot remove {DIRECTORY}"), &error);
    }
    Ok(identity)
}

fn read(directory: &Path) -> Result<Identity, IdentityError> {
    let file = |name: &str| {
        let path = directory.join(name);
        fs::read(&path).map_err(|source| IdentityError::Read { path, source })
    };
    let optional = |name: &str| match file(name) {
        Err(IdentityError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    };
    Ok(Identity {
        host_key: file(HOST_KEY)?,
        host_certificate: optional(HOST_CERTIFICATE)?,
        authorized_keys: file(AUTHORIZED_KEYS)?,
        config: serde_json::from_slice(&file(CONFIG)?).map_err(|source| IdentityError::Config {
            path: directory.join(CONFIG),
            source,
        })?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(HOST_KEY), "key").unwrap();
        let Err(error) = read(directory.path()) else {
            panic!("an incomplete identity was taken")
        };
        assert!(error.to_string().contains(AUTHORIZED_KEYS), "{error}");
    }

    #[test]
    fn an_unknown_setting_is_refused_and_not_ignored() {
        let directory = tempfile::tempdir().unwrap();
        for name in [HOST_KEY, AUTHORIZED_KEYS] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        fs::write(
            directory.path().join(CONFIG),
            r#"{"hostname":"box","from_the_future":1}"#,
        )
        .unwrap();
        assert!(matches!(read(directory.path()), Err(IdentityError::Config { .. })));
    }
}
