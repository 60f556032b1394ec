//! What installing consists of: an ordered plan of steps, each said in words and harmless when taken twice, carried out or only described.
#![forbid(unsafe_code)]

pub mod launchd;
pub mod systemd;

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::kernel::dir::{self, Dir, Unusable, own_uid};
use crate::kernel::socket::is_dead;
use crate::place::{self, Places, SocketPath};

/// How every file that `install` writes says that it may be replaced and removed.
pub const MARK: &str = "Written by authsock install";
/// Largest file of an init system that is looked at, in bytes.
const FILE_MAX: usize = 1 << 20;
/// How long a command of the init system may take. A unit may take its whole TimeoutStopSec=.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(90);
/// How often it is asked whether something is gone that goes without an event.
const PAUSE: Duration = Duration::from_millis(50);
/// How long that may take.
const GONE_TIMEOUT: Duration = Duration::from_secs(30);

/// For whom something is installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// One user.
    User,
    /// The whole machine.
    System,
}

/// Why nothing is (or not everything was) done. Running the same verb again goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum CannotInstall {
    /// A file or directory is not to be trusted, or cannot be used.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// A file is in the way that somebody else wrote.
    #[error(
        "{path} was not written by `authsock install`, and is not overwritten: move it away and run this again, or enable it yourself",
        path = .0.display()
    )]
    NotOurs(PathBuf),
    /// A unit is masked.
    #[error("{unit} is masked: {tool} unmask {unit}, and run this again")]
    Masked {
        /// The unit.
        unit: &'static str,
        /// The command that masks and unmasks.
        tool: &'static str,
    },
    /// There is no user manager to install into.
    #[error(
        "no user manager answers ({0}): log in properly (su and sudo do not start one), or have root run `loginctl enable-linger` for you"
    )]
    NoUserManager(String),
    /// There is no system manager to install into.
    #[error("systemd does not answer ({0}): this machine was not booted with it")]
    NoSystemManager(String),
    /// This program cannot be what the init system starts.
    #[error(
        "{path} is no program for an init system to start: {problem}. Put authsock where it stays, with `cargo install --path .` or in /usr/local/bin, and run `authsock install` there",
        path = path.display()
    )]
    Program {
        /// The program.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A command of the init system failed.
    #[error("`{words}` {problem}")]
    Command {
        /// The command.
        words: String,
        /// How it ended, and what it said.
        problem: String,
    },
    /// Something did not go away.
    #[error("`{0}` still finds it: it does not end; run this again later")]
    StillThere(String),
    /// A socket's path does not fit.
    #[error(transparent)]
    Path(#[from] place::BadSocketPath),
    /// The user has no home directory.
    #[error("HOME is not set to an absolute path, so there is no place for files of this user")]
    NoHome,
    /// Only root may do this.
    #[error("--system is for root: run it with sudo, or leave --system away to serve this user only")]
    NeedsRoot,
    /// The kernel said no.
    #[error("cannot {doing} {path}: {error}", path = path.display())]
    Io {
        /// What was tried, in words.
        doing: &'static str,
        /// What it was tried on.
        path: PathBuf,
        /// The kernel's answer.
        error: io::Error,
    },
}

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
        /// The directory of the log.
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
        /// Whether it may fail: what it undoes need not be there.
        may_fail: bool,
    },
    /// Waits until a command that looks for something finds it no more.
    AwaitGone(Vec<String>),
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

/// What is to be done, in this order, and what there is to say besides.
#[derive(Debug, Default)]
pub struct Plan {
    /// What to do. Empty if all is as it should be.
    pub steps: Vec<Step>,
    /// What is left as it is, and why.
    pub notes: Vec<String>,
}

impl Step {
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
                let outcome = match std::fs::remove_file(path) {
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
            Step::RemoveIfEmpty(path) => match std::fs::remove_dir(path) {
                Ok(()) => Ok(Outcome::Done),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Outcome::Nothing),
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                    Ok(Outcome::Kept(format!("{} is in use", path.display())))
                }
                Err(error) => Err(failed("remove", path)(error)),
            },
            Step::Run { words, may_fail } => {
                let answer = ask(words)?;
                match answer.is_good || *may_fail {
                    true => Ok(Outcome::Done),
                    false => Err(answer.into_error(words)),
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
/// configuration behind links: they are followed first.
fn open_parent(path: &Path) -> Result<(Dir, String), CannotInstall> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(OsStr::to_str)) else {
        return Err(failed("write", path)(io::ErrorKind::InvalidInput.into()));
    };
    let real = parent.canonicalize().unwrap_or_else(|_| parent.to_path_buf());
    Ok((Dir::open_or_create(&real, own_uid())?, name.to_owned()))
}

/// Removes directories that are empty, the innermost first; others stay, whatever the reason.
fn remove_empty(directories: &[PathBuf]) {
    for path in directories {
        let _ = std::fs::remove_dir(path);
    }
}

fn remove_dead_socket(path: &Path) -> Result<Outcome, CannotInstall> {
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
    if let Some(log) = log
        && remove_tree(log)? == Outcome::Done
    {
        outcome = Outcome::Done;
    }
    Ok(outcome)
}

