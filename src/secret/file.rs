//! The file a token lives in: created once, read with suspicion, replaced whole.
//!
//! Guarantees: the file is never visible half written or wider than 0600; of daemons that race, all
//! end with one token; only a missing file, or one whose content is no token, is ever replaced.

use std::path::Path;

use zeroize::Zeroizing;

use super::random::NoRandomness;
use super::token::{NotAToken, TOKEN_DIGITS, Token};
use crate::kernel::dir::{Created, Dir, Unusable, own_uid, read_private_path};

/// Most bytes of a token file that are looked at: the digits and one line end.
const FILE_MAX: usize = TOKEN_DIGITS + 2;

/// Why a token file gave no token.
#[derive(Debug, thiserror::Error)]
pub enum BadTokenFile {
    /// The file, or the directory it lies in, is not to be trusted or cannot be used.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// It can be read but holds something else.
    #[error("{path}: {problem}", path = .0.display(), problem = NotAToken)]
    NotAToken(std::path::PathBuf),
    /// A new token was needed and could not be made.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

/// How a daemon came by its token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It was there.
    Kept,
    /// There was none: first activation.
    Minted,
    /// What was there was no token: every client's credential just became invalid.
    Remade,
    /// The service's credential says so, and the file was made to say the same.
    Installed,
}

/// Reads the daemon's token, or makes it where there is none.
///
/// # Errors
/// [`BadTokenFile::Unusable`] names the path and the remedy; nothing was changed then.
pub fn open_or_mint(dir: &Dir, name: &str) -> Result<(Token, Origin), BadTokenFile> {
    match read(dir, name) {
        Ok(token) => return Ok((token, Origin::Kept)),
        Err(BadTokenFile::NotAToken(_)) => {
            let token = replace(dir, name)?;
            return Ok((token, Origin::Remade));
        }
        Err(BadTokenFile::Unusable(unusable)) if unusable.is_missing() => {}
        Err(error) => return Err(error),
    }
    let token = Token::generate()?;
    match dir.create_once(name, token.reveal().as_bytes())? {
        Created::Ours => Ok((token, Origin::Minted)),
        Created::Theirs => Ok((read(dir, name)?, Origin::Kept)),
    }
}

/// Takes the daemon's token from a credential that its service was given, and has the daemon's own
/// file, where clients look, say the same.
///
/// # Errors
/// [`BadTokenFile`], naming the credential or the file; nothing was changed then.
pub fn install_credential(dir: &Dir, name: &str, credential: &Path) -> Result<(Token, Origin), BadTokenFile> {
    let token = read_as_client(credential)?;
    match read(dir, name) {
        Ok(there) if there == token => return Ok((token, Origin::Kept)),
        Ok(_) | Err(BadTokenFile::NotAToken(_)) => {}
        Err(BadTokenFile::Unusable(unusable)) if unusable.is_missing() => {}
        // Whatever made it untrustworthy would be hidden.
        Err(error) => return Err(error),
    }
    store(dir, name, &token)?;
    Ok((token, Origin::Installed))
}

/// Puts a new token in the place of the old one: on disk before anybody knows of it.
///
/// # Errors
/// [`BadTokenFile`]; the old token still stands then.
pub fn replace(dir: &Dir, name: &str) -> Result<Token, BadTokenFile> {
    let token = Token::generate()?;
    dir.replace(name, token.reveal().as_bytes())?;
    Ok(token)
}

/// Writes a given token where there was none.
///
/// # Errors
/// [`BadTokenFile`].
pub fn store(dir: &Dir, name: &str, token: &Token) -> Result<(), BadTokenFile> {
    Ok(dir.replace(name, token.reveal().as_bytes())?)
}

fn read(dir: &Dir, name: &str) -> Result<Token, BadTokenFile> {
    // A file that is too long is no token; only the kernel's and the owner's doing is unusable.
    let bytes = match dir.read_private(name, own_uid(), FILE_MAX) {
        Err(Unusable { path, problem: crate::kernel::dir::Problem::TooLarge { .. } }) => {
            return Err(BadTokenFile::NotAToken(path));
        }
        read => Zeroizing::new(read?),
    };
    Token::parse_file(&bytes).map_err(|NotAToken| BadTokenFile::NotAToken(dir.path().join(name)))
}

