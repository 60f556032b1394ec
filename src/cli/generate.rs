//! `authsock generate`: the manual's pages and the shells' completions, made out of the command line itself for whoever packages it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use clap::{Arg, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

use super::args::{AFTER_HELP, Args, Generate};
use super::output::Output;
use super::{Failure, exit};

pub(super) fn generate(verb: &Generate, output: &Output) -> Result<(), Failure> {
    let (dir, files) = match verb {
        Generate::Man { dir } => (dir, pages()),
        Generate::Completions { dir } => (dir, Ok(completions())),
    };
    let files = files?;
    let cannot = |what: &Path, error: io::Error| {
        Failure::new(exit::FAILED, format!("cannot write {}: {error}", what.display()))
    };
    fs::create_dir_all(dir).map_err(|error| cannot(dir, error))?;
    for (name, content) in &files {
        let path = dir.join(name);
        put(&path, content).map_err(|error| cannot(&path, error))?;
        output.raw(&format!("{}\n", path.display()))?;
    }
    Ok(())
}

/// Writes a file that is whole from the moment it is there, and readable by all.
fn put(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}~", std::process::id()));
    let next = path.with_file_name(name);
    let written = (|| {
        let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&next)?;
        // Whatever the umask is of whoever builds a package.
        file.set_permissions(PermissionsExt::from_mode(0o644))?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&next, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&next);
    }
    written
}

/// A completion for each shell, named as the shell looks for it.
fn completions() -> Vec<(String, Vec<u8>)> {
    let names = [(Shell::Bash, "authsock"), (Shell::Zsh, "_authsock"), (Shell::Fish, "authsock.fish")];
    let make = |(shell, name): (Shell, &str)| {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Args::command(), "authsock", &mut script);
        (name.to_owned(), script)
    };
    names.map(make).into()
}

/// A page for the program and one for each verb.
fn pages() -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let mut command = Args::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    add_pages(&command, "authsock", &mut pages)?;
    Ok(pages)
}

fn add_pages(command: &Command, name: &str, pages: &mut Vec<(String, Vec<u8>)>) -> io::Result<()> {
    let verbs: Vec<String> =
        command.get_subcommands().map(|verb| format!("{name}-{}", verb.get_name())).collect();
    pages.push((format!("{name}.1"), page(command, name, &verbs)?));
    for (verb, name) in command.get_subcommands().zip(&verbs) {
        add_pages(verb, name, pages)?;
    }
    Ok(())
}

