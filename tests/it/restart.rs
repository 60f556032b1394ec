//! Sessions outlive the daemon: restarts, crashes and take-overs, and what must not come to life again.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::ground::{
    AUTHSOCK, Daemon, Ground, Line, PATIENCE, become_instead, has, is_root, minted, put, refusal,
    skip_unless, text_of,
};
use crate::impostor::{NO_NAMESPACES, can_choose_pids};
use crate::tree::Inside;

/// The owner's place only, whatever the session says.
const AS_OWNER: &str = "env -u AUTHSOCK_TOKEN_FILE -u AUTHSOCK_SOCKET authsock whoami";

/// Ends a daemon and returns the socket that an init system would hold on to.
fn stop(mut daemon: Daemon, signal: Signal) -> std::os::unix::net::UnixListener {
    daemon.signal(signal);
    daemon.child.wait().unwrap();
    daemon.listener.try_clone().unwrap()
}

fn restart(ground: &Ground, daemon: Daemon, signal: Signal) -> Daemon {
    let listener = stop(daemon, signal);
    Daemon::start(ground, listener, |_| {})
}

fn records(ground: &Ground) -> PathBuf {
    ground.state().join("sessions")
}

/// The names of the records, in order.
fn names(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

/// Waits until a file is gone; the directory gives no event.
fn wait_until_gone(path: &Path) {
    let end = Instant::now() + PATIENCE;
    while path.exists() {
        assert!(Instant::now() < end, "{} is still there", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Changes a record as somebody with an editor would.
fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut record: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut record);
    put(path, &record.to_string(), 0o600);
}

fn listed(ground: &Ground) -> Vec<String> {
    let list = ground.json(["session", "list"]);
    let sessions = list.as_array().or_else(|| list["sessions"].as_array()).unwrap();
    sessions.iter().map(|session| session["id"].as_str().unwrap().to_owned()).collect()
}

/// What is told of sessions that have ended: id and reason.
fn ended(ground: &Ground) -> Vec<(String, String)> {
    let list = ground.json(["session", "list", "--ended", "--all-realms"]);
    let sessions = list["sessions"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    sessions.map(|session| (text(&session["id"]), text(&session["reason"]))).collect()
}

#[test]
fn a_session_lives_on_with_the_next_daemon_whichever_way_the_one_before_ended() {
    let ground = Ground::new();
    let mut daemon = ground.serve();
    let options = ["--name", "survivor", "--realm", "builds", "--ttl", "1h", "--allow", "session:create"];
    let mut inside = Inside::begin(&ground, &options);
    let before = inside.whoami();
    let id = before["session"]["id"].as_str().unwrap().to_owned();
    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGINT] {
        daemon = restart(&ground, daemon, signal);
        let after = inside.whoami();
        assert_eq!(after["session"], before["session"], "{signal}: not a word has changed");
        assert_eq!(after["daemon"]["pid"], daemon.child.id());
    }
    // What is kept is private, and is no token.
    let dir = std::fs::metadata(records(&ground)).unwrap();
    assert_eq!(dir.mode() & 0o7777, 0o700);
    assert_eq!(names(&records(&ground)), [id.as_str()]);
    let file = records(&ground).join(&id);
    assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o7777, 0o600);
    assert!(!std::fs::read_to_string(&file).unwrap().contains(&inside.token()));
    // Its leader is watched as before, and its end is the end.
    inside.end();
    let log = daemon.wait_for_log(&format!("session {id} (survivor) ended"));
    assert!(log.contains("leader_exited"), "{log}");
    wait_until_gone(&file);
}

#[test]
fn a_session_within_a_session_lives_on_and_ends_with_the_one_around_it() {
    let ground = Ground::new();
    let daemon = ground.serve();
    let mut outer = Inside::begin(&ground, &["--name", "outer"]);
    let (go, out) = (ground.root().join("go"), ground.root().join("out"));
    for fifo in [&go, &out] {
        nix::unistd::mkfifo(fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    }
    let script = format!(
        "while read go <{}; do authsock whoami --json >{} 2>&1 || echo null >{}; done",
        go.display(),
        out.display(),
        out.display()
    );
    let (code, said) =
        outer.tell(&format!("authsock run --name inner -- sh -c '{script}' >/dev/null 2>&1 &"));
    assert_eq!(code, 0, "{said}");
    let ask = || -> String {
        std::fs::write(&go, "go\n").unwrap();
        std::fs::read_to_string(&out).unwrap()
    };
    let inner: Value = serde_json::from_str(&ask()).unwrap();
    assert_eq!(inner["session"]["parent"], outer.id().as_str());
    let daemon = restart(&ground, daemon, Signal::SIGKILL);
    let again: Value = serde_json::from_str(&ask()).unwrap();
    assert_eq!(again["session"], inner["session"]);
    // The outer one ends while no daemon runs; the inner one's leader goes on, without a session.
    let listener = stop(daemon, Signal::SIGKILL);
    let outer_id = inner["session"]["parent"].as_str().unwrap().to_owned();
    outer.run.kill().unwrap();
    outer.run.wait().unwrap();
    let daemon = Daemon::start(&ground, listener, |_| {});
    daemon.wait_for_log(&format!("session {outer_id} (outer) ended: leader_gone_while_stopped"));
    daemon.wait_for_log("(inner) ended: parent_ended");
    let said = ask();
    assert!(said.contains("refused") && said.contains("revoked"), "{said}");
    let inner_id = inner["session"]["id"].as_str().unwrap();
    assert_eq!(
        ended(&ground),
        [(outer_id, "leader_gone_while_stopped".into()), (inner_id.into(), "parent_ended".into())]
    );
    let pid = inner["session"]["leader"]["pid"].as_i64().unwrap();
    let shells = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    // What it ran goes on without a session, and would wait for a word for ever.
    for shell in shells.split_whitespace() {
        kill(Pid::from_raw(shell.parse().unwrap()), Signal::SIGKILL).unwrap();
    }
}

#[test]
fn an_old_token_s_grace_goes_on_after_a_restart_and_ends_when_it_would_have() {
    let ground = Ground::new();
    let daemon = ground.serve();
    let inside = Inside::begin(&ground, &["--bind", "uid", "--name", "turner"]);
    let old = inside.token();
    let (new, verifier) = minted();
    let mut client = Line::connect(&ground.init_socket());
    assert_eq!(client.plain(&old)["success"], true);
    let answer = client.call("session.rotate", &json!({ "verifier": verifier, "grace_seconds": 4 }));
    assert_eq!(answer["result"]["grace_seconds"], 4, "{answer}");
    let owner = ground.token();
    assert_eq!(Line::connect(&ground.init_socket()).plain(&owner)["success"], true);
    let mut client = Line::connect(&ground.init_socket());
    client.plain(&owner);
    let answer = client.call("session.rotate", &json!({ "grace_seconds": 4 }));
    assert!(answer["result"]["token_id"].is_string(), "{answer}");
    let _daemon = restart(&ground, daemon, Signal::SIGKILL);
    let mut olds: Vec<Line> = [&old, &owner]
        .into_iter()
        .map(|token| {
            let mut line = Line::connect(&ground.init_socket());
            assert_eq!(line.plain(token)["success"], true);
            let answer = line.call("daemon.retire", &json!({}));
            assert!(answer["error"].is_object(), "it changes nothing: {answer}");
            line
        })
        .collect();
    for token in [new.reveal().as_str(), ground.token().as_str()] {
        assert_eq!(Line::connect(&ground.init_socket()).plain(token)["success"], true);
    }
    for line in &mut olds {
        assert_eq!(line.receive(), None, "the connection closes when the grace ends");
    }
    for token in [&old, &owner] {
        assert_eq!(refusal(&Line::connect(&ground.init_socket()).plain(token)), "revoked");
    }
}

#[test]
fn a_leader_that_died_while_no_daemon_ran_has_no_session_any_more() {
    let ground = Ground::new();
    let daemon = ground.serve();
    // Bound to the user, so that nothing but the record decides.
    let mut inside = Inside::begin(&ground, &["--bind", "uid", "--name", "mortal"]);
    let (id, token) = (inside.id(), inside.token());
    let mut other = Inside::begin(&ground, &["--name", "other"]);
    let listener = stop(daemon, Signal::SIGKILL);
    inside.run.kill().unwrap();
    inside.run.wait().unwrap();
    let daemon = Daemon::start(&ground, listener, |_| {});
    daemon.wait_for_log(&format!("session {id} (mortal) ended: leader_gone_while_stopped"));
    assert_eq!(refusal(&Line::connect(&ground.init_socket()).plain(&token)), "revoked");
    assert!(!listed(&ground).contains(&id));
    assert_eq!(ended(&ground), [(id, "leader_gone_while_stopped".into())]);
    assert!(names(&records(&ground)).contains(&other.id()));
}

#[test]
fn a_record_that_names_another_process_boot_or_session_revives_nobody() {
    type Forge = fn(&mut Value);
    let forgeries: [(&str, Forge); 5] = [
        ("leader_gone_while_stopped", |record| record["leader"]["pid"] = std::process::id().into()),
        ("leader_gone_while_stopped", |record| record["leader"]["pid"] = 0.into()),
        ("leader_gone_while_stopped", |record| {
            record["boot"] = "00000000-0000-4000-8000-000000000000".into();
        }),
        ("leader_gone_while_stopped", |record| record["boot"] = Value::Null),
        ("cannot live on", |record| record["scopes"] = json!(["session:self", "daemon:manage"])),
    ];
    let ground = Ground::new();
    let mut daemon = ground.serve();
    // The last forgery is one only below a session that is narrower.
    let mut outer = Inside::begin(&ground, &["--bind", "uid", "--allow", "session:create"]);
    let outer_id = outer.id();
    for (words, forge) in forgeries {
        let mut inside = Inside::begin(&ground, &["--bind", "uid"]);
        let (id, token) = (inside.id(), inside.token());
        let listener = stop(daemon, Signal::SIGKILL);
        edit(&records(&ground).join(&id), |record| {
            record["parent"] = outer_id.as_str().into();
            record["scopes"] = json!(["session:self"]);
            forge(record);
        });
        daemon = Daemon::start(&ground, listener, |_| {});
        let log = daemon.wait_for_log(&format!("session {id} "));
        assert!(log.contains(words), "{log}");
        let refused = Line::connect(&ground.init_socket()).plain(&token);
        assert!(["denied", "revoked"].contains(&refusal(&refused)), "{refused}");
        assert!(!listed(&ground).contains(&id));
    }
    assert_eq!(outer.id(), outer_id);
}

#[test]
fn a_session_whose_time_was_up_meanwhile_ends_as_expired() {
    let ground = Ground::new();
    let daemon = ground.serve();
    let mut inside = Inside::begin(&ground, &["--bind", "uid", "--ttl", "1h", "--name", "late"]);
    let (id, token) = (inside.id(), inside.token());
    let listener = stop(daemon, Signal::SIGTERM);
    edit(&records(&ground).join(&id), |record| record["expires_ms"] = 1.into());
    let daemon = Daemon::start(&ground, listener, |_| {});
    assert_eq!(refusal(&Line::connect(&ground.init_socket()).plain(&token)), "expired");
    daemon.wait_for_log(&format!("session {id} (late) ended: expired"));
    // It is told so again by the next one, for its leader lives.
    let _daemon = restart(&ground, daemon, Signal::SIGKILL);
    assert_eq!(refusal(&Line::connect(&ground.init_socket()).plain(&token)), "expired");
    assert!(!listed(&ground).contains(&id));
}

#[test]
fn below_a_leader_the_owner_s_token_stays_refused_also_when_its_session_was_revoked() {
    let ground = Ground::new();
    let mut daemon = ground.serve();
    let mut inside = Inside::begin(&ground, &["--name", "kept"]);
    let refused = |inside: &mut Inside, words: &str| {
        let (code, said) = inside.tell(AS_OWNER);
        assert!(code == 4 && said.contains("binding"), "{words}: {said}");
    };
    refused(&mut inside, "at first");
    daemon = restart(&ground, daemon, Signal::SIGKILL);
    refused(&mut inside, "after a restart");
    let id = inside.id();
    assert_eq!(inside.tell("authsock call session.revoke").0, 0);
    refused(&mut inside, "revoked");
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        daemon = restart(&ground, daemon, signal);
        refused(&mut inside, "revoked, after a restart");
        let (code, said) = inside.tell("authsock whoami");
        assert!(code == 4 && said.contains("revoked"), "{said}");
        assert_eq!(listed(&ground), ["owner"], "and outside the owner is served");
    }
    assert_eq!(ended(&ground), [(id, "revoked".into())]);
    // Forgotten at once, but for the file that tells of the leader; which goes with the leader.
    ground.configure("[limits]\nended_kept_seconds = 0\n");
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        daemon = restart(&ground, daemon, signal);
        refused(&mut inside, "forgotten, after a restart");
        assert_eq!(ended(&ground), []);
    }
    let [file] = &names(&records(&ground))[..] else { panic!() };
    let file = records(&ground).join(file);
    inside.end();
    wait_until_gone(&file);
}

