//! Events as their publishers and subscribers see them: who hears what, in which order, and what is told of what did not come.

use std::io::Read;
use std::path::Path;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use authsock::secret::token::Token;

use crate::ground::{Daemon, Ground, Line, bind_private, connected, minted, owner, served_with};

/// A session that is bound to the user, and a connection in it.
fn joined(ground: &Ground, owner: &mut Line, name: &str, more: Value) -> (String, Token, Line) {
    let (token, verifier) = minted();
    let mut wish = json!({ "name": name, "binding": "uid", "verifier": verifier });
    wish.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let made = owner.call("session.create", &wish);
    let id = made["result"]["session"]["id"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
    let line = connected(ground, &token.reveal());
    (id, token, line)
}

fn subscribe(line: &mut Line, params: Value) -> Value {
    let answer = line.call("events.subscribe", &params);
    assert!(answer["result"].is_object(), "{answer}");
    answer["result"].clone()
}

fn publish(line: &mut Line, subject: &str, data: Value) -> Value {
    let answer = line.call("events.publish", &json!({ "subject": subject, "data": data }));
    assert!(answer["result"].is_object(), "{answer}");
    answer["result"].clone()
}

/// The next line, which must be a notification of this kind; its params.
fn told(line: &mut Line, method: &str) -> Value {
    let line = line.receive().expect("a notification");
    assert_eq!(line["method"], method, "{line}");
    assert!(line.get("id").is_none(), "{line}");
    line["params"].clone()
}

fn code(answer: &Value) -> i64 {
    answer["error"]["code"].as_i64().unwrap_or_else(|| panic!("{answer}"))
}

fn words(answer: &Value) -> &str {
    answer["error"]["message"].as_str().unwrap_or_else(|| panic!("{answer}"))
}

/// That a connection has heard nothing until now: an answer to something asked later is the next line.
fn has_heard_nothing(line: &mut Line) {
    assert_eq!(line.call("ping", &json!({}))["result"]["pong"], true);
}

#[test]
fn an_event_comes_with_its_place_its_time_and_its_publisher_by_the_daemon_s_word() {
    let (ground, _daemon) = served_with("");
    let mut owner = owner(&ground);
    let (id, _, mut alice) = joined(&ground, &mut owner, "alice", json!({}));
    let (_, _, mut bob) = joined(&ground, &mut owner, "bob", json!({}));
    let begun = subscribe(&mut bob, json!({ "subjects": ["build.*.done", "build.>"] }));
    // What the payload says of its sender is the payload's own business.
    let data = json!({ "publisher": { "id": "owner" }, "seq": 1, "text": "ü\n" });
    let published = publish(&mut alice, "build.x.done", data.clone());
    assert_eq!(published["reached"], 1);
    let event = told(&mut bob, "event");
    assert_eq!(event["subject"], "build.x.done");
    assert_eq!(event["publisher"], json!({ "id": id, "name": "alice" }));
    assert_eq!(event["data"], data);
    assert_eq!((&event["seq"], &event["epoch"]), (&published["seq"], &published["epoch"]));
    assert_eq!(event["seq"].as_u64().unwrap(), begun["seq"].as_u64().unwrap() + 1);
    assert_eq!(event["realm"], "default");
    assert!(event["time_ms"].as_u64().unwrap() > 1_700_000_000_000);
    // Two patterns match it, and it came once; who publishes does not hear it unless it subscribes.
    has_heard_nothing(&mut bob);
    has_heard_nothing(&mut alice);
    assert_eq!(publish(&mut alice, "build", json!(null))["reached"], 0, "build.> is what is below");
    let left = bob.call("events.unsubscribe", &json!({ "subjects": ["build.>"] }));
    assert_eq!(left["result"]["subjects"], json!(["build.*.done"]));
    assert_eq!(publish(&mut alice, "build.y", json!(1))["reached"], 0);
    assert_eq!(bob.call("events.unsubscribe", &json!({}))["result"]["subjects"], json!([]));
    assert_eq!(publish(&mut alice, "build.x.done", json!(1))["reached"], 0);
    has_heard_nothing(&mut bob);
}

#[test]
fn who_is_not_in_hears_not_one_byte_of_an_event() {
    let (ground, _daemon) = served_with("");
    let mut owner = owner(&ground);
    let (_, _, mut publisher) = joined(&ground, &mut owner, "publisher", json!({}));
    let (_, _, mut elsewhere) = joined(&ground, &mut owner, "elsewhere", json!({ "realm": "other" }));
    let (revoked_id, _, mut revoked) = joined(&ground, &mut owner, "revoked", json!({}));
    let (rotated_id, _, mut rotated) = joined(&ground, &mut owner, "rotated", json!({}));
    let (_, _, mut brief) = joined(&ground, &mut owner, "brief", json!({ "ttl_seconds": 1 }));
    for line in [&mut elsewhere, &mut revoked, &mut rotated, &mut brief] {
        subscribe(line, json!({ "subjects": [">"] }));
    }
    // One that says nothing, one that is in the middle of its handshake, and one that was refused.
    let silent = std::os::unix::net::UnixStream::connect(ground.init_socket()).unwrap();
    let mut amid = Line::connect(&ground.init_socket());
    let nonce = "ab".repeat(32);
    amid.send_json(&json!({ "type": "auth", "v": 1, "token_id": "0123456789abcdef", "nonce": nonce }));
    assert_eq!(amid.receive().unwrap()["type"], "challenge");
    let mut refused = Line::connect(&ground.init_socket());
    assert_eq!(refused.plain(&"0".repeat(64))["success"], false);
    // Revoked, rotated without grace, and then published to, in one write of one client: nothing lies in between.
    let (_, verifier) = minted();
    let request = |id: u64, method: &str, params: Value| {
        format!("{}\n", json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }))
    };
    owner.send(
        &[
            request(1, "session.revoke", json!({ "id": revoked_id })),
            request(
                2,
                "session.rotate",
                json!({ "id": rotated_id, "grace_seconds": 0, "verifier": verifier }),
            ),
            request(3, "events.publish", json!({ "subject": "secret.word", "data": "SECRET" })),
        ]
        .concat(),
    );
    assert_eq!(owner.receive().unwrap()["result"]["ended"], 1);
    assert!(owner.receive().unwrap()["result"].is_object());
    let reached = owner.receive().unwrap()["result"]["reached"].clone();
    assert_eq!(reached, 1, "the brief one is still in");
    assert!(String::from_utf8_lossy(&brief.rest()).contains("SECRET"), "it was in, until its time was up");
    for _ in 0..100 {
        publish(&mut publisher, "secret.word", json!("SECRET"));
    }
    for (name, line) in [("revoked", &mut revoked), ("rotated", &mut rotated)] {
        let rest = String::from_utf8(line.rest()).unwrap();
        assert!(!rest.contains("SECRET"), "{name}: {rest}");
    }
    has_heard_nothing(&mut elsewhere);
    assert_eq!(amid.rest(), refusal_of_silence(), "only its handshake's own line");
    assert_eq!(refused.rest(), b"");
    let mut silent = silent;
    let mut heard = Vec::new();
    let _ = silent.read_to_end(&mut heard);
    assert_eq!(heard, refusal_of_silence());
}

