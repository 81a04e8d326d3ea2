//! The SFTP client with the real agent.

mod agent;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::Duration;

use agent::Agent;
use bytes::Bytes;
use msb_ssh::client::{ClientConfig, SshClient};
use msb_ssh::sftp::{EndCause, FileAttributes, FileKind, OpenOptions, SftpClient, SftpError, StatusCode};
use msb_test_support::pattern;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const MIB: usize = 1024 * 1024;

async fn connected() -> (Agent, SshClient, SftpClient) {
    let (agent, client) = Agent::connected().await;
    let sftp = client.sftp().await.unwrap();
    (agent, client, sftp)
}

#[tokio::test]
async fn files_of_any_size_are_written_and_read_unchanged() {
    let (agent, _client, sftp) = connected().await;
    let path = agent.path("file");
    for length in [0, 1, 32_768, 261_119, 261_120, 261_121, 8 * MIB + 3] {
        let content = pattern(length);
        sftp.write(&path, content.clone()).await.unwrap();
        assert!(fs::read(&path).unwrap() == content, "written: {length}");
        assert!(sftp.read(&path).await.unwrap() == content, "read: {length}");
    }
}

#[tokio::test]
async fn streams_carry_what_does_not_fit_in_memory_at_once() {
    const LENGTH: usize = 80 * MIB;
    let (agent, _client, sftp) = connected().await;
    let path = agent.path("large");
    let piece = pattern(MIB + 7);
    let mut writer = sftp.writer(&path).await.unwrap();
    let mut written = 0;
    while written < LENGTH {
        let length = piece.len().min(LENGTH - written);
        writer.write_all(&piece[..length]).await.unwrap();
        written += length;
    }
    writer.shutdown().await.unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), LENGTH as u64);

    let error = sftp.read(&path).await.unwrap_err();
    assert!(matches!(error, SftpError::TooLarge { .. }), "{error}");

    let mut reader = sftp.reader(&path).await.unwrap();
    let mut buffer = vec![0; piece.len()];
    let mut read = 0;
    while read < LENGTH {
        let length = piece.len().min(LENGTH - read);
        reader.read_exact(&mut buffer[..length]).await.unwrap();
        assert!(buffer[..length] == piece[..length], "at {read}");
        read += length;
    }
    assert_eq!(reader.read(&mut buffer).await.unwrap(), 0, "the end stays the end");
    assert_eq!(reader.read(&mut buffer).await.unwrap(), 0);
    reader.close().await.unwrap();
}

#[tokio::test]
async fn a_file_without_a_size_is_read_to_its_end() {
    let (_agent, _client, sftp) = connected().await;
    let expected = fs::read("/proc/filesystems").unwrap();
    assert_eq!(fs::metadata("/proc/filesystems").unwrap().len(), 0);
    assert_eq!(sftp.read("/proc/filesystems").await.unwrap(), expected);
}

#[tokio::test]
async fn what_was_gathered_by_small_writes_keeps_its_place_between_large_ones() {
    let (agent, _client, sftp) = connected().await;
    let path = agent.path("mixed");
    let mut writer = sftp.writer(&path).await.unwrap();
    writer.write_all(b"small ").await.unwrap();
    writer.write_chunk(Bytes::from_static(b"large ")).await.unwrap();
    writer.write_all(b"small").await.unwrap();
    writer.close().await.unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"small large small");
}

