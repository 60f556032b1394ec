//! A daemon that a client starts where nothing is installed: both ends of that contract.
//!
//! The client makes the socket (0600, in a directory that was checked, under a lock) and runs
//! `authsock serve --on-demand` with the variables that systemd would set, so that there is one way
//! to adopt. The daemon's standard error is a pipe to the client until the daemon is ready: what
//! comes out of it before the end are the daemon's own words on why it could not start.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use crate::kernel::dir::{Dir, Lock, Unusable, own_uid};
use crate::kernel::fds::close_from;
use crate::kernel::socket::{self, BadSocket, CheckedSocket};
use crate::place::{self, BadSocketPath, Env, Places, SocketPath, var};

/// How long a daemon that was started may take to be ready, and a lock to become free, at most.
pub const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of a daemon's last words that are kept.
const WORDS_MAX: u64 = 16 * 1024;
/// Variables that a daemon gets from the client that starts it; everything else is cleared.
const KEPT: [&str; 9] = [
    var::HOME,
    "USER",
    "LOGNAME",
    "LANG",
    "LC_ALL",
    var::XDG_CONFIG_HOME,
    var::XDG_STATE_HOME,
    var::LOG,
    "LLVM_PROFILE_FILE",
];

/// Why no daemon could be started.
#[derive(Debug, thiserror::Error)]
pub enum CannotStart {
    /// A directory or lock cannot be used.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// The user's runtime directory cannot be used.
    #[error("runtime directory {0}; {variable} names it, or where that is not set /run/user/UID or /tmp/authsock-UID is taken", variable = var::XDG_RUNTIME_DIR)]
    Runtime(Unusable),
    /// The socket's path does not fit.
    #[error(transparent)]
    Path(#[from] BadSocketPath),
    /// Something else lies where the socket should.
    #[error(transparent)]
    Socket(#[from] BadSocket),
    /// Somebody else has been starting one for too long.
    #[error("another client is starting a daemon and does not come to an end: {path} is locked", path = .0.display())]
    LockHeld(PathBuf),
    /// The daemon started and said why it cannot serve.
    #[error("the daemon could not start: {0}")]
    Words(String),
    /// The daemon neither became ready nor failed.
    #[error("the daemon did not become ready in time")]
    Silent,
    /// The kernel said no.
    #[error("cannot {doing}: {error}")]
    Io {
        /// What was tried, in words.
        doing: &'static str,
        /// The kernel's answer.
        error: io::Error,
    },
}

fn failed(doing: &'static str) -> impl Fn(io::Error) -> CannotStart {
    move |error| CannotStart::Io { doing, error }
}

/// Starts a daemon for this user unless one listens already. Blocks for at most `patience`, twice:
/// once for the lock, once for the daemon.
///
/// `exe` is the authsock program; `config` is handed on.
///
/// # Errors
/// [`CannotStart`], with the daemon's own words where it had any.
pub fn start(
    places: &Places,
    exe: &Path,
    config: Option<&Path>,
    env: Env<'_>,
    patience: Duration,
) -> Result<(), CannotStart> {
    let path = SocketPath::new(places.ondemand_socket())?;
    // Others may use the runtime directory too; it only has to be ours.
    Dir::open_or_create(places.runtime(), own_uid()).map_err(CannotStart::Runtime)?;
    let state = Dir::open_or_create(places.state(), own_uid())?;
    let _lock = lock_within(state, patience)?;
    match CheckedSocket::look(&path, own_uid()) {
        Ok(found) => match found.connect() {
            // Somebody was faster. A full queue is somebody's too.
            Ok(_) | Err(BadSocket::Full(_)) => return Ok(()),
            // We hold the lock, so nobody else makes or removes sockets here: this one is dead.
            Err(BadSocket::Refused(_)) => {
                std::fs::remove_file(path.as_path()).map_err(failed("remove a dead socket"))?;
            }
            Err(error) => return Err(error.into()),
        },
        Err(BadSocket::Missing(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let listener = socket::listen_private(&path).map_err(failed("make the socket"))?;
    let inode = socket::inode_at(path.as_path());
    let done = start_on(listener, places, exe, config, env, patience);
    // What nobody will ever listen on would look like a daemon that was killed. One that is only slow keeps its own.
    if done.as_ref().is_err_and(|error| !matches!(error, CannotStart::Silent)) {
        // The lock is held already.
        let _ = remove_socket(None, path.as_path(), inode);
    }
    done
}

/// Starts a daemon on a socket that was just made for it, and waits until it serves or has said why not.
fn start_on(
    listener: UnixListener,
    places: &Places,
    exe: &Path,
    config: Option<&Path>,
    env: Env<'_>,
    patience: Duration,
) -> Result<(), CannotStart> {
    let (reader, writer) = io::pipe().map_err(failed("make a pipe"))?;
    let mut arguments: Vec<&OsStr> = vec!["authsock".as_ref(), "serve".as_ref(), "--on-demand".as_ref()];
    if let Some(config) = config {
        arguments.extend(["--config".as_ref(), config.as_os_str()]);
    }
    let started = spawn_detached(exe, &arguments, environment(places, env), &listener.into(), &writer.into());
    let words = match started {
        Ok(()) => read_words(reader, patience),
        Err(error) => Err(failed("start a daemon")(error)),
    };
    match words {
        Ok(words) if words.is_empty() => Ok(()),
        Ok(words) => Err(CannotStart::Words(words)),
        Err(error) => Err(error),
    }
}

/// Waits for the starters' lock. A thread waits for it, since flock(2) knows no deadline.
fn lock_within(state: Dir, timeout: Duration) -> Result<Lock, CannotStart> {
    let path = state.path().join(place::START_LOCK_FILE);
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(state.lock(place::START_LOCK_FILE)));
    match receiver.recv_timeout(timeout) {
        Ok(lock) => Ok(lock?),
        Err(_) => Err(CannotStart::LockHeld(path)),
    }
}

/// The daemon's environment: a few variables of the client's, and what systemd would set.
fn environment(places: &Places, env: Env<'_>) -> Vec<OsString> {
    let pair = |name: &str, value: &OsStr| {
        let mut pair = OsString::from(name);
        pair.push("=");
        pair.push(value);
        pair
    };
    let mut all: Vec<OsString> =
        KEPT.iter().filter_map(|name| env(name).map(|value| pair(name, &value))).collect();
    all.push(pair(var::XDG_RUNTIME_DIR, places.runtime().as_os_str()));
    all.push(pair(var::RUNTIME_DIRECTORY, places.state().as_os_str()));
    all.push(pair("LISTEN_FDS", OsStr::new("1")));
    all.push(pair("LISTEN_FDNAMES", OsStr::new(place::DESCRIPTOR_NAME)));
    all
}

/// Reads what the daemon says until it closes its standard error.
fn read_words(reader: io::PipeReader, patience: Duration) -> Result<String, CannotStart> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut words = Vec::new();
        let read = reader.take(WORDS_MAX).read_to_end(&mut words);
        sender.send(read.map(|_| String::from_utf8_lossy(&words).trim().to_owned()))
    });
    match receiver.recv_timeout(patience) {
        Ok(words) => words.map_err(failed("hear the daemon")),
        Err(_) => Err(CannotStart::Silent),
    }
}

/// Runs a program that outlives us: in a session of its own, nobody's child, with nothing of ours
/// but `listener` as descriptor 3 and `words` as its standard error, and LISTEN_PID set to itself.
fn spawn_detached(
    exe: &Path,
    arguments: &[&OsStr],
    environment: Vec<OsString>,
    listener: &OwnedFd,
    words: &OwnedFd,
) -> io::Result<()> {
    let text = |bytes: Vec<u8>| CString::new(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let exe = text(exe.as_os_str().as_bytes().to_vec())?;
    let arguments: Vec<CString> =
        arguments.iter().map(|argument| text(argument.as_bytes().to_vec())).collect::<io::Result<_>>()?;
    let environment: Vec<CString> =
        environment.into_iter().map(|pair| text(pair.into_vec())).collect::<io::Result<_>>()?;
    // The child's pid is only known in the child, where nothing may be allocated.
    let mut listen_pid = *b"LISTEN_PID=0000000000\0";
    let mut arguments: Vec<*const libc::c_char> = arguments.iter().map(|text| text.as_ptr()).collect();
    arguments.push(std::ptr::null());
    let mut pointers: Vec<*const libc::c_char> = environment.iter().map(|text| text.as_ptr()).collect();
    pointers.push(listen_pid.as_ptr().cast());
    pointers.push(std::ptr::null());
    // SAFETY: between fork and exec (or _exit) the children call only functions that signal-safety(7)
    // lists, and touch only memory that was prepared above; the parent waits for the first child,
    // which ends at once.
    unsafe {
        let first = nix::errno::Errno::result(libc::fork())?;
        if first == 0 {
            libc::setsid();
            match libc::fork() {
                0 => {}
                -1 => libc::_exit(1),
                _ => libc::_exit(0),
            }
            become_daemon(listener.as_raw_fd(), words.as_raw_fd());
            let mut pid = libc::getpid();
            for digit in listen_pid[11..21].iter_mut().rev() {
                *digit = b'0' + u8::try_from(pid % 10).unwrap_or(0);
                pid /= 10;
            }
            libc::execve(exe.as_ptr(), arguments.as_ptr(), pointers.as_ptr());
            let sorry = b"the authsock program cannot be run\n";
            libc::write(2, sorry.as_ptr().cast(), sorry.len());
            libc::_exit(127);
        }
        let mut status = 0;
        while libc::waitpid(first, &raw mut status, 0) == -1 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EINTR) {
                return Err(error);
            }
        }
        if status != 0 {
            return Err(io::Error::other("the process table is full"));
        }
    }
    Ok(())
}