/// What a connection hears that did not come through its handshake in time.
fn refusal_of_silence() -> Vec<u8> {
    use authsock::wire::auth::{Answer, Code, RefusalBrief};
    Answer::Refused(RefusalBrief::of(Code::Timeout)).to_line().into_bytes()
}

#[test]
fn an_event_that_waits_for_a_session_goes_with_it() {
    let (ground, _daemon) = served_with("[events]\nqueued_bytes = 1073741824\nqueued = 1000000\n");
    let mut owner = owner(&ground);
    let (id, _, mut slow) = joined(&ground, &mut owner, "slow", json!({}));
    subscribe(&mut slow, json!({ "subjects": ["big"] }));
    // It does not read: what its socket does not hold waits in the daemon.
    let big = "x".repeat(60_000);
    for number in 0..100 {
        assert_eq!(publish(&mut owner, "big", json!([number, big]))["reached"], 1);
    }
    assert_eq!(owner.call("session.revoke", &json!({ "id": id }))["result"]["ended"], 1);
    let rest = String::from_utf8(slow.rest()).unwrap();
    let whole = rest.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok()).count();
    assert!(whole < 90, "{whole}");
    assert!(!rest.contains("[99,"), "what was not out yet never comes");
}

#[test]
fn inboxes_are_for_their_session_and_its_realm_writes_to_them() {
    let (ground, _daemon) = served_with("");
    let mut owner = owner(&ground);
    let (alice_id, _, mut alice) = joined(&ground, &mut owner, "alice", json!({}));
    let (bob_id, _, mut bob) = joined(&ground, &mut owner, "bob", json!({}));
    let (far_id, _, mut far) = joined(&ground, &mut owner, "far", json!({ "realm": "far" }));
    for subject in [format!("inbox.{alice_id}.>"), format!("inbox.{alice_id}"), format!("inbox.{alice_id}.*")]
    {
        let answer = bob.call("events.subscribe", &json!({ "subjects": [subject] }));
        assert_eq!(code(&answer), -32001);
        assert!(words(&answer).contains("another session's inbox") && words(&answer).contains(&bob_id));
    }
    subscribe(&mut bob, json!({ "subjects": [">", "inbox.>", "inbox.*.>", "*.*"] }));
    subscribe(&mut owner, json!({ "subjects": [">"] }));
    subscribe(&mut alice, json!({ "subjects": [format!("inbox.{alice_id}.>")] }));
    let reply = format!("inbox.{alice_id}.reply");
    assert_eq!(publish(&mut bob, &reply, json!("for alice"))["reached"], 1);
    assert_eq!(told(&mut alice, "event")["data"], "for alice");
    has_heard_nothing(&mut bob);
    has_heard_nothing(&mut owner);
    // Nor later, from what is kept.
    let again = subscribe(&mut bob, json!({ "subjects": ["inbox.>"], "since": 0 }));
    assert_eq!(again["replayed"], 0);
    let again = subscribe(&mut alice, json!({ "subjects": ["inbox.>"], "since": 0 }));
    assert_eq!(again["replayed"], 1);
    assert_eq!(told(&mut alice, "event")["data"], "for alice");
    for (from_far, subject) in [
        (true, format!("inbox.{alice_id}.x")),
        (false, format!("inbox.{far_id}.x")),
        (false, "inbox".to_owned()),
        (false, "inbox.nobody.x".to_owned()),
    ] {
        let line = if from_far { &mut far } else { &mut alice };
        let answer = line.call("events.publish", &json!({ "subject": subject }));
        assert_eq!(code(&answer), -32002, "{subject}: {answer}");
    }
}

