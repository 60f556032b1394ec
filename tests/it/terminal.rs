//! A terminal with a program on it, as a person has it: what is typed goes in, what is shown is waited for.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::ground::PATIENCE;

/// What the keys of a terminal send.
pub const CTRL_C: &str = "\x03";
pub const CTRL_D: &str = "\x04";
pub const CTRL_Z: &str = "\x1a";

/// A terminal, and the program that leads its session. Killed when dropped; hanging up ends the rest.
pub struct Terminal {
    pub leader: Child,
    keyboard: std::fs::File,
    /// What was shown and not waited for yet.
    shown: String,
}

impl Terminal {
    /// Starts a program as the leader of a session on a terminal of its own.
    pub fn begin(command: &mut Command) -> Terminal {
        let (mut ours, mut theirs) = (-1, -1);
        let size = libc::winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: openpty(3) fills in two numbers, which are nobody else's.
        let (ours, theirs) = unsafe {
            let none = std::ptr::null_mut();
            let made = libc::openpty(
                &raw mut ours,
                &raw mut theirs,
                none,
                none.cast(),
                (&raw const size).cast_mut(),
            );
            assert_eq!(made, 0, "no terminal: {}", std::io::Error::last_os_error());
            (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs))
        };
        for fd in [&ours, &theirs] {
            authsock::kernel::fds::set_cloexec(std::os::fd::AsFd::as_fd(fd)).unwrap();
        }
        let copy = || Stdio::from(theirs.try_clone().unwrap());
        command.stdin(copy()).stdout(copy()).stderr(copy()).env("TERM", "dumb");
        // SAFETY: only async-signal-safe calls between fork and exec. What the runner of the tests ignores is not ignored here.
        unsafe {
            command.pre_exec(|| {
                for signal in
                    [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU]
                {
                    libc::signal(signal, libc::SIG_DFL);
                }
                let done = libc::setsid() != -1 && libc::ioctl(0, libc::TIOCSCTTY as _, 0) != -1;
                if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
            });
        }
        let leader = command.spawn().unwrap();
        // The command holds copies of their side, which would keep the end from us.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Terminal { leader, keyboard: ours.into(), shown: String::new() }
    }

    /// Presses keys.
    pub fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Types a line.
    pub fn say(&mut self, line: &str) {
        self.press(&format!("{line}\n"));
    }

    /// Waits until this is shown; returns what was shown before it. What is typed is shown as well: what is
    /// waited for should be the result of what is typed, and not its text.
    pub fn wait_for(&mut self, wanted: &str) -> String {
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.shown.find(wanted) {
                let before = self.shown[..at].to_owned();
                self.shown.drain(..at + wanted.len());
                return before;
            }
            let left = end.saturating_duration_since(std::time::Instant::now());
            assert!(self.read(left), "{wanted:?} is not shown: {:?}", self.shown);
        }
    }

    /// Everything up to the end of all who have the terminal.
    pub fn rest(&mut self) -> String {
        while self.read(PATIENCE) {}
        std::mem::take(&mut self.shown)
    }

    /// Reads what there is; false at the end, or if nothing comes in time.
    fn read(&mut self, patience: std::time::Duration) -> bool {
        let mut waiting = [PollFd::new(std::os::fd::AsFd::as_fd(&self.keyboard), PollFlags::POLLIN)];
        match poll(&mut waiting, PollTimeout::try_from(patience).unwrap()) {
            Ok(0) => return false,
            Err(nix::errno::Errno::EINTR) => return true,
            other => other.unwrap(),
        };
        let mut buffer = [0; 4096];
        match self.keyboard.read(&mut buffer) {
            Ok(0) => false,
            Ok(length) => {
                self.shown.push_str(&String::from_utf8_lossy(&buffer[..length]));
                true
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => true,
            // Nobody has the other side any more.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => false,
            Err(error) => panic!("cannot read the terminal: {error}"),
        }
    }

    /// Closes our side, as when the window is closed or the line breaks.
    pub fn hang_up(&mut self) {
        self.keyboard = std::fs::File::open("/dev/null").unwrap();
    }

    /// Changes the size of the terminal's window.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: ioctl_tty(2) reads a size.
        let done = unsafe { libc::ioctl(self.keyboard.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.leader.kill();
        let _ = self.leader.wait();
    }
}
