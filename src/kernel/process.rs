//! Processes that cannot be confused with their pid's next owner: pidfds, pidfs inodes, start times, parents.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;

/// Most steps that a walk from a process up to its ancestors takes.
pub const ANCESTRY_MAX: usize = 128;

/// A process id as the kernel gave it. 0 stands for a process of another pid namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pid(pub u32);

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Pid {
    /// The calling process.
    pub fn own() -> Pid {
        Pid(std::process::id())
    }

    #[cfg(target_os = "linux")]
    fn as_raw(self) -> libc::pid_t {
        // The kernel's largest pid is 2^22 (proc(5), pid_max); anything else is nobody.
        libc::pid_t::try_from(self.0).unwrap_or(0)
    }
}

/// What tells one process from every other of this boot: the pid with its pidfs inode (Linux 6.9),
/// or, where there is none, with its start time: in clock ticks since boot on Linux (proc(5), stat
/// field 22), in microseconds since 1970 on macOS. Both survive exec, and can be read again by pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The pid in this process's pid namespace.
    pub pid: Pid,
    /// The inode of the process's pidfd, unique for the boot.
    pub pidfs: Option<u64>,
    /// The start time; known only where there is no inode.
    pub start: Option<u64>,
}

impl Identity {
    /// Whether there is anything by which it could be recognised.
    pub fn is_marked(&self) -> bool {
        self.pidfs.is_some() || self.start.is_some()
    }

    /// Whether two views name the same process. Inodes decide where both have one; without a
    /// common mark nothing is the same.
    pub fn is_same(&self, other: &Identity) -> bool {
        match ((self.pidfs, other.pidfs), (self.start, other.start)) {
            ((Some(ours), Some(theirs)), _) => ours == theirs,
            (_, (Some(ours), Some(theirs))) => self.pid == other.pid && ours == theirs,
            _ => false,
        }
    }
}

impl Identity {
    /// Holds the process that this names, if it still runs: whatever has its pid now must bear the
    /// same mark.
    ///
    /// # Errors
    /// `ESRCH` if it has ended, or cannot be named here because it is of another pid namespace; else
    /// as [`Process::open`].
    pub fn reopen(&self) -> io::Result<Process> {
        if self.pid.0 == 0 {
            return Err(Errno::ESRCH.into());
        }
        let opened = Process::open(self.pid)?;
        let is_it = opened.identity().is_same(self) && opened.is_alive();
        if is_it { Ok(opened) } else { Err(Errno::ESRCH.into()) }
    }
}

/// A process held by its pidfd: as long as this lives, its pid means this process or nobody. On
/// macOS by a kqueue that watches it: that keeps the pid from nobody, but tells of the end at once.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    pidfd: OwnedFd,
    inode: Option<u64>,
    /// The start time, read when it was opened.
    #[cfg(target_os = "macos")]
    start: Option<u64>,
}

impl Process {
    /// Takes a pidfd that the kernel handed out for the process `pid`.
    #[cfg(target_os = "linux")]
    pub fn from_pidfd(pid: Pid, pidfd: OwnedFd) -> Process {
        let inode = pidfs_inode(pidfd.as_fd());
        Process { pid, pidfd, inode }
    }

    /// Opens whatever process has this pid now.
    ///
    /// # Errors
    /// `ESRCH` if there is none, `ENOSYS` where Linux has no pidfds.
    pub fn open(pid: Pid) -> io::Result<Process> {
        #[cfg(target_os = "linux")]
        {
            use std::os::fd::FromRawFd;
            // SAFETY: pidfd_open(2) takes two numbers and returns a new descriptor (close-on-exec).
            let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
            let fd = Errno::result(fd)?;
            let fd = std::os::fd::RawFd::try_from(fd).map_err(|_| Errno::EBADF)?;
            // SAFETY: the kernel just returned this descriptor to us alone.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            Ok(Process::from_pidfd(pid, fd))
        }
        #[cfg(target_os = "macos")]
        {
            // What is watched is the process that had the pid before and has it after.
            let before = readable_start(pid)?;
            let pidfd = super::darwin::watch_end(pid.0)?;
            let opened = Process { pid, pidfd, inode: None, start: before };
            let same = readable_start(pid)? == before && opened.is_alive();
            if same { Ok(opened) } else { Err(Errno::ESRCH.into()) }
        }
    }

    /// Its pid.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its pidfs inode, where the kernel has pidfs.
    pub fn inode(&self) -> Option<u64> {
        self.inode
    }

    /// Another handle on the same process.
    ///
    /// # Errors
    /// `EMFILE` if there is no descriptor left.
    pub fn try_clone(&self) -> io::Result<Process> {
        Ok(Process {
            pid: self.pid,
            pidfd: self.pidfd.try_clone()?,
            inode: self.inode,
            #[cfg(target_os = "macos")]
            start: self.start,
        })
    }

