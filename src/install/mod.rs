//! What installing consists of: an ordered plan of steps, each said in words and harmless when taken twice, carried out or only described.
#![forbid(unsafe_code)]

mod command;
pub mod launchd;
mod leftovers;
mod program;
mod step;
pub mod systemd;

use std::io;
use std::path::{Path, PathBuf};

use crate::kernel::dir::{self, Unusable};
use crate::place;

pub use leftovers::{leftovers, system_leftovers};
pub use program::examine_program;
pub use step::{Forgives, Outcome, Step};

/// How every file that `install` writes says that it may be replaced and removed.
pub const MARK: &str = "Written by authsock install";
/// Largest file of an init system that is looked at, in bytes.
const FILE_MAX: usize = 1 << 20;

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
        "no user manager answers ({said}): {way_out}",
        way_out = match .uid {
            0 => "run this as the user whom authsock is to serve, or with --system to serve all users",
            _ => "log in properly (su and sudo do not start one), or have root run `loginctl enable-linger` for you",
        }
    )]
    NoUserManager {
        /// What systemctl said.
        said: String,
        /// The user.
        uid: u32,
    },
    /// The machine's systemd does not answer.
    #[error(
        "systemd does not answer ({0}): `systemctl is-system-running` says how it does; then run this again"
    )]
    NoSystemManager(String),
    /// The machine runs without systemd.
    #[error(
        "this machine was not booted with systemd, so there is nothing to install into ({said}). {way_out}",
        way_out = match .scope {
            Scope::User => "The first client starts a daemon by itself: `authsock whoami`",
            Scope::System => "Nothing else starts a daemon of the whole machine: leave --system (client.system) away, and each user's first client starts one of that user's, as `authsock whoami` does",
        }
    )]
    NoSystemd {
        /// What systemctl said.
        said: String,
        /// What was to be installed.
        scope: Scope,
    },
    /// This program cannot be what the init system starts.
    #[error("{path} is no program for an init system to start: {problem}{way_out}", path = path.display())]
    Program {
        /// The program.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do; may be empty.
        way_out: String,
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

/// What is to be done, in this order, and what there is to say besides.
#[derive(Debug, Default)]
pub struct Plan {
    /// What to do. Empty if all is as it should be.
    pub steps: Vec<Step>,
    /// What is left as it is, and why.
    pub notes: Vec<String>,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::dir::{Dir, own_uid};

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
}
