//! What the client asks, answered inside each callback: russh keeps one pending reply per channel.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use russh::keys::{Algorithm, PublicKey};
use russh::server::{Auth, ChannelOpenHandle, Msg, PublicKeyOffer, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelOpenFailure, Pty, Sig};
use tokio::sync::Notify;

use super::budget::Budget;
use super::channel::{Login, SessionChannel};
use super::forward::{Forward, Target};
use super::input::Input;
use super::outlet::Outlet;
use super::process::Program;
use super::terminal::{Size, Terminal};
use super::{SessionError, Settings, signals};
use crate::console;
use crate::net::Liveness;
use crate::users::User;

/// Channels that one connection may have open at once.
const MAX_CHANNELS: usize = 128;

/// The subsystem that transfers files.
const SFTP: &str = "sftp";

/// The subsystem with which root ends the guest.
const SHUTDOWN: &str = "shutdown@msb";

type Channels = HashMap<ChannelId, Open>;

/// What a channel is for.
enum Open {
    Session(SessionChannel),
    Forward(Forward),
}

impl Open {
    fn input(&self) -> &Input {
        match self {
            Self::Session(channel) => channel.input(),
            Self::Forward(forward) => forward.input(),
        }
    }

    fn session(&mut self) -> Option<&mut SessionChannel> {
        match self {
            Self::Session(channel) => Some(channel),
            Self::Forward(_) => None,
        }
    }
}

fn session_of(channels: &mut Channels, id: ChannelId) -> Option<&mut SessionChannel> {
    channels.get_mut(&id).and_then(Open::session)
}

/// Serves one connection.
pub(super) struct Handler {
    settings: Settings,
    budget: Arc<Budget>,
    login: Option<Arc<Login>>,
    logged_in: Arc<Notify>,
    /// Shared with the task of each process, which removes its channel at the end.
    channels: Arc<Mutex<Channels>>,
}

impl Handler {
    pub(super) fn new(settings: Settings, liveness: Liveness, logged_in: Arc<Notify>) -> Self {
        Self {
            settings,
            budget: Arc::new(Budget::new(liveness)),
            login: None,
            logged_in,
            channels: Arc::default(),
        }
    }

    fn channels(&self) -> MutexGuard<'_, Channels> {
        lock(&self.channels)
    }

    /// The two ends of a channel that is opened.
    fn ends(&self, channel: Channel<Msg>, session: &Session) -> (Outlet, Input) {
        // Input is taken in data(), where it never blocks; what nobody reads must not fill the other half.
        let (_, writer) = channel.split();
        let outlet = Outlet::new(writer, session.handle(), Arc::clone(&self.budget));
        (outlet, Input::new(Arc::clone(&self.budget)))
    }

    /// Who logs in with `key` as `name`, if that is allowed.
    fn admit(&self, name: &str, key: &PublicKey, algorithm: &Algorithm) -> Option<Login> {
        // SHA-1 signatures.
        if matches!(algorithm, Algorithm::Rsa { hash: None }) {
            return None;
        }
        let options = self.settings.authorized_keys.find(key, SystemTime::now())?.clone();
        let user = User::by_name(name)?;
        let own = rustix::process::geteuid();
        (own.is_root() || own.as_raw() == user.uid).then_some(Login { user, options })
    }

    fn start(&self, id: ChannelId, program: Program, session: &mut Session) -> Result<(), SessionError> {
        let Some(login) = self.login.clone() else {
            return Ok(session.channel_failure(id)?);
        };
        let started = match session_of(&mut self.channels(), id) {
            Some(channel) if channel.is_unstarted() => channel.start(program, &login, &self.settings),
            _ => return Ok(session.channel_failure(id)?),
        };
        match started {
            Ok(conversation) => {
                session.channel_success(id)?;
                let channels = Arc::clone(&self.channels);
                tokio::spawn(async move {
                    conversation.await;
                    lock(&channels).remove(&id);
                });
                Ok(())
            }
            Err(error) => {
                let (name, shell) = (&login.user.name, login.user.shell.display());
                console::log(&format!("cannot start a session for {name} with {shell}: {error}"));
                Ok(session.channel_failure(id)?)
            }
        }
    }

    async fn open_forward(
        &self,
        channel: Channel<Msg>,
        target: Option<Target>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) {
        let permitted = target
            .zip(self.login.clone())
            .filter(|(target, login)| target.is_permitted(&login.options));
        let Some((target, login)) = permitted else {
            return reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
        };
        if self.channels().len() >= MAX_CHANNELS {
            return reply.reject(ChannelOpenFailure::ResourceShortage).await;
        }
        let id = channel.id();
        let (outlet, input) = self.ends(channel, session);
        self.channels().insert(id, Open::Forward(Forward::new(outlet, input)));
        // Connecting takes as long as it takes, and no other channel waits for it.
        tokio::spawn(run_forward(Arc::clone(&self.channels), id, target, login, reply));
    }

    fn end_guest(&self, id: ChannelId, session: &mut Session) -> Result<(), SessionError> {
        let is_root = self
            .login
            .as_ref()
            .is_some_and(|login| login.user.is_root() && login.options.command.is_none());
        let outlet = session_of(&mut self.channels(), id).map(|channel| channel.outlet());
        let (Some(end_guest), Some(outlet), true) = (self.settings.end_guest, outlet, is_root) else {
            return Ok(session.channel_failure(id)?);
        };
        session.channel_success(id)?;
        let end = EndGuest(end_guest);
        tokio::spawn(async move {
            outlet.finish(Some(std::process::ExitStatus::default())).await;
            tokio::time::sleep(FAREWELL).await;
            drop(end);
        });
        Ok(())
    }
}

