//! A vsock port on which the host, and nobody else, is served.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener};

use crate::session::Opening;

/// Waits for connections on one port.
pub(super) struct Listener {
    listener: VsockListener,
    /// What each of them begins with.
    pub(super) opening: Opening,
}

impl Listener {
    /// Listens on `port`.
    ///
    /// # Errors
    /// As for `bind(2)` and `listen(2)`.
    pub(super) fn open(port: u32, opening: Opening) -> io::Result<Self> {
        let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, port)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, opening })
    }

    /// The next connection, without waiting. Nothing when it is not the host's: it is closed.
    ///
    /// # Errors
    /// As for `accept(2)`.
    pub(super) fn accept(&self) -> io::Result<Option<OwnedFd>> {
        let (stream, peer) = self.listener.accept()?;
        Ok(is_host(&peer).then(|| stream.into()))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// Programs in the guest reach its ports where its kernel has a vsock loopback, and guests of the guest do too.
fn is_host(peer: &VsockAddr) -> bool {
    peer.cid() == VMADDR_CID_HOST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_host_is_served() {
        assert!(is_host(&VsockAddr::new(VMADDR_CID_HOST, 1 << 30)));
        for cid in [0, vsock::VMADDR_CID_LOCAL, 3, 1 << 20, VMADDR_CID_ANY] {
            assert!(!is_host(&VsockAddr::new(cid, 22)), "{cid}");
        }
    }
}
