//! What shells and people get: `env` makes a shell elsewhere belong, whatever its paths look like, and `logs` finds the log.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::ground::{Ground, has, put, skip_unless, text_of};

/// Each shell with what makes it take over what `authsock env` prints, and a `$SHELL` that is not it.
const SHELLS: [(&str, &str, &str); 6] = [
    ("sh", "/usr/bin/fish", "eval \"$(authsock env)\""),
    ("bash", "/usr/bin/fish", "eval \"$(authsock env)\""),
    ("dash", "/usr/bin/tcsh", "eval \"$(authsock env)\""),
    ("zsh", "/usr/bin/fish", "eval \"$(authsock env)\""),
    ("fish", "/bin/bash", "authsock env | source"),
    ("tcsh", "/bin/bash", "eval \"`authsock env`\""),
];

/// A runtime directory whose name has all that shells stumble over.
fn thorny(ground: &Ground) -> std::path::PathBuf {
    let path = ground.root().join("r $HOME `id` 'q' \"d\" \\ !x  #;&*~");
    std::fs::create_dir(&path).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    path
}

fn path_with_the_binary(ground: &Ground) -> std::ffi::OsString {
    let own = ground.binary.parent().unwrap().to_path_buf();
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths(std::iter::once(own).chain(std::env::split_paths(&path))).unwrap()
}

fn who(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text_of(output));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text_of(output)))
}

fn stop(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text_of(&output));
}

#[test]
fn every_shell_takes_over_what_env_prints_whatever_the_paths_look_like() {
    let ground = Ground::new();
    let runtime = thorny(&ground);
    let path = path_with_the_binary(&ground);
    for (shell, login, eval) in SHELLS {
        if skip_unless(has(shell), &format!("{shell} is not installed")) {
            continue;
        }
        let script = |words: &str| {
            let mut command = ground.command(shell);
            command.arg("-c").arg(words).env("PATH", &path).env("XDG_RUNTIME_DIR", &runtime);
            command.env("SHELL", login);
            command
        };
        // As the owner: a shell that was told of another session is the owner's afterwards.
        let mut command = script(&format!("{eval}; authsock whoami --json"));
        let owner = who(&command.output().unwrap());
        assert_eq!(owner["session"]["id"], "owner", "{shell}");
        // In a session: named by socket and file.
        let mut command = ground.authsock(["run", "--name", "joined", "--", shell, "-c"]);
        command.arg(format!("{eval}; env printenv AUTHSOCK_TOKEN_FILE AUTHSOCK_SOCKET XDG_RUNTIME_DIR"));
        command.env("PATH", &path).env("XDG_RUNTIME_DIR", &runtime);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{shell}: {}", text_of(&output));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let said: Vec<&Path> = said.lines().map(Path::new).collect();
        assert!(said[0].starts_with(runtime.join("authsock-run")), "{shell}: {said:?}");
        assert_eq!(said[1..], [&runtime.join("authsock-ondemand.sock"), &runtime], "{shell}");
    }
    stop(ground.authsock(["call", "daemon.retire"]).env("XDG_RUNTIME_DIR", &runtime));
}

#[test]
fn a_shell_elsewhere_that_reads_it_is_the_same_session() {
    let ground = Ground::new();
    let path = path_with_the_binary(&ground);
    for (shell, ..) in SHELLS {
        if skip_unless(has(shell), &format!("{shell} is not installed")) {
            continue;
        }
        // What one of a session's programs prints, another reads that has no variable at all.
        let words = format!(
            "authsock env --shell {shell} >\"$1\" && exec env -i PATH=\"$PATH\" HOME=\"$HOME\" {shell} -c '. \"$0\"; authsock whoami --json' \"$1\""
        );
        let words = match shell {
            "fish" => words.replace(". \"$0\"", "source $argv[1]"),
            "tcsh" => words.replace(". \"$0\"", "source $argv[1]:q").replace("tcsh -c", "tcsh -f -c"),
            _ => words,
        };
        let mut command = ground.authsock(["run", "--name", "joined", "--", "sh", "-c"]);
        let output = command.arg(words).arg("sh").arg(ground.root().join(shell)).env("PATH", &path).output();
        assert_eq!(who(&output.unwrap())["session"]["name"], "joined", "{shell}");
    }
}

