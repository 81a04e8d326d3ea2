//! MicroVM sandboxes on KVM that stock ssh reaches with no network port.
//!
//! A [`Store`] is a directory of sandboxes; a [`Sandbox`] is one of them. There is no daemon: each running sandbox is
//! one VMM process, and what a sandbox is doing follows from its lock and its records. What waits for a guest is async
//! and wants a tokio runtime; the rest only touches files.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use msb::ssh::{SshClientOptions, SshExecOptions};
//! use msb::store::layout::Layout;
//! use msb::vmm_process::args::Lifetime;
//! use msb::{Sandbox, SandboxSpec, Store};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let store = Store::new(Layout::from_environment()?);
//! let (sandbox, lock) = Sandbox::create_transient(&store, SandboxSpec::default(), &[])?;
//! let mut started = sandbox.start_held(lock, Lifetime::OfStarter)?;
//! started.ready(Duration::from_secs(60)).await?;
//!
//! let client = sandbox.ssh().open_client(SshClientOptions::default()).await?;
//! let output = client.exec("uname -r", SshExecOptions::default()).await?;
//! println!("{}", String::from_utf8_lossy(&output.stdout));
//!
//! started.discard().await?;
//! # Ok(())
//! # }
//! ```

/// The examples of the documentation are compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/library.md")]
#[doc = include_str!("../../docs/api.md")]
pub struct DocumentedExample;

pub mod assets;
pub mod cli;
pub mod doctor;
pub mod events;
pub mod identity;
pub mod images;
pub mod jail;
mod log;
pub mod pools;
pub mod quote;
mod report;
pub mod sandbox;
mod shared;
pub mod store;
mod tail;
pub mod template;
pub mod timings;
pub mod vmm_process;

pub use images::Images;
pub use pools::Pool;
pub use sandbox::Sandbox;
pub use sandbox::deadline::{Deadline, Timeout, TimeoutEnd};
pub use sandbox::files;
pub use sandbox::processes;
pub use sandbox::spec::SandboxSpec;
pub use sandbox::ssh;
pub use sandbox::state::State;
pub use store::Store;
pub use template::Template;
