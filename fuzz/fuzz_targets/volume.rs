//! The server of a volume, and a guest whose root makes the requests: messages that no kernel would send, names that lead
//! elsewhere, numbers that were never told; meanwhile the host puts links where files were.
//!
//! Each request has one answer, unless it is one of those that have none. The server ends only when it is asked for a volume
//! that is not mounted. Nothing outside of its directory is read, changed or made; nothing at all where it may only read.
#![no_main]

use std::collections::BTreeMap;
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use msb_fuzz::Input;
use msb_fuzz::fuse::operation::*;
use msb_fuzz::fuse::{self, BATCH_FORGET, FORGET, IN_HEADER, OUT_HEADER};
use msb_vmm::devices::virtio::fs::is_request;
use msb_volume::{Access, Export, own_descriptors, serve};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Requests of one guest.
const MAX_STEPS: usize = 200;
const ROOT: u64 = 1;

/// Those that find and open files are chosen most.
const OPERATIONS: &[u32] = &[
    LOOKUP,
    LOOKUP,
    LOOKUP,
    LOOKUP,
    FORGET,
    GETATTR,
    SETATTR,
    SETATTR,
    READLINK,
    SYMLINK,
    SYMLINK,
    MKNOD,
    MKDIR,
    UNLINK,
    RMDIR,
    RENAME,
    RENAME2,
    LINK,
    LINK,
    OPEN,
    OPEN,
    OPEN,
    READ,
    READ,
    WRITE,
    WRITE,
    STATFS,
    RELEASE,
    FSYNC,
    OPENDIR,
    OPENDIR,
    READDIR,
    READDIR,
    RELEASEDIR,
    FSYNCDIR,
    CREATE,
    CREATE,
    CREATE,
    BATCH_FORGET,
    FALLOCATE,
    LSEEK,
    INIT,
    DESTROY,
];

const NAMES: &[&str] = &[
    "file",
    "dir",
    "inside",
    "up",
    "link",
    "abs",
    "out",
    "pipe",
    "new",
    "other",
    ".",
    "..",
    "",
    "../secret",
    "dir/inside",
    "/etc/passwd",
    "secret",
    "inner",
    "/",
];

/// A directory to serve, and what lies beside it.
struct World {
    export: PathBuf,
    secret_path: PathBuf,
    secret: Vec<u8>,
    /// What is outside, as it was at the beginning.
    outside: BTreeMap<PathBuf, Seen>,
    _base: tempfile::TempDir,
}

/// What of a file is changed by whatever is done to it: its times above all.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Seen {
    identity: (u64, u64),
    mode: u32,
    links: u64,
    size: u64,
    read: (i64, i64),
    written: (i64, i64),
    changed: (i64, i64),
}

impl Seen {
    fn of(path: &Path) -> Self {
        let stat = fs::symlink_metadata(path).expect("a file of the test");
        Self {
            identity: (stat.dev(), stat.ino()),
            mode: stat.mode(),
            links: stat.nlink(),
            size: stat.size(),
            read: (stat.atime(), stat.atime_nsec()),
            written: (stat.mtime(), stat.mtime_nsec()),
            changed: (stat.ctime(), stat.ctime_nsec()),
        }
    }
}

static WORLD: LazyLock<World> = LazyLock::new(World::new);

impl World {
    fn new() -> Self {
        // The server's buffers of 16 MiB are fresh pages each time, and are not cleared one by one.
        // SAFETY: it changes how memory is allocated, not what is.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20) };
        let base = tempfile::tempdir().expect("a directory");
        let path = base.path().canonicalize().expect("a directory");
        let (export, secret_path, outside) = (path.join("export"), path.join("secret"), path.join("outside"));
        // What no input can say.
        let secret: Vec<u8> = (0..4)
            .flat_map(|index| RandomState::new().hash_one(index).to_le_bytes())
            .collect();
        fs::create_dir(&export).expect("a directory");
        fs::create_dir(&outside).expect("a directory");
        fs::write(&secret_path, &secret).expect("a file");
        fs::write(outside.join("inner"), &secret).expect("a file");
        let paths = [path, secret_path.clone(), outside.clone(), outside.join("inner")];
        Self {
            outside: paths.into_iter().map(|path| (path.clone(), Seen::of(&path))).collect(),
            export,
            secret_path,
            secret,
            _base: base,
        }
    }

