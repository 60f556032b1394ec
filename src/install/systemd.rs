//! Installing for systemd: which units go where, what systemd is told, and what is taken away again.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::{NotInstalled, Step, Whose, command, run};
use crate::place::{Places, TOKEN_FILE};

/// The socket unit.
pub const SOCKET_UNIT: &str = "authsock.socket";
/// The service unit.
pub const SERVICE_UNIT: &str = "authsock.service";
/// The first line of every file that `install` writes; `uninstall` removes no other.
const MARK: &str = "# Written by `authsock install`; `authsock uninstall` removes it.";
/// What the units in the tree start.
const PACKAGED_PROGRAM: &str = "/usr/bin/authsock";

/// The units as they are shipped.
const USER_UNITS: [(&str, &str); 2] = [
    (SOCKET_UNIT, include_str!("../../systemd/user/authsock.socket")),
    (SERVICE_UNIT, include_str!("../../systemd/user/authsock.service")),
];
const SYSTEM_UNITS: [(&str, &str); 2] = [
    (SOCKET_UNIT, include_str!("../../systemd/system/authsock.socket")),
    (SERVICE_UNIT, include_str!("../../systemd/system/authsock.service")),
];

/// Where packages put units, in the order in which systemd looks (systemd.unit(5)).
const USER_PACKAGED: [&str; 3] =
    ["/etc/systemd/user", "/usr/local/lib/systemd/user", "/usr/lib/systemd/user"];
const SYSTEM_PACKAGED: [&str; 3] =
    ["/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];

/// A systemd to install for.
#[derive(Debug)]
pub struct Systemd {
    whose: Whose,
    /// Where units that an administrator or a user adds belong.
    units: PathBuf,
    packaged: Vec<PathBuf>,
}

/// What systemd says of a unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct State {
    load: String,
    active: String,
    file: String,
}

impl Systemd {
    /// The user's own manager, or the machine's. `config_home` is where the user's configuration
    /// lies (`~/.config`).
    pub fn new(whose: Whose, config_home: &Path) -> Systemd {
        match whose {
            Whose::User => Systemd {
                whose,
                units: config_home.join("systemd/user"),
                packaged: USER_PACKAGED.map(PathBuf::from).into(),
            },
            Whose::System => Systemd {
                whose,
                units: "/etc/systemd/system".into(),
                packaged: SYSTEM_PACKAGED.map(PathBuf::from).into(),
            },
        }
    }

    fn systemctl<const N: usize>(&self, words: [&str; N]) -> Vec<std::ffi::OsString> {
        let mut all = match self.whose {
            Whose::User => command(["systemctl", "--user"]),
            Whose::System => command(["systemctl"]),
        };
        all.extend(command(words));
        all
    }

