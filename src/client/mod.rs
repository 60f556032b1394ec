//! A client of a daemon: finds it, starts it where nothing is installed, verifies it, proves itself, calls it.
#![forbid(unsafe_code)]

pub mod calls;
pub mod connect;
pub mod events;
pub mod follow;

pub use calls::{CallError, Client};
pub use connect::{ConnectError, Options};
pub use events::{Event, Gap, Start, Subscription, Told};
pub use follow::Follower;
