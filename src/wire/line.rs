//! Lines out of bytes: JSON messages end with a newline, and each kind has its longest length.

/// Bytes that came in and are not used up: at most one unfinished line and what came behind it.
#[derive(Debug)]
pub struct Lines {
    bytes: Vec<u8>,
    /// Where the next line starts; what lies before has been handed out.
    start: usize,
    /// How far the unfinished line was searched already.
    searched: usize,
    limit: usize,
}

/// A line was longer than its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a line is longer than {limit} bytes")]
pub struct TooLong {
    /// The most bytes that a line may have, its newline included.
    pub limit: usize,
}

impl Lines {
    /// Takes lines of at most `limit` bytes, the newline included.
    pub fn new(limit: usize) -> Lines {
        Lines { bytes: Vec::new(), start: 0, searched: 0, limit }
    }

    /// Starts with bytes that were read before.
    pub fn with(limit: usize, bytes: Vec<u8>) -> Lines {
        Lines { bytes, start: 0, searched: 0, limit }
    }

    /// Adds bytes that came in.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.searched -= self.start;
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole line without its newline, or `None` until more bytes come.
    ///
    /// # Errors
    /// [`TooLong`] as soon as a line cannot end within the limit.
    pub fn next_line(&mut self) -> Result<Option<&[u8]>, TooLong> {
        let found = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n');
        let too_long = TooLong { limit: self.limit };
        let Some(offset) = found else {
            self.searched = self.bytes.len();
            return if self.bytes.len() - self.start >= self.limit { Err(too_long) } else { Ok(None) };
        };
        let end = self.searched + offset;
        if end + 1 - self.start > self.limit {
            return Err(too_long);
        }
        let line = self.start..end;
        self.start = end + 1;
        self.searched = self.start;
        Ok(Some(&self.bytes[line]))
    }

    /// Everything that was not handed out.
    pub fn into_rest(mut self) -> Vec<u8> {
        self.bytes.drain(..self.start);
        self.bytes
    }

    /// Whether nothing is left over; an idle connection then holds no buffer.
    pub fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    /// Gives the memory back when nothing is left over.
    pub fn release(&mut self) {
        if self.is_empty() {
            *self = Lines::new(self.limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(lines: &mut Lines) -> Vec<String> {
        let mut found = Vec::new();
        while let Some(line) = lines.next_line().unwrap() {
            found.push(String::from_utf8(line.to_vec()).unwrap());
        }
        found
    }

    #[test]
    fn lines_come_out_whole_however_they_went_in() {
        let text = b"one\n\ntwo\nthree\nrest";
        for size in 1..text.len() {
            let mut lines = Lines::new(16);
            let mut found = Vec::new();
            for chunk in text.chunks(size) {
                lines.push(chunk);
                found.extend(all(&mut lines));
            }
            assert_eq!(found, ["one", "", "two", "three"], "in pieces of {size}");
            assert_eq!(lines.into_rest(), b"rest");
        }
    }

    #[test]
    fn a_line_of_exactly_the_limit_is_taken_and_one_byte_more_is_refused() {
        let mut lines = Lines::new(4);
        lines.push(b"abc\n");
        assert_eq!(all(&mut lines), ["abc"]);
        lines.push(b"abcd\n");
        assert_eq!(lines.next_line(), Err(TooLong { limit: 4 }));
        let mut lines = Lines::new(4);
        lines.push(b"abc");
        assert_eq!(lines.next_line(), Ok(None));
        lines.push(b"d");
        assert_eq!(lines.next_line(), Err(TooLong { limit: 4 }), "it cannot end within the limit any more");
    }

    #[test]
    fn a_long_line_behind_a_good_one_is_still_refused() {
        let mut lines = Lines::new(4);
        lines.push(b"ok\ntoo long\n");
        assert_eq!(lines.next_line(), Ok(Some(&b"ok"[..])));
        assert_eq!(lines.next_line(), Err(TooLong { limit: 4 }));
    }

    #[test]
    fn nothing_is_held_when_nothing_is_left() {
        let mut lines = Lines::new(9);
        lines.push(b"a\n");
        assert!(!lines.is_empty());
        all(&mut lines);
        lines.release();
        assert!(lines.is_empty());
        assert_eq!(lines.bytes.capacity(), 0);
    }
}
