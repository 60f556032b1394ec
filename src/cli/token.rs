//! `authsock token rotate`: a new token for the session that this process belongs to.

use serde_json::{Map, Value, json};

use super::args::{Common, Token as Verb};
use super::output::{Output, text};
use super::{Failure, client_options, exit};
use crate::client::Client;
use crate::client::connect::client_places;
use crate::credential::discover::{self, Source};
use crate::kernel::dir::{Dir, own_uid};
use crate::secret::file;
use crate::secret::token::Token;
use crate::secret::verifier::Verifier;
use crate::session::SessionId;

pub(super) async fn token(
    client: &mut Client,
    common: &Common,
    verb: &Verb,
    output: &Output,
) -> Result<(), Failure> {
    let Verb::Rotate { now } = verb;
    let mut params = Map::new();
    if *now {
        params.insert("grace_seconds".into(), 0.into());
    }
    let id = client.session().id.parse::<SessionId>();
    let answer = if id.is_ok_and(|id| id.stands_for_somebody()) {
        // The daemon writes the file of the owner, or of a user, itself.
        client.call("session.rotate", Some(&Value::Object(params))).await?
    } else {
        rotate_own(client, common, params).await?
    };
    if output.is_json() {
        return Ok(output.value(&answer)?);
    }
    let grace = match answer["grace_seconds"].as_u64() {
        Some(0) => "is worth nothing any more".to_owned(),
        seconds => format!("still connects for {} s", seconds.unwrap_or(0)),
    };
    Ok(output.fields(&[("new token id", text(&answer["token_id"])), ("old token", grace)])?)
}

/// A session's token is made here, and only what verifies it is sent. The new file is whole before
/// the daemon hears of it, and in place right after.
async fn rotate_own(
    client: &mut Client,
    common: &Common,
    mut params: Map<String, Value>,
) -> Result<Value, Failure> {
    const NEXT: &str = ".token-next";
    let fail = |error: &dyn std::fmt::Display| Failure::new(exit::FAILED, error);
    let found = discover::token(
        &discover::trusted_env,
        &client_places(&client_options(common)),
        common.token_file.as_deref(),
    )
    .map_err(|error| fail(&error))?;
    let path = match found.source {
        Source::Given(path) | Source::File(path) => path,
        other => {
            let words = format!(
                "the token came from {other}; only one that lies in a file of its own can be rotated"
            );
            return Err(Failure::new(exit::FAILED, words));
        }
    };
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Err(Failure::new(exit::FAILED, format!("{} cannot be replaced", path.display())));
    };
    let dir = Dir::open(parent, own_uid()).map_err(|error| fail(&error))?;
    let token = Token::generate().map_err(|error| fail(&error))?;
    file::store(&dir, NEXT, &token).map_err(|error| fail(&error))?;
    params.insert("verifier".into(), verifier_param(&token));
    let answer = client.call("session.rotate", Some(&Value::Object(params))).await;
    if answer.is_err() {
        let _ = dir.remove(NEXT);
    }
    let answer = answer?;
    dir.rename(NEXT, name).map_err(|error| fail(&error))?;
    Ok(answer)
}

/// What verifies a token, as `session.create` and `session.rotate` take it.
pub(super) fn verifier_param(token: &Token) -> Value {
    let verifier = Verifier::of(token);
    let (stored, server) = verifier.reveal();
    json!({
        "token_id": verifier.id().to_string(),
        "stored_key": *stored,
        "server_key": *server,
    })
}
