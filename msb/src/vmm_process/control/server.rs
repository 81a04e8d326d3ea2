//! The keeper's end of the control socket: one client at a time, whose commands the machine carries out.

use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::process::Pid;

use super::{Answer, Command, Request, Take, receive};
use crate::pools::PoolRef;
use crate::sandbox::deadline::{Timeout, TimeoutEnd};

/// The control socket, and who uses it. Further clients wait in its backlog.
#[derive(Debug)]
pub(in crate::vmm_process) struct ControlServer {
    listener: UnixListener,
    /// Who is no client, though it can reach the socket.
    machine: Option<Pid>,
    client: Option<UnixStream>,
    /// What the machine is doing and for whom the answer is.
    pending: Option<Pending>,
    /// The VM shall stand still when nobody saves it.
    paused: bool,
    /// The client has had the VM saved, and keeps it still.
    held: bool,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Pending {
    /// The client waits for what becomes of its command.
    OfClient(Command),
    /// The VM goes on because its client has left, or because it is to shut down.
    Release {
        /// It had been paused.
        was_paused: bool,
    },
}

/// What follows from an event.
#[derive(Debug)]
pub(in crate::vmm_process) enum Effect {
    /// Nothing.
    None,
    /// The machine is to carry this out, and its answer is to be given to [`ControlServer::answered`].
    Forward(Request, Command),
    /// From now on the VM is paused, or not.
    Paused(bool),
    /// The run is to be given another time, and what became of that to [`ControlServer::answer`].
    SetTimeout(Option<Timeout>, Option<TimeoutEnd>),
    /// The sandbox is to wait in a pool: [`ControlServer::forward`] has it stand still, or [`ControlServer::answer`] tells
    /// why not.
    Wait(PoolRef),
    /// The sandbox is to be another one, for the starter at the other end of this: likewise, and it goes on.
    Take(Box<Take>, UnixStream),
}

impl ControlServer {
    /// Listens at `path`, which only this user can reach.
    ///
    /// # Errors
    /// When nothing can be bound there.
    pub(in crate::vmm_process) fn listen(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            machine: None,
            client: None,
            pending: None,
            paused: false,
            held: false,
        })
    }

    /// Takes no commands from the machine: a guest that has broken into it commands nobody.
    pub(in crate::vmm_process) fn refuse(&mut self, machine: Pid) {
        self.machine = Some(machine);
    }

    /// What to poll for input; nothing while the machine is at work.
    pub(in crate::vmm_process) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match (&self.pending, &self.client) {
            (Some(_), _) => None,
            (None, Some(client)) => Some(client.as_fd()),
            (None, None) => Some(self.listener.as_fd()),
        }
    }

    /// There is input.
    pub(in crate::vmm_process) fn on_input(&mut self) -> Effect {
        let Some(client) = &self.client else {
            // What does not come or does not work is no client.
            self.client = self.accept().ok();
            return Effect::None;
        };
        match receive(client) {
            Ok(Some(Request {
                command: None | Some(Command::Settle | Command::GoOn),
                ..
            })) => {
                self.answer(&Answer::Refused(
                    "this command is not one of the running VM's version".into(),
                ));
                Effect::None
            }
            Ok(Some(Request {
                command: Some(Command::Save),
                files,
            })) if files.len() != 2 => {
                self.answer(&Answer::Refused("a saved VM needs two files".into()));
                Effect::None
            }
            Ok(Some(Request {
                command: Some(Command::SetTimeout { timeout, end }),
                ..
            })) => Effect::SetTimeout(timeout, end),
            Ok(Some(Request {
                command: Some(Command::Wait(pool)),
                ..
            })) => Effect::Wait(pool),
            Ok(Some(Request {
                command: Some(Command::Take(take)),
                files,
            })) => match <[OwnedFd; 1]>::try_from(files) {
                Ok([starter]) => Effect::Take(take, starter.into()),
                Err(_) => {
                    self.answer(&Answer::Refused("a sandbox is taken for one starter".into()));
                    Effect::None
                }
            },
            Ok(Some(Request {
                command: Some(command),
                files,
            })) => self.forward(command, files),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Effect::None,
            Ok(None) | Err(_) => self.client_left(),
        }
    }

    /// Has the machine carry out a command of the client.
    pub(in crate::vmm_process) fn forward(&mut self, command: Command, files: Vec<OwnedFd>) -> Effect {
        self.pending = Some(Pending::OfClient(command.clone()));
        let request = Request {
            command: Some(command.clone()),
            files,
        };
        Effect::Forward(request, command)
    }

    /// The machine has carried out what it was given.
    pub(in crate::vmm_process) fn answered(&mut self, answer: &Answer) -> Effect {
        let command = match self.pending.take() {
            Some(Pending::OfClient(command)) => command,
            Some(Pending::Release { was_paused: true }) => return Effect::Paused(false),
            Some(Pending::Release { was_paused: false }) | None => return Effect::None,
        };
        let done = *answer == Answer::Done;
        // Also when it was not saved: the machine stood still to try.
        self.held |= command == Command::Save;
        let effect = match command {
            Command::Pause if done => Effect::Paused(true),
            Command::Resume | Command::GoOn if done => Effect::Paused(false),
            _ => Effect::None,
        };
        if let Effect::Paused(paused) = effect {
            self.paused = paused;
            self.held &= paused;
        }
        effect
    }

    /// Gives the client its answer.
    pub(in crate::vmm_process) fn answer(&mut self, answer: &Answer) {
        if let Some(client) = &mut self.client {
            // A client that is gone, or does not read, needs none.
            let _ = client.write_all(&answer.to_line());
        }
    }

    fn accept(&self) -> io::Result<UnixStream> {
        let (client, _) = self.listener.accept()?;
        if self.machine == Some(rustix::net::sockopt::socket_peercred(&client)?.pid) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        client.set_nonblocking(true)?;
        Ok(client)
    }

    fn client_left(&mut self) -> Effect {
        self.client = None;
        if !std::mem::take(&mut self.held) || self.paused {
            return Effect::None;
        }
        self.release(false)
    }

    /// Lets a VM go on that is paused, so that it can shut down. One that is just saved goes on when its client leaves.
    pub(in crate::vmm_process) fn wake(&mut self) -> Effect {
        if self.pending.is_some() || !std::mem::take(&mut self.paused) {
            return Effect::None;
        }
        // Whoever is connected now hears no more.
        self.client = None;
        self.held = false;
        self.release(true)
    }

    fn release(&mut self, was_paused: bool) -> Effect {
        self.pending = Some(Pending::Release { was_paused });
        let release = Request {
            command: Some(Command::Resume),
            files: Vec::new(),
        };
        Effect::Forward(release, Command::Resume)
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::os::fd::BorrowedFd;

    use super::super::send;
    use super::*;
    use crate::sandbox::deadline::TimeLimit;
    use crate::vmm_process::args::Lifetime;

    fn server() -> (tempfile::TempDir, ControlServer, UnixStream) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.sock");
        let mut server = ControlServer::listen(&path).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        assert!(matches!(server.on_input(), Effect::None));
        (directory, server, client)
    }

    fn files(of: &UnixStream) -> [BorrowedFd<'_>; 2] {
        [of.as_fd(), of.as_fd()]
    }

    #[test]
    fn a_vm_that_was_saved_goes_on_when_its_client_leaves() {
        let (_directory, mut server, client) = server();
        send(&client, &Command::Save, &files(&client)).unwrap();
        assert!(matches!(server.on_input(), Effect::Forward(_, Command::Save)));
        assert!(server.fd().is_none(), "the machine is at work");
        assert!(matches!(server.answered(&Answer::Done), Effect::None));
        drop(client);
        assert!(matches!(server.on_input(), Effect::Forward(_, Command::Resume)));
        assert!(matches!(server.answered(&Answer::Done), Effect::None));
        assert!(server.fd().is_some());
    }

    #[test]
    fn a_vm_that_was_paused_stays_so_after_it_was_saved() {
        let (_directory, mut server, client) = server();
        for (command, sent) in [(Command::Pause, &[][..]), (Command::Save, &files(&client))] {
            send(&client, &command, sent).unwrap();
            assert!(matches!(server.on_input(), Effect::Forward(..)));
            let effect = server.answered(&Answer::Done);
            assert_eq!(matches!(effect, Effect::Paused(true)), command == Command::Pause);
        }
        drop(client);
        assert!(matches!(server.on_input(), Effect::None));
    }

    #[test]
    fn a_vm_that_is_to_shut_down_is_woken_once() {
        let (_directory, mut server, client) = server();
        assert!(matches!(server.wake(), Effect::None), "it runs");
        send(&client, &Command::Pause, &[]).unwrap();
        assert!(matches!(server.on_input(), Effect::Forward(..)));
        assert!(matches!(server.wake(), Effect::None), "the machine is at work");
        server.answered(&Answer::Done);
        assert!(matches!(server.wake(), Effect::Forward(_, Command::Resume)));
        assert!(matches!(server.answered(&Answer::Done), Effect::Paused(false)));
        assert!(matches!(server.wake(), Effect::None));
    }

    #[test]
    fn what_only_a_keeper_says_is_refused() {
        let (_directory, mut server, client) = server();
        for command in [Command::Settle, Command::GoOn] {
            send(&client, &command, &[]).unwrap();
            assert!(matches!(server.on_input(), Effect::None));
            assert!(matches!(Answer::read(&client).unwrap(), Answer::Refused(_)));
        }
    }

    #[test]
    fn a_time_is_set_without_the_machine() {
        let (_directory, mut server, client) = server();
        let (timeout, end) = (Timeout::try_from(1000).ok(), None);
        send(&client, &Command::SetTimeout { timeout, end }, &[]).unwrap();
        assert!(matches!(server.on_input(), Effect::SetTimeout(Some(_), None)));
        server.answer(&Answer::Done);
        assert_eq!(Answer::read(&client).unwrap(), Answer::Done);
    }

    #[test]
    fn a_sandbox_stands_still_to_wait_and_goes_on_when_it_is_taken() {
        let (_directory, mut server, client) = server();
        let pool = PoolRef {
            name: "pool".parse().unwrap(),
            id: "a".into(),
        };
        send(&client, &Command::Wait(pool), &[]).unwrap();
        assert!(matches!(server.on_input(), Effect::Wait(_)));
        assert!(matches!(
            server.forward(Command::Pause, Vec::new()),
            Effect::Forward(_, Command::Pause)
        ));
        assert!(matches!(server.answered(&Answer::Done), Effect::Paused(true)));

        let take = Take {
            name: None,
            lifetime: Lifetime::OfStarter,
            limit: TimeLimit::default(),
        };
        let take = Command::Take(Box::new(take));
        for (files, is_taken) in [(&files(&client)[..], false), (&[], false), (&[client.as_fd()], true)] {
            send(&client, &take, files).unwrap();
            assert_eq!(
                matches!(server.on_input(), Effect::Take(..)),
                is_taken,
                "{}",
                files.len()
            );
        }
        assert!(matches!(
            server.forward(Command::Resume, Vec::new()),
            Effect::Forward(_, Command::Resume)
        ));
        assert!(matches!(server.answered(&Answer::Done), Effect::Paused(false)));
        drop(client);
        assert!(
            matches!(server.on_input(), Effect::None),
            "it goes on without its taker's connection"
        );
    }

    #[test]
    fn who_leaves_a_command_unfinished_is_no_client_any_more() {
        let (_directory, mut server, client) = server();
        rustix::io::writev(&client, &[IoSlice::new(b"T\x01\0\0")]).unwrap();
        assert!(matches!(server.on_input(), Effect::None));
        // The rest of a time is no command to pause.
        let _ = rustix::io::writev(&client, &[IoSlice::new(b"PPPPPP")]);
        assert!(server.client.is_none());
        Answer::read(&client).unwrap_err();
    }

    #[test]
    fn the_machine_is_no_client() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.sock");
        let mut server = ControlServer::listen(&path).unwrap();
        server.refuse(rustix::process::getpid());
        let machine = UnixStream::connect(&path).unwrap();
        server.on_input();
        assert!(server.client.is_none());
        Answer::read(&machine).unwrap_err();
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_the_next_client_served() {
        let (directory, mut server, client) = server();
        send(&client, &Command::Save, &[]).unwrap();
        assert!(matches!(server.on_input(), Effect::None));
        assert!(matches!(Answer::read(&client).unwrap(), Answer::Refused(_)));
        rustix::io::writev(&client, &[IoSlice::new(b"?")]).unwrap();
        assert!(matches!(server.on_input(), Effect::None));
        assert!(matches!(Answer::read(&client).unwrap(), Answer::Refused(_)));
        drop(client);
        assert!(matches!(server.on_input(), Effect::None));
        let next = UnixStream::connect(directory.path().join("c.sock")).unwrap();
        server.on_input();
        send(&next, &Command::Resume, &[]).unwrap();
        assert!(matches!(server.on_input(), Effect::Forward(_, Command::Resume)));
    }
}
