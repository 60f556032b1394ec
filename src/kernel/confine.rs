//! A program in a user and mount namespace of its own: what is hidden from it there, what it is shown, and that it keeps no right to change either.
//!
//! Everything happens between fork and exec, in steps that are laid out before: what each does can be read without
//! doing it, and the one that fails can be named. See user_namespaces(7), mount_namespaces(7), capabilities(7),
//! landlock(7) and seccomp(2).

use std::fmt;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use landlock::{
    ABI, Access, CompatLevel, Compatible, RestrictSelfError, Ruleset, RulesetAttr, RulesetCreated,
    RulesetError, Scope,
};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FcntlArg, FdFlag, OFlag, fcntl};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, UnixAddr, getpeername, getsockname};
use nix::sys::stat::{self, Mode, SFlag};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{self, AccessFlags};
use zeroize::Zeroizing;

use super::mounts::{Mounts, hold, inode_of, refuse_closed_by_own};

/// How many bytes of the private runtime directory there are for each file in it that it can hold.
const BYTES_PER_FILE: u64 = 4096;
/// How many bytes a file must have fewer than to be copied for the program: a token's has 65.
const COPY_MAX: usize = 4096;
/// What is laid over a hidden directory: its root and nothing else.
const COVER_SIZE: &str = "size=4k,nr_inodes=1";
/// As [`COVER_SIZE`], with room for the way to what is shown below it.
const PASSAGE_SIZE: &str = "size=64k,nr_inodes=64";
/// What is laid over a hidden file: there is no getting anything out of it, nor connecting to it.
const NOTHING: &str = "/dev/null";
/// How many further namespaces there may be (namespaces(7), user.max_*); what is written here by who is in a user
/// namespace holds for it and what is below it, and only with CAP_SYS_RESOURCE there can it be changed.
const CLOSED: [&str; 2] = ["/proc/sys/user/max_user_namespaces", "/proc/sys/user/max_mnt_namespaces"];

/// What a program is to see of the files that lead to tokens and to other programs.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The directory that becomes private: empty but for what is shown in it.
    runtime: PathBuf,
    /// How many bytes the program may put there.
    runtime_bytes: u64,
    /// What is covered, outermost first; none lies below another or below the runtime directory.
    hidden: Vec<Hidden>,
    /// Directories on the way to what is covered that this user could give another name, outermost first.
    moved: Vec<PathBuf>,
    /// Whether a further namespace could undo a cover: see [`may_be_moved`].
    is_closed: bool,
    /// Where control groups are, by which other processes of the user's could be stopped and killed.
    control_groups: Vec<PathBuf>,
    /// Where other processes' POSIX message queues are (mq_overview(7)).
    queues: Vec<PathBuf>,
    /// What is shown in the runtime directory and cannot be changed there: from where, and where.
    shown: Vec<(PathBuf, PathBuf)>,
    /// Files of which the runtime directory has copies, which are the program's own: of what, and where.
    copied: Vec<(PathBuf, PathBuf)>,
    /// Paths by which the program must find what is shown.
    found_by: Vec<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Hidden {
    path: PathBuf,
    is_dir: bool,
}

/// Why a program is not started confined. Each names the thing and the way out.
#[derive(Debug, thiserror::Error)]
pub enum CannotConfine {
    /// The working directory would be hidden.
    #[error(
        "the working directory {cwd} lies in {hidden}, which is hidden from a confined program: start it from elsewhere",
        cwd = cwd.display(), hidden = hidden.display()
    )]
    InsideOfHidden {
        /// The working directory.
        cwd: PathBuf,
        /// What it lies in.
        hidden: PathBuf,
    },
    /// Something that must be hidden holds everything.
    #[error("{path} would have to be hidden, and everything lies in it: set XDG_RUNTIME_DIR to a directory of its own", path = .0.display())]
    HidesAll(PathBuf),
    /// A standard stream is a directory.
    #[error(
        "descriptor {0} (0 is standard input, 1 output, 2 error) is a directory, and so a way to what is hidden: redirect it"
    )]
    DirectoryAsStream(RawFd),
    /// Something could not be looked at.
    #[error("cannot {doing}: {error}")]
    Look {
        /// What was tried.
        doing: String,
        /// The system's answer.
        error: io::Error,
    },
    /// The kernel refused a step.
    #[error("cannot confine the program: {doing}: {error}{advice}")]
    Step {
        /// What was tried.
        doing: String,
        /// The kernel's answer.
        error: io::Error,
        /// The way out, if one is known.
        advice: &'static str,
    },
}

