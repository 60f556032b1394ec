//! Authenticated local sockets.
pub mod cli;
pub mod client;
pub mod config;
pub mod credential;
pub mod daemon;
pub mod gate;
pub mod handshake;
pub mod init;
pub mod kernel;
pub mod place;
pub mod secret;
pub mod session;
pub mod wire;
