//! Archives as a whole: what `docker save` writes, OCI layouts and plain ones, from the file to the file system.
//!
//! The input says what an archive is put together from, so that digests and checksums are right where they must be.
//! Nothing is written beyond what the limits allow.
#![no_main]

use std::io::Write as _;

use libfuzzer_sys::fuzz_target;
use msb_fuzz::Input;
use msb_fuzz::archive::{BLOCK, seal};
use msb_image::assemble::{AssembleError, Assembler};
use msb_image::digest::Digest;
use msb_image::layer::Whiteouts;
use msb_image::limits::Limits;
use msb_image::source::{self, Format, OpenOptions, Source};

const LIMITS: Limits = Limits {
    entries: 64,
    bytes: 1 << 20,
    metadata: 1 << 16,
    layers: 4,
};

/// What a file system has besides contents and metadata, generously.
const OVERHEAD: u64 = 1 << 20;

/// Names that mean something in an archive of an image.
const NAMES: [&str; 6] = [
    "manifest.json",
    "index.json",
    "oci-layout",
    "config.json",
    "layer.tar",
    "repositories",
];

/// Types of entries: files, links, directories, devices, extended headers.
const KINDS: &[u8] = b"0\x00125xgLK347S";

const FORMATS: [Option<Format>; 4] = [None, Some(Format::Rootfs), Some(Format::Docker), Some(Format::Oci)];

/// An archive whose entries the input describes. `inner` ones have no archives in them.
fn archive(input: &mut Input<'_>, inner: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut digests = Vec::new();
    while !input.is_empty() {
        let (named, kind) = (input.byte(), input.byte());
        let length = input.word().into();
        let contents = input.take(length);
        let contents = match kind & 0x80 != 0 && !inner {
            true => archive(&mut Input::new(contents), true),
            false => with_digests(contents, &digests),
        };
        let digest = Digest::of(&contents);
        let name = match usize::from(named) {
            index @ 0..6 => NAMES[index].as_bytes().to_vec(),
            6 => format!("blobs/sha256/{}", digest.hex()).into_bytes(),
            length => input.take(length).to_vec(),
        };
        digests.push(digest);
        let kind = KINDS[usize::from(kind & 0x7f) % KINDS.len()];
        append(&mut bytes, &name, kind, &contents);
    }
    bytes.resize(bytes.len() + 2 * BLOCK, 0);
    bytes
}

/// `@` and a digit stand for the digest of an entry in front.
fn with_digests(contents: &[u8], digests: &[Digest]) -> Vec<u8> {
    let mut written = Vec::with_capacity(contents.len());
    let mut rest = contents.iter();
    while let Some(&byte) = rest.next() {
        let digit = rest.as_slice().first().filter(|_| byte == b'@');
        let index = digit.and_then(|digit| char::from(*digit).to_digit(10));
        match index.and_then(|index| digests.get(index as usize)) {
            Some(digest) => {
                rest.next();
                written.extend(digest.to_string().into_bytes());
            }
            None => written.push(byte),
        }
    }
    written
}

fn append(archive: &mut Vec<u8>, name: &[u8], kind: u8, contents: &[u8]) {
    let mut header = [0; BLOCK];
    let length = name.len().min(100);
    header[..length].copy_from_slice(&name[..length]);
    header[100..107].copy_from_slice(b"0000644");
    header[124..135].copy_from_slice(format!("{:011o}", contents.len()).as_bytes());
    header[156] = kind;
    if matches!(kind, b'1' | b'2') {
        let target = contents.len().min(100);
        header[157..157 + target].copy_from_slice(&contents[..target]);
    }
    header[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut header);
    archive.extend(header);
    archive.extend(contents);
    archive.resize(archive.len().next_multiple_of(BLOCK), 0);
}

fn assemble(source: Source) -> Result<u64, AssembleError> {
    let file = tempfile::tempfile().expect("a file");
    let mut assembler = Assembler::new(file, LIMITS);
    match source {
        Source::Directory(_) => panic!("an archive is no directory"),
        Source::Tar(file) => {
            assembler.layer(file, Whiteouts::Keep, None)?;
        }
        Source::Image(image) => {
            for (layer, digest) in image.layers() {
                let Ok(layer) = layer else { break };
                assembler.layer(layer, Whiteouts::Apply, Some(digest))?;
            }
        }
    }
    let written = assembler.finish(&Digest::of(b""))?;
    Ok(written.metadata().expect("a file").len())
}

fuzz_target!(|input: &[u8]| {
    let mut input = Input::new(input);
    let format = input.pick(&FORMATS);
    let cut = usize::from(input.byte());
    let mut bytes = archive(&mut input, false);
    bytes.truncate(bytes.len() - cut.min(bytes.len()));
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("archive");
    let mut file = std::fs::File::create(&path).expect("a file");
    file.write_all(&bytes).expect("a file");
    let options = OpenOptions {
        format,
        wanted: None,
        scratch: directory.path(),
        limits: LIMITS,
    };
    if let Ok(written) = source::open(&path, options).map(assemble).unwrap_or(Ok(0)) {
        assert!(written <= LIMITS.bytes + LIMITS.metadata + OVERHEAD, "{written} bytes");
    }
});
