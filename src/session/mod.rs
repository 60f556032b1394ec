//! What a token stands for: a session's id, name, realm, scopes, binding, and how one ends.
#![forbid(unsafe_code)]

mod leaders;
pub mod limits;
pub mod past;
pub mod record;
pub mod registry;
pub mod scope;
pub mod wish;

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use unicode_width::UnicodeWidthChar;

use crate::kernel::process::Identity;
use crate::secret::random::{self, NoRandomness};
use crate::secret::token::TokenId;
use crate::wire::text::{in_brackets, is_deceptive};
use scope::Scopes;

/// Longest name of a session, and of a realm, in bytes.
pub const NAME_MAX: usize = 64;
/// The realm of the owner, and of every session that names none.
pub const DEFAULT_REALM: &str = "default";
/// The name of the daemon's own session.
pub const OWNER: &str = "owner";
/// The name of a session that stands for a user of a system daemon.
pub const USER: &str = "user";

/// What the id of a session begins with that stands for a user; the uid follows.
const USER_PREFIX: &str = "user-";

/// Milliseconds since 1970 (UTC); the registry is told the time and never asks for it.
pub type Millis = u64;

/// A session's id: 16 characters of Crockford's base 32 in lower case, ten of them the time it
/// began, so that ids sort by age; or `owner`, or `user-UID`. No secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId([u8; ID_LENGTH]); // ASCII, filled up with zeros, which sort before all else

const BASE32: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// The longest uid makes `user-4294967295`, which fits too.
const ID_LENGTH: usize = 16;

impl SessionId {
    /// Makes an id for a session that begins now.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn generate(now: Millis) -> Result<SessionId, NoRandomness> {
        let random = u64::from(u32::from_ne_bytes(random::bytes()?)) & 0x3fff_ffff;
        // Ten characters hold 50 bits of milliseconds (35,000 years), six hold 30 random bits.
        let character = |bits: u64, place: u32| BASE32[((bits >> (5 * place)) & 31) as usize];
        let time = (0..10).rev().map(|place| character(now, place));
        let tail = (0..6).rev().map(|place| character(random, place));
        let mut id = [0; ID_LENGTH];
        id.iter_mut().zip(time.chain(tail)).for_each(|(place, character)| *place = character);
        Ok(SessionId(id))
    }

    fn of_text(text: &str) -> SessionId {
        let mut id = [0; ID_LENGTH];
        id.iter_mut().zip(text.bytes()).for_each(|(place, character)| *place = character);
        SessionId(id)
    }

    /// The id of the daemon's own session.
    pub fn owner() -> SessionId {
        SessionId::of_text(OWNER)
    }

    /// The id of the session that stands for a user at a system daemon.
    pub fn of_user(uid: u32) -> SessionId {
        SessionId::of_text(&format!("{USER_PREFIX}{uid}"))
    }

    /// Whether it stands for the owner or a user, and not for something that somebody began.
    pub fn stands_for_somebody(&self) -> bool {
        self.as_str() == OWNER || self.as_str().starts_with(USER_PREFIX)
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        let length = self.0.iter().position(|byte| *byte == 0).unwrap_or(ID_LENGTH);
        str::from_utf8(&self.0[..length]).unwrap_or_default()
    }
}

/// A text that is no session id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a session id: expected 16 characters, owner, or user-UID; `authsock session list` shows them")]
pub struct NotASessionId;

impl FromStr for SessionId {
    type Err = NotASessionId;

    fn from_str(text: &str) -> Result<SessionId, NotASessionId> {
        let is_user = text.strip_prefix(USER_PREFIX).and_then(|uid| uid.parse::<u32>().ok());
        if let Some(uid) = is_user {
            let id = SessionId::of_user(uid);
            return if id.as_str() == text { Ok(id) } else { Err(NotASessionId) };
        }
        let good =
            text == OWNER || (text.len() == ID_LENGTH && text.bytes().all(|byte| BASE32.contains(&byte)));
        if good { Ok(SessionId::of_text(text)) } else { Err(NotASessionId) }
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that people gave: 1 to 64 bytes, nothing that could confuse a terminal or a log, nor change what is
/// shown before it, as a mark does that is set on another character.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

/// A text that is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a name: expected 1 to {NAME_MAX} bytes without characters that control or that nobody sees, not beginning or ending in a space, nor beginning with a mark that is set on another character"
)]
pub struct NotAName;

