//! What a process logs to its standard error.

use std::io;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// The variable that says what is logged: a level (`debug`), or levels of parts (`msb_vmm=debug,warn`).
pub(crate) const VARIABLE: &str = "MSB_LOG";

/// Logs what `filter` says from now on, as [`VARIABLE`] has it; warnings without one.
pub(crate) fn to_stderr(filter: Option<&str>) {
    let warnings = || Targets::new().with_default(LevelFilter::WARN);
    let (filter, error) = match filter.map(str::parse) {
        None => (warnings(), None),
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (warnings(), Some(error)),
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(false)
        // It would print what it could not write, and panic because that cannot be written either.
        .log_internal_errors(false);
    tracing_subscriber::registry().with(lines).with(filter).init();
    if let Some(error) = error {
        tracing::warn!("{VARIABLE} says neither a level nor levels of parts, such as msb_vmm=debug,warn: {error}");
    }
}
