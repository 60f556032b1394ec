//! Installing into systemd: the units with this program's path in them, and what systemctl is asked and told.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::command::{Answer, ask};
use super::{CannotInstall, Forgives, Found, MARK, Plan, Scope, Step, look};
use crate::kernel::dir::own_uid;
use crate::kernel::process::Pid;
use crate::kernel::survey;
use crate::place::{self, Env, Places, var};

/// The socket unit.
pub const SOCKET: &str = "authsock.socket";
/// The service unit.
pub const SERVICE: &str = "authsock.service";

/// The program as the units in the tree name it.
const TEMPLATE_PROGRAM: &str = "/usr/bin/authsock";
/// The units of each scope, in the order in which they are written: a socket without its service
/// could not be started.
const USER_UNITS: [(&str, &str); 2] = [
    (SERVICE, include_str!("../../systemd/user/authsock.service")),
    (SOCKET, include_str!("../../systemd/user/authsock.socket")),
];
const SYSTEM_UNITS: [(&str, &str); 2] = [
    (SERVICE, include_str!("../../systemd/system/authsock.service")),
    (SOCKET, include_str!("../../systemd/system/authsock.socket")),
];

/// What the templates say so that every systemd understands it.
const ANY_TYPE: &str = "\
# Not notify-reload, which 252 does not know and complains of; the daemon sends all that it takes.
Type=notify
ExecReload=/bin/kill -HUP $MAINPID
";
/// What is better where it is understood: a reload then returns when the new configuration holds.
const RELOADING_TYPE: &str = "Type=notify-reload\n";
/// The first systemd that does.
const RELOADING_SINCE: u32 = 253;

/// Where units lie, and what they start.
#[derive(Debug)]
pub struct Setup {
    scope: Scope,
    /// The socket that the unit is to make.
    socket: PathBuf,
    /// The runtime directory, where systemctl must be told of it.
    runtime: Option<PathBuf>,
    /// Where `install` puts units.
    units: PathBuf,
    /// Where packages put theirs.
    packaged: Vec<PathBuf>,
}

impl Setup {
    /// A user's units, below that user's configuration directory (`~/.config`).
    pub fn of_user(config_home: &Path, places: &Places, env: Env<'_>) -> Setup {
        let packaged = ["/etc/systemd/user", "/usr/local/lib/systemd/user", "/usr/lib/systemd/user"];
        Setup {
            scope: Scope::User,
            socket: places.init_socket(),
            // As it is after su: there, but systemctl is not told.
            runtime: Some(places.runtime())
                .filter(|runtime| env(var::XDG_RUNTIME_DIR).is_none() && runtime.starts_with("/run/user"))
                .map(Path::to_path_buf),
            units: config_home.join("systemd/user"),
            packaged: packaged.map(PathBuf::from).into(),
        }
    }

    /// The machine's units.
    pub fn of_system() -> Setup {
        let packaged = ["/usr/local/lib/systemd/system", "/usr/lib/systemd/system"];
        Setup {
            scope: Scope::System,
            socket: place::system_socket().to_path_buf(),
            runtime: None,
            units: "/etc/systemd/system".into(),
            packaged: packaged.map(PathBuf::from).into(),
        }
    }

