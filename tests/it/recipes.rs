//! The files of docs/recipes, run as they are with the real programs: only paths and addresses are the test's own.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use crate::ground::{Daemon, Ground, Line, PATIENCE, has, put, skip_unless, text_of};
use crate::http::made;

fn recipe(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/recipes").join(name)
}

/// Runs a recipe's program as a session.
fn run(program: &str, name: &str) -> String {
    let ground = Ground::new();
    let _daemon = ground.serve();
    let mut command = ground.authsock(["run", "--name", "recipe", "--", program]);
    let output = command.arg(recipe(name)).output().unwrap();
    assert!(output.status.success(), "{}", text_of(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains(&ground.token()));
    text
}

#[test]
fn the_clients_publish_and_hear_with_nothing_but_their_standard_library() {
    for (program, name, word) in [("python3", "client.py", "python"), ("node", "client.mjs", "node")] {
        if skip_unless(has(program), &format!("{program} is not installed")) {
            continue;
        }
        let text = run(program, name);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("session ") && lines[0].ends_with(" recipe"), "{text}");
        // Python writes a space behind a colon, and Node.js none.
        assert!(lines[1].starts_with(&format!("event recipes.{word} recipe {{")), "{text}");
        assert!(lines[1].replace(' ', "").contains(&format!("{{\"from\":\"{word}\"}}")), "{text}");
    }
}

#[test]
fn curl_does_all_of_it_from_a_shell() {
    if skip_unless(has("curl") && has("bash"), "curl or bash is not installed") {
        return;
    }
    let text = run("bash", "curl.sh");
    assert!(text.contains("\"name\":\"recipe\""), "{text}");
    assert!(text.contains("\"reached\":0"), "{text}");
    assert!(text.contains("event: subscribed") && text.contains("\"subject\":\"recipes.curl\""), "{text}");
}

/// A service behind a proxy, on a Unix socket: it answers each request with what it was told.
struct Service(PathBuf);

impl Service {
    fn start(ground: &Ground) -> Service {
        let path = ground.root().join("service.sock");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream);
                    let mut head = Vec::new();
                    loop {
                        let mut line = String::new();
                        match reader.read_line(&mut line) {
                            Ok(0) | Err(_) => return,
                            Ok(_) if line.trim_end().is_empty() => break,
                            Ok(_) => head.push(line.trim_end().to_owned()),
                        }
                    }
                    let length = head.iter().find_map(|line| {
                        let (name, value) = line.split_once(':')?;
                        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
                    });
                    let mut body = vec![0; length.unwrap_or(0)];
                    reader.read_exact(&mut body).unwrap();
                    let told = json!({ "head": head, "body": String::from_utf8_lossy(&body) }).to_string();
                    let answer = format!(
                        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{told}",
                        told.len()
                    );
                    let _ = reader.get_mut().write_all(answer.as_bytes());
                });
            }
        });
        Service(path)
    }
}

/// A proxy that runs until this is dropped.
struct Proxy {
    child: Child,
    socket: PathBuf,
    errors: PathBuf,
}

impl Proxy {
    fn start(ground: &Ground, mut command: Command) -> Proxy {
        let socket = ground.root().join("proxy.sock");
        let errors = ground.root().join("proxy.log");
        command.stdout(Stdio::null()).stderr(std::fs::File::create(&errors).unwrap());
        let proxy = Proxy { child: command.spawn().unwrap(), socket, errors };
        let until = Instant::now() + PATIENCE;
        // Neither of them says when it listens.
        while std::os::unix::net::UnixStream::connect(&proxy.socket).is_err() {
            assert!(Instant::now() < until, "{}", proxy.log());
            std::thread::yield_now();
        }
        proxy
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.errors).unwrap_or_default()
    }

    /// Status, head and body that curl is told.
    fn ask(&self, ground: &Ground, args: &[&str]) -> (u16, String, String) {
        let mut command = ground.command("curl");
        command.args(["-sS", "-i", "--max-time", "20", "--unix-socket"]).arg(&self.socket);
        let output = command.args(args).arg("http://x/some/where?a=b").output().unwrap();
        assert!(output.status.success(), "{}\n{}", text_of(&output), self.log());
        let text = String::from_utf8(output.stdout).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), head.to_ascii_lowercase(), body.to_owned())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// A recipe with the test's own places: each that is replaced must be there, once.