impl FromStr for Name {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Name, NotAName> {
        let good = (1..=NAME_MAX).contains(&text.len())
            && !text.chars().any(is_deceptive)
            && text.trim() == text
            && text.chars().next().and_then(UnicodeWidthChar::width) != Some(0);
        if good { Ok(Name(text.to_owned())) } else { Err(NotAName) }
    }
}

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as it stands between brackets in a line for people: in quotes where it could be taken for the
    /// closing bracket and what follows.
    pub fn in_brackets(&self) -> Cow<'_, str> {
        in_brackets(&self.0)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A realm: 1 to 64 letters, digits, `.`, `_`, `-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Realm(String);

/// A text that is no realm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a realm: expected 1 to {NAME_MAX} letters, digits, '.', '_' or '-'")]
pub struct NotARealm;

impl FromStr for Realm {
    type Err = NotARealm;

    fn from_str(text: &str) -> Result<Realm, NotARealm> {
        let good = (1..=NAME_MAX).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if good { Ok(Realm(text.to_owned())) } else { Err(NotARealm) }
    }
}

impl Default for Realm {
    fn default() -> Realm {
        Realm(DEFAULT_REALM.to_owned())
    }
}

impl Realm {
    /// The realm as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Realm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a session's token is good. `Tree` is the narrower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Binding {
    /// For the leader and its descendants.
    Tree,
    /// For every process of the session's user.
    Uid,
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Binding::Tree => "tree",
            Binding::Uid => "uid",
        })
    }
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// Its leader exited.
    LeaderExited,
    /// Its leader exited while no daemon ran that could have seen it.
    LeaderGoneWhileStopped,
    /// Its time was up.
    Expired,
    /// Somebody who may do so ended it.
    Revoked,
    /// The session that it came from ended.
    ParentEnded,
}

impl EndReason {
    /// All reasons, for documentation and tests.
    pub const ALL: [EndReason; 5] = [
        EndReason::LeaderExited,
        EndReason::LeaderGoneWhileStopped,
        EndReason::Expired,
        EndReason::Revoked,
        EndReason::ParentEnded,
    ];

    /// The word for lists and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            EndReason::LeaderExited => "leader_exited",
            EndReason::LeaderGoneWhileStopped => "leader_gone_while_stopped",
            EndReason::Expired => "expired",
            EndReason::Revoked => "revoked",
            EndReason::ParentEnded => "parent_ended",
        }
    }

    /// The reason that a word stands for.
    pub fn of_word(word: &str) -> Option<EndReason> {
        EndReason::ALL.into_iter().find(|reason| reason.as_str() == word)
    }
}

/// What a token stands for.
#[derive(Debug, Clone)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// Its name; not unique.
    pub name: Name,
    /// The group of sessions that it sees.
    pub realm: Realm,
    /// The user it belongs to.
    pub uid: u32,
    /// The process whose end ends it; the owner has none.
    pub leader: Option<Identity>,
    /// The leader's working directory when it began.
    pub cwd: Option<PathBuf>,
    /// The session that made it.
    pub parent: Option<SessionId>,
    /// What it may do.
    pub scopes: Scopes,
    /// Where its token is good.
    pub binding: Binding,
    /// When it began.
    pub created: Millis,
    /// When it ends by itself.
    pub expires: Option<Millis>,
    /// Its token's public handle.
    pub token_id: TokenId,
}

impl Session {
    /// Whether this stands for a whole user, the owner or another: it has no leader and does not end.
    pub fn stands_for_somebody(&self) -> bool {
        self.id.stands_for_somebody()
    }

    /// Whether another may come from this one: it is no wider in scopes, binding, expiry, user and realm.
    pub fn may_have(&self, child: &Session) -> bool {
        child.uid == self.uid
            && child.binding <= self.binding
            && (child.realm == self.realm || self.stands_for_somebody())
            && self.expires.is_none_or(|end| child.expires.is_some_and(|own| own <= end))
            && self.scopes.cover(&child.scopes)
    }

    /// Whether this is the daemon's own session.
    pub fn is_owner(&self) -> bool {
        self.parent.is_none() && self.id.as_str() == OWNER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_age_and_are_read_back() {
        let ids: Vec<_> =
            [0, 1, 1_700_000_000_000, 1_700_000_000_001].map(|now| SessionId::generate(now).unwrap()).into();
        assert!(ids.is_sorted());
        for id in &ids {
            assert_eq!(id.as_str().len(), ID_LENGTH);
            assert_eq!(id.as_str().parse(), Ok(*id));
        }
        assert_eq!("user-1000".parse(), Ok(SessionId::of_user(1000)));
        for bad in [
            "",
            "user-",
            "user-01",
            "user-+1",
            "user-4294967296",
            "Owner",
            "0123456789abcde",
            "0123456789abcdefg",
            "0123456789abcdeU",
            "0123456789abcdei",
        ] {
            assert_eq!(bad.parse::<SessionId>(), Err(NotASessionId), "{bad}");
        }
    }

    #[test]
    fn names_at_the_edge() {
        assert!("n".repeat(NAME_MAX).parse::<Name>().is_ok());
        assert!("n".repeat(NAME_MAX + 1).parse::<Name>().is_err());
        for good in ["a name, with ünïcode", "漢字", "עברית", "👍🏽", "e\u{301}", "x) ended: y (", "%s"]
        {
            assert!(good.parse::<Name>().is_ok(), "{good:?}");
        }
        let marks =
            ["\u{301}x", "\u{20dd}", "\u{1161}", "\u{1d173}x", "\u{1bca0}x", "\u{13430}x", "a\u{200d}b"];
        for bad in marks {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
        for bad in ["", " a", "a ", "a\nb", "a\u{1b}[31m", "a\0", "a\u{202e}b", "a\u{200b}"] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
        assert!("r".repeat(NAME_MAX).parse::<Realm>().is_ok());
        for bad in ["", "a b", "a/b", "ü", &"r".repeat(NAME_MAX + 1)] {
            assert!(bad.parse::<Realm>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_name_that_could_end_its_brackets_is_quoted_in_them() {
        let told = |text: &str| text.parse::<Name>().unwrap().in_brackets().into_owned();
        assert_eq!(told("plain 漢字"), "plain 漢字");
        assert_eq!(told("x) ended: y ("), r#""x) ended: y (""#);
        assert_eq!(told(r#"a" (b\"#), r#""a\" (b\\""#);
    }
}
