//! Requests that no kernel would make, from a guest whose root writes them itself.

use std::ffi::CString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::thread::JoinHandle;

use msb_volume::{Access, Export, ServeError, own_descriptors, serve};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

/// Operations of linux/fuse.h.
const LOOKUP: u32 = 1;
const SETATTR: u32 = 4;
const READLINK: u32 = 5;
const MKNOD: u32 = 8;
const UNLINK: u32 = 10;
const RENAME: u32 = 12;
const LINK: u32 = 13;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const INIT: u32 = 26;
const CREATE: u32 = 35;
const DESTROY: u32 = 38;

const ROOT: u64 = 1;

/// A guest, and the server of its directory.
struct Guest {
    socket: OwnedFd,
    server: Option<JoinHandle<ServeError>>,
    unique: u64,
}

impl Guest {
    fn new(directory: &Path, access: Access) -> Self {
        let (socket, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let root = Export::open_root(directory).unwrap();
        let export = Export::new(root, own_descriptors().unwrap(), access).unwrap();
        let server = std::thread::spawn(move || {
            let Err(end) = serve(&theirs, &export);
            end
        });
        let mut guest = Self {
            socket,
            server: Some(server),
            unique: 0,
        };
        guest.mount();
        guest
    }

    fn mount(&mut self) {
        // Version 7.39, a read-ahead of 128 KiB, nothing offered.
        let init = words(&[7, 39, 128 << 10, 0]);
        self.ask(INIT, 0, &[init, vec![0; 48]].concat()).unwrap();
    }

    /// The body of the answer, or the error number.
    fn ask(&mut self, operation: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        self.unique += 1;
        let mut request = words(&[u32::try_from(40 + body.len()).unwrap(), operation]);
        request.extend(self.unique.to_le_bytes());
        request.extend(node.to_le_bytes());
        request.extend([0; 16]);
        request.extend(body);
        send(&self.socket, &request, SendFlags::NOSIGNAL).unwrap();
        let mut answer = vec![0; 1 << 18];
        let (length, _) = recv(&self.socket, &mut *answer, RecvFlags::empty()).unwrap();
        answer.truncate(length);
        assert_eq!(word(&answer, 0) as usize, length);
        assert_eq!(answer[8..16], self.unique.to_le_bytes());
        match word(&answer, 4).cast_signed() {
            0 => Ok(answer.split_off(16)),
            error => Err(-error),
        }
    }

    fn lookup(&mut self, parent: u64, name: &str) -> Result<u64, i32> {
        let entry = self.ask(LOOKUP, parent, &name_of(name))?;
        Ok(number(&entry, 0))
    }

    fn open(&mut self, node: u64, flags: i32) -> Result<u64, i32> {
        let opened = self.ask(OPEN, node, &words(&[flags.cast_unsigned(), 0]))?;
        Ok(number(&opened, 0))
    }

    fn read(&mut self, node: u64, handle: u64) -> Result<Vec<u8>, i32> {
        let mut body = handle.to_le_bytes().to_vec();
        body.extend(0u64.to_le_bytes());
        body.extend(words(&[u32::MAX, 0]));
        body.extend([0; 16]);
        self.ask(READ, node, &body)
    }

    fn make(&mut self, name: &str, mode: u32) -> Result<(), i32> {
        let body = [words(&[mode, 0, 0, 0]), name_of(name)].concat();
        self.ask(MKNOD, ROOT, &body).map(drop)
    }

    /// Asks for a mode, an owner or a group: the field of `struct fuse_setattr_in` that is meant.
    fn set(&mut self, node: u64, valid: u32, field: usize, value: u32) -> Result<(), i32> {
        let mut body = vec![0; 88];
        body[..4].copy_from_slice(&valid.to_le_bytes());
        body[field..field + 4].copy_from_slice(&value.to_le_bytes());
        self.ask(SETATTR, node, &body).map(drop)
    }

    fn change_mode(&mut self, node: u64, mode: u32) -> Result<(), i32> {
        self.set(node, 1, 68, mode)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let (mine, _) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        self.socket = mine;
        let ended = self.server.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "the server panicked");
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn word(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(*bytes[offset..].first_chunk().unwrap())
}

fn number(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(*bytes[offset..].first_chunk().unwrap())
}

fn name_of(name: &str) -> Vec<u8> {
    CString::new(name).unwrap().into_bytes_with_nul()
}

/// A directory to serve, beside a file that is not served.
fn shared() -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let shared = directory.path().canonicalize().unwrap().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(directory.path().join("secret"), "secret").unwrap();
    (directory, shared)
}

#[test]
fn a_name_is_one_entry_and_no_way() {
    let (_directory, shared) = shared();
    fs::create_dir(shared.join("below")).unwrap();
    fs::write(shared.join("below/file"), "").unwrap();
    let mut guest = Guest::new(&shared, Access::Write);
    for name in [
        "..",
        ".",
        "",
        "/etc/passwd",
        "../secret",
        "below/file",
        "below/../below",
    ] {
        assert_eq!(guest.lookup(ROOT, name), Err(libc::EINVAL), "{name}");
        assert_eq!(guest.make(name, libc::S_IFREG | 0o644), Err(libc::EINVAL), "{name}");
        assert_eq!(guest.ask(UNLINK, ROOT, &name_of(name)), Err(libc::EINVAL), "{name}");
        let renaming = |from: &str, to: &str| [ROOT.to_le_bytes().to_vec(), name_of(from), name_of(to)].concat();
        assert_eq!(
            guest.ask(RENAME, ROOT, &renaming("below", name)),
            Err(libc::EINVAL),
            "{name}"
        );
        assert_eq!(
            guest.ask(RENAME, ROOT, &renaming(name, "x")),
            Err(libc::EINVAL),
            "{name}"
        );
    }
    let below = guest.lookup(ROOT, "below").unwrap();
    assert_eq!(guest.lookup(below, ".."), Err(libc::EINVAL));
    assert!(guest.lookup(below, "file").is_ok());
}

#[test]
fn a_symbolic_link_leads_nowhere() {
    let (directory, shared) = shared();
    symlink("../secret", shared.join("link")).unwrap();
    symlink(directory.path(), shared.join("up")).unwrap();
    symlink("/proc/self/root", shared.join("magic")).unwrap();
    let mut guest = Guest::new(&shared, Access::Write);
    let link = guest.lookup(ROOT, "link").unwrap();
    assert_eq!(guest.open(link, libc::O_RDONLY), Err(libc::ELOOP));
    assert_eq!(guest.change_mode(link, 0o777), Err(libc::EOPNOTSUPP));
    assert_eq!(guest.ask(READLINK, link, &[]).unwrap(), b"../secret");
    for name in ["up", "magic"] {
        let link = guest.lookup(ROOT, name).unwrap();
        assert_eq!(guest.lookup(link, "secret"), Err(libc::ENOTDIR), "{name}");
    }
    // Making a file through the link, and a second name for what it leads to.
    let creating = [words(&[libc::O_WRONLY.cast_unsigned(), 0o644, 0, 0]), name_of("link")].concat();
    assert_eq!(guest.ask(CREATE, ROOT, &creating), Err(libc::ELOOP));
    guest
        .ask(LINK, ROOT, &[link.to_le_bytes().to_vec(), name_of("second")].concat())
        .unwrap();
    assert!(fs::symlink_metadata(shared.join("second")).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(directory.path().join("secret")).unwrap(), "secret");
}

#[test]
fn a_pipe_does_not_hold_the_server() {
    let (_directory, shared) = shared();
    let mut guest = Guest::new(&shared, Access::Write);
    guest.make("pipe", libc::S_IFIFO | 0o644).unwrap();
    assert!(fs::symlink_metadata(shared.join("pipe")).unwrap().file_type().is_fifo());
    let pipe = guest.lookup(ROOT, "pipe").unwrap();
    for flags in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR] {
        assert_eq!(guest.open(pipe, flags), Err(libc::ENXIO));
        let creating = [words(&[flags.cast_unsigned(), 0o644, 0, 0]), name_of("pipe")].concat();
        assert_eq!(guest.ask(CREATE, ROOT, &creating), Err(libc::ENXIO));
    }
}

