//! Real clients against the real daemon: socat, Python and curl as they are installed, and requests in every packing.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

use authsock::secret::token::Token;
use authsock::secret::verifier::Verifier;
use serde_json::{Value, json};

use crate::ground::{Daemon, Ground, Line, PATIENCE, bind_private, has, put, refusal, skip_unless, text_of};

const WHOAMI: &str = r#"{"jsonrpc":"2.0","id":1,"method":"whoami"}"#;
/// A token that nobody has.
const WRONG: &str = "00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff";

/// As [`serving`], where HTTP is turned off.
fn serving_without_http() -> (Ground, Daemon) {
    let ground = Ground::new();
    ground.configure("[http]\nenabled = false\n");
    let daemon = ground.serve();
    ground.token_after_first_contact();
    (ground, daemon)
}

fn serving() -> (Ground, Daemon) {
    let ground = Ground::new();
    let daemon = ground.serve();
    (ground, daemon)
}

fn authenticate(token: &str) -> String {
    format!("{{\"type\":\"auth\",\"token\":\"{token}\"}}\n")
}

fn connected(ground: &Ground) -> Line {
    let mut line = Line::connect(&ground.init_socket());
    assert_eq!(line.plain(&ground.token())["success"], true);
    line
}

fn parsed(text: &[u8]) -> Vec<Value> {
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
}

// socat

fn socat(ground: &Ground) -> Command {
    let mut command = ground.command("socat");
    // -t: how long the answer may take once everything was said.
    command.args(["-t30", "-T30", "-", &format!("UNIX-CONNECT:{}", ground.init_socket().display())]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn socat_alone_performs_the_plain_handshake_and_a_whoami() {
    if skip_unless(has("socat"), "socat is not installed") {
        return;
    }
    let (ground, _daemon) = serving();
    let check = |answers: &[Value]| {
        assert_eq!(answers.len(), 2, "{answers:?}");
        assert_eq!(answers[0]["session"]["id"], "owner");
        assert_eq!(answers[1]["result"]["session"]["id"], "owner");
        assert_eq!(answers[1]["result"]["handshake"], "plain");
    };

    // Both lines in one write.
    let mut child = socat(&ground).spawn().unwrap();
    let both = format!("{}{WHOAMI}\n", authenticate(&ground.token()));
    child.stdin.take().unwrap().write_all(both.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text_of(&output));
    check(&parsed(&output.stdout));

    // The second one after the first was answered.
    let mut child = socat(&ground).spawn().unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
    let mut answers = String::new();
    input.write_all(authenticate(&ground.token()).as_bytes()).unwrap();
    output.read_line(&mut answers).unwrap();
    input.write_all(format!("{WHOAMI}\n").as_bytes()).unwrap();
    drop(input);
    output.read_to_string(&mut answers).unwrap();
    assert!(child.wait().unwrap().success());
    check(&parsed(answers.as_bytes()));
}

// Python

fn prove_py() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/prove.py")
}

fn prove(ground: &Ground, socket: &Path, token_file: &Path) -> Output {
    ground.command("python3").arg(prove_py()).args([socket, token_file]).output().unwrap()
}

#[test]
fn the_python_client_is_short_and_holds_the_vectors() {
    let lines = std::fs::read_to_string(prove_py()).unwrap().lines().count();
    assert!(lines <= 60, "it has {lines} lines");
    if skip_unless(has("python3"), "python3 is not installed") {
        return;
    }
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let output = Command::new("python3").arg(prove_py()).arg("--vectors").arg(vectors).output().unwrap();
    assert!(output.status.success(), "{}", text_of(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("exchanges hold"), "{}", text_of(&output));
}

#[test]
fn a_python_script_proves_itself_with_the_standard_library_alone() {
    if skip_unless(has("python3"), "python3 is not installed") {
        return;
    }
    let (ground, _daemon) = serving();
    let output = prove(&ground, &ground.init_socket(), &ground.token_path());
    assert!(output.status.success(), "{}", text_of(&output));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["result"]["session"]["id"], "owner");
    assert_eq!(answer["result"]["handshake"], "proof");
}

#[test]
fn the_python_client_finds_out_a_wrong_token_an_impostor_and_a_relay() {
    if skip_unless(has("python3"), "python3 is not installed") {
        return;
    }
    let (ground, _daemon) = serving();
    let ends_with = |output: &Output, word: &str| {
        assert!(!output.status.success(), "{}", text_of(output));
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(words.starts_with(word) && words.lines().count() == 1, "{word}: {}", text_of(output));
    };
    let wrong = ground.root().join("wrong");
    put(&wrong, WRONG, 0o600);
    ends_with(&prove(&ground, &ground.init_socket(), &wrong), "impostor: ");

    // Accepts anybody and says what a client would like to hear; the script never gets that far.
    let path = ground.root().join("impostor.sock");
    let impostor = bind_private(&path);
    let heard = thread::spawn(move || {
        let mut heard = Vec::new();
        let (mut stream, _) = impostor.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"{\"type\":\"auth_result\",\"success\":true,\"session\":{}}\n").unwrap();
        stream.read_to_end(&mut heard).unwrap();
        heard
    });
    ends_with(&prove(&ground, &path, &ground.token_path()), "not_a_daemon: ");
    let heard = String::from_utf8(heard.join().unwrap()).unwrap();
    assert_eq!(heard.lines().count(), 1, "only the opening: {heard}");
    assert!(!heard.contains(&ground.token()));

    let path = ground.root().join("relay.sock");
    let relay = bind_private(&path);
    let real = ground.init_socket();
    let relayed = thread::spawn(move || {
        let (client, _) = relay.accept().unwrap();
        let daemon = UnixStream::connect(real).unwrap();
        let (mut up, mut down) = (client.try_clone().unwrap(), daemon.try_clone().unwrap());
        let upward = thread::spawn(move || {
            let mut seen = Vec::new();
            let mut piece = [0; 4096];
            while let Ok(read @ 1..) = up.read(&mut piece) {
                seen.extend_from_slice(&piece[..read]);
                down.write_all(&piece[..read]).unwrap();
            }
            let _ = down.shutdown(std::net::Shutdown::Write);
            seen
        });
        let (mut from, mut to) = (daemon, client);
        let _ = std::io::copy(&mut from, &mut to);
        upward.join().unwrap()
    });
    ends_with(&prove(&ground, &path, &ground.token_path()), "relay: ");
    let seen = String::from_utf8(relayed.join().unwrap()).unwrap();
    assert!(
        seen.lines().count() == 1 && !seen.contains("proof"),
        "a relay hears the opening and no proof: {seen}"
    );
}

