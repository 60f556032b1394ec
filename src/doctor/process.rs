//! Why one process would be refused: whose it is, where it runs, which session it is in, and what it can reach.

use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::report::{Id, InArea};
use crate::config::{Account, Config};
use crate::kernel::accounts;
use crate::kernel::dir::own_uid;
use crate::kernel::peer::overflow_uid;
use crate::kernel::process::{Pid, Process};
use crate::kernel::survey::{self, Credentials};
use crate::place::{Places, var};

pub(super) fn examine(
    area: &mut InArea<'_>,
    pid: Pid,
    config: &Config,
    places: &Places,
    socket: &Path,
    sessions: Option<&[Value]>,
) {
    let subject = format!("process {pid}");
    let process = Process::open(pid);
    let credentials = survey::credentials(pid);
    let is_over = process.as_ref().is_ok_and(|process| !process.is_alive())
        || process
            .as_ref()
            .is_err_and(|error| error.kind() != ErrorKind::Unsupported && credentials.is_none());
    if is_over {
        let says =
            "does not run (any more): whoever connected as it is refused, since nothing vouches for it";
        return area.problem(
            Id::ProcessGone,
            subject,
            says,
            "name the pid of a process that runs, as this pid namespace counts",
        );
    }
    let Some(credentials) = credentials else {
        return area.note(Id::ProcessHidden, subject, "/proc shows nothing of it (hidepid, or no /proc)");
    };
    let exe = std::fs::read_link(format!("/proc/{pid}/exe")).map(|exe| exe.display().to_string());
    let name = process.as_ref().ok().and_then(Process::name).unwrap_or_default();
    let program =
        exe.unwrap_or_else(|_| format!("{name} (its program's path is not readable for this user)"));
    area.ok(Id::Process, &subject, format!("runs {program} as uid {}", credentials.uid));
    if places.is_system() {
        user_of_the_machine(area, &subject, &credentials, config);
    } else {
        user(area, &subject, &credentials, config);
    }
    namespaces(area, &subject, pid);
    match (&process, sessions) {
        (Ok(process), Some(sessions)) => session(area, &subject, process, sessions),
        _ => area.note(
            Id::ProcessSession,
            &subject,
            "which session it is in is not known: only a daemon that is asked can say",
        ),
    }
    reach(area, &subject, pid, &credentials, places, socket);
}

/// Whether its user is let in, as the gate decides.
fn user(area: &mut InArea<'_>, subject: &str, credentials: &Credentials, config: &Config) {
    let (uid, ours) = (credentials.uid, own_uid());
    if uid == overflow_uid() {
        let says = format!(
            "its uid {uid} stands for all users without a number here, so it is refused (peer_denied)"
        );
        area.problem(Id::ProcessUser, subject, says, "map its user into this user namespace");
    } else if uid == ours || (uid == 0 && config.allow_root) {
        area.ok(Id::ProcessUser, subject, format!("uid {uid} is let in by a daemon of uid {ours}"));
    } else if uid == 0 {
        let says = format!("uid 0 is not uid {ours}, so it is refused before a byte is read (peer_denied)");
        area.problem(
            Id::ProcessUser,
            subject,
            says,
            format!("run it as uid {ours}, or set allow_root = true under [policy]"),
        );
    } else {
        let says =
            format!("uid {uid} is not uid {ours}, so it is refused before a byte is read (peer_denied)");
        area.problem(
            Id::ProcessUser,
            subject,
            says,
            format!("run it as uid {ours} (in a container: --user {ours})"),
        );
    }
}

/// Whether the user who asks is let in by the daemon of the whole machine. One who is not has no
/// token by which the daemon itself could be asked.
pub(super) fn examine_own_user(area: &mut InArea<'_>, config: &Config) {
    if let Some(credentials) = survey::credentials(Pid::own()) {
        user_of_the_machine(area, &format!("process {}", Pid::own()), &credentials, config);
    }
}

