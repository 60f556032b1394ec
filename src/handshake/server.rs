//! The daemon's half: from a client's lines to a token that is proven. Lookups, nonces and the kernel's facts are the caller's.
//!
//! The states, each consumed by the line it waits for:
//! `ExpectOpening` → (`Presented` | `Announced` → `ExpectProof`) → [`Proven`].

use super::proof::{Role, Transcript};
use crate::secret::token::{Token, TokenId};
use crate::secret::verifier::Verifier;
use crate::wire::auth::{
    self, Answer, CONTROL, Challenge, Code, Hex32, Misread, Opening, PeerView, ProofOpening,
};

/// A handshake that failed: a word for the peer, the reason for the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {reason}")]
pub struct Refusal {
    /// What the peer hears.
    pub code: Code,
    /// What the log says; never a secret.
    pub reason: String,
}

impl Refusal {
    /// A refusal with its reason.
    pub fn new(code: Code, reason: impl Into<String>) -> Refusal {
        Refusal { code, reason: reason.into() }
    }
}

impl From<Misread> for Refusal {
    fn from(misread: Misread) -> Refusal {
        let code = match misread {
            Misread::Malformed(_) => Code::Malformed,
            Misread::Version(_) => Code::Version,
        };
        Refusal::new(code, misread.to_string())
    }
}

/// How a token was proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It was shown. Whoever listened has it.
    Plain,
    /// Both ends proved that they know it.
    Proof,
    /// It was shown with a request over HTTP.
    Http,
}

impl Way {
    /// All ways, for documentation and tests.
    pub const ALL: [Way; 3] = [Way::Plain, Way::Proof, Way::Http];

    /// The word for answers and numbers.
    pub fn as_str(self) -> &'static str {
        match self {
            Way::Plain => "plain",
            Way::Proof => "proof",
            Way::Http => "http",
        }
    }
}

/// The claim that the other end holds a token. Only the states below make one.
#[derive(Debug)]
#[must_use]
pub struct Proven {
    token_id: TokenId,
    service: String,
    way: Way,
}

impl Proven {
    /// Whose token it is.
    pub fn token_id(&self) -> TokenId {
        self.token_id
    }

    /// What the client wants to talk to.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// How it was proven.
    pub fn way(&self) -> Way {
        self.way
    }
}

/// Waits for the client's first line.
#[derive(Debug, Default)]
#[must_use]
pub struct ExpectOpening;

/// What the first line was.
#[derive(Debug)]
#[must_use]
pub enum Opened {
    /// The token itself.
    Plain(Presented),
    /// The wish to prove one.
    Proof(Announced),
}

impl ExpectOpening {
    /// Reads the first line, without its newline.
    ///
    /// # Errors
    /// The refusal to answer.
    pub fn read(self, line: &[u8]) -> Result<Opened, Refusal> {
        Ok(match auth::read_opening(line)? {
            Opening::Plain(token) => Opened::Plain(Presented { token }),
            Opening::Proof(opening) => Opened::Proof(Announced { opening }),
        })
    }
}

/// A token was shown; waits for what the caller knows of it.
#[derive(Debug)]
#[must_use]
pub struct Presented {
    token: Token,
}

impl Presented {
    /// A token that was shown in another way than by a line of the handshake.
    pub fn shown(token: Token) -> Presented {
        Presented { token }
    }

    /// Which token to look up.
    pub fn token_id(&self) -> TokenId {
        self.token.id()
    }

    /// Judges it by what was found under its id.
    ///
    /// # Errors
    /// `denied`, whether the token is unknown or wrong.
    pub fn judge(self, found: Option<&Verifier>) -> Result<Proven, Refusal> {
        match found {
            Some(verifier) if verifier.is_of(&self.token) => {
                Ok(Proven { token_id: verifier.id(), service: CONTROL.to_owned(), way: Way::Plain })
            }
            Some(_) => Err(Refusal::new(Code::Denied, "the token has a known id but is wrong")),
            None => Err(Refusal::new(Code::Denied, "no session has this token")),
        }
    }
}

/// A client wants to prove a token; waits for verifier, nonce and facts.
#[derive(Debug)]
#[must_use]
pub struct Announced {
    opening: ProofOpening,
}

impl Announced {
    /// Which token to look up.
    pub fn token_id(&self) -> TokenId {
        self.opening.token_id
    }

    /// Whether the client needs the peer's start time and the pid namespace.
    pub fn wants_start(&self) -> bool {
        self.opening.wants_start
    }

    /// What the client wants to talk to.
    pub fn service(&self) -> &str {
        &self.opening.service
    }

    /// Challenges the client. `verifier` is a decoy where `known` is false, so that an unknown id
    /// looks like a known one from outside.
    ///
    /// # Errors
    /// `malformed` if the client's nonce is our own.
    pub fn challenge(
        self,
        verifier: Verifier,
        known: bool,
        nonce: Hex32,
        peer: PeerView,
    ) -> Result<(String, ExpectProof), Refusal> {
        let opening = self.opening;
        if opening.nonce == nonce {
            return Err(Refusal::new(Code::Malformed, "the client's nonce is the daemon's"));
        }
        let transcript = Transcript {
            token_id: opening.token_id,
            client_nonce: opening.nonce,
            server_nonce: nonce,
            service: &opening.service,
            peer: &peer,
        };
        let proof = Hex32(verifier.server_key().sign(&transcript.bytes(Role::Server)));
        let expected = transcript.bytes(Role::Client);
        let line = Answer::Challenge(Challenge { nonce, peer, proof }).to_line();
        Ok((line, ExpectProof { verifier, known, transcript: expected, service: opening.service }))
    }
}

/// The challenge is out; waits for the client's proof.
#[derive(Debug)]
#[must_use]
pub struct ExpectProof {
    verifier: Verifier,
    known: bool,
    transcript: Vec<u8>,
    service: String,
}

impl ExpectProof {
    /// Reads the proof's line, without its newline.
    ///
    /// # Errors
    /// `denied`, whether the token is unknown or the proof wrong; `malformed` if it is no proof.
    pub fn read(self, line: &[u8]) -> Result<Proven, Refusal> {
        let Hex32(proof) = auth::read_proof(line)?;
        let good = self.verifier.verify(&self.transcript, &proof);
        match (good, self.known) {
            (true, true) => {
                Ok(Proven { token_id: self.verifier.id(), service: self.service, way: Way::Proof })
            }
            (_, false) => Err(Refusal::new(Code::Denied, "no session has this token id")),
            (false, true) => Err(Refusal::new(Code::Denied, "the proof is wrong")),
        }
    }
}
