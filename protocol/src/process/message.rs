//! What the two ends say.

use crate::wire::{Malformed, Reader, Writer, frame};

/// What a client says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Request {
    /// First: the highest version that the client speaks.
    Hello {
        /// The version.
        version: u32,
    },
    /// Start a process and attach to it.
    Start(Box<Start>),
    /// Attach to a process.
    Attach(Attach),
    /// Tell of all processes that the user may see.
    List,
    /// Input for the process.
    Input(Vec<u8>),
    /// No more input follows, from any client. Answered with [`Reply::Done`]; a terminal has no end of input.
    EndInput,
    /// The terminal has a new size, in characters. Answered with [`Reply::Done`].
    Resize {
        /// Its width.
        cols: u32,
        /// Its height.
        rows: u32,
    },
    /// Send the process and its group a signal, by its name without `SIG`. Answered with [`Reply::Done`].
    Signal(String),
    /// The client takes so many more bytes of output.
    Credit(u32),
    /// The client knows how the process ended. Until one does, the end is remembered for a while.
    Seen,
}

/// What the guest says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Reply {
    /// First: the version that is spoken.
    Hello {
        /// The version.
        version: u32,
    },
    /// The channel is a stream of this process.
    Attached {
        /// Its process id.
        pid: u32,
        /// How many bytes of output it had printed before the first that follows here.
        position: u64,
        /// How many of the bytes asked for are no longer there.
        lost: u64,
        /// Whether it has a terminal.
        terminal: bool,
        /// Whether it takes input. What is sent to one that does not is dropped.
        input: bool,
    },
    /// A piece of standard output, or of what a terminal shows.
    Stdout(Vec<u8>),
    /// A piece of standard error.
    Stderr(Vec<u8>),
    /// So many bytes of output were dropped here, because the client took too little.
    Lost(u64),
    /// The process ended, and all its output was before this. Answered with [`Request::Seen`]; then the channel ends.
    Exited(End),
    /// One process.
    Listed(Box<Info>),
    /// A request is done.
    Done,
    /// A request failed.
    Failed {
        /// Why.
        failure: Failure,
        /// The same for people.
        message: String,
    },
    /// The process took so many more bytes of this client's input.
    Credit(u32),
}

/// What a process runs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Program {
    /// The user's login shell.
    Shell,
    /// A command line for the user's shell.
    Line(Vec<u8>),
    /// A program and its arguments, with no shell in between.
    Arguments(Vec<Vec<u8>>),
}

/// The terminal of a process.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Terminal {
    /// Its type, the value of `TERM`.
    pub term: String,
    /// Its width, in characters.
    pub cols: u32,
    /// Its height, in characters.
    pub rows: u32,
}

/// How a process is started.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Start {
    /// What it runs.
    pub program: Program,
    /// Its working directory; without one, the user's home.
    pub cwd: Option<Vec<u8>>,
    /// Its environment, on top of what the login sets.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// A name of the caller's own choice.
    pub tag: Option<String>,
    /// Its terminal; without one, it has pipes.
    pub terminal: Option<Terminal>,
    /// Whether its standard input is a pipe; else it is empty. A terminal always takes input.
    pub input: bool,
    /// After how many milliseconds it is ended; 0 is never.
    pub timeout_ms: u64,
    /// Recent output that is kept, in bytes.
    pub history: u64,
    /// Whether it goes on when the client that started it is gone.
    pub survive: bool,
    /// Whether it waits with more output while this client has not taken what there is. Else this client misses some.
    pub hold: bool,
    /// Bytes of output that the client takes at first.
    pub credit: u32,
}

/// How a client attaches to a process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Attach {
    /// Its process id.
    pub pid: u32,
    /// Which output is sent.
    pub since: Since,
    /// As in [`Start`].
    pub hold: bool,
    /// As in [`Start`].
    pub credit: u32,
}

/// From where on output is sent to a client that attaches.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Since {
    /// All that is kept.
    Oldest,
    /// Only what is printed from now on.
    Now,
    /// What follows so many bytes of output, for a client that had these.
    Position(u64),
}

/// How a process ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum End {
    /// It exited.
    Code {
        /// Its status.
        code: u32,
        /// Whether its time was over.
        timed_out: bool,
    },
    /// A signal ended it.
    Signal {
        /// The signal's name, without `SIG`.
        name: String,
        /// Whether it left a core dump.
        core_dumped: bool,
        /// Whether its time was over.
        timed_out: bool,
    },
}

