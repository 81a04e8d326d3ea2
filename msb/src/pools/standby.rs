//! The process that stands by a fork while it waits: it stays logged in, and runs one session for whoever took the fork.
//!
//! A taker would spend more time on a connection of its own than on all the rest. So it hands its standard streams to the
//! process that warmed the fork, which copies between them and the session and says how that ended, as a master of
//! OpenSSH's multiplexing does. A taker that wants something else, or finds nobody, connects for itself.
//!
//! The request is a byte, the length of the command as four bytes, little endian, with the three descriptors beside them,
//! and the command; the answer is one JSON line. A taker that hangs up without a request lets the process go.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use msb_ssh::client::{ClientError, PreparedSession, Program, SshClient, Stdio};
use msb_ssh::fd_passing;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::{UnixListener, UnixStream};

use crate::report;
use crate::sandbox::ssh::is_transport;
use crate::timings::{now_us, us_at};

/// The longest command that is run for a taker, in bytes.
const MAX_COMMAND: usize = 1 << 20;

/// The longest answer, in bytes.
const MAX_ANSWER: u64 = 64 * 1024;

/// A byte and a length.
const HEADER: usize = 5;

const SHELL: u8 = b'S';
const COMMAND: u8 = b'C';

/// How a session ended that was run for a taker, and when. Times are `CLOCK_MONOTONIC` in microseconds.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ended {
    /// When the first byte of output or error was written, if one was.
    pub(crate) first_output_us: Option<u64>,
    /// When the session had ended and all its output was written.
    pub(crate) ended_us: u64,
    pub(crate) end: End,
}

/// How a session ended.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum End {
    /// The program did, with what a shell would have as its status.
    Exited(u8),
    /// Whoever read the output has gone.
    SeenEnough,
    /// The connection to the guest failed.
    ConnectionFailed(String),
    /// Anything else did.
    Failed(String),
}

