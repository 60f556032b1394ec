//! Why one process would be refused: whose it is, where it runs, which session it is in, and what it can reach.

use std::io::ErrorKind;
use std::path::Path;

use serde_json::Value;

use super::reach;
use super::report::{Id, InArea};
use crate::config::{Account, Config};
use crate::kernel::accounts;
use crate::kernel::dir::own_uid;
use crate::kernel::peer::overflow_uid;
use crate::kernel::process::{Pid, Process};
use crate::kernel::survey::{self, Credentials};
use crate::place::Places;

pub(super) fn examine(
    area: &mut InArea<'_>,
    pid: Pid,
    config: Option<&Config>,
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
    // At the daemon of the whole machine each user has a token of their own.
    let its = places.is_system().then(|| places.clone().at_the_system_daemon(credentials.uid));
    reach::examine(area, &subject, pid, &credentials, its.as_ref().unwrap_or(places), socket);
}

/// Whether its user is let in, as the gate decides.
fn user(area: &mut InArea<'_>, subject: &str, credentials: &Credentials, config: Option<&Config>) {
    let (uid, ours) = (credentials.uid, own_uid());
    if uid == overflow_uid() {
        let says = format!(
            "its uid {uid} stands for all users without a number here, so it is refused (peer_denied)"
        );
        area.problem(Id::ProcessUser, subject, says, "map its user into this user namespace");
    } else if uid == ours {
        area.ok(Id::ProcessUser, subject, format!("uid {uid} is let in by a daemon of uid {ours}"));
    } else if uid == 0 && config.is_some_and(|config| config.allow_root) {
        area.ok(Id::ProcessUser, subject, "uid 0 is let in: by the file policy.allow_root is set");
    } else if uid == 0 && config.is_none() {
        area.note(
            Id::ProcessUser,
            subject,
            "whether uid 0 is let in is not known, since the configuration (policy.allow_root) cannot be used",
        );
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
pub(super) fn examine_own_user(area: &mut InArea<'_>, config: Option<&Config>) {
    if let Some(credentials) = survey::credentials(Pid::own()) {
        user_of_the_machine(area, &format!("process {}", Pid::own()), &credentials, config);
    }
}

/// The same for the daemon of the whole machine, which goes by its policy.
fn user_of_the_machine(
    area: &mut InArea<'_>,
    subject: &str,
    credentials: &Credentials,
    config: Option<&Config>,
) {
    let uid = credentials.uid;
    let is_in = |names: &[Account], numbers: &[u32], look_up: fn(&str) -> std::io::Result<Option<u32>>| {
        names.iter().any(|account| match account {
            Account::Number(number) => numbers.contains(number),
            Account::Name(name) => look_up(name).ok().flatten().is_some_and(|found| numbers.contains(&found)),
        })
    };
    if uid == 0 {
        return area.ok(Id::ProcessUser, subject, "root is let in by the daemon of the whole machine");
    }
    let Some(config) = config else {
        let says = format!(
            "whether uid {uid} is let in is not known: that is for policy.users and policy.groups of a configuration that cannot be used here"
        );
        return area.note(Id::ProcessUser, subject, says);
    };
    if is_in(&config.users, &[uid], accounts::uid_of) {
        area.ok(Id::ProcessUser, subject, format!("uid {uid} is let in: by the file it is in policy.users"));
    } else if is_in(&config.groups, &credentials.groups, accounts::gid_of) {
        area.ok(
            Id::ProcessUser,
            subject,
            format!("uid {uid} is let in: by the file it is in a group of policy.groups"),
        );
    } else {
        let says = format!(
            "by the file uid {uid} is in neither policy.users nor policy.groups, so it is refused before a byte is read (peer_denied)"
        );
        let remedy = "name the user, or a group of the user's, in /etc/authsock/config.toml, then `sudo systemctl try-reload-or-restart authsock`; a group that was joined lately counts from the next login on";
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
            let is_it = match (identity.pidfs, leader["pidfs"].as_u64()) {
                (Some(inode), Some(pidfs)) => inode == pidfs,
                // The pid of a leader that ended with its session may be another's by now.
                _ => session["reason"].is_null(),
            };
            leader["pid"] == identity.pid.0 && is_it
        })?;
        found = Some((steps, session));
        Some(true)
    });
    match (walked, found) {
        (_, Some((steps, session))) => {
            let text = |name: &str| session[name].as_str().unwrap_or("?").to_owned();
            if let Some(reason) = session["reason"].as_str() {
                let says = format!(
                    "is {steps} below process {}, which led session {} ({}): that has ended ({}), but below its leader the owner's token is refused as before (binding)",
                    session["leader"]["pid"],
                    text("name"),
                    text("id"),
                    reason.replace('_', " ")
                );
                return area.problem(
                    Id::ProcessSession,
                    subject,
                    says,
                    "start it again with `authsock run`, from outside of what is left of that session",
                );
            }
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
