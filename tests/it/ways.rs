//! Ways of starting a process, one by one, and whether what was started is still in the session; also where an attacker of the same user wins.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::ground::{
    AUTHSOCK, Daemon, Ground, PATIENCE, has, is_root, make_program, put, skip_unless, text_of,
};
use crate::tree::Inside;

/// Whether a process may use the session's token, and whether it may use the owner's.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Found {
    session: bool,
    owner: bool,
}

/// It is that session, and nothing else.
const IN: Found = Found { session: true, owner: false };
/// The session's token is refused, and who can read the owner's is the owner.
const OUT: Found = Found { session: false, owner: true };
const NEITHER: Found = Found { session: false, owner: false };

/// A session with a shell in it, and a program that says on a FIFO what it is: it needs nothing of what surrounds
/// it, since most ways of starting a process leave the environment behind.
struct Scene {
    inside: Inside,
    daemon: Daemon,
    ground: Ground,
    probe: String,
    /// What whoever is refused is told: not that the probe cannot read or reach something.
    refusal: &'static str,
    count: u32,
}

impl Scene {
    fn begin() -> Scene {
        Scene::begin_on(Ground::new())
    }

    fn begin_on(ground: Ground) -> Scene {
        let daemon = ground.serve();
        let inside = Inside::begin(&ground, &["--name", "scene"]);
        let tokens = [inside.token_file.clone(), ground.token_path()];
        let probe = format!("sh {}", ground.root().join("probe").display());
        let scene = Scene { inside, daemon, ground, probe, refusal: "the daemon refused: binding", count: 0 };
        scene.show_with(&tokens);
        scene
    }

    /// Writes the probe anew: these are the session's token and the owner's, as files.
    fn show_with(&self, tokens: &[PathBuf; 2]) {
        let script = format!(
            r#"unset AUTHSOCK_SOCKET AUTHSOCK_TOKEN_FILE
export HOME='{home}' XDG_RUNTIME_DIR='{runtime}'
exec >"$1" 2>&1
for token in '{session}' '{owner}'; do
    AUTHSOCK_TOKEN=$(cat "$token") '{binary}' whoami --socket '{socket}' >/dev/null && echo yes || echo "no $?"
done
"#,
            home = self.ground.home().display(),
            runtime = self.ground.runtime().display(),
            session = tokens[0].display(),
            owner = tokens[1].display(),
            binary = self.ground.binary.display(),
            socket = self.ground.init_socket().display(),
        );
        put(&self.ground.root().join("probe"), &script, 0o644);
    }

    /// Copies both tokens, for those who cannot read them where they lie.
    fn show_with_copies(&self, mode: u32) {
        let copy = |name: &str, token: &str| {
            let copy = self.ground.root().join(name);
            put(&copy, token, mode);
            copy
        };
        self.show_with(&[copy("session", &self.inside.token()), copy("owner", &self.ground.token())]);
    }

    /// A new FIFO.
    fn fifo(&mut self, name: &str) -> PathBuf {
        self.count += 1;
        let fifo = self.ground.root().join(format!("{name}{}", self.count));
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        fifo
    }

    /// Has the probe be started in some way, and returns what it is. The way gets the words to start it by, and should
    /// tell what went wrong.
    fn ask(&mut self, start: impl FnOnce(&mut Scene, &str) -> String) -> Found {
        let out = self.fifo("out");
        let mut ear = Ear::open(&out);
        let words = format!("{} {}", self.probe, out.display());
        let told = start(self, &words);
        let said = ear.hear(&told);
        let answers: Vec<&str> =
            said.lines().filter(|line| *line == "yes" || line.starts_with("no ")).collect();
        assert_eq!(answers.len(), 2, "{said}; {told}");
        for answer in &answers {
            let refused = ["no 3", "no 4"].contains(answer) && said.contains(self.refusal);
            assert!(*answer == "yes" || refused, "{said}; {told}");
        }
        Found { session: answers[0] == "yes", owner: answers[1] == "yes" }
    }

    /// As [`Scene::ask`], for a process whose parent has to be gone first: it waits to be told so.
    fn ask_orphan(&mut self, start: impl FnOnce(&mut Scene, &str) -> String) -> Found {
        let go = self.fifo("go");
        self.ask(|scene, words| {
            let told = start(scene, &format!("sh -c 'read go <{}; exec {words}'", go.display()));
            std::fs::File::options().write(true).open(&go).unwrap().write_all(b"\n").unwrap();
            told
        })
    }

