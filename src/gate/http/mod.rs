//! HTTP at the gate: whoever connected is looked at as all are, and then each request brings its own proof.
//!
//! A kept connection inherits nothing. What a request is answered is somebody else's business ([`Service`]); that it is
//! whose it says is decided here, and the [`Bearer`] that comes of it is made nowhere else.

#![forbid(unsafe_code)]

mod io;
pub(super) mod unserved;

use std::borrow::Cow;
use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::io::ErrorKind;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Request, Response, StatusCode};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::admission::{self, Refused};
use super::line::{self, Buffer};
use super::seats::Seat;
use super::{REFUSAL_TIMEOUT, Settings, Shared, lock, now};
use crate::config::Scheme;
use crate::handshake::server::{Presented, Refusal, Way};
use crate::kernel::peer::{self, Peer};
use crate::kernel::{accounts, fds};
use crate::secret::token::Token;
use crate::session::registry::Admitted;
use crate::wire::auth::Code;
use crate::wire::http::{NoToken, PROBLEM, Problem, Violation, challenges, read_authorization};
use io::{Io, Watch};

/// What an answer is made of.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// How long a client may go on sending that was told that its connection closes.
const FAREWELL: Duration = Duration::from_secs(1);
/// What asks about somebody else's token names itself by this field.
pub const ASKER: HeaderName = HeaderName::from_static("authsock-asker");

/// A connection that speaks HTTP. Nothing is proven of it but its peer.
#[must_use = "dropping it closes the connection"]
pub struct HttpConnection {
    stream: Arc<UnixStream>,
    early: Buffer,
    door: Door,
    deadline: Instant,
}

/// What answers requests.
pub trait Service: Clone + Send + 'static {
    /// Answers a request of which nothing is proven yet: that is asked of the door.
    fn answer(
        &self,
        request: Request<Incoming>,
        door: Arc<Door>,
    ) -> impl Future<Output = Response<Body>> + Send;
}

/// Where requests of one connection prove themselves.
pub struct Door {
    peer: Peer,
    /// For what else the kernel says of the peer.
    stream: Arc<UnixStream>,
    shared: Arc<Shared>,
    watch: Arc<Watch>,
    /// Its place: among those who wait, until a request has proven itself.
    seat: Mutex<(Seat, bool)>,
}

/// Whoever bears a token, as one request has shown it.
#[derive(Debug)]
pub struct Bearer {
    admitted: Admitted,
}

impl Bearer {
    /// What the token stands for.
    pub fn admitted(&self) -> &Admitted {
        &self.admitted
    }
}

/// A request that is not answered, and why.
#[derive(Debug)]
pub struct NotProven {
    code: Code,
    /// Whether a token was shown at all.
    is_shown: bool,
}

impl HttpConnection {
    pub(super) fn new(
        stream: UnixStream,
        early: Buffer,
        peer: Peer,
        seat: Seat,
        shared: Arc<Shared>,
        deadline: Instant,
    ) -> HttpConnection {
        let stream = Arc::new(stream);
        let seat = Mutex::new((seat, false));
        let door = Door { peer, stream: stream.clone(), shared, watch: Arc::default(), seat };
        HttpConnection { stream, early, door, deadline }
    }

    /// Who is at the other end, by the kernel's word.
    pub fn peer(&self) -> &Peer {
        &self.door.peer
    }

    /// Answers that HTTP is not spoken here.
    pub(super) async fn send_away(mut self) {
        unserved::answer(&self.stream, &mut self.early, unserved::NOT_SPOKEN, self.deadline).await;
    }