/// The same for the daemon of the whole machine, which goes by its policy.
fn user_of_the_machine(area: &mut InArea<'_>, subject: &str, credentials: &Credentials, config: &Config) {
    let uid = credentials.uid;
    let is_in = |names: &[Account], numbers: &[u32], look_up: fn(&str) -> std::io::Result<Option<u32>>| {
        names.iter().any(|account| match account {
            Account::Number(number) => numbers.contains(number),
            Account::Name(name) => look_up(name).ok().flatten().is_some_and(|found| numbers.contains(&found)),
        })
    };
    if uid == 0 {
        area.ok(Id::ProcessUser, subject, "root is let in by the daemon of the whole machine");
    } else if is_in(&config.users, &[uid], accounts::uid_of) {
        area.ok(Id::ProcessUser, subject, format!("uid {uid} is let in: it is in policy.users"));
    } else if is_in(&config.groups, &credentials.groups, accounts::gid_of) {
        area.ok(Id::ProcessUser, subject, format!("uid {uid} is let in: it is in a group of policy.groups"));
    } else {
        let says = format!(
            "uid {uid} is in neither policy.users nor policy.groups, so it is refused before a byte is read (peer_denied)"
        );
        let remedy = "name the user, or a group of the user's, in /etc/authsock/config.toml, then `systemctl reload authsock`; a group that was joined lately counts from the next login on";
        area.problem(Id::ProcessUser, subject, says, remedy);
    }
}

fn namespaces(area: &mut InArea<'_>, subject: &str, pid: Pid) {
    for (kind, what) in [
        ("pid", "the daemon sees it by its pidfd only"),
        ("user", "its uid there is not the one that the daemon sees"),
        ("mnt", "paths may mean other files there"),
        ("net", "whether it sees listeners is its own affair; connecting goes by the file"),
    ] {
        match (survey::namespace(pid, kind), survey::namespace(Pid::own(), kind)) {
            (Ok(its), Ok(ours)) if its != ours => {
                area.note(
                    Id::ProcessNamespace,
                    subject,
                    format!("is in another {kind} namespace ({}): {what}", its.display()),
                );
            }
            (Err(error), Ok(_)) if error.kind() == ErrorKind::PermissionDenied => {
                return area.note(
                    Id::ProcessHidden,
                    subject,
                    "its namespaces and variables are not readable for this user (EACCES)",
                );
            }
            _ => {}
        }
    }
}

/// The session whose leader is the process or above it: the nearest decides.
fn session(area: &mut InArea<'_>, subject: &str, process: &Process, sessions: &[Value]) {
    let mut found = None;
    let walked = process.walk_up(&mut |steps, identity| {
        let session = sessions.iter().find(|session| {
            let leader = &session["leader"];
            leader["pid"] == identity.pid.0
                && identity
                    .pidfs
                    .is_none_or(|inode| leader["pidfs"].as_u64().is_none_or(|pidfs| pidfs == inode))
        })?;
        found = Some((steps, session));
        Some(true)
    });
    match (walked, found) {
        (_, Some((steps, session))) => {
            let text = |name: &str| session[name].as_str().unwrap_or("?").to_owned();
            area.note(
                Id::ProcessSession,
                subject,
                format!(
                    "is in session {} ({}), {steps} below its leader, process {}; the owner's token is refused there (binding), the session's own is good",
                    text("name"),
                    text("id"),
                    session["leader"]["pid"]
                ),
            );
        }
        (Ok(_), None) => {
            area.ok(Id::ProcessSession, subject, "is in no session that this program may see: tokens bound to a tree are refused, the owner's is good");
        }
        (Err(error), None) => {
            area.note(Id::ProcessHidden, subject, format!("its ancestors cannot be read: {error}"));
        }
    }
}

