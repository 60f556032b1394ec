//! Authenticated local sockets: every connection on a Unix socket has a proven peer, and every
//! request belongs to a session that it is attributed to.
//!
//! Kernel credentials (`SO_PEERCRED`) tell users apart; they cannot tell two programs of one user
//! apart. A token does. Both are always required, and both ends are proven: the client knows that it
//! speaks to its daemon, and that nothing relays.
//!
//! # For a server
//!
//! A [`gate::Gate`] in front of a listening socket yields connections that are through the
//! handshake, and nothing else:
//!
//! ```no_run
//! use std::sync::{Arc, Mutex};
//! use authsock::config::Config;
//! use authsock::gate::{self, Gate, Settings};
//! use authsock::init::{self, Starter};
//! use authsock::secret::{file, verifier::Verifier};
//! use authsock::session::limits::Limits;
//! use authsock::session::registry::Registry;
//! use authsock::kernel::dir::{Dir, own_uid};
//!
//! # async fn serve() -> Result<(), Box<dyn std::error::Error>> {
//! // The sockets that systemd, launchd or a client passed; before any thread exists.
//! let activation = init::adopt(Starter::Init)?;
//! // The owner's token: made at the first activation, kept ever after.
//! let state = Dir::open_or_create("/run/user/1000/mine".as_ref(), own_uid())?;
//! let (token, _origin) = file::open_or_mint(&state, "token")?;
//!
//! let limits = Limits { sessions: 100, ..Limits::default() };
//! let registry = Registry::new(own_uid(), Verifier::of(&token), gate::now(), limits);
//! let settings = Settings::of(&Config::default(), own_uid());
//! let listeners = activation.sockets.into_iter().map(|socket| socket.listener).collect();
//! let mut gate = Gate::new(listeners, Arc::new(Mutex::new(registry)), settings)?;
//! loop {
//!     let connection = gate.accept().await;
//!     println!("session {} by process {}", connection.session().name, connection.peer().pid);
//!     let parts = connection.announce().await?;
//!     // parts.stream is a tokio UnixStream; parts.early came behind the handshake.
//! #   let _ = parts;
//! }
//! # }
//! ```
//!
//! # For a client
//!
//! [`client::Client`] finds the daemon and the token, lets the daemon prove itself, and proves the
//! token without showing it:
//!
//! ```no_run
//! # async fn ask() -> Result<(), Box<dyn std::error::Error>> {
//! use authsock::client::{Client, Options};
//!
//! let mut client = Client::connect(&Options::default()).await?;
//! let who = client.call("whoami", None).await?;
//! println!("{}", who["session"]["name"]);
//! # Ok(())
//! # }
//! ```
//!
//! Events come from the other sessions of the realm. A [`client::Follower`] comes back when the daemon does, and tells of
//! whatever is missing then; a [`client::Client`] has the same for one connection:
//!
//! ```no_run
//! # async fn listen() -> Result<(), Box<dyn std::error::Error>> {
//! use authsock::client::{Follower, Options, Subscription, Told, follow::Heard};
//!
//! let wanted = Subscription { subjects: vec!["build.>".into()], ..Subscription::default() };
//! let (mut follower, _) = Follower::begin(Options::default(), wanted).await?;
//! loop {
//!     match follower.next().await? {
//!         Heard::Told(Told::Event(event)) => println!("{} {}", event.subject, event.data),
//!         Heard::Told(Told::Gap(gap)) => println!("events are missing: {gap:?}"),
//!         Heard::Told(Told::Unsubscribed(_)) | Heard::Subscribed(_) | Heard::Away { .. } => {}
//!     }
//! }
//! # }
//! ```
//!
//! The rooms of the crate, and what each may use, are in ARCHITECTURE.md; the protocol is in
//! docs/protocol.md; what is defended against whom is in docs/security.md.

pub mod cli;
pub mod client;
pub mod config;
pub mod credential;
pub mod daemon;
pub mod doctor;
pub mod gate;
pub mod handshake;
pub mod init;
pub mod install;
pub mod kernel;
pub mod place;
pub mod secret;
pub mod session;
pub mod wire;
