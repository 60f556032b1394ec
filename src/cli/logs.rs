//! `authsock logs`: shows the daemon's log where it is kept: the journal, or a file.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use super::args::{Common, Logs};
use super::output::Output;
use super::{Failure, client_options, exit, with_client};
use crate::client::connect::{Route, client_places, route};
use crate::wire::text::printable;

/// What journalctl is asked for: the unit of the user's manager, or of the machine's. Not `--user
/// --unit`: that reads the user's own files alone, and where the journal is kept in memory only there
/// are none, not even for those who may read all of it.
const USER_UNIT: &[&str] = &["--user-unit", "authsock.service"];
const SYSTEM_UNIT: &[&str] = &["--unit", "authsock.service"];
/// How many lines come before those that follow, if nobody says: as `journalctl -f` and `tail -f`.
const BEFORE_FOLLOWING: usize = 10;

/// Where a daemon's log is.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Journal(&'static [&'static str]),
    File(PathBuf),
}

pub(super) fn logs(common: &Common, args: &Logs, output: &Output) -> Result<(), Failure> {
    match find(common)? {
        Place::Journal(unit) => Err(journal(unit, args, output)),
        Place::File(path) => file(&path, args, output),
    }
}

/// Where the log is of the daemon that a client would use. None is started for it: one that cannot
/// start is what its log is read for.
fn find(common: &Common) -> Result<Place, Failure> {
    let places = client_places(&client_options(common));
    let own_file = || {
        let path = places.log().map(|path| Place::File(path.to_path_buf()));
        path.ok_or_else(|| Failure::new(exit::FAILED, "HOME is not set, so there is no place for a log file"))
    };
    match route(&places, common.socket.as_deref()) {
        Route::Named(path) if path != places.init_socket() => {
            // A unit of the user's listens in the user's own directory.
            let is_users = path.starts_with(places.runtime());
            ask(common, if is_users { USER_UNIT } else { SYSTEM_UNIT })
        }
        Route::System(_) if !cfg!(target_os = "macos") => Ok(Place::Journal(SYSTEM_UNIT)),
        Route::Named(_) | Route::Init(_) if !cfg!(target_os = "macos") => Ok(Place::Journal(USER_UNIT)),
        Route::System(_) => ask(common, SYSTEM_UNIT),
        Route::Named(_) | Route::Init(_) | Route::OnDemand(_) => own_file(),
    }
}

/// Asks a daemon on a socket that somebody named: only it knows.
fn ask(common: &Common, unit: &'static [&'static str]) -> Result<Place, Failure> {
    let mut place = None;
    with_client(common, async |client| {
        let status = client.call("status", None).await?;
        place = match (status["log"].as_str(), status["activation"].as_str()) {
            (Some(path), _) => Some(Place::File(path.into())),
            (None, Some("init")) => Some(Place::Journal(unit)),
            _ => None,
        };
        Ok(())
    })?;
    place.ok_or_else(|| Failure::new(exit::FAILED, "this daemon keeps no log: its file could not be opened"))
}

/// Becomes journalctl; comes back only with the reason why not.
fn journal(unit: &[&str], args: &Logs, output: &Output) -> Failure {
    output.note(&format!("journalctl {}", unit.join(" ")));
    if is_silent(unit) {
        output.note(
            "nothing of authsock is in the journal that you may read. Where it is kept in memory only \
             (Storage=volatile, or there is no /var/log/journal), users have no journal of their own: \
             have it kept on disk (`sudo mkdir -p /var/log/journal && sudo systemctl restart \
             systemd-journald`), or join those who may read all of it (`sudo usermod -aG \
             systemd-journal NAME`, then log in anew)",
        );
    }
    let mut command = Command::new("journalctl");
    command.args(unit);
    if let Some(lines) = args.lines {
        command.args(["--lines", &lines.to_string()]);
    }
    if args.follow {
        command.arg("--follow");
    }
    if output.is_json() {
        command.args(["--output", "json"]);
    }
    let error = command.exec();
    Failure::new(exit::FAILED, format!("cannot run journalctl, which reads the daemon's log: {error}"))
}

