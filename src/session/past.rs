//! What was: sessions that ended and tokens that lost their power, remembered for a while, and of each user as many as fit.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::limits::Limits;
use super::{EndReason, Millis, Session, SessionId};
use crate::secret::token::TokenId;
use crate::secret::verifier::Verifier;

/// A session that has ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// What it was.
    pub session: Arc<Session>,
    /// Why it is no more.
    pub reason: EndReason,
    /// Since when.
    pub at: Millis,
}

/// A token that stood for a session once.
#[derive(Debug)]
pub(super) struct Former {
    pub(super) verifier: Verifier,
    pub(super) session: SessionId,
    /// The session's end, or `Revoked` if the token was replaced and the session lived on.
    pub(super) reason: EndReason,
}

#[derive(Debug, Default)]
pub(super) struct Past {
    sessions: BTreeMap<SessionId, (Ended, Vec<TokenId>)>,
    tokens: HashMap<TokenId, Former>,
    by_age: BTreeSet<(Millis, SessionId)>,
    by_age_per_uid: HashMap<u32, BTreeSet<(Millis, SessionId)>>,
    /// Tokens that were replaced, by when.
    replaced: BTreeSet<(Millis, TokenId)>,
    /// Sessions that were forgotten and whose files may still be there.
    forgotten: Vec<SessionId>,
}

impl Past {
    /// Remembers a session that ended, and the tokens that stood for it. Whoever does so trims afterwards.
    pub(super) fn remember(&mut self, ended: Ended, tokens: Vec<Verifier>) {
        let (id, uid, at) = (ended.session.id, ended.session.uid, ended.at);
        let ids = tokens.iter().map(Verifier::id).collect();
        for verifier in tokens {
            let former = Former { session: id, reason: ended.reason, verifier };
            self.tokens.insert(former.verifier.id(), former);
        }
        self.by_age.insert((at, id));
        self.by_age_per_uid.entry(uid).or_default().insert((at, id));
        self.sessions.insert(id, (ended, ids));
    }

    /// Remembers a token whose session goes on with another.
    pub(super) fn remember_replaced(&mut self, verifier: Verifier, session: SessionId, now: Millis) {
        self.replaced.insert((now, verifier.id()));
        let former = Former { session, reason: EndReason::Revoked, verifier };
        self.tokens.insert(former.verifier.id(), former);
    }

    /// Forgets what ended long ago, and of what is more than fits the oldest: of each user, and in all.
    pub(super) fn trim(&mut self, limits: &Limits, now: Millis) {
        let is_due = |at: Millis| at.saturating_add(limits.ended_kept) <= now;
        while let Some((at, id)) = self.by_age.first().copied() {
            if !is_due(at) && self.by_age.len() <= limits.sessions {
                break;
            }
            self.forget(id);
        }
        while let Some((at, token_id)) = self.replaced.first().copied() {
            if !is_due(at) && self.replaced.len() <= limits.sessions {
                break;
            }
            self.replaced.remove(&(at, token_id));
            self.tokens.remove(&token_id);
        }
    }

    /// Forgets of one user what is more than fits.
    pub(super) fn trim_user(&mut self, uid: u32, limits: &Limits) {
        while let Some(of_user) =
            self.by_age_per_uid.get(&uid).filter(|all| all.len() > limits.sessions_per_uid)
        {
            let Some((_, oldest)) = of_user.first().copied() else { return };
            self.forget(oldest);
        }
    }

    fn forget(&mut self, id: SessionId) {
        let Some((ended, tokens)) = self.sessions.remove(&id) else { return };
        let uid = ended.session.uid;
        self.by_age.remove(&(ended.at, id));
        if let Some(of_user) = self.by_age_per_uid.get_mut(&uid) {
            of_user.remove(&(ended.at, id));
            if of_user.is_empty() {
                self.by_age_per_uid.remove(&uid);
            }
        }
        for token_id in tokens {
            self.tokens.remove(&token_id);
        }
        self.forgotten.push(id);
    }

    /// Sessions that were forgotten since this was asked last.
    pub(super) fn take_forgotten(&mut self) -> Vec<SessionId> {
        std::mem::take(&mut self.forgotten)
    }

    /// When the next one is forgotten.
    pub(super) fn next_deadline(&self, limits: &Limits) -> Option<Millis> {
        let session = self.by_age.first().map(|(at, _)| *at);
        let token = self.replaced.first().map(|(at, _)| *at);
        session.into_iter().chain(token).min().map(|at| at.saturating_add(limits.ended_kept))
    }

    #[cfg(test)]
    pub(super) fn tokens_remembered(&self) -> usize {
        self.tokens.len()
    }

    pub(super) fn token(&self, token_id: TokenId) -> Option<&Former> {
        self.tokens.get(&token_id)
    }

    pub(super) fn get(&self, id: &SessionId) -> Option<&Ended> {
        self.sessions.get(id).map(|(ended, _)| ended)
    }

    /// By their ids, which is by the age that they began at; those after `after` only.
    pub(super) fn iter_after(&self, after: Option<&SessionId>) -> impl Iterator<Item = &Ended> {
        use std::ops::Bound;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.sessions.range::<SessionId, _>((from, Bound::Unbounded)).map(|(_, (ended, _))| ended)
    }
}
