//! The configuration: what may be set, its defaults and bounds, and how files add up. Values only; nothing acts on them here.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use crate::kernel::dir::{self, Unusable};

/// Largest configuration file in bytes.
pub const FILE_MAX: usize = 1 << 20;

/// Whose tokens may come by the plain handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Plain {
    /// Everybody's.
    All,
    /// Everybody's but the owner's.
    Sessions,
    /// Nobody's.
    None,
}

/// Most users, and most groups, that a policy names.
pub const ACCOUNTS_MAX: usize = 1024;

/// Schemes whose credentials are no token (IANA's registry of HTTP authentication schemes): a client that is offered one of
/// them asks its user for a password, or sends something else.
const OF_OTHER_FORMS: [&str; 7] = ["Basic", "Digest", "Negotiate", "NTLM", "HOBA", "Mutual", "DPoP"];
/// Most names of schemes for HTTP.
pub const SCHEMES_MAX: usize = 8;

/// The name of a scheme in an `Authorization` header (RFC 9110, section 11.1): any case will do there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheme(String);

impl Scheme {
    /// The name as it was configured.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Scheme {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Scheme, D::Error> {
        let name = String::deserialize(deserializer)?;
        let good = (1..=64).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if !good {
            return Err(D::Error::custom("a scheme is 1 to 64 letters, digits, '-', '_' or '.'"));
        }
        if OF_OTHER_FORMS.iter().any(|other| name.eq_ignore_ascii_case(other)) {
            return Err(D::Error::custom(format!(
                "what {name} brings is no token; name Bearer, Authsock-Session, or one of your clients' own"
            )));
        }
        Ok(Scheme(name))
    }
}

/// At least one scheme, and no more than are told in an answer.
#[derive(Debug)]
struct Schemes(Vec<Scheme>);

impl<'de> Deserialize<'de> for Schemes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Schemes, D::Error> {
        let schemes = Vec::<Scheme>::deserialize(deserializer)?;
        if !(1..=SCHEMES_MAX).contains(&schemes.len()) {
            return Err(D::Error::custom(format!("between 1 and {SCHEMES_MAX} schemes are expected")));
        }
        let is_again = |place: usize| {
            schemes[..place].iter().any(|before| before.0.eq_ignore_ascii_case(&schemes[place].0))
        };
        if let Some(place) = (0..schemes.len()).find(|place| is_again(*place)) {
            let name = &schemes[place].0;
            return Err(D::Error::custom(format!("{name} is there twice; their case does not matter")));
        }
        Ok(Schemes(schemes))
    }
}

/// What may be configured of HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http {
    /// `http.enabled`. Default true; without it, each request is answered 501.
    pub enabled: bool,
    /// `http.schemes`, 1 to 8: by which names a token comes. Default `Bearer` and `Authsock-Session`.
    pub schemes: Vec<Scheme>,
    /// `http.head_bytes`, 4096 to 65536: a request's line and headers. Default 16384.
    pub head: usize,
    /// `http.request_seconds`, 1 to 600: from a request's first byte to its last. Default 10.
    pub request: Duration,
    /// `http.idle_seconds`, 1 to 3600: from one request to the next. Default 60.
    pub idle: Duration,
}

impl Default for Http {
    fn default() -> Http {
        Http {
            enabled: true,
            schemes: ["Bearer", "Authsock-Session"].map(|name| Scheme(name.to_owned())).into(),
            head: 16 << 10,
            request: Duration::from_secs(10),
            idle: Duration::from_secs(60),
        }
    }
}

