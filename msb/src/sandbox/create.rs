//! Making a sandbox.

use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use msb_ssh::keys::{KeyError, KeyPair};

use super::Sandbox;
use super::config::Config;
use super::spec::{SandboxSpec, SpecError};
use crate::images::ImageError;
use crate::store::files::{self, FileError};
use crate::store::lock::RunLock;
use crate::store::names::SandboxId;
use crate::store::{NewSandbox, Store, StoreError};

/// Why a sandbox cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// It cannot be as asked.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The store does not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its image is gone.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A key could not be made or read.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A file of public keys could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file of public keys is not there.
    #[error("there is no file {} with public keys", .0.display())]
    NoAuthorizedKeys(PathBuf),
    /// The kernel gives no random bytes.
    #[error("cannot get random bytes for an id")]
    Random(#[source] io::Error),
}

impl Sandbox {
    /// Makes a sandbox that accepts msb's own key, those in `$MSB_HOME/authorized_keys` and those in the files
    /// `authorized_keys`. Its host key is made here and pinned, so no connection to it trusts on first use.
    ///
    /// # Errors
    /// When the specification is wrong, its name is taken or a file cannot be written; nothing is left behind then.
    pub fn create(store: &Store, spec: SandboxSpec, authorized_keys: &[PathBuf]) -> Result<Self, CreateError> {
        Self::insert(store, spec, authorized_keys, false).map(|(sandbox, _)| sandbox)
    }

    /// Makes a sandbox that is removed when nobody holds its lock any more. The lock is held from the start.
    ///
    /// # Errors
    /// As [`Sandbox::create`].
    pub fn create_transient(
        store: &Store,
        spec: SandboxSpec,
        authorized_keys: &[PathBuf],
    ) -> Result<(Self, RunLock), CreateError> {
        let (sandbox, lock) = Self::insert(store, spec, authorized_keys, true)?;
        Ok((
            sandbox,
            lock.expect("a transient sandbox is new, so nobody else can hold its lock"),
        ))
    }

    fn insert(
        store: &Store,
        spec: SandboxSpec,
        authorized_keys: &[PathBuf],
        transient: bool,
    ) -> Result<(Self, Option<RunLock>), CreateError> {
        let spec = spec.validated()?;
        let keys = accepted_keys(store, authorized_keys)?;
        Self::insert_with(store, &keys, transient, |_| spec.clone())
    }

    /// Puts a sandbox into the store that accepts `authorized_keys`. What it is to be is known to be right, and may depend
    /// on its id.
    pub(super) fn insert_with(
        store: &Store,
        authorized_keys: &[u8],
        transient: bool,
        spec: impl Fn(&SandboxId) -> SandboxSpec,
    ) -> Result<(Self, Option<RunLock>), CreateError> {
        loop {
            let id = SandboxId::random().map_err(CreateError::Random)?;
            let config = Config {
                created_at: Timestamp::now(),
                spec: spec(&id),
                id,
            };
            // The image cannot be removed before the store knows of its sandbox.
            let images = store.images();
            let image = config.spec.image.as_ref();
            let _pinned = image.map(|image| images.pin(&image.id)).transpose()?;
            let host_key = KeyPair::generate_ed25519(&format!("host key of {}.msb", config.label()))?;
            let new = NewSandbox {
                config: &config,
                host_key: &host_key,
                authorized_keys,
            };
            match store.insert(new, transient) {
                // The ids are random: another one has another user.
                Err(StoreError::UserTaken(_)) => {}
                inserted => {
                    let store = store.clone();
                    return Ok((Self { store, config }, inserted?));
                }
            }
        }
    }
}

/// The keys a new sandbox accepts, as the text of an `authorized_keys` file.
fn accepted_keys(store: &Store, files: &[PathBuf]) -> Result<Vec<u8>, CreateError> {
    files::create_private_dirs(&store.layout().home)?;
    let client_key = KeyPair::load_or_create(&store.layout().client_key(), "msb")?;
    let mut keys = client_key.public_line().into_bytes();
    append(
        &mut keys,
        files::read_optional(&store.layout().authorized_keys())?.unwrap_or_default(),
    );
    for file in files {
        append(&mut keys, read_keys(file)?);
    }
    keys.push(b'\n');
    Ok(keys)
}

fn read_keys(path: &Path) -> Result<Vec<u8>, CreateError> {
    files::read_optional(path)?.ok_or_else(|| CreateError::NoAuthorizedKeys(path.to_owned()))
}

fn append(keys: &mut Vec<u8>, more: Vec<u8>) {
    keys.push(b'\n');
    keys.extend(more);
}
