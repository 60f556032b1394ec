//! The command line itself: what programs get from it, what people get from it, and how it ends.

use std::process::{Output, Stdio};

use crate::ground::{Ground, put, text_of};

/// The error object on standard error; nothing is on standard output then.
fn error_of(output: &Output) -> serde_json::Value {
    assert!(output.stdout.is_empty(), "{}", text_of(output));
    let parsed: serde_json::Value =
        serde_json::from_slice(&output.stderr).unwrap_or_else(|_| panic!("{}", text_of(output)));
    assert_eq!(parsed["error"]["exit_code"], output.status.code().unwrap());
    parsed["error"].clone()
}

#[test]
fn with_json_every_error_is_an_object_with_the_code_that_programs_go_by() {
    let ground = Ground::new();
    ground.json(["whoami"]);
    let run = |args: &[&str]| ground.command(crate::ground::AUTHSOCK).args(args).output().unwrap();
    for args in [
        &["--json", "nonsense"][..],
        &["session", "revoke", "--json"],
        &["call", "--json"],
        &["--json", "run"],
    ] {
        let error = error_of(&run(args));
        assert_eq!(error["exit_code"], 2, "{error}");
    }
    let error = error_of(&run(&["--json", "call", "nonsense"]));
    assert_eq!((&error["exit_code"], &error["code"]), (&1.into(), &(-32601).into()));
    let error = error_of(&run(&["--json", "call", "ping", "[1]"]));
    assert_eq!(error["code"], -32602);
    put(&ground.root().join("token"), &"12".repeat(32), 0o600);
    let path = ground.root().join("token");
    let output = ground.authsock(["whoami", "--json", "--token-file"]).arg(path).output().unwrap();
    assert_eq!(error_of(&output)["exit_code"], 4);
}

#[test]
fn help_and_version_are_no_errors() {
    let ground = Ground::new();
    for args in [&["--help"][..], &["help", "run"], &["run", "--help"], &["--version"]] {
        let output = ground.command(crate::ground::AUTHSOCK).args(args).output().unwrap();
        assert!(output.status.success() && !output.stdout.is_empty() && output.stderr.is_empty(), "{args:?}");
    }
    assert!(!ground.state().exists(), "no daemon was started for it");
}

#[test]
fn a_full_disk_below_the_output_is_said_and_a_reader_that_left_is_no_error() {
    let ground = Ground::new();
    let full = std::fs::File::options().write(true).open("/dev/full");
    if crate::ground::skip_unless(full.is_ok(), "there is no /dev/full") {
        return;
    }
    let output = ground.authsock(["whoami"]).stdout(full.unwrap()).stderr(Stdio::piped()).spawn().unwrap();
    let output = output.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text_of(&output).contains("cannot write to standard output"), "{}", text_of(&output));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = ground.authsock(["session", "list"]).stdout(writer).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text_of(&output));
}

#[test]
fn there_are_no_colours_where_there_is_no_terminal() {
    let ground = Ground::new();
    for args in [["whoami"], ["status"]] {
        let output = ground.authsock(args).output().unwrap();
        assert!(!output.stdout.contains(&0x1b), "{}", text_of(&output));
    }
    let output = ground.authsock(["run", "--", "nosuchprogram"]).output().unwrap();
    assert_eq!(output.status.code(), Some(127));
    assert_eq!(
        text_of(&output).lines().last().unwrap(),
        "stderr: authsock: cannot run \"nosuchprogram\": not found in PATH"
    );
}
