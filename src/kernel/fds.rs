//! Descriptors: close-on-exec, what kind one is, and reading one that another process passed down.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};
use nix::sys::stat::{SFlag, fstat};

/// Marks a descriptor close-on-exec, so that no child inherits it.
///
/// # Errors
/// `EBADF` if there is no such descriptor.
pub fn set_cloexec(fd: BorrowedFd<'_>) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(())
}

/// Makes a descriptor's description non-blocking.
///
/// # Errors
/// The kernel's answer.
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Borrows a descriptor that came as a number, if it is open.
///
/// # Errors
/// `EBADF` if there is no such descriptor.
pub fn borrow_number(fd: RawFd) -> io::Result<BorrowedFd<'static>> {
    if fd < 0 {
        return Err(Errno::EBADF.into());
    }
    // SAFETY: the number is not negative; whether it is open is what the next call asks, and the
    // borrow is used by callers that run before anything in this process closes descriptors.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl(borrowed, FcntlArg::F_GETFD)?;
    Ok(borrowed)
}

/// Why an inherited descriptor gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// No such descriptor is open: a grandchild that did not inherit it.
    #[error("descriptor {0} is not open")]
    Closed(RawFd),
    /// Standard input, output or error: never read by accident.
    #[error("descriptor {0} is standard input, output or error")]
    Standard(RawFd),
    /// A socket, a terminal, a directory: nothing a secret is passed in.
    #[error("descriptor {0} is neither a file nor a pipe")]
    WrongKind(RawFd),
    /// The writer neither wrote nor closed in time.
    #[error("descriptor {0} gave nothing in time")]
    Silent(RawFd),
    /// The kernel said no.
    #[error("descriptor {0} cannot be read: {1}")]
    Io(RawFd, io::Error),
}

/// Reads at most `limit` bytes from an inherited descriptor. A file (or memfd) is read from its
/// start without moving the offset that all its holders share; a pipe is read to its end, for at
/// most `timeout_ms` milliseconds.
///
/// # Errors
/// [`Unreadable`], naming the number.
pub fn read_inherited(fd: RawFd, limit: usize, timeout_ms: u16) -> Result<Vec<u8>, Unreadable> {
    if (0..=2).contains(&fd) {
        return Err(Unreadable::Standard(fd));
    }
    let borrowed = borrow_number(fd).map_err(|_| Unreadable::Closed(fd))?;
    let failed = |errno: Errno| Unreadable::Io(fd, errno.into());
    let stat = fstat(borrowed).map_err(failed)?;
    let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
    let mut bytes = vec![0u8; limit];
    let mut length = 0;
    match kind {
        SFlag::S_IFREG => {
            while length < limit {
                let offset = libc::off_t::try_from(length).map_err(|_| failed(Errno::EOVERFLOW))?;
                // pread(2) leaves the shared offset where it is.
                match nix::sys::uio::pread(borrowed, &mut bytes[length..], offset) {
                    Ok(0) => break,
                    Ok(read) => length += read,
                    Err(Errno::EINTR) => {}
                    Err(errno) => return Err(failed(errno)),
                }
            }
        }
        SFlag::S_IFIFO => {
            let deadline =
                std::time::Instant::now() + std::time::Duration::from_millis(u64::from(timeout_ms));
            while length < limit {
                let left = deadline.saturating_duration_since(std::time::Instant::now());
                let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
                let mut waiting = [PollFd::new(borrowed, PollFlags::POLLIN)];
                match poll(&mut waiting, left) {
                    Ok(0) => return Err(Unreadable::Silent(fd)),
                    Ok(_) => {}
                    Err(Errno::EINTR) => continue,
                    Err(errno) => return Err(failed(errno)),
                }
                match nix::unistd::read(borrowed, &mut bytes[length..]) {
                    Ok(0) => break,
                    Ok(read) => length += read,
                    Err(Errno::EINTR | Errno::EAGAIN) => {}
                    Err(errno) => return Err(failed(errno)),
                }
            }
        }
        _ => return Err(Unreadable::WrongKind(fd)),
    }
    bytes.truncate(length);
    Ok(bytes)
}

