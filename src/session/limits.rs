//! How many sessions fit, how deep and how wide they may grow, and how long what has ended is remembered.

use super::Millis;
use crate::config::Config;

/// The longest time that a session may be given, in seconds: a leap year.
pub const TTL_MAX: u64 = 366 * 86_400;

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

impl From<&Config> for Limits {
    fn from(config: &Config) -> Limits {
        Limits {
            sessions: config.sessions,
            sessions_per_uid: config.sessions_per_uid,
            session_depth: config.session_depth,
            session_descendants: config.session_descendants,
            ended_kept: u64::try_from(config.ended_kept.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl Default for Limits {
    /// Those of a configuration that says nothing.
    fn default() -> Limits {
        Limits::from(&Config::default())
    }
}
