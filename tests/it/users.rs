//! Other users, and users that the kernel cannot name: refused by their credentials alone, with every other guard opened.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::ground::{
    AUTHSOCK, Daemon, Ground, Line, bind_private, is_root, make_program, put, refusal, skip_unless, text_of,
};
use crate::http::Http;

/// A user whose daemon it is, one who has no business there, and whom the kernel puts for those without a number.
const OWNER: u32 = 54_320;
const STRANGER: u32 = 54_321;
const NOBODY: u32 = 65_534;

pub const NEEDS_ROOT: &str = "becoming other users needs root";

/// Does something as another user. The kernel keeps credentials per thread, and a connection gets its thread's.
pub fn as_user<T: Send>(uid: u32, act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            // SAFETY: system calls on numbers. libc's own wrappers would change every thread.
            unsafe {
                assert_eq!(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()), 0);
                assert_eq!(libc::syscall(libc::SYS_setresgid, uid, uid, uid), 0);
                assert_eq!(libc::syscall(libc::SYS_setresuid, uid, uid, uid), 0);
            }
            act()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

/// Opens every guard but the peer check: directories that all can pass, a socket that all can write, a token that all
/// can read (this test hands it out anyway).
fn open_all_doors(ground: &Ground) {
    for dir in [ground.root(), &ground.runtime()] {
        mode(dir, 0o755);
    }
    mode(&ground.init_socket(), 0o666);
}

/// A ground that belongs to another user, with a binary that this user can reach.
fn ground_of(uid: u32) -> Ground {
    let mut ground = Ground::new();
    let binary = ground.root().join("authsock");
    make_program(&binary, "exec cat \"$2\"", AUTHSOCK);
    ground.binary = binary;
    for dir in [ground.root(), &ground.runtime(), &ground.home()] {
        chown(dir, Some(uid), Some(uid)).unwrap();
    }
    ground
}

/// The daemon of another user, on a socket of this user's.
fn serve_of(ground: &Ground, uid: u32) -> Daemon {
    let listener = bind_private(&ground.init_socket());
    chown(ground.init_socket(), Some(uid), Some(uid)).unwrap();
    Daemon::start(ground, listener, |command| {
        command.uid(uid).gid(uid);
    })
}

/// What somebody hears who says nothing at all, up to the end of the connection.
fn hear(socket: &Path) -> Value {
    let mut line = Line::connect(socket);
    let answer = line.receive().expect("a line for who says nothing");
    assert_eq!(line.receive(), None, "and closed");
    answer
}

/// What somebody hears who says something to a daemon that may have closed already.
fn speak(socket: &Path, opening: &str) -> Value {
    let mut line = Line::connect(socket);
    let _ = line.stream().write_all(opening.as_bytes());
    line.receive().expect("a line, whether or not it was listened to")
}

#[test]
fn another_user_with_a_valid_token_is_refused_before_a_byte_is_read() {
    if skip_unless(is_root(), NEEDS_ROOT) {
        return;
    }
    let ground = Ground::new();
    let daemon = ground.serve();
    let token = ground.token();
    open_all_doors(&ground);
    let socket = ground.init_socket();
    assert_eq!(refusal(&as_user(STRANGER, || hear(&socket))), "peer_denied");
    let log = daemon.wait_for_log("peer_denied");
    let own = std::process::id();
    for words in [format!("process {own} of uid {STRANGER}"), format!("uid {STRANGER} is not uid 0")] {
        assert!(log.contains(&words), "{words}: {log}");
    }
    // The token does not help, by whatever way it is shown; nor do HTTP and noise.
    for opening in [
        format!("{}\n", json!({ "type": "auth", "token": token })),
        format!("{}\n", json!({ "type": "auth", "v": 1, "token_id": "0123456789abcdef", "nonce": token })),
        format!("GET /v1/whoami HTTP/1.1\r\nAuthorization: Bearer {token}\r\n\r\n"),
        "\0\0\0".to_owned(),
    ] {
        let answer = as_user(STRANGER, || speak(&socket, &opening));
        assert_eq!(refusal(&answer), "peer_denied", "{opening}");
    }
    assert!(!daemon.stderr().contains(&token));
    // The same thread trick, the right user: it was the uid and nothing else.
    assert_eq!(as_user(0, || Line::connect(&socket).plain(&token))["success"], true);
}

