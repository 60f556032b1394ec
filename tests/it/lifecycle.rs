//! A daemon's life as its service manager sees it: ready, status, reload, watchdog, drain, idle exit, and being broken and mended.

#[cfg(target_os = "linux")]
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::ground::{Daemon, Ground, Line, PATIENCE, bind_private, refusal};

#[test]
fn ready_is_said_once_it_serves_and_the_status_counts() {
    let ground = Ground::new();
    let daemon = Daemon::start_without_waiting(&ground, bind_private(&ground.init_socket()), |_| {});
    assert!(daemon.wait_for("READY=1").contains("STATUS=serving: 0 connections, 0 sessions"));
    let token = ground.token();
    let mut client = Line::connect(&ground.init_socket());
    client.plain(&token);
    daemon.wait_for("STATUS=serving: 1 connection, 0 sessions");
    drop(client);
    daemon.wait_for("STATUS=serving: 0 connections, 0 sessions");
}

#[test]
#[cfg(target_os = "linux")] // sd_notify(3)
fn a_service_manager_that_does_not_listen_holds_nobody_up_and_hears_the_latest_when_it_does() {
    let ground = Ground::new();
    let daemon = ground.serve();
    // As many words as the kernel keeps for who does not read them.
    let noise = UnixDatagram::unbound().unwrap();
    noise.set_nonblocking(true).unwrap();
    while noise.send_to(b"noise", daemon.notify_path()).is_ok() {}
    // One more session is a new status, which is due a second after the one before at the latest.
    let token = ground.token();
    let mut client = Line::connect(&ground.init_socket());
    client.plain(&token);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(2500) {
        assert_eq!(client.call("ping", &json!({}))["result"]["pong"], true);
    }
    daemon.wait_for("STATUS=serving: 1 connection, 0 sessions");
}

#[test]
fn the_watchdog_is_fed() {
    let ground = Ground::new();
    let daemon = ground.serve_as(|command| {
        command.env("WATCHDOG_USEC", "200000");
    });
    for _ in 0..5 {
        daemon.wait_for("WATCHDOG=1");
    }
}

#[test]
fn a_reload_takes_the_new_configuration_and_a_broken_one_changes_nothing() {
    let ground = Ground::new();
    ground.configure("[lifecycle]\nidle_exit_seconds = 100\n");
    let daemon = ground.serve();
    let idle_exit = || ground.json(["status"])["idle_exit_seconds"].as_u64().unwrap();
    assert_eq!(idle_exit(), 100);
    ground.configure("[lifecycle]\nidle_exit_seconds = 200\n");
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for("RELOADING=1");
    daemon.wait_for("READY=1");
    assert_eq!(idle_exit(), 200);
    ground.configure("[lifecycle]\nidle_exit_seconds = -1\n");
    daemon.signal(Signal::SIGHUP);
    let message = daemon.wait_for("READY=1");
    assert!(message.contains("reload failed") && message.contains("line 2"), "{message}");
    assert_eq!(idle_exit(), 200, "what was read before still holds");
    ground.configure("");
    daemon.signal(Signal::SIGHUP);
    let message = daemon.wait_for("READY=1");
    assert!(!message.contains("reload failed"), "{message}");
    assert_eq!(idle_exit(), 300);
}

#[test]
fn a_broken_configuration_answers_everybody_says_why_and_heals_without_a_restart() {
    let ground = Ground::new();
    ground.configure("[policy]\nallow_rot = true\n");
    let daemon = Daemon::start_without_waiting(&ground, bind_private(&ground.init_socket()), |_| {});
    let message = daemon.wait_for("READY=1");
    assert!(message.contains("STATUS=cannot serve") && message.contains("allow_rot"), "{message}");
    for number in 0..25 {
        if number % 5 == 0 {
            let output = ground.authsock(["whoami"]).output().unwrap();
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(3), "{words}");
            assert!(words.contains("unavailable"), "{words}");
        } else {
            let mut client = Line::connect(&ground.init_socket());
            assert_eq!(refusal(&client.plain(&"00".repeat(32))), "unavailable");
        }
    }
    assert!(!ground.token_path().exists(), "nothing was made with a broken configuration");
    ground.configure("");
    let end = Instant::now() + PATIENCE;
    while !ground.authsock(["whoami"]).output().unwrap().status.success() {
        assert!(Instant::now() < end, "{}", daemon.stderr());
        // At most one attempt a second is made.
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(ground.json(["whoami"])["daemon"]["pid"], daemon.child.id());
}