#[test]
fn the_owner_s_shell_is_told_of_no_token_so_that_a_daemon_is_still_started_for_it() {
    let ground = Ground::new();
    let told = ground.json(["env"]);
    assert_eq!(told["set"], serde_json::json!({ "XDG_RUNTIME_DIR": ground.runtime() }));
    assert_eq!(told["session"]["id"], "owner");
    assert_eq!(told["unset"].as_array().unwrap().len(), 4);
    assert!(ground.token_path().exists(), "a daemon was started, and made it");
    ground.json(["call", "daemon.retire"]);
    let mut command = ground.command("sh");
    let script = "eval \"$1\"; exec \"$2\" whoami --json";
    let printed = ground.authsock(["env", "--shell", "sh"]).output().unwrap();
    let output = command.args(["-c", script, "sh"]).arg(String::from_utf8(printed.stdout).unwrap());
    let output = output.arg(&ground.binary).env("AUTHSOCK_TOKEN_FILE", "/stale").output().unwrap();
    assert_eq!(who(&output)["session"]["id"], "owner");
    // A socket that was named is named to the other shell, with the token that goes with it.
    let _daemon = ground.serve();
    let mut command = ground.authsock(["env", "--json", "--socket"]);
    let told = who(&command.arg(ground.init_socket()).output().unwrap());
    assert_eq!(told["set"]["AUTHSOCK_SOCKET"], ground.init_socket().to_str().unwrap());
    assert_eq!(told["set"]["AUTHSOCK_TOKEN_FILE"], ground.token_path().to_str().unwrap());
}

#[test]
fn env_never_prints_a_token_and_says_so_where_there_is_only_that() {
    let ground = Ground::new();
    let token = ground.token_after_first_contact();
    let output = ground.authsock(["env"]).env("AUTHSOCK_TOKEN", &token).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text_of(&output));
    assert!(text_of(&output).contains("came from AUTHSOCK_TOKEN"), "{}", text_of(&output));
    for args in [["env", "--shell", "sh"], ["env", "--json", "--unset"], ["env", "-k", "--json"]] {
        let output = ground.authsock(args).output().unwrap();
        assert!(output.status.success() && !text_of(&output).contains(&token), "{args:?}");
    }
}

#[test]
fn unset_takes_every_name_out_of_a_shell_and_starts_nothing() {
    let ground = Ground::new();
    let path = path_with_the_binary(&ground);
    for (shell, _, eval) in SHELLS {
        if skip_unless(has(shell), &format!("{shell} is not installed")) {
            continue;
        }
        let eval = eval.replace("authsock env", "authsock env -k");
        let output = ground
            .command(shell)
            .args(["-c", &format!("{eval}; env")])
            .env("PATH", &path)
            .envs([("AUTHSOCK_SOCKET", "/s"), ("AUTHSOCK_TOKEN_FILE", "/t"), ("AUTHSOCK_TOKEN_FD", "9")])
            .output()
            .unwrap();
        assert!(output.status.success(), "{shell}: {}", text_of(&output));
        assert!(!text_of(&output).contains("AUTHSOCK_"), "{shell}: {}", text_of(&output));
        assert!(text_of(&output).contains("XDG_RUNTIME_DIR="), "{shell}: what is the login's stays");
    }
    assert!(!ground.state().exists(), "no daemon was started for it");
}

#[test]
fn a_path_with_a_line_end_is_refused_by_name() {
    let ground = Ground::new();
    let _daemon = ground.serve();
    let path = ground.root().join("to\nken");
    put(&path, &ground.token_after_first_contact(), 0o600);
    let output = ground.authsock(["env", "--token-file"]).arg(&path).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text_of(&output));
    assert!(output.stdout.is_empty() && text_of(&output).contains("AUTHSOCK_TOKEN_FILE would be"));
}

