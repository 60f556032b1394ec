//! `authsock token rotate` and `authsock session rotate`: a new token for a session, and the file that it goes to.

use std::path::{Path, PathBuf};

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
        rotate_in(client, &file, params).await?
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
    path: &Path,
    mut params: Map<String, Value>,
) -> Result<Value, Failure> {
    const NEXT: &str = ".token-next";
    let fail = |error: &dyn std::fmt::Display| Failure::new(exit::FAILED, error);
    let path = std::path::absolute(path)?;
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
