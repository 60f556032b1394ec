//! The gate: a listener that yields only authenticated connections. It does not fail; it refuses, logs, and takes the next.
#![forbid(unsafe_code)]

mod admission;
pub(crate) mod burst;
pub mod connection;
pub mod http;
mod line;
pub mod observer;
mod refusals;
pub mod seats;
pub(crate) mod turn;

use std::future::poll_fn;
use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::config::{self, Config, Plain};
use crate::handshake::server::{Refusal, Way};
use crate::kernel::peer::Peer;
use crate::session::Millis;
use crate::session::registry::Registry;
use crate::wire::auth::Code;
use crate::wire::opening::Opening;
use admission::{converse, greet, refuse};
pub use connection::Authenticated;
use http::HttpConnection;
use http::unserved;
use line::Buffer;
pub(crate) use line::{linger, write};
use observer::Observer;
use refusals::RefusalLog;
use seats::Seats;

/// How long a refusal may take to be written.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the gate rests when the process has no descriptors or memory left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);
/// How often it says so.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(10);

/// Who may connect, before a byte is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The user whose daemon this is; root, for the daemon of the whole machine.
    pub uid: u32,
    /// Whether root may come too.
    pub allow_root: bool,
    /// Whom else a daemon of the whole machine serves; nobody, for a user's own.
    pub others: Option<Others>,
    /// Users who may ask over HTTP what tokens are worth, and nothing else unless they may anyway.
    pub verifiers: Vec<u32>,
}

/// Whom a daemon of the whole machine serves beside root.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Others {
    /// Users.
    pub uids: Vec<u32>,
    /// Groups, whose members by the kernel's word at connect(2) may come.
    pub gids: Vec<u32>,
}

impl Policy {
    /// The policy of one user's own daemon.
    pub fn of_user(uid: u32, allow_root: bool) -> Policy {
        Policy { uid, allow_root, others: None, verifiers: Vec::new() }
    }

    /// Whether a peer may connect. Its other groups are asked for only if they decide.
    pub fn admits(&self, peer: &Peer, groups: impl FnOnce() -> Vec<u32>) -> bool {
        let is_in_group = |others: &Others| others.gids.contains(&peer.gid);
        self.others.as_ref().is_some_and(is_in_group) || self.vouches_for(peer.uid, groups)
    }

    /// Whether a user whose process is not there would be admitted. `groups` are asked for only if they decide.
    fn vouches_for(&self, uid: u32, groups: impl FnOnce() -> Vec<u32>) -> bool {
        let is_among = |others: &Others| {
            others.uids.contains(&uid)
                || (!others.gids.is_empty() && groups().iter().any(|group| others.gids.contains(group)))
        };
        uid == self.uid || (uid == 0 && self.allow_root) || self.others.as_ref().is_some_and(is_among)
    }

    /// Why a user is not admitted, and what would change that.
    fn refusal_of(&self, uid: u32) -> String {
        match (uid, &self.others) {
            (uid, Some(_)) => format!("uid {uid} is in neither policy.users nor policy.groups"),
            (0, None) => "uid 0 is not admitted (policy.allow_root is false)".to_owned(),
            (uid, None) => format!("uid {uid} is not uid {}", self.uid),
        }
    }
}

/// Makes a token for an admitted peer that shows none which is known: a user that comes to a system
/// daemon for the first time. Gives words for the log if it cannot.
pub type Welcome = Arc<dyn Fn(&Peer) -> Result<(), String> + Send + Sync>;

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
    /// HTTP.
    pub http: config::Http,
    /// The most bytes of a request's body.
    pub request_line: usize,
    /// How long a client may take nothing of its answers.
    pub write_timeout: Duration,
}

impl Settings {
    /// What a configuration says, for the daemon of one user.
    pub fn of(config: &Config, uid: u32) -> Settings {
        Settings {
            policy: Policy::of_user(uid, config.allow_root),
            plain: config.plain,
            timeout: config.handshake_timeout,
            unauthenticated: (config.unauthenticated, config.unauthenticated_per_uid),
            connections: (config.connections, config.connections_per_uid),
            http: config.http.clone(),
            request_line: config.request_line,
            write_timeout: config.write_timeout,
        }
    }
}

