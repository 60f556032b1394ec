//! Which token a program shows, and which socket it was told of: one order, in which a bad named source never ends in a stronger credential.

use std::path::{Path, PathBuf};

use crate::kernel::dir::Unusable;
use crate::kernel::fds::{self, Unreadable};
use crate::place::{self, Env, Places, var};
use crate::secret::file::{self, BadTokenFile};
use crate::secret::token::{NotAToken, TOKEN_DIGITS, Token};
use zeroize::Zeroizing;

/// How long a pipe may take to deliver a token, in milliseconds.
const PIPE_TIMEOUT_MS: u16 = 5000;
/// How many characters of a descriptor's number that is none are told.
const VALUE_MAX: usize = 40;

/// Where a token came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file that the caller named.
    Given(PathBuf),
    /// `AUTHSOCK_TOKEN`.
    Variable,
    /// `AUTHSOCK_TOKEN_FD`.
    Descriptor(i32),
    /// `AUTHSOCK_TOKEN_FILE`.
    File(PathBuf),
    /// `$CREDENTIALS_DIRECTORY/authsock.token`.
    Credential(PathBuf),
    /// The owner's own file.
    Owner(PathBuf),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Given(path) => write!(f, "{}", told(path).display()),
            Source::Variable => f.write_str(var::TOKEN),
            Source::Descriptor(number) => write!(f, "{}={number}", var::TOKEN_FD),
            Source::File(path) => write!(f, "{}={}", var::TOKEN_FILE, told(path).display()),
            Source::Credential(path) | Source::Owner(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Source {
    /// Who named it, without the path.
    fn label(&self) -> &'static str {
        match self {
            Source::Given(_) => "--token-file",
            Source::Variable => var::TOKEN,
            Source::Descriptor(_) => var::TOKEN_FD,
            Source::File(_) => var::TOKEN_FILE,
            Source::Credential(_) => var::CREDENTIALS_DIRECTORY,
            Source::Owner(_) => "the owner's token",
        }
    }
}

/// A token and where it came from.
#[derive(Debug)]
pub struct Found {
    /// The token.
    pub token: Token,
    /// Its source.
    pub source: Source,
}

/// Why a program has no token. Each names the source and the way out, and never the token.
#[derive(Debug, thiserror::Error)]
pub enum NoToken {
    /// A named source holds something else.
    #[error("{name}: {problem}; the search ends here, since a named source never gives way to the owner's token", problem = NotAToken)]
    NotAToken {
        /// The source.
        name: Source,
    },
    /// A file that was named cannot be used.
    #[error(
        "{}: {problem}; the search ends here, since a named source never gives way to the owner's token",
        .name.label()
    )]
    BadFile {
        /// Which variable or place named it.
        name: Source,
        /// What is wrong with it.
        problem: BadTokenFile,
    },
    /// A session's file that was named is gone.
    #[error(
        "{}: {path} does not exist: the session that it belonged to is over (its leader has ended); the search ends here, since a named source never gives way to the owner's token",
        .name.label(),
        path = path.display()
    )]
    SessionOver {
        /// Which variable named it.
        name: Source,
        /// The file.
        path: PathBuf,
    },
    /// A descriptor gave nothing, and no file was named beside it.
    #[error("{variable}={value}: {problem}, and {file} is not set; the search ends here", variable = var::TOKEN_FD, file = var::TOKEN_FILE)]
    BadDescriptor {
        /// What the variable holds.
        value: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A socket was named, but no token.
    #[error("{socket} is set, but no token is named: set {file} (authsock run does both). The owner's token is only tried when no such variable is set", socket = var::SOCKET, file = var::TOKEN_FILE)]
    SocketWithoutToken,
    /// The owner's file cannot be used.
    #[error("{0} (the owner's token; {variable} says where it is looked for)", variable = var::XDG_RUNTIME_DIR)]
    Owner(BadTokenFile),
    /// The file that the daemon of the whole machine made for this user cannot be used.
    #[error("{0} (this user's token at the daemon of the whole machine)")]
    AtTheMachine(BadTokenFile),
    /// There is no such file: no daemon has made one yet, or it was removed.
    #[error("there is no token at {}: no daemon has made one there, or it was removed", .0.display())]
    NotYet(PathBuf),
}

