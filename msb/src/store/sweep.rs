//! What dead processes left behind, and its removal.

use std::path::{Path, PathBuf};

use msb_ssh::known_hosts;

use super::files;
use super::files::list;
use super::names::{Name, SandboxId};
use super::{Store, StoreError, StoreLock};
use crate::jail::cgroup;
use crate::sandbox::config::Config;

/// Something nobody owns any more.
enum Leftover {
    /// A directory of a sandbox that never was, or is no more.
    Directory { id: SandboxId, name: String },
    /// A transient sandbox that nobody holds.
    Transient(SandboxId),
    /// Sockets of a sandbox that does not run.
    Sockets(SandboxId),
    /// Pinned keys that were not put in their place.
    Draft(PathBuf),
    /// A pool that never was, or is no more.
    Pool(PathBuf),
}

impl Store {
    /// Removes what dead processes left behind. Cheap when there is nothing.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn sweep(&self) -> Result<(), StoreError> {
        // What is seen here may belong to a change under way; it is looked at again under the lock.
        if self.leftovers()?.is_empty() {
            return Ok(());
        }
        self.sweep_locked(&self.lock()?)
    }

    pub(super) fn sweep_locked(&self, guard: &StoreLock) -> Result<(), StoreError> {
        for leftover in self.leftovers()? {
            match leftover {
                Leftover::Directory { id, name } => self.purge(guard, &id, &self.layout.sandboxes().join(name))?,
                Leftover::Transient(id) if self.exists(&id) => self.remove_locked(guard, &id)?,
                Leftover::Transient(id) => self.keep(&id)?,
                Leftover::Pool(path) => self.bury_pool(guard, &path)?,
                Leftover::Draft(path) => files::remove_optional(&path)?,
                Leftover::Sockets(id) => self.remove_surroundings(&id)?,
            }
        }
        Ok(())
    }

    fn leftovers(&self) -> Result<Vec<Leftover>, StoreError> {
        let mut found = Vec::new();
        for name in list(&self.layout.sandboxes())? {
            let id = name.strip_prefix(".new-").or_else(|| name.strip_prefix(".del-"));
            if let Some(Ok(id)) = id.map(str::parse) {
                found.push(Leftover::Directory { id, name });
            }
        }
        let ids = |names: Vec<String>| names.into_iter().filter_map(|name| name.parse::<SandboxId>().ok());
        let transients = ids(list(&self.layout.transients())?);
        found.extend(transients.filter(|id| !self.is_held(id)).map(Leftover::Transient));
        found.extend(self.dead_pools()?.into_iter().map(Leftover::Pool));
        // Only who has the store's lock writes one.
        let drafts = list(&self.layout.home)?;
        let drafts = drafts
            .iter()
            .filter(|name| name.starts_with(".known_hosts.") && name.ends_with(".tmp"));
        found.extend(drafts.map(|name| Leftover::Draft(self.layout.home.join(name))));
        // Another store may share the runtime directory: what is unknown here is not ours to remove.
        let sockets = ids(list(&self.layout.runtime)?);
        found.extend(
            sockets
                .filter(|id| self.exists(id) && !self.is_held(id))
                .map(Leftover::Sockets),
        );
        Ok(found)
    }

    fn is_held(&self, id: &SandboxId) -> bool {
        // A lock that cannot be examined keeps its sandbox; one that is absent has none.
        self.is_running(id)
            .unwrap_or_else(|error| !matches!(error, StoreError::Unknown(_)))
    }

    /// Removes all traces of a sandbox whose directory is `dir`, the directory last: until then it can be repeated.
    pub(super) fn purge(&self, _guard: &StoreLock, id: &SandboxId, dir: &Path) -> Result<(), StoreError> {
        let config: Option<Config> = files::read_json(&dir.join("config.json")).unwrap_or_default();
        if let Some(name) = config.and_then(|config| config.spec.name) {
            self.remove_name(&name, id)?;
        }
        self.remove_surroundings(id)?;
        self.keep(id)?;
        // On a full disk, this makes the room that the shorter known_hosts needs for a moment.
        for entry in list(dir)? {
            files::remove_optional(&dir.join(entry))?;
        }
        known_hosts::remove(&self.layout.known_hosts(), &[&format!("{id}.msb")])?;
        Ok(files::remove_dir_optional(dir)?)
    }

    /// Removes what was around a run that is over: its cgroup, if it has one, and its sockets.
    pub(crate) fn remove_surroundings(&self, id: &SandboxId) -> Result<(), StoreError> {
        if let Ok(cgroup) = std::fs::read_link(self.layout.cgroup(id)) {
            cgroup::remove(&cgroup)?;
        }
        Ok(files::remove_dir_optional(&self.layout.sockets(id))?)
    }

    /// Removes a name unless it is another sandbox's.
    fn remove_name(&self, name: &Name, id: &SandboxId) -> Result<(), StoreError> {
        let link = self.layout.name(name);
        match std::fs::read_link(&link) {
            Ok(target) if target.ends_with(id.as_str()) => Ok(files::remove_optional(&link)?),
            _ => Ok(()),
        }
    }
}
