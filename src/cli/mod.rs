//! The command line: verbs, output for people and for programs, and few, documented exit codes.
#![forbid(unsafe_code)]

mod args;
mod call;
mod confine;
mod doctor;
mod env;
mod generate;
mod install;
mod logging;
mod logs;
mod output;
mod publish;
mod run;
mod serve;
mod session;
mod status;
mod subscribe;
mod token;
mod whoami;

use std::process::ExitCode;

use clap::Parser;
use serde_json::Value;

use crate::client::{CallError, Client, ConnectError, Options};
use crate::kernel::dir::runs_with_foreign_environment;
use args::{Args, Common, Verb};
use output::Output;

pub use args::Args as CommandLine;

/// Exit codes; `--help` and the README list them.
pub mod exit {
    /// Done.
    pub const OK: u8 = 0;
    /// The daemon answered with an error, `install` could not be carried out, or `doctor` found a problem.
    pub const FAILED: u8 = 1;
    /// The command line makes no sense.
    pub const USAGE: u8 = 2;
    /// There is no daemon: it cannot be reached, cannot be started, or cannot serve.
    pub const NO_DAEMON: u8 = 3;
    /// The daemon refused this process or its token, or this program refused what listens there.
    pub const REFUSED: u8 = 4;
    /// `run`: authsock itself failed; CMD was not started.
    pub const RUN_FAILED: u8 = 125;
    /// `run`: CMD cannot be executed.
    pub const RUN_NOT_EXECUTABLE: u8 = 126;
    /// `run`: there is no such CMD.
    pub const RUN_NOT_FOUND: u8 = 127;
    /// `run`: CMD was ended by a signal; the signal's number is added.
    pub const RUN_SIGNALLED: u8 = 128;
}

/// What a verb ends with when it does not succeed.
#[derive(Debug)]
struct Failure {
    code: u8,
    message: String,
    /// The daemon's own word for it: a refusal's code or an error's number.
    detail: Option<Value>,
}

impl Failure {
    fn new(code: u8, message: impl std::fmt::Display) -> Failure {
        Failure { code, message: message.to_string(), detail: None }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Failure {
        let code = match &error {
            ConnectError::Handshake { .. } => match error.refusal_code() {
                Some("unavailable" | "busy" | "timeout") => exit::NO_DAEMON,
                _ => exit::REFUSED,
            },
            ConnectError::Token(_) | ConnectError::TokenGone { .. } => exit::REFUSED,
            ConnectError::Socket { problem, .. } if problem.is_suspect() => exit::REFUSED,
            _ => exit::NO_DAEMON,
        };
        let detail = error.refusal_code().map(Value::from);
        Failure { detail, ..Failure::new(code, error) }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Failure {
        let (code, detail) = match &error {
            CallError::Refused(error) => (exit::FAILED, Some(Value::from(error.code))),
            CallError::SessionEnded(reason) => (exit::REFUSED, Some(Value::from(reason.as_str()))),
            _ => (exit::NO_DAEMON, None),
        };
        Failure { detail, ..Failure::new(code, error) }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::new(exit::FAILED, error)
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    // Descriptors are adopted and the environment is read before anything could start a thread.
    let Args { common, verb } = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let is_json = std::env::args_os().take_while(|word| word != "--").any(|word| word == "--json");
            if error.use_stderr() && is_json {
                let words = error.to_string();
                let words = words.strip_prefix("error: ").unwrap_or(&words);
                return report(&Failure::new(exit::USAGE, words), &Output::new(true));
            }
            let printed = error.print();
            let usage = error.use_stderr() || printed.is_err();
            return ExitCode::from(if usage { exit::USAGE } else { exit::OK });
        }
    };
    let output = Output::new(common.json);
    let done = match verb {
        Verb::Serve(args) => serve::serve(&common, &args),
        Verb::Run(args) => return finish_run(run::run(&common, args), &output),
        Verb::Install(args) => {
            refuse_set_id("install").and_then(|()| install::install(&common, &args, &output))
        }
        Verb::Uninstall(args) => {
            refuse_set_id("uninstall").and_then(|()| install::uninstall(&common, &args, &output))
        }
        Verb::Whoami => with_client(&common, async |client| whoami::whoami(client, &output).await),
        Verb::Status => with_client(&common, async |client| status::status(client, &output).await),
        Verb::Doctor(args) => return finish_run(doctor::doctor(&common, &args, &output), &output),
        Verb::Call(args) => call::refuse_fruitless(&args)
            .and_then(|()| with_client(&common, async |client| call::call(client, &args, &output).await)),
        Verb::Session(verb) => {
            with_client(&common, async |client| session::session(client, &common, &verb, &output).await)
        }
        Verb::Token(verb) => {
            with_client(&common, async |client| token::token(client, &common, &verb, &output).await)
        }
        Verb::Publish(args) => publish::data(&args).and_then(|data| {
            with_client(&common, async |client| publish::publish(client, &args, &data, &output).await)
        }),
        Verb::Subscribe(args) => subscribe::subscribe(&common, &args, &output),
        Verb::Env(args) => env::env(&common, &args, &output),
        Verb::Logs(args) => refuse_set_id("logs").and_then(|()| logs::logs(&common, &args, &output)),
        Verb::Generate(verb) => generate::generate(&verb, &output),
    };
    match done {
        Ok(()) => ExitCode::from(exit::OK),
        Err(failure) => report(&failure, &output),
    }
}

fn finish_run(done: Result<u8, Failure>, output: &Output) -> ExitCode {
    match done {
        Ok(code) => ExitCode::from(code),
        Err(failure) => report(&failure, output),
    }
}

fn report(failure: &Failure, output: &Output) -> ExitCode {
    output.error(failure.code, failure.detail.as_ref(), &failure.message);
    ExitCode::from(failure.code)
}

/// What the common options say of how to connect.
fn client_options(common: &Common) -> Options {
    // A daemon that is started has another working directory.
    let absolute = |path: &Option<std::path::PathBuf>| {
        path.as_ref().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()))
    };
    Options {
        socket: absolute(&common.socket),
        token_file: absolute(&common.token_file),
        system: common.system,
        config: absolute(&common.config),
        program: own_program(),
        timeout: common.timeout.map(std::time::Duration::from_secs),
        only_looks: false,
    }
}

/// This program's file. One that was replaced while it ran is called `… (deleted)`: its successor
/// is in the same place.
fn own_program() -> Option<std::path::PathBuf> {
    let path = std::env::current_exe().ok()?;
    let replaced =
        path.to_str().and_then(|path| path.strip_suffix(" (deleted)")).map(std::path::PathBuf::from);
    Some(replaced.filter(|path| path.is_file()).unwrap_or(path))
}

/// Refuses what runs other programs, or touches what is root's, for whoever runs this with more rights than
/// their own: which program that is, and where things lie, would be theirs to say.
fn refuse_set_id(verb: &str) -> Result<(), Failure> {
    if runs_with_foreign_environment() {
        let words = format!("`{verb}` is not for a program with set-user-ID, set-group-ID or capabilities");
        return Err(Failure::new(exit::FAILED, words));
    }
    Ok(())
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(|error| Failure::new(exit::NO_DAEMON, format!("cannot begin: {error}")))
}

fn with_client(
    common: &Common,
    verb: impl AsyncFnOnce(&mut Client) -> Result<(), Failure>,
) -> Result<(), Failure> {
    logging::for_a_client();
    runtime()?.block_on(async {
        let mut client = Client::connect(&client_options(common)).await?;
        verb(&mut client).await
    })
}
