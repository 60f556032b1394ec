//! The log of refusals: each with who and why, and never more of them than a reader can take.

use std::time::Instant;

use super::burst::{Bursts, Verdict};
use crate::handshake::server::Refusal;
use crate::kernel::peer::Peer;
use crate::kernel::process::Process;
use crate::session::SessionId;
use crate::wire::auth::Code;
use crate::wire::text::{in_brackets, printable};

/// Refusals of one user with one code that are logged in full within one window of ten seconds.
const BURST: u32 = 20;
/// Refusals of all: one person may have thousands of user ids (subuid(5)), and journald itself leaves out what is too
/// much of a service, whosever it is (journald.conf(5), RateLimitBurst=).
const BURST_OF_ALL: u32 = 1000;

/// Counts refusals and lets some of them through to the log.
#[derive(Debug)]
pub(super) struct RefusalLog {
    of_one: Bursts<(Option<u32>, Code)>,
    of_all: Bursts<()>,
}

impl Default for RefusalLog {
    fn default() -> RefusalLog {
        RefusalLog { of_one: Bursts::of(BURST), of_all: Bursts::of(BURST_OF_ALL) }
    }
}

impl RefusalLog {
    /// What is to be logged of one: how many were left out before, of this user and in all.
    fn judge(&self, uid: Option<u32>, code: Code, now: Instant) -> Option<(u32, u32)> {
        let Verdict::Log { left_out: of_one } = self.of_one.judge((uid, code), now) else { return None };
        let Verdict::Log { left_out: of_all } = self.of_all.judge((), now) else { return None };
        Some((of_one, of_all))
    }

    /// Notes a refusal.
    pub(super) fn refused(
        &self,
        peer: Option<&Peer>,
        uid: Option<u32>,
        refusal: &Refusal,
        session: Option<&SessionId>,
    ) {
        let Some((left_out, of_all)) = self.judge(uid, refusal.code, Instant::now()) else { return };
        if of_all > 0 {
            tracing::warn!(
                authsock_event = "refusals_left_out",
                "{of_all} more refusals of several users were not logged one by one"
            );
        }
        let code = refusal.code.as_str();
        if left_out > 0 {
            tracing::warn!(
                authsock_event = "refusals_left_out",
                authsock_code = code,
                "{left_out} more refusals with {code} were not logged one by one"
            );
        }
        let Refusal { reason, .. } = refusal;
        let pid = peer.map_or(0, |peer| peer.pid.0);
        let name = peer.and_then(Peer::held).and_then(Process::name).unwrap_or_default();
        // Whatever a process calls itself.
        let named = if name.is_empty() { String::new() } else { format!(" ({})", in_brackets(&name)) };
        let session = session.map_or("", SessionId::as_str);
        let of_session = if session.is_empty() { String::new() } else { format!(", session {session}") };
        match peer {
            Some(Peer { uid, .. }) => tracing::warn!(
                authsock_event = "refused",
                authsock_code = code,
                authsock_session = session,
                authsock_peer_uid = uid,
                authsock_peer_pid = pid,
                authsock_peer_name = printable(&name),
                authsock_reason = reason.as_str(),
                "refused process {pid} of uid {uid}{named}{of_session}: {code}: {reason}"
            ),
            None => tracing::warn!(
                authsock_event = "refused",
                authsock_code = code,
                authsock_reason = reason.as_str(),
                "refused a connection without credentials: {code}: {reason}"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_users_do_not_fill_the_log_either() {
        let log = RefusalLog::default();
        let now = Instant::now();
        let logged = (0..1000u32)
            .flat_map(|uid| (0..BURST + 5).map(move |_| uid))
            .filter(|uid| log.judge(Some(*uid), Code::PeerDenied, now).is_some())
            .count();
        assert_eq!(logged, BURST_OF_ALL as usize);
        let later = now + std::time::Duration::from_secs(10);
        let (of_one, of_all) = log.judge(Some(0), Code::PeerDenied, later).unwrap();
        assert_eq!(of_one, 5);
        assert_eq!(of_all, 1000 * BURST - BURST_OF_ALL);
    }
}
