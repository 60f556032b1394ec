//! The gate under strangers: limits at their edges, deadlines, and nothing for those who have not authenticated.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::ground::{Ground, Line, PATIENCE, refusal};

const LINE_MAX: usize = 4096;

/// A plain opening that is exactly so many bytes long, its newline included.
fn opening_of(length: usize, token: &str) -> String {
    let bare = format!("{{\"type\":\"auth\",\"token\":\"{token}\",\"pad\":\"\"}}\n");
    bare.replace("\"\"", &format!("\"{}\"", "x".repeat(length - bare.len())))
}

#[test]
fn a_line_of_the_longest_length_is_taken_and_one_byte_more_is_refused() {
    let ground = Ground::new();
    let _daemon = ground.serve();
    let token = ground.token_after_first_contact();
    let longest = opening_of(LINE_MAX, &token);
    assert_eq!(longest.len(), LINE_MAX);
    let mut client = Line::connect(&ground.init_socket());
    client.send(&longest);
    assert_eq!(client.receive().unwrap()["success"], true);
    let mut client = Line::connect(&ground.init_socket());
    client.send(&opening_of(LINE_MAX + 1, &token));
    assert_eq!(refusal(&client.receive().unwrap()), "too_large");
    assert_eq!(client.receive(), None);
}

#[test]
#[cfg(target_os = "linux")]
fn ten_megabytes_without_a_newline_end_at_the_limit_and_cost_no_memory() {
    let ground = Ground::new();
    let daemon = ground.serve();
    ground.token_after_first_contact();
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let before = resident();
    for _ in 0..20 {
        let mut stream = UnixStream::connect(ground.init_socket()).unwrap();
        let chunk = [b'{'; 64 * 1024];
        let mut sent = 0;
        while sent < 10 << 20 {
            match stream.write(&chunk) {
                Ok(written) => sent += written,
                Err(_) => break,
            }
        }
        assert!(sent < 10 << 20, "the daemon closed early");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        assert!(answer.contains("too_large"), "{answer}");
    }
    assert!(resident() < before + 2048, "{before} kB before, {} kB after", resident());
}

