//! What a verb says when it fails.

use std::error::Error;
use std::fmt::Display;
use std::io;

use crate::report;
use crate::store::layout::Layout;

/// Exit status of msb's own errors.
pub const OWN_ERROR: u8 = 125;

/// Exit status when the connection to the guest failed, as ssh has it.
pub(super) const TRANSPORT_ERROR: u8 = 255;

/// One line for standard error, and the exit status.
#[derive(Debug)]
pub(super) struct CliError {
    pub(super) message: String,
    pub(super) status: u8,
}

impl CliError {
    /// `msb: cannot <doing>: <error and its causes>`.
    pub(super) fn cannot(doing: impl Display, error: &(dyn Error + 'static)) -> Self {
        Self::plain(format!("cannot {doing}: {}", Self::reason(error)))
    }

    /// The error and its causes, and what to do about them where there is something.
    pub(super) fn reason(error: &(dyn Error + 'static)) -> String {
        let mut reason = report::one_line(error);
        if is_disk_full(error) {
            reason.push_str(&more_space());
        }
        reason
    }

    /// A line of its own.
    pub(super) fn plain(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            status: OWN_ERROR,
        }
    }

    /// The same with another exit status.
    pub(super) fn with_status(self, status: u8) -> Self {
        Self { status, ..self }
    }
}

/// For `map_err`: what could not be done.
pub(super) fn cannot<E: Error + 'static>(doing: impl Display) -> impl FnOnce(E) -> CliError {
    move |error| CliError::cannot(doing, &error)
}

/// What to do about a full disk, most likely that of the state.
fn more_space() -> String {
    let home = Layout::from_environment().map(|layout| format!(" on the disk of {}", layout.home.display()));
    format!(
        "; free some space{}, or set MSB_HOME to a directory on another disk",
        home.unwrap_or_default()
    )
}

fn is_disk_full(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::StorageFull)
        {
            return true;
        }
        cause = error.source();
    }
    false
}
