//! Tests that drive the binary as a user would. One program, so that it links once.
#![allow(unreachable_pub, dead_code, unsafe_code, missing_docs, clippy::unwrap_used, clippy::print_stderr, clippy::undocumented_unsafe_blocks, clippy::disallowed_methods)]

mod ground;

mod adoption;
mod clients;
mod gate;
mod house;
mod impostor;
mod lifecycle;
mod ondemand;
mod tokens;
mod tree;
mod users;
mod vectors;