impl Settings {
    /// Connections that are told of a refusal before they were heard: a quarter as many again as may be in the
    /// handshake.
    fn leaving(&self) -> (usize, usize) {
        (self.unauthenticated.0.div_ceil(4), self.unauthenticated.1.div_ceil(4))
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
    /// Of those who are refused before they are heard, while they are told so.
    leaving: Seats,
    seated: Seats,
    log: RefusalLog,
    observer: Option<Arc<dyn Observer>>,
    welcome: Option<Welcome>,
}

impl Shared {
    /// Notes a refusal.
    fn refused(
        &self,
        peer: Option<&Peer>,
        uid: Option<u32>,
        refusal: &Refusal,
        session: Option<&crate::session::SessionId>,
    ) {
        self.log.refused(peer, uid, refusal, session);
        if let Some(observer) = &self.observer {
            let pid = peer.map(|peer| peer.pid.0);
            observer.refused(&observer::Refused { code: refusal.code, uid, pid, session });
        }
    }

    /// Notes that somebody has proven itself.
    fn through(&self, way: Way, took: Option<Duration>) {
        if let Some(observer) = &self.observer {
            observer.through(way, took);
        }
    }
}

/// What came through the gate.
#[must_use = "dropping it closes the connection"]
pub enum Through {
    /// A connection that is authenticated.
    Stream(Authenticated),
    /// A connection that speaks HTTP, where each request is to prove itself.
    Http(HttpConnection),
}

/// A listener that yields only authenticated connections.
///
/// Handshakes run side by side while [`Gate::accept`] is awaited; a slow peer keeps nobody else
/// waiting. Dropping the gate closes its listeners and every connection that is not through yet.
pub struct Gate {
    listeners: Vec<UnixListener>,
    next: usize,
    shared: Arc<Shared>,
    handshakes: JoinSet<Option<Through>>,
    /// When it was last said that no connection can be accepted.
    said: Option<Instant>,
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
        Gate::with(listeners, registry, settings, None, None)
    }