    /// Whether it still runs. A pidfd becomes readable when its process has ended, reaped or not, and
    /// so does a kqueue that watches for it.
    pub fn is_alive(&self) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut watched = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut watched, PollTimeout::ZERO) {
                Ok(ready) => return ready == 0,
                Err(Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// What tells it from every other process.
    pub fn identity(&self) -> Identity {
        #[cfg(target_os = "linux")]
        let start = match self.inode {
            Some(_) => None,
            None => start_time(self.pid).filter(|_| self.is_alive()),
        };
        #[cfg(target_os = "macos")]
        let start = self.start;
        Identity { pid: self.pid, pidfs: self.inode, start }
    }

    /// Its parent at this moment, or `None` at the top of this pid namespace.
    ///
    /// The parent's pid is read, opened, and read again while this process is known to be alive:
    /// had the parent ended in between, the second reading would name the process that adopted us.
    ///
    /// # Errors
    /// `ESRCH` if this process has ended; `EAGAIN` if its parents change faster than they can be
    /// read; else what /proc said.
    pub fn parent(&self) -> io::Result<Option<Process>> {
        for _ in 0..8 {
            let named = self.parent_pid()?;
            if named.0 == 0 {
                return Ok(None);
            }
            let parent = match Process::open(named) {
                Ok(parent) => parent,
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => continue,
                Err(error) => return Err(error),
            };
            if self.parent_pid()? == named && parent.is_alive() {
                return Ok(Some(parent));
            }
        }
        Err(Errno::EAGAIN.into())
    }

    fn parent_pid(&self) -> io::Result<Pid> {
        if self.pid.0 == 0 {
            return Err(Errno::ESRCH.into());
        }
        let parent = parent_of(self.pid)?;
        // Only a process that is alive after the reading was the one that was read.
        if self.is_alive() { Ok(parent) } else { Err(Errno::ESRCH.into()) }
    }

    /// Looks at this process and its ancestors, with the number of steps up, until `visit` says
    /// something; `None` at the top of the pid namespace.
    ///
    /// # Errors
    /// As [`Process::parent`]; `ELOOP` after [`ANCESTRY_MAX`] steps.
    pub fn walk_up(
        &self,
        visit: &mut dyn FnMut(usize, &Identity) -> Option<bool>,
    ) -> io::Result<Option<bool>> {
        let mut current = self.try_clone()?;
        for step in 0..ANCESTRY_MAX {
            if let Some(found) = visit(step, &current.identity()) {
                return Ok(Some(found));
            }
            match current.parent()? {
                Some(parent) => current = parent,
                None => return Ok(None),
            }
        }
        Err(Errno::ELOOP.into())
    }

    /// The name that it gives itself (proc(5), comm): for people who read logs, and no proof of
    /// anything.
    pub fn name(&self) -> Option<String> {
        #[cfg(target_os = "linux")]
        let name = std::fs::read_to_string(format!("/proc/{}/comm", self.pid)).ok()?;
        #[cfg(target_os = "macos")]
        let name = super::darwin::facts(self.pid.0).ok()?.name;
        let name =
            name.trim_end().chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect();
        self.is_alive().then_some(name)
    }

    /// The file name of the program that it runs, which is not for it to choose as [`Process::name`] is.
    pub fn program(&self) -> Option<String> {
        #[cfg(target_os = "linux")]
        let name = {
            let path = std::fs::read_link(format!("/proc/{}/exe", self.pid)).ok()?;
            path.file_name()?.to_str()?.trim_end_matches(" (deleted)").to_owned()
        };
        #[cfg(not(target_os = "linux"))]
        let name = self.name()?;
        self.is_alive().then_some(name)
    }

    /// Its working directory, if it can be read.
    pub fn cwd(&self) -> Option<PathBuf> {
        #[cfg(target_os = "linux")]
        let cwd = std::fs::read_link(format!("/proc/{}/cwd", self.pid)).ok()?;
        #[cfg(target_os = "macos")]
        let cwd = super::darwin::cwd(self.pid.0).ok()?;
        self.is_alive().then_some(cwd)
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl From<Process> for OwnedFd {
    fn from(process: Process) -> OwnedFd {
        process.pidfd
    }
}

/// `/proc/PID/stat` after the command name, which may itself hold spaces and brackets.
#[cfg(target_os = "linux")]
fn stat_fields(pid: Pid) -> io::Result<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Errno::ESRCH.into(),
        _ => error,
    })?;
    let (_, fields) = stat.rsplit_once(") ").ok_or_else(|| io::Error::other("/proc/PID/stat has no name"))?;
    Ok(fields.to_owned())
}

/// The pid of the parent of whatever process has this pid now.
fn parent_of(pid: Pid) -> io::Result<Pid> {
    #[cfg(target_os = "linux")]
    {
        // Field 4; the first field after the name is number 3.
        let parent = stat_fields(pid)?.split(' ').nth(1).and_then(|field| field.parse().ok());
        parent.map(Pid).ok_or_else(|| io::Error::other("/proc/PID/stat has no parent"))
    }
    #[cfg(target_os = "macos")]
    Ok(Pid(super::darwin::facts(pid.0)?.parent))
}

