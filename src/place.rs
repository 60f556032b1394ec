//! Where things live: directories, file names, environment variables and path lengths; pure, nothing here looks at the machine.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Names of the environment variables that authsock reads or sets.
pub mod var {
    /// Path of the socket to use.
    pub const SOCKET: &str = "AUTHSOCK_SOCKET";
    /// A token itself, for tests and for platforms that have no files.
    pub const TOKEN: &str = "AUTHSOCK_TOKEN";
    /// Number of an inherited descriptor that holds a token.
    pub const TOKEN_FD: &str = "AUTHSOCK_TOKEN_FD";
    /// Path of a file that holds a token.
    pub const TOKEN_FILE: &str = "AUTHSOCK_TOKEN_FILE";
    /// What is logged; the only variable that changes a daemon.
    pub const LOG: &str = "AUTHSOCK_LOG";
    /// The process that descriptors were passed to (sd_listen_fds(3)).
    pub const LISTEN_PID: &str = "LISTEN_PID";
    /// That process's pidfd id, from newer systemds.
    pub const LISTEN_PIDFDID: &str = "LISTEN_PIDFDID";
    /// How many descriptors were passed.
    pub const LISTEN_FDS: &str = "LISTEN_FDS";
    /// Their names.
    pub const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";
    /// Where a service manager listens to what its service tells (sd_notify(3)).
    pub const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
    /// What a service manager promised to the one process that it started: its sockets (sd_listen_fds(3)), the ear
    /// that it lends it (sd_notify(3)), and how often it wants to hear from it (sd_watchdog_enabled(3)).
    pub const OF_THE_SERVICE_MANAGER: [&str; 7] = [
        LISTEN_PID,
        LISTEN_PIDFDID,
        LISTEN_FDS,
        LISTEN_FDNAMES,
        NOTIFY_SOCKET,
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
    ];
    /// Every variable that names a socket or a token.
    pub const NAMED_SOURCES: [&str; 4] = [SOCKET, TOKEN, TOKEN_FD, TOKEN_FILE];
    /// Credentials that systemd gave to this service (systemd.exec(5)).
    pub const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";
    /// The service's own directory below /run (systemd.exec(5)).
    pub const RUNTIME_DIRECTORY: &str = "RUNTIME_DIRECTORY";
    /// The user's runtime directory (XDG Base Directory Specification).
    pub const XDG_RUNTIME_DIR: &str = "XDG_RUNTIME_DIR";
    /// The user's configuration directory (XDG Base Directory Specification).
    pub const XDG_CONFIG_HOME: &str = "XDG_CONFIG_HOME";
    /// The user's state directory (XDG Base Directory Specification).
    pub const XDG_STATE_HOME: &str = "XDG_STATE_HOME";
    /// The user's home directory.
    pub const HOME: &str = "HOME";
}

/// File name of a daemon's own token in its state directory.
pub const TOKEN_FILE: &str = "token";
/// File name of the lock that a daemon holds for life in its state directory.
pub const LOCK_FILE: &str = "lock";
/// File name of the lock under which clients start a daemon.
pub const START_LOCK_FILE: &str = "start.lock";
/// Directory of the sessions' records, below the state directory.
pub const SESSIONS_DIR: &str = "sessions";
/// File name of a token in `$CREDENTIALS_DIRECTORY`.
pub const CREDENTIAL_FILE: &str = "authsock.token";
/// Name that the socket unit gives its descriptor (`FileDescriptorName=`).
pub const DESCRIPTOR_NAME: &str = "authsock";

/// The directory in which a system daemon keeps one directory for each user, in its state directory.
pub const USERS_DIR: &str = "users";
/// The directory in which a system daemon keeps what verifies its users' tokens.
pub const VERIFIERS_DIR: &str = "verifiers";

/// The socket, state directory and configuration of a daemon for the whole machine.
const SYSTEM: (&str, &str, &str) = if cfg!(target_os = "macos") {
    ("/var/run/authsock.sock", "/var/run/authsock", "/etc/authsock/config.toml")
} else {
    ("/run/authsock.sock", "/run/authsock", "/etc/authsock/config.toml")
};

/// Longest path of a Unix socket, in bytes without the closing NUL: `sun_path` is 108 bytes on
/// Linux and 104 on macOS (unix(7), unix(4)).
pub const SOCKET_PATH_MAX: usize = if cfg!(target_os = "macos") { 103 } else { 107 };

