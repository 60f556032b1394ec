//! The owner's token file under a real daemon: kept, never widened, never silently replaced, rotated on request.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::ground::{Ground, Line, PATIENCE, put, refusal, text_of};

/// Prepares a state directory with a token file of this content and mode.
fn prepare(ground: &Ground, content: &str, mode: u32) {
    std::fs::create_dir_all(ground.state()).unwrap();
    std::fs::set_permissions(ground.state(), PermissionsExt::from_mode(0o700)).unwrap();
    put(&ground.token_path(), content, mode);
}

#[test]
fn the_token_is_the_same_after_restart_stop_and_kill() {
    let ground = Ground::new();
    let mut seen = Vec::new();
    for end in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGINT] {
        let mut daemon = ground.serve();
        assert!(ground.authsock(["whoami"]).output().unwrap().status.success());
        seen.push((ground.token(), std::fs::metadata(ground.token_path()).unwrap().ino()));
        daemon.signal(end);
        daemon.child.wait().unwrap();
        std::fs::remove_file(ground.init_socket()).unwrap();
    }
    assert!(seen.iter().all(|one| *one == seen[0]), "inode and text are the first activation's");
    assert_eq!(std::fs::metadata(ground.token_path()).unwrap().mode() & 0o7777, 0o600);
}

#[test]
fn a_file_that_cannot_be_trusted_serves_nothing_says_why_and_stays_as_it_is() {
    let good = "ab".repeat(32);
    type Make = fn(&Ground, &str);
    let cases: [(&str, Make); 5] = [
        ("0644", |ground, good| prepare(ground, good, 0o644)),
        ("symbolic link", |ground, good| {
            prepare(ground, good, 0o600);
            std::fs::rename(ground.token_path(), ground.root().join("elsewhere")).unwrap();
            symlink(ground.root().join("elsewhere"), ground.token_path()).unwrap();
        }),
        ("not a regular file", |ground, good| {
            prepare(ground, good, 0o600);
            std::fs::remove_file(ground.token_path()).unwrap();
            nix::unistd::mkfifo(&ground.token_path(), nix::sys::stat::Mode::S_IRUSR).unwrap();
        }),
        ("not a regular file", |ground, good| {
            prepare(ground, good, 0o600);
            std::fs::remove_file(ground.token_path()).unwrap();
            std::fs::create_dir(ground.token_path()).unwrap();
        }),
        ("may be written by others", |ground, good| {
            prepare(ground, good, 0o600);
            std::fs::set_permissions(ground.state(), PermissionsExt::from_mode(0o777)).unwrap();
        }),
    ];
    for (words, make) in cases {
        let ground = Ground::new();
        make(&ground, &good);
        let before = std::fs::symlink_metadata(ground.token_path()).unwrap();
        let daemon = ground.serve();
        let reason = daemon.wait_for_log("cannot serve");
        assert!(reason.contains(words) && reason.contains("authsock"), "{reason}");
        let mut client = Line::connect(&ground.init_socket());
        assert_eq!(refusal(&client.plain(&good)), "unavailable");
        let after = std::fs::symlink_metadata(ground.token_path()).unwrap();
        assert_eq!(
            (before.ino(), before.mode()),
            (after.ino(), after.mode()),
            "{words}: nothing is repaired"
        );
    }
}

#[test]
fn an_unreadable_file_is_left_alone() {
    let ground = Ground::new();
    if crate::ground::skip_unless(!crate::ground::is_root(), "root can read every file") {
        return;
    }
    prepare(&ground, &"ab".repeat(32), 0o000);
    let daemon = ground.serve();
    let reason = daemon.wait_for_log("cannot serve");
    assert!(reason.contains("Permission denied") && reason.contains("token"), "{reason}");
    assert_eq!(std::fs::metadata(ground.token_path()).unwrap().mode() & 0o7777, 0);
}

#[test]
fn what_is_no_token_is_replaced_with_a_warning() {
    for content in ["", "short", &"a".repeat(65), &"a".repeat(63)] {
        let ground = Ground::new();
        prepare(&ground, content, 0o600);
        let daemon = ground.serve();
        let warning = daemon.wait_for_log("just became invalid");
        assert!(warning.contains("WARN"), "{warning}");
        assert_eq!(ground.token().len(), 64);
        assert!(ground.authsock(["whoami"]).output().unwrap().status.success());
    }
}