fn page(command: &Command, name: &str, verbs: &[String]) -> io::Result<Vec<u8>> {
    // A name that outlives the command it was made for: clap keeps names for ever.
    let man = Man::new(command.clone().display_name(name.to_owned()));
    // No date: a page is the same whenever and wherever it is made.
    let title = name.to_uppercase();
    let version = env!("CARGO_PKG_VERSION");
    let mut page =
        format!(".TH {title} 1 \"\" \"authsock {version}\" \"Authenticated local sockets\"\n").into_bytes();
    man.render_name_section(&mut page)?;
    let mut section = Roff::new();
    section.control("SH", ["SYNOPSIS"]).text(synopsis(command));
    section.to_writer(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if !verbs.is_empty() {
        man.render_subcommands_section(&mut page)?;
    }
    // A verb's own table stands in the place of the one that is for all verbs.
    let own = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let (mut tables, paragraphs) = parts(&own);
    for (title, rows) in parts(AFTER_HELP).0 {
        if tables.iter().all(|(known, _)| *known != title) {
            tables.push((title, rows));
        }
    }
    if !paragraphs.is_empty() {
        let mut section = Roff::new();
        section.control("SH", ["NOTES"]);
        for (number, paragraph) in paragraphs.iter().enumerate() {
            if number > 0 {
                section.control("PP", []);
            }
            section.text([roman(paragraph)]);
        }
        section.to_writer(&mut page)?;
    }
    for (title, rows) in tables {
        let mut section = Roff::new();
        section.control("SH", [title.as_str()]);
        for (term, words) in &rows {
            section.control("TP", []).text([bold(term)]).text([roman(words)]);
        }
        section.to_writer(&mut page)?;
    }
    let mut also: Vec<String> = verbs.to_vec();
    if let Some((above, _)) = name.rsplit_once('-') {
        also.push(above.to_owned());
    }
    let mut section = Roff::new();
    let mut line = Vec::new();
    for (number, page) in also.iter().enumerate() {
        line.extend([bold(page), roman(if number + 1 < also.len() { "(1), " } else { "(1)" })]);
    }
    section.control("SH", ["SEE ALSO"]).text(line);
    section.to_writer(&mut page)?;
    Ok(page)
}

/// What a command line looks like: the verb's own options, those of every verb, and what follows them, each with the
/// name of its value.
fn synopsis(command: &Command) -> Vec<Inline> {
    let mut line = vec![bold(command.get_bin_name().unwrap_or_else(|| command.get_name()))];
    let shown = |arg: &&Arg| !arg.is_hide_set();
    let options = || command.get_arguments().filter(|arg| !arg.is_positional()).filter(shown);
    let is_common = |arg: &&Arg| arg.is_global_set() || arg.get_id() == "help" || arg.get_id() == "version";
    for option in options().filter(|arg| !is_common(arg)).chain(options().filter(is_common)) {
        line.push(roman(if option.is_required_set() { " " } else { " [" }));
        let short = option.get_short().map(|short| format!("-{short}"));
        let long = option.get_long().map(|long| format!("--{long}"));
        for (number, name) in short.into_iter().chain(long).enumerate() {
            if number > 0 {
                line.push(roman("|"));
            }
            line.push(bold(name));
        }
        if takes_value(option) {
            line.extend([roman(" "), italic(value_name(option))]);
        }
        line.push(roman(if option.is_required_set() { "" } else { "]" }));
    }
    for arg in command.get_positionals().filter(shown) {
        let more = if arg.get_num_args().is_some_and(|count| count.max_values() > 1) { " ..." } else { "" };
        let (before, behind) = if arg.is_required_set() { (" ", "") } else { (" [", "]") };
        line.extend([roman(before), italic(value_name(arg)), roman(more), roman(behind)]);
    }
    if command.has_subcommands() {
        line.extend([roman(" "), italic("COMMAND")]);
    }
    line
}

fn takes_value(arg: &Arg) -> bool {
    arg.get_num_args().is_some_and(|count| count.takes_values())
}

fn value_name(arg: &Arg) -> String {
    arg.get_value_names().map_or_else(|| arg.get_id().as_str().to_uppercase(), |names| names.join(" "))
}

/// A title, and rows of a term and words.
type Table = (String, Vec<(String, String)>);

/// What `--help` ends with, for sections of a page: tables, each of a title and then `  term  words`, and paragraphs.
fn parts(help: &str) -> (Vec<Table>, Vec<String>) {
    let (mut tables, mut paragraphs) = (Vec::new(), Vec::new());
    for block in help.split("\n\n").filter(|block| !block.trim().is_empty()) {
        let (first, rows) = block.split_once('\n').unwrap_or((block, ""));
        let is_table =
            first.ends_with(':') && !rows.is_empty() && rows.lines().all(|row| row.starts_with("  "));
        if !is_table {
            paragraphs.push(block.lines().map(str::trim).collect::<Vec<_>>().join(" "));
            continue;
        }
        let title = first.trim_end_matches(':').to_uppercase();
        let title = if title == "EXIT CODES" { "EXIT STATUS".to_owned() } else { title };
        let row = |row: &str| {
            let row = row.trim();
            let (term, words) = row.split_once("  ").or_else(|| row.split_once(' ')).unwrap_or((row, ""));
            (term.to_owned(), words.trim().to_owned())
        };
        tables.push((title, rows.lines().map(row).collect()));
    }
    (tables, paragraphs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_of_the_help_are_read_whole() {
        let (tables, paragraphs) = parts(AFTER_HELP);
        assert!(paragraphs.is_empty(), "{paragraphs:?}");
        assert_eq!(
            tables.iter().map(|(title, _)| title.as_str()).collect::<Vec<_>>(),
            ["EXIT STATUS", "ENVIRONMENT"]
        );
        let rows = tables.iter().flat_map(|(_, rows)| rows);
        let printed = AFTER_HELP.lines().filter(|line| line.starts_with("  ")).count();
        assert_eq!(rows.clone().count(), printed);
        for (term, words) in rows {
            assert!(!term.is_empty() && words.len() > 3 && !term.contains(' '), "{term:?} {words:?}");
        }
    }

    #[test]
    fn what_is_no_table_is_a_paragraph_even_if_it_ends_in_a_colon() {
        let (tables, paragraphs) = parts("One\ntwo:\n\nCodes:\n  0  done\n\nThree:");
        assert_eq!(tables, [("CODES".to_owned(), vec![("0".to_owned(), "done".to_owned())])]);
        assert_eq!(paragraphs, ["One two:", "Three:"]);
    }
}
