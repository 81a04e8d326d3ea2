//! What changes in a directory, with the real agent.

mod agent;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use agent::Agent;
use msb_ssh::watch::{WatchError, WatchEvent, WatchOptions, Watcher};

const RECURSIVE: WatchOptions = WatchOptions { recursive: true };

fn created(path: impl AsRef<Path>, is_dir: bool) -> WatchEvent {
    let path = path.as_ref().into();
    WatchEvent::Created { path, is_dir }
}

async fn next(watcher: &mut Watcher) -> WatchEvent {
    watcher.next().await.unwrap().unwrap()
}

#[tokio::test]
async fn changes_come_as_they_happen_until_nothing_is_left_to_watch() {
    let (agent, client) = Agent::connected().await;
    let directory = agent.path("watched");
    fs::create_dir(&directory).unwrap();
    let mut watcher = Watcher::start(&client, &directory, RECURSIVE).await.unwrap();
    // It lasts as long as it is used.
    drop(client);
    let odd = Path::new(std::ffi::OsStr::from_bytes(b"\xff\nodd"));
    fs::create_dir(directory.join(odd)).unwrap();
    assert_eq!(next(&mut watcher).await, created(odd, true));
    fs::rename(directory.join(odd), directory.join("even")).unwrap();
    let renamed = WatchEvent::Renamed {
        from: odd.into(),
        to: "even".into(),
        is_dir: true,
    };
    assert_eq!(next(&mut watcher).await, renamed);
    fs::write(directory.join("even/file"), "content").unwrap();
    assert_eq!(next(&mut watcher).await, created("even/file", false));
    let path = PathBuf::from("even/file");
    assert_eq!(next(&mut watcher).await, WatchEvent::Modified { path });
    fs::rename(directory.join("even"), agent.path("outside")).unwrap();
    let (path, is_dir) = ("even".into(), true);
    assert_eq!(next(&mut watcher).await, WatchEvent::Removed { path, is_dir });
    fs::remove_dir(&directory).unwrap();
    let (path, is_dir) = (PathBuf::new(), true);
    assert!(
        matches!(next(&mut watcher).await, WatchEvent::Removed { path: of, .. } if of == path),
        "{is_dir}"
    );
    assert_eq!(watcher.next().await.unwrap(), None);
    assert_eq!(watcher.next().await.unwrap(), None);
}

#[tokio::test]
async fn what_cannot_be_watched_is_named() {
    let (agent, client) = Agent::connected().await;
    let missing = agent.path("missing");
    let error = Watcher::start(&client, &missing, RECURSIVE).await.unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("/missing") && message.contains("No such file"),
        "{message}"
    );
    for path in ["", "a\0b", &"a".repeat(5000)] {
        let error = Watcher::start(&client, path, RECURSIVE).await.unwrap_err();
        assert!(matches!(error, WatchError::Path(_)), "{error}");
    }
}

#[tokio::test]
async fn a_slow_listener_is_told_of_all_that_it_lost() {
    const FILES: usize = 60_000;
    let (agent, client) = Agent::connected().await;
    let directory = agent.path("watched");
    fs::create_dir(&directory).unwrap();
    let mut watcher = Watcher::start(&client, &directory, WatchOptions::default())
        .await
        .unwrap();
    let name = directory.join("long".repeat(20));
    // Nobody listens meanwhile.
    for _ in 0..FILES {
        fs::write(&name, "").unwrap();
        fs::remove_file(&name).unwrap();
    }
    while !matches!(next(&mut watcher).await, WatchEvent::Lost { .. }) {}
    fs::write(directory.join("last"), "").unwrap();
    while next(&mut watcher).await != created("last", false) {}
}
