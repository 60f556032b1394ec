//! What a daemon keeps of a token: enough to verify a proof and to give its own, not enough to make the client's.
//!
//! Keys are as in SCRAM (RFC 5802, section 3) with HMAC-SHA-256 over the token's raw 32 bytes where
//! SCRAM has SaltedPassword: 256 random bits need no stretching. A verifier is a secret too: who
//! has it can pose as the daemon.

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::random::{self, NoRandomness};
use super::token::{Token, TokenId, hmac};

/// Length of keys, nonces and proofs in bytes.
pub const KEY_BYTES: usize = 32;

/// `ClientKey := HMAC(token, "Client Key")`: what a proof shows that one has. Only the holder of
/// the token can make it.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct ClientKey([u8; KEY_BYTES]);

impl ClientKey {
    /// Derives it.
    pub fn of(token: &Token) -> ClientKey {
        ClientKey(hmac(token.key(), b"Client Key"))
    }

    fn stored(&self) -> [u8; KEY_BYTES] {
        Sha256::digest(self.0).into()
    }

    /// `ClientProof := ClientKey XOR HMAC(StoredKey, transcript)`.
    pub fn prove(&self, transcript: &[u8]) -> [u8; KEY_BYTES] {
        let stored = Zeroizing::new(self.stored());
        let mut proof = hmac(stored.as_slice(), transcript);
        for (byte, key) in proof.iter_mut().zip(self.0) {
            *byte ^= key;
        }
        proof
    }
}

/// `ServerKey := HMAC(token, "Server Key")`: what the daemon proves itself with.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct ServerKey([u8; KEY_BYTES]);

impl ServerKey {
    /// Derives it.
    pub fn of(token: &Token) -> ServerKey {
        ServerKey(hmac(token.key(), b"Server Key"))
    }

    /// `ServerSignature := HMAC(ServerKey, transcript)`.
    pub fn sign(&self, transcript: &[u8]) -> [u8; KEY_BYTES] {
        hmac(&self.0, transcript)
    }

    /// Whether the other end signed this transcript; takes the same time either way.
    pub fn verify(&self, transcript: &[u8], signature: &[u8; KEY_BYTES]) -> bool {
        self.sign(transcript).ct_eq(signature).into()
    }
}

/// What stands for a token on the daemon's side.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Verifier {
    #[zeroize(skip)]
    id: TokenId,
    /// `StoredKey := SHA-256(ClientKey)`.
    stored: [u8; KEY_BYTES],
    server: ServerKey,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier({}, ..)", self.id)
    }
}

impl Verifier {
    /// Derives a token's verifier.
    pub fn of(token: &Token) -> Verifier {
        Verifier { id: token.id(), stored: ClientKey::of(token).stored(), server: ServerKey::of(token) }
    }

    /// Puts together a verifier that the holder of a token sent in its place.
    pub fn from_parts(id: TokenId, stored: [u8; KEY_BYTES], server: [u8; KEY_BYTES]) -> Verifier {
        Verifier { id, stored, server: ServerKey(server) }
    }

    /// A verifier that no token has: an unknown id is challenged with it and cannot be told from a
    /// known one.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn decoy(id: TokenId) -> Result<Verifier, NoRandomness> {
        Ok(Verifier { id, stored: random::bytes()?, server: ServerKey(random::bytes()?) })
    }

    /// The token's public handle.
    pub fn id(&self) -> TokenId {
        self.id
    }

    /// The key that the daemon proves itself with.
    pub fn server_key(&self) -> &ServerKey {
        &self.server
    }

    /// StoredKey and ServerKey, for the one who registers a session of its own.
    pub fn reveal(&self) -> (Zeroizing<String>, Zeroizing<String>) {
        (Zeroizing::new(hex::encode(self.stored)), Zeroizing::new(hex::encode(self.server.0)))
    }

    /// Whether this is the verifier of `token`; takes the same time either way.
    pub fn is_of(&self, token: &Token) -> bool {
        let theirs = Zeroizing::new(ClientKey::of(token).stored());
        theirs.ct_eq(&self.stored).into()
    }

    /// Whether a proof over this transcript was made with the token's ClientKey: undoes the XOR and
    /// compares the hash of what comes out. Takes the same time either way.
    pub fn verify(&self, transcript: &[u8], proof: &[u8; KEY_BYTES]) -> bool {
        let mut key = Zeroizing::new(hmac(&self.stored, transcript));
        for (byte, proof) in key.iter_mut().zip(proof) {
            *byte ^= proof;
        }
        let stored: [u8; KEY_BYTES] = Sha256::digest(key.as_slice()).into();
        stored.ct_eq(&self.stored).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_verifies_for_its_token_and_transcript_only() {
        let (token, other) = (Token::generate().unwrap(), Token::generate().unwrap());
        let verifier = Verifier::of(&token);
        let proof = ClientKey::of(&token).prove(b"transcript");
        assert!(verifier.verify(b"transcript", &proof));
        assert!(!verifier.verify(b"transcripT", &proof));
        assert!(!Verifier::of(&other).verify(b"transcript", &proof));
        for bit in 0..256 {
            let mut bent = proof;
            bent[bit / 8] ^= 1 << (bit % 8);
            assert!(!verifier.verify(b"transcript", &bent));
        }
    }

    #[test]
    fn a_server_signature_is_no_client_proof_and_the_other_way_round() {
        let token = Token::generate().unwrap();
        let verifier = Verifier::of(&token);
        let signature = verifier.server_key().sign(b"t");
        assert!(!verifier.verify(b"t", &signature));
        assert!(!verifier.server_key().verify(b"t", &ClientKey::of(&token).prove(b"t")));
        assert!(ServerKey::of(&token).verify(b"t", &signature));
    }

    #[test]
    fn a_decoy_is_nobody_s() {
        let token = Token::generate().unwrap();
        let decoy = Verifier::decoy(token.id()).unwrap();
        assert!(!decoy.is_of(&token));
        assert!(!decoy.verify(b"t", &ClientKey::of(&token).prove(b"t")));
    }

    #[test]
    fn a_verifier_shows_only_its_id() {
        let verifier = Verifier::of(&Token::generate().unwrap());
        assert_eq!(format!("{verifier:?}"), format!("Verifier({}, ..)", verifier.id()));
    }
}
