//! Secrets: tokens, what a daemon keeps to verify them, randomness, and the files tokens live in. Nothing here can be printed.
#![forbid(unsafe_code)]

pub mod file;
pub mod random;
pub mod token;
pub mod verifier;
