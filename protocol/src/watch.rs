//! The subsystem `watch@msb`: tells what changes in a directory of a guest.
//!
//! A channel carries frames ([`crate::frame`]). Both ends say [`Request::Hello`] and [`Reply::Hello`] first; the
//! lower of the two versions is spoken. Then the client makes one [`Request::Watch`], answered by [`Reply::Watching`] and
//! changes until [`Reply::Gone`] or the end of the channel, or by [`Reply::Failed`].
//!
//! Paths are bytes, relative to what is watched, whose own path is empty. A client that does not read makes the guest drop
//! changes, which [`Change::Lost`] tells in their place.

use crate::wire::{Malformed, Reader, Writer, frame};

/// The name of the subsystem.
pub const SUBSYSTEM: &str = "watch@msb";

/// The version that this crate describes.
pub const VERSION: u32 = 1;

/// The longest path that is watched, in bytes: `PATH_MAX`.
pub const MAX_PATH: usize = 4096;

/// What a client says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Request {
    /// The highest version it speaks.
    Hello {
        /// The version.
        version: u32,
    },
    /// What to watch.
    Watch {
        /// A file or a directory; relative to the user's home. A link is followed.
        path: Vec<u8>,
        /// Whether the directories in it are watched, too.
        recursive: bool,
    },
}

/// What the guest says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Reply {
    /// The version that is spoken.
    Hello {
        /// The version.
        version: u32,
    },
    /// From now on changes are told.
    Watching,
    /// Something changed.
    Change(Change),
    /// What was watched was removed, renamed or unmounted: nothing more is told.
    Gone,
    /// It cannot be watched, or not any more.
    Failed {
        /// For people.
        message: String,
    },
}

/// A change.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// It was made, or came from elsewhere.
    Created {
        /// What.
        path: Vec<u8>,
        /// Whether it is a directory.
        is_dir: bool,
    },
    /// Its content changed.
    Modified {
        /// What.
        path: Vec<u8>,
    },
    /// Its mode, owner, times or other attributes changed.
    Attributes {
        /// What.
        path: Vec<u8>,
    },
    /// It was removed, or went elsewhere.
    Removed {
        /// What.
        path: Vec<u8>,
        /// Whether it was a directory.
        is_dir: bool,
    },
    /// It has another name, or is in another directory that is watched.
    Renamed {
        /// What it was called.
        from: Vec<u8>,
        /// What it is called.
        to: Vec<u8>,
        /// Whether it is a directory.
        is_dir: bool,
    },
    /// This directory cannot be watched: what changes in it is not told.
    Unwatched {
        /// Which.
        path: Vec<u8>,
        /// Why not, for people.
        message: String,
    },
    /// Changes were not told, because too many came or too few were taken.
    Lost {
        /// How many, if that is known; zero if not.
        changes: u64,
    },
}

mod kind {
    pub(super) const HELLO: u8 = 1;
    pub(super) const WATCH: u8 = 2;
    pub(super) const HELLO_REPLY: u8 = 65;
    pub(super) const WATCHING: u8 = 66;
    pub(super) const CREATED: u8 = 67;
    pub(super) const MODIFIED: u8 = 68;
    pub(super) const ATTRIBUTES: u8 = 69;
    pub(super) const REMOVED: u8 = 70;
    pub(super) const RENAMED: u8 = 71;
    pub(super) const UNWATCHED: u8 = 72;
    pub(super) const LOST: u8 = 73;
    pub(super) const GONE: u8 = 74;
    pub(super) const FAILED: u8 = 75;
}

impl Request {
    /// Reads a frame, without its length.
    ///
    /// # Errors
    /// When it is no request.
    pub fn decode(frame: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(frame)?;
        let fields = &mut reader;
        let request = match fields.kind() {
            kind::HELLO => Self::Hello { version: fields.u32()? },
            kind::WATCH => Self::Watch {
                path: fields.bytes()?,
                recursive: fields.bool()?,
            },
            unknown => return Err(Malformed::Kind(unknown)),
        };
        reader.end().map(|()| request)
    }

    /// Appends the frame, with its length.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello { version } => frame(out, kind::HELLO, |fields| fields.u32(*version)),
            Self::Watch { path, recursive } => frame(out, kind::WATCH, |fields| {
                fields.bytes(path);
                fields.bool(*recursive);
            }),
        }
    }
}

impl Reply {
    /// Reads a frame, without its length.
    ///
    /// # Errors
    /// When it is no reply.
    pub fn decode(frame: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(frame)?;
        let fields = &mut reader;
        let reply = match fields.kind() {
            kind::HELLO_REPLY => Self::Hello { version: fields.u32()? },
            kind::WATCHING => Self::Watching,
            kind::GONE => Self::Gone,
            kind::FAILED => Self::Failed {
                message: fields.text()?,
            },
            _ => Self::Change(Change::read(fields)?),
        };
        reader.end().map(|()| reply)
    }

