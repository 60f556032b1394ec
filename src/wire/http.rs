//! HTTP/1.1 as far as we read it ourselves: where each request ends, strictly (RFC 9112), and which token comes with it (RFC 6750).
//!
//! A library parses the requests. It is more tolerant than whoever stands between us and a client may be, and what two
//! read differently can be smuggled past one of them; so nothing reaches it that could be read in more than one way.

use std::borrow::Cow;
use std::fmt::Write;

use serde::Serialize;

use crate::secret::token::Token;

/// Most header fields of a request.
pub const FIELDS_MAX: usize = 64;

/// Why the bytes of a client are not taken. The connection cannot be followed any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The request line is none.
    #[error("the request line is not of the form METHOD TARGET HTTP/1.1")]
    RequestLine,
    /// The target has characters that no URI has.
    #[error("the target has characters that a URI has only percent-encoded, as %3E for >")]
    Target,
    /// A line ends with a bare line feed, or a carriage return stands alone.
    #[error("lines end with CR LF, and neither stands alone")]
    LineEnd,
    /// A header field goes on in the next line.
    #[error("a header field has one line")]
    Folded,
    /// A header field is none.
    #[error("a header field is a name, a colon right behind it, and a value without characters that control")]
    Field,
    /// There is no Host, or more than one.
    #[error("a request has one Host")]
    Host,
    /// It says twice who sends it.
    #[error("a request has at most one Authorization and one Authsock-Asker")]
    Authorization,
    /// Its length is told in no way, or in more than one.
    #[error(
        "a request has at most one Content-Length, of digits, or Transfer-Encoding: chunked, and not both"
    )]
    Length,
    /// A chunk is more than its size and its data.
    #[error("a chunk is its size in hexadecimal digits and its data; extensions and trailers are not taken")]
    Chunk,
    /// Its method needs another kind of connection.
    #[error("tunnels are not made here")]
    Tunnel,
    /// It is of another version.
    #[error("HTTP/1.1 is spoken here, and HTTP/1.0")]
    Version,
    /// The request line is too long.
    #[error("the request line is too long (http.head_bytes)")]
    TargetTooLong,
    /// The head is too long, or has too many fields.
    #[error("the head of the request is too long (http.head_bytes), or has more than {FIELDS_MAX} fields")]
    HeadTooLong,
    /// The body is too long.
    #[error("the body of the request is too long (limits.request_line_bytes)")]
    BodyTooLong,
    /// It takes too long.
    #[error("the request took too long (http.request_seconds)")]
    Timeout,
}

impl Violation {
    /// The status that tells of it (RFC 9110, section 15.5).
    pub fn status(self) -> u16 {
        match self {
            Violation::Tunnel => 405,
            Violation::Timeout => 408,
            Violation::BodyTooLong => 413,
            Violation::TargetTooLong => 414,
            Violation::HeadTooLong => 431,
            Violation::Version => 505,
            _ => 400,
        }
    }
}

/// Where in a request the next byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Between requests, or in a head of which so many bytes are known to have no end.
    Head { searched: usize },
    /// So many bytes of the body are to come.
    Body { left: u64 },
    /// A chunk's size; of the whole body so many bytes came.
    ChunkSize { before: u64 },
    /// So many bytes of a chunk and its CR LF are to come.
    Chunk { left: u64, before: u64 },
    /// The line that ends the last chunk's trailers, of which there are none.
    ChunkedEnd,
}

/// Follows the bytes of a connection from request to request, and says how many may be passed on.
#[derive(Debug)]
pub struct Framing {
    state: State,
    head_max: usize,
    body_max: u64,
}

/// How far bytes may be passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passed {
    /// So many of them.
    pub bytes: usize,
    /// Whether a request ends there: what follows is another one.
    pub ends_request: bool,
}

impl Framing {
    /// Takes heads and bodies of at most so many bytes.
    pub fn new(head_max: usize, body_max: usize) -> Framing {
        Framing { state: State::Head { searched: 0 }, head_max, body_max: body_max as u64 }
    }

