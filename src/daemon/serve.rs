//! The daemon's main loop: connections in, orders carried out, and an end at which nothing is lost.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::connection;
use super::control::{Facts, Hub, Order};
use super::doors::Doors;
use super::events::{Events, Site};
use super::foundation::{CannotServe, Foundation, Ground, LOCK_TIMEOUT, load_config, user_scopes};
use super::http;
use super::lifecycle::{Asked, Idle, Manager, Signals, idle_exit, watchdog};
use super::metrics::{AtTheGate, Metrics};
use super::sessions::Sessions;
use super::settings::settings;
use super::users::Users;
use crate::client::connect::places;
use crate::config::Config;
use crate::gate::burst::{Bursts, Verdict};
use crate::gate::observer::{Observer, Refused};
use crate::gate::{Gate, Settings, Through, Welcome, lock, now};
use crate::init::{Activation, Adopted, Starter, ondemand};
use crate::kernel::dir::{Lock, own_uid};
use crate::place::{DESCRIPTOR_NAME, Places};
use crate::secret::verifier::Verifier;
use crate::session::SessionId;
use crate::session::limits::Limits;
use crate::session::registry::Registry;
use crate::wire::auth::{CONTROL, Code};

/// Shortest time between two attempts to mend what keeps the daemon from serving.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How long a daemon that makes room for another finishes what is under way: less than that one waits for the lock.
const ROOM_MADE_WITHIN: Duration = Duration::from_secs(3);
const _: () = assert!(ROOM_MADE_WITHIN.as_secs() < LOCK_TIMEOUT.as_secs());
/// How often the daemon looks whether its socket's file is still there.
const SOCKET_CHECK: Duration = Duration::from_secs(15);

/// How many refusals of one user the owner is told of within a window of ten seconds, and how many of all; of the others it is
/// told how many.
const REFUSALS_TOLD: u32 = 5;
const REFUSALS_TOLD_OF_ALL: u32 = 20;
/// By which subject.
const REFUSED: &str = "$authsock.auth.refused";

/// How a daemon is to run.
#[derive(Debug, Default)]
pub struct Options {
    /// Whether this is the daemon of the whole machine.
    pub system: bool,
    /// A configuration file instead of the usual one.
    pub config: Option<PathBuf>,
    /// Where standard error goes once the daemon serves: where a client waits for it to close, or where
    /// the init system keeps none.
    pub log: Option<File>,
    /// How many descriptors may be open at once.
    pub descriptors: usize,
    /// The path of that file, for whoever asks.
    pub log_path: Option<PathBuf>,
}

/// Why a daemon ended that should not have.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// A client that waits for it is told.
    #[error(transparent)]
    CannotServe(#[from] CannotServe),
    /// The runtime or the kernel failed it.
    #[error("cannot {doing}: {error}")]
    Io {
        /// What was tried, in words.
        doing: &'static str,
        /// The answer.
        error: io::Error,
    },
}

fn failed(doing: &'static str) -> impl Fn(io::Error) -> Fatal {
    move |error| Fatal::Io { doing, error }
}

/// Runs a daemon on the sockets that it adopted, until it is asked to stop or has been idle for
/// long enough. Must be called from a tokio runtime.
///
/// # Errors
/// [`Fatal`]. A daemon of an init system that cannot serve does not end: it answers `unavailable`,
/// and mends itself when the cause is gone.
pub async fn run(activation: Activation, options: Options) -> Result<(), Fatal> {
    let mut server = Server::new(activation, options)?;
    server.start().await?;
    let end = server.serve().await;
    server.finish(end).await;
    Ok(())
}

fn gate_on(
    doors: &Doors,
    registry: Arc<Mutex<Registry>>,
    settings: Settings,
    welcome: Option<Welcome>,
    observer: Option<Arc<dyn Observer>>,
) -> Result<Gate, Fatal> {
    doors
        .listeners()
        .and_then(|listeners| Gate::with(listeners, registry, settings, welcome, observer))
        .map_err(failed("watch the sockets"))
}

/// A registry that nobody can come in by, for a gate that only turns away.
fn nobody() -> Result<Arc<Mutex<Registry>>, Fatal> {
    let token = crate::secret::token::Token::generate()
        .map_err(|error| Fatal::Io { doing: "begin", error: io::Error::other(error) })?;
    let registry = Registry::new(own_uid(), Verifier::of(&token), now(), Limits::default());
    Ok(Arc::new(Mutex::new(registry)))
}