#[test]
fn however_many_sessions_a_leader_ends_few_files_are_kept_of_them() {
    let ground = Ground::new();
    ground.configure("[limits]\nsessions_per_uid = 16\n");
    let daemon = ground.serve();
    let mut client = Line::connect(&ground.init_socket());
    client.plain(&ground.token());
    for _ in 0..40 {
        let params = json!({ "name": "brief", "verifier": minted().1 });
        let made = client.call("session.create", &params);
        let id = made["result"]["session"]["id"].as_str().unwrap_or_else(|| panic!("{made}"));
        let ended = client.call("session.revoke", &json!({ "id": id }));
        assert_eq!(ended["result"]["ended"], 1, "{ended}");
    }
    let kept = names(&records(&ground));
    assert!(kept.len() == 16 && kept.iter().all(|name| name.contains(".revoked.")), "{kept:?}");
    let _daemon = restart(&ground, daemon, Signal::SIGTERM);
    let refused = Line::connect(&ground.init_socket()).plain(&ground.token());
    assert_eq!(refusal(&refused), "binding", "this process led them");
    assert_eq!(names(&records(&ground)), kept);
}

#[test]
fn ten_sessions_go_over_to_an_installed_daemon_while_their_programs_run() {
    let ground = Ground::new();
    let mut sessions: Vec<Inside> =
        (0..10).map(|number| Inside::begin(&ground, &["--name", &format!("n{number}")])).collect();
    let before: Vec<Value> = sessions.iter_mut().map(Inside::whoami).collect();
    let daemon = ground.serve();
    for (session, before) in sessions.iter_mut().zip(&before) {
        let after = session.whoami();
        assert_ne!(after["daemon"]["pid"], before["daemon"]["pid"]);
        assert_eq!(after["daemon"]["pid"], daemon.child.id());
        assert_eq!(after["session"], before["session"]);
    }
    let mut wanted: Vec<&str> = before.iter().map(|who| who["session"]["id"].as_str().unwrap()).collect();
    wanted.push("owner");
    wanted.sort_unstable();
    let mut ids = listed(&ground);
    ids.sort();
    assert_eq!(ids, wanted);
}

