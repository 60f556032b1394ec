//! Nothing is installed: the first client starts the daemon, and everybody finds the same one.

use std::collections::HashSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::ground::{Ground, Line, PATIENCE, bind_private, put, text_of};
#[cfg(target_os = "linux")]
use crate::tree::Inside;

/// The process id of the daemon that answers.
fn daemon_pid(ground: &Ground) -> i32 {
    ground.json(["whoami"])["daemon"]["pid"].as_i64().unwrap().try_into().unwrap()
}

/// Waits until a process has ended that is not our child.
fn wait_for_end(pid: i32) {
    let end = Instant::now() + PATIENCE;
    while kill(Pid::from_raw(pid), None).is_ok() {
        assert!(Instant::now() < end, "process {pid} is still there");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_first_command_starts_a_daemon_and_runs_a_program_as_a_session() {
    let ground = Ground::new();
    let output =
        ground.authsock(["run", "--name", "demo", "--", "authsock", "whoami", "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", text_of(&output));
    let who: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(who["session"]["name"], "demo");
    assert_eq!(who["session"]["parent"], "owner");
    assert_eq!(who["handshake"], "proof");
    assert_eq!(ground.json(["status"])["activation"], "on_demand");
}

#[test]
fn fifty_at_once_from_cold_end_with_one_daemon_and_one_token() {
    let ground = Ground::new();
    let children: Vec<_> = (0..50)
        .map(|number| {
            let name = format!("n{number}");
            ground
                .authsock(["run", "--name", &name, "--", "authsock", "whoami", "--json"])
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let (mut daemons, mut names) = (HashSet::new(), HashSet::new());
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text_of(&output));
        let who: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        daemons.insert(who["daemon"]["pid"].as_u64().unwrap());
        names.insert(who["session"]["name"].as_str().unwrap().to_owned());
    }
    assert_eq!((daemons.len(), names.len()), (1, 50));
    assert_eq!(ground.log().matches("a new one was made").count(), 1, "{}", ground.log());
    assert_eq!(ground.log().matches("serving on").count(), 1, "{}", ground.log());
}

#[test]
fn after_a_kill_the_next_client_starts_another_with_the_same_token() {
    let ground = Ground::new();
    let first = daemon_pid(&ground);
    let token = ground.token();
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    wait_for_end(first);
    assert!(ground.ondemand_socket().exists(), "a dead socket is left behind");
    let second = daemon_pid(&ground);
    assert_ne!(first, second);
    assert_eq!(ground.token(), token);
}

#[test]
fn a_start_that_fails_is_told_in_the_daemon_s_own_words_and_a_mended_one_works() {
    let ground = Ground::new();
    ground.configure("[policy]\nallow_rot = true\n");
    let output =
        ground.authsock(["run", "--", "touch", "started"]).current_dir(ground.root()).output().unwrap();
    let words = text_of(&output);
    assert_eq!(output.status.code(), Some(125), "{words}");
    assert!(
        words.contains("could not start") && words.contains("allow_rot") && words.contains("line 2"),
        "{words}"
    );
    assert!(!ground.root().join("started").exists(), "the program never started");
    let output = ground.authsock(["whoami"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text_of(&output));
    ground.configure("");
    ground.json(["whoami"]);
}

#[test]
fn a_token_that_cannot_be_trusted_is_told_to_whoever_starts_the_daemon() {
    let ground = Ground::new();
    std::fs::create_dir(ground.state()).unwrap();
    std::fs::set_permissions(ground.state(), PermissionsExt::from_mode(0o700)).unwrap();
    put(&ground.token_path(), &"ab".repeat(32), 0o644);
    let output = ground.authsock(["whoami"]).output().unwrap();
    let words = text_of(&output);
    assert!(!output.status.success() && words.contains("0644") && words.contains("chmod"), "{words}");
    assert!(!words.contains("abab"));
}

#[test]
fn a_client_that_was_told_of_a_socket_or_token_starts_nothing() {
    let ground = Ground::new();
    let file = ground.root().join("token");
    put(&file, &"ab".repeat(32), 0o600);
    for (name, value) in [
        ("AUTHSOCK_TOKEN", "ab".repeat(32)),
        ("AUTHSOCK_TOKEN_FILE", file.display().to_string()),
        ("AUTHSOCK_SOCKET", ground.ondemand_socket().display().to_string()),
        ("AUTHSOCK_SOCKET", "/nonexistent/socket".to_owned()),
    ] {
        let output = ground.authsock(["whoami"]).env(name, value).output().unwrap();
        assert!(!output.status.success());
        assert!(
            !ground.ondemand_socket().exists() && !ground.state().exists(),
            "{name}: {}",
            text_of(&output)
        );
    }
}

#[test]
fn an_init_system_s_socket_that_nobody_listens_on_is_an_error_and_not_a_reason_to_start() {
    let ground = Ground::new();
    drop(bind_private(&ground.init_socket()));
    let output = ground.authsock(["whoami"]).output().unwrap();
    let words = text_of(&output);
    assert_eq!(output.status.code(), Some(3), "{words}");
    assert!(words.contains("systemctl --user"), "{words}");
    assert!(!ground.ondemand_socket().exists());
}

#[test]
fn something_else_in_the_socket_s_place_is_not_removed() {
    let ground = Ground::new();
    put(&ground.ondemand_socket(), "precious", 0o600);
    let output = ground.authsock(["whoami"]).output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", text_of(&output));
    assert!(text_of(&output).contains("is not a socket"));
    assert_eq!(std::fs::read_to_string(ground.ondemand_socket()).unwrap(), "precious");
}

#[test]
fn a_runtime_directory_that_others_may_write_is_refused() {
    let ground = Ground::new();
    std::fs::set_permissions(ground.runtime(), PermissionsExt::from_mode(0o777)).unwrap();
    let output = ground.authsock(["whoami"]).output().unwrap();
    assert!(text_of(&output).contains("may be written by others"), "{}", text_of(&output));
    assert_eq!(std::fs::read_dir(ground.runtime()).unwrap().count(), 0);
}

#[test]
fn a_client_without_the_owner_s_bits_in_its_umask_still_makes_private_files() {
    for umask in ["000", "077", "0777", "0277"] {
        let ground = Ground::new();
        let output = ground
            .command("sh")
            .args([
                "-c",
                &format!("umask {umask}; exec \"$0\" run -- authsock whoami"),
                crate::ground::AUTHSOCK,
            ])
            .output()
            .unwrap();
        assert!(output.status.success(), "umask {umask}: {}", text_of(&output));
        let mode = |path: &std::path::Path| std::fs::symlink_metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(&ground.ondemand_socket()), 0o600, "umask {umask}");
        assert_eq!(mode(&ground.token_path()), 0o600);
        assert_eq!(mode(&ground.state()), 0o700);
        assert_eq!(mode(&ground.home().join(".local/state/authsock/log")), 0o600);
    }
}

#[test]
#[cfg(target_os = "linux")]
fn the_daemon_keeps_nothing_of_the_client_that_started_it() {
    let ground = Ground::new();
    // A shell that waits for the end of this pipe would wait for ever if the daemon held it.
    let output = ground
        .command("sh")
        .args(["-c", "exec 9>&1; cd \"$HOME\"; SECRET=1 \"$0\" whoami --json", crate::ground::AUTHSOCK])
        .output()
        .unwrap();
    let who: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let pid = who["daemon"]["pid"].as_u64().unwrap();
    let proc = |name: &str| format!("/proc/{pid}/{name}");
    assert_eq!(std::fs::read_link(proc("cwd")).unwrap(), std::path::Path::new("/"));
    let environment = String::from_utf8(std::fs::read(proc("environ")).unwrap()).unwrap();
    assert!(!environment.contains("SECRET") && !environment.contains("PATH="), "{environment}");
    assert!(environment.contains(&format!("LISTEN_PID={pid:010}")), "{environment}");
    let stat = std::fs::read_to_string(proc("stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    assert_eq!(fields[3], fields[3].trim());
    assert_ne!(fields[1], std::process::id().to_string(), "it is nobody's child here");
    let limits = std::fs::read_to_string(proc("limits")).unwrap();
    let files: Vec<&str> =
        limits.lines().find(|line| line.starts_with("Max open files")).unwrap().split_whitespace().collect();
    assert!(
        files[3] == files[4] || files[3] == "524288",
        "{files:?}: a client's soft limit is not the daemon's"
    );
    let log = std::fs::read_link(proc("fd/2")).unwrap();
    assert!(log.ends_with(".local/state/authsock/log"), "{log:?}");
}

#[test]
#[cfg(target_os = "linux")] // elsewhere the clock tells, every 15 seconds
fn a_daemon_whose_socket_is_taken_away_makes_room_at_once_and_sessions_go_on_with_the_next() {
    let ground = Ground::new();
    let first = daemon_pid(&ground);
    let mut inside = Inside::begin(&ground, &["--name", "stays"]);
    let id = inside.id();
    for replace in [false, true] {
        let before = daemon_pid(&ground);
        let mut open = Line::connect(&ground.ondemand_socket());
        assert_eq!(open.plain(&ground.token())["success"], true);
        assert_eq!(open.call("ping", &serde_json::json!({}))["result"]["pong"], true);
        std::fs::remove_file(ground.ondemand_socket()).unwrap();
        if replace {
            put(&ground.ondemand_socket(), "somebody else's", 0o600);
        }
        // No client came, and no clock had to strike.
        assert_eq!(open.receive(), None, "closed in order");
        wait_for_end(before);
        let log = ground.log();
        assert!(log.contains("authsock-ondemand.sock was removed or replaced"), "{log}");
        if replace {
            assert!(ground.ondemand_socket().is_file(), "what is not its own stays");
            std::fs::remove_file(ground.ondemand_socket()).unwrap();
        }
        assert_ne!(daemon_pid(&ground), before);
        assert_eq!(inside.id(), id, "the session knows nothing of it");
    }
    assert_ne!(daemon_pid(&ground), first);
}

#[test]
#[cfg(target_os = "linux")]
fn a_daemon_whose_state_is_taken_away_makes_room_for_one_that_lays_it_anew() {
    let ground = Ground::new();
    let other = "ab".repeat(32);
    for part in ["token", "lock", "sessions", "another token", ""] {
        let before = daemon_pid(&ground);
        let token = ground.token();
        let mut open = Line::connect(&ground.ondemand_socket());
        assert_eq!(open.plain(&token)["success"], true);
        assert_eq!(open.call("ping", &serde_json::json!({}))["result"]["pong"], true);
        match part {
            "" => std::fs::remove_dir_all(ground.state()).unwrap(),
            "sessions" => std::fs::remove_dir_all(ground.state().join(part)).unwrap(),
            "another token" => {
                put(&ground.root().join("next"), &other, 0o600);
                std::fs::rename(ground.root().join("next"), ground.token_path()).unwrap();
            }
            file => std::fs::remove_file(ground.state().join(file)).unwrap(),
        }
        // Where clients need what is gone, not one of them is turned away; elsewhere it may still answer for a moment.
        if part == "token" || part.is_empty() {
            assert_ne!(daemon_pid(&ground), before, "{part}");
        }
        assert_eq!(open.receive(), None, "closed in order");
        wait_for_end(before);
        let after = daemon_pid(&ground);
        // Of a directory that goes, its files go first.
        let log = ground.log();
        let told = format!("{}/", ground.state().display());
        assert!(
            log.lines().any(|line| line.contains(&told) && line.contains("was removed or replaced")),
            "{log}"
        );
        match part {
            "lock" | "sessions" => assert_eq!(ground.token(), token, "a token that is there is kept, {part}"),
            "another token" => assert_eq!(ground.token(), other),
            _ => assert_ne!(ground.token(), token),
        }
        assert_eq!(daemon_pid(&ground), after);
    }
}

#[test]
fn a_runtime_directory_with_a_colon_in_its_name_is_one_directory() {
    let ground = Ground::new();
    let runtime = ground.root().join("a:b");
    std::fs::create_dir(&runtime).unwrap();
    std::fs::set_permissions(&runtime, PermissionsExt::from_mode(0o700)).unwrap();
    for verb in [&["whoami"][..], &["call", "daemon.retire"]] {
        let output = ground.authsock([]).args(verb).env("XDG_RUNTIME_DIR", &runtime).output().unwrap();
        assert!(output.status.success(), "{}", text_of(&output));
    }
    assert!(runtime.join("authsock/token").is_file());
}

#[test]
fn a_token_that_is_rotated_is_not_taken_for_one_that_was_taken_away() {
    let ground = Ground::new();
    let before = daemon_pid(&ground);
    for _ in 0..3 {
        ground.json(["token", "rotate", "--now"]);
        assert_eq!(daemon_pid(&ground), before);
    }
}

#[test]
fn nobody_is_lost_across_idle_exits() {
    let ground = Ground::new();
    ground.configure("[lifecycle]\nidle_exit_seconds = 1\n");
    let token_path = ground.token_path();
    ground.json(["whoami"]);
    let token = std::fs::read_to_string(token_path).unwrap();
    let mut daemons = HashSet::new();
    // Around the moment of the exit, again and again, from several clients at once.
    for round in 0..4u64 {
        let pause = Duration::from_millis(985 + 5 * round);
        std::thread::sleep(pause);
        let pids: Vec<i32> = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..6).map(|_| scope.spawn(|| daemon_pid(&ground))).collect();
            clients.into_iter().map(|client| client.join().unwrap()).collect()
        });
        daemons.extend(pids);
    }
    assert!(!daemons.is_empty());
    assert_eq!(ground.token(), token);
}

#[test]
fn an_idle_daemon_takes_its_socket_away() {
    let ground = Ground::new();
    ground.configure("[lifecycle]\nidle_exit_seconds = 1\n");
    let pid = daemon_pid(&ground);
    wait_for_end(pid);
    assert!(!ground.ondemand_socket().exists());
    assert!(ground.token_path().exists());
}

#[test]
fn an_installed_daemon_takes_over_from_one_that_a_client_started() {
    let ground = Ground::new();
    let first = daemon_pid(&ground);
    let token = ground.token();
    let daemon = ground.serve();
    wait_for_end(first);
    assert_eq!(daemon_pid(&ground), i32::try_from(daemon.child.id()).unwrap());
    assert_eq!(ground.token(), token);
    assert!(!ground.ondemand_socket().exists());
    // A session's own name for the old place means the usual order.
    let output = ground
        .authsock(["whoami"])
        .env("AUTHSOCK_SOCKET", ground.ondemand_socket())
        .env("AUTHSOCK_TOKEN_FILE", ground.token_path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text_of(&output));
}

#[test]
fn a_stuck_starter_does_not_hold_others_up_for_ever() {
    let ground = Ground::new();
    std::fs::create_dir(ground.state()).unwrap();
    std::fs::set_permissions(ground.state(), PermissionsExt::from_mode(0o700)).unwrap();
    let lock = std::fs::File::create(ground.state().join("start.lock")).unwrap();
    lock.lock().unwrap();
    let output = ground.authsock(["whoami", "--timeout", "1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text_of(&output));
    drop(lock);
    ground.json(["whoami"]);
}

#[test]
fn a_full_queue_is_waited_for_within_the_deadline() {
    let ground = Ground::new();
    let listener = bind_private(&ground.init_socket());
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let _waiting: Vec<Line> = (0..1).map(|_| Line::connect(&ground.init_socket())).collect();
    std::fs::create_dir(ground.state()).unwrap();
    put(&ground.token_path(), &"ab".repeat(32), 0o600);
    let output = ground.authsock(["whoami", "--timeout", "1"]).output().unwrap();
    let words = text_of(&output);
    assert_eq!(output.status.code(), Some(3), "{words}");
    assert!(words.contains("within 1s"), "{words}");
}

#[test]
fn a_configuration_that_was_named_holds_for_client_and_daemon_wherever_it_lies() {
    let ground = Ground::new();
    put(&ground.root().join("own.toml"), "[lifecycle]\nidle_exit_seconds = 77\n", 0o600);
    // Relative to the client's directory, which is not the daemon's.
    let output = ground
        .authsock(["--config", "own.toml", "status", "--json"])
        .current_dir(ground.root())
        .output()
        .unwrap();
    let status: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text_of(&output)));
    assert_eq!(status["idle_exit_seconds"], 77);
    assert_eq!(status["log"], ground.home().join(".local/state/authsock/log").to_str().unwrap());
    // One that cannot be used is an error, also when a daemon runs already.
    let output = ground.authsock(["--config", "/nonexistent", "whoami"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text_of(&output));
    // The usual one is the daemon's to complain of; the client warns, and goes by the stricter defaults.
    ground.configure("[client]\ntimeout_seconds = 0\n");
    let output = ground.authsock(["whoami"]).output().unwrap();
    assert!(output.status.success() && text_of(&output).contains("line 2"), "{}", text_of(&output));
}

#[test]
fn the_limits_of_the_first_client_are_not_everybody_s() {
    let ground = Ground::new();
    let script = "ulimit -S -f 1; ulimit -S -n 64; exec \"$0\" whoami --json";
    let output = ground.command("sh").args(["-c", script, crate::ground::AUTHSOCK]).output().unwrap();
    let who: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text_of(&output)));
    let pid = who["daemon"]["pid"].as_i64().unwrap();
    // More log than the first client could have written.
    for _ in 0..20 {
        ground.json(["run", "--", "authsock", "status"]);
    }
    assert!(ground.log().len() > 1024, "{}", ground.log().len());
    assert_eq!(i64::from(daemon_pid(&ground)), pid);
    if cfg!(target_os = "linux") {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    }
}

#[test]
fn too_few_descriptors_are_told_as_such() {
    let ground = Ground::new();
    let script = "ulimit -n 9; exec \"$0\" whoami";
    let output = ground.command("sh").args(["-c", script, crate::ground::AUTHSOCK]).output().unwrap();
    let words = text_of(&output);
    assert!(!output.status.success() && !words.contains("panicked"), "{words}");
    ground.json(["whoami"]);
}
