//! The ground that tests stand on: a runtime directory and a home of their own, daemons that are waited for by event, and what ends them.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use authsock::secret::token::Token;
use authsock::secret::verifier::Verifier;
use serde_json::{Value, json};

/// The binary under test.
pub const AUTHSOCK: &str = env!("CARGO_BIN_EXE_authsock");
/// How long anything may take that should take milliseconds: a loaded machine is slow, not wrong.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Whether this test may become other users.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Says why a test is not run here. Returns true if it must be skipped.
pub fn skip_unless(possible: bool, why: &str) -> bool {
    if !possible {
        // Not eprintln!: what it prints is captured, and a skipped test must be seen.
        let test = std::thread::current().name().unwrap_or_default().to_owned();
        let _ = writeln!(std::io::stderr(), "skipped: {test}: {why}");
    }
    !possible
}

/// Whether a program is installed.
pub fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// A directory in which a program can stay: not below /tmp, where anybody may take a name that was given up. None,
/// said aloud, where this user has no such place.
pub fn place_to_stay() -> Option<tempfile::TempDir> {
    let home = std::env::home_dir().filter(|home| home.is_absolute());
    let made = home.and_then(|home| tempfile::Builder::new().prefix(".authsock-test-").tempdir_in(home).ok());
    let stays = |dir: &tempfile::TempDir| authsock::kernel::path::refuse_replaceable(dir.path()).is_ok();
    let made = made.filter(stays);
    skip_unless(made.is_some(), "this user has no home directory that is nobody else's to change");
    made
}

/// A user's surroundings, with nothing in them.
pub struct Ground {
    dir: tempfile::TempDir,
    /// What is run as authsock; another user may need a copy, or a namespace around it.
    pub binary: PathBuf,
}

impl Ground {
    pub fn new() -> Ground {
        Ground::below(Path::new("/tmp"))
    }

    /// On another file system.
    pub fn below(place: &Path) -> Ground {
        // A short path: sockets lie in it.
        let dir = tempfile::Builder::new().prefix("as-").tempdir_in(place).unwrap();
        for part in ["run", "home"] {
            let path = dir.path().join(part);
            std::fs::create_dir(&path).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
        }
        Ground { dir, binary: AUTHSOCK.into() }
    }

    /// The directory that everything lies in.
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// `$XDG_RUNTIME_DIR`.
    pub fn runtime(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// Where an init system's socket lies.
    pub fn init_socket(&self) -> PathBuf {
        self.runtime().join("authsock.sock")
    }

    /// Where a client-started daemon's socket lies.
    pub fn ondemand_socket(&self) -> PathBuf {
        self.runtime().join("authsock-ondemand.sock")
    }

    pub fn state(&self) -> PathBuf {
        self.runtime().join("authsock")
    }

    /// The owner's token file.
    pub fn token_path(&self) -> PathBuf {
        self.state().join("token")
    }

    /// The owner's token.
    pub fn token(&self) -> String {
        std::fs::read_to_string(self.token_path()).unwrap()
    }

    /// The owner's token, once somebody has been served: then it is there.
    pub fn token_after_first_contact(&self) -> String {
        let output = self.authsock(["whoami"]).output().unwrap();
        assert!(output.status.success(), "{}", text_of(&output));
        self.token()
    }

    /// The log of a client-started daemon.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.home().join(".local/state/authsock/log")).unwrap_or_default()
    }

    /// Writes the configuration.
    pub fn configure(&self, text: &str) {
        let path = self.home().join(".config/authsock/config.toml");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        put(&path, text, 0o600);
    }

    /// Any program in these surroundings, with a clean environment.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env_clear();
        for kept in ["PATH", "LLVM_PROFILE_FILE"] {
            if let Some(value) = std::env::var_os(kept) {
                command.env(kept, value);
            }
        }
        command.env("HOME", self.home()).env("XDG_RUNTIME_DIR", self.runtime()).stdin(Stdio::null());
        command
    }

    /// The binary in these surroundings.
    pub fn authsock<const N: usize>(&self, args: [&str; N]) -> Command {
        let mut command = self.command(&self.binary);
        command.args(args);
        command
    }

    /// Runs the binary to a good end and reads the JSON that it prints.
    pub fn json<const N: usize>(&self, args: [&str; N]) -> Value {
        let output = self.authsock(args).arg("--json").output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", text_of(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Starts a daemon as an init system would, on its usual socket, and waits until it is ready.
    pub fn serve(&self) -> Daemon {
        self.serve_as(|_| {})
    }

    /// As [`Ground::serve`], with a say in how the daemon is run.
    pub fn serve_as(&self, change: impl FnOnce(&mut Command)) -> Daemon {
        Daemon::start(self, bind_private(&self.init_socket()), change)
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // A daemon that a client started is nobody's child; its lock names it.
        let noted = authsock::kernel::dir::noted_holder(&self.state().join("lock"));
        let Some(pid) = noted.and_then(|pid| i32::try_from(pid).ok()) else { return };
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let ours = self.runtime();
        let ours = ours.as_os_str().as_encoded_bytes();
        if environ.windows(ours.len()).any(|part| part == ours) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
        }
    }
}

