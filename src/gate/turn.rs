//! How long a connection may go on before others have their turn: one thread serves them all, and what is always ready is never waited for.

use std::pin::pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::task::yield_now;

/// How long one goes on before others have their turn.
pub(crate) const TURN_TIME: Duration = Duration::from_millis(5);

/// The present turn of a connection.
#[derive(Debug)]
pub(crate) struct Turn {
    began: Instant,
}

impl Default for Turn {
    fn default() -> Turn {
        Turn { began: Instant::now() }
    }
}

impl Turn {
    /// Whether it is over.
    pub(crate) fn is_over(&self) -> bool {
        self.began.elapsed() >= TURN_TIME
    }

    /// Lets others have theirs, if it is over. One that had nothing to do meanwhile gives way once, too: that costs little,
    /// and nobody need note when anybody waited.
    pub(crate) async fn pause(&mut self) {
        if self.is_over() {
            yield_now().await;
            *self = Turn::default();
        }
    }

    /// As [`Turn::pause`], where there is no await.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if !self.is_over() {
            return Poll::Ready(());
        }
        *self = Turn::default();
        // Asked once, it says that it is to be asked again when others had their turn.
        pin!(yield_now()).poll(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::rc::Rc;

    use tokio::sync::Notify;
    use tokio::task::{LocalSet, spawn_local};

    use super::*;

    /// Somebody goes on until another had a turn, on the same thread: neither waits for anything else.
    fn others_have_their_turn(go_on: impl AsyncFn(&mut Turn)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let (had, is_over) = (Rc::new(Notify::new()), Rc::new(std::cell::Cell::new(false)));
            let other = spawn_local({
                let (had, is_over) = (had.clone(), is_over.clone());
                async move {
                    had.notified().await;
                    is_over.set(true);
                }
            });
            let began = Instant::now();
            let mut turn = Turn::default();
            had.notify_one();
            while !is_over.get() {
                go_on(&mut turn).await;
                assert!(began.elapsed() < TURN_TIME * 2000, "nobody else had a turn");
            }
            assert!(began.elapsed() >= TURN_TIME, "a turn has its time");
            other.await.unwrap();
        });
    }

    #[test]
    fn who_never_waits_gives_way_all_the_same() {
        others_have_their_turn(async |turn| turn.pause().await);
        others_have_their_turn(async |turn| poll_fn(|context| turn.poll(context)).await);
    }
}
