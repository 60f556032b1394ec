//! Every session there is: token id to session in O(1), who may come in with a token, who may end whom, and how many fit.
//!
//! Pure but for the walk up the process tree, which the caller passes in. The daemon's own token is
//! the first session, so there is one way to resolve a token.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::Arc;

use super::scope::{Scope, Scopes};
use super::{Binding, EndReason, Millis, Name, Realm, Session, SessionId};
use crate::kernel::process::Identity;
use crate::secret::token::TokenId;
use crate::secret::verifier::Verifier;
use crate::wire::auth::Code;

/// Sessions that may live at once, unless configured.
pub const SESSIONS_MAX: usize = 4096;
/// Sessions that one user may have at once, unless configured.
pub const SESSIONS_PER_UID_MAX: usize = 1024;
/// How long an ended session is remembered, in milliseconds: so long its token is told `revoked`
/// or `expired` instead of `denied`.
pub const ENDED_KEPT: Millis = 3_600_000;
/// How long a rotated token may still connect, in milliseconds, unless asked otherwise.
pub const ROTATION_GRACE: Millis = 60_000;

/// How many sessions fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// In all.
    pub sessions: usize,
    /// Of one user.
    pub sessions_per_uid: usize,
}

impl Default for Capacity {
    fn default() -> Capacity {
        Capacity { sessions: SESSIONS_MAX, sessions_per_uid: SESSIONS_PER_UID_MAX }
    }
}

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

/// Why a session was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotMade {
    /// Only the owner chooses a realm.
    #[error("realm {0}: only the owner's session names a realm; this session's children are in its own")]
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
}

/// Why a proven token is not let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotAdmitted {
    /// What the peer hears.
    pub code: Code,
    /// What the log says.
    pub reason: String,
    /// Whose token it was.
    pub session: Option<SessionId>,
}

/// What the kernel says of the one who comes in with a token.
pub struct Comer<'a> {
    /// Its user.
    pub uid: u32,
    /// Whether it is at or below a process that the test accepts; an error if that cannot be known.
    pub is_at_or_below: &'a dyn Fn(&dyn Fn(&Identity) -> bool) -> io::Result<bool>,
}

/// A session let in with a token.
#[derive(Debug, Clone)]
pub struct Admitted {
    /// The session.
    pub session: Arc<Session>,
    /// Whether the token was rotated away and only finishes its grace.
    pub until: Option<Millis>,
    /// The token it came in with.
    pub token_id: TokenId,
}

#[derive(Debug)]
struct Credential {
    verifier: Verifier,
    session: SessionId,
    /// For a rotated token: when its grace ends.
    until: Option<Millis>,
}

#[derive(Debug)]
struct Ended {
    verifier: Verifier,
    id: SessionId,
    reason: EndReason,
}

/// Leaders of living sessions, found by whichever mark a process has.
#[derive(Debug, Default)]
struct Leaders {
    marks: HashMap<Mark, usize>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
enum Mark {
    Inode(u64),
    Start(u32, u64),
}

impl Mark {
    fn of(identity: &Identity) -> Option<Mark> {
        let start = identity.start.map(|start| Mark::Start(identity.pid.0, start));
        identity.pidfs.map(Mark::Inode).or(start)
    }
}

impl Leaders {
    fn add(&mut self, leader: Option<&Identity>) {
        if let Some(mark) = leader.and_then(Mark::of) {
            *self.marks.entry(mark).or_default() += 1;
        }
    }

    fn remove(&mut self, leader: Option<&Identity>) {
        let Some(mark) = leader.and_then(Mark::of) else { return };
        if let Some(count) = self.marks.get_mut(&mark) {
            *count -= 1;
            if *count == 0 {
                self.marks.remove(&mark);
            }
        }
    }

