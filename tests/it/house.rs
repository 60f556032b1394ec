//! The order of the house: which room may use which, what every file says first, and what the paperwork must agree on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The rooms and their ranks; ARCHITECTURE.md has the map. A room uses itself and rooms of lower
/// rank.
const ROOMS: [(&str, u8); 17] = [
    ("place", 0),
    ("kernel", 1),
    ("init", 2),
    ("secret", 2),
    ("config", 3),
    ("wire", 3),
    ("handshake", 4),
    ("session", 4),
    ("credential", 4),
    ("gate", 5),
    ("client", 6),
    ("daemon", 7),
    ("install", 7),
    ("doctor", 7),
    ("cli", 8),
    ("lib", 9),
    ("main", 9),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(dir: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            files_below(&path, extension, found);
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
}

/// Every source file with its room and its text.
fn sources() -> Vec<(String, PathBuf, String)> {
    let src = root().join("src");
    let mut files = Vec::new();
    files_below(&src, "rs", &mut files);
    assert!(files.len() > 30);
    files
        .into_iter()
        .map(|path| {
            let inside = path.strip_prefix(&src).unwrap();
            let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
            let room = first.trim_end_matches(".rs").to_owned();
            let text = std::fs::read_to_string(&path).unwrap();
            (room, path, text)
        })
        .collect()
}

#[test]
fn a_room_uses_itself_and_rooms_of_lower_rank() {
    let ranks: BTreeMap<&str, u8> = ROOMS.into();
    for (room, path, text) in sources() {
        let own = *ranks
            .get(room.as_str())
            .unwrap_or_else(|| panic!("{} is in no room of the map", path.display()));
        for (number, line) in
            text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"))
        {
            for used in line.split("crate::").skip(1) {
                let used: String =
                    used.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect();
                let Some(rank) = ranks.get(used.as_str()) else { continue };
                assert!(
                    used == room || *rank < own,
                    "{}:{}: {room} (rank {own}) uses {used} (rank {rank})",
                    path.display(),
                    number + 1
                );
            }
        }
    }
}

#[test]
fn every_file_says_in_its_first_line_what_it_is_responsible_for() {
    let mut files: Vec<PathBuf> = sources().into_iter().map(|(_, path, _)| path).collect();
    files_below(&root().join("tests"), "rs", &mut files);
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let first = text.lines().next().unwrap_or_default();
        assert!(first.starts_with("//! ") && first.len() > 20, "{}: {first:?}", path.display());
    }
}

/// Whether a file of this room mentions something outside of comments and tests.
fn mentions(text: &str, what: &str) -> bool {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let as_a_word = |line: &str| {
        line.match_indices(what).any(|(at, _)| !line[..at].ends_with(|before: char| before.is_alphanumeric()))
    };
    code.lines().any(|line| !line.trim_start().starts_with("//") && as_a_word(line))
}

#[test]
fn each_foreign_crate_stays_in_its_rooms() {
    let kernel = ["kernel", "init"];
    let above_the_gate = ["gate", "client", "daemon", "doctor", "cli"];
    for (room, path, text) in sources() {
        let room = room.as_str();
        for (what, rooms) in [
            ("libc::", &kernel[..]),
            ("nix::", &kernel),
            ("unsafe {", &kernel),
            ("tokio::", &above_the_gate),
            ("rand::", &["secret"]),
            ("clap", &["cli"]),
        ] {
            assert!(!mentions(&text, what) || rooms.contains(&room), "{} mentions {what}", path.display());
        }
        if ["place", "kernel", "init", "secret"].contains(&room) {
            assert!(!mentions(&text, "serde"), "{}: serde begins at wire", path.display());
        }
    }
}

#[test]
fn rooms_without_unsafe_code_forbid_it() {
    for (room, path, text) in sources() {
        let is_door = path.file_name().is_some_and(|name| name == "mod.rs")
            || path.parent() == Some(&root().join("src"));
        if is_door && !["kernel", "init", "lib"].contains(&room.as_str()) {
            assert!(text.contains("#![forbid(unsafe_code)]"), "{}", path.display());
        }
    }
}

