//! Events as lines: each is written once, for however many subscribers, and what a stream over HTTP sends is a part of the same bytes.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::subject::Subject;

/// The method of the notification that tells of an event.
pub const EVENT: &str = "event";
/// The method of the notification that tells of events which do not come.
pub const GAP: &str = "event.gap";
/// The method of the notification that tells what a session may not hear any more.
pub const UNSUBSCRIBED: &str = "event.unsubscribed";

/// Tells one numbering of a realm's events from another: a daemon that begins anew has a new one. 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A text that is no epoch, or no place in one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAPlace {
    /// No epoch.
    #[error("an epoch is 16 hexadecimal digits, as an event tells it")]
    Epoch,
    /// No epoch and number.
    #[error("expected EPOCH:NUMBER, as an event tells both")]
    Place,
}

impl FromStr for Epoch {
    type Err = NotAPlace;

    fn from_str(text: &str) -> Result<Epoch, NotAPlace> {
        let good = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !good {
            return Err(NotAPlace::Epoch);
        }
        u64::from_str_radix(text, 16).map(Epoch).map_err(|_| NotAPlace::Epoch)
    }
}

impl Serialize for Epoch {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Epoch {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Epoch, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A place in a numbering: what came after it is what somebody has not seen. `EPOCH:NUMBER` as text, which is what an
/// event's `id` is over HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Of which numbering.
    pub epoch: Epoch,
    /// The last event that was seen; 0 before the first.
    pub seq: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.seq)
    }
}

impl FromStr for Place {
    type Err = NotAPlace;

    fn from_str(text: &str) -> Result<Place, NotAPlace> {
        let (epoch, seq) = text.split_once(':').ok_or(NotAPlace::Place)?;
        let is_number = (1..=20).contains(&seq.len()) && seq.bytes().all(|byte| byte.is_ascii_digit());
        let seq = seq.parse().ok().filter(|_| is_number).ok_or(NotAPlace::Place)?;
        Ok(Place { epoch: epoch.parse()?, seq })
    }
}

/// Who published an event, by the daemon's word.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Publisher<'a> {
    /// The session's id.
    pub id: &'a str,
    /// Its name.
    pub name: &'a str,
}

/// What an event tells.
#[derive(Debug, Serialize)]
pub struct Params<'a> {
    /// What it is about.
    #[serde(serialize_with = "as_text")]
    pub subject: &'a Subject,
    /// The realm it was published in.
    pub realm: &'a str,
    /// Its number, by one more than the event before it in its realm.
    pub seq: u64,
    /// Of which numbering.
    pub epoch: Epoch,
    /// When it was published: milliseconds since 1970 (UTC).
    pub time_ms: u64,
    /// Who published it; the daemon itself if nobody.
    pub publisher: Option<Publisher<'a>>,
    /// What the publisher says.
    pub data: &'a RawValue,
}

fn as_text<S: serde::Serializer>(subject: &Subject, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(subject.as_str())
}

const BEFORE: &str = r#"{"jsonrpc":"2.0","method":"event","params":"#;
const BEHIND: &str = "}\n";

/// An event as it is sent: a notification (JSON-RPC 2.0, section 4.1) and its newline.
#[derive(Debug)]
pub struct EventLine(Box<[u8]>);

impl EventLine {
    /// Writes an event.
    pub fn of(params: &Params<'_>) -> EventLine {
        let mut line = Vec::with_capacity(256 + params.data.get().len());
        line.extend_from_slice(BEFORE.as_bytes());
        // Plain data into memory: neither JSON nor a Vec can refuse it.
        #[allow(clippy::expect_used)]
        serde_json::to_writer(&mut line, params).expect("plain data serialises");
        line.extend_from_slice(BEHIND.as_bytes());
        EventLine(line.into())
    }

    /// The whole line.
    pub fn line(&self) -> &[u8] {
        &self.0
    }

    /// What it tells, as JSON without a line end.
    pub fn params(&self) -> &[u8] {
        &self.0[BEFORE.len()..self.0.len() - BEHIND.len()]
    }
}

/// Why events do not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapReason {
    /// They came faster than they were read.
    Slow,
    /// They are not kept any more.
    Forgotten,
    /// The numbering is another one: the daemon began anew, or the realm was forgotten.
    Restarted,
    /// The number that they should come after was not given out yet in this numbering.
    Ahead,
}

/// Events that do not come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gap<'a> {
    /// Why.
    pub reason: GapReason,
    /// The realm.
    pub realm: &'a str,
    /// How many would have come, where that is known: it is for slow subscribers.
    pub missed: Option<u64>,
    /// The first number that may be among them.
    pub from: Option<u64>,
    /// The last one.
    pub to: Option<u64>,
    /// Of which numbering.
    pub epoch: Epoch,
}