/// Whether any variable names a socket or a token. Set-id programs see none of them.
pub fn is_named(env: Env<'_>) -> bool {
    var::NAMED_SOURCES.iter().any(|name| env(name).is_some())
}

/// An environment as a program may trust it: one that runs with more rights than its user reads
/// none of our variables, nor any that says where things lie.
pub fn trusted_env(name: &str) -> Option<std::ffi::OsString> {
    let ours = name.starts_with("AUTHSOCK_") || name.starts_with("XDG_");
    let ours = ours || [var::CREDENTIALS_DIRECTORY, var::HOME].contains(&name);
    if ours && crate::kernel::dir::runs_with_foreign_environment() {
        return None;
    }
    place::process_env(name)
}

/// Finds the token: given; `AUTHSOCK_TOKEN`; `AUTHSOCK_TOKEN_FD`; `AUTHSOCK_TOKEN_FILE`; the
/// service's credential; the owner's file.
///
/// # Errors
/// [`NoToken`]. A named source that yields no valid token ends the search, but for a descriptor
/// that was not inherited, which gives way to the file named beside it.
pub fn token(env: Env<'_>, places: &Places, given: Option<&Path>) -> Result<Found, NoToken> {
    if let Some(path) = given {
        return named_file(Source::Given(path.to_path_buf()), path);
    }
    if let Some(value) = env(var::TOKEN) {
        let value = Zeroizing::new(value.into_encoded_bytes());
        return match Token::parse(&value) {
            Ok(token) => Ok(Found { token, source: Source::Variable }),
            Err(NotAToken) => Err(NoToken::NotAToken { name: Source::Variable }),
        };
    }
    let file = env(var::TOKEN_FILE).map(PathBuf::from);
    if let Some(value) = env(var::TOKEN_FD) {
        match (descriptor(&value.to_string_lossy()), &file) {
            (Ok(found), _) => return Ok(found),
            (Err(_), Some(_)) => {}
            (Err(problem), None) => {
                let value = place::showable(&value.to_string_lossy()).chars().take(VALUE_MAX).collect();
                return Err(NoToken::BadDescriptor { value, problem });
            }
        }
    }
    if let Some(path) = file {
        return match named_file(Source::File(path.clone()), &path) {
            // Only `run` makes and removes files there.
            Err(NoToken::BadFile { name, problem: BadTokenFile::Unusable(unusable) })
                if unusable.is_missing() && path.starts_with(places.runs()) =>
            {
                Err(NoToken::SessionOver { name, path })
            }
            done => done,
        };
    }
    if let Some(dir) = env(var::CREDENTIALS_DIRECTORY) {
        // Other services have such a directory too: only a credential of our name counts.
        let path = PathBuf::from(dir).join(place::CREDENTIAL_FILE);
        match named_file(Source::Credential(path.clone()), &path) {
            Err(NoToken::BadFile { problem: BadTokenFile::Unusable(unusable), .. })
                if unusable.is_missing() => {}
            done => return done,
        }
    }
    if env(var::SOCKET).is_some() {
        return Err(NoToken::SocketWithoutToken);
    }
    owner(places)
}

/// The owner's token.
///
/// # Errors
/// [`NoToken::NotYet`] before the first activation.
pub fn owner(places: &Places) -> Result<Found, NoToken> {
    let path = places.owner_token();
    match file::read_as_client(&path) {
        Ok(token) => Ok(Found { token, source: Source::Owner(path) }),
        Err(BadTokenFile::Unusable(unusable)) if unusable.is_missing() => Err(NoToken::NotYet(path)),
        Err(problem) if places.is_system() => Err(NoToken::AtTheMachine(problem)),
        Err(problem) => Err(NoToken::Owner(problem)),
    }
}

