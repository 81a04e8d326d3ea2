//! Where an image comes from on this host: a directory, a tar archive of one, an archive of `docker save`, an OCI layout
//! as a directory or an archive.

mod docker;
mod layout;
mod stream;

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::{ConfigError, ParsedConfig};
use crate::digest::Digest;
use crate::layer::index::{Index, IndexError};
use crate::layer::{DecompressError, Decompressed};
use crate::limits::{LimitError, Limits};
use crate::manifest::{MAX_SIZE, ManifestError};

pub use stream::Stream;

/// What an image is packed as.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// A root file system.
    Rootfs,
    /// What `docker save` writes.
    Docker,
    /// An OCI image layout.
    Oci,
}

/// Why a source cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It cannot be unpacked for a moment.
    #[error("cannot write a temporary copy")]
    Copy(#[source] io::Error),
    /// It is too large to be unpacked for a moment.
    #[error("cannot use {}", path.display())]
    Limit {
        /// The file.
        path: PathBuf,
        /// How large it may be.
        source: LimitError,
    },
    /// It is packed with something else.
    #[error("cannot unpack {}", path.display())]
    Decompress {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: DecompressError,
    },
    /// It is no sound archive.
    #[error("cannot use {} as an archive", path.display())]
    Archive {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: IndexError,
    },
    /// A piece is not there.
    #[error("the image has no '{0}': the archive is incomplete")]
    Missing(String),
    /// A piece is longer than it may be.
    #[error("'{0}' is longer than 4 MiB, too long for a description of an image")]
    TooLong(String),
    /// A piece is not the one that was named.
    #[error("'{name}' is damaged: it has the digest {found}")]
    Damaged {
        /// Its name.
        name: String,
        /// What it has.
        found: Digest,
    },
    /// It is no description.
    #[error("'{name}' cannot be understood")]
    Malformed {
        /// Its name.
        name: String,
        /// Why not.
        source: serde_json::Error,
    },
    /// A manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The configuration is of another image.
    #[error("the image has {layers} layers, and its configuration names {named}")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        named: usize,
    },
    /// It has more than one image.
    #[error("it holds {} images: {}; choose one with --image", .0.len(), .0.join(", "))]
    Several(Vec<String>),
    /// It has no such image.
    #[error("it holds no image {wanted}, only: {}", names.join(", "))]
    NoSuchImage {
        /// What was asked for.
        wanted: String,
        /// What there is.
        names: Vec<String>,
    },
    /// It has no image for a guest.
    #[error("it holds no image for linux/amd64")]
    NoImage,
    /// It is something else.
    #[error("{} is no {what}", path.display())]
    Not {
        /// The file or directory.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
    },
}

/// What was found.
#[derive(Debug)]
pub enum Source {
    /// A directory to be taken as it is.
    Directory(PathBuf),
    /// A tar archive of one, packed or not.
    Tar(Stream),
    /// An image in layers.
    Image(Box<PackedImage>),
}

/// An image in layers.
#[derive(Debug)]
pub struct PackedImage {
    /// What it is called where it comes from.
    pub names: Vec<String>,
    /// Its configuration, byte for byte: its digest is the image's id.
    pub config_json: Vec<u8>,
    /// The same, understood.
    pub config: ParsedConfig,
    layers: Vec<String>,
    files: Files,
}

impl PackedImage {
    fn new(names: Vec<String>, config_json: Vec<u8>, layers: Vec<String>, files: Files) -> Result<Self, SourceError> {
        let config = ParsedConfig::parse(&config_json)?;
        match (layers.len(), config.diff_ids.len()) {
            (layers, named) if layers != named => Err(SourceError::LayerCount { layers, named }),
            _ => Ok(Self {
                names,
                config_json,
                config,
                layers,
                files,
            }),
        }
    }

    /// Its layers, lowest first, packed or not, each with the digest that it must have unpacked.
    pub fn layers(&self) -> impl Iterator<Item = (Result<Box<dyn Read>, SourceError>, Digest)> + '_ {
        let opened = self.layers.iter().map(|layer| self.files.open(layer));
        opened.zip(self.config.diff_ids.iter().copied())
    }
}

