//! The token that is to follow the one in a file: it lies beside it until the daemon has said that it took it, and is found there when that was cut off.
//!
//! A rotation has three steps: the new token is written beside the old one, the daemon takes what verifies it, and the new
//! file gets the old one's name. Whoever ends between the last two, or never hears the daemon's answer, leaves two tokens
//! of which only the daemon knows which one is good. So neither is removed then: who finds the old one refused tries the
//! new one, and puts it in place if that is the one.

use std::path::{Path, PathBuf};

use super::discover::Source;
use crate::kernel::dir::{Dir, Lock, Unusable, own_uid};
use crate::secret::file::{self, BadTokenFile};
use crate::secret::token::Token;

/// Why the token in a file cannot be followed by another.
#[derive(Debug, thiserror::Error)]
pub enum CannotFollow {
    /// The path names no file.
    #[error("{} cannot be replaced: it names no file", .0.display())]
    NoFile(PathBuf),
    /// Its directory cannot be used.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// The new token cannot be written.
    #[error(transparent)]
    BadTokenFile(#[from] BadTokenFile),
    /// Somebody else is at it.
    #[error("a new token is just being put into {}; try again when that is done", .0.display())]
    UnderWay(PathBuf),
}

/// The place for the successor of the token in a file. Nobody else has it, or changes the file by way of it, for as long
/// as this lives.
#[derive(Debug)]
pub struct Successor {
    dir: Dir,
    name: String,
    next: String,
    _lock: Lock,
}

impl Successor {
    /// Takes the place.
    ///
    /// # Errors
    /// [`CannotFollow`].
    pub fn of(path: &Path) -> Result<Successor, CannotFollow> {
        let (parent, name, next) = parts(path).ok_or_else(|| CannotFollow::NoFile(path.to_path_buf()))?;
        let dir = Dir::open(parent, own_uid())?;
        // The directory itself, so that no file is left beside a token that lies where its user put it.
        let lock = dir.try_lock_itself()?.ok_or_else(|| CannotFollow::UnderWay(path.to_path_buf()))?;
        Ok(Successor { name: name.to_owned(), next, dir, _lock: lock })
    }

    /// Where it lies.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join(&self.next)
    }

    /// What was left of a rotation that was cut off.
    pub fn is_left(&self) -> bool {
        self.dir.has(&self.next)
    }

    /// Writes it, whole and on disk.
    ///
    /// # Errors
    /// [`CannotFollow`].
    pub fn write(&self, token: &Token) -> Result<(), CannotFollow> {
        Ok(file::store(&self.dir, &self.next, token)?)
    }

    /// Gives it the name of the one before.
    ///
    /// # Errors
    /// [`CannotFollow`].
    pub fn put_in_place(&self) -> Result<(), CannotFollow> {
        Ok(self.dir.rename(&self.next, &self.name)?)
    }

    /// Removes it: the daemon did not take it.
    pub fn discard(&self) {
        if let Err(error) = self.dir.remove(&self.next) {
            tracing::debug!("{} stays: {error}", self.path().display());
        }
    }
}

/// The directory of a token's file, its name there, and the name of its successor.
fn parts(path: &Path) -> Option<(&Path, &str, String)> {
    let (parent, name) = (path.parent()?, path.file_name()?.to_str()?);
    Some((parent, name, format!(".{name}-next")))
}

/// The token of a rotation that was cut off, where a token that was refused came from a file.
pub fn left_by(source: &Source) -> Option<Token> {
    let path = file_of(source)?;
    let (parent, _, next) = parts(&path)?;
    file::read_as_client(&parent.join(next)).ok()
}

/// Puts the token of a rotation that was cut off, which has just proven to be the good one, in the place of the one before.
/// Somebody else may do so at the same time; and nothing is lost if it cannot be done now.
pub fn mend(source: &Source, proven: &Token) {
    let Some(path) = file_of(source) else { return };
    let mended = Successor::of(&path).and_then(|successor| {
        // It may be in place already, and another one be left since.
        let is_it = file::read_as_client(&successor.path()).is_ok_and(|left| left == *proven);
        if is_it { successor.put_in_place() } else { Ok(()) }
    });
    match mended {
        Ok(()) => tracing::info!(
            authsock_event = "rotation_completed",
            "a rotation that was cut off is complete: {} has the new token",
            path.display()
        ),
        Err(error) => tracing::debug!("a rotation that was cut off stays so: {error}"),
    }
}

/// The file that a token came from, if it is one that its user may replace.
fn file_of(source: &Source) -> Option<PathBuf> {
    match source {
        Source::Given(path) | Source::File(path) => std::path::absolute(path).ok(),
        // The daemon alone replaces the owner's; a credential is root's; the others are no files.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn fixture() -> (tempfile::TempDir, PathBuf, Token) {
        let temp = tempfile::tempdir().unwrap();
        let token = Token::generate().unwrap();
        let dir = Dir::open_or_create(&temp.path().join("home"), own_uid()).unwrap();
        file::store(&dir, "token", &token).unwrap();
        (temp, dir.path().join("token"), token)
    }

    #[test]
    fn the_successor_lies_beside_its_token_privately_and_takes_its_place() {
        let (_temp, path, before) = fixture();
        let source = Source::File(path.clone());
        let successor = Successor::of(&path).unwrap();
        assert!(!successor.is_left() && left_by(&source).is_none());
        let token = Token::generate().unwrap();
        successor.write(&token).unwrap();
        assert_eq!(successor.path().metadata().unwrap().mode() & 0o7777, 0o600);
        assert!(successor.is_left() && left_by(&source).unwrap() == token);
        assert!(file::read_as_client(&path).unwrap() == before, "until it is put in place");
        successor.put_in_place().unwrap();
        assert!(!successor.is_left() && file::read_as_client(&path).unwrap() == token);
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "no lock is left beside it"
        );
    }

    #[test]
    fn one_at_a_time_has_the_place_and_others_are_told() {
        let (_temp, path, _) = fixture();
        let first = Successor::of(&path).unwrap();
        let words = Successor::of(&path).unwrap_err().to_string();
        assert!(words.contains("token") && words.contains("try again"), "{words}");
        drop(first);
        assert!(Successor::of(&path).is_ok());
    }

    #[test]
    fn only_the_one_that_is_proven_is_put_in_place_and_only_beside_a_user_s_own_file() {
        let (_temp, path, before) = fixture();
        let (good, other) = (Token::generate().unwrap(), Token::generate().unwrap());
        Successor::of(&path).unwrap().write(&good).unwrap();
        for source in [Source::Owner(path.clone()), Source::Credential(path.clone()), Source::Variable] {
            assert!(left_by(&source).is_none());
            mend(&source, &good);
        }
        let source = Source::Given(path.clone());
        mend(&source, &other);
        assert!(file::read_as_client(&path).unwrap() == before);
        mend(&source, &good);
        assert!(file::read_as_client(&path).unwrap() == good && left_by(&source).is_none());
        mend(&source, &good);
        assert!(file::read_as_client(&path).unwrap() == good, "once more changes nothing");
    }

    #[test]
    fn tokens_in_one_directory_have_successors_of_their_own() {
        let (_temp, path, _) = fixture();
        Successor::of(&path).unwrap().write(&Token::generate().unwrap()).unwrap();
        assert!(left_by(&Source::Given(path.with_file_name("another"))).is_none());
        assert!(matches!(Successor::of(Path::new("/")), Err(CannotFollow::NoFile(_))));
    }
}