#[tokio::test]
async fn directories_are_made_listed_and_removed() {
    let (agent, _client, sftp) = connected().await;
    let path = agent.path("directory");
    sftp.mkdir(&path).await.unwrap();
    // More than one page.
    for index in 0..300 {
        fs::write(path.join(format!("{index}")), "").unwrap();
    }
    let mut names: Vec<u32> = sftp
        .list(&path)
        .await
        .unwrap()
        .into_iter()
        .map(|entry| entry.name.into_string().unwrap().parse().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(names, (0..300).collect::<Vec<_>>());
    let error = sftp.remove_dir(&path).await.unwrap_err();
    assert_eq!(error.status().unwrap().code, StatusCode::Failure, "{error}");
    for index in 0..300 {
        sftp.remove_file(path.join(format!("{index}"))).await.unwrap();
    }
    assert_eq!(sftp.list(&path).await.unwrap(), []);
    sftp.remove_dir(&path).await.unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn names_are_bytes() {
    let (agent, _client, sftp) = connected().await;
    let name = OsStr::from_bytes(b"latin-\xe9 '\"\n\xff");
    let path = agent.path(name);
    sftp.write(&path, "odd").await.unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"odd");
    let listed = sftp.list(agent.path("")).await.unwrap();
    assert!(listed.iter().any(|entry| entry.name == name), "{listed:?}");
    let link = agent.path("link");
    sftp.symlink(name, &link).await.unwrap();
    assert_eq!(sftp.read_link(&link).await.unwrap(), name);
    assert_eq!(sftp.real_path(&link).await.unwrap(), fs::canonicalize(&path).unwrap());
}

#[tokio::test]
async fn a_rename_replaces_as_rename_does() {
    let (agent, _client, sftp) = connected().await;
    fs::write(agent.path("from"), "new").unwrap();
    fs::write(agent.path("to"), "old").unwrap();
    sftp.rename(agent.path("from"), agent.path("to")).await.unwrap();
    assert_eq!(fs::read(agent.path("to")).unwrap(), b"new");
    assert!(!agent.path("from").exists());
}

#[tokio::test]
async fn attributes_are_told_and_changed_and_links_are_themselves() {
    let (agent, _client, sftp) = connected().await;
    let (path, link) = (agent.path("file"), agent.path("link"));
    fs::write(&path, "12345").unwrap();
    symlink("file", &link).unwrap();
    sftp.set_permissions(&link, 0o640).await.unwrap();
    let times = FileAttributes {
        times: Some((1_000_000_000, 1_100_000_000)),
        ..FileAttributes::default()
    };
    sftp.set_attributes(&path, &times).await.unwrap();
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o640);
    assert_eq!((metadata.atime(), metadata.mtime()), (1_000_000_000, 1_100_000_000));

    let told = sftp.stat(&link).await.unwrap();
    assert_eq!(
        (told.kind(), told.size, told.mode()),
        (FileKind::File, Some(5), Some(0o640))
    );
    assert_eq!(told.owner, Some((metadata.uid(), metadata.gid())));
    assert_eq!(sftp.lstat(&link).await.unwrap().kind(), FileKind::Symlink);
    assert!(sftp.stat(agent.path("")).await.unwrap().is_directory());
    assert_eq!(sftp.stat("/dev/null").await.unwrap().kind(), FileKind::Special);
}

#[tokio::test]
async fn a_file_is_read_and_written_anywhere() {
    let (agent, _client, sftp) = connected().await;
    let path = agent.path("file");
    let options = OpenOptions::new().read().write().create_new().mode(0o600);
    let file = sftp.open_file(&path, &options).await.unwrap();
    file.write_at(4, Bytes::from_static(b"later")).await.unwrap();
    file.write_at(0, Bytes::from_static(b"now ")).await.unwrap();
    assert_eq!(file.read_at(2, 5).await.unwrap().unwrap(), &b"w lat"[..]);
    assert_eq!(file.read_at(100, 5).await.unwrap(), None);
    assert_eq!(file.attributes().await.unwrap().size, Some(9));
    file.set_attributes(&FileAttributes {
        size: Some(3),
        ..FileAttributes::default()
    })
    .await
    .unwrap();
    file.sync().await.unwrap();
    file.close().await.unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"now");
    let again = sftp.open_file(&path, &options).await.unwrap_err();
    assert_eq!(again.status().unwrap().message, "File exists");
}

