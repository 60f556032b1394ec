//! The sockets that a daemon serves, by the names that clients know: whether they still lead here, and how they are taken away at the end.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use super::watched::Watched;
use crate::init::{Adopted, Starter, ondemand};
use crate::kernel::dir::Dir;
use crate::kernel::socket::inode_at;

/// A socket, and the inode of its file when it was adopted.
struct Door {
    listener: UnixListener,
    path: PathBuf,
    inode: Option<(u64, u64)>,
}

impl Door {
    fn is_there(&self) -> bool {
        self.inode.is_none() || inode_at(&self.path) == self.inode
    }
}

/// All sockets of a daemon.
pub(super) struct Doors {
    doors: Vec<Door>,
    starter: Starter,
    is_system: bool,
    watched: Watched,
    lost: BTreeSet<PathBuf>,
}

impl Doors {
    /// Must be called from a tokio runtime.
    pub(super) fn new(adopted: Vec<Adopted>, starter: Starter, is_system: bool) -> Doors {
        // Before the inodes are looked at, so that nothing is missed in between.
        let watched = Watched::of(adopted.iter().map(|socket| socket.path.as_path()));
        let door = |socket: Adopted| Door {
            inode: inode_at(&socket.path),
            listener: socket.listener,
            path: socket.path,
        };
        let doors = adopted.into_iter().map(door).collect();
        Doors { doors, starter, is_system, watched, lost: BTreeSet::new() }
    }

    /// The listening sockets, once more.
    pub(super) fn listeners(&self) -> io::Result<Vec<UnixListener>> {
        self.doors.iter().map(|door| door.listener.try_clone()).collect()
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.doors.iter().map(|door| door.path.as_path())
    }

    /// Waits until a file may be gone or another. Cancel safe.
    pub(super) async fn stirred(&mut self) {
        self.watched.stirred().await;
    }

    /// Looks whether clients can still find the sockets. Returns whether that has changed.
    pub(super) fn look(&mut self) -> bool {
        let before = self.lost.len();
        let mut is_news = false;
        for door in &self.doors {
            if door.is_there() {
                self.lost.remove(&door.path);
            } else if self.lost.insert(door.path.clone()) {
                is_news = true;
                tracing::warn!(authsock_event = "socket_lost", "{}", self.words(&door.path));
            }
        }
        is_news || self.lost.len() != before
    }

    /// What is to be said of sockets that clients cannot find.
    pub(super) fn complaints(&self) -> impl Iterator<Item = String> {
        self.lost.iter().map(|path| self.words(path))
    }

    fn words(&self, path: &Path) -> String {
        let way_out = match self.starter {
            Starter::Init if self.is_system => "; `systemctl restart authsock.socket` makes it anew",
            Starter::Init => "; `systemctl --user restart authsock.socket` makes it anew",
            Starter::Client => "",
        };
        format!("{} was removed or replaced: new clients cannot find this daemon{way_out}", path.display())
    }

    /// Whether the daemon is of no use any more: its queue is its own, and nobody can come to it. An init
    /// system's socket is that one's to mend.
    pub(super) fn are_lost(&self) -> bool {
        self.starter == Starter::Client && self.lost.len() == self.doors.len()
    }

    /// Removes the files, under the starters' lock in `state`. Returns whether clients start another daemon
    /// from now on.
    pub(super) fn take_away(&self, state: Option<&Dir>) -> bool {
        self.doors.iter().all(|door| match ondemand::remove_socket(state, &door.path, door.inode) {
            Ok(removed) => removed,
            Err(error) => {
                tracing::warn!(authsock_event = "socket_kept", "cannot remove the socket: {error}");
                false
            }
        })
    }
}
