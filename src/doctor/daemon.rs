//! What a daemon that runs says of itself; one that does not run is not started to be asked.

use std::time::Duration;

use serde_json::{Value, json};

use super::report::{Id, InArea};
use super::socket::Seen;
use super::surroundings::AHEAD;
use super::systemd::Units;
use super::token::{Credential, Running};
use crate::client::connect::Route;
use crate::client::{Client, ConnectError, Options};
use crate::config::Config;
use crate::gate::now;
use crate::handshake::client::{Bound, Failure};
use crate::kernel::dir::own_uid;
use crate::kernel::process::Pid;
use crate::kernel::survey;
use crate::place::{LOCK_FILE, Places};
use crate::session::OWNER;

/// How long a daemon that runs may take to answer, unless the caller says.
const PATIENCE: Duration = Duration::from_secs(5);
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Asks the daemon, if that starts nothing. Returns the sessions that it tells of.
pub(super) async fn examine(
    area: &mut InArea<'_>,
    options: &Options,
    places: &Places,
    socket: &Seen,
    units: &Units,
    token: Credential,
    config: Option<&Config>,
) -> Option<Vec<Value>> {
    let asked = ask(area, options, places, socket, units, token).await;
    let (status, is_in_sight, sessions) = match asked {
        Some(Asked { status, is_in_sight, sessions }) => (Some(status), is_in_sight, Some(sessions)),
        None => (None, false, None),
    };
    let reload = reload(status.as_ref(), is_in_sight, units);
    let path = options.config.as_deref().or(places.config());
    let unread = match status.filter(|status| status["version"] == VERSION) {
        Some(status) => {
            let its = &status["configuration"];
            let is_same_place = path.is_some_and(|path| its["path"].as_str() == path.to_str());
            let is_same = |config: &Config| its["fingerprint"] == config.fingerprint();
            path.filter(|_| is_same_place && config.is_some_and(|config| !is_same(config)))
        }
        None => units.unread.as_deref(),
    };
    if let Some(path) = unread {
        area.warning(
            Id::ConfigurationUnread,
            path.display(),
            "has changed since the daemon read it: the daemon goes on by what it read",
            reload,
        );
    }
    sessions
}

/// What a daemon that was asked has told.
struct Asked {
    status: Value,
    /// Whether its kernel sees this very process, so that its own number is good here as well.
    is_in_sight: bool,
    sessions: Vec<Value>,
}

/// How a daemon is told to read its configuration again: by systemd where that runs it, else by a signal.
fn reload(status: Option<&Value>, is_in_sight: bool, units: &Units) -> String {
    let is_a_unit_s = |status: &Value| status["activation"] == "init" && units.service_runs == Some(true);
    let Some(status) = status.filter(|status| !is_a_unit_s(status)) else {
        return "systemctl --user try-reload-or-restart authsock.service".to_owned();
    };
    match status["pid"].as_u64().filter(|_| is_in_sight) {
        Some(pid) if status["uid"] == own_uid() => format!("kill -HUP {pid}"),
        Some(pid) => format!("sudo kill -HUP {pid}"),
        None => "send the daemon's process SIGHUP, where it runs: its number there is in `authsock status`"
            .to_owned(),
    }
}

/// What it says of itself, and the sessions that it tells of.
async fn ask(
    area: &mut InArea<'_>,
    options: &Options,
    places: &Places,
    socket: &Seen,
    units: &Units,
    token: Credential,
) -> Option<Asked> {
    if !may_connect(area, places, socket, units) {
        return None;
    }
    let path = socket.told();
    if token != Credential::Usable {
        area.note(Id::DaemonNotAsked, path, "a daemon runs, but without a token it cannot be asked");
        return None;
    }
    // Without a program none is started.
    let options = Options {
        program: None,
        only_looks: true,
        timeout: Some(options.timeout.unwrap_or(PATIENCE)),
        ..options.clone()
    };
    let mut client = match Client::connect(&options).await {
        Ok(client) => client,
        Err(error) => {
            refused(area, places, socket, &error);
            return None;
        }
    };
    let who = match client.call("whoami", None).await {
        Ok(who) => who,
        Err(error) => {
            area.problem(Id::DaemonUnreachable, path, error.to_string(), unstick(&socket.route));
            return None;
        }
    };
    said(area, socket, &client, &who);
    let status = client.call("status", None).await.unwrap_or_default();
    condition(area, socket, &status);
    let sessions = sessions(&mut client).await;
    let latest = sessions.iter().filter_map(|session| session["created_ms"].as_u64()).max().unwrap_or(0);
    if latest > now().saturating_add(u64::try_from(AHEAD.as_millis()).unwrap_or(u64::MAX)) {
        area.warning(
            Id::ClockBackwards,
            path,
            "has sessions that began in the future: the clock has been set back since, so what expires lives longer",
            "set the clock; sessions with a time to live end later by as much",
        );
    }
    Some(Asked { status, is_in_sight: *client.bound() == Bound::Yes, sessions })
}