/// Removes a directory of this user's; of a link, only the link.
fn remove_tree(path: &Path) -> Result<Outcome, CannotInstall> {
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

/// What daemons and clients of a user leave behind, to be removed after the units were stopped. The
/// init system's socket comes last: as long as it is there, no client starts a daemon.
pub fn leftovers(places: &Places, purge: bool) -> Plan {
    let exists = |path: &Path| path.symlink_metadata().is_ok();
    let mut plan = Plan::default();
    let log = places.log().and_then(Path::parent).filter(|log| exists(log));
    if exists(places.state()) || log.is_some() {
        let parents = log.map(|log| log.ancestors().skip(1).take(2).map(Path::to_path_buf).collect());
        plan.steps.push(Step::RemoveState {
            state: places.state().to_path_buf(),
            log: log.map(Path::to_path_buf),
            and_if_empty: parents.unwrap_or_default(),
        });
    }
    if exists(&places.runs()) {
        plan.steps.push(Step::RemoveIfEmpty(places.runs()));
    }
    for socket in [places.ondemand_socket(), places.init_socket()] {
        if exists(&socket) {
            plan.steps.push(Step::RemoveDeadSocket(socket));
        }
    }
    if let Some(configuration) = places.config().and_then(Path::parent).filter(|config| exists(config)) {
        plan.keep_or_purge(configuration, purge);
    }
    plan
}

/// What a daemon of the machine leaves behind.
pub fn system_leftovers(purge: bool) -> Plan {
    let exists = |path: &Path| path.symlink_metadata().is_ok();
    let mut plan = Plan::default();
    let (state, socket) = (Path::new("/run/authsock"), Path::new("/run/authsock.sock"));
    if exists(state) {
        let state = state.to_path_buf();
        plan.steps.push(Step::RemoveState { state, log: None, and_if_empty: Vec::new() });
    }
    if exists(socket) {
        plan.steps.push(Step::RemoveDeadSocket(socket.to_path_buf()));
    }
    let configuration = Path::new("/etc/authsock");
    if exists(configuration) {
        plan.keep_or_purge(configuration, purge);
    }
    plan
}

impl Plan {
    /// The user's own configuration goes only when that was asked for.
    fn keep_or_purge(&mut self, configuration: &Path, purge: bool) {
        if purge {
            // A user may have had no directory for configuration before; /etc stays.
            let parent = configuration.parent().filter(|parent| *parent != Path::new("/etc"));
            let and_if_empty = parent.map(Path::to_path_buf).into_iter().collect();
            self.steps.push(Step::RemoveTree { path: configuration.to_path_buf(), and_if_empty });
        } else {
            let words =
                format!("the configuration {} is kept; --purge removes it too", configuration.display());
            self.notes.push(words);
        }
    }
}

/// A file of the init system that may be there.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    /// `install` wrote it.
    Ours(String),
    /// Somebody else did.
    Foreign,
    /// A link to nothing, which is how a unit is masked.
    Masked,
}

/// Looks whether a file bears the mark in its first three lines (a plist's first are XML's own).
fn look(path: &Path) -> Result<Found, CannotInstall> {
    let Ok(meta) = path.symlink_metadata() else { return Ok(Found::Nothing) };
    if meta.is_symlink() {
        let is_masked = std::fs::read_link(path).is_ok_and(|target| target == Path::new("/dev/null"));
        return Ok(if is_masked { Found::Masked } else { Found::Foreign });
    }
    if !meta.is_file() {
        return Ok(Found::Foreign);
    }
    let text = dir::read_configuration(path, FILE_MAX)?;
    let is_ours = text.lines().take(3).any(|line| line.contains(MARK));
    Ok(if is_ours { Found::Ours(text) } else { Found::Foreign })
}

/// Refuses a program that will not stay, or that others could replace.
///
/// # Errors
/// [`CannotInstall::Program`], with advice.
pub fn examine_program(program: &Path) -> Result<PathBuf, CannotInstall> {
    let refuse = |path: &Path, problem: String| CannotInstall::Program { path: path.to_path_buf(), problem };
    let real = program.canonicalize().map_err(|error| refuse(program, error.to_string()))?;
    // Cargo puts this file into every build directory.
    if let Some(build) = real.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file()) {
        let problem = format!("it lies in the build directory {}, which may be emptied", build.display());
        return Err(refuse(&real, problem));
    }
    dir::refuse_replaceable(&real).map_err(|unusable| refuse(&real, unusable.to_string()))?;
    Ok(real)
}

/// What a command answered.
#[derive(Debug)]
struct Answer {
    is_good: bool,
    status: String,
    stdout: String,
    stderr: String,
}

impl Answer {
    fn into_error(self, words: &[String]) -> CannotInstall {
        let problem = match self.stderr.trim() {
            "" => format!("failed ({})", self.status),
            said => format!("failed ({}): {said}", self.status),
        };
        CannotInstall::Command { words: words.join(" "), problem }
    }
}

