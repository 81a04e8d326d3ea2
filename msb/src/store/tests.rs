use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use jiff::Timestamp;

use super::*;
use crate::SandboxSpec;

pub(super) struct Fixture {
    pub(super) _dir: tempfile::TempDir,
    pub(super) store: Store,
}

pub(super) fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout {
        home: dir.path().join("home"),
        runtime: dir.path().join("run"),
    };
    Fixture {
        store: Store::new(layout),
        _dir: dir,
    }
}

pub(super) fn config(name: Option<&str>) -> Config {
    let name = name.map(|name| name.parse().unwrap());
    let spec = SandboxSpec {
        name,
        ..SandboxSpec::default()
    };
    Config {
        id: SandboxId::random().unwrap(),
        created_at: Timestamp::now(),
        spec,
    }
}

pub(super) fn insert(store: &Store, config: &Config, transient: bool) -> Result<Option<RunLock>, StoreError> {
    let host_key = KeyPair::generate_ed25519("").unwrap();
    store.insert(
        NewSandbox {
            config,
            host_key: &host_key,
            authorized_keys: b"",
        },
        transient,
    )
}

/// Every file and link below `dir`, without the locks of the store, which stay for ever.
pub(super) fn files_below(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap().is_dir() {
                true => pending.push(entry.path()),
                false => found.push(entry.path().display().to_string()),
            }
        }
    }
    found.retain(|path| !path.ends_with("home/lock") && !path.ends_with("known_hosts.lock"));
    found
}

pub(super) fn known_hosts(store: &Store) -> String {
    std::fs::read_to_string(store.layout().known_hosts()).unwrap_or_default()
}

#[test]
fn a_sandbox_is_found_by_its_name_its_id_and_a_part_of_it() {
    let Fixture { store, _dir } = fixture();
    let config = config(Some("box"));
    insert(&store, &config, false).unwrap();
    let id = config.id.as_str();
    for reference in ["box", "box.msb", id, &format!("{id}.msb"), &id[..1], &id[..11]] {
        assert_eq!(store.resolve(reference).unwrap(), config.id, "{reference}");
    }
    for reference in [
        "",
        "bo",
        "boxx",
        "BOX",
        "box.msb.msb",
        "../sandboxes",
        "000000000000",
        "/",
    ] {
        assert!(
            matches!(store.resolve(reference), Err(StoreError::Unknown(_))),
            "{reference}"
        );
    }
}

#[test]
fn a_part_of_two_ids_is_ambiguous() {
    let Fixture { store, _dir } = fixture();
    for id in ["0123456789ab", "0123456789ac"] {
        insert(
            &store,
            &Config {
                id: id.parse().unwrap(),
                ..config(None)
            },
            false,
        )
        .unwrap();
    }
    assert!(matches!(store.resolve("01234"), Err(StoreError::Ambiguous(_))));
    assert_eq!(store.resolve("0123456789ac").unwrap().as_str(), "0123456789ac");
}

#[test]
fn of_many_creates_at_once_with_one_name_one_succeeds_and_the_others_leave_nothing() {
    let Fixture { store, _dir } = fixture();
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| insert(&store, &config(Some("box")), false).map(drop)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    assert!(
        results
            .iter()
            .filter_map(|result| result.as_ref().err())
            .all(|e| matches!(e, StoreError::NameTaken { .. }))
    );
    assert_eq!(list(&store.layout().sandboxes()).unwrap().len(), 1);
    assert_eq!(known_hosts(&store).lines().count(), 1);
}

#[test]
fn everything_is_private_and_nothing_remains_of_a_removed_sandbox() {
    let Fixture { store, _dir } = fixture();
    let config = config(Some("box"));
    insert(&store, &config, false).unwrap();
    assert!(known_hosts(&store).starts_with(&format!("box.msb,{}.msb ssh-ed25519 ", config.id)));
    let dir = store.layout().sandbox(&config.id);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&store.layout().home), 0o700);
    assert_eq!(mode(dir.path()), 0o700);
    for file in [dir.config(), dir.host_key(), dir.authorized_keys(), dir.lock()] {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
    store.remove(&config.id).unwrap();
    std::fs::remove_file(store.layout().known_hosts()).unwrap();
    assert_eq!(files_below(&store.layout().home), [""; 0]);
    assert!(matches!(store.remove(&config.id), Err(StoreError::Unknown(_))));
}

#[test]
fn a_running_sandbox_is_not_removed_and_not_started_twice() {
    let Fixture { store, _dir } = fixture();
    let config = config(None);
    insert(&store, &config, false).unwrap();
    let lock = store.acquire_run_lock(&config.id).unwrap().unwrap();
    assert!(store.acquire_run_lock(&config.id).unwrap().is_none());
    assert!(matches!(store.remove(&config.id), Err(StoreError::Running(_))));
    drop(lock);
    store.remove(&config.id).unwrap();
    assert!(matches!(
        store.acquire_run_lock(&config.id),
        Err(StoreError::Unknown(_))
    ));
}

