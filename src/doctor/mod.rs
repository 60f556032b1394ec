//! What keeps a client from its daemon, looked at in the order in which a client does and with the same functions; nothing is changed, started or repaired.
#![forbid(unsafe_code)]

mod daemon;
mod kernel;
mod process;
mod program;
mod reach;
mod report;
mod socket;
mod surroundings;
mod systemd;
mod token;

use crate::client::Options;
use crate::kernel::process::Pid;
use crate::place::Places;
pub use report::{Area, Finding, Id, Level, Report};

/// Looks at everything, as a client with these options would meet it.
///
/// Nothing is made, locked, started or activated. A daemon that runs already is asked; one that does
/// not is left alone, since the first connection would start it.
///
/// Cancel safe: there is nothing to undo.
pub async fn examine(options: &Options, places: &Places, pid: Option<Pid>) -> Report {
    let mut report = Report::default();
    surroundings::environment(&mut report.area(Area::Environment), options, places);
    surroundings::directories(&mut report.area(Area::Directories), places);
    let config = surroundings::configuration(&mut report.area(Area::Configuration), options, places);
    let socket = socket::examine(&mut report.area(Area::Socket), options, places);
    let units = systemd::examine(&mut report.area(Area::Systemd), options, places).await;
    let running = daemon::seen_running(places, &socket, &units);
    let token = token::examine(&mut report.area(Area::Token), options, places, running);
    let mut area = report.area(Area::Daemon);
    let sessions = daemon::examine(&mut area, options, places, &socket, &units, token, config.as_ref()).await;
    kernel::examine(&mut report.area(Area::Kernel), places);
    if let Some(pid) = pid {
        let mut area = report.area(Area::Process);
        process::examine(&mut area, pid, config.as_ref(), places, socket.path(), sessions.as_deref());
    }
    if places.is_system() {
        if pid.is_none() {
            process::examine_own_user(&mut report.area(Area::Process), config.as_ref());
        }
        report.is_of_the_machine_s_units();
    }
    report.in_order()
}
