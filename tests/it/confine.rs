//! What a program in a confined session can do and what it cannot: by a hostile one, by name, and where confinement is forbidden.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::ground::{Daemon, Ground, bind_private, has, is_root, pass_as, put, skip_unless, text_of};
use crate::tree::Inside;

const HOSTILE: &str = include_str!("hostile.py");

/// Whether this kernel and its policy let this user have a user and a mount namespace; told otherwise than by
/// what is tested.
fn may_confine() -> bool {
    let done = Command::new("unshare").args(["--user", "--mount", "true"]).stderr(Stdio::null()).status();
    !skip_unless(
        done.is_ok_and(|status| status.success()),
        "this user may have no user and mount namespace here, or there is no unshare(1)",
    )
}

fn served() -> (Ground, Daemon) {
    let ground = Ground::new();
    let daemon = ground.serve();
    (ground, daemon)
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Something that greets whoever connects, as a session bus would serve whoever connects, for as long as this lives.
struct Bus {
    address: SocketAddr,
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Bus {
    fn listen(address: SocketAddr) -> Bus {
        let listener = UnixListener::bind_addr(&address).unwrap();
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut held = Vec::new();
            for stream in listener.incoming().map(Result::unwrap) {
                if stopped.load(std::sync::atomic::Ordering::SeqCst) {
                    return;
                }
                let _ = (&stream).write_all(b"bus");
                held.push(stream);
            }
        });
        Bus { address, stop, thread: Some(thread) }
    }

    fn at(path: &Path) -> Bus {
        Bus::listen(SocketAddr::from_pathname(path).unwrap())
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect_addr(&self.address).unwrap()
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::SeqCst);
        let _ = UnixStream::connect_addr(&self.address);
        let _ = self.thread.take().unwrap().join();
    }
}

/// A process outside of every session that has much to take. Killed when dropped.
struct Bystander(Child);

impl Bystander {
    fn of(ground: &Ground) -> Bystander {
        let mut command = ground.command("sh");
        let script = "exec 9<token; echo; exec sleep 600";
        command.args(["-c", script]).current_dir(ground.state()).env("SECRET", "of the bystander");
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        // It has the descriptor open before it says so.
        let mut said = [0; 1];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
        Bystander(child)
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A piece of System V shared memory, removed when dropped.
struct Shared(i32);

impl Shared {
    fn holding(bytes: &[u8]) -> Shared {
        // SAFETY: a new piece, that is as large as what is copied, and attached as long as that takes.
        unsafe {
            let id = libc::shmget(libc::IPC_PRIVATE, bytes.len(), 0o600);
            assert!(id >= 0, "{}", std::io::Error::last_os_error());
            let place = libc::shmat(id, std::ptr::null(), 0);
            assert_ne!(place as isize, -1, "{}", std::io::Error::last_os_error());
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), place.cast(), bytes.len());
            libc::shmdt(place);
            Shared(id)
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: removing takes no buffer.
        unsafe { libc::shmctl(self.0, libc::IPC_RMID, std::ptr::null_mut()) };
    }
}

/// The number of the keyring of all of this user's processes; -1 where there are no keys.
fn user_keyring() -> libc::c_long {
    const GET_KEYRING_ID: libc::c_ulong = 0;
    let (user, create) = (libc::c_long::from(libc::KEY_SPEC_USER_KEYRING), 1 as libc::c_ulong);
    // SAFETY: keyctl(2) with plain numbers.
    unsafe { libc::syscall(libc::SYS_keyctl, GET_KEYRING_ID, user, create) }
}

/// Gives a command a session keyring of its own, with a key in it, as a login does.
fn with_a_key(command: &mut Command, name: &str, key: &'static [u8]) {
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: system calls between fork and exec, on memory that lives with the closure. A kernel without keys
    // refuses, which is then what the program finds.
    unsafe {
        command.pre_exec(move || {
            let none = 0 as libc::c_ulong;
            let join = libc::c_ulong::from(libc::KEYCTL_JOIN_SESSION_KEYRING);
            libc::syscall(libc::SYS_keyctl, join, none);
            let keyring = libc::c_long::from(libc::KEY_SPEC_SESSION_KEYRING);
            libc::syscall(
                libc::SYS_add_key,
                c"user".as_ptr(),
                name.as_ptr(),
                key.as_ptr(),
                key.len(),
                keyring,
            );
            Ok(())
        });
    }
}

/// What the hostile program achieves in a session with these options.
fn hostile(options: &[&str]) -> BTreeMap<String, String> {
    let (ground, daemon) = served();
    let token = ground.token_after_first_contact();
    let other = Inside::begin(&ground, &["--name", "other"]);
    let bystander = Bystander::of(&ground);
    let scratch = ground.root().join("scratch");
    std::fs::create_dir_all(scratch.join("old")).unwrap();
    let (bus, moved) = (ground.runtime().join("bus"), ground.root().join("moved-bus"));
    let name = format!("authsock-test-bus-{}-{}", std::process::id(), options.len());
    let at_its_path = Bus::at(&bus);
    let _moved = Bus::at(&moved);
    let _abstract = Bus::listen(SocketAddr::from_abstract_name(&name).unwrap());
    let script = ground.root().join("hostile.py");
    put(&script, HOSTILE, 0o600);
    let mut command = ground.authsock(["run", "--name", "hostile"]);
    command.args(options).args(["--", "sh", "-c", "LEADER=$PPID exec python3 -I \"$0\""]).arg(&script);
    command
        .env("TOKEN", ground.token_path())
        .env("OTHER", &other.token_file)
        .env("SCRATCH", &scratch)
        .env("BYSTANDER", bystander.0.id().to_string())
        .env("BUS", &bus)
        .env("MOVED_BUS", &moved)
        .env("ABSTRACT_BUS", &name)
        .env("DBUS_SESSION_BUS_ADDRESS", format!("unix:abstract={name};unix:path={}", path(&moved)));
    let (directory, file) =
        (std::fs::File::open(ground.state()).unwrap(), std::fs::File::open(ground.token_path()).unwrap());
    let connection = at_its_path.connect();
    pass_as(&mut command, directory.as_raw_fd(), 5);
    pass_as(&mut command, file.as_raw_fd(), 6);
    pass_as(&mut command, connection.as_raw_fd(), 7);
    let shared = Shared::holding(b"shared");
    command.env("SHARED", shared.0.to_string()).env("KEY", &name);
    command.env("KEYRING", user_keyring().to_string());
    with_a_key(&mut command, &name, b"key");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text_of(&output));
    assert_eq!(ground.token(), token, "the ground is as it was");
    let said = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(!text_of(&output).contains(&token));
    let found: BTreeMap<String, String> = said
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect();
    assert_eq!(found.len(), said.lines().count(), "{said}");
    assert!(found.len() > 40 && !said.contains("broken"), "{}", text_of(&output));
    drop((other, daemon));
    found
}