#[test]
fn what_becomes_of_sessions_is_told_to_their_realm_and_nobody_else_says_so() {
    let (ground, _daemon) = served_with("");
    let mut owner = owner(&ground);
    let (_, _, mut watcher) = joined(&ground, &mut owner, "watcher", json!({}));
    let (_, _, mut far) = joined(&ground, &mut owner, "far", json!({ "realm": "far" }));
    subscribe(&mut watcher, json!({ "subjects": ["$authsock.session.*"] }));
    subscribe(&mut far, json!({ "subjects": ["$authsock.>"] }));
    let (id, _, mut line) = joined(&ground, &mut owner, "comes and goes", json!({}));
    let started = told(&mut watcher, "event");
    assert_eq!(started["subject"], "$authsock.session.started");
    assert_eq!(started["data"], json!({ "id": id, "name": "comes and goes" }));
    assert_eq!(started["publisher"], Value::Null);
    let (_, verifier) = minted();
    assert!(line.call("session.rotate", &json!({ "verifier": verifier }))["result"].is_object());
    assert_eq!(told(&mut watcher, "event")["subject"], "$authsock.session.rotated");
    assert_eq!(owner.call("session.revoke", &json!({ "id": id }))["result"]["ended"], 1);
    let ended = told(&mut watcher, "event");
    assert_eq!(ended["subject"], "$authsock.session.ended");
    assert_eq!(ended["data"], json!({ "id": id, "name": "comes and goes", "reason": "revoked" }));
    has_heard_nothing(&mut far);
    for subject in ["$authsock.session.ended", "$authsock", "$authsock.x"] {
        for line in [&mut owner, &mut watcher] {
            let answer = line.call("events.publish", &json!({ "subject": subject }));
            assert_eq!(code(&answer), -32001, "{answer}");
        }
    }
    let answer = watcher.call("events.subscribe", &json!({ "subjects": ["$authsock.auth.refused"] }));
    assert_eq!(code(&answer), -32001, "{answer}");
    assert!(words(&answer).contains("owner"), "{answer}");
}

#[test]
fn scopes_say_which_subjects_and_what_is_narrowed_is_heard_no_more() {
    let (ground, _daemon) = served_with("");
    let mut owner = owner(&ground);
    let scopes = json!({ "scopes": ["events:publish:a.>", "events:subscribe:a.>", "events:subscribe:b"] });
    let (id, _, mut line) = joined(&ground, &mut owner, "narrow", scopes);
    for (method, params) in [
        ("events.publish", json!({ "subject": "b" })),
        ("events.publish", json!({ "subject": "a" })),
        ("events.subscribe", json!({ "subjects": [">"] })),
        ("events.subscribe", json!({ "subjects": ["a.x", "*.x"] })),
    ] {
        let answer = line.call(method, &params);
        assert_eq!(code(&answer), -32001, "{answer}");
        assert!(words(&answer).contains("needs the scope events:"), "{answer}");
    }
    subscribe(&mut line, json!({ "subjects": ["a.>", "b"] }));
    assert_eq!(publish(&mut owner, "a.x", json!(1))["reached"], 1);
    assert_eq!(told(&mut line, "event")["subject"], "a.x");
    let narrowed = owner.call("session.update", &json!({ "id": id, "scopes": ["events:subscribe:a.y"] }));
    assert!(narrowed["result"].is_object(), "{narrowed}");
    assert_eq!(publish(&mut owner, "b", json!(1))["reached"], 0);
    assert_eq!(publish(&mut owner, "a.y", json!(1))["reached"], 0, "a.> is more than is permitted now");
    let mut lost = [told(&mut line, "event.unsubscribed"), told(&mut line, "event.unsubscribed")];
    lost.sort_by_key(ToString::to_string);
    assert_eq!(lost[0]["subjects"], json!(["a.>"]));
    assert_eq!(lost[1]["subjects"], json!(["b"]));
    subscribe(&mut line, json!({ "subjects": ["a.y"] }));
    assert_eq!(publish(&mut owner, "a.y", json!(1))["reached"], 1);
    assert_eq!(told(&mut line, "event")["subject"], "a.y");
}

