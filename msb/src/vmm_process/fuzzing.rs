//! What fuzzers drive: the keeper's sockets against models of who is at their other ends.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::args::Lifetime;
use super::control::server::{ControlServer, Effect};
use super::control::{self, Answer, Command, Take};
use super::machine;
use crate::pools::PoolRef;
use crate::sandbox::deadline::{TimeLimit, Timeout, TimeoutEnd};

/// Events in a row that no input causes: the keeper does not come to rest.
const SPIN: usize = 10_000;

/// What a VM's process says to its keeper, with anything in it: bounded, and heard to its end.
pub fn reports(bytes: &[u8]) {
    machine::hear_all(bytes);
}

/// Clients of a control socket in `directory`, and a machine that carries out what they ask.
///
/// # Panics
/// When the keeper breaks a promise.
pub fn control(program: &[u8], directory: &Path) {
    let path = directory.join("c.sock");
    let mut world = World {
        server: ControlServer::listen(&path).expect("a socket"),
        client: None,
        asked: None,
        stands: false,
        paused: false,
    };
    let mut program = program.iter().copied();
    while let Some(step) = program.next() {
        world.step(step, &mut program, &path);
        world.settle();
    }
    world.client = None;
    world.settle();
    while world.asked.is_some() {
        world.answer(true);
        world.settle();
    }
    assert_eq!(
        world.stands, world.paused,
        "a VM stands still exactly while it is paused"
    );
}

struct World {
    server: ControlServer,
    client: Option<UnixStream>,
    /// What the machine is to do.
    asked: Option<Command>,
    /// Whether the machine stands still.
    stands: bool,
    /// What the keeper has written down.
    paused: bool,
}

impl World {
    fn step(&mut self, step: u8, program: &mut impl Iterator<Item = u8>, path: &Path) {
        match step % 8 {
            0 => self.connect(path),
            1 => self.client = None,
            2 => {
                let count = program.next().unwrap_or(0) % 16;
                let bytes: Vec<u8> = program.by_ref().take(count.into()).collect();
                self.write(&bytes);
            }
            3 => self.answer(true),
            4 => self.answer(false),
            5 => {
                let effect = self.server.wake();
                self.follow(effect);
            }
            _ => self.send(program.next().unwrap_or(0)),
        }
    }

    /// A client that does not wait: nobody takes what it sends while the machine is at work.
    fn connect(&mut self, path: &Path) {
        let client = UnixStream::connect(path);
        self.client = client
            .and_then(|client| client.set_nonblocking(true).map(|()| client))
            .ok();
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(client) = &mut self.client {
            let _ = client.write_all(bytes);
        }
    }

    fn send(&mut self, which: u8) {
        let command = match which % 6 {
            0 => Command::Pause,
            1 => Command::Resume,
            2 => Command::Save,
            3 => Command::Wait(PoolRef {
                name: "pool".parse().expect("a name"),
                id: "a".into(),
            }),
            4 => Command::Take(Box::new(Take {
                name: None,
                lifetime: Lifetime::OfStarter,
                limit: TimeLimit::default(),
            })),
            _ => Command::SetTimeout {
                timeout: Timeout::try_from(u64::from(which)).ok(),
                end: (which & 4 == 0).then_some(TimeoutEnd::Kill),
            },
        };
        let file = File::open("/dev/null").expect("a file");
        let files = [file.as_fd(), file.as_fd()];
        if let Some(client) = &self.client {
            let _ = control::send(client, &command, &files[..usize::from(which >> 3) % 3]);
        }
    }

    /// The machine has done what it was asked, or has not. It goes on whenever it is told to.
    fn answer(&mut self, done: bool) {
        let Some(command) = self.asked.take() else {
            return;
        };
        let done = done || matches!(command, Command::Resume | Command::GoOn);
        match command {
            Command::Pause if done => self.stands = true,
            // Also when nothing could be written: it stood still to try.
            Command::Save => self.stands = true,
            Command::Resume | Command::GoOn => self.stands = false,
            Command::Pause | Command::SetTimeout { .. } | Command::Wait(_) | Command::Take(_) | Command::Settle => {}
        }
        let answer = match done {
            true => Answer::Done,
            false => Answer::Refused("no".into()),
        };
        let effect = self.server.answered(&answer);
        self.server.answer(&answer);
        self.follow(effect);
    }

    fn follow(&mut self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Forward(request, command) => {
                assert_eq!(request.command.as_ref(), Some(&command));
                assert!(self.asked.replace(command).is_none(), "the machine is at work");
            }
            Effect::Paused(paused) => self.paused = paused,
            Effect::SetTimeout(..) => self.server.answer(&Answer::Done),
            Effect::Wait(_) => {
                let effect = self.server.forward(Command::Pause, Vec::new());
                self.follow(effect);
            }
            Effect::Take(..) => {
                let effect = self.server.forward(Command::GoOn, Vec::new());
                self.follow(effect);
            }
        }
    }

    /// Lets the keeper do all that there is to do now.
    fn settle(&mut self) {
        for _ in 0..SPIN {
            let Some(fd) = self.server.fd() else {
                return;
            };
            match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&Timespec::default())) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) => panic!("{}", io::Error::from(error)),
            }
            let effect = self.server.on_input();
            self.follow(effect);
        }
        panic!("the keeper does not come to rest");
    }
}