    /// Appends the frame, with its length.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello { version } => frame(out, kind::HELLO_REPLY, |fields| fields.u32(*version)),
            Self::Watching => frame(out, kind::WATCHING, |_| {}),
            Self::Change(change) => frame(out, change.kind(), |fields| change.write(fields)),
            Self::Gone => frame(out, kind::GONE, |_| {}),
            Self::Failed { message } => frame(out, kind::FAILED, |fields| fields.bytes(message.as_bytes())),
        }
    }
}

impl Change {
    fn kind(&self) -> u8 {
        match self {
            Self::Created { .. } => kind::CREATED,
            Self::Modified { .. } => kind::MODIFIED,
            Self::Attributes { .. } => kind::ATTRIBUTES,
            Self::Removed { .. } => kind::REMOVED,
            Self::Renamed { .. } => kind::RENAMED,
            Self::Unwatched { .. } => kind::UNWATCHED,
            Self::Lost { .. } => kind::LOST,
        }
    }

    fn read(fields: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(match fields.kind() {
            kind::CREATED => Self::Created {
                path: fields.bytes()?,
                is_dir: fields.bool()?,
            },
            kind::MODIFIED => Self::Modified { path: fields.bytes()? },
            kind::ATTRIBUTES => Self::Attributes { path: fields.bytes()? },
            kind::REMOVED => Self::Removed {
                path: fields.bytes()?,
                is_dir: fields.bool()?,
            },
            kind::RENAMED => Self::Renamed {
                from: fields.bytes()?,
                to: fields.bytes()?,
                is_dir: fields.bool()?,
            },
            kind::UNWATCHED => Self::Unwatched {
                path: fields.bytes()?,
                message: fields.text()?,
            },
            kind::LOST => Self::Lost { changes: fields.u64()? },
            unknown => return Err(Malformed::Kind(unknown)),
        })
    }

    fn write(&self, fields: &mut Writer<'_>) {
        match self {
            Self::Created { path, is_dir } | Self::Removed { path, is_dir } => {
                fields.bytes(path);
                fields.bool(*is_dir);
            }
            Self::Modified { path } | Self::Attributes { path } => fields.bytes(path),
            Self::Renamed { from, to, is_dir } => {
                fields.bytes(from);
                fields.bytes(to);
                fields.bool(*is_dir);
            }
            Self::Unwatched { path, message } => {
                fields.bytes(path);
                fields.bytes(message.as_bytes());
            }
            Self::Lost { changes } => fields.u64(*changes),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn path() -> impl Strategy<Value = Vec<u8>> {
        vec(any::<u8>(), 0..20)
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            (path(), any::<bool>()).prop_map(|(path, is_dir)| Change::Created { path, is_dir }),
            path().prop_map(|path| Change::Modified { path }),
            path().prop_map(|path| Change::Attributes { path }),
            (path(), any::<bool>()).prop_map(|(path, is_dir)| Change::Removed { path, is_dir }),
            (path(), path(), any::<bool>()).prop_map(|(from, to, is_dir)| Change::Renamed { from, to, is_dir }),
            (path(), "\\PC{0,12}").prop_map(|(path, message)| Change::Unwatched { path, message }),
            any::<u64>().prop_map(|changes| Change::Lost { changes }),
        ]
    }

    fn reply() -> impl Strategy<Value = Reply> {
        prop_oneof![
            any::<u32>().prop_map(|version| Reply::Hello { version }),
            Just(Reply::Watching),
            Just(Reply::Gone),
            "\\PC{0,12}".prop_map(|message| Reply::Failed { message }),
            change().prop_map(Reply::Change),
        ]
    }

    fn request() -> impl Strategy<Value = Request> {
        prop_oneof![
            any::<u32>().prop_map(|version| Request::Hello { version }),
            (path(), any::<bool>()).prop_map(|(path, recursive)| Request::Watch { path, recursive }),
        ]
    }

    proptest! {
        #[test]
        fn messages_survive_their_frames_and_no_part_of_one_is_a_message(reply in reply(), request in request()) {
            let (mut replied, mut requested) = (Vec::new(), Vec::new());
            reply.encode(&mut replied);
            request.encode(&mut requested);
            prop_assert_eq!(Reply::decode(&replied[4..]).unwrap(), reply);
            prop_assert_eq!(Request::decode(&requested[4..]).unwrap(), request);
            for end in 4..replied.len() {
                prop_assert!(Reply::decode(&replied[4..end]).is_err());
            }
            for end in 4..requested.len() {
                prop_assert!(Request::decode(&requested[4..end]).is_err());
            }
            replied.push(0);
            prop_assert!(Reply::decode(&replied[4..]).is_err());
        }

        #[test]
        fn what_any_bytes_mean_is_said_in_no_other_way(bytes in vec(any::<u8>(), 0..64)) {
            let mut again = Vec::new();
            if let Ok(reply) = Reply::decode(&bytes) {
                reply.encode(&mut again);
            } else if let Ok(request) = Request::decode(&bytes) {
                request.encode(&mut again);
            } else {
                return Ok(());
            }
            prop_assert_eq!(&again[4..], &bytes[..]);
        }
    }
}
