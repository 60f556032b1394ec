//! Whatever listens at the path instead of the daemon, or between it and the client, learns nothing and is named for what it is.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use authsock::handshake::server::{ExpectOpening, Opened};
use authsock::kernel::peer::Peer;
use authsock::secret::token::Token;
use authsock::secret::verifier::Verifier;
use authsock::wire::auth::{Hex32, PeerView};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::ground::{Ground, Line, PATIENCE, bind_private, has, is_root, put, refusal, skip_unless, text_of};

/// One client at an impostor's end, and everything that it said.
struct Guest {
    reader: BufReader<UnixStream>,
    heard: Vec<u8>,
}

impl Guest {
    fn line(&mut self) -> Vec<u8> {
        let mut line = Vec::new();
        let _ = self.reader.read_until(b'\n', &mut line);
        self.heard.extend_from_slice(&line);
        line
    }

    fn opening(&mut self) -> Value {
        serde_json::from_slice(&self.line()).unwrap()
    }

    /// A client that has heard enough may be gone: that is no fault of the impostor's.
    fn say(&mut self, words: impl AsRef<[u8]>) {
        let _ = self.reader.get_mut().write_all(words.as_ref());
    }

    fn say_json(&mut self, words: &Value) {
        self.say(format!("{words}\n"));
    }

    fn hang_up(&mut self) {
        let _ = self.reader.get_mut().shutdown(std::net::Shutdown::Both);
    }

    fn stream(&self) -> &UnixStream {
        self.reader.get_ref()
    }
}

/// Something that listens where a daemon should, and writes down all that it hears.
struct Impostor {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
    thread: JoinHandle<()>,
}

impl Impostor {
    fn listen(path: &Path, answer: impl FnMut(&mut Guest) + Send + 'static) -> Impostor {
        Impostor::listen_on(bind_private(path), path, answer)
    }

    fn listen_on(
        listener: UnixListener,
        path: &Path,
        mut answer: impl FnMut(&mut Guest) + Send + 'static,
    ) -> Impostor {
        let (stop, heard) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (stopped, all) = (stop.clone(), heard.clone());
        let thread = std::thread::spawn(move || {
            loop {
                let (stream, _) = listener.accept().unwrap();
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.set_write_timeout(Some(PATIENCE)).unwrap();
                let mut guest = Guest { reader: BufReader::new(stream), heard: Vec::new() };
                answer(&mut guest);
                // To the end: the client may yet say something that it should not.
                let mut rest = Vec::new();
                let _ = guest.reader.read_to_end(&mut rest);
                guest.heard.extend_from_slice(&rest);
                all.lock().unwrap().push(guest.heard);
            }
        });
        Impostor { path: path.to_path_buf(), stop, heard, thread }
    }

    /// Everything that was heard, connection by connection. The impostor is gone then.
    fn finish(self) -> Vec<Vec<u8>> {
        self.stop.store(true, Ordering::SeqCst);
        drop(UnixStream::connect(&self.path).unwrap());
        self.thread.join().unwrap();
        let _ = std::fs::remove_file(&self.path);
        std::mem::take(&mut self.heard.lock().unwrap())
    }
}

/// A ground with an owner's token, as after a daemon's first activation, and no daemon.
fn ground_with_token() -> (Ground, Token) {
    let ground = Ground::new();
    let token = Token::generate().unwrap();
    std::fs::create_dir(ground.state()).unwrap();
    std::fs::set_permissions(ground.state(), PermissionsExt::from_mode(0o700)).unwrap();
    put(&ground.token_path(), &token.reveal(), 0o600);
    (ground, token)
}

