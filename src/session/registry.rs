//! Every session there is: token id to session in O(1), who may make, change and end whom, and how many fit.
//!
//! Pure. The daemon's own token is the first session, so there is one way to resolve a token.

mod admit;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

pub use admit::{Admitted, Comer, NotAdmitted, Visit};

use super::leaders::Leaders;
use super::limits::Limits;
use super::past::{Ended, Past};
use super::record::Record;
use super::scope::Scopes;
use super::wish::{Change, Maker, NewSession, NotMade, NotRestored};
use super::{Binding, EndReason, Millis, Realm, Session, SessionId};
use crate::kernel::process::Identity;
use crate::secret::token::TokenId;
use crate::secret::verifier::Verifier;

/// How many pairs of scopes are compared at most to find what sessions below one that was narrowed still have.
const PAIRS_MAX: usize = 65_536;
/// How long a rotated token may still connect, in milliseconds, unless asked otherwise.
pub const ROTATION_GRACE: Millis = 60_000;

#[derive(Debug)]
struct Credential {
    verifier: Verifier,
    session: SessionId,
    /// For a rotated token: when its grace ends.
    until: Option<Millis>,
}

/// A living session and the tokens that stand for it: the present one last, and at most one before
/// it that is in its grace.
#[derive(Debug)]
struct Living {
    session: Arc<Session>,
    tokens: Vec<TokenId>,
    /// What came from it.
    children: BTreeSet<SessionId>,
    /// How many are around it, those that stand for somebody not counted, and itself.
    depth: usize,
    /// How many are below it, at any depth.
    below: usize,
    /// How many processes run that led one below it which has ended.
    outlived: usize,
}

impl Living {
    /// One from which nothing came yet.
    fn new(session: Arc<Session>, tokens: Vec<TokenId>, depth: usize) -> Living {
        Living { session, tokens, children: BTreeSet::new(), depth, below: 0, outlived: 0 }
    }

    /// What stands for the owner or a user, with one token.
    fn of_somebody(session: Session) -> Living {
        let tokens = vec![session.token_id];
        Living::new(Arc::new(session), tokens, 0)
    }
}

/// The earlier of two ends, of which a session may have none.
fn earlier(one: Option<Millis>, other: Option<Millis>) -> Option<Millis> {
    [one, other].into_iter().flatten().min()
}

/// All sessions.
#[derive(Debug)]
pub struct Registry {
    limits: Limits,
    sessions: BTreeMap<SessionId, Living>,
    credentials: HashMap<TokenId, Credential>,
    past: Past,
    /// Sessions by their expiry.
    expiries: BTreeSet<(Millis, SessionId)>,
    /// Rotated tokens by the end of their grace.
    graces: BTreeSet<(Millis, TokenId)>,
    per_uid: HashMap<u32, usize>,
    leaders: Leaders,
    /// Users that have a session which stands for them.
    users: BTreeSet<u32>,
}

impl Registry {
    /// A registry whose first session is the owner's.
    pub fn new(owner_uid: u32, owner: Verifier, now: Millis, limits: Limits) -> Registry {
        let session = Session {
            id: SessionId::owner(),
            #[allow(clippy::expect_used)] // a constant that the tests read
            name: super::OWNER.parse().expect("owner is a name"),
            realm: Realm::default(),
            uid: owner_uid,
            leader: None,
            cwd: None,
            parent: None,
            scopes: Scopes::all(),
            binding: Binding::Uid,
            created: now,
            expires: None,
            token_id: owner.id(),
        };
        let credential = Credential { verifier: owner, session: session.id, until: None };
        Registry {
            limits,
            credentials: HashMap::from([(session.token_id, credential)]),
            sessions: BTreeMap::from([(session.id, Living::of_somebody(session))]),
            past: Past::default(),
            expiries: BTreeSet::new(),
            graces: BTreeSet::new(),
            per_uid: HashMap::new(),
            leaders: Leaders::default(),
            users: BTreeSet::new(),
        }
    }

