//! Both halves of the handshake against golden exchanges that the crate had no part in making; a file in tests/vectors/ is a test.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use authsock::handshake::client::{self, Failure, OwnProcess, RelayPolicy};
use authsock::handshake::proof::{Role, Transcript};
use authsock::handshake::server::{ExpectOpening, Opened, Proven, Refusal, Way};
use authsock::secret::token::Token;
use authsock::secret::verifier::{ClientKey, ServerKey, Verifier};
use authsock::wire::auth::{Answer, Code, Hex32, PeerView, RefusalBrief, SessionBrief};
use serde::Deserialize;

use crate::ground::{has, skip_unless, text_of};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

fn hex32(digits: &str) -> Hex32 {
    serde_json::from_str(&format!("{digits:?}")).unwrap()
}

fn token(digits: &str) -> Token {
    Token::parse(digits.as_bytes()).unwrap()
}

/// One file. README.md beside the files describes each field.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Vector {
    Keys(Keys),
    Transcript(Signed),
    Refusal(Refused),
    Exchange(Box<Exchange>),
}

#[derive(Deserialize)]
struct Keys {
    token: String,
    token_id: String,
    client_key: String,
    stored_key: String,
    server_key: String,
}

#[derive(Deserialize)]
struct Signed {
    token: String,
    client_nonce: String,
    server_nonce: String,
    service: String,
    peer: PeerView,
    server_transcript: String,
    client_transcript: String,
    server_proof: String,
    client_proof: String,
}

#[derive(Deserialize)]
struct Refused {
    code: Code,
    line: String,
}

#[derive(Deserialize)]
struct Exchange {
    client: ClientHalf,
    server: ServerHalf,
    lines: Vec<Line>,
}

#[derive(Deserialize)]
struct ClientHalf {
    token: String,
    service: String,
    nonce: String,
    own: Own,
    outcome: Option<String>,
}

#[derive(Deserialize)]
struct Own {
    uid: u32,
    pid: u32,
    pidfs: Option<u64>,
    start: Option<u64>,
    pidns: Option<u64>,
}

#[derive(Deserialize)]
struct ServerHalf {
    token: String,
    decoy: Decoy,
    nonce: String,
    peer: PeerView,
    wants_start: bool,
    verdict: String,
    session: SessionBrief,
    outcome: Option<String>,
}

#[derive(Deserialize)]
struct Decoy {
    stored_key: String,
    server_key: String,
}

#[derive(Deserialize)]
struct Line {
    from: From,
    line: Option<String>,
    hex: Option<String>,
}

#[derive(Deserialize, PartialEq, Clone, Copy, Debug)]
#[serde(rename_all = "snake_case")]
enum From {
    Client,
    Server,
}

impl Line {
    fn bytes(&self) -> Vec<u8> {
        match (&self.line, &self.hex) {
            (Some(line), None) => line.clone().into_bytes(),
            (None, Some(hex)) => hex::decode(hex).unwrap(),
            _ => panic!("a line has either line or hex"),
        }
    }
}

#[test]
fn every_vector_is_met_by_both_halves() {
    let mut seen = 0;
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(directory()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        seen += 1;
        let text = std::fs::read_to_string(&path).unwrap();
        if let Err(problem) = check(&text) {
            wrong.push(format!("{}: {problem}", path.file_name().unwrap().display()));
        }
    }
    assert!(wrong.is_empty(), "{} of {seen} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(seen > 100, "only {seen} vectors were found");
}

#[test]
fn there_is_a_vector_for_every_code_of_a_refusal() {
    let words: BTreeSet<String> = Code::ALL.iter().map(ToString::to_string).collect();
    let files = std::fs::read_dir(directory()).unwrap().filter_map(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        Some(name.strip_prefix("refusal-")?.strip_suffix(".json")?.replace('-', "_"))
    });
    assert_eq!(files.collect::<BTreeSet<_>>(), words);
}

#[test]
fn the_generator_writes_the_same_files_again() {
    if skip_unless(has("python3"), "python3 is not installed, so the vectors are not made anew") {
        return;
    }
    let fresh = tempfile::tempdir().unwrap();
    let output = Command::new("python3").arg(directory().join("make.py")).arg(fresh.path()).output().unwrap();
    assert!(output.status.success(), "{}", text_of(&output));
    let names = |dir: &Path| -> BTreeSet<String> {
        let names =
            std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".json")).collect()
    };
    assert_eq!(names(&directory()), names(fresh.path()));
    for name in names(fresh.path()) {
        let (kept, made) = (std::fs::read(directory().join(&name)), std::fs::read(fresh.path().join(&name)));
        assert!(kept.unwrap() == made.unwrap(), "{name} differs from what make.py writes");
    }
}

