//! What `authsock run` hands on to its command and what it takes from it: environment, descriptors, signals, the terminal, and how it ended.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::ground::{Daemon, Ground, PATIENCE, has, make_program, pass_as, skip_unless, text_of};
use crate::terminal::{CTRL_C, CTRL_D, CTRL_Z, Terminal};

fn served() -> (Ground, Daemon) {
    let ground = Ground::new();
    let daemon = ground.serve();
    (ground, daemon)
}

fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{}", text_of(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The same command without `run` and with it, each with the same change.
fn without_and_with(ground: &Ground, words: &[&str], change: impl Fn(&mut Command)) -> [String; 2] {
    let mut plain = ground.command(words[0]);
    plain.args(&words[1..]);
    let mut run = ground.authsock(["run", "--"]);
    run.args(words);
    [plain, run].map(|mut command| {
        change(&mut command);
        printed(&command.output().unwrap())
    })
}

/// Has signals be ignored, or blocked, when the command starts; whatever the runner of the tests does with them.
fn start_with(command: &mut Command, ignored: &[Signal], blocked: &[Signal]) {
    let (ignored, blocked) = (ignored.to_vec(), blocked.to_vec());
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe {
        command.pre_exec(move || {
            for number in 1..32 {
                libc::signal(number, libc::SIG_DFL);
            }
            for signal in &ignored {
                libc::signal(*signal as i32, libc::SIG_IGN);
            }
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in &blocked {
                libc::sigaddset(&raw mut set, *signal as i32);
            }
            libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
            Ok(())
        });
    }
}

// --- what is handed on --------------------------------------------------------------------------