    fn contains(&self, identity: &Identity) -> bool {
        Mark::of(identity).is_some_and(|mark| self.marks.contains_key(&mark))
    }
}

/// All sessions.
#[derive(Debug)]
pub struct Registry {
    capacity: Capacity,
    sessions: BTreeMap<SessionId, Arc<Session>>,
    children: HashMap<SessionId, HashSet<SessionId>>,
    credentials: HashMap<TokenId, Credential>,
    ended: HashMap<TokenId, Ended>,
    /// Ended tokens by the time they are forgotten, oldest first.
    forget: BTreeMap<(Millis, TokenId), ()>,
    per_uid: HashMap<u32, usize>,
    leaders: Leaders,
}

impl Registry {
    /// A registry whose first session is the owner's.
    pub fn new(owner_uid: u32, owner: Verifier, now: Millis, capacity: Capacity) -> Registry {
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
        let credential = Credential { verifier: owner, session: session.id.clone(), until: None };
        Registry {
            capacity,
            credentials: HashMap::from([(session.token_id, credential)]),
            sessions: BTreeMap::from([(session.id.clone(), Arc::new(session))]),
            children: HashMap::new(),
            ended: HashMap::new(),
            forget: BTreeMap::new(),
            per_uid: HashMap::new(),
            leaders: Leaders::default(),
        }
    }

    /// Changes how many sessions fit; those that live stay.
    pub fn set_capacity(&mut self, capacity: Capacity) {
        self.capacity = capacity;
    }

    /// What verifies a token, that of an ended session included: its holder is told so.
    pub fn verifier(&self, token_id: TokenId) -> Option<&Verifier> {
        self.credentials
            .get(&token_id)
            .map(|credential| &credential.verifier)
            .or_else(|| self.ended.get(&token_id).map(|ended| &ended.verifier))
    }

    /// Whether a token still stands for a session, and when its grace ends if it was rotated.
    pub fn grace_of(&self, token_id: TokenId) -> Option<Option<Millis>> {
        self.credentials.get(&token_id).map(|credential| credential.until)
    }

    /// Lets somebody in whose token is proven, or says why not. The order of the checks: the token
    /// stands for a living session; in time; of its user; bound to its process.
    ///
    /// # Errors
    /// [`NotAdmitted`].
    pub fn admit(&self, token_id: TokenId, comer: &Comer<'_>, now: Millis) -> Result<Admitted, NotAdmitted> {
        let refuse = |code, session: Option<&SessionId>, reason: String| {
            Err(NotAdmitted { code, reason, session: session.cloned() })
        };
        let Some(credential) = self.credentials.get(&token_id) else {
            return match self.ended.get(&token_id) {
                Some(ended) if ended.reason == EndReason::Expired => {
                    refuse(Code::Expired, Some(&ended.id), "the session has expired".into())
                }
                Some(ended) => {
                    let reason = format!("the session has ended ({})", ended.reason.as_str());
                    refuse(Code::Revoked, Some(&ended.id), reason)
                }
                None => refuse(Code::Denied, None, "the session was forgotten meanwhile".into()),
            };
        };
        let Some(session) = self.sessions.get(&credential.session) else {
            return refuse(Code::Denied, None, "the token stands for no session".into());
        };
        let id = Some(&session.id);
        if credential.until.is_some_and(|until| now >= until) {
            return refuse(Code::Revoked, id, "the token was rotated and its grace is over".into());
        }
        if session.expires.is_some_and(|expires| now >= expires) {
            return refuse(Code::Expired, id, "the session has expired".into());
        }
        // Root stands above users: the daemon's policy decided already whether it may come at all.
        if session.uid != comer.uid && comer.uid != 0 {
            let reason = format!("the session is of uid {}, the process of uid {}", session.uid, comer.uid);
            return refuse(Code::Binding, id, reason);
        }
        let (bound, words) = if session.is_owner() {
            (self.owner_is_outside(comer), "the owner's token was used at or below a session's leader")
        } else {
            (Self::is_bound(session, comer), "the process is neither the session's leader nor below it")
        };
        match bound {
            Ok(true) => Ok(Admitted { session: session.clone(), until: credential.until, token_id }),
            Ok(false) => refuse(Code::Binding, id, words.into()),
            Err(error) => refuse(Code::Binding, id, format!("{words}, or that cannot be known: {error}")),
        }
    }

