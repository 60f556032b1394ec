//! Private directories and files: opened without following links, examined by descriptor, written so that no reader ever sees half.
//!
//! Guarantees: a file made here is never visible with a wider mode than 0600 nor before its
//! content is whole; a file read here is regular, has one of the owners asked for, and nobody else
//! may write it or the directory it lies in. Nothing is repaired: what is wrong is said.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{self, AtFlags, OFlag};
use nix::sys::stat::{self, FileStat, Mode, SFlag};
use nix::unistd;

use super::ids;
use super::peer::overflow_uid;

/// Why a file or directory is not to be trusted, or cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}", path = path.display())]
pub struct Unusable {
    /// The path that was looked at.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a path, each with its remedy.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// Nothing is there.
    #[error("does not exist")]
    Missing,
    /// A symbolic link; it could lead anywhere.
    #[error("is a symbolic link; replace it by the real thing")]
    Link,
    /// Something else than what was expected.
    #[error("is not a {expected}; move it away")]
    NotA {
        /// What was expected, in words.
        expected: &'static str,
    },
    /// It belongs to another user.
    #[error("belongs to uid {owner}, not to uid {expected}: use one of your own")]
    NotOurs {
        /// Who owns it.
        owner: u32,
        /// Who should.
        expected: u32,
    },
    /// Others may read or write it.
    #[error(
        "has mode {mode:04o}, wider than {widest:04o}; others may have seen or changed it: chmod {widest:o} it, and rotate the token if it holds one"
    )]
    TooWide {
        /// Its permission bits.
        mode: u32,
        /// The widest that is accepted.
        widest: u32,
    },
    /// Others may write a directory, and so swap what is in it.
    #[error("may be written by others (mode {mode:04o}); chmod go-w it")]
    OthersMayWrite {
        /// Its permission bits.
        mode: u32,
    },
    /// The file is larger than anything it should hold.
    #[error("is larger than {limit} bytes; it is not what it should be")]
    TooLarge {
        /// The most bytes it may have.
        limit: usize,
    },
    /// The kernel said no.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was tried, in words.
        doing: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Unusable {
    pub(super) fn new(path: &Path, problem: Problem) -> Unusable {
        Unusable { path: path.to_path_buf(), problem }
    }

    pub(super) fn io(path: &Path, doing: &'static str, error: impl Into<io::Error>) -> Unusable {
        Unusable::new(path, Problem::Io { doing, source: error.into() })
    }

    /// Whether there is simply nothing at the path.
    pub fn is_missing(&self) -> bool {
        matches!(self.problem, Problem::Missing)
    }
}

/// The user id that this process acts with.
pub fn own_uid() -> u32 {
    unistd::geteuid().as_raw()
}

/// Whether this process runs with more rights than the user who started it (set-user-ID,
/// set-group-ID or file capabilities); its environment is then a stranger's.
pub fn runs_with_foreign_environment() -> bool {
    #[cfg(target_os = "linux")]
    // SAFETY: getauxval(3) reads a constant of this process and has no preconditions.
    return unsafe { libc::getauxval(libc::AT_SECURE) } != 0;
    #[cfg(not(target_os = "linux"))]
    // SAFETY: issetugid(2) has no arguments and cannot fail.
    return unsafe { libc::issetugid() } != 0;
}

/// The platform's own per-user temporary directory, where it has one: asked of confstr(3), since
/// `$TMPDIR` need not be true.
pub fn platform_temp() -> Option<PathBuf> {
    #[cfg(target_os = "macos")]
    {
        use std::os::unix::ffi::OsStringExt;
        let mut buffer = vec![0u8; 1024];
        // SAFETY: the buffer is writable for the length that is passed.
        let length = unsafe {
            libc::confstr(libc::_CS_DARWIN_USER_TEMP_DIR, buffer.as_mut_ptr().cast(), buffer.len())
        };
        if length == 0 || length > buffer.len() {
            return None;
        }
        buffer.truncate(length - 1);
        Some(std::ffi::OsString::from_vec(buffer).into())
    }
    #[cfg(not(target_os = "macos"))]
    None
}

/// Whether `path` is a directory of this user's own that nobody else can enter (0700).
pub fn is_private(path: &Path) -> bool {
    stat::lstat(path).is_ok_and(|stat| {
        file_type(&stat) == SFlag::S_IFDIR && stat.st_uid == own_uid() && permissions(&stat) & 0o077 == 0
    })
}

