//! `authsock install` and `authsock uninstall`: carries a plan out or describes it, and says how it went and how it is undone.

use std::path::Path;

use serde_json::{Value, json};

use super::args::{Common, Install, Uninstall};
use super::output::{Output, text};
use super::{Failure, client_options, exit, logging, own_program, run, runtime};
use crate::client::Client;
use crate::client::connect::places;
use crate::install::{
    CannotInstall, Outcome, Plan, Scope, examine_program, launchd, leftovers, system_leftovers, systemd,
};
use crate::kernel::dir::own_uid;
use crate::kernel::survey;
use crate::place::{process_env, var};

impl From<CannotInstall> for Failure {
    fn from(error: CannotInstall) -> Failure {
        Failure::new(exit::FAILED, error)
    }
}

/// The init system of this platform.
enum Init {
    Systemd(systemd::Setup),
    Launchd(launchd::Setup),
}

impl Init {
    fn of(scope: Scope) -> Result<Init, CannotInstall> {
        let places = places(scope == Scope::System);
        if cfg!(target_os = "macos") {
            let home = process_env(var::HOME);
            let home = home.as_deref().map(Path::new);
            let setup = launchd::Setup::of(scope, own_uid(), home, &places, &launchd::ask_launchd)?;
            return Ok(Init::Launchd(setup));
        }
        if scope == Scope::System {
            return Ok(Init::Systemd(systemd::Setup::of_system()));
        }
        let config_home = places.config().and_then(Path::parent).and_then(Path::parent);
        let config_home = config_home.ok_or(CannotInstall::NoHome)?;
        Ok(Init::Systemd(systemd::Setup::of_user(config_home, &places, &process_env)))
    }

    fn install(&self, scope: Scope) -> Result<Plan, CannotInstall> {
        let program = || {
            let own = own_program().ok_or_else(|| CannotInstall::Program {
                path: "authsock".into(),
                problem: "the system does not tell where it lies".into(),
                way_out: String::new(),
            })?;
            examine_program(&own, scope)
        };
        match self {
            Init::Systemd(setup) => setup.install(program),
            Init::Launchd(setup) => setup.install(&program()?, &launchd::ask_launchd),
        }
    }

    fn uninstall(&self) -> Result<Plan, CannotInstall> {
        match self {
            Init::Systemd(setup) => setup.uninstall(),
            Init::Launchd(setup) => setup.uninstall(&launchd::ask_launchd),
        }
    }

    fn verify(&self) -> Result<(), CannotInstall> {
        match self {
            Init::Systemd(setup) => setup.verify(),
            Init::Launchd(setup) => setup.verify(),
        }
    }
}

fn scope_of(common: &Common) -> Result<Scope, Failure> {
    // Where the init system's socket lies is not for a command line to say, and whose token it is neither.
    for (is_set, option) in
        [(common.socket.is_some(), "--socket"), (common.token_file.is_some(), "--token-file")]
    {
        if is_set {
            let words = format!("{option} has no meaning here: the socket and the token have their places");
            return Err(Failure::new(exit::USAGE, words));
        }
    }
    match (common.system, own_uid()) {
        (true, 0) => Ok(Scope::System),
        (true, _) => Err(CannotInstall::NeedsRoot.into()),
        (false, _) => Ok(Scope::User),
    }
}

/// What is told of a run, line by line.
struct Report<'a> {
    output: &'a Output,
    dry_run: bool,
    steps: Vec<(&'static str, String)>,
    remarks: Vec<(&'static str, String)>,
}

impl Report<'_> {
    /// Carries a plan out, or describes it. What was done is told also when a step fails.
    fn take(&mut self, plan: Plan) -> Result<(), Failure> {
        self.remarks.extend(plan.notes.into_iter().map(|note| ("note", note)));
        for step in &plan.steps {
            if self.dry_run {
                self.steps.push(("would", step.to_string()));
                continue;
            }
            match step.carry_out() {
                Ok(Outcome::Done) => self.steps.push(("done", step.done())),
                Ok(Outcome::Nothing) => {}
                Ok(Outcome::Kept(reason)) => self.remarks.push(("kept", reason)),
                Err(error) => {
                    self.print()?;
                    return Err(Failure::new(exit::FAILED, format!("cannot {step}: {error}")));
                }
            }
        }
        Ok(())
    }

    fn print(&self) -> Result<(), Failure> {
        if self.output.is_json() {
            let list = |lines: &[(&str, String)]| -> Vec<Value> {
                lines.iter().map(|(kind, words)| json!({ "kind": kind, "text": words })).collect()
            };
            let changed = !self.dry_run && !self.steps.is_empty();
            let (steps, remarks) = (list(&self.steps), list(&self.remarks));
            return Ok(self.output.value(
                &json!({ "dry_run": self.dry_run, "changed": changed, "steps": steps, "remarks": remarks }),
            )?);
        }
        let all: Vec<(&str, String)> = self.steps.iter().chain(&self.remarks).cloned().collect();
        Ok(self.output.fields(&all)?)
    }
}

