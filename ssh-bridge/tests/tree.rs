//! Trees to and from the real agent.

mod agent;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use agent::Agent;
use msb_ssh::client::SshClient;
use msb_ssh::sftp::SftpClient;
use msb_ssh::sftp::tree::{TreeError, TreeEvent, TreeOptions};

async fn connected() -> (Agent, SshClient, SftpClient) {
    let (agent, client) = Agent::connected().await;
    let sftp = client.sftp().await.unwrap();
    (agent, client, sftp)
}

/// A tree of files that are empty, large, many, executable, oddly named, linked and nested.
fn make_tree(root: &Path) {
    fs::create_dir_all(root.join("deep/er/est")).unwrap();
    fs::create_dir(root.join("empty directory")).unwrap();
    for length in [0, 1, 261_120, 261_121, 3_000_000] {
        let content: Vec<u8> = (0..length).map(|index| u8::try_from(index % 251).unwrap()).collect();
        fs::write(root.join(format!("deep/{length}")), content).unwrap();
    }
    for index in 0..200 {
        fs::write(
            root.join(format!("deep/er/{index}")),
            format!("{index}\n").repeat(index),
        )
        .unwrap();
    }
    fs::write(root.join(OsStr::from_bytes(b"latin-\xe9 '\"\n")), "odd").unwrap();
    fs::write(root.join("script"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(root.join("script"), fs::Permissions::from_mode(0o751)).unwrap();
    symlink("deep/er", root.join("link")).unwrap();
    symlink("/nonexistent/far", root.join("deep/dangling")).unwrap();
    fs::write(root.join("deep/er/est/read only"), "").unwrap();
    fs::set_permissions(root.join("deep/er/est"), fs::Permissions::from_mode(0o555)).unwrap();
}

/// Lets a test that is not root's remove it.
fn release(root: &Path) {
    let _ = fs::set_permissions(root.join("deep/er/est"), fs::Permissions::from_mode(0o755));
}

fn assert_same(left: &Path, right: &Path) {
    let diff = Command::new("diff")
        .args(["-r", "--no-dereference"])
        .args([left, right])
        .output()
        .unwrap();
    assert!(diff.status.success(), "{}", String::from_utf8_lossy(&diff.stdout));
    for name in ["script", "deep", "deep/er/est"] {
        let mode = |root: &Path| root.join(name).metadata().unwrap().mode() & 0o777;
        assert_eq!(mode(left), mode(right), "{name}");
    }
}

#[tokio::test]
async fn a_tree_goes_there_and_back_unchanged_and_again_over_itself() {
    let (agent, _client, sftp) = connected().await;
    let (tree, there, back) = (agent.path("tree"), agent.path("there"), agent.path("back"));
    make_tree(&tree);
    let options = TreeOptions::default();
    for _ in 0..2 {
        let up = sftp.upload(&tree, &there, &options).await.unwrap();
        assert_same(&tree, &there);
        let down = sftp.download(&there, &back, &options).await.unwrap();
        assert_same(&tree, &back);
        assert_eq!((up.files, up.failed), (208, 0));
        assert_eq!(up, down);
    }
    for root in [tree, there, back] {
        release(&root);
    }
}

#[tokio::test]
async fn what_is_preserved_are_modes_and_times() {
    let (agent, _client, sftp) = connected().await;
    let (tree, there, back) = (agent.path("tree"), agent.path("there"), agent.path("back"));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), "content").unwrap();
    let touch = Command::new("touch")
        .args(["-d", "2001-02-03 04:05:06 UTC"])
        .args([tree.join("file"), tree.clone()])
        .status();
    assert!(touch.unwrap().success());
    fs::set_permissions(tree.join("file"), fs::Permissions::from_mode(0o4777)).unwrap();
    fs::set_permissions(&tree, fs::Permissions::from_mode(0o777)).unwrap();
    let options = TreeOptions {
        preserve: true,
        ..TreeOptions::default()
    };
    sftp.upload(&tree, &there, &options).await.unwrap();
    sftp.download(&there, &back, &options).await.unwrap();
    for (root, file_mode) in [(&there, 0o4777), (&back, 0o777)] {
        let (directory, file) = (root.metadata().unwrap(), root.join("file").metadata().unwrap());
        assert_eq!((directory.mode() & 0o7777, file.mode() & 0o7777), (0o777, file_mode));
        assert_eq!((directory.mtime(), file.mtime()), (981_173_106, 981_173_106));
    }
}