fn names<'a>(found: &'a BTreeMap<String, String>, wanted: &str) -> Vec<&'a str> {
    found.iter().filter(|(_, result)| *result == wanted).map(|(name, _)| name.as_str()).collect()
}

/// The newest kind of Landlock that this kernel has (landlock(7)); 6 is the first that scopes.
fn landlock() -> i64 {
    const VERSION: libc::c_ulong = 1;
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY: with this flag the kernel reads no attributes.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0, VERSION) }
}

/// What a program gets that shares its user with the rest, and is not confined.
const EVERYBODY_GETS: [&str; 48] = [
    "a connection to the bus passed down",
    "a directory passed down",
    "a key in the session keyring",
    "an open token passed down",
    "another session's token",
    "bystander: a descriptor taken out",
    "bystander: a signal",
    "bystander: a signal by pidfd",
    "bystander: its descriptors",
    "bystander: its environment",
    "bystander: its limits changed",
    "bystander: its memory",
    "bystander: its memory by process_vm_readv",
    "bystander: its open token",
    "bystander: its program",
    "bystander: its root",
    "bystander: its working directory",
    "bystander: traced",
    "further namespace: a copy of the tree without what hides",
    "further namespace: a root elsewhere, and out of it",
    "further namespace: an overlay of the directory",
    "further namespace: another root for all, and what is hidden moved away",
    "further namespace: another root for all, the old one taken away",
    "further namespace: showing the directory elsewhere, with what hides",
    "further namespace: showing the directory elsewhere, without what hides",
    "further namespace: the old root taken away, and the directory moved to where a second mount shows it",
    "further namespace: the way to the directory moved to where a second mount shows it",
    "leader: a descriptor taken out",
    "leader: a signal",
    "leader: a signal by pidfd",
    "leader: its descriptors",
    "leader: its environment",
    "leader: its limits changed",
    "leader: its memory",
    "leader: its memory by process_vm_readv",
    "leader: its program",
    "leader: its root",
    "leader: traced",
    "moving the way to the directory away",
    "shared memory",
    "the directory of what the daemon keeps",
    "the owner's token by $XDG_RUNTIME_DIR",
    "the owner's token by its path",
    "the session bus at a path elsewhere",
    "the session bus at its path",
    "the session bus by its variable",
    "the session bus without a path",
    "the user's keyring by its number",
];
/// What only root gets beside that.
const ROOT_GETS: [&str; 3] = [
    "bystander: its mount namespace by /proc",
    "leader: its mount namespace by /proc",
    "mounting without a further namespace",
];

#[test]
fn a_hostile_program_gets_nothing_out_of_a_confined_session() {
    if skip_unless(has("python3"), "there is no python3 to be hostile") || !may_confine() {
        return;
    }
    let found = hostile(&["--confine"]);
    let mut expected = Vec::new();
    if skip_unless(
        cfg!(any(target_arch = "x86_64", target_arch = "aarch64")),
        "system calls are not filtered on this machine",
    ) {
        let reach = |name: &&str| name.contains("limits") || name.contains("by its number");
        expected.extend(EVERYBODY_GETS.into_iter().filter(reach));
    }
    if skip_unless(landlock() >= 6, "before Linux 6.12 signals and abstract sockets are not scoped") {
        let reach = |name: &&str| name.contains("signal") || name.contains("without a path");
        expected.extend(EVERYBODY_GETS.into_iter().filter(reach));
    }
    expected.sort_unstable();
    assert_eq!(names(&found, "got"), expected);
    for name in EVERYBODY_GETS.iter().chain(&ROOT_GETS) {
        assert!(found.contains_key(*name), "{name} was not tried");
    }
}

#[test]
fn the_same_program_gets_without_confinement_what_the_matrix_says() {
    if skip_unless(has("python3"), "there is no python3 to be hostile") || !may_confine() {
        return;
    }
    let found = hostile(&[]);
    let mut expected = EVERYBODY_GETS.to_vec();
    if is_root() {
        expected.extend(ROOT_GETS);
        expected.sort_unstable();
    }
    // Yama keeps an ordinary user from tracing what is not its own descendant (kernel.yama.ptrace_scope).
    let yama = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    if !is_root() && !["", "0"].contains(&yama.trim()) {
        let traces = ["traced", "memory", "taken out"];
        expected.retain(|name| !traces.iter().any(|word| name.contains(word)));
    }
    if skip_unless(Path::new("/proc/keys").exists(), "this kernel has no keys") {
        expected.retain(|name| !name.contains("keyring"));
    }
    let systems = std::fs::read_to_string("/proc/filesystems").unwrap();
    if skip_unless(systems.contains("overlay"), "this kernel has no overlays") {
        expected.retain(|name| !name.contains("overlay"));
    }
    assert_eq!(names(&found, "got"), expected);
}

/// A shell in a confined session.
fn confined(ground: &Ground, options: &[&str]) -> Inside {
    let options: Vec<&str> = ["--confine"].iter().chain(options).copied().collect();
    Inside::begin(ground, &options)
}

#[test]
fn a_confined_program_has_no_capability_and_no_way_to_one() {
    if !may_confine() {
        return;
    }
    let (ground, _daemon) = served();
    let mut inside = confined(&ground, &[]);
    let (_, said) = inside.tell("cat /proc/self/status");
    let field = |name: &str| {
        let line = said.lines().find(|line| line.starts_with(&format!("{name}:")));
        line.unwrap_or_else(|| panic!("no {name}: {said}")).split_whitespace().nth(1).unwrap().to_owned()
    };
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs"), "1");
    let uid = nix::unistd::geteuid();
    assert_eq!(field("Uid"), uid.to_string());
    let (_, map) = inside.tell("cat /proc/self/uid_map /proc/self/gid_map");
    let ids = [uid.as_raw(), nix::unistd::getegid().as_raw()];
    let words: Vec<Vec<u32>> = map
        .lines()
        .map(|line| line.split_whitespace().map(|number| number.parse().unwrap()).collect())
        .collect();
    assert_eq!(words, ids.map(|id| vec![id, id, 1]), "one user and one group, which are who they were");
}