#[test]
fn after_a_kill_a_session_waits_for_somebody_outside_to_start_the_daemon() {
    let ground = Ground::new();
    let mut inside = Inside::begin(&ground, &["--name", "patient"]);
    let before = inside.whoami();
    let pid = Pid::from_raw(before["daemon"]["pid"].as_i64().unwrap().try_into().unwrap());
    kill(pid, Signal::SIGKILL).unwrap();
    let (code, said) = inside.tell("authsock whoami");
    assert_eq!(code, 3, "who was told of a socket starts nothing: {said}");
    let next = ground.json(["whoami"])["daemon"]["pid"].clone();
    let after = inside.whoami();
    assert_eq!((&after["session"], &after["daemon"]["pid"]), (&before["session"], &next));
}

#[test]
fn what_is_no_record_is_named_and_the_rest_lives_on() {
    let ground = Ground::new();
    let daemon = ground.serve();
    let mut inside = Inside::begin(&ground, &["--name", "sound"]);
    let before = inside.whoami();
    let id = before["session"]["id"].as_str().unwrap();
    let listener = stop(daemon, Signal::SIGKILL);
    let dir = records(&ground);
    let good = std::fs::read_to_string(dir.join(id)).unwrap();
    let bad = [
        ("0000000000000001", "garbage".to_owned(), 0o600, "is not the record of a session"),
        ("0000000000000002", good[..good.len() / 2].to_owned(), 0o600, "is not the record of a session"),
        ("0000000000000003", good.replace("\"version\":1", "\"version\":2"), 0o600, "version 2"),
        ("0000000000000004", good.clone(), 0o600, "another session"),
        ("0000000000000005", good.clone(), 0o644, "0644"),
        ("0000000000000006", "x".repeat(100_000), 0o600, "larger than"),
        ("notes.txt", "mine".to_owned(), 0o600, "no session's record"),
        ("0000000000000007.tired", good.clone(), 0o600, "no session's record"),
    ];
    for (name, text, mode, _) in &bad {
        put(&dir.join(name), text, *mode);
    }
    std::fs::create_dir(dir.join("0000000000000008")).unwrap();
    put(&dir.join(".new-1-0"), &good[..9], 0o600);
    let daemon = Daemon::start(&ground, listener, |_| {});
    assert_eq!(inside.whoami()["session"], before["session"]);
    for (name, text, _, words) in &bad {
        let log = daemon.wait_for_log(name);
        assert!(log.contains("WARN") && log.contains(words), "{name}: {log}");
        // What is damaged is set aside and said once; what may be of use to somebody stays where it is.
        let aside = format!("{name}.damaged");
        let now = if log.contains(&aside) { &aside } else { *name };
        assert_eq!(
            log.contains(&aside),
            ["1", "2", "4"].iter().any(|number| name.ends_with(number)),
            "{log}"
        );
        assert_eq!(std::fs::read_to_string(dir.join(now)).unwrap(), *text, "{name}: nothing is lost");
    }
    assert!(daemon.wait_for_log("0000000000000008").contains("not a regular file"));
    assert!(!dir.join(".new-1-0").exists(), "what a killed daemon had begun to write is gone");
    let record: Value = serde_json::from_str(&good).unwrap();
    let key = record["tokens"][0]["stored_key"].as_str().unwrap();
    assert!(!daemon.stderr().contains(&key[..16]), "no verifier is in the log");
    let daemon = restart(&ground, daemon, Signal::SIGKILL);
    assert_eq!(inside.whoami()["session"], before["session"]);
    assert!(!daemon.stderr().contains("0000000000000001"), "{}", daemon.stderr());
}

