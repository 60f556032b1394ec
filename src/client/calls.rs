//! Calls on a proven connection: one request, one answer, with a deadline, and what comes besides.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::events::{Told, Waiting};
use crate::handshake::client::Bound;
use crate::wire::auth::SessionBrief;
use crate::wire::json_rpc::{AnswerLine, RpcError, SESSION_ENDED, request_line};
use crate::wire::line::Lines;

/// Longest answer in bytes.
pub const ANSWER_LINE_MAX: usize = 64 << 20;
/// Most bytes read at once.
const CHUNK: usize = 8192;

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The daemon answered with an error.
    #[error("{0}")]
    Refused(RpcError),
    /// The connection ended; whether the call was carried out is not known.
    #[error("the daemon closed the connection before it answered")]
    Closed,
    /// The connection ended while no call waited for an answer.
    #[error("the daemon closed the connection")]
    Over,
    /// The session that the connection belonged to has ended.
    #[error("this session has ended ({reason}); what runs on in it starts again with `authsock run`", reason = crate::wire::text::printable(.0))]
    SessionEnded(String),
    /// Too slow.
    #[error("the daemon did not answer within {0:?}")]
    Timeout(Duration),
    /// It answered something else.
    #[error("the daemon's answer cannot be read: {0}")]
    Unreadable(String),
    /// What was to be sent is none that JSON can hold.
    #[error("the data of an event is JSON: {0}")]
    NotJson(String),
}

/// What bounds a client.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// How long an answer may take.
    pub(super) timeout: Duration,
    /// Bytes of events that are kept while an answer is waited for.
    pub(super) queued: usize,
}

/// A proven connection to a daemon.
///
/// After a call that failed with anything but [`CallError::Refused`] and [`CallError::NotJson`] the connection cannot
/// be used any more; what was told before still comes out of [`Client::next`].
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    lines: Lines,
    session: SessionBrief,
    bound: Bound,
    socket: PathBuf,
    limits: Limits,
    next_id: u64,
    waiting: Waiting,
    /// Why the session has ended, once the daemon said so.
    ended: Option<String>,
}

