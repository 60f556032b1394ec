//! The routes of HTTP: one table of what may be asked, and by whom.

#![forbid(unsafe_code)]

mod stream;
mod verify;

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::header::{ALLOW, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HeaderValue, ORIGIN, WWW_AUTHENTICATE};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::watch;
use tokio::task::yield_now;

use super::control::{self, Caller, Hub};
use super::metrics;
use super::requests::{Requests, Then};
use super::sessions::Standing;
use crate::config::Scheme;
use crate::gate::http::{ASKER, Bearer, Body, Door, HttpConnection, Service, problem, whole};
use crate::gate::lock;
use crate::handshake::server::Way;
use crate::session::Session;
use crate::session::scope::Scope;
use crate::wire::http::{challenges, has_token};
use verify::Asker;

const JSON: &str = "application/json";
/// What the routes are, for programs.
const OPENAPI: &str = include_str!("../../../docs/openapi.json");

/// Serves a connection to its end.
pub(super) async fn serve(connection: HttpConnection, hub: Arc<Hub>, stopping: watch::Receiver<bool>) {
    let mut told = stopping.clone();
    let stops = async move {
        let _ = told.wait_for(|stopping| *stopping).await;
    };
    connection.serve(Pages { hub, stopping }, stops).await;
}

/// A route.
#[derive(Debug)]
pub struct Route {
    /// Its path.
    pub path: &'static str,
    /// By which method it is asked; HEAD goes where GET does.
    pub method: &'static str,
    /// The scope that it needs; none where the page itself decides.
    pub needs: Option<&'static str>,
    page: Page,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Page {
    Whoami,
    Rpc,
    Events,
    Introspect,
    Verify,
    Metrics,
    OpenApi,
}

/// Every route there is.
pub const ROUTES: &[Route] = &[
    Route { path: "/v1/whoami", method: "GET", needs: Some("session:self"), page: Page::Whoami },
    Route { path: "/v1/rpc", method: "POST", needs: None, page: Page::Rpc },
    Route { path: "/v1/events", method: "GET", needs: None, page: Page::Events },
    Route { path: "/v1/introspect", method: "POST", needs: None, page: Page::Introspect },
    Route { path: "/v1/verify", method: "GET", needs: None, page: Page::Verify },
    Route { path: "/metrics", method: "GET", needs: Some("metrics"), page: Page::Metrics },
    Route { path: "/openapi.json", method: "GET", needs: None, page: Page::OpenApi },
];

impl Route {
    fn takes(&self, method: &Method) -> bool {
        *method == self.method || (*method == Method::HEAD && self.method == "GET")
    }

    fn allows(&self) -> &'static str {
        if self.method == "GET" { "GET, HEAD" } else { self.method }
    }
}

/// Answers the requests of one connection.
#[derive(Clone)]
struct Pages {
    hub: Arc<Hub>,
    stopping: watch::Receiver<bool>,
}

impl Service for Pages {
    async fn answer(&self, request: Request<Incoming>, door: Arc<Door>) -> Response<Body> {
        let route = ROUTES.iter().find(|route| route.path == request.uri().path());
        let is_head = request.method() == Method::HEAD;
        let has_body = !request.body().is_end_stream();
        let (mut answer, session) = self.judge(route, request, &door).await;
        if has_body && answer.status().is_client_error() {
            // It may not have been read, and is not waited for.
            answer = closing(answer);
        }
        // Of a path that does not exist the name is the client's.
        let name = route.map_or("-", |route| route.path);
        let peer = door.peer();
        self.hub.metrics.http(name, answer.status());
        tracing::debug!(
            authsock_event = "request",
            authsock_session = session.as_deref().map(|session| session.id.as_str()),
            authsock_peer_uid = peer.uid,
            authsock_peer_pid = peer.pid.0,
            authsock_method = name,
            authsock_code = answer.status().as_u16(),
            "{name} over HTTP by process {} (uid {}): {}{}",
            peer.pid,
            peer.uid,
            answer.status().as_u16(),
            if is_head { " (HEAD)" } else { "" }
        );
        answer
    }
}

/// One request that has proven itself.
struct Asked<'a> {
    pages: &'a Pages,
    door: &'a Arc<Door>,
    bearer: &'a Bearer,
    request: Request<Incoming>,
}