impl Plan {
    /// Finds out what is to be covered. `secret` are files and directories that lead to what is kept from the program;
    /// those that do not exist need no cover. Wherever another mount shows the same they are covered too. Of `shown` and
    /// `copied` each lies in the runtime directory, as what comes second says. The runtime directory holds
    /// `runtime_bytes` beside these, in at most so many files of 4096 bytes.
    ///
    /// # Errors
    /// If one cannot be examined.
    pub fn of(
        runtime: &Path,
        runtime_bytes: u64,
        secret: &[PathBuf],
        shown: Vec<(PathBuf, PathBuf)>,
        copied: Vec<(PathBuf, PathBuf)>,
        found_by: Vec<PathBuf>,
    ) -> Result<Plan, CannotConfine> {
        let failed = |path: &Path, error: io::Error| CannotConfine::Look {
            doing: format!("examine {}, which is to be hidden", path.display()),
            error,
        };
        let mounts = Mounts::read()
            .map_err(|error| CannotConfine::Look { doing: "read /proc/self/mountinfo".into(), error })?;
        let runtime = runtime.canonicalize().map_err(|error| failed(runtime, error))?;
        let mut found = Vec::new();
        for path in std::iter::once(&runtime).chain(secret) {
            let real = match path.canonicalize() {
                Ok(real) => real,
                // What we may not reach ourselves, the program may not reach.
                Err(error) if is_out_of_reach(&error) => {
                    refuse_closed_by_own(path, &error).map_err(|error| failed(path, error))?;
                    continue;
                }
                Err(error) => return Err(failed(path, error)),
            };
            found.extend(mounts.elsewhere(&real).map_err(|error| failed(&real, error))?);
            found.push(real);
        }
        let mut hidden = Vec::new();
        for path in arrange(&runtime, found)? {
            let is_dir = path.symlink_metadata().map_err(|error| failed(&path, error))?.is_dir();
            hidden.push(Hidden { path, is_dir });
        }
        let (mut moved, mut is_closed) = (Vec::new(), false);
        for cover in std::iter::once(&runtime).chain(hidden.iter().map(|hidden| &hidden.path)) {
            for path in cover.ancestors() {
                if !may_be_moved(path).map_err(|error| failed(path, error))? {
                    continue;
                }
                is_closed = true;
                // A cover keeps its own place in use, and what lies below one is not to be reached.
                let is_covered = path == cover || hidden.iter().any(|hidden| path.starts_with(&hidden.path));
                if !is_covered {
                    moved.push(path.to_path_buf());
                }
            }
        }
        moved.sort();
        moved.dedup();
        let of_kinds = |kinds: &[&[u8]]| {
            mounts.of_kinds(kinds).map_err(|error| CannotConfine::Look {
                doing: "examine all mounts of control groups and message queues".into(),
                error,
            })
        };
        let (control_groups, queues) = (of_kinds(&[b"cgroup", b"cgroup2"])?, of_kinds(&[b"mqueue"])?);
        Ok(Plan {
            runtime,
            runtime_bytes,
            hidden,
            moved,
            is_closed,
            control_groups,
            queues,
            shown,
            copied,
            found_by,
        })
    }

    /// What a path lies in that the program does not see.
    fn hides(&self, path: &Path) -> Option<&Path> {
        let all =
            std::iter::once(self.runtime.as_path()).chain(self.hidden.iter().map(|it| it.path.as_path()));
        all.into_iter().find(|hidden| path.starts_with(hidden))
    }

    /// The steps, in order. `cwd` is entered again, by this path and only if it is the same directory.
    fn steps(&self, uid: u32, gid: u32, cwd: (PathBuf, (u64, u64))) -> Vec<Step> {
        let mut steps = vec![
            Step::Namespaces,
            Step::Write("/proc/self/setgroups", "deny".into()),
            Step::Write("/proc/self/uid_map", format!("{uid} {uid} 1")),
            Step::Write("/proc/self/gid_map", format!("{gid} {gid} 1")),
            Step::Private,
        ];
        if self.is_closed {
            // Rename(2) refuses what is a mount point in the namespace of who asks, and only there.
            steps.extend(CLOSED.map(|file| Step::Write(file, "0".into())));
        }
        steps.extend(self.control_groups.iter().cloned().map(Step::Seal));
        steps.extend(self.queues.iter().cloned().map(Step::Queues));
        steps.push(Step::Keyring);
        steps.extend(self.moved.iter().cloned().map(Step::Pin));
        // Held before anything covers them, and in the new namespace: only its own can be mounted again.
        steps.extend(self.shown.iter().map(|(from, _)| Step::Hold(from.clone())));
        steps.extend(self.copied.iter().map(|(from, _)| Step::Read(from.clone())));
        let leads_to_runtime = |hidden: &Hidden| self.runtime.starts_with(&hidden.path);
        for hidden in &self.hidden {
            steps.push(match (hidden.is_dir, leads_to_runtime(hidden)) {
                (false, _) => Step::Nothing(hidden.path.clone()),
                (true, way) => Step::Empty {
                    at: hidden.path.clone(),
                    size: if way { PASSAGE_SIZE } else { COVER_SIZE }.to_owned(),
                    is_writable: way,
                },
            });
            if leads_to_runtime(hidden) {
                steps.extend(way(&hidden.path, &self.runtime).map(Step::Dir));
                steps.push(Step::Dir(self.runtime.clone()));
            }
        }
        // Its root is a file too, and what leads to what is shown.
        let files = self.runtime_bytes.div_ceil(BYTES_PER_FILE) + 8;
        let copies = self.copied.iter().map(|_| COPY_MAX as u64).sum::<u64>();
        let size = format!("size={},nr_inodes={files}", self.runtime_bytes + copies);
        steps.push(Step::Empty { at: self.runtime.clone(), size, is_writable: true });
        for (number, (from, at)) in self.shown.iter().enumerate() {
            steps.extend(way(&self.runtime, at).map(Step::Dir));
            steps.push(if from.is_dir() { Step::Dir(at.clone()) } else { Step::File(at.clone()) });
            steps.push(Step::Show { number, at: at.clone() });
            // The socket's mode is its owner's to change, and so the program's else.
            steps.push(Step::Seal(at.clone()));
        }
        for (number, (_, at)) in self.copied.iter().enumerate() {
            steps.extend(way(&self.runtime, at).map(Step::Dir));
            steps.push(Step::Copy { number, at: at.clone() });
        }
        let passages = self.hidden.iter().filter(|hidden| leads_to_runtime(hidden));
        steps.extend(passages.map(|hidden| Step::Seal(hidden.path.clone())));
        steps.extend(self.found_by.iter().cloned().map(Step::Find));
        steps.push(Step::Return { to: cwd.0, inode: cwd.1 });
        // Last, since everything above needs the rights that these take.
        steps.extend([Step::NoNewPrivileges, Step::Scope, Step::Filter, Step::NoCapabilities]);
        steps
    }
}

