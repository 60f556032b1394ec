//! `authsock whoami`: which session this process belongs to, in the daemon's words.

use super::Failure;
use super::output::{Output, expires, text};
use crate::client::Client;
use crate::handshake::client::Bound;

pub(super) async fn whoami(client: &mut Client, output: &Output) -> Result<(), Failure> {
    let answer = client.call("whoami", None).await?;
    if output.is_json() {
        return Ok(output.value(&answer)?);
    }
    let (session, peer, daemon) = (&answer["session"], &answer["peer"], &answer["daemon"]);
    let mut fields = vec![
        ("session", format!("{} ({})", text(&session["name"]), text(&session["id"]))),
        ("realm", text(&session["realm"])),
        ("user", text(&session["uid"])),
        ("process", text(&peer["pid"])),
    ];
    if let Some(leader) = session["leader"].as_object() {
        fields.push(("leader", text(&leader["pid"])));
    }
    if session["parent"].is_string() {
        fields.push(("parent", text(&session["parent"])));
    }
    if session["cwd"].is_string() {
        fields.push(("directory", text(&session["cwd"])));
    }
    fields.push(("binding", text(&session["binding"])));
    fields.push(("scopes", text(&session["scopes"])));
    fields.push(("expires", expires(&session["expires_ms"])));
    fields
        .push(("daemon", format!("authsock {}, process {}", text(&daemon["version"]), text(&daemon["pid"]))));
    if let Bound::Unbound(reason) = client.bound() {
        fields.push(("unbound", reason.clone()));
    }
    Ok(output.fields(&fields)?)
}
