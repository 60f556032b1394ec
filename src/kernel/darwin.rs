//! What macOS tells of processes: audit tokens of peers, start times, parents, names, and a kqueue that tells of an end.
//!
//! There are no pidfds. What comes closest is put together here: a kqueue that watches one pid
//! becomes readable when that process ends (kqueue(2), EVFILT_PROC with NOTE_EXIT), and can be
//! polled like a pidfd; the start time tells the process from a later one of the same pid.
//!
//! An audit token has a pid version too, but that is no lasting mark of a process: it changes at
//! each exec, and the kernel answers only with the version that a pid has *now* (XNU looks the pid
//! up when it is asked). So the version is compared before and after a hold is taken, and what is
//! kept, shown and recognised later is pid and start time, which proc_pidinfo gives again at any
//! time.

use nix::errno::Errno;

/// `audit_token_t` (mach/message.h): eight numbers.
type AuditToken = [u32; 8];

/// A process as an audit token names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Named {
    /// Its pid.
    pub(super) pid: u32,
    /// Which of the program images that had this pid.
    pub(super) version: u32,
}

impl Named {
    /// Reads the fields that `audit_token_to_pid(3)` and `audit_token_to_pidversion(3)` read. Those
    /// live in libbsm, which would be linked for two indices that Apple's published source fixes.
    fn by(token: &AuditToken) -> Named {
        Named { pid: token[5], version: token[7] }
    }
}

/// Why there is no audit token of a peer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Absence {
    /// The process has ended.
    Gone,
    /// The kernel knows no such option (macOS before 10.13).
    Unsupported,
    /// It said no.
    Failed(Errno),
}

impl Absence {
    /// Reads an error of LOCAL_PEERTOKEN: XNU says `EINVAL` where no process has the pid any more.
    fn of(errno: Errno) -> Absence {
        match errno {
            Errno::EINVAL | Errno::ESRCH => Absence::Gone,
            Errno::ENOPROTOOPT | Errno::EOPNOTSUPP => Absence::Unsupported,
            other => Absence::Failed(other),
        }
    }
}

/// A start time as one number: microseconds since 1970. 0 is what the kernel says where it does
/// not know.
fn start_of(seconds: u64, microseconds: u64) -> Option<u64> {
    seconds.checked_mul(1_000_000)?.checked_add(microseconds).filter(|start| *start > 0)
}

/// The text in an array that the kernel fills up with NULs.
fn text_in(array: &[std::ffi::c_char]) -> Vec<u8> {
    array.iter().map(|letter| letter.to_ne_bytes()[0]).take_while(|byte| *byte != 0).collect()
}

#[cfg(target_os = "macos")]
pub(super) use asked::{cwd, facts, peer, watch_end};

#[cfg(target_os = "macos")]
mod asked {
    use std::ffi::{OsString, c_int};
    use std::io;
    use std::mem::MaybeUninit;
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
    use std::os::unix::ffi::OsStringExt;
    use std::path::PathBuf;

    use nix::errno::Errno;

    use super::{Absence, AuditToken, Named, start_of, text_in};

    /// The process that last used the other end of a connected socket.
    pub(in crate::kernel) fn peer(socket: BorrowedFd<'_>) -> Result<Named, Absence> {
        let mut token: AuditToken = [0; 8];
        let whole = libc::socklen_t::try_from(size_of::<AuditToken>()).unwrap_or(0);
        let mut length = whole;
        // SAFETY: the kernel writes at most `length` bytes into the array of numbers, and how many
        // it were into `length`.
        let done = unsafe {
            let to = (&raw mut token).cast();
            libc::getsockopt(socket.as_raw_fd(), libc::SOL_LOCAL, libc::LOCAL_PEERTOKEN, to, &raw mut length)
        };
        match Errno::result(done) {
            Ok(_) if length == whole => Ok(Named::by(&token)),
            Ok(_) => Err(Absence::Unsupported),
            Err(errno) => Err(Absence::of(errno)),
        }
    }

    /// What the kernel tells of a process.
    #[derive(Debug)]
    pub(in crate::kernel) struct Facts {
        /// When it started, in microseconds since 1970.
        pub(in crate::kernel) start: Option<u64>,
        /// Its parent's pid; 0 at the top.
        pub(in crate::kernel) parent: u32,
        /// The name of its program.
        pub(in crate::kernel) name: String,
    }

