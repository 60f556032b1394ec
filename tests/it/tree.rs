//! Where a session's token is good and where it is not: inside and outside of its leader's tree, below other sessions, after the end.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::ground::{Daemon, Ground, Line, bind_private, has, is_root, put, refusal, skip_unless, text_of};

/// The program of a session: says who it is, then does what it is told, line by line. What a line
/// prints comes back with the line's exit code.
pub const OBEDIENT: &str = r#"
printf '%s %s\n' $$ "$AUTHSOCK_TOKEN_FILE"
while IFS= read -r line; do eval "$line" </dev/null 2>&1; printf '\n=%s\n' $?; done
"#;

/// A living session with a shell in it.
pub struct Inside {
    pub run: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    /// The shell's pid.
    shell: u32,
    pub token_file: PathBuf,
}

impl Inside {
    pub fn begin(ground: &Ground, options: &[&str]) -> Inside {
        Inside::begin_with(ground.authsock(["run"]).args(options).args(["--", "sh", "-c", OBEDIENT]))
    }

    pub fn begin_with(command: &mut Command) -> Inside {
        let mut run = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = run.stdin.take();
        let mut stdout = BufReader::new(run.stdout.take().unwrap());
        let mut first = String::new();
        stdout.read_line(&mut first).unwrap();
        let (shell, token_file) =
            first.trim_end().split_once(' ').unwrap_or_else(|| panic!("no session: {first:?}"));
        Inside { run, stdin, stdout, shell: shell.parse().unwrap(), token_file: token_file.into() }
    }

    /// Has the shell do something; returns its exit code and what it printed, errors too.
    pub fn tell(&mut self, line: &str) -> (i32, String) {
        assert!(!line.contains('\n'));
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
        let mut said = String::new();
        loop {
            let start = said.len();
            assert_ne!(self.stdout.read_line(&mut said).unwrap(), 0, "the shell has ended: {said}");
            if let Some(code) = said[start..].strip_prefix('=') {
                let code = code.trim_end().parse().unwrap();
                said.truncate(start.saturating_sub(1));
                return (code, said);
            }
        }
    }

    /// Has the shell print JSON.
    pub fn json(&mut self, line: &str) -> Value {
        let (code, said) = self.tell(line);
        assert_eq!(code, 0, "{line}: {said}");
        serde_json::from_str(said.trim()).unwrap_or_else(|_| panic!("{line}: {said}"))
    }

    pub fn whoami(&mut self) -> Value {
        self.json("authsock whoami --json")
    }

    pub fn id(&mut self) -> String {
        self.whoami()["session"]["id"].as_str().unwrap().to_owned()
    }

    pub fn token(&self) -> String {
        std::fs::read_to_string(&self.token_file).unwrap()
    }

    /// Lets the program come to its own end, by the end of its input.
    pub fn close(&mut self) {
        self.stdin.take();
        self.run.wait().unwrap();
    }

    /// Lets the program come to its own end; returns how it ended.
    pub fn end(mut self) -> i32 {
        self.stdin.take();
        self.run.wait().unwrap().code().unwrap()
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.stdin.take();
        let _ = self.run.kill();
        let _ = self.run.wait();
    }
}

fn code_of(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{}", text_of(output)))
}

