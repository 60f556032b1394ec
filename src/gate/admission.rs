//! The order of admission: from a connection to a session that may come in, one check after the other, and the word for whoever fails one.

use std::sync::Arc;

use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};

use super::connection::{Authenticated, Parts};
use super::http::HttpConnection;
use super::line::{self, Buffer, Read};
use super::seats::Seat;
use super::{REFUSAL_TIMEOUT, Settings, Shared, Through, lock, now};
use crate::config::Plain;
use crate::handshake::server::{ExpectOpening, Opened, Proven, Refusal, Way};
use crate::kernel::peer::{self, NoPeer, Peer};
use crate::kernel::process;
use crate::secret::random;
use crate::secret::verifier::Verifier;
use crate::session::SessionId;
use crate::session::registry::{Admitted, Comer, NotAdmitted};
use crate::wire::auth::{AUTH_LINE_MAX, Answer, CONTROL, Code, Hex32, PeerView, RefusalBrief, SessionBrief};
use crate::wire::opening::Opening;

/// What is checked before the first byte is read.
pub(super) fn greet(
    stream: &UnixStream,
    shared: &Shared,
    settings: &Settings,
) -> Result<(Peer, Seat), (Option<Peer>, Refusal)> {
    let peer = Peer::of(stream).map_err(|error: NoPeer| {
        let code = if matches!(error, NoPeer::Exhausted(_)) { Code::Busy } else { Code::PeerDenied };
        (None, Refusal::new(code, error.to_string()))
    })?;
    let is_verifier = settings.http.enabled && settings.policy.verifiers.contains(&peer.uid);
    if !is_verifier && !settings.policy.admits(&peer, || peer::groups(stream)) {
        let reason = settings.policy.refusal_of(peer.uid);
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
pub(super) struct Refused {
    pub(super) refusal: Refusal,
    pub(super) session: Option<SessionId>,
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
    Through {
        admitted: Admitted,
        way: Way,
        rest: Vec<u8>,
    },
    /// The other end left before it said anything that needs an answer.
    Left,
    /// It speaks HTTP; here is what it said so far.
    Http(Buffer),
}

pub(super) async fn converse(
    stream: UnixStream,
    accepted: Instant,
    peer: Peer,
    seat: Seat,
    shared: &Arc<Shared>,
    settings: &Settings,
) -> Option<Through> {
    let deadline = accepted + settings.timeout;
    let result = match timeout_at(deadline, authenticate(&stream, &peer, shared, settings)).await {
        Ok(result) => result,
        Err(_) => Err(Refusal::new(Code::Timeout, format!("no result within {:?}", settings.timeout)).into()),
    };
    // Outside of the time-out above, whose refusal is none that HTTP understands; the seat is kept.
    if let Ok(Outcome::Http(buffer)) = result {
        let connection = HttpConnection::new(stream, buffer, peer, seat, shared.clone(), deadline);
        if settings.http.enabled {
            return Some(Through::Http(connection));
        }
        connection.send_away().await;
        return None;
    }
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
                session.name.in_brackets()
            );
            shared.through(way, Some(accepted.elapsed()));
            let brief = SessionBrief {
                id: session.id.to_string(),
                name: session.name.to_string(),
                realm: session.realm.to_string(),
            };
            let greeting = Answer::Accepted(brief).to_line().into_bytes();
            let parts = Parts { stream, early: rest, peer, admitted, way, seat };
            return Some(Through::Stream(Authenticated::assertion(parts, greeting)));
        }
        (Ok(Outcome::Through { admitted, .. }), Some(Err(full))) => Refused {
            refusal: Refusal::new(Code::Busy, format!("connections: {full}")),
            session: Some(admitted.session.id),
        },
        (Ok(_), _) => return None,
        (Err(refused), _) => refused,
    };
    shared.refused(Some(&peer), Some(peer.uid), &refused.refusal, refused.session.as_ref());
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
            // A user that only asks about tokens is let in to do so, and for nothing else.
            Opening::Handshake if !settings.policy.admits(peer, || peer::groups(stream)) => {
                let reason = settings.policy.refusal_of(peer.uid);
                return Err(Refusal::new(Code::PeerDenied, reason).into());
            }
            Opening::Handshake => {}
            Opening::Http => return Ok(Outcome::Http(buffer)),
            Opening::Unknown => {
                return Err(Refusal::new(Code::Malformed, "the first byte is neither { nor a letter").into());
            }
        },
        Ok(None) | Err(_) => return Ok(Outcome::Left),
    }
    let Some(line) = next_line(&mut buffer, stream).await? else { return Ok(Outcome::Left) };
    let proven = match ExpectOpening.read(&line)? {
        Opened::Plain(presented) => {
            refuse_plain(settings)?;
            let registry = lock(&shared.registry);
            let token_id = presented.token_id();
            presented.judge(registry.verifier(token_id))?
        }
        Opened::Proof(announced) => {
            alive(peer)?;
            let no_randomness =
                |_| Refusal::new(Code::Unavailable, "the operating system gives no random bytes");
            // Made in any case, so that an unknown id takes no longer than a known one.
            let decoy = Verifier::decoy(announced.token_id()).map_err(no_randomness)?;
            let known = lock(&shared.registry).verifier(announced.token_id()).cloned();
            if let (None, Some(welcome)) = (&known, &shared.welcome) {
                // Before the challenge: the client reads its new token when it hears that.
                welcome(peer).map_err(|reason| Refusal::new(Code::Unavailable, reason))?;
            }
            let is_known = known.is_some();
            let verifier = known.unwrap_or(decoy);
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

/// Refuses a token that was shown where none may be.
pub(super) fn refuse_plain(settings: &Settings) -> Result<(), Refusal> {
    if settings.plain == Plain::None {
        let reason = "a plain token was shown (handshake.plain = \"none\")";
        return Err(Refusal::new(Code::NotPermitted, reason));
    }
    Ok(())
}

/// Refuses a token that stands for somebody where only those of sessions may be shown.
pub(super) fn refuse_shown(proven: &Proven, admitted: &Admitted, settings: &Settings) -> Result<(), Refused> {
    let stands = admitted.session.stands_for_somebody();
    if proven.way() == Way::Plain && settings.plain == Plain::Sessions && stands {
        let reason = "the token of the owner, or of a user, was shown (handshake.plain = \"sessions\")";
        let refusal = Refusal::new(Code::NotPermitted, reason);
        return Err(Refused { refusal, session: Some(admitted.session.id) });
    }
    Ok(())
}

/// From a proven token to a session that may come in here.
pub(super) fn admit(
    proven: &Proven,
    peer: &Peer,
    shared: &Shared,
    settings: &Settings,
) -> Result<Admitted, Refused> {
    let registry = lock(&shared.registry);
    let admitted = registry.admit(
        proven.token_id(),
        &Comer { uid: peer.uid, walk_up: &|visit| peer.open_process()?.walk_up(visit) },
        now(),
    )?;
    let session = Some(admitted.session.id);
    let not = |code, reason: &str| Err(Refused { refusal: Refusal::new(code, reason), session });
    refuse_shown(proven, &admitted, settings)?;
    if proven.service() != CONTROL {
        return not(Code::UnknownService, "no service of that name is configured");
    }
    Ok(admitted)
}

pub(super) fn alive(peer: &Peer) -> Result<(), Refusal> {
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
pub(super) async fn refuse(stream: &UnixStream, code: Code) {
    let line = Answer::Refused(RefusalBrief::of(code)).to_line();
    line::farewell(stream, line.as_bytes(), REFUSAL_TIMEOUT).await;
}
