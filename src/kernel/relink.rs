//! A second name for a socket file that others make anew: a hard link, which follows whatever has the first name now.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::socket::inode_at;

/// Ends the passing name that a link has until it takes the other's place.
const UNFINISHED: &str = ".new";

/// A file's second name. Its descriptor is readable when there is something to [`SecondName::renew`].
#[derive(Debug)]
pub struct SecondName {
    of: Vec<PathBuf>,
    at: PathBuf,
    events: Inotify,
}

impl SecondName {
    /// Gives the first of these files that exists a second name, and watches for the others.
    ///
    /// # Errors
    /// `EXDEV` on another file system, `EPERM` for another user's socket, `ENOENT` if there is none of them;
    /// else the kernel's answer.
    pub fn give(of: Vec<PathBuf>, at: PathBuf) -> io::Result<SecondName> {
        let events = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        for file in &of {
            let dir = file.parent().ok_or(Errno::EINVAL)?;
            events.add_watch(
                dir,
                AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR,
            )?;
        }
        let name = SecondName { of, at, events };
        // Made anew in between, it is seen by the watch.
        name.link()?;
        Ok(name)
    }

    /// Follows what has happened. What lies at the second name may be somebody else's to change: then nothing is
    /// forced.
    ///
    /// # Errors
    /// As [`SecondName::give`].
    pub fn renew(&self) -> io::Result<()> {
        loop {
            match self.events.read_events() {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        self.link()
    }

    fn link(&self) -> io::Result<()> {
        let found = self.of.iter().find(|file| inode_at(file).is_some()).ok_or(Errno::ENOENT)?;
        if inode_at(found) == inode_at(&self.at) {
            return Ok(());
        }
        let mut new = self.at.clone().into_os_string();
        new.push(UNFINISHED);
        let new = Path::new(&new);
        // One of a `link` that was cut short.
        let _ = std::fs::remove_file(new);
        std::fs::hard_link(found, new)?;
        std::fs::rename(new, &self.at)
    }
}

impl AsFd for SecondName {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn the_second_name_follows_what_has_the_first_and_prefers_the_earlier_of_several() {
        let temp = tempfile::tempdir().unwrap();
        let (early, late) = (temp.path().join("early"), temp.path().join("late"));
        let at = temp.path().join("at");
        let both = || vec![early.clone(), late.clone()];
        assert_eq!(SecondName::give(both(), at.clone()).unwrap_err().kind(), io::ErrorKind::NotFound);
        let _first = UnixListener::bind(&late).unwrap();
        let name = SecondName::give(both(), at.clone()).unwrap();
        assert_eq!(inode_at(&at), inode_at(&late));
        // Taken away, nothing changes; made anew, it is followed.
        std::fs::remove_file(&late).unwrap();
        assert!(name.renew().is_err());
        let _second = UnixListener::bind(&late).unwrap();
        name.renew().unwrap();
        assert_eq!(inode_at(&at), inode_at(&late));
        let _third = UnixListener::bind(&early).unwrap();
        name.renew().unwrap();
        assert_eq!(inode_at(&at), inode_at(&early));
        // What somebody put in its way stays.
        std::fs::remove_file(&at).unwrap();
        std::fs::create_dir(&at).unwrap();
        assert!(name.renew().is_err() && at.is_dir());
    }
}
