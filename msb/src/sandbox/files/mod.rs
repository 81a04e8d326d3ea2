//! Files of a sandbox: [`Sandbox::files`].
//!
//! They are what [`msb_ssh::sftp`] reaches, over a connection that is made when it is needed and shared by all calls through
//! the same [`Files`]. Paths are bytes; relative ones begin in the user's home directory.

mod error;
mod remove;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use msb_ssh::client::SshClient;
use msb_ssh::sftp::tree::{TreeOptions, TreeSummary};
use msb_ssh::sftp::{DirEntry, FileAttributes, FileKind, SftpClient, SftpError};
use tokio::sync::Mutex;

pub use error::FilesError;
pub use msb_ssh::sftp;
pub use msb_ssh::watch::{WatchError, WatchEvent, WatchOptions, Watcher};

use super::Sandbox;
use super::ssh::SshClientOptions;

/// The files of a sandbox, as one of its users. Cheap to clone: clones share a connection.
#[derive(Clone, Debug)]
pub struct Files {
    sandbox: Sandbox,
    options: SshClientOptions,
    session: Arc<Mutex<Option<Open>>>,
}

#[derive(Debug)]
struct Open {
    client: SshClient,
    sftp: SftpClient,
}

impl Sandbox {
    /// Its files, as root sees them.
    pub fn files(&self) -> Files {
        Files {
            sandbox: self.clone(),
            options: SshClientOptions::default(),
            session: Arc::default(),
        }
    }
}

impl Files {
    /// The same over a connection of its own that is made like this, as another user for one.
    #[must_use]
    pub fn with_options(self, options: SshClientOptions) -> Self {
        Self {
            options,
            session: Arc::default(),
            ..self
        }
    }

    /// The session behind the calls below, for all that they do not do: pieces of files, links, attributes.
    ///
    /// # Errors
    /// When the sandbox does not run or cannot be logged in to, or serves no files.
    pub async fn sftp(&self) -> Result<SftpClient, FilesError> {
        let mut session = self.session.lock().await;
        if let Some(open) = session.as_ref().filter(|open| !open.client.is_closed()) {
            return Ok(open.sftp.clone());
        }
        let client = self.sandbox.ssh().open_client(self.options.clone()).await?;
        let sftp = client.sftp().await?;
        let open = session.insert(Open { client, sftp });
        Ok(open.sftp.clone())
    }

    /// Calls `act` with the session, with a new one if the server of the last has ended.
    async fn with<T, E>(&self, act: impl AsyncFnOnce(SftpClient) -> Result<T, E>) -> Result<T, FilesError>
    where
        FilesError: From<E>,
    {
        let result = act(self.sftp().await?).await.map_err(FilesError::from);
        if result.as_ref().is_err_and(FilesError::is_end) {
            // The next call begins anew; whether this one was carried out, nobody knows.
            self.session.lock().await.take();
        }
        result
    }

    /// Reads a whole file of at most 64 MiB; larger ones: [`SftpClient::reader`].
    ///
    /// # Errors
    /// When it cannot be read, or is larger.
    pub async fn read(&self, path: impl AsRef<Path>) -> Result<Vec<u8>, FilesError> {
        self.with(async |sftp| sftp.read(path).await).await
    }

    /// Makes or empties a file, and writes `data` to it. The directories that it is in are made if they are missing.
    ///
    /// # Errors
    /// When it cannot be written. What was written until then is left.
    pub async fn write(&self, path: impl AsRef<Path>, data: impl Into<Bytes>) -> Result<(), FilesError> {
        let (path, data) = (path.as_ref(), data.into());
        self.with(
            async |sftp| match (sftp.write(path, data.clone()).await, path.parent()) {
                (Err(error), Some(parent)) if error.is_not_found() => {
                    make_dirs(&sftp, parent).await?;
                    sftp.write(path, data).await
                }
                (result, _) => result,
            },
        )
        .await
    }

    /// What is in a directory, sorted by name: at most 100,000 entries; for more: [`SftpClient::read_dir`].
    ///
    /// # Errors
    /// When it cannot be read, or has more.
    pub async fn list(&self, path: impl AsRef<Path>) -> Result<Vec<DirEntry>, FilesError> {
        let mut entries = self.with(async |sftp| sftp.list(path).await).await?;
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(entries)
    }