#[test]
fn the_program_itself_refuses_to_use_another_user_s_socket() {
    if skip_unless(is_root(), NEEDS_ROOT) {
        return;
    }
    let ground = ground_of(OWNER);
    let _daemon = serve_of(&ground, OWNER);
    open_all_doors(&ground);
    mode(&ground.init_socket(), 0o600);
    let token = ground.root().join("stolen");
    put(&token, &ground.token(), 0o600);
    chown(&token, Some(STRANGER), None).unwrap();
    let output = ground
        .authsock(["whoami", "--socket", ground.init_socket().to_str().unwrap()])
        .env("AUTHSOCK_TOKEN_FILE", &token)
        .uid(STRANGER)
        .gid(STRANGER)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", text_of(&output));
    assert!(text_of(&output).contains(&format!("belongs to uid {OWNER}")), "{}", text_of(&output));
}

#[test]
fn root_is_another_user_too_unless_the_policy_names_it() {
    if skip_unless(is_root(), NEEDS_ROOT) {
        return;
    }
    let ground = ground_of(OWNER);
    let daemon = serve_of(&ground, OWNER);
    let socket = ground.init_socket();
    let token = ground.token();
    assert_eq!(ground.token_path().metadata().unwrap().uid(), OWNER);
    assert_eq!(refusal(&hear(&socket)), "peer_denied");
    assert!(
        daemon.wait_for_log("peer_denied").contains("uid 0 is not admitted (policy.allow_root is false)")
    );
    assert_eq!(as_user(OWNER, || Line::connect(&socket).plain(&token))["success"], true);
    drop(daemon);
    std::fs::remove_file(&socket).unwrap();
    ground.configure("[policy]\nallow_root = true\n");
    for path in [".config", ".config/authsock", ".config/authsock/config.toml"] {
        chown(ground.home().join(path), Some(OWNER), Some(OWNER)).unwrap();
    }
    let _daemon = serve_of(&ground, OWNER);
    open_all_doors(&ground);
    let mut line = Line::connect(&socket);
    assert_eq!(line.plain(&token)["session"]["id"], "owner");
    let who = line.call("whoami", &json!({}));
    assert_eq!((&who["result"]["peer"]["uid"], &who["result"]["daemon"]["uid"]), (&json!(0), &json!(OWNER)));
    // It may come; it must still have the token. And nobody else may come for that.
    assert_eq!(refusal(&Line::connect(&socket).plain(&"ab".repeat(32))), "denied");
    assert_eq!(refusal(&as_user(STRANGER, || hear(&socket))), "peer_denied");
}

#[test]
fn the_right_user_without_a_token_is_refused() {
    let ground = Ground::new();
    let daemon = ground.serve();
    let socket = ground.init_socket();
    for (opening, code) in [
        (json!({ "jsonrpc": "2.0", "id": 1, "method": "whoami" }), "malformed"),
        (json!({ "type": "auth" }), "malformed"),
        (json!({ "type": "auth", "token": "ab".repeat(32) }), "denied"),
        (json!({ "type": "auth", "token": "ab".repeat(16) }), "malformed"),
    ] {
        let mut line = Line::connect(&socket);
        line.send_json(&opening);
        assert_eq!(refusal(&line.receive().unwrap()), code, "{opening}");
        assert_eq!(line.receive(), None, "{opening}: closed");
    }
    // One that does not know the token cannot tell a known id from an unknown one.
    let nonce = "cd".repeat(32);
    for token_id in ["0123456789abcdef", "ffffffffffffffff"] {
        let mut line = Line::connect(&socket);
        line.send_json(&json!({ "type": "auth", "v": 1, "token_id": token_id, "nonce": nonce }));
        assert_eq!(line.receive().unwrap()["type"], "challenge");
        line.send_json(&json!({ "type": "auth", "proof": nonce }));
        assert_eq!(refusal(&line.receive().unwrap()), "denied");
    }
    daemon.wait_for_log("no session has this token id");
}