#[tokio::test]
async fn a_single_file_goes_through_links_of_the_user_and_to_devices() {
    let (agent, _client, sftp) = connected().await;
    let options = TreeOptions::default();
    fs::write(agent.path("file"), "content").unwrap();
    symlink("file", agent.path("link")).unwrap();
    symlink("target", agent.path("to")).unwrap();
    sftp.download(agent.path("link"), agent.path("to"), &options)
        .await
        .unwrap();
    assert_eq!(fs::read(agent.path("target")).unwrap(), b"content");
    sftp.upload(agent.path("link"), agent.path("up"), &options)
        .await
        .unwrap();
    assert!(agent.path("up").symlink_metadata().unwrap().is_file());
    sftp.download(agent.path("file"), "/dev/null", &options).await.unwrap();
    let made_up = sftp.download("/proc/filesystems", agent.path("made up"), &options);
    assert!(made_up.await.unwrap().bytes > 0);
}

#[tokio::test]
async fn what_cannot_be_copied_is_told_and_the_rest_is_copied() {
    let (agent, _client, sftp) = connected().await;
    let (tree, there, back) = (agent.path("tree"), agent.path("there"), agent.path("back"));
    fs::create_dir(&tree).unwrap();
    for name in ["a", "z"] {
        fs::write(tree.join(name), name).unwrap();
    }
    let _socket = std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap();
    // A directory is where the file shall go.
    fs::create_dir_all(there.join("a/full")).unwrap();
    let failures = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&failures);
    let options = TreeOptions {
        observer: Some(Arc::new(move |event| {
            if let TreeEvent::Failed(error) = event {
                told.lock().unwrap().push(error.to_string());
            }
        })),
        ..TreeOptions::default()
    };
    let up = sftp.upload(&tree, &there, &options).await.unwrap();
    assert_eq!((up.files, up.failed), (1, 2));
    assert_eq!(fs::read(there.join("z")).unwrap(), b"z");
    let failures = std::mem::take(&mut *failures.lock().unwrap());
    let named = |path: PathBuf| failures.iter().any(|failure| failure.contains(&format!("{path:?}")));
    assert!(named(tree.join("socket")) && named(there.join("a")), "{failures:?}");

    let down = sftp.download(&tree, &back, &options).await.unwrap();
    assert_eq!((down.files, down.failed), (2, 1));
    assert_eq!(fs::read(back.join("z")).unwrap(), b"z");
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let (agent, _client, sftp) = connected().await;
    let (none, to) = (agent.path("none"), agent.path("to"));
    let options = TreeOptions::default();
    let up = sftp.upload(&none, &to, &options).await.unwrap_err();
    assert!(matches!(&up, TreeError::Local { path, .. } if *path == none), "{up}");
    let down = sftp.download(&none, &to, &options).await.unwrap_err();
    assert!(
        matches!(&down, TreeError::Sftp(error) if error.is_not_found()),
        "{down}"
    );
    assert!(!to.exists());
}

#[tokio::test]
async fn an_agent_that_dies_ends_the_copy() {
    let (mut agent, _client, sftp) = connected().await;
    let (tree, back) = (agent.path("tree"), agent.path("back"));
    make_tree(&tree);
    let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
    let options = TreeOptions {
        observer: Some(Arc::new(move |_| {
            let _ = begun.send(());
        })),
        ..TreeOptions::default()
    };
    let (from, to) = (tree.clone(), back.clone());
    let copy = tokio::spawn(async move { sftp.download(from, to, &options).await });
    begins.recv().await.unwrap();
    agent.kill();
    let error = copy.await.unwrap().unwrap_err();
    assert!(matches!(&error, TreeError::Sftp(error) if error.is_end()), "{error}");
    release(&tree);
    release(&back);
}
