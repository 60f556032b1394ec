//! Authenticated local sockets.
pub mod handshake;
pub mod kernel;
pub mod place;
pub mod secret;
pub mod session;
pub mod wire;
