//! What an HTTP client is told where HTTP is not served, or nothing is at present: a proper answer.

use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};
use zeroize::Zeroizing;

use crate::gate::line::{self, Buffer};
use crate::wire::auth::AUTH_LINE_MAX;

/// How a request is answered.
#[derive(Debug, Clone, Copy)]
pub(in crate::gate) enum Status {
    /// 501 (RFC 9110, section 15.6.2).
    NotImplemented,
    /// 503 (RFC 9110, section 15.6.4).
    ServiceUnavailable,
}

const HEAD: &[u8] = b"HEAD ";

/// Reads the head of one request and answers it, as a problem detail (RFC 9457). The connection
/// closes then. Where the head is not there at the deadline, it is answered all the same.
pub(in crate::gate) async fn answer(
    stream: &UnixStream,
    buffer: &mut Buffer,
    status: Status,
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
    let (line, title, detail) = match status {
        Status::NotImplemented => {
            ("501 Not Implemented", "Not Implemented", "HTTP is not spoken here (http.enabled is false)")
        }
        Status::ServiceUnavailable => (
            "503 Service Unavailable",
            "Service Unavailable",
            "the daemon cannot serve at present; its status and log say why",
        ),
    };
    let number = &line[..3];
    let body = format!(r#"{{"type":"about:blank","title":"{title}","status":{number},"detail":"{detail}"}}"#);
    let mut text = format!(
        "HTTP/1.1 {line}\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    // A HEAD request is answered without a body (RFC 9110, section 9.3.2).
    if method != HEAD {
        text.push_str(&body);
    }
    line::farewell(stream, text.as_bytes(), crate::gate::REFUSAL_TIMEOUT).await;
    // A client that is still sending its body would take the broken connection for the answer.
    let left = deadline.saturating_duration_since(Instant::now());
    line::linger(stream, left.max(crate::gate::REFUSAL_TIMEOUT)).await;
}