#[test]
fn the_user_that_stands_for_all_without_a_number_is_never_let_in() {
    if skip_unless(is_root(), NEEDS_ROOT) {
        return;
    }
    let ground = Ground::new();
    let daemon = ground.serve();
    open_all_doors(&ground);
    let (socket, token) = (ground.init_socket(), ground.token());
    assert_eq!(refusal(&as_user(NOBODY, || hear(&socket))), "peer_denied");
    assert!(daemon.wait_for_log("peer_denied").contains("overflow uid 65534"));
    let opening = format!("{}\n", json!({ "type": "auth", "token": token }));
    assert_eq!(refusal(&as_user(NOBODY, || speak(&socket, &opening))), "peer_denied");
    drop(daemon);
    // Not even as the user whose daemon it is: strangers of that number cannot be told apart.
    let ground = ground_of(NOBODY);
    let _daemon = serve_of(&ground, NOBODY);
    open_all_doors(&ground);
    let socket = ground.init_socket();
    assert_eq!(refusal(&as_user(NOBODY, || hear(&socket))), "peer_denied");
}

/// Whether a user may make user namespaces here.
fn may_unshare(uid: Option<u32>, options: &[&str]) -> bool {
    let mut command = Command::new("unshare");
    command.args(options).arg("true").stderr(Stdio::null());
    if let Some(uid) = uid {
        command.uid(uid).gid(uid);
    }
    command.status().is_ok_and(|status| status.success())
}

const NO_NAMESPACES: &str = "user namespaces are not allowed here";

#[test]
fn a_daemon_in_a_user_namespace_refuses_all_whom_its_kernel_cannot_name() {
    if skip_unless(is_root(), NEEDS_ROOT) || skip_unless(may_unshare(Some(OWNER), &["-r"]), NO_NAMESPACES) {
        return;
    }
    let mut ground = ground_of(OWNER);
    // exec keeps the pid, so that the sockets are still meant for the daemon.
    let wrapper = ground.root().join("in-namespace");
    let text = format!("#!/bin/sh\nexec unshare -r '{}' \"$@\"", ground.binary.display());
    make_program(&wrapper, "printf '%s\\n' \"$2\"", &text);
    let binary = std::mem::replace(&mut ground.binary, wrapper);
    let daemon = serve_of(&ground, OWNER);
    ground.binary = binary;
    open_all_doors(&ground);
    let (socket, token) = (ground.init_socket(), ground.token());
    for uid in [0, STRANGER, NOBODY] {
        assert_eq!(refusal(&as_user(uid, || hear(&socket))), "peer_denied", "uid {uid}");
    }
    let log = daemon.wait_for_log("overflow uid 65534");
    assert!(log.contains("cannot be told apart"), "{log}");
    let mut line = as_user(OWNER, || Line::connect(&socket));
    assert_eq!(line.plain(&token)["success"], true);
    let who = line.call("whoami", &json!({}));
    assert_eq!(who["result"]["peer"]["uid"], 0, "its one user is number 0 in there");
}

#[test]
fn a_client_in_a_user_namespace_of_its_own_is_who_it_is_outside() {
    if skip_unless(may_unshare(None, &["-Ur"]), NO_NAMESPACES) {
        return;
    }
    let ground = Ground::new();
    let _daemon = ground.serve();
    let uid = nix::unistd::geteuid().as_raw();
    let output =
        ground.command("unshare").arg("-Ur").arg(&ground.binary).args(["whoami", "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", text_of(&output));
    let who: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&who["peer"]["uid"], &who["session"]["id"]), (&json!(uid), &json!("owner")));
}

#[test]
fn being_root_in_a_user_namespace_makes_nobody_root() {
    if skip_unless(is_root(), NEEDS_ROOT) || skip_unless(may_unshare(Some(STRANGER), &["-Ur"]), NO_NAMESPACES)
    {
        return;
    }
    // One that every user may run.
    const PYTHON: &str = "/usr/bin/python3";
    if skip_unless(Path::new(PYTHON).exists(), "there is no /usr/bin/python3") {
        return;
    }
    let ground = ground_of(0);
    let daemon = ground.serve();
    open_all_doors(&ground);
    let token = ground.root().join("stolen");
    put(&token, &ground.token(), 0o600);
    chown(&token, Some(STRANGER), None).unwrap();
    mode(&ground.init_socket(), 0o666);
    let script = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.makefile().readline())";
    let output = ground
        .command("unshare")
        .args(["-Ur", PYTHON, "-c", script])
        .arg(ground.init_socket())
        .uid(STRANGER)
        .gid(STRANGER)
        .output()
        .unwrap();
    assert!(text_of(&output).contains("peer_denied"), "{}", text_of(&output));
    assert!(daemon.wait_for_log("peer_denied").contains(&format!("uid {STRANGER} is not uid 0")));
}