#[test]
fn a_confined_program_sets_its_own_limits_and_writes_to_no_control_group_and_sees_no_queue() {
    if !may_confine() {
        return;
    }
    let (ground, _daemon) = served();
    let mut inside = confined(&ground, &[]);
    assert_eq!(inside.tell("ulimit -n 100 && ulimit -n"), (0, "100\n".to_owned()));
    let (_, said) = inside.tell("cat /proc/self/mountinfo");
    let mounts: Vec<Vec<&str>> = said.lines().map(|line| line.split(' ').collect()).collect();
    let of_kind = |kind: &str| -> Vec<&Vec<&str>> {
        let is = |mount: &&Vec<&str>| {
            mount
                .iter()
                .skip_while(|field| **field != "-")
                .nth(1)
                .is_some_and(|found| found.starts_with(kind))
        };
        mounts.iter().filter(is).collect()
    };
    for mount in of_kind("cgroup") {
        assert!(mount[5].starts_with("ro"), "{mount:?}");
    }
    if !skip_unless(!of_kind("cgroup").is_empty(), "no control groups are mounted here") {
        let path = of_kind("cgroup")[0][4];
        let (code, said) = inside.tell(&format!("mkdir {path}/authsock-test"));
        assert!(code != 0 && said.contains("Read-only"), "{said}");
    }
    if !skip_unless(!of_kind("mqueue").is_empty(), "no message queues are mounted here") {
        assert_eq!(of_kind("mqueue").len(), 2, "{said}");
    }
}

#[test]
fn a_place_that_only_this_user_s_own_closed_directory_keeps_out_of_reach_is_not_taken_for_hidden() {
    if skip_unless(!is_root() && has("setpriv"), "no directory is closed to root") || !may_confine() {
        return;
    }
    let (ground, _daemon) = served();
    ground.token_after_first_contact();
    let mark = ground.home().join("started");
    std::fs::create_dir_all(ground.root().join("closed/whole")).unwrap();
    let script = r#"
mount --bind "$XDG_RUNTIME_DIR" "$GROUND/closed/whole"
chmod 0 "$GROUND/closed"
exec setpriv --ambient-caps=-all --inh-caps=-all "$0" run --confine -- touch "$MARK"
"#;
    let Some(mut command) = in_own_mounts(&ground, script) else { return };
    // By a program without the right to pass over modes that comes with the namespace.
    command.env("GROUND", ground.root()).env("MARK", &mark);
    let output = command.output().unwrap();
    std::fs::set_permissions(ground.root().join("closed"), PermissionsExt::from_mode(0o700)).unwrap();
    assert_not_started(&ground, &output, &mark, &["closed", "chmod u+x"]);
    // So it is with what is named and lies behind such a directory.
    put(&ground.root().join("closed/token"), &ground.token(), 0o600);
    std::fs::set_permissions(ground.root().join("closed"), PermissionsExt::from_mode(0o0)).unwrap();
    let mut command = ground.authsock(["run", "--confine", "--", "touch", path(&mark)]);
    command.env("DBUS_SESSION_BUS_ADDRESS", format!("unix:path={}/closed/token", path(ground.root())));
    let output = command.output().unwrap();
    std::fs::set_permissions(ground.root().join("closed"), PermissionsExt::from_mode(0o700)).unwrap();
    assert_not_started(&ground, &output, &mark, &["closed", "chmod u+x"]);
}

#[test]
fn a_confined_program_is_its_session_to_the_daemon_and_so_is_what_it_leaves_behind() {
    if !may_confine() {
        return;
    }
    let (ground, daemon) = served();
    let mut inside = confined(&ground, &["--name", "kept"]);
    let who = inside.whoami();
    assert_eq!(who["session"]["name"], "kept");
    assert_eq!(who["session"]["binding"], "tree");
    assert_eq!(who["peer"]["uid"], nix::unistd::geteuid().as_raw());
    assert_eq!(inside.json("( ( authsock whoami --json ) )")["session"], who["session"]);
    if !skip_unless(has("setsid"), "there is no setsid") {
        assert_eq!(inside.json("setsid --wait authsock whoami --json")["session"], who["session"]);
    }
    let (code, said) = inside.tell("authsock doctor");
    assert_eq!(code, 0, "nothing is wrong there: {said}");
    // Its token is its own to replace, and nobody else's.
    let token_of = |inside: &mut Inside| inside.tell("cat \"$AUTHSOCK_TOKEN_FILE\"").1;
    let before = token_of(&mut inside);
    assert_eq!(before, inside.token());
    assert_eq!(inside.tell("authsock token rotate").0, 0);
    assert_ne!(token_of(&mut inside), before);
    assert_eq!(inside.token(), before, "what is written inside stays there");
    assert_eq!(inside.id(), who["session"]["id"].as_str().unwrap());
    let (code, said) = inside.tell("env -u AUTHSOCK_SOCKET -u AUTHSOCK_TOKEN_FILE authsock whoami");
    assert_eq!(code, 4, "there is no owner's token to be found: {said}");
    assert!(said.contains("is not there"), "{said}");
    // The program that it starts sees the private directory and nothing else in it.
    let (_, said) = inside.tell("cd \"$XDG_RUNTIME_DIR\" && find . | sort");
    let home = inside.token_file.parent().unwrap().file_name().unwrap().to_str().unwrap();
    let mut expected: Vec<String> = [".", "./authsock-run", "./authsock.sock"].map(str::to_owned).into();
    expected
        .extend(["", "/token", "/way", "/way/authsock.sock"].map(|it| format!("./authsock-run/{home}{it}")));
    expected.sort();
    let mut said: Vec<&str> = said.trim().lines().collect();
    said.sort_unstable();
    assert_eq!(said, expected);
    assert_eq!(inside.end(), 0);
    assert!(std::fs::read_dir(ground.runtime().join("authsock-run")).unwrap().next().is_none());
    daemon.wait_for_log("(kept) ended: leader_exited");
}

