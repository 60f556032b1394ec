//! Sessions as their users see them: what ends is told and listed, what may be changed, who sees whom, and that nobody gets more than there was.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use serde_json::{Value, json};

use authsock::secret::token::Token;
use authsock::session::scope::Scope;

use crate::ground::{
    Daemon, Ground, Line, bind_private, connected, has, minted, put, refusal, skip_unless, text_of,
};
use crate::tree::Inside;

fn served() -> (Ground, Daemon) {
    let ground = Ground::new();
    let daemon = ground.serve();
    (ground, daemon)
}

/// Makes a session that is bound to the user, so that this process may be in several.
fn make(line: &mut Line, name: &str, more: Value) -> (Value, Token) {
    let (token, verifier) = minted();
    let mut wish = json!({ "name": name, "binding": "uid", "verifier": verifier });
    wish.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let made = line.call("session.create", &wish);
    assert!(made["result"].is_object(), "{made}");
    (made["result"]["session"].clone(), token)
}

fn id(session: &Value) -> &str {
    session["id"].as_str().unwrap()
}

fn code(answer: &Value) -> i64 {
    answer["error"]["code"].as_i64().unwrap_or_else(|| panic!("{answer}"))
}

#[test]
fn the_last_line_of_a_connection_says_that_its_session_has_ended_and_why() {
    let (ground, daemon) = served();
    let mut owner = connected(&ground, &ground.token_after_first_contact());
    let (top, top_token) = make(&mut owner, "top", json!({}));
    let mut in_top = connected(&ground, &top_token.reveal());
    let (below, below_token) = make(&mut in_top, "below", json!({}));
    let mut in_below = connected(&ground, &below_token.reveal());
    let (brief, brief_token) = make(&mut owner, "brief", json!({ "ttl_seconds": 1 }));
    let mut in_brief = connected(&ground, &brief_token.reveal());
    let told = |session: &Value, reason: &str| {
        let params = json!({ "id": session["id"], "reason": reason });
        json!({ "jsonrpc": "2.0", "method": "session.ended", "params": params })
    };
    assert_eq!(in_brief.receive(), Some(told(&brief, "expired")));
    assert_eq!(in_brief.receive(), None);
    let log = daemon.wait_for_log("(brief) ended: expired");
    assert!(!log.contains("by process"), "{log}");
    // Who ends its own session hears the answer first.
    let answer = in_top.call("session.revoke", &json!({}));
    assert_eq!(answer["result"]["ended"], 2);
    assert_eq!(in_top.receive(), Some(told(&top, "revoked")));
    assert_eq!(in_top.receive(), None);
    assert_eq!(in_below.receive(), Some(told(&below, "parent_ended")));
    assert_eq!(in_below.receive(), None);
    assert_eq!(owner.call("ping", &json!({}))["result"]["pong"], true, "others go on");
    // And the log says who had it done.
    let whose = format!("(top) ended: revoked, by process {} in session {}", std::process::id(), id(&top));
    daemon.wait_for_log(&whose);
}

#[test]
fn the_end_of_a_leader_is_told_too_and_its_descendants_end_before_it() {
    let (ground, daemon) = served();
    let mut inside = Inside::begin(&ground, &["--bind", "uid", "--name", "led"]);
    let session = inside.whoami()["session"].clone();
    let mut line = connected(&ground, &inside.token());
    let (_, child) = make(&mut line, "child", json!({}));
    let mut in_child = connected(&ground, &child.reveal());
    inside.run.kill().unwrap();
    inside.run.wait().unwrap();
    let last = line.receive().unwrap();
    assert_eq!((&last["params"]["id"], &last["params"]["reason"]), (&session["id"], &json!("leader_exited")));
    assert_eq!(in_child.receive().unwrap()["params"]["reason"], "parent_ended");
    assert_eq!((line.receive(), in_child.receive()), (None, None));
    daemon.wait_for_log("(led) ended: leader_exited");
    let log = daemon.stderr();
    let place = |words: &str| log.find(words).unwrap_or_else(|| panic!("{words}: {log}"));
    assert!(
        place("(child) ended: parent_ended") < place("(led) ended: leader_exited"),
        "leaves first: {log}"
    );
}

