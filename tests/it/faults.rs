//! kill -9 before every single call that changes a file or tells anybody anything: afterwards the old or the new state, never neither, and what somebody was told is so.
//!
//! strace delivers the signal when a call is entered, and the kernel does not carry out the call of a process that is
//! about to die (the first test here shows it). It counts per call and thread: a step is a call's name and a number.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;

use authsock::secret::token::Token;
use authsock::secret::verifier::Verifier;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::ground::{Daemon, Ground, Line, bind_private, has, is_root, minted, put, skip_unless, text_of};
use crate::tree::Inside;
use crate::users::{NEEDS_ROOT, as_user};

/// Every call by which our programs change what others can see. A question mark: not every architecture has it.
const CALLS: &str = "openat,?open,?mkdir,mkdirat,write,pwrite64,writev,sendto,sendmsg,fsync,fdatasync,ftruncate,\
    fchmod,fchmodat,?fchmodat2,?link,linkat,?rename,?renameat,renameat2,?unlink,unlinkat";
/// More calls of one kind than that, and something else is wrong.
const CALLS_MAX: usize = 300;

/// Whether strace is there and lets us look into other processes.
fn may_trace() -> bool {
    let is_there = has("strace")
        && Command::new("strace").args(["-qq", "true"]).output().is_ok_and(|ran| ran.status.success());
    // Yama: 1 is for one's own descendants alone, and strace is none of a daemon's ancestors here.
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_else(|_| "0".into());
    is_there && (is_root() || scope.trim() == "0")
}

pub fn skip_without_strace() -> bool {
    skip_unless(may_trace(), "strace is not installed, or may not attach to other processes")
}

/// A call, and which one of its kind since the watch began.
#[derive(Debug, Clone)]
struct Step {
    call: String,
    nth: usize,
}

impl Step {
    fn options(step: Option<&Step>) -> Vec<String> {
        let mut options = vec!["-e".to_owned(), format!("trace={CALLS}")];
        if let Some(Step { call, nth }) = step {
            options.extend(["-e".to_owned(), format!("inject={call}:signal=SIGKILL:when={nth}")]);
        }
        options
    }
}

/// What became of a watched process.
struct Seen {
    /// The calls that it entered, in order.
    calls: Vec<String>,
    /// Whether it was killed before the last of them was carried out.
    was_killed: bool,
}

impl Seen {
    fn read(trace: &Path) -> Seen {
        let text = std::fs::read_to_string(trace).unwrap();
        // With -f each line begins with the thread's id.
        let lines = text
            .lines()
            .map(|line| line.trim_start_matches(|letter: char| letter.is_ascii_digit() || letter == ' '));
        let calls = lines.filter_map(|line| line.split_once('(')).map(|(call, _)| call);
        let calls =
            calls.filter(|call| call.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_'));
        Seen {
            calls: calls.map(ToOwned::to_owned).collect(),
            was_killed: text.contains("+++ killed by SIGKILL +++"),
        }
    }
}

/// Goes through all steps of something: first unharmed, to learn which calls there are, then killed before each of them
/// in turn, for as long as there is one more of its kind. Returns how many there were.
fn at_every_step(mut round: impl FnMut(Option<&Step>) -> Seen) -> usize {
    let unharmed = round(None);
    assert!(!unharmed.was_killed);
    let mut kinds = unharmed.calls.clone();
    kinds.sort();
    kinds.dedup();
    let mut steps = 0;
    for call in kinds {
        for nth in 1..=CALLS_MAX {
            assert_ne!(nth, CALLS_MAX, "{call} has no end");
            if !round(Some(&Step { call: call.clone(), nth })).was_killed {
                break;
            }
            steps += 1;
        }
    }
    steps
}

/// A watch on a process that runs.
pub struct Watch {
    strace: Child,
    trace: PathBuf,
}

impl Watch {
    /// Watches a process and all its threads, and what it may become.
    fn attach(ground: &Ground, pid: u32, step: Option<&Step>) -> Watch {
        Watch::with(ground, pid, &Step::options(step))
    }