#[test]
fn a_confined_program_changes_nothing_in_the_runtime_directory_outside() {
    if !may_confine() {
        return;
    }
    let (ground, _daemon) = served();
    let mut inside = confined(&ground, &[]);
    let home = inside.token_file.parent().unwrap().to_path_buf();
    let listed = || {
        let mut all: Vec<_> = [&home, &home.join("way")]
            .into_iter()
            .flat_map(|dir| std::fs::read_dir(dir).unwrap())
            .map(|entry| {
                let entry = entry.unwrap();
                (entry.file_name(), entry.metadata().unwrap().permissions().mode())
            })
            .collect();
        all.sort();
        (all, std::fs::metadata(ground.init_socket()).unwrap().permissions().mode())
    };
    let before = listed();
    for (attempt, word) in [
        ("mkdir $HOME_OF_IT/way/d", "Read-only"),
        ("chmod 0 $HOME_OF_IT/way", "Read-only"),
        ("chmod 0 $HOME_OF_IT/way/authsock.sock", "Read-only"),
        ("rm $HOME_OF_IT/way/authsock.sock", "Read-only"),
        ("chmod 0 $XDG_RUNTIME_DIR/authsock.sock", "Read-only"),
        ("rm $XDG_RUNTIME_DIR/authsock.sock", "busy"),
        ("mv $HOME_OF_IT $HOME_OF_IT-gone", ""),
        ("mkdir $HOME_OF_IT/d && echo >$HOME_OF_IT/d/f", ""),
    ] {
        let (code, said) = inside.tell(&format!("HOME_OF_IT=$(dirname $AUTHSOCK_TOKEN_FILE); {attempt}"));
        assert!(word.is_empty() || code != 0 && said.contains(word), "{attempt}: {said}");
        inside.tell("mv $(dirname $AUTHSOCK_TOKEN_FILE)-gone $(dirname $AUTHSOCK_TOKEN_FILE)");
    }
    assert_eq!(listed(), before);
    // Its own sessions sweep there, and not it.
    assert_eq!(inside.tell("authsock run -- true; authsock whoami").0, 0);
}

