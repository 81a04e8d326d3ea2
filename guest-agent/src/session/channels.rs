//! The open channels of a connection, and how many there may be.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use russh::ChannelId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::budget::Budget;
use super::channel::SessionChannel;
use super::forward::Forward;
use super::input::Input;
use crate::net::FdStream;

/// Channels that a client may have open at once.
const MAX_OPENED: usize = 128;

/// Channels that connections to the client's listeners and agent sockets may have open at once. Further connections wait
/// in the backlog of their listener, so that they never take the channels of the client.
const MAX_ACCEPTED: usize = 64;

/// Channels that a connection may have closed before the client did. russh keeps some 3.4 KiB of each until the connection
/// ends.
const MAX_LEFT: usize = 8192;

/// What a channel is for.
#[derive(Debug)]
pub(super) enum Open {
    Session(SessionChannel),
    Forward(Forward),
}

impl Open {
    fn input(&self) -> &Arc<Input> {
        match self {
            Self::Session(channel) => channel.input(),
            Self::Forward(forward) => forward.input(),
        }
    }
}

/// The right to have one more channel open.
#[derive(Debug)]
pub(super) struct Slot(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

/// The channels of one connection, shared with the task of each. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Channels {
    table: Arc<Mutex<Table>>,
    opened: Arc<Semaphore>,
    accepted: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Table {
    open: HashMap<ChannelId, (Open, Slot)>,
    /// Opened from here and confirmed by the client, whose data may come before the task that opened them runs.
    confirmed: HashMap<ChannelId, Confirmed>,
    /// How many are being opened from here.
    expected: usize,
    /// How many were closed from here first.
    left: usize,
}

/// A channel that was opened from here and waits for the task that opened it.
#[derive(Debug)]
pub(super) struct Confirmed {
    /// What the client sent meanwhile.
    pub(super) input: Arc<Input>,
    /// Whether it closed the channel, too.
    pub(super) closed: bool,
}

impl Channels {
    pub(super) fn new() -> Self {
        Self {
            table: Arc::default(),
            opened: Arc::new(Semaphore::new(MAX_OPENED)),
            accepted: Arc::new(Semaphore::new(MAX_ACCEPTED)),
        }
    }

    /// A slot for a channel that the client opens, if there is one left.
    pub(super) fn slot(&self) -> Option<Slot> {
        if self.is_worn_out() {
            return None;
        }
        Arc::clone(&self.opened).try_acquire_owned().ok().map(Slot)
    }

    /// A slot for a connection that was accepted, once there is one; nothing when there will be none.
    pub(super) async fn accepting_slot(&self) -> Option<Slot> {
        let permit = Arc::clone(&self.accepted).acquire_owned().await.ok()?;
        (!self.is_worn_out()).then_some(Slot(permit))
    }

    fn is_worn_out(&self) -> bool {
        self.table().left >= MAX_LEFT
    }

    pub(super) fn insert(&self, id: ChannelId, open: Open, slot: Slot) {
        self.table().open.insert(id, (open, slot));
    }

    /// Removes a channel that was closed from here.
    pub(super) fn finish(&self, id: ChannelId) {
        let mut table = self.table();
        let removed = table.open.remove(&id);
        table.left += usize::from(removed.is_some());
        drop(table);
        drop(removed);
    }

    /// Removes a channel that the client closed, or that never opened.
    pub(super) fn remove(&self, id: ChannelId) {
        let mut table = self.table();
        let removed = table.open.remove(&id);
        if let Some(confirmed) = table.confirmed.get_mut(&id) {
            confirmed.closed = true;
        }
        drop(table);
        drop(removed);
    }

    /// Calls `act` with the session channel `id`, if that is one.
    pub(super) fn with_session<T>(&self, id: ChannelId, act: impl FnOnce(&mut SessionChannel) -> T) -> Option<T> {
        match self.table().open.get_mut(&id) {
            Some((Open::Session(channel), _)) => Some(act(channel)),
            _ => None,
        }
    }

    /// Starts to move data between the forward `id` and `stream`, unless the client closed it.
    pub(super) fn run_forward(
        &self,
        id: ChannelId,
        stream: FdStream,
    ) -> Option<impl Future<Output = ()> + Send + use<>> {
        match self.table().open.get(&id) {
            Some((Open::Forward(forward), _)) => Some(forward.run(stream)),
            _ => None,
        }
    }

    /// Where the data of a channel goes.
    pub(super) fn input(&self, id: ChannelId) -> Option<Arc<Input>> {
        let table = self.table();
        let open = table.open.get(&id).map(|(open, _)| open.input());
        let confirmed = || table.confirmed.get(&id).map(|confirmed| &confirmed.input);
        open.or_else(confirmed).cloned()
    }

    /// Runs `opening`, which opens a channel from here.
    pub(super) async fn expect<T>(&self, opening: impl Future<Output = T>) -> T {
        self.table().expected += 1;
        let opened = opening.await;
        self.table().expected -= 1;
        opened
    }

    /// The client confirmed a channel. One that nobody is opening, or that was confirmed before, is left alone.
    pub(super) fn confirm(&self, id: ChannelId, budget: &Arc<Budget>) {
        let mut table = self.table();
        if !table.open.contains_key(&id) && table.confirmed.len() < table.expected {
            table.confirmed.entry(id).or_insert_with(|| Confirmed {
                input: Arc::new(Input::new(Arc::clone(budget))),
                closed: false,
            });
        }
    }

    /// Takes a confirmed channel.
    pub(super) fn claim(&self, id: ChannelId) -> Option<Confirmed> {
        self.table().confirmed.remove(&id)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