#[test]
fn a_token_that_a_person_wrote_with_a_line_end_in_upper_case_is_kept() {
    for end in ["\n", "\r\n"] {
        let ground = Ground::new();
        let content = format!("{}{end}", "AB".repeat(32));
        prepare(&ground, &content, 0o600);
        let _daemon = ground.serve();
        assert!(ground.authsock(["whoami"]).output().unwrap().status.success());
        assert_eq!(ground.token(), content);
        assert_eq!(Line::connect(&ground.init_socket()).plain(&"ab".repeat(32))["success"], true);
    }
}

#[test]
fn no_space_for_a_token_leaves_no_empty_file_and_mends_itself() {
    if crate::ground::skip_unless(crate::ground::is_root(), "mounting a full file system needs root") {
        return;
    }
    let ground = Ground::new();
    std::fs::create_dir_all(ground.state()).unwrap();
    // In a mount namespace of the daemon's own: a file system of two pages, one of them filled, and
    // the other taken by the lock's text.
    let script = "mount -t tmpfs -o size=8k,mode=0700 tmpfs \"$1\" && head -c 4096 /dev/zero >\"$1/filler\" && \
                  LISTEN_PID=$$ exec \"$2\" serve";
    let daemon = ground.serve_as(|command| {
        let mut inner = ground.command("unshare");
        inner.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
        inner.arg(ground.state()).arg(crate::ground::AUTHSOCK);
        crate::ground::become_instead(command, &inner);
    });
    let reason = daemon.wait_for_log("cannot serve");
    assert!(reason.contains("No space left"), "{reason}");
    let inside =
        std::path::PathBuf::from(format!("/proc/{}/root{}", daemon.child.id(), ground.state().display()));
    assert!(!inside.join("token").exists(), "no empty file is left");
    std::fs::remove_file(inside.join("filler")).unwrap();
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        let mut client = Line::connect(&ground.init_socket());
        client.send_json(&json!({ "type": "auth", "token": "00".repeat(32) }));
        match refusal(&client.receive().unwrap()) {
            "denied" => break,
            "unavailable" => assert!(std::time::Instant::now() < end, "{}", daemon.stderr()),
            other => panic!("{other}"),
        }
        // At most one attempt a second is made.
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(std::fs::read(inside.join("token")).unwrap().len(), 64);
}

#[test]
fn rotating_the_owner_s_token_replaces_the_file_and_grants_a_grace() {
    let ground = Ground::new();
    let _daemon = ground.serve();
    let old = ground.token_after_first_contact();
    let inode = std::fs::metadata(ground.token_path()).unwrap().ino();
    let rotated = ground.json(["token", "rotate"]);
    assert_eq!(rotated["grace_seconds"], 60);
    let new = ground.token();
    assert_ne!(old, new);
    let meta = std::fs::metadata(ground.token_path()).unwrap();
    assert_ne!(meta.ino(), inode);
    assert_eq!(meta.mode() & 0o7777, 0o600);
    // The old one connects, but makes nothing.
    let mut client = Line::connect(&ground.init_socket());
    assert_eq!(client.plain(&old)["success"], true);
    let answer = client.call("session.rotate", &json!({}));
    assert!(answer["error"]["message"].as_str().unwrap().contains("rotated"), "{answer}");
    for (method, params) in
        [("daemon.retire", json!({})), ("session.revoke", json!({ "id": "0123456789abcdef" }))]
    {
        let answer = client.call(method, &params);
        assert!(answer["error"]["message"].as_str().unwrap().contains("rotated"), "{method}: {answer}");
    }
    assert_eq!(client.call("whoami", &json!({}))["result"]["session"]["name"], "owner", "it may still ask");
    assert_eq!(ground.token(), new, "who may not rotate leaves no new file");
    assert_eq!(ground.json(["whoami"])["session"]["name"], "owner");
}

#[test]
fn rotating_at_once_closes_the_old_token_s_connections_and_refuses_it() {
    let ground = Ground::new();
    let _daemon = ground.serve();
    let old = ground.token_after_first_contact();
    let mut before = Line::connect(&ground.init_socket());
    assert_eq!(before.plain(&old)["success"], true);
    ground.json(["token", "rotate", "--now"]);
    assert_eq!(before.receive(), None, "its connection is closed");
    let mut after = Line::connect(&ground.init_socket());
    assert_eq!(refusal(&after.plain(&old)), "revoked");
    assert_eq!(Line::connect(&ground.init_socket()).plain(&ground.token())["success"], true);
}