#[test]
fn an_ended_session_is_told_revoked_for_its_time_and_denied_once_it_is_forgotten() {
    let ground = Ground::new();
    ground.configure("[limits]\nended_kept_seconds = 1\n");
    let _daemon = ground.serve();
    let mut owner = connected(&ground, &ground.token_after_first_contact());
    let (session, token) = make(&mut owner, "brief", json!({}));
    owner.call("session.revoke", &json!({ "id": session["id"] }));
    let come = || refusal(&Line::connect(&ground.init_socket()).plain(&token.reveal())).to_owned();
    assert_eq!(come(), "revoked");
    let listed = owner.call("session.list", &json!({ "ended": true }));
    assert_eq!(listed["result"]["sessions"][0]["reason"], "revoked", "{listed}");
    assert!(listed["result"]["sessions"][0]["ended_ms"].is_u64(), "{listed}");
    let mut codes = vec![come()];
    while codes.last().is_some_and(|code| code == "revoked") {
        codes.push(come());
    }
    assert_eq!(codes.pop().unwrap(), "denied", "and nothing in between");
    assert_eq!(owner.call("session.list", &json!({ "ended": true }))["result"]["sessions"], json!([]));
    assert_eq!(code(&owner.call("session.get", &json!({ "id": session["id"] }))), -32002);
    let records = std::fs::read_dir(ground.state().join("sessions")).unwrap().count();
    assert_eq!(records, 1, "this process led it and lives: one file tells of that");
}

#[test]
fn a_session_sees_those_of_its_realm_and_changes_itself_and_what_is_below_it() {
    let (ground, _daemon) = served();
    let mut owner = connected(&ground, &ground.token_after_first_contact());
    let (a, a_token) = make(&mut owner, "a", json!({ "realm": "one" }));
    let (b, _) = make(&mut owner, "b", json!({ "realm": "one" }));
    let (c, _) = make(&mut owner, "c", json!({ "realm": "two" }));
    let mut in_a = connected(&ground, &a_token.reveal());
    let (below, _) = make(&mut in_a, "below", json!({}));
    let get = |line: &mut Line, session: &Value| line.call("session.get", &json!({ "id": session["id"] }));
    assert_eq!(in_a.call("session.get", &json!({}))["result"]["session"], a);
    for session in [&a, &b, &below] {
        assert_eq!(get(&mut in_a, session)["result"]["session"], *session);
    }
    assert_eq!(code(&get(&mut in_a, &c)), -32002, "of another realm");
    assert_eq!(code(&in_a.call("session.get", &json!({ "id": "owner" }))), -32002, "the owner's is another");
    assert_eq!(get(&mut owner, &c)["result"]["session"], c);
    // What it sees it may not change.
    for method in ["session.update", "session.revoke", "session.rotate"] {
        for other in [id(&b), id(&c), "owner", "0000000000000000", "../x"] {
            let mut params = json!({ "id": other });
            if method == "session.rotate" {
                params["verifier"] = minted().1;
            }
            assert_eq!(code(&in_a.call(method, &params)), -32002, "{method} {other}");
        }
    }
    let renamed = in_a.call("session.update", &json!({ "id": below["id"], "name": "renamed" }));
    assert_eq!(renamed["result"]["session"]["name"], "renamed");
    let renamed = in_a.call("session.update", &json!({ "name": "itself" }));
    assert_eq!(renamed["result"]["session"]["name"], "itself");
    assert_eq!(in_a.call("whoami", &json!({}))["result"]["session"]["name"], "itself", "at once");
    for name in ["", "owner", "user", "a\nb", "a\u{202e}b", &"n".repeat(65)] {
        assert_eq!(code(&in_a.call("session.update", &json!({ "name": name }))), -32602, "{name:?}");
    }
    assert_eq!(code(&owner.call("session.update", &json!({ "name": "me" }))), -32001, "the owner stays so");
    // Ended ones are seen alike.
    owner.call("session.revoke", &json!({ "id": b["id"] }));
    owner.call("session.revoke", &json!({ "id": c["id"] }));
    assert_eq!(get(&mut in_a, &b)["result"]["session"]["reason"], "revoked");
    assert_eq!(code(&get(&mut in_a, &c)), -32002);
    let ended = in_a.call("session.list", &json!({ "ended": true }));
    assert_eq!(ended["result"]["sessions"].as_array().unwrap().len(), 1, "{ended}");
}