/// Has no child inherit the descriptor that `AUTHSOCK_TOKEN_FD` names: what it holds stands for this process.
pub fn keep_descriptor_from_children(env: Env<'_>) {
    let number = env(var::TOKEN_FD).and_then(|value| value.to_str()?.parse::<i32>().ok());
    // Standard input, output and error hold no token for us, and are everybody's.
    if let Some(number) = number.filter(|number| *number > 2)
        && let Ok(fd) = fds::borrow_number(number)
    {
        let _ = fds::set_cloexec(fd);
    }
}

fn named_file(name: Source, path: &Path) -> Result<Found, NoToken> {
    match file::read_as_client(path) {
        Ok(token) => Ok(Found { token, source: name }),
        Err(problem) => {
            // Whoever put the token itself there must not read it in a log.
            let name = match name {
                Source::Given(path) => Source::Given(told(&path)),
                Source::File(path) => Source::File(told(&path)),
                name => name,
            };
            let problem = match problem {
                BadTokenFile::Unusable(Unusable { path, problem }) => {
                    BadTokenFile::Unusable(Unusable { path: told(&path), problem })
                }
                BadTokenFile::NotAToken(path) => BadTokenFile::NotAToken(told(&path)),
                problem => problem,
            };
            Err(NoToken::BadFile { name, problem })
        }
    }
}

/// A path that somebody named, as it may be told.
fn told(path: &Path) -> PathBuf {
    match place::showable(&path.to_string_lossy()) {
        shown if shown == path.to_string_lossy() => path.to_path_buf(),
        hidden => hidden.into(),
    }
}