#[test]
fn a_client_in_another_pid_namespace_is_known_by_its_inode() {
    if skip_unless(may_unshare(None, &["-Urpf"]), NO_NAMESPACES) {
        return;
    }
    let ground = Ground::new();
    let _daemon = ground.serve();
    let output = ground
        .command("unshare")
        .arg("-Urpf")
        .arg(&ground.binary)
        .args(["whoami", "--json"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text_of(&output));
    let who: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        who["peer"]["pid"].as_u64().unwrap() > 1,
        "its pid out here, not the 1 that it has in there: {who}"
    );
    assert!(who["peer"]["pidfs"].is_u64());
    assert_eq!(who["handshake"], "proof");
    // A session goes on in there: the tree is the kernel's, whatever the numbers are.
    let output = ground
        .authsock(["run", "--name", "boxed", "--", "unshare", "-Urpf"])
        .arg(&ground.binary)
        .args(["whoami", "--json"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text_of(&output));
    let who: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(who["session"]["name"], "boxed");
}

#[test]
fn a_client_without_a_pid_in_the_daemon_s_namespace_is_known_by_its_pidfd() {
    if skip_unless(may_unshare(None, &["-Urpf", "--kill-child"]), NO_NAMESPACES) {
        return;
    }
    let ground = Ground::new();
    // A daemon in a pid namespace of its own, started on demand there; a FIFO ends it.
    let fifo = ground.root().join("end");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let script = "\"$0\" whoami && echo up && read end <\"$1\"";
    let mut inside = ground
        .command("unshare")
        .args(["-Urpf", "--kill-child", "sh", "-c", script])
        .arg(&ground.binary)
        .arg(&fifo)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(inside.stdout.take().unwrap()));
    assert!(lines.any(|line| line.unwrap() == "up"));
    let who = ground.json(["whoami"]);
    assert_eq!((&who["peer"]["pid"], &who["session"]["id"]), (&json!(0), &json!("owner")));
    assert!(who["peer"]["pidfs"].is_u64());
    // Where it cannot be known whether somebody is below a leader, nobody is let in on it.
    let mut command = ground.authsock(["run", "--"]);
    let output = command.arg(&ground.binary).args(["whoami"]).output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", text_of(&output));
    assert!(text_of(&output).contains("binding"), "{}", text_of(&output));
    assert!(ground.log().contains("or that cannot be known"), "{}", ground.log());
    std::fs::File::options().write(true).open(&fifo).unwrap().write_all(b"\n").unwrap();
    inside.wait().unwrap();
}

