//! What is known of a file, as it travels (section 5).

use super::attribute;

/// The bits of a mode that say what a file is (`inode(7)`).
const KIND_MASK: u32 = 0o170_000;

/// The bits of a mode that can be set: permissions, set-id and sticky.
const MODE_MASK: u32 = 0o7777;

/// The attributes of a file run past the end of their packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the attributes of a file run past the end of their packet")]
pub struct Truncated;

/// What a file is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, a FIFO or a socket.
    Special,
    /// The server did not say.
    Unknown,
}

/// Attributes of a file. What is absent is unknown, or not to be changed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct FileAttributes {
    /// Its size, in bytes.
    pub size: Option<u64>,
    /// The ids of its user and its group.
    pub owner: Option<(u32, u32)>,
    /// Its mode, with the bits for its kind when it comes from a server.
    pub permissions: Option<u32>,
    /// When it was accessed and when it was changed, in seconds since 1970.
    pub times: Option<(u32, u32)>,
}

impl FileAttributes {
    /// Only a mode.
    pub fn with_mode(mode: u32) -> Self {
        Self {
            permissions: Some(mode & MODE_MASK),
            ..Self::default()
        }
    }

    /// What it is.
    pub fn kind(&self) -> FileKind {
        match self.permissions.map(|mode| mode & KIND_MASK) {
            Some(0o100_000) => FileKind::File,
            Some(0o040_000) => FileKind::Directory,
            Some(0o120_000) => FileKind::Symlink,
            None | Some(0) => FileKind::Unknown,
            Some(_) => FileKind::Special,
        }
    }

    /// Its mode without the bits for its kind.
    pub fn mode(&self) -> Option<u32> {
        self.permissions.map(|mode| mode & MODE_MASK)
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.kind() == FileKind::Directory
    }

    /// Appends them to a packet.
    pub fn encode(&self, packet: &mut impl Extend<u8>) {
        packet.extend(self.flags().to_be_bytes());
        packet.extend(self.size.iter().flat_map(|size| size.to_be_bytes()));
        let owner = self.owner.map(<[u32; 2]>::from);
        let times = self.times.map(<[u32; 2]>::from);
        let numbers = owner
            .iter()
            .flatten()
            .chain(&self.permissions)
            .chain(times.iter().flatten());
        packet.extend(numbers.flat_map(|number| number.to_be_bytes()));
    }

    /// Takes them from the front of `fields`, which is then what is left. Extended ones are passed over.
    ///
    /// # Errors
    /// When they run past the end.
    pub fn decode(fields: &mut &[u8]) -> Result<Self, Truncated> {
        let flags = take_u32(fields)?;
        let mut attributes = Self::default();
        if flags & attribute::SIZE != 0 {
            attributes.size = Some(u64::from_be_bytes(take(fields)?));
        }
        if flags & attribute::OWNER != 0 {
            attributes.owner = Some((take_u32(fields)?, take_u32(fields)?));
        }
        if flags & attribute::PERMISSIONS != 0 {
            attributes.permissions = Some(take_u32(fields)?);
        }
        if flags & attribute::TIMES != 0 {
            attributes.times = Some((take_u32(fields)?, take_u32(fields)?));
        }
        if flags & attribute::EXTENDED != 0 {
            for _ in 0..take_u32(fields)? {
                skip_string(fields)?;
                skip_string(fields)?;
            }
        }
        Ok(attributes)
    }

    fn flags(&self) -> u32 {
        let flag = |present, flag| if present { flag } else { 0 };
        flag(self.size.is_some(), attribute::SIZE)
            | flag(self.owner.is_some(), attribute::OWNER)
            | flag(self.permissions.is_some(), attribute::PERMISSIONS)
            | flag(self.times.is_some(), attribute::TIMES)
    }
}

fn take<const N: usize>(fields: &mut &[u8]) -> Result<[u8; N], Truncated> {
    let (taken, rest) = fields.split_first_chunk().ok_or(Truncated)?;
    *fields = rest;
    Ok(*taken)
}

fn take_u32(fields: &mut &[u8]) -> Result<u32, Truncated> {
    take(fields).map(u32::from_be_bytes)
}

fn skip_string(fields: &mut &[u8]) -> Result<(), Truncated> {
    let length = usize::try_from(take_u32(fields)?).map_err(|_| Truncated)?;
    *fields = fields.get(length..).ok_or(Truncated)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn they_survive_the_wire_and_leave_what_follows(
            size: Option<u64>, owner: Option<(u32, u32)>, permissions: Option<u32>, times: Option<(u32, u32)>,
            following: [u8; 3],
        ) {
            let attributes = FileAttributes { size, owner, permissions, times };
            let mut packet = Vec::new();
            attributes.encode(&mut packet);
            packet.extend(following);
            let mut fields = packet.as_slice();
            prop_assert_eq!(FileAttributes::decode(&mut fields), Ok(attributes));
            prop_assert_eq!(fields, following);
        }

        #[test]
        fn any_bytes_are_attributes_or_truncated(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let mut fields = bytes.as_slice();
            let _ = FileAttributes::decode(&mut fields);
            prop_assert!(bytes.ends_with(fields));
        }
    }

    #[test]
    fn they_are_written_as_the_draft_says() {
        let attributes = FileAttributes {
            size: Some(1),
            owner: Some((2, 3)),
            permissions: Some(4),
            times: Some((5, 6)),
        };
        let mut packet = Vec::new();
        attributes.encode(&mut packet);
        let numbers = [0xf, 0, 1, 2, 3, 4, 5, 6].map(u32::to_be_bytes);
        assert_eq!(packet, numbers.concat());
    }

    #[test]
    fn extended_ones_are_passed_over_and_may_not_run_past_the_end() {
        let mut fields: &[u8] = &[0x80, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, b'a', 0, 0, 0, 0, 9];
        assert_eq!(FileAttributes::decode(&mut fields), Ok(FileAttributes::default()));
        assert_eq!(fields, [9]);
        let mut endless: &[u8] = &[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(FileAttributes::decode(&mut endless), Err(Truncated));
    }

    #[test]
    fn the_mode_says_what_a_file_is() {
        let kind = |permissions| {
            FileAttributes {
                permissions,
                ..FileAttributes::default()
            }
            .kind()
        };
        assert_eq!(kind(Some(0o100_644)), FileKind::File);
        assert_eq!(kind(Some(0o040_755)), FileKind::Directory);
        assert_eq!(kind(Some(0o120_777)), FileKind::Symlink);
        assert_eq!(kind(Some(0o010_644)), FileKind::Special);
        assert_eq!(kind(Some(0o644)), FileKind::Unknown);
        assert_eq!(kind(None), FileKind::Unknown);
    }
}
