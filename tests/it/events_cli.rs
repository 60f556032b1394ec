//! Events on the command line: from one process to another, out of what is kept, and across whatever becomes of the daemon.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use serde_json::{Value, json};

use crate::ground::{
    Daemon, Ground, Line, bind_private, minted, owner, put, served_with, skip_unless, text_of,
};

/// A subscriber that runs, and is subscribed.
struct Subscriber {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Subscriber {
    fn begin(ground: &Ground, args: &[&str]) -> (Subscriber, Value) {
        Subscriber::begin_with(ground.authsock(["subscribe", "--json"]).args(args))
    }

    fn begin_with(command: &mut Command) -> (Subscriber, Value) {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let mut subscriber = Subscriber { child, lines };
        let first = subscriber.next();
        assert_eq!(first["type"], "subscribed", "{first}");
        (subscriber, first)
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        if self.lines.read_line(&mut line).unwrap() == 0 {
            let mut said = String::new();
            self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            panic!("it has ended: {said}");
        }
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line:?}"))
    }

    fn next_of(&mut self, kind: &str) -> Value {
        let next = self.next();
        assert_eq!(next["type"], kind, "{next}");
        next
    }

    /// Waits for its end, before which it has nothing more to print; its exit code, and the error that it tells.
    fn end(mut self) -> (i32, Value) {
        let (mut out, mut error) = (String::new(), String::new());
        self.lines.read_line(&mut out).unwrap();
        assert_eq!(out, "");
        self.child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
        let code = self.child.wait().unwrap().code().unwrap();
        let error: Value = serde_json::from_str(&error).unwrap_or_else(|_| panic!("{error:?}"));
        (code, error["error"].clone())
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A session that is bound to the user; its id, and what makes a command part of it.
fn session(ground: &Ground, owner: &mut Line, more: Value) -> (String, impl Fn(&mut Command) + use<>) {
    let (token, verifier) = minted();
    let mut wish = json!({ "name": "a) b", "binding": "uid", "verifier": verifier });
    wish.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let made = owner.call("session.create", &wish);
    let id = made["result"]["session"]["id"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
    let (file, socket) = (ground.root().join(format!("token-{id}")), ground.init_socket());
    put(&file, &token.reveal(), 0o600);
    let join = move |command: &mut Command| {
        command.env("AUTHSOCK_TOKEN_FILE", &file).env("AUTHSOCK_SOCKET", &socket);
    };
    (id, join)
}

fn publish(ground: &Ground, subject: &str, data: &str) -> Value {
    ground.json(["publish", subject, data])
}

/// As the owner, who is refused below the leader of a session: this process, once it made one.
fn publish_on(owner: &mut Line, subject: &str, data: &str) -> Value {
    let answer = owner.call("events.publish", &json!({ "subject": subject, "data": data }));
    assert!(answer["result"].is_object(), "{answer}");
    answer["result"].clone()
}

/// Runs it to its end; the lines that it printed.
fn shown(ground: &Ground, args: &[&str]) -> Vec<String> {
    shown_by(ground.authsock(["subscribe"]).args(args))
}

fn shown_by(command: &mut Command) -> Vec<String> {
    let output = command.output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text_of(&output));
    String::from_utf8(output.stdout).unwrap().lines().map(ToOwned::to_owned).collect()
}

fn with_input(command: &mut Command, input: &[u8]) -> Output {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It may have read enough before all of it is written.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

#[test]
fn what_one_process_publishes_another_one_reads_line_by_line() {
    let (ground, _daemon) = served_with("");
    let (mut subscriber, begun) = Subscriber::begin(&ground, &["build.>", "*.x"]);
    assert_eq!((&begun["subjects"], &begun["replayed"]), (&json!(["build.>", "*.x"]), &json!(0)));
    let published = publish(&ground, "build.done", "well");
    assert_eq!(published["reached"], 1);
    let event = subscriber.next_of("event");
    assert_eq!((&event["subject"], &event["data"]), (&json!("build.done"), &json!("well")));
    assert_eq!((&event["seq"], &event["epoch"]), (&published["seq"], &published["epoch"]));
    assert_eq!(event["publisher"]["id"], "owner");
    // Where the data comes from, and what becomes of it.
    let huge = r#"{"n":	[1E400,123456789012345678901234567890]}"#;
    for (args, input, expected) in [
        (&["a.x", "-"][..], "of echo\n", r#""of echo""#),
        (&["a.x", "-"], "two\nlines\n\n", r#""two\nlines\n""#),
        (&["a.x", "-", "--json-data"], huge, r#"{"n": [1E400,123456789012345678901234567890]}"#),
        (&["a.x", "{\"a\":1}"], "", r#""{\"a\":1}""#),
        (&["a.x", "{\"a\":1}", "--json-data"], "", r#"{"a":1}"#),
        (&["a.x", "-7"], "", r#""-7""#),
        (&["a.x"], "", "null"),
    ] {
        let output = with_input(ground.authsock(["publish"]).args(args), input.as_bytes());
        assert!(output.status.success(), "{}", text_of(&output));
        let words = String::from_utf8(output.stdout).unwrap();
        assert!(words.starts_with("published  a.x\nplace      "), "{words}");
        assert!(words.ends_with("\nreached    1 subscriber\n"), "{words}");
        let mut line = String::new();
        subscriber.lines.read_line(&mut line).unwrap();
        assert!(line.ends_with(&format!("\"data\":{expected}}}\n")), "{line}");
    }
    // Once nobody reads what it prints it goes; on Linux without waiting for the next event.
    let Subscriber { ref mut child, .. } = subscriber;
    let mut said = child.stderr.take().unwrap();
    let (reader, _) = std::io::pipe().unwrap();
    subscriber.lines = BufReader::new(ChildStdout::from(std::os::fd::OwnedFd::from(reader)));
    if !cfg!(target_os = "linux") {
        publish(&ground, "build.done", "unread");
    }
    assert!(subscriber.child.wait().unwrap().success());
    let mut text = String::new();
    said.read_to_string(&mut text).unwrap();
    assert_eq!(text, "");
    assert_eq!(publish(&ground, "build.done", "x")["reached"], 0);
}

#[test]
fn standard_input_that_nobody_named_is_not_read_and_whoever_filled_it_is_told() {
    let (ground, _daemon) = served_with("");
    let publish = |input: Stdio, args: &[&str]| {
        let output = ground.authsock(["publish", "a"]).args(args).stdin(input).output().unwrap();
        assert!(output.status.success(), "{}", text_of(&output));
        String::from_utf8(output.stderr).unwrap()
    };
    let file = ground.root().join("input");
    put(&file, "of a file", 0o600);
    let filled = || {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"of echo\n").unwrap();
        reader
    };
    let told = "authsock: this event has no data; what waits in standard input was not read: - in the place of DATA reads it\n";
    assert_eq!(publish(filled().into(), &[]), told);
    assert_eq!(publish(std::fs::File::open(&file).unwrap().into(), &[]), told);
    // What is there for the next one is there still.
    let reader = filled();
    assert_eq!(publish(reader.try_clone().unwrap().into(), &[]), told);
    assert_eq!(publish(reader.into(), &["-"]), "");
    // Data is named, and it is another; programs read no notes; and nothing waits there: at an open end (not even for
    // it), at a closed one, in a device.
    assert_eq!(publish(filled().into(), &["x"]), "");
    assert_eq!(publish(filled().into(), &["--json"]), "");
    let (silent, _writer) = std::io::pipe().unwrap();
    assert_eq!(publish(silent.into(), &[]), "");
    assert_eq!(publish(std::io::pipe().unwrap().0.into(), &[]), "");
    assert_eq!(publish(Stdio::null(), &[]), "");
    let kept = ["", "", "", " of echo", " x", "", "", "", ""];
    let lines = shown(&ground, &["a", "-nall"]);
    let data: Vec<&str> = lines.iter().map(|line| line.split_once("(owner)").unwrap().1).collect();
    assert_eq!(data, kept);
}

#[test]
fn people_read_when_by_whom_and_what_in_one_line_of_text() {
    let (ground, _daemon) = served_with("");
    let mut owner = owner(&ground);
    let (_, join) = session(&ground, &mut owner, json!({}));
    let in_it = |args: &[&str]| {
        let mut command = ground.command(crate::ground::AUTHSOCK);
        command.args(args).env("TZ", "XYZ-3");
        join(&mut command);
        shown_by(&mut command)
    };
    in_it(&["publish", "a.b", "red\u{1b}[31m\nnext (make) line"]);
    let lines = in_it(&["subscribe", "a.b", "-nall", "--json"]);
    let event: Value = serde_json::from_str(&lines[1]).unwrap();
    // Three hours east of Greenwich.
    let local = event["time_ms"].as_u64().unwrap() + 3 * 3_600_000;
    let hour = local / 3_600_000 % 24;
    let rest = format!("{:02}:{:02}.{:03}", local / 60_000 % 60, local / 1000 % 60, local % 1000);
    let line = in_it(&["subscribe", ">", "-n1"]).remove(0);
    let (day, line) = line.split_once(' ').unwrap();
    assert!(day.len() == 10 && day.starts_with("20"), "{day}");
    let data = r"red\u{1b}[31m\u{a}next (make) line";
    assert_eq!(line, format!("{hour:02}:{rest} {} a.b (\"a) b\") {data}", event["seq"]));
    // What the daemon itself says has no publisher.
    let lines = in_it(&["subscribe", "$authsock.>", "-nall"]);
    assert!(lines[0].contains(" $authsock.session.started {\"id\":"), "{lines:?}");
}

#[test]
fn what_is_kept_is_shown_as_far_as_is_asked_and_a_gap_is_never_silent() {
    let (ground, _daemon) = served_with("[events]\nkept = 3\n");
    let mut epoch = String::new();
    for number in 1..=5 {
        epoch = publish(&ground, "n", &number.to_string())["epoch"].as_str().unwrap().to_owned();
    }
    let data = |lines: &[String]| -> String {
        lines.iter().map(|line| if line.starts_with("-- ") { "-" } else { &line[line.len() - 1..] }).collect()
    };
    let other = "0123456789abcdef:4";
    for (args, expected) in [
        (vec!["-n", "2"], "45"),
        (vec!["--lines", "all"], "345"),
        (vec!["--lines", "0"], ""),
        (vec!["--lines", "9"], "345"),
        (vec!["--since", "3"], "45"),
        (vec!["--since", "2"], "345"),
        (vec!["--since", "1"], "-345"),
        (vec!["--since", "0"], "-345"),
        (vec!["--since", "5"], ""),
        (vec!["--since", "6"], "-345"),
        (vec!["--since", other], "-345"),
        (vec!["--since", &format!("{epoch}:4")], "5"),
        (vec!["--since", &format!("{epoch}:1")], "-345"),
    ] {
        let lines = shown(&ground, &[&["n"], &args[..]].concat());
        assert_eq!(data(&lines), expected, "{args:?}: {lines:?}");
    }
    assert!(shown(&ground, &["n", "--since", "1"])[0].starts_with("-- events missing (number 2)"));
    assert!(shown(&ground, &["n", "--since", other])[0].starts_with("-- events may be missing"));
    // A number of the present numbering, and no daemon that began anew.
    for ahead in ["6", &format!("{epoch}:6")] {
        let line = shown(&ground, &["n", "--since", ahead]).remove(0);
        assert!(line.contains("this number was not given out yet"), "{line}");
    }
    assert_eq!(data(&shown(&ground, &["other", "--since", "1"])), "-", "a gap alone is told as well");
    // With --follow it goes on behind that.
    let (mut subscriber, begun) = Subscriber::begin(&ground, &["n", "--since", "1", "-f"]);
    assert_eq!(begun["replayed"], 3);
    assert_eq!(subscriber.next_of("gap")["reason"], "forgotten");
    for expected in ["3", "4", "5"] {
        assert_eq!(subscriber.next_of("event")["data"], expected);
    }
    assert_eq!(publish(&ground, "n", "6")["reached"], 1);
    assert_eq!(subscriber.next_of("event")["data"], "6");
}

#[test]
fn where_nothing_is_kept_whoever_asks_for_it_is_told_which_setting_says_so() {
    let said = |ground: &Ground, args: &[&str]| {
        let output = ground.authsock(["subscribe", "n"]).args(args).output().unwrap();
        assert!(output.status.success(), "{}", text_of(&output));
        (output.stdout.len(), String::from_utf8(output.stderr).unwrap())
    };
    for (settings, named) in [("kept = 0", "(events.kept)"), ("kept_bytes = 10", "(events.kept_bytes)")] {
        let (ground, _daemon) = served_with(&format!("[events]\n{settings}\n"));
        // Before there was anything to keep.
        for args in [&["-n", "1"][..], &["-nall"], &["--since", "0"]] {
            let (printed, words) = said(&ground, args);
            assert!(printed == 0 && words.contains("(lifecycle.idle_exit_seconds)"), "{args:?}: {words}");
        }
        publish(&ground, "n", "x");
        for args in [&["-n", "1"][..], &["-nall"]] {
            let (printed, words) = said(&ground, args);
            assert!(printed == 0 && words.contains(named), "{args:?}: {words}");
            assert_eq!(words.lines().count(), 1, "{words}");
        }
        // None was asked for; and programs have it in numbers.
        assert_eq!(said(&ground, &["-n", "0"]), (0, String::new()));
        let (printed, words) = said(&ground, &["-n", "1", "--json"]);
        assert!(printed > 0 && words.is_empty(), "{words}");
    }
    // Where something is kept, and it is only about something else, there is nothing to say.
    let (ground, _daemon) = served_with("[events]\nkept = 1\n");
    publish(&ground, "other", "x");
    assert_eq!(said(&ground, &["-n", "1"]), (0, String::new()));
}

#[test]
fn a_subscriber_comes_back_after_a_kill_and_shows_the_gap() {
    let ground = Ground::new();
    let listener = bind_private(&ground.init_socket());
    let daemon = Daemon::start(&ground, listener.try_clone().unwrap(), |_| {});
    let (mut subscriber, begun) = Subscriber::begin(&ground, &["n"]);
    publish(&ground, "n", "before");
    assert_eq!(subscriber.next_of("event")["data"], "before");
    daemon.signal(nix::sys::signal::Signal::SIGKILL);
    drop(daemon);
    let away = subscriber.next_of("away");
    assert_eq!(
        (&away["why"], &away["pause_seconds"]),
        (&json!("the daemon closed the connection"), &json!(1))
    );
    let _daemon = Daemon::start(&ground, listener, |_| {});
    // Before it is back, or after: it is shown behind the gap.
    publish(&ground, "n", "after");
    let again = subscriber.next_of("subscribed");
    assert_ne!(again["epoch"], begun["epoch"]);
    let gap = subscriber.next_of("gap");
    assert_eq!((&gap["reason"], &gap["epoch"]), (&json!("restarted"), &again["epoch"]));
    let event = subscriber.next_of("event");
    assert_eq!((&event["data"], &event["epoch"]), (&json!("after"), &again["epoch"]));
    assert_eq!(publish(&ground, "n", "then")["reached"], 1);
    assert_eq!(subscriber.next_of("event")["data"], "then");
}

#[test]
fn people_are_told_once_that_the_daemon_is_away_and_once_that_it_is_back() {
    let ground = Ground::new();
    let listener = bind_private(&ground.init_socket());
    let daemon = Daemon::start(&ground, listener.try_clone().unwrap(), |_| {});
    ground.token_after_first_contact();
    // Where a socket is named no daemon is started.
    let join = |command: &mut Command| {
        command.env("AUTHSOCK_SOCKET", ground.init_socket()).env("AUTHSOCK_TOKEN_FILE", ground.token_path());
    };
    let mut command = ground.authsock(["subscribe", "n"]);
    join(&mut command);
    let mut person = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(person.stderr.take().unwrap());
    let mut next_line = || {
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        line
    };
    assert_eq!(next_line(), "authsock: subscribed to n\n");
    let mut command = ground.authsock(["subscribe", "--json", "n"]);
    join(&mut command);
    let (mut program, _) = Subscriber::begin_with(&mut command);
    let aside = ground.root().join("aside");
    std::fs::rename(ground.init_socket(), &aside).unwrap();
    daemon.signal(nix::sys::signal::Signal::SIGKILL);
    drop(daemon);
    // The end of the connection, and an attempt that failed: a program is told of each.
    for pause in [1, 2] {
        assert_eq!(program.next_of("away")["pause_seconds"], pause);
    }
    std::fs::rename(&aside, ground.init_socket()).unwrap();
    let _daemon = Daemon::start(&ground, listener, |_| {});
    program.next_of("subscribed");
    assert_eq!(next_line(), "authsock: the daemon closed the connection; trying to come back\n");
    assert_eq!(next_line(), "authsock: the daemon is back: subscribed again\n");
    let own = nix::unistd::Pid::from_raw(person.id().try_into().unwrap());
    nix::sys::signal::kill(own, nix::sys::signal::Signal::SIGINT).unwrap();
    person.wait().unwrap();
    assert_eq!(next_line(), "", "and nothing else");
}

#[test]
fn a_subscriber_starts_the_daemon_again_that_it_had_started_and_a_signal_ends_it_as_any_program() {
    use std::os::unix::process::ExitStatusExt;
    let ground = Ground::new();
    let (mut subscriber, begun) = Subscriber::begin(&ground, &["n"]);
    let pid = ground.json(["status"])["pid"].as_i64().unwrap();
    let pid = nix::unistd::Pid::from_raw(pid.try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    subscriber.next_of("away");
    assert_ne!(subscriber.next_of("subscribed")["epoch"], begun["epoch"]);
    assert_eq!(subscriber.next_of("gap")["reason"], "restarted");
    assert_eq!(publish(&ground, "n", "x")["reached"], 1);
    assert_eq!(subscriber.next_of("event")["data"], "x");
    let own = nix::unistd::Pid::from_raw(subscriber.child.id().try_into().unwrap());
    nix::sys::signal::kill(own, nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(subscriber.child.wait().unwrap().signal(), Some(nix::libc::SIGINT));
}

#[test]
fn a_session_that_ends_ends_its_subscriber() {
    let (ground, _daemon) = served_with("");
    let mut owner = owner(&ground);
    let (id, join) = session(&ground, &mut owner, json!({}));
    let mut command = ground.authsock(["subscribe", "--json", "n"]);
    join(&mut command);
    let (told, _) = Subscriber::begin_with(&mut command);
    owner.call("session.revoke", &json!({ "id": id }));
    let (code, error) = told.end();
    assert_eq!((code, &error["code"]), (4, &json!("revoked")), "{error}");
    assert!(error["message"].as_str().unwrap().starts_with("this session has ended"), "{error}");
}

#[test]
fn a_session_that_ended_while_no_daemon_ran_ends_its_subscriber_and_the_owner_s_token_is_not_used() {
    let ground = Ground::new();
    let listener = bind_private(&ground.init_socket());
    let daemon = Daemon::start(&ground, listener.try_clone().unwrap(), |_| {});
    let mut leader = ground.authsock(["run", "--bind", "uid", "--", "sh", "-c"]);
    leader.arg("echo $AUTHSOCK_TOKEN_FILE; read -r _").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut leader = leader.spawn().unwrap();
    let mut file = String::new();
    BufReader::new(leader.stdout.take().unwrap()).read_line(&mut file).unwrap();
    let mut command = ground.authsock(["subscribe", "--json", "n"]);
    command.env("AUTHSOCK_TOKEN_FILE", file.trim_end()).env("AUTHSOCK_SOCKET", ground.init_socket());
    let (mut untold, _) = Subscriber::begin_with(&mut command);
    daemon.signal(nix::sys::signal::Signal::SIGKILL);
    drop(daemon);
    untold.next_of("away");
    leader.kill().unwrap();
    leader.wait().unwrap();
    let _daemon = Daemon::start(&ground, listener, |_| {});
    let (code, error) = untold.end();
    assert_eq!((code, &error["code"]), (4, &json!("revoked")), "{error}");
}

#[test]
fn a_token_that_stands_for_another_session_now_is_not_followed() {
    let ground = Ground::new();
    let listener = bind_private(&ground.init_socket());
    let daemon = Daemon::start(&ground, listener.try_clone().unwrap(), |_| {});
    let mut owner = owner(&ground);
    let (id, join) = session(&ground, &mut owner, json!({}));
    let (other, _) = session(&ground, &mut owner, json!({}));
    let mut command = ground.authsock(["subscribe", "--json", "n"]);
    join(&mut command);
    let (mut subscriber, _) = Subscriber::begin_with(&mut command);
    daemon.signal(nix::sys::signal::Signal::SIGKILL);
    drop(daemon);
    subscriber.next_of("away");
    let file = |id: &str| ground.root().join(format!("token-{id}"));
    std::fs::rename(file(&other), file(&id)).unwrap();
    let _daemon = Daemon::start(&ground, listener, |_| {});
    let (code, error) = subscriber.end();
    assert_eq!(code, 4, "{error}");
    let words = error["message"].as_str().unwrap();
    assert!(words.contains(&id) && words.contains(&other), "{words}");
}

#[test]
fn a_session_hears_and_says_what_its_scopes_permit_and_is_told_when_they_are_narrowed() {
    let (ground, _daemon) = served_with("");
    let mut owner = owner(&ground);
    let scopes = json!({ "scopes": ["events:publish:a.>", "events:subscribe:a.>", "events:subscribe:b"] });
    let (id, join) = session(&ground, &mut owner, scopes);
    for (args, needed) in [
        (["subscribe", ">", "-nall"], "needs the scope events:subscribe:>"),
        (["subscribe", "c", "-f"], "needs the scope events:subscribe:c"),
        (["publish", "b", "x"], "needs the scope events:publish:b"),
        (["publish", "$authsock.x", "x"], "only the daemon publishes below $authsock"),
    ] {
        let mut command = ground.authsock(args);
        join(&mut command);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text_of(&output));
        assert!(output.stdout.is_empty() && text_of(&output).contains(needed), "{}", text_of(&output));
    }
    let mut command = ground.authsock(["subscribe", "--json", "a.>", "b"]);
    join(&mut command);
    let (mut subscriber, _) = Subscriber::begin_with(&mut command);
    owner.call("session.update", &json!({ "id": id, "scopes": ["events:subscribe:b"] }));
    assert_eq!(subscriber.next_of("unsubscribed")["subjects"], json!(["a.>"]));
    assert_eq!(publish_on(&mut owner, "b", "still")["reached"], 1);
    assert_eq!(subscriber.next_of("event")["data"], "still");
    owner.call("session.update", &json!({ "id": id, "scopes": [] }));
    assert_eq!(subscriber.next_of("unsubscribed")["subjects"], json!(["b"]));
    let (code, error) = subscriber.end();
    assert_eq!(code, 4, "{error}");
    assert!(error["message"].as_str().unwrap().contains("scopes were narrowed"), "{error}");
}

#[test]
fn what_makes_no_sense_is_named_before_anything_is_started_for_it() {
    let ground = Ground::new();
    for (args, named) in [
        (&["publish", "a..b", "x"][..], "'a..b'"),
        (&["publish", "a.*", "x"], "* and > are for those who subscribe"),
        (&["publish", "a b", "x"], "'a b'"),
        (&["publish"], "<SUBJECT>"),
        (&["call", "events.subscribe", r#"{"subjects":["a"]}"#], "`authsock subscribe SUBJECT` shows"),
        (&["call", "events.unsubscribe"], "`authsock subscribe SUBJECT` shows"),
        (&["publish", "a", "{", "--json-data"], "DATA is not JSON"),
        (&["subscribe"], "<SUBJECT>"),
        (&["subscribe", "a", ">.b"], "'>.b'"),
        (&["subscribe", "a", "--since", "x"], "EPOCH:NUMBER"),
        (&["subscribe", "a", "--since", "ab:1"], "16 hexadecimal digits"),
        (&["subscribe", "a", "-n", "some"], "a number, or all"),
        (&["subscribe", "a", "-n", "1", "--since", "1"], "cannot be used with"),
    ] {
        let output = ground.command(crate::ground::AUTHSOCK).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", text_of(&output));
        assert!(text_of(&output).contains(named), "{args:?}: {}", text_of(&output));
    }
    let mut much = vec![b'x'; (1 << 20) + 1];
    let output = with_input(&mut ground.authsock(["publish", "a", "-"]), &much);
    assert_eq!(output.status.code(), Some(2), "{}", text_of(&output));
    assert!(text_of(&output).contains("events.payload_bytes"), "{}", text_of(&output));
    much.truncate(3);
    much[1] = 0xff;
    let output = with_input(&mut ground.authsock(["publish", "a", "-"]), &much);
    assert_eq!(output.status.code(), Some(2), "{}", text_of(&output));
    assert!(text_of(&output).contains("at byte 2"), "{}", text_of(&output));
    assert!(!ground.state().exists(), "no daemon was started for any of it");
    // What an event carries here is the daemon's to say.
    let output = with_input(&mut ground.authsock(["publish", "a", "-"]), &[b'x'; 65_535]);
    assert_eq!(output.status.code(), Some(1), "{}", text_of(&output));
    assert!(text_of(&output).contains("at most 65536 bytes (events.payload_bytes)"), "{}", text_of(&output));
}

#[test]
fn a_subscriber_whose_reader_is_slow_shows_how_many_events_it_lost() {
    let (ground, _daemon) = served_with("[events]\nqueued = 10\n");
    let mut owner = owner(&ground);
    let (mut subscriber, _) = Subscriber::begin(&ground, &["n"]);
    let filler = "x".repeat(20_000);
    let total = 200;
    for number in 1..=total {
        let data = json!([number, filler]);
        owner.call("events.publish", &json!({ "subject": "n", "data": data }));
    }
    publish_on(&mut owner, "n", "last");
    let (mut events, mut missed) = (0, 0);
    while events + missed < total {
        let line = subscriber.next();
        match line["type"].as_str().unwrap() {
            "event" => {
                events += 1;
                assert_eq!(line["data"][0], events + missed, "in order");
            }
            "gap" => missed += line["missed"].as_u64().unwrap(),
            other => panic!("{other}"),
        }
    }
    assert!(missed > 0 && events > 0);
}

#[test]
fn a_full_disk_below_the_events_is_said() {
    let (ground, _daemon) = served_with("");
    publish(&ground, "n", "x");
    let full = std::fs::File::options().write(true).open("/dev/full");
    if skip_unless(full.is_ok(), "there is no /dev/full") {
        return;
    }
    let output = ground.authsock(["subscribe", "n", "-nall"]).stdout(full.unwrap()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text_of(&output));
    assert!(text_of(&output).contains("cannot write to standard output"), "{}", text_of(&output));
}
