//! The users of a daemon for the whole machine: each one's token, made at first contact, and what the daemon knows it by.
//!
//! `users/UID/token` is the user's own file in a directory that only root can change: the user may
//! spoil what is in it, and harms nobody else. What verifies it is root's, in `verifiers/UID`, and is
//! all that the daemon goes by.
//!
//! Two files cannot be replaced at once. While a token is replaced, `verifiers/UID` holds what verifies the new one and what
//! verifies the one before. Where that is cut off, the next daemon reads the user's file, for this once, and goes by the one
//! that lies there.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Mutex;

use zeroize::Zeroizing;

use crate::gate::lock;
use crate::kernel::dir::{Dir, Unusable, own_uid};
use crate::place::{TOKEN_FILE, USERS_DIR, VERIFIERS_DIR};
use crate::secret::token::{TOKEN_DIGITS, Token, TokenId};
use crate::secret::verifier::Verifier;
use crate::wire::auth::Hex32;

/// Most bytes of what verifies a token: three words of hexadecimal digits and their ends.
const VERIFIER_MAX: usize = 16 + 64 + 64 + 3;
/// Most bytes of a user's token file that are looked at.
const TOKEN_MAX: usize = TOKEN_DIGITS + 2;

/// The directories of users and of what verifies their tokens.
#[derive(Debug)]
pub(super) struct Users {
    users: Dir,
    verifiers: Dir,
    /// One directory for each user who has come, held open.
    homes: Mutex<HashMap<u32, Dir>>,
}

/// Why a user has no token.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoUserToken {
    /// A directory or file cannot be made.
    #[error("the token of uid {uid} cannot be made: {problem}")]
    Unusable {
        /// Whose.
        uid: u32,
        /// What is wrong.
        problem: Unusable,
    },
    /// The operating system gives no random bytes.
    #[error(transparent)]
    NoRandomness(#[from] crate::secret::random::NoRandomness),
}

impl Users {
    /// Opens the directories below the state directory, and makes what is missing.
    ///
    /// # Errors
    /// [`Unusable`].
    pub(super) fn open(state: &Dir) -> Result<Users, Unusable> {
        let users = Users {
            users: state.open_or_create_passage(USERS_DIR)?,
            verifiers: Dir::open_or_create(&state.path().join(VERIFIERS_DIR), own_uid())?,
            homes: Mutex::default(),
        };
        users.verifiers.sweep_unfinished()?;
        Ok(users)
    }

    /// Everybody who has a token, with what verifies it. What is spoilt or lacks its other half is
    /// left out, and told: its user gets a new token at the next contact.
    ///
    /// # Errors
    /// [`Unusable`] if the directory cannot be listed.
    pub(super) fn known(&self) -> Result<Vec<(u32, Verifier)>, Unusable> {
        let mut known = Vec::new();
        for name in self.verifiers.names()? {
            let Some(uid) = name.parse::<u32>().ok().filter(|uid| uid.to_string() == name) else { continue };
            if !self.has_token(uid) {
                continue;
            }
            match self.read(&name).map(|bytes| parse(&bytes)) {
                Ok(found) => match found {
                    Some((verifier, None)) => known.push((uid, verifier)),
                    Some((new, Some(before))) => known.push((uid, self.complete(uid, new, before)?)),
                    None => tracing::warn!(
                        authsock_event = "verifier_spoilt",
                        authsock_peer_uid = uid,
                        "what verifies the token of uid {uid} is spoilt; it gets a new one at its next contact"
                    ),
                },
                Err(problem) => {
                    tracing::warn!(authsock_event = "verifier_spoilt", authsock_peer_uid = uid, "{problem}");
                }
            }
        }
        Ok(known)
    }

    /// Whether a user's file is there; what is in it is the user's own affair.
    pub(super) fn has_token(&self, uid: u32) -> bool {
        self.with_home(uid, |home| Ok(home.has(TOKEN_FILE))).unwrap_or(false)
    }

    /// Makes a new token for a user: what verifies it lies on disk before the token can be read.
    ///
    /// # Errors
    /// [`NoUserToken`]; a token that was there before still lies there then.
    pub(super) fn mint(&self, uid: u32) -> Result<Verifier, NoUserToken> {
        let token = Token::generate()?;
        let verifier = Verifier::of(&token);
        let unusable = |problem| NoUserToken::Unusable { uid, problem };
        let name = uid.to_string();
        let alone = text_of(&verifier);
        // After a file was removed what is there counts no more.
        let before =
            if self.has_token(uid) { self.read(&name).ok().and_then(|bytes| parse(&bytes)) } else { None };
        let before = match before {
            Some((new, Some(before))) => Some(self.complete(uid, new, before).map_err(unusable)?),
            other => other.map(|(verifier, _)| verifier),
        };
        let before = before.as_ref().map(text_of);
        let both = before.as_ref().map(|before| Zeroizing::new([alone.as_str(), before].concat()));
        let first = both.as_ref().unwrap_or(&alone);
        self.verifiers.replace(&name, first.as_bytes()).map_err(unusable)?;
        let placed = self.with_home(uid, |home| home.replace_for(TOKEN_FILE, token.reveal().as_bytes(), uid));
        if let (Err(_), Some(before)) = (&placed, &before) {
            // The one before goes on. Where that cannot be written either, the next daemon finds out.
            let _ = self.verifiers.replace(&name, before.as_bytes());
        }
        placed.map_err(unusable)?;
        if both.is_some()
            && let Err(problem) = self.verifiers.replace(&name, alone.as_bytes())
        {
            // The next daemon finds out which one lies there.
            tracing::warn!(authsock_event = "not_kept", authsock_peer_uid = uid, "{problem}");
        }
        Ok(verifier)
    }

