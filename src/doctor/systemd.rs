//! What systemd says of the units: asked with a deadline and without a shell, through the user manager's own socket; it starts nothing.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use super::program;
use super::report::{Id, InArea};
use crate::client::Options;
use crate::kernel::dir::{own_uid, runs_with_foreign_environment};
use crate::kernel::process::Pid;
use crate::kernel::survey;
use crate::place::{Places, process_env, var};

/// How long systemctl may take.
const PATIENCE: Duration = Duration::from_secs(5);
const SOCKET: &str = "authsock.socket";
const SERVICE: &str = "authsock.service";
/// What is asked of each unit.
const PROPERTIES: &str = "Id,LoadState,LoadError,ActiveState,SubState,UnitFileState,Result,StatusText,ExecStart,NeedDaemonReload,ActiveEnterTimestampMonotonic,StateChangeTimestampMonotonic,Listen,MainPID,NRestarts,ProtectHome,PrivateTmp";

/// What decides whether a connection would start a daemon.
#[derive(Debug, Default)]
pub(super) struct Units {
    /// The file of the configuration that the service seems not to have read as it is.
    pub(super) unread: Option<PathBuf>,
    /// Whether the service runs; `None` where systemd cannot be asked or has no such unit.
    pub(super) service_runs: Option<bool>,
    /// Whether the service has been ready, and still runs.
    pub(super) is_active: bool,
    /// Whether the service ends at once, and systemd starts it again and again.
    pub(super) is_restarting: bool,
    /// Where the socket unit listens, as systemctl words it.
    listen: String,
}

impl Units {
    /// Whether the socket unit listens on this path.
    pub(super) fn listens_on(&self, path: &Path) -> bool {
        is_among(&self.listen, path)
    }
}

/// Whether `Listen=`, which is `PATH (Stream)` for each, has this path.
fn is_among(listen: &str, path: &Path) -> bool {
    listen.split_whitespace().any(|word| Path::new(word) == path)
}

type Unit = HashMap<String, String>;

pub(super) async fn examine(area: &mut InArea<'_>, options: &Options, places: &Places) -> Units {
    if !cfg!(target_os = "linux") {
        return Units::default();
    }
    if runs_with_foreign_environment() {
        // Where `systemctl` is found is then for a stranger to say.
        area.note(
            Id::ManagerUnreachable,
            "systemctl --user",
            "is not asked by a program that runs with more rights than its user",
        );
        return Units::default();
    }
    let units = match ask(places).await {
        Ok(units) => units,
        Err(Silent::NotInstalled) => {
            let says = if places.is_system() {
                "is not installed here, so nothing starts the daemon of the whole machine"
            } else {
                "is not installed here; daemons are started on demand"
            };
            area.note(Id::SystemdAbsent, "systemctl", says);
            return Units::default();
        }
        Err(Silent::Said(words)) => {
            let says = format!("the user's manager cannot be asked: {words}");
            if places.init_socket().symlink_metadata().is_ok() {
                let remedy = if places.is_system() {
                    "`systemctl is-system-running` says how the machine is; without systemd a daemon is not started by its socket"
                        .to_owned()
                } else {
                    format!(
                        "log in (su and cron have no user manager), or set {}; without one a daemon is not started by its socket",
                        var::XDG_RUNTIME_DIR
                    )
                };
                area.warning(Id::ManagerUnreachable, "systemctl --user", says, remedy);
            } else {
                area.note(Id::ManagerUnreachable, "systemctl --user", says);
            }
            return Units::default();
        }
    };
    let empty = Unit::new();
    let (socket, service) = (units.get(SOCKET).unwrap_or(&empty), units.get(SERVICE).unwrap_or(&empty));
    let is_absent = |unit: &Unit| matches!(get(unit, "LoadState"), "not-found" | "");
    if is_absent(socket) && is_absent(service) {
        let says = if places.is_system() {
            "is not installed, and no client starts a daemon of the whole machine: sudo authsock install --system"
        } else {
            "is not installed; daemons are started on demand"
        };
        area.note(Id::UnitsAbsent, SOCKET, says);
        return Units::default();
    }
    for (name, unit) in [(SOCKET, socket), (SERVICE, service)] {
        examine_unit(area, name, unit);
    }
    if get(socket, "LoadState") == "loaded" {
        examine_socket(area, socket, places);
    }
    if get(service, "LoadState") == "loaded" {
        examine_service(area, service, places);
    }
    if let Some(user) = survey::user_name(own_uid()).filter(|_| !places.is_system())
        && !survey::lingers(&user)
    {
        area.note(
            Id::NoLinger,
            &user,
            "does not linger: with the last logout the runtime directory goes, and the token and all sessions with it (loginctl enable-linger keeps them)",
        );
    }
    let (state, is_restarting) = (get(service, "ActiveState"), is_restarting(service));
    // One that is about to end would be started again.
    let runs = ["active", "reloading", "activating"].contains(&state) && !is_restarting;
    Units {
        unread: unread(service, options, places),
        service_runs: Some(runs),
        is_active: ["active", "reloading"].contains(&state),
        is_restarting,
        listen: get(socket, "Listen").to_owned(),
    }
}