fn assert_refused(output: &Output, word: &str) {
    assert_eq!(code_of(output), 4, "{}", text_of(output));
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(words.contains(word), "{word}: {}", text_of(output));
    assert!(output.stdout.is_empty(), "{}", text_of(output));
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Makes a FIFO: whoever waits for a word there, waits for an event and not for a time.
fn fifo(ground: &Ground, name: &str) -> String {
    let fifo = ground.root().join(name);
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    path(&fifo).to_owned()
}

fn open_for_writing(fifo: &str) -> std::fs::File {
    std::fs::File::options().write(true).open(fifo).unwrap()
}

fn served() -> (Ground, Daemon) {
    let ground = Ground::new();
    let daemon = ground.serve();
    (ground, daemon)
}

#[test]
fn a_stolen_token_is_refused_outside_of_its_leader_s_tree_and_the_log_names_who_and_why() {
    let (ground, daemon) = served();
    let mut inside = Inside::begin(&ground, &["--name", "robbed"]);
    let id = inside.id();
    let thief = ground
        .authsock(["whoami", "--token-file", path(&inside.token_file)])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = thief.id();
    assert_refused(&thief.wait_with_output().unwrap(), "binding");
    let log = daemon.wait_for_log(&format!("refused process {pid} of uid"));
    for word in [&format!("session {id}"), "binding", "neither the session's leader nor below it"] {
        assert!(log.contains(word), "{word}: {log}");
    }
    // The plain handshake is no way around.
    let mut line = Line::connect(&ground.init_socket());
    assert_eq!(refusal(&line.plain(&inside.token())), "binding");
    let log = daemon.wait_for_log(&format!("refused process {} of uid", std::process::id()));
    assert!(log.contains(&id) && !log.contains(&inside.token()), "{log}");
    // Nor does another session's tree do.
    let mut other = Inside::begin(&ground, &["--name", "thief"]);
    let (code, said) = other.tell(&format!("authsock --token-file '{}' whoami", path(&inside.token_file)));
    assert_eq!((code, said.contains("binding")), (4, true), "{said}");
    assert_eq!(inside.whoami()["session"]["name"], "robbed", "and the session is unharmed");
}

#[test]
fn children_and_whatever_they_leave_behind_stay_in_the_session() {
    let (ground, _daemon) = served();
    let mut inside = Inside::begin(&ground, &["--name", "family"]);
    let id = inside.id();
    let mut near = vec![
        "authsock whoami --json",
        "sh -c 'authsock whoami --json; exit $?'",
        "sh -c 'sh -c \"sh -c \\\"authsock whoami --json; exit 0\\\"; exit 0\"; exit 0'",
        "echo \"$(authsock whoami --json)\"",
        "( ( authsock whoami --json ) )",
        "true | authsock whoami --json | cat",
        "env -i AUTHSOCK_TOKEN_FILE=\"$AUTHSOCK_TOKEN_FILE\" AUTHSOCK_SOCKET=\"$AUTHSOCK_SOCKET\" \"$(command -v authsock)\" whoami --json",
    ];
    if has("nohup") {
        near.push("nohup authsock whoami --json 2>/dev/null");
    }
    if has("setsid") {
        near.push("setsid --wait authsock whoami --json");
    }
    for line in near {
        assert_eq!(inside.json(line)["session"]["id"], id.as_str(), "{line}");
    }
    // Those whose parents are gone: the shell has reaped the one in between before it says go.
    let leader = inside.run.id().to_string();
    let (go, out) = (fifo(&ground, "go"), fifo(&ground, "out"));
    let orphan = format!(
        "sh -c 'read go <{go}; {{ cut -d\" \" -f4 /proc/$$/stat; authsock whoami --json; }} >{out} 2>&1; exit 0'"
    );
    let mut far = vec![
        ("double fork", format!("( {orphan} & )")),
        ("triple fork", format!("( ( ( {orphan} & ) & ) )")),
    ];
    if has("nohup") {
        far.push(("nohup", format!("( nohup {orphan} >/dev/null 2>&1 & )")));
    }
    if has("setsid") {
        far.push(("setsid", format!("( setsid {orphan} & )")));
        far.push(("daemonised", format!("( setsid sh -c '{} & ' )", orphan.replace('\'', "'\\''"))));
    }
    for (name, orphan) in far {
        inside.tell(&orphan);
        let (_, said) = inside.tell(&format!("echo >{go}; cat {out}"));
        let (parent, who) = said.trim().split_once('\n').unwrap_or_else(|| panic!("{name}: {said}"));
        let who: Value = serde_json::from_str(who).unwrap_or_else(|_| panic!("{name}: {said}"));
        assert_eq!(who["session"]["id"], id.as_str(), "{name}");
        if name != "triple fork" {
            assert_eq!(parent, leader, "{name}: `run` is the parent of the orphaned");
        }
    }
}

#[test]
fn the_owner_s_token_is_refused_below_a_leader_also_when_its_session_ended_before_it() {
    let (ground, daemon) = served();
    let mut inside = Inside::begin(&ground, &["--name", "ward"]);
    let id = inside.id();
    let owner = ground.token_path();
    let attempts = [
        format!("authsock --token-file '{}' whoami", path(&owner)),
        "env -u AUTHSOCK_SOCKET -u AUTHSOCK_TOKEN_FILE authsock whoami".to_owned(),
        format!("AUTHSOCK_TOKEN_FILE='{}' authsock whoami", path(&owner)),
        format!("AUTHSOCK_TOKEN=\"$(cat '{}')\" authsock whoami", path(&owner)),
        format!("AUTHSOCK_TOKEN_FD=7 authsock whoami 7<'{}'", path(&owner)),
        "env -u AUTHSOCK_SOCKET -u AUTHSOCK_TOKEN_FILE authsock session list".to_owned(),
        format!("authsock --token-file '{}' session revoke {id}", path(&owner)),
        format!("sh -c '( authsock --token-file \"{}\" whoami )'", path(&owner)),
    ];
    for attempt in &attempts {
        let (code, said) = inside.tell(attempt);
        assert_eq!((code, said.contains("binding")), (4, true), "{attempt}: {said}");
    }
    let log = daemon.wait_for_log("the owner's token was used at or below a session's leader");
    assert!(log.contains("session owner") && log.contains("binding"), "{log}");
    assert_eq!(inside.whoami()["session"]["id"], id.as_str());
    assert_eq!(ground.json(["whoami"])["session"]["id"], "owner", "fine outside");
    // A session that ends before its leader, were it by its own doing, sets nobody free.
    assert_eq!(inside.tell("authsock call session.revoke").0, 0);
    for attempt in &attempts {
        let (code, said) = inside.tell(attempt);
        assert_eq!((code, said.contains("binding")), (4, true), "{attempt}: {said}");
    }
}

#[test]
fn a_session_that_expires_sets_nobody_free() {
    let (ground, _daemon) = served();
    let mut inside = Inside::begin(&ground, &["--ttl", "1", "--allow", "session:self"]);
    // The session's own connection closes when its time is up.
    let (code, said) = inside
        .tell("authsock whoami >/dev/null; while authsock whoami >/dev/null 2>&1; do :; done; echo over");
    assert_eq!((code, said.trim()), (0, "over"));
    let (code, said) = inside.tell("env -u AUTHSOCK_SOCKET -u AUTHSOCK_TOKEN_FILE authsock whoami");
    assert_eq!((code, said.contains("binding")), (4, true), "{said}");
}

#[test]
fn below_an_inner_leader_the_outer_session_s_token_is_worth_nothing() {
    let (ground, _daemon) = served();
    let mut outer = Inside::begin(&ground, &["--name", "outer"]);
    let outer_id = outer.id();
    let (code, said) = outer.tell(
        "outer=$AUTHSOCK_TOKEN_FILE authsock run --name inner --allow session:self -- \
         sh -c 'authsock whoami --json; AUTHSOCK_TOKEN_FILE=$outer authsock whoami 2>&1; echo $?'",
    );
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("\"inner\"") && said.contains("binding") && said.trim().ends_with('4'), "{said}");
    assert_eq!(outer.whoami()["session"]["id"], outer_id.as_str(), "the outer one goes on");
}

