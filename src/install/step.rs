//! The steps that installing consists of: each said in words, harmless when taken twice, and carried out here.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::CannotInstall;
use super::command::ask;
use crate::kernel::dir::{Dir, own_uid};
use crate::kernel::path::{settle, settle_name};
use crate::kernel::socket::is_dead;
use crate::place::{self, SocketPath};

/// How often it is asked whether something is gone that goes without an event.
const PAUSE: Duration = Duration::from_millis(50);
/// How long that may take.
const GONE_TIMEOUT: Duration = Duration::from_secs(30);

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl Fn(io::Error) -> CannotInstall + 'a {
    move |error| CannotInstall::Io { doing, path: path.to_path_buf(), error }
}

/// One thing to do. Each may be done twice.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Writes a file whole, in the place of whatever has its name; missing directories are made.
    Write {
        /// The file.
        path: PathBuf,
        /// What it will hold.
        text: String,
        /// Its permission bits.
        mode: u32,
    },
    /// Makes a private directory.
    MakeDirectory(PathBuf),
    /// Removes a file or link, and those of some directories that are empty then.
    Remove {
        /// The file.
        path: PathBuf,
        /// The directories, the innermost first.
        and_if_empty: Vec<PathBuf>,
    },
    /// Removes a socket's file unless somebody listens there.
    RemoveDeadSocket(PathBuf),
    /// Removes a daemon's state and its log, unless one runs.
    RemoveState {
        /// The state directory: token, sessions, locks.
        state: PathBuf,
        /// The log's file; the one before it goes with it, and their directory if nothing else is in it.
        log: Option<PathBuf>,
        /// Directories to remove if they are empty then, the innermost first.
        and_if_empty: Vec<PathBuf>,
    },
    /// Removes a directory with everything in it.
    RemoveTree {
        /// The directory.
        path: PathBuf,
        /// Directories to remove if they are empty then, the innermost first.
        and_if_empty: Vec<PathBuf>,
    },
    /// Removes a directory unless something is in it.
    RemoveIfEmpty(PathBuf),
    /// Runs a command.
    Run {
        /// The command and its arguments.
        words: Vec<String>,
        /// What of it may fail.
        forgives: Forgives,
    },
    /// Waits until a command that looks for something finds it no more.
    AwaitGone(Vec<String>),
}

/// What is no failure of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forgives {
    /// All is.
    Nothing,
    /// That what it is about is not there: exit status 5 (systemctl(1)).
    Absence,
    /// Whatever it says: what it undoes need not be there.
    Anything,
}

/// What became of a step.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// There was nothing to do.
    Nothing,
    /// Something is in use and was left as it is, for this reason.
    Kept(String),
}

impl fmt::Display for Step {
    /// In words, as an instruction.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Write { path, mode, .. } => write!(f, "write {} (mode {mode:04o})", path.display()),
            Step::MakeDirectory(path) => write!(f, "make {} (mode 0700)", path.display()),
            Step::Remove { path, .. } => write!(f, "remove {}", path.display()),
            Step::RemoveDeadSocket(path) => write!(f, "remove {} if nobody listens there", path.display()),
            Step::RemoveState { state, log, .. } => {
                write!(f, "remove {}", state.display())?;
                if let Some(log) = log {
                    write!(f, " and {}", log.display())?;
                }
                write!(f, " if no daemon uses it")
            }
            Step::RemoveTree { path, .. } => write!(f, "remove {} with everything in it", path.display()),
            Step::RemoveIfEmpty(path) => write!(f, "remove {} if it is empty", path.display()),
            Step::Run { words, .. } => write!(f, "run {}", words.join(" ")),
            Step::AwaitGone(words) => write!(f, "wait until `{}` finds nothing", words.join(" ")),
        }
    }
}

