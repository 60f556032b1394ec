//! Where log lines go: the journal with structured fields under systemd, else readable lines.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{self, Writer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::credential::discover::trusted_env;
use crate::kernel::dir;
use crate::place::var;

fn filter(default: &str) -> EnvFilter {
    let wanted = trusted_env(var::LOG).and_then(|value| value.into_string().ok());
    let Some(wanted) = wanted else { return EnvFilter::new(default) };
    EnvFilter::try_new(&wanted).unwrap_or_else(|_| {
        // There is no log yet to say it in.
        let words =
            format!("authsock: {}={wanted:?} is no level and no filter; {default} is used\n", var::LOG);
        let _ = io::Write::write_all(&mut io::stderr(), words.as_bytes());
        EnvFilter::new(default)
    })
}

/// Only the sentence: the structured fields say the same for programs.
fn sentence(
    writer: &mut Writer<'_>,
    field: &tracing::field::Field,
    value: &dyn std::fmt::Debug,
) -> std::fmt::Result {
    if field.name() == "message" { write!(writer, "{value:?}") } else { Ok(()) }
}

/// Warnings of a client, on standard error.
pub(super) fn for_a_client() {
    let lines = tracing_subscriber::fmt::layer()
        .fmt_fields(format::debug_fn(sentence))
        .with_target(false)
        .without_time()
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    let _ = tracing_subscriber::registry().with(filter("warn")).with(lines).try_init();
}

/// The log of a daemon: the journal if standard error leads there, else lines on standard error.
pub(super) fn for_a_daemon() {
    #[cfg(target_os = "linux")]
    if crate::kernel::fds::stderr_is_journal(&crate::place::process_env)
        && let Ok(journal) = tracing_journald::layer()
    {
        let journal = journal.with_field_prefix(None).with_syslog_identifier("authsock".into());
        let _ = tracing_subscriber::registry().with(filter("info")).with(journal).try_init();
        return;
    }
    let lines = tracing_subscriber::fmt::layer()
        .fmt_fields(format::debug_fn(sentence))
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    let _ = tracing_subscriber::registry().with(filter("info")).with(lines).try_init();
}

/// The log of a daemon that keeps a file of its own.
pub(super) fn to_file(log: LogFile) {
    let lines = tracing_subscriber::fmt::layer()
        .fmt_fields(format::debug_fn(sentence))
        .with_target(false)
        .with_ansi(false)
        .with_writer(Mutex::new(log));
    let _ = tracing_subscriber::registry().with(filter("info")).with(lines).try_init();
}

/// Largest log file, in bytes, before a new one is begun; one old one is kept.
const LOG_MAX: u64 = 1 << 20;

/// A log file that makes room for a new one when it is full.
#[derive(Debug)]
pub(super) struct LogFile {
    /// Where it lies; nowhere if it could not be opened.
    path: Option<PathBuf>,
    file: File,
    written: u64,
}

impl LogFile {
    /// Opens it, or nothing at all: that must not keep a daemon from serving.
    pub(super) fn open(path: Option<&Path>) -> io::Result<LogFile> {
        let opened = path.and_then(|path| Some((path.to_path_buf(), dir::open_log(path, LOG_MAX).ok()?)));
        let (path, file) = match opened {
            Some((path, file)) => (Some(path), file),
            None => (None, File::options().append(true).open("/dev/null")?),
        };
        Ok(LogFile { path, written: file.metadata()?.len(), file })
    }

    /// Where it lies.
    pub(super) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Another hold on the file as it is now.
    pub(super) fn try_clone(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

impl io::Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(path) = self.path.as_ref().filter(|_| self.written > LOG_MAX)
            && let Ok(file) = dir::open_log(path, LOG_MAX)
        {
            (self.file, self.written) = (file, 0);
        }
        let written = self.file.write(bytes)?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_full_log_makes_room_and_one_old_one_is_kept() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("log");
        let mut log = LogFile::open(Some(&path)).unwrap();
        let line = [b'x'; 64 * 1024];
        for _ in 0..80 {
            log.write_all(&line).unwrap();
        }
        let size = |name: &str| temp.path().join(name).metadata().unwrap().len();
        for name in ["log", "log.old"] {
            assert!(size(name) <= LOG_MAX + 2 * line.len() as u64, "{name}: {}", size(name));
        }
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 2);
    }
}