/// When a process started, where the kernel tells: in clock ticks since boot on Linux, in
/// microseconds since 1970 on macOS, which tells it of one's own processes only.
pub fn start_time(pid: Pid) -> Option<u64> {
    #[cfg(target_os = "linux")]
    // Field 22; the first field after the name is number 3.
    return stat_fields(pid).ok()?.split(' ').nth(19)?.parse().ok();
    #[cfg(target_os = "macos")]
    super::darwin::facts(pid.0).ok()?.start
}

/// The start time, or `None` where it is kept from us (a process of another user).
#[cfg(target_os = "macos")]
fn readable_start(pid: Pid) -> io::Result<Option<u64>> {
    match super::darwin::facts(pid.0) {
        Ok(facts) => Ok(facts.start),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The inode that names this process's pid namespace, where /proc tells.
pub fn pid_namespace() -> Option<u64> {
    nix::sys::stat::stat("/proc/self/ns/pid").ok().map(|stat| stat.st_ino)
}

/// The inode of a pidfd if it lies on pidfs (Linux 6.9); before, all pidfds shared one inode.
#[cfg(target_os = "linux")]
fn pidfs_inode(pidfd: BorrowedFd<'_>) -> Option<u64> {
    const PID_FS_MAGIC: u32 = 0x5049_4446; // linux/magic.h
    let kind = nix::sys::statfs::fstatfs(pidfd).ok()?.filesystem_type();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    // the type's width differs by platform
    if kind.0 as u32 != PID_FS_MAGIC {
        return None;
    }
    nix::sys::stat::fstat(pidfd).ok().map(|stat| stat.st_ino)
}

/// Makes this process the one that orphaned descendants are given to (prctl(2)), so that
/// daemonised children stay below it.
///
/// # Errors
/// `ENOSYS` where the platform has no subreapers.
pub fn become_subreaper() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    return Ok(nix::sys::prctl::set_child_subreaper(true)?);
    #[cfg(not(target_os = "linux"))]
    Err(Errno::ENOSYS.into())
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn sleeper() -> std::process::Child {
        Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap()
    }

    #[test]
    fn a_process_is_alive_until_it_has_ended_reaped_or_not() {
        let mut child = sleeper();
        let process = Process::open(Pid(child.id())).unwrap();
        assert!(process.is_alive());
        child.kill().unwrap();
        // Waits for the end without reaping.
        let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
        let flags = nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT;
        nix::sys::wait::waitid(nix::sys::wait::Id::Pid(pid), flags).unwrap();
        assert!(!process.is_alive(), "a zombie has ended");
        child.wait().unwrap();
        assert!(!process.is_alive());
        assert_eq!(process.parent().unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn a_child_is_at_or_below_us_and_we_are_not_below_it() {
        let mut child = sleeper();
        let process = Process::open(Pid(child.id())).unwrap();
        let own = Process::open(Pid::own()).unwrap();
        let (ours, theirs) = (own.identity(), process.identity());
        assert_eq!(process.parent().unwrap().unwrap().identity(), ours);
        let finds = |from: &Process, wanted: &Identity| {
            from.walk_up(&mut |step, process| process.is_same(wanted).then_some(step == 0)).unwrap()
        };
        assert_eq!(finds(&process, &ours), Some(false));
        assert_eq!(finds(&process, &theirs), Some(true));
        assert_eq!(finds(&own, &theirs), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn identity_prefers_the_inode_and_falls_back_to_pid_and_start() {
        let inode = |pid, pidfs| Identity { pid: Pid(pid), pidfs: Some(pidfs), start: None };
        let start = |pid, start| Identity { pid: Pid(pid), pidfs: None, start: Some(start) };
        assert!(inode(5, 1).is_same(&inode(9, 1)), "a pid differs between namespaces, an inode does not");
        assert!(!inode(5, 1).is_same(&inode(5, 2)));
        assert!(start(5, 1).is_same(&start(5, 1)));
        assert!(!start(5, 1).is_same(&start(5, 2)));
        assert!(!start(5, 1).is_same(&start(6, 1)));
        assert!(!inode(5, 1).is_same(&start(5, 1)));
    }

    #[test]
    fn a_process_is_found_again_by_its_mark_and_another_with_its_pid_is_not() {
        let mut child = sleeper();
        let identity = Process::open(Pid(child.id())).unwrap().identity();
        assert_eq!(identity.reopen().unwrap().identity(), identity);
        let start = start_time(identity.pid);
        let no_pidfs = Identity { pidfs: None, start, ..identity };
        assert_eq!(no_pidfs.reopen().is_ok(), identity.pidfs.is_none(), "a mark of the same kind decides");
        for other in [
            Identity { pidfs: Some(1), start: None, ..identity },
            Identity { pidfs: None, start: Some(1), ..identity },
            Identity { pidfs: None, start: None, ..identity },
            Identity { pid: Pid::own(), ..identity },
            Identity { pid: Pid(0), ..identity },
        ] {
            assert_eq!(other.reopen().unwrap_err().raw_os_error(), Some(libc::ESRCH), "{other:?}");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(identity.reopen().unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn start_time_and_namespace_are_read() {
        assert!(start_time(Pid::own()).unwrap() > 0);
        assert!(start_time(Pid(0)).is_none());
        assert!(pid_namespace().is_some());
    }
}
