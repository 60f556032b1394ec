//! The gate: a listener that yields only authenticated connections. It does not fail; it refuses, logs, and takes the next.
#![forbid(unsafe_code)]

pub mod connection;
mod http;
mod line;
mod refusals;
pub mod seats;

use std::future::poll_fn;
use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::config::{Config, Plain};
use crate::handshake::server::{ExpectOpening, Opened, Proven, Refusal, Way};
use crate::kernel::peer::{NoPeer, Peer};
use crate::kernel::process;
use crate::secret::random;
use crate::secret::verifier::Verifier;
use crate::session::registry::{Admitted, Comer, NotAdmitted, Registry};
use crate::session::{Millis, SessionId};
use crate::wire::auth::{AUTH_LINE_MAX, Answer, CONTROL, Code, Hex32, PeerView, RefusalBrief, SessionBrief};
use crate::wire::opening::Opening;
pub use connection::Authenticated;
use line::{Buffer, Read};
use refusals::RefusalLog;
use seats::{Seat, Seats};

/// How long a refusal may take to be written.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the gate rests when the process has no descriptors or memory left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Who may connect, before a byte is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The user whose daemon this is.
    pub uid: u32,
    /// Whether root may come too.
    pub allow_root: bool,
}

impl Policy {
    /// Whether a user may connect.
    pub fn admits(&self, uid: u32) -> bool {
        uid == self.uid || (uid == 0 && self.allow_root)
    }
}

/// What a gate goes by; changeable while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Who may connect.
    pub policy: Policy,
    /// Whose tokens may be shown instead of proven.
    pub plain: Plain,
    /// From accept to result.
    pub timeout: Duration,
    /// Connections in the handshake: in all, and of one user.
    pub unauthenticated: (usize, usize),
    /// Authenticated connections: in all, and of one user.
    pub connections: (usize, usize),
}

impl Settings {
    /// What a configuration says, for the daemon of one user.
    pub fn of(config: &Config, uid: u32) -> Settings {
        Settings {
            policy: Policy { uid, allow_root: config.allow_root },
            plain: config.plain,
            timeout: config.handshake_timeout,
            unauthenticated: (config.unauthenticated, config.unauthenticated_per_uid),
            connections: (config.connections, config.connections_per_uid),
        }
    }
}

/// The time as sessions count it.
pub fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
}

/// Locks what no panic can leave half changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What every handshake shares.
struct Shared {
    registry: Arc<Mutex<Registry>>,
    settings: Mutex<Arc<Settings>>,
    waiting: Seats,
    seated: Seats,
    log: RefusalLog,
}

/// A listener that yields only authenticated connections.
///
/// Handshakes run side by side while [`Gate::accept`] is awaited; a slow peer keeps nobody else
/// waiting. Dropping the gate closes its listeners and every connection that is not through yet.
pub struct Gate {
    listeners: Vec<UnixListener>,
    next: usize,
    shared: Arc<Shared>,
    handshakes: JoinSet<Option<Authenticated>>,
}

impl Gate {
    /// Puts a gate in front of listening sockets. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If the runtime cannot watch a socket.
    pub fn new(
        listeners: Vec<StdListener>,
        registry: Arc<Mutex<Registry>>,
        settings: Settings,
    ) -> io::Result<Gate> {
        let listeners = listeners
            .into_iter()
            .map(|listener| {
                listener.set_nonblocking(true)?;
                UnixListener::from_std(listener)
            })
            .collect::<io::Result<_>>()?;
        let shared = Shared {
            registry,
            waiting: Seats::new(settings.unauthenticated),
            seated: Seats::new(settings.connections),
            settings: Mutex::new(Arc::new(settings)),
            log: RefusalLog::default(),
        };
        Ok(Gate { listeners, next: 0, shared: Arc::new(shared), handshakes: JoinSet::new() })
    }

    /// Changes what later connections are judged by.
    pub fn set(&self, settings: Settings) {
        self.shared.waiting.set(settings.unauthenticated);
        self.shared.seated.set(settings.connections);
        *lock(&self.shared.settings) = Arc::new(settings);
    }

    /// How many connections are in the handshake.
    pub fn in_handshake(&self) -> usize {
        self.handshakes.len()
    }