// HTTP

fn curl<const N: usize>(ground: &Ground, args: [&str; N]) -> Output {
    let mut command = ground.command("curl");
    command.args(["--silent", "--show-error", "--include", "--max-time", "30", "--unix-socket"]);
    command.arg(ground.init_socket()).args(args);
    command.output().unwrap()
}

#[test]
fn where_http_is_turned_off_curl_gets_a_proper_501_and_no_word_of_the_handshake() {
    if skip_unless(has("curl"), "curl is not installed") {
        return;
    }
    let (ground, _daemon) = serving_without_http();
    let body = ground.root().join("body");
    std::fs::write(&body, vec![b'x'; 100_000]).unwrap();
    let upload = format!("@{}", body.display());
    for (args, has_body) in [
        (["http://localhost/v1/whoami", "--request", "GET", "--header", "Authorization: Bearer 0"], true),
        (["http://localhost/", "--head", "--http1.1", "--header", "X-A: b"], false),
        (["http://localhost/v1/rpc", "--request", "POST", "--data-binary", &upload], true),
        (["http://localhost/v1/rpc", "--expect100-timeout", "0.1", "--data-binary", &upload], true),
    ] {
        let output = curl(&ground, args);
        assert!(output.status.success(), "{args:?}: {}", text_of(&output));
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        let (head, rest) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 501 Not Implemented\r\n"), "{head}");
        assert!(head.contains("\r\nContent-Type: application/problem+json\r\n"), "{head}");
        assert!(head.ends_with("\r\nConnection: close"), "{head}");
        if has_body {
            let problem: Value = serde_json::from_str(rest).unwrap();
            assert_eq!((&problem["status"], &problem["title"]), (&json!(501), &json!("Not Implemented")));
        } else {
            assert_eq!(rest, "");
        }
        assert!(!text.contains("auth_result"), "{text}");
    }
}

