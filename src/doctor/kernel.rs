//! What this kernel and this /proc give, and what is weaker without it.

use std::path::Path;

use super::report::{Id, InArea};
use crate::kernel::process::{Pid, Process};
use crate::kernel::survey;
use crate::place::Places;

/// What makes /proc show a daemon the processes that it must walk up.
pub(super) fn show_processes(is_system: bool) -> &'static str {
    if is_system {
        "mount /proc with hidepid=0, or without gid= (in /etc/fstab, or `mount -o remount,hidepid=0 /proc`)"
    } else {
        "mount /proc with hidepid=0, or with gid= of a group that the user is in (in /etc/fstab, or `mount -o remount,hidepid=0 /proc`)"
    }
}

pub(super) fn examine(area: &mut InArea<'_>, places: &Places) {
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
        if let Some(hidden) = survey::hidepid(places.is_system()) {
            let says = format!(
                "is mounted with hidepid={}: of other users' processes nothing can be told",
                hidden.option
            );
            if hidden.blinds {
                let says = format!(
                    "{says}. The daemon cannot walk up to a process's ancestors: while a session lives it can place nobody outside of it, and refuses the owner's token (binding)"
                );
                area.warning(Id::Hidepid, "/proc", says, show_processes(places.is_system()));
            } else {
                area.note(Id::Hidepid, "/proc", says);
            }
        }
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (Process::open(Pid::own()), Path::new("/"), survey::hidepid(places.is_system()));
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