/// Why systemd could not be asked.
enum Silent {
    NotInstalled,
    Said(String),
}

async fn ask(places: &Places) -> Result<HashMap<String, Unit>, Silent> {
    let mut command = tokio::process::Command::new("systemctl");
    command
        .args((!places.is_system()).then_some("--user"))
        .args(["--no-pager", "show", SOCKET, SERVICE, "-p", PROPERTIES])
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    for name in var::NAMED_SOURCES {
        command.env_remove(name);
    }
    // The manager's own socket lies there; su and cron leave the variable out.
    if process_env(var::XDG_RUNTIME_DIR).is_none() && places.runtime().starts_with("/run/user") {
        command.env(var::XDG_RUNTIME_DIR, places.runtime());
    }
    let output = match tokio::time::timeout(PATIENCE, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => return Err(Silent::NotInstalled),
        Ok(Err(error)) => return Err(Silent::Said(error.to_string())),
        Err(_) => return Err(Silent::Said(format!("no answer within {PATIENCE:?}"))),
    };
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let words = words.lines().next().unwrap_or_default().trim();
        return Err(Silent::Said(if words.is_empty() {
            output.status.to_string()
        } else {
            words.to_owned()
        }));
    }
    Ok(read(&String::from_utf8_lossy(&output.stdout)))
}

/// What `systemctl show` prints: `NAME=VALUE` line by line, a blank line between units.
fn read(text: &str) -> HashMap<String, Unit> {
    let mut units = HashMap::new();
    for block in text.split("\n\n") {
        let mut unit = Unit::new();
        for (name, value) in block.lines().filter_map(|line| line.split_once('=')) {
            // A unit that listens in two places has two lines for it.
            let all: &mut String = unit.entry(name.to_owned()).or_default();
            if !all.is_empty() {
                all.push(' ');
            }
            all.push_str(value);
        }
        if let Some(id) = unit.get("Id") {
            units.insert(id.clone(), unit);
        }
    }
    units
}

fn get<'a>(unit: &'a Unit, name: &str) -> &'a str {
    unit.get(name).map_or("", String::as_str)
}

