//! What a layer is packed with, told by its first bytes: media types lie.

use std::io::{self, BufReader, Read};

use flate2::read::MultiGzDecoder;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

/// Compressed bytes read ahead.
const BUFFER: usize = 256 << 10;

/// Why a stream cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum DecompressError {
    /// A format that layers never have.
    #[error("it is packed with {0}; unpack it first: gzip, zstd and plain tar are understood")]
    Unsupported(&'static str),
    /// It cannot be read.
    #[error("cannot read it")]
    Read(#[from] io::Error),
}

/// The plain bytes of a stream.
#[expect(missing_debug_implementations, reason = "decoders have none")]
pub enum Decompressed<R: Read> {
    /// As they come.
    Plain(Begun<R>),
    /// Of gzip, one member after the other.
    Gzip(Box<MultiGzDecoder<Begun<R>>>),
    /// Of zstd.
    Zstd(Box<Frames<Begun<R>>>),
}

/// A reader with what was looked at put back in front.
type Begun<R> = io::Chain<Magic, BufReader<R>>;

impl<R: Read> Decompressed<R> {
    /// Looks at the beginning of `reader`.
    ///
    /// # Errors
    /// When it cannot be read or is packed with something else.
    pub fn new(reader: R) -> Result<Self, DecompressError> {
        let mut reader = BufReader::with_capacity(BUFFER, reader);
        let mut magic = Vec::new();
        reader.by_ref().take(6).read_to_end(&mut magic)?;
        let begun = |magic| io::Cursor::new(magic).chain(reader);
        Ok(match magic[..] {
            [0x1f, 0x8b, ..] => Self::Gzip(Box::new(MultiGzDecoder::new(begun(magic)))),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd(Box::new(Frames::Between(Some(begun(magic))))),
            [0xfd, b'7', b'z', b'X', b'Z', ..] => return Err(DecompressError::Unsupported("xz")),
            [b'B', b'Z', b'h', ..] => return Err(DecompressError::Unsupported("bzip2")),
            _ => Self::Plain(begun(magic)),
        })
    }
}

impl<R: Read> Read for Decompressed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(reader) => reader.read(buffer),
            Self::Gzip(reader) => reader.read(buffer),
            Self::Zstd(reader) => reader.read(buffer),
        }
    }
}

/// Frames of zstd, one after the other, as the format allows.
#[expect(missing_debug_implementations, reason = "decoders have none")]
pub enum Frames<R: Read> {
    /// Before a frame, or at the end.
    Between(Option<R>),
    /// In a frame.
    In(Box<Frame<R>>),
}

type Magic = io::Cursor<Vec<u8>>;
type Frame<R> = StreamingDecoder<io::Chain<Magic, R>, FrameDecoder>;

impl<R: Read> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match self {
                Self::In(frame) => {
                    let read = frame.read(buffer)?;
                    if read > 0 {
                        return Ok(read);
                    }
                    let Self::In(frame) = std::mem::replace(self, Self::Between(None)) else {
                        unreachable!("it was just looked at");
                    };
                    *self = Self::Between(Some(frame.into_inner().into_inner().1));
                }
                Self::Between(source) => {
                    let Some(mut source) = source.take() else { return Ok(0) };
                    let magic = next_magic(&mut source)?;
                    if magic.is_empty() {
                        return Ok(0);
                    }
                    let frame = StreamingDecoder::new(io::Cursor::new(magic).chain(source));
                    *self = Self::In(Box::new(frame.map_err(io::Error::other)?));
                }
            }
        }
    }
}

/// The first bytes of the next frame that has content (RFC 8878, section 3.1.2); none at the end.
fn next_magic(source: &mut impl Read) -> io::Result<Vec<u8>> {
    loop {
        let mut magic = Vec::new();
        source.by_ref().take(4).read_to_end(&mut magic)?;
        if !matches!(magic[..], [0x50..=0x5f, 0x2a, 0x4d, 0x18]) {
            return Ok(magic);
        }
        let mut size = [0; 4];
        source.read_exact(&mut size)?;
        let size = u64::from(u32::from_le_bytes(size));
        if io::copy(&mut source.by_ref().take(size), &mut io::sink())? != size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn unpack(packed: &[u8]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        Decompressed::new(packed)
            .map_err(io::Error::other)?
            .read_to_end(&mut plain)?;
        Ok(plain)
    }

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(plain: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(plain, ruzstd::encoding::CompressionLevel::Fastest)
    }

    #[test]
    fn each_format_gives_its_plain_bytes_however_many_pieces_it_has() {
        let plain = b"some text ".repeat(10_000);
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
        assert_eq!(unpack(&plain).unwrap(), plain);
        assert_eq!(
            unpack(&[gzip(&plain), gzip(b"end")].concat()).unwrap(),
            [&plain, b"end".as_slice()].concat()
        );
        let frames = [zstd(&plain), skippable.to_vec(), zstd(b"end")].concat();
        assert_eq!(unpack(&frames).unwrap(), [&plain, b"end".as_slice()].concat());
    }

    #[test]
    fn a_stream_that_is_cut_or_flipped_is_an_error() {
        let plain: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        for packed in [gzip(&plain), zstd(&plain)] {
            assert!(unpack(&packed[..packed.len() - 5]).is_err());
            let mut flipped = packed.clone();
            flipped[packed.len() / 2] ^= 0x40;
            assert_ne!(unpack(&flipped).ok(), Some(plain.clone()));
        }
        assert!(matches!(
            Decompressed::new(b"\xfd7zXZ\0".as_slice()),
            Err(DecompressError::Unsupported("xz"))
        ));
    }
}