#[test]
fn the_log_of_a_daemon_that_a_client_started_is_its_file_and_the_one_before_it() {
    let ground = Ground::new();
    let output = ground.authsock(["logs"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text_of(&output));
    assert!(text_of(&output).contains("there is no log yet at"), "{}", text_of(&output));
    assert!(!ground.state().exists(), "no daemon was started for it");
    ground.json(["whoami"]);
    let log = ground.home().join(".local/state/authsock/log");
    put(&ground.home().join(".local/state/authsock/log.old"), "from before\n\u{1b}[31mred\n", 0o600);
    let output = ground.authsock(["logs"]).output().unwrap();
    let (said, words) = (String::from_utf8_lossy(&output.stdout), text_of(&output));
    assert!(said.starts_with("from before\n\\u{1b}[31mred\n") && said.contains("serving on"), "{words}");
    assert!(String::from_utf8_lossy(&output.stderr).contains(log.to_str().unwrap()), "{words}");
    let output = ground.authsock(["logs", "-n", "1", "--json"]).output().unwrap();
    assert!(who(&output)["line"].as_str().unwrap().contains("serving on"), "{}", text_of(&output));
}

#[test]
fn following_a_log_shows_what_is_logged_from_then_on() {
    if skip_unless(has("tail"), "tail is not installed") {
        return;
    }
    let ground = Ground::new();
    ground.json(["whoami"]);
    let mut follower = ground.authsock(["logs", "-f", "-n", "1"]);
    let mut follower = follower.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.next().unwrap().contains("serving on"), "the last line, and none before");
    let output = ground.authsock(["run", "--name", "seen", "--", "true"]).output().unwrap();
    assert!(output.status.success(), "{}", text_of(&output));
    assert!(lines.next().unwrap().contains("(seen) began"));
    assert!(lines.next().unwrap().contains("(seen) ended"));
    // What moves a terminal is shown, and not sent: whatever came into the log.
    let log = ground.home().join(".local/state/authsock/log");
    let mut log = std::fs::File::options().append(true).open(log).unwrap();
    std::io::Write::write_all(&mut log, b"\x1b]0;owned\x07\xff\n").unwrap();
    let shown = lines.next().unwrap();
    assert!(shown.contains("owned") && !shown.contains('\x1b') && !shown.contains('\x07'), "{shown:?}");
    // Nothing of it stays behind, however it ends.
    let pid = follower.id();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    follower.kill().unwrap();
    follower.wait().unwrap();
    for child in children.split_whitespace() {
        let end = std::time::Instant::now() + crate::ground::PATIENCE;
        while Path::new("/proc").join(child).exists() {
            assert!(std::time::Instant::now() < end, "process {child} is still there");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

#[test]
fn the_log_of_systemd_s_daemon_is_its_journal_and_silence_is_explained() {
    let ground = Ground::new();
    let _daemon = ground.serve();
    let tools = ground.root().join("tools");
    std::fs::create_dir(&tools).unwrap();
    let journal = |script: &str| {
        let path = tools.join("journalctl");
        // Not written by this process: what it has open for writing cannot be executed meanwhile.
        let make = "printf '%s\\n' '#!/bin/sh' \"$2\" >\"$1\" && chmod 755 \"$1\"";
        stop(ground.command("sh").args(["-c", make, "sh"]).arg(path).arg(script));
        let mut path = std::ffi::OsString::from(&tools);
        path.push(":/usr/bin:/bin");
        ground.authsock(["logs", "-f", "-n", "7"]).env("PATH", path).output().unwrap()
    };
    let output = journal("echo \"asked: $*\"");
    assert!(output.status.success(), "{}", text_of(&output));
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "asked: --user-unit authsock.service --user-unit authsock.socket --lines 7 --follow\n"
    );
    assert!(!text_of(&output).contains("systemd-journal"), "{}", text_of(&output));
    let output = journal("exit 0");
    for way_out in ["usermod -aG systemd-journal", "/var/log/journal"] {
        assert!(text_of(&output).contains(way_out), "{}", text_of(&output));
    }
    // One on a socket that somebody named is asked: outside of the user's directory it is the machine's.
    let elsewhere = ground.root().join("else.sock");
    let daemon = crate::ground::Daemon::start(&ground, crate::ground::bind_private(&elsewhere), |command| {
        command.env("RUNTIME_DIRECTORY", ground.root().join("else"));
    });
    let mut command = ground.authsock(["logs", "--token-file"]);
    command.arg(ground.root().join("else/token")).arg("--socket").arg(&elsewhere);
    let output = command.env("PATH", ground.home()).output().unwrap();
    assert!(
        text_of(&output).contains("authsock: journalctl --unit authsock.service"),
        "{}",
        text_of(&output)
    );
    drop(daemon);
    let nowhere = ground.authsock(["logs"]).env("PATH", ground.home()).output().unwrap();
    assert!(text_of(&nowhere).contains("cannot run journalctl"), "{}", text_of(&nowhere));
}
