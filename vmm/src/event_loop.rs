//! A thread that drives devices.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::exit::FailureReason;
use crate::supervisor::Supervisor;
use crate::thread::{self, OnThread, ThreadRole};

/// A device as its event loop sees it.
pub(crate) type Subscriber = Arc<Mutex<dyn MutEventSubscriber + Send>>;

/// Devices whose loop has not started. Their host-side sockets and timers are registered from now on.
pub(crate) struct EventLoop {
    name: String,
    manager: EventManager<Subscriber>,
    stop: Arc<Stop>,
}

impl std::fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventLoop")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Stop {
    asked: AtomicBool,
    wake: EventFd,
}

/// Keeps [`Stop::wake`] readable for the loop; the loop itself looks at [`Stop::asked`].
struct StopSubscriber(Arc<Stop>);

impl MutEventSubscriber for StopSubscriber {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {}

    fn init(&mut self, ops: &mut EventOps) {
        let registered = ops.add(Events::new(&self.0.wake, EventSet::IN));
        registered.expect("a new epoll instance accepts a first descriptor");
    }
}

impl EventLoop {
    /// A loop called `name` for `devices`.
    ///
    /// # Errors
    /// When the host is out of file descriptors.
    pub(crate) fn new(name: &str, devices: Vec<Subscriber>) -> io::Result<Self> {
        let mut manager = EventManager::new().map_err(io::Error::other)?;
        let stop = Arc::new(Stop {
            asked: AtomicBool::new(false),
            wake: EventFd::new(EFD_NONBLOCK)?,
        });
        manager.add_subscriber(Arc::new(Mutex::new(StopSubscriber(Arc::clone(&stop)))) as Subscriber);
        for device in devices {
            manager.add_subscriber(device);
        }
        Ok(Self {
            name: name.to_owned(),
            manager,
            stop,
        })
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// When the host refuses a thread.
    pub(crate) fn spawn(self, supervisor: Arc<Supervisor>, on_thread: OnThread) -> io::Result<EventLoopThread> {
        let Self {
            name,
            mut manager,
            stop,
        } = self;
        let asked = Arc::clone(&stop);
        let thread = thread::builder(&name).spawn(move || {
            let _alarm = supervisor.watch_thread(name.clone());
            if let Err(error) = on_thread(ThreadRole::Device) {
                return supervisor.failed(FailureReason::Thread(format!("{name} ({error})")), None, None);
            }
            while !asked.asked.load(Ordering::Acquire) {
                if supervisor.gate().is_closed() {
                    supervisor.gate().pass();
                    // The wake-up that led here; what else woke it shows in what it asked for.
                    let _ = asked.wake.read();
                    continue;
                }
                if let Err(error) = manager.run() {
                    supervisor.failed(FailureReason::Thread(format!("{name} ({error})")), None, None);
                    break;
                }
            }
        })?;
        Ok(EventLoopThread { stop, thread })
    }
}

/// A loop that runs.
#[derive(Debug)]
pub(crate) struct EventLoopThread {
    stop: Arc<Stop>,
    thread: JoinHandle<()>,
}

impl EventLoopThread {
    /// Makes the loop look at what is asked of it.
    pub(crate) fn wake(&self) {
        // A full counter is readable too.
        let _ = self.stop.wake.write(1);
    }

    /// Ends the loop and waits for its thread.
    pub(crate) fn join(self) {
        self.stop.asked.store(true, Ordering::Release);
        self.wake();
        // A panic was reported by the thread's alarm.
        let _ = self.thread.join();
    }
}
