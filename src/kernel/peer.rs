//! Who is on the other end of a connection, in the kernel's word alone: uid, gid, pid, and a pidfd where there is one.
//!
//! Guarantees: credentials that the kernel did not vouch for (uid -1, the overflow uid, pid 0
//! without a live pidfd) never become a [`Peer`]; that there is no pidfd is a named outcome, and
//! "the kernel is too old" is never mistaken for "the process is gone".

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

#[cfg(target_os = "macos")]
use super::darwin;
use super::process::{Identity, Pid, Process};

/// The process that called connect(2), as the kernel noted it at that moment (unix(7),
/// SO_PEERCRED). Passing the descriptor on or exec'ing changes none of it. (On macOS that holds for
/// uid and gid; the pid is the one that used the socket last.)
#[derive(Debug)]
pub struct Peer {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Process id; 0 if it runs in a pid namespace that we cannot see into.
    pub pid: Pid,
    /// The process itself, or why it cannot be held.
    pub process: Hold,
}

/// A hold on the peer's process, or the reason why there is none.
#[derive(Debug)]
pub enum Hold {
    /// A pidfd that names the very process that connected; on macOS a watch on the one that the
    /// audit token named before and after it was set up.
    Held(Process),
    /// The kernel gives no pidfds of peers (Linux before 6.5), nor audit tokens (old macOS).
    Unsupported {
        /// The start time that the pid had when we looked, where it can be read.
        start: Option<u64>,
    },
    /// The process has ended and was reaped.
    Gone,
}

/// Why a connection has no usable credentials.
#[derive(Debug, thiserror::Error)]
pub enum NoPeer {
    /// The kernel gave none: not a connected Unix socket.
    #[error("the kernel vouches for no credentials on this connection (uid {uid}, pid {pid})")]
    NoCredentials {
        /// The uid that it gave, as signed.
        uid: i64,
        /// The pid that it gave.
        pid: u32,
    },
    /// A user of another user namespace whom the kernel cannot name in ours.
    #[error(
        "the peer's user has no number here (overflow uid {0}); strangers of that number cannot be told apart"
    )]
    Unmapped(u32),
    /// The process is of a foreign pid namespace and nothing live names it.
    #[error("the peer of uid {uid} has no pid here, and no live pidfd names it")]
    Nameless {
        /// The uid that the kernel gave.
        uid: u32,
    },
    /// The kernel has no descriptor or memory left for the answer.
    #[error("the kernel has nothing left to tell who connected with: {0}")]
    Exhausted(io::Error),
    /// The kernel's own error.
    #[error("the kernel does not tell who connected: {0}")]
    Kernel(#[from] io::Error),
}

impl Peer {
    /// Asks the kernel who connected.
    ///
    /// # Errors
    /// [`NoPeer`]: whoever gets it must refuse.
    pub fn of(connection: impl AsFd) -> Result<Peer, NoPeer> {
        Peer::of_fd(connection.as_fd())
    }

    #[cfg(target_os = "linux")]
    fn of_fd(fd: BorrowedFd<'_>) -> Result<Peer, NoPeer> {
        use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
        let credentials = getsockopt(&fd, PeerCredentials).map_err(io::Error::from)?;
        let uid = credentials.uid();
        let pid = Pid(u32::try_from(credentials.pid()).unwrap_or(0));
        judge(uid, pid, credentials.gid(), hold(fd, pid)?, overflow_uid())
    }