    /// Start, parent and name of whatever process has this pid now.
    ///
    /// # Errors
    /// `ESRCH` if there is none or it has ended; `EPERM` for those of other users, unless we are root.
    pub(in crate::kernel) fn facts(pid: u32) -> io::Result<Facts> {
        // SAFETY: the flavour fills the structure, which holds nothing but numbers.
        let info: libc::proc_bsdinfo = unsafe { ask(pid, libc::PROC_PIDTBSDINFO)? };
        let name = text_in(&info.pbi_name);
        let name = if name.is_empty() { text_in(&info.pbi_comm) } else { name };
        Ok(Facts {
            start: start_of(info.pbi_start_tvsec, info.pbi_start_tvusec),
            parent: info.pbi_ppid,
            name: String::from_utf8_lossy(&name).into_owned(),
        })
    }

    /// The working directory of a process.
    ///
    /// # Errors
    /// As [`facts`].
    pub(in crate::kernel) fn cwd(pid: u32) -> io::Result<PathBuf> {
        // SAFETY: the flavour fills the structure, which holds nothing but numbers.
        let info: libc::proc_vnodepathinfo = unsafe { ask(pid, libc::PROC_PIDVNODEPATHINFO)? };
        Ok(OsString::from_vec(text_in(info.pvi_cdir.vip_path.as_flattened())).into())
    }

    /// # Safety
    /// `T` must be the structure that the flavour fills, and made of numbers only.
    unsafe fn ask<T>(pid: u32, flavour: c_int) -> io::Result<T> {
        let pid = c_int::try_from(pid).map_err(|_| Errno::ESRCH)?;
        let size = c_int::try_from(size_of::<T>()).map_err(|_| Errno::EINVAL)?;
        let mut info = MaybeUninit::<T>::zeroed();
        // SAFETY: the kernel writes at most `size` bytes, and there is room for as many.
        let written = unsafe { libc::proc_pidinfo(pid, flavour, 0, info.as_mut_ptr().cast(), size) };
        if written == size {
            // SAFETY: every byte was zeroed, and numbers may have any value.
            Ok(unsafe { info.assume_init() })
        } else if written <= 0 {
            Err(io::Error::last_os_error())
        } else {
            Err(Errno::EINVAL.into())
        }
    }

    /// A descriptor that becomes readable when the process ends that has this pid now. Nothing is
    /// ever taken out of the queue, so it stays readable.
    ///
    /// # Errors
    /// `ESRCH` if there is no such process, `EMFILE` if there is no descriptor left.
    pub(in crate::kernel) fn watch_end(pid: u32) -> io::Result<OwnedFd> {
        // SAFETY: returns a new descriptor, which is ours alone.
        let queue = unsafe { OwnedFd::from_raw_fd(Errno::result(libc::kqueue())?) };
        crate::kernel::fds::set_cloexec(queue.as_fd())?;
        let change = libc::kevent {
            ident: usize::try_from(pid).map_err(|_| Errno::ESRCH)?,
            filter: libc::EVFILT_PROC,
            flags: libc::EV_ADD,
            fflags: libc::NOTE_EXIT,
            data: 0,
            udata: std::ptr::null_mut(),
        };
        // SAFETY: one change is read, no event is written.
        let done = unsafe {
            libc::kevent(queue.as_raw_fd(), &raw const change, 1, std::ptr::null_mut(), 0, std::ptr::null())
        };
        Errno::result(done)?;
        Ok(queue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audit_token_names_pid_and_version_and_nothing_else_counts() {
        let token = [u32::MAX, 501, 20, 501, 20, 4711, 100_003, 77];
        assert_eq!(Named::by(&token), Named { pid: 4711, version: 77 });
    }

    #[test]
    fn a_peer_that_ended_is_not_an_old_kernel() {
        assert_eq!(Absence::of(Errno::EINVAL), Absence::Gone);
        assert_eq!(Absence::of(Errno::ENOPROTOOPT), Absence::Unsupported);
        assert_eq!(Absence::of(Errno::ENOTCONN), Absence::Failed(Errno::ENOTCONN));
    }

    #[test]
    fn a_start_is_one_number_and_none_where_the_kernel_does_not_know() {
        assert_eq!(start_of(1_700_000_000, 250_001), Some(1_700_000_000_250_001));
        assert_eq!(start_of(0, 0), None);
        assert_eq!(start_of(u64::MAX, 0), None);
    }

    #[test]
    fn a_text_ends_at_its_first_nul_or_with_its_array() {
        let array = |text: &str| -> Vec<std::ffi::c_char> {
            text.bytes().map(|byte| std::ffi::c_char::from_ne_bytes([byte])).collect()
        };
        assert_eq!(text_in(&array("bash\0old name")), b"bash");
        assert_eq!(text_in(&array("\0")), b"");
        assert_eq!(text_in(&array("sixteen letters.")), b"sixteen letters.");
        assert_eq!(text_in(&array("né")), "né".as_bytes());
    }
}
