//! docs/protocol.md says what the code does: its tables, its numbers, its worked example.

use std::path::Path;

use authsock::config::Config;
use authsock::daemon::{METHODS, Needs};
use authsock::wire::auth::{AUTH_LINE_MAX, Code, VERSION, VERSIONS};
use authsock::wire::json_rpc::ErrorCode;
use serde_json::Value;

fn file(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn manual() -> String {
    file("docs/protocol.md")
}

fn vector(name: &str) -> Value {
    serde_json::from_str(&file(&format!("tests/vectors/{name}.json"))).unwrap()
}

/// The rows of the table under this head, cell by cell.
fn table(head: &str) -> Vec<Vec<String>> {
    let manual = manual();
    let (_, behind) = manual.split_once(&format!("\n{head}\n")).unwrap_or_else(|| panic!("no table {head}"));
    let rows = behind.lines().skip(1).take_while(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect()).collect()
}

#[test]
fn the_manual_has_every_refusal_with_its_sentence() {
    let table = table("| code | sentence | try again? |");
    let told: Vec<_> = table.iter().map(|row| (row[0].clone(), row[1].clone())).collect();
    let real: Vec<_> =
        Code::ALL.iter().map(|code| (format!("`{code}`"), code.sentence().to_owned())).collect();
    assert_eq!(told, real);
}

#[test]
fn the_manual_has_every_method_with_its_scope() {
    let table = table("| method | scope | parameters | result |");
    let told: Vec<_> = table.iter().map(|row| (row[0].clone(), row[1].clone())).collect();
    let scope = |needs: Needs| match needs {
        Needs::Nothing => "none".to_owned(),
        Needs::Scope(needs) => format!("`{needs}`"),
        Needs::Subjects(verb) => format!("`events:{}:SUBJECT`", format!("{verb:?}").to_lowercase()),
    };
    let real: Vec<_> =
        METHODS.iter().map(|method| (format!("`{}`", method.name), scope(method.needs))).collect();
    assert_eq!(told, real);
}

#[test]
fn the_manual_has_every_number_of_an_error() {
    let told: Vec<i64> = table("| number | when |").iter().map(|row| row[0].parse().unwrap()).collect();
    assert_eq!(told, ErrorCode::ALL.map(ErrorCode::number));
}

#[test]
fn the_manual_names_the_limits_that_hold() {
    let (manual, config) = (manual(), Config::default());
    for words in [
        format!("at most {AUTH_LINE_MAX} bytes, its newline included"),
        format!("at most {} seconds", config.handshake_timeout.as_secs()),
        format!("at most {} bytes, its newline included (the configuration", config.request_line),
        format!("most {} requests (`limits.requests_in_flight`)", config.requests_in_flight),
        format!("its answers have {} bytes (`limits.queued_bytes`)", config.queued),
        format!("This is version {VERSION}."),
        format!("\"supported\":{VERSIONS:?}"),
    ] {
        assert!(manual.contains(&words), "{words}");
    }
}

#[test]
fn the_worked_example_has_the_bytes_of_its_vector() {
    let manual = manual();
    let (_, example) = manual.split_once("\n## A worked example\n").unwrap();
    let (keys, proof, transcript) = (vector("keys"), vector("proof"), vector("transcript"));
    for name in ["token", "token_id", "client_key", "stored_key", "server_key"] {
        assert!(example.contains(&format!("  {}\n", keys[name].as_str().unwrap())), "{name}");
    }
    for line in proof["lines"].as_array().unwrap() {
        let line = line["line"].as_str().unwrap();
        assert!(example.contains(&format!("\n```\n{line}\n```\n")), "{line}");
    }
    let joined = example.replace('\n', "");
    assert!(joined.contains(transcript["server_transcript"].as_str().unwrap()), "the transcript");
    let (server, client) = (&transcript["server_proof"], &transcript["client_proof"]);
    assert!(example.contains(server.as_str().unwrap()) && example.contains(client.as_str().unwrap()));
}

#[test]
fn every_link_within_the_manual_leads_somewhere() {
    let manual = manual();
    let anchors: Vec<String> = manual
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .map(|title| title.to_lowercase().replace(' ', "-").replace(',', ""))
        .collect();
    let links: Vec<&str> =
        manual.split("](#").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link).collect();
    assert_eq!(links, anchors, "the contents are the headings");
}