    #[cfg(target_os = "macos")]
    fn of_fd(fd: BorrowedFd<'_>) -> Result<Peer, NoPeer> {
        use nix::sys::socket::{getsockopt, sockopt::LocalPeerPid};
        let (uid, gid) = nix::unistd::getpeereid(fd).map_err(io::Error::from)?;
        let by_pid = || -> Result<Pid, io::Error> {
            let pid = getsockopt(&fd, LocalPeerPid).map_err(io::Error::from)?;
            Ok(Pid(u32::try_from(pid).unwrap_or(0)))
        };
        let (pid, hold) = match darwin::peer(fd) {
            Ok(named) => (Pid(named.pid), hold(fd, named)?),
            Err(darwin::Absence::Gone) => (by_pid()?, Hold::Gone),
            Err(darwin::Absence::Unsupported) => {
                let pid = by_pid()?;
                (pid, Hold::Unsupported { start: super::process::start_time(pid) })
            }
            Err(darwin::Absence::Failed(errno)) => return Err(io::Error::from(errno).into()),
        };
        // There is no overflow uid here.
        judge(uid.as_raw(), pid, gid.as_raw(), hold, u32::MAX)
    }

    /// Whether the process that connected still runs. Without a pidfd: whether its pid is still
    /// its own, by start time; where not even that can be read, yes.
    pub fn is_alive(&self) -> bool {
        match &self.process {
            Hold::Held(process) => process.is_alive(),
            Hold::Unsupported { start: Some(start) } => super::process::start_time(self.pid) == Some(*start),
            Hold::Unsupported { start: None } => true,
            Hold::Gone => false,
        }
    }

    /// What tells the process from every other.
    pub fn identity(&self) -> Identity {
        match &self.process {
            Hold::Held(process) => process.identity(),
            Hold::Unsupported { start } => Identity { pid: self.pid, pidfs: None, start: *start },
            Hold::Gone => Identity { pid: self.pid, pidfs: None, start: None },
        }
    }

    /// A hold on the peer's process of the caller's own. Where the kernel gives no pidfds of peers,
    /// one is opened by number, and kept if the process that has the number now started when the
    /// peer did.
    ///
    /// # Errors
    /// `ESRCH` if the process has ended; `ENOSYS` where there are no pidfds.
    pub fn open_process(&self) -> io::Result<Process> {
        let start = match &self.process {
            Hold::Held(process) => return process.try_clone(),
            Hold::Unsupported { start } => *start,
            Hold::Gone => None,
        };
        let opened = Process::open(self.pid)?;
        let same = start.is_some() && super::process::start_time(self.pid) == start;
        if same && opened.is_alive() { Ok(opened) } else { Err(nix::errno::Errno::ESRCH.into()) }
    }

    /// The process, if it is held.
    pub fn held(&self) -> Option<&Process> {
        match &self.process {
            Hold::Held(process) => Some(process),
            Hold::Unsupported { .. } | Hold::Gone => None,
        }
    }
}

/// The groups that the peer was in when it connected, beside its effective one: supplementary groups
/// (socket(7) SO_PEERGROUPS, Linux 4.13; LOCAL_PEERCRED on macOS). None, if the kernel does not tell.
pub fn groups(connection: impl AsFd) -> Vec<u32> {
    groups_of_fd(connection.as_fd())
}

#[cfg(target_os = "linux")]
fn groups_of_fd(fd: BorrowedFd<'_>) -> Vec<u32> {
    use std::os::fd::AsRawFd;
    // A user is in 65536 groups at most (NGROUPS_MAX); few are in more than these.
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut length = libc::socklen_t::try_from(size_of_val(groups.as_slice())).unwrap_or(0);
        // SAFETY: the kernel writes at most `length` bytes to memory that holds as many, and says in
        // `length` how many it wrote or would need.
        let status = unsafe {
            libc::getsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let count = usize::try_from(length).unwrap_or(0) / size_of::<libc::gid_t>();
        match nix::errno::Errno::result(status) {
            Ok(_) => {
                groups.truncate(count);
                return groups;
            }
            Err(nix::errno::Errno::ERANGE) if count > groups.len() => groups.resize(count, 0),
            Err(_) => return Vec::new(),
        }
    }
}

