//! `authsock run`: mints a session's token, hands a program the way to it, and is the session's leader for as long as the program runs.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Map, Value};

use super::args::{Common, Run};
use super::token::verifier_param;
use super::{Failure, client_options, confine, exit, logging, runtime};
use crate::client::Client;
use crate::client::connect::places;
use crate::credential::discover::keep_descriptor_from_children;
use crate::init;
use crate::kernel::dir::{Dir, Lock, own_uid};
use crate::kernel::path::settle_name;
use crate::kernel::{process, signals};
use crate::place::{self, TOKEN_FILE, var};
use crate::secret::file;
use crate::secret::random;
use crate::secret::token::Token;
use crate::session::{Binding, NAME_MAX, Name};

/// File that is locked for as long as a session's directory is in use.
const IN_USE: &str = "in-use";

/// Runs a program as a session; returns its exit code.
pub(super) fn run(common: &Common, args: Run) -> Result<u8, Failure> {
    logging::for_a_client();
    if args.confine {
        confine::refuse_where_there_is_none()?;
    }
    // Whatever keeps the session from beginning keeps the program from starting.
    let cannot = |error: &dyn std::fmt::Display| Failure::new(exit::RUN_FAILED, error);
    let token = Token::generate().map_err(|error| cannot(&error))?;
    let home = TokenHome::make(&token).map_err(|error| cannot(&error))?;
    let socket =
        begin(common, &args, &token).map_err(|failure| Failure { code: exit::RUN_FAILED, ..failure })?;
    drop(token);
    if let Err(error) = process::become_subreaper() {
        tracing::debug!("descendants that daemonise leave the session's tree: {error}");
    }
    let mut words = args.command.iter();
    let program = words.next().ok_or_else(|| Failure::new(exit::USAGE, "CMD is missing"))?;
    let mut command = Command::new(program);
    command.args(words);
    for name in var::NAMED_SOURCES.into_iter().chain(var::OF_THE_SERVICE_MANAGER) {
        command.env_remove(name);
    }
    keep_descriptor_from_children(&place::process_env);
    init::keep_from_children();
    command.env(var::TOKEN_FILE, home.token_path()).env(var::SOCKET, &socket);
    if let Some(path) = path_with_ourselves() {
        command.env("PATH", path);
    }
    let mut confined = match args.confine {
        true => Some(confine::prepare(common, &socket, &home.path, &mut command)?),
        false => None,
    };
    let ended = confine::keep(&mut command, confined.as_mut());
    // The session ends with its leader, which is this process; its file goes before.
    drop(home);
    if matches!(&ended, Ok(status) if status.signal() == Some(2)) {
        signals::die_of_interrupt();
    }
    match ended {
        Ok(status) => Ok(match (status.code(), status.signal()) {
            (Some(code), _) => u8::try_from(code & 0xff).unwrap_or(exit::FAILED),
            (None, signal) => {
                exit::RUN_SIGNALLED.saturating_add(u8::try_from(signal.unwrap_or(0)).unwrap_or(0))
            }
        }),
        Err(error) => {
            if let Some(failure) = confined.as_mut().and_then(|confined| confined.failure(&error)) {
                return Err(Failure::new(exit::RUN_FAILED, failure));
            }
            let code = match error.kind() {
                io::ErrorKind::NotFound => exit::RUN_NOT_FOUND,
                io::ErrorKind::PermissionDenied => exit::RUN_NOT_EXECUTABLE,
                _ if signals::is_not_executable(&error) => exit::RUN_NOT_EXECUTABLE,
                _ => exit::RUN_FAILED,
            };
            let problem = match code {
                exit::RUN_NOT_FOUND if !program.as_encoded_bytes().contains(&b'/') => {
                    "not found in PATH".to_owned()
                }
                _ => error.to_string(),
            };
            Err(Failure::new(code, format!("cannot run {program:?}: {problem}")))
        }
    }
}

/// Makes the session, and returns the socket by which its daemon is reached. The runtime, and all
/// its threads, are gone when this returns.
fn begin(common: &Common, args: &Run, token: &Token) -> Result<PathBuf, Failure> {
    let mut params = Map::new();
    params.insert("name".into(), name(args).as_str().into());
    params.insert("verifier".into(), verifier_param(token));
    if let Some(realm) = &args.realm {
        params.insert("realm".into(), realm.as_str().into());
    }
    if let Some(ttl) = args.ttl {
        params.insert("ttl_seconds".into(), ttl.into());
    }
    if !args.allow.is_empty() {
        params.insert("scopes".into(), args.allow.clone().into());
    }
    if let Some(bind) = args.bind {
        params.insert("binding".into(), Binding::from(bind).to_string().into());
    }
    runtime()?.block_on(async {
        let mut client = Client::connect(&client_options(common)).await?;
        client.call("session.create", Some(&Value::Object(params))).await?;
        Ok(client.socket().to_path_buf())
    })
}

