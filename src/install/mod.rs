//! What an installation consists of: steps that are planned from what is there, and carried out or only told.
#![forbid(unsafe_code)]

pub mod systemd;

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::kernel::dir::{Dir, Unusable, own_uid};

/// Longest time that a command of the init system may take; systemd's own jobs end within 90 s.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);
/// How long something that a command only began may take.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(20);
/// How often it is looked at; its init system gives no event.
const SETTLE_PAUSE: Duration = Duration::from_millis(50);

/// Whose installation it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// One user's own.
    User,
    /// The whole machine's.
    System,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A file that all may read is written, whole.
    Write {
        /// Where.
        path: PathBuf,
        /// What is in it.
        text: String,
    },
    /// A file goes.
    Remove(PathBuf),
    /// A directory goes, with what is in it.
    RemoveTree(PathBuf),
    /// A directory goes if it is empty.
    RemoveIfEmpty(PathBuf),
    /// A command is run and must succeed.
    Run(Vec<OsString>),
    /// A command is run; that it fails is fine.
    Try(Vec<OsString>),
    /// Waits until a command fails: what it asks for is gone.
    UntilFails(Vec<OsString>),
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::Write { path, .. } => write!(f, "write {}", path.display()),
            Step::Remove(path) => write!(f, "remove {}", path.display()),
            Step::RemoveTree(path) => write!(f, "remove {} and what is in it", path.display()),
            Step::RemoveIfEmpty(path) => write!(f, "remove {} if it is empty", path.display()),
            Step::Run(words) | Step::Try(words) => write!(f, "run {}", words_of(words)),
            Step::UntilFails(words) => write!(f, "wait until this finds nothing: {}", words_of(words)),
        }
    }
}

fn words_of(words: &[OsString]) -> String {
    words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// A command line.
pub(crate) fn command<const N: usize>(words: [&str; N]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

/// Why an installation cannot be made, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum NotInstalled {
    /// A file of somebody else lies where ours would.
    #[error(
        "{path} was not written by `authsock install` (its first line does not say so): move it away, or keep it and enable it with systemctl",
        path = .0.display()
    )]
    NotOurs(PathBuf),
    /// A file or directory cannot be used.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// The program must not be started by an init system.
    #[error(
        "the program {problem}: install it where nobody else can change it (`cargo install --path .`, or /usr/local/bin), and run that one's `install`"
    )]
    Program {
        /// What is wrong with it.
        problem: String,
    },
    /// Only root installs for all.
    #[error("--system needs root: `sudo authsock {0} --system`; without --system it is for you alone")]
    NeedsRoot(&'static str),
    /// There is no init system to talk to.
    #[error("{0}")]
    NoManager(String),
    /// A unit was put out of use on purpose.
    #[error("{unit} is masked: `systemctl {flag}unmask {unit}` first, if it shall be used")]
    Masked {
        /// The unit.
        unit: &'static str,
        /// `--user `, or nothing.
        flag: &'static str,
    },
    /// A command failed.
    #[error("`{command}` failed: {words}")]
    Command {
        /// The command line.
        command: String,
        /// What it said.
        words: String,
    },
    /// The kernel said no.
    #[error("cannot {doing} {path}: {error}", path = path.display())]
    Io {
        /// What was tried, in words.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// The kernel's answer.
        error: io::Error,
    },
}

/// Carries out steps in their order, and tells of each that changed something. Ends at the first
/// that fails; what is done by then, another run takes into account.
///
/// # Errors
/// [`NotInstalled`].
pub fn carry_out(steps: &[Step], mut tell: impl FnMut(&Step)) -> Result<(), NotInstalled> {
    for step in steps {
        if carry_out_one(step)? {
            tell(step);
        }
    }
    Ok(())
}

