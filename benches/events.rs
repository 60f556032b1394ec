//! What events cost: from one publisher to a thousand subscribers, beside a bare server that writes the same bytes; with a subscriber that never reads; and in memory.
//!
//! It drives the program over its socket, as clients do, and prints a table. No time is asserted: machines differ. That
//! every subscriber got every event in order, or was told how many it missed, is. `cargo bench --bench events -- COUNT`
//! publishes COUNT events instead of 10,000.
#![allow(unreachable_pub, dead_code, unsafe_code, missing_docs, clippy::unwrap_used, clippy::print_stdout)]

#[path = "../tests/it/ground.rs"]
mod ground;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ground::{Daemon, Ground, Line, PATIENCE, put};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

/// How many events are published, unless the command line says otherwise.
const EVENTS: usize = 10_000;
/// How many listen.
const SUBSCRIBERS: usize = 1000;
/// How many single events are timed.
const SINGLES: usize = 200;
/// How many events the bare server writes at once: as many as the daemon publishes before others have their turn.
const TURN: usize = 32;
/// What has another process of this program be the bare server.
const BARE: &str = "bare-server";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [word, socket, subscribers, lines] = args.as_slice()
        && word == BARE
    {
        return bare(Path::new(socket), subscribers.parse().unwrap(), Path::new(lines));
    }
    let events = args.iter().find_map(|arg| arg.parse().ok()).unwrap_or(EVENTS);
    println!("{events} events to {SUBSCRIBERS} subscribers.\n");
    println!("| what | seconds | ratio |\n| --- | --- | --- |");
    let floor = floor(events);
    row("a bare server writes the same bytes, 32 lines at once", floor, floor);
    let without = round(events, false);
    row("published and read by all", without.took, floor);
    let with = round(events, true);
    row("… beside one more that never reads", with.took, floor);
    println!("\n| what | value |\n| --- | --- |");
    println!(
        "| the one that never read: events that it then got, and that it was told of as missed | {} + {} |",
        with.got, with.missed
    );
    println!("| memory of the daemon with {SUBSCRIBERS} idle subscribers | {} KiB |", without.idle);
    println!("| … its most, while all read | {} KiB |", without.most);
    println!("| … its most, beside the one that never read | {} KiB |", with.most);
    singles();
}

fn row(what: &str, took: Duration, floor: Duration) {
    println!("| {what} | {:.2} | {:.2} |", took.as_secs_f64(), took.as_secs_f64() / floor.as_secs_f64());
}

/// What came of one round.
struct Round {
    took: Duration,
    got: usize,
    missed: usize,
    idle: u64,
    most: u64,
}

fn connected(ground: &Ground, token: &str) -> Line {
    let mut line = Line::connect(&ground.init_socket());
    assert_eq!(line.plain(token)["success"], true);
    line
}

fn subscribed(ground: &Ground, token: &str) -> Line {
    let mut line = connected(ground, token);
    let answer = line.call("events.subscribe", &json!({ "subjects": ["bench.>"] }));
    assert!(answer["result"].is_object(), "{answer}");
    line
}

fn request(id: usize) -> String {
    let params = json!({ "subject": "bench.event", "data": id });
    format!("{}\n", json!({ "jsonrpc": "2.0", "id": id, "method": "events.publish", "params": params }))
}

fn memory(daemon: &Daemon, what: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with(what)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn round(events: usize, with_stuck: bool) -> Round {
    let ground = Ground::new();
    let daemon = ground.serve();
    let token = ground.token_after_first_contact();
    let lines: Vec<Line> = (0..SUBSCRIBERS).map(|_| subscribed(&ground, &token)).collect();
    let mut stuck = with_stuck.then(|| subscribed(&ground, &token));
    let mut publisher = connected(&ground, &token);
    publisher.call("ping", &json!({}));
    let idle = memory(&daemon, "VmRSS");
    let streams: Vec<UnixStream> = lines.iter().map(|line| line.stream().try_clone().unwrap()).collect();
    let start = Instant::now();
    let all = std::thread::scope(|scope| {
        let mut sending = publisher.stream().try_clone().unwrap();
        let mut answers = BufReader::new(publisher.stream().try_clone().unwrap());
        scope.spawn(move || {
            for first in (0..events).step_by(TURN) {
                let burst: String = (first..events.min(first + TURN)).map(request).collect();
                sending.write_all(burst.as_bytes()).unwrap();
            }
        });
        scope.spawn(move || {
            let mut line = String::new();
            for _ in 0..events {
                line.clear();
                answers.read_line(&mut line).unwrap();
                assert!(line.contains("\"reached\":"), "{line}");
            }
        });
        read_all(streams, events)
    });
    let took = start.elapsed();
    let missed: usize = all.iter().map(|(_, missed)| missed).sum();
    assert!(all.iter().all(|(got, missed)| got + missed == events));
    if missed > 0 {
        println!("| (of those who read, events missed, and told so: {missed}) | | |");
    }
    let most = memory(&daemon, "VmHWM");
    let (mut got, mut missed) = (0, 0);
    if let Some(stuck) = &mut stuck {
        while got + missed < events {
            let line = stuck.receive().unwrap();
            match line["method"].as_str().unwrap() {
                "event" => got += 1,
                _ => missed += usize::try_from(line["params"]["missed"].as_u64().unwrap()).unwrap(),
            }
        }
    }
    Round { took, got, missed, idle, most }
}

/// Reads from all until each has, or was told that it missed, so many events; asserts the order.
fn read_all(streams: Vec<UnixStream>, events: usize) -> Vec<(usize, usize)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for stream in streams {
            stream.set_nonblocking(true).unwrap();
            let mut stream = tokio::net::UnixStream::from_std(stream).unwrap();
            tasks.spawn(async move {
                let (mut got, mut missed, mut rest) = (0, 0, Vec::new());
                let mut chunk = vec![0; 64 * 1024];
                while got + missed < events {
                    let read = stream.read(&mut chunk).await.unwrap();
                    assert!(read > 0, "closed after {got} + {missed}");
                    rest.extend_from_slice(&chunk[..read]);
                    let whole = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |place| place + 1);
                    for line in rest[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                        match number_of(line) {
                            Some(number) => {
                                assert_eq!(number, got + missed, "in order");
                                got += 1;
                            }
                            None => {
                                let gap: Value = serde_json::from_slice(line).unwrap();
                                missed += usize::try_from(gap["params"]["missed"].as_u64().unwrap()).unwrap();
                            }
                        }
                    }
                    rest.drain(..whole);
                }
                (got, missed)
            });
        }
        tasks.join_all().await
    })
}