/// What is known of a process.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Info {
    /// Its process id.
    pub pid: u32,
    /// The user that it was started as.
    pub user: String,
    /// What it runs.
    pub program: Program,
    /// The working directory that it was started in.
    pub cwd: Vec<u8>,
    /// The environment that it was given on top of the login's.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// The name that it was given.
    pub tag: Option<String>,
    /// Its terminal.
    pub terminal: Option<Terminal>,
    /// When it was started, in milliseconds since the epoch, by the guest's clock.
    pub started_ms: u64,
    /// How many bytes it printed.
    pub printed: u64,
    /// How many clients are attached.
    pub clients: u32,
    /// How it ended, if it did.
    pub end: Option<End>,
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    /// The client does not speak this protocol.
    Protocol,
    /// There is no such process, or not of this user.
    NoProcess,
    /// The process cannot be started.
    Start,
    /// The login does not allow it.
    Forbidden,
    /// There are as many processes as there may be.
    TooMany,
    /// The process has no terminal, or no input.
    NotThere,
    /// There is no such signal.
    NoSignal,
    /// The system refused.
    System,
}

mod kind {
    pub(super) const HELLO: u8 = 1;
    pub(super) const START: u8 = 2;
    pub(super) const ATTACH: u8 = 3;
    pub(super) const LIST: u8 = 4;
    pub(super) const INPUT: u8 = 5;
    pub(super) const END_INPUT: u8 = 6;
    pub(super) const RESIZE: u8 = 7;
    pub(super) const SIGNAL: u8 = 8;
    pub(super) const CREDIT: u8 = 9;
    pub(super) const SEEN: u8 = 10;
    pub(super) const HELLO_REPLY: u8 = 101;
    pub(super) const ATTACHED: u8 = 102;
    pub(super) const STDOUT: u8 = 103;
    pub(super) const STDERR: u8 = 104;
    pub(super) const LOST: u8 = 105;
    pub(super) const EXITED: u8 = 106;
    pub(super) const LISTED: u8 = 107;
    pub(super) const DONE: u8 = 108;
    pub(super) const FAILED: u8 = 109;
    pub(super) const CREDIT_REPLY: u8 = 110;
}

impl Request {
    /// Reads a frame.
    ///
    /// # Errors
    /// When it is none of these messages.
    pub fn decode(frame: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(frame)?;
        let fields = &mut reader;
        let request = match fields.kind() {
            kind::HELLO => Self::Hello { version: fields.u32()? },
            kind::START => Self::Start(Box::new(Start::read(fields)?)),
            kind::ATTACH => Self::Attach(Attach {
                pid: fields.u32()?,
                since: Since::read(fields)?,
                hold: fields.bool()?,
                credit: fields.u32()?,
            }),
            kind::LIST => Self::List,
            kind::INPUT => Self::Input(fields.take_rest().to_vec()),
            kind::END_INPUT => Self::EndInput,
            kind::RESIZE => Self::Resize {
                cols: fields.u32()?,
                rows: fields.u32()?,
            },
            kind::SIGNAL => Self::Signal(fields.text()?),
            kind::CREDIT => Self::Credit(fields.u32()?),
            kind::SEEN => Self::Seen,
            unknown => return Err(Malformed::Kind(unknown)),
        };
        reader.end().map(|()| request)
    }

    /// Appends the frame, with its length.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello { version } => frame(out, kind::HELLO, |fields| fields.u32(*version)),
            Self::Start(start) => frame(out, kind::START, |fields| start.write(fields)),
            Self::Attach(attach) => frame(out, kind::ATTACH, |fields| {
                fields.u32(attach.pid);
                attach.since.write(fields);
                fields.bool(attach.hold);
                fields.u32(attach.credit);
            }),
            Self::List => frame(out, kind::LIST, |_| {}),
            Self::Input(data) => frame(out, kind::INPUT, |fields| fields.raw(data)),
            Self::EndInput => frame(out, kind::END_INPUT, |_| {}),
            Self::Resize { cols, rows } => frame(out, kind::RESIZE, |fields| {
                fields.u32(*cols);
                fields.u32(*rows);
            }),
            Self::Signal(name) => frame(out, kind::SIGNAL, |fields| fields.bytes(name.as_bytes())),
            Self::Credit(bytes) => frame(out, kind::CREDIT, |fields| fields.u32(*bytes)),
            Self::Seen => frame(out, kind::SEEN, |_| {}),
        }
    }
}