/// What a service does not see whose unit has `ProtectHome=yes` (systemd.exec(5)).
pub const HOMES: [&str; 3] = ["/home", "/root", "/run/user"];
/// What one does not see that has `PrivateTmp=yes`: it has its own.
pub const TEMPORARY: [&str; 2] = ["/tmp", "/var/tmp"];

/// Reads one environment variable; a test gives its own.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The environment of this process.
pub fn process_env(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// How long a token is as text, in hexadecimal digits; `secret` knows the rest of it.
pub const TOKEN_DIGITS: usize = 64;
/// What is told in the place of a value that looks like a token.
const NOT_SHOWN: &str = "(not shown: it looks like a token)";

/// A path or number that somebody named, as it may be told: people put the token itself where its file or
/// descriptor belongs. A token that became a path is the whole name of a file; other paths have hashes in them
/// that are no secrets, of containers and of what a store holds.
pub fn showable(value: &str) -> &str {
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_suspect = if value.starts_with('/') {
        value.rsplit('/').next().is_some_and(|name| name.len() == TOKEN_DIGITS && is_digits(name))
    } else {
        let mut runs = value.split(|letter: char| !letter.is_ascii_hexdigit());
        runs.any(|run| run.len() >= TOKEN_DIGITS)
    };
    if is_suspect { NOT_SHOWN } else { value }
}

/// A variable that is set, not empty, and an absolute path: the XDG specification has relative
/// ones ignored.
fn absolute(env: Env<'_>, name: &str) -> Option<PathBuf> {
    env(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// A socket path that the kernel can hold whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketPath(PathBuf);

/// A socket path that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSocketPath {
    /// The path is longer than `sun_path` holds; a kernel or a library would cut it silently.
    #[error(
        "socket path {path} is {length} bytes long; at most {max} fit: choose a shorter directory (XDG_RUNTIME_DIR or {socket})",
        path = showable(&path.to_string_lossy()), max = SOCKET_PATH_MAX, socket = var::SOCKET
    )]
    TooLong {
        /// The path as given.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// The path is relative, empty, or holds a NUL byte.
    #[error(
        "socket path {shown:?} is not an absolute path; abstract sockets have no permissions and are not used",
        shown = showable(&.path.to_string_lossy())
    )]
    NotAbsolute {
        /// The path as given.
        path: PathBuf,
    },
}

impl SocketPath {
    /// Checks a path once; daemon and client look with the same eyes.
    ///
    /// # Errors
    /// [`BadSocketPath`] for a path that is too long, relative, or abstract.
    pub fn new(path: impl Into<PathBuf>) -> Result<SocketPath, BadSocketPath> {
        let path = path.into();
        let bytes = path.as_os_str().as_bytes();
        if !path.is_absolute() || bytes.contains(&0) || path.file_name().is_none() {
            return Err(BadSocketPath::NotAbsolute { path });
        }
        let length = bytes.len();
        if length > SOCKET_PATH_MAX {
            return Err(BadSocketPath::TooLong { path, length });
        }
        Ok(SocketPath(path))
    }

    /// The path itself.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl std::fmt::Display for SocketPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.display().fmt(f)
    }
}

/// The places of one user: of the user's own daemon, or of the whole machine's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    runtime: PathBuf,
    init_socket: PathBuf,
    state: PathBuf,
    own_token: PathBuf,
    config: Option<PathBuf>,
    log: Option<PathBuf>,
    is_system: bool,
}

impl Places {
    /// Finds a user's places. `is_private` answers whether a directory exists, is this user's own
    /// and 0700; `platform_temp` is the platform's own per-user directory where it has one
    /// (macOS: `confstr(_CS_DARWIN_USER_TEMP_DIR)`).
    pub fn of_user(
        env: Env<'_>,
        uid: u32,
        is_private: impl Fn(&Path) -> bool,
        platform_temp: Option<PathBuf>,
    ) -> Places {
        let home = absolute(env, var::HOME);
        let runtime = absolute(env, var::XDG_RUNTIME_DIR).or(platform_temp).unwrap_or_else(|| {
            let [logind, own] = runtime_directories(uid);
            if is_private(&logind) { logind } else { own }
        });
        let below_home = |variable, default: &str| {
            absolute(env, variable).or_else(|| home.as_ref().map(|home| home.join(default)))
        };
        let library = home.as_ref().filter(|_| cfg!(target_os = "macos")).map(|home| home.join("Library"));
        let state = match &library {
            Some(library) => library.join("Application Support/authsock"),
            None => runtime.join("authsock"),
        };
        Places {
            init_socket: runtime.join("authsock.sock"),
            own_token: state.join(TOKEN_FILE),
            state,
            config: below_home(var::XDG_CONFIG_HOME, ".config").map(|dir| dir.join("authsock/config.toml")),
            log: match &library {
                Some(library) => Some(library.join("Logs/authsock/log")),
                None => below_home(var::XDG_STATE_HOME, ".local/state").map(|dir| dir.join("authsock/log")),
            },
            runtime,
            is_system: false,
        }
    }

