//! Which socket a client would use, why, and what is wrong with it; it is looked at and never connected to.

use std::path::Path;

use super::report::{Id, InArea};
use crate::client::Options;
use crate::client::connect::{self, Route};
use crate::credential::discover;
use crate::kernel::dir::own_uid;
use crate::kernel::socket::{BadSocket, CheckedSocket};
use crate::kernel::survey;
use crate::place::{self, Places, SocketPath, var};

/// The way out where a socket is written by a group (SocketMode=0660 with SocketGroup=).
pub(super) const JOIN_ITS_GROUP: &str =
    "have root add the user to the socket's group (usermod -aG GROUP USER), then log in anew";

/// What is known of the socket without connecting to it.
pub(super) struct Seen {
    /// The way that a client would take.
    pub(super) route: Route,
    /// Whether its file passed every check.
    pub(super) is_usable: bool,
    /// Whether somebody listens there; `None` where that cannot be seen from here.
    pub(super) is_listened_on: Option<bool>,
    /// Whether none runs because no client has needed one yet: the first one starts it.
    pub(super) awaits_a_client: bool,
}

impl Seen {
    pub(super) fn path(&self) -> &Path {
        self.route.path()
    }

    /// The path as it may be told: a variable may hold a token in its place.
    pub(super) fn told(&self) -> String {
        place::showable(&self.path().to_string_lossy()).to_owned()
    }
}

