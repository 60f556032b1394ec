//! Socket files: one that is examined and connected to without a gap, one that is born private, and listeners that others made.

use std::io;
#[cfg(not(target_os = "linux"))]
use std::os::fd::AsFd;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{self, OFlag};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr, sockopt};
use nix::sys::stat::{self, Mode, SFlag};

use super::ids;
use super::peer::overflow_uid;
use crate::place::SocketPath;

/// Connections that may wait to be accepted; the kernel clamps it to net.core.somaxconn (4096).
const BACKLOG: i32 = 4096;

/// Why a socket file is not connected to.
#[derive(Debug, thiserror::Error)]
pub enum BadSocket {
    /// Nothing is there.
    #[error("{path} does not exist", path = .0.display())]
    Missing(PathBuf),
    /// A link or some other kind of file.
    #[error("{path} is not a socket", path = .0.display())]
    NotASocket(PathBuf),
    /// Somebody else made it.
    #[error("{path} belongs to uid {owner}: whoever made it would be listening, not your daemon", path = path.display())]
    NotOurs {
        /// The socket, or the directory it lies in.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Others could swap it, or have made it.
    #[error("{path} may be written by others (mode {mode:04o}): chmod go-w it (a unit's SocketMode= and DirectoryMode= set it)", path = path.display())]
    OthersMayWrite {
        /// The socket, or the directory it lies in.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It exists, but this user may not use it.
    #[error("permission denied on {path}: it is there, but uid {uid} may not connect to it", path = path.display())]
    Forbidden {
        /// The path.
        path: PathBuf,
        /// Who asked.
        uid: u32,
    },
    /// Nobody listens.
    #[error("nobody listens on {path}", path = .0.display())]
    Refused(PathBuf),
    /// The queue of connections is full.
    #[error("{path} has more connections waiting than it takes", path = .0.display())]
    Full(PathBuf),
    /// The kernel said no.
    #[error("cannot connect to {path}: {error}", path = path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        error: io::Error,
    },
}

impl BadSocket {
    /// Whether something is there that somebody else may have put there; else there is only no daemon.
    pub fn is_suspect(&self) -> bool {
        matches!(
            self,
            BadSocket::NotASocket(_) | BadSocket::NotOurs { .. } | BadSocket::OthersMayWrite { .. }
        )
    }
}

/// A socket file that was found to be ours (or root's), held so that a swap of the path between
/// check and connect changes nothing.
#[derive(Debug)]
pub struct CheckedSocket {
    path: SocketPath,
    inode: (u64, u64),
    #[cfg(target_os = "linux")]
    pin: OwnedFd,
}

impl CheckedSocket {
    /// Looks at a socket file and the directory it lies in.
    ///
    /// # Errors
    /// [`BadSocket`] for anything that is not a socket of `owner` or root which nobody else can swap.
    pub fn look(path: &SocketPath, owner: u32) -> Result<CheckedSocket, BadSocket> {
        CheckedSocket::examine(path, owner, 0o002)
    }

    /// Looks at the socket of a daemon for the whole machine: it and its directory must be root's.
    /// All may connect to it, which is to write it.
    ///
    /// # Errors
    /// As [`CheckedSocket::look`].
    pub fn look_at_root_s(path: &SocketPath) -> Result<CheckedSocket, BadSocket> {
        CheckedSocket::examine(path, 0, 0)
    }