    /// Has the shell of the session do something that succeeds; returns what it said.
    fn tell(&mut self, line: &str) -> String {
        let (code, said) = self.inside.tell(line);
        assert_eq!(code, 0, "{line}: {said}");
        said
    }

    /// Has a program outside of the session do something that succeeds.
    fn outside(&self, words: &[&str]) -> String {
        let output = self.ground.command(words[0]).args(&words[1..]).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", text_of(&output));
        text_of(&output)
    }
}

/// The reading side of a FIFO, which is there before anybody writes.
struct Ear(std::fs::File);

impl Ear {
    fn open(fifo: &Path) -> Ear {
        let options = libc::O_NONBLOCK;
        Ear(std::fs::File::options().read(true).custom_flags(options).open(fifo).unwrap())
    }

    /// All that is said until everybody who writes has ended.
    fn hear(&mut self, told: &str) -> String {
        let end = std::time::Instant::now() + PATIENCE;
        let mut said = Vec::new();
        loop {
            let left = end.saturating_duration_since(std::time::Instant::now());
            let mut waiting = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            match poll(&mut waiting, PollTimeout::try_from(left).unwrap()) {
                Err(nix::errno::Errno::EINTR) => continue,
                ready => assert_ne!(
                    ready.unwrap(),
                    0,
                    "nothing more is said: {}; {told}",
                    String::from_utf8_lossy(&said)
                ),
            }
            let mut buffer = [0; 4096];
            match self.0.read(&mut buffer) {
                Ok(0) => return String::from_utf8_lossy(&said).into_owned(),
                Ok(length) => said.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("cannot hear: {error}"),
            }
        }
    }
}

/// Ends a child that a test started, whatever happens to the test.
struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_is_started_and_left_behind_in_the_session_is_in_it() {
    let mut scene = Scene::begin();
    assert_eq!(scene.ask(Scene::tell), IN);
    let left = |scene: &mut Scene, probe: &str| {
        scene.tell(&format!("sh -c '{} & exit 0'", probe.replace('\'', "'\\''")))
    };
    assert_eq!(scene.ask_orphan(left), IN, "a job of a shell that has ended");
    if !skip_unless(has("bash"), "bash is not installed") {
        let disowned = |scene: &mut Scene, probe: &str| {
            scene.tell(&format!("bash -c '{} & disown; exit 0'", probe.replace('\'', "'\\''")))
        };
        assert_eq!(scene.ask_orphan(disowned), IN, "disowned");
    }
    assert_eq!(scene.ask(|scene, probe| scene.outside(&["sh", "-c", probe])), OUT, "and outside is outside");
}

#[test]
fn what_outlives_its_session_is_the_owner_s_again() {
    let mut scene = Scene::begin();
    // `run` takes its file away.
    scene.refusal = "the daemon refused: revoked";
    scene.show_with_copies(0o600);
    let found = scene.ask_orphan(|scene, probe| {
        let told = scene.tell(&format!("{{ {probe}; }} </dev/null >/dev/null 2>&1 &"));
        scene.inside.close();
        scene.daemon.wait_for_log("(scene) ended: leader_exited");
        told
    });
    assert_eq!(found, OUT);
}

// --- tmux ---------------------------------------------------------------------------------------

/// A tmux server of the test's own. Ended when dropped.
struct Tmux {
    socket: String,
}

impl Tmux {
    /// The words that start a session on it, or a server and a session.
    fn words(&self, command: &str) -> Vec<String> {
        let words = ["tmux", "-S", &self.socket, "-f", "/dev/null", command, "-d"];
        words.map(str::to_owned).to_vec()
    }

    fn line(&self, command: &str, program: &str) -> String {
        format!(
            "LC_ALL=C.UTF-8 SHELL=/bin/sh {} '{}'",
            self.words(command).join(" "),
            program.replace('\'', "'\\''")
        )
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        let _ = Command::new("tmux").args(["-S", &self.socket, "kill-server"]).output();
    }
}

