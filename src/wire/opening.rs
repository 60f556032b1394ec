//! The first byte of a connection, which decides what is spoken on it.

/// What a connection opens with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Opening {
    /// `{`: the handshake, as JSON lines.
    Handshake,
    /// A letter: the method of an HTTP/1.1 request (RFC 9112, section 3.1; all registered methods
    /// begin with one).
    Http,
    /// Neither.
    Unknown,
}

impl Opening {
    /// Judges the first byte.
    pub fn of(first: u8) -> Opening {
        match first {
            b'{' => Opening::Handshake,
            byte if byte.is_ascii_alphabetic() => Opening::Http,
            _ => Opening::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_first_byte_has_one_meaning() {
        for byte in 0..=u8::MAX {
            let expected = match byte {
                b'{' => Opening::Handshake,
                b'A'..=b'Z' | b'a'..=b'z' => Opening::Http,
                _ => Opening::Unknown,
            };
            assert_eq!(Opening::of(byte), expected);
        }
    }
}