    /// Puts a session into the registry that stands for a user of a system daemon, below the owner's.
    /// If there is one, it gets this token instead, and its old one is worth nothing.
    pub fn set_user(&mut self, uid: u32, verifier: Verifier, scopes: &Scopes, now: Millis) {
        let id = SessionId::of_user(uid);
        self.forget_user(uid, now);
        let before = self.sessions.remove(&id);
        let token_id = verifier.id();
        let session = Session {
            id,
            #[allow(clippy::expect_used)] // a constant that the tests read
            name: super::USER.parse().expect("user is a name"),
            realm: Realm::default(),
            uid,
            leader: None,
            cwd: None,
            parent: Some(SessionId::owner()),
            scopes: scopes.clone(),
            binding: Binding::Uid,
            created: before.as_ref().map_or(now, |living| living.session.created),
            expires: None,
            token_id,
        };
        self.credentials.insert(token_id, Credential { verifier, session: id, until: None });
        self.users.insert(uid);
        let (children, below) =
            before.map_or_else(Default::default, |living| (living.children, living.below));
        self.sessions.insert(id, Living { children, below, ..Living::of_somebody(session) });
    }

    /// Takes all power from the token of the session that stands for a user: its file was removed. What is below
    /// that session stays; the user's next contact gives it a new token.
    pub fn forget_user(&mut self, uid: u32, now: Millis) {
        let living = self.sessions.get_mut(&SessionId::of_user(uid));
        for token_id in living.map(|living| std::mem::take(&mut living.tokens)).into_iter().flatten() {
            self.replace_token(token_id, now);
        }
        self.past.trim(&self.limits, now);
    }

    /// Users that have a token.
    pub fn users(&self) -> impl Iterator<Item = u32> {
        self.users.iter().copied().filter(|uid| self.has_user(*uid))
    }

    /// Whether this user has a token, which stands for the user's session.
    pub fn has_user(&self, uid: u32) -> bool {
        self.sessions.get(&SessionId::of_user(uid)).is_some_and(|living| !living.tokens.is_empty())
    }

    /// Changes what the sessions that stand for users may do. Gives the sessions below them that have
    /// more than that now: they must be ended.
    #[must_use]
    pub fn set_user_scopes(&mut self, scopes: &Scopes) -> Vec<SessionId> {
        let mut wider = Vec::new();
        for uid in &self.users {
            let Some(living) = self.sessions.get_mut(&SessionId::of_user(*uid)) else { continue };
            living.session = Arc::new(Session { scopes: scopes.clone(), ..Session::clone(&living.session) });
            let below = self.subtree(SessionId::of_user(*uid)).into_iter().skip(1);
            let is_wider =
                |id: &SessionId| self.get(id).is_some_and(|session| !scopes.cover(&session.scopes));
            wider.extend(below.filter(is_wider));
        }
        wider
    }

    /// How many sessions fit, and how long what has ended is remembered.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Changes how many sessions fit; those that live stay.
    pub fn set_limits(&mut self, limits: Limits, now: Millis) {
        self.limits = limits;
        self.past.trim(&self.limits, now);
    }

    /// What verifies a token, that of an ended session included: its holder is told so.
    pub fn verifier(&self, token_id: TokenId) -> Option<&Verifier> {
        self.credentials
            .get(&token_id)
            .map(|credential| &credential.verifier)
            .or_else(|| self.past.token(token_id).map(|former| &former.verifier))
    }

    /// Whether a token still stands for a session, and when its grace ends if it was rotated.
    pub fn grace_of(&self, token_id: TokenId) -> Option<Option<Millis>> {
        self.credentials.get(&token_id).map(|credential| credential.until)
    }