/// Runs a command without a shell, and without input, and waits for its end for as long as commands
/// of an init system may take.
fn ask<S: AsRef<OsStr>>(words: &[S]) -> Result<Answer, CannotInstall> {
    let said = || words.iter().map(|word| word.as_ref().to_string_lossy()).collect::<Vec<_>>().join(" ");
    let cannot = |problem: String| CannotInstall::Command { words: said(), problem };
    let Some((program, arguments)) = words.split_first() else {
        return Err(cannot("is no command".into()));
    };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // What it says is read here, so it speaks plainly.
    command.env("LC_ALL", "C.UTF-8").env("SYSTEMD_COLORS", "0");
    let mut child = command.spawn().map_err(|error| cannot(format!("cannot be run: {error}")))?;
    let (sender, receiver) = mpsc::channel();
    let read = |pipe: Option<Box<dyn Read + Send>>| {
        let sender = sender.clone();
        let (into, text) = mpsc::channel();
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut pipe) = pipe {
                let _ = pipe.read_to_end(&mut bytes);
            }
            let _ = into.send(String::from_utf8_lossy(&bytes).into_owned());
            let _ = sender.send(());
        });
        text
    };
    let stdout = read(child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>));
    let stderr = read(child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>));
    let end = Instant::now() + COMMAND_TIMEOUT;
    for _ in 0..2 {
        if receiver.recv_timeout(end.saturating_duration_since(Instant::now())).is_err() {
            let _ = child.kill();
            let _ = child.wait();
            return Err(cannot(format!("did not end within {COMMAND_TIMEOUT:?}")));
        }
    }
    // Both pipes are at their end, so the command is too.
    let status = child.wait().map_err(|error| cannot(error.to_string()))?;
    Ok(Answer {
        is_good: status.success(),
        status: status.to_string(),
        stdout: stdout.recv().unwrap_or_default(),
        stderr: stderr.recv().unwrap_or_default(),
    })
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
        let (state, log) = (temp.path().join("state"), temp.path().join("log/authsock"));
        let step = Step::RemoveState {
            state: state.clone(),
            log: Some(log.clone()),
            and_if_empty: vec![temp.path().join("log")],
        };
        let dir = Dir::open_or_create(&state, own_uid()).unwrap();
        Dir::open_or_create(&log, own_uid()).unwrap();
        for name in [place::LOCK_FILE, place::START_LOCK_FILE] {
            let held = dir.try_lock(name).unwrap().unwrap();
            assert!(matches!(step.carry_out().unwrap(), Outcome::Kept(_)), "{name}");
            assert!(log.exists() && state.exists());
            drop(held);
        }
        assert_eq!(step.carry_out().unwrap(), Outcome::Done);
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
        assert_eq!(step.carry_out().unwrap(), Outcome::Nothing);
    }

    #[test]
    fn what_a_failed_command_said_is_part_of_the_error() {
        let words = |text: &[&str]| text.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let run = |text: &[&str]| Step::Run { words: words(text), may_fail: false }.carry_out();
        assert_eq!(run(&["true"]).unwrap(), Outcome::Done);
        let error = run(&["sh", "-c", "echo out; echo why >&2; exit 7"]).unwrap_err().to_string();
        assert!(error.contains("why") && error.contains('7'), "{error}");
        assert!(run(&["/nonexistent/systemctl"]).unwrap_err().to_string().contains("cannot be run"));
        let tolerated = Step::Run { words: words(&["false"]), may_fail: true };
        assert_eq!(tolerated.carry_out().unwrap(), Outcome::Done);
    }

    #[test]
    fn a_file_without_the_mark_and_a_link_are_not_ours() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("unit");
        assert_eq!(look(&path).unwrap(), Found::Nothing);
        let dir = Dir::open_or_create(temp.path(), own_uid()).unwrap();
        dir.replace("unit", format!("# {MARK}\n[Unit]\n").as_bytes()).unwrap();
        assert!(matches!(look(&path).unwrap(), Found::Ours(_)));
        dir.replace("unit", format!("[Unit]\n\n\n# {MARK}\n").as_bytes()).unwrap();
        assert_eq!(look(&path).unwrap(), Found::Foreign);
        for (target, found) in [("/dev/null", Found::Masked), ("unit", Found::Foreign)] {
            let link = temp.path().join("link");
            let _ = std::fs::remove_file(&link);
            std::os::unix::fs::symlink(target, &link).unwrap();
            assert_eq!(look(&link).unwrap(), found);
        }
    }

    #[test]
    fn a_program_in_a_build_directory_is_refused_with_advice() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open_or_create(&temp.path().join("target/debug"), own_uid()).unwrap();
        dir.replace_with_mode("authsock", b"", 0o755).unwrap();
        let program = dir.path().join("authsock");
        assert_eq!(examine_program(&program).unwrap(), program.canonicalize().unwrap());
        let tag = Dir::open(&temp.path().join("target"), own_uid()).unwrap();
        tag.replace("CACHEDIR.TAG", b"Signature: 8a477f597d28d172789f06886806bc55").unwrap();
        let error = examine_program(&program).unwrap_err().to_string();
        assert!(error.contains("build directory") && error.contains("cargo install"), "{error}");
    }
}
