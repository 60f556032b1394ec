//! `authsock session list|show|rename|revoke|rotate`: what is asked for, and how sessions are shown to people.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::Failure;
use super::args::{Common, Session};
use super::output::{Output, ago, expires, text};
use super::token::{Rotation, rotate};
use crate::client::Client;

pub(super) async fn session(
    client: &mut Client,
    common: &Common,
    verb: &Session,
    output: &Output,
) -> Result<(), Failure> {
    match verb {
        Session::List { realm, all_realms, ended, tree } => {
            let asked = json!({ "realm": realm, "all_realms": all_realms, "ended": ended });
            let mut sessions = client.sessions(asked).await?;
            if *ended {
                sessions.sort_by_key(|session| session["ended_ms"].as_u64());
            }
            let sessions = if *tree { in_a_tree(sessions) } else { at_one_level(sessions) };
            if output.is_json() {
                let sessions: Vec<Value> = sessions.into_iter().map(|(_, session)| session).collect();
                return Ok(output.value(&json!({ "sessions": sessions }))?);
            }
            let last: &[&str] = if *ended { &["ENDED", "REASON"] } else { &["BINDING", "AGE", "EXPIRES"] };
            let row = |(branch, session): &(String, Value)| {
                let mut row = vec![
                    format!("{branch}{}", text(&session["id"])),
                    text(&session["name"]),
                    text(&session["realm"]),
                    text(&session["leader"]["pid"]),
                ];
                row.extend(if *ended { last_of_ended(session) } else { last_of_living(session) });
                row
            };
            let rows: Vec<Vec<String>> = sessions.iter().map(row).collect();
            Ok(output.table(&[&["ID", "NAME", "REALM", "LEADER"], last].concat(), &rows)?)
        }
        Session::Show { id } => {
            let answer = client.call("session.get", Some(&json!({ "id": id }))).await?;
            show(&answer["session"], output)
        }
        Session::Rename { id, name } => {
            let answer = client.call("session.update", Some(&json!({ "id": id, "name": name }))).await?;
            if output.is_json() {
                return Ok(output.value(&answer["session"])?);
            }
            let session = &answer["session"];
            Ok(output.fields(&[("session", text(&session["id"])), ("name", text(&session["name"]))])?)
        }
        Session::Revoke { id } => {
            let answer = client.call("session.revoke", Some(&json!({ "id": id }))).await?;
            if output.is_json() {
                return Ok(output.value(&answer)?);
            }
            Ok(output
                .fields(&[("revoked", text(&answer["id"])), ("ended in all", text(&answer["ended"]))])?)
        }
        Session::Rotate { id, write, now } => {
            let rotation = Rotation { id: id.as_deref(), write: write.as_deref(), now: *now };
            rotate(client, common, &rotation, output).await
        }
    }
}

fn at_one_level(sessions: Vec<Value>) -> Vec<(String, Value)> {
    sessions.into_iter().map(|session| (String::new(), session)).collect()
}

/// Each behind the one that it came from, by age, with the lines that lead to it. One whose parent is not in the list,
/// being of another realm, is at the top.
fn in_a_tree(sessions: Vec<Value>) -> Vec<(String, Value)> {
    let id = |session: &Value| text(&session["id"]);
    let known: BTreeSet<String> = sessions.iter().map(id).collect();
    let mut below: BTreeMap<Option<String>, Vec<Value>> = BTreeMap::new();
    for session in sessions {
        let parent =
            session["parent"].as_str().filter(|parent| known.contains(*parent)).map(ToOwned::to_owned);
        below.entry(parent).or_default().push(session);
    }
    let mut order = Vec::new();
    // What is still to be shown, the next one last: what leads to it, whether it is the last of its siblings, itself.
    let mut next: Vec<(Option<String>, bool, Value)> = Vec::new();
    let push =
        |next: &mut Vec<(Option<String>, bool, Value)>, children: Vec<Value>, prefix: &Option<String>| {
            let children = children.into_iter().rev().enumerate();
            next.extend(children.map(|(place, child)| (prefix.clone(), place == 0, child)));
        };
    push(&mut next, below.remove(&None).unwrap_or_default(), &None);
    while let Some((prefix, is_last, session)) = next.pop() {
        let children = below.remove(&Some(id(&session))).unwrap_or_default();
        let (branch, deeper) = match &prefix {
            None => (String::new(), String::new()),
            Some(prefix) if is_last => (format!("{prefix}└─ "), format!("{prefix}   ")),
            Some(prefix) => (format!("{prefix}├─ "), format!("{prefix}│  ")),
        };
        order.push((branch, session));
        push(&mut next, children, &Some(deeper));
    }
    order
}

fn last_of_living(session: &Value) -> Vec<String> {
    let end = &session["expires_ms"];
    let end = if end.is_null() { "-".into() } else { expires(end) };
    vec![text(&session["binding"]), ago(&session["created_ms"]), end]
}

fn last_of_ended(session: &Value) -> Vec<String> {
    vec![format!("{} ago", ago(&session["ended_ms"])), reason(session)]
}

fn reason(session: &Value) -> String {
    text(&session["reason"]).replace('_', " ")
}

fn show(session: &Value, output: &Output) -> Result<(), Failure> {
    if output.is_json() {
        return Ok(output.value(session)?);
    }
    let mut fields = vec![
        ("id", text(&session["id"])),
        ("name", text(&session["name"])),
        ("realm", text(&session["realm"])),
        ("uid", text(&session["uid"])),
        ("leader", text(&session["leader"]["pid"])),
        ("directory", text(&session["cwd"])),
        ("parent", text(&session["parent"])),
        ("scopes", text(&session["scopes"])),
        ("binding", text(&session["binding"])),
        ("began", format!("{} ago", ago(&session["created_ms"]))),
    ];
    if session["ended_ms"].is_u64() {
        fields.push(("ended", format!("{} ago", ago(&session["ended_ms"]))));
        fields.push(("reason", reason(session)));
    } else {
        fields.push(("expires", expires(&session["expires_ms"])));
        fields.push(("token id", text(&session["token_id"])));
    }
    Ok(output.fields(&fields)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_shows_each_session_below_the_one_that_it_came_from() {
        let session = |id: &str, parent: Option<&str>| json!({ "id": id, "parent": parent });
        let sessions = vec![
            session("a", Some("owner")),
            session("b", Some("a")),
            session("c", Some("a")),
            session("d", Some("b")),
            session("e", Some("owner")),
            session("f", Some("of another realm")),
            session("owner", None),
        ];
        let lines: Vec<String> = in_a_tree(sessions)
            .iter()
            .map(|(branch, session)| format!("{branch}{}", text(&session["id"])))
            .collect();
        assert_eq!(lines, ["f", "owner", "├─ a", "│  ├─ b", "│  │  └─ d", "│  └─ c", "└─ e"]);
    }
}
