//! What the client asks, answered inside each callback: russh keeps one pending reply per channel.

use std::sync::Arc;
use std::time::Duration;

use russh::keys::Certificate;
use russh::server::{Auth, ChannelOpenHandle, Msg, PublicKeyOffer, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelOpenFailure, Pty, Sig};
use tokio::sync::Notify;

use super::auth::{self, Candidate};
use super::budget::Budget;
use super::channel::{Login, SessionChannel};
use super::channels::{Channels, Open};
use super::forward::{AgentSocket, Carrier, Forward, Place, Remote, Target};
use super::input::Input;
use super::outlet::Outlet;
use super::process::Program;
use super::terminal::Terminal;
use super::transport::Outbound;
use super::{SessionError, Settings, signals};
use crate::console;
use crate::net::Liveness;
use crate::processes;
use crate::pty::Size;

/// The subsystem that transfers files.
const SFTP: &str = "sftp";

/// The subsystem with which root ends the guest.
const SHUTDOWN: &str = "shutdown@msb";

/// Serves one connection.
pub(super) struct Handler {
    settings: Settings,
    budget: Arc<Budget>,
    login: Option<Arc<Login>>,
    logged_in: Arc<Notify>,
    channels: Channels,
    remote: Remote,
    agent: Option<AgentSocket>,
}

impl Handler {
    pub(super) fn new(settings: Settings, liveness: Liveness, outbound: Arc<Outbound>, logged_in: Arc<Notify>) -> Self {
        Self {
            settings,
            budget: Arc::new(Budget::new(liveness, outbound)),
            login: None,
            logged_in,
            channels: Channels::new(),
            remote: Remote::default(),
            agent: None,
        }
    }

    /// The two ends of a channel that is opened.
    fn ends(&self, channel: Channel<Msg>, session: &Session) -> (Outlet, Arc<Input>) {
        // Input is taken in data(), where it never blocks; what nobody reads must not fill the other half.
        let (_, writer) = channel.split();
        let outlet = Outlet::new(writer, session.handle(), Arc::clone(&self.budget));
        (outlet, Arc::new(Input::new(Arc::clone(&self.budget))))
    }

    fn start(&self, id: ChannelId, program: Program, session: &mut Session) -> Result<(), SessionError> {
        let Some(login) = self.login.clone() else {
            return Ok(session.channel_failure(id)?);
        };
        let agent = self.agent.as_ref().map(AgentSocket::path);
        let started = self.channels.with_session(id, |channel| {
            let startable = channel.is_unstarted();
            startable.then(|| channel.start(program, &login, &self.settings, agent))
        });
        match started.flatten() {
            Some(Ok(conversation)) => {
                session.channel_success(id)?;
                let channels = self.channels.clone();
                tokio::spawn(async move {
                    conversation.await;
                    channels.finish(id);
                });
                Ok(())
            }
            Some(Err(error)) => {
                let (name, shell) = (&login.user.name, login.user.shell.display());
                console::log(&format!("cannot start a session for {name} with {shell}: {error}"));
                Ok(session.channel_failure(id)?)
            }
            None => Ok(session.channel_failure(id)?),
        }
    }

    fn start_process_server(&self, id: ChannelId, session: &mut Session) -> Result<(), SessionError> {
        let Some(login) = &self.login else {
            return Ok(session.channel_failure(id)?);
        };
        let directory = &self.settings.processes;
        if let Err(error) = processes::prepare(directory, login.user.uid, login.user.gid) {
            console::log(&format!("cannot make {}: {error}", directory.display()));
            return Ok(session.channel_failure(id)?);
        }
        let arguments = processes::server_arguments(directory, login.options.pty);
        self.start(id, Program::Processes(arguments), session)
    }

    /// The login, if it may have this forwarded.
    fn forwarding(&self, permitted: impl FnOnce(&Login) -> bool) -> Option<Arc<Login>> {
        let login = self.login.clone().filter(|login| permitted(login))?;
        self.settings.features.port_forwarding.then_some(login)
    }