#[test]
fn the_changelog_knows_this_version() {
    let changelog = std::fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    assert!(changelog.contains(&format!("## {}", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn the_architecture_page_names_every_room_and_no_other() {
    let page = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    for (room, rank) in ROOMS.iter().filter(|(room, _)| !["lib", "main"].contains(room)) {
        let row = page.lines().find(|line| line.starts_with(&format!("| {rank} | `{room}")));
        assert!(row.is_some(), "no row for {room} with rank {rank}");
    }
    let rows = page
        .lines()
        .filter(|line| line.starts_with("| ") && line.as_bytes().get(2).is_some_and(u8::is_ascii_digit));
    assert_eq!(rows.count(), ROOMS.len() - 1, "lib and main share a row");
}

#[test]
fn every_configuration_key_is_documented_with_its_default() {
    let page = std::fs::read_to_string(root().join("docs/configuration.md")).unwrap();
    let source = std::fs::read_to_string(root().join("src/config.rs")).unwrap();
    let mut table = String::new();
    let mut keys = 0;
    for line in source.lines() {
        if let Some(rest) = line.strip_prefix("struct ").and_then(|rest| rest.strip_suffix("Table {")) {
            table = rest.to_lowercase();
        } else if line == "}" {
            table.clear();
        } else if let (false, Some((key, _))) = (table.is_empty(), line.trim().split_once(": Option<")) {
            keys += 1;
            assert!(
                page.contains(&format!("`{table}.{key}`")),
                "{table}.{key} is not in docs/configuration.md"
            );
        }
    }
    assert!(keys >= 14, "the test reads {keys} keys");
}

#[test]
fn every_finding_of_the_doctor_is_used_and_has_a_row_in_its_page() {
    let page = std::fs::read_to_string(root().join("docs/doctor.md")).unwrap();
    let rows: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` |").map(|(id, _)| id))
        .collect();
    let ids: Vec<&str> = authsock::doctor::Id::ALL.iter().map(|id| id.name()).collect();
    let mut sorted = (rows.clone(), ids.clone());
    sorted.0.sort_unstable();
    sorted.1.sort_unstable();
    assert_eq!(sorted.0, sorted.1, "rows of docs/doctor.md, and ids of src/doctor");
    let code: String = sources()
        .into_iter()
        .filter(|(room, path, _)| room == "doctor" && !path.ends_with("report.rs"))
        .map(|(_, _, text)| text)
        .collect();
    for id in authsock::doctor::Id::ALL {
        let variant = format!("Id::{id:?}");
        let is_used = code.split(&variant).skip(1).any(|rest| !rest.starts_with(char::is_alphanumeric));
        assert!(is_used, "{} is never found", id.name());
    }
}

#[test]
fn nothing_is_left_for_later_in_the_source() {
    for (_, path, text) in sources() {
        for word in ["TODO", "FIXME", "XXX", "unimplemented!", "todo!"] {
            assert!(!text.contains(word), "{} has {word}", path.display());
        }
    }
}

#[test]
fn every_test_that_the_pages_on_security_and_sessions_name_exists() {
    let read = |page: &str| std::fs::read_to_string(root().join(page)).unwrap();
    let page = read("docs/security.md");
    let both = page.clone() + &read("docs/sessions.md");
    let mut texts = std::collections::HashMap::new();
    let mut named = 0;
    for row in both.lines().filter(|line| line.starts_with("| ")) {
        for test in row.split('`').skip(1).step_by(2).filter(|code| code.contains("::") && code.len() > 25) {
            let (module, name) = test.rsplit_once("::").unwrap();
            let path = match module.strip_suffix("::tests") {
                Some(room) => format!("src/{}", room.replace("::", "/")),
                None => format!("tests/it/{module}"),
            };
            let text = texts.entry(path.clone()).or_insert_with(|| {
                let read = |path: String| std::fs::read_to_string(root().join(path));
                read(format!("{path}.rs")).or_else(|_| read(format!("{path}/mod.rs"))).unwrap_or_default()
            });
            assert!(text.contains(&format!("fn {name}()")), "{test} is not in {path}");
            named += 1;
        }
    }
    assert!(named > 60, "the test reads {named} names");
    for number in (1..=10).chain(12..=19).chain([21]).chain(28..=32).chain([33, 34, 35, 41, 44, 45, 48]) {
        assert!(
            page.lines().any(|line| line.starts_with(&format!("| {number} | "))),
            "case {number} is not answered"
        );
    }
}
