//! The SFTP client against servers that lie.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use msb_ssh::client::{SshClient, SshExecOptions};
use msb_ssh::sftp::tree::{TreeEvent, TreeOptions};
use msb_ssh::sftp::{EndCause, SftpClient, SftpError};

use super::server::{Observed, Server};

const STAT: u8 = 17;
const READLINK: u8 = 19;
const OPEN: u8 = 3;
const READ: u8 = 5;
const OPENDIR: u8 = 11;
const READDIR: u8 = 12;

const DIRECTORY: u32 = 0o040_755;
const LINK: u32 = 0o120_777;
const FILE: u32 = 0o100_644;

/// A packet with its length.
fn packet(kind: u8, fields: &[&[u8]]) -> Vec<u8> {
    let body = fields.concat();
    let mut packet = u32::try_from(1 + body.len()).unwrap().to_be_bytes().to_vec();
    packet.push(kind);
    packet.extend(body);
    packet
}

fn string(bytes: &[u8]) -> Vec<u8> {
    let mut string = u32::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
    string.extend(bytes);
    string
}

fn greeting() -> Vec<u8> {
    packet(2, &[&3_u32.to_be_bytes()])
}

/// The number of a request.
fn id(request: &[u8]) -> [u8; 4] {
    request[1..5].try_into().unwrap()
}

fn status(request: &[u8], code: u32) -> Vec<u8> {
    packet(101, &[&id(request), &code.to_be_bytes(), &string(b""), &string(b"")])
}

fn handle(request: &[u8]) -> Vec<u8> {
    packet(102, &[&id(request), &string(b"h")])
}

/// Attributes that are a mode.
fn mode(mode: u32) -> Vec<u8> {
    [4_u32.to_be_bytes(), mode.to_be_bytes()].concat()
}

fn names(request: &[u8], names: &[(&[u8], u32)]) -> Vec<u8> {
    let entries = names
        .iter()
        .flat_map(|&(name, kind)| [string(name), string(b""), mode(kind)].concat());
    let count = u32::try_from(names.len()).unwrap().to_be_bytes();
    packet(104, &[&id(request), &count, &entries.collect::<Vec<_>>()])
}

async fn connected(
    answer: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static,
) -> (SshClient, Result<SftpClient, SftpError>) {
    let (server, _) = Server::start(Observed {
        sftp: Some(Box::new(answer)),
        ..Observed::default()
    });
    let config = server.config();
    let client = server.connect(config).await.unwrap();
    let sftp = tokio::time::timeout(Duration::from_secs(60), client.sftp()).await;
    (client, sftp.expect("nothing hangs"))
}

/// The reason why a session ended.
fn protocol(error: &SftpError) -> &'static str {
    let SftpError::Ended { cause, .. } = error else {
        panic!("{error}")
    };
    let EndCause::Protocol(reason) = **cause else {
        panic!("{cause}")
    };
    reason
}

#[tokio::test]
async fn what_does_not_greet_as_sftp_is_refused() {
    for answer in [
        |_: &[u8]| b"Welcome to the guest!\r\n".to_vec(),
        |_: &[u8]| packet(2, &[&2_u32.to_be_bytes()]),
        |_: &[u8]| packet(2, &[]),
        |_: &[u8]| packet(101, &[&[0; 4]]),
    ] {
        let (_client, sftp) = connected(answer).await;
        protocol(&sftp.unwrap_err());
    }
}

#[tokio::test]
async fn a_reply_that_nobody_asked_for_ends_the_session() {
    for answer in [
        |_: &[u8]| packet(101, &[&[9; 4], &[0; 4]]),
        |_: &[u8]| packet(77, &[&[0; 4]]),
        |request: &[u8]| packet(104, &[&id(request), &[0, 0, 0, 1]]),
        |_: &[u8]| u32::MAX.to_be_bytes().to_vec(),
    ] {
        let (client, sftp) = connected(move |request| match request[0] {
            1 => greeting(),
            _ => answer(request),
        })
        .await;
        let sftp = sftp.unwrap();
        protocol(&sftp.stat("/").await.unwrap_err());
        protocol(&sftp.stat("/").await.unwrap_err());
        assert!(
            client.exec("status 0", SshExecOptions::default()).await.is_ok(),
            "the connection lives on"
        );
    }
}

