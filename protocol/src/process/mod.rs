//! The subsystem `process@msb`: processes and terminals of a guest that can outlive the connection that started them.
//!
//! A channel carries frames ([`crate::frame`]).
//!
//! Both ends say [`Request::Hello`] and [`Reply::Hello`] first; the lower of the two versions is spoken. Then the client
//! makes one request: [`Request::List`], whose answers end with [`Reply::Done`], or [`Request::Start`] or
//! [`Request::Attach`], which turn the channel into a stream of that process until [`Reply::Exited`]. Whatever fails is
//! answered with [`Reply::Failed`].
//!
//! Both directions are bounded by credit, so that a channel whose reader or process is slow never holds up control:
//! the guest sends as many bytes of output as the client granted ([`Request::Credit`]), and the client as many of input
//! as the process took since ([`Reply::Credit`], from [`INPUT_WINDOW`] on).

mod message;

use crate::frame::MAX_FRAME;

pub use message::{Attach, End, Failure, Info, Program, Reply, Request, Since, Start, Terminal};

/// The name of the subsystem.
pub const SUBSYSTEM: &str = "process@msb";

/// The version that this crate describes.
pub const VERSION: u32 = 1;

/// The most bytes of a [`Request::Start`], which leaves room for what [`Reply::Listed`] adds to it.
pub const MAX_START: usize = MAX_FRAME - 4096;

/// The most bytes of input or output in one frame.
pub const MAX_DATA: usize = 32 << 10;

/// Bytes of input that a client may have sent and the process not yet taken.
pub const INPUT_WINDOW: u32 = 64 << 10;

/// Recent output that is kept for whoever attaches later, in bytes, unless the start says otherwise.
pub const DEFAULT_HISTORY: u64 = 1 << 20;

/// The least and the most recent output that can be asked to be kept, in bytes.
pub const HISTORY_RANGE: std::ops::RangeInclusive<u64> = 4096..=64 << 20;
