//! What the clients of a keeper ask for.

use msb_protocol::process::{Attach, Failure, Reply, Request, Since};
use rustix::process::Signal;

use super::Keeper;
use super::client::{Client, Gone, ProtocolError, View};
use crate::pty::{self, Size};
use crate::signal_names;

impl Keeper {
    /// The client that started the process sees all of its output.
    pub(super) fn admit_starter(&mut self, mut client: Client) {
        client.is_starter = true;
        let start = &self.subject.start;
        let attach = Attach {
            pid: self.subject.child.id(),
            since: Since::Oldest,
            hold: start.hold,
            credit: start.credit,
        };
        let id = self.admit(client);
        self.attach(id, attach);
    }

    /// Reads and serves what a client sent.
    pub(super) fn serve_requests(&mut self, id: u64) {
        let client = self.clients.iter_mut().find(|(each, _)| *each == id);
        let Some((_, client)) = client else { return };
        if let Err(Gone) = client.receive(&mut self.buffer) {
            return self.remove(id);
        }
        while let Some(client) = self.client(id) {
            let served = match client.request() {
                Ok(None) => return,
                Ok(Some(request)) => self.serve(id, request),
                Err(error) => Err(error),
            };
            if let (Err(error), Some(client)) = (served, self.client(id)) {
                client.refuse(Failure::Protocol, error.to_string());
                client.leave();
            }
        }
    }

    fn serve(&mut self, id: u64, request: Request) -> Result<(), ProtocolError> {
        let Some(client) = self.client(id) else { return Ok(()) };
        let is_attached = client.view().is_some();
        match request {
            Request::List if !is_attached => {
                self.tell(id);
                Ok(())
            }
            Request::Attach(attach) if !is_attached => {
                match client.take_passed() {
                    Ok(()) => self.attach(id, attach),
                    Err(_) => self.remove(id),
                }
                Ok(())
            }
            Request::Hello { .. } | Request::Start(_) | Request::Attach(_) | Request::List => {
                Err(ProtocolError::OutOfPlace("a start, an attachment or a list"))
            }
            _ if !is_attached => Err(ProtocolError::OutOfPlace("this")),
            Request::Seen => {
                self.end_is_known_to(id);
                Ok(())
            }
            Request::Credit(bytes) => {
                client.add_credit(bytes);
                Ok(())
            }
            Request::Input(bytes) => {
                client.spend_window(bytes.len())?;
                self.take_input(id, bytes);
                Ok(())
            }
            Request::EndInput => {
                let done = self.end_input();
                self.answer(id, done);
                Ok(())
            }
            Request::Resize { cols, rows } => {
                let done = self.resize(cols, rows);
                self.answer(id, done);
                Ok(())
            }
            Request::Signal(name) => {
                let done = self.signal(&name);
                self.answer(id, done);
                Ok(())
            }
        }
    }

    fn tell(&mut self, id: u64) {
        let attached = self.clients.iter().filter(|(_, client)| client.view().is_some());
        let info = self.subject.info(self.history.end(), attached.count());
        if let Some(client) = self.client(id) {
            client.reply(&Reply::Listed(Box::new(info)));
            client.reply(&Reply::Done);
            client.leave();
        }
    }

    fn attach(&mut self, id: u64, attach: Attach) {
        let (start, end) = (self.history.start(), self.history.end());
        let wanted = match attach.since {
            Since::Oldest => 0,
            Since::Now => end,
            Since::Position(position) => position.min(end),
        };
        let position = wanted.max(start);
        let attached = Reply::Attached {
            pid: self.subject.child.id(),
            position,
            lost: position - wanted,
            terminal: self.input.is_terminal(),
            input: self.input.is_open(),
        };
        if let Some(client) = self.client(id) {
            client.reply(&attached);
            client.set_view(View {
                position,
                credit: attach.credit.into(),
                hold: attach.hold,
            });
        }
    }

    /// As long as it runs there is no end to know of.
    fn end_is_known_to(&mut self, id: u64) {
        if self.is_over() {
            self.lifetime.forget();
            if let Some(client) = self.client(id) {
                client.leave();
            }
        }
    }

    fn take_input(&mut self, id: u64, bytes: Vec<u8>) {
        if self.subject.end.is_some() {
            // Told of the end instead.
        } else if self.input.is_open() {
            self.input.push(id, bytes);
        } else if let Some(client) = self.client(id) {
            client.return_window(bytes.len());
        }
    }

    fn answer(&mut self, id: u64, done: Result<(), (Failure, String)>) {
        let Some(client) = self.client(id) else { return };
        match done {
            Ok(()) => client.reply(&Reply::Done),
            Err((failure, message)) => client.refuse(failure, message),
        }
    }

    fn end_input(&mut self) -> Result<(), (Failure, String)> {
        if self.input.is_terminal() {
            let message = "a terminal has no end of input; send what its shell takes for it, such as ctrl-D";
            return Err((Failure::NotThere, message.into()));
        }
        self.input.end();
        Ok(())
    }

    fn resize(&self, cols: u32, rows: u32) -> Result<(), (Failure, String)> {
        let Some(terminal) = &self.subject.terminal else {
            return Err((Failure::NotThere, "the process has no terminal".into()));
        };
        pty::resize(terminal, Size::in_characters(cols, rows))
            .map_err(|error| (Failure::System, format!("cannot resize the terminal: {error}")))
    }

    fn signal(&self, name: &str) -> Result<(), (Failure, String)> {
        let signal = signal_names::number(name).and_then(Signal::from_named_raw);
        let signal = signal.ok_or_else(|| (Failure::NoSignal, format!("no signal is called {name}")))?;
        match self.subject.signal(signal) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::SRCH) => Err((Failure::NoProcess, "the process has ended".into())),
            Err(error) => Err((Failure::System, format!("cannot signal the process: {error}"))),
        }
    }
}
