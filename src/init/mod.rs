//! How a daemon comes by its listening sockets: from systemd, from launchd, or from the client that started it. It adopts; it never binds.
#![allow(unsafe_code)]

pub mod launchd;
pub mod ondemand;
pub mod systemd;

use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use crate::kernel::socket::NotAListener;

/// A listening socket that somebody else made, examined.
#[derive(Debug)]
pub struct Adopted {
    /// The socket.
    pub listener: UnixListener,
    /// What it is for: `FileDescriptorName=` of its unit.
    pub name: String,
    /// Where it listens.
    pub path: PathBuf,
}

/// Who holds the queue of connections when the daemon exits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Starter {
    /// The init system: it keeps the socket, and whoever waits in its queue starts the daemon again.
    Init,
    /// A client: the queue dies with the daemon, and who waited starts another.
    Client,
}

/// What a daemon was started with.
#[derive(Debug)]
pub struct Activation {
    /// The sockets to serve.
    pub sockets: Vec<Adopted>,
    /// Descriptors that were passed but cannot be served, each with the reason.
    pub rejected: Vec<Rejected>,
    /// Who holds the queue.
    pub starter: Starter,
}

/// A descriptor that was passed but is no listener.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("descriptor {number} (named {name:?}) {reason}")]
pub struct Rejected {
    /// Its number.
    pub number: i32,
    /// Its name.
    pub name: String,
    /// What it is instead.
    pub reason: NotAListener,
}

/// Why there is nothing to serve.
#[derive(Debug, thiserror::Error)]
pub enum NotActivated {
    /// Nobody passed a socket.
    #[error(
        "no socket was passed{0}: authsock adopts its socket from an init system and never makes one. Start it with `systemctl --user restart authsock.socket`, or run any client (`authsock whoami`), which starts a daemon on demand"
    )]
    NoSocket(String),
    /// The variables that announce sockets make no sense.
    #[error("{variable}={value:?}: {problem}")]
    BadVariable {
        /// The variable.
        variable: &'static str,
        /// What it holds.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Every descriptor that was passed is unusable.
    #[error("none of the descriptors passed is a listening Unix stream socket: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    NoneUsable(Vec<Rejected>),
}

/// Has no child inherit the descriptors that a service manager passed to this process (sd_listen_fds(3)), for one
/// that has no use of them. What was passed to another process, and came here by inheritance, is left alone.
pub fn keep_from_children() {
    systemd::keep_from_children();
}

/// Adopts the sockets of whoever started this process. Must run before any thread does: it takes
/// the variables out of the environment, so that no child is misled by them.
///
/// # Errors
/// [`NotActivated`], with what is missing and how to start.
pub fn adopt(starter: Starter) -> Result<Activation, NotActivated> {
    #[cfg(target_os = "macos")]
    if starter == Starter::Init {
        return launchd::adopt();
    }
    systemd::adopt(starter)
}