    fn flag(&self) -> &'static str {
        if self.whose == Whose::User { "--user " } else { "" }
    }

    /// # Errors
    /// [`NotInstalled::NoManager`] if nobody answers.
    fn ask_manager(&self) -> Result<(), NotInstalled> {
        run(&self.systemctl(["show", "--property=Version", "--value"])).map(drop).map_err(|error| {
            let advice = match self.whose {
                Whose::User => {
                    "there is no systemd that manages this user's services: log in properly (not by su or sudo), or have root run `loginctl enable-linger USER`. Without one nothing needs to be installed: any client starts a daemon on demand"
                }
                Whose::System => "this machine was not started by systemd",
            };
            NotInstalled::NoManager(format!("{advice} ({error})"))
        })
    }

    fn state(&self, unit: &'static str) -> Result<State, NotInstalled> {
        let printed = run(&self.systemctl(["show", unit, "--property=LoadState,ActiveState,UnitFileState"]))?;
        let mut state = State::default();
        for line in printed.lines() {
            match line.split_once('=') {
                Some(("LoadState", word)) => word.clone_into(&mut state.load),
                Some(("ActiveState", word)) => word.clone_into(&mut state.active),
                Some(("UnitFileState", word)) => word.clone_into(&mut state.file),
                _ => {}
            }
        }
        Ok(state)
    }

    /// Where a package put both units, if their program is there.
    fn packaged(&self) -> Option<&Path> {
        let is_whole = |dir: &&PathBuf| {
            let service = std::fs::read_to_string(dir.join(SERVICE_UNIT)).unwrap_or_default();
            let program = service.lines().find_map(|line| line.strip_prefix("ExecStart="));
            let program = program.and_then(|line| line.split_whitespace().next());
            dir.join(SOCKET_UNIT).is_file()
                && program.is_some_and(|program| Path::new(program).is_file())
                && !service.starts_with(MARK)
        };
        self.packaged.iter().find(is_whole).map(PathBuf::as_path)
    }

    /// What has to be done so that `program` is installed, given what is there.
    ///
    /// # Errors
    /// [`NotInstalled`]; nothing has been changed.
    pub fn plan_install(&self, program: &Path) -> Result<Vec<Step>, NotInstalled> {
        self.ask_manager()?;
        let mut steps = Vec::new();
        let mut changed = Vec::new();
        if self.packaged().is_none() {
            let units = if self.whose == Whose::User { USER_UNITS } else { SYSTEM_UNITS };
            for (name, text) in units {
                let path = self.units.join(name);
                let text = fill(text, program)?;
                // A link to /dev/null is how a unit is masked.
                if path.is_symlink() {
                    self.refuse_masked()?;
                    return Err(NotInstalled::NotOurs(path));
                }
                match std::fs::read_to_string(&path) {
                    Ok(there) if there == text => continue,
                    Ok(there) if !there.starts_with(MARK) => return Err(NotInstalled::NotOurs(path)),
                    Ok(_) => changed.push(name),
                    Err(_) => {}
                }
                steps.push(Step::Write { path, text });
            }
        }
        self.refuse_masked()?;
        if !steps.is_empty() {
            steps.push(Step::Run(self.systemctl(["daemon-reload"])));
        }
        let (socket, service) = (self.state(SOCKET_UNIT)?, self.state(SERVICE_UNIT)?);
        if socket.file != "enabled" {
            steps.push(Step::Run(self.systemctl(["enable", SOCKET_UNIT])));
        }
        match socket.active.as_str() {
            "active" if changed.contains(&SOCKET_UNIT) => {
                steps.push(Step::Run(self.systemctl(["restart", SOCKET_UNIT])));
            }
            "active" => {}
            _ => {
                // One that was given up for good starts again only after it was forgiven.
                if socket.active == "failed" || service.active == "failed" {
                    steps.push(Step::Try(self.systemctl(["reset-failed", SOCKET_UNIT, SERVICE_UNIT])));
                }
                steps.push(Step::Run(self.systemctl(["start", SOCKET_UNIT])));
            }
        }
        if changed.contains(&SERVICE_UNIT) && service.active == "active" {
            steps.push(Step::Run(self.systemctl(["try-restart", SERVICE_UNIT])));
        }
        Ok(steps)
    }

    fn refuse_masked(&self) -> Result<(), NotInstalled> {
        for unit in [SOCKET_UNIT, SERVICE_UNIT] {
            if self.state(unit)?.load == "masked" {
                return Err(NotInstalled::Masked { unit, flag: self.flag() });
            }
        }
        Ok(())
    }

    /// What has to be done so that nothing is left, given what is there. Units of a package are only
    /// disabled.
    ///
    /// # Errors
    /// [`NotInstalled`]; nothing has been changed.
    pub fn plan_uninstall(&self, places: &Places, purge: bool) -> Result<Vec<Step>, NotInstalled> {
        let mut steps = Vec::new();
        let ours: Vec<PathBuf> = [SOCKET_UNIT, SERVICE_UNIT]
            .map(|name| self.units.join(name))
            .into_iter()
            .filter(|path| std::fs::read_to_string(path).is_ok_and(|text| text.starts_with(MARK)))
            .collect();
        if !ours.is_empty() || self.packaged().is_some() {
            self.ask_manager()?;
            let (socket, service) = (self.state(SOCKET_UNIT)?, self.state(SERVICE_UNIT)?);
            let lives = |state: &State| !["inactive", "failed", ""].contains(&state.active.as_str());
            if lives(&socket) || lives(&service) {
                steps.push(Step::Run(self.systemctl(["stop", SOCKET_UNIT, SERVICE_UNIT])));
            }
            if socket.file.starts_with("enabled") {
                steps.push(Step::Run(self.systemctl(["disable", SOCKET_UNIT])));
            }
            let is_any = !ours.is_empty();
            steps.extend(ours.into_iter().map(Step::Remove));
            if is_any {
                // What `enable` and an administrator's drop-ins had their directories for.
                for name in ["authsock.service.d", "authsock.socket.d", "sockets.target.wants"] {
                    steps.push(Step::RemoveIfEmpty(self.units.join(name)));
                }
                if self.whose == Whose::User {
                    steps.extend(empty_up(&self.units, 2));
                }
                steps.push(Step::Run(self.systemctl(["daemon-reload"])));
            }
            if [&socket, &service].iter().any(|state| state.active == "failed") {
                steps.push(Step::Try(self.systemctl(["reset-failed", SOCKET_UNIT, SERVICE_UNIT])));
            }
        }
        steps.extend(plan_removal(places, purge));
        Ok(steps)
    }
}

