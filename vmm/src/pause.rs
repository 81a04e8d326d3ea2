//! Holding a VM's threads where nothing of the guest is on its way, and letting them go on.
//!
//! Who pauses asks for it, calls each thread out of where it waits, and waits until all have come to the gate. A vCPU's
//! thread comes when the last access of its guest is complete, a device's thread between two events: what they share is
//! then still, and can be read and written.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Where the threads of a VM wait while it is paused.
#[derive(Debug, Default)]
pub(crate) struct PauseGate {
    closed: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Threads that come to the gate when it is closed.
    threads: usize,
    /// Those that wait at it.
    waiting: usize,
    /// The VM has ended: nobody waits any more.
    open_for_good: bool,
}

impl PauseGate {
    /// How many threads the VM has.
    pub(crate) fn expect(&self, threads: usize) {
        self.lock().threads = threads;
    }

    /// Asks the threads to come, which the caller then calls out of where they are.
    pub(crate) fn close(&self) {
        let _state = self.lock();
        self.closed.store(true, Ordering::Release);
    }

    /// Lets the threads go on.
    pub(crate) fn open(&self) {
        let _state = self.lock();
        self.closed.store(false, Ordering::Release);
        self.changed.notify_all();
    }

    /// The VM has ended.
    pub(crate) fn open_for_good(&self) {
        self.lock().open_for_good = true;
        self.changed.notify_all();
    }

    /// Whether the calling thread shall come.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Waits until all threads have come. False when the VM has ended instead.
    pub(crate) fn wait_for_all(&self) -> bool {
        let mut state = self.lock();
        while !state.open_for_good && state.waiting < state.threads {
            state = self.wait(state);
        }
        !state.open_for_good
    }

    /// Waits at the gate, as one of the VM's threads, until it is open.
    pub(crate) fn pass(&self) {
        let mut state = self.lock();
        state.waiting += 1;
        self.changed.notify_all();
        while self.is_closed() && !state.open_for_good {
            state = self.wait(state);
        }
        state.waiting -= 1;
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::*;

    #[test]
    fn nothing_moves_between_the_arrival_of_all_and_the_opening() {
        let (gate, turns) = (Arc::new(PauseGate::default()), Arc::new(AtomicUsize::new(0)));
        let ended = Arc::new(AtomicBool::new(false));
        gate.expect(2);
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (gate, turns, ended) = (Arc::clone(&gate), Arc::clone(&turns), Arc::clone(&ended));
                thread::spawn(move || {
                    while !ended.load(Ordering::Acquire) {
                        if gate.is_closed() {
                            gate.pass();
                        }
                        turns.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        for _ in 0..10 {
            gate.close();
            assert!(gate.wait_for_all());
            let before = turns.load(Ordering::SeqCst);
            thread::yield_now();
            assert_eq!(turns.load(Ordering::SeqCst), before);
            gate.open();
        }
        ended.store(true, Ordering::Release);
        gate.open_for_good();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        gate.close();
        assert!(!gate.wait_for_all(), "a VM that has ended cannot be paused");
    }
}