pub(super) fn file_type(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

pub(super) fn permissions(stat: &FileStat) -> u32 {
    #[allow(clippy::useless_conversion)] // mode_t is 16 bits wide on macOS
    u32::from(stat.st_mode & 0o7777)
}

/// A directory that only its owner (or root) can change, held open.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

/// What [`Dir::create_once`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Created {
    /// The file is new and holds our bytes.
    Ours,
    /// Somebody else's was there first; nothing was changed.
    Theirs,
}

impl Dir {
    /// Opens an existing directory that belongs to `owner` and that nobody else may write.
    ///
    /// # Errors
    /// [`Unusable`], naming the path and the remedy.
    pub fn open(path: &Path, owner: u32) -> Result<Dir, Unusable> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = fcntl::open(path, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::ENOENT => Unusable::new(path, Problem::Missing),
            Errno::ELOOP => Unusable::new(path, Problem::Link),
            Errno::ENOTDIR => match stat::lstat(path) {
                Ok(stat) if file_type(&stat) == SFlag::S_IFLNK => Unusable::new(path, Problem::Link),
                _ => Unusable::new(path, Problem::NotA { expected: "directory" }),
            },
            errno => Unusable::io(path, "open", errno),
        })?;
        let stat = stat::fstat(&fd).map_err(|errno| Unusable::io(path, "examine", errno))?;
        if stat.st_uid != owner {
            return Err(Unusable::new(path, Problem::NotOurs { owner: stat.st_uid, expected: owner }));
        }
        let mode = permissions(&stat);
        if mode & 0o022 != 0 {
            return Err(Unusable::new(path, Problem::OthersMayWrite { mode }));
        }
        // Who may write the parent may put another directory in this one's place.
        if let Some(parent) = path.parent() {
            refuse_swappable(&stat, parent, owner)?;
        }
        Ok(Dir { fd, path: path.to_path_buf() })
    }

    /// Opens a directory as [`Dir::open`] does; what is missing of the path is made with mode 0700.
    ///
    /// # Errors
    /// [`Unusable`], naming the path and the remedy.
    pub fn open_or_create(path: &Path, owner: u32) -> Result<Dir, Unusable> {
        let mut so_far = PathBuf::new();
        for part in path.components() {
            so_far.push(part);
            if !matches!(part, Component::Normal(_)) {
                continue;
            }
            match unistd::mkdir(&so_far, Mode::S_IRWXU) {
                // The umask can only have taken bits away; the directory is ours and still empty.
                Ok(()) => stat::fchmodat(
                    fcntl::AT_FDCWD,
                    &so_far,
                    Mode::S_IRWXU,
                    stat::FchmodatFlags::FollowSymlink,
                )
                .map_err(|errno| Unusable::io(&so_far, "set the mode of", errno))?,
                Err(Errno::EEXIST) => {}
                // Parents that exist but may not be written (EACCES, EROFS) are no fault yet.
                Err(_) if so_far.symlink_metadata().is_ok() => {}
                Err(errno) => return Err(Unusable::io(&so_far, "create", errno)),
            }
        }
        Dir::open(path, owner)
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Reads a whole file of at most `limit` bytes that belongs to this directory's user and that
    /// nobody else may read or write (0600 or narrower).
    ///
    /// # Errors
    /// [`Unusable`]; [`Problem::Missing`] when there is no such file.
    pub fn read_private(&self, name: &str, owner: u32, limit: usize) -> Result<Vec<u8>, Unusable> {
        let flags =
            OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let path = self.join(name);
        let opened = fcntl::openat(self.fd.as_fd(), name, flags, Mode::empty());
        read_examined(opened, &path, &[owner], limit)
    }

    /// Makes a file if there is none: never half written, never with a wider mode than 0600.
    ///
    /// # Errors
    /// [`Unusable`]; nothing is left behind then.
    pub fn create_once(&self, name: &str, bytes: &[u8]) -> Result<Created, Unusable> {
        let path = self.join(name);
        let temporary = Temporary::write(self, bytes)?;
        match temporary.link(self, OsStr::new(name)) {
            Ok(()) => {
                self.sync(&path)?;
                Ok(Created::Ours)
            }
            Err(Errno::EEXIST) => Ok(Created::Theirs),
            Err(errno) => Err(Unusable::io(&path, "create", errno)),
        }
    }

    /// Puts a whole new file in the place of whatever has this name.
    ///
    /// # Errors
    /// [`Unusable`]; the old file is then untouched.
    pub fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), Unusable> {
        let path = self.join(name);
        let temporary = Temporary::write_named(self, bytes)?;
        temporary.rename(self, name).map_err(|errno| Unusable::io(&path, "replace", errno))?;
        self.sync(&path)
    }

    /// As [`Dir::replace`], for a file that is no secret: it has this mode before it has its name.
    ///
    /// # Errors
    /// [`Unusable`]; the old file is then untouched.
    pub fn replace_with_mode(&self, name: &str, bytes: &[u8], mode: u32) -> Result<(), Unusable> {
        let path = self.join(name);
        let temporary = Temporary::write_named(self, bytes)?;
        std::fs::File::set_permissions(&temporary.file, std::os::unix::fs::PermissionsExt::from_mode(mode))
            .map_err(|error| Unusable::io(&path, "set the mode of", error))?;
        temporary.rename(self, name).map_err(|errno| Unusable::io(&path, "replace", errno))?;
        self.sync(&path)
    }

    /// As [`Dir::replace`], for a file that belongs to another user: it is that user's, and whole,
    /// before it has its name.
    ///
    /// # Errors
    /// [`Unusable`]; `EPERM` without CAP_CHOWN.
    pub fn replace_for(&self, name: &str, bytes: &[u8], owner: u32) -> Result<(), Unusable> {
        let path = self.join(name);
        let temporary = Temporary::write_named(self, bytes)?;
        unistd::fchown(&temporary.file, Some(owner.into()), None)
            .map_err(|errno| Unusable::io(&path, "give away", errno))?;
        temporary.rename(self, name).map_err(|errno| Unusable::io(&path, "replace", errno))?;
        self.sync(&path)
    }

    /// Opens a directory below this one, and makes it if it is missing, through which others may pass
    /// without seeing what is in it (0711).
    ///
    /// # Errors
    /// [`Unusable`].
    pub fn open_or_create_passage(&self, name: &str) -> Result<Dir, Unusable> {
        const PASSAGE: libc::mode_t = 0o711;
        let dir = Dir::open_or_create(&self.join(name), own_uid())?;
        stat::fchmod(&dir.fd, Mode::from_bits_truncate(PASSAGE))
            .map_err(|errno| Unusable::io(&dir.path, "set the mode of", errno))?;
        Ok(dir)
    }

    /// Whether anything has this name here.
    pub fn has(&self, name: &str) -> bool {
        stat::fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
    }

    /// The names of what lies here, in no order.
    ///
    /// # Errors
    /// [`Unusable`].
    pub fn names(&self) -> Result<Vec<String>, Unusable> {
        let failed = |error: io::Error| Unusable::io(&self.path, "list", error);
        let entries = std::fs::read_dir(&self.path).map_err(failed)?;
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect::<io::Result<_>>().map_err(failed)
    }

    /// Gives a file of this directory the name of another, which is replaced.
    ///
    /// # Errors
    /// [`Unusable`].
    pub fn rename(&self, from: &str, to: &str) -> Result<(), Unusable> {
        fcntl::renameat(self.fd.as_fd(), from, self.fd.as_fd(), to)
            .map_err(|errno| Unusable::io(&self.join(to), "replace", errno))?;
        self.sync(&self.join(to))
    }

    /// Removes a file; that it was gone already is no error.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match unistd::unlinkat(&self.fd, name, unistd::UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Removes what a process that was killed had begun to write. Only for who holds the lock that
    /// keeps all other writers out.
    ///
    /// # Errors
    /// [`Unusable`].
    pub fn sweep_unfinished(&self) -> Result<(), Unusable> {
        for name in self.names()?.iter().filter(|name| name.starts_with(UNFINISHED)) {
            self.remove(name).map_err(|error| Unusable::io(&self.join(name), "remove", error))?;
        }
        Ok(())
    }

    /// Opens (or makes, 0600) a file that is only there to be locked, and tries to lock it.
    ///
    /// # Errors
    /// [`Unusable`] if the file cannot be had. A lock that somebody else holds is `Ok(None)`.
    pub fn try_lock(&self, name: &str) -> Result<Option<Lock>, Unusable> {
        let file = self.open_lock(name)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock { file })),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(error)) => Err(Unusable::io(&self.join(name), "lock", error)),
        }
    }

    /// Waits for a lock, however long that takes.
    ///
    /// # Errors
    /// [`Unusable`] if the file cannot be had.
    pub fn lock(&self, name: &str) -> Result<Lock, Unusable> {
        let file = self.open_lock(name)?;
        file.lock().map_err(|error| Unusable::io(&self.join(name), "lock", error))?;
        Ok(Lock { file })
    }

    /// Tries to lock the directory itself, which needs no file in it.
    ///
    /// # Errors
    /// [`Unusable`]. A lock that somebody else holds is `Ok(None)`.
    pub fn try_lock_itself(&self) -> Result<Option<Lock>, Unusable> {
        // flock(2) goes with the open file: it must not be this directory's, which may live longer than the lock.
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = fcntl::openat(self.fd.as_fd(), ".", flags, Mode::empty())
            .map_err(|errno| Unusable::io(&self.path, "open", errno))?;
        let file = File::from(fd);
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock { file })),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(error)) => Err(Unusable::io(&self.path, "lock", error)),
        }
    }

    fn open_lock(&self, name: &str) -> Result<File, Unusable> {
        let path = self.join(name);
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let fd = fcntl::openat(self.fd.as_fd(), name, flags, Mode::from_bits_truncate(0o600)).map_err(
            |errno| match errno {
                Errno::ELOOP => Unusable::new(&path, Problem::Link),
                errno => Unusable::io(&path, "open the lock", errno),
            },
        )?;
        Ok(File::from(fd))
    }

    fn sync(&self, path: &Path) -> Result<(), Unusable> {
        match unistd::fsync(&self.fd) {
            // Some file systems have nothing to write for a directory.
            Ok(()) | Err(Errno::EINVAL) => Ok(()),
            Err(errno) => Err(Unusable::io(path, "write to disk", errno)),
        }
    }
}

