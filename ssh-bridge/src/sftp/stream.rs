//! The content of a file as it comes and goes, with many requests under way.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::codec::Reply;
use super::connection::PendingReply;
use super::error::{SftpError, StatusCode};
use super::file::SftpFile;

/// Bytes that one file may have under way.
const IN_FLIGHT: usize = 2 * 1024 * 1024;

/// Requests that one file may have under way.
const MAX_REQUESTS: usize = 64;

/// Requests that a file of unknown length starts with: its content, and its end.
const FIRST_REQUESTS: usize = 2;

fn max_requests(chunk: u32) -> usize {
    let chunk = usize::try_from(chunk).unwrap_or(IN_FLIGHT);
    (IN_FLIGHT / chunk.max(1)).clamp(1, MAX_REQUESTS)
}

#[derive(Debug)]
struct ReadRequest {
    offset: u64,
    length: u32,
    reply: PendingReply,
}

/// Reads a file from its beginning, ahead of whoever takes it. Holds 2 MiB at most.
#[derive(Debug)]
pub struct SftpReader {
    file: SftpFile,
    in_flight: VecDeque<ReadRequest>,
    next_offset: u64,
    /// Where the file ends, if that is known.
    end: Option<u64>,
    requests: usize,
    is_over: bool,
    /// What [`AsyncRead`] has not given away yet.
    rest: Bytes,
}

impl SftpReader {
    pub(super) fn new(file: SftpFile, end: Option<u64>) -> Self {
        let requests = match end {
            Some(_) => max_requests(file.read_chunk()),
            None => FIRST_REQUESTS,
        };
        Self {
            file,
            in_flight: VecDeque::new(),
            next_offset: 0,
            end,
            requests,
            is_over: false,
            rest: Bytes::new(),
        }
    }

    /// The next piece; none at the end. No piece is lost when this future is dropped.
    ///
    /// # Errors
    /// When the server refuses, or the session ends.
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>, SftpError> {
        std::future::poll_fn(|context| self.poll_chunk(context)).await
    }

    /// Closes the file.
    ///
    /// # Errors
    /// When the server refuses, or the session ends.
    pub async fn close(self) -> Result<(), SftpError> {
        self.file.close().await
    }

    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, SftpError>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Ok(Some(std::mem::take(&mut self.rest))));
        }
        self.request_more();
        let Some(first) = self.in_flight.front_mut() else {
            return Poll::Ready(Ok(None));
        };
        let reply = ready!(Pin::new(&mut first.reply).poll(context));
        let ReadRequest { offset, length, .. } = self.in_flight.pop_front().expect("it was just looked at");
        let taken = self.take_reply(reply, offset, length);
        if !matches!(taken, Ok(Some(_))) {
            self.is_over = true;
            self.in_flight.clear();
        }
        Poll::Ready(taken)
    }

    fn request_more(&mut self) {
        while !self.is_over && self.in_flight.len() < self.requests {
            let left = self.end.map_or(u64::MAX, |end| end.saturating_sub(self.next_offset));
            if left == 0 {
                return;
            }
            let length = u32::try_from(left).map_or(self.file.read_chunk(), |left| left.min(self.file.read_chunk()));
            let request = self.request(self.next_offset, length);
            self.in_flight.push_back(request);
            self.next_offset = self.next_offset.saturating_add(length.into());
        }
    }

    fn request(&self, offset: u64, length: u32) -> ReadRequest {
        ReadRequest {
            offset,
            length,
            reply: self.file.request_read(offset, length),
        }
    }

    fn take_reply(
        &mut self,
        reply: Result<Reply, std::sync::Arc<super::EndCause>>,
        offset: u64,
        length: u32,
    ) -> Result<Option<Bytes>, SftpError> {
        let reply = reply.map_err(|cause| self.file.ended("read", cause))?;
        let data = match reply {
            Reply::Data(data) if !data.is_empty() => data,
            Reply::Status(status) if status.code == StatusCode::Eof => return Ok(None),
            other => return Err(self.file.unexpected("read", other)),
        };
        let received = u32::try_from(data.len()).unwrap_or(u32::MAX);
        if received > length {
            return Err(self.file.nonsense("read", "more data than were asked for"));
        }
        if received < length {
            // Less than was asked for need not be the end.
            let rest = self.request(offset + u64::from(received), length - received);
            self.in_flight.push_front(rest);
        } else {
            self.requests = (self.requests * 2).min(max_requests(self.file.read_chunk()));
        }
        Ok(Some(data))
    }
}

