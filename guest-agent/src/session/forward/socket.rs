//! A listening Unix socket in the file system, made and removed with the rights of the login user.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use super::super::as_user;
use crate::users::User;

/// The file of a listening socket; dropping it removes the file, and its directory if that was made for it.
#[derive(Debug)]
pub(super) struct SocketFile {
    user: User,
    path: PathBuf,
    /// Device and inode: what others put in its place since is not removed.
    identity: (u64, u64),
    directory: Option<PathBuf>,
}

impl SocketFile {
    /// Listens at `path`, where nothing may be yet, for nobody but `user` (mode 0600).
    ///
    /// # Errors
    /// As for bind(2) as that user.
    pub(super) async fn listen(user: &User, path: PathBuf) -> io::Result<(Self, tokio::net::UnixListener)> {
        let place = path.clone();
        let (listener, identity) = as_user::run(user, move || bind(&place)).await?;
        Self::new(user, path, identity, None, listener)
    }

    /// Listens at `name` in a new directory `directory`, both for nobody but `user` (modes 0700, 0600).
    ///
    /// # Errors
    /// As for mkdir(2) and bind(2) as that user.
    pub(super) async fn listen_in(
        user: &User,
        directory: PathBuf,
        name: &str,
    ) -> io::Result<(Self, tokio::net::UnixListener)> {
        let (parent, path) = (directory.clone(), directory.join(name));
        let place = path.clone();
        let (listener, identity) = as_user::run(user, move || {
            rustix::fs::mkdir(&parent, rustix::fs::Mode::RWXU)?;
            bind(&place).inspect_err(|_| {
                let _ = std::fs::remove_dir(&parent);
            })
        })
        .await?;
        Self::new(user, path, identity, Some(directory), listener)
    }

    fn new(
        user: &User,
        path: PathBuf,
        identity: (u64, u64),
        directory: Option<PathBuf>,
        listener: UnixListener,
    ) -> io::Result<(Self, tokio::net::UnixListener)> {
        let file = Self {
            user: user.clone(),
            path,
            identity,
            directory,
        };
        listener.set_nonblocking(true)?;
        Ok((file, tokio::net::UnixListener::from_std(listener)?))
    }

    /// Where the socket is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let (path, identity) = (std::mem::take(&mut self.path), self.identity);
        let directory = self.directory.take();
        // What cannot be removed stays, as it does when this process is killed.
        let _ = as_user::run_now(&self.user, move || {
            if identity_of(&path)? == identity {
                std::fs::remove_file(&path)?;
            }
            directory.map_or(Ok(()), std::fs::remove_dir)
        });
    }
}

/// Runs on a thread of its own, whose umask is its own too.
fn bind(path: &Path) -> io::Result<(UnixListener, (u64, u64))> {
    as_user::own_umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO | rustix::fs::Mode::XUSR)?;
    let listener = UnixListener::bind(path)?;
    Ok((listener, identity_of(path)?))
}

fn identity_of(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}
