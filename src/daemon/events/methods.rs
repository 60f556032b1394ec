//! The methods of events: what their parameters are, and what they answer.

use std::collections::HashSet;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::subscriber::Subscriber;
use super::{Events, From, NotPublished, NotSubscribed, Site};
use crate::daemon::control::{Caller, Params, invalid, read};
use crate::session::Realm;
use crate::wire::event::Epoch;
use crate::wire::json_rpc::{ErrorCode, RpcError};
use crate::wire::subject::Pattern;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PublishParams {
    subject: String,
    data: Option<Box<RawValue>>,
    realm: Option<String>,
}

pub(in crate::daemon) fn publish(caller: &Caller<'_>, params: Params<'_>) -> Result<Value, RpcError> {
    let params: PublishParams = read(params)?;
    let subject = params.subject.parse().map_err(|problem| invalid(format!("subject: {problem}")))?;
    let site = site(caller, params.realm.as_deref())?;
    let nothing = RawValue::NULL;
    let data = params.data.as_deref().unwrap_or(nothing);
    let published = caller.hub.events.publish(caller.session, &site, subject, data).map_err(not_published)?;
    Ok(json!({
        "seq": published.place.seq,
        "epoch": published.place.epoch,
        "reached": published.reached,
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SubscribeParams {
    subjects: Vec<String>,
    since: Option<u64>,
    #[serde(default, deserialize_with = "present")]
    epoch: Option<Option<String>>,
    last: Option<usize>,
    realm: Option<String>,
}

/// Tells null from nothing at all.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

impl SubscribeParams {
    /// From where on, and how many of those that are kept at most.
    fn from(&self) -> Result<(From, Option<usize>), RpcError> {
        let epoch = |text: &Option<String>| {
            let read = text.as_deref().map(str::parse::<Epoch>).transpose();
            read.map_err(|problem| invalid(format!("epoch: {problem}")))
        };
        let from = match (self.since, &self.epoch) {
            (None, Some(_)) => return Err(invalid("epoch belongs to since")),
            (None, None) if self.last.is_none() => From::Now,
            (None | Some(0), None) => From::Beginning,
            (Some(_), None) => {
                return Err(invalid(
                    "epoch is missing: numbers begin anew with a daemon, and an event tells both; null means the present numbering, whichever it is",
                ));
            }
            (Some(seq), Some(named)) => From::After(epoch(named)?, seq),
        };
        Ok((from, self.last))
    }
}

pub(in crate::daemon) fn subscribe(caller: &Caller<'_>, params: Params<'_>) -> Result<Value, RpcError> {
    let params: SubscribeParams = read(params)?;
    let from = params.from()?;
    let patterns = patterns(&caller.hub.events, &params.subjects)?;
    if patterns.is_empty() {
        return Err(invalid("subjects: at least one is expected"));
    }
    let site = site(caller, params.realm.as_deref())?;
    let subscriber = subscriber(caller)?;
    let subscribed = caller
        .hub
        .events
        .subscribe(subscriber, caller.session, &site, patterns, from)
        .map_err(not_subscribed)?;
    Ok(json!({
        "epoch": subscribed.newest.epoch,
        "seq": subscribed.newest.seq,
        "after": subscribed.after,
        "replayed": subscribed.replayed,
        "subjects": texts(&subscribed.patterns),
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UnsubscribeParams {
    subjects: Option<Vec<String>>,
    realm: Option<String>,
}

pub(in crate::daemon) fn unsubscribe(caller: &Caller<'_>, params: Params<'_>) -> Result<Value, RpcError> {
    let params: UnsubscribeParams = read(params)?;
    let named = params.subjects.as_deref();
    let patterns = named.map(|named| patterns(&caller.hub.events, named)).transpose()?;
    let site = site(caller, params.realm.as_deref())?;
    let left = caller.hub.events.unsubscribe(subscriber(caller)?, &site, patterns.as_deref());
    Ok(json!({ "subjects": texts(&left) }))
}

/// Where a call is about: the caller's own realm or, for who stands for somebody, another of the same user.
pub(in crate::daemon) fn site(caller: &Caller<'_>, realm: Option<&str>) -> Result<Site, RpcError> {
    let own = Site::of(caller.session);
    let Some(realm) = realm else { return Ok(own) };
    let realm: Realm = realm.parse().map_err(invalid)?;
    if realm != own.realm && !caller.session.stands_for_somebody() {
        let words = format!(
            "only the owner, or a user's own session, enters other realms than its own; this session's is {}",
            own.realm
        );
        return Err(RpcError::new(ErrorCode::NotPermitted, words));
    }
    Ok(Site { realm, ..own })
}

/// Reads patterns, each once, if they are no more than one connection may have: what is refused anyway is not looked at.
pub(in crate::daemon) fn patterns(events: &Events, texts: &[String]) -> Result<Vec<Pattern>, RpcError> {
    let most = events.patterns_max();
    let (mut known, mut patterns) = (HashSet::new(), Vec::new());
    for text in texts.iter().filter(|text| known.insert(text.as_str())) {
        if patterns.len() == most {
            return Err(not_subscribed(NotSubscribed::TooMany(most)));
        }
        let shown = || text.chars().take(64).collect::<String>();
        let read = text.parse().map_err(|problem| invalid(format!("subject {:?}: {problem}", shown())));
        patterns.push(read?);
    }
    Ok(patterns)
}

fn texts(patterns: &[Pattern]) -> Vec<&str> {
    patterns.iter().map(Pattern::as_str).collect()
}

fn subscriber<'a>(caller: &Caller<'a>) -> Result<&'a Arc<Subscriber>, RpcError> {
    caller.listening().ok_or_else(|| {
        invalid("events come on a connection that stays: over HTTP, GET /v1/events streams them")
    })
}

fn not_published(error: NotPublished) -> RpcError {
    let code = match &error {
        NotPublished::NotSaid(super::NotSaid::NoInbox(_)) => ErrorCode::NotFound,
        NotPublished::NotSaid(_) => ErrorCode::NotPermitted,
        NotPublished::Data(_) => ErrorCode::InvalidParams,
        NotPublished::Full(_) => ErrorCode::LimitReached,
    };
    RpcError::new(code, error.to_string())
}

pub(in crate::daemon) fn not_subscribed(error: NotSubscribed) -> RpcError {
    let code = match &error {
        NotSubscribed::NotHeard(_) => ErrorCode::NotPermitted,
        NotSubscribed::TooMany(_)
        | NotSubscribed::TooManyInRealm(_)
        | NotSubscribed::ReplayUnderWay
        | NotSubscribed::Full(_) => ErrorCode::LimitReached,
    };
    RpcError::new(code, error.to_string())
}
