//! The daemon's numbers, in the text of OpenMetrics 1.0. No label holds anything that a stranger chooses: there are as many series on the last day as on the first.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::control::{Hub, METHODS};
use crate::gate::lock;
use crate::gate::observer::{Observer, Refused};
use crate::handshake::server::Way;
use crate::session::EndReason;
use crate::wire::auth::Code;
use crate::wire::json_rpc::{ErrorCode, RpcError};

/// What the text is, for whoever reads it.
pub(super) const KIND: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels<const N: usize> = [(&'static str, &'static str); N];

/// The upper bounds of the classes that times are counted in, in seconds.
const CLASSES: [f64; 18] = [
    1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0,
];

/// All numbers.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    accepted: Counter,
    handshakes: Family<Labels<1>, Counter>,
    proofs: Family<Labels<1>, Counter>,
    handshake_time: Histogram,
    connections: Gauge,
    in_handshake: Gauge,
    sessions: Gauge,
    started: Counter,
    ended: Family<Labels<1>, Counter>,
    requests: Family<Labels<2>, Counter>,
    request_time: Histogram,
    http: Family<Labels<2>, Counter>,
    published: Counter,
    delivered: Counter,
    dropped: Counter,
    subscribers: Gauge,
    uptime: Gauge,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let mut registry = Registry::with_prefix("authsock");
        let metrics = Metrics {
            accepted: Counter::default(),
            handshakes: Family::default(),
            proofs: Family::default(),
            handshake_time: Histogram::new(CLASSES),
            connections: Gauge::default(),
            in_handshake: Gauge::default(),
            sessions: Gauge::default(),
            started: Counter::default(),
            ended: Family::default(),
            requests: Family::default(),
            request_time: Histogram::new(CLASSES),
            http: Family::default(),
            published: Counter::default(),
            delivered: Counter::default(),
            dropped: Counter::default(),
            subscribers: Gauge::default(),
            uptime: Gauge::default(),
            registry: Registry::default(),
        };
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        registry.register("build", "The version that runs", Info::new(version));
        registry.register_with_unit(
            "uptime",
            "How long this daemon runs",
            Unit::Seconds,
            metrics.uptime.clone(),
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
        Metrics { registry, ..metrics }
    }
}

impl Metrics {
    pub(super) fn session_started(&self) {
        self.started.inc();
    }

    pub(super) fn session_ended(&self, reason: EndReason) {
        self.ended.get_or_create(&[("reason", reason.as_str())]).inc();
    }

    /// A request of JSON-RPC was carried out; `method` is one of [`METHODS`], or not.
    pub(super) fn request(&self, method: &str, error: Option<&RpcError>, took: Duration) {
        let method = METHODS.iter().find(|known| known.name == method).map_or("-", |known| known.name);
        let result = error.map_or("ok", |error| ErrorCode::word_of(error.code));
        self.requests.get_or_create(&[("method", method), ("result", result)]).inc();
        self.request_time.observe(took.as_secs_f64());
    }

    /// A request over HTTP was answered; the route is one of the table, or `-`.
    pub(super) fn http(&self, route: &'static str, status: u16) {
        let status = match status {
            200 => "200",
            204 => "204",
            400 => "400",
            401 => "401",
            403 => "403",
            404 => "404",
            405 => "405",
            408 => "408",
            413 => "413",
            415 => "415",
            503 => "503",
            _ => "other",
        };
        self.http.get_or_create(&[("route", route), ("status", status)]).inc();
    }

    /// An event was published, and so many subscribers have it or missed it.
    pub(super) fn event(&self, reached: usize, missed: usize) {
        self.published.inc();
        self.delivered.inc_by(reached as u64);
        self.dropped.inc_by(missed as u64);
    }

    /// All of them, as text.
    pub(super) fn encode(&self, hub: &Hub) -> String {
        let set = |gauge: &Gauge, value: usize| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        let (connections, in_handshake) = *lock(&hub.counts);
        set(&self.connections, connections);
        set(&self.in_handshake, in_handshake);
        set(&self.sessions, lock(hub.sessions.registry()).len());
        set(&self.subscribers, hub.events.subscribers());
        self.uptime.set(i64::try_from(hub.facts.started.elapsed().as_secs()).unwrap_or(i64::MAX));
        let mut text = String::new();
        // Text into memory cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
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
        self.metrics.handshakes.get_or_create(&[("result", "ok")]).inc();
        let way = match way {
            Way::Plain => "plain",
            Way::Proof => "proof",
            Way::Http => "http",
        };
        self.metrics.proofs.get_or_create(&[("way", way)]).inc();
        if let Some(took) = took {
            self.metrics.handshake_time.observe(took.as_secs_f64());
        }
    }

    fn refused(&self, refused: &Refused<'_>) {
        self.metrics.handshakes.get_or_create(&[("result", Code::as_str(refused.code))]).inc();
        (self.tell)(refused);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

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
            gate.refused(&Refused { code: Code::Busy, uid: None, pid: None, session: None });
        }
        assert_eq!(told.load(Ordering::Relaxed), 3000);
        let mut text = String::new();
        encode(&mut text, &metrics.registry).unwrap();
        assert!(text.contains("authsock_handshakes_total{result=\"busy\"} 3000\n"), "{text}");
    }
}
