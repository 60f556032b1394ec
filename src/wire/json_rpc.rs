//! JSON-RPC 2.0 (jsonrpc.org/specification): requests, answers and their error codes, one JSON value a line.

use std::borrow::Cow;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

/// Longest line after the handshake in bytes, its newline included; configurable.
pub const REQUEST_LINE_MAX: usize = 1 << 20;

/// What went wrong with a request, with its number from the specification or from our own range
/// (-32000 to -32099).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// Not JSON.
    ParseError,
    /// JSON, but no request.
    InvalidRequest,
    /// No such method.
    MethodNotFound,
    /// The method does not take these parameters.
    InvalidParams,
    /// Our own fault.
    Internal,
    /// The session lacks the scope.
    NotPermitted,
    /// There is no such thing, or the session may not see it.
    NotFound,
    /// A named limit is reached.
    LimitReached,
    /// The line is longer than its limit; the connection closes.
    TooLarge,
    /// The daemon cannot do it now.
    Unavailable,
}

impl ErrorCode {
    /// All codes, for documentation and tests.
    pub const ALL: [ErrorCode; 10] = [
        ErrorCode::ParseError,
        ErrorCode::InvalidRequest,
        ErrorCode::MethodNotFound,
        ErrorCode::InvalidParams,
        ErrorCode::Internal,
        ErrorCode::NotPermitted,
        ErrorCode::NotFound,
        ErrorCode::LimitReached,
        ErrorCode::TooLarge,
        ErrorCode::Unavailable,
    ];

    /// A word for whoever counts.
    pub fn word(self) -> &'static str {
        match self {
            ErrorCode::ParseError => "parse_error",
            ErrorCode::InvalidRequest => "invalid_request",
            ErrorCode::MethodNotFound => "method_not_found",
            ErrorCode::InvalidParams => "invalid_params",
            ErrorCode::Internal => "internal",
            ErrorCode::NotPermitted => "not_permitted",
            ErrorCode::NotFound => "not_found",
            ErrorCode::LimitReached => "limit_reached",
            ErrorCode::TooLarge => "too_large",
            ErrorCode::Unavailable => "unavailable",
        }
    }

    /// The word for a number on the wire; one that is none of ours would be our own fault.
    pub fn word_of(number: i64) -> &'static str {
        let found = ErrorCode::ALL.into_iter().find(|code| code.number() == number);
        found.unwrap_or(ErrorCode::Internal).word()
    }

    /// The number on the wire.
    pub fn number(self) -> i64 {
        match self {
            ErrorCode::ParseError => -32700,
            ErrorCode::InvalidRequest => -32600,
            ErrorCode::MethodNotFound => -32601,
            ErrorCode::InvalidParams => -32602,
            ErrorCode::Internal => -32603,
            ErrorCode::NotPermitted => -32001,
            ErrorCode::NotFound => -32002,
            ErrorCode::LimitReached => -32003,
            ErrorCode::TooLarge => -32004,
            ErrorCode::Unavailable => -32005,
        }
    }
}

/// An error as it is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RpcError {
    /// The number.
    pub code: i64,
    /// A sentence that names the thing and the way out.
    pub message: String,
}

impl RpcError {
    /// An error with its sentence.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> RpcError {
        RpcError { code: code.number(), message: message.into() }
    }
}

impl std::fmt::Display for RpcError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

/// A request, or a notification if it has no id.
#[derive(Debug)]
pub struct Request<'a> {
    /// The id, kept as it was sent, byte for byte: a number that no type of ours holds comes back
    /// as well. `None` for a notification, which is not answered.
    pub id: Option<&'a RawValue>,
    /// The method's name.
    pub method: Cow<'a, str>,
    /// The parameters, not yet read.
    pub params: Option<&'a RawValue>,
}

/// What a client sends at once: a request, or several (section 6 of the specification).
#[derive(Debug)]
pub enum Incoming<'a> {
    /// One request.
    One(Request<'a>),
    /// Several, each of which may be none.
    Batch {
        /// All of it.
        text: &'a str,
        /// Where each of them is in it.
        items: Vec<Range<usize>>,
    },
}