#[test]
fn a_session_rotates_its_own_token_in_place() {
    let ground = Ground::new();
    let script = "before=$(cat \"$AUTHSOCK_TOKEN_FILE\"); authsock token rotate --now >&2 && \
                  test \"$before\" != \"$(cat \"$AUTHSOCK_TOKEN_FILE\")\" && authsock whoami --json";
    let output = ground.authsock(["run", "--name", "turner", "--", "sh", "-c", script]).output().unwrap();
    assert!(output.status.success(), "{}", text_of(&output));
    let who: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(who["session"]["name"], "turner");
}

#[test]
fn no_token_is_ever_printed_logged_or_put_into_arguments() {
    let ground = Ground::new();
    ground.configure("[lifecycle]\nidle_exit_seconds = 0\n");
    let mut daemon = ground.serve_as(|command| {
        command.env("AUTHSOCK_LOG", "trace");
    });
    let token = ground.token_after_first_contact();
    let session = ground.root().join("session-token");
    let script = format!(
        "cp \"$AUTHSOCK_TOKEN_FILE\" {}; authsock whoami; authsock status; authsock session list; \
         cat /proc/self/environ /proc/$PPID/environ /proc/$PPID/cmdline; authsock call nonsense; \
         AUTHSOCK_TOKEN=$(cat \"$AUTHSOCK_TOKEN_FILE\")x authsock whoami; true",
        session.display()
    );
    let output =
        ground.authsock(["run", "--", "sh", "-c", &script]).env("AUTHSOCK_LOG", "trace").output().unwrap();
    assert!(output.status.success(), "{}", text_of(&output));
    let session_token = std::fs::read_to_string(&session).unwrap();
    // Wrong ones are not repeated either.
    let mut client = Line::connect(&ground.init_socket());
    let wrong = "5ec2e75ec2e7".repeat(6);
    client.send_json(&json!({ "type": "auth", "token": wrong }));
    let answer = client.receive().unwrap();
    daemon.signal(Signal::SIGTERM);
    daemon.child.wait().unwrap();
    let everything = format!("{}\n{}\n{answer}", daemon.stderr(), text_of(&output));
    assert!(
        everything.contains("session_started") || everything.contains("began, led by"),
        "the log was read"
    );
    for secret in [token.as_str(), session_token.as_str(), "5ec2e75ec2e7"] {
        assert!(secret.len() >= 12 && !everything.contains(secret), "a secret is in the log or the output");
    }
    let _ = PATIENCE;
}

#[test]
fn a_service_s_credential_is_the_owner_s_token_and_a_bad_one_serves_nothing() {
    let ground = Ground::new();
    let credentials = ground.root().join("credentials");
    std::fs::create_dir(&credentials).unwrap();
    std::fs::set_permissions(&credentials, PermissionsExt::from_mode(0o700)).unwrap();
    let credential = credentials.join("authsock.token");
    let given = "c5".repeat(32);
    prepare(&ground, &"ab".repeat(32), 0o600);
    put(&credential, &given, 0o400);
    let serve = || {
        let _ = std::fs::remove_file(ground.init_socket());
        ground.serve_as(|command| {
            command.env("CREDENTIALS_DIRECTORY", &credentials);
        })
    };
    {
        let _daemon = serve();
        assert_eq!(ground.json(["whoami"])["session"]["id"], "owner");
        assert_eq!(ground.token(), given, "clients find it where they look");
        assert_eq!(std::fs::metadata(ground.token_path()).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(ground.json(["status"])["token_source"], "credential");
        let refused = ground.authsock(["token", "rotate"]).output().unwrap();
        assert_eq!(refused.status.code(), Some(1), "{}", text_of(&refused));
        assert!(text_of(&refused).contains("credential authsock.token"), "{}", text_of(&refused));
        assert_eq!(ground.token(), given);
    }
    for (content, mode, words) in
        [("nonsense", 0o400, "64 hexadecimal digits"), (&*given, 0o644, "wider than 0600")]
    {
        std::fs::remove_file(&credential).unwrap();
        put(&credential, content, mode);
        let daemon = serve();
        let told = ground.authsock(["whoami"]).output().unwrap();
        assert_eq!(told.status.code(), Some(3), "{}", text_of(&told));
        assert!(daemon.wait_for_log(words).contains("credentials/authsock.token"));
        assert_eq!(ground.token(), given, "nothing is changed");
    }
    std::fs::remove_file(&credential).unwrap();
    let _daemon = serve();
    assert_eq!(
        ground.json(["status"])["token_source"],
        "file",
        "other credentials of a service are not ours"
    );
    assert_eq!(ground.token(), given);
}