/// What both kinds of unit can suffer from.
fn examine_unit(area: &mut InArea<'_>, name: &str, unit: &Unit) {
    match get(unit, "LoadState") {
        "loaded" => {}
        "masked" => {
            let remedy = format!("systemctl --user unmask {name} && systemctl --user restart {SOCKET}");
            return area.problem(Id::UnitMasked, name, "is masked: systemd starts it for nobody", remedy);
        }
        "not-found" | "" => {
            let says = "is not there, though its other half is";
            return area.problem(Id::UnitMissing, name, says, "authsock install");
        }
        state => {
            let says = format!("cannot be loaded ({state}): {}", get(unit, "LoadError"));
            let remedy = format!(
                "systemctl --user edit --full {name}; systemd-analyze --user verify {name} names the line"
            );
            return area.problem(Id::UnitBroken, name, says, remedy);
        }
    }
    if get(unit, "NeedDaemonReload") == "yes" {
        let says = "its file has changed since systemd read it";
        area.warning(Id::UnitChanged, name, says, "systemctl --user daemon-reload");
    }
    if get(unit, "ActiveState") == "failed" {
        let result = get(unit, "Result");
        let again = format!("see `authsock logs -n 20`, then systemctl --user restart {SOCKET}");
        match result {
            "trigger-limit-hit" => area.problem(
                Id::UnitTriggerLimit,
                name,
                "has failed (trigger-limit-hit): the daemon ended at once, again and again, so systemd no longer listens",
                again,
            ),
            "start-limit-hit" | "service-start-limit-hit" => area.problem(
                Id::UnitStartLimit,
                name,
                format!("has failed ({result}): the daemon was started too often in too short a time"),
                format!("see `authsock logs -n 20`, then systemctl --user reset-failed {SERVICE} and restart {SOCKET}"),
            ),
            _ => area.problem(Id::UnitFailed, name, format!("has failed ({result})"), again),
        }
    }
}

fn examine_socket(area: &mut InArea<'_>, unit: &Unit, places: &Places) {
    let state = get(unit, "ActiveState");
    let path = places.init_socket();
    match state {
        "active" => {}
        "failed" => return,
        _ if path.symlink_metadata().is_ok() => {
            let says = format!(
                "is {state}: nobody listens, and since its file is there no client starts a daemon instead"
            );
            area.problem(Id::UnitStopped, SOCKET, says, format!("systemctl --user start {SOCKET}"));
        }
        _ => {
            let says = format!("is {state}: clients start a daemon on demand instead");
            area.warning(Id::UnitStopped, SOCKET, says, format!("systemctl --user enable --now {SOCKET}"));
        }
    }
    match get(unit, "UnitFileState") {
        "disabled" => {
            let says = "is disabled: after the next login nobody listens";
            area.warning(Id::UnitDisabled, SOCKET, says, format!("systemctl --user enable {SOCKET}"));
        }
        enabled if state == "active" => {
            let enabled = if enabled.is_empty() { "not from a file" } else { enabled };
            area.ok(Id::Unit, SOCKET, format!("{state} ({}), {enabled}", get(unit, "SubState")));
        }
        _ => {}
    }
    let listens_here = is_among(get(unit, "Listen"), &path);
    if state != "active" || !listens_here {
        return;
    }
    let again = format!("systemctl --user restart {SOCKET}");
    let Ok(meta) = path.symlink_metadata() else {
        let says = format!("systemd listens ({SOCKET}), but the file was removed: clients do not find it");
        return area.problem(Id::SocketFileGone, path.display(), says, again);
    };
    // The socket file is made when the unit becomes active, and nothing changes its time after.
    let unit_age = get(unit, "ActiveEnterTimestampMonotonic").parse().ok().and_then(survey::since_monotonic);
    let file_age = meta.modified().ok().and_then(|made| made.elapsed().ok());
    if let (Some(unit_age), Some(file_age)) = (unit_age, file_age)
        && file_age + super::surroundings::AHEAD < unit_age
    {
        let says =
            format!("is younger than the unit that listens ({SOCKET}): something else has taken its place");
        area.problem(
            Id::SocketFileReplaced,
            path.display(),
            says,
            format!("find out what made it; then {again}"),
        );
    }
}