    fn is_bound(session: &Session, comer: &Comer<'_>) -> io::Result<bool> {
        match (session.binding, &session.leader) {
            (Binding::Uid, _) => Ok(true),
            (Binding::Tree, Some(leader)) => (comer.is_at_or_below)(&|step| step.is_same(leader)),
            (Binding::Tree, None) => Ok(false),
        }
    }

    /// Who runs inside a session must not be the owner, although it can read the owner's file.
    fn owner_is_outside(&self, comer: &Comer<'_>) -> io::Result<bool> {
        // Where the platform cannot walk up (macOS), no session is bound to a tree either.
        if self.leaders.marks.is_empty() || !cfg!(target_os = "linux") {
            return Ok(true);
        }
        (comer.is_at_or_below)(&|step| self.leaders.contains(step)).map(|below| !below)
    }

    /// Makes a session below the one that asks.
    ///
    /// # Errors
    /// [`NotMade`]; nothing has changed then.
    pub fn create(
        &mut self,
        asker: &Admitted,
        maker: Maker,
        new: NewSession,
        now: Millis,
    ) -> Result<Arc<Session>, NotMade> {
        let parent = self.sessions.get(&asker.session.id).ok_or(NotMade::ParentEnded)?.clone();
        if self.credentials.get(&asker.token_id).is_none_or(|credential| credential.until.is_some()) {
            return Err(NotMade::Rotated);
        }
        let realm = match new.realm {
            Some(realm) if realm != parent.realm && !parent.is_owner() => return Err(NotMade::Realm(realm)),
            Some(realm) => realm,
            None => parent.realm.clone(),
        };
        if new.binding > parent.binding {
            return Err(NotMade::Binding(new.binding));
        }
        // The owner's session does not count against the limit that it enforces.
        if self.sessions.len() > self.capacity.sessions {
            return Err(NotMade::Full(self.capacity.sessions));
        }
        if self.per_uid.get(&maker.uid).is_some_and(|count| *count >= self.capacity.sessions_per_uid) {
            return Err(NotMade::FullForUid(self.capacity.sessions_per_uid));
        }
        let token_id = new.verifier.id();
        if self.verifier(token_id).is_some() {
            return Err(NotMade::TokenTaken);
        }
        let own_end = new.ttl.map(|ttl| now.saturating_add(ttl));
        let session = Arc::new(Session {
            id: SessionId::generate(now).map_err(|_| NotMade::NoRandomness)?,
            name: new.name,
            realm,
            // The kernel's word; root may come in for a user and stays that user's guest.
            uid: if maker.uid == 0 { parent.uid } else { maker.uid },
            leader: Some(maker.leader),
            cwd: maker.cwd,
            parent: Some(parent.id.clone()),
            scopes: parent.scopes.narrowed_to(&new.scopes),
            binding: new.binding,
            created: now,
            expires: [own_end, parent.expires].into_iter().flatten().min(),
            token_id,
        });
        let credential = Credential { verifier: new.verifier, session: session.id.clone(), until: None };
        self.credentials.insert(token_id, credential);
        self.leaders.add(session.leader.as_ref());
        *self.per_uid.entry(session.uid).or_default() += 1;
        self.children.entry(parent.id.clone()).or_default().insert(session.id.clone());
        self.sessions.insert(session.id.clone(), session.clone());
        Ok(session)
    }

    /// Ends a session and all that came from it, leaves first. Ending what has ended is nothing.
    /// The owner's session cannot end.
    pub fn end(&mut self, id: &SessionId, reason: EndReason, now: Millis) -> Vec<(Arc<Session>, EndReason)> {
        let mut ended = Vec::new();
        if *id != SessionId::owner() {
            self.end_below(id, &reason, now, &mut ended);
        }
        ended
    }

