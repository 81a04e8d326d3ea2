//! The one place where a VM's end is decided: the first reason wins, and every thread learns of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::devices::console::ConsoleTail;
use crate::exit::{FailureReason, VmExit, VmFailure};
use crate::pause::PauseGate;

/// Collects the end of a VM from its threads.
#[derive(Debug)]
pub(crate) struct Supervisor {
    ended: AtomicBool,
    exit: Mutex<Option<VmExit>>,
    exit_set: Condvar,
    gate: PauseGate,
    console: ConsoleTail,
}

impl Supervisor {
    pub(crate) fn new(console: ConsoleTail) -> Self {
        Self {
            ended: AtomicBool::new(false),
            exit: Mutex::new(None),
            exit_set: Condvar::new(),
            gate: PauseGate::default(),
            console,
        }
    }

    /// Whether the VM's threads shall end. The caller kicks the ones that wait in the kernel.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Where the VM's threads wait while it is paused.
    pub(crate) fn gate(&self) -> &PauseGate {
        &self.gate
    }

    /// The guest reset its CPU.
    pub(crate) fn guest_reset(&self) {
        self.end(VmExit::GuestReset);
    }

    /// The embedder wants the VM to end.
    pub(crate) fn stop(&self) {
        self.end(VmExit::Stopped);
    }

    /// The VM cannot go on.
    pub(crate) fn failed(&self, reason: FailureReason, vcpu: Option<u8>, rip: Option<u64>) {
        self.end(VmExit::Failed(VmFailure {
            reason,
            vcpu,
            rip,
            console: self.console.lines(),
        }));
    }

    /// Waits until the VM has ended.
    pub(crate) fn wait(&self) -> VmExit {
        let mut exit = self.lock();
        loop {
            match &*exit {
                Some(exit) => return exit.clone(),
                None => exit = self.exit_set.wait(exit).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Ends the VM if the calling thread panics while the returned alarm lives.
    pub(crate) fn watch_thread(&self, name: String) -> ThreadAlarm<'_> {
        ThreadAlarm { supervisor: self, name }
    }

    fn end(&self, exit: VmExit) {
        let mut slot = self.lock();
        if slot.is_none() {
            *slot = Some(exit);
            self.ended.store(true, Ordering::Release);
            self.gate.open_for_good();
            self.exit_set.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<VmExit>> {
        self.exit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`Supervisor::watch_thread`].
pub(crate) struct ThreadAlarm<'a> {
    supervisor: &'a Supervisor,
    name: String,
}

impl Drop for ThreadAlarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let name = std::mem::take(&mut self.name);
            self.supervisor.failed(FailureReason::Thread(name), None, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_is_the_end() {
        let supervisor = Supervisor::new(ConsoleTail::default());
        supervisor.failed(FailureReason::TripleFault, Some(0), Some(7));
        supervisor.stop();
        assert!(supervisor.has_ended());
        assert!(matches!(
            supervisor.wait(),
            VmExit::Failed(VmFailure { rip: Some(7), .. })
        ));
    }

    #[test]
    fn a_thread_that_panics_ends_the_vm_by_name() {
        let supervisor = std::sync::Arc::new(Supervisor::new(ConsoleTail::default()));
        let theirs = std::sync::Arc::clone(&supervisor);
        let thread = std::thread::spawn(move || {
            let _alarm = theirs.watch_thread("block0".into());
            panic!("as a test");
        });
        let VmExit::Failed(failure) = supervisor.wait() else {
            panic!("the VM did not fail")
        };
        assert!(failure.to_string().contains("block0"));
        assert!(thread.join().is_err());
    }
}
