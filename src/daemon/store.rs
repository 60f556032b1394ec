//! The sessions' files: one record each, written before anybody hears of success, read when a daemon begins.
//!
//! A file is named by its session's id. When a session ends before its leader's process does, its file
//! gets the reason as a suffix, which needs no space: the process and all below it are still not the
//! owner, and its token's holder is still told why. When the process ends, its files go.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

use zeroize::Zeroizing;

use super::journal::log_end;
use crate::gate::lock;
use crate::kernel::dir::{Dir, Unusable, own_uid};
use crate::kernel::process::{Identity, Process};
use crate::kernel::{boot, is_exhausted};
use crate::place::SESSIONS_DIR;
use crate::session::record::{NotARecord, RECORD_MAX, Record, TooLong};
use crate::session::registry::{ENDED_KEPT, Registry};
use crate::session::{EndReason, Millis, Session, SessionId};

/// Most files of ended sessions that are kept of one living leader. The last is what counts for the
/// owner's token; the others are for tokens that are told `revoked` rather than `denied`. A user of whom
/// there are more than `limits.sessions_per_uid` in all has the last only.
const ENDED_PER_LEADER: usize = 16;

/// Why a record cannot be kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotKept {
    /// The file system does not take it.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// It would not be read back.
    #[error(transparent)]
    TooLong(#[from] TooLong),
}