#[test]
fn a_reload_mends_a_broken_daemon_at_once() {
    let ground = Ground::new();
    ground.configure("nonsense");
    let daemon = ground.serve();
    daemon.wait_for_log("cannot serve");
    ground.configure("");
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for("STATUS=serving");
    ground.json(["whoami"]);
}

#[test]
fn a_socket_that_is_taken_away_from_an_init_system_is_complained_of_and_nobody_is_cut_off() {
    let ground = Ground::new();
    let daemon = ground.serve();
    let token = ground.token_after_first_contact();
    let mut client = Line::connect(&ground.init_socket());
    assert_eq!(client.plain(&token)["success"], true);
    let complaints = |client: &mut Line| client.call("status", &json!({}))["result"]["complaints"].clone();
    assert_eq!(complaints(&mut client), json!([]));
    let aside = ground.root().join("aside");
    std::fs::rename(ground.init_socket(), &aside).unwrap();
    let message = daemon.wait_for("STATUS=serving: 1 connection, 0 sessions; ");
    assert!(message.contains("authsock.sock was removed or replaced"), "{message}");
    assert!(message.contains("systemctl --user restart authsock.socket"), "the way out: {message}");
    daemon.wait_for_log("was removed or replaced");
    assert_eq!(complaints(&mut client).as_array().unwrap().len(), 1);
    // Another one in its place is not it.
    let impostor = bind_private(&ground.init_socket());
    assert_eq!(complaints(&mut client).as_array().unwrap().len(), 1);
    drop(impostor);
    // A reload is no reason to forget it.
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for("READY=1");
    assert_eq!(complaints(&mut client).as_array().unwrap().len(), 1);
    std::fs::rename(&aside, ground.init_socket()).unwrap();
    daemon.wait_for("STATUS=serving: 1 connection, 0 sessions");
    assert_eq!(complaints(&mut client), json!([]));
    assert_eq!(ground.json(["whoami"])["daemon"]["pid"], daemon.child.id());
    assert_eq!(daemon.stderr().matches("was removed or replaced").count(), 1, "said once");
}

#[test]
fn an_http_client_of_a_broken_daemon_gets_503() {
    let ground = Ground::new();
    ground.configure("nonsense");
    let _daemon = ground.serve();
    let mut client = Line::connect(&ground.init_socket());
    client.send("GET /v1/whoami HTTP/1.1\r\nHost: x\r\n\r\n");
    let answer = String::from_utf8(client.rest()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("problem+json"), "{answer}");
}

#[test]
fn asked_to_stop_it_answers_what_was_asked_and_closes_the_idle() {
    let ground = Ground::new();
    let mut daemon = ground.serve();
    let token = ground.token_after_first_contact();
    let mut idle = Line::connect(&ground.init_socket());
    assert_eq!(idle.plain(&token)["success"], true);
    assert_eq!(idle.call("ping", &json!({}))["result"]["pong"], true);
    // In the middle of its handshake when the signal comes.
    let mut late = Line::connect(&ground.init_socket());
    late.send("{\"type\":\"auth\",");
    // Connections are taken in order: once a later one was served, this one has been accepted.
    ground.json(["whoami"]);
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for("STOPPING=1");
    assert_eq!(idle.receive(), None, "closed, not cut off in an answer");
    late.send(&format!("\"token\":\"{token}\"}}\n{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}}\n"));
    assert_eq!(late.receive().unwrap()["success"], true);
    assert_eq!(late.receive().unwrap()["result"]["pong"], true);
    assert!(daemon.child.wait().unwrap().success());
}

