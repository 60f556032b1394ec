//! The handshake's messages: what a client and a daemon say before anything else, one JSON object a line.
//!
//! Plain, for any language and any shell:
//! ```text
//! > {"type":"auth","token":"<64 hex>"}
//! < {"type":"auth_result","success":true,"session":{"id":"…","name":"…","realm":"…"}}
//! ```
//! Proof, in which the token never crosses the socket and both ends are proven:
//! ```text
//! > {"type":"auth","v":1,"service":"control","token_id":"<16 hex>","nonce":"<64 hex>"}
//! < {"type":"challenge","nonce":"<64 hex>","peer":{"uid":1000,"pid":4711,"pidfs":9001},"proof":"<64 hex>"}
//! > {"type":"auth","proof":"<64 hex>"}
//! < {"type":"auth_result","success":true,"session":{…}}
//! ```
//! docs/protocol.md has the whole of it.

use std::fmt;

use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize, Serializer};

use crate::secret::token::{Token, TokenId};
use crate::secret::verifier::KEY_BYTES;

/// Longest line of a handshake in bytes, its newline included. Part of the protocol.
pub const AUTH_LINE_MAX: usize = 4096;
/// The handshake's version that this code speaks.
pub const VERSION: u64 = 1;
/// Versions that a daemon of this code accepts: the current one and the one before.
pub const VERSIONS: &[u64] = &[VERSION];
/// The service that is built in.
pub const CONTROL: &str = "control";

/// 32 bytes as 64 lower-case hexadecimal digits: a nonce or a proof.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hex32(pub [u8; KEY_BYTES]);

impl Hex32 {
    /// Reads 64 lower-case hexadecimal digits.
    pub(crate) fn parse(digits: &str) -> Option<Hex32> {
        if digits.bytes().any(|digit| digit.is_ascii_uppercase()) {
            return None;
        }
        let mut bytes = [0; KEY_BYTES];
        hex::decode_to_slice(digits, &mut bytes).ok()?;
        Some(Hex32(bytes))
    }
}

impl fmt::Display for Hex32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Hex32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hex32(..)")
    }
}

impl Serialize for Hex32 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hex32 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Hex32, D::Error> {
        let digits = <&str>::deserialize(deserializer)?;
        Hex32::parse(digits).ok_or_else(|| D::Error::custom("expected 64 lower-case hexadecimal digits"))
    }
}

/// What the daemon's kernel says of the process that connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerView {
    /// User id.
    pub uid: u32,
    /// Process id, in the daemon's pid namespace; 0 if it has none there.
    pub pid: u32,
    /// Inode of the process's pidfd, where the daemon's kernel has pidfs (Linux 6.9).
    pub pidfs: Option<u64>,
    /// Start time in clock ticks since boot; where there is no inode, or on request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<u64>,
    /// Inode of the daemon's pid namespace, with `start`: in another one, pids cannot be compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pidns: Option<u64>,
}

/// A client's first message.
#[derive(Debug)]
pub enum Opening {
    /// The token itself.
    Plain(Token),
    /// The wish to prove it.
    Proof(ProofOpening),
}

/// The opening of a handshake by proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProofOpening {
    /// Which token will be proven.
    pub token_id: TokenId,
    /// The client's nonce.
    pub nonce: Hex32,
    /// What the client wants to talk to.
    pub service: String,
    /// Whether the client needs `start` and `pidns`, because it has no pidfd of its own.
    pub wants_start: bool,
}

/// Why a message was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misread {
    /// Not JSON, not this message, or with a field of the wrong kind.
    #[error("{0}")]
    Malformed(String),
    /// Of a version that is not spoken here.
    #[error("version {0} of the handshake is not spoken here")]
    Version(u64),
}