#[test]
fn whoever_is_below_what_is_narrowed_is_told_at_once_what_it_hears_no_more() {
    let (ground, _daemon) = served_with("");
    let mut owner = owner(&ground);
    let wide = json!({ "scopes": ["session:create", "events:subscribe:build.>"] });
    let (above, _, mut middle) = joined(&ground, &mut owner, "above", wide);
    let scopes = json!({ "scopes": ["events:subscribe:build.>"] });
    let (_, _, mut below) = joined(&ground, &mut middle, "below", scopes);
    subscribe(&mut below, json!({ "subjects": ["build.>", "build.x"] }));
    let narrowed =
        owner.call("session.update", &json!({ "id": above, "scopes": ["events:subscribe:build.x"] }));
    assert!(narrowed["result"].is_object(), "{narrowed}");
    // It asks nothing, and nothing is published.
    assert_eq!(told(&mut below, "event.unsubscribed")["subjects"], json!(["build.>"]));
    assert_eq!(publish(&mut owner, "build.x", json!(1))["reached"], 1);
    assert_eq!(told(&mut below, "event")["subject"], "build.x");
}

#[test]
fn what_brings_nothing_but_a_gap_is_bounded_too_while_it_is_not_read() {
    let (ground, _daemon) = served_with("");
    let mut owner = owner(&ground);
    let (_, _, mut line) = joined(&ground, &mut owner, "greedy", json!({}));
    // All of them in one write: none is read before the last is asked.
    let ask = |id: usize| {
        let params = json!({ "subjects": ["x"], "since": 1, "epoch": "0000000000000000" });
        format!("{}\n", json!({ "jsonrpc": "2.0", "id": id, "method": "events.subscribe", "params": params }))
    };
    line.send(&(0..20).map(ask).collect::<String>());
    let mut waits = 0;
    let mut gaps = 0;
    for _ in 0..20 {
        let mut answer = line.receive().unwrap();
        while answer["method"] == "event.gap" {
            gaps += 1;
            answer = line.receive().unwrap();
        }
        if answer["error"].is_object() {
            assert!(words(&answer).contains("waits to be read"), "{answer}");
            waits += 1;
        }
    }
    assert!(waits > 0 && gaps + waits >= 19, "{gaps} gaps, {waits} refused");
}

#[test]
fn a_realm_has_its_most_patterns_whoever_listens_and_however_many_are_named_at_once() {
    let (ground, _daemon) = served_with("[events]\npatterns_per_realm = 64\n");
    let mut owner = owner(&ground);
    let (_, _, mut first) = joined(&ground, &mut owner, "first", json!({}));
    let (_, _, mut second) = joined(&ground, &mut owner, "second", json!({}));
    let named =
        |from: usize, count: usize| -> Value { (from..from + count).map(|at| format!("s{at}")).collect() };
    subscribe(&mut first, json!({ "subjects": named(0, 40) }));
    let answer = second.call("events.subscribe", &json!({ "subjects": named(0, 25) }));
    assert_eq!(code(&answer), -32003, "{answer}");
    assert!(words(&answer).contains("events.patterns_per_realm"), "{answer}");
    subscribe(&mut second, json!({ "subjects": named(0, 24) }));
    // Elsewhere there is room, and here where somebody has left.
    subscribe(&mut owner, json!({ "subjects": named(0, 25), "realm": "far" }));
    assert!(first.call("events.unsubscribe", &json!({ "subjects": ["s0"] }))["result"].is_object());
    subscribe(&mut second, json!({ "subjects": ["s99"] }));
    // One that names more than a connection may have is refused for that, whatever they are.
    let answer = first.call("events.subscribe", &json!({ "subjects": vec!["not a subject"; 1000] }));
    assert_eq!(code(&answer), -32602, "{answer}");
    let answer = first.call("events.subscribe", &json!({ "subjects": named(0, 1000) }));
    assert_eq!(code(&answer), -32003, "{answer}");
}

