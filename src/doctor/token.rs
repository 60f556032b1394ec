//! Which token a client would show, why, and what is wrong with it; of the token itself only its id is ever told.

use std::io::ErrorKind;

use super::report::{Id, InArea};
use crate::client::Options;
use crate::credential::discover::{self, NoToken, Source};
use crate::kernel::dir::{Problem, Unusable, own_uid};
use crate::place::{Places, var};
use crate::secret::file::BadTokenFile;

/// A daemon that is seen to run, by whom it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Running {
    /// By the init system.
    Init,
    /// By a client.
    OnDemand,
}

/// Whether a client would have something to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Credential {
    /// It has.
    Usable,
    /// Not before a daemon has run.
    NotYet,
    /// It gives up before it connects.
    None,
}

/// Looks for the token; `running` is a daemon that is known to run, and that should have made one.
pub(super) fn examine(
    area: &mut InArea<'_>,
    options: &Options,
    places: &Places,
    running: Option<Running>,
) -> Credential {
    let given = options.token_file.as_deref();
    // A descriptor is only read where that takes nothing from whoever shares it.
    let descriptor = discover::trusted_env(var::TOKEN_FD)
        .filter(|_| given.is_none() && discover::trusted_env(var::TOKEN).is_none());
    if let Some(number) = descriptor {
        let number = number.to_string_lossy().into_owned();
        let is_pipe = number.parse::<u32>().is_ok_and(|number| {
            number > 2 && std::fs::metadata(format!("/dev/fd/{number}")).is_ok_and(|found| !found.is_file())
        });
        if is_pipe {
            let subject = format!("{}={number}", var::TOKEN_FD);
            area.note(
                Id::TokenDescriptor,
                subject,
                "is a pipe: reading it would take the token from whoever is to have it",
            );
            return Credential::None;
        }
    }
    let error = match discover::token(&discover::trusted_env, places, given) {
        Ok(found) => {
            let why = match &found.source {
                Source::Given(_) => "named by --token-file",
                Source::Owner(_) if places.is_system() && own_uid() != 0 => {
                    "this user's, since no variable names one"
                }
                Source::Owner(_) => "the owner's, since no variable names one",
                Source::Credential(_) => "the service's credential",
                Source::Variable | Source::Descriptor(_) | Source::File(_) => "named by a variable",
            };
            let says = format!("would be shown: {why}; its id is {}", found.token.id());
            area.ok(Id::Token, &found.source, says);
            if found.source == Source::Variable {
                area.warning(
                    Id::TokenInVariable,
                    var::TOKEN,
                    "holds the token itself, which every program of this user can read and every child inherits",
                    format!("put it into a file of mode 0600 and name that in {}", var::TOKEN_FILE),
                );
            }
            return Credential::Usable;
        }
        Err(error) => error,
    };
    let says = error.to_string();
    match &error {
        NoToken::NotYet(path) => {
            let gone = "is not there (ENOENT), though a daemon runs that made it: somebody removed it";
            match running {
                // At the machine's daemon a user's is made at first contact.
                _ if places.is_system() => area.note(
                    Id::TokenNotYet,
                    path.display(),
                    "there is none yet (ENOENT); the daemon makes it when a user whom it admits first comes",
                ),
                None => area.note(
                    Id::TokenNotYet,
                    path.display(),
                    "there is none yet (ENOENT); the daemon makes it when it first starts",
                ),
                Some(Running::Init) => {
                    area.problem(Id::TokenGone, path.display(), gone, "systemctl --user restart authsock.service");
                }
                Some(Running::OnDemand) => area.problem(
                    Id::TokenGone,
                    path.display(),
                    gone,
                    "wait: the daemon notices by itself within 15 seconds, and ends; then run any client, which starts another",
                ),
            }
            return Credential::NotYet;
        }
        NoToken::SessionOver { path, .. } => {
            area.problem(Id::SessionOver, path.display(), says, over());
        }
        NoToken::SocketWithoutToken => {
            let remedy = format!("set {} too, or unset {}", var::TOKEN_FILE, var::SOCKET);
            area.problem(Id::SocketWithoutToken, var::SOCKET, says, remedy);
        }
        NoToken::BadDescriptor { .. } => {
            let remedy = format!("pass the descriptor on, or set {} beside it", var::TOKEN_FILE);
            area.problem(Id::TokenDescriptor, var::TOKEN_FD, says, remedy);
        }
        NoToken::NotAToken { name } => {
            area.problem(
                Id::TokenGarbage,
                name,
                says,
                format!("unset it, or name a file in {}", var::TOKEN_FILE),
            );
        }
        NoToken::BadFile { problem, .. } => bad_file(area, problem, says, Whose::Named),
        NoToken::Owner(problem) => bad_file(area, problem, says, Whose::Owner),
        NoToken::AtTheMachine(problem) => bad_file(area, problem, says, Whose::Machine),
    }
    Credential::None
}