#[test]
fn below_the_leader_of_a_session_whose_record_is_damaged_the_owner_s_token_stays_refused() {
    let ground = Ground::new();
    let mut daemon = ground.serve();
    for damage in [json!({ "scopes": ["session:every"] }), json!({ "version": 9 }), json!({ "tokens": 7 })] {
        let mut inside = Inside::begin(&ground, &[]);
        let id = inside.id();
        let listener = stop(daemon, Signal::SIGKILL);
        edit(&records(&ground).join(&id), |record| {
            record.as_object_mut().unwrap().extend(damage.as_object().unwrap().clone());
        });
        daemon = Daemon::start(&ground, listener, |_| {});
        for _ in 0..2 {
            assert!(!listed(&ground).contains(&id), "{damage}");
            let (code, said) = inside.tell(AS_OWNER);
            assert!(code == 4 && said.contains("binding"), "{damage}: {said}");
            daemon = restart(&ground, daemon, Signal::SIGTERM);
        }
    }
}

#[test]
fn an_end_that_cannot_be_put_on_disk_is_said_and_caught_up_with() {
    if skip_unless(!is_root(), "root may write every directory") {
        return;
    }
    let ground = Ground::new();
    let daemon = ground.serve();
    let inside = Inside::begin(&ground, &["--bind", "uid"]);
    let mode =
        |mode: u32| std::fs::set_permissions(records(&ground), PermissionsExt::from_mode(mode)).unwrap();
    mode(0o500);
    let mut own = Line::connect(&ground.init_socket());
    assert_eq!(own.plain(&inside.token())["success"], true);
    let answer = own.call("session.revoke", &json!({}));
    assert_eq!(answer["error"]["code"], -32005, "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("is not on disk"), "{answer}");
    assert_eq!(own.receive().unwrap()["params"]["reason"], "revoked", "ended it has");
    mode(0o700);
    daemon.wait_for_log("is on disk now");
    let _daemon = restart(&ground, daemon, Signal::SIGKILL);
    assert_eq!(refusal(&Line::connect(&ground.init_socket()).plain(&inside.token())), "revoked");
}

#[test]
fn a_directory_of_records_that_cannot_be_trusted_serves_nothing_and_says_why() {
    let ground = Ground::new();
    let daemon = ground.serve();
    let listener = stop(daemon, Signal::SIGTERM);
    std::fs::set_permissions(records(&ground), PermissionsExt::from_mode(0o777)).unwrap();
    let daemon = Daemon::start(&ground, listener, |_| {});
    let reason = daemon.wait_for_log("cannot serve");
    assert!(reason.contains("authsock/sessions") && reason.contains("chmod"), "{reason}");
}

#[test]
fn sessions_that_do_not_fit_any_more_end_and_the_log_says_so() {
    let ground = Ground::new();
    let daemon = ground.serve();
    let mut sessions: Vec<Inside> = (0..3).map(|_| Inside::begin(&ground, &[])).collect();
    ground.configure("[limits]\nsessions = 2\n");
    let daemon = restart(&ground, daemon, Signal::SIGTERM);
    let lost = daemon.wait_for_log("cannot live on");
    assert!(lost.contains("limit sessions = 2"), "{lost}");
    let codes: Vec<i32> = sessions.iter_mut().map(|session| session.tell("authsock whoami").0).collect();
    assert_eq!(codes.iter().filter(|code| **code == 0).count(), 2, "{codes:?}");
    assert_eq!(codes.iter().filter(|code| **code == 4).count(), 1, "{codes:?}");
}

#[test]
fn what_was_answered_is_on_record_when_the_daemon_is_killed_at_work() {
    let ground = Ground::new();
    let mut daemon = ground.serve();
    let owner = ground.token_after_first_contact();
    let mut client = Line::connect(&ground.init_socket());
    assert_eq!(client.plain(&owner)["success"], true);
    let (first, verifier) = minted();
    let wish = json!({ "name": "first", "binding": "uid", "verifier": verifier });
    assert!(client.call("session.create", &wish)["result"].is_object());
    // This process leads a session now, and asks as that.
    for answers in [0, 1, 7, 60] {
        let mut client = Line::connect(&ground.init_socket());
        assert_eq!(client.plain(&first.reveal())["success"], true);
        let mut asked = String::new();
        for id in 0..100 {
            let params = json!({ "name": "many", "binding": "uid", "verifier": minted().1 });
            let call = json!({ "jsonrpc": "2.0", "id": id, "method": "session.create", "params": params });
            asked.push_str(&format!("{call}\n"));
        }
        client.send(&asked);
        let mut promised = Vec::new();
        for _ in 0..answers {
            promised.push(client.receive().unwrap());
        }
        daemon = restart(&ground, daemon, Signal::SIGKILL);
        // What was still on its way counts as answered too.
        while let Some(answer) = client.receive() {
            promised.push(answer);
        }
        let mut again = Line::connect(&ground.init_socket());
        assert_eq!(again.plain(&first.reveal())["success"], true);
        let (mut ids, mut after) = (Vec::new(), Value::Null);
        loop {
            let page = again.call("session.list", &json!({ "after": after }));
            let sessions = page["result"]["sessions"].as_array().unwrap();
            ids.extend(sessions.iter().map(|session| session["id"].clone()));
            after = page["result"]["next"].clone();
            if after.is_null() {
                break;
            }
        }
        for answer in &promised {
            assert!(ids.contains(&answer["result"]["session"]["id"]), "{answer}");
        }
        assert!(!daemon.stderr().contains("record_ignored") && !daemon.stderr().contains("WARN"));
    }
}

#[test]
fn the_longest_session_that_is_made_lives_on_and_a_longer_one_is_not_made() {
    let ground = Ground::new();
    let daemon = ground.serve();
    let (token, verifier) = minted();
    let mut client = Line::connect(&ground.init_socket());
    assert_eq!(client.plain(&ground.token_after_first_contact())["success"], true);
    let scopes = |count: usize, length: usize| -> Vec<String> {
        (0..count).map(|number| format!("events:publish:{number:03}{}", "s".repeat(length - 18))).collect()
    };
    let refused = |client: &mut Line, scopes: Vec<String>| {
        let wish = json!({ "name": "n", "scopes": scopes, "verifier": minted().1 });
        let answer = client.call("session.create", &wish);
        assert_eq!(answer["error"]["code"], -32602, "{answer}");
        answer["error"]["message"].as_str().unwrap().to_owned()
    };
    assert!(refused(&mut client, scopes(65, 20)).contains("at most 64 scopes"));
    assert!(refused(&mut client, scopes(1, 257)).contains("events:publish:"));
    assert!(refused(&mut client, [scopes(16, 256), scopes(1, 18)].concat()).contains("at most 4096 bytes"));
    let wish = json!({ "name": "\u{10ffff}".repeat(16), "binding": "uid", "scopes": scopes(64, 64), "verifier": verifier });
    let made = client.call("session.create", &wish);
    assert_eq!(made["result"]["session"]["scopes"].as_array().unwrap().len(), 65, "{made}");
    assert_eq!(names(&records(&ground)).len(), 1);
    let _daemon = restart(&ground, daemon, Signal::SIGKILL);
    let mut client = Line::connect(&ground.init_socket());
    assert_eq!(client.plain(&token.reveal())["success"], true);
    assert_eq!(client.call("whoami", &json!({}))["result"]["session"], made["result"]["session"]);
}

#[test]
fn no_space_for_a_record_means_no_session_and_no_file() {
    if skip_unless(is_root(), "mounting a small file system needs root") {
        return;
    }
    let ground = Ground::new();
    std::fs::create_dir_all(ground.state()).unwrap();
    let script = "mount -t tmpfs -o size=64k,mode=0700 tmpfs \"$1\" && LISTEN_PID=$$ exec \"$2\" serve";
    let daemon = ground.serve_as(|command| {
        let mut inner = ground.command("unshare");
        inner.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
        inner.arg(ground.state()).arg(AUTHSOCK);
        become_instead(command, &inner);
    });
    let state = PathBuf::from(format!("/proc/{}/root{}", daemon.child.id(), ground.state().display()));
    let mut client = Line::connect(&ground.init_socket());
    assert_eq!(client.plain(&std::fs::read_to_string(state.join("token")).unwrap())["success"], true);
    let fill = || {
        let full = std::fs::write(state.join("filler"), vec![0; 1 << 20]).unwrap_err();
        assert_eq!(full.raw_os_error(), Some(libc::ENOSPC), "{full}");
    };
    fill();
    let (token, verifier) = minted();
    let wish = json!({ "name": "a", "binding": "uid", "verifier": verifier });
    let answer = client.call("session.create", &wish);
    let words = answer["error"]["message"].as_str().unwrap_or_else(|| panic!("{answer}"));
    assert!(words.contains("cannot be recorded") && words.contains("No space left"), "{answer}");
    assert!(names(&state.join("sessions")).is_empty(), "no half a file either");
    assert_eq!(client.call("status", &json!({}))["result"]["sessions"], 0);
    let refused = Line::connect(&ground.init_socket()).plain(&token.reveal());
    assert_eq!(refusal(&refused), "denied");
    // Once there is space, the very same session is made.
    std::fs::remove_file(state.join("filler")).unwrap();
    let made = client.call("session.create", &wish);
    let id = made["result"]["session"]["id"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
    assert_eq!(names(&state.join("sessions")), [id.as_str()]);
    // A token that cannot be recorded does not replace the one before.
    fill();
    let mut own = Line::connect(&ground.init_socket());
    assert_eq!(own.plain(&token.reveal())["success"], true);
    let before = std::fs::read(state.join("sessions").join(&id)).unwrap();
    let answer = own.call("session.rotate", &json!({ "verifier": minted().1 }));
    assert!(answer["error"]["message"].as_str().unwrap().contains("No space left"), "{answer}");
    assert_eq!(std::fs::read(state.join("sessions").join(&id)).unwrap(), before);
    assert_eq!(Line::connect(&ground.init_socket()).plain(&token.reveal())["success"], true);
    // The end needs no space.
    let ended = own.call("session.revoke", &json!({}));
    assert_eq!(ended["result"]["ended"], 1, "{ended}");
    let [kept] = &names(&state.join("sessions"))[..] else { panic!() };
    assert!(kept.starts_with(&format!("{id}.revoked.")), "{kept}");
}

/// Sessions whose leaders' pids are given to others, all within one pid namespace: one leader ends while the daemon runs,
/// one while none does.
const RECYCLED: &str = r#"
import json, os, signal, subprocess, sys
binary, runtime = sys.argv[1:3]
def authsock(*words):
    done = subprocess.run([binary, *words, "--json"], capture_output=True, text=True)
    return json.loads(done.stdout or "null"), done.stderr
def begin(name):
    command = [binary, "run", "--bind", "uid", "--name", name, "--", "sh", "-c", "echo $AUTHSOCK_TOKEN_FILE; read x"]
    leader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return leader, leader.stdout.readline().strip()
def end(leader):
    leader.kill()
    leader.wait()
def recycle(pid):
    "A process with this very pid, which is alive for as long as we are."
    for attempt in range(1000):
        with open("/proc/sys/kernel/ns_last_pid", "w") as last:
            last.write(str(pid - 1))
        child = os.fork()
        if child == 0:
            if os.getpid() == pid:
                signal.pause()
            os._exit(0)
        if child == pid:
            return
        os.waitpid(child, 0)
    sys.exit("the pid could not be had again")
(seen, first), (unseen, second) = begin("seen"), begin("unseen")
end(seen)
recycle(seen.pid)
daemon = authsock("whoami")[0]["daemon"]["pid"]
os.kill(daemon, signal.SIGKILL)
end(unseen)
recycle(unseen.pid)
listed, ended = authsock("session", "list")[0], authsock("session", "list", "--ended")[0]
os.environ["AUTHSOCK_SOCKET"] = runtime + "/authsock-ondemand.sock"
refusals = []
for file in first, second:
    os.environ["AUTHSOCK_TOKEN_FILE"] = file
    refusals.append(authsock("whoami")[1])
print(json.dumps({
    "pids": [seen.pid, unseen.pid],
    "living": [session["name"] for session in listed["sessions"]],
    "ended": [[session["name"], session["leader"]["pid"], session["reason"]] for session in ended["sessions"]],
    "refusals": refusals,
}))
os.kill(int(open(runtime + "/authsock/lock").read()), signal.SIGTERM)
"#;

#[test]
fn a_process_that_got_a_leader_s_pid_revives_no_session() {
    if skip_unless(can_choose_pids(), NO_NAMESPACES)
        || skip_unless(has("python3"), "python3 is not installed")
    {
        return;
    }
    let ground = Ground::new();
    let output = ground
        .command("unshare")
        .args(["-r", "-m", "-p", "-f", "--mount-proc", "--kill-child", "python3", "-c", RECYCLED])
        .args([&ground.binary, &ground.runtime()])
        .env("HOME", ground.home())
        .output()
        .unwrap();
    let said: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text_of(&output)));
    assert_eq!(said["living"], json!(["owner"]), "{said}");
    let pids = &said["pids"];
    let ended = json!([["seen", pids[0], "leader_exited"], ["unseen", pids[1], "leader_gone_while_stopped"]]);
    assert_eq!(said["ended"], ended, "{said}");
    for refusal in said["refusals"].as_array().unwrap() {
        assert!(refusal.as_str().unwrap().contains("revoked"), "{said}");
    }
}

