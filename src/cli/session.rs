//! `authsock session list|revoke`.

use serde_json::{Value, json};

use super::Failure;
use super::args::Session;
use super::output::{Output, span, text};
use crate::client::Client;
use crate::gate::now;

pub(super) async fn session(client: &mut Client, verb: &Session, output: &Output) -> Result<(), Failure> {
    match verb {
        Session::List { realm, all_realms } => {
            let mut sessions = Vec::new();
            let mut after = Value::Null;
            loop {
                let params = json!({ "realm": realm, "all_realms": all_realms, "after": after });
                let mut page = client.call("session.list", Some(&params)).await?;
                sessions.extend(page["sessions"].as_array_mut().map(std::mem::take).unwrap_or_default());
                after = page["next"].take();
                if after.is_null() {
                    break;
                }
            }
            let answer = json!({ "sessions": sessions });
            if output.is_json() {
                return Ok(output.value(&answer)?);
            }
            let rows: Vec<Vec<String>> =
                answer["sessions"].as_array().into_iter().flatten().map(row).collect();
            Ok(output.table(&["ID", "NAME", "REALM", "LEADER", "BINDING", "AGE"], &rows)?)
        }
        Session::Revoke { id } => {
            let answer = client.call("session.revoke", Some(&json!({ "id": id }))).await?;
            if output.is_json() {
                return Ok(output.value(&answer)?);
            }
            Ok(output
                .fields(&[("revoked", text(&answer["id"])), ("ended in all", text(&answer["ended"]))])?)
        }
    }
}

fn row(session: &Value) -> Vec<String> {
    let age = now().saturating_sub(session["created_ms"].as_u64().unwrap_or(0)) / 1000;
    vec![
        text(&session["id"]),
        text(&session["name"]),
        text(&session["realm"]),
        text(&session["leader"]["pid"]),
        text(&session["binding"]),
        span(age),
    ]
}