    /// The session that somebody was let in to, as it is now, if it still stands and so does the token: neither has
    /// ended, nor ends now.
    pub fn standing(&self, admitted: &Admitted, now: Millis) -> Option<&Arc<Session>> {
        let session = &self.sessions.get(&admitted.session.id)?.session;
        let token = self.credentials.get(&admitted.token_id)?;
        let lasts = |end: Option<Millis>| end.is_none_or(|end| now < end);
        (lasts(token.until) && lasts(session.expires)).then_some(session)
    }

    /// Makes a session below the one that asks. Says too whether its leader is a new one: then it must
    /// be watched, and its end told by [`Registry::end_leader`].
    ///
    /// # Errors
    /// [`NotMade`]; nothing has changed then.
    pub fn create(
        &mut self,
        asker: &Admitted,
        maker: Maker,
        new: NewSession,
        now: Millis,
    ) -> Result<(Arc<Session>, bool), NotMade> {
        let above = self.sessions.get(&asker.session.id).ok_or(NotMade::ParentEnded)?;
        let (parent, depth) = (above.session.clone(), above.depth + 1);
        self.refuse_rotated(asker)?;
        let realm = match new.realm {
            Some(realm) if realm != parent.realm && !parent.stands_for_somebody() => {
                return Err(NotMade::Realm(realm));
            }
            Some(realm) => realm,
            None => parent.realm.clone(),
        };
        if new.binding > parent.binding {
            return Err(NotMade::Binding(new.binding));
        }
        let scopes = parent.scopes.narrowed_to(&new.scopes)?;
        if depth > self.limits.session_depth {
            return Err(NotMade::TooDeep(self.limits.session_depth));
        }
        let most_below = self.limits.session_descendants;
        let is_full = |living: &Living| {
            !living.session.stands_for_somebody() && living.below + living.outlived >= most_below
        };
        if let Some(full) = self.upwards(parent.id).find(|living| is_full(living)) {
            return Err(NotMade::TooManyBelow(most_below, full.session.id));
        }
        // Sessions that stand for somebody do not count against the limit that they enforce.
        if self.len() >= self.limits.sessions {
            return Err(NotMade::Full(self.limits.sessions));
        }
        // The kernel's word; root may come in for a user and stays that user's guest.
        let uid = if maker.uid == 0 { parent.uid } else { maker.uid };
        if self.per_uid.get(&uid).is_some_and(|count| *count >= self.limits.sessions_per_uid) {
            return Err(NotMade::FullForUid(self.limits.sessions_per_uid));
        }
        // A process that led a session is watched, and on record, for as long as it lives: what it costs counts
        // as long.
        if !self.leaders.contains(&maker.leader) {
            if self.leaders.len() >= self.limits.sessions {
                return Err(NotMade::FullOfLeaders(self.limits.sessions));
            }
            if self.leaders.of_uid(uid) >= self.limits.sessions_per_uid {
                return Err(NotMade::FullOfLeadersForUid(self.limits.sessions_per_uid));
            }
        }
        let token_id = new.verifier.id();
        if self.verifier(token_id).is_some() {
            return Err(NotMade::TokenTaken);
        }
        let own_end = new.ttl.map(|ttl| now.saturating_add(ttl));
        let id = loop {
            let id = SessionId::generate(now).map_err(|_| NotMade::NoRandomness)?;
            if !self.sessions.contains_key(&id) && self.past.get(&id).is_none() {
                break id;
            }
        };
        let session = Arc::new(Session {
            id,
            name: new.name,
            realm,
            uid,
            leader: Some(maker.leader),
            cwd: maker.cwd,
            parent: Some(parent.id),
            scopes,
            binding: new.binding,
            created: now,
            expires: earlier(own_end, parent.expires),
            token_id,
        });
        let is_new_leader = self.attach(&session, [(new.verifier, None)]);
        Ok((session, is_new_leader))
    }