#[test]
fn a_tmux_server_is_where_it_was_started_and_so_is_all_that_it_starts() {
    if skip_unless(has("tmux"), "tmux is not installed") {
        return;
    }
    let mut scene = Scene::begin();
    let at = |name: &str| Tmux { socket: scene.ground.root().join(name).to_str().unwrap().to_owned() };
    let (theirs, ours) = (at("t1"), at("t2"));
    let outside = |scene: &mut Scene, line: &str| scene.outside(&["sh", "-c", line]);
    // One that a program of the session has started: whoever opens a window in it, the window is in the session.
    scene.tell(&theirs.line("new-session", "exec tail -f /dev/null"));
    assert_eq!(scene.ask(|scene, probe| scene.tell(&theirs.line("new-window", probe))), IN);
    assert_eq!(scene.ask(|scene, probe| outside(scene, &theirs.line("new-window", probe))), IN);
    // One that was there before: a way out.
    outside(&mut scene, &ours.line("new-session", "exec tail -f /dev/null"));
    assert_eq!(scene.ask(|scene, probe| scene.tell(&ours.line("new-window", probe))), OUT);
    assert_eq!(scene.ask(|scene, probe| scene.tell(&ours.line("new-session", probe))), OUT);
}

// --- other users, and the same one by another door ----------------------------------------------

/// A session that other users can see and run the program of, as if all guards but the user's id were down.
fn open_scene() -> Scene {
    let mut ground = Ground::new();
    let binary = ground.root().join("authsock");
    make_program(&binary, "exec cat \"$2\"", AUTHSOCK);
    ground.binary = binary;
    let mut scene = Scene::begin_on(ground);
    scene.refusal = "may not connect to it";
    for dir in [scene.ground.root(), &scene.ground.runtime()] {
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
    }
    scene.show_with_copies(0o644);
    scene
}

/// Opens a FIFO to all.
fn open_to_all(words: &str) {
    let fifo = words.rsplit(' ').next().unwrap();
    std::fs::set_permissions(fifo, PermissionsExt::from_mode(0o666)).unwrap();
}

#[test]
fn sudo_and_su_to_the_same_user_stay_in_the_session_and_another_user_is_nobody_in_it() {
    if skip_unless(is_root(), "becoming other users needs root") {
        return;
    }
    let (mut scene, mut open) = (Scene::begin(), open_scene());
    let mut ways = Vec::new();
    if !skip_unless(has("sudo"), "sudo is not installed") {
        ways.extend(["sudo -n -u USER PROBE", "sudo -n -b -u USER PROBE"]);
    }
    if !skip_unless(has("su"), "su is not installed") {
        ways.push("su -s /bin/sh USER -c 'PROBE'");
    }
    for way in ways {
        let line = |user: &str, probe: &str| way.replace("USER", user).replace("PROBE", probe);
        assert_eq!(scene.ask(|scene, probe| scene.tell(&line("root", probe))), IN, "{way}");
        let found = open.ask(|scene, probe| {
            open_to_all(probe);
            scene.tell(&line("nobody", probe))
        });
        assert_eq!(found, NEITHER, "{way}");
    }
}

#[test]
fn who_comes_in_by_ssh_is_outside_of_every_session() {
    let installed = ["ssh", "ssh-keygen"].iter().all(|program| has(program));
    let sshd = Path::new("/usr/sbin/sshd");
    if skip_unless(installed && sshd.exists(), "no ssh, or no sshd, is installed") {
        return;
    }
    let mut scene = Scene::begin();
    let root = scene.ground.root().to_str().unwrap().to_owned();
    for key in ["host", "user"] {
        let key = format!("{root}/{key}");
        scene.outside(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", &key]);
    }
    put(
        Path::new(&format!("{root}/sshd_config")),
        &format!(
            "HostKey {root}/host\nAuthorizedKeysFile {root}/user.pub\nStrictModes no\nUsePAM no\n\
             PermitRootLogin yes\nPidFile none\n"
        ),
        0o600,
    );
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // As inetd does: whoever connects gets an sshd, which nobody in the session has started.
    let mut server = scene.ground.command("sh");
    let serve = "if [ $(id -u) = 0 ]; then mount -t tmpfs none /run && mkdir -m 755 /run/sshd; fi && exec /usr/sbin/sshd -i -e -f \"$0\"";
    let mut words = vec!["sh", "-c", serve];
    if is_root() {
        // It wants an empty directory of its own in /run.
        words.splice(0..0, ["unshare", "--mount"]);
    }
    server.args(["-c", "exec \"$@\"", "sh"]).args(&words).arg(format!("{root}/sshd_config"));
    let log = std::fs::File::create(format!("{root}/sshd-log")).unwrap();
    let accepting = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let stream = OwnedFd::from(stream);
        server.stdin(stream.try_clone().unwrap()).stdout(stream).stderr(log);
        Held(server.spawn().unwrap())
    });
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name;
    let found = scene.ask(|scene, probe| {
        let (code, said) = scene.inside.tell(&format!(
            "ssh -F /dev/null -i {root}/user -p {port} -o BatchMode=yes -o IdentitiesOnly=yes -o StrictHostKeyChecking=no \
             -o UserKnownHostsFile={root}/known {user}@127.0.0.1 '{probe}'"
        ));
        let log = std::fs::read_to_string(format!("{root}/sshd-log")).unwrap();
        assert_eq!(code, 0, "{said}; {log}");
        said
    });
    assert_eq!(found, OUT);
    drop(accepting.join().unwrap());
}