/// Opens a regular file to be read, whosever it is: no link is followed, and nothing is waited for.
///
/// # Errors
/// [`Unusable`]; [`Problem::Missing`] when there is no such file.
pub fn open_regular(path: &Path) -> Result<File, Unusable> {
    let (fd, _) = regular(fcntl::open(path, OPEN_TO_READ, Mode::empty()), path)?;
    Ok(File::from(fd))
}

/// How a file is opened that may be anything.
const OPEN_TO_READ: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_NONBLOCK)
    .union(OFlag::O_NOCTTY)
    .union(OFlag::O_CLOEXEC);

/// What was opened, if it is a regular file.
fn regular(opened: nix::Result<OwnedFd>, path: &Path) -> Result<(OwnedFd, FileStat), Unusable> {
    let fd = opened.map_err(|errno| match errno {
        Errno::ENOENT => Unusable::new(path, Problem::Missing),
        Errno::ELOOP => Unusable::new(path, Problem::Link),
        Errno::ENXIO => Unusable::new(path, Problem::NotA { expected: "regular file" }),
        errno => Unusable::io(path, "read", errno),
    })?;
    let stat = stat::fstat(&fd).map_err(|errno| Unusable::io(path, "examine", errno))?;
    if file_type(&stat) != SFlag::S_IFREG {
        return Err(Unusable::new(path, Problem::NotA { expected: "regular file" }));
    }
    Ok((fd, stat))
}