#[derive(Deserialize)]
struct ClientLine<'a> {
    r#type: &'a str,
    token: Option<&'a str>,
    v: Option<u64>,
    service: Option<&'a str>,
    token_id: Option<&'a str>,
    nonce: Option<Hex32>,
    proof: Option<Hex32>,
    #[serde(borrow, default)]
    want: Vec<&'a str>,
}

/// What every version has.
#[derive(Deserialize)]
struct AnyVersion {
    v: Option<u64>,
}

fn malformed(what: impl Into<String>) -> Misread {
    Misread::Malformed(what.into())
}

/// The words of a JSON error without any of the text that it is about, which may be a secret.
fn describe(error: &serde_json::Error) -> String {
    let kind = match error.classify() {
        serde_json::error::Category::Data => "a field is missing, twice there, or of the wrong kind",
        serde_json::error::Category::Io
        | serde_json::error::Category::Syntax
        | serde_json::error::Category::Eof => "not a JSON object",
    };
    format!("{kind} (at byte {})", error.column())
}

/// The line as text: JSON is UTF-8 (RFC 8259, section 8.1), also in fields that are not looked at.
fn text_of(line: &[u8]) -> Result<&str, Misread> {
    std::str::from_utf8(line)
        .map_err(|error| malformed(format!("not UTF-8 (at byte {})", error.valid_up_to() + 1)))
}

fn client_line(line: &[u8]) -> Result<ClientLine<'_>, Misread> {
    let line = text_of(line)?;
    let message: ClientLine<'_> = match serde_json::from_str(line) {
        Ok(message) => message,
        // A later version may have other fields: what it says of itself counts first.
        Err(error) => match serde_json::from_str(line) {
            Ok(AnyVersion { v: Some(v) }) if !VERSIONS.contains(&v) => return Err(Misread::Version(v)),
            _ => return Err(malformed(describe(&error))),
        },
    };
    match message.v {
        Some(v) if !VERSIONS.contains(&v) => Err(Misread::Version(v)),
        _ if message.r#type != "auth" => Err(malformed("the first message must be of type auth")),
        _ => Ok(message),
    }
}

/// Whether a service's name is one: 1 to 64 of lower-case letters, digits, `.`, `_`, `-`.
pub fn is_service_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte))
}

/// Reads a client's first line, without its newline.
///
/// # Errors
/// [`Misread`].
pub fn read_opening(line: &[u8]) -> Result<Opening, Misread> {
    let message = client_line(line)?;
    if message.proof.is_some() {
        return Err(malformed("a proof before a challenge"));
    }
    if let Some(token) = message.token {
        if message.token_id.is_some() || message.nonce.is_some() {
            return Err(malformed("both a token and the wish to prove one"));
        }
        if message.service.is_some_and(|service| service != CONTROL) {
            return Err(malformed("a plain token reaches the service control only"));
        }
        let token = Token::parse(token.as_bytes()).map_err(|error| malformed(error.to_string()))?;
        return Ok(Opening::Plain(token));
    }
    let (Some(_), Some(token_id), Some(nonce)) = (message.v, message.token_id, message.nonce) else {
        return Err(malformed("expected token, or v, token_id and nonce"));
    };
    let service = message.service.unwrap_or(CONTROL);
    if !is_service_name(service) {
        return Err(malformed("not a service name"));
    }
    Ok(Opening::Proof(ProofOpening {
        token_id: token_id.parse().map_err(|error| malformed(format!("{error}")))?,
        nonce,
        service: service.to_owned(),
        wants_start: message.want.contains(&"start"),
    }))
}

/// Whether a line is one of this handshake, wherever it comes.
pub fn is_auth(line: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Typed<'a> {
        r#type: &'a str,
    }
    serde_json::from_slice::<Typed<'_>>(line).is_ok_and(|message| message.r#type == "auth")
}

