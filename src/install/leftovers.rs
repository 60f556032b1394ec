//! What daemons and clients leave behind, to be removed once nothing starts them any more.

use std::path::Path;

use super::Plan;
use super::step::Step;
use crate::place::Places;

/// What daemons and clients of a user leave behind, to be removed after the units were stopped. The
/// init system's socket comes last: as long as it is there, no client starts a daemon.
pub fn leftovers(places: &Places, purge: bool) -> Plan {
    let exists = |path: &Path| path.symlink_metadata().is_ok();
    let mut plan = Plan::default();
    let log = places.log().filter(|log| log.parent().is_some_and(exists));
    if exists(places.state()) || log.is_some() {
        let parents = log.map(|log| log.ancestors().skip(2).take(2).map(Path::to_path_buf).collect());
        plan.steps.push(Step::RemoveState {
            state: places.state().to_path_buf(),
            log: log.map(Path::to_path_buf),
            and_if_empty: parents.unwrap_or_default(),
        });
    }
    if exists(&places.runs()) {
        plan.steps.push(Step::RemoveIfEmpty(places.runs()));
    }
    for socket in [places.ondemand_socket(), places.init_socket()] {
        if exists(&socket) {
            plan.steps.push(Step::RemoveDeadSocket(socket));
        }
    }
    if let Some(configuration) = places.config().and_then(Path::parent).filter(|config| exists(config)) {
        plan.keep_or_purge(configuration, purge);
    }
    plan
}

/// What a daemon of the machine leaves behind.
pub fn system_leftovers(purge: bool) -> Plan {
    let exists = |path: &Path| path.symlink_metadata().is_ok();
    let mut plan = Plan::default();
    let (state, socket) = (Path::new("/run/authsock"), Path::new("/run/authsock.sock"));
    if exists(state) {
        let state = state.to_path_buf();
        plan.steps.push(Step::RemoveState { state, log: None, and_if_empty: Vec::new() });
    }
    if exists(socket) {
        plan.steps.push(Step::RemoveDeadSocket(socket.to_path_buf()));
    }
    let configuration = Path::new("/etc/authsock");
    if exists(configuration) {
        plan.keep_or_purge(configuration, purge);
    }
    plan
}

impl Plan {
    /// The user's own configuration goes only when that was asked for.
    fn keep_or_purge(&mut self, configuration: &Path, purge: bool) {
        if purge {
            // A user may have had no directory for configuration before; /etc stays.
            let parent = configuration.parent().filter(|parent| *parent != Path::new("/etc"));
            let and_if_empty = parent.map(Path::to_path_buf).into_iter().collect();
            self.steps.push(Step::RemoveTree { path: configuration.to_path_buf(), and_if_empty });
        } else {
            let words =
                format!("the configuration {} is kept; --purge removes it too", configuration.display());
            self.notes.push(words);
        }
    }
}
