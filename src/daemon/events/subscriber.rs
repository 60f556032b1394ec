//! One who listens: what it subscribes to, what waits for it, and whether it may still hear anything.

use std::collections::HashSet;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tokio::net::UnixStream;
use tokio::sync::Notify;

use super::channel::Replay;
use super::queue::Queue;
pub(in crate::daemon) use super::queue::{Form, Progress, write_frame};
use super::{Event, Events, NotSubscribed, Site, audience};
use crate::config;
use crate::gate::lock;
use crate::session::registry::{Admitted, Registry};
use crate::session::{Millis, Session};
use crate::wire::subject::Pattern;

/// What became of an event that was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offered {
    /// It is not for this subscriber.
    NotHeard,
    /// Nor this one, but something else waits to be read: the session may not hear all that it did.
    Told,
    /// It waits to be read.
    Queued,
    /// It did not fit, and is counted.
    Missed,
}

/// To how many patterns one may subscribe.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// On one connection, wherever it listens.
    pub(super) of_connection: usize,
    /// In one realm, by all who listen there, and how many more may come.
    pub(super) of_realm: usize,
    pub(super) left_in_realm: usize,
}

#[derive(Debug)]
pub(in crate::daemon) struct Subscriber {
    admitted: Admitted,
    state: Mutex<State>,
    wake: Notify,
    /// Whether it is among those that will be woken.
    is_stirred: AtomicBool,
}

#[derive(Debug)]
struct State {
    /// The session as it was when the patterns were looked at last.
    seen: Arc<Session>,
    /// Where it listens, and to what; nowhere to nothing.
    sites: Vec<Listened>,
    queue: Queue,
}

/// What is subscribed to at one site, each once.
#[derive(Debug)]
struct Listened {
    site: Site,
    patterns: Vec<Pattern>,
}

impl State {
    /// Takes away what the session's scopes do not permit any more; says whether that was anything.
    fn look_again(&mut self, session: &Arc<Session>) -> bool {
        if Arc::ptr_eq(&self.seen, session) {
            return false;
        }
        self.seen = session.clone();
        let mut is_told = false;
        for Listened { site, patterns } in &mut self.sites {
            let (kept, lost): (Vec<_>, Vec<_>) =
                patterns.drain(..).partition(|pattern| audience::permits(session, pattern));
            *patterns = kept;
            for pattern in lost {
                self.queue.unsubscribed(site.realm.as_str(), &[pattern]);
                is_told = true;
            }
        }
        is_told
    }

    fn of_site(&self, site: &Site) -> &[Pattern] {
        let listened = self.sites.iter().find(|listened| listened.site == *site);
        listened.map_or(&[], |listened| &listened.patterns)
    }

    fn count(&self) -> usize {
        self.sites.iter().map(|listened| listened.patterns.len()).sum()
    }
}

impl Subscriber {
    pub(in crate::daemon) fn new(admitted: &Admitted, form: Form) -> Arc<Subscriber> {
        let state = State { seen: admitted.session.clone(), sites: Vec::new(), queue: Queue::new(form) };
        Arc::new(Subscriber {
            admitted: admitted.clone(),
            state: Mutex::new(state),
            wake: Notify::new(),
            is_stirred: AtomicBool::new(false),
        })
    }

    /// Adds patterns and what follows of what is kept; says what is subscribed to at that site then. Of this site's
    /// patterns all subscribers may have so many more.
    pub(super) fn add(
        &self,
        session: &Arc<Session>,
        site: &Site,
        patterns: &[Pattern],
        replay: Replay<'_>,
        room: Room,
    ) -> Result<Vec<Pattern>, NotSubscribed> {
        let mut state = lock(&self.state);
        state.look_again(session);
        let mut known: HashSet<&Pattern> = state.of_site(site).iter().collect();
        let mut new = Vec::new();
        for pattern in patterns {
            if known.insert(pattern) {
                new.push(pattern.clone());
            }
        }
        if state.count() + new.len() > room.of_connection {
            return Err(NotSubscribed::TooMany(room.of_connection));
        }
        if new.len() > room.left_in_realm {
            return Err(NotSubscribed::TooManyInRealm(room.of_realm));
        }
        let brings = replay.gap.is_some() || !replay.events.is_empty();
        if brings && state.queue.is_replaying() || state.queue.told() > room.of_connection {
            return Err(NotSubscribed::ReplayUnderWay);
        }
        match state.sites.iter_mut().find(|listened| listened.site == *site) {
            Some(listened) => listened.patterns.extend(new),
            None => state.sites.push(Listened { site: site.clone(), patterns: new }),
        }
        if brings {
            state.queue.replay(replay.gap.as_ref(), replay.events);
        }
        Ok(state.of_site(site).to_vec())
    }

