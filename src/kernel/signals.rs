//! Signals and children of a program that runs another: what is passed on to it, and when it has stopped or ended.

use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicU8, Ordering};

use nix::errno::Errno;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, kill, raise, signal, sigprocmask};
use nix::unistd::Pid;

/// Signals that are passed on. Of those with which a terminal stops a job only the one is among them that
/// people send, too.
const PASSED_ON: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGTSTP,
];

/// What stops a job that has a terminal, and what a program stops itself by that has put the terminal in order
/// first, as editors do. We stop when the command has stopped and not before: else the shell above us takes the terminal
/// back while the command is still using it, or from a command that does not mean to stop.
const STOPS: [Signal; 3] = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];

/// Signals that this process does not have as it was started with them: the runtime ignores the one
/// before `main`, and we need the other. A command gets both as they were.
const CHANGED: [Signal; 2] = [Signal::SIGPIPE, Signal::SIGCHLD];

/// Which of [`CHANGED`] were ignored when this process was started, a bit for each.
static IGNORED_AT_START: AtomicU8 = AtomicU8::new(0);

/// Run before the runtime is, so that it is the start that is seen.
#[used]
#[cfg_attr(target_os = "linux", unsafe(link_section = ".init_array"))]
#[cfg_attr(target_os = "macos", unsafe(link_section = "__DATA,__mod_init_func"))]
static NOTE_AT_START: extern "C" fn() = note_what_is_ignored;

extern "C" fn note_what_is_ignored() {
    let mut ignored = 0;
    for (place, signal) in CHANGED.into_iter().enumerate() {
        // SAFETY: sigaction(2) without a new action only fills in the old one, which is plain data that
        // may begin as zeros.
        let is_ignored = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal as libc::c_int, std::ptr::null(), &raw mut action) == 0
                && action.sa_sigaction == libc::SIG_IGN
        };
        ignored |= u8::from(is_ignored) << place;
    }
    IGNORED_AT_START.store(ignored, Ordering::Relaxed);
}

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

/// Runs a command to its end as its keeper: passes signals on, stops when it stops, and reaps whatever is
/// orphaned to us. Standard input and output are the command's alone from then on.
///
/// The caller has no other threads: one that does not block the signals would take them.
///
/// # Errors
/// If the command cannot be started; `run` tells then whether it was found.
pub fn keep(command: &mut Command, beside: Option<Beside<'_>>) -> io::Result<ExitStatus> {
    hear_of_children()?;
    let mut set: SigSet = PASSED_ON.into_iter().chain(STOPS).collect();
    set.add(Signal::SIGCHLD);
    set.add(Signal::SIGCONT);
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), Some(&mut before))?;
    let ignored = IGNORED_AT_START.load(Ordering::Relaxed);
    // SAFETY: signal(2) and sigprocmask(2) are async-signal-safe, and the set is a plain copy. A command
    // that was started with blocked or ignored signals keeps those, and gets none of ours.
    unsafe {
        command.pre_exec(move || {
            for (place, changed) in CHANGED.into_iter().enumerate() {
                let is_ignored = ignored & (1 << place) != 0;
                signal(changed, if is_ignored { SigHandler::SigIgn } else { SigHandler::SigDfl })?;
            }
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
            Ok(())
        });
    }
    let mut arrivals = Arrivals::watch(&set)?;
    let child = command.spawn()?;
    // Where there is no /dev/null they stay open, and nothing else is lost.
    let _ = super::fds::leave_standard_streams();
    keep_until_end(&child, &mut arrivals, beside)
}

/// Has the system tell us of children, whatever it was told before. Whoever started us may ignore
/// SIGCHLD, and ignoring is inherited: then nobody tells of children that end, nor how they did (wait(2)).
fn hear_of_children() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    // SAFETY: the default disposition runs no code of ours.
    unsafe {
        signal(Signal::SIGCHLD, SigHandler::SigDfl)?;
    }
    // What is ignored by default is dropped before it reaches one who waits for it (sigwait(2) of macOS); a
    // handler makes the difference, although it never runs since the signals are blocked.
    #[cfg(not(target_os = "linux"))]
    {
        extern "C" fn nothing(_: libc::c_int) {}
        for awaited in [Signal::SIGCHLD, Signal::SIGCONT] {
            // SAFETY: the handler does nothing.
            unsafe { signal(awaited, SigHandler::Handler(nothing))? };
        }
    }
    Ok(())
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
    // Whether it may be about to stop by what it got from us.
    let mut is_stopping = false;
    loop {
        if let Some(status) = reap(pid)? {
            return Ok(status);
        }
        let stops_us = |how: &Signal| STOPS.contains(how) || (*how == Signal::SIGSTOP && is_in_front(pid));
        if let Some(how) = stopped_by(pid).filter(stops_us) {
            stop_as_well(pid, how)?;
        }
        let (signal, is_passed_on) = arrivals.next(pid, beside.as_mut())?;
        // A shell continues all of a job, others may mean us alone; and it may have been sent between what we
        // took and what we passed on. What came to stop the job since then is newer.
        let is_to_go_on = signal == Signal::SIGCONT
            && (is_stopping || stopped_by(pid).is_some())
            && !STOPS.into_iter().any(is_waiting);
        if is_to_go_on || (is_passed_on && PASSED_ON.contains(&signal)) {
            // It may have ended already; the next turn sees that.
            let _ = kill(pid, signal);
        }
        match signal {
            Signal::SIGTSTP => is_stopping |= is_passed_on,
            Signal::SIGCONT => is_stopping = false,
            _ => {}
        }
    }
}

