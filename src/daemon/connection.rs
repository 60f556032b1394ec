//! One authenticated connection: requests in, answers out, until it ends, its session ends, or the daemon does.

use std::cell::RefCell;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::json;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::control::{Caller, Hub};
use super::events::subscriber::{Listening, Progress};
use super::requests::{Requests, Then};
use super::sessions::{Lifeline, Standing};
use crate::gate::connection::Parts;
use crate::gate::turn::Turn;
use crate::gate::{Authenticated, linger, lock, now, write};
use crate::kernel::fds::is_hung_up;
use crate::kernel::peer;
use crate::session::Millis;
use crate::session::registry::Admitted;
use crate::wire::json_rpc::{SESSION_ENDED, write_notification};

/// Most bytes read at once.
const CHUNK: usize = 64 * 1024;
/// How long a client may go on sending that was told that its connection closes.
const FAREWELL: Duration = Duration::from_secs(1);
/// Most chunks that are taken at the end: as much as a socket holds (net.core.wmem_max).
const WAITING_CHUNKS: usize = 4;
/// How long a client that has not asked anything yet may take, when the daemon is asked to stop.
const STOPPING_PATIENCE: Duration = Duration::from_secs(1);

thread_local! {
    /// Where bytes are read to before they are copied to whom they belong: one for all connections
    /// of a thread, so that an idle one holds none.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK]);
}

/// Serves a connection to its end.
pub(super) async fn serve(connection: Authenticated, hub: Arc<Hub>, mut stopping: watch::Receiver<bool>) {
    let began = Instant::now();
    let (mut out, parts) = connection.into_unannounced();
    let Parts { stream, early, peer, admitted, way, seat: _seat } = parts;
    let mut lifeline = hub.sessions.lifeline(&admitted.session.id);
    let mut policy = hub.policy.subscribe();
    let limit = lock(&hub.config).request_line;
    let mut requests = Requests::of_lines(limit, early);
    let mut last_look = false;
    // The kernel is asked, unless the runtime was just told that more may come.
    let mut may_have_left = true;
    let ears = OnceLock::<Listening>::new();
    let mut turn = Turn::default();
    while let Some(Standing { session, until }) = hub.sessions.standing(&admitted) {
        if policy.has_changed().unwrap_or(false)
            && !policy.borrow_and_update().admits(&peer, || peer::groups(&stream))
        {
            return;
        }
        let is_rotated = until.is_some();
        let caller = Caller {
            hub: &hub,
            peer: &peer,
            admitted: &admitted,
            session: &session,
            way,
            is_rotated,
            ears: Some(&ears),
        };
        if std::mem::replace(&mut may_have_left, true) && !requests.is_empty() {
            requests.is_unheard |= is_hung_up(&stream);
        }
        let then = requests.take(&caller, &mut out);
        // Whoever hears what was published in this turn gets all of it at once.
        hub.events.flush();
        if requests.is_unheard {
            out.clear();
        }
        if !out.is_empty() {
            let patience = lock(&hub.config).write_timeout;
            let written = tokio::select! {
                // Who ended its own session hears so, unless it does not listen.
                biased;
                written = write_in_order(&stream, &ears, &out, patience) => written,
                () = ended(&mut lifeline, &hub, &admitted) => Err(io::ErrorKind::TimedOut.into()),
                () = stopped_for(&mut stopping, lock(&hub.config).drain) => Err(io::ErrorKind::TimedOut.into()),
            };
            out = Vec::new();
            match written {
                Ok(()) => {}
                Err(error) if is_of_one_gone(&error) => requests.is_unheard = true,
                Err(_) => return,
            }
        }
        match then {
            Then::Read => {}
            Then::Again => {
                tokio::task::yield_now().await;
                continue;
            }
            Then::Break => {
                linger(&stream, FAREWELL).await;
                return;
            }
        }
        // What was asked may have been one's own end, or the end came while answers were written.
        let Some(Standing { session, .. }) = hub.sessions.standing(&admitted) else { break };
        let mut progress = Progress::Done;
        if let Some(listening) = ears.get().filter(|_| !requests.is_amid()) {
            listening.subscriber().look_again(&session);
            match listening.subscriber().write_to(&stream) {
                Ok(done) => progress = done,
                Err(error) if is_of_one_gone(&error) => requests.is_unheard = true,
                Err(_) => return,
            }
        }
        if requests.is_unheard {
            // What asks for no answer was meant to be done.
            if last_look {
                return;
            }
            match take_the_rest(&stream, &mut requests).await {
                Rest::Nothing => return,
                Rest::Some => {}
                Rest::AllThatCounts => last_look = true,
            }
            continue;
        }
        requests.release();
        if *stopping.borrow_and_update() && requests.has_asked {
            // What was sent before the daemon was asked to stop is answered; what is sent later is not.
            if last_look || !take_waiting(&stream, &mut requests) {
                break;
            }
            last_look = true;
            continue;
        }
        // Who never stops sending is never waited for, and would keep all others waiting.
        turn.pause().await;
        tokio::select! {
            read = turn.wait(read(&stream, &mut requests)) => match read {
                Ok((1.., may_be_last)) => may_have_left = may_be_last,
                _ => return,
            },
            // Ended, or rotated: the next turn looks.
            _ = lifeline.changed() => {}
            _ = stopping.changed() => {}
            () = woken(&ears), if progress == Progress::Done => {}
            _ = stream.writable(), if progress == Progress::Blocked => {}
            _ = policy.changed() => policy.mark_changed(),
            () = sleep_until_some(grace_end(until)) => {}
            () = sleep_until(began + STOPPING_PATIENCE), if *stopping.borrow() => break,
        }
    }
    // The daemon stops: what waits for whoever may still hear it goes before.
    if let Some(listening) = ears.get()
        && hub.sessions.standing(&admitted).is_some()
    {
        let subscriber = listening.subscriber();
        let _ = timeout(FAREWELL, write_events(&stream, |stream| subscriber.write_to(stream))).await;
    }
    if ears.get().is_some_and(|listening| listening.subscriber().is_amid()) {
        // Nothing more of an event comes after the end, and nothing else can be told in the middle of one.
        return;
    }
    // One within which the session has ended.
    requests.end_batch(&mut out);
    if let Some(reason) = hub.sessions.reason(&lifeline, &admitted.session.id) {
        let params = json!({ "id": admitted.session.id.as_str(), "reason": reason.as_str() });
        write_notification(&mut out, SESSION_ENDED, &params);
    }
    let _ = timeout(FAREWELL, write(&stream, &out)).await;
    // What the client sent meanwhile must not reset the connection under the last answer; whoever
    // never stops sending has no answer to lose.
    SCRATCH.with_borrow_mut(|scratch| {
        let _ = (0..WAITING_CHUNKS).take_while(|_| matches!(stream.try_read(scratch), Ok(1..))).count();
    });
}

