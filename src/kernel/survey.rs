//! Facts about the machine and its processes that are read and never changed: space, limits, who listens, who holds a lock.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};

use super::process::{Pid, Process};
use super::socket::inode_at;

/// What a file system has left for this user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Whether there is a block for one more file's content.
    pub has_blocks: bool,
    /// Whether there is an inode for one more file; some file systems do not count them.
    pub has_inodes: bool,
}

/// What is left on the file system that `path` lies on.
///
/// # Errors
/// The kernel's answer.
pub fn space(path: &Path) -> io::Result<Space> {
    let found = nix::sys::statvfs::statvfs(path)?;
    Ok(Space {
        has_blocks: found.blocks_available() > 0,
        has_inodes: found.files() == 0 || found.files_available() > 0,
    })
}

/// How many descriptors this process may have open.
pub fn descriptor_limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft)
}

/// Whether this process may write what lies at `path` (access lists and security modules included): connect to a
/// socket, make a file in a directory. Whatever else is wrong with the path is no matter of permissions.
pub fn may_write(path: &Path) -> bool {
    use nix::fcntl::{AT_FDCWD, AtFlags};
    use nix::unistd::{AccessFlags, faccessat};
    faccessat(AT_FDCWD, path, AccessFlags::W_OK, AtFlags::AT_EACCESS) != Err(nix::errno::Errno::EACCES)
}

/// The name that this machine has for a user.
pub fn user_name(uid: u32) -> Option<String> {
    nix::unistd::User::from_uid(uid.into()).ok().flatten().map(|user| user.name)
}

/// Whether systemd runs this machine (sd_booted(3)).
pub fn is_booted_with_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Whether a user's manager runs without a login, from boot on (loginctl(1), enable-linger).
pub fn lingers(user: &str) -> bool {
    Path::new("/var/lib/systemd/linger").join(user).exists()
}

/// Whether a process runs the program that lies at `path` now; false where that was replaced since. `None` where
/// either cannot be looked at.
pub fn runs(pid: Pid, path: &Path) -> Option<bool> {
    use std::os::unix::fs::MetadataExt;
    // The link leads to the file itself, also once its name is another's.
    let file = |path: &Path| path.metadata().map(|meta| (meta.dev(), meta.ino())).ok();
    Some(file(Path::new(&format!("/proc/{pid}/exe")))? == file(path)?)
}

/// How long ago a moment of the monotonic clock was that systemd gave in microseconds.
pub fn since_monotonic(microseconds: u64) -> Option<Duration> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).ok()?;
    Duration::from(now).checked_sub(Duration::from_micros(microseconds))
}

/// How long ago what lies at `path` was changed or put there, by the file system's own clock: a file that was written
/// elsewhere and moved here counts from the move.
pub fn since_changed(path: &Path) -> Option<Duration> {
    use std::os::unix::fs::MetadataExt;
    let meta = path.metadata().ok()?;
    let changed = Duration::new(meta.ctime().try_into().ok()?, meta.ctime_nsec().try_into().ok()?);
    (std::time::UNIX_EPOCH + changed).elapsed().ok()
}

