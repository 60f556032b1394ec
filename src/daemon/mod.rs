//! The daemon: what an init system or a client starts. Wiring only; each part has its file.
#![forbid(unsafe_code)]

mod connection;
mod control;
mod doors;
mod events;
mod foundation;
mod http;
mod journal;
mod lifecycle;
mod metrics;
mod requests;
mod serve;
mod sessions;
mod settings;
mod store;
mod tally;
mod users;
mod watched;

pub use control::{Does, METHODS, Method, Needs};
pub use foundation::CannotServe;
pub use http::{ROUTES, Route};
pub use serve::{Fatal, Options, run};
