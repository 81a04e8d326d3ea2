//! Requests and their replies over one session, any number at a time.
//!
//! One task writes requests in the order they come, another sorts replies to whoever waits. Neither waits for the other
//! nor for a caller, so a server that answers slowly or out of order holds up nobody else. What is queued is bounded by
//! what each caller keeps in flight.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use msb_protocol::sftp::VERSION;
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, oneshot, watch};

use super::codec::{Greeting, Malformed, Packets, Reply, Request, init};
use super::error::EndCause;
use crate::client::{ClientError, Session, SessionControl, SessionEvent, SessionEvents, SessionStdin};

/// What the writing task is told.
#[derive(Debug)]
enum Outgoing {
    Packet(Bytes, Bytes),
    /// Ends the input of the server, which then answers what it has and ends.
    End,
}

/// One SFTP session. Dropped, it ends once all that was asked is answered.
#[derive(Debug)]
pub(super) struct Connection {
    outgoing: mpsc::UnboundedSender<Outgoing>,
    shared: Arc<Shared>,
    ended: watch::Receiver<bool>,
    control: SessionControl,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    outgoing: mpsc::WeakUnboundedSender<Outgoing>,
}

#[derive(Debug, Default)]
struct State {
    waiting: HashMap<u32, oneshot::Sender<Reply>>,
    next_id: u32,
    end: Option<Arc<EndCause>>,
}

impl Connection {
    /// Greets the server, and starts the tasks.
    pub(super) async fn start(session: Session) -> Result<(Self, Greeting), EndCause> {
        let Session {
            mut stdin,
            mut events,
            control,
        } = session;
        // That the session takes no input is told by its events, with the reason.
        let _ = stdin.write_all(&init()).await;
        let mut packets = Packets::default();
        let greeting = next_packet(&mut events, &mut packets).await?;
        let greeting = Greeting::parse(greeting).map_err(EndCause::Protocol)?;
        if greeting.version < VERSION {
            return Err(EndCause::Protocol("it speaks a version older than 3"));
        }
        let (outgoing, requests) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            outgoing: outgoing.downgrade(),
        });
        let (end, ended) = watch::channel(false);
        tokio::spawn(write_requests(requests, stdin));
        let reader = Reader {
            shared: Arc::clone(&shared),
            _end: end,
        };
        tokio::spawn(reader.run(events, packets));
        let connection = Self {
            outgoing,
            shared,
            ended,
            control,
        };
        Ok((connection, greeting))
    }

    /// Sends a request. Its reply need not be waited for.
    pub(super) fn send(&self, request: Request) -> PendingReply {
        let (sender, receiver) = oneshot::channel();
        if let Some(id) = self.shared.expect(sender) {
            let (head, data) = request.numbered(id);
            // A writer that is gone leaves the reply to the reader, which knows why.
            let _ = self.outgoing.send(Outgoing::Packet(head, data));
        }
        PendingReply {
            receiver,
            shared: Arc::clone(&self.shared),
        }
    }

    /// Ends the session in order, and waits for that.
    pub(super) async fn close(&self) {
        self.shared.end(EndCause::Closed);
        let _ = self.outgoing.send(Outgoing::End);
        // The sender goes with the task that reads; nothing is ever sent.
        let _ = self.ended.clone().changed().await;
    }

    /// Hangs up on the server.
    pub(super) async fn abort(&self) {
        self.control.close().await;
    }
}

impl Shared {
    /// Registers who waits for a reply. None when there will be none.
    fn expect(&self, sender: oneshot::Sender<Reply>) -> Option<u32> {
        let mut state = self.state();
        if state.end.is_some() {
            return None;
        }
        while state.waiting.contains_key(&state.next_id) {
            state.next_id = state.next_id.wrapping_add(1);
        }
        let id = state.next_id;
        state.next_id = id.wrapping_add(1);
        state.waiting.insert(id, sender);
        Some(id)
    }

    fn answer(&self, id: u32, reply: Reply) -> Result<(), Malformed> {
        let waiting = self.state().waiting.remove(&id);
        let waiting = waiting.ok_or("a reply to no request")?;
        if let Err(unwanted) = waiting.send(reply) {
            self.discard(&unwanted);
        }
        Ok(())
    }

    /// Whoever wanted a handle and gave up meanwhile cannot close it.
    fn discard(&self, unwanted: &Reply) {
        let Reply::Handle(handle) = unwanted else { return };
        let (sender, _) = oneshot::channel();
        if let (Some(outgoing), Some(id)) = (self.outgoing.upgrade(), self.expect(sender)) {
            let (head, data) = Request::close(handle).numbered(id);
            let _ = outgoing.send(Outgoing::Packet(head, data));
        }
    }

    /// The first cause stays.
    fn end(&self, cause: EndCause) {
        self.state().end.get_or_insert_with(|| Arc::new(cause));
    }

    fn cause(&self) -> Arc<EndCause> {
        let end = self.state().end.clone();
        end.unwrap_or_else(|| Arc::new(EndCause::Closed))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change of it is whole, whoever panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reply that is on its way.
#[derive(Debug)]
pub(super) struct PendingReply {
    receiver: oneshot::Receiver<Reply>,
    shared: Arc<Shared>,
}

impl Future for PendingReply {
    type Output = Result<Reply, Arc<EndCause>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let received = Pin::new(&mut self.receiver).poll(context);
        received.map(|reply| reply.map_err(|_| self.shared.cause()))
    }
}

impl Drop for PendingReply {
    fn drop(&mut self) {
        self.receiver.close();
        if let Ok(unwanted) = self.receiver.try_recv() {
            self.shared.discard(&unwanted);
        }
    }
}

async fn write_requests(mut requests: mpsc::UnboundedReceiver<Outgoing>, mut stdin: SessionStdin) {
    while let Some(Outgoing::Packet(head, data)) = requests.recv().await {
        // Why a session takes no more is told by its events.
        if stdin.write_all(&head).await.is_err() || stdin.write_all(&data).await.is_err() {
            return;
        }
    }
    let _ = stdin.shutdown().await;
}

/// The task that reads.
struct Reader {
    shared: Arc<Shared>,
    _end: watch::Sender<bool>,
}

impl Reader {
    async fn run(self, mut events: SessionEvents, mut packets: Packets) {
        let cause = loop {
            let packet = match next_packet(&mut events, &mut packets).await {
                Ok(packet) => packet,
                Err(cause) => break cause,
            };
            if let Err(malformed) = self.dispatch(packet) {
                break EndCause::Protocol(malformed);
            }
        };
        self.shared.end(cause);
    }

    fn dispatch(&self, packet: Bytes) -> Result<(), Malformed> {
        let (id, reply) = Reply::parse(packet)?;
        self.shared.answer(id, reply)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Those who wait learn the cause when their senders go.
        self.shared.end(EndCause::Closed);
        self.shared.state().waiting.clear();
    }
}

async fn next_packet(events: &mut SessionEvents, packets: &mut Packets) -> Result<Bytes, EndCause> {
    loop {
        if let Some(packet) = packets.next().map_err(EndCause::Protocol)? {
            return Ok(packet);
        }
        match events.next().await.map_err(EndCause::Connection)? {
            Some(SessionEvent::Stdout(data)) => packets.push(&data),
            Some(SessionEvent::Stderr(_) | SessionEvent::Eof) => {}
            Some(SessionEvent::Exit(status)) => return Err(EndCause::Exited(status)),
            None => return Err(EndCause::Connection(ClientError::ConnectionLost { source: None })),
        }
    }
}