/// A case, and what spoils a command's source of a token in it.
type Bad<'a> = (&'static str, Box<dyn Fn(&mut Command) -> &mut Command + 'a>);

#[test]
fn a_bad_source_of_a_token_never_ends_in_the_owner_s() {
    let (ground, _daemon) = served();
    let root = ground.root().to_path_buf();
    let good = ground.token();
    let file = |name: &str, text: &str, mode: u32| {
        put(&root.join(name), text, mode);
        root.join(name)
    };
    // Wherever the owner's own token shows up, only its source is bad: it must not be used either.
    let mut files: Vec<(&'static str, PathBuf)> = vec![
        ("missing", root.join("missing")),
        ("empty name", PathBuf::new()),
        ("empty", file("empty", "", 0o600)),
        ("no token", file("words", "not a token at all", 0o600)),
        ("too short", file("short", &good[1..], 0o600)),
        ("too long", file("long", &format!("{good}0"), 0o600)),
        ("two lines", file("two", &format!("{good}\n{good}\n"), 0o600)),
        ("blank before", file("blank", &format!(" {good}"), 0o600)),
        ("all may read", file("wide", &good, 0o644)),
        ("its group may read", file("group", &good, 0o640)),
        ("others may write", file("write", &good, 0o602)),
        ("a directory", root.clone()),
        ("a device", "/dev/zero".into()),
        ("a file of /proc", "/proc/self/environ".into()),
        ("memory", "/proc/self/mem".into()),
        ("below a file", file("plain", "x", 0o600).join("token")),
        ("a long name", root.join("n".repeat(300))),
        // Well-formed, but nobody's: refused, and that ends the search too.
        ("unknown", file("unknown", &"ab".repeat(32), 0o600)),
    ];
    std::os::unix::fs::symlink(ground.token_path(), root.join("link")).unwrap();
    files.push(("a link to the owner's", root.join("link")));
    nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    files.push(("a FIFO", root.join("fifo")));
    files.push(("a socket", ground.init_socket()));
    let open = root.join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).unwrap();
    put(&open.join("token"), &good, 0o600);
    files.push(("in a directory that others may write", open.join("token")));
    if !skip_unless(is_root(), "only root can give a file away: another's token file is not tried") {
        let theirs = file("theirs", &good, 0o600);
        std::os::unix::fs::chown(&theirs, Some(54_321), None).unwrap();
        files.push(("another's", theirs));
    }
    let mut cases: Vec<Bad<'_>> = Vec::new();
    for (name, file) in &files {
        cases.push((name, Box::new(move |command| command.env("AUTHSOCK_TOKEN_FILE", file))));
        if !file.as_os_str().is_empty() {
            cases.push((name, Box::new(move |command| command.arg("--token-file").arg(file))));
        }
    }
    let texts: [&'static str; 8] = ["", "x", " ", "0", "ab", "none", "off", "owner"];
    for text in texts {
        cases.push((text, Box::new(move |command| command.env("AUTHSOCK_TOKEN", text))));
        // A bad token is not mended by a good file beside it.
        let owner = ground.token_path();
        cases.push((
            text,
            Box::new(move |command| command.env("AUTHSOCK_TOKEN", text).env("AUTHSOCK_TOKEN_FILE", &owner)),
        ));
    }
    let numbers: [&'static str; 10] = ["", "x", "-1", "9999", "0", "1", "2", "3", "99999999999", "0x3"];
    for number in numbers {
        cases.push((number, Box::new(move |command| command.env("AUTHSOCK_TOKEN_FD", number))));
        let missing = root.join("missing");
        cases.push((
            number,
            Box::new(move |command| {
                command.env("AUTHSOCK_TOKEN_FD", number).env("AUTHSOCK_TOKEN_FILE", &missing)
            }),
        ));
    }
    for (name, spoil) in &cases {
        for with_socket in [false, true] {
            let mut command = ground.authsock(["whoami"]);
            if with_socket {
                command.env("AUTHSOCK_SOCKET", ground.init_socket());
            }
            spoil(&mut command);
            let output = command.output().unwrap();
            assert_eq!(code_of(&output), 4, "{name}: {command:?}: {}", text_of(&output));
            assert!(output.stdout.is_empty(), "{name}: {command:?}: {}", text_of(&output));
            assert!(
                !text_of(&output).contains(&good[..16]),
                "{name}: the token is told: {}",
                text_of(&output)
            );
        }
    }
    let named = ground.authsock(["whoami"]).env("AUTHSOCK_SOCKET", ground.init_socket()).output().unwrap();
    assert_refused(&named, "no token is named");
    let named = ground.authsock(["whoami", "--socket", path(&ground.init_socket())]).output().unwrap();
    assert_eq!(code_of(&named), 0, "a socket on the command line names no session: {}", text_of(&named));
}

#[test]
fn a_descriptor_gives_way_to_the_file_beside_it_and_to_nothing_else() {
    let (ground, _daemon) = served();
    let mut inside = Inside::begin(&ground, &["--name", "heir"]);
    let id = inside.id();
    put(&ground.root().join("garbage"), "garbage", 0o600);
    put(&ground.root().join("empty"), "", 0o600);
    let (garbage, empty) = (ground.root().join("garbage"), ground.root().join("empty"));
    for lost in [
        "AUTHSOCK_TOKEN_FD=9 authsock whoami --json".to_owned(),
        "AUTHSOCK_TOKEN_FD=9 authsock whoami --json 9<&-".to_owned(),
        "AUTHSOCK_TOKEN_FD=x authsock whoami --json".to_owned(),
        "AUTHSOCK_TOKEN_FD=0 authsock whoami --json".to_owned(),
        format!("AUTHSOCK_TOKEN_FD=9 authsock whoami --json 9<'{}'", path(&garbage)),
        format!("AUTHSOCK_TOKEN_FD=9 authsock whoami --json 9<'{}'", path(&empty)),
        "AUTHSOCK_TOKEN_FD=9 authsock whoami --json 9</".to_owned(),
        "true | AUTHSOCK_TOKEN_FD=9 authsock whoami --json 9<&0".to_owned(),
        // A good descriptor, at its start, read to its end, and as a pipe.
        "AUTHSOCK_TOKEN_FD=9 authsock whoami --json 9<\"$AUTHSOCK_TOKEN_FILE\"".to_owned(),
        "{ cat <&9 >/dev/null; AUTHSOCK_TOKEN_FD=9 authsock whoami --json; } 9<\"$AUTHSOCK_TOKEN_FILE\""
            .to_owned(),
    ] {
        assert_eq!(inside.json(&lost)["session"]["id"], id.as_str(), "{lost}");
        let alone = lost.replace("AUTHSOCK_TOKEN_FD", "env -u AUTHSOCK_TOKEN_FILE AUTHSOCK_TOKEN_FD");
        let (code, said) = inside.tell(&alone);
        if lost.contains("9<\"$AUTHSOCK") || lost.contains("<&9") {
            assert_eq!(code, 0, "{alone}: {said}");
        } else {
            assert_eq!(code, 4, "{alone}: {said}");
        }
    }
    let piped = "cat \"$AUTHSOCK_TOKEN_FILE\" | env -u AUTHSOCK_TOKEN_FILE AUTHSOCK_TOKEN_FD=9 authsock whoami --json 9<&0";
    assert_eq!(inside.json(piped)["session"]["id"], id.as_str());
}

#[test]
fn a_session_within_a_session_is_never_wider_and_ends_with_it() {
    let (ground, daemon) = served();
    let mut outer = Inside::begin(
        &ground,
        &["--name", "outer", "--realm", "r", "--allow", "session:create", "--allow", "events:publish:a.>"],
    );
    let id = outer.id();
    let wish = "--allow 'events:publish:>' --allow events:publish:a.b --allow session:create --allow '>'";
    let inner = outer.json(&format!("authsock run --name inner {wish} -- authsock whoami --json"));
    assert_eq!(inner["session"]["parent"], id.as_str());
    assert_eq!(inner["session"]["realm"], "r");
    assert_eq!(inner["session"]["binding"], "tree");
    for scope in inner["session"]["scopes"].as_array().unwrap() {
        let scope = scope.as_str().unwrap();
        let within =
            ["session:self", "session:create"].contains(&scope) || scope.starts_with("events:publish:a.");
        assert!(within, "{scope} is wider than the parent's");
    }
    let marker = ground.root().join("started");
    for wish in ["--realm other", "--realm default", "--bind uid"] {
        let (code, said) = outer.tell(&format!("authsock run {wish} -- touch '{}'", path(&marker)));
        assert_eq!(code, 125, "{wish}: {said}");
    }
    assert!(!marker.exists(), "CMD never started");
    let (code, said) = outer.tell("authsock run --realm r -- true");
    assert_eq!(code, 0, "its own realm may be named: {said}");
    // A child that lives while its parent is ended.
    let (up, go, out) = (fifo(&ground, "up"), fifo(&ground, "go"), fifo(&ground, "out"));
    let child = format!("sh -c 'echo up >{up}; read go <{go}; authsock whoami >{out} 2>&1; exit 0'");
    outer.tell(&format!("authsock run --name child -- {child} >/dev/null 2>&1 & read up <{up}"));
    let mut neighbour = Inside::begin(&ground, &["--name", "neighbour"]);
    let (code, said) = neighbour.tell(&format!("authsock session revoke {id}"));
    assert_eq!(code, 1, "another session is out of reach: {said}");
    assert_eq!(ground.json(["session", "revoke", &id])["ended"], 2, "the parent and the child");
    daemon.wait_for_log("(child) ended: parent_ended");
    open_for_writing(&go).write_all(b"\n").unwrap();
    let said = std::fs::read_to_string(&out).unwrap();
    assert!(said.contains("the daemon refused: revoked"), "{said}");
    let (code, said) = outer.tell("authsock whoami");
    assert_eq!((code, said.contains("revoked")), (4, true), "{said}");
    assert_eq!(neighbour.whoami()["session"]["name"], "neighbour", "others are left alone");
}

#[test]
fn run_ends_as_its_command_ends() {
    let (ground, _daemon) = served();
    let plain = ground.root().join("plain");
    put(&plain, "no program", 0o600);
    let none = ground.root().join("none");
    let below = plain.join("x");
    for (command, code) in [
        (&["true"][..], 0),
        (&["sh", "-c", "exit 7"], 7),
        (&["sh", "-c", "exit 255"], 255),
        (&["sh", "-c", "kill -KILL $$"], 128 + 9),
        (&["sh", "-c", "kill -TERM $$"], 128 + 15),
        (&["sh", "-c", "kill -HUP $$"], 128 + 1),
        (&[path(&plain)], 126),
        (&[path(ground.root())], 126),
        (&["/"], 126),
        (&[path(&none)], 127),
        (&["authsock-has-no-such-command"], 127),
        (&[path(&below)], 126),
    ] {
        let mut run = ground.authsock(["run", "--"]);
        // Whoever runs the tests may ignore it (nohup), and ignoring is inherited.
        // SAFETY: signal(2) is async-signal-safe, and the default runs no code of ours.
        unsafe {
            run.pre_exec(|| {
                libc::signal(libc::SIGHUP, libc::SIG_DFL);
                Ok(())
            });
        }
        let output = run.args(command).output().unwrap();
        assert_eq!(code_of(&output), code, "{command:?}: {}", text_of(&output));
        assert_eq!(ground.json(["status"])["sessions"], 0, "{command:?}");
    }
    assert_eq!(left_of_runs(&ground), 0);
}

#[test]
fn run_hears_of_its_command_s_end_also_where_its_starter_ignored_children() {
    let (ground, _daemon) = served();
    let mut command = ground.authsock(["run", "--", "sh", "-c", "exit 7"]);
    // SAFETY: signal(2) is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGCHLD, libc::SIG_IGN);
            Ok(())
        });
    }
    assert_eq!(command.status().unwrap().code(), Some(7));
}

