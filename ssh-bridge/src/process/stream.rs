//! The channel of a process: two tasks that move messages, and what they share with those that use the process.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use msb_protocol::frame::Frames;
use msb_protocol::process::{INPUT_WINDOW, Reply, Request};
use tokio::io::AsyncWriteExt;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::events::ProcessEvent;
use super::{ProcessEnd, ProcessError};
use crate::client::{ExitStatus, Session, SessionEvent, SessionEvents, SessionStdin};

/// The largest piece of output, in bytes, into which smaller ones are gathered.
const PIECE: usize = 32 << 10;

/// How long the guest may take to close a channel of which nothing more is to come.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(1);

/// A channel whose replies are taken one by one.
pub(super) struct Incoming {
    stdin: SessionStdin,
    events: SessionEvents,
    frames: Frames,
}

impl Incoming {
    pub(super) fn new(session: Session) -> Self {
        Self {
            stdin: session.stdin,
            events: session.events,
            frames: Frames::default(),
        }
    }

    /// Sends requests. That a channel takes no more is told by its replies.
    pub(super) async fn send(&mut self, bytes: &[u8]) {
        let _ = self.stdin.write_all(bytes).await;
    }

    /// The next reply.
    pub(super) async fn reply(&mut self) -> Result<Reply, ProcessError> {
        next_reply(&mut self.events, &mut self.frames)
            .await?
            .ok_or(ProcessError::NoAnswer)
    }
}

/// The next reply; none at the end of the channel.
async fn next_reply(events: &mut SessionEvents, frames: &mut Frames) -> Result<Option<Reply>, ProcessError> {
    loop {
        if let Some(frame) = frames.next_frame()? {
            return Ok(Some(Reply::decode(frame)?));
        }
        match events.next().await? {
            Some(SessionEvent::Stdout(bytes)) => frames.push(&bytes),
            Some(SessionEvent::Stderr(_) | SessionEvent::Eof) => {}
            Some(SessionEvent::Exit(_)) | None => return Ok(None),
        }
    }
}

/// An attached channel. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    shared: Arc<Shared>,
    requests: mpsc::UnboundedSender<Vec<u8>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Output, an end, or an answer came.
    arrived: Notify,
    /// Input was granted.
    granted: Notify,
}

#[derive(Debug)]
struct State {
    events: VecDeque<ProcessEvent>,
    /// Bytes of output that the guest may still send.
    credit: u64,
    /// Bytes of output that were taken and not granted again.
    taken: u32,
    /// Bytes of input that may be sent.
    window: u32,
    answers: VecDeque<oneshot::Sender<Result<(), ProcessError>>>,
    is_over: bool,
    /// No more messages come.
    is_closed: bool,
    /// Why it is over, if not because the process ended.
    failed: Option<ProcessError>,
}

