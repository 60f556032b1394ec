//! The client's half: from the daemon's lines to a session, with the daemon proven first and a relay found out.
//!
//! The states, each consumed by the line it waits for: `Start` → `ExpectChallenge` → `ExpectResult`
//! → [`SessionBrief`]. Nothing that the daemon says chooses another way: the plain form has no
//! place here.

use super::proof::{Role, Transcript};
use crate::secret::token::Token;
use crate::secret::verifier::{ClientKey, ServerKey};
use crate::wire::auth::{
    self, Answer, Challenge, Code, Hex32, Misread, PeerView, ProofOpening, RefusalBrief, SessionBrief,
    VERSION,
};
use crate::wire::text::printable;

/// What a client knows of itself, taken when it connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnProcess {
    /// Its user id.
    pub uid: u32,
    /// Its process id.
    pub pid: u32,
    /// Inode of its own pidfd, where its kernel has pidfs.
    pub pidfs: Option<u64>,
    /// Its start time in clock ticks since boot; needed where either side has no inode.
    pub start: Option<u64>,
    /// Inode of its pid namespace.
    pub pidns: Option<u64>,
}

/// How sure a client is that nothing sits between it and the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bound {
    /// The daemon's kernel sees this very process.
    Yes,
    /// It sees another one; here is why that was let pass.
    Unbound(String),
}

/// What a client does when the daemon's kernel does not see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RelayPolicy {
    /// Refuses: something relays. The default.
    #[default]
    Refuse,
    /// Goes on, and says so: a forwarded socket that the user asked for.
    AllowUnbound,
}

/// Why a client gave up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The other end spoke, but not this protocol.
    #[error("whatever listens there does not speak the handshake ({0}); no secret was sent")]
    NotADaemon(String),
    /// It could not prove that it knows the token.
    #[error(
        "stale token or impostor: whatever listens there could not prove that it knows this token; no secret was sent. A daemon that was restarted has forgotten its sessions: if this was one, start it again with `authsock run`"
    )]
    StaleTokenOrImpostor,
    /// It proved itself, but sees another process at its end.
    #[error(
        "relay: the daemon is genuine, but {0}; something sits in between and was told nothing. If you forwarded the socket yourself, allow it in the configuration: [client] allow_unbound = true"
    )]
    Relay(String),
    /// It could prove itself, but there is nothing to compare its view with.
    #[error(
        "cannot tell whether something relays: {0}. If you forwarded the socket yourself, allow it in the configuration: [client] allow_unbound = true"
    )]
    Incomparable(String),
    /// It refused.
    #[error("{}", refused(.brief, *.genuine))]
    Refused {
        /// The daemon's words.
        brief: RefusalBrief,
        /// Whether it had proven itself before.
        genuine: bool,
    },
}

fn refused(brief: &RefusalBrief, genuine: bool) -> String {
    let who = if genuine { "the daemon refused" } else { "refused" };
    let RefusalBrief { supported, .. } = brief;
    // Whoever listens chose these words, and may never have proven to be a daemon.
    let (code, message) = (printable(&brief.code), printable(&brief.message));
    let newest = supported.iter().max();
    match newest {
        Some(newest) if code == "version" && *newest < VERSION => {
            format!(
                "{who}: version: it speaks the handshake up to version {newest} and this program speaks {VERSION}: upgrade the daemon"
            )
        }
        Some(_) if code == "version" => {
            format!(
                "{who}: version: it no longer speaks version {VERSION} of the handshake: upgrade this program"
            )
        }
        // We are not gone. What the daemon saw connect was not us, and sat in between.
        _ if code == Code::PeerGone.as_str() => {
            format!(
                "{who}: {code}: relay: the process that opened the connection to the daemon has ended, and it was not this program; something sits in between and was told nothing"
            )
        }
        _ => format!("{who}: {code}: {message}"),
    }
}

impl Failure {
    /// The code of a refusal, if it is one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Failure::Refused { brief, .. } => Some(&brief.code),
            _ => None,
        }
    }
}

impl From<Misread> for Failure {
    fn from(misread: Misread) -> Failure {
        Failure::NotADaemon(misread.to_string())
    }
}

/// Opens a handshake for a token. `nonce` must be fresh.
pub fn start(token: &Token, service: &str, nonce: Hex32, own: OwnProcess) -> (String, ExpectChallenge) {
    let opening = ProofOpening {
        token_id: token.id(),
        nonce,
        service: service.to_owned(),
        wants_start: own.pidfs.is_none(),
    };
    let line = opening.to_line();
    (line, ExpectChallenge { client: ClientKey::of(token), server: ServerKey::of(token), opening, own })
}

/// The opening is out; waits for the daemon's challenge.
#[must_use]
pub struct ExpectChallenge {
    client: ClientKey,
    server: ServerKey,
    opening: ProofOpening,
    own: OwnProcess,
}

