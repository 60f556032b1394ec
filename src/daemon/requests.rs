//! Requests out of what a client sent, one after the other: lines, batches, and the body of a request over HTTP.
//!
//! They are carried out in turns, so that whoever asks for much keeps nobody else waiting; a batch is kept, with what was
//! answered of it, until it is whole.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::control::{self, Caller};
use crate::config::Config;
use crate::gate::lock;
use crate::gate::turn::Turn;
use crate::wire::auth;
use crate::wire::json_rpc::{ErrorCode, Incoming, Request, RpcError, write_answer};
use crate::wire::line::Lines;

/// Bytes of answers to lines that are collected before they are written; short requests may have long ones.
const ANSWERS: usize = 64 * 1024;
/// Requests that are carried out before others have their turn.
const TURN: usize = 32;

/// What there is to be carried out of one client.
#[derive(Debug)]
pub(super) struct Requests {
    source: Source,
    batch: Option<Batch>,
    /// Whether anything was asked.
    pub(super) has_asked: bool,
    /// Whether nobody is there any more to hear an answer.
    pub(super) is_unheard: bool,
}

#[derive(Debug)]
enum Source {
    Lines(Lines),
    Body(Option<Bytes>),
}

/// What a client goes on with when its requests had their turn.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// There are no more for now, or its session has ended.
    Read,
    /// More requests are there; their answers come after the ones that are.
    Again,
    /// It ends: what came cannot be followed.
    Break,
}

/// A batch that is under way (section 6 of the specification).
#[derive(Debug)]
struct Batch {
    text: String,
    items: std::vec::IntoIter<Range<usize>>,
    /// Answers so far, with commas between.
    answers: Vec<u8>,
}

impl Batch {
    fn new(text: &str, items: Vec<Range<usize>>) -> Batch {
        Batch { text: text.to_owned(), items: items.into_iter(), answers: Vec::new() }
    }

    /// Writes what was answered as one line, if anything was.
    fn finish(self, out: &mut Vec<u8>) {
        if !self.answers.is_empty() {
            out.push(b'[');
            out.extend_from_slice(&self.answers);
            out.extend_from_slice(b"]\n");
        }
    }
}

/// What became of one request.
enum Done {
    GoOn,
    Break,
}

impl Requests {
    /// Lines that come, of at most so many bytes each.
    pub(super) fn of_lines(limit: usize, early: Vec<u8>) -> Requests {
        Requests::of(Source::Lines(Lines::with(limit, early)))
    }

    /// One request or one batch, in however many lines.
    pub(super) fn of_body(body: Bytes) -> Requests {
        Requests::of(Source::Body(Some(body)))
    }

    fn of(source: Source) -> Requests {
        Requests { source, batch: None, has_asked: false, is_unheard: false }
    }

