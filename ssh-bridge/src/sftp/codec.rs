//! The bytes of SFTP version 3 (draft-ietf-secsh-filexfer-02): requests are built, replies are parsed.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use msb_protocol::sftp::{FileAttributes, VERSION, kind};

use super::error::{Status, StatusCode};

/// The longest packet, in bytes without its length field, as in OpenSSH.
pub(super) const MAX_PACKET: usize = 256 << 10;

/// Bytes before the fields of a request: length, kind and number.
const HEADER: usize = 4 + 1 + 4;

/// What is wrong with bytes that should be SFTP.
pub(super) type Malformed = &'static str;

const TRUNCATED: Malformed = "a field runs past the end of its packet";

/// A request without its number. The data of a write are not copied.
#[derive(Debug)]
pub(super) struct Request {
    head: BytesMut,
    data: Bytes,
}

impl Request {
    fn new(kind: u8) -> Self {
        let mut head = BytesMut::with_capacity(64);
        head.put_u32(0);
        head.put_u8(kind);
        head.put_u32(0);
        Self {
            head,
            data: Bytes::new(),
        }
    }

    fn string(mut self, bytes: &[u8]) -> Self {
        self.head.put_u32(length(bytes.len()));
        self.head.put_slice(bytes);
        self
    }

    fn u32(mut self, number: u32) -> Self {
        self.head.put_u32(number);
        self
    }

    fn u64(mut self, number: u64) -> Self {
        self.head.put_u64(number);
        self
    }

    fn attributes(mut self, attributes: &FileAttributes) -> Self {
        attributes.encode(&mut self.head);
        self
    }

    pub(super) fn open(path: &[u8], flags: u32, attributes: &FileAttributes) -> Self {
        Self::new(kind::OPEN).string(path).u32(flags).attributes(attributes)
    }

    pub(super) fn close(handle: &[u8]) -> Self {
        Self::new(kind::CLOSE).string(handle)
    }

    pub(super) fn read(handle: &[u8], offset: u64, length: u32) -> Self {
        Self::new(kind::READ).string(handle).u64(offset).u32(length)
    }

    pub(super) fn write(handle: &[u8], offset: u64, data: Bytes) -> Self {
        let head = Self::new(kind::WRITE)
            .string(handle)
            .u64(offset)
            .u32(length(data.len()));
        Self { data, ..head }
    }

    pub(super) fn lstat(path: &[u8]) -> Self {
        Self::new(kind::LSTAT).string(path)
    }

    pub(super) fn stat(path: &[u8]) -> Self {
        Self::new(kind::STAT).string(path)
    }

    pub(super) fn fstat(handle: &[u8]) -> Self {
        Self::new(kind::FSTAT).string(handle)
    }

    pub(super) fn setstat(path: &[u8], attributes: &FileAttributes) -> Self {
        Self::new(kind::SETSTAT).string(path).attributes(attributes)
    }

    pub(super) fn fsetstat(handle: &[u8], attributes: &FileAttributes) -> Self {
        Self::new(kind::FSETSTAT).string(handle).attributes(attributes)
    }

    pub(super) fn opendir(path: &[u8]) -> Self {
        Self::new(kind::OPENDIR).string(path)
    }

    pub(super) fn readdir(handle: &[u8]) -> Self {
        Self::new(kind::READDIR).string(handle)
    }

    pub(super) fn remove(path: &[u8]) -> Self {
        Self::new(kind::REMOVE).string(path)
    }

    pub(super) fn mkdir(path: &[u8], attributes: &FileAttributes) -> Self {
        Self::new(kind::MKDIR).string(path).attributes(attributes)
    }

    pub(super) fn rmdir(path: &[u8]) -> Self {
        Self::new(kind::RMDIR).string(path)
    }

    pub(super) fn realpath(path: &[u8]) -> Self {
        Self::new(kind::REALPATH).string(path)
    }

    pub(super) fn rename(from: &[u8], to: &[u8]) -> Self {
        Self::new(kind::RENAME).string(from).string(to)
    }

    pub(super) fn readlink(path: &[u8]) -> Self {
        Self::new(kind::READLINK).string(path)
    }

    /// In the order of OpenSSH, which is not that of the draft.
    pub(super) fn symlink(target: &[u8], link: &[u8]) -> Self {
        Self::new(kind::SYMLINK).string(target).string(link)
    }

    pub(super) fn extended(name: &str, fields: &[&[u8]]) -> Self {
        fields
            .iter()
            .fold(Self::new(kind::EXTENDED).string(name.as_bytes()), |request, field| {
                request.string(field)
            })
    }

    /// The packet: its beginning, and the data that follow it.
    pub(super) fn numbered(mut self, id: u32) -> (Bytes, Bytes) {
        let total = length(self.head.len() - 4 + self.data.len());
        self.head[..4].copy_from_slice(&total.to_be_bytes());
        self.head[5..HEADER].copy_from_slice(&id.to_be_bytes());
        (self.head.freeze(), self.data)
    }
}