    /// `others_write`: which permission bits the socket itself must not have.
    fn examine(path: &SocketPath, owner: u32, others_write: u32) -> Result<CheckedSocket, BadSocket> {
        let full = path.as_path();
        let failed = |errno: Errno, at: &Path| match errno {
            Errno::ENOENT => BadSocket::Missing(at.to_path_buf()),
            Errno::EACCES => BadSocket::Forbidden { path: at.to_path_buf(), uid: super::dir::own_uid() },
            Errno::ENOTDIR | Errno::ELOOP => BadSocket::NotASocket(at.to_path_buf()),
            errno => BadSocket::Io { path: at.to_path_buf(), error: errno.into() },
        };
        let (Some(parent), Some(name)) = (full.parent(), full.file_name()) else {
            return Err(BadSocket::NotASocket(full.to_path_buf()));
        };
        // On macOS there is no O_PATH, and a directory that may only be searched cannot be opened.
        #[cfg(target_os = "linux")]
        let handle = OFlag::O_PATH;
        #[cfg(not(target_os = "linux"))]
        let handle = OFlag::O_RDONLY;
        let flags = handle | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let dir = fcntl::open(parent, flags, Mode::empty()).map_err(|errno| failed(errno, full))?;
        let dir_stat = stat::fstat(&dir).map_err(|errno| failed(errno, parent))?;
        #[cfg(target_os = "linux")]
        let pin =
            fcntl::openat(&dir, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
                .map_err(|errno| failed(errno, full))?;
        #[cfg(target_os = "linux")]
        let socket_stat = stat::fstat(&pin).map_err(|errno| failed(errno, full))?;
        #[cfg(not(target_os = "linux"))]
        let socket_stat = stat::fstatat(&dir, name, fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|errno| failed(errno, full))?;
        if socket_stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFSOCK.bits() {
            return Err(BadSocket::NotASocket(full.to_path_buf()));
        }
        if !is_shown_to_us_alone(&dir_stat, &socket_stat) {
            for (stat, at, others_write) in [(&dir_stat, parent, 0o022), (&socket_stat, full, others_write)] {
                if stat.st_uid != owner && stat.st_uid != 0 {
                    return Err(BadSocket::NotOurs { path: at.to_path_buf(), owner: stat.st_uid });
                }
                #[allow(clippy::useless_conversion)] // mode_t is 16 bits wide on macOS
                let mode = u32::from(stat.st_mode & 0o7777);
                if mode & others_write != 0 {
                    return Err(BadSocket::OthersMayWrite { path: at.to_path_buf(), mode });
                }
            }
        }
        Ok(CheckedSocket {
            path: path.clone(),
            inode: inode_of(&socket_stat),
            #[cfg(target_os = "linux")]
            pin,
        })
    }

    /// The path that was looked at.
    pub fn path(&self) -> &SocketPath {
        &self.path
    }

    /// Connects without waiting. The stream is non-blocking.
    ///
    /// # Errors
    /// [`BadSocket::Full`] may be tried again; the others may not.
    pub fn connect(&self) -> Result<UnixStream, BadSocket> {
        let path = || self.path.as_path().to_path_buf();
        let failed = |errno: Errno| match errno {
            Errno::EAGAIN => BadSocket::Full(path()),
            Errno::ECONNREFUSED => BadSocket::Refused(path()),
            Errno::ENOENT => BadSocket::Missing(path()),
            Errno::EACCES => BadSocket::Forbidden { path: path(), uid: super::dir::own_uid() },
            errno => BadSocket::Io { path: path(), error: errno.into() },
        };
        let fd = new_socket().map_err(failed)?;
        let connected = match self.pinned_address() {
            Some(address) => match socket::connect(fd.as_raw_fd(), &address) {
                // No /proc here: only the path itself is left.
                Err(Errno::ENOENT) if !Path::new("/proc/self/fd").exists() => self.connect_by_path(&fd),
                done => done,
            },
            None => self.connect_by_path(&fd),
        };
        connected.map_err(failed)?;
        Ok(UnixStream::from(fd))
    }

    /// The very inode that was looked at, by way of our own hold on it.
    fn pinned_address(&self) -> Option<UnixAddr> {
        #[cfg(target_os = "linux")]
        return UnixAddr::new(format!("/proc/self/fd/{}", self.pin.as_raw_fd()).as_str()).ok();
        #[cfg(not(target_os = "linux"))]
        None
    }

    /// Connects by path and looks again: a swap before or during it shows in the inode.
    fn connect_by_path(&self, fd: &OwnedFd) -> nix::Result<()> {
        socket::connect(fd.as_raw_fd(), &UnixAddr::new(self.path.as_path())?)?;
        match stat::lstat(self.path.as_path()) {
            Ok(stat) if inode_of(&stat) == self.inode => Ok(()),
            _ => Err(Errno::ENOENT),
        }
    }
}

/// Whether a socket that is not this user's was mounted into a directory of this user's alone, in a user namespace that has
/// no other user: as the socket of the machine's daemon is for a confined program. Nobody else could have put it
/// there, so that neither its owner, whom no number names there, nor its mode say anything.
fn is_shown_to_us_alone(dir: &stat::FileStat, socket: &stat::FileStat) -> bool {
    let is_root_s = socket.st_uid == 0 || socket.st_uid == overflow_uid();
    let is_private = dir.st_uid == super::dir::own_uid() && super::dir::permissions(dir) & 0o077 == 0;
    is_root_s && is_private && socket.st_dev != dir.st_dev && ids::is_alone()
}

/// Whether a path is a socket file that nobody listens on, whatever its mode. Says nothing of whose it
/// is.
///
/// # Errors
/// The kernel's answer; `ENOENT` if nothing is there.
pub fn is_dead(path: &SocketPath) -> io::Result<bool> {
    let kind = stat::lstat(path.as_path())?.st_mode & SFlag::S_IFMT.bits();
    // To connect to a plain file is refused in the same words.
    if kind != SFlag::S_IFSOCK.bits() {
        return Ok(false);
    }
    match socket::connect(new_socket()?.as_raw_fd(), &UnixAddr::new(path.as_path())?) {
        Ok(()) | Err(Errno::EAGAIN) => Ok(false),
        Err(Errno::ECONNREFUSED) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

/// Device and inode number, which together name a file.
#[allow(clippy::cast_sign_loss, clippy::unnecessary_cast)] // dev_t is signed on macOS
fn inode_of(stat: &stat::FileStat) -> (u64, u64) {
    (stat.st_dev as u64, stat.st_ino)
}

/// The device and inode of whatever has this path now, a link itself and not its target.
pub fn inode_at(path: &Path) -> Option<(u64, u64)> {
    stat::lstat(path).ok().map(|stat| inode_of(&stat))
}

#[cfg(target_os = "linux")]
fn new_socket() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)
}

#[cfg(not(target_os = "linux"))]
fn new_socket() -> nix::Result<OwnedFd> {
    let fd = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None)?;
    let as_nix = |error: io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    super::fds::set_cloexec(fd.as_fd()).map_err(as_nix)?;
    super::fds::set_nonblocking(fd.as_fd()).map_err(as_nix)?;
    Ok(fd)
}

/// Listens on a new socket file that is never, not for an instant, wider than 0600. The caller
/// owns the directory, and the lock under which a dead socket is unlinked first.
///
/// # Errors
/// `EADDRINUSE` if something is there; else the kernel's answer.
pub fn listen_private(path: &SocketPath) -> io::Result<UnixListener> {
    let fd = new_socket()?;
    // bind(2) gives the file the mode of the socket's own inode, less the umask, on Linux.
    #[cfg(target_os = "linux")]
    stat::fchmod(&fd, Mode::from_bits_truncate(0o600))?;
    socket::bind(fd.as_raw_fd(), &UnixAddr::new(path.as_path())?)?;
    // The umask may have taken the owner's bits; elsewhere the 0700 directory is what protects.
    stat::fchmodat(
        fcntl::AT_FDCWD,
        path.as_path(),
        Mode::from_bits_truncate(0o600),
        stat::FchmodatFlags::FollowSymlink,
    )?;
    let backlog = Backlog::new(BACKLOG).unwrap_or(Backlog::MAXCONN);
    socket::listen(&fd, backlog)?;
    Ok(UnixListener::from(fd))
}

/// What an adopted descriptor turned out to be, when it is no listener of ours.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAListener {
    /// No such descriptor is open.
    #[error("is not open")]
    Closed,
    /// A file, a pipe, a device.
    #[error("is not a socket")]
    NotASocket,
    /// An internet socket, or of some other family.
    #[error("is not a Unix socket")]
    WrongFamily,
    /// Datagrams or sequenced packets.
    #[error("is a Unix socket, but not of type stream (ListenStream= makes one)")]
    WrongType,
    /// A connection, as `Accept=yes` passes, or a socket nobody listens on.
    #[error("does not listen (is the socket unit set to Accept=yes?)")]
    NotListening,
    /// A name outside the file system, which has no permissions at all.
    #[error("has no path; abstract sockets have no permissions and are not used")]
    NoPath,
}

