//! What this kernel and this /proc give, and what is weaker without it.

use std::path::Path;

use super::report::{Id, InArea};
use crate::kernel::process::{Pid, Process};
use crate::kernel::survey;

pub(super) fn examine(area: &mut InArea<'_>) {
    #[cfg(target_os = "linux")]
    {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let subject = format!("Linux {}", release.trim());
        let (peers, pidfs) = (
            crate::kernel::peer::kernel_gives_peer_pidfds(),
            Process::open(Pid::own()).is_ok_and(|process| process.inode().is_some()),
        );
        if peers && pidfs {
            area.ok(
                Id::Kernel,
                &subject,
                "gives pidfds of peers (SO_PEERPIDFD) with inodes of their own (pidfs)",
            );
        }
        if !peers {
            area.note(
                Id::NoPeerPidfds,
                &subject,
                "gives no pidfds of peers (Linux 6.5 does): who connects is known by pid and start time",
            );
        }
        if !pidfs {
            area.note(
                Id::NoPidfs,
                &subject,
                "has no pidfs (Linux 6.9 has): a relay is found out by pid and start time only",
            );
        }
        if !Path::new("/proc/self/stat").exists() {
            area.warning(
                Id::NoProc,
                "/proc",
                "is not mounted: sessions cannot be bound to process trees, and much of this report cannot be seen",
                "mount -t proc proc /proc",
            );
        }
        if let Some(hidepid) = survey::hidepid() {
            area.note(
                Id::Hidepid,
                "/proc",
                format!("is mounted with hidepid={hidepid}: of other users' processes nothing can be told"),
            );
        }
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (Process::open(Pid::own()), Path::new("/"), survey::hidepid());
        area.note(
            Id::NoPeerPidfds,
            std::env::consts::OS,
            "has no pidfds: sessions are bound to the user and not to a process tree",
        );
    }
    /// What a client needs at most at once: standard ones, socket, directories, pidfds, the runtime's.
    const NEEDED: u64 = 32;
    let limit = survey::descriptor_limit();
    if limit < NEEDED {
        area.warning(
            Id::FewDescriptors,
            "RLIMIT_NOFILE",
            format!("{limit} descriptors are few for a client"),
            format!("ulimit -n {NEEDED}, or more"),
        );
    }
}