fn runs(ground: &Ground) -> PathBuf {
    ground.runtime().join("authsock-run")
}

/// How many token directories there are.
fn left_of_runs(ground: &Ground) -> usize {
    std::fs::read_dir(runs(ground)).map_or(0, Iterator::count)
}

#[test]
fn without_a_daemon_the_command_never_starts() {
    let marker = |ground: &Ground| ground.root().join("started");
    let attempt = |ground: &Ground, options: &[&str], env: &[(&str, &str)]| {
        let mut command = ground.authsock(["run"]);
        command.args(options).args(["--", "touch"]).arg(marker(ground)).envs(env.iter().copied());
        let output = command.output().unwrap();
        assert_eq!(code_of(&output), 125, "{command:?}: {}", text_of(&output));
        assert!(!marker(ground).exists(), "{command:?}: CMD was started");
        assert!(!output.stderr.is_empty(), "{command:?} says nothing");
        assert_eq!(left_of_runs(ground), 0, "{command:?} left its token behind");
    };
    let ground = Ground::new();
    attempt(&ground, &["--socket", path(&ground.root().join("none.sock"))], &[]);
    attempt(&ground, &[], &[("AUTHSOCK_SOCKET", path(&ground.root().join("none.sock")))]);
    attempt(&ground, &[], &[("AUTHSOCK_TOKEN_FILE", path(&ground.root().join("none")))]);
    // A dead socket of an init system's: no second daemon is started beside it.
    drop(bind_private(&ground.init_socket()));
    attempt(&ground, &[], &[]);
    std::fs::remove_file(ground.init_socket()).unwrap();
    std::fs::set_permissions(ground.runtime(), PermissionsExt::from_mode(0o777)).unwrap();
    attempt(&ground, &[], &[]);
    std::fs::set_permissions(ground.runtime(), PermissionsExt::from_mode(0o700)).unwrap();
    ground.configure("[limits]\nsessions = 0\n");
    attempt(&ground, &[], &[]);
    let ground = Ground::new();
    let _daemon = ground.serve();
    attempt(&ground, &["--allow", "no:such:scope"], &[]);
    attempt(&ground, &["--name", " "], &[]);
}