    /// Undoes what [`Registry::create`] just did, as if it had never been.
    pub fn take_back(&mut self, session: &Session, was_new_leader: bool) {
        for token_id in self.detach(&session.id).into_iter().flat_map(|living| living.tokens) {
            self.credentials.remove(&token_id);
        }
        if let Some(leader) = session.leader.filter(|_| was_new_leader) {
            let _ = self.leaders.remove(&leader);
        }
    }

    /// Puts a session in its places, with the tokens that stand for it; says whether its leader is a
    /// new one.
    fn attach(
        &mut self,
        session: &Arc<Session>,
        tokens: impl IntoIterator<Item = (Verifier, Option<Millis>)>,
    ) -> bool {
        let id = session.id;
        let tokens =
            tokens.into_iter().map(|(verifier, until)| self.add_token(id, verifier, until)).collect();
        *self.per_uid.entry(session.uid).or_default() += 1;
        let parent = session.parent.and_then(|parent| self.sessions.get_mut(&parent));
        let depth = parent.map_or(0, |parent| {
            parent.children.insert(id);
            parent.depth + 1
        });
        self.count_below(session.parent, true);
        if let Some(expires) = session.expires {
            self.expiries.insert((expires, id));
        }
        self.sessions.insert(id, Living::new(session.clone(), tokens, depth));
        session.leader.is_some_and(|leader| {
            let is_new = self.leaders.add(&leader, session.uid);
            self.leaders.note(&leader, id, true);
            is_new
        })
    }

    /// Counts one more, or one less, below a session and all around it.
    fn count_below(&mut self, mut id: Option<SessionId>, more: bool) {
        while let Some(living) = id.and_then(|id| self.sessions.get_mut(&id)) {
            living.below = if more { living.below + 1 } else { living.below.saturating_sub(1) };
            id = living.session.parent;
        }
    }

    /// A session and those around it, the innermost first.
    fn upwards(&self, id: SessionId) -> impl Iterator<Item = &Living> {
        let parent = |living: &&Living| living.session.parent.and_then(|id| self.sessions.get(&id));
        std::iter::successors(self.sessions.get(&id), parent)
    }

    /// A session and all that came from it, each after the one that it came from.
    fn subtree(&self, id: SessionId) -> Vec<SessionId> {
        // Not recursive, so that no chain of sessions is too long.
        let mut order = vec![id];
        let mut next = 0;
        while let Some(id) = order.get(next) {
            let children = self.sessions.get(id).map(|living| &living.children);
            order.extend(children.into_iter().flatten());
            next += 1;
        }
        order
    }

    fn add_token(&mut self, session: SessionId, verifier: Verifier, until: Option<Millis>) -> TokenId {
        let token_id = verifier.id();
        if let Some(until) = until {
            self.graces.insert((until, token_id));
        }
        self.credentials.insert(token_id, Credential { verifier, session, until });
        token_id
    }

    /// Takes a session out of all places but those of its tokens and of its leader's process. What came from it
    /// must have been taken out before.
    fn detach(&mut self, id: &SessionId) -> Option<Living> {
        let living = self.sessions.remove(id)?;
        let session = &living.session;
        if let Some(expires) = session.expires {
            self.expiries.remove(&(expires, *id));
        }
        if let Some(parent) = session.parent.and_then(|parent| self.sessions.get_mut(&parent)) {
            parent.children.remove(id);
        }
        self.count_below(session.parent, false);
        if let Some(leader) = session.leader {
            self.leaders.note(&leader, *id, false);
        }
        if let Some(count) = self.per_uid.get_mut(&session.uid) {
            *count -= 1;
            if *count == 0 {
                self.per_uid.remove(&session.uid);
            }
        }
        Some(living)
    }

    /// What is to be kept of a living session, so that it outlives the daemon.
    pub fn record(&self, id: &SessionId) -> Option<Record> {
        let Living { session, tokens, .. } = self.sessions.get(id)?;
        let tokens = tokens.iter().filter_map(|token_id| self.credentials.get(token_id));
        let tokens = tokens.map(|credential| (credential.verifier.clone(), credential.until)).collect();
        Some(Record::of(Session::clone(session), tokens))
    }