/// What may be configured of events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Events {
    /// `events.payload_bytes`, 0 to 1048576: the data of one event, as JSON; with 0 events have none. Default 65536.
    pub payload: usize,
    /// `events.payload_depth`, 1 to 127: lists and objects within each other in it. Default 64.
    pub payload_depth: usize,
    /// `events.kept`, 0 to 1000000: events of a realm that are kept for `since`. Default 1024.
    pub kept: usize,
    /// `events.kept_bytes`, 0 to 1073741824: as many bytes of them at most. Default 1048576.
    pub kept_bytes: usize,
    /// `events.realms_per_uid`, 1 to 65536: realms of one user whose events are kept. Default 64.
    pub realms_per_uid: usize,
    /// `events.queued`, 1 to 1000000: events that wait for one subscriber. Default 1024.
    pub queued: usize,
    /// `events.queued_bytes`, 4096 to 1073741824: as many bytes of them at most. Default 1048576.
    pub queued_bytes: usize,
    /// `events.patterns`, 1 to 4096: what one connection subscribes to. Default 64.
    pub patterns: usize,
    /// `events.patterns_per_realm`, 64 to 1048576: what all who listen in one realm subscribe to; each event is compared with
    /// each of them. Default 8192.
    pub patterns_per_realm: usize,
    /// `events.heartbeat_seconds`, 1 to 3600: how often a stream over HTTP says that it lives. Default 15.
    pub heartbeat: Duration,
}

impl Default for Events {
    fn default() -> Events {
        Events {
            payload: 64 << 10,
            payload_depth: 64,
            kept: 1024,
            kept_bytes: 1 << 20,
            realms_per_uid: 64,
            queued: 1024,
            queued_bytes: 1 << 20,
            patterns: 64,
            patterns_per_realm: 8192,
            heartbeat: Duration::from_secs(15),
        }
    }
}

/// A user or a group, by name or by number.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Account {
    /// By number.
    Number(u32),
    /// By name, looked up when the configuration is read.
    Name(String),
}

impl std::fmt::Display for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Account::Number(number) => number.fmt(f),
            Account::Name(name) => write!(f, "{name:?}"),
        }
    }
}

/// As many accounts as a policy may name.
#[derive(Debug)]
struct Accounts(Vec<Account>);

impl<'de> Deserialize<'de> for Accounts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Accounts, D::Error> {
        let accounts = Vec::<Account>::deserialize(deserializer)?;
        if accounts.len() > ACCOUNTS_MAX {
            return Err(D::Error::custom(format!("more than {ACCOUNTS_MAX} are named")));
        }
        // -1 means "no change" to chown(2) and nobody to the kernel.
        if accounts.contains(&Account::Number(u32::MAX)) || accounts.contains(&Account::Name(String::new())) {
            return Err(D::Error::custom("an account that cannot exist is named"));
        }
        Ok(Accounts(accounts))
    }
}