impl Step {
    /// In words, as what was done.
    pub fn done(&self) -> String {
        match self {
            Step::RemoveDeadSocket(path) | Step::RemoveIfEmpty(path) => format!("remove {}", path.display()),
            Step::RemoveState { state, log: None, .. } => format!("remove {}", state.display()),
            Step::RemoveState { state, log: Some(log), .. } => {
                format!("remove {} and {}", state.display(), log.display())
            }
            other => other.to_string(),
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// [`CannotInstall`]; what was to be changed is then as it was.
    pub fn carry_out(&self) -> Result<Outcome, CannotInstall> {
        match self {
            Step::Write { path, text, mode } => {
                let (dir, name) = open_parent(path)?;
                dir.replace_with_mode(&name, text.as_bytes(), *mode)?;
                Ok(Outcome::Done)
            }
            Step::MakeDirectory(path) => {
                Dir::open_or_create(path, own_uid())?;
                Ok(Outcome::Done)
            }
            Step::Remove { path, and_if_empty } => {
                let outcome = match std::fs::remove_file(settle_name(path)?) {
                    Ok(()) => Outcome::Done,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Outcome::Nothing,
                    Err(error) => return Err(failed("remove", path)(error)),
                };
                remove_empty(and_if_empty);
                Ok(outcome)
            }
            Step::RemoveDeadSocket(path) => remove_dead_socket(path),
            Step::RemoveState { state, log, and_if_empty } => {
                let outcome = remove_state(state, log.as_deref())?;
                remove_empty(and_if_empty);
                Ok(outcome)
            }
            Step::RemoveTree { path, and_if_empty } => {
                let outcome = remove_tree(path)?;
                remove_empty(and_if_empty);
                Ok(outcome)
            }
            Step::RemoveIfEmpty(path) => match std::fs::remove_dir(settle_name(path)?) {
                Ok(()) => Ok(Outcome::Done),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Outcome::Nothing),
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                    Ok(Outcome::Kept(format!("{} is in use", path.display())))
                }
                Err(error) => Err(failed("remove", path)(error)),
            },
            Step::Run { words, forgives } => {
                const NOT_THERE: i32 = 5;
                let answer = ask(words)?;
                match forgives {
                    _ if answer.is_good => Ok(Outcome::Done),
                    Forgives::Anything => Ok(Outcome::Done),
                    Forgives::Absence if answer.code == Some(NOT_THERE) => Ok(Outcome::Done),
                    Forgives::Absence | Forgives::Nothing => Err(answer.into_error(words)),
                }
            }
            Step::AwaitGone(words) => {
                let end = Instant::now() + GONE_TIMEOUT;
                while ask(words)?.is_good {
                    if Instant::now() >= end {
                        return Err(CannotInstall::StillThere(words.join(" ")));
                    }
                    std::thread::sleep(PAUSE);
                }
                Ok(Outcome::Done)
            }
        }
    }
}

/// The directory of a file, made if it is missing, and the file's name. People keep their
/// configuration behind links, which are followed as far as they are their own.
fn open_parent(path: &Path) -> Result<(Dir, String), CannotInstall> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(OsStr::to_str)) else {
        return Err(failed("write", path)(io::ErrorKind::InvalidInput.into()));
    };
    Ok((Dir::open_or_create(&settle(parent)?, own_uid())?, name.to_owned()))
}

/// Removes directories that are empty, the innermost first; others stay, whatever the reason.
fn remove_empty(directories: &[PathBuf]) {
    for path in directories.iter().filter_map(|path| settle_name(path).ok()) {
        let _ = std::fs::remove_dir(path);
    }
}

fn remove_dead_socket(path: &Path) -> Result<Outcome, CannotInstall> {
    let path = &settle_name(path)?;
    let dead = match is_dead(&SocketPath::new(path)?) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Outcome::Nothing),
        answer => answer.map_err(failed("look at", path))?,
    };
    if !dead {
        let words = format!("{}: a daemon listens there, or it is no socket", path.display());
        return Ok(Outcome::Kept(words));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(Outcome::Done),
    }
}

/// Removes state and log while no daemon can start on them: both locks are held.
fn remove_state(state: &Path, log: Option<&Path>) -> Result<Outcome, CannotInstall> {
    let state = &settle_name(state)?;
    let mut outcome = Outcome::Nothing;
    match Dir::open(state, own_uid()) {
        Ok(dir) => {
            let starters = dir.try_lock(place::START_LOCK_FILE)?;
            let holders = dir.try_lock(place::LOCK_FILE)?;
            if starters.is_none() || holders.is_none() {
                let words = format!(
                    "{}: a daemon that a client started uses it; it ends by itself when idle, and then this can be run again",
                    state.display()
                );
                return Ok(Outcome::Kept(words));
            }
            std::fs::remove_dir_all(state).map_err(failed("remove", state))?;
            outcome = Outcome::Done;
        }
        Err(unusable) if unusable.is_missing() => {}
        Err(unusable) => return Err(unusable.into()),
    }
    if let Some(log) = log {
        // What else somebody keeps beside it stays.
        let log = settle_name(log)?;
        let mut old = log.clone().into_os_string();
        old.push(".old");
        for path in [log.clone(), old.into()] {
            match std::fs::remove_file(&path) {
                Ok(()) => outcome = Outcome::Done,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("remove", &path)(error)),
            }
        }
        remove_empty(log.parent().map(Path::to_path_buf).as_slice());
    }
    Ok(outcome)
}

