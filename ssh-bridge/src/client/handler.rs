//! What the connection's task does with what the guest sends: sorts it into the inboxes of the sessions.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use russh::client::{ChannelOpenHandle, DisconnectReason, Handler, Msg, Session};
use russh::keys::{PublicKey, PublicKeyOrCertificate};
use russh::{Channel, ChannelId, ChannelOpenFailure, Sig};
use tokio::sync::{mpsc, oneshot};

use super::ExitStatus;
use super::gate::Gate;

/// The extended data code of standard error (RFC 4254, 5.2).
const STDERR: u32 = 1;

/// What one event costs beside its data, in bytes. A guest that sends single bytes must not get memory for free.
const EVENT_COST: usize = 128;

/// What arrived on a channel.
#[derive(Debug)]
pub(super) enum Event {
    Stdout(Bytes),
    Stderr(Bytes),
    Eof,
    Reply(bool),
    Exit(ExitStatus),
    Closed,
}

impl Event {
    /// What it counts against the connection's limit, in bytes.
    pub(super) fn cost(&self) -> usize {
        match self {
            Self::Stdout(data) | Self::Stderr(data) => EVENT_COST + data.len(),
            Self::Eof | Self::Reply(_) | Self::Exit(_) | Self::Closed => EVENT_COST,
        }
    }
}

/// Where a session's events go. Its drop tells the session's writer that the channel is gone.
#[derive(Debug)]
struct Inbox {
    events: mpsc::UnboundedSender<Event>,
    _open: oneshot::Sender<()>,
}

/// What a session gets of its inbox.
#[derive(Debug)]
pub(super) struct Registration {
    pub(super) events: mpsc::UnboundedReceiver<Event>,
    pub(super) closed: oneshot::Receiver<()>,
}

/// What the connection's task and its sessions share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) gate: Arc<Gate>,
    inboxes: Mutex<Inboxes>,
}

#[derive(Debug, Default)]
struct Inboxes {
    open: HashMap<ChannelId, Inbox>,
    ended: bool,
    cause: Option<Arc<russh::Error>>,
}

impl Shared {
    pub(super) fn new(gate: Arc<Gate>) -> Self {
        Self {
            gate,
            inboxes: Mutex::default(),
        }
    }

    /// Opens the inbox of a channel. On a connection that has ended, it is closed at once.
    pub(super) fn register(&self, channel: ChannelId) -> Registration {
        let (events, receiver) = mpsc::unbounded_channel();
        let (open, closed) = oneshot::channel();
        let mut inboxes = self.inboxes();
        if !inboxes.ended {
            inboxes.open.insert(channel, Inbox { events, _open: open });
        }
        Registration {
            events: receiver,
            closed,
        }
    }

    /// Takes no more for a channel.
    pub(super) fn unregister(&self, channel: ChannelId) {
        self.inboxes().open.remove(&channel);
    }

    /// Why the connection ended, where an error did it.
    pub(super) fn cause(&self) -> Option<Arc<russh::Error>> {
        self.inboxes().cause.clone()
    }

    fn push(&self, channel: ChannelId, event: Event) {
        let inboxes = self.inboxes();
        let Some(inbox) = inboxes.open.get(&channel) else {
            return;
        };
        let cost = event.cost();
        self.gate.received(cost);
        if inbox.events.send(event).is_err() {
            self.gate.consumed(cost);
        }
    }

    fn end(&self) {
        let mut inboxes = self.inboxes();
        inboxes.ended = true;
        inboxes.open.clear();
    }

    fn inboxes(&self) -> MutexGuard<'_, Inboxes> {
        // Each change of the map is one operation: it is whole whoever panicked.
        self.inboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why the connection's task ends.
#[derive(Debug)]
pub(super) enum HandlerError {
    Ssh(russh::Error),
    HostKey { presented: Box<PublicKey> },
}

impl From<russh::Error> for HandlerError {
    fn from(error: russh::Error) -> Self {
        Self::Ssh(error)
    }
}

/// The callbacks of the connection's task. None waits, so no session holds up another here.
pub(super) struct ClientHandler {
    host_key: PublicKey,
    shared: Arc<Shared>,
}

impl ClientHandler {
    pub(super) fn new(host_key: PublicKey, shared: Arc<Shared>) -> Self {
        Self { host_key, shared }
    }
}

impl Drop for ClientHandler {
    fn drop(&mut self) {
        self.shared.end();
    }
}

type Result = std::result::Result<(), HandlerError>;

impl Handler for ClientHandler {
    type Error = HandlerError;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> std::result::Result<bool, HandlerError> {
        let presented = key.public_key();
        if key.certificate().is_none() && presented.key_data() == self.host_key.key_data() {
            return Ok(true);
        }
        Err(HandlerError::HostKey {
            presented: Box::new(presented),
        })
    }

    async fn data(&mut self, channel: ChannelId, data: &[u8], _: &mut Session) -> Result {
        self.shared.push(channel, Event::Stdout(Bytes::copy_from_slice(data)));
        Ok(())
    }

    async fn extended_data(&mut self, channel: ChannelId, code: u32, data: &[u8], _: &mut Session) -> Result {
        if code == STDERR {
            self.shared.push(channel, Event::Stderr(Bytes::copy_from_slice(data)));
        }
        Ok(())
    }

    async fn channel_eof(&mut self, channel: ChannelId, _: &mut Session) -> Result {
        self.shared.push(channel, Event::Eof);
        Ok(())
    }

    async fn channel_success(&mut self, channel: ChannelId, _: &mut Session) -> Result {
        self.shared.push(channel, Event::Reply(true));
        Ok(())
    }

    async fn channel_failure(&mut self, channel: ChannelId, _: &mut Session) -> Result {
        self.shared.push(channel, Event::Reply(false));
        Ok(())
    }

    async fn exit_status(&mut self, channel: ChannelId, status: u32, _: &mut Session) -> Result {
        self.shared.push(channel, Event::Exit(ExitStatus::Code(status)));
        Ok(())
    }

    async fn exit_signal(
        &mut self,
        channel: ChannelId,
        signal: Sig,
        core_dumped: bool,
        message: &str,
        _language: &str,
        _: &mut Session,
    ) -> Result {
        let status = ExitStatus::Signal {
            name: signal_name(signal),
            core_dumped,
            message: message.to_owned(),
        };
        self.shared.push(channel, Event::Exit(status));
        Ok(())
    }

    async fn channel_close(&mut self, channel: ChannelId, _: &mut Session) -> Result {
        self.shared.push(channel, Event::Closed);
        self.shared.unregister(channel);
        Ok(())
    }

    async fn disconnected(&mut self, reason: DisconnectReason<HandlerError>) -> Result {
        let DisconnectReason::Error(error) = reason else {
            return Ok(());
        };
        if let HandlerError::Ssh(error) = error {
            self.shared.inboxes().cause = Some(Arc::new(error));
        }
        Ok(())
    }

    // A guest has no business opening channels here, whatever russh would accept by default.

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result {
        refuse(reply).await
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result {
        refuse(reply).await
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result {
        refuse(reply).await
    }

    async fn server_channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result {
        refuse(reply).await
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result {
        refuse(reply).await
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result {
        refuse(reply).await
    }

    async fn server_channel_open_x11(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result {
        refuse(reply).await
    }
}

async fn refuse(reply: ChannelOpenHandle) -> Result {
    reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
    Ok(())
}

fn signal_name(signal: Sig) -> String {
    match signal {
        Sig::Custom(name) => name,
        named => format!("{named:?}"),
    }
}
