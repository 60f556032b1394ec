//! The system's own lists of users and groups (getpwnam(3), getgrnam(3), getgrouplist(3)): names, numbers, and who is in what.

use std::ffi::{CStr, CString};
use std::io;

/// The number of a user.
///
/// # Errors
/// If the lists cannot be read; a name that nobody has is `Ok(None)`.
pub fn uid_of(name: &str) -> io::Result<Option<u32>> {
    Ok(nix::unistd::User::from_name(name)?.map(|user| user.uid.as_raw()))
}

/// The number of a group.
///
/// # Errors
/// If the lists cannot be read; a name that no group has is `Ok(None)`.
pub fn gid_of(name: &str) -> io::Result<Option<u32>> {
    Ok(nix::unistd::Group::from_name(name)?.map(|group| group.gid.as_raw()))
}

/// Whether a group is one user's alone, as user-private groups are: it has the user's name, and lists nobody else.
pub fn is_private_group(gid: u32, uid: u32) -> bool {
    let user = nix::unistd::User::from_uid(uid.into()).ok().flatten();
    let group = nix::unistd::Group::from_gid(gid.into()).ok().flatten();
    user.zip(group).is_some_and(|(user, group)| {
        user.name == group.name && group.mem.iter().all(|member| *member == user.name)
    })
}

/// The groups that a user is in, with its own: what a login would have. Nobody is in any who has no entry. It may take as
/// long as whatever keeps the lists (a directory in the network) does.
///
/// # Errors
/// If the lists cannot be read.
pub fn groups_of(uid: u32) -> io::Result<Vec<u32>> {
    let Some(user) = nix::unistd::User::from_uid(uid.into())? else { return Ok(Vec::new()) };
    let name = CString::new(user.name)?;
    group_list(&name, user.gid)
}

#[cfg(not(target_os = "macos"))]
fn group_list(name: &CStr, own: nix::unistd::Gid) -> io::Result<Vec<u32>> {
    Ok(nix::unistd::getgrouplist(name, own)?.into_iter().map(nix::unistd::Gid::as_raw).collect())
}

/// nix has no getgrouplist(3) for this system, whose own takes signed numbers.
#[cfg(target_os = "macos")]
fn group_list(name: &CStr, own: nix::unistd::Gid) -> io::Result<Vec<u32>> {
    // A user is in 65536 groups at most there, nested ones included; few are in more than these.
    for room in [64_usize, 1024, 65_536] {
        let mut groups: Vec<libc::c_int> = vec![0; room];
        let mut count = libc::c_int::try_from(room).unwrap_or(libc::c_int::MAX);
        // SAFETY: `groups` has `count` places, and `name` ends with a zero.
        let result = unsafe {
            libc::getgrouplist(name.as_ptr(), own.as_raw().cast_signed(), groups.as_mut_ptr(), &raw mut count)
        };
        if result != -1 {
            groups.truncate(usize::try_from(count).unwrap_or(0));
            return Ok(groups.into_iter().map(libc::c_int::cast_unsigned).collect());
        }
    }
    Err(io::Error::other("the user is in more groups than can be listed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_known_and_nobody_s_name_is_not() {
        assert_eq!(uid_of("root").unwrap(), Some(0));
        assert_eq!(uid_of("no-such-user-here").unwrap(), None);
        assert_eq!(gid_of("no-such-group-here").unwrap(), None);
        assert!(!is_private_group(0, 1), "root's group is not of the user bin, or daemon");
        assert!(groups_of(0).unwrap().contains(&0));
        assert!(groups_of(u32::MAX - 7).unwrap().is_empty());
    }
}
