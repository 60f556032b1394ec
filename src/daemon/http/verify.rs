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

use super::{JSON, body, has_scope, is_of_kind};
use crate::config::Scheme;
use crate::gate::http::{ASKER, Bearer, Body, Door, problem, whole};
use crate::secret::token::Token;
use crate::session::Session;
use crate::session::registry::Admitted;
use crate::wire::http::{challenges, field_value};

/// The scope of those who may ask about everybody's tokens.
const VERIFY: &str = "verify";
const FORM: &str = "application/x-www-form-urlencoded";

/// Answers 200 and who it is, or 401; nothing else, and never a body.
pub(super) async fn verify(request: &Request<Incoming>, door: &Arc<Door>) -> Response<Body> {
    let fields = request.headers();
    if !may_ask(fields, door) {
        door.refuse_asker();
        return unauthorized(door, false);
    }
    let shown = fields.get(AUTHORIZATION);
    match door.judge(shown).await {
        Some(Admitted { session, .. }) => identified(&session),
        None => unauthorized(door, shown.is_some()),
    }
}

/// Whether somebody may ask about everybody's tokens: by the token that it sends for itself, or else by its user alone.
pub(super) fn may_ask(fields: &HeaderMap, door: &Door) -> bool {
    match fields.get(ASKER) {
        Some(asker) => {
            door.prove(Some(asker)).is_ok_and(|asker| has_scope(&asker.admitted().session, VERIFY))
        }
        None => door.is_verifier(),
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
    asker: Option<&Bearer>,
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
    let answer = match Token::parse(token.as_bytes()) {
        Ok(token) => worth(token, door, asker).await,
        Err(_) => None,
    };
    let answer = answer.unwrap_or_else(|| json!({ "active": false }));
    whole(StatusCode::OK, JSON, answer.to_string())
}

async fn worth(token: Token, door: &Door, asker: Option<&Bearer>) -> Option<Value> {
    // Its own token was just proven, by the very process that asks.
    if let Some(own) = asker.map(Bearer::admitted).filter(|own| own.token_id == token.id()) {
        return door.is_genuine(token).then(|| tell(&own.session, "checked"));
    }
    if asker.is_some_and(|asker| !has_scope(&asker.admitted().session, VERIFY)) {
        return None;
    }
    let judged = door.judge_token(token).await?;
    Some(tell(&judged.session, "unchecked"))
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
