//! Scopes: what a session may do, as a closed list of kinds; a set of them can be narrowed, never widened.

use std::fmt;
use std::str::FromStr;

use crate::wire::subject::{BadSubject, Pattern};

/// Longest scope in bytes.
pub const SCOPE_MAX: usize = 256;
/// Most bytes of all scopes of one session, as they were asked for.
pub const SCOPE_BYTES_MAX: usize = 4096;
/// Most scopes of one session, beside `session:self`.
pub const SCOPES_MAX: usize = 64;

/// One thing a session may do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    /// `>`: everything, daemon included.
    All,
    /// A plain permission without an object.
    Plain(Plain),
    /// A permission on subjects.
    Subjects(Verb, Pattern),
    /// A permission on one named thing.
    On(Kind, String),
}

/// Permissions without an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Plain {
    /// `session:self`: to ask and change what concerns oneself.
    SessionSelf,
    /// `session:create`: to make sessions below one's own.
    SessionCreate,
    /// `daemon:manage`: to ask the daemon to reload or retire.
    DaemonManage,
    /// `metrics`: to read the daemon's numbers.
    Metrics,
    /// `verify`: to ask about other people's tokens.
    Verify,
}

const PLAIN: [(&str, Plain); 5] = [
    ("session:self", Plain::SessionSelf),
    ("session:create", Plain::SessionCreate),
    ("daemon:manage", Plain::DaemonManage),
    ("metrics", Plain::Metrics),
    ("verify", Plain::Verify),
];

/// What may be done with events of some subjects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// `events:publish:SUBJECT`, wildcards as in NATS.
    Publish,
    /// `events:subscribe:SUBJECT`, wildcards as in NATS.
    Subscribe,
}

const VERBS: [(&str, Verb); 2] = [("events:publish:", Verb::Publish), ("events:subscribe:", Verb::Subscribe)];

/// Permissions with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `service:NAME`: to use a service.
    Service,
    /// `serve:NAME`: to be a service.
    Serve,
}

const KINDS: [(&str, Kind); 2] = [("service:", Kind::Service), ("serve:", Kind::Serve)];

/// A text that is no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownScope {
    /// There is no such kind.
    #[error(
        "unknown scope {0:?}; known are session:self, session:create, events:publish:SUBJECT, events:subscribe:SUBJECT, service:NAME, serve:NAME, verify, metrics, daemon:manage, and > for all of them"
    )]
    Kind(String),
    /// Its subject is none.
    #[error("scope {0:?}: {1}")]
    Subject(String, BadSubject),
    /// Its service has no such name.
    #[error(
        "scope {0:?}: not the name of a service: expected 1 to 64 of lower-case letters, digits, '.', '_', '-'; wildcards are for subjects only"
    )]
    Service(String),
}

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(text: &str) -> Result<Scope, UnknownScope> {
        let shown = || -> String { text.chars().take(SCOPE_MAX).collect() };
        let unknown = || UnknownScope::Kind(shown());
        if text.len() > SCOPE_MAX {
            return Err(unknown());
        }
        if text == ">" {
            return Ok(Scope::All);
        }
        if let Some((_, plain)) = PLAIN.iter().find(|(word, _)| *word == text) {
            return Ok(Scope::Plain(*plain));
        }
        if let Some((verb, subjects)) = split_off(&VERBS, text) {
            let subjects = subjects.parse().map_err(|problem| UnknownScope::Subject(shown(), problem))?;
            return Ok(Scope::Subjects(verb, subjects));
        }
        let (kind, object) = split_off(&KINDS, text).ok_or_else(unknown)?;
        if !crate::wire::auth::is_service_name(object) {
            return Err(UnknownScope::Service(shown()));
        }
        Ok(Scope::On(kind, object.to_owned()))
    }
}

/// What a text begins with, of several words, and the rest.
fn split_off<'a, T: Copy>(words: &[(&str, T)], text: &'a str) -> Option<(T, &'a str)> {
    words.iter().find_map(|(word, meaning)| text.strip_prefix(word).map(|rest| (*meaning, rest)))
}