    /// The same user's places at the daemon of the whole machine. Root holds that daemon's own token;
    /// everybody else has one in a directory that root made for them.
    #[must_use]
    pub fn at_the_system_daemon(self, uid: u32) -> Places {
        const ROOT: u32 = 0;
        let (socket, state, config) = SYSTEM;
        let state = PathBuf::from(state);
        Places {
            init_socket: socket.into(),
            own_token: match uid {
                ROOT => state.join(TOKEN_FILE),
                uid => state.join(USERS_DIR).join(uid.to_string()).join(TOKEN_FILE),
            },
            state,
            config: Some(config.into()),
            log: None,
            is_system: true,
            runtime: self.runtime,
        }
    }

    /// Whether these are places of the daemon of the whole machine.
    pub fn is_system(&self) -> bool {
        self.is_system
    }

    /// The user's runtime directory, `%t` in units.
    pub fn runtime(&self) -> &Path {
        &self.runtime
    }

    /// Where an init system's unit listens.
    pub fn init_socket(&self) -> PathBuf {
        self.init_socket.clone()
    }

    /// Where a daemon listens that a client started.
    pub fn ondemand_socket(&self) -> PathBuf {
        self.runtime.join("authsock-ondemand.sock")
    }

    /// The directory of token, sessions and lock. A socket's entry lies apart from it, so that
    /// mounting one into a container does not hand over the other.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The token that stands for this user: the owner's, or at a system daemon the user's own.
    pub fn owner_token(&self) -> PathBuf {
        self.own_token.clone()
    }

    /// Directory in which `run` keeps the tokens of the sessions that it made.
    pub fn runs(&self) -> PathBuf {
        self.runtime.join("authsock-run")
    }

    /// The configuration file, if the user has a home.
    pub fn config(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// The log of a daemon that no init system keeps one for.
    pub fn log(&self) -> Option<&Path> {
        self.log.as_deref()
    }
}

/// Where a user's runtime directory may lie, whatever the environment says: what is kept from a program lies in
/// any of them.
pub fn runtime_directories(uid: u32) -> [PathBuf; 2] {
    [format!("/run/user/{uid}").into(), format!("/tmp/authsock-{uid}").into()]
}

/// The state directory of the daemon of the whole machine.
pub fn system_state() -> &'static Path {
    Path::new(SYSTEM.1)
}

/// Where the daemon of the whole machine listens.
pub fn system_socket() -> &'static Path {
    Path::new(SYSTEM.0)
}

/// The first of systemd's colon-separated directories in `$RUNTIME_DIRECTORY`. Only a daemon that
/// an init system or the on-demand starter started may ask: any other service exports its own.
pub fn service_runtime_directory(env: Env<'_>) -> Option<PathBuf> {
    let all = env(var::RUNTIME_DIRECTORY)?;
    let first = all.as_bytes().split(|byte| *byte == b':').next()?;
    let path = PathBuf::from(std::ffi::OsStr::from_bytes(first));
    path.is_absolute().then_some(path)
}

