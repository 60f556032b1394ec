//! Who is told of what happens at the gate: each connection, how long it took to prove itself, and each refusal.

use std::time::Duration;

use crate::handshake::server::Way;
use crate::session::SessionId;
use crate::wire::auth::Code;

/// Somebody who counts. Nothing here may wait, or ask anything of the gate.
pub trait Observer: Send + Sync {
    /// A connection was accepted.
    fn accepted(&self);

    /// Somebody has proven itself: by a handshake that took so long, or with a request over HTTP.
    fn through(&self, way: Way, took: Option<Duration>);

    /// Somebody was refused. All of them are told, also those that the log leaves out: whoever passes them on sees to it
    /// that nobody can have that repeated without bound.
    fn refused(&self, refused: &Refused<'_>);
}

/// A refusal, as far as it is told to others than the log.
#[derive(Debug, Clone, Copy)]
pub struct Refused<'a> {
    /// The word that the peer hears.
    pub code: Code,
    /// The peer's user, if the kernel names one.
    pub uid: Option<u32>,
    /// Its process, if the kernel names one.
    pub pid: Option<u32>,
    /// Whose token it was, if that was proven.
    pub session: Option<&'a SessionId>,
}