#[test]
fn what_cron_starts_is_outside_of_the_session_whose_program_wrote_the_table() {
    let installed = Path::new("/usr/sbin/cron").exists() && Path::new("/etc/cron.d").exists();
    if skip_unless(
        is_root() && installed,
        "cron is not installed, or there is no root to give it a namespace",
    ) {
        return;
    }
    let mut scene = Scene::begin();
    let table = scene.ground.root().join("table");
    let nothing = scene.ground.root().join("nothing");
    put(&nothing, "", 0o644);
    let mut cron = scene.ground.command("unshare");
    // What is to be done at boot is done when /run has no mark of an earlier start.
    let start = format!(
        "mount -t tmpfs none /run && mount -t tmpfs none /var/spool/cron && mkdir /var/spool/cron/crontabs && \
         mount -t tmpfs none /etc/cron.d && mount --bind {nothing} /etc/crontab && \
         cp {table} /etc/cron.d/session && chmod 644 /etc/cron.d/session && exec /usr/sbin/cron -f",
        nothing = nothing.display(),
        table = table.display(),
    );
    cron.args(["--mount", "sh", "-c", &start]);
    let mut held = None;
    let found = scene.ask(|scene, probe| {
        let said = scene.tell(&format!("echo '@reboot root {probe}' >{}", table.display()));
        held = Some(Held(cron.spawn().unwrap()));
        said
    });
    assert_eq!(found, OUT);
}

// --- containers ---------------------------------------------------------------------------------

/// How a pid namespace is made and entered here: root needs no user namespace around it.
fn namespace() -> Option<(&'static str, &'static str)> {
    let ways = if is_root() {
        ("unshare --pid --fork", "nsenter -p")
    } else {
        ("unshare --user --map-current-user --pid --fork", "nsenter --preserve-credentials -U -p")
    };
    let may = Command::new("sh").args(["-c", &format!("{} true", ways.0)]).output();
    let may = has("nsenter") && may.is_ok_and(|output| output.status.success());
    (!skip_unless(may, "this user cannot make a pid namespace")).then_some(ways)
}

/// Starts a container's first process in some way, which goes on until it is told; returns its pid as it is outside.
fn container(scene: &mut Scene, make: &str, start: impl FnOnce(&mut Scene, &str)) -> (u32, PathBuf) {
    let (up, end) = (scene.fifo("up"), scene.fifo("end"));
    let mut ear = Ear::open(&up);
    // /proc is still the one outside, and tells the pids of there. The first process is the parent of cut.
    let first =
        format!("cut -d\" \" -f4 /proc/self/stat >{}; read end <{}; exit 0", up.display(), end.display());
    start(scene, &format!("{make} sh -c '{first}'"));
    let pid = ear.hear(make).trim().parse().unwrap();
    (pid, end)
}

fn end(container: &Path) {
    std::fs::File::options().write(true).open(container).unwrap().write_all(b"\n").unwrap();
}