    /// As [`Gate::new`], for a daemon that makes tokens for those who come for the first time, and that counts.
    ///
    /// # Errors
    /// If the runtime cannot watch a socket.
    pub fn with(
        listeners: Vec<StdListener>,
        registry: Arc<Mutex<Registry>>,
        settings: Settings,
        welcome: Option<Welcome>,
        observer: Option<Arc<dyn Observer>>,
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
            leaving: Seats::new(settings.leaving()),
            seated: Seats::new(settings.connections),
            settings: Mutex::new(Arc::new(settings)),
            log: RefusalLog::default(),
            observer,
            welcome,
        };
        Ok(Gate { listeners, next: 0, shared: Arc::new(shared), handshakes: JoinSet::new(), said: None })
    }

    /// Changes what later connections are judged by.
    pub fn set(&self, settings: Settings) {
        self.shared.waiting.set(settings.unauthenticated);
        self.shared.leaving.set(settings.leaving());
        self.shared.seated.set(settings.connections);
        *lock(&self.shared.settings) = Arc::new(settings);
    }

    /// How many connections are in the handshake.
    pub fn in_handshake(&self) -> usize {
        self.handshakes.len()
    }

    /// The next connection that is authenticated. Whoever speaks HTTP is told that it is not spoken here.
    ///
    /// Cancel safe: a connection is either returned or still in the gate.
    pub async fn accept(&mut self) -> Authenticated {
        loop {
            match self.next().await {
                Through::Stream(authenticated) => return authenticated,
                Through::Http(connection) => self.send_away(connection),
            }
        }
    }

    fn send_away(&mut self, connection: HttpConnection) {
        self.handshakes.spawn(async move {
            connection.send_away().await;
            None
        });
    }

    /// The next connection that is authenticated, or that speaks HTTP.
    ///
    /// Cancel safe, as [`Gate::accept`] is.
    pub async fn next(&mut self) -> Through {
        loop {
            tokio::select! {
                Some(done) = self.handshakes.join_next(), if !self.handshakes.is_empty() => match done {
                    Ok(Some(through)) => return through,
                    Ok(None) => {}
                    Err(error) => tracing::error!(authsock_event = "bug", "a handshake ended badly: {error}"),
                },
                accepted = accept_any(&self.listeners, &mut self.next) => match accepted {
                    Ok(stream) => self.admit(stream),
                    Err(error) => recover(&error, &mut self.said).await,
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
        loop {
            tokio::select! {
                // Those who were turned away are gone once they were told: they are no use of the daemon.
                Some(_) = self.handshakes.join_next(), if !self.handshakes.is_empty() => {}
                accepted = accept_any(&self.listeners, &mut self.next) => {
                    if let Err(error) = &accepted {
                        recover(error, &mut self.said).await;
                    }
                    return accepted;
                }
            }
        }
    }

    /// Waits until everything that is in the handshake is through or refused, and gives the next
    /// one that is through. New connections are not taken meanwhile.
    ///
    /// Cancel safe, as [`Gate::accept`] is.
    pub async fn finish(&mut self) -> Option<Through> {
        while let Some(done) = self.handshakes.join_next().await {
            if let Ok(Some(through)) = done {
                return Some(through);
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
        let accepted = Instant::now();
        if let Some(observer) = &shared.observer {
            observer.accepted();
        }
        match greet(&stream, &shared, &settings) {
            Ok((peer, seat)) => {
                self.handshakes
                    .spawn(async move { converse(stream, accepted, peer, seat, &shared, &settings).await });
            }
            Err((peer, refusal)) => {
                let uid = peer.as_ref().map(|peer| peer.uid);
                shared.refused(peer.as_ref(), uid, &refusal, None);
                self.see_off(stream, uid, refusal.code);
            }
        }
    }

    /// Tells a connection its word that was refused unheard. Whoever finds no place for that hears none: it costs
    /// a descriptor until it is told.
    fn see_off(&mut self, stream: UnixStream, uid: Option<u32>, code: Code) {
        // Nobody has this number (see `kernel::peer`): it stands for those who have none.
        let Ok(seat) = self.shared.leaving.take(uid.unwrap_or(u32::MAX)) else { return };
        self.handshakes.spawn(async move {
            refuse(&stream, code).await;
            drop(seat);
            None
        });
    }

    /// Answers a connection that cannot be served with `code`, in the language that it speaks.
    pub fn turn_away(&mut self, stream: UnixStream, code: Code) {
        // The least policy: the configuration may be what is broken. Whom a system daemon would serve
        // is not known then; that it cannot is said to all.
        let policy = lock(&self.shared.settings).policy.clone();
        let (mut uid, is_for_all) = (policy.uid, policy.others.is_some());
        let code = match Peer::of(&stream) {
            Ok(peer) if peer.uid == uid || is_for_all => {
                uid = peer.uid;
                code
            }
            Ok(peer) => {
                let refusal = Refusal::new(Code::PeerDenied, policy.refusal_of(peer.uid));
                self.shared.refused(Some(&peer), Some(peer.uid), &refusal, None);
                Code::PeerDenied
            }
            Err(error) => {
                let refusal = Refusal::new(Code::PeerDenied, error.to_string());
                self.shared.refused(None, None, &refusal, None);
                Code::PeerDenied
            }
        };
        let patience = lock(&self.shared.settings).timeout;
        // Who finds no place is answered without being heard.
        let seat = if code == Code::PeerDenied { None } else { self.shared.waiting.take(uid).ok() };
        let Some(seat) = seat else { return self.see_off(stream, Some(uid), code) };
        self.handshakes.spawn(async move {
            let mut buffer = Buffer::new();
            let deadline = Instant::now() + patience;
            let first = timeout_at(deadline, buffer.first(&stream)).await;
            if matches!(first, Ok(Ok(Some(byte))) if Opening::of(byte) == Opening::Http) {
                unserved::answer(&stream, &mut buffer, unserved::CANNOT_SERVE, deadline).await;
                return None;
            }
            refuse(&stream, code).await;
            drop(seat);
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
async fn recover(error: &io::Error, said: &mut Option<Instant>) {
    match error.kind() {
        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => {}
        _ => {
            if said.is_none_or(|said| said.elapsed() >= COMPLAINT_PAUSE) {
                *said = Some(Instant::now());
                tracing::warn!(
                    authsock_event = "accept_failed",
                    "cannot accept connections at present: {error}"
                );
            }
            tokio::time::sleep(EXHAUSTED_PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::dir::own_uid;
    use crate::secret::token::Token;
    use crate::secret::verifier::Verifier;
    use crate::session::limits::Limits;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream as StdStream;

    #[test]
    fn who_is_refused_unheard_hears_why_as_far_as_there_are_places_for_that() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("socket");
        let listener = StdListener::bind(&path).unwrap();
        let limits = Limits { sessions: 1, sessions_per_uid: 1, ..Limits::default() };
        let verifier = Verifier::of(&Token::generate().unwrap());
        let registry = Registry::new(own_uid(), verifier, now(), limits);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            // Somebody else's gate: this user is refused before a byte is read.
            let mut settings = Settings::of(&Config::default(), own_uid() + 1);
            settings.unauthenticated = (8, 8);
            assert_eq!(settings.leaving(), (2, 2));
            let mut gate = Gate::new(vec![listener], Arc::new(Mutex::new(registry)), settings).unwrap();
            // They neither read nor leave.
            let clients: Vec<StdStream> = (0..5).map(|_| StdStream::connect(&path).unwrap()).collect();
            let mut streams = Vec::new();
            for _ in &clients {
                streams.push(gate.accept_unserved().await.unwrap());
            }
            // All at one moment, so that nobody is gone before the last has come.
            streams.into_iter().for_each(|stream| gate.admit(stream));
            assert_eq!(gate.in_handshake(), 2, "the others were closed");
            while gate.in_handshake() > 0 {
                assert!(gate.finish().await.is_none());
            }
            let told = clients.into_iter().map(|mut client| {
                let mut words = String::new();
                let _ = client.read_to_string(&mut words);
                words
            });
            let told: Vec<String> = told.filter(|words| !words.is_empty()).collect();
            assert_eq!(told.len(), 2, "{told:?}");
            assert!(told.iter().all(|words| words.contains("peer_denied")), "{told:?}");
        });
    }

    #[test]
    fn who_was_turned_away_counts_no_more() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("socket");
        let listener = StdListener::bind(&path).unwrap();
        let registry = Registry::new(
            own_uid(),
            Verifier::of(&Token::generate().unwrap()),
            now(),
            Limits { sessions: 1, sessions_per_uid: 1, ..Limits::default() },
        );
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let settings = Settings::of(&Config::default(), own_uid());
            let mut gate = Gate::new(vec![listener], Arc::new(Mutex::new(registry)), settings).unwrap();
            let mut client = StdStream::connect(&path).unwrap();
            client.write_all(b"{").unwrap();
            let stream = gate.accept_unserved().await.unwrap();
            gate.turn_away(stream, Code::Unavailable);
            assert_eq!(gate.in_handshake(), 1);
            // Nobody else comes; the gate lives on the time that it is given to wait for one.
            let deadline = Instant::now() + Duration::from_secs(10);
            while gate.in_handshake() > 0 {
                assert!(Instant::now() < deadline, "still counted");
                let _ = timeout_at(Instant::now() + Duration::from_millis(5), gate.accept_unserved()).await;
            }
            let mut told = String::new();
            client.read_to_string(&mut told).unwrap();
            assert!(told.contains("unavailable"), "{told}");
        });
    }
}