/// Why it is not known how a session ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StandbyError {
    /// The process is gone.
    #[error("the process that held the connection to the guest ended before it said how the program did")]
    Gone(#[source] io::Error),
    /// It says what no such process says.
    #[error("the process that held the connection to the guest says nothing that can be understood")]
    Answer(#[source] serde_json::Error),
}

/// A process that stood by a fork until that was taken. Dropped, it ends.
#[derive(Debug)]
pub(crate) struct Standby(UnixStream);

impl Standby {
    /// Connects to who listens at `path`, if anybody does. Needs a tokio runtime with I/O.
    pub(super) fn connect(path: &Path) -> Option<Self> {
        let stream = std::os::unix::net::UnixStream::connect(path).ok()?;
        stream.set_nonblocking(true).ok()?;
        UnixStream::from_std(stream).ok().map(Self)
    }

    /// Whether it can run such a session. One with a terminal is the taker's own: who is no part of the terminal's
    /// session reads from it while another job has it, and is not stopped with the taker's.
    pub(crate) fn can_run(command: Option<&[u8]>, stdio: [BorrowedFd<'_>; 3]) -> bool {
        command.is_none_or(|command| command.len() <= MAX_COMMAND) && !stdio.into_iter().any(rustix::termios::isatty)
    }

    /// Has it run a command, or a shell, with these streams. When this is dropped, the session is over.
    ///
    /// # Errors
    /// When it does not say how the session ended; what was run may have been.
    pub(crate) async fn run(self, command: Option<&[u8]>, stdio: [BorrowedFd<'_>; 3]) -> Result<Ended, StandbyError> {
        let Self(mut stream) = self;
        let asked = ask(&mut stream, command, &stdio);
        asked.await.map_err(StandbyError::Gone)?;
        let mut answer = Vec::new();
        let read = stream.take(MAX_ANSWER).read_to_end(&mut answer).await;
        read.map_err(StandbyError::Gone)?;
        if answer.is_empty() {
            return Err(StandbyError::Gone(io::ErrorKind::UnexpectedEof.into()));
        }
        serde_json::from_slice(&answer).map_err(StandbyError::Answer)
    }
}

async fn ask(stream: &mut UnixStream, command: Option<&[u8]>, stdio: &[BorrowedFd<'_>]) -> io::Result<()> {
    let (kind, command) = command.map_or((SHELL, &[][..]), |command| (COMMAND, command));
    let length = u32::try_from(command.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let header = [&[kind][..], &length.to_le_bytes()].concat();
    // An empty socket takes so few bytes whole.
    fd_passing::send(&*stream, &header, stdio)?;
    stream.write_all(command).await
}

/// What a taker wants.
#[derive(Debug)]
struct Request {
    program: Program,
    stdio: [OwnedFd; 3],
}

/// What stands by a fork.
#[derive(Debug)]
pub(crate) struct Server {
    pub(super) listener: UnixListener,
    pub(super) client: SshClient,
    pub(super) session: PreparedSession,
    /// The VM's process, which is no taker: a guest that has broken into it uses nobody's connection.
    pub(super) machine: Option<i32>,
}

/// Listens where only this user connects.
pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

impl Server {
    /// Waits for a taker and runs its session. Returns when there is nothing more to do.
    pub(crate) async fn serve(self) {
        let Self {
            listener,
            mut client,
            session,
            machine,
        } = self;
        let accepted = tokio::select! {
            accepted = accept(&listener, machine) => accepted,
            // The fork has ended.
            () = client.ended() => return,
        };
        drop(listener);
        let Ok(mut taker) = accepted else { return };
        let Ok(Some(request)) = receive(&mut taker).await else {
            return;
        };
        let ended = tokio::select! {
            ended = run(session, request) => ended,
            // Nothing more comes from a taker that is there.
            _ = taker.read_u8() => return,
        };
        let answer = serde_json::to_vec(&ended).expect("an answer has no failing serializers");
        if let Err(error) = taker.write_all(&answer).await {
            tracing::info!(error = &error as &dyn std::error::Error, "the taker has gone");
        }
    }
}

async fn accept(listener: &UnixListener, machine: Option<i32>) -> io::Result<UnixStream> {
    loop {
        let (taker, _) = listener.accept().await?;
        if machine.is_none() || taker.peer_cred()?.pid() != machine {
            return Ok(taker);
        }
    }
}

/// `None` when the taker hung up, or asks for what is none of this version's.
async fn receive(taker: &mut UnixStream) -> io::Result<Option<Request>> {
    let mut header = [0; HEADER];
    let receive = || fd_passing::receive(&*taker, &mut header);
    let (received, stdio) = taker.async_io(Interest::READABLE, receive).await?;
    let Ok(stdio) = <[OwnedFd; 3]>::try_from(stdio) else {
        return Ok(None);
    };
    let [kind, length @ ..] = header;
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if received != HEADER || length > MAX_COMMAND {
        return Ok(None);
    }
    let mut command = vec![0; length];
    taker.read_exact(&mut command).await?;
    let program = match kind {
        SHELL => Program::Shell,
        COMMAND => Program::Exec(command),
        _ => return Ok(None),
    };
    Ok(Some(Request { program, stdio }))
}

async fn run(session: PreparedSession, request: Request) -> Ended {
    let Request {
        program,
        stdio: [input, output, error],
    } = request;
    let stdio = match Stdio::new(input.as_fd(), output.as_fd(), error.as_fd()) {
        Ok(stdio) => stdio,
        Err(error) => return Ended::now(None, End::Failed(report::one_line(&error))),
    };
    // Whoever reads them must see their end with that of the session.
    drop([input, output, error]);
    let copied = session.copy_stdio(&program, &[], &stdio).await;
    let end = match copied {
        Ok(status) => End::Exited(status.shell_code()),
        Err(ClientError::LocalWrite { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => End::SeenEnough,
        Err(error) if is_transport(&error) => End::ConnectionFailed(report::one_line(&error)),
        Err(error) => End::Failed(report::one_line(&error)),
    };
    Ended::now(stdio.first_output().map(us_at), end)
}

impl Ended {
    fn now(first_output_us: Option<u64>, end: End) -> Self {
        Self {
            first_output_us,
            ended_us: now_us(),
            end,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn pair() -> (Standby, UnixStream) {
        let (taker, standby) = UnixStream::pair().unwrap();
        (Standby(taker), standby)
    }

    fn stdio() -> (io::PipeReader, io::PipeWriter) {
        io::pipe().unwrap()
    }

    #[tokio::test]
    async fn a_request_arrives_with_its_streams_and_its_answer_comes_back() {
        let long = vec![b'x'; MAX_COMMAND];
        for command in [None, Some(&b""[..]), Some(&long)] {
            let (standby, mut taker) = pair();
            let (mut reader, writer) = stdio();
            let expected = Ended::now(Some(7), End::Exited(3));
            let serve = async {
                let request = receive(&mut taker).await.unwrap().unwrap();
                match (request.program, command) {
                    (Program::Shell, None) => {}
                    (Program::Exec(received), Some(sent)) => assert!(received == sent),
                    (program, _) => panic!("{program:?}"),
                }
                let [_, output, _] = request.stdio;
                rustix::io::write(&output, b"output").unwrap();
                taker.write_all(&serde_json::to_vec(&expected).unwrap()).await.unwrap();
                drop(taker);
            };
            let ask = standby.run(command, [reader.as_fd(), writer.as_fd(), writer.as_fd()]);
            let (ended, ()) = tokio::join!(ask, serve);
            assert_eq!(ended.unwrap(), expected);
            drop(writer);
            let mut output = String::new();
            reader.read_to_string(&mut output).unwrap();
            assert_eq!(output, "output");
        }
    }

    #[tokio::test]
    async fn a_process_that_dies_is_no_result() {
        let (standby, mut taker) = pair();
        let (reader, writer) = stdio();
        let serve = async {
            assert!(receive(&mut taker).await.unwrap().is_some());
            drop(taker);
        };
        let ask = standby.run(Some(b"true"), [reader.as_fd(), writer.as_fd(), writer.as_fd()]);
        let (ended, ()) = tokio::join!(ask, serve);
        assert!(matches!(ended, Err(StandbyError::Gone(_))), "{ended:?}");
    }

    #[tokio::test]
    async fn the_machine_is_no_taker() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        let listener = listen(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let us = i32::try_from(std::process::id()).unwrap();
        let (Standby(mut refused), accepted) = (Standby::connect(&path).unwrap(), accept(&listener, Some(us)));
        let end = async { refused.read(&mut [0]).await.unwrap() };
        tokio::select! {
            _ = accepted => panic!("it was taken for a taker"),
            read = end => assert_eq!(read, 0),
        }
        let _other = Standby::connect(&path).unwrap();
        accept(&listener, Some(us + 1)).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_no_request_is_none() {
        let (reader, writer) = stdio();
        let streams = [reader.as_fd(), writer.as_fd(), writer.as_fd()];
        let too_long = u32::try_from(MAX_COMMAND + 1).unwrap().to_le_bytes();
        let cases: [(&[u8], &[BorrowedFd<'_>]); 4] = [
            (b"C\0\0\0\0", &streams[..2]),
            (b"C\0\0", &streams),
            (b"X\0\0\0\0", &streams),
            (&[&b"C"[..], &too_long].concat(), &streams),
        ];
        for (bytes, files) in cases {
            let (Standby(ours), mut taker) = pair();
            fd_passing::send(&ours, bytes, files).unwrap();
            drop(ours);
            assert!(matches!(receive(&mut taker).await, Ok(None)), "{bytes:?}");
        }
        let (Standby(ours), mut taker) = pair();
        drop(ours);
        assert!(matches!(receive(&mut taker).await, Ok(None)));
    }

    #[test]
    fn neither_a_terminal_nor_a_command_without_end_is_for_another_process() {
        let (reader, writer) = stdio();
        let pipes = [reader.as_fd(), writer.as_fd(), writer.as_fd()];
        assert!(Standby::can_run(None, pipes));
        assert!(!Standby::can_run(Some(&vec![0; MAX_COMMAND + 1]), pipes));
        let terminal = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR).unwrap();
        rustix::pty::grantpt(&terminal).unwrap();
        rustix::pty::unlockpt(&terminal).unwrap();
        for place in 0..3 {
            let mut streams = pipes;
            streams[place] = terminal.as_fd();
            assert!(!Standby::can_run(None, streams));
        }
    }
}
