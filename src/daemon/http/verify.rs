//! What a token is worth that somebody else showed: for proxies that ask before they pass a request on, and for RFC 7662.
//!
//! Whoever asks is known, by the kernel's word or by a token of its own; the token that is asked about belongs to somebody
//! whose process is not there to be looked at, and every answer says so.

use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Request, Response, StatusCode};
use serde_json::{Value, json};

use super::{JSON, body, closing, has_scope, is_of_kind};
use crate::config::Scheme;
use crate::daemon::control::Hub;
use crate::daemon::sessions::Standing;
use crate::gate::http::{ASKER, Bearer, Body, Door, NotProven, problem, whole};
use crate::secret::token::{Token, TokenId};
use crate::session::Session;
use crate::session::registry::Admitted;
use crate::wire::http::{challenges, field_value};

/// The scope of those who may ask about everybody's tokens.
const VERIFY: &str = "verify";
const FORM: &str = "application/x-www-form-urlencoded";

/// Who asks, as it has shown.
pub(super) enum Asker {
    /// By its user, whom the configuration names.
    User,
    /// By a token.
    Bearer(Bearer),
}

impl Asker {
    /// Whoever may ask about everybody's tokens: by the token that it sends for itself, or else by its user alone. An error
    /// is that it might, and there is no place at present.
    pub(super) fn of(fields: &HeaderMap, door: &Door) -> Result<Option<Asker>, NotProven> {
        let Some(shown) = fields.get(ASKER) else {
            return Ok(door.admit_verifier()?.then_some(Asker::User));
        };
        match door.prove(Some(shown)) {
            Ok(asker) => {
                let may_ask = has_scope(&asker.admitted().session, VERIFY);
                Ok(may_ask.then_some(Asker::Bearer(asker)))
            }
            Err(refused) if refused.status() == StatusCode::SERVICE_UNAVAILABLE => Err(refused),
            Err(_) => Ok(None),
        }
    }

    /// What it may hear of now; nothing once its session, or its token, has ended: what it waited for may have taken its time.
    fn hears(&self, door: &Door, hub: &Hub) -> Option<Hears> {
        match self {
            Asker::User => door.is_verifier().then_some(Hears { own: None, all: true }),
            Asker::Bearer(bearer) => {
                let Standing { session, .. } = hub.sessions.standing(bearer.admitted())?;
                let all = has_scope(&session, VERIFY);
                Some(Hears { own: Some((bearer.admitted().token_id, session)), all })
            }
        }
    }
}

/// What somebody who asks may hear of.
struct Hears {
    /// The token that it asks with, and whose that is.
    own: Option<(TokenId, Arc<Session>)>,
    /// Whether of everybody's.
    all: bool,
}

/// Answers 200 and who it is, or 401, without a body; 503 where there is no place for whoever asks.
pub(super) async fn verify(request: &Request<Incoming>, door: &Arc<Door>, hub: &Hub) -> Response<Body> {
    let fields = request.headers();
    let asker = match Asker::of(fields, door) {
        Ok(Some(asker)) => asker,
        Ok(None) => {
            door.refuse_asker();
            return closing(unauthorized(door, false));
        }
        Err(refused) => return refused.answer(&door.schemes()),
    };
    let shown = fields.get(AUTHORIZATION);
    let judged = door.judge(shown).await;
    match judged.filter(|_| asker.hears(door, hub).is_some_and(|hears| hears.all)) {
        Some(Admitted { session, .. }) => identified(&session),
        None => unauthorized(door, shown.is_some()),
    }
}

/// Tells whoever may not ask what would let it.
pub(super) fn refuse_asker(door: &Door) -> Response<Body> {
    door.refuse_asker();
    let detail = "Authsock-Asker takes a token that has the scope verify; without that field ask as a user in policy.verifiers, or with a token of your own in Authorization";
    challenged(problem(StatusCode::UNAUTHORIZED, detail), door, false)
}

fn unauthorized(door: &Door, is_shown: bool) -> Response<Body> {
    challenged(whole(StatusCode::UNAUTHORIZED, "", Bytes::new()), door, is_shown)
}

