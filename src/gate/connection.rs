//! A connection that passed. Only the gate makes one, so whoever holds it may rely on it.

use std::io;

use tokio::net::UnixStream;

use super::line;
use super::seats::Seat;
use crate::handshake::server::Way;
use crate::kernel::peer::Peer;
use crate::session::Session;
use crate::session::registry::Admitted;

/// A stream whose other end is proven: by the kernel, and by a token.
///
/// The client has not been told yet: its result leaves together with the first answer if the
/// holder uses [`Authenticated::into_unannounced`], or at once with [`Authenticated::announce`].
#[derive(Debug)]
#[must_use = "dropping it closes the connection"]
pub struct Authenticated {
    parts: Parts,
    greeting: Vec<u8>,
}

/// What a connection is made of.
#[derive(Debug)]
pub struct Parts {
    /// The stream, from which `early` was read already.
    pub stream: UnixStream,
    /// Bytes that came behind the handshake.
    pub early: Vec<u8>,
    /// Who is at the other end.
    pub peer: Peer,
    /// What its token stands for.
    pub admitted: Admitted,
    /// How it was proven.
    pub way: Way,
    /// Its place; given back when dropped.
    pub seat: Seat,
}

impl Authenticated {
    /// Claims that all checks were made. Only [`super::Gate`] may.
    pub(super) fn assertion(parts: Parts, greeting: Vec<u8>) -> Authenticated {
        Authenticated { parts, greeting }
    }

    /// What the token stands for.
    pub fn session(&self) -> &Session {
        &self.parts.admitted.session
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.parts.peer
    }

    /// Tells the client that it is in, and hands out the stream.
    ///
    /// # Errors
    /// If the client has left.
    pub async fn announce(self) -> io::Result<Parts> {
        line::write(&self.parts.stream, &self.greeting).await?;
        Ok(self.parts)
    }

    /// Hands out the line that the holder must write before anything else, and the stream.
    pub fn into_unannounced(self) -> (Vec<u8>, Parts) {
        (self.greeting, self.parts)
    }
}
