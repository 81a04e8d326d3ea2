//! `Sandbox::files` with the real agent.

mod guest;

use std::fs;
use std::path::Path;

use guest::Guest;
use msb::files::sftp::FileKind;
use msb::files::sftp::tree::TreeOptions;
use msb::files::{WatchEvent, WatchOptions};
use msb::processes::RunOptions;
use msb::ssh::ExitStatus;

#[tokio::test]
async fn files_are_written_found_renamed_and_removed() {
    let guest = Guest::new();
    let files = guest.sandbox.files().with_options(guest.options());
    let file = guest.path("new/deep/file");
    files.write(&file, "content").await.unwrap();
    assert_eq!(files.read(&file).await.unwrap(), b"content");
    assert_eq!(files.stat(&file).await.unwrap().size, Some(7));
    let other = guest.path("new/deep/a");
    files.rename(&file, &other).await.unwrap();
    assert!(files.exists(&other).await.unwrap() && !files.exists(&file).await.unwrap());
    assert!(files.stat(&file).await.unwrap_err().is_not_found());
    files.write(&file, "").await.unwrap();
    let names = files.list(guest.path("new/deep")).await.unwrap();
    let names: Vec<_> = names.iter().map(|entry| entry.name.to_str().unwrap()).collect();
    assert_eq!(names, ["a", "file"]);
    files.close().await;

    assert!(!files.make_dir(guest.path("new/deep")).await.unwrap());
    assert!(files.make_dir(guest.path("new/deep/b/c")).await.unwrap());
    let error = files.make_dir(guest.path("new/deep/a/b")).await.unwrap_err();
    assert!(error.to_string().contains("new/deep/a"), "{error}");
    files.remove(&other).await.unwrap();
    assert!(files.remove(&other).await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn a_tree_is_removed_and_what_its_links_lead_to_is_not() {
    let guest = Guest::new();
    let files = guest.sandbox.files().with_options(guest.options());
    let (tree, outside) = (guest.path("tree"), guest.path("outside"));
    fs::create_dir_all(tree.join("a/b/c")).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("kept"), "").unwrap();
    for number in 0..300 {
        fs::write(tree.join(format!("a/{number}")), "").unwrap();
    }
    for link in [tree.join("a/b/link"), guest.path("link")] {
        std::os::unix::fs::symlink(&outside, link).unwrap();
    }
    std::os::unix::fs::symlink("nowhere", guest.path("dangling")).unwrap();
    assert!(files.exists(guest.path("dangling")).await.unwrap());
    for path in ["tree", "link", "dangling"] {
        files.remove(guest.path(path)).await.unwrap();
        assert!(fs::symlink_metadata(guest.path(path)).is_err(), "{path}");
    }
    assert!(outside.join("kept").exists());
}

#[tokio::test]
async fn trees_are_copied_and_what_changes_is_told() {
    let guest = Guest::new();
    let files = guest.sandbox.files().with_options(guest.options());
    let (here, there, back) = (guest.path("here"), guest.path("there"), guest.path("back"));
    fs::create_dir_all(here.join("nested")).unwrap();
    fs::write(here.join("nested/file"), "content").unwrap();
    fs::create_dir(&there).unwrap();
    let mut watcher = files.watch(&there, WatchOptions { recursive: true }).await.unwrap();

    let options = TreeOptions::default();
    let copied = files.upload(&here, there.join("copy"), &options).await.unwrap();
    assert_eq!((copied.files, copied.bytes, copied.failed), (1, 7, 0));
    let file = Path::new("copy/nested/file");
    while !matches!(watcher.next().await.unwrap(), Some(WatchEvent::Created { path, is_dir: false }) if path == file) {}
    files.download(there.join("copy"), &back, &options).await.unwrap();
    assert_eq!(fs::read(back.join("nested/file")).unwrap(), b"content");
    let nested = files.stat(there.join("copy/nested")).await.unwrap();
    assert_eq!(nested.kind(), FileKind::Directory);
}

#[tokio::test]
async fn calls_may_be_made_from_any_thread() {
    let guest = Guest::new();
    let files = guest.sandbox.files().with_options(guest.options());
    let path = guest.path("file");
    let writing = {
        let (files, path) = (files.clone(), path.clone());
        tokio::spawn(async move { files.write(path, "content").await })
    };
    writing.await.unwrap().unwrap();
    let removing = tokio::spawn(async move { files.remove(path).await });
    removing.await.unwrap().unwrap();
    assert!(!guest.path("file").exists());
    let commands = guest.sandbox.commands().with_options(guest.options());
    let running = tokio::spawn(async move {
        commands.kill(u32::MAX, "TERM").await?;
        commands.run("exit 3", RunOptions::default()).await
    });
    let output = running.await.unwrap();
    assert_eq!(output.unwrap().end.status, ExitStatus::Code(3));
}
