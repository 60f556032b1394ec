//! The log of sessions: each one's beginning, changes, end and rotations, and never more of one user's than leaves room for the others'.

use std::time::Instant;

use crate::gate::burst::{Bursts, Verdict};
use crate::kernel::process::Pid;
use crate::session::{EndReason, Millis, Session, SessionId};

/// Beginnings, changes, ends and rotations of one user's sessions that are logged one by one within a window of ten seconds.
const BURST: u32 = 200;

/// Who had something done to a session, as the kernel and the registry know it.
#[derive(Debug, Clone, Copy)]
pub(super) struct By {
    /// The session of the request.
    pub(super) session: SessionId,
    /// Its process.
    pub(super) pid: Pid,
}

impl std::fmt::Display for By {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "by process {} in session {}", self.pid, self.session)
    }
}

/// Counts what happens to sessions, and lets what fits through to the log.
#[derive(Debug)]
pub(super) struct SessionLog(Bursts<u32>);

impl Default for SessionLog {
    fn default() -> SessionLog {
        SessionLog(Bursts::of(BURST))
    }
}

impl SessionLog {
    pub(super) fn began(&self, session: &Session) {
        if !self.has_room(session.uid) {
            return;
        }
        let leader = session.leader.map_or(0, |leader| leader.pid.0);
        tracing::info!(
            authsock_event = "session_started",
            authsock_session = session.id.as_str(),
            authsock_peer_uid = session.uid,
            authsock_peer_pid = leader,
            "session {} ({}) began, led by process {leader}",
            session.id,
            session.name.in_brackets(),
        );
    }

    pub(super) fn ended(&self, session: &Session, reason: EndReason, by: Option<By>) {
        if self.has_room(session.uid) {
            log_end(session, reason, by);
        }
    }

    pub(super) fn changed(&self, session: &Session, by: By) {
        if self.has_room(session.uid) {
            tracing::info!(
                authsock_event = "session_changed",
                authsock_session = session.id.as_str(),
                authsock_peer_uid = session.uid,
                authsock_by_session = by.session.as_str(),
                authsock_by_pid = by.pid.0,
                "session {} ({}) was changed, {by}",
                session.id,
                session.name.in_brackets()
            );
        }
    }

    pub(super) fn rotated(&self, session: &Session, grace: Millis, by: By) {
        if self.has_room(session.uid) {
            tracing::info!(
                authsock_event = "token_rotated",
                authsock_session = session.id.as_str(),
                authsock_by_session = by.session.as_str(),
                authsock_by_pid = by.pid.0,
                "session {} ({}) has a new token, {by}; the old one connects for {} s more",
                session.id,
                session.name.in_brackets(),
                grace / 1000
            );
        }
    }

    fn has_room(&self, uid: u32) -> bool {
        let Verdict::Log { left_out } = self.0.judge(uid, Instant::now()) else { return false };
        if left_out > 0 {
            tracing::warn!(
                authsock_event = "sessions_left_out",
                authsock_peer_uid = uid,
                "{left_out} more beginnings, changes, ends and rotations of sessions of uid {uid} were not logged one by one"
            );
        }
        true
    }
}

/// Tells of a session's end.
pub(super) fn log_end(session: &Session, reason: EndReason, by: Option<By>) {
    let whose = by.map(|by| format!(", {by}")).unwrap_or_default();
    tracing::info!(
        authsock_event = "session_ended",
        authsock_session = session.id.as_str(),
        authsock_peer_uid = session.uid,
        authsock_reason = reason.as_str(),
        authsock_by_session = by.as_ref().map(|by| by.session.as_str()),
        authsock_by_pid = by.map(|by| by.pid.0),
        "session {} ({}) ended: {}{whose}",
        session.id,
        session.name.in_brackets(),
        reason.as_str()
    );
}