/// Everything that can be configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `policy.allow_root`: whether root may connect to a user's daemon. Default false.
    pub allow_root: bool,
    /// `policy.users`, at most 1024: who may use a daemon of the whole machine. Default nobody.
    pub users: Vec<Account>,
    /// `policy.groups`, at most 1024: whose members may. Default none.
    pub groups: Vec<Account>,
    /// `policy.verifiers`, at most 1024: who may ask over HTTP what a token is worth, and nothing else, without one of
    /// their own: the user that a proxy runs as. Default nobody.
    pub verifiers: Vec<Account>,
    /// `policy.scopes`: what each user's own session may do there. Default: what `run` gives.
    pub scopes: Option<Vec<String>>,
    /// `handshake.plain`. Default all.
    pub plain: Plain,
    /// `handshake.timeout_seconds`, 1 to 60: from accept to result. Default 5.
    pub handshake_timeout: Duration,
    /// `handshake.unauthenticated`, 1 to 65536: connections in the handshake, in all. Default 1024.
    pub unauthenticated: usize,
    /// `handshake.unauthenticated_per_uid`, 1 to 65536. Default 512.
    pub unauthenticated_per_uid: usize,
    /// `limits.connections`, 1 to 1000000: authenticated connections in all. Default 4096.
    pub connections: usize,
    /// `limits.connections_per_uid`, 1 to 1000000. Default 4096.
    pub connections_per_uid: usize,
    /// `limits.sessions`, 1 to 1000000. Default 4096.
    pub sessions: usize,
    /// `limits.sessions_per_uid`, 1 to 1000000. Default 1024.
    pub sessions_per_uid: usize,
    /// `limits.session_depth`, 1 to 64: sessions within each other. Default 16.
    pub session_depth: usize,
    /// `limits.session_descendants`, 0 to 1000000: sessions below one, at any depth. Default 256.
    pub session_descendants: usize,
    /// `limits.ended_kept_seconds`, 0 to 604800: how long an ended session is remembered. Default 3600.
    pub ended_kept: Duration,
    /// `limits.request_line_bytes`, 4096 to 67108864: a line after the handshake. Default 1048576.
    pub request_line: usize,
    /// `limits.requests_in_flight`, 1 to 65536: requests of one batch. Default 1024.
    pub requests_in_flight: usize,
    /// `limits.queued_bytes`, 65536 to 1073741824: answers that wait for one client. Default 1048576.
    pub queued: usize,
    /// `limits.write_timeout_seconds`, 1 to 3600: for a client that does not read. Default 30.
    pub write_timeout: Duration,
    /// Events.
    pub events: Events,
    /// HTTP.
    pub http: Http,
    /// `lifecycle.idle_exit_seconds`, 0 to 31536000: 0 is never. Default 300.
    pub idle_exit: Option<Duration>,
    /// `lifecycle.drain_seconds`, 0 to 600: for requests under way when asked to stop. Default 5.
    pub drain: Duration,
    /// `client.allow_unbound`: go on where the daemon's kernel sees another process than this
    /// client, as behind a forwarded socket. Default false.
    pub allow_unbound: bool,
    /// `client.system`: clients use the daemon of the whole machine. Default false.
    pub system: bool,
    /// `client.confined_runtime_bytes`, 65536 to 1073741824: what a program that runs confined may put into its
    /// private runtime directory. Default 16777216.
    pub confined_runtime: u64,
    /// `client.queued_bytes`, 4096 to 1073741824: events that come while a client waits for an answer. Default 1048576.
    pub client_queued: usize,
    /// `client.timeout_seconds`, 1 to 3600: for a whole exchange. Default 30.
    pub client_timeout: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            allow_root: false,
            users: Vec::new(),
            groups: Vec::new(),
            verifiers: Vec::new(),
            scopes: None,
            plain: Plain::All,
            handshake_timeout: Duration::from_secs(5),
            unauthenticated: 1024,
            unauthenticated_per_uid: 512,
            connections: 4096,
            connections_per_uid: 4096,
            sessions: 4096,
            sessions_per_uid: 1024,
            session_depth: 16,
            session_descendants: 256,
            ended_kept: Duration::from_secs(3600),
            request_line: 1 << 20,
            requests_in_flight: 1024,
            queued: 1 << 20,
            write_timeout: Duration::from_secs(30),
            events: Events::default(),
            http: Http::default(),
            idle_exit: Some(Duration::from_secs(300)),
            drain: Duration::from_secs(5),
            allow_unbound: false,
            system: false,
            confined_runtime: 16 << 20,
            client_queued: 1 << 20,
            client_timeout: Duration::from_secs(30),
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadConfig {
    /// The file cannot be read or is not to be trusted.
    #[error("configuration {0}")]
    Unusable(#[from] Unusable),
    /// The file says something that does not exist or is out of bounds.
    #[error("configuration {path}: {problem}", path = path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        problem: String,
    },
}

/// A number with its bounds, so that an error is told with line and column.
#[derive(Debug, Clone, Copy)]
struct Bounded<const MIN: u64, const MAX: u64>(u64);

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Bounded<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let out_of_bounds = |given: &dyn std::fmt::Display| {
            D::Error::custom(format!("{given} is not between {MIN} and {MAX}"))
        };
        let number = i64::deserialize(deserializer)?;
        let number = u64::try_from(number).map_err(|_| out_of_bounds(&number))?;
        if (MIN..=MAX).contains(&number) { Ok(Bounded(number)) } else { Err(out_of_bounds(&number)) }
    }
}