    /// The next connection that is authenticated.
    ///
    /// Cancel safe: a connection is either returned or still in the gate.
    pub async fn accept(&mut self) -> Authenticated {
        loop {
            tokio::select! {
                Some(done) = self.handshakes.join_next(), if !self.handshakes.is_empty() => match done {
                    Ok(Some(authenticated)) => return authenticated,
                    Ok(None) => {}
                    Err(error) => tracing::error!(authsock_event = "bug", "a handshake ended badly: {error}"),
                },
                accepted = accept_any(&self.listeners, &mut self.next) => match accepted {
                    Ok(stream) => self.admit(stream),
                    Err(error) => recover(&error).await,
                },
            }
        }
    }

    /// Waits for a connection on any of the sockets, without a handshake. For a daemon that cannot
    /// serve and only answers so.
    ///
    /// # Errors
    /// As accept(2), after a rest where the process has run out of something.
    pub async fn accept_unserved(&mut self) -> io::Result<UnixStream> {
        let accepted = accept_any(&self.listeners, &mut self.next).await;
        if let Err(error) = &accepted {
            recover(error).await;
        }
        accepted
    }

    /// Waits until everything that is in the handshake is through or refused, and gives the next
    /// one that is through. New connections are not taken meanwhile.
    ///
    /// Cancel safe, as [`Gate::accept`] is.
    pub async fn finish(&mut self) -> Option<Authenticated> {
        while let Some(done) = self.handshakes.join_next().await {
            if let Ok(Some(authenticated)) = done {
                return Some(authenticated);
            }
        }
        None
    }

    /// Whether a connection waits on any of the sockets. It is taken in if so.
    pub fn take_waiting(&mut self) -> bool {
        let mut none = std::task::Context::from_waker(std::task::Waker::noop());
        match poll_any(&self.listeners, &mut self.next, &mut none) {
            Poll::Ready(Ok(stream)) => {
                self.admit(stream);
                true
            }
            Poll::Ready(Err(_)) | Poll::Pending => false,
        }
    }

    /// Begins the handshake with a connection, after the checks that come before a byte is read:
    /// credentials, policy, a seat.
    pub fn admit(&mut self, stream: UnixStream) {
        let shared = self.shared.clone();
        let settings = lock(&shared.settings).clone();
        match greet(&stream, &shared, &settings) {
            Ok((peer, seat)) => {
                self.handshakes.spawn(async move { converse(stream, peer, seat, &shared, &settings).await });
            }
            Err((peer, refusal)) => {
                let uid = peer.as_ref().map(|peer| peer.uid);
                shared.log.refused(peer.as_ref(), uid, &refusal, None);
                self.handshakes.spawn(async move {
                    refuse(&stream, refusal.code).await;
                    None
                });
            }
        }
    }

    /// Answers a connection that cannot be served with `code`, in the language that it speaks.
    pub fn turn_away(&mut self, stream: UnixStream, code: Code) {
        // The least policy: the configuration may be what is broken.
        let uid = lock(&self.shared.settings).policy.uid;
        let code = match Peer::of(&stream) {
            Ok(peer) if peer.uid == uid => code,
            Ok(peer) => {
                let refusal = Refusal::new(Code::PeerDenied, format!("uid {} is not uid {uid}", peer.uid));
                self.shared.log.refused(Some(&peer), Some(peer.uid), &refusal, None);
                Code::PeerDenied
            }
            Err(error) => {
                let refusal = Refusal::new(Code::PeerDenied, error.to_string());
                self.shared.log.refused(None, None, &refusal, None);
                Code::PeerDenied
            }
        };
        let patience = lock(&self.shared.settings).timeout;
        self.handshakes.spawn(async move {
            if code != Code::PeerDenied {
                let mut buffer = Buffer::new();
                let first = timeout_at(Instant::now() + patience, buffer.first(&stream)).await;
                if matches!(first, Ok(Ok(Some(byte))) if Opening::of(byte) == Opening::Http) {
                    http::answer(&stream, &mut buffer, http::Status::ServiceUnavailable, patience).await;
                    return None;
                }
            }
            refuse(&stream, code).await;
            None
        });
    }
}

/// The next connection on any listener; they take turns, so that none starves.
async fn accept_any(listeners: &[UnixListener], next: &mut usize) -> io::Result<UnixStream> {
    poll_fn(|context| poll_any(listeners, next, context)).await
}

fn poll_any(
    listeners: &[UnixListener],
    next: &mut usize,
    context: &mut std::task::Context<'_>,
) -> Poll<io::Result<UnixStream>> {
    for step in 0..listeners.len() {
        let place = (*next + step) % listeners.len();
        if let Poll::Ready(accepted) = listeners[place].poll_accept(context) {
            *next = place + 1;
            return Poll::Ready(accepted.map(|(stream, _)| stream));
        }
    }
    Poll::Pending
}

