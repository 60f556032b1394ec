//! What is asked for of the registry: a new session, a change of one, one of before; and why it is not had.

use super::record::TooLong;
use super::scope::{Scope, TooManyScopes};
use super::{Binding, Millis, Name, Realm, SessionId};
use crate::kernel::process::Identity;
use crate::secret::verifier::Verifier;

/// What somebody asks for who wants a new session.
#[derive(Debug)]
pub struct NewSession {
    /// Its name.
    pub name: Name,
    /// Its realm; the parent's if none is named.
    pub realm: Option<Realm>,
    /// What it shall be able to do; cut down to the parent's.
    pub scopes: Vec<Scope>,
    /// Where its token shall be good.
    pub binding: Binding,
    /// How long it lives at most.
    pub ttl: Option<Millis>,
    /// What verifies its token.
    pub verifier: Verifier,
}

/// The kernel's facts on the process that asks; it becomes the leader.
#[derive(Debug, Clone)]
pub struct Maker {
    /// Its user.
    pub uid: u32,
    /// Itself.
    pub leader: Identity,
    /// Its working directory.
    pub cwd: Option<std::path::PathBuf>,
}

/// What somebody asks for who changes a session. What is not named stays.
#[derive(Debug, Default)]
pub struct Change {
    /// Its name.
    pub name: Option<Name>,
    /// What it shall be able to do from now on.
    pub scopes: Option<Vec<Scope>>,
    /// How long it lives from now on.
    pub ttl: Option<Millis>,
}

/// Why a session was not made, or not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotMade {
    /// Only the owner, or a user's own session, chooses a realm.
    #[error(
        "realm {0}: only the session of the owner or of a user names a realm; this session's children are in its own"
    )]
    Realm(Realm),
    /// A child is bound at least as tightly as its parent.
    #[error("binding {0} is wider than the parent session's")]
    Binding(Binding),
    /// All places are taken.
    #[error("limit sessions = {0} is reached; end some, or raise it in [limits]")]
    Full(usize),
    /// All of this user's places are taken.
    #[error("limit sessions_per_uid = {0} is reached; end some, or raise it in [limits]")]
    FullForUid(usize),
    /// Sessions are within each other as deep as they may be.
    #[error(
        "limit session_depth = {0} is reached: this session is as many within each other; raise it in [limits]"
    )]
    TooDeep(usize),
    /// One that it would be below has as many below it as it may have.
    #[error(
        "limit session_descendants = {0} is reached below session {1}; end some, or raise it in [limits]"
    )]
    TooManyBelow(usize, SessionId),
    /// More scopes than a session has.
    #[error(transparent)]
    TooManyScopes(#[from] TooManyScopes),
    /// A change takes away and never adds.
    #[error("scope {0}: the session does not have it, and a change never widens one")]
    Scope(Scope),
    /// Nor does it put off the end.
    #[error("the session would end later than it does, and a change never puts off its end")]
    Expiry,
    /// What stands for somebody is as the daemon made it.
    #[error("session {0} stands for the owner or for a user, and does not change")]
    StandsForSomebody(SessionId),
    /// All places are taken by processes that lead, or led, sessions.
    #[error(
        "limit sessions = {0} is reached by processes that lead or led sessions and still run; let some end, or raise it in [limits]"
    )]
    FullOfLeaders(usize),
    /// All of this user's places are.
    #[error(
        "limit sessions_per_uid = {0} is reached by processes that lead or led sessions and still run; let some end, or raise it in [limits]"
    )]
    FullOfLeadersForUid(usize),
    /// Another session has this token.
    #[error("another session has this token id; mint a new token")]
    TokenTaken,
    /// A rotated token only finishes what it began.
    #[error("this connection's token was rotated; connect with the new one")]
    Rotated,
    /// The session is over.
    #[error("the session that asks has ended")]
    ParentEnded,
    /// No id can be made.
    #[error("the operating system gives no random bytes")]
    NoRandomness,
    /// What would not outlive the daemon is not promised.
    #[error("the session cannot be recorded: {0}")]
    NotKept(String),
    /// Nor what would not be read back.
    #[error(transparent)]
    TooLong(#[from] TooLong),
}

/// Why a session that a record tells of does not live on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotRestored {
    /// It has no parent to live below.
    #[error("the session that it came from does not live")]
    Orphan,
    /// No session is made so, and a record makes none.
    #[error("its record is wider than the session that it came from")]
    Wider,
    /// Another session has its id or a token of it.
    #[error("another session has its id or its token")]
    Taken,
    /// All places are taken.
    #[error("limit sessions = {0} is reached")]
    Full(usize),
    /// All of this user's places are taken.
    #[error("limit sessions_per_uid = {0} is reached")]
    FullForUid(usize),
}
