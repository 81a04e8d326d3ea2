//! The numbers of SFTP version 3 (draft-ietf-secsh-filexfer-02), and the attributes of files.

mod attributes;

pub use attributes::{FileAttributes, FileKind, Truncated};

/// The version that both ends speak.
pub const VERSION: u32 = 3;

/// Kinds of packets (section 3).
#[expect(missing_docs, reason = "named as in the draft, without SSH_FXP_")]
pub mod kind {
    pub const INIT: u8 = 1;
    pub const VERSION_REPLY: u8 = 2;
    pub const OPEN: u8 = 3;
    pub const CLOSE: u8 = 4;
    pub const READ: u8 = 5;
    pub const WRITE: u8 = 6;
    pub const LSTAT: u8 = 7;
    pub const FSTAT: u8 = 8;
    pub const SETSTAT: u8 = 9;
    pub const FSETSTAT: u8 = 10;
    pub const OPENDIR: u8 = 11;
    pub const READDIR: u8 = 12;
    pub const REMOVE: u8 = 13;
    pub const MKDIR: u8 = 14;
    pub const RMDIR: u8 = 15;
    pub const REALPATH: u8 = 16;
    pub const STAT: u8 = 17;
    pub const RENAME: u8 = 18;
    pub const READLINK: u8 = 19;
    pub const SYMLINK: u8 = 20;
    pub const EXTENDED: u8 = 200;
    pub const STATUS_REPLY: u8 = 101;
    pub const HANDLE_REPLY: u8 = 102;
    pub const DATA_REPLY: u8 = 103;
    pub const NAME_REPLY: u8 = 104;
    pub const ATTRIBUTES_REPLY: u8 = 105;
    pub const EXTENDED_REPLY: u8 = 201;
}

/// Which attributes of a file are there (section 5).
pub mod attribute {
    /// Its size.
    pub const SIZE: u32 = 1;
    /// The ids of its user and its group.
    pub const OWNER: u32 = 2;
    /// Its mode.
    pub const PERMISSIONS: u32 = 4;
    /// When it was accessed and when it was changed.
    pub const TIMES: u32 = 8;
    /// Pairs of names and values.
    pub const EXTENDED: u32 = 1 << 31;
}

/// How a file is opened (section 6.3).
pub mod open {
    /// For reading.
    pub const READ: u32 = 1;
    /// For writing.
    pub const WRITE: u32 = 2;
    /// For writing at its end.
    pub const APPEND: u32 = 4;
    /// Making it when it does not exist.
    pub const CREATE: u32 = 8;
    /// Emptying it.
    pub const TRUNCATE: u32 = 16;
    /// Failing when it exists.
    pub const EXCLUSIVE: u32 = 32;
}
