//! Carries connections that were accepted in the guest to the client, each by a channel that is opened from here.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use russh::server::{Handle, Msg};
use russh::{Channel, Error};
use tokio::net::{TcpListener, UnixListener};

use super::super::budget::Budget;
use super::super::channels::{Channels, Open, Slot};
use super::super::outlet::Outlet;
use super::Forward;
use crate::net::FdStream;

/// How long accepting pauses after it failed, for whatever is short to come back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the client is told of a connection.
#[derive(Clone, Debug)]
pub(super) enum Purpose {
    /// To the listener that the client asked for with this path.
    Unix(String),
    /// To the client's agent.
    Agent,
}

/// What carries connections of one client. Cheap to clone.
#[derive(Clone)]
pub(in super::super) struct Carrier {
    channels: Channels,
    handle: Handle,
    budget: Arc<Budget>,
}

impl Carrier {
    pub(in super::super) fn new(channels: Channels, handle: Handle, budget: Arc<Budget>) -> Self {
        Self {
            channels,
            handle,
            budget,
        }
    }

    /// Carries what connects to `listener`, which the client asked for as `address` and `port`.
    pub(super) async fn accept_tcp(self, listener: TcpListener, address: String, port: u16) {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let _ = stream.set_nodelay(true);
                    if let (Some(slot), Ok(stream)) = (self.channels.accepting_slot().await, stream.into_std()) {
                        let carrier = self.clone();
                        tokio::spawn(carrier.carry_tcp(stream.into(), peer, address.clone(), port, slot));
                    }
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    /// Carries what connects to `listener`.
    pub(super) async fn accept_unix(self, listener: UnixListener, purpose: Purpose) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    if let (Some(slot), Ok(stream)) = (self.channels.accepting_slot().await, stream.into_std()) {
                        tokio::spawn(self.clone().carry_unix(stream.into(), purpose.clone(), slot));
                    }
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    async fn carry_tcp(self, stream: OwnedFd, peer: SocketAddr, address: String, port: u16, slot: Slot) {
        let (host, from) = (peer.ip().to_string(), u32::from(peer.port()));
        let opening = self
            .handle
            .channel_open_forwarded_tcpip(address, u32::from(port), host, from);
        self.carry(stream, opening, slot).await;
    }

    async fn carry_unix(self, stream: OwnedFd, purpose: Purpose, slot: Slot) {
        match purpose {
            Purpose::Unix(path) => {
                let opening = self.handle.channel_open_forwarded_streamlocal(path);
                self.carry(stream, opening, slot).await;
            }
            Purpose::Agent => self.carry(stream, self.handle.channel_open_agent(), slot).await,
        }
    }

    /// Runs a connection from the opening of its channel to its end. The opening is always waited for: a client whose
    /// answer nobody awaits would keep the channel.
    async fn carry(&self, stream: OwnedFd, opening: impl Future<Output = Result<Channel<Msg>, Error>>, slot: Slot) {
        let Ok(channel) = self.channels.expect(opening).await else {
            return;
        };
        let id = channel.id();
        let (_, writer) = channel.split();
        let outlet = Outlet::new(writer, self.handle.clone(), Arc::clone(&self.budget));
        let (Some(confirmed), Ok(stream)) = (self.channels.claim(id), FdStream::new(stream)) else {
            return outlet.close().await;
        };
        let forward = Forward::new(outlet, confirmed.input);
        let running = forward.run(stream);
        if confirmed.closed {
            drop(forward);
        } else {
            self.channels.insert(id, Open::Forward(forward), slot);
        }
        running.await;
        self.channels.finish(id);
    }
}
