//! The daemon's numbers: that each is told as the manual says, moves with what it counts, and tells of nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use serde_json::json;

use crate::ground::{
    Daemon, Ground, Line, PATIENCE, connected, has, minted, owner, put, served_with, skip_unless, text_of,
};

/// What a session reads that may. The owner's token would be refused: this process led a session.
fn metrics(ground: &Ground, token: &str) -> String {
    let mut stream = UnixStream::connect(ground.init_socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!(
        "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(
        head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"),
        "{head}"
    );
    body.to_owned()
}

/// Each sample by its name and labels.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

#[test]
fn the_manual_has_every_number_and_every_number_moves_with_what_it_counts() {
    let (ground, _daemon) = served_with("[events]\nqueued = 1\n");
    let owner = ground.token_after_first_contact();
    let mut line = connected(&ground, &owner);
    let mut refused = Line::connect(&ground.init_socket());
    assert_eq!(refused.plain(&"0".repeat(64))["success"], false);
    let (reader, verifier) = minted();
    let wish = json!({ "name": "reader", "binding": "uid", "verifier": verifier, "scopes": ["metrics"] });
    assert!(line.call("session.create", &wish)["result"].is_object());
    let (_, verifier) = minted();
    let secret_name = "a-name-that-nobody-shall-read";
    let made =
        line.call("session.create", &json!({ "name": secret_name, "binding": "uid", "verifier": verifier }));
    let id = made["result"]["session"]["id"].as_str().unwrap().to_owned();
    assert_eq!(line.call("session.revoke", &json!({ "id": id }))["result"]["ended"], 1);
    assert_eq!(line.call("no.such.method", &json!({}))["error"]["code"], -32601);
    line.call("events.subscribe", &json!({ "subjects": ["n"] }));
    // Two in one turn, of which one fits.
    let publish =
        json!({ "jsonrpc": "2.0", "id": 1, "method": "events.publish", "params": { "subject": "n" } });
    line.send(&format!("{publish}\n{publish}\n"));
    let lines: Vec<_> = (0..4).map(|_| line.receive().unwrap()).collect();
    assert_eq!(lines.iter().filter(|line| line["method"] == "event").count(), 1, "{lines:?}");
    let first = metrics(&ground, &reader.reveal());
    let text = metrics(&ground, &reader.reveal());
    assert!(text.ends_with("# EOF\n"));
    let samples = samples(&text);
    for (name, least) in [
        ("authsock_connections_accepted_total", 5.0),
        ("authsock_handshakes_total{result=\"ok\"}", 3.0),
        ("authsock_handshakes_total{result=\"denied\"}", 1.0),
        ("authsock_proofs_total{way=\"plain\"}", 1.0),
        ("authsock_proofs_total{way=\"proof\"}", 1.0),
        ("authsock_proofs_total{way=\"http\"}", 2.0),
        ("authsock_connections", 2.0),
        ("authsock_handshake_duration_seconds_count", 2.0),
        ("authsock_sessions_started_total", 1.0),
        ("authsock_sessions_ended_total{reason=\"revoked\"}", 1.0),
        ("authsock_requests_total{method=\"session.create\",result=\"ok\"}", 1.0),
        ("authsock_requests_total{method=\"-\",result=\"method_not_found\"}", 1.0),
        ("authsock_request_duration_seconds_count", 5.0),
        ("authsock_http_requests_total{route=\"/metrics\",status=\"200\"}", 1.0),
        ("authsock_events_published_total", 4.0),
        ("authsock_events_delivered_total", 1.0),
        ("authsock_events_dropped_total", 1.0),
        ("authsock_event_subscribers", 1.0),
        ("authsock_sessions", 1.0),
    ] {
        let value = samples.get(name).unwrap_or_else(|| panic!("{name} is missing in {text}"));
        assert!(*value >= least, "{name} is {value}");
    }
    assert_eq!(samples["authsock_events_dropped_total"], 1.0);
    assert_eq!(samples["authsock_sessions"], 1.0);
    for secret in [secret_name, &id, &owner] {
        assert!(!text.contains(secret) && !first.contains(secret));
    }
    // The table of the manual, and what there is.
    let manual = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
    let row = |line: &str| -> Option<(String, String)> {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        Some((cells.next()?.trim_end_matches('`').to_owned(), cells.next()?.to_owned()))
    };
    let told: BTreeSet<(String, String)> = manual.lines().filter_map(row).collect();
    let kind = |line: &str| -> Option<(String, String)> {
        let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        Some((name.to_owned(), kind.to_owned()))
    };
    let real: BTreeSet<(String, String)> = text.lines().filter_map(kind).collect();
    assert_eq!(told, real);
}

#[test]
fn the_numbers_need_their_scope() {
    let (ground, _daemon) = served_with("");
    let mut line = owner(&ground);
    for (scopes, status) in [(json!(["metrics"]), "200"), (json!(["session:create"]), "403")] {
        let (token, verifier) = minted();
        let wish = json!({ "name": "n", "binding": "uid", "verifier": verifier, "scopes": scopes });
        assert!(line.call("session.create", &wish)["result"].is_object());
        let mut stream = UnixStream::connect(ground.init_socket()).unwrap();
        let request = format!(
            "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\r\n",
            *token.reveal()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(
            status == "200" || answer.contains("error=\"insufficient_scope\", scope=\"metrics\""),
            "{answer}"
        );
    }
}

#[test]
fn what_is_no_request_is_counted_by_what_was_wrong_with_it_and_without_a_name() {
    let (ground, _daemon) = served_with("[limits]\nrequest_line_bytes = 65536\nqueued_bytes = 65536\n");
    let owner = ground.token_after_first_contact();
    let mut line = connected(&ground, &owner);
    let ask = json!({ "jsonrpc": "2.0", "id": 1, "method": "status" });
    // Their answers are more than may wait, each of them less.
    let batch = serde_json::Value::Array(vec![ask; 200]).to_string();
    for sent in ["not json\n", "{\"a\":1}\n", "[1,2]\n", &format!("{batch}\n")] {
        line.send(sent);
        assert!(line.receive().unwrap()[0].is_object() || !sent.starts_with('['));
    }
    line.send(&format!("{}\n", "x".repeat(65536)));
    assert_eq!(line.receive().unwrap()["error"]["code"], -32004);
    let samples = samples(&metrics(&ground, &owner));
    for (method, result, count) in
        [("-", "parse_error", 1.0), ("-", "invalid_request", 3.0), ("-", "too_large", 1.0), ("-", "ok", 0.0)]
    {
        let name = format!("authsock_requests_total{{method=\"{method}\",result=\"{result}\"}}");
        assert_eq!(samples[&name], count, "{name}");
    }
    let of_status =
        |result| samples[&format!("authsock_requests_total{{method=\"status\",result=\"{result}\"}}")];
    assert!(of_status("limit_reached") > 0.0);
    assert_eq!(of_status("ok") + of_status("limit_reached"), 200.0);
}

#[test]
fn a_session_that_ended_while_no_daemon_ran_is_counted_by_the_next_one() {
    let ground = Ground::new();
    let mut daemon = ground.serve();
    let owner = ground.token_after_first_contact();
    let mut run = ground.authsock(["run", "--", "sh", "-c", "echo in; cat"]);
    let mut run = run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(run.stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "in\n");
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    run.kill().unwrap();
    run.wait().unwrap();
    let _daemon = Daemon::start(&ground, daemon.listener.try_clone().unwrap(), |_| {});
    let samples = samples(&metrics(&ground, &owner));
    assert_eq!(samples["authsock_sessions_ended_total{reason=\"leader_gone_while_stopped\"}"], 1.0);
    assert_eq!(samples["authsock_sessions_started_total"], 0.0);
    assert_eq!(samples["authsock_sessions"], 0.0);
}

#[test]
fn the_script_of_the_manual_leaves_a_whole_file_of_samples() {
    if skip_unless(has("curl"), "curl is not installed") {
        return;
    }
    let ground = Ground::new();
    let _daemon = ground.serve();
    let manual = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
    let blocks = manual.split("```sh\n").skip(1).filter_map(|block| block.split("```").next());
    let script = blocks.filter(|block| block.contains("authsock.prom")).collect::<String>();
    let (path, dir) = (ground.root().join("script"), ground.root().join("textfile"));
    put(&path, &script, 0o600);
    std::fs::create_dir(&dir).unwrap();
    let mut run = ground.authsock(["run", "--name", "metrics", "--allow", "metrics", "--", "sh"]);
    let output = run.arg(&path).arg(&dir).output().unwrap();
    assert!(output.status.success(), "{}", text_of(&output));
    let files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(files, ["authsock.prom"]);
    let text = std::fs::read_to_string(dir.join("authsock.prom")).unwrap();
    assert!(text.lines().all(|line| line.starts_with("authsock_")), "{text}");
    assert_eq!(samples(&text)["authsock_sessions_started_total"], 1.0);
}
