//! A subscription that outlives its connection: it comes back to where it was, a bounded number of times, and only as the same session.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::calls::{CallError, Client};
use super::connect::{ConnectError, Options};
use super::events::{Start, Subscribed, Subscription, Told};
use crate::wire::event::{GapReason, Place};

/// How often in a row a connection is tried to be had again.
pub const ATTEMPTS_MAX: u32 = 5;
/// The pause before the first of these attempts; each later one is twice as long as the one before.
pub const PAUSE: Duration = Duration::from_secs(1);
/// How long a connection must last for the attempts to be counted anew: as long as all pauses together, so that
/// nobody comes back more often than so many times in twice that time.
pub const LIVED: Duration = Duration::from_secs(31);

/// What a follower tells.
#[derive(Debug)]
pub enum Heard {
    /// It is subscribed: for the first time, or again.
    Subscribed(Subscribed),
    /// What the daemon told.
    Told(Told),
    /// The daemon is away. It is tried again after a pause, in the next call.
    Away {
        /// What happened.
        why: FollowError,
        /// How long the pause is.
        pause: Duration,
    },
}

/// Why a follower ends. Each names the thing and the way out.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection ended, or the daemon refused.
    #[error(transparent)]
    Call(#[from] CallError),
    /// What was connected as is another session now.
    #[error(
        "this process was in session {was}, and would come back in session {is}, which may hear other events: subscribe anew"
    )]
    AnotherSession {
        /// The session so far.
        was: String,
        /// The one that the daemon knows this process as now.
        is: String,
    },
    /// Nothing is subscribed to any more.
    #[error(
        "this session may not hear any more of what was subscribed to: its scopes were narrowed (`authsock session show` lists them)"
    )]
    NothingLeft,
}

impl FollowError {
    /// Whether it may be otherwise in a while.
    fn may_pass(&self) -> bool {
        match self {
            FollowError::Connect(error) => error.may_pass(),
            FollowError::Call(error) => {
                matches!(error, CallError::Closed | CallError::Over | CallError::Timeout(_))
            }
            FollowError::AnotherSession { .. } | FollowError::NothingLeft => false,
        }
    }
}

/// A subscription that comes back when the daemon does: after it restarted, or was killed.
///
/// What came meanwhile comes then, or a gap says that it does not. It gives up after [`ATTEMPTS_MAX`] attempts in a row,
/// and at once where trying again is of no use: the session has ended, or the daemon refuses. It never comes
/// back as another session than the one that it began as.
#[derive(Debug)]
pub struct Follower {
    options: Options,
    subscription: Subscription,
    session: String,
    attempts: Attempts,
    state: State,
}

#[derive(Debug)]
enum State {
    Connected { client: Box<Client>, since: Instant },
    Away { until: Instant },
}

impl Follower {
    /// Connects, and subscribes.
    ///
    /// # Errors
    /// [`FollowError`]. The first time is not tried again.
    pub async fn begin(
        options: Options,
        subscription: Subscription,
    ) -> Result<(Follower, Subscribed), FollowError> {
        let mut client = Box::new(Client::connect(&options).await?);
        let subscribed = client.subscribe(&subscription).await?;
        let session = client.session().id.clone();
        let state = State::Connected { client, since: Instant::now() };
        let mut follower = Follower { options, subscription, session, attempts: Attempts::default(), state };
        follower.go_on_from(Place { epoch: subscribed.epoch, seq: subscribed.after });
        Ok((follower, subscribed))
    }

    /// What comes next. Cancel safe: an attempt to connect that was dropped is made again.
    ///
    /// # Errors
    /// [`FollowError`], and then it is over.
    pub async fn next(&mut self) -> Result<Heard, FollowError> {
        if self.subscription.subjects.is_empty() {
            return Err(FollowError::NothingLeft);
        }
        match &mut self.state {
            State::Connected { client, since } => match client.next().await {
                Ok(told) => {
                    self.note(&told);
                    Ok(Heard::Told(told))
                }
                Err(error) => {
                    if since.elapsed() >= LIVED {
                        self.attempts = Attempts::default();
                    }
                    self.be_away(error.into())
                }
            },
            State::Away { until } => {
                sleep_until(*until).await;
                match self.come_back().await {
                    Ok(subscribed) => Ok(Heard::Subscribed(subscribed)),
                    Err(error) => self.be_away(error),
                }
            }
        }
    }

    async fn come_back(&mut self) -> Result<Subscribed, FollowError> {
        let mut client = Box::new(Client::connect(&self.options).await?);
        if client.session().id != self.session {
            let (was, is) = (self.session.clone(), client.session().id.clone());
            return Err(FollowError::AnotherSession { was, is });
        }
        let subscribed = client.subscribe(&self.subscription).await?;
        self.state = State::Connected { client, since: Instant::now() };
        self.go_on_from(Place { epoch: subscribed.epoch, seq: subscribed.after });
        Ok(subscribed)
    }

    fn be_away(&mut self, why: FollowError) -> Result<Heard, FollowError> {
        let pause = if why.may_pass() { self.attempts.pause() } else { None };
        let Some(pause) = pause else { return Err(why) };
        self.state = State::Away { until: Instant::now() + pause };
        Ok(Heard::Away { why, pause })
    }

