//! Mounts as /proc/self/mountinfo tells them (proc_pid_mountinfo(5)), and where else a file shows through another of them.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{self, AtFlags, OFlag};
use nix::sys::stat::{self, Mode};
use nix::unistd::{self, AccessFlags};

/// One mount: which part of which file system it shows, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    id: u64,
    device: Vec<u8>,
    /// The directory (or file) of the file system that it shows.
    root: PathBuf,
    point: PathBuf,
    /// The file system's type.
    kind: Vec<u8>,
}

/// A place at which a file shows a second time, still to be confirmed.
#[derive(Debug, PartialEq, Eq)]
enum Elsewhere {
    /// The file itself.
    Whole(PathBuf),
    /// By this mount, something that lies below it.
    Part { point: PathBuf, id: u64 },
}

/// All mounts of this process's namespace.
#[derive(Debug)]
pub struct Mounts(Vec<Mount>);

impl Mounts {
    /// Reads them.
    ///
    /// # Errors
    /// If there is no /proc.
    pub fn read() -> io::Result<Mounts> {
        Ok(Mounts::parse(&std::fs::read("/proc/self/mountinfo")?))
    }

    fn parse(text: &[u8]) -> Mounts {
        let mount = |line: &[u8]| {
            let mut fields = line.split(|byte| *byte == b' ');
            let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
            let device = fields.nth(1)?.to_vec();
            let (root, point) = (plain(fields.next()?), plain(fields.next()?));
            // After options, and as many fields as there are, up to a dash.
            let kind = fields.skip_while(|field| *field != b"-").nth(1)?.to_vec();
            Some(Mount { id, device, root, point, kind })
        };
        Mounts(text.split(|byte| *byte == b'\n').filter_map(mount).collect())
    }

    /// Whether something is mounted at `path` itself.
    pub fn has_one_at(&self, path: &Path) -> bool {
        self.0.iter().any(|mount| mount.point == path)
    }

    /// Other paths that lead to what lies at `path`, or to a part of it, through another mount of the
    /// same file system. `path` is absolute and has no links in it.
    ///
    /// # Errors
    /// If the path cannot be examined, or another one cannot that this user could open.
    pub fn elsewhere(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let opened = hold(path)?;
        let inode = inode_of(&opened)?;
        // What is mounted over it, or out of reach for us, is out of reach for our children too.
        let confirmed = |place: Elsewhere| {
            let (Elsewhere::Whole(path) | Elsewhere::Part { point: path, .. }) = &place;
            let found = match hold(path) {
                Ok(found) => found,
                Err(error) => {
                    refuse_closed_by_own(path, &error)?;
                    return Ok(None);
                }
            };
            let is_it = match &place {
                Elsewhere::Whole(_) => inode_of(&found)? == inode,
                Elsewhere::Part { id, .. } => mount_of(&found)? == *id,
            };
            Ok(is_it.then(|| path.clone()))
        };
        let places = self.candidates(mount_of(&opened)?, path).into_iter();
        places.filter_map(|place| confirmed(place).transpose()).collect()
    }

    /// Where file systems of these types can be reached.
    ///
    /// # Errors
    /// If one cannot that this user could open.
    pub fn of_kinds(&self, kinds: &[&[u8]]) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for mount in self.0.iter().filter(|mount| kinds.contains(&mount.kind.as_slice())) {
            match hold(&mount.point) {
                Ok(opened) if mount_of(&opened)? == mount.id => found.push(mount.point.clone()),
                // Another one is mounted over it.
                Ok(_) => {}
                Err(error) => refuse_closed_by_own(&mount.point, &error)?,
            }
        }
        Ok(found)
    }

    fn candidates(&self, id: u64, path: &Path) -> Vec<Elsewhere> {
        let Some(own) = self.0.iter().find(|mount| mount.id == id) else { return Vec::new() };
        let Ok(below) = path.strip_prefix(&own.point) else { return Vec::new() };
        let inside = joined(&own.root, below);
        let place = |mount: &Mount| {
            if let Ok(rest) = inside.strip_prefix(&mount.root) {
                return Some(Elsewhere::Whole(joined(&mount.point, rest)));
            }
            let shows_a_part = mount.root.starts_with(&inside);
            shows_a_part.then(|| Elsewhere::Part { point: mount.point.clone(), id: mount.id })
        };
        let others = self.0.iter().filter(|mount| mount.id != id && mount.device == own.device);
        others.filter_map(place).collect()
    }
}

/// An error if a path could not be looked at (`error`) because of a directory of this user's own: whoever acts for
/// the user could change its mode. A stranger's keeps them out for good.
pub(super) fn refuse_closed_by_own(path: &Path, error: &io::Error) -> io::Result<()> {
    if error.raw_os_error() != Some(libc::EACCES) {
        return Ok(());
    }
    let ways: Vec<&Path> = path.ancestors().skip(1).collect();
    let is_closed = |dir: &&&Path| {
        unistd::faccessat(fcntl::AT_FDCWD, **dir, AccessFlags::X_OK, AtFlags::AT_EACCESS).is_err()
    };
    let Some(dir) = ways.iter().rev().find(is_closed) else { return Ok(()) };
    match stat::stat(*dir) {
        Ok(found) if found.st_uid != unistd::geteuid().as_raw() => Ok(()),
        _ => Err(io::Error::other(format!(
            "{} on the way to {} is closed, and this user could open it: chmod u+x it, or remove it",
            dir.display(),
            path.display()
        ))),
    }
}