#[test]
fn no_rights_are_lent() {
    let (_directory, shared) = shared();
    fs::write(shared.join("file"), "").unwrap();
    let mut guest = Guest::new(&shared, Access::Write);
    let file = guest.lookup(ROOT, "file").unwrap();
    for mode in [0o4755, 0o2755, 0o6777] {
        assert_eq!(guest.change_mode(file, mode), Err(libc::EPERM), "{mode:o}");
    }
    guest.change_mode(file, 0o640).unwrap();
    guest.make("new", libc::S_IFREG | 0o6755).unwrap();
    let mode = |name: &str| fs::metadata(shared.join(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("file"), mode("new")), (0o640, 0o755));
    for kind in [libc::S_IFCHR, libc::S_IFBLK] {
        assert_eq!(guest.make("device", kind | 0o666), Err(libc::EPERM));
    }
    // To the guest the file is root's, and stays so.
    for (valid, field) in [(2, 76), (4, 80)] {
        assert_eq!(guest.set(file, valid, field, 0), Ok(()));
        assert_eq!(guest.set(file, valid, field, 1000), Err(libc::EPERM));
    }
}

#[test]
fn times_on_both_sides_of_the_epoch_are_set_as_asked() {
    let (_directory, shared) = shared();
    fs::write(shared.join("file"), "").unwrap();
    let mut guest = Guest::new(&shared, Access::Write);
    let file = guest.lookup(ROOT, "file").unwrap();
    for (seconds, fraction) in [(-2i64, 500_000_000u32), (-3, 0), (-1, 1), (0, 0), (5, 999_999_999)] {
        // `FATTR_MTIME` of `struct fuse_setattr_in`.
        let mut body = vec![0; 88];
        body[0] = 1 << 5;
        body[40..48].copy_from_slice(&seconds.to_le_bytes());
        body[60..64].copy_from_slice(&fraction.to_le_bytes());
        let answer = guest.ask(SETATTR, file, &body).unwrap();
        let metadata = fs::metadata(shared.join("file")).unwrap();
        assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (seconds, fraction.into()));
        // Behind the validity of `struct fuse_attr_out`.
        let told = (number(&answer, 16 + 32).cast_signed(), word(&answer, 16 + 52));
        assert_eq!(told, (seconds, fraction));
    }
}

