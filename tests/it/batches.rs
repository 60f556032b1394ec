//! Requests and batches at their ends: limits to the byte, clients that leave, sessions that end in the middle, and the same over HTTP.

use std::io::{BufRead, BufReader, PipeReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;

use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::ground::{Daemon, Ground, Line, PATIENCE, connected, minted, owner, refusal, served_with};

fn served() -> (Ground, Daemon) {
    served_with("")
}

/// The parameters of a session that is bound to the user, so that this process may be in several; and its token.
fn wish(name: &str) -> (Value, String) {
    let (token, verifier) = minted();
    (json!({ "name": name, "binding": "uid", "verifier": verifier }), token.reveal().to_string())
}

/// A session, and a connection in it.
fn joined(ground: &Ground, owner: &mut Line, name: &str) -> (String, String, Line) {
    let (wish, token) = wish(name);
    let made = owner.call("session.create", &wish);
    let id = made["result"]["session"]["id"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
    let line = connected(ground, &token);
    (id, token, line)
}

fn request(id: impl Into<Value>, method: &str, params: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": id.into(), "method": method, "params": params })
}

fn notification(method: &str, params: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "method": method, "params": params })
}

fn ping(id: impl Into<Value>) -> Value {
    request(id, "ping", &json!({}))
}

/// What a request for a session does can be seen by its name.
fn names(line: &mut Line) -> Vec<String> {
    let listed = line.call("session.list", &json!({ "all_realms": true }));
    let sessions = listed["result"]["sessions"].as_array().unwrap_or_else(|| panic!("{listed}"));
    let mut names: Vec<String> =
        sessions.iter().map(|session| session["name"].as_str().unwrap().to_owned()).collect();
    names.sort_unstable();
    names
}

/// Has a daemon stand still until it is let go on; what is sent meanwhile is there all at once.
pub fn stop(daemon: &Daemon) {
    daemon.signal(Signal::SIGSTOP);
    let pid = Pid::from_raw(daemon.child.id().try_into().unwrap());
    let status = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
    assert!(matches!(status, WaitStatus::Stopped(..)), "{status:?}");
}

/// A POST of this body: the status, and what was answered.
fn post(ground: &Ground, token: &str, body: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(ground.init_socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!(
        "POST /v1/rpc HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, rest) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}"));
    (head.split(' ').nth(1).unwrap().parse().unwrap(), rest.to_owned())
}

/// An answer with its error by the number alone; there is nothing else in it than there must be.
fn brief(answer: &Value) -> Value {
    if let Some(answers) = answer.as_array() {
        return answers.iter().map(brief).collect();
    }
    assert_eq!(answer["jsonrpc"], "2.0", "{answer}");
    let members = answer.as_object().unwrap();
    assert!(members.len() == 3 && members.contains_key("id"), "{answer}");
    match answer.get("error") {
        None => json!({ "id": answer["id"], "result": answer["result"] }),
        Some(error) => {
            assert!(!error["message"].as_str().unwrap().is_empty(), "{answer}");
            json!({ "id": answer["id"], "error": error["code"] })
        }
    }
}

// The specification

