//! HTTP on the daemon's socket, as its clients see it: each request by itself, every route, and what proxies ask.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use authsock::daemon::ROUTES;
use authsock::secret::token::Token;

use crate::ground::{Daemon, Ground, Line, PATIENCE, has, minted, put, skip_unless, text_of};
#[cfg(target_os = "linux")]
use crate::tree::Inside;

/// A connection that speaks HTTP by hand.
pub struct Http(BufReader<UnixStream>);

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    fields: BTreeMap<String, String>,
    pub body: String,
}

impl Answer {
    pub fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    fn closes(&self) -> bool {
        self.field("connection") == "close"
    }
}

impl Http {
    pub fn connect(socket: &Path) -> Http {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Http(BufReader::new(stream))
    }

    pub fn send(&mut self, text: &str) {
        // A daemon that refused before it read all has closed already; what it said can still be read.
        let _ = self.0.get_mut().write_all(text.as_bytes());
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(line.trim_end_matches(['\r', '\n']).to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("no line: {error}"),
        }
    }

    /// The head of an answer; its body is not read.
    fn head(&mut self) -> Option<Answer> {
        let line = self.line()?;
        let status = line
            .strip_prefix("HTTP/1.")
            .and_then(|rest| rest.get(2..5))
            .and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status: {line:?}"));
        let mut fields = BTreeMap::new();
        while let Some(line) = self.line().filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("no field: {line:?}"));
            let twice = fields.insert(name.to_ascii_lowercase(), value.trim().to_owned());
            assert!(twice.is_none(), "{name} twice");
        }
        Some(Answer { status, fields, body: String::new() })
    }

    /// An answer, or `None` at the end.
    pub fn receive(&mut self) -> Option<Answer> {
        let mut answer = self.head()?;
        let length = answer.fields.get("content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        answer.body = String::from_utf8(body).unwrap();
        Some(answer)
    }

    /// A request with a token, and its answer.
    fn ask(&mut self, line: &str, token: &str, more: &str) -> Answer {
        self.send(&format!("{line} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{more}\r\n"));
        self.receive().expect("an answer")
    }

    fn post(&mut self, path: &str, token: &str, kind: &str, body: &str) -> Answer {
        let more = format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", body.len());
        self.send(&format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{more}\r\n{body}"
        ));
        self.receive().expect("an answer")
    }

    fn rpc(&mut self, token: &str, body: &Value) -> Answer {
        self.post("/v1/rpc", token, "application/json", &body.to_string())
    }

    fn is_closed(&mut self) -> bool {
        self.line().is_none()
    }
}

pub fn served_with(configuration: &str) -> (Ground, Daemon, String) {
    let ground = Ground::new();
    ground.configure(configuration);
    let daemon = ground.serve();
    let owner = ground.token_after_first_contact();
    (ground, daemon, owner)
}

fn line(ground: &Ground, token: &str) -> Line {
    let mut line = Line::connect(&ground.init_socket());
    assert_eq!(line.plain(token)["success"], true);
    line
}