/// Whether one of the kernel's lists has a line; `None` where there is no such list.
///
/// The kernel puts a list together page by page while others change it, so that one reading may miss a
/// line that was there all the time; it never shows one that was not.
fn has_line(list: &str, mut is_it: impl FnMut(&str) -> bool) -> Option<bool> {
    const READINGS: usize = 4;
    for _ in 0..READINGS {
        let mut file = std::fs::File::open(list).ok()?;
        let mut text = Vec::new();
        // As much at a time as the kernel gives: small pieces leave more room for change.
        let mut chunk = vec![0; 1 << 16];
        loop {
            match io::Read::read(&mut file, &mut chunk) {
                Ok(0) => break,
                Ok(length) => text.extend_from_slice(&chunk[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        if String::from_utf8_lossy(&text).lines().any(&mut is_it) {
            return Some(true);
        }
    }
    Some(false)
}

/// Whether somebody listens on the socket file at `path`, as far as this network namespace shows
/// (proc(5), /proc/net/unix); connecting would be a change. `None` where there is no such list.
///
/// The list is worth as much as the word of anybody in this network namespace: it shows abstract names as they
/// are, and one with a line end in it makes a line of its own. So it may say that somebody listens where nobody
/// does, and nothing in it is looked at or opened; that nobody listens is true of the names that are asked for, the path
/// as it stands and the one that it leads to.
pub fn is_listened_on(path: &Path) -> Option<bool> {
    /// `__SO_ACCEPTCON` of linux/net.h.
    const ACCEPTS: u32 = 1 << 16;
    if inode_at(path).is_none() {
        return Some(false);
    }
    // systemd and clients may have come to it by a link, /var/run.
    let real = path.parent().and_then(|parent| parent.canonicalize().ok());
    let real = real.zip(path.file_name()).map(|(parent, name)| parent.join(name));
    has_line("/proc/net/unix", |line| {
        let flags =
            line.split_ascii_whitespace().nth(3).and_then(|flags| u32::from_str_radix(flags, 16).ok());
        let Some((_, bound)) = line.split_once(" /") else { return false };
        let bound = format!("/{bound}");
        let is_it =
            [Some(path), real.as_deref()].into_iter().flatten().any(|path| path.to_string_lossy() == bound);
        is_it && flags.is_some_and(|flags| flags & ACCEPTS != 0)
    })
}

/// Whether somebody holds a flock(2) on the file at `path`, without asking for it: /proc/locks
/// names each by device and inode. `None` where there is no such list.
pub fn is_locked(path: &Path) -> Option<bool> {
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::MetadataExt;
        let meta = match path.symlink_metadata() {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(false),
            Err(_) => return None,
        };
        let device = format!(
            "{:02x}:{:02x}:{}",
            nix::sys::stat::major(meta.dev()),
            nix::sys::stat::minor(meta.dev()),
            meta.ino()
        );
        // Some file systems show another device number there than stat(2) does; then the holder that
        // the file itself notes decides.
        let inode = format!(":{}", meta.ino());
        let noted = super::dir::noted_holder(path).map(|pid| pid.to_string());
        has_line("/proc/locks", |line| {
            let mut fields = line.split_ascii_whitespace().skip(1).filter(|field| *field != "->");
            let (kind, holder, file) = (fields.next(), fields.nth(2), fields.next().unwrap_or_default());
            kind == Some("FLOCK")
                && (file == device
                    || (file.ends_with(&inode) && holder.is_some() && holder == noted.as_deref()))
        })
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = path;
        None
    }
}

/// Whether `path` itself is a mount point: then it may lead to another namespace's socket.
pub fn is_mount_point(path: &Path) -> bool {
    #[cfg(target_os = "linux")]
    return super::mounts::Mounts::read().is_ok_and(|mounts| mounts.has_one_at(path));
    #[cfg(not(target_os = "linux"))]
    {
        let _ = path;
        false
    }
}

/// Whether the file at `path` has further names: a socket may then listen by another of them.
pub fn has_other_names(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    path.symlink_metadata().is_ok_and(|meta| meta.nlink() > 1)
}

/// How /proc is mounted, if it hides processes (proc(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hidepid {
    /// The `hidepid=` option.
    pub option: String,
    /// Whether it keeps a daemon from walking up to a process's ancestors: the user's own daemon, or one of root's
    /// that may not trace others.
    pub blinds: bool,
}

/// The `hidepid=` option with which /proc is mounted, if it hides anything from the daemon that is asked about.
pub fn hidepid(is_system: bool) -> Option<Hidepid> {
    let list = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let proc = list.lines().rfind(|line| line.split(' ').nth(4) == Some("/proc"))?;
    let option = |name: &str| proc.split([' ', ',']).find_map(|option| option.strip_prefix(name));
    let hidden = option("hidepid=").filter(|hidden| !["0", "off"].contains(hidden))?;
    let blinds = if is_system {
        // Members of the group 0 see all unless another one is named; nobody does with the last of the options.
        option("gid=").is_some() || ["4", "ptraceable"].contains(&hidden)
    } else {
        Process::open(Pid::own()).and_then(|own| own.walk_up(&mut |_, _| None)).is_err()
    };
    Some(Hidepid { option: hidden.to_owned(), blinds })
}

/// Whose a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Its effective user id.
    pub uid: u32,
    /// Its file-system user id, by which access is decided.
    pub fsuid: u32,
    /// Its groups: the file-system group id and the supplementary ones.
    pub groups: Vec<u32>,
    /// Whether it may pass every file's permissions (CAP_DAC_OVERRIDE).
    pub overrides: bool,
}

/// Whose a process is, where /proc tells.
pub fn credentials(pid: Pid) -> Option<Credentials> {
    /// linux/capability.h.
    const CAP_DAC_OVERRIDE: u32 = 1;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let numbers = |name: &str| -> Vec<u32> {
        field(name).split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect()
    };
    let (uids, gids) = (numbers("Uid:"), numbers("Gid:"));
    let mut groups = numbers("Groups:");
    groups.extend(gids.get(3));
    let effective = u64::from_str_radix(field("CapEff:").trim(), 16).unwrap_or(0);
    Some(Credentials {
        uid: *uids.get(1)?,
        fsuid: *uids.get(3)?,
        groups,
        overrides: effective >> CAP_DAC_OVERRIDE & 1 == 1,
    })
}

/// Most bytes of another process's variables that are read. exec(3) takes more by default than anybody uses, and a
/// process can make it terabytes afterwards (prctl(2), PR_SET_MM_MAP).
pub const ENVIRONMENT_MAX: usize = 1 << 20;

/// The variables that a process was started with, as far as they are read.
#[derive(Debug)]
pub struct Environment {
    bytes: Vec<u8>,
    /// Whether there is more than was read.
    pub is_cut: bool,
}

impl Environment {
    /// What /proc tells of a process.
    ///
    /// # Errors
    /// What /proc said: other users' are hidden.
    pub fn of(pid: Pid) -> io::Result<Environment> {
        let file = std::fs::File::open(format!("/proc/{pid}/environ"))?;
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, ENVIRONMENT_MAX as u64 + 1), &mut bytes)?;
        let is_cut = bytes.len() > ENVIRONMENT_MAX;
        if is_cut {
            // What is not whole is not told of.
            let whole = bytes.iter().rposition(|byte| *byte == 0).unwrap_or(0);
            bytes.truncate(whole);
        }
        Ok(Environment { bytes, is_cut })
    }

    /// The value of a variable; an empty one is a value.
    pub fn variable(&self, name: &str) -> Option<String> {
        let mut values = self
            .bytes
            .split(|byte| *byte == 0)
            .filter_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
        values.next().map(|value| String::from_utf8_lossy(value).into_owned())
    }
}