    /// Lets a session live on that a daemon before kept a record of, and whose leader is known to
    /// live. Says whether the leader is a new one, as [`Registry::create`] does.
    ///
    /// # Errors
    /// [`NotRestored`]; nothing has changed then.
    pub fn restore(&mut self, record: &Record, now: Millis) -> Result<bool, NotRestored> {
        let session = &record.session;
        let parent = session.parent.as_ref().and_then(|id| self.get(id)).ok_or(NotRestored::Orphan)?;
        if !parent.may_have(session) {
            return Err(NotRestored::Wider);
        }
        if self.get(&session.id).is_some()
            || record.tokens.iter().any(|(verifier, _)| self.verifier(verifier.id()).is_some())
        {
            return Err(NotRestored::Taken);
        }
        if self.len() >= self.limits.sessions {
            return Err(NotRestored::Full(self.limits.sessions));
        }
        if self.per_uid.get(&session.uid).is_some_and(|count| *count >= self.limits.sessions_per_uid) {
            return Err(NotRestored::FullForUid(self.limits.sessions_per_uid));
        }
        // A grace that ended while no daemon ran is over like any other.
        let is_new_leader = self.attach(&Arc::new(session.clone()), record.tokens.iter().cloned());
        self.end_graces(now);
        Ok(is_new_leader)
    }

    /// Remembers a session that ended before this daemon began. If its leader still lives, nobody below that one
    /// is the owner; says then whether it is a new one, as [`Registry::create`] does.
    pub fn restore_ended(
        &mut self,
        record: &Record,
        reason: EndReason,
        at: Millis,
        leader_lives: bool,
        now: Millis,
    ) -> bool {
        let tokens = record.tokens.iter().map(|(verifier, _)| verifier.clone());
        let tokens = tokens.filter(|verifier| self.verifier(verifier.id()).is_none()).collect();
        let session = Arc::new(record.session.clone());
        let is_known = self.get(&session.id).is_some() || self.past.get(&session.id).is_some();
        if !is_known {
            // A clock that was set back keeps nothing for longer.
            self.past.remember(Ended { session, reason, at: at.min(now) }, tokens);
        }
        self.past.trim_user(record.session.uid, &self.limits);
        self.past.trim(&self.limits, now);
        let leader = record.session.leader.filter(|_| leader_lives);
        leader.is_some_and(|leader| self.leaders.add(&leader, record.session.uid))
    }

    /// Lets a token of the owner or a user that came before the present one finish its grace. If the
    /// present one is not that of the record, its file was changed since, and what was before it is
    /// worth nothing.
    pub fn restore_grace(&mut self, record: &Record, now: Millis) {
        let id = &record.session.id;
        let present = self.get(id).map(|session| session.token_id);
        if !id.stands_for_somebody() || present != Some(record.session.token_id) {
            return;
        }
        for (verifier, until) in record.tokens.iter().filter(|(_, until)| until.is_some()) {
            if self.verifier(verifier.id()).is_none() {
                let token_id = self.add_token(*id, verifier.clone(), *until);
                if let Some(living) = self.sessions.get_mut(id) {
                    living.tokens.insert(0, token_id);
                }
            }
        }
        self.end_graces(now);
    }

    /// Notes a process that leads a session of which no more can be read: nobody below it is the owner. Says whether it
    /// is a new one, as [`Registry::create`] does.
    pub fn restore_leader(&mut self, leader: &Identity, uid: u32) -> bool {
        self.leaders.add(leader, uid)
    }

    /// Whether a process leads a session, or led one, and lives as far as is known.
    pub fn leads(&self, process: &Identity) -> bool {
        self.leaders.contains(process)
    }