/// Three kinds of errors: the connection's own is nothing; exhaustion passes, given time; anything
/// else is said.
async fn recover(error: &io::Error) {
    match error.raw_os_error() {
        Some(libc::ECONNABORTED | libc::EINTR | libc::EAGAIN) => {}
        _ => {
            tracing::warn!(authsock_event = "accept_failed", "cannot accept a connection at present: {error}");
            tokio::time::sleep(EXHAUSTED_PAUSE).await;
        }
    }
}

/// What is checked before the first byte is read.
fn greet(
    stream: &UnixStream,
    shared: &Shared,
    settings: &Settings,
) -> Result<(Peer, Seat), (Option<Peer>, Refusal)> {
    let peer = Peer::of(stream).map_err(|error: NoPeer| (None, Refusal::new(Code::PeerDenied, error.to_string())))?;
    if !settings.policy.admits(peer.uid) {
        let reason = match peer.uid {
            0 => "uid 0 is not admitted (policy.allow_root is false)".to_owned(),
            uid => format!("uid {uid} is not uid {}", settings.policy.uid),
        };
        return Err((Some(peer), Refusal::new(Code::PeerDenied, reason)));
    }
    match shared.waiting.take(peer.uid) {
        Ok(seat) => Ok((peer, seat)),
        Err(full) => {
            let refusal = Refusal::new(Code::Busy, format!("unauthenticated connections: {full}"));
            Err((Some(peer), refusal))
        }
    }
}

/// A refusal that may name a session.
struct Refused {
    refusal: Refusal,
    session: Option<SessionId>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Refused {
        Refused { refusal, session: None }
    }
}

impl From<NotAdmitted> for Refused {
    fn from(NotAdmitted { code, reason, session }: NotAdmitted) -> Refused {
        Refused { refusal: Refusal { code, reason }, session }
    }
}

/// How a conversation ended that did not fail.
enum Outcome {
    Through { admitted: Admitted, way: Way, rest: Vec<u8> },
    /// The other end left before it said anything that needs an answer.
    Left,
    /// It speaks HTTP and was answered.
    Http,
}

async fn converse(
    stream: UnixStream,
    peer: Peer,
    seat: Seat,
    shared: &Shared,
    settings: &Settings,
) -> Option<Authenticated> {
    let deadline = Instant::now() + settings.timeout;
    let result = match timeout_at(deadline, authenticate(&stream, &peer, shared, settings)).await {
        Ok(result) => result,
        Err(_) => Err(Refusal::new(Code::Timeout, format!("no result within {:?}", settings.timeout)).into()),
    };
    // From here on the connection is counted elsewhere.
    let taken = match &result {
        Ok(Outcome::Through { .. }) => Some(shared.seated.take(peer.uid)),
        _ => None,
    };
    drop(seat);
    let refused = match (result, taken) {
        (Ok(Outcome::Through { admitted, way, rest }), Some(Ok(seat))) => {
            let session = &admitted.session;
            tracing::debug!(
                authsock_event = "authenticated",
                authsock_session = session.id.as_str(),
                authsock_peer_uid = peer.uid,
                authsock_peer_pid = peer.pid.0,
                "process {} (uid {}) is in session {} ({})",
                peer.pid,
                peer.uid,
                session.id,
                session.name
            );
            let brief = SessionBrief {
                id: session.id.to_string(),
                name: session.name.to_string(),
                realm: session.realm.to_string(),
            };
            let greeting = Answer::Accepted(brief).to_line().into_bytes();
            return Some(Authenticated::assertion(stream, peer, admitted, way, rest, greeting, seat));
        }
        (Ok(Outcome::Through { admitted, .. }), Some(Err(full))) => Refused {
            refusal: Refusal::new(Code::Busy, format!("connections: {full}")),
            session: Some(admitted.session.id.clone()),
        },
        (Ok(_), _) => return None,
        (Err(refused), _) => refused,
    };
    shared.log.refused(Some(&peer), Some(peer.uid), &refused.refusal, refused.session.as_ref());
    refuse(&stream, refused.refusal.code).await;
    None
}

