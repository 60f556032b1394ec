//! The boundary to the kernel: the only rooms besides `init` where libc, nix and `unsafe` are used.
#![allow(unsafe_code)]

pub mod dir;
pub mod fds;
pub mod peer;
pub mod process;
pub mod signals;
pub mod socket;