#[cfg(target_os = "macos")]
fn groups_of_fd(fd: BorrowedFd<'_>) -> Vec<u32> {
    use nix::sys::socket::{getsockopt, sockopt::LocalPeerCred};
    getsockopt(&fd, LocalPeerCred).map(|credentials| credentials.groups().to_vec()).unwrap_or_default()
}

/// What the kernel said, judged; every absence fails closed.
fn judge(uid: u32, pid: Pid, gid: u32, process: Hold, overflow: u32) -> Result<Peer, NoPeer> {
    if uid == u32::MAX {
        return Err(NoPeer::NoCredentials { uid: -1, pid: pid.0 });
    }
    if uid == overflow {
        return Err(NoPeer::Unmapped(uid));
    }
    let peer = Peer { uid, gid, pid, process };
    if pid.0 == 0 && !matches!(&peer.process, Hold::Held(process) if process.is_alive()) {
        return Err(NoPeer::Nameless { uid });
    }
    Ok(peer)
}

/// The uid that stands for users without a number in this user namespace (user_namespaces(7)).
pub fn overflow_uid() -> u32 {
    use std::sync::OnceLock;
    static OVERFLOW: OnceLock<u32> = OnceLock::new();
    const DEFAULT_OVERFLOWUID: u32 = 65_534; // linux/highuid.h
    *OVERFLOW.get_or_init(|| {
        std::fs::read_to_string("/proc/sys/kernel/overflowuid")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(DEFAULT_OVERFLOWUID)
    })
}

#[cfg(target_os = "linux")]
fn hold(fd: BorrowedFd<'_>, pid: Pid) -> Result<Hold, NoPeer> {
    use nix::sys::socket::{getsockopt, sockopt::PeerPidfd};
    match getsockopt(&fd, PeerPidfd) {
        Ok(pidfd) => Ok(Hold::Held(Process::from_pidfd(pid, pidfd))),
        Err(errno) => match absence(errno, kernel_gives_peer_pidfds()) {
            Absence::Unsupported => Ok(Hold::Unsupported { start: super::process::start_time(pid) }),
            Absence::Gone => Ok(Hold::Gone),
            Absence::NoCredentials => Err(NoPeer::NoCredentials { uid: -1, pid: pid.0 }),
            Absence::Failed => {
                let error = io::Error::from(errno);
                Err(if super::is_exhausted(&error) {
                    NoPeer::Exhausted(error)
                } else {
                    NoPeer::Kernel(error)
                })
            }
        },
    }
}

/// Watches the process that the audit token named. If the token then says the same still, it was
/// that process all along: a pid that went to somebody else would have another version.
#[cfg(target_os = "macos")]
fn hold(fd: BorrowedFd<'_>, named: darwin::Named) -> Result<Hold, NoPeer> {
    match Process::open(Pid(named.pid)) {
        Ok(process) if darwin::peer(fd) == Ok(named) => Ok(Hold::Held(process)),
        Ok(_) => Ok(Hold::Gone),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(Hold::Gone),
        Err(error) if super::is_exhausted(&error) => Err(NoPeer::Exhausted(error)),
        Err(error) => Err(NoPeer::Kernel(error)),
    }
}

/// What an error of SO_PEERPIDFD means.
#[cfg(target_os = "linux")]
#[derive(Debug, PartialEq, Eq)]
enum Absence {
    Unsupported,
    Gone,
    NoCredentials,
    Failed,
}

/// Reads an error of SO_PEERPIDFD: `EINVAL` is a reaped peer on Linux 6.5 to 6.15, and an unknown
/// option on some older kernels; only a probe of the kernel tells which. (From 6.16 on a reaped
/// peer gives a pidfd that is not alive.)
#[cfg(target_os = "linux")]
fn absence(errno: nix::errno::Errno, kernel_gives_pidfds: bool) -> Absence {
    use nix::errno::Errno;
    match errno {
        Errno::ENOPROTOOPT | Errno::ENOSYS => Absence::Unsupported,
        Errno::EINVAL if !kernel_gives_pidfds => Absence::Unsupported,
        Errno::EINVAL | Errno::ESRCH => Absence::Gone,
        Errno::ENODATA => Absence::NoCredentials,
        _ => Absence::Failed,
    }
}

