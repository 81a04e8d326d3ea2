//! The entries of a directory, page by page.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use msb_protocol::sftp::FileAttributes;

use super::codec::{Name, Reply, Request};
use super::connection::PendingReply;
use super::error::{SftpError, StatusCode};
use super::file::SftpFile;

/// An entry of a directory.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DirEntry {
    /// Its name, exactly the guest's bytes: one component, neither `.` nor `..`.
    pub name: OsString,
    /// What is known of it; of a link, not of what it leads to.
    pub attributes: FileAttributes,
}

/// A directory that is being listed, in the server's order. One page is asked for ahead.
#[derive(Debug)]
pub struct SftpDirectory {
    handle: SftpFile,
    entries: VecDeque<DirEntry>,
    next_page: Option<PendingReply>,
}

const LIST: &str = "list";

impl SftpDirectory {
    pub(super) fn new(handle: SftpFile) -> Self {
        let mut directory = Self {
            handle,
            entries: VecDeque::new(),
            next_page: None,
        };
        directory.next_page = Some(directory.request_page());
        directory
    }

    /// The next entry; none at the end. No entry is lost when this future is dropped.
    ///
    /// # Errors
    /// When the server refuses or sends a name that is none, or the session ends.
    pub async fn next(&mut self) -> Result<Option<DirEntry>, SftpError> {
        while self.entries.is_empty() {
            let Some(page) = &mut self.next_page else {
                return Ok(None);
            };
            let reply = page.await;
            self.next_page = None;
            match reply {
                Ok(Reply::Names(names)) if !names.is_empty() => self.take_page(names)?,
                Ok(Reply::Names(_)) => return Err(self.handle.nonsense(LIST, "an empty list of names")),
                Ok(Reply::Status(status)) if status.code == StatusCode::Eof => {}
                Ok(other) => return Err(self.handle.unexpected(LIST, other)),
                Err(cause) => return Err(self.handle.ended(LIST, cause)),
            }
        }
        Ok(self.entries.pop_front())
    }

    /// Closes it.
    ///
    /// # Errors
    /// When the server refuses, or the session ends.
    pub async fn close(self) -> Result<(), SftpError> {
        self.handle.close().await
    }

    fn request_page(&self) -> PendingReply {
        self.handle.request(Request::readdir)
    }

    fn take_page(&mut self, names: Vec<Name>) -> Result<(), SftpError> {
        for Name { name, attributes } in names {
            if matches!(&name[..], b"." | b"..") {
                continue;
            }
            if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
                return Err(self.handle.nonsense(LIST, "a name that no file can have"));
            }
            self.entries.push_back(DirEntry {
                name: OsStr::from_bytes(&name).to_owned(),
                attributes,
            });
        }
        self.next_page = Some(self.request_page());
        Ok(())
    }
}
