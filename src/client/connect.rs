//! From nothing to a proven connection: which socket, starting a daemon on demand, the handshake, and what is tried again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout_at};
use zeroize::Zeroizing;

use super::calls::{Client, Limits};
use crate::config::{BadConfig, Config};
use crate::credential::discover::{self, Found, NoToken, Source};
use crate::credential::successor;
use crate::gate::write;
use crate::handshake::client::{self as machine, Bound, Failure, OwnProcess, RelayPolicy};
use crate::init::ondemand::{self, CannotStart};
use crate::kernel::dir::{is_private, own_uid, platform_temp, runs_with_foreign_environment};
use crate::kernel::process::{self, Pid, Process};
use crate::kernel::socket::{BadSocket, CheckedSocket};
use crate::kernel::survey;
use crate::place::{BadSocketPath, Places, SocketPath, system_socket, var};
use crate::secret::random;
use crate::secret::token::Token;
use crate::wire::auth::{AUTH_LINE_MAX, Answer, CONTROL, Hex32, SessionBrief};
use crate::wire::line::{Lines, TooLong};

/// First and longest pause before a full queue, a busy daemon, or one that just ended is tried
/// again. The kernel has no event for a queue that has room again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));
/// How often a connection that ended before the daemon said anything is tried again.
const LOST_MAX: u32 = 20;
/// How often it is asked for whose token is not there: a daemon that has lost it is about to notice.
const TOKENLESS_MAX: u32 = 8;

/// What a caller may say of how to connect.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The socket, instead of looking for one.
    pub socket: Option<PathBuf>,
    /// The token's file, instead of looking for one.
    pub token_file: Option<PathBuf>,
    /// The daemon of the whole machine, instead of the user's own.
    pub system: bool,
    /// A configuration file, instead of the usual one.
    pub config: Option<PathBuf>,
    /// The authsock program, to start a daemon with where none is installed; without it none is
    /// started.
    pub program: Option<PathBuf>,
    /// How long everything may take; by default `client.timeout_seconds`.
    pub timeout: Option<Duration>,
    /// Leaves files as they are: a rotation that was cut off is not completed.
    pub only_looks: bool,
}