/// Whether this user could give what lies there another name, if need be by changing the directory's mode first. What
/// is a mount point cannot be renamed (EBUSY), by whatever way it is reached; but with all rights in a further
/// namespace of its own a program could take the mount away first.
fn may_be_moved(path: &Path) -> io::Result<bool> {
    let Some(parent) = path.parent() else { return Ok(false) };
    let (dir, entry) = (stat::lstat(parent)?, stat::lstat(path)?);
    let own = unistd::geteuid().as_raw();
    if dir.st_uid == own {
        return Ok(true);
    }
    let is_sticky = Mode::from_bits_truncate(dir.st_mode).contains(Mode::S_ISVTX);
    if is_sticky && entry.st_uid != own {
        return Ok(false);
    }
    match unistd::faccessat(AT_FDCWD, parent, AccessFlags::W_OK, AtFlags::AT_EACCESS) {
        Ok(()) => Ok(true),
        Err(Errno::EACCES | Errno::EPERM | Errno::EROFS) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether a path leads nowhere for this user.
fn is_out_of_reach(error: &io::Error) -> bool {
    let nowhere = [libc::ENOENT, libc::ENOTDIR, libc::EACCES, libc::ELOOP, libc::ENAMETOOLONG];
    error.raw_os_error().is_some_and(|errno| nowhere.contains(&errno))
}

/// What is left to cover, outermost first, once what lies below another cover is left out.
fn arrange(runtime: &Path, mut found: Vec<PathBuf>) -> Result<Vec<PathBuf>, CannotConfine> {
    found.sort();
    let mut covers: Vec<PathBuf> = Vec::new();
    for path in found {
        if path.parent().is_none() {
            return Err(CannotConfine::HidesAll(path));
        }
        // The runtime directory gets a cover of its own, wherever it lies.
        let is_covered = path.starts_with(runtime) || covers.iter().any(|cover| path.starts_with(cover));
        if !is_covered {
            covers.push(path);
        }
    }
    Ok(covers)
}

/// The directories that lie between `from` and `to`, the outer ones first.
fn way(from: &Path, to: &Path) -> impl Iterator<Item = PathBuf> {
    let between: Vec<PathBuf> =
        to.ancestors().skip(1).take_while(|part| *part != from).map(Path::to_path_buf).collect();
    between.into_iter().rev()
}

/// One step of confining oneself.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// A user namespace, and a mount namespace and one of System V's shared memory that belong to it.
    Namespaces,
    /// Says of the user namespace which ids it has.
    Write(&'static str, String),
    /// No mount made outside shows inside from now on, nor the other way round.
    Private,
    /// Lays the namespace's own message queues over those outside.
    Queues(PathBuf),
    /// A session keyring of its own (session-keyring(7)).
    Keyring,
    /// Makes a directory a mount point, which cannot be renamed.
    Pin(PathBuf),
    Hold(PathBuf),
    Read(PathBuf),
    Empty {
        at: PathBuf,
        size: String,
        is_writable: bool,
    },
    Nothing(PathBuf),
    Dir(PathBuf),
    File(PathBuf),
    Show {
        number: usize,
        at: PathBuf,
    },
    Copy {
        number: usize,
        at: PathBuf,
    },
    /// Makes a mount read-only, as far as it is reached by this path.
    Seal(PathBuf),
    Find(PathBuf),
    Return {
        to: PathBuf,
        inode: (u64, u64),
    },
    NoNewPrivileges,
    Scope,
    Filter,
    NoCapabilities,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Namespaces => f.write_str("making a user, mount and IPC namespace"),
            Step::Write(file, _) => write!(f, "writing {file}"),
            Step::Private => f.write_str("making its mounts private"),
            Step::Queues(path) => write!(f, "mounting empty message queues on {}", path.display()),
            Step::Keyring => f.write_str("joining a new session keyring"),
            Step::Pin(path) => write!(f, "mounting {} on itself", path.display()),
            Step::Hold(path) => write!(f, "opening {}", path.display()),
            Step::Read(path) => write!(f, "reading {}", path.display()),
            Step::Copy { at, .. } => write!(f, "writing {}", at.display()),
            Step::Empty { at, .. } => write!(f, "mounting an empty directory on {}", at.display()),
            Step::Nothing(path) => write!(f, "mounting {NOTHING} on {}", path.display()),
            Step::Dir(path) | Step::File(path) => write!(f, "making {}", path.display()),
            Step::Show { at, .. } => write!(f, "mounting {}", at.display()),
            Step::Seal(path) => write!(f, "making {} read-only", path.display()),
            Step::Find(path) => write!(f, "finding {}", path.display()),
            Step::Return { to, .. } => write!(f, "entering the working directory {} again", to.display()),
            Step::NoNewPrivileges => f.write_str("giving up new privileges"),
            Step::Scope => f.write_str("scoping signals and abstract sockets (Landlock)"),
            Step::Filter => f.write_str("filtering system calls (seccomp)"),
            Step::NoCapabilities => f.write_str("giving up all capabilities"),
        }
    }
}

