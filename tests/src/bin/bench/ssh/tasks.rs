//! What is done with each server.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use msb_tests::{Finished, MASTER, finish, finish_with_input};

use super::Server;

/// What is sent to a session that reads nothing: more than any window.
const FLOOD: usize = 64 << 20;

/// A client that sends nothing more for so long waits for the server.
const STALLED_AFTER: Duration = Duration::from_secs(1);

/// Bytes that a program on the server writes at once.
const PIECE: usize = 64 << 10;

/// The task that is all latency.
pub(super) const CONNECT: &str = "ssh true";

/// Two tasks that are compared.
pub(super) const UNSTALLED: &str = "session of a shared connection";
pub(super) const STALLED: &str = "session beside a stalled one";

/// A task, and how long it took with a server.
type Task = (&'static str, fn(&Server, &Work) -> Duration);

/// All tasks. Times are of the whole client process.
pub(super) const TASKS: [Task; 9] = [
    (CONNECT, |server, _| ended(&mut server.endpoint.ssh("true")).took),
    ("download by ssh", download),
    ("upload by ssh", upload),
    ("sftp put", |server, work| sftp(server, &work.put(server))),
    ("sftp get", |server, work| sftp(server, &work.get(server))),
    ("small files by scp", |server, work| {
        small_files(server, work, "scp", "-rq")
    }),
    ("small files by rsync", |server, work| {
        small_files(server, work, "rsync", "-a")
    }),
    (UNSTALLED, |server, work| Shared::open(server, work).session()),
    (STALLED, |server, work| {
        let mut shared = Shared::open(server, work);
        shared.stall();
        shared.session()
    }),
];

/// What is transferred.
pub(super) struct Work {
    directory: PathBuf,
    bulk: Vec<u8>,
}

impl Work {
    /// A file of `bulk_mib` MiB and a tree of `files` files of 1000 bytes, below `directory`.
    pub(super) fn new(directory: &Path, bulk_mib: usize, files: usize) -> Self {
        let tree = directory.join("tree");
        fs::create_dir_all(&tree).expect("there is space");
        for number in 0..files {
            fs::write(tree.join(number.to_string()), vec![b'x'; 1000]).expect("there is space");
        }
        let random = format!("head -c {bulk_mib}M /dev/urandom");
        let bulk = finish(Command::new("sh").args(["-c", &random])).expect(0).stdout;
        fs::write(directory.join("bulk"), &bulk).expect("there is space");
        let directory = directory.to_owned();
        Self { directory, bulk }
    }

    fn put(&self, server: &Server) -> String {
        format!("put {}/bulk {}/bulk\n", self.directory.display(), server.remote)
    }

    fn get(&self, server: &Server) -> String {
        format!("get {}/bulk {}/bulk.back\n", server.remote, self.directory.display())
    }
}

fn ended(command: &mut Command) -> Finished {
    finish(command).expect(0)
}

/// The guest's program and the host's must write as much at once: busybox's `head` takes a kilobyte at a time.
fn download(server: &Server, work: &Work) -> Duration {
    let size = work.bulk.len();
    let pieces = size / PIECE;
    let write = format!("dd if=/dev/zero bs={PIECE} count={pieces} 2>/dev/null");
    let got = ended(&mut server.endpoint.ssh(&write));
    assert_eq!(got.stdout.len(), size);
    got.took
}

fn upload(server: &Server, work: &Work) -> Duration {
    let mut ssh = server.endpoint.ssh("cat > /dev/null");
    finish_with_input(&mut ssh, work.bulk.clone()).expect(0).took
}

fn sftp(server: &Server, batch: &str) -> Duration {
    let mut sftp = server.endpoint.openssh("sftp");
    sftp.args(["-q", "-b", "-", &server.endpoint.host]);
    finish_with_input(&mut sftp, batch.into()).expect(0).took
}

fn small_files(server: &Server, work: &Work, program: &str, how: &str) -> Duration {
    let mut copy = server.endpoint.openssh(program);
    let there = format!("{}:{}/tree", server.endpoint.host, server.remote);
    let took = ended(copy.arg(how).arg(work.directory.join("tree")).arg(there)).took;
    server.run(&format!("rm -r {}/tree", server.remote));
    took
}

/// One connection of ssh for several sessions.
struct Shared<'a> {
    server: &'a Server,
    control: PathBuf,
    master: Child,
    stalled: Option<(Child, JoinHandle<()>)>,
}

impl<'a> Shared<'a> {
    fn open(server: &'a Server, work: &Work) -> Self {
        let control = work.directory.join("control");
        let mut master = server.endpoint.openssh("ssh");
        master.args(MASTER).arg(&control).arg(&server.endpoint.host);
        let mut master = spawn(&mut master);
        await_line(&mut master);
        Self {
            server,
            control,
            master,
            stalled: None,
        }
    }

    fn command(&self, remote: &str) -> Command {
        let mut ssh = self.server.endpoint.openssh("ssh");
        ssh.arg("-S").arg(&self.control);
        ssh.arg(&self.server.endpoint.host).arg(remote);
        ssh
    }

    fn session(&self) -> Duration {
        ended(&mut self.command("true")).took
    }

    /// Opens a session that reads nothing, and sends to it until the client takes no more.
    fn stall(&mut self) {
        let mut stalled = spawn(&mut self.command("echo up; exec sleep 120"));
        await_line(&mut stalled);
        let mut input = stalled.stdin.take().expect("standard input is piped");
        let sent = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&sent);
        let feeder = std::thread::spawn(move || {
            let zeros = [0; 1 << 14];
            while count.load(Ordering::Relaxed) < FLOOD && input.write_all(&zeros).is_ok() {
                count.fetch_add(zeros.len(), Ordering::Relaxed);
            }
        });
        let mut before = None;
        while before != Some(sent.load(Ordering::Relaxed)) {
            before = Some(sent.load(Ordering::Relaxed));
            std::thread::sleep(STALLED_AFTER);
        }
        self.stalled = Some((stalled, feeder));
    }
}

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        let end = |mut child: Child| {
            let _ = child.kill();
            let _ = child.wait();
        };
        let feeder = self.stalled.take().map(|(stalled, feeder)| {
            end(stalled);
            feeder
        });
        // It has the feeder's pipe, too.
        let _ = self.master.kill();
        let _ = self.master.wait();
        let _ = fs::remove_file(&self.control);
        if let Some(feeder) = feeder {
            let _ = feeder.join();
        }
    }
}

fn spawn(command: &mut Command) -> Child {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("ssh is installed")
}

fn await_line(child: &mut Child) {
    let output = child.stdout.as_mut().expect("standard output is piped");
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).expect("a pipe can be read");
    assert_eq!(line, "up\n", "the session began");
}