/// Why there is no connection. Each names the thing and the way out.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The socket's path cannot be used.
    #[error(transparent)]
    Path(#[from] BadSocketPath),
    /// The socket itself cannot be used.
    #[error("{problem}{advice}", advice = .route.advice(.problem))]
    Socket {
        /// What is wrong with it.
        problem: BadSocket,
        /// How it was found.
        route: Route,
    },
    /// No daemon could be started.
    #[error(transparent)]
    Start(#[from] CannotStart),
    /// There is no token.
    #[error(transparent)]
    Token(#[from] NoToken),
    /// A daemon answers, but the token that it made is not where it belongs.
    #[error("a daemon answers at {route}, but its token {path} is not there: somebody removed it, or it lies elsewhere{look}", path = path.display(), look = .route.look())]
    TokenGone {
        /// Where it should be.
        path: PathBuf,
        /// How the daemon was found.
        route: Route,
    },
    /// The configuration that was named cannot be used.
    #[error(transparent)]
    Config(#[from] BadConfig),
    /// The handshake failed.
    #[error("{failure}{hint} ({route})", hint = .failure.hint(.route))]
    Handshake {
        /// How.
        failure: Failure,
        /// Where.
        route: Route,
    },
    /// The connection ended without a word, again and again.
    #[error("the connection to {0} ends before the daemon says anything: it could not start{look}", look = .0.look())]
    Lost(Route),
    /// Too slow.
    #[error("no answer from {0} within {1:?}{look}", look = .0.look())]
    Timeout(Route, Duration),
    /// The operating system gives no random bytes.
    #[error(transparent)]
    NoRandomness(#[from] random::NoRandomness),
}

impl ConnectError {
    /// The code of the daemon's refusal, if it refused.
    pub fn refusal_code(&self) -> Option<&str> {
        match self {
            ConnectError::Handshake { failure, .. } => failure.code(),
            _ => None,
        }
    }

    /// Whether it may be otherwise in a while without anybody's doing: no daemon is there, or it is busy. Nothing else
    /// is to be tried again (docs/protocol.md).
    pub fn may_pass(&self) -> bool {
        match self {
            ConnectError::Socket { problem, .. } => {
                matches!(problem, BadSocket::Missing(_) | BadSocket::Refused(_) | BadSocket::Full(_))
            }
            ConnectError::Lost(_) | ConnectError::Timeout(..) => true,
            _ => self.refusal_code() == Some("busy"),
        }
    }

    /// Whether another token could help.
    pub fn is_of_the_token(&self) -> bool {
        matches!(self, ConnectError::Handshake { failure, .. } if failure.is_of_the_token())
    }
}

/// How a client reaches its daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// By a path that somebody named.
    Named(PathBuf),
    /// By the init system's socket.
    Init(PathBuf),
    /// By the socket of the daemon of the whole machine.
    System(PathBuf),
    /// By the socket of a daemon that a client started.
    OnDemand(PathBuf),
}

/// Where `authsock install --system` could only say so.
pub(crate) const NO_SYSTEMD: &str = "this machine was not booted with systemd, and nothing else starts a daemon of the whole machine: leave --system (client.system) away, and the first client starts one of this user's";

/// Whether this system is one that systemd would run, and does not.
pub(crate) fn has_no_systemd() -> bool {
    cfg!(target_os = "linux") && !survey::is_booted_with_systemd()
}

impl Route {
    /// The socket's path.
    pub fn path(&self) -> &Path {
        match self {
            Route::Named(path) | Route::Init(path) | Route::System(path) | Route::OnDemand(path) => path,
        }
    }

    /// Where to look when a daemon that should be there is not.
    fn look(&self) -> &'static str {
        match self {
            Route::Init(_) | Route::OnDemand(_) if cfg!(target_os = "macos") => {
                "; see ~/Library/Logs/authsock/log"
            }
            Route::Init(_) => "; see `systemctl --user status authsock.service`",
            Route::System(_) => "; see `systemctl status authsock.service`",
            Route::OnDemand(_) => "; see its log, ~/.local/state/authsock/log",
            Route::Named(_) => "",
        }
    }

    fn advice(&self, problem: &BadSocket) -> String {
        match (self, problem) {
            (Route::Init(_), BadSocket::Refused(_)) => {
                "; `systemctl --user restart authsock.socket` has it listen, and see `systemctl --user status authsock.service`; if authsock is not installed any more, remove the file".into()
            }
            (Route::System(_), BadSocket::Missing(_) | BadSocket::Refused(_)) if has_no_systemd() => {
                format!("; {NO_SYSTEMD}")
            }
            (Route::System(_), BadSocket::Missing(_) | BadSocket::Refused(_)) => {
                "; the daemon of the whole machine is started by `systemctl restart authsock.socket`, once root has installed it with `authsock install --system`".into()
            }
            (Route::OnDemand(_), BadSocket::Missing(_) | BadSocket::Refused(_)) => no_daemon_in_a_session(),
            // A session that is confined knows its daemon by a name of its own.
            (Route::Named(path), BadSocket::Missing(_) | BadSocket::Refused(_))
                if path.starts_with(places(false).runs()) =>
            {
                no_daemon_in_a_session()
            }
            (Route::Named(_), BadSocket::Missing(_) | BadSocket::Refused(_)) => {
                format!("; it was named by --socket or {}", var::SOCKET)
            }
            _ => String::new(),
        }
    }
}

/// What helps a program in a session whose daemon does not run: its session waits for the next one.
fn no_daemon_in_a_session() -> String {
    format!(
        "; no daemon runs, and none is started where {} or a token is set. The next authsock command outside of the session (`authsock status`, say) starts one, and a session whose leader still runs goes on",
        var::SOCKET
    )
}

impl Failure {
    /// Whether another token could help: the daemon knows this one no more, or not.
    fn is_of_the_token(&self) -> bool {
        matches!(self, Failure::StaleTokenOrImpostor) || matches!(self.code(), Some("denied" | "revoked"))
    }

    /// What may help, beyond what the daemon told.
    fn hint(&self, route: &Route) -> &'static str {
        match self.code() {
            Some("unavailable") => route.look(),
            Some("peer_denied") if matches!(route, Route::System(_)) => {
                "; root admits users in /etc/authsock/config.toml (`authsock --system doctor` says more)"
            }
            Some("binding") => {
                "; a session's token is good for the processes of its session, and the owner's only outside of sessions. What a shell was told of another session it forgets by eval \"$(authsock env --unset)\""
            }
            Some("revoked" | "expired") => {
                "; what still runs in it has no session any more: start it again with `authsock run`, from outside"
            }
            _ => "",
        }
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.path().display().fmt(f)
    }
}

/// This user's places, as every client and the daemon see them: at the user's own daemon, or at the
/// one of the whole machine.
pub fn places(system: bool) -> Places {
    let own = Places::of_user(&discover::trusted_env, own_uid(), is_private, platform_temp());
    if system { own.at_the_system_daemon(own_uid()) } else { own }
}

/// Whether the daemon of the whole machine is meant: by these options, or by the user's configuration where
/// nobody names a socket.
fn is_system_s(options: &Options, config: &Config) -> bool {
    let is_named = options.socket.is_some() || discover::trusted_env(var::SOCKET).is_some();
    options.system || (config.system && !is_named)
}

/// The places that a client with these options looks in. A configuration that cannot be read says nothing of them.
pub fn client_places(options: &Options) -> Places {
    let own = places(false);
    let config = Config::load(own.config(), options.config.as_deref()).unwrap_or_default();
    if is_system_s(options, &config) { own.at_the_system_daemon(own_uid()) } else { own }
}

/// Which way leads to the daemon: given; `AUTHSOCK_SOCKET`; the init system's socket; on demand. The
/// daemon of the whole machine is asked for and has one place.
pub(crate) fn route(places: &Places, given: Option<&Path>) -> Route {
    if given.is_none() && places.is_system() {
        return Route::System(places.init_socket());
    }
    let named = given.map(Path::to_path_buf).or_else(|| {
        // A session of an on-demand daemon survives a later installation: its name for the socket
        // means the usual order.
        let named = discover::trusted_env(var::SOCKET).map(PathBuf::from);
        named.filter(|path| *path != places.ondemand_socket())
    });
    if let Some(path) = named {
        // What is known of that socket does not depend on who names it.
        return match path {
            path if path == system_socket() => Route::System(path),
            path if path == places.init_socket() => Route::Init(path),
            path => Route::Named(path),
        };
    }
    let init = places.init_socket();
    if init.symlink_metadata().is_ok() {
        Route::Init(init)
    } else {
        Route::OnDemand(places.ondemand_socket())
    }
}

/// What one attempt came to, when it did not succeed.
enum Attempt {
    /// It makes no sense to try again.
    Failed(ConnectError),
    /// The connection ended before the daemon said anything.
    Lost,
    /// The daemon is there but full.
    Busy(Failure),
    /// The daemon runs now, so that the owner's token must be there.
    TokenShouldExist,
}

impl<E: Into<ConnectError>> From<E> for Attempt {
    fn from(error: E) -> Attempt {
        Attempt::Failed(error.into())
    }
}

impl Client {
    /// Connects; see [`connect`].
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(options: &Options) -> Result<Client, ConnectError> {
        connect(options).await
    }
}

struct Connector<'a> {
    options: &'a Options,
    places: Places,
    relay: RelayPolicy,
    deadline: Instant,
    limits: Limits,
}

