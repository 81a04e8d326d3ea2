//! How long a sandbox may run, and what ends it then.
//!
//! Its VMM process watches the time. Nothing but [`Sandbox::set_timeout`] changes it: neither connections nor a pause.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::friendly::SpanParser;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::Sandbox;
use super::control::ControlError;
use super::records::DeadlineRecord;
use super::state::State;
use crate::store::{StoreError, files};

/// The longest time that can be asked for: a hundred years.
const MAX: Duration = Duration::from_secs(100 * 365 * 86_400);

/// How long a sandbox may run: whole milliseconds. Written `90` for seconds, else with units: `15m`, `1h30m`, `2d`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Timeout {
    millis: NonZeroU64,
}

/// What ends a sandbox whose time is over.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum TimeoutEnd {
    /// As `msb stop`: the guest is asked to shut down, and killed if it has not after 10 s
    #[default]
    Stop,
    /// As `msb kill`: at once
    Kill,
}

/// How long a run may take, and what ends it then.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct TimeLimit {
    /// How long, from the start of its VMM process; without one, for ever.
    pub timeout: Option<Timeout>,
    /// What ends it then, also when a time is set later.
    pub end: TimeoutEnd,
}

/// No sandbox can be given this time.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum TimeoutError {
    /// It is no duration.
    #[error("'{0}' is no duration; write 90 for seconds, or 15m, 1h30m, 2d")]
    Malformed(String),
    /// It ends at once, or never.
    #[error("a sandbox can be given from a millisecond to a hundred years, not {0:?}")]
    Range(Duration),
}

/// When a sandbox that runs will be ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Deadline {
    /// When that is, as the clock was when it was set.
    pub at: Timestamp,
    /// How long that is from now. Time counts that the host was asleep; setting its clock changes nothing.
    pub left: Duration,
    /// How it will be ended.
    pub end: TimeoutEnd,
}

impl Timeout {
    /// So long, in whole milliseconds.
    ///
    /// # Errors
    /// When it is less than a millisecond or more than a hundred years.
    pub fn new(duration: Duration) -> Result<Self, TimeoutError> {
        let millis = u64::try_from(duration.as_millis()).ok().and_then(NonZeroU64::new);
        let millis = millis.filter(|_| duration <= MAX);
        millis
            .map(|millis| Self { millis })
            .ok_or(TimeoutError::Range(duration))
    }

    /// How long.
    pub fn duration(self) -> Duration {
        Duration::from_millis(self.into())
    }
}

impl From<Timeout> for u64 {
    /// In milliseconds.
    fn from(timeout: Timeout) -> Self {
        timeout.millis.get()
    }
}

impl TryFrom<u64> for Timeout {
    type Error = TimeoutError;

    fn try_from(millis: u64) -> Result<Self, TimeoutError> {
        Self::new(Duration::from_millis(millis))
    }
}

impl FromStr for Timeout {
    type Err = TimeoutError;

    fn from_str(text: &str) -> Result<Self, TimeoutError> {
        let seconds = text
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| text.parse().ok());
        let duration = match seconds {
            Some(seconds) => seconds.map(Duration::from_secs),
            None => with_units(text),
        };
        Self::new(duration.ok_or_else(|| TimeoutError::Malformed(text.into()))?)
    }
}

/// The units of a duration are those of a clock: a day is 24 hours.
fn with_units(text: &str) -> Option<Duration> {
    let (days, rest) = match text.split_once('d') {
        Some((days, rest)) => (days.parse::<u32>().ok()?, rest),
        None => (0, text),
    };
    let rest = match rest {
        "" => Duration::ZERO,
        rest => SpanParser::new().parse_unsigned_duration(rest).ok()?,
    };
    Duration::from_secs(u64::from(days) * 86_400).checked_add(rest)
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.millis)
    }
}

impl Sandbox {
    /// When it will be ended, if it runs and its time is limited.
    ///
    /// # Errors
    /// When it was removed or a record cannot be read.
    pub fn deadline(&self) -> Result<Option<Deadline>, StoreError> {
        self.deadline_in(&self.state()?)
    }

    /// When it will be ended, if it is in `state` and that is one with a deadline.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub(crate) fn deadline_in(&self, state: &State) -> Result<Option<Deadline>, StoreError> {
        let record: Option<DeadlineRecord> = files::read_json(&self.dir().deadline())?;
        let of_run = |record: &DeadlineRecord| state.run().is_some_and(|run| run.run_id == record.run_id);
        Ok(record.filter(of_run).map(|record| Deadline {
            at: record.at,
            left: record.boot_time.saturating_sub(boot_time()),
            end: record.end,
        }))
    }

    /// Gives it `timeout` from now on, or all the time there is. What ends it then stays as it is without an `end`. The next
    /// start is given what its specification says.
    ///
    /// # Errors
    /// When it does not run, or is being ended.
    pub fn set_timeout(&self, timeout: Option<Timeout>, end: Option<TimeoutEnd>) -> Result<(), ControlError> {
        self.control()?.set_timeout(timeout, end)
    }
}

/// How long the host runs, with the time that it was asleep: `CLOCK_BOOTTIME`.
pub(crate) fn boot_time() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_seconds_or_has_units() {
        for (text, seconds) in [
            ("90", 90),
            ("90s", 90),
            ("15m", 900),
            ("1h30m", 5400),
            ("1h 30m", 5400),
            ("2d", 172_800),
            ("1d12h", 129_600),
        ] {
            let timeout: Timeout = text.parse().unwrap();
            assert_eq!(timeout.duration(), Duration::from_secs(seconds), "{text}");
        }
        assert_eq!("1.5s".parse(), Timeout::try_from(1500));
        for bad in [
            "",
            "s",
            "-1",
            "-1s",
            "+1",
            "1x",
            "none",
            "1w",
            "d",
            "1m2d",
            "1s ago",
            "99999999999999999999",
        ] {
            assert_eq!(
                bad.parse::<Timeout>(),
                Err(TimeoutError::Malformed(bad.into())),
                "{bad}"
            );
        }
        for bad in ["0", "0s", "100us", "40000d", "18446744073709551615"] {
            assert!(matches!(bad.parse::<Timeout>(), Err(TimeoutError::Range(_))), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_time_survives_its_text_and_its_record(millis in 1..=36_500_u64 * 86_400_000) {
            let timeout = Timeout::try_from(millis).unwrap();
            proptest::prop_assert_eq!(timeout.to_string().parse(), Ok(timeout));
            let json = serde_json::to_string(&timeout).unwrap();
            proptest::prop_assert_eq!(serde_json::from_str::<Timeout>(&json).unwrap(), timeout);
        }

        #[test]
        fn no_text_is_a_time_without_end(text in "[0-9a-z. -]{0,12}") {
            if let Ok(timeout) = text.parse::<Timeout>() {
                proptest::prop_assert!(!timeout.duration().is_zero() && timeout.duration() <= MAX);
            }
        }
    }
}