/// A log file that is only ever added to: 0600, in a directory of ours. One that has grown beyond
/// `limit` bytes makes room for a new one and stays as `NAME.old`.
///
/// # Errors
/// [`Unusable`].
pub fn open_log(path: &Path, limit: u64) -> Result<File, Unusable> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(OsStr::to_str)) else {
        return Err(Unusable::new(path, Problem::NotA { expected: "file" }));
    };
    let dir = Dir::open_or_create(parent, own_uid())?;
    if path.symlink_metadata().is_ok_and(|meta| meta.len() > limit) {
        let old = format!("{name}.old");
        fcntl::renameat(dir.fd.as_fd(), name, dir.fd.as_fd(), old.as_str())
            .map_err(|errno| Unusable::io(path, "set aside", errno))?;
    }
    let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = fcntl::openat(dir.fd.as_fd(), name, flags | OFlag::O_NONBLOCK, Mode::from_bits_truncate(0o600))
        .map_err(|errno| Unusable::io(path, "open", errno))?;
    Ok(File::from(fd))
}

/// Reads a configuration file of at most `limit` bytes, which may be a link (people keep theirs
/// elsewhere): its target must be ours or root's, and writable by nobody else.
///
/// # Errors
/// [`Unusable`]; [`Problem::Missing`] when there is no such file.
pub fn read_configuration(path: &Path, limit: usize) -> Result<String, Unusable> {
    let fd = fcntl::open(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| match errno {
            Errno::ENOENT => Unusable::new(path, Problem::Missing),
            errno => Unusable::io(path, "read", errno),
        })?;
    let stat = stat::fstat(&fd).map_err(|errno| Unusable::io(path, "examine", errno))?;
    if file_type(&stat) != SFlag::S_IFREG {
        return Err(Unusable::new(path, Problem::NotA { expected: "regular file" }));
    }
    refuse_strangers(path, &stat, own_uid(), 0o022)?;
    let mut text = String::new();
    File::from(fd)
        .take(limit as u64 + 1)
        .read_to_string(&mut text)
        .map_err(|error| Unusable::io(path, "read", error))?;
    if text.len() > limit {
        return Err(Unusable::new(path, Problem::TooLarge { limit }));
    }
    Ok(text)
}