    fn templates(&self) -> &'static [(&'static str, &'static str); 2] {
        match self.scope {
            Scope::User => &USER_UNITS,
            Scope::System => &SYSTEM_UNITS,
        }
    }

    /// A call of systemctl.
    fn systemctl(&self, words: &[&str]) -> Vec<String> {
        let runtime =
            self.runtime.as_ref().map(|path| format!("{}={}", var::XDG_RUNTIME_DIR, path.display()));
        let mut all = Vec::new();
        if let Some(runtime) = &runtime {
            all.extend(["env", runtime]);
        }
        all.push("systemctl");
        if self.scope == Scope::User {
            all.push("--user");
        }
        all.push("--no-pager");
        all.extend(words);
        all.into_iter().map(str::to_owned).collect()
    }

    fn step(&self, words: &[&str]) -> Step {
        Step::Run { words: self.systemctl(words), forgives: Forgives::Nothing }
    }

    /// Asks for properties of a unit.
    fn show(&self, unit: &str) -> Result<BTreeMap<String, String>, CannotInstall> {
        let words = self.systemctl(&[
            "show",
            "--property=LoadState,ActiveState,NeedDaemonReload,ExecStart,UnitFileState,MainPID",
            unit,
        ]);
        let answer = ask(&words)?;
        if !answer.is_good {
            return Err(self.no_manager(answer));
        }
        let pairs = answer.stdout.lines().filter_map(|line| line.split_once('='));
        Ok(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
    }

    fn no_manager(&self, answer: Answer) -> CannotInstall {
        let said = match answer.stderr.trim() {
            "" => answer.status,
            said => said.to_owned(),
        };
        match self.scope {
            _ if !survey::is_booted_with_systemd() => self.no_systemd(said),
            Scope::System => CannotInstall::NoSystemManager(said),
            Scope::User => CannotInstall::NoUserManager { said, uid: own_uid() },
        }
    }

    fn no_systemd(&self, said: String) -> CannotInstall {
        CannotInstall::NoSystemd { said, scope: self.scope }
    }

    /// Asks the manager for its version: whether it is there at all.
    fn reach(&self) -> Result<u32, CannotInstall> {
        let answer = ask(&self.systemctl(&["show", "--property=Version"])).map_err(|error| {
            // There may be no systemctl either.
            if survey::is_booted_with_systemd() { error } else { self.no_systemd(error.to_string()) }
        })?;
        // Without a manager some versions say so with status 0.
        match answer.stdout.strip_prefix("Version=") {
            Some(version) if answer.is_good => Ok(number_of(version)),
            _ => Err(self.no_manager(answer)),
        }
    }

    /// The program of units that a package brought, if it exists.
    fn packaged(&self) -> Option<PathBuf> {
        let has = |dir: &PathBuf, unit: &str| dir.join(unit).is_file();
        let service = self.packaged.iter().find(|dir| has(dir, SERVICE));
        let service = service.filter(|_| self.packaged.iter().any(|dir| has(dir, SOCKET)))?;
        let text = std::fs::read_to_string(service.join(SERVICE)).unwrap_or_default();
        program_of(&text).filter(|program| program.is_file())
    }

    /// Refuses units that are masked: enabling them would fail halfway.
    fn refuse_masked(&self, properties: &[&BTreeMap<String, String>; 2]) -> Result<(), CannotInstall> {
        let tool = match self.scope {
            Scope::User => "systemctl --user",
            Scope::System => "systemctl",
        };
        for ((unit, _), properties) in self.templates().iter().zip(properties) {
            if properties.get("LoadState").is_some_and(|state| state == "masked")
                || look(&self.units.join(unit))? == Found::Masked
            {
                return Err(CannotInstall::Masked { unit, tool });
            }
        }
        Ok(())
    }

    /// What is to be done so that systemd starts `program` at the first connection. Nothing is
    /// changed yet.
    ///
    /// # Errors
    /// [`CannotInstall`].
    pub fn install(
        &self,
        program: impl FnOnce() -> Result<PathBuf, CannotInstall>,
    ) -> Result<Plan, CannotInstall> {
        let version = self.reach()?;
        let (service, socket) = (self.show(SERVICE)?, self.show(SOCKET)?);
        self.refuse_masked(&[&service, &socket])?;
        let is = |of: &BTreeMap<String, String>, key: &str, wanted: &str| {
            of.get(key).is_some_and(|value| value == wanted)
        };
        let mut plan = Plan::default();
        let packaged = self.packaged();
        // A package's own program may lie anywhere; ours is not asked for then.
        let program = if packaged.is_some() { None } else { Some(program()?) };
        for (unit, template) in self.templates() {
            let path = self.units.join(unit);
            match (&program, look(&path)?) {
                (Some(program), found) => {
                    if found == Found::Foreign {
                        return Err(CannotInstall::NotOurs(path));
                    }
                    let text = fill(template, program, version)?;
                    if found != Found::Ours(text.clone()) {
                        plan.steps.push(Step::Write { path, text, mode: 0o644 });
                    }
                }
                // An earlier copy would hide the package's unit.
                (None, Found::Ours(_)) => {
                    plan.steps.push(Step::Remove { path, and_if_empty: Vec::new() });
                }
                (None, _) => {}
            }
        }
        if packaged.is_some() {
            plan.notes.push("the units of the package are used; nothing is copied".into());
        }
        let is_stale = is(&service, "NeedDaemonReload", "yes") || is(&socket, "NeedDaemonReload", "yes");
        let reload = is_stale || !plan.steps.is_empty();
        if reload {
            plan.steps.push(self.step(&["daemon-reload"]));
        }
        if !(is(&socket, "UnitFileState", "enabled") && is(&socket, "ActiveState", "active")) {
            plan.steps.push(self.step(&["enable", "--now", SOCKET]));
        }
        // Somebody removed the file under the unit that listens; or the unit was masked for a while, and has lost its
        // socket without saying so.
        if is(&socket, "ActiveState", "active") && survey::is_listened_on(&self.socket) == Some(false) {
            plan.steps.push(self.step(&["restart", SOCKET]));
        }
        // A newer unit is for the next start; a daemon whose program has moved would come back as
        // the old one, or not at all, and one whose program was replaced is the old one still.
        let runs = !is(&service, "ActiveState", "inactive") && !is(&service, "ActiveState", "failed");
        let command = service.get("ExecStart").filter(|command| !command.is_empty());
        let is_started = |program: &Path| {
            let path = format!("path={} ;", program.display());
            command.is_none_or(|command| command.contains(&path))
        };
        let has_moved = program.as_ref().is_some_and(|program| reload && !is_started(program));
        let process = service.get("MainPID").and_then(|pid| pid.parse().ok()).filter(|pid| *pid != 0);
        // What is started in another way, by a package's script or a drop-in of the user's, is not judged.
        let is_replaced = program.filter(|program| reload || is_started(program)).is_some_and(|program| {
            process.is_some_and(|process| survey::runs(Pid(process), &program) == Some(false))
        });
        if runs && (has_moved || is_replaced) {
            plan.steps.push(self.step(&["try-restart", SERVICE]));
        }
        Ok(plan)
    }

    /// What is to be done so that nothing of [`Setup::install`] is left in systemd. Nothing is
    /// changed yet.
    ///
    /// # Errors
    /// [`CannotInstall`].
    pub fn uninstall(&self) -> Result<Plan, CannotInstall> {
        self.reach()?;
        let mut plan = Plan::default();
        let mut removals = Vec::new();
        for (unit, _) in self.templates() {
            let path = self.units.join(unit);
            match look(&path)? {
                Found::Ours(_) => removals.push(Step::Remove { path, and_if_empty: self.directories(unit) }),
                Found::Foreign => {
                    let words = format!(
                        "{} was not written by `authsock install`: it stays, and what it runs too",
                        path.display()
                    );
                    return Ok(Plan { steps: Vec::new(), notes: vec![words] });
                }
                Found::Nothing | Found::Masked => {}
            }
        }
        let (service, socket) = (self.show(SERVICE)?, self.show(SOCKET)?);
        let is_active = |of: &BTreeMap<String, String>| {
            of.get("ActiveState").is_some_and(|state| state != "inactive" && state != "failed")
        };
        let has_failed =
            |of: &BTreeMap<String, String>| of.get("ActiveState").is_some_and(|state| state == "failed");
        if is_active(&service) || is_active(&socket) {
            // Somebody else may be doing the same.
            let words = self.systemctl(&["stop", SOCKET, SERVICE]);
            plan.steps.push(Step::Run { words, forgives: Forgives::Absence });
        }
        let link = self.units.join("sockets.target.wants").join(SOCKET);
        if link.symlink_metadata().is_ok() {
            if socket.get("LoadState").is_some_and(|state| state == "loaded") {
                let words = self.systemctl(&["disable", SOCKET]);
                plan.steps.push(Step::Run { words, forgives: Forgives::Absence });
            }
            // systemctl does not know a link whose unit is gone.
            removals.push(Step::Remove { path: link, and_if_empty: self.directories(SOCKET) });
        }
        let changes_units = !removals.is_empty();
        plan.steps.append(&mut removals);
        if changes_units {
            plan.steps.push(self.step(&["daemon-reload"]));
        }
        if has_failed(&service) || has_failed(&socket) || !plan.steps.is_empty() {
            // A unit that did not fail is not known any more, which is an error to systemctl.
            let words = self.systemctl(&["reset-failed", SOCKET, SERVICE]);
            plan.steps.push(Step::Run { words, forgives: Forgives::Anything });
        }
        Ok(plan)
    }

    /// The directories that installing may have made, the innermost first.
    fn directories(&self, unit: &str) -> Vec<PathBuf> {
        let mut all = vec![self.units.join(format!("{unit}.d")), self.units.join("sockets.target.wants")];
        if self.scope == Scope::User {
            all.extend(self.units.ancestors().take(3).map(Path::to_path_buf));
        }
        all
    }

    /// Asks systemd whether the socket listens.
    ///
    /// # Errors
    /// [`CannotInstall`] if it does not.
    pub fn verify(&self) -> Result<(), CannotInstall> {
        let words = self.systemctl(&["is-active", SOCKET]);
        let answer = ask(&words)?;
        if answer.is_good { Ok(()) } else { Err(answer.into_error(&words)) }
    }
}