#[test]
fn the_same_numeric_uid_in_other_namespaces_is_neither_the_same_user_nor_enough() {
    if skip_unless(may_unshare(None, &["-Urpfm"]), NO_NAMESPACES) {
        return;
    }
    let ground = Ground::new();
    let daemon = ground.serve();
    // A container of the same user, root in there: it has the socket, and not the owner's directory.
    let inside = ground.root().join("inside.sock");
    std::fs::File::create(&inside).unwrap();
    let script = "mount --bind \"$1\" \"$2\" && mount -t tmpfs tmpfs \"$3\" && shift 3 && exec \"$@\"";
    let contained = |with: &[&str]| {
        let mut command = ground.command("unshare");
        command.args(["-Urpfm", "sh", "-c", script, "sh"]);
        command.args([&ground.init_socket(), &inside, &ground.state(), &ground.binary]);
        command.args(["whoami", "--json", "--socket"]).arg(&inside).args(with).output().unwrap()
    };
    let output = contained(&[]);
    assert_eq!(output.status.code(), Some(4), "{}", text_of(&output));
    assert!(text_of(&output).contains("is not there"), "{}", text_of(&output));
    let wrong = ground.root().join("wrong");
    put(&wrong, &"ab".repeat(32), 0o600);
    let output = contained(&["--token-file", wrong.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(4), "{}", text_of(&output));
    assert!(text_of(&output).contains("stale token"), "{}", text_of(&output));
    // It was the token that was wanting, and nothing else.
    let copy = ground.root().join("copy");
    put(&copy, &ground.token(), 0o600);
    let output = contained(&["--token-file", copy.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text_of(&output));

    // A container of another user, in which its number is the daemon's: not even the token helps.
    const PYTHON: &str = "/usr/bin/python3";
    if skip_unless(is_root(), NEEDS_ROOT)
        || skip_unless(may_unshare(Some(STRANGER), &["-Urpfm"]), NO_NAMESPACES)
        || skip_unless(Path::new(PYTHON).exists(), "there is no /usr/bin/python3")
    {
        return;
    }
    open_all_doors(&ground);
    let script = "import os, socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(os.getuid(), s.makefile().readline())";
    let output = ground
        .command("unshare")
        .args(["-Urpfm", PYTHON, "-c", script])
        .arg(ground.init_socket())
        .current_dir("/")
        .uid(STRANGER)
        .gid(STRANGER)
        .output()
        .unwrap();
    let heard = String::from_utf8_lossy(&output.stdout);
    assert!(heard.starts_with("0 ") && heard.contains("peer_denied"), "{}", text_of(&output));
    assert!(daemon.wait_for_log("peer_denied").contains(&format!("uid {STRANGER} is not uid 0")));
}

/// The names of the sockets that a process holds, as the kernel lists them, each once: a connection has its listener's.
/// Abstract ones begin with @.
fn names_of_sockets(pid: &str) -> BTreeSet<String> {
    let held: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter_map(|to| Some(to.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    assert!(!held.is_empty());
    let all = std::fs::read_to_string("/proc/net/unix").unwrap();
    // Number, references, protocol, flags, type, state, inode, and the name if it has one.
    let rows = all.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| held.iter().any(|inode| row.get(6) == Some(&inode.as_str())))
        .filter_map(|row| row.get(7).map(|name| (*name).to_owned()))
        .collect()
}

#[test]
fn no_socket_of_a_daemon_is_abstract_and_none_can_be_named() {
    let ground = Ground::new();
    // Started by an init system, and by a client.
    let daemon = ground.serve();
    let names = names_of_sockets(&daemon.child.id().to_string());
    assert_eq!(names, [ground.init_socket().to_str().unwrap().to_owned()].into());
    let ground = Ground::new();
    let pid = ground.json(["whoami"])["daemon"]["pid"].to_string();
    assert_eq!(names_of_sockets(&pid), [ground.ondemand_socket().to_str().unwrap().to_owned()].into());
    let output = ground.authsock(["whoami"]).env("AUTHSOCK_SOCKET", "@authsock").output().unwrap();
    assert!(!output.status.success(), "{}", text_of(&output));
    let named = ["AUTHSOCK_SOCKET", "AUTHSOCK_TOKEN_FILE"];
    let paths = ["@authsock".into(), ground.token_path()];
    let output = ground.authsock(["whoami"]).envs(named.into_iter().zip(paths)).output().unwrap();
    assert!(text_of(&output).contains("abstract sockets have no permissions"), "{}", text_of(&output));
}

/// A process that connects, says something, and ends before the daemon can look at it.
fn hit_and_run(ground: &Ground, daemon: &Daemon, words: &str) -> u32 {
    daemon.signal(Signal::SIGSTOP);
    let socket = ground.init_socket();
    let address = nix::sys::socket::UnixAddr::new(&socket).unwrap();
    let words = words.as_bytes().to_vec();
    let mut command = ground.command("true");
    // SAFETY: only system calls between fork and exec, on what was made before.
    unsafe {
        command.pre_exec(move || {
            let fd = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0);
            nix::sys::socket::connect(fd, &address)?;
            if libc::write(fd, words.as_ptr().cast(), words.len()) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let mut child = command.spawn().unwrap();
    let pid = child.id();
    assert!(child.wait().unwrap().success());
    daemon.signal(Signal::SIGCONT);
    pid
}

#[test]
fn a_peer_that_is_gone_is_refused_as_gone_and_its_words_are_not_acted_upon() {
    let ground = Ground::new();
    let daemon = ground.serve();
    let token = ground.token();
    let create = json!({ "jsonrpc": "2.0", "id": 1, "method": "daemon.retire" });
    for opening in [
        format!("{}\n{create}\n", json!({ "type": "auth", "token": token })),
        format!(
            "{}\n",
            json!({ "type": "auth", "v": 1, "token_id": "0123456789abcdef", "nonce": "cd".repeat(32) })
        ),
    ] {
        let pid = hit_and_run(&ground, &daemon, &opening);
        let log = daemon.wait_for_log(&format!("refused process {pid} of uid"));
        assert!(log.contains("peer_gone") && log.contains("has ended"), "{log}");
    }
    assert_eq!(ground.json(["whoami"])["daemon"]["pid"], daemon.child.id(), "it was not retired");
}

#[test]
fn a_descriptor_that_was_handed_on_belongs_to_the_one_who_connected() {
    if skip_unless(is_root(), NEEDS_ROOT) {
        return;
    }
    let ground = Ground::new();
    let _daemon = ground.serve();
    open_all_doors(&ground);
    let (socket, token) = (ground.init_socket(), ground.token());
    // A stranger's connection is a stranger's in whoever's hands, and the right user's stays the right user's.
    let theirs = as_user(STRANGER, || Line::connect(&socket));
    assert!(theirs.stream().as_raw_fd() > 2);
    let mut theirs = theirs;
    assert_eq!(refusal(&theirs.receive().unwrap()), "peer_denied");
    let mut ours = Line::connect(&socket);
    assert_eq!(as_user(STRANGER, move || ours.plain(&token))["success"], true);
}

#[test]
fn a_user_that_asks_about_tokens_may_do_that_and_nothing_else() {
    if skip_unless(is_root(), NEEDS_ROOT) {
        return;
    }
    const PROXY: u32 = 54_322;
    let ground = ground_of(OWNER);
    as_user(OWNER, || ground.configure(&format!("[policy]\nverifiers = [{PROXY}]\n")));
    let daemon = serve_of(&ground, OWNER);
    let token = ground.token();
    open_all_doors(&ground);
    let socket = ground.init_socket();
    let ask = |uid: u32, line: &str, fields: &str| {
        as_user(uid, || {
            let mut http = Http::connect(&socket);
            http.send(&format!("{line} HTTP/1.1\r\nHost: x\r\n{fields}\r\n"));
            http.receive().map(|answer| (answer.status, answer.field("authsock-session-id").to_owned()))
        })
    };
    let shown = format!("Authorization: Bearer {token}\r\n");
    assert_eq!(ask(PROXY, "GET /v1/verify", &shown), Some((200, "owner".to_owned())));
    assert_eq!(ask(PROXY, "GET /v1/verify", "").unwrap().0, 401);
    let body = format!("token={token}");
    let form =
        format!("Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n", body.len());
    let answer = as_user(PROXY, || {
        let mut http = Http::connect(&socket);
        http.send(&format!("POST /v1/introspect HTTP/1.1\r\nHost: x\r\n{form}\r\n{body}"));
        http.receive().unwrap()
    });
    assert!(answer.status == 200 && answer.body.contains("\"active\":true"), "{answer:?}");
    // Nothing else, also with a token that is good for its own user.
    for line in ["GET /v1/whoami", "GET /metrics", "GET /v1/events", "GET /openapi.json"] {
        assert_eq!(ask(PROXY, line, &shown).unwrap().0, 403, "{line}");
    }
    as_user(PROXY, || {
        let mut line = Line::connect(&socket);
        assert_eq!(refusal(&line.plain(&token)), "peer_denied");
    });
    // Who is not named hears nothing of it, and not even the owner asks without a token.
    as_user(STRANGER, || assert_eq!(refusal(&hear(&socket)), "peer_denied"));
    assert_eq!(ask(OWNER, "GET /v1/verify", &shown).unwrap().0, 401);
    drop(daemon);
}

#[test]
fn nobody_is_vouched_for_whom_a_reload_has_taken_out_of_the_policy() {
    if skip_unless(is_root(), NEEDS_ROOT) {
        return;
    }
    // Every machine has this user, in a group of its own (hier of Debian, Fedora, Arch: uid 1, gid 1).
    const IN_A_GROUP: u32 = 1;
    let listed = std::fs::read_to_string("/etc/passwd").unwrap();
    let in_its_group = |line: &str| line.split(':').skip(2).take(2).eq(["1", "1"]);
    if skip_unless(listed.lines().any(in_its_group), "there is no user 1 in the group 1") {
        return;
    }
    let ground = Ground::new();
    let config = ground.root().join("system.toml");
    let configure = |policy: &str| put(&config, &format!("[policy]\n{policy}\n"), 0o600);
    configure(&format!("users = [{OWNER}]\ngroups = [{IN_A_GROUP}]"));
    let (binary, path) = (ground.binary.display(), config.display());
    let script = format!("LISTEN_PID=$$ exec '{binary}' --system --config '{path}' serve");
    let listener = bind_private(&ground.init_socket());
    open_all_doors(&ground);
    let daemon = Daemon::start(&ground, listener, |command| {
        command.env("INSTEAD", &script);
    });
    let socket = ground.init_socket();
    let asker = std::fs::read_to_string(ground.state().join("token")).unwrap();
    let token_of = |uid: u32| {
        as_user(uid, || {
            let mut line = Line::connect(&socket);
            let (id, nonce) = ("0".repeat(16), "0".repeat(64));
            line.send_json(&json!({ "type": "auth", "v": 1, "token_id": id, "nonce": nonce }));
            assert_eq!(line.receive().unwrap()["type"], "challenge");
        });
        std::fs::read_to_string(ground.state().join(format!("users/{uid}/token"))).unwrap()
    };
    let tokens = [OWNER, IN_A_GROUP].map(token_of);
    // Whom verify and introspection vouch for, of these two.
    let vouched = || {
        tokens.each_ref().map(|token| {
            let mut http = Http::connect(&socket);
            let asks = format!("Host: x\r\nAuthsock-Asker: Bearer {asker}\r\n");
            http.send(&format!("GET /v1/verify HTTP/1.1\r\n{asks}Authorization: Bearer {token}\r\n\r\n"));
            let verified = http.receive().unwrap();
            let body = format!("token={token}");
            let form = "Content-Type: application/x-www-form-urlencoded\r\nContent-Length";
            http.send(&format!("POST /v1/introspect HTTP/1.1\r\n{asks}{form}: {}\r\n\r\n{body}", body.len()));
            let told: Value = serde_json::from_str(&http.receive().unwrap().body).unwrap();
            let is_good = verified.status == 200;
            assert!(is_good || verified.status == 401, "{verified:?}");
            assert_eq!(told["active"], is_good, "{told}");
            assert!(is_good || told == json!({ "active": false }), "{told}");
            is_good
        })
    };
    assert_eq!(vouched(), [true, true]);
    for (policy, expected) in [
        (format!("users = [{OWNER}]"), [true, false]),
        (format!("groups = [{IN_A_GROUP}, {STRANGER}]"), [false, true]),
        (format!("groups = [{OWNER}, {STRANGER}]"), [false, false]),
        (String::new(), [false, false]),
        // They are not forgotten.
        (format!("users = [{OWNER}, {IN_A_GROUP}]"), [true, true]),
    ] {
        configure(&policy);
        daemon.signal(Signal::SIGHUP);
        daemon.wait_for("RELOADING=1");
        daemon.wait_for("READY=1");
        assert_eq!(vouched(), expected, "{policy}");
    }
}

#[test]
fn whoever_is_refused_again_and_again_does_not_hide_another_user_s_refusal_from_the_owner() {
    if skip_unless(is_root(), NEEDS_ROOT) {
        return;
    }
    let ground = Ground::new();
    let _daemon = ground.serve();
    let mut owner = Line::connect(&ground.init_socket());
    assert_eq!(owner.plain(&ground.token())["success"], true);
    let subscribed = owner.call("events.subscribe", &json!({ "subjects": ["$authsock.auth.refused"] }));
    assert!(subscribed["result"].is_object(), "{subscribed}");
    open_all_doors(&ground);
    let socket = ground.init_socket();
    for uid in [STRANGER; 30].into_iter().chain([NOBODY + 1]) {
        assert_eq!(refusal(&as_user(uid, || hear(&socket))), "peer_denied");
    }
    let told: Vec<u64> =
        (0..6).map(|_| owner.receive().unwrap()["params"]["data"]["uid"].as_u64().unwrap()).collect();
    assert_eq!(told, [[u64::from(STRANGER); 5].to_vec(), vec![u64::from(NOBODY) + 1]].concat());
}
