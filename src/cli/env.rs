//! `authsock env`: what a shell elsewhere has to set to belong to the session, or the owner, that this process belongs to.
//!
//! A session is named by its socket and its token's file. The owner is not: with either variable
//! set, the search for a token ends there and no daemon is started on demand, so a shell that joins
//! the owner is given only the directory in which everything is looked for, and has those variables
//! removed.

use std::ffi::OsString;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::args::{Common, Env, Shell};
use super::output::Output;
use super::{Failure, client_options, exit, with_client};
use crate::client::Client;
use crate::client::connect::client_places;
use crate::credential::discover::{self, Source};
use crate::kernel::process::{Pid, Process};
use crate::place::{self, Places, var};

/// What is to be set, and what removed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    set: Vec<(&'static str, String)>,
    unset: Vec<&'static str>,
}

pub(super) fn env(common: &Common, args: &Env, output: &Output) -> Result<(), Failure> {
    let shell = args.shell.unwrap_or_else(|| {
        let caller = Process::open(Pid::own()).and_then(|own| own.parent()).ok().flatten();
        Shell::of(caller.and_then(|caller| caller.program()).as_deref())
    });
    if args.unset {
        // What says where things lie belongs to the login, and stays.
        let plan = Plan { set: Vec::new(), unset: var::NAMED_SOURCES.to_vec() };
        return print(&plan, None, shell, output);
    }
    // Whoever is told of a daemon finds one, and its token's file.
    with_client(common, async |client| {
        let plan = plan(client, common)?;
        let session = client.session();
        let session = json!({ "id": session.id, "name": session.name, "realm": session.realm });
        print(&plan, Some(session), shell, output)
    })
}

fn plan(client: &Client, common: &Common) -> Result<Plan, Failure> {
    let places = client_places(&client_options(common));
    let found = discover::token(&discover::trusted_env, &places, common.token_file.as_deref());
    let source = found.map_err(|error| Failure::new(exit::REFUSED, error))?.source;
    let named_socket = match &common.socket {
        Some(path) => Some(std::path::absolute(path)?.into_os_string()),
        // Without its name a shell would look for the user's own daemon.
        None if places.is_system() => Some(client.socket().into()),
        None => discover::trusted_env(var::SOCKET),
    };
    let socket = named_socket.clone().unwrap_or_else(|| client.socket().into());
    let mut plan = Plan::default();
    if let Some(runtime) = runtime_to_name(&places, &discover::trusted_env) {
        plan.set.push((var::XDG_RUNTIME_DIR, text(var::XDG_RUNTIME_DIR, runtime.as_os_str().to_owned())?));
    }
    let file = match source {
        Source::Owner(_) if named_socket.is_none() => None,
        Source::Given(path) | Source::File(path) | Source::Credential(path) | Source::Owner(path) => {
            Some(std::path::absolute(path)?)
        }
        Source::Variable | Source::Descriptor(_) => {
            let words = format!(
                "the token of this session came from {source}, which no shell elsewhere can be told of without being told the token itself; name a file that holds it with --token-file or {}",
                var::TOKEN_FILE
            );
            return Err(Failure::new(exit::FAILED, words));
        }
    };
    match file {
        None => plan.unset.extend(var::NAMED_SOURCES),
        Some(file) => {
            plan.set.push((var::SOCKET, text(var::SOCKET, socket)?));
            plan.set.push((var::TOKEN_FILE, text(var::TOKEN_FILE, file.into_os_string())?));
            plan.unset.extend([var::TOKEN, var::TOKEN_FD]);
        }
    }
    Ok(plan)
}

/// The runtime directory, if a shell must be told of it: where a variable says so here, or where it
/// is logind's. A place that is found without the variable is found so by everybody, and it would
/// lead other programs astray.
fn runtime_to_name<'a>(places: &'a Places, env: place::Env<'_>) -> Option<&'a Path> {
    let runtime = places.runtime();
    let is_said = env(var::XDG_RUNTIME_DIR).is_some_and(|said| Path::new(&said) == runtime);
    (is_said || runtime.starts_with("/run/user")).then_some(runtime)
}

/// A value as every shell can hold it.
fn text(name: &str, value: OsString) -> Result<String, Failure> {
    let refuse = |what: &str| {
        let words = format!(
            "{name} would be {value:?}, which {what}: no shell can be given it safely; choose another path"
        );
        Err(Failure::new(exit::FAILED, words))
    };
    match value.to_str() {
        None => refuse("is not UTF-8"),
        Some(text) if text.chars().any(char::is_control) => {
            refuse("holds a line end or another control character")
        }
        Some(text) => Ok(text.to_owned()),
    }
}

