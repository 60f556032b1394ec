//! A session as it is kept in a file: to text and back, strictly, so that what is not whole and exact is no session.
//!
//! A record holds verifiers, which are secrets: its bytes are wiped when dropped, and no error
//! repeats any of them.

use std::collections::HashMap;
use std::io::Cursor;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::scope::{Scope, Scopes};
use super::{Binding, Millis, Session};
use crate::kernel::process::{Identity, Pid};
use crate::secret::token::TokenId;
use crate::secret::verifier::{KEY_BYTES, Verifier};

/// Most bytes of a record.
pub const RECORD_MAX: usize = 65_536;
/// Longest name of a boot, in bytes.
const BOOT_MAX: usize = 64;
/// The form that is written, and the only one that is read.
const VERSION: u32 = 1;

/// A session, and what verifies the tokens that stand for it: the present one last and without an
/// end, before it at most one that was rotated away, with the end of its grace.
#[derive(Debug, Clone)]
pub struct Record {
    /// The session.
    pub session: Session,
    /// Its tokens.
    pub tokens: Vec<(Verifier, Option<Millis>)>,
    /// What a newer daemon wrote that this one does not know.
    pub unknown: Unknown,
}

/// Fields of a record that this version does not know. They are written again, so that a newer daemon finds them
/// where it left them.
#[derive(Clone, Default, PartialEq)]
pub struct Unknown {
    session: Map<String, Value>,
    leader: Map<String, Value>,
    tokens: HashMap<TokenId, Map<String, Value>>,
}

impl Unknown {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.session.is_empty() && self.leader.is_empty() && self.tokens.is_empty()
    }
}

impl std::fmt::Debug for Unknown {
    /// Names alone: whatever a value is, it may be a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = [&self.session, &self.leader].into_iter().chain(self.tokens.values());
        f.debug_set().entries(names.flat_map(Map::keys)).finish()
    }
}

/// Why bytes are no record. It says nothing of the bytes, which may hold a verifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotARecord {
    /// It is cut off, has something that does not belong, or lacks something.
    #[error("is not the record of a session (line {line}, column {column})")]
    Form {
        /// Where it ceases to be one.
        line: usize,
        /// And the byte in that line.
        column: usize,
    },
    /// Another version of the daemon wrote it.
    #[error("is a record of version {0}, and this daemon knows version {VERSION}")]
    Version(u32),
    /// A value that no session has.
    #[error("is not the record of a session: its {0} cannot be")]
    Value(&'static str),
}

/// The record would have more bytes than are read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the session's record would have more than {RECORD_MAX} bytes; give it fewer scopes")]
pub struct TooLong;

/// Only the version, to be looked at before all else.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// As it is written. Nothing may be missing, also where it may be null.
#[derive(Serialize, Deserialize)]
struct Written<'a> {
    version: u32,
    #[serde(deserialize_with = "Option::deserialize")]
    boot: Option<String>,
    id: String,
    name: String,
    realm: String,
    uid: u32,
    #[serde(deserialize_with = "Option::deserialize")]
    leader: Option<WrittenLeader>,
    #[serde(deserialize_with = "Option::deserialize")]
    cwd: Option<String>,
    #[serde(deserialize_with = "Option::deserialize")]
    parent: Option<String>,
    scopes: Vec<String>,
    binding: Binding,
    created_ms: Millis,
    #[serde(deserialize_with = "Option::deserialize")]
    expires_ms: Option<Millis>,
    #[serde(borrow)]
    tokens: Vec<WrittenToken<'a>>,
    #[serde(flatten)]
    unknown: Map<String, Value>,
}

#[derive(Serialize, Deserialize)]
struct WrittenLeader {
    pid: u32,
    #[serde(deserialize_with = "Option::deserialize")]
    pidfs: Option<u64>,
    #[serde(deserialize_with = "Option::deserialize")]
    start: Option<u64>,
    #[serde(flatten)]
    unknown: Map<String, Value>,
}