#[test]
fn what_is_started_in_a_confined_session_is_in_it_or_is_not_started() {
    if !may_confine() {
        return;
    }
    let (ground, _daemon) = served();
    let mut inside = confined(&ground, &["--name", "kept"]);
    let id = inside.id();
    if !skip_unless(has("tmux"), "tmux is not installed") {
        // The word comes by a pipe of the terminal's own.
        let said = ground.root().join("said");
        nix::unistd::mkfifo(&said, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let said = path(&said);
        let (code, words) = inside.tell(&format!(
            "export TMUX_TMPDIR=\"$XDG_RUNTIME_DIR\"; tmux -f /dev/null new-session -d \"authsock whoami --json >{said} 2>&1\"; cat {said}; tmux kill-server 2>/dev/null; true"
        ));
        let who: serde_json::Value = serde_json::from_str(&words).unwrap_or_else(|_| panic!("{words}"));
        assert_eq!((code, who["session"]["id"].as_str()), (0, Some(id.as_str())), "a tmux server of its own");
    }
    if !skip_unless(has("sudo"), "sudo is not installed") {
        assert_ne!(inside.tell("sudo -n true").0, 0, "set-user-ID has no effect");
    }
    if !skip_unless(has("systemd-run"), "systemd-run is not installed") {
        assert_ne!(inside.tell("systemd-run --user true").0, 0, "there is no bus");
        assert_ne!(inside.tell("systemd-run --user --scope true").0, 0, "there is no bus");
    }
    assert_ne!(inside.tell("nsenter -t $PPID -p true").0, 0, "the leader's namespaces are out of reach");
}

#[test]
fn sessions_nest_in_a_confined_one_and_each_sees_its_own_token_alone() {
    if !may_confine() {
        return;
    }
    let (ground, _daemon) = served();
    let mut outer = confined(&ground, &["--name", "outer"]);
    let id = outer.id();
    let child = outer.json("authsock run --name inner -- authsock whoami --json");
    assert_eq!(
        (&child["session"]["name"], &child["session"]["parent"]),
        (&"inner".into(), &id.as_str().into())
    );
    // This ground is its user's to move, and so there are no further namespaces.
    let (code, said) = outer.tell("authsock run --confine --name deep -- true");
    assert_eq!(code, 125, "{said}");
    assert!(said.contains("making a user") && said.contains("below /run/user"), "{said}");
    assert_eq!(outer.id(), id);
}

#[test]
fn exit_codes_and_signals_are_as_without_confinement() {
    if !may_confine() {
        return;
    }
    let (ground, _daemon) = served();
    let run = |script: &str| {
        let mut command = ground.authsock(["run", "--confine", "--", "sh", "-c", script]);
        let output = command.output().unwrap();
        output.status.code().unwrap_or_else(|| panic!("{}", text_of(&output)))
    };
    assert_eq!(run("exit 7"), 7);
    assert_eq!(run("kill -KILL $$"), 128 + 9);
    // Processes of its own it may signal.
    assert_eq!(run("sleep 600 & kill -TERM $!; wait $!"), 128 + 15);
    for (program, code) in [("no-such-program", 127), ("/etc/passwd", 126)] {
        let output = ground.authsock(["run", "--confine", "--", program]).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", text_of(&output));
        assert!(!text_of(&output).contains("confine"), "{}", text_of(&output));
    }
    let inside = confined(&ground, &[]);
    kill(Pid::from_raw(inside.run.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    let mut run = inside;
    assert_eq!(run.run.wait().unwrap().code(), Some(128 + 15), "what `run` gets is passed on");
}

#[test]
fn a_working_directory_or_stream_that_leads_to_what_is_hidden_is_refused_before_the_program_starts() {
    if !may_confine() {
        return;
    }
    let (ground, _daemon) = served();
    ground.token_after_first_contact();
    let mark = ground.home().join("started");
    let refused = |change: &dyn Fn(&mut Command), words: &[&str]| {
        let mut command = ground.authsock(["run", "--confine", "--", "touch", path(&mark)]);
        change(&mut command);
        assert_not_started(&ground, &command.output().unwrap(), &mark, words);
    };
    for cwd in [ground.runtime(), ground.state()] {
        let runtime = ground.runtime();
        refused(
            &|command| {
                command.current_dir(&cwd);
            },
            &["working directory", path(&cwd), path(&runtime), "from elsewhere"],
        );
    }
    let stream = || std::fs::File::open("/").unwrap();
    refused(
        &|command| {
            command.stdin(stream());
        },
        &["descriptor 0", "is a directory"],
    );
    refused(
        &|command| {
            command.stderr(stream()).stdout(Stdio::piped());
        },
        &[],
    );
    let done =
        ground.authsock(["run", "--confine", "--", "pwd"]).current_dir(ground.root()).output().unwrap();
    let root = ground.root().canonicalize().unwrap();
    assert_eq!(String::from_utf8_lossy(&done.stdout).trim(), path(&root), "else it is entered again");
}

/// Confinement failed: nothing was started, nothing is left, and the message says why.
fn assert_not_started(ground: &Ground, output: &Output, mark: &Path, words: &[&str]) {
    assert_eq!(output.status.code(), Some(125), "{}", text_of(output));
    for word in words {
        assert!(String::from_utf8_lossy(&output.stderr).contains(word), "{word}: {}", text_of(output));
    }
    assert!(!mark.exists(), "the program was started");
    let left: Vec<_> = std::fs::read_dir(ground.runtime().join("authsock-run")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    // It has its leader's end, which the daemon is told of by the kernel.
    let end = std::time::Instant::now() + crate::ground::PATIENCE;
    while ground.json(["session", "list"])["sessions"].as_array().unwrap().len() > 1 {
        assert!(std::time::Instant::now() < end, "{}", ground.json(["session", "list"]));
    }
}

/// Has a system call fail in a command and all that it starts (seccomp(2)).
fn forbid(command: &mut Command, call: libc::c_long, errno: i32) {
    let code = |bits: u32| u16::try_from(bits).unwrap();
    let word = code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS);
    let equals = code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K);
    let answer = code(libc::BPF_RET | libc::BPF_K);
    let refused = libc::SECCOMP_RET_ERRNO | errno.unsigned_abs();
    let filter = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = vec![
        filter(word, 0, 0, 0),
        filter(equals, 0, 1, u32::try_from(call).unwrap()),
        filter(answer, 0, 0, refused),
        filter(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    // SAFETY: two system calls between fork and exec, on memory that lives with the closure.
    unsafe {
        command.pre_exec(move || {
            let all = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
            let none: libc::c_ulong = 0;
            let one: libc::c_ulong = 1;
            let mode = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
            if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, one, none, none, none) == -1
                || libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const all, none, none) == -1
            {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

#[test]
fn where_namespaces_are_forbidden_nothing_starts_and_the_step_and_the_way_out_are_named() {
    if !may_confine() {
        return;
    }
    let (ground, _daemon) = served();
    let mark = ground.home().join("started");
    let run = || ground.authsock(["run", "--confine", "--", "touch", path(&mark)]);
    let (unshare, mount) = ("making a user, mount and IPC namespace", "making its mounts private");
    for (call, errno, words) in [
        (libc::SYS_unshare, libc::EPERM, [unshare, "os error 1)", "unprivileged_userns_clone"]),
        (libc::SYS_unshare, libc::ENOSPC, [unshare, "os error 28)", "max_user_namespaces"]),
        (libc::SYS_unshare, libc::EINVAL, [unshare, "os error 22)", "CONFIG_USER_NS"]),
        // As AppArmor has it: the namespace can be had, and nothing can be done in it.
        (libc::SYS_mount, libc::EACCES, [mount, "os error 13)", "apparmor_restrict_unprivileged_userns"]),
        (libc::SYS_capset, libc::EPERM, ["giving up all capabilities", "os error 1)", "cannot confine"]),
    ] {
        let mut command = run();
        forbid(&mut command, call, errno);
        assert_not_started(&ground, &command.output().unwrap(), &mark, &words);
    }
    let output = run().output().unwrap();
    assert!(output.status.success() && mark.exists(), "{}", text_of(&output));
}

/// A command in a user and mount namespace in which this user is who it was, and may mount: a shell that
/// runs `script` there, with authsock as `$0`. None, said aloud, where there is no such thing.
fn in_own_mounts(ground: &Ground, script: &str) -> Option<Command> {
    let outer = ["--user", "--map-current-user", "--keep-caps", "--mount", "--propagation", "private"];
    let has_it = Command::new("unshare").args(outer).arg("true").stderr(Stdio::null()).status();
    if skip_unless(has_it.is_ok_and(|status| status.success()), "unshare(1) cannot make such a namespace") {
        return None;
    }
    let mut command = ground.command("unshare");
    command.args(outer).args(["--", "sh", "-eu", "-c", script]).arg(&ground.binary);
    Some(command)
}

#[test]
fn a_namespace_that_may_have_no_others_says_so() {
    if !may_confine() {
        return;
    }
    let (ground, _daemon) = served();
    let mark = ground.home().join("started");
    let script = "echo 0 >/proc/sys/user/max_user_namespaces; exec \"$0\" run --confine -- touch \"$MARK\"";
    let Some(mut command) = in_own_mounts(&ground, script) else { return };
    let output = command.env("MARK", &mark).output().unwrap();
    let words = ["making a user, mount and IPC namespace", "os error 28)", "user.max_user_namespaces"];
    assert_not_started(&ground, &output, &mark, &words);
}

#[test]
fn what_is_hidden_is_hidden_wherever_else_it_is_mounted() {
    if !may_confine() {
        return;
    }
    let (ground, _daemon) = served();
    ground.token_after_first_contact();
    for name in ["whole", "part"] {
        std::fs::create_dir(ground.root().join(name)).unwrap();
    }
    put(&ground.root().join("file"), "", 0o600);
    let script = r#"
cd "$GROUND"
mount --bind run whole
mount --bind run/authsock part
mount --bind run/authsock/token file
attempts='for path in run/authsock/token whole/authsock/token part/token file; do
    if [ -n "$(cat "$path" 2>/dev/null)" ]; then echo "$path"; fi
done'
echo unconfined; "$0" run -- sh -c "$attempts"
echo confined; "$0" run --confine -- sh -c "$attempts; authsock whoami --json >&2"
cd part
"$0" run --confine -- echo started 2>&1 || true
"#;
    let Some(mut command) = in_own_mounts(&ground, script) else { return };
    let output = command.env("GROUND", ground.root()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let all = "run/authsock/token\nwhole/authsock/token\npart/token\nfile\n";
    assert!(said.starts_with(&format!("unconfined\n{all}confined\nauthsock: ")), "{}", text_of(&output));
    assert!(said.contains("lies in") && !said.contains("started"), "{}", text_of(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("\"session\""), "{}", text_of(&output));
}

#[test]
fn places_of_tokens_are_hidden_though_the_runtime_directory_is_elsewhere() {
    if !may_confine() {
        return;
    }
    let (ground, _daemon) = served();
    let uid = nix::unistd::geteuid();
    put(&ground.root().join("given"), &ground.token_after_first_contact(), 0o600);
    let script = r#"
mount -t tmpfs tmpfs /run
mkdir -p "/run/user/$USERID/authsock" /run/authsock/users/$USERID /run/credentials/unit
for place in /run/user/$USERID/authsock /run/authsock /run/authsock/users/$USERID /run/credentials/unit; do
    echo secret >$place/token
done
attempts='find /run -name token; cat "$GROUND/given"; echo; env | grep -c -e ^DBUS_SESSION -e ^CREDENTIALS || true; authsock whoami >/dev/null'
echo unconfined; "$0" --token-file "$GROUND/given" run -- sh -c "$attempts" | grep -c .
echo confined; "$0" --token-file "$GROUND/given" run --confine -- sh -c "$attempts"
"#;
    let Some(mut command) = in_own_mounts(&ground, script) else { return };
    let output = command
        .env("GROUND", ground.root())
        .env("USERID", uid.to_string())
        .env("CREDENTIALS_DIRECTORY", "/run/credentials/unit")
        .env("DBUS_SESSION_BUS_ADDRESS", "unix:path=/run/bus")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said, "unconfined\n6\nconfined\n\n0\n", "{}", text_of(&output));
}

#[test]
fn without_a_variable_the_runtime_directory_of_the_login_is_made_private() {
    if !may_confine() {
        return;
    }
    let ground = Ground::new();
    let uid = nix::unistd::geteuid();
    let script = r#"
unset XDG_RUNTIME_DIR
mount -t tmpfs tmpfs /run
mkdir -p /run/user
mkdir -m 700 "/run/user/$USERID"
chmod 755 /run/user
trap '"$0" call daemon.retire >/dev/null' EXIT
"$0" run --name first --confine -- sh -c 'authsock whoami --json; echo "$XDG_RUNTIME_DIR $AUTHSOCK_SOCKET"; ls -A "$XDG_RUNTIME_DIR"; authsock run --name second -- authsock whoami --json'
"#;
    let Some(mut command) = in_own_mounts(&ground, script) else { return };
    let output = command.env("USERID", uid.to_string()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let place = format!("/run/user/{uid}");
    let sees =
        ["\"first\"", &format!("{place} {place}/authsock-run/"), "\nauthsock-ondemand.sock\nauthsock-run\n"];
    assert!(sees.iter().all(|word| said.contains(word)), "{}", text_of(&output));
    assert!(said.contains("\"second\""), "a session in it: {}", text_of(&output));
}

/// A user who has just logged in, with a runtime directory in one of root's: a shell that runs `script` as that user,
/// in mounts of its own, with authsock in its PATH. None, said aloud, where this test may not become others.
fn logged_in(ground: &Ground, script: &str) -> Option<Command> {
    const USER: &str = "54321";
    if skip_unless(is_root() && has("setpriv"), "a runtime directory in one of root's is root's to make") {
        return None;
    }
    let mut command = ground.command("unshare");
    let prepare = r#"
mount -t tmpfs tmpfs /run
mkdir -p /run/user /run/bin
cp "$0" /run/bin/authsock
for place in /run/user/$USERID /run/home; do mkdir -m 700 $place; chown $USERID:$USERID $place; done
cd /
exec setpriv --reuid=$USERID --regid=$USERID --clear-groups env HOME=/run/home XDG_RUNTIME_DIR=/run/user/$USERID \
    PATH="/run/bin:$PATH" sh -euc "trap 'authsock call daemon.retire >/dev/null' EXIT; $SCRIPT"
"#;
    command.args(["--mount", "--propagation", "private", "--", "sh", "-euc", prepare]).arg(&ground.binary);
    command.env("SCRIPT", script).env("USERID", USER);
    Some(command)
}

#[test]
fn below_a_directory_of_root_s_further_namespaces_and_confinement_go_on() {
    if !may_confine() {
        return;
    }
    let ground = Ground::new();
    let bwrap = "bwrap --ro-bind / / --dev /dev --unshare-pid authsock whoami --json";
    let bwrap = if skip_unless(has("bwrap"), "bubblewrap is not installed") { "" } else { bwrap };
    let inside = format!(
        "authsock whoami --json; unshare -U -r -p -f sh -c \"authsock whoami --json; exit \\$?\"; {bwrap}\necho then; authsock run --confine --name deep -- sh -c \"authsock whoami --json; cat \\$0 || true\" $AUTHSOCK_TOKEN_FILE 2>&1"
    );
    let script =
        "authsock run --confine --name outer -- sh -euc \"$INSIDE\"; ls -A $XDG_RUNTIME_DIR/authsock-run";
    let Some(mut command) = logged_in(&ground, script) else { return };
    let output = command.env("INSIDE", inside).output().unwrap();
    assert!(output.status.success(), "{}", text_of(&output));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let (alike, deep) = said.split_once("then\n").unwrap();
    let sessions: Vec<serde_json::Value> =
        serde_json::Deserializer::from_str(alike).into_iter().map(Result::unwrap).collect();
    assert_eq!(sessions.len(), if bwrap.is_empty() { 2 } else { 3 }, "{said}");
    assert!(sessions.iter().all(|it| it["session"] == sessions[0]["session"]), "{said}");
    assert!(deep.contains("\"deep\"") && deep.contains(sessions[0]["session"]["id"].as_str().unwrap()));
    assert!(deep.trim_end().ends_with("No such file or directory"), "the outer one's token: {said}");
}

#[test]
fn the_place_of_who_has_no_runtime_directory_is_there_to_be_hidden_before_the_program_can_make_it() {
    if !may_confine() {
        return;
    }
    let (ground, _daemon) = served();
    let uid = nix::unistd::geteuid();
    // The program may lie below any of these places itself.
    let script = r#"
touch "$GROUND/program"
mount --bind "$0" "$GROUND/program"
mount -t tmpfs tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /mnt
mkdir /mnt/ground
mount --rbind "$GROUND" /mnt/ground
mount --rbind /mnt /tmp
cd /
export HOME=/tmp/ground/home XDG_RUNTIME_DIR=/tmp/ground/run
program=/tmp/ground/program
attempt='ls -d "$PLACE"; mkdir "$PLACE" || touch "$PLACE/mine" || echo neither'
echo unconfined; $program run -- sh -c "$attempt" 2>/dev/null || true
rm -rf "$PLACE"
echo confined; $program run --confine -- sh -c "$attempt" 2>/dev/null || true
stat -c %a "$PLACE"; ls -A "$PLACE"
"#;
    let Some(mut command) = in_own_mounts(&ground, script) else { return };
    let place = format!("/tmp/authsock-{uid}");
    let output = command.env("GROUND", ground.root()).env("PLACE", &place).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said, format!("unconfined\nconfined\n{place}\nneither\n700\n"), "{}", text_of(&output));
}

#[test]
fn a_hostile_program_that_gets_further_namespaces_undoes_nothing_by_them() {
    if skip_unless(has("python3"), "there is no python3 to be hostile") || !may_confine() {
        return;
    }
    let script = r#"
cd /run/home
mkdir -p scratch/old
authsock whoami >/dev/null
export TOKEN=$XDG_RUNTIME_DIR/authsock/token SCRATCH=/run/home/scratch
export OTHER=$TOKEN BUS=/none MOVED_BUS=/none ABSTRACT_BUS=none SHARED=-1 KEY=none KEYRING=-1
sleep 600 & export BYSTANDER=$!
authsock run $OPTIONS -- sh -c 'LEADER=$PPID exec python3 -I -c "$CODE"'
kill $BYSTANDER
"#;
    let further = |options: &str| {
        let ground = Ground::new();
        let mut command = logged_in(&ground, script)?;
        let output = command.env("CODE", HOSTILE).env("OPTIONS", options).output().unwrap();
        assert!(output.status.success(), "{}", text_of(&output));
        assert!(!text_of(&output).contains("unshare"), "it gets them: {}", text_of(&output));
        let said = String::from_utf8(output.stdout).unwrap();
        let lines = said.lines().filter(|line| line.starts_with("further namespace: "));
        Some(lines.map(str::to_owned).collect::<Vec<String>>())
    };
    let (Some(open), Some(confined)) = (further(""), further("--confine")) else { return };
    let got = |lines: &[String]| lines.iter().filter(|line| line.ends_with("\tgot")).count();
    assert!(confined.len() == open.len() && got(&open) >= 6, "{open:?}");
    assert_eq!(got(&confined), 0, "{confined:?}");
    assert!(confined.iter().all(|line| line.ends_with("\trefused")), "{confined:?}");
}

#[test]
fn what_leads_to_what_is_hidden_cannot_be_moved_through_another_mount_either() {
    if !may_confine() {
        return;
    }
    let ground = Ground::new();
    let script = r#"
cd "$GROUND"
mkdir -p way/mid/run other
mount --bind way other
export XDG_RUNTIME_DIR="$GROUND/way/mid/run"
trap '"$0" call daemon.retire >/dev/null' EXIT
attempt='if mv other/mid other/gone; then ls way/gone/run/authsock/token; mv other/gone other/mid; fi 2>&1'
echo unconfined; "$0" run -- sh -c "$attempt"
echo confined; "$0" run --confine -- sh -c "$attempt"
"#;
    let Some(mut command) = in_own_mounts(&ground, script) else { return };
    let output = command.env("GROUND", ground.root()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.starts_with("unconfined\nway/gone/run/authsock/token\nconfined\n"), "{}", text_of(&output));
    assert!(said.trim_end().ends_with("busy"), "{}", text_of(&output));
}

#[test]
fn a_socket_that_lies_elsewhere_is_shown_in_the_private_directory() {
    if !may_confine() {
        return;
    }
    let ground = Ground::new();
    let elsewhere = ground.root().join("s");
    let _daemon = Daemon::start(&ground, bind_private(&elsewhere), |_| {});
    let output = ground
        .authsock(["run", "--socket", path(&elsewhere), "--confine", "--name", "far", "--", "sh", "-c"])
        .arg("authsock whoami; AUTHSOCK_SOCKET=$XDG_RUNTIME_DIR/authsock.sock authsock whoami; echo $AUTHSOCK_SOCKET")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said.matches("far (").count(), 2, "{}", text_of(&output));
    let socket = Path::new(said.lines().last().unwrap());
    assert!(socket.starts_with(ground.runtime().join("authsock-run")), "{}", text_of(&output));
}

#[test]
fn a_confined_session_goes_on_with_the_daemon_that_follows() {
    if !may_confine() {
        return;
    }
    let ground = Ground::new();
    let mut inside = confined(&ground, &["--name", "lasting"]);
    let id = inside.id();
    // A daemon that was started on demand ends, and the next client outside starts another on a new socket.
    for _ in 0..2 {
        ground.json(["call", "daemon.retire"]);
        let (code, said) = inside.tell("authsock whoami");
        assert!(code == 0 || code == 3, "a program in a session starts none: {said}");
        ground.json(["whoami"]);
        let (code, said) = inside.tell("until authsock whoami --json 2>&1; do :; done");
        assert!(code == 0 && said.contains(&id), "{said}");
    }
    // One that is installed meanwhile takes over.
    ground.json(["call", "daemon.retire"]);
    let _daemon = ground.serve();
    let (code, said) = inside.tell("until authsock whoami --json 2>&1; do :; done");
    assert!(code == 0 && said.contains(&id), "{said}");
    assert_eq!(ground.json(["status"])["sockets"][0], path(&ground.init_socket()));
}

#[test]
fn what_leads_to_what_is_hidden_cannot_be_moved_away_where_the_user_may_write() {
    if !may_confine() {
        return;
    }
    let ground = Ground::new();
    let (way, runtime) = (ground.root().join("way"), ground.root().join("way/run"));
    std::fs::create_dir_all(&runtime).unwrap();
    let run = |authsock: &Path, words: &[&str]| {
        let mut command = ground.command(authsock);
        command.args(words).env("XDG_RUNTIME_DIR", &runtime);
        command
    };
    let mut inside = Inside::begin_with(
        run(&ground.binary, &["run", "--confine", "--", "sh", "-c"]).arg(crate::tree::OBEDIENT),
    );
    for path in [&runtime, &way, ground.root()] {
        let (code, said) = inside.tell(&format!("mv {0} {0}-gone", self::path(path)));
        assert!(code != 0 && said.contains("busy"), "{}: {said}", path.display());
    }
    let (code, said) = inside.tell(&format!("mkdir {0}/a && mv {0}/a {0}/b && rmdir {0}/b", path(&way)));
    assert_eq!(code, 0, "what lies beside is theirs to move: {said}");
    let (code, said) = inside.tell("unshare --user true");
    assert!(code != 0 && said.contains("No space"), "{said}");
    let (code, said) = inside.tell("echo 9 >/proc/sys/user/max_user_namespaces");
    assert_ne!(code, 0, "{said}");
    // Outside nothing of it is to be noticed.
    std::fs::rename(&way, ground.root().join("moved")).unwrap();
    std::fs::rename(ground.root().join("moved"), &way).unwrap();
    drop(inside);
    assert!(run(&ground.binary, &["call", "daemon.retire"]).output().unwrap().status.success());
}

#[test]
fn a_namespace_with_one_user_makes_no_socket_trusted_that_was_not_mounted_there() {
    if !may_confine() {
        return;
    }
    let (ground, _daemon) = served();
    ground.token_after_first_contact();
    let whoami = || {
        let output = in_own_mounts(&ground, "exec \"$0\" whoami")?.output().unwrap();
        Some((output.status.code(), text_of(&output)))
    };
    let Some((code, said)) = whoami() else { return };
    assert_eq!(code, Some(0), "{said}");
    std::fs::set_permissions(ground.init_socket(), PermissionsExt::from_mode(0o666)).unwrap();
    let (code, said) = whoami().unwrap();
    assert!(code == Some(4) && said.contains("may be written by others"), "{said}");
    if skip_unless(is_root(), "only root can give a socket away: another's is not tried") {
        return;
    }
    // Its owner is nobody there, as root would be; the directory is this user's alone all the same.
    std::os::unix::fs::chown(ground.init_socket(), Some(54_321), None).unwrap();
    let (code, said) = whoami().unwrap();
    assert!(code == Some(4) && said.contains("belongs to uid 65534"), "{said}");
}

#[test]
fn the_private_directory_holds_what_is_configured_and_not_a_block_more() {
    if !may_confine() {
        return;
    }
    let (ground, _daemon) = served();
    ground.configure("[client]\nconfined_runtime_bytes = 65536\n");
    let mut inside = confined(&ground, &[]);
    let write = |blocks: u32| {
        format!(
            "head -c $(({blocks} * 4096)) /dev/zero >$XDG_RUNTIME_DIR/filler; echo $?; rm $XDG_RUNTIME_DIR/filler"
        )
    };
    assert_eq!(inside.tell(&write(16)).1.trim(), "0");
    let (_, said) = inside.tell(&write(17));
    assert!(said.contains("No space left") && said.trim().ends_with('1'), "{said}");
    // So it is with files, the smallest that there are.
    let (_, said) =
        inside.tell("cd $XDG_RUNTIME_DIR; n=0; while true >f$n; do n=$((n + 1)); done 2>/dev/null; echo $n");
    let files: u32 = said.trim().lines().last().unwrap().parse().unwrap();
    assert!((16..=24).contains(&files), "{said}");
    inside.whoami();
}

#[test]
fn what_a_program_usually_inherits_stays_open() {
    if skip_unless(has("python3"), "there is no python3") || !may_confine() {
        return;
    }
    let (ground, _daemon) = served();
    let plain = ground.root().join("plain");
    put(&plain, "x", 0o600);
    let file = std::fs::File::open(&plain).unwrap();
    let (pipe, _writer) = std::io::pipe().unwrap();
    let (pair, _other) = UnixStream::pair().unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    let nameless = tempfile::tempfile_in(ground.root()).unwrap();
    let inet = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = ground.authsock(["run", "--confine", "--", "python3", "-I", "-c"]);
    command.arg("import os; print(*[fd for fd in [*range(5, 11), *range(15, 19)] if os.path.lexists(f'/proc/self/fd/{fd}')])");
    let kept = [
        file.as_raw_fd(),
        pipe.as_raw_fd(),
        pair.as_raw_fd(),
        null.as_raw_fd(),
        nameless.as_raw_fd(),
        inet.as_raw_fd(),
    ];
    for (number, wanted) in kept.into_iter().zip(5..) {
        pass_as(&mut command, number, wanted);
    }
    // And what does not: a directory, another process's file of /proc, a listener with a path, this one's root.
    let listener = UnixListener::bind(ground.root().join("listener")).unwrap();
    let closed = [
        std::fs::File::open("/").unwrap().into(),
        std::fs::File::open("/proc/self/environ").unwrap().into(),
        std::os::fd::OwnedFd::from(listener),
        std::fs::File::open("/proc/self/ns/mnt").unwrap().into(),
    ];
    for (fd, wanted) in closed.iter().zip(15..) {
        pass_as(&mut command, fd.as_raw_fd(), wanted);
    }
    let output = command.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "5 6 7 8 9 10", "{}", text_of(&output));
}

#[test]
fn a_confined_program_cannot_type_into_its_terminal_for_the_shell_outside_to_read() {
    if skip_unless(has("python3"), "there is no python3") || !may_confine() {
        return;
    }
    let legacy = std::fs::read_to_string("/proc/sys/dev/tty/legacy_tiocsti").unwrap_or("1".to_owned());
    if skip_unless(
        legacy.trim() == "1" && cfg!(any(target_arch = "x86_64", target_arch = "aarch64")),
        "nobody can here, or nothing is filtered on this machine",
    ) {
        return;
    }
    let (ground, _daemon) = served();
    // A terminal of its own, in which a program types a letter.
    let script = r#"
import os, pty, sys
child, terminal = pty.fork()
if child == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
said = b""
try:
    while piece := os.read(terminal, 1000):
        said += piece
except OSError:
    pass
os.waitpid(child, 0)
print(said.decode())
"#;
    let types = "import fcntl\ntry: fcntl.ioctl(0, 0x5412, b'x'); print('typed')\nexcept OSError as error: print('refused', error.errno)";
    for (options, expected) in [(&[][..], "typed"), (&["--confine"], "refused 1")] {
        let mut command = ground.command("python3");
        command.args(["-I", "-c", script]).arg(&ground.binary).arg("run").args(options);
        let output = command.args(["--", "python3", "-I", "-c", types]).output().unwrap();
        assert!(
            String::from_utf8_lossy(&output.stdout).contains(expected),
            "{options:?}: {}",
            text_of(&output)
        );
    }
}
