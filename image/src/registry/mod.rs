//! Images in registries (OCI distribution specification 1.1).
//!
//! Whatever a registry answers is checked: manifests and layers against their digests, sizes against what was announced,
//! descriptions against a limit. A download that breaks goes on where it broke, as long as it gets on at all.

mod auth;
mod download;
mod http;

use std::io::Read as _;
use std::time::Duration;

use oci_spec::distribution::Reference;

pub use auth::{Credentials, CredentialsError};
pub use download::DownloadError;

use crate::config::{ConfigError, ParsedConfig};
use crate::digest::{Digest, DigestError};
use crate::manifest::{Blob, MAX_SIZE, Manifest, ManifestError};
use auth::Authorization;
use http::Http;

/// What is accepted as a manifest.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// How deep indexes may lie in each other.
const MAX_DEPTH: usize = 4;

/// Reads a value of `WWW-Authenticate`.
#[cfg(fuzzing)]
pub fn parse_challenge(text: &str) {
    auth::parse_challenge(text);
}

/// Reads what `docker login` wrote.
#[cfg(fuzzing)]
pub fn parse_logins(json: &[u8]) {
    auth::parse_logins(json);
}

/// How to talk to a registry.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// Who to be there; nobody in particular by default.
    pub credentials: Option<Credentials>,
    /// Talk HTTP without TLS, as always with a registry on this machine.
    pub insecure: bool,
    /// How long nothing may come before a connection counts as broken.
    pub stall_timeout: Duration,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            credentials: None,
            insecure: false,
            stall_timeout: Duration::from_secs(30),
        }
    }
}

/// Why a registry gave no image.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// It cannot be reached.
    #[error("cannot reach {url}")]
    Http {
        /// What was asked.
        url: String,
        /// Why not.
        source: Box<ureq::Error>,
    },
    /// It has no such image, or not for everybody.
    #[error("{registry} has no image {image}, or does not show it to {who}; is the name right, and is a login needed?")]
    NotFound {
        /// The registry.
        registry: String,
        /// The image.
        image: String,
        /// Whose request it was.
        who: String,
    },
    /// It lets nobody in.
    #[error(
        "{registry} refuses the login of {who}; give others with --username and --password-stdin, or `docker login`"
    )]
    Refused {
        /// The registry.
        registry: String,
        /// Whose.
        who: String,
    },
    /// It wants a login of a kind that is not understood.
    #[error("{registry} asks for a login in a way that is not understood: {challenge}")]
    Challenge {
        /// The registry.
        registry: String,
        /// What it said.
        challenge: String,
    },
    /// It answers what it should not.
    #[error("{url} answers with status {status}")]
    Status {
        /// What was asked.
        url: String,
        /// The answer.
        status: u16,
    },
    /// A description is longer than it may be, or breaks off.
    #[error("cannot read the answer of {url}")]
    Read {
        /// What was asked.
        url: String,
        /// Why not.
        source: std::io::Error,
    },
    /// A description is longer than it may be.
    #[error("the answer of {url} is longer than {} MiB", .limit >> 20)]
    TooLong {
        /// What was asked.
        url: String,
        /// The limit, in bytes.
        limit: u64,
    },
    /// What came is not what was named.
    #[error("what {url} answers is damaged or another: it has the digest {found}")]
    Damaged {
        /// What was asked.
        url: String,
        /// What came.
        found: Digest,
    },
    /// A manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The image is named by a digest of another kind.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// There is none for a guest.
    #[error("{0} has no image for linux/amd64")]
    NoImage(String),
    /// The configuration is of another image.
    #[error("the image has {layers} layers, and its configuration names {named}")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        named: usize,
    },
}

/// An image in a registry.
#[derive(Clone, Debug)]
pub struct RemoteImage {
    /// Its configuration, byte for byte: its digest is the image's id.
    pub config_json: Vec<u8>,
    /// The same, understood.
    pub config: ParsedConfig,
    /// Its layers, lowest first.
    pub layers: Vec<Blob>,
}

