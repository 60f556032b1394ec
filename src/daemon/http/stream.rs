//! Events as a stream over HTTP (server-sent events, HTML Living Standard, section 9.2).

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Frame;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Method, Response, StatusCode};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::sleep;

use super::{Asked, config, whole};
use crate::daemon::connection::{grace_end, sleep_until_some};
use crate::daemon::control::Hub;
use crate::daemon::events::methods::{not_subscribed, patterns, site};
use crate::daemon::events::subscriber::{Form, Listening, write_frame};
use crate::daemon::events::{From, Subscribed};
use crate::daemon::sessions::{Lifeline, Standing};
use crate::gate::Policy;
use crate::gate::http::{Body, Door, problem};
use crate::session::registry::Admitted;
use crate::session::scope::{Scope, Verb};
use crate::wire::event::Place;
use crate::wire::json_rpc::{ErrorCode, RpcError, SESSION_ENDED};
use crate::wire::subject::Pattern;

/// Bytes of frames that are handed out at once.
const CHUNK: usize = 64 * 1024;
const STREAM: &str = "text/event-stream";
/// How long a client shall wait before it comes back, in milliseconds.
const RETRY: u64 = 1000;
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Answers with events, for as long as the session stands.
pub(super) fn events(asked: &Asked<'_>) -> Response<Body> {
    let wish = match Wish::of(asked) {
        Ok(wish) => wish,
        Err(error) => return refused(&error),
    };
    if asked.request.method() == Method::HEAD {
        return whole(StatusCode::OK, STREAM, Bytes::new());
    }
    let hub = &asked.pages.hub;
    let admitted = asked.bearer.admitted();
    let listening = Listening::new(hub.events.clone(), admitted, Form::Stream);
    let caller = asked.caller();
    let site = match site(&caller, wish.realm.as_deref()) {
        Ok(site) => site,
        Err(error) => return refused(&error),
    };
    let subscribed =
        hub.events.subscribe(listening.subscriber(), &admitted.session, &site, wish.patterns, wish.from);
    let subscribed = match subscribed {
        Ok(subscribed) => subscribed,
        Err(error) => return refused(&not_subscribed(error)),
    };
    let (sessions, guarded) = (hub.sessions.clone(), admitted.clone());
    let door = Arc::downgrade(asked.door);
    let is_admitted = move || door.upgrade().is_some_and(|door| door.is_admitted());
    asked.door.guard(move || sessions.standing(&guarded).is_some() && is_admitted());
    let stream = Stream {
        lifeline: hub.sessions.lifeline(&admitted.session.id),
        policy: hub.policy.subscribe(),
        stopping: asked.pages.stopping.clone(),
        hub: hub.clone(),
        door: asked.door.clone(),
        admitted: admitted.clone(),
        listening,
        heartbeat: config(hub).events.heartbeat,
        follows: wish.follows,
        first: Some(first_frame(&subscribed)),
        is_over: false,
    };
    let mut answer = Response::new(Frames { next: Box::pin(stream.next()) }.boxed_unsync());
    let fields = answer.headers_mut();
    fields.extend(whole(StatusCode::OK, STREAM, Bytes::new()).headers().clone());
    fields.insert(CONTENT_TYPE, HeaderValue::from_static(STREAM));
    // Proxies such as nginx keep what they pass on, unless they are told.
    fields.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    answer
}

/// Where it begins: whoever breaks off before the first event comes back to the same place.
fn first_frame(subscribed: &Subscribed) -> Bytes {
    let Place { epoch, seq } = subscribed.newest;
    let mut frame = format!("retry: {RETRY}\n").into_bytes();
    let id = Place { epoch, seq: subscribed.after }.to_string();
    let subjects: Vec<&str> = subscribed.patterns.iter().map(Pattern::as_str).collect();
    let told = json!({
        "epoch": epoch,
        "seq": seq,
        "after": subscribed.after,
        "replayed": subscribed.replayed,
        "subjects": subjects,
    });
    write_frame(&mut frame, "subscribed", Some(&id), &told);
    frame.into()
}

/// What a query, and the place of somebody who comes back, ask for.
struct Wish {
    patterns: Vec<Pattern>,
    /// From where on, and how many of those that are kept at most.
    from: (From, Option<usize>),
    realm: Option<String>,
    /// Whether what comes later is to come, too.
    follows: bool,
}