pub(super) fn examine(area: &mut InArea<'_>, options: &Options, places: &Places) -> Seen {
    let route = connect::route(places, options.socket.as_deref());
    let variable = discover::trusted_env(var::SOCKET);
    let by_variable = options.socket.is_none() && variable.is_some();
    let mut seen = Seen { route, is_usable: false, is_listened_on: Some(false), awaits_a_client: false };
    let path = seen.told();
    let why = match &seen.route {
        Route::Named(_) if options.socket.is_some() => "named by --socket".to_owned(),
        Route::Named(_) => format!("named by {}", var::SOCKET),
        Route::Init(_) => "the init system's socket is there, and goes before one on demand".to_owned(),
        Route::System(_) => "the one of the whole machine".to_owned(),
        Route::OnDemand(_) if by_variable => format!(
            "{} names the place of a daemon that a client starts, and there is no init system's socket",
            var::SOCKET
        ),
        Route::OnDemand(_) => {
            format!("there is no init system's socket at {}: on demand", places.init_socket().display())
        }
    };
    area.ok(Id::SocketRoute, &path, format!("would be used: {why}"));
    let checked = match SocketPath::new(seen.path()) {
        Ok(checked) => checked,
        Err(problem) => {
            let remedy =
                format!("set {} or {} to a shorter, absolute path", var::XDG_RUNTIME_DIR, var::SOCKET);
            let says = problem.to_string().replace(&*seen.path().to_string_lossy(), &path);
            area.problem(Id::SocketPath, &path, says, remedy);
            return seen;
        }
    };
    // Where nothing is named a client starts a daemon; else whoever named the socket meant one that runs.
    let may_start = matches!(seen.route, Route::OnDemand(_))
        && options.socket.is_none()
        && !discover::is_named(&discover::trusted_env);
    let stale = "authsock status, outside of the session: it starts a daemon, and a session whose leader still runs goes on";
    let is_session_s = by_variable && matches!(seen.route, Route::Named(_) | Route::OnDemand(_));
    let begin = "systemctl --user restart authsock.socket; see `systemctl --user status authsock.socket authsock.service`. If authsock is not installed any more, remove the file";
    let looked = match seen.route {
        Route::System(_) => CheckedSocket::look_at_root_s(&checked),
        _ => CheckedSocket::look(&checked, own_uid()),
    };
    match looked {
        Ok(_) => {}
        Err(problem) => {
            let says = problem.to_string();
            match &problem {
                BadSocket::Missing(_) if may_start => {
                    seen.awaits_a_client = true;
                    area.note(Id::SocketMissing, &path, "no daemon runs; the first client starts one");
                }
                BadSocket::Missing(_) if is_session_s => {
                    let says = format!("{} names a socket that does not exist: the daemon of this session does not run, and what is in a session starts none", var::SOCKET);
                    area.problem(Id::StaleSocket, &path, says, stale);
                }
                BadSocket::Missing(_) if matches!(seen.route, Route::System(_)) && connect::has_no_systemd() => {
                    area.problem(Id::SocketMissing, &path, says, connect::NO_SYSTEMD);
                }
                BadSocket::Missing(_) if matches!(seen.route, Route::System(_)) => {
                    let remedy = "sudo authsock install --system; if it is installed, sudo systemctl restart authsock.socket";
                    area.problem(Id::SocketMissing, &path, says, remedy);
                }
                BadSocket::Missing(_) if matches!(seen.route, Route::Init(_)) => {
                    let remedy = format!(
                        "systemctl --user restart authsock.socket; if authsock is not installed any more, unset {} and {}",
                        var::SOCKET,
                        var::TOKEN_FILE
                    );
                    area.problem(Id::SocketMissing, &path, says, remedy);
                }
                BadSocket::Missing(_) => {
                    area.problem(Id::SocketMissing, &path, says, "name the socket of a daemon that runs, or none");
                }
                BadSocket::NotASocket(_) => {
                    let remedy = format!("move it away: mv {path} {path}.old; then `systemctl --user restart authsock.socket` if that is installed");
                    area.problem(Id::SocketWrongKind, &path, says, remedy);
                }
                BadSocket::NotOurs { path: at, .. } => area.problem(
                    Id::SocketOwner,
                    at.display(),
                    says,
                    "use a socket in a directory of your own; find out who made this one",
                ),
                BadSocket::OthersMayWrite { path: at, .. } => area.problem(
                    Id::SocketWritable,
                    at.display(),
                    says,
                    format!("chmod go-w {}", at.display()),
                ),
                BadSocket::Forbidden { path: at, .. } => area.problem(
                    Id::SocketForbidden,
                    at.display(),
                    format!("{says} (EACCES: it, or a directory above it, is closed to this user; it is not missing)"),
                    "run as the user whose daemon it is; in a container, run with that uid",
                ),
                _ => area.problem(Id::SocketUnusable, &path, says, "mend what the kernel names"),
            }
            return seen;
        }
    }
    if !survey::may_write(seen.path()) {
        let says = "it is there, but this user may not write it, which is to connect (EACCES): its SocketMode= or SocketGroup= keeps this user out";
        let remedy = match seen.route {
            Route::System(_) => JOIN_ITS_GROUP,
            _ => "run as the user whose daemon it is, or chmod u+w it if that is you",
        };
        area.problem(Id::SocketForbidden, &path, says, remedy);
        return seen;
    }
    seen.is_usable = true;
    seen.is_listened_on = match survey::is_listened_on(seen.path()) {
        Some(false) if survey::is_mount_point(seen.path()) || survey::has_other_names(seen.path()) => None,
        known => known,
    };
    match seen.is_listened_on {
        Some(true) => area.ok(
            Id::Socket,
            &path,
            "a socket of yours or root's that nobody else can replace, and somebody listens",
        ),
        None => area.note(
            Id::SocketListenerUnknown,
            &path,
            "a good socket; who listens cannot be seen from here without connecting, which could start a daemon",
        ),
        Some(false) if may_start => {
            seen.awaits_a_client = true;
            let says = "left behind by a daemon that was killed or could not start; the next client replaces it";
            area.note(Id::SocketLeftBehind, &path, says);
        }
        Some(false) if is_session_s => {
            let says = format!("{} names a socket on which nobody listens: the daemon of this session does not run, and what is in a session starts none", var::SOCKET);
            area.problem(Id::StaleSocket, &path, says, stale);
        }
        Some(false) if matches!(seen.route, Route::System(_)) && connect::has_no_systemd() => {
            area.problem(Id::SocketDead, &path, "nobody listens on it", connect::NO_SYSTEMD);
        }
        Some(false) => area.problem(Id::SocketDead, &path, "nobody listens on it", begin),
    }
    seen
}