/// The absolute path of a file that a process names relative to its working directory.
pub fn absolute_for(pid: Pid, path: &Path) -> Option<PathBuf> {
    if path.is_absolute() {
        return Some(path.to_path_buf());
    }
    // Both are told as this process sees them, so that of a directory below another root only the rest counts.
    let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    let root = std::fs::read_link(format!("/proc/{pid}/root")).ok()?;
    Some(Path::new("/").join(cwd.strip_prefix(root).ok()?).join(path))
}

/// What lies at `path` for whoever has `root` as its root directory: links lead where they lead there, and never
/// out of it.
///
/// # Errors
/// The kernel's answer.
pub fn metadata_below(root: &Path, path: &Path) -> io::Result<std::fs::Metadata> {
    #[cfg(target_os = "linux")]
    {
        use nix::errno::Errno;
        use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
        use nix::sys::stat::Mode;
        let handle = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let below = open(root, handle | OFlag::O_DIRECTORY, Mode::empty())?;
        let within = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        match openat2(&below, path, OpenHow::new().flags(handle).resolve(within)) {
            Ok(found) => return std::fs::File::from(found).metadata(),
            // Linux before 5.6 has no such call, and filters of system calls that do not know it forbid it.
            Err(Errno::ENOSYS | Errno::EPERM) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    root.join(path.strip_prefix("/").unwrap_or(path)).metadata()
}

/// Looks at what a stranger prepared, and gives up when it takes too long: neither a file system nor memory of that
/// stranger's making need ever answer (fuse(4), userfaultfd(2)). What is stuck then ends with this process.
pub fn in_time<T: Send + 'static>(look: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::Builder::new().spawn(move || sender.send(look())).ok()?;
    receiver.recv_timeout(PATIENCE).ok()
}

/// A namespace of a process, as `/proc/PID/ns` names it.
///
/// # Errors
/// What /proc said: other users' are hidden.
pub fn namespace(pid: Pid, kind: &str) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/{kind}"))
}

