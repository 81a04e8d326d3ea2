//! Opens things in the file system with the login user's rights, without a process for each.

use std::io;
use std::thread;

use tokio::sync::oneshot;

use crate::users::User;

/// Runs `work` on a thread of its own that has the user's rights on files, and none of root's.
///
/// # Errors
/// When the thread cannot be started or cannot take the user's rights, and those of `work`.
pub(super) async fn run<T: Send + 'static>(
    user: &User,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let user = user.clone();
    let (done, result) = oneshot::channel();
    thread::Builder::new().spawn(move || {
        // Whoever waited may be gone.
        let _ = done.send(take_rights(&user).and_then(|()| work()));
    })?;
    result
        .await
        .unwrap_or_else(|_| Err(io::Error::other("the thread died")))
}

/// The raw system calls, because they change this thread only: the C library's change the whole process. The thread
/// ends afterwards, so nothing is given back.
fn take_rights(user: &User) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    // SAFETY: the pointer and length are those of one vector.
    if unsafe { libc::syscall(libc::SYS_setgroups, user.groups.len(), user.groups.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // Neither of the two reports errors; asked again with an impossible id, they tell what is in force.
    for (call, id) in [(libc::SYS_setfsgid, user.gid), (libc::SYS_setfsuid, user.uid)] {
        // SAFETY: a plain system call.
        unsafe { libc::syscall(call, id) };
        // SAFETY: as above.
        let in_force = unsafe { libc::syscall(call, u32::MAX) };
        if in_force != i64::from(id) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn a_user_opens_only_what_its_rights_allow_and_the_process_keeps_its_own() {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let secret = directory.path().join("secret");
        fs::write(&secret, "root's").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        let nobody = User {
            uid: 65_534,
            gid: 65_534,
            groups: vec![65_534],
            ..User::by_name("root").unwrap()
        };
        let opening = secret.clone();
        let opened = run(&nobody, move || fs::read(opening)).await;
        if rustix::process::geteuid().is_root() {
            assert_eq!(opened.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        }
        assert!(fs::read(&secret).is_ok());
    }
}
