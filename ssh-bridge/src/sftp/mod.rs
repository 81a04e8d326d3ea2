//! Files in a guest: an SFTP version 3 client with OpenSSH's extensions.
//!
//! Paths are bytes, in requests and in replies. Relative ones begin in the login user's home directory. Requests of one
//! [`SftpClient`] do not wait for each other, and its clones share one session.

mod codec;
mod connection;
mod directory;
mod error;
mod file;
mod replies;
mod stream;
pub mod tree;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::client::{Program, SpawnOptions, SshClient};
use codec::{Fields, Greeting, MAX_PACKET, Reply, Request};
use connection::Connection;

pub use directory::{DirEntry, SftpDirectory};
pub use error::{EndCause, SftpError, Status, StatusCode};
pub use file::{OpenOptions, SftpFile};
pub use msb_protocol::sftp::{FileAttributes, FileKind};
pub use stream::{SftpReader, SftpWriter};

/// How long the server may take to greet.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a server may take to end that was asked to.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes in one read or write where the server does not say what it takes: any server takes that.
const DEFAULT_CHUNK: u32 = 32 * 1024;

/// The most bytes [`SftpClient::read`] collects.
pub const READ_LIMIT: usize = 64 * 1024 * 1024;

/// The most entries [`SftpClient::list`] collects.
pub const LIST_LIMIT: usize = 100_000;

/// One session and what its server can do.
#[derive(Debug)]
struct Link {
    connection: Connection,
    limits: Limits,
    has_posix_rename: bool,
}

/// Bytes in one request.
#[derive(Clone, Copy, Debug)]
struct Limits {
    read: u32,
    write: u32,
}

/// Parses one packet, without its length field, as a client would: the first, and any other.
#[cfg(fuzzing)]
pub fn parse_reply(packet: &[u8]) {
    let packet = bytes::Bytes::copy_from_slice(packet);
    let _ = codec::Greeting::parse(packet.clone());
    let _ = codec::Reply::parse(packet);
}

/// An SFTP session. Clones share it; it ends with the last of them and of the files they opened.
#[derive(Clone, Debug)]
pub struct SftpClient {
    link: Arc<Link>,
}

impl SftpClient {
    /// Starts a session on a connection.
    ///
    /// # Errors
    /// When the guest has no SFTP server, or it does not speak SFTP.
    pub async fn open(client: &SshClient) -> Result<Self, SftpError> {
        let waited = START_TIMEOUT;
        match tokio::time::timeout(waited, Self::start(client)).await {
            Ok(result) => result,
            Err(_) => Err(SftpError::StartTimeout { waited }),
        }
    }

    async fn start(client: &SshClient) -> Result<Self, SftpError> {
        let program = Program::Subsystem("sftp".into());
        let session = client.spawn(&program, &SpawnOptions::default()).await;
        let session = session.map_err(SftpError::Start)?;
        let (connection, greeting) = Connection::start(session)
            .await
            .map_err(|cause| replies::ended("open", Path::new("/"), Arc::new(cause)))?;
        let limits = limits(&connection, &greeting).await?;
        let link = Link {
            connection,
            limits,
            has_posix_rename: greeting.offers("posix-rename@openssh.com", "1"),
        };
        Ok(Self { link: Arc::new(link) })
    }

    /// Opens a file.
    ///
    /// # Errors
    /// When the server refuses, or the session ends.
    pub async fn open_file(&self, path: impl AsRef<Path>, options: &OpenOptions) -> Result<SftpFile, SftpError> {
        let path = path.as_ref();
        let handle = self.handle("open", path, options.request(bytes_of(path))).await?;
        Ok(SftpFile::new(Arc::clone(&self.link), handle, path))
    }

    /// Opens a file to take its content as it comes.
    ///
    /// # Errors
    /// When the server refuses, or the session ends.
    pub async fn reader(&self, path: impl AsRef<Path>) -> Result<SftpReader, SftpError> {
        Ok(self.open_file(path, &OpenOptions::new().read()).await?.into_reader())
    }

    /// Makes or empties a file, to give its content as it comes.
    ///
    /// # Errors
    /// When the server refuses, or the session ends.
    pub async fn writer(&self, path: impl AsRef<Path>) -> Result<SftpWriter, SftpError> {
        let options = OpenOptions::new().write().create().truncate();
        Ok(self.open_file(path, &options).await?.into_writer())
    }

