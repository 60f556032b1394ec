//! Subjects of events and the patterns that match them, by NATS's rules (docs.nats.io, Subject-Based Messaging): tokens between dots, `*` for one, `>` for the rest.
//!
//! As in NATS, `*` and `>` are wildcards only where one is a token by itself: `a*` is a token like any other, and matches
//! nothing but itself. What NATS leaves to its clients is refused here: characters that control, that nobody sees, or that
//! are white space.

use std::fmt;
use std::str::FromStr;

use super::text::is_deceptive;

/// Longest subject, and longest pattern, in bytes.
pub const SUBJECT_MAX: usize = 256;
/// What the daemon's own events are below, where nobody else publishes.
pub const BUILT_IN: &str = "$authsock";
/// What is below it and a session's id is for that session alone.
pub const INBOX: &str = "inbox";

/// What one event is about: tokens between dots, none of them empty, none a wildcard.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subject(Box<str>);

/// Subjects that are alike: as one, and `*` stands for one token, `>` for one or more at the end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pattern(Box<str>);

/// A text that is no subject, or no pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadSubject {
    /// It is too long.
    #[error("a subject has at most {SUBJECT_MAX} bytes")]
    TooLong,
    /// It is not made as one.
    #[error(
        "not a subject: expected words between dots, none of them empty or with white space or characters that control or that nobody sees"
    )]
    Malformed,
    /// It has wildcards where an event must have none.
    #[error("an event has one subject; * and > are for those who subscribe")]
    Wildcard,
    /// `>` is not at the end.
    #[error("> stands for all words that follow, and only at the end")]
    NotLast,
}

fn check(text: &str) -> Result<(), BadSubject> {
    if text.len() > SUBJECT_MAX {
        return Err(BadSubject::TooLong);
    }
    let is_bad = |token: &str| {
        token.is_empty()
            || token.chars().any(|character| character.is_whitespace() || is_deceptive(character))
    };
    if text.split('.').any(is_bad) {
        return Err(BadSubject::Malformed);
    }
    Ok(())
}

impl FromStr for Subject {
    type Err = BadSubject;

    fn from_str(text: &str) -> Result<Subject, BadSubject> {
        check(text)?;
        if text.split('.').any(|token| matches!(token, "*" | ">")) {
            return Err(BadSubject::Wildcard);
        }
        Ok(Subject(text.into()))
    }
}

impl FromStr for Pattern {
    type Err = BadSubject;

    fn from_str(text: &str) -> Result<Pattern, BadSubject> {
        check(text)?;
        let mut tokens = text.split('.');
        if tokens.by_ref().any(|token| token == ">") && tokens.next().is_some() {
            return Err(BadSubject::NotLast);
        }
        Ok(Pattern(text.into()))
    }
}

impl Subject {
    /// The subject as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its tokens.
    pub fn tokens(&self) -> impl Iterator<Item = &str> {
        self.0.split('.')
    }

    /// The pattern that matches this subject and no other.
    pub fn as_pattern(&self) -> Pattern {
        Pattern(self.0.clone())
    }

    /// Whether only the daemon publishes it: `$authsock` and what is below.
    pub fn is_built_in(&self) -> bool {
        self.tokens().next() == Some(BUILT_IN)
    }
}

impl Pattern {
    /// The one that matches every subject.
    pub fn all() -> Pattern {
        Pattern(">".into())
    }

    /// The pattern as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its tokens, wildcards among them.
    pub fn tokens(&self) -> impl Iterator<Item = &str> {
        self.0.split('.')
    }

    /// Whether it matches a subject.
    pub fn matches(&self, subject: &Subject) -> bool {
        covers(&self.0, &subject.0)
    }

    /// Whether it matches every subject that `narrow` matches.
    pub fn covers(&self, narrow: &Pattern) -> bool {
        covers(&self.0, &narrow.0)
    }