    /// Takes patterns away, or all of them; says what is left at that site.
    pub(super) fn remove(&self, site: &Site, patterns: Option<&[Pattern]>) -> Vec<Pattern> {
        let mut state = lock(&self.state);
        let gone: Option<HashSet<&Pattern>> = patterns.map(|patterns| patterns.iter().collect());
        if let Some(listened) = state.sites.iter_mut().find(|listened| listened.site == *site) {
            listened.patterns.retain(|pattern| gone.as_ref().is_some_and(|gone| !gone.contains(pattern)));
        }
        let left = state.of_site(site).to_vec();
        if left.is_empty() {
            state.sites.retain(|listened| listened.site != *site);
        }
        left
    }

    /// To how many patterns of a site it subscribes.
    pub(super) fn count_at(&self, site: &Site) -> usize {
        lock(&self.state).of_site(site).len()
    }

    /// Where it listens.
    pub(super) fn sites(&self) -> Vec<Site> {
        lock(&self.state).sites.iter().map(|listened| listened.site.clone()).collect()
    }

    /// Offers an event, which it hears if its token is still good, by the registry's word, its session may hear it,
    /// and a pattern matches.
    pub(super) fn offer(
        &self,
        event: &Arc<Event>,
        site: &Site,
        registry: &Registry,
        now: Millis,
        limits: &config::Events,
    ) -> Offered {
        let Some(session) = registry.standing(&self.admitted, now) else { return Offered::NotHeard };
        let mut state = lock(&self.state);
        let is_told = state.look_again(session);
        let is_heard = || state.of_site(site).iter().any(|pattern| pattern.matches(&event.subject));
        if !event.audience.has(session) || !is_heard() {
            return if is_told { Offered::Told } else { Offered::NotHeard };
        }
        if state.queue.push(event, site, limits) { Offered::Queued } else { Offered::Missed }
    }

    /// Whether nobody has noted yet that it must be woken.
    pub(super) fn is_first_stir(&self) -> bool {
        !self.is_stirred.swap(true, Ordering::Relaxed)
    }

    pub(super) fn wake(&self) {
        self.is_stirred.store(false, Ordering::Relaxed);
        self.wake.notify_one();
    }

    /// Waits until something may wait to be read. Cancel safe.
    pub(in crate::daemon) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Has it look whether the session still may hear all that it subscribes to.
    pub(in crate::daemon) fn look_again(&self, session: &Arc<Session>) {
        lock(&self.state).look_again(session);
    }

    /// Whether a part of an event is out, whose rest must come before anything else.
    pub(in crate::daemon) fn is_amid(&self) -> bool {
        lock(&self.state).queue.is_amid()
    }

    /// Writes what waits, as far as the other end takes it. Whoever calls this has just asked whether the session
    /// still stands.
    pub(in crate::daemon) fn write_to(&self, stream: &UnixStream) -> io::Result<Progress> {
        self.write(stream, true)
    }

    /// Writes the rest of an event that is out in part, as far as the other end takes it.
    pub(in crate::daemon) fn write_rest_to(&self, stream: &UnixStream) -> io::Result<Progress> {
        self.write(stream, false)
    }

    fn write(&self, stream: &UnixStream, all: bool) -> io::Result<Progress> {
        lock(&self.state).queue.write_lines(all, |slices: &[IoSlice<'_>]| stream.try_write_vectored(slices))
    }

    /// Takes about so many bytes of what waits, as frames of a stream. As above.
    pub(in crate::daemon) fn take_frames(&self, most: usize) -> Vec<u8> {
        lock(&self.state).queue.take_frames(most)
    }
}

/// A subscriber for as long as its connection lasts.
#[derive(Debug)]
pub(in crate::daemon) struct Listening {
    events: Arc<Events>,
    subscriber: Arc<Subscriber>,
}

impl Listening {
    pub(in crate::daemon) fn new(events: Arc<Events>, admitted: &Admitted, form: Form) -> Listening {
        Listening { events, subscriber: Subscriber::new(admitted, form) }
    }

    pub(in crate::daemon) fn subscriber(&self) -> &Arc<Subscriber> {
        &self.subscriber
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.events.leave(&self.subscriber);
    }
}