/// Why a file gives no session.
#[derive(Debug, thiserror::Error)]
enum NotRead {
    #[error(transparent)]
    Unusable(#[from] Unusable),
    #[error("{0}")]
    NotARecord(#[from] NotARecord),
    #[error("is the record of another session")]
    Misnamed,
}

/// The directory of the records.
#[derive(Debug)]
pub(super) struct Store {
    dir: Dir,
    boot: Option<String>,
    ended: Mutex<Ended>,
}

/// Files of ended sessions whose leaders live.
#[derive(Debug, Default)]
struct Ended {
    /// By their leaders, each with its session's user, the oldest first. Root leads sessions of several.
    of: HashMap<Identity, VecDeque<(u32, String)>>,
    /// How many each user has.
    per_uid: HashMap<u32, usize>,
}

impl Ended {
    /// Adds one, and gives those that are too many then.
    fn add(&mut self, leader: Identity, uid: u32, name: String, per_uid: usize) -> Vec<String> {
        let in_all = self.per_uid.entry(uid).or_default();
        *in_all += 1;
        let most = if *in_all > per_uid { 1 } else { ENDED_PER_LEADER };
        let names = self.of.entry(leader).or_default();
        names.push_back((uid, name));
        let surplus: Vec<_> = names.drain(..names.len().saturating_sub(most)).collect();
        self.uncount(surplus)
    }

    /// Takes away all of a leader.
    fn take(&mut self, leader: &Identity) -> Vec<String> {
        let names = self.of.remove(leader).unwrap_or_default();
        self.uncount(names)
    }

    fn uncount(&mut self, names: impl IntoIterator<Item = (u32, String)>) -> Vec<String> {
        let uncount = |(uid, name)| {
            if let Entry::Occupied(mut in_all) = self.per_uid.entry(uid) {
                *in_all.get_mut() = in_all.get().saturating_sub(1);
                if *in_all.get() == 0 {
                    in_all.remove();
                }
            }
            name
        };
        names.into_iter().map(uncount).collect()
    }
}

/// A record that was read, and its leader's process if that lives.
struct Found {
    record: Record,
    ended: Option<EndReason>,
    leader: Option<Process>,
}

impl Store {
    /// Opens the directory, or makes it. Whoever does so holds the lock on the state directory.
    pub(super) fn open(state: &Dir) -> Result<Store, Unusable> {
        let dir = Dir::open_or_create(&state.path().join(SESSIONS_DIR), own_uid())?;
        dir.sweep_unfinished()?;
        Ok(Store { dir, boot: boot::id(), ended: Mutex::default() })
    }

    /// Writes a session's record in the place of the one before.
    pub(super) fn save(&self, record: &Record) -> Result<(), NotKept> {
        let bytes = record.to_bytes(self.boot.as_deref())?;
        Ok(self.dir.replace(record.session.id.as_str(), &bytes)?)
    }

    /// Removes a session's record.
    pub(super) fn forget(&self, id: &SessionId) {
        self.remove(id.as_str());
    }

    /// Notes that a session ended whose leader's process lives.
    /// `per_uid` is how many sessions one user may have.
    pub(super) fn end(&self, session: &Session, reason: &EndReason, per_uid: usize) {
        let (from, to) = (session.id.as_str(), file_of_ended(&session.id, reason));
        if let Err(error) = self.dir.rename(from, &to) {
            // Its token must not come to life again with the next daemon.
            tracing::error!(authsock_event = "record_lost", "an ended session is not kept as such: {error}");
            self.remove(from);
            return;
        }
        self.note_ended(session, to, per_uid);
    }

    /// Notes that a leader's process has ended: nothing is kept of what it led.
    pub(super) fn leader_ended(&self, leader: &Identity) {
        let names = lock(&self.ended).take(leader);
        names.iter().for_each(|name| self.remove(name));
    }

    fn note_ended(&self, session: &Session, name: String, per_uid: usize) {
        let Some(leader) = session.leader else { return };
        let surplus = lock(&self.ended).add(leader, session.uid, name, per_uid);
        surplus.iter().for_each(|oldest| self.remove(oldest));
    }

    fn remove(&self, name: &str) {
        if let Err(error) = self.dir.remove(name) {
            let path = self.dir.path().join(name);
            tracing::error!(
                authsock_event = "record_kept",
                "{} cannot be removed, and the session in it could come back: {error}",
                path.display()
            );
        }
    }

    /// Puts the sessions of the daemon before into the registry, as far as they still live. Returns the
    /// leaders' processes, each once: they must be watched.
    pub(super) fn restore(&self, registry: &mut Registry, now: Millis) -> Vec<Process> {
        let mut restoring = Restoring { store: self, registry, now, leaders: Vec::new() };
        let mut below: HashMap<SessionId, Vec<Found>> = HashMap::new();
        for found in self.read_all() {
            match (&found.ended, &found.record.session.parent) {
                _ if found.record.session.stands_for_somebody() => restoring.grace(&found.record),
                (Some(reason), _) => restoring.ended(&found.record, &reason.clone(), found.leader),
                (None, Some(parent)) => below.entry(parent.clone()).or_default().push(found),
                (None, None) => {}
            }
        }
        // Parents before their children; what ends takes along what came from it.
        let roots: Vec<SessionId> =
            below.keys().filter(|id| restoring.registry.get(id).is_some()).cloned().collect();
        let roots = roots.iter().filter_map(|id| below.remove(id)).flatten();
        let mut queue: VecDeque<(Found, Option<EndReason>)> = roots.map(|found| (found, None)).collect();
        let mut count = 0usize;
        while let Some((Found { record, leader, .. }, ends)) = queue.pop_front() {
            let lives = restoring.living(&record, leader, ends);
            count += usize::from(lives);
            let children = below.remove(&record.session.id).into_iter().flatten();
            queue.extend(children.map(|child| (child, (!lives).then_some(EndReason::ParentEnded))));
        }
        for Found { record, leader, .. } in below.into_values().flatten() {
            restoring.living(&record, leader, Some(EndReason::ParentEnded));
        }
        if count > 0 {
            tracing::info!(authsock_event = "sessions_restored", "{count} sessions of before live on");
        }
        restoring.leaders
    }

    /// Reads whatever there is. What is no record is left where it is, and said.
    fn read_all(&self) -> Vec<Found> {
        let mut names = self.dir.names().unwrap_or_else(|error| {
            tracing::error!(authsock_event = "records_unread", "the sessions of before are lost: {error}");
            Vec::new()
        });
        // By age, which is how ids sort: of what a leader ended the oldest goes first.
        names.sort();
        let mut found = Vec::with_capacity(names.len());
        for name in names {
            let shown = self.dir.path().join(&name);
            let Some((name, id, ended)) = parse_name(&name) else {
                tracing::warn!(
                    authsock_event = "record_ignored",
                    "{} is no session's record and is ignored; remove it",
                    shown.display()
                );
                continue;
            };
            match self.read(name, &id) {
                Ok((record, leader)) => found.push(Found { record, ended, leader }),
                // An error of the file system names the path itself.
                Err(error @ NotRead::Unusable(_)) => {
                    tracing::warn!(authsock_event = "record_ignored", "a session is lost: {error}");
                }
                Err(error) => tracing::warn!(
                    authsock_event = "record_ignored",
                    "{} {error}; it is ignored, and the session is lost: remove it",
                    shown.display()
                ),
            }
        }
        found
    }

    fn read(&self, name: &str, id: &SessionId) -> Result<(Record, Option<Process>), NotRead> {
        let bytes = Zeroizing::new(self.dir.read_private(name, own_uid(), RECORD_MAX)?);
        let (record, boot) = Record::from_bytes(&bytes)?;
        if record.session.id != *id {
            return Err(NotRead::Misnamed);
        }
        // Of another boot, pids and inodes name other processes.
        let is_of_this_boot = boot.is_some() && boot == self.boot;
        let leader = match record.session.leader.filter(|_| is_of_this_boot).map(|leader| leader.reopen()) {
            Some(Ok(leader)) => Some(leader),
            Some(Err(error)) if is_exhausted(&error) => {
                tracing::error!(
                    authsock_event = "unwatched",
                    "the leader of session {id} cannot be held: {error}"
                );
                None
            }
            Some(Err(_)) | None => None,
        };
        Ok((record, leader))
    }
}

/// Sessions on their way from the records into the registry.
struct Restoring<'a> {
    store: &'a Store,
    registry: &'a mut Registry,
    now: Millis,
    leaders: Vec<Process>,
}

impl Restoring<'_> {
    /// One that lived when the daemon before ended; says whether it still does.
    fn living(&mut self, record: &Record, leader: Option<Process>, ends: Option<EndReason>) -> bool {
        let session = &record.session;
        let reason = match (leader.is_some(), ends) {
            (false, _) => EndReason::LeaderExited,
            (true, Some(reason)) => reason,
            (true, None) => match self.registry.restore(record, self.now) {
                Ok(is_new_leader) => {
                    self.leaders.extend(leader.filter(|_| is_new_leader));
                    return true;
                }
                Err(error) => {
                    tracing::warn!(
                        authsock_event = "session_not_restored",
                        authsock_session = session.id.as_str(),
                        "session {} ({}) cannot live on: {error}",
                        session.id,
                        session.name.in_brackets()
                    );
                    EndReason::Revoked
                }
            },
        };
        log_end(session, &reason);
        if leader.is_some() {
            self.store.end(session, &reason, self.registry.capacity().sessions_per_uid);
            self.remember(record, &reason, leader);
        } else {
            self.store.forget(&session.id);
        }
        false
    }