/// The order of admission, from the first byte to a session.
async fn authenticate(
    stream: &UnixStream,
    peer: &Peer,
    shared: &Shared,
    settings: &Settings,
) -> Result<Outcome, Refused> {
    let mut buffer = Buffer::new();
    match buffer.first(stream).await {
        Ok(Some(byte)) => match Opening::of(byte) {
            Opening::Handshake => {}
            Opening::Http => {
                http::answer(stream, &mut buffer, http::Status::NotImplemented, settings.timeout).await;
                return Ok(Outcome::Http);
            }
            Opening::Unknown => {
                return Err(Refusal::new(Code::Malformed, "the first byte is neither { nor a letter").into());
            }
        },
        Ok(None) | Err(_) => return Ok(Outcome::Left),
    }
    let Some(line) = next_line(&mut buffer, stream).await? else { return Ok(Outcome::Left) };
    let proven = match ExpectOpening.read(&line)? {
        Opened::Plain(presented) => {
            if settings.plain == Plain::None {
                let reason = "a plain token was shown (handshake.plain = \"none\")";
                return Err(Refusal::new(Code::NotPermitted, reason).into());
            }
            let registry = lock(&shared.registry);
            let token_id = presented.token_id();
            presented.judge(registry.verifier(token_id))?
        }
        Opened::Proof(announced) => {
            alive(peer)?;
            let known = lock(&shared.registry).verifier(announced.token_id()).cloned();
            let is_known = known.is_some();
            let no_randomness = |_| Refusal::new(Code::Unavailable, "the operating system gives no random bytes");
            let verifier = match known {
                Some(verifier) => verifier,
                None => Verifier::decoy(announced.token_id()).map_err(no_randomness)?,
            };
            let nonce = Hex32(random::bytes().map_err(no_randomness)?);
            let view = view(peer, announced.wants_start());
            let (challenge, expected) = announced.challenge(verifier, is_known, nonce, view)?;
            if line::write(stream, challenge.as_bytes()).await.is_err() {
                return Ok(Outcome::Left);
            }
            let Some(line) = next_line(&mut buffer, stream).await? else { return Ok(Outcome::Left) };
            expected.read(&line)?
        }
    };
    alive(peer)?;
    let admitted = admit(&proven, peer, shared, settings)?;
    Ok(Outcome::Through { admitted, way: proven.way(), rest: buffer.into_rest() })
}

/// From a proven token to a session that may come in here.
fn admit(proven: &Proven, peer: &Peer, shared: &Shared, settings: &Settings) -> Result<Admitted, Refused> {
    let registry = lock(&shared.registry);
    let admitted = registry.admit(
        proven.token_id(),
        &Comer { uid: peer.uid, is_at_or_below: &|test| peer.open_process()?.is_at_or_below(test) },
        now(),
    )?;
    let session = Some(admitted.session.id.clone());
    let not = |code, reason: &str| Err(Refused { refusal: Refusal::new(code, reason), session: session.clone() });
    if proven.way() == Way::Plain && settings.plain == Plain::Sessions && admitted.session.is_owner() {
        return not(Code::NotPermitted, "the owner's token was shown (handshake.plain = \"sessions\")");
    }
    if proven.service() != CONTROL {
        return not(Code::UnknownService, "no service of that name is configured");
    }
    Ok(admitted)
}

fn alive(peer: &Peer) -> Result<(), Refusal> {
    if peer.is_alive() {
        return Ok(());
    }
    Err(Refusal::new(Code::PeerGone, format!("process {} opened the connection and has ended", peer.pid)))
}

/// What is told, and signed, of the peer.
fn view(peer: &Peer, wants_start: bool) -> PeerView {
    let identity = peer.identity();
    let with_start = wants_start || identity.pidfs.is_none();
    PeerView {
        uid: peer.uid,
        pid: peer.pid.0,
        pidfs: identity.pidfs,
        start: with_start.then(|| identity.start.or_else(|| process::start_time(peer.pid))).flatten(),
        pidns: with_start.then(process::pid_namespace).flatten(),
    }
}

async fn next_line(buffer: &mut Buffer, stream: &UnixStream) -> Result<Option<line::Line>, Refusal> {
    match buffer.line(stream).await {
        Read::Line(line) => Ok(Some(line)),
        Read::End => Ok(None),
        Read::TooLong => {
            Err(Refusal::new(Code::TooLarge, format!("a line is longer than {AUTH_LINE_MAX} bytes")))
        }
    }
}

/// Tells the peer its word and closes, so that it can read it.
async fn refuse(stream: &UnixStream, code: Code) {
    let line = Answer::Refused(RefusalBrief::of(code)).to_line();
    line::farewell(stream, line.as_bytes(), REFUSAL_TIMEOUT).await;
}