impl ExpectChallenge {
    /// Reads the challenge's line, without its newline. The daemon's proof is checked first, then
    /// its view of us; only then is a proof made.
    ///
    /// # Errors
    /// [`Failure`]; nothing but the opening was said then.
    pub fn read(self, line: &[u8], policy: RelayPolicy) -> Result<(String, ExpectResult), Failure> {
        let challenge = match Answer::read(line)? {
            Answer::Challenge(challenge) => challenge,
            Answer::Refused(brief) => return Err(Failure::Refused { brief, genuine: false }),
            Answer::Accepted(_) => {
                return Err(Failure::NotADaemon("it accepted before anything was proven".into()));
            }
        };
        let Challenge { nonce, peer, proof } = challenge;
        if nonce == self.opening.nonce {
            return Err(Failure::StaleTokenOrImpostor);
        }
        let transcript = Transcript {
            token_id: self.opening.token_id,
            client_nonce: self.opening.nonce,
            server_nonce: nonce,
            service: &self.opening.service,
            peer: &peer,
        };
        if !self.server.verify(&transcript.bytes(Role::Server), &proof.0) {
            return Err(Failure::StaleTokenOrImpostor);
        }
        let bound = match (compare(&self.own, &peer), policy) {
            (Ok(()), _) => Bound::Yes,
            (Err(difference), RelayPolicy::AllowUnbound) => Bound::Unbound(difference.to_string()),
            (Err(difference), RelayPolicy::Refuse) => return Err(difference.into()),
        };
        let proof = Hex32(self.client.prove(&transcript.bytes(Role::Client)));
        Ok((auth::proof_line(proof), ExpectResult { bound }))
    }
}

/// How the daemon's view of its peer differs from what we are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Difference {
    #[error("its kernel sees uid {0} at the other end, not this program's uid {1}")]
    Uid(u32, u32),
    #[error("its kernel sees process {0} at the other end, not this program (process {1})")]
    Process(u32, u32),
    #[error("its kernel sees another process at the other end that has this program's pid {0}")]
    Recycled(u32),
    #[error("neither side has pidfds, and pids cannot be compared across pid namespaces")]
    Namespaces,
    #[error("the daemon names no start time for process {0}")]
    NoStart(u32),
    #[error("the daemon names a start time, and this program (process {0}) cannot read its own")]
    NoOwnStart(u32),
}

impl From<Difference> for Failure {
    fn from(difference: Difference) -> Failure {
        let words = difference.to_string();
        match difference {
            Difference::Uid(..) | Difference::Process(..) | Difference::Recycled(_) => Failure::Relay(words),
            Difference::Namespaces | Difference::NoStart(_) | Difference::NoOwnStart(_) => {
                Failure::Incomparable(words)
            }
        }
    }
}

/// Whether the daemon's kernel sees us. A pidfs inode is never reused and is the same in every pid
/// namespace; where either side has none, pid and start time decide, within one pid namespace.
/// The uid is compared only with those, since an inode says more and a uid differs between user
/// namespaces.
fn compare(own: &OwnProcess, seen: &PeerView) -> Result<(), Difference> {
    let other = || {
        if own.pid == seen.pid {
            Difference::Recycled(own.pid)
        } else {
            Difference::Process(seen.pid, own.pid)
        }
    };
    if let (Some(ours), Some(theirs)) = (own.pidfs, seen.pidfs) {
        return if ours == theirs { Ok(()) } else { Err(other()) };
    }
    match (own.pidns, seen.pidns) {
        (Some(ours), Some(theirs)) if ours != theirs => return Err(Difference::Namespaces),
        _ if seen.pid == 0 => return Err(Difference::Namespaces),
        _ => {}
    }
    if own.uid != seen.uid {
        return Err(Difference::Uid(seen.uid, own.uid));
    }
    if own.pid != seen.pid {
        return Err(other());
    }
    match (own.start, seen.start) {
        (Some(ours), Some(theirs)) if ours == theirs => Ok(()),
        (Some(_), Some(_)) => Err(Difference::Recycled(own.pid)),
        // A platform that tells no start times has the pid alone, on both sides.
        (None, None) => Ok(()),
        (None, Some(_)) => Err(Difference::NoOwnStart(own.pid)),
        (Some(_), None) => Err(Difference::NoStart(seen.pid)),
    }
}

/// The proof is out; waits for the result.
#[derive(Debug)]
#[must_use]
pub struct ExpectResult {
    bound: Bound,
}

impl ExpectResult {
    /// Reads the result's line, without its newline.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn read(self, line: &[u8]) -> Result<(SessionBrief, Bound), Failure> {
        match Answer::read(line)? {
            Answer::Accepted(session) => Ok((session, self.bound)),
            Answer::Refused(brief) => Err(Failure::Refused { brief, genuine: true }),
            Answer::Challenge(_) => Err(Failure::NotADaemon("it challenged twice".into())),
        }
    }
}