    fn end_below(
        &mut self,
        id: &SessionId,
        reason: &EndReason,
        now: Millis,
        ended: &mut Vec<(Arc<Session>, EndReason)>,
    ) {
        // Iterative, so that no chain of sessions is too long: parents first, then backwards.
        let mut order = vec![id.clone()];
        let mut next = 0;
        while let Some(children) = order.get(next).map(|id| self.children.remove(id)) {
            order.extend(children.into_iter().flatten());
            next += 1;
        }
        for ending in order.into_iter().rev() {
            let Some(session) = self.sessions.remove(&ending) else { continue };
            let reason = if ending == *id { reason.clone() } else { EndReason::ParentEnded };
            self.leaders.remove(session.leader.as_ref());
            if let Some(siblings) = session.parent.as_ref().and_then(|parent| self.children.get_mut(parent)) {
                siblings.remove(&ending);
            }
            if let Some(count) = self.per_uid.get_mut(&session.uid) {
                *count -= 1;
                if *count == 0 {
                    self.per_uid.remove(&session.uid);
                }
            }
            let tokens: Vec<TokenId> = self
                .credentials
                .iter()
                .filter(|(_, credential)| credential.session == ending)
                .map(|(token_id, _)| *token_id)
                .collect();
            for token_id in tokens {
                if let Some(credential) = self.credentials.remove(&token_id) {
                    let gone = Ended { verifier: credential.verifier, id: ending.clone(), reason: reason.clone() };
                    self.ended.insert(token_id, gone);
                    self.forget.insert((now.saturating_add(ENDED_KEPT), token_id), ());
                }
            }
            ended.push((session, reason));
        }
        self.forget_ended(now);
    }

    /// Forgets what ended long ago, and the oldest of what is more than fits.
    pub fn forget_ended(&mut self, now: Millis) {
        while let Some(((when, token_id), ())) = self.forget.first_key_value().map(|(key, ())| (*key, ())) {
            if when > now && self.ended.len() <= self.capacity.sessions {
                break;
            }
            self.forget.remove(&(when, token_id));
            self.ended.remove(&token_id);
        }
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
        if self.credentials.get(&asker.token_id).is_none_or(|credential| credential.until.is_some()) {
            return Err(NotMade::Rotated);
        }
        let token_id = verifier.id();
        if self.verifier(token_id).is_some() {
            return Err(NotMade::TokenTaken);
        }
        let session = self.sessions.get(id).ok_or(NotMade::ParentEnded)?;
        let rotated = Arc::new(Session { token_id, ..Session::clone(session) });
        for credential in self.credentials.values_mut().filter(|credential| credential.session == *id) {
            let until = now.saturating_add(grace);
            credential.until = Some(credential.until.map_or(until, |earlier| earlier.min(until)));
        }
        self.credentials.insert(token_id, Credential { verifier, session: id.clone(), until: None });
        self.sessions.insert(id.clone(), rotated.clone());
        Ok(rotated)
    }

    /// Drops rotated tokens whose grace is over; their holders hear `revoked` for a while.
    pub fn end_graces(&mut self, now: Millis) {
        let over: Vec<TokenId> = self
            .credentials
            .iter()
            .filter(|(_, credential)| credential.until.is_some_and(|until| now >= until))
            .map(|(token_id, _)| *token_id)
            .collect();
        for token_id in over {
            if let Some(Credential { verifier, session, .. }) = self.credentials.remove(&token_id) {
                self.ended.insert(token_id, Ended { verifier, id: session, reason: EndReason::Revoked });
                self.forget.insert((now.saturating_add(ENDED_KEPT), token_id), ());
            }
        }
        self.forget_ended(now);
    }

    /// A living session.
    pub fn get(&self, id: &SessionId) -> Option<&Arc<Session>> {
        self.sessions.get(id)
    }

    /// Living sessions, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Session>> {
        self.sessions.values()
    }

    /// How many sessions live, the owner's not counted.
    pub fn len(&self) -> usize {
        self.sessions.len() - 1
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
        let mut current = Some(target);
        while let Some(id) = current {
            if *id == asker.id {
                return true;
            }
            current = self.sessions.get(id).and_then(|session| session.parent.as_ref());
        }
        false
    }

