//! Pools of forks in the store: a directory for each, and the records of the forks that wait.

use std::fs::File;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use msb_ssh::keys::KeyPair;
use msb_ssh::known_hosts;

use super::files::{self, FileError};
use super::layout::PoolDir;
use super::names::{Name, SandboxId};
use super::{Store, StoreError, StoreLock};
use crate::pools::{PoolRecord, PoolRef};
use crate::sandbox::Sandbox;
use crate::sandbox::config::Config;
use crate::sandbox::records::WaitRecord;
use crate::vmm_process::control::Take;

/// A pool that is being made. What is left of it when its maker dies, the next sweep removes.
#[derive(Debug)]
pub(crate) struct NewPool {
    pub(crate) dir: PoolDir,
    /// Locked as long as somebody is at it.
    _lock: File,
}

impl Store {
    /// The names of all pools, sorted.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub(crate) fn pools(&self) -> Result<Vec<Name>, StoreError> {
        let names = files::list(&self.layout.pools())?;
        let mut names: Vec<Name> = names.iter().filter_map(|name| name.parse().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// A directory in which a pool can be made.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn begin_pool(&self, id: &str) -> Result<NewPool, StoreError> {
        let guard = self.lock()?;
        self.sweep_locked(&guard)?;
        let path = self.layout.pools().join(format!(".new-{id}"));
        files::create_private_dirs(&path)?;
        let lock = || {
            let lock = File::open(&path)?;
            lock.lock()?;
            Ok(lock)
        };
        Ok(NewPool {
            _lock: lock().map_err(FileError::io("lock", &path))?,
            dir: PoolDir::new(path),
        })
    }

    /// Puts a pool that is whole into the store.
    ///
    /// # Errors
    /// When its name is taken.
    pub(crate) fn insert_pool(&self, new: &NewPool, name: &Name) -> Result<(), StoreError> {
        let _guard = self.lock()?;
        let place = self.layout.pool(name);
        if place.path().exists() {
            return Err(StoreError::PoolExists(name.clone()));
        }
        Ok(std::fs::rename(new.dir.path(), place.path()).map_err(FileError::io("create", place.path()))?)
    }

    /// Takes a pool out of the store: no fork waits in it from now on that does not yet. Those that do are the caller's to
    /// end; if it dies before, the next sweep ends them.
    ///
    /// # Errors
    /// When there is no such pool.
    pub(crate) fn remove_pool(&self, pool: &PoolRef) -> Result<(), StoreError> {
        let _guard = self.lock()?;
        self.check_pool(pool)?;
        let removed = self.removed_pool(&pool.id);
        std::fs::rename(self.layout.pool(&pool.name).path(), &removed)
            .map_err(FileError::io("remove", self.layout.pool(&pool.name).path()))?;
        Ok(())
    }

