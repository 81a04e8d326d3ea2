//! Whether a guest really runs: nothing less tells. A /dev/kvm can be opened, and answer, and run no guest.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::sandbox::CreateError;
use crate::sandbox::spec::{MIN_MEMORY_MIB, Memory};
use crate::sandbox::start::StartError;
use crate::store::StoreError;
use crate::store::layout::Layout;
use crate::vmm_process::args::Lifetime;
use crate::{Sandbox, SandboxSpec, Store};

/// Why no guest runs.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    #[error("cannot make a temporary directory in {}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Create(#[from] CreateError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Boots a guest that belongs to nobody, and says how long it took to serve SSH.
pub(super) async fn boot(timeout: Duration) -> Result<Duration, ProbeError> {
    let directory = TemporaryDirectory::new()?;
    let layout = Layout {
        home: directory.0.join("home"),
        runtime: directory.0.join("run"),
    };
    let spec = SandboxSpec {
        memory: Memory {
            mib: MIN_MEMORY_MIB * 2,
        },
        ..SandboxSpec::default()
    };
    let begun = Instant::now();
    let (sandbox, lock) = Sandbox::create_transient(&Store::new(layout), spec, &[])?;
    let mut started = sandbox.start_held(lock, Lifetime::OfStarter)?;
    let ready = started.ready(timeout).await;
    let took = begun.elapsed();
    started.discard().await?;
    ready?;
    Ok(took)
}

/// Removed when dropped.
#[derive(Debug)]
struct TemporaryDirectory(PathBuf);

impl TemporaryDirectory {
    fn new() -> Result<Self, ProbeError> {
        // Short, for the sockets in it. mkdir is what makes the name its own.
        let parent = Path::new("/tmp");
        let mut seed = [0; 4];
        let error = |source| ProbeError::Directory {
            path: parent.into(),
            source,
        };
        getrandom::fill(&mut seed).map_err(|source| error(io::Error::other(source)))?;
        let path = parent.join(format!("msb-doctor-{:08x}", u32::from_ne_bytes(seed)));
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700)
            .create(&path)
            .map_err(error)?;
        Ok(Self(path))
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        // What remains is in /tmp and says whose it is.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