fn derive(key: &[u8], words: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(words.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// No six bytes in a row of the token, or of a key that is derived from it, in any spelling.
fn assert_no_secret(heard: &[u8], token: &Token) {
    let raw = hex::decode(&*token.reveal()).unwrap();
    let client = derive(&raw, "Client Key");
    let stored = Sha256::digest(&client).to_vec();
    let server = derive(&raw, "Server Key");
    let lower = heard.to_ascii_lowercase();
    for (name, secret) in
        [("token", raw), ("ClientKey", client), ("StoredKey", stored), ("ServerKey", server)]
    {
        for part in secret.windows(6) {
            let digits = hex::encode(part);
            let found = heard.windows(6).any(|bytes| bytes == part)
                || lower.windows(12).any(|bytes| bytes == digits.as_bytes());
            assert!(!found, "a part of the {name} was sent: {}", String::from_utf8_lossy(heard));
        }
    }
}

/// A connection on which a client said its opening and not a byte more.
fn assert_only_an_opening(heard: &[u8], token: &Token) {
    assert_no_secret(heard, token);
    let text = std::str::from_utf8(heard).unwrap();
    assert_eq!(text.matches('\n').count(), 1, "{text}");
    let opening: Value = serde_json::from_str(text).unwrap();
    let mut keys: Vec<&str> = opening.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["nonce", "service", "token_id", "type", "v"]);
    assert_eq!(opening["token_id"], token.id().to_string());
}

fn code_of(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{}", text_of(output)))
}

fn stderr_of(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn random_hex() -> String {
    Token::generate().unwrap().reveal().to_string()
}

fn challenge(nonce: &str, proof: &str) -> Value {
    let peer = json!({ "uid": 0, "pid": 1, "pidfs": 1 });
    json!({ "type": "challenge", "nonce": nonce, "peer": peer, "proof": proof })
}

fn refusal_line(code: &str, message: &str, more: &Value) -> Value {
    let mut error = json!({ "code": code, "message": message });
    for (key, value) in more.as_object().into_iter().flatten() {
        error[key] = value.clone();
    }
    json!({ "type": "auth_result", "success": false, "error": error })
}

type Answer = Box<dyn FnMut(&mut Guest) + Send>;

#[test]
fn an_impostor_hears_one_opening_and_nothing_else_whatever_it_answers() {
    let (ground, token) = ground_with_token();
    let session = json!({ "id": "s", "name": "owner", "realm": "default" });
    let not_ours = "does not speak the handshake";
    let bytes = |words: Vec<u8>| -> Answer {
        Box::new(move |guest| {
            guest.line();
            guest.say(&words);
        })
    };
    let line = |words: Value| bytes(format!("{words}\n").into_bytes());
    let answers: Vec<(&str, Answer, &str)> = vec![
        ("garbage", bytes(b"\x00\xff\xfe{{{]]\x07 SSH-2.0-x\r\n".to_vec()), not_ours),
        ("an HTTP answer", bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}".to_vec()), not_ours),
        ("a number", bytes(b"7\n".to_vec()), not_ours),
        ("an empty line", bytes(b"\n".to_vec()), not_ours),
        ("deep nesting", bytes(format!("{}\n", "[".repeat(4000)).into_bytes()), not_ours),
        (
            "success at once",
            line(json!({ "type": "auth_result", "success": true, "session": session })),
            "it accepted before anything was proven",
        ),
        ("success and no session", line(json!({ "type": "auth_result", "success": true })), not_ours),
        ("a JSON-RPC result", line(json!({ "jsonrpc": "2.0", "id": 1, "result": {} })), not_ours),
        ("the wish for the plain form", line(json!({ "type": "auth", "method": "plain" })), not_ours),
        (
            "a refusal that asks for the plain form",
            line(refusal_line(
                "malformed",
                "only {\"token\":…} is spoken here",
                &json!({ "method": "plain" }),
            )),
            "refused: malformed",
        ),
        (
            "the wish for an older version",
            line(refusal_line("denied", "try again", &json!({ "retry": true, "supported": [0] }))),
            "refused: denied",
        ),
        (
            "a challenge with a proof out of the air",
            line(challenge(&random_hex(), &random_hex())),
            "stale token or impostor",
        ),
        ("a challenge with half a proof", line(challenge(&random_hex(), &"ab".repeat(16))), not_ours),
        ("a challenge with an empty proof", line(challenge(&random_hex(), "")), not_ours),
        ("a challenge in upper case", line(challenge(&random_hex(), &"AB".repeat(32))), not_ours),
        (
            "a challenge that echoes the client's nonce",
            Box::new(|guest| {
                let nonce = guest.opening()["nonce"].as_str().unwrap().to_owned();
                guest.say_json(&challenge(&nonce, &random_hex()));
            }),
            "stale token or impostor",
        ),
        (
            "a challenge that echoes the nonce as its proof too",
            Box::new(|guest| {
                let nonce = guest.opening()["nonce"].as_str().unwrap().to_owned();
                guest.say_json(&challenge(&nonce, &nonce));
            }),
            "stale token or impostor",
        ),
        (
            "two challenges in one write",
            bytes(format!("{0}\n{0}\n", challenge(&random_hex(), &random_hex())).into_bytes()),
            "stale token or impostor",
        ),
        (
            "the client's own opening",
            Box::new(|guest| {
                let opening = guest.line();
                guest.say(opening);
            }),
            not_ours,
        ),
    ];
    for (name, answer, words) in answers {
        let impostor = Impostor::listen(&ground.init_socket(), answer);
        let output = ground.authsock(["whoami"]).output().unwrap();
        let heard = impostor.finish();
        assert_eq!(code_of(&output), 4, "{name}: {}", text_of(&output));
        assert!(stderr_of(&output).contains(words), "{name}: {}", text_of(&output));
        assert!(stderr_of(&output).contains("authsock.sock"), "{name} names no path: {}", text_of(&output));
        assert!(output.stdout.is_empty(), "{name}: {}", text_of(&output));
        assert_eq!(heard.len(), 1, "{name}: one connection");
        assert_only_an_opening(&heard[0], &token);
    }
}

#[test]
fn a_client_that_has_no_token_yet_proves_nothing_to_whoever_listens() {
    let session = json!({ "id": "s", "name": "owner", "realm": "default" });
    for (answer, words) in [
        (challenge(&random_hex(), &random_hex()), "is not there: somebody removed it, or it lies elsewhere"),
        (json!({ "type": "auth_result", "success": true, "session": session }), "it accepts any token"),
    ] {
        let ground = Ground::new();
        let impostor = Impostor::listen(&ground.init_socket(), move |guest| {
            guest.line();
            guest.say_json(&answer);
        });
        let output = ground.authsock(["whoami"]).output().unwrap();
        let heard = impostor.finish();
        assert_eq!(code_of(&output), 4, "{}", text_of(&output));
        assert!(stderr_of(&output).contains(words), "{}", text_of(&output));
        assert!(!heard.is_empty() && heard.len() < 12, "{} attempts", heard.len());
        for heard in &heard {
            assert_eq!(heard.iter().filter(|byte| **byte == b'\n').count(), 1, "an opening and no proof");
        }
        assert!(!ground.state().exists(), "and no token was made for it");
    }
}

#[test]
fn a_listener_that_never_answers_costs_the_client_its_timeout_and_nothing_else() {
    let (ground, token) = ground_with_token();
    let impostor = Impostor::listen(&ground.init_socket(), |_| {});
    let output = ground.authsock(["whoami", "--timeout", "1"]).output().unwrap();
    assert_eq!(code_of(&output), 3, "{}", text_of(&output));
    assert!(stderr_of(&output).contains("no answer from"), "{}", text_of(&output));
    let heard = impostor.finish();
    assert_eq!(heard.len(), 1);
    assert_only_an_opening(&heard[0], &token);
}

#[test]
fn a_listener_that_hangs_up_is_not_stormed() {
    for waits_for_the_opening in [true, false] {
        let (ground, token) = ground_with_token();
        let impostor = Impostor::listen(&ground.init_socket(), move |guest| {
            if waits_for_the_opening {
                guest.line();
            }
            guest.hang_up();
        });
        let output = ground.authsock(["whoami"]).output().unwrap();
        let heard = impostor.finish();
        assert_eq!(code_of(&output), 3, "{}", text_of(&output));
        assert!(stderr_of(&output).contains("ends before the daemon says anything"), "{}", text_of(&output));
        assert!((2..=32).contains(&heard.len()), "{} connections", heard.len());
        for heard in &heard {
            assert_no_secret(heard, &token);
        }
    }
}

#[test]
fn a_listener_that_is_always_busy_is_asked_at_a_pace_until_the_timeout() {
    let (ground, token) = ground_with_token();
    let impostor = Impostor::listen(&ground.init_socket(), |guest| {
        guest.line();
        guest.say_json(&refusal_line("busy", "try again", &Value::Null));
        guest.hang_up();
    });
    let output = ground.authsock(["whoami", "--timeout", "1"]).output().unwrap();
    let heard = impostor.finish();
    assert_eq!(code_of(&output), 3, "{}", text_of(&output));
    assert!((2..=32).contains(&heard.len()), "{} connections", heard.len());
    for heard in &heard {
        assert_only_an_opening(heard, &token);
    }
}

#[test]
fn an_endless_line_is_cut_off_at_the_limit_and_called_no_daemon() {
    let (ground, token) = ground_with_token();
    let taken = Arc::new(Mutex::new(0));
    let count = taken.clone();
    let impostor = Impostor::listen(&ground.init_socket(), move |guest| {
        guest.line();
        let chunk = [b'['; 64 * 1024];
        for _ in 0..160 {
            if guest.reader.get_mut().write_all(&chunk).is_err() {
                return;
            }
            *count.lock().unwrap() += chunk.len();
        }
    });
    let output = ground.authsock(["whoami"]).output().unwrap();
    let heard = impostor.finish();
    assert_eq!(code_of(&output), 4, "{}", text_of(&output));
    assert!(stderr_of(&output).contains("a line is longer than 4096 bytes"), "{}", text_of(&output));
    assert_eq!(heard.len(), 1, "and it is not asked again");
    assert_only_an_opening(&heard[0], &token);
    // What lay in the kernel's own buffers was never read.
    assert!(*taken.lock().unwrap() < 2 << 20, "{} bytes were taken", taken.lock().unwrap());
}

#[test]
fn a_version_that_does_not_fit_is_told_once_with_the_side_to_upgrade() {
    let (ground, token) = ground_with_token();
    for (supported, words) in [(json!([0]), "upgrade the daemon"), (json!([7, 8]), "upgrade this program")] {
        let impostor = Impostor::listen(&ground.init_socket(), move |guest| {
            guest.line();
            guest.say_json(&refusal_line("version", "not here", &json!({ "supported": supported })));
            guest.hang_up();
        });
        let output = ground.authsock(["whoami"]).output().unwrap();
        let heard = impostor.finish();
        assert_eq!(code_of(&output), 4, "{}", text_of(&output));
        assert_eq!(stderr_of(&output).matches("upgrade").count(), 1, "{}", text_of(&output));
        assert!(stderr_of(&output).contains(words), "{}", text_of(&output));
        assert_eq!(heard.len(), 1, "one connection");
        assert_only_an_opening(&heard[0], &token);
    }
}

#[test]
fn a_client_of_another_version_is_told_which_ones_are_spoken() {
    let ground = Ground::new();
    let _daemon = ground.serve();
    for version in [0, 2, 99] {
        let mut line = Line::connect(&ground.init_socket());
        line.send_json(&json!({ "type": "auth", "v": version, "later": { "fields": [1] } }));
        let answer = line.receive().unwrap();
        assert_eq!(refusal(&answer), "version");
        assert_eq!(answer["error"]["supported"], json!([1]));
        assert_eq!(line.receive(), None, "and closed");
    }
}

#[test]
fn the_words_of_an_impostor_cannot_steer_a_terminal() {
    let (ground, _) = ground_with_token();
    let impostor = Impostor::listen(&ground.init_socket(), |guest| {
        guest.line();
        let words = "fine\u{1b}]0;owned\u{7}\u{1b}[2J\r\nauthsock: all is well\u{9b}1m";
        guest.say_json(&refusal_line("den\u{1b}[31mied", words, &Value::Null));
    });
    let output = ground.authsock(["whoami"]).output().unwrap();
    impostor.finish();
    assert_eq!(code_of(&output), 4);
    let words = stderr_of(&output);
    assert!(!words.trim_end_matches('\n').chars().any(char::is_control), "{words:?}");
}

/// Events of a directory's files being opened, in the kernel's own words (inotify(7)).
struct Watch(OwnedFd);

impl Watch {
    fn on(dir: &Path) -> Watch {
        use std::os::unix::ffi::OsStrExt;
        let path = std::ffi::CString::new(dir.as_os_str().as_bytes()).unwrap();
        // SAFETY: plain system calls on a path that lives long enough.
        unsafe {
            let fd = libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC);
            assert!(fd >= 0, "{}", std::io::Error::last_os_error());
            assert!(libc::inotify_add_watch(fd, path.as_ptr(), libc::IN_OPEN | libc::IN_ACCESS) >= 0);
            Watch(OwnedFd::from_raw_fd(fd))
        }
    }

    fn saw_anything(&self) -> bool {
        let mut buffer = [0u8; 4096];
        // SAFETY: reads into a buffer of that length.
        let read = unsafe { libc::read(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        read > 0
    }
}

#[test]
fn a_path_that_the_server_names_is_never_opened() {
    let (ground, token) = ground_with_token();
    let decoys = ground.home().join(".ssh");
    std::fs::create_dir(&decoys).unwrap();
    // One that would pass as a token, and one that would hang whoever opens it.
    put(&decoys.join("id_x"), &random_hex(), 0o600);
    nix::unistd::mkfifo(&decoys.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let watch = Watch::on(&decoys);
    for file in ["id_x", "fifo"] {
        let path = decoys.join(file);
        let names = json!({
            "cookie": path, "token_file": path, "path": path, "cookie_file": path, "method": "COOKIEFILE",
        });
        for kind in ["challenge", "refusal", "retry"] {
            let mut line = match kind {
                "challenge" => challenge(&random_hex(), &random_hex()),
                "refusal" => refusal_line("denied", &format!("the token is in {}", path.display()), &names),
                _ => {
                    json!({ "type": "auth_result", "success": false, "error": { "code": "token_file", "message": path } })
                }
            };
            for (key, value) in names.as_object().unwrap() {
                line[key] = value.clone();
            }
            let impostor = Impostor::listen(&ground.init_socket(), move |guest| {
                guest.line();
                guest.say_json(&line);
            });
            let output = ground.authsock(["whoami"]).output().unwrap();
            assert_eq!(code_of(&output), 4, "{kind}: {}", text_of(&output));
            let heard = impostor.finish();
            assert_eq!(heard.len(), 1);
            assert_only_an_opening(&heard[0], &token);
        }
    }
    assert!(!watch.saw_anything(), "a file that the server named was opened");
    std::fs::read(decoys.join("id_x")).unwrap();
    assert!(watch.saw_anything(), "the watch works");
}

/// Answers an opening as the daemon would who knows this token's verifier, and hears the proof.
fn challenge_genuinely(guest: &mut Guest, token: &Token) {
    let opening = guest.line();
    let Ok(Opened::Proof(announced)) = ExpectOpening.read(opening.trim_ascii_end()) else {
        panic!("no opening")
    };
    let peer = Peer::of(guest.stream()).unwrap();
    let identity = peer.identity();
    let view = PeerView {
        uid: peer.uid,
        pid: peer.pid.0,
        pidfs: identity.pidfs,
        start: identity.start,
        pidns: None,
    };
    let nonce: [u8; 32] = hex::decode(random_hex()).unwrap().try_into().unwrap();
    let (line, _) = announced.challenge(Verifier::of(token), true, Hex32(nonce), view).unwrap();
    guest.say(line);
    assert!(!guest.line().is_empty());
}

#[test]
fn who_stole_the_verifier_hears_one_proof_and_never_the_token() {
    let session = json!({ "id": "s", "name": "n", "realm": "r" });
    let second_success = json!({ "type": "auth_result", "success": true, "session": session, "error": { "code": "x", "message": "y" } });
    for (answer, words) in [
        (challenge(&random_hex(), &random_hex()), "it challenged twice"),
        (second_success, "does not speak the handshake"),
        (refusal_line("denied", "say it plainly", &Value::Null), "the daemon refused: denied"),
    ] {
        let (ground, token) = ground_with_token();
        let held = token.clone();
        let impostor = Impostor::listen(&ground.init_socket(), move |guest| {
            challenge_genuinely(guest, &held);
            guest.say_json(&answer);
        });
        let output = ground.authsock(["whoami"]).output().unwrap();
        let heard = impostor.finish();
        assert_eq!(code_of(&output), 4, "{}", text_of(&output));
        assert!(stderr_of(&output).contains(words), "{words}: {}", text_of(&output));
        assert_eq!(heard.len(), 1, "one connection");
        assert_no_secret(&heard[0], &token);
        assert_eq!(
            heard[0].iter().filter(|byte| **byte == b'\n').count(),
            2,
            "an opening, a proof, and no more"
        );
    }
}

/// Carries bytes both ways, as the process that it runs in. What the daemon said is kept.
fn relay(guest: &mut Guest, real: &Path, said: &Mutex<Vec<u8>>) {
    let mut daemon = UnixStream::connect(real).unwrap();
    let (mut back, mut client) = (daemon.try_clone().unwrap(), guest.stream().try_clone().unwrap());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(read @ 1..) = back.read(&mut chunk) {
                said.lock().unwrap().extend_from_slice(&chunk[..read]);
                let _ = client.write_all(&chunk[..read]);
            }
            let _ = client.shutdown(std::net::Shutdown::Write);
        });
        loop {
            let line = guest.line();
            if line.is_empty() || daemon.write_all(&line).is_err() {
                break;
            }
        }
        let _ = daemon.shutdown(std::net::Shutdown::Write);
    });
}

