//! What sessions cost: how soon an end is known, how long making and finding one takes among how many, what one weighs, and how long others wait meanwhile.
//!
//! It drives the program over its socket, as clients do, and prints a table. No time is asserted: machines differ. `cargo
//! bench --bench sessions -- COUNT` makes COUNT sessions instead of 100,000.
#![allow(unreachable_pub, dead_code, unsafe_code, missing_docs, clippy::unwrap_used, clippy::print_stdout)]

#[path = "../tests/it/ground.rs"]
mod ground;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use authsock::secret::token::Token;
use ground::{Daemon, Ground, Line, minted};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// How many sessions are made, unless the command line says otherwise.
const MANY: usize = 100_000;
/// How many there are in the daemon that it is compared with.
const FEW: usize = 1000;
/// How many leaders are killed.
const ENDS: usize = 20;
/// How often sessions are looked up at random, in each of both daemons.
const LOOKUPS: usize = 4000;
/// What has another process of this program make sessions.
const MAKER: &str = "make-sessions";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [word, socket, token, requests] = args.as_slice()
        && word == MAKER
    {
        return make(Path::new(socket), Path::new(token), Path::new(requests));
    }
    let many = args.iter().find_map(|arg| arg.parse().ok()).unwrap_or(MANY);
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory } else { Path::new("/tmp") };
    println!("State in {}. Times in microseconds unless they say otherwise.\n", place.display());
    println!("| what | median | 99 % | worst |\n| --- | --- | --- | --- |");
    ends(place);
    let few = Populated::with(place, FEW);
    let mut many = Populated::with(place, many);
    few.tell();
    many.tell();
    lookups(&few, &many);
    many.restart();
    many.end();
}

/// A row of the table.
fn row(what: &str, times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)];
    let micros = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1e6);
    println!("| {what} | {} | {} | {} |", micros(at(50)), micros(at(99)), micros(at(100)));
    at(50)
}

/// A row that has one number.
fn number(what: &str, value: impl std::fmt::Display) {
    println!("| {what} | {value} | | |");
}

/// From the end of a leader to what others see of it.
fn ends(place: &Path) {
    let ground = Ground::below(place);
    let _daemon = ground.serve();
    let owner = ground.token_after_first_contact();
    let (mut told, mut closed, mut gone) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ENDS {
        let mut run =
            ground.authsock(["run", "--bind", "uid", "--", "sh", "-c", "echo \"$AUTHSOCK_TOKEN_FILE\"; cat"]);
        let mut run = run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut file = String::new();
        BufReader::new(run.stdout.as_mut().unwrap()).read_line(&mut file).unwrap();
        let mut session = Line::connect(&ground.init_socket());
        let result = session.plain(&std::fs::read_to_string(file.trim_end()).unwrap());
        let id = result["session"]["id"].as_str().unwrap();
        let mut list = Line::connect(&ground.init_socket());
        list.plain(&owner);
        let start = Instant::now();
        run.kill().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while list.call("session.list", &json!({})).to_string().contains(id) {}
                gone.push(start.elapsed());
            });
            let word = session.receive();
            assert_eq!(word.unwrap()["method"], "session.ended");
            told.push(start.elapsed());
            assert_eq!(session.receive(), None);
            closed.push(start.elapsed());
        });
        run.wait().unwrap();
    }
    row("leader killed with SIGKILL: `session.ended` on its session's connection", &mut told);
    row("… the connection is closed", &mut closed);
    row("… `session.list`, asked again and again, lacks it", &mut gone);
}

/// Makes sessions as their leader, all over one connection; tells how long it took, and which they are. Then it lives on
/// for as long as anybody listens.
fn make(socket: &Path, token: &Path, requests: &Path) {
    let mut line = Line::connect(socket);
    let result = line.plain(&std::fs::read_to_string(token).unwrap());
    assert_eq!(result["success"], true, "{result}");
    let requests = std::fs::read(requests).unwrap();
    let mut sending = line.stream().try_clone().unwrap();
    let mut answers = BufReader::with_capacity(1 << 20, line.stream().try_clone().unwrap());
    let count = requests.iter().filter(|byte| **byte == b'\n').count();
    let start = Instant::now();
    let lines: Vec<String> = std::thread::scope(|scope| {
        scope.spawn(|| sending.write_all(&requests).unwrap());
        (0..count)
            .map(|_| {
                let mut answer = String::new();
                answers.read_line(&mut answer).unwrap();
                answer
            })
            .collect()
    });
    let took = start.elapsed();
    let mut told = format!("{}\n", took.as_nanos());
    for line in lines {
        let answer: Value = serde_json::from_str(&line).unwrap();
        let id = answer["result"]["session"]["id"].as_str().unwrap_or_else(|| panic!("{answer}"));
        told.push_str(id);
        told.push('\n');
    }
    let mut out = std::io::stdout();
    out.write_all(told.as_bytes()).unwrap();
    out.flush().unwrap();
    // Until the other end of standard input is closed, or this process is killed.
    let _ = std::io::stdin().lock().lines().next();
}

