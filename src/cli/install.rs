//! `authsock install` and `authsock uninstall`: what is to be done, done or only said, and whether a daemon answers then.

use serde_json::{Value, json};

use super::args::{Common, Install, Uninstall};
use super::output::Output;
use super::{Failure, client_options, exit, logging, own_program, runtime};
use crate::client::connect::places;
use crate::client::{Client, Options};
use crate::credential::discover::{is_named, trusted_env};
use crate::install::systemd::Systemd;
use crate::install::{NotInstalled, Step, Whose, carry_out};
use crate::kernel::dir::{Dir, examine_program, own_uid};
use crate::kernel::socket::CheckedSocket;
use crate::place::{LOCK_FILE, Places, SocketPath, var};

impl From<NotInstalled> for Failure {
    fn from(error: NotInstalled) -> Failure {
        Failure::new(exit::FAILED, error)
    }
}

pub(super) fn install(common: &Common, args: &Install, output: &Output) -> Result<(), Failure> {
    logging::for_a_client();
    let whose = whose(common, "install")?;
    let program =
        own_program().ok_or_else(|| Failure::new(exit::FAILED, "this program's file is not known"))?;
    examine_program(&program, own_uid())
        .map_err(|unusable| NotInstalled::Program { problem: unusable.to_string() })?;
    let steps = systemd(whose)?.plan_install(&program)?;
    let done = carry_out_or_say(&steps, args.dry_run, output)?;
    // Outside of a session only: inside, the daemon that answers is the session's.
    let answers = if args.dry_run || is_named(&trusted_env) { None } else { Some(ask(common)?) };
    if output.is_json() {
        return Ok(output.value(&json!({ "changed": !done.is_empty(), "steps": done, "daemon": answers }))?);
    }
    let mut words = Vec::new();
    if steps.is_empty() {
        words.push("installed already; nothing to do".to_owned());
    }
    if is_in_build_directory(&program) {
        words.push(format!(
            "note: {} lies in a build directory; what is installed ends with it (`cargo install --path .` makes a lasting one)",
            program.display()
        ));
    }
    if let Some(answers) = &answers {
        words.push(format!(
            "authsock {} answers on {} (process {})",
            answers["version"].as_str().unwrap_or("-"),
            answers["socket"].as_str().unwrap_or("-"),
            answers["pid"]
        ));
    }
    words.push(match whose {
        Whose::User => "`authsock uninstall` undoes this. The token lasts until your last logout, or beyond it with `loginctl enable-linger`".to_owned(),
        Whose::System => "`authsock uninstall --system` undoes this. /etc/authsock/config.toml says who may use it (policy.users, policy.groups); without one only root may".to_owned(),
    });
    Ok(output.lines(&words)?)
}

pub(super) fn uninstall(common: &Common, args: &Uninstall, output: &Output) -> Result<(), Failure> {
    logging::for_a_client();
    let whose = whose(common, "uninstall")?;
    let places = places(whose == Whose::System);
    let systemd = systemd(whose)?;
    // What a client started is no unit's, and would go on with nothing to stand on.
    let retired = if whose == Whose::User { retire(&places, args.dry_run)? } else { None };
    if let Some(words) = retired.filter(|_| !output.is_json()) {
        output.lines(&[words])?;
    }
    let steps = systemd.plan_uninstall(&places, args.purge)?;
    let done = carry_out_or_say(&steps, args.dry_run, output)?;
    if output.is_json() {
        return Ok(output.value(&json!({ "changed": !done.is_empty(), "steps": done }))?);
    }
    let mut words = Vec::new();
    if steps.is_empty() {
        words.push("nothing is installed; nothing to do".to_owned());
    }
    if let Some(config) = places.config().filter(|config| config.exists() && !args.purge) {
        words.push(format!("{} is kept (--purge removes it)", config.display()));
    }
    Ok(output.lines(&words)?)
}

fn whose(common: &Common, verb: &'static str) -> Result<Whose, Failure> {
    if !common.system {
        return Ok(Whose::User);
    }
    if own_uid() != 0 {
        return Err(NotInstalled::NeedsRoot(verb).into());
    }
    Ok(Whose::System)
}

fn systemd(whose: Whose) -> Result<Systemd, Failure> {
    let config =
        trusted_env(var::XDG_CONFIG_HOME).map(std::path::PathBuf::from).filter(|dir| dir.is_absolute());
    let home = trusted_env(var::HOME).map(std::path::PathBuf::from).filter(|dir| dir.is_absolute());
    let config = config.or_else(|| Some(home?.join(".config")));
    let config = config.ok_or_else(|| Failure::new(exit::FAILED, "HOME is not set: units have no place"))?;
    Ok(Systemd::new(whose, &config))
}

fn carry_out_or_say(steps: &[Step], dry_run: bool, output: &Output) -> Result<Vec<String>, Failure> {
    let mut done = Vec::new();
    let mut told = Ok(());
    let mut tell = |step: &Step| {
        done.push(step.to_string());
        if !output.is_json() && told.is_ok() {
            told = output.lines(&[if dry_run { format!("would {step}") } else { step.to_string() }]);
        }
    };
    if dry_run {
        steps.iter().for_each(&mut tell);
    } else {
        carry_out(steps, &mut tell)?;
    }
    told?;
    Ok(done)
}

/// Has the new socket's daemon answer; one that a client had started gives way to it then.
fn ask(common: &Common) -> Result<Value, Failure> {
    runtime()?.block_on(async {
        let mut client = Client::connect(&client_options(common)).await?;
        let answer = client.call("status", None).await?;
        Ok(json!({
            "version": answer["version"],
            "pid": answer["pid"],
            "socket": client.socket(),
        }))
    })
}

/// Asks a daemon that a client started to end, and waits until it has. Says what was done.
fn retire(places: &Places, dry_run: bool) -> Result<Option<String>, Failure> {
    let socket = places.ondemand_socket();
    let is_listening = SocketPath::new(&socket)
        .is_ok_and(|path| CheckedSocket::look(&path, own_uid()).is_ok_and(|found| found.connect().is_ok()));
    if !is_listening {
        return Ok(None);
    }
    if dry_run {
        return Ok(Some("would ask the daemon that a client started to end".to_owned()));
    }
    let options =
        Options { socket: Some(socket), token_file: Some(places.owner_token()), ..Options::default() };
    runtime()?.block_on(async {
        let mut client = Client::connect(&options).await?;
        client.call("daemon.retire", None).await?;
        Ok::<(), Failure>(())
    })?;
    // It holds its lock to its end.
    let state = Dir::open(places.state(), own_uid()).map_err(|error| Failure::new(exit::FAILED, error))?;
    drop(state.lock(LOCK_FILE).map_err(|error| Failure::new(exit::FAILED, error))?);
    Ok(Some("asked the daemon that a client started to end".to_owned()))
}

fn is_in_build_directory(program: &std::path::Path) -> bool {
    program.parent().and_then(|dir| dir.parent()).is_some_and(|dir| dir.ends_with("target"))
}