/// The word that stands for something.
fn word_of<T: PartialEq>(words: &[(&'static str, T)], meaning: &T) -> &'static str {
    words.iter().find(|(_, known)| known == meaning).map_or("", |(word, _)| *word)
}

impl Scope {
    /// Whether it could not be read again.
    fn is_too_long(&self) -> bool {
        self.to_string().len() > SCOPE_MAX
    }

    /// The scope that permits what both permit, if there is anything.
    fn intersection(&self, other: &Scope) -> Option<Scope> {
        match (self, other) {
            (Scope::All, narrower) | (narrower, Scope::All) => Some(narrower.clone()),
            (Scope::Subjects(ours, wide), Scope::Subjects(theirs, narrow)) if ours == theirs => {
                wide.intersection(narrow).map(|common| Scope::Subjects(*ours, common))
            }
            (ours, theirs) => (ours == theirs).then(|| ours.clone()),
        }
    }

    /// Whether who has this scope may do all that `other` permits.
    pub fn covers(&self, other: &Scope) -> bool {
        match (self, other) {
            (Scope::All, _) => true,
            (Scope::Subjects(ours, wide), Scope::Subjects(theirs, narrow)) => {
                ours == theirs && wide.covers(narrow)
            }
            (ours, theirs) => ours == theirs,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::All => f.write_str(">"),
            Scope::Plain(plain) => f.write_str(word_of(&PLAIN, plain)),
            Scope::Subjects(verb, subjects) => write!(f, "{}{subjects}", word_of(&VERBS, verb)),
            Scope::On(kind, object) => write!(f, "{}{object}", word_of(&KINDS, kind)),
        }
    }
}

/// Texts that are no list of scopes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadScopes {
    /// One of them is none.
    #[error(transparent)]
    Unknown(#[from] UnknownScope),
    /// They are too many.
    #[error(transparent)]
    TooMany(#[from] TooManyScopes),
    /// They are too long.
    #[error("the scopes of a session have at most {SCOPE_BYTES_MAX} bytes in all")]
    TooLong,
}

/// Reads scopes as they are asked for.
///
/// # Errors
/// [`BadScopes`].
pub fn read(texts: &[String]) -> Result<Vec<Scope>, BadScopes> {
    if texts.len() > SCOPES_MAX {
        return Err(TooManyScopes::Number.into());
    }
    if texts.iter().map(String::len).sum::<usize>() > SCOPE_BYTES_MAX {
        return Err(BadScopes::TooLong);
    }
    Ok(texts.iter().map(|text| text.parse()).collect::<Result<_, _>>()?)
}

/// What a session and its parent have in common is more than a session has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooManyScopes {
    /// In number.
    #[error(
        "a session has at most {SCOPES_MAX} scopes beside session:self; ask for fewer, or for wider ones"
    )]
    Number,
    /// In length: two patterns can have one in common that is as long as both.
    #[error(
        "what a scope that was asked for has in common with the parent's is longer than {SCOPE_MAX} bytes; ask for shorter ones, or for one of the parent's as it is"
    )]
    Length,
}

/// What a session may do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scopes(Vec<Scope>);

impl Scopes {
    /// The owner's: everything.
    pub fn all() -> Scopes {
        Scopes(vec![Scope::All])
    }

    /// What a session gets when nothing is asked for.
    pub fn default_of_a_run() -> Scopes {
        Scopes(vec![
            Scope::Plain(Plain::SessionSelf),
            Scope::Plain(Plain::SessionCreate),
            Scope::Subjects(Verb::Publish, Pattern::all()),
            Scope::Subjects(Verb::Subscribe, Pattern::all()),
        ])
    }

    /// What a record says that a session had; whoever believes it compares it with the parent's.
    pub(super) fn of_a_record(scopes: Vec<Scope>) -> Scopes {
        Scopes(scopes)
    }

    /// What the session of a user of the machine's daemon may do.
    ///
    /// # Errors
    /// [`TooManyScopes`].
    pub fn of_a_user(scopes: &[Scope]) -> Result<Scopes, TooManyScopes> {
        Scopes::all().narrowed_to(scopes)
    }

    /// What was asked for, cut down to what `self` permits. `session:self` is always part of it:
    /// a session may ask about and end itself. Where only a part of what is asked for is permitted,
    /// that part is given.
    ///
    /// # Errors
    /// [`TooManyScopes`]: two lists of wildcards can have more in common than either has entries.
    pub fn narrowed_to(&self, asked: &[Scope]) -> Result<Scopes, TooManyScopes> {
        let mut narrowed = vec![Scope::Plain(Plain::SessionSelf)];
        for asked in asked {
            for common in self.0.iter().filter_map(|ours| ours.intersection(asked)) {
                if common.is_too_long() {
                    return Err(TooManyScopes::Length);
                }
                if !narrowed.iter().any(|scope| scope.covers(&common)) {
                    narrowed.push(common);
                }
                if narrowed.len() > SCOPES_MAX + 1 {
                    return Err(TooManyScopes::Number);
                }
            }
        }
        Ok(Scopes(narrowed))
    }

