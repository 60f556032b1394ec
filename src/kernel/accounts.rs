//! The system's own lists of users and groups (getpwnam(3), getgrnam(3)): names, numbers, and who is in what.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_known_and_nobody_s_name_is_not() {
        assert_eq!(uid_of("root").unwrap(), Some(0));
        assert_eq!(uid_of("no-such-user-here").unwrap(), None);
        assert_eq!(gid_of("no-such-group-here").unwrap(), None);
        assert!(!is_private_group(0, 1), "root's group is not of the user bin, or daemon");
    }
}