/// Connects: finds the daemon (or starts it), lets it prove itself, proves the token.
///
/// Not cancel safe in that a daemon may have been started; nothing else is left behind.
///
/// # Errors
/// [`ConnectError`].
pub async fn connect(options: &Options) -> Result<Client, ConnectError> {
    // How a client behaves is its user's affair, whoever's the daemon is.
    let mut places = places(false);
    let config = match Config::load(places.config(), options.config.as_deref()) {
        Ok(config) => config,
        Err(error) if options.config.is_some() => return Err(error.into()),
        // The daemon says the same and does not serve; for a client the defaults are the stricter.
        Err(error) => {
            tracing::warn!(authsock_event = "config_unused", "not used: {error}");
            Config::default()
        }
    };
    if is_system_s(options, &config) {
        places = places.at_the_system_daemon(own_uid());
    }
    let timeout = options.timeout.unwrap_or(config.client_timeout);
    let relay = if config.allow_unbound { RelayPolicy::AllowUnbound } else { RelayPolicy::Refuse };
    let limits = Limits { timeout, queued: config.client_queued };
    Connector { options, places, relay, deadline: Instant::now() + timeout, limits }.run().await
}

impl Connector<'_> {
    async fn run(&self) -> Result<Client, ConnectError> {
        let mut pause = PAUSE.0;
        let mut lost = 0;
        let mut refused: Option<(Token, Failure)> = None;
        let mut tokenless = 0;
        loop {
            let route = route(&self.places, self.options.socket.as_deref());
            let found = match self.token() {
                Ok(found) => Some(found),
                // The first activation makes it; once a daemon answers, it must be there. One from whom it was
                // taken away makes room for another at that moment.
                Err(NoToken::NotYet(path)) if tokenless > TOKENLESS_MAX => {
                    return Err(ConnectError::TokenGone { path, route });
                }
                Err(NoToken::NotYet(_)) => None,
                Err(error) => return Err(error.into()),
            };
            // Not the same token once more.
            if let (Some((token, _)), Some(found)) = (&refused, &found)
                && *token == found.token
                && let Some((_, failure)) = refused
            {
                return match self.with_successor(&route, &found.source).await {
                    Some(client) => Ok(client),
                    None => Err(ConnectError::Handshake { failure, route }),
                };
            }
            let attempt = match timeout_at(self.deadline, self.attempt(&route, found.as_ref())).await {
                Ok(Ok(client)) => return Ok(client),
                Ok(Err(attempt)) => attempt,
                Err(_) => return Err(ConnectError::Timeout(route, self.limits.timeout)),
            };
            match attempt {
                // The token may have been rotated since it was read: one fresh look.
                Attempt::Failed(ConnectError::Handshake { failure, route }) if failure.is_of_the_token() => {
                    match found {
                        Some(found) if refused.is_none() => refused = Some((found.token, failure)),
                        _ => return Err(ConnectError::Handshake { failure, route }),
                    }
                    continue;
                }
                Attempt::Failed(error) => return Err(error),
                Attempt::TokenShouldExist => {
                    tokenless += 1;
                    if tokenless == 1 {
                        continue;
                    }
                }
                Attempt::Lost => {
                    lost += 1;
                    if lost > LOST_MAX {
                        return Err(ConnectError::Lost(route));
                    }
                }
                Attempt::Busy(failure) if Instant::now() + pause >= self.deadline => {
                    return Err(ConnectError::Handshake { failure, route });
                }
                Attempt::Busy(_) => {}
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// A rotation may have been cut off after the daemon had heard of it: then the new token, which lies beside the one
    /// that was refused, is the good one. It is tried once.
    async fn with_successor(&self, route: &Route, source: &Source) -> Option<Client> {
        let found = Found { token: successor::left_by(source)?, source: source.clone() };
        let client = timeout_at(self.deadline, self.attempt(route, Some(&found))).await.ok()?.ok()?;
        if !self.options.only_looks {
            successor::mend(source, &found.token);
        }
        Some(client)
    }

    fn token(&self) -> Result<Found, NoToken> {
        discover::token(&discover::trusted_env, &self.places, self.options.token_file.as_deref())
    }

    async fn attempt(&self, route: &Route, found: Option<&Found>) -> Result<Client, Attempt> {
        let stream = self.open(route).await?;
        let process = own_process();
        // Without a token yet, a daemon that was just started has made it; where an init system is
        // still starting one, a random token serves to learn that it is up.
        let (token, is_real) = match found {
            Some(found) => (found.token.clone(), true),
            None => match self.token() {
                Ok(found) => (found.token, true),
                Err(_) => (Token::generate().map_err(ConnectError::from)?, false),
            },
        };
        let nonce = Hex32(random::bytes().map_err(ConnectError::from)?);
        let mut talk = Talk { stream, lines: Lines::new(AUTH_LINE_MAX) };
        let (opening, expected) = machine::start(&token, CONTROL, nonce, process);
        // A daemon that refuses at once may have closed already; what it said can still be read.
        let sent = write(&talk.stream, opening.as_bytes()).await;
        let failed = |failure: Failure| match &failure {
            Failure::Refused { brief, .. } if brief.code == "busy" => Attempt::Busy(failure),
            _ => Attempt::Failed(ConnectError::Handshake { failure, route: route.clone() }),
        };
        let too_long = |error: TooLong| failed(Failure::NotADaemon(error.to_string()));
        let Some(line) = talk.line().await.map_err(too_long)? else { return Err(Attempt::Lost) };
        if !is_real {
            return match Answer::read(&line) {
                Ok(Answer::Challenge(_)) => Err(Attempt::TokenShouldExist),
                Ok(Answer::Refused(brief)) => Err(failed(Failure::Refused { brief, genuine: false })),
                Ok(Answer::Accepted(_)) => Err(failed(Failure::NotADaemon("it accepts any token".into()))),
                Err(misread) => Err(failed(misread.into())),
            };
        }
        let (proof, expected) = expected.read(&line, self.relay).map_err(failed)?;
        if sent.is_err() || write(&talk.stream, proof.as_bytes()).await.is_err() {
            return Err(Attempt::Lost);
        }
        let Some(line) = talk.line().await.map_err(too_long)? else { return Err(Attempt::Lost) };
        let (session, bound): (SessionBrief, Bound) = expected.read(&line).map_err(failed)?;
        if let Bound::Unbound(reason) = &bound {
            tracing::warn!(
                authsock_event = "unbound",
                authsock_session = session.id.as_str(),
                "unbound: {reason}; let pass by client.allow_unbound"
            );
        }
        let socket = route.path().to_path_buf();
        Ok(Client::new(talk.stream, talk.lines.into_rest(), session, bound, socket, self.limits))
    }

    /// A connected stream, by whatever way; a daemon is started if there is none and may be.
    async fn open(&self, route: &Route) -> Result<UnixStream, Attempt> {
        let path = SocketPath::new(route.path()).map_err(ConnectError::from)?;
        let mut pause = PAUSE.0;
        let mut started = false;
        loop {
            let looked = match route {
                Route::System(_) => CheckedSocket::look_at_root_s(&path),
                _ => CheckedSocket::look(&path, own_uid()),
            };
            let connected = looked.and_then(|found| found.connect());
            let problem = match connected {
                Ok(stream) => {
                    let watched = UnixStream::from_std(stream);
                    return watched.map_err(|error| {
                        let problem = BadSocket::Io { path: route.path().to_path_buf(), error };
                        Attempt::Failed(ConnectError::Socket { problem, route: route.clone() })
                    });
                }
                Err(problem) => problem,
            };
            match (&problem, route) {
                (BadSocket::Full(_), _) => {
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
                (BadSocket::Missing(_) | BadSocket::Refused(_), Route::OnDemand(_)) if !started => {
                    let Some(program) = self.may_start() else {
                        return Err(ConnectError::Socket { problem, route: route.clone() }.into());
                    };
                    self.start(program).await?;
                    started = true;
                }
                // The daemon that we found or started has just ended: begin anew.
                (BadSocket::Missing(_) | BadSocket::Refused(_), Route::OnDemand(_)) => {
                    return Err(Attempt::Lost);
                }
                _ => return Err(ConnectError::Socket { problem, route: route.clone() }.into()),
            }
        }
    }

    /// Only a client that was told of nothing starts a daemon: one in a session has its own.
    fn may_start(&self) -> Option<&Path> {
        let told = discover::is_named(&discover::trusted_env)
            || self.options.socket.is_some()
            || runs_with_foreign_environment();
        self.options.program.as_deref().filter(|_| !told)
    }

    async fn start(&self, program: &Path) -> Result<(), Attempt> {
        let (places, program, config) =
            (self.places.clone(), program.to_path_buf(), self.options.config.clone());
        let patience = self.deadline.saturating_duration_since(Instant::now()).min(ondemand::START_TIMEOUT);
        let started = tokio::task::spawn_blocking(move || {
            ondemand::start(&places, &program, config.as_deref(), &discover::trusted_env, patience)
        });
        match started.await {
            Ok(done) => Ok(done.map_err(ConnectError::from)?),
            Err(_) => Err(Attempt::Lost),
        }
    }
}

/// What this process is, in its own kernel's words.
fn own_process() -> OwnProcess {
    let pidfs = Process::open(Pid::own()).ok().and_then(|process| process.inode());
    OwnProcess {
        uid: own_uid(),
        pid: Pid::own().0,
        pidfs,
        // Needed even where we have an inode: the daemon may have none for us.
        start: process::start_time(Pid::own()),
        pidns: process::pid_namespace(),
    }
}

/// A handshake's lines on a stream.
struct Talk {
    stream: UnixStream,
    lines: Lines,
}

impl Talk {
    /// The next line, or `None` if the other end leaves before it is whole.
    async fn line(&mut self) -> Result<Option<Zeroizing<Vec<u8>>>, TooLong> {
        loop {
            if let Some(line) = self.lines.next_line()? {
                return Ok(Some(Zeroizing::new(line.to_vec())));
            }
            let mut chunk = [0u8; 1024];
            if self.stream.readable().await.is_err() {
                return Ok(None);
            }
            match self.stream.try_read(&mut chunk) {
                Ok(0) => return Ok(None),
                Ok(read) => self.lines.push(&chunk[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::auth::RefusalBrief;

    #[test]
    fn who_is_not_admitted_by_the_machine_s_daemon_hears_who_admits() {
        let refused = |route| {
            let brief = RefusalBrief {
                code: "peer_denied".to_owned(),
                message: String::new(),
                supported: Vec::new(),
            };
            let failure = Failure::Refused { brief, genuine: false };
            ConnectError::Handshake { failure, route }.to_string()
        };
        assert!(
            refused(Route::System("/run/s".into()))
                .contains("root admits users in /etc/authsock/config.toml")
        );
        assert!(
            !refused(Route::Init("/run/user/7/s".into())).contains("root"),
            "nobody but this user decides there"
        );
    }
}
