//! What waits for one subscriber: bounded, in order, and with a count of what did not fit.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;

use super::{Event, Site};
use crate::config;
use crate::wire::event::{Epoch, GAP, Gap, GapReason, UNSUBSCRIBED};
use crate::wire::json_rpc::write_notification;
use crate::wire::subject::Pattern;

/// Most pieces that are written at once.
const AT_ONCE: usize = 64;

/// In which form a subscriber reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::daemon) enum Form {
    /// Notifications of JSON-RPC, a line each.
    Lines,
    /// Server-sent events (HTML Living Standard, section 9.2).
    Stream,
}

#[derive(Debug)]
enum Piece {
    Event {
        event: Arc<Event>,
        is_replayed: bool,
    },
    /// What is for this subscriber alone, as it is sent.
    Own {
        bytes: Box<[u8]>,
        /// Whether it stands for events that were asked for as kept ones.
        is_replayed: bool,
    },
}

impl Piece {
    fn line(&self) -> &[u8] {
        match self {
            Piece::Event { event, .. } => event.line.line(),
            Piece::Own { bytes, .. } => bytes,
        }
    }
}

/// What did not fit, of one realm.
#[derive(Debug)]
struct Missed {
    site: Site,
    epoch: Epoch,
    count: u64,
    from: u64,
    to: u64,
}

#[derive(Debug)]
pub(super) struct Queue {
    form: Form,
    pieces: VecDeque<Piece>,
    /// How much of the first piece is written.
    written: usize,
    /// Events among them that were new when they came, and their bytes: what the limits count.
    events: usize,
    bytes: usize,
    /// Events among them that were kept, and what is told instead of such.
    replayed: usize,
    /// How much among them is for this subscriber alone.
    told: usize,
    /// What is missing behind the last piece.
    missed: Vec<Missed>,
}

/// How far writing came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::daemon) enum Progress {
    /// Nothing waits any more.
    Done,
    /// The other end does not read now.
    Blocked,
}

impl Queue {
    pub(super) fn new(form: Form) -> Queue {
        Queue {
            form,
            pieces: VecDeque::new(),
            written: 0,
            events: 0,
            bytes: 0,
            replayed: 0,
            told: 0,
            missed: Vec::new(),
        }
    }

    /// Whether a part of a piece is out: nothing else may come before the rest of it.
    pub(super) fn is_amid(&self) -> bool {
        self.written > 0
    }

    /// Whether events that were asked for as kept ones still wait, or the word that there are none.
    pub(super) fn is_replaying(&self) -> bool {
        self.replayed > 0
    }

    /// How much waits that is for this subscriber alone.
    pub(super) fn told(&self) -> usize {
        self.told
    }

    /// Takes in a new event, or counts that it did not fit.
    pub(super) fn push(&mut self, event: &Arc<Event>, site: &Site, limits: &config::Events) -> bool {
        let length = event.line.line().len();
        // One that is larger than all that may wait is no reason to hear nothing.
        if self.events >= limits.queued || (self.events > 0 && self.bytes + length > limits.queued_bytes) {
            match self.missed.iter_mut().find(|missed| missed.site == *site && missed.epoch == event.epoch) {
                Some(missed) => {
                    missed.count += 1;
                    missed.to = event.seq;
                }
                None => self.missed.push(Missed {
                    site: site.clone(),
                    epoch: event.epoch,
                    count: 1,
                    from: event.seq,
                    to: event.seq,
                }),
            }
            return false;
        }
        self.tell_missed();
        self.events += 1;
        self.bytes += length;
        self.pieces.push_back(Piece::Event { event: event.clone(), is_replayed: false });
        true
    }

    /// Takes in what is kept, and what is missing before.
    pub(super) fn replay(&mut self, gap: Option<&Gap<'_>>, events: Vec<Arc<Event>>) {
        self.tell_missed();
        if let Some(gap) = gap {
            self.tell(GAP, gap, true);
        }
        self.replayed += events.len();
        self.pieces.extend(events.into_iter().map(|event| Piece::Event { event, is_replayed: true }));
    }

    /// Takes in that some patterns are none of the subscriber's any more.
    pub(super) fn unsubscribed(&mut self, realm: &str, patterns: &[Pattern]) {
        self.tell_missed();
        let subjects: Vec<&str> = patterns.iter().map(Pattern::as_str).collect();
        self.tell(UNSUBSCRIBED, &serde_json::json!({ "subjects": subjects, "realm": realm }), false);
    }

    fn tell_missed(&mut self) {
        for Missed { site, epoch, count, from, to } in std::mem::take(&mut self.missed) {
            self.tell(
                GAP,
                &Gap {
                    reason: GapReason::Slow,
                    realm: site.realm.as_str(),
                    missed: Some(count),
                    from: Some(from),
                    to: Some(to),
                    epoch,
                },
                false,
            );
        }
    }