/// Waits for bytes. Says how many came, and whether these may be the last.
async fn read(stream: &UnixStream, requests: &mut Requests) -> io::Result<(usize, bool)> {
    loop {
        let ready = stream.ready(Interest::READABLE).await?;
        match try_read(stream, requests) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return Ok((done?, ready.is_read_closed())),
        }
    }
}

fn try_read(stream: &UnixStream, requests: &mut Requests) -> io::Result<usize> {
    SCRATCH.with_borrow_mut(|scratch| {
        let read = stream.try_read(scratch)?;
        requests.push(&scratch[..read]);
        // Requests may carry what verifies a token.
        scratch[..read].fill(0);
        Ok(read)
    })
}

/// Takes what is there to be read, and says whether it was anything. A client that never stops
/// sending gets an end all the same.
fn take_waiting(stream: &UnixStream, requests: &mut Requests) -> bool {
    (0..WAITING_CHUNKS).take_while(|_| matches!(try_read(stream, requests), Ok(1..))).count() > 0
}

/// Whether a write failed because nobody reads any more.
fn is_of_one_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// What is still there of a client that hears nothing any more.
enum Rest {
    Nothing,
    /// There may be more.
    Some,
    /// It may go on sending, but has no claim to be heard.
    AllThatCounts,
}

/// Takes what was sent by a client that hears no answers any more: all that the kernel holds of one that has left, and
/// as much as it may hold of one that only reads no more.
async fn take_the_rest(stream: &UnixStream, requests: &mut Requests) -> Rest {
    if is_hung_up(stream) {
        // This does not wait: behind the last byte is the end.
        return if matches!(read(stream, requests).await, Ok((1.., _))) { Rest::Some } else { Rest::Nothing };
    }
    // The runtime has not looked at the socket since it was last empty.
    tokio::task::yield_now().await;
    if take_waiting(stream, requests) { Rest::AllThatCounts } else { Rest::Nothing }
}

/// Writes everything to a client that reads; one that takes nothing for so long is given up.
async fn write_while_read(stream: &UnixStream, mut bytes: &[u8], patience: Duration) -> io::Result<()> {
    while !bytes.is_empty() {
        let part = bytes.len().min(CHUNK);
        timeout(patience, write(stream, &bytes[..part])).await.map_err(|_| io::ErrorKind::TimedOut)??;
        bytes = &bytes[part..];
    }
    Ok(())
}

/// Writes answers, after the rest of an event that is out in part.
async fn write_in_order(
    stream: &UnixStream,
    ears: &OnceLock<Listening>,
    answers: &[u8],
    patience: Duration,
) -> io::Result<()> {
    if let Some(listening) = ears.get() {
        let rest = write_events(stream, |stream| listening.subscriber().write_rest_to(stream));
        timeout(patience, rest).await.map_err(|_| io::ErrorKind::TimedOut)??;
    }
    write_while_read(stream, answers, patience).await
}

/// Writes all that waits, or the rest of an event that is out in part, to a client that reads.
async fn write_events(
    stream: &UnixStream,
    write: impl Fn(&UnixStream) -> io::Result<Progress>,
) -> io::Result<()> {
    while write(stream)? == Progress::Blocked {
        stream.writable().await?;
    }
    Ok(())
}

/// Waits until there may be events to write; for ever on a connection that does not listen.
async fn woken(ears: &OnceLock<Listening>) {
    match ears.get() {
        Some(listening) => listening.subscriber().woken().await,
        None => std::future::pending().await,
    }
}

/// Waits until the session has ended, or the connection's token has lost its grace.
async fn ended(lifeline: &mut Lifeline, hub: &Hub, admitted: &Admitted) {
    while let Some(Standing { until, .. }) = hub.sessions.standing(admitted) {
        tokio::select! {
            _ = lifeline.changed() => {}
            () = sleep_until_some(grace_end(until)) => {}
        }
    }
}

pub(super) fn grace_end(until: Option<Millis>) -> Option<Instant> {
    until.map(|until| Instant::now() + Duration::from_millis(until.saturating_sub(now())))
}

pub(super) async fn sleep_until_some(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// Waits until the daemon has been stopping for so long.
async fn stopped_for(stopping: &mut watch::Receiver<bool>, patience: Duration) {
    if stopping.wait_for(|stopping| *stopping).await.is_ok() {
        tokio::time::sleep(patience).await;
    }
}