#[test]
fn the_next_change_sweeps_what_a_dead_process_left() {
    let Fixture { store, _dir } = fixture();
    let (new, removed, kept) = (config(Some("new")), config(Some("removed")), config(Some("kept")));
    for config in [&new, &removed, &kept] {
        insert(&store, config, false).unwrap();
    }
    // As if a create had died before its last rename, and a removal after its first.
    let layout = store.layout();
    let rename = |id, to: &Path| std::fs::rename(layout.sandbox(id).path(), to).unwrap();
    rename(&new.id, layout.new_sandbox(&new.id).path());
    rename(&removed.id, &layout.removed_sandbox(&removed.id));
    // As if one had died while it pinned a key.
    let draft = layout.home.join(".known_hosts.0123456789abcdef.tmp");
    std::fs::write(&draft, "").unwrap();

    store.sweep().unwrap();
    assert!(!draft.exists());
    assert_eq!(list(&layout.sandboxes()).unwrap(), [kept.id.as_str()]);
    assert_eq!(list(&layout.names()).unwrap(), ["kept"]);
    assert_eq!(known_hosts(&store).lines().count(), 1);
}

#[test]
fn two_sandboxes_never_have_the_same_user() {
    let Fixture { store, _dir } = fixture();
    let (one, other) = (config(None), config(None));
    insert(&store, &one, false).unwrap();
    // The users follow from the last digits of the ids.
    let first = if one.id.as_str().starts_with('0') { '1' } else { '0' };
    let id: SandboxId = format!("{first}{}", &one.id.as_str()[1..]).parse().unwrap();
    assert_eq!(id.user(), one.id.user());
    let taken = insert(&store, &Config { id, ..other }, true).unwrap_err();
    assert!(
        matches!(taken, StoreError::UserTaken(ref id) if *id == one.id),
        "{taken}"
    );
    assert_eq!(list(&store.layout().sandboxes()).unwrap(), [one.id.as_str()]);
}

#[test]
fn a_transient_sandbox_lives_as_long_as_somebody_holds_it() {
    let Fixture { store, _dir } = fixture();
    let (gone, held, kept) = (config(Some("gone")), config(None), config(None));
    let drops = insert(&store, &gone, true).unwrap();
    let _holds = insert(&store, &held, true).unwrap().unwrap();
    let keeps = insert(&store, &kept, true).unwrap();
    store.keep(&kept.id).unwrap();
    drop((drops, keeps));

    store.sweep().unwrap();
    assert!(matches!(store.resolve("gone"), Err(StoreError::Unknown(_))));
    assert!(store.resolve(held.id.as_str()).is_ok());
    assert!(store.resolve(kept.id.as_str()).is_ok());
    assert_eq!(list(&store.layout().transients()).unwrap(), [held.id.as_str()]);
}

#[test]
fn sockets_of_a_dead_vmm_are_swept_and_those_of_others_are_not() {
    let Fixture { store, _dir } = fixture();
    let (dead, alive, foreign) = (config(None), config(None), config(None));
    for config in [&dead, &alive] {
        insert(&store, config, false).unwrap();
        let lock = store.acquire_run_lock(&config.id).unwrap().unwrap();
        store.create_socket_dir(&config.id, &lock).unwrap();
    }
    let _alive = store.acquire_run_lock(&alive.id).unwrap().unwrap();
    std::fs::create_dir(store.layout().sockets(&foreign.id)).unwrap();

    store.sweep().unwrap();
    let mut left = list(&store.layout().runtime).unwrap();
    left.sort();
    let mut expected = [alive.id.to_string(), foreign.id.to_string()];
    expected.sort();
    assert_eq!(left, expected);
}

#[test]
fn a_socket_path_that_does_not_fit_is_refused_before_anything_is_made() {
    let Fixture { store, _dir } = fixture();
    let layout = Layout {
        runtime: Path::new("/").join("r".repeat(90)),
        ..store.layout().clone()
    };
    let store = Store::new(layout);
    let error = insert(&store, &config(None), false).unwrap_err();
    assert!(
        matches!(error, StoreError::SocketPathTooLong { length: 116, .. }),
        "{error}"
    );
    assert!(!store.layout().home.exists());
}

#[test]
fn sockets_go_into_no_directory_that_others_may_enter() {
    let Fixture { store, _dir } = fixture();
    let config = config(None);
    insert(&store, &config, false).unwrap();
    let lock = store.acquire_run_lock(&config.id).unwrap().unwrap();
    std::fs::create_dir(&store.layout().runtime).unwrap();
    std::fs::set_permissions(&store.layout().runtime, std::fs::Permissions::from_mode(0o755)).unwrap();
    let refused = store.create_socket_dir(&config.id, &lock);
    assert!(matches!(refused, Err(StoreError::ForeignRuntimeDir(_))));
}

#[test]
fn a_create_that_fails_leaves_nothing() {
    let Fixture { store, _dir } = fixture();
    let config = config(Some("box"));
    // The name's place is a directory with something in it, so that the last but one step fails.
    std::fs::create_dir_all(store.layout().names().join("box/occupied")).unwrap();
    assert!(matches!(insert(&store, &config, false), Err(StoreError::File(_))));
    assert_eq!(list(&store.layout().sandboxes()).unwrap(), [""; 0]);
    assert_eq!(known_hosts(&store), "");
}
