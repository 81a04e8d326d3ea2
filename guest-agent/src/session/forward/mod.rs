//! Connections that are carried by a channel: made through the guest for the client ([`direct`]), accepted in the guest
//! and carried to the client ([`remote`]), or to the client's agent ([`agent`]).

use std::sync::Arc;

use tokio::sync::Notify;

use super::input::Input;
use super::outlet::Outlet;
use crate::net::FdStream;

mod agent;
mod carrier;
mod direct;
mod remote;
mod socket;

pub(super) use agent::AgentSocket;
pub(super) use carrier::Carrier;
pub(super) use direct::Target;
pub(super) use remote::{Place, Remote};

/// One forwarded connection, from the moment it is asked for.
#[derive(Debug)]
pub(super) struct Forward {
    outlet: Arc<Outlet>,
    input: Arc<Input>,
    closed: Arc<Notify>,
}

impl Forward {
    pub(super) fn new(outlet: Outlet, input: Arc<Input>) -> Self {
        Self {
            outlet: Arc::new(outlet),
            input,
            closed: Arc::new(Notify::new()),
        }
    }

    pub(super) fn input(&self) -> &Arc<Input> {
        &self.input
    }

    /// Moves data until both directions have ended, each by itself, or the client closed the channel; what it sent
    /// before is still delivered.
    pub(super) fn run(&self, mut stream: FdStream) -> impl Future<Output = ()> + Send + use<> {
        let (outlet, input, closed) = (
            Arc::clone(&self.outlet),
            Arc::clone(&self.input),
            Arc::clone(&self.closed),
        );
        async move {
            let receive = async {
                outlet.pump_stdout(stream.clone()).await;
                outlet.end().await;
            };
            let mut sink = stream.clone();
            tokio::select! {
                _ = async { tokio::join!(receive, input.feed(&mut sink)) } => outlet.close().await,
                () = closed.notified() => input.feed_rest(&mut stream).await,
            }
        }
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.input.end();
        self.closed.notify_one();
    }
}