    /// Ends a session and all that came from it, leaves first. Ending what has ended is nothing.
    /// What stands for the owner or a user cannot end.
    pub fn end(&mut self, id: &SessionId, reason: EndReason, now: Millis) -> Vec<Ended> {
        let mut all_ended = Vec::new();
        if id.stands_for_somebody() {
            return all_ended;
        }
        for ending in self.subtree(*id).into_iter().rev() {
            let Some(Living { session, tokens, .. }) = self.detach(&ending) else { continue };
            let reason = if ending == *id { reason } else { EndReason::ParentEnded };
            let tokens = tokens.into_iter().filter_map(|token_id| self.take_credential(token_id)).collect();
            self.note_outlived(&session);
            let ended = Ended { session, reason, at: now };
            all_ended.push(ended.clone());
            self.past.remember(ended, tokens);
        }
        if let Some(ended) = all_ended.last() {
            self.past.trim_user(ended.session.uid, &self.limits);
        }
        self.past.trim(&self.limits, now);
        all_ended
    }

    /// Notes that a leader's process has ended: ends at most so many of the sessions that it led, and what is below
    /// those, and forgets it once there are none. Whoever gets any asks again.
    pub fn end_leader(&mut self, leader: &Identity, at_most: usize, now: Millis) -> Vec<Ended> {
        let led = self.leaders.led_by(leader, at_most);
        if led.is_empty() {
            for around in self.leaders.remove(leader) {
                if let Some(living) = self.sessions.get_mut(&around) {
                    living.outlived = living.outlived.saturating_sub(1);
                }
            }
        }
        let mut ended = Vec::new();
        for id in led {
            // What is below it goes with it, however many that are.
            if ended.len() < at_most {
                ended.extend(self.end(&id, EndReason::LeaderExited, now));
            }
        }
        ended
    }

    /// Counts a leader that may outlive its session with those around that: what it costs is theirs.
    fn note_outlived(&mut self, ended: &Session) {
        let (Some(leader), Some(parent)) = (ended.leader, ended.parent) else { return };
        let around: Vec<SessionId> = self.upwards(parent).map(|living| living.session.id).collect();
        for id in around.into_iter().filter(|id| !id.stands_for_somebody()) {
            if self.leaders.charge(&leader, id)
                && let Some(living) = self.sessions.get_mut(&id)
            {
                living.outlived += 1;
            }
        }
    }

    fn take_credential(&mut self, token_id: TokenId) -> Option<Verifier> {
        let Credential { verifier, until, .. } = self.credentials.remove(&token_id)?;
        if let Some(until) = until {
            self.graces.remove(&(until, token_id));
        }
        Some(verifier)
    }

    /// Takes a token's power, whose session goes on with another, and remembers for a while that it had some.
    fn replace_token(&mut self, token_id: TokenId, now: Millis) {
        let session = self.credentials.get(&token_id).map(|credential| credential.session);
        if let Some((session, verifier)) = session.zip(self.take_credential(token_id)) {
            self.past.remember_replaced(verifier, session, now);
        }
    }

    /// Sessions that were forgotten since this was asked last: nothing of them need be kept any more.
    pub fn take_forgotten(&mut self) -> Vec<SessionId> {
        self.past.take_forgotten()
    }