#[test]
fn a_container_that_is_started_in_the_session_is_in_it() {
    let mut scene = Scene::begin();
    if let Some((make, _)) = namespace() {
        assert_eq!(scene.ask(|scene, probe| scene.tell(&format!("{make} {probe}"))), IN);
        // The first process of the namespace adopts, and is itself below the leader.
        let orphan = |scene: &mut Scene, probe: &str| {
            let inner = format!("( {probe} & ) ; read end <{}.end", scene.ground.root().join("c").display());
            scene.tell(&format!("mkfifo {}.end", scene.ground.root().join("c").display()));
            scene.tell(&format!("{make} sh -c '{}' >/dev/null 2>&1 &", inner.replace('\'', "'\\''")))
        };
        assert_eq!(scene.ask_orphan(orphan), IN);
        end(&scene.ground.root().join("c.end"));
    }
    let bwrap = "bwrap --unshare-pid --dev-bind / / --proc /proc --die-with-parent";
    let may = has("bwrap")
        && Command::new("sh")
            .args(["-c", &format!("{bwrap} true")])
            .output()
            .is_ok_and(|output| output.status.success());
    if !skip_unless(may, "bwrap is not installed, or may not be used by this user") {
        assert_eq!(scene.ask(|scene, probe| scene.tell(&format!("{bwrap} {probe}"))), IN);
    }
}

#[test]
fn who_enters_a_container_in_the_session_from_outside_is_outside_until_it_orphans_itself_there() {
    let Some((make, enter)) = namespace() else { return };
    let mut scene = Scene::begin();
    let (first, ended) = container(&mut scene, make, |scene, line| {
        scene.tell(&format!("{line} >/dev/null 2>&1 &"));
    });
    let enter = format!("{enter} -t {first}");
    assert_eq!(scene.ask(|scene, probe| scene.outside(&["sh", "-c", &format!("{enter} {probe}")])), OUT);
    // The attacker wins: whose parent ends in there is given to the container's first process, and that is below the
    // leader. It has to be the leader's user, or root, for that.
    let orphan = |scene: &mut Scene, probe: &str| {
        let inner = format!("( {probe} & )").replace('\'', "'\\''");
        scene.outside(&["sh", "-c", &format!("{enter} sh -c '{inner}' </dev/null >/dev/null 2>&1")])
    };
    assert_eq!(scene.ask_orphan(orphan), IN);
    end(&ended);
}

#[test]
fn who_enters_a_container_outside_from_the_session_is_in_the_session_until_it_orphans_itself_there() {
    let Some((make, enter)) = namespace() else { return };
    let mut scene = Scene::begin();
    let mut held = None;
    let (first, ended) = container(&mut scene, make, |scene, line| {
        let mut command = scene.ground.command("sh");
        held = Some(Held(command.args(["-c", &format!("exec {line}")]).process_group(0).spawn().unwrap()));
    });
    let enter = format!("{enter} -t {first}");
    assert_eq!(scene.ask(|scene, probe| scene.tell(&format!("{enter} {probe}"))), IN);
    // A way out, as to any other process that adopts: the first process there is nobody's descendant.
    let orphan = |scene: &mut Scene, probe: &str| {
        let inner = format!("( {probe} & )").replace('\'', "'\\''");
        scene.tell(&format!("{enter} sh -c '{inner}' </dev/null >/dev/null 2>&1"))
    };
    assert_eq!(scene.ask_orphan(orphan), OUT);
    end(&ended);
}

// --- code that others make a process run --------------------------------------------------------

#[test]
fn code_that_is_put_into_a_process_of_the_session_is_the_session() {
    if skip_unless(has("cc"), "there is no C compiler") {
        return;
    }
    let mut scene = Scene::begin();
    let (source, library) = (scene.ground.root().join("x.c"), scene.ground.root().join("x.so"));
    let code = r#"#include <stdlib.h>
__attribute__((constructor)) static void begin(void) {
    char *command = getenv("COMMAND");
    unsetenv("LD_PRELOAD");
    if (command) system(command);
}"#;
    put(&source, code, 0o600);
    let (source, library) = (source.to_str().unwrap(), library.to_str().unwrap());
    scene.outside(&["cc", "-shared", "-fPIC", "-o", library, source]);
    let found =
        scene.ask(|scene, probe| scene.tell(&format!("LD_PRELOAD={library} COMMAND='{probe}' env true")));
    assert_eq!(found, IN);
    // Into one outside it is the owner, as that one is.
    let found = scene.ask(|scene, probe| {
        let line = format!("LD_PRELOAD={library} COMMAND='{probe}' env true");
        scene.outside(&["sh", "-c", &line])
    });
    assert_eq!(found, OUT);
}