/// Whether it gets as far as the socket and the token that it would use.
fn reach(
    area: &mut InArea<'_>,
    subject: &str,
    pid: Pid,
    credentials: &Credentials,
    places: &Places,
    socket: &Path,
) {
    let environ = std::fs::read(format!("/proc/{pid}/environ"));
    let variable = |name: &str| {
        let environ = environ.as_ref().ok()?;
        let entries = environ.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        entries.filter_map(|entry| Some(entry.strip_prefix(name)?.strip_prefix('=')?.to_owned())).next()
    };
    let (named_socket, named_token) = (variable(var::SOCKET), variable(var::TOKEN_FILE));
    let mut set: Vec<String> = Vec::new();
    for (name, value) in [(var::SOCKET, &named_socket), (var::TOKEN_FILE, &named_token)] {
        set.extend(value.as_ref().map(|value| format!("{name}={value}")));
    }
    let holds_token = variable(var::TOKEN).is_some();
    if holds_token {
        set.push(format!("{} (not shown)", var::TOKEN));
    }
    let holds_descriptor = variable(var::TOKEN_FD).is_some();
    set.extend(variable(var::TOKEN_FD).map(|value| format!("{}={value}", var::TOKEN_FD)));
    if environ.is_ok() {
        let set = if set.is_empty() { "none of ours".to_owned() } else { set.join(" ") };
        area.note(Id::ProcessVariables, subject, format!("was started with {set}"));
    }
    // Its paths are looked up from its own root, where this program may.
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let root = if root.metadata().is_ok() { root } else { PathBuf::from("/") };
    let socket = named_socket.map_or_else(|| socket.to_path_buf(), PathBuf::from);
    match look(&root, &socket, credentials, 0o2) {
        Reach::Yes(meta) if meta.file_type().is_socket() => {}
        // What else may lie there is told with the socket.
        Reach::Yes(_) | Reach::Unknown => {}
        Reach::Missing(at) => area.problem(
            Id::ProcessSocketMissing,
            socket.display(),
            format!("{subject} finds no such file (ENOENT): {} does not exist where it runs", at.display()),
            "in a container: mount the socket; else start the daemon, or correct the variable",
        ),
        Reach::Forbidden(at, meta) => area.problem(
            Id::ProcessSocketForbidden,
            socket.display(),
            format!("{subject} may not connect (EACCES): {}", closed(&at, &meta, credentials)),
            format!("run it as uid {}; do not open the directory instead", meta.uid()),
        ),
    }
    if holds_token || (holds_descriptor && named_token.is_none()) {
        return;
    }
    let token = named_token.clone().map_or_else(|| places.owner_token(), PathBuf::from);
    match look(&root, &token, credentials, 0o4) {
        Reach::Yes(meta) if meta.uid() != credentials.uid && meta.uid() != 0 => area.problem(
            Id::ProcessTokenOwner,
            token.display(),
            format!("{subject} can read it, but would not trust it: it belongs to uid {}, not to uid {}", meta.uid(), credentials.uid),
            format!("run it as uid {}", meta.uid()),
        ),
        Reach::Yes(_) | Reach::Unknown => {}
        Reach::Missing(_) if named_token.is_none() => {}
        Reach::Missing(at) => area.problem(
            Id::ProcessTokenMissing,
            token.display(),
            format!("{subject} finds no such file (ENOENT): {} does not exist where it runs", at.display()),
            "its session is over: start it again with `authsock run`; in a container: mount the token's directory",
        ),
        Reach::Forbidden(at, meta) => area.problem(
            Id::ProcessTokenForbidden,
            token.display(),
            format!("{subject} may not read it (EACCES): {}", closed(&at, &meta, credentials)),
            format!("run it as uid {}; do not widen the token's mode, no client would take it then", meta.uid()),
        ),
    }
}

fn closed(at: &Path, meta: &std::fs::Metadata, credentials: &Credentials) -> String {
    format!(
        "{} (mode {:04o}, uid {}) is closed to uid {}",
        at.display(),
        meta.mode() & 0o7777,
        meta.uid(),
        credentials.fsuid
    )
}

/// How far somebody gets on the way to a file.
enum Reach {
    Yes(std::fs::Metadata),
    Missing(PathBuf),
    Forbidden(PathBuf, std::fs::Metadata),
    /// This program itself cannot look.
    Unknown,
}

/// Follows a path as the kernel would for these credentials: search permission on each directory,
/// then `wanted` (4 read, 2 write) on the file. Access lists and security modules are not asked.
fn look(root: &Path, path: &Path, credentials: &Credentials, wanted: u32) -> Reach {
    let mut so_far = PathBuf::from("/");
    let mut parts = path.components().skip(1).peekable();
    loop {
        let seen = root.join(so_far.strip_prefix("/").unwrap_or(&so_far));
        let meta = match seen.metadata() {
            Ok(meta) => meta,
            Err(error) if error.kind() == ErrorKind::NotFound => return Reach::Missing(so_far),
            Err(_) => return Reach::Unknown,
        };
        let Some(part) = parts.next() else {
            return if permits(&meta, credentials, wanted) {
                Reach::Yes(meta)
            } else {
                Reach::Forbidden(so_far, meta)
            };
        };
        if !permits(&meta, credentials, 0o1) {
            return Reach::Forbidden(so_far, meta);
        }
        so_far.push(part);
    }
}

fn permits(meta: &std::fs::Metadata, credentials: &Credentials, wanted: u32) -> bool {
    let shift = if meta.uid() == credentials.fsuid {
        6
    } else if credentials.groups.contains(&meta.gid()) {
        3
    } else {
        0
    };
    credentials.overrides || meta.mode() >> shift & wanted == wanted
}