fn print(plan: &Plan, session: Option<Value>, shell: Shell, output: &Output) -> Result<(), Failure> {
    if output.is_json() {
        let set: Map<String, Value> =
            plan.set.iter().map(|(name, value)| ((*name).to_owned(), value.as_str().into())).collect();
        let mut value = json!({ "set": set, "unset": plan.unset });
        if let Some(session) = session {
            value["session"] = session;
        }
        return Ok(output.value(&value)?);
    }
    Ok(output.raw(&script(plan, shell))?)
}

/// The lines for a shell's `eval`. Each ends with a semicolon: an unquoted `eval` makes one line of
/// all of them.
fn script(plan: &Plan, shell: Shell) -> String {
    let unset = plan.unset.iter().map(|name| match shell {
        Shell::Sh => format!("unset {name};\n"),
        Shell::Fish => format!("set -e {name};\n"),
        Shell::Csh => format!("unsetenv {name};\n"),
    });
    let set = plan.set.iter().map(|(name, value)| {
        let value = quoted(value, shell);
        match shell {
            Shell::Sh => format!("{name}={value}; export {name};\n"),
            Shell::Fish => format!("set -gx {name} {value};\n"),
            Shell::Csh => format!("setenv {name} {value};\n"),
        }
    });
    unset.chain(set).collect()
}

/// The value as one word that the shell takes as it stands.
fn quoted(value: &str, shell: Shell) -> String {
    let inside = match shell {
        Shell::Sh => value.replace('\'', r"'\''"),
        // Within single quotes, fish reads \\ and \' and nothing else.
        Shell::Fish => value.replace('\\', r"\\").replace('\'', r"\'"),
        // csh looks for its history everywhere, even within single quotes.
        Shell::Csh => value.replace('\'', r"'\''").replace('!', r"\!"),
    };
    format!("'{inside}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env_of(value: Option<&'static str>) -> impl Fn(&str) -> Option<OsString> {
        move |name| (name == var::XDG_RUNTIME_DIR).then_some(value?).map(OsString::from)
    }

    #[test]
    fn a_shell_is_told_of_a_runtime_directory_that_it_would_not_find_by_itself() {
        let told = |said, is_private: bool| {
            let env = env_of(said);
            let places = Places::of_user(&env, 7, |_| is_private, None);
            runtime_to_name(&places, &env).map(Path::to_path_buf)
        };
        assert_eq!(told(Some("/a b"), false), Some("/a b".into()));
        assert_eq!(told(None, true), Some("/run/user/7".into()));
        assert_eq!(told(None, false), None, "/tmp/authsock-7 is found without, and is nobody else's");
        assert_eq!(told(Some("relative"), false), None);
    }

    #[test]
    fn each_shell_has_its_own_words_and_quotes() {
        let plan = Plan { set: vec![("A", r"it's a \ $path!".into())], unset: vec!["B"] };
        assert_eq!(script(&plan, Shell::Sh), "unset B;\nA='it'\\''s a \\ $path!'; export A;\n");
        assert_eq!(script(&plan, Shell::Fish), "set -e B;\nset -gx A 'it\\'s a \\\\ $path!';\n");
        assert_eq!(script(&plan, Shell::Csh), "unsetenv B;\nsetenv A 'it'\\''s a \\ $path\\!';\n");
    }

    #[test]
    fn a_value_that_could_end_a_line_is_refused_by_name() {
        for bad in ["/a\nb", "/a\rb", "/a\u{1b}[0m"] {
            let failure = text("NAME", bad.into()).unwrap_err();
            assert!(failure.message.starts_with("NAME would be"), "{}", failure.message);
        }
        assert_eq!(text("NAME", "/a 'b' \"c\" $d".into()).unwrap(), "/a 'b' \"c\" $d");
    }

    #[test]
    fn the_shell_is_known_by_its_name() {
        for (name, shell) in [
            (Some("fish"), Shell::Fish),
            (Some("tcsh"), Shell::Csh),
            (Some("csh"), Shell::Csh),
            (Some("zsh"), Shell::Sh),
            (Some("make"), Shell::Sh),
            (None, Shell::Sh),
        ] {
            assert_eq!(Shell::of(name), shell, "{name:?}");
        }
    }
}