#[test]
fn a_signal_to_run_reaches_the_command_once_whoever_sends_it() {
    let (ground, _daemon) = served();
    // The wait for a reader that never comes is what a signal interrupts; the end of input ends it.
    let script = r#"
trap 'echo TERM' TERM; trap 'echo HUP' HUP; trap 'echo INT' INT; trap 'echo USR1' USR1
(trap '' TERM HUP INT USR1; exec cat) <&3 >/dev/null & child=$!
echo ready; while kill -0 $child 2>/dev/null; do wait $child; done; echo over; exit 5"#;
    for own_group in [false, true] {
        let mut command = ground.authsock(["run", "--", "sh", "-c"]);
        command.arg(format!("exec 3<&0\n{script}")).stdin(Stdio::piped()).stdout(Stdio::piped());
        if own_group {
            command.process_group(0);
        }
        // A shell cannot trap what was ignored when it started, as SIGINT is in the background of a script.
        // SAFETY: signal(2) is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT, libc::SIGUSR1] {
                    libc::signal(signal, libc::SIG_DFL);
                }
                Ok(())
            });
        }
        let mut run = command.spawn().unwrap();
        let mut said = BufReader::new(run.stdout.take().unwrap()).lines().map(Result::unwrap);
        assert_eq!(said.next().unwrap(), "ready");
        let pid = Pid::from_raw(run.id().try_into().unwrap());
        for (signal, word) in [
            (Signal::SIGTERM, "TERM"),
            (Signal::SIGHUP, "HUP"),
            (Signal::SIGUSR1, "USR1"),
            (Signal::SIGINT, "INT"),
        ] {
            kill(pid, signal).unwrap();
            assert_eq!(said.next().unwrap(), word, "in a group of its own: {own_group}");
        }
        run.stdin.take();
        assert_eq!(said.collect::<Vec<_>>(), ["over"], "each signal once");
        assert_eq!(run.wait().unwrap().code(), Some(5));
    }
}

