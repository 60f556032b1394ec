//! What packages are made of: the manual's pages, the completions, and what `make install` puts where.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::ground::{Ground, has, skip_unless, text_of};

/// The files below a directory, with their modes; directories among them must let everybody pass.
fn files(dir: &Path) -> BTreeMap<String, u32> {
    let (mut found, mut dirs) = (BTreeMap::new(), vec![dir.to_path_buf()]);
    while let Some(next) = dirs.pop() {
        for entry in std::fs::read_dir(&next).unwrap().map(Result::unwrap) {
            let (path, mode) = (entry.path(), entry.metadata().unwrap().permissions().mode() & 0o7777);
            if path.is_dir() {
                assert_eq!(mode, 0o755, "{}", path.display());
                dirs.push(path);
            } else {
                found.insert(path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned(), mode);
            }
        }
    }
    found
}

/// Runs `authsock generate` into a directory that does not exist yet, under a narrow umask.
fn generate(ground: &Ground, what: &str, into: &str) -> PathBuf {
    let dir = ground.root().join(into).join("deep");
    let mut command = ground.command("sh");
    command.args(["-c", "umask 077; exec \"$@\"", "sh"]).arg(&ground.binary);
    let output = command.args(["generate", what]).arg(&dir).output().unwrap();
    assert!(output.status.success(), "{}", text_of(&output));
    dir
}

/// The verbs that the help of a verb lists.
fn verbs(ground: &Ground, of: &[&str]) -> Vec<String> {
    let output = ground.command(&ground.binary).args(of).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let Some((_, list)) = help.split_once("\nCommands:\n") else { return Vec::new() };
    let rows = list.lines().take_while(|line| !line.is_empty());
    let names = rows.filter(|row| !row.starts_with("   ")).filter_map(|row| row.split_whitespace().next());
    names.filter(|name| *name != "help").map(ToOwned::to_owned).collect()
}

#[test]
fn every_verb_has_a_page_with_exit_codes_and_environment() {
    let ground = Ground::new();
    let dir = generate(&ground, "man", "man");
    let mut wanted = vec!["authsock.1".to_owned()];
    let top = verbs(&ground, &[]);
    assert!(top.len() > 8, "{top:?}");
    for verb in &top {
        wanted.push(format!("authsock-{verb}.1"));
        wanted.extend(verbs(&ground, &[verb]).iter().map(|below| format!("authsock-{verb}-{below}.1")));
    }
    wanted.sort();
    let made = files_in(&dir);
    assert_eq!(made, wanted);
    for name in &made {
        let path = dir.join(name);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o644, "{name}");
        let page = std::fs::read_to_string(path).unwrap();
        for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "\"EXIT STATUS\"", "ENVIRONMENT"] {
            assert!(page.contains(&format!(".SH {section}\n")), "{name} has no {section}");
        }
        assert!(page.contains("AUTHSOCK_SOCKET") || page.contains("AUTHSOCK\\_SOCKET"), "{name}");
        let machine = [ground.root().to_str().unwrap().to_owned(), env!("CARGO_MANIFEST_DIR").to_owned()];
        assert!(machine.iter().all(|path| !page.contains(path)), "{name} names a place of this machine");
        let page_title = page.lines().next().unwrap();
        assert!(page_title.contains(" 1 \"\" \"authsock "), "no date that changes: {page_title}");
    }
    assert!(std::fs::read_to_string(dir.join("authsock.1")).unwrap().contains("authsock\\-session(1)"));
}