    /// Whether the next byte begins a request, if nothing of it is there yet.
    pub fn is_between(&self) -> bool {
        matches!(self.state, State::Head { .. })
    }

    /// Looks at bytes that follow those which were passed, and says how many may be passed now: none until more come.
    /// What was not passed must be shown again, with what came since behind it. No more than to the end of a request
    /// is passed at once.
    ///
    /// # Errors
    /// [`Violation`]; nothing that follows can be understood.
    pub fn pass(&mut self, bytes: &[u8]) -> Result<Passed, Violation> {
        let go_on = |bytes| Ok(Passed { bytes, ends_request: false });
        match self.state {
            State::Head { searched } => self.pass_head(bytes, searched),
            State::Body { left } => {
                let taken = left.min(bytes.len() as u64);
                self.state = State::Body { left: left - taken };
                let ends_request = left == taken;
                if ends_request {
                    self.state = State::Head { searched: 0 };
                }
                Ok(Passed { bytes: usize::try_from(taken).unwrap_or(usize::MAX), ends_request })
            }
            State::ChunkSize { before } => {
                // Eight digits and the line's end.
                const LINE_MAX: usize = 10;
                let Some(end) = bytes.iter().take(LINE_MAX).position(|byte| *byte == b'\n') else {
                    let so_far = &bytes[..bytes.len().min(LINE_MAX)];
                    let digits = so_far.strip_suffix(b"\r").unwrap_or(so_far);
                    let good = digits.iter().all(u8::is_ascii_hexdigit) && bytes.len() < LINE_MAX;
                    return if good { go_on(0) } else { Err(Violation::Chunk) };
                };
                let digits = bytes[..end].strip_suffix(b"\r").ok_or(Violation::LineEnd)?;
                let good = (1..=8).contains(&digits.len()) && digits.iter().all(u8::is_ascii_hexdigit);
                let size = std::str::from_utf8(digits).ok().filter(|_| good);
                let size =
                    size.and_then(|digits| u64::from_str_radix(digits, 16).ok()).ok_or(Violation::Chunk)?;
                let before = before + size;
                if before > self.body_max {
                    return Err(Violation::BodyTooLong);
                }
                self.state =
                    if size == 0 { State::ChunkedEnd } else { State::Chunk { left: size + 2, before } };
                go_on(end + 1)
            }
            State::Chunk { left, before } => {
                let taken = left.min(bytes.len() as u64);
                // The last two are the line's end.
                for (place, byte) in (0..taken).zip(bytes) {
                    let wanted = match left - place {
                        2 => b'\r',
                        1 => b'\n',
                        _ => continue,
                    };
                    if *byte != wanted {
                        return Err(Violation::Chunk);
                    }
                }
                let left = left - taken;
                self.state =
                    if left == 0 { State::ChunkSize { before } } else { State::Chunk { left, before } };
                go_on(usize::try_from(taken).unwrap_or(usize::MAX))
            }
            State::ChunkedEnd => match bytes {
                [b'\r', b'\n', ..] => {
                    self.state = State::Head { searched: 0 };
                    Ok(Passed { bytes: 2, ends_request: true })
                }
                [] | [b'\r'] => go_on(0),
                _ => Err(Violation::Chunk),
            },
        }
    }