/// Whether the daemon serves, or what keeps it from it.
enum Phase {
    Serving { hub: Arc<Hub>, gate: Gate, ground: Ground, _lock: Lock },
    Broken { reason: String, tried: Instant, gate: Gate },
}

/// Why the main loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Asked,
    Retired,
    Idle,
    SocketLost,
    StateLost,
}

/// What happens to a daemon.
enum Event {
    Through(Through),
    Unserved(UnixStream),
    Stray(UnixStream),
    ConnectionEnded,
    Asked(Asked),
    Order(Order),
    SessionsChanged,
    NamesStirred,
    Tick,
}

struct Server {
    starter: Starter,
    places: Places,
    options: Options,
    doors: Doors,
    /// Sockets with a name that means nothing here: answered, so that nobody waits.
    strays: Option<Gate>,
    phase: Phase,
    connections: JoinSet<()>,
    orders: (mpsc::UnboundedSender<Order>, mpsc::UnboundedReceiver<Order>),
    changed: Arc<Notify>,
    stopping: watch::Sender<bool>,
    signals: Signals,
    manager: Manager,
    idle: Idle,
    watchdog: Option<(Duration, Instant)>,
    next_check: Instant,
    started: std::time::Instant,
    /// What was wrong with the activation.
    complaints: Vec<String>,
    /// What of the configuration cannot be followed.
    configured: Vec<String>,
}

impl Server {
    fn new(activation: Activation, options: Options) -> Result<Server, Fatal> {
        let Activation { sockets, rejected, starter } = activation;
        let mut complaints: Vec<String> = rejected.iter().map(ToString::to_string).collect();
        let control = [DESCRIPTOR_NAME, "authsock.socket", CONTROL];
        let (ours, others): (Vec<Adopted>, Vec<Adopted>) =
            sockets.into_iter().partition(|socket| control.contains(&socket.name.as_str()));
        for socket in &others {
            complaints.push(format!(
                "socket {} is named {:?}, and no service of that name is configured",
                socket.path.display(),
                socket.name
            ));
        }
        for complaint in &complaints {
            tracing::warn!(authsock_event = "socket_rejected", "{complaint}");
        }
        let (least, _) = settings(&Config::default(), options.descriptors, options.system);
        let doors = |sockets: Vec<Adopted>| Doors::new(sockets, starter, options.system);
        let strays = Some(others).filter(|others| !others.is_empty()).map(doors);
        let doors = doors(ours);
        let gate = gate_on(&doors, nobody()?, least.clone(), None, None)?;
        let strays = strays.map(|strays| gate_on(&strays, nobody()?, least, None, None)).transpose()?;
        let now = Instant::now();
        Ok(Server {
            starter,
            places: places(options.system),
            options,
            doors,
            strays,
            phase: Phase::Broken { reason: "starting".into(), tried: now, gate },
            connections: JoinSet::new(),
            orders: mpsc::unbounded_channel(),
            changed: Arc::new(Notify::new()),
            stopping: watch::channel(false).0,
            signals: Signals::watch().map_err(failed("watch signals"))?,
            manager: Manager::default(),
            idle: Idle::default(),
            watchdog: watchdog().map(|period| (period, now + period)),
            next_check: now + SOCKET_CHECK,
            started: std::time::Instant::now(),
            complaints,
            configured: Vec::new(),
        })
    }

    /// The first attempt to serve. A client that waits is told of a failure; an init system's
    /// daemon stays, and answers.
    async fn start(&mut self) -> Result<(), Fatal> {
        match self.lay_foundation(LOCK_TIMEOUT).await {
            Ok(()) => {}
            Err(Fatal::CannotServe(cannot)) if self.starter == Starter::Init => {
                self.break_down(&cannot.to_string());
            }
            Err(fatal) => return Err(fatal),
        }
        let status = self.status();
        self.manager.ready(&status);
        if let Some(log) = self.options.log.take() {
            ondemand::report_ready(&log).map_err(failed("let go of standard error"))?;
        }
        Ok(())
    }

