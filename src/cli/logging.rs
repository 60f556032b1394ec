//! Where log lines go: the journal with structured fields under systemd, else readable lines.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{self, Writer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::credential::discover::trusted_env;
use crate::place::var;

fn filter(default: &str) -> EnvFilter {
    let wanted = trusted_env(var::LOG).and_then(|value| value.into_string().ok());
    wanted.and_then(|wanted| EnvFilter::try_new(wanted).ok()).unwrap_or_else(|| EnvFilter::new(default))
}

/// Only the sentence: the structured fields say the same for programs.
fn sentence(writer: &mut Writer<'_>, field: &tracing::field::Field, value: &dyn std::fmt::Debug) -> std::fmt::Result {
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
pub(super) fn to_file(file: File) {
    let lines = tracing_subscriber::fmt::layer()
        .fmt_fields(format::debug_fn(sentence))
        .with_target(false)
        .with_ansi(false)
        .with_writer(Mutex::new(file));
    let _ = tracing_subscriber::registry().with(filter("info")).with(lines).try_init();
}