/// The token that the service manager gives a daemon as a credential (`LoadCredential=`,
/// systemd.exec(5)), if its service has any credentials. Only a daemon of an init system may ask.
pub fn service_credential(env: Env<'_>) -> Option<PathBuf> {
    absolute(env, var::CREDENTIALS_DIRECTORY).map(|dir| dir.join(CREDENTIAL_FILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env_of<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<OsString> + 'a {
        move |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
    }

    #[test]
    fn a_token_that_was_taken_for_a_path_or_a_number_is_not_shown_and_a_path_with_a_hash_in_it_is() {
        const DIGITS: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
        let upper = DIGITS.to_uppercase();
        for hidden in
            [DIGITS, &upper, &format!("./{DIGITS}"), &format!("x={DIGITS}0"), &format!("/home/{DIGITS}")]
        {
            assert_eq!(showable(hidden), NOT_SHOWN, "{hidden}");
        }
        for shown in ["", "7", "/run/user/7/authsock/token", &DIGITS[1..], &format!("/c/{DIGITS}/token")] {
            assert_eq!(showable(shown), shown);
        }
    }

    #[test]
    #[cfg(not(target_os = "macos"))]
    fn socket_and_token_lie_in_different_directories() {
        let env = env_of(&[("XDG_RUNTIME_DIR", "/run/user/7"), ("HOME", "/home/u")]);
        let places = Places::of_user(&env, 7, |_| false, None);
        assert_eq!(places.init_socket(), Path::new("/run/user/7/authsock.sock"));
        assert_eq!(places.ondemand_socket(), Path::new("/run/user/7/authsock-ondemand.sock"));
        assert_eq!(places.owner_token(), Path::new("/run/user/7/authsock/token"));
        assert_eq!(places.config(), Some(Path::new("/home/u/.config/authsock/config.toml")));
        assert_eq!(places.log(), Some(Path::new("/home/u/.local/state/authsock/log")));
    }

    #[test]
    #[cfg(not(target_os = "macos"))]
    fn at_the_system_daemon_root_has_the_owner_s_token_and_users_have_their_own() {
        let env = env_of(&[("XDG_RUNTIME_DIR", "/run/user/7"), ("HOME", "/home/u")]);
        let of = |uid| Places::of_user(&env, uid, |_| false, None).at_the_system_daemon(uid);
        assert_eq!(of(7).init_socket(), system_socket());
        assert_eq!(of(7).owner_token(), Path::new("/run/authsock/users/7/token"));
        assert_eq!(of(0).owner_token(), Path::new("/run/authsock/token"));
        assert_eq!(of(7).config(), Some(Path::new("/etc/authsock/config.toml")));
        assert_eq!(of(7).runs(), Path::new("/run/user/7/authsock-run"), "sessions stay the user's");
    }

    #[test]
    fn without_a_runtime_directory_logind_s_is_used_if_it_is_private_and_else_one_below_tmp() {
        let env = env_of(&[]);
        assert_eq!(Places::of_user(&env, 7, |_| true, None).runtime(), Path::new("/run/user/7"));
        assert_eq!(Places::of_user(&env, 7, |_| false, None).runtime(), Path::new("/tmp/authsock-7"));
    }

    #[test]
    fn relative_and_empty_variables_count_as_unset() {
        let env = env_of(&[("XDG_RUNTIME_DIR", "run"), ("XDG_CONFIG_HOME", ""), ("HOME", "/h")]);
        let places = Places::of_user(&env, 7, |_| false, None);
        assert_eq!(places.runtime(), Path::new("/tmp/authsock-7"));
        assert_eq!(places.config(), Some(Path::new("/h/.config/authsock/config.toml")));
    }

    #[test]
    fn a_socket_path_of_the_longest_length_is_taken_and_one_byte_more_is_refused() {
        let longest = format!("/{}", "s".repeat(SOCKET_PATH_MAX - 1));
        assert!(SocketPath::new(&longest).is_ok());
        let error = SocketPath::new(format!("{longest}s")).unwrap_err();
        assert_eq!(
            error,
            BadSocketPath::TooLong { path: format!("{longest}s").into(), length: SOCKET_PATH_MAX + 1 }
        );
        assert!(error.to_string().contains(&format!("at most {SOCKET_PATH_MAX}")));
    }

    #[test]
    fn relative_abstract_and_nameless_socket_paths_are_refused() {
        for path in ["", "x.sock", "\0abstract", "/a\0b", "/"] {
            assert!(matches!(SocketPath::new(path), Err(BadSocketPath::NotAbsolute { .. })), "{path:?}");
        }
    }

    #[test]
    fn the_first_runtime_directory_counts() {
        let env = env_of(&[("RUNTIME_DIRECTORY", "/run/a:/run/b")]);
        assert_eq!(service_runtime_directory(&env), Some("/run/a".into()));
        assert_eq!(service_runtime_directory(&env_of(&[("RUNTIME_DIRECTORY", "rel")])), None);
    }
}