    async fn lay_foundation(&mut self, patience: Duration) -> Result<(), Fatal> {
        let laid =
            Foundation::lay(self.starter, &self.places, self.options.config.as_deref(), patience).await;
        let Foundation { config, state, owner, lock, users, store, has_credential, ground } = laid?;
        let uid = own_uid();
        let mut registry = Registry::new(uid, owner, now(), Limits::from(&config));
        let users = users.map(Arc::new);
        if let Some(users) = &users {
            let scopes = user_scopes(&config).unwrap_or_default();
            for (uid, verifier) in users.known().map_err(CannotServe::from)? {
                registry.set_user(uid, verifier, &scopes, now());
            }
        }
        let metrics = Arc::new(Metrics::default());
        let sessions =
            Sessions::new(registry, store, config.events.clone(), metrics.clone(), self.changed.clone());
        let (settings, complained) = settings(&config, self.options.descriptors, self.options.system);
        let policy = watch::channel(settings.policy.clone()).0;
        let raised = idle_exit(self.starter, config.idle_exit).1;
        let config = Arc::new(Mutex::new(Arc::new(config)));
        let welcome = users.clone().map(|users| welcome(users, &sessions, config.clone()));
        let at_the_gate = at_the_gate(&metrics, sessions.events());
        let gate = gate_on(&self.doors, sessions.registry().clone(), settings, welcome, Some(at_the_gate))?;
        self.configured = complained;
        self.configured.extend(raised);
        let hub = Arc::new(Hub {
            events: sessions.events().clone(),
            metrics,
            sessions,
            state,
            config,
            users,
            policy,
            orders: self.orders.0.clone(),
            facts: Facts {
                started: self.started,
                starter: self.starter,
                sockets: self.doors.paths().map(Path::to_path_buf).collect(),
                log: self.options.log_path.clone(),
                uid,
                has_credential,
                config: self.options.config.as_deref().or(self.places.config()).map(Path::to_path_buf),
            },
            counts: Mutex::default(),
            complaints: Mutex::new(self.complaints()),
        });
        tracing::info!(
            authsock_event = "serving",
            "serving on {}",
            self.doors.paths().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
        );
        let before = std::mem::replace(&mut self.phase, Phase::Serving { hub, gate, ground, _lock: lock });
        if let Phase::Broken { mut gate, .. } = before {
            // Those who are being turned away are still answered.
            tokio::spawn(async move { while gate.finish().await.is_some() {} });
        }
        Ok(())
    }

    fn break_down(&mut self, words: &str) {
        tracing::error!(authsock_event = "cannot_serve", authsock_reason = words, "cannot serve: {words}");
        if let Phase::Broken { reason, tried, .. } = &mut self.phase {
            words.clone_into(reason);
            *tried = Instant::now();
        }
    }

    /// The main loop.
    async fn serve(&mut self) -> End {
        loop {
            self.take_stock();
            match self.next_event().await {
                Event::Through(connection) => self.hand_over(connection),
                Event::Unserved(stream) => self.heal_or_turn_away(stream).await,
                Event::Stray(stream) => {
                    if let Some(strays) = &mut self.strays {
                        strays.turn_away(stream, Code::UnknownService);
                    }
                }
                Event::ConnectionEnded | Event::SessionsChanged => {}
                Event::Asked(Asked::Stop) => return End::Asked,
                Event::Asked(Asked::Reload) => self.reload().await,
                Event::Order(Order::Retire) => return End::Retired,
                Event::NamesStirred => {
                    if let Some(end) = self.look_around() {
                        return end;
                    }
                }
                Event::Tick => {
                    if let Some(end) = self.tick() {
                        return end;
                    }
                }
            }
        }
    }

    fn hand_over(&mut self, through: Through) {
        if let Phase::Serving { hub, .. } = &self.phase {
            begin(&mut self.connections, through, hub, &self.stopping);
        }
    }