#[test]
fn a_batch_of_many_turns_and_what_is_sent_around_it_are_carried_out_and_answered_in_order() {
    let (ground, daemon) = served();
    let mut line = owner(&ground);
    let publish = |id: Value| request(id, "events.publish", &json!({ "subject": "a" }));
    let of_batch = |from: usize| (from..from + 300).map(|id| publish(id.into())).collect::<Value>();
    let text = format!(
        "{}\n{}\n{}\n{}\n{}\n",
        publish("first".into()),
        of_batch(0),
        publish("between".into()),
        of_batch(300),
        publish("last".into())
    );
    // All of it is there at once, so that nothing but its order keeps one from another's turn.
    stop(&daemon);
    line.send(&text);
    daemon.signal(Signal::SIGCONT);
    let mut answers = Vec::new();
    for of_batch in [0, 300, 0, 300, 0] {
        let answer = line.receive().unwrap();
        assert_eq!(answer.as_array().map_or(0, Vec::len), of_batch);
        match answer {
            Value::Array(of_batch) => answers.extend(of_batch),
            one => answers.push(one),
        }
    }
    // Each has the number that it was carried out as.
    let seqs: Vec<u64> = answers.iter().map(|answer| answer["result"]["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (1..=603).collect::<Vec<u64>>());
    let ids: Vec<Value> = answers.iter().map(|answer| answer["id"].clone()).collect();
    let expected: Vec<Value> = std::iter::once("first".into())
        .chain((0..300).map(Value::from))
        .chain(["between".into()])
        .chain((300..600).map(Value::from))
        .chain(["last".into()])
        .collect();
    assert_eq!(ids, expected);
}

#[test]
fn a_body_over_http_is_answered_as_a_line_is() {
    let (ground, _daemon) = served();
    let mut line = owner(&ground);
    let pong = |id: Value| json!({ "id": id, "result": { "pong": true } });
    let none = |id: Value| json!({ "id": id, "result": { "sessions": [], "next": null } });
    let error = |id: Value, code: i64| json!({ "id": id, "error": code });
    let null = Value::Null;
    // The shapes of the specification's section 7.
    let table: Vec<(&str, &str, Option<Value>)> = vec![
        (
            "by position",
            r#"{"jsonrpc": "2.0", "method": "ping", "params": [], "id": 1}"#,
            Some(pong(json!(1))),
        ),
        (
            "by position, where there are names only",
            r#"{"jsonrpc": "2.0", "method": "session.list", "params": [true, "default"], "id": 2}"#,
            Some(error(json!(2), -32602)),
        ),
        (
            "by name",
            r#"{"jsonrpc": "2.0", "method": "session.list", "params": {"ended": true, "realm": "default"}, "id": 3}"#,
            Some(none(json!(3))),
        ),
        (
            "by name, the other way round",
            r#"{"jsonrpc": "2.0", "method": "session.list", "params": {"realm": "default", "ended": true}, "id": 4}"#,
            Some(none(json!(4))),
        ),
        (
            "a notification",
            r#"{"jsonrpc": "2.0", "method": "session.list", "params": {"ended": true}}"#,
            None,
        ),
        ("a notification without parameters", r#"{"jsonrpc": "2.0", "method": "ping"}"#, None),
        (
            "a notification of what is not there",
            r#"{"jsonrpc": "2.0", "method": "nothing", "params": [1]}"#,
            None,
        ),
        (
            "a method that is not there",
            r#"{"jsonrpc": "2.0", "method": "nothing", "id": "1"}"#,
            Some(error(json!("1"), -32601)),
        ),
        (
            "no JSON",
            r#"{"jsonrpc": "2.0", "method": "ping, "params": "bar", "baz]"#,
            Some(error(null.clone(), -32700)),
        ),
        (
            "no request",
            r#"{"jsonrpc": "2.0", "method": 1, "params": "bar"}"#,
            Some(error(null.clone(), -32600)),
        ),
        (
            "a batch that is no JSON",
            r#"[{"jsonrpc": "2.0", "method": "ping", "params": [], "id": "1"}, {"jsonrpc": "2.0", "method"]"#,
            Some(error(null.clone(), -32700)),
        ),
        ("an empty list", "[]", Some(error(null.clone(), -32600))),
        ("a list of something else", "[1]", Some(json!([error(null.clone(), -32600)]))),
        (
            "a list of several of that",
            "[1,2,3]",
            Some(json!([
                error(null.clone(), -32600),
                error(null.clone(), -32600),
                error(null.clone(), -32600)
            ])),
        ),
        (
            "a mixed list",
            r#"[
                {"jsonrpc": "2.0", "method": "ping", "params": [], "id": "1"},
                {"jsonrpc": "2.0", "method": "session.list", "params": {"ended": true}},
                {"jsonrpc": "2.0", "method": "ping", "params": {}, "id": "2"},
                {"foo": "boo"},
                {"jsonrpc": "2.0", "method": "nothing.at.all", "params": {"name": "myself"}, "id": "5"},
                {"jsonrpc": "2.0", "method": "ping", "id": "9"}
            ]"#,
            Some(json!([
                pong(json!("1")),
                pong(json!("2")),
                error(null.clone(), -32600),
                error(json!("5"), -32601),
                pong(json!("9")),
            ])),
        ),
        (
            "a list of notifications",
            r#"[{"jsonrpc": "2.0", "method": "ping", "params": [1]}, {"jsonrpc": "2.0", "method": "nothing"}]"#,
            None,
        ),
    ];
    for (number, (what, text, expected)) in table.iter().enumerate() {
        // What is not answered is known by what is answered next.
        let mark = ping(format!("mark {number}"));
        line.send(&format!("{}\n{mark}\n", text.replace('\n', " ")));
        if let Some(expected) = expected {
            assert_eq!(brief(&line.receive().unwrap()), *expected, "{what}");
        }
        assert_eq!(brief(&line.receive().unwrap()), pong(mark["id"].clone()), "{what}");
        // Over HTTP a text is a body, in which lines may end where they like.
        let (status, body) = post(&ground, &ground.token(), text);
        match expected {
            Some(expected) => {
                assert_eq!(brief(&serde_json::from_str(&body).unwrap()), *expected, "{what}");
                assert_eq!((status, body.contains('\n')), (200, false), "{what}");
            }
            None => assert_eq!((status, body.as_str()), (204, ""), "{what}"),
        }
    }
}

#[test]
fn ids_in_a_batch_come_back_byte_for_byte() {
    let (ground, _daemon) = served();
    let line = owner(&ground);
    let ids = [
        "null",
        "\"\"",
        r#""],[""#,
        r#""ä\u0041\"\\""#,
        "-0",
        "1.0",
        "0.10",
        "1e400",
        "18446744073709551616",
        "123456789012345678901234567890",
    ];
    let items: Vec<String> = ids
        .iter()
        .map(|id| format!("{{ \"id\" : {id} , \"jsonrpc\":\"2.0\",\"method\":\"ping\"}}"))
        .collect();
    let mut reader = BufReader::new(line.stream().try_clone().unwrap());
    reader.get_mut().write_all(format!(" [ {} ]\r\n", items.join(" ,\t")).as_bytes()).unwrap();
    let mut answer = String::new();
    reader.read_line(&mut answer).unwrap();
    let answers: Vec<String> = ids
        .iter()
        .map(|id| format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{\"pong\":true}}}}"))
        .collect();
    assert_eq!(answer, format!("[{}]\n", answers.join(",")));
    // What is no id is none of its own item only.
    let bad =
        ["true", "{}", "[1]"].map(|id| format!("{{\"id\":{id},\"jsonrpc\":\"2.0\",\"method\":\"ping\"}}"));
    reader.get_mut().write_all(format!("[{},{}]\n", bad.join(","), ping(7)).as_bytes()).unwrap();
    answer.clear();
    reader.read_line(&mut answer).unwrap();
    let answers = brief(&serde_json::from_str(&answer).unwrap());
    let codes: Vec<_> = answers.as_array().unwrap().iter().map(|answer| answer["error"].as_i64()).collect();
    assert_eq!(codes, [Some(-32600), Some(-32600), Some(-32600), None]);
}

#[test]
fn a_batch_in_pieces_is_one_line_and_one_answer() {
    let (ground, _daemon) = served();
    let mut line = owner(&ground);
    // More than one turn has, in pieces that end anywhere.
    let batch = format!("{}\n", (0..100).map(ping).collect::<Value>());
    for piece in batch.as_bytes().chunks(97) {
        line.stream().write_all(piece).unwrap();
    }
    let answers = brief(&line.receive().unwrap());
    let ids: Vec<_> =
        answers.as_array().unwrap().iter().map(|answer| answer["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, (0..100).collect::<Vec<_>>());
    assert_eq!(line.call("ping", &json!({}))["result"]["pong"], true);
}

#[test]
fn a_handshake_in_a_batch_is_no_request_and_is_not_repeated() {
    let (ground, _daemon) = served();
    let token = ground.token_after_first_contact();
    let mut line = connected(&ground, &token);
    line.send(&format!("[{},{}]\n", json!({ "type": "auth", "token": token }), ping(1)));
    let answer = line.receive().unwrap();
    assert!(!answer.to_string().contains(&token), "{answer}");
    assert_eq!(
        brief(&answer),
        json!([{ "id": null, "error": -32600 }, { "id": 1, "result": { "pong": true } }])
    );
}

// Limits

#[test]
fn a_batch_has_as_many_requests_as_the_limit_says_or_none_of_them_is_carried_out() {
    let (ground, _daemon) = served_with("[limits]\nrequests_in_flight = 4\n");
    let mut line = owner(&ground);
    let (wish, _) = wish("one too many");
    let four = [ping(1), notification("ping", &json!({})), json!(3), ping(4)];
    line.send_json(&json!(four));
    let ids = |answer: &Value| {
        answer.as_array().unwrap().iter().map(|answer| answer["id"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(ids(&line.receive().unwrap()), [json!(1), Value::Null, json!(4)]);
    // Whatever counts as one of them, a notification too.
    for first in [request(0, "session.create", &wish), notification("session.create", &wish)] {
        let five = json!([first, four[0], four[1], four[2], four[3]]);
        line.send_json(&five);
        let answer = line.receive().unwrap();
        assert_eq!(brief(&answer), json!({ "id": null, "error": -32003 }));
        let words = answer["error"]["message"].as_str().unwrap();
        assert!(words.contains("limits.requests_in_flight") && words.contains(" 4 "), "{words}");
        let (status, body) = post(&ground, &ground.token(), &five.to_string());
        assert_eq!((status, serde_json::from_str::<Value>(&body).unwrap()), (200, answer));
    }
    assert_eq!(names(&mut line), ["owner"]);
    // Of single requests there may be more.
    line.send(&(0..9).map(|id| format!("{}\n", ping(id))).collect::<String>());
    for id in 0..9 {
        assert_eq!(line.receive().unwrap()["id"], id);
    }
}

#[test]
fn a_batch_is_answered_up_to_its_bytes_and_the_rest_is_refused_by_name() {
    const MOST: usize = 65_536;
    let (ground, _daemon) = served_with(&format!("[limits]\nqueued_bytes = {MOST}\n"));
    let mut line = owner(&ground);
    let empty = r#"{"jsonrpc":"2.0","id":"","result":{"pong":true}}"#.len();
    for (length, is_reached) in [(MOST - 1, false), (MOST, true)] {
        // The first answer is that long.
        let id = "x".repeat(length - empty);
        let (in_time, (late, _)) = (wish("in time").0, wish("too late"));
        let quiet = wish("a notification").0;
        line.send_json(&json!([
            ping(id.as_str()),
            request(2, "session.create", if is_reached { &late } else { &in_time }),
            notification("session.create", &quiet),
            json!("no request"),
            ping(5),
        ]));
        let answers = line.receive().unwrap();
        assert_eq!(answers[0]["id"], id.as_str());
        // The second answer is the one that comes on top.
        for (place, id) in [(1, json!(2)), (3, json!(5))] {
            let refused = is_reached || place == 3;
            assert_eq!(answers[place]["id"], id);
            assert_eq!(answers[place]["error"].is_object(), refused, "{}", answers[place]);
            if refused {
                let words = answers[place]["error"]["message"].as_str().unwrap();
                assert_eq!(answers[place]["error"]["code"], -32003);
                assert!(words.contains("limits.queued_bytes"), "{words}");
            }
        }
        assert_eq!(answers[2]["error"]["code"], -32600);
        assert_eq!(answers.as_array().unwrap().len(), 4);
    }
    let names = names(&mut line);
    assert_eq!(names.iter().filter(|name| *name == "too late").count(), 0, "{names:?}");
    assert_eq!(names.iter().filter(|name| *name == "in time").count(), 1, "{names:?}");
    assert_eq!(names.iter().filter(|name| *name == "a notification").count(), 0, "{names:?}");
    // The next batch begins anew.
    line.send_json(&json!([ping(1)]));
    assert_eq!(brief(&line.receive().unwrap()), json!([{ "id": 1, "result": { "pong": true } }]));
}

#[test]
fn a_batch_may_be_as_long_as_a_line_and_not_longer() {
    let (ground, _daemon) = served_with("[limits]\nrequest_line_bytes = 4096\n");
    let of_length = |length: usize| {
        let bare = format!("[{}]\n", ping(""));
        format!("[{}]\n", ping("x".repeat(length - bare.len())))
    };
    let mut line = owner(&ground);
    line.send(&of_length(4096));
    assert_eq!(line.receive().unwrap()[0]["result"]["pong"], true);
    line.send(&of_length(4097));
    let answer = line.receive().unwrap();
    assert_eq!(brief(&answer), json!({ "id": null, "error": -32004 }));
    assert!(answer["error"]["message"].as_str().unwrap().contains("limits.request_line_bytes"), "{answer}");
    assert_eq!(line.rest(), b"");
}

#[test]
fn answers_over_http_may_be_longer_than_what_is_written_at_once_to_those_who_stay() {
    let (ground, _daemon) = served();
    let token = ground.token_after_first_contact();
    let batch: Value = (0..500).map(|id| request(id, "whoami", &json!({}))).collect();
    let (status, body) = post(&ground, &token, &batch.to_string());
    assert!(body.len() > 2 * 65_536);
    let answers: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, answers.as_array().unwrap().len()), (200, 500));
}

// Turns

#[test]
fn a_huge_batch_holds_nobody_else_up() {
    let ground = Ground::new();
    let daemon = ground.serve_as(|command| {
        command.env("AUTHSOCK_LOG", "debug");
    });
    // When the second one hears that it is in, the daemon has nothing more to do for the first.
    let mut other = owner(&ground);
    let mut busy = connected(&ground, &ground.token());
    let before = daemon.stderr().len();
    // Both are there when the daemon looks, the batch before the other, and it is read at once (64 KiB). Before it is one
    // request that shows whose turn was first: to read the batch through may be all that fits into a turn.
    stop(&daemon);
    let batch: Value =
        (0..1024).map(|id| json!({ "jsonrpc": "2.0", "id": id, "method": "whoami" })).collect();
    let text = format!("{}\n{batch}\n", request("first", "whoami", &json!({})));
    assert!(text.len() < 65_536);
    busy.send(&text);
    other.send_json(&ping(1));
    daemon.signal(Signal::SIGCONT);
    assert_eq!(other.receive().unwrap()["result"]["pong"], true);
    assert_eq!(busy.receive().unwrap()["id"], "first");
    assert_eq!(busy.receive().unwrap().as_array().unwrap().len(), 1024);
    // The log has them in the order in which they were carried out.
    let log = daemon.stderr()[before..].to_owned();
    let order: Vec<&str> =
        ["whoami by process", "ping by process"].iter().flat_map(|words| log.matches(words)).collect();
    assert_eq!(order.len(), 1026, "{log}");
    let before_it = log.split("ping by process").next().unwrap().matches("whoami by process").count();
    assert!((1..=64).contains(&before_it), "after {before_it} of the other's");
}

/// A daemon that logs into a pipe, and so stands still before long until the log is read.
fn served_with_a_log_that_fills() -> (Ground, Daemon, Log) {
    let ground = Ground::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let daemon = ground.serve_as(|command| {
        command.env("AUTHSOCK_LOG", "debug").stderr(writer);
    });
    (ground, daemon, Log(BufReader::new(reader)))
}

struct Log(BufReader<PipeReader>);

impl Log {
    /// Reads up to a line with these words; says how many pings were carried out until then.
    fn read_to(&mut self, words: &str) -> usize {
        let mut pings = 0;
        loop {
            let mut line = String::new();
            assert_ne!(self.0.read_line(&mut line).unwrap(), 0, "the log ended without {words}");
            pings += usize::from(line.contains("ping by process"));
            if line.contains(words) {
                return pings;
            }
        }
    }

    /// Reads on until the daemon ends.
    fn read_on(mut self) -> thread::JoinHandle<()> {
        thread::spawn(move || {
            let _ = std::io::copy(&mut self.0, &mut std::io::sink());
        })
    }
}

/// More of them than the log of them fits into a pipe (pipe(7): 65536 bytes).
const MANY: usize = 1000;

// Whoever leaves

type Leave = fn(UnixStream) -> Option<UnixStream>;

/// What is not to be carried out, since it is answered, and what is, since it is not.
fn asked_and_told() -> (Value, Value) {
    (request(1, "session.create", &wish("asked").0), notification("session.create", &wish("told").0))
}

fn only_told(line: &mut Line) {
    assert_eq!(names(line), ["owner", "told"]);
}

#[test]
fn who_has_left_is_not_asked_for_but_what_it_told_is_carried_out() {
    let ways: [(&str, Leave); 3] = [
        ("closes", |_| None),
        ("shuts down", |stream| stream.shutdown(Shutdown::Both).ok().map(|()| stream)),
        ("reads no more", |stream| stream.shutdown(Shutdown::Read).ok().map(|()| stream)),
    ];
    for (way, leave) in ways {
        for in_a_batch in [false, true] {
            let (ground, daemon) = served();
            let mut other = owner(&ground);
            let leaver = connected(&ground, &ground.token());
            let mut stream = leaver.stream().try_clone().unwrap();
            drop(leaver);
            let (asked, told) = asked_and_told();
            // More than one turn, so that a write fails before if nothing else tells; and more than is read at once.
            let mut text: String = (0..2000).map(|id| format!("{}\n", ping(id))).collect();
            text += &if in_a_batch {
                format!("{}\n", json!([asked, told]))
            } else {
                format!("{asked}\n{told}\n")
            };
            stop(&daemon);
            stream.write_all(text.as_bytes()).unwrap();
            let _stream = leave(stream);
            daemon.signal(Signal::SIGCONT);
            assert!(text.len() > 65_536);
            let logged = daemon.wait_for_log("(told)");
            assert!(logged.contains("began"), "{way}: {logged}");
            only_told(&mut other);
        }
    }
}

#[test]
fn who_leaves_behind_the_handshake_is_not_asked_for_either() {
    let (ground, daemon) = served();
    let mut other = owner(&ground);
    let (asked, told) = asked_and_told();
    stop(&daemon);
    let mut stream = UnixStream::connect(ground.init_socket()).unwrap();
    let auth = json!({ "type": "auth", "token": ground.token() });
    stream.write_all(format!("{auth}\n{asked}\n{told}\n").as_bytes()).unwrap();
    drop(stream);
    daemon.signal(Signal::SIGCONT);
    daemon.wait_for_log("(told)");
    only_told(&mut other);
}

#[test]
fn who_leaves_while_it_is_written_to_has_told_all_the_same_what_it_told() {
    let (ground, daemon) = served();
    let mut other = owner(&ground);
    // Whether the daemon reads or writes first is its own choice. All come before this process leads a session.
    let leavers: Vec<Line> = (0..8).map(|_| connected(&ground, &ground.token())).collect();
    for (round, mut leaver) in leavers.into_iter().enumerate() {
        let subscribed = leaver.call("events.subscribe", &json!({ "subjects": ["a"] }));
        assert!(subscribed["result"].is_object(), "{subscribed}");
        stop(&daemon);
        other.send_json(&request(1, "events.publish", &json!({ "subject": "a" })));
        let told = notification("session.create", &wish(&format!("told {round}")).0);
        leaver.send(&format!("{told}\n"));
        drop(leaver);
        daemon.signal(Signal::SIGCONT);
        assert!(other.receive().unwrap()["result"].is_object());
        daemon.wait_for_log(&format!("(told {round})"));
    }
}

#[test]
fn who_leaves_without_having_read_its_answers_is_not_asked_for_what_comes_after_them() {
    let (ground, daemon) = served();
    let mut other = owner(&ground);
    let mut leaver = connected(&ground, &ground.token());
    let (asked, told) = asked_and_told();
    // Their answers are more than a socket holds (net.core.wmem_default), so that the daemon cannot be past them.
    let text: String = (0..2000).map(|id| format!("{}\n", request(id, "whoami", &json!({})))).collect();
    leaver.send(&format!("{text}{asked}\n{told}\n"));
    drop(leaver);
    daemon.wait_for_log("(told)");
    only_told(&mut other);
}

#[test]
fn who_leaves_within_a_batch_is_not_asked_for_the_rest_of_it() {
    let (ground, _daemon, mut log) = served_with_a_log_that_fills();
    let mut other = owner(&ground);
    let mut leaver = connected(&ground, &ground.token());
    let (asked, told) = asked_and_told();
    let mut items: Vec<Value> = (0..MANY).map(ping).collect();
    items.extend([asked, told]);
    leaver.send_json(&items.into());
    log.read_to("ping by process");
    drop(leaver);
    let pings = log.read_to("(told)");
    assert!(pings + 1 < MANY, "it had begun, and did not go on: {pings}");
    only_told(&mut other);
}

#[test]
fn who_only_says_no_more_is_still_answered_everything() {
    let (ground, daemon) = served();
    let mut line = owner(&ground);
    stop(&daemon);
    let batch: Value = (0..100).map(ping).collect();
    line.send(&format!("{batch}\n{}\n", request(7, "session.create", &wish("asked").0)));
    line.stream().shutdown(Shutdown::Write).unwrap();
    daemon.signal(Signal::SIGCONT);
    assert_eq!(line.receive().unwrap().as_array().unwrap().len(), 100);
    assert_eq!(line.receive().unwrap()["result"]["session"]["name"], "asked");
    assert_eq!(line.rest(), b"");
}

#[test]
fn who_leaves_over_http_is_not_asked_for_but_what_it_told_is_carried_out() {
    let (ground, daemon) = served();
    let mut other = owner(&ground);
    let (asked, told) = asked_and_told();
    let body = json!([asked, told]).to_string();
    stop(&daemon);
    let mut stream = UnixStream::connect(ground.init_socket()).unwrap();
    let head = format!(
        "POST /v1/rpc HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        ground.token(),
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    drop(stream);
    daemon.signal(Signal::SIGCONT);
    daemon.wait_for_log("(told)");
    only_told(&mut other);
}

// Sessions that end or change within a batch

fn ended(id: &str) -> Value {
    json!({ "jsonrpc": "2.0", "method": "session.ended", "params": { "id": id, "reason": "revoked" } })
}

#[test]
fn a_session_that_ends_itself_within_a_batch_hears_what_was_answered_and_that_it_ended() {
    let (ground, _daemon) = served();
    let mut owner = owner(&ground);
    let (id, _, mut line) = joined(&ground, &mut owner, "ends");
    let (asked, told) = asked_and_told();
    // More answers than a socket holds, which whoever reads gets all the same.
    let mut items: Vec<Value> = (0..800).map(|id| request(id, "whoami", &json!({}))).collect();
    items.extend([request("end", "session.revoke", &json!({})), told, asked, ping("late")]);
    line.send(&format!("{}\n{}\n", Value::from(items), ping("later")));
    let mut answers = line.receive().unwrap();
    let answers = answers.as_array_mut().unwrap();
    let revoked = answers.pop().unwrap();
    assert_eq!(brief(&revoked), json!({ "id": "end", "result": { "id": id, "ended": 1 } }));
    assert_eq!(answers.len(), 800);
    assert!(answers.iter().all(|answer| answer["result"]["session"]["id"] == *id));
    assert_eq!(line.receive(), Some(ended(&id)));
    assert_eq!(line.rest(), b"");
    // Whoever has nothing to hear of the batch hears no list.
    let (id, _, mut line) = joined(&ground, &mut owner, "ends");
    line.send_json(&json!([notification("session.revoke", &json!({})), ping(1)]));
    assert_eq!(line.receive(), Some(ended(&id)));
    assert_eq!(line.rest(), b"");
    assert_eq!(names(&mut owner), ["owner"]);
}

#[test]
fn a_session_that_is_ended_within_a_batch_hears_what_was_answered_and_that_it_ended() {
    let (ground, daemon, mut log) = served_with_a_log_that_fills();
    let mut owner = owner(&ground);
    let (id, _, mut line) = joined(&ground, &mut owner, "ended");
    line.send_json(&(0..MANY).map(ping).collect());
    log.read_to("ping by process");
    owner.send_json(&request(1, "session.revoke", &json!({ "id": id })));
    let reading = log.read_on();
    let answers = brief(&line.receive().unwrap());
    let answers = answers.as_array().unwrap();
    assert!((1..MANY).contains(&answers.len()), "{}", answers.len());
    for (place, answer) in answers.iter().enumerate() {
        assert_eq!(*answer, json!({ "id": place, "result": { "pong": true } }));
    }
    assert_eq!(line.receive(), Some(ended(&id)));
    assert_eq!(line.rest(), b"");
    assert_eq!(owner.receive().unwrap()["result"]["ended"], 1);
    drop(daemon);
    reading.join().unwrap();
}

#[test]
fn what_a_session_may_is_looked_at_anew_for_each_item_of_a_batch() {
    let (ground, _daemon) = served();
    let mut owner = owner(&ground);
    let narrow = json!({ "scopes": ["session:self"] });
    let rotate = json!({ "verifier": minted().1, "grace_seconds": 60 });
    for (method, params) in [("session.update", narrow), ("session.rotate", rotate)] {
        let (_, token, mut line) = joined(&ground, &mut owner, "changes");
        let (asked, _) = asked_and_told();
        line.send_json(&json!([request(0, method, &params), asked, ping(2)]));
        let answers = line.receive().unwrap();
        assert!(answers[0]["result"].is_object(), "{answers}");
        assert_eq!(answers[1]["error"]["code"], -32001, "{answers}");
        assert_eq!(answers[2]["result"]["pong"], true, "{answers}");
        // So it is over HTTP, with what it has left.
        let (status, body) = post(&ground, &token, &json!([asked, ping(2)]).to_string());
        let answers: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &answers[0]["error"]["code"]), (200, &json!(-32001)), "{answers}");
    }
    assert_eq!(names(&mut owner), ["changes", "changes", "owner"]);
}

#[test]
fn a_session_that_ends_within_a_batch_over_http_is_told_what_was_answered_or_that_its_token_is_worth_nothing()
{
    let (ground, _daemon) = served();
    let mut owner = owner(&ground);
    let revoke = notification("session.revoke", &json!({}));
    let (id, token, _line) = joined(&ground, &mut owner, "ends");
    let (status, body) = post(
        &ground,
        &token,
        &json!([ping(1), request(2, "session.revoke", &json!({})), ping(3)]).to_string(),
    );
    assert_eq!(status, 200, "{body}");
    assert_eq!(
        brief(&serde_json::from_str(&body).unwrap()),
        json!([
            { "id": 1, "result": { "pong": true } },
            { "id": 2, "result": { "id": id, "ended": 1 } },
        ])
    );
    assert_eq!(refusal(&Line::connect(&ground.init_socket()).plain(&token)), "revoked");
    for (body, expected) in [(json!([revoke, ping(1)]), 401), (json!([revoke]), 204), (revoke.clone(), 204)] {
        let (_, token, _line) = joined(&ground, &mut owner, "ends");
        let (status, said) = post(&ground, &token, &body.to_string());
        assert_eq!(status, expected, "{body}: {said}");
    }
    assert_eq!(names(&mut owner), ["owner"]);
}