#[test]
fn only_who_stands_for_somebody_enters_other_realms() {
    let (ground, _daemon) = served_with("");
    let mut owner = owner(&ground);
    let (_, _, mut far) = joined(&ground, &mut owner, "far", json!({ "realm": "far" }));
    let (_, _, mut near) = joined(&ground, &mut owner, "near", json!({}));
    subscribe(&mut far, json!({ "subjects": ["x"], "realm": "far" }));
    for method in ["events.publish", "events.subscribe"] {
        let mut params = json!({ "realm": "far" });
        let (key, value) =
            if method == "events.publish" { ("subject", json!("x")) } else { ("subjects", json!(["x"])) };
        params[key] = value;
        assert_eq!(code(&near.call(method, &params)), -32001);
    }
    subscribe(&mut owner, json!({ "subjects": ["x"], "realm": "far" }));
    let told_all = owner.call("events.publish", &json!({ "subject": "x", "realm": "far" }));
    let event = owner.receive().unwrap();
    assert_eq!(told_all["result"]["reached"], 2);
    assert_eq!(event["params"]["realm"], "far");
    assert_eq!(told(&mut far, "event")["data"], Value::Null);
    has_heard_nothing(&mut near);
}

#[test]
fn where_events_may_have_no_data_those_without_pass_and_no_others() {
    let (ground, _daemon) = served_with("[events]\npayload_bytes = 0\n");
    let mut owner = owner(&ground);
    for params in [json!({ "subject": "a" }), json!({ "subject": "a", "data": null })] {
        let answer = owner.call("events.publish", &params);
        assert!(answer["result"].is_object(), "{answer}");
    }
    assert_eq!(ground.json(["publish", "a"])["seq"], 3);
    for data in [json!(0), json!(""), json!("null"), json!([])] {
        let answer = owner.call("events.publish", &json!({ "subject": "a", "data": data }));
        assert_eq!(code(&answer), -32602, "{answer}");
        assert!(words(&answer).contains("at most 0 bytes (events.payload_bytes)"), "{answer}");
    }
}

#[test]
fn every_limit_of_an_event_holds_at_its_edge() {
    let (ground, _daemon) =
        served_with("[events]\npayload_bytes = 10\npayload_depth = 2\npatterns = 2\nrealms_per_uid = 2\n");
    let mut owner = owner(&ground);
    let call = |owner: &mut Line, data: &str| {
        owner.send(&format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"events.publish\",\"params\":{{\"subject\":\"a\",\"data\":{data}}}}}\n"
        ));
        owner.receive().unwrap()
    };
    assert!(call(&mut owner, "\"12345678\"")["result"].is_object());
    let answer = call(&mut owner, "\"123456789\"");
    assert_eq!(code(&answer), -32602);
    assert!(words(&answer).contains("events.payload_bytes"), "{answer}");
    assert!(call(&mut owner, "[[1]]")["result"].is_object());
    assert!(words(&call(&mut owner, "[[[1]]]")).contains("events.payload_depth"));
    subscribe(&mut owner, json!({ "subjects": ["a", "b", "a"] }));
    let answer = owner.call("events.subscribe", &json!({ "subjects": ["c"] }));
    assert_eq!(code(&answer), -32003);
    assert!(words(&answer).contains("events.patterns"), "{answer}");
    let answer = owner.call("events.unsubscribe", &json!({ "subjects": ["x", "y", "z"] }));
    assert!(words(&answer).contains("events.patterns"), "{answer}");
    // Two realms are kept, and both have a subscriber.
    let (_, _, mut far) = joined(&ground, &mut owner, "far", json!({ "realm": "far" }));
    subscribe(&mut far, json!({ "subjects": ["a"] }));
    let answer = owner.call("events.publish", &json!({ "subject": "a", "realm": "third" }));
    assert_eq!(code(&answer), -32003);
    assert!(words(&answer).contains("events.realms_per_uid"), "{answer}");
    drop(far);
    // Its connection's end is an event too: there is room once the daemon has seen it.
    let deadline = Instant::now() + Duration::from_secs(30);
    while owner.call("events.publish", &json!({ "subject": "a", "realm": "third" }))["error"].is_object() {
        assert!(Instant::now() < deadline);
    }
    for (subject, says) in [
        ("", "not a subject"),
        ("a..b", "not a subject"),
        ("a.*", "for those who subscribe"),
        (&"s".repeat(257), "256"),
    ] {
        let answer = owner.call("events.publish", &json!({ "subject": subject }));
        assert_eq!(code(&answer), -32602);
        assert!(words(&answer).contains(says), "{answer}");
    }
}