    /// Answers requests until the client leaves, breaks the rules, or `stopping` says that no more are taken.
    pub async fn serve(self, service: impl Service, stopping: impl Future<Output = ()>) {
        let HttpConnection { stream, early, door, deadline } = self;
        let settings = lock(&door.shared.settings).clone();
        let door = Arc::new(door);
        let io = Io::new(stream.clone(), early.into_rest(), door.watch.clone(), &settings, deadline);
        let answer = hyper::service::service_fn(|request| {
            let (service, door) = (service.clone(), door.clone());
            async move {
                // As many as came together are answered together.
                poll_fn(|context| door.watch.poll_turn(context)).await;
                Ok::<_, Infallible>(service.answer(request, door).await)
            }
        });
        let (mut is_stopping, mut is_shut) = (false, false);
        {
            let mut connection = pin!(
                hyper::server::conn::http1::Builder::new().half_close(true).serve_connection(io, answer)
            );
            let mut stopping = pin!(stopping);
            // What went wrong is the client's doing, and it is told by what follows, or is gone.
            let _ = poll_fn(|context| {
                // What came before the end was told is answered; who is amid a head is waited for, as long as that may take.
                if connection.as_mut().poll(context).is_ready() {
                    return Poll::Ready(());
                }
                let is_told = is_stopping || stopping.as_mut().poll(context).is_ready();
                if !is_told || door.watch.has_part() || is_shut {
                    is_stopping = is_told;
                    return Poll::Pending;
                }
                (is_stopping, is_shut) = (true, true);
                connection.as_mut().graceful_shutdown();
                connection.as_mut().poll(context).map(drop)
            })
            .await;
        }
        if let Some((violation, is_head)) = door.watch.refused_head() {
            door.note(violation);
            line::farewell(&stream, &refusal_of(violation, is_head), REFUSAL_TIMEOUT).await;
        } else if is_stopping {
            // It is answered, or never asked: there is nothing to wait for.
            line::farewell(&stream, b"", REFUSAL_TIMEOUT).await;
            return;
        }
        line::linger(&stream, FAREWELL).await;
    }
}

/// How a request begins whose answer has no body (RFC 9110, section 9.3.2).
const HEAD: &[u8] = b"HEAD ";

/// The whole answer to bytes that are no request.
fn refusal_of(violation: Violation, is_head: bool) -> Vec<u8> {
    let status = StatusCode::from_u16(violation.status()).unwrap_or(StatusCode::BAD_REQUEST);
    // What some resource here takes: RFC 9110, section 15.5.6, wants it told.
    let more = if status == StatusCode::METHOD_NOT_ALLOWED { "Allow: GET, HEAD, POST\r\n" } else { "" };
    last_words(status, &violation.to_string(), more, is_head)
}

/// An answer in full, as a problem detail (RFC 9457), where no library writes it; the connection closes then.
fn last_words(status: StatusCode, detail: &str, more: &str, is_head: bool) -> Vec<u8> {
    let (number, title) = (status.as_u16(), status.canonical_reason().unwrap_or_default());
    let body = Problem::new(number, title, detail).to_json();
    let mut answer = format!(
        "HTTP/1.1 {number} {title}\r\nContent-Type: {PROBLEM}\r\nContent-Length: {}\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n{more}Connection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    if !is_head {
        answer.extend_from_slice(&body);
    }
    answer
}

impl Door {
    /// Who is at the other end, by the kernel's word.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Whether the client has left, so that nobody hears what is answered.
    pub fn is_gone(&self) -> bool {
        fds::is_hung_up(&*self.stream)
    }