#[test]
fn a_killed_leader_ends_the_session_and_its_orphans_are_told_so() {
    let (ground, daemon) = served();
    let (go, out) = (fifo(&ground, "go"), fifo(&ground, "out"));
    let script = format!(
        "read go <{go}; {{ authsock whoami; echo \"code $?\"; env -u AUTHSOCK_TOKEN_FILE -u AUTHSOCK_SOCKET authsock whoami --json; }} >{out} 2>&1; exit 0"
    );
    let mut inside = Inside::begin(&ground, &["--name", "orphaned"]);
    let token_file = inside.token_file.clone();
    inside.tell(&format!("sh -c '{}' >/dev/null 2>&1 &", script.replace('\'', "'\\''")));
    let mut connection = Line::connect(&ground.init_socket());
    assert_eq!(refusal(&connection.plain(&inside.token())), "binding");
    inside.run.kill().unwrap();
    assert_eq!(inside.run.wait().unwrap().signal(), Some(9));
    daemon.wait_for_log("(orphaned) ended: leader_exited");
    assert!(token_file.exists(), "nobody was left to remove it");
    open_for_writing(&go).write_all(b"\n").unwrap();
    let said = std::fs::read_to_string(&out).unwrap();
    assert!(said.contains("the daemon refused: revoked") && said.contains("code 4"), "{said}");
    // No session is above it any more: what its user may do, it may do as the owner.
    assert!(said.contains(r#""id":"owner""#), "{said}");
    let mut line = Line::connect(&ground.init_socket());
    assert_eq!(refusal(&line.plain(&std::fs::read_to_string(&token_file).unwrap())), "revoked");
    // The next one sweeps.
    assert_eq!(left_of_runs(&ground), 1);
    let output = ground.authsock(["run", "--", "true"]).output().unwrap();
    assert!(output.status.success(), "{}", text_of(&output));
    assert_eq!(left_of_runs(&ground), 0);
}

#[test]
fn the_orphans_of_an_inner_session_are_still_inside_of_the_outer_one() {
    let (ground, daemon) = served();
    let mut outer = Inside::begin(&ground, &["--name", "outer"]);
    let id = outer.id();
    let (up, go, out) = (fifo(&ground, "up"), fifo(&ground, "go"), fifo(&ground, "out"));
    let owner = ground.token_path();
    let attempts = format!(
        "authsock whoami; authsock --token-file {} whoami; authsock --token-file {} whoami --json",
        path(&owner),
        path(&outer.token_file)
    );
    let orphan = format!("sh -c 'echo $PPID >{up}; read go <{go}; {{ {attempts}; }} >{out} 2>&1; exit 0'");
    let begin =
        format!("authsock run --name inner -- {orphan} >/dev/null 2>&1 & read inner <{up}; kill -9 $inner");
    outer.tell(&begin);
    daemon.wait_for_log("(inner) ended: leader_exited");
    open_for_writing(&go).write_all(b"\n").unwrap();
    let said = std::fs::read_to_string(&out).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].contains("revoked"), "its own session's token: {said}");
    assert!(lines[1].contains("binding"), "the owner's: {said}");
    assert!(lines[2].contains(&id), "the outer session's: {said}");
}

#[test]
fn an_outer_leader_that_is_killed_takes_the_inner_session_with_it() {
    let (ground, daemon) = served();
    let mut outer = Inside::begin(&ground, &["--name", "outer"]);
    let (up, go, out) = (fifo(&ground, "up"), fifo(&ground, "go"), fifo(&ground, "out"));
    let inner = format!("sh -c 'echo up >{up}; read go <{go}; authsock whoami >{out} 2>&1; exit 0'");
    outer.tell(&format!("authsock run --name inner -- {inner} >/dev/null 2>&1 & read up <{up}"));
    outer.run.kill().unwrap();
    outer.run.wait().unwrap();
    daemon.wait_for_log("(inner) ended: parent_ended");
    open_for_writing(&go).write_all(b"\n").unwrap();
    let said = std::fs::read_to_string(&out).unwrap();
    assert!(said.contains("the daemon refused: revoked"), "{said}");
}

#[test]
fn what_a_session_leaves_in_its_directory_is_never_descended_into_and_holds_nobody_up() {
    let (ground, _daemon) = served();
    let mut inside = Inside::begin(&ground, &[]);
    let home = inside.token_file.parent().unwrap().to_path_buf();
    std::fs::create_dir_all(home.join("d/d")).unwrap();
    put(&home.join("d/d/kept"), "", 0o600);
    put(&home.join("file"), "", 0o600);
    let elsewhere = ground.root().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    put(&elsewhere.join("file"), "", 0o600);
    std::os::unix::fs::symlink(&elsewhere, home.join("way")).unwrap();
    inside.run.kill().unwrap();
    inside.run.wait().unwrap();
    for _ in 0..2 {
        assert!(ground.authsock(["run", "--", "true"]).status().unwrap().success());
        let left: Vec<_> =
            std::fs::read_dir(&home).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["d"], "neither the token nor its lock");
    }
    assert!(home.join("d/d/kept").exists() && elsewhere.join("file").exists());
    std::fs::remove_dir_all(home.join("d")).unwrap();
    assert!(ground.authsock(["run", "--", "true"]).status().unwrap().success());
    assert_eq!(left_of_runs(&ground), 0, "an empty one goes");
}

#[test]
fn a_living_session_s_token_is_not_swept_away() {
    let (ground, _daemon) = served();
    let mut inside = Inside::begin(&ground, &[]);
    for _ in 0..3 {
        assert!(ground.authsock(["run", "--", "true"]).status().unwrap().success());
    }
    assert_eq!(left_of_runs(&ground), 1);
    inside.whoami();
    let (file, dir) = (inside.token_file.clone(), inside.token_file.parent().unwrap().to_path_buf());
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&file), mode(&dir), mode(&runs(&ground))), (0o600, 0o700, 0o700));
    assert_eq!(inside.end(), 0);
    assert!(!dir.exists(), "and at its own end it is removed");
}

/// Whether any process that can be looked at has this text in its arguments or its environment.
fn who_shows(text: &str) -> Option<String> {
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        if !entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        for file in ["cmdline", "environ"] {
            let Ok(bytes) = std::fs::read(entry.path().join(file)) else { continue };
            if bytes.windows(text.len()).any(|part| part.eq_ignore_ascii_case(text.as_bytes())) {
                return Some(format!("{}/{file}", entry.path().display()));
            }
        }
    }
    None
}