#[test]
fn where_http_is_turned_off_a_second_request_on_a_kept_alive_connection_is_not_answered() {
    let (ground, _daemon) = serving_without_http();
    let mut stream = UnixStream::connect(ground.init_socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
        .write_all(
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        )
        .unwrap();
    stream.write_all(authenticate(&ground.token()).as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text.matches("HTTP/1.1 501").count(), 1, "{text}");
    assert!(!text.contains("auth_result"), "{text}");
}

#[test]
fn a_body_that_comes_after_the_answer_breaks_nothing() {
    let (ground, _daemon) = serving_without_http();
    let mut stream = UnixStream::connect(ground.init_socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 501"), "{text}");
    stream.write_all(&vec![b'x'; 100_000]).unwrap();
}

#[test]
fn a_head_that_comes_in_pieces_is_answered_without_a_body_and_one_that_never_ends_in_http() {
    let ground = Ground::new();
    ground.configure("[handshake]\ntimeout_seconds = 1\n[http]\nenabled = false\n");
    let _daemon = ground.serve();
    let answer = |pieces: &[&[u8]]| {
        let mut stream = UnixStream::connect(ground.init_socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        for piece in pieces {
            stream.write_all(piece).unwrap();
            wait_until_taken(&stream);
        }
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    let pieces: Vec<&[u8]> = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n".chunks(1).collect();
    let text = answer(&pieces);
    assert!(text.starts_with("HTTP/1.1 501") && text.ends_with("\r\n\r\n"), "{text}");
    let text = answer(&[b"GET / HTTP/1.1\r\nHo"]);
    assert!(
        text.starts_with("HTTP/1.1 501") && text.ends_with('}') && !text.contains("auth_result"),
        "{text}"
    );
}

/// Waits until the other end has read what was written: the kernel counts it (SIOCOUTQ, unix(7)
/// and tcp(7)), but gives no event.
fn wait_until_taken(stream: &UnixStream) {
    use std::os::fd::AsRawFd;
    let end = std::time::Instant::now() + PATIENCE;
    let mut left: libc::c_int = 1;
    while left > 0 && std::time::Instant::now() < end {
        // SAFETY: the descriptor is open, and the kernel writes one int.
        let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &mut left) };
        assert_eq!(result, 0);
        thread::yield_now();
    }
}

// Packings

#[test]
fn result_and_first_answer_leave_in_one_write() {
    let (ground, _daemon) = serving();
    let mut stream = UnixStream::connect(ground.init_socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(format!("{}{WHOAMI}\n", authenticate(&ground.token())).as_bytes()).unwrap();
    let mut once = vec![0; 65536];
    let read = stream.read(&mut once).unwrap();
    assert_eq!(parsed(&once[..read]).len(), 2, "one read has both");
}

#[test]
fn a_hundred_requests_behind_the_token_are_answered_in_order() {
    let (ground, _daemon) = serving();
    let mut text = authenticate(&ground.token());
    for id in 0..100 {
        let method = ["ping", "whoami", "no.such"][id % 3];
        text.push_str(&format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"{method}\"}}\n"));
        // Notifications and empty lines are not answered.
        text.push_str("{\"jsonrpc\":\"2.0\",\"method\":\"ping\"}\n\r\n\n");
    }
    assert!(text.len() > 4096, "longer than a line of the handshake");
    for size in [text.len(), 4096, 1000, 7] {
        let mut line = Line::connect(&ground.init_socket());
        for piece in text.as_bytes().chunks(size) {
            line.stream().write_all(piece).unwrap();
        }
        assert_eq!(line.receive().unwrap()["success"], true);
        for id in 0..100 {
            let answer = line.receive().unwrap();
            assert_eq!(answer["id"], id, "in pieces of {size}");
            assert_eq!(answer["error"].is_object(), id % 3 == 2, "{answer}");
        }
        line.stream().shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(line.rest(), b"", "nothing behind the last answer");
    }
}

fn a_session() -> Value {
    let verifier = Verifier::of(&Token::generate().unwrap());
    let (stored, server) = verifier.reveal();
    json!({
        "name": "stowaway",
        "verifier": { "token_id": verifier.id().to_string(), "stored_key": *stored, "server_key": *server },
    })
}

#[test]
fn a_request_riding_on_a_wrong_token_or_proof_is_never_carried_out() {
    let (ground, mut daemon) = serving();
    let requests = [
        json!({ "jsonrpc": "2.0", "id": 1, "method": "session.create", "params": a_session() }),
        json!({ "jsonrpc": "2.0", "id": 2, "method": "session.rotate", "params": {} }),
        json!({ "jsonrpc": "2.0", "id": 3, "method": "daemon.retire" }),
    ];
    let riding: String = requests.iter().map(|request| format!("{request}\n")).collect();
    let before = ground.token();

    let mut line = Line::connect(&ground.init_socket());
    line.send(&format!("{}{riding}", authenticate(WRONG)));
    assert_eq!(refusal(&line.receive().unwrap()), "denied");
    assert_eq!(line.rest(), b"");

    for token in [WRONG, &before] {
        let mut line = Line::connect(&ground.init_socket());
        let token_id = Token::parse(token.as_bytes()).unwrap().id().to_string();
        // Requests that come before their time count as a wrong proof does.
        line.send_json(&json!({ "type": "auth", "v": 1, "token_id": token_id, "nonce": WRONG }));
        assert_eq!(line.receive().unwrap()["type"], "challenge");
        line.send(&format!("{{\"type\":\"auth\",\"proof\":\"{WRONG}\"}}\n{riding}"));
        assert_eq!(refusal(&line.receive().unwrap()), "denied");
        assert_eq!(line.rest(), b"");

        let mut line = Line::connect(&ground.init_socket());
        line.send(&format!(
            "{{\"type\":\"auth\",\"v\":1,\"token_id\":\"{token_id}\",\"nonce\":\"{WRONG}\"}}\n{riding}"
        ));
        assert_eq!(line.receive().unwrap()["type"], "challenge");
        assert_eq!(refusal(&line.receive().unwrap()), "malformed");
        assert_eq!(line.rest(), b"");
    }

    assert_eq!(daemon.child.try_wait().unwrap(), None, "it has not retired");
    assert_eq!(ground.token(), before);
    let mut line = connected(&ground);
    let sessions = line.call("session.list", &json!({ "all_realms": true }))["result"]["sessions"].clone();
    assert_eq!(sessions.as_array().unwrap().len(), 1, "{sessions}");

    // The same bytes behind the right token are.
    let mut line = Line::connect(&ground.init_socket());
    line.send(&format!("{}{}\n", authenticate(&before), requests[0]));
    assert_eq!(line.receive().unwrap()["success"], true);
    assert_eq!(line.receive().unwrap()["result"]["session"]["name"], "stowaway");
}

#[test]
fn ids_of_odd_kinds_come_back_as_they_were_sent() {
    let (ground, _daemon) = serving();
    let mut reader = BufReader::new(UnixStream::connect(ground.init_socket()).unwrap());
    reader.get_mut().write_all(authenticate(&ground.token()).as_bytes()).unwrap();
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    for id in
        ["null", "\"\"", "\"ä\\u0041\\\"\"", "-0", "1.0", "1e400", "123456789012345678901234567890", "0.10"]
    {
        reader
            .get_mut()
            .write_all(format!("{{\"id\" : {id} , \"jsonrpc\":\"2.0\",\"method\":\"ping\"}}\n").as_bytes())
            .unwrap();
        line.clear();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line, format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{\"pong\":true}}}}\n"));
    }
    for id in ["true", "{}", "[1]", "01", "nul"] {
        reader
            .get_mut()
            .write_all(format!("{{\"id\":{id},\"jsonrpc\":\"2.0\",\"method\":\"ping\"}}\n").as_bytes())
            .unwrap();
        line.clear();
        reader.read_line(&mut line).unwrap();
        assert!(line.starts_with("{\"jsonrpc\":\"2.0\",\"id\":null,\"error\":"), "{line}");
    }
}

#[test]
fn a_second_handshake_is_one_error_and_the_end() {
    let (ground, _daemon) = serving();
    for asked_before in [false, true] {
        let mut line = connected(&ground);
        if asked_before {
            assert_eq!(line.call("ping", &json!({}))["result"]["pong"], true);
        }
        line.send(&format!("{}{WHOAMI}\n", authenticate(&ground.token())));
        let answer = line.receive().unwrap();
        assert_eq!((&answer["id"], &answer["error"]["code"]), (&Value::Null, &json!(-32600)), "{answer}");
        assert_eq!(line.rest(), b"", "what came behind it was not carried out");
    }
}

// Limits

#[test]
fn a_line_of_the_handshake_may_have_4096_bytes_and_not_one_more() {
    let (ground, _daemon) = serving();
    let of_length = |length: usize| {
        let start = format!("{{\"type\":\"auth\",\"token\":\"{}\",\"padding\":\"", ground.token());
        let padding = "x".repeat(length - start.len() - "\"}\n".len());
        format!("{start}{padding}\"}}\n")
    };
    let mut line = Line::connect(&ground.init_socket());
    line.send(&format!("{}{WHOAMI}\n", of_length(4096)));
    assert_eq!(line.receive().unwrap()["success"], true);
    assert_eq!(line.receive().unwrap()["result"]["session"]["id"], "owner");
    let mut line = Line::connect(&ground.init_socket());
    line.send(&of_length(4097));
    assert_eq!(refusal(&line.receive().unwrap()), "too_large");
    assert_eq!(line.rest(), b"");
}

#[test]
fn a_request_may_have_a_mebibyte_and_one_byte_more_is_a_named_error_and_the_end() {
    let (ground, _daemon) = serving();
    let of_length = |length: usize| {
        let start = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\",\"x\":\"";
        let padding = "x".repeat(length - start.len() - "\"}\n".len());
        format!("{start}{padding}\"}}\n")
    };
    let limit = 1 << 20;
    let mut line = connected(&ground);
    for length in [limit - 1, limit] {
        line.send(&of_length(length));
        assert_eq!(line.receive().unwrap()["result"]["pong"], true, "{length}");
    }
    // Its writer gets the words, however much it had still to say.
    for length in [limit + 1, 3 * limit] {
        let mut line = connected(&ground);
        line.send(&of_length(length));
        let answer = line.receive().unwrap();
        assert_eq!((&answer["id"], &answer["error"]["code"]), (&Value::Null, &json!(-32004)), "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains("1048576"), "{answer}");
        assert_eq!(line.rest(), b"");
    }
}

#[test]
fn many_short_requests_with_long_answers_are_all_answered() {
    let (ground, _daemon) = serving();
    let mut line = connected(&ground);
    let params = |name: String| {
        let mut params = a_session();
        params["name"] = name.into();
        params["binding"] = "uid".into();
        params
    };
    for number in 0..40 {
        let answer = line.call("session.create", &params(format!("n{number}")));
        assert!(answer["result"].is_object(), "{answer}");
    }
    // More than the daemon collects before it writes.
    let count = 1000;
    let batch: String = (0..count)
        .map(|id| format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"session.list\"}}\n"))
        .collect();
    let mut writer = line.stream().try_clone().unwrap();
    let writing = thread::spawn(move || writer.write_all(batch.as_bytes()));
    for id in 0..count {
        let answer = line.receive().unwrap();
        assert_eq!(answer["id"], id);
        assert_eq!(answer["result"]["sessions"].as_array().unwrap().len(), 41);
    }
    writing.join().unwrap().unwrap();
}