    /// Reads a whole file of at most [`READ_LIMIT`] bytes.
    ///
    /// # Errors
    /// When the server refuses, the file is larger, or the session ends.
    pub async fn read(&self, path: impl AsRef<Path>) -> Result<Vec<u8>, SftpError> {
        let path = path.as_ref();
        let mut reader = self.reader(path).await?;
        let mut content = Vec::new();
        while let Some(chunk) = reader.next_chunk().await? {
            if content.len() + chunk.len() > READ_LIMIT {
                return Err(SftpError::TooLarge {
                    path: path.to_owned(),
                    limit: READ_LIMIT,
                    unit: "bytes",
                    instead: "`reader`",
                });
            }
            content.extend_from_slice(&chunk);
        }
        reader.close().await?;
        Ok(content)
    }

    /// Makes or empties a file, and writes all of `data` to it.
    ///
    /// # Errors
    /// When the server refuses, or the session ends. What was written until then is left.
    pub async fn write(&self, path: impl AsRef<Path>, data: impl Into<Bytes>) -> Result<(), SftpError> {
        let mut writer = self.writer(path).await?;
        writer.write_chunk(data.into()).await?;
        writer.close().await
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// When the server refuses, or the session ends.
    pub async fn mkdir(&self, path: impl AsRef<Path>) -> Result<(), SftpError> {
        self.mkdir_with(path, &FileAttributes::default()).await
    }

    /// Makes a directory with this mode, less the server's umask.
    ///
    /// # Errors
    /// As [`Self::mkdir`].
    pub async fn mkdir_with(&self, path: impl AsRef<Path>, attributes: &FileAttributes) -> Result<(), SftpError> {
        let path = path.as_ref();
        let request = Request::mkdir(bytes_of(path), attributes);
        self.done("make the directory", path, request).await
    }

    /// Removes a file, or a link.
    ///
    /// # Errors
    /// When the server refuses, or the session ends.
    pub async fn remove_file(&self, path: impl AsRef<Path>) -> Result<(), SftpError> {
        let path = path.as_ref();
        self.done("remove", path, Request::remove(bytes_of(path))).await
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// When the server refuses, or the session ends.
    pub async fn remove_dir(&self, path: impl AsRef<Path>) -> Result<(), SftpError> {
        let path = path.as_ref();
        self.done("remove the directory", path, Request::rmdir(bytes_of(path)))
            .await
    }

    /// Renames a file or a directory, in place of a file at `to` as rename(2) does. A server without
    /// `posix-rename@openssh.com` refuses when `to` exists.
    ///
    /// # Errors
    /// When the server refuses, or the session ends.
    pub async fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), SftpError> {
        let (from, to) = (from.as_ref(), bytes_of(to.as_ref()));
        let request = if self.link.has_posix_rename {
            Request::extended("posix-rename@openssh.com", &[bytes_of(from), to])
        } else {
            Request::rename(bytes_of(from), to)
        };
        self.done("rename", from, request).await
    }

    /// The absolute path without links and dots. Its last component need not exist.
    ///
    /// # Errors
    /// When the server refuses, or the session ends.
    pub async fn real_path(&self, path: impl AsRef<Path>) -> Result<PathBuf, SftpError> {
        let path = path.as_ref();
        self.path("resolve", path, Request::realpath(bytes_of(path))).await
    }

    /// Where a link leads, as it says itself.
    ///
    /// # Errors
    /// When the server refuses, it is no link, or the session ends.
    pub async fn read_link(&self, path: impl AsRef<Path>) -> Result<PathBuf, SftpError> {
        let path = path.as_ref();
        self.path("read the link", path, Request::readlink(bytes_of(path)))
            .await
    }

    /// Makes a link at `link` that leads to `target`.
    ///
    /// # Errors
    /// When the server refuses, or the session ends.
    pub async fn symlink(&self, target: impl AsRef<Path>, link: impl AsRef<Path>) -> Result<(), SftpError> {
        let link = link.as_ref();
        let request = Request::symlink(bytes_of(target.as_ref()), bytes_of(link));
        self.done("make the link", link, request).await
    }

    /// What is known of a file; of a link, of what it leads to.
    ///
    /// # Errors
    /// When the server refuses, or the session ends.
    pub async fn stat(&self, path: impl AsRef<Path>) -> Result<FileAttributes, SftpError> {
        let path = path.as_ref();
        self.attributes(path, Request::stat(bytes_of(path))).await
    }

    /// What is known of a file; of a link, of itself.
    ///
    /// # Errors
    /// When the server refuses, or the session ends.
    pub async fn lstat(&self, path: impl AsRef<Path>) -> Result<FileAttributes, SftpError> {
        let path = path.as_ref();
        self.attributes(path, Request::lstat(bytes_of(path))).await
    }

    /// Changes what is there in `attributes`; of a link, of what it leads to.
    ///
    /// # Errors
    /// When the server refuses, or the session ends.
    pub async fn set_attributes(&self, path: impl AsRef<Path>, attributes: &FileAttributes) -> Result<(), SftpError> {
        let path = path.as_ref();
        let request = Request::setstat(bytes_of(path), attributes);
        self.done("change the attributes of", path, request).await
    }

    /// Changes the mode of a file.
    ///
    /// # Errors
    /// As [`Self::set_attributes`].
    pub async fn set_permissions(&self, path: impl AsRef<Path>, mode: u32) -> Result<(), SftpError> {
        self.set_attributes(path, &FileAttributes::with_mode(mode)).await
    }

    /// Opens a directory, to take its entries as they come.
    ///
    /// # Errors
    /// When the server refuses, or the session ends.
    pub async fn read_dir(&self, path: impl AsRef<Path>) -> Result<SftpDirectory, SftpError> {
        let path = path.as_ref();
        let handle = self.handle("list", path, Request::opendir(bytes_of(path))).await?;
        let handle = SftpFile::new(Arc::clone(&self.link), handle, path);
        Ok(SftpDirectory::new(handle))
    }

    /// All entries of a directory of at most [`LIST_LIMIT`], in the server's order.
    ///
    /// # Errors
    /// When the server refuses, there are more, or the session ends.
    pub async fn list(&self, path: impl AsRef<Path>) -> Result<Vec<DirEntry>, SftpError> {
        let path = path.as_ref();
        let mut directory = self.read_dir(path).await?;
        let mut entries = Vec::new();
        while let Some(entry) = directory.next().await? {
            if entries.len() == LIST_LIMIT {
                return Err(SftpError::TooLarge {
                    path: path.to_owned(),
                    limit: LIST_LIMIT,
                    unit: "entries",
                    instead: "`read_dir`",
                });
            }
            entries.push(entry);
        }
        directory.close().await?;
        Ok(entries)
    }

    /// Ends the session once the server answered what it was asked; for its clones, too.
    pub async fn close(self) {
        let connection = &self.link.connection;
        if tokio::time::timeout(CLOSE_TIMEOUT, connection.close()).await.is_err() {
            connection.abort().await;
        }
    }

    async fn done(&self, operation: &'static str, path: &Path, request: Request) -> Result<(), SftpError> {
        replies::done(operation, path, self.link.connection.send(request).await)
    }

    async fn handle(&self, operation: &'static str, path: &Path, request: Request) -> Result<Bytes, SftpError> {
        match self.link.connection.send(request).await {
            Ok(Reply::Handle(handle)) => Ok(handle),
            Ok(other) => Err(replies::unexpected(operation, path, other)),
            Err(cause) => Err(replies::ended(operation, path, cause)),
        }
    }

    async fn path(&self, operation: &'static str, path: &Path, request: Request) -> Result<PathBuf, SftpError> {
        match self.link.connection.send(request).await {
            Ok(Reply::Names(names)) => match names.as_slice() {
                [only] => Ok(OsStr::from_bytes(&only.name).into()),
                _ => Err(replies::nonsense(operation, path, "not one path")),
            },
            Ok(other) => Err(replies::unexpected(operation, path, other)),
            Err(cause) => Err(replies::ended(operation, path, cause)),
        }
    }

    async fn attributes(&self, path: &Path, request: Request) -> Result<FileAttributes, SftpError> {
        match self.link.connection.send(request).await {
            Ok(Reply::Attributes(attributes)) => Ok(attributes),
            Ok(other) => Err(replies::unexpected("look at", path, other)),
            Err(cause) => Err(replies::ended("look at", path, cause)),
        }
    }
}

/// What the server takes in one request; OpenSSH's extension tells (PROTOCOL, 4.8).
async fn limits(connection: &Connection, greeting: &Greeting) -> Result<Limits, SftpError> {
    let mut limits = Limits {
        read: DEFAULT_CHUNK,
        write: DEFAULT_CHUNK,
    };
    if !greeting.offers("limits@openssh.com", "1") {
        return Ok(limits);
    }
    let ended = |cause| replies::ended("ask for limits of", Path::new("/"), cause);
    let reply = connection.send(Request::extended("limits@openssh.com", &[])).await;
    if let Reply::Extended(fields) = reply.map_err(ended)? {
        let mut fields = Fields(fields);
        if let (Ok(_packet), Ok(read), Ok(write)) = (fields.u64(), fields.u64(), fields.u64()) {
            limits.read = chunk(read);
            limits.write = chunk(write);
        }
    }
    Ok(limits)
}

/// No limit is 0; a packet, less room for its header, is the most that fits in either direction.
fn chunk(limit: u64) -> u32 {
    let most = u32::try_from(MAX_PACKET - 1024).expect("a packet is short");
    match u32::try_from(limit) {
        Ok(0) | Err(_) => most,
        Ok(limit) => limit.min(most),
    }
}

fn bytes_of(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}