    async fn open_forward(
        &self,
        channel: Channel<Msg>,
        target: Option<Target>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) {
        let permitted = target.and_then(|target| {
            let login = self.forwarding(|login| target.is_permitted(&login.options))?;
            Some((target, login))
        });
        let Some((target, login)) = permitted else {
            return reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
        };
        let Some(slot) = self.channels.slot() else {
            return reply.reject(ChannelOpenFailure::ResourceShortage).await;
        };
        let id = channel.id();
        let (outlet, input) = self.ends(channel, session);
        let forward = Open::Forward(Forward::new(outlet, input));
        self.channels.insert(id, forward, slot);
        // Connecting takes as long as it takes, and no other channel waits for it.
        tokio::spawn(run_forward(self.channels.clone(), id, target, login, reply));
    }

    fn carrier(&self, session: &Session) -> Carrier {
        Carrier::new(self.channels.clone(), session.handle(), Arc::clone(&self.budget))
    }

    /// Starts to listen for the client. Returns the port, or nothing when that is not allowed or fails.
    async fn listen(&mut self, place: Place, carrier: Carrier) -> Option<u16> {
        let login = self.forwarding(|login| place.is_permitted(&login.options))?;
        match self.remote.listen(place.clone(), &login, carrier).await {
            Ok(port) => Some(port),
            Err(error) => {
                console::log(&format!("cannot listen on {place} for {}: {error}", login.user.name));
                None
            }
        }
    }

    /// Gives the connection's sessions a socket of the client's agent. Returns whether there is one.
    async fn open_agent(&mut self, carrier: Carrier) -> bool {
        let Some(login) = self.login.clone().filter(|login| login.options.agent_forwarding) else {
            return false;
        };
        if self.agent.is_none() && self.settings.features.agent_forwarding {
            match AgentSocket::open(&login, carrier).await {
                Ok(socket) => self.agent = Some(socket),
                Err(error) => console::log(&format!("cannot forward the agent to {}: {error}", login.user.name)),
            }
        }
        self.agent.is_some()
    }

    /// Whether this is root, by a key that may do more than one command.
    fn is_plain_root(&self) -> bool {
        let login = self.login.as_ref();
        login.is_some_and(|login| login.user.is_root() && login.options.command.is_none())
    }

