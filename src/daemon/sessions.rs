//! Living sessions: the registry together with what keeps them on record, and what watches leaders, clocks and connections.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch};
use tokio::task::yield_now;
use tokio::time::sleep;

use super::events::{Events, Site};
use super::journal::{By, SessionLog};
use super::metrics::Metrics;
use super::store::{NotKept, Store};
use crate::config;
use crate::gate::turn::Turn;
use crate::gate::{lock, now};
use crate::kernel::dir::Unusable;
use crate::kernel::process::{Identity, Process};
use crate::secret::token::TokenId;
use crate::secret::verifier::Verifier;
use crate::session::limits::Limits;
use crate::session::past::Ended;
use crate::session::record::Record;
use crate::session::registry::{Admitted, Registry};
use crate::session::scope::Scopes;
use crate::session::wish::{Change, Maker, NewSession, NotMade};
use crate::session::{EndReason, Millis, Session, SessionId};

/// Sessions that end for a reason of their own before others have their turn.
const AT_ONCE: usize = 64;
/// How long it is until what could not be put on disk is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Longest sleep of the clock; a suspended machine's clock may jump.
const CLOCK_MAX: Duration = Duration::from_secs(3600);

/// What a realm is told of its sessions, below what only the daemon publishes.
const STARTED: &str = "$authsock.session.started";
const ENDED: &str = "$authsock.session.ended";
const ROTATED: &str = "$authsock.session.rotated";

/// Tells a session's connections that something concerns them, and they look: it was changed, its token was rotated, or
/// it has ended, with the reason.
pub(super) type Lifeline = watch::Receiver<Option<EndReason>>;

/// The registry and its watchers.
#[derive(Debug)]
pub(super) struct Sessions {
    registry: Arc<Mutex<Registry>>,
    events: Arc<Events>,
    metrics: Arc<Metrics>,
    store: Store,
    log: SessionLog,
    lifelines: Mutex<HashMap<SessionId, watch::Sender<Option<EndReason>>>>,
    /// What realms are still to be told of their sessions: many end at once, and many may listen.
    untold: Mutex<VecDeque<(Site, &'static str, Value)>>,
    /// There is more of it than one turn has time for.
    has_untold: Notify,
    /// A deadline may have moved.
    clock: Notify,
    /// Something ended or began; for whoever counts.
    changed: Arc<Notify>,
}

impl Sessions {
    /// With the sessions that outlived the daemon before.
    pub(super) fn new(
        mut registry: Registry,
        store: Store,
        events: config::Events,
        metrics: Arc<Metrics>,
        changed: Arc<Notify>,
    ) -> Arc<Sessions> {
        let leaders = store.restore(&mut registry, &metrics, now());
        let registry = Arc::new(Mutex::new(registry));
        let sessions = Arc::new(Sessions {
            events: Arc::new(Events::new(registry.clone(), events, metrics.clone())),
            metrics,
            registry,
            store,
            log: SessionLog::default(),
            lifelines: Mutex::default(),
            untold: Mutex::default(),
            has_untold: Notify::new(),
            clock: Notify::new(),
            changed,
        });
        for leader in leaders {
            tokio::spawn(watch_leader(sessions.clone(), leader));
        }
        tokio::spawn(keep_time(Arc::downgrade(&sessions)));
        tokio::spawn(tell_the_untold(Arc::downgrade(&sessions)));
        sessions
    }

    /// The registry itself.
    pub(super) fn registry(&self) -> &Arc<Mutex<Registry>> {
        &self.registry
    }

    /// What is told of sessions, and what they tell each other.
    pub(super) fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// Tells a session's realm what became of it, after what is still to be told.
    fn announce(&self, session: &Session, what: &'static str) {
        let data = json!({ "id": session.id.as_str(), "name": session.name.as_str() });
        lock(&self.untold).push_back((Site::of(session), what, data));
        self.tell_realms();
    }

