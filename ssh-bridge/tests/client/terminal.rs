//! Attaching a terminal, a real one of the kernel's.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use msb_ssh::client::{AttachEnd, ClientError, ExitStatus, Program, SshAttachOptions, Stdio};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use super::server::connected;

/// A terminal of a size that is not the usual one.
fn terminal() -> (File, OwnedFd) {
    let (master, slave) = msb_test_support::terminal();
    tcsetwinsize(
        &slave,
        Winsize {
            ws_col: 100,
            ws_row: 30,
            ws_xpixel: 0,
            ws_ypixel: 0,
        },
    )
    .unwrap();
    (master, slave)
}

fn echoes(terminal: &OwnedFd) -> bool {
    tcgetattr(terminal).unwrap().local_modes.contains(LocalModes::ECHO)
}

fn read_line(master: &mut File) -> String {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        master.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

/// Attaches to the shell, and lets `user` act at the terminal meanwhile.
async fn attach(
    options: SshAttachOptions,
    user: impl FnOnce(&mut File, &OwnedFd) + Send + 'static,
) -> (Result<AttachEnd, ClientError>, bool) {
    let client = connected().await;
    let (mut master, slave) = terminal();
    let stdio = Stdio::new(slave.as_fd(), slave.as_fd(), slave.as_fd()).unwrap();
    let seen = slave.try_clone().unwrap();
    let user = tokio::task::spawn_blocking(move || {
        user(&mut master, &seen);
        master
    });
    let options = SshAttachOptions {
        term: Some("xterm".into()),
        ..options
    };
    let end = client.attach_program(&Program::Shell, options, &stdio).await;
    let _master = user.await.unwrap();
    (end, echoes(&slave))
}

#[tokio::test]
async fn a_terminal_is_raw_while_it_is_attached_and_follows_its_size() {
    let (end, echoes_after) = attach(SshAttachOptions::default(), |master, slave| {
        assert_eq!(read_line(master), "xterm 100x30\n", "raw: no carriage return is added");
        assert!(!echoes(slave));
        tcsetwinsize(
            &*master,
            Winsize {
                ws_col: 90,
                ws_row: 20,
                ws_xpixel: 0,
                ws_ypixel: 0,
            },
        )
        .unwrap();
        // The kernel signals a terminal's own processes only; this one has another terminal or none.
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::WINCH).unwrap();
        assert_eq!(read_line(master), "90x20\n");
        master.write_all(b"\x03").unwrap();
        assert_eq!(read_line(master), "typed \\x03\n", "control keys are the guest's");
        master.write_all(b"q").unwrap();
    })
    .await;
    assert_eq!(end.unwrap(), AttachEnd::Exited(ExitStatus::Code(0)));
    assert!(echoes_after);
}

#[tokio::test]
async fn the_detach_keys_leave_the_session_and_restore_the_terminal() {
    let options = SshAttachOptions {
        detach_keys: Some("ctrl-p,ctrl-q".parse().unwrap()),
        ..SshAttachOptions::default()
    };
    let (end, echoes_after) = attach(options, |master, _| {
        read_line(master);
        master.write_all(b"\x10x").unwrap();
        assert_eq!(read_line(master), "typed \\x10x\n");
        master.write_all(b"\x10\x11").unwrap();
    })
    .await;
    assert_eq!(end.unwrap(), AttachEnd::Detached);
    assert!(echoes_after);
}

#[tokio::test]
async fn what_is_no_terminal_is_said_to_be_none() {
    let client = connected().await;
    let null = File::open("/dev/null").unwrap();
    let stdio = Stdio::new(null.as_fd(), null.as_fd(), null.as_fd()).unwrap();
    let error = client
        .attach_program(&Program::Shell, SshAttachOptions::default(), &stdio)
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::Terminal(_)), "{error}");
}
