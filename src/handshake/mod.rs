//! Who proves what to whom: the handshake's two halves as state machines that see messages and facts, and neither socket nor clock.
#![forbid(unsafe_code)]

pub mod client;
pub mod proof;
pub mod server;
