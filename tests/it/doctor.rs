//! The doctor names what is broken by id and path with the way out, finds nothing in what is whole, and changes nothing in either.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use authsock::doctor::Id;
use authsock::handshake::server::{ExpectOpening, Opened};
use authsock::kernel::peer::Peer;
use authsock::secret::token::Token;
use authsock::secret::verifier::Verifier;
use authsock::wire::auth::{Hex32, PeerView};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::ground::{AUTHSOCK, Ground, Line, bind_private, is_root, put, skip_unless, text_of};

/// A user without rights, who is nobody's daemon.
const STRANGER: u32 = 54_322;

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

/// A ground with an owner's token, as after a daemon's first activation, and no daemon.
fn with_token() -> Ground {
    let ground = Ground::new();
    std::fs::create_dir(ground.state()).unwrap();
    mode(&ground.state(), 0o700);
    put(&ground.token_path(), &Token::generate().unwrap().reveal(), 0o600);
    ground
}

/// Everything below a directory: kind and mode, owner, size, time, inode, content.
fn snapshot(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut left = vec![root.to_path_buf()];
    while let Some(path) = left.pop() {
        let meta = path.symlink_metadata().unwrap();
        // A copy of the program is known by its inode and times; to hash it takes seconds.
        let is_small = meta.is_file() && meta.len() < 1 << 20;
        let content = match is_small.then(|| std::fs::read(&path)) {
            Some(Ok(bytes)) => hex::encode(Sha256::digest(bytes)),
            _ => String::new(),
        };
        let facts = format!(
            "{:o} {}:{} {} {}.{} {} {content}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.size(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ino()
        );
        if meta.is_dir() {
            left.extend(std::fs::read_dir(&path).into_iter().flatten().map(|entry| entry.unwrap().path()));
        }
        found.insert(path, facts);
    }
    found
}

/// What the doctor found, and that it changed nothing; every fault has a way out, and no line a token.
struct Visit {
    report: Value,
    code: i32,
}

impl Visit {
    /// Looks in these surroundings, in both forms.
    fn pay(ground: &Ground, args: &[&str], change: impl Fn(&mut Command)) -> Visit {
        let command = |more: &[&str]| {
            let mut command = ground.command(&ground.binary);
            command.arg("doctor").args(args).args(more);
            change(&mut command);
            command.output().unwrap()
        };
        let before = snapshot(ground.root());
        let output = command(&["--json"]);
        let for_people = command(&[]);
        assert_eq!(snapshot(ground.root()), before, "something was changed");
        let report: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", text_of(&output)));
        let visit = Visit { report, code: output.status.code().unwrap() };
        let count = |level: &str| visit.findings().filter(|finding| finding["level"] == level).count();
        assert_eq!(visit.report["problems"], count("problem"));
        assert_eq!(visit.report["warnings"], count("warning"));
        assert_eq!(visit.code, i32::from(count("problem") > 0), "{}", visit.report);
        assert_eq!(for_people.status.code(), Some(visit.code));
        let (text, json) = (text_of(&for_people), text_of(&output));
        for finding in visit.findings() {
            let (id, level) = (finding["id"].as_str().unwrap(), finding["level"].as_str().unwrap());
            assert!(Id::ALL.iter().any(|known| known.name() == id), "{id}");
            assert!(text.contains(id), "{id} is not told to people: {text}");
            let is_fault = ["problem", "warning"].contains(&level);
            assert_eq!(finding["remedy"].as_str().is_some_and(|way| !way.is_empty()), is_fault, "{finding}");
        }
        // It shows nothing to who may read the system's journal, where that is kept in memory only.
        assert!(!json.contains("journalctl"), "{json}");
        if let Ok(token) = std::fs::read_to_string(ground.token_path())
            && token.len() >= 32
        {
            assert!(!text.contains(&token[..32]) && !json.contains(&token[..32]), "the token was told");
        }
        visit
    }

    fn findings(&self) -> impl Iterator<Item = &Value> {
        self.report["findings"].as_array().unwrap().iter()
    }

    fn has(&self, id: &str) -> bool {
        self.findings().any(|finding| finding["id"] == id)
    }

    /// The finding with this id and level, which names `subject`.
    fn names(&self, level: &str, id: &str, subject: impl AsRef<Path>) -> &Value {
        let subject = subject.as_ref().to_str().unwrap();
        let found = self.findings().find(|finding| {
            finding["id"] == id
                && finding["level"] == level
                && finding["subject"].as_str().unwrap().contains(subject)
        });
        found.unwrap_or_else(|| panic!("no {level} {id} about {subject}: {:#}", self.report))
    }

    /// As [`Visit::names`], with words that the sentence has.
    fn says(&self, level: &str, id: &str, subject: impl AsRef<Path>, words: &str) {
        let finding = self.names(level, id, subject);
        assert!(finding["says"].as_str().unwrap().contains(words), "{finding}");
    }

    fn is_healthy(&self) {
        assert_eq!((&self.report["problems"], self.code), (&json!(0), 0), "{:#}", self.report);
    }
}

fn visit(ground: &Ground) -> Visit {
    Visit::pay(ground, &[], |_| {})
}

#[test]
fn where_nothing_runs_yet_nothing_is_wrong_and_nothing_is_made_or_started() {
    let ground = Ground::new();
    let visit = visit(&ground);
    visit.is_healthy();
    visit.names("note", "socket-missing", ground.ondemand_socket());
    visit.names("note", "token-not-yet", ground.token_path());
    visit.says("note", "daemon-not-running", ground.ondemand_socket(), "the first client starts it");
    assert_eq!(std::fs::read_dir(ground.runtime()).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(ground.home()).unwrap().count(), 0);
}

#[test]
fn a_daemon_that_a_client_started_is_asked_and_healthy() {
    let ground = Ground::new();
    let pid = ground.json(["status"])["pid"].clone();
    let visit = visit(&ground);
    visit.is_healthy();
    visit.says("ok", "daemon", ground.ondemand_socket(), &format!("process {pid}, authsock"));
    visit.names("ok", "token", ground.token_path());
    assert_eq!(ground.json(["status"])["pid"], pid);
}

#[test]
fn a_daemon_of_an_init_system_is_asked_and_healthy() {
    let ground = Ground::new();
    let daemon = ground.serve();
    let visit = visit(&ground);
    visit.is_healthy();
    visit.says("ok", "daemon", ground.init_socket(), &format!("process {}", daemon.child.id()));
}

#[test]
fn an_init_system_s_socket_without_a_daemon_is_not_connected_to() {
    let ground = with_token();
    let listener = bind_private(&ground.init_socket());
    let visit = visit(&ground);
    visit.is_healthy();
    visit.says("note", "daemon-not-running", ground.init_socket(), "the first client starts it");
    listener.set_nonblocking(true).unwrap();
    let error = listener.accept().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "a connection would start the daemon");
}

