//! What a client finds around it: variables, directories, space, the clock, the configuration.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::report::{Id, InArea};
use crate::client::Options;
use crate::config::{BadConfig, Config};
use crate::kernel::dir::{self, Dir, Problem, own_uid, runs_with_foreign_environment};
use crate::kernel::survey;
use crate::place::{Places, process_env, var};

/// How far ahead of the clock a file or a session may seem to be: file systems round, clocks are set.
pub(super) const AHEAD: Duration = Duration::from_secs(5);

pub(super) fn environment(area: &mut InArea<'_>, options: &Options, places: &Places) {
    if runs_with_foreign_environment() {
        area.warning(
            Id::SetId,
            "set-user-ID, set-group-ID or capabilities",
            "this program runs with more rights than its user, so it reads no variable and starts no daemon",
            "run it without them",
        );
    }
    let set = |name: &&str| process_env(name).is_some();
    let tokens: Vec<&str> = [var::TOKEN, var::TOKEN_FD, var::TOKEN_FILE].into_iter().filter(set).collect();
    // A descriptor with the file beside it is how both are meant to be used.
    if tokens.len() > 1 && (tokens != [var::TOKEN_FD, var::TOKEN_FILE] || options.token_file.is_some()) {
        let used = if options.token_file.is_some() { "--token-file" } else { tokens[0] };
        area.warning(
            Id::SeveralTokens,
            tokens.join(" "),
            format!("several name a token; {used} is used, and nothing falls back to the others"),
            "leave one set",
        );
    }
    // The machine's daemon has nothing in it.
    if !places.is_system() {
        runtime_variable(area, places);
    }
    if process_env(var::HOME).is_none_or(|home| !Path::new(&home).is_absolute()) {
        area.warning(
            Id::HomeUnset,
            var::HOME,
            "is not set to an absolute path: there is no configuration, and a daemon that a client starts has no log",
            format!("set {}", var::HOME),
        );
    }
}

/// What follows from the variable that says where the runtime directory is.
fn runtime_variable(area: &mut InArea<'_>, places: &Places) {
    let usual = format!("/run/user/{}", own_uid());
    match process_env(var::XDG_RUNTIME_DIR) {
        Some(value) if !Path::new(&value).is_absolute() => area.warning(
            Id::RuntimeRelative,
            var::XDG_RUNTIME_DIR,
            "is no absolute path, so it is ignored (XDG Base Directory Specification)",
            "set it to /run/user/UID, or unset it",
        ),
        None if !cfg!(target_os = "linux") => {}
        None if places.runtime() == Path::new(&usual) => area.note(
            Id::RuntimeUnset,
            var::XDG_RUNTIME_DIR,
            format!("is not set; {usual} is used, as in a login"),
        ),
        None if !Path::new(&usual).exists() => area.note(
            Id::RuntimeUnset,
            var::XDG_RUNTIME_DIR,
            format!(
                "is not set, and there is no {usual} (this user has no login): {} is used instead",
                places.runtime().display()
            ),
        ),
        None => area.warning(
            Id::RuntimeUnset,
            var::XDG_RUNTIME_DIR,
            format!(
                "is not set, and {usual} is not yours alone, so {} is used: clients and daemons that have it set look in other places",
                places.runtime().display()
            ),
            format!("find out who made {usual}; chmod 700 it if it is yours, and export {}={usual}", var::XDG_RUNTIME_DIR),
        ),
        Some(_) => {}
    }
}

pub(super) fn directories(area: &mut InArea<'_>, places: &Places) {
    if !places.is_system() {
        runtime_directory(area, places);
    }
    state_directory(area, places);
}

fn runtime_directory(area: &mut InArea<'_>, places: &Places) {
    let runtime = places.runtime();
    match Dir::open(runtime, own_uid()) {
        Ok(_) => {
            let mode = runtime.symlink_metadata().map_or(0, |meta| meta.permissions().mode() & 0o7777);
            if mode & 0o077 == 0 {
                area.ok(Id::Runtime, runtime.display(), "the runtime directory is yours alone");
            } else {
                area.warning(
                    Id::RuntimeOpen,
                    runtime.display(),
                    format!(
                        "others may enter the runtime directory (mode {mode:04o}), and see what lies there"
                    ),
                    format!("chmod 700 {}", runtime.display()),
                );
            }
        }
        Err(unusable) if unusable.is_missing() => {
            let above = runtime.ancestors().skip(1).find(|path| path.exists()).unwrap_or(runtime);
            if survey::may_write(above) {
                let says = "the runtime directory does not exist; the first client makes it";
                area.note(Id::RuntimeMissing, runtime.display(), says);
            } else {
                let says = format!(
                    "the runtime directory does not exist, and this user may not make it in {}",
                    above.display()
                );
                let remedy = format!(
                    "log in (loginctl enable-linger makes it at boot), or unset {}",
                    var::XDG_RUNTIME_DIR
                );
                area.problem(Id::RuntimeMissing, runtime.display(), says, remedy);
            }
        }
        Err(unusable) => {
            let says = format!("{unusable} (the runtime directory)");
            let remedy = format!(
                "set {} to a directory of your own, mode 0700, or mend this one",
                var::XDG_RUNTIME_DIR
            );
            // A socket that is there can be used in a directory of root's, as in a container.
            let is_root_s = matches!(unusable.problem, Problem::NotOurs { owner: 0, .. });
            if is_root_s && places.init_socket().symlink_metadata().is_ok() {
                area.warning(Id::RuntimeUnusable, unusable.path.display(), says, remedy);
            } else {
                area.problem(Id::RuntimeUnusable, unusable.path.display(), says, remedy);
            }
        }
    }
}