/// Waits until nobody reads any more what is written to a pipe or a socket: as long as it takes, and for a file for ever.
///
/// # Errors
/// The kernel's answer, or that it does not tell.
pub fn wait_until_unread(fd: BorrowedFd<'_>) -> io::Result<()> {
    loop {
        // Linux tells so unasked (poll(2)); others look only at what they are asked for.
        let mut waiting = [PollFd::new(fd, PollFlags::POLLHUP)];
        match poll(&mut waiting, PollTimeout::NONE) {
            Ok(_) if waiting[0].any() == Some(true) => return Ok(()),
            Ok(_) => return Err(io::ErrorKind::Unsupported.into()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Whether a file, a pipe or a socket has something that was not read yet. It reads nothing, and never waits; of devices
/// (a terminal, /dev/null) it says no.
pub fn has_unread(fd: BorrowedFd<'_>) -> bool {
    let kind = fstat(fd).map(|stat| SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()));
    if !kind.is_ok_and(|kind| [SFlag::S_IFREG, SFlag::S_IFIFO, SFlag::S_IFSOCK].contains(&kind)) {
        return false;
    }
    let mut count: libc::c_int = 0;
    // SAFETY: the descriptor is borrowed, and FIONREAD (ioctl_tty(2), pipe(7), unix(7)) writes one int, which lives until
    // the call has returned.
    let asked = unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut count) };
    // What is left of a file may be more than fits into an int.
    asked == 0 && count != 0
}

/// Lets go of standard input and output, which are a child's from now on: as long as we held them, nobody at
/// the other end would notice that the child has closed them.
///
/// # Errors
/// If there is no /dev/null to put in their place.
pub(crate) fn leave_standard_streams() -> io::Result<()> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    Ok(())
}

/// Closes every descriptor from `first` on. Safe between fork(2) and execve(2).
pub(crate) fn close_from(first: RawFd) {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: close_range(2) takes plain numbers; the caller is a child about to exec and uses
        // none of the descriptors that it closes.
        let closed = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
        if closed == 0 {
            return;
        }
    }
    // SAFETY: sysconf(3) is listed as async-signal-safe and takes no pointers.
    let most = unsafe { libc::sysconf(libc::_SC_OPEN_MAX) };
    let most = RawFd::try_from(most).unwrap_or(65_536).min(65_536);
    for fd in first..most {
        // SAFETY: as above.
        unsafe { libc::close(fd) };
    }
}

/// Makes a daemon independent of the limits that whoever started it has chosen for itself: soft
/// limits become the hard ones, no core is ever written, and a file that may not grow is an error
/// instead of the end. Returns how many descriptors may be open.
pub fn settle_limits() -> usize {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use nix::sys::signal::{SigHandler, Signal, signal};
    /// As the unit's LimitNOFILE=; some systems have no limit, and some code counts up to it.
    const DESCRIPTORS_MAX: u64 = 524_288;
    for (resource, most) in [
        (Resource::RLIMIT_NOFILE, DESCRIPTORS_MAX),
        (Resource::RLIMIT_FSIZE, u64::MAX),
        (Resource::RLIMIT_CPU, u64::MAX),
    ] {
        if let Ok((soft, hard)) = getrlimit(resource)
            && soft < hard.min(most)
        {
            let _ = setrlimit(resource, hard.min(most), hard);
        }
    }
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    // SAFETY: a signal that is ignored runs no code; there are no other threads yet.
    let _ = unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) };
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// Whether standard error leads to systemd's journal: `JOURNAL_STREAM` names its device and inode
/// (systemd.exec(5)), and is inherited by programs whose standard error leads elsewhere.
pub fn stderr_is_journal(env: crate::place::Env<'_>) -> bool {
    let Some(stream) = env("JOURNAL_STREAM") else { return false };
    let Some((device, inode)) = stream.to_str().and_then(|stream| stream.split_once(':')) else {
        return false;
    };
    fstat(std::io::stderr())
        .is_ok_and(|stat| device == stat.st_dev.to_string() && inode == stat.st_ino.to_string())
}

/// Whether the other end of a connection is closed for both ways (poll(2), POLLHUP): nobody is there to read an answer.
/// One that only sends no more still reads.
pub fn is_hung_up(connection: &impl AsFd) -> bool {
    // Linux tells of a hang-up unasked; XNU only of a direction that is asked for, and of the one that we write to when
    // nobody reads there any more.
    let mut asked = [PollFd::new(connection.as_fd(), PollFlags::POLLOUT)];
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
    poll(&mut asked, PollTimeout::ZERO).is_ok_and(|count| count > 0)
        && asked[0].revents().is_some_and(|events| events.intersects(gone))
}