/// Removes a directory of this user's; of a link, only the link.
fn remove_tree(path: &Path) -> Result<Outcome, CannotInstall> {
    let path = &settle_name(path)?;
    let removed = match path.symlink_metadata() {
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Ok(()) => Ok(Outcome::Done),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Outcome::Nothing),
        Err(error) => Err(failed("remove", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn each_step_may_be_taken_twice() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        let path = root.join("a/b/unit");
        let write = Step::Write { path: path.clone(), text: "x".into(), mode: 0o644 };
        let remove =
            Step::Remove { path: path.clone(), and_if_empty: vec![root.join("a/b"), root.join("a")] };
        for _ in 0..2 {
            assert_eq!(write.carry_out().unwrap(), Outcome::Done);
            assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o644);
        }
        assert_eq!(remove.carry_out().unwrap(), Outcome::Done);
        assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0, "the empty directories went with it");
        assert_eq!(remove.carry_out().unwrap(), Outcome::Nothing);
    }

    #[test]
    fn a_socket_is_removed_only_if_nobody_listens() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::set_permissions(temp.path(), PermissionsExt::from_mode(0o700)).unwrap();
        let path = temp.path().join("s");
        let step = Step::RemoveDeadSocket(path.clone());
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        assert!(matches!(step.carry_out().unwrap(), Outcome::Kept(_)));
        drop(listener);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
        assert_eq!(step.carry_out().unwrap(), Outcome::Done);
        let plain = Dir::open(temp.path(), own_uid()).unwrap();
        plain.replace("s", b"a file, no socket").unwrap();
        assert!(matches!(step.carry_out().unwrap(), Outcome::Kept(_)));
        plain.remove("s").unwrap();
        assert_eq!(step.carry_out().unwrap(), Outcome::Nothing);
    }

    #[test]
    fn state_that_a_daemon_uses_stays_with_its_log() {
        let temp = tempfile::tempdir().unwrap();
        let (state, log) = (temp.path().join("state"), temp.path().join("log/authsock/log"));
        let step = Step::RemoveState {
            state: state.clone(),
            log: Some(log.clone()),
            and_if_empty: vec![temp.path().join("log")],
        };
        let dir = Dir::open_or_create(&state, own_uid()).unwrap();
        let logs = Dir::open_or_create(&temp.path().join("log/authsock"), own_uid()).unwrap();
        for name in ["log", "log.old", "mine"] {
            logs.replace(name, b"x").unwrap();
        }
        for name in [place::LOCK_FILE, place::START_LOCK_FILE] {
            let held = dir.try_lock(name).unwrap().unwrap();
            assert!(matches!(step.carry_out().unwrap(), Outcome::Kept(_)), "{name}");
            assert!(log.exists() && state.exists());
            drop(held);
        }
        // A program that another test is just starting has what we held until its exec.
        let end = Instant::now() + GONE_TIMEOUT;
        let outcome = loop {
            match step.carry_out().unwrap() {
                Outcome::Kept(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(1)),
                outcome => break outcome,
            }
        };
        assert_eq!(outcome, Outcome::Done);
        assert!(!state.exists());
        assert_eq!(logs.names().unwrap(), ["mine"], "what somebody else keeps there stays");
        logs.remove("mine").unwrap();
        assert_eq!(step.carry_out().unwrap(), Outcome::Nothing);
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_failed_command_said_is_part_of_the_error() {
        let words = |text: &[&str]| text.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let run = |text: &[&str]| Step::Run { words: words(text), forgives: Forgives::Nothing }.carry_out();
        assert_eq!(run(&["true"]).unwrap(), Outcome::Done);
        let error = run(&["sh", "-c", "echo out; echo why >&2; exit 7"]).unwrap_err().to_string();
        assert!(error.contains("why") && error.contains('7'), "{error}");
        assert!(run(&["/nonexistent/systemctl"]).unwrap_err().to_string().contains("cannot be run"));
        for (status, forgives, is_forgiven) in [
            ("1", Forgives::Anything, true),
            ("1", Forgives::Absence, false),
            ("5", Forgives::Absence, true),
            ("5", Forgives::Nothing, false),
        ] {
            let step = Step::Run { words: words(&["sh", "-c", &format!("exit {status}")]), forgives };
            assert_eq!(step.carry_out().is_ok(), is_forgiven, "{status} {forgives:?}");
        }
    }
}