fn state_directory(area: &mut InArea<'_>, places: &Places) {
    let state = places.state();
    // The machine's is root's: others pass through it without seeing what is there.
    let looked = if places.is_system() && own_uid() != 0 {
        dir::examine_passage(state, 0)
    } else {
        Dir::open(state, own_uid()).map(drop)
    };
    match looked {
        Ok(_) => {
            area.ok(Id::State, state.display(), "nobody else may change the directory of the token");
        }
        Err(unusable) if unusable.is_missing() => {
            area.note(Id::StateMissing, state.display(), "no daemon has run yet; the first makes it");
        }
        Err(unusable) => {
            let remedy = match unusable.problem {
                Problem::OthersMayWrite { .. } => {
                    format!("chmod go-w {}; then `authsock token rotate`", unusable.path.display())
                }
                Problem::NotOurs { .. } => {
                    "run as the user whose directory it is, or move it away".to_owned()
                }
                _ => format!("move it away: mv {0} {0}.old", unusable.path.display()),
            };
            area.problem(
                Id::StateUnusable,
                unusable.path.display(),
                format!("{unusable} (where the token lies)"),
                remedy,
            );
        }
    }
    if let Some((place, what)) = full(state) {
        let says = format!("its file system has no {what} left: no token and no session can be written");
        area.problem(Id::DiskFull, place.display(), says, make_room(place));
    }
    // A daemon serves without a log, too.
    if let Some((place, what)) = places.log().and_then(full) {
        let says = format!("its file system has no {what} left: a daemon that a client starts has no log");
        area.warning(Id::DiskFull, place.display(), says, make_room(place));
    }
    let token = places.owner_token();
    let changed = token.symlink_metadata().and_then(|meta| meta.modified());
    if changed.is_ok_and(|changed| changed > SystemTime::now() + AHEAD) {
        area.warning(
            Id::ClockBackwards,
            token.display(),
            "was written in the future: the clock has been set back since, so what expires lives longer",
            "set the clock; `authsock token rotate` writes it anew",
        );
    }
}

/// The directory, and what is used up there, if there is no room where `path` lies or would lie.
fn full(path: &Path) -> Option<(&Path, &'static str)> {
    let existing = path.ancestors().find(|path| path.exists())?;
    let space = survey::space(existing).ok()?;
    match (space.has_blocks, space.has_inodes) {
        (true, true) => None,
        (true, false) => Some((existing, "inodes")),
        (false, _) => Some((existing, "space")),
    }
}

fn make_room(place: &Path) -> String {
    format!("make room; `df {0}` and `df -i {0}` show how much there is", place.display())
}

/// The configuration, if it can be used.
pub(super) fn configuration(area: &mut InArea<'_>, options: &Options, places: &Places) -> Option<Config> {
    let given = options.config.as_deref();
    let path = given.or(places.config());
    let subject = path.map_or_else(|| "configuration".to_owned(), |path| path.display().to_string());
    let config = match Config::load(places.config(), given) {
        Ok(config) => config,
        Err(BadConfig::Invalid { path, problem }) => {
            // The first line says where, the last what; between them is the line itself.
            let (place, what) = problem.split_once('\n').unwrap_or((&problem, ""));
            let what = what.lines().last().unwrap_or_default();
            area.problem(
                Id::ConfigurationInvalid,
                path.display(),
                format!("{place}: {what}").trim_end_matches(": ").to_owned(),
                "mend that line; docs/configuration.md has every key. A daemon that serves already goes on by what it read before",
            );
            return None;
        }
        Err(BadConfig::Unusable(unusable)) => {
            let subject = unusable.path.display();
            match unusable.problem {
                Problem::OthersMayWrite { .. } => area.problem(
                    Id::ConfigurationWritable,
                    subject,
                    unusable.to_string(),
                    format!("chmod go-w {}", unusable.path.display()),
                ),
                // The daemon goes by it, and who comes to the daemon need not know it.
                Problem::Io { ref source, .. }
                    if source.kind() == ErrorKind::PermissionDenied
                        && given.is_none()
                        && places.is_system() =>
                {
                    area.note(
                        Id::ConfigurationUnusable,
                        subject,
                        "this user may not read it (EACCES); root reads it, and so does the daemon",
                    );
                }
                _ => area.problem(
                    Id::ConfigurationUnusable,
                    subject,
                    unusable.to_string(),
                    "mend or remove it; without one the defaults hold",
                ),
            }
            return None;
        }
    };
    if path.is_some_and(Path::exists) {
        area.ok(Id::Configuration, &subject, "can be read and is good");
    } else {
        area.ok(Id::Configuration, &subject, "there is none; the defaults hold");
    }
    if config.allow_root {
        area.note(Id::RootAllowed, &subject, "policy.allow_root: root may connect with a token");
    }
    if config.allow_unbound {
        area.warning(
            Id::UnboundAllowed,
            &subject,
            "client.allow_unbound: something between client and daemon is not found out",
            "remove it unless you forward the socket yourself",
        );
    }
    Some(config)
}
