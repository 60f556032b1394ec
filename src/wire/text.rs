//! Text of strangers that people will see: which characters could steer a terminal, or make one name look like another.

use std::borrow::Cow;

/// Whether a character is shown as nothing, or changes how its neighbours are shown: controls,
/// bidirectional controls, fillers, tags (Unicode's Default_Ignorable_Code_Point, what joins hieroglyphs, and what
/// looks blank).
pub fn is_deceptive(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
                | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
                | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{13430}'..='\u{13440}' | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}'
        )
}

/// The text with every such character replaced by its escape.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if is_deceptive(character) {
            shown.extend(character.escape_unicode());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// A text as it stands between brackets in a line for people: in quotes where it could be taken for the closing bracket and
/// what follows, and with what deceives escaped.
pub fn in_brackets(text: &str) -> Cow<'_, str> {
    if text.contains(['(', ')', '"', '\\']) || text.chars().any(is_deceptive) {
        let quoted = printable(&text.replace('\\', "\\\\")).replace('"', "\\\"");
        Cow::Owned(format!("\"{quoted}\""))
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_deceive_is_shown_and_not_sent() {
        assert_eq!(printable("a\u{1b}[31mb\nü\u{202e}\u{9b}"), "a\\u{1b}[31mb\\u{a}ü\\u{202e}\\u{9b}");
        assert_eq!(printable("plain, with ünïcode 漢字 🦀"), "plain, with ünïcode 漢字 🦀");
    }

    #[test]
    fn what_could_close_a_bracket_stands_in_quotes() {
        for (text, shown) in [
            ("make", "make"),
            ("x) ended: revoked (y", "\"x) ended: revoked (y\""),
            ("a\"b", "\"a\\\"b\""),
            ("a\u{202e}b", "\"a\\u{202e}b\""),
        ] {
            assert_eq!(in_brackets(text), shown);
        }
    }
}
