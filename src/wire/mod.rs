//! Bytes to messages and back, both ways, for every protocol on the socket; pure. docs/protocol.md is the manual.
#![forbid(unsafe_code)]

pub mod auth;
pub mod event;
pub mod http;
pub mod json_rpc;
pub mod line;
pub mod opening;
pub mod subject;
pub mod text;
