//! Requests that two programs could read in two ways: the daemon reads them in none, and nothing that came behind one.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use authsock::wire::http::{Framing, Passed};
use serde_json::json;

use crate::ground::{Ground, Line, PATIENCE};
use crate::http::served_with;

/// Sends bytes, as they are and one by one, and gives the statuses that were answered until the connection closed.
fn statuses(ground: &Ground, bytes: &str, one_by_one: bool) -> Vec<u16> {
    let mut stream = UnixStream::connect(ground.init_socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let pieces: Vec<&[u8]> = bytes.as_bytes().chunks(if one_by_one { 1 } else { usize::MAX }).collect();
    for piece in pieces {
        // It may close before all was sent.
        if stream.write_all(piece).is_err() {
            break;
        }
    }
    let mut text = Vec::new();
    // Until it closes: no client of these waits for more.
    let _ = stream.read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text).into_owned();
    // A sentence may speak of HTTP/1.1 too; a number behind it makes it a status.
    let status = |(place, _): (usize, &str)| text.get(place + 9..place + 12)?.parse().ok();
    text.match_indices("HTTP/1.1 ").filter_map(status).collect()
}

#[test]
fn what_can_be_read_in_two_ways_is_refused_and_nothing_behind_it_is_carried_out() {
    let (ground, daemon, owner) = served_with("[http]\nrequest_seconds = 1\nidle_seconds = 1\n");
    let mut watcher = Line::connect(&ground.init_socket());
    watcher.plain(&owner);
    watcher.call("events.subscribe", &json!({ "subjects": ["smuggled", "open"] }));
    let auth = format!("Host: x\r\nAuthorization: Bearer {owner}\r\nContent-Type: application/json\r\n");
    let publish = |subject: &str| {
        json!({ "jsonrpc": "2.0", "id": 1, "method": "events.publish", "params": { "subject": subject } })
            .to_string()
    };
    let whole = |subject: &str| {
        let body = publish(subject);
        format!("POST /v1/rpc HTTP/1.1\r\n{auth}Content-Length: {}\r\n\r\n{body}", body.len())
    };
    // What is smuggled is a whole request, as the body of one or behind one.
    let smuggled = whole("smuggled");
    let length = smuggled.len();
    let post = |fields: &str, body: &str| format!("POST /v1/rpc HTTP/1.1\r\n{auth}{fields}\r\n{body}");
    let get = |fields: &str| format!("GET /v1/whoami HTTP/1.1\r\n{auth}{fields}\r\n");
    let chunked = "Transfer-Encoding: chunked\r\n";
    let cases: Vec<(&str, String, u16)> = vec![
        ("both lengths", post(&format!("Content-Length: 6\r\n{chunked}"), "0\r\n\r\n"), 400),
        (
            "both, the other way round",
            post(&format!("{chunked}Content-Length: {length}\r\n"), "0\r\n\r\n"),
            400,
        ),
        ("two lengths", post(&format!("Content-Length: 0\r\nContent-Length: {length}\r\n"), ""), 400),
        ("two equal lengths", post("Content-Length: 2\r\nContent-Length: 2\r\n", "{}"), 400),
        ("a list of lengths", post("Content-Length: 2, 2\r\n", "{}"), 400),
        ("a length with a sign", post("Content-Length: +2\r\n", "{}"), 400),
        ("a length of all numbers", post("Content-Length: 99999999999999999999\r\n", ""), 400),
        ("another coding", post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"), 400),
        ("two codings", post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"), 400),
        ("chunked twice", post(&format!("{chunked}{chunked}"), "0\r\n\r\n"), 400),
        ("a space before the colon", post("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"), 400),
        ("chunked in HTTP/1.0", format!("POST /v1/rpc HTTP/1.0\r\n{auth}{chunked}\r\n0\r\n\r\n"), 400),
        ("a bare line feed", get("A: b\nTransfer-Encoding: chunked\r\n"), 400),
        ("bare line feeds throughout", get("").replace("\r\n", "\n"), 400),
        ("a bare carriage return", get("A: b\rTransfer-Encoding: chunked\r\n"), 400),
        ("a folded field", get("A: b\r\n Transfer-Encoding: chunked\r\n"), 400),
        ("a NUL", get("A: \0\r\n"), 400),
        ("a form feed behind a value", get("A: b\u{c}\r\n"), 400),
        ("a length with a form feed", post("Content-Length:\u{c}2\r\n", "{}"), 400),
        ("an address without a host", format!("GET http:///v1/whoami HTTP/1.1\r\n{auth}\r\n"), 400),
        ("an address with a user", format!("GET http://a@x/v1/whoami HTTP/1.1\r\n{auth}\r\n"), 400),
        ("a chunk's extension", post(chunked, "2;a=b\r\n{}\r\n0\r\n\r\n"), 400),
        ("a chunk's bare line feed", post(chunked, "2\n{}\r\n0\r\n\r\n"), 400),
        ("a chunk that is longer than it says", post(chunked, "1\r\n{}\r\n0\r\n\r\n"), 400),
        ("trailers", post(chunked, "2\r\n{}\r\n0\r\nAuthorization: x\r\n\r\n"), 400),
        ("two hosts", get("Host: y\r\n"), 400),
        ("two tokens", get(&format!("Authorization: Bearer {owner}\r\n")), 400),
        ("no host", format!("GET /v1/whoami HTTP/1.1\r\nAuthorization: Bearer {owner}\r\n\r\n"), 400),
        ("an empty line first", format!("\r\n{}", get("")), 400),
        ("headers of 64 KiB", get(&format!("A: {}\r\n", "x".repeat(65_536))), 431),
        ("many headers", get(&"A: b\r\n".repeat(100)), 431),
        ("a target of 64 KiB", format!("GET /{} HTTP/1.1\r\n{auth}\r\n", "x".repeat(65_536)), 414),
        ("a body that is too long", post("Content-Length: 1048577\r\n", ""), 413),
        ("a body that does not come", post("Content-Length: 1000\r\n", "{"), 408),
        ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 505),
        ("a tunnel", format!("CONNECT x:1 HTTP/1.1\r\n{auth}\r\n"), 405),
        ("a token in the query", format!("GET /v1/whoami?token={owner} HTTP/1.1\r\n{auth}\r\n"), 400),
        ("… spelled otherwise", format!("GET /v1/whoami?a=b&%54oken={owner} HTTP/1.1\r\n{auth}\r\n"), 400),
        ("… by another name", format!("GET /v1/whoami?key={owner} HTTP/1.1\r\n{auth}\r\n"), 400),
        ("… without a name", format!("GET /v1/whoami?{owner} HTTP/1.1\r\n{auth}\r\n"), 400),
        ("… behind a semicolon", format!("GET /v1/whoami?a=b;token={owner} HTTP/1.1\r\n{auth}\r\n"), 400),
        ("… in a list", format!("GET /v1/whoami?token%5B%5D={owner} HTTP/1.1\r\n{auth}\r\n"), 400),
        (
            "… by RFC 6750's name",
            format!("GET /metrics?access_token={owner} HTTP/1.1\r\nHost: x\r\n\r\n"),
            400,
        ),
    ];
    for (what, bytes, status) in &cases {
        for one_by_one in [false, true] {
            // One by one only where it is short: each byte is a call.
            if one_by_one && bytes.len() > 2000 {
                continue;
            }
            // What came before is answered; what comes behind is not.
            let sent = format!("{}{bytes}{smuggled}", whole("open"));
            let sent = if *status == 408 { format!("{}{bytes}", whole("open")) } else { sent };
            assert_eq!(
                statuses(&ground, &sent, one_by_one),
                [200, *status],
                "{what}, one by one: {one_by_one}"
            );
            let event = watcher.receive().unwrap();
            assert_eq!(event["params"]["subject"], "open", "{what}");
        }
    }
    // Nothing was smuggled by any of them, and the daemon serves on.
    assert_eq!(watcher.call("ping", &json!({}))["result"]["pong"], true);
    assert!(!daemon.stderr().contains(&owner), "not even refused is a token logged");
}

/// How many requests end in these bytes by our own parser, and whether it finds what follows wrong.
fn judged(bytes: &[u8]) -> (usize, bool) {
    let mut framing = Framing::new(4096, 4096);
    let (mut passed, mut ends) = (0, 0);
    loop {
        match framing.pass(&bytes[passed..]) {
            Err(_) => return (ends, true),
            Ok(Passed { bytes: 0, .. }) => return (ends, false),
            Ok(Passed { bytes, ends_request }) => {
                passed += bytes;
                ends += usize::from(ends_request);
            }
        }
    }
}

/// What our parser passes on, the library must read alike: it answers as many requests as end, and none besides. Cases
/// are made of good requests by random changes; a difference would be where something can be smuggled.
#[test]
fn whatever_is_passed_on_is_as_many_requests_to_the_one_as_to_the_other() {
    const CASES: u64 = 1500;
    let (ground, _daemon, owner) =
        served_with("[http]\nhead_bytes = 4096\n[limits]\nrequest_line_bytes = 4096\n");
    let auth = format!("Host: x\r\nAuthorization: Bearer {owner}\r\nContent-Type: application/json\r\n");
    let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    let good = [
        format!("GET /v1/whoami HTTP/1.1\r\n{auth}\r\n"),
        format!("HEAD /v1/whoami HTTP/1.1\r\n{auth}\r\n"),
        format!("POST /v1/rpc HTTP/1.1\r\n{auth}Content-Length: {}\r\n\r\n{ping}", ping.len()),
        format!(
            "POST /v1/rpc HTTP/1.1\r\n{auth}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{ping}\r\n0\r\n\r\n",
            ping.len()
        ),
        format!(
            "POST /v1/rpc HTTP/1.0\r\n{auth}Connection: keep-alive\r\nContent-Length: {}\r\n\r\n{ping}",
            ping.len()
        ),
        format!("GET /v1/whoami HTTP/1.1\r\n{auth}Content-Length: 3\r\n\r\nabc"),
    ];
    let bits = [
        "\r\n",
        "\n",
        "\r",
        " ",
        "\t",
        ":",
        ",",
        ";",
        "\0",
        "\u{b}",
        "\u{c}",
        "\u{a0}",
        "0",
        "00",
        "+",
        "-",
        "x",
        "%",
        "=",
        "Content-Length: 3\r\n",
        "Content-Length: 0\r\n",
        "content-length:3\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding:\tchunked\r\n",
        "Transfer-Encoding: identity\r\n",
        "TE: trailers\r\n",
        "Trailer: a\r\n",
        "Connection: close\r\n",
        "Connection: keep-alive\r\n",
        "Connection: upgrade\r\nUpgrade: h2c\r\n",
        "Expect: 100-continue\r\n",
        "Host: y\r\n",
        "A:\r\n",
        "A: \r\n",
        "A: b\r\n",
        "a\r\n",
        "3\r\nabc\r\n",
        "0\r\n\r\n",
        "\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "HTTP/1.1",
        "HTTP/1.0",
        "GET ",
        "/",
        "?a=b",
        "http://y",
        "http://",
        "@",
        "//",
    ];
    let mut seed: u64 = 0x2545_f491_4f6c_dd1d;
    let mut random = move |limit: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed % limit as u64).unwrap()
    };
    let (mut whole, mut refused) = (0, 0);
    for case in 0..CASES {
        let mut bytes: Vec<u8> = (0..=random(3)).flat_map(|_| good[random(good.len())].bytes()).collect();
        for _ in 0..random(3) {
            let place = random(bytes.len());
            match random(4) {
                0 => drop(bytes.splice(place..place, bits[random(bits.len())].bytes())),
                1 => drop(bytes.remove(place)),
                2 => bytes[place] = u8::try_from(random(256)).unwrap(),
                // Where a line begins.
                _ => {
                    let line = bytes[place..].windows(2).position(|pair| pair == b"\r\n");
                    let place = line.map_or(place, |line| place + line + 2);
                    drop(bytes.splice(place..place, bits[random(bits.len())].bytes()));
                }
            }
        }
        // What begins otherwise is no HTTP to the gate.
        if !bytes[0].is_ascii_alphabetic() {
            continue;
        }
        let (ends, is_wrong) = judged(&bytes);
        let mut stream = UnixStream::connect(ground.init_socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut text = Vec::new();
        let _ = stream.read_to_end(&mut text);
        let text = String::from_utf8_lossy(&text).into_owned();
        let answers: Vec<&str> = text
            .match_indices("HTTP/1.")
            .filter(|(place, _)| {
                text.get(place + 8..place + 13).is_some_and(|rest| {
                    rest.starts_with(' ') && rest.ends_with(' ') && rest[1..4].parse::<u16>().is_ok()
                })
            })
            .map(|(place, _)| &text[place..])
            // It asks for the rest, and is none of the answers.
            .filter(|answer| !answer.contains("HTTP/1.1 100 ") || !answer.starts_with("HTTP/1.1 100 "))
            .collect();
        let last = answers.last().map_or("", |answer| answer.split("\r\n\r\n").next().unwrap());
        let has_closed =
            last.to_ascii_lowercase().contains("connection: close") || last.starts_with("HTTP/1.0");
        let shown = || format!("case {case}: {:?}\nanswered: {text}", String::from_utf8_lossy(&bytes));
        // As many as end; one more for what is wrong behind them, or for a body that does not come whole; fewer only if
        // one of them closed the connection.
        assert!(answers.len() <= ends + 1, "{ends} end, {} are answered: {}", answers.len(), shown());
        assert!(
            answers.len() >= ends || has_closed,
            "{ends} end, {} are answered: {}",
            answers.len(),
            shown()
        );
        // The library itself finds nothing wrong that we passed on: that would be an answer of its own, and without words.
        let is_its_own = |answer: &&str| {
            answer.starts_with("HTTP/1.1 400 ") && !answer.contains("application/problem+json")
        };
        assert!(!answers.iter().any(is_its_own), "refused behind our back: {}", shown());
        if answers.len() > ends {
            // A page that takes no body answers before one that was announced has come; nothing is done without it.
            let is_done = answers.last().is_some_and(|answer| answer.contains("pong"));
            assert!(!is_done, "what does not end is carried out: {}", shown());
        }
        whole += usize::from(!is_wrong);
        refused += usize::from(is_wrong);
    }
    assert!(whole > 200 && refused > 200, "{whole} {refused}");
}