/// The session's name: given, or the program's file name as far as it makes a name.
fn name(args: &Run) -> String {
    if let Some(name) = &args.name {
        return name.clone();
    }
    let program = args.command.first().map(Path::new).and_then(Path::file_name).unwrap_or(OsStr::new("run"));
    let mut name = program.to_string_lossy().into_owned();
    while name.len() > NAME_MAX {
        name.pop();
    }
    if name.parse::<Name>().is_ok() { name } else { "run".to_owned() }
}

/// PATH with our own directory first, if `authsock` would not be found otherwise.
fn path_with_ourselves() -> Option<std::ffi::OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_found = std::env::split_paths(&path)
        .filter(|dir| !dir.as_os_str().is_empty())
        .any(|dir| dir.join("authsock").is_file());
    if is_found {
        return None;
    }
    let own = super::own_program()?;
    let dirs = std::iter::once(own.parent()?.to_path_buf()).chain(std::env::split_paths(&path));
    std::env::join_paths(dirs).ok()
}

/// A private directory that holds one session's token, for as long as this lives.
struct TokenHome {
    path: PathBuf,
    _lock: Option<Lock>,
}

impl TokenHome {
    /// Makes the directory, 0700, with the token in it, 0600; sweeps away what others that were
    /// killed left behind.
    fn make(token: &Token) -> Result<TokenHome, Box<dyn std::error::Error>> {
        let places = places(false);
        Dir::open_or_create(places.runtime(), own_uid())?;
        let runs = Dir::open_or_create(&places.runs(), own_uid())?;
        sweep(runs.path());
        let name = hex::encode(random::bytes::<8>()?);
        // Under a name that nobody sweeps until it is locked.
        let new = runs.path().join(format!(".{name}"));
        let dir = Dir::open_or_create(&new, own_uid())?;
        // From here on whatever fails leaves nothing behind.
        let mut home = TokenHome { path: new, _lock: None };
        home._lock = Some(dir.try_lock(IN_USE)?.ok_or("a directory that was just made is locked")?);
        file::store(&dir, TOKEN_FILE, token)?;
        let path = runs.path().join(name);
        std::fs::rename(&home.path, &path)?;
        home.path = path;
        Ok(home)
    }

    fn token_path(&self) -> PathBuf {
        self.path.join(TOKEN_FILE)
    }
}

impl Drop for TokenHome {
    fn drop(&mut self) {
        clear(&self.path);
    }
}

/// Removes a session's directory: the token first. What a program of the session put there may be of any size and
/// depth, and must not keep others from going: files go, up to a limit, directories that are not ours stay.
fn clear(home: &Path) {
    const FILES_MAX: usize = 1000;
    for name in [TOKEN_FILE, IN_USE] {
        let _ = std::fs::remove_file(home.join(name));
    }
    for dir in [&home.join(confine::WAY), home] {
        // Through no link: what lies elsewhere is not ours to remove.
        let is_dir = dir.symlink_metadata().is_ok_and(|found| found.is_dir());
        let entries = is_dir.then(|| std::fs::read_dir(dir)).and_then(Result::ok);
        for entry in entries.into_iter().flatten().flatten().take(FILES_MAX) {
            let _ = std::fs::remove_file(entry.path());
        }
        if let Err(error) = std::fs::remove_dir(dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!("{} is left: {error}", dir.display());
        }
    }
}

/// Removes directories whose `run` was killed: nobody holds their lock. One that is being made has its
/// name with a dot, and not its lock for a moment.
pub(super) fn sweep(runs: &Path) {
    const MADE_WITHIN: std::time::Duration = std::time::Duration::from_secs(60);
    // By a way on which nobody else has a say, and not through a link: what is below is removed.
    let Ok(runs) = settle_name(runs) else { return };
    if Dir::open(&runs, own_uid()).is_err() {
        return;
    }
    let Ok(entries) = std::fs::read_dir(runs) else { return };
    for entry in entries.flatten() {
        let is_being_made = entry.file_name().as_encoded_bytes().starts_with(b".")
            && entry
                .metadata()
                .and_then(|meta| meta.modified())
                .is_ok_and(|modified| modified.elapsed().unwrap_or_default() < MADE_WITHIN);
        if is_being_made {
            continue;
        }
        let Ok(dir) = Dir::open(&entry.path(), own_uid()) else { continue };
        if !dir.has(IN_USE) {
            // A confined session sees its own so, with the token in it; else it is what was left of one.
            let _ = std::fs::remove_dir(entry.path());
        } else if let Ok(Some(_unused)) = dir.try_lock(IN_USE) {
            clear(&entry.path());
        }
    }
}
