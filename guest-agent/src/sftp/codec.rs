//! The bytes of SFTP: requests are parsed, replies are built. Nothing here touches a file.

use msb_protocol::sftp::{FileAttributes, VERSION, kind};

use super::status::Status;

/// Bytes of the length before each packet and string.
const LENGTH_FIELD: usize = 4;

/// A request. Names and handles are the packet's own bytes.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Request<'a> {
    Init,
    Numbered { id: u32, operation: Operation<'a> },
}

/// What a request asks for.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Operation<'a> {
    Open {
        path: &'a [u8],
        flags: u32,
        attributes: FileAttributes,
    },
    Close {
        handle: &'a [u8],
    },
    Read {
        handle: &'a [u8],
        offset: u64,
        length: u32,
    },
    Write {
        handle: &'a [u8],
        offset: u64,
        data: &'a [u8],
    },
    Lstat {
        path: &'a [u8],
    },
    Fstat {
        handle: &'a [u8],
    },
    SetStat {
        path: &'a [u8],
        attributes: FileAttributes,
    },
    FsetStat {
        handle: &'a [u8],
        attributes: FileAttributes,
    },
    OpenDir {
        path: &'a [u8],
    },
    ReadDir {
        handle: &'a [u8],
    },
    Remove {
        path: &'a [u8],
    },
    MakeDir {
        path: &'a [u8],
        attributes: FileAttributes,
    },
    RemoveDir {
        path: &'a [u8],
    },
    RealPath {
        path: &'a [u8],
    },
    Stat {
        path: &'a [u8],
    },
    Rename {
        from: &'a [u8],
        to: &'a [u8],
    },
    ReadLink {
        path: &'a [u8],
    },
    Symlink {
        target: &'a [u8],
        link: &'a [u8],
    },
    Extended {
        name: &'a [u8],
        fields: Fields<'a>,
    },
    Unknown,
}

/// A packet that is no request.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Malformed {
    /// Its number, if it got that far.
    id: u32,
}

impl Malformed {
    /// Answers with a status: the next packet may be sound.
    pub(super) fn answer(&self, replies: &mut Vec<u8>) {
        Reply::new(replies, self.id).status(&Status::BAD_MESSAGE);
    }
}

/// A field runs past the end of its packet.
#[derive(Debug)]
pub(super) struct Truncated;

impl<'a> Request<'a> {
    /// Reads a packet without its length field. Bytes after the last field are ignored, as OpenSSH does.
    pub(super) fn parse(packet: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Fields(packet);
        let kind = fields.byte().map_err(|_| Malformed { id: 0 })?;
        if kind == kind::INIT {
            return Ok(Self::Init);
        }
        let id = fields.u32().map_err(|_| Malformed { id: 0 })?;
        match Operation::parse(kind, &mut fields) {
            Ok(operation) => Ok(Self::Numbered { id, operation }),
            Err(Truncated) => Err(Malformed { id }),
        }
    }
}

impl<'a> Operation<'a> {
    fn parse(kind: u8, fields: &mut Fields<'a>) -> Result<Self, Truncated> {
        Ok(match kind {
            kind::OPEN => Self::Open {
                path: fields.string()?,
                flags: fields.u32()?,
                attributes: fields.attributes()?,
            },
            kind::CLOSE => Self::Close {
                handle: fields.string()?,
            },
            kind::READ => Self::Read {
                handle: fields.string()?,
                offset: fields.u64()?,
                length: fields.u32()?,
            },
            kind::WRITE => Self::Write {
                handle: fields.string()?,
                offset: fields.u64()?,
                data: fields.string()?,
            },
            kind::LSTAT => Self::Lstat { path: fields.string()? },
            kind::FSTAT => Self::Fstat {
                handle: fields.string()?,
            },
            kind::SETSTAT => Self::SetStat {
                path: fields.string()?,
                attributes: fields.attributes()?,
            },
            kind::FSETSTAT => Self::FsetStat {
                handle: fields.string()?,
                attributes: fields.attributes()?,
            },
            kind::OPENDIR => Self::OpenDir { path: fields.string()? },
            kind::READDIR => Self::ReadDir {
                handle: fields.string()?,
            },
            kind::REMOVE => Self::Remove { path: fields.string()? },
            kind::MKDIR => Self::MakeDir {
                path: fields.string()?,
                attributes: fields.attributes()?,
            },
            kind::RMDIR => Self::RemoveDir { path: fields.string()? },
            kind::REALPATH => Self::RealPath { path: fields.string()? },
            kind::STAT => Self::Stat { path: fields.string()? },
            kind::RENAME => Self::Rename {
                from: fields.string()?,
                to: fields.string()?,
            },
            kind::READLINK => Self::ReadLink { path: fields.string()? },
            // OpenSSH's order, which every client follows: the draft has it the other way round.
            kind::SYMLINK => Self::Symlink {
                target: fields.string()?,
                link: fields.string()?,
            },
            kind::EXTENDED => Self::Extended {
                name: fields.string()?,
                fields: *fields,
            },
            _ => Self::Unknown,
        })
    }
}