/// Reads a client's proof.
///
/// # Errors
/// [`Misread`].
pub fn read_proof(line: &[u8]) -> Result<Hex32, Misread> {
    let message = client_line(line)?;
    match message {
        ClientLine { proof: Some(proof), token: None, token_id: None, nonce: None, .. } => Ok(proof),
        _ => Err(malformed("expected proof, and nothing else to prove")),
    }
}

impl ProofOpening {
    /// The line to send, its newline included.
    pub fn to_line(&self) -> String {
        #[derive(Serialize)]
        struct Line<'a> {
            r#type: &'a str,
            v: u64,
            service: &'a str,
            token_id: String,
            nonce: Hex32,
            #[serde(skip_serializing_if = "<[_]>::is_empty")]
            want: &'a [&'a str],
        }
        line(&Line {
            r#type: "auth",
            v: VERSION,
            service: &self.service,
            token_id: self.token_id.to_string(),
            nonce: self.nonce,
            want: if self.wants_start { &["start"] } else { &[] },
        })
    }
}

/// The line that carries a client's proof.
pub fn proof_line(proof: Hex32) -> String {
    #[derive(Serialize)]
    struct Line<'a> {
        r#type: &'a str,
        proof: Hex32,
    }
    line(&Line { r#type: "auth", proof })
}

/// The daemon's challenge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// The daemon's nonce.
    pub nonce: Hex32,
    /// Whom the daemon's kernel sees at the other end.
    pub peer: PeerView,
    /// The daemon's proof.
    pub proof: Hex32,
}

/// What a client learns of its session by the handshake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionBrief {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its realm.
    pub realm: String,
}

/// Why a handshake was refused: one word for the peer, with a fixed sentence. The reason itself is
/// in the daemon's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The message was not understood.
    Malformed,
    /// A line is longer than [`AUTH_LINE_MAX`].
    TooLarge,
    /// The handshake took too long.
    Timeout,
    /// The handshake's version is not spoken here.
    Version,
    /// Too many connections are in the handshake already; try again.
    Busy,
    /// The daemon cannot serve at present.
    Unavailable,
    /// This user may not connect.
    PeerDenied,
    /// The process that opened the connection is gone, or is not who speaks.
    PeerGone,
    /// The token is not accepted, whatever the reason.
    Denied,
    /// The session has expired.
    Expired,
    /// The session has ended.
    Revoked,
    /// The token is good, but not for this process.
    Binding,
    /// The session may not do this.
    NotPermitted,
    /// There is no such service.
    UnknownService,
}

