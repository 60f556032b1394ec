//! Which users this process's user namespace can name (user_namespaces(7)); of all others it says that they are one.

/// Whether this is a user namespace that has one user and nobody else, root included: as a confined program is in.
pub(super) fn is_alone() -> bool {
    #[cfg(target_os = "linux")]
    return std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| names_one(&map));
    #[cfg(not(target_os = "linux"))]
    false
}

/// Whether a uid_map has one id in all: the first one inside, the first one outside, and how many.
#[cfg(any(target_os = "linux", test))]
fn names_one(map: &str) -> bool {
    let mut lines = map.lines();
    let count = lines.next().and_then(|line| line.split_whitespace().nth(2));
    count == Some("1") && lines.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_of_one_user_is_alone_and_nothing_else_is() {
        assert!(names_one("      1000       1000          1\n"));
        for map in [
            "",
            "         0          0 4294967295\n",
            "0 1000 1\n1 100000 65536\n",
            "0 1000 10\n",
            "0 1000\n",
        ] {
            assert!(!names_one(map), "{map:?}");
        }
    }
}