impl<const MIN: u64, const MAX: u64> Bounded<MIN, MAX> {
    fn count(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    fn seconds(self) -> Duration {
        Duration::from_secs(self.0)
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    policy: PolicyTable,
    handshake: HandshakeTable,
    limits: LimitsTable,
    events: EventsTable,
    http: HttpTable,
    lifecycle: LifecycleTable,
    client: ClientTable,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PolicyTable {
    allow_root: Option<bool>,
    users: Option<Accounts>,
    groups: Option<Accounts>,
    verifiers: Option<Accounts>,
    scopes: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HandshakeTable {
    plain: Option<Plain>,
    timeout_seconds: Option<Bounded<1, 60>>,
    unauthenticated: Option<Bounded<1, 65_536>>,
    unauthenticated_per_uid: Option<Bounded<1, 65_536>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LimitsTable {
    connections: Option<Bounded<1, 1_000_000>>,
    connections_per_uid: Option<Bounded<1, 1_000_000>>,
    sessions: Option<Bounded<1, 1_000_000>>,
    sessions_per_uid: Option<Bounded<1, 1_000_000>>,
    session_depth: Option<Bounded<1, 64>>,
    session_descendants: Option<Bounded<0, 1_000_000>>,
    ended_kept_seconds: Option<Bounded<0, 604_800>>,
    request_line_bytes: Option<Bounded<4096, 67_108_864>>,
    requests_in_flight: Option<Bounded<1, 65_536>>,
    queued_bytes: Option<Bounded<65_536, 1_073_741_824>>,
    write_timeout_seconds: Option<Bounded<1, 3600>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct EventsTable {
    payload_bytes: Option<Bounded<0, 1_048_576>>,
    payload_depth: Option<Bounded<1, 127>>,
    kept: Option<Bounded<0, 1_000_000>>,
    kept_bytes: Option<Bounded<0, 1_073_741_824>>,
    realms_per_uid: Option<Bounded<1, 65_536>>,
    queued: Option<Bounded<1, 1_000_000>>,
    queued_bytes: Option<Bounded<4096, 1_073_741_824>>,
    patterns: Option<Bounded<1, 4096>>,
    patterns_per_realm: Option<Bounded<64, 1_048_576>>,
    heartbeat_seconds: Option<Bounded<1, 3600>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HttpTable {
    enabled: Option<bool>,
    schemes: Option<Schemes>,
    head_bytes: Option<Bounded<4096, 65_536>>,
    request_seconds: Option<Bounded<1, 600>>,
    idle_seconds: Option<Bounded<1, 3600>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LifecycleTable {
    idle_exit_seconds: Option<Bounded<0, 31_536_000>>,
    drain_seconds: Option<Bounded<0, 600>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ClientTable {
    allow_unbound: Option<bool>,
    system: Option<bool>,
    confined_runtime_bytes: Option<Bounded<65_536, 1_073_741_824>>,
    queued_bytes: Option<Bounded<4096, 1_073_741_824>>,
    timeout_seconds: Option<Bounded<1, 3600>>,
}

impl Config {
    /// Reads the configuration: one file, then `config.d/*.toml` beside it by name; what comes
    /// last wins. A file that was `given` must exist; without one at its usual place the defaults
    /// hold.
    ///
    /// # Errors
    /// [`BadConfig`], naming file, line and column.
    pub fn load(usual: Option<&Path>, given: Option<&Path>) -> Result<Config, BadConfig> {
        let mut config = Config::default();
        let Some(path) = given.or(usual) else { return Ok(config) };
        match dir::read_configuration(path, FILE_MAX) {
            Ok(text) => config.add(path, &text)?,
            Err(unusable) if unusable.is_missing() && given.is_none() => {}
            Err(unusable) => return Err(unusable.into()),
        }
        let fragments = path.with_file_name("config.d");
        let mut paths = match dir::list_configuration(&fragments) {
            Ok(paths) => paths,
            Err(unusable) if unusable.is_missing() => Vec::new(),
            Err(unusable) => return Err(unusable.into()),
        };
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
        paths.sort();
        for path in paths {
            let text = dir::read_configuration(&path, FILE_MAX)?;
            config.add(&path, &text)?;
        }
        Ok(config)
    }

    /// Stands for all that is configured, so that two programs of one version can tell whether they go by the same: no
    /// secret, and no protection against whoever wants two to be alike (FNV-1a, 64 bits, in hexadecimal digits).
    pub fn fingerprint(&self) -> String {
        const START: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0100_0000_01b3;
        let text = format!("{self:?}");
        let sum = text.bytes().fold(START, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(PRIME));
        format!("{sum:016x}")
    }

    /// Adds what one file says.
    fn add(&mut self, path: &Path, text: &str) -> Result<(), BadConfig> {
        let invalid = |error: toml::de::Error| {
            let problem = error.to_string().trim_end().to_owned();
            BadConfig::Invalid { path: path.to_path_buf(), problem }
        };
        let file: File = toml::from_str(text).map_err(invalid)?;
        fn set<T>(target: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *target = value;
            }
        }
        let File { policy, handshake, limits, events, http, lifecycle, client } = file;
        set(&mut self.allow_root, policy.allow_root);
        set(&mut self.users, policy.users.map(|users| users.0));
        set(&mut self.groups, policy.groups.map(|groups| groups.0));
        set(&mut self.verifiers, policy.verifiers.map(|verifiers| verifiers.0));
        set(&mut self.scopes, policy.scopes.map(Some));
        set(&mut self.plain, handshake.plain);
        set(&mut self.handshake_timeout, handshake.timeout_seconds.map(Bounded::seconds));
        set(&mut self.unauthenticated, handshake.unauthenticated.map(Bounded::count));
        set(&mut self.unauthenticated_per_uid, handshake.unauthenticated_per_uid.map(Bounded::count));
        set(&mut self.connections, limits.connections.map(Bounded::count));
        set(&mut self.connections_per_uid, limits.connections_per_uid.map(Bounded::count));
        set(&mut self.sessions, limits.sessions.map(Bounded::count));
        set(&mut self.sessions_per_uid, limits.sessions_per_uid.map(Bounded::count));
        set(&mut self.session_depth, limits.session_depth.map(Bounded::count));
        set(&mut self.session_descendants, limits.session_descendants.map(Bounded::count));
        set(&mut self.ended_kept, limits.ended_kept_seconds.map(Bounded::seconds));
        set(&mut self.write_timeout, limits.write_timeout_seconds.map(Bounded::seconds));
        set(&mut self.request_line, limits.request_line_bytes.map(Bounded::count));
        set(&mut self.requests_in_flight, limits.requests_in_flight.map(Bounded::count));
        set(&mut self.queued, limits.queued_bytes.map(Bounded::count));
        set(&mut self.events.payload, events.payload_bytes.map(Bounded::count));
        set(&mut self.events.payload_depth, events.payload_depth.map(Bounded::count));
        set(&mut self.events.kept, events.kept.map(Bounded::count));
        set(&mut self.events.kept_bytes, events.kept_bytes.map(Bounded::count));
        set(&mut self.events.realms_per_uid, events.realms_per_uid.map(Bounded::count));
        set(&mut self.events.queued, events.queued.map(Bounded::count));
        set(&mut self.events.queued_bytes, events.queued_bytes.map(Bounded::count));
        set(&mut self.events.patterns, events.patterns.map(Bounded::count));
        set(&mut self.events.patterns_per_realm, events.patterns_per_realm.map(Bounded::count));
        set(&mut self.events.heartbeat, events.heartbeat_seconds.map(Bounded::seconds));
        set(&mut self.http.enabled, http.enabled);
        set(&mut self.http.schemes, http.schemes.map(|schemes| schemes.0));
        set(&mut self.http.head, http.head_bytes.map(Bounded::count));
        set(&mut self.http.request, http.request_seconds.map(Bounded::seconds));
        set(&mut self.http.idle, http.idle_seconds.map(Bounded::seconds));
        let idle = lifecycle.idle_exit_seconds.map(Bounded::seconds);
        set(&mut self.idle_exit, idle.map(|idle| (!idle.is_zero()).then_some(idle)));
        set(&mut self.drain, lifecycle.drain_seconds.map(Bounded::seconds));
        set(&mut self.allow_unbound, client.allow_unbound);
        set(&mut self.system, client.system);
        set(&mut self.confined_runtime, client.confined_runtime_bytes.map(|bytes| bytes.0));
        set(&mut self.client_queued, client.queued_bytes.map(Bounded::count));
        set(&mut self.client_timeout, client.timeout_seconds.map(Bounded::seconds));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let mut config = Config::default();
        config.add(Path::new("/c.toml"), text).map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        assert_eq!(parse("").unwrap(), Config::default());
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let words = parse("[policy]\nallow_rot = true\n").unwrap_err();
        assert!(
            words.contains("/c.toml") && words.contains("line 2") && words.contains("allow_rot"),
            "{words}"
        );
    }

    #[test]
    fn every_bound_holds_at_its_edge() {
        for (table, key, min, max) in [
            ("handshake", "timeout_seconds", 1, 60),
            ("handshake", "unauthenticated", 1, 65_536),
            ("handshake", "unauthenticated_per_uid", 1, 65_536),
            ("limits", "connections", 1, 1_000_000),
            ("limits", "connections_per_uid", 1, 1_000_000),
            ("limits", "sessions", 1, 1_000_000),
            ("limits", "sessions_per_uid", 1, 1_000_000),
            ("limits", "session_depth", 1, 64),
            ("limits", "session_descendants", 0, 1_000_000),
            ("limits", "ended_kept_seconds", 0, 604_800),
            ("limits", "request_line_bytes", 4096, 67_108_864),
            ("limits", "requests_in_flight", 1, 65_536),
            ("limits", "queued_bytes", 65_536, 1_073_741_824),
            ("limits", "write_timeout_seconds", 1, 3600),
            ("events", "payload_bytes", 0, 1_048_576),
            ("events", "payload_depth", 1, 127),
            ("events", "kept", 0, 1_000_000),
            ("events", "kept_bytes", 0, 1_073_741_824),
            ("events", "realms_per_uid", 1, 65_536),
            ("events", "queued", 1, 1_000_000),
            ("events", "queued_bytes", 4096, 1_073_741_824),
            ("events", "patterns", 1, 4096),
            ("events", "patterns_per_realm", 64, 1_048_576),
            ("events", "heartbeat_seconds", 1, 3600),
            ("http", "head_bytes", 4096, 65_536),
            ("http", "request_seconds", 1, 600),
            ("http", "idle_seconds", 1, 3600),
            ("lifecycle", "idle_exit_seconds", 0, 31_536_000),
            ("lifecycle", "drain_seconds", 0, 600),
            ("client", "confined_runtime_bytes", 65_536, 1_073_741_824),
            ("client", "queued_bytes", 4096, 1_073_741_824),
            ("client", "timeout_seconds", 1, 3600),
        ] {
            let parse = |value: i64| parse(&format!("[{table}]\n{key} = {value}\n"));
            for good in [min, max] {
                assert!(parse(good).is_ok(), "{key} {good}");
            }
            for bad in [min - 1, max + 1, -1] {
                let words = parse(bad).unwrap_err();
                assert!(
                    words.contains("line 2") && words.contains(&format!("between {min} and {max}")),
                    "{words}"
                );
            }
        }
    }

    #[test]
    fn users_and_groups_are_names_or_numbers_and_bounded() {
        let config = parse("[policy]\nusers = [\"ada\", 1000]\ngroups = [\"dev\"]\n").unwrap();
        assert_eq!(config.users, [Account::Name("ada".into()), Account::Number(1000)]);
        assert_eq!(config.groups, [Account::Name("dev".into())]);
        let many = |count: usize| format!("[policy]\nusers = {:?}\n", vec![1; count]);
        assert!(parse(&many(ACCOUNTS_MAX)).is_ok());
        assert!(parse(&many(ACCOUNTS_MAX + 1)).unwrap_err().contains("more than 1024"));
        for bad in ["-1", "4294967295", "\"\"", "true", "1.5"] {
            assert!(parse(&format!("[policy]\ngroups = [{bad}]\n")).is_err(), "{bad}");
        }
    }

    #[test]
    fn schemes_are_names_and_bounded() {
        let parse = |schemes: &[String]| parse(&format!("[http]\nschemes = {schemes:?}\n"));
        let named = |name: &str| parse(&[name.to_owned()]);
        let config = parse(&["Bearer".into(), "ClaudeMesh-Session".into()]).unwrap();
        assert_eq!(config.http.schemes[1].as_str(), "ClaudeMesh-Session");
        assert!(named(&"s".repeat(64)).is_ok() && named(&"s".repeat(65)).is_err());
        for bad in ["", "a b", "a\"", "ü", "a,b"] {
            assert!(named(bad).is_err(), "{bad}");
        }
        assert!(parse(&[]).is_err());
        let many = |count: usize| (0..count).map(|number| format!("Scheme{number}")).collect::<Vec<_>>();
        assert!(named("basic").unwrap_err().contains("basic brings is no token"));
        let twice = parse(&["Bearer".into(), "a".into(), "bearer".into()]).unwrap_err();
        assert!(twice.contains("bearer is there twice"), "{twice}");
        assert!(parse(&many(SCHEMES_MAX)).is_ok() && parse(&many(SCHEMES_MAX + 1)).is_err());
    }

    #[test]
    fn no_key_turns_authentication_off() {
        for key in ["auth", "no_auth", "disable", "insecure", "token"] {
            for table in ["", "[policy]\n", "[handshake]\n"] {
                assert!(parse(&format!("{table}{key} = false\n")).is_err());
            }
        }
    }

    #[test]
    fn fragments_are_read_by_name_and_the_last_one_wins() {
        let temp = tempfile::tempdir().unwrap();
        let main = temp.path().join("config.toml");
        let write = |path: &Path, text: &str| {
            std::io::Write::write_all(&mut std::fs::File::create(path).unwrap(), text.as_bytes()).unwrap();
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        };
        std::fs::create_dir(temp.path().join("config.d")).unwrap();
        write(&main, "[lifecycle]\nidle_exit_seconds = 1\ndrain_seconds = 1\n");
        write(&temp.path().join("config.d/20.toml"), "[lifecycle]\nidle_exit_seconds = 3\n");
        write(&temp.path().join("config.d/10.toml"), "[lifecycle]\nidle_exit_seconds = 2\n");
        write(&temp.path().join("config.d/ignored.conf"), "nonsense");
        let config = Config::load(Some(&main), None).unwrap();
        assert_eq!(config.idle_exit, Some(Duration::from_secs(3)));
        assert_eq!(config.drain, Duration::from_secs(1));
        write(&temp.path().join("config.d/30.toml"), "[lifecycle]\nidle_exit_seconds = 0\n");
        assert_eq!(Config::load(Some(&main), None).unwrap().idle_exit, None);
        assert!(
            Config::load(None, Some(&temp.path().join("none"))).is_err(),
            "a file that was given must exist"
        );
        assert!(Config::load(Some(&temp.path().join("x/none")), None).is_ok());
        // Fragments that cannot be trusted, or not be listed, are an error and not none.
        let fragments = temp.path().join("config.d");
        let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&fragments, mode(0o777)).unwrap();
        assert!(
            Config::load(Some(&main), None).unwrap_err().to_string().contains("may be written by others")
        );
        std::fs::set_permissions(&fragments, mode(0o000)).unwrap();
        assert!(crate::kernel::dir::own_uid() == 0 || Config::load(Some(&main), None).is_err());
        std::fs::set_permissions(&fragments, mode(0o755)).unwrap();
        std::fs::set_permissions(&main, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        assert!(
            Config::load(Some(&main), None).unwrap_err().to_string().contains("may be written by others")
        );
    }
}
