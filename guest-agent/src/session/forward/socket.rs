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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Somebody without rights, and a directory that is writable for all.
    fn nobody() -> (User, tempfile::TempDir) {
        let user = User {
            uid: 65_534,
            gid: 65_534,
            groups: vec![65_534],
            ..User::by_name("root").unwrap()
        };
        let place = tempfile::tempdir().unwrap();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        (user, place)
    }

    fn owner_and_mode(path: &Path) -> (u32, u32) {
        let metadata = fs::symlink_metadata(path).unwrap();
        (metadata.uid(), metadata.mode() & 0o7777)
    }

    #[tokio::test]
    async fn a_socket_and_its_directory_are_the_users_and_go_with_it() {
        let (user, place) = nobody();
        let directory = place.path().join("private");
        let (file, _listener) = SocketFile::listen_in(&user, directory.clone(), "agent").await.unwrap();
        let own = rustix::process::geteuid();
        let owner = if own.is_root() { user.uid } else { own.as_raw() };
        assert_eq!(owner_and_mode(file.path()), (owner, 0o600));
        assert_eq!(owner_and_mode(&directory), (owner, 0o700));
        drop(file);
        assert!(!directory.exists());
    }

    #[tokio::test]
    async fn a_directory_that_is_there_already_is_not_taken() {
        let (user, place) = nobody();
        let directory = place.path().join("planted");
        fs::create_dir(&directory).unwrap();
        assert!(SocketFile::listen_in(&user, directory.clone(), "agent").await.is_err());
        assert!(directory.exists());
    }

    #[tokio::test]
    async fn removing_a_socket_takes_the_users_rights_and_not_roots() {
        let (user, place) = nobody();
        let (file, _listener) = SocketFile::listen(&user, place.path().join("socket")).await.unwrap();
        // As if the user had led the path to where only root may remove.
        let kept = file.path().to_path_buf();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
        drop(file);
        assert_eq!(kept.exists(), rustix::process::geteuid().is_root());
    }
}