    /// Adds bytes that came in.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if let Source::Lines(lines) = &mut self.source {
            lines.push(bytes);
        }
    }

    /// Gives the memory back when nothing is left over.
    pub(super) fn release(&mut self) {
        if let Source::Lines(lines) = &mut self.source {
            lines.release();
        }
    }

    /// Whether nothing waits, not even the beginning of a line.
    pub(super) fn is_empty(&self) -> bool {
        let is_empty = match &self.source {
            Source::Lines(lines) => lines.is_empty(),
            Source::Body(body) => body.is_none(),
        };
        is_empty && self.batch.is_none()
    }

    /// Whether something is left of it that was to be carried out: the session has ended before.
    pub(super) fn is_cut_off(&self) -> bool {
        matches!(self.source, Source::Body(Some(_)))
            || self.batch.as_ref().is_some_and(|batch| batch.items.len() > 0)
    }

    /// Whether a batch is under way, whose answers come before anything that it brought about.
    pub(super) fn is_amid(&self) -> bool {
        self.batch.is_some()
    }

    /// Carries out the requests that are there whole, for one turn.
    pub(super) fn take(&mut self, caller: &Caller<'_>, out: &mut Vec<u8>) -> Then {
        let mut turn = Turn::begin();
        let config = lock(&caller.hub.config).clone();
        for _ in 0..TURN {
            if out.len() >= ANSWERS.min(config.queued) {
                return Then::Again;
            }
            let is_whole = match &mut self.batch {
                Some(batch) => match batch.items.next() {
                    Some(item) => {
                        one_of_batch(caller, &config, batch, item, self.is_unheard);
                        true
                    }
                    None => false,
                },
                None => match self.one_of_source(caller, &config, out) {
                    Ok(Done::GoOn) => true,
                    Ok(Done::Break) => return Then::Break,
                    Err(NoMore) => return Then::Read,
                },
            };
            if !is_whole {
                self.end_batch(out);
                continue;
            }
            // A session that just ended itself, or rotated its token, is looked at anew.
            match caller.hub.sessions.standing(caller.admitted) {
                None => return Then::Read,
                Some(standing)
                    if standing.until.is_some() != caller.is_rotated
                        || !Arc::ptr_eq(&standing.session, caller.session) =>
                {
                    return Then::Again;
                }
                Some(_) if turn.is_over() => return Then::Again,
                Some(_) => {}
            }
        }
        Then::Again
    }

    /// Ends a batch that is under way: what was answered of it leaves, and the rest is not carried out.
    pub(super) fn end_batch(&mut self, out: &mut Vec<u8>) {
        if let Some(batch) = self.batch.take() {
            batch.finish(out);
        }
    }

    fn one_of_source(
        &mut self,
        caller: &Caller<'_>,
        config: &Config,
        out: &mut Vec<u8>,
    ) -> Result<Done, NoMore> {
        let body;
        let (text, is_line) = match &mut self.source {
            Source::Body(whole) => {
                body = whole.take().ok_or(NoMore)?;
                (&body[..], false)
            }
            Source::Lines(lines) => match lines.next_line() {
                Ok(Some(line)) => (line, true),
                Ok(None) => return Err(NoMore),
                Err(too_long) => {
                    let words = format!("{too_long} (limits.request_line_bytes); the connection is closed");
                    write_answer(
                        out,
                        None,
                        &Err(unmet(caller, "", RpcError::new(ErrorCode::TooLarge, words))),
                    );
                    return Ok(Done::Break);
                }
            },
        };
        if is_line && text.trim_ascii().is_empty() {
            return Ok(Done::GoOn);
        }
        self.has_asked = true;
        match Incoming::read(text, config.requests_in_flight) {
            Ok(Incoming::One(request)) => {
                if let Some(answer) = carry_out(caller, &request, self.is_unheard) {
                    write_answer(out, request.id, &answer);
                }
            }
            Ok(Incoming::Batch { text, items }) => self.batch = Some(Batch::new(text, items)),
            // Whoever proves itself again has lost its place; the line may hold a token.
            Err(_) if is_line && auth::is_auth(text) => {
                let words = "the handshake is over; the connection is closed";
                let error = RpcError::new(ErrorCode::InvalidRequest, words);
                write_answer(out, None, &Err(unmet(caller, "", error)));
                return Ok(Done::Break);
            }
            Err(error) => write_answer(out, None, &Err(unmet(caller, "", error))),
        }
        Ok(Done::GoOn)
    }
}

/// Nothing is there whole.
struct NoMore;

/// Carries out one request of a batch, unless its answers have become too many already.
fn one_of_batch(
    caller: &Caller<'_>,
    config: &Config,
    batch: &mut Batch,
    item: Range<usize>,
    is_unheard: bool,
) {
    let request = Request::read(batch.text[item].as_bytes());
    let is_full = batch.answers.len() >= config.queued;
    let (id, answer) = match &request {
        Ok(request) if is_full => {
            let words = format!(
                "not carried out: the answers to this batch have {} bytes already (limits.queued_bytes)",
                batch.answers.len()
            );
            let error = unmet(caller, &request.method, RpcError::new(ErrorCode::LimitReached, words));
            (request.id, request.id.map(|_| Err(error)))
        }
        Ok(request) => (request.id, carry_out(caller, request, is_unheard)),
        Err(error) => (None, Some(Err(unmet(caller, "", error.clone())))),
    };
    if let Some(answer) = answer {
        if !batch.answers.is_empty() {
            batch.answers.push(b',');
        }
        write_answer(&mut batch.answers, id, &answer);
        batch.answers.pop();
    }
}

/// Counts what nothing was carried out for: what is no request, or too much.
fn unmet(caller: &Caller<'_>, method: &str, error: RpcError) -> RpcError {
    caller.hub.metrics.unmet(method, &error);
    error
}

/// Carries out one request; gives no answer to a notification. Where nobody is there to hear an answer, only what asks for
/// none is carried out.
fn carry_out(
    caller: &Caller<'_>,
    request: &Request<'_>,
    is_unheard: bool,
) -> Option<Result<serde_json::Value, RpcError>> {
    if is_unheard && request.id.is_some() {
        return None;
    }
    let result = control::answer(caller, request);
    request.id.map(|_| result)
}