    /// Removes what is left of a pool that was removed, once no fork waits in it.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub(crate) fn purge_pool(&self, id: &str) -> Result<(), StoreError> {
        Ok(files::remove_dir_optional(&self.removed_pool(id))?)
    }

    /// Writes down that a sandbox waits.
    ///
    /// # Errors
    /// When its pool is no more.
    pub(crate) fn wait_in_pool(&self, id: &SandboxId, record: &WaitRecord) -> Result<(), StoreError> {
        let _guard = self.lock()?;
        self.check_pool(&record.pool)?;
        Ok(files::replace_json(&self.layout.sandbox(id).waiting(), record)?)
    }

    /// Makes a sandbox that waits another one, which does not wait. Its VMM process does this, and is the only one to.
    ///
    /// # Errors
    /// When its name is taken or a file cannot be written; it waits on then, under no name.
    pub(crate) fn take(&self, id: &SandboxId, take: &Take) -> Result<(), StoreError> {
        let guard = self.lock()?;
        let dir = self.layout.sandbox(id);
        let before = Sandbox::open(self, id)?.config().clone();
        if let Err(error) = self.rename(&guard, &before, take) {
            // The failed step is what the taker must hear of.
            let _ = files::replace_json(&dir.config(), &before);
            return Err(error);
        }
        // Until it is ready again, it is starting.
        files::remove_optional(&dir.ready())?;
        Ok(files::remove_optional(&dir.waiting())?)
    }

    fn rename(&self, _guard: &StoreLock, before: &Config, take: &Take) -> Result<(), StoreError> {
        let mut config = before.clone();
        config.created_at = Timestamp::now();
        config.spec.timeout = take.limit.timeout;
        config.spec.on_timeout = take.limit.end;
        config.spec.name.clone_from(&take.name);
        if let Some(name) = &take.name
            && let Some(id) = self.named(name)
        {
            return Err(StoreError::NameTaken { name: name.clone(), id });
        }
        let dir = self.layout.sandbox(&config.id);
        // First: what it says is removed with the sandbox, should this process die.
        files::replace_json(&dir.config(), &config)?;
        if let Some(name) = &take.name {
            let hosts = config.hosts();
            let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
            let host_key = KeyPair::load(&dir.host_key())?;
            known_hosts::add(&self.layout.known_hosts(), &hosts, host_key.public_key())?;
            self.link_name(name, &config.id)?;
        }
        Ok(())
    }

    /// Who is left of pools that were removed, or not finished, by processes that died.
    pub(super) fn dead_pools(&self) -> Result<Vec<PathBuf>, StoreError> {
        let pools = self.layout.pools();
        let mut dead = Vec::new();
        for name in files::list(&pools)? {
            let path = pools.join(&name);
            // Its maker holds it.
            let unfinished = || File::open(&path).is_ok_and(|dir| dir.try_lock().is_ok());
            if name.starts_with(".del-") || name.starts_with(".new-") && unfinished() {
                dead.push(path);
            }
        }
        Ok(dead)
    }

    /// Asks the forks of a dead pool to end, and removes it.
    pub(super) fn bury_pool(&self, _guard: &StoreLock, path: &Path) -> Result<(), StoreError> {
        let id = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let id = id.trim_start_matches(".del-").trim_start_matches(".new-");
        for sandbox in self.waiting_in(id)? {
            sandbox.ask_to_end();
        }
        Ok(files::remove_dir_optional(path)?)
    }

    /// The sandboxes that wait in the pool with this id, as far as their VMM processes live.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) fn waiting_in(&self, pool: &str) -> Result<Vec<Sandbox>, StoreError> {
        let mut waiting = Vec::new();
        for id in self.ids()? {
            let record: Option<WaitRecord> = files::read_json(&self.layout.sandbox(&id).waiting()).unwrap_or_default();
            if record.is_some_and(|record| record.pool.id == pool) && self.is_running(&id).unwrap_or_default() {
                waiting.extend(Sandbox::open(self, &id));
            }
        }
        Ok(waiting)
    }

    /// A pool that was removed and made again under the same name is another one.
    fn check_pool(&self, pool: &PoolRef) -> Result<(), StoreError> {
        let record: Option<PoolRecord> = files::read_json(&self.layout.pool(&pool.name).record())?;
        match record {
            Some(record) if record.id == pool.id => Ok(()),
            _ => Err(StoreError::UnknownPool(pool.name.clone())),
        }
    }

    fn removed_pool(&self, id: &str) -> PathBuf {
        self.layout.pools().join(format!(".del-{id}"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Fixture, config, files_below, fixture, insert, known_hosts};
    use super::*;
    use crate::sandbox::deadline::TimeLimit;
    use crate::store::lock::RunLock;
    use crate::vmm_process::args::Lifetime;

    fn pool(store: &Store, name: &str, id: &str) -> PoolRef {
        let new = store.begin_pool(id).unwrap();
        let record = PoolRecord {
            id: id.into(),
            created_at: Timestamp::UNIX_EPOCH,
            size: 1,
        };
        files::write_private(&new.dir.record(), &files::to_json(&record)).unwrap();
        let name: Name = name.parse().unwrap();
        store.insert_pool(&new, &name).unwrap();
        PoolRef { name, id: id.into() }
    }

    fn waiting(store: &Store, pool: &PoolRef) -> (SandboxId, RunLock) {
        let config = config(None);
        let lock = insert(store, &config, true).unwrap().unwrap();
        let record = WaitRecord {
            run_id: "run".into(),
            pool: pool.clone(),
        };
        store.wait_in_pool(&config.id, &record).unwrap();
        (config.id, lock)
    }

    fn take(name: Option<&str>) -> Take {
        Take {
            name: name.map(|name| name.parse().unwrap()),
            lifetime: Lifetime::Detached,
            limit: TimeLimit::default(),
        }
    }

    #[test]
    fn what_is_taken_has_its_name_everywhere_and_waits_no_more() {
        let Fixture { store, _dir } = fixture();
        let pool = pool(&store, "pool", "a");
        let (id, lock) = waiting(&store, &pool);
        let found = store.waiting_in("a").unwrap();
        assert_eq!(found.iter().map(Sandbox::id).collect::<Vec<_>>(), [&id]);

        store.take(&id, &take(Some("box"))).unwrap();
        assert!(store.waiting_in("a").unwrap().is_empty());
        assert_eq!(store.resolve("box").unwrap(), id);
        assert_eq!(Sandbox::open(&store, &id).unwrap().label(), "box");
        let hosts = known_hosts(&store);
        assert!(
            hosts.starts_with(&format!("box.msb,{id}.msb ")) && hosts.lines().count() == 1,
            "{hosts}"
        );

        store.remove_pool(&pool).unwrap();
        store.purge_pool("a").unwrap();
        drop(lock);
        store.sweep().unwrap();
        assert_eq!(
            files_below(&store.layout().home),
            [store.layout().known_hosts().display().to_string()]
        );
        assert_eq!(known_hosts(&store), "");
    }

    #[test]
    fn who_asks_for_a_name_that_is_taken_changes_nothing() {
        let Fixture { store, _dir } = fixture();
        insert(&store, &config(Some("box")), false).unwrap();
        let (id, _lock) = waiting(&store, &pool(&store, "pool", "a"));
        let before = (files_below(&store.layout().home), known_hosts(&store));
        let error = store.take(&id, &take(Some("box"))).unwrap_err();
        assert!(matches!(error, StoreError::NameTaken { .. }), "{error}");
        assert_eq!((files_below(&store.layout().home), known_hosts(&store)), before);
        assert_eq!(Sandbox::open(&store, &id).unwrap().label(), id.as_str());
        assert_eq!(store.waiting_in("a").unwrap().len(), 1);
    }

    #[test]
    fn no_fork_waits_in_a_pool_that_was_removed_though_another_has_its_name() {
        let Fixture { store, _dir } = fixture();
        let old = pool(&store, "pool", "a");
        let (_, _lock) = waiting(&store, &old);
        store.remove_pool(&old).unwrap();
        let new = pool(&store, "pool", "b");
        let config = config(None);
        insert(&store, &config, false).unwrap();
        let record = |pool: &PoolRef| WaitRecord {
            run_id: "run".into(),
            pool: pool.clone(),
        };
        let error = store.wait_in_pool(&config.id, &record(&old)).unwrap_err();
        assert!(matches!(error, StoreError::UnknownPool(_)), "{error}");
        store.wait_in_pool(&config.id, &record(&new)).unwrap();
        assert!(store.waiting_in("b").unwrap().is_empty(), "nobody holds its lock");
        assert!(matches!(store.remove_pool(&old), Err(StoreError::UnknownPool(_))));
    }

    #[test]
    fn what_dead_processes_left_of_pools_is_swept_and_what_lives_is_not() {
        let Fixture { store, _dir } = fixture();
        let made = store.begin_pool("a").unwrap();
        let removed = pool(&store, "pool", "b");
        store.remove_pool(&removed).unwrap();
        assert_eq!(files::list(&store.layout().pools()).unwrap().len(), 2);
        store.sweep().unwrap();
        assert_eq!(files::list(&store.layout().pools()).unwrap(), [".new-a"]);
        drop(made);
        store.sweep().unwrap();
        assert!(files::list(&store.layout().pools()).unwrap().is_empty());
    }
}