/// A directory, and those above it, as far as they are empty.
fn empty_up(path: &Path, count: usize) -> impl Iterator<Item = Step> {
    path.ancestors().take(count).map(|dir| Step::RemoveIfEmpty(dir.to_path_buf()))
}

/// What the daemon and its clients left in their places, as far as it is there.
fn plan_removal(places: &Places, purge: bool) -> Vec<Step> {
    let mut steps = Vec::new();
    let is_there = |path: &Path| path.symlink_metadata().is_ok();
    let is_socket = |path: &Path| path.symlink_metadata().is_ok_and(|meta| meta.file_type().is_socket());
    let mut sockets = vec![places.init_socket()];
    if !places.is_system() {
        sockets.push(places.ondemand_socket());
    }
    steps.extend(sockets.into_iter().filter(|path| is_socket(path)).map(Step::Remove));
    if places.state().join(TOKEN_FILE).exists() || is_there(places.state()) {
        steps.push(Step::RemoveTree(places.state().to_path_buf()));
    }
    if !places.is_system() && is_there(&places.runs()) {
        // The tokens in there are worth nothing without their daemon.
        steps.push(Step::RemoveTree(places.runs()));
    }
    if let Some(log) = places.log().filter(|log| log.parent().is_some_and(is_there)) {
        steps.push(Step::Remove(log.to_path_buf()));
        steps.push(Step::Remove(log.with_extension("old")));
        // ~/.local/state/authsock, and what had to be made for it.
        steps.extend(log.parent().into_iter().flat_map(|dir| empty_up(dir, 3)));
    }
    if let Some(dir) = places.config().and_then(Path::parent).filter(|dir| purge && is_there(dir)) {
        steps.push(Step::RemoveTree(dir.to_path_buf()));
    }
    steps
}

/// A unit with our program in the place of the packaged one, and the mark that it is ours.
fn fill(unit: &str, program: &Path) -> Result<String, NotInstalled> {
    let quoted = quote(program)?;
    let mut text = format!("{MARK}\n");
    for line in unit.lines() {
        match line.strip_prefix("ExecStart=").and_then(|rest| rest.strip_prefix(PACKAGED_PROGRAM)) {
            Some(arguments) => text.push_str(&format!("ExecStart={quoted}{arguments}")),
            None => text.push_str(line),
        }
        text.push('\n');
    }
    Ok(text)
}

/// A path as the first word of a command line in a unit (systemd.service(5), "Command lines").
fn quote(program: &Path) -> Result<String, NotInstalled> {
    let bad = |problem: &str| NotInstalled::Program { problem: format!("{} {problem}", program.display()) };
    let text = program.to_str().ok_or_else(|| bad("has a name that is not UTF-8"))?;
    if !program.is_absolute() {
        return Err(bad("has no absolute path"));
    }
    if text.chars().any(char::is_control) {
        return Err(bad("has a control character in its path"));
    }
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%");
    let is_plain = text.chars().all(|letter| letter.is_alphanumeric() || "/._-+".contains(letter));
    Ok(if is_plain { escaped } else { format!("\"{escaped}\"") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_unit_starts_the_program_that_is_installed() {
        for (units, arguments) in [(USER_UNITS, "serve"), (SYSTEM_UNITS, "serve --system")] {
            let text = fill(units[1].1, Path::new("/opt/my tools/100%/authsock")).unwrap();
            let line = format!("ExecStart=\"/opt/my tools/100%%/authsock\" {arguments}\n");
            assert!(text.contains(&line), "{text}");
            assert!(text.starts_with(MARK));
            assert!(!text.contains(PACKAGED_PROGRAM));
            assert_eq!(text.lines().count(), units[1].1.lines().count() + 1);
        }
        let plain = fill(USER_UNITS[1].1, Path::new("/home/u/.cargo/bin/authsock")).unwrap();
        assert!(plain.contains("ExecStart=/home/u/.cargo/bin/authsock serve\n"));
    }

    #[test]
    fn a_path_that_a_unit_cannot_hold_is_refused() {
        for bad in ["authsock", "/a\nExecStartPre=/bin/evil", "/a\tb"] {
            assert!(fill(USER_UNITS[1].1, Path::new(bad)).is_err(), "{bad:?}");
        }
    }
}
