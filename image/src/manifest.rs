//! Manifests and indexes: what an image consists of, by digest.

use oci_spec::image::{Arch, Descriptor, ImageIndex, ImageManifest, Os};
use serde::Deserialize;

use crate::digest::{Digest, DigestError};

/// The largest manifest, index or configuration, in bytes: what registries allow.
pub const MAX_SIZE: u64 = 4 << 20;

/// The annotation with a name in an OCI layout.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A piece of an image.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Blob {
    /// What it is.
    pub digest: Digest,
    /// Its bytes, packed.
    pub size: u64,
}

/// One entry of an index.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// A manifest or another index.
    pub blob: Blob,
    /// What it is called here.
    pub name: Option<String>,
}

/// A manifest as a registry or a layout has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Manifest {
    /// Several images, those for other machines left out.
    Index(Vec<Entry>),
    /// One image.
    Image {
        /// Its configuration.
        config: Blob,
        /// Its layers, lowest first.
        layers: Vec<Blob>,
    },
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is none.
    #[error("the image's manifest cannot be understood")]
    Malformed(#[source] serde_json::Error),
    /// It was made by a Docker before 1.10.
    #[error("the image's manifest has schema version 1, which is not understood; have it pushed anew")]
    Version1,
    /// It names something by another digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

impl Manifest {
    /// Reads the JSON of a manifest or an index, OCI's or Docker's.
    ///
    /// # Errors
    /// When it is neither.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Shape {
            #[serde(rename = "schemaVersion")]
            version: u32,
            manifests: Option<serde::de::IgnoredAny>,
        }
        let shape: Shape = serde_json::from_slice(json).map_err(ManifestError::Malformed)?;
        if shape.version == 1 {
            return Err(ManifestError::Version1);
        }
        if shape.manifests.is_some() {
            let index: ImageIndex = serde_json::from_slice(json).map_err(ManifestError::Malformed)?;
            let for_us = index.manifests().iter().filter(|descriptor| is_for_guests(descriptor));
            return Ok(Self::Index(for_us.map(entry).collect::<Result<_, _>>()?));
        }
        let manifest: ImageManifest = serde_json::from_slice(json).map_err(ManifestError::Malformed)?;
        Ok(Self::Image {
            config: blob(manifest.config())?,
            layers: manifest.layers().iter().map(blob).collect::<Result<_, _>>()?,
        })
    }
}

/// Whether it runs in a guest; what names no platform may.
fn is_for_guests(descriptor: &Descriptor) -> bool {
    let platform = descriptor.platform().as_ref();
    platform.is_none_or(|platform| (platform.os(), platform.architecture()) == (&Os::Linux, &Arch::Amd64))
}

fn entry(descriptor: &Descriptor) -> Result<Entry, DigestError> {
    let annotations = descriptor.annotations().as_ref();
    Ok(Entry {
        blob: blob(descriptor)?,
        name: annotations.and_then(|annotations| annotations.get(REF_NAME)).cloned(),
    })
}

fn blob(descriptor: &Descriptor) -> Result<Blob, DigestError> {
    Ok(Blob {
        digest: descriptor.digest().to_string().parse()?,
        size: descriptor.size(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn descriptor(number: u8, more: &str) -> String {
        let digest = Digest::of(&[number]);
        format!(r#"{{"mediaType":"application/x","digest":"{digest}","size":{number}{more}}}"#)
    }

    fn blob(number: u8) -> Blob {
        Blob {
            digest: Digest::of(&[number]),
            size: number.into(),
        }
    }

    #[test]
    fn an_index_leaves_out_what_is_for_other_machines() {
        let platform = |os: &str, arch: &str| format!(r#","platform":{{"os":"{os}","architecture":"{arch}"}}"#);
        let manifests = [
            descriptor(1, &platform("linux", "arm64")),
            descriptor(2, &platform("linux", "amd64")),
            descriptor(3, &platform("unknown", "unknown")),
            descriptor(4, r#","annotations":{"org.opencontainers.image.ref.name":"v1"}"#),
        ];
        let json = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, manifests.join(","));
        let Manifest::Index(entries) = Manifest::parse(json.as_bytes()).unwrap() else {
            panic!("no index")
        };
        let found: Vec<_> = entries.into_iter().map(|entry| (entry.blob, entry.name)).collect();
        assert_eq!(found, [(blob(2), None), (blob(4), Some("v1".into()))]);
    }

    #[test]
    fn an_image_is_its_configuration_and_layers() {
        let json = format!(
            r#"{{"schemaVersion":2,"config":{},"layers":[{},{}]}}"#,
            descriptor(1, ""),
            descriptor(2, ""),
            descriptor(3, "")
        );
        let image = Manifest::Image {
            config: blob(1),
            layers: vec![blob(2), blob(3)],
        };
        assert_eq!(Manifest::parse(json.as_bytes()).unwrap(), image);
        let old = br#"{"schemaVersion":1,"fsLayers":[]}"#;
        assert!(matches!(Manifest::parse(old), Err(ManifestError::Version1)));
        assert!(matches!(Manifest::parse(b"{}"), Err(ManifestError::Malformed(_))));
        let sha512 = json.replace("sha256:", "sha512:");
        assert!(Manifest::parse(sha512.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Manifest::parse(&bytes);
        }
    }
}