impl Reply {
    /// Reads a frame.
    ///
    /// # Errors
    /// When it is none of these messages.
    pub fn decode(frame: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(frame)?;
        let fields = &mut reader;
        let reply = match fields.kind() {
            kind::HELLO_REPLY => Self::Hello { version: fields.u32()? },
            kind::ATTACHED => Self::Attached {
                pid: fields.u32()?,
                position: fields.u64()?,
                lost: fields.u64()?,
                terminal: fields.bool()?,
                input: fields.bool()?,
            },
            kind::STDOUT => Self::Stdout(fields.take_rest().to_vec()),
            kind::STDERR => Self::Stderr(fields.take_rest().to_vec()),
            kind::LOST => Self::Lost(fields.u64()?),
            kind::EXITED => Self::Exited(End::read(fields)?),
            kind::LISTED => Self::Listed(Box::new(Info::read(fields)?)),
            kind::DONE => Self::Done,
            kind::FAILED => Self::Failed {
                failure: Failure::read(fields)?,
                message: fields.text()?,
            },
            kind::CREDIT_REPLY => Self::Credit(fields.u32()?),
            unknown => return Err(Malformed::Kind(unknown)),
        };
        reader.end().map(|()| reply)
    }

    /// Appends the frame, with its length.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello { version } => frame(out, kind::HELLO_REPLY, |fields| fields.u32(*version)),
            Self::Attached {
                pid,
                position,
                lost,
                terminal,
                input,
            } => frame(out, kind::ATTACHED, |fields| {
                fields.u32(*pid);
                fields.u64(*position);
                fields.u64(*lost);
                fields.bool(*terminal);
                fields.bool(*input);
            }),
            Self::Stdout(data) => Self::encode_output(out, false, data),
            Self::Stderr(data) => Self::encode_output(out, true, data),
            Self::Lost(bytes) => frame(out, kind::LOST, |fields| fields.u64(*bytes)),
            Self::Exited(end) => frame(out, kind::EXITED, |fields| end.write(fields)),
            Self::Listed(info) => frame(out, kind::LISTED, |fields| info.write(fields)),
            Self::Done => frame(out, kind::DONE, |_| {}),
            Self::Failed { failure, message } => frame(out, kind::FAILED, |fields| {
                failure.write(fields);
                fields.bytes(message.as_bytes());
            }),
            Self::Credit(bytes) => frame(out, kind::CREDIT_REPLY, |fields| fields.u32(*bytes)),
        }
    }

    /// Appends a piece of standard output or error without a message in between.
    pub fn encode_output(out: &mut Vec<u8>, is_error: bool, data: &[u8]) {
        let kind = if is_error { kind::STDERR } else { kind::STDOUT };
        frame(out, kind, |fields| fields.raw(data));
    }
}

impl Start {
    fn read(fields: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            program: Program::read(fields)?,
            cwd: fields.option(Reader::bytes)?,
            env: fields.list(read_variable)?,
            tag: fields.option(Reader::text)?,
            terminal: fields.option(Terminal::read)?,
            input: fields.bool()?,
            timeout_ms: fields.u64()?,
            history: fields.u64()?,
            survive: fields.bool()?,
            hold: fields.bool()?,
            credit: fields.u32()?,
        })
    }

    fn write(&self, fields: &mut Writer<'_>) {
        self.program.write(fields);
        fields.option(self.cwd.as_ref(), |fields, cwd| fields.bytes(cwd));
        fields.list(&self.env, write_variable);
        fields.option(self.tag.as_ref(), |fields, tag| fields.bytes(tag.as_bytes()));
        fields.option(self.terminal.as_ref(), |fields, terminal| terminal.write(fields));
        fields.bool(self.input);
        fields.u64(self.timeout_ms);
        fields.u64(self.history);
        fields.bool(self.survive);
        fields.bool(self.hold);
        fields.u32(self.credit);
    }
}

impl Info {
    fn read(fields: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            pid: fields.u32()?,
            user: fields.text()?,
            program: Program::read(fields)?,
            cwd: fields.bytes()?,
            env: fields.list(read_variable)?,
            tag: fields.option(Reader::text)?,
            terminal: fields.option(Terminal::read)?,
            started_ms: fields.u64()?,
            printed: fields.u64()?,
            clients: fields.u32()?,
            end: fields.option(End::read)?,
        })
    }

    fn write(&self, fields: &mut Writer<'_>) {
        fields.u32(self.pid);
        fields.bytes(self.user.as_bytes());
        self.program.write(fields);
        fields.bytes(&self.cwd);
        fields.list(&self.env, write_variable);
        fields.option(self.tag.as_ref(), |fields, tag| fields.bytes(tag.as_bytes()));
        fields.option(self.terminal.as_ref(), |fields, terminal| terminal.write(fields));
        fields.u64(self.started_ms);
        fields.u64(self.printed);
        fields.u32(self.clients);
        fields.option(self.end.as_ref(), |fields, end| end.write(fields));
    }
}

