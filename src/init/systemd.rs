//! Sockets from systemd, or from a client that keeps the same contract: LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES (sd_listen_fds(3)).
//!
//! The listenfd crate takes the descriptors; the checks that it lacks are here: the names, a
//! missing LISTEN_PID, the pidfd id of newer systemds, and what each descriptor really is.

use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use super::{Activation, Adopted, NotActivated, Rejected, Starter};
use crate::kernel::fds::{borrow_number, set_cloexec, set_nonblocking};
use crate::kernel::process::{Pid, Process};
use crate::kernel::socket::{NotAListener, examine_listener};
use crate::place::var::{LISTEN_FDNAMES, LISTEN_FDS, LISTEN_PID, LISTEN_PIDFDID};
use crate::place::{DESCRIPTOR_NAME, Env, process_env};

/// The first descriptor that is passed (SD_LISTEN_FDS_START).
const FIRST: RawFd = 3;
/// Most descriptors that are looked at.
const ADOPTED_MAX: usize = 4096;

fn text(env: Env<'_>, variable: &str) -> Option<String> {
    env(variable).map(|value| value.to_string_lossy().into_owned())
}

fn bad<T>(variable: &'static str, value: &str, problem: &'static str) -> Result<T, NotActivated> {
    Err(NotActivated::BadVariable { variable, value: value.chars().take(80).collect(), problem })
}

/// Reads how many descriptors were passed to this process, from number 3 on.
fn passed(env: Env<'_>, own_pid: u32, own_pidfd_id: Option<u64>) -> Result<usize, NotActivated> {
    let text = |variable| text(env, variable);
    let Some(count) = text(LISTEN_FDS) else {
        return Err(NotActivated::NoSocket(String::new()));
    };
    let Some(pid) = text(LISTEN_PID) else {
        return Err(NotActivated::NoSocket(
            " (LISTEN_PID is not set, so LISTEN_FDS is for somebody else)".into(),
        ));
    };
    match pid.parse::<u32>() {
        Ok(pid) if pid == own_pid => {}
        Ok(pid) => {
            let words = format!(" (LISTEN_PID={pid} means another process than this one, {own_pid})");
            return Err(NotActivated::NoSocket(words));
        }
        Err(_) => return bad(LISTEN_PID, &pid, "not a process id"),
    }
    if let (Some(id), Some(own)) = (text(LISTEN_PIDFDID), own_pidfd_id)
        && id.parse() != Ok(own)
    {
        let words = " (LISTEN_PIDFDID means an earlier process of this pid)";
        return Err(NotActivated::NoSocket(words.into()));
    }
    let Ok(number) = count.parse::<usize>() else {
        return bad(LISTEN_FDS, &count, "not a number");
    };
    if number == 0 {
        return Err(NotActivated::NoSocket(" (LISTEN_FDS=0)".into()));
    }
    if number > ADOPTED_MAX {
        return bad(LISTEN_FDS, &count, "more descriptors than anybody passes");
    }
    Ok(number)
}

/// Reads what the variables announce: a name for each descriptor.
fn announced(env: Env<'_>, own_pid: u32, own_pidfd_id: Option<u64>) -> Result<Vec<String>, NotActivated> {
    let number = passed(env, own_pid, own_pidfd_id)?;
    match text(env, LISTEN_FDNAMES) {
        None => Ok(vec![DESCRIPTOR_NAME.to_owned(); number]),
        Some(names) => {
            let split: Vec<String> = names.split(':').map(str::to_owned).collect();
            if split.len() == number {
                Ok(split)
            } else {
                bad(LISTEN_FDNAMES, &names, "not as many names as LISTEN_FDS")
            }
        }
    }
}

fn own_pidfd_id() -> Option<u64> {
    Process::open(Pid::own()).ok().and_then(|process| process.inode())
}

/// See [`super::keep_from_children`].
pub(super) fn keep_from_children() {
    let passed = passed(&process_env, std::process::id(), own_pidfd_id());
    for number in (FIRST..).take(passed.unwrap_or(0)) {
        if let Ok(fd) = borrow_number(number) {
            let _ = set_cloexec(fd);
        }
    }
}

