//! The transcript that both ends sign: every field framed by its length, so that no bytes can move from one to the next.

use crate::secret::token::TokenId;
use crate::wire::auth::{Hex32, PeerView, VERSION};

/// Which end signs; a proof of one is none of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The daemon.
    Server,
    /// The client.
    Client,
}

/// What was said in a handshake, before it is signed.
#[derive(Debug, Clone, Copy)]
pub struct Transcript<'a> {
    /// Which token is proven.
    pub token_id: TokenId,
    /// The client's nonce.
    pub client_nonce: Hex32,
    /// The daemon's nonce.
    pub server_nonce: Hex32,
    /// What the client wants to talk to.
    pub service: &'a str,
    /// Whom the daemon's kernel sees at the other end.
    pub peer: &'a PeerView,
}

impl Transcript<'_> {
    /// The bytes to sign: each field's text as on the wire, behind its length as four bytes, most
    /// significant first. An absent number is an empty field.
    pub fn bytes(&self, role: Role) -> Vec<u8> {
        let number = |number: Option<u64>| number.map(|number| number.to_string()).unwrap_or_default();
        let fields = [
            "authsock",
            &VERSION.to_string(),
            match role {
                Role::Server => "server",
                Role::Client => "client",
            },
            &self.token_id.to_string(),
            &self.client_nonce.to_string(),
            &self.server_nonce.to_string(),
            self.service,
            &self.peer.uid.to_string(),
            &self.peer.pid.to_string(),
            &number(self.peer.pidfs),
            &number(self.peer.start),
            &number(self.peer.pidns),
        ];
        let mut bytes = Vec::with_capacity(320);
        for field in fields {
            // Every field is part of a line of at most 4 KiB.
            #[allow(clippy::cast_possible_truncation)]
            bytes.extend_from_slice(&(field.len() as u32).to_be_bytes());
            bytes.extend_from_slice(field.as_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::token::Token;

    #[test]
    fn no_two_different_exchanges_have_the_same_bytes() {
        let token_id = Token::generate().unwrap().id();
        let peer = |uid, pid, pidfs, start| PeerView { uid, pid, pidfs, start, pidns: None };
        let mut seen = std::collections::HashSet::new();
        let peers = [
            peer(1, 23, None, None),
            peer(12, 3, None, None),
            peer(1, 2, Some(3), None),
            peer(1, 2, None, Some(3)),
            peer(1, 2, Some(33), None),
            peer(1, 23, Some(3), None),
            peer(1, 2, Some(3), Some(3)),
        ];
        let mut count = 0;
        for peer in &peers {
            for service in ["a", "ab", "control"] {
                for (client, server) in [(1, 2), (2, 1), (1, 1)] {
                    for role in [Role::Server, Role::Client] {
                        let transcript = Transcript {
                            token_id,
                            client_nonce: Hex32([client; 32]),
                            server_nonce: Hex32([server; 32]),
                            service,
                            peer,
                        };
                        seen.insert(transcript.bytes(role));
                        count += 1;
                    }
                }
            }
        }
        assert_eq!(seen.len(), count);
    }
}