#[test]
fn a_token_is_in_nobody_s_arguments_and_in_nobody_s_environment() {
    let ground = Ground::new();
    let mut outer = Inside::begin(&ground, &["--name", "outer"]);
    let (go, out) = (fifo(&ground, "go"), fifo(&ground, "out"));
    let script = format!("cat \"$AUTHSOCK_TOKEN_FILE\" >{out}; read go <{go}; exit 0");
    outer.tell(&format!("authsock run --name inner -- sh -c '{script}' >/dev/null 2>&1 &"));
    let inner = std::fs::read_to_string(&out).unwrap();
    assert_eq!(inner.trim().len(), 64);
    for token in [ground.token(), outer.token(), inner.trim().to_owned()] {
        assert_eq!(who_shows(&token[..24]), None);
        assert!(!ground.log().contains(&token[..24]));
    }
    let (_, said) = outer.tell("env");
    let of_ours: Vec<&str> = said.lines().filter(|line| line.starts_with("AUTHSOCK_")).collect();
    assert_eq!(of_ours.len(), 2, "a socket and a file: {of_ours:?}");
    // What a program of the same user finds in its neighbour's environment is a path; the file itself it can read:
    // among programs of one user, sessions attribute and do not contain.
    let environ = std::fs::read(format!("/proc/{}/environ", outer.shell)).unwrap();
    let environ = String::from_utf8_lossy(&environ).into_owned();
    assert!(environ.contains(path(&outer.token_file)) && !environ.contains(&outer.token()));
    outer.tell(&format!("echo >{go}; wait"));
}

/// Takes a descriptor out of another process, as whoever may trace it can (pidfd_getfd(2)).
fn take_descriptor(pid: u32, number: i32) -> std::io::Result<OwnedFd> {
    // SAFETY: system calls on numbers; what they return is ours alone.
    unsafe {
        let pidfd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        if pidfd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        let pidfd = OwnedFd::from_raw_fd(pidfd.try_into().unwrap());
        let taken = libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0);
        if taken < 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(taken.try_into().unwrap()))
    }
}

#[test]
fn a_connection_taken_out_of_a_session_s_process_is_still_that_session_s_and_ends_with_it() {
    if skip_unless(has("python3"), "python3 is not installed") {
        return;
    }
    const HOLDER: &str = r#"
import json, os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(os.environ["AUTHSOCK_SOCKET"])
token = open(os.environ["AUTHSOCK_TOKEN_FILE"]).read()
s.sendall((json.dumps({"type": "auth", "token": token}) + "\n").encode())
assert b"true" in s.recv(4096)
print(os.getpid(), s.fileno(), flush=True)
sys.stdin.read()
"#;
    let (ground, _daemon) = served();
    let mut command = ground.authsock(["run", "--name", "held", "--", "python3", "-c", HOLDER]);
    let mut run = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(run.stdout.take().unwrap()).read_line(&mut said).unwrap();
    let (pid, number) = said.trim().split_once(' ').unwrap_or_else(|| panic!("{said:?}"));
    let taken = take_descriptor(pid.parse().unwrap(), number.parse().unwrap());
    let denied = taken.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied);
    if !skip_unless(!denied, "this kernel lets no program trace its neighbours") {
        // Among programs of one user this is possible: what is asked is the session's doing, and logged as its.
        let mut line = Line::on(taken.unwrap().into());
        assert_eq!(line.call("whoami", &json!({}))["result"]["session"]["name"], "held");
        run.kill().unwrap();
        line.rest();
    }
    drop(run.stdin.take());
    run.wait().unwrap();
}

/// Traces another process for a moment, as a debugger does (ptrace(2)).
fn trace(pid: u32) -> std::io::Result<()> {
    let pid = libc::pid_t::try_from(pid).unwrap();
    let done = |answer: libc::c_long| if answer < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) };
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: requests on another process, without any memory of ours.
    unsafe {
        done(libc::ptrace(libc::PTRACE_SEIZE, pid, none, none))?;
        done(libc::ptrace(libc::PTRACE_INTERRUPT, pid, none, none))?;
        done(libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL).into())?;
        done(libc::ptrace(libc::PTRACE_DETACH, pid, none, none))
    }
}

#[test]
fn a_session_s_process_can_be_traced_by_its_user_as_far_as_the_kernel_lets_it_and_goes_on() {
    let (ground, _daemon) = served();
    let mut inside = Inside::begin(&ground, &["--name", "traced"]);
    let id = inside.id();
    // Yama (ptrace_scope) may keep an ordinary user from all but its own children; sessions do not.
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    match (trace(inside.shell), scope.trim()) {
        (Ok(()), "" | "0" | "1" | "2") => {}
        (Err(error), "1" | "2" | "3") => assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied),
        (other, scope) => panic!("{other:?} with ptrace_scope {scope:?}"),
    }
    assert_eq!(inside.id(), id);
    assert_eq!(inside.end(), 0);
}

#[test]
fn outer_variables_are_stripped_before_the_command_gets_its_own() {
    let (ground, _daemon) = served();
    let mut command = ground.authsock(["run", "--", "sh", "-c", OBEDIENT]);
    command
        .env("AUTHSOCK_TOKEN", ground.token())
        .env("AUTHSOCK_TOKEN_FD", "77")
        .env("AUTHSOCK_SOCKET", ground.init_socket());
    let mut inside = Inside::begin_with(&mut command);
    let (_, said) = inside.tell("echo \"[$AUTHSOCK_TOKEN][$AUTHSOCK_TOKEN_FD]\"");
    assert_eq!(said.trim(), "[][]");
    assert_eq!(inside.whoami()["session"]["parent"], "owner");
}