/// Keys are borrowed, so that no copy of them is left behind.
#[derive(Serialize, Deserialize)]
struct WrittenToken<'a> {
    token_id: String,
    stored_key: &'a str,
    server_key: &'a str,
    #[serde(deserialize_with = "Option::deserialize")]
    until_ms: Option<Millis>,
    #[serde(flatten)]
    unknown: Map<String, Value>,
}

impl Record {
    /// The record of a session that nothing else is known of.
    pub fn of(session: Session, tokens: Vec<(Verifier, Option<Millis>)>) -> Record {
        Record { session, tokens, unknown: Unknown::default() }
    }

    /// The record as it is kept, with the name of the boot that it is good in.
    ///
    /// # Errors
    /// [`TooLong`].
    pub fn to_bytes(&self, boot: Option<&str>) -> Result<Zeroizing<Vec<u8>>, TooLong> {
        let session = &self.session;
        let keys: Vec<_> = self.tokens.iter().map(|(verifier, _)| verifier.reveal()).collect();
        let tokens =
            self.tokens.iter().zip(&keys).map(|((verifier, until), (stored, server))| WrittenToken {
                token_id: verifier.id().to_string(),
                stored_key: stored,
                server_key: server,
                until_ms: *until,
                unknown: self.unknown.tokens.get(&verifier.id()).cloned().unwrap_or_default(),
            });
        let written = Written {
            version: VERSION,
            boot: boot.map(ToOwned::to_owned),
            id: session.id.to_string(),
            name: session.name.to_string(),
            realm: session.realm.to_string(),
            uid: session.uid,
            leader: session.leader.map(|leader| WrittenLeader {
                pid: leader.pid.0,
                pidfs: leader.pidfs,
                start: leader.start,
                unknown: self.unknown.leader.clone(),
            }),
            // For people who read lists; nothing is ever opened by it.
            cwd: session.cwd.as_ref().map(|cwd| cwd.to_string_lossy().into_owned()),
            parent: session.parent.as_ref().map(ToString::to_string),
            scopes: session.scopes.iter().map(ToString::to_string).collect(),
            binding: session.binding,
            created_ms: session.created,
            expires_ms: session.expires,
            tokens: tokens.collect(),
            unknown: self.unknown.session.clone(),
        };
        // Into a buffer that does not grow: growing would leave copies of the keys behind.
        let mut bytes = Zeroizing::new(vec![0; RECORD_MAX]);
        let mut cursor = Cursor::new(bytes.as_mut_slice());
        serde_json::to_writer(&mut cursor, &written).map_err(|_| TooLong)?;
        let length = usize::try_from(cursor.position()).map_err(|_| TooLong)?;
        bytes.truncate(length);
        Ok(bytes)
    }

    /// Reads a record, and the name of the boot that it is good in.
    ///
    /// # Errors
    /// [`NotARecord`].
    pub fn from_bytes(bytes: &[u8]) -> Result<(Record, Option<String>), NotARecord> {
        let form = |error: serde_json::Error| NotARecord::Form { line: error.line(), column: error.column() };
        let Versioned { version } = serde_json::from_slice(bytes).map_err(form)?;
        if version != VERSION {
            return Err(NotARecord::Version(version));
        }
        let written: Written<'_> = serde_json::from_slice(bytes).map_err(form)?;
        let boot = written.boot.clone();
        if boot.as_ref().is_some_and(|boot| boot.is_empty() || boot.len() > BOOT_MAX) {
            return Err(NotARecord::Value("boot"));
        }
        Ok((written.into_record()?, boot))
    }
}

/// The boot and the leader that a file tells of which is no record, or another version's: as long as that process lives,
/// nobody below it is the owner, whatever became of the session.
pub fn leader_of(bytes: &[u8]) -> Option<(String, Identity)> {
    #[derive(Deserialize)]
    struct Salvaged {
        boot: String,
        leader: WrittenLeader,
    }
    let Salvaged { boot, leader } = serde_json::from_slice(bytes).ok()?;
    Some((boot, Identity { pid: Pid(leader.pid), pidfs: leader.pidfs, start: leader.start }))
}