/// Whether the journal has not a line for us.
fn is_silent(selection: &[&str]) -> bool {
    let mut command = Command::new("journalctl");
    command.args(selection).args(["--lines", "1", "--quiet", "--no-pager"]);
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output();
    output.is_ok_and(|output| output.stdout.is_empty())
}

/// Shows a log file, the one before it first.
fn file(path: &Path, args: &Logs, output: &Output) -> Result<(), Failure> {
    if args.follow && output.is_json() {
        return Err(Failure::new(exit::USAGE, "--follow shows a log file as it is: leave out --json"));
    }
    output.note(&path.display().to_string());
    let wanted = args.lines.or(args.follow.then_some(BEFORE_FOLLOWING));
    let mut old = path.as_os_str().to_owned();
    old.push(".old");
    let mut lines = Last { lines: VecDeque::new(), wanted };
    let seen_old = lines.add(Path::new(&old))?;
    let seen = lines.add(path)?;
    if seen_old.is_none() && seen.is_none() && !args.follow {
        let words = format!("there is no log yet at {}: no daemon has written one", path.display());
        return Err(Failure::new(exit::FAILED, words));
    }
    for line in &lines.lines {
        if output.is_json() {
            output.value(&json!({ "line": line }))?;
        } else {
            output.raw(&format!("{}\n", printable(line)))?;
        }
    }
    if args.follow { Err(follow(path, seen.unwrap_or(0))) } else { Ok(()) }
}

/// Becomes tail(1), from the byte that was not shown yet on; it goes along when a full log makes
/// room for a new one.
fn follow(path: &Path, seen: u64) -> Failure {
    let error = Command::new("tail").arg("-c").arg(format!("+{}", seen + 1)).arg("-F").arg(path).exec();
    Failure::new(exit::FAILED, format!("cannot run tail, which follows the log: {error}"))
}

/// The last lines of several files.
struct Last {
    lines: VecDeque<String>,
    /// How many are wanted; all, if nobody says.
    wanted: Option<usize>,
}

impl Last {
    /// Adds a file's whole lines; returns how many bytes they have, or `None` if there is no file.
    fn add(&mut self, path: &Path) -> Result<Option<u64>, Failure> {
        let cannot = |error: io::Error| {
            Failure::new(exit::FAILED, format!("log {} cannot be read: {error}", path.display()))
        };
        let mut reader = match std::fs::File::open(path) {
            Ok(file) => BufReader::new(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(cannot(error)),
        };
        let (mut seen, mut line) = (0, Vec::new());
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line).map_err(cannot)?;
            // A line that is just being written comes with what follows.
            if line.pop() != Some(b'\n') {
                return Ok(Some(seen));
            }
            seen += read as u64;
            self.lines.push_back(String::from_utf8_lossy(&line).into_owned());
            if self.wanted.is_some_and(|wanted| self.lines.len() > wanted) {
                self.lines.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_taken_across_files_and_a_half_one_is_left_for_later() {
        let temp = tempfile::tempdir().unwrap();
        let (old, new) = (temp.path().join("old"), temp.path().join("new"));
        for (path, text) in [(&old, "1\n2\n3\n"), (&new, "4\n5\nhal")] {
            io::Write::write_all(&mut std::fs::File::create(path).unwrap(), text.as_bytes()).unwrap();
        }
        let last = |wanted| {
            let mut last = Last { lines: VecDeque::new(), wanted };
            assert_eq!(last.add(&old).unwrap(), Some(6));
            assert_eq!(last.add(&new).unwrap(), Some(4));
            last.lines.into_iter().collect::<Vec<_>>()
        };
        assert_eq!(last(Some(3)), ["3", "4", "5"]);
        assert_eq!(last(None).len(), 5);
        assert!(last(Some(0)).is_empty());
        let mut none = Last { lines: VecDeque::new(), wanted: None };
        assert_eq!(none.add(&temp.path().join("missing")).unwrap(), None);
    }
}