/// Whether this kernel gives pidfds of peers at all, asked once on a pair of our own, whose peer is
/// certainly alive.
#[cfg(target_os = "linux")]
pub(crate) fn kernel_gives_peer_pidfds() -> bool {
    use nix::sys::socket::{getsockopt, sockopt::PeerPidfd};
    use std::sync::OnceLock;
    static GIVES: OnceLock<bool> = OnceLock::new();
    *GIVES.get_or_init(|| {
        std::os::unix::net::UnixStream::pair()
            .is_ok_and(|(ours, _theirs)| getsockopt(&ours, PeerPidfd).is_ok())
    })
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use nix::errno::Errno;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn a_peer_on_a_pair_is_ourselves() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&ours).unwrap();
        assert_eq!(peer.pid, Pid::own());
        assert_eq!(peer.uid, super::super::dir::own_uid());
        assert!(peer.is_alive());
        if let Some(process) = peer.held() {
            assert_eq!(process.inode(), Process::open(Pid::own()).unwrap().inode());
        }
    }

    #[test]
    fn tcp_and_unconnected_sockets_vouch_for_nobody() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(matches!(Peer::of(&listener), Err(NoPeer::NoCredentials { uid: -1, .. })));
        let dir = tempfile::tempdir().unwrap();
        let datagram = std::os::unix::net::UnixDatagram::bind(dir.path().join("d")).unwrap();
        assert!(matches!(Peer::of(&datagram), Err(NoPeer::NoCredentials { uid: -1, .. })));
    }

    #[test]
    fn a_peer_that_ended_after_sending_is_gone_and_not_an_old_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let script =
            "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.send(b'{}')";
        let status = std::process::Command::new("python3").arg("-c").arg(script).arg(&path).status();
        // Without python3 nobody connects and ends, and there is nothing to look at.
        let Ok(status) = status else { return };
        assert!(status.success());
        let (connection, _) = listener.accept().unwrap();
        let peer = Peer::of(&connection).unwrap();
        assert!(!matches!(peer.process, Hold::Unsupported { .. }) || !kernel_gives_peer_pidfds());
        assert!(!peer.is_alive());
    }

    #[test]
    fn each_absence_of_a_pidfd_has_its_own_name() {
        assert_eq!(absence(Errno::ENOPROTOOPT, false), Absence::Unsupported);
        assert_eq!(absence(Errno::EINVAL, false), Absence::Unsupported);
        assert_eq!(absence(Errno::EINVAL, true), Absence::Gone);
        assert_eq!(absence(Errno::ESRCH, true), Absence::Gone);
        assert_eq!(absence(Errno::ENODATA, true), Absence::NoCredentials);
        assert_eq!(absence(Errno::EMFILE, true), Absence::Failed);
    }

    #[test]
    fn credentials_that_name_nobody_fail_closed() {
        let held = || Hold::Held(Process::open(Pid::own()).unwrap());
        assert!(matches!(judge(u32::MAX, Pid(5), 0, held(), 65_534), Err(NoPeer::NoCredentials { .. })));
        assert!(matches!(judge(65_534, Pid(5), 0, held(), 65_534), Err(NoPeer::Unmapped(65_534))));
        assert!(matches!(judge(7, Pid(0), 0, Hold::Gone, 65_534), Err(NoPeer::Nameless { uid: 7 })));
        let unsupported = Hold::Unsupported { start: None };
        assert!(matches!(judge(7, Pid(0), 0, unsupported, 65_534), Err(NoPeer::Nameless { uid: 7 })));
        assert!(
            judge(7, Pid(0), 0, held(), 65_534).is_ok(),
            "a live pidfd names a process of another namespace"
        );
    }
}
