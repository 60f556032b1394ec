//! Every session there is: token id to session in O(1), who may come in with a token, who may end whom, and how many fit.
//!
//! Pure but for the walk up the process tree, which the caller passes in. The daemon's own token is
//! the first session, so there is one way to resolve a token.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::sync::Arc;

use super::record::{Record, TooLong};
use super::scope::{Scope, Scopes};
use super::{Binding, EndReason, Millis, Name, Realm, Session, SessionId};
use crate::kernel::is_exhausted;
use crate::kernel::process::Identity;
use crate::secret::token::TokenId;
use crate::secret::verifier::Verifier;
use crate::wire::auth::Code;

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

/// Looks at one process on the way up, given how many steps it is above the one that came, and says
/// what follows; `None` goes on.
pub type Visit<'a> = &'a mut dyn FnMut(usize, &Identity) -> Option<bool>;

/// What the kernel says of the one who comes in with a token.
pub struct Comer<'a> {
    /// Its user.
    pub uid: u32,
    /// Walks from the process itself up to the top of the pid namespace, until a visit says
    /// something; an error if the way cannot be known.
    pub walk_up: &'a dyn Fn(Visit<'_>) -> io::Result<Option<bool>>,
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

/// Processes that live and lead, or led, a session: found by whichever mark a process has. A session
/// that ends before its leader sets nobody free: what runs below the leader is still not the owner.
#[derive(Debug, Default)]
struct Leaders {
    /// Each with the user whose sessions it leads or led.
    marks: HashMap<Mark, u32>,
    /// How many each user has.
    per_uid: HashMap<u32, usize>,
    /// How many of them have no pid in our pid namespace: a way up may end below one unseen.
    unseen: usize,
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
    /// Says whether it is new.
    fn add(&mut self, leader: &Identity, uid: u32) -> bool {
        let Some(Entry::Vacant(place)) = Mark::of(leader).map(|mark| self.marks.entry(mark)) else {
            return false;
        };
        place.insert(uid);
        *self.per_uid.entry(uid).or_default() += 1;
        self.unseen += usize::from(leader.pid.0 == 0);
        true
    }

