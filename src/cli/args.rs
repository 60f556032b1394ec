//! What may be said on the command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::client::Start;
use crate::session::Binding;
use crate::session::limits::TTL_MAX;
use crate::wire::event::NotAPlace;
use crate::wire::subject::{Pattern, Subject};

pub(super) const AFTER_HELP: &str = "\
Exit codes:
  0    done
  1    the daemon answered with an error, install could not be carried out, or doctor found a problem
  2    the command line makes no sense
  3    no daemon: it cannot be reached, cannot be started, or cannot serve
  4    refused: by the daemon, or by this program because of what listens there
  125  run: authsock itself failed, CMD was not started
  126  run: CMD cannot be executed
  127  run: there is no such CMD
  else run: CMD's own code, or 128 plus the number of the signal that ended it

Environment:
  AUTHSOCK_SOCKET      the socket to use
  AUTHSOCK_TOKEN_FILE  a file that holds the token
  AUTHSOCK_TOKEN_FD    an inherited descriptor that holds the token
  AUTHSOCK_TOKEN       the token itself (for tests)
  AUTHSOCK_LOG         what is logged: error, warn, info, debug, trace
  XDG_RUNTIME_DIR      where sockets and the owner's token lie";

const DOCTOR_HELP: &str = "\
Exit codes:
  0  nothing keeps a client from its daemon (there may be warnings)
  1  there is at least one problem
  2  the command line makes no sense

docs/doctor.md explains each finding by its id.";

const PUBLISH_HELP: &str = "\
Arguments can be seen by other programs of this machine: what they must not know comes from standard input (-).

The daemon keeps events in memory, for those who come later: as long as it runs. It exits once nothing has used it for \
a while (lifecycle.idle_exit_seconds; with 0 it stays).";

const SUBSCRIBE_HELP: &str = "\
* stands for one word of a subject and > for all that follow: put both in quotes, or the shell takes them for its own.

With --json each line is an object whose type is subscribed, event, gap, unsubscribed or away. A gap says which events \
do not come. What is kept is so for as long as the daemon runs; it exits once nothing has used it for a while \
(lifecycle.idle_exit_seconds; with 0 it stays). docs/events.md has the rest.";

/// Authenticated local sockets: every connection has a proven peer, and every request belongs to a
/// session.
#[derive(Debug, Parser)]
#[command(name = "authsock", version, about, after_help = AFTER_HELP)]
pub struct Args {
    #[command(flatten)]
    pub(super) common: Common,
    #[command(subcommand)]
    pub(super) verb: Verb,
}

/// Options of every verb.
#[derive(Debug, clap::Args)]
pub(super) struct Common {
    /// Print JSON, for programs
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// The daemon's socket, instead of looking for one
    #[arg(long, global = true, value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,
    /// The file that holds the token, instead of looking for one
    #[arg(long, global = true, value_name = "PATH")]
    pub(super) token_file: Option<PathBuf>,
    /// A configuration file, instead of ~/.config/authsock/config.toml
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// The daemon of the whole machine, instead of the user's own
    #[arg(long, global = true, conflicts_with = "socket")]
    pub(super) system: bool,
    /// How long to wait for the daemon, in seconds
    #[arg(long, global = true, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(super) timeout: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Be the daemon, on a socket that an init system (or a client) passed
    Serve(Serve),
    /// Run a program as a session that it can prove
    Run(Run),
    /// Show which session this process belongs to
    Whoami,
    /// Show how the daemon does
    Status,
    /// Show what keeps clients from the daemon, and the way out; changes and starts nothing
    #[command(after_help = DOCTOR_HELP)]
    Doctor(Doctor),
    /// Call a method of the daemon
    Call(Call),
    /// List, show, rename or end sessions, or give one a new token
    #[command(subcommand)]
    Session(Session),
    /// Tell the other sessions of this realm something: publish an event
    #[command(after_help = PUBLISH_HELP)]
    Publish(Publish),
    /// Hear what the other sessions of this realm publish, or what they did: a line for each event
    #[command(after_help = SUBSCRIBE_HELP)]
    Subscribe(Subscribe),
    /// Set authsock up with the init system (systemd, launchd): it owns the socket from then on
    Install(Install),
    /// Take away everything that `install` set up, and what the daemon left
    Uninstall(Uninstall),
    /// Replace the token of the session that this process belongs to
    #[command(subcommand)]
    Token(Token),
    /// Print what a shell needs to belong to this session: eval "$(authsock env)"
    Env(Env),
    /// Show the daemon's log: the journal, or the file where it has one
    Logs(Logs),
    /// Write the manual's pages or the shells' completions, for packages
    #[command(subcommand)]
    Generate(Generate),
}

#[derive(Debug, clap::Args)]
pub(super) struct Env {
    /// The shell that is to read it [default: the one that this was started by, else sh]
    #[arg(long, value_enum)]
    pub(super) shell: Option<Shell>,
    /// Print what removes the variables that name a socket or a token
    #[arg(long, short = 'k')]
    pub(super) unset: bool,
}

