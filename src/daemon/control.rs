//! The methods of the service `control`: one table of what may be asked, and by whom.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::events::subscriber::{Form, Listening, Subscriber};
use super::events::{Events, methods as events};
use super::journal::By;
use super::lifecycle::idle_exit;
use super::metrics::Metrics;
use super::sessions::Sessions;
use super::users::Users;
use crate::config::Config;
use crate::gate::{Policy, lock};
use crate::handshake::server::Way;
use crate::init::Starter;
use crate::kernel::dir::Dir;
use crate::kernel::peer::Peer;
use crate::place::TOKEN_FILE;
use crate::secret::file;
use crate::secret::token::TokenId;
use crate::secret::verifier::Verifier;
use crate::session::limits::TTL_MAX;
use crate::session::past::Ended;
use crate::session::registry::{Admitted, ROTATION_GRACE, Registry};
use crate::session::scope::{self, Scope, Scopes, Verb};
use crate::session::wish::{Change, Maker, NewSession, NotMade};
use crate::session::{Binding, EndReason, Millis, Name, OWNER, Realm, Session, SessionId, USER};
use crate::wire::auth::Hex32;
use crate::wire::json_rpc::{ErrorCode, Request, RpcError};

/// Longest grace of a rotated token that may be asked for, in seconds: a day.
const GRACE_MAX: u64 = 86_400;

/// Most sessions in one answer of `session.list`; its `next` leads to the others.
const LIST_PAGE: usize = 256;
/// Bytes of sessions after which an answer has no more of them, however few they are.
const LIST_BYTES: usize = 64 * 1024;
/// Most sessions that are looked at for one answer: where most are not the asker's to see, it may have fewer, or none.
const LIST_SCAN: usize = 4096;

/// What the main loop is asked to do.
#[derive(Debug)]
pub(super) enum Order {
    /// To end, for another daemon to take over.
    Retire,
}

/// What all connections share.
#[derive(Debug)]
pub(super) struct Hub {
    pub(super) sessions: Arc<Sessions>,
    pub(super) events: Arc<Events>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) config: Arc<Mutex<Arc<Config>>>,
    pub(super) state: Dir,
    /// The users' tokens, if this is the daemon of the whole machine.
    pub(super) users: Option<Arc<Users>>,
    /// Who is admitted; changes with the configuration.
    pub(super) policy: watch::Sender<Policy>,
    pub(super) orders: mpsc::UnboundedSender<Order>,
    pub(super) facts: Facts,
    /// Authenticated connections, and ones in the handshake; kept by the main loop.
    pub(super) counts: Mutex<(usize, usize)>,
    /// What the daemon complains of, in words.
    pub(super) complaints: Mutex<Vec<String>>,
}

/// What does not change while a daemon runs.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) started: Instant,
    pub(super) starter: Starter,
    pub(super) sockets: Vec<PathBuf>,
    /// The log's file, where the daemon keeps one itself.
    pub(super) log: Option<PathBuf>,
    pub(super) uid: u32,
    /// Whether the service's credential says what the owner's token is.
    pub(super) has_credential: bool,
    /// Where the configuration is looked for.
    pub(super) config: Option<PathBuf>,
}

/// Who calls.
pub(super) struct Caller<'a> {
    pub(super) hub: &'a Hub,
    pub(super) peer: &'a Peer,
    pub(super) admitted: &'a Admitted,
    /// The session as it is now.
    pub(super) session: &'a Arc<Session>,
    pub(super) way: Way,
    /// Whether the token it came in with has been rotated away since.
    pub(super) is_rotated: bool,
    /// Where events wait for it, once it listens; a connection that does not stay has no such place.
    pub(super) ears: Option<&'a OnceLock<Listening>>,
}

impl<'a> Caller<'a> {
    /// What listens for this connection, from the first time on that this is asked.
    pub(super) fn listening(&self) -> Option<&'a Arc<Subscriber>> {
        let begin = || Listening::new(self.hub.events.clone(), self.admitted, Form::Lines);
        self.ears.map(|ears| ears.get_or_init(begin).subscriber())
    }

    fn by(&self) -> By {
        By { session: self.session.id, pid: self.peer.pid }
    }
}

