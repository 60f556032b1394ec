//! The events of one realm: their numbering, those that are kept, and what somebody who comes back has missed.

use std::collections::VecDeque;
use std::sync::Arc;

use super::subscriber::Subscriber;
use super::{Event, Site};
use crate::config;
use crate::wire::event::{Epoch, Gap, GapReason, Place};

/// From where on somebody wants events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::daemon) enum From {
    /// From now on.
    Now,
    /// All that is kept.
    Beginning,
    /// What came after a place, in a numbering or, if none is named, in the present one.
    After(Option<Epoch>, u64),
}

/// What follows a subscription at once.
#[derive(Debug)]
pub(super) struct Replay<'a> {
    /// What is missing before the events.
    pub(super) gap: Option<Gap<'a>>,
    pub(super) events: Vec<Arc<Event>>,
    /// The number that they, and whatever comes later, come after.
    pub(super) after: u64,
}

#[derive(Debug)]
pub(super) struct Channel {
    epoch: Epoch,
    /// The number of the newest event; 0 before the first.
    last: u64,
    kept: VecDeque<Arc<Event>>,
    kept_bytes: usize,
    pub(super) subscribers: Vec<Arc<Subscriber>>,
    /// When something was published here last, by the count of all events.
    pub(super) used: u64,
}

impl Channel {
    pub(super) fn new(epoch: Epoch) -> Channel {
        Channel { epoch, last: 0, kept: VecDeque::new(), kept_bytes: 0, subscribers: Vec::new(), used: 0 }
    }

    pub(super) fn newest(&self) -> Place {
        Place { epoch: self.epoch, seq: self.last }
    }

    /// The place of an event that is published now.
    pub(super) fn next(&mut self) -> Place {
        self.last += 1;
        self.newest()
    }

    /// Keeps an event, and as many of those before it as fit.
    pub(super) fn keep(&mut self, event: Arc<Event>, settings: &config::Events) {
        self.kept_bytes += event.line.line().len();
        self.kept.push_back(event);
        while self.kept.len() > settings.kept || self.kept_bytes > settings.kept_bytes {
            let Some(oldest) = self.kept.pop_front() else { break };
            self.kept_bytes -= oldest.line.line().len();
        }
    }

    /// What somebody who hears `hears` gets who wants what came after a place, or so many of these, the newest.
    pub(super) fn replay<'a>(
        &self,
        site: &'a Site,
        from: From,
        most: Option<usize>,
        hears: impl Fn(&Event) -> bool,
    ) -> Replay<'a> {
        let gap = |reason, from, to| Gap {
            reason,
            realm: site.realm.as_str(),
            missed: None,
            from,
            to,
            epoch: self.epoch,
        };
        let forgotten = self.last - self.kept.len() as u64;
        let (after, gap) = match from {
            From::Now => (self.last, None),
            From::Beginning => (forgotten, None),
            // In either case nobody knows what was in between.
            From::After(epoch, _) if epoch.is_some_and(|epoch| epoch != self.epoch) => {
                (forgotten, Some(gap(GapReason::Restarted, None, None)))
            }
            From::After(_, seq) if seq > self.last => (forgotten, Some(gap(GapReason::Ahead, None, None))),
            From::After(_, seq) if seq < forgotten => {
                (forgotten, Some(gap(GapReason::Forgotten, Some(seq + 1), Some(forgotten))))
            }
            From::After(_, seq) => (seq, None),
        };
        let heard = |event: &&Arc<Event>| event.seq > after && hears(event);
        let mut events: Vec<_> = self.kept.iter().filter(heard).cloned().collect();
        let left_out = events.len().saturating_sub(most.unwrap_or(usize::MAX));
        let after = events.drain(..left_out).next_back().map_or(after, |event| event.seq);
        Replay { gap, events, after }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::events::tests::{event, site};

    fn kept(count: usize, kept: usize, kept_bytes: usize) -> (Channel, Vec<u64>) {
        let settings = config::Events { kept, kept_bytes, ..config::Events::default() };
        let mut channel = Channel::new(Epoch(7));
        for _ in 0..count {
            let place = channel.next();
            channel.keep(event(place, "a"), &settings);
        }
        let seqs = channel
            .replay(&site(), From::Beginning, None, |_| true)
            .events
            .iter()
            .map(|event| event.seq)
            .collect();
        (channel, seqs)
    }

    #[test]
    fn as_many_are_kept_as_the_limits_say_and_no_more() {
        let length = event(Place { epoch: Epoch(7), seq: 1 }, "a").line.line().len();
        for (count, most, bytes, expected) in [
            (3, 3, usize::MAX, vec![1, 2, 3]),
            (4, 3, usize::MAX, vec![2, 3, 4]),
            (4, 9, 3 * length, vec![2, 3, 4]),
            (4, 9, 3 * length - 1, vec![3, 4]),
            (4, 9, length - 1, vec![]),
            (4, 0, usize::MAX, vec![]),
        ] {
            let (channel, seqs) = kept(count, most, bytes);
            assert_eq!(seqs, expected, "{count} {most} {bytes}");
            assert_eq!(channel.kept_bytes, expected.len() * length);
        }
    }

    #[test]
    fn where_nothing_is_kept_whoever_comes_back_is_told_so() {
        let (channel, _) = kept(4, 0, 0);
        let place = site();
        let replay = |from| channel.replay(&place, from, None, |_| true);
        let gap = replay(From::After(Some(Epoch(7)), 2)).gap.unwrap();
        assert_eq!((gap.reason, gap.from, gap.to), (GapReason::Forgotten, Some(3), Some(4)));
        assert!(replay(From::After(Some(Epoch(7)), 4)).gap.is_none());
        assert_eq!(replay(From::After(Some(Epoch(8)), 4)).gap.unwrap().reason, GapReason::Restarted);
        assert_eq!(replay(From::After(Some(Epoch(8)), 5)).gap.unwrap().reason, GapReason::Restarted);
        assert_eq!(replay(From::After(Some(Epoch(7)), 5)).gap.unwrap().reason, GapReason::Ahead);
        assert_eq!(replay(From::After(None, 5)).gap.unwrap().reason, GapReason::Ahead);
    }

    #[test]
    fn the_newest_of_what_is_asked_for_come_if_no_more_are_wanted() {
        let (channel, _) = kept(6, 4, usize::MAX);
        let place = site();
        // 3 to 6 are kept; the even ones are heard.
        for (from, most, after, seqs) in [
            (From::Beginning, None, 2, vec![4, 6]),
            (From::Beginning, Some(2), 2, vec![4, 6]),
            (From::Beginning, Some(1), 4, vec![6]),
            (From::Beginning, Some(0), 6, vec![]),
            (From::After(None, 4), Some(9), 4, vec![6]),
            (From::After(None, 3), Some(1), 4, vec![6]),
            (From::Now, Some(3), 6, vec![]),
        ] {
            let replay = channel.replay(&place, from, most, |event| event.seq % 2 == 0);
            let found: Vec<u64> = replay.events.iter().map(|event| event.seq).collect();
            assert_eq!((replay.after, found), (after, seqs), "{from:?} {most:?}");
        }
    }
}
