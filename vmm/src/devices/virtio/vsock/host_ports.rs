//! The host's ports for connections into the guest.

/// The first port: Firecracker's range, so that logs of both look alike.
const FIRST: u32 = 1 << 30;

/// One past the last port.
const END: u32 = 1 << 31;

/// Ports in turn, so that a port is not used again soon after its connection ended.
#[derive(Debug)]
pub(super) struct HostPorts {
    next: u32,
}

impl HostPorts {
    /// Starts at the first port.
    pub(super) fn new() -> Self {
        Self { next: FIRST }
    }

    /// The next port that is free. The caller bounds how many are taken far below the size of the range.
    pub(super) fn allocate(&mut self, is_taken: impl Fn(u32) -> bool) -> u32 {
        loop {
            let port = self.next;
            self.next = if port + 1 == END { FIRST } else { port + 1 };
            if !is_taken(port) {
                return port;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_go_round_and_pass_over_those_in_use() {
        let mut ports = HostPorts { next: END - 2 };
        assert_eq!(ports.allocate(|_| false), END - 2);
        assert_eq!(ports.allocate(|port| port == END - 1), FIRST);
        assert_eq!(ports.allocate(|_| false), FIRST + 1);
    }
}
