//! One program in the guest: its input, its events, and what can be done to it.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use russh::client::Msg;
use russh::{ChannelWriteHalf, Sig};
use tokio::io::AsyncWrite;
use tokio::sync::{mpsc, oneshot};

use super::handler::{Event, Registration, Shared};
use super::stdio::Stdio;
use super::terminal::Pty;
use super::{ClientError, ExitStatus, attach};

/// What a session runs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Program {
    /// The user's login shell.
    Shell,
    /// A command line for the user's shell, its bytes untouched.
    Exec(Vec<u8>),
    /// A subsystem, such as `sftp`.
    Subsystem(String),
}

impl Program {
    fn request(&self) -> &'static str {
        match self {
            Self::Shell => "a shell",
            Self::Exec(_) => "the command",
            Self::Subsystem(_) => "the subsystem",
        }
    }
}

/// How a session starts.
#[derive(Clone, Debug, Default)]
pub struct SpawnOptions {
    /// The terminal it gets. Without one it has three pipes.
    pub tty: Option<Pty>,
    /// Its environment, on top of what the login sets.
    pub env: Vec<(String, String)>,
}

/// A session in which nothing runs yet; the guest has opened its channel.
#[derive(Debug)]
pub struct PreparedSession {
    channel: ChannelWriteHalf<Msg>,
    shared: Arc<Shared>,
}

impl PreparedSession {
    pub(super) fn new(channel: ChannelWriteHalf<Msg>, shared: Arc<Shared>) -> Self {
        Self { channel, shared }
    }

    /// Starts a program and leaves its streams to the caller.
    ///
    /// # Errors
    /// When the guest refuses, or the connection breaks.
    pub async fn start(self, program: &Program, options: &SpawnOptions) -> Result<Session, ClientError> {
        Session::start(self, program, options).await
    }

    /// Runs a program without a terminal on local streams until it ends.
    ///
    /// # Errors
    /// When the guest refuses, the connection breaks, or a local stream does.
    pub async fn copy_stdio(
        self,
        program: &Program,
        env: &[(String, String)],
        stdio: &Stdio,
    ) -> Result<ExitStatus, ClientError> {
        let options = SpawnOptions {
            tty: None,
            env: env.to_vec(),
        };
        attach::copy(self.start(program, &options).await?, stdio).await
    }
}

/// A program that runs in the guest. Its parts may be used apart from each other; dropping [`SessionEvents`] closes it.
#[derive(Debug)]
pub struct Session {
    /// Its standard input.
    pub stdin: SessionStdin,
    /// Its output and its end.
    pub events: SessionEvents,
    /// What can be done to it.
    pub control: SessionControl,
}

/// What comes from a session.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SessionEvent {
    /// A piece of standard output.
    Stdout(Bytes),
    /// A piece of standard error.
    Stderr(Bytes),
    /// No more output follows. The program may still run.
    Eof,
    /// The session is over, and all its output was before this.
    Exit(ExitStatus),
}

impl Session {
    async fn start(prepared: PreparedSession, program: &Program, options: &SpawnOptions) -> Result<Self, ClientError> {
        let PreparedSession { channel, shared } = prepared;
        let Registration { events, closed } = shared.register(channel.id());
        let stdin = SessionStdin {
            writer: Box::pin(channel.make_writer()),
            closed,
            is_closed: false,
        };
        let control = SessionControl(Arc::new(channel));
        let events = SessionEvents {
            inbox: events,
            early: VecDeque::new(),
            exit: None,
            is_over: false,
            shared,
            control: control.clone(),
        };
        let mut session = Self { stdin, events, control };
        session.request(program, options).await?;
        Ok(session)
    }

    async fn request(&mut self, program: &Program, options: &SpawnOptions) -> Result<(), ClientError> {
        let with_tty = options.tty.is_some();
        // What the session is written to must not be borrowed while this waits: no other thread could go on with it.
        if send_requests(&self.control, program, options).await.is_err() {
            return Err(self.events.ended().await);
        }
        if with_tty && !self.events.reply().await? {
            return Err(ClientError::Refused { request: "a terminal" });
        }
        if !self.events.reply().await? {
            return Err(ClientError::Refused {
                request: program.request(),
            });
        }
        Ok(())
    }

    /// Waits for the end, and throws away what output is left. Its input stays open until then.
    ///
    /// # Errors
    /// When the connection breaks before the guest said how the program ended.
    pub async fn wait(mut self) -> Result<ExitStatus, ClientError> {
        self.events.wait().await
    }
}

/// Sends all requests at once: their replies come in order, after one round trip.
async fn send_requests(
    control: &SessionControl,
    program: &Program,
    options: &SpawnOptions,
) -> Result<(), russh::Error> {
    let channel = &control.0;
    if let Some(tty) = &options.tty {
        channel
            .request_pty(true, &tty.term, tty.cols, tty.rows, 0, 0, tty.modes())
            .await?;
    }
    for (name, value) in &options.env {
        channel.set_env(false, name, value).await?;
    }
    match program {
        Program::Shell => channel.request_shell(true).await,
        Program::Exec(command) => channel.exec(true, command.clone()).await,
        Program::Subsystem(name) => channel.request_subsystem(true, name).await,
    }
}

/// The standard input of a session.
///
/// A write waits until the guest has room. A shutdown ends the input and nothing else. After the end of the session each
/// write fails with [`io::ErrorKind::BrokenPipe`].
pub struct SessionStdin {
    writer: Pin<Box<dyn AsyncWrite + Send>>,
    closed: oneshot::Receiver<()>,
    is_closed: bool,
}