impl Connection {
    /// Starts to move messages, with so many bytes of output granted already. The end of the task closes the channel.
    pub(super) fn run(incoming: Incoming, credit: u32) -> (Self, JoinHandle<()>) {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new(credit)),
            arrived: Notify::new(),
            granted: Notify::new(),
        });
        let Incoming { stdin, events, frames } = incoming;
        let (requests, queue) = mpsc::unbounded_channel();
        tokio::spawn(write_requests(stdin, queue));
        let reader = tokio::spawn(read_replies(events, frames, Arc::clone(&shared)));
        (Self { shared, requests }, reader)
    }

    /// Ends whatever waits for the process: nobody reads its messages any more.
    pub(super) fn abandon(&self) {
        self.shared.end(Some(ProcessError::Ended));
    }

    fn send(&self, request: &Request) {
        let mut bytes = Vec::new();
        request.encode(&mut bytes);
        // A channel that takes no more says so by its end.
        let _ = self.requests.send(bytes);
    }

    /// Makes a request and waits for its answer.
    pub(super) async fn ask(&self, request: &Request) -> Result<(), ProcessError> {
        let answer = {
            let mut state = self.shared.state();
            if state.is_over {
                return Err(ProcessError::Ended);
            }
            let (sender, answer) = oneshot::channel();
            state.answers.push_back(sender);
            // While nobody else can: answers come in the order of the requests.
            self.send(request);
            answer
        };
        answer.await.unwrap_or(Err(ProcessError::Ended))
    }

    /// Sends as much of `data` as is granted, at least one byte, once that is possible. Returns how much.
    pub(super) async fn send_input(&self, data: &[u8]) -> Result<usize, ProcessError> {
        loop {
            let granted = self.shared.granted.notified();
            {
                let mut state = self.shared.state();
                if state.is_over {
                    return Err(ProcessError::Ended);
                }
                let length = data.len().min(usize::try_from(state.window).unwrap_or(usize::MAX));
                if length > 0 {
                    state.window -= u32::try_from(length).unwrap_or(state.window);
                    self.send(&Request::Input(data[..length].to_vec()));
                    return Ok(length);
                }
            }
            granted.await;
        }
    }

    /// Waits until the process has taken all input.
    pub(super) async fn input_taken(&self) -> Result<(), ProcessError> {
        loop {
            let granted = self.shared.granted.notified();
            {
                let state = self.shared.state();
                if state.window == INPUT_WINDOW {
                    return Ok(());
                }
                if state.is_over {
                    return Err(ProcessError::Ended);
                }
            }
            granted.await;
        }
    }

    /// Waits until there is an event or an end.
    pub(super) async fn ready(&self) {
        loop {
            let arrived = self.shared.arrived.notified();
            {
                let state = self.shared.state();
                if state.is_over || !state.events.is_empty() {
                    return;
                }
            }
            arrived.await;
        }
    }

    /// Says that the end of the process is known here, and waits until that is known there.
    pub(super) async fn acknowledge(&self) {
        self.send(&Request::Seen);
        let closed = async {
            loop {
                let arrived = self.shared.arrived.notified();
                if self.shared.state().is_closed {
                    return;
                }
                arrived.await;
            }
        };
        // If not, it is remembered there for a while, which harms nobody.
        let _ = tokio::time::timeout(ACKNOWLEDGE_TIMEOUT, closed).await;
    }

    /// Whether the end of the process is the next event, and was not made up here.
    pub(super) fn has_news_of_end(&self) -> bool {
        let state = self.shared.state();
        matches!(state.events.front(), Some(ProcessEvent::Exit(end)) if end.status != ExitStatus::Unknown)
    }

    /// The next event that is there; none at the end.
    pub(super) fn take(&self, window: u32) -> Result<Option<ProcessEvent>, ProcessError> {
        let mut state = self.shared.state();
        if let Some(event) = state.events.pop_front() {
            self.grant(&mut state, &event, window);
            return Ok(Some(event));
        }
        state.failed.take().map_or(Ok(None), Err)
    }

    /// Grants again what was taken, in large steps.
    fn grant(&self, state: &mut State, event: &ProcessEvent, window: u32) {
        state.taken += u32::try_from(event.length()).unwrap_or(u32::MAX);
        if state.taken >= window / 2 && state.taken > 0 && !state.is_over {
            let taken = std::mem::take(&mut state.taken);
            state.credit += u64::from(taken);
            self.send(&Request::Credit(taken));
        }
    }
}