/// Puts the daemon's own socket aside, where only a relay knows it.
fn set_aside(ground: &Ground) -> PathBuf {
    let real = ground.root().join("real.sock");
    std::fs::rename(ground.init_socket(), &real).unwrap();
    real
}

#[test]
fn a_relay_to_the_real_daemon_is_found_out_and_hears_no_proof() {
    let ground = Ground::new();
    let daemon = ground.serve();
    let token = Token::parse(ground.token().as_bytes()).unwrap();
    let real = set_aside(&ground);
    let said = Arc::new(Mutex::new(Vec::new()));
    let recorded = said.clone();
    let impostor = Impostor::listen(&ground.init_socket(), move |guest| relay(guest, &real, &said));
    let output = ground.authsock(["whoami"]).output().unwrap();
    let heard = impostor.finish();
    assert_eq!(code_of(&output), 4, "{}", text_of(&output));
    let words = stderr_of(&output);
    assert!(words.contains("relay: the daemon is genuine"), "{words}");
    assert!(words.contains(&format!("process {}", std::process::id())), "it names who relays: {words}");
    assert_eq!(heard.len(), 1);
    assert_only_an_opening(&heard[0], &token);
    // What it recorded of a genuine exchange is worth nothing in a later one.
    let replayed = recorded.lock().unwrap().clone();
    assert!(String::from_utf8_lossy(&replayed).contains("challenge"));
    let impostor = Impostor::listen(&ground.init_socket(), move |guest| {
        guest.line();
        guest.say(&replayed);
    });
    let output = ground.authsock(["whoami"]).output().unwrap();
    let heard = impostor.finish();
    assert_eq!(code_of(&output), 4, "{}", text_of(&output));
    assert!(stderr_of(&output).contains("stale token or impostor"), "{}", text_of(&output));
    assert_only_an_opening(&heard[0], &token);
    drop(daemon);
}

