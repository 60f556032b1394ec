//! What one process finds at the paths that it would use: its variables, and every directory on the way to socket and token.

use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::report::{Id, InArea};
use crate::kernel::process::Pid;
use crate::kernel::survey::{self, Credentials, Environment};
use crate::place::{self, Places, var};

/// Most characters that are told of a value that a stranger set.
const SHOWN_MAX: usize = 512;

/// Whether it gets as far as the socket and the token that it would use. Where nothing is named, these are `places` of
/// its own user, and `socket`.
pub(super) fn examine(
    area: &mut InArea<'_>,
    subject: &str,
    pid: Pid,
    credentials: &Credentials,
    places: &Places,
    socket: &Path,
) {
    let environment = survey::in_time(move || Environment::of(pid)).and_then(Result::ok);
    let variable = |name: &str| environment.as_ref()?.variable(name);
    let (named_socket, named_token) = (variable(var::SOCKET), variable(var::TOKEN_FILE));
    let (holds_token, descriptor) = (variable(var::TOKEN).is_some(), variable(var::TOKEN_FD));
    let mut set: Vec<String> = Vec::new();
    for (name, value) in [(var::SOCKET, &named_socket), (var::TOKEN_FILE, &named_token)] {
        set.extend(value.as_ref().map(|value| format!("{name}={}", told(value))));
    }
    if holds_token {
        set.push(format!("{} (not shown)", var::TOKEN));
    }
    set.extend(descriptor.as_ref().map(|value| format!("{}={}", var::TOKEN_FD, told(value))));
    if let Some(environment) = &environment {
        let set = if set.is_empty() { "none of ours".to_owned() } else { set.join(" ") };
        let cut = if environment.is_cut {
            format!(
                "; only the first {} bytes of its variables were read, there are more",
                survey::ENVIRONMENT_MAX
            )
        } else {
            String::new()
        };
        area.note(Id::ProcessVariables, subject, format!("was started with {set}{cut}"));
    }
    let look = |path: PathBuf, wanted: u32| {
        let credentials = credentials.clone();
        survey::in_time(move || look(pid, &path, &credentials, wanted)).unwrap_or(Reach::Unknown)
    };
    let path = named_socket.clone().map_or_else(|| socket.to_path_buf(), PathBuf::from);
    let socket = told(&path.to_string_lossy());
    match look(path, 0o2) {
        // What else may lie there is told with the socket.
        Reach::Yes(_) | Reach::Unknown => {}
        Reach::Missing(at) => area.problem(
            Id::ProcessSocketMissing,
            &socket,
            format!("{subject} finds no such file (ENOENT): {at} does not exist where it runs"),
            "in a container: mount the socket; else start the daemon, or correct the variable",
        ),
        Reach::Forbidden(at, meta) => area.problem(
            Id::ProcessSocketForbidden,
            &socket,
            format!("{subject} may not connect (EACCES): {}", closed(&at, &meta, credentials)),
            if places.is_system() && meta.file_type().is_socket() {
                super::socket::JOIN_ITS_GROUP.to_owned()
            } else {
                format!("run it as uid {}; do not open the directory instead", meta.uid())
            },
        ),
    }
    if holds_token || (descriptor.is_some() && named_token.is_none()) {
        return;
    }
    let path = named_token.clone().map_or_else(|| places.owner_token(), PathBuf::from);
    let token = told(&path.to_string_lossy());
    match look(path, 0o4) {
        Reach::Yes(meta) if meta.uid() != credentials.uid && meta.uid() != 0 => area.problem(
            Id::ProcessTokenOwner,
            &token,
            format!("{subject} can read it, but would not trust it: it belongs to uid {}, not to uid {}", meta.uid(), credentials.uid),
            format!("run it as uid {}", meta.uid()),
        ),
        Reach::Yes(_) | Reach::Unknown => {}
        Reach::Missing(_) if named_token.is_none() => {}
        Reach::Missing(at) => area.problem(
            Id::ProcessTokenMissing,
            &token,
            format!("{subject} finds no such file (ENOENT): {at} does not exist where it runs"),
            "its session is over: start it again with `authsock run`; in a container: mount the token's directory",
        ),
        Reach::Forbidden(at, meta) => area.problem(
            Id::ProcessTokenForbidden,
            &token,
            format!("{subject} may not read it (EACCES): {}", closed(&at, &meta, credentials)),
            format!("run it as uid {}; do not widen the token's mode, no client would take it then", meta.uid()),
        ),
    }
}

/// A value of a stranger's, as it may be told: not a token, and no longer than anybody reads.
fn told(value: &str) -> String {
    let value = place::showable(value);
    match value.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}… (cut)", &value[..end]),
        None => value.to_owned(),
    }
}

fn closed(at: &str, meta: &std::fs::Metadata, credentials: &Credentials) -> String {
    format!(
        "{at} (mode {:04o}, uid {}) is closed to uid {}",
        meta.mode() & 0o7777,
        meta.uid(),
        credentials.fsuid
    )
}

/// How far somebody gets on the way to a file. Paths are told as they may be.
enum Reach {
    Yes(std::fs::Metadata),
    Missing(String),
    Forbidden(String, std::fs::Metadata),
    /// This program itself cannot look.
    Unknown,
}

/// Follows a path as the kernel would for this process: from its own root, where this program may, with search
/// permission on each directory, then `wanted` (4 read, 2 write) on the file. Access lists and security modules are not
/// asked.
fn look(pid: Pid, path: &Path, credentials: &Credentials, wanted: u32) -> Reach {
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let root = if root.metadata().is_ok() { root } else { PathBuf::from("/") };
    let Some(path) = survey::absolute_for(pid, path) else { return Reach::Unknown };
    let mut so_far = PathBuf::from("/");
    let mut parts = path.components().skip(1);
    loop {
        let meta = match survey::metadata_below(&root, &so_far) {
            Ok(meta) => meta,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Reach::Missing(told(&so_far.to_string_lossy()));
            }
            Err(_) => return Reach::Unknown,
        };
        let part = parts.next();
        if !permits(&meta, credentials, if part.is_some() { 0o1 } else { wanted }) {
            return Reach::Forbidden(told(&so_far.to_string_lossy()), meta);
        }
        match part {
            Some(part) => so_far.push(part),
            None => return Reach::Yes(meta),
        }
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