impl AsyncRead for SftpReader {
    /// An error's source is an [`SftpError`].
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let chunk = ready!(self.poll_chunk(context)).map_err(io::Error::other)?;
        if let Some(mut chunk) = chunk {
            let taken = chunk.len().min(buffer.remaining());
            buffer.put_slice(&chunk[..taken]);
            chunk.advance(taken);
            self.rest = chunk;
        }
        Poll::Ready(Ok(()))
    }
}

/// Writes a file from its beginning. Holds 2 MiB at most; nothing is sure to be written before [`SftpWriter::close`] or
/// [`AsyncWrite::poll_shutdown`].
#[derive(Debug)]
pub struct SftpWriter {
    file: SftpFile,
    in_flight: VecDeque<PendingReply>,
    offset: u64,
    /// What [`AsyncWrite`] has taken and not sent.
    gathered: BytesMut,
    closing: Option<PendingReply>,
}

impl SftpWriter {
    pub(super) fn new(file: SftpFile) -> Self {
        Self {
            file,
            in_flight: VecDeque::new(),
            offset: 0,
            gathered: BytesMut::new(),
            closing: None,
        }
    }

    /// Writes `data` behind what was written before, once there is room. When this future is dropped, a part may be
    /// written.
    ///
    /// # Errors
    /// When the server refused this or something before, or the session ends.
    pub async fn write_chunk(&mut self, mut data: Bytes) -> Result<(), SftpError> {
        self.send_gathered().await?;
        while !data.is_empty() {
            std::future::poll_fn(|context| self.poll_room(context)).await?;
            let chunk = data.split_to(data.len().min(self.chunk()));
            self.send(chunk);
        }
        Ok(())
    }

    async fn send_gathered(&mut self) -> Result<(), SftpError> {
        if !self.gathered.is_empty() {
            std::future::poll_fn(|context| self.poll_room(context)).await?;
            let gathered = self.gathered.split().freeze();
            self.send(gathered);
        }
        Ok(())
    }

    /// Waits until everything is written.
    ///
    /// # Errors
    /// When the server refused something, or the session ends.
    pub async fn finish(&mut self) -> Result<(), SftpError> {
        self.send_gathered().await?;
        std::future::poll_fn(|context| self.poll_in_flight(context, 0)).await
    }

    /// Waits until everything is written, and closes the file.
    ///
    /// # Errors
    /// When the server refused something, or the session ends.
    pub async fn close(mut self) -> Result<(), SftpError> {
        self.finish().await?;
        self.file.close().await
    }

    /// The open file.
    pub fn file(&self) -> &SftpFile {
        &self.file
    }

    fn chunk(&self) -> usize {
        usize::try_from(self.file.write_chunk()).expect("a chunk is shorter than a packet")
    }

    fn send(&mut self, chunk: Bytes) {
        let length = u64::try_from(chunk.len()).expect("a chunk is shorter than a packet");
        self.in_flight.push_back(self.file.request_write(self.offset, chunk));
        self.offset = self.offset.saturating_add(length);
    }

    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<Result<(), SftpError>> {
        let most = max_requests(self.file.write_chunk()) - 1;
        self.poll_in_flight(context, most)
    }

    /// Ready when no more than `most` requests are under way.
    fn poll_in_flight(&mut self, context: &mut Context<'_>, most: usize) -> Poll<Result<(), SftpError>> {
        while let Some(first) = self.in_flight.front_mut() {
            match Pin::new(first).poll(context) {
                Poll::Ready(reply) => {
                    self.in_flight.pop_front();
                    self.file.done("write", reply)?;
                }
                Poll::Pending if self.in_flight.len() > most => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_send_gathered(&mut self, context: &mut Context<'_>) -> Poll<Result<(), SftpError>> {
        if !self.gathered.is_empty() {
            ready!(self.poll_room(context))?;
            let gathered = self.gathered.split().freeze();
            self.send(gathered);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SftpWriter {
    /// An error's source is an [`SftpError`].
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.gathered.len() >= self.chunk() {
            ready!(self.poll_send_gathered(context)).map_err(io::Error::other)?;
        }
        let taken = bytes.len().min(self.chunk() - self.gathered.len());
        self.gathered.extend_from_slice(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send_gathered(context)).map_err(io::Error::other)?;
        self.poll_in_flight(context, 0).map_err(io::Error::other)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(context))?;
        let this = &mut *self;
        let closing = this.closing.get_or_insert_with(|| this.file.request_close());
        let reply = ready!(Pin::new(closing).poll(context));
        Poll::Ready(self.file.done("close", reply).map_err(io::Error::other))
    }
}
