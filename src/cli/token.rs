//! `authsock token rotate` and `authsock session rotate`: a new token for a session, and the file that it goes to.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::args::{Common, Token as Verb};
use super::output::{Output, text};
use super::{Failure, client_options, exit};
use crate::client::connect::{ConnectError, Options, client_places};
use crate::client::{CallError, Client};
use crate::credential::discover::{self, Source};
use crate::credential::successor::{CannotFollow, Successor};
use crate::secret::token::Token;
use crate::secret::verifier::Verifier;
use crate::session::SessionId;

/// Whose token is replaced, and where the new one goes.
#[derive(Debug, Default)]
pub(super) struct Rotation<'a> {
    /// A session below this one; by default this one.
    pub(super) id: Option<&'a str>,
    /// The file; by default the one that this process's own token came from.
    pub(super) write: Option<&'a Path>,
    /// Whether the old one is worth nothing at once.
    pub(super) now: bool,
}

pub(super) async fn token(
    client: &mut Client,
    common: &Common,
    verb: &Verb,
    output: &Output,
) -> Result<(), Failure> {
    let Verb::Rotate { now } = verb;
    rotate(client, common, &Rotation { now: *now, ..Rotation::default() }, output).await
}

pub(super) async fn rotate(
    client: &mut Client,
    common: &Common,
    rotation: &Rotation<'_>,
    output: &Output,
) -> Result<(), Failure> {
    let mut params = Map::new();
    if rotation.now {
        params.insert("grace_seconds".into(), 0.into());
    }
    if let Some(id) = rotation.id {
        params.insert("id".into(), id.into());
    }
    let id = rotation.id.unwrap_or(&client.session().id).parse::<SessionId>();
    let answer = if id.is_ok_and(|id| id.stands_for_somebody()) {
        if let Some(file) = rotation.write {
            let words = format!(
                "{} is not written: the daemon itself writes the file of who stands for the owner or a user",
                file.display()
            );
            return Err(Failure::new(exit::USAGE, words));
        }
        client.call("session.rotate", Some(&Value::Object(params))).await?
    } else {
        let file = match rotation.write {
            Some(file) => file.to_path_buf(),
            None if rotation.id.is_some_and(|id| id != client.session().id) => {
                let words = "--write FILE is missing: where another session's token lies is not known here";
                return Err(Failure::new(exit::USAGE, words));
            }
            None => own_file(common)?,
        };
        rotate_in(client, common, &file, params).await?
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

/// The file that this process's own token came from.
fn own_file(common: &Common) -> Result<PathBuf, Failure> {
    let places = client_places(&client_options(common));
    let found = discover::token(&discover::trusted_env, &places, common.token_file.as_deref());
    match found.map_err(|error| Failure::new(exit::FAILED, error))?.source {
        Source::Given(path) | Source::File(path) => Ok(path),
        other => {
            let words = format!(
                "the token came from {other}; only one that lies in a file of its own can be rotated"
            );
            Err(Failure::new(exit::FAILED, words))
        }
    }
}

/// A session's token is made here, and only what verifies it is sent. The new file is whole before
/// the daemon hears of it, and in place right after.
async fn rotate_in(
    client: &mut Client,
    common: &Common,
    path: &Path,
    mut params: Map<String, Value>,
) -> Result<Value, Failure> {
    let path = std::path::absolute(path)?;
    let successor = Successor::of(&path)?;
    let mut completed = match successor.is_left() {
        true => complete(common, &successor).await?,
        false => None,
    };
    // What this process connected with is the token before, which makes nothing any more.
    let client = match &mut completed {
        Some(as_now) if as_now.session().id == client.session().id => as_now,
        _ => client,
    };
    let token = Token::generate().map_err(|error| Failure::new(exit::FAILED, error))?;
    successor.write(&token)?;
    params.insert("verifier".into(), verifier_param(&token));
    match client.call("session.rotate", Some(&Value::Object(params))).await {
        Ok(answer) => {
            successor.put_in_place()?;
            Ok(answer)
        }
        Err(error @ CallError::Refused(_)) => {
            successor.discard();
            Err(error.into())
        }
        Err(error) => {
            let failure = Failure::from(error);
            let words = format!(
                "{}; whether there is a new token is not known: both are kept, and whoever uses it next finds out",
                failure.message
            );
            Err(Failure { message: words, ..failure })
        }
    }
}

/// Brings a rotation that was cut off to its end: only the daemon knows whether it had heard of the token. Returns the
/// connection that came by it, if one did.
async fn complete(common: &Common, successor: &Successor) -> Result<Option<Client>, Failure> {
    let options = Options { token_file: Some(successor.path()), ..client_options(common) };
    let connected = Client::connect(&options).await;
    match &connected {
        Ok(_) => {}
        // Said only to who has proven to hold the token of a living session.
        Err(error) if error.refusal_code() == Some("binding") => {}
        Err(error) if error.is_of_the_token() => return Ok(None),
        // What was left holds no token.
        Err(ConnectError::Token(_)) => return Ok(None),
        Err(_) => return Ok(Some(connected?)),
    }
    successor.put_in_place()?;
    Ok(connected.ok())
}

impl From<CannotFollow> for Failure {
    fn from(error: CannotFollow) -> Failure {
        Failure::new(exit::FAILED, error)
    }
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