    fn read(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, Unusable> {
        self.verifiers.read_private(name, own_uid(), 2 * VERIFIER_MAX).map(Zeroizing::new)
    }

    /// Brings a replacement that was cut off to its end: what the user's file holds decides, and the new one if it holds
    /// neither.
    fn complete(&self, uid: u32, new: Verifier, before: Verifier) -> Result<Verifier, Unusable> {
        let bytes = self.with_home(uid, |home| home.read_private(TOKEN_FILE, uid, TOKEN_MAX));
        let token = bytes.ok().map(Zeroizing::new).and_then(|bytes| Token::parse_file(&bytes).ok());
        let lies_there = token.is_some_and(|token| before.is_of(&token));
        let verifier = if lies_there { before } else { new };
        self.verifiers.replace(&uid.to_string(), text_of(&verifier).as_bytes())?;
        Ok(verifier)
    }

    fn with_home<T>(&self, uid: u32, act: impl FnOnce(&Dir) -> Result<T, Unusable>) -> Result<T, Unusable> {
        let mut homes = lock(&self.homes);
        // Somebody may have removed the directory that is held; then another is made.
        if homes.get(&uid).is_some_and(|home| !home.path().exists()) {
            homes.remove(&uid);
        }
        match homes.entry(uid) {
            Entry::Occupied(home) => act(home.get()),
            Entry::Vacant(place) => {
                let home = self.users.open_or_create_passage(&uid.to_string())?;
                home.sweep_unfinished()?;
                act(place.insert(home))
            }
        }
    }
}

fn text_of(verifier: &Verifier) -> Zeroizing<String> {
    let (stored, server) = verifier.reveal();
    Zeroizing::new(format!("{}\n{}\n{}\n", verifier.id(), *stored, *server))
}

/// What verifies a token, and what verified the one before where that is being replaced.
fn parse(bytes: &[u8]) -> Option<(Verifier, Option<Verifier>)> {
    let words: Vec<&str> = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?.split('\n').collect();
    let verifier = |words: &[&str]| {
        let [id, stored, server] = words else { return None };
        let id: TokenId = id.parse().ok()?;
        Some(Verifier::from_parts(id, Hex32::parse(stored)?.0, Hex32::parse(server)?.0))
    };
    match words.split_at_checked(3)? {
        (new, []) => Some((verifier(new)?, None)),
        (new, before) => Some((verifier(new)?, Some(verifier(before)?))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn fixture() -> (tempfile::TempDir, Users) {
        let temp = tempfile::tempdir().unwrap();
        let state = Dir::open_or_create(&temp.path().join("authsock"), own_uid()).unwrap();
        let users = Users::open(&state).unwrap();
        (temp, users)
    }

    /// Writes into the very file that is there.
    fn spoil(path: &std::path::Path, content: &[u8]) {
        let mut file = std::fs::File::create(path).unwrap();
        std::io::Write::write_all(&mut file, content).unwrap();
    }

    #[test]
    fn a_user_s_token_is_known_to_the_next_daemon_by_its_verifier_alone() {
        let (temp, users) = fixture();
        // Giving a file to oneself needs no right to give.
        let uid = own_uid();
        let verifier = users.mint(uid).unwrap();
        let path = temp.path().join("authsock/users").join(uid.to_string()).join(TOKEN_FILE);
        let meta = path.metadata().unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o600, uid));
        let passage = path.parent().unwrap().metadata().unwrap().mode() & 0o7777;
        assert_eq!(passage, 0o711);
        let token = Token::parse_file(&std::fs::read(&path).unwrap()).unwrap();
        assert!(verifier.is_of(&token));
        // The user spoils the file: the daemon neither reads nor minds.
        spoil(&path, b"nonsense");
        let state = Dir::open(&temp.path().join("authsock"), own_uid()).unwrap();
        let known = Users::open(&state).unwrap().known().unwrap();
        assert_eq!(known.len(), 1);
        assert!(known[0].0 == uid && known[0].1.is_of(&token));
    }

    #[test]
    fn half_of_what_belongs_together_is_nobody_s_token() {
        let (temp, users) = fixture();
        let uid = own_uid();
        users.mint(uid).unwrap();
        let verifier = temp.path().join("authsock/verifiers").join(uid.to_string());
        let good = std::fs::read(&verifier).unwrap();
        for bad in [&good[..good.len() - 1], &good[..40], b"", b"\n\n\n"] {
            spoil(&verifier, bad);
            assert!(users.known().unwrap().is_empty());
        }
        spoil(&verifier, &good);
        assert_eq!(users.known().unwrap().len(), 1);
        let home = temp.path().join("authsock/users").join(uid.to_string());
        std::fs::remove_dir_all(&home).unwrap();
        assert!(users.known().unwrap().is_empty(), "the file is gone, and made anew at the next contact");
        assert!(!users.has_token(uid));
        users.mint(uid).unwrap();
        assert!(users.has_token(uid));
    }
}
