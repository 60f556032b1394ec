//! What an HTTP client is told where HTTP is not served, or nothing is at present: a proper answer.

use hyper::StatusCode;
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};
use zeroize::Zeroizing;

use super::{HEAD, last_words};
use crate::gate::line::{self, Buffer};
use crate::wire::auth::AUTH_LINE_MAX;

/// That HTTP is turned off (RFC 9110, section 15.6.2).
pub(in crate::gate) const NOT_SPOKEN: StatusCode = StatusCode::NOT_IMPLEMENTED;
/// That nothing is served at present (RFC 9110, section 15.6.4).
pub(in crate::gate) const CANNOT_SERVE: StatusCode = StatusCode::SERVICE_UNAVAILABLE;

/// Reads the head of one request and answers it with one of these statuses. The connection closes then. Where the head is not there at the deadline, it is answered all the same.
pub(in crate::gate) async fn answer(
    stream: &UnixStream,
    buffer: &mut Buffer,
    status: StatusCode,
    deadline: Instant,
) {
    let mut method = Vec::<u8>::with_capacity(HEAD.len());
    // The answer does not depend on the rest; it is read so that the client sees the answer
    // instead of a reset. The last bytes of one reading may begin the end of the head.
    // Wiped, and never grown: a header may hold a token.
    let mut tail = Zeroizing::new(Vec::with_capacity(AUTH_LINE_MAX + 3));
    let mut read = 0;
    while read < 16 * AUTH_LINE_MAX {
        tail.extend_from_slice(buffer.bytes());
        method.extend(buffer.bytes().iter().take(HEAD.len() - method.len()));
        read += buffer.bytes().len();
        buffer.clear();
        if tail.windows(4).any(|end| end == b"\r\n\r\n") || tail.windows(2).any(|end| end == b"\n\n") {
            break;
        }
        let done = tail.len().saturating_sub(3);
        tail.drain(..done);
        match timeout_at(deadline, buffer.fill(stream)).await {
            Ok(Ok(1..)) => {}
            _ => break,
        }
    }
    let (detail, more) = match status {
        NOT_SPOKEN => ("HTTP is not spoken here (http.enabled is false)", ""),
        _ => ("the daemon cannot serve at present; its status and log say why", "Retry-After: 1\r\n"),
    };
    let text = last_words(status, detail, more, method == HEAD);
    line::farewell(stream, &text, crate::gate::REFUSAL_TIMEOUT).await;
    // A client that is still sending its body would take the broken connection for the answer.
    let left = deadline.saturating_duration_since(Instant::now());
    line::linger(stream, left.max(crate::gate::REFUSAL_TIMEOUT)).await;
}