pub(super) type Params<'a> = Option<&'a RawValue>;
type Run = fn(&Caller<'_>, Params<'_>) -> Result<Value, RpcError>;

/// A method.
pub struct Method {
    /// Its name.
    pub name: &'static str,
    /// What its caller needs.
    pub needs: Needs,
    /// What it does.
    pub does: Does,
    run: Run,
}

/// What a caller needs for a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: everybody may ask who is authenticated.
    Nothing,
    /// A scope.
    Scope(&'static str),
    /// A scope for the subjects that it names.
    Subjects(Verb),
}

/// What a method does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Does {
    /// It only asks, and needs no doing if nobody hears the answer.
    Ask,
    /// It does something that leaves no trace in what sessions are.
    Pass,
    /// It changes what sessions are, which a rotated token is not good for.
    Change,
}

/// Every method there is. What is not here cannot be asked.
pub const METHODS: &[Method] = &[
    Method { name: "ping", needs: Needs::Nothing, does: Does::Ask, run: ping },
    Method { name: "whoami", needs: Needs::Scope("session:self"), does: Does::Ask, run: whoami },
    Method { name: "status", needs: Needs::Scope("session:self"), does: Does::Ask, run: status },
    Method { name: "session.create", needs: Needs::Scope("session:create"), does: Does::Change, run: create },
    Method { name: "session.get", needs: Needs::Scope("session:self"), does: Does::Ask, run: get },
    Method { name: "session.list", needs: Needs::Scope("session:self"), does: Does::Ask, run: list },
    Method { name: "session.update", needs: Needs::Scope("session:self"), does: Does::Change, run: update },
    Method { name: "session.revoke", needs: Needs::Scope("session:self"), does: Does::Change, run: revoke },
    Method { name: "session.rotate", needs: Needs::Scope("session:self"), does: Does::Change, run: rotate },
    Method {
        name: "events.publish",
        needs: Needs::Subjects(Verb::Publish),
        does: Does::Pass,
        run: events::publish,
    },
    Method {
        name: "events.subscribe",
        needs: Needs::Subjects(Verb::Subscribe),
        does: Does::Pass,
        run: events::subscribe,
    },
    Method { name: "events.unsubscribe", needs: Needs::Nothing, does: Does::Pass, run: events::unsubscribe },
    Method { name: "daemon.retire", needs: Needs::Scope("daemon:manage"), does: Does::Change, run: retire },
];

/// Carries out one request, and notes whose it was: in the kernel's words and the registry's, never in the request's own.
pub(super) fn answer(caller: &Caller<'_>, request: &Request<'_>) -> Result<Value, RpcError> {
    let began = Instant::now();
    let result = carry_out(caller, request);
    caller.hub.metrics.request(&request.method, result.as_ref().err(), began.elapsed());
    // Of a method that does not exist the name is the client's.
    let method =
        METHODS.iter().find(|method| method.name == request.method).map_or("-", |method| method.name);
    tracing::debug!(
        authsock_event = "request",
        authsock_session = caller.session.id.as_str(),
        authsock_peer_uid = caller.peer.uid,
        authsock_peer_pid = caller.peer.pid.0,
        authsock_method = method,
        authsock_code = result.as_ref().err().map_or(0, |error| error.code),
        "{method} by process {} (uid {}) in session {} ({})",
        caller.peer.pid,
        caller.peer.uid,
        caller.session.id,
        caller.session.name.in_brackets()
    );
    result
}

fn carry_out(caller: &Caller<'_>, request: &Request<'_>) -> Result<Value, RpcError> {
    let Some(method) = METHODS.iter().find(|method| method.name == request.method) else {
        let name: String = request.method.chars().take(64).collect();
        return Err(RpcError::new(ErrorCode::MethodNotFound, format!("there is no method {name:?}")));
    };
    if let Needs::Scope(needs) = method.needs {
        let permitted = needs.parse::<Scope>().is_ok_and(|needed| caller.session.scopes.permits(&needed));
        if !permitted {
            let words = format!(
                "{} needs the scope {needs}, which this session lacks; it has what `run --allow` named, or the default ones",
                method.name
            );
            return Err(RpcError::new(ErrorCode::NotPermitted, words));
        }
    }
    if method.does == Does::Change && caller.is_rotated {
        return Err(not_made(NotMade::Rotated));
    }
    if method.does == Does::Ask && request.id.is_none() {
        return Ok(Value::Null);
    }
    (method.run)(caller, request.params)
}

