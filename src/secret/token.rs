//! A token: 32 random bytes that can be made, parsed, compared and wiped, but not printed; `TokenId` is its public handle.

use std::fmt;
use std::str::FromStr;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::random::{self, NoRandomness};

/// Length of a token in bytes.
pub const TOKEN_BYTES: usize = 32;
/// Length of a token as text: hexadecimal digits.
pub const TOKEN_DIGITS: usize = 2 * TOKEN_BYTES;
const _: () = assert!(TOKEN_DIGITS == crate::place::TOKEN_DIGITS);
/// Length of a token id in bytes.
pub const TOKEN_ID_BYTES: usize = 8;

/// HMAC-SHA-256 (RFC 2104, FIPS 180-4).
pub(crate) fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    // HMAC takes keys of any length, so this cannot fail.
    #[allow(clippy::expect_used)]
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("HMAC takes any key");
    mac.update(message);
    mac.finalize().into_bytes().into()
}

/// The secret that proves a session. Wiped when dropped; neither printed nor serialised.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Token([u8; TOKEN_BYTES]);

/// A text that is no token. It says nothing of the text itself, which may be most of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a token: expected {TOKEN_DIGITS} hexadecimal digits")]
pub struct NotAToken;

impl Token {
    /// Makes a new token from the operating system's randomness.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn generate() -> Result<Token, NoRandomness> {
        random::bytes().map(Token)
    }

    /// Reads 64 hexadecimal digits, in either case.
    ///
    /// # Errors
    /// [`NotAToken`].
    pub fn parse(digits: &[u8]) -> Result<Token, NotAToken> {
        if digits.len() != TOKEN_DIGITS {
            return Err(NotAToken);
        }
        let mut bytes = [0; TOKEN_BYTES];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| {
            bytes.zeroize();
            NotAToken
        })?;
        Ok(Token(bytes))
    }

    /// Reads a token as people store one: 64 digits and at most one line end.
    ///
    /// # Errors
    /// [`NotAToken`].
    pub fn parse_file(bytes: &[u8]) -> Result<Token, NotAToken> {
        let line = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        Token::parse(line.strip_suffix(b"\r").filter(|_| line.len() < bytes.len()).unwrap_or(line))
    }

    /// The public handle: what logs and lists show.
    pub fn id(&self) -> TokenId {
        let digest = hmac(&self.0, b"authsock token id");
        let mut id = [0; TOKEN_ID_BYTES];
        id.copy_from_slice(&digest[..TOKEN_ID_BYTES]);
        TokenId(id)
    }

    /// The digits, for a file or a header; wiped when dropped.
    pub fn reveal(&self) -> Zeroizing<String> {
        Zeroizing::new(hex::encode(self.0))
    }

    pub(super) fn key(&self) -> &[u8; TOKEN_BYTES] {
        &self.0
    }
}

impl PartialEq for Token {
    /// Takes the same time wherever two tokens differ.
    fn eq(&self, other: &Token) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Token {}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// A token's public handle: 16 hexadecimal digits derived from it one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenId([u8; TOKEN_ID_BYTES]);

/// A text that is no token id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a token id: expected {} lower-case hexadecimal digits", 2 * TOKEN_ID_BYTES)]
pub struct NotATokenId;

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for TokenId {
    type Err = NotATokenId;

    fn from_str(text: &str) -> Result<TokenId, NotATokenId> {
        let mut bytes = [0; TOKEN_ID_BYTES];
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(NotATokenId);
        }
        hex::decode_to_slice(text, &mut bytes).map_err(|_| NotATokenId)?;
        Ok(TokenId(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGITS: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    #[test]
    fn a_token_is_read_in_either_case_and_written_in_lower_case() {
        let lower = Token::parse(DIGITS.as_bytes()).unwrap();
        let upper = Token::parse(DIGITS.to_uppercase().as_bytes()).unwrap();
        assert!(lower == upper);
        assert_eq!(*upper.reveal(), DIGITS);
    }

    #[test]
    fn one_line_end_is_allowed_in_a_file_and_nothing_else() {
        for good in ["", "\n", "\r\n"] {
            assert!(Token::parse_file(format!("{DIGITS}{good}").as_bytes()).is_ok(), "{good:?}");
        }
        for bad in ["\n\n", "\r", " ", " \n", "0", "\r\r\n", "\n\r"] {
            assert!(Token::parse_file(format!("{DIGITS}{bad}").as_bytes()).is_err(), "{bad:?}");
        }
        for bad in [&DIGITS[1..], "", "\n", &format!(" {DIGITS}"), &DIGITS.replace('f', "g")] {
            assert!(Token::parse_file(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_token_cannot_be_seen_by_debug() {
        let token = Token::parse(DIGITS.as_bytes()).unwrap();
        assert_eq!(format!("{token:?} {:?}", Some(&token)), "Token(..) Some(Token(..))");
    }

    #[test]
    fn an_id_does_not_show_the_token_and_differs_between_tokens() {
        let (one, two) = (Token::generate().unwrap(), Token::generate().unwrap());
        assert!(one != two);
        assert_ne!(one.id(), two.id());
        assert!(!one.reveal().contains(&one.id().to_string()));
        assert_eq!(one.id().to_string().parse(), Ok(one.id()));
    }

    #[test]
    fn ids_are_sixteen_lower_case_digits() {
        for bad in ["", "0123", "0123456789ABCDEF", "0123456789abcdefa", "0123456789abcdeg"] {
            assert_eq!(bad.parse::<TokenId>(), Err(NotATokenId), "{bad}");
        }
    }
}