/// Lists a directory of configuration files, which may be a link: it must be ours or root's, and
/// writable by nobody else.
///
/// # Errors
/// [`Unusable`]; [`Problem::Missing`] when there is no such directory.
pub fn list_configuration(path: &Path) -> Result<Vec<PathBuf>, Unusable> {
    let stat = stat::stat(path).map_err(|errno| match errno {
        Errno::ENOENT => Unusable::new(path, Problem::Missing),
        errno => Unusable::io(path, "examine", errno),
    })?;
    refuse_strangers(path, &stat, own_uid(), 0o022)?;
    let entries = std::fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let entries = entries.map_err(|error| Unusable::io(path, "list", error))?;
    Ok(entries.into_iter().map(|entry| entry.path()).collect())
}

/// Examines a directory of `owner` that this user may only pass through: nobody else may write it.
///
/// # Errors
/// [`Unusable`], naming the path and the remedy.
pub fn examine_passage(path: &Path, owner: u32) -> Result<(), Unusable> {
    let stat = stat::lstat(path).map_err(|errno| match errno {
        Errno::ENOENT => Unusable::new(path, Problem::Missing),
        errno => Unusable::io(path, "examine", errno),
    })?;
    if file_type(&stat) != SFlag::S_IFDIR {
        return Err(Unusable::new(path, Problem::NotA { expected: "directory" }));
    }
    refuse_strangers(path, &stat, owner, 0o022)
}

/// Whom a lock file names as its holder; for messages only. What lies there may be anybody's: a pipe is not
/// waited for, and nothing is read that has no end.
pub fn noted_holder(path: &Path) -> Option<u32> {
    /// A pid and a line end, with room to spare.
    const NOTE_MAX: u64 = 32;
    let mut note = String::new();
    open_regular(path).ok()?.take(NOTE_MAX).read_to_string(&mut note).ok()?;
    note.trim().parse().ok()
}

/// A lock that ends with this value, or with the process.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Notes who holds the lock, for people; nobody relies on it.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn note_holder(&mut self, pid: u32) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.write_all(format!("{pid}\n").as_bytes())
    }
}

/// Refuses a directory in which somebody else than `owner` and root could swap what lies there;
/// in a sticky one (/tmp) nobody can.
fn refuse_writable_by_others(path: &Path, owner: u32) -> Result<(), Unusable> {
    let stat = stat::stat(path).map_err(|errno| Unusable::io(path, "examine", errno))?;
    let is_sticky = permissions(&stat) & 0o1000 != 0;
    refuse_strangers(path, &stat, owner, if is_sticky { 0 } else { 0o022 })
}

/// As [`refuse_writable_by_others`], of the parent of a directory that was examined. A user namespace that has
/// one user cannot name root, whose /run/user and /tmp belong to nobody there: such a parent is root's as far as can
/// be told if this directory was mounted over what had its name, which only this user did, and others may not write it. So
/// is /run/user itself, which nobody but root makes.
fn refuse_swappable(dir: &FileStat, parent: &Path, owner: u32) -> Result<(), Unusable> {
    let refused = refuse_writable_by_others(parent, owner);
    if let Err(Unusable { problem: Problem::NotOurs { owner: nobody, .. }, .. }) = refused
        && ids::is_alone()
        && nobody == overflow_uid()
        && (parent == Path::new("/run/user")
            || stat::stat(parent).is_ok_and(|parent| parent.st_dev != dir.st_dev))
    {
        return refuse_writable_by_others(parent, nobody);
    }
    refused
}

