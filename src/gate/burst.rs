//! Lets some of what others can repeat at will through to the log, and counts the rest.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Length of a window.
const WINDOW: Duration = Duration::from_secs(10);
/// Most keys that are counted apart.
const COUNTED_MAX: usize = 1024;

/// Counts what happens, apart for each key, in windows of ten seconds.
#[derive(Debug)]
pub(crate) struct Bursts<K> {
    most: u32,
    windows: Mutex<HashMap<K, Window>>,
}

#[derive(Debug)]
struct Window {
    began: Instant,
    count: u32,
}

/// What to do with one event.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Verdict {
    /// Log it, after saying how many were left out in the window before.
    Log { left_out: u32 },
    /// Only count it.
    Count,
}

impl<K: Eq + Hash> Bursts<K> {
    /// Lets `most` through in each window, for each key.
    pub(crate) fn of(most: u32) -> Bursts<K> {
        Bursts { most, windows: Mutex::default() }
    }

    pub(crate) fn judge(&self, key: K, now: Instant) -> Verdict {
        let mut windows = super::lock(&self.windows);
        if windows.len() >= COUNTED_MAX {
            windows.retain(|_, window| now.duration_since(window.began) < WINDOW);
        }
        // Whom there is no room to count apart is not heard of: this holds the memory, too.
        if windows.len() >= COUNTED_MAX && !windows.contains_key(&key) {
            return Verdict::Count;
        }
        let window = windows.entry(key).or_insert(Window { began: now, count: 0 });
        let mut left_out = 0;
        if now.duration_since(window.began) >= WINDOW {
            left_out = window.count.saturating_sub(self.most);
            *window = Window { began: now, count: 0 };
        }
        window.count = window.count.saturating_add(1);
        if window.count <= self.most { Verdict::Log { left_out } } else { Verdict::Count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_logged_the_rest_is_counted_and_told_in_the_next_window() {
        const MOST: u32 = 20;
        let log = Bursts::of(MOST);
        let start = Instant::now();
        let judge = |after: Duration| log.judge(1, start + after);
        for _ in 0..MOST {
            assert_eq!(judge(Duration::ZERO), Verdict::Log { left_out: 0 });
        }
        for _ in 0..7 {
            assert_eq!(judge(Duration::from_secs(1)), Verdict::Count);
        }
        assert_eq!(log.judge(2, start), Verdict::Log { left_out: 0 }, "another key");
        assert_eq!(judge(WINDOW), Verdict::Log { left_out: 7 });
        assert_eq!(judge(WINDOW), Verdict::Log { left_out: 0 });
    }

    #[test]
    fn no_more_keys_are_counted_apart_than_there_is_room_for() {
        let log = Bursts::of(1);
        let start = Instant::now();
        for key in 0..COUNTED_MAX {
            assert_eq!(log.judge(key, start), Verdict::Log { left_out: 0 });
        }
        assert_eq!(log.judge(COUNTED_MAX, start), Verdict::Count);
        assert_eq!(log.windows.lock().unwrap().len(), COUNTED_MAX);
        assert_eq!(log.judge(COUNTED_MAX, start + WINDOW), Verdict::Log { left_out: 0 });
        assert_eq!(log.windows.lock().unwrap().len(), 1);
    }
}
