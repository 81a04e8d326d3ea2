//! Credit: nobody sends more than the other side has room for (virtio 1.2, section 5.10.6.3).
//!
//! Each side tells the size of its receive buffer (`buf_alloc`) and how much it has taken out of it so far (`fwd_cnt`)
//! in every packet. What the other side may send is `buf_alloc - (sent - fwd_cnt)`. All counters are modulo 2^32.

use std::num::Wrapping;

/// The credit of one connection in both directions.
#[derive(Debug)]
pub(super) struct Credit {
    /// The room that we grant the guest.
    buf_alloc: u32,
    /// Bytes that came from the guest.
    received: Wrapping<u32>,
    /// Of those, bytes that the host end has taken.
    forwarded: Wrapping<u32>,
    /// What `forwarded` was in the latest packet to the guest.
    told: Wrapping<u32>,
    /// The room that the guest grants us.
    peer_buf_alloc: u32,
    /// Bytes that went to the guest.
    sent: Wrapping<u32>,
    /// Of those, bytes that the guest says its program has taken.
    peer_forwarded: Wrapping<u32>,
}

/// The guest sent more than it had credit for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overrun;

impl Credit {
    /// Nothing sent or received, `buf_alloc` bytes of room for the guest's data, and none granted to us yet.
    pub(super) fn new(buf_alloc: u32) -> Self {
        Self {
            buf_alloc,
            received: Wrapping(0),
            forwarded: Wrapping(0),
            told: Wrapping(0),
            peer_buf_alloc: 0,
            sent: Wrapping(0),
            peer_forwarded: Wrapping(0),
        }
    }

    /// Takes the credit fields of a packet from the guest.
    pub(super) fn update_peer(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.peer_buf_alloc = buf_alloc;
        self.peer_forwarded = Wrapping(fwd_cnt);
    }

    /// How many bytes may go to the guest now. A guest that claims to have taken more than was sent gets none.
    pub(super) fn available(&self) -> u32 {
        self.peer_buf_alloc.saturating_sub((self.sent - self.peer_forwarded).0)
    }

    /// `len` bytes, at most [`Self::available`], go to the guest.
    pub(super) fn send(&mut self, len: u32) {
        self.sent += len;
    }

    /// `len` bytes came from the guest.
    ///
    /// # Errors
    /// When it was not told of room for them; nothing is counted then.
    pub(super) fn receive(&mut self, len: u32) -> Result<(), Overrun> {
        let used = (self.received - self.told).0;
        if len > self.buf_alloc - used {
            return Err(Overrun);
        }
        self.received += len;
        Ok(())
    }

    /// The host end has taken (or will never take) `len` bytes of those received.
    pub(super) fn forward(&mut self, len: u32) {
        self.forwarded += len;
    }

    /// Whether the guest should hear of its room: half of it is gone as far as the guest knows, and there is news.
    ///
    /// Half, because a guest that waits for the last bytes of its credit would stop at every round trip.
    pub(super) fn is_update_due(&self) -> bool {
        self.told != self.forwarded && (self.received - self.told).0 > self.buf_alloc / 2
    }

    /// The `buf_alloc` and `fwd_cnt` fields of a packet that goes to the guest now.
    pub(super) fn tell(&mut self) -> (u32, u32) {
        self.told = self.forwarded;
        (self.buf_alloc, self.forwarded.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_guest_gets_no_more_than_it_was_told_of() {
        let mut credit = Credit::new(100);
        assert_eq!(credit.receive(101), Err(Overrun));
        assert_eq!(credit.receive(100), Ok(()));
        credit.forward(60);
        assert_eq!(credit.receive(1), Err(Overrun));
        assert!(credit.is_update_due());
        assert_eq!(credit.tell(), (100, 60));
        assert!(!credit.is_update_due());
        assert_eq!(credit.receive(61), Err(Overrun));
        assert_eq!(credit.receive(60), Ok(()));
    }

    #[test]
    fn no_update_without_news_or_need() {
        let mut credit = Credit::new(100);
        credit.receive(80).unwrap();
        assert!(!credit.is_update_due());
        credit.forward(1);
        assert!(credit.is_update_due());
        credit.tell();
        assert!(!credit.is_update_due());
        let mut credit = Credit::new(100);
        credit.receive(50).unwrap();
        credit.forward(50);
        assert!(!credit.is_update_due());
    }

    #[test]
    fn counters_wrap() {
        let mut credit = Credit::new(1 << 16);
        let mut total: u32 = 0;
        for _ in 0..(1 << 16) + 10 {
            credit.receive(1 << 16).unwrap();
            credit.forward(1 << 16);
            total = total.wrapping_add(1 << 16);
            assert_eq!(credit.tell(), (1 << 16, total));
        }
        let mut sent: u32 = 0;
        for _ in 0..(1 << 16) + 10 {
            credit.update_peer(1 << 17, sent);
            assert_eq!(credit.available(), 1 << 17);
            credit.send(1 << 17);
            assert_eq!(credit.available(), 0);
            sent = sent.wrapping_add(1 << 17);
        }
    }

    #[test]
    fn a_guest_that_takes_more_than_was_sent_gets_nothing() {
        let mut credit = Credit::new(1);
        credit.update_peer(1000, 1);
        assert_eq!(credit.available(), 0);
        credit.update_peer(0, 0);
        assert_eq!(credit.available(), 0);
        credit.update_peer(u32::MAX, 0);
        assert_eq!(credit.available(), u32::MAX);
    }

    proptest! {
        #[test]
        fn whatever_the_guest_claims_it_is_sent_no_more_than_it_has_room_for(
            claims in prop::collection::vec((any::<u32>(), any::<u32>(), any::<u32>()), 1..20),
        ) {
            let mut credit = Credit::new(0);
            for (buf_alloc, fwd_cnt, wish) in claims {
                credit.update_peer(buf_alloc, fwd_cnt);
                let outstanding = u64::from((credit.sent - Wrapping(fwd_cnt)).0);
                let available = u64::from(credit.available());
                prop_assert!(available == 0 || available + outstanding <= buf_alloc.into());
                credit.send(wish.min(credit.available()));
            }
        }

        #[test]
        fn what_is_buffered_never_exceeds_the_buffer(ops in prop::collection::vec((0u8..4, 0u32..400), 0..200)) {
            let mut credit = Credit::new(300);
            let mut buffered = 0;
            for (op, n) in ops {
                match op {
                    0 => buffered += if credit.receive(n).is_ok() { n } else { 0 },
                    1 => {
                        let n = n.min(buffered);
                        credit.forward(n);
                        buffered -= n;
                    }
                    _ => { credit.tell(); }
                }
                prop_assert!(buffered <= 300);
            }
        }
    }
}
