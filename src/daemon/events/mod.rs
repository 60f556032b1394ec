//! Events from those who publish to those who may hear them: what is kept of each realm, who listens there, and what each listener is given.
//!
//! Publishing never waits: an event is written once, put into the queues of those who hear it, and each of them is
//! woken when whoever published has had its turn. Whether somebody still may hear anything is asked of the registry for
//! every event and every listener, and again before anything is written; nothing that says so is kept elsewhere.

#![forbid(unsafe_code)]

mod audience;
mod channel;
pub(super) mod methods;
mod queue;
pub(super) mod subscriber;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use serde_json::value::RawValue;

use super::metrics::Metrics;
use crate::config;
use crate::gate::{lock, now};
use crate::kernel::dir::own_uid;
use crate::secret::random::{self, NoRandomness};
use crate::session::registry::Registry;
use crate::session::scope::{Scope, Verb};
use crate::session::{Realm, Session};
use crate::wire::event::{BadData, Epoch, EventLine, Params, Place, Publisher, check_data};
use crate::wire::subject::{Pattern, Subject};
use audience::{Audience, NotHeard, NotSaid};
use channel::Channel;
pub(super) use channel::From;
use subscriber::{Offered, Room, Subscriber};

/// Where events are published and heard: a realm of one user.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Site {
    pub(super) uid: u32,
    pub(super) realm: Realm,
}

impl Site {
    /// Where the owner is.
    pub(super) fn of_owner() -> Site {
        Site { uid: own_uid(), realm: Realm::default() }
    }

    /// Where a session is.
    pub(super) fn of(session: &Session) -> Site {
        Site { uid: session.uid, realm: session.realm.clone() }
    }
}

/// An event that was published.
#[derive(Debug)]
pub(super) struct Event {
    seq: u64,
    epoch: Epoch,
    subject: Subject,
    audience: Audience,
    line: EventLine,
}

impl Event {
    fn place(&self) -> Place {
        Place { epoch: self.epoch, seq: self.seq }
    }
}

/// What somebody says.
struct Said<'a> {
    subject: Subject,
    audience: Audience,
    publisher: Option<Publisher<'a>>,
    data: &'a RawValue,
}

/// What came of publishing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Published {
    pub(super) place: Place,
    /// In how many subscribers' queues it is.
    pub(super) reached: usize,
}

/// What came of subscribing.
#[derive(Debug)]
pub(super) struct Subscribed {
    /// The newest event so far.
    pub(super) newest: Place,
    /// What comes from here on is what came after this one.
    pub(super) after: u64,
    /// How many events follow that are kept.
    pub(super) replayed: usize,
    /// All that is subscribed to there now.
    pub(super) patterns: Vec<Pattern>,
}

/// Why an event is not published.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotPublished {
    #[error(transparent)]
    NotSaid(#[from] NotSaid),
    #[error(transparent)]
    Data(#[from] BadData),
    #[error(transparent)]
    Full(#[from] NoRoom),
}

/// Why somebody does not subscribe.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotSubscribed {
    #[error(transparent)]
    NotHeard(#[from] NotHeard),
    #[error("a connection subscribes to at most {0} patterns (events.patterns)")]
    TooMany(usize),
    #[error(
        "all who listen in one realm subscribe to at most {0} patterns (events.patterns_per_realm); > and * stand for many subjects"
    )]
    TooManyInRealm(usize),
    #[error("what was asked for before, or told, still waits to be read; ask for more when it is")]
    ReplayUnderWay,
    #[error(transparent)]
    Full(#[from] NoRoom),
}

/// There is no place for one realm more.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoRoom {
    #[error(
        "events of at most {0} realms of one user are kept (events.realms_per_uid), and all of them have subscribers"
    )]
    Realms(usize),
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

/// All of it.
#[derive(Debug)]
pub(super) struct Events {
    registry: Arc<Mutex<Registry>>,
    metrics: Arc<Metrics>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    settings: config::Events,
    channels: HashMap<Site, Channel>,
    /// Who has something in its queue and was not woken yet.
    stirred: Vec<Arc<Subscriber>>,
    /// Counts what was published, so that it is known which realm was quiet for longest.
    clock: u64,
}