/// The most descriptors that a process may have open, where /proc tells.
pub fn descriptor_limit_of(pid: Pid) -> Option<u64> {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use crate::kernel::dir::{Dir, own_uid};

    #[test]
    fn a_line_that_anybody_can_forge_leads_to_no_look_at_the_path_in_it() {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::net::{SocketAddr, UnixListener};
        let temp = tempfile::tempdir().unwrap();
        let (dead, other) = (temp.path().join("s"), temp.path().join("elsewhere"));
        drop(UnixListener::bind(&dead).unwrap());
        std::fs::create_dir(&other).unwrap();
        std::fs::hard_link(&dead, other.join("s")).unwrap();
        let line = format!("\n0: 00000002 00000000 00010000 0001 01 1 {}", other.join("s").display());
        let forged = SocketAddr::from_abstract_name(line).unwrap();
        let _listener = UnixListener::bind_addr(&forged).unwrap();
        assert_eq!(is_listened_on(&dead), Some(false));
    }

    #[test]
    fn a_listener_is_seen_by_a_link_to_its_directory() {
        let temp = tempfile::tempdir().unwrap();
        let (real, link) = (temp.path().join("run"), temp.path().join("var-run"));
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(real.join("s")).unwrap();
        assert_eq!(is_listened_on(&link.join("s")), Some(true));
    }

    #[test]
    fn a_listener_is_seen_without_connecting_and_so_is_its_end() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(is_listened_on(&path), Some(true));
        // One of the same name elsewhere is another.
        let other = temp.path().join("other");
        std::fs::create_dir(&other).unwrap();
        assert_eq!(is_listened_on(&other.join("s")), Some(false));
        std::fs::File::create(other.join("s")).unwrap();
        assert_eq!(is_listened_on(&other.join("s")), Some(false));
        drop(listener);
        assert_eq!(is_listened_on(&path), Some(false));
    }

    #[test]
    fn a_lock_is_seen_without_asking_for_it_and_so_is_its_end() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open_or_create(&temp.path().join("d"), own_uid()).unwrap();
        let path = dir.path().join("lock");
        assert_eq!(is_locked(&path), Some(false));
        let mut held = dir.try_lock("lock").unwrap().unwrap();
        held.note_holder(Pid::own().0).unwrap();
        assert_eq!(is_locked(&path), Some(true));
        drop(held);
        // A program that another test is just starting has it too until its exec.
        let end = std::time::Instant::now() + Duration::from_secs(10);
        while is_locked(&path) != Some(false) {
            assert!(std::time::Instant::now() < end, "it is still held");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn this_process_has_this_process_s_credentials() {
        let found = credentials(Pid::own()).unwrap();
        assert_eq!((found.uid, found.fsuid), (own_uid(), own_uid()));
        assert_eq!(descriptor_limit_of(Pid::own()), Some(descriptor_limit()));
        assert!(namespace(Pid::own(), "pid").is_ok());
    }
}