/// Adopts what was passed. See [`super::adopt`].
pub(super) fn adopt(starter: Starter) -> Result<Activation, NotActivated> {
    let announced = announced(&process_env, std::process::id(), own_pidfd_id());
    let mut taken = take_all(announced.as_ref().map_or(0, Vec::len));
    let names = announced?;
    let mut activation = Activation { sockets: Vec::new(), rejected: Vec::new(), starter };
    for (number, name) in (FIRST..).zip(names) {
        let examined = match taken.next() {
            Some(fd) if fd == number => adopt_one(number),
            _ => Err(NotAListener::Closed),
        };
        match examined {
            Ok((listener, path)) => activation.sockets.push(Adopted { listener, name, path }),
            Err(reason) => activation.rejected.push(Rejected { number, name, reason }),
        }
    }
    if activation.sockets.is_empty() {
        return Err(NotActivated::NoneUsable(activation.rejected));
    }
    Ok(activation)
}

/// Takes the descriptors, and the variables out of the environment.
#[cfg(target_os = "linux")]
fn take_all(count: usize) -> std::vec::IntoIter<RawFd> {
    let mut taken = Vec::new();
    if count > 0 {
        let mut passed = listenfd::ListenFd::from_env();
        taken = (0..count).map_while(|place| passed.take_raw_fd(place).ok().flatten()).collect();
    }
    forget_variables();
    taken.into_iter()
}

/// Takes the descriptors, and the variables out of the environment. The listenfd crate reads them
/// on every Unix; here, where nothing but our own starter passes any, the numbers are enough.
#[cfg(not(target_os = "linux"))]
fn take_all(count: usize) -> std::vec::IntoIter<RawFd> {
    forget_variables();
    (FIRST..).take(count).collect::<Vec<_>>().into_iter()
}

fn forget_variables() {
    for variable in [LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES, LISTEN_PIDFDID] {
        // SAFETY: `adopt` runs before this process has a second thread, as its documentation asks.
        #[allow(clippy::disallowed_methods)]
        unsafe {
            std::env::remove_var(variable);
        }
    }
}

fn adopt_one(number: RawFd) -> Result<(UnixListener, std::path::PathBuf), NotAListener> {
    let borrowed = borrow_number(number).map_err(|_| NotAListener::Closed)?;
    // Whatever it is, no child of ours shall have it.
    set_cloexec(borrowed).map_err(|_| NotAListener::Closed)?;
    let path = examine_listener(borrowed)?;
    // SAFETY: the descriptor is open, was passed to this process for its own, and is taken once.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    set_nonblocking(fd.as_fd()).map_err(|_| NotAListener::Closed)?;
    Ok((UnixListener::from(fd), path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;

    fn ask(pairs: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let env =
            |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        announced(&env, 42, Some(7)).map_err(|error| error.to_string())
    }

    #[test]
    fn names_are_read_for_each_descriptor() {
        let found = ask(&[("LISTEN_PID", "42"), ("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "authsock:docker")]);
        assert_eq!(found.unwrap(), ["authsock", "docker"]);
        let found = ask(&[("LISTEN_PID", "0000000042"), ("LISTEN_FDS", "1"), ("LISTEN_PIDFDID", "7")]);
        assert_eq!(found.unwrap(), ["authsock"]);
    }

    #[test]
    fn sockets_for_somebody_else_are_not_ours() {
        for pairs in [
            &[][..],
            &[("LISTEN_FDS", "1")],
            &[("LISTEN_PID", "41"), ("LISTEN_FDS", "1")],
            &[("LISTEN_PID", "42"), ("LISTEN_FDS", "0")],
            &[("LISTEN_PID", "42"), ("LISTEN_FDS", "1"), ("LISTEN_PIDFDID", "8")],
        ] {
            let words = ask(pairs).unwrap_err();
            assert!(
                words.starts_with("no socket was passed") && words.contains("systemctl --user restart"),
                "{words}"
            );
        }
    }

    #[test]
    fn variables_that_make_no_sense_are_named() {
        for (variable, pairs) in [
            ("LISTEN_FDS", &[("LISTEN_PID", "42"), ("LISTEN_FDS", "3x")][..]),
            ("LISTEN_FDS", &[("LISTEN_PID", "42"), ("LISTEN_FDS", "-1")]),
            ("LISTEN_FDS", &[("LISTEN_PID", "42"), ("LISTEN_FDS", "99999999")]),
            ("LISTEN_PID", &[("LISTEN_PID", "x"), ("LISTEN_FDS", "1")]),
            ("LISTEN_FDNAMES", &[("LISTEN_PID", "42"), ("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "a:b")]),
        ] {
            assert!(ask(pairs).unwrap_err().starts_with(variable));
        }
    }
}
