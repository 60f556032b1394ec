//! `authsock status`: how the daemon does.

use super::Failure;
use super::output::{Output, span, text};
use crate::client::Client;

pub(super) async fn status(client: &mut Client, output: &Output) -> Result<(), Failure> {
    let answer = client.call("status", None).await?;
    if output.is_json() {
        return Ok(output.value(&answer)?);
    }
    let activation = match answer["activation"].as_str() {
        Some("on_demand") => "on demand, by a client".into(),
        Some("init") => "by the init system".into(),
        _ => text(&answer["activation"]),
    };
    let log = match answer["log"].as_str() {
        Some(path) => path.to_owned(),
        None if answer["activation"] == "on_demand" || cfg!(target_os = "macos") => {
            "none: it could not be opened".to_owned()
        }
        None if answer["mode"] == "system" => "the init system's (authsock --system logs)".to_owned(),
        None => "the init system's (authsock logs)".to_owned(),
    };
    let idle = match answer["idle_exit_seconds"].as_u64() {
        Some(0) | None => "never".into(),
        Some(seconds) => format!("after {}", span(seconds)),
    };
    let most = |name: &str| answer["limits"][name].as_u64().unwrap_or(u64::MAX);
    let of_one_user = if answer["mode"] == "system" { u64::MAX } else { most("sessions_per_uid") };
    let most_sessions = most("sessions").min(of_one_user);
    let mut fields = vec![
        ("daemon", format!("authsock {}, process {}", text(&answer["version"]), text(&answer["pid"]))),
        ("socket", text(&answer["sockets"])),
        ("log", log),
        ("started", activation),
        ("running for", span(answer["uptime_seconds"].as_u64().unwrap_or(0))),
        (
            "connections",
            format!("{} of {}", text(&answer["connections"]), text(&answer["limits"]["connections"])),
        ),
        ("sessions", format!("{} of {most_sessions}", text(&answer["sessions"]))),
        ("idle exit", idle),
    ];
    for complaint in answer["complaints"].as_array().into_iter().flatten() {
        fields.push(("complaint", text(complaint)));
    }
    Ok(output.fields(&fields)?)
}
