//! One who listens: what it subscribes to, what waits for it, and whether it may still hear anything.

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
    /// It waits to be read.
    Queued,
    /// It did not fit, and is counted.
    Missed,
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
    patterns: Vec<(Site, Pattern)>,
    /// Where it is among those who listen.
    sites: Vec<Site>,
    queue: Queue,
}

impl State {
    /// Takes away what the session's scopes do not permit any more.
    fn look_again(&mut self, session: &Arc<Session>) {
        if Arc::ptr_eq(&self.seen, session) {
            return;
        }
        self.seen = session.clone();
        let (kept, lost): (Vec<_>, Vec<_>) =
            self.patterns.drain(..).partition(|(_, pattern)| audience::permits(session, pattern));
        self.patterns = kept;
        for (site, pattern) in lost {
            self.queue.unsubscribed(site.realm.as_str(), &[pattern]);
        }
    }

    fn of_site(&self, site: &Site) -> Vec<Pattern> {
        self.patterns.iter().filter(|(place, _)| place == site).map(|(_, pattern)| pattern.clone()).collect()
    }
}

impl Subscriber {
    pub(in crate::daemon) fn new(admitted: &Admitted, form: Form) -> Arc<Subscriber> {
        let state = State {
            seen: admitted.session.clone(),
            patterns: Vec::new(),
            sites: Vec::new(),
            queue: Queue::new(form),
        };
        Arc::new(Subscriber {
            admitted: admitted.clone(),
            state: Mutex::new(state),
            wake: Notify::new(),
            is_stirred: AtomicBool::new(false),
        })
    }

    /// Adds patterns and what follows of what is kept; says what is subscribed to at that site then.
    pub(super) fn add(
        &self,
        session: &Arc<Session>,
        site: &Site,
        patterns: &[Pattern],
        replay: Replay<'_>,
        most: usize,
    ) -> Result<Vec<Pattern>, NotSubscribed> {
        let mut state = lock(&self.state);
        state.look_again(session);
        let mut all = state.patterns.clone();
        for pattern in patterns {
            let pattern = (site.clone(), pattern.clone());
            if !all.contains(&pattern) {
                all.push(pattern);
            }
        }
        if all.len() > most {
            return Err(NotSubscribed::TooMany(most));
        }
        if state.queue.is_replaying() && !replay.events.is_empty() {
            return Err(NotSubscribed::ReplayUnderWay);
        }
        state.patterns = all;
        if !state.sites.contains(site) {
            state.sites.push(site.clone());
        }
        if replay.gap.is_some() || !replay.events.is_empty() {
            state.queue.replay(replay.gap.as_ref(), replay.events);
        }
        Ok(state.of_site(site))
    }

    /// Takes patterns away, or all of them; says what is left at that site.
    pub(super) fn remove(&self, site: &Site, patterns: Option<&[Pattern]>) -> Vec<Pattern> {
        let mut state = lock(&self.state);
        let goes = |place: &Site, pattern: &Pattern| {
            place == site && patterns.is_none_or(|patterns| patterns.contains(pattern))
        };
        state.patterns.retain(|(place, pattern)| !goes(place, pattern));
        let left = state.of_site(site);
        if left.is_empty() {
            state.sites.retain(|place| place != site);
        }
        left
    }

    /// Where it listens.
    pub(super) fn sites(&self) -> Vec<Site> {
        lock(&self.state).sites.clone()
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
        state.look_again(session);
        let matches = |(place, pattern): &(Site, Pattern)| pattern.matches(&event.subject) && place == site;
        if !event.audience.has(session) || !state.patterns.iter().any(matches) {
            return Offered::NotHeard;
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
