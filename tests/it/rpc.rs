//! JSON-RPC 2.0 as its specification has it: its own examples, batches, and what is bounded.

use std::io::{BufRead, BufReader, Write};

use serde_json::{Value, json};

use crate::ground::{Line, minted, owner, served_with};

/// What is answered to one line, as text; nothing, if the next line is the answer to a ping that is sent behind it.
fn answered(line: &mut Line, text: &str) -> Option<Value> {
    line.send(&format!("{text}\n{{\"jsonrpc\":\"2.0\",\"id\":\"behind\",\"method\":\"ping\"}}\n"));
    let first = line.receive().unwrap();
    if first["id"] == "behind" {
        return None;
    }
    assert_eq!(line.receive().unwrap()["id"], "behind");
    Some(first)
}

fn error(code: i64) -> Value {
    json!({ "code": code, "id": null })
}

/// An answer, with errors cut down to what the specification fixes.
fn short(answer: &Value) -> Value {
    match answer {
        Value::Array(all) => all.iter().map(short).collect(),
        one => {
            assert_eq!(one["jsonrpc"], "2.0");
            if one["error"].is_object() {
                assert!(one["error"]["message"].is_string() && one.get("result").is_none(), "{one}");
                json!({ "code": one["error"]["code"], "id": one["id"] })
            } else {
                json!({ "result": one["result"], "id": one["id"] })
            }
        }
    }
}

