//! Notifications between driver and device: asked for only when there is nothing left to do, sent once a batch.

use virtio_queue::{DescriptorChain, Queue, QueueT};

use super::device::ActiveQueue;
use super::interrupt::Interrupt;
use crate::memory::GuestMemory;

/// Chains handled before other events get a turn. A driver whose rings overlap has another one for each that is used.
pub(super) const BUDGET: usize = 1024;

/// Handles the chains that `queue` has, [`BUDGET`] at most, and kicks itself when there may be more; `handle` returns how
/// many bytes it wrote to one.
pub(super) fn serve<F>(active: &mut ActiveQueue, memory: &GuestMemory, interrupt: &Interrupt, mut handle: F)
where
    F: FnMut(DescriptorChain<&GuestMemory>) -> u32,
{
    let queue = &mut active.queue;
    let mut recheck = Recheck::default();
    let mut left = BUDGET;
    loop {
        let _ = queue.disable_notification(memory);
        let before = left;
        while left > 0
            && let Some(chain) = queue.pop_descriptor_chain(memory)
        {
            let head = chain.head_index();
            let written = handle(chain);
            if queue.add_used(memory, head, written).is_err() {
                return;
            }
            left -= 1;
        }
        if left == 0 {
            // Comes back here after the other events of this turn.
            let _ = active.kick.write(1);
            break;
        }
        if !recheck.again(queue, memory, left < before) {
            break;
        }
    }
    if left < BUDGET {
        notify(queue, memory, interrupt);
    }
}

/// Asks for the driver's notifications again, and whether something came before it knew of that.
#[derive(Debug, Default)]
pub(super) struct Recheck {
    in_vain: bool,
}

impl Recheck {
    /// Whether to look at the queue once more. A queue that says it has something, twice, and gives nothing is broken:
    /// its driver wrote nonsense into it.
    pub(super) fn again(&mut self, queue: &mut Queue, memory: &GuestMemory, progressed: bool) -> bool {
        let is_broken = std::mem::replace(&mut self.in_vain, !progressed) && !progressed;
        queue.enable_notification(memory).unwrap_or(false) && !is_broken
    }
}

/// Interrupts the driver, if it wants to know of what was used. Whether it did.
pub(super) fn notify(queue: &mut Queue, memory: &GuestMemory, interrupt: &Interrupt) -> bool {
    // When the driver's wish cannot be read, it hears once too often.
    let is_wanted = queue.needs_notification(memory).unwrap_or(true);
    if is_wanted {
        interrupt.signal_used_buffer();
    }
    is_wanted
}

#[cfg(test)]
mod tests {
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::{Bytes, GuestAddress};
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;
    use crate::devices::register_page::RegisterPage;

    /// Where the available ring has its index, behind its flags.
    const INDEX_OFFSET: u64 = 2;

    #[test]
    fn a_driver_with_ever_more_chains_leaves_other_events_a_turn() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        let index = GuestAddress(0x2000 + INDEX_OFFSET);
        memory.write_obj(1u16, index).unwrap();
        // Each entry of the available ring is the first descriptor, which is empty.
        let mut queue = Queue::new(16).unwrap();
        queue.try_set_desc_table_address(GuestAddress(0x1000)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(0x2000)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(0x3000)).unwrap();
        queue.set_ready(true);
        let mut active = ActiveQueue {
            queue,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
        };
        let mut available = 1u16;
        let interrupt = Interrupt::new(RegisterPage::new().unwrap()).unwrap();
        for _ in 0..2 {
            let before = available;
            serve(&mut active, &memory, &interrupt, |_| {
                available = available.wrapping_add(1);
                memory.write_obj(available, index).unwrap();
                0
            });
            assert_eq!(usize::from(available.wrapping_sub(before)), BUDGET);
            assert_eq!(active.kick.read().unwrap(), 1, "it comes back");
        }
    }

    #[test]
    fn an_available_index_without_sense_does_not_hold_the_device() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        let mock = MockSplitQueue::new(&memory, 16);
        for event_idx in [false, true] {
            let mut queue: Queue = mock.create_queue().unwrap();
            queue.set_event_idx(event_idx);
            memory
                .write_obj(1000u16, GuestAddress(mock.avail_addr().0 + INDEX_OFFSET))
                .unwrap();
            let mut active = ActiveQueue {
                queue,
                kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            };
            serve(
                &mut active,
                &memory,
                &Interrupt::new(RegisterPage::new().unwrap()).unwrap(),
                |_| panic!("there is no chain"),
            );
        }
    }
}