#[test]
fn the_environment_is_handed_on_but_for_what_was_meant_for_run_alone() {
    let (ground, _daemon) = served();
    let theirs = ground.root().join("theirs");
    let [before, after] = without_and_with(&ground, &["env", "-0"], |command| {
        command
            .env("LISTEN_PID", "1")
            .env("LISTEN_PIDFDID", "1")
            .env("LISTEN_FDS", "1")
            .env("LISTEN_FDNAMES", "x")
            .env("NOTIFY_SOCKET", &theirs)
            .env("WATCHDOG_PID", "1")
            .env("WATCHDOG_USEC", "1000")
            .env("AUTHSOCK_TOKEN_FD", "9999")
            .env("AUTHSOCK_TOKEN_FILE", ground.token_path())
            .env("AUTHSOCK_SOCKET", ground.init_socket())
            .env("AUTHSOCK_LOG", "error")
            .env("LISTEN_OTHER", "kept")
            .env("ODD", "a=b\nc \u{1b}");
    });
    let read = |text: &str| -> BTreeMap<String, String> {
        let pairs = text.split_terminator('\0').map(|pair| pair.split_once('=').unwrap());
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    let (before, mut after) = (read(&before), read(&after));
    let mut gone: Vec<&str> =
        before.keys().filter(|name| !after.contains_key(*name)).map(String::as_str).collect();
    gone.sort_unstable();
    let wanted = [
        "AUTHSOCK_TOKEN_FD",
        "LISTEN_FDNAMES",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_PIDFDID",
        "NOTIFY_SOCKET",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
    ];
    assert_eq!(gone, wanted);
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/sessions.md")).unwrap();
    for name in gone {
        assert!(page.contains(&format!("`{name}`")), "docs/sessions.md does not name {name}");
    }
    // The inner token wins; and where this program lies is added only where it is not found.
    let token = after.remove("AUTHSOCK_TOKEN_FILE").unwrap();
    assert!(token.starts_with(ground.runtime().join("authsock-run").to_str().unwrap()), "{token}");
    assert_eq!(after.remove("AUTHSOCK_SOCKET").as_deref(), ground.init_socket().to_str());
    if after["PATH"] != before["PATH"] {
        assert!(after["PATH"].ends_with(&format!(":{}", before["PATH"])), "{}", after["PATH"]);
    }
    for (name, value) in after.iter().filter(|(name, _)| *name != "PATH") {
        assert_eq!(before.get(name), Some(value), "{name}");
    }
}

/// Which descriptors a command has open when it starts, from number 3 on; the reader's own is the last.
const OPEN: &str = "for fd in /proc/self/fd/*; do n=${fd##*/}; [ $n -gt 2 ] && [ $n -lt 10 ] && [ -e $fd ] && echo $n; done; exit 0";

#[test]
#[cfg(target_os = "linux")] // /proc
fn the_command_inherits_what_run_was_given_and_nothing_of_run_s_own() {
    let (ground, _daemon) = served();
    let file = std::fs::File::open("/dev/null").unwrap();
    let [before, after] = without_and_with(&ground, &["sh", "-c", OPEN], |command| {
        pass_as(command, file.as_raw_fd(), 5);
        pass_as(command, file.as_raw_fd(), 7);
    });
    assert_eq!(before, "5\n7\n");
    assert_eq!(after, before);
}

#[test]
#[cfg(target_os = "linux")] // /proc
fn the_outer_token_s_descriptor_and_passed_listeners_end_with_run() {
    let (ground, _daemon) = served();
    let owner = std::fs::File::open(ground.token_path()).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(ground.root().join("l")).unwrap();
    let open = |pid: &str, count: &str| {
        let mut command = ground.command("sh");
        // The shell names the process that it becomes.
        command.args(["-c", &format!("LISTEN_PID={pid} exec \"$0\" run -- sh -c '{OPEN}'")]);
        command.arg(&ground.binary).env("LISTEN_FDS", count).env("AUTHSOCK_TOKEN_FD", "6");
        for number in [3, 4, 5] {
            pass_as(&mut command, listener.as_raw_fd(), number);
        }
        pass_as(&mut command, owner.as_raw_fd(), 6);
        printed(&command.output().unwrap())
    };
    assert_eq!(open("$$", "2"), "5\n", "two were passed, the third is not the service manager's");
    assert_eq!(open("1", "2"), "3\n4\n5\n", "those were passed to another process");
    assert_eq!(open("$$", "nonsense"), "3\n4\n5\n", "how many, nobody knows");
}

#[test]
#[cfg(target_os = "linux")] // /proc
fn the_command_ignores_and_blocks_the_signals_that_it_would_without_run() {
    use Signal::{SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGPIPE, SIGTERM, SIGTSTP, SIGTTOU, SIGUSR1};
    let (ground, _daemon) = served();
    for (ignored, blocked) in [
        (&[][..], &[][..]),
        (&[SIGPIPE], &[]),
        (&[SIGCHLD], &[]),
        (&[SIGHUP, SIGINT, SIGTSTP], &[]),
        (&[SIGPIPE, SIGCHLD, SIGTTOU], &[SIGUSR1, SIGTERM]),
        (&[], &[SIGCHLD, SIGCONT, SIGTSTP, SIGPIPE]),
    ] {
        let [before, after] = without_and_with(&ground, &["cat", "/proc/self/status"], |command| {
            start_with(command, ignored, blocked);
        });
        let signals = |status: &str| -> Vec<String> {
            let is_meant = |line: &&str| line.starts_with("SigIgn") || line.starts_with("SigBlk");
            status.lines().filter(is_meant).map(str::to_owned).collect()
        };
        assert_eq!(signals(&after), signals(&before), "ignored {ignored:?}, blocked {blocked:?}");
        // The runner of the tests may ignore those beyond 31, where signal(2) has no say.
        let named =
            |line: &str| u64::from_str_radix(line.split_once('\t').unwrap().1, 16).unwrap() & 0x7fff_ffff;
        let bits = |signals: &[Signal]| signals.iter().fold(0u64, |all, one| all | 1 << (*one as u32 - 1));
        let found: Vec<u64> = signals(&before).iter().map(|line| named(line)).collect();
        assert_eq!(found, [bits(blocked), bits(ignored)], "the test starts it so");
    }
}

#[test]
fn standard_input_and_output_are_the_command_s_alone() {
    let (ground, _daemon) = served();
    let (words, mut tell) = std::io::pipe().unwrap();
    let script = "read x; echo $x; exec <&- >&-; read y <&3; exit 3";
    let mut job = Job::begin_with(&ground, script, |command| pass_as(command, words.as_raw_fd(), 3));
    drop(words);
    job.stdin.as_mut().unwrap().write_all(b"first\n").unwrap();
    // The end of output comes when the command closes it, and not when it ends.
    let mut said = String::new();
    job.stdout.read_to_string(&mut said).unwrap();
    assert_eq!(said, "first\n");
    // So it is with input: nobody is left who could read it.
    let error = job.stdin.as_mut().unwrap().write_all(b"second\n").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    tell.write_all(b"end\n").unwrap();
    assert_eq!(job.turn(), Turn::Ended(3), "it had not ended");
}

#[test]
fn a_session_s_name_does_not_pose_as_the_log_s_own_words() {
    let (ground, daemon) = served();
    let name = "x) ended: revoked (";
    let status = ground.authsock(["run", "--name", name, "--", "true"]).status().unwrap();
    assert!(status.success());
    let line = daemon.wait_for_log("ended: leader_exited");
    assert!(line.contains(r#"("x) ended: revoked (") ended: leader_exited"#), "{line}");
    assert!(!daemon.stderr().contains("(x) ended"), "{}", daemon.stderr());
}

// --- how it ended -------------------------------------------------------------------------------

#[test]
fn a_killed_command_s_status_is_128_and_the_signal_s_number_whichever_it_was() {
    let (ground, _daemon) = served();
    let named = [
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGILL,
        libc::SIGTRAP,
        libc::SIGABRT,
        libc::SIGBUS,
        libc::SIGFPE,
        libc::SIGKILL,
        libc::SIGUSR1,
        libc::SIGSEGV,
        libc::SIGUSR2,
        libc::SIGPIPE,
        libc::SIGALRM,
        libc::SIGTERM,
        libc::SIGXCPU,
        libc::SIGXFSZ,
        libc::SIGVTALRM,
        libc::SIGPROF,
        libc::SIGSYS,
    ];
    #[cfg(target_os = "linux")]
    let nameless = [libc::SIGRTMIN(), libc::SIGRTMAX()];
    #[cfg(not(target_os = "linux"))]
    let nameless = [];
    for number in named.into_iter().chain(nameless) {
        let mut command = ground.authsock(["run", "--", "sh", "-c"]);
        command.arg(format!("ulimit -c 0; kill -{number} $$; exit 1"));
        start_with(&mut command, &[], &[]);
        let status = command.status().unwrap();
        assert_eq!(status.code(), Some(128 + number), "signal {number}: {status}");
    }
    // A shell ends a loop for a program that died of the interrupt, and for no other.
    let mut command = ground.authsock(["run", "--", "sh", "-c", "kill -INT $$; exit 1"]);
    start_with(&mut command, &[], &[]);
    assert_eq!(command.status().unwrap().signal(), Some(libc::SIGINT));
    assert_eq!(ground.json(["status"])["sessions"], 0);
}

#[test]
fn a_core_that_was_written_does_not_change_the_status() {
    let (ground, _daemon) = served();
    let mut command =
        ground.authsock(["run", "--", "sh", "-c", "ulimit -c unlimited 2>/dev/null; kill -ABRT $$"]);
    start_with(&mut command, &[], &[]);
    assert_eq!(command.current_dir(ground.root()).status().unwrap().code(), Some(128 + libc::SIGABRT));
}

// --- stopping and going on, without a terminal --------------------------------------------------

/// Tells its pid and goes on to the end of its input. A shell's `read` may give up at a signal that it catches, and
/// its `wait` can be asked again; what it waits for is stopped by no terminal.
const WAIT: &str = "exec 3<&0; sh -c \"trap '' TSTP; echo $$; exec cat >/dev/null\" <&3 & child=$!; \
    while kill -0 $child 2>/dev/null; do wait $child; done";

/// What becomes of a child of ours that may stop.
#[derive(Debug, PartialEq)]
enum Turn {
    Stopped(i32),
    Ended(i32),
}

/// Waits until a child stops, ends or is killed.
fn turn_of(pid: Pid) -> Turn {
    let mut status = 0;
    // SAFETY: waitpid(2) fills in one number.
    let waited = unsafe { libc::waitpid(pid.as_raw(), &raw mut status, libc::WUNTRACED) };
    assert_eq!(waited, pid.as_raw(), "{}", std::io::Error::last_os_error());
    if libc::WIFSTOPPED(status) {
        Turn::Stopped(libc::WSTOPSIG(status))
    } else if libc::WIFEXITED(status) {
        Turn::Ended(libc::WEXITSTATUS(status))
    } else {
        Turn::Ended(-libc::WTERMSIG(status))
    }
}

/// A run in a process group of its own, as a shell with job control starts it. One that hangs is killed, with all
/// its group, so that whoever waits for a word of it hears the end.
struct Job {
    pid: Pid,
    stdout: BufReader<std::process::ChildStdout>,
    /// Its end reaches the command when this is dropped.
    stdin: Option<std::process::ChildStdin>,
    is_over: bool,
    /// Ends the guard, which must not outlive whose pid it knows.
    done: Option<std::sync::mpsc::Sender<()>>,
    guard: Option<std::thread::JoinHandle<()>>,
}

impl Job {
    fn begin(ground: &Ground, script: &str) -> Job {
        Job::begin_with(ground, script, |_| {})
    }

    #[allow(clippy::zombie_processes)] // whoever wants to hear of a stop waits for it by hand
    fn begin_with(ground: &Ground, script: &str, change: impl FnOnce(&mut Command)) -> Job {
        let mut command = ground.authsock(["run", "--", "sh", "-c", script]);
        start_with(&mut command, &[], &[]);
        change(&mut command);
        let mut run = command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(run.stdout.take().unwrap());
        let stdin = run.stdin.take();
        let pid = Pid::from_raw(run.id().try_into().unwrap());
        let (done, is_done) = std::sync::mpsc::channel();
        let guard = std::thread::spawn(move || {
            if is_done.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                let _ = killpg(pid, Signal::SIGKILL);
            }
        });
        Job { pid, stdout, stdin, is_over: false, done: Some(done), guard: Some(guard) }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn turn(&mut self) -> Turn {
        let turn = turn_of(self.pid);
        self.is_over = matches!(turn, Turn::Ended(_));
        turn
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.done.take();
        let _ = self.guard.take().map(std::thread::JoinHandle::join);
        if !self.is_over {
            let _ = killpg(self.pid, Signal::SIGKILL);
            while let Turn::Stopped(_) = turn_of(self.pid) {}
        }
    }
}

#[test]
fn a_command_that_stops_itself_stops_run_by_the_same_signal_and_both_go_on() {
    let (ground, _daemon) = served();
    for signal in [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU] {
        let name = &signal.as_str()[3..];
        let mut job = Job::begin(&ground, &format!("kill -{name} $$; authsock whoami >/dev/null && exit 4"));
        assert_eq!(job.turn(), Turn::Stopped(signal as i32));
        // The whole job, as a shell continues it.
        killpg(job.pid, Signal::SIGCONT).unwrap();
        assert_eq!(job.turn(), Turn::Ended(4), "{name}");
        let mut job = Job::begin(&ground, &format!("kill -{name} $$; exit 5"));
        assert_eq!(job.turn(), Turn::Stopped(signal as i32));
        // Run alone, as whoever knows its pid does.
        kill(job.pid, Signal::SIGCONT).unwrap();
        assert_eq!(job.turn(), Turn::Ended(5), "{name}");
    }
}

#[test]
fn a_job_that_is_stopped_and_continued_again_and_again_never_hangs() {
    let (ground, _daemon) = served();
    let mut job =
        Job::begin(&ground, "n=0; while [ $n -lt 200 ]; do kill -TSTP $$; n=$((n + 1)); done; exit 6");
    // As soon as it has stopped it is continued, by turns all of it and run alone.
    for number in 0.. {
        match job.turn() {
            Turn::Ended(code) => {
                assert_eq!(code, 6);
                assert!(number > 100, "it stopped {number} times of 200");
                break;
            }
            Turn::Stopped(signal) => assert_eq!(signal, libc::SIGTSTP),
        }
        if number % 2 == 0 { killpg(job.pid, Signal::SIGCONT) } else { kill(job.pid, Signal::SIGCONT) }
            .unwrap();
    }
    // Nobody waits for it to have stopped: whatever comes first, in the end it goes on.
    let mut job = Job::begin(&ground, "echo ready; read x; exit 7");
    assert_eq!(job.line(), "ready");
    for number in 0..500 {
        killpg(job.pid, Signal::SIGTSTP).unwrap();
        if number % 3 == 0 {
            std::thread::yield_now();
        }
        killpg(job.pid, Signal::SIGCONT).unwrap();
    }
    job.stdin.take();
    let mut turn = job.turn();
    // What it did in between is told, too, if nobody asked then.
    while let Turn::Stopped(_) = turn {
        assert_ne!(state_of(job.pid), 'T', "it was continued and has stopped");
        turn = job.turn();
    }
    assert_eq!(turn, Turn::Ended(7));
}

/// A process's state as the kernel tells it.
#[cfg(target_os = "linux")]
fn state_of(pid: Pid) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
}

#[cfg(not(target_os = "linux"))]
fn state_of(_: Pid) -> char {
    '?'
}

#[test]
fn run_alone_is_told_to_stop_and_its_command_stops_first() {
    let (ground, _daemon) = served();
    let script =
        format!("trap 'echo on the way; trap - TSTP; kill -TSTP $$; echo back' TSTP; {WAIT}; exit 8");
    let mut job = Job::begin(&ground, &script);
    job.line();
    kill(job.pid, Signal::SIGTSTP).unwrap();
    // It sets things in order first, and is not cut off from its terminal in between.
    assert_eq!(job.line(), "on the way");
    assert_eq!(job.turn(), Turn::Stopped(libc::SIGTSTP));
    killpg(job.pid, Signal::SIGCONT).unwrap();
    assert_eq!(job.line(), "back");
    job.stdin.take();
    assert_eq!(job.turn(), Turn::Ended(8));
}

#[test]
fn a_command_that_does_not_mean_to_stop_keeps_run_going() {
    let (ground, _daemon) = served();
    let mut job = Job::begin(&ground, &format!("trap 'echo not now' TSTP; {WAIT}; exit 9"));
    job.line();
    killpg(job.pid, Signal::SIGTSTP).unwrap();
    assert_eq!(job.line(), "not now");
    job.stdin.take();
    assert_eq!(job.turn(), Turn::Ended(9), "it never stopped");
}

#[test]
#[cfg(target_os = "linux")] // /proc
fn a_command_that_somebody_halts_alone_does_not_halt_run() {
    let (ground, _daemon) = served();
    let mut job = Job::begin(&ground, &format!("trap 'echo heard' USR1; {WAIT}; exit 10"));
    let command = Pid::from_raw(job.line().parse().unwrap());
    kill(command, Signal::SIGSTOP).unwrap();
    let end = std::time::Instant::now() + PATIENCE;
    let settled = |what: &str, is_so: &dyn Fn() -> bool| {
        // Nothing announces a state to those who are not the parent.
        while !is_so() {
            assert!(std::time::Instant::now() < end, "{what}");
            std::thread::yield_now();
        }
    };
    settled("the command is halted", &|| state_of(command) == 'T');
    // What run got it has taken, and waits for more.
    kill(job.pid, Signal::SIGUSR1).unwrap();
    settled("run has heard", &|| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", job.pid)).unwrap();
        let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:\t")).unwrap();
        pending.bytes().all(|digit| digit == b'0') && "ST".contains(state_of(job.pid))
    });
    assert_eq!(state_of(job.pid), 'S');
    kill(command, Signal::SIGCONT).unwrap();
    assert_eq!(job.line(), "heard");
    job.stdin.take();
    assert_eq!(job.turn(), Turn::Ended(10));
}

#[test]
fn where_no_shell_could_continue_it_nothing_stops() {
    let (ground, _daemon) = served();
    // In a session of its own nobody of the group has a parent outside of it: the kernel lets nothing there stop.
    let mut command = ground.authsock(["run", "--", "sh", "-c", "kill -TSTP $$; kill -TTIN $$; exit 11"]);
    start_with(&mut command, &[], &[]);
    // SAFETY: setsid(2) is async-signal-safe.
    unsafe {
        command.pre_exec(|| if libc::setsid() == -1 { Err(std::io::Error::last_os_error()) } else { Ok(()) });
    }
    assert_eq!(command.status().unwrap().code(), Some(11));
}

// --- a terminal ---------------------------------------------------------------------------------

/// A shell at a terminal, and how it prompts. `$RUN` is `authsock run --` in it.
fn shell(ground: &Ground, words: &[&str]) -> Terminal {
    let bin = ground.root().join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let binary = ground.binary.to_str().unwrap();
    make_program(&bin.join("in-session"), "printf '#!/bin/sh\nexec \"%s\" run -- \"$@\"\n' \"$2\"", binary);
    let mut command = ground.command(words[0]);
    command.args(&words[1..]).env("PS1", "ready> ").env("ENV", "").env("LC_ALL", "C");
    let path = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{path}", bin.display()));
    Terminal::begin(&mut command)
}

/// What a command at a terminal does in these tests: it says that it is there, and repeats what it is told.
const REPEAT: &str = "sh -c 'echo up-$((40 + 2)); while read x; do echo \"<$x>\"; done; exit 3'";

/// Asks the shell for its jobs until it says that one has stopped.
fn wait_until_stopped(at: &mut Terminal) {
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        at.say("jobs; echo li''sted");
        let jobs = at.wait_for("listed").to_lowercase();
        if jobs.contains("stopped") || jobs.contains("suspended") {
            return;
        }
        assert!(std::time::Instant::now() < end, "{jobs}");
    }
}