/// The number at the beginning of a version such as `257.13-1~deb13u1`; 0 if there is none.
fn number_of(version: &str) -> u32 {
    let digits = version.trim_start().split(|letter: char| !letter.is_ascii_digit()).next();
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// A unit of the tree with the mark, with the path of `program`, and with what a systemd of this version
/// understands.
fn fill(template: &str, program: &Path, version: u32) -> Result<String, CannotInstall> {
    let template = match version {
        RELOADING_SINCE.. => template.replace(ANY_TYPE, RELOADING_TYPE),
        _ => template.to_owned(),
    };
    let program = quoted(program)?;
    let mut text = format!("# {MARK}; `authsock uninstall` removes it. Changes belong into a drop-in.\n");
    for line in template.lines() {
        match line.strip_prefix("ExecStart=").and_then(|words| words.strip_prefix(TEMPLATE_PROGRAM)) {
            Some(arguments) => text.push_str(&format!("ExecStart={program}{arguments}")),
            None => text.push_str(line),
        }
        text.push('\n');
    }
    Ok(text)
}

/// A path as the first word of a command line in a unit (systemd.service(5), "Command lines"). `$`
/// stands for nothing there.
fn quoted(program: &Path) -> Result<String, CannotInstall> {
    let refuse = |problem: &str| CannotInstall::Program {
        path: program.into(),
        problem: problem.into(),
        way_out: String::new(),
    };
    let path = program.to_str().ok_or_else(|| refuse("its path is not UTF-8"))?;
    if path.chars().any(char::is_control) {
        return Err(refuse("its path has control characters"));
    }
    // Neither quoted nor escaped does every version take them in the name of a program.
    if path.contains(['\'', '"', '\\']) {
        return Err(refuse("its path has a quote or a backslash, which systemd does not take"));
    }
    let path = path.replace('%', "%%");
    let is_plain = |letter: char| letter.is_alphanumeric() || "/._-+@,:=~%".contains(letter);
    if path.chars().all(is_plain) {
        return Ok(path);
    }
    Ok(format!("\"{path}\""))
}

/// The program that a service starts, as far as it is written plainly.
fn program_of(unit: &str) -> Option<PathBuf> {
    let words = unit.lines().find_map(|line| line.strip_prefix("ExecStart="))?.trim();
    let words = words.trim_start_matches(['-', '@', ':', '+', '!']);
    let word = match words.strip_prefix('"') {
        Some(rest) => rest.split('"').next()?,
        None => words.split_whitespace().next()?,
    };
    let path = PathBuf::from(word.replace("%%", "%"));
    path.is_absolute().then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_is_filled_with_the_program_and_nothing_else_changes() {
        let program = Path::new("/home/ü/50% of/$authsock; #");
        for (unit, template) in USER_UNITS.iter().chain(&SYSTEM_UNITS) {
            let text = fill(template, program, 252).unwrap();
            assert!(text.lines().next().unwrap().contains(MARK), "{unit}");
            assert_eq!(text.contains("ExecStart="), *unit == SERVICE, "{unit}");
            assert!(!text.contains(TEMPLATE_PROGRAM), "{unit}: the path of a package is left");
            let (others, lines) = (template.lines().count(), text.lines().count());
            assert_eq!(lines, others + 1, "{unit}");
            let kept = |text: &str| {
                let lines =
                    text.lines().filter(|line| !line.starts_with("ExecStart=") && !line.contains(MARK));
                lines.map(str::to_owned).collect::<Vec<_>>()
            };
            assert_eq!(kept(&text), kept(template), "{unit}");
        }
        let text = fill(USER_UNITS[0].1, program, 252).unwrap();
        assert!(text.contains("\nExecStart=\"/home/ü/50%% of/$authsock; #\" serve\n"), "{text}");
        let plain = fill(USER_UNITS[0].1, Path::new("/home/me/.cargo/bin/authsock"), 252).unwrap();
        assert!(plain.contains("\nExecStart=/home/me/.cargo/bin/authsock serve\n"), "{plain}");
    }

    #[test]
    fn a_reload_is_announced_where_systemd_knows_the_type_and_asked_for_by_a_signal_elsewhere() {
        for (version, number) in
            [("252.39-1~deb12u2\n", 252), ("257 (257.13)", 257), ("262~rc1", 262), ("v1", 0), ("", 0)]
        {
            assert_eq!(number_of(version), number, "{version}");
        }
        for template in [USER_UNITS[0].1, SYSTEM_UNITS[0].1] {
            let of = |version| fill(template, Path::new("/a"), version).unwrap();
            for old in [of(0), of(252)] {
                assert!(
                    old.contains("\nType=notify\n") && old.contains("\nExecReload=/bin/kill -HUP"),
                    "{old}"
                );
            }
            let new = of(253);
            assert_eq!(new.matches("Type=").count(), 1 + new.matches("# Type=").count(), "{new}");
            assert!(new.contains("\nType=notify-reload\n") && !new.contains("ExecReload"), "{new}");
            assert_eq!(new, of(262));
        }
    }

    #[test]
    fn a_path_that_no_unit_can_hold_is_refused() {
        use std::os::unix::ffi::OsStrExt;
        for bad in ["/a\nb", "/home/o'brien/a", "/\"a\"", "/a\\b"] {
            assert!(quoted(Path::new(bad)).is_err(), "{bad}");
        }
        assert!(quoted(Path::new(std::ffi::OsStr::from_bytes(b"/a\xff"))).is_err());
    }

    #[test]
    fn the_program_of_a_unit_is_read_as_it_was_written() {
        for path in ["/usr/bin/authsock", "/a b/authsock", "/50%/authsock"] {
            let text = fill(USER_UNITS[0].1, Path::new(path), 252).unwrap();
            assert_eq!(program_of(&text), Some(path.into()));
        }
        assert_eq!(program_of("[Service]\nExecStart=-/bin/x y\n"), Some("/bin/x".into()));
        assert_eq!(program_of("[Service]\n"), None);
        assert_eq!(program_of("ExecStart=relative\n"), None);
    }

    #[test]
    fn a_package_counts_only_with_both_units_and_an_existing_program() {
        let temp = tempfile::tempdir().unwrap();
        let mut setup = Setup::of_system();
        setup.packaged = vec![temp.path().join("none"), temp.path().to_path_buf()];
        let dir =
            crate::kernel::dir::Dir::open_or_create(temp.path(), crate::kernel::dir::own_uid()).unwrap();
        assert_eq!(setup.packaged(), None);
        dir.replace(SERVICE, format!("ExecStart={}\n", temp.path().join("program").display()).as_bytes())
            .unwrap();
        dir.replace(SOCKET, b"").unwrap();
        assert_eq!(setup.packaged(), None, "there is no such program");
        dir.replace("program", b"").unwrap();
        assert_eq!(setup.packaged(), Some(temp.path().join("program")));
        dir.remove(SOCKET).unwrap();
        assert_eq!(setup.packaged(), None, "half of a package");
    }
}