    /// What a session keeps whose parent has these from now on. That is what both have in common, as far as it fits and as
    /// far as `pairs` goes, which is how many scopes may still be compared; the rest is lost, but for `session:self`.
    #[must_use]
    pub fn left_of(&self, had: &Scopes, pairs: &mut usize) -> Scopes {
        let mut left: Vec<Scope> = Vec::new();
        for scope in &had.0 {
            if *scope == Scope::Plain(Plain::SessionSelf) {
                left.push(scope.clone());
                continue;
            }
            let Some(rest) = pairs.checked_sub(self.0.len()) else { continue };
            *pairs = rest;
            if self.permits(scope) {
                left.push(scope.clone());
            } else {
                for common in self.0.iter().filter_map(|ours| ours.intersection(scope)) {
                    let fits = left.len() <= SCOPES_MAX && !common.is_too_long();
                    if fits && !left.contains(&common) {
                        left.push(common);
                    }
                }
            }
        }
        Scopes(left)
    }

    /// Whether a session with these may do all that one with `other` may.
    pub fn cover(&self, other: &Scopes) -> bool {
        other.iter().all(|scope| self.permits(scope))
    }

    /// Whether a session with these may do what `needed` permits.
    pub fn permits(&self, needed: &Scope) -> bool {
        self.0.iter().any(|scope| scope.covers(needed))
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Scope> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(text: &str) -> Scope {
        text.parse().unwrap()
    }

    #[test]
    fn scopes_are_read_and_written_alike() {
        for text in [
            ">",
            "session:self",
            "session:create",
            "daemon:manage",
            "metrics",
            "verify",
            "events:publish:build.>",
            "events:subscribe:*.x",
            "service:docker",
            "serve:docker",
        ] {
            assert_eq!(scope(text).to_string(), text);
        }
    }

    #[test]
    fn unknown_scopes_are_refused() {
        let long = format!("service:{}", "a".repeat(SCOPE_MAX));
        for bad in [
            "",
            "session",
            "session:*",
            "session:others",
            "events:publish:",
            "events:publish:a..b",
            "events:publish:>.a",
            "events:publish:a b",
            "events:publish:a\u{200b}",
            "service:",
            "service:A",
            "service:*",
            "all",
            ">>",
            &long,
        ] {
            assert!(bad.parse::<Scope>().is_err(), "{bad}");
        }
        let edge = format!("events:publish:{}", "a".repeat(SCOPE_MAX - "events:publish:".len()));
        assert!(edge.parse::<Scope>().is_ok());
        assert!(format!("{edge}a").parse::<Scope>().is_err());
    }

    #[test]
    fn covering_follows_the_wildcards() {
        let cases = [
            (">", "daemon:manage", true),
            ("session:self", "session:create", false),
            ("events:publish:>", "events:publish:a.b", true),
            ("events:publish:>", "events:publish:>", true),
            ("events:publish:>", "events:subscribe:a", false),
            ("events:publish:a.>", "events:publish:a", false),
            ("events:publish:a.>", "events:publish:a.b.c", true),
            ("events:publish:a.>", "events:publish:a.*.>", true),
            ("events:publish:*", "events:publish:>", false),
            ("events:publish:*.b", "events:publish:a.b", true),
            ("events:publish:a.b", "events:publish:*.b", false),
            ("events:publish:*.*", "events:publish:a.>", false),
            ("service:a", "service:a", true),
            ("service:a", "service:ab", false),
            ("service:a", "serve:a", false),
        ];
        for (wide, narrow, expected) in cases {
            assert_eq!(scope(wide).covers(&scope(narrow)), expected, "{wide} {narrow}");
        }
    }

    #[test]
    fn a_child_never_has_more_than_its_parent() {
        let parent = Scopes(vec![scope("events:publish:build.>"), scope("service:docker")]);
        let asked: Vec<_> =
            ["events:publish:>", "events:subscribe:>", "service:docker", "service:podman", ">"]
                .map(scope)
                .into();
        let child = parent.narrowed_to(&asked).unwrap();
        let words: Vec<_> = child.iter().map(ToString::to_string).collect();
        assert_eq!(words, ["session:self", "events:publish:build.>", "service:docker"]);
        for scope in child.iter().skip(1) {
            assert!(parent.permits(scope));
        }
    }

    #[test]
    fn of_two_patterns_exactly_what_both_match_is_given() {
        for (ours, theirs, common) in [
            ("a.*", "*.b", Some("a.b")),
            ("*.*", "a.>", Some("a.*")),
            ("a.>", ">", Some("a.>")),
            (">", ">", Some(">")),
            ("*.>", "a.>", Some("a.>")),
            ("*.b.>", "a.>", Some("a.b.>")),
            ("a.*.c", "a.b.>", Some("a.b.c")),
            ("a", "a.>", None),
            ("a.*", "b.*", None),
            ("*", "*.*", None),
        ] {
            for (ours, theirs) in [(ours, theirs), (theirs, ours)] {
                let have = Scopes(vec![scope(&format!("events:publish:{ours}"))]);
                let given = have.narrowed_to(&[scope(&format!("events:publish:{theirs}"))]).unwrap();
                let words: Vec<_> = given.iter().skip(1).map(ToString::to_string).collect();
                let wanted: Vec<_> = common.iter().map(|common| format!("events:publish:{common}")).collect();
                assert_eq!(words, wanted, "{ours} {theirs}");
            }
        }
    }

    #[test]
    fn what_two_lists_have_in_common_is_bounded() {
        // Each of the one has something in common with each of the other.
        let list = |side: usize, count: usize| -> Vec<Scope> {
            let name =
                |number: usize| if side == 0 { format!("n{number}.*") } else { format!("*.n{number}") };
            (0..count).map(|number| scope(&format!("events:publish:{}", name(number)))).collect()
        };
        let given = Scopes(list(0, 8)).narrowed_to(&list(1, 8)).unwrap();
        assert_eq!(given.iter().count(), SCOPES_MAX + 1);
        assert_eq!(Scopes(list(0, 8)).narrowed_to(&list(1, 9)), Err(TooManyScopes::Number));
        assert!(Scopes::of_a_user(&list(0, SCOPES_MAX)).is_ok());
        assert_eq!(Scopes::of_a_user(&list(0, SCOPES_MAX + 1)), Err(TooManyScopes::Number));
    }

    #[test]
    fn what_is_given_can_be_read_again() {
        let half = "s".repeat(150);
        let have = Scopes(vec![scope(&format!("events:publish:*.{half}")), scope("events:publish:>")]);
        let asked = scope(&format!("events:publish:{half}.*"));
        assert_eq!(have.narrowed_to(std::slice::from_ref(&asked)), Err(TooManyScopes::Length));
        let mut pairs = 100;
        let left = have.left_of(&Scopes(vec![asked.clone()]), &mut pairs);
        assert_eq!(left.0, [asked], "what is permitted whole stays whole");
        let narrow = Scopes(vec![scope(&format!("events:publish:*.{half}")), scope("events:publish:*.b")]);
        let left = narrow.left_of(&Scopes(vec![scope(&format!("events:publish:{half}.*"))]), &mut pairs);
        assert_eq!(left.0, [scope(&format!("events:publish:{half}.b"))], "what fits");
        let mut none = 1;
        let had = Scopes(vec![scope("session:self"), scope("events:publish:>")]);
        assert_eq!(narrow.left_of(&had, &mut none).0, [scope("session:self")]);
    }

    /// Whatever is narrowed, by whichever way, and again: each of it can be read again, and is within what it came from.
    #[test]
    fn whatever_scopes_come_of_narrowing_are_scopes_and_within_those_they_came_from() {
        let mut seed: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut random = move |limit: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            usize::try_from(seed % limit as u64).unwrap()
        };
        // Long words, so that patterns come near to the bound, and few, so that they have something in common.
        let words = ["*".to_owned(), "*".to_owned(), "a".repeat(60), "b".repeat(119), "c".into()];
        let mut any = |count: usize| -> Vec<Scope> {
            let mut all = Vec::new();
            while all.len() < count {
                let mut tokens: Vec<&str> = (0..=random(4)).map(|_| words[random(5)].as_str()).collect();
                if random(3) == 0 {
                    tokens.push(">");
                }
                all.extend(format!("events:publish:{}", tokens.join(".")).parse::<Scope>().ok());
            }
            all
        };
        let (mut too_long, mut narrowed) = (0, 0);
        for _ in 0..400 {
            let mut have = Scopes::of_a_user(&any(6)).unwrap();
            for _ in 0..4 {
                let before = have.clone();
                let asked = any(6);
                have = match before.narrowed_to(&asked) {
                    Ok(have) => have,
                    Err(TooManyScopes::Length) => {
                        too_long += 1;
                        before.left_of(&Scopes::of_a_user(&asked).unwrap(), &mut usize::MAX.clone())
                    }
                    Err(TooManyScopes::Number) => break,
                };
                narrowed += usize::from(have != before);
                assert!(before.cover(&have), "{before:?} {have:?}");
                for scope in have.iter() {
                    assert_eq!(scope.to_string().parse::<Scope>().as_ref(), Ok(scope));
                }
            }
        }
        assert!(too_long > 20 && narrowed > 200, "{too_long} {narrowed}");
    }
}