    fn tell(&mut self, method: &str, params: &impl serde::Serialize, is_replayed: bool) {
        let mut bytes = Vec::new();
        match self.form {
            Form::Lines => write_notification(&mut bytes, method, params),
            Form::Stream => write_frame(&mut bytes, method, None, params),
        }
        self.told += 1;
        self.replayed += usize::from(is_replayed);
        self.pieces.push_back(Piece::Own { bytes: bytes.into(), is_replayed });
    }

    /// Writes what waits, as far as the other end takes it, with as few calls as there can be: `write` is given the
    /// slices, and says how many bytes were taken. `all`, or no more than the rest of a piece that is out in part.
    pub(super) fn write_lines(
        &mut self,
        all: bool,
        mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<Progress> {
        loop {
            if !all && !self.is_amid() {
                return Ok(Progress::Done);
            }
            if self.pieces.is_empty() {
                self.tell_missed();
            }
            let most = if all { AT_ONCE } else { 1 };
            let mut slices = [IoSlice::new(&[]); AT_ONCE];
            let mut count = 0;
            for (slice, piece) in slices.iter_mut().zip(&self.pieces).take(most) {
                let skipped = if count == 0 { self.written } else { 0 };
                *slice = IoSlice::new(&piece.line()[skipped..]);
                count += 1;
            }
            if count == 0 {
                return Ok(Progress::Done);
            }
            match write(&slices[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(taken) => self.advance(taken),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Progress::Blocked),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn advance(&mut self, taken: usize) {
        self.written += taken;
        while let Some(piece) = self.pieces.front() {
            let length = piece.line().len();
            if self.written < length {
                break;
            }
            self.written -= length;
            self.pop();
        }
    }

    fn pop(&mut self) -> Option<Piece> {
        let piece = self.pieces.pop_front()?;
        match &piece {
            Piece::Event { is_replayed: true, .. } => self.replayed -= 1,
            Piece::Event { event, .. } => {
                self.events -= 1;
                self.bytes -= event.line.line().len();
            }
            Piece::Own { is_replayed, .. } => {
                self.told -= 1;
                self.replayed -= usize::from(*is_replayed);
            }
        }
        if self.pieces.is_empty() {
            // An idle subscriber holds no buffer.
            self.pieces = VecDeque::new();
        }
        Some(piece)
    }

    /// Takes about so many bytes of frames; none if nothing waits.
    pub(super) fn take_frames(&mut self, most: usize) -> Vec<u8> {
        let mut frames = Vec::new();
        while frames.len() < most {
            if self.pieces.is_empty() {
                self.tell_missed();
            }
            match self.pop() {
                Some(Piece::Event { event, .. }) => {
                    frames.extend_from_slice(format!("id: {}\ndata: ", event.place()).as_bytes());
                    frames.extend_from_slice(event.line.params());
                    frames.extend_from_slice(b"\n\n");
                }
                Some(Piece::Own { bytes, .. }) => frames.extend_from_slice(&bytes),
                None => break,
            }
        }
        frames
    }
}

/// Writes one frame of a stream whose data is JSON, which has no line end.
pub(in crate::daemon) fn write_frame(
    out: &mut Vec<u8>,
    event: &str,
    id: Option<&str>,
    data: &impl serde::Serialize,
) {
    if let Some(id) = id {
        out.extend_from_slice(format!("id: {id}\n").as_bytes());
    }
    out.extend_from_slice(format!("event: {event}\ndata: ").as_bytes());
    // Plain data into memory: neither JSON nor a Vec can refuse it.
    #[allow(clippy::expect_used)]
    serde_json::to_writer(&mut *out, data).expect("plain data serialises");
    out.extend_from_slice(b"\n\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::events::tests::{event, site};
    use crate::wire::event::Place;
    use serde_json::Value;

    fn numbered(seq: u64) -> Arc<Event> {
        event(Place { epoch: Epoch(7), seq }, "a")
    }

    fn limits(queued: usize, queued_bytes: usize) -> config::Events {
        config::Events { queued, queued_bytes, ..config::Events::default() }
    }

    /// All that is written by calls that take so many bytes each.
    fn written(queue: &mut Queue, at_once: usize) -> Vec<Value> {
        let mut out = Vec::new();
        let write = |slices: &[IoSlice<'_>]| {
            let before = out.len();
            out.extend(slices.iter().flat_map(|slice| slice.iter()).take(at_once));
            Ok(out.len() - before)
        };
        assert_eq!(queue.write_lines(true, write).unwrap(), Progress::Done);
        out.split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    }

    #[test]
    fn what_does_not_fit_is_counted_and_told_in_its_place() {
        let length = numbered(1).line.line().len();
        for (limits, fit) in [
            (limits(3, usize::MAX), 3),
            (limits(100, 3 * length), 3),
            (limits(100, 3 * length - 1), 2),
            // One that is larger than all that may wait comes all the same, by itself.
            (limits(100, 1), 1),
        ] {
            for at_once in [1, 7, length, length + 1, usize::MAX] {
                let mut queue = Queue::new(Form::Lines);
                let fitted = (1..=5).filter(|seq| queue.push(&numbered(*seq), &site(), &limits)).count();
                assert_eq!(fitted, fit);
                let lines = written(&mut queue, at_once);
                assert_eq!(lines.len(), fit + 1);
                let gap = &lines[fit]["params"];
                assert_eq!(
                    (gap["missed"].as_u64(), gap["from"].as_u64()),
                    (Some(5 - fit as u64), Some(fit as u64 + 1))
                );
                assert_eq!((&gap["to"], &gap["reason"]), (&5.into(), &"slow".into()));
                // There is room again, and nothing is told twice.
                assert!(queue.push(&numbered(6), &site(), &limits));
                let lines = written(&mut queue, at_once);
                assert_eq!((lines.len(), &lines[0]["params"]["seq"]), (1, &6.into()));
                assert_eq!((queue.events, queue.bytes, queue.pieces.capacity()), (0, 0, 0));
            }
        }
    }

    #[test]
    fn a_gap_comes_before_what_fits_again() {
        let mut queue = Queue::new(Form::Lines);
        let limits = limits(1, usize::MAX);
        for seq in 1..=3 {
            queue.push(&numbered(seq), &site(), &limits);
        }
        // The first one is out, and nobody has looked since.
        queue.pop();
        assert!(queue.push(&numbered(4), &site(), &limits));
        let lines = written(&mut queue, usize::MAX);
        assert_eq!(lines[0]["params"]["missed"], 2);
        assert_eq!(lines[1]["params"]["seq"], 4);
    }

    #[test]
    fn the_rest_of_what_is_out_in_part_comes_and_nothing_more() {
        let mut queue = Queue::new(Form::Lines);
        for seq in 1..=2 {
            queue.push(&numbered(seq), &site(), &limits(9, usize::MAX));
        }
        let length = numbered(1).line.line().len();
        let mut room = vec![length, 5];
        let stopped = queue.write_lines(true, |_| room.pop().ok_or(io::ErrorKind::WouldBlock.into()));
        assert_eq!(stopped.unwrap(), Progress::Blocked);
        assert!(queue.is_amid());
        let mut taken = 0;
        let done = queue.write_lines(false, |slices| {
            taken += slices[0].len();
            Ok(slices[0].len())
        });
        assert_eq!((done.unwrap(), taken), (Progress::Done, length - 5));
        assert!(queue.pieces.is_empty());
    }

    #[test]
    fn what_is_kept_does_not_count_against_what_may_wait() {
        let mut queue = Queue::new(Form::Lines);
        queue.replay(None, (1..=5).map(numbered).collect());
        assert!(queue.is_replaying());
        assert!(queue.push(&numbered(6), &site(), &limits(1, usize::MAX)));
        assert!(!queue.push(&numbered(7), &site(), &limits(1, usize::MAX)));
        assert_eq!(written(&mut queue, 100).len(), 7);
        assert!(!queue.is_replaying());
    }

    #[test]
    fn a_word_in_place_of_what_is_kept_is_a_replay_until_it_is_read() {
        let mut queue = Queue::new(Form::Lines);
        let gap = Gap {
            reason: GapReason::Restarted,
            realm: "default",
            missed: None,
            from: None,
            to: None,
            epoch: Epoch(7),
        };
        queue.replay(Some(&gap), Vec::new());
        assert_eq!((queue.is_replaying(), queue.told()), (true, 1));
        queue.unsubscribed("default", &["a".parse().unwrap()]);
        assert_eq!(queue.told(), 2);
        assert_eq!(written(&mut queue, 100).len(), 2);
        assert_eq!((queue.is_replaying(), queue.told()), (false, 0));
    }

    #[test]
    fn a_stream_has_a_frame_for_each_and_no_line_end_within() {
        let mut queue = Queue::new(Form::Stream);
        let limits = limits(1, usize::MAX);
        queue.push(&numbered(1), &site(), &limits);
        queue.push(&numbered(2), &site(), &limits);
        let text = String::from_utf8(queue.take_frames(usize::MAX)).unwrap();
        let frames: Vec<Vec<&str>> =
            text.split_terminator("\n\n").map(|frame| frame.lines().collect()).collect();
        assert_eq!(frames[0][0], "id: 0000000000000007:1");
        assert!(frames[0][1].starts_with("data: {\"subject\":\"a\""));
        assert_eq!(frames[1][0], "event: event.gap");
        assert_eq!((frames.len(), frames[0].len(), frames[1].len()), (2, 2, 2));
        assert!(queue.take_frames(usize::MAX).is_empty());
    }
}
