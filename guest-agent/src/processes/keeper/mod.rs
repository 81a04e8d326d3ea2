//! The keeper of one process: owns its streams, serves its clients, and tells how it ended.
//!
//! It is a process of the same user, in a session of its own, with one thread and one loop that waits for whatever is
//! ready. The process dies with its keeper, so that nothing runs on that nobody could see or reach.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use msb_protocol::process::{Failure, Reply, Start};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::directory::Place;
use super::stream;
use crate::console;
use crate::signal_fd::SignalFd;

mod child;
mod client;
mod group;
mod history;
mod input;
mod lifetime;
mod output;
mod requests;
mod subject;

use client::Client;
use history::History;
use input::Input;
use lifetime::Lifetime;
use output::Output;
use subject::Subject;

/// Clients of one process at once; further ones are left as they come.
const MAX_CLIENTS: usize = 64;

/// The most that is read at once, in bytes.
const READ_SIZE: usize = 64 << 10;

/// Why a process is not kept.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error(transparent)]
    Start(#[from] child::StartError),
    #[error("cannot prepare to keep a process")]
    Prepare(#[source] io::Error),
    #[error("cannot make the socket {}", path.display())]
    Listen { path: PathBuf, source: io::Error },
}

/// Starts a process and keeps it until nobody needs to know about it any more. Standard input and output are its first
/// client.
pub(super) fn run(directory: &Path, start: Start) {
    let Ok(starter) = take_standard_streams() else {
        return;
    };
    match Keeper::new(directory, start) {
        Ok(mut keeper) => {
            keeper.admit_starter(starter);
            keeper.run();
        }
        Err(error) => {
            let failure = match error {
                KeepError::Start(_) => Failure::Start,
                _ => Failure::System,
            };
            let message = console::chain(&error);
            // Who does not listen need not know.
            let _ = stream::send(starter.into_blocking(), &Reply::Failed { failure, message });
        }
    }
}

struct Keeper {
    subject: Subject,
    lifetime: Lifetime,
    input: Input,
    outputs: Vec<Output>,
    history: History,
    clients: Vec<(u64, Client)>,
    next_client: u64,
    /// Gone once nobody needs to find it any more.
    door: Option<Door>,
    /// At the end of the guest everything is told to end, and the process needs its keeper until it has.
    terminations: SignalFd,
    /// What is read goes through it.
    buffer: Box<[u8]>,
}

/// What was waited for.
#[derive(Clone, Copy, Debug)]
enum Source {
    End,
    Door,
    Termination,
    Input,
    Output(usize),
    Requests(u64),
    Replies(u64),
}

impl Keeper {
    fn new(directory: &Path, start: Start) -> Result<Self, KeepError> {
        let prepare = |error: rustix::io::Errno| KeepError::Prepare(error.into());
        // Nothing that is sent to the session shall reach it.
        rustix::process::setsid().map_err(prepare)?;
        // Only a name in listings.
        let _ = rustix::thread::set_name(c"msb-keeper");
        let terminations = SignalFd::block(&[libc::SIGTERM]).map_err(KeepError::Prepare)?;
        let started = child::start(&start)?;
        let place = Place::own(directory, started.child.id());
        let door = Door::open(place.path()).map_err(|source| KeepError::Listen {
            path: place.path().into(),
            source,
        })?;
        let is_terminal = started.terminal.is_some();
        let outputs = started.outputs.into_iter().enumerate();
        let outputs = outputs.map(|(index, output)| Output::new(output, index == 1, is_terminal));
        let outputs = outputs.collect();
        let history = History::new(start.history.clamp(
            *msb_protocol::process::HISTORY_RANGE.start(),
            *msb_protocol::process::HISTORY_RANGE.end(),
        ));
        Ok(Self {
            lifetime: Lifetime::new(Duration::from_millis(start.timeout_ms), start.survive),
            input: Input::new(started.input, is_terminal),
            outputs,
            history,
            clients: Vec::new(),
            next_client: 0,
            door: Some(door),
            terminations,
            buffer: vec![0; READ_SIZE].into(),
            subject: Subject {
                child: started.child,
                ended: started.ended,
                terminal: started.terminal,
                cwd: started.cwd,
                started: SystemTime::now(),
                end: None,
                start,
            },
        })
    }

    fn run(mut self) {
        loop {
            self.serve_clients();
            if self.is_done() {
                return;
            }
            for (source, events) in self.wait() {
                self.handle(source, events);
            }
            let is_running = self.subject.end.is_none();
            if let Some(order) = self.lifetime.due(is_running, self.subject.terminal.is_some()) {
                self.subject.signal_session(order);
            }
            self.read_leftovers();
        }
    }

    /// Whether nobody will ask about the process any more and nothing of it is left.
    fn is_done(&mut self) -> bool {
        if !self.is_over() {
            return false;
        }
        if self.clients.is_empty() && self.lifetime.is_forgotten() {
            self.door = None;
            return self.outputs.iter().all(Output::is_closed);
        }
        false
    }

    /// Whether the process ended and all it printed is in the history.
    fn is_over(&self) -> bool {
        self.subject.end.is_some() && self.outputs.iter().all(Output::is_over)
    }

    /// The position of the client that more output waits for.
    fn held(&self) -> Option<u64> {
        let views = self.clients.iter().filter_map(|(_, client)| client.view());
        views.filter(|view| view.hold).map(|view| view.position).min()
    }

    fn wait(&self) -> Vec<(Source, PollFlags)> {
        let mut sources = Vec::new();
        let mut descriptors = Vec::new();
        let mut watch = |source, descriptor, events| {
            sources.push(source);
            descriptors.push(PollFd::from_borrowed_fd(descriptor, events));
        };
        if self.subject.end.is_none() {
            watch(Source::End, self.subject.ended.as_fd(), PollFlags::IN);
        }
        if let Some(door) = &self.door {
            watch(Source::Door, door.listener.as_fd(), PollFlags::IN);
        }
        watch(Source::Termination, self.terminations.as_fd(), PollFlags::IN);
        if let Some(input) = self.input.writable() {
            watch(Source::Input, input, PollFlags::OUT);
        }
        let has_room = self.history.has_room(self.held());
        for (index, output) in self.outputs.iter().enumerate() {
            if let Some(descriptor) = output.readable(has_room) {
                watch(Source::Output(index), descriptor, PollFlags::IN);
            }
        }
        for (id, client) in &self.clients {
            if let Some(requests) = client.readable() {
                watch(Source::Requests(*id), requests, PollFlags::IN);
            }
            if let Some((replies, events)) = client.writable() {
                watch(Source::Replies(*id), replies, events);
            }
        }
        let timeout = self.lifetime.next_deadline(self.subject.end.is_none());
        let timeout = timeout.and_then(|left| Timespec::try_from(left).ok());
        // An interrupted poll is another turn of the loop.
        if rustix::event::poll(&mut descriptors, timeout.as_ref()).is_err() {
            return Vec::new();
        }
        let events = descriptors.iter().map(PollFd::revents);
        sources
            .into_iter()
            .zip(events)
            .filter(|(_, events)| !events.is_empty())
            .collect()
    }

    fn handle(&mut self, source: Source, events: PollFlags) {
        match source {
            Source::End => self.process_ended(),
            Source::Door => self.accept(),
            Source::Termination => {
                while self.terminations.next().is_some() {}
                self.lifetime.forget();
            }
            Source::Input => self.feed(),
            Source::Output(index) => self.read_output(index),
            Source::Requests(id) => self.serve_requests(id),
            Source::Replies(id) => {
                if events.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
                    self.remove(id);
                }
            }
        }
    }

    fn process_ended(&mut self) {
        if self.lifetime.is_ending() {
            // What it left of its session, before the number is free for others.
            self.subject.kill_session();
        }
        if self.subject.reap(self.lifetime.timed_out()) {
            self.outputs.iter_mut().for_each(Output::process_ended);
            // Whoever still sends is told of the end instead.
            self.input.drop_queue();
            self.lifetime.process_ended();
        }
    }

    fn read_output(&mut self, index: usize) {
        let held = self.held();
        let output = &mut self.outputs[index];
        if let Some(bytes) = output.read(&mut self.buffer) {
            self.history.push(output.is_error, bytes, held);
        }
    }

    /// Once the process has ended, nothing announces what it left.
    fn read_leftovers(&mut self) {
        if self.subject.end.is_none() {
            return;
        }
        for index in 0..self.outputs.len() {
            while !self.outputs[index].is_over() && self.history.has_room(self.held()) {
                self.read_output(index);
            }
        }
    }

    fn feed(&mut self) {
        for (id, bytes) in self.input.write() {
            if let Some(client) = self.client(id) {
                client.return_window(bytes);
            }
        }
    }

    fn accept(&mut self) {
        let Some(door) = &self.door else { return };
        let Ok(socket) = rustix::net::accept_with(&door.listener, rustix::net::SocketFlags::CLOEXEC) else {
            return;
        };
        if self.clients.len() < MAX_CLIENTS
            && let Ok(client) = Client::from_socket(socket)
        {
            self.admit(client);
        }
    }

    fn admit(&mut self, client: Client) -> u64 {
        let id = self.next_client;
        self.next_client += 1;
        self.clients.push((id, client));
        id
    }

    fn client(&mut self, id: u64) -> Option<&mut Client> {
        self.clients
            .iter_mut()
            .find(|(each, _)| *each == id)
            .map(|(_, client)| client)
    }

    fn remove(&mut self, id: u64) {
        let Some(index) = self.clients.iter().position(|(each, _)| *each == id) else {
            return;
        };
        let (_, client) = self.clients.swap_remove(index);
        if client.is_starter {
            self.lifetime.starter_left();
        }
        self.history.trim(self.held());
    }

    /// Gives every client what it may have, and lets those go that have all.
    fn serve_clients(&mut self) {
        let end = self.subject.end.clone().filter(|_| self.is_over()).map(Reply::Exited);
        let mut left = Vec::new();
        for (id, client) in &mut self.clients {
            match client.serve(&self.history, end.as_ref()) {
                Ok(false) => {}
                Ok(true) | Err(client::Gone) => left.push(*id),
            }
        }
        for id in left {
            self.remove(id);
        }
        self.history.trim(self.held());
    }
}

/// The socket through which others reach a keeper. Gone when dropped.
#[derive(Debug)]
struct Door {
    listener: std::os::unix::net::UnixListener,
    path: PathBuf,
    inode: (u64, u64),
}

impl Door {
    fn open(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        // The process that had this number before is gone, and only its keeper still tells of it.
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = std::os::unix::net::UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self {
            listener,
            path: path.into(),
            inode: (metadata.dev(), metadata.ino()),
        })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        use std::os::unix::fs::MetadataExt;
        let is_own = |metadata: &fs::Metadata| (metadata.dev(), metadata.ino()) == self.inode;
        if fs::symlink_metadata(&self.path).as_ref().is_ok_and(is_own) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The first client, from standard input and output, which are the null device afterwards, as is standard error.
fn take_standard_streams() -> io::Result<Client> {
    let input: OwnedFd = io::stdin().as_fd().try_clone_to_owned()?;
    let output = io::stdout().as_fd().try_clone_to_owned()?;
    let null = fs::File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(Client::new(input, output)?)
}