fn descriptor(value: &str) -> Result<Found, String> {
    let number: i32 = value.parse().map_err(|_| "not a descriptor's number".to_owned())?;
    let read = fds::read_inherited(number, TOKEN_DIGITS + 3, PIPE_TIMEOUT_MS);
    let bytes = Zeroizing::new(read.map_err(|error: Unreadable| error.to_string())?);
    let token = Token::parse_file(&bytes).map_err(|error| format!("descriptor {number} holds {error}"))?;
    Ok(Found { token, source: Source::Descriptor(number) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::dir::{Dir, own_uid};
    use std::ffi::OsString;
    use std::os::fd::AsRawFd;

    struct House {
        _temp: tempfile::TempDir,
        dir: Dir,
        places: Places,
        #[cfg(target_os = "linux")]
        owner: Token,
    }

    fn house() -> House {
        let temp = tempfile::tempdir().unwrap();
        let runtime = temp.path().join("run");
        let env = |name: &str| (name == var::XDG_RUNTIME_DIR).then(|| OsString::from(&runtime));
        let places = Places::of_user(&env, own_uid(), |_| false, None);
        let state = Dir::open_or_create(&runtime.join("authsock"), own_uid()).unwrap();
        let (owner, _) = file::open_or_mint(&state, place::TOKEN_FILE).unwrap();
        let dir = Dir::open_or_create(&temp.path().join("own"), own_uid()).unwrap();
        #[cfg(not(target_os = "linux"))]
        drop(owner);
        House {
            _temp: temp,
            dir,
            places,
            #[cfg(target_os = "linux")]
            owner,
        }
    }

    impl House {
        fn put(&self, name: &str, content: &str) -> String {
            self.dir.replace(name, content.as_bytes()).unwrap();
            self.dir.path().join(name).to_str().unwrap().to_owned()
        }

        fn search(&self, pairs: &[(&str, &str)]) -> Result<Found, NoToken> {
            let env = |name: &str| {
                pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
            };
            token(&env, &self.places, None)
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_owner_s_token_is_found_only_when_nothing_is_named() {
        let house = house();
        let found = house.search(&[]).unwrap();
        assert!(found.token == house.owner);
        assert!(matches!(house.search(&[(var::SOCKET, "/s")]), Err(NoToken::SocketWithoutToken)));
        assert!(house.search(&[(var::LOG, "debug")]).is_ok(), "logging names no source");
    }

    #[test]
    fn a_bad_named_source_never_ends_in_the_owner_s_token() {
        let house = house();
        let good = house.put("good", &"ab".repeat(32));
        let bad = house.put("bad", "nonsense");
        let missing = house.dir.path().join("missing");
        let missing = missing.to_str().unwrap();
        for pairs in [
            &[(var::TOKEN, "")][..],
            &[(var::TOKEN, "short")],
            &[(var::TOKEN, "short"), (var::TOKEN_FILE, &good)],
            &[(var::TOKEN_FILE, missing)],
            &[(var::TOKEN_FILE, &bad)],
            &[(var::TOKEN_FILE, "")],
            &[(var::TOKEN_FILE, "/proc/self/mem")],
            &[(var::TOKEN_FD, "9999")],
            &[(var::TOKEN_FD, "x")],
            &[(var::TOKEN_FD, "0")],
            &[(var::TOKEN_FD, "9999"), (var::TOKEN_FILE, missing)],
        ] {
            let error = house.search(pairs).unwrap_err();
            assert!(!matches!(error, NoToken::Owner(_) | NoToken::NotYet(_)), "{pairs:?}: {error}");
        }
    }

    #[test]
    fn a_descriptor_that_was_not_inherited_gives_way_to_the_file_beside_it() {
        let house = house();
        let good = house.put("good", &"ab".repeat(32));
        for lost in ["9999", "x", "1"] {
            let found = house.search(&[(var::TOKEN_FD, lost), (var::TOKEN_FILE, &good)]).unwrap();
            assert!(matches!(found.source, Source::File(_)));
        }
        let file = std::fs::File::open(&good).unwrap();
        let number = file.as_raw_fd().to_string();
        for _ in 0..2 {
            let found = house.search(&[(var::TOKEN_FD, &number)]).unwrap();
            assert!(matches!(found.source, Source::Descriptor(_)), "a shared offset does not matter");
        }
    }

    #[test]
    fn a_credential_counts_only_if_it_has_our_name() {
        let house = house();
        let dir = house.dir.path().to_str().unwrap().to_owned();
        let found = house.search(&[(var::CREDENTIALS_DIRECTORY, &dir)]).unwrap();
        assert!(matches!(found.source, Source::Owner(_)), "a foreign service's directory");
        house.put(place::CREDENTIAL_FILE, "nonsense");
        assert!(matches!(house.search(&[(var::CREDENTIALS_DIRECTORY, &dir)]), Err(NoToken::BadFile { .. })));
        house.put(place::CREDENTIAL_FILE, &"cd".repeat(32));
        let found = house.search(&[(var::CREDENTIALS_DIRECTORY, &dir)]).unwrap();
        assert!(matches!(found.source, Source::Credential(_)));
    }

    #[test]
    fn errors_name_the_source_and_never_the_secret() {
        let house = house();
        let almost = format!("{}zz", "5ec2e7".repeat(10));
        let bad = house.put("bad", &almost);
        for pairs in [&[(var::TOKEN, almost.as_str())][..], &[(var::TOKEN_FILE, &bad)]] {
            let error = house.search(pairs).unwrap_err();
            let words = format!("{error} {error:?}");
            assert!(!words.contains("5ec2e7"), "{words}");
            assert!(words.contains(pairs[0].0), "{words}");
        }
    }

    #[test]
    fn a_token_where_its_file_or_its_descriptor_belongs_is_not_repeated() {
        let house = house();
        let token = "5ec2e7aa".repeat(8);
        let in_a_directory = format!("{}/{token}", house.dir.path().display());
        for (name, value) in
            [(var::TOKEN_FILE, &token), (var::TOKEN_FD, &token), (var::TOKEN_FILE, &in_a_directory)]
        {
            let error = house.search(&[(name, value)]).unwrap_err();
            let words = format!("{error} {error:?}");
            assert!(!words.contains("5ec2e7") && words.contains("looks like a token"), "{words}");
            assert!(words.contains(name), "{words}");
        }
        let words = place::SocketPath::new(&token).unwrap_err().to_string();
        assert!(!words.contains("5ec2e7") && words.contains("looks like a token"), "{words}");
    }
}
