//! Runs a command of the init system, without a shell and with a deadline, and keeps what it said.

use std::ffi::OsStr;
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::CannotInstall;

/// How long a command of the init system may take. A unit may take its whole TimeoutStopSec=.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(90);

/// What a command answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) is_good: bool,
    pub(super) code: Option<i32>,
    pub(super) status: String,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Answer {
    pub(super) fn into_error(self, words: &[String]) -> CannotInstall {
        let problem = match self.stderr.trim() {
            "" => format!("failed ({})", self.status),
            said => format!("failed ({}): {said}", self.status),
        };
        CannotInstall::Command { words: words.join(" "), problem }
    }
}

/// Runs a command without a shell, and without input, and waits for its end for as long as commands
/// of an init system may take.
pub(super) fn ask<S: AsRef<OsStr>>(words: &[S]) -> Result<Answer, CannotInstall> {
    let said = || words.iter().map(|word| word.as_ref().to_string_lossy()).collect::<Vec<_>>().join(" ");
    let cannot = |problem: String| CannotInstall::Command { words: said(), problem };
    let Some((program, arguments)) = words.split_first() else {
        return Err(cannot("is no command".into()));
    };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // What it says is read here, so it speaks plainly.
    command.env("LC_ALL", "C.UTF-8").env("SYSTEMD_COLORS", "0");
    let mut child = command.spawn().map_err(|error| cannot(format!("cannot be run: {error}")))?;
    let (sender, receiver) = mpsc::channel();
    let read = |pipe: Option<Box<dyn Read + Send>>| {
        let sender = sender.clone();
        let (into, text) = mpsc::channel();
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut pipe) = pipe {
                let _ = pipe.read_to_end(&mut bytes);
            }
            let _ = into.send(String::from_utf8_lossy(&bytes).into_owned());
            let _ = sender.send(());
        });
        text
    };
    let stdout = read(child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>));
    let stderr = read(child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>));
    let end = Instant::now() + COMMAND_TIMEOUT;
    for _ in 0..2 {
        if receiver.recv_timeout(end.saturating_duration_since(Instant::now())).is_err() {
            let _ = child.kill();
            let _ = child.wait();
            return Err(cannot(format!("did not end within {COMMAND_TIMEOUT:?}")));
        }
    }
    // Both pipes are at their end, so the command is too.
    let status = child.wait().map_err(|error| cannot(error.to_string()))?;
    Ok(Answer {
        is_good: status.success(),
        code: status.code(),
        status: status.to_string(),
        stdout: stdout.recv().unwrap_or_default(),
        stderr: stderr.recv().unwrap_or_default(),
    })
}
