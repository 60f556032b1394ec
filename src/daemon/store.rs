//! The sessions' files: one record each, written before anybody hears of success, read when a daemon begins.
//!
//! A file is named by its session's id. When a session ends, its file gets the reason and the time as a suffix, which
//! needs no space: it can be listed for a while, and its token's holder is told why, whichever daemon runs. It goes
//! when the registry forgets the session; but while a leader's process lives one file tells of it, since the process
//! and all below it are still not the owner.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use zeroize::Zeroizing;

use super::journal::log_end;
use super::metrics::Metrics;
use crate::gate::lock;
use crate::kernel::dir::{Dir, Unusable, own_uid};
use crate::kernel::process::{Identity, Process};
use crate::kernel::{boot, is_exhausted};
use crate::place::SESSIONS_DIR;
use crate::session::past::Ended;
use crate::session::record::{self, NotARecord, RECORD_MAX, Record, TooLong, Unknown};
use crate::session::registry::Registry;
use crate::session::{EndReason, Millis, Session, SessionId};

/// What the name of a file ends with that was set aside because it is no record.
const DAMAGED: &str = ".damaged";

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
    kept: Mutex<Kept>,
}

/// What is there beside the records of living sessions.
#[derive(Debug, Default)]
struct Kept {
    /// Files of ended sessions.
    ended: HashMap<SessionId, File>,
    /// Of the leaders that live, how many of those are theirs.
    leaders: HashMap<Identity, Files>,
    /// What newer daemons wrote into records that are still there.
    unknown: HashMap<SessionId, Unknown>,
    /// Ends that could not be put on disk yet, each with whether the leader lived.
    owed: Vec<(Ended, bool)>,
}

#[derive(Debug)]
struct File {
    name: String,
    /// The leader, if it lives.
    leader: Option<Identity>,
}

/// Files of ended sessions of one living leader.
#[derive(Debug, Default)]
struct Files {
    count: usize,
    /// The one that was forgotten, but is the last that tells of the leader.
    last: Option<SessionId>,
}

impl Kept {
    /// Notes the file of an ended session, and gives the one that is not needed any more.
    fn add(&mut self, id: SessionId, name: String, leader: Option<Identity>) -> Option<String> {
        self.ended.insert(id, File { name, leader });
        let files = self.leaders.entry(leader?).or_default();
        files.count += 1;
        let last = files.last.take()?;
        files.count -= 1;
        self.ended.remove(&last).map(|file| file.name)
    }

    /// Gives the file of an ended session, to be removed; but for the last one that tells of a leader that lives.
    fn forget(&mut self, id: SessionId) -> Option<String> {
        if let Some(files) = self.ended.get(&id)?.leader.and_then(|leader| self.leaders.get_mut(&leader)) {
            if files.count == 1 {
                files.last = Some(id);
                return None;
            }
            files.count -= 1;
        }
        self.ended.remove(&id).map(|file| file.name)
    }

    /// Notes that a leader has ended, and gives the file that was there for it alone.
    fn leader_ended(&mut self, leader: &Identity) -> Option<String> {
        let last = self.leaders.remove(leader)?.last?;
        self.ended.remove(&last).map(|file| file.name)
    }
}

/// Why a session ended, and when.
type End = (EndReason, Millis);

/// A record that was read, and its leader's process if that lives.
struct Found {
    record: Record,
    ended: Option<End>,
    leader: Option<Rc<Process>>,
}

/// The leaders that were looked for, held once each however many sessions they lead: descriptors are few.
type Leaders = HashMap<Identity, Option<Rc<Process>>>;

impl Store {
    /// Opens the directory, or makes it. Whoever does so holds the lock on the state directory.
    pub(super) fn open(state: &Dir) -> Result<Store, Unusable> {
        let dir = Dir::open_or_create(&state.path().join(SESSIONS_DIR), own_uid())?;
        dir.sweep_unfinished()?;
        Ok(Store { dir, boot: boot::id(), kept: Mutex::default() })
    }

    /// Writes a session's record in the place of the one before.
    pub(super) fn save(&self, record: &Record) -> Result<(), NotKept> {
        let id = &record.session.id;
        let unknown = lock(&self.kept).unknown.get(id).cloned();
        let bytes = match unknown {
            None => record.to_bytes(self.boot.as_deref())?,
            Some(unknown) => Record { unknown, ..record.clone() }.to_bytes(self.boot.as_deref())?,
        };
        // What the next daemon would not read is not promised. That it reads this follows from the types that a session
        // is made of; to read it here would scatter what sessions have in memory, and slow down every look at one.
        debug_assert!(Record::from_bytes(&bytes).is_ok(), "a record that cannot be read back");
        Ok(self.dir.replace(id.as_str(), &bytes)?)
    }

