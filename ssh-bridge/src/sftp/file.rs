//! An open file in a guest.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use msb_protocol::sftp::{FileAttributes, open};

use super::codec::{Reply, Request};
use super::connection::PendingReply;
use super::error::{EndCause, SftpError, StatusCode};
use super::{Link, SftpReader, SftpWriter, replies};

/// How a file is opened.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    flags: u32,
    mode: Option<u32>,
}

impl OpenOptions {
    /// For nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// For reading.
    #[must_use]
    pub fn read(self) -> Self {
        self.with(open::READ)
    }

    /// For writing.
    #[must_use]
    pub fn write(self) -> Self {
        self.with(open::WRITE)
    }

    /// For writing at its end, wherever a write says.
    #[must_use]
    pub fn append(self) -> Self {
        self.with(open::WRITE | open::APPEND)
    }

    /// Making it when it does not exist.
    #[must_use]
    pub fn create(self) -> Self {
        self.with(open::CREATE)
    }

    /// Making it, and failing when it exists.
    #[must_use]
    pub fn create_new(self) -> Self {
        self.with(open::CREATE | open::EXCLUSIVE)
    }

    /// Emptying it.
    #[must_use]
    pub fn truncate(self) -> Self {
        self.with(open::TRUNCATE)
    }

    /// With this mode when it is made, less the server's umask. Default: 0666.
    #[must_use]
    pub fn mode(self, mode: u32) -> Self {
        Self {
            mode: Some(mode),
            ..self
        }
    }

    fn with(self, flags: u32) -> Self {
        Self {
            flags: self.flags | flags,
            ..self
        }
    }

    pub(super) fn request(&self, path: &[u8]) -> Request {
        let attributes = self.mode.map(FileAttributes::with_mode).unwrap_or_default();
        Request::open(path, self.flags, &attributes)
    }
}

/// An open file. Dropped, it is closed, but nobody hears whether that succeeded.
#[derive(Debug)]
pub struct SftpFile {
    link: Arc<Link>,
    handle: Bytes,
    path: PathBuf,
    is_closed: bool,
}

impl SftpFile {
    pub(super) fn new(link: Arc<Link>, handle: Bytes, path: &Path) -> Self {
        Self {
            link,
            handle,
            path: path.to_owned(),
            is_closed: false,
        }
    }

    /// Its path, as it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads at most `length` bytes at `offset`, and at most what the server gives at once. None at the end.
    ///
    /// # Errors
    /// When the server refuses, or the session ends.
    pub async fn read_at(&self, offset: u64, length: u32) -> Result<Option<Bytes>, SftpError> {
        let asked = length.min(self.read_chunk());
        match self.request_read(offset, asked).await {
            Ok(Reply::Data(data)) if u32::try_from(data.len()).is_ok_and(|given| given <= asked) => Ok(Some(data)),
            Ok(Reply::Data(_)) => Err(self.nonsense("read", "more data than were asked for")),
            Ok(Reply::Status(status)) if status.code == StatusCode::Eof => Ok(None),
            Ok(other) => Err(self.unexpected("read", other)),
            Err(cause) => Err(self.ended("read", cause)),
        }
    }

    /// Writes all of `data` at `offset`, in as many requests as the server needs.
    ///
    /// # Errors
    /// When the server refuses, or the session ends.
    pub async fn write_at(&self, mut offset: u64, mut data: Bytes) -> Result<(), SftpError> {
        let chunk = usize::try_from(self.write_chunk()).expect("a chunk is shorter than a packet");
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(chunk));
            let length = u64::try_from(piece.len()).expect("a chunk is shorter than a packet");
            self.done("write", self.request_write(offset, piece).await)?;
            offset = offset.saturating_add(length);
        }
        Ok(())
    }

    /// What is known of it.
    ///
    /// # Errors
    /// When the server refuses, or the session ends.
    pub async fn attributes(&self) -> Result<FileAttributes, SftpError> {
        match self.link.connection.send(Request::fstat(&self.handle)).await {
            Ok(Reply::Attributes(attributes)) => Ok(attributes),
            Ok(other) => Err(self.unexpected("look at", other)),
            Err(cause) => Err(self.ended("look at", cause)),
        }
    }

    /// Changes what is there in `attributes`.
    ///
    /// # Errors
    /// When the server refuses, or the session ends.
    pub async fn set_attributes(&self, attributes: &FileAttributes) -> Result<(), SftpError> {
        let request = Request::fsetstat(&self.handle, attributes);
        self.done("change the attributes of", self.link.connection.send(request).await)
    }

    /// Makes sure that it survives a crash of the guest. [`StatusCode::Unsupported`] where the server cannot.
    ///
    /// # Errors
    /// When the server refuses, or the session ends.
    pub async fn sync(&self) -> Result<(), SftpError> {
        let request = Request::extended("fsync@openssh.com", &[&self.handle]);
        self.done("sync", self.link.connection.send(request).await)
    }

    /// Reads it from its beginning, with many requests under way.
    pub fn into_reader(self) -> SftpReader {
        SftpReader::new(self, None)
    }

    /// As [`Self::into_reader`], but up to `length` bytes: a file whose length is known needs fewer requests.
    pub fn into_reader_of(self, length: u64) -> SftpReader {
        SftpReader::new(self, Some(length))
    }

    /// Writes it from its beginning, with many requests under way.
    pub fn into_writer(self) -> SftpWriter {
        SftpWriter::new(self)
    }

    /// Closes it.
    ///
    /// # Errors
    /// When the server could not write what it held, or the session ends.
    pub async fn close(mut self) -> Result<(), SftpError> {
        let reply = self.request_close().await;
        self.done("close", reply)
    }

    pub(super) fn read_chunk(&self) -> u32 {
        self.link.limits.read
    }

    pub(super) fn write_chunk(&self) -> u32 {
        self.link.limits.write
    }

    /// Any request about the handle.
    pub(super) fn request(&self, request: impl FnOnce(&[u8]) -> Request) -> PendingReply {
        self.link.connection.send(request(&self.handle))
    }

    pub(super) fn request_read(&self, offset: u64, length: u32) -> PendingReply {
        self.link.connection.send(Request::read(&self.handle, offset, length))
    }

    pub(super) fn request_write(&self, offset: u64, data: Bytes) -> PendingReply {
        self.link.connection.send(Request::write(&self.handle, offset, data))
    }

    pub(super) fn request_close(&mut self) -> PendingReply {
        self.is_closed = true;
        self.link.connection.send(Request::close(&self.handle))
    }

    pub(super) fn done(&self, operation: &'static str, reply: Result<Reply, Arc<EndCause>>) -> Result<(), SftpError> {
        replies::done(operation, &self.path, reply)
    }

    pub(super) fn unexpected(&self, operation: &'static str, reply: Reply) -> SftpError {
        replies::unexpected(operation, &self.path, reply)
    }

    pub(super) fn nonsense(&self, operation: &'static str, what: &'static str) -> SftpError {
        replies::nonsense(operation, &self.path, what)
    }

    pub(super) fn ended(&self, operation: &'static str, cause: Arc<EndCause>) -> SftpError {
        replies::ended(operation, &self.path, cause)
    }
}

impl Drop for SftpFile {
    fn drop(&mut self) {
        if !self.is_closed {
            drop(self.request_close());
        }
    }
}