#[test]
fn a_relay_that_the_user_asked_for_is_let_pass_with_a_warning() {
    let ground = Ground::new();
    ground.configure("[client]\nallow_unbound = true\n");
    let _daemon = ground.serve();
    let token = Token::parse(ground.token().as_bytes()).unwrap();
    let real = set_aside(&ground);
    let impostor =
        Impostor::listen(&ground.init_socket(), move |guest| relay(guest, &real, &Mutex::default()));
    let output = ground.authsock(["whoami", "--json"]).output().unwrap();
    let heard = impostor.finish();
    assert_eq!(code_of(&output), 0, "{}", text_of(&output));
    let who: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(who["peer"]["pid"], std::process::id(), "the daemon sees the relay");
    assert!(stderr_of(&output).contains("unbound: "), "{}", text_of(&output));
    // It heard a whole exchange, proof and all, and cannot have it a second time.
    assert_eq!(heard.len(), 1);
    assert_no_secret(&heard[0], &token);
    let mut line = Line::connect(&ground.root().join("real.sock"));
    line.send(std::str::from_utf8(&heard[0]).unwrap());
    assert_eq!(line.receive().unwrap()["type"], "challenge");
    assert_eq!(refusal(&line.receive().unwrap()), "denied");
    assert_eq!(line.receive(), None);
}