/// The number that an event's line tells as its data, which comes last.
fn number_of(line: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(line).unwrap();
    let (_, data) = text.rsplit_once("\"data\":")?;
    data.strip_suffix("}}")?.parse().ok()
}

/// The same bytes from a server that does nothing else.
fn floor(events: usize) -> Duration {
    let dir = tempfile::tempdir().unwrap();
    let (socket, lines) = (dir.path().join("s"), dir.path().join("lines"));
    // As long as the daemon's own lines.
    let line = |number: usize| {
        format!(
            "{{\"jsonrpc\":\"2.0\",\"method\":\"event\",\"params\":{{\"subject\":\"bench.event\",\"realm\":\"default\",\"seq\":{number},\"epoch\":\"0123456789abcdef\",\"time_ms\":1700000000000,\"publisher\":{{\"id\":\"owner\",\"name\":\"owner\"}},\"data\":{number}}}}}\n"
        )
    };
    put(&lines, &(0..events).map(line).collect::<String>(), 0o600);
    let mut server = Server::start(&socket, &lines);
    let streams: Vec<UnixStream> = (0..SUBSCRIBERS).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    let start = Instant::now();
    server.0.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    let all = read_all(streams, events);
    assert!(all.iter().all(|(got, _)| *got == events));
    start.elapsed()
}

/// The bare server, in a process of its own as the daemon is.
struct Server(Child);

impl Server {
    fn start(socket: &Path, lines: &Path) -> Server {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg(BARE).arg(socket).arg(SUBSCRIBERS.to_string()).arg(lines);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut ready).unwrap();
        Server(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn bare(socket: &Path, subscribers: usize, lines: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    println!("ready");
    let mut streams: Vec<UnixStream> = (0..subscribers).map(|_| listener.accept().unwrap().0).collect();
    let lines = std::fs::read(lines).unwrap();
    let mut go = [0; 3];
    std::io::stdin().read_exact(&mut go).unwrap();
    let ends: Vec<usize> =
        lines.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(place, _)| place + 1).collect();
    let mut begin = 0;
    for turn in ends.chunks(TURN) {
        let end = *turn.last().unwrap();
        for stream in &mut streams {
            stream.write_all(&lines[begin..end]).unwrap();
        }
        begin = end;
    }
    // Until it is ended: closing would not matter, but this way nothing of it is in the time.
    std::thread::sleep(PATIENCE * 100);
}

/// One event at a time: how long until one listener has it, and until all have.
fn singles() {
    let ground = Ground::new();
    let _daemon = ground.serve();
    let token = ground.token_after_first_contact();
    println!("\n| what | median, microseconds | 99 % |\n| --- | --- | --- |");
    for count in [1, SUBSCRIBERS] {
        let mut lines: Vec<Line> = (0..count).map(|_| subscribed(&ground, &token)).collect();
        let mut publisher = connected(&ground, &token);
        let mut times: Vec<Duration> = (0..SINGLES)
            .map(|number| {
                let start = Instant::now();
                publisher.send(&request(number));
                for line in &mut lines {
                    assert_eq!(line.receive().unwrap()["params"]["data"], number);
                }
                let took = start.elapsed();
                assert_eq!(publisher.receive().unwrap()["result"]["reached"], count);
                took
            })
            .collect();
        times.sort_unstable();
        let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)].as_secs_f64() * 1e6;
        println!("| one event, read by {count}, one after the other | {:.0} | {:.0} |", at(50), at(99));
    }
}
