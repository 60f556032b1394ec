//! A connection's bytes on their way to the library that parses them: none is passed on before it is known where its request ends, and none takes longer than it may.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::net::UnixStream;
use tokio::time::{Instant, Sleep, sleep_until};
use zeroize::Zeroizing;

use super::HEAD;
use crate::gate::turn::Turn;
use crate::gate::{Settings, lock};
use crate::wire::http::{Framing, Passed, Violation};

/// Most bytes read at once.
const CHUNK: usize = 16 * 1024;

thread_local! {
    /// Where bytes are read to before they are copied to whom they belong: one for all connections of a thread, so
    /// that an idle one holds none.
    static SCRATCH: RefCell<Zeroizing<Vec<u8>>> = RefCell::new(Zeroizing::new(vec![0; CHUNK]));
}

/// What a connection's two ends, and whoever answers, tell each other.
#[derive(Default)]
pub(super) struct Watch {
    seen: Mutex<Seen>,
    guarded: Mutex<Guarded>,
    turn: Mutex<Turn>,
}

/// Says whether what was held up may still be written.
type Guard = Box<dyn Fn() -> bool + Send + Sync>;

/// Whose answer is looked at again before what was held up of it is written.
#[derive(Default)]
struct Guarded {
    guard: Option<Guard>,
    /// Whether all of that answer was made: it is out when nothing is left to be written.
    is_whole: bool,
}

#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    /// What is wrong, and where.
    violation: Option<(Violation, Place)>,
    /// Whether a request has proven itself.
    is_in: bool,
    /// Whether a part of something came that cannot be passed on yet.
    has_part: bool,
}

/// Where in a request something is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In its head: nobody has answered yet. `is_head` says whether its method is HEAD.
    Head { is_head: bool },
    /// In its body.
    Body,
}

impl Watch {
    pub(super) fn violation(&self) -> Option<Violation> {
        lock(&self.seen).violation.map(|(violation, _)| violation)
    }

    /// What is wrong with a head that nobody has answered yet, and whether its method is HEAD.
    pub(super) fn refused_head(&self) -> Option<(Violation, bool)> {
        match lock(&self.seen).violation? {
            (violation, Place::Head { is_head }) => Some((violation, is_head)),
            (_, Place::Body) => None,
        }
    }

    pub(super) fn guard(&self, is_good: Guard) {
        *lock(&self.guarded) = Guarded { guard: Some(is_good), is_whole: false };
    }

    /// Nothing more comes of the answer that is guarded.
    pub(super) fn end_guarded(&self) {
        lock(&self.guarded).is_whole = true;
    }

    fn has_written_all(&self) {
        let mut guarded = lock(&self.guarded);
        if guarded.is_whole {
            *guarded = Guarded::default();
        }
    }

    fn is_good(&self) -> bool {
        lock(&self.guarded).guard.as_ref().is_none_or(|is_good| is_good())
    }

    /// Lets others have their turn, if the connection's is over: many requests may be there, and all their answers read at
    /// once.
    pub(super) fn poll_turn(&self, context: &mut Context<'_>) -> Poll<()> {
        lock(&self.turn).poll(context)
    }

    /// Whether a part of a request came that nobody else has seen.
    pub(super) fn has_part(&self) -> bool {
        lock(&self.seen).has_part
    }

    pub(super) fn is_in(&self) {
        lock(&self.seen).is_in = true;
    }

    fn refuse(&self, violation: Violation, place: Place) {
        lock(&self.seen).violation.get_or_insert((violation, place));
    }
}

/// Which of the times runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Until the first request has proven itself.
    First,
    /// Between requests.
    Idle,
    /// From a request's first byte to its last.
    Request,
}

pub(super) struct Io {
    stream: Arc<UnixStream>,
    /// What came and was not passed on. It may hold a token.
    held: Zeroizing<Vec<u8>>,
    /// How much of it may be.
    passable: usize,
    /// Nothing more is passed on.
    is_over: bool,
    framing: Framing,
    watch: Arc<Watch>,
    stage: Stage,
    timer: Pin<Box<Sleep>>,
    request: Duration,
    idle: Duration,
    /// Whether something waits to be written, since the client does not read or others have their turn.
    is_held_up: bool,
    /// Runs while the client takes nothing.
    write_timer: Option<Pin<Box<Sleep>>>,
    write_timeout: Duration,
}