impl Client {
    pub(super) fn new(
        stream: UnixStream,
        early: Vec<u8>,
        session: SessionBrief,
        bound: Bound,
        socket: PathBuf,
        limits: Limits,
    ) -> Client {
        let lines = Lines::with(ANSWER_LINE_MAX, early);
        let waiting = Waiting::new(limits.queued);
        Client { stream, lines, session, bound, socket, limits, next_id: 1, waiting, ended: None }
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

    /// How long an answer may take.
    pub fn timeout(&self) -> Duration {
        self.limits.timeout
    }

    /// Calls a method and waits for its answer.
    ///
    /// Not cancel safe: a call that was dropped may have been carried out, and its answer would be
    /// taken for nobody's.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn call(&mut self, method: &str, params: Option<&Value>) -> Result<Value, CallError> {
        self.ask(method, params).await
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

    /// As [`Client::call`], with parameters and a result of one's own kind.
    pub(super) async fn ask<P, T>(&mut self, method: &str, params: Option<&P>) -> Result<T, CallError>
    where
        P: Serialize,
        T: DeserializeOwned,
    {
        let id = self.next_id;
        self.next_id += 1;
        let request = request_line(id, method, params);
        let limit = self.limits.timeout;
        match timeout(limit, self.exchange(id, &request)).await {
            Ok(result) => result,
            Err(_) => Err(CallError::Timeout(limit)),
        }
    }

    /// What the daemon tells next: an event, a gap between events, or what is not subscribed to any more. Waits for as
    /// long as there is nothing, without a deadline.
    ///
    /// What was told while a call waited for its answer comes first, in order. As much of it is kept as
    /// `client.queued_bytes` says; what came then is told as a [`Told::Gap`] with its exact number.
    ///
    /// Cancel safe: what was not returned comes out of the next call.
    ///
    /// # Errors
    /// [`CallError::SessionEnded`] or [`CallError::Over`] when the connection has ended, behind all that came before.
    pub async fn next(&mut self) -> Result<Told, CallError> {
        loop {
            if let Some(told) = self.waiting.pop() {
                return Ok(told);
            }
            while let Some(line) = self.lines.next_line().map_err(unreadable)? {
                match Heard::read(line)? {
                    Heard::Told(told) => return Ok(told),
                    Heard::Ended(reason) => self.ended = Some(reason),
                    // The answer to nothing in particular: the daemon gives the connection up.
                    Heard::Refused { id: Value::Null, error } => return Err(CallError::Refused(error)),
                    // Answers to calls that were given up.
                    Heard::Refused { .. } | Heard::Answer { .. } | Heard::Other => {}
                }
            }
            self.lines.release();
            if !fill(&self.stream, &mut self.lines).await {
                return Err(self.end(CallError::Over));
            }
        }
    }

    async fn exchange<T: DeserializeOwned>(&mut self, id: u64, request: &str) -> Result<T, CallError> {
        let mut unsent = request.as_bytes();
        loop {
            while let Some(line) = self.lines.next_line().map_err(unreadable)? {
                let length = line.len();
                match Heard::read(line)? {
                    Heard::Refused { id: found, error } if found.is_null() || found == id => {
                        return Err(CallError::Refused(error));
                    }
                    Heard::Answer { id: found, result } if found == id => {
                        return serde_json::from_str(result.get()).map_err(unreadable);
                    }
                    Heard::Told(told) => self.waiting.push(told, length),
                    Heard::Ended(reason) => self.ended = Some(reason),
                    // Answers to calls that were given up.
                    Heard::Refused { .. } | Heard::Answer { .. } | Heard::Other => {}
                }
            }
            // A daemon that is busy writing events might not read the rest of a long request.
            let sent = match self.send_some(unsent) {
                Ok(sent) => sent,
                // What the daemon said before it closed can still be read.
                Err(_) => unsent.len(),
            };
            unsent = &unsent[sent..];
            let is_there = if unsent.is_empty() {
                fill(&self.stream, &mut self.lines).await
            } else {
                tokio::select! {
                    is_there = fill(&self.stream, &mut self.lines) => is_there,
                    // Sent in the next turn.
                    _ = self.stream.writable() => true,
                }
            };
            if !is_there {
                return Err(self.end(CallError::Closed));
            }
        }
    }

    /// Sends what can be sent at once.
    fn send_some(&self, bytes: &[u8]) -> std::io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        match self.stream.try_write(bytes) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(0),
            sent => sent,
        }
    }

    /// Why the connection ended: the daemon's last word, or `otherwise`.
    fn end(&self, otherwise: CallError) -> CallError {
        self.ended.clone().map_or(otherwise, CallError::SessionEnded)
    }
}

/// Waits for bytes, and adds them; false at the end. Cancel safe.
async fn fill(stream: &UnixStream, lines: &mut Lines) -> bool {
    loop {
        if stream.readable().await.is_err() {
            return false;
        }
        let mut chunk = [0u8; CHUNK];
        match stream.try_read(&mut chunk) {
            Ok(0) => return false,
            Ok(read) => {
                lines.push(&chunk[..read]);
                return true;
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
    }
}

fn unreadable(error: impl std::fmt::Display) -> CallError {
    CallError::Unreadable(error.to_string())
}

/// A line of the daemon's.
enum Heard<'a> {
    Answer {
        id: Value,
        result: &'a RawValue,
    },
    Refused {
        id: Value,
        error: RpcError,
    },
    /// Of events.
    Told(Told),
    /// The daemon's last word: the session has ended, for this reason.
    Ended(String),
    /// What a later daemon may say.
    Other,
}

impl Heard<'_> {
    fn read(line: &[u8]) -> Result<Heard<'_>, CallError> {
        let line: AnswerLine<'_> = serde_json::from_slice(line).map_err(unreadable)?;
        Ok(match line {
            AnswerLine { error: Some(error), id, .. } => Heard::Refused { id, error },
            AnswerLine { result: Some(result), id, .. } => Heard::Answer { id, result },
            AnswerLine { method: Some(method), params, .. } if method == SESSION_ENDED => {
                let params: Value = params.map_or(Ok(Value::Null), |params| {
                    serde_json::from_str(params.get()).map_err(unreadable)
                })?;
                let reason = params["reason"].as_str().unwrap_or("for a reason that was not told");
                Heard::Ended(reason.to_owned())
            }
            AnswerLine { method: Some(method), params, .. } => {
                Told::of(&method, params)?.map_or(Heard::Other, Heard::Told)
            }
            _ => Heard::Other,
        })
    }
}