/// The examples of the specification's section 7, with methods that there are here.
#[test]
fn the_specification_s_own_examples_are_answered_as_it_says() {
    let (ground, _daemon) = served_with("");
    let mut line = owner(&ground);
    let pong = |id: Value| json!({ "result": { "pong": true }, "id": id });
    let cases: Vec<(&str, Option<Value>)> = vec![
        // A call without, with positional, and with named parameters.
        (r#"{"jsonrpc":"2.0","method":"ping","id":1}"#, Some(pong(json!(1)))),
        (r#"{"jsonrpc":"2.0","method":"ping","params":[],"id":2}"#, Some(pong(json!(2)))),
        (r#"{"jsonrpc":"2.0","method":"ping","params":{},"id":3}"#, Some(pong(json!(3)))),
        // Notifications, also of a method that does not exist.
        (r#"{"jsonrpc":"2.0","method":"ping","params":[]}"#, None),
        (r#"{"jsonrpc":"2.0","method":"foobar"}"#, None),
        // A method that does not exist.
        (r#"{"jsonrpc":"2.0","method":"foobar","id":"1"}"#, Some(json!({ "code": -32601, "id": "1" }))),
        // Invalid JSON.
        (r#"{"jsonrpc":"2.0","method":"foobar,"params":"bar","baz]"#, Some(error(-32700))),
        // An invalid request.
        (r#"{"jsonrpc":"2.0","method":1,"params":"bar"}"#, Some(error(-32600))),
        // A batch that is no JSON.
        (r#"[{"jsonrpc":"2.0","method":"ping","id":"1"},{"jsonrpc":"2.0","method"]"#, Some(error(-32700))),
        // An empty list.
        ("[]", Some(error(-32600))),
        // Lists of what are no requests.
        ("[1]", Some(json!([error(-32600)]))),
        ("[1,2,3]", Some(json!([error(-32600), error(-32600), error(-32600)]))),
        // A batch of all kinds.
        (
            r#"[{"jsonrpc":"2.0","method":"ping","params":{},"id":"1"},{"jsonrpc":"2.0","method":"ping","params":{}},{"jsonrpc":"2.0","method":"ping","params":[],"id":"2"},{"foo":"boo"},{"jsonrpc":"2.0","method":"foo.get","params":{"name":"myself"},"id":"5"},{"jsonrpc":"2.0","method":"ping","id":"9"}]"#,
            Some(json!([
                pong(json!("1")),
                pong(json!("2")),
                error(-32600),
                { "code": -32601, "id": "5" },
                pong(json!("9")),
            ])),
        ),
        // A batch of notifications.
        (r#"[{"jsonrpc":"2.0","method":"ping"},{"jsonrpc":"2.0","method":"foobar","params":{}}]"#, None),
        // What the specification has no example of.
        (r#"[[{"jsonrpc":"2.0","method":"ping","id":1}]]"#, Some(json!([error(-32600)]))),
        (r#"[{"jsonrpc":"2.0","method":"ping","id":1},]"#, Some(error(-32700))),
        (r#"[{"jsonrpc":"2.0","method":"ping","id":1}] x"#, Some(error(-32700))),
        (r#"  [ {"jsonrpc":"2.0","method":"ping","id":1} ]  "#, Some(json!([pong(json!(1))]))),
        (
            r#"[{"jsonrpc":"2.0","method":"ping","params":[1],"id":1}]"#,
            Some(json!([{ "code": -32602, "id": 1 }])),
        ),
    ];
    for (sent, expected) in cases {
        let found = answered(&mut line, sent);
        assert_eq!(found.as_ref().map(short), expected, "{sent}: {found:?}");
    }
}

#[test]
fn ids_of_every_kind_come_back_from_a_batch_as_they_were_sent_and_in_order() {
    let (ground, _daemon) = served_with("");
    let mut line = owner(&ground);
    let ids = ["1", "-0", "1.50", "1E400", "\"\\u0041\"", "\"\"", "null", "18446744073709551616"];
    let items: Vec<String> =
        ids.iter().map(|id| format!("{{\"jsonrpc\":\"2.0\",\"method\":\"ping\",\"id\":{id}}}")).collect();
    line.send(&format!("[{}]\n{{\"jsonrpc\":\"2.0\",\"method\":\"ping\",\"id\":7}}\n", items.join(",")));
    let mut reader = BufReader::new(line.stream().try_clone().unwrap());
    let mut text = String::new();
    reader.read_line(&mut text).unwrap();
    let expected: Vec<String> = ids
        .iter()
        .map(|id| format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{\"pong\":true}}}}"))
        .collect();
    assert_eq!(text, format!("[{}]\n", expected.join(",")));
    text.clear();
    reader.read_line(&mut text).unwrap();
    assert!(text.contains("\"id\":7"), "{text}");
}

fn batch(count: usize, item: impl Fn(usize) -> Value) -> String {
    format!("{}\n", (0..count).map(item).collect::<Value>())
}

#[test]
fn a_batch_has_its_most_requests_and_one_more_is_refused_whole() {
    let (ground, _daemon) = served_with("[limits]\nrequests_in_flight = 3\n");
    let mut line = owner(&ground);
    let make = |id: usize| {
        let (_, verifier) = minted();
        let params = json!({ "name": format!("n{id}"), "binding": "uid", "verifier": verifier });
        json!({ "jsonrpc": "2.0", "id": id, "method": "session.create", "params": params })
    };
    line.send(&batch(4, make));
    let answer = line.receive().unwrap();
    assert_eq!((&answer["error"]["code"], &answer["id"]), (&json!(-32003), &Value::Null));
    assert!(answer["error"]["message"].as_str().unwrap().contains("limits.requests_in_flight"), "{answer}");
    let count = |line: &mut Line| {
        line.call("session.list", &json!({}))["result"]["sessions"].as_array().unwrap().len()
    };
    assert_eq!(count(&mut line), 1, "none was made beside the owner's");
    line.send(&batch(3, make));
    assert_eq!(line.receive().unwrap().as_array().unwrap().len(), 3);
    assert_eq!(count(&mut line), 4);
}

#[test]
fn of_a_batch_whose_answers_are_too_much_the_rest_is_not_carried_out() {
    let (ground, _daemon) = served_with("[limits]\nqueued_bytes = 65536\n");
    let mut line = owner(&ground);
    let ask = |id: usize| json!({ "jsonrpc": "2.0", "id": id, "method": "whoami" });
    let one = line.call("whoami", &json!({})).to_string().len();
    let fit = 65_536 / (one + 10);
    // As many as fit are answered, and one may come on top.
    line.send(&batch(1000, ask));
    let answer = line.receive().unwrap();
    let answers = answer.as_array().unwrap();
    assert_eq!(answers.len(), 1000);
    let carried_out = answers.iter().take_while(|answer| answer["result"].is_object()).count();
    assert!((fit..fit + 20).contains(&carried_out), "{carried_out} of about {fit}");
    for (id, refused) in answers.iter().enumerate().skip(carried_out) {
        assert_eq!((&refused["error"]["code"], &refused["id"]), (&json!(-32003), &json!(id)));
        assert!(refused["error"]["message"].as_str().unwrap().contains("limits.queued_bytes"));
    }
    line.send(&batch(carried_out, ask));
    let answer = line.receive().unwrap();
    assert!(answer.as_array().unwrap().iter().all(|answer| answer["result"].is_object()));
    // Single lines wait for each other instead.
    let many: String = (0..1000).map(|id| format!("{}\n", ask(id))).collect();
    let mut sending = line.stream().try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || sending.write_all(many.as_bytes()).unwrap());
        for id in 0..1000 {
            let answer = line.receive().unwrap();
            assert!(answer["result"].is_object() && answer["id"] == id, "{answer}");
        }
    });
}

#[test]
fn a_session_that_ends_itself_within_a_batch_hears_what_was_answered_and_no_more_is_done() {
    let (ground, _daemon) = served_with("");
    let mut owner = owner(&ground);
    let (token, verifier) = minted();
    let wish = json!({ "name": "n", "binding": "uid", "verifier": verifier });
    let made = owner.call("session.create", &wish);
    let mut line = Line::connect(&ground.init_socket());
    assert_eq!(line.plain(&token.reveal())["success"], true);
    assert!(owner.call("events.subscribe", &json!({ "subjects": ["n"] }))["result"].is_object());
    line.send(&format!(
        "{}\n",
        json!([
            { "jsonrpc": "2.0", "id": 1, "method": "ping" },
            { "jsonrpc": "2.0", "id": 2, "method": "session.revoke" },
            { "jsonrpc": "2.0", "id": 3, "method": "events.publish", "params": { "subject": "n" } },
        ])
    ));
    let answer = line.receive().unwrap();
    let ids: Vec<&Value> = answer.as_array().unwrap().iter().map(|answer| &answer["id"]).collect();
    assert_eq!(ids, [&json!(1), &json!(2)], "{answer}");
    let last = line.receive().unwrap();
    assert_eq!(
        (&last["method"], &last["params"]["id"]),
        (&json!("session.ended"), &made["result"]["session"]["id"])
    );
    assert_eq!(line.receive(), None);
    assert_eq!(owner.call("ping", &json!({}))["result"]["pong"], true, "nothing was published");
}

#[cfg(target_os = "linux")] // strace
#[test]
fn answers_to_what_came_together_leave_together() {
    if crate::faults::skip_without_strace() {
        return;
    }
    let (ground, daemon) = served_with("");
    let mut line = owner(&ground);
    let sent: String = (0..20)
        .map(|id| format!("{}\n", json!({ "jsonrpc": "2.0", "id": id, "method": "ping" })))
        .chain([batch(3, |id| json!({ "jsonrpc": "2.0", "id": 100 + id, "method": "ping" }))])
        .collect();
    let calls = "trace=read,readv,recvfrom,recvmsg,write,writev,sendto,sendmsg";
    let watch = crate::faults::Watch::with(&ground, daemon.child.id(), &["-s", "65536", "-e", calls]);
    // One write is one piece of a stream's queue (unix(7)), so that it comes in one read.
    assert_eq!(line.stream().write(sent.as_bytes()).unwrap(), sent.len());
    for _ in 0..21 {
        line.receive().unwrap();
    }
    let trace = watch.end_and_tell();
    let with = |words: &str| trace.lines().filter(|call| call.contains(words)).collect::<Vec<_>>();
    let (reads, writes) = (with(r#"\"method\":\"ping\""#), with(r#"\"pong\":true"#));
    assert_eq!((reads.len(), writes.len()), (1, 1), "{trace}");
    assert_eq!((reads[0].matches(r"}\n").count(), writes[0].matches("pong").count()), (20, 23), "{trace}");
}