/// A daemon that is known to run without being asked, by whom it was started.
pub(super) fn seen_running(places: &Places, socket: &Seen, units: &Units) -> Option<Running> {
    match socket.route {
        Route::OnDemand(_) if socket.is_listened_on == Some(true) => Some(Running::OnDemand),
        // Where systemd cannot be asked, a daemon's lock tells of it.
        Route::Init(_) if socket.is_usable && units.service_runs.is_none() => {
            survey::is_locked(&places.state().join(LOCK_FILE)).filter(|held| *held).map(|_| Running::Init)
        }
        Route::Init(_) if socket.is_usable && units.is_active => Some(Running::Init),
        _ => None,
    }
}

/// Whether a connection would find a daemon that runs already. Where it would start one, or where
/// that cannot be known, there is none.
fn may_connect(area: &mut InArea<'_>, places: &Places, socket: &Seen, units: &Units) -> bool {
    let path = socket.told();
    if socket.awaits_a_client {
        area.note(Id::DaemonNotRunning, path, "not running; the first client starts it");
        return false;
    }
    if units.is_restarting && socket.path() == places.init_socket() {
        let says = "does not run: it ends at once, and systemd starts it again and again";
        area.note(Id::DaemonNotRunning, path, says);
        return false;
    }
    if !socket.is_usable || socket.is_listened_on == Some(false) {
        area.note(Id::DaemonNotRunning, path, "cannot be reached by this socket, so it is not asked");
        return false;
    }
    // No init system listens there: whoever does is a daemon already.
    if socket.path() == places.ondemand_socket() {
        return true;
    }
    let is_ours = socket.path() == places.init_socket() || units.listens_on(socket.path());
    let by_client = survey::is_listened_on(&places.ondemand_socket()) == Some(true);
    let is_locked = || survey::is_locked(&places.state().join(LOCK_FILE));
    // A socket of somebody else's may belong to a service that a connection would start.
    let runs = match units.service_runs {
        _ if !is_ours => None,
        Some(runs) => Some(runs),
        None if by_client => Some(false),
        None => is_locked(),
    };
    match runs {
        Some(true) => return true,
        Some(false) if by_client => area.note(
            Id::DaemonOther,
            places.ondemand_socket().display(),
            "a daemon that a client started still runs; it hands over at the first connection to the init system's socket",
        ),
        Some(false) => area.note(Id::DaemonNotRunning, path, "not running; the first client starts it"),
        None => area.note(
            Id::DaemonNotAsked,
            path,
            "whether a daemon runs behind it can only be learned by connecting, which could start one",
        ),
    }
    false
}

fn restart(route: &Route) -> String {
    match route {
        Route::Init(_) | Route::System(_) => "systemctl --user restart authsock.service".to_owned(),
        Route::OnDemand(_) | Route::Named(_) => {
            "authsock call daemon.retire; the next client starts the new one".to_owned()
        }
    }
}

/// What to do with one that does not answer: first to learn why, since what fails again is only started again.
fn unstick(route: &Route) -> String {
    format!("`authsock logs -n 20` says why; then {}", restart(route))
}

fn refused(area: &mut InArea<'_>, places: &Places, socket: &Seen, error: &ConnectError) {
    let (path, says) = (socket.path().display(), error.to_string());
    match error {
        ConnectError::Handshake { failure: Failure::StaleTokenOrImpostor, .. } => area.problem(
            Id::StaleToken,
            path,
            says,
            format!(
                "if a variable names the token: start the program again with `authsock run`. If somebody wrote another one to {0}: {1}rm {0}, and a new one is made. Else find out who listens there (ss -xlp)",
                places.owner_token().display(),
                if places.is_system() { "sudo " } else { "" }
            ),
        ),
        ConnectError::Handshake { failure: Failure::Relay(_) | Failure::Incomparable(_), .. } => area.problem(
            Id::Unbound,
            path,
            says,
            "find out who listens there (ss -xlp); if you forwarded the socket yourself, [client] allow_unbound = true",
        ),
        ConnectError::Handshake { failure, .. } => match failure.code() {
            Some("revoked" | "expired") => area.problem(
                Id::SessionOver,
                path,
                says,
                "start the program again with `authsock run`, from outside of what is left of that session",
            ),
            Some("version") => {
                area.problem(Id::VersionDiffers, path, says, format!("upgrade the older side; then {}", restart(&socket.route)));
            }
            Some("binding") => {
                let is_system = matches!(socket.route, Route::System(_));
                let hidden = survey::hidepid(is_system).filter(|hidden| hidden.blinds);
                let remedy = match hidden {
                    Some(hidden) => format!(
                        "/proc is mounted with hidepid={}, so the daemon can place nobody outside of a session while one lives: {}",
                        hidden.option,
                        super::kernel::show_processes(is_system)
                    ),
                    None => "this process is not where its token is good: use the token of its own session (AUTHSOCK_TOKEN_FILE), or start it with `authsock run`".to_owned(),
                };
                area.problem(Id::DaemonRefused, path, says, remedy);
            }
            Some("peer_denied") if matches!(socket.route, Route::System(_)) => area.problem(
                Id::DaemonRefused,
                path,
                says,
                "root admits users in /etc/authsock/config.toml, under [policy]: users or groups",
            ),
            _ => area.problem(
                Id::DaemonRefused,
                path,
                says,
                "the daemon's log has the reason: authsock logs -n 20; so has systemctl --user status authsock.service",
            ),
        },
        ConnectError::Timeout(..) | ConnectError::Lost(_) => {
            area.problem(Id::DaemonUnreachable, path, says, unstick(&socket.route));
        }
        _ => area.problem(Id::DaemonUnreachable, path, says, "mend what it names"),
    }
}