    /// As strace's options say.
    pub fn with(ground: &Ground, pid: u32, options: &[impl AsRef<OsStr>]) -> Watch {
        let trace = ground.root().join(format!("trace-{pid}"));
        let mut strace = Command::new("strace");
        strace.arg("-f").args(["-p", &pid.to_string(), "-o"]).arg(&trace).args(options);
        let mut strace = strace.stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        // It goes on to tell of threads; that pipe is nobody's any more then, and what it says is lost.
        let mut stderr = BufReader::new(strace.stderr.take().unwrap());
        while !said.contains(" attached") {
            assert_ne!(stderr.read_line(&mut said).unwrap(), 0, "strace: {said}");
        }
        // Kept open: strace must not die of a broken pipe.
        strace.stderr = Some(stderr.into_inner());
        Watch { strace, trace }
    }

    /// Stops watching a process that goes on; what strace told of it.
    pub fn end_and_tell(mut self) -> String {
        let _ = kill(Pid::from_raw(self.strace.id().try_into().unwrap()), Signal::SIGTERM);
        self.strace.wait().unwrap();
        std::fs::read_to_string(&self.trace).unwrap()
    }

    /// Stops watching. strace ends by itself, and has told all, when the process is gone.
    fn end(mut self, is_gone: bool) -> Seen {
        if !is_gone {
            let _ = kill(Pid::from_raw(self.strace.id().try_into().unwrap()), Signal::SIGTERM);
        }
        self.strace.wait().unwrap();
        Seen::read(&self.trace)
    }
}

/// Does something while the daemon is watched. Where the daemon is killed, another one follows on its socket, as an
/// init system would have it. Returns what came of it, the daemon that runs now, and what was seen.
fn with_watched<T: Send>(
    ground: &Ground,
    mut daemon: Daemon,
    watch: Watch,
    start: &dyn Fn(&mut Command),
    act: impl FnOnce() -> T + Send,
) -> (T, Daemon, Seen) {
    enum Event {
        Gone,
        Done,
    }
    let pid = Pid::from_raw(daemon.child.id().try_into().unwrap());
    std::thread::scope(|scope| {
        let (tell, told) = channel();
        let gone = tell.clone();
        // It is left to be waited for by who owns it.
        scope.spawn(move || {
            let _ = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
            let _ = gone.send(Event::Gone);
        });
        let acting = scope.spawn(move || {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
            let _ = tell.send(Event::Done);
            done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        let (done, seen) = match told.recv().unwrap() {
            Event::Gone => {
                let status = daemon.child.wait().unwrap();
                assert_eq!(
                    status.signal(),
                    Some(libc::SIGKILL),
                    "it did not end by itself: {}",
                    daemon.stderr()
                );
                let next = Daemon::start(ground, daemon.listener.try_clone().unwrap(), start);
                let done = acting.join().unwrap();
                return (done, next, watch.end(true));
            }
            Event::Done => (acting.join().unwrap(), watch.end(false)),
        };
        // It may have been killed after its last word. If not it is now, for the next one to stand on what it left.
        let was_killed = daemon.child.try_wait().unwrap().is_some();
        let _ = daemon.child.kill();
        daemon.child.wait().unwrap();
        let next = Daemon::start(ground, daemon.listener.try_clone().unwrap(), start);
        (done, next, Seen { was_killed, ..seen })
    })
}

/// One round of [`at_every_step`] with a daemon that runs already; it is another one afterwards.
fn with_daemon<T: Send>(
    ground: &Ground,
    daemon: &mut Option<Daemon>,
    step: Option<&Step>,
    act: impl FnOnce() -> T + Send,
) -> (T, Seen) {
    with_daemon_started(ground, daemon, step, &|_| {}, act)
}

/// The same, with a say in how the next one is run.
fn with_daemon_started<T: Send>(
    ground: &Ground,
    daemon: &mut Option<Daemon>,
    step: Option<&Step>,
    start: &dyn Fn(&mut Command),
    act: impl FnOnce() -> T + Send,
) -> (T, Seen) {
    let before = daemon.take().unwrap();
    let watch = Watch::attach(ground, before.child.id(), step);
    let (done, after, seen) = with_watched(ground, before, watch, start, act);
    *daemon = Some(after);
    (done, seen)
}

/// A handshake and one call; `None` where the connection ended before the answer.
fn ask(socket: &Path, token: &str, method: &str, params: &Value) -> Option<Value> {
    let mut line = Line::on(UnixStream::connect(socket).unwrap());
    line.send_json(&json!({ "type": "auth", "token": token }));
    let result = line.receive()?;
    assert_eq!(result["success"], true, "{result}");
    line.send_json(&json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }));
    line.receive()
}

/// The session that a token stands for, or the code of its refusal.
fn standing(ground: &Ground, token: &str) -> Result<String, String> {
    let mut line = Line::connect(&ground.init_socket());
    let result = line.plain(token);
    if result["success"] == true {
        return Ok(result["session"]["id"].as_str().unwrap().to_owned());
    }
    Err(result["error"]["code"].as_str().unwrap().to_owned())
}

fn token_in(file: &Path) -> String {
    let text = std::fs::read_to_string(file).unwrap();
    assert_eq!(text.len(), 64, "{}", file.display());
    assert!(text.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let mode = std::fs::metadata(file).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode, 0o600, "{}", file.display());
    text
}

fn token_id(token: &str) -> String {
    Verifier::of(&Token::parse(token.as_bytes()).unwrap()).id().to_string()
}

fn names(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

/// The ids of the living sessions.
fn living(ground: &Ground) -> Vec<String> {
    let list = ground.json(["session", "list", "--all-realms"]);
    list["sessions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|session| session["id"].as_str().unwrap().to_owned())
        .collect()
}

/// A session's program that says where its token lies and goes on until its input ends.
const PROGRAM: &str = "echo \"$AUTHSOCK_TOKEN_FILE\"; cat";

#[test]
fn a_process_that_is_killed_at_a_call_has_not_carried_it_out() {
    if skip_without_strace() {
        return;
    }
    let ground = Ground::new();
    let script = "cd \"$1\"; echo one >a; mv a b; echo two >>b";
    for (call, nth, left) in [("write", 2, vec![("b", "one\n")]), ("write", 1, vec![("a", "")])] {
        let dir = ground.root().join(format!("{call}{nth}"));
        std::fs::create_dir(&dir).unwrap();
        let trace = ground.root().join("trace");
        let step = Step { call: call.into(), nth };
        let mut strace = Command::new("strace");
        strace
            .arg("-o")
            .arg(&trace)
            .args(Step::options(Some(&step)))
            .args(["sh", "-c", script, "sh"])
            .arg(&dir);
        assert!(!strace.output().unwrap().status.success());
        assert!(Seen::read(&trace).was_killed);
        let found: Vec<_> = names(&dir)
            .into_iter()
            .map(|name| (name.clone(), std::fs::read_to_string(dir.join(name)).unwrap()))
            .collect();
        let found: Vec<_> = found.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        assert_eq!(found, left, "{step:?}");
    }
}

#[test]
fn a_first_activation_that_is_killed_at_any_step_leaves_what_the_next_one_completes() {
    if skip_without_strace() {
        return;
    }
    let mut left: Option<Vec<String>> = None;
    let steps = at_every_step(|step| {
        let ground = Ground::new();
        // The watch is there before the daemon is.
        let go = ground.root().join("go");
        nix::unistd::mkfifo(&go, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let daemon = Daemon::start_without_waiting(&ground, bind_private(&ground.init_socket()), |command| {
            command.env(
                "INSTEAD",
                format!(
                    "read -r go <'{}'; LISTEN_PID=$$ exec '{}' serve",
                    go.display(),
                    ground.binary.display()
                ),
            );
        });
        let watch = Watch::attach(&ground, daemon.child.id(), step);
        // Opened to be read too, which waits for nobody: the shell may have been killed.
        let mut word = std::fs::File::options().read(true).write(true).open(&go).unwrap();
        word.write_all(b"go\n").unwrap();
        let first = ground.token_path();
        // Where the daemon ends between a proof and the answer, the client does not try again.
        let (served, _daemon, seen) = with_watched(&ground, daemon, watch, &|_| {}, || {
            let output = ground.authsock(["whoami", "--json"]).output().unwrap();
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success() || words.contains("closed the connection"), "{step:?}: {words}");
            let who: Option<Value> = serde_json::from_slice(&output.stdout).ok();
            who.map(|who| (who, token_in(&first)))
        });
        let token = token_in(&first);
        if let Some((who, then)) = served {
            assert_eq!(who["session"]["token_id"], token_id(&then).as_str(), "{step:?}: {who}");
            assert_eq!(token, then, "{step:?}: who was served once is served again, by the next daemon too");
        }
        assert_eq!(standing(&ground, &token).as_deref(), Ok("owner"), "{step:?}");
        let names = names(&ground.state());
        assert_eq!(&names, left.get_or_insert_with(|| names.clone()), "{step:?}: nothing unfinished is left");
        seen
    });
    assert!(steps > 20, "{steps}");
}

#[test]
fn the_owner_s_rotation_that_is_killed_at_any_step_leaves_the_old_token_or_the_new_one() {
    if skip_without_strace() {
        return;
    }
    let ground = Ground::new();
    let mut daemon = Some(ground.serve());
    ground.token_after_first_contact();
    let socket = ground.init_socket();
    let names_before = names(&ground.state());
    let steps = at_every_step(|step| {
        let old = ground.token();
        let (answer, seen) =
            with_daemon(&ground, &mut daemon, step, || ask(&socket, &old, "session.rotate", &json!({})));
        let now = token_in(&ground.token_path());
        assert_eq!(standing(&ground, &now).as_deref(), Ok("owner"), "{step:?}");
        let is_new = now != old;
        if let Some(answer) = &answer {
            // Who was told of a new token has it, and the old one has its grace, for good.
            assert_eq!(answer["result"]["token_id"], token_id(&now).as_str(), "{step:?}: {answer}");
            assert!(is_new);
            assert_eq!(standing(&ground, &old).as_deref(), Ok("owner"), "{step:?}");
        }
        assert_eq!(names(&ground.state()), names_before, "{step:?}: nothing unfinished is left");
        seen
    });
    assert!(steps > 8, "{steps}");
}

/// The daemon of the whole machine, with a configuration and a state directory of this ground's.
fn serve_all(ground: &Ground) -> impl Fn(&mut Command) {
    let config = ground.root().join("system.toml");
    let users: Vec<u32> = (FIRST_USER..FIRST_USER + 200).collect();
    put(&config, &format!("[policy]\nusers = {users:?}\n"), 0o600);
    let script = format!(
        "LISTEN_PID=$$ exec '{}' --system --config '{}' serve",
        ground.binary.display(),
        config.display()
    );
    move |command| {
        command.env("INSTEAD", &script);
    }
}

/// Users who need no name.
const FIRST_USER: u32 = 54_400;

#[test]
fn a_user_s_first_token_and_its_rotation_at_the_machine_s_daemon_are_whole_whenever_that_is_killed() {
    if skip_without_strace() || skip_unless(is_root(), NEEDS_ROOT) {
        return;
    }
    let ground = Ground::new();
    let listener = bind_private(&ground.init_socket());
    for (path, mode) in [(ground.root(), 0o755), (&ground.runtime(), 0o755), (&ground.init_socket(), 0o666)] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }
    let start = serve_all(&ground);
    let mut daemon = Some(Daemon::start(&ground, listener, &start));
    let socket = ground.init_socket();
    let file = |uid: u32| ground.state().join(format!("users/{uid}/token"));
    // It is made for who announces a proof, before the daemon challenges.
    let come = |uid: u32| {
        as_user(uid, || {
            let mut line = Line::connect(&socket);
            let (id, nonce) = ("0".repeat(16), "0".repeat(64));
            line.send_json(&json!({ "type": "auth", "v": 1, "token_id": id, "nonce": nonce }));
            line.receive()
        })
    };
    let stands = |uid: u32, token: &str| as_user(uid, || standing(&ground, token));
    let mut uid = FIRST_USER;
    let first = at_every_step(|step| {
        uid += 1;
        let (_, seen) = with_daemon_started(&ground, &mut daemon, step, &start, || come(uid));
        assert_eq!(come(uid).unwrap()["type"], "challenge", "{step:?}");
        assert_eq!(stands(uid, &token_in(&file(uid))), Ok(format!("user-{uid}")), "{step:?}");
        seen
    });
    let rotation = at_every_step(|step| {
        let old = token_in(&file(uid));
        let (answer, seen) = with_daemon_started(&ground, &mut daemon, step, &start, || {
            as_user(uid, || ask(&socket, &old, "session.rotate", &json!({})))
        });
        let now = token_in(&file(uid));
        assert_eq!(stands(uid, &now), Ok(format!("user-{uid}")), "{step:?}");
        if let Some(answer) = answer {
            assert_eq!(answer["result"]["token_id"], token_id(&now).as_str(), "{step:?}: {answer}");
        }
        seen
    });
    assert!(first > 10 && rotation > 10, "{first}, {rotation}");
}

#[test]
fn a_session_s_beginning_whose_daemon_is_killed_at_any_step_is_a_whole_session_or_none() {
    if skip_without_strace() {
        return;
    }
    let ground = Ground::new();
    let mut daemon = Some(ground.serve());
    ground.token_after_first_contact();
    let steps = at_every_step(|step| {
        let mut run = ground.authsock(["run", "--bind", "uid", "--name", "begun", "--", "sh", "-c", PROGRAM]);
        let run = run.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let ((mut run, file), seen) = with_daemon(&ground, &mut daemon, step, || {
            let mut run = run.spawn().unwrap();
            let mut file = String::new();
            BufReader::new(run.stdout.as_mut().unwrap()).read_line(&mut file).unwrap();
            (run, file)
        });
        if file.is_empty() {
            // It was not known whether there is a session, so the program was not started.
            let output = run.wait_with_output().unwrap();
            assert_eq!(output.status.code(), Some(125), "{step:?}: {}", text_of(&output));
        } else {
            let id = standing(&ground, &token_in(Path::new(file.trim_end())));
            let id = id.unwrap_or_else(|code| panic!("{step:?}: {code}"));
            assert!(living(&ground).contains(&id), "{step:?}");
            drop(run.stdin.take());
            assert!(run.wait().unwrap().success(), "{step:?}");
        }
        // The end of the one is no part of what the next one is watched for.
        wait_until_only_the_owner_lives(&ground, daemon.as_ref().unwrap());
        seen
    });
    assert!(steps > 10, "{steps}");
}

/// A leader's end is the daemon's to notice; it says so to nobody.
fn wait_until_only_the_owner_lives(ground: &Ground, daemon: &Daemon) {
    let end = std::time::Instant::now() + crate::ground::PATIENCE;
    while living(ground) != ["owner"] {
        assert!(std::time::Instant::now() < end, "{:?} live: {}", living(ground), daemon.stderr());
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

#[test]
fn a_run_that_is_killed_at_any_step_leaves_no_session_and_what_it_leaves_the_next_one_sweeps() {
    if skip_without_strace() {
        return;
    }
    let ground = Ground::new();
    let daemon = ground.serve();
    ground.token_after_first_contact();
    let runs = ground.runtime().join("authsock-run");
    let steps = at_every_step(|step| {
        let trace = ground.root().join("trace");
        let mut strace = ground.command("strace");
        // Without -f: the program is not watched.
        strace.arg("-o").arg(&trace).args(Step::options(step)).arg(&ground.binary);
        strace.args(["run", "--bind", "uid", "--name", "doomed", "--", "sh", "-c", PROGRAM]);
        let mut run =
            strace.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut file = String::new();
        BufReader::new(run.stdout.as_mut().unwrap()).read_line(&mut file).unwrap();
        let token = (!file.is_empty()).then(|| std::fs::read_to_string(file.trim_end()).unwrap());
        drop(run.stdin.take());
        let status = run.wait_with_output().unwrap().status;
        wait_until_only_the_owner_lives(&ground, &daemon);
        if let Some(token) = token {
            assert!(standing(&ground, &token).is_err(), "{step:?}");
        }
        // The next one finds the place as if nothing had been; one whose directory was not ready yet is left alone for a
        // minute, since it could still be at work.
        let after = ground
            .authsock(["run", "--", "sh", "-c", "ls -1 \"${AUTHSOCK_TOKEN_FILE%/*}/..\""])
            .output()
            .unwrap();
        assert!(after.status.success(), "{step:?}: {}", text_of(&after));
        assert_eq!(
            String::from_utf8_lossy(&after.stdout).lines().count(),
            1,
            "{step:?}: its own alone: {}",
            text_of(&after)
        );
        let seen = Seen::read(&trace);
        assert_eq!(seen.was_killed, !status.success(), "{step:?}: {status}");
        seen
    });
    assert!(names(&runs).iter().all(|name| name.starts_with('.')));
    assert!(steps > 20, "{steps}");
}

#[test]
fn a_session_s_rotation_whose_daemon_is_killed_at_any_step_leaves_its_program_a_token_that_works() {
    if skip_without_strace() {
        return;
    }
    let ground = Ground::new();
    let mut daemon = Some(ground.serve());
    let mut inside = Inside::begin(&ground, &["--bind", "uid", "--name", "turner"]);
    let id = inside.id();
    let steps = at_every_step(|step| {
        let old = inside.token();
        // Without a grace it shows at once whether the session would be lost after it.
        let ((code, said), seen) =
            with_daemon(&ground, &mut daemon, step, || inside.tell("authsock token rotate --now --json"));
        if code == 0 {
            let told: Value = serde_json::from_str(said.trim()).unwrap();
            assert_eq!(told["token_id"], token_id(&inside.token()).as_str(), "{step:?}");
            assert_eq!(standing(&ground, &old).unwrap_err(), "revoked", "{step:?}");
        }
        assert_eq!(inside.id(), id, "{step:?}: {said}");
        assert_eq!(standing(&ground, &token_in(&inside.token_file)), Ok(id.clone()), "{step:?}: {said}");
        seen
    });
    assert!(steps > 10, "{steps}");
}

#[test]
fn a_rotation_that_is_killed_at_any_step_leaves_its_session_a_token_that_works() {
    if skip_without_strace() {
        return;
    }
    let ground = Ground::new();
    let _daemon = ground.serve();
    let mut inside = Inside::begin(&ground, &["--bind", "uid", "--name", "turner"]);
    let id = inside.id();
    let trace = ground.root().join("trace");
    for options in ["--now", ""] {
        let steps = at_every_step(|step| {
            let watched: Vec<String> =
                Step::options(step).iter().map(|option| format!("'{option}'")).collect();
            let line = format!(
                "strace -o '{}' {} authsock token rotate {options}",
                trace.display(),
                watched.join(" ")
            );
            let (code, said) = inside.tell(&line);
            let seen = Seen::read(&trace);
            assert_eq!(code == 0, !seen.was_killed, "{step:?}: {code} {said}");
            // With a grace the next rotation comes into it, where the old token makes nothing.
            let (code, said) = inside.tell("authsock token rotate --now");
            assert_eq!(code, 0, "{step:?}: {said}");
            assert_eq!(standing(&ground, &token_in(&inside.token_file)), Ok(id.clone()), "{step:?}");
            seen
        });
        assert!(steps > 10, "{steps}");
    }
}

#[test]
fn what_a_cut_off_rotation_left_is_tried_when_the_token_is_refused_and_only_the_doctor_leaves_it() {
    let ground = Ground::new();
    let _daemon = ground.serve();
    let mut inside = Inside::begin(&ground, &["--bind", "uid", "--name", "turner"]);
    let (id, before) = (inside.id(), inside.token());
    let left = inside.token_file.with_file_name(".token-next");
    // One that the daemon has never heard of is in nobody's way, and is not left for ever.
    put(&left, &Token::generate().unwrap().reveal(), 0o600);
    assert_eq!(inside.id(), id);
    assert!(left.exists() && inside.token() == before);
    assert_eq!(inside.tell("authsock token rotate --now").0, 0);
    assert!(!left.exists() && inside.token() != before);
    // One that it has, with the old one worth nothing any more.
    let (next, verifier) = minted();
    let params = json!({ "verifier": verifier, "grace_seconds": 0 });
    let old = inside.token();
    ask(&ground.init_socket(), &old, "session.rotate", &params);
    put(&left, &next.reveal(), 0o600);
    let (code, said) = inside.tell("authsock doctor");
    assert!(left.exists() && inside.token() == old, "{code}: {said}");
    // Another's file of that name is no token, and what is wider than 0600 is none either.
    std::fs::set_permissions(&left, PermissionsExt::from_mode(0o644)).unwrap();
    let (code, said) = inside.tell("authsock whoami");
    assert!(code == 4 && said.contains("revoked"), "{code}: {said}");
    std::fs::set_permissions(&left, PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(inside.id(), id);
    assert!(!left.exists() && inside.token() == *next.reveal());
    // While one is under way, another one says so; it ends with whoever began it.
    let lock = "exec 9<\"${AUTHSOCK_TOKEN_FILE%/*}\"; flock -n 9; authsock token rotate 9<&-; code=$?; exec 9<&-; (exit $code)";
    if !skip_unless(has("flock"), "flock is not installed") {
        let (code, said) = inside.tell(lock);
        assert!(code == 1 && said.contains("try again when that is done"), "{code}: {said}");
    }
    assert_eq!(inside.tell("authsock token rotate --now").0, 0);
    assert_eq!(inside.id(), id);
}

#[test]
fn a_revocation_that_is_killed_at_any_step_ends_all_below_or_nothing() {
    if skip_without_strace() {
        return;
    }
    let ground = Ground::new();
    let mut daemon = Some(ground.serve());
    let owner = ground.token_after_first_contact();
    let socket = ground.init_socket();
    let mut family = Family::begin(&ground);
    let steps = at_every_step(|step| {
        let top = family.ids[0].clone();
        let (answer, seen) = with_daemon(&ground, &mut daemon, step, || {
            ask(&socket, &owner, "session.revoke", &json!({ "id": top }))
        });
        let stand: Vec<Result<String, String>> =
            family.tokens.iter().map(|token| standing(&ground, token)).collect();
        let lives = stand.iter().filter(|one| one.is_ok()).count();
        let listed = living(&ground);
        let shown = family.ids.iter().filter(|id| listed.contains(id)).count();
        assert_eq!(lives, shown, "{step:?}: {stand:?}, {listed:?}");
        assert!(lives == 0 || lives == family.ids.len(), "{step:?}: {stand:?}");
        if let Some(answer) = &answer {
            assert_eq!(answer["result"]["ended"], family.ids.len(), "{step:?}: {answer}");
            assert_eq!(lives, 0, "{step:?}: what was told to have ended has");
        }
        if lives == 0 {
            assert!(
                stand.iter().all(|one| one.as_ref().is_err_and(|code| code == "revoked")),
                "{step:?}: {stand:?}"
            );
            let next = Family::begin(&ground);
            std::mem::replace(&mut family, next).inside.end();
        }
        seen
    });
    assert!(steps > 8, "{steps}");
    family.inside.end();
}

/// A session, one below it, and one below that; each with a leader of its own.
struct Family {
    inside: Inside,
    /// From the top.
    ids: Vec<String>,
    tokens: Vec<String>,
}

impl Family {
    fn begin(ground: &Ground) -> Family {
        let tell = "echo \"$AUTHSOCK_TOKEN_FILE\" >>\"$1\"; shift; exec \"$@\"";
        let files = ground.root().join("family");
        let _ = std::fs::remove_file(&files);
        let files = files.to_str().unwrap();
        let below =
            ["--", "sh", "-c", tell, "sh", files, ground.binary.to_str().unwrap(), "run", "--bind", "uid"];
        let mut options = vec!["--bind", "uid"];
        options.extend(below.iter().chain(&below));
        let inside = Inside::begin(ground, &options);
        let files = std::fs::read_to_string(files).unwrap();
        let mut files: Vec<PathBuf> = files.lines().map(PathBuf::from).collect();
        files.push(inside.token_file.clone());
        let tokens: Vec<String> = files.iter().map(|file| token_in(file)).collect();
        let ids: Vec<String> = tokens.iter().map(|token| standing(ground, token).unwrap()).collect();
        assert_eq!(ids.len(), 3);
        Family { inside, ids, tokens }
    }
}
