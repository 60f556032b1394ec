//! What the daemon tells whoever started it, and when it is time to go: readiness, status, watchdog, signals, idleness.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use crate::init::Starter;
#[cfg(target_os = "linux")]
use crate::place::{process_env, var};

/// Shortest time between two status texts.
const STATUS_PAUSE: Duration = Duration::from_secs(1);

/// Messages to the service manager (sd_notify(3)); nobody listens on other systems or without one.
#[derive(Debug, Default)]
pub(super) struct Manager {
    status: String,
    said: Option<Instant>,
    pending: Option<String>,
}

impl Manager {
    /// Serving, or at least answering.
    pub(super) fn ready(&mut self, status: &str) {
        self.pending = None;
        self.say(status);
        #[cfg(target_os = "linux")]
        let _ =
            sd_notify::notify(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Status(&self.status)]);
    }

    /// The configuration is being read again.
    pub(super) fn reloading(&self) {
        #[cfg(target_os = "linux")]
        if let Ok(since) = sd_notify::NotifyState::monotonic_usec_now() {
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Reloading, since]);
        }
    }

    /// On the way out.
    pub(super) fn stopping(&mut self, status: &str) {
        self.say(status);
        #[cfg(target_os = "linux")]
        let _ = sd_notify::notify(&[
            sd_notify::NotifyState::Stopping,
            sd_notify::NotifyState::Status(&self.status),
        ]);
    }

    /// Still alive.
    pub(super) fn alive(&self) {
        #[cfg(target_os = "linux")]
        let _ = tell_without_waiting(&sd_notify::NotifyState::Watchdog);
    }

    /// A new status text; it is sent at once, or with others after a pause.
    pub(super) fn status(&mut self, status: String) {
        if status == self.status {
            self.pending = None;
        } else {
            self.pending = Some(status);
            self.send_due();
        }
    }

    /// When a status that waits is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.pending.as_ref().map(|_| self.said.map_or_else(Instant::now, |said| said + STATUS_PAUSE))
    }

    /// Sends the status that waits, if it is time.
    pub(super) fn send_due(&mut self) {
        if self.due().is_some_and(|due| due <= Instant::now())
            && let Some(status) = self.pending.take()
        {
            self.say(&status);
            #[cfg(target_os = "linux")]
            if tell_without_waiting(&sd_notify::NotifyState::Status(&self.status)).is_err_and(is_full) {
                self.pending = Some(std::mem::take(&mut self.status));
            }
        }
    }

    fn say(&mut self, status: &str) {
        // A status is one line.
        self.status = status.split_whitespace().collect::<Vec<_>>().join(" ");
        self.said = Some(Instant::now());
    }
}

/// Tells the manager what it can do without. The kernel keeps ten messages for who does not read them
/// (net.unix.max_dgram_qlen) and then has the sender wait, and all whom it serves: sd_notify(3) would.
#[cfg(target_os = "linux")]
fn tell_without_waiting(state: &sd_notify::NotifyState<'_>) -> io::Result<()> {
    let Some(path) = process_env(var::NOTIFY_SOCKET) else { return Ok(()) };
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect(path)?;
    socket.send(format!("{state}\n").as_bytes()).map(drop)
}

#[cfg(target_os = "linux")]
fn is_full(error: io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

/// How often the watchdog wants to hear from us: half of its patience (sd_watchdog_enabled(3)).
pub(super) fn watchdog() -> Option<Duration> {
    #[cfg(target_os = "linux")]
    return sd_notify::watchdog_enabled().map(|patience| patience / 2);
    #[cfg(not(target_os = "linux"))]
    None
}

/// The signals that mean something to a daemon.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// SIGTERM, SIGINT: finish what is under way, and end.
    Stop,
    /// SIGHUP: read the configuration again.
    Reload,
}

impl Signals {
    pub(super) fn watch() -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Cancel safe.
    pub(super) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hangup.recv() => Asked::Reload,
        }
    }
}

/// After how long an idle daemon exits, and what is to be said where that is not what was asked for.
pub(super) fn idle_exit(starter: Starter, asked: Option<Duration>) -> (Option<Duration>, Option<String>) {
    if cfg!(target_os = "macos") && starter == Starter::Init {
        crate::init::launchd::idle_exit(asked)
    } else {
        (asked, None)
    }
}

/// Since when nothing has used the daemon.
#[derive(Debug, Default)]
pub(super) struct Idle {
    since: Option<Instant>,
}

impl Idle {
    /// Notes whether something uses it now.
    pub(super) fn note(&mut self, in_use: bool) {
        if in_use {
            self.since = None;
        } else {
            self.since.get_or_insert_with(Instant::now);
        }
    }

    /// Starts counting anew.
    pub(super) fn again(&mut self) {
        self.since = Some(Instant::now());
    }

    /// When it has been idle for long enough; never, if `patience` is `None`.
    pub(super) fn due(&self, patience: Option<Duration>) -> Option<Instant> {
        Some(self.since? + patience?)
    }
}