/// How to open a source.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions<'a> {
    /// What it is packed as; found out when it is not said.
    pub format: Option<Format>,
    /// Which of several images.
    pub wanted: Option<&'a str>,
    /// A directory for a temporary file: what must be unpacked to be read, or comes in a stream, goes there.
    pub scratch: &'a Path,
    /// How much the image may hold, and with it that file.
    pub limits: Limits,
}

/// Finds out what is at `path`, `-` for standard input, and opens it.
///
/// # Errors
/// When it cannot be read, or is no image.
pub fn open(path: &Path, options: OpenOptions<'_>) -> Result<Source, SourceError> {
    let read = |source| SourceError::Read {
        path: path.into(),
        source,
    };
    if path.is_dir() {
        let is_layout = path.join("oci-layout").is_file() && path.join("index.json").is_file();
        return match options.format {
            Some(Format::Oci) | None if is_layout => layout::open(Files::Directory(path.into()), options.wanted)
                .map(Box::new)
                .map(Source::Image),
            Some(Format::Oci | Format::Docker) => Err(SourceError::Not {
                path: path.into(),
                what: "directory with an OCI layout",
            }),
            Some(Format::Rootfs) | None => Ok(Source::Directory(path.into())),
        };
    }
    if path.to_str() == Some("-") {
        return open_stream(io::stdin(), path, options);
    }
    let file = File::open(path).map_err(read)?;
    match file.metadata().map_err(read)?.is_file() {
        true => open_archive(file, path, options),
        false => open_stream(file, path, options),
    }
}

/// Only what may be an image in layers must be a file. Anything else is taken as it comes.
fn open_stream(reader: impl Read + 'static, path: &Path, options: OpenOptions<'_>) -> Result<Source, SourceError> {
    let (beginning, stream) = Stream::begin(reader).map_err(|source| SourceError::Read {
        path: path.into(),
        source,
    })?;
    if may_be_layered(&beginning[..], path, options.format)?.is_none() {
        return Ok(Source::Tar(stream));
    }
    let file = stream::spooled(stream, path, options)?;
    open_archive(file, path, options)
}

fn open_archive(mut file: File, path: &Path, options: OpenOptions<'_>) -> Result<Source, SourceError> {
    let format = options.format;
    let layered = may_be_layered(&file, path, format)?;
    file.rewind().map_err(SourceError::Copy)?;
    let Some(is_packed) = layered else {
        return Ok(Source::Tar(Stream::of(file)));
    };
    if is_packed {
        let plain = Decompressed::new(file).map_err(|source| SourceError::Decompress {
            path: path.into(),
            source,
        })?;
        file = stream::spooled(plain, path, options)?;
    }
    let index = Index::read(io::BufReader::with_capacity(1 << 20, &file));
    let index = match index {
        Err(IndexError::TooMany) if format.is_none() => Index::default(),
        index => index.map_err(|source| SourceError::Archive {
            path: path.into(),
            source,
        })?,
    };
    let (has_docker, has_oci) = (
        index.get("manifest.json"),
        index.get("oci-layout").and(index.get("index.json")),
    );
    let files = Files::Archive(Arc::new(file), index);
    let wanted = options.wanted;
    match format {
        Some(Format::Docker) | None if has_docker.is_some() => {
            docker::open(files, wanted).map(Box::new).map(Source::Image)
        }
        Some(Format::Oci) | None if has_oci.is_some() => layout::open(files, wanted).map(Box::new).map(Source::Image),
        None => files.into_tar().map(Source::Tar),
        Some(_) => Err(SourceError::Not {
            path: path.into(),
            what: "archive of an image in that format",
        }),
    }
}