/// Goes through all that a person does with a job.
fn at_a_shell(words: &[&str], status: &str) {
    if skip_unless(has(words[0]), &format!("{} is not installed", words[0])) {
        return;
    }
    let (ground, _daemon) = served();
    let mut at = shell(&ground, words);
    at.say("echo sta''rt");
    at.wait_for("start");
    at.wait_for("ready> ");
    at.say(&format!("in-session {REPEAT}"));
    at.wait_for("up-42");
    at.press(CTRL_Z);
    at.wait_for("ready> ");
    wait_until_stopped(&mut at);
    at.say("fg");
    at.say("word");
    at.wait_for("<word>");
    at.press(CTRL_Z);
    at.wait_for("ready> ");
    // Behind, it may not read, and stops again.
    at.say("bg; echo beh''ind");
    at.wait_for("behind");
    wait_until_stopped(&mut at);
    at.say("fg");
    at.say("again");
    at.wait_for("<again>");
    at.press(CTRL_C);
    at.wait_for("ready> ");
    // One that is behind from the beginning, and reads.
    at.say(&format!("in-session {REPEAT} &"));
    at.wait_for("up-42");
    wait_until_stopped(&mut at);
    at.say("fg");
    at.say("third");
    at.wait_for("<third>");
    at.press(CTRL_D);
    at.wait_for("ready> ");
    // Interrupted, and by itself.
    for (key, code) in [(CTRL_C, 130), (CTRL_D, 3)] {
        at.say(&format!("in-session {REPEAT}"));
        at.wait_for("up-42");
        at.press(key);
        at.wait_for("ready> ");
        at.say(&format!("echo \"code ${status}\""));
        at.wait_for(&format!("code {code}"));
    }
    at.say("exit");
    at.rest();
    assert_eq!(ground.json(["status"])["sessions"], 0);
}