#[test]
fn the_daemon_s_own_words_given_back_to_it_prove_nothing() {
    let ground = Ground::new();
    let _daemon = ground.serve();
    let token_id = Token::parse(ground.token().as_bytes()).unwrap().id().to_string();
    let opening = |nonce: &str| json!({ "type": "auth", "v": 1, "token_id": token_id, "nonce": nonce });
    let mut first = Line::connect(&ground.init_socket());
    first.send_json(&opening(&random_hex()));
    let challenge = first.receive().unwrap();
    let (nonce, proof) = (challenge["nonce"].as_str().unwrap(), challenge["proof"].as_str().unwrap());
    // One daemon's challenge, answered by another's: the nonces change places, and so does the role.
    let mut second = Line::connect(&ground.init_socket());
    second.send_json(&opening(nonce));
    let crossed = second.receive().unwrap();
    assert_ne!(crossed["nonce"], challenge["nonce"]);
    first.send_json(&json!({ "type": "auth", "proof": crossed["proof"] }));
    assert_eq!(refusal(&first.receive().unwrap()), "denied");
    second.send_json(&json!({ "type": "auth", "proof": proof }));
    assert_eq!(refusal(&second.receive().unwrap()), "denied");
    for (what, code) in [
        (json!({ "type": "auth", "proof": "" }), "malformed"),
        (json!({ "type": "auth", "proof": "ab".repeat(16) }), "malformed"),
        (json!({ "type": "auth", "proof": "AB".repeat(32) }), "malformed"),
        (json!({ "type": "auth", "proof": "00".repeat(32) }), "denied"),
        (json!({ "type": "auth", "proof": nonce }), "denied"),
        (json!({ "type": "auth", "token": ground.token() }), "malformed"),
        (json!({ "type": "auth", "proof": proof, "token": ground.token() }), "malformed"),
        (opening(&random_hex()), "malformed"),
        (challenge.clone(), "malformed"),
    ] {
        let mut line = Line::connect(&ground.init_socket());
        line.send_json(&opening(&random_hex()));
        assert_eq!(line.receive().unwrap()["type"], "challenge");
        line.send_json(&what);
        assert_eq!(refusal(&line.receive().unwrap()), code, "{what}");
        assert_eq!(line.receive(), None, "{what}: one error, and closed");
    }
}