/// One repository of a registry, with a login.
#[derive(Debug)]
pub struct Repository {
    http: Http,
    reference: Reference,
    base: String,
}

impl Repository {
    /// The repository that `reference` names. Nothing is asked of the registry yet.
    pub fn new(reference: Reference, options: &RegistryOptions) -> Self {
        let registry = reference.resolve_registry().to_owned();
        let scheme = match options.insecure || is_loopback(&registry) {
            true => "http",
            false => "https",
        };
        let base = format!("{scheme}://{registry}/v2/{}", reference.repository());
        let authorization = Authorization::new(registry, reference.repository(), options.credentials.clone());
        Self {
            http: Http::new(authorization, options.stall_timeout),
            reference,
            base,
        }
    }

    /// Finds the image: its configuration and its layers.
    ///
    /// # Errors
    /// When the registry cannot be reached, has no such image, or answers what it should not.
    pub fn resolve(&self) -> Result<RemoteImage, RegistryError> {
        let digest: Option<Digest> = self.reference.digest().map(str::parse).transpose()?;
        let name = match (digest, self.reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or("latest").to_owned(),
        };
        let mut json = self.describe(&format!("manifests/{name}"), digest)?;
        for _ in 0..MAX_DEPTH {
            match Manifest::parse(&json)? {
                Manifest::Index(entries) => {
                    let first = entries
                        .first()
                        .ok_or_else(|| RegistryError::NoImage(self.reference.whole()))?;
                    let digest = first.blob.digest;
                    json = self.describe(&format!("manifests/{digest}"), Some(digest))?;
                }
                Manifest::Image { config, layers } => {
                    let config_json = self.describe(&format!("blobs/{}", config.digest), Some(config.digest))?;
                    return remote_image(config_json, layers);
                }
            }
        }
        Err(RegistryError::NoImage(self.reference.whole()))
    }

    /// A manifest or a configuration, which must have `digest` if that is known.
    fn describe(&self, path: &str, digest: Option<Digest>) -> Result<Vec<u8>, RegistryError> {
        let url = format!("{}/{path}", self.base);
        let response = self.http.get(&url, &[("Accept", MANIFESTS)])?;
        match response.status().as_u16() {
            200 => {}
            404 => {
                return Err(RegistryError::NotFound {
                    registry: self.http.registry().to_owned(),
                    image: self.reference.whole(),
                    who: self.http.who(),
                });
            }
            status => return Err(RegistryError::Status { url, status }),
        }
        let mut bytes = Vec::new();
        let mut reader = response.into_body().into_reader().take(MAX_SIZE + 1);
        if let Err(source) = reader.read_to_end(&mut bytes) {
            return Err(RegistryError::Read { url, source });
        }
        if bytes.len() as u64 > MAX_SIZE {
            return Err(RegistryError::TooLong { url, limit: MAX_SIZE });
        }
        match (digest, Digest::of(&bytes)) {
            (Some(digest), found) if digest != found => Err(RegistryError::Damaged { url, found }),
            _ => Ok(bytes),
        }
    }
}

fn remote_image(config_json: Vec<u8>, layers: Vec<Blob>) -> Result<RemoteImage, RegistryError> {
    let config = ParsedConfig::parse(&config_json)?;
    match (layers.len(), config.diff_ids.len()) {
        (layers, named) if layers != named => Err(RegistryError::LayerCount { layers, named }),
        _ => Ok(RemoteImage {
            config_json,
            config,
            layers,
        }),
    }
}

/// Whether a registry is on this machine, where nobody listens in between.
fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => registry.split(':').next().unwrap_or_default(),
    };
    let is_address = |host: &str| {
        host.parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
    };
    host == "localhost" || is_address(host)
}

#[cfg(test)]
mod tests;