/// A page's words in their order, without what they look like.
fn words_of(page: &str) -> String {
    let mut text: String = page.lines().filter(|line| !line.starts_with('.')).collect::<Vec<_>>().join(" ");
    for (written, meant) in [("\\fB", ""), ("\\fI", ""), ("\\fR", ""), ("\\-", "-"), ("\\*(Aq", "'")] {
        text = text.replace(written, meant);
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_page_has_what_the_help_says_below_the_options_and_names_the_values_in_its_synopsis() {
    let ground = Ground::new();
    let dir = generate(&ground, "man", "man");
    let mut said = 0;
    for verb in verbs(&ground, &[]) {
        let output = ground.command(&ground.binary).args([&verb, "--help"]).output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        let page = words_of(&std::fs::read_to_string(dir.join(format!("authsock-{verb}.1"))).unwrap());
        let (_, options) = help.split_once("\nOptions:\n").unwrap();
        for block in options.split("\n\n").skip(1).filter(|block| !block.starts_with("    ")) {
            for line in block.lines().filter(|line| !line.ends_with(':')) {
                let words = line.split_whitespace().collect::<Vec<_>>().join(" ");
                assert!(page.contains(&words), "authsock-{verb}.1 does not say {words:?}");
                said += 1;
            }
        }
        let (_, synopsis) = page.split_once(&format!("authsock {verb} [")).unwrap();
        for row in options.lines().filter(|row| row.trim_start().starts_with('-')) {
            let named = row.split_whitespace().collect::<Vec<_>>();
            // A value that may be chosen is in such a row too.
            let Some(at) = named.iter().position(|word| word.starts_with("--")) else { continue };
            let Some(value) = named.get(at + 1).and_then(|word| word.strip_prefix('<')) else { continue };
            let option = format!("{} {}]", named[at], value.trim_end_matches(['>', '.']));
            assert!(synopsis.contains(&option), "authsock-{verb}.1 has no {option:?}: {synopsis}");
        }
    }
    assert!(said >= 5, "{said}: doctor, publish and subscribe have something to say");
    let synopsis = |verb: &str| {
        let page = words_of(&std::fs::read_to_string(dir.join(format!("authsock-{verb}.1"))).unwrap());
        page.split_once("[-h|--help]").unwrap().1.to_owned()
    };
    for (verb, rest) in [
        ("run", " CMD ..."),
        ("publish", " SUBJECT [DATA]"),
        ("session-show", " [ID]"),
        ("token", " COMMAND"),
    ] {
        assert!(synopsis(verb).starts_with(rest), "{}", synopsis(verb));
    }
    // Its own meaning of the codes, and not the one that is for all verbs.
    let page = words_of(&std::fs::read_to_string(dir.join("authsock-doctor.1")).unwrap());
    assert!(page.contains("0 nothing keeps a client from its daemon") && !page.contains("0 done"), "{page}");
}

fn files_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn what_is_generated_twice_is_the_same_and_replaces_what_was_there() {
    let ground = Ground::new();
    for what in ["man", "completions"] {
        let (one, two) = (generate(&ground, what, what), generate(&ground, what, "again"));
        for name in files_in(&one) {
            let read = |dir: &Path| std::fs::read(dir.join(&name)).unwrap();
            assert_eq!(read(&one), read(&two), "{name}");
            std::fs::write(one.join(&name), "old").unwrap();
        }
        let again = generate(&ground, what, what);
        assert_eq!(files_in(&again).len(), files_in(&one).len(), "nothing is left beside");
        for name in files_in(&again) {
            assert_ne!(std::fs::read(again.join(&name)).unwrap(), b"old", "{name}");
        }
        std::fs::remove_dir_all(two).unwrap();
    }
    assert!(!ground.state().exists(), "no daemon was started for it");
}

#[test]
fn where_nothing_can_be_written_the_file_is_named() {
    let ground = Ground::new();
    let file = ground.root().join("file");
    std::fs::write(&file, "").unwrap();
    let output = ground.authsock(["generate", "man"]).arg(file.join("below")).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text_of(&output));
    assert!(text_of(&output).contains("cannot write") && text_of(&output).contains("/file"));
    let dir = ground.root().join("dir");
    std::fs::create_dir_all(dir.join("authsock.1")).unwrap();
    let output = ground.authsock(["generate", "man"]).arg(&dir).output().unwrap();
    assert!(text_of(&output).contains("dir/authsock.1: "), "{}", text_of(&output));
    assert_eq!(files_in(&dir), ["authsock.1"], "what was begun is taken away");
}

#[test]
fn the_pages_pass_mandoc_s_lint() {
    if skip_unless(has("mandoc"), "mandoc is not installed") {
        return;
    }
    let ground = Ground::new();
    let dir = generate(&ground, "man", "man");
    let output =
        ground.command("mandoc").args(["-T", "lint", "-W", "warning"]).args(paths(&dir)).output().unwrap();
    let complaints = text_of(&output);
    // There is no date on purpose; an empty line beside a paragraph changes nothing.
    let is_known = |line: &str| line.contains("missing date") || line.contains("skipping paragraph macro");
    let new: Vec<&str> = complaints.lines().filter(|line| line.contains(".1:") && !is_known(line)).collect();
    assert!(new.is_empty(), "{new:#?}");
}

fn paths(dir: &Path) -> Vec<PathBuf> {
    files_in(dir).into_iter().map(|name| dir.join(name)).collect()
}

#[test]
fn bash_completes_verbs_and_options() {
    if skip_unless(has("bash"), "bash is not installed") {
        return;
    }
    let ground = Ground::new();
    let script = generate(&ground, "completions", "completions").join("authsock");
    let complete = |words: &str| {
        let ask = "source \"$0\"; COMP_WORDS=(\"$@\"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); \
                   _authsock authsock \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD-1]}\"; \
                   printf '%s\\n' \"${COMPREPLY[@]}\"";
        let output =
            ground.command("bash").args(["-c", ask]).arg(&script).args(words.split(' ')).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{}", text_of(&output));
        let mut found: Vec<String> =
            String::from_utf8(output.stdout).unwrap().lines().map(ToOwned::to_owned).collect();
        found.sort();
        found
    };
    assert_eq!(complete("authsock se"), ["serve", "session"]);
    assert_eq!(complete("authsock session re"), ["rename", "revoke"]);
    assert_eq!(complete("authsock run --na"), ["--name"]);
    assert_eq!(complete("authsock run --bind "), ["tree", "uid"]);
}

#[test]
fn zsh_and_fish_take_their_completions() {
    let ground = Ground::new();
    let dir = generate(&ground, "completions", "completions");
    assert_eq!(files_in(&dir), ["_authsock", "authsock", "authsock.fish"]);
    for (shell, arguments) in [("zsh", ["-n", "_authsock"]), ("fish", ["--no-execute", "authsock.fish"])] {
        if skip_unless(has(shell), &format!("{shell} is not installed")) {
            continue;
        }
        let output = ground.command(shell).args(arguments).current_dir(&dir).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{shell}: {}", text_of(&output));
    }
    if !skip_unless(has("fish"), "fish is not installed") {
        let ask =
            "source authsock.fish; complete -C 'authsock env --shell '; complete -C 'authsock session re'";
        let output =
            ground.command("fish").args(["--no-config", "-c", ask]).current_dir(&dir).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{}", text_of(&output));
        let said = String::from_utf8(output.stdout).unwrap();
        let words: Vec<&str> = said.lines().filter_map(|line| line.split('\t').next()).collect();
        assert_eq!(words, ["csh", "fish", "sh", "rename", "revoke"], "{said}");
    }
    let zsh = std::fs::read_to_string(dir.join("_authsock")).unwrap();
    assert!(zsh.starts_with("#compdef authsock\n"), "by this line zsh knows whose it is");
}

#[test]
#[cfg(target_os = "linux")] // there is no systemd elsewhere
fn make_install_puts_everything_in_its_place_and_nothing_else() {
    if skip_unless(has("make"), "make is not installed") {
        return;
    }
    let ground = Ground::new();
    let install = |into: &str, prefix: &str| {
        let dest = ground.root().join(into);
        let mut command = ground.command("sh");
        command.args(["-c", "umask 077; exec make --no-print-directory install \"$@\"", "sh"]);
        command.arg(format!("DESTDIR={}", dest.display())).arg(format!("PREFIX={prefix}"));
        command.arg(format!("AUTHSOCK={}", ground.binary.display()));
        let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
        assert!(output.status.success(), "{}", text_of(&output));
        dest
    };
    let dest = install("dest", "/usr");
    let found = files(&dest);
    for path in [
        "usr/bin/authsock",
        "usr/lib/systemd/user/authsock.service",
        "usr/lib/systemd/user/authsock.socket",
        "usr/lib/systemd/user-preset/90-authsock.preset",
        "usr/lib/systemd/system-preset/90-authsock.preset",
        "usr/share/bash-completion/completions/authsock",
        "usr/share/zsh/vendor-completions/_authsock",
        "usr/share/fish/vendor_completions.d/authsock.fish",
        "usr/share/man/man1/authsock.1",
        "usr/share/man/man1/authsock-run.1",
        "usr/share/doc/authsock/docs/security.md",
        "usr/share/doc/authsock/LICENSE-MIT",
    ] {
        assert!(found.contains_key(path), "{path} is missing: {found:#?}");
    }
    for (path, mode) in &found {
        let wanted = if path == "usr/bin/authsock" { 0o755 } else { 0o644 };
        assert_eq!(*mode, wanted, "{path}");
        let places = ["usr/bin/", "usr/lib/systemd/", "usr/share/"];
        assert!(places.iter().any(|place| path.starts_with(place)), "{path}");
    }
    let read = |dest: &Path, path: &str| std::fs::read_to_string(dest.join(path)).unwrap();
    let told = |path: &str| {
        let text = read(&dest, path);
        text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(told("usr/lib/systemd/user-preset/90-authsock.preset"), "enable authsock.socket");
    assert_eq!(told("usr/lib/systemd/system-preset/90-authsock.preset"), "disable authsock.socket");
    // The units name the program where it lies.
    assert!(read(&dest, "usr/lib/systemd/user/authsock.service").contains("\nExecStart=/usr/bin/authsock "));
    assert!(!found.keys().any(|path| path.contains("authsock.service.d")), "what 252 complains of");
    // Each document's links lead to what lies beside it.
    let mut links = 0;
    for path in found.keys().filter(|path| path.ends_with(".md")) {
        let (document, text) = (dest.join(path), read(&dest, path));
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap();
            if !target.is_empty() && !target.contains("://") {
                links += 1;
                assert!(document.parent().unwrap().join(target).exists(), "{path} leads to {target}");
            }
        }
    }
    assert!(links > 20, "{links} links were found");
    let dest = install("other", "/opt/authsock");
    let unit = read(&dest, "opt/authsock/lib/systemd/user/authsock.service");
    assert!(unit.contains("\nExecStart=/opt/authsock/bin/authsock serve\n") && !unit.contains("/usr/bin"));
    assert_eq!(files(&dest).len(), found.len());
    let mut command = ground.command("make");
    command.args(["--no-print-directory", "install", "NOTIFY_RELOAD=yes"]);
    command.arg(format!("DESTDIR={}", ground.root().join("new").display()));
    command.arg(format!("AUTHSOCK={}", ground.binary.display()));
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", text_of(&output));
    for kind in ["user", "system"] {
        let dropin = format!("usr/lib/systemd/{kind}/authsock.service.d/notify-reload.conf");
        assert!(read(&ground.root().join("new"), &dropin).contains("Type=notify-reload"));
    }
}

#[test]
fn the_packagers_page_names_every_file_that_is_there_for_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("packaging/README.md")).unwrap();
    let mut dirs = vec![root.join("packaging"), root.join("systemd")];
    while let Some(dir) = dirs.pop() {
        for path in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let path = path.strip_prefix(root).unwrap();
            let folder = format!("`{}/*`", path.parent().unwrap().display());
            let is_named = page.contains(&format!("`{}`", path.display())) || page.contains(&folder);
            assert!(is_named || path.ends_with("packaging/README.md"), "{} is not named", path.display());
        }
    }
}