/// Reads a token file as a client does, wherever it lies: ours or root's, 0600 or narrower.
///
/// # Errors
/// [`BadTokenFile`]; nothing is ever made or changed.
pub fn read_as_client(path: &Path) -> Result<Token, BadTokenFile> {
    let bytes = Zeroizing::new(read_private_path(path, &[own_uid(), 0], FILE_MAX)?);
    Token::parse_file(&bytes).map_err(|NotAToken| BadTokenFile::NotAToken(path.to_path_buf()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::dir::Problem;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    const NAME: &str = "token";

    fn fixture() -> (tempfile::TempDir, Dir) {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open_or_create(&temp.path().join("authsock"), own_uid()).unwrap();
        (temp, dir)
    }

    fn put(dir: &Dir, content: &[u8]) {
        dir.replace(NAME, content).unwrap();
    }

    #[test]
    fn the_first_activation_mints_and_every_later_one_keeps() {
        let (_temp, dir) = fixture();
        let (first, origin) = open_or_mint(&dir, NAME).unwrap();
        assert_eq!(origin, Origin::Minted);
        let meta = dir.path().join(NAME).metadata().unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.size()), (0o600, TOKEN_DIGITS as u64));
        let (second, origin) = open_or_mint(&dir, NAME).unwrap();
        assert_eq!(origin, Origin::Kept);
        assert!(first == second);
        assert_eq!(dir.path().join(NAME).metadata().unwrap().ino(), meta.ino());
    }

    #[test]
    fn fifty_first_activations_at_once_end_with_one_token_and_no_reader_sees_half() {
        let (_temp, dir) = fixture();
        let barrier = std::sync::Barrier::new(51);
        let tokens: Vec<Token> = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                barrier.wait();
                let mut seen = 0;
                while seen < 200 {
                    match std::fs::read(dir.path().join(NAME)) {
                        Ok(bytes) => {
                            assert_eq!(bytes.len(), TOKEN_DIGITS);
                            seen += 1;
                        }
                        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
                    }
                }
            });
            let makers: Vec<_> = (0..50)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        open_or_mint(&dir, NAME).unwrap().0
                    })
                })
                .collect();
            let tokens = makers.into_iter().map(|maker| maker.join().unwrap()).collect();
            reader.join().unwrap();
            tokens
        });
        assert!(tokens.iter().all(|token| *token == tokens[0]));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_line_end_and_upper_case_are_kept_as_they_are() {
        let (_temp, dir) = fixture();
        for content in [format!("{}\n", "ab".repeat(32)), format!("{}\r\n", "AB".repeat(32))] {
            put(&dir, content.as_bytes());
            let (token, origin) = open_or_mint(&dir, NAME).unwrap();
            assert_eq!(origin, Origin::Kept);
            assert_eq!(*token.reveal(), "ab".repeat(32));
            assert_eq!(std::fs::read(dir.path().join(NAME)).unwrap(), content.as_bytes(), "untouched");
        }
    }

    #[test]
    fn what_is_no_token_is_replaced_and_that_is_told() {
        let (_temp, dir) = fixture();
        for content in ["", "\n", &"a".repeat(63), &"a".repeat(65), &"g".repeat(64), &"a".repeat(5000)] {
            put(&dir, content.as_bytes());
            let (_, origin) = open_or_mint(&dir, NAME).unwrap();
            assert_eq!(origin, Origin::Remade, "{}", content.len());
            assert_eq!(open_or_mint(&dir, NAME).unwrap().1, Origin::Kept);
        }
    }

    #[test]
    fn what_cannot_be_trusted_is_left_alone_and_named() {
        let (_temp, dir) = fixture();
        put(&dir, "ab".repeat(32).as_bytes());
        let path = dir.path().join(NAME);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        let Err(BadTokenFile::Unusable(unusable)) = open_or_mint(&dir, NAME) else { panic!() };
        assert!(matches!(unusable.problem, Problem::TooWide { mode: 0o644, .. }));
        assert!(unusable.to_string().contains(&*path.to_string_lossy()));
        assert_eq!(std::fs::read(&path).unwrap(), "ab".repeat(32).as_bytes());
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o644, "nothing is repaired in silence");
    }

    #[test]
    fn errors_and_debug_never_show_what_the_file_holds() {
        let (_temp, dir) = fixture();
        let almost = "5ec2e7".repeat(10);
        put(&dir, almost.as_bytes());
        let error = read(&dir, NAME).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("5ec2e7"));
    }

    #[test]
    fn a_client_never_makes_a_file() {
        let (_temp, dir) = fixture();
        let path = dir.path().join(NAME);
        let Err(BadTokenFile::Unusable(unusable)) = read_as_client(&path) else { panic!() };
        assert!(unusable.is_missing());
        assert!(!path.exists());
        put(&dir, format!("{}\n", "AB".repeat(32)).as_bytes());
        assert_eq!(*read_as_client(&path).unwrap().reveal(), "ab".repeat(32));
    }
}