/// Examines a descriptor that somebody else opened: it must be a listening Unix stream socket with
/// a path.
///
/// # Errors
/// [`NotAListener`], naming what it is instead.
pub fn examine_listener(fd: BorrowedFd<'_>) -> Result<PathBuf, NotAListener> {
    let kind = stat::fstat(fd).map_err(|_| NotAListener::Closed)?.st_mode & SFlag::S_IFMT.bits();
    if kind != SFlag::S_IFSOCK.bits() {
        return Err(NotAListener::NotASocket);
    }
    let address = socket::getsockname::<socket::SockaddrStorage>(fd.as_raw_fd())
        .map_err(|_| NotAListener::WrongFamily)?;
    let Some(address) = address.as_unix_addr() else {
        return Err(NotAListener::WrongFamily);
    };
    if socket::getsockopt(&fd, sockopt::SockType) != Ok(SockType::Stream) {
        return Err(NotAListener::WrongType);
    }
    if socket::getsockopt(&fd, sockopt::AcceptConn) != Ok(true) {
        return Err(NotAListener::NotListening);
    }
    address.path().map(Path::to_path_buf).ok_or(NotAListener::NoPath)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::dir::own_uid;
    use std::os::fd::AsFd;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    fn fixture() -> (tempfile::TempDir, SocketPath) {
        let temp = tempfile::tempdir().unwrap();
        let path = SocketPath::new(temp.path().join("s")).unwrap();
        (temp, path)
    }

    #[test]
    fn a_private_listener_is_0600_and_can_be_reached() {
        let (_temp, path) = fixture();
        let listener = listen_private(&path).unwrap();
        assert_eq!(path.as_path().metadata().unwrap().mode() & 0o7777, 0o600);
        CheckedSocket::look(&path, own_uid()).unwrap().connect().unwrap();
        assert_eq!(examine_listener(listener.as_fd()), Ok(path.as_path().to_path_buf()));
    }

    #[test]
    fn a_swap_between_check_and_connect_still_reaches_the_checked_socket() {
        let (temp, path) = fixture();
        let listener = listen_private(&path).unwrap();
        let checked = CheckedSocket::look(&path, own_uid()).unwrap();
        std::fs::rename(path.as_path(), temp.path().join("aside")).unwrap();
        let impostor = listen_private(&path).unwrap();
        let connected = checked.connect();
        impostor.set_nonblocking(true).unwrap();
        assert!(impostor.accept().is_err(), "the impostor gets no connection");
        if cfg!(target_os = "linux") {
            connected.unwrap();
            listener.accept().unwrap();
        }
    }

    #[test]
    fn links_files_wide_modes_wide_directories_and_strangers_are_refused_before_connecting() {
        let (temp, path) = fixture();
        let look = || CheckedSocket::look(&path, own_uid());
        assert!(matches!(look(), Err(BadSocket::Missing(_))));
        std::fs::File::create(path.as_path()).unwrap();
        assert!(matches!(look(), Err(BadSocket::NotASocket(_))));
        std::fs::remove_file(path.as_path()).unwrap();
        let real = SocketPath::new(temp.path().join("real")).unwrap();
        let _listener = listen_private(&real).unwrap();
        symlink(real.as_path(), path.as_path()).unwrap();
        assert!(matches!(look(), Err(BadSocket::NotASocket(_))));
        let look = |owner| CheckedSocket::look(&real, owner);
        if own_uid() != 0 {
            assert!(matches!(look(own_uid() + 1), Err(BadSocket::NotOurs { .. })));
        }
        std::fs::set_permissions(real.as_path(), PermissionsExt::from_mode(0o602)).unwrap();
        assert!(matches!(look(own_uid()), Err(BadSocket::OthersMayWrite { mode: 0o602, .. })));
        std::fs::set_permissions(real.as_path(), PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::set_permissions(temp.path(), PermissionsExt::from_mode(0o720)).unwrap();
        assert!(matches!(look(own_uid()), Err(BadSocket::OthersMayWrite { mode: 0o720, .. })));
    }

    #[test]
    fn a_socket_for_all_is_taken_from_root_only() {
        let (_temp, path) = fixture();
        let _listener = listen_private(&path).unwrap();
        std::fs::set_permissions(path.as_path(), PermissionsExt::from_mode(0o666)).unwrap();
        assert!(matches!(CheckedSocket::look(&path, own_uid()), Err(BadSocket::OthersMayWrite { .. })));
        let looked = CheckedSocket::look_at_root_s(&path);
        if own_uid() == 0 {
            looked.unwrap().connect().unwrap();
        } else {
            assert!(matches!(looked, Err(BadSocket::NotOurs { .. })));
        }
    }

    #[test]
    fn a_socket_that_nobody_listens_on_is_told_from_one_that_is_missing() {
        let (_temp, path) = fixture();
        drop(listen_private(&path).unwrap());
        assert!(matches!(
            CheckedSocket::look(&path, own_uid()).unwrap().connect(),
            Err(BadSocket::Refused(_))
        ));
    }

    #[test]
    fn each_wrong_descriptor_is_named() {
        let (temp, path) = fixture();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(examine_listener(tcp.as_fd()), Err(NotAListener::WrongFamily));
        let datagram = std::os::unix::net::UnixDatagram::bind(temp.path().join("d")).unwrap();
        assert_eq!(examine_listener(datagram.as_fd()), Err(NotAListener::WrongType));
        let file = tempfile::tempfile().unwrap();
        assert_eq!(examine_listener(file.as_fd()), Err(NotAListener::NotASocket));
        let _listener = listen_private(&path).unwrap();
        let connected = UnixStream::connect(path.as_path()).unwrap();
        assert_eq!(examine_listener(connected.as_fd()), Err(NotAListener::NotListening));
        #[cfg(target_os = "linux")]
        {
            use std::os::linux::net::SocketAddrExt;
            let name = format!("authsock-test-{}", std::process::id());
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
            let listener = UnixListener::bind_addr(&address).unwrap();
            assert_eq!(examine_listener(listener.as_fd()), Err(NotAListener::NoPath));
        }
    }
}