#[test]
fn at_bash_a_job_stops_is_listed_goes_on_in_front_and_behind_and_is_interrupted() {
    at_a_shell(&["bash", "--norc", "--noprofile", "-i"], "?");
}

#[test]
fn at_zsh_a_job_stops_is_listed_goes_on_in_front_and_behind_and_is_interrupted() {
    at_a_shell(&["zsh", "-f", "-i", "+Z"], "?");
}

#[test]
fn at_fish_a_job_stops_is_listed_goes_on_in_front_and_behind_and_is_interrupted() {
    at_a_shell(
        &["fish", "--no-config", "-i", "-C", "function fish_prompt; echo -n 'ready> '; end"],
        "status",
    );
}

#[test]
fn at_a_plain_shell_a_job_stops_is_listed_goes_on_in_front_and_behind_and_is_interrupted() {
    at_a_shell(&["dash", "-i"], "?");
}

#[test]
fn at_a_shell_a_program_that_stops_itself_comes_back() {
    let (ground, _daemon) = served();
    let mut at = shell(&ground, &["sh", "-i"]);
    at.say("in-session sh -c 'kill -TSTP $$; echo ba\"\"ck; authsock whoami'; echo pau''sed");
    at.wait_for("paused");
    at.say("fg; echo do''ne");
    at.wait_for("back");
    let said = at.wait_for("done");
    assert!(said.contains("session    sh ("), "{said}");
    at.say("exit");
    at.rest();
}