impl Code {
    /// All codes, for documentation and tests.
    pub const ALL: [Code; 14] = [
        Code::Malformed,
        Code::TooLarge,
        Code::Timeout,
        Code::Version,
        Code::Busy,
        Code::Unavailable,
        Code::PeerDenied,
        Code::PeerGone,
        Code::Denied,
        Code::Expired,
        Code::Revoked,
        Code::Binding,
        Code::NotPermitted,
        Code::UnknownService,
    ];

    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::Malformed => "malformed",
            Code::TooLarge => "too_large",
            Code::Timeout => "timeout",
            Code::Version => "version",
            Code::Busy => "busy",
            Code::Unavailable => "unavailable",
            Code::PeerDenied => "peer_denied",
            Code::PeerGone => "peer_gone",
            Code::Denied => "denied",
            Code::Expired => "expired",
            Code::Revoked => "revoked",
            Code::Binding => "binding",
            Code::NotPermitted => "not_permitted",
            Code::UnknownService => "unknown_service",
        }
    }

    /// The fixed sentence that a peer hears with it.
    pub fn sentence(self) -> &'static str {
        match self {
            Code::Malformed => "the message was not understood; docs/protocol.md describes the handshake",
            Code::TooLarge => "a line of the handshake may have 4096 bytes",
            Code::Timeout => "the handshake took too long",
            Code::Version => "this version of the handshake is not spoken here",
            Code::Busy => "too many connections are waiting to be authenticated; try again",
            Code::Unavailable => "the daemon cannot serve at present; its status and log say why",
            Code::PeerDenied => "this user may not connect",
            Code::PeerGone => "the process that opened this connection is gone, or something relays it",
            Code::Denied => "the token was not accepted",
            Code::Expired => "the session has expired",
            Code::Revoked => "the session has ended",
            Code::Binding => "the token is not good for this process",
            Code::NotPermitted => "this is not permitted",
            Code::UnknownService => "there is no such service",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A refusal as the peer hears it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalBrief {
    /// The word, kept as text: a newer daemon may have others.
    pub code: String,
    /// The sentence.
    pub message: String,
    /// With `version`: the versions that the daemon speaks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub supported: Vec<u64>,
}

impl RefusalBrief {
    /// The refusal for a code.
    pub fn of(code: Code) -> RefusalBrief {
        let supported = if code == Code::Version { VERSIONS.to_vec() } else { Vec::new() };
        RefusalBrief { code: code.as_str().to_owned(), message: code.sentence().to_owned(), supported }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ServerLine {
    Challenge(Challenge),
    AuthResult {
        success: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        session: Option<SessionBrief>,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<RefusalBrief>,
    },
}

/// A daemon's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Prove it.
    Challenge(Challenge),
    /// You are in.
    Accepted(SessionBrief),
    /// You are not.
    Refused(RefusalBrief),
}

impl Answer {
    /// The line to send, its newline included.
    pub fn to_line(self) -> String {
        line(&match self {
            Answer::Challenge(challenge) => ServerLine::Challenge(challenge),
            Answer::Accepted(session) => {
                ServerLine::AuthResult { success: true, session: Some(session), error: None }
            }
            Answer::Refused(error) => {
                ServerLine::AuthResult { success: false, session: None, error: Some(error) }
            }
        })
    }

    /// Reads a daemon's line, without its newline.
    ///
    /// # Errors
    /// [`Misread`].
    pub fn read(line: &[u8]) -> Result<Answer, Misread> {
        match serde_json::from_str(text_of(line)?).map_err(|error| malformed(describe(&error)))? {
            ServerLine::Challenge(challenge) => Ok(Answer::Challenge(challenge)),
            ServerLine::AuthResult { success: true, session: Some(session), error: None } => {
                Ok(Answer::Accepted(session))
            }
            ServerLine::AuthResult { success: false, session: None, error: Some(error) } => {
                Ok(Answer::Refused(error))
            }
            ServerLine::AuthResult { .. } => Err(malformed("an auth_result that is neither yes nor no")),
        }
    }
}

fn line(message: &impl Serialize) -> String {
    // These are structs of texts and numbers; they have no value that JSON lacks.
    #[allow(clippy::expect_used)]
    let mut text = serde_json::to_string(message).expect("plain data serialises");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    fn opening(text: &str) -> Result<Opening, Misread> {
        read_opening(text.as_bytes())
    }

    #[test]
    fn both_openings_are_read() {
        let plain = format!(r#"{{"type":"auth","token":"{}"}}"#, NONCE.to_uppercase());
        assert!(matches!(opening(&plain), Ok(Opening::Plain(_))), "a token is read in either case");
        let text = format!(
            r#"{{"type":"auth","v":1,"service":"control","token_id":"0123456789abcdef","nonce":"{NONCE}","later":{{"x":[1]}}}}"#
        );
        let Ok(Opening::Proof(proof)) = opening(&text) else { panic!() };
        assert_eq!(proof.service, "control");
        assert!(!proof.wants_start);
        let again = read_opening(proof.to_line().trim_end().as_bytes());
        assert!(matches!(again, Ok(Opening::Proof(again)) if again == proof));
    }

    #[test]
    fn whatever_else_comes_first_is_one_error() {
        let deep = format!(r#"{{"type":"auth","x":{}}}"#, "[".repeat(2000));
        let twice = format!(r#"{{"type":"auth","token":"{NONCE}","token":"{NONCE}"}}"#);
        let both = format!(
            r#"{{"type":"auth","v":1,"token":"{NONCE}","token_id":"0123456789abcdef","nonce":"{NONCE}"}}"#
        );
        let upper = format!(
            r#"{{"type":"auth","v":1,"token_id":"0123456789abcdef","nonce":"{}"}}"#,
            NONCE.to_uppercase()
        );
        let early = format!(r#"{{"type":"auth","proof":"{NONCE}"}}"#);
        for bad in [
            "",
            "{",
            "{}",
            "[]",
            "null",
            "7",
            "\"auth\"",
            "{\"type\":\"auth\"}",
            "{\"type\":7}",
            r#"{"type":"ping"}"#,
            r#"{"jsonrpc":"2.0","method":"ping","id":1}"#,
            r#"{"type":"auth","token":"short"}"#,
            r#"{"type":"auth","token":7}"#,
            r#"{"type":"auth","token":null}"#,
            r#"{"type":"auth","token":["a"]}"#,
            "{\"type\":\"auth\",\"token\":\"\u{0}\"}",
            r#"{"type":"auth","v":1,"token_id":"0123456789abcdef","nonce":"00"}"#,
            r#"{"type":"auth","v":"1"}"#,
            r#"{"type":"auth","v":-1}"#,
            &deep,
            &twice,
            &both,
            &upper,
            &early,
        ] {
            assert!(matches!(opening(bad), Err(Misread::Malformed(_))), "{bad}");
        }
        assert!(read_opening(b"{\"type\":\"auth\",\"token\":\"\xff\"}").is_err());
    }

    #[test]
    fn another_version_is_told_as_such_whatever_else_it_says() {
        for text in
            [r#"{"type":"auth","v":2}"#, r#"{"type":"hello","v":9,"nonce":[1]}"#, r#"{"type":"auth","v":0}"#]
        {
            assert!(matches!(opening(text), Err(Misread::Version(_))), "{text}");
        }
    }

    #[test]
    fn a_misread_line_is_described_without_its_text() {
        let secret = "5ec2e7".repeat(10);
        for text in
            [format!(r#"{{"type":"auth","token":"{secret}"}}"#), format!(r#"{{"{secret}":"#), secret.clone()]
        {
            let error = opening(&text).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("5ec2e7"), "{error}");
        }
    }

    #[test]
    fn messages_with_secrets_show_none_in_debug() {
        let text = format!(r#"{{"type":"auth","token":"{NONCE}"}}"#);
        assert!(!format!("{:?}", opening(&text).unwrap()).contains("0011"));
        assert!(
            !format!("{:?}", read_proof(proof_line(Hex32([7; 32])).trim_end().as_bytes())).contains("07")
        );
    }

    #[test]
    fn answers_are_read_as_they_were_written() {
        let peer = PeerView { uid: 1, pid: 2, pidfs: None, start: Some(3), pidns: Some(4) };
        let session = SessionBrief { id: "i".into(), name: "n".into(), realm: "r".into() };
        for answer in [
            Answer::Challenge(Challenge { nonce: Hex32([1; 32]), peer, proof: Hex32([2; 32]) }),
            Answer::Accepted(session),
            Answer::Refused(RefusalBrief::of(Code::Version)),
        ] {
            assert_eq!(Answer::read(answer.clone().to_line().trim_end().as_bytes()), Ok(answer));
        }
        for bad in [r#"{"type":"auth_result","success":true}"#, r#"{"type":"auth_result","success":false}"#] {
            assert!(Answer::read(bad.as_bytes()).is_err());
        }
    }

    #[test]
    fn every_code_has_its_word_and_a_sentence() {
        for code in Code::ALL {
            assert_eq!(serde_json::to_string(&code).unwrap(), format!("\"{code}\""));
            assert!(!code.sentence().is_empty());
        }
    }
}