/// A daemon with many sessions.
struct Populated {
    ground: Ground,
    daemon: Daemon,
    owner: String,
    maker: Child,
    /// Each session's id and token.
    sessions: Vec<(String, Token)>,
    took: Duration,
    /// How long others waited for the answer to a `ping` meanwhile.
    pings: Vec<Duration>,
    /// Of memory and of disk.
    before: Weight,
    after: Weight,
}

impl Populated {
    fn with(place: &Path, count: usize) -> Populated {
        let ground = Ground::below(place);
        let limits = "sessions = 200000\nsessions_per_uid = 200000\n";
        ground.configure(&format!("[limits]\n{limits}[lifecycle]\nidle_exit_seconds = 0\n"));
        let daemon = ground.serve();
        let owner = ground.token_after_first_contact();
        let before = Weight::of(&ground, &daemon);
        // What verifies the tokens is made before the clock runs.
        let mut requests = String::new();
        let tokens: Vec<Token> = (0..count)
            .map(|number| {
                let (token, verifier) = minted();
                let params = json!({ "name": format!("n{number}"), "binding": "uid", "verifier": verifier });
                let call =
                    json!({ "jsonrpc": "2.0", "id": number, "method": "session.create", "params": params });
                requests.push_str(&format!("{call}\n"));
                token
            })
            .collect();
        let file = ground.root().join("requests");
        ground::put(&file, &requests, 0o600);
        let mut maker = Command::new(std::env::current_exe().unwrap());
        maker.arg(MAKER).arg(ground.init_socket()).arg(ground.token_path()).arg(&file);
        let mut maker = maker.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(maker.stdout.take().unwrap());
        let mut line = String::new();
        let pings = ping_while(&ground, &owner, || {
            out.read_line(&mut line).unwrap();
        });
        let took = Duration::from_nanos(line.trim_end().parse().unwrap());
        let ids = out.lines().take(count).map(Result::unwrap);
        let sessions: Vec<_> = ids.zip(tokens).collect();
        assert_eq!(sessions.len(), count);
        let after = Weight::of(&ground, &daemon);
        Populated { ground, daemon, owner, maker, sessions, took, pings, before, after }
    }

    fn tell(&self) {
        let count = self.sessions.len();
        let each = |whole: u64| format!("{}", whole / u64::try_from(count).unwrap());
        number(
            &format!("{count} sessions made over one connection: each"),
            format!("{:.1}", self.took.as_secs_f64() * 1e6 / count as f64),
        );
        row("… `ping` on another connection meanwhile", &mut self.pings.clone());
        let grown = |of: fn(&Weight) -> u64| of(&self.after).saturating_sub(of(&self.before));
        number("… memory of the daemon before (Pss), in bytes", self.before.pss);
        number("… more memory for each (Pss), in bytes", each(grown(|weight| weight.pss)));
        number("… more memory for each (Private_Dirty), in bytes", each(grown(|weight| weight.dirty)));
        number("… a record's length, in bytes", each(grown(|weight| weight.length)));
        number("… what its file takes up, in bytes", each(grown(|weight| weight.blocks)));
    }

    /// Has the daemon be killed, and another one follow.
    fn restart(&mut self) {
        let start = Instant::now();
        self.daemon.child.kill().unwrap();
        self.daemon.child.wait().unwrap();
        self.daemon = Daemon::start(&self.ground, self.daemon.listener.try_clone().unwrap(), |_| {});
        let took = start.elapsed().as_millis();
        let mut line = Line::connect(&self.ground.init_socket());
        line.plain(&self.owner);
        let live = line.call("status", &json!({}))["result"]["sessions"].clone();
        assert_eq!(live, self.sessions.len());
        number(&format!("a daemon is killed among {live} sessions: the next one is ready, in ms"), took);
    }

    /// Has the leader of all of them end.
    fn end(mut self) {
        let count = self.sessions.len();
        let start = Instant::now();
        self.maker.kill().unwrap();
        self.maker.wait().unwrap();
        let mut asking = Line::connect(&self.ground.init_socket());
        asking.plain(&self.owner);
        let mut took = Duration::ZERO;
        let mut pings = ping_while(&self.ground, &self.owner, || {
            while asking.call("status", &json!({}))["result"]["sessions"] != 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
            took = start.elapsed();
        });
        number(&format!("the leader of {count} sessions ends: all have ended, in ms"), took.as_millis());
        row("… `ping` on another connection meanwhile", &mut pings);
    }

    /// One of the sessions.
    fn any(&self, number: usize) -> &(String, Token) {
        &self.sessions[number % self.sessions.len()]
    }
}

impl Drop for Populated {
    fn drop(&mut self) {
        let _ = self.maker.kill();
        let _ = self.maker.wait();
    }
}

