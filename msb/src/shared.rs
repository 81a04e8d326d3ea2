//! The built-in programs and the kernel in memory that all guests share: files of the runtime directory, where that is in
//! memory, in huge pages where the host can make some. A guest leaves for the host once for each of these that it touches.

use std::ffi::c_void;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::ptr;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// What names of such files begin with.
const PREFIX: &str = "shared-";

/// Bytes of a huge page.
const HUGE_PAGE: usize = 2 << 20;

/// `f_type` of a tmpfs (statfs(2)).
const TMPFS: i64 = 0x0102_1994;

/// How long other files than those asked for are kept: another msb may have the same runtime directory.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// The file that guests map for what is in the file `built`: a copy in `runtime`, a directory that nobody else may enter,
/// which whoever is first makes; or `built` where there is no memory for one.
pub(crate) fn in_memory(built: &Path, runtime: &Path) -> PathBuf {
    match copy(built, runtime) {
        Ok(Some(copy)) => copy,
        Ok(None) => built.into(),
        Err(error) => {
            tracing::warn!(%error, "cannot keep {} in memory that guests share, in {}", built.display(), runtime.display());
            built.into()
        }
    }
}

fn copy(built: &Path, runtime: &Path) -> io::Result<Option<PathBuf>> {
    let metadata = fs::metadata(built)?;
    let name = format!(
        "{PREFIX}{}-{:x}-{:x}-{:x}.{:x}",
        built.file_stem().unwrap_or_default().display(),
        metadata.dev(),
        metadata.ino(),
        metadata.mtime(),
        metadata.mtime_nsec()
    );
    let path = runtime.join(&name);
    if path.exists() {
        return Ok(Some(path));
    }
    if rustix::fs::statfs(runtime)?.f_type != TMPFS {
        return Ok(None);
    }
    remove_old(runtime);
    let file = nameless_copy(built, runtime)?;
    // There is one if another start was quicker.
    match linkat(CWD, fd_path(&file), CWD, &path, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) | Err(Errno::EXIST) => Ok(Some(path)),
        Err(error) => Err(error.into()),
    }
}

/// A file without a name in `directory`, of which nothing is left if this process dies, with the contents of `built`.
fn nameless_copy(built: &Path, directory: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR)?);
    let len = io::copy(&mut File::open(built)?, &mut file)?;
    if let Ok(len) = usize::try_from(len) {
        // Kernels before 6.1 cannot, and the pages serve as they are.
        let _ = collapse(&file, len);
    }
    Ok(file)
}

fn fd_path(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Has the kernel put `len` bytes of `file` into huge pages (`MADV_COLLAPSE`, madvise(2)).
fn collapse(file: &File, len: usize) -> io::Result<()> {
    let huge = len / HUGE_PAGE * HUGE_PAGE;
    if huge == 0 {
        return Ok(());
    }
    // SAFETY: a new mapping at an address that the kernel chooses touches no other.
    let reserved = unsafe {
        mmap_anonymous(
            ptr::null_mut(),
            huge + HUGE_PAGE,
            ProtFlags::empty(),
            MapFlags::PRIVATE | MapFlags::NORESERVE,
        )
    }?;
    let place = reserved.wrapping_byte_add(reserved.cast::<u8>().align_offset(HUGE_PAGE));
    let collapsed = collapse_at(place, file, huge);
    // SAFETY: nothing refers to the mapping.
    unsafe { munmap(reserved, huge + HUGE_PAGE) }?;
    collapsed
}

/// Maps `len` bytes of `file` at `place`, which is part of a mapping that nobody uses, and has them collapsed there.
fn collapse_at(place: *mut c_void, file: &File, len: usize) -> io::Result<()> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: what is replaced is not used (see above).
    unsafe { mmap(place, len, protection, MapFlags::SHARED | MapFlags::FIXED, file, 0) }?;
    // Linux 6.1 collapses nothing that has no page tables yet.
    for advice in [libc::MADV_POPULATE_READ, libc::MADV_COLLAPSE] {
        // SAFETY: the range was just mapped; its contents stay what they are.
        if unsafe { libc::madvise(place, len, advice) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Removes what earlier versions left. Guests that use it keep it as long as they run.
fn remove_old(runtime: &Path) {
    for entry in fs::read_dir(runtime).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_ours = name.to_str().is_some_and(|name| name.starts_with(PREFIX));
        let age = entry.metadata().and_then(|metadata| metadata.modified()).ok();
        let is_old = age
            .and_then(|modified| modified.elapsed().ok())
            .is_some_and(|age| age > KEPT);
        if is_ours && is_old {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    /// A directory in memory, if this machine has any.
    fn directory_in_memory() -> Option<tempfile::TempDir> {
        let directory = tempfile::tempdir_in("/dev/shm").ok()?;
        (rustix::fs::statfs(directory.path()).ok()?.f_type == TMPFS).then_some(directory)
    }

    #[test]
    fn a_copy_has_the_contents_of_the_file_until_that_is_another() {
        let runtime = directory_in_memory().expect("Linux has memory at /dev/shm");
        let built = runtime.path().join("built");
        let mut seen = Vec::new();
        for contents in [vec![1; HUGE_PAGE + 4096], vec![2; 4096]] {
            // Another file, as an installation makes one.
            fs::write(built.with_extension("new"), &contents).unwrap();
            fs::rename(built.with_extension("new"), &built).unwrap();
            let copy = in_memory(&built, runtime.path());
            assert!(copy != built && fs::read(&copy).unwrap() == contents);
            assert_eq!(in_memory(&built, runtime.path()), copy);
            seen.push(copy);
        }
        assert_ne!(seen[0], seen[1]);
        assert!(seen[0].exists(), "another msb may use it");

        let long_ago = SystemTime::now() - 2 * KEPT;
        File::options()
            .write(true)
            .open(&seen[0])
            .unwrap()
            .set_modified(long_ago)
            .unwrap();
        fs::remove_file(&seen[1]).unwrap();
        in_memory(&built, runtime.path());
        assert!(!seen[0].exists());
    }

    #[test]
    fn without_memory_for_a_copy_the_file_itself_serves() {
        let runtime = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let built = runtime.path().join("built");
        fs::write(&built, b"1").unwrap();
        let in_memory_already = rustix::fs::statfs(runtime.path()).unwrap().f_type == TMPFS;
        assert!(in_memory_already || in_memory(&built, runtime.path()) == built);
        assert_eq!(in_memory(&built, &built.join("nowhere")), built);
    }
}