    async fn next_event(&mut self) -> Event {
        let deadline = self.deadline();
        let (serving, ground, broken) = match &mut self.phase {
            Phase::Serving { gate, ground, .. } => (Some(gate), Some(ground), None),
            Phase::Broken { gate, .. } => (None, None, Some(gate)),
        };
        tokio::select! {
            asked = self.signals.next() => Event::Asked(asked),
            Some(order) = self.orders.1.recv() => Event::Order(order),
            connection = some(serving, |gate| Box::pin(gate.next())) => Event::Through(connection),
            stream = some(broken, |gate| Box::pin(unserved(gate))) => Event::Unserved(stream),
            stream = some(self.strays.as_mut(), |gate| Box::pin(unserved(gate))) => Event::Stray(stream),
            Some(_) = self.connections.join_next(), if !self.connections.is_empty() => Event::ConnectionEnded,
            () = self.changed.notified() => Event::SessionsChanged,
            () = self.doors.stirred() => Event::NamesStirred,
            () = some(ground, |ground| Box::pin(ground.stirred())) => Event::NamesStirred,
            () = sleep_until(deadline) => Event::Tick,
        }
    }

    fn in_use(&self) -> bool {
        let (in_handshake, leaders) = match &self.phase {
            Phase::Serving { gate, hub, .. } => (gate.in_handshake(), {
                let registry = lock(hub.sessions.registry());
                registry.leaders() + registry.len()
            }),
            Phase::Broken { gate, .. } => (gate.in_handshake(), 0),
        };
        self.connections.len() + in_handshake + leaders > 0
    }

    fn idle_patience(&self) -> Option<Duration> {
        match &self.phase {
            Phase::Serving { hub, .. } => idle_exit(self.starter, lock(&hub.config).idle_exit).0,
            Phase::Broken { .. } => Config::default().idle_exit,
        }
    }

    fn deadline(&self) -> Instant {
        let idle = self.idle.due(self.idle_patience());
        let watchdog = self.watchdog.map(|(_, due)| due);
        let due = [idle, watchdog, self.manager.due(), Some(self.next_check)];
        due.into_iter().flatten().min().unwrap_or(self.next_check)
    }

    /// Notes what there is, for the status and for idleness.
    fn take_stock(&mut self) {
        if let Phase::Serving { hub, gate, .. } = &self.phase {
            *lock(&hub.counts) = (self.connections.len(), gate.in_handshake());
        }
        self.idle.note(self.in_use());
        let status = self.status();
        self.manager.status(status);
    }

    fn status(&self) -> String {
        match &self.phase {
            Phase::Broken { reason, .. } => format!("cannot serve: {reason}"),
            Phase::Serving { hub, .. } => {
                let sessions = lock(hub.sessions.registry()).len();
                let counted = |count: usize, one: &str| match count {
                    1 => format!("1 {one}"),
                    count => format!("{count} {one}s"),
                };
                let mut words = format!(
                    "serving: {}, {}",
                    counted(self.connections.len(), "connection"),
                    counted(sessions, "session")
                );
                for complaint in lock(&hub.complaints).iter() {
                    words.push_str("; ");
                    words.push_str(complaint);
                }
                words
            }
        }
    }

    /// Tries once more to serve, at most once a second; whoever came is served if it works.
    async fn heal_or_turn_away(&mut self, stream: UnixStream) {
        if let Phase::Broken { tried, .. } = &self.phase
            && tried.elapsed() >= RETRY_PAUSE
        {
            self.heal().await;
        }
        match &mut self.phase {
            Phase::Serving { gate, .. } => gate.admit(stream),
            Phase::Broken { gate, .. } => gate.turn_away(stream, Code::Unavailable),
        }
    }

    async fn heal(&mut self) {
        match self.lay_foundation(Duration::ZERO).await {
            Ok(()) => {
                tracing::info!(authsock_event = "healed", "what kept the daemon from serving is mended");
                let status = self.status();
                self.manager.ready(&status);
            }
            Err(fatal) => self.break_down(&fatal.to_string()),
        }
    }