/// Writes a file with exactly this mode.
pub fn put(path: &Path, text: &str, mode: u32) {
    let mut file = std::fs::File::create(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

/// Makes a program out of what a shell prints. A file that this process itself had open for writing could not be
/// executed for as long as a child, just forked by another test, still held it too (execve(2), ETXTBSY).
pub fn make_program(path: &Path, print: &str, argument: &str) {
    let script = format!("({print}) >\"$1\" && chmod 755 \"$1\"");
    let made = Command::new("sh").args(["-c", &script, "sh"]).arg(path).arg(argument).status();
    assert!(made.unwrap().success(), "{}", path.display());
}

/// A listening socket of mode 0600.
pub fn bind_private(path: &Path) -> UnixListener {
    let listener = UnixListener::bind(path).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
    listener
}

/// What a program printed, for a failed assertion.
pub fn text_of(output: &Output) -> String {
    format!(
        "{}\nstdout: {}\nstderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// A daemon that was started the way an init system starts it. Killed when dropped.
pub struct Daemon {
    pub child: Child,
    notify: UnixDatagram,
    stderr: PathBuf,
    /// Our own hold on the socket, as an init system has: the queue survives the daemon.
    pub listener: UnixListener,
}

impl Daemon {
    pub fn start(ground: &Ground, listener: UnixListener, change: impl FnOnce(&mut Command)) -> Daemon {
        let daemon = Daemon::start_without_waiting(ground, listener, change);
        daemon.wait_for("READY=1");
        daemon
    }

    pub fn start_without_waiting(
        ground: &Ground,
        listener: UnixListener,
        change: impl FnOnce(&mut Command),
    ) -> Daemon {
        let unique = format!("{:?}-{}", std::time::Instant::now(), listener.as_raw_fd());
        let unique: String = unique.chars().filter(char::is_ascii_alphanumeric).collect();
        let notify_path = ground.root().join(format!("n{}", &unique[unique.len().saturating_sub(24)..]));
        let notify = UnixDatagram::bind(&notify_path).unwrap();
        // A daemon of another user reports here too; the directory decides who can reach it.
        std::fs::set_permissions(&notify_path, PermissionsExt::from_mode(0o666)).unwrap();
        notify.set_read_timeout(Some(PATIENCE)).unwrap();
        let stderr = ground.root().join(format!("err{unique}"));
        // exec keeps the pid, so the shell can name it before there is a daemon.
        let mut command = ground.command("sh");
        command.args(["-c", "eval \"${INSTEAD:-LISTEN_PID=$$ exec '$0' serve}\""]).arg(&ground.binary);
        command
            .env("LISTEN_FDS", "1")
            .env("LISTEN_FDNAMES", "authsock")
            .env("NOTIFY_SOCKET", &notify_path)
            .env("RUNTIME_DIRECTORY", ground.state())
            .stderr(std::fs::File::create(&stderr).unwrap());
        pass_as(&mut command, listener.as_raw_fd(), 3);
        change(&mut command);
        let child = command.spawn().unwrap();
        Daemon { child, notify, stderr, listener }
    }

    /// Waits for a message to the service manager that has this line, and returns the message.
    pub fn wait_for(&self, wanted: &str) -> String {
        let mut buffer = [0; 8192];
        loop {
            let length = match self.notify.recv(&mut buffer) {
                Ok(length) => length,
                // With a timeout set, stopping and continuing this process is enough (signal(7)).
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => panic!("no {wanted}: {error}; the daemon said: {}", self.stderr()),
            };
            let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if message.lines().any(|line| line.starts_with(wanted)) {
                return message;
            }
        }
    }

    /// Where it tells how it does.
    pub fn notify_path(&self) -> PathBuf {
        self.notify.local_addr().unwrap().as_pathname().unwrap().to_path_buf()
    }

    /// What the daemon has logged so far.
    pub fn stderr(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Waits until the log has a line with `wanted`, and returns that line. The log is a file,
    /// which gives no event; the daemon writes it before it answers.
    pub fn wait_for_log(&self, wanted: &str) -> String {
        let end = std::time::Instant::now() + PATIENCE;
        while std::time::Instant::now() < end {
            if let Some(line) = self.stderr().lines().find(|line| line.contains(wanted)) {
                return line.to_owned();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the log never said {wanted:?}: {}", self.stderr());
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes a prepared command run another program instead, with the same surroundings and
/// descriptors.
pub fn become_instead(command: &mut Command, other: &Command) {
    let words: Vec<_> = std::iter::once(other.get_program()).chain(other.get_args()).collect();
    // The prepared one is a shell that evaluates this, if it is set.
    let path = words.iter().map(|word| format!("'{}'", word.to_str().unwrap().replace('\'', "'\\''")));
    command.env("INSTEAD", format!("exec {}", path.collect::<Vec<_>>().join(" ")));
}

/// Hands a descriptor to a command under another number, without close-on-exec.
pub fn pass_as(command: &mut Command, number: i32, wanted: i32) {
    // Out of the way of every number that may be wanted, so that nothing overwrites it before.
    // SAFETY: the number is open; the copy is left open, which a test can afford.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 100) };
    assert!(copy >= 100);
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe {
        command.pre_exec(move || {
            if libc::dup2(copy, wanted) == -1 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        });
    }
}

/// A connection that speaks lines of JSON, for tests that speak the protocol by hand.
pub struct Line {
    reader: BufReader<UnixStream>,
}

impl Line {
    pub fn connect(path: &Path) -> Line {
        Line::on(UnixStream::connect(path).unwrap())
    }

    /// On a connection that somebody made.
    pub fn on(stream: UnixStream) -> Line {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Line { reader: BufReader::new(stream) }
    }

    pub fn stream(&self) -> &UnixStream {
        self.reader.get_ref()
    }

    /// Sends bytes. A daemon that refused before it read has closed already; what it said can still
    /// be received.
    pub fn send(&mut self, text: &str) {
        match self.reader.get_mut().write_all(text.as_bytes()) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            Err(error) => panic!("cannot send: {error}"),
        }
    }

    pub fn send_json(&mut self, value: &Value) {
        self.send(&format!("{value}\n"));
    }

    /// The next line, or `None` at the end.
    pub fn receive(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line:?}"))),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("no line: {error}"),
        }
    }

    /// Everything up to the end.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.reader.read_to_end(&mut rest) {
            Ok(_) => rest,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => rest,
            Err(error) => panic!("no end: {error}"),
        }
    }

    /// The plain handshake; returns its result.
    pub fn plain(&mut self, token: &str) -> Value {
        self.send_json(&json!({ "type": "auth", "token": token }));
        self.receive().unwrap()
    }

    /// A call and its answer.
    pub fn call(&mut self, method: &str, params: &Value) -> Value {
        self.send_json(&json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }));
        self.receive().unwrap()
    }
}

/// A daemon that goes by this configuration, in surroundings of its own.
pub fn served_with(configuration: &str) -> (Ground, Daemon) {
    let ground = Ground::new();
    ground.configure(configuration);
    let daemon = ground.serve();
    (ground, daemon)
}

/// Whoever has this token, connected.
pub fn connected(ground: &Ground, token: &str) -> Line {
    let mut line = Line::connect(&ground.init_socket());
    let result = line.plain(token);
    assert_eq!(result["success"], true, "{result}");
    line
}

/// The owner, connected.
pub fn owner(ground: &Ground) -> Line {
    connected(ground, &ground.token_after_first_contact())
}

/// The code of a refusal.
pub fn refusal(result: &Value) -> &str {
    assert_eq!(result["success"], false, "{result}");
    result["error"]["code"].as_str().unwrap()
}

/// A new token and the parameter that registers it.
pub fn minted() -> (Token, Value) {
    let token = Token::generate().unwrap();
    let verifier = Verifier::of(&token);
    let (stored, server) = verifier.reveal();
    let param = json!({
        "token_id": verifier.id().to_string(), "stored_key": stored.as_str(), "server_key": server.as_str(),
    });
    (token, param)
}