/// Reads parameters; a method without any takes none, or an empty object or list.
pub(super) fn read<T: DeserializeOwned>(params: Params<'_>) -> Result<T, RpcError> {
    let text = match params.map(RawValue::get) {
        None | Some("[]") => "{}",
        Some(text) if text.starts_with('{') => text,
        Some(_) => return Err(invalid("params: expected an object")),
    };
    serde_json::from_str(text).map_err(|error| {
        RpcError::new(ErrorCode::InvalidParams, format!("params: {}", describe_error(&error)))
    })
}

/// A JSON error's words without the text of a value, which may be a token in the wrong place.
fn describe_error(error: &serde_json::Error) -> String {
    let words = error.to_string();
    for kind in ["invalid type: string ", "invalid value: string "] {
        if let Some(rest) = words.strip_prefix(kind) {
            // What is expected is our own text and comes last, whatever the value says.
            let expected = rest.rfind(", expected ").map_or("", |place| &rest[place..]);
            return format!("{}{expected}", kind.trim_end());
        }
    }
    words
}

pub(super) fn invalid(problem: impl std::fmt::Display) -> RpcError {
    RpcError::new(ErrorCode::InvalidParams, problem.to_string())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

fn ping(_: &Caller<'_>, params: Params<'_>) -> Result<Value, RpcError> {
    let Nothing {} = read(params)?;
    Ok(json!({ "pong": true }))
}

fn describe(session: &Session) -> Value {
    let scopes: Vec<String> = session.scopes.iter().map(ToString::to_string).collect();
    json!({
        "id": session.id.as_str(),
        "name": session.name.as_str(),
        "realm": session.realm.as_str(),
        "uid": session.uid,
        "leader": session.leader.map(|leader| json!({
            "pid": leader.pid.0,
            "pidfs": leader.pidfs,
            "start": leader.start,
        })),
        "cwd": session.cwd.as_ref().map(|cwd| cwd.to_string_lossy()),
        "parent": session.parent.as_ref().map(SessionId::as_str),
        "scopes": scopes,
        "binding": session.binding,
        "created_ms": session.created,
        "expires_ms": session.expires,
        "token_id": session.token_id.to_string(),
        "ended_ms": null,
        "reason": null,
    })
}

fn describe_ended(ended: &Ended) -> Value {
    let mut shown = describe(&ended.session);
    shown["ended_ms"] = ended.at.into();
    shown["reason"] = ended.reason.as_str().into();
    shown
}

pub(super) fn whoami(caller: &Caller<'_>, params: Params<'_>) -> Result<Value, RpcError> {
    let Nothing {} = read(params)?;
    let identity = caller.peer.identity();
    Ok(json!({
        "session": describe(caller.session),
        "peer": {
            "uid": caller.peer.uid,
            "gid": caller.peer.gid,
            "pid": caller.peer.pid.0,
            "pidfs": identity.pidfs,
        },
        "handshake": caller.way.as_str(),
        "daemon": {
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "uid": caller.hub.facts.uid,
        },
    }))
}

fn status(caller: &Caller<'_>, params: Params<'_>) -> Result<Value, RpcError> {
    let Nothing {} = read(params)?;
    let Hub { sessions, config, facts, counts, complaints, .. } = caller.hub;
    let (connections, in_handshake) = *lock(counts);
    let config = lock(config).clone();
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "uid": facts.uid,
        "uptime_seconds": facts.started.elapsed().as_secs(),
        "mode": if caller.hub.users.is_some() { "system" } else { "user" },
        "token_source": if facts.has_credential { "credential" } else { "file" },
        "activation": match facts.starter { Starter::Init => "init", Starter::Client => "on_demand" },
        "sockets": facts.sockets,
        "log": facts.log,
        "connections": connections,
        "in_handshake": in_handshake,
        "sessions": lock(sessions.registry()).len(),
        "idle_exit_seconds": idle_exit(facts.starter, config.idle_exit).0.map_or(0, |idle| idle.as_secs()),
        "configuration": { "path": facts.config, "fingerprint": config.fingerprint() },
        "complaints": *lock(complaints),
        "limits": {
            "connections": config.connections,
            "connections_per_uid": config.connections_per_uid,
            "unauthenticated": config.unauthenticated,
            "unauthenticated_per_uid": config.unauthenticated_per_uid,
            "sessions": config.sessions,
            "sessions_per_uid": config.sessions_per_uid,
            "session_depth": config.session_depth,
            "session_descendants": config.session_descendants,
            "ended_kept_seconds": config.ended_kept.as_secs(),
            "request_line_bytes": config.request_line,
        },
    }))
}

