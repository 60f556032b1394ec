//! The way to a file: whether anybody but this user and root could change where it leads.

use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{self, FileStat, SFlag};

use super::accounts;
use super::dir::{Problem, Unusable, file_type, own_uid, permissions, refuse_strangers};

/// Most links on one way, as the kernel has it (path_resolution(7)).
const LINKS_MAX: usize = 40;

/// The permission bits that let somebody else change a file or directory. A group is no somebody else if it is
/// root's, or this user's alone.
fn bits_of_others(path: &Path, stat: &FileStat) -> u32 {
    let is_own = stat.st_uid == own_uid() && own_uid() != 0;
    let is_harmless = stat.st_gid == 0 || (is_own && accounts::is_private_group(stat.st_gid, stat.st_uid));
    // With an access list the group's bits are what the list may give to anybody (acl(5)).
    if is_harmless && !has_access_list(path) { 0o002 } else { 0o022 }
}

/// Whether a file has an access list beyond its mode; one that cannot be asked counts as one that has.
fn has_access_list(path: &Path) -> bool {
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::ffi::OsStrExt;
        let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else { return true };
        // SAFETY: both names end with NUL, and nothing is written where no room is given.
        let size = unsafe {
            libc::lgetxattr(path.as_ptr(), c"system.posix_acl_access".as_ptr(), std::ptr::null_mut(), 0)
        };
        size >= 0 || !matches!(Errno::last(), Errno::ENODATA | Errno::EOPNOTSUPP)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = path;
        false
    }
}

fn examine(path: &Path) -> Result<FileStat, Unusable> {
    stat::lstat(path).map_err(|errno| match errno {
        Errno::ENOENT => Unusable::new(path, Problem::Missing),
        errno => Unusable::io(path, "examine", errno),
    })
}

/// Refuses a program that somebody else than this user and root could replace, now or once it is gone: the
/// file, and every directory on the way to it. A sticky directory keeps only what is there, so it is not
/// excused. `path` must not lead through links.
///
/// # Errors
/// [`Unusable`], naming the first path that is not to be trusted.
pub fn refuse_replaceable(path: &Path) -> Result<(), Unusable> {
    for part in path.ancestors() {
        let stat = examine(part)?;
        refuse_strangers(part, &stat, own_uid(), bits_of_others(part, &stat))?;
    }
    Ok(())
}

/// Where a path leads, if nobody but this user and root had a say in it: every directory and every link on
/// the way is theirs, and others may write none of the directories (of a sticky one they cannot take what is
/// there). What does not exist yet is taken as it is named.
///
/// # Errors
/// [`Unusable`], naming the first path that is not to be trusted.
pub fn settle(path: &Path) -> Result<PathBuf, Unusable> {
    let mut real = PathBuf::from("/");
    // What is still to be walked, the next last.
    let mut left: Vec<OsString> = names(path);
    let mut links = 0;
    while let Some(name) = left.pop() {
        if name == ".." {
            real.pop();
            continue;
        }
        let next = real.join(&name);
        let stat = match examine(&next) {
            Ok(stat) => stat,
            Err(unusable) if unusable.is_missing() => {
                real = next;
                real.extend(left.iter().rev());
                return Ok(real);
            }
            Err(unusable) => return Err(unusable),
        };
        if file_type(&stat) == SFlag::S_IFLNK {
            // A link has no permissions of its own.
            refuse_strangers(&next, &stat, own_uid(), 0)?;
            links += 1;
            if links > LINKS_MAX {
                return Err(Unusable::io(path, "follow", io::Error::from(Errno::ELOOP)));
            }
            let target = std::fs::read_link(&next).map_err(|error| Unusable::io(&next, "follow", error))?;
            if target.is_absolute() {
                real = PathBuf::from("/");
            }
            left.extend(names(&target));
            continue;
        }
        let is_sticky = permissions(&stat) & 0o1000 != 0;
        let others = if is_sticky { 0 } else { bits_of_others(&next, &stat) };
        // What others may do to the file at the end is for whoever opens it to judge.
        if file_type(&stat) == SFlag::S_IFDIR {
            refuse_strangers(&next, &stat, own_uid(), others)?;
        }
        real = next;
    }
    Ok(real)
}

/// Where the directory of a file leads, as [`settle`] has it, with the file's name: the file itself is not followed if it
/// is a link, so that only what is there is removed.
///
/// # Errors
/// [`Unusable`]; also for a path that ends in no name.
pub fn settle_name(path: &Path) -> Result<PathBuf, Unusable> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok(settle(parent)?.join(name)),
        _ => Err(Unusable::io(path, "find", io::Error::from(io::ErrorKind::InvalidInput))),
    }
}

/// The names in a path, the last one first.
fn names(path: &Path) -> Vec<OsString> {
    let names = path.components().rev().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::dir::Dir;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_program_that_others_could_replace_is_named() {
        // Below /tmp nothing stays.
        let home = std::env::home_dir().and_then(|home| tempfile::tempdir_in(home).ok());
        let Some(temp) = home else { return };
        let dir = Dir::open_or_create(&temp.path().join("bin"), own_uid()).unwrap();
        dir.replace_with_mode("program", b"x", 0o755).unwrap();
        let program = dir.path().join("program").canonicalize().unwrap();
        refuse_replaceable(&program).unwrap();
        let parent = program.parent().unwrap();
        for (path, mode) in [(program.as_path(), 0o757), (parent, 0o702), (parent, 0o1777)] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
            let refused = refuse_replaceable(&program).unwrap_err();
            assert!(matches!(refused.problem, Problem::OthersMayWrite { .. }), "{refused}");
            assert_eq!(refused.path, path);
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        assert!(refuse_replaceable(&program.with_file_name("none")).unwrap_err().is_missing());
    }

    #[test]
    fn a_path_leads_where_the_kernel_says_and_what_is_missing_is_as_named() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        symlink("../a", root.join("a/up")).unwrap();
        symlink(root.join("a/b"), root.join("direct")).unwrap();
        for path in ["a/b", "a/up/b", "direct", "a/up/up/../a/b", "a/./b"] {
            let path = root.join(path);
            assert_eq!(settle(&path).unwrap(), path.canonicalize().unwrap(), "{}", path.display());
        }
        assert_eq!(settle(&root.join("direct/c/d")).unwrap(), root.join("a/b/c/d"));
        symlink("loop", root.join("loop")).unwrap();
        assert!(settle(&root.join("loop/x")).is_err());
    }

    #[test]
    fn a_way_on_which_others_have_a_say_is_not_gone() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("open/below")).unwrap();
        std::fs::set_permissions(root.join("open"), PermissionsExt::from_mode(0o777)).unwrap();
        let refused = settle(&root.join("open/below/file")).unwrap_err();
        assert_eq!(refused.path, root.join("open"));
    }
}