    fn pass_head(&mut self, bytes: &[u8], searched: usize) -> Result<Passed, Violation> {
        let within = &bytes[..bytes.len().min(self.head_max)];
        let from = searched.saturating_sub(3);
        let found =
            within[from..].windows(4).position(|end| end == b"\r\n\r\n").map(|place| from + place + 4);
        // A line that ends otherwise is told of before its head is whole: it may never be.
        let fresh = &within[searched.saturating_sub(1)..found.unwrap_or(within.len())];
        let is_bad = |pair: &[u8]| (pair[0] == b'\r') != (pair[1] == b'\n');
        if fresh.windows(2).any(is_bad) || within.first() == Some(&b'\n') {
            return Err(Violation::LineEnd);
        }
        let Some(end) = found else {
            if bytes.len() >= self.head_max {
                let has_line = within.contains(&b'\n');
                return Err(if has_line { Violation::HeadTooLong } else { Violation::TargetTooLong });
            }
            self.state = State::Head { searched: bytes.len() };
            return Ok(Passed { bytes: 0, ends_request: false });
        };
        let length = read_head(&bytes[..end - 4])?;
        self.state = match length {
            Length::None => State::Head { searched: 0 },
            Length::Bytes(bytes) if bytes > self.body_max => return Err(Violation::BodyTooLong),
            Length::Bytes(left) => State::Body { left },
            Length::Chunked => State::ChunkSize { before: 0 },
        };
        Ok(Passed { bytes: end, ends_request: length == Length::None })
    }
}

/// How long a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    None,
    Bytes(u64),
    Chunked,
}

/// Whether a byte may stand in a token (RFC 9110, section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A value without what may stand around it: spaces and tabs (RFC 9110, section 5.5), and nothing else.
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Checks a head without the empty line at its end, whose lines are known to end with CR LF.
fn read_head(head: &[u8]) -> Result<Length, Violation> {
    let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let is_11 = read_request_line(lines.next().unwrap_or_default())?;
    let (mut hosts, mut tokens, mut length, mut fields) = (0, [0, 0], None, 0);
    for line in lines {
        if matches!(line.first(), Some(b' ' | b'\t')) {
            return Err(Violation::Folded);
        }
        fields += 1;
        if fields > FIELDS_MAX {
            return Err(Violation::HeadTooLong);
        }
        let colon = line.iter().position(|byte| *byte == b':').ok_or(Violation::Field)?;
        let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
        let is_printed = |byte: &u8| *byte == b'\t' || !byte.is_ascii_control();
        if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) || !value.iter().all(is_printed) {
            return Err(Violation::Field);
        }
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted.as_bytes());
        if is("host") {
            hosts += 1;
        } else if is("authorization") {
            tokens[0] += 1;
        } else if is("authsock-asker") {
            tokens[1] += 1;
        } else if is("content-length") {
            // No list, no sign, nothing that a number could be besides.
            let good = (1..=15).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
            let bytes =
                std::str::from_utf8(value).ok().filter(|_| good).and_then(|digits| digits.parse().ok());
            if length.replace(Length::Bytes(bytes.ok_or(Violation::Length)?)).is_some() {
                return Err(Violation::Length);
            }
        } else if is("transfer-encoding")
            && (!is_11
                || !value.eq_ignore_ascii_case(b"chunked")
                || length.replace(Length::Chunked).is_some())
        {
            return Err(Violation::Length);
        }
    }
    if hosts > 1 || (is_11 && hosts == 0) {
        return Err(Violation::Host);
    }
    if tokens.iter().any(|count| *count > 1) {
        return Err(Violation::Authorization);
    }
    Ok(length.filter(|length| *length != Length::Bytes(0)).unwrap_or(Length::None))
}

/// Checks a request line (RFC 9112, section 3), and says whether it is of HTTP/1.1.
fn read_request_line(line: &[u8]) -> Result<bool, Violation> {
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Violation::RequestLine);
    };
    let is_method = !method.is_empty() && method.iter().all(|byte| is_token(*byte));
    if !is_method || target.is_empty() {
        return Err(Violation::RequestLine);
    }
    let is_11 = match version {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            return Err(Violation::Version);
        }
        _ => return Err(Violation::RequestLine),
    };
    if method == b"CONNECT" {
        return Err(Violation::Tunnel);
    }
    let absolute = [&b"http://"[..], b"https://"].iter().find_map(|scheme| target.strip_prefix(*scheme));
    let is_absolute = absolute.is_some_and(|rest| {
        is_authority(rest.split(|byte| matches!(byte, b'/' | b'?')).next().unwrap_or_default())
    });
    if !(target.starts_with(b"/") || is_absolute || (target == b"*" && method == b"OPTIONS")) {
        return Err(Violation::RequestLine);
    }
    if !is_encoded(target) {
        return Err(Violation::Target);
    }
    Ok(is_11)
}

