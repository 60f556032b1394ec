//! The time of day as this user's clocks show it: which zone that is, the C library knows.

/// A moment by the clock on the wall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalTime {
    /// The year.
    pub year: i32,
    /// 1 to 12.
    pub month: i32,
    /// 1 to 31.
    pub day: i32,
    /// 0 to 23.
    pub hour: i32,
    /// 0 to 59.
    pub minute: i32,
    /// 0 to 60.
    pub second: i32,
}

/// What the clock shows so many seconds after 1970 began (UTC); `None` where there is no such year.
pub fn local(seconds: u64) -> Option<LocalTime> {
    let seconds = libc::time_t::try_from(seconds).ok()?;
    // SAFETY: all fields of a tm are numbers and a pointer, for which zero is a value; localtime_r(3) reads the one
    // number and writes the one tm. It reads TZ from the environment, which nothing here changes.
    let shown = unsafe {
        let mut shown: libc::tm = std::mem::zeroed();
        (!libc::localtime_r(&raw const seconds, &raw mut shown).is_null()).then_some(shown)
    }?;
    Some(LocalTime {
        year: shown.tm_year + 1900,
        month: shown.tm_mon + 1,
        day: shown.tm_mday,
        hour: shown.tm_hour,
        minute: shown.tm_min,
        second: shown.tm_sec,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_shown_wherever_this_is_and_no_year_is_made_up() {
        // At noon (UTC) it is this day in every zone but the easternmost, where it is the next.
        let noon = local(1_790_000_000 / 86_400 * 86_400 + 43_200).unwrap();
        assert_eq!((noon.year, noon.month), (2026, 9));
        assert!((21..=22).contains(&noon.day), "{noon:?}");
        assert!((0..60).contains(&noon.minute) && noon.second == 0, "{noon:?}");
        assert_eq!(local(u64::MAX), None);
        assert_eq!(local(i64::MAX as u64), None, "a year that no int holds");
    }
}