#[tokio::test]
async fn a_refusal_names_the_operation_the_path_and_the_reason() {
    let (agent, _client, sftp) = connected().await;
    let path = agent.path("none");
    let error = sftp.read(&path).await.unwrap_err();
    assert!(error.is_not_found() && !error.is_end());
    let expected = format!("cannot open {path:?}: No such file or directory");
    assert_eq!(error.to_string(), expected);
    let error = sftp.mkdir(agent.path("")).await.unwrap_err();
    assert!(error.to_string().contains("cannot make the directory"), "{error}");
    let error = sftp.read(agent.path("")).await.unwrap_err();
    assert!(error.to_string().contains("Is a directory"), "{error}");
    sftp.write(&path, "still alive").await.unwrap();
}

#[tokio::test]
async fn a_write_that_fails_is_told_at_the_latest_when_the_file_is_closed() {
    let (_agent, _client, sftp) = connected().await;
    let options = OpenOptions::new().write();
    let mut writer = sftp.open_file("/dev/full", &options).await.unwrap().into_writer();
    writer.write_all(&[7; 100]).await.unwrap();
    let error = writer.close().await.unwrap_err();
    assert!(error.to_string().contains("No space left on device"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_one_session_do_not_wait_for_each_other() {
    let (agent, _client, sftp) = connected().await;
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..40_usize {
        let (sftp, path) = (sftp.clone(), agent.path(format!("{index}")));
        tasks.spawn(async move {
            let content = pattern(index * 10_000);
            sftp.write(&path, content.clone()).await.unwrap();
            assert!(sftp.read(&path).await.unwrap() == content, "{index}");
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_up_half_way_leaves_no_handle_open() {
    let (agent, _client, sftp) = connected().await;
    let path = agent.path("file");
    fs::write(&path, pattern(MIB)).unwrap();
    // More than a server has handles.
    for round in 0..600 {
        let mut open = Box::pin(sftp.reader(&path));
        // Polled once, the request is on its way.
        tokio::select! {
            biased;
            _ = &mut open => {}
            () = std::future::ready(()) => {}
        }
        let (before, after) = if round % 2 == 0 {
            (Some(open), None)
        } else {
            (None, Some(open))
        };
        // Nobody takes the handle, whether it comes after the drop or before: this is answered later than it.
        drop(before);
        sftp.stat(&path).await.unwrap();
        drop(after);
    }
    for _ in 0..600 {
        let mut reader = sftp.reader(&path).await.unwrap();
        reader.next_chunk().await.unwrap();
    }
    assert_eq!(sftp.read(&path).await.unwrap().len(), MIB);
}

#[tokio::test]
async fn a_session_that_is_closed_ends_and_says_so() {
    let (agent, client, sftp) = connected().await;
    let clone = sftp.clone();
    sftp.close().await;
    let error = clone.stat("/").await.unwrap_err();
    let SftpError::Ended { cause, .. } = &error else {
        panic!("{error}")
    };
    assert!(matches!(**cause, EndCause::Closed) && error.is_end());
    let another = client.sftp().await.unwrap();
    another
        .write(agent.path("file"), "the connection lives on")
        .await
        .unwrap();
}

#[tokio::test]
async fn an_agent_that_dies_ends_what_waits_with_the_reason() {
    let (mut agent, _client, sftp) = connected().await;
    // It never ends.
    let mut reader = sftp.reader("/dev/zero").await.unwrap();
    reader.next_chunk().await.unwrap().unwrap();
    agent.kill();
    let error = loop {
        match reader.next_chunk().await {
            Ok(chunk) => assert!(chunk.is_some(), "no end of the file is invented"),
            Err(error) => break error,
        }
    };
    assert!(error.is_end(), "{error}");
    let waiting = tokio::time::timeout(Duration::from_secs(60), sftp.stat("/")).await;
    assert!(waiting.expect("nothing hangs").unwrap_err().is_end());
}

#[tokio::test]
async fn a_client_without_sftp_opens_no_session() {
    let (agent, stream) = Agent::start();
    let config = ClientConfig {
        sftp: false,
        ..agent.config()
    };
    let client = SshClient::connect(stream, config).await.unwrap();
    assert!(matches!(client.sftp().await, Err(SftpError::Disabled)));
}