/// Says whether anything changed.
fn carry_out_one(step: &Step) -> Result<bool, NotInstalled> {
    let io = |doing, path: &Path| {
        let path = path.to_path_buf();
        move |error| NotInstalled::Io { doing, path, error }
    };
    let gone = |done: io::Result<()>, doing, path: &Path| match done {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io(doing, path)(error)),
    };
    match step {
        Step::Write { path, text } => {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(OsStr::to_str)) else {
                return Err(io("write", path)(io::ErrorKind::InvalidInput.into()));
            };
            Dir::open_or_create(parent, own_uid())?.publish(name, text.as_bytes())?;
            Ok(true)
        }
        Step::Remove(path) => gone(std::fs::remove_file(path), "remove", path),
        Step::RemoveTree(path) => gone(std::fs::remove_dir_all(path), "remove", path),
        Step::RemoveIfEmpty(path) => match std::fs::remove_dir(path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
            Err(error) => gone(Err(error), "remove", path),
        },
        Step::Run(words) => run(words).map(|_| true),
        Step::Try(words) => Ok(run(words).is_ok()),
        Step::UntilFails(words) => {
            let deadline = Instant::now() + SETTLE_TIMEOUT;
            while run(words).is_ok() {
                if Instant::now() >= deadline {
                    let words_said = format!("what it asks for is still there after {SETTLE_TIMEOUT:?}");
                    return Err(NotInstalled::Command { command: words_of(words), words: words_said });
                }
                std::thread::sleep(SETTLE_PAUSE);
            }
            Ok(false)
        }
    }
}

/// Runs a command to its end and gives what it printed.
///
/// # Errors
/// [`NotInstalled::Command`] with its own words, also if it takes longer than [`COMMAND_TIMEOUT`].
pub fn run(words: &[OsString]) -> Result<String, NotInstalled> {
    let failed = |said: String| NotInstalled::Command { command: words_of(words), words: said };
    let Some((program, arguments)) = words.split_first() else {
        return Err(failed("no command".into()));
    };
    let mut child = Command::new(program);
    child.args(arguments).stdin(Stdio::null()).env("LC_ALL", "C").env("SYSTEMD_COLORS", "0");
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(child.output()));
    let output = match receiver.recv_timeout(COMMAND_TIMEOUT) {
        Ok(output) => output.map_err(|error| failed(error.to_string()))?,
        Err(_) => return Err(failed(format!("no end within {COMMAND_TIMEOUT:?}"))),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(failed(if said.is_empty() { output.status.to_string() } else { said }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_carried_out_in_order_and_again_without_harm() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("made/below");
        let file = dir.join("unit");
        let there = [Step::Write { path: file.clone(), text: "text\n".into() }];
        let away = [Step::Remove(file.clone()), Step::RemoveIfEmpty(dir.clone())];
        let mut told = Vec::new();
        carry_out(&there, |step| told.push(step.to_string())).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "text\n");
        let mode = std::os::unix::fs::MetadataExt::mode(&file.metadata().unwrap());
        assert_eq!(mode & 0o7777, 0o644);
        carry_out(&away, |step| told.push(step.to_string())).unwrap();
        assert!(!dir.exists());
        assert_eq!(told.len(), 3);
        carry_out(&away, |_| panic!("nothing is there to be removed")).unwrap();
    }

    #[test]
    fn a_directory_that_holds_something_else_stays() {
        let temp = tempfile::tempdir().unwrap();
        drop(std::fs::File::create(temp.path().join("theirs")).unwrap());
        carry_out(&[Step::RemoveIfEmpty(temp.path().into())], |_| panic!("it is not empty")).unwrap();
        assert!(temp.path().join("theirs").exists());
    }

    #[test]
    fn a_command_that_fails_ends_the_installation_with_its_own_words() {
        let fails = command(["sh", "-c", "echo the reason >&2; exit 3"]);
        let steps = [Step::Try(fails.clone()), Step::Run(fails), Step::Remove("/nonexistent/x".into())];
        let error = carry_out(&steps, |step| panic!("{step}")).unwrap_err();
        assert!(error.to_string().contains("the reason"), "{error}");
        assert!(run(&command(["no-such-program-here"])).is_err());
    }
}