/// Installs.
pub(super) fn install(common: &Common, args: &Install, output: &Output) -> Result<(), Failure> {
    logging::for_a_client();
    let scope = scope_of(common)?;
    let init = Init::of(scope)?;
    let mut report = Report { output, dry_run: args.whom.dry_run, steps: Vec::new(), remarks: Vec::new() };
    report.take(init.install(scope)?)?;
    if report.steps.is_empty() {
        report.remarks.insert(0, ("nothing to do", "it is installed".into()));
    }
    if args.whom.dry_run {
        return report.print();
    }
    let answer = match scope {
        Scope::System => init.verify().map_err(Failure::from).and_then(|()| whoami(common, scope)),
        Scope::User => whoami(common, scope),
    };
    match answer {
        Ok(words) => report.remarks.push(("verified", words)),
        Err(failure) => {
            report.print()?;
            let words = format!("it is installed, but the daemon does not serve: {}", failure.message);
            return Err(Failure { message: words, ..failure });
        }
    }
    let system = if scope == Scope::System { " --system" } else { "" };
    report.remarks.push(("undo", format!("authsock uninstall{system}")));
    report.remarks.extend(hints(scope).map(|words| ("hint", words)));
    report.print()
}

/// What whoever installs will want to know next.
fn hints(scope: Scope) -> impl Iterator<Item = String> {
    let is_linux = cfg!(target_os = "linux");
    let lingers = || survey::user_name(own_uid()).is_some_and(|user| survey::lingers(&user));
    let hint = |is_due: bool, words: &str| is_due.then(|| words.to_owned());
    [
        hint(
            scope == Scope::User && own_uid() == 0,
            "this serves root only; `authsock install` as another user serves that one, and with --system all",
        ),
        hint(
            scope == Scope::User && is_linux && !lingers(),
            "it serves while you are logged in; `loginctl enable-linger` has it serve from boot on",
        ),
        hint(
            scope == Scope::System && !places(true).config().is_some_and(Path::exists),
            "only root is served until /etc/authsock/config.toml names users or groups (docs/system.md): [policy] users = [\"NAME\"]",
        ),
    ]
    .into_iter()
    .flatten()
}

/// Asks by the init system's socket: so the daemon starts, and one that a client had started hands
/// over to it.
fn whoami(common: &Common, scope: Scope) -> Result<String, Failure> {
    let mut options = client_options(common);
    if scope == Scope::User {
        options.socket = Some(places(false).init_socket());
    }
    runtime()?.block_on(async {
        let mut client = Client::connect(&options).await?;
        let answer = client.call("whoami", None).await?;
        let (session, daemon) = (&answer["session"], &answer["daemon"]);
        Ok(format!(
            "authsock {}, process {}, answers session {}",
            text(&daemon["version"]),
            text(&daemon["pid"]),
            text(&session["name"])
        ))
    })
}

/// Undoes that.
pub(super) fn uninstall(common: &Common, args: &Uninstall, output: &Output) -> Result<(), Failure> {
    logging::for_a_client();
    let scope = scope_of(common)?;
    let init = Init::of(scope)?;
    let dry_run = args.whom.dry_run;
    let mut report = Report { output, dry_run, steps: Vec::new(), remarks: Vec::new() };
    let plan = init.uninstall()?;
    let is_foreign = plan.steps.is_empty() && !plan.notes.is_empty();
    report.take(plan)?;
    // What somebody else installed still uses what a daemon leaves.
    if !is_foreign {
        let left = match scope {
            Scope::User => {
                if !dry_run {
                    run::sweep(&places(false).runs());
                }
                leftovers(&places(false), args.purge)
            }
            Scope::System => system_leftovers(args.purge),
        };
        report.take(left)?;
    }
    if report.steps.is_empty() && !is_foreign {
        report.remarks.insert(0, ("nothing to do", "it is not installed".into()));
    }
    report.print()
}