/// Shells by what they understand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Shell {
    /// sh, bash, dash, ksh, zsh
    #[value(aliases = ["bash", "dash", "ksh", "zsh"])]
    Sh,
    /// fish
    Fish,
    /// csh, tcsh; its eval needs double quotes around what it takes
    #[value(alias = "tcsh")]
    Csh,
}

impl Shell {
    /// The shell that a program of this name is. $SHELL would be no help: it names the login's, whatever
    /// shell a script or a terminal runs.
    pub(super) fn of(name: Option<&str>) -> Shell {
        match name {
            Some("fish") => Shell::Fish,
            Some("csh" | "tcsh" | "bsd-csh") => Shell::Csh,
            _ => Shell::Sh,
        }
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Logs {
    /// Go on showing what is logged
    #[arg(long, short)]
    pub(super) follow: bool,
    /// Only the last N lines [default: all, and 10 with --follow]
    #[arg(long, short = 'n', value_name = "N")]
    pub(super) lines: Option<usize>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Generate {
    /// Write authsock.1 and a page for each verb
    Man {
        /// Where to; made if it does not exist
        dir: PathBuf,
    },
    /// Write completions: authsock for bash, _authsock for zsh, authsock.fish
    Completions {
        /// Where to; made if it does not exist
        dir: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Serve {
    /// Started by a client, which holds the other end of standard error
    #[arg(long, hide = true)]
    pub(super) on_demand: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Run {
    /// The session's name [default: CMD's file name]
    #[arg(long, value_name = "N")]
    pub(super) name: Option<String>,
    /// The realm; another than the parent's is for the owner, and for a user's own session [default: the parent's]
    #[arg(long, value_name = "R")]
    pub(super) realm: Option<String>,
    /// How long the session's token is good: seconds, or a number with s, m, h or d; CMD goes on
    #[arg(long, value_name = "T", value_parser = duration)]
    pub(super) ttl: Option<u64>,
    /// A scope of the session (docs/sessions.md); replaces the default ones, may be repeated
    #[arg(long, value_name = "SCOPE")]
    pub(super) allow: Vec<String>,
    /// Where the session's token is good: in CMD's process tree, or for the whole user
    #[arg(long, value_enum)]
    pub(super) bind: Option<Bind>,
    /// Keep CMD from tokens, the session bus and processes that are not its own (Linux; docs/sessions.md)
    #[arg(long)]
    pub(super) confine: bool,
    /// The program, and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub(super) command: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Bind {
    Uid,
    Tree,
}

impl From<Bind> for Binding {
    fn from(bind: Bind) -> Binding {
        match bind {
            Bind::Uid => Binding::Uid,
            Bind::Tree => Binding::Tree,
        }
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Doctor {
    /// Show why this process would be refused, too
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..=4_194_304))]
    pub(super) pid: Option<u32>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Call {
    /// The method: ping, whoami, status, session.create, … (docs/protocol.md)
    pub(super) method: String,
    /// Its parameters as JSON; - reads them from standard input
    pub(super) params: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Publish {
    /// What it is about: words between dots, as in build.linux.done
    pub(super) subject: Subject,
    /// What to say, a text; - reads it from standard input, without the last newline [default: nothing; standard input is not read then]
    #[arg(allow_negative_numbers = true)]
    pub(super) data: Option<String>,
    /// DATA is JSON and no text
    #[arg(long)]
    pub(super) json_data: bool,
    /// Another realm (for the owner, and a user's own session)
    #[arg(long)]
    pub(super) realm: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Subscribe {
    /// What to hear: subjects, perhaps with wildcards
    #[arg(required = true, value_name = "SUBJECT")]
    pub(super) subjects: Vec<Pattern>,
    /// What came after this event and is kept, by its number or its EPOCH:NUMBER; then it ends
    #[arg(long, value_name = "NUMBER", value_parser = since, conflicts_with = "lines")]
    pub(super) since: Option<Start>,
    /// The newest N that are kept, or all; then it ends
    #[arg(long, short = 'n', value_name = "N", value_parser = lines)]
    pub(super) lines: Option<Start>,
    /// Go on showing what comes, also after a restart of the daemon; the default without --since and --lines
    #[arg(long, short)]
    pub(super) follow: bool,
    /// Another realm (for the owner, and a user's own session)
    #[arg(long)]
    pub(super) realm: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Session {
    /// List the living sessions of this realm
    List {
        /// Another realm (for the owner, and a user's own session)
        #[arg(long, conflicts_with = "all_realms")]
        realm: Option<String>,
        /// All realms (for the owner, and a user's own session)
        #[arg(long)]
        all_realms: bool,
        /// Those that ended within the last hour, and why, instead of those that live
        #[arg(long)]
        ended: bool,
        /// Each below the one that it came from
        #[arg(long, conflicts_with = "ended")]
        tree: bool,
    },
    /// Show all that is known of a session, also of one that ended within the last hour
    Show {
        /// Its id [default: the session that this process belongs to]
        id: Option<String>,
    },
    /// Give a session another name
    Rename {
        /// Its id
        id: String,
        /// Its name from now on
        name: String,
    },
    /// Make a new token for a session; the old one still connects for a minute
    Rotate {
        /// Its id; another's than one's own needs --write [default: the session that this process belongs to]
        id: Option<String>,
        /// The file that the new token is written to, 0600, in the place of what is there [default: where the old one came from]
        #[arg(long, value_name = "FILE")]
        write: Option<PathBuf>,
        /// The old token is worth nothing at once
        #[arg(long)]
        now: bool,
    },
    /// End a session and all that came from it: its token is worth nothing any more, its programs go on
    Revoke {
        /// Its id
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Token {
    /// Make a new token; the old one still connects for a minute
    Rotate {
        /// The old token is worth nothing at once
        #[arg(long)]
        now: bool,
    },
}

/// For whom something is installed.
#[derive(Debug, clap::Args)]
pub(super) struct Whom {
    /// For this user (the default); --system is for the whole machine, and needs root
    #[arg(long, conflicts_with = "system")]
    pub(super) user: bool,
    /// Say what would be done, and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Install {
    #[command(flatten)]
    pub(super) whom: Whom,
}

#[derive(Debug, clap::Args)]
pub(super) struct Uninstall {
    #[command(flatten)]
    pub(super) whom: Whom,
    /// Remove the configuration too
    #[arg(long)]
    pub(super) purge: bool,
}

/// An event by its number alone, or by its place.
fn since(text: &str) -> Result<Start, String> {
    if text.contains(':') {
        return text.parse().map(Start::After).map_err(|error: NotAPlace| error.to_string());
    }
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|_| is_number);
    number
        .map(Start::AfterNumber)
        .ok_or_else(|| "expected a number, or EPOCH:NUMBER, as an event tells both".into())
}

/// How many events.
fn lines(text: &str) -> Result<Start, String> {
    match text {
        "all" => Ok(Start::Kept),
        number => number.parse().map(Start::Last).map_err(|_| "expected a number, or all".to_owned()),
    }
}

/// Seconds, or numbers with units, as in 1h30m.
fn duration(text: &str) -> Result<u64, String> {
    let form = || "expected a number of seconds, or numbers with s, m, h or d, as in 1h30m".to_owned();
    let mut seconds: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let factor = match after.bytes().next() {
            Some(b's') => 1,
            Some(b'm') => 60,
            Some(b'h') => 3600,
            Some(b'd') => 86_400,
            None if number.len() == text.len() => 1,
            _ => return Err(form()),
        };
        rest = after.get(1..).unwrap_or_default();
        let number: u64 = match number.parse() {
            Ok(number) => number,
            Err(error) if *error.kind() == std::num::IntErrorKind::PosOverflow => u64::MAX,
            Err(_) => return Err(form()),
        };
        seconds = seconds.saturating_add(number.saturating_mul(factor));
    }
    match seconds {
        _ if text.is_empty() => Err(form()),
        1..=TTL_MAX => Ok(seconds),
        _ => Err("expected 1 second to 366 days".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn durations_have_units() {
        for (text, seconds) in [
            ("90", 90),
            ("90s", 90),
            ("2m", 120),
            ("1h", 3600),
            ("1d", 86_400),
            ("1h30m", 5400),
            ("366d", TTL_MAX),
        ] {
            assert_eq!(duration(text), Ok(seconds));
        }
        for bad in
            ["", "m", "0", "0s", "1w", "-1", "1.5h", "1h30", "367d", "366d1s", "99999999999999999999d", "ü"]
        {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn where_a_subscriber_begins_is_a_number_a_place_or_a_count() {
        assert_eq!(since("0"), Ok(Start::AfterNumber(0)));
        let place = "00000000000000ab:7".parse().unwrap();
        assert_eq!(since("00000000000000ab:7"), Ok(Start::After(place)));
        for bad in ["", "-1", "+1", "x", ":", "ab:7", "99999999999999999999", "1 "] {
            assert!(since(bad).is_err(), "{bad}");
        }
        assert_eq!((lines("all"), lines("3")), (Ok(Start::Kept), Ok(Start::Last(3))));
        for bad in ["", "-1", "ALL", "1.5", "99999999999999999999"] {
            assert!(lines(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn data_may_begin_as_a_negative_number_or_stand_for_standard_input() {
        for data in ["-5", "-"] {
            let args = Args::try_parse_from(["authsock", "publish", "a", data]).unwrap();
            let Verb::Publish(publish) = args.verb else { panic!() };
            assert_eq!(publish.data.as_deref(), Some(data));
        }
    }

    #[test]
    fn what_follows_the_command_is_the_command_s() {
        let args = Args::try_parse_from(["authsock", "run", "--name", "n", "ls", "--json", "-x"]).unwrap();
        let Verb::Run(run) = args.verb else { panic!() };
        assert_eq!(run.command, ["ls", "--json", "-x"]);
        assert!(!args.common.json);
    }
}
