//! Sockets from launchd: `launch_activate_socket(3)` for the plist's `Sockets` entry of our name.

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