fn check(text: &str) -> Result<(), String> {
    match serde_json::from_str(text).map_err(|error| error.to_string())? {
        Vector::Keys(keys) => check_keys(&keys),
        Vector::Transcript(signed) => check_transcript(&signed),
        Vector::Refusal(refused) => check_refusal(&refused),
        Vector::Exchange(exchange) => {
            if exchange.client.outcome.is_none() && exchange.server.outcome.is_none() {
                return Err("it drives neither half".into());
            }
            check_server(&exchange).map_err(|problem| format!("server: {problem}"))?;
            check_client(&exchange).map_err(|problem| format!("client: {problem}"))
        }
    }
}

fn same(what: &str, ours: &str, golden: &str) -> Result<(), String> {
    if ours == golden { Ok(()) } else { Err(format!("{what} is {ours}, not {golden}")) }
}

fn check_keys(keys: &Keys) -> Result<(), String> {
    let token = token(&keys.token);
    let (stored, server) = Verifier::of(&token).reveal();
    same("token_id", &token.id().to_string(), &keys.token_id)?;
    same("stored_key", &stored, &keys.stored_key)?;
    same("server_key", &server, &keys.server_key)?;
    // The crate never shows ClientKey; a proof is ClientKey XOR HMAC(StoredKey, transcript), and
    // HMAC(StoredKey, transcript) is what a ServerKey of the same bytes would sign.
    let signature =
        Verifier::from_parts(token.id(), [0; 32], hex32(&keys.stored_key).0).server_key().sign(b"x");
    let proof = ClientKey::of(&token).prove(b"x");
    let client: Vec<u8> = proof.iter().zip(signature).map(|(a, b)| a ^ b).collect();
    same("client_key", &hex::encode(client), &keys.client_key)
}

fn check_transcript(signed: &Signed) -> Result<(), String> {
    let token = token(&signed.token);
    let transcript = Transcript {
        token_id: token.id(),
        client_nonce: hex32(&signed.client_nonce),
        server_nonce: hex32(&signed.server_nonce),
        service: &signed.service,
        peer: &signed.peer,
    };
    let (server, client) = (transcript.bytes(Role::Server), transcript.bytes(Role::Client));
    same("the server's transcript", &hex::encode(&server), &signed.server_transcript)?;
    same("the client's transcript", &hex::encode(&client), &signed.client_transcript)?;
    same("the server's proof", &hex::encode(ServerKey::of(&token).sign(&server)), &signed.server_proof)?;
    same("the client's proof", &hex::encode(ClientKey::of(&token).prove(&client)), &signed.client_proof)
}

fn check_refusal(refused: &Refused) -> Result<(), String> {
    let brief = RefusalBrief::of(refused.code);
    let line = Answer::Refused(brief.clone()).to_line();
    same("the line", line.trim_end(), &refused.line)?;
    match Answer::read(refused.line.as_bytes()) {
        Ok(Answer::Refused(read)) if read == brief => Ok(()),
        other => Err(format!("it is read as {other:?}")),
    }
}

/// The client's lines go in; the server's must come out, and nothing more.
fn check_server(exchange: &Exchange) -> Result<(), String> {
    let half = &exchange.server;
    let Some(outcome) = &half.outcome else { return Ok(()) };
    let from = |who| exchange.lines.iter().filter(move |line| line.from == who).map(Line::bytes);
    let mut said = Vec::new();
    let result = serve(half, &mut from(From::Client), &mut said);
    let ended = match result {
        Ok(_) if half.verdict == "accepted" => {
            said.push(Answer::Accepted(half.session.clone()).to_line());
            "accepted".to_owned()
        }
        // What the registry refuses comes after the proof; its word is a fact of the vector.
        Ok(_) => {
            let code: Code = serde_json::from_str(&format!("{:?}", half.verdict)).unwrap();
            said.push(Answer::Refused(RefusalBrief::of(code)).to_line());
            code.to_string()
        }
        Err(refusal) => {
            said.push(Answer::Refused(RefusalBrief::of(refusal.code)).to_line());
            refusal.code.to_string()
        }
    };
    same("the outcome", &ended, outcome)?;
    let golden: Vec<Vec<u8>> = from(From::Server).map(with_newline).collect();
    let said: Vec<Vec<u8>> = said.into_iter().map(String::into_bytes).collect();
    if said == golden { Ok(()) } else { Err(format!("it says {}, not {}", words(&said), words(&golden))) }
}