#[test]
fn inside_of_a_session_it_says_which_and_that_the_owner_s_token_is_refused() {
    let ground = Ground::new();
    ground.json(["whoami"]);
    let output =
        ground.authsock(["run", "--name", "patient", "--", AUTHSOCK, "doctor", "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", text_of(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let found = findings.iter().find(|finding| finding["id"] == "inside-session").unwrap();
    assert!(found["subject"].as_str().unwrap().starts_with("session patient ("), "{found}");
    assert!(found["says"].as_str().unwrap().contains("owner's token is refused"), "{found}");
}

// --- the token ----------------------------------------------------------------------------------

#[test]
fn a_token_that_others_may_read_is_named() {
    let ground = with_token();
    mode(&ground.token_path(), 0o644);
    visit(&ground).says("problem", "token-mode", ground.token_path(), "0644");
}

#[test]
fn a_token_of_another_user_is_named() {
    if skip_unless(is_root(), "a file of another user needs root") {
        return;
    }
    let ground = with_token();
    chown(ground.token_path(), Some(STRANGER), None).unwrap();
    visit(&ground).says("problem", "token-owner", ground.token_path(), "belongs to uid 54322");
}

#[test]
fn a_token_that_is_a_link_is_named() {
    let ground = with_token();
    let real = ground.root().join("real");
    std::fs::rename(ground.token_path(), &real).unwrap();
    symlink(&real, ground.token_path()).unwrap();
    visit(&ground).names("problem", "token-link", ground.token_path());
}

#[test]
fn a_token_that_is_a_directory_is_named() {
    let ground = with_token();
    std::fs::remove_file(ground.token_path()).unwrap();
    std::fs::create_dir(ground.token_path()).unwrap();
    visit(&ground).names("problem", "token-wrong-kind", ground.token_path());
}

#[test]
fn a_token_that_is_none_is_named_and_not_shown() {
    let ground = with_token();
    let almost = format!("{}zz", "5ec2e7".repeat(10));
    put(&ground.token_path(), &almost, 0o600);
    let visit = visit(&ground);
    let way_out = visit.names("problem", "token-garbage", ground.token_path())["remedy"].as_str().unwrap();
    assert!(way_out.starts_with(&format!("rm {}", ground.token_path().display())), "{way_out}");
    assert!(!visit.report.to_string().contains("5ec2e7"));
}

#[test]
fn a_token_that_was_removed_under_a_daemon_that_runs_is_a_problem_and_not_one_that_is_still_to_be_made() {
    let ground = with_token();
    std::fs::remove_file(ground.token_path()).unwrap();
    let listener = bind_private(&ground.ondemand_socket());
    visit(&ground).names("problem", "token-gone", ground.token_path());
    drop(listener);
    let _listener = bind_private(&ground.init_socket());
    let socket = "LoadState=loaded\nActiveState=active\nUnitFileState=enabled";
    let active = SERVICE.replace("ActiveState=inactive", "ActiveState=active");
    let visit = visit_with_systemctl(&ground, &says(socket, &active));
    let finding = visit.names("problem", "token-gone", ground.token_path());
    assert_eq!(finding["remedy"], "systemctl --user restart authsock.service");
    visit_with_systemctl(&ground, &says(socket, SERVICE)).names("note", "token-not-yet", ground.token_path());
}

#[test]
fn a_token_in_a_directory_that_others_may_write_is_named() {
    let ground = with_token();
    mode(&ground.state(), 0o777);
    let visit = visit(&ground);
    visit.names("problem", "token-directory", ground.state());
    visit.names("problem", "state-unusable", ground.state());
}

/// An executable script. A file that this process itself had open for writing could not be executed for as long as a
/// child, just forked by another test, still held it too (execve(2), ETXTBSY).
fn make_script(path: &Path, text: &str) {
    let write = "printf %s \"$1\" >\"$2\" && chmod 755 \"$2\"";
    let made = Command::new("sh").args(["-c", write, "sh", text]).arg(path).status();
    assert!(made.unwrap().success(), "{}", path.display());
}

/// A ground that a user without rights can walk into, and a binary that it can run.
fn ground_for_a_stranger() -> Ground {
    let mut ground = with_token();
    let binary = ground.root().join("authsock");
    let script = "cat \"$1\" >\"$2\" && chmod 755 \"$2\"";
    let made = Command::new("sh").args(["-c", script, "sh", AUTHSOCK]).arg(&binary).status();
    assert!(made.unwrap().success());
    ground.binary = binary;
    mode(ground.root(), 0o755);
    let own = ground.root().join("own");
    std::fs::create_dir(&own).unwrap();
    mode(&own, 0o700);
    chown(&own, Some(STRANGER), Some(STRANGER)).unwrap();
    ground
}

#[test]
fn a_token_that_may_not_be_read_and_one_that_is_missing_have_different_words() {
    if skip_unless(is_root(), "becoming another user needs root") {
        return;
    }
    // As in a container that runs with another uid and has the directories of the daemon mounted.
    let ground = ground_for_a_stranger();
    let own = ground.root().join("own");
    let missing = own.join("missing");
    for (path, id, word, other) in [
        (ground.token_path(), "token-unreadable", "EACCES", "ENOENT"),
        (missing, "token-missing", "ENOENT", "EACCES"),
    ] {
        let visit = Visit::pay(&ground, &["--token-file", path.to_str().unwrap()], |command| {
            command.env("XDG_RUNTIME_DIR", &own).env("HOME", &own).uid(STRANGER).gid(STRANGER);
        });
        let finding = visit.names("problem", id, &path);
        let says = finding["says"].as_str().unwrap();
        assert!(says.contains(word) && !says.contains(other), "{says}");
    }
}

// --- the socket ---------------------------------------------------------------------------------

#[test]
fn a_dead_socket_of_an_init_system_is_named_and_one_on_demand_is_only_noted() {
    let ground = with_token();
    drop(bind_private(&ground.ondemand_socket()));
    let noted = visit(&ground);
    noted.is_healthy();
    noted.names("note", "socket-left-behind", ground.ondemand_socket());
    drop(bind_private(&ground.init_socket()));
    visit(&ground).says("problem", "socket-dead", ground.init_socket(), "nobody listens");
}

#[test]
fn a_file_in_the_socket_s_place_is_named() {
    let ground = with_token();
    put(&ground.init_socket(), "", 0o600);
    visit(&ground).names("problem", "socket-wrong-kind", ground.init_socket());
}

#[test]
fn a_socket_that_others_could_replace_is_named_with_what_they_may_write() {
    let ground = with_token();
    let _listener = bind_private(&ground.init_socket());
    mode(&ground.init_socket(), 0o666);
    visit(&ground).says("problem", "socket-writable", ground.init_socket(), "0666");
    mode(&ground.init_socket(), 0o600);
    mode(&ground.runtime(), 0o777);
    let visit = visit(&ground);
    visit.says("problem", "socket-writable", ground.runtime(), "0777");
    visit.names("problem", "runtime-unusable", ground.runtime());
}

#[test]
fn a_socket_of_another_user_is_named() {
    if skip_unless(is_root(), "becoming another user needs root") {
        return;
    }
    let ground = ground_for_a_stranger();
    let socket = ground.root().join("own/s");
    let _listener = bind_private(&socket);
    chown(&socket, Some(STRANGER), None).unwrap();
    let socket = socket.to_str().unwrap();
    let visit = Visit::pay(&ground, &["--socket", socket], |_| {});
    visit.says("problem", "socket-owner", ground.root().join("own"), "belongs to uid 54322");
}

#[test]
fn a_socket_that_is_closed_to_this_user_is_told_from_one_that_is_missing() {
    if skip_unless(is_root(), "becoming another user needs root") {
        return;
    }
    let ground = ground_for_a_stranger();
    let _listener = bind_private(&ground.init_socket());
    let own = ground.root().join("own");
    for (path, id, word) in [
        (ground.init_socket(), "socket-forbidden", "EACCES"),
        (own.join("missing"), "socket-missing", "does not exist"),
    ] {
        let visit = Visit::pay(&ground, &["--socket", path.to_str().unwrap()], |command| {
            command.env("XDG_RUNTIME_DIR", &own).env("HOME", &own).uid(STRANGER).gid(STRANGER);
        });
        visit.says("problem", id, &path, word);
    }
}

#[test]
fn a_socket_that_is_for_a_group_is_told_to_who_is_not_in_it() {
    if skip_unless(is_root(), "becoming another user needs root") {
        return;
    }
    let mut ground = ground_for_a_stranger();
    let (own, socket) = (ground.root().join("own"), ground.root().join("s"));
    let _listener = bind_private(&socket);
    mode(&socket, 0o660);
    let as_stranger = |command: &mut Command| {
        command.env("XDG_RUNTIME_DIR", &own).env("HOME", &own).uid(STRANGER).gid(STRANGER);
    };
    let visit = Visit::pay(&ground, &["--socket", socket.to_str().unwrap()], as_stranger);
    visit.says("problem", "socket-forbidden", &socket, "SocketGroup=");
    let prepare = format!(
        "mount -t tmpfs -o mode=755 none /run && touch /run/authsock.sock && mount --bind {} /run/authsock.sock",
        socket.display()
    );
    confine(&mut ground, &prepare, &as_a_stranger());
    let visit = Visit::pay(&ground, &["--system"], |_| {});
    let finding = visit.names("problem", "socket-forbidden", "/run/authsock.sock");
    assert!(finding["remedy"].as_str().unwrap().contains("add the user to the socket's group"), "{finding}");
}

#[test]
fn a_socket_of_an_init_system_that_a_session_names_has_a_way_out_and_its_session_is_not_declared_dead() {
    let ground = with_token();
    let look = || {
        Visit::pay(&ground, &[], |command| {
            command
                .env("AUTHSOCK_SOCKET", ground.init_socket())
                .env("AUTHSOCK_TOKEN_FILE", ground.token_path());
        })
    };
    let check = |id: &str| {
        let visit = look();
        let finding = visit.names("problem", id, ground.init_socket());
        assert!(finding["remedy"].as_str().unwrap().contains("start authsock.socket"), "{finding}");
        assert!(!visit.has("stale-socket"), "{:#}", visit.report);
    };
    check("socket-missing");
    drop(bind_private(&ground.init_socket()));
    check("socket-dead");
}

#[test]
fn a_daemon_that_could_not_start_leaves_no_socket_and_one_that_finds_another_says_whose_socket_is_lost() {
    let ground = Ground::new();
    ground.configure("[limits]\nsessions = 0\n");
    let output = ground.authsock(["whoami"]).output().unwrap();
    assert!(text_of(&output).contains("could not start") && !ground.ondemand_socket().exists());
    ground.configure("");
    let lock = std::fs::File::create(ground.state().join("lock")).unwrap();
    lock.lock().unwrap();
    let output = ground.authsock(["whoami"]).output().unwrap();
    let words = text_of(&output);
    assert!(words.contains("not where clients look") && words.contains("authsock doctor"), "{words}");
    assert!(!words.contains("would not retire"), "nobody asked: {words}");
}

#[test]
fn a_runtime_directory_of_root_s_is_no_problem_where_a_socket_is_in_it() {
    if skip_unless(is_root(), "becoming another user needs root") {
        return;
    }
    // As in a container in which a runtime made the directory for a socket that is mounted.
    let ground = ground_for_a_stranger();
    mode(&ground.runtime(), 0o755);
    let own = ground.root().join("own");
    let look = || {
        Visit::pay(&ground, &[], |command| {
            command.env("HOME", &own).uid(STRANGER).gid(STRANGER);
        })
    };
    look().says("problem", "runtime-unusable", ground.runtime(), "belongs to uid 0");
    let _listener = bind_private(&ground.init_socket());
    look().says("warning", "runtime-unusable", ground.runtime(), "belongs to uid 0");
}

#[test]
fn a_path_that_is_too_long_is_named() {
    let ground = Ground::new();
    let long = ground.runtime().join("x".repeat(120));
    std::fs::create_dir(&long).unwrap();
    mode(&long, 0o700);
    let visit = Visit::pay(&ground, &[], |command| {
        command.env("XDG_RUNTIME_DIR", &long);
    });
    visit.says("problem", "socket-path", &long, "bytes long");
}

// --- the environment ----------------------------------------------------------------------------

#[test]
fn a_socket_variable_that_outlived_its_daemon_is_named() {
    let ground = with_token();
    let token = ground.token_path();
    for socket in [ground.root().join("gone"), ground.ondemand_socket()] {
        let visit = Visit::pay(&ground, &[], |command| {
            command.env("AUTHSOCK_SOCKET", &socket).env("AUTHSOCK_TOKEN_FILE", &token);
        });
        visit.says("problem", "stale-socket", &socket, "what is in a session starts none");
    }
}

#[test]
fn the_token_file_of_a_session_that_ended_is_named() {
    let ground = Ground::new();
    let output = ground.authsock(["run", "--", "sh", "-c", "echo $AUTHSOCK_TOKEN_FILE"]).output().unwrap();
    let path = String::from_utf8(output.stdout).unwrap();
    let path = path.trim();
    // The daemon hears of the end by itself, and writes it down: a file gives no event.
    let end = std::time::Instant::now() + crate::ground::PATIENCE;
    while !ground.log().contains(") ended: ") {
        assert!(std::time::Instant::now() < end, "{}", ground.log());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let visit = Visit::pay(&ground, &[], |command| {
        command.env("AUTHSOCK_TOKEN_FILE", path);
    });
    visit.says("problem", "session-over", path, "is over");
}

#[test]
fn a_token_of_a_session_that_the_daemon_has_forgotten_is_named() {
    let ground = Ground::new();
    ground.json(["whoami"]);
    let stale = ground.root().join("stale");
    put(&stale, &"12".repeat(32), 0o600);
    let output = ground.authsock(["doctor", "--json", "--token-file", stale.to_str().unwrap()]).output();
    let report: Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
    let visit = Visit { report, code: 1 };
    visit.names("problem", "stale-token", ground.ondemand_socket());
}

#[test]
fn a_socket_without_a_token_and_several_tokens_are_named() {
    let ground = with_token();
    let _listener = bind_private(&ground.init_socket());
    let socket = ground.init_socket();
    let visit = Visit::pay(&ground, &[], |command| {
        command.env("AUTHSOCK_SOCKET", &socket);
    });
    visit.names("problem", "socket-without-token", "AUTHSOCK_SOCKET");
    let token = ground.token_path();
    let visit = Visit::pay(&ground, &[], |command| {
        command.env("AUTHSOCK_TOKEN", "5ec2e7".repeat(10)).env("AUTHSOCK_TOKEN_FILE", &token);
    });
    visit.names("problem", "token-garbage", "AUTHSOCK_TOKEN");
    visit.says("warning", "several-tokens", "AUTHSOCK_TOKEN AUTHSOCK_TOKEN_FILE", "AUTHSOCK_TOKEN is used");
    assert!(!visit.report.to_string().contains("5ec2e7"));
}

#[test]
fn a_pipe_that_holds_a_token_is_not_drained() {
    let ground = with_token();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = ground.authsock(["doctor", "--json"]);
    crate::ground::pass_as(&mut command, std::os::fd::AsRawFd::as_raw_fd(&reader), 7);
    std::io::Write::write_all(&mut &writer, &[b'a'; 64]).unwrap();
    let output = command.env("AUTHSOCK_TOKEN_FD", "7").output().unwrap();
    drop(writer);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let visit = Visit { report, code: output.status.code().unwrap() };
    visit.says("note", "token-descriptor", "AUTHSOCK_TOKEN_FD=7", "pipe");
    let mut left = Vec::new();
    std::io::Read::read_to_end(&mut &reader, &mut left).unwrap();
    assert_eq!(left.len(), 64);
}

#[test]
fn surroundings_without_home_and_runtime_directory_are_named() {
    let ground = Ground::new();
    let visit = Visit::pay(&ground, &[], |command| {
        command.env_remove("HOME").env_remove("XDG_RUNTIME_DIR");
    });
    visit.names("warning", "home-unset", "HOME");
    assert!(visit.has("runtime-unset"));
    let visit = Visit::pay(&ground, &[], |command| {
        command.env("XDG_RUNTIME_DIR", "run");
    });
    visit.names("warning", "runtime-relative", "XDG_RUNTIME_DIR");
}

#[test]
fn without_its_variable_the_runtime_directory_is_told_that_is_used_and_systemd_is_asked_there() {
    if skip_unless(is_root(), "mounting needs root") {
        return;
    }
    let mut ground = Ground::new();
    let bin = systemctl(&ground, "echo \"in ${XDG_RUNTIME_DIR-no place}\" >&2; exit 1");
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let own = "mkdir /run/user && mkdir -m 700 /run/user/0";
    for (prepare, words, asked) in [
        ("mount -t tmpfs -o mode=755 none /run".to_owned(), "there is no /run/user/0", "no place"),
        (
            format!("mount -t tmpfs -o mode=755 none /run && {own}"),
            "/run/user/0 is used, as in a login",
            "in /run/user/0",
        ),
    ] {
        confine(&mut ground, &prepare, &format!("exec {AUTHSOCK} \"$@\""));
        let visit = Visit::pay(&ground, &[], |command| {
            command.env_remove("XDG_RUNTIME_DIR").env("PATH", &path);
        });
        visit.says("note", "runtime-unset", "XDG_RUNTIME_DIR", words);
        visit.says("note", "manager-unreachable", "systemctl --user", asked);
    }
}

#[test]
fn a_runtime_directory_that_this_user_may_not_make_is_a_problem() {
    if skip_unless(is_root(), "becoming another user needs root") {
        return;
    }
    let ground = ground_for_a_stranger();
    let missing = ground.root().join("missing/run");
    let visit = Visit::pay(&ground, &[], |command| {
        command.env("XDG_RUNTIME_DIR", &missing).env("HOME", ground.root().join("own"));
        command.uid(STRANGER).gid(STRANGER);
    });
    visit.says("problem", "runtime-missing", &missing, "may not make it");
}

#[test]
fn a_token_from_the_future_is_named_as_a_clock_that_was_set_back() {
    let ground = with_token();
    let file = std::fs::File::open(ground.token_path()).unwrap();
    file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(3600)).unwrap();
    visit(&ground).names("warning", "clock-backwards", ground.token_path());
}

#[test]
fn a_disk_without_room_is_named() {
    if skip_unless(is_root(), "mounting needs root") {
        return;
    }
    let mut ground = with_token();
    // In a mount namespace of its own, so that nothing is left behind.
    let wrapper = ground.root().join("wrapped");
    let script = format!(
        "#!/bin/sh\nexec unshare -m sh -c 'mount -t tmpfs -o size=4096,mode=700 none {0} && head -c 4096 /dev/zero >{0}/f; exec \"$0\" \"$@\"' {AUTHSOCK} \"$@\"\n",
        ground.runtime().display()
    );
    make_script(&wrapper, &script);
    ground.binary = wrapper;
    visit(&ground).says("problem", "disk-full", ground.runtime(), "no space left");
}

// --- the configuration --------------------------------------------------------------------------

#[test]
fn a_configuration_that_is_broken_is_named_with_its_line() {
    let ground = Ground::new();
    ground.configure("[limits]\n\nsessions = 0\n");
    let path = ground.home().join(".config/authsock/config.toml");
    visit(&ground).says("problem", "configuration-invalid", path, "line 3, column 12: 0 is not between 1");
}

#[test]
fn a_configuration_that_others_may_write_is_named() {
    let ground = Ground::new();
    ground.configure("");
    let path = ground.home().join(".config/authsock/config.toml");
    mode(&path, 0o666);
    visit(&ground).says("problem", "configuration-writable", path, "0666");
}

#[test]
fn a_complaint_of_the_daemon_is_passed_on() {
    let ground = Ground::new();
    let daemon = ground.serve();
    ground.json(["whoami"]);
    ground.configure("[limits]\nsessions = \"none\"\n");
    daemon.signal(nix::sys::signal::Signal::SIGHUP);
    daemon.wait_for("READY=1");
    let visit = visit(&ground);
    visit.says("warning", "complaint", format!("process {}", daemon.child.id()), "config.toml");
}

// --- the daemon ---------------------------------------------------------------------------------

/// A daemon that knows the token, and answers `whoami` like one of another version.
fn another_version(ground: &Ground, visits: usize) -> std::thread::JoinHandle<()> {
    let token = Token::parse(ground.token().as_bytes()).unwrap();
    let listener: UnixListener = bind_private(&ground.ondemand_socket());
    std::thread::spawn(move || {
        for _ in 0..visits {
            let (stream, _) = listener.accept().unwrap();
            let peer = Peer::of(&stream).unwrap();
            let mut line = Line::on(stream);
            let opening = format!("{}\n", line.receive().unwrap());
            let identity = peer.identity();
            let view = PeerView {
                uid: peer.uid,
                pid: peer.pid.0,
                pidfs: identity.pidfs,
                start: identity.start,
                pidns: None,
            };
            let Ok(Opened::Proof(announced)) = ExpectOpening.read(opening.trim_end().as_bytes()) else {
                panic!("our own clients prove")
            };
            let (challenge, _) =
                announced.challenge(Verifier::of(&token), true, Hex32([7; 32]), view).unwrap();
            line.send(&challenge);
            line.receive().unwrap();
            line.send_json(&json!({ "type": "auth_result", "success": true,
                "session": { "id": "owner", "name": "owner", "realm": "default" } }));
            while let Some(request) = line.receive() {
                let result = match request["method"].as_str().unwrap() {
                    "whoami" => json!({ "session": {}, "daemon": { "version": "9.9.9", "pid": 1 } }),
                    "status" => json!({ "pid": 1, "connections": 10, "sessions": 95, "complaints": [],
                        "limits": { "connections": 10, "sessions": 100 } }),
                    _ => json!({ "sessions": [ { "created_ms": 99_999_999_999_999_u64 } ] }),
                };
                line.send_json(&json!({ "jsonrpc": "2.0", "id": request["id"], "result": result }));
            }
        }
    })
}

#[test]
fn a_daemon_of_another_version_that_is_full_and_lives_in_the_future_is_named() {
    let ground = with_token();
    let daemon = another_version(&ground, 2);
    let visit = visit(&ground);
    daemon.join().unwrap();
    visit.says("warning", "version-differs", "process 1", "authsock 9.9.9");
    visit.says("problem", "limit-reached", "process 1", "10 of 10 connections");
    visit.says("warning", "limit-reached", "process 1", "95 of 100 sessions");
    visit.names("warning", "clock-backwards", ground.ondemand_socket());
}

#[test]
fn whoever_listens_but_does_not_know_the_token_is_named() {
    let ground = with_token();
    let listener = bind_private(&ground.ondemand_socket());
    let thread = std::thread::spawn(move || {
        for _ in 0..2 {
            let (stream, _) = listener.accept().unwrap();
            let mut line = Line::on(stream);
            line.receive().unwrap();
            line.send("{\"hello\":1}\n");
        }
    });
    let visit = visit(&ground);
    thread.join().unwrap();
    visit.says("problem", "daemon-refused", ground.ondemand_socket(), "does not speak the handshake");
}

#[test]
fn a_socket_of_somebody_else_s_is_not_connected_to_since_that_could_start_what_is_behind_it() {
    let ground = Ground::new();
    let _daemon = ground.serve();
    ground.json(["whoami"]);
    let path = ground.root().join("other");
    let listener = bind_private(&path);
    let visit = Visit::pay(&ground, &["--socket", path.to_str().unwrap()], |_| {});
    visit.is_healthy();
    visit.names("note", "daemon-not-asked", &path);
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn a_daemon_on_demand_beside_an_init_system_s_new_socket_is_told_and_left_alone() {
    let ground = Ground::new();
    let pid = ground.json(["status"])["pid"].clone();
    let listener = bind_private(&ground.init_socket());
    let visit = visit(&ground);
    visit.is_healthy();
    visit.names("note", "daemon-other", ground.ondemand_socket());
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    std::fs::remove_file(ground.init_socket()).unwrap();
    assert_eq!(ground.json(["status"])["pid"], pid);
}

struct RemovedAtTheEnd(PathBuf);

impl Drop for RemovedAtTheEnd {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn a_pipe_in_the_place_of_the_daemon_s_lock_is_not_waited_for() {
    let ground = with_token();
    let _listener = bind_private(&ground.init_socket());
    let pipe = ground.state().join("lock");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
    // The ground itself reads whom the lock names, when it goes.
    let _removed_before = RemovedAtTheEnd(pipe);
    let visit = visit_with_systemctl(&ground, "exit 1");
    visit.names("note", "daemon-not-running", ground.init_socket());
}

// --- systemd, as it was recorded ----------------------------------------------------------------

/// A systemctl that says this, whatever it is asked for.
fn systemctl(ground: &Ground, script: &str) -> PathBuf {
    let bin = ground.root().join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    make_script(&bin.join("systemctl"), &format!("#!/bin/sh\n{script}\n"));
    bin
}

fn visit_with_systemctl(ground: &Ground, script: &str) -> Visit {
    let bin = systemctl(ground, script);
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    Visit::pay(ground, &[], |command| {
        command.env("PATH", &path);
    })
}

fn says(socket: &str, service: &str) -> String {
    format!("cat <<'END'\nId=authsock.socket\n{socket}\n\nId=authsock.service\n{service}\nEND")
}

const SERVICE: &str = "LoadState=loaded\nActiveState=inactive\nSubState=dead\nExecStart={ path=/bin/sh ; argv[]=/bin/sh serve ; }";

#[test]
fn what_systemd_says_of_broken_units_is_named() {
    for (socket, service, level, id, subject) in [
        (
            "LoadState=loaded\nActiveState=failed\nResult=trigger-limit-hit\nUnitFileState=enabled",
            SERVICE,
            "problem",
            "unit-trigger-limit",
            "authsock.socket",
        ),
        (
            "LoadState=loaded\nActiveState=failed\nResult=service-start-limit-hit\nUnitFileState=enabled",
            SERVICE,
            "problem",
            "unit-start-limit",
            "authsock.socket",
        ),
        (
            "LoadState=loaded\nActiveState=failed\nResult=resources\nUnitFileState=enabled",
            SERVICE,
            "problem",
            "unit-failed",
            "authsock.socket",
        ),
        (
            "LoadState=masked\nActiveState=inactive\nUnitFileState=masked",
            SERVICE,
            "problem",
            "unit-masked",
            "authsock.socket",
        ),
        ("LoadState=not-found\nActiveState=inactive", SERVICE, "problem", "unit-missing", "authsock.socket"),
        ("LoadState=bad-setting\nActiveState=inactive", SERVICE, "problem", "unit-broken", "authsock.socket"),
        (
            "LoadState=loaded\nActiveState=active\nUnitFileState=disabled",
            SERVICE,
            "warning",
            "unit-disabled",
            "authsock.socket",
        ),
        (
            "LoadState=loaded\nActiveState=inactive\nUnitFileState=enabled",
            SERVICE,
            "warning",
            "unit-stopped",
            "authsock.socket",
        ),
        (
            "LoadState=loaded\nActiveState=active\nUnitFileState=enabled\nNeedDaemonReload=yes",
            SERVICE,
            "warning",
            "unit-changed",
            "authsock.socket",
        ),
        (
            "LoadState=loaded\nActiveState=active\nUnitFileState=enabled",
            "LoadState=loaded\nActiveState=failed\nResult=exit-code\nExecStart={ path=/no/authsock ; }",
            "problem",
            "program-missing",
            "/no/authsock",
        ),
    ] {
        let ground = Ground::new();
        visit_with_systemctl(&ground, &says(socket, service)).names(level, id, subject);
    }
}

const LISTENING: &str = "LoadState=loaded\nActiveState=active\nSubState=listening\nUnitFileState=enabled";

#[test]
fn a_service_that_ends_again_and_again_is_named_and_nobody_is_told_to_start_it_once_more() {
    let ground = with_token();
    let listener = bind_private(&ground.init_socket());
    let service = "LoadState=loaded\nActiveState=activating\nSubState=auto-restart\nResult=exit-code\nNRestarts=7\nExecStart={ path=/bin/sh ; }";
    let visit = visit_with_systemctl(&ground, &says(LISTENING, service));
    let finding = visit.names("problem", "unit-restarting", "authsock.service");
    assert_eq!(finding["remedy"], "authsock logs -n 20, and systemctl --user status authsock.service");
    assert!(finding["says"].as_str().unwrap().contains("exit-code"), "{finding}");
    assert!(!visit.report.to_string().contains("restart authsock.service"), "{:#}", visit.report);
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn a_program_that_others_could_replace_that_the_unit_does_not_see_or_that_is_not_the_one_that_runs_is_named()
{
    let ground = with_token();
    let program = ground.root().join("program");
    make_script(&program, "#!/bin/sh\n");
    let look = |facts: String| {
        visit_with_systemctl(&ground, &says(LISTENING, &format!("LoadState=loaded\n{facts}")))
    };
    let in_tmp = format!("ActiveState=inactive\nExecStart={{ path={} ; }}", program.display());
    let visit = look(in_tmp.clone());
    visit.says("problem", "program-replaceable", &program, "/tmp: may be written by others");
    assert!(!visit.has("program-hidden") && !visit.has("program-missing"));
    look(format!("{in_tmp}\nPrivateTmp=yes")).says("problem", "program-hidden", &program, "below /tmp");
    let in_a_home = "ActiveState=inactive\nProtectHome=yes\nExecStart={ path=/home/nobody-s/authsock ; }";
    let hidden = look(in_a_home.to_owned());
    hidden.says("problem", "program-hidden", "/home/nobody-s/authsock", "below /home");
    let sleeper = Sleeper::start(&ground, |_| {});
    let running =
        |path: &str| format!("ActiveState=active\nMainPID={}\nExecStart={{ path={path} ; }}", sleeper.pid());
    let visit = look(running("/bin/sh"));
    visit.says("warning", "program-replaced", "/bin/sh", &format!("process {}", sleeper.pid()));
    let own = std::fs::read_link(format!("/proc/{}/exe", sleeper.pid())).unwrap();
    assert!(!look(running(own.to_str().unwrap())).has("program-replaced"));
}

#[test]
fn a_configuration_that_the_daemon_does_not_go_by_is_named_by_the_daemon_s_own_word() {
    let ground = Ground::new();
    ground.configure("[limits]\nsessions = 100\n");
    let daemon = ground.serve();
    ground.json(["whoami"]);
    let is_named = || visit(&ground).has("configuration-unread");
    assert!(!is_named());
    // At once, without a moment for the clocks to differ.
    ground.configure("[limits]\nsessions = 200\n");
    assert!(is_named());
    std::fs::remove_file(ground.home().join(".config/authsock/config.toml")).unwrap();
    assert!(is_named(), "what was removed is another configuration, too");
    // What says the same in other words is the same.
    ground.configure("# As before.\nlimits.sessions = 100\n");
    assert!(!is_named());
    ground.configure("[limits]\nsessions = 300\n");
    // No systemd runs it, and so the way out is none of systemd's.
    assert_eq!(take_the_way_out(&ground), format!("kill -HUP {}", daemon.child.id()));
    daemon.wait_for("RELOADING=1");
    daemon.wait_for("READY=1");
    assert!(!is_named());
}

/// Does what the doctor says of a configuration that was not read; returns it.
fn take_the_way_out(ground: &Ground) -> String {
    let visit = visit(ground);
    let finding = visit.names("warning", "configuration-unread", "/.config/authsock/config.toml");
    let remedy = finding["remedy"].as_str().unwrap().to_owned();
    assert!(Command::new("sh").args(["-c", &remedy]).status().unwrap().success(), "{remedy}");
    remedy
}

#[test]
fn a_daemon_that_a_client_started_is_told_by_its_number_to_read_its_configuration() {
    let ground = Ground::new();
    ground.configure("[limits]\nsessions = 100\n");
    let pid = ground.json(["status"])["pid"].as_u64().unwrap();
    ground.configure("[limits]\nsessions = 200\n");
    assert_eq!(take_the_way_out(&ground), format!("kill -HUP {pid}"));
    let end = std::time::Instant::now() + crate::ground::PATIENCE;
    while !ground.log().contains("the configuration was read again") {
        assert!(std::time::Instant::now() < end, "it was not read: {}", ground.log());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(!visit(&ground).has("configuration-unread"));
    assert_eq!(ground.json(["status"])["pid"], pid, "by the same daemon");
}

#[test]
fn a_configuration_that_was_changed_under_a_service_is_named_until_that_has_read_it() {
    let ground = with_token();
    ground.configure("");
    let fragment = ground.home().join(".config/authsock/config.d/10-limits.toml");
    std::fs::create_dir(fragment.parent().unwrap()).unwrap();
    put(&fragment, "", 0o600);
    let look = |microseconds: i64| {
        let service = format!(
            "LoadState=loaded\nActiveState=active\nExecStart={{ path=/bin/sh ; }}\nStateChangeTimestampMonotonic={microseconds}"
        );
        visit_with_systemctl(&ground, &says(LISTENING, &service))
    };
    let visit = look(1);
    let finding = visit.names("warning", "configuration-unread", "/.config/authsock/config");
    assert_eq!(finding["remedy"], "systemctl --user try-reload-or-restart authsock.service");
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    assert!(!look(now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000).has("configuration-unread"));
}

// --- the daemon of the whole machine ------------------------------------------------------------

/// What a shell runs to be the program as a user without rights.
fn as_a_stranger() -> String {
    format!(
        "exec setpriv --reuid={STRANGER} --regid={STRANGER} --clear-groups \"${{PROGRAM:-{AUTHSOCK}}}\" \"$@\""
    )
}

#[test]
fn where_the_machine_s_daemon_is_not_installed_nobody_is_told_that_a_client_starts_it() {
    if skip_unless(is_root(), "mounting needs root") {
        return;
    }
    let mut ground = Ground::new();
    let bin = systemctl(&ground, &says("LoadState=not-found", "LoadState=not-found"));
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let booted = "mount -t tmpfs -o mode=755 none /run && mkdir -p /run/systemd/system";
    confine(&mut ground, booted, &format!("exec {AUTHSOCK} \"$@\""));
    let visit = Visit::pay(&ground, &["--system"], |command| {
        command.env("PATH", &path).env_remove("XDG_RUNTIME_DIR");
    });
    let way_out = "sudo authsock install --system";
    visit.says("note", "units-absent", "authsock.socket", way_out);
    let finding = visit.names("problem", "socket-missing", "/run/authsock.sock");
    assert!(finding["remedy"].as_str().unwrap().starts_with(way_out), "{finding}");
    for id in ["runtime-unset", "runtime-missing", "runtime"] {
        assert!(!visit.has(id), "{id}: {:#}", visit.report);
    }
    assert!(!visit.report.to_string().contains("on demand"), "{:#}", visit.report);
}

#[test]
fn where_no_systemd_runs_nobody_is_sent_in_a_circle_to_have_the_machine_s_daemon() {
    if skip_unless(is_root(), "mounting needs root") {
        return;
    }
    let mut ground = Ground::new();
    let bin = systemctl(&ground, "echo 'System has not been booted with systemd' >&2; exit 1");
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    confine(&mut ground, "mount -t tmpfs -o mode=755 none /run", &format!("exec {AUTHSOCK} \"$@\""));
    let visit = Visit::pay(&ground, &["--system"], |command| {
        command.env("PATH", &path);
    });
    let finding = visit.names("problem", "socket-missing", "/run/authsock.sock");
    let way_out = "leave --system (client.system) away";
    let words = finding["remedy"].as_str().unwrap();
    assert!(words.contains(way_out) && !words.contains("install"), "{words}");
    for (args, code) in [(["--system", "whoami"], 3), (["install", "--system"], 1)] {
        let output = ground.authsock(args).env("PATH", &path).output().unwrap();
        let words = text_of(&output);
        assert_eq!(output.status.code(), Some(code), "{words}");
        assert!(words.contains("not booted with systemd") && words.contains(way_out), "{words}");
        assert!(!words.contains("`authsock install --system`"), "{words}");
    }
    // Followed, it leads to a daemon; for one user install says where that is.
    assert_eq!(ground.json(["whoami"])["session"]["id"], "owner");
    let output = ground.authsock(["install"]).env("PATH", &path).output().unwrap();
    assert!(text_of(&output).contains("`authsock whoami`"), "{}", text_of(&output));
    // There need not even be a systemctl.
    confine(
        &mut ground,
        "mount -t tmpfs -o mode=755 none /run",
        &format!("PATH=/nonexistent exec {AUTHSOCK} \"$@\""),
    );
    let words = text_of(&ground.authsock(["install", "--system"]).output().unwrap());
    assert!(words.contains("cannot be run") && words.contains(way_out), "{words}");
}

#[test]
fn what_is_said_of_the_machine_s_daemon_asks_that_one_and_not_the_user_s_own() {
    if skip_unless(is_root(), "mounting needs root") {
        return;
    }
    let mut ground = ground_for_a_stranger();
    let failed = "LoadState=loaded\nActiveState=failed\nResult=resources";
    let bin = systemctl(&ground, &says(failed, SERVICE));
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let token = format!("/run/authsock/users/{STRANGER}/token");
    let prepare = |mode: &str, content: &str| {
        format!(
            "mount -t tmpfs -o mode=755 none /run && mkdir -p /run/authsock/users/{STRANGER} && printf %s {content} >{token} && chown {STRANGER} {token} && chmod {mode} {token}"
        )
    };
    let program = ground.binary.clone();
    let look = |ground: &Ground| {
        Visit::pay(ground, &["--system"], |command| {
            command.env("PATH", &path).env("PROGRAM", &program);
        })
    };
    confine(&mut ground, &prepare("600", "garbage"), &as_a_stranger());
    let visit = look(&ground);
    let finding = visit.names("problem", "token-garbage", &token);
    assert!(finding["remedy"].as_str().unwrap().starts_with(&format!("sudo rm {token}")), "{finding}");
    visit.says("problem", "token-garbage", &token, "at the daemon of the whole machine");
    let finding = visit.names("problem", "unit-failed", "authsock.socket");
    assert!(finding["remedy"].as_str().unwrap().contains("authsock --system logs"), "{finding}");
    confine(&mut ground, &prepare("644", &"ab".repeat(32)), &as_a_stranger());
    let visit = look(&ground);
    let finding = visit.names("problem", "token-mode", &token);
    assert!(finding["remedy"].as_str().unwrap().contains("authsock --system token rotate"), "{finding}");
}

#[test]
fn a_configuration_of_the_machine_s_that_this_user_may_not_read_says_nothing_of_who_is_let_in() {
    if skip_unless(is_root(), "mounting needs root") {
        return;
    }
    let mut ground = ground_for_a_stranger();
    let program = ground.binary.clone();
    let prepare = "mount -t tmpfs -o mode=755 none /etc && mkdir /etc/authsock && echo >/etc/authsock/config.toml && chmod 600 /etc/authsock/config.toml";
    confine(&mut ground, prepare, &as_a_stranger());
    let visit = Visit::pay(&ground, &["--system"], |command| {
        command.env("PROGRAM", &program);
    });
    visit.says("note", "configuration-unusable", "/etc/authsock/config.toml", "root reads it");
    visit.says("note", "process-user", "process", "is not known");
}

#[test]
fn a_socket_file_that_is_gone_or_younger_than_its_unit_is_named() {
    let ground = with_token();
    let path = ground.init_socket();
    let socket = format!(
        "LoadState=loaded\nActiveState=active\nSubState=listening\nUnitFileState=enabled\nActiveEnterTimestampMonotonic=1\nListen={} (Stream)",
        path.display()
    );
    let found = visit_with_systemctl(&ground, &says(&socket, SERVICE));
    found.names("problem", "socket-file-gone", &path);
    let _listener = bind_private(&path);
    let found = visit_with_systemctl(&ground, &says(&socket, SERVICE));
    found.names("problem", "socket-file-replaced", &path);
}

#[test]
fn a_systemd_that_cannot_be_asked_is_a_note_and_a_stuck_one_does_not_hold_the_doctor_up() {
    let ground = Ground::new();
    let visit = visit_with_systemctl(&ground, "echo 'Failed to connect to bus: No medium found' >&2; exit 1");
    visit.is_healthy();
    visit.says("note", "manager-unreachable", "systemctl --user", "No medium found");
    let ground = Ground::new();
    let began = std::time::Instant::now();
    let visit = visit_with_systemctl(&ground, "exec sleep 600");
    visit.says("note", "manager-unreachable", "systemctl --user", "no answer");
    assert!(began.elapsed() < crate::ground::PATIENCE);
    let visit = Visit::pay(&ground, &[], |command| {
        command.env("PATH", "/nonexistent");
    });
    visit.is_healthy();
    visit.names("note", "systemd-absent", "systemctl");
}

// --- the kernel ---------------------------------------------------------------------------------

/// Makes the program one that runs in a mount namespace of its own, after a shell has prepared that.
fn confine(ground: &mut Ground, prepare: &str, run: &str) {
    let wrapper = ground.root().join("wrapped");
    let script = format!("#!/bin/sh\nexec unshare -m sh -c '{prepare} && {run}' sh \"$@\"\n");
    make_script(&wrapper, &script);
    ground.binary = wrapper;
}

#[test]
fn a_program_with_few_descriptors_is_told_so() {
    let mut ground = Ground::new();
    let wrapper = ground.root().join("wrapped");
    let script = format!("#!/bin/sh\nulimit -n 24; exec {AUTHSOCK} \"$@\"\n");
    make_script(&wrapper, &script);
    ground.binary = wrapper;
    visit(&ground).says("warning", "few-descriptors", "RLIMIT_NOFILE", "24 descriptors");
}

#[test]
fn a_machine_without_proc_is_told_what_that_weakens() {
    if skip_unless(is_root(), "mounting needs root") {
        return;
    }
    let mut ground = with_token();
    let wrapper = ground.root().join("wrapped");
    let script = format!(
        "#!/bin/sh\nexec unshare -m sh -c 'mount -t tmpfs none /proc && exec {AUTHSOCK} \"$@\"' sh \"$@\"\n"
    );
    make_script(&wrapper, &script);
    ground.binary = wrapper;
    let visit = visit(&ground);
    visit.is_healthy();
    visit.names("warning", "no-proc", "/proc");
}

#[test]
fn a_proc_that_hides_processes_is_named_with_what_that_costs_and_so_is_it_where_the_daemon_refuses_for_it() {
    if skip_unless(is_root(), "mounting needs root") {
        return;
    }
    let mut ground = ground_for_a_stranger();
    let (own, program) = (ground.root().join("own"), ground.binary.clone());
    let hide = "mount -t proc -o hidepid=2 proc /proc";
    confine(&mut ground, hide, &as_a_stranger());
    let hidden = Visit::pay(&ground, &[], |command| {
        command.env("PROGRAM", &program).env("XDG_RUNTIME_DIR", &own).env("HOME", &own);
    });
    hidden.says("warning", "hidepid", "/proc", "binding");
    // Root sees all, and so does its daemon.
    confine(&mut ground, hide, &format!("exec {AUTHSOCK} \"$@\""));
    visit(&ground).names("note", "hidepid", "/proc");
    // A session lives, and its daemon can place nobody.
    let script = "mkfifo $HOME/ready; \"$0\" run -- sh -c \"echo >$HOME/ready; exec sleep 600\" & run=$!; read x <$HOME/ready; \"$0\" doctor --json; kill $run; wait $run; kill $(cat $XDG_RUNTIME_DIR/authsock/lock)";
    let run = format!(
        "exec setpriv --reuid={STRANGER} --regid={STRANGER} --clear-groups sh -c \"$SCRIPT\" {}",
        program.display()
    );
    confine(&mut ground, hide, &run);
    let mut command = ground.command(&ground.binary);
    command.env("SCRIPT", script).env("XDG_RUNTIME_DIR", &own).env("HOME", &own);
    let output = command.output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", text_of(&output)));
    let visit = Visit { report, code: 1 };
    let finding = visit.names("problem", "daemon-refused", "/authsock-ondemand.sock");
    assert!(finding["remedy"].as_str().unwrap().contains("hidepid=0"), "{finding}");
}

#[test]
fn a_program_with_more_rights_than_its_user_is_told_that_it_reads_no_variable() {
    if skip_unless(is_root(), "a set-user-ID program of another user needs root") {
        return;
    }
    let ground = ground_for_a_stranger();
    chown(&ground.binary, Some(STRANGER), Some(STRANGER)).unwrap();
    mode(&ground.binary, 0o4755);
    // Nor is a program run that the starter's PATH names.
    let bin = systemctl(&ground, "touch \"${0%/*}/was-run\"");
    mode(&bin, 0o777);
    let visit = Visit::pay(&ground, &[], |command| {
        command.env("AUTHSOCK_SOCKET", "/nonexistent").env("PATH", &bin);
    });
    visit.names("warning", "set-id", "set-user-ID");
    visit.says("note", "manager-unreachable", "systemctl --user", "is not asked");
    visit.names("ok", "socket-route", "/authsock-ondemand.sock");
}

// --- one process --------------------------------------------------------------------------------

/// A process that ends with this value, also where a check fails.
struct Sleeper(std::process::Child);

impl Sleeper {
    fn start(ground: &Ground, change: impl FnOnce(&mut Command)) -> Sleeper {
        let mut command = ground.command("sleep");
        change(command.arg("600"));
        Sleeper(command.spawn().unwrap())
    }

    /// One that a shell becomes in a mount namespace of its own, after it has prepared that.
    fn elsewhere(ground: &Ground, prepare: &str, change: impl FnOnce(&mut Command)) -> Sleeper {
        let mut command = ground.command("unshare");
        let script = format!("{prepare} && echo ready && exec sleep 600");
        change(command.args(["-m", "sh", "-c", &script]).stdout(Stdio::piped()));
        let mut sleeper = Sleeper(command.spawn().unwrap());
        let mut line = String::new();
        let mut reader = std::io::BufReader::new(sleeper.0.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut reader, &mut line).unwrap();
        assert_eq!(line, "ready\n");
        sleeper
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_process_that_is_gone_is_named() {
    let ground = Ground::new();
    let mut child = Command::new("true").spawn().unwrap();
    let pid = child.id().to_string();
    child.wait().unwrap();
    let visit = Visit::pay(&ground, &["--pid", &pid], |_| {});
    visit.names("problem", "process-gone", format!("process {pid}"));
}

#[test]
fn a_process_of_another_user_is_named_with_uid_program_check_and_file() {
    if skip_unless(is_root(), "becoming another user needs root") {
        return;
    }
    let ground = Ground::new();
    let _daemon = ground.serve();
    ground.json(["whoami"]);
    mode(ground.root(), 0o755);
    let sleeper = Sleeper::start(&ground, |command| {
        command
            .env("AUTHSOCK_SOCKET", ground.init_socket())
            .env("AUTHSOCK_TOKEN", "5ec2e7".repeat(10))
            .uid(STRANGER)
            .gid(STRANGER);
    });
    let pid = sleeper.pid();
    let visit = Visit::pay(&ground, &["--pid", &pid], |_| {});
    let subject = format!("process {pid}");
    visit.says("problem", "process-user", &subject, "uid 54322 is not uid 0");
    visit.says("ok", "process", &subject, "sleep as uid 54322");
    visit.says("note", "process-variables", &subject, "AUTHSOCK_TOKEN (not shown)");
    let run = ground.runtime();
    visit.says(
        "problem",
        "process-socket-forbidden",
        ground.init_socket(),
        &format!("EACCES): {} (mode 0700", run.display()),
    );
    assert!(!visit.report.to_string().contains("5ec2e7"));
}

#[test]
fn a_token_that_a_process_may_not_read_and_one_that_is_not_there_have_different_words() {
    if skip_unless(is_root(), "becoming another user needs root") {
        return;
    }
    let ground = with_token();
    mode(ground.root(), 0o755);
    let missing = ground.root().join("missing");
    for (path, id, word, other) in [
        (ground.token_path(), "process-token-forbidden", "EACCES", "ENOENT"),
        (missing, "process-token-missing", "ENOENT", "EACCES"),
    ] {
        let sleeper = Sleeper::start(&ground, |command| {
            command.env("AUTHSOCK_TOKEN_FILE", &path).uid(STRANGER).gid(STRANGER);
        });
        let visit = Visit::pay(&ground, &["--pid", &sleeper.pid()], |_| {});
        let says = visit.names("problem", id, &path)["says"].as_str().unwrap();
        assert!(says.contains(word) && !says.contains(other), "{says}");
    }
}

#[test]
fn what_a_process_was_started_with_is_read_and_told_up_to_a_bound() {
    let ground = with_token();
    let long = "x".repeat(100_000);
    let sleeper = Sleeper::start(&ground, |command| {
        command.env("AUTHSOCK_TOKEN_FILE", format!("/{long}"));
    });
    let visit = Visit::pay(&ground, &["--pid", &sleeper.pid()], |_| {});
    visit.says("note", "process-variables", "process", "(cut)");
    assert!(visit.report.to_string().len() < long.len() / 4);
    // They are read in order, and these come before any of ours.
    let sleeper = Sleeper::start(&ground, |command| {
        command.envs((0..12).map(|number| (format!("A{number}"), &long)));
        command.env("AUTHSOCK_SOCKET", "/after/all/of/it");
    });
    let visit = Visit::pay(&ground, &["--pid", &sleeper.pid()], |_| {});
    visit.says("note", "process-variables", "process", "only the first 1048576 bytes");
    assert!(!visit.report.to_string().contains("/after/all/of/it"));
}

#[test]
fn a_token_that_stands_where_a_path_or_a_number_belongs_is_not_told() {
    let ground = with_token();
    let token = "5ec2e7aa".repeat(8);
    let variables = ["AUTHSOCK_TOKEN_FILE", "AUTHSOCK_TOKEN_FD", "AUTHSOCK_SOCKET"];
    let sleeper = Sleeper::start(&ground, |command| {
        command.envs(variables.map(|name| (name, &token)));
    });
    let visit = Visit::pay(&ground, &["--pid", &sleeper.pid()], |_| {});
    for name in variables {
        let words = format!("{name}=(not shown: it looks like a token)");
        visit.says("note", "process-variables", "process", &words);
    }
    assert!(!visit.report.to_string().contains("5ec2e7"), "{:#}", visit.report);
    for name in variables {
        let visit = Visit::pay(&ground, &[], |command| {
            command.env(name, &token);
        });
        assert!(!visit.report.to_string().contains("5ec2e7"), "{name}: {:#}", visit.report);
        assert!(visit.code == 1, "{name}: {:#}", visit.report);
    }
    for name in &variables[..2] {
        let output = ground.authsock(["whoami"]).env(name, &token).output().unwrap();
        assert!(!text_of(&output).contains("5ec2e7") && !output.status.success(), "{}", text_of(&output));
    }
}

#[test]
fn at_the_machine_s_daemon_a_process_has_its_own_user_s_token_and_not_that_of_who_looks() {
    if skip_unless(is_root(), "mounting needs root") {
        return;
    }
    let mut ground = with_token();
    let prepare = format!(
        "mount -t tmpfs -o mode=755 none /run && mkdir -p -m 711 /run/authsock/users/{STRANGER} && chmod 711 /run/authsock /run/authsock/users && echo >/run/authsock/users/{STRANGER}/token && chown {STRANGER} /run/authsock/users/{STRANGER}/token && echo >/run/authsock/token && chmod 600 /run/authsock/token /run/authsock/users/{STRANGER}/token && mkfifo -m 666 /run/ready"
    );
    let become_user = format!("setpriv --reuid={STRANGER} --regid={STRANGER} --clear-groups");
    let run = format!(
        "{{ {become_user} sh -c \"echo >/run/ready; exec sleep 600\" & pid=$!; read ready </run/ready; {AUTHSOCK} \"$@\" --pid $pid; code=$?; kill $pid; exit $code; }}"
    );
    confine(&mut ground, &prepare, &run);
    let visit = Visit::pay(&ground, &["--system"], |_| {});
    visit.names("problem", "process-user", "process");
    assert!(!visit.has("process-token-forbidden"), "{:#}", visit.report);
}

#[test]
fn a_link_in_a_container_leads_where_it_leads_there() {
    if skip_unless(is_root(), "mounting needs root") {
        return;
    }
    let ground = with_token();
    let (link, mounted) = (ground.root().join("link"), ground.root().join("mounted"));
    std::fs::create_dir(&mounted).unwrap();
    symlink(mounted.join("inside"), &link).unwrap();
    let prepare = "mount -t tmpfs none $MOUNTED && mkdir $MOUNTED/inside && echo >$AUTHSOCK_TOKEN_FILE";
    let sleeper = Sleeper::elsewhere(&ground, prepare, |command| {
        command.env("MOUNTED", &mounted).env("AUTHSOCK_TOKEN_FILE", link.join("token"));
    });
    let visit = Visit::pay(&ground, &["--pid", &sleeper.pid()], |_| {});
    visit.names("note", "process-namespace", "process");
    assert!(!visit.has("process-token-missing"), "{:#}", visit.report);
}

#[test]
fn a_path_that_a_process_names_is_looked_for_in_its_own_directory() {
    let ground = with_token();
    for (name, is_there) in [("authsock/token", true), ("authsock/other", false)] {
        let sleeper = Sleeper::start(&ground, |command| {
            command.env("AUTHSOCK_TOKEN_FILE", name).current_dir(ground.runtime());
        });
        let visit = Visit::pay(&ground, &["--pid", &sleeper.pid()], |_| {});
        assert_eq!(visit.has("process-token-missing"), !is_there, "{name}: {:#}", visit.report);
    }
}

#[test]
fn the_limit_that_a_user_reaches_first_is_the_one_that_is_named() {
    let ground = Ground::new();
    ground.configure("[limits]\nsessions = 100\nsessions_per_uid = 1\n");
    let mut inside = crate::tree::Inside::begin(&ground, &[]);
    let visit = Visit::pay(&ground, &[], |_| {});
    let subject = format!("process {}", inside.whoami()["daemon"]["pid"]);
    visit.says("problem", "limit-reached", &subject, "1 of 1 sessions are in use");
    let output = ground.authsock(["status"]).output().unwrap();
    assert!(text_of(&output).contains("sessions     1 of 1\n"), "{}", text_of(&output));
}

#[test]
fn a_process_in_a_session_is_told_with_the_session_and_its_leader() {
    let ground = Ground::new();
    ground.json(["whoami"]);
    let script = "echo $$; exec sleep 600";
    let mut run = ground
        .authsock(["run", "--name", "patient", "--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut reader = std::io::BufReader::new(run.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut reader, &mut line).unwrap();
    let visit = Visit::pay(&ground, &["--pid", line.trim()], |_| {});
    let subject = format!("process {}", line.trim());
    visit.says("note", "process-session", &subject, "is in session patient (");
    visit.says("note", "process-session", &subject, &format!("leader, process {};", run.id()));
    visit.says("note", "process-variables", &subject, "AUTHSOCK_TOKEN_FILE=/");
    let listed = ground.json(["session", "list"]);
    let mut sessions = listed["sessions"].as_array().unwrap().iter();
    let session = sessions.find(|session| session["name"] == "patient").unwrap();
    ground.json(["session", "revoke", session["id"].as_str().unwrap()]);
    let visit = Visit::pay(&ground, &["--pid", line.trim()], |_| {});
    visit.says("problem", "process-session", &subject, "that has ended (revoked)");
    let child = nix::unistd::Pid::from_raw(line.trim().parse().unwrap());
    nix::sys::signal::kill(child, nix::sys::signal::SIGKILL).unwrap();
    run.wait().unwrap();
}