#[tokio::test]
async fn a_reply_of_the_wrong_kind_or_length_is_an_error_of_its_request_only() {
    let (_client, sftp) = connected(|request| match request[0] {
        1 => greeting(),
        STAT => handle(request),
        OPEN => handle(request),
        READ => packet(103, &[&id(request), &string(&[7; 200_000])]),
        READLINK => names(request, &[(b"a", LINK), (b"b", LINK)]),
        _ => status(request, 0),
    })
    .await;
    let sftp = sftp.unwrap();
    for error in [
        sftp.stat("/").await.unwrap_err(),
        sftp.read_link("/").await.unwrap_err(),
        // The chunk of a server without limits is 32 KiB.
        sftp.read("/").await.unwrap_err(),
        // A status that says all went well is no handle.
        sftp.read_dir("/").await.unwrap_err(),
    ] {
        assert!(matches!(error, SftpError::Nonsense { .. }), "{error}");
    }
    sftp.mkdir("/").await.unwrap();
}

#[tokio::test]
async fn names_that_lead_elsewhere_are_no_names() {
    for bad in [&b"../outside"[..], b"/outside", b"", b"a\0b"] {
        let (_client, sftp) = connected(move |request| match request[0] {
            1 => greeting(),
            STAT => packet(105, &[&id(request), &mode(DIRECTORY)]),
            OPENDIR => handle(request),
            READDIR => names(request, &[(bad, FILE)]),
            _ => status(request, 0),
        })
        .await;
        let directory = tempfile::tempdir().unwrap();
        let copy = directory.path().join("copy");
        let error = sftp
            .unwrap()
            .download("x", &copy, &TreeOptions::default())
            .await
            .unwrap_err();
        assert!(error.to_string().contains("no file can have"), "{error}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert_eq!(fs::read_dir(copy).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn a_link_and_then_a_directory_of_the_same_name_lead_no_download_out() {
    let (_client, sftp) = connected(|request| match request[0] {
        1 => greeting(),
        STAT => packet(105, &[&id(request), &mode(DIRECTORY)]),
        OPENDIR => handle(request),
        // The same for each directory: it never ends by itself.
        READDIR => names(request, &[(b"way", LINK), (b"way", DIRECTORY), (b"file", FILE)]),
        READLINK => names(request, &[(b"../outside", LINK)]),
        OPEN => handle(request),
        READ => status(request, 1),
        _ => status(request, 0),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let outside = directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let (failed, mut failures) = tokio::sync::mpsc::unbounded_channel();
    let options = TreeOptions {
        observer: Some(Arc::new(move |event| {
            if let TreeEvent::Failed(error) = event {
                let _ = failed.send(error.to_string());
            }
        })),
        ..TreeOptions::default()
    };
    let (sftp, copy) = (sftp.unwrap(), directory.path().join("copy"));
    let copying = tokio::spawn(async move { sftp.download("x", copy, &options).await });
    for _ in 0..20 {
        let failure = failures.recv().await.unwrap();
        assert!(failure.contains("way"), "{failure}");
    }
    copying.abort();
    assert_eq!(fs::read_dir(outside).unwrap().count(), 0);
}

#[tokio::test]
async fn a_tree_without_a_bottom_ends_at_a_depth() {
    let is_new = AtomicBool::new(false);
    let (_client, sftp) = connected(move |request| match request[0] {
        1 => greeting(),
        STAT => packet(105, &[&id(request), &mode(DIRECTORY)]),
        OPENDIR => {
            is_new.store(true, Ordering::SeqCst);
            handle(request)
        }
        READDIR if is_new.swap(false, Ordering::SeqCst) => names(request, &[(b"d", DIRECTORY)]),
        READDIR => status(request, 1),
        _ => status(request, 0),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("copy");
    let copied = sftp.unwrap().download("x", &copy, &TreeOptions::default()).await;
    assert_eq!(copied.unwrap().failed, 1);
    let mut deepest = copy;
    let mut depth = 0;
    while deepest.join("d").is_dir() {
        deepest.push("d");
        depth += 1;
    }
    assert_eq!(depth, 255);
}

#[tokio::test]
async fn a_server_without_extensions_is_asked_for_none() {
    const RENAME: u8 = 18;
    let kinds = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = Arc::clone(&kinds);
    let (_client, sftp) = connected(move |request| {
        seen.lock().unwrap().push(request[0]);
        match request[0] {
            1 => greeting(),
            _ => status(request, 0),
        }
    })
    .await;
    sftp.unwrap().rename("a", "b").await.unwrap();
    assert_eq!(*kinds.lock().unwrap(), [1, RENAME]);
}