impl Events {
    pub(super) fn new(
        registry: Arc<Mutex<Registry>>,
        settings: config::Events,
        metrics: Arc<Metrics>,
    ) -> Events {
        let inner = Inner { settings, channels: HashMap::new(), stirred: Vec::new(), clock: 0 };
        Events { registry, metrics, inner: Mutex::new(inner) }
    }

    /// Changes the limits; what is kept and queued beyond them goes as new events come.
    pub(super) fn set(&self, settings: config::Events) {
        lock(&self.inner).settings = settings;
    }

    /// Publishes what a session says. Whoever hears it is woken by [`Events::flush`].
    pub(super) fn publish(
        &self,
        session: &Session,
        site: &Site,
        subject: Subject,
        data: &RawValue,
    ) -> Result<Published, NotPublished> {
        let needed = Scope::Subjects(Verb::Publish, subject.as_pattern());
        audience::may_say(session, &subject, &needed)?;
        let mut inner = lock(&self.inner);
        let data = check_data(data, inner.settings.payload, inner.settings.payload_depth)?;
        let registry = lock(&self.registry);
        let audience = Audience::of(&subject, site, &registry)?;
        let publisher = Publisher { id: session.id.as_str(), name: session.name.as_str() };
        let said = Said { subject, audience, publisher: Some(publisher), data: &data };
        Ok(inner.publish(&registry, &self.metrics, site, said)?)
    }

    /// Publishes what the daemon says, in a session's realm. Where there is no place for that realm, nobody listens
    /// there either.
    pub(super) fn tell(&self, site: &Site, subject: &str, data: &Value) {
        let Ok(subject) = subject.parse::<Subject>() else { return };
        let Ok(data) = serde_json::value::to_raw_value(data) else { return };
        let audience = Audience::of_built_in(&subject);
        {
            let mut inner = lock(&self.inner);
            let registry = lock(&self.registry);
            let said = Said { subject, audience, publisher: None, data: &data };
            let _ = inner.publish(&registry, &self.metrics, site, said);
        }
        self.flush();
    }

    /// How many patterns a request may name: no more than one connection may have.
    pub(super) fn patterns_max(&self) -> usize {
        lock(&self.inner).settings.patterns
    }

    /// Has whoever got something look at it.
    pub(super) fn flush(&self) {
        let stirred = std::mem::take(&mut lock(&self.inner).stirred);
        stirred.iter().for_each(|subscriber| subscriber.wake());
    }

    /// Subscribes to what matches, beside what is subscribed to already.
    pub(super) fn subscribe(
        &self,
        subscriber: &Arc<Subscriber>,
        session: &Arc<Session>,
        site: &Site,
        patterns: Vec<Pattern>,
        (from, wanted): (From, Option<usize>),
    ) -> Result<Subscribed, NotSubscribed> {
        patterns.iter().try_for_each(|pattern| audience::may_hear(session, pattern))?;
        let mut inner = lock(&self.inner);
        let (of_connection, of_realm) = (inner.settings.patterns, inner.settings.patterns_per_realm);
        let channel = inner.channel(site)?;
        let in_use: usize = channel.subscribers.iter().map(|known| known.count_at(site)).sum();
        let room = Room { of_connection, of_realm, left_in_realm: of_realm.saturating_sub(in_use) };
        let hears = |event: &Event| {
            event.audience.has(session) && patterns.iter().any(|pattern| pattern.matches(&event.subject))
        };
        let replay = channel.replay(site, from, wanted, hears);
        let replayed = replay.events.len();
        let after = replay.after;
        let all = subscriber.add(session, site, &patterns, replay, room)?;
        if !channel.subscribers.iter().any(|known| Arc::ptr_eq(known, subscriber)) {
            channel.subscribers.push(subscriber.clone());
        }
        Ok(Subscribed { newest: channel.newest(), after, replayed, patterns: all })
    }