/// What the way out of a step's failure is.
fn advice(step: &Step, errno: Errno) -> &'static str {
    match (step, errno) {
        (Step::Namespaces, Errno::ENOSPC | Errno::EUSERS) => {
            "; there may be no more namespaces: see `sysctl user.max_user_namespaces user.max_mnt_namespaces user.max_ipc_namespaces`. In a confined session they are 0 where its user could move what is hidden away: start it with XDG_RUNTIME_DIR below /run/user"
        }
        (Step::Namespaces, Errno::EPERM | Errno::EACCES) => {
            "; user namespaces are forbidden here: by `sysctl kernel.unprivileged_userns_clone`, by a container's seccomp filter, by AppArmor, or because this is a chroot"
        }
        (Step::Namespaces, Errno::EINVAL | Errno::ENOSYS) => {
            "; this kernel has no user namespaces (CONFIG_USER_NS), or no IPC namespaces (CONFIG_IPC_NS)"
        }
        (Step::Write("/proc/self/uid_map", _), Errno::EPERM) => {
            "; where `kernel.apparmor_restrict_unprivileged_userns` is 1, authsock needs an AppArmor profile with `userns,`. Root cannot confine a program from within a confined one"
        }
        (Step::Write(file, _), Errno::EROFS | Errno::EACCES | Errno::ENOENT) if CLOSED.contains(file) => {
            "; this user could move what is hidden away, so there must be no further namespaces, and that cannot be said here (a container's read-only /proc/sys?): use a runtime directory below /run/user"
        }
        (
            Step::Private
            | Step::Seal(_)
            | Step::Queues(_)
            | Step::Pin(_)
            | Step::Empty { .. }
            | Step::Nothing(_)
            | Step::Show { .. },
            Errno::EPERM | Errno::EACCES,
        ) => {
            "; a policy lets nobody mount in a user namespace: where `sysctl kernel.apparmor_restrict_unprivileged_userns` is 1, authsock needs an AppArmor profile with `userns,`"
        }
        (Step::Return { .. }, _) => {
            "; the program would start in another directory than this: start it from elsewhere"
        }
        (Step::Scope, Errno::E2BIG) => "; it is confined within too many others already (16)",
        _ => "",
    }
}

/// What a child in the making needs for its steps.
struct Child {
    steps: Vec<Step>,
    held: Vec<OwnedFd>,
    read: Vec<Zeroizing<Vec<u8>>>,
    scope: Option<RulesetCreated>,
    report: OwnedFd,
}

impl Child {
    fn confine(&mut self) -> io::Result<()> {
        for number in 0..self.steps.len() {
            if let Err(error) = self.take(number) {
                // exec's own failures leave no number behind.
                let number = u16::try_from(number).unwrap_or(u16::MAX).to_ne_bytes();
                let _ = unistd::write(&self.report, &number);
                return Err(error);
            }
        }
        Ok(())
    }