impl Pages {
    async fn judge(
        &self,
        route: Option<&Route>,
        request: Request<Incoming>,
        door: &Arc<Door>,
    ) -> (Response<Body>, Option<Arc<Session>>) {
        if request.uri().query().is_some_and(has_token) {
            let detail = "a token in a query would be logged all along the way: send it in the header field Authorization";
            return (closing(problem(StatusCode::BAD_REQUEST, detail)), None);
        }
        let page = route.map(|route| route.page);
        // Whoever asks about somebody's token passes on what that somebody sent.
        if page != Some(Page::Verify) && request.headers().contains_key(ORIGIN) {
            let detail = "this is not for pages in a browser, which is what sends Origin";
            return (closing(problem(StatusCode::FORBIDDEN, detail)), None);
        }
        if let Some(route) = route.filter(|route| !route.takes(request.method())) {
            return (not_allowed(route), None);
        }
        match page {
            Some(Page::Verify) => return (verify::verify(&request, door, &self.hub).await, None),
            Some(Page::Introspect) if !request.headers().contains_key(AUTHORIZATION) => {
                match Asker::of(request.headers(), door) {
                    Ok(Some(asker)) => {
                        return (verify::introspect(request, door, &self.hub, &asker).await, None);
                    }
                    Ok(None) => {}
                    Err(refused) => return (refused.answer(&door.schemes()), None),
                }
                if request.headers().contains_key(ASKER) {
                    return (closing(verify::refuse_asker(door)), None);
                }
            }
            _ => {}
        }
        let bearer = match door.prove(request.headers().get(AUTHORIZATION)) {
            Ok(bearer) => bearer,
            Err(refused) => return (refused.answer(&door.schemes()), None),
        };
        let session = bearer.admitted().session.clone();
        let Some(route) = route else {
            let detail = "there is no such path; GET /openapi.json lists what there is";
            return (problem(StatusCode::NOT_FOUND, detail), Some(session));
        };
        if let Some(needs) = route.needs
            && !has_scope(&session, needs)
        {
            return (lacks(&door.schemes(), needs), Some(session));
        }
        if route.page == Page::Introspect {
            let asker = Asker::Bearer(bearer);
            return (verify::introspect(request, door, &self.hub, &asker).await, Some(session));
        }
        let asked = Asked { pages: self, door, bearer: &bearer, request };
        (asked.answer(route.page).await, Some(session))
    }
}

impl Asked<'_> {
    async fn answer(self, page: Page) -> Response<Body> {
        match page {
            Page::Whoami => match control::whoami(&self.caller(), None) {
                Ok(whoami) => whole(StatusCode::OK, JSON, whoami.to_string()),
                Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.message),
            },
            Page::Rpc => self.rpc().await,
            Page::Events => stream::events(&self),
            Page::Metrics => {
                let hub = &self.pages.hub;
                whole(StatusCode::OK, metrics::KIND, hub.metrics.encode(hub))
            }
            Page::OpenApi => whole(StatusCode::OK, JSON, OPENAPI),
            // They are answered before: by who asks, and not by whose request it is.
            Page::Introspect | Page::Verify => {
                problem(StatusCode::INTERNAL_SERVER_ERROR, "this page is not here")
            }
        }
    }

    fn caller(&self) -> Caller<'_> {
        let admitted = self.bearer.admitted();
        Caller {
            hub: &self.pages.hub,
            peer: self.door.peer(),
            admitted,
            session: &admitted.session,
            way: Way::Http,
            is_rotated: admitted.until.is_some(),
            ears: None,
        }
    }

    async fn rpc(mut self) -> Response<Body> {
        if !is_of_kind(&self.request, JSON) {
            return problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Type: application/json is expected");
        }
        let body = match body(&mut self.request, self.door).await {
            Ok(body) => body,
            Err(answer) => return answer,
        };
        let mut requests = Requests::of_body(body);
        let mut out = Vec::new();
        while let Some(Standing { session, until }) = self.pages.hub.sessions.standing(self.bearer.admitted())
        {
            let caller = Caller { session: &session, is_rotated: until.is_some(), ..self.caller() };
            requests.is_unheard |= self.door.is_gone();
            let then = requests.take(&caller, &mut out);
            self.pages.hub.events.flush();
            // Long answers make a pause, which is for whoever writes them before it goes on.
            if then != Then::Again || requests.is_empty() {
                break;
            }
            yield_now().await;
        }
        let is_cut_off = requests.is_cut_off();
        requests.end_batch(&mut out);
        if out.is_empty() && is_cut_off {
            // The token has become worthless meanwhile: it is told so as to whoever comes with such a one.
            return match self.door.prove(self.request.headers().get(AUTHORIZATION)) {
                Err(refused) => refused.answer(&self.door.schemes()),
                Ok(_) => closing(problem(StatusCode::SERVICE_UNAVAILABLE, "the session has ended")),
            };
        }
        if out.is_empty() {
            return whole(StatusCode::NO_CONTENT, "", Bytes::new());
        }
        // A body has no need of the end of a line.
        out.pop();
        whole(StatusCode::OK, JSON, out)
    }
}

