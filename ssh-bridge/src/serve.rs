//! Serves one SSH connection: connects a stream of the caller's to the guest.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::fs::{Mode, OFlags};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};

use crate::pump::{self, PumpStats};

/// Bytes that each direction of [`serve_connection_on`] holds at most.
const BUFFER: usize = 64 * 1024;

/// The first descriptor that is not one of the standard three.
const FIRST_FREE: i32 = 3;

/// Connects the guest to the standard input and output of this process until both directions ended, as ssh's
/// ProxyCommand needs it. Standard input and output are `/dev/null` from then on.
///
/// # Errors
/// When a stream breaks. That either side ends is none.
pub fn serve_connection_stdio(guest: UnixStream) -> io::Result<PumpStats> {
    let (input, output) = take_stdio()?;
    pump::run(input, output, guest.into())
}

/// Takes standard input and output of this process, which are `/dev/null` from then on.
///
/// # Errors
/// When one is closed, or there is no descriptor left.
pub fn take_stdio() -> io::Result<(OwnedFd, OwnedFd)> {
    let (stdin, stdout) = (io::stdin(), io::stdout());
    Ok((
        take_over(stdin.as_fd(), rustix::stdio::dup2_stdin)?,
        take_over(stdout.as_fd(), rustix::stdio::dup2_stdout)?,
    ))
}

/// Moves a standard descriptor elsewhere: only closing the last copy of it ends the stream for its other end.
fn take_over(standard: BorrowedFd<'_>, replace: impl FnOnce(OwnedFd) -> rustix::io::Result<()>) -> io::Result<OwnedFd> {
    let moved = rustix::io::fcntl_dupfd_cloexec(standard, FIRST_FREE)?;
    replace(rustix::fs::open(
        "/dev/null",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )?)?;
    Ok(moved)
}

/// Connects the guest to any stream until both directions ended.
///
/// Each direction ends by itself: the end of what one side sends is passed on, and the other direction lives on.
///
/// # Errors
/// When a stream breaks. That one side takes no more, while the other direction goes on, is none.
pub async fn serve_connection_on<S>(guest: UnixStream, stream: S) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite,
{
    guest.set_nonblocking(true)?;
    let (from_guest, to_guest) = tokio::net::UnixStream::from_std(guest)?.into_split();
    let (from_client, to_client) = tokio::io::split(stream);
    tokio::try_join!(copy(from_client, to_guest), copy(from_guest, to_client))?;
    Ok(())
}

async fn copy(from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut from = BufReader::with_capacity(BUFFER, from);
    match tokio::io::copy_buf(&mut from, &mut to).await {
        Ok(_) => ended(to.shutdown().await),
        Err(error) => ended(Err(error)),
    }
}

/// Whoever takes no more, or is gone already, has only ended this direction.
fn ended(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::NotConnected) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;

    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn each_direction_ends_by_itself() {
        let (guest, mut guest_end) = UnixStream::pair().unwrap();
        let (stream, mut client) = tokio::io::duplex(1024);
        let serving = tokio::spawn(serve_connection_on(guest, stream));

        let guest_side = tokio::task::spawn_blocking(move || {
            let mut received = Vec::new();
            io::Read::read_to_end(&mut guest_end, &mut received).unwrap();
            io::Write::write_all(&mut guest_end, b"after the end of input").unwrap();
            guest_end.shutdown(Shutdown::Both).unwrap();
            received.len()
        });
        client.write_all(&vec![7; 300_000]).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "after the end of input");
        assert_eq!(guest_side.await.unwrap(), 300_000);
        serving.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_the_guest_sends_arrives_though_it_takes_no_more() {
        let (guest, guest_end) = UnixStream::pair().unwrap();
        let (stream, mut client) = tokio::io::duplex(1024);
        let serving = tokio::spawn(serve_connection_on(guest, stream));

        guest_end.shutdown(Shutdown::Read).unwrap();
        client.write_all(b"refused").await.unwrap();
        client.shutdown().await.unwrap();
        io::Write::write_all(&mut &guest_end, b"still here").unwrap();
        guest_end.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "still here");
        serving.await.unwrap().unwrap();
    }
}