    /// The earliest moment at which a session expires or a rotated token's grace ends.
    pub fn next_deadline(&self) -> Option<Millis> {
        let expiries = self.sessions.values().filter_map(|session| session.expires);
        let graces = self.credentials.values().filter_map(|credential| credential.until);
        expiries.chain(graces).min()
    }

    /// Sessions whose time is up.
    pub fn expired(&self, now: Millis) -> Vec<SessionId> {
        let over = |session: &&Arc<Session>| session.expires.is_some_and(|expires| now >= expires);
        self.sessions.values().filter(over).map(|session| session.id.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::process::Pid;
    use crate::secret::token::Token;

    const NOW: Millis = 1_000_000;
    const UID: u32 = 1000;

    fn process(pid: u32) -> Identity {
        Identity { pid: Pid(pid), pidfs: Some(u64::from(pid) + 10_000), start: None }
    }

    fn verifier() -> Verifier {
        Verifier::of(&Token::generate().unwrap())
    }

    fn fixture() -> (Registry, TokenId) {
        let owner = verifier();
        let token_id = owner.id();
        (Registry::new(UID, owner, NOW, Capacity::default()), token_id)
    }

    /// Comes in as a process whose ancestors, itself first, are `chain`.
    fn come(registry: &Registry, token: TokenId, uid: u32, chain: &[u32]) -> Result<Admitted, NotAdmitted> {
        let walk = |test: &dyn Fn(&Identity) -> bool| Ok(chain.iter().any(|pid| test(&process(*pid))));
        registry.admit(token, &Comer { uid, is_at_or_below: &walk }, NOW)
    }

    fn ask(name: &str) -> NewSession {
        NewSession {
            name: name.parse().unwrap(),
            realm: None,
            scopes: Scopes::default_of_a_run().iter().cloned().collect(),
            binding: Binding::Tree,
            ttl: None,
            verifier: verifier(),
        }
    }

    fn maker(pid: u32) -> Maker {
        Maker { uid: UID, leader: process(pid), cwd: None }
    }

    fn code(result: Result<Admitted, NotAdmitted>) -> Code {
        result.unwrap_err().code
    }

    #[test]
    fn a_tree_session_is_good_at_and_below_its_leader_only() {
        let (mut registry, owner) = fixture();
        let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
        let session = registry.create(&asker, maker(5), ask("a"), NOW).unwrap();
        assert!(come(&registry, session.token_id, UID, &[5, 1]).is_ok());
        assert!(come(&registry, session.token_id, UID, &[9, 7, 5, 1]).is_ok());
        assert_eq!(code(come(&registry, session.token_id, UID, &[6, 1])), Code::Binding);
        assert_eq!(code(come(&registry, session.token_id, UID + 1, &[5, 1])), Code::Binding);
    }

    #[test]
    fn a_uid_session_is_good_everywhere_for_its_user_and_for_no_other() {
        let (mut registry, owner) = fixture();
        let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
        let session =
            registry.create(&asker, maker(5), NewSession { binding: Binding::Uid, ..ask("a") }, NOW).unwrap();
        assert!(come(&registry, session.token_id, UID, &[6, 1]).is_ok());
        assert_eq!(code(come(&registry, session.token_id, UID + 1, &[6, 1])), Code::Binding);
    }

    #[test]
    fn the_owner_s_token_is_refused_at_or_below_a_living_leader() {
        let (mut registry, owner) = fixture();
        let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
        let session = registry.create(&asker, maker(5), ask("a"), NOW).unwrap();
        assert_eq!(code(come(&registry, owner, UID, &[5, 1])), Code::Binding);
        assert_eq!(code(come(&registry, owner, UID, &[8, 5, 1])), Code::Binding);
        assert!(come(&registry, owner, UID, &[8, 1]).is_ok());
        registry.end(&session.id, EndReason::LeaderExited, NOW);
        assert!(come(&registry, owner, UID, &[8, 5, 1]).is_ok());
    }

    #[test]
    fn when_the_tree_cannot_be_walked_nobody_is_let_in_on_it() {
        let (mut registry, owner) = fixture();
        let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
        let session = registry.create(&asker, maker(5), ask("a"), NOW).unwrap();
        let broken = |_: &dyn Fn(&Identity) -> bool| Err(io::Error::other("no /proc"));
        let comer = Comer { uid: UID, is_at_or_below: &broken };
        assert_eq!(code(registry.admit(session.token_id, &comer, NOW)), Code::Binding);
        assert_eq!(code(registry.admit(owner, &comer, NOW)), Code::Binding);
    }

    #[test]
    fn an_ended_session_takes_its_descendants_with_it_leaves_first() {
        let (mut registry, owner) = fixture();
        let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
        let parent = registry.create(&asker, maker(5), ask("parent"), NOW).unwrap();
        let asker = come(&registry, parent.token_id, UID, &[6, 5]).unwrap();
        let child = registry.create(&asker, maker(6), ask("child"), NOW).unwrap();
        let asker = come(&registry, child.token_id, UID, &[7, 6, 5]).unwrap();
        let leaf = registry.create(&asker, maker(7), ask("leaf"), NOW).unwrap();
        let ended = registry.end(&parent.id, EndReason::Revoked, NOW);
        let names: Vec<_> = ended.iter().map(|(session, reason)| (session.name.as_str(), reason.as_str())).collect();
        assert_eq!(names, [("leaf", "parent_ended"), ("child", "parent_ended"), ("parent", "revoked")]);
        assert!(registry.is_empty());
        assert_eq!(code(come(&registry, leaf.token_id, UID, &[7])), Code::Revoked);
        assert!(registry.verifier(leaf.token_id).is_some(), "its holder can still prove it, to be told so");
        registry.forget_ended(NOW + ENDED_KEPT - 1);
        assert!(registry.verifier(leaf.token_id).is_some());
        registry.forget_ended(NOW + ENDED_KEPT);
        assert!(registry.verifier(leaf.token_id).is_none());
        assert!(registry.end(&parent.id, EndReason::Revoked, NOW).is_empty());
    }

    #[test]
    fn a_child_is_never_wider_than_its_parent() {
        let (mut registry, owner) = fixture();
        let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
        let wish = NewSession { ttl: Some(100), realm: Some("r".parse().unwrap()), ..ask("parent") };
        let parent = registry.create(&asker, maker(5), wish, NOW).unwrap();
        let asker = come(&registry, parent.token_id, UID, &[6, 5]).unwrap();
        let wish = NewSession { ttl: Some(1000), scopes: vec![Scope::All], ..ask("child") };
        let child = registry.create(&asker, maker(6), wish, NOW).unwrap();
        assert_eq!(child.expires, Some(NOW + 100));
        assert_eq!(child.realm, parent.realm);
        assert!(child.scopes.iter().all(|scope| parent.scopes.permits(scope)));
        assert!(!child.scopes.permits(&Scope::All));
        let wide = NewSession { binding: Binding::Uid, ..ask("wide") };
        assert_eq!(registry.create(&asker, maker(6), wide, NOW).unwrap_err(), NotMade::Binding(Binding::Uid));
        let other = NewSession { realm: Some("other".parse().unwrap()), ..ask("other") };
        assert!(matches!(registry.create(&asker, maker(6), other, NOW), Err(NotMade::Realm(_))));
        let same = NewSession { realm: Some("r".parse().unwrap()), ..ask("same") };
        assert!(registry.create(&asker, maker(6), same, NOW).is_ok());
    }

    #[test]
    fn sessions_reach_themselves_and_their_descendants_only() {
        let (mut registry, owner) = fixture();
        let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
        let one = registry.create(&asker, maker(5), ask("one"), NOW).unwrap();
        let two = registry.create(&asker, maker(8), ask("two"), NOW).unwrap();
        let asker = come(&registry, one.token_id, UID, &[6, 5]).unwrap();
        let child = registry.create(&asker, maker(6), ask("child"), NOW).unwrap();
        assert!(registry.reaches(&one, &one.id) && registry.reaches(&one, &child.id));
        assert!(!registry.reaches(&one, &two.id) && !registry.reaches(&child, &one.id));
        assert!(!registry.reaches(&one, &SessionId::owner()));
        let owner = registry.get(&SessionId::owner()).unwrap();
        assert!(registry.reaches(owner, &two.id));
        assert!(registry.end(&SessionId::owner(), EndReason::Revoked, NOW).is_empty());
    }

    #[test]
    fn capacity_at_its_edges() {
        let owner = verifier();
        let token_id = owner.id();
        let capacity = Capacity { sessions: 3, sessions_per_uid: 2 };
        let mut registry = Registry::new(UID, owner, NOW, capacity);
        let asker = come(&registry, token_id, UID, &[99]).unwrap();
        for pid in [5, 6] {
            registry.create(&asker, maker(pid), ask("a"), NOW).unwrap();
        }
        assert_eq!(registry.create(&asker, maker(7), ask("a"), NOW).unwrap_err(), NotMade::FullForUid(2));
        let other = Maker { uid: UID + 1, ..maker(8) };
        let last = registry.create(&asker, other.clone(), ask("a"), NOW).unwrap();
        assert_eq!(registry.create(&asker, other.clone(), ask("a"), NOW).unwrap_err(), NotMade::Full(3));
        registry.end(&last.id, EndReason::Revoked, NOW);
        assert!(registry.create(&asker, other, ask("a"), NOW).is_ok());
    }

    #[test]
    fn a_session_ends_at_its_expiry_and_not_before() {
        let (mut registry, owner) = fixture();
        let asker = come(&registry, owner, UID, &[99]).unwrap();
        let wish = NewSession { ttl: Some(100), ..ask("a") };
        let session = registry.create(&asker, maker(5), wish, NOW).unwrap();
        let walk = |_: &dyn Fn(&Identity) -> bool| Ok(true);
        let comer = Comer { uid: UID, is_at_or_below: &walk };
        assert!(registry.admit(session.token_id, &comer, NOW + 99).is_ok());
        assert_eq!(code(registry.admit(session.token_id, &comer, NOW + 100)), Code::Expired);
        assert_eq!(registry.next_deadline(), Some(NOW + 100));
        assert!(registry.expired(NOW + 99).is_empty());
        for id in registry.expired(NOW + 100) {
            registry.end(&id, EndReason::Expired, NOW + 100);
        }
        assert_eq!(code(registry.admit(session.token_id, &comer, NOW + 100)), Code::Expired);
    }

    #[test]
    fn a_rotated_token_connects_for_its_grace_but_makes_nothing() {
        let (mut registry, owner) = fixture();
        let before = come(&registry, owner, UID, &[99]).unwrap();
        let fresh = verifier();
        let fresh_id = fresh.id();
        registry.rotate(&before, &SessionId::owner(), fresh, 100, NOW).unwrap();
        let old = come(&registry, owner, UID, &[99]).unwrap();
        assert_eq!(old.until, Some(NOW + 100));
        assert_eq!(registry.create(&old, maker(5), ask("a"), NOW).unwrap_err(), NotMade::Rotated);
        assert_eq!(registry.create(&before, maker(5), ask("a"), NOW).unwrap_err(), NotMade::Rotated);
        let again = registry.rotate(&old, &SessionId::owner(), verifier(), 100, NOW);
        assert_eq!(again.unwrap_err(), NotMade::Rotated);
        let new = come(&registry, fresh_id, UID, &[99]).unwrap();
        assert!(registry.create(&new, maker(5), ask("a"), NOW).is_ok());
        registry.end_graces(NOW + 100);
        assert_eq!(code(come(&registry, owner, UID, &[99])), Code::Revoked);
    }

    #[test]
    fn a_token_id_stands_for_one_session() {
        let (mut registry, owner) = fixture();
        let asker = come(&registry, owner, UID, &[99]).unwrap();
        let token = Token::generate().unwrap();
        let wish = || NewSession { verifier: Verifier::of(&token), ..ask("a") };
        registry.create(&asker, maker(5), wish(), NOW).unwrap();
        assert_eq!(registry.create(&asker, maker(6), wish(), NOW).unwrap_err(), NotMade::TokenTaken);
    }
}
