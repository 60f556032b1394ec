//! The boundary to the kernel: the only rooms besides `init` where libc, nix and `unsafe` are used.
#![allow(unsafe_code)]

use std::io;

pub mod accounts;
pub mod boot;
pub mod clock;
#[cfg(target_os = "linux")]
pub mod confine;
#[cfg(any(target_os = "macos", test))]
#[cfg_attr(not(target_os = "macos"), allow(dead_code))] // its tests need no Mac
mod darwin;
pub mod dir;
pub mod fds;
mod ids;
#[cfg(target_os = "linux")]
pub mod mounts;
pub mod path;
pub mod peer;
pub mod process;
#[cfg(target_os = "linux")]
pub mod relink;
pub mod signals;
pub mod socket;
pub mod survey;
pub mod watch;

/// Whether the kernel refused for want of descriptors or memory: true for now, and of nobody in
/// particular.
pub fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS))
}