/// Arranges descriptors, signals, directory and umask of the process to be.
///
/// # Safety
/// Must be called in a freshly forked child, before exec.
unsafe fn become_daemon(listener: RawFd, words: RawFd) {
    // SAFETY: only functions that signal-safety(7) lists, on descriptors that are open.
    unsafe {
        // Out of the way of the numbers that they will get.
        let listener = libc::fcntl(listener, libc::F_DUPFD, 10);
        let words = libc::fcntl(words, libc::F_DUPFD, 10);
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
        libc::dup2(null, 0);
        libc::dup2(null, 1);
        // Without them nobody could be told; the client hears of it by the end of its pipe.
        if libc::dup2(words, 2) == -1 || libc::dup2(listener, 3) == -1 {
            let sorry = b"there are not enough descriptors (RLIMIT_NOFILE) to start a daemon\n";
            libc::write(if words == -1 { 2 } else { words }, sorry.as_ptr().cast(), sorry.len());
            libc::_exit(126);
        }
        close_from(4);
        libc::chdir(c"/".as_ptr());
        libc::umask(0o077);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        for signal in 1..65 {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}

/// The daemon's end: tells the client that started it that it serves, by letting go of the pipe.
/// From here on standard error is `log`.
///
/// # Errors
/// The kernel's answer.
pub fn report_ready(log: &File) -> io::Result<()> {
    nix::unistd::dup2_stderr(log)?;
    Ok(())
}

/// The daemon's end: takes the socket's file away before it exits, so that the next client starts
/// another daemon. Does nothing if the file is somebody else's by now. Holds the starters' lock
/// meanwhile; `Ok(false)` if a client is just starting a daemon, or looking for one. Without a state
/// directory no lock is asked for: whoever starts a daemon holds it, and where somebody may be removing the
/// directory nothing is made in it (no starter replaces a socket that is listened on, and this one still is).
///
/// # Errors
/// [`Unusable`] if the lock cannot be had.
pub fn remove_socket(
    state: Option<&Dir>,
    socket: &Path,
    inode: Option<(u64, u64)>,
) -> Result<bool, Unusable> {
    let lock = state.map(|state| state.try_lock(place::START_LOCK_FILE)).transpose()?;
    if matches!(lock, Some(None)) {
        return Ok(false);
    }
    if inode.is_some() && socket::inode_at(socket) == inode {
        let _ = std::fs::remove_file(socket);
    }
    Ok(true)
}