#[test]
fn neither_a_variable_nor_a_path_lets_a_relay_pass() {
    let ground = Ground::new();
    let _daemon = ground.serve();
    let real = set_aside(&ground);
    let elsewhere = ground.runtime().join("forwarded.sock");
    let impostor = Impostor::listen(&elsewhere, move |guest| relay(guest, &real, &Mutex::default()));
    let path = elsewhere.to_str().unwrap();
    let token_file = ground.token_path();
    for variable in ["AUTHSOCK_ALLOW_UNBOUND", "AUTHSOCK_CLIENT_ALLOW_UNBOUND", "SSH_CONNECTION", "CONTAINER"]
    {
        let output = ground
            .authsock(["whoami", "--socket", path])
            .env(variable, "true")
            .env("AUTHSOCK_TOKEN_FILE", &token_file)
            .output()
            .unwrap();
        assert_eq!(code_of(&output), 4, "{}", text_of(&output));
        assert!(stderr_of(&output).contains("relay: "), "{}", text_of(&output));
    }
    impostor.finish();
}

/// Whether this user may have a pid namespace of its own whose next pid it can choose.
pub fn can_choose_pids() -> bool {
    let probe = std::process::Command::new("unshare")
        .args(["-r", "-p", "-f", "sh", "-c", "echo 4000 >/proc/sys/kernel/ns_last_pid"])
        .stderr(std::process::Stdio::null())
        .status();
    probe.is_ok_and(|status| status.success())
}