impl Program {
    fn read(fields: &mut Reader<'_>) -> Result<Self, Malformed> {
        match fields.u8()? {
            0 => Ok(Self::Shell),
            1 => Ok(Self::Line(fields.bytes()?)),
            2 => Ok(Self::Arguments(fields.list(Reader::bytes)?)),
            _ => Err(fields.field_error()),
        }
    }

    fn write(&self, fields: &mut Writer<'_>) {
        match self {
            Self::Shell => fields.u8(0),
            Self::Line(line) => {
                fields.u8(1);
                fields.bytes(line);
            }
            Self::Arguments(arguments) => {
                fields.u8(2);
                fields.list(arguments, |fields, argument| fields.bytes(argument));
            }
        }
    }
}

impl Terminal {
    fn read(fields: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            term: fields.text()?,
            cols: fields.u32()?,
            rows: fields.u32()?,
        })
    }

    fn write(&self, fields: &mut Writer<'_>) {
        fields.bytes(self.term.as_bytes());
        fields.u32(self.cols);
        fields.u32(self.rows);
    }
}

impl Since {
    fn read(fields: &mut Reader<'_>) -> Result<Self, Malformed> {
        match fields.u8()? {
            0 => Ok(Self::Oldest),
            1 => Ok(Self::Now),
            2 => Ok(Self::Position(fields.u64()?)),
            _ => Err(fields.field_error()),
        }
    }

    fn write(self, fields: &mut Writer<'_>) {
        match self {
            Self::Oldest => fields.u8(0),
            Self::Now => fields.u8(1),
            Self::Position(position) => {
                fields.u8(2);
                fields.u64(position);
            }
        }
    }
}

impl End {
    /// Whether its time was over.
    pub fn timed_out(&self) -> bool {
        match self {
            Self::Code { timed_out, .. } | Self::Signal { timed_out, .. } => *timed_out,
        }
    }

    fn read(fields: &mut Reader<'_>) -> Result<Self, Malformed> {
        match fields.u8()? {
            0 => Ok(Self::Code {
                code: fields.u32()?,
                timed_out: fields.bool()?,
            }),
            1 => Ok(Self::Signal {
                name: fields.text()?,
                core_dumped: fields.bool()?,
                timed_out: fields.bool()?,
            }),
            _ => Err(fields.field_error()),
        }
    }

    fn write(&self, fields: &mut Writer<'_>) {
        match self {
            Self::Code { code, timed_out } => {
                fields.u8(0);
                fields.u32(*code);
                fields.bool(*timed_out);
            }
            Self::Signal {
                name,
                core_dumped,
                timed_out,
            } => {
                fields.u8(1);
                fields.bytes(name.as_bytes());
                fields.bool(*core_dumped);
                fields.bool(*timed_out);
            }
        }
    }
}

impl Failure {
    const ALL: [Self; 8] = [
        Self::Protocol,
        Self::NoProcess,
        Self::Start,
        Self::Forbidden,
        Self::TooMany,
        Self::NotThere,
        Self::NoSignal,
        Self::System,
    ];

    fn read(fields: &mut Reader<'_>) -> Result<Self, Malformed> {
        let index = usize::from(fields.u8()?);
        Self::ALL.get(index).copied().ok_or_else(|| fields.field_error())
    }

    fn write(self, fields: &mut Writer<'_>) {
        // One byte each, in the order of `ALL`.
        let index = Self::ALL.iter().position(|&each| each == self).unwrap_or_default();
        fields.u8(u8::try_from(index).unwrap_or_default());
    }
}

fn read_variable(fields: &mut Reader<'_>) -> Result<(Vec<u8>, Vec<u8>), Malformed> {
    Ok((fields.bytes()?, fields.bytes()?))
}

fn write_variable(fields: &mut Writer<'_>, (name, value): &(Vec<u8>, Vec<u8>)) {
    fields.bytes(name);
    fields.bytes(value);
}

#[cfg(test)]
mod tests;