/// Pings on a connection of its own for as long as something takes.
fn ping_while(ground: &Ground, owner: &str, act: impl FnOnce()) -> Vec<Duration> {
    let mut line = Line::connect(&ground.init_socket());
    line.plain(owner);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pinging = scope.spawn(|| {
            let mut times = Vec::new();
            while times.is_empty() || !done.load(Ordering::Relaxed) {
                let start = Instant::now();
                assert_eq!(line.call("ping", &json!({}))["result"]["pong"], true);
                times.push(start.elapsed());
                std::thread::sleep(Duration::from_millis(1));
            }
            times
        });
        act();
        done.store(true, Ordering::Relaxed);
        pinging.join().unwrap()
    })
}

/// Looks sessions up at random in both daemons, in turns, so that whatever else the machine does concerns both.
fn lookups(few: &Populated, many: &Populated) {
    let both = [few, many];
    // Which processor a daemon was on last would decide otherwise: waking another one that sleeps takes longer than all else.
    let _pinned = both.map(|populated| Pinned::to_this_processor(populated.daemon.child.id()));
    let _self = Pinned::to_this_processor(0);
    let mut gets = both.map(|populated| {
        let mut line = Line::connect(&populated.ground.init_socket());
        line.plain(&populated.owner);
        line
    });
    let (mut handshakes, mut asked) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    // A generator of the simplest kind: which sessions are drawn is nobody's secret.
    let mut drawn = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..LOOKUPS {
        for turn in 0..2 {
            let which = (round + turn) % 2;
            drawn ^= drawn << 13;
            drawn ^= drawn >> 7;
            drawn ^= drawn << 17;
            let (id, token) = both[which].any(usize::try_from(drawn >> 8).unwrap());
            let opening = format!(
                "{}\n{}\n",
                json!({ "type": "auth", "token": token.reveal().as_str() }),
                json!({ "jsonrpc": "2.0", "id": 1, "method": "whoami" })
            );
            let start = Instant::now();
            let stream = UnixStream::connect(both[which].ground.init_socket()).unwrap();
            let mut line = Line::on(stream);
            line.send(&opening);
            let (result, answer) = (line.receive().unwrap(), line.receive().unwrap());
            handshakes[which].push(start.elapsed());
            assert_eq!(result["success"], true, "{result}");
            assert_eq!(answer["result"]["session"]["id"], id.as_str(), "{answer}");
            drop(line);
            let params = json!({ "id": id });
            let start = Instant::now();
            let answer = gets[which].call("session.get", &params);
            asked[which].push(start.elapsed());
            assert_eq!(answer["result"]["session"]["id"], id.as_str(), "{answer}");
        }
    }
    for (what, times) in [("connection, handshake and `whoami`", handshakes), ("`session.get`", asked)] {
        let [mut at_few, mut at_many] = times;
        let few = row(&format!("{what}, among {} sessions", few.sessions.len()), &mut at_few);
        let many = row(&format!("{what}, among {} sessions", many.sessions.len()), &mut at_many);
        number("… ratio of the medians", format!("{:.2}", many.as_secs_f64() / few.as_secs_f64()));
    }
}

/// A process that stays on the processor that this one is on; 0 is this one.
struct Pinned {
    pid: u32,
}

impl Pinned {
    fn to_this_processor(pid: u32) -> Pinned {
        #[cfg(target_os = "linux")]
        affinity(pid, &[nix::sched::sched_getcpu().unwrap()]);
        Pinned { pid }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        #[cfg(target_os = "linux")]
        affinity(self.pid, &(0..nix::sched::CpuSet::count()).collect::<Vec<_>>());
    }
}

#[cfg(target_os = "linux")]
fn affinity(pid: u32, processors: &[usize]) {
    let mut set = nix::sched::CpuSet::new();
    processors.iter().for_each(|processor| set.set(*processor).unwrap());
    nix::sched::sched_setaffinity(Pid::from_raw(pid.try_into().unwrap()), &set).unwrap();
}

/// What a daemon weighs.
struct Weight {
    pss: u64,
    dirty: u64,
    length: u64,
    blocks: u64,
}

impl Weight {
    fn of(ground: &Ground, daemon: &Daemon) -> Weight {
        let pid = daemon.child.id();
        // It lives, so this says nothing of a process that came after it.
        kill(Pid::from_raw(pid.try_into().unwrap()), None::<Signal>).unwrap();
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let field = |name: &str| {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0");
            line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
        };
        let (mut length, mut blocks) = (0, 0);
        for entry in std::fs::read_dir(ground.state().join("sessions")).into_iter().flatten() {
            let meta = entry.unwrap().metadata().unwrap();
            length += meta.size();
            blocks += meta.blocks() * 512;
        }
        Weight { pss: field("Pss:"), dirty: field("Private_Dirty:"), length, blocks }
    }
}