    fn go_on_from(&mut self, place: Place) {
        self.subscription.start = Start::After(place);
    }

    /// Remembers how far it came.
    fn note(&mut self, told: &Told) {
        match told {
            Told::Event(event) => self.go_on_from(event.place()),
            Told::Gap(gap) => {
                if let (Some(GapReason::Slow), Some(seq)) = (gap.reason, gap.to) {
                    self.go_on_from(Place { epoch: gap.epoch, seq });
                }
            }
            Told::Unsubscribed(gone) => {
                self.subscription.subjects.retain(|subject| !gone.subjects.contains(subject));
            }
        }
    }
}

/// Attempts in a row.
#[derive(Debug)]
struct Attempts {
    made: u32,
    first_pause: Duration,
}

impl Default for Attempts {
    fn default() -> Attempts {
        Attempts { made: 0, first_pause: PAUSE }
    }
}

impl Attempts {
    /// The pause before the next one; `None` if there were enough.
    fn pause(&mut self) -> Option<Duration> {
        let pause = (self.made < ATTEMPTS_MAX).then(|| self.first_pause * 2u32.pow(self.made));
        self.made += 1;
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_have_an_end() {
        let mut attempts = Attempts::default();
        let pauses: Vec<u64> = std::iter::from_fn(|| attempts.pause()).map(|pause| pause.as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16]);
        assert_eq!(pauses.iter().sum::<u64>(), LIVED.as_secs());
        assert_eq!(attempts.pause(), None);
    }

    fn block_on(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
    }

    fn follower(options: Options, attempts: Attempts, state: State) -> Follower {
        let subscription = Subscription { subjects: vec!["a".into()], ..Subscription::default() };
        Follower { options, subscription, session: "owner".into(), attempts, state }
    }

    #[test]
    fn a_daemon_that_stays_away_is_given_up() {
        block_on(async {
            let temp = tempfile::tempdir().unwrap();
            let options = Options {
                socket: Some(temp.path().join("socket")),
                token_file: Some(temp.path().join("token")),
                ..Options::default()
            };
            let dir = crate::kernel::dir::Dir::open_or_create(temp.path(), crate::kernel::dir::own_uid());
            crate::secret::file::open_or_mint(&dir.unwrap(), "token").unwrap();
            let attempts = Attempts { made: 0, first_pause: Duration::from_millis(1) };
            let mut follower = follower(options, attempts, State::Away { until: Instant::now() });
            let mut pauses = Vec::new();
            let error = loop {
                match follower.next().await {
                    Ok(Heard::Away { why, pause }) => {
                        assert!(why.to_string().contains("socket does not exist"), "{why}");
                        pauses.push(pause.as_millis());
                    }
                    Ok(other) => panic!("{other:?}"),
                    Err(error) => break error,
                }
            };
            assert_eq!(pauses, [1, 2, 4, 8, 16]);
            assert!(error.to_string().contains("socket does not exist"), "{error}");
        });
    }

    #[test]
    fn a_connection_that_lasted_has_the_count_begin_anew() {
        block_on(async {
            let now = Instant::now();
            let Some(long_ago) = now.checked_sub(LIVED) else { return };
            for (since, expected) in [(long_ago, Some(PAUSE)), (now, None)] {
                let (client, daemon) = super::super::events::tests::pair(0);
                let state = State::Connected { client: Box::new(client), since };
                let attempts = Attempts { made: ATTEMPTS_MAX, ..Attempts::default() };
                let mut follower = follower(Options::default(), attempts, state);
                drop(daemon);
                let pause = match follower.next().await {
                    Ok(Heard::Away { why: FollowError::Call(CallError::Over), pause }) => Some(pause),
                    Err(FollowError::Call(CallError::Over)) => None,
                    other => panic!("{other:?}"),
                };
                assert_eq!(pause, expected);
            }
        });
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        use crate::client::connect::Route;
        let route = || Route::Named("/s".into());
        for (error, expected) in [
            (FollowError::Call(CallError::Over), true),
            (FollowError::Call(CallError::Closed), true),
            (FollowError::Call(CallError::Timeout(PAUSE)), true),
            (FollowError::Call(CallError::SessionEnded("revoked".into())), false),
            (FollowError::Call(CallError::Unreadable(String::new())), false),
            (FollowError::Connect(ConnectError::Lost(route())), true),
            (FollowError::Connect(ConnectError::Timeout(route(), PAUSE)), true),
            (FollowError::AnotherSession { was: String::new(), is: String::new() }, false),
            (FollowError::NothingLeft, false),
        ] {
            assert_eq!(error.may_pass(), expected, "{error}");
        }
        let refused = |code: &str| {
            let brief = crate::wire::auth::RefusalBrief {
                code: code.to_owned(),
                message: String::new(),
                supported: Vec::new(),
            };
            let failure = crate::handshake::client::Failure::Refused { brief, genuine: true };
            FollowError::Connect(ConnectError::Handshake { failure, route: route() })
        };
        assert!(refused("busy").may_pass());
        for code in crate::wire::auth::Code::ALL.iter().map(ToString::to_string) {
            assert_eq!(refused(&code).may_pass(), code == "busy", "{code}");
        }
    }
}