async fn write_requests(mut stdin: SessionStdin, mut queue: mpsc::UnboundedReceiver<Vec<u8>>) {
    while let Some(bytes) = queue.recv().await {
        if stdin.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

async fn read_replies(mut events: SessionEvents, mut frames: Frames, shared: Arc<Shared>) {
    loop {
        let ended = match next_reply(&mut events, &mut frames).await {
            Ok(Some(reply)) => match shared.take(reply) {
                Ok(()) => continue,
                Err(error) => Some(error),
            },
            // The keeper is gone, and did not say more.
            Ok(None) => None,
            Err(error) => Some(error),
        };
        return shared.close(ended);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is whole whoever panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, reply: Reply) -> Result<(), ProcessError> {
        let mut state = self.state();
        match reply {
            Reply::Stdout(data) => state.take_output(false, data)?,
            Reply::Stderr(data) => state.take_output(true, data)?,
            Reply::Lost(bytes) => match state.events.back_mut() {
                Some(ProcessEvent::Lost(lost)) => *lost = lost.saturating_add(bytes),
                _ => state.events.push_back(ProcessEvent::Lost(bytes)),
            },
            Reply::Exited(end) if !state.is_over => {
                state.events.push_back(ProcessEvent::Exit(ProcessEnd::from(&end)));
                state.finish(None);
            }
            Reply::Done => {
                let answer = state.answers.pop_front();
                let answer = answer.ok_or_else(|| ProcessError::unexpected(&Reply::Done))?;
                let _ = answer.send(Ok(()));
            }
            Reply::Failed { failure, message } => {
                let error = ProcessError::Refused { failure, message };
                match state.answers.pop_front() {
                    Some(answer) => drop(answer.send(Err(error))),
                    None => return Err(error),
                }
            }
            Reply::Credit(bytes) => {
                let window = state.window.checked_add(bytes).filter(|&sum| sum <= INPUT_WINDOW);
                state.window = window.ok_or_else(|| ProcessError::unexpected(&Reply::Credit(bytes)))?;
            }
            other => return Err(ProcessError::unexpected(&other)),
        }
        drop(state);
        self.arrived.notify_waiters();
        self.granted.notify_waiters();
        Ok(())
    }

    fn end(&self, error: Option<ProcessError>) {
        self.state().finish(error);
        self.arrived.notify_waiters();
        self.granted.notify_waiters();
    }

    /// No more messages come. Without an error or the news of an end, it is not known how the process ended.
    fn close(&self, error: Option<ProcessError>) {
        let mut state = self.state();
        state.is_closed = true;
        if !state.is_over && error.is_none() {
            state.events.push_back(ProcessEvent::Exit(ProcessEnd {
                status: ExitStatus::Unknown,
                timed_out: false,
            }));
        }
        drop(state);
        self.end(error);
    }
}

impl State {
    fn new(credit: u32) -> Self {
        Self {
            events: VecDeque::new(),
            credit: credit.into(),
            taken: 0,
            window: INPUT_WINDOW,
            answers: VecDeque::new(),
            is_over: false,
            is_closed: false,
            failed: None,
        }
    }

    fn take_output(&mut self, is_error: bool, data: Vec<u8>) -> Result<(), ProcessError> {
        // Nothing takes no credit, so nobody could be held to any number of it.
        if data.is_empty() {
            return Ok(());
        }
        let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
        self.credit = self.credit.checked_sub(length).ok_or(ProcessError::Protocol {
            what: "more output came than was granted",
        })?;
        // Single bytes must not take the memory of many.
        if let Some(last) = self.events.back_mut()
            && last.gather(is_error, &data, PIECE)
        {
            return Ok(());
        }
        let data = Bytes::from(data);
        self.events.push_back(if is_error {
            ProcessEvent::Stderr(data)
        } else {
            ProcessEvent::Stdout(data)
        });
        Ok(())
    }

    fn finish(&mut self, error: Option<ProcessError>) {
        if !self.is_over {
            self.is_over = true;
            self.failed = error;
        }
        self.answers.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_sends_nothing_without_end_takes_no_memory() {
        let mut state = State::new(1);
        for _ in 0..10 {
            state.take_output(false, Vec::new()).unwrap();
            state.take_output(true, Vec::new()).unwrap();
        }
        assert!(state.events.is_empty());
        state.take_output(true, b"x".to_vec()).unwrap();
        assert_eq!(state.events, [ProcessEvent::Stderr("x".into())]);
        state.take_output(true, b"y".to_vec()).unwrap_err();
    }
}