    /// Removes the record of a living session that has never been.
    pub(super) fn take_back(&self, id: &SessionId) {
        self.remove(id.as_str());
    }

    /// Notes that a session ended, which needs no space. Whether its leader's process lives decides for how long its file
    /// stays at least.
    ///
    /// # Errors
    /// If that is not on disk: with the next daemon the session would live again. It is tried again with the next
    /// [`Store::catch_up`].
    pub(super) fn end(&self, ended: &Ended, leader_lives: bool) -> Result<(), Unusable> {
        self.try_to_end(ended, leader_lives).inspect_err(|error| {
            let id = ended.session.id;
            tracing::error!(
                authsock_event = "record_kept",
                authsock_session = id.as_str(),
                "the end of session {id} is not on disk, and it would live again with the next daemon: {error}"
            );
            lock(&self.kept).owed.push((ended.clone(), leader_lives));
        })
    }

    fn try_to_end(&self, ended: &Ended, leader_lives: bool) -> Result<(), Unusable> {
        let Ended { session, reason, at } = ended;
        let to = file_of_ended(&session.id, *reason, *at);
        match self.dir.rename(session.id.as_str(), &to) {
            Ok(()) => self.note_ended(session, to, leader_lives),
            // What somebody took away does not come back.
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Puts on disk what could not be before; says whether something is still owed.
    pub(super) fn catch_up(&self) -> bool {
        let mut owed = std::mem::take(&mut lock(&self.kept).owed);
        owed.retain(|(ended, leader_lives)| {
            let id = ended.session.id;
            let is_done = self.try_to_end(ended, *leader_lives).is_ok();
            if is_done {
                tracing::info!(
                    authsock_event = "record_caught_up",
                    authsock_session = id.as_str(),
                    "the end of session {id} is on disk now"
                );
            }
            !is_done
        });
        let is_owed = !owed.is_empty();
        lock(&self.kept).owed.append(&mut owed);
        is_owed
    }

    /// Removes the files of ended sessions that nobody remembers any more.
    pub(super) fn forget(&self, sessions: &[SessionId]) {
        for id in sessions {
            let name = {
                let mut kept = lock(&self.kept);
                kept.unknown.remove(id);
                kept.forget(*id)
            };
            name.iter().for_each(|name| self.remove(name));
        }
    }

    /// Notes that a leader's process has ended.
    pub(super) fn leader_ended(&self, leader: &Identity) {
        let name = lock(&self.kept).leader_ended(leader);
        name.iter().for_each(|name| self.remove(name));
    }

    fn note_ended(&self, session: &Session, name: String, leader_lives: bool) {
        let leader = session.leader.filter(|_| leader_lives);
        let surplus = lock(&self.kept).add(session.id, name, leader);
        surplus.iter().for_each(|name| self.remove(name));
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
    pub(super) fn restore(&self, registry: &mut Registry, metrics: &Metrics, now: Millis) -> Vec<Process> {
        let mut restoring = Restoring { store: self, registry, metrics, now, leaders: Vec::new() };
        let mut below: HashMap<SessionId, Vec<Found>> = HashMap::new();
        let (all, salvaged) = self.read_all();
        for process in salvaged {
            if restoring.registry.restore_leader(&process.identity(), own_uid()) {
                restoring.leaders.push(process);
            }
        }
        for found in all {
            match (&found.ended, &found.record.session.parent) {
                _ if found.record.session.stands_for_somebody() => restoring.grace(&found.record),
                (Some((reason, at)), _) => restoring.ended(&found.record, *reason, *at, found.leader),
                (None, Some(parent)) => below.entry(*parent).or_default().push(found),
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
        self.forget(&restoring.registry.take_forgotten());
        if count > 0 {
            tracing::info!(authsock_event = "sessions_restored", "{count} sessions of before live on");
        }
        // Nobody else holds them any more: what was read has been dealt with.
        restoring.leaders.into_iter().filter_map(Rc::into_inner).collect()
    }

    /// Reads whatever there is. What is no record is set aside, and said; of the session's leader, if that can still be
    /// told and it runs, a handle is returned.
    fn read_all(&self) -> (Vec<Found>, Vec<Rc<Process>>) {
        let mut names = self.dir.names().unwrap_or_else(|error| {
            tracing::error!(authsock_event = "records_unread", "the sessions of before are lost: {error}");
            Vec::new()
        });
        // By age, which is how ids sort: of what a leader ended the oldest goes first.
        names.sort();
        let mut found = Vec::with_capacity(names.len());
        let mut leaders = Leaders::new();
        let mut salvaged = Vec::new();
        for name in names {
            let shown = || self.dir.path().join(&name);
            if name.ends_with(DAMAGED) {
                salvaged.extend(self.salvage(&name, &mut leaders));
                continue;
            }
            let Some((name, id, ended)) = parse_name(&name) else {
                tracing::warn!(
                    authsock_event = "record_ignored",
                    "{} is no session's record and is ignored; remove it",
                    shown().display()
                );
                continue;
            };
            match self.read(name, &id, &mut leaders) {
                Ok((record, leader)) => {
                    if !record.unknown.is_empty() {
                        lock(&self.kept).unknown.insert(id, record.unknown.clone());
                    }
                    found.push(Found { record, ended, leader });
                }
                // An error of the file system names the path itself.
                Err(error @ NotRead::Unusable(_)) => {
                    tracing::warn!(authsock_event = "record_ignored", "a session is lost: {error}");
                }
                // Another version's is for a daemon of that version.
                Err(error @ NotRead::NotARecord(NotARecord::Version(_))) => {
                    salvaged.extend(self.salvage(name, &mut leaders));
                    tracing::warn!(
                        authsock_event = "record_ignored",
                        "{} {error}; it is left as it is, and its session does not live with this daemon",
                        shown().display()
                    );
                }
                Err(error) => {
                    salvaged.extend(self.salvage(name, &mut leaders));
                    self.set_aside(name, &error);
                }
            }
        }
        (found, salvaged)
    }

    /// The leader of a session of which no more can be read, if it runs.
    fn salvage(&self, name: &str, leaders: &mut Leaders) -> Option<Rc<Process>> {
        let bytes = Zeroizing::new(self.dir.read_private(name, own_uid(), RECORD_MAX).ok()?);
        let (boot, leader) = record::leader_of(&bytes)?;
        if self.boot != Some(boot) { None } else { hold(leader, leaders, name) }
    }

    /// Keeps what is no record for whoever wants to know what became of it, out of the way of the next daemon.
    fn set_aside(&self, name: &str, error: &NotRead) {
        let (from, aside) = (self.dir.path().join(name), format!("{name}{DAMAGED}"));
        let done = match self.dir.rename(name, &aside) {
            Ok(()) => format!("it is kept as {aside}"),
            Err(error) => format!("it cannot be set aside ({error})"),
        };
        tracing::warn!(
            authsock_event = "record_damaged",
            "{} {error}; that session is lost, and no other; {done}",
            from.display()
        );
    }

    fn read(
        &self,
        name: &str,
        id: &SessionId,
        leaders: &mut Leaders,
    ) -> Result<(Record, Option<Rc<Process>>), NotRead> {
        let bytes = Zeroizing::new(self.dir.read_private(name, own_uid(), RECORD_MAX)?);
        let (record, boot) = Record::from_bytes(&bytes)?;
        if record.session.id != *id {
            return Err(NotRead::Misnamed);
        }
        // Of another boot, pids and inodes name other processes.
        let is_of_this_boot = boot.is_some() && boot == self.boot;
        let Some(leader) = record.session.leader.filter(|_| is_of_this_boot) else {
            return Ok((record, None));
        };
        Ok((record, hold(leader, leaders, id.as_str())))
    }
}

/// Holds a leader, if it runs, that `whose` record tells of.
fn hold(leader: Identity, leaders: &mut Leaders, whose: &str) -> Option<Rc<Process>> {
    if let Some(held) = leaders.get(&leader) {
        return held.clone();
    }
    let held = match leader.reopen() {
        Ok(leader) => Some(Rc::new(leader)),
        Err(error) if is_exhausted(&error) => {
            tracing::error!(
                authsock_event = "unwatched",
                "the leader of session {whose} cannot be held: {error}"
            );
            None
        }
        Err(_) => None,
    };
    leaders.insert(leader, held.clone());
    held
}

/// Sessions on their way from the records into the registry.
struct Restoring<'a> {
    store: &'a Store,
    registry: &'a mut Registry,
    metrics: &'a Metrics,
    now: Millis,
    leaders: Vec<Rc<Process>>,
}

impl Restoring<'_> {
    /// One that lived when the daemon before ended; says whether it still does.
    fn living(&mut self, record: &Record, leader: Option<Rc<Process>>, ends: Option<EndReason>) -> bool {
        let session = &record.session;
        let reason = match (leader.is_some(), ends) {
            (false, _) => EndReason::LeaderGoneWhileStopped,
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
        log_end(session, reason, None);
        self.metrics.session_ended(reason);
        let ended = Ended { session: Arc::new(session.clone()), reason, at: self.now };
        // It is told and tried again.
        let _ = self.store.end(&ended, leader.is_some());
        self.remember(record, reason, self.now, leader);
        false
    }

    /// One that had ended.
    fn ended(&mut self, record: &Record, reason: EndReason, at: Millis, leader: Option<Rc<Process>>) {
        let name = file_of_ended(&record.session.id, reason, at);
        self.store.note_ended(&record.session, name, leader.is_some());
        self.remember(record, reason, at, leader);
    }

    fn remember(&mut self, record: &Record, reason: EndReason, at: Millis, leader: Option<Rc<Process>>) {
        let is_new_leader = self.registry.restore_ended(record, reason, at, leader.is_some(), self.now);
        self.leaders.extend(leader.filter(|_| is_new_leader));
    }

    /// The token of the owner or a user before the present one, for as long as anybody asks for it.
    fn grace(&mut self, record: &Record) {
        let graces = record.tokens.iter().filter_map(|(_, until)| *until);
        if graces
            .max()
            .is_some_and(|until| until.saturating_add(self.registry.limits().ended_kept) > self.now)
        {
            self.registry.restore_grace(record, self.now);
        } else {
            self.store.take_back(&record.session.id);
        }
    }
}

fn file_of_ended(id: &SessionId, reason: EndReason, at: Millis) -> String {
    format!("{id}.{}.{at}", reason.as_str())
}

/// What a file's name says: the session's id, and why and when it ended if it did.
fn parse_name(name: &str) -> Option<(&str, SessionId, Option<End>)> {
    let Some((id, end)) = name.split_once('.') else { return Some((name, name.parse().ok()?, None)) };
    // Who stands for somebody does not end.
    let id = id.parse().ok().filter(|id: &SessionId| !id.stands_for_somebody())?;
    let (reason, at) = end.split_once('.')?;
    let (reason, at) = (EndReason::of_word(reason)?, at.parse().ok()?);
    (name == file_of_ended(&id, reason, at)).then_some((name, id, Some((reason, at))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::process::Pid;

    #[test]
    fn the_file_of_an_ended_session_stays_until_it_is_forgotten_and_the_last_of_a_leader_as_long_as_that_lives()
     {
        let leader = |pid: u32| Identity { pid: Pid(pid), pidfs: Some(u64::from(pid)), start: None };
        let id = |number: u64| SessionId::generate(number).unwrap();
        let (a, b, c, d) = (id(1), id(2), id(3), id(4));
        let mut kept = Kept::default();
        assert_eq!(kept.add(a, "a".into(), Some(leader(1))), None);
        assert_eq!(kept.add(b, "b".into(), Some(leader(1))), None);
        assert_eq!(kept.add(c, "c".into(), Some(leader(2))), None);
        assert_eq!(kept.add(d, "d".into(), None), None, "its leader has ended");
        assert_eq!(kept.forget(d).as_deref(), Some("d"));
        assert_eq!(kept.forget(d), None);
        assert_eq!(kept.forget(a).as_deref(), Some("a"));
        assert_eq!(kept.forget(b), None, "the last that tells of this leader");
        assert_eq!(kept.forget(b), None);
        assert_eq!(kept.leader_ended(&leader(2)), None, "not forgotten yet");
        assert_eq!(kept.forget(c).as_deref(), Some("c"), "and then like any other");
        // Another file tells of the leader from now on.
        let e = id(5);
        assert_eq!(kept.add(e, "e".into(), Some(leader(1))).as_deref(), Some("b"));
        assert_eq!(kept.forget(e), None);
        assert_eq!(kept.leader_ended(&leader(1)).as_deref(), Some("e"));
        assert!(kept.ended.is_empty() && kept.leaders.is_empty());
    }

    #[test]
    fn a_file_s_name_says_which_session_it_was_and_when_and_why_it_ended() {
        let id = SessionId::generate(5).unwrap();
        let name = file_of_ended(&id, EndReason::LeaderGoneWhileStopped, 77);
        assert_eq!(name, format!("{id}.leader_gone_while_stopped.77"));
        assert_eq!(
            parse_name(&name),
            Some((name.as_str(), id, Some((EndReason::LeaderGoneWhileStopped, 77))))
        );
        assert_eq!(parse_name(id.as_str()), Some((id.as_str(), id, None)));
        for bad in ["revoked", "revoked.", "revoked.x", "revoked.+7", "revoked.07", "over.7", "revoked.7.7"] {
            assert_eq!(parse_name(&format!("{id}.{bad}")), None, "{bad}");
        }
        for bad in ["", "owner.revoked.7", "user-7.revoked.7", "../x"] {
            assert_eq!(parse_name(bad), None, "{bad}");
        }
    }
}