    /// What [`Registry::update`] would make of a session and of what came from it, which it may not be wider than
    /// afterwards: those that change, to be kept in this order before it is done, each after all below it.
    ///
    /// # Errors
    /// [`NotMade`].
    pub fn updated(
        &self,
        asker: &Admitted,
        id: &SessionId,
        change: Change,
        now: Millis,
    ) -> Result<Vec<Arc<Session>>, NotMade> {
        self.refuse_rotated(asker)?;
        if id.stands_for_somebody() {
            return Err(NotMade::StandsForSomebody(*id));
        }
        let mut session = Session::clone(self.get(id).ok_or(NotMade::ParentEnded)?);
        session.name = change.name.unwrap_or(session.name);
        if let Some(scopes) = change.scopes {
            if let Some(wider) = scopes.iter().find(|scope| !session.scopes.permits(scope)) {
                return Err(NotMade::Scope(wider.clone()));
            }
            session.scopes = session.scopes.narrowed_to(&scopes)?;
        }
        if let Some(end) = change.ttl.map(|ttl| now.saturating_add(ttl)) {
            if session.expires.is_some_and(|expires| end > expires) {
                return Err(NotMade::Expiry);
            }
            session.expires = Some(end);
        }
        let is_narrower = self.get(id).is_some_and(|before| before.scopes != session.scopes);
        let mut changed = HashMap::from([(*id, Arc::new(session))]);
        let mut order = vec![*id];
        let mut pairs = PAIRS_MAX;
        for below in self.subtree(*id).into_iter().skip(1) {
            let Some(session) = self.get(&below) else { continue };
            let Some(parent) = session.parent.and_then(|parent| changed.get(&parent)) else { continue };
            let scopes = if is_narrower {
                parent.scopes.left_of(&session.scopes, &mut pairs)
            } else {
                session.scopes.clone()
            };
            let expires = earlier(session.expires, parent.expires);
            if scopes == session.scopes && expires == session.expires {
                continue;
            }
            let narrowed = Session { scopes, expires, ..Session::clone(session) };
            changed.insert(below, Arc::new(narrowed));
            order.push(below);
        }
        Ok(order.into_iter().rev().filter_map(|id| changed.remove(&id)).collect())
    }

    /// Puts sessions that [`Registry::updated`] gave in the places of what they were.
    pub fn update(&mut self, changed: &[Arc<Session>]) {
        for session in changed {
            let Some(living) = self.sessions.get_mut(&session.id) else { continue };
            let before = std::mem::replace(&mut living.session, session.clone());
            if let Some(expires) = before.expires {
                self.expiries.remove(&(expires, session.id));
            }
            if let Some(expires) = session.expires {
                self.expiries.insert((expires, session.id));
            }
        }
    }

    /// What [`Registry::rotate`] would make of a session, to be kept before it is done.
    ///
    /// # Errors
    /// As [`Registry::rotate`].
    pub fn rotated(
        &self,
        asker: &Admitted,
        id: &SessionId,
        verifier: &Verifier,
        grace: Millis,
        now: Millis,
    ) -> Result<Record, NotMade> {
        self.may_rotate(asker, verifier)?;
        let Record { session, tokens, .. } = self.record(id).ok_or(NotMade::ParentEnded)?;
        let before = tokens.into_iter().last().map(|(before, _)| (before, Some(now.saturating_add(grace))));
        let tokens = before.into_iter().chain([(verifier.clone(), None)]).collect();
        Ok(Record::of(Session { token_id: verifier.id(), ..session }, tokens))
    }

    /// A rotated token only finishes what it began.
    fn refuse_rotated(&self, asker: &Admitted) -> Result<(), NotMade> {
        let credential = self.credentials.get(&asker.token_id);
        if credential.is_none_or(|credential| credential.until.is_some()) {
            return Err(NotMade::Rotated);
        }
        Ok(())
    }

    fn may_rotate(&self, asker: &Admitted, verifier: &Verifier) -> Result<(), NotMade> {
        self.refuse_rotated(asker)?;
        if self.verifier(verifier.id()).is_some() {
            return Err(NotMade::TokenTaken);
        }
        Ok(())
    }