pub const NO_NAMESPACES: &str = "this user may not make a pid namespace and choose a pid in it";

#[test]
fn a_relay_whose_pid_is_the_client_s_own_number_in_another_namespace_is_found_out() {
    if skip_unless(can_choose_pids(), NO_NAMESPACES) {
        return;
    }
    let ground = Ground::new();
    let _daemon = ground.serve();
    let token = Token::parse(ground.token().as_bytes()).unwrap();
    let real = set_aside(&ground);
    // The relay is this very process; the client gets its number, one namespace further down.
    let own = std::process::id();
    let impostor =
        Impostor::listen(&ground.init_socket(), move |guest| relay(guest, &real, &Mutex::default()));
    let script = r#"echo $(($0 - 1)) >/proc/sys/kernel/ns_last_pid; "$1" whoami; code=$?; exit $code"#;
    let output = ground
        .command("unshare")
        .args(["-r", "-p", "-f", "sh", "-c", script, &own.to_string()])
        .arg(&ground.binary)
        .output()
        .unwrap();
    let heard = impostor.finish();
    assert_eq!(code_of(&output), 4, "{}", text_of(&output));
    let words = stderr_of(&output);
    assert!(words.contains("relay: the daemon is genuine"), "{words}");
    assert!(
        words.contains(&format!("another process at the other end that has this program's pid {own}")),
        "{words}"
    );
    assert_eq!(heard.len(), 1);
    assert_only_an_opening(&heard[0], &token);
}

/// The scene of a recycled pid, all within one pid namespace: a process connects to the daemon, leaves its connection
/// to a child, and ends; the child relays; the client is given the very pid that the first one had.
const RECYCLED: &str = r#"
import os, select, signal, socket, subprocess, sys
real, path, binary = sys.argv[1:4]
def next_pid_is(pid):
    with open("/proc/sys/kernel/ns_last_pid", "w") as last:
        last.write(str(pid - 1))
# A daemon of this namespace; it is started by the first client.
subprocess.run([binary, "whoami", "--json"], check=True, stdout=subprocess.DEVNULL)
# The relay takes the place where clients look first, and leaves the daemon its own.
os.umask(0o077)
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen(8)
def relay(daemon):
    client, _ = listener.accept()
    heard = b""
    while True:
        for ready in select.select([client, daemon], [], [])[0]:
            data = ready.recv(4096)
            if ready is client:
                heard += data
            if not data:
                with open(path + ".heard", "wb") as record:
                    record.write(heard)
                os._exit(0)
            (daemon if ready is client else client).sendall(data)
connector = os.fork()
if connector == 0:
    daemon = socket.socket(socket.AF_UNIX)
    daemon.connect(real)
    if os.fork() == 0:
        relay(daemon)
    os._exit(0)
os.waitpid(connector, 0)
listener.close()
TAKEN = 99 # by a thread of the daemon's, say: it may be free again in a moment
code = TAKEN
for attempt in range(100):
    next_pid_is(connector)
    client = os.fork()
    if client == 0:
        if os.getpid() != connector:
            os._exit(TAKEN)
        os.execv(binary, [binary, "whoami"])
    code = os.waitstatus_to_exitcode(os.waitpid(client, 0)[1])
    if code != TAKEN:
        break
# The relay is an orphan by now; in this namespace it falls to us.
os.wait()
print("pid", connector)
os.kill(int(open(os.path.dirname(path) + "/authsock/lock").read()), signal.SIGTERM)
sys.exit(code)
"#;

