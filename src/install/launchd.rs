//! Installing into launchd: the property lists with this machine's paths in them, and what launchctl is asked and told.

use std::path::{Path, PathBuf};

use super::command::ask;
use super::{CannotInstall, Forgives, Found, MARK, Plan, Scope, Step, look};
use crate::place::{Places, SocketPath};

/// The label of a user's job; its file is named after it.
pub const AGENT: &str = "org.authsock.agent";
/// The label of the machine's job.
pub const DAEMON: &str = "org.authsock.daemon";

const AGENT_TEMPLATE: &str = include_str!("../../launchd/org.authsock.agent.plist");
const DAEMON_TEMPLATE: &str = include_str!("../../launchd/org.authsock.daemon.plist");

/// What stands in the place of each placeholder.
#[derive(Debug)]
pub struct Paths<'a> {
    /// The authsock program.
    pub program: &'a Path,
    /// Where a user's socket will be.
    pub socket: &'a Path,
    /// Where standard error goes.
    pub log: &'a Path,
}

/// The domain of launchd that a job is in (launchctl(1)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Domain {
    /// A user's, who is logged in at the screen.
    Gui(u32),
    /// A user's, who is not.
    User(u32),
    /// The machine's.
    System,
}

impl Domain {
    /// What a job there is limited to.
    fn session(&self) -> &'static str {
        match self {
            Domain::Gui(_) => "Aqua",
            Domain::User(_) => "Background",
            Domain::System => "System",
        }
    }

    fn label(&self) -> &'static str {
        if *self == Domain::System { DAEMON } else { AGENT }
    }
}

impl std::fmt::Display for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Domain::Gui(uid) => write!(f, "gui/{uid}"),
            Domain::User(uid) => write!(f, "user/{uid}"),
            Domain::System => f.write_str("system"),
        }
    }
}

/// The property list of a job in `domain`.
///
/// # Errors
/// [`CannotInstall`] for a path that XML cannot hold, or a socket's that the kernel cannot.
pub fn fill(domain: &Domain, paths: &Paths<'_>) -> Result<String, CannotInstall> {
    let template = match domain {
        Domain::System => DAEMON_TEMPLATE,
        Domain::Gui(_) | Domain::User(_) => {
            SocketPath::new(paths.socket)?;
            AGENT_TEMPLATE
        }
    };
    let mut text = template.replace("@MARK@", &format!("{MARK}; `authsock uninstall` removes it."));
    text = text.replace("@SESSION@", domain.session());
    for (placeholder, path) in
        [("@PROGRAM@", paths.program), ("@SOCKET@", paths.socket), ("@LOG@", paths.log)]
    {
        text = text.replace(placeholder, &escaped(path)?);
    }
    Ok(text)
}