    fn take(&mut self, number: usize) -> io::Result<()> {
        const NONE: Option<&str> = None;
        let private = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let Some(step) = self.steps.get(number) else { return Ok(()) };
        match step {
            Step::Namespaces => {
                unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC)?;
            }
            Step::Write(path, text) => {
                // One write(2) for the whole map, as the kernel wants it.
                let file = nix::fcntl::open(*path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
                unistd::write(&file, text.as_bytes())?;
            }
            Step::Private => mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?,
            Step::Queues(at) => mount(Some("authsock"), at, Some("mqueue"), private, NONE)?,
            Step::Keyring => join_new_keyring()?,
            Step::Pin(path) => mount(Some(path), path, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?,
            Step::Hold(path) => self.held.push(hold(path)?),
            Step::Read(path) => {
                let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let file = nix::fcntl::open(path, flags, Mode::empty())?;
                // At once as large as it can get: what grows leaves copies behind.
                let mut bytes = Zeroizing::new(vec![0; COPY_MAX]);
                let mut length = 0;
                loop {
                    match unistd::read(&file, &mut bytes[length..])? {
                        0 => break,
                        read => length += read,
                    }
                }
                if length == COPY_MAX {
                    return Err(Errno::EFBIG.into());
                }
                bytes.truncate(length);
                self.read.push(bytes);
            }
            Step::Copy { number, at } => {
                // Taken, so that they are wiped here: what exec leaves behind is dropped by nobody.
                let read = std::mem::take(self.read.get_mut(*number).ok_or(Errno::EBADF)?);
                let mut bytes = read.as_slice();
                let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
                let file = nix::fcntl::open(at, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
                while !bytes.is_empty() {
                    bytes = &bytes[unistd::write(&file, bytes)?..];
                }
                // The umask may have taken bits.
                stat::fchmod(&file, Mode::S_IRUSR | Mode::S_IWUSR)?;
            }
            Step::Empty { at, size, is_writable } => {
                let flags = if *is_writable { private } else { private | MsFlags::MS_RDONLY };
                mount(
                    Some("authsock"),
                    at,
                    Some("tmpfs"),
                    flags,
                    Some(format!("mode=0700,{size}").as_str()),
                )?;
            }
            Step::Nothing(at) => mount(Some(NOTHING), at, NONE, MsFlags::MS_BIND, NONE)?,
            Step::Dir(path) => match unistd::mkdir(path, Mode::S_IRWXU) {
                // The umask may have taken bits.
                Ok(()) => std::fs::set_permissions(path, PermissionsExt::from_mode(0o700))?,
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno.into()),
            },
            Step::File(path) => {
                let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
                drop(nix::fcntl::open(path, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
            }
            Step::Show { number, at } => {
                let held = self.held.get(*number).ok_or(Errno::EBADF)?;
                let held = format!("/proc/self/fd/{}", held.as_raw_fd());
                mount(Some(held.as_str()), at, NONE, MsFlags::MS_BIND, NONE)?;
            }
            Step::Seal(at) => {
                // What it is kept from already it must be kept from now too: that is locked for who came from outside.
                let found = statvfs(at)?.flags();
                let kept = [
                    (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
                    (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
                    (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
                ];
                let mut flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
                flags.extend(kept.into_iter().filter(|(is, _)| found.contains(*is)).map(|(_, flag)| flag));
                mount(NONE, at, NONE, flags, NONE)?;
            }
            Step::Find(path) => drop(stat::lstat(path)?),
            Step::Return { to, inode } => {
                unistd::chdir(to)?;
                if inode_of(&hold(Path::new("."))?)? != *inode {
                    return Err(Errno::ESTALE.into());
                }
            }
            Step::NoNewPrivileges => prctl::set_no_new_privs()?,
            Step::Scope => {
                if let Some(scope) = self.scope.take() {
                    match scope.restrict_self() {
                        Err(RulesetError::RestrictSelf(RestrictSelfError::RestrictSelfCall {
                            source,
                            ..
                        })) => {
                            return Err(source);
                        }
                        Err(error) => return Err(io::Error::other(error)),
                        Ok(_) => {}
                    }
                }
            }
            Step::Filter => filter_calls()?,
            Step::NoCapabilities => drop_capabilities()?,
        }
        Ok(())
    }
}

/// Gives up every capability, and every way to one: also root's, which exec would give back.
fn drop_capabilities() -> nix::Result<()> {
    const NOROOT: libc::c_ulong = 0b11; // SECBIT_NOROOT and its lock (linux/securebits.h)
    const NO_AMBIENT_RAISE: libc::c_ulong = 0b11 << 6; // SECBIT_NO_CAP_AMBIENT_RAISE and its lock
    /// As capget(2) has it: the version with two words for each set.
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let none: libc::c_ulong = 0;
    for capability in 0..64 as libc::c_ulong {
        // SAFETY: prctl(2) with plain numbers.
        let done = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, none, none, none) };
        match Errno::result(done) {
            Ok(_) => {}
            // Beyond the last one that this kernel has.
            Err(Errno::EINVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    // SAFETY: prctl(2) with plain numbers.
    let done = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, none, none, none) };
    Errno::result(done)?;
    // SAFETY: prctl(2) with plain numbers.
    let done = unsafe { libc::prctl(libc::PR_SET_SECUREBITS, NOROOT | NO_AMBIENT_RAISE, none, none, none) };
    Errno::result(done)?;
    let header = Header { version: VERSION_3, pid: 0 };
    // Effective, permitted and inheritable, in two words each.
    let empty = [0u32; 6];
    // SAFETY: the header and the sets have the layout that version 3 has, and are only read.
    let done = unsafe { libc::syscall(libc::SYS_capset, &raw const header, empty.as_ptr()) };
    Errno::result(done)?;
    Ok(())
}

/// Leaves the session keyring of whoever started us: what is in it is read by who has it. What is found by number
/// [`filter_calls`] keeps out of reach.
fn join_new_keyring() -> nix::Result<()> {
    let (join, anonymous) = (libc::c_ulong::from(libc::KEYCTL_JOIN_SESSION_KEYRING), 0 as libc::c_ulong);
    // SAFETY: keyctl(2) with plain numbers; without a name it reads nothing.
    let done = unsafe { libc::syscall(libc::SYS_keyctl, join, anonymous) };
    match Errno::result(done) {
        // A kernel without keys, or a container whose filter lets nobody in it call keyctl(2).
        Ok(_) | Err(Errno::ENOSYS | Errno::EPERM) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Keeps the program from typing into its terminal on behalf of its user (TIOCSTI, and TIOCLINUX, by which a console
/// pastes): the shell outside would read it. Kernels since 6.2 can forbid the former to all
/// (`dev.tty.legacy_tiocsti`). And from setting other processes' limits (prlimit(2)), which needs no more than the same
/// user: without processor time or file size they die. And from all that has to do with keys (keyrings(7)): the
/// keyring of all of the user's is found by its number from within another user namespace too. On machines whose system calls are not known here there is no
/// filter.
fn filter_calls() -> nix::Result<()> {
    /// A kind of system call (linux/audit.h), with the numbers that ioctl(2) and prlimit(2) have there, and those of
    /// add_key(2), request_key(2) and keyctl(2).
    type Kind = (u32, &'static [u32], &'static [u32], &'static [u32]);
    /// The machine's own, and that of its 32-bit programs.
    #[cfg(target_arch = "x86_64")]
    const KINDS: [Kind; 2] = [
        (
            0xc000_003e,
            &[16, 0x4000_0000 + 514],
            &[302, 0x4000_0000 + 302],
            &[248, 249, 250, 0x4000_0000 + 248, 0x4000_0000 + 249, 0x4000_0000 + 250],
        ),
        (0x4000_0003, &[54], &[340], &[286, 287, 288]),
    ];
    #[cfg(target_arch = "aarch64")]
    const KINDS: [Kind; 2] =
        [(0xc000_00b7, &[29], &[261], &[217, 218, 219]), (0x4000_0028, &[54], &[369], &[309, 310, 311])];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    const KINDS: [Kind; 0] = [];
    /// asm-generic/ioctls.h
    const TYPING: [u32; 2] = [0x5412, 0x541c];
    /// Where struct seccomp_data has them; of the second argument the lower half, which is all that ioctl(2) reads.
    const NUMBER: u32 = 0;
    const KIND: u32 = 4;
    const REQUEST: u32 = 24;
    /// The first argument's lower half, which is all that a pid has, and both halves of the third, a pointer.
    const PID: u32 = 16;
    const LIMIT: [u32; 2] = [32, 36];
    /// The kernel's protection against guessed branches is no affair of this filter (seccomp(2)).
    const SPEC_ALLOW: libc::c_ulong = 1 << 2;
    const SET_MODE_FILTER: libc::c_ulong = 1;
    // Small numbers, all of them known above.
    #[allow(clippy::cast_possible_truncation)]
    let instruction = |code: u32, yes: usize, no: usize, value: u32| libc::sock_filter {
        code: code as u16,
        jt: yes as u8,
        jf: no as u8,
        k: value,
    };
    let load = |offset| instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset);
    let is = |value, yes, no| instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, yes, no, value);
    let answer = |value| instruction(libc::BPF_RET | libc::BPF_K, 0, 0, value);
    #[allow(clippy::cast_sign_loss)] // a small positive number
    let refused = answer(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32);
    let allowed = answer(libc::SECCOMP_RET_ALLOW);
    let mut program = Vec::new();
    for (kind, ioctl, prlimit, keys) in KINDS {
        let typing = [load(REQUEST), is(TYPING[0], 2, 0), is(TYPING[1], 1, 0), allowed, refused];
        // Its own limits, or another's to be read.
        let limits = [
            load(PID),
            is(0, 4, 0),
            load(LIMIT[0]),
            is(0, 0, 3),
            load(LIMIT[1]),
            is(0, 0, 1),
            allowed,
            refused,
        ];
        let numbers = ioctl.len() + prlimit.len() + keys.len();
        let body = 1 + numbers + 1 + typing.len() + limits.len();
        program.extend([load(KIND), is(kind, 0, body), load(NUMBER)]);
        let at_typing = ioctl.iter().map(|number| (number, numbers));
        let at_limits = prlimit.iter().map(|number| (number, numbers + typing.len()));
        let at_refused = keys.iter().map(|number| (number, numbers + typing.len() + limits.len() - 1));
        let jumps = at_typing.chain(at_limits).chain(at_refused).enumerate();
        program.extend(jumps.map(|(at, (number, to))| is(*number, to - at, 0)));
        program.push(allowed);
        program.extend(typing);
        program.extend(limits);
    }
    program.push(allowed);
    let Ok(len) = u16::try_from(program.len()) else { return Ok(()) };
    let all = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies the program, which lives until the call returns.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, SPEC_ALLOW, &raw const all) };
    match Errno::result(done) {
        // A kernel without filters.
        Ok(_) | Err(Errno::EINVAL | Errno::ENOSYS) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// A program's confinement, ready to be carried out by the child that becomes it.
#[derive(Debug)]
pub struct Confinement {
    steps: Vec<Step>,
    report: std::fs::File,
}

impl Confinement {
    /// Has a command that is about to be started confine itself.
    ///
    /// The caller has no other threads: what a child does between fork and exec is then no different from what it
    /// may do at any time.
    ///
    /// # Errors
    /// [`CannotConfine`], for what can be known before.
    pub fn prepare(plan: &Plan, command: &mut Command) -> Result<Confinement, CannotConfine> {
        let look = |doing: &str| {
            let doing = doing.to_owned();
            move |error: io::Error| CannotConfine::Look { doing, error }
        };
        let cwd = std::env::current_dir().map_err(look("tell the working directory"))?;
        if let Some(hidden) = plan.hides(&cwd) {
            return Err(CannotConfine::InsideOfHidden { hidden: hidden.to_path_buf(), cwd });
        }
        let here = hold(Path::new(".")).and_then(|here| inode_of(&here));
        let here = here.map_err(look("examine the working directory"))?;
        close_ways_in(plan)?;
        let scope = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .scope(Scope::from_all(ABI::V6))
            .and_then(Ruleset::create)
            .map_err(|error| look("make a Landlock ruleset")(io::Error::other(error)))?;
        let (ours, theirs) = unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
            .map_err(|errno| look("make a pipe")(errno.into()))?;
        let steps = plan.steps(unistd::geteuid().as_raw(), unistd::getegid().as_raw(), (cwd, here));
        let mut child = Child {
            steps: steps.clone(),
            held: Vec::new(),
            read: Vec::new(),
            scope: Some(scope),
            report: theirs,
        };
        // SAFETY: this process has one thread, so the child finds no lock held and may allocate.
        unsafe { command.pre_exec(move || child.confine()) };
        Ok(Confinement { steps, report: ours.into() })
    }

    /// Which step failed, if it was one of ours that kept the command from being started.
    pub fn failure(&mut self, error: &io::Error) -> Option<CannotConfine> {
        let mut number = [0; 2];
        self.report.read_exact(&mut number).ok()?;
        let step = self.steps.get(usize::from(u16::from_ne_bytes(number)))?;
        let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
        Some(CannotConfine::Step {
            doing: step.to_string(),
            error: errno.into(),
            advice: advice(step, errno),
        })
    }
}

/// Marks those descriptors close-on-exec that would be a way to what is hidden. What a program usually inherits
/// stays: pipes, terminals and other devices, files that lie elsewhere, sockets that have no name (socketpair(2)) or
/// an internet address.
fn close_ways_in(plan: &Plan) -> Result<(), CannotConfine> {
    const STANDARD: RawFd = 2;
    let failed = |error| CannotConfine::Look { doing: "list the open descriptors".into(), error };
    for entry in std::fs::read_dir("/proc/self/fd").map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse::<RawFd>().ok()) else { continue };
        let Ok(fd) = super::fds::borrow_number(number) else { continue };
        let flags = fcntl(fd, FcntlArg::F_GETFD).map_err(|errno| failed(errno.into()))?;
        if FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC) {
            continue;
        }
        let is_dir = stat::fstat(fd).is_ok_and(|stat| kind_of(&stat) == SFlag::S_IFDIR);
        if number <= STANDARD {
            if is_dir {
                return Err(CannotConfine::DirectoryAsStream(number));
            }
        } else if !is_harmless(plan, fd) {
            super::fds::set_cloexec(fd).map_err(failed)?;
        }
    }
    Ok(())
}

fn kind_of(stat: &stat::FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

fn is_harmless(plan: &Plan, fd: BorrowedFd<'_>) -> bool {
    let Ok(stat) = stat::fstat(fd) else { return false };
    match kind_of(&stat) {
        SFlag::S_IFIFO | SFlag::S_IFCHR | SFlag::S_IFREG => is_file_elsewhere(plan, fd, &stat),
        SFlag::S_IFSOCK => is_socket_of_nobody(fd),
        // Directories, block devices, and what has no kind: other processes, namespaces, rings of system calls.
        _ => false,
    }
}

/// Whether a file lies nowhere that is hidden, nor in /proc, whose files are other processes.
fn is_file_elsewhere(plan: &Plan, fd: BorrowedFd<'_>, stat: &stat::FileStat) -> bool {
    const OF_PROC: nix::sys::statfs::FsType = nix::sys::statfs::PROC_SUPER_MAGIC;
    const OF_NAMESPACES: nix::sys::statfs::FsType = nix::sys::statfs::NSFS_MAGIC;
    let Ok(system) = nix::sys::statfs::fstatfs(fd) else { return false };
    if [OF_PROC, OF_NAMESPACES].contains(&system.filesystem_type()) {
        return false;
    }
    let Ok(path) = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())) else { return false };
    if !path.is_absolute() {
        // An unnamed pipe.
        return kind_of(stat) == SFlag::S_IFIFO;
    }
    // One that has no name any more, or never had (memfd), can be reached by nobody else.
    let is_nameless = stat.st_nlink == 0;
    let is_there =
        stat::stat(&path).is_ok_and(|found| (found.st_dev, found.st_ino) == (stat.st_dev, stat.st_ino));
    (is_nameless || is_there) && plan.hides(&path).is_none()
}

/// Whether a socket was neither given a name nor connected to one: a name leads to a bus, or to a daemon.
fn is_socket_of_nobody(fd: BorrowedFd<'_>) -> bool {
    let number = fd.as_raw_fd();
    let is_unnamed = |address: nix::Result<SockaddrStorage>| match address {
        Ok(address) => match address.family() {
            Some(AddressFamily::Unix) => address.as_unix_addr().is_some_and(UnixAddr::is_unnamed),
            Some(AddressFamily::Inet | AddressFamily::Inet6) => true,
            _ => false,
        },
        Err(errno) => errno == Errno::ENOTCONN,
    };
    is_unnamed(getsockname(number)) && is_unnamed(getpeername(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(all: &[&str]) -> Vec<PathBuf> {
        all.iter().map(PathBuf::from).collect()
    }

    fn hidden(path: &str, is_dir: bool) -> Hidden {
        Hidden { path: path.into(), is_dir }
    }

    #[test]
    fn what_lies_below_another_cover_needs_none_and_everything_is_never_covered() {
        let found = ["/run/user/7/x", "/run/user/7", "/tmp/a-7", "/tmp/a", "/r/authsock", "/r"];
        assert_eq!(
            arrange(Path::new("/r"), paths(&found)).unwrap(),
            paths(&["/run/user/7", "/tmp/a", "/tmp/a-7"])
        );
        // The runtime directory itself may lie below what is hidden.
        let found = ["/run/user/7/mine", "/run/user/7"];
        assert_eq!(arrange(Path::new("/run/user/7/mine"), paths(&found)).unwrap(), paths(&["/run/user/7"]));
        assert!(matches!(arrange(Path::new("/r"), paths(&["/"])), Err(CannotConfine::HidesAll(_))));
    }

    #[test]
    fn the_plan_covers_first_then_shows_and_gives_up_its_rights_last() {
        let plan = Plan {
            runtime: "/run/user/7/mine".into(),
            runtime_bytes: 65_536,
            hidden: vec![hidden("/run/user/7", true), hidden("/tmp/mine/bus", false)],
            moved: paths(&["/tmp/mine"]),
            is_closed: true,
            control_groups: paths(&["/sys/fs/cgroup"]),
            queues: paths(&["/dev/mqueue"]),
            shown: vec![("/run/user/7/mine/run/a/way".into(), "/run/user/7/mine/run/a/way".into())],
            copied: vec![("/run/user/7/mine/run/a/token".into(), "/run/user/7/mine/run/a/token".into())],
            found_by: paths(&["/link/token"]),
        };
        let steps: Vec<String> =
            plan.steps(7, 8, ("/home".into(), (1, 2))).iter().map(ToString::to_string).collect();
        assert_eq!(
            steps,
            [
                "making a user, mount and IPC namespace",
                "writing /proc/self/setgroups",
                "writing /proc/self/uid_map",
                "writing /proc/self/gid_map",
                "making its mounts private",
                "writing /proc/sys/user/max_user_namespaces",
                "writing /proc/sys/user/max_mnt_namespaces",
                "making /sys/fs/cgroup read-only",
                "mounting empty message queues on /dev/mqueue",
                "joining a new session keyring",
                "mounting /tmp/mine on itself",
                "opening /run/user/7/mine/run/a/way",
                "reading /run/user/7/mine/run/a/token",
                "mounting an empty directory on /run/user/7",
                "making /run/user/7/mine",
                "mounting /dev/null on /tmp/mine/bus",
                "mounting an empty directory on /run/user/7/mine",
                "making /run/user/7/mine/run",
                "making /run/user/7/mine/run/a",
                "making /run/user/7/mine/run/a/way",
                "mounting /run/user/7/mine/run/a/way",
                "making /run/user/7/mine/run/a/way read-only",
                "making /run/user/7/mine/run",
                "making /run/user/7/mine/run/a",
                "writing /run/user/7/mine/run/a/token",
                "making /run/user/7 read-only",
                "finding /link/token",
                "entering the working directory /home again",
                "giving up new privileges",
                "scoping signals and abstract sockets (Landlock)",
                "filtering system calls (seccomp)",
                "giving up all capabilities",
            ]
        );
        assert_eq!(plan.hides(Path::new("/run/user/7/x")), Some(Path::new("/run/user/7")));
        assert_eq!(plan.hides(Path::new("/run/user/77")), None);
    }

    #[test]
    fn what_forbids_a_namespace_has_a_way_out() {
        for (step, errno, word) in [
            (Step::Namespaces, Errno::ENOSPC, "max_user_namespaces"),
            (Step::Namespaces, Errno::EPERM, "unprivileged_userns_clone"),
            (Step::Write("/proc/self/uid_map", String::new()), Errno::EPERM, "apparmor_restrict"),
            (Step::Private, Errno::EACCES, "apparmor_restrict"),
            (Step::Write(CLOSED[0], "0".into()), Errno::EROFS, "read-only /proc/sys"),
            (Step::Scope, Errno::E2BIG, "16"),
        ] {
            assert!(advice(&step, errno).contains(word), "{step} {errno}");
        }
    }
}