/// Whether it is a host, and a port or none. Users have no place there (RFC 9110, section 4.2.4), and nobody asks for this by a
/// number of IPv6.
fn is_authority(text: &[u8]) -> bool {
    let (host, port) = match text.iter().position(|byte| *byte == b':') {
        Some(colon) => (&text[..colon], &text[colon + 1..]),
        None => (text, &b"0"[..]),
    };
    let is_of_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
    let is_port = port.iter().all(u8::is_ascii_digit)
        && std::str::from_utf8(port).is_ok_and(|digits| digits.parse::<u16>().is_ok());
    !host.is_empty() && host.iter().all(is_of_name) && is_port
}

/// Whether all of a target may stand in a URI (RFC 3986, section 2): the rest is percent-encoded there.
fn is_encoded(target: &[u8]) -> bool {
    let is_encoding = |place: usize| {
        let digits = target.get(place + 1..place + 3);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    target.iter().enumerate().all(|(place, byte)| match byte {
        b'%' => is_encoding(place),
        byte => byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?".contains(byte),
    })
}

/// Why no token can be read from a header field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoToken {
    /// It is not there.
    Missing,
    /// Its scheme is none of those that are configured.
    Scheme,
    /// What follows the scheme is no token.
    Malformed,
}

/// Reads the token of an `Authorization` field: a scheme in any case, one space, 64 hexadecimal digits.
///
/// # Errors
/// [`NoToken`].
pub fn read_authorization<'a>(
    value: Option<&[u8]>,
    schemes: impl IntoIterator<Item = &'a str>,
) -> Result<Token, NoToken> {
    let value = value.ok_or(NoToken::Missing)?;
    let text = std::str::from_utf8(value).map_err(|_| NoToken::Malformed)?;
    let (scheme, rest) = text.split_once(' ').ok_or(NoToken::Scheme)?;
    if !schemes.into_iter().any(|known| known.eq_ignore_ascii_case(scheme)) {
        return Err(NoToken::Scheme);
    }
    Token::parse(rest.as_bytes()).map_err(|_| NoToken::Malformed)
}

/// The value of `WWW-Authenticate`: one challenge for each scheme (RFC 9110, section 11.6.1), with the error of RFC 6750,
/// section 3.1, where a token was shown.
pub fn challenges<'a>(
    schemes: impl IntoIterator<Item = &'a str>,
    error: Option<&str>,
    scope: Option<&str>,
) -> String {
    let mut value = String::new();
    for scheme in schemes {
        if !value.is_empty() {
            value.push_str(", ");
        }
        let _ = write!(value, "{scheme} realm=\"authsock\"");
        for (name, what) in [("error", error), ("scope", scope)] {
            if let Some(what) = what {
                let _ = write!(value, ", {name}=\"{what}\"");
            }
        }
    }
    value
}

/// Whether a query has a token, by a name that says so or by its 64 digits: there it would be logged and remembered all
/// along the way (RFC 6750, section 5.3). A subject may have 64 digits of its own, such as a digest's.
pub fn has_token(query: &str) -> bool {
    // Some take a semicolon for an ampersand.
    let mut pairs = query.split(';').flat_map(|part| form_urlencoded::parse(part.as_bytes()));
    pairs.any(|(name, value)| {
        let name = name.trim().to_ascii_lowercase();
        let is_token = |text: &str| Token::parse(text.as_bytes()).is_ok();
        matches!(name.as_str(), "token" | "access_token" | "auth_token" | "authorization" | "bearer_token")
            || is_token(&name)
            || (name != "subject" && is_token(value.trim()))
    })
}

/// A text as the value of a header field: whatever is not visible ASCII, and `%` itself, as `%` and two hexadecimal digits
/// for each byte of UTF-8.
pub fn field_value(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'%') {
        return Cow::Borrowed(text);
    }
    let mut value = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && byte != b'%' {
            value.push(char::from(byte));
        } else {
            let _ = write!(value, "%{byte:02X}");
        }
    }
    Cow::Owned(value)
}