/// Many sessions, each with a leader and a program of its own. All of them read one pipe and end when that does; all write
/// to one, which has an end when they have.
struct Crowd {
    runs: Vec<Child>,
    /// Each one's token file, in the order of `runs`.
    files: Vec<PathBuf>,
    input: Option<PipeWriter>,
    output: BufReader<PipeReader>,
}

impl Crowd {
    /// So many begin at once.
    const AT_ONCE: usize = 16;

    fn begin(ground: &Ground, count: usize, options: impl Fn(usize) -> Vec<String>) -> Crowd {
        let (for_them, input) = std::io::pipe().unwrap();
        let (output, from_them) = std::io::pipe().unwrap();
        let mut crowd =
            Crowd { runs: Vec::new(), files: Vec::new(), input: Some(input), output: BufReader::new(output) };
        crowd.files.resize(count, PathBuf::new());
        for number in 0..count {
            let mut run = ground.authsock(["run"]);
            let script = format!("echo \"{number} $AUTHSOCK_TOKEN_FILE\"; exec cat");
            run.args(options(number)).args(["--", "sh", "-c", &script]);
            run.stdin(for_them.try_clone().unwrap()).stdout(from_them.try_clone().unwrap());
            crowd.runs.push(run.spawn().unwrap());
            if number >= Crowd::AT_ONCE {
                crowd.hear();
            }
        }
        drop(from_them);
        (0..count.min(Crowd::AT_ONCE)).for_each(|_| crowd.hear());
        crowd
    }