    /// Waits until the client has left, while an answer goes on that may take long. One that has only ended its own half, or
    /// sent another request meanwhile, is not heard to leave any more: what is written tells then. Cancel safe.
    pub async fn left(&self) {
        while self.stream.ready(Interest::READABLE).await.is_ok() {
            if self.is_gone() {
                return;
            }
            // The runtime goes by what it was told last, which may be long read.
            match self.stream.try_io(Interest::READABLE, || fds::has_more(&*self.stream)) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                _ => break,
            }
        }
        pending::<()>().await;
    }

    /// By which schemes tokens come.
    pub fn schemes(&self) -> Vec<Scheme> {
        lock(&self.shared.settings).http.schemes.clone()
    }

    /// What is wrong with the bytes of a body, if they are.
    pub fn violation(&self) -> Option<Violation> {
        self.watch.violation()
    }

    /// Whether the configuration lets this user ask what tokens are worth.
    pub fn is_verifier(&self) -> bool {
        lock(&self.shared.settings).policy.verifiers.contains(&self.peer.uid) && self.peer.is_alive()
    }

    /// Lets a request in whose user may ask what tokens are worth; says whether it may.
    ///
    /// # Errors
    /// [`NotProven`]: it may, and there is no place.
    pub fn admit_verifier(&self) -> Result<bool, NotProven> {
        if !self.is_verifier() {
            return Ok(false);
        }
        self.take_seat().map(|()| true).map_err(|refusal| {
            self.log(&refusal, None);
            NotProven { code: refusal.code, is_shown: false }
        })
    }

    /// Lets a request prove itself by the token in one of its fields. Everything is looked at anew: the policy, the
    /// peer, the token, and what it stands for.
    ///
    /// # Errors
    /// [`NotProven`]; the reason is in the log.
    pub fn prove(&self, field: Option<&HeaderValue>) -> Result<Bearer, NotProven> {
        let settings = lock(&self.shared.settings).clone();
        let shown = self.read(field, &settings);
        let is_shown = !matches!(shown, Err(NoToken::Missing | NoToken::Scheme));
        let result = self.try_prove(shown, &settings);
        result.map(|admitted| Bearer { admitted }).map_err(|Refused { refusal, session }| {
            self.log(&refusal, session.as_ref());
            NotProven { code: refusal.code, is_shown }
        })
    }

    fn log(&self, refusal: &Refusal, session: Option<&crate::session::SessionId>) {
        self.shared.refused(Some(&self.peer), Some(self.peer.uid), refusal, session);
    }

    fn read(&self, field: Option<&HeaderValue>, settings: &Settings) -> Result<Token, NoToken> {
        read_authorization(field.map(HeaderValue::as_bytes), settings.http.schemes.iter().map(Scheme::as_str))
    }

    fn try_prove(&self, shown: Result<Token, NoToken>, settings: &Settings) -> Result<Admitted, Refused> {
        if !settings.policy.admits(&self.peer, || peer::groups(&*self.stream)) {
            return Err(Refusal::new(Code::PeerDenied, settings.policy.refusal_of(self.peer.uid)).into());
        }
        admission::alive(&self.peer)?;
        let token = shown.map_err(|problem| {
            let reason = match problem {
                NoToken::Missing => "an HTTP request came without a token",
                NoToken::Scheme => "an HTTP request came with a scheme that is not configured (http.schemes)",
                NoToken::Malformed => "an HTTP request came with something that is no token",
            };
            Refusal::new(Code::Denied, reason)
        })?;
        admission::refuse_plain(settings)?;
        let presented = Presented::shown(token);
        let token_id = presented.token_id();
        let proven = presented.judge(lock(&self.shared.registry).verifier(token_id))?;
        let admitted = admission::admit(&proven, &self.peer, &self.shared, settings)?;
        self.take_seat()?;
        self.shared.through(Way::Http, None);
        Ok(admitted)
    }

    /// Takes its place among those who are in, at the first request that may have it.
    fn take_seat(&self) -> Result<(), Refusal> {
        let mut seat = lock(&self.seat);
        if !seat.1 {
            let taken = self.shared.seated.take(self.peer.uid);
            *seat = (taken.map_err(|full| Refusal::new(Code::Busy, format!("connections: {full}")))?, true);
            self.watch.is_in();
        }
        Ok(())
    }

    /// What a token is worth that somebody else showed to whoever asks: it is judged without a process, so that one
    /// which is bound to a tree of processes is worth nothing here.
    pub async fn judge(&self, field: Option<&HeaderValue>) -> Option<Admitted> {
        let settings = lock(&self.shared.settings).clone();
        self.judge_token(self.read(field, &settings).ok()?).await
    }

    /// As above, for a token that came in another way.
    pub async fn judge_token(&self, token: Token) -> Option<Admitted> {
        let worth_nothing = |Refused { refusal, session }: Refused| {
            // It is no handshake of the one who asks, and is not counted as one.
            self.shared.log.refused(Some(&self.peer), Some(self.peer.uid), &refusal, session.as_ref());
        };
        let admitted = self.try_judge(token).map_err(worth_nothing).ok()?;
        // Whose it is may be admitted no more, and is not there to be turned away.
        let uid = admitted.session.uid;
        if !self.is_vouched_for(uid).await {
            let reason = lock(&self.shared.settings).policy.refusal_of(uid);
            let refusal = Refusal::new(Code::PeerDenied, format!("asked about a token: {reason}"));
            worth_nothing(Refused { refusal, session: Some(admitted.session.id) });
            return None;
        }
        // It may have ended meanwhile.
        lock(&self.shared.registry).judge(admitted.token_id, now()).ok()
    }

    fn try_judge(&self, token: Token) -> Result<Admitted, Refused> {
        let settings = lock(&self.shared.settings).clone();
        admission::refuse_plain(&settings)?;
        let presented = Presented::shown(token);
        let token_id = presented.token_id();
        let registry = lock(&self.shared.registry);
        let proven = presented.judge(registry.verifier(token_id))?;
        let admitted = registry.judge(token_id, now())?;
        admission::refuse_shown(&proven, &admitted, &settings)?;
        Ok(admitted)
    }

    /// Whether the policy admits a user, in whatever process.
    async fn is_vouched_for(&self, uid: u32) -> bool {
        let policy = lock(&self.shared.settings).policy.clone();
        if policy.vouches_for(uid, Vec::new) {
            return true;
        }
        if policy.others.as_ref().is_none_or(|others| others.gids.is_empty()) {
            return false;
        }
        // The lists may be in the network, and nobody else waits for them.
        let listed = tokio::task::spawn_blocking(move || accounts::groups_of(uid)).await;
        match listed {
            Ok(Ok(groups)) => policy.vouches_for(uid, || groups),
            Ok(Err(error)) => {
                tracing::warn!(
                    authsock_event = "groups_unknown",
                    "a token of uid {uid} is worth nothing at present: its groups cannot be looked up: {error}"
                );
                false
            }
            Err(_) => false,
        }
    }

    /// Whether the policy still admits the peer.
    pub fn is_admitted(&self) -> bool {
        lock(&self.shared.settings).policy.admits(&self.peer, || peer::groups(&*self.stream))
    }

    /// Whether a token is what its id says.
    pub fn is_genuine(&self, token: Token) -> bool {
        let presented = Presented::shown(token);
        let token_id = presented.token_id();
        presented.judge(lock(&self.shared.registry).verifier(token_id)).is_ok()
    }

    /// Has what could not be written at once written later only if that is still good then.
    pub fn guard(&self, is_good: impl Fn() -> bool + Send + Sync + 'static) {
        self.watch.guard(Box::new(is_good));
    }

    /// Nothing more comes of the answer that is guarded so.
    pub fn end_guarded(&self) {
        self.watch.end_guarded();
    }

    /// Notes that somebody asked about a token who may not.
    pub fn refuse_asker(&self) {
        let reason = "asked over HTTP what a token is worth: the user is not in policy.verifiers, and no token with the scope verify came in Authsock-Asker";
        self.log(&Refusal::new(Code::NotPermitted, reason), None);
    }

    fn note(&self, violation: Violation) {
        let refusal = Refusal::new(Code::Malformed, format!("HTTP: {violation}"));
        self.log(&refusal, None);
    }
}