fn serve(
    half: &ServerHalf,
    lines: &mut dyn Iterator<Item = Vec<u8>>,
    said: &mut Vec<String>,
) -> Result<Proven, Refusal> {
    let verifier = Verifier::of(&token(&half.token));
    match ExpectOpening.read(&next(lines))? {
        Opened::Plain(presented) => {
            let known = presented.token_id() == verifier.id();
            let proven = presented.judge(known.then_some(&verifier))?;
            assert_eq!(proven.way(), Way::Plain);
            Ok(proven)
        }
        Opened::Proof(announced) => {
            assert_eq!(announced.wants_start(), half.wants_start, "wants_start");
            let known = announced.token_id() == verifier.id();
            let decoy = Verifier::from_parts(
                announced.token_id(),
                hex32(&half.decoy.stored_key).0,
                hex32(&half.decoy.server_key).0,
            );
            let verifier = if known { verifier } else { decoy };
            let (challenge, expected) =
                announced.challenge(verifier, known, hex32(&half.nonce), half.peer.clone())?;
            said.push(challenge);
            let proven = expected.read(&next(lines))?;
            assert_eq!(proven.way(), Way::Proof);
            Ok(proven)
        }
    }
}

/// The server's lines go in; the client's must come out, and nothing more.
fn check_client(exchange: &Exchange) -> Result<(), String> {
    let half = &exchange.client;
    let Some(outcome) = &half.outcome else { return Ok(()) };
    let from = |who| exchange.lines.iter().filter(move |line| line.from == who).map(Line::bytes);
    let mut said = Vec::new();
    let ended = match ask(half, &mut from(From::Server), &mut said) {
        Ok(session) if session == exchange.server.session => "accepted".to_owned(),
        Ok(session) => return Err(format!("it is in the session {session:?}")),
        Err(Failure::NotADaemon(_)) => "not_a_daemon".to_owned(),
        Err(Failure::StaleTokenOrImpostor) => "impostor".to_owned(),
        Err(Failure::Relay(_)) => "relay".to_owned(),
        Err(Failure::Incomparable(_)) => "incomparable".to_owned(),
        Err(Failure::Refused { brief, genuine }) => {
            // Only what came behind a proof is the genuine daemon's word.
            assert_eq!(genuine, said.len() == 2, "genuine");
            format!("refused:{}", brief.code)
        }
    };
    same("the outcome", &ended, outcome)?;
    let golden: Vec<Vec<u8>> = from(From::Client).map(with_newline).collect();
    let said: Vec<Vec<u8>> = said.into_iter().map(String::into_bytes).collect();
    if said != golden {
        return Err(format!("it says {}, not {}", words(&said), words(&golden)));
    }
    let secret = half.token.to_ascii_lowercase();
    let leaked = words(&said).to_ascii_lowercase().contains(&secret);
    if leaked { Err("the token crossed the socket".into()) } else { Ok(()) }
}

fn ask(
    half: &ClientHalf,
    lines: &mut dyn Iterator<Item = Vec<u8>>,
    said: &mut Vec<String>,
) -> Result<SessionBrief, Failure> {
    let Own { uid, pid, pidfs, start, pidns } = half.own;
    let own = OwnProcess { uid, pid, pidfs, start, pidns };
    let (opening, expected) = client::start(&token(&half.token), &half.service, hex32(&half.nonce), own);
    said.push(opening);
    let (proof, expected) = expected.read(&next(lines), RelayPolicy::Refuse)?;
    said.push(proof);
    Ok(expected.read(&next(lines))?.0)
}

/// A half that asks for more than the vector has gets something that neither half takes.
fn next(lines: &mut dyn Iterator<Item = Vec<u8>>) -> Vec<u8> {
    lines.next().unwrap_or_else(|| b"the vector ends here".to_vec())
}

fn with_newline(mut line: Vec<u8>) -> Vec<u8> {
    line.push(b'\n');
    line
}

fn words(lines: &[Vec<u8>]) -> String {
    lines
        .iter()
        .map(|line| String::from_utf8_lossy(line).trim_end().to_owned())
        .collect::<Vec<_>>()
        .join(" | ")
}
