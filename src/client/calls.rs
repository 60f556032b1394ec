//! Calls on a proven connection: one request, one answer, with a deadline.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::handshake::client::Bound;
use crate::wire::auth::SessionBrief;
use crate::wire::json_rpc::{AnswerLine, RpcError, SESSION_ENDED, request_line};
use crate::wire::line::Lines;

/// Longest answer in bytes.
pub const ANSWER_LINE_MAX: usize = 64 << 20;

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The daemon answered with an error.
    #[error("{0}")]
    Refused(RpcError),
    /// The connection ended; whether the call was carried out is not known.
    #[error("the daemon closed the connection before it answered")]
    Closed,
    /// The session that the connection belonged to has ended.
    #[error("this session has ended ({reason}); what runs on in it starts again with `authsock run`", reason = crate::wire::text::printable(.0))]
    SessionEnded(String),
    /// Too slow.
    #[error("the daemon did not answer within {0:?}")]
    Timeout(Duration),
    /// It answered something else.
    #[error("the daemon's answer cannot be read: {0}")]
    Unreadable(String),
}

/// A proven connection to a daemon.
///
/// After a call that failed with anything but [`CallError::Refused`] the connection cannot be
/// used any more.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    lines: Lines,
    session: SessionBrief,
    bound: Bound,
    socket: PathBuf,
    timeout: Duration,
    next_id: u64,
}

impl Client {
    pub(super) fn new(
        stream: UnixStream,
        early: Vec<u8>,
        session: SessionBrief,
        bound: Bound,
        socket: PathBuf,
        timeout: Duration,
    ) -> Client {
        let lines = Lines::with(ANSWER_LINE_MAX, early);
        Client { stream, lines, session, bound, socket, timeout, next_id: 1 }
    }

    /// The session that this connection belongs to.
    pub fn session(&self) -> &SessionBrief {
        &self.session
    }

    /// Whether the daemon's kernel sees this very process.
    pub fn bound(&self) -> &Bound {
        &self.bound
    }

    /// The path of the socket by which the daemon was reached.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Calls a method and waits for its answer.
    ///
    /// Not cancel safe: a call that was dropped may have been carried out, and its answer would be
    /// taken for nobody's.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn call(&mut self, method: &str, params: Option<&Value>) -> Result<Value, CallError> {
        let id = self.next_id;
        self.next_id += 1;
        let limit = self.timeout;
        match timeout(limit, self.exchange(id, method, params)).await {
            Ok(result) => result,
            Err(_) => Err(CallError::Timeout(limit)),
        }
    }

    /// All sessions that `session.list` tells of, page by page: `asked` are its parameters, without `after`.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn sessions(&mut self, mut asked: Value) -> Result<Vec<Value>, CallError> {
        let mut sessions = Vec::new();
        loop {
            let mut page = self.call("session.list", Some(&asked)).await?;
            sessions.extend(page["sessions"].as_array_mut().map(std::mem::take).unwrap_or_default());
            asked["after"] = page["next"].take();
            if asked["after"].is_null() {
                return Ok(sessions);
            }
        }
    }

    async fn exchange(&mut self, id: u64, method: &str, params: Option<&Value>) -> Result<Value, CallError> {
        let request = request_line(id, method, params);
        // What the daemon said before it closed can still be read.
        let sent = self.stream.write_all(request.as_bytes()).await;
        let mut chunk = [0u8; 8192];
        let mut over = CallError::Closed;
        loop {
            while let Some(line) =
                self.lines.next_line().map_err(|error| CallError::Unreadable(error.to_string()))?
            {
                let answer: AnswerLine =
                    serde_json::from_slice(line).map_err(|error| CallError::Unreadable(error.to_string()))?;
                match answer {
                    AnswerLine { error: Some(error), id: found, .. } if found.is_null() || found == id => {
                        return Err(CallError::Refused(error));
                    }
                    AnswerLine { result: Some(result), id: found, .. } if found == id => return Ok(result),
                    // The daemon's last word.
                    AnswerLine { method: Some(method), params, .. } if method == SESSION_ENDED => {
                        let reason = params["reason"].as_str().unwrap_or("for a reason that was not told");
                        over = CallError::SessionEnded(reason.to_owned());
                    }
                    // Other notifications, and answers to calls that were given up.
                    _ => {}
                }
            }
            match self.stream.read(&mut chunk).await {
                Ok(0) | Err(_) => return Err(over),
                Ok(read) => self.lines.push(&chunk[..read]),
            }
            if sent.is_err() && self.lines.is_empty() {
                return Err(over);
            }
        }
    }
}
