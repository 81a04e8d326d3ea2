//! What is known of a file.

use msb_protocol::sftp::attribute;

/// The bits of a mode that say what a file is (`inode(7)`).
const KIND_MASK: u32 = 0o170_000;

/// The bits of a mode that can be set: permissions, set-id and sticky.
const MODE_MASK: u32 = 0o7777;

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

    /// Which attributes are there.
    pub(super) fn flags(&self) -> u32 {
        let flag = |present, flag| if present { flag } else { 0 };
        flag(self.size.is_some(), attribute::SIZE)
            | flag(self.owner.is_some(), attribute::OWNER)
            | flag(self.permissions.is_some(), attribute::PERMISSIONS)
            | flag(self.times.is_some(), attribute::TIMES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