/// Of what may be an image in layers, whether it is packed; nothing for a plain archive.
fn may_be_layered(beginning: impl Read, path: &Path, format: Option<Format>) -> Result<Option<bool>, SourceError> {
    if format == Some(Format::Rootfs) {
        return Ok(None);
    }
    let mut plain = Decompressed::new(beginning).map_err(|source| SourceError::Decompress {
        path: path.into(),
        source,
    })?;
    let mut block = [0; 512];
    let begins = plain.read_exact(&mut block).is_ok();
    let is_packed = !matches!(plain, Decompressed::Plain(_));
    Ok((format.is_some() || (begins && begins_as_image(&block))).then_some(is_packed))
}

/// Whether an archive that begins so may be one of an image in layers: these have few names at their top.
fn begins_as_image(header: &[u8; 512]) -> bool {
    const KNOWN: [&str; 5] = ["blobs", "manifest.json", "oci-layout", "index.json", "repositories"];
    let name = tar::Header::from_byte_slice(header).path_bytes().into_owned();
    let name = String::from_utf8_lossy(&name).into_owned();
    let first = name.trim_start_matches("./").split('/').next().unwrap_or_default();
    let is_digest = |name: &str| name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let stem = first.split('.').next().unwrap_or_default();
    first.is_empty() || KNOWN.contains(&first) || is_digest(stem) || stem == "pax_global_header"
}

/// The files that an image in layers consists of.
#[derive(Debug)]
enum Files {
    Directory(PathBuf),
    Archive(Arc<File>, Index),
}

impl Files {
    fn open(&self, name: &str) -> Result<Box<dyn Read>, SourceError> {
        match self {
            Self::Directory(directory) => {
                let path = directory.join(name);
                let file = File::open(&path).map_err(|source| match source.kind() {
                    io::ErrorKind::NotFound => SourceError::Missing(name.into()),
                    _ => SourceError::Read { path, source },
                })?;
                Ok(Box::new(file))
            }
            Self::Archive(file, index) => {
                let extent = index.get(name).ok_or_else(|| SourceError::Missing(name.into()))?;
                Ok(Box::new(Part {
                    file: Arc::clone(file),
                    position: extent.offset,
                    end: extent.offset + extent.size,
                }))
            }
        }
    }

    /// A description, whole.
    fn read(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        let mut bytes = Vec::new();
        let read = self.open(name)?.take(MAX_SIZE + 1).read_to_end(&mut bytes);
        read.map_err(|source| SourceError::Read {
            path: name.into(),
            source,
        })?;
        match bytes.len() as u64 > MAX_SIZE {
            true => Err(SourceError::TooLong(name.into())),
            false => Ok(bytes),
        }
    }

    fn into_tar(self) -> Result<Stream, SourceError> {
        match self {
            Self::Archive(file, _) => {
                let mut file = file.try_clone().map_err(SourceError::Copy)?;
                file.seek(SeekFrom::Start(0)).map_err(SourceError::Copy)?;
                Ok(Stream::of(file))
            }
            Self::Directory(path) => Err(SourceError::Not { path, what: "archive" }),
        }
    }
}

/// A file inside a file.
struct Part {
    file: Arc<File>,
    position: u64,
    end: u64,
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.end - self.position)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let read = self.file.read_at(&mut buffer[..room], self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

/// The one that is wanted of what has these names.
fn choose<T>(mut images: Vec<(Vec<String>, T)>, wanted: Option<&str>) -> Result<(Vec<String>, T), SourceError> {
    let all: Vec<String> = images.iter().flat_map(|(names, _)| names.clone()).collect();
    if let Some(wanted) = wanted {
        let found = images
            .iter()
            .position(|(names, _)| names.iter().any(|name| name == wanted));
        let found = found.ok_or_else(|| SourceError::NoSuchImage {
            wanted: wanted.into(),
            names: all,
        })?;
        let (_, image) = images.swap_remove(found);
        return Ok((vec![wanted.to_owned()], image));
    }
    match images.len() {
        0 => Err(SourceError::NoImage),
        1 => Ok(images.remove(0)),
        _ => Err(SourceError::Several(all)),
    }
}

#[cfg(test)]
mod tests;
