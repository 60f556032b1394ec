//! `authsock serve`: adopts the sockets and is the daemon.

use std::fs::File;

use super::args::{Common, Serve};
use super::{Failure, exit, logging, runtime};
use crate::client::connect::places;
use crate::daemon::{self, Options};
use crate::init::{self, Starter};
use crate::kernel::dir;

/// Largest log file of a daemon that a client started, in bytes, before a new one is begun.
const LOG_MAX: u64 = 1 << 20;

pub(super) fn serve(common: &Common, args: &Serve) -> Result<(), Failure> {
    let starter = if args.on_demand { Starter::Client } else { Starter::Init };
    // First of all, while there is one thread.
    let activation = init::adopt(starter).map_err(|error| Failure::new(exit::NO_DAEMON, error))?;
    let log = match starter {
        Starter::Init => {
            logging::for_a_daemon();
            None
        }
        Starter::Client => Some(own_log()?),
    };
    let options = Options { config: common.config.clone(), log };
    let run = runtime()?.block_on(daemon::run(activation, options));
    run.map_err(|error| Failure::new(exit::NO_DAEMON, error))
}

/// The log file. Without a home, or where it cannot be written, nothing is logged: that must not
/// keep a daemon from serving.
fn own_log() -> Result<File, Failure> {
    let opened = places().log().and_then(|path| dir::open_log(path, LOG_MAX).ok());
    let nowhere = || File::options().append(true).open("/dev/null");
    let file = opened.map_or_else(nowhere, Ok)?;
    logging::to_file(file.try_clone()?);
    Ok(file)
}