impl Io {
    pub(super) fn new(
        stream: Arc<UnixStream>,
        early: Vec<u8>,
        watch: Arc<Watch>,
        settings: &Settings,
        deadline: Instant,
    ) -> Io {
        Io {
            stream,
            held: Zeroizing::new(early),
            passable: 0,
            is_over: false,
            framing: Framing::new(settings.http.head, settings.request_line),
            watch,
            stage: Stage::First,
            timer: Box::pin(sleep_until(deadline)),
            request: settings.http.request,
            idle: settings.http.idle,
            is_held_up: false,
            write_timer: None,
            write_timeout: settings.write_timeout,
        }
    }

    fn enter(&mut self, stage: Stage) {
        let time = match stage {
            Stage::First => return,
            Stage::Idle => self.idle,
            Stage::Request => self.request,
        };
        self.stage = stage;
        self.timer.as_mut().reset(Instant::now() + time);
    }

    fn refuse(&mut self, violation: Violation) {
        let is_head = self.held.starts_with(HEAD);
        let place = if self.framing.is_between() { Place::Head { is_head } } else { Place::Body };
        self.watch.refuse(violation, place);
        self.is_over = true;
        self.held = Zeroizing::default();
        self.passable = 0;
    }

    /// Looks at what is held, until some of it may be passed on, or more is needed.
    fn look(&mut self) {
        if self.held.is_empty() || self.is_over {
            return;
        }
        if self.stage == Stage::Idle {
            self.enter(Stage::Request);
        }
        match self.framing.pass(&self.held) {
            Ok(Passed { bytes, ends_request }) => {
                self.passable = bytes;
                if ends_request && self.stage == Stage::Request {
                    self.enter(Stage::Idle);
                }
            }
            Err(violation) => self.refuse(violation),
        }
    }

    /// Once the first request is in, what comes is another one, or the rest of it.
    fn leave_first(&mut self) {
        if self.stage == Stage::First && lock(&self.watch.seen).is_in {
            let is_between = self.framing.is_between() && self.held.is_empty();
            self.enter(if is_between { Stage::Idle } else { Stage::Request });
        }
    }

    /// What it means that the time is up.
    fn time_is_up(&mut self) {
        if self.stage == Stage::Idle {
            self.is_over = true;
        } else {
            self.refuse(Violation::Timeout);
        }
    }
}

impl Read for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // Who never stops sending is never waited for, and would keep all others waiting.
        ready!(self.watch.poll_turn(context));
        loop {
            if self.passable > 0 {
                let taken = self.passable.min(cursor.remaining());
                cursor.put_slice(&self.held[..taken]);
                let left = self.held.len() - taken;
                self.held.copy_within(taken.., 0);
                // The tail is wiped, not only forgotten.
                self.held[left..].fill(0);
                self.held.truncate(left);
                if left == 0 {
                    // An idle connection holds no buffer.
                    self.held = Zeroizing::default();
                }
                self.passable -= taken;
                return Poll::Ready(Ok(()));
            }
            if self.is_over {
                return Poll::Ready(Ok(()));
            }
            self.leave_first();
            self.look();
            if self.passable > 0 || self.is_over {
                continue;
            }
            if self.timer.as_mut().poll(context).is_ready() {
                self.time_is_up();
                continue;
            }
            if self.stream.poll_read_ready(context)?.is_pending() {
                lock(&self.watch.seen).has_part = !self.held.is_empty();
                lock(&self.watch.turn).end();
                return Poll::Pending;
            }
            let this = &mut *self;
            let read = SCRATCH.with_borrow_mut(|scratch| {
                let read = this.stream.try_read(scratch)?;
                this.held.extend_from_slice(&scratch[..read]);
                scratch[..read].fill(0);
                io::Result::Ok(read)
            });
            match read {
                Ok(0) => self.is_over = true,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Write for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.watch.poll_turn(context).is_pending() {
            self.is_held_up = true;
            return Poll::Pending;
        }
        loop {
            if self.stream.poll_write_ready(context).is_pending() {
                self.is_held_up = true;
                let patience = self.write_timeout;
                let timer =
                    self.write_timer.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + patience)));
                ready!(timer.as_mut().poll(context));
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            // Others had their turn, and meanwhile what waited here may have become nobody's.
            if self.is_held_up && !self.watch.is_good() {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            match self.stream.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => {
                    self.write_timer = None;
                    self.is_held_up = false;
                    if self.stage == Stage::Idle {
                        // The time between two requests begins when the one is answered.
                        self.enter(Stage::Idle);
                    }
                    return Poll::Ready(done);
                }
            }
        }
    }

    /// It is asked for when all was written.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watch.has_written_all();
        Poll::Ready(Ok(()))
    }

    /// Whoever made this has more to say, and closes.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
