//! `authsock run --confine`: which places lead to tokens that are not the session's, or to a bus, and what the program is shown in their stead.

/// Directory, in a session's own, of what a confined program is shown and cannot change.
pub(super) const WAY: &str = "way";

pub(super) use imp::{keep, prepare, refuse_where_there_is_none};

#[cfg(target_os = "linux")]
mod imp {
    use std::ffi::{OsStr, OsString};
    use std::io;
    use std::os::fd::AsFd;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};
    use std::process::{Command, ExitStatus};

    use super::super::args::Common;
    use super::super::{Failure, client_options, exit, runtime};
    use super::WAY;
    use crate::client::connect::places;
    use crate::client::{Client, Options};
    use crate::config::Config;
    use crate::credential::discover::trusted_env;
    use crate::kernel::confine::{CannotConfine, Confinement, Plan};
    use crate::kernel::dir::{Dir, Problem, Unusable, is_private, own_uid};
    use crate::kernel::relink::SecondName;
    use crate::kernel::signals::{self, Beside};
    use crate::kernel::socket::CheckedSocket;
    use crate::place::{
        Env, Places, SocketPath, TOKEN_FILE, runtime_directories, system_socket, system_state, var,
    };

    /// Variables that lead to a bus, by which a program has others started for it. The system's bus has a
    /// policy of its own, and no variable is needed to find it.
    const BUSES: [&str; 5] = [
        "DBUS_SESSION_BUS_ADDRESS",
        "DBUS_STARTER_ADDRESS",
        "DBUS_STARTER_BUS_TYPE",
        "AT_SPI_BUS_ADDRESS",
        "IBUS_ADDRESS",
    ];
    /// What systemd and the session bus have in a runtime directory, by which programs are started.
    const STARTERS: [&str; 2] = ["bus", "systemd"];

    /// The name that the socket has in the session's [`WAY`].
    const SECOND_NAME: &str = "authsock.sock";

    pub(in super::super) fn refuse_where_there_is_none() -> Result<(), Failure> {
        Ok(())
    }

    /// Has the command confine itself. `home` is the directory of the session's own token.
    pub(in super::super) fn prepare(
        common: &Common,
        socket: &Path,
        home: &Path,
        command: &mut Command,
    ) -> Result<Confined, Failure> {
        let cannot = |error: &dyn std::fmt::Display| Failure::new(exit::RUN_FAILED, error);
        wake_the_machine_s()?;
        make_the_place_of_who_has_none().map_err(|error| cannot(&error))?;
        let places = places(false);
        let (runtime, given) = (places.runtime(), client_options(common));
        let real = runtime.canonicalize().map_err(|error| cannot(&error))?;
        // By the names that the program is told.
        let named = |path: &Path| match path.strip_prefix(&real) {
            Ok(below) => runtime.join(below),
            Err(_) => path.to_path_buf(),
        };
        for name in BUSES.into_iter().chain([var::CREDENTIALS_DIRECTORY]) {
            command.env_remove(name);
        }
        command.env(var::XDG_RUNTIME_DIR, runtime);
        let followed = follow(&places, socket, home);
        let (shown, copied) =
            shown(&real, socket, home, followed.is_some()).map_err(|error| cannot(&error))?;
        let mut found_by: Vec<PathBuf> = shown.iter().chain(&copied).map(|(_, at)| named(at)).collect();
        let followed_at = followed.is_some().then(|| home.join(WAY).join(SECOND_NAME));
        let socket_inside = followed_at.clone().or_else(|| shown.last().map(|(_, at)| named(at)));
        if let Some(socket) = socket_inside {
            command.env(var::SOCKET, socket);
        }
        found_by.extend(followed_at);
        let secrets = secrets(&trusted_env, &places, socket, &given);
        // Who cannot read it was warned by the connection.
        let config = Config::load(places.config(), given.config.as_deref()).unwrap_or_default();
        let plan = Plan::of(runtime, config.confined_runtime, &secrets, shown, copied, found_by);
        let plan = plan.map_err(|error| cannot(&error))?;
        let confinement = Confinement::prepare(&plan, command).map_err(|error| cannot(&error))?;
        Ok(Confined { confinement, followed })
    }

    /// A program's confinement, and what keeps its way to the daemon open.
    pub(in super::super) struct Confined {
        confinement: Confinement,
        followed: Option<SecondName>,
    }

    impl Confined {
        /// Why the program was not started, if it was for this.
        pub(in super::super) fn failure(&mut self, error: &io::Error) -> Option<CannotConfine> {
            self.confinement.failure(error)
        }
    }

    /// Runs the command to its end, confined or not.
    pub(in super::super) fn keep(
        command: &mut Command,
        confined: Option<&mut Confined>,
    ) -> io::Result<ExitStatus> {
        let Some(followed) = confined.and_then(|confined| confined.followed.as_ref()) else {
            return signals::keep(command, None);
        };
        let mut renew = || {
            if let Err(error) = followed.renew() {
                tracing::debug!("the session's name for the socket stays as it is: {error}");
            }
        };
        signals::keep(command, Some(Beside { readable: followed.as_fd(), look: &mut renew }))
    }

    /// Gives the socket a name in the session's own directory, which follows when it is made anew: what is mounted is
    /// one socket for good. Not possible where it is another user's, or lies on another file system.
    fn follow(places: &Places, socket: &Path, home: &Path) -> Option<SecondName> {
        let way = home.join(WAY);
        let at = SocketPath::new(way.join(SECOND_NAME)).ok()?;
        Dir::open_or_create(&way, own_uid()).ok()?;
        let mut of = vec![socket.to_path_buf()];
        if socket == places.ondemand_socket() {
            // A later installation takes over.
            of.insert(0, places.init_socket());
        }
        let given = SecondName::give(of, at.as_path().to_path_buf());
        let given = given
            .inspect_err(|error| tracing::debug!("the socket gets no name that follows it: {error}"))
            .ok()?;
        // The machine's daemon has one that all may write: inside it would be taken for a stranger's.
        if let Err(problem) = CheckedSocket::look(&at, own_uid()) {
            tracing::debug!("the socket gets no name that follows it: {problem}");
            let _ = std::fs::remove_file(at.as_path());
            return None;
        }
        Some(given)
    }

    /// Has the daemon of the whole machine start, if it would do so for whoever comes: what it makes then can be
    /// hidden, and what it makes later could not.
    fn wake_the_machine_s() -> Result<(), Failure> {
        if system_socket().exists() && !system_state().exists() {
            // Whether it admits this user does not matter.
            let _ = runtime()?.block_on(Client::connect(&Options { system: true, ..Options::default() }));
        }
        Ok(())
    }

    /// Makes the runtime directory that clients without a variable would make: what CMD made there first would be
    /// taken for theirs, and be read by it. Where the login's is there they use that.
    fn make_the_place_of_who_has_none() -> Result<(), Unusable> {
        let [logind, own] = runtime_directories(own_uid());
        if is_private(&logind) {
            return Ok(());
        }
        if let Err(unusable) = Dir::open_or_create(&own, own_uid()) {
            // One that clients refuse leads nobody to a token; what is there is hidden all the same. Where this user
            // can make none, the program cannot.
            let nowhere = |error: &io::Error| {
                matches!(
                    error.kind(),
                    io::ErrorKind::ReadOnlyFilesystem
                        | io::ErrorKind::PermissionDenied
                        | io::ErrorKind::NotFound
                )
            };
            let is_impossible = matches!(&unusable.problem, Problem::Io { source, .. } if nowhere(source));
            if !is_impossible && own.symlink_metadata().is_err() {
                return Err(unusable);
            }
        }
        Ok(())
    }

    /// Files: from where, and where.
    type Ways = Vec<(PathBuf, PathBuf)>;

    /// What is shown in the runtime directory, the socket last, and what is copied there: the token. So there is
    /// nothing in the directory outside that the program could change.
    fn shown(runtime: &Path, socket: &Path, home: &Path, has_way: bool) -> io::Result<(Ways, Ways)> {
        let (home, socket) = (in_its_directory(home)?, in_its_directory(socket)?);
        let at = if socket.starts_with(runtime) { socket.clone() } else { runtime.join("authsock.sock") };
        let as_it_is = |path: PathBuf| (path.clone(), path);
        let mut shown = Vec::from_iter(has_way.then(|| as_it_is(home.join(WAY))));
        shown.push((socket, at));
        Ok((shown, vec![as_it_is(home.join(TOKEN_FILE))]))
    }

    /// A path without links on the way to it; it may be one itself.
    fn in_its_directory(path: &Path) -> std::io::Result<PathBuf> {
        match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
            _ => Err(std::io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Where tokens lie that are not the session's, and what has programs started. Some need not exist.
    fn secrets(env: Env<'_>, places: &Places, socket: &Path, given: &Options) -> Vec<PathBuf> {
        let mut all = runtime_directories(own_uid()).to_vec();
        all.extend([places.state().to_path_buf(), system_state().to_path_buf()]);
        // Below the runtime directory they are covered with it, but another mount may show one alone.
        all.extend(STARTERS.map(|name| places.runtime().join(name)));
        // A daemon keeps its state beside its socket, unless its service says otherwise.
        all.extend(socket.parent().map(|dir| dir.join("authsock")));
        let paths = [var::CREDENTIALS_DIRECTORY, var::TOKEN_FILE].map(|name| env(name).map(PathBuf::from));
        all.extend(paths.into_iter().flatten().chain(given.token_file.clone()));
        all.extend(BUSES.iter().filter_map(|name| env(name)).flat_map(|address| sockets_of(&address)));
        all
    }

    /// The socket files that a D-Bus address leads to (D-Bus Specification, Server Addresses).
    fn sockets_of(address: &OsStr) -> Vec<PathBuf> {
        let each = address.as_bytes().split(|byte| *byte == b';');
        let keys = each
            .filter_map(|one| one.strip_prefix(b"unix:"))
            .flat_map(|keys| keys.split(|byte| *byte == b','));
        keys.filter_map(|key| key.strip_prefix(b"path=")).map(unescaped).collect()
    }

    /// A value of an address: bytes that are not plain are written as % and two digits.
    fn unescaped(value: &[u8]) -> PathBuf {
        let mut bytes = Vec::with_capacity(value.len());
        let mut rest = value;
        while let Some((first, after)) = rest.split_first() {
            let digits = (*first == b'%').then(|| after.get(..2)).flatten();
            match digits.and_then(|digits| hex::decode(digits).ok()) {
                Some(byte) => {
                    bytes.extend(byte);
                    rest = &after[2..];
                }
                None => {
                    bytes.push(*first);
                    rest = after;
                }
            }
        }
        OsString::from_vec(bytes).into()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn every_socket_file_of_a_bus_address_is_found_and_no_abstract_one() {
            for (address, sockets) in [
                ("unix:path=/run/user/7/bus", &["/run/user/7/bus"][..]),
                ("unix:path=/tmp/a%20b%2c,guid=00", &["/tmp/a b,"]),
                ("unix:abstract=/tmp/dbus-x,guid=0;unix:guid=1,path=/b;tcp:host=h,path=/c", &["/b"]),
                ("autolaunch:", &[]),
                ("unix:path=/tmp/100%", &["/tmp/100%"]),
            ] {
                let expected: Vec<PathBuf> = sockets.iter().map(PathBuf::from).collect();
                assert_eq!(sockets_of(OsStr::new(address)), expected, "{address}");
            }
        }

        #[test]
        fn all_that_leads_to_a_token_or_a_bus_is_among_what_is_hidden() {
            let env = |name: &str| {
                let value = match name {
                    "XDG_RUNTIME_DIR" => "/r",
                    "CREDENTIALS_DIRECTORY" => "/cred",
                    "AUTHSOCK_TOKEN_FILE" => "/outer/token",
                    "DBUS_SESSION_BUS_ADDRESS" => "unix:path=/tmp/dbus-1",
                    _ => return None,
                };
                Some(OsString::from(value))
            };
            let uid = own_uid();
            let places = Places::of_user(&env, uid, |_| false, None);
            let given = Options { token_file: Some("/given".into()), ..Options::default() };
            let found = secrets(&env, &places, Path::new("/daemon/authsock.sock"), &given);
            let run_user = format!("/run/user/{uid}");
            let tmp = format!("/tmp/authsock-{uid}");
            for path in [
                &run_user,
                &tmp,
                "/r/authsock",
                "/r/bus",
                "/r/systemd",
                "/run/authsock",
                "/daemon/authsock",
                "/cred",
                "/outer/token",
                "/given",
                "/tmp/dbus-1",
            ] {
                assert!(found.contains(&PathBuf::from(path)), "{path}: {found:?}");
            }
        }

        #[test]
        fn a_socket_keeps_its_path_in_the_runtime_directory_and_else_gets_one_there() {
            let temp = tempfile::tempdir().unwrap();
            let root = temp.path().canonicalize().unwrap();
            let runtime = root.join("run");
            std::fs::create_dir_all(runtime.join("authsock-run/x")).unwrap();
            let home = runtime.join("authsock-run/x");
            let of = |socket: PathBuf, has_way| shown(&runtime, &socket, &home, has_way).unwrap();
            let (within, outside) = (runtime.join("authsock-ondemand.sock"), root.join("s"));
            let token = vec![(home.join("token"), home.join("token"))];
            let way = (home.join("way"), home.join("way"));
            assert_eq!(of(within.clone(), true), (vec![way, (within.clone(), within)], token.clone()));
            let given = (outside.clone(), runtime.join("authsock.sock"));
            assert_eq!(of(outside, false), (vec![given], token));
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use std::io;
    use std::path::Path;
    use std::process::{Command, ExitStatus};

    use super::super::args::Common;
    use super::super::{Failure, exit};
    use crate::kernel::signals;

    /// There is none.
    pub(in super::super) enum Confined {}

    impl Confined {
        pub(in super::super) fn failure(&mut self, _error: &io::Error) -> Option<String> {
            match *self {}
        }
    }

    pub(in super::super) fn refuse_where_there_is_none() -> Result<(), Failure> {
        let words = "--confine needs Linux, whose namespaces keep CMD from what is not its own: leave it out, or run CMD as another user";
        Err(Failure::new(exit::RUN_FAILED, words))
    }

    pub(in super::super) fn prepare(
        _common: &Common,
        _socket: &Path,
        _home: &Path,
        _command: &mut Command,
    ) -> Result<Confined, Failure> {
        refuse_where_there_is_none()
            .and_then(|()| Err(Failure::new(exit::RUN_FAILED, "--confine needs Linux")))
    }

    pub(in super::super) fn keep(
        command: &mut Command,
        _confined: Option<&mut Confined>,
    ) -> io::Result<ExitStatus> {
        signals::keep(command, None)
    }
}