    /// The directory as it is at the start of each input.
    fn fill(&self) {
        empty(&self.export);
        let at = |name: &str| self.export.join(name);
        fs::write(at("file"), "public").expect("a file");
        fs::create_dir(at("dir")).expect("a directory");
        fs::write(at("dir/inside"), "public").expect("a file");
        symlink("..", at("up")).expect("a link");
        symlink("../secret", at("link")).expect("a link");
        symlink(&self.secret_path, at("abs")).expect("a link");
        symlink("../outside", at("out")).expect("a link");
        mknodat(CWD, at("pipe"), FileType::Fifo, Mode::RWXU, 0).expect("a pipe");
    }

    /// What the host does meanwhile. What fails is what the guest made impossible.
    fn change(&self, which: u8) {
        let at = |name: &str| self.export.join(name);
        let _ = match which % 6 {
            0 => fs::rename(at("dir"), at("other")).and_then(|()| symlink("../outside", at("dir"))),
            1 => fs::remove_file(at("file")).and_then(|()| symlink("../secret", at("file"))),
            2 => fs::remove_file(at("dir")).and_then(|()| fs::rename(at("other"), at("dir"))),
            3 => fs::remove_file(at("file")).and_then(|()| fs::write(at("file"), "another")),
            4 => fs::remove_file(at("new")).and_then(|()| symlink("../secret", at("new"))),
            _ => fs::rename(at("file"), at("other")),
        };
    }

    fn check(&self) {
        for (path, seen) in &self.outside {
            assert_eq!(&Seen::of(path), seen, "{} is outside", path.display());
        }
    }
}

/// Removes all entries of a directory, whatever its mode is.
fn empty(directory: &Path) {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).expect("a directory");
    for entry in fs::read_dir(directory).expect("a directory") {
        let entry = entry.expect("an entry");
        if entry.file_type().expect("an entry").is_dir() {
            empty(&entry.path());
            fs::remove_dir(entry.path()).expect("it is empty");
        } else {
            fs::remove_file(entry.path()).expect("an entry");
        }
    }
}

/// All that is in a directory, less the times at which it was read.
fn tree(directory: &Path, into: &mut BTreeMap<PathBuf, Seen>) {
    let mut seen = Seen::of(directory);
    seen.read = (0, 0);
    into.insert(directory.to_owned(), seen);
    if directory.symlink_metadata().expect("a file of the test").is_dir() {
        for entry in fs::read_dir(directory).expect("a directory") {
            tree(&entry.expect("an entry").path(), into);
        }
    }
}

struct Guest<'i> {
    world: &'static World,
    input: Input<'i>,
    socket: OwnedFd,
    unique: u64,
    is_mounted: bool,
    nodes: Vec<u64>,
    handles: Vec<u64>,
}