/// What is left of a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Truncated> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Truncated)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8, Truncated> {
        self.take::<1>().map(|[byte]| byte)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Truncated> {
        self.take().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Truncated> {
        self.take().map(u64::from_be_bytes)
    }

    pub(super) fn string(&mut self) -> Result<&'a [u8], Truncated> {
        let length = usize::try_from(self.u32()?).map_err(|_| Truncated)?;
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    /// The numbers that fill the rest of a field.
    pub(super) fn numbers(field: &'a [u8]) -> impl Iterator<Item = u32> + 'a {
        field.as_chunks().0.iter().map(|number| u32::from_be_bytes(*number))
    }

    pub(super) fn attributes(&mut self) -> Result<FileAttributes, Truncated> {
        FileAttributes::decode(&mut self.0).map_err(|_| Truncated)
    }
}

/// One reply under construction. Each of its methods completes it.
pub(super) struct Reply<'a> {
    packet: Packet<'a>,
    id: u32,
}

impl<'a> Reply<'a> {
    /// A reply to request `id`, behind the replies that are there already.
    pub(super) fn new(replies: &'a mut Vec<u8>, id: u32) -> Self {
        Self {
            packet: Packet::new(replies),
            id,
        }
    }

    fn begin(mut self, kind: u8) -> Packet<'a> {
        self.packet.byte(kind);
        self.packet.u32(self.id);
        self.packet
    }

    pub(super) fn status(self, status: &Status) {
        let mut packet = self.begin(kind::STATUS_REPLY);
        packet.u32(status.code());
        packet.string(status.message().as_bytes());
        packet.string(b"");
    }

    pub(super) fn handle(self, handle: &[u8]) {
        self.begin(kind::HANDLE_REPLY).string(handle);
    }

    pub(super) fn attributes(self, attributes: &FileAttributes) {
        self.begin(kind::ATTRIBUTES_REPLY).attributes(attributes);
    }

    /// A single name, with itself for its listing and no attributes.
    pub(super) fn name(self, name: &[u8]) {
        let mut packet = self.begin(kind::NAME_REPLY);
        packet.u32(1);
        packet.string(name);
        packet.string(name);
        packet.attributes(&FileAttributes::default());
    }

    /// Data that `read` puts in place, at most `limit` bytes. When it gives a status instead, that is the reply.
    pub(super) fn data(self, limit: usize, read: impl FnOnce(&mut [u8]) -> Result<usize, Status>) {
        let id = self.id;
        let mut packet = self.begin(kind::DATA_REPLY);
        match packet.string_from(limit, read) {
            Ok(()) => {}
            Err(status) => packet.restart(id).status(&status),
        }
    }

    /// Several names, each added by `add`, until it says that there is no more to add.
    pub(super) fn names(self) -> Names<'a> {
        let mut packet = self.begin(kind::NAME_REPLY);
        let count_at = packet.replies.len();
        packet.u32(0);
        Names {
            packet,
            count_at,
            count: 0,
        }
    }

    pub(super) fn extended(self) -> Packet<'a> {
        self.begin(kind::EXTENDED_REPLY)
    }
}

/// A reply of names.
pub(super) struct Names<'a> {
    packet: Packet<'a>,
    count_at: usize,
    count: u32,
}