fn has_scope(session: &Session, needs: &str) -> bool {
    needs.parse::<Scope>().is_ok_and(|needed| session.scopes.permits(&needed))
}

/// Whether a request's body is of a kind, whatever else is said of it.
fn is_of_kind(request: &Request<Incoming>, kind: &str) -> bool {
    let named = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    named
        .and_then(|value| value.split(';').next())
        .is_some_and(|value| value.trim().eq_ignore_ascii_case(kind))
}

/// A request's body; it is known to be no longer than it may be. In one piece: each chunk by itself would hold the buffer
/// that it was read into.
async fn body(request: &mut Request<Incoming>, door: &Door) -> Result<Bytes, Response<Body>> {
    let mut whole = Vec::new();
    while let Some(frame) = request.body_mut().frame().await {
        match frame {
            Ok(frame) => whole.extend_from_slice(frame.data_ref().map_or(&[], |data| &data[..])),
            Err(_) => {
                return Err(closing(match door.violation() {
                    Some(violation) => problem(
                        StatusCode::from_u16(violation.status()).unwrap_or(StatusCode::BAD_REQUEST),
                        &violation.to_string(),
                    ),
                    None => problem(StatusCode::BAD_REQUEST, "the body ends before it is whole"),
                }));
            }
        }
    }
    Ok(whole.into())
}

fn closing(mut answer: Response<Body>) -> Response<Body> {
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

fn not_allowed(route: &Route) -> Response<Body> {
    let mut answer =
        problem(StatusCode::METHOD_NOT_ALLOWED, &format!("{} is asked by {}", route.path, route.allows()));
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(route.allows()));
    closing(answer)
}

/// That a session lacks a scope (RFC 6750, section 3.1).
fn lacks(schemes: &[Scheme], needs: &str) -> Response<Body> {
    let mut answer = problem(
        StatusCode::FORBIDDEN,
        &format!(
            "this needs the scope {needs}, which this session lacks; it has what `run --allow` named, or the default ones"
        ),
    );
    let value = challenges(schemes.iter().map(Scheme::as_str), Some("insufficient_scope"), Some(needs));
    answer.headers_mut().extend(HeaderValue::try_from(value).ok().map(|value| (WWW_AUTHENTICATE, value)));
    answer
}

/// What the daemon goes by now.
fn config(hub: &Hub) -> Arc<crate::config::Config> {
    lock(&hub.config).clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::collections::BTreeSet;

    #[test]
    fn the_document_has_every_route_and_no_other() {
        let document: Value = serde_json::from_str(OPENAPI).unwrap();
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        let told: BTreeSet<(String, String)> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, methods)| {
                methods.as_object().unwrap().keys().map(|method| (path.clone(), method.to_uppercase()))
            })
            .collect();
        let real: BTreeSet<(String, String)> =
            ROUTES.iter().map(|route| (route.path.to_owned(), route.method.to_owned())).collect();
        assert_eq!(told, real);
        assert_eq!(ROUTES.len(), real.len(), "each once");
    }

    #[test]
    fn every_route_needs_a_scope_that_exists_or_decides_itself() {
        for needs in ROUTES.iter().filter_map(|route| route.needs) {
            assert!(needs.parse::<Scope>().is_ok(), "{needs}");
        }
        let open: Vec<_> =
            ROUTES.iter().filter(|route| route.needs.is_none()).map(|route| route.path).collect();
        assert_eq!(
            open,
            ["/v1/rpc", "/v1/events", "/v1/introspect", "/v1/verify", "/openapi.json"],
            "a new route is denied by default"
        );
    }
}