/// Refuses what neither `owner` nor root owns, and what has any of these permission bits for others.
pub(super) fn refuse_strangers(
    path: &Path,
    stat: &FileStat,
    owner: u32,
    others: u32,
) -> Result<(), Unusable> {
    if stat.st_uid != owner && stat.st_uid != 0 {
        return Err(Unusable::new(path, Problem::NotOurs { owner: stat.st_uid, expected: owner }));
    }
    let mode = permissions(stat);
    if mode & others != 0 {
        return Err(Unusable::new(path, Problem::OthersMayWrite { mode }));
    }
    Ok(())
}

/// Reads a file wherever it lies, with the suspicion of [`Dir::read_private`]; nobody else may be
/// able to swap it in the directory it lies in. `owners` may name several.
///
/// # Errors
/// [`Unusable`]; [`Problem::Missing`] when there is no such file.
pub fn read_private_path(path: &Path, owners: &[u32], limit: usize) -> Result<Vec<u8>, Unusable> {
    if let (Some(parent), Some(owner)) = (path.parent().filter(|parent| parent.exists()), owners.first()) {
        refuse_writable_by_others(parent, *owner)?;
    }
    read_examined(fcntl::open(path, OPEN_TO_READ, Mode::empty()), path, owners, limit)
}

fn read_examined(
    opened: nix::Result<OwnedFd>,
    path: &Path,
    owners: &[u32],
    limit: usize,
) -> Result<Vec<u8>, Unusable> {
    let (fd, stat) = regular(opened, path)?;
    if !owners.contains(&stat.st_uid) {
        let expected = owners.first().copied().unwrap_or_else(own_uid);
        return Err(Unusable::new(path, Problem::NotOurs { owner: stat.st_uid, expected }));
    }
    let mode = permissions(&stat);
    if mode & 0o177 != 0 {
        return Err(Unusable::new(path, Problem::TooWide { mode, widest: 0o600 }));
    }
    let mut bytes = Vec::with_capacity(limit + 1);
    File::from(fd)
        .take(limit as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Unusable::io(path, "read", error))?;
    if bytes.len() > limit {
        return Err(Unusable::new(path, Problem::TooLarge { limit }));
    }
    Ok(bytes)
}

/// How the passing name of a file begins that has not got its own yet.
const UNFINISHED: &str = ".new-";

/// A file with its content whole but without its name yet.
struct Temporary {
    file: File,
    /// The name it has until it gets the real one; a nameless file (O_TMPFILE) has none and
    /// vanishes by itself.
    name: Option<String>,
    dir: OwnedFd,
}

