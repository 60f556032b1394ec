//! Who may say and hear what: scopes, inboxes, and what is the daemon's own.

use super::Site;
use crate::session::registry::Registry;
use crate::session::scope::{Scope, Verb};
use crate::session::{Session, SessionId};
use crate::wire::subject::{BUILT_IN, INBOX, Pattern, Subject};

/// What is below it and the daemon's own is for the owner alone.
const FOR_THE_OWNER: &str = "auth";

/// Who of a realm hears an event, whatever patterns match it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    /// Everybody there.
    Realm,
    /// One session.
    Session(SessionId),
    /// The daemon's owner.
    Owner,
}

/// Why a session does not say something.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::daemon) enum NotSaid {
    #[error(
        "publishing {subject} needs the scope events:publish:{subject}, which this session lacks; it has what `run --allow` named, or the default ones"
    )]
    Scope { subject: String },
    #[error("only the daemon publishes below {BUILT_IN}")]
    BuiltIn,
    #[error(
        "an inbox is {INBOX}.ID and what is below, where ID is a living session of the realm; {0:?} is none"
    )]
    NoInbox(String),
}

/// Why a session does not hear something.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::daemon) enum NotHeard {
    #[error(
        "subscribing to {pattern} needs the scope events:subscribe:{pattern}, which this session lacks; it has what `run --allow` named, or the default ones"
    )]
    Scope { pattern: String },
    #[error("{0} is another session's inbox; this session's own is {INBOX}.{1}.>")]
    Inbox(String, SessionId),
    #[error("{0} is for the daemon's owner alone")]
    Owner(String),
}

impl Audience {
    /// Who hears what a session says: everybody of the realm, but an inbox is for its session.
    pub(super) fn of(subject: &Subject, site: &Site, registry: &Registry) -> Result<Audience, NotSaid> {
        let mut tokens = subject.tokens();
        if tokens.next() != Some(INBOX) {
            return Ok(Audience::Realm);
        }
        let named = tokens.next().unwrap_or_default();
        let session = named.parse().ok().and_then(|id| registry.get(&id));
        match session.filter(|session| session.uid == site.uid && session.realm == site.realm) {
            Some(session) => Ok(Audience::Session(session.id)),
            None => Err(NotSaid::NoInbox(named.chars().take(32).collect())),
        }
    }

    /// Who hears what the daemon says.
    pub(super) fn of_built_in(subject: &Subject) -> Audience {
        match subject.tokens().nth(1) {
            Some(FOR_THE_OWNER) => Audience::Owner,
            _ => Audience::Realm,
        }
    }

    /// Whether a session that is in the realm, or may look into it, is among them.
    pub(super) fn has(self, session: &Session) -> bool {
        match self {
            Audience::Realm => true,
            Audience::Session(id) => id == session.id,
            Audience::Owner => session.is_owner(),
        }
    }
}

/// Whether a session may publish to a subject.
pub(super) fn may_say(session: &Session, subject: &Subject, needed: &Scope) -> Result<(), NotSaid> {
    if subject.is_built_in() {
        return Err(NotSaid::BuiltIn);
    }
    if !session.scopes.permits(needed) {
        return Err(NotSaid::Scope { subject: subject.to_string() });
    }
    Ok(())
}

/// Whether a session may subscribe to a pattern: its scopes permit all of it, and it names nobody else's.
pub(super) fn may_hear(session: &Session, pattern: &Pattern) -> Result<(), NotHeard> {
    if !permits(session, pattern) {
        return Err(NotHeard::Scope { pattern: pattern.to_string() });
    }
    let mut tokens = pattern.tokens();
    match (tokens.next(), tokens.next()) {
        (Some(INBOX), Some(id)) if !matches!(id, "*" | ">") && id != session.id.as_str() => {
            Err(NotHeard::Inbox(pattern.to_string(), session.id))
        }
        (Some(BUILT_IN), Some(FOR_THE_OWNER)) if !session.is_owner() => {
            Err(NotHeard::Owner(pattern.to_string()))
        }
        _ => Ok(()),
    }
}

/// Whether a session's scopes permit all that a pattern matches.
pub(super) fn permits(session: &Session, pattern: &Pattern) -> bool {
    session.scopes.permits(&Scope::Subjects(Verb::Subscribe, pattern.clone()))
}