/// A session that is bound to the user, and its token.
pub fn made(line: &mut Line, name: &str, more: Value) -> (String, String) {
    let (token, verifier) = minted();
    let mut wish = json!({ "name": name, "binding": "uid", "verifier": verifier });
    wish.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let made = line.call("session.create", &wish);
    let id = made["result"]["session"]["id"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
    (id, token.reveal().to_string())
}

#[test]
fn each_request_proves_itself_and_a_kept_connection_inherits_nothing() {
    let (ground, _daemon, owner) = served_with("");
    let mut control = line(&ground, &owner);
    let (alice, alice_token) = made(&mut control, "alice", json!({}));
    let (bob, bob_token) = made(&mut control, "bob", json!({}));
    let mut http = Http::connect(&ground.init_socket());
    for (id, token) in [(&alice, &alice_token), (&bob, &bob_token), (&alice, &alice_token)] {
        let answer = http.ask("GET /v1/whoami", token, "");
        assert_eq!((answer.status, answer.closes()), (200, false));
        assert_eq!(answer.json()["session"]["id"], **id);
        assert_eq!(answer.json()["handshake"], "http");
        assert_eq!(answer.json()["peer"]["pid"], std::process::id());
        assert_eq!(answer.field("cache-control"), "no-store");
    }
    for missing in ["", "Cookie: token=x\r\n"] {
        let mut http = Http::connect(&ground.init_socket());
        assert_eq!(http.ask("GET /v1/whoami", &alice_token, "").status, 200);
        http.send(&format!("GET /v1/whoami HTTP/1.1\r\nHost: x\r\n{missing}\r\n"));
        let answer = http.receive().unwrap();
        assert_eq!((answer.status, answer.closes()), (401, true), "{answer:?}");
        assert_eq!(
            answer.field("www-authenticate"),
            "Bearer realm=\"authsock\", Authsock-Session realm=\"authsock\""
        );
        assert!(http.is_closed());
    }
    // A wrong one says that it is wrong, and ends what was kept; what came behind is not looked at.
    let mut http = Http::connect(&ground.init_socket());
    assert_eq!(http.ask("GET /v1/whoami", &alice_token, "").status, 200);
    let wrong = "0".repeat(64);
    let (good, bad) = (request("GET /v1/whoami", &alice_token), request("GET /v1/whoami", &wrong));
    http.send(&format!("{bad}{good}"));
    let answer = http.receive().unwrap();
    assert_eq!((answer.status, answer.closes()), (401, true));
    assert!(answer.field("www-authenticate").contains("error=\"invalid_token\""), "{answer:?}");
    assert!(!answer.body.contains(&wrong));
    assert!(http.is_closed());
}

fn request(line: &str, token: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n")
}

#[test]
fn a_token_comes_by_the_configured_schemes_only_and_in_any_case() {
    let (ground, _daemon, owner) = served_with("[http]\nschemes = [\"ClaudeMesh-Session\", \"Bearer\"]\n");
    for (scheme, status) in [
        ("Bearer", 200),
        ("bEARER", 200),
        ("claudemesh-session", 200),
        ("Authsock-Session", 401),
        ("Basic", 401),
    ] {
        let mut http = Http::connect(&ground.init_socket());
        http.send(&format!("GET /v1/whoami HTTP/1.1\r\nHost: x\r\nAuthorization: {scheme} {owner}\r\n\r\n"));
        let answer = http.receive().unwrap();
        assert_eq!(answer.status, status, "{scheme}");
        if status == 401 {
            assert!(answer.field("www-authenticate").contains("ClaudeMesh-Session realm="), "{answer:?}");
            // What is recommended is what is taken.
            assert!(answer.json()["detail"].as_str().unwrap().contains("with ClaudeMesh-Session and"));
        }
    }
}

#[test]
fn what_a_token_is_not_good_for_is_told_by_the_status() {
    let (ground, _daemon, owner) = served_with("");
    let mut control = line(&ground, &owner);
    let ask = |token: &str| Http::connect(&ground.init_socket()).ask("GET /v1/whoami", token, "").status;
    let (revoked, revoked_token) = made(&mut control, "revoked", json!({}));
    assert_eq!(ask(&revoked_token), 200);
    control.call("session.revoke", &json!({ "id": revoked }));
    assert_eq!(ask(&revoked_token), 401);
    let (rotated, rotated_token) = made(&mut control, "rotated", json!({}));
    let (new, verifier) = minted();
    let wish = json!({ "id": rotated, "verifier": verifier, "grace_seconds": 60 });
    assert!(control.call("session.rotate", &wish)["result"].is_object());
    assert_eq!((ask(&rotated_token), ask(&new.reveal())), (200, 200), "in its grace");
    let (_, verifier) = minted();
    let wish = json!({ "name": "n", "binding": "uid", "verifier": verifier });
    let request = json!({ "jsonrpc": "2.0", "id": 1, "method": "session.create", "params": wish });
    let answer = Http::connect(&ground.init_socket()).rpc(&rotated_token, &request);
    assert_eq!(answer.json()["error"]["code"], -32001, "a rotated token makes nothing: {answer:?}");
    let (_, verifier) = minted();
    let wish = json!({ "id": rotated, "verifier": verifier, "grace_seconds": 0 });
    assert!(control.call("session.rotate", &wish)["result"].is_object());
    assert_eq!((ask(&rotated_token), ask(&new.reveal())), (401, 401));
    let (_, brief) = made(&mut control, "brief", json!({ "ttl_seconds": 1 }));
    let mut stays = Http::connect(&ground.init_socket());
    let until = Instant::now() + PATIENCE;
    while stays.ask("GET /v1/whoami", &brief, "").status == 200 {
        assert!(Instant::now() < until);
    }
    assert_eq!(ask(&brief), 401);
    // Without the scope that a route needs.
    let (_, none) = made(&mut control, "none", json!({ "scopes": [] }));
    let answer = Http::connect(&ground.init_socket()).ask("GET /metrics", &none, "");
    assert_eq!(answer.status, 403);
    assert!(answer.field("www-authenticate").contains("error=\"insufficient_scope\", scope=\"metrics\""));
    // This process leads sessions now, so the owner's token is not good for it.
    assert_eq!(ask(&owner), 403);
}

#[cfg(target_os = "linux")]
#[test]
fn a_token_that_is_bound_to_a_tree_is_good_for_its_processes_with_each_request() {
    if skip_unless(has("curl"), "curl is not installed") {
        return;
    }
    let (ground, _daemon, _) = served_with("");
    let mut inside = Inside::begin(&ground, &[]);
    let ask = "curl -s -o /dev/null -w '%{http_code}' --unix-socket \"$AUTHSOCK_SOCKET\" -H \"Authorization: Bearer $(cat \"$AUTHSOCK_TOKEN_FILE\")\" http://x/v1/whoami";
    assert_eq!(inside.tell(ask), (0, "200".to_owned()));
    let (_, token) = inside.tell("cat \"$AUTHSOCK_TOKEN_FILE\"");
    let outside = Http::connect(&ground.init_socket()).ask("GET /v1/whoami", token.trim(), "");
    assert_eq!(outside.status, 403);
    // Nor is it worth anything where nobody's process is looked at.
    let asker = ground.token();
    let asked = format!("Authorization: Bearer {}\r\nAuthsock-Asker: Bearer {asker}", token.trim());
    let mut http = Http::connect(&ground.init_socket());
    http.send(&format!("GET /v1/verify HTTP/1.1\r\nHost: x\r\n{asked}\r\n\r\n"));
    assert_eq!(http.receive().unwrap().status, 401);
    let body = format!("token={}", token.trim());
    let mut http = Http::connect(&ground.init_socket());
    let answer = http.post("/v1/introspect", &asker, "application/x-www-form-urlencoded", &body);
    assert_eq!(answer.json(), json!({ "active": false }));
}

#[test]
fn what_is_configured_of_plain_tokens_holds_over_http_too() {
    for (plain, owner_status, session_status) in [("none", 403, 403), ("sessions", 403, 200)] {
        let (ground, _daemon, owner) = served_with(&format!("[handshake]\nplain = \"{plain}\"\n"));
        // The session is made by the program itself, which proves the token.
        let ask = |token: &str| Http::connect(&ground.init_socket()).ask("GET /v1/whoami", token, "").status;
        assert_eq!(ask(&owner), owner_status, "{plain}");
        let refused = Http::connect(&ground.init_socket()).ask("GET /v1/whoami", &owner, "").json();
        let detail = refused["detail"].as_str().unwrap();
        assert!(detail.contains("handshake.plain") && detail.contains("the proof handshake"), "{refused}");
        let script = "cat \"$AUTHSOCK_TOKEN_FILE\"; echo; cat";
        let mut run = ground.authsock(["run", "--bind", "uid", "--", "sh", "-c", script]);
        let mut run =
            run.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut token = String::new();
        BufReader::new(run.stdout.as_mut().unwrap()).read_line(&mut token).unwrap();
        assert_eq!(ask(token.trim()), session_status, "{plain}");
        drop(run.stdin.take());
        run.wait().unwrap();
    }
}

#[test]
fn every_route_answers_curl_and_is_what_the_document_says() {
    if skip_unless(has("curl"), "curl is not installed") {
        return;
    }
    let (ground, _daemon, owner) = served_with("");
    let fields = ground.root().join("fields");
    put(&fields, &format!("Authorization: Bearer {owner}\nAuthsock-Asker: Bearer {owner}\n"), 0o600);
    let form = ground.root().join("form");
    put(&form, &format!("token={owner}"), 0o600);
    let curl = |args: &[&str]| -> (u16, String) {
        let mut command = ground.command("curl");
        command
            .args(["-sS", "-w", "\n%{http_code}", "--max-time", "20", "--unix-socket"])
            .arg(ground.init_socket());
        let output = command.arg("-H").arg(format!("@{}", fields.display())).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", text_of(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), body.to_owned())
    };
    let (status, body) = curl(&["http://x/v1/whoami"]);
    assert_eq!((status, body.contains("\"owner\"")), (200, true), "{body}");
    let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    for more in
        [&[][..], &["-H", "Transfer-Encoding: chunked"], &["-H", "Expect: 100-continue"], &["--http1.0"]]
    {
        let args =
            [&["http://x/v1/rpc", "-H", "Content-Type: application/json", "-d", ping][..], more].concat();
        assert_eq!(
            curl(&args),
            (200, r#"{"jsonrpc":"2.0","id":1,"result":{"pong":true}}"#.to_owned()),
            "{more:?}"
        );
    }
    let note = r#"{"jsonrpc":"2.0","method":"ping"}"#;
    assert_eq!(curl(&["http://x/v1/rpc", "--json", note]), (204, String::new()));
    let at_form = format!("@{}", form.display());
    let (status, body) = curl(&["http://x/v1/introspect", "--data-binary", &at_form]);
    assert_eq!((status, body.contains("\"active\":true")), (200, true), "{body}");
    assert_eq!(curl(&["http://x/v1/verify"]), (200, String::new()));
    let (status, body) = curl(&["http://x/metrics"]);
    assert_eq!((status, body.ends_with("# EOF\n")), (200, true), "{body}");
    let (status, body) = curl(&["http://x/openapi.json"]);
    assert_eq!(status, 200);
    let document: Value = serde_json::from_str(&body).unwrap();
    for route in ROUTES {
        assert!(document["paths"][route.path][route.method.to_lowercase()].is_object(), "{}", route.path);
        if route.method == "GET" && route.path != "/v1/events" {
            assert_eq!(curl(&["--head", &format!("http://x{}", route.path)]).0, 200, "HEAD {}", route.path);
        }
    }
    // A stream ends when curl has had enough: what came until then is there.
    let mut command = ground.command("curl");
    command.args(["-sSN", "-G", "--max-time", "20", "--unix-socket"]).arg(ground.init_socket());
    command.arg("-H").arg(format!("@{}", fields.display()));
    command
        .args(["--data-urlencode", "subject=a.>", "http://x/v1/events"])
        .stdout(std::process::Stdio::piped());
    let mut stream = command.spawn().unwrap();
    let mut frames = BufReader::new(stream.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(frames.any(|line| line == "event: subscribed"));
    let event =
        r#"{"jsonrpc":"2.0","id":1,"method":"events.publish","params":{"subject":"a.b","data":"heard"}}"#;
    assert!(curl(&["http://x/v1/rpc", "--json", event]).1.contains("\"reached\":1"));
    assert!(frames.any(|line| line.starts_with("data: ") && line.contains("\"data\":\"heard\"")));
    stream.kill().unwrap();
    stream.wait().unwrap();
    for (args, status) in [
        (&["http://x/nowhere"][..], 404),
        (&["http://x/v1/whoami/"], 404),
        (&["-X", "DELETE", "http://x/v1/whoami"], 405),
        (&["http://x/v1/rpc"], 405),
        (&["http://x/v1/rpc", "-d", ping], 415),
        (&["http://x/v1/introspect", "--json", "{}"], 415),
        (&["http://x/v1/introspect", "-d", "a=b"], 400),
        (&["http://x/v1/introspect", "-d", "token=a&token=b"], 400),
        (&["http://x/v1/events?since=x"], 400),
        (&["http://x/v1/events?nonsense=1"], 400),
        (&["http://x/v1/events?subject=a..b"], 400),
    ] {
        let (found, body) = curl(args);
        assert_eq!(found, status, "{args:?}: {body}");
        let problem: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            (&problem["type"], &problem["status"]),
            (&json!("about:blank"), &json!(status)),
            "{args:?}"
        );
        assert!(problem["detail"].is_string() && problem["title"].is_string());
    }
}

#[test]
fn batches_and_every_kind_of_body_go_over_http() {
    let (ground, _daemon, owner) = served_with("");
    let mut http = Http::connect(&ground.init_socket());
    let ping = |id: usize| json!({ "jsonrpc": "2.0", "id": id, "method": "ping" });
    let answer = http.rpc(&owner, &(0..100).map(ping).collect::<Value>());
    assert_eq!(answer.json().as_array().unwrap().len(), 100);
    let answer = http.rpc(&owner, &json!([{ "jsonrpc": "2.0", "method": "ping" }]));
    assert_eq!((answer.status, answer.body.as_str()), (204, ""));
    let spread = "{\r\n  \"jsonrpc\": \"2.0\",\n  \"id\": 1,\n  \"method\": \"events.publish\",\n \"params\": {\"subject\": \"a\", \"data\": [1,\n2]}\n}\n";
    let answer = http.post("/v1/rpc", &owner, "Application/JSON; charset=utf-8", spread);
    assert_eq!(answer.json()["result"]["seq"], 1, "{answer:?}");
    for (body, code) in [("", -32700), ("x", -32700), ("[]", -32600), ("7", -32600)] {
        assert_eq!(
            http.post("/v1/rpc", &owner, "application/json", body).json()["error"]["code"],
            code,
            "{body}"
        );
    }
    let subscribe =
        json!({ "jsonrpc": "2.0", "id": 1, "method": "events.subscribe", "params": { "subjects": ["a"] } });
    let answer = http.rpc(&owner, &subscribe);
    assert!(answer.json()["error"]["message"].as_str().unwrap().contains("GET /v1/events"), "{answer:?}");
    // One that ends the session that it comes with is answered, and the next one is not.
    let mut control = line(&ground, &owner);
    let (_, token) = made(&mut control, "n", json!({}));
    let answer = http.rpc(&token, &json!({ "jsonrpc": "2.0", "id": 1, "method": "session.revoke" }));
    assert_eq!(answer.json()["result"]["ended"], 1);
    assert_eq!(http.rpc(&token, &ping(1)).status, 401);
}

/// A stream of events, frame by frame.
struct Stream(Http);

impl Stream {
    fn begin(ground: &Ground, token: &str, query: &str, more: &str) -> Stream {
        let mut http = Http::connect(&ground.init_socket());
        // Of HTTP/1.0, so that the body comes as it is.
        http.send(&format!("GET /v1/events{query} HTTP/1.0\r\nAuthorization: Bearer {token}\r\n{more}\r\n"));
        let head = http.head().unwrap();
        assert_eq!((head.status, head.field("content-type")), (200, "text/event-stream"), "{head:?}");
        Stream(http)
    }

    /// The next frame's fields; a comment is a field without a name.
    fn frame(&mut self) -> Option<BTreeMap<String, String>> {
        let mut fields = BTreeMap::new();
        loop {
            let line = self.0.line()?;
            if line.is_empty() {
                return Some(fields);
            }
            let (name, value) = line.split_once(':').unwrap();
            assert!(fields.insert(name.to_owned(), value.trim_start().to_owned()).is_none(), "{line}");
        }
    }

    /// The next frame of a kind; its id and its data.
    fn told(&mut self, kind: &str) -> (String, Value) {
        loop {
            let frame = self.frame().unwrap_or_else(|| panic!("no {kind}"));
            if frame.contains_key("") {
                continue; // a heartbeat
            }
            assert_eq!(frame.get("event").map_or("", String::as_str), kind, "{frame:?}");
            let data = serde_json::from_str(&frame["data"]).unwrap();
            return (frame.get("id").cloned().unwrap_or_default(), data);
        }
    }
}

fn publish(line: &mut Line, subject: &str, data: Value) -> Value {
    let answer = line.call("events.publish", &json!({ "subject": subject, "data": data }));
    assert!(answer["result"].is_object(), "{answer}");
    answer["result"].clone()
}

#[test]
fn a_stream_of_events_goes_on_where_it_broke_off() {
    let (ground, _daemon, owner) = served_with("[events]\nkept = 3\n");
    let mut control = line(&ground, &owner);
    let mut stream = Stream::begin(&ground, &owner, "?subject=a.%3E&subject=b", "");
    let (begun, told) = stream.told("subscribed");
    assert_eq!(told["subjects"], json!(["a.>", "b"]));
    assert_eq!(publish(&mut control, "a.x", json!("one"))["reached"], 1);
    assert_eq!(publish(&mut control, "c", json!("not heard"))["reached"], 0);
    assert_eq!(publish(&mut control, "b", json!("two"))["reached"], 1);
    let (first, event) = stream.told("");
    assert_eq!((&event["subject"], &event["data"]), (&json!("a.x"), &json!("one")));
    assert_eq!(stream.told("").1["data"], "two");
    drop(stream);
    // From an event's id; from the place where it began, before any event came; and from the query.
    let mut stream = Stream::begin(&ground, &owner, "?subject=b", &format!("Last-Event-ID: {first}\r\n"));
    assert_eq!(stream.told("subscribed").1["replayed"], 1);
    assert_eq!(stream.told("").1["data"], "two");
    let mut stream = Stream::begin(&ground, &owner, "?subject=a.%3E", &format!("Last-Event-ID: {begun}\r\n"));
    stream.told("subscribed");
    assert_eq!(stream.told("").1["data"], "one");
    let mut stream = Stream::begin(&ground, &owner, &format!("?subject=b&since={first}"), "");
    let (replays_from, _) = stream.told("subscribed");
    assert_eq!(replays_from, first, "whoever breaks off before the first of them misses none");
    assert_eq!(stream.told("").1["data"], "two");
    let mut stream = Stream::begin(&ground, &owner, "?last=1", "");
    stream.told("subscribed");
    assert_eq!(stream.told("").1["data"], "two");
    let mut stream = Stream::begin(&ground, &owner, "?subject=a.x&since=0", "");
    stream.told("subscribed");
    assert_eq!(stream.told("").1["data"], "one");
    for bad in ["x", "1", "\u{84}", "0123456789abcdef:-1"] {
        let mut http = Http::connect(&ground.init_socket());
        let answer = http.ask("GET /v1/events", &owner, &format!("Last-Event-ID: {bad}\r\n"));
        assert_eq!(answer.status, 400, "{bad:?} must not begin anew in silence");
    }
    // What was wanted of the past when it began is no matter any more: nothing in between is left out.
    let mut stream = Stream::begin(&ground, &owner, "?last=1", &format!("Last-Event-ID: {begun}\r\n"));
    assert_eq!(stream.told("subscribed").1["replayed"], 3);
    for data in ["one", "not heard", "two"] {
        assert_eq!(stream.told("").1["data"], data);
    }
    // Too much came since; and another numbering.
    for number in 0..3 {
        publish(&mut control, "b", json!(number));
    }
    let mut stream = Stream::begin(&ground, &owner, "?subject=b", &format!("Last-Event-ID: {first}\r\n"));
    stream.told("subscribed");
    let (id, gap) = stream.told("event.gap");
    assert_eq!((id.as_str(), &gap["reason"], &gap["to"]), ("", &json!("forgotten"), &json!(3)));
    assert_eq!(stream.told("").1["data"], 0);
    let other = "Last-Event-ID: 0123456789abcdef:2\r\n";
    let mut stream = Stream::begin(&ground, &owner, "?subject=b", other);
    stream.told("subscribed");
    assert_eq!(stream.told("event.gap").1["reason"], "restarted");
    assert_eq!(stream.told("").1["data"], 0);
}

#[test]
fn a_stream_lives_and_ends_with_its_session_and_its_daemon() {
    let (ground, daemon, owner) =
        served_with("[events]\nheartbeat_seconds = 1\nqueued = 1000000\nqueued_bytes = 1073741824\n");
    let mut control = line(&ground, &owner);
    let (id, token) = made(&mut control, "n", json!({ "scopes": ["events:subscribe:a.>"] }));
    let mut stream = Stream::begin(&ground, &token, "", "");
    assert_eq!(stream.told("subscribed").1["subjects"], json!(["a.>"]), "its own scope, and no more");
    let heartbeat = stream.frame().unwrap();
    assert_eq!(heartbeat.get(""), Some(&String::new()));
    // Other patterns than its scopes permit are refused.
    let answer = Http::connect(&ground.init_socket()).ask("GET /v1/events?subject=b", &token, "");
    assert_eq!(answer.status, 403);
    assert!(answer.body.contains("events:subscribe:b"), "{answer:?}");
    // It does not read; and then its session ends. What waited does not come.
    let mut stuck = Stream::begin(&ground, &token, "", "");
    stuck.told("subscribed");
    let big = "x".repeat(60_000);
    for number in 0..100 {
        assert_eq!(publish(&mut control, "a.b", json!([number, big]))["reached"], 2);
        assert_eq!(stream.told("").1["data"][0], number);
    }
    assert_eq!(control.call("session.revoke", &json!({ "id": id }))["result"]["ended"], 1);
    publish(&mut control, "a.b", json!("SECRET"));
    assert_eq!(stream.told("session.ended").1, json!({ "id": id, "reason": "revoked" }));
    assert!(stream.frame().is_none());
    let mut rest = Vec::new();
    let _ = stuck.0.0.read_to_end(&mut rest);
    let rest = String::from_utf8_lossy(&rest);
    assert!(!rest.contains("SECRET") && !rest.contains("[99,"), "{}", rest.len());
    // A kept connection's next stream is another session's, and ends with that one.
    let (_, first) = made(&mut control, "first", json!({}));
    let (second_id, second) = made(&mut control, "second", json!({}));
    let mut kept = Http::connect(&ground.init_socket());
    kept.send(&request("GET /v1/events?follow=false", &first));
    while kept.line().unwrap() != "0" {}
    assert_eq!(kept.line().unwrap(), "");
    kept.send(&request("GET /v1/events?subject=a.b", &second));
    while !kept.line().unwrap().contains("subscribed") {}
    for number in 0..100 {
        assert_eq!(publish(&mut control, "a.b", json!([number, big]))["reached"], 1);
    }
    assert_eq!(control.call("session.revoke", &json!({ "id": second_id }))["result"]["ended"], 1);
    let mut rest = Vec::new();
    let end = kept.0.read_to_end(&mut rest);
    let is_cut_off = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionReset;
    assert!(end.is_ok() || end.is_err_and(|error| is_cut_off(&error)), "cut off, and not left to end");
    assert!(!String::from_utf8_lossy(&rest).contains("[99,"), "{}", rest.len());
    // The daemon stops: streams end, idle connections close, and it waits for neither.
    let (_, token) = made(&mut control, "m", json!({}));
    let mut idle = Http::connect(&ground.init_socket());
    assert_eq!(idle.ask("GET /v1/whoami", &token, "").status, 200);
    let mut stream = Stream::begin(&ground, &token, "", "");
    stream.told("subscribed");
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    while stream.frame().is_some() {}
    assert!(idle.is_closed());
    drop((stream, idle, kept));
    let mut daemon = daemon;
    assert!(daemon.child.wait().unwrap().success());
    assert!(!daemon.stderr().contains("drain"), "{}", daemon.stderr());
}

#[test]
fn proxies_are_told_200_and_who_it_is_or_401_and_nothing_else() {
    let (ground, daemon, owner) = served_with("");
    let mut control = line(&ground, &owner);
    let (_, asker) = made(&mut control, "proxy", json!({ "scopes": ["verify"] }));
    let (other_id, other) = made(
        &mut control,
        "ä name%\u{1F980}",
        json!({ "scopes": ["events:subscribe:a.>", "session:create"] }),
    );
    let ask = |fields: &str| {
        let mut http = Http::connect(&ground.init_socket());
        // As nginx asks: HTTP/1.0, no body, and whatever its client sent.
        http.send(&format!(
            "GET /v1/verify HTTP/1.0\r\nHost: some.where\r\nConnection: close\r\n{fields}\r\n"
        ));
        let answer = http.receive().unwrap();
        assert_eq!(answer.body, "");
        assert!(answer.field("location").is_empty());
        answer
    };
    let asks = format!("Authsock-Asker: Bearer {asker}\r\n");
    let shows = format!("Authorization: Bearer {other}\r\n");
    let forged = "Authsock-Session-Id: owner\r\nAuthsock-Session-Name: root\r\nAuthsock-Uid: 0\r\nAuthsock-Scopes: >\r\nAuthsock-Peer: checked\r\nAuthsock-Realm: x\r\nAuthsock-Binding: tree\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Method: POST\r\nOrigin: https://some.where\r\nCookie: a=b\r\nContent-Length: 0\r\n";
    for more in ["", forged] {
        let answer = ask(&format!("{asks}{shows}{more}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.field("authsock-session-id"), other_id);
        assert_eq!(answer.field("authsock-session-name"), "%C3%A4%20name%25%F0%9F%A6%80");
        assert_eq!(answer.field("authsock-realm"), "default");
        assert_eq!(answer.field("authsock-uid"), nix::unistd::getuid().as_raw().to_string());
        assert_eq!(answer.field("authsock-binding"), "uid");
        assert_eq!(answer.field("authsock-scopes"), "session:self events:subscribe:a.> session:create");
        assert_eq!(answer.field("authsock-peer"), "unchecked");
    }
    let wrong = format!("Authorization: Bearer {}\r\n", "0".repeat(64));
    for (fields, is_shown) in [
        (asks.clone(), false),
        (format!("{asks}{wrong}"), true),
        (format!("{asks}Authorization: Basic eDp5\r\n"), true),
        // Who may not ask hears no more than that, whatever is asked about.
        (shows.clone(), false),
        (format!("{shows}Authsock-Asker: Bearer {other}\r\n"), false),
        (format!("{shows}Authsock-Asker: Bearer {}\r\n", "0".repeat(64)), false),
        (format!("{shows}Authsock-Asker: {asker}\r\n"), false),
        (String::new(), false),
    ] {
        let answer = ask(&fields);
        assert_eq!(answer.status, 401, "{fields}");
        assert!(answer.field("www-authenticate").starts_with("Bearer realm=\"authsock\""), "{answer:?}");
        assert_eq!(answer.field("www-authenticate").contains("invalid_token"), is_shown, "{fields}");
        assert!(answer.field("authsock-session-id").is_empty());
    }
    daemon.wait_for_log("asked over HTTP what a token is worth");
    // Revoked a moment ago.
    control.call("session.revoke", &json!({ "id": other_id }));
    assert_eq!(ask(&format!("{asks}{shows}")).status, 401);
}

#[test]
fn introspection_tells_of_one_s_own_token_and_of_others_to_whoever_may_ask() {
    let (ground, _daemon, owner) = served_with("");
    let mut control = line(&ground, &owner);
    let (_, asker) = made(&mut control, "proxy", json!({ "scopes": ["verify"] }));
    let (id, token) =
        made(&mut control, "one", json!({ "ttl_seconds": 1000, "scopes": ["events:publish:a"] }));
    let ask = |by: &str, about: &str| {
        let body = format!("token={about}&token_type_hint=access_token");
        let mut http = Http::connect(&ground.init_socket());
        let answer = http.post("/v1/introspect", by, "application/x-www-form-urlencoded", &body);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    };
    let told = ask(&asker, &token);
    assert_eq!(
        (&told["active"], &told["sub"], &told["authsock_peer"]),
        (&json!(true), &json!(id), &json!("unchecked"))
    );
    assert_eq!(
        (&told["scope"], &told["token_type"]),
        (&json!("session:self events:publish:a"), &json!("Bearer"))
    );
    assert!((999..=1000).contains(&(told["exp"].as_u64().unwrap() - told["iat"].as_u64().unwrap())));
    let own = ask(&token, &token);
    assert_eq!((&own["active"], &own["authsock_peer"]), (&json!(true), &json!("checked")));
    let nothing = json!({ "active": false });
    // Somebody else's, of nobody, and none; whoever asks.
    assert_eq!(ask(&token, &asker), nothing);
    for about in ["0".repeat(64).as_str(), "", "x", &token[1..]] {
        assert_eq!(ask(&asker, about), nothing);
        assert_eq!(ask(&token, about), nothing);
    }
    // What has the id of a token but is another one.
    let other = Token::generate().unwrap().reveal().to_string();
    assert_eq!(ask(&asker, &other), nothing);
    // Or as whoever asks for a proxy: by a field of its own.
    let ask_as = |by: &str| {
        let body = format!("token={token}");
        let form = "Content-Type: application/x-www-form-urlencoded\r\nContent-Length";
        let mut http = Http::connect(&ground.init_socket());
        let asks = format!("Host: x\r\nAuthsock-Asker: Bearer {by}\r\n{form}: {}\r\n\r\n{body}", body.len());
        http.send(&format!("POST /v1/introspect HTTP/1.1\r\n{asks}"));
        http.receive().unwrap()
    };
    assert_eq!(ask_as(&asker).json()["sub"], id);
    for by in [token.as_str(), &other] {
        let answer = ask_as(by);
        assert_eq!((answer.status, answer.closes()), (401, true), "{answer:?}");
        assert!(answer.field("www-authenticate").starts_with("Bearer realm="), "{answer:?}");
        assert!(answer.json()["detail"].as_str().unwrap().contains("scope verify"), "{answer:?}");
    }
    control.call("session.revoke", &json!({ "id": id }));
    assert_eq!(ask(&asker, &token), nothing);
    assert_eq!(ask_as(&asker).json(), nothing);
}

#[test]
fn who_asks_about_tokens_has_still_to_stand_when_it_is_answered() {
    let (ground, _daemon, owner) = served_with("");
    let mut control = line(&ground, &owner);
    let (_, about) = made(&mut control, "about", json!({}));
    for field in ["Authorization", "Authsock-Asker"] {
        for is_own in [true, false] {
            let (asker, token) = made(&mut control, "asker", json!({ "scopes": ["verify"] }));
            let body = format!("token={}", if is_own { &token } else { &about });
            let form =
                "Content-Type: application/x-www-form-urlencoded\r\nExpect: 100-continue\r\nContent-Length";
            let mut http = Http::connect(&ground.init_socket());
            let asks = format!("Host: x\r\n{field}: Bearer {token}\r\n{form}: {}\r\n\r\n", body.len());
            http.send(&format!("POST /v1/introspect HTTP/1.1\r\n{asks}"));
            // It has proven itself, and the body is waited for.
            assert_eq!(http.receive().unwrap().status, 100);
            assert_eq!(control.call("session.revoke", &json!({ "id": asker }))["result"]["ended"], 1);
            http.send(&body);
            let answer = http.receive().unwrap();
            assert_eq!((answer.status, answer.closes()), (401, true), "{field} {is_own}: {answer:?}");
        }
    }
}

#[test]
fn what_came_before_the_daemon_stops_is_answered() {
    let (ground, daemon, owner) = served_with("");
    let mut kept = Http::connect(&ground.init_socket());
    let mut half = Http::connect(&ground.init_socket());
    for http in [&mut kept, &mut half] {
        assert_eq!(http.ask("GET /v1/whoami", &owner, "").status, 200);
    }
    let mut fresh = Http::connect(&ground.init_socket());
    // It is accepted before another one is answered that came later.
    assert_eq!(Http::connect(&ground.init_socket()).ask("GET /v1/whoami", &owner, "").status, 200);
    crate::batches::stop(&daemon);
    let request = request("GET /v1/whoami", &owner);
    kept.send(&request);
    fresh.send(&request);
    half.send(&request[..10]);
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    daemon.signal(nix::sys::signal::Signal::SIGCONT);
    for http in [&mut kept, &mut fresh] {
        assert_eq!(http.receive().expect("an answer").status, 200);
        assert!(http.is_closed());
    }
    half.send(&request[10..]);
    assert_eq!(half.receive().expect("an answer").status, 200);
    assert!(half.is_closed());
}

#[test]
fn what_a_kept_connection_asks_after_a_stream_is_no_matter_of_that_stream_s_session() {
    const REQUESTS: usize = 60;
    let (ground, _daemon, owner) = served_with("");
    let mut control = line(&ground, &owner);
    let (first, first_token) = made(&mut control, "first", json!({}));
    let (_, second_token) = made(&mut control, "second", json!({}));
    let mut http = Http::connect(&ground.init_socket());
    let stream = format!(
        "GET /v1/events?follow=false HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {first_token}\r\n\r\n"
    );
    http.send(&stream);
    assert_eq!(http.head().unwrap().field("transfer-encoding"), "chunked");
    while http.line().unwrap() != "0" {}
    assert_eq!(http.line().unwrap(), "");
    assert_eq!(control.call("session.revoke", &json!({ "id": first }))["result"]["ended"], 1);
    // More than a socket holds, so that writing is held up.
    http.send(&request("GET /openapi.json", &second_token).repeat(REQUESTS));
    has_been_quiet(&mut control);
    for number in 0..REQUESTS {
        assert_eq!(http.receive().unwrap_or_else(|| panic!("ended after {number}")).status, 200);
    }
}

/// The daemon has had its turn for all others: this one is answered after them.
fn has_been_quiet(control: &mut Line) {
    for _ in 0..100 {
        assert_eq!(control.call("ping", &json!({}))["result"]["pong"], true);
    }
}

#[test]
fn pages_in_a_browser_are_refused() {
    let (ground, _daemon, owner) = served_with("");
    for origin in ["http://evil", "null", "http://localhost"] {
        for path in ["/v1/whoami", "/v1/events", "/metrics", "/nowhere"] {
            let mut http = Http::connect(&ground.init_socket());
            let answer = http.ask(&format!("GET {path}"), &owner, &format!("Origin: {origin}\r\n"));
            assert_eq!((answer.status, answer.closes()), (403, true), "{path}: {answer:?}");
            assert!(answer.field("access-control-allow-origin").is_empty());
            assert!(http.is_closed());
        }
    }
    let answer = Http::connect(&ground.init_socket()).ask("OPTIONS /v1/whoami", &owner, "");
    assert_eq!((answer.status, answer.field("allow")), (405, "GET, HEAD"));
}

#[test]
fn what_is_refused_before_anybody_answers_is_told_as_everything_is() {
    let (ground, _daemon, owner) = served_with("");
    let auth = format!("Host: x\r\nAuthorization: Bearer {owner}\r\n");
    let told = |ground: &Ground, bytes: &str| {
        let mut http = Http::connect(&ground.init_socket());
        http.send(bytes);
        let answer = if bytes.starts_with("HEAD ") { http.head() } else { http.receive() }.unwrap();
        for (name, value) in [
            ("content-type", "application/problem+json"),
            ("cache-control", "no-store"),
            ("x-content-type-options", "nosniff"),
            ("connection", "close"),
        ] {
            assert_eq!(answer.field(name), value, "{bytes}: {answer:?}");
        }
        // The answer to a HEAD has the length of what is not there.
        assert!(http.is_closed(), "{bytes}");
        assert!(answer.field("content-length").parse::<usize>().unwrap() > 20, "{answer:?}");
        answer
    };
    assert_eq!(told(&ground, &format!("GET / HTTP/1.1\r\n{auth}{auth}\r\n")).status, 400);
    assert_eq!(told(&ground, &format!("HEAD / HTTP/1.1\r\n{auth}{auth}\r\n")).status, 400);
    assert_eq!(told(&ground, &format!("HEAD / HTTP/3.0\r\n{auth}\r\n")).status, 505);
    let answer = told(&ground, &format!("CONNECT x:1 HTTP/1.1\r\n{auth}\r\n"));
    assert_eq!((answer.status, answer.field("allow")), (405, "GET, HEAD, POST"));
    // Nor where HTTP is not spoken.
    let (ground, _daemon, _) = served_with("[http]\nenabled = false\n");
    for method in ["GET", "HEAD"] {
        assert_eq!(told(&ground, &format!("{method} /v1/whoami HTTP/1.1\r\n{auth}\r\n")).status, 501);
    }
}

#[test]
fn a_connection_that_dawdles_is_closed_at_each_of_its_times() {
    let (ground, _daemon, owner) =
        served_with("[handshake]\ntimeout_seconds = 1\n[http]\nrequest_seconds = 1\nidle_seconds = 1\n");
    let timed_out = |http: &mut Http| {
        let answer = http.receive().unwrap();
        assert_eq!((answer.status, answer.closes()), (408, true), "{answer:?}");
        assert!(http.is_closed());
    };
    // Until the first request has proven itself, whatever is sent.
    let mut http = Http::connect(&ground.init_socket());
    http.send("GET /v1/whoami HTTP/1.1\r\nHost: x\r\nA");
    timed_out(&mut http);
    let mut http = Http::connect(&ground.init_socket());
    http.send(&format!("POST /v1/rpc HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {owner}\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{{"));
    timed_out(&mut http);
    // Between two requests, without a word; and within a later one.
    let mut http = Http::connect(&ground.init_socket());
    assert_eq!(http.ask("GET /v1/whoami", &owner, "").status, 200);
    assert!(http.is_closed());
    let mut http = Http::connect(&ground.init_socket());
    assert_eq!(http.ask("GET /v1/whoami", &owner, "").status, 200);
    http.send("GET /");
    timed_out(&mut http);
    let mut http = Http::connect(&ground.init_socket());
    assert_eq!(http.ask("GET /v1/whoami", &owner, "").status, 200);
    http.send(&format!("POST /v1/rpc HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {owner}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n"));
    timed_out(&mut http);
}

#[test]
fn an_idle_connection_is_closed_in_its_time_and_not_in_the_handshake_s() {
    // Longer than is waited for.
    let (ground, _daemon, owner) =
        served_with("[handshake]\ntimeout_seconds = 60\n[http]\nrequest_seconds = 60\nidle_seconds = 1\n");
    for requests in [1, 2] {
        let mut http = Http::connect(&ground.init_socket());
        for _ in 0..requests {
            assert_eq!(http.ask("GET /v1/whoami", &owner, "").status, 200);
        }
        assert!(http.is_closed(), "{requests}");
    }
}

#[test]
fn heads_and_bodies_have_their_most_bytes() {
    let (ground, _daemon, owner) =
        served_with("[http]\nhead_bytes = 4096\n[limits]\nrequest_line_bytes = 4096\n");
    let head = |length: usize| {
        let begin = format!("GET /v1/whoami HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {owner}\r\nA: ");
        format!("{begin}{}\r\n\r\n", "x".repeat(length - begin.len() - 4))
    };
    let mut http = Http::connect(&ground.init_socket());
    http.send(&head(4096));
    assert_eq!(http.receive().unwrap().status, 200);
    http.send(&head(4097));
    let answer = http.receive().unwrap();
    assert_eq!((answer.status, answer.closes()), (431, true));
    assert!(http.is_closed());
    let body = |length: usize| {
        format!("{}{}", r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#, " ".repeat(length - 40))
    };
    let mut http = Http::connect(&ground.init_socket());
    assert_eq!(http.post("/v1/rpc", &owner, "application/json", &body(4096)).json()["result"]["pong"], true);
    let answer = http.post("/v1/rpc", &owner, "application/json", &body(4097));
    assert_eq!((answer.status, answer.closes()), (413, true));
    assert!(answer.body.contains("limits.request_line_bytes"), "{answer:?}");
}

/// Most kilobytes of memory that a process had.
#[cfg(target_os = "linux")]
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_stream_whose_client_has_left_keeps_no_place() {
    let (ground, _daemon, owner) = served_with("[events]\nheartbeat_seconds = 3600\n");
    let mut control = line(&ground, &owner);
    let streams: Vec<Stream> = (0..3)
        .map(|_| {
            let mut stream = Stream::begin(&ground, &owner, "?subject=a", "");
            stream.told("subscribed");
            stream
        })
        .collect();
    let mut count = || control.call("status", &json!({}))["result"]["connections"].as_u64().unwrap();
    assert_eq!(count(), 4);
    // One whose client only sends no more goes on.
    streams[0].0.0.get_ref().shutdown(Shutdown::Write).unwrap();
    let mut stays = streams.into_iter().next().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while count() > 2 {
        assert!(Instant::now() < deadline, "still there");
    }
    assert_eq!(publish(&mut control, "a", json!(1))["reached"], 1);
    stays.told("");
}

#[cfg(target_os = "linux")]
#[test]
fn a_body_in_the_smallest_of_chunks_costs_no_more_than_itself() {
    const CHUNKS: usize = 50_000;
    let (ground, daemon, owner) = served_with("");
    let before = peak(daemon.child.id());
    let mut http = Http::connect(&ground.init_socket());
    let auth = format!("Host: x\r\nAuthorization: Bearer {owner}\r\n");
    let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    http.send(&format!(
        "POST /v1/rpc HTTP/1.1\r\n{auth}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n{}{:x}\r\n{ping}\r\n0\r\n\r\n",
        "1\r\n \r\n".repeat(CHUNKS),
        ping.len()
    ));
    assert_eq!(http.receive().unwrap().json()["result"]["pong"], true);
    let grown = peak(daemon.child.id()) - before;
    // Each in a buffer of its own were a page each.
    assert!(grown < CHUNKS as u64, "{grown} KiB");
}

#[test]
fn a_connection_over_http_takes_a_place_like_any_other() {
    let (ground, _daemon, owner) = served_with("[limits]\nconnections = 2\n");
    let mut first = Http::connect(&ground.init_socket());
    let mut second = Http::connect(&ground.init_socket());
    assert_eq!(first.ask("GET /v1/whoami", &owner, "").status, 200);
    assert_eq!(second.ask("GET /v1/whoami", &owner, "").status, 200);
    let answer = Http::connect(&ground.init_socket()).ask("GET /v1/whoami", &owner, "");
    assert_eq!((answer.status, answer.field("retry-after"), answer.closes()), (503, "1", true));
    // Nor is somebody else's token bad because of that.
    let mut asks = Http::connect(&ground.init_socket());
    let answer = asks.ask("GET /v1/verify", &owner, &format!("Authsock-Asker: Bearer {owner}\r\n"));
    assert_eq!((answer.status, answer.closes()), (503, true), "{answer:?}");
    let mut line = Line::connect(&ground.init_socket());
    assert_eq!(line.plain(&owner)["error"]["code"], "busy");
    first.0.get_ref().shutdown(Shutdown::Both).unwrap();
    let until = Instant::now() + PATIENCE;
    while Http::connect(&ground.init_socket()).ask("GET /v1/whoami", &owner, "").status != 200 {
        assert!(Instant::now() < until);
    }
}

#[test]
fn who_only_sends_no_more_is_still_answered() {
    let (ground, _daemon, owner) = served_with("");
    let mut http = Http::connect(&ground.init_socket());
    http.send(&[request("GET /v1/whoami", &owner), request("GET /nowhere", &owner)].concat());
    http.0.get_ref().shutdown(Shutdown::Write).unwrap();
    assert_eq!(http.receive().unwrap().status, 200);
    assert_eq!(http.receive().unwrap().status, 404);
    assert!(http.is_closed());
}

#[test]
fn a_storm_of_wrong_tokens_is_counted_and_logged_within_bounds() {
    let (ground, daemon, owner) = served_with("");
    let wrong = "0".repeat(64);
    for _ in 0..300 {
        assert_eq!(Http::connect(&ground.init_socket()).ask("GET /v1/whoami", &wrong, "").status, 401);
    }
    let numbers = Http::connect(&ground.init_socket()).ask("GET /metrics", &owner, "").body;
    assert!(numbers.contains("authsock_handshakes_total{result=\"denied\"} 300\n"), "{numbers}");
    let logged = daemon.stderr();
    assert!(logged.matches("refused process").count() <= 60, "{}", logged.matches("refused process").count());
    assert!(!logged.contains(&wrong) && !logged.contains(&owner));
}

#[test]
fn a_request_that_is_under_way_when_the_daemon_stops_is_answered() {
    let (ground, mut daemon, owner) = served_with("");
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    let mut http = Http::connect(&ground.init_socket());
    http.send(&format!(
        "POST /v1/rpc HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {owner}\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        body.len()
    ));
    // It has proven itself, and its body is waited for.
    assert_eq!(http.receive().unwrap().status, 100);
    http.send(&body[..10]);
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    daemon.wait_for_log("asked to stop");
    http.send(&body[10..]);
    let answer = http.receive().unwrap();
    assert_eq!((answer.status, answer.closes()), (200, true), "{answer:?}");
    assert_eq!(answer.json()["result"]["pong"], true);
    assert!(http.is_closed());
    assert!(daemon.child.wait().unwrap().success());
}

#[test]
fn a_stream_outlives_what_is_set_for_requests_and_for_what_lies_between() {
    let (ground, _daemon, owner) = served_with(
        "[handshake]\ntimeout_seconds = 1\n[http]\nrequest_seconds = 1\nidle_seconds = 1\n[events]\nheartbeat_seconds = 1\n",
    );
    let mut stream = Stream::begin(&ground, &owner, "?subject=a", "");
    stream.told("subscribed");
    for _ in 0..3 {
        assert_eq!(stream.frame().unwrap().get(""), Some(&String::new()), "a heartbeat");
    }
    publish(&mut line(&ground, &owner), "a", json!("still"));
    assert_eq!(stream.told("").1["data"], "still");
}

#[test]
fn a_target_is_its_path_whatever_host_stands_before_it() {
    let (ground, _daemon, owner) = served_with("");
    let mut http = Http::connect(&ground.init_socket());
    for (target, status) in [
        ("http://x/v1/whoami", 200),
        ("https://some.where:1/v1/whoami", 200),
        ("http://x", 404),
        ("//v1/whoami", 404),
        ("/v1/%77hoami", 404),
        ("http://x/v1/whoami/..", 404),
    ] {
        assert_eq!(http.ask(&format!("GET {target}"), &owner, "").status, status, "{target}");
    }
    assert_eq!(http.ask("OPTIONS *", &owner, "").status, 404);
    // A head alone, of a stream too: nothing comes behind it.
    http.send(&request("HEAD /v1/events", &owner));
    let answer = http.head().unwrap();
    assert_eq!((answer.status, answer.field("content-type")), (200, "text/event-stream"));
    assert_eq!(http.ask("GET /v1/whoami", &owner, "").status, 200);
}

/// Only Linux names the one that connected; macOS names the one that used it last.
#[cfg(target_os = "linux")]
#[test]
fn a_connection_whose_process_is_gone_is_nobody_s_also_with_a_valid_token() {
    if skip_unless(has("python3"), "python3 is not installed") {
        return;
    }
    let (ground, daemon, owner) = served_with("");
    // The one that connects ends, and the one that asks got the connection from it.
    let script = "import os, socket, sys
token = sys.stdin.read()
ours, theirs = socket.socketpair()
if not (pid := os.fork()):
    made = socket.socket(socket.AF_UNIX)
    made.connect(sys.argv[1])
    socket.send_fds(theirs, [b'x'], [made.fileno()])
    os._exit(0)
os.waitpid(pid, 0)
made = socket.socket(fileno=socket.recv_fds(ours, 1, 1)[1][0])
made.settimeout(20)
made.sendall(f'GET /v1/whoami HTTP/1.1\\r\\nHost: x\\r\\nAuthorization: Bearer {token}\\r\\n\\r\\n'.encode())
print(made.makefile().read())";
    let mut command = ground.command("python3");
    command.args(["-c", script]).arg(ground.init_socket());
    let mut asks =
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    asks.stdin.take().unwrap().write_all(owner.as_bytes()).unwrap();
    let output = asks.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("HTTP/1.1 403 ") && text.contains("is gone"), "{text}");
    assert!(!text.contains("\"session\""));
    daemon.wait_for_log("peer_gone");
}

/// What the document refers to.
fn resolved<'a>(document: &'a Value, mut node: &'a Value) -> &'a Value {
    while let Some(place) = node["$ref"].as_str() {
        node = document.pointer(place.strip_prefix('#').unwrap()).unwrap_or_else(|| panic!("no {place}"));
    }
    node
}

#[test]
fn every_status_that_the_document_names_is_told_and_has_what_it_says() {
    let document: Value = serde_json::from_str(include_str!("../../docs/openapi.json")).unwrap();
    let (ground, _daemon, owner) =
        served_with("[handshake]\ntimeout_seconds = 1\n[http]\nrequest_seconds = 1\n");
    let (full, _full_daemon, full_owner) = served_with("[limits]\nconnections = 1\n");
    let mut only = Http::connect(&full.init_socket());
    assert_eq!(only.ask("GET /v1/whoami", &full_owner, "").status, 200);
    let rpc = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#.to_owned();
    let form = format!("token={owner}");
    let mut asked = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let method = method.to_uppercase();
            for (status, answer) in operation["responses"].as_object().unwrap() {
                let status: u16 = status.parse().unwrap();
                let (kind, body) = match (path.as_str(), status) {
                    ("/v1/rpc", 204) => ("application/json", rpc.replace(r#""id":1,"#, "")),
                    ("/v1/rpc", _) => ("application/json", rpc.clone()),
                    ("/v1/introspect", _) => ("application/x-www-form-urlencoded", form.clone()),
                    _ => ("", String::new()),
                };
                let kind = if status == 415 { "text/plain" } else { kind };
                let query = match (path.as_str(), status) {
                    (_, 400) => "?token=x".to_owned(),
                    (_, 414) => format!("?a={}", "x".repeat(20_000)),
                    ("/v1/events", _) => "?follow=false".to_owned(),
                    _ => String::new(),
                };
                let (ground, owner) = if status == 503 { (&full, &full_owner) } else { (&ground, &owner) };
                let proof = match status {
                    401 => String::new(),
                    _ => format!("Authorization: Bearer {owner}\r\nAuthsock-Asker: Bearer {owner}\r\n"),
                };
                let more = match status {
                    403 => "Origin: http://x\r\n".to_owned(),
                    413 => "Content-Length: 1048577\r\n".to_owned(),
                    431 => "A: b\r\n".repeat(70),
                    _ if body.is_empty() => String::new(),
                    _ => format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", body.len()),
                };
                // One that dawdles does not get to the end of its head.
                let end =
                    if status == 408 { String::new() } else { format!("Connection: close\r\n\r\n{body}") };
                let mut http = Http::connect(&ground.init_socket());
                http.send(&format!("{method} {path}{query} HTTP/1.1\r\nHost: x\r\n{proof}{more}{end}"));
                asked.push((format!("{method} {path} {status}"), status, resolved(&document, answer), http));
            }
        }
    }
    assert!(asked.len() > 60);
    for (what, status, documented, mut http) in asked {
        let head = http.head().unwrap_or_else(|| panic!("{what}: nothing"));
        assert_eq!(head.status, status, "{what}: {head:?}");
        let mut body = String::new();
        http.0.read_to_string(&mut body).unwrap();
        for (name, field) in documented["headers"].as_object().into_iter().flatten() {
            let is_there = !head.field(&name.to_lowercase()).is_empty();
            assert!(is_there || field["required"] != true, "{what}: no {name}");
        }
        let kind = head.field("content-type").split(';').next().unwrap();
        let Some(content) = documented.get("content").and_then(Value::as_object) else {
            assert_eq!((kind, body.as_str()), ("", ""), "{what}");
            continue;
        };
        let content = content.get(kind).unwrap_or_else(|| panic!("{what}: {kind:?} is not documented"));
        if !kind.ends_with("json") {
            continue;
        }
        let told: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{what}: {body}"));
        let mut schema = resolved(&document, &content["schema"]);
        if let Some(first) = schema["oneOf"].get(0).or(schema["anyOf"].get(0)) {
            schema = resolved(&document, first);
        }
        for name in schema["required"].as_array().into_iter().flatten() {
            assert!(told.get(name.as_str().unwrap()).is_some(), "{what}: no {name} in {body}");
        }
        assert!(kind != "application/problem+json" || told["status"] == status, "{what}: {body}");
    }
}