impl<'a> Incoming<'a> {
    /// Reads what came, with at most so many requests at once.
    ///
    /// # Errors
    /// The one error to answer with id null.
    pub fn read(bytes: &'a [u8], most: usize) -> Result<Incoming<'a>, RpcError> {
        let text = utf8(bytes)?;
        if !text.trim_ascii_start().starts_with('[') {
            return Request::read(bytes).map(Incoming::One);
        }
        let mut items = Items { text, most, ranges: Vec::new(), is_too_many: false };
        let mut reader = serde_json::Deserializer::from_str(text);
        let read =
            serde::de::DeserializeSeed::deserialize(&mut items, &mut reader).and_then(|()| reader.end());
        if items.is_too_many {
            let words = format!(
                "a batch has at most {most} requests (limits.requests_in_flight); none of these was carried out"
            );
            return Err(RpcError::new(ErrorCode::LimitReached, words));
        }
        read.map_err(|error| not_json(&error))?;
        if items.ranges.is_empty() {
            return Err(RpcError::new(ErrorCode::InvalidRequest, "not a request: the batch is empty"));
        }
        Ok(Incoming::Batch { text, items: items.ranges })
    }
}

/// Collects where the items of a list are, and nothing else.
struct Items<'a> {
    text: &'a str,
    most: usize,
    ranges: Vec<Range<usize>>,
    is_too_many: bool,
}

impl<'de> serde::de::DeserializeSeed<'de> for &mut Items<'de> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> serde::de::Visitor<'de> for &mut Items<'de> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(item) = list.next_element::<&'de RawValue>()? {
            if self.ranges.len() == self.most {
                self.is_too_many = true;
                return Err(serde::de::Error::custom("too many"));
            }
            // Borrowed from the text, so that the difference is its place in it.
            let begin = item.get().as_ptr().addr() - self.text.as_ptr().addr();
            self.ranges.push(begin..begin + item.get().len());
        }
        Ok(())
    }
}

/// JSON is UTF-8 (RFC 8259, section 8.1), also in fields that are not looked at.
fn utf8(bytes: &[u8]) -> Result<&str, RpcError> {
    std::str::from_utf8(bytes).map_err(|error| {
        let words = format!("not UTF-8, at byte {}", error.valid_up_to() + 1);
        RpcError::new(ErrorCode::ParseError, words)
    })
}

fn not_json(error: &serde_json::Error) -> RpcError {
    let place = match error.line() {
        0 | 1 => format!("at byte {}", error.column()),
        line => format!("in line {line}, at byte {}", error.column()),
    };
    RpcError::new(ErrorCode::ParseError, format!("not JSON, {place}"))
}

#[derive(Deserialize)]
struct RequestLine<'a> {
    #[serde(borrow)]
    jsonrpc: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Cow<'a, str>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

/// Tells `"id":null` from no id at all: only the latter is a notification.
fn present<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

impl<'a> Request<'a> {
    /// Reads one line.
    ///
    /// # Errors
    /// The error to answer with id null (section 5 of the specification).
    pub fn read(line: &'a [u8]) -> Result<Request<'a>, RpcError> {
        let invalid = |what: &str| RpcError::new(ErrorCode::InvalidRequest, format!("not a request: {what}"));
        let line = utf8(line)?;
        let request: RequestLine<'_> =
            serde_json::from_str(line).map_err(|error| {
                match serde_json::from_str::<serde::de::IgnoredAny>(line) {
                    Err(_) => not_json(&error),
                    Ok(_) if line.trim_ascii_start().starts_with('[') => {
                        invalid("a batch is not within another one")
                    }
                    Ok(_) => invalid("expected jsonrpc, method, and perhaps id and params"),
                }
            })?;
        if request.jsonrpc != "2.0" {
            return Err(invalid("expected \"jsonrpc\":\"2.0\""));
        }
        let first = |value: &RawValue| value.get().bytes().next();
        // It is JSON, so that its first byte tells its kind; n is null.
        if request.id.is_some_and(|id| !matches!(first(id), Some(b'"' | b'-' | b'0'..=b'9' | b'n'))) {
            return Err(invalid("an id is a text, a number or null"));
        }
        let structured = |params: &RawValue| matches!(first(params), Some(b'{' | b'['));
        if !request.params.is_none_or(structured) {
            return Err(invalid("params is an object or a list"));
        }
        Ok(Request { id: request.id, method: request.method, params: request.params })
    }
}

/// Writes an answer and its newline behind what is there already. Without an id it is null, as for
/// what was no request (section 5 of the specification).
pub fn write_answer(out: &mut Vec<u8>, id: Option<&RawValue>, result: &Result<Value, RpcError>) {
    #[derive(Serialize)]
    struct Line<'a> {
        jsonrpc: &'static str,
        id: Option<&'a RawValue>,
        #[serde(skip_serializing_if = "Option::is_none")]
        result: Option<&'a Value>,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<&'a RpcError>,
    }
    let line = Line { jsonrpc: "2.0", id, result: result.as_ref().ok(), error: result.as_ref().err() };
    // Plain data into memory: neither JSON nor a Vec can refuse it.
    #[allow(clippy::expect_used)]
    serde_json::to_writer(&mut *out, &line).expect("plain data serialises");
    out.push(b'\n');
}

