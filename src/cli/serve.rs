//! `authsock serve`: adopts the sockets and is the daemon.

use super::args::{Common, Serve};
use super::logging::{self, LogFile};
use super::{Failure, exit, runtime};
use crate::client::connect::places;
use crate::daemon::{self, Options};
use crate::init::{self, Starter};
use crate::kernel::fds;

pub(super) fn serve(common: &Common, args: &Serve) -> Result<(), Failure> {
    let starter = if args.on_demand { Starter::Client } else { Starter::Init };
    // First of all, while there is one thread.
    let activation = init::adopt(starter).map_err(|error| Failure::new(exit::NO_DAEMON, error))?;
    let descriptors = fds::settle_limits();
    let system = common.system;
    let mut options = Options { system, config: common.config.clone(), descriptors, ..Options::default() };
    match starter {
        Starter::Init if !cfg!(target_os = "macos") => logging::for_a_daemon(),
        // launchd keeps no log: what a job says goes to /dev/null, or to a file that grows for ever.
        Starter::Init | Starter::Client => {
            let log = LogFile::open(places(false).log())?;
            options.log_path = log.path().map(ToOwned::to_owned);
            options.log = Some(log.try_clone()?);
            logging::to_file(log);
        }
    }
    let run = runtime()?.block_on(daemon::run(activation, options));
    run.map_err(|error| Failure::new(exit::NO_DAEMON, error))
}