/// `join` without the slash that an empty rest would leave at the end.
fn joined(path: &Path, rest: &Path) -> PathBuf {
    if rest.as_os_str().is_empty() { path.to_path_buf() } else { path.join(rest) }
}

/// A path of mountinfo: blanks, tabs, line ends and backslashes are octal there.
fn plain(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| after.get(..3)).flatten();
        let octal = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            bytes.push(byte);
            rest = &after[3..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    OsString::from_vec(bytes).into()
}

/// Holds a file without opening it: a link itself, and not its target.
pub(super) fn hold(path: &Path) -> io::Result<OwnedFd> {
    Ok(fcntl::open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Device and inode, which together name a file.
pub(super) fn inode_of(fd: &OwnedFd) -> io::Result<(u64, u64)> {
    let stat = stat::fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// The number of the mount that a held file was reached by.
fn mount_of(fd: &OwnedFd) -> io::Result<u64> {
    let info = std::fs::read(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let line = info.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"mnt_id:"));
    let number = line.and_then(|number| std::str::from_utf8(number).ok()?.trim().parse().ok());
    number.ok_or_else(|| Errno::ENODATA.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 254:0 / / rw - ext4 /dev/vda rw
30 22 0:25 / /run rw - tmpfs tmpfs rw
31 30 0:40 / /run/user/7 rw - tmpfs tmpfs rw
40 22 0:25 / /run/host/run rw - tmpfs tmpfs rw
41 40 0:40 / /run/host/run/user/7 rw - tmpfs tmpfs rw
42 22 0:40 /authsock /mnt/with\\040blank rw - tmpfs tmpfs rw
43 22 0:40 /bus /elsewhere rw - tmpfs tmpfs rw
44 22 254:0 /home /srv/home rw - ext4 /dev/vda rw
45 22 0:41 / /other rw - tmpfs tmpfs rw
";

    #[test]
    fn a_directory_shows_wherever_its_file_system_is_mounted_again() {
        let mounts = Mounts::parse(TABLE.as_bytes());
        let part = |point: &str, id| Elsewhere::Part { point: point.into(), id };
        let whole = |path: &str| Elsewhere::Whole(path.into());
        assert_eq!(
            mounts.candidates(31, Path::new("/run/user/7")),
            [whole("/run/host/run/user/7"), part("/mnt/with blank", 42), part("/elsewhere", 43)]
        );
        assert_eq!(
            mounts.candidates(31, Path::new("/run/user/7/authsock")),
            [whole("/run/host/run/user/7/authsock"), whole("/mnt/with blank")]
        );
        assert_eq!(mounts.candidates(22, Path::new("/home/u/x")), [whole("/srv/home/u/x")]);
        assert_eq!(mounts.candidates(22, Path::new("/home")), [whole("/srv/home")]);
        assert_eq!(mounts.candidates(22, Path::new("/tmp/authsock-7")), []);
        assert_eq!(mounts.candidates(45, Path::new("/other/x")), []);
        assert_eq!(mounts.candidates(99, Path::new("/other/x")), [], "a mount that has gone meanwhile");
    }

    #[test]
    fn a_mount_s_type_is_what_stands_after_the_dash_however_many_fields_stand_before() {
        let table =
            b"50 1 0:9 / /a ro,nosuid shared:3 master:1 - cgroup2 cgroup rw\n51 1 0:9 / /b rw - tmpfs - rw";
        let kinds: Vec<Vec<u8>> = Mounts::parse(table).0.into_iter().map(|mount| mount.kind).collect();
        assert_eq!(kinds, [b"cgroup2".to_vec(), b"tmpfs".to_vec()]);
        assert_eq!(Mounts::read().unwrap().of_kinds(&[b"no-such-type"]).unwrap(), Vec::<PathBuf>::new());
        let procs = Mounts::read().unwrap().of_kinds(&[b"proc"]).unwrap();
        assert!(procs.contains(&"/proc".into()), "{procs:?}");
    }

    #[test]
    fn octal_in_a_path_is_read_and_a_lone_backslash_is_left() {
        assert_eq!(plain(b"/a\\040b\\134c\\"), Path::new("/a b\\c\\"));
    }

    #[test]
    fn what_is_mounted_once_is_nowhere_else() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().canonicalize().unwrap();
        let found = Mounts::read().unwrap().elsewhere(&path).unwrap();
        assert!(!found.contains(&path), "{found:?}");
        assert!(Mounts::read().unwrap().elsewhere(&path.join("none")).is_err());
    }
}