#[test]
fn our_own_directory_comes_first_in_the_path_only_if_authsock_is_not_found() {
    let (ground, _daemon) = served();
    let without = "/usr/bin:/bin";
    let own = ground.binary.parent().unwrap();
    let show = |search: &str| {
        let output = ground
            .authsock(["run", "--", "/bin/sh", "-c", "printf %s \"$PATH\""])
            .env("PATH", search)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text_of(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    if !skip_unless(
        !Path::new("/usr/bin/authsock").exists() && !Path::new("/bin/authsock").exists(),
        "authsock is installed here",
    ) {
        assert_eq!(show(without), format!("{}:{without}", own.display()));
    }
    let bin = ground.root().join("bin");
    std::fs::create_dir(&bin).unwrap();
    put(&bin.join("authsock"), "#!/bin/sh\n", 0o755);
    let with = format!("{without}:{}", bin.display());
    assert_eq!(show(&with), with);
}

#[test]
fn a_token_bound_to_the_user_is_good_outside_of_the_tree() {
    let (ground, _daemon) = served();
    let mut inside = Inside::begin(&ground, &["--name", "wide", "--bind", "uid"]);
    let id = inside.id();
    let who = ground.json(["whoami", "--token-file", path(&inside.token_file)]);
    assert_eq!(who["session"]["id"], id.as_str());
    assert_eq!(who["session"]["binding"], "uid");
    // The owner's token stays refused below its leader all the same.
    let (code, said) = inside.tell(&format!("authsock --token-file '{}' whoami", path(&ground.token_path())));
    assert_eq!((code, said.contains("binding")), (4, true), "{said}");
    let file = ground.root().join("kept");
    put(&file, &inside.token(), 0o600);
    assert_eq!(inside.end(), 0);
    assert_refused(&ground.authsock(["whoami", "--token-file", path(&file)]).output().unwrap(), "revoked");
}

#[test]
fn a_session_that_expires_closes_its_connections_and_refuses_later_ones() {
    let (ground, _daemon) = served();
    let mut inside = Inside::begin(&ground, &["--bind", "uid", "--ttl", "1"]);
    let token = inside.token();
    let mut line = Line::connect(&ground.init_socket());
    assert_eq!(line.plain(&token)["success"], true);
    assert_eq!(line.call("ping", &json!({}))["result"]["pong"], true);
    line.rest();
    let mut late = Line::connect(&ground.init_socket());
    assert_eq!(refusal(&late.plain(&token)), "expired");
    let (code, said) = inside.tell("authsock whoami");
    assert_eq!((code, said.contains("expired")), (4, true), "{said}");
}

#[test]
fn a_revoked_session_s_open_connections_close() {
    let (ground, _daemon) = served();
    let mut inside = Inside::begin(&ground, &["--bind", "uid"]);
    let id = inside.id();
    let mut line = Line::connect(&ground.init_socket());
    assert_eq!(line.plain(&inside.token())["success"], true);
    ground.json(["session", "revoke", &id]);
    line.rest();
    assert_eq!(refusal(&Line::connect(&ground.init_socket()).plain(&inside.token())), "revoked");
}

#[test]
fn no_variable_turns_authentication_off() {
    const TEMPTING: [(&str, &str); 14] = [
        ("AUTHSOCK_NO_AUTH", "1"),
        ("AUTHSOCK_NOAUTH", "true"),
        ("AUTHSOCK_AUTH", "off"),
        ("AUTHSOCK_DISABLE_AUTH", "1"),
        ("AUTHSOCK_INSECURE", "1"),
        ("AUTHSOCK_SKIP_VERIFY", "1"),
        ("AUTHSOCK_ALLOW_ROOT", "1"),
        ("AUTHSOCK_POLICY_ALLOW_ROOT", "true"),
        ("AUTHSOCK_DEV", "1"),
        ("AUTHSOCK_DEBUG", "1"),
        ("AUTHSOCK_TEST", "1"),
        ("AUTHSOCK_CONFIG", "/dev/null"),
        ("NO_AUTH", "1"),
        ("DEV", "1"),
    ];
    let ground = Ground::new();
    let daemon = ground.serve_as(|command| {
        // Not even with a token of the attacker's choice.
        command.envs(TEMPTING).env("AUTHSOCK_TOKEN", "ab".repeat(32)).env("AUTHSOCK_LOG", "trace");
    });
    let connect = || Line::connect(&ground.init_socket());
    let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "whoami" });
    for first in [
        call.clone(),
        json!({ "type": "auth" }),
        json!({ "type": "auth", "token": null }),
        json!({ "type": "auth", "token": "" }),
        json!({ "type": "none" }),
    ] {
        let mut line = connect();
        line.send(&format!("{first}\n{call}\n"));
        assert_eq!(refusal(&line.receive().unwrap()), "malformed", "{first}");
        assert!(line.rest().is_empty(), "{first}: one error, and closed");
    }
    for token in ["ab".repeat(32), "0".repeat(64)] {
        assert_eq!(refusal(&connect().plain(&token)), "denied");
    }
    let mut line = connect();
    line.send("GET /v1/whoami HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(String::from_utf8_lossy(&line.rest()).starts_with("HTTP/1.1 401 "));
    let logged = daemon.stderr();
    assert!(!logged.contains(&ground.token()), "not even a log of everything tells the token");
    // Nor does a client with them take a stranger's token for none.
    let mut command = ground.authsock(["whoami", "--token-file", "/dev/null"]);
    assert_refused(&command.envs(TEMPTING).output().unwrap(), "/dev/null");
}

#[test]
fn a_pile_of_descendants_too_deep_to_walk_is_refused_and_not_let_in() {
    let (ground, _daemon) = served();
    let mut inside = Inside::begin(&ground, &[]);
    // Each shell waits for the next one; 128 steps up is the limit.
    let script = "n() { if [ $1 -gt 0 ]; then ( n $(($1 - 1)); exit $? ); else authsock whoami; fi; }";
    inside.tell(script);
    let (code, said) = inside.tell("n 40");
    assert_eq!(code, 0, "{said}");
    let (code, said) = inside.tell("n 140");
    assert_eq!((code, said.contains("binding")), (4, true), "{said}");
}
