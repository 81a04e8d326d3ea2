//! Layers, into files that a later attempt goes on with.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::thread;
use std::time::Duration;

use super::{RegistryError, Repository};
use crate::digest::{Digest, Hasher};
use crate::manifest::Blob;

/// How often a download that gets nowhere is begun again.
const ATTEMPTS: u32 = 4;

/// How long it is waited before that, doubled each time.
const PAUSE: Duration = Duration::from_millis(500);

const BUFFER: usize = 128 << 10;

/// Why there is no layer.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// It breaks off again and again.
    #[error(
        "layer {digest} breaks off at {at} of {size} bytes, {ATTEMPTS} times in a row; what came is kept, so try again"
    )]
    Broken {
        /// The layer.
        digest: Digest,
        /// What is there.
        at: u64,
        /// What should be.
        size: u64,
        /// What happened last.
        source: io::Error,
    },
    /// It is another.
    #[error("layer {expected} is damaged or another: it came with the digest {found}")]
    Damaged {
        /// What was asked for.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// It is longer than the manifest says.
    #[error("layer {digest} is longer than the {size} bytes that the image's manifest names")]
    TooLong {
        /// The layer.
        digest: Digest,
        /// What the manifest says.
        size: u64,
    },
    /// It cannot be kept.
    #[error("cannot write layer {digest}")]
    Write {
        /// The layer.
        digest: Digest,
        /// Why not.
        source: io::Error,
    },
}

/// How an attempt ended.
enum Attempt {
    Complete,
    /// It may go better the next time.
    Broken(io::Error),
}

impl Repository {
    /// Gets a layer into `file`, which has the beginning of it from an earlier attempt, or nothing. Waits until it is on
    /// the disk. A layer that came wrong is taken out of the file.
    ///
    /// # Errors
    /// When the registry does not give it, or the file cannot be written. What came of it is kept.
    pub fn download(&self, blob: Blob, file: &mut File, progress: &dyn Fn(u64)) -> Result<(), DownloadError> {
        let Blob { digest, .. } = blob;
        let write = |source| DownloadError::Write { digest, source };
        let mut layer = Partial::resume(file, blob).map_err(write)?;
        let resumed = layer.have > 0;
        self.complete(blob, &mut layer, progress)?;
        if resumed && layer.digest() != digest {
            // The beginning was not sound; what comes in one piece tells whether the registry's layer is.
            layer.restart().map_err(write)?;
            self.complete(blob, &mut layer, progress)?;
        }
        match layer.digest() {
            found if found != digest => {
                layer.restart().map_err(write)?;
                Err(DownloadError::Damaged {
                    expected: digest,
                    found,
                })
            }
            _ => file.sync_all().map_err(write),
        }
    }

    /// Gets what is missing of a layer.
    fn complete(&self, blob: Blob, layer: &mut Partial<'_>, progress: &dyn Fn(u64)) -> Result<(), DownloadError> {
        let Blob { digest, size } = blob;
        let pauses = || (0..ATTEMPTS - 1).map(|attempt| PAUSE * (1 << attempt));
        let mut left = pauses();
        while layer.have < size {
            let before = layer.have;
            match self.attempt(blob, layer, progress)? {
                Attempt::Complete => break,
                // It gets on, so it may go on.
                Attempt::Broken(_) if layer.have > before => left = pauses(),
                Attempt::Broken(source) => match left.next() {
                    Some(pause) => thread::sleep(pause),
                    None => {
                        let at = layer.have;
                        return Err(DownloadError::Broken {
                            digest,
                            at,
                            size,
                            source,
                        });
                    }
                },
            }
        }
        Ok(())
    }

    fn attempt(&self, blob: Blob, layer: &mut Partial<'_>, progress: &dyn Fn(u64)) -> Result<Attempt, DownloadError> {
        let Blob { digest, size } = blob;
        let url = format!("{}/blobs/{digest}", self.base);
        let range = format!("bytes={}-", layer.have);
        let headers = [("Range", range.as_str())];
        let response = match self.http.get(&url, if layer.have > 0 { &headers } else { &[] }) {
            Err(RegistryError::Http { source, .. }) => return Ok(Attempt::Broken(into_io(*source))),
            response => response?,
        };
        match response.status().as_u16() {
            206 if layer.have > 0 => {}
            // It begins at the beginning, asked for or not.
            200 => layer
                .restart()
                .map_err(|source| DownloadError::Write { digest, source })?,
            429 | 500..=599 => {
                return Ok(Attempt::Broken(io::Error::other(format!(
                    "status {}",
                    response.status()
                ))));
            }
            status => return Err(RegistryError::Status { url, status }.into()),
        }
        let mut reader = response.into_body().into_reader();
        let mut buffer = vec![0; BUFFER];
        loop {
            let read = match reader.read(&mut buffer) {
                Ok(0) if layer.have < size => return Ok(Attempt::Broken(io::ErrorKind::UnexpectedEof.into())),
                Ok(0) => return Ok(Attempt::Complete),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Ok(Attempt::Broken(error)),
            };
            if layer.have + read as u64 > size {
                return Err(DownloadError::TooLong { digest, size });
            }
            layer
                .append(&buffer[..read])
                .map_err(|source| DownloadError::Write { digest, source })?;
            progress(read as u64);
        }
    }
}

fn into_io(error: ureq::Error) -> io::Error {
    match error {
        ureq::Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

/// The beginning of a layer.
struct Partial<'a> {
    file: &'a mut File,
    have: u64,
    hasher: Hasher,
}

impl<'a> Partial<'a> {
    fn resume(file: &'a mut File, blob: Blob) -> io::Result<Self> {
        file.seek(SeekFrom::Start(0))?;
        let mut hasher = Hasher::new();
        let have = io::copy(file, &mut hasher)?;
        let mut partial = Self { file, have, hasher };
        let is_damaged = have == blob.size && partial.digest() != blob.digest;
        if have > blob.size || is_damaged {
            partial.restart()?;
        }
        Ok(partial)
    }

    /// Of what is there.
    fn digest(&self) -> Digest {
        self.hasher.clone().finish()
    }

    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        (self.have, self.hasher) = (0, Hasher::new());
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.have += bytes.len() as u64;
        Ok(())
    }
}