#[test]
fn who_comes_back_gets_what_is_kept_or_is_told_what_is_not() {
    let (ground, _daemon) = served_with("[events]\nkept = 5\n");
    let mut owner = owner(&ground);
    let first = publish(&mut owner, "n.1", json!(1));
    let epoch = first["epoch"].clone();
    for number in 2..=8 {
        publish(&mut owner, if number % 2 == 0 { "even" } else { "odd" }, json!(number));
    }
    // 4 to 8 are kept.
    let numbers = |lines: &[Value]| -> Vec<u64> {
        lines.iter().filter_map(|line| line["params"]["seq"].as_u64()).collect()
    };
    let collect = |params: Value| -> (Value, Vec<Value>) {
        let mut line = connected(&ground, &ground.token());
        let begun = subscribe(&mut line, params);
        let mut lines = Vec::new();
        let mut events = 0;
        while events < begun["replayed"].as_u64().unwrap() {
            let line = line.receive().unwrap();
            events += u64::from(line["method"] == "event");
            lines.push(line);
        }
        (begun, lines)
    };
    let (begun, lines) = collect(json!({ "subjects": [">"], "since": 5, "epoch": epoch }));
    assert_eq!((&begun["replayed"], &begun["after"], &begun["seq"]), (&json!(3), &json!(5), &json!(8)));
    assert_eq!(numbers(&lines), [6, 7, 8], "nothing is missing, and nothing is said");
    let (_, lines) = collect(json!({ "subjects": ["even"], "since": 4, "epoch": null }));
    assert_eq!(numbers(&lines), [6, 8]);
    let (_, lines) = collect(json!({ "subjects": [">"], "since": 3, "epoch": epoch }));
    assert_eq!(numbers(&lines), [4, 5, 6, 7, 8]);
    let (begun, lines) = collect(json!({ "subjects": [">"], "since": 2, "epoch": epoch }));
    assert_eq!(lines[0]["method"], "event.gap");
    let gap = &lines[0]["params"];
    assert_eq!((&gap["reason"], &gap["from"], &gap["to"]), (&json!("forgotten"), &json!(3), &json!(3)));
    assert_eq!((numbers(&lines), &begun["replayed"]), (vec![4, 5, 6, 7, 8], &json!(5)));
    let (_, lines) = collect(json!({ "subjects": [">"], "since": 0 }));
    assert_eq!(numbers(&lines), [4, 5, 6, 7, 8], "all that is kept was asked for");
    let (begun, lines) = collect(json!({ "subjects": ["odd"], "last": 1 }));
    assert_eq!((numbers(&lines), &begun["after"]), (vec![7], &json!(5)));
    let (_, lines) = collect(json!({ "subjects": [">"], "since": 5, "epoch": epoch, "last": 2 }));
    assert_eq!(numbers(&lines), [7, 8]);
    let other = json!("0123456789abcdef");
    for (since, epoch, reason) in [
        (9, epoch.clone(), "ahead"),
        (9, Value::Null, "ahead"),
        (1, other.clone(), "restarted"),
        (9, other, "restarted"),
    ] {
        let (_, lines) = collect(json!({ "subjects": [">"], "since": since, "epoch": epoch }));
        assert_eq!(lines[0]["params"]["reason"], reason, "{lines:?}");
        assert_eq!(numbers(&lines), [4, 5, 6, 7, 8]);
    }
    for (params, says) in [
        (json!({ "subjects": [">"], "since": 1 }), "epoch is missing"),
        (json!({ "subjects": [">"], "epoch": epoch }), "belongs to since"),
        (json!({ "subjects": [">"], "since": 1, "epoch": "x" }), "16 hexadecimal"),
        (json!({ "subjects": [] }), "at least one"),
        (json!({}), "subjects"),
    ] {
        let answer = owner.call("events.subscribe", &params);
        assert_eq!(code(&answer), -32602);
        assert!(words(&answer).contains(says), "{answer}");
    }
}

#[test]
fn a_subscriber_that_does_not_read_is_told_exactly_how_many_it_missed() {
    let (ground, _daemon) = served_with("[events]\nqueued = 10\n");
    let mut owner = owner(&ground);
    let (_, _, mut slow) = joined(&ground, &mut owner, "slow", json!({}));
    let (_, _, mut quick) = joined(&ground, &mut owner, "quick", json!({}));
    subscribe(&mut slow, json!({ "subjects": ["n"] }));
    subscribe(&mut quick, json!({ "subjects": ["n"] }));
    let filler = "x".repeat(10_000);
    let total = 200;
    let mut reached_both = 0;
    for number in 0..total {
        reached_both += u64::from(publish(&mut owner, "n", json!([number, filler]))["reached"] == 2);
        assert_eq!(told(&mut quick, "event")["data"][0], number, "the quick one misses nothing");
    }
    assert!(reached_both < total);
    // Now it reads: what was queued, then the count, then what comes next.
    publish(&mut owner, "n", json!(["last", ""]));
    let (mut events, mut missed, mut next) = (0, 0, 0);
    loop {
        let line = slow.receive().unwrap();
        let params = &line["params"];
        if line["method"] == "event.gap" {
            assert_eq!(params["reason"], "slow");
            let (from, to) = (params["from"].as_u64().unwrap(), params["to"].as_u64().unwrap());
            assert_eq!(params["missed"].as_u64().unwrap(), to - from + 1, "all of them are its own");
            missed += params["missed"].as_u64().unwrap();
            next += params["missed"].as_u64().unwrap();
        } else if params["data"][0] == "last" {
            events += 1;
            break;
        } else {
            assert_eq!(params["data"][0].as_u64().unwrap(), next, "in order");
            events += 1;
            next += 1;
        }
        if events + missed == total + 1 {
            break;
        }
    }
    assert_eq!(events + missed, total + 1);
    assert!(missed > 0 && events >= reached_both);
}