fn adapted(ground: &Ground, name: &str, places: &[(&str, String)]) -> PathBuf {
    let mut text = std::fs::read_to_string(recipe(name)).unwrap();
    for (theirs, ours) in places {
        assert_eq!(text.matches(theirs).count(), 1, "{theirs} in {name}");
        text = text.replace(theirs, ours);
    }
    let path = ground.root().join(name);
    put(&path, &text, 0o600);
    path
}

/// A daemon whose own user may ask, as which the proxy runs.
fn with_verifier() -> (Ground, Daemon, String) {
    let ground = Ground::new();
    ground.configure(&format!("[policy]\nverifiers = [{}]\n", nix::unistd::getuid()));
    let daemon = ground.serve();
    let owner = ground.token_after_first_contact();
    (ground, daemon, owner)
}

/// What every proxy does, with the recipe's configuration.
fn check(ground: &Ground, proxy: &Proxy, owner: &str) {
    let mut control = Line::connect(&ground.init_socket());
    assert_eq!(control.plain(owner)["success"], true);
    let (id, token) = made(&mut control, "ä name", json!({}));
    let authorization = format!("Authorization: Bearer {token}");
    let forged = [
        "-H",
        "Authsock-Session-Id: owner",
        "-H",
        "Authsock-Session-Name: root",
        "-H",
        "Authsock-Uid: 0",
        "-H",
        "Authsock-Scopes: >",
        "-H",
        "Authsock-Peer: checked",
        "-H",
        "Authsock-Realm: forged",
        "-H",
        "Authsock-Binding: tree",
        "-H",
        "authsock-session-id: again",
        "-H",
        "Authsock_Session_Id: owner",
        "-H",
        "Authsock-Session_Id: owner",
        "-H",
        "AUTHSOCK_UID: 0",
        "-H",
        "Origin: https://some.where",
    ];
    // Allowed: the service hears who it is from authsock alone, and no token.
    for (more, body) in [(&[][..], ""), (&["-d", "a body"], "a body")] {
        let args = [&["-H", &authorization][..], &forged, more].concat();
        let (status, _, told) = proxy.ask(ground, &args);
        assert_eq!(status, 200, "{told}\n{}", proxy.log());
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(told["body"], body);
        let head: Vec<String> =
            told["head"].as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned()).collect();
        let named = |name: &str| -> Vec<&str> {
            head.iter()
                .filter_map(|line| line.split_once(": "))
                .filter(|(found, _)| found.eq_ignore_ascii_case(name))
                .map(|(_, value)| value)
                .collect()
        };
        // Nothing by a name that a service could take for one of these.
        let alike = |line: &&String| {
            line.to_ascii_lowercase().replace('_', "-").starts_with("authsock-") && line.contains('_')
        };
        assert_eq!(head.iter().filter(alike).count(), 0, "{head:?}");
        assert_eq!(named("Authsock-Session-Id"), [id.as_str()], "{head:?}");
        assert_eq!(named("Authsock-Session-Name"), ["%C3%A4%20name"]);
        assert_eq!(named("Authsock-Realm"), ["default"]);
        assert_eq!(named("Authsock-Uid"), [nix::unistd::getuid().to_string().as_str()]);
        assert_eq!(named("Authsock-Binding"), ["uid"]);
        assert_eq!(named("Authsock-Peer"), ["unchecked"]);
        assert!(named("Authsock-Scopes")[0].starts_with("session:self "), "{head:?}");
        assert!(!told.to_string().contains(&token), "{head:?}");
    }
    // What a client asks the service is no matter of authsock's, also where authsock itself would refuse it.
    for target in ["/?token=x", "/?access_token=x&a=b", "/?a=[1]", "/?a=b|c", "/?a=50%"] {
        let (status, _, told) = proxy.ask(ground, &["-H", &authorization, "--request-target", target]);
        assert_eq!(status, 200, "{target}: {told}");
        assert!(told.contains(&format!("\"GET {target} HTTP/1.")), "{target}: {told}");
    }
    // A proxy takes away what a client names as fields of one connection (RFC 9110, section 7.6.1): not ours, or the
    // request goes no further.
    for named in ["Authsock-Session-Id", "close, authsock-session-id", "Authsock-Uid, x"] {
        let (status, _, told) =
            proxy.ask(ground, &["-H", &authorization, "-H", &format!("Connection: {named}")]);
        let is_whole =
            told.contains(&format!("Authsock-Session-Id: {id}")) && told.contains("Authsock-Uid: ");
        assert!(status == 400 || (status == 200 && is_whole), "{named}: {status} {told}");
    }
    // Refused: 401 is passed on, with what is missing; the service hears nothing.
    let wrong = format!("Authorization: Bearer {}", "0".repeat(64));
    for args in [&[][..], &["-H", &wrong], &["-H", "Authorization: Basic eDp5"], &forged] {
        let (status, head, body) = proxy.ask(ground, args);
        assert_eq!(status, 401, "{head}\n{}", proxy.log());
        assert!(head.contains("www-authenticate: bearer realm=\"authsock\""), "{head}");
        assert!(!body.contains("\"head\""), "{body}");
        assert!(!head.contains("location:"));
    }
    // Ended a moment ago.
    assert_eq!(control.call("session.revoke", &json!({ "id": id }))["result"]["ended"], 1);
    assert_eq!(proxy.ask(ground, &["-H", &authorization]).0, 401);
    assert!(!proxy.log().contains(&token));
}