#[test]
fn a_client_that_dawdles_is_cut_off_at_the_deadline_whatever_it_sends() {
    let ground = Ground::new();
    ground.configure("[handshake]\ntimeout_seconds = 1\n");
    let _daemon = ground.serve();
    ground.token_after_first_contact();
    let started = Instant::now();
    let mut silent = Line::connect(&ground.init_socket());
    let mut dripping = UnixStream::connect(ground.init_socket()).unwrap();
    let mut copy = dripping.try_clone().unwrap();
    let drip = std::thread::spawn(move || {
        // One byte every 100 ms would keep any timeout alive that starts anew with each byte.
        for byte in "{\"type\":\"auth\",\"token\":\"".bytes().cycle() {
            if copy.write_all(&[byte]).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let mut answer = String::new();
    let _ = dripping.read_to_string(&mut answer);
    let took = started.elapsed();
    assert!(answer.contains("\"timeout\""), "{answer}");
    assert_eq!(refusal(&silent.receive().unwrap()), "timeout");
    assert!(took >= Duration::from_millis(900), "not before its time: {took:?}");
    drip.join().unwrap();
}

#[test]
fn more_unauthenticated_connections_than_fit_are_told_busy_and_places_come_back() {
    let ground = Ground::new();
    ground.configure("[handshake]\nunauthenticated_per_uid = 3\ntimeout_seconds = 60\n");
    let daemon = ground.serve();
    let token = ground.token_after_first_contact();
    let mut waiting: Vec<Line> = (0..3)
        .map(|_| {
            let mut client = Line::connect(&ground.init_socket());
            // It is certainly seated once its line was read as far as it goes.
            client.send("{");
            client
        })
        .collect();
    let mut fourth = Line::connect(&ground.init_socket());
    assert_eq!(refusal(&fourth.receive().unwrap()), "busy", "before it said anything");
    assert!(daemon.wait_for_log("busy").contains("of this user"));
    // A client of ours waits and tries again; it gets in as soon as there is a place.
    let patient = ground.authsock(["whoami"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    waiting.pop();
    let output = patient.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(Line::connect(&ground.init_socket()).plain(&token)["success"], true);
}

#[test]
fn more_authenticated_connections_than_fit_are_told_busy() {
    let ground = Ground::new();
    ground.configure("[limits]\nconnections_per_uid = 2\n");
    let _daemon = ground.serve();
    let token = ground.token_after_first_contact();
    let mut seated = Vec::new();
    while seated.len() < 2 {
        let mut client = Line::connect(&ground.init_socket());
        let result = client.plain(&token);
        // The client before may not have been seen off yet.
        if result["success"] == true {
            seated.push(client);
        } else {
            assert_eq!(refusal(&result), "busy");
        }
    }
    assert_eq!(refusal(&Line::connect(&ground.init_socket()).plain(&token)), "busy");
    assert!(seated[0].call("ping", &json!({}))["result"]["pong"].as_bool().unwrap());
}

#[test]
fn whatever_comes_first_that_is_no_handshake_gets_one_error_and_the_end() {
    let ground = Ground::new();
    let daemon = ground.serve();
    let token = ground.token_after_first_contact();
    let nonce = "0".repeat(64);
    let deep = format!("{{\"type\":\"auth\",\"x\":{}}}\n", "[".repeat(2000));
    let early = format!("{{\"type\":\"auth\",\"proof\":\"{nonce}\"}}\n");
    let both = format!(
        "{{\"type\":\"auth\",\"v\":1,\"token\":\"{token}\",\"token_id\":\"{}\",\"nonce\":\"{nonce}\"}}\n",
        "0".repeat(16)
    );
    let cases: Vec<(&[u8], &str)> = vec![
        (b"{}\n", "malformed"),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}\n", "malformed"),
        (b"{\"type\":\"ping\"}\n", "malformed"),
        (b"{\"type\":\"auth\",\"token\":7}\n", "malformed"),
        (b"{\"type\":\"auth\",\"token\":\"\\u0000\"}\n", "malformed"),
        (b"{\"type\":\"auth\",\"token\":\"\xff\xfe\"}\n", "malformed"),
        (b"{\"type\":\"auth\",\"v\":2}\n", "version"),
        (b"\x00\x00\x00\n", "malformed"),
        (b"\n", "malformed"),
        (b"7\n", "malformed"),
        (deep.as_bytes(), "malformed"),
        (early.as_bytes(), "malformed"),
        (both.as_bytes(), "malformed"),
    ];
    for (bytes, code) in cases {
        let mut client = Line::connect(&ground.init_socket());
        client.stream().write_all(bytes).unwrap();
        assert_eq!(refusal(&client.receive().unwrap()), code, "{:?}", String::from_utf8_lossy(bytes));
        assert_eq!(client.rest(), b"", "one error, then the end");
    }
    assert!(Line::connect(&ground.init_socket()).plain(&token)["success"] == true);
    assert!(daemon.stderr().contains("malformed"));
}

#[test]
fn a_second_auth_after_the_first_is_one_error_and_the_end() {
    let ground = Ground::new();
    let _daemon = ground.serve();
    let token = ground.token_after_first_contact();
    let mut client = Line::connect(&ground.init_socket());
    assert_eq!(client.plain(&token)["success"], true);
    client.send_json(&json!({ "type": "auth", "token": token }));
    assert_eq!(client.receive().unwrap()["error"]["code"], -32600);
    assert_eq!(client.receive(), None);
}

#[test]
fn a_wrong_token_is_denied_alike_whether_its_id_is_known_or_not() {
    let ground = Ground::new();
    let _daemon = ground.serve();
    ground.token_after_first_contact();
    let mut client = Line::connect(&ground.init_socket());
    assert_eq!(refusal(&client.plain(&"12".repeat(32))), "denied");
    // By proof: an unknown id is challenged like a known one, and fails like a known one.
    let known = ground.json(["whoami"])["session"]["token_id"].as_str().unwrap().to_owned();
    let mut shapes = Vec::new();
    for id in [known.as_str(), "0123456789abcdef"] {
        let mut client = Line::connect(&ground.init_socket());
        client.send_json(&json!({ "type": "auth", "v": 1, "token_id": id, "nonce": "ab".repeat(32) }));
        let challenge = client.receive().unwrap();
        let fields: Vec<String> = challenge.as_object().unwrap().keys().cloned().collect();
        client.send_json(&json!({ "type": "auth", "proof": "cd".repeat(32) }));
        let result = client.receive().unwrap();
        shapes.push((fields, result.to_string()));
        assert_eq!(client.receive(), None);
    }
    assert_eq!(shapes[0], shapes[1]);
    assert!(shapes[0].1.contains("denied"));
}

#[test]
fn an_unauthenticated_connection_hears_nothing_while_others_are_served() {
    let ground = Ground::new();
    let _daemon = ground.serve();
    let token = ground.token_after_first_contact();
    let silent = UnixStream::connect(ground.init_socket()).unwrap();
    silent.set_nonblocking(true).unwrap();
    let mut client = Line::connect(&ground.init_socket());
    assert_eq!(client.plain(&token)["success"], true);
    for _ in 0..20 {
        client.call("status", &json!({}));
    }
    ground.json(["run", "--", "authsock", "status"]);
    let mut buffer = [0; 1];
    let nothing = (&silent).read(&mut buffer).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock, "not a byte");
}

#[test]
fn plain_tokens_can_be_forbidden_for_the_owner_or_for_all() {
    for (setting, expected) in [("sessions", "not_permitted"), ("none", "not_permitted")] {
        let ground = Ground::new();
        ground.configure(&format!("[handshake]\nplain = \"{setting}\"\n"));
        let _daemon = ground.serve();
        let token = ground.token_after_first_contact();
        let mut client = Line::connect(&ground.init_socket());
        assert_eq!(refusal(&client.plain(&token)), expected, "{setting}");
        let script = "printf '{\"type\":\"auth\",\"token\":\"%s\"}\\n' \"$(cat \"$AUTHSOCK_TOKEN_FILE\")\" | \
                      socat -t 5 - UNIX-CONNECT:\"$AUTHSOCK_SOCKET\"";
        if crate::ground::skip_unless(crate::ground::has("socat"), "socat is not installed") {
            continue;
        }
        let output = ground.authsock(["run", "--", "sh", "-c", script]).output().unwrap();
        let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(result["success"], setting == "sessions", "a session's own token: {result}");
    }
}

#[test]
fn a_thousand_refusals_make_a_short_log() {
    let ground = Ground::new();
    let daemon = ground.serve();
    ground.token_after_first_contact();
    for _ in 0..1000 {
        let mut client = Line::connect(&ground.init_socket());
        assert_eq!(refusal(&client.plain(&"12".repeat(32))), "denied");
    }
    let lines = daemon.stderr().lines().filter(|line| line.contains("refused process")).count();
    assert!((1..=100).contains(&lines), "{lines} lines");
    let _ = PATIENCE;
}

/// Makes a session on an open connection, with a token that nobody knows unless it is given.
fn make_session(
    client: &mut Line,
    number: u64,
    token: Option<&authsock::secret::token::Token>,
) -> serde_json::Value {
    let digits = |seed: u64, length: usize| format!("{:016x}", seed + 1).repeat(length / 16);
    let verifier = match token {
        None => {
            json!({ "token_id": digits(number, 16), "stored_key": digits(number, 64), "server_key": digits(number, 64) })
        }
        Some(token) => {
            let verifier = authsock::secret::verifier::Verifier::of(token);
            let (stored, server) = verifier.reveal();
            json!({ "token_id": verifier.id().to_string(), "stored_key": *stored, "server_key": *server })
        }
    };
    let params = json!({ "name": format!("n{number}"), "binding": "uid", "verifier": verifier });
    let answer = client.call("session.create", &params);
    assert!(answer["result"]["session"]["id"].is_string(), "{answer}");
    answer["result"]["session"]["id"].clone()
}

#[test]
fn sessions_are_listed_page_by_page() {
    let ground = Ground::new();
    let _daemon = ground.serve();
    let token = ground.token_after_first_contact();
    let mut client = Line::connect(&ground.init_socket());
    assert_eq!(client.plain(&token)["success"], true);
    for number in 0..300 {
        make_session(&mut client, number, None);
    }
    let (mut seen, mut after) = (Vec::new(), json!(null));
    loop {
        let page = client.call("session.list", &json!({ "after": after }))["result"].clone();
        let sessions = page["sessions"].as_array().unwrap().clone();
        assert!(sessions.len() <= 256, "{}", sessions.len());
        seen.extend(sessions.iter().map(|session| session["id"].as_str().unwrap().to_owned()));
        after = page["next"].clone();
        if after.is_null() {
            break;
        }
    }
    let all: std::collections::BTreeSet<_> = seen.iter().collect();
    assert_eq!((seen.len(), all.len()), (301, 301), "each once, and the owner's");
}

#[test]
fn a_client_that_does_not_read_is_closed_when_its_session_ends() {
    let ground = Ground::new();
    let _daemon = ground.serve();
    let owner = ground.token_after_first_contact();
    let mut client = Line::connect(&ground.init_socket());
    assert_eq!(client.plain(&owner)["success"], true);
    let token = authsock::secret::token::Token::generate().unwrap();
    let id = make_session(&mut client, 0, Some(&token));
    let mut deaf = Line::connect(&ground.init_socket());
    assert_eq!(deaf.plain(&token.reveal())["success"], true);
    deaf.stream().set_nonblocking(true).unwrap();
    // Until the daemon takes no more, since nobody reads what it answers.
    let request = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"status\"}\n".repeat(100);
    let mut stream = deaf.stream();
    let mut full = None;
    let end = Instant::now() + PATIENCE;
    while full.is_none_or(|since: Instant| since.elapsed() < Duration::from_millis(300)) {
        assert!(Instant::now() < end, "the daemon takes whatever is sent");
        match stream.write(request.as_bytes()) {
            Ok(_) => full = None,
            Err(_) => full = full.or(Some(Instant::now())),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(client.call("status", &json!({}))["result"]["connections"], 2, "others are served meanwhile");
    assert_eq!(client.call("session.revoke", &json!({ "id": id }))["result"]["ended"], 1);
    while client.call("status", &json!({}))["result"]["connections"] != 1 {
        assert!(Instant::now() < end, "it is never closed");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_client_that_reads_nothing_for_too_long_is_given_up() {
    let ground = Ground::new();
    ground.configure("[limits]\nwrite_timeout_seconds = 1\n");
    let _daemon = ground.serve();
    let token = ground.token_after_first_contact();
    let mut deaf = Line::connect(&ground.init_socket());
    assert_eq!(deaf.plain(&token)["success"], true);
    let request = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"status\"}\n".repeat(100);
    let mut stream = deaf.stream();
    // The end of writing is the daemon's end of the connection.
    while stream.write(request.as_bytes()).is_ok() {}
    assert_eq!(ground.json(["status"])["connections"], 1);
}

#[test]
fn what_a_session_may_ask_for_ends_where_the_manual_says() {
    let ground = Ground::new();
    let _daemon = ground.serve();
    let owner = ground.token_after_first_contact();
    let mut client = Line::connect(&ground.init_socket());
    assert_eq!(client.plain(&owner)["success"], true);
    let scope = |number: usize, length: usize| {
        let name = format!("service:{number:03}");
        format!("{name}{}", "a".repeat(length - name.len()))
    };
    let scopes =
        |count: usize, length: usize| (0..count).map(|number| scope(number, length)).collect::<Vec<_>>();
    let mut number = 0;
    let mut create = |field: &str, value: serde_json::Value| {
        number += 1;
        let digits = |length: usize| format!("{number:016x}").repeat(length / 16);
        let mut params = json!({
            "name": "n", "binding": "uid",
            "verifier": { "token_id": digits(16), "stored_key": digits(64), "server_key": digits(64) },
        });
        params[field] = value;
        client.call("session.create", &params)
    };
    for (field, good, bad) in [
        ("scopes", json!(scopes(64, 20)), json!(scopes(65, 20))),
        ("scopes", json!(scopes(64, 64)), json!([scopes(63, 64), scopes(1, 65)].concat())),
        ("ttl_seconds", json!(1), json!(0)),
        ("ttl_seconds", json!(366 * 86_400), json!(366 * 86_400 + 1)),
        ("name", json!("n".repeat(64)), json!("n".repeat(65))),
        ("name", json!("owners"), json!("owner")),
        ("realm", json!("r".repeat(64)), json!("r".repeat(65))),
    ] {
        assert!(create(field, good)["result"]["session"]["id"].is_string(), "{field}");
        let refused = create(field, bad);
        assert_eq!(refused["error"]["code"], -32602, "{field}: {refused}");
    }
    for (grace, good) in [(86_400, true), (86_401, false)] {
        let answer = client.call("session.rotate", &json!({ "grace_seconds": grace }));
        assert_eq!(answer["result"].is_object(), good, "{answer}");
    }
}
