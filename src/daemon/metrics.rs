//! The daemon's numbers, in the text of OpenMetrics 1.0. No label holds anything that a stranger chooses: there are as many series on the last day as on the first.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use hyper::StatusCode;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::control::{Hub, METHODS};
use super::http::ROUTES;
use super::tally::{Table, Times};
use crate::gate::observer::{Observer, Refused};
use crate::gate::{lock, now};
use crate::handshake::server::Way;
use crate::session::EndReason;
use crate::wire::auth::Code;
use crate::wire::json_rpc::{ErrorCode, RpcError};

/// What the text is, for whoever reads it.
pub(super) const KIND: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The statuses that are answered over HTTP; any other is counted as such.
const STATUSES: [&str; 16] = [
    "200", "204", "400", "401", "403", "404", "405", "408", "413", "414", "415", "431", "500", "503", "505",
    "other",
];

/// How a result is called that is none of what may go wrong.
const OK: &str = "ok";
/// What stands for a method or a path that does not exist: its name is the client's.
const UNKNOWN: &str = "-";

/// All numbers.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    accepted: Counter,
    handshakes: Table<1>,
    proofs: Table<1>,
    handshake_time: Times,
    connections: Gauge,
    in_handshake: Gauge,
    sessions: Gauge,
    started: Counter,
    ended: Table<1>,
    requests: Table<2>,
    request_time: Times,
    http: Table<2>,
    published: Counter,
    delivered: Counter,
    dropped: Counter,
    subscribers: Gauge,
    start: Gauge<f64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let mut registry = Registry::with_prefix("authsock");
        let codes = Code::ALL.map(Code::as_str);
        let reasons = EndReason::ALL.map(EndReason::as_str);
        let words = ErrorCode::ALL.map(ErrorCode::word);
        let methods = METHODS.iter().map(|method| method.name).chain([UNKNOWN]);
        let routes = ROUTES.iter().map(|route| route.path).chain([UNKNOWN]);
        let metrics = Metrics {
            accepted: Counter::default(),
            handshakes: Table::new([("result", [OK].into_iter().chain(codes).collect())]),
            proofs: Table::new([("way", Way::ALL.map(Way::as_str).into())]),
            handshake_time: Times::default(),
            connections: Gauge::default(),
            in_handshake: Gauge::default(),
            sessions: Gauge::default(),
            started: Counter::default(),
            ended: Table::new([("reason", reasons.into())]),
            requests: Table::new([
                ("method", methods.collect()),
                ("result", [OK].into_iter().chain(words).collect()),
            ]),
            request_time: Times::default(),
            http: Table::new([("route", routes.collect()), ("status", STATUSES.into())]),
            published: Counter::default(),
            delivered: Counter::default(),
            dropped: Counter::default(),
            subscribers: Gauge::default(),
            start: Gauge::default(),
            registry: Registry::default(),
        };
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        registry.register("build", "The version that runs", Info::new(version));
        registry.register_with_unit(
            "start_time",
            "When this daemon began to serve, and all counters at 0, in Unix time",
            Unit::Seconds,
            metrics.start.clone(),
        );
        registry.register("connections_accepted", "Connections that were accepted", metrics.accepted.clone());
        registry.register(
            "connections",
            "Connections that are open and authenticated, or speak HTTP",
            metrics.connections.clone(),
        );
        registry.register(
            "connections_in_handshake",
            "Connections that have not proven themselves yet",
            metrics.in_handshake.clone(),
        );
        registry.register(
            "handshakes",
            "Attempts to prove oneself, by what came of them; each request over HTTP is one",
            metrics.handshakes.clone(),
        );
        registry.register_with_unit(
            "handshake_duration",
            "From accepting a connection to the result of a handshake that succeeded",
            Unit::Seconds,
            metrics.handshake_time.clone(),
        );
        registry.register(
            "sessions",
            "Sessions that live, those that stand for the owner and for users not counted",
            metrics.sessions.clone(),
        );
        registry.register("sessions_started", "Sessions that began", metrics.started.clone());
        registry.register("sessions_ended", "Sessions that ended, by why", metrics.ended.clone());
        registry.register(
            "requests",
            "Requests of JSON-RPC, by method and by what came of them",
            metrics.requests.clone(),
        );
        registry.register_with_unit(
            "request_duration",
            "How long carrying out a request took",
            Unit::Seconds,
            metrics.request_time.clone(),
        );
        registry.register("http_requests", "Requests over HTTP, by route and status", metrics.http.clone());
        registry.register(
            "events_published",
            "Events that were published, the daemon's own among them",
            metrics.published.clone(),
        );
        registry.register(
            "events_delivered",
            "Events that were put into a subscriber's queue, once for each",
            metrics.delivered.clone(),
        );
        registry.register(
            "events_dropped",
            "Events that did not fit into a subscriber's queue, once for each",
            metrics.dropped.clone(),
        );
        registry.register(
            "event_subscribers",
            "Connections that subscribe to events, once for each realm",
            metrics.subscribers.clone(),
        );
        registry.register("proofs", "Tokens that were proven and let in, by way", metrics.proofs.clone());
        metrics.start.set(Duration::from_millis(now()).as_secs_f64());
        Metrics { registry, ..metrics }
    }
}

