//! The log of refusals: each with who and why, and never more of them than a reader can take.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::handshake::server::Refusal;
use crate::kernel::peer::Peer;
use crate::kernel::process::Process;
use crate::session::SessionId;
use crate::wire::auth::Code;

/// Refusals of one user with one code that are logged in full within one window.
const BURST: u32 = 20;
/// Length of a window.
const WINDOW: Duration = Duration::from_secs(10);
/// Most users and codes that are counted apart.
const COUNTED_MAX: usize = 1024;

/// Counts refusals and lets some of them through to the log.
#[derive(Debug, Default)]
pub(super) struct RefusalLog {
    windows: Mutex<HashMap<(Option<u32>, Code), Window>>,
}

#[derive(Debug)]
struct Window {
    began: Instant,
    count: u32,
}

/// What to do with one refusal.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Log it, after saying how many were left out in the window before.
    Log { left_out: u32 },
    /// Only count it.
    Count,
}

impl RefusalLog {
    fn judge(&self, uid: Option<u32>, code: Code, now: Instant) -> Verdict {
        let mut windows = super::lock(&self.windows);
        if windows.len() >= COUNTED_MAX {
            windows.retain(|_, window| now.duration_since(window.began) < WINDOW);
        }
        let window = windows.entry((uid, code)).or_insert(Window { began: now, count: 0 });
        let mut left_out = 0;
        if now.duration_since(window.began) >= WINDOW {
            left_out = window.count.saturating_sub(BURST);
            *window = Window { began: now, count: 0 };
        }
        window.count = window.count.saturating_add(1);
        if window.count <= BURST { Verdict::Log { left_out } } else { Verdict::Count }
    }

    /// Notes a refusal.
    pub(super) fn refused(
        &self,
        peer: Option<&Peer>,
        uid: Option<u32>,
        refusal: &Refusal,
        session: Option<&SessionId>,
    ) {
        let Verdict::Log { left_out } = self.judge(uid, refusal.code, Instant::now()) else { return };
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
        let named = if name.is_empty() { String::new() } else { format!(" ({name})") };
        let session = session.map_or("", SessionId::as_str);
        let of_session = if session.is_empty() { String::new() } else { format!(", session {session}") };
        match peer {
            Some(Peer { uid, .. }) => tracing::warn!(
                authsock_event = "refused",
                authsock_code = code,
                authsock_session = session,
                authsock_peer_uid = uid,
                authsock_peer_pid = pid,
                authsock_peer_name = name,
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
    fn a_burst_is_logged_the_rest_is_counted_and_told_in_the_next_window() {
        let log = RefusalLog::default();
        let start = Instant::now();
        let judge = |after: Duration| log.judge(Some(1), Code::Denied, start + after);
        for _ in 0..BURST {
            assert_eq!(judge(Duration::ZERO), Verdict::Log { left_out: 0 });
        }
        for _ in 0..7 {
            assert_eq!(judge(Duration::from_secs(1)), Verdict::Count);
        }
        assert_eq!(log.judge(Some(2), Code::Denied, start), Verdict::Log { left_out: 0 }, "another user");
        assert_eq!(judge(WINDOW), Verdict::Log { left_out: 7 });
        assert_eq!(judge(WINDOW), Verdict::Log { left_out: 0 });
    }
}