    /// Tells realms what they are still to be told, for one turn.
    fn tell_realms(&self) {
        let mut turn = Turn::begin();
        loop {
            let Some((site, what, data)) = lock(&self.untold).pop_front() else { return };
            self.events.tell(&site, what, &data);
            if turn.is_over() {
                self.has_untold.notify_one();
                return;
            }
        }
    }

    /// The public handle of the owner's token as it is now.
    pub(super) fn owner_token(&self) -> Option<TokenId> {
        lock(&self.registry).get(&SessionId::owner()).map(|session| session.token_id)
    }

    /// Watches what happens to a session's connections.
    pub(super) fn lifeline(&self, id: &SessionId) -> Lifeline {
        let mut lifelines = lock(&self.lifelines);
        lifelines.entry(*id).or_insert_with(|| watch::channel(None).0).subscribe()
    }

    /// Whether a token still lets its connection stay, and until when.
    pub(super) fn standing(&self, admitted: &Admitted) -> Option<Standing> {
        let registry = lock(&self.registry);
        let session = registry.get(&admitted.session.id)?.clone();
        let until = registry.grace_of(admitted.token_id)?;
        Some(Standing { session, until })
    }

    /// Makes a session whose leader is a process that is held; its end ends the session. It is on
    /// record before anybody hears of it, or it is not made.
    pub(super) fn create(
        self: &Arc<Self>,
        asker: &Admitted,
        maker: Maker,
        leader: Process,
        new: NewSession,
    ) -> Result<Arc<Session>, NotMade> {
        let (session, is_new_leader) = {
            let mut registry = lock(&self.registry);
            let (session, is_new_leader) = registry.create(asker, maker, new, now())?;
            if let Err(error) = registry.record(&session.id).map_or(Ok(()), |record| self.store.save(&record))
            {
                registry.take_back(&session, is_new_leader);
                self.store.take_back(&session.id);
                return Err(not_kept(&session, error));
            }
            (session, is_new_leader)
        };
        self.log.began(&session);
        self.metrics.session_started();
        self.announce(&session, STARTED);
        if is_new_leader {
            tokio::spawn(watch_leader(self.clone(), leader));
        }
        self.clock.notify_one();
        self.changed.notify_one();
        Ok(session)
    }

    /// Ends a session and everything below it; their connections are told. Whoever had it done is noted. Says how many
    /// ended, and why that is not on disk if it is not.
    pub(super) fn end(&self, id: &SessionId, reason: EndReason, by: Option<By>) -> (usize, Option<Unusable>) {
        let ended = lock(&self.registry).end(id, reason, now());
        let problem = self.tell(&ended, by);
        (ended.len(), problem)
    }

    /// Notes that a leader's process has ended, and with it what it led.
    async fn end_leader(&self, leader: &Identity) {
        loop {
            let ended = lock(&self.registry).end_leader(leader, AT_ONCE, now());
            if ended.is_empty() {
                break;
            }
            let _ = self.tell(&ended, None);
            yield_now().await;
        }
        self.store.leader_ended(leader);
        self.changed.notify_one();
    }

    fn tell(&self, all_ended: &[Ended], by: Option<By>) -> Option<Unusable> {
        // On disk from the top, the other way round: where that is cut short, the next daemon ends what is below.
        let mut problem = None;
        for ended in all_ended.iter().rev() {
            let leader_lives = ended.session.leader.is_some_and(|leader| lock(&self.registry).leads(&leader));
            problem = problem.or(self.store.end(ended, leader_lives).err());
        }
        for Ended { session, reason, .. } in all_ended {
            self.log.ended(session, *reason, by.filter(|_| *reason == EndReason::Revoked));
            self.metrics.session_ended(*reason);
            let data = json!({ "id": session.id.as_str(), "name": session.name.as_str(), "reason": reason.as_str() });
            lock(&self.untold).push_back((Site::of(session), ENDED, data));
            if let Some(lifeline) = lock(&self.lifelines).remove(&session.id) {
                lifeline.send_replace(Some(*reason));
            }
        }
        self.tell_realms();
        self.forget_the_forgotten();
        self.clock.notify_one();
        self.changed.notify_one();
        problem
    }