    /// Subscribes no more to these patterns, or to none at all; says what is left.
    pub(super) fn unsubscribe(
        &self,
        subscriber: &Arc<Subscriber>,
        site: &Site,
        patterns: Option<&[Pattern]>,
    ) -> Vec<Pattern> {
        let mut inner = lock(&self.inner);
        let left = subscriber.remove(site, patterns);
        if left.is_empty()
            && let Some(channel) = inner.channels.get_mut(site)
        {
            channel.subscribers.retain(|known| !Arc::ptr_eq(known, subscriber));
        }
        left
    }

    /// Forgets a subscriber that has left.
    fn leave(&self, subscriber: &Arc<Subscriber>) {
        let mut inner = lock(&self.inner);
        for site in subscriber.sites() {
            if let Some(channel) = inner.channels.get_mut(&site) {
                channel.subscribers.retain(|known| !Arc::ptr_eq(known, subscriber));
            }
        }
    }

    /// How many connections listen anywhere.
    pub(super) fn subscribers(&self) -> usize {
        lock(&self.inner).channels.values().map(|channel| channel.subscribers.len()).sum()
    }
}

impl Inner {
    fn publish(
        &mut self,
        registry: &Registry,
        metrics: &Metrics,
        site: &Site,
        said: Said<'_>,
    ) -> Result<Published, NoRoom> {
        let Said { subject, audience, publisher, data } = said;
        self.clock += 1;
        let clock = self.clock;
        let settings = self.settings.clone();
        let channel = self.channel(site)?;
        channel.used = clock;
        let place = channel.next();
        let now = now();
        let line = EventLine::of(&Params {
            subject: &subject,
            realm: site.realm.as_str(),
            seq: place.seq,
            epoch: place.epoch,
            time_ms: now,
            publisher,
            data,
        });
        let event = Arc::new(Event { seq: place.seq, epoch: place.epoch, subject, audience, line });
        let (mut reached, mut missed) = (0, 0);
        let mut stirred = Vec::new();
        for subscriber in &channel.subscribers {
            let offered = subscriber.offer(&event, site, registry, now, &settings);
            reached += usize::from(offered == Offered::Queued);
            missed += usize::from(offered == Offered::Missed);
            if offered != Offered::NotHeard && subscriber.is_first_stir() {
                stirred.push(subscriber.clone());
            }
        }
        metrics.event(reached, missed);
        channel.keep(event, &settings);
        self.stirred.append(&mut stirred);
        Ok(Published { place, reached })
    }

    /// Where the events of a realm are kept; the realm that was quiet for longest makes room, if nobody listens there.
    fn channel(&mut self, site: &Site) -> Result<&mut Channel, NoRoom> {
        if !self.channels.contains_key(site) {
            let most = self.settings.realms_per_uid;
            let of_uid = self.channels.iter().filter(|(other, _)| other.uid == site.uid);
            if of_uid.clone().count() >= most {
                let quiet = of_uid.filter(|(_, channel)| channel.subscribers.is_empty());
                let quietest = quiet.min_by_key(|(_, channel)| channel.used).map(|(site, _)| site.clone());
                self.channels.remove(&quietest.ok_or(NoRoom::Realms(most))?);
            }
        }
        let epoch = Epoch(u64::from_ne_bytes(random::bytes()?));
        Ok(self.channels.entry(site.clone()).or_insert_with(|| Channel::new(epoch)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An event that everybody hears.
    pub(super) fn event(place: Place, subject: &str) -> Arc<Event> {
        let subject: Subject = subject.parse().unwrap();
        let data = RawValue::NULL;
        let Place { seq, epoch } = place;
        let params =
            Params { subject: &subject, realm: "default", seq, epoch, time_ms: 1, publisher: None, data };
        let line = EventLine::of(&params);
        Arc::new(Event { seq, epoch, subject, audience: Audience::Realm, line })
    }

    pub(super) fn site() -> Site {
        Site { uid: 1, realm: Realm::default() }
    }
}
