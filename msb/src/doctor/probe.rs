//! Whether a guest really runs: nothing less tells. A /dev/kvm can be opened, and answer, and run no guest.

use std::time::{Duration, Instant};

use crate::jail::Layers;
use crate::sandbox::CreateError;
use crate::sandbox::spec::Memory;
use crate::sandbox::start::StartError;
use crate::store::StoreError;
use crate::vmm_process::args::Lifetime;
use crate::{Sandbox, SandboxSpec, Store};

/// Memory of the guest: enough for the built-in image.
const MEMORY: Memory = Memory { mib: 128 };

/// Why no guest runs.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    #[error(transparent)]
    Create(#[from] CreateError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A guest that ran.
#[derive(Clone, Copy, Debug)]
pub(super) struct Booted {
    /// How long it took to serve SSH.
    pub(super) took: Duration,
    /// What held around it.
    pub(super) layers: Option<Layers>,
}

/// Boots a guest that ends with this process at the latest.
pub(super) async fn boot(store: &Store, timeout: Duration) -> Result<Booted, ProbeError> {
    store.sweep()?;
    let spec = SandboxSpec {
        memory: MEMORY,
        ..SandboxSpec::default()
    };
    let begun = Instant::now();
    let (sandbox, lock) = Sandbox::create_transient(store, spec, &[])?;
    let mut started = match sandbox.start_held(lock, Lifetime::OfStarter) {
        Ok(started) => started,
        Err(error) => {
            sandbox.remove()?;
            return Err(error.into());
        }
    };
    let ready = started.ready(timeout).await;
    let took = begun.elapsed();
    let state = sandbox.state();
    started.discard().await?;
    ready?;
    let layers = state?.run().and_then(|run| run.vm).map(|vm| vm.layers);
    Ok(Booted { took, layers })
}