/// Looks whether something came on a connection, and leaves it there (recv(2), MSG_PEEK): `false` is the end of what the
/// other one sends.
///
/// # Errors
/// `WouldBlock` where nothing came yet; or the connection's own.
pub fn has_more(connection: &impl AsFd) -> io::Result<bool> {
    let mut byte = [0];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    Ok(recv(connection.as_fd().as_raw_fd(), &mut byte, flags)? > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, SeekFrom, Write};

    #[test]
    fn what_came_is_seen_and_stays() {
        let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(has_more(&theirs).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        ours.write_all(b"x").unwrap();
        assert!(has_more(&theirs).unwrap() && has_more(&theirs).unwrap());
        let mut byte = [0];
        (&theirs).read_exact(&mut byte).unwrap();
        assert_eq!(has_more(&theirs).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        drop(ours);
        assert!(!has_more(&theirs).unwrap());
    }

    #[test]
    fn a_file_is_read_from_its_start_whatever_its_offset_and_the_offset_stays() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"secret").unwrap();
        assert_eq!(read_inherited(file.as_raw_fd(), 100, 0).unwrap(), b"secret");
        assert_eq!(file.stream_position().unwrap(), 6);
        file.seek(SeekFrom::Start(1)).unwrap();
        let mut rest = String::new();
        file.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "ecret");
    }

    #[cfg(target_os = "linux")] // elsewhere the next line finds it out, at the latest
    #[test]
    fn that_nobody_reads_any_more_is_noticed_and_not_before() {
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        let watched = writer.try_clone().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let watch = std::thread::spawn(move || {
            let waited = wait_until_unread(std::os::fd::AsFd::as_fd(&watched));
            tell.send(waited.is_ok()).unwrap();
        });
        // A full pipe and an empty one are read all the same.
        for _ in 0..100 {
            writer.write_all(&[0; 65_536]).unwrap();
            reader.read_exact(&mut [0; 65_536]).unwrap();
        }
        assert!(told.try_recv().is_err());
        drop(reader);
        assert_eq!(told.recv(), Ok(true));
        watch.join().unwrap();
    }

    #[test]
    fn a_pipe_is_read_to_its_end_and_a_drained_one_is_empty() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"secret").unwrap();
        assert!(matches!(read_inherited(reader.as_raw_fd(), 100, 10), Err(Unreadable::Silent(_))));
        drop(writer);
        assert_eq!(read_inherited(reader.as_raw_fd(), 100, 10).unwrap(), b"", "the bytes were taken above");
    }

    #[test]
    fn what_waits_to_be_read_is_seen_and_stays_and_nobody_is_waited_for() {
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        assert!(!has_unread(reader.as_fd()), "nobody has written yet, and it returns");
        writer.write_all(b"x").unwrap();
        assert!(has_unread(reader.as_fd()) && has_unread(reader.as_fd()));
        reader.read_exact(&mut [0]).unwrap();
        assert!(!has_unread(reader.as_fd()));
        drop(writer);
        assert!(!has_unread(reader.as_fd()), "its end is nothing to read");
        let mut file = tempfile::tempfile().unwrap();
        assert!(!has_unread(file.as_fd()));
        file.write_all(b"xy").unwrap();
        assert!(!has_unread(file.as_fd()), "all of it was passed by");
        file.seek(SeekFrom::Start(1)).unwrap();
        assert!(has_unread(file.as_fd()));
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(!has_unread(ours.as_fd()));
        theirs.write_all(b"x").unwrap();
        assert!(has_unread(ours.as_fd()));
        for device in ["/dev/null", "/dev/zero"] {
            assert!(!has_unread(std::fs::File::open(device).unwrap().as_fd()), "{device}");
        }
    }

    #[test]
    fn a_socket_a_closed_number_and_the_standard_ones_are_refused() {
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(matches!(read_inherited(socket.as_raw_fd(), 9, 0), Err(Unreadable::WrongKind(_))));
        assert!(matches!(read_inherited(9999, 9, 0), Err(Unreadable::Closed(9999))));
        assert!(matches!(read_inherited(-1, 9, 0), Err(Unreadable::Closed(-1))));
        for fd in 0..3 {
            assert!(matches!(read_inherited(fd, 9, 0), Err(Unreadable::Standard(_))));
        }
    }

    #[test]
    fn no_more_than_the_limit_is_read() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 64]).unwrap();
        assert_eq!(read_inherited(file.as_raw_fd(), 10, 0).unwrap().len(), 10);
    }

    #[test]
    fn who_only_sends_no_more_is_still_there_and_who_closed_is_not() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(!is_hung_up(&ours));
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(!is_hung_up(&ours));
        drop(theirs);
        assert!(is_hung_up(&ours));
    }
}