/// How long a client that asked for the end of the guest may stay connected before it ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// Ends the guest when dropped: with its connection at the latest, so that the client has its answer and no accident
/// of the connection forgets the request.
struct EndGuest(fn());

impl Drop for EndGuest {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Connects, answers the client, and moves data until the connection ends.
async fn run_forward(
    channels: Arc<Mutex<Channels>>,
    id: ChannelId,
    target: Target,
    login: Arc<Login>,
    reply: ChannelOpenHandle,
) {
    match target.connect(&login).await {
        Ok(stream) => {
            let running = match lock(&channels).get(&id) {
                Some(Open::Forward(forward)) => forward.run(stream),
                _ => return,
            };
            reply.accept().await;
            running.await;
        }
        Err(_) => reply.reject(ChannelOpenFailure::ConnectFailed).await,
    }
    lock(&channels).remove(&id);
}

fn lock(channels: &Mutex<Channels>) -> MutexGuard<'_, Channels> {
    channels.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer(session: &mut Session, id: ChannelId, done: bool) -> Result<(), SessionError> {
    let answered = if done {
        session.channel_success(id)
    } else {
        session.channel_failure(id)
    };
    Ok(answered?)
}

impl russh::server::Handler for Handler {
    type Error = SessionError;

    async fn auth_publickey_offered(&mut self, user: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, SessionError> {
        Ok(match self.admit(user, offer.public_key, offer.algorithm) {
            Some(_) => Auth::Accept,
            None => Auth::reject(),
        })
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, SessionError> {
        self.login = self.admit(user, key.public_key, key.algorithm).map(Arc::new);
        Ok(if self.login.is_some() {
            Auth::Accept
        } else {
            Auth::reject()
        })
    }

    async fn auth_succeeded(&mut self, _: &mut Session) -> Result<(), SessionError> {
        self.logged_in.notify_one();
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), SessionError> {
        if self.channels().len() >= MAX_CHANNELS {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        let id = channel.id();
        let (outlet, input) = self.ends(channel, session);
        self.channels()
            .insert(id, Open::Session(SessionChannel::new(outlet, input)));
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _origin: &str,
        _origin_port: u32,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), SessionError> {
        let target = u16::try_from(port).ok().map(|port| Target::Tcp(host.into(), port));
        self.open_forward(channel, target, reply, session).await;
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), SessionError> {
        self.open_forward(channel, Some(Target::Unix(path.into())), reply, session)
            .await;
        Ok(())
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], _: &mut Session) -> Result<(), SessionError> {
        let stalled = self
            .channels()
            .get(&id)
            .is_some_and(|channel| channel.input().push(data));
        if stalled {
            self.budget.pace().await;
        }
        Ok(())
    }

    fn adjust_window(&mut self, _: ChannelId, _: u32) -> u32 {
        self.budget.window()
    }

    async fn channel_eof(&mut self, id: ChannelId, _: &mut Session) -> Result<(), SessionError> {
        if let Some(channel) = self.channels().get(&id) {
            channel.input().end();
        }
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut Session) -> Result<(), SessionError> {
        self.channels().remove(&id);
        Ok(())
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), SessionError> {
        let set = session_of(&mut self.channels(), id).is_some_and(|channel| channel.set_variable(name, value));
        answer(session, id, set)
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), SessionError> {
        let size = Size {
            columns,
            rows,
            width,
            height,
        };
        let login = self
            .login
            .clone()
            .filter(|login| login.options.pty && !term.contains('\0'));
        let mut channels = lock(&self.channels);
        let channel = session_of(&mut channels, id).filter(|channel| channel.is_unstarted() && !channel.has_terminal());
        let (Some(login), Some(channel)) = (login, channel) else {
            return answer(session, id, false);
        };
        let opened = Terminal::open(&login.user, term, size, modes);
        if let Err(error) = &opened {
            console::log(&format!("cannot open a terminal: {error}"));
        }
        let done = opened.map(|terminal| channel.set_terminal(terminal)).is_ok();
        answer(session, id, done)
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        session: &mut Session,
    ) -> Result<(), SessionError> {
        let size = Size {
            columns,
            rows,
            width,
            height,
        };
        let done = session_of(&mut self.channels(), id).is_some_and(|channel| channel.resize(size).is_ok());
        answer(session, id, done)
    }

    async fn signal(&mut self, id: ChannelId, signal: Sig, session: &mut Session) -> Result<(), SessionError> {
        let number = signals::number(&signal);
        let mut channels = lock(&self.channels);
        let done = number
            .zip(session_of(&mut channels, id))
            .is_some_and(|(number, channel)| channel.signal(number).is_ok());
        drop(channels);
        answer(session, id, done)
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut Session) -> Result<(), SessionError> {
        self.start(id, Program::Shell, session)
    }

    async fn exec_request(&mut self, id: ChannelId, command: &[u8], session: &mut Session) -> Result<(), SessionError> {
        self.start(id, Program::Command(command.to_vec()), session)
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), SessionError> {
        match name {
            SFTP => self.start(id, Program::Sftp, session),
            SHUTDOWN => self.end_guest(id, session),
            _ => Ok(session.channel_failure(id)?),
        }
    }

    async fn x11_request(
        &mut self,
        id: ChannelId,
        _single: bool,
        _protocol: &str,
        _cookie: &str,
        _screen: u32,
        session: &mut Session,
    ) -> Result<(), SessionError> {
        Ok(session.channel_failure(id)?)
    }
}