fn challenged(mut answer: Response<Body>, door: &Door, is_shown: bool) -> Response<Body> {
    let schemes = door.schemes();
    let error = is_shown.then_some("invalid_token");
    let value = challenges(schemes.iter().map(Scheme::as_str), error, None);
    answer.headers_mut().extend(HeaderValue::try_from(value).ok().map(|value| (WWW_AUTHENTICATE, value)));
    answer
}

/// All of the fields, always, and all of them ours: whoever passes them on overwrites what its own client sent.
fn identified(session: &Session) -> Response<Body> {
    let mut answer = whole(StatusCode::OK, "", Bytes::new());
    let scopes: Vec<String> =
        session.scopes.iter().map(|scope| field_value(&scope.to_string()).into_owned()).collect();
    for (name, value) in [
        ("authsock-session-id", session.id.to_string()),
        ("authsock-session-name", field_value(session.name.as_str()).into_owned()),
        ("authsock-realm", session.realm.to_string()),
        ("authsock-uid", session.uid.to_string()),
        ("authsock-binding", session.binding.to_string()),
        ("authsock-scopes", scopes.join(" ")),
        ("authsock-peer", "unchecked".to_owned()),
    ] {
        let value = HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static(""));
        answer.headers_mut().insert(HeaderName::from_static(name), value);
    }
    answer
}

/// Tells what a token is worth (RFC 7662). Whoever lacks the scope hears only of its own.
pub(super) async fn introspect(
    mut request: Request<Incoming>,
    door: &Arc<Door>,
    hub: &Hub,
    asker: &Asker,
) -> Response<Body> {
    if !is_of_kind(&request, FORM) {
        let detail = "Content-Type: application/x-www-form-urlencoded is expected (RFC 7662, section 2.1)";
        return problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail);
    }
    let body = match body(&mut request, door).await {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    let mut tokens =
        form_urlencoded::parse(&body).filter(|(name, _)| name == "token").map(|(_, value)| value);
    let (Some(token), None) = (tokens.next(), tokens.next()) else {
        return problem(StatusCode::BAD_REQUEST, "one parameter token is expected (RFC 7662, section 2.1)");
    };
    let judged = match Token::parse(token.as_bytes()) {
        Ok(token) => worth(token, door, hub, asker).await,
        Err(_) => None,
    };
    // The body, and the lists of groups, may have taken their time.
    let Some(hears) = asker.hears(door, hub) else {
        let detail = "the session of whoever asks has ended, or its token was rotated";
        return closing(challenged(problem(StatusCode::UNAUTHORIZED, detail), door, true));
    };
    let answer = match (judged, hears) {
        (Some(Worth::Own), Hears { own: Some((_, session)), .. }) => tell(&session, "checked"),
        (Some(Worth::Others(session)), Hears { all: true, .. }) => tell(&session, "unchecked"),
        _ => json!({ "active": false }),
    };
    whole(StatusCode::OK, JSON, answer.to_string())
}

/// Whose a token is that is worth something.
enum Worth {
    /// The very process's that asks, which has just proven it.
    Own,
    /// That of somebody else.
    Others(Arc<Session>),
}

async fn worth(token: Token, door: &Door, hub: &Hub, asker: &Asker) -> Option<Worth> {
    let hears = asker.hears(door, hub)?;
    if hears.own.is_some_and(|(own, _)| own == token.id()) {
        return door.is_genuine(token).then_some(Worth::Own);
    }
    if !hears.all {
        return None;
    }
    Some(Worth::Others(door.judge_token(token).await?.session))
}

fn tell(session: &Session, peer: &str) -> Value {
    let scopes: Vec<String> = session.scopes.iter().map(ToString::to_string).collect();
    let mut told = json!({
        "active": true,
        "token_type": "Bearer",
        "sub": session.id.as_str(),
        "scope": scopes.join(" "),
        "iat": session.created / 1000,
        "authsock_name": session.name.as_str(),
        "authsock_realm": session.realm.as_str(),
        "authsock_uid": session.uid,
        "authsock_binding": session.binding,
        "authsock_peer": peer,
    });
    if let Some(expires) = session.expires {
        told["exp"] = (expires / 1000).into();
    }
    told
}