    fn end_guest(&self, id: ChannelId, session: &mut Session) -> Result<(), SessionError> {
        let is_root = self.is_plain_root();
        let outlet = self.channels.with_session(id, |channel| channel.outlet());
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
async fn run_forward(channels: Channels, id: ChannelId, target: Target, login: Arc<Login>, reply: ChannelOpenHandle) {
    match target.connect(&login).await {
        Ok(stream) => {
            if let Some(running) = channels.run_forward(id, stream) {
                reply.accept().await;
                running.await;
            }
            channels.finish(id);
        }
        Err(_) => {
            channels.remove(id);
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
        }
    }
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
        let may_prove = match Candidate::find(user, &self.settings) {
            Some(candidate) => candidate.may_prove(offer.public_key, offer.algorithm).await,
            None => false,
        };
        Ok(auth::answer(may_prove))
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, SessionError> {
        let login = match Candidate::find(user, &self.settings) {
            Some(candidate) => candidate.by_key(key.public_key, key.algorithm).await,
            None => None,
        };
        self.login = login.map(Arc::new);
        Ok(auth::answer(self.login.is_some()))
    }

    async fn auth_openssh_certificate(&mut self, user: &str, certificate: &Certificate) -> Result<Auth, SessionError> {
        let login = match Candidate::find(user, &self.settings) {
            Some(candidate) => candidate.by_certificate(certificate).await,
            None => None,
        };
        self.login = login.map(Arc::new);
        Ok(auth::answer(self.login.is_some()))
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
        let Some(slot) = self.channels.slot() else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        let id = channel.id();
        let (outlet, input) = self.ends(channel, session);
        let opened = Open::Session(SessionChannel::new(outlet, input));
        self.channels.insert(id, opened, slot);
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

    async fn channel_open_confirmation(
        &mut self,
        id: ChannelId,
        _max_packet_size: u32,
        _window: u32,
        _: &mut Session,
    ) -> Result<(), SessionError> {
        self.channels.confirm(id, &self.budget);
        Ok(())
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        session: &mut Session,
    ) -> Result<bool, SessionError> {
        let Ok(wanted) = u16::try_from(*port) else {
            return Ok(false);
        };
        let carrier = self.carrier(session);
        let listening = self.listen(Place::Tcp(address.into(), wanted), carrier).await;
        *port = u32::from(listening.unwrap_or(wanted));
        Ok(listening.is_some())
    }

    async fn cancel_tcpip_forward(&mut self, address: &str, port: u32, _: &mut Session) -> Result<bool, SessionError> {
        let place = u16::try_from(port).map(|port| Place::Tcp(address.into(), port));
        Ok(place.is_ok_and(|place| self.remote.cancel(&place)))
    }

    async fn streamlocal_forward(&mut self, path: &str, session: &mut Session) -> Result<bool, SessionError> {
        let carrier = self.carrier(session);
        Ok(self.listen(Place::Unix(path.into()), carrier).await.is_some())
    }

    async fn cancel_streamlocal_forward(&mut self, path: &str, _: &mut Session) -> Result<bool, SessionError> {
        Ok(self.remote.cancel(&Place::Unix(path.into())))
    }

    async fn agent_request(&mut self, id: ChannelId, session: &mut Session) -> Result<bool, SessionError> {
        let is_session = self.channels.with_session(id, |_| ()).is_some();
        let carrier = self.carrier(session);
        Ok(is_session && self.open_agent(carrier).await)
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], _: &mut Session) -> Result<(), SessionError> {
        if self.channels.input(id).is_some_and(|input| input.push(data)) {
            self.budget.pace().await;
        }
        Ok(())
    }

    fn adjust_window(&mut self, _: ChannelId, _: u32) -> u32 {
        self.budget.window()
    }

    async fn channel_eof(&mut self, id: ChannelId, _: &mut Session) -> Result<(), SessionError> {
        if let Some(input) = self.channels.input(id) {
            input.end();
        }
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut Session) -> Result<(), SessionError> {
        self.channels.remove(id);
        Ok(())
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), SessionError> {
        let set = self
            .channels
            .with_session(id, |channel| channel.set_variable(name, value));
        answer(session, id, set == Some(true))
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
        let done = self.channels.with_session(id, |channel| {
            let login = login.filter(|_| channel.is_unstarted() && !channel.has_terminal())?;
            let opened = Terminal::open(&login.user, term, size, modes);
            if let Err(error) = &opened {
                console::log(&format!("cannot open a terminal: {error}"));
            }
            opened.ok().map(|terminal| channel.set_terminal(terminal))
        });
        let done = done.flatten().is_some();
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
        let done = self.channels.with_session(id, |channel| channel.resize(size).is_ok());
        answer(session, id, done == Some(true))
    }

    async fn signal(&mut self, id: ChannelId, signal: Sig, session: &mut Session) -> Result<(), SessionError> {
        let number = signals::number(&signal);
        let done = self.channels.with_session(id, |channel| {
            number.is_some_and(|number| channel.signal(number).is_ok())
        });
        answer(session, id, done == Some(true))
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
            SFTP if self.settings.features.sftp => self.start(id, Program::Sftp, session),
            msb_protocol::process::SUBSYSTEM => self.start_process_server(id, session),
            msb_protocol::watch::SUBSYSTEM if self.settings.features.sftp => self.start(id, Program::Watch, session),
            msb_protocol::layer::SUBSYSTEM if self.is_plain_root() => self.start(id, Program::Layer, session),
            msb_protocol::ready::SUBSYSTEM => self.start(id, Program::Ready, session),
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