/// Who answered, and for whom it takes us.
fn said(area: &mut InArea<'_>, socket: &Seen, client: &Client, who: &Value) {
    let (path, daemon, session) = (socket.path().display().to_string(), &who["daemon"], &who["session"]);
    let (version, pid) = (daemon["version"].as_str().unwrap_or("?"), &daemon["pid"]);
    let brief = client.session();
    area.ok(
        Id::Daemon,
        &path,
        format!(
            "process {pid}, authsock {version}, proved itself and took this process for session {} ({})",
            brief.name, brief.id
        ),
    );
    if version != VERSION {
        area.warning(
            Id::VersionDiffers,
            format!("process {pid}"),
            format!("the daemon is authsock {version}, this program {VERSION}"),
            restart(&socket.route),
        );
    }
    if brief.id != OWNER {
        let leader = match &session["leader"]["pid"] {
            Value::Null => "without a leader".to_owned(),
            pid => format!("led by process {pid}"),
        };
        area.note(
            Id::InsideSession,
            format!("session {} ({})", brief.name, brief.id),
            format!("this process is in it, {leader}; at and below the leader the owner's token is refused (binding)"),
        );
    }
    if let Bound::Unbound(reason) = client.bound() {
        area.warning(
            Id::Unbound,
            &path,
            format!("{reason}; let pass by client.allow_unbound"),
            "use the daemon's own socket",
        );
    }
}

/// What the daemon complains of, and what is nearly used up.
fn condition(area: &mut InArea<'_>, socket: &Seen, status: &Value) {
    let subject = format!("process {}", status["pid"]);
    for complaint in status["complaints"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        area.warning(
            Id::Complaint,
            &subject,
            format!("complains: {complaint}"),
            "mend what it names; it looks again by itself or after a reload",
        );
    }
    let limit_of = |name: &str| status["limits"][name].as_u64();
    // All sessions of a user's own daemon are that user's.
    let is_less =
        limit_of("sessions_per_uid").zip(limit_of("sessions")).is_some_and(|(user, all)| user < all);
    let is_one_user_s = status["mode"] != "system" && is_less;
    let sessions = if is_one_user_s { "sessions_per_uid" } else { "sessions" };
    for (used, limit) in
        [("connections", "connections"), ("in_handshake", "unauthenticated"), ("sessions", sessions)]
    {
        let (Some(used_up), Some(most)) = (status[used].as_u64(), limit_of(limit)) else {
            continue;
        };
        let says = format!("{used_up} of {most} {} are in use", used.replace('_', " "));
        let remedy = format!(
            "raise the limit ({limit} in the configuration), or end what is not needed (`authsock session list`)"
        );
        if used_up >= most {
            area.problem(Id::LimitReached, &subject, says, remedy);
        } else if used_up.saturating_mul(10) >= most.saturating_mul(9) {
            area.warning(Id::LimitReached, &subject, says, remedy);
        }
    }
    let wanted =
        ["connections", "unauthenticated"].iter().filter_map(|name| status["limits"][name].as_u64()).sum();
    let pid = status["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).map(Pid);
    if let Some(open) = pid.and_then(survey::descriptor_limit_of)
        && open < wanted
    {
        area.warning(
            Id::DaemonDescriptors,
            &subject,
            format!("may have {open} descriptors open, but up to {wanted} connections"),
            format!(
                "raise LimitNOFILE= (or `ulimit -n`), or lower limits.connections; then {}",
                restart(&socket.route)
            ),
        );
    }
}

/// All sessions that this one may see: first those that live, then those that have ended and are remembered.
async fn sessions(client: &mut Client) -> Vec<Value> {
    let is_owner = client.session().id == OWNER;
    let mut sessions = Vec::new();
    for ended in [false, true] {
        let asked = json!({ "all_realms": is_owner, "ended": ended });
        sessions.extend(client.sessions(asked).await.unwrap_or_default());
    }
    sessions
}