    fn remove(&mut self, leader: &Identity) {
        let Some(uid) = Mark::of(leader).and_then(|mark| self.marks.remove(&mark)) else { return };
        self.unseen -= usize::from(leader.pid.0 == 0);
        if let Entry::Occupied(mut count) = self.per_uid.entry(uid) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    fn contains(&self, identity: &Identity) -> bool {
        Mark::of(identity).is_some_and(|mark| self.marks.contains_key(&mark))
    }

    fn len(&self) -> usize {
        self.marks.len()
    }

    fn of_uid(&self, uid: u32) -> usize {
        self.per_uid.get(&uid).copied().unwrap_or(0)
    }
}

/// A living session and the tokens that stand for it: the present one last, and at most one before
/// it that is in its grace.
#[derive(Debug)]
struct Living {
    session: Arc<Session>,
    tokens: Vec<TokenId>,
}

/// All sessions.
#[derive(Debug)]
pub struct Registry {
    capacity: Capacity,
    sessions: BTreeMap<SessionId, Living>,
    children: HashMap<SessionId, HashSet<SessionId>>,
    credentials: HashMap<TokenId, Credential>,
    ended: HashMap<TokenId, Ended>,
    /// Ended tokens by the time they are forgotten, oldest first.
    forget: BTreeSet<(Millis, TokenId)>,
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
            sessions: BTreeMap::from([(
                session.id.clone(),
                Living { tokens: vec![session.token_id], session: Arc::new(session) },
            )]),
            children: HashMap::new(),
            ended: HashMap::new(),
            forget: BTreeSet::new(),
            expiries: BTreeSet::new(),
            graces: BTreeSet::new(),
            per_uid: HashMap::new(),
            leaders: Leaders::default(),
            users: BTreeSet::new(),
        }
    }

    /// Puts a session into the registry that stands for a user of a system daemon, below the owner's.
    /// If there is one, it gets this token instead, and its old one is worth nothing.
    pub fn set_user(&mut self, uid: u32, verifier: Verifier, scopes: &[Scope], now: Millis) {
        let id = SessionId::of_user(uid);
        let before = self.sessions.remove(&id);
        for token_id in before.iter().flat_map(|living| living.tokens.clone()) {
            self.retire_token(token_id, EndReason::Revoked, now);
        }
        let token_id = verifier.id();
        let session = Session {
            id: id.clone(),
            #[allow(clippy::expect_used)] // a constant that the tests read
            name: super::USER.parse().expect("user is a name"),
            realm: Realm::default(),
            uid,
            leader: None,
            cwd: None,
            parent: Some(SessionId::owner()),
            scopes: Scopes::all().narrowed_to(scopes),
            binding: Binding::Uid,
            created: before.map_or(now, |living| living.session.created),
            expires: None,
            token_id,
        };
        self.credentials.insert(token_id, Credential { verifier, session: id.clone(), until: None });
        self.users.insert(uid);
        self.sessions.insert(id, Living { session: Arc::new(session), tokens: vec![token_id] });
    }

    /// Takes all power from the token of the session that stands for a user: its file was removed. What is below
    /// that session stays; the user's next contact gives it a new token.
    pub fn forget_user(&mut self, uid: u32, now: Millis) {
        let living = self.sessions.get_mut(&SessionId::of_user(uid));
        for token_id in living.map(|living| std::mem::take(&mut living.tokens)).into_iter().flatten() {
            self.retire_token(token_id, EndReason::Revoked, now);
        }
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
    pub fn set_user_scopes(&mut self, scopes: &[Scope]) -> Vec<SessionId> {
        let scopes = Scopes::all().narrowed_to(scopes);
        for uid in &self.users {
            if let Some(living) = self.sessions.get_mut(&SessionId::of_user(*uid)) {
                living.session =
                    Arc::new(Session { scopes: scopes.clone(), ..Session::clone(&living.session) });
            }
        }
        let is_below_a_user = |session: &Session| {
            let mut parent = session.parent.as_ref();
            while let Some(id) = parent.filter(|id| !id.stands_for_somebody()) {
                parent = self.sessions.get(id).and_then(|living| living.session.parent.as_ref());
            }
            parent.is_some_and(|id| *id != SessionId::owner())
        };
        self.sessions
            .values()
            .map(|living| &living.session)
            .filter(|session| !session.stands_for_somebody() && is_below_a_user(session))
            .filter(|session| !session.scopes.iter().all(|scope| scopes.permits(scope)))
            .map(|session| session.id.clone())
            .collect()
    }

    /// How many sessions fit.
    pub fn capacity(&self) -> Capacity {
        self.capacity
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
        let Some(Living { session, .. }) = self.sessions.get(&credential.session) else {
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
        let (bound, words) = if session.stands_for_somebody() {
            let words = if session.is_owner() {
                "the owner's token was used at or below a session's leader"
            } else {
                "the user's own token was used at or below a session's leader"
            };
            (self.is_outside(comer), words)
        } else {
            (
                self.is_bound(session, comer),
                "the process is neither the session's leader nor below it, or another leader is in between",
            )
        };
        match bound {
            Ok(true) => Ok(Admitted { session: session.clone(), until: credential.until, token_id }),
            Ok(false) => refuse(Code::Binding, id, words.into()),
            // That the process table cannot be read now says nothing of the process.
            Err(error) if is_exhausted(&error) => {
                refuse(Code::Busy, id, format!("the process's parents cannot be looked at now: {error}"))
            }
            Err(error) => refuse(Code::Binding, id, format!("{words}, or that cannot be known: {error}")),
        }
    }

    /// Whether a process is at or below the session's leader, with no other leader on the way: below
    /// one, another session's token is what counts, which may be narrower. A process that leads a
    /// session itself is not bound by that one.
    fn is_bound(&self, session: &Session, comer: &Comer<'_>) -> io::Result<bool> {
        let leader = match (session.binding, &session.leader) {
            (Binding::Uid, _) => return Ok(true),
            (Binding::Tree, Some(leader)) => leader,
            (Binding::Tree, None) => return Ok(false),
        };
        let found = (comer.walk_up)(&mut |step, process| {
            if process.is_same(leader) {
                return Some(true);
            }
            (step > 0 && self.leaders.contains(process)).then_some(false)
        });
        Ok(found?.unwrap_or(false))
    }

    /// Who runs inside a session must not be the owner, although it can read the owner's file.
    fn is_outside(&self, comer: &Comer<'_>) -> io::Result<bool> {
        // Where the platform cannot walk up (macOS), no session is bound to a tree either.
        if self.leaders.len() == 0 || !cfg!(target_os = "linux") {
            return Ok(true);
        }
        let mut top = 0;
        let found = (comer.walk_up)(&mut |_, process| {
            top = process.pid.0;
            self.leaders.contains(process).then_some(false)
        });
        // A way up that does not end at process 1 ended at a process that was moved into our pid
        // namespace: what is above it cannot be seen, and may be a leader that cannot be either.
        const INIT: u32 = 1;
        Ok(found?.unwrap_or(top == INIT || self.leaders.unseen == 0))
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
        let parent = self.sessions.get(&asker.session.id).ok_or(NotMade::ParentEnded)?.session.clone();
        if self.credentials.get(&asker.token_id).is_none_or(|credential| credential.until.is_some()) {
            return Err(NotMade::Rotated);
        }
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
        // Sessions that stand for somebody do not count against the limit that they enforce.
        if self.len() >= self.capacity.sessions {
            return Err(NotMade::Full(self.capacity.sessions));
        }
        // The kernel's word; root may come in for a user and stays that user's guest.
        let uid = if maker.uid == 0 { parent.uid } else { maker.uid };
        if self.per_uid.get(&uid).is_some_and(|count| *count >= self.capacity.sessions_per_uid) {
            return Err(NotMade::FullForUid(self.capacity.sessions_per_uid));
        }
        // A process that led a session is watched, and on record, for as long as it lives: what it costs counts
        // as long.
        if !self.leaders.contains(&maker.leader) {
            if self.leaders.len() >= self.capacity.sessions {
                return Err(NotMade::FullOfLeaders(self.capacity.sessions));
            }
            if self.leaders.of_uid(uid) >= self.capacity.sessions_per_uid {
                return Err(NotMade::FullOfLeadersForUid(self.capacity.sessions_per_uid));
            }
        }
        let token_id = new.verifier.id();
        if self.verifier(token_id).is_some() {
            return Err(NotMade::TokenTaken);
        }
        let own_end = new.ttl.map(|ttl| now.saturating_add(ttl));
        let id = loop {
            let id = SessionId::generate(now).map_err(|_| NotMade::NoRandomness)?;
            if !self.sessions.contains_key(&id) {
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
            parent: Some(parent.id.clone()),
            scopes: parent.scopes.narrowed_to(&new.scopes),
            binding: new.binding,
            created: now,
            expires: [own_end, parent.expires].into_iter().flatten().min(),
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
            self.leaders.remove(&leader);
        }
    }

    /// Puts a session in its places, with the tokens that stand for it; says whether its leader is a
    /// new one.
    fn attach(
        &mut self,
        session: &Arc<Session>,
        tokens: impl IntoIterator<Item = (Verifier, Option<Millis>)>,
    ) -> bool {
        let id = &session.id;
        let tokens =
            tokens.into_iter().map(|(verifier, until)| self.add_token(id, verifier, until)).collect();
        *self.per_uid.entry(session.uid).or_default() += 1;
        if let Some(parent) = &session.parent {
            self.children.entry(parent.clone()).or_default().insert(id.clone());
        }
        if let Some(expires) = session.expires {
            self.expiries.insert((expires, id.clone()));
        }
        self.sessions.insert(id.clone(), Living { session: session.clone(), tokens });
        session.leader.is_some_and(|leader| self.leaders.add(&leader, session.uid))
    }

    fn add_token(&mut self, session: &SessionId, verifier: Verifier, until: Option<Millis>) -> TokenId {
        let token_id = verifier.id();
        if let Some(until) = until {
            self.graces.insert((until, token_id));
        }
        self.credentials.insert(token_id, Credential { verifier, session: session.clone(), until });
        token_id
    }

    /// Takes a session out of all places but those of its tokens and of its leader's process.
    fn detach(&mut self, id: &SessionId) -> Option<Living> {
        let living = self.sessions.remove(id)?;
        let session = &living.session;
        if let Some(expires) = session.expires {
            self.expiries.remove(&(expires, id.clone()));
        }
        if let Some(siblings) = session.parent.as_ref().and_then(|parent| self.children.get_mut(parent)) {
            siblings.remove(id);
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
        let Living { session, tokens } = self.sessions.get(id)?;
        let tokens = tokens.iter().filter_map(|token_id| self.credentials.get(token_id));
        let tokens = tokens.map(|credential| (credential.verifier.clone(), credential.until)).collect();
        Some(Record { session: Session::clone(session), tokens })
    }

    /// Lets a session live on that a daemon before kept a record of, and whose leader is known to
    /// live. Says whether the leader is a new one, as [`Registry::create`] does.
    ///
    /// # Errors
    /// [`NotRestored`]; nothing has changed then.
    pub fn restore(&mut self, record: &Record, now: Millis) -> Result<bool, NotRestored> {
        let session = &record.session;
        let parent = session.parent.as_ref().and_then(|id| self.get(id)).ok_or(NotRestored::Orphan)?;
        if session.uid != parent.uid
            || session.binding > parent.binding
            || (session.realm != parent.realm && !parent.stands_for_somebody())
            || parent.expires.is_some_and(|end| session.expires.is_none_or(|own| own > end))
            || !session.scopes.iter().all(|scope| parent.scopes.permits(scope))
        {
            return Err(NotRestored::Wider);
        }
        if self.get(&session.id).is_some()
            || record.tokens.iter().any(|(verifier, _)| self.verifier(verifier.id()).is_some())
        {
            return Err(NotRestored::Taken);
        }
        if self.len() >= self.capacity.sessions {
            return Err(NotRestored::Full(self.capacity.sessions));
        }
        if self.per_uid.get(&session.uid).is_some_and(|count| *count >= self.capacity.sessions_per_uid) {
            return Err(NotRestored::FullForUid(self.capacity.sessions_per_uid));
        }
        // A grace that ended while no daemon ran is over like any other.
        let is_new_leader = self.attach(&Arc::new(session.clone()), record.tokens.iter().cloned());
        self.end_graces(now);
        Ok(is_new_leader)
    }

    /// Remembers a session that ended before this daemon began, for its token's holder and because its
    /// leader still lives. Says whether the leader is a new one, as [`Registry::create`] does.
    pub fn restore_ended(&mut self, record: &Record, reason: &EndReason, now: Millis) -> bool {
        for (verifier, _) in &record.tokens {
            if self.verifier(verifier.id()).is_none() {
                let token_id = self.add_token(&record.session.id, verifier.clone(), None);
                self.retire_token(token_id, reason.clone(), now);
            }
        }
        self.forget_ended(now);
        record.session.leader.is_some_and(|leader| self.leaders.add(&leader, record.session.uid))
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
                let token_id = self.add_token(id, verifier.clone(), *until);
                if let Some(living) = self.sessions.get_mut(id) {
                    living.tokens.insert(0, token_id);
                }
            }
        }
        self.end_graces(now);
    }

    /// Whether a process leads a session, or led one, and lives as far as is known.
    pub fn leads(&self, process: &Identity) -> bool {
        self.leaders.contains(process)
    }

    /// Ends a session and all that came from it, leaves first. Ending what has ended is nothing.
    /// What stands for the owner or a user cannot end.
    pub fn end(&mut self, id: &SessionId, reason: EndReason, now: Millis) -> Vec<(Arc<Session>, EndReason)> {
        let mut ended = Vec::new();
        if !id.stands_for_somebody() {
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
            let Some(Living { session, tokens }) = self.detach(&ending) else { continue };
            let reason = if ending == *id { reason.clone() } else { EndReason::ParentEnded };
            for token_id in tokens {
                self.retire_token(token_id, reason.clone(), now);
            }
            ended.push((session, reason));
        }
        self.forget_ended(now);
    }

    /// Notes that a leader's process has ended: ends the sessions that it led, and forgets it.
    pub fn end_leader(&mut self, leader: &Identity, now: Millis) -> Vec<(Arc<Session>, EndReason)> {
        let led = |living: &&Living| living.session.leader.is_some_and(|its| its.is_same(leader));
        let led: Vec<SessionId> =
            self.sessions.values().filter(led).map(|living| living.session.id.clone()).collect();
        let ended = led.iter().flat_map(|id| self.end(id, EndReason::LeaderExited, now)).collect();
        self.leaders.remove(leader);
        ended
    }

    /// Takes a token's power and remembers for a while that it had some.
    fn retire_token(&mut self, token_id: TokenId, reason: EndReason, now: Millis) {
        let Some(Credential { verifier, session, until }) = self.credentials.remove(&token_id) else {
            return;
        };
        if let Some(until) = until {
            self.graces.remove(&(until, token_id));
        }
        self.ended.insert(token_id, Ended { verifier, id: session, reason });
        self.forget.insert((now.saturating_add(ENDED_KEPT), token_id));
    }

    /// Forgets what ended long ago, and the oldest of what is more than fits.
    pub fn forget_ended(&mut self, now: Millis) {
        while let Some((when, token_id)) = self.forget.first().copied() {
            if when > now && self.ended.len() <= self.capacity.sessions {
                break;
            }
            self.forget.remove(&(when, token_id));
            self.ended.remove(&token_id);
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
        let Record { session, tokens } = self.record(id).ok_or(NotMade::ParentEnded)?;
        let before = tokens.into_iter().last().map(|(before, _)| (before, Some(now.saturating_add(grace))));
        let tokens = before.into_iter().chain([(verifier.clone(), None)]).collect();
        Ok(Record { session: Session { token_id: verifier.id(), ..session }, tokens })
    }

    fn may_rotate(&self, asker: &Admitted, verifier: &Verifier) -> Result<(), NotMade> {
        if self.credentials.get(&asker.token_id).is_none_or(|credential| credential.until.is_some()) {
            return Err(NotMade::Rotated);
        }
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
            self.retire_token(token_id, EndReason::Revoked, now);
        }
        let until = now.saturating_add(grace);
        if let Some((before, credential)) = before.and_then(|id| Some((id, self.credentials.get_mut(&id)?))) {
            credential.until = Some(until);
            self.graces.insert((until, before));
        }
        self.credentials.insert(token_id, Credential { verifier, session: id.clone(), until: None });
        self.forget_ended(now);
        Ok(session)
    }

    /// Drops rotated tokens whose grace is over; their holders hear `revoked` for a while.
    pub fn end_graces(&mut self, now: Millis) {
        while let Some((until, token_id)) = self.graces.first().copied().filter(|(until, _)| *until <= now) {
            self.graces.remove(&(until, token_id));
            let session = self.credentials.get(&token_id).map(|credential| credential.session.clone());
            if let Some(living) = session.and_then(|id| self.sessions.get_mut(&id)) {
                living.tokens.retain(|kept| *kept != token_id);
            }
            self.retire_token(token_id, EndReason::Revoked, now);
        }
        self.forget_ended(now);
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
        let mut current = Some(target);
        while let Some(id) = current {
            if *id == asker.id {
                return true;
            }
            current = self.sessions.get(id).and_then(|living| living.session.parent.as_ref());
        }
        false
    }

    /// The earliest moment at which a session expires or a rotated token's grace ends.
    pub fn next_deadline(&self) -> Option<Millis> {
        let expiry = self.expiries.first().map(|(when, _)| *when);
        let grace = self.graces.first().map(|(when, _)| *when);
        expiry.into_iter().chain(grace).min()
    }

    /// Sessions whose time is up.
    pub fn expired(&self, now: Millis) -> Vec<SessionId> {
        self.expiries.iter().take_while(|(when, _)| *when <= now).map(|(_, id)| id.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::process::Pid;
    use crate::secret::token::Token;

    /// Two users of a system daemon, each with a session below the own one.
    #[test]
    fn users_reach_their_own_sessions_only_and_the_owner_all() {
        let (mut registry, _) = fixture();
        let all = Scopes::default_of_a_run().iter().cloned().collect::<Vec<_>>();
        let sessions: Vec<(Admitted, Arc<Session>)> = [2001u32, 2002]
            .into_iter()
            .map(|uid| {
                let token = verifier();
                let id = token.id();
                registry.set_user(uid, token, &all, NOW);
                let user = come(&registry, id, uid, &[uid, 1]).unwrap();
                let maker = Maker { uid, leader: process(uid + 10), cwd: None };
                let (made, _) = registry.create(&user, maker, ask("one"), NOW).unwrap();
                (user, made)
            })
            .collect();
        let (ada, bob) = (&sessions[0], &sessions[1]);
        assert!(registry.reaches(&ada.0.session, &ada.1.id) && !registry.reaches(&ada.0.session, &bob.1.id));
        assert!(!registry.reaches(&ada.0.session, &bob.0.session.id));
        assert!(registry.reaches(&registry.get(&SessionId::owner()).unwrap().clone(), &bob.1.id));
        assert_eq!(registry.len(), 2, "what stands for users is not counted");
        // The one user's token in the other's hands, in the own session, and in root's.
        assert_eq!(come(&registry, ada.0.token_id, 2002, &[9, 1]).unwrap_err().code, Code::Binding);
        assert_eq!(come(&registry, ada.0.token_id, 2001, &[8, 2011, 1]).unwrap_err().code, Code::Binding);
        assert!(come(&registry, ada.0.token_id, 0, &[9, 1]).is_ok());
        assert!(registry.end(&ada.0.session.id, EndReason::Revoked, NOW).is_empty(), "it does not end");
        // A new token: the old one is worth nothing, and the session below it stays.
        registry.set_user(2001, verifier(), &all, NOW);
        assert_eq!(come(&registry, ada.0.token_id, 2001, &[9, 1]).unwrap_err().code, Code::Revoked);
        assert!(registry.get(&ada.1.id).is_some());
        // Fewer scopes: what has more must end.
        assert!(registry.set_user_scopes(&all).is_empty());
        let mut wider = registry.set_user_scopes(&[]);
        wider.sort();
        let mut both = vec![ada.1.id.clone(), bob.1.id.clone()];
        both.sort();
        assert_eq!(wider, both);
    }

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
        (Registry::new(UID, owner, NOW, Capacity { sessions: 100, sessions_per_uid: 100 }), token_id)
    }

    fn climb(chain: &[u32], visit: Visit<'_>) -> Option<bool> {
        chain.iter().enumerate().find_map(|(step, pid)| visit(step, &process(*pid)))
    }

    /// Comes in as a process whose ancestors, itself first, are `chain`.
    fn come(registry: &Registry, token: TokenId, uid: u32, chain: &[u32]) -> Result<Admitted, NotAdmitted> {
        registry.admit(token, &Comer { uid, walk_up: &|visit| Ok(climb(chain, visit)) }, NOW)
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
        let (session, _) = registry.create(&asker, maker(5), ask("a"), NOW).unwrap();
        assert!(come(&registry, session.token_id, UID, &[5, 1]).is_ok());
        assert!(come(&registry, session.token_id, UID, &[9, 7, 5, 1]).is_ok());
        assert_eq!(code(come(&registry, session.token_id, UID, &[6, 1])), Code::Binding);
        assert_eq!(code(come(&registry, session.token_id, UID + 1, &[5, 1])), Code::Binding);
    }

    #[test]
    fn a_uid_session_is_good_everywhere_for_its_user_and_for_no_other() {
        let (mut registry, owner) = fixture();
        let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
        let (session, _) =
            registry.create(&asker, maker(5), NewSession { binding: Binding::Uid, ..ask("a") }, NOW).unwrap();
        assert!(come(&registry, session.token_id, UID, &[6, 1]).is_ok());
        assert_eq!(code(come(&registry, session.token_id, UID + 1, &[6, 1])), Code::Binding);
    }

    #[test]
    fn the_owner_s_token_is_refused_at_or_below_a_living_leader() {
        let (mut registry, owner) = fixture();
        let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
        let (session, _) = registry.create(&asker, maker(5), ask("a"), NOW).unwrap();
        assert_eq!(code(come(&registry, owner, UID, &[5, 1])), Code::Binding);
        assert_eq!(code(come(&registry, owner, UID, &[8, 5, 1])), Code::Binding);
        assert!(come(&registry, owner, UID, &[8, 1]).is_ok());
        // A session that ends before its leader sets nobody free.
        registry.end(&session.id, EndReason::Revoked, NOW);
        assert_eq!(code(come(&registry, owner, UID, &[8, 5, 1])), Code::Binding);
        assert!(registry.end_leader(&process(5), NOW).is_empty());
        assert!(come(&registry, owner, UID, &[8, 5, 1]).is_ok());
    }

    #[test]
    fn below_an_inner_leader_the_outer_session_s_token_is_worth_nothing() {
        let (mut registry, owner) = fixture();
        let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
        let (outer, _) = registry.create(&asker, maker(5), ask("outer"), NOW).unwrap();
        let asker = come(&registry, outer.token_id, UID, &[6, 5, 1]).unwrap();
        let narrow = NewSession { scopes: Vec::new(), ..ask("inner") };
        let (inner, _) = registry.create(&asker, maker(6), narrow, NOW).unwrap();
        assert!(come(&registry, inner.token_id, UID, &[7, 6, 5, 1]).is_ok());
        assert_eq!(code(come(&registry, outer.token_id, UID, &[7, 6, 5, 1])), Code::Binding);
        assert!(
            come(&registry, outer.token_id, UID, &[6, 5, 1]).is_ok(),
            "who leads a session keeps its own"
        );
        assert!(come(&registry, outer.token_id, UID, &[8, 5, 1]).is_ok());
        registry.end(&inner.id, EndReason::Revoked, NOW);
        assert_eq!(code(come(&registry, outer.token_id, UID, &[7, 6, 5, 1])), Code::Binding);
    }

    #[test]
    fn a_leader_ends_all_that_it_led() {
        let (mut registry, owner) = fixture();
        let asker = come(&registry, owner, UID, &[9]).unwrap();
        let news: Vec<bool> =
            ["a", "b"].map(|name| registry.create(&asker, maker(5), ask(name), NOW).unwrap().1).into();
        assert_eq!(news, [true, false], "one watch is enough");
        registry.create(&asker, maker(6), ask("c"), NOW).unwrap();
        assert_eq!(registry.end_leader(&process(5), NOW).len(), 2);
        assert_eq!(registry.len(), 1);
    }

    #[test]
    fn a_way_up_that_ends_nowhere_is_not_outside_of_a_leader_that_cannot_be_seen() {
        let (mut registry, owner) = fixture();
        let asker = come(&registry, owner, UID, &[9, 1]).unwrap();
        let unseen = Maker { leader: Identity { pid: Pid(0), pidfs: Some(77), start: None }, ..maker(9) };
        registry.create(&asker, unseen, ask("a"), NOW).unwrap();
        assert_eq!(code(come(&registry, owner, UID, &[8])), Code::Binding);
        assert!(come(&registry, owner, UID, &[8, 1]).is_ok());
    }

    #[test]
    fn however_often_a_token_is_rotated_two_are_kept() {
        let (mut registry, owner) = fixture();
        let mut asker = come(&registry, owner, UID, &[9]).unwrap();
        for _ in 0..500 {
            let fresh = verifier();
            let id = fresh.id();
            registry.rotate(&asker, &SessionId::owner(), fresh, 1_000_000, NOW).unwrap();
            asker = come(&registry, id, UID, &[9]).unwrap();
            assert!(registry.credentials.len() <= 2 && registry.graces.len() <= 1);
        }
        assert!(registry.ended.len() <= 101 && registry.forget.len() <= 101, "{}", registry.ended.len());
    }

    #[test]
    fn when_the_tree_cannot_be_walked_nobody_is_let_in_on_it() {
        let (mut registry, owner) = fixture();
        let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
        let (session, _) = registry.create(&asker, maker(5), ask("a"), NOW).unwrap();
        let comer = Comer { uid: UID, walk_up: &|_| Err(io::Error::other("no /proc")) };
        assert_eq!(code(registry.admit(session.token_id, &comer, NOW)), Code::Binding);
        assert_eq!(code(registry.admit(owner, &comer, NOW)), Code::Binding);
    }

    #[test]
    fn an_ended_session_takes_its_descendants_with_it_leaves_first() {
        let (mut registry, owner) = fixture();
        let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
        let (parent, _) = registry.create(&asker, maker(5), ask("parent"), NOW).unwrap();
        let asker = come(&registry, parent.token_id, UID, &[6, 5]).unwrap();
        let (child, _) = registry.create(&asker, maker(6), ask("child"), NOW).unwrap();
        let asker = come(&registry, child.token_id, UID, &[7, 6, 5]).unwrap();
        let (leaf, _) = registry.create(&asker, maker(7), ask("leaf"), NOW).unwrap();
        let ended = registry.end(&parent.id, EndReason::Revoked, NOW);
        let names: Vec<_> =
            ended.iter().map(|(session, reason)| (session.name.as_str(), reason.as_str())).collect();
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
        let (parent, _) = registry.create(&asker, maker(5), wish, NOW).unwrap();
        let asker = come(&registry, parent.token_id, UID, &[6, 5]).unwrap();
        let wish = NewSession { ttl: Some(1000), scopes: vec![Scope::All], ..ask("child") };
        let (child, _) = registry.create(&asker, maker(6), wish, NOW).unwrap();
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
        let (one, _) = registry.create(&asker, maker(5), ask("one"), NOW).unwrap();
        let (two, _) = registry.create(&asker, maker(8), ask("two"), NOW).unwrap();
        let asker = come(&registry, one.token_id, UID, &[6, 5]).unwrap();
        let (child, _) = registry.create(&asker, maker(6), ask("child"), NOW).unwrap();
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
        let (last, _) = registry.create(&asker, other.clone(), ask("a"), NOW).unwrap();
        assert_eq!(registry.create(&asker, other.clone(), ask("a"), NOW).unwrap_err(), NotMade::Full(3));
        registry.end(&last.id, EndReason::Revoked, NOW);
        assert!(registry.create(&asker, other, ask("a"), NOW).is_ok());
    }

    #[test]
    fn a_user_whose_token_was_removed_counts_as_before_and_gets_another() {
        let (mut registry, _) = fixture();
        let (first, second) = (verifier(), verifier());
        let (old, new) = (first.id(), second.id());
        registry.set_user(UID + 1, first, &[], NOW);
        assert!(registry.has_user(UID + 1) && registry.is_empty());
        registry.forget_user(UID + 1, NOW);
        assert!(!registry.has_user(UID + 1) && registry.is_empty() && registry.users().next().is_none());
        assert!(registry.grace_of(old).is_none());
        registry.forget_user(UID + 1, NOW);
        registry.set_user(UID + 1, second, &[], NOW);
        assert!(registry.has_user(UID + 1) && registry.is_empty() && registry.grace_of(new).is_some());
    }

    #[test]
    fn a_process_that_led_a_session_counts_for_as_long_as_it_lives() {
        let owner = verifier();
        let token_id = owner.id();
        let capacity = Capacity { sessions: 3, sessions_per_uid: 2 };
        let mut registry = Registry::new(UID, owner, NOW, capacity);
        let asker = come(&registry, token_id, UID, &[99]).unwrap();
        let make_and_end = |registry: &mut Registry, maker: Maker| {
            let (session, _) = registry.create(&asker, maker, ask("a"), NOW)?;
            registry.end(&session.id, EndReason::Revoked, NOW);
            Ok::<(), NotMade>(())
        };
        for pid in [5, 6, 5, 6] {
            make_and_end(&mut registry, maker(pid)).unwrap();
        }
        assert!(registry.is_empty());
        let full = NotMade::FullOfLeadersForUid(2);
        assert_eq!(make_and_end(&mut registry, maker(7)).unwrap_err(), full);
        let of_another = |pid| Maker { uid: UID + pid, ..maker(pid) };
        make_and_end(&mut registry, of_another(8)).unwrap();
        assert_eq!(make_and_end(&mut registry, of_another(9)).unwrap_err(), NotMade::FullOfLeaders(3));
        registry.end_leader(&maker(5).leader, NOW);
        make_and_end(&mut registry, maker(7)).unwrap();
        for pid in [6, 7, 8] {
            registry.end_leader(&maker(pid).leader, NOW);
        }
        assert!(registry.leaders.per_uid.is_empty() && registry.leaders() == 0);
    }

    #[test]
    fn a_session_ends_at_its_expiry_and_not_before() {
        let (mut registry, owner) = fixture();
        let asker = come(&registry, owner, UID, &[99]).unwrap();
        let wish = NewSession { ttl: Some(100), ..ask("a") };
        let (session, _) = registry.create(&asker, maker(5), wish, NOW).unwrap();
        let comer = Comer { uid: UID, walk_up: &|visit| Ok(climb(&[5, 1], visit)) };
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

    /// A registry as it is after a restart, with the same owner's token.
    fn after_restart(registry: &Registry, owner: TokenId, capacity: usize) -> Registry {
        let owner = registry.verifier(owner).unwrap().clone();
        Registry::new(UID, owner, NOW, Capacity { sessions: capacity, sessions_per_uid: capacity })
    }

    #[test]
    fn a_restored_session_is_what_it_was_and_its_descendants_with_it() {
        let (mut registry, owner) = fixture();
        let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
        let wish = NewSession { ttl: Some(100), ..ask("parent") };
        let (parent, _) = registry.create(&asker, maker(5), wish, NOW).unwrap();
        let asker = come(&registry, parent.token_id, UID, &[6, 5, 1]).unwrap();
        let (child, _) = registry.create(&asker, maker(6), ask("child"), NOW).unwrap();
        let records = [&parent, &child].map(|session| registry.record(&session.id).unwrap());
        let mut again = after_restart(&registry, owner, 2);
        assert_eq!(again.restore(&records[1], NOW), Err(NotRestored::Orphan), "parents come first");
        assert_eq!(again.restore(&records[0], NOW), Ok(true));
        assert_eq!(again.restore(&records[0], NOW), Err(NotRestored::Taken));
        assert_eq!(again.restore(&records[1], NOW), Ok(true));
        assert_eq!(again.len(), 2);
        assert!(come(&again, child.token_id, UID, &[7, 6, 5, 1]).is_ok());
        assert_eq!(code(come(&again, parent.token_id, UID, &[7, 6, 5, 1])), Code::Binding);
        assert_eq!(code(come(&again, owner, UID, &[7, 6, 5, 1])), Code::Binding);
        assert_eq!(again.next_deadline(), Some(NOW + 100));
        assert_eq!(again.end(&parent.id, EndReason::Revoked, NOW).len(), 2);
    }

    #[test]
    fn a_record_that_is_wider_than_its_parent_revives_nobody() {
        let (mut registry, owner) = fixture();
        let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
        let wish = NewSession { ttl: Some(100), realm: Some("r".parse().unwrap()), ..ask("parent") };
        let (parent, _) = registry.create(&asker, maker(5), wish, NOW).unwrap();
        let asker = come(&registry, parent.token_id, UID, &[6, 5, 1]).unwrap();
        let (child, _) = registry.create(&asker, maker(6), ask("child"), NOW).unwrap();
        let mut again = after_restart(&registry, owner, 100);
        again.restore(&registry.record(&parent.id).unwrap(), NOW).unwrap();
        let good = registry.record(&child.id).unwrap();
        type Widen = fn(&mut Session);
        let wider: [Widen; 6] = [
            |session| session.uid += 1,
            |session| session.binding = Binding::Uid,
            |session| session.realm = Realm::default(),
            |session| session.scopes = Scopes::all(),
            |session| session.expires = None,
            |session| session.expires = Some(NOW + 101),
        ];
        for (number, widen) in wider.into_iter().enumerate() {
            let mut record = good.clone();
            widen(&mut record.session);
            assert_eq!(again.restore(&record, NOW), Err(NotRestored::Wider), "{number}");
        }
        assert_eq!(again.len(), 1, "nothing has changed");
        assert_eq!(again.restore(&good, NOW), Ok(true));
    }

    #[test]
    fn no_more_sessions_are_restored_than_fit() {
        let (mut registry, owner) = fixture();
        let asker = come(&registry, owner, UID, &[99]).unwrap();
        let records = [5, 6, 7].map(|pid| {
            let (session, _) = registry.create(&asker, maker(pid), ask("a"), NOW).unwrap();
            registry.record(&session.id).unwrap()
        });
        let mut again = after_restart(&registry, owner, 2);
        let restored = records.map(|record| again.restore(&record, NOW));
        assert_eq!(restored, [Ok(true), Ok(true), Err(NotRestored::Full(2))]);
        assert_eq!(again.leaders(), 2);
    }

    #[test]
    fn what_was_taken_back_has_never_been() {
        let (mut registry, owner) = fixture();
        let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
        let wish = NewSession { ttl: Some(100), ..ask("a") };
        let verifier = wish.verifier.clone();
        let (session, is_new) = registry.create(&asker, maker(5), wish, NOW).unwrap();
        registry.take_back(&session, is_new);
        assert!(registry.is_empty() && registry.leaders() == 0 && registry.next_deadline().is_none());
        assert!(registry.verifier(session.token_id).is_none());
        let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
        assert!(registry.create(&asker, maker(5), NewSession { verifier, ..ask("a") }, NOW).is_ok());
    }

    #[test]
    fn a_grace_ends_when_it_would_have_whether_or_not_a_daemon_ran() {
        let (mut registry, owner) = fixture();
        let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
        let (session, _) = registry.create(&asker, maker(5), ask("a"), NOW).unwrap();
        let old = session.token_id;
        let asker = come(&registry, old, UID, &[5, 1]).unwrap();
        let fresh = verifier();
        let new = fresh.id();
        let kept = registry.rotated(&asker, &session.id, &fresh, 100, NOW).unwrap();
        registry.rotate(&asker, &session.id, fresh, 100, NOW).unwrap();
        let is = registry.record(&session.id).unwrap();
        assert_eq!(format!("{kept:?}"), format!("{is:?}"), "what is kept beforehand is what comes about");
        let mut again = after_restart(&registry, owner, 9);
        again.restore(&kept, NOW + 99).unwrap();
        assert_eq!(come(&again, old, UID, &[5, 1]).unwrap().until, Some(NOW + 100));
        assert_eq!(come(&again, new, UID, &[5, 1]).unwrap().until, None);
        let mut again = after_restart(&registry, owner, 9);
        again.restore(&kept, NOW + 100).unwrap();
        assert_eq!(code(come(&again, old, UID, &[5, 1])), Code::Revoked);
        assert!(come(&again, new, UID, &[5, 1]).is_ok());
    }

    #[test]
    fn the_owner_s_old_token_finishes_its_grace_only_beside_the_token_that_replaced_it() {
        let (mut registry, old) = fixture();
        let asker = come(&registry, old, UID, &[99]).unwrap();
        let fresh = verifier();
        let new = fresh.id();
        registry.rotate(&asker, &SessionId::owner(), fresh, 100, NOW).unwrap();
        let record = registry.record(&SessionId::owner()).unwrap();
        let mut again = after_restart(&registry, new, 9);
        again.restore_grace(&record, NOW);
        assert_eq!(come(&again, old, UID, &[99]).unwrap().until, Some(NOW + 100));
        assert_eq!(again.next_deadline(), Some(NOW + 100));
        let (mut other, _) = fixture();
        other.restore_grace(&record, NOW);
        assert_eq!(code(come(&other, old, UID, &[99])), Code::Denied);
    }

    #[test]
    fn a_user_s_session_comes_back_below_the_user_and_the_user_s_old_token_has_its_grace() {
        const ADA: u32 = 2001;
        let (mut registry, owner) = fixture();
        let scopes: Vec<Scope> = Scopes::default_of_a_run().iter().cloned().collect();
        let (old, fresh) = (verifier(), verifier());
        registry.set_user(ADA, old.clone(), &scopes, NOW);
        let ada = come(&registry, old.id(), ADA, &[9, 1]).unwrap();
        let maker = Maker { uid: ADA, leader: process(5), cwd: None };
        let wish = NewSession { realm: Some("r".parse().unwrap()), ..ask("a") };
        let (session, _) = registry.create(&ada, maker, wish, NOW).unwrap();
        registry.rotate(&ada, &SessionId::of_user(ADA), fresh.clone(), 100, NOW).unwrap();
        let records = [&session.id, &SessionId::of_user(ADA)].map(|id| registry.record(id).unwrap());
        let mut again = after_restart(&registry, owner, 1);
        assert_eq!(
            again.restore(&records[0], NOW),
            Err(NotRestored::Orphan),
            "the user has no token any more"
        );
        again.set_user(ADA, fresh.clone(), &scopes, NOW);
        again.restore_grace(&records[1], NOW);
        assert_eq!(again.restore(&records[0], NOW), Ok(true), "and who stands for users takes no place");
        assert_eq!(come(&again, old.id(), ADA, &[9, 1]).unwrap().until, Some(NOW + 100));
        assert_eq!(code(come(&again, fresh.id(), ADA, &[8, 5, 1])), Code::Binding);
        assert!(come(&again, session.token_id, ADA, &[8, 5, 1]).is_ok());
        // With fewer scopes for users since, what had more does not come back.
        let mut narrower = after_restart(&registry, owner, 9);
        narrower.set_user(ADA, fresh, &[], NOW);
        assert_eq!(narrower.restore(&records[0], NOW), Err(NotRestored::Wider));
    }

    #[test]
    fn a_session_that_ended_before_the_restart_still_holds_back_the_owner_below_its_leader() {
        let (mut registry, owner) = fixture();
        let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
        let (session, _) = registry.create(&asker, maker(5), ask("a"), NOW).unwrap();
        let record = registry.record(&session.id).unwrap();
        let mut again = after_restart(&registry, owner, 9);
        assert!(again.restore_ended(&record, &EndReason::Expired, NOW));
        assert!(again.is_empty() && again.leads(&process(5)));
        assert_eq!(code(come(&again, owner, UID, &[8, 5, 1])), Code::Binding);
        assert_eq!(code(come(&again, session.token_id, UID, &[8, 5, 1])), Code::Expired);
        again.end_leader(&process(5), NOW);
        assert!(come(&again, owner, UID, &[8, 5, 1]).is_ok());
    }
}
