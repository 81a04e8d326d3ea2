//! The connection to the host on which the agent pushes its notices.

use std::io::{self, Write};
use std::time::Duration;

use msb_protocol::notice::Notice;
use msb_protocol::ports;
use vsock::{VMADDR_CID_HOST, VsockStream};

use super::degraded;

/// How long the host may take for a line before PID 1 gives it up.
const SEND_TIMEOUT: Duration = Duration::from_secs(2);

/// Stays open as long as the agent lives.
pub(super) struct Connection(VsockStream);

impl Connection {
    /// Connects and sends the first notice. A guest whose host does not listen serves all the same.
    pub(super) fn open(first: &Notice) -> Option<Self> {
        match Self::connect(first) {
            Ok(connection) => Some(connection),
            Err(error) => {
                degraded(
                    &format!("cannot tell the host on vsock port {}", ports::NOTICES),
                    &error,
                );
                None
            }
        }
    }

    fn connect(first: &Notice) -> io::Result<Self> {
        let mut stream = VsockStream::connect_with_cid_port(VMADDR_CID_HOST, ports::NOTICES)?;
        stream.set_write_timeout(Some(SEND_TIMEOUT))?;
        stream.write_all(first.to_line().as_bytes())?;
        Ok(Self(stream))
    }

    /// Sends a notice; a host that is gone is no reason to stop.
    pub(super) fn send(&mut self, notice: &Notice) {
        let _ = self.0.write_all(notice.to_line().as_bytes());
    }
}