/// The greeting, which has no number.
pub(super) fn init() -> Bytes {
    let mut packet = BytesMut::new();
    packet.put_u32(5);
    packet.put_u8(kind::INIT);
    packet.put_u32(VERSION);
    packet.freeze()
}

fn length(bytes: usize) -> u32 {
    // What is sent comes from this host and lies in memory; a server refuses what is longer than a packet.
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// A name in a directory, or an answer that is a path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Name {
    pub(super) name: Bytes,
    pub(super) attributes: FileAttributes,
}

/// An answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Reply {
    Status(Status),
    Handle(Bytes),
    Data(Bytes),
    Names(Vec<Name>),
    Attributes(FileAttributes),
    Extended(Bytes),
}

impl Reply {
    /// Reads a packet without its length field: the number of the request, and the answer to it.
    pub(super) fn parse(packet: Bytes) -> Result<(u32, Self), Malformed> {
        let mut fields = Fields(packet);
        let kind = fields.u8()?;
        let id = fields.u32()?;
        let reply = match kind {
            kind::STATUS_REPLY => Self::Status(fields.status()?),
            kind::HANDLE_REPLY => Self::Handle(fields.string()?),
            kind::DATA_REPLY => Self::Data(fields.string()?),
            kind::NAME_REPLY => Self::Names(fields.names()?),
            kind::ATTRIBUTES_REPLY => Self::Attributes(fields.attributes()?),
            kind::EXTENDED_REPLY => Self::Extended(fields.0),
            _ => return Err("a packet of an unknown kind"),
        };
        Ok((id, reply))
    }
}

/// The server's greeting.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Greeting {
    pub(super) version: u32,
    /// Names and versions.
    pub(super) extensions: Vec<(Bytes, Bytes)>,
}

impl Greeting {
    /// Reads the first packet, without its length field.
    pub(super) fn parse(packet: Bytes) -> Result<Self, Malformed> {
        let mut fields = Fields(packet);
        if fields.u8()? != kind::VERSION_REPLY {
            return Err("it does not begin with a greeting");
        }
        let version = fields.u32()?;
        let mut extensions = Vec::new();
        while !fields.0.is_empty() {
            extensions.push((fields.string()?, fields.string()?));
        }
        Ok(Self { version, extensions })
    }

    pub(super) fn offers(&self, name: &str, version: &str) -> bool {
        self.extensions
            .iter()
            .any(|(offered, its_version)| offered == name.as_bytes() && its_version == version.as_bytes())
    }
}

/// What is left of a packet. Taken fields share its memory.
#[derive(Debug)]
pub(super) struct Fields(pub(super) Bytes);

impl Fields {
    fn u8(&mut self) -> Result<u8, Malformed> {
        self.0.try_get_u8().map_err(|_| TRUNCATED)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.0.try_get_u32().map_err(|_| TRUNCATED)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        self.0.try_get_u64().map_err(|_| TRUNCATED)
    }

    fn string(&mut self) -> Result<Bytes, Malformed> {
        let length = usize::try_from(self.u32()?).map_err(|_| TRUNCATED)?;
        if length > self.0.len() {
            return Err(TRUNCATED);
        }
        Ok(self.0.split_to(length))
    }

    fn status(&mut self) -> Result<Status, Malformed> {
        let code = StatusCode::from(self.u32()?);
        // Servers before version 3 send no message.
        let message = self.string().unwrap_or_default();
        Ok(Status {
            code,
            message: String::from_utf8_lossy(&message).into_owned(),
        })
    }

    fn names(&mut self) -> Result<Vec<Name>, Malformed> {
        // The count is the server's word; only what is there takes memory.
        let count = self.u32()?;
        let mut names = Vec::new();
        for _ in 0..count {
            let name = self.string()?;
            let _listing = self.string()?;
            let attributes = self.attributes()?;
            names.push(Name { name, attributes });
        }
        Ok(names)
    }

    fn attributes(&mut self) -> Result<FileAttributes, Malformed> {
        let mut left = &self.0[..];
        let attributes = FileAttributes::decode(&mut left).map_err(|_| TRUNCATED)?;
        self.0.advance(self.0.len() - left.len());
        Ok(attributes)
    }
}

/// Received bytes, cut into packets.
#[derive(Debug, Default)]
pub(super) struct Packets(BytesMut);

impl Packets {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next complete packet, without its length.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, Malformed> {
        let Some(length) = self.0.first_chunk().map(|length| u32::from_be_bytes(*length)) else {
            return Ok(None);
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length == 0 || length > MAX_PACKET {
            return Err("a packet of impossible length");
        }
        if self.0.len() < 4 + length {
            return Ok(None);
        }
        self.0.advance(4);
        Ok(Some(self.0.split_to(length).freeze()))
    }
}

#[cfg(test)]
mod tests;