impl Names<'_> {
    pub(super) fn add(&mut self, name: &[u8], listing: &[u8], attributes: &FileAttributes) {
        self.packet.string(name);
        self.packet.string(listing);
        self.packet.attributes(attributes);
        self.count += 1;
        let count_at = self.count_at;
        self.packet.replies[count_at..count_at + LENGTH_FIELD].copy_from_slice(&self.count.to_be_bytes());
    }

    /// The reply's length so far, in bytes.
    pub(super) fn len(&self) -> usize {
        self.packet.replies.len() - self.packet.start
    }

    /// Turns a reply without names into a status.
    pub(super) fn into_status(self, id: u32, status: &Status) {
        self.packet.restart(id).status(status);
    }
}

/// A packet under construction; its length is put in place when it is dropped.
pub(super) struct Packet<'a> {
    replies: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> Packet<'a> {
    fn new(replies: &'a mut Vec<u8>) -> Self {
        let start = replies.len();
        replies.extend([0; LENGTH_FIELD]);
        Self { replies, start }
    }

    fn byte(&mut self, value: u8) {
        self.replies.push(value);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.replies.extend(value.to_be_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.replies.extend(value.to_be_bytes());
    }

    pub(super) fn string(&mut self, value: &[u8]) {
        self.u32(u32::try_from(value.len()).expect("no reply comes near 4 GiB"));
        self.replies.extend(value);
    }

    fn string_from(
        &mut self,
        limit: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, Status>,
    ) -> Result<(), Status> {
        let length_at = self.replies.len();
        let data_at = length_at + LENGTH_FIELD;
        self.replies.resize(data_at + limit, 0);
        let length = fill(&mut self.replies[data_at..])?.min(limit);
        self.replies.truncate(data_at + length);
        let length = u32::try_from(length).expect("no reply comes near 4 GiB");
        self.replies[length_at..data_at].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }

    fn attributes(&mut self, attributes: &FileAttributes) {
        attributes.encode(self.replies);
    }

    /// Drops what was built, to reply something else.
    fn restart(self, id: u32) -> Reply<'a> {
        self.replies.truncate(self.start + LENGTH_FIELD);
        Reply { packet: self, id }
    }
}

impl Drop for Packet<'_> {
    fn drop(&mut self) {
        let length = self.replies.len() - self.start - LENGTH_FIELD;
        let length = u32::try_from(length).expect("no reply comes near 4 GiB");
        self.replies[self.start..self.start + LENGTH_FIELD].copy_from_slice(&length.to_be_bytes());
    }
}

/// The answer to `kind::INIT`: the version and the extensions, each with its own version.
pub(super) fn version(replies: &mut Vec<u8>, extensions: &[(&str, &str)]) {
    let mut packet = Packet::new(replies);
    packet.byte(kind::VERSION_REPLY);
    packet.u32(VERSION);
    for (name, version) in extensions {
        packet.string(name.as_bytes());
        packet.string(version.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_string_longer_than_its_packet_is_malformed_and_the_number_survives() {
        let packet = [kind::LSTAT, 0, 0, 0, 9, 0xff, 0xff, 0xff, 0xff, b'/'];
        assert_eq!(Request::parse(&packet), Err(Malformed { id: 9 }));
    }

    #[test]
    fn extended_attributes_without_end_are_malformed() {
        let packet = [
            kind::MKDIR,
            0,
            0,
            0,
            1,
            0,
            0,
            0,
            1,
            b'd',
            0x80,
            0,
            0,
            0,
            0xff,
            0xff,
            0xff,
            0xff,
        ];
        assert_eq!(Request::parse(&packet), Err(Malformed { id: 1 }));
    }

    #[test]
    fn a_read_that_fails_leaves_only_its_status() {
        let mut replies = vec![1, 2, 3];
        Reply::new(&mut replies, 5).data(100, |_| Err(Status::EOF));
        assert_eq!(replies[..3], [1, 2, 3]);
        assert_eq!(replies[3 + LENGTH_FIELD], kind::STATUS_REPLY);
        let length = u32::from_be_bytes(replies[3..7].try_into().unwrap());
        assert_eq!(usize::try_from(length).unwrap(), replies.len() - 7);
    }

    proptest! {
        #[test]
        fn any_bytes_parse_without_panic(packet in prop::collection::vec(any::<u8>(), 0..120)) {
            let _ = Request::parse(&packet);
        }
    }
}
