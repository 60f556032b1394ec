//! Handshake lines off a socket: no more than one line's bytes are read ahead, and what was read is kept for whoever gets the stream.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdStream;
use std::time::Duration;

use tokio::net::UnixStream;
use zeroize::Zeroizing;

use super::turn::Turn;
use crate::wire::auth::AUTH_LINE_MAX;

/// A line of a handshake; wiped when dropped, since it may hold a token.
pub(super) type Line = Zeroizing<Vec<u8>>;

/// What came of waiting for a line.
pub(super) enum Read {
    /// A line, without its newline.
    Line(Line),
    /// The other end left.
    End,
    /// It cannot end within [`AUTH_LINE_MAX`] any more.
    TooLong,
}

/// At most one handshake line's worth of bytes; wiped when dropped.
pub(super) struct Buffer {
    bytes: Zeroizing<Vec<u8>>,
}

impl Buffer {
    pub(super) fn new() -> Buffer {
        // Never grown, so that no copy of a token stays behind in freed memory.
        Buffer { bytes: Zeroizing::new(Vec::with_capacity(AUTH_LINE_MAX)) }
    }

    /// The first byte that is waiting, which stays in the buffer; `None` at the end.
    pub(super) async fn first(&mut self, stream: &UnixStream) -> io::Result<Option<u8>> {
        while self.bytes.is_empty() {
            if self.fill(stream).await? == 0 {
                return Ok(None);
            }
        }
        Ok(self.bytes.first().copied())
    }

    /// The next line.
    pub(super) async fn line(&mut self, stream: &UnixStream) -> Read {
        loop {
            if let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
                let line = Zeroizing::new(self.bytes[..end].to_vec());
                let length = self.bytes.len();
                self.bytes.copy_within(end + 1.., 0);
                // The tail is wiped, not only forgotten.
                self.bytes[length - end - 1..].fill(0);
                self.bytes.truncate(length - end - 1);
                return Read::Line(line);
            }
            if self.bytes.len() >= AUTH_LINE_MAX {
                return Read::TooLong;
            }
            match self.fill(stream).await {
                Ok(0) | Err(_) => return Read::End,
                Ok(_) => {}
            }
        }
    }

    /// Reads what is there, up to the limit. Returns 0 at the end.
    pub(super) async fn fill(&mut self, stream: &UnixStream) -> io::Result<usize> {
        loop {
            stream.readable().await?;
            let length = self.bytes.len();
            self.bytes.resize(AUTH_LINE_MAX, 0);
            let read = stream.try_read(&mut self.bytes[length..]);
            self.bytes.truncate(length + *read.as_ref().unwrap_or(&0));
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
        }
    }

    /// What is buffered.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Forgets what is buffered.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
    }

    /// What came behind the last line.
    pub(super) fn into_rest(self) -> Vec<u8> {
        self.bytes.to_vec()
    }
}

/// Writes everything.
pub(crate) async fn write(stream: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes last words, and empties what the other end sent meanwhile (as far as it is there), so
/// that closing does not reset the connection under the words.
pub(super) async fn farewell(stream: &UnixStream, words: &[u8], patience: Duration) {
    const SENT_MEANWHILE_MAX: usize = 64 * 1024;
    let _ = tokio::time::timeout(patience, write(stream, words)).await;
    let mut sink = [0u8; 1024];
    let mut emptied = 0;
    while emptied < SENT_MEANWHILE_MAX {
        match stream.try_read(&mut sink) {
            Ok(0) | Err(_) => break,
            Ok(read) => emptied += read,
        }
    }
}

/// Ends our half of a connection and reads away what the other end still sends, until it leaves or
/// patience ends: closing under its write would break that, and it might never look at our words.
/// Only for whoever holds a seat, since it takes time.
pub(crate) async fn linger(stream: &UnixStream, patience: Duration) {
    let Ok(half) = stream.as_fd().try_clone_to_owned() else { return };
    if StdStream::from(half).shutdown(Shutdown::Write).is_err() {
        return;
    }
    let mut sink = Zeroizing::new(vec![0u8; AUTH_LINE_MAX]);
    let mut turn = Turn::default();
    let emptied = async {
        while stream.readable().await.is_ok() {
            match stream.try_read(&mut sink) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => break,
                // Patience does not end where nothing is waited for.
                Ok(_) => turn.pause().await,
            }
        }
    };
    let _ = tokio::time::timeout(patience, emptied).await;
}