#[test]
fn a_relay_whose_pid_was_recycled_to_be_the_client_s_own_is_found_out() {
    if skip_unless(can_choose_pids(), NO_NAMESPACES)
        || skip_unless(has("python3"), "python3 is not installed")
    {
        return;
    }
    let ground = Ground::new();
    // The pid is the client's only after the connection was made; that must not be too slow.
    ground.configure("[handshake]\ntimeout_seconds = 60\n");
    let output = ground
        .command("unshare")
        .args(["-r", "-p", "-f", "--kill-child", "python3", "-c", RECYCLED])
        .args([ground.ondemand_socket(), ground.init_socket(), ground.binary.clone()])
        .env("HOME", ground.home())
        .output()
        .unwrap();
    assert_eq!(code_of(&output), 4, "{}", text_of(&output));
    let words = stderr_of(&output);
    assert!(words.contains("peer_gone") && words.contains("relay"), "{words}");
    assert!(words.contains("was not this program"), "{words}");
    let heard = std::fs::read(ground.runtime().join("authsock.sock.heard")).unwrap();
    assert_only_an_opening(&heard, &Token::parse(ground.token().as_bytes()).unwrap());
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let pid = stdout.trim().strip_prefix("pid ").unwrap();
    let log = ground.log();
    assert!(log.contains(&format!("refused process {pid} of uid")), "{log}");
    assert!(log.contains("opened the connection and has ended"), "{log}");
}

#[test]
fn a_socket_that_others_could_have_made_or_can_swap_is_not_connected_to() {
    let (ground, _) = ground_with_token();
    let mode =
        |path: &Path, mode: u32| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    let give = |path: &Path, uid: u32| std::os::unix::fs::chown(path, Some(uid), None).unwrap();
    type Spoil<'a> = Box<dyn Fn(&Path, &Path) + 'a>;
    let mut spoilt: Vec<(&str, Spoil<'_>, &str)> = vec![
        ("others may write it", Box::new(|socket, _| mode(socket, 0o602)), "may be written by others"),
        ("all may write it", Box::new(|socket, _| mode(socket, 0o666)), "may be written by others"),
        ("others may write its directory", Box::new(|_, dir| mode(dir, 0o703)), "may be written by others"),
        (
            "its group may write its directory",
            Box::new(|_, dir| mode(dir, 0o730)),
            "may be written by others",
        ),
        ("sticky does not make it better", Box::new(|_, dir| mode(dir, 0o1777)), "may be written by others"),
        (
            "a link",
            Box::new(|socket, dir| {
                std::fs::rename(socket, dir.join("target")).unwrap();
                std::os::unix::fs::symlink("target", socket).unwrap();
            }),
            "is not a socket",
        ),
        (
            "a regular file",
            Box::new(|socket, dir| {
                std::fs::rename(socket, dir.join("target")).unwrap();
                put(socket, "x", 0o600);
            }),
            "is not a socket",
        ),
        (
            "a FIFO",
            Box::new(|socket, dir| {
                std::fs::rename(socket, dir.join("target")).unwrap();
                nix::unistd::mkfifo(socket, nix::sys::stat::Mode::S_IRWXU).unwrap();
            }),
            "is not a socket",
        ),
        (
            "a directory",
            Box::new(|socket, dir| {
                std::fs::rename(socket, dir.join("target")).unwrap();
                std::fs::create_dir(socket).unwrap();
            }),
            "is not a socket",
        ),
    ];
    if !skip_unless(is_root(), "only root can give files away: sockets of others are not tried") {
        spoilt.push(("another's socket", Box::new(|socket, _| give(socket, 54_321)), "belongs to uid 54321"));
        spoilt.push(("another's directory", Box::new(|_, dir| give(dir, 54_321)), "belongs to uid 54321"));
    }
    for (number, (name, spoil, words)) in spoilt.into_iter().enumerate() {
        let dir = ground.root().join(format!("d{number}"));
        std::fs::create_dir(&dir).unwrap();
        mode(&dir, 0o700);
        let socket = dir.join("s.sock");
        let listener = bind_private(&socket);
        listener.set_nonblocking(true).unwrap();
        spoil(&socket, &dir);
        let mut command = ground.authsock(["whoami", "--socket", socket.to_str().unwrap()]);
        let output = command.env("AUTHSOCK_TOKEN_FILE", ground.token_path()).output().unwrap();
        assert_eq!(code_of(&output), 4, "{name}: {}", text_of(&output));
        assert!(stderr_of(&output).contains(words), "{name}: {}", text_of(&output));
        assert!(
            stderr_of(&output).contains(dir.to_str().unwrap()),
            "{name} names no path: {}",
            text_of(&output)
        );
        let accepted = listener.accept().map_err(|error| error.kind());
        assert!(matches!(accepted, Err(std::io::ErrorKind::WouldBlock)), "{name}: it connected");
        mode(&dir, 0o700);
    }
}
