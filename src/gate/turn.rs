//! How long a connection may go on before others have their turn: one thread serves them all, and what is always ready is never waited for.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::task::yield_now;

/// How long one goes on before others have their turn.
const TURN_TIME: Duration = Duration::from_millis(5);

/// The present turn of a connection. It begins when it is first asked about, and anew whenever something was waited for.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    began: Option<Instant>,
}

impl Turn {
    /// One that begins now.
    pub(crate) fn begin() -> Turn {
        Turn { began: Some(Instant::now()) }
    }

    /// Whether it is over.
    pub(crate) fn is_over(&mut self) -> bool {
        self.began.get_or_insert_with(Instant::now).elapsed() >= TURN_TIME
    }

    /// Others have theirs meanwhile.
    pub(crate) fn end(&mut self) {
        self.began = None;
    }

    /// Lets others have theirs, if it is over.
    pub(crate) async fn pause(&mut self) {
        poll_fn(|context| self.poll(context)).await;
    }

    /// As [`Turn::pause`], where there is no await.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if !self.is_over() {
            return Poll::Ready(());
        }
        self.end();
        // Asked once, it says that it is to be asked again when others had their turn.
        pin!(yield_now()).poll(context)
    }

    /// Waits for something; a turn that was waited in is another one.
    pub(crate) async fn wait<T>(&mut self, something: impl Future<Output = T>) -> T {
        let mut something = pin!(something);
        poll_fn(|context| {
            let done = something.as_mut().poll(context);
            if done.is_pending() {
                self.end();
            } else {
                // The next one begins with what came.
                self.is_over();
            }
            done
        })
        .await
    }
}

#[cfg(test)]
mod tests {
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
            assert!(!turn.is_over());
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
    fn a_turn_that_was_waited_in_is_another_one() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut turn = Turn::default();
            assert!(!turn.is_over());
            let took_longer = async {
                let began = Instant::now();
                while began.elapsed() < TURN_TIME {}
            };
            turn.wait(took_longer).await;
            assert!(turn.is_over(), "nothing was waited for");
            turn.wait(tokio::time::sleep(TURN_TIME)).await;
            assert!(!turn.is_over());
        });
    }

    #[test]
    fn who_never_waits_gives_way_all_the_same() {
        others_have_their_turn(async |turn| turn.pause().await);
        others_have_their_turn(async |turn| poll_fn(|context| turn.poll(context)).await);
    }
}
