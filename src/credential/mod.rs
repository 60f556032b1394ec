//! The client's side of a secret: where a program finds the token that stands for it, and what becomes of that when it is rotated.
#![forbid(unsafe_code)]

pub mod discover;
pub mod successor;