    /// Waits for one of them to say where its token lies.
    fn hear(&mut self) {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        let (number, file) = line.trim_end().split_once(' ').unwrap();
        self.files[number.parse::<usize>().unwrap()] = file.into();
    }

    fn token(&self, number: usize) -> String {
        std::fs::read_to_string(&self.files[number]).unwrap()
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.input.take();
        for run in &mut self.runs {
            let _ = run.wait();
        }
        // Nor is any of those left whose `run` was killed.
        let _ = std::io::copy(&mut self.output, &mut std::io::sink());
    }
}

#[test]
fn of_a_thousand_sessions_those_live_on_whose_leaders_did_while_the_daemon_was_killed() {
    const ALL: usize = 1000;
    let dies = |number: usize| number % 10 < 3;
    let ground = Ground::new();
    let daemon = ground.serve();
    let mut crowd = Crowd::begin(&ground, ALL, |number| {
        let (name, realm) = (format!("n{number}"), format!("realm-{}", number % 7));
        ["--bind", "uid", "--name", &name, "--realm", &realm].map(ToOwned::to_owned).to_vec()
    });
    let before: Vec<(String, Value)> = (0..ALL)
        .map(|number| {
            let token = crowd.token(number);
            let result = Line::connect(&ground.init_socket()).plain(&token);
            assert_eq!(result["session"]["name"], format!("n{number}"), "{result}");
            assert_eq!(result["session"]["realm"], format!("realm-{}", number % 7), "{result}");
            (token, result["session"].clone())
        })
        .collect();
    let listener = stop(daemon, Signal::SIGKILL);
    for (_, run) in crowd.runs.iter_mut().enumerate().filter(|(number, _)| dies(*number)) {
        run.kill().unwrap();
        run.wait().unwrap();
    }
    let _daemon = Daemon::start(&ground, listener, |_| {});
    let mut gone = Vec::new();
    let mut alive = vec!["owner".to_owned()];
    for (number, (token, session)) in before.iter().enumerate() {
        let result = Line::connect(&ground.init_socket()).plain(token);
        let id = session["id"].as_str().unwrap().to_owned();
        if dies(number) {
            assert_eq!(refusal(&result), "revoked");
            gone.push(id);
        } else {
            assert_eq!(result["session"], *session, "{number}: not a word has changed");
            alive.push(id);
        }
    }
    assert_eq!((alive.len(), gone.len()), (701, 300));
    let list = ground.json(["session", "list", "--all-realms"]);
    let living = list["sessions"].as_array().unwrap().iter().map(|session| session["id"].as_str().unwrap());
    assert_eq!(living.collect::<BTreeSet<_>>(), alive.iter().map(String::as_str).collect());
    let gone: BTreeSet<_> = gone.into_iter().map(|id| (id, "leader_gone_while_stopped".to_owned())).collect();
    assert_eq!(ended(&ground).into_iter().collect::<BTreeSet<_>>(), gone);
}

#[test]
fn a_leader_costs_the_next_daemon_one_descriptor_however_many_sessions_it_has() {
    const DESCRIPTORS: usize = 80;
    const SESSIONS: usize = 3 * DESCRIPTORS;
    let ground = Ground::new();
    let few = |command: &mut Command| {
        let script =
            format!("ulimit -n {DESCRIPTORS}; LISTEN_PID=$$ exec '{}' serve", ground.binary.display());
        command.env("INSTEAD", script);
    };
    let daemon = ground.serve_as(few);
    let mut client = Line::connect(&ground.init_socket());
    client.plain(&ground.token());
    let mut tokens = Vec::new();
    for _ in 0..SESSIONS {
        let (token, verifier) = minted();
        let params = json!({ "name": "one-of-many", "binding": "uid", "verifier": verifier });
        let made = client.call("session.create", &params);
        assert!(made["result"]["session"]["id"].is_string(), "{made}");
        tokens.push(token);
    }
    let listener = stop(daemon, Signal::SIGKILL);
    let daemon = Daemon::start(&ground, listener, few);
    for token in &tokens {
        let mut line = Line::connect(&ground.init_socket());
        assert_eq!(line.plain(&token.reveal())["success"], true, "{}", daemon.stderr());
    }
}
