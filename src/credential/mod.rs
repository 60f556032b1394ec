//! The client's side of a secret: where a program finds the token that stands for it.
#![forbid(unsafe_code)]

pub mod discover;