impl Metrics {
    pub(super) fn session_started(&self) {
        self.started.inc();
    }

    pub(super) fn session_ended(&self, reason: EndReason) {
        self.ended.inc([reason.as_str()]);
    }

    /// A request of JSON-RPC was carried out; `method` is one of [`METHODS`], or not.
    pub(super) fn request(&self, method: &str, error: Option<&RpcError>, took: Duration) {
        self.requests.inc([method, error.map_or(OK, |error| ErrorCode::word_of(error.code))]);
        self.request_time.note(took);
    }

    /// Something was answered without carrying anything out; if it was a request, `method` is its method.
    pub(super) fn unmet(&self, method: &str, error: &RpcError) {
        self.requests.inc([method, ErrorCode::word_of(error.code)]);
    }

    /// A request over HTTP was answered; the route is one of [`ROUTES`], or not.
    pub(super) fn http(&self, route: &str, status: StatusCode) {
        self.http.inc([route, status.as_str()]);
    }

    /// An event was published, and so many subscribers have it or missed it.
    pub(super) fn event(&self, reached: usize, missed: usize) {
        self.published.inc();
        self.delivered.inc_by(reached as u64);
        self.dropped.inc_by(missed as u64);
    }

    /// All of them, as text.
    pub(super) fn encode(&self, hub: &Hub) -> String {
        let (connections, in_handshake) = *lock(&hub.counts);
        self.text(&Present {
            connections,
            in_handshake,
            sessions: lock(hub.sessions.registry()).len(),
            subscribers: hub.events.subscribers(),
        })
    }