    /// The pattern of the subjects that both match, if there are any: two of them have at most one in common. It may be
    /// longer than a pattern that is read.
    pub fn intersection(&self, other: &Pattern) -> Option<Pattern> {
        intersection(&self.0, &other.0).map(|common| Pattern(common.into()))
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// In one pass over the bytes, since it is asked for each event and each pattern.
fn covers(wide: &str, narrow: &str) -> bool {
    let (mut wide, mut narrow) = (wide.as_bytes(), narrow.as_bytes());
    loop {
        // Each begins with a word here.
        let alike = wide.iter().zip(narrow).take_while(|(ours, theirs)| ours == theirs).count();
        if alike == wide.len() && alike == narrow.len() {
            return true;
        }
        // To where the word begins within which they differ, or one of them ends.
        let begin = wide[..alike].iter().rposition(|byte| *byte == b'.').map_or(0, |dot| dot + 1);
        (wide, narrow) = (&wide[begin..], &narrow[begin..]);
        let end = narrow.iter().position(|byte| *byte == b'.').unwrap_or(narrow.len());
        match wide {
            // A word is never empty: something follows, unless the narrower one has ended here.
            b">" => return end > 0,
            b"*" => return end == narrow.len() && end > 0 && narrow != b">",
            [b'*', b'.', rest @ ..] if end < narrow.len() => (wide, narrow) = (rest, &narrow[end + 1..]),
            _ => return false,
        }
    }
}

fn intersection(ours: &str, theirs: &str) -> Option<String> {
    let (mut ours, mut theirs) = (ours.split('.'), theirs.split('.'));
    let mut common = Vec::new();
    loop {
        match (ours.next(), theirs.next()) {
            (None, None) => return Some(common.join(".")),
            (Some(">"), Some(rest)) => {
                common.push(rest);
                common.extend(theirs);
                return Some(common.join("."));
            }
            (Some(rest), Some(">")) => {
                common.push(rest);
                common.extend(ours);
                return Some(common.join("."));
            }
            (Some("*"), Some(token)) | (Some(token), Some("*")) => common.push(token),
            (Some(ours), Some(theirs)) if ours == theirs => common.push(ours),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap()
    }

    #[test]
    fn subjects_are_what_nats_takes_for_subjects() {
        // Of nats-server's own rules: tokens between dots; a wildcard is one only by itself.
        for good in ["a", "foo.bar", "A.b-c_d", "foo*.bar", "foo.>x", "fo>o", "**", "ü.漢", "$SYS.x", "1"] {
            assert!(good.parse::<Subject>().is_ok(), "{good}");
            assert!(good.parse::<Pattern>().is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "a b",
            "a\tb",
            "a\n",
            "a\r",
            "a\u{c}",
            "a\0",
            "a\u{200b}",
            "a\u{a0}b",
        ] {
            assert_eq!(bad.parse::<Subject>(), Err(BadSubject::Malformed), "{bad:?}");
            assert_eq!(bad.parse::<Pattern>(), Err(BadSubject::Malformed), "{bad:?}");
        }
        for wild in ["*", ">", "a.*", "*.b", "a.>", "a.*.c"] {
            assert_eq!(wild.parse::<Subject>(), Err(BadSubject::Wildcard), "{wild}");
            assert!(wild.parse::<Pattern>().is_ok(), "{wild}");
        }
        for bad in [">.a", "a.>.b", ">.>"] {
            assert_eq!(bad.parse::<Pattern>(), Err(BadSubject::NotLast), "{bad}");
        }
        let edge = "s".repeat(SUBJECT_MAX);
        assert!(edge.parse::<Subject>().is_ok() && edge.parse::<Pattern>().is_ok());
        assert_eq!(format!("{edge}s").parse::<Subject>(), Err(BadSubject::TooLong));
        assert_eq!(format!("{edge}s").parse::<Pattern>(), Err(BadSubject::TooLong));
    }

    #[test]
    fn patterns_match_as_in_nats() {
        for (wide, subject, expected) in [
            (">", "a", true),
            (">", "a.b.c", true),
            ("*", "a", true),
            ("*", "a.b", false),
            ("a.>", "a", false),
            ("a.>", "a.b", true),
            ("a.>", "a.b.c", true),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*.c", "a.b.c", true),
            ("*.b", "a.b", true),
            ("a*", "a*", true),
            ("a*", "ab", false),
            ("a", "A", false),
        ] {
            assert_eq!(pattern(wide).matches(&subject.parse().unwrap()), expected, "{wide} {subject}");
        }
        assert!(!pattern("*").covers(&pattern(">")), "* is one word, > may be more");
        assert!(pattern(">").covers(&pattern("*")));
    }

    #[test]
    fn every_two_short_patterns_are_told_apart_as_word_by_word() {
        fn word_by_word(wide: &[&str], narrow: &[&str]) -> bool {
            match (wide, narrow) {
                ([">"], [_, ..]) | ([], []) => true,
                ([ours, wide @ ..], [theirs, narrow @ ..]) => {
                    (ours == theirs || (*ours == "*" && *theirs != ">")) && word_by_word(wide, narrow)
                }
                _ => false,
            }
        }
        let words = ["a", "ab", "b", "*", "*a", ">", ">a"];
        let mut all: Vec<String> = words.map(str::to_owned).into();
        for _ in 0..2 {
            let longer = all.iter().flat_map(|begin| words.iter().map(move |word| format!("{begin}.{word}")));
            all = words.iter().map(|word| (*word).to_owned()).chain(longer).collect();
        }
        let all: Vec<Pattern> = all.iter().filter_map(|text| text.parse().ok()).collect();
        assert!(all.len() > 250, "{}", all.len());
        for wide in &all {
            for narrow in &all {
                let (ours, theirs): (Vec<_>, Vec<_>) = (wide.tokens().collect(), narrow.tokens().collect());
                assert_eq!(wide.covers(narrow), word_by_word(&ours, &theirs), "{wide} {narrow}");
            }
        }
    }

    #[test]
    fn what_the_daemon_publishes_is_told_by_the_first_word() {
        let is_built_in = |text: &str| text.parse::<Subject>().unwrap().is_built_in();
        assert!(is_built_in("$authsock") && is_built_in("$authsock.session.started"));
        assert!(!is_built_in("$authsockx") && !is_built_in("a.$authsock"));
    }
}