/// The media type of a problem.
pub const PROBLEM: &str = "application/problem+json";

/// What went wrong, as RFC 9457 has it.
#[derive(Debug, Serialize)]
pub struct Problem<'a> {
    /// No page tells of more than the status does.
    pub r#type: &'static str,
    /// The status in words.
    pub title: &'a str,
    /// The status.
    pub status: u16,
    /// A sentence that names the thing and the way out.
    pub detail: &'a str,
}

impl<'a> Problem<'a> {
    /// A problem that a status tells of.
    pub fn new(status: u16, title: &'a str, detail: &'a str) -> Problem<'a> {
        Problem { r#type: "about:blank", title, status, detail }
    }

    /// Its JSON.
    pub fn to_json(&self) -> Vec<u8> {
        // Plain data into memory: neither JSON nor a Vec can refuse it.
        #[allow(clippy::expect_used)]
        serde_json::to_vec(self).expect("plain data serialises")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of bytes that come in pieces: where each request ends, and what is wrong with what follows.
    fn follow(bytes: &[u8], pieces: &mut dyn FnMut(usize) -> usize) -> (Vec<usize>, Option<Violation>) {
        let mut framing = Framing::new(1024, 100);
        let (mut ends, mut passed, mut there) = (Vec::new(), 0, 0);
        loop {
            match framing.pass(&bytes[passed..there]) {
                Err(violation) => return (ends, Some(violation)),
                Ok(Passed { bytes: taken, ends_request }) => {
                    passed += taken;
                    assert!(passed <= there);
                    if ends_request {
                        ends.push(passed);
                    }
                    if taken == 0 {
                        if there == bytes.len() {
                            return (ends, None);
                        }
                        there = bytes.len().min(there + pieces(bytes.len() - there).max(1));
                    }
                }
            }
        }
    }

    /// However it is cut; gives the requests that end, and the violation.
    fn verdict(bytes: &[u8]) -> (usize, Option<Violation>) {
        let whole = follow(bytes, &mut |left| left);
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64 ^ bytes.len() as u64;
        let mut random = |left: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            usize::try_from(seed % (left as u64 + 1)).unwrap()
        };
        assert_eq!(follow(bytes, &mut |_| 1), whole, "{}", String::from_utf8_lossy(bytes));
        for _ in 0..20 {
            assert_eq!(follow(bytes, &mut random), whole, "{}", String::from_utf8_lossy(bytes));
        }
        (whole.0.len(), whole.1)
    }

