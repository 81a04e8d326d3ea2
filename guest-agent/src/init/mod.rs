//! PID 1 of a guest: prepares the system, reaps, accepts SSH connections, and ends the guest in order.
//!
//! It is single-threaded, so that it may fork without exec: each connection gets a process of its own, which is all that
//! a fault in the SSH library can end. It uses no random numbers itself, because a generator seeded here would repeat
//! in every session.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::process::exit;
use std::time::Duration;

use msb_protocol::identity::GuestConfig;
use msb_protocol::notice::Notice;
use msb_protocol::ports;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, WaitOptions};

use crate::console;
use crate::session::{self, Opening, Settings};
use crate::signal_fd;

pub(crate) mod disks;
mod host;
mod identity;
mod listener;
mod mounts;
mod renewal;
mod root;
mod shutdown;
mod signals;
mod system;
mod tools;
mod volumes;

use host::Heard;
use listener::Listener;
use signals::{Request, Signals};

/// Connections served at once; further ones are closed as they come.
const MAX_SESSIONS: usize = 128;

/// How long accepting pauses after it failed, for whatever is short to come back.
const ACCEPT_PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// Why the guest cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// A file system that nothing works without.
    #[error(transparent)]
    Mount(#[from] mounts::MountError),
    /// The image's files.
    #[error(transparent)]
    Root(#[from] root::RootError),
    /// A file system of the host.
    #[error(transparent)]
    Volume(#[from] volumes::VolumeError),
    /// The identity made by the host.
    #[error(transparent)]
    Identity(#[from] identity::IdentityError),
    /// The host key or the keys that may log in.
    #[error(transparent)]
    Session(#[from] session::SettingsError),
    /// No vsock to serve SSH on.
    #[error("cannot listen on vsock port {port}: the kernel needs virtio-vsock and the machine its device")]
    Listen {
        /// The port.
        port: u32,
        /// Why.
        source: io::Error,
    },
    /// The host did not say who a restored guest is.
    #[error("cannot receive a new identity from the host")]
    Renewal(#[source] io::Error),
    /// No signals, so nothing would ever be reaped.
    #[error("cannot receive signals")]
    Signals(#[source] io::Error),
}

/// Runs as PID 1. Never returns: the guest ends instead.
pub fn run() -> ! {
    let started = system::uptime();
    match Init::start(started) {
        Ok(init) => init.run(),
        Err(error) => {
            console::log(&format!("the guest cannot start: {}", console::chain(&error)));
            shutdown::reboot()
        }
    }
}

struct Init {
    /// Guest uptime when PID 1 started.
    started: Duration,
    signals: Signals,
    listeners: [Listener; 2],
    host: Option<host::Connection>,
    settings: Settings,
    root: Option<root::Writable>,
    sessions: HashSet<Pid>,
    paused: bool,
}

/// What there is to do.
struct Ready {
    signalled: bool,
    connected: [bool; 2],
    host: bool,
}

/// What a turn of the loop ended with.
enum Turn {
    Again,
    /// This is a new process, which serves one connection.
    Session(OwnedFd, Opening),
    End(Request),
}

impl Init {
    fn start(started: Duration) -> Result<Self, InitError> {
        mounts::mount_all()?;
        tools::mount();
        let signals = Signals::block().map_err(InitError::Signals)?;
        let identity = identity::take()?;
        let root = identity.config.image.as_ref().map(root::enter).transpose()?;
        system::prepare(&identity.config);
        if root.is_some() {
            root::name(&identity.config.hostname);
        }
        volumes::mount_all(&identity.config.volumes)?;
        let mut settings = settings(&identity.host_key, &identity.authorized_keys, identity.config)?;
        if let Some(certificate) = identity.host_certificate {
            settings = settings.with_host_certificate(&certificate)?;
        }
        let listen = |port, opening| Listener::open(port, opening).map_err(|source| InitError::Listen { port, source });
        let listeners = [
            listen(ports::SSH, Opening::Ssh)?,
            listen(ports::PREPARED_SSH, Opening::Preamble)?,
        ];
        let host = host::Connection::open(&ready(started));
        Ok(Self {
            started,
            signals,
            listeners,
            host,
            settings,
            root,
            sessions: HashSet::new(),
            paused: false,
        })
    }

    fn run(mut self) -> ! {
        loop {
            match self.turn() {
                Turn::Again => {}
                Turn::Session(stream, opening) => {
                    let settings = self.settings.clone();
                    drop(self);
                    serve(stream, opening, settings)
                }
                Turn::End(request) => {
                    if let Some(host) = &mut self.host {
                        host.send(&Notice::ShuttingDown);
                    }
                    shutdown::end(&self.signals, request, self.root.as_ref())
                }
            }
        }
    }

    fn turn(&mut self) -> Turn {
        let Ready {
            signalled,
            connected,
            host,
        } = self.wait();
        if signalled {
            while let Some(request) = self.signals.next() {
                match request {
                    Request::Reap => self.reap(),
                    end => return Turn::End(end),
                }
            }
        }
        if host && let Some(connection) = &mut self.host {
            match connection.hear() {
                Heard::Nothing => {}
                Heard::ShutDown => return Turn::End(Request::End("host")),
                Heard::Renew => return self.renew(),
                Heard::End => return self.follow_host(),
            }
        }
        for (index, _) in connected.iter().enumerate().filter(|(_, connected)| **connected) {
            if let session @ Turn::Session(..) = self.accept(index) {
                return session;
            }
        }
        Turn::Again
    }

    /// Waits for a signal, a connection, or the host.
    fn wait(&mut self) -> Ready {
        let signals = PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN);
        let listeners = self.listeners.each_ref().map(|listener| {
            let listener = PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN);
            (!self.paused).then_some(listener)
        });
        let host = self
            .host
            .as_ref()
            .map(|host| PollFd::from_borrowed_fd(host.as_fd(), PollFlags::IN));
        let timeout = self.paused.then_some(&ACCEPT_PAUSE);
        let [ssh, prepared] = listeners;
        let watched = [Some(signals), ssh, prepared, host];
        let mut fds: Vec<PollFd<'_>> = watched.iter().flatten().cloned().collect();
        // An interrupted poll is another turn of the loop.
        let _ = rustix::event::poll(&mut fds, timeout);
        let mut results = fds.iter().map(|fd| !fd.revents().is_empty());
        let mut next = |fd: &Option<PollFd<'_>>| fd.is_some() && results.next().unwrap_or(false);
        let [signalled, ssh, prepared, host] = watched.each_ref().map(&mut next);
        self.paused = false;
        Ready {
            signalled,
            connected: [ssh, prepared],
            host,
        }
    }

    /// The connection to the host has ended. In a restored guest all have, and the host waits to say who it is now; until
    /// then it serves nobody.
    fn follow_host(&mut self) -> Turn {
        self.host = host::Connection::reopen();
        self.renew()
    }

    /// Becomes who the host says it is.
    fn renew(&mut self) -> Turn {
        let Some(host) = &mut self.host else {
            return Turn::Again;
        };
        let renewed = host
            .renewal()
            .map_err(InitError::Renewal)
            .and_then(|renewal| Ok(renewal::apply(renewal)?));
        match renewed {
            Ok(settings) => {
                self.settings = settings;
                host.send(&ready(self.started));
                Turn::Again
            }
            Err(error) => {
                // It would be taken for the guest that it was saved from.
                degraded("a restored guest that does not learn who it is cannot go on", &error);
                Turn::End(Request::End("restore"))
            }
        }
    }

    fn reap(&mut self) {
        while let Ok(Some((pid, _))) = rustix::process::wait(WaitOptions::NOHANG) {
            self.sessions.remove(&pid);
        }
    }

    fn accept(&mut self, index: usize) -> Turn {
        let listener = &self.listeners[index];
        let stream = match listener.accept() {
            Ok(Some(stream)) => stream,
            Ok(None) => return Turn::Again,
            Err(error) => {
                // What is not a connection that went away meanwhile is a shortage.
                self.paused = !matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted
                );
                return Turn::Again;
            }
        };
        if self.sessions.len() >= MAX_SESSIONS {
            return Turn::Again;
        }
        // SAFETY: this process has one thread, so the child may go on as any process.
        match unsafe { libc::fork() } {
            0 => return Turn::Session(stream, listener.opening),
            -1 => console::log(&format!("cannot fork for a connection: {}", io::Error::last_os_error())),
            pid => self.sessions.extend(Pid::from_raw(pid)),
        }
        Turn::Again
    }
}

/// Serves one connection in a process of its own, with its own session, as sshd does.
fn serve(stream: OwnedFd, opening: Opening, settings: Settings) -> ! {
    signal_fd::unblock_all();
    let _ = rustix::process::setsid();
    let served = std::panic::catch_unwind(AssertUnwindSafe(|| session::serve(stream, opening, settings)));
    exit(match served {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => {
            console::log(&format!("connection: {}", console::chain(&error)));
            1
        }
        Err(_panic) => 101,
    })
}

/// How a session asks PID 1 to end the guest.
fn ask_to_end() {
    let _ = rustix::process::kill_process(Pid::INIT, rustix::process::Signal::TERM);
}

fn settings(host_key: &[u8], authorized_keys: &[u8], config: GuestConfig) -> Result<Settings, session::SettingsError> {
    Ok(Settings::new(host_key, authorized_keys)?
        .with_environment(config.environment)
        .with_features(config.ssh)
        .with_image(config.image)
        .with_guest_end(ask_to_end))
}

fn ready(started: Duration) -> Notice {
    Notice::Ready {
        agent: env!("CARGO_PKG_VERSION").into(),
        init_us: micros(started),
        ready_us: micros(system::uptime()),
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Writes a console line for something the guest can do without.
fn degraded(what: &str, error: &dyn std::error::Error) {
    console::log(&format!("{what}: {}", console::chain(error)));
}

/// Opens a file for reading and writing without making it the controlling terminal.
fn open_terminal(path: &str) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(path)
}
