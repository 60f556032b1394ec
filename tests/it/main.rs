//! Tests that drive the binary as a user would. One program, so that it links once.
#![allow(
    unreachable_pub,
    dead_code,
    unsafe_code,
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::undocumented_unsafe_blocks,
    clippy::disallowed_methods
)]

mod ground;

mod adoption;
mod batches;
mod cli;
mod clients;
#[cfg(target_os = "linux")] // namespaces
mod confine;
#[cfg(target_os = "linux")] // /proc, namespaces
mod doctor;
mod events;
mod events_cli;
#[cfg(target_os = "linux")] // strace
mod faults;
mod gate;
mod gate_library;
mod house;
mod http;
#[cfg(target_os = "linux")] // pidfds, namespaces, prctl
mod impostor;
#[cfg(target_os = "linux")] // systemctl
mod install;
mod launchd;
mod lifecycle;
mod manual;
mod metrics;
mod ondemand;
mod packaging;
mod recipes;
#[cfg(target_os = "linux")]
mod restart;
mod rpc;
mod run;
#[cfg(target_os = "linux")] // trees
mod sessions;
mod shells;
mod smuggling;
mod terminal;
mod tokens;
#[cfg(target_os = "linux")] // pidfds, namespaces, prctl
mod tree;
#[cfg(target_os = "linux")] // pidfds, namespaces, prctl
mod users;
mod vectors;
#[cfg(target_os = "linux")] // namespaces, cron
mod ways;