    /// Gives a session a new token.
    pub(super) fn rotate(
        &self,
        asker: &Admitted,
        id: &SessionId,
        verifier: Verifier,
        grace: Millis,
        by: By,
    ) -> Result<TokenId, NotMade> {
        let session = {
            let mut registry = lock(&self.registry);
            let now = now();
            // On disk before in memory, as the owner's token is.
            let record = registry.rotated(asker, id, &verifier, grace, now)?;
            match self.store.save(&record) {
                Ok(()) => {}
                // The token's file is replaced already: the new one holds in any case.
                Err(error) if record.session.stands_for_somebody() => tracing::warn!(
                    authsock_event = "not_kept",
                    "the grace of an old token of session {id} would end with this daemon: {error}"
                ),
                Err(error) => {
                    // What was there before holds, should the file have been replaced all the same.
                    let _ = registry.record(id).map(|before| self.store.save(&before));
                    return Err(not_kept(&record.session, error));
                }
            }
            registry.rotate(asker, id, verifier, grace, now)?
        };
        self.log.rotated(&session, grace, by);
        self.announce(&session, ROTATED);
        self.touch(id);
        self.clock.notify_one();
        Ok(session.token_id)
    }

    /// Changes a session, and narrows what came from it where that would be wider now. On disk before in memory, and
    /// what is below before what is above: whenever that is cut short, nothing is wider than what it came from.
    pub(super) fn update(
        &self,
        asker: &Admitted,
        id: &SessionId,
        change: Change,
        by: By,
    ) -> Result<Arc<Session>, NotMade> {
        let changed = {
            let mut registry = lock(&self.registry);
            let changed = registry.updated(asker, id, change, now())?;
            for (place, session) in changed.iter().enumerate() {
                let Some(record) = registry.record(&session.id) else { continue };
                let record = Record { session: Session::clone(session), ..record };
                if let Err(error) = self.store.save(&record) {
                    // What was there before holds, also of those that were written already.
                    let before =
                        changed[..=place].iter().rev().filter_map(|session| registry.record(&session.id));
                    before.for_each(|before| drop(self.store.save(&before)));
                    return Err(not_kept(session, error));
                }
            }
            registry.update(&changed);
            changed
        };
        // Whoever listens below may have lost some of what it hears.
        changed.iter().for_each(|session| self.touch(&session.id));
        let session = changed.last().cloned().ok_or(NotMade::ParentEnded)?;
        self.log.changed(&session, by);
        self.clock.notify_one();
        Ok(session)
    }

    /// Changes how many sessions fit, and how long what has ended is remembered.
    pub(super) fn set_limits(&self, limits: Limits) {
        lock(&self.registry).set_limits(limits, now());
        self.forget_the_forgotten();
        self.clock.notify_one();
    }

    /// Why a session ended, as far as that is remembered.
    pub(super) fn reason(&self, lifeline: &Lifeline, id: &SessionId) -> Option<EndReason> {
        let told = *lifeline.borrow();
        told.or_else(|| lock(&self.registry).ended(id).map(|ended| ended.reason))
    }

    fn forget_the_forgotten(&self) {
        let forgotten = lock(&self.registry).take_forgotten();
        self.store.forget(&forgotten);
    }

    /// Changes what the sessions of a system daemon's users may do. What was made below them and has
    /// more than that ends.
    pub(super) fn narrow_users(&self, scopes: &Scopes) {
        let (users, ended) = {
            let mut registry = lock(&self.registry);
            let wider = registry.set_user_scopes(scopes);
            let ended: Vec<Ended> =
                wider.iter().flat_map(|id| registry.end(id, EndReason::Revoked, now())).collect();
            (registry.users().collect::<Vec<_>>(), ended)
        };
        users.iter().for_each(|uid| self.touch(&SessionId::of_user(*uid)));
        let _ = self.tell(&ended, None);
    }

    /// Has a session's connections look at it anew.
    fn touch(&self, id: &SessionId) {
        if let Some(lifeline) = lock(&self.lifelines).get(id) {
            lifeline.send_modify(|_| {});
        }
    }