/// The method of the notification that a connection's last line is when its session has ended.
pub const SESSION_ENDED: &str = "session.ended";

/// Writes a notification (section 4.1 of the specification) and its newline behind what is there already.
pub fn write_notification<P: Serialize>(out: &mut Vec<u8>, method: &str, params: &P) {
    #[derive(Serialize)]
    struct Line<'a, P> {
        jsonrpc: &'static str,
        method: &'a str,
        params: &'a P,
    }
    // As above.
    #[allow(clippy::expect_used)]
    serde_json::to_writer(&mut *out, &Line { jsonrpc: "2.0", method, params })
        .expect("plain data serialises");
    out.push(b'\n');
}

/// The line of a request, its newline included.
pub fn request_line<P: Serialize>(id: u64, method: &str, params: Option<&P>) -> String {
    #[derive(Serialize)]
    struct Line<'a, P> {
        jsonrpc: &'static str,
        id: u64,
        method: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        params: Option<&'a P>,
    }
    // As above.
    #[allow(clippy::expect_used)]
    let mut text =
        serde_json::to_string(&Line { jsonrpc: "2.0", id, method, params }).expect("plain data serialises");
    text.push('\n');
    text
}

/// An answer, or a notification, as a client reads it.
#[derive(Debug, Deserialize)]
pub struct AnswerLine<'a> {
    /// The id of the request that it answers.
    #[serde(default)]
    pub id: Value,
    /// What came of it, not yet read.
    #[serde(borrow, default, deserialize_with = "present")]
    pub result: Option<&'a RawValue>,
    /// What went wrong.
    #[serde(default)]
    pub error: Option<RpcError>,
    /// The method, if it is a notification.
    #[serde(default)]
    pub method: Option<String>,
    /// What a notification tells, not yet read.
    #[serde(borrow, default)]
    pub params: Option<&'a RawValue>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code_of(line: &str) -> i64 {
        Request::read(line.as_bytes()).unwrap_err().code
    }

    #[test]
    fn ids_of_every_legal_kind_are_kept_as_sent() {
        let huge = "9".repeat(400);
        for id in [
            "1",
            "-7",
            "1.5",
            "1.0",
            "1e2",
            "-0",
            "1E400",
            "\"x\"",
            "\"\"",
            r#""\u0041\n""#,
            "null",
            "18446744073709551615",
            "18446744073709551616",
            "0.1000000000000000055511151231257827",
            &huge,
        ] {
            let line = format!(r#"{{"jsonrpc":"2.0","method":"ping","id":{id}}}"#);
            let request = Request::read(line.as_bytes()).unwrap();
            let mut out = Vec::new();
            write_answer(&mut out, Some(request.id.unwrap()), &Ok(Value::from(1)));
            assert_eq!(
                String::from_utf8(out).unwrap(),
                format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":1}}\n")
            );
        }
        let note = Request::read(br#"{"jsonrpc":"2.0","method":"ping"}"#).unwrap();
        assert!(note.id.is_none());
    }

    #[test]
    fn bad_requests_have_the_specification_s_codes() {
        for bad in ["", "{", "nonsense", "{\"a\":", "\u{0}"] {
            assert_eq!(code_of(bad), -32700, "{bad}");
        }
        for bad in [
            "{}",
            "7",
            "null",
            "[]",
            r#"{"jsonrpc":"1.0","method":"a"}"#,
            r#"{"jsonrpc":"2.0","method":7}"#,
            r#"{"jsonrpc":"2.0","method":"a","id":[1]}"#,
            r#"{"jsonrpc":"2.0","method":"a","id":{}}"#,
            r#"{"jsonrpc":"2.0","method":"a","id":true}"#,
            r#"{"jsonrpc":"2.0","method":"a","params":7}"#,
            r#"{"jsonrpc":"2.0","method":"a","method":"b"}"#,
        ] {
            assert_eq!(code_of(bad), -32600, "{bad}");
        }
        assert_eq!(
            Request::read(b"{\"jsonrpc\":\"2.0\",\"method\":\"a\",\"x\":\"\xff\"}").unwrap_err().code,
            -32700
        );
        let deep = format!(r#"{{"jsonrpc":"2.0","method":"a","params":{}}}"#, "[".repeat(10_000));
        assert_eq!(code_of(&deep), -32700);
    }

    #[test]
    fn a_null_result_is_a_result() {
        let answer: AnswerLine<'_> =
            serde_json::from_str(r#"{"jsonrpc":"2.0","id":1,"result":null}"#).unwrap();
        assert_eq!(answer.result.unwrap().get(), "null");
        let answer: AnswerLine<'_> = serde_json::from_str(r#"{"jsonrpc":"2.0","id":1}"#).unwrap();
        assert!(answer.result.is_none());
    }
}