impl Written<'_> {
    fn into_record(mut self) -> Result<Record, NotARecord> {
        let bad = NotARecord::Value;
        let mut unknown = Unknown {
            session: std::mem::take(&mut self.unknown),
            leader: self
                .leader
                .as_mut()
                .map(|leader| std::mem::take(&mut leader.unknown))
                .unwrap_or_default(),
            tokens: HashMap::new(),
        };
        for token in &mut self.tokens {
            let id = token.token_id.parse().map_err(|_| bad("tokens"))?;
            if !token.unknown.is_empty() {
                unknown.tokens.insert(id, std::mem::take(&mut token.unknown));
            }
        }
        let tokens = self.tokens.into_iter().map(WrittenToken::into_token).collect::<Result<Vec<_>, _>>()?;
        // The present one has no end; whatever is before it has one, and is another.
        let token_id = match tokens.as_slice() {
            [(present, None)] => present.id(),
            [(before, Some(_)), (present, None)] if before.id() != present.id() => present.id(),
            _ => return Err(bad("tokens")),
        };
        let scopes = self.scopes.iter().map(|scope| scope.parse()).collect::<Result<Vec<Scope>, _>>();
        let session = Session {
            id: self.id.parse().map_err(|_| bad("id"))?,
            name: self.name.parse().map_err(|_| bad("name"))?,
            realm: self.realm.parse().map_err(|_| bad("realm"))?,
            uid: self.uid,
            leader: self.leader.map(|leader| Identity {
                pid: Pid(leader.pid),
                pidfs: leader.pidfs,
                start: leader.start,
            }),
            cwd: self.cwd.map(PathBuf::from),
            parent: self.parent.map(|id| id.parse()).transpose().map_err(|_| bad("parent"))?,
            scopes: Scopes::of_a_record(scopes.map_err(|_| bad("scopes"))?),
            binding: self.binding,
            created: self.created_ms,
            expires: self.expires_ms,
            token_id,
        };
        // The owner alone has no parent, and its name; who stands for somebody has no leader.
        let is_owner = session.id == super::SessionId::owner();
        if session.parent.is_none() != is_owner || session.parent.as_ref() == Some(&session.id) {
            return Err(bad("parent"));
        }
        if session.leader.is_none() != session.stands_for_somebody() {
            return Err(bad("leader"));
        }
        if (session.name.as_str() == super::OWNER) != is_owner {
            return Err(bad("name"));
        }
        Ok(Record { session, tokens, unknown })
    }
}

