//! Tells that a name in a directory may have changed hands, where the kernel says so by itself (inotify(7)).

pub use imp::Names;

#[cfg(target_os = "linux")]
mod imp {
    use std::ffi::OsString;
    use std::io;
    use std::os::fd::{AsFd, AsRawFd, RawFd};
    use std::path::Path;

    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

    /// A watch on the names of some files: whether they are removed, moved or replaced, not what is in
    /// them. Its descriptor is readable when there is something to [`Names::take`].
    #[derive(Debug)]
    pub struct Names {
        events: Inotify,
        names: Vec<OsString>,
    }

    impl Names {
        /// Watches these files, in the directories that they lie in. `None` where that cannot be had
        /// (`fs.inotify.max_user_instances` are in use, or it is not Linux): look by the clock then.
        pub fn of<'a>(files: impl Iterator<Item = &'a Path>) -> Option<Names> {
            let events = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok()?;
            let changes = AddWatchFlags::IN_DELETE
                | AddWatchFlags::IN_MOVE
                | AddWatchFlags::IN_DELETE_SELF
                | AddWatchFlags::IN_MOVE_SELF
                | AddWatchFlags::IN_ONLYDIR;
            let mut names = Vec::new();
            for file in files {
                events.add_watch(file.parent()?, changes).ok()?;
                names.push(file.file_name()?.to_owned());
            }
            Some(Names { events, names })
        }

        /// Takes what has happened, and says whether any of it may concern these files.
        ///
        /// # Errors
        /// The kernel's; `WouldBlock` where nothing has happened.
        pub fn take(&self) -> io::Result<bool> {
            let events = self.events.read_events()?;
            // Without a name it is the directory itself, or there were too many to tell.
            Ok(events.iter().any(|event| event.name.as_ref().is_none_or(|name| self.names.contains(name))))
        }
    }

    impl AsRawFd for Names {
        fn as_raw_fd(&self) -> RawFd {
            self.events.as_fd().as_raw_fd()
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use std::io;
    use std::os::fd::{AsRawFd, RawFd};
    use std::path::Path;

    /// There is none: kqueue(2) would have to hold the files open, and a socket's cannot be.
    #[derive(Debug)]
    pub enum Names {}

    impl Names {
        /// None.
        pub fn of<'a>(_: impl Iterator<Item = &'a Path>) -> Option<Names> {
            None
        }

        /// Nobody has one to call this on.
        ///
        /// # Errors
        /// None.
        pub fn take(&self) -> io::Result<bool> {
            match *self {}
        }
    }

    impl AsRawFd for Names {
        fn as_raw_fd(&self) -> RawFd {
            match *self {}
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn only_a_name_that_goes_or_is_replaced_is_told() {
        let temp = tempfile::tempdir().unwrap();
        let (ours, other) = (temp.path().join("ours"), temp.path().join("other"));
        let make = |path: &std::path::Path| drop(std::fs::File::create(path).unwrap());
        make(&ours);
        let names = Names::of([ours.as_path()].into_iter()).unwrap();
        let nothing = || names.take().unwrap_err().kind() == std::io::ErrorKind::WouldBlock;
        assert!(nothing());
        std::io::Write::write_all(&mut std::fs::File::create(&ours).unwrap(), b"content").unwrap();
        make(&other);
        assert!(nothing(), "what is in a file, and a new one, change no name");
        std::fs::remove_file(&other).unwrap();
        assert!(!names.take().unwrap(), "another one's name");
        make(&other);
        std::fs::rename(&other, &ours).unwrap();
        assert!(names.take().unwrap(), "replaced");
        std::fs::remove_file(&ours).unwrap();
        assert!(names.take().unwrap(), "removed");
        std::fs::remove_dir(temp.path()).unwrap();
        assert!(names.take().unwrap(), "its directory is gone");
    }
}