    /// Reads the configuration again. A broken one changes nothing, and is complained of.
    async fn reload(&mut self) {
        self.manager.reloading();
        match &self.phase {
            Phase::Broken { .. } => self.heal().await,
            Phase::Serving { hub, gate, .. } => {
                let mut failure = None;
                match load_config(&self.places, self.options.config.as_deref()) {
                    Ok(config) => {
                        let settings = settings(&config, self.options.descriptors, self.options.system).0;
                        // Who is not admitted any more is told by the end of the connection.
                        hub.policy.send_if_modified(|policy| {
                            let is_new = *policy != settings.policy;
                            policy.clone_from(&settings.policy);
                            is_new
                        });
                        gate.set(settings);
                        if let Some(users) = &hub.users {
                            hub.sessions.forget_users(|uid| users.has_token(uid));
                            hub.sessions.narrow_users(&user_scopes(&config).unwrap_or_default());
                        }
                        hub.sessions.set_limits(Limits::from(&config));
                        hub.events.set(config.events.clone());
                        *lock(&hub.config) = Arc::new(config);
                        tracing::info!(authsock_event = "reloaded", "the configuration was read again");
                    }
                    Err(error) => {
                        let words = format!("reload failed, what was read before still holds: {error}");
                        tracing::error!(authsock_event = "reload_failed", "{words}");
                        // In a status, and in lists, each is one line.
                        failure = Some(words.split_whitespace().collect::<Vec<_>>().join(" "));
                    }
                }
                // Of what holds now, be it new or what was read before.
                let config = lock(&hub.config).clone();
                self.configured = failure.into_iter().collect();
                self.configured.extend(settings(&config, self.options.descriptors, self.options.system).1);
                self.configured.extend(idle_exit(self.starter, config.idle_exit).1);
                *lock(&hub.complaints) = self.complaints();
            }
        }
        let status = self.status();
        self.manager.ready(&status);
    }

    /// What is due by the clock.
    fn tick(&mut self) -> Option<End> {
        let now = Instant::now();
        self.manager.send_due();
        if let Some((period, due)) = &mut self.watchdog
            && *due <= now
        {
            self.manager.alive();
            *due = now + *period;
        }
        if self.next_check <= now {
            self.next_check = now + SOCKET_CHECK;
            if let Phase::Serving { hub, .. } = &self.phase {
                hub.sessions.tidy();
                if let Some(users) = &hub.users {
                    hub.sessions.forget_users(|uid| users.has_token(uid));
                }
            }
            if let Some(end) = self.look_around() {
                return Some(end);
            }
        }
        if self.idle.due(self.idle_patience()).is_some_and(|due| due <= now) {
            if !self.in_use() && self.may_go() {
                return Some(End::Idle);
            }
            self.idle.again();
        }
        None
    }

    /// Looks whether clients can still find the sockets and the owner's token. Whoever removed what a daemon
    /// stands on shall have another: the next one lays it anew.
    fn look_around(&mut self) -> Option<End> {
        if self.doors.look()
            && let Phase::Serving { hub, .. } = &self.phase
        {
            *lock(&hub.complaints) = self.complaints();
        }
        if let Phase::Serving { hub, ground, .. } = &self.phase
            && let Some(path) = ground.missing(hub.sessions.owner_token())
        {
            tracing::warn!(
                authsock_event = "state_lost",
                "{} was removed or replaced: this daemon makes room for one that makes it anew",
                path.display()
            );
            return Some(End::StateLost);
        }
        self.doors.are_lost().then_some(End::SocketLost)
    }

    /// All that the status complains of.
    fn complaints(&self) -> Vec<String> {
        let known = self.complaints.iter().chain(&self.configured).cloned();
        known.chain(self.doors.complaints()).collect()
    }

    /// Whether nobody loses anything by an idle exit. An init system keeps the queue. Ours dies with
    /// us, so the socket's file goes first, under the starters' lock, and what came before that is
    /// served.
    fn may_go(&mut self) -> bool {
        let Phase::Serving { hub, gate, .. } = &mut self.phase else { return true };
        if self.starter == Starter::Init {
            return true;
        }
        if gate.take_waiting() {
            return false;
        }
        self.doors.take_away(Some(&hub.state))
    }