impl std::fmt::Debug for SessionStdin {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("SessionStdin")
            .field("is_closed", &self.is_closed)
            .finish_non_exhaustive()
    }
}

impl SessionStdin {
    fn check_open(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        self.is_closed = self.is_closed || Pin::new(&mut self.closed).poll(context).is_ready();
        if self.is_closed {
            Err(io::ErrorKind::BrokenPipe.into())
        } else {
            Ok(())
        }
    }
}

impl AsyncWrite for SessionStdin {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check_open(context)?;
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.writer.as_mut().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_open(context)?;
        self.writer.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_open(context)?;
        self.writer.as_mut().poll_shutdown(context)
    }
}

/// The output and the end of a session.
///
/// What is not taken from here counts against the connection's `receive_limit`. Dropped before the end, it closes the
/// channel, which hangs up on the program.
#[derive(Debug)]
pub struct SessionEvents {
    inbox: mpsc::UnboundedReceiver<Event>,
    /// What overtook the replies to the requests that started the session.
    early: VecDeque<Event>,
    exit: Option<ExitStatus>,
    is_over: bool,
    shared: Arc<Shared>,
    control: SessionControl,
}

impl SessionEvents {
    /// The next event; none after [`SessionEvent::Exit`]. No event is lost when this future is dropped.
    ///
    /// # Errors
    /// When the connection breaks before the guest said how the program ended.
    pub async fn next(&mut self) -> Result<Option<SessionEvent>, ClientError> {
        while !self.is_over {
            match self.receive().await {
                Some(Event::Stdout(data)) => return Ok(Some(SessionEvent::Stdout(data))),
                Some(Event::Stderr(data)) => return Ok(Some(SessionEvent::Stderr(data))),
                Some(Event::Eof) => return Ok(Some(SessionEvent::Eof)),
                Some(Event::Exit(status)) => drop(self.exit.get_or_insert(status)),
                Some(Event::Reply(_)) => {}
                Some(Event::Closed) => {
                    self.is_over = true;
                    return Ok(Some(SessionEvent::Exit(
                        self.exit.take().unwrap_or(ExitStatus::Unknown),
                    )));
                }
                None => {
                    self.is_over = true;
                    return self
                        .exit
                        .take()
                        .map(|status| Some(SessionEvent::Exit(status)))
                        .ok_or_else(|| self.lost());
                }
            }
        }
        Ok(None)
    }

    /// Waits for the end, and throws away what output is left.
    ///
    /// # Errors
    /// When the connection breaks before the guest said how the program ended.
    pub async fn wait(&mut self) -> Result<ExitStatus, ClientError> {
        while let Some(event) = self.next().await? {
            if let SessionEvent::Exit(status) = event {
                return Ok(status);
            }
        }
        Ok(ExitStatus::Unknown)
    }

    async fn receive(&mut self) -> Option<Event> {
        let event = match self.early.pop_front() {
            Some(event) => event,
            None => self.inbox.recv().await?,
        };
        self.shared.gate.consumed(event.cost());
        Some(event)
    }

    /// The reply to a request. A channel that is closed instead refused it.
    async fn reply(&mut self) -> Result<bool, ClientError> {
        loop {
            match self.inbox.recv().await {
                Some(Event::Reply(granted)) => {
                    self.shared.gate.consumed(Event::Reply(granted).cost());
                    return Ok(granted);
                }
                Some(Event::Closed) => {
                    self.is_over = true;
                    return Ok(false);
                }
                Some(event) => self.early.push_back(event),
                None => return Err(self.lost()),
            }
        }
    }

    /// Waits for the end of a connection that takes no more, to know why it ended.
    async fn ended(&mut self) -> ClientError {
        while self.receive().await.is_some() {}
        self.is_over = true;
        self.lost()
    }

    fn lost(&self) -> ClientError {
        ClientError::ConnectionLost {
            source: self.shared.cause(),
        }
    }
}

impl Drop for SessionEvents {
    fn drop(&mut self) {
        self.shared.unregister(self.control.0.id());
        self.inbox.close();
        while let Ok(event) = self.inbox.try_recv() {
            self.shared.gate.consumed(event.cost());
        }
        for event in self.early.drain(..) {
            self.shared.gate.consumed(event.cost());
        }
        if let (false, Ok(runtime)) = (self.is_over, tokio::runtime::Handle::try_current()) {
            let control = self.control.clone();
            runtime.spawn(async move { control.close().await });
        }
    }
}

/// What can be done to a session. Whatever comes after its end is ignored.
#[derive(Clone, Debug)]
pub struct SessionControl(Arc<ChannelWriteHalf<Msg>>);

impl SessionControl {
    /// Tells the program that its terminal has a new size, in characters.
    pub async fn resize(&self, cols: u32, rows: u32) {
        ignore_end(self.0.window_change(cols, rows, 0, 0).await);
    }

    /// Sends the program a signal by its name, without `SIG`.
    pub async fn signal(&self, name: &str) {
        ignore_end(self.0.signal(Sig::Custom(name.to_owned())).await);
    }

    /// Ends the session from this side: its program is hung up on.
    pub async fn close(&self) {
        ignore_end(self.0.close().await);
    }
}

/// That a connection has ended is told by [`SessionEvents::next`].
fn ignore_end(result: Result<(), russh::Error>) {
    drop(result);
}