/// Whether systemd starts the service again and again: it waits to do so, or is just at it after it did.
fn is_restarting(service: &Unit) -> bool {
    let again = get(service, "NRestarts").parse().is_ok_and(|restarts: u32| restarts > 0);
    get(service, "ActiveState") == "activating"
        && (get(service, "SubState").starts_with("auto-restart") || again)
}

fn examine_service(area: &mut InArea<'_>, unit: &Unit, places: &Places) {
    if let Some(path) = program_of(get(unit, "ExecStart")) {
        let facts = program::Facts {
            is_home_hidden: ["yes", "tmpfs"].contains(&get(unit, "ProtectHome")),
            is_temporary_hidden: !["", "no"].contains(&get(unit, "PrivateTmp")),
            main: get(unit, "MainPID").parse().ok().filter(|pid| *pid != 0).map(Pid),
        };
        program::examine(area, &path, &facts, places);
    }
    match get(unit, "ActiveState") {
        "failed" => {}
        _ if is_restarting(unit) => area.problem(
            Id::UnitRestarting,
            SERVICE,
            format!("ends at once ({}), and systemd starts it again and again", get(unit, "Result")),
            "authsock logs -n 20, and systemctl --user status authsock.service",
        ),
        state => area.ok(Id::Unit, SERVICE, format!("{state} ({})", get(unit, "SubState"))),
    }
    let status = get(unit, "StatusText");
    if !status.is_empty() {
        area.note(Id::UnitStatus, SERVICE, format!("says: {status}"));
    }
}

/// The file of the configuration that seems to have changed since the daemon read it, which it does when it starts and when
/// it is told to: by the clocks, where it cannot be asked.
fn unread(unit: &Unit, options: &Options, places: &Places) -> Option<PathBuf> {
    /// How much two clocks may seem to differ.
    const MARGIN: Duration = Duration::from_millis(500);
    let path = options.config.as_deref().or(places.config())?;
    // A reload is a change of state, too.
    let changed = get(unit, "StateChangeTimestampMonotonic").parse().ok().and_then(survey::since_monotonic);
    let state_age = changed.filter(|_| get(unit, "ActiveState") == "active")?;
    let fragments = path.with_file_name("config.d");
    let inside = std::fs::read_dir(&fragments).into_iter().flatten().flatten().map(|entry| entry.path());
    let inside = inside.filter(|path| path.extension().is_some_and(|extension| extension == "toml"));
    let all = [path.to_path_buf(), fragments.clone()].into_iter().chain(inside);
    let ages = all.filter_map(|path| Some((survey::since_changed(&path)?, path)));
    ages.min().filter(|(age, _)| *age + MARGIN < state_age).map(|(_, newest)| newest)
}

/// The program out of `{ path=/usr/bin/authsock ; argv[]=… }`.
fn program_of(exec: &str) -> Option<PathBuf> {
    let (_, rest) = exec.split_once("path=")?;
    Some(PathBuf::from(rest.split(" ;").next()?.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systemctl_prints_is_read_unit_by_unit() {
        let text = "Id=authsock.socket\nLoadState=loaded\nListen=/run/user/1/authsock.sock (Stream)\nListen=/run/user/1/other (Stream)\n\nId=authsock.service\nExecStart={ path=/usr/bin/authsock ; argv[]=/usr/bin/authsock serve ; pid=0 }\nStatusText=a=b\n";
        let units = read(text);
        assert_eq!(get(&units[SOCKET], "LoadState"), "loaded");
        assert_eq!(get(&units[SERVICE], "StatusText"), "a=b");
        assert_eq!(program_of(get(&units[SERVICE], "ExecStart")), Some("/usr/bin/authsock".into()));
        assert_eq!(get(&units[SERVICE], "Listen"), "");
        for path in ["/run/user/1/authsock.sock", "/run/user/1/other"] {
            assert!(is_among(get(&units[SOCKET], "Listen"), Path::new(path)), "{path}");
        }
        assert!(!is_among(get(&units[SOCKET], "Listen"), Path::new("/run/user/1")));
    }
}