#[test]
fn a_client_that_never_finishes_does_not_hold_up_the_end_for_longer_than_configured() {
    let ground = Ground::new();
    ground.configure("[lifecycle]\ndrain_seconds = 1\n[handshake]\ntimeout_seconds = 60\n");
    let mut daemon = ground.serve();
    ground.token_after_first_contact();
    let mut stuck = Line::connect(&ground.init_socket());
    stuck.send("{");
    ground.json(["whoami"]);
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.child.wait().unwrap().success());
    assert!(daemon.stderr().contains("drain_seconds"));
}

#[test]
fn idle_it_exits_and_whoever_comes_meanwhile_waits_in_the_queue() {
    let ground = Ground::new();
    ground.configure("[lifecycle]\nidle_exit_seconds = 1\n");
    let mut daemon = ground.serve();
    let token = ground.token_after_first_contact();
    daemon.wait_for("STOPPING=1");
    assert!(daemon.child.wait().unwrap().success());
    // The init system's hold on the socket keeps the queue: this connects and waits.
    let mut waiting = Line::connect(&ground.init_socket());
    waiting.send_json(&json!({ "type": "auth", "token": token }));
    let again = Daemon::start(&ground, daemon.listener.try_clone().unwrap(), |_| {});
    assert_eq!(waiting.receive().unwrap()["success"], true);
    drop(again);
}

#[test]
fn open_connections_and_living_leaders_count_as_use() {
    let ground = Ground::new();
    ground.configure("[lifecycle]\nidle_exit_seconds = 1\n");
    let mut daemon = ground.serve();
    let token = ground.token_after_first_contact();
    let mut client = Line::connect(&ground.init_socket());
    assert_eq!(client.plain(&token)["success"], true);
    let mut leader = ground
        .authsock(["run", "--", "sh", "-c", "echo started; read line || true"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 8];
    std::io::Read::read_exact(leader.stdout.as_mut().unwrap(), &mut first).unwrap();
    // Longer than the idle time, twice; waited for by the connection's own end, which must not come.
    client.stream().set_read_timeout(Some(Duration::from_millis(2500))).unwrap();
    let mut byte = [0; 1];
    let still = std::io::Read::read(&mut client.stream(), &mut byte).unwrap_err();
    assert_eq!(still.kind(), std::io::ErrorKind::WouldBlock);
    drop(client);
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(daemon.child.try_wait().unwrap(), None, "a leader lives");
    drop(leader.stdin.take());
    assert!(leader.wait().unwrap().success());
    assert!(daemon.child.wait().unwrap().success());
}

#[test]
fn the_log_on_a_terminal_or_file_is_readable_lines() {
    let ground = Ground::new();
    let daemon = ground.serve();
    ground.json(["run", "--name", "demo", "--", "authsock", "status"]);
    let line = daemon.wait_for_log("began, led by process");
    assert!(line.contains("INFO") && line.contains("(demo)"), "{line}");
    assert!(!line.contains("authsock_event"), "fields are for the journal: {line}");
}

#[test]
fn too_few_descriptors_for_the_limits_are_complained_of_also_after_a_reload_that_failed() {
    let ground = Ground::new();
    let daemon = ground.serve_as(|command| {
        let mut inner = ground.command("sh");
        inner.args(["-c", "ulimit -n 256; LISTEN_PID=$$ exec \"$0\" serve", crate::ground::AUTHSOCK]);
        crate::ground::become_instead(command, &inner);
    });
    let complaints = || ground.json(["status"])["complaints"].to_string();
    assert!(complaints().contains("RLIMIT_NOFILE"), "{}", complaints());
    ground.configure("nonsense");
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_log("reload failed");
    let after = complaints();
    assert!(after.contains("RLIMIT_NOFILE") && after.contains("reload failed"), "{after}");
}
