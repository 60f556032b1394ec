//! How many sessions fit, how deep and how wide they may grow, and how long what has ended is remembered.

use super::Millis;

/// How many sessions fit, and how long what has ended is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sessions in all; as many that ended are remembered.
    pub sessions: usize,
    /// Sessions of one user; as many that ended are remembered.
    pub sessions_per_uid: usize,
    /// Sessions within each other, those that stand for the owner or a user not counted.
    pub session_depth: usize,
    /// Sessions below one, at any depth; the owner and users have no such limit.
    pub session_descendants: usize,
    /// How long an ended session is remembered, in milliseconds: so long it can be listed, and its token is
    /// told `revoked` or `expired` instead of `denied`.
    pub ended_kept: Millis,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            sessions: 4096,
            sessions_per_uid: 1024,
            session_depth: 16,
            session_descendants: 256,
            ended_kept: 3_600_000,
        }
    }
}