#[test]
fn after_a_kill_there_is_a_gap_and_never_silence() {
    let ground = Ground::new();
    let listener = bind_private(&ground.init_socket());
    let daemon = Daemon::start(&ground, listener.try_clone().unwrap(), |_| {});
    let mut line = owner(&ground);
    let published = publish(&mut line, "a", json!(1));
    daemon.signal(nix::sys::signal::Signal::SIGKILL);
    assert_eq!(line.receive(), None);
    drop(daemon);
    let _daemon = Daemon::start(&ground, listener, |_| {});
    let mut line = connected(&ground, &ground.token());
    publish(&mut line, "a", json!(2));
    let mut line = connected(&ground, &ground.token());
    let again = subscribe(
        &mut line,
        json!({ "subjects": ["a"], "since": published["seq"], "epoch": published["epoch"] }),
    );
    assert_ne!(again["epoch"], published["epoch"]);
    let gap = told(&mut line, "event.gap");
    assert_eq!((&gap["reason"], &gap["epoch"]), (&json!("restarted"), &again["epoch"]));
    assert_eq!(told(&mut line, "event")["data"], 2);
}

/// How many events are published while everything breaks.
const PUBLISHED: u64 = 1500;
/// How often the daemon is killed meanwhile.
const KILLS: u64 = 3;

/// How far the publisher came, for those who wait for it.
#[derive(Default)]
struct Course {
    /// Numbers below this one were published, or never will be.
    reached: Mutex<(u64, bool)>,
    moved: Condvar,
}

impl Course {
    fn moves(&self, reached: u64, is_over: bool) {
        *self.reached.lock().unwrap() = (reached, is_over);
        self.moved.notify_all();
    }

    fn wait_for(&self, wanted: u64) {
        let far = self
            .moved
            .wait_while(self.reached.lock().unwrap(), |(reached, over)| *reached < wanted && !*over);
        drop(far);
    }

    fn is_over(&self) -> bool {
        self.reached.lock().unwrap().1
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// A connection that may break at any time.
fn try_connected(socket: &Path, token: &str) -> Option<Line> {
    let mut line = Line::connect(socket);
    line.send_json(&json!({ "type": "auth", "token": token }));
    (line.receive()?["success"] == true).then_some(line)
}

fn try_call(line: &mut Line, method: &str, params: &Value) -> Option<Value> {
    line.send_json(&json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }));
    loop {
        let answer = line.receive()?;
        if answer["id"] == 1 {
            return Some(answer["result"].clone());
        }
    }
}

/// What a subscriber saw: events by the number that they tell, and gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Event(u64),
    Gap(Value),
}

/// Subscribes, breaks off, comes back, and dawdles, until the publisher is done and all is read.
fn subscribe_and_break_off(socket: &Path, token: &str, course: &Course, random: &mut Random) -> Vec<Seen> {
    let mut seen = Vec::new();
    // From where on it has seen nothing yet.
    let mut cursor: Option<(Value, Value)> = None;
    loop {
        let last_time = course.is_over();
        let Some(mut line) = try_connected(socket, token) else { continue };
        let params = match &cursor {
            None => json!({ "subjects": ["n", "over"], "since": 0 }),
            Some((epoch, seq)) => json!({ "subjects": ["n", "over"], "since": seq, "epoch": epoch }),
        };
        // Nothing comes before the answer on a connection that has not subscribed before.
        let Some(begun) = try_call(&mut line, "events.subscribe", &params) else { continue };
        let mut owed = begun["replayed"].as_u64().unwrap();
        // Told once only what the cursor is a place in: a gap says from where it counts anew.
        let mut patience = if last_time { u64::MAX } else { random.below(120) };
        if cursor.is_none() {
            cursor = Some((begun["epoch"].clone(), begun["after"].clone()));
        }
        while patience > 0 && !(last_time && owed == 0) {
            patience -= 1;
            if random.below(50) == 0 {
                // It dawdles: its queue, and what is kept, may not be enough.
                let (reached, _) = *course.reached.lock().unwrap();
                course.wait_for(reached + 40);
            }
            let Some(line) = line.receive() else { break };
            let params = &line["params"];
            match line["method"].as_str().unwrap() {
                "event" => {
                    owed = owed.saturating_sub(1);
                    // The other subject is there so that nobody waits for ever.
                    seen.extend(
                        (params["subject"] == "n").then(|| Seen::Event(params["data"].as_u64().unwrap())),
                    );
                    cursor = Some((params["epoch"].clone(), params["seq"].clone()));
                }
                "event.gap" => {
                    if params["reason"] == "slow" {
                        assert!(params["missed"].as_u64().unwrap() > 0);
                        cursor = Some((params["epoch"].clone(), params["to"].clone()));
                    }
                    seen.push(Seen::Gap(params.clone()));
                }
                other => panic!("{other}"),
            }
            if course.is_over() && !last_time {
                break;
            }
        }
        if last_time {
            return seen;
        }
    }
}