/// A verifier as it is sent. Its fields are read by types that never repeat their text.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VerifierParam {
    token_id: String,
    stored_key: HexOwned,
    server_key: HexOwned,
}

/// [`Hex32`] out of parameters that were copied.
struct HexOwned(Hex32);

impl<'de> Deserialize<'de> for HexOwned {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<HexOwned, D::Error> {
        Hex32::deserialize(deserializer).map(HexOwned)
    }
}

impl VerifierParam {
    fn into_verifier(self) -> Result<Verifier, RpcError> {
        let id: TokenId = self.token_id.parse().map_err(invalid)?;
        Ok(Verifier::from_parts(id, self.stored_key.0.0, self.server_key.0.0))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateParams {
    name: String,
    realm: Option<String>,
    ttl_seconds: Option<u64>,
    scopes: Option<Vec<String>>,
    binding: Option<Binding>,
    verifier: VerifierParam,
}

/// The binding of a session that asks for none.
fn default_binding() -> Binding {
    if cfg!(target_os = "linux") { Binding::Tree } else { Binding::Uid }
}

fn create(caller: &Caller<'_>, params: Params<'_>) -> Result<Value, RpcError> {
    let params: CreateParams = read(params)?;
    let scopes = match &params.scopes {
        None => Scopes::default_of_a_run().iter().cloned().collect(),
        Some(asked) => scope::read(asked).map_err(invalid)?,
    };
    let binding = params.binding.unwrap_or_else(default_binding);
    if binding == Binding::Tree && !cfg!(target_os = "linux") {
        return Err(invalid("the binding tree needs Linux; use uid"));
    }
    let new = NewSession {
        name: read_name(&params.name)?,
        realm: params.realm.map(|realm| realm.parse::<Realm>()).transpose().map_err(invalid)?,
        scopes,
        binding,
        ttl: read_ttl(params.ttl_seconds)?,
        verifier: params.verifier.into_verifier()?,
    };
    // The one who asks leads the session, by the kernel's word: a parameter could name anybody.
    let leader = match caller.peer.open_process() {
        Ok(leader) if leader.is_alive() => leader,
        Ok(_) => return Err(unavailable("the process that asks has ended")),
        Err(error) => return Err(unavailable(&format!("the process that asks cannot be held: {error}"))),
    };
    // On macOS a user's daemon cannot read when a process of root's started.
    if !leader.identity().is_marked() {
        return Err(unavailable("the process that asks cannot be told from a later one of its pid"));
    }
    let maker = Maker { uid: caller.peer.uid, leader: leader.identity(), cwd: leader.cwd() };
    let session = caller.hub.sessions.create(caller.admitted, maker, leader, new).map_err(not_made)?;
    Ok(json!({ "session": describe(&session) }))
}

fn read_name(name: &str) -> Result<Name, RpcError> {
    match name.parse::<Name>().map_err(invalid)? {
        name if [OWNER, USER].contains(&name.as_str()) => {
            Err(invalid(format!("the name {name} is the daemon's own")))
        }
        name => Ok(name),
    }
}

fn read_ttl(seconds: Option<u64>) -> Result<Option<Millis>, RpcError> {
    if seconds.is_some_and(|ttl| !(1..=TTL_MAX).contains(&ttl)) {
        return Err(invalid(format!("ttl_seconds is not between 1 and {TTL_MAX}")));
    }
    Ok(seconds.map(|seconds| seconds * 1000))
}

fn unavailable(words: &str) -> RpcError {
    RpcError::new(ErrorCode::Unavailable, words)
}

fn not_made(error: NotMade) -> RpcError {
    let code = match error {
        NotMade::Realm(_)
        | NotMade::Binding(_)
        | NotMade::Scope(_)
        | NotMade::Expiry
        | NotMade::StandsForSomebody(_)
        | NotMade::Rotated => ErrorCode::NotPermitted,
        NotMade::Full(_)
        | NotMade::FullForUid(_)
        | NotMade::FullOfLeaders(_)
        | NotMade::FullOfLeadersForUid(_)
        | NotMade::TooDeep(_)
        | NotMade::TooManyBelow(..)
        | NotMade::TooManyScopes(_)
        | NotMade::TooLong(_) => ErrorCode::LimitReached,
        NotMade::TokenTaken => ErrorCode::InvalidParams,
        NotMade::ParentEnded => ErrorCode::NotFound,
        NotMade::NoRandomness | NotMade::NotKept(_) => ErrorCode::Unavailable,
    };
    RpcError::new(code, error.to_string())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListParams {
    realm: Option<String>,
    #[serde(default)]
    all_realms: bool,
    /// Those that have ended, instead of those that live.
    #[serde(default)]
    ended: bool,
    after: Option<String>,
}

/// Whether a caller sees a session: of its own user, and its own realm or, who stands for somebody, any. The owner
/// sees all.
fn sees(caller: &Caller<'_>, session: &Session) -> bool {
    let asker = caller.session;
    asker.is_owner()
        || (session.uid == asker.uid && (session.realm == asker.realm || asker.stands_for_somebody()))
}

fn list(caller: &Caller<'_>, params: Params<'_>) -> Result<Value, RpcError> {
    let params: ListParams = read(params)?;
    let asks_for_more = params.all_realms
        || params.realm.as_ref().is_some_and(|realm| realm != caller.session.realm.as_str());
    if asks_for_more && !caller.session.stands_for_somebody() {
        let words = format!(
            "only the owner, or a user's own session, sees other realms than its own; this session's is {}",
            caller.session.realm
        );
        return Err(RpcError::new(ErrorCode::NotPermitted, words));
    }
    let realm = params.realm.map(|realm| realm.parse::<Realm>()).transpose().map_err(invalid)?;
    let realm = realm.as_ref().unwrap_or(&caller.session.realm);
    let after = params.after.map(|id| id.parse::<SessionId>()).transpose().map_err(invalid)?;
    let registry = lock(caller.hub.sessions.registry());
    let is_asked_for =
        |session: &Session| (params.all_realms || session.realm == *realm) && sees(caller, session);
    Ok(if params.ended {
        let ended = registry.ended_after(after.as_ref());
        page(ended, is_asked_for, |ended| &ended.session, |ended| describe_ended(ended))
    } else {
        page(registry.iter_after(after.as_ref()), is_asked_for, |living| living, |living| describe(living))
    })
}

/// How long a session can be in JSON: of what people and processes name each character may become six.
fn most_bytes(session: &Session) -> usize {
    const THE_REST: usize = 700;
    let named = session.name.as_str().len() + session.cwd.as_ref().map_or(0, |cwd| cwd.as_os_str().len());
    THE_REST + 6 * named + session.scopes.iter().map(|scope| scope.to_string().len() + 3).sum::<usize>()
}

/// The first of them that are asked for, and what leads to the others.
fn page<T>(
    mut all: impl Iterator<Item = T>,
    is_asked_for: impl Fn(&Session) -> bool,
    session: fn(&T) -> &Session,
    show: fn(&T) -> Value,
) -> Value {
    let (mut page, mut last, mut bytes) = (Vec::new(), None, 0);
    for found in all.by_ref().take(LIST_SCAN) {
        let session = session(&found);
        last = Some(session.id);
        if is_asked_for(session) {
            bytes += most_bytes(session);
            page.push(show(&found));
        }
        if page.len() == LIST_PAGE || bytes >= LIST_BYTES {
            break;
        }
    }
    let next = last.filter(|_| all.next().is_some());
    json!({ "sessions": page, "next": next.as_ref().map(SessionId::as_str) })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IdParam {
    id: Option<String>,
}

fn get(caller: &Caller<'_>, params: Params<'_>) -> Result<Value, RpcError> {
    let params: IdParam = read(params)?;
    let Some(id) = params.id else { return Ok(json!({ "session": describe(caller.session) })) };
    let registry = lock(caller.hub.sessions.registry());
    let shown = id.parse::<SessionId>().ok().and_then(|id| show(caller, &registry, &id));
    let unknown = || {
        let words = format!(
            "this session sees no session {:?}; `authsock session list` shows ids, which count as a whole",
            short(&id)
        );
        RpcError::new(ErrorCode::NotFound, words)
    };
    Ok(json!({ "session": shown.ok_or_else(unknown)? }))
}

fn show(caller: &Caller<'_>, registry: &Registry, id: &SessionId) -> Option<Value> {
    if let Some(session) = registry.get(id) {
        return sees(caller, session).then(|| describe(session));
    }
    registry.ended(id).filter(|ended| sees(caller, &ended.session)).map(describe_ended)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateParams {
    id: Option<String>,
    name: Option<String>,
    scopes: Option<Vec<String>>,
    ttl_seconds: Option<u64>,
}

fn update(caller: &Caller<'_>, params: Params<'_>) -> Result<Value, RpcError> {
    let params: UpdateParams = read(params)?;
    let id = target(caller, params.id.as_deref())?;
    let change = Change {
        name: params.name.as_deref().map(read_name).transpose()?,
        scopes: params.scopes.as_deref().map(scope::read).transpose().map_err(invalid)?,
        ttl: read_ttl(params.ttl_seconds)?,
    };
    let session = caller.hub.sessions.update(caller.admitted, &id, change, caller.by()).map_err(not_made)?;
    Ok(json!({ "session": describe(&session) }))
}

/// The session that a call is about: the caller's own, or one that it reaches.
fn target(caller: &Caller<'_>, id: Option<&str>) -> Result<SessionId, RpcError> {
    let Some(id) = id else { return Ok(caller.session.id) };
    let not_found = |words: String| Err(RpcError::new(ErrorCode::NotFound, words));
    let shown = short(id);
    let registry = lock(caller.hub.sessions.registry());
    let found = id.parse::<SessionId>().ok();
    if let Some(id) = found.filter(|id| registry.get(id).is_some() && registry.reaches(caller.session, id)) {
        return Ok(id);
    }
    let ended = found.and_then(|id| registry.ended(&id)).filter(|ended| sees(caller, &ended.session));
    if let Some(ended) = ended {
        return not_found(format!("session {shown:?} has ended already ({})", ended.reason.as_str()));
    }
    not_found(format!(
        "no session {shown:?} at or below this one; `authsock session list` shows ids, which count as a whole"
    ))
}

fn short(text: &str) -> String {
    text.chars().take(32).collect()
}

fn revoke(caller: &Caller<'_>, params: Params<'_>) -> Result<Value, RpcError> {
    let params: IdParam = read(params)?;
    let id = target(caller, params.id.as_deref())?;
    if id.stands_for_somebody() {
        let words = "a session that stands for the owner or for a user does not end; `authsock token rotate` replaces its token";
        return Err(invalid(words));
    }
    let (ended, problem) = caller.hub.sessions.end(&id, EndReason::Revoked, Some(caller.by()));
    match problem {
        None => Ok(json!({ "id": id.as_str(), "ended": ended })),
        Some(problem) => Err(unavailable(&format!(
            "session {id} has ended, and {} with it, but that is not on disk, and with the next daemon it would live again: {problem}. It is tried again each second",
            ended.saturating_sub(1)
        ))),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RotateParams {
    id: Option<String>,
    verifier: Option<VerifierParam>,
    grace_seconds: Option<u64>,
}

fn rotate(caller: &Caller<'_>, params: Params<'_>) -> Result<Value, RpcError> {
    let params: RotateParams = read(params)?;
    let id = target(caller, params.id.as_deref())?;
    if params.grace_seconds.is_some_and(|grace| grace > GRACE_MAX) {
        return Err(invalid(format!("grace_seconds is not between 0 and {GRACE_MAX}")));
    }
    let grace = params.grace_seconds.map_or(ROTATION_GRACE, |seconds| seconds * 1000);
    let verifier = match params.verifier {
        Some(_) if id.stands_for_somebody() => {
            return Err(invalid("the daemon makes this token itself; send no verifier"));
        }
        Some(verifier) => verifier.into_verifier()?,
        None if id.stands_for_somebody() => replace_file_of(caller, &id)?,
        None => return Err(invalid("verifier is missing: mint a token and send what verifies it")),
    };
    let token_id =
        caller.hub.sessions.rotate(caller.admitted, &id, verifier, grace, caller.by()).map_err(not_made)?;
    Ok(json!({ "id": id.as_str(), "token_id": token_id.to_string(), "grace_seconds": grace / 1000 }))
}

/// Puts a new token into the file of whom a session stands for. On disk before in memory: a crash in
/// between leaves clients with the token that the next daemon goes by.
fn replace_file_of(caller: &Caller<'_>, id: &SessionId) -> Result<Verifier, RpcError> {
    let failed =
        |error: &dyn std::fmt::Display| unavailable(&format!("the token cannot be replaced: {error}"));
    let uid = lock(caller.hub.sessions.registry()).get(id).map(|session| session.uid);
    match (&caller.hub.users, uid) {
        (Some(users), Some(uid)) if *id != SessionId::owner() => {
            users.mint(uid).map_err(|error| failed(&error))
        }
        _ if caller.hub.facts.has_credential => {
            let words = "the owner's token is the service's credential authsock.token: replace it where the unit loads it from, and restart the daemon";
            Err(RpcError::new(ErrorCode::NotPermitted, words))
        }
        _ => {
            let token = file::replace(&caller.hub.state, TOKEN_FILE).map_err(|error| failed(&error))?;
            Ok(Verifier::of(&token))
        }
    }
}

fn retire(caller: &Caller<'_>, params: Params<'_>) -> Result<Value, RpcError> {
    let Nothing {} = read(params)?;
    tracing::info!(
        authsock_event = "retire",
        authsock_peer_pid = caller.peer.pid.0,
        "asked to retire by process {}",
        caller.peer.pid
    );
    let sent = caller.hub.orders.send(Order::Retire);
    sent.map_err(|_| unavailable("the daemon is ending already"))?;
    Ok(json!({ "retiring": true }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_needs_a_scope_that_exists() {
        for method in METHODS {
            let Needs::Scope(needs) = method.needs else { continue };
            assert!(needs.parse::<Scope>().is_ok(), "{}", method.name);
        }
        let open: Vec<_> = METHODS
            .iter()
            .filter(|method| method.needs == Needs::Nothing)
            .map(|method| method.name)
            .collect();
        assert_eq!(open, ["ping", "events.unsubscribe"], "a new method is denied by default");
    }

    #[test]
    fn a_secret_in_the_wrong_place_is_not_repeated() {
        let secret = "5ec2e7".repeat(10);
        for text in [
            format!(r#"{{"name":"a","verifier":"{secret}"}}"#),
            format!(r#"{{"name":"a","ttl_seconds":"{secret}, expected "}}"#),
            format!(
                r#"{{"name":"a","verifier":{{"token_id":"0123456789abcdef","stored_key":"\u0035{secret}","server_key":"x"}}}}"#
            ),
            format!("\"{secret}\""),
        ] {
            let raw = RawValue::from_string(text).unwrap();
            let Err(error) = read::<CreateParams>(Some(&raw)) else { panic!() };
            assert!(!error.message.contains("5ec2e7") && error.message.contains("expected"), "{error}");
        }
    }

    #[test]
    fn parameters_that_are_wrong_are_named_without_their_secrets() {
        let secret = "5ec2e7".repeat(10);
        let text = format!(
            r#"{{"name":"a","verifier":{{"token_id":"0123456789abcdef","stored_key":"{secret}","server_key":"x"}}}}"#
        );
        let raw = RawValue::from_string(text).unwrap();
        let Err(error) = read::<CreateParams>(Some(&raw)) else { panic!() };
        assert!(!error.message.contains("5ec2e7") && error.message.contains("hexadecimal"), "{error}");
    }
}
