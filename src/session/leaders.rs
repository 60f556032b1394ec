//! Processes that lead sessions, or led one and still live: found by whichever mark a process has, with what they lead.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};

use super::SessionId;
use crate::kernel::process::Identity;

/// All of them. A session that ends before its leader sets nobody free: what runs below the leader is still
/// not the owner.
#[derive(Debug, Default)]
pub(super) struct Leaders {
    marks: HashMap<Mark, Leader>,
    /// How many each user has.
    per_uid: HashMap<u32, usize>,
    /// How many of them have no pid in our pid namespace: a way up may end below one unseen.
    unseen: usize,
}

#[derive(Debug)]
struct Leader {
    /// The user whose sessions it leads or led.
    uid: u32,
    /// The living sessions that it leads.
    leads: BTreeSet<SessionId>,
    /// The sessions around those of its that have ended: it counts with them.
    counts_with: BTreeSet<SessionId>,
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
    pub(super) fn add(&mut self, leader: &Identity, uid: u32) -> bool {
        let Some(Entry::Vacant(place)) = Mark::of(leader).map(|mark| self.marks.entry(mark)) else {
            return false;
        };
        place.insert(Leader { uid, leads: BTreeSet::new(), counts_with: BTreeSet::new() });
        *self.per_uid.entry(uid).or_default() += 1;
        self.unseen += usize::from(leader.pid.0 == 0);
        true
    }

    /// Notes that a session is led by it, or is no longer.
    pub(super) fn note(&mut self, leader: &Identity, session: SessionId, leads: bool) {
        let Some(leader) = Mark::of(leader).and_then(|mark| self.marks.get_mut(&mark)) else { return };
        if leads {
            leader.leads.insert(session);
        } else {
            leader.leads.remove(&session);
        }
    }

    /// The living sessions that it leads, by age, at most so many.
    pub(super) fn led_by(&self, leader: &Identity, at_most: usize) -> Vec<SessionId> {
        let leader = Mark::of(leader).and_then(|mark| self.marks.get(&mark));
        leader.into_iter().flat_map(|leader| leader.leads.iter().copied()).take(at_most).collect()
    }

    /// Has it count with a session; says whether it did not before.
    pub(super) fn charge(&mut self, leader: &Identity, session: SessionId) -> bool {
        let leader = Mark::of(leader).and_then(|mark| self.marks.get_mut(&mark));
        leader.is_some_and(|leader| leader.counts_with.insert(session))
    }

    /// Forgets it, and gives the sessions that it counted with.
    pub(super) fn remove(&mut self, leader: &Identity) -> BTreeSet<SessionId> {
        let removed = Mark::of(leader).and_then(|mark| self.marks.remove(&mark));
        let Some(Leader { uid, counts_with, .. }) = removed else { return BTreeSet::new() };
        self.unseen -= usize::from(leader.pid.0 == 0);
        if let Entry::Occupied(mut count) = self.per_uid.entry(uid) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        counts_with
    }

    pub(super) fn contains(&self, identity: &Identity) -> bool {
        Mark::of(identity).is_some_and(|mark| self.marks.contains_key(&mark))
    }

    pub(super) fn len(&self) -> usize {
        self.marks.len()
    }

    pub(super) fn of_uid(&self, uid: u32) -> usize {
        self.per_uid.get(&uid).copied().unwrap_or(0)
    }

    /// Whether there is one that has no pid here.
    pub(super) fn has_unseen(&self) -> bool {
        self.unseen > 0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }
}