#[test]
fn whatever_breaks_off_each_event_is_seen_in_order_or_a_gap_says_that_it_was_not() {
    for seed in [1, 0x9e37_79b9_7f4a_7c15, 0xdead_beef_cafe_f00d] {
        breaks(seed);
    }
}

fn breaks(seed: u64) {
    let ground = Ground::new();
    ground.configure("[events]\nkept = 30\nqueued = 8\nqueued_bytes = 4096\n");
    let listener = bind_private(&ground.init_socket());
    let mut daemon = Daemon::start(&ground, listener.try_clone().unwrap(), |_| {});
    let token = ground.token_after_first_contact();
    let (course, socket) = (Course::default(), ground.init_socket());
    let (published, all) = std::thread::scope(|scope| {
        let subscribers: Vec<_> = (0..4)
            .map(|number| {
                let (course, socket, token) = (&course, &socket, &token);
                let mut random = Random(seed ^ (number + 1));
                scope.spawn(move || subscribe_and_break_off(socket, token, course, &mut random))
            })
            .collect();
        let mut published = Vec::new();
        let mut publisher = try_connected(&socket, &token).unwrap();
        for number in 0..PUBLISHED {
            if number % (PUBLISHED / (KILLS + 1)) == PUBLISHED / (KILLS + 1) - 1 {
                daemon.signal(nix::sys::signal::Signal::SIGKILL);
                daemon.child.wait().unwrap();
                daemon = Daemon::start(&ground, listener.try_clone().unwrap(), |_| {});
                publisher = try_connected(&socket, &token).unwrap();
            }
            let params = json!({ "subject": "n", "data": number });
            assert!(try_call(&mut publisher, "events.publish", &params).is_some());
            published.push(number);
            course.moves(number + 1, false);
        }
        course.moves(PUBLISHED, true);
        publish(&mut publisher, "over", json!(null));
        let all: Vec<Vec<Seen>> = subscribers.into_iter().map(|one| one.join().unwrap()).collect();
        (published, all)
    });
    assert_eq!(published.len() as u64, PUBLISHED);
    let mut kinds = std::collections::BTreeMap::<String, usize>::new();
    for seen in all {
        // Who asks for all that is kept begins with what is.
        let first = seen.iter().find_map(|one| match one {
            Seen::Event(number) => Some(*number),
            Seen::Gap(_) => None,
        });
        let mut next = first.unwrap();
        let mut has_gap = false;
        for (place, one) in seen.iter().enumerate() {
            match one {
                Seen::Gap(gap) => {
                    has_gap = true;
                    *kinds.entry(gap["reason"].to_string()).or_default() += 1;
                }
                Seen::Event(number) => {
                    // Never one twice, never an older one after a newer.
                    assert!(*number >= next, "seed {seed}: {number} after {next}");
                    assert!(
                        *number == next || has_gap,
                        "seed {seed}: silence from {next} to {number}: {:?}",
                        &seen[place.saturating_sub(3)..place + 1]
                    );
                    next = number + 1;
                    has_gap = false;
                }
            }
        }
        assert!(next == PUBLISHED || has_gap, "seed {seed}: silence from {next} on");
    }
    assert!(kinds.contains_key("\"restarted\""), "{kinds:?}");
    assert!(kinds.len() >= 2, "what is to be tested happened: {kinds:?}");
}

#[test]
fn the_owner_is_told_who_was_refused_and_nobody_else_is() {
    let (ground, _daemon) = served_with("");
    let mut owner = owner(&ground);
    let (_, _, mut other) = joined(&ground, &mut owner, "other", json!({}));
    subscribe(&mut owner, json!({ "subjects": ["$authsock.auth.>"] }));
    subscribe(&mut other, json!({ "subjects": [">"] }));
    let wrong = "0".repeat(64);
    for _ in 0..12 {
        let mut refused = Line::connect(&ground.init_socket());
        assert_eq!(refused.plain(&wrong)["success"], false);
    }
    for _ in 0..5 {
        let event = told(&mut owner, "event");
        assert_eq!(event["subject"], "$authsock.auth.refused");
        assert_eq!(event["data"]["code"], "denied");
        assert_eq!(event["data"]["pid"], std::process::id());
        assert_eq!(event["data"]["uid"], nix::unistd::getuid().as_raw());
        assert!(!event.to_string().contains(&wrong));
    }
    // More of them within the same ten seconds are only counted.
    has_heard_nothing(&mut owner);
    has_heard_nothing(&mut other);
    assert_eq!(
        subscribe(&mut other, json!({ "subjects": [">"], "since": 0 }))["replayed"],
        1,
        "its own beginning"
    );
}
