//! One authenticated connection: requests in, answers out, until it ends, its session ends, or the daemon does.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::control::{self, Caller, Hub};
use super::sessions::Standing;
use crate::gate::connection::Parts;
use crate::gate::{Authenticated, lock, now};
use crate::wire::json_rpc::{ErrorCode, Request, RpcError, write_answer};
use crate::wire::line::Lines;

/// Most bytes read at once.
const CHUNK: usize = 64 * 1024;
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
    let limit = lock(&hub.config).request_line;
    let mut lines = Lines::with(limit, early);
    let mut asked = false;
    loop {
        let Some(standing) = hub.sessions.standing(&admitted) else { break };
        let Standing { session, until } = standing;
        let caller = Caller { hub: &hub, peer: &peer, admitted: &admitted, session: &session, way };
        let (more, spoke) = take_requests(&mut lines, &caller, &mut out);
        asked |= spoke;
        if !out.is_empty() {
            let written = tokio::select! {
                written = write(&stream, &out) => written,
                () = stopped_for(&mut stopping, lock(&hub.config).drain) => Err(io::ErrorKind::TimedOut.into()),
            };
            if written.is_err() {
                return;
            }
            out = Vec::new();
        }
        // What was asked may have been one's own end.
        if !more || hub.sessions.standing(&admitted).is_none() {
            break;
        }
        lines.release();
        if *stopping.borrow_and_update() && asked {
            break;
        }
        let grace = until.map(|until| Instant::now() + Duration::from_millis(until.saturating_sub(now())));
        tokio::select! {
            read = read(&stream, &mut lines) => if !matches!(read, Ok(1..)) { return },
            // Ended, or rotated: the next turn looks.
            _ = lifeline.changed() => {}
            _ = stopping.changed() => {}
            () = sleep_until_some(grace) => {}
            () = sleep_until(began + STOPPING_PATIENCE), if *stopping.borrow() => break,
        }
    }
    // What the client sent meanwhile must not reset the connection under the last answer.
    SCRATCH.with_borrow_mut(|scratch| while matches!(stream.try_read(scratch), Ok(1..)) {});
}

/// Carries out every request that is there whole. Says whether the connection may go on, and
/// whether there was any.
fn take_requests(lines: &mut Lines, caller: &Caller<'_>, out: &mut Vec<u8>) -> (bool, bool) {
    let mut asked = false;
    loop {
        let line = match lines.next_line() {
            Ok(Some(line)) => line,
            Ok(None) => return (true, asked),
            Err(too_long) => {
                let words = format!("{too_long} (limits.request_line_bytes); the connection is closed");
                write_answer(out, &Value::Null, &Err(RpcError::new(ErrorCode::TooLarge, words)));
                return (false, asked);
            }
        };
        if line.trim_ascii().is_empty() {
            continue;
        }
        asked = true;
        match Request::read(line) {
            Ok(request) => {
                let result = control::answer(caller, &request);
                if let Some(id) = &request.id {
                    write_answer(out, id, &result);
                }
            }
            Err(error) => write_answer(out, &Value::Null, &Err(error)),
        }
        // A session that just ended itself asks nothing more.
        if caller.hub.sessions.standing(caller.admitted).is_none() {
            return (false, asked);
        }
    }
}

async fn read(stream: &UnixStream, lines: &mut Lines) -> io::Result<usize> {
    loop {
        stream.readable().await?;
        let read = SCRATCH.with_borrow_mut(|scratch| {
            let read = stream.try_read(scratch)?;
            lines.push(&scratch[..read]);
            // Requests may carry what verifies a token.
            scratch[..read].fill(0);
            Ok(read)
        });
        match read {
            Err(error) if io::Error::kind(&error) == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
}

async fn write(stream: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn sleep_until_some(when: Option<Instant>) {
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
