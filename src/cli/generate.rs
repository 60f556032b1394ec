//! `authsock generate`: the manual's pages and the shells' completions, made out of the command line itself for whoever packages it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

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
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if !verbs.is_empty() {
        man.render_subcommands_section(&mut page)?;
    }
    for (title, rows) in tables(AFTER_HELP) {
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

/// The tables that `--help` ends with, for sections of a page: a title, then `  term  words`.
fn tables(help: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut tables: Vec<(String, Vec<(String, String)>)> = Vec::new();
    for line in help.lines() {
        match (line.strip_prefix("  "), tables.last_mut()) {
            (Some(row), Some((_, rows))) => {
                let (term, words) = row.split_once("  ").or_else(|| row.split_once(' ')).unwrap_or((row, ""));
                rows.push((term.trim().to_owned(), words.trim().to_owned()));
            }
            (None, _) if line.ends_with(':') => {
                let title = line.trim_end_matches(':').to_uppercase();
                let title = if title == "EXIT CODES" { "EXIT STATUS".to_owned() } else { title };
                tables.push((title, Vec::new()));
            }
            _ => {}
        }
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_of_the_help_are_read_whole() {
        let tables = tables(AFTER_HELP);
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
}