impl Wish {
    fn of(asked: &Asked<'_>) -> Result<Wish, RpcError> {
        let invalid = |words: String| RpcError::new(ErrorCode::InvalidParams, words);
        let (mut subjects, mut since, mut last, mut realm, mut follow) = (Vec::new(), None, None, None, None);
        let query = asked.request.uri().query().unwrap_or_default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let once =
                |known: bool| if known { Err(invalid(format!("{name} is there twice"))) } else { Ok(()) };
            match &*name {
                "subject" => subjects.push(value.into_owned()),
                "since" => {
                    once(since.is_some())?;
                    since = Some(value.into_owned());
                }
                "last" => {
                    once(last.is_some())?;
                    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
                    let number = value.parse().ok().filter(|_| digits);
                    last = Some(number.ok_or_else(|| invalid("last: a number is expected".to_owned()))?);
                }
                "realm" => {
                    once(realm.is_some())?;
                    realm = Some(value.into_owned());
                }
                "follow" => {
                    once(follow.is_some())?;
                    let told =
                        [("true", true), ("false", false)].into_iter().find(|(word, _)| *word == value);
                    let (_, told) =
                        told.ok_or_else(|| invalid("follow: true or false is expected".to_owned()))?;
                    follow = Some(told);
                }
                _ => {
                    let name: String = name.chars().take(32).collect();
                    return Err(invalid(format!(
                        "{name:?} is not known; known are subject, since, last, follow and realm"
                    )));
                }
            }
        }
        // What is no text is no place either, and is told so.
        let come_back = asked.request.headers().get(LAST_EVENT_ID);
        let come_back = come_back.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        // A browser's EventSource, and whoever does as that does, names the place where it broke off beside the query it
        // began with.
        let place = |text: String| match text.as_str() {
            "0" => Ok(From::Beginning),
            text => {
                let place: Place = text.parse().map_err(|problem| invalid(format!("since: {problem}")))?;
                Ok(From::After(Some(place.epoch), place.seq))
            }
        };
        let since = since.map(place).transpose()?;
        let come_back = come_back.filter(|text| !text.is_empty()).map(place).transpose()?;
        let from = match (come_back, since, last) {
            // How much of the past was wanted was said, and is over: it goes on where it broke off.
            (Some(place), _, _) => (place, None),
            (None, Some(since), last) => (since, last),
            (None, None, Some(last)) => (From::Beginning, Some(last)),
            (None, None, None) => (From::Now, None),
        };
        let patterns = if subjects.is_empty() {
            let session = &asked.bearer.admitted().session;
            let own: Vec<Pattern> = session.scopes.iter().filter_map(of_scope).collect();
            if own.is_empty() {
                let words = "this session may subscribe to nothing: it has no scope events:subscribe:SUBJECT";
                return Err(RpcError::new(ErrorCode::NotPermitted, words));
            }
            own
        } else {
            patterns(&asked.pages.hub.events, &subjects)?
        };
        Ok(Wish { patterns, from, realm, follows: follow.unwrap_or(true) })
    }
}

/// What a scope permits to hear.
fn of_scope(scope: &Scope) -> Option<Pattern> {
    match scope {
        Scope::All => Some(Pattern::all()),
        Scope::Subjects(Verb::Subscribe, pattern) => Some(pattern.clone()),
        _ => None,
    }
}

fn refused(error: &RpcError) -> Response<Body> {
    let status = [
        (ErrorCode::NotPermitted, StatusCode::FORBIDDEN),
        (ErrorCode::LimitReached, StatusCode::SERVICE_UNAVAILABLE),
    ];
    let status = status.iter().find(|(code, _)| code.number() == error.code);
    problem(status.map_or(StatusCode::BAD_REQUEST, |(_, status)| *status), &error.message)
}

/// One stream, between two of its frames.
struct Stream {
    hub: Arc<Hub>,
    door: Arc<Door>,
    admitted: Admitted,
    listening: Listening,
    lifeline: Lifeline,
    policy: watch::Receiver<Policy>,
    stopping: watch::Receiver<bool>,
    heartbeat: Duration,
    follows: bool,
    first: Option<Bytes>,
    is_over: bool,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.door.end_guarded();
    }
}

impl Stream {
    /// What comes next, and what is left then.
    async fn next(mut self) -> (Stream, Option<Bytes>) {
        if self.is_over {
            return (self, None);
        }
        if let Some(first) = self.first.take() {
            return (self, Some(first));
        }
        loop {
            let Some(Standing { session, until }) = self.hub.sessions.standing(&self.admitted) else {
                self.is_over = true;
                let farewell = self.farewell();
                return (self, farewell);
            };
            if self.policy.has_changed().unwrap_or(false) {
                self.policy.mark_unchanged();
                if !self.door.is_admitted() {
                    return (self, None);
                }
            }
            let subscriber = self.listening.subscriber();
            subscriber.look_again(&session);
            let frames = subscriber.take_frames(CHUNK);
            if !frames.is_empty() {
                return (self, Some(frames.into()));
            }
            if *self.stopping.borrow() || !self.follows {
                return (self, None);
            }
            tokio::select! {
                () = subscriber.woken() => {}
                () = self.door.left() => return (self, None),
                // Ended, changed or rotated: the next turn looks.
                _ = self.lifeline.changed() => {}
                _ = self.policy.changed() => self.policy.mark_changed(),
                _ = self.stopping.changed() => {}
                () = sleep_until_some(grace_end(until)) => {}
                () = sleep(self.heartbeat) => return (self, Some(Bytes::from_static(b":\n\n"))),
            }
        }
    }

    /// The last frame of a session that has ended.
    fn farewell(&self) -> Option<Bytes> {
        let id = &self.admitted.session.id;
        let reason = self.hub.sessions.reason(&self.lifeline, id)?;
        let mut frame = Vec::new();
        write_frame(
            &mut frame,
            SESSION_ENDED,
            None,
            &json!({ "id": id.as_str(), "reason": reason.as_str() }),
        );
        Some(frame.into())
    }
}

/// A body whose frames are asked for one by one, when there is room for them.
struct Frames {
    next: Pin<Box<dyn Future<Output = (Stream, Option<Bytes>)> + Send>>,
}

impl hyper::body::Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let (stream, frame) = ready!(self.next.as_mut().poll(context));
        let Some(frame) = frame else {
            return Poll::Ready(None);
        };
        self.next = Box::pin(stream.next());
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }
}