#[test]
fn requests_behind_one_s_own_narrowing_have_what_is_left() {
    let (ground, _daemon) = served();
    let mut owner = connected(&ground, &ground.token_after_first_contact());
    let (_, token) = make(&mut owner, "shrinking", json!({}));
    let mut line = connected(&ground, &token.reveal());
    let call = |id: u32, method: &str, params: Value| {
        format!("{}\n", json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }))
    };
    let create = json!({ "name": "x", "binding": "uid", "verifier": minted().1 });
    line.send(&(call(1, "session.update", json!({ "scopes": [] })) + &call(2, "session.create", create)));
    assert_eq!(line.receive().unwrap()["result"]["session"]["scopes"], json!(["session:self"]));
    assert_eq!(code(&line.receive().unwrap()), -32001);
}

#[test]
fn a_page_of_long_sessions_is_a_short_one() {
    let (ground, _daemon) = served();
    let mut owner = connected(&ground, &ground.token_after_first_contact());
    let scopes: Vec<String> =
        (0..50).map(|number| format!("events:publish:{number:02}{}", "s".repeat(60))).collect();
    for _ in 0..40 {
        make(&mut owner, "long", json!({ "scopes": scopes }));
    }
    let (mut count, mut after) = (0, Value::Null);
    loop {
        let page = owner.call("session.list", &json!({ "after": after }));
        assert!(page.to_string().len() < (64 + 16) * 1024, "{}", page.to_string().len());
        count += page["result"]["sessions"].as_array().unwrap().len();
        after = page["result"]["next"].clone();
        if after.is_null() {
            break;
        }
    }
    assert_eq!(count, 41);
}

#[test]
fn what_a_client_says_of_itself_changes_neither_whose_request_it_is_nor_what_is_logged() {
    let ground = Ground::new();
    let daemon = ground.serve_as(|command| {
        command.env("AUTHSOCK_LOG", "debug");
    });
    let mut owner = connected(&ground, &ground.token_after_first_contact());
    let (session, token) = make(&mut owner, "honest \"name\" = owner", json!({}));
    let mut line = connected(&ground, &token.reveal());
    // Claims of another session, peer or leader are unknown parameters, wherever they stand.
    for claim in
        ["session", "session_id", "sender", "from", "uid", "pid", "leader", "peer", "realm", "parent"]
    {
        for method in ["ping", "whoami", "status", "session.get", "session.update"] {
            let answer = line.call(method, &json!({ claim: "owner" }));
            assert_eq!(code(&answer), -32602, "{method} {claim}: {answer}");
        }
        if claim != "realm" {
            let mut wish = json!({ "name": "x", "verifier": minted().1 });
            wish[claim] = "owner".into();
            assert_eq!(code(&line.call("session.create", &wish)), -32602, "{claim}");
        }
    }
    // Beside the parameters they are not looked at.
    line.send_json(&json!({ "jsonrpc": "2.0", "id": 1, "method": "whoami", "session": "owner", "uid": 0 }));
    assert_eq!(line.receive().unwrap()["result"]["session"]["id"], session["id"]);
    line.send_json(&json!({ "jsonrpc": "2.0", "id": "x\nINFO session owner", "method": "no\nINFO such" }));
    assert_eq!(code(&line.receive().unwrap()), -32601);
    let words = format!(
        "whoami by process {} (uid {}) in session {}",
        std::process::id(),
        nix::unistd::geteuid(),
        id(&session)
    );
    daemon.wait_for_log(&words);
    let log = daemon.stderr();
    assert!(log.lines().all(|line| line.starts_with("20")), "each line is one of ours: {log}");
    assert!(!log.contains(&token.reveal()[..16]));
}