    /// What is known of a file; of a link, of what it leads to.
    ///
    /// # Errors
    /// When it is not there, for one ([`FilesError::is_not_found`]).
    pub async fn stat(&self, path: impl AsRef<Path>) -> Result<FileAttributes, FilesError> {
        self.with(async |sftp| sftp.stat(path).await).await
    }

    /// Whether there is something of this name, be it a link that leads nowhere.
    ///
    /// # Errors
    /// When that cannot be known: it may be in a directory that the user cannot search.
    pub async fn exists(&self, path: impl AsRef<Path>) -> Result<bool, FilesError> {
        match self.with(async |sftp| sftp.lstat(path).await).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes a directory, and those that it is in. False if it was there.
    ///
    /// # Errors
    /// When it cannot be made, or something else has its name.
    pub async fn make_dir(&self, path: impl AsRef<Path>) -> Result<bool, FilesError> {
        self.with(async |sftp| make_dirs(&sftp, path.as_ref()).await).await
    }

    /// Removes a file, a link, or a directory with all that is in it. No link is followed.
    ///
    /// # Errors
    /// When it is not there, or something cannot be removed; the rest is left then.
    pub async fn remove(&self, path: impl AsRef<Path>) -> Result<(), FilesError> {
        self.with(async |sftp| remove::remove(&sftp, path.as_ref()).await).await
    }

    /// Gives a file or a directory another name, in place of a file of that name.
    ///
    /// # Errors
    /// As rename(2).
    pub async fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), FilesError> {
        self.with(async |sftp| sftp.rename(from, to).await).await
    }

    /// Copies a file or a tree of this machine to `remote`: [`SftpClient::upload`].
    ///
    /// # Errors
    /// As there: what fails below a directory is counted in the summary.
    pub async fn upload(
        &self,
        local: impl AsRef<Path>,
        remote: impl AsRef<Path>,
        options: &TreeOptions,
    ) -> Result<TreeSummary, FilesError> {
        self.with(async |sftp| sftp.upload(local, remote, options).await).await
    }

    /// Copies a file or a tree of the sandbox to `local`: [`SftpClient::download`].
    ///
    /// # Errors
    /// As there: what fails below a directory is counted in the summary.
    pub async fn download(
        &self,
        remote: impl AsRef<Path>,
        local: impl AsRef<Path>,
        options: &TreeOptions,
    ) -> Result<TreeSummary, FilesError> {
        self.with(async |sftp| sftp.download(remote, local, options).await)
            .await
    }

    /// Watches a file or a directory, over a connection of its own: when this returns, all that changes is told.
    ///
    /// # Errors
    /// When it is not there, or cannot be watched.
    pub async fn watch(&self, path: impl AsRef<Path>, options: WatchOptions) -> Result<Watcher, FilesError> {
        let client = self.sandbox.ssh().open_client(self.options.clone()).await?;
        // The connection lasts as long as its session.
        Ok(Watcher::start(&client, path, options).await?)
    }

    /// Ends the connection that the calls share; the next call makes another.
    pub async fn close(&self) {
        if let Some(Open { client, sftp }) = self.session.lock().await.take() {
            sftp.close().await;
            client.close().await;
        }
    }
}

/// Makes a directory and those that it is in, and says whether it was missing.
async fn make_dirs(sftp: &SftpClient, path: &Path) -> Result<bool, SftpError> {
    // The nearest that is there, from below: those above it may be closed to the user.
    let mut missing = Vec::new();
    for directory in path.ancestors().filter(|path| !path.as_os_str().is_empty()) {
        match sftp.stat(directory).await {
            // What else has the name makes the next step fail, and tell why.
            Ok(attributes) if missing.is_empty() && attributes.kind() == FileKind::Directory => return Ok(false),
            Ok(_) if !missing.is_empty() => break,
            Err(error) if !error.is_not_found() => return Err(error),
            _ => missing.push(directory),
        }
    }
    while let Some(directory) = missing.pop() {
        match sftp.mkdir(directory).await {
            // Somebody else made it meanwhile.
            Err(error) if !error.is_end() && is_directory(sftp, directory).await => {}
            result => result?,
        }
    }
    Ok(true)
}

async fn is_directory(sftp: &SftpClient, path: &Path) -> bool {
    let attributes = sftp.stat(path).await;
    attributes.is_ok_and(|attributes| attributes.kind() == FileKind::Directory)
}