/// What cannot be an event's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadData {
    /// It is too long.
    #[error("the data of an event has at most {0} bytes (events.payload_bytes)")]
    TooLong(usize),
    /// What is within each other in it is too much.
    #[error(
        "the data of an event has at most {0} lists and objects within each other (events.payload_depth)"
    )]
    TooDeep(usize),
}

/// Checks the data of an event, and makes one line of it: JSON may have line ends between its parts, and only there.
///
/// # Errors
/// [`BadData`].
pub fn check_data(data: &RawValue, bytes: usize, depth: usize) -> Result<Cow<'_, RawValue>, BadData> {
    let text = data.get();
    // Null says nothing, as no data at all: that much every event carries.
    if text != "null" && text.len() > bytes {
        return Err(BadData::TooLong(bytes));
    }
    if depth_of(text) > depth {
        return Err(BadData::TooDeep(depth));
    }
    if !text.contains(['\n', '\r']) {
        return Ok(Cow::Borrowed(data));
    }
    let line = text.replace(['\n', '\r'], " ");
    // White space for white space: it is as much JSON as before.
    Ok(RawValue::from_string(line).map_or(Cow::Borrowed(data), Cow::Owned))
}

/// How many lists and objects are within each other at most, in what is known to be JSON.
fn depth_of(text: &str) -> usize {
    let (mut depth, mut most, mut in_text, mut escaped) = (0usize, 0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b'[' | b'{' => {
                depth += 1;
                most = most.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn an_event_is_one_line_and_its_params_are_a_part_of_it() {
        let data = raw(r#"{"a":[1,"\n"]}"#);
        let event = EventLine::of(&Params {
            subject: &"build.done".parse().unwrap(),
            realm: "default",
            seq: 7,
            epoch: Epoch(0xab),
            time_ms: 1,
            publisher: Some(Publisher { id: "owner", name: "owner" }),
            data: &data,
        });
        let line = std::str::from_utf8(event.line()).unwrap();
        assert_eq!(line.matches('\n').count(), 1);
        let whole: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(whole["method"], EVENT);
        let params: serde_json::Value = serde_json::from_slice(event.params()).unwrap();
        assert_eq!(whole["params"], params);
        assert_eq!(params["epoch"], "00000000000000ab");
        assert_eq!(params["data"]["a"][1], "\n");
    }

    #[test]
    fn places_are_read_as_they_are_written() {
        let place = Place { epoch: Epoch(0x1f), seq: u64::MAX };
        assert_eq!(place.to_string().parse(), Ok(place));
        let epoch = serde_json::to_string(&place.epoch).unwrap();
        assert_eq!(serde_json::from_str::<Epoch>(&epoch).unwrap(), place.epoch);
        assert!(serde_json::from_str::<Epoch>("\"1f\"").is_err());
        for bad in [
            "",
            ":",
            "1",
            "0000000000000001",
            "0000000000000001:",
            "0000000000000001:-1",
            "1:1",
            "0000000000000001:+1",
            "0000000000000001:99999999999999999999",
            "000000000000000g:1",
            "0000000000000001:1:1",
        ] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
    }

    #[test]
    fn data_is_bounded_at_the_edge_and_becomes_one_line() {
        let text = raw("[\r\n1,\n\"a\\n[[[\"]");
        let line = check_data(&text, text.get().len(), 1).unwrap();
        assert_eq!(line.get(), "[  1, \"a\\n[[[\"]");
        assert_eq!(
            check_data(&text, text.get().len() - 1, 1).unwrap_err(),
            BadData::TooLong(text.get().len() - 1)
        );
        // Nothing has no length, and all else has one.
        assert!(check_data(RawValue::NULL, 0, 1).is_ok());
        assert_eq!(check_data(&raw("0"), 0, 1).unwrap_err(), BadData::TooLong(0));
        assert_eq!(check_data(&raw("true"), 3, 1).unwrap_err(), BadData::TooLong(3));
        for (text, depth) in [("1", 0), ("[]", 1), ("[{},[]]", 2), (r#"{"[\"[":"]"}"#, 1), ("[[[]]]", 3)] {
            assert!(check_data(&raw(text), 100, depth).is_ok(), "{text}");
            if let Some(less) = depth.checked_sub(1) {
                assert_eq!(check_data(&raw(text), 100, less).unwrap_err(), BadData::TooDeep(less), "{text}");
            }
        }
    }
}
