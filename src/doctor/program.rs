//! The program that a unit starts: whether it is there, whether the unit sees it, who could put another in its place, and whether it is the one that runs.

use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::report::{Id, InArea};
use crate::kernel::dir::own_uid;
use crate::kernel::path::refuse_replaceable;
use crate::kernel::process::Pid;
use crate::kernel::survey;
use crate::place::{HOMES, Places, TEMPORARY};

/// What systemd says of the service that starts the program.
pub(super) struct Facts {
    /// Whether the service does not see homes.
    pub(super) is_home_hidden: bool,
    /// Whether the service has temporary directories of its own.
    pub(super) is_temporary_hidden: bool,
    /// The process that runs, if one does.
    pub(super) main: Option<Pid>,
}

pub(super) fn examine(area: &mut InArea<'_>, path: &Path, facts: &Facts, places: &Places) {
    let real = path.canonicalize();
    if let Some(hidden) = hidden(path, facts).or_else(|| hidden(real.as_deref().ok()?, facts)) {
        let says = format!(
            "the unit starts it, and does not see what lies below {hidden} (ProtectHome=, PrivateTmp=)"
        );
        area.problem(Id::ProgramHidden, path.display(), says, stay(path, places));
    }
    let looked = real.and_then(|real| Ok((real.metadata()?, real)));
    let real = match looked {
        Ok((meta, real)) if meta.is_file() && meta.mode() & 0o111 != 0 => real,
        // Root may see it where this user may not look.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return,
        _ => {
            let says = "the unit starts it, and it is not there or cannot be executed";
            let remedy = "run `authsock install` with the program that is to be started";
            return area.problem(Id::ProgramMissing, path.display(), says, remedy);
        }
    };
    if let Some(says) = replaceable(&real, places) {
        let says = format!("somebody else can put another in its place: {says}");
        area.problem(Id::ProgramReplaceable, path.display(), says, stay(path, places));
    }
    if let Some(pid) = facts.main
        && survey::runs(pid, &real) == Some(false)
        && !is_script(&real)
    {
        area.warning(
            Id::ProgramReplaced,
            path.display(),
            format!("process {pid}, the daemon, runs another file than the one that lies there now"),
            "systemctl --user restart authsock.service",
        );
    }
}

/// The directory that the unit does not see, if the program lies below one.
fn hidden(path: &Path, facts: &Facts) -> Option<&'static str> {
    let homes = HOMES.into_iter().filter(|_| facts.is_home_hidden);
    let temporary = TEMPORARY.into_iter().filter(|_| facts.is_temporary_hidden);
    homes.chain(temporary).find(|hidden| path.starts_with(hidden))
}

/// Why somebody else than the daemon's user and root could replace the program, if somebody could.
fn replaceable(real: &Path, places: &Places) -> Option<String> {
    if let Err(unusable) = refuse_replaceable(real) {
        return Some(unusable.to_string());
    }
    // What this user may replace is not safe for the daemon of root's.
    let is_strange = |path: &&Path| path.metadata().is_ok_and(|meta| meta.uid() != 0);
    let strange = real.ancestors().find(is_strange).filter(|_| places.is_system() && own_uid() != 0);
    strange.map(|path| format!("{}: is not root's", path.display()))
}

/// A script's process runs its interpreter.
fn is_script(path: &Path) -> bool {
    let mut first = [0; 2];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut first)).is_ok() && first == *b"#!"
}

fn stay(path: &Path, places: &Places) -> String {
    if places.is_system() {
        let path = path.display();
        format!(
            "sudo install -m 755 {path} /usr/local/bin/authsock, then sudo /usr/local/bin/authsock install --system"
        )
    } else {
        "put it where it stays (`cargo install --path .`, or /usr/local/bin), and run `authsock install` from there"
            .to_owned()
    }
}