#[test]
fn a_person_lists_shows_renames_rotates_and_ends_sessions() {
    let (ground, _daemon) = served();
    let text = |args: &[&str]| {
        let output = ground.authsock(["session"]).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", text_of(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let mut outer = Inside::begin(&ground, &["--name", "outer", "--ttl", "1h"]);
    let outer_id = outer.id();
    let (code, said) = outer.tell(
        "authsock run --name inner -- sh -c 'authsock session list --tree; authsock session show; authsock session rename \
         \"$(authsock whoami --json | sed \"s/.*\\\"id\\\":\\\"\\([^\\\"]*\\)\\\".*/\\1/\")\" renamed'",
    );
    assert_eq!(code, 0, "{said}");
    for words in ["└─ ", "inner", "parent     ", "renamed", "in 60 min"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let list = text(&["list"]);
    let row = list.lines().find(|line| line.contains("outer")).unwrap();
    assert!(row.starts_with(&outer_id) && row.contains("tree") && row.ends_with("in 60 min"), "{list}");
    let ended = text(&["list", "--ended"]);
    let row = ended.lines().find(|line| line.contains("renamed")).unwrap_or_else(|| panic!("{ended}"));
    assert!(row.contains(" s ago") && row.ends_with("leader exited"), "{ended}");
    let shown = text(&["show", &outer_id]);
    for words in ["name", "outer", "scopes", "session:create", "began", "expires"] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    assert!(text(&["rename", &outer_id, "another"]).contains("another"));
    assert_eq!(outer.whoami()["session"]["name"], "another");
    // The owner gives it a new token, written where its programs look.
    let before = outer.token();
    let file = outer.token_file.to_str().unwrap();
    text(&["rotate", &outer_id, "--write", file]);
    assert!(outer.token() != before && outer.id() == outer_id);
    let output = ground.authsock(["session", "rotate", &outer_id]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "where it lies is not known: {}", text_of(&output));
    let before = outer.token();
    assert_eq!(outer.tell("authsock session rotate").0, 0);
    assert!(outer.token() != before && outer.id() == outer_id, "its own it finds");
    let before = ground.token();
    text(&["rotate", "owner", "--now"]);
    assert!(ground.token() != before);
    assert!(text(&["revoke", &outer_id]).contains(&outer_id));
    assert_eq!(ground.json(["session", "show", &outer_id])["reason"], "revoked");
    let (code, said) = outer.tell("authsock whoami");
    assert_eq!((code, said.contains("revoked")), (4, true), "{said}");
}

#[test]
fn a_client_reads_a_refused_token_again_once_and_tries_another_one_once() {
    let ground = Ground::new();
    let tokens: Vec<Token> = (0..4).map(|_| Token::generate().unwrap()).collect();
    let file = ground.root().join("turning");
    // Whatever refuses: it hears the token's id, and meanwhile the file may get another token.
    for (code, turns, tries) in
        [("denied", true, 2), ("revoked", true, 2), ("denied", false, 1), ("expired", true, 1)]
    {
        put(&file, &tokens[0].reveal(), 0o600);
        let listener = bind_private(&ground.init_socket());
        let mut client = ground
            .authsock(["whoami"])
            .env("AUTHSOCK_TOKEN_FILE", &file)
            .env("AUTHSOCK_SOCKET", ground.init_socket())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        for number in 0..tries {
            let mut line = Line::on(listener.accept().unwrap().0);
            let opening = line.receive().unwrap();
            assert_eq!(opening["token_id"], tokens[number].id().to_string(), "{code}");
            if turns {
                put(&file, &tokens[number + 1].reveal(), 0o600);
            }
            let error = json!({ "code": code, "message": "no" });
            line.send_json(&json!({ "type": "auth_result", "success": false, "error": error }));
        }
        // It ends by itself, and nobody has come since.
        assert_eq!(client.wait().unwrap().code(), Some(4), "{code}");
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "{code}");
        std::fs::remove_file(ground.init_socket()).unwrap();
    }
}

#[test]
fn thousands_of_sessions_are_listed_in_pages_and_end_with_their_leader_while_others_are_served() {
    if skip_unless(has("socat"), "socat is not installed") {
        return;
    }
    let ground = Ground::new();
    ground.configure("[limits]\nsessions = 10000\nsessions_per_uid = 10000\n");
    let _daemon = ground.serve();
    let mut owner = connected(&ground, &ground.token_after_first_contact());
    // What connects leads: its end is the end of all of them.
    let mut leader = ground
        .command("socat")
        .args(["-t", "30", "-", &format!("UNIX-CONNECT:{}", ground.init_socket().display())])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = leader.stdin.take().unwrap();
    let mut output = BufReader::new(leader.stdout.take().unwrap()).lines();
    writeln!(input, "{}", json!({ "type": "auth", "token": ground.token() })).unwrap();
    assert!(output.next().unwrap().unwrap().contains("true"));
    const COUNT: usize = 5000;
    let (token, mut verifier) = minted();
    let mut asked = String::new();
    for number in 0..COUNT {
        let name = if number == 0 || number == COUNT - 1 { "seldom" } else { "many" };
        let realm = if name == "seldom" { "r" } else { "default" };
        let params = json!({ "name": name, "realm": realm, "binding": "uid", "verifier": verifier });
        let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "session.create", "params": params });
        asked.push_str(&format!("{call}\n"));
        verifier = minted().1;
    }
    let sending = std::thread::spawn(move || {
        input.write_all(asked.as_bytes()).unwrap();
        input
    });
    for _ in 0..COUNT {
        assert!(output.next().unwrap().unwrap().contains("result"));
    }
    let _input = sending.join().unwrap();
    // All pages of a realm that has two of them, far apart; then all of everything.
    let pages = |line: &mut Line, params: Value| -> (usize, Vec<String>) {
        let (mut count, mut names, mut after) = (0, Vec::new(), Value::Null);
        loop {
            let mut params = params.clone();
            params["after"] = after;
            let page = line.call("session.list", &params)["result"].take();
            let sessions = page["sessions"].as_array().unwrap();
            assert!(sessions.len() <= 256);
            names.extend(sessions.iter().map(|session| session["name"].as_str().unwrap().to_owned()));
            count += 1;
            after = page["next"].clone();
            if after.is_null() {
                return (count, names);
            }
        }
    };
    let mut in_realm = connected(&ground, &token.reveal());
    assert_eq!(pages(&mut in_realm, json!({})), (2, vec!["seldom".to_owned(), "seldom".to_owned()]));
    let (count, names) = pages(&mut owner, json!({ "all_realms": true }));
    assert!(count >= 20 && names.len() == COUNT + 1, "{count} pages, {} sessions", names.len());
    leader.kill().unwrap();
    leader.wait().unwrap();
    let left = |owner: &mut Line| owner.call("status", &json!({}))["result"]["sessions"].as_u64().unwrap();
    let mut seen = vec![left(&mut owner)];
    while seen.last() != Some(&0) {
        seen.push(left(&mut owner));
    }
    seen.dedup();
    assert!(seen.len() > 3, "others are served while they end: {seen:?}");
    let (_, names) = pages(&mut owner, json!({ "all_realms": true, "ended": true }));
    assert_eq!(names.len(), COUNT);
}