impl Guest<'_> {
    /// One request, or what the host does. Whether the server goes on.
    fn step(&mut self, access: Access) -> bool {
        let message = match self.input.byte() {
            0xf8.. if access == Access::Write => {
                self.world.change(self.input.byte());
                return true;
            }
            0xf0.. => self.raw(),
            byte if !self.is_mounted && byte < 0xe0 => {
                let flags = self.input.long();
                self.init(7, 39, flags)
            }
            byte => {
                let operation = OPERATIONS[usize::from(byte) % OPERATIONS.len()];
                let node = self.node();
                let body = self.body(operation);
                self.unique += 1;
                fuse::request(operation, self.unique, node, &body)
            }
        };
        self.exchange(message)
    }

    fn init(&mut self, major: u32, minor: u32, flags: u32) -> Vec<u8> {
        self.unique += 1;
        let body = [words(&[major, minor, 128 << 10, flags]), vec![0; 48]].concat();
        fuse::request(INIT, self.unique, 0, &body)
    }

    /// A message of any operation with any body, mostly true about its length.
    fn raw(&mut self) -> Vec<u8> {
        let (operation, node) = (u32::from(self.input.byte()), self.node());
        let count = usize::from(self.input.byte());
        let mut body = self.input.take(count).to_vec();
        if self.input.byte() & 1 == 1 {
            let handle = self.handle().to_le_bytes();
            body.splice(..body.len().min(8), handle);
        }
        self.unique += 1;
        let mut message = fuse::request(operation, self.unique, node, &body);
        if self.input.byte() == 0xff {
            let at = self.input.below(IN_HEADER);
            message[at] ^= self.input.byte();
        }
        message
    }

    fn body(&mut self, operation: u32) -> Vec<u8> {
        match operation {
            LOOKUP | UNLINK | RMDIR => self.name(),
            FORGET => u64::from(self.input.byte()).to_le_bytes().to_vec(),
            GETATTR => [words(&[u32::from(self.input.byte() & 1), 0]), self.handle_bytes()].concat(),
            SETATTR => self.attributes(),
            SYMLINK => {
                let name = self.name();
                let target = match self.input.byte() & 3 {
                    0 => [self.world.secret_path.as_os_str().as_encoded_bytes(), &[0]].concat(),
                    _ => self.name(),
                };
                [name, target].concat()
            }
            MKNOD => {
                let kind = self
                    .input
                    .pick(&[0o100_000, 0o010_000, 0o140_000, 0o020_000, 0o060_000, 0o120_000, 0]);
                let mode = kind | u32::from(self.input.word() & 0o7777);
                [words(&[mode, self.input.byte().into(), 0, 0]), self.name()].concat()
            }
            MKDIR => [words(&[self.input.word().into(), 0]), self.name()].concat(),
            RENAME => [self.node_bytes(), self.name(), self.name()].concat(),
            RENAME2 => {
                let flags = u32::from(self.input.byte() & 7);
                [self.node_bytes(), words(&[flags, 0]), self.name(), self.name()].concat()
            }
            LINK => [self.node_bytes(), self.name()].concat(),
            OPEN | OPENDIR => words(&[self.flags(), 0]),
            READ | READDIR => {
                let size = self.input.pick(&[0, 24, 4096, 1 << 17, u32::MAX]);
                let mut body = [self.handle_bytes(), self.number_bytes(), words(&[size, 0])].concat();
                body.resize(40, 0);
                body
            }
            WRITE => {
                let size = self.input.pick(&[0, 1, 100, 4096, 128 << 10]);
                let mut body = [self.handle_bytes(), self.number_bytes(), words(&[size, 0])].concat();
                body.resize(40 + size as usize, self.input.byte());
                body[24..40].fill(0);
                body
            }
            RELEASE | RELEASEDIR => [self.handle_bytes(), vec![0; 16]].concat(),
            FSYNC | FSYNCDIR => [self.handle_bytes(), words(&[self.input.byte().into(), 0])].concat(),
            INIT => words(&[
                self.input.byte().into(),
                self.input.byte().into(),
                self.input.long(),
                self.input.long(),
            ]),
            CREATE => {
                let (flags, mode) = (self.flags(), self.input.word());
                [words(&[flags, mode.into(), 0, 0]), self.name()].concat()
            }
            BATCH_FORGET => {
                let count = u32::from(self.input.byte() & 3);
                let mut body = words(&[count, 0]);
                for _ in 0..count {
                    body.extend(self.node_bytes());
                    body.extend(self.number_bytes());
                }
                body
            }
            FALLOCATE => {
                let (handle, offset, length) = (self.handle_bytes(), self.number_bytes(), self.number_bytes());
                [handle, offset, length, words(&[self.input.byte().into(), 0])].concat()
            }
            LSEEK => {
                let (handle, offset) = (self.handle_bytes(), self.number_bytes());
                [handle, offset, words(&[u32::from(self.input.byte() & 7), 0])].concat()
            }
            _ => Vec::new(),
        }
    }

    /// `struct fuse_setattr_in`.
    fn attributes(&mut self) -> Vec<u8> {
        let mut body = words(&[self.input.word().into(), 0]);
        body.extend(self.handle_bytes());
        // The size, a lock's owner, three times.
        for _ in 0..5 {
            body.extend(self.number_bytes());
        }
        body.extend(words(&[self.input.byte().into(), self.input.byte().into(), 0]));
        body.extend(words(&[self.input.word().into(), 0]));
        let somebody = [0, 0, 65534, 1000];
        body.extend(words(&[self.input.pick(&somebody), self.input.pick(&somebody), 0]));
        body
    }

    fn name(&mut self) -> Vec<u8> {
        let mut name = match self.input.byte() {
            // About as long as a name can be.
            byte @ 0xf0..0xf8 => vec![b'x'; 250 + usize::from(byte & 7)],
            0xf8.. => {
                let count = self.input.byte().into();
                self.input.take(count).to_vec()
            }
            byte => NAMES[usize::from(byte) % NAMES.len()].into(),
        };
        name.push(0);
        name
    }

    fn flags(&mut self) -> u32 {
        let any = self.input.clone().long();
        self.input.pick(&[
            0,
            1,
            2,
            3,
            0o100 | 2,
            0o200 | 2,
            0o2001,
            0o1002,
            0o10000,
            0o400_000,
            any,
        ])
    }

    fn node(&mut self) -> u64 {
        match self.input.byte() {
            0xfc.. => self.input.pick(&[0, 2, 1 << 63, u64::MAX]),
            byte => self.nodes[usize::from(byte) % self.nodes.len()],
        }
    }

    fn handle(&mut self) -> u64 {
        let byte = self.input.byte();
        match self.handles.len() {
            known @ 1.. if byte < 0xf0 => self.handles[usize::from(byte) % known],
            _ => u64::from(byte),
        }
    }

    fn node_bytes(&mut self) -> Vec<u8> {
        self.node().to_le_bytes().to_vec()
    }

    fn handle_bytes(&mut self) -> Vec<u8> {
        self.handle().to_le_bytes().to_vec()
    }

    fn number_bytes(&mut self) -> Vec<u8> {
        let number = match self.input.byte() {
            0xff => u64::from(self.input.long()) << 32 | u64::from(self.input.long()),
            0xf8.. => self
                .input
                .pick(&[1 << 62, i64::MAX as u64, i64::MIN as u64, u64::MAX, 4095, 1 << 40]),
            byte => byte.into(),
        };
        number.to_le_bytes().to_vec()
    }

    /// Sends a message and hears all that is answered. Whether the server goes on.
    fn exchange(&mut self, mut message: Vec<u8>) -> bool {
        if fuse::opcode(&message) == FALLOCATE && message.len() >= IN_HEADER + 24 {
            // Memory of the test's machine is not what is tested.
            message[IN_HEADER + 18..IN_HEADER + 24].fill(0);
        }
        // The device passes on nothing else.
        if !is_request(&message) {
            return true;
        }
        self.send(&message);
        let (operation, unique) = (fuse::opcode(&message), fuse::unique(&message));
        if !self.is_mounted {
            return self.hear_unmounted(operation, unique);
        }
        if operation == DESTROY {
            let answer = self.hear().expect("an answer to the end of a mount");
            assert_eq!(fuse::unique(&answer), unique);
            self.is_mounted = false;
            return true;
        }
        // One whose answer shows that there are no others.
        let last = !unique;
        self.send(&fuse::request(GETATTR, last, ROOT, &[0; 16]));
        let mut answers = 0;
        loop {
            let answer = self.hear().unwrap_or_else(|| panic!("the server ended: {message:?}"));
            if fuse::unique(&answer) == last {
                break;
            }
            assert_eq!(fuse::unique(&answer), unique, "what was asked is answered");
            answers += 1;
            if fuse::word(&answer, 4) == 0 {
                self.learn(operation, &answer[OUT_HEADER..]);
            }
        }
        match operation {
            FORGET if message.len() >= IN_HEADER + 8 => assert_eq!(answers, 0),
            FORGET | BATCH_FORGET => assert!(answers <= 1),
            _ => assert_eq!(answers, 1, "operation {operation}"),
        }
        true
    }

    /// What follows a message to a server that waits for a mount.
    fn hear_unmounted(&mut self, operation: u32, unique: u64) -> bool {
        let Some(answer) = self.hear() else {
            return false;
        };
        assert_eq!(fuse::unique(&answer), unique);
        if fuse::word(&answer, 4) != 0 || operation != INIT {
            assert!(self.hear().is_none(), "a server that is not asked to mount ends");
            return false;
        }
        // Where it tells a version and no `max_write`, it waits for a request with that version.
        self.is_mounted = fuse::word(&answer, OUT_HEADER + 20) != 0;
        true
    }

    fn send(&self, message: &[u8]) {
        let sent = send(&self.socket, message, SendFlags::NOSIGNAL).expect("the server reads");
        assert_eq!(sent, message.len());
    }

    /// The next answer; none from a server that has ended.
    fn hear(&self) -> Option<Vec<u8>> {
        let mut answer = vec![0; 1 << 18];
        let received = loop {
            match recv(&self.socket, &mut *answer, RecvFlags::empty()) {
                // The fuzzer's own clock.
                Err(Errno::INTR) => {}
                received => break received,
            }
        };
        let length = match received {
            Ok((0, _)) | Err(Errno::CONNRESET) => return None,
            Ok((length, _)) => length,
            Err(error) => panic!("the server hangs: {error}"),
        };
        answer.truncate(length);
        assert!(length >= OUT_HEADER && fuse::word(&answer, 0) as usize == length);
        let error = fuse::word(&answer, 4).cast_signed();
        assert!((-4095..=0).contains(&error) && (error == 0 || length == OUT_HEADER));
        let secret = &self.world.secret[..];
        assert!(
            !answer.windows(secret.len()).any(|window| window == secret),
            "the secret is told"
        );
        Some(answer)
    }

    fn learn(&mut self, operation: u32, body: &[u8]) {
        match operation {
            LOOKUP | SYMLINK | MKNOD | MKDIR | LINK | CREATE => self.nodes.push(fuse::long(body, 0)),
            OPEN | OPENDIR => self.handles.push(fuse::long(body, 0)),
            _ => {}
        }
        if operation == CREATE {
            // Behind `struct fuse_entry_out`.
            self.handles.push(fuse::long(body, 128));
        }
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fuzz_target!(|bytes: &[u8]| {
    let world = &*WORLD;
    world.fill();
    let mut input = Input::new(bytes);
    let access = if input.byte() & 7 == 7 {
        Access::Read
    } else {
        Access::Write
    };
    let mut before = BTreeMap::new();
    if access == Access::Read {
        tree(&world.export, &mut before);
    }
    let (socket, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("sockets");
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE)).expect("a socket");
    let root = Export::open_root(&world.export).expect("a directory");
    let export = Export::new(root, own_descriptors().expect("/proc"), access).expect("a directory");
    let server = std::thread::spawn(move || serve(&theirs, &export));
    let mut guest = Guest {
        world,
        input,
        socket,
        unique: 0,
        is_mounted: false,
        nodes: vec![ROOT],
        handles: Vec::new(),
    };
    let init = guest.init(7, 39, 0);
    let mut goes_on = guest.exchange(init);
    assert!(guest.is_mounted);
    for _ in 0..MAX_STEPS {
        if guest.input.is_empty() || !goes_on {
            break;
        }
        goes_on = guest.step(access);
    }
    drop(guest);
    assert!(server.join().is_ok(), "the server panicked");
    if access == Access::Read {
        let mut after = BTreeMap::new();
        tree(&world.export, &mut after);
        assert_eq!(before, after, "what may only be read is as it was");
    }
    world.check();
});
