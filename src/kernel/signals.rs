//! Signals and children of a program that runs another: what is passed on to it, and when it has ended.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};

use nix::errno::Errno;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, kill, raise, signal, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Signals that are passed on. The terminal's stop signals are not among them: they reach both of us
/// anyway, and must stop both.
const PASSED_ON: [Signal; 6] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGUSR2];

/// Has a command that is about to be started end with this thread (prctl(2), PR_SET_PDEATHSIG); where there is no
/// such thing it ends when it next writes to nobody.
pub fn end_with_us(command: &mut Command) {
    // SAFETY: prctl(2) is all that is called between fork and exec, and it allocates nothing.
    #[cfg(target_os = "linux")]
    unsafe {
        command.pre_exec(|| {
            Errno::result(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM))?;
            Ok(())
        });
    }
    #[cfg(not(target_os = "linux"))]
    let _ = command;
}

/// Something else to look after while a command runs: what is to be done when a descriptor becomes readable. Only on
/// Linux is there anything.
pub struct Beside<'a> {
    /// The descriptor.
    pub readable: std::os::fd::BorrowedFd<'a>,
    /// What to do; it reads the descriptor empty.
    pub look: &'a mut dyn FnMut(),
}

/// Runs a command to its end as its keeper: passes signals on, and reaps whatever is orphaned to us.
///
/// The caller has no other threads: one that does not block the signals would take them.
///
/// # Errors
/// If the command cannot be started; `run` tells then whether it was found.
pub fn keep(command: &mut Command, beside: Option<Beside<'_>>) -> io::Result<ExitStatus> {
    // Whoever started us may ignore it, and ignoring is inherited: then nobody tells of children that
    // end, nor how they did (wait(2)).
    // SAFETY: the default disposition runs no code of ours.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl)? };
    let mut set: SigSet = PASSED_ON.into_iter().collect();
    set.add(Signal::SIGCHLD);
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), Some(&mut before))?;
    // SAFETY: sigprocmask(2) is async-signal-safe, and the set is a plain copy. A command that was
    // started with blocked signals keeps those, and gets none of ours.
    unsafe {
        command.pre_exec(move || {
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
            Ok(())
        });
    }
    let mut arrivals = Arrivals::watch(&set)?;
    let child = command.spawn()?;
    keep_until_end(&child, &mut arrivals, beside)
}

/// Whether a program could not be started because the file is of no format that the kernel runs, or
/// because something on the way to it is no directory.
pub fn is_not_executable(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOEXEC | libc::ENOTDIR | libc::EISDIR))
}

/// Ends this process by SIGINT, as its command was: a shell that runs us in a loop stops the loop only
/// for a program that died of it.
pub fn die_of_interrupt() {
    let only_interrupt: SigSet = std::iter::once(Signal::SIGINT).collect();
    // SAFETY: the default action replaces whatever handler there was; nothing else runs any more.
    let set = unsafe { signal(Signal::SIGINT, SigHandler::SigDfl) };
    if set.is_ok() && raise(Signal::SIGINT).is_ok() {
        let _ = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&only_interrupt), None);
    }
}

fn keep_until_end(
    child: &Child,
    arrivals: &mut Arrivals,
    mut beside: Option<Beside<'_>>,
) -> io::Result<ExitStatus> {
    let pid = Pid::from_raw(i32::try_from(child.id()).map_err(|_| Errno::ESRCH)?);
    loop {
        if let Some(status) = reap(pid)? {
            return Ok(status);
        }
        let (signal, is_passed_on) = arrivals.next(pid, beside.as_mut())?;
        if signal != Signal::SIGCHLD && is_passed_on {
            // It may have ended already; the next turn sees that.
            let _ = kill(pid, signal);
        }
    }
}

/// Reaps all that have ended; returns how `main` did.
fn reap(main: Pid) -> io::Result<Option<ExitStatus>> {
    use std::os::unix::process::ExitStatusExt;
    let mut ended = None;
    loop {
        let (pid, raw) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, code << 8),
            Ok(WaitStatus::Signaled(pid, signal, core)) => (pid, signal as i32 | if core { 0x80 } else { 0 }),
            Ok(WaitStatus::StillAlive) => return Ok(ended),
            // The last one is reaped; without the command among them there is nothing to wait for.
            Err(Errno::ECHILD) if ended.is_some() => return Ok(ended),
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        if pid == main {
            ended = Some(ExitStatus::from_raw(raw));
        }
    }
}

/// Signals as they arrive, with whether the command is to get them from us. What the kernel sends
/// (the terminal's, to the whole group) it has already; so it has what it sent to its own group.
///
/// What another process sent is passed on, from our own group too: scripts, and `timeout
/// --foreground`, live in the group of what they start and signal it by its pid alone. The kernel
/// does not tell that from a signal to the whole group; then the command gets it twice.
struct Arrivals {
    #[cfg(target_os = "linux")]
    from: nix::sys::signalfd::SignalFd,
    #[cfg(not(target_os = "linux"))]
    set: SigSet,
}

impl Arrivals {
    #[cfg(target_os = "linux")]
    fn watch(set: &SigSet) -> io::Result<Arrivals> {
        use nix::sys::signalfd::{SfdFlags, SignalFd};
        Ok(Arrivals { from: SignalFd::with_flags(set, SfdFlags::SFD_CLOEXEC)? })
    }

    #[cfg(target_os = "linux")]
    fn next(&mut self, command: Pid, mut beside: Option<&mut Beside<'_>>) -> io::Result<(Signal, bool)> {
        loop {
            if let Some(beside) = beside.as_deref_mut()
                && !self.has_come(beside)?
            {
                continue;
            }
            let info = match self.from.read_signal() {
                Ok(Some(info)) => info,
                Ok(None) | Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            let number = i32::try_from(info.ssi_signo).map_err(|_| Errno::EINVAL)?;
            let signal = Signal::try_from(number)?;
            let by_a_process = info.ssi_code <= 0;
            let by_the_command = i32::try_from(info.ssi_pid) == Ok(command.as_raw());
            return Ok((signal, by_a_process && !by_the_command));
        }
    }

    /// Waits for a signal or for what is looked after beside; whether a signal has come.
    #[cfg(target_os = "linux")]
    fn has_come(&self, beside: &mut Beside<'_>) -> io::Result<bool> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        let mut waiting = [self.from.as_fd(), beside.readable].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut waiting, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let [signal, other] = waiting.map(|fd| fd.any().unwrap_or(false));
        if other {
            (beside.look)();
        }
        Ok(signal)
    }

    #[cfg(not(target_os = "linux"))]
    #[allow(clippy::unnecessary_wraps)]
    fn watch(set: &SigSet) -> io::Result<Arrivals> {
        Ok(Arrivals { set: *set })
    }

    /// Without knowing the sender: the two that a terminal sends are left to it.
    #[cfg(not(target_os = "linux"))]
    fn next(&mut self, _command: Pid, _beside: Option<&mut Beside<'_>>) -> io::Result<(Signal, bool)> {
        let signal = self.set.wait()?;
        Ok((signal, !matches!(signal, Signal::SIGINT | Signal::SIGQUIT)))
    }
}