    #[test]
    fn requests_end_where_they_say() {
        let get = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        for (bytes, ends) in [
            (get.to_owned(), 1),
            (format!("{get}{get}{get}"), 3),
            ("GET / HTTP/1.0\r\n\r\n".to_owned(), 1),
            ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello".to_owned() + get, 2),
            ("POST / HTTP/1.1\r\nHost:\r\nContent-Length: 0\r\n\r\n".to_owned() + get, 2),
            ("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n".to_owned() + get, 2),
            ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhell".to_owned(), 0),
            ("OPTIONS * HTTP/1.1\r\nhost: a b\r\nX: \tü\t\r\n\r\n".to_owned(), 1),
            ("GET http://x/y?z HTTP/1.1\r\nHost: x\r\nAuthorization: a\r\n\r\n".to_owned(), 1),
            ("GET http://a-1.b_c:65535?z HTTP/1.1\r\nHost: x\r\nA: \t a\tb \t\r\n\r\n".to_owned(), 1),
            ("GET https://x HTTP/1.1\r\nHost: x\r\nA: \t \r\n\r\n".to_owned(), 1),
        ] {
            assert_eq!(verdict(bytes.as_bytes()), (ends, None), "{bytes}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_read_in_none() {
        let good = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        let post = |fields: &str, body: &str| format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n{body}");
        for (bytes, violation) in [
            (post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), Violation::Length),
            (post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"), Violation::Length),
            (post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"), Violation::Length),
            (post("Content-Length: 5\r\ncontent-length: 6\r\n", "hello"), Violation::Length),
            (post("Content-Length: 5, 5\r\n", "hello"), Violation::Length),
            (post("Content-Length: +5\r\n", "hello"), Violation::Length),
            (post("Content-Length: -1\r\n", ""), Violation::Length),
            (post("Content-Length: 0x5\r\n", "hello"), Violation::Length),
            (post("Content-Length: \r\n", ""), Violation::Length),
            (post("Content-Length: 18446744073709551617\r\n", ""), Violation::Length),
            (post("Transfer-Encoding: gzip, chunked\r\n", ""), Violation::Length),
            (post("Transfer-Encoding: identity\r\n", ""), Violation::Length),
            (post("Transfer-Encoding: xchunked\r\n", ""), Violation::Length),
            (post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", ""), Violation::Length),
            ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(), Violation::Length),
            (post("Transfer-Encoding : chunked\r\n", ""), Violation::Field),
            (post("Content-Length: 5\r\n hello: x\r\n", ""), Violation::Folded),
            (post("A: b\r\n\tc\r\n", ""), Violation::Folded),
            (post("A: b\nB: c\r\n", ""), Violation::LineEnd),
            (post("A: b\rB: c\r\n", ""), Violation::LineEnd),
            ("GET / HTTP/1.1\nHost: x\n\n".into(), Violation::LineEnd),
            ("\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n".into(), Violation::RequestLine),
            ("\nGET / HTTP/1.1\r\nHost: x\r\n\r\n".into(), Violation::LineEnd),
            (post("A: \0\r\n", ""), Violation::Field),
            (post("A: \u{7f}\r\n", ""), Violation::Field),
            (post("A: b\u{c}\r\n", ""), Violation::Field),
            (post("A:\u{c}b\r\n", ""), Violation::Field),
            (post("Content-Length: 5\u{c}\r\n", "hello"), Violation::Field),
            (post("Transfer-Encoding:\u{c}chunked\r\n", ""), Violation::Field),
            (post("A: \u{b}\r\n", ""), Violation::Field),
            (post(": a\r\n", ""), Violation::Field),
            (post("a\r\n", ""), Violation::Field),
            (post("a(b: c\r\n", ""), Violation::Field),
            (post("ü: c\r\n", ""), Violation::Field),
            (post("Host: y\r\n", ""), Violation::Host),
            ("GET / HTTP/1.1\r\n\r\n".into(), Violation::Host),
            ("GET / HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n".into(), Violation::Host),
            (post("Authorization: a\r\nauthorization: b\r\n", ""), Violation::Authorization),
            (post("Authsock-Asker: a\r\nAuthsock-Asker: a\r\n", ""), Violation::Authorization),
            ("GET  / HTTP/1.1\r\nHost: x\r\n\r\n".into(), Violation::RequestLine),
            ("GET / HTTP/1.1 \r\nHost: x\r\n\r\n".into(), Violation::RequestLine),
            ("GET /\r\nHost: x\r\n\r\n".into(), Violation::RequestLine),
            ("GET\t/\tHTTP/1.1\r\nHost: x\r\n\r\n".into(), Violation::RequestLine),
            ("GET x HTTP/1.1\r\nHost: x\r\n\r\n".into(), Violation::RequestLine),
            ("GET * HTTP/1.1\r\nHost: x\r\n\r\n".into(), Violation::RequestLine),
            ("GET http:// HTTP/1.1\r\nHost: x\r\n\r\n".into(), Violation::RequestLine),
            ("GET http:///x HTTP/1.1\r\nHost: x\r\n\r\n".into(), Violation::RequestLine),
            ("GET http://?x HTTP/1.1\r\nHost: x\r\n\r\n".into(), Violation::RequestLine),
            ("GET http://a@x/ HTTP/1.1\r\nHost: x\r\n\r\n".into(), Violation::RequestLine),
            ("GET http://x:/ HTTP/1.1\r\nHost: x\r\n\r\n".into(), Violation::RequestLine),
            ("GET http://:1/ HTTP/1.1\r\nHost: x\r\n\r\n".into(), Violation::RequestLine),
            ("GET http://x:1:2/ HTTP/1.1\r\nHost: x\r\n\r\n".into(), Violation::RequestLine),
            ("GET http://x:65536/ HTTP/1.1\r\nHost: x\r\n\r\n".into(), Violation::RequestLine),
            ("GET http://%78/ HTTP/1.1\r\nHost: x\r\n\r\n".into(), Violation::RequestLine),
            ("GET http:x/ HTTP/1.1\r\nHost: x\r\n\r\n".into(), Violation::RequestLine),
            ("GET /ü HTTP/1.1\r\nHost: x\r\n\r\n".into(), Violation::Target),
            ("GET /a> HTTP/1.1\r\nHost: x\r\n\r\n".into(), Violation::Target),
            ("GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n".into(), Violation::Target),
            ("GET /%2 HTTP/1.1\r\nHost: x\r\n\r\n".into(), Violation::Target),
            ("GET /%2x HTTP/1.1\r\nHost: x\r\n\r\n".into(), Violation::Target),
            ("G{T / HTTP/1.1\r\nHost: x\r\n\r\n".into(), Violation::RequestLine),
            ("GET / http/1.1\r\nHost: x\r\n\r\n".into(), Violation::RequestLine),
            ("GET / HTTP/1.12\r\nHost: x\r\n\r\n".into(), Violation::RequestLine),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), Violation::Version),
            ("GET / HTTP/0.9\r\nHost: x\r\n\r\n".into(), Violation::Version),
            ("CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n".into(), Violation::Tunnel),
            (post("Transfer-Encoding: chunked\r\n", "5;a=b\r\nhello\r\n0\r\n\r\n"), Violation::Chunk),
            (post("Transfer-Encoding: chunked\r\n", "5 \r\nhello\r\n0\r\n\r\n"), Violation::Chunk),
            (post("Transfer-Encoding: chunked\r\n", "5\nhello\r\n0\r\n\r\n"), Violation::LineEnd),
            (post("Transfer-Encoding: chunked\r\n", "5\r\nhelloo\r\n0\r\n\r\n"), Violation::Chunk),
            (post("Transfer-Encoding: chunked\r\n", "5\r\nhello\n0\r\n\r\n"), Violation::Chunk),
            (post("Transfer-Encoding: chunked\r\n", "000000005\r\nhello\r\n0\r\n\r\n"), Violation::Chunk),
            (post("Transfer-Encoding: chunked\r\n", "0x5\r\nhello\r\n0\r\n\r\n"), Violation::Chunk),
            (post("Transfer-Encoding: chunked\r\n", "-5\r\nhello\r\n0\r\n\r\n"), Violation::Chunk),
            (post("Transfer-Encoding: chunked\r\n", "\r\n\r\n"), Violation::Chunk),
            (post("Transfer-Encoding: chunked\r\n", "0\r\nTrailer: x\r\n\r\n"), Violation::Chunk),
            (post("Transfer-Encoding: chunked\r\n", "65\r\n"), Violation::BodyTooLong),
            (
                post("Transfer-Encoding: chunked\r\n", &format!("64\r\n{}\r\n1\r\n", "x".repeat(100))),
                Violation::BodyTooLong,
            ),
            (post("Content-Length: 101\r\n", ""), Violation::BodyTooLong),
        ] {
            let (ends, found) = verdict(bytes.as_bytes());
            assert_eq!((ends, found), (0, Some(violation)), "{bytes}");
            // A good one before it is a good one all the same.
            let (ends, found) = verdict(format!("{good}{bytes}").as_bytes());
            assert_eq!((ends, found), (1, Some(violation)), "{bytes}");
        }
    }

    #[test]
    fn heads_and_bodies_have_their_most_bytes_and_no_more() {
        let padded = |length: usize| {
            let rest = length - "GET / HTTP/1.1\r\nHost: x\r\nA: \r\n\r\n".len();
            format!("GET / HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "x".repeat(rest))
        };
        assert_eq!(verdict(padded(1024).as_bytes()), (1, None));
        assert_eq!(verdict(padded(1025).as_bytes()), (0, Some(Violation::HeadTooLong)));
        assert_eq!(verdict(&[b'x'; 1024]), (0, Some(Violation::TargetTooLong)));
        assert_eq!(verdict(&[b'x'; 1023]), (0, None));
        let fields = |count: usize| format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(count));
        assert_eq!(verdict(fields(FIELDS_MAX - 1).as_bytes()), (1, None));
        assert_eq!(verdict(fields(FIELDS_MAX).as_bytes()), (0, Some(Violation::HeadTooLong)));
        let whole = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{}", "x".repeat(100));
        assert_eq!(verdict(whole.as_bytes()), (1, None));
        let chunked = format!(
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n64\r\n{}\r\n0\r\n\r\n",
            "x".repeat(100)
        );
        assert_eq!(verdict(chunked.as_bytes()), (1, None));
    }

    #[test]
    fn a_token_comes_by_a_known_scheme_in_any_case() {
        let token = "0123456789abcdef".repeat(4);
        let read = |value: &str| {
            read_authorization(Some(value.as_bytes()), ["Bearer", "Authsock-Session"]).map(drop)
        };
        for good in ["Bearer", "bearer", "BEARER", "authsock-session"] {
            assert_eq!(read(&format!("{good} {token}")), Ok(()));
            assert_eq!(read(&format!("{good} {}", token.to_uppercase())), Ok(()));
        }
        for (bad, why) in [
            (format!("Basic {token}"), NoToken::Scheme),
            (token.clone(), NoToken::Scheme),
            ("Bearer".to_owned(), NoToken::Scheme),
            (format!("Bearer  {token}"), NoToken::Malformed),
            (format!("Bearer {token}0"), NoToken::Malformed),
            (format!("Bearer {}", &token[1..]), NoToken::Malformed),
            (format!("Bearer \"{token}\""), NoToken::Malformed),
            ("Bearer ".to_owned(), NoToken::Malformed),
        ] {
            assert_eq!(read(&bad), Err(why));
        }
        assert_eq!(read_authorization(None, ["Bearer"]).map(drop), Err(NoToken::Missing));
        assert_eq!(read_authorization(Some(b"Bearer \xff"), ["Bearer"]).map(drop), Err(NoToken::Malformed));
    }

    #[test]
    fn a_token_in_a_query_is_seen_however_it_is_written() {
        for query in [
            "token=a",
            "a=b&token",
            "TOKEN=a",
            "%74oken=a",
            "access_token=",
            "a&Access%5fToken=x",
            "+token=a",
        ] {
            assert!(has_token(query), "{query}");
        }
        let digits = "0123456789abcDEF".repeat(4);
        for query in ["key=", "", "a=b;c=", "token%5B%5D=", "since=1&a=+", "%2574oken="] {
            assert!(has_token(&format!("{query}{digits}")), "{query}");
        }
        for query in [format!("subject={digits}"), format!("key={digits}0"), format!("key={}", &digits[1..])]
        {
            assert!(!has_token(&query), "{query}");
        }
        for query in ["", "a=token", "tokens=a", "subject=token", "token_type_hint=a"] {
            assert!(!has_token(query), "{query}");
        }
    }

    #[test]
    fn what_people_wrote_cannot_leave_its_header_field() {
        assert_eq!(field_value("make"), "make");
        assert_eq!(field_value("a b%\r\nX: ü"), "a%20b%25%0D%0AX:%20%C3%BC");
        assert_eq!(
            challenges(["Bearer", "X"], Some("invalid_token"), None),
            r#"Bearer realm="authsock", error="invalid_token", X realm="authsock", error="invalid_token""#
        );
    }
}