impl Temporary {
    /// Writes a nameless file where the file system can, else one with a passing name.
    fn write(dir: &Dir, bytes: &[u8]) -> Result<Temporary, Unusable> {
        #[cfg(target_os = "linux")]
        {
            let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
            match fcntl::openat(dir.fd.as_fd(), ".", flags, Mode::from_bits_truncate(0o600)) {
                Ok(fd) if Path::new("/proc/self/fd").exists() => {
                    return Temporary { file: File::from(fd), name: None, dir: dir.clone_fd()? }
                        .fill(dir, bytes);
                }
                // A file system or a container without O_TMPFILE or without /proc.
                Ok(_) | Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL) => {}
                Err(errno) => return Err(Unusable::io(&dir.path, "create a file in", errno)),
            }
        }
        Temporary::write_named(dir, bytes)
    }

    fn write_named(dir: &Dir, bytes: &[u8]) -> Result<Temporary, Unusable> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let (name, fd) = loop {
            // A process of another pid namespace may have our pid, and the same name in mind.
            let name =
                format!("{UNFINISHED}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            match fcntl::openat(dir.fd.as_fd(), name.as_str(), flags, Mode::from_bits_truncate(0o600)) {
                Ok(fd) => break (name, fd),
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(Unusable::io(&dir.path, "create a file in", errno)),
            }
        };
        Temporary { file: File::from(fd), name: Some(name), dir: dir.clone_fd()? }.fill(dir, bytes)
    }

    fn fill(mut self, dir: &Dir, bytes: &[u8]) -> Result<Temporary, Unusable> {
        // The umask may have taken the owner's own bits away.
        stat::fchmod(&self.file, Mode::from_bits_truncate(0o600))
            .map_err(|errno| Unusable::io(&dir.path, "set the mode of a file in", errno))?;
        self.file
            .write_all(bytes)
            .and_then(|()| self.file.sync_all())
            .map_err(|error| Unusable::io(&dir.path, "write a file in", error))?;
        Ok(self)
    }

    /// Gives the file its name if that is free.
    fn link(&self, dir: &Dir, to: &OsStr) -> nix::Result<()> {
        match &self.name {
            Some(name) => unistd::linkat(&dir.fd, name.as_str(), &dir.fd, to, AtFlags::empty()),
            None => {
                let magic = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                unistd::linkat(fcntl::AT_FDCWD, magic.as_str(), &dir.fd, to, AtFlags::AT_SYMLINK_FOLLOW)
            }
        }
    }

    fn rename(mut self, dir: &Dir, to: &str) -> nix::Result<()> {
        if let Some(name) = &self.name {
            fcntl::renameat(dir.fd.as_fd(), name.as_str(), dir.fd.as_fd(), to)?;
            self.name = None;
        }
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _ = unistd::unlinkat(&self.dir, name.as_str(), unistd::UnlinkatFlags::NoRemoveDir);
        }
    }
}