/// What a session may have that came from another, in the words of the socket.
fn may_have(parent: &Value, child: &Value) -> Result<(), String> {
    let scopes = |session: &Value| -> Vec<Scope> {
        session["scopes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|scope| scope.as_str().unwrap().parse().unwrap())
            .collect()
    };
    let stands_for_somebody = parent["parent"].is_null();
    let (above, below) = (scopes(parent), scopes(child));
    let wider = below.iter().find(|scope| !above.iter().any(|above| above.covers(scope)));
    let width = |session: &Value| usize::from(session["binding"] == "uid");
    let end = |session: &Value| session["expires_ms"].as_u64().unwrap_or(u64::MAX);
    match () {
        () if wider.is_some() => Err(format!("scope {}", wider.unwrap())),
        () if width(child) > width(parent) => Err("binding".into()),
        () if end(child) > end(parent) => Err("expiry".into()),
        () if child["realm"] != parent["realm"] && !stands_for_somebody => Err("realm".into()),
        () if child["uid"] != parent["uid"] => Err("uid".into()),
        () if child["leader"]["pid"] != std::process::id() => Err("leader".into()),
        () => Ok(()),
    }
}

/// Numbers that are the same for the same seed (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(limit).unwrap()).unwrap()
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

#[test]
fn no_session_gets_by_any_call_what_the_one_that_it_came_from_lacks() {
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| u64::from_ne_bytes(authsock::secret::random::bytes().unwrap()) | 1);
    let mut random = Random(seed);
    const SCOPES: [&str; 14] = [
        ">",
        "session:create",
        "events:publish:>",
        "events:publish:a.>",
        "events:publish:a.*",
        "events:publish:*.b",
        "events:publish:a.b",
        "events:subscribe:>",
        "events:subscribe:*",
        "service:docker",
        "serve:docker",
        "verify",
        "metrics",
        "daemon:manage",
    ];
    let ground = Ground::new();
    ground.configure("[limits]\nsession_depth = 5\nsession_descendants = 40\n");
    let _daemon = ground.serve();
    let owner_token = ground.token_after_first_contact();
    let mut owner = connected(&ground, &owner_token);
    // The tokens that somebody could hold, and a connection in each session.
    let mut lines: BTreeMap<String, Line> = BTreeMap::new();
    let (mut refused, mut done) = (0, 0);
    for turn in 0..800 {
        let ids: Vec<String> = lines.keys().cloned().collect();
        let as_owner = ids.is_empty() || random.below(6) == 0;
        let asker = if as_owner { "owner".to_owned() } else { random.of(&ids).clone() };
        let target =
            if ids.is_empty() || random.below(3) == 0 { asker.clone() } else { random.of(&ids).clone() };
        let scopes: Vec<&str> = (0..random.below(5)).map(|_| *random.of(&SCOPES)).collect();
        let mut params = json!({});
        let (token, verifier) = minted();
        let maybe = |random: &mut Random, params: &mut Value, name: &str, value: Value| {
            if random.below(2) == 0 {
                params[name] = value;
            }
        };
        let method = *random.of(&[
            "session.create",
            "session.create",
            "session.update",
            "session.rotate",
            "session.revoke",
        ]);
        match method {
            "session.create" => {
                maybe(&mut random, &mut params, "scopes", json!(scopes));
                let realm = *random.of(&["default", "r", "other"]);
                maybe(&mut random, &mut params, "realm", realm.into());
                let ttl = *random.of(&[50, 500, 5000, 50_000]);
                maybe(&mut random, &mut params, "ttl_seconds", ttl.into());
                params["binding"] = (*random.of(&["uid", "uid", "tree"])).into();
                params["name"] = (*random.of(&["n", "owner", "user", "m"])).into();
                params["verifier"] = verifier;
                // Nobody leads but who asks.
                if random.below(8) == 0 {
                    params["leader"] = json!({ "pid": 1 });
                }
            }
            "session.update" => {
                params["id"] = target.into();
                maybe(&mut random, &mut params, "name", "renamed".into());
                maybe(&mut random, &mut params, "scopes", json!(scopes));
                let ttl = *random.of(&[1000, 50_000, 500_000]);
                maybe(&mut random, &mut params, "ttl_seconds", ttl.into());
                // There is no such thing as another binding, realm, leader or parent.
                if random.below(6) == 0 {
                    let name = *random.of(&["binding", "realm", "leader", "parent", "uid"]);
                    params[name] = "uid".into();
                }
            }
            "session.rotate" => {
                params["id"] = target.into();
                if params["id"] != "owner" {
                    params["verifier"] = verifier;
                }
                params["grace_seconds"] = (*random.of(&[0, 60])).into();
                if params["id"] == "owner" && as_owner {
                    continue; // this process leads sessions: its new token would not let it in
                }
            }
            _ if random.below(3) == 0 => params["id"] = target.into(),
            _ => continue,
        }
        let mut shown = params.clone();
        shown.as_object_mut().unwrap().remove("verifier");
        let line = if as_owner { &mut owner } else { lines.get_mut(&asker).unwrap() };
        // As a batch too, whatever the daemon thinks of those.
        if random.below(10) == 0 {
            line.send_json(&json!([{ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }]));
        } else {
            line.send_json(&json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }));
        }
        let Some(answer) = line.receive() else { panic!("seed {seed}, turn {turn}: {asker} {method}") };
        let answer = answer.as_array().and_then(|all| all.first()).unwrap_or(&answer);
        if answer["error"].is_object() {
            refused += 1;
        } else {
            done += 1;
        }
        if let Some(made) = answer["result"]["session"]["id"].as_str().filter(|_| method == "session.create")
        {
            lines.insert(made.to_owned(), connected(&ground, &token.reveal()));
        }
        // What holds for all of them, whatever was asked.
        let list = owner.call("session.list", &json!({ "all_realms": true }));
        let living: BTreeMap<String, Value> = list["result"]["sessions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|session| (id(session).to_owned(), session.clone()))
            .collect();
        assert!(living.len() < 256, "one page");
        for session in living.values().filter(|session| session["id"] != "owner") {
            let parent = living.get(session["parent"].as_str().unwrap());
            let parent =
                parent.unwrap_or_else(|| panic!("seed {seed}, turn {turn}: {session} outlives its parent"));
            if let Err(wider) = may_have(parent, session) {
                panic!(
                    "seed {seed}, turn {turn}: {asker} {method} {shown}: {wider} of {session} below {parent}"
                );
            }
            let name = session["name"].as_str().unwrap();
            assert!(!["owner", "user"].contains(&name), "seed {seed}, turn {turn}: {session}");
        }
        lines.retain(|id, _| living.contains_key(id));
        // A rotated connection changes nothing any more; the session goes on in another, or in none.
        if method == "session.rotate" && answer["result"].is_object() {
            let id = answer["result"]["id"].as_str().unwrap().to_owned();
            lines.insert(id, connected(&ground, &token.reveal()));
        }
    }
    assert!(refused > 50 && done > 50, "seed {seed}: {refused} refused, {done} done");
}
