//! Sockets from launchd: `launch_activate_socket(3)` for the plist's `Sockets` entry of our name.

use std::time::Duration;

/// launchd.plist(5), ThrottleInterval: a job that lived shorter is not started again before this
/// much time has passed since its last start, and whoever connects waits.
const THROTTLE: Duration = Duration::from_secs(10);
/// The shortest idle time that stays well clear of the throttle.
const IDLE_LEAST: Duration = Duration::from_secs(2 * THROTTLE.as_secs());

/// After how long an idle daemon of launchd's exits, and what is to be said of it where that is
/// longer than was asked for. `None` is never.
pub fn idle_exit(asked: Option<Duration>) -> (Option<Duration>, Option<String>) {
    match asked.filter(|asked| *asked < IDLE_LEAST) {
        None => (asked, None),
        Some(asked) => {
            let words = format!(
                "lifecycle.idle_exit_seconds = {} is taken as {}: launchd makes clients of a job wait that ran for less than {} s",
                asked.as_secs(),
                IDLE_LEAST.as_secs(),
                THROTTLE.as_secs()
            );
            (Some(IDLE_LEAST), Some(words))
        }
    }
}

#[cfg(target_os = "macos")]
pub(super) use macos::adopt;

#[cfg(target_os = "macos")]
mod macos {
    use std::ffi::{c_char, c_int};
    use std::os::fd::{AsFd, FromRawFd, OwnedFd};
    use std::os::unix::net::UnixListener;

    use super::super::{Activation, Adopted, NotActivated, Rejected, Starter};
    use crate::kernel::fds::{set_cloexec, set_nonblocking};
    use crate::kernel::socket::examine_listener;
    use crate::place::DESCRIPTOR_NAME;

    unsafe extern "C" {
        fn launch_activate_socket(name: *const c_char, fds: *mut *mut c_int, count: *mut usize) -> c_int;
    }

    /// Checks in with launchd, which may be done once.
    pub(in crate::init) fn adopt() -> Result<Activation, NotActivated> {
        let mut fds: *mut c_int = std::ptr::null_mut();
        let mut count = 0usize;
        // SAFETY: the name is NUL-terminated and both out-pointers are valid for writes.
        let status = unsafe { launch_activate_socket(c"authsock".as_ptr(), &raw mut fds, &raw mut count) };
        let missing = |words: &str| Err(NotActivated::NoSocket(format!(" ({words})")));
        match status {
            0 => {}
            libc::ENOENT => return missing("the job's plist has no Sockets entry named authsock"),
            libc::ESRCH => return missing("this process was not started by launchd"),
            libc::EALREADY => return missing("the sockets were taken before"),
            _ => return missing("launchd gave an unknown answer"),
        }
        let mut activation = Activation { sockets: Vec::new(), rejected: Vec::new(), starter: Starter::Init };
        for place in 0..count {
            // SAFETY: on success launchd gave an array of `count` descriptors that are ours.
            let fd = unsafe { OwnedFd::from_raw_fd(*fds.add(place)) };
            let _ = set_cloexec(fd.as_fd());
            match examine_listener(fd.as_fd()) {
                Ok(path) => {
                    let _ = set_nonblocking(fd.as_fd());
                    let listener = UnixListener::from(fd);
                    activation.sockets.push(Adopted { listener, name: DESCRIPTOR_NAME.to_owned(), path });
                }
                Err(reason) => activation.rejected.push(Rejected {
                    number: i32::try_from(place).unwrap_or(i32::MAX),
                    name: DESCRIPTOR_NAME.to_owned(),
                    reason,
                }),
            }
        }
        if !fds.is_null() {
            // SAFETY: launchd allocated the array with malloc(3) and left it to us.
            unsafe { libc::free(fds.cast()) };
        }
        if activation.sockets.is_empty() {
            return Err(NotActivated::NoneUsable(activation.rejected));
        }
        Ok(activation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_time_that_launchd_would_punish_is_raised_with_a_complaint() {
        let of = |seconds| idle_exit(Some(Duration::from_secs(seconds)));
        for short in [1, 10, 19] {
            let (idle, words) = of(short);
            assert_eq!(idle, Some(Duration::from_secs(20)));
            let words = words.unwrap();
            assert!(words.contains(&format!("idle_exit_seconds = {short} is taken as 20")), "{words}");
        }
        for long in [20, 300] {
            assert_eq!(of(long), (Some(Duration::from_secs(long)), None));
        }
        assert_eq!(idle_exit(None), (None, None), "never is never");
    }
}
