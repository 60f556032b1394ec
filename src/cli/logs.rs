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
use crate::kernel::dir::open_regular;
use crate::kernel::signals::end_with_us;
use crate::wire::text::printable;

/// What journalctl is asked for: both units of the user's manager, or of the machine's, since what keeps a socket from
/// listening is said of the socket. Not `--user
/// --unit`: that reads the user's own files alone, and where the journal is kept in memory only there
/// are none, not even for those who may read all of it.
const USER_UNIT: &[&str] = &["--user-unit", "authsock.service", "--user-unit", "authsock.socket"];
const SYSTEM_UNIT: &[&str] = &["--unit", "authsock.service", "--unit", "authsock.socket"];
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
    if args.follow { follow(path, seen.unwrap_or(0), output) } else { Ok(()) }
}

/// Shows what tail(1) reads from the byte on that was not shown yet; it goes along when a full log makes
/// room for a new one.
fn follow(path: &Path, seen: u64, output: &Output) -> Result<(), Failure> {
    let cannot = |error: io::Error| {
        Failure::new(exit::FAILED, format!("cannot run tail, which follows the log: {error}"))
    };
    let mut tail = Command::new("tail");
    tail.arg("-c").arg(format!("+{}", seen + 1)).arg("-F").arg(path).stdout(Stdio::piped());
    end_with_us(&mut tail);
    let mut tail = tail.spawn().map_err(cannot)?;
    let Some(lines) = tail.stdout.take() else { return Ok(()) };
    let shown = show(BufReader::new(lines), output);
    // It never ends by itself, but where nobody reads what is shown.
    let _ = tail.kill();
    tail.wait().map_err(cannot)?;
    Ok(shown?)
}

/// Shows each line as soon as it is there.
fn show(mut lines: impl BufRead, output: &Output) -> io::Result<()> {
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        output.raw(&format!("{}\n", printable(text.trim_end_matches('\n'))))?;
        line.clear();
    }
    Ok(())
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
        let mut reader = match open_regular(path) {
            Ok(file) => BufReader::new(file),
            Err(unusable) if unusable.is_missing() => return Ok(None),
            Err(unusable) => return Err(Failure::new(exit::FAILED, format!("log {unusable}"))),
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
        // What never ends, or leads elsewhere, is no log.
        let link = temp.path().join("link");
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        assert!(none.add(&link).is_err());
        assert!(none.add(Path::new("/dev/zero")).is_err());
    }
}