#[test]
fn nginx_asks_before_it_passes_on_and_tells_whose_it_is() {
    if skip_unless(has("nginx") && has("curl"), "nginx or curl is not installed") {
        return;
    }
    let (ground, _daemon, owner) = with_verifier();
    let service = Service::start(&ground);
    let root = ground.root().display().to_string();
    // Where a package's nginx keeps such files only root may write.
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!(" {kind}_temp_path {root}/{kind};"))
        .concat();
    let path = adapted(
        &ground,
        "nginx.conf",
        &[
            ("access_log off;", format!("access_log off;{temporary}")),
            ("listen 127.0.0.1:8080;", format!("listen unix:{root}/proxy.sock;")),
            ("http://127.0.0.1:9000;", format!("http://unix:{}:;", service.0.display())),
            ("unix:/run/authsock.sock:", format!("unix:{}:", ground.init_socket().display())),
        ],
    );
    // It begins as the user that it goes on as.
    let mut command = ground.command("nginx");
    command.arg("-p").arg(ground.root()).arg("-c").arg(path);
    command.args(["-g", "daemon off; master_process off;"]);
    let proxy = Proxy::start(&ground, command);
    check(&ground, &proxy, &owner);
    // A client's cookies may be more than authsock takes of a head.
    let shown = format!("Authorization: Bearer {owner}");
    let cookies: Vec<String> = (0..4).map(|at| format!("X-{at}: {}", "x".repeat(7000))).collect();
    let fields = [&shown].into_iter().chain(&cookies).flat_map(|field| ["-H", field.as_str()]);
    let (status, _, told) = proxy.ask(&ground, &fields.collect::<Vec<_>>());
    assert_eq!(status, 200, "{told}\n{}", proxy.log());
}

#[test]
fn caddy_asks_before_it_passes_on_and_tells_whose_it_is() {
    if skip_unless(has("caddy") && has("curl"), "caddy or curl is not installed") {
        return;
    }
    let (ground, _daemon, owner) = with_verifier();
    let service = Service::start(&ground);
    let path = adapted(
        &ground,
        "Caddyfile",
        &[
            ("bind 127.0.0.1 ", format!("bind unix/{}/proxy.sock ", ground.root().display())),
            ("reverse_proxy 127.0.0.1:9000", format!("reverse_proxy unix/{}", service.0.display())),
            (
                "forward_auth unix//run/authsock.sock",
                format!("forward_auth unix/{}", ground.init_socket().display()),
            ),
        ],
    );
    let mut command = ground.command("caddy");
    command.args(["run", "--adapter", "caddyfile", "--config"]).arg(path);
    let proxy = Proxy::start(&ground, command);
    check(&ground, &proxy, &owner);
}