#[test]
fn a_shell_in_a_session_that_is_told_to_suspend_gives_the_terminal_back() {
    if skip_unless(has("bash"), "bash is not installed") {
        return;
    }
    let (ground, _daemon) = served();
    let mut at = shell(&ground, &["bash", "--norc", "--noprofile", "-i"]);
    at.wait_for("ready> ");
    at.say("in-session bash --norc --noprofile -i");
    at.wait_for("ready> ");
    at.say("who=in''ner; echo $who");
    at.wait_for("inner");
    for _ in 0..2 {
        at.say("suspend");
        at.wait_for("Stopped");
        at.say("echo out''er $who");
        assert!(!at.wait_for("outer").contains("inner"));
        at.say("fg");
        at.say("echo ba''ck $who");
        at.wait_for("back inner");
    }
    at.say("exit");
    at.wait_for("ready> ");
    at.say("exit");
    at.rest();
}

#[test]
fn the_command_has_the_terminal_its_size_and_its_input() {
    if skip_unless(has("python3"), "python3 is not installed") {
        return;
    }
    const LOOK: &str = r#"
import os, signal, sys
def size(*_):
    columns, rows = os.get_terminal_size()
    os.write(1, f"size {rows}x{columns}\n".encode())
signal.signal(signal.SIGWINCH, size)
print("in front" if os.tcgetpgrp(0) == os.getpgrp() else "behind", flush=True)
print(os.ttyname(0) == os.ttyname(1) == os.ttyname(2), flush=True)
size()
for line in sys.stdin:
    print(f"<{line.strip()}>", flush=True)
"#;
    let (ground, _daemon) = served();
    let mut command = ground.authsock(["run", "--", "python3", "-c", LOOK]);
    let mut at = Terminal::begin(&mut command);
    at.wait_for("in front\r\nTrue\r\nsize 24x80\r\n");
    at.resize(50, 132);
    at.wait_for("size 50x132");
    // All of it, and in order: nobody else reads.
    for number in 0..200 {
        at.say(&format!("line {number}"));
        at.wait_for(&format!("<line {number}>"));
    }
    at.press(CTRL_C);
    let said = at.rest();
    assert!(said.contains("KeyboardInterrupt"), "{said}");
    assert_eq!(at.leader.wait().unwrap().signal(), Some(libc::SIGINT));
}

#[test]
fn a_terminal_that_hangs_up_ends_the_command_and_its_session() {
    let (ground, daemon) = served();
    let mut command = ground.authsock([
        "run",
        "--name",
        "hung-up",
        "--",
        "sh",
        "-c",
        "echo up-$((40 + 2)); exec sleep 600",
    ]);
    let mut at = Terminal::begin(&mut command);
    at.wait_for("up-42");
    at.hang_up();
    daemon.wait_for_log("(hung-up) ended: leader_exited");
    assert_eq!(at.leader.wait().unwrap().code(), Some(128 + libc::SIGHUP));
}
