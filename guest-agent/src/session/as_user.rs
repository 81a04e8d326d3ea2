//! Does what the login user may do, without a process for each: on a thread of its own.

use std::io;
use std::thread;

use rustix::fs::Mode;
use tokio::sync::oneshot;

use crate::syscall::check;
use crate::users::User;

/// Runs `work` on a thread that is the user to the kernel: in its rights, in what it makes, and for peers that ask who
/// connected.
///
/// # Errors
/// When the thread cannot be started or cannot become the user, and those of `work`.
pub(super) async fn run<T: Send + 'static>(
    user: &User,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let user = user.clone();
    let (done, result) = oneshot::channel();
    thread::Builder::new().spawn(move || {
        // Whoever waited may be gone.
        let _ = done.send(become_user(&user).and_then(|()| work()));
    })?;
    result.await.unwrap_or_else(|_| Err(died()))
}

/// As [`run`], where nothing can be awaited.
///
/// # Errors
/// As for [`run`].
pub(super) fn run_now<T: Send + 'static>(
    user: &User,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let user = user.clone();
    let thread = thread::Builder::new().spawn(move || become_user(&user).and_then(|()| work()))?;
    thread.join().unwrap_or_else(|_| Err(died()))
}

fn died() -> io::Error {
    io::Error::other("the thread died")
}

/// Sets the umask of this thread alone.
///
/// # Errors
/// When the thread cannot be given its own.
pub(super) fn own_umask(mask: Mode) -> io::Result<()> {
    // SAFETY: a plain system call. It separates the current directory and umask of this thread, which nothing that
    // runs on it expects to share.
    check(unsafe { libc::unshare(libc::CLONE_FS) })?;
    rustix::process::umask(mask);
    Ok(())
}

/// The raw system calls, because they change this thread only: the C library's change the whole process. The thread
/// ends afterwards, so nothing is given back.
fn become_user(user: &User) -> io::Result<()> {
    const KEEP: u32 = u32::MAX;
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    // SAFETY: the pointer and length are those of one vector.
    check(unsafe { libc::syscall(libc::SYS_setgroups, user.groups.len(), user.groups.as_ptr()) })?;
    // The real ids stay root's, so that the user cannot signal the thread.
    // SAFETY: a plain system call.
    check(unsafe { libc::syscall(libc::SYS_setresgid, KEEP, user.gid, KEEP) })?;
    // SAFETY: a plain system call; it is last because it gives up the right to the others.
    check(unsafe { libc::syscall(libc::SYS_setresuid, KEEP, user.uid, KEEP) })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn nobody() -> User {
        User {
            uid: 65_534,
            gid: 65_534,
            groups: vec![65_534],
            ..User::by_name("root").unwrap()
        }
    }

    #[tokio::test]
    async fn a_user_opens_only_what_its_rights_allow_and_the_process_keeps_its_own() {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let secret = directory.path().join("secret");
        fs::write(&secret, "root's").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        let opening = secret.clone();
        let opened = run(&nobody(), move || fs::read(opening)).await;
        if rustix::process::geteuid().is_root() {
            assert_eq!(opened.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        }
        assert!(fs::read(&secret).is_ok());
    }

    #[tokio::test]
    async fn a_peer_that_asks_learns_the_user_and_not_root() {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        let _connected = run(&nobody(), move || UnixStream::connect(path)).await.unwrap();
        let (stream, _) = listener.accept().unwrap();
        let peer = rustix::net::sockopt::socket_peercred(&stream).unwrap();
        let own = rustix::process::geteuid();
        let expected = if own.is_root() { 65_534 } else { own.as_raw() };
        assert_eq!(peer.uid.as_raw(), expected);
    }

    #[tokio::test]
    async fn the_umask_of_a_thread_is_its_own() {
        let before = rustix::process::umask(Mode::from_raw_mode(0o022));
        run_now(&nobody(), || own_umask(Mode::from_raw_mode(0o177))).unwrap();
        let kept = rustix::process::umask(before);
        assert_eq!(kept.as_raw_mode(), 0o022);
    }
}