#[test]
fn what_is_read_only_is_not_written_by_any_request() {
    let (_directory, shared) = shared();
    fs::write(shared.join("file"), "kept").unwrap();
    fs::set_permissions(shared.join("file"), fs::Permissions::from_mode(0o644)).unwrap();
    let mut guest = Guest::new(&shared, Access::Read);
    let file = guest.lookup(ROOT, "file").unwrap();
    for flags in [libc::O_WRONLY, libc::O_RDWR] {
        assert_eq!(guest.open(file, flags), Err(libc::EROFS));
    }
    assert_eq!(guest.change_mode(file, 0o600), Err(libc::EROFS));
    assert_eq!(guest.make("new", libc::S_IFREG), Err(libc::EROFS));
    assert_eq!(guest.ask(UNLINK, ROOT, &name_of("file")), Err(libc::EROFS));
    let creating = [words(&[libc::O_RDWR.cast_unsigned(), 0o644, 0, 0]), name_of("file")].concat();
    assert_eq!(guest.ask(CREATE, ROOT, &creating), Err(libc::EROFS));
    let handle = guest.open(file, libc::O_RDONLY).unwrap();
    let mut writing = handle.to_le_bytes().to_vec();
    writing.extend([0; 8]);
    writing.extend(words(&[1, 0]));
    writing.extend([0; 16]);
    writing.push(b'x');
    assert_eq!(guest.ask(WRITE, file, &writing), Err(libc::EBADF));
    assert_eq!(guest.read(file, handle).unwrap(), b"kept");
}

#[test]
fn what_the_guest_was_never_told_of_is_nothing() {
    let (_directory, shared) = shared();
    let mut guest = Guest::new(&shared, Access::Write);
    for node in [0, 2, 99, u64::MAX] {
        assert_eq!(guest.lookup(node, "x"), Err(libc::ESTALE));
        assert_eq!(guest.open(node, libc::O_RDONLY), Err(libc::ESTALE));
        assert_eq!(guest.read(ROOT, node), Err(libc::EBADF));
    }
}

#[test]
fn a_guest_that_unmounts_mounts_anew_without_what_it_had() {
    let (_directory, shared) = shared();
    fs::write(shared.join("file"), "").unwrap();
    let mut guest = Guest::new(&shared, Access::Write);
    let file = guest.lookup(ROOT, "file").unwrap();
    let handle = guest.open(file, libc::O_RDONLY).unwrap();
    guest.ask(DESTROY, 0, &[]).unwrap();
    guest.mount();
    assert_eq!(guest.read(file, handle), Err(libc::EBADF));
    assert_eq!(guest.open(file, libc::O_RDONLY), Err(libc::ESTALE));
}

#[test]
fn a_path_that_became_a_link_is_not_served() {
    let (directory, shared) = shared();
    let path = directory.path().canonicalize().unwrap().join("link");
    symlink(&shared, &path).unwrap();
    assert!(Export::open_root(&path).is_err());
    assert!(Export::open_root(&shared).is_ok());
}