impl NotProven {
    /// The status that tells of it.
    pub fn status(&self) -> StatusCode {
        match self.code {
            Code::Denied | Code::Expired | Code::Revoked => StatusCode::UNAUTHORIZED,
            Code::Busy | Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::FORBIDDEN,
        }
    }

    /// The answer. The connection closes then: who guesses does so once.
    pub fn answer(&self, schemes: &[Scheme]) -> Response<Body> {
        let status = self.status();
        let detail = match self.code {
            Code::Denied if !self.is_shown => {
                let scheme = schemes.first().map_or("Bearer", Scheme::as_str);
                Cow::from(format!(
                    "this needs a token: send the header field Authorization with {scheme} and its 64 hexadecimal digits"
                ))
            }
            // Nothing else is not permitted to whoever proves itself.
            Code::NotPermitted => Cow::from(
                "a token of this kind may not be shown here (handshake.plain): use a session's, or the proof handshake of docs/protocol.md",
            ),
            Code::Denied => Cow::from(
                "the token was not accepted: the present one is in the file that AUTHSOCK_TOKEN_FILE names in a session, or else the owner's",
            ),
            // Who may connect for nothing else has come as far as this.
            Code::PeerDenied => Cow::from(
                "this user may ask GET /v1/verify and POST /v1/introspect (policy.verifiers), and nothing else",
            ),
            Code::Binding => Cow::from(
                "the token is not good for this process: it is another session's, or the owner's within a session; AUTHSOCK_TOKEN_FILE names this one's",
            ),
            code => Cow::from(code.sentence()),
        };
        let mut answer = problem(status, &detail);
        let fields = answer.headers_mut();
        fields.insert(CONNECTION, HeaderValue::from_static("close"));
        if status == StatusCode::UNAUTHORIZED {
            let error = self.is_shown.then_some("invalid_token");
            let value = challenges(schemes.iter().map(Scheme::as_str), error, None);
            fields.extend(HeaderValue::try_from(value).ok().map(|value| (WWW_AUTHENTICATE, value)));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            fields.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        answer
    }
}

/// An answer with a body that is there whole.
pub fn whole(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut answer = Response::new(Full::new(body.into()).boxed_unsync());
    *answer.status_mut() = status;
    let fields = answer.headers_mut();
    if !kind.is_empty() {
        fields.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    // What one session is told is no other's, on no way and in no cache.
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    fields.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// An answer that tells what is wrong (RFC 9457).
pub fn problem(status: StatusCode, detail: &str) -> Response<Body> {
    let title = status.canonical_reason().unwrap_or_default();
    whole(status, PROBLEM, Problem::new(status.as_u16(), title, detail).to_json())
}