    /// Forgets the lifelines that nobody watches any more.
    pub(super) fn tidy(&self) {
        lock(&self.lifelines).retain(|_, lifeline| lifeline.receiver_count() > 0);
    }

    /// Takes the power from tokens of users whose files are gone; their connections end.
    pub(super) fn forget_users(&self, has_token: impl Fn(u32) -> bool) {
        let users: Vec<u32> = lock(&self.registry).users().collect();
        for uid in users.into_iter().filter(|uid| !has_token(*uid)) {
            lock(&self.registry).forget_user(uid, now());
            tracing::info!(
                authsock_event = "token_revoked",
                authsock_peer_uid = uid,
                "the token of uid {uid} was removed, and is worth nothing any more; the next contact makes a new one"
            );
            self.touch(&SessionId::of_user(uid));
        }
    }

    async fn end_what_is_due(&self) -> Option<Millis> {
        let mut turn = Turn::begin();
        loop {
            let expired = lock(&self.registry).expired(AT_ONCE, now());
            if expired.is_empty() {
                break;
            }
            for id in expired {
                let _ = self.end(&id, EndReason::Expired, None);
                // With each goes what is below it.
                turn.pause().await;
            }
            yield_now().await;
        }
        let next = {
            let mut registry = lock(&self.registry);
            registry.end_graces(now());
            registry.next_deadline()
        };
        self.forget_the_forgotten();
        next
    }
}

/// Logs that a session's record could not be written, and says so to whoever asked.
fn not_kept(session: &Session, error: NotKept) -> NotMade {
    let error = match error {
        NotKept::TooLong(error) => return NotMade::TooLong(error),
        NotKept::Unusable(error) => error,
    };
    tracing::error!(
        authsock_event = "not_kept",
        authsock_session = session.id.as_str(),
        "session {} ({}) cannot be recorded: {error}",
        session.id,
        session.name.in_brackets()
    );
    NotMade::NotKept(error.to_string())
}

/// What a connection still has.
#[derive(Debug)]
pub(super) struct Standing {
    /// The session as it is now.
    pub(super) session: Arc<Session>,
    /// When the token's grace ends, if it was rotated.
    pub(super) until: Option<Millis>,
}

/// Ends what is due, then sleeps until the next deadline or until one may have moved.
async fn keep_time(sessions: std::sync::Weak<Sessions>) {
    loop {
        let Some(living) = sessions.upgrade() else { return };
        let next = living.end_what_is_due().await;
        let most = if living.store.catch_up() { RETRY_PAUSE } else { CLOCK_MAX };
        let pause = next.map_or(most, |next| Duration::from_millis(next.saturating_sub(now())).min(most));
        tokio::select! {
            () = sleep(pause) => {}
            () = living.clock.notified() => {}
        }
    }
}

/// Tells realms what one turn had no time for.
async fn tell_the_untold(sessions: std::sync::Weak<Sessions>) {
    loop {
        let Some(living) = sessions.upgrade() else { return };
        living.tell_realms();
        if lock(&living.untold).is_empty() {
            living.has_untold.notified().await;
        } else {
            yield_now().await;
        }
    }
}

/// Waits for a leader's end, which ends its sessions. A pidfd becomes readable then (pidfd_open(2)),
/// and so does a kqueue that watches a process, which may itself be watched by the runtime's.
/// It is watched for as long as it lives, whatever becomes of its sessions before.
async fn watch_leader(sessions: Arc<Sessions>, leader: Process) {
    let identity = leader.identity();
    // Deprecated for types that may lie about the descriptor they own; an OwnedFd cannot, and the
    // replacement is unsafe. CHECK: https://github.com/tokio-rs/tokio/pull/8587
    #[allow(deprecated)]
    let watched = AsyncFd::with_interest(OwnedFd::from(leader), Interest::READABLE);
    match &watched {
        Ok(pidfd) => drop(pidfd.readable().await),
        // Without a watch its sessions would outlive it: they end at once.
        Err(error) => tracing::error!(authsock_event = "unwatched", "a leader cannot be watched: {error}"),
    }
    sessions.end_leader(&identity).await;
}