/// A path as the text of an element.
fn escaped(path: &Path) -> Result<String, CannotInstall> {
    let refuse = |problem: &str| CannotInstall::Program {
        path: path.into(),
        problem: problem.into(),
        way_out: String::new(),
    };
    let text = path.to_str().ok_or_else(|| refuse("its path is not UTF-8"))?;
    if text.chars().any(char::is_control) {
        return Err(refuse("its path has control characters"));
    }
    // launchd expands nothing, and a placeholder's own text must not be taken for one.
    if !path.is_absolute() || text.contains('@') {
        return Err(refuse("its path is relative, or has an @"));
    }
    Ok(text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;"))
}

/// Whether a command of launchd succeeds: how it is asked what it has.
pub type Ask<'a> = &'a dyn Fn(&[String]) -> Result<bool, CannotInstall>;

/// Asks launchd itself.
///
/// # Errors
/// [`CannotInstall`] if launchctl cannot be run.
pub fn ask_launchd(words: &[String]) -> Result<bool, CannotInstall> {
    Ok(ask(words)?.is_good)
}

fn launchctl(words: &[&str]) -> Vec<String> {
    std::iter::once("launchctl").chain(words.iter().copied()).map(str::to_owned).collect()
}

/// Where jobs lie, and in which domain.
#[derive(Debug)]
pub struct Setup {
    domain: Domain,
    /// The property list.
    file: PathBuf,
    socket: PathBuf,
    log: PathBuf,
}

impl Setup {
    /// A user's job: in the domain of the login at the screen, if there is one.
    ///
    /// # Errors
    /// [`CannotInstall`].
    pub fn of(
        scope: Scope,
        uid: u32,
        home: Option<&Path>,
        places: &Places,
        ask: Ask<'_>,
    ) -> Result<Setup, CannotInstall> {
        if scope == Scope::System {
            return Ok(Setup {
                domain: Domain::System,
                file: format!("/Library/LaunchDaemons/{DAEMON}.plist").into(),
                socket: "/var/run/authsock.sock".into(),
                log: "/var/log/authsock.log".into(),
            });
        }
        let home = home.filter(|home| home.is_absolute()).ok_or(CannotInstall::NoHome)?;
        let gui = Domain::Gui(uid);
        let has_screen = ask(&launchctl(&["print", &gui.to_string()]))?;
        Ok(Setup {
            domain: if has_screen { gui } else { Domain::User(uid) },
            file: home.join(format!("Library/LaunchAgents/{AGENT}.plist")),
            socket: places.init_socket(),
            log: places.log().ok_or(CannotInstall::NoHome)?.to_path_buf(),
        })
    }

    fn target(&self) -> String {
        format!("{}/{}", self.domain, self.domain.label())
    }

    /// The job under every name under which launchd may have it: whoever installed it may have been
    /// logged in another way.
    fn loaded(&self, ask: Ask<'_>) -> Result<Vec<String>, CannotInstall> {
        let other = match self.domain {
            Domain::Gui(uid) => Some(Domain::User(uid)),
            Domain::User(uid) => Some(Domain::Gui(uid)),
            Domain::System => None,
        };
        let other = other.map(|domain| format!("{domain}/{}", domain.label()));
        let mut loaded = Vec::new();
        for target in std::iter::once(self.target()).chain(other) {
            if ask(&launchctl(&["print", &target]))? {
                loaded.push(target);
            }
        }
        Ok(loaded)
    }

    /// The steps after which launchd does not know these jobs any more. It says so before it is so.
    fn bootout(targets: &[String]) -> impl Iterator<Item = Step> {
        targets.iter().flat_map(|target| {
            [
                // The job may end by itself between the question and this.
                Step::Run { words: launchctl(&["bootout", target]), forgives: Forgives::Anything },
                Step::AwaitGone(launchctl(&["print", target])),
            ]
        })
    }

    /// What is to be done so that launchd starts `program` at the first connection. Nothing is changed
    /// yet.
    ///
    /// # Errors
    /// [`CannotInstall`].
    pub fn install(&self, program: &Path, ask: Ask<'_>) -> Result<Plan, CannotInstall> {
        let paths = Paths { program, socket: &self.socket, log: &self.log };
        let text = fill(&self.domain, &paths)?;
        let found = look(&self.file)?;
        if matches!(found, Found::Foreign | Found::Masked) {
            return Err(CannotInstall::NotOurs(self.file.clone()));
        }
        let is_current = found == Found::Ours(text.clone());
        let loaded = self.loaded(ask)?;
        let mut plan = Plan::default();
        if is_current && loaded == [self.target()] {
            return Ok(plan);
        }
        // Before the file is written: if this fails, the next attempt still sees that it must.
        plan.steps.extend(Setup::bootout(&loaded));
        // launchd opens the log, and does not make its directory.
        if let Some(logs) = self.log.parent().filter(|logs| !logs.is_dir()) {
            plan.steps.push(Step::MakeDirectory(logs.to_path_buf()));
        }
        if !is_current {
            plan.steps.push(Step::Write { path: self.file.clone(), text, mode: 0o644 });
        }
        let file = self.file.display().to_string();
        let domain = self.domain.to_string();
        let run = |words: &[&str]| Step::Run { words: launchctl(words), forgives: Forgives::Nothing };
        // A job that was disabled once would not be taken.
        plan.steps.push(run(&["enable", &self.target()]));
        plan.steps.push(run(&["bootstrap", &domain, &file]));
        Ok(plan)
    }

    /// What is to be done so that launchd does not know the job any more. Nothing is changed yet.
    ///
    /// # Errors
    /// [`CannotInstall`].
    pub fn uninstall(&self, ask: Ask<'_>) -> Result<Plan, CannotInstall> {
        let mut plan = Plan::default();
        match look(&self.file)? {
            Found::Foreign | Found::Masked => {
                let words = format!(
                    "{} was not written by `authsock install`: it stays, and what it runs too",
                    self.file.display()
                );
                plan.notes.push(words);
                return Ok(plan);
            }
            Found::Nothing | Found::Ours(_) => {}
        }
        plan.steps.extend(Setup::bootout(&self.loaded(ask)?));
        if self.file.exists() {
            plan.steps.push(Step::Remove { path: self.file.clone(), and_if_empty: Vec::new() });
        }
        // Those of a user lie among that user's other files, which go after this.
        if self.domain == Domain::System {
            if self.log.exists() {
                plan.steps.push(Step::Remove { path: self.log.clone(), and_if_empty: Vec::new() });
            }
            if self.socket.exists() {
                plan.steps.push(Step::RemoveDeadSocket(self.socket.clone()));
            }
        }
        Ok(plan)
    }

    /// Asks launchd whether it has the job.
    ///
    /// # Errors
    /// [`CannotInstall`] if it does not.
    pub fn verify(&self) -> Result<(), CannotInstall> {
        let words = launchctl(&["print", &self.target()]);
        let answer = ask(&words)?;
        if answer.is_good { Ok(()) } else { Err(answer.into_error(&words)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(home: &Path, has_screen: bool) -> Setup {
        let env = |name: &str| match name {
            "HOME" => Some(home.as_os_str().to_owned()),
            "XDG_RUNTIME_DIR" => Some("/r".into()),
            _ => None,
        };
        let places = Places::of_user(&env, 501, |_| false, None);
        Setup::of(Scope::User, 501, Some(home), &places, &|_| Ok(has_screen)).unwrap()
    }

    /// A launchd that has the job in this domain only.
    fn has_in(domain: &str) -> impl Fn(&[String]) -> Result<bool, CannotInstall> {
        move |words| Ok(words[2] == format!("{domain}/{AGENT}"))
    }

    fn words(plan: &Plan) -> Vec<String> {
        plan.steps.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_loaded_job_goes_and_is_gone_before_its_file_changes_and_it_comes_back() {
        let temp = tempfile::tempdir().unwrap();
        let setup = setup(temp.path(), true);
        let plan = setup.install(Path::new("/a/authsock"), &has_in("gui/501")).unwrap();
        let words = words(&plan);
        assert_eq!(words[0], "run launchctl bootout gui/501/org.authsock.agent");
        assert_eq!(words[1], "wait until `launchctl print gui/501/org.authsock.agent` finds nothing");
        assert!(words[2].starts_with("make ") && words[3].starts_with("write "), "{words:?}");
        assert_eq!(words[4], "run launchctl enable gui/501/org.authsock.agent");
        assert!(words[5].starts_with("run launchctl bootstrap gui/501 "), "{words:?}");
        assert!(words[5].ends_with("/Library/LaunchAgents/org.authsock.agent.plist"));
        assert_eq!(words.len(), 6);
    }

    #[test]
    fn without_a_login_at_the_screen_the_job_is_in_the_user_s_own_domain() {
        let temp = tempfile::tempdir().unwrap();
        let setup = setup(temp.path(), false);
        let plan = setup.install(Path::new("/a/authsock"), &|_| Ok(false)).unwrap();
        let write = plan.steps.iter().find_map(|step| match step {
            Step::Write { text, .. } => Some(text.clone()),
            _ => None,
        });
        assert!(write.unwrap().contains("<string>Background</string>"));
        assert!(words(&plan).last().unwrap().starts_with("run launchctl bootstrap user/501 "));
    }

    #[test]
    fn installed_twice_nothing_is_to_be_done_and_uninstalled_nothing_is_left() {
        let temp = tempfile::tempdir().unwrap();
        let setup = setup(temp.path(), true);
        let program = Path::new("/a/authsock");
        for step in &setup.install(program, &|_| Ok(false)).unwrap().steps {
            if let Step::Write { .. } = step {
                step.carry_out().unwrap();
            }
        }
        assert!(words(&setup.install(program, &has_in("gui/501")).unwrap()).is_empty());
        let moved = words(&setup.install(Path::new("/b/authsock"), &has_in("gui/501")).unwrap());
        assert!(moved.iter().any(|words| words.starts_with("write ")), "{moved:?}");
        // Installed by ssh before, and now at the screen: two jobs would want one socket.
        let both = words(&setup.install(program, &has_in("user/501")).unwrap());
        assert_eq!(both[0], "run launchctl bootout user/501/org.authsock.agent");
        assert!(both.last().unwrap().starts_with("run launchctl bootstrap gui/501 "), "{both:?}");
        let plan = setup.uninstall(&has_in("user/501")).unwrap();
        assert_eq!(plan.steps.len(), 3, "{:?}", words(&plan));
        plan.steps[2].carry_out().unwrap();
        assert!(words(&setup.uninstall(&|_| Ok(false)).unwrap()).is_empty());
    }

    #[test]
    fn a_job_that_somebody_else_wrote_is_left_alone() {
        let temp = tempfile::tempdir().unwrap();
        let setup = setup(temp.path(), true);
        let text = "<plist/>".to_owned();
        Step::Write { path: setup.file.clone(), text, mode: 0o644 }.carry_out().unwrap();
        let refused = setup.install(Path::new("/a/authsock"), &|_| Ok(true)).unwrap_err();
        assert!(matches!(refused, CannotInstall::NotOurs(_)), "{refused}");
        let plan = setup.uninstall(&|_| Ok(true)).unwrap();
        assert!(plan.steps.is_empty() && plan.notes.len() == 1);
    }

    #[test]
    fn a_socket_whose_path_is_too_long_is_named() {
        let long = PathBuf::from(format!("/{}", "s".repeat(crate::place::SOCKET_PATH_MAX)));
        let path = Path::new("/a");
        let refused = fill(&Domain::Gui(1), &Paths { program: path, socket: &long, log: path }).unwrap_err();
        assert!(refused.to_string().contains("bytes long"), "{refused}");
    }
}