    /// One that had ended, but whose leader's process lived.
    fn ended(&mut self, record: &Record, reason: &EndReason, leader: Option<Process>) {
        let name = file_of_ended(&record.session.id, reason);
        if leader.is_some() {
            self.store.note_ended(&record.session, name, self.registry.capacity().sessions_per_uid);
            self.remember(record, reason, leader);
        } else {
            self.store.remove(&name);
        }
    }

    fn remember(&mut self, record: &Record, reason: &EndReason, leader: Option<Process>) {
        let is_new_leader = self.registry.restore_ended(record, reason, self.now);
        self.leaders.extend(leader.filter(|_| is_new_leader));
    }

    /// The token of the owner or a user before the present one, for as long as anybody asks for it.
    fn grace(&mut self, record: &Record) {
        let graces = record.tokens.iter().filter_map(|(_, until)| *until);
        if graces.max().is_some_and(|until| until.saturating_add(ENDED_KEPT) > self.now) {
            self.registry.restore_grace(record, self.now);
        } else {
            self.store.forget(&record.session.id);
        }
    }
}

fn file_of_ended(id: &SessionId, reason: &EndReason) -> String {
    format!("{id}.{}", reason.as_str())
}

/// What a file's name says: the session's id, and why it ended if it did.
fn parse_name(name: &str) -> Option<(&str, SessionId, Option<EndReason>)> {
    match name.split_once('.') {
        None => Some((name, name.parse().ok()?, None)),
        // Who stands for somebody does not end.
        Some((id, reason)) => {
            let id = id.parse().ok().filter(|id: &SessionId| !id.stands_for_somebody())?;
            Some((name, id, Some(EndReason::of_word(reason)?)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::process::Pid;

    #[test]
    fn a_user_s_ended_sessions_are_on_record_as_far_as_fits_and_the_last_of_each_leader_always() {
        let leader = |pid: u32| Identity { pid: Pid(pid), pidfs: Some(u64::from(pid)), start: None };
        let mut ended = Ended::default();
        const PER_UID: usize = 20;
        let mut add = |pid: u32, uid: u32, name: &str| ended.add(leader(pid), uid, name.into(), PER_UID);
        for number in 0..ENDED_PER_LEADER {
            assert!(add(1, 7, &number.to_string()).is_empty());
        }
        assert_eq!(add(1, 7, "16"), ["0"], "the oldest of this leader");
        for name in ["a", "b", "c", "d"] {
            assert!(add(2, 7, name).is_empty());
        }
        assert_eq!(add(2, 7, "e"), ["a", "b", "c", "d"], "more than fits: the last alone");
        assert!(add(3, 8, "x").is_empty(), "another user has its own");
        // What is there counts on, and each leader keeps one.
        for pid in 10..13 {
            assert!(add(pid, 7, "only").is_empty(), "{pid}");
        }
        assert!(add(13, 7, "only").is_empty());
        assert_eq!(add(13, 7, "next"), ["only"]);
        assert_eq!(ended.per_uid[&7], ENDED_PER_LEADER + 1 + 4);
        assert_eq!(ended.take(&leader(1)).len(), ENDED_PER_LEADER);
        assert_eq!(ended.take(&leader(1)).len(), 0);
        assert_eq!(ended.per_uid[&7], 5);
        for pid in [2, 3, 10, 11, 12, 13] {
            assert_eq!(
                ended.take(&leader(pid)),
                if pid == 2 {
                    ["e"]
                } else if pid == 3 {
                    ["x"]
                } else if pid == 13 {
                    ["next"]
                } else {
                    ["only"]
                }
            );
        }
        assert!(ended.per_uid.is_empty() && ended.of.is_empty());
        // Root may lead sessions of several users.
        let mut add = |uid: u32, name: &str| ended.add(leader(1), uid, name.into(), 1);
        assert!(add(7, "a").is_empty() && add(8, "b").is_empty());
        assert_eq!(add(8, "c"), ["a", "b"]);
        assert_eq!(ended.take(&leader(1)), ["c"]);
        assert!(ended.per_uid.is_empty() && ended.of.is_empty());
    }
}