    fn text(&self, present: &Present) -> String {
        let set = |gauge: &Gauge, value: usize| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        set(&self.connections, present.connections);
        set(&self.in_handshake, present.in_handshake);
        set(&self.sessions, present.sessions);
        set(&self.subscribers, present.subscribers);
        let mut text = String::new();
        // Text into memory cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// What there is of something at the moment, which others count already.
struct Present {
    connections: usize,
    in_handshake: usize,
    sessions: usize,
    subscribers: usize,
}

/// The gate's observer: counts, and lets somebody else know of each refusal, who bounds what becomes of that.
pub(super) struct AtTheGate {
    pub(super) metrics: Arc<Metrics>,
    pub(super) tell: Box<dyn Fn(&Refused<'_>) + Send + Sync>,
}

impl Observer for AtTheGate {
    fn accepted(&self) {
        self.metrics.accepted.inc();
    }

    fn through(&self, way: Way, took: Option<Duration>) {
        self.metrics.handshakes.inc([OK]);
        self.metrics.proofs.inc([way.as_str()]);
        if let Some(took) = took {
            self.metrics.handshake_time.note(took);
        }
    }

    fn refused(&self, refused: &Refused<'_>) {
        self.metrics.handshakes.inc([refused.code.as_str()]);
        (self.tell)(refused);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::atomic::{AtomicUsize, Ordering};

    const NOTHING: Present = Present { connections: 0, in_handshake: 0, sessions: 0, subscribers: 0 };

    /// Each sample by its name and labels.
    fn samples(text: &str) -> BTreeMap<&str, &str> {
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let samples: BTreeMap<_, _> = lines.iter().map(|line| line.rsplit_once(' ').unwrap()).collect();
        assert_eq!(samples.len(), lines.len(), "a sample is there twice");
        samples
    }

    fn observer(metrics: &Arc<Metrics>) -> AtTheGate {
        AtTheGate { metrics: metrics.clone(), tell: Box::new(|_| {}) }
    }

    fn refused(code: Code) -> Refused<'static> {
        Refused { code, uid: None, pid: None, session: None }
    }

    /// Everything that can be counted, with what is known and with what is not.
    fn count_everything(metrics: &Arc<Metrics>) {
        let gate = observer(metrics);
        gate.accepted();
        Way::ALL.into_iter().for_each(|way| gate.through(way, Some(Duration::from_millis(3))));
        Code::ALL.into_iter().for_each(|code| gate.refused(&refused(code)));
        metrics.session_started();
        EndReason::ALL.into_iter().for_each(|reason| metrics.session_ended(reason));
        for method in METHODS.iter().map(|method| method.name).chain(["no.such", "", "\"} 1\n"]) {
            metrics.request(method, None, Duration::from_micros(7));
            for code in ErrorCode::ALL {
                metrics.request(method, Some(&RpcError::new(code, "")), Duration::from_secs(99));
            }
            let unknown = RpcError { code: 1, message: String::new() };
            metrics.request(method, Some(&unknown), Duration::ZERO);
        }
        for route in ROUTES.iter().map(|route| route.path).chain(["/no/such", "-"]) {
            for status in 100..1000 {
                metrics.http(route, StatusCode::from_u16(status).unwrap());
            }
        }
        metrics.event(3, 2);
    }

    #[test]
    fn there_are_as_many_series_on_the_last_day_as_on_the_first() {
        let metrics = Arc::new(Metrics::default());
        let first = metrics.text(&NOTHING);
        count_everything(&metrics);
        let last = metrics.text(&NOTHING);
        let (first, last) = (samples(&first), samples(&last));
        assert_eq!(first.keys().collect::<Vec<_>>(), last.keys().collect::<Vec<_>>());
        for (name, value) in first {
            let is_set_once =
                name.starts_with("authsock_build_info{") || name == "authsock_start_time_seconds";
            assert!(value == "0" || value == "0.0" || is_set_once, "{name} {value}");
        }
        // Each of them moves, but for those that nobody has set.
        let still: Vec<_> =
            last.into_iter().filter(|(_, value)| *value == "0").map(|(name, _)| name).collect();
        assert_eq!(
            still,
            [
                "authsock_connections",
                "authsock_connections_in_handshake",
                "authsock_event_subscribers",
                "authsock_handshake_duration_seconds_bucket{le=\"0.00001\"}",
                "authsock_handshake_duration_seconds_bucket{le=\"0.000025\"}",
                "authsock_handshake_duration_seconds_bucket{le=\"0.00005\"}",
                "authsock_handshake_duration_seconds_bucket{le=\"0.0001\"}",
                "authsock_handshake_duration_seconds_bucket{le=\"0.00025\"}",
                "authsock_handshake_duration_seconds_bucket{le=\"0.0005\"}",
                "authsock_handshake_duration_seconds_bucket{le=\"0.001\"}",
                "authsock_handshake_duration_seconds_bucket{le=\"0.0025\"}",
                "authsock_sessions",
            ]
        );
    }

    #[test]
    fn what_is_counted_is_counted_where_it_belongs() {
        let metrics = Arc::new(Metrics::default());
        count_everything(&metrics);
        let text = metrics.text(&Present { connections: 5, in_handshake: 4, sessions: 3, subscribers: 2 });
        let samples = samples(&text);
        let methods = METHODS.len() as u64;
        for (name, value) in [
            ("authsock_connections", 5),
            ("authsock_connections_in_handshake", 4),
            ("authsock_sessions", 3),
            ("authsock_event_subscribers", 2),
            ("authsock_connections_accepted_total", 1),
            ("authsock_handshakes_total{result=\"ok\"}", 3),
            ("authsock_handshakes_total{result=\"denied\"}", 1),
            ("authsock_handshakes_total{result=\"unknown_service\"}", 1),
            ("authsock_proofs_total{way=\"proof\"}", 1),
            ("authsock_handshake_duration_seconds_count", 3),
            ("authsock_sessions_started_total", 1),
            ("authsock_sessions_ended_total{reason=\"parent_ended\"}", 1),
            ("authsock_requests_total{method=\"ping\",result=\"ok\"}", 1),
            ("authsock_requests_total{method=\"ping\",result=\"internal\"}", 2),
            ("authsock_requests_total{method=\"-\",result=\"ok\"}", 3),
            ("authsock_requests_total{method=\"-\",result=\"unavailable\"}", 3),
            ("authsock_request_duration_seconds_count", 12 * (methods + 3)),
            ("authsock_request_duration_seconds_bucket{le=\"10.0\"}", 2 * (methods + 3)),
            ("authsock_http_requests_total{route=\"/metrics\",status=\"200\"}", 1),
            ("authsock_http_requests_total{route=\"/metrics\",status=\"other\"}", 900 - 15),
            ("authsock_http_requests_total{route=\"-\",status=\"404\"}", 2),
            ("authsock_events_published_total", 1),
            ("authsock_events_delivered_total", 3),
            ("authsock_events_dropped_total", 2),
        ] {
            assert_eq!(samples.get(name), Some(&value.to_string().as_str()), "{name} in {text}");
        }
    }

    #[test]
    fn each_family_is_described_and_named_as_openmetrics_wants_it() {
        let metrics = Arc::new(Metrics::default());
        count_everything(&metrics);
        let text = metrics.text(&NOTHING);
        let body = text.strip_suffix("# EOF\n").unwrap();
        assert!(!body.contains("# EOF"));
        let mut families = BTreeSet::new();
        let (mut name, mut kind) = ("", "");
        let mut described = BTreeMap::new();
        for line in body.lines() {
            if let Some(rest) = line.strip_prefix("# ") {
                let (what, rest) = rest.split_once(' ').unwrap();
                let (of, words) = rest.split_once(' ').unwrap();
                match what {
                    "HELP" => {
                        assert!(families.insert(of), "{of} is there twice");
                        assert!(
                            words.len() > 10 && words.ends_with('.') && !words.contains(['\\', '"']),
                            "{line}"
                        );
                        (name, kind) = (of, "");
                    }
                    "TYPE" => kind = words,
                    "UNIT" => {
                        // Base units, which are part of the name.
                        assert!(["seconds", "bytes"].contains(&words), "{line}");
                        assert!(of.ends_with(&format!("_{words}")), "{line}");
                        described.insert(of, words);
                    }
                    _ => panic!("{line}"),
                }
                assert_eq!(of, name, "{line}");
                continue;
            }
            let sample = line.split(['{', ' ']).next().unwrap();
            let suffix = sample.strip_prefix(name).unwrap_or_else(|| panic!("{line} stands below {name}"));
            let fits = match kind {
                "counter" => suffix == "_total",
                "gauge" => suffix.is_empty(),
                "info" => suffix == "_info" && line.ends_with(" 1"),
                "histogram" => ["_bucket", "_sum", "_count"].contains(&suffix),
                _ => false,
            };
            assert!(fits, "{line} as a {kind}");
        }
        for family in families {
            let plain = |letter: char| letter.is_ascii_lowercase() || letter == '_';
            assert!(family.starts_with("authsock_") && family.chars().all(plain), "{family}");
            let ends = ["_total", "_count", "_sum", "_bucket", "_info", "_created"];
            assert!(!ends.iter().any(|end| family.ends_with(end)), "{family}");
            let is_unit = ["_seconds", "_bytes"].iter().any(|unit| family.ends_with(unit));
            assert_eq!(described.contains_key(family), is_unit, "{family}");
        }
        // A histogram's classes are sums from below, and the last one is all.
        let samples = samples(&text);
        for name in ["authsock_handshake_duration_seconds", "authsock_request_duration_seconds"] {
            let bucket = format!("{name}_bucket{{le=\"");
            let classes = body.lines().filter_map(|line| line.strip_prefix(&bucket));
            let classes: Vec<(&str, u64)> = classes
                .map(|line| line.split_once("\"} ").unwrap())
                .map(|(bound, count)| (bound, count.parse().unwrap()))
                .collect();
            assert!(classes.is_sorted_by_key(|(_, count)| *count), "{classes:?}");
            let (bound, all) = classes.last().unwrap();
            assert_eq!(
                (*bound, all.to_string().as_str()),
                ("+Inf", samples[format!("{name}_count").as_str()])
            );
        }
    }

    #[test]
    fn every_status_that_the_routes_answer_has_a_series_of_its_own() {
        let mut sources = String::new();
        for path in
            ["daemon/http/mod.rs", "daemon/http/stream.rs", "daemon/http/verify.rs", "gate/http/mod.rs"]
        {
            let path = format!("{}/src/{path}", env!("CARGO_MANIFEST_DIR"));
            sources += &std::fs::read_to_string(path).unwrap();
        }
        let names: BTreeSet<&str> = sources
            .split("StatusCode::")
            .skip(1)
            .map(|rest| {
                rest.split(|letter: char| !letter.is_ascii_uppercase() && letter != '_').next().unwrap()
            })
            .filter(|name| !name.is_empty())
            .collect();
        assert!(names.len() > 8, "{names:?}");
        let known: BTreeSet<String> = STATUSES[..STATUSES.len() - 1]
            .iter()
            .map(|status| StatusCode::from_bytes(status.as_bytes()).unwrap())
            .map(|status| status.canonical_reason().unwrap().to_uppercase().replace([' ', '-'], "_"))
            .collect();
        for name in names {
            assert!(known.contains(name), "{name} would be counted as other");
        }
    }

    #[test]
    fn every_refusal_is_counted_and_passed_on() {
        let metrics = Arc::new(Metrics::default());
        let told = Arc::new(AtomicUsize::new(0));
        let tell = {
            let told = told.clone();
            move |_: &Refused<'_>| {
                told.fetch_add(1, Ordering::Relaxed);
            }
        };
        let gate = AtTheGate { metrics: metrics.clone(), tell: Box::new(tell) };
        for _ in 0..3000 {
            gate.refused(&refused(Code::Busy));
        }
        assert_eq!(told.load(Ordering::Relaxed), 3000);
        assert!(metrics.text(&NOTHING).contains("authsock_handshakes_total{result=\"busy\"} 3000\n"));
    }
}