/// Reaps all that have ended; returns how `main` did.
fn reap(main: Pid) -> io::Result<Option<ExitStatus>> {
    let mut ended = None;
    loop {
        let mut status = 0;
        // SAFETY: waitpid(2) fills in one number. Not nix's, which knows no real-time signals.
        let waited = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        match Errno::result(waited) {
            Ok(0) => return Ok(ended),
            Ok(pid) if pid == main.as_raw() => ended = Some(ExitStatus::from_raw(status)),
            Ok(_) | Err(Errno::EINTR) => {}
            // The last one is reaped; without the command among them there is nothing to wait for.
            Err(Errno::ECHILD) if ended.is_some() => return Ok(ended),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// What a child of ours was stopped by, if it is stopped now. It can be asked again and again (WNOWAIT, waitid(2)).
fn stopped_by(child: Pid) -> Option<Signal> {
    let id = libc::id_t::try_from(child.as_raw()).ok()?;
    let flags = libc::WSTOPPED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: waitid(2) fills in what is plain data and may begin as zeros; of a child the pid and the
    // status are set, and without one the pid stays zero.
    let (pid, status) = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        if libc::waitid(libc::P_PID, id, &raw mut info, flags) != 0 {
            return None;
        }
        (info.si_pid(), info.si_status())
    };
    if pid == child.as_raw() { Signal::try_from(status).ok() } else { None }
}

/// Stops this process by the signal that has stopped the command, until somebody continues it. Without a shell above
/// (an orphaned process group, setpgid(2)) the kernel lets it go on, as it lets the command.
///
/// Whoever continues the job may do so at any moment, and must not find us stopping afterwards. So the signal is made
/// to wait first, since continuing takes back one that waits; then the command is looked at once more.
fn stop_as_well(command: Pid, how: Signal) -> io::Result<()> {
    // To make a stop wait takes back one to continue, that we have not heard of yet.
    if is_waiting(Signal::SIGCONT) {
        return Ok(());
    }
    if how == Signal::SIGSTOP {
        // Nobody blocks or ignores it.
        return Ok(raise(how)?);
    }
    // SAFETY: the default disposition runs no code of ours. Whoever started us may have it ignored.
    unsafe { signal(how, SigHandler::SigDfl)? };
    raise(how)?;
    if stopped_by(command).is_none() {
        // SAFETY: as above; to ignore a signal takes back one that waits (sigaction(2)).
        unsafe {
            signal(how, SigHandler::SigIgn)?;
            signal(how, SigHandler::SigDfl)?;
        }
        return Ok(());
    }
    let only: SigSet = std::iter::once(how).collect();
    sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&only), None)?;
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&only), None)?;
    Ok(())
}

#[cfg(target_os = "linux")]
fn leads_its_session() -> bool {
    nix::unistd::getsid(None) == Ok(Pid::this())
}

/// Whether the command, or all of this job, has the terminal. A shell that is told to `suspend` halts itself by SIGSTOP,
/// and the one that waits for us has to hear of it; whom somebody halts elsewhere is that one's affair.
fn is_in_front(command: Pid) -> bool {
    let Ok(terminal) = std::fs::File::open("/dev/tty") else { return false };
    let front = nix::unistd::tcgetpgrp(&terminal);
    front.is_ok_and(|front| {
        front == nix::unistd::getpgrp() || nix::unistd::getpgid(Some(command)) == Ok(front)
    })
}

/// Whether a blocked signal has arrived and was not taken yet.
fn is_waiting(signal: Signal) -> bool {
    // SAFETY: sigpending(2) fills in a set, which is plain data and may begin as zeros.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigpending(&raw mut set) == 0 && libc::sigismember(&raw const set, signal as libc::c_int) == 1
    }
}

/// Signals as they arrive, with whether the command is to get them from us. What the kernel sends
/// (the terminal's, to the whole group) it has already; so it has what it sent to its own group. That its
/// terminal has hung up the kernel tells a session's leader only, and the leader may be us.
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
            let is_ours_alone = signal == Signal::SIGHUP && leads_its_session();
            return Ok((signal, (by_a_process && !by_the_command) || (!by_a_process && is_ours_alone)));
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

    /// Without knowing the sender: those that a terminal sends are left to it.
    #[cfg(not(target_os = "linux"))]
    fn next(&mut self, _command: Pid, _beside: Option<&mut Beside<'_>>) -> io::Result<(Signal, bool)> {
        let signal = self.set.wait()?;
        Ok((signal, !matches!(signal, Signal::SIGINT | Signal::SIGQUIT | Signal::SIGTSTP)))
    }
}