    /// Gives a session a new token. The old one may connect until the grace ends.
    ///
    /// # Errors
    /// [`NotMade::Rotated`] if the asker's own token was rotated away, [`NotMade::TokenTaken`].
    pub fn rotate(
        &mut self,
        asker: &Admitted,
        id: &SessionId,
        verifier: Verifier,
        grace: Millis,
        now: Millis,
    ) -> Result<Arc<Session>, NotMade> {
        self.may_rotate(asker, &verifier)?;
        let token_id = verifier.id();
        let living = self.sessions.get_mut(id).ok_or(NotMade::ParentEnded)?;
        let session = Arc::new(Session { token_id, ..Session::clone(&living.session) });
        living.session = session.clone();
        // One token is in its grace at most: what was rotated before is worth nothing now.
        let before = living.tokens.pop();
        let earlier = std::mem::replace(&mut living.tokens, before.into_iter().chain([token_id]).collect());
        for token_id in earlier {
            self.replace_token(token_id, now);
        }
        let until = now.saturating_add(grace);
        if let Some((before, credential)) = before.and_then(|id| Some((id, self.credentials.get_mut(&id)?))) {
            credential.until = Some(until);
            self.graces.insert((until, before));
        }
        self.credentials.insert(token_id, Credential { verifier, session: *id, until: None });
        self.past.trim(&self.limits, now);
        Ok(session)
    }

    /// Drops rotated tokens whose grace is over; their holders hear `revoked` for a while. Forgets what ended long
    /// ago.
    pub fn end_graces(&mut self, now: Millis) {
        while let Some((until, token_id)) = self.graces.first().copied().filter(|(until, _)| *until <= now) {
            self.graces.remove(&(until, token_id));
            let session = self.credentials.get(&token_id).map(|credential| credential.session);
            if let Some(living) = session.and_then(|id| self.sessions.get_mut(&id)) {
                living.tokens.retain(|kept| *kept != token_id);
            }
            self.replace_token(token_id, now);
        }
        self.past.trim(&self.limits, now);
    }

    /// A session that has ended and is remembered.
    pub fn ended(&self, id: &SessionId) -> Option<&Ended> {
        self.past.get(id)
    }

    /// Sessions that have ended and are remembered, by their ids, which is by the age that they began at; those after
    /// `after` only.
    pub fn ended_after(&self, after: Option<&SessionId>) -> impl Iterator<Item = &Ended> {
        self.past.iter_after(after)
    }

    /// A living session.
    pub fn get(&self, id: &SessionId) -> Option<&Arc<Session>> {
        self.sessions.get(id).map(|living| &living.session)
    }

    /// Living sessions by their ids, which is by age, the owner's last; those after `after` only.
    pub fn iter_after(&self, after: Option<&SessionId>) -> impl Iterator<Item = &Arc<Session>> {
        use std::ops::Bound;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.sessions.range::<SessionId, _>((from, Bound::Unbounded)).map(|(_, living)| &living.session)
    }

    /// How many sessions live, those that stand for the owner and for users not counted.
    pub fn len(&self) -> usize {
        self.sessions.len() - 1 - self.users.len()
    }

    /// How many processes live that lead a session, or led one.
    pub fn leaders(&self) -> usize {
        self.leaders.len()
    }

    /// Whether the owner is alone.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether `asker` may see or change `target`: itself, what came from it, and for the owner all.
    pub fn reaches(&self, asker: &Session, target: &SessionId) -> bool {
        if asker.is_owner() {
            return true;
        }
        self.upwards(*target).any(|living| living.session.id == asker.id)
    }

    /// The earliest moment at which a session expires, a rotated token's grace ends, or something is forgotten.
    pub fn next_deadline(&self) -> Option<Millis> {
        let expiry = self.expiries.first().map(|(when, _)| *when);
        let grace = self.graces.first().map(|(when, _)| *when);
        expiry.into_iter().chain(grace).chain(self.past.next_deadline(&self.limits)).min()
    }

    /// Sessions whose time is up, at most so many.
    pub fn expired(&self, at_most: usize, now: Millis) -> Vec<SessionId> {
        self.expiries.iter().take_while(|(when, _)| *when <= now).take(at_most).map(|(_, id)| *id).collect()
    }
}

#[cfg(test)]
mod tests;