/// What to do where a session has ended.
fn over() -> String {
    format!("start the program again with `authsock run`, or unset {} and {}", var::TOKEN_FILE, var::SOCKET)
}

/// Who keeps a token's file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// Somebody named it.
    Named,
    /// The user's own daemon made it.
    Owner,
    /// The daemon of the whole machine made it.
    Machine,
}

fn bad_file(area: &mut InArea<'_>, problem: &BadTokenFile, says: String, whose: Whose) {
    let (path, problem) = match problem {
        BadTokenFile::Unusable(Unusable { path, problem }) => (path, Some(problem)),
        BadTokenFile::NotAToken(path) => (path, None),
        // Nothing is ever made here.
        BadTokenFile::NoRandomness(_) => return,
    };
    let subject = path.display().to_string();
    let renew = match whose {
        Whose::Named => "; then `authsock token rotate` in its session, since others may have read it",
        Whose::Owner | Whose::Machine => "; then `authsock token rotate`, since others may have read it",
    };
    match problem {
        None | Some(Problem::TooLarge { .. }) => {
            let remedy = match whose {
                Whose::Named => "name a file that holds 64 hexadecimal digits".to_owned(),
                // Nobody could ask a daemon to retire without a token.
                Whose::Owner => format!(
                    "rm {subject}: a daemon that runs notices that, and makes room for one that makes a new token; else the first client does"
                ),
                Whose::Machine => format!(
                    "sudo rm {subject}: the daemon makes a new one (the user's at the next contact, its own after it noticed)"
                ),
            };
            area.problem(Id::TokenGarbage, &subject, says, remedy);
        }
        Some(Problem::Missing) => area.problem(
            Id::TokenMissing,
            &subject,
            format!("{says} (ENOENT: no such file; it is not a matter of permissions)"),
            "name a file that exists; in a container, mount it",
        ),
        Some(Problem::Link) => {
            area.problem(Id::TokenLink, &subject, says, "name the file itself, or put the file in the link's place");
        }
        Some(Problem::NotA { .. }) => {
            area.problem(Id::TokenWrongKind, &subject, says, format!("move it away: mv {subject} {subject}.old"));
        }
        Some(Problem::NotOurs { .. }) => area.problem(
            Id::TokenOwner,
            &subject,
            says,
            "run as the user whose token it is, or use one of your own; in a container, run with the uid of the daemon",
        ),
        Some(Problem::TooWide { .. }) => {
            area.problem(Id::TokenMode, &subject, says, format!("chmod 600 {subject}{renew}"));
        }
        Some(Problem::OthersMayWrite { .. }) => {
            area.problem(Id::TokenDirectory, &subject, says, format!("chmod go-w {subject}{renew}"));
        }
        Some(Problem::Io { source, .. }) if source.kind() == ErrorKind::PermissionDenied => area.problem(
            Id::TokenUnreadable,
            &subject,
            format!("{says} (EACCES: it may be there, but this user may not read it or enter its directory)"),
            "run as the user whose token it is; in a container, run with the uid of the daemon",
        ),
        Some(Problem::Io { .. }) => area.problem(Id::TokenUnreadable, &subject, says, "mend what the kernel names"),
    }
}