impl WrittenToken<'_> {
    fn into_token(self) -> Result<(Verifier, Option<Millis>), NotARecord> {
        let bad = |_| NotARecord::Value("tokens");
        let id = self.token_id.parse().map_err(|_| NotARecord::Value("tokens"))?;
        let (mut stored, mut server) = (Zeroizing::new([0; KEY_BYTES]), Zeroizing::new([0; KEY_BYTES]));
        hex::decode_to_slice(self.stored_key, stored.as_mut_slice()).map_err(bad)?;
        hex::decode_to_slice(self.server_key, server.as_mut_slice()).map_err(bad)?;
        Ok((Verifier::from_parts(id, *stored, *server), self.until_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::token::Token;
    use crate::session::SessionId;
    use crate::session::scope::SCOPE_MAX;

    const BOOT: &str = "6f1c2f2e-0000-4000-8000-000000000001";

    fn fixture() -> Record {
        let (before, present) = (Token::generate().unwrap(), Token::generate().unwrap());
        let session = Session {
            id: SessionId::generate(1_700_000_000_000).unwrap(),
            name: "a name, with \"quotes\" and ünïcode".parse().unwrap(),
            realm: "builds".parse().unwrap(),
            uid: 1000,
            leader: Some(Identity { pid: Pid(4711), pidfs: Some(u64::MAX), start: None }),
            cwd: Some("/home/you".into()),
            parent: Some(SessionId::owner()),
            scopes: Scopes::default_of_a_run(),
            binding: Binding::Tree,
            created: 1_700_000_000_000,
            expires: Some(1_700_000_100_000),
            token_id: present.id(),
        };
        let tokens = vec![(Verifier::of(&before), Some(5)), (Verifier::of(&present), None)];
        Record::of(session, tokens)
    }

    fn text(record: &Record) -> String {
        String::from_utf8(record.to_bytes(Some(BOOT)).unwrap().to_vec()).unwrap()
    }

    fn read(text: &str) -> Result<Record, NotARecord> {
        Record::from_bytes(text.as_bytes()).map(|(record, _)| record)
    }

    #[test]
    fn what_is_written_is_read_back_to_the_byte() {
        let record = fixture();
        let bytes = record.to_bytes(Some(BOOT)).unwrap();
        let (again, boot) = Record::from_bytes(&bytes).unwrap();
        assert_eq!(boot.as_deref(), Some(BOOT));
        assert_eq!(format!("{record:?}"), format!("{again:?}"));
        assert_eq!(*again.to_bytes(Some(BOOT)).unwrap(), *bytes);
        let (_, boot) = Record::from_bytes(&record.to_bytes(None).unwrap()).unwrap();
        assert_eq!(boot, None, "a boot without a name is none");
    }

    #[test]
    fn the_owner_and_users_are_kept_without_a_leader() {
        for id in [SessionId::owner(), SessionId::of_user(2001)] {
            let mut record = fixture();
            record.session.leader = None;
            record.session.name = if id == SessionId::owner() { "owner" } else { "user" }.parse().unwrap();
            record.session.parent = Some(SessionId::owner()).filter(|owner| id != *owner);
            record.session.id = id;
            assert!(read(&text(&record)).is_ok());
            record.session.leader = fixture().session.leader;
            assert_eq!(read(&text(&record)).unwrap_err(), NotARecord::Value("leader"));
        }
    }

    #[test]
    fn whatever_is_cut_off_is_no_record() {
        let bytes = fixture().to_bytes(Some(BOOT)).unwrap();
        for length in 0..bytes.len() {
            assert!(matches!(Record::from_bytes(&bytes[..length]), Err(NotARecord::Form { .. })), "{length}");
        }
    }

    #[test]
    fn garbage_is_no_record_and_is_not_repeated() {
        let record = fixture();
        let good = text(&record);
        assert!(read(&good).is_ok());
        let (stored, server) = record.tokens[1].0.reveal();
        for bad in [
            "\0\0\0".to_owned(),
            "[]".to_owned(),
            format!("{good}{good}"),
            good.replacen("\"uid\":1000", "\"uid\":-1", 1),
            good.replacen("\"uid\":1000", "\"uid\":1000,\"uid\":0", 1),
            good.replacen(",\"expires_ms\":1700000100000", "", 1),
            good.replacen(",\"start\":null", "", 1),
            good.replacen("\"until_ms\":5", "\"until_ms\":null", 1),
            good.replacen("session:self", "session:every", 1),
            good.replacen("\"tree\"", "\"world\"", 1),
            good.replacen("\"name\":\"a name", "\"name\":\" a name", 1),
            good.replacen("\"realm\":\"builds\"", "\"realm\":\"../builds\"", 1),
            good.replacen("\"parent\":\"owner\"", "\"parent\":null", 1),
            good.replacen("\"parent\":\"owner\"", "\"parent\":\"nobody\"", 1),
            good.replacen(record.session.id.as_str(), "owner", 1),
            good.replacen(stored.as_str(), &stored[1..], 1),
            good.replacen(stored.as_str(), "not hexadecimal", 1),
            good.replacen(&format!("\"{}\"", *stored), "7", 1),
            good.replacen(BOOT, &"b".repeat(BOOT_MAX + 1), 1),
            good.replacen(
                "\"leader\":{\"pid\":4711,\"pidfs\":18446744073709551615,\"start\":null}",
                "\"leader\":null",
                1,
            ),
        ] {
            assert_ne!(bad, good);
            let words = read(&bad).unwrap_err().to_string();
            assert!(!words.contains(&stored[8..24]) && !words.contains(&server[8..24]), "{words}");
        }
    }

    #[test]
    fn what_a_newer_daemon_wrote_is_kept_and_not_shown() {
        let good = text(&fixture());
        let newer = good
            .replacen("\"uid\":1000", "\"uid\":1000,\"label\":{\"a\":[5000000000,null,\"0123abcd\"]}", 1)
            .replacen("\"pid\":4711", "\"pid\":4711,\"cgroup\":7", 1)
            .replacen("\"until_ms\":null", "\"until_ms\":null,\"pepper\":\"5ec2e7\"", 1);
        let record = read(&newer).unwrap();
        assert!(!record.unknown.is_empty() && fixture().unknown.is_empty());
        let again: Value = serde_json::from_str(&text(&record)).unwrap();
        assert_eq!(again, serde_json::from_str::<Value>(&newer).unwrap());
        assert_eq!(again["tokens"][1]["pepper"], "5ec2e7", "beside the token that it belongs to");
        let shown = format!("{record:?}");
        assert!(
            shown.contains("pepper") && !shown.contains("5ec2e7") && !shown.contains("0123abcd"),
            "{shown}"
        );
        // What is known is not unknown a second time.
        for twice in ["\"uid\":1000,\"uid\":1000", "\"uid\":1000,\"binding\":\"uid\""] {
            assert!(read(&good.replacen("\"uid\":1000", twice, 1)).is_err(), "{twice}");
        }
    }

    #[test]
    fn of_what_is_no_record_the_leader_can_still_be_told() {
        let good = text(&fixture());
        let leader = fixture().session.leader.unwrap();
        for bad in [
            good.replacen("\"version\":1", "\"version\":9", 1),
            good.replacen("session:self", "session:every", 1),
            good.replacen("\"tokens\":[", "\"tokens\":7,\"more\":[", 1),
        ] {
            assert!(read(&bad).is_err());
            assert_eq!(leader_of(bad.as_bytes()), Some((BOOT.to_owned(), leader)));
        }
        for none in ["", "{}", "garbage", &good[..good.len() / 2]] {
            assert_eq!(leader_of(none.as_bytes()), None);
        }
    }

    #[test]
    fn a_record_of_another_version_is_named_as_such_whatever_else_it_holds() {
        for version in [0, 2, 77] {
            let text =
                text(&fixture()).replacen("\"version\":1", &format!("\"version\":{version},\"new\":[]"), 1);
            assert_eq!(read(&text).unwrap_err(), NotARecord::Version(version));
        }
    }

    #[test]
    fn a_record_shows_no_key() {
        let record = fixture();
        let shown = format!("{record:?}");
        for (verifier, _) in &record.tokens {
            let (stored, server) = verifier.reveal();
            assert!(!shown.contains(stored.as_str()) && !shown.contains(server.as_str()));
        }
    }

    #[test]
    fn the_longest_record_that_is_written_can_be_read_and_a_longer_one_is_not_written() {
        let mut record = fixture();
        let scope = |number: usize| {
            format!("events:publish:{number:04}{}", "s".repeat(SCOPE_MAX - 19)).parse::<Scope>().unwrap()
        };
        let mut count = 0;
        let longest = loop {
            count += 1;
            record.session.scopes = Scopes::of_a_record((0..count).map(scope).collect());
            match record.to_bytes(Some(BOOT)) {
                Ok(bytes) => assert!(Record::from_bytes(&bytes).is_ok()),
                Err(TooLong) => break count - 1,
            }
        };
        assert!(longest > RECORD_MAX / (SCOPE_MAX + 3) - 10, "{longest}");
    }
}