    /// The end: nothing new is taken, what is under way is finished, as far as the time suffices.
    async fn finish(&mut self, end: End) {
        let words = match end {
            End::Asked => "asked to stop",
            End::Retired => "retiring for another daemon",
            End::Idle => "idle",
            End::SocketLost => "the socket is gone",
            End::StateLost => "the state directory or the token is gone",
        };
        tracing::info!(authsock_event = "stopping", authsock_reason = words, "stopping: {words}");
        self.manager.stopping(&format!("stopping: {words}"));
        let _ = self.stopping.send(true);
        let Phase::Serving { hub, gate, .. } = &mut self.phase else { return };
        if self.starter == Starter::Client && end != End::Idle {
            self.doors.take_away((end != End::StateLost).then_some(&hub.state));
        }
        if self.starter == Starter::Client {
            // Whoever came before the file went would be lost with the queue.
            while gate.take_waiting() {}
        }
        let mut patience = lock(&hub.config).drain;
        if matches!(end, End::SocketLost | End::StateLost) {
            // Somebody may be waiting for this daemon's lock already.
            patience = patience.min(ROOM_MADE_WITHIN);
        }
        let deadline = Instant::now() + patience;
        while gate.in_handshake() > 0 || !self.connections.is_empty() {
            tokio::select! {
                through = gate.finish(), if gate.in_handshake() > 0 => if let Some(through) = through {
                    begin(&mut self.connections, through, hub, &self.stopping);
                },
                Some(_) = self.connections.join_next(), if !self.connections.is_empty() => {}
                () = sleep_until(deadline) => {
                    tracing::warn!(
                        authsock_event = "drain_timeout",
                        "{} connections and {} handshakes were still open after {} s (lifecycle.drain_seconds)",
                        self.connections.len(),
                        gate.in_handshake(),
                        patience.as_secs()
                    );
                    break;
                }
            }
        }
    }
}

/// Counts what happens at the gate, and tells the owner of refusals: no more of them than leave room for what else the
/// owner's realm is told.
fn at_the_gate(metrics: &Arc<Metrics>, events: &Arc<Events>) -> Arc<dyn Observer> {
    let events = events.clone();
    let (of_one, of_all) = (Bursts::of(REFUSALS_TOLD), Bursts::of(REFUSALS_TOLD_OF_ALL));
    let tell = move |refused: &Refused<'_>| {
        let now = std::time::Instant::now();
        // Nobody's refusals hide another user's.
        let Verdict::Log { left_out } = of_one.judge(refused.uid, now) else { return };
        let Verdict::Log { left_out: left_out_of_all } = of_all.judge((), now) else { return };
        let data = json!({
            "code": refused.code.as_str(),
            "uid": refused.uid,
            "pid": refused.pid,
            "session": refused.session.map(SessionId::as_str),
            "left_out": left_out + left_out_of_all,
        });
        events.tell(&Site::of_owner(), REFUSED, &data);
    };
    Arc::new(AtTheGate { metrics: metrics.clone(), tell: Box::new(tell) })
}

/// Serves what came through the gate, beside all that is served already.
fn begin(connections: &mut JoinSet<()>, through: Through, hub: &Arc<Hub>, stopping: &watch::Sender<bool>) {
    let (hub, stopping) = (hub.clone(), stopping.subscribe());
    match through {
        Through::Stream(connection) => connections.spawn(connection::serve(connection, hub, stopping)),
        Through::Http(connection) => connections.spawn(http::serve(connection, hub, stopping)),
    };
}

/// Makes a token for a user that comes to a system daemon for the first time, or whose file is gone.
fn welcome(users: Arc<Users>, sessions: &Arc<Sessions>, config: Arc<Mutex<Arc<Config>>>) -> Welcome {
    let registry = sessions.registry().clone();
    Arc::new(move |peer| {
        let uid = peer.uid;
        // Root has the daemon's own.
        if uid == own_uid() || (lock(&registry).has_user(uid) && users.has_token(uid)) {
            return Ok(());
        }
        let scopes = user_scopes(&lock(&config)).map_err(|error| error.to_string())?;
        let verifier = users.mint(uid).map_err(|error| error.to_string())?;
        lock(&registry).set_user(uid, verifier, &scopes, now());
        tracing::info!(
            authsock_event = "token_minted",
            authsock_peer_uid = uid,
            "uid {uid} had no token: one was made, for process {}",
            peer.pid
        );
        Ok(())
    })
}

async fn unserved(gate: &mut Gate) -> UnixStream {
    loop {
        if let Ok(stream) = gate.accept_unserved().await {
            return stream;
        }
    }
}

type Boxed<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + 'a>>;

/// Waits for what `ask` gives, or for ever if there is nothing to ask.
async fn some<'a, A, T>(what: Option<&'a mut A>, ask: impl FnOnce(&'a mut A) -> Boxed<'a, T>) -> T {
    match what {
        Some(what) => ask(what).await,
        None => std::future::pending().await,
    }
}
