//! Instructions that a CPU says it executed: the same on any host with such a CPU, however fast it is.

use std::io;

use perf_event::events::Hardware;
use perf_event::{Builder, Counter};

/// Whose instructions count.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mode {
    /// Those of the host, its kernel's too.
    Host,
    /// Those of guests.
    Guest,
}

/// Counts the instructions of this thread and of all processes that it starts from now on.
pub(crate) struct Instructions(Counter);

impl Instructions {
    /// Starts to count.
    ///
    /// # Errors
    /// When this host's CPU has no counter, as an emulated one, or nobody may use it.
    pub(crate) fn start(mode: Mode) -> io::Result<Self> {
        let mut builder = Builder::new(Hardware::INSTRUCTIONS);
        builder.inherit(true).exclude_kernel(false);
        match mode {
            Mode::Host => builder.exclude_guest(true),
            Mode::Guest => builder.exclude_host(true),
        };
        let mut counter = builder.build()?;
        counter.enable()?;
        Ok(Self(counter))
    }

    /// How many there were.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(crate) fn read(&mut self) -> io::Result<u64> {
        self.0.read()
    }
}