impl Dir {
    fn clone_fd(&self) -> Result<OwnedFd, Unusable> {
        self.fd.try_clone().map_err(|error| Unusable::io(&self.path, "hold", error))
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    fn fixture() -> (tempfile::TempDir, Dir) {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open_or_create(&temp.path().join("a/b"), own_uid()).unwrap();
        (temp, dir)
    }

    fn problem_of(result: Result<Vec<u8>, Unusable>) -> Problem {
        result.unwrap_err().problem
    }

    #[test]
    fn a_lock_s_note_is_read_from_a_regular_file_alone_and_no_further_than_a_pid_goes() {
        let (_temp, dir) = fixture();
        let at = |name: &str| dir.path().join(name);
        dir.replace("note", b"4711\n").unwrap();
        assert_eq!(noted_holder(&at("note")), Some(4711));
        // Each of these would be waited for, or read for ever.
        unistd::mkfifo(&at("fifo"), Mode::S_IRUSR).unwrap();
        symlink("/dev/zero", at("zero")).unwrap();
        std::fs::File::create(at("long")).unwrap().set_len(1 << 40).unwrap();
        for name in ["fifo", "zero", "long", "missing"] {
            assert_eq!(noted_holder(&at(name)), None, "{name}");
        }
    }

    #[test]
    fn missing_parents_are_made_private() {
        let (temp, _dir) = fixture();
        for part in ["a", "a/b"] {
            assert_eq!(temp.path().join(part).metadata().unwrap().mode() & 0o7777, 0o700);
        }
    }

    #[test]
    fn a_directory_that_others_may_write_or_that_is_a_link_or_a_file_is_refused() {
        let (temp, dir) = fixture();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o770)).unwrap();
        assert!(matches!(
            Dir::open(dir.path(), own_uid()).unwrap_err().problem,
            Problem::OthersMayWrite { mode: 0o770 }
        ));
        let link = temp.path().join("link");
        symlink(temp.path().join("a"), &link).unwrap();
        assert!(matches!(Dir::open(&link, own_uid()).unwrap_err().problem, Problem::Link));
        let file = temp.path().join("file");
        std::fs::File::create(&file).unwrap();
        assert!(matches!(Dir::open(&file, own_uid()).unwrap_err().problem, Problem::NotA { .. }));
        assert!(Dir::open(&temp.path().join("none"), own_uid()).unwrap_err().is_missing());
    }

    #[test]
    fn what_lies_there_is_listed_and_what_is_unfinished_is_swept_away() {
        let (_temp, dir) = fixture();
        for name in ["one", ".new-1-2", ".newer"] {
            dir.replace(name, b"x").unwrap();
        }
        let list = || {
            let mut names = dir.names().unwrap();
            names.sort();
            names
        };
        assert_eq!(list(), [".new-1-2", ".newer", "one"]);
        dir.sweep_unfinished().unwrap();
        assert_eq!(list(), [".newer", "one"]);
    }

    #[test]
    fn a_file_is_created_once_and_the_second_creator_changes_nothing() {
        let (_temp, dir) = fixture();
        assert_eq!(dir.create_once("t", b"first").unwrap(), Created::Ours);
        assert_eq!(dir.create_once("t", b"second").unwrap(), Created::Theirs);
        assert_eq!(dir.read_private("t", own_uid(), 16).unwrap(), b"first");
        assert_eq!(dir.path().join("t").metadata().unwrap().mode() & 0o7777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn the_named_way_to_create_a_file_leaves_nothing_behind_either() {
        let (_temp, dir) = fixture();
        for (bytes, expected) in [(b"one", Ok(())), (b"two", Err(Errno::EEXIST))] {
            let temporary = Temporary::write_named(&dir, bytes).unwrap();
            assert_eq!(temporary.link(&dir, OsStr::new("t")), expected);
        }
        assert_eq!(dir.read_private("t", own_uid(), 16).unwrap(), b"one");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn replacing_changes_the_inode_and_keeps_the_mode() {
        let (_temp, dir) = fixture();
        dir.replace("t", b"one").unwrap();
        let before = dir.path().join("t").metadata().unwrap().ino();
        let _keep = std::fs::File::open(dir.path().join("t")).unwrap();
        dir.replace("t", b"two").unwrap();
        let after = dir.path().join("t").metadata().unwrap();
        assert_ne!(before, after.ino());
        assert_eq!(after.mode() & 0o7777, 0o600);
        assert_eq!(dir.read_private("t", own_uid(), 16).unwrap(), b"two");
    }

    #[test]
    fn a_public_file_has_its_mode_whatever_was_there_before() {
        let (_temp, dir) = fixture();
        dir.replace("u", b"one").unwrap();
        dir.replace_with_mode("u", b"two", 0o644).unwrap();
        assert_eq!(dir.path().join("u").metadata().unwrap().mode() & 0o7777, 0o644);
        assert_eq!(std::fs::read(dir.path().join("u")).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn links_pipes_directories_wide_modes_and_large_files_are_refused() {
        let (_temp, dir) = fixture();
        let at = |name: &str| dir.path().join(name);
        let _ = dir.create_once("real", b"x").unwrap();
        symlink(at("real"), at("link")).unwrap();
        assert!(matches!(problem_of(dir.read_private("link", own_uid(), 9)), Problem::Link));
        unistd::mkfifo(&at("fifo"), Mode::S_IRUSR).unwrap();
        assert!(matches!(problem_of(dir.read_private("fifo", own_uid(), 9)), Problem::NotA { .. }));
        std::fs::create_dir(at("dir")).unwrap();
        assert!(matches!(problem_of(dir.read_private("dir", own_uid(), 9)), Problem::NotA { .. }));
        let _socket = std::os::unix::net::UnixListener::bind(at("sock")).unwrap();
        assert!(matches!(problem_of(dir.read_private("sock", own_uid(), 9)), Problem::NotA { .. }));
        for mode in [0o601, 0o604, 0o620, 0o640, 0o700] {
            std::fs::set_permissions(at("real"), PermissionsExt::from_mode(mode)).unwrap();
            assert!(
                matches!(problem_of(dir.read_private("real", own_uid(), 9)), Problem::TooWide { .. }),
                "{mode:o}"
            );
        }
        std::fs::set_permissions(at("real"), PermissionsExt::from_mode(0o400)).unwrap();
        assert_eq!(dir.read_private("real", own_uid(), 1).unwrap(), b"x");
        assert!(matches!(problem_of(dir.read_private("real", own_uid(), 0)), Problem::TooLarge { limit: 0 }));
        assert!(matches!(problem_of(dir.read_private("real", own_uid() + 1, 9)), Problem::NotOurs { .. }));
    }

    #[test]
    fn a_lock_has_one_holder_and_ends_with_it() {
        let (_temp, dir) = fixture();
        let first = dir.try_lock("lock").unwrap();
        assert!(first.is_some());
        assert!(dir.try_lock("lock").unwrap().is_none());
        drop(first);
        // A program that another test is just starting has it too until its exec.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while dir.try_lock("lock").unwrap().is_none() {
            assert!(std::time::Instant::now() < end, "it is still held");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}
