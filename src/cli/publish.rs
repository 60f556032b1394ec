//! `authsock publish`: one event, whose data comes from the command line or from standard input.

use std::io::Read;
use std::os::fd::AsFd;

use serde_json::value::{RawValue, to_raw_value};

use super::args::Publish;
use super::output::Output;
use super::{Failure, exit};
use crate::client::Client;
use crate::kernel::fds;

/// As much as an event carries wherever most is allowed (`events.payload_bytes`), in bytes: more is not read.
const DATA_MAX: u64 = 1 << 20;

/// What is to be published: read, and found to be JSON, before there is a connection that would wait for it.
pub(super) fn data(args: &Publish) -> Result<Box<RawValue>, Failure> {
    let text = match args.data.as_deref() {
        None => return Ok(RawValue::NULL.to_owned()),
        Some("-") => from_input(std::io::stdin().lock())?,
        Some(text) => text.to_owned(),
    };
    if args.json_data {
        let not_json = |error| Failure::new(exit::USAGE, format!("DATA is not JSON: {error}"));
        return RawValue::from_string(text).map_err(not_json);
    }
    to_raw_value(&text).map_err(|error| Failure::new(exit::FAILED, error))
}

/// All of a text, without the newline that it ends in.
fn from_input(input: impl Read) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    input
        .take(DATA_MAX + 2)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::new(exit::FAILED, format!("standard input cannot be read: {error}")))?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    if bytes.len() as u64 > DATA_MAX {
        let words =
            format!("DATA has more than {DATA_MAX} bytes, which no event carries (events.payload_bytes)");
        return Err(Failure::new(exit::USAGE, words));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to() + 1;
        Failure::new(exit::USAGE, format!("DATA is not UTF-8, at byte {at}: encode it, as base64 does"))
    })
}

pub(super) async fn publish(
    client: &mut Client,
    args: &Publish,
    data: &RawValue,
    output: &Output,
) -> Result<(), Failure> {
    let published = client.publish_in(args.realm.as_deref(), args.subject.as_str(), data).await?;
    // Only what is named is read: without a terminal standard input may be anything, a list that a loop reads or a pipe
    // that never ends. By now whoever writes has had the time that a connection takes.
    if args.data.is_none() && fds::has_unread(std::io::stdin().as_fd()) {
        output.note("this event has no data; what waits in standard input was not read: - in the place of DATA reads it");
    }
    if output.is_json() {
        return Ok(output.value(&published)?);
    }
    let subscribers = match published.reached {
        1 => "1 subscriber".to_owned(),
        count => format!("{count} subscribers"),
    };
    Ok(output.fields(&[
        ("published", args.subject.to_string()),
        ("place", published.place().to_string()),
        ("reached", subscribers),
    ])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_input_is_a_text_without_its_last_newline_and_bounded() {
        let read = |text: &[u8]| from_input(text).map_err(|failure| failure.message);
        assert_eq!(read(b"x\n").unwrap(), "x");
        assert_eq!(read(b"x\r\ny\n\n").unwrap(), "x\r\ny\n");
        assert_eq!(read(b"").unwrap(), "");
        assert!(read(b"ab\xff").unwrap_err().contains("at byte 3"));
        let edge = usize::try_from(DATA_MAX).unwrap();
        let mut text = vec![b'x'; edge];
        assert_eq!(read(&text).unwrap().len(), edge);
        text.push(b'\n');
        assert_eq!(read(&text).unwrap().len(), edge);
        text[edge] = b'x';
        assert!(read(&text).unwrap_err().contains("events.payload_bytes"));
        assert!(from_input(std::io::repeat(b'\n')).is_err(), "what never ends is read no further");
    }
}
